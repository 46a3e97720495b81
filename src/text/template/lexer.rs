//! Source → tokens, by the rules of jinja2's lexer as `transformers` sets it up: `trim_blocks` and
//! `lstrip_blocks` on, a single newline at the end dropped, line ends made `\n`.

use crate::text::whitespace::is_whitespace;

use super::TemplateError;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Text between tags.
    Data(String),
    VariableBegin,
    VariableEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    Operator(&'static str),
    End,
}

/// Longest first.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// Tokens with their lines; the last one is [`Token::End`].
pub(super) fn tokenize(source: &str) -> Result<Vec<(Token, u32)>, TemplateError> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, line_starting: true, tokens: Vec::new() };
    lexer.run()?;
    lexer.push(Token::End);
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: u32,
    /// Whether what was read last ended a line.
    line_starting: bool,
    tokens: Vec<(Token, u32)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Variable,
    Block,
    Comment,
    Raw,
}

impl<'s> Lexer<'s> {
    fn run(&mut self) -> Result<(), TemplateError> {
        while self.at < self.source.len() {
            let Some((start, tag)) = self.next_tag() else {
                let rest = self.rest().to_owned();
                self.advance(rest.len());
                self.push(Token::Data(rest));
                return Ok(());
            };
            let sign = self.source.as_bytes().get(start + 2).copied().filter(|sign| b"+-".contains(sign));
            self.data(start, sign, tag == Tag::Variable);
            self.advance(2 + usize::from(sign.is_some()));
            match tag {
                Tag::Comment => self.comment()?,
                Tag::Raw => self.raw()?,
                Tag::Variable => self.expression(Token::VariableBegin, Token::VariableEnd, "}}")?,
                Tag::Block => self.expression(Token::BlockBegin, Token::BlockEnd, "%}")?,
            }
        }
        Ok(())
    }

    fn next_tag(&self) -> Option<(usize, Tag)> {
        let bytes = self.source.as_bytes();
        (self.at..bytes.len().saturating_sub(1)).find_map(|at| match &bytes[at..at + 2] {
            b"{{" => Some((at, Tag::Variable)),
            b"{#" => Some((at, Tag::Comment)),
            b"{%" if raw_tag(&self.source[at + 2..]).is_some() => Some((at, Tag::Raw)),
            b"{%" => Some((at, Tag::Block)),
            _ => None,
        })
    }

    /// The text before a tag, without what the tag's sign or `lstrip_blocks` takes.
    fn data(&mut self, end: usize, sign: Option<u8>, is_variable: bool) {
        let text = &self.source[self.at..end];
        let mut kept = text;
        if sign == Some(b'-') {
            kept = text.trim_end_matches(is_whitespace);
        } else if sign.is_none() && !is_variable {
            let last_line = text.rfind('\n').map_or(0, |newline| newline + 1);
            if (last_line > 0 || self.line_starting) && text[last_line..].chars().all(is_whitespace) {
                kept = &text[..last_line];
            }
        }
        if !kept.is_empty() {
            self.push(Token::Data(kept.to_owned()));
        }
        self.advance(text.len());
    }

    fn comment(&mut self) -> Result<(), TemplateError> {
        let Some(end) = self.rest().find("#}") else {
            return self.fail("missing end of comment tag");
        };
        let sign = self.rest()[..end].bytes().last();
        self.advance(end + 2);
        self.after_tag(sign);
        Ok(())
    }

    fn raw(&mut self) -> Result<(), TemplateError> {
        let (length, sign) = raw_tag(self.rest()).expect("it was seen");
        self.advance(length);
        if sign == Some(b'-') {
            self.skip_whitespace();
        }
        self.line_starting = self.source[..self.at].ends_with('\n');
        let bytes = self.source.as_bytes();
        let found = (self.at..bytes.len()).filter(|&at| bytes[at..].starts_with(b"{%")).find_map(|at| {
            let rest = &self.source[at + 2..];
            let opening = rest.bytes().next().filter(|sign| b"+-".contains(sign));
            let word = rest[usize::from(opening.is_some())..].trim_start_matches(is_whitespace);
            let after = word.strip_prefix("endraw")?.trim_start_matches(is_whitespace);
            let closing = after.bytes().next().filter(|sign| b"+-".contains(sign));
            let after = after[usize::from(closing.is_some())..].strip_prefix("%}")?;
            Some((at, opening, closing, self.source.len() - after.len()))
        });
        let Some((start, opening, closing, end)) = found else {
            return self.fail("missing end of raw directive");
        };
        self.data(start, opening, false);
        self.advance(end - start);
        self.after_tag(closing);
        Ok(())
    }

    /// White space after a block's or a comment's end: `-` takes all, `+` none, else one newline goes.
    fn after_tag(&mut self, sign: Option<u8>) {
        match sign {
            Some(b'-') => self.skip_whitespace(),
            Some(b'+') => {}
            _ => self.advance(usize::from(self.rest().starts_with('\n'))),
        }
        self.line_starting = self.source[..self.at].ends_with('\n');
    }

