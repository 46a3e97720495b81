//! `str(value)` and `repr(value)`, as Python writes them.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::meter::{Result, failed, reserve, spend};
use super::value::{Dict, Seq, Value, View};

/// A namespace in a namespace; everything else knows its own depth.
const MOST_NESTED: usize = 400;

/// `str(value)`.
pub(super) fn str_of(value: &Value) -> Result<Cow<'_, str>> {
    Ok(match value {
        Value::Undefined(_) => Cow::Borrowed(""),
        Value::Str(text) => Cow::Borrowed(text.as_str()),
        _ => {
            let mut out = String::new();
            write_repr(value, &mut out, 0)?;
            Cow::Owned(out)
        }
    })
}

pub(super) fn repr(value: &Value) -> Result<String> {
    let mut out = String::new();
    write_repr(value, &mut out, 0)?;
    Ok(out)
}

fn write_repr(value: &Value, out: &mut String, depth: usize) -> Result<()> {
    spend(1)?;
    if depth > MOST_NESTED {
        return failed("values are nested too deep to be written");
    }
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(bool) => out.push_str(if *bool { "True" } else { "False" }),
        Value::Int(int) => _ = write!(out, "{int}"),
        Value::Float(float) => out.push_str(&float_repr(*float)),
        Value::Str(text) if text.markup => {
            out.push_str("Markup(");
            write_str_repr(text, out)?;
            out.push(')');
        }
        Value::Str(text) => write_str_repr(text, out)?,
        Value::List(items) => write_items(items, "[", "]", out, depth)?,
        Value::Tuple(items) | Value::Group(items) if items.len() == 1 => {
            write_items(items, "(", ",)", out, depth)?
        }
        Value::Tuple(items) | Value::Group(items) => write_items(items, "(", ")", out, depth)?,
        Value::Dict(dict) => write_dict(dict, out, depth)?,
        Value::Range(range) => {
            _ = write!(out, "range({}, {}", range.start, range.stop);
            if range.step != 1 {
                _ = write!(out, ", {}", range.step);
            }
            out.push(')');
        }
        Value::View(view, dict) => {
            _ = write!(out, "{}([", value.type_name());
            for (place, (key, value)) in dict.entries().iter().enumerate() {
                if place > 0 {
                    out.push_str(", ");
                }
                match view {
                    View::Keys => write_repr(key, out, depth + 1)?,
                    View::Values => write_repr(value, out, depth + 1)?,
                    View::Items => {
                        out.push('(');
                        write_repr(key, out, depth + 1)?;
                        out.push_str(", ");
                        write_repr(value, out, depth + 1)?;
                        out.push(')');
                    }
                }
            }
            out.push_str("])");
        }
        Value::Namespace(attributes) => {
            out.push_str("<Namespace ");
            write_dict(&attributes.borrow(), out, depth + 1)?;
            out.push('>');
        }
        Value::Macro(it) => match &it.name {
            Some(name) => {
                out.push_str("<Macro ");
                write_str_repr(name, out)?;
                out.push('>');
            }
            None => out.push_str("<Macro anonymous>"),
        },
        Value::Loop(state) if state.filter.is_none() && state.iterable.len().is_some() => {
            let length = state.iterable.len().unwrap_or(0);
            _ = write!(out, "<LoopContext {}/{length}>", state.index0.get() + 1);
        }
        // Python prints where it lies in memory
        Value::Iter(..)
        | Value::Loop(_)
        | Value::Cycler(_)
        | Value::Joiner(_)
        | Value::Method(_)
        | Value::Function(_) => {
            let what = value.type_name();
            return failed(format!(
                "a {what} printed as text differs each time: print its items or its result"
            ));
        }
    }
    Ok(())
}

fn write_items(items: &Seq, open: &str, close: &str, out: &mut String, depth: usize) -> Result<()> {
    out.push_str(open);
    for (place, item) in items.iter().enumerate() {
        if place > 0 {
            out.push_str(", ");
        }
        write_repr(item, out, depth + 1)?;
    }
    out.push_str(close);
    Ok(())
}

fn write_dict(dict: &Dict, out: &mut String, depth: usize) -> Result<()> {
    out.push('{');
    for (place, (key, value)) in dict.entries().iter().enumerate() {
        if place > 0 {
            out.push_str(", ");
        }
        write_repr(key, out, depth + 1)?;
        out.push_str(": ");
        write_repr(value, out, depth + 1)?;
    }
    out.push('}');
    Ok(())
}

fn write_str_repr(text: &str, out: &mut String) -> Result<()> {
    reserve(text.len() + out.len())?;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => match u32::from(c) {
                code @ 0..=0xff => _ = write!(out, "\\x{code:02x}"),
                code @ 0..=0xffff => _ = write!(out, "\\u{code:04x}"),
                code => _ = write!(out, "\\U{code:08x}"),
            },
        }
    }
    out.push(quote);
    Ok(())
}

/// `str.isprintable`: not a control, format, private or unassigned character, nor a space other than " ".
pub(super) fn is_printable(c: char) -> bool {
    // Rust's `Debug` of a string goes by the same categories; alone, it would also escape combining marks
    c == '"' || (' '..='~').contains(&c) || {
        let mut bytes = [0; 4];
        let mut escaped = String::with_capacity(16);
        escaped.push('a');
        escaped.push_str(c.encode_utf8(&mut bytes));
        escaped.escape_debug().nth(1) != Some('\\')
    }
}

/// `repr(float)`: the shortest digits that read back as the same number.
pub(super) fn float_repr(float: f64) -> String {
    if float.is_nan() {
        return "nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').expect("written so");
    let exponent: i32 = exponent.parse().expect("written so");
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{float}");
    if plain.contains('.') { plain } else { plain + ".0" }
}
