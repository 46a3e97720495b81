//! What Python knows of characters and Rust's standard library says otherwise.

use super::meter::{Result, failed};

/// The line ends of `str.splitlines`; `\r\n` is one.
pub(super) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let is_end =
            |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
        let Some(at) = rest.find(is_end) else {
            lines.push(rest);
            break;
        };
        let end = &rest[at..];
        let length = if end.starts_with("\r\n") { 2 } else { end.chars().next().map_or(0, char::len_utf8) };
        lines.push(&rest[..if keep_ends { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    lines
}

/// The title case of a character: its upper case, but for ligatures, digraphs, Georgian and some Greek.
fn push_title(c: char, out: &mut String) {
    match c {
        'ß' | 'և' | '\u{fb00}'..='\u{fb06}' | '\u{fb13}'..='\u{fb17}' => {
            let upper: String = c.to_uppercase().collect();
            let mut letters = upper.chars();
            out.extend(letters.next());
            out.push_str(&letters.as_str().to_lowercase());
        }
        'Ǆ'..='ǆ' => out.push('ǅ'),
        'Ǉ'..='ǉ' => out.push('ǈ'),
        'Ǌ'..='ǌ' => out.push('ǋ'),
        'Ǳ'..='ǳ' => out.push('ǲ'),
        '\u{10d0}'..='\u{10fa}' | '\u{10fd}'..='\u{10ff}' => out.push(c),
        '\u{1f80}'..='\u{1faf}' => out.extend(char::from_u32(u32::from(c) | 8)),
        '\u{1fb3}' | '\u{1fbc}' => out.push('\u{1fbc}'),
        '\u{1fc3}' | '\u{1fcc}' => out.push('\u{1fcc}'),
        '\u{1ff3}' | '\u{1ffc}' => out.push('\u{1ffc}'),
        '\u{1fb2}' => out.push_str("\u{1fba}\u{345}"),
        '\u{1fb4}' => out.push_str("\u{386}\u{345}"),
        '\u{1fb7}' => out.push_str("\u{391}\u{342}\u{345}"),
        '\u{1fc2}' => out.push_str("\u{1fca}\u{345}"),
        '\u{1fc4}' => out.push_str("\u{389}\u{345}"),
        '\u{1fc7}' => out.push_str("\u{397}\u{342}\u{345}"),
        '\u{1ff2}' => out.push_str("\u{1ffa}\u{345}"),
        '\u{1ff4}' => out.push_str("\u{38f}\u{345}"),
        '\u{1ff7}' => out.push_str("\u{3a9}\u{342}\u{345}"),
        c => out.extend(c.to_uppercase()),
    }
}

fn is_title_letter(c: char) -> bool {
    matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}'
        | '\u{1fa8}'..='\u{1faf}' | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title_letter(c)
}

/// Each character, and what it is in lower case where it stands: a sigma that ends a word is one of its own.
fn with_lower(text: &str) -> impl Iterator<Item = (char, String)> {
    let lower: Vec<char> = text.to_lowercase().chars().collect();
    let mut at = 0;
    text.chars().map(move |c| {
        let end = at + c.to_lowercase().count();
        let own = lower[at..end].iter().collect();
        at = end;
        (c, own)
    })
}

/// `str.title`: a letter after another one is lower case, every other is title case.
pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut after_letter = false;
    for (c, lower) in with_lower(text) {
        match after_letter {
            false => push_title(c, &mut out),
            true => out.push_str(&lower),
        }
        after_letter = is_cased(c);
    }
    out
}

/// `str.capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let Some(first) = text.chars().next() else { return out };
    push_title(first, &mut out);
    let lower = text.to_lowercase();
    let first_lower: String = first.to_lowercase().collect();
    out.push_str(lower.strip_prefix(first_lower.as_str()).unwrap_or_default());
    out
}

/// `str.swapcase`.
pub(super) fn swapcase(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (c, lower) in with_lower(text) {
        if c.is_uppercase() {
            out.push_str(&lower);
        } else if c.is_lowercase() {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

/// `str.islower` and `str.isupper`: no cased character is of another case, and there is one.
pub(super) fn is_all(text: &str, is_case: fn(char) -> bool) -> bool {
    text.chars().any(is_case) && text.chars().all(|c| is_case(c) || !is_cased(c))
}

pub(super) fn is_title(text: &str) -> bool {
    let mut after_letter = false;
    let mut any = false;
    for c in text.chars() {
        if (c.is_uppercase() || is_title_letter(c)) && after_letter || c.is_lowercase() && !after_letter {
            return false;
        }
        after_letter = is_cased(c);
        any |= after_letter;
    }
    any
}

/// `str.isalpha` of one character. Unicode calls more alphabetic than Python calls letters: where the two may
/// differ, this fails.
pub(super) fn is_letter(c: char) -> Result<bool> {
    if c.is_ascii() || !c.is_alphabetic() {
        return Ok(c.is_ascii_alphabetic());
    }
    let is_known = matches!(c, '\u{aa}'..='\u{2af}' | '\u{370}'..='\u{481}' | '\u{48a}'..='\u{556}'
        | '\u{561}'..='\u{587}' | '\u{5d0}'..='\u{5ea}' | '\u{620}'..='\u{64a}' | '\u{e01}'..='\u{e30}'
        | '\u{10a0}'..='\u{10ff}' | '\u{1e00}'..='\u{1fff}' | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}'
        | '\u{3105}'..='\u{312f}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}');
    match is_known {
        true => Ok(true),
        false => failed(format!("whether U+{:04X} is a letter is not known here", u32::from(c))),
    }
}

/// `str.isdigit` and `str.isdecimal` of one character.
pub(super) fn is_digit(c: char) -> Result<bool> {
    match c.is_ascii() || !c.is_numeric() {
        true => Ok(c.is_ascii_digit()),
        false => failed(format!("whether U+{:04X} is a digit is not known here", u32::from(c))),
    }
}

/// `str.isalnum` of one character, and what `\w` takes beside `_`.
pub(super) fn is_alphanumeric(c: char) -> Result<bool> {
    if c.is_numeric() { Ok(true) } else { is_letter(c) }
}