    fn expression(&mut self, begin: Token, end: Token, closing: &str) -> Result<(), TemplateError> {
        self.push(begin);
        let mut brackets = Vec::new();
        loop {
            if brackets.is_empty() {
                let rest = self.rest();
                let sign =
                    rest.bytes().next().filter(|sign| *sign == b'-' || (*sign == b'+' && closing == "%}"));
                if rest[usize::from(sign.is_some())..].starts_with(closing) {
                    self.push(end);
                    self.advance(closing.len() + usize::from(sign.is_some()));
                    match closing {
                        "%}" => self.after_tag(sign),
                        _ => {
                            if sign.is_some() {
                                self.skip_whitespace();
                            }
                            self.line_starting = self.source[..self.at].ends_with('\n');
                        }
                    }
                    return Ok(());
                }
            }
            let Some(c) = self.rest().chars().next() else { return Ok(()) };
            if is_whitespace(c) {
                self.skip_whitespace();
            } else if c.is_ascii_digit() {
                self.number()?;
            } else if c == '_' || c.is_alphanumeric() {
                self.name()?;
            } else if c == '\'' || c == '"' {
                self.string(c)?;
            } else {
                self.operator(c, &mut brackets)?;
            }
        }
    }

    fn operator(&mut self, c: char, brackets: &mut Vec<&'static str>) -> Result<(), TemplateError> {
        let Some(operator) = OPERATORS.into_iter().find(|operator| self.rest().starts_with(operator)) else {
            return self.fail(format!("unexpected char {c:?}"));
        };
        match operator {
            "(" => brackets.push(")"),
            "[" => brackets.push("]"),
            "{" => brackets.push("}"),
            ")" | "]" | "}" if brackets.pop() != Some(operator) => {
                return self.fail(format!("unexpected {operator:?}"));
            }
            _ => {}
        }
        self.push(Token::Operator(operator));
        self.advance(operator.len());
        Ok(())
    }

    fn name(&mut self) -> Result<(), TemplateError> {
        let rest = self.rest();
        let length = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
        self.push(Token::Name(rest[..length].to_owned()));
        self.advance(length);
        Ok(())
    }

    /// A float is digits with a fraction, an exponent, or both, and does not follow a dot.
    fn number(&mut self) -> Result<(), TemplateError> {
        let rest = self.rest();
        let whole = digits(rest, |c| c.is_ascii_digit());
        let follows_dot = self.source[..self.at].ends_with('.');
        let mut length = whole;
        if let Some(fraction) = rest[length..].strip_prefix('.') {
            let fraction = digits(fraction, |c| c.is_ascii_digit());
            length += if fraction > 0 { fraction + 1 } else { 0 };
        }
        if rest[length..].starts_with(['e', 'E']) {
            let exponent = &rest[length + 1..];
            let sign = usize::from(exponent.starts_with(['+', '-']));
            let exponent = digits(&exponent[sign..], |c| c.is_ascii_digit());
            length += if exponent > 0 { 1 + sign + exponent } else { 0 };
        }
        if length > whole && !follows_dot {
            let float = rest[..length].replace('_', "").parse().expect("a float");
            self.push(Token::Float(float));
            self.advance(length);
            return Ok(());
        }
        let lower = rest.get(..2).unwrap_or_default().to_ascii_lowercase(); // none within a letter
        let radix = match lower.as_str() {
            "0b" => 2,
            "0o" => 8,
            "0x" => 16,
            _ => 10,
        };
        let prefixed = if radix == 10 { 0 } else { prefixed_digits(&rest[2..], radix) };
        let (text, radix, length) = if prefixed > 0 {
            (&rest[2..2 + prefixed], radix, 2 + prefixed)
        } else if rest.starts_with('0') {
            let zeros = digits(rest, |c| c == '0');
            (&rest[..zeros], 10, zeros)
        } else {
            (&rest[..whole], 10, whole)
        };
        let Ok(int) = i128::from_str_radix(&text.replace('_', ""), radix) else {
            return self.fail("an integer of more than 127 bits: use a smaller one");
        };
        self.push(Token::Int(int));
        self.advance(length);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<(), TemplateError> {
        let rest = &self.rest()[1..];
        let mut is_escaped = false;
        let end = rest.char_indices().find(|&(_, c)| {
            let ends = c == quote && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            ends
        });
        let Some((end, _)) = end else {
            return self.fail(format!("unexpected char {quote:?}: a string that does not end"));
        };
        match unescape(&rest[..end]) {
            Ok(text) => self.push(Token::Str(text)),
            Err(reason) => return self.fail(reason),
        }
        self.advance(end + 2);
        Ok(())
    }

    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    fn advance(&mut self, bytes: usize) {
        self.line += self.source[self.at..self.at + bytes].matches('\n').count() as u32;
        self.at += bytes;
    }

    fn skip_whitespace(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - rest.trim_start_matches(is_whitespace).len());
    }

