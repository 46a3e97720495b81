//! Operators, comparisons and slices, as Python has them.

use std::cmp::Ordering;
use std::rc::Rc;

use super::meter::{Result, failed, fault, reserve, spend};
use super::show::str_of;
use super::value::{Seq, Str, Value, View};

/// Arithmetic; the `%` of a text is `printf`'s.
pub(super) fn binary(operator: &'static str, left: &Value, right: &Value) -> Result<Value> {
    left.check_defined()?;
    right.check_defined()?;
    match (number(left), number(right)) {
        (Some(Number::Int(a)), Some(Number::Int(b))) => return integers(operator, a, b),
        (Some(a), Some(b)) => return floats(operator, a.to_f64(), b.to_f64()),
        _ => {}
    }
    match (operator, left, right) {
        ("+", Value::Str(a), Value::Str(b)) => add_text(a, b),
        ("+", Value::List(a), Value::List(b)) => Ok(Value::List(joined(a, b)?)),
        ("+", Value::Tuple(a) | Value::Group(a), Value::Tuple(b) | Value::Group(b)) => {
            Ok(Value::Tuple(joined(a, b)?))
        }
        ("*", Value::Str(_) | Value::List(_) | Value::Tuple(_), Value::Int(_) | Value::Bool(_)) => {
            repeat(left, right)
        }
        ("*", Value::Int(_) | Value::Bool(_), Value::Str(_) | Value::List(_) | Value::Tuple(_)) => {
            repeat(right, left)
        }
        _ => {
            let (left, right) = (left.type_name(), right.type_name());
            failed(format!("unsupported operand types for {operator}: '{left}' and '{right}'"))
        }
    }
}

/// Text that is safe escapes what is added to it.
fn add_text(a: &Str, b: &Str) -> Result<Value> {
    reserve(a.len() + b.len())?;
    let escaped = |text: &Str| if text.markup { text.to_string() } else { escape(text) };
    Ok(if a.markup || b.markup {
        Value::Str(Str::new(escaped(a) + &escaped(b)).with_markup(true))
    } else {
        Value::from([a.as_str(), b.as_str()].concat())
    })
}

/// `markupsafe.escape`.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn joined(a: &Seq, b: &Seq) -> Result<Seq> {
    reserve((a.len() + b.len()) * size_of::<Value>())?;
    Seq::new(a.iter().chain(b.iter()).cloned().collect())
}

fn repeat(what: &Value, times: &Value) -> Result<Value> {
    let times = usize::try_from(int(times)?.max(0)).unwrap_or(usize::MAX);
    let size = match what {
        Value::Str(text) => text.len(),
        _ => what.len().unwrap_or(0) * size_of::<Value>(),
    };
    reserve(size.saturating_mul(times))?;
    let times = if size == 0 { 0 } else { times };
    let items = |items: &Seq| Seq::new(std::iter::repeat_n(items.iter().cloned(), times).flatten().collect());
    Ok(match what {
        Value::Str(text) => Value::Str(Str::new(text.repeat(times)).with_markup(text.markup)),
        Value::List(list) => Value::List(items(list)?),
        Value::Tuple(tuple) => Value::Tuple(items(tuple)?),
        _ => unreachable!("asked for these"),
    })
}

#[derive(Clone, Copy)]
pub(super) enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub(super) fn to_f64(self) -> f64 {
        match self {
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }
}

pub(super) fn number(value: &Value) -> Option<Number> {
    match value {
        Value::Bool(bool) => Some(Number::Int(i128::from(*bool))),
        Value::Int(int) => Some(Number::Int(*int)),
        Value::Float(float) => Some(Number::Float(*float)),
        _ => None,
    }
}

/// A value that Python takes as an index.
pub(super) fn int(value: &Value) -> Result<i128> {
    match value {
        Value::Bool(bool) => Ok(i128::from(*bool)),
        Value::Int(int) => Ok(*int),
        _ => {
            value.check_defined()?;
            failed(format!("'{}' object cannot be interpreted as an integer", value.type_name()))
        }
    }
}

const TOO_LARGE: &str = "an integer of more than 127 bits";

