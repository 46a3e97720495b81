//! Filters of numbers.

use super::super::given::{Given, int_or, is_given, text};
use super::super::meter::{Result, failed};
use super::super::ops::{self, Number, number};
use super::super::value::{Str, Value};
use crate::text::whitespace::is_whitespace;

/// What Python's `float(value)` is; `None` where it raises a type or value error.
pub(super) fn float_of(value: &Value) -> Result<Option<f64>> {
    Ok(match value {
        Value::Undefined(_) => {
            value.check_defined()?;
            None
        }
        Value::Str(text) => {
            let text = without_underscores(text.trim_matches(is_whitespace));
            let unsigned = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
            let is_word = ["inf", "infinity", "nan"].contains(&unsigned.as_str());
            let is_number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
            if is_word || is_number { text.parse().ok() } else { None }
        }
        value => number(value).map(Number::to_f64),
    })
}

/// Single underscores between digits go; any other makes the text no number.
pub(super) fn without_underscores(text: &str) -> String {
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let is_fine = text
        .match_indices('_')
        .all(|(at, _)| is_digit(text[..at].chars().next_back()) && is_digit(text[at + 1..].chars().next()));
    if is_fine { text.replace('_', "") } else { text.to_owned() }
}

pub(super) fn to_int(value: &Value, given: &Given) -> Result<Value> {
    let [default, base] = given.bind("int", ["default", "base"], 0)?;
    let default = default.unwrap_or(Value::Int(0));
    let base = int_or(base.as_ref(), 10)?;
    Ok(match value {
        Value::Str(text) => {
            let trimmed = text.trim_matches(is_whitespace);
            let (sign, digits) = match trimmed.strip_prefix(['+', '-']) {
                Some(digits) => (if trimmed.starts_with('-') { -1 } else { 1 }, digits),
                None => (1, trimmed),
            };
            let lower = without_underscores(digits).to_ascii_lowercase();
            let prefixes = [(2, "0b"), (8, "0o"), (16, "0x")];
            let prefix = prefixes
                .iter()
                .find(|(radix, prefix)| (base == *radix || base == 0) && lower.starts_with(prefix));
            let (radix, digits) = match prefix {
                Some((radix, prefix)) => (*radix, lower[prefix.len()..].trim_start_matches('_')),
                None => (if base == 0 { 10 } else { base }, lower.as_str()),
            };
            let is_plain = digits.starts_with(|c: char| c.is_ascii_alphanumeric());
            let radix = u32::try_from(radix).ok().filter(|radix| (2..=36).contains(radix));
            let all_digits = radix.is_some_and(|radix| digits.chars().all(|c| c.is_digit(radix)));
            match radix {
                Some(radix) if is_plain && all_digits => match i128::from_str_radix(digits, radix) {
                    Ok(int) => Value::Int(sign * int),
                    Err(_) => return failed("an integer of more than 127 bits"),
                },
                _ => match float_of(value)? {
                    Some(float) if float.is_finite() => Value::Int(whole(float)?),
                    _ => default,
                },
            }
        }
        value => match number(value) {
            Some(Number::Int(int)) => Value::Int(int),
            Some(Number::Float(float)) if float.is_finite() => Value::Int(whole(float)?),
            Some(Number::Float(float)) if float.is_infinite() => {
                return failed("cannot convert float infinity to integer");
            }
            _ => {
                value.check_defined()?;
                default
            }
        },
    })
}

pub(super) fn whole(float: f64) -> Result<i128> {
    if float.abs() > 1e38 { failed("an integer of more than 127 bits") } else { Ok(float as i128) }
}

pub(super) fn round(value: &Value, given: &Given) -> Result<Value> {
    let [precision, method] = given.bind("round", ["precision", "method"], 0)?;
    let precision = int_or(precision.as_ref(), 0)?;
    let method = method.as_ref().map_or(Ok("common"), |method| text(method).map(Str::as_str))?;
    let precision = i32::try_from(precision).ok().filter(|it| it.abs() <= 300);
    let Some(precision) = precision else { return failed("round takes at most 300 digits") };
    let Some(it) = number(value) else {
        value.check_defined()?;
        return failed(format!("type {} doesn't define __round__ method", value.type_name()));
    };
    match (method, it) {
        ("common", Number::Int(int)) if precision >= 0 => Ok(Value::Int(int)),
        ("common", Number::Int(int)) => {
            let Some(unit) = 10_i128.checked_pow(precision.unsigned_abs()) else { return Ok(Value::Int(0)) };
            let below = int.div_euclid(unit) * unit;
            let twice = (int - below) * 2;
            let is_odd = int.div_euclid(unit) % 2 != 0;
            let up = twice > unit || twice == unit && is_odd;
            Ok(Value::Int(if up { below + unit } else { below }))
        }
        ("common", Number::Float(float)) => Ok(Value::Float(round_half_even(float, precision))),
        ("ceil" | "floor", it) => {
            // Python's `10**precision`: an integer, or a float below one
            let power = ops::binary("**", &Value::Int(10), &Value::Int(precision.into()))?;
            let it = match it {
                Number::Int(int) => Value::Int(int),
                Number::Float(float) => Value::Float(float),
            };
            let scaled = match number(&ops::binary("*", &it, &power)?) {
                Some(Number::Int(int)) => Value::Int(int),
                Some(Number::Float(float)) => {
                    Value::Int(whole(if method == "ceil" { float.ceil() } else { float.floor() })?)
                }
                None => unreachable!("a product of numbers"),
            };
            ops::binary("/", &scaled, &power)
        }
        _ => failed("the method of round must be common, ceil or floor"),
    }
}

/// `round(float, digits)`: of the exact decimal value, ties to the even digit.
pub(super) fn round_half_even(float: f64, digits: i32) -> f64 {
    if !float.is_finite() {
        return float;
    }
    if digits >= 0 {
        return format!("{float:.*}", digits as usize).parse().expect("a number");
    }
    let unit = 10_f64.powi(-digits);
    (float / unit).round_ties_even() * unit
}

pub(super) fn file_size(value: &Value, given: &Given) -> Result<Value> {
    let [binary] = given.bind("filesizeformat", ["binary"], 0)?;
    let binary = is_given(binary.as_ref());
    let Some(bytes) = float_of(value)? else { return failed("filesizeformat needs a number") };
    let base = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::from("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::from(format!("{} Bytes", whole(bytes)?)));
    }
    let mut unit = base;
    for (place, prefix) in "kMGTPEZY".chars().enumerate() {
        unit *= base;
        if bytes < unit || place == 7 {
            let prefix = if binary { prefix.to_ascii_uppercase() } else { prefix };
            let suffix = if binary { "iB" } else { "B" };
            return Ok(Value::from(format!("{:.1} {prefix}{suffix}", base * bytes / unit)));
        }
    }
    unreachable!("the last unit takes all")
}
