//! `format % values`, and how it and `str.format` write numbers.

use std::iter::Peekable;
use std::str::Chars;

use super::meter::{Result, failed, fault, reserve};
use super::ops::{Number, is_plain, like, number};
use super::show::{float_repr, repr, str_of};
use super::value::{Str, Value};

/// Digits after the point, and the width of a field beyond which memory is asked for first.
pub(super) const MOST_DIGITS: usize = 400;

/// How a field is filled and a number written.
#[derive(Default)]
pub(super) struct Spec {
    pub(super) fill: Option<char>,
    /// `<`, `>`, `^` or `=`.
    pub(super) align: Option<char>,
    pub(super) sign: Option<char>,
    pub(super) alternate: bool,
    /// A zero before the width set fill and alignment.
    pub(super) is_zero: bool,
    pub(super) width: usize,
    pub(super) grouping: Option<char>,
    pub(super) precision: Option<usize>,
    pub(super) kind: Option<char>,
}

/// `format % values`. Safe text escapes its values: those that this would change we do not have.
pub(super) fn format_text(format: &Str, values: &Value) -> Result<Value> {
    let is_kept = !format.markup
        || match values {
            Value::Tuple(items) | Value::Group(items) => items.iter().all(is_plain),
            value => is_plain(value),
        };
    if !is_kept {
        return failed("a value in a format that `safe` or `escape` made is not supported");
    }
    Ok(like(format, &printf(format, values)?))
}

/// The same of text.
fn printf(format: &str, values: &Value) -> Result<String> {
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

pub(super) fn is_negative(float: f64) -> bool {
    float.is_sign_negative() && !float.is_nan()
}

pub(super) fn sign(is_negative: bool, spec: &Spec) -> String {
    match (is_negative, spec.sign) {
        (true, _) => "-".to_owned(),
        (false, Some(sign @ ('+' | ' '))) => sign.to_string(),
        _ => String::new(),
    }
}

pub(super) fn in_radix(int: i128, kind: char) -> String {
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

pub(super) fn cut(text: String, precision: Option<usize>) -> String {
    match precision {
        Some(precision) => text.chars().take(precision).collect(),
        None => text,
    }
}

/// A float without its sign, as C's `printf` writes it.
pub(super) fn float_text(float: f64, kind: char, spec: &Spec) -> Result<String> {
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

pub(super) fn general(float: f64, precision: usize, with_point: bool) -> String {
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

pub(super) fn pad(out: &mut String, prefix: &str, body: &str, spec: &Spec) -> Result<()> {
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

pub(super) fn digits(chars: &mut Peekable<Chars<'_>>) -> Result<Option<usize>> {
    let mut value: Option<usize> = None;
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        let digit = digit as usize - '0' as usize;
        let next = value.unwrap_or(0).checked_mul(10).and_then(|value| value.checked_add(digit));
        value = Some(next.ok_or_else(|| fault("a width of a format is too large"))?);
    }
    Ok(value)
}