fn integers(operator: &'static str, a: i128, b: i128) -> Result<Value> {
    let result = match operator {
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "/" if b == 0 => return failed("division by zero"),
        "/" => return Ok(Value::Float(a as f64 / b as f64)),
        "//" | "%" if b == 0 => return failed("integer division or modulo by zero"),
        "//" => a.checked_div_euclid(b).map(|_| floor_div(a, b)),
        "%" => Some(a - floor_div(a, b) * b),
        "**" if b < 0 && a == 0 => return failed("0.0 cannot be raised to a negative power"),
        "**" if b < 0 => return Ok(Value::Float((a as f64).powf(b as f64))),
        "**" => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
        _ => return failed(format!("unknown operator {operator}")),
    };
    result.map(Value::Int).ok_or_else(|| fault(TOO_LARGE))
}

fn floor_div(a: i128, b: i128) -> i128 {
    let quotient = a / b;
    if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient }
}

fn floats(operator: &'static str, a: f64, b: f64) -> Result<Value> {
    Ok(Value::Float(match operator {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" | "//" | "%" if b == 0.0 => return failed("float division by zero"),
        "/" => a / b,
        "//" => float_divmod(a, b).0,
        "%" => float_divmod(a, b).1,
        "**" if a == 0.0 && b < 0.0 => return failed("0.0 cannot be raised to a negative power"),
        "**" if a < 0.0 && b.fract() != 0.0 && b.is_finite() && a.is_finite() => {
            return failed("a power that is a complex number");
        }
        "**" => {
            let power = a.powf(b);
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return failed("result of ** is too large");
            }
            power
        }
        _ => return failed(format!("unknown operator {operator}")),
    }))
}

/// CPython's `float_divmod`.
fn float_divmod(a: f64, b: f64) -> (f64, f64) {
    let mut modulo = a % b;
    let mut quotient = (a - modulo) / b;
    if modulo == 0.0 {
        modulo = 0.0_f64.copysign(b);
    } else if (b < 0.0) != (modulo < 0.0) {
        modulo += b;
        quotient -= 1.0;
    }
    let floor = if quotient == 0.0 {
        0.0_f64.copysign(a / b)
    } else {
        let floor = quotient.floor();
        if quotient - floor > 0.5 { floor + 1.0 } else { floor }
    };
    (floor, modulo)
}

pub(super) fn negate(value: &Value) -> Result<Value> {
    value.check_defined()?;
    match number(value) {
        Some(Number::Int(int)) => int.checked_neg().map(Value::Int).ok_or_else(|| fault(TOO_LARGE)),
        Some(Number::Float(float)) => Ok(Value::Float(-float)),
        None => failed(format!("bad operand type for unary -: '{}'", value.type_name())),
    }
}

pub(super) fn plus(value: &Value) -> Result<Value> {
    value.check_defined()?;
    match number(value) {
        Some(Number::Int(int)) => Ok(Value::Int(int)),
        Some(Number::Float(float)) => Ok(Value::Float(float)),
        None => failed(format!("bad operand type for unary +: '{}'", value.type_name())),
    }
}

pub(super) fn compare(operator: &str, left: &Value, right: &Value) -> Result<bool> {
    Ok(match operator {
        "==" => equal(left, right)?,
        "!=" => !equal(left, right)?,
        "in" => contains(right, left)?,
        "not in" => !contains(right, left)?,
        _ => {
            let order = order(left, right, operator)?;
            match operator {
                "<" => order == Some(Ordering::Less),
                "<=" => matches!(order, Some(Ordering::Less | Ordering::Equal)),
                ">" => order == Some(Ordering::Greater),
                _ => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
            }
        }
    })
}

fn compare_numbers(a: Number, b: Number) -> Option<Ordering> {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => Some(a.cmp(&b)),
        (Number::Float(a), Number::Float(b)) => a.partial_cmp(&b),
        (Number::Int(a), Number::Float(b)) => int_float(a, b),
        (Number::Float(a), Number::Int(b)) => int_float(b, a).map(Ordering::reverse),
    }
}

/// Exactly: a float above 2^53 equals one integer only.
fn int_float(a: i128, b: f64) -> Option<Ordering> {
    if b.is_nan() {
        return None;
    }
    if b >= 1.7e38 {
        return Some(Ordering::Less);
    }
    if b <= -1.7e38 {
        return Some(Ordering::Greater);
    }
    let whole = b.trunc();
    Some(a.cmp(&(whole as i128)).then_with(|| 0.0.partial_cmp(&(b - whole)).expect("both are numbers")))
}

