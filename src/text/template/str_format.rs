//! `str.format` and its language of fields.

use std::sync::Arc;

use super::access;
use super::meter::{Result, failed, fault, reserve, spend};
use super::ops::{Number, number};
use super::printf::{MOST_DIGITS, Spec, cut, digits, float_text, general, in_radix, is_negative, pad, sign};
use super::show::{float_repr, repr, str_of};
use super::value::Value;

/// `format.format(*args, **kwargs)`, with jinja2's rules for attributes.
pub(super) fn format_method(format: &str, args: &[Value], kwargs: &[(Arc<str>, Value)]) -> Result<String> {
    let mut fields = Fields { args, kwargs, next: Some(0) };
    fields.format(format, 2)
}

struct Fields<'a> {
    args: &'a [Value],
    kwargs: &'a [(Arc<str>, Value)],
    /// The next automatic field; `None` once one was numbered.
    next: Option<usize>,
}

impl Fields<'_> {
    fn format(&mut self, format: &str, depth: usize) -> Result<String> {
        if depth == 0 {
            return failed("max string recursion exceeded in a format");
        }
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if rest.starts_with(brace) {
                out.push_str(brace);
                rest = &rest[1..];
            } else if brace == "}" {
                return failed("single '}' encountered in format string");
            } else {
                let mut open = 1;
                let end = rest.find(|c| {
                    open += i32::from(c == '{') - i32::from(c == '}');
                    open == 0
                });
                let Some(end) = end else { return failed("expected '}' before end of format string") };
                self.field(&rest[..end], depth, &mut out)?;
                rest = &rest[end + 1..];
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    fn field(&mut self, field: &str, depth: usize, out: &mut String) -> Result<()> {
        spend(1)?;
        let mut in_brackets = false;
        let name_end = field.find(|c| {
            in_brackets = (in_brackets || c == '[') && c != ']';
            !in_brackets && (c == '!' || c == ':')
        });
        let (name, rest) = field.split_at(name_end.unwrap_or(field.len()));
        let (conversion, spec) = match rest.strip_prefix('!') {
            Some(rest) => {
                let mut chars = rest.chars();
                let conversion = chars.next();
                match chars.as_str() {
                    "" => (conversion, ""),
                    spec if spec.starts_with(':') => (conversion, &spec[1..]),
                    _ => return failed("expected ':' after conversion specifier"),
                }
            }
            None => (None, rest.strip_prefix(':').unwrap_or("")),
        };
        let value = self.value(name)?;
        let spec = self.format(spec, depth - 1)?;
        let converted = match conversion {
            None => value,
            Some('s') => Value::from(str_of(&value)?.into_owned()),
            Some('r') => Value::from(repr(&value)?),
            Some(_) => return failed("unknown conversion specifier of a format"),
        };
        write_format(out, &converted, &spec)
    }

    fn value(&mut self, name: &str) -> Result<Value> {
        let first_end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(first_end);
        let index = if name.is_empty() {
            let Some(next) = &mut self.next else {
                return failed("cannot switch from manual field specification to automatic field numbering");
            };
            *next += 1;
            Some(*next - 1)
        } else if !first.is_empty() && first.bytes().all(|c| c.is_ascii_digit()) {
            if rest.is_empty() {
                if self.next.is_some_and(|next| next > 0) {
                    return failed(
                        "cannot switch from automatic field numbering to manual field specification",
                    );
                }
                self.next = None;
            }
            Some(first.parse().map_err(|_| fault("too many decimal digits in format string"))?)
        } else {
            None
        };
        let found = match index {
            Some(index) => self.args.get(index),
            None => self.kwargs.iter().find(|(known, _)| &**known == first).map(|(_, value)| value),
        };
        let Some(mut value) = found.cloned() else {
            return failed("a format names an argument that was not given");
        };
        while !rest.is_empty() {
            if let Some(attribute) = rest.strip_prefix('.') {
                let end = attribute.find(['.', '[']).unwrap_or(attribute.len());
                // as `value.name`, but a name from a format may be a message's text
                value = match access::attribute(&value, &attribute[..end].into())? {
                    Value::Undefined(_) => {
                        Value::undefined("an attribute that a format asks for is undefined")
                    }
                    found => found,
                };
                rest = &attribute[end..];
            } else if let Some(item) = rest.strip_prefix('[') {
                let Some(end) = item.find(']') else { return failed("missing ']' in format string") };
                let index = match item[..end].parse::<u32>() {
                    Ok(index) => Value::Int(index.into()),
                    Err(_) => Value::from(&item[..end]),
                };
                value = access::item(&value, &index)?;
                rest = &item[end + 1..];
            } else {
                return failed("only '.' or '[' may follow ']' in format field specifier");
            }
        }
        Ok(value)
    }
}

/// `format(value, spec)`.
fn write_format(out: &mut String, value: &Value, spec: &str) -> Result<()> {
    if spec.is_empty() {
        let text = str_of(value)?;
        reserve(out.len() + text.len())?;
        out.push_str(&text);
        return Ok(());
    }
    let mut spec = parse_spec(spec)?;
    let (prefix, body) = match (value, number(value)) {
        (Value::Str(text), _) => {
            let is_filled = spec.is_zero && spec.align == Some('=');
            if !matches!(spec.kind, None | Some('s'))
                || spec.sign.is_some()
                || spec.grouping.is_some()
                || spec.align == Some('=') && !is_filled
            {
                return failed("unknown format code for object of type 'str'");
            }
            if is_filled || spec.align.is_none() {
                spec.align = Some('<');
            }
            (String::new(), cut(text.to_string(), spec.precision))
        }
        (_, Some(Number::Int(int)))
            if matches!(spec.kind, None | Some('d' | 'n' | 'x' | 'X' | 'o' | 'b' | 'c')) =>
        {
            if spec.precision.is_some() {
                return failed("precision not allowed in integer format specifier");
            }
            let mut prefix = sign(int < 0, &spec);
            match spec.kind {
                Some('c') => {
                    let c = u32::try_from(int).ok().and_then(char::from_u32);
                    spec.align = spec.align.or(Some('<'));
                    (String::new(), c.ok_or_else(|| fault("%c arg not in range(0x110000)"))?.to_string())
                }
                Some(kind @ ('x' | 'X' | 'o' | 'b')) => {
                    if spec.alternate {
                        prefix.extend(['0', kind]);
                    }
                    (prefix, grouped(&in_radix(int, kind), spec.grouping, 4))
                }
                _ => (prefix, grouped(&int.unsigned_abs().to_string(), spec.grouping, 3)),
            }
        }
        (_, Some(it)) => {
            let float = it.to_f64();
            let size = float.abs();
            let text = match spec.kind {
                None if spec.precision.is_none() => float_repr(size),
                None if size.is_finite() => {
                    general(size, spec.precision.unwrap_or(6).clamp(1, MOST_DIGITS), true)
                }
                None => float_repr(size),
                Some('%') => float_text(size * 100.0, 'f', &spec)? + "%",
                Some('n') => float_text(size, 'g', &spec)?,
                Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G')) => float_text(size, kind, &spec)?,
                Some(kind) => return failed(format!("unknown format code {kind:?} for a number")),
            };
            let whole = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let text = grouped(&text[..whole], spec.grouping, 3) + &text[whole..];
            (sign(is_negative(float), &spec), text)
        }
        _ => {
            return failed(format!("unsupported format string passed to {}.__format__", value.type_name()));
        }
    };
    if spec.grouping.is_some() && spec.fill == Some('0') && spec.align == Some('=') {
        return failed("a format that groups digits and fills with zeros");
    }
    pad(out, &prefix, &body, &spec)
}

fn grouped(digits: &str, separator: Option<char>, size: usize) -> String {
    let Some(separator) = separator else { return digits.to_owned() };
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(digit);
    }
    out
}

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`
fn parse_spec(text: &str) -> Result<Spec> {
    let mut spec = Spec::default();
    let is_align = |c: Option<char>| c.filter(|c| "<>=^".contains(*c));
    let mut chars = text.chars().peekable();
    if let Some(align) = is_align(text.chars().nth(1)) {
        (spec.fill, spec.align) = (chars.next(), Some(align));
        chars.next();
    } else if let Some(align) = is_align(text.chars().next()) {
        spec.align = Some(align);
        chars.next();
    }
    spec.sign = chars.next_if(|c| "+- ".contains(*c));
    spec.alternate = chars.next_if_eq(&'#').is_some();
    if chars.next_if_eq(&'0').is_some() {
        spec.is_zero = spec.align.is_none();
        spec.fill = spec.fill.or(Some('0'));
        spec.align = spec.align.or(Some('='));
    }
    spec.width = digits(&mut chars)?.unwrap_or(0);
    spec.grouping = chars.next_if(|c| ",_".contains(*c));
    if chars.next_if_eq(&'.').is_some() {
        spec.precision =
            Some(digits(&mut chars)?.ok_or_else(|| fault("format specifier missing precision"))?);
    }
    spec.kind = chars.next();
    if chars.next().is_some() {
        return failed("invalid format specifier");
    }
    Ok(spec)
}
