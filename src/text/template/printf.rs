//! `format % values`, `str.format`, and how both write numbers.

use std::iter::Peekable;
use std::str::Chars;
use std::sync::Arc;

use super::access;
use super::meter::{Result, failed, fault, reserve, spend};
use super::ops::{Number, number};
use super::show::{float_repr, repr, str_of};
use super::value::Value;

/// Digits after the point, and the width of a field beyond which memory is asked for first.
const MOST_DIGITS: usize = 400;

/// How a field is filled and a number written.
#[derive(Default)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^` or `=`.
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    /// A zero before the width set fill and alignment.
    is_zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// `format % values`.
pub(super) fn printf(format: &str, values: &Value) -> Result<String> {
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    let mut place = 0;
    let next_value = |place: &mut usize| -> Result<Value> {
        *place += 1;
        let value = match values {
            Value::Tuple(items) | Value::Group(items) => items.get(*place - 1),
            value => (*place == 1).then_some(value),
        };
        value.cloned().ok_or_else(|| fault("not enough arguments for format string"))
    };
    let mut is_named = false;
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut named = None;
        if chars.next_if_eq(&'(').is_some() {
            let Value::Dict(dict) = values else { return failed("format requires a mapping") };
            let key = bracketed(&mut chars)?;
            named = Some(
                dict.get_str(&key)
                    .cloned()
                    .ok_or_else(|| fault("a key of a format is not in its mapping"))?,
            );
            is_named = true;
        }
        let mut spec = Spec { align: Some('>'), ..Spec::default() };
        while let Some(flag) = chars.next_if(|c| "#0- +".contains(*c)) {
            match flag {
                '#' => spec.alternate = true,
                '0' => spec.fill = Some('0'),
                '-' => spec.align = Some('<'),
                '+' => spec.sign = Some('+'),
                _ => spec.sign = spec.sign.or(Some(' ')),
            }
        }
        let star = |chars: &mut Peekable<Chars<'_>>, place: &mut usize| -> Result<Option<i128>> {
            if chars.next_if_eq(&'*').is_some() {
                return match next_value(place)? {
                    Value::Int(int) => Ok(Some(int)),
                    _ => failed("* wants int"),
                };
            }
            Ok(digits(chars)?.map(|width| width as i128))
        };
        let width = star(&mut chars, &mut place)?.unwrap_or(0);
        if width < 0 {
            spec.align = Some('<');
        }
        spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(star(&mut chars, &mut place)?.unwrap_or(0).max(0) as usize);
        }
        chars.next_if(|c| "hlL".contains(*c));
        let Some(kind) = chars.next() else { return failed("incomplete format") };
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => next_value(&mut place)?,
        };
        write_printf(&mut out, &value, kind, spec)?;
    }
    let unused = match values {
        Value::Tuple(items) | Value::Group(items) => place < items.len(),
        // what has items is taken for a mapping, whose values need not all be used
        Value::Dict(_) | Value::List(_) | Value::Undefined(_) | Value::Range(_) => false,
        _ => place == 0,
    };
    if unused && !is_named {
        return failed("not all arguments converted during string formatting");
    }
    Ok(out)
}

fn bracketed(chars: &mut Peekable<Chars<'_>>) -> Result<String> {
    let mut depth = 1;
    let mut key = String::new();
    for c in chars {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 {
            return Ok(key);
        }
        key.push(c);
    }
    failed("incomplete format key")
}

fn write_printf(out: &mut String, value: &Value, kind: char, mut spec: Spec) -> Result<()> {
    let zero = spec.fill.is_some() && spec.align == Some('>');
    let (mut prefix, body) = match kind {
        's' | 'r' | 'c' => {
            let text = match (kind, value) {
                ('s', value) => str_of(value)?.into_owned(),
                ('r', value) => repr(value)?,
                (_, Value::Str(text)) if text.chars().count() == 1 => text.to_string(),
                (_, Value::Int(int)) => match u32::try_from(*int).ok().and_then(char::from_u32) {
                    Some(c) => c.to_string(),
                    None => return failed("%c arg not in range(0x110000)"),
                },
                _ => return failed("%c requires int or char"),
            };
            spec.fill = None;
            return pad(out, "", &cut(text, spec.precision), &spec);
        }
        'd' | 'i' | 'u' => {
            let int = match number(value) {
                Some(Number::Int(int)) => int,
                Some(Number::Float(float)) => whole(float)?,
                None => return not_a_number(kind, value),
            };
            let digits = int.unsigned_abs().to_string();
            (sign(int < 0, &spec), at_least(digits, spec.precision)?)
        }
        'x' | 'X' | 'o' => {
            let Some(Number::Int(int)) = number(value) else { return not_a_number(kind, value) };
            let digits = in_radix(int, kind);
            let mut prefix = sign(int < 0, &spec);
            if spec.alternate {
                prefix.extend(['0', kind]);
            }
            (prefix, at_least(digits, spec.precision)?)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let Some(it) = number(value) else { return not_a_number(kind, value) };
            let float = it.to_f64();
            (sign(is_negative(float), &spec), float_text(float.abs(), kind, &spec)?)
        }
        _ => return failed(format!("unsupported format character {kind:?}")),
    };
    if zero {
        let length = prefix.chars().count() + body.len();
        reserve(spec.width)?;
        prefix += &"0".repeat(spec.width.saturating_sub(length));
    }
    spec.fill = None;
    pad(out, &prefix, &body, &spec)
}