    fn fail<T>(&self, reason: impl Into<String>) -> Result<T, TemplateError> {
        Err(TemplateError::new(self.line, reason))
    }
}

/// What follows `{%` and its sign, if it is `raw %}`: its length, sign of the opening included or not as given,
/// and the sign before its end, which can only be `-`.
fn raw_tag(after: &str) -> Option<(usize, Option<u8>)> {
    let unsigned = after.strip_prefix(['-', '+']).unwrap_or(after);
    let word = unsigned.trim_start_matches(is_whitespace).strip_prefix("raw")?;
    let end = word.trim_start_matches(is_whitespace);
    let sign = end.starts_with('-').then_some(b'-');
    let rest = end[usize::from(sign.is_some())..].strip_prefix("%}")?;
    Some((after.len() - rest.len(), sign))
}

/// The length of digits with single underscores between them.
fn digits(text: &str, is_digit: impl Fn(char) -> bool) -> usize {
    let mut length = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next_is_digit = chars.peek().is_some_and(|&(_, next)| is_digit(next));
        match c {
            c if is_digit(c) => length = at + 1,
            '_' if length == at && at > 0 && next_is_digit => {}
            _ => break,
        }
    }
    length
}

/// The same after `0x`, where an underscore may come first.
fn prefixed_digits(text: &str, radix: u32) -> usize {
    match text.strip_prefix('_') {
        Some(rest) => match digits(rest, |c| c.is_digit(radix)) {
            0 => 0,
            length => length + 1,
        },
        None => digits(text, |c| c.is_digit(radix)),
    }
}

/// Python's `text.encode("ascii", "backslashreplace").decode("unicode-escape")`.
fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(c) = chars.next() else { return Err("\\ at end of string".to_owned()) };
        let mut hex = |length: usize| {
            let mut value = 0;
            for _ in 0..length {
                let digit = chars.next_if(char::is_ascii_hexdigit).and_then(|c| c.to_digit(16));
                value = value * 16 + digit.ok_or_else(|| format!("truncated \\{c} escape in a string"))?;
            }
            char::from_u32(value).ok_or_else(|| {
                format!("\\{c} escape of {value:#x}, which is no character: write the character itself")
            })
        };
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            'x' => out.push(hex(2)?),
            'u' => out.push(hex(4)?),
            'U' => out.push(hex(8)?),
            'N' => return Err("\\N escape of a character's name: write the character itself".to_owned()),
            '0'..='7' => {
                let mut value = c.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = chars.next_if(|c| ('0'..='7').contains(c)) else { break };
                    value = value * 8 + digit.to_digit(8).unwrap_or(0);
                }
                out.push(char::from_u32(value).expect("at most 511"));
            }
            // made of ASCII before the backslash is seen, so that what follows it is no escape
            c if !c.is_ascii() => {
                out += &match u32::from(c) {
                    code @ 0..=0xff => format!("\\x{code:02x}"),
                    code @ 0..=0xffff => format!("\\u{code:04x}"),
                    code => format!("\\U{code:08x}"),
                }
            }
            c => out.extend(['\\', c]),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected tokens are those of jinja2's lexer (`Environment().lexer.tokeniter`), 3.1.6.
    #[test]
    fn a_number_ends_where_a_letter_of_several_bytes_begins() {
        let name = |text: &str| Token::Name(text.to_owned());
        for (source, expected) in [
            ("0é", vec![Token::Int(0), name("é")]),
            ("1é", vec![Token::Int(1), name("é")]),
            ("12日", vec![Token::Int(12), name("日")]),
            ("00é", vec![Token::Int(0), name("é")]),
            ("0xé", vec![Token::Int(0), name("xé")]),
            ("0b日", vec![Token::Int(0), name("b日")]),
            ("0x1é", vec![Token::Int(1), name("é")]),
            ("0_é", vec![Token::Int(0), name("_é")]),
            ("1_é", vec![Token::Int(1), name("_é")]),
            ("1.é", vec![Token::Int(1), Token::Operator("."), name("é")]),
            ("1eé", vec![Token::Int(1), name("eé")]),
            ("1e5é", vec![Token::Float(1e5), name("é")]),
            ("1.5日", vec![Token::Float(1.5), name("日")]),
        ] {
            let tokens = tokenize(&format!("{{{{{source}}}}}")).unwrap();
            let inner: Vec<Token> =
                tokens[1..tokens.len() - 2].iter().map(|(token, _)| token.clone()).collect();
            assert_eq!(inner, expected, "{source}");
        }
        for source in ["{{ 0\u{1f600} }}", "{{ 12\u{1f600} }}"] {
            let error = tokenize(source).unwrap_err().to_string();
            assert!(error.contains("unexpected char '\u{1f600}'"), "{error}");
        }
    }
}