pub(super) fn equal(left: &Value, right: &Value) -> Result<bool> {
    spend(1)?;
    if let (Some(a), Some(b)) = (number(left), number(right)) {
        return Ok(compare_numbers(a, b) == Some(Ordering::Equal));
    }
    Ok(match (left, right) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => {
            spend(a.len().min(b.len()) as u64 / 64)?;
            a.as_str() == b.as_str()
        }
        (Value::List(a), Value::List(b)) => equal_items(a, b)?,
        (Value::Tuple(a) | Value::Group(a), Value::Tuple(b) | Value::Group(b)) => equal_items(a, b)?,
        (Value::Dict(a), Value::Dict(b)) => {
            if a.entries().len() != b.entries().len() {
                return Ok(false);
            }
            for (key, value) in a.entries() {
                match b.get(key)? {
                    Some(other) if equal(value, other)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Range(a), Value::Range(b)) => {
            a.len() == b.len() && (a.len() == 0 || (a.start == b.start && (a.len() == 1 || a.step == b.step)))
        }
        (Value::View(a, left), Value::View(b, right)) if *a != View::Values && *b != View::Values => {
            let mut same = a == b && left.entries().len() == right.entries().len();
            for (key, value) in left.entries() {
                same = same
                    && match right.get(key)? {
                        Some(other) => *a == View::Keys || equal(value, other)?,
                        None => false,
                    };
            }
            same
        }
        _ => same(left, right),
    })
}

fn equal_items(a: &Seq, b: &Seq) -> Result<bool> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for (a, b) in a.iter().zip(b.iter()) {
        // Python asks for identity first, so a NaN in a list equals itself
        if !same(a, b) && !equal(a, b)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `left is right`, for values whose identity does not hang on how CPython stores them.
pub(super) fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
        (Value::Macro(a), Value::Macro(b)) => Rc::ptr_eq(a, b),
        (Value::Loop(a), Value::Loop(b)) => Rc::ptr_eq(a, b),
        (Value::Iter(a, _), Value::Iter(b, _)) => Rc::ptr_eq(a, b),
        (Value::Cycler(a), Value::Cycler(b)) => Rc::ptr_eq(a, b),
        (Value::Joiner(a), Value::Joiner(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Function(a), Value::Function(b)) => a == b,
        _ => false,
    }
}

/// `None` for a NaN.
pub(super) fn order(left: &Value, right: &Value, operator: &str) -> Result<Option<Ordering>> {
    spend(1)?;
    left.check_defined()?;
    right.check_defined()?;
    if let (Some(a), Some(b)) = (number(left), number(right)) {
        return Ok(compare_numbers(a, b));
    }
    match (left, right) {
        (Value::Str(a), Value::Str(b)) => {
            spend(a.len().min(b.len()) as u64 / 64)?;
            Ok(Some(a.as_str().cmp(b.as_str()))) // UTF-8 sorts as code points do
        }
        (Value::List(a), Value::List(b))
        | (Value::Tuple(a) | Value::Group(a), Value::Tuple(b) | Value::Group(b)) => {
            for (a, b) in a.iter().zip(b.iter()) {
                if !same(a, b) && !equal(a, b)? {
                    return order(a, b, operator);
                }
            }
            Ok(Some(a.len().cmp(&b.len())))
        }
        (left, right) => failed(format!(
            "'{operator}' not supported between instances of '{}' and '{}'",
            left.type_name(),
            right.type_name()
        )),
    }
}

/// `item in container`.
pub(super) fn contains(container: &Value, item: &Value) -> Result<bool> {
    match container {
        Value::Str(text) => match item {
            Value::Str(part) => {
                spend((text.len() + part.len()) as u64 / 64)?;
                Ok(text.contains(part.as_str()))
            }
            _ => failed(format!("'in <string>' requires string as left operand, not {}", item.type_name())),
        },
        Value::Dict(dict) | Value::View(View::Keys, dict) => Ok(dict.get(item)?.is_some()),
        Value::Namespace(_)
        | Value::Macro(_)
        | Value::None
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Float(_) => failed(format!("argument of type '{}' is not iterable", container.type_name())),
        _ => {
            let mut items = container.iter()?;
            while let Some(known) = items.next()? {
                if same(&known, item) || equal(&known, item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

/// Whether safe text takes it as an argument without a change.
pub(super) fn is_plain(value: &Value) -> bool {
    match value {
        Value::Str(text) => text.markup || !text.contains(['&', '<', '>', '"', '\'']),
        Value::List(_) | Value::Tuple(_) | Value::Dict(_) => false,
        _ => true,
    }
}

/// Text of the same kind: a part of safe text is safe.
pub(super) fn like(original: &Str, text: &str) -> Value {
    Value::Str(Str::new(text).with_markup(original.markup))
}

/// `value[start:stop:step]`.
pub(super) fn slice(value: &Value, parts: [Option<Value>; 3]) -> Result<Value> {
    value.check_defined()?;
    let len = match value {
        Value::Str(text) if text.is_ascii() => text.len(),
        Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Group(_) | Value::Range(_) => {
            value.len().unwrap_or(0)
        }
        _ => return failed(format!("'{}' object is not subscriptable", value.type_name())),
    } as i128;
    let part = |part: &Option<Value>| match part {
        None | Some(Value::None) => Ok(None),
        Some(value) => int(value).map(Some).map_err(|_| fault("slice indices must be integers or None")),
    };
    let (start, stop, step) = (part(&parts[0])?, part(&parts[1])?, part(&parts[2])?.unwrap_or(1));
    if step == 0 {
        return failed("slice step cannot be zero");
    }
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |place: i128| {
        let place = if place < 0 { place.saturating_add(len) } else { place };
        place.clamp(lowest, highest)
    };
    let start = start.map_or(if step > 0 { lowest } else { highest }, clamp);
    let stop = stop.map_or(if step > 0 { highest } else { lowest }, clamp);
    let range = super::value::Range { start, stop, step };
    if let Value::Range(it) = value {
        let at = |place: i128| it.start + place * it.step;
        return Ok(Value::Range(super::value::Range {
            start: at(start),
            stop: at(stop),
            step: it.step * step,
        }));
    }
    let count = range.len();
    let places = (0..count).map(|n| (start + n as i128 * step) as usize);
    reserve(count * if matches!(value, Value::Str(_)) { 4 } else { size_of::<Value>() })?;
    Ok(match value {
        Value::Str(text) if step == 1 => {
            let (from, to) = (start as usize, (start as usize) + count);
            let byte = |place: usize| match text.is_ascii() {
                true => place,
                false => text.char_indices().nth(place).map_or(text.len(), |(at, _)| at),
            };
            like(text, &text[byte(from)..byte(to)])
        }
        Value::Str(text) => {
            let chars: Vec<char> = text.chars().collect();
            like(text, &places.map(|place| chars[place]).collect::<String>())
        }
        Value::List(items) => Value::list(places.map(|place| items[place].clone()).collect())?,
        Value::Tuple(items) | Value::Group(items) => {
            Value::tuple(places.map(|place| items[place].clone()).collect())?
        }
        _ => unreachable!("asked for these"),
    })
}

/// `a ~ b`.
pub(super) fn concat(values: &[Value]) -> Result<Value> {
    let mut out = String::new();
    for value in values {
        let text = str_of(value)?;
        reserve(out.len() + text.len())?;
        out += &text;
    }
    Ok(Value::from(out))
}

/// Python's `sorted`: stable, and an error where two cannot be compared.
pub(super) fn sorted(mut items: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>> {
    // Python sorts the reversed list and reverses it, so that equal items keep their order
    if reverse {
        items.reverse();
    }
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        let mut rest = items.into_iter().peekable();
        while rest.peek().is_some() {
            let left: Vec<_> = rest.by_ref().take(width).collect();
            let right: Vec<_> = rest.by_ref().take(width).collect();
            let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
            while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
                let takes_right = order(&b.0, &a.0, "<")? == Some(Ordering::Less);
                merged.extend(if takes_right { right.next() } else { left.next() });
            }
            merged.extend(left);
            merged.extend(right);
        }
        items = merged;
        width *= 2;
    }
    if reverse {
        items.reverse();
    }
    Ok(items.into_iter().map(|(_, value)| value).collect())
}