fn not_a_number<T>(kind: char, value: &Value) -> Result<T> {
    value.check_defined()?;
    failed(format!("%{kind} format: a number is required, not {}", value.type_name()))
}

fn whole(float: f64) -> Result<i128> {
    if !float.is_finite() || float.abs() > 1e38 {
        return failed("cannot convert the float to an integer");
    }
    Ok(float as i128)
}

fn is_negative(float: f64) -> bool {
    float.is_sign_negative() && !float.is_nan()
}

fn sign(is_negative: bool, spec: &Spec) -> String {
    match (is_negative, spec.sign) {
        (true, _) => "-".to_owned(),
        (false, Some(sign @ ('+' | ' '))) => sign.to_string(),
        _ => String::new(),
    }
}

fn in_radix(int: i128, kind: char) -> String {
    let size = int.unsigned_abs();
    match kind {
        'x' => format!("{size:x}"),
        'X' => format!("{size:X}"),
        'o' => format!("{size:o}"),
        _ => format!("{size:b}"),
    }
}

fn at_least(digits: String, precision: Option<usize>) -> Result<String> {
    let missing = precision.unwrap_or(0).saturating_sub(digits.len());
    reserve(missing)?;
    Ok("0".repeat(missing) + &digits)
}

fn cut(text: String, precision: Option<usize>) -> String {
    match precision {
        Some(precision) => text.chars().take(precision).collect(),
        None => text,
    }
}

/// A float without its sign, as C's `printf` writes it.
fn float_text(float: f64, kind: char, spec: &Spec) -> Result<String> {
    let precision = spec.precision.unwrap_or(6);
    if precision > MOST_DIGITS || spec.alternate {
        return failed(format!("a float with more than {MOST_DIGITS} digits, or with \"#\""));
    }
    let text = if !float.is_finite() {
        float_repr(float)
    } else {
        match kind.to_ascii_lowercase() {
            'f' => format!("{float:.precision$}"),
            'e' => exponential(float, precision),
            _ => general(float, precision.max(1), false),
        }
    };
    Ok(if kind.is_ascii_uppercase() { text.to_ascii_uppercase() } else { text })
}

fn exponential(float: f64, precision: usize) -> String {
    let text = format!("{float:.precision$e}");
    let (digits, exponent) = text.split_once('e').expect("written so");
    let exponent: i32 = exponent.parse().expect("written so");
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn general(float: f64, precision: usize, with_point: bool) -> String {
    let scientific = exponential(float, precision - 1);
    let (digits, exponent) = scientific.split_once('e').expect("written so");
    let power: i32 = exponent.parse().expect("written so");
    let shortened = |digits: &str| match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    if power < -4 || power >= precision as i32 - i32::from(with_point) {
        return format!("{}e{exponent}", shortened(digits));
    }
    let text = shortened(&format!("{float:.*}", (precision as i32 - 1 - power).max(0) as usize));
    if with_point && !text.contains('.') { text + ".0" } else { text }
}

fn pad(out: &mut String, prefix: &str, body: &str, spec: &Spec) -> Result<()> {
    let length = prefix.chars().count() + body.chars().count();
    let missing = spec.width.saturating_sub(length);
    reserve(missing.saturating_mul(4).saturating_add(out.len()))?;
    let fill = spec.fill.unwrap_or(' ');
    let (before, inside, after) = match spec.align {
        Some('<') => (0, 0, missing),
        Some('^') => (missing / 2, 0, missing - missing / 2),
        Some('=') => (0, missing, 0),
        _ => (missing, 0, 0),
    };
    out.extend(std::iter::repeat_n(fill, before));
    out.push_str(prefix);
    out.extend(std::iter::repeat_n(fill, inside));
    out.push_str(body);
    out.extend(std::iter::repeat_n(fill, after));
    Ok(())
}

fn digits(chars: &mut Peekable<Chars<'_>>) -> Result<Option<usize>> {
    let mut value: Option<usize> = None;
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        let digit = digit as usize - '0' as usize;
        let next = value.unwrap_or(0).checked_mul(10).and_then(|value| value.checked_add(digit));
        value = Some(next.ok_or_else(|| fault("a width of a format is too large"))?);
    }
    Ok(value)
}

// --- str.format

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
            return failed(format!("no argument {first:?} for a format"));
        };
        while !rest.is_empty() {
            if let Some(attribute) = rest.strip_prefix('.') {
                let end = attribute.find(['.', '[']).unwrap_or(attribute.len());
                value = access::attribute(&value, &attribute[..end].into())?;
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
