//! `json.dumps`, which the filter `tojson` of `transformers` is.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::given::{Given, is_given, some, text};
use super::meter::{Result, failed, reserve, spend};
use super::ops;
use super::show::float_repr;
use super::value::Value;

struct Layout {
    ensure_ascii: bool,
    /// What a level is indented by; `None` is all on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter: `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(value: &Value, given: &Given) -> Result<Value> {
    let [ensure_ascii, indent, separators, sort_keys] =
        given.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"], 0)?;
    let indent = match some(indent) {
        None => None,
        Some(Value::Str(indent)) => Some(indent.to_string()),
        Some(width) => {
            let width = ops::int(&width)?.max(0);
            reserve(width.min(i128::from(u32::MAX)) as usize)?;
            Some(" ".repeat(width as usize))
        }
    };
    let (item_separator, key_separator) = match some(separators) {
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
        Some(pair) => match pair.to_vec()?.as_slice() {
            [item, key] => (text(item)?.to_string(), text(key)?.to_string()),
            _ => return failed("separators must be two strings"),
        },
    };
    let (ensure_ascii, sort_keys) = (is_given(ensure_ascii.as_ref()), is_given(sort_keys.as_ref()));
    let layout = Layout { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    let mut out = String::new();
    layout.write(value, 1, &mut out)?;
    Ok(Value::from(out))
}

impl Layout {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<()> {
        spend(1)?;
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(bool) => out.push_str(if *bool { "true" } else { "false" }),
            Value::Int(int) => _ = write!(out, "{int}"),
            Value::Float(float) => out.push_str(&json_float(*float)),
            Value::Str(text) => self.write_str(text, out)?,
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
                self.write_all(items.iter(), ["[", "]"], depth, out, |item, out| {
                    self.write(item, depth + 1, out)
                })?;
            }
            Value::Dict(dict) => {
                let mut entries: Vec<_> = dict.entries().iter().collect();
                if self.sort_keys {
                    let pairs = entries.iter().enumerate();
                    let keyed = pairs.map(|(place, (key, _))| (key.clone(), place.into())).collect();
                    let places = ops::sorted(keyed, false)?;
                    let sorted: Result<Vec<_>> =
                        places.iter().map(|place| Ok(entries[ops::int(place)? as usize])).collect();
                    entries = sorted?;
                }
                self.write_all(entries.into_iter(), ["{", "}"], depth, out, |(key, value), out| {
                    self.write_str(&key_text(key)?, out)?;
                    out.push_str(&self.key_separator);
                    self.write(value, depth + 1, out)
                })?;
            }
            other => {
                return failed(format!("a value of type {} is not JSON serializable", other.type_name()));
            }
        }
        Ok(())
    }

    fn write_all<T>(
        &self,
        items: impl ExactSizeIterator<Item = T>,
        [open, close]: [&str; 2],
        depth: usize,
        out: &mut String,
        mut each: impl FnMut(T, &mut String) -> Result<()>,
    ) -> Result<()> {
        out.push_str(open);
        let is_empty = items.len() == 0;
        for (place, item) in items.enumerate() {
            if place > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(depth, out)?;
            each(item, out)?;
        }
        if !is_empty {
            self.new_line(depth - 1, out)?;
        }
        out.push_str(close);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) -> Result<()> {
        if let Some(indent) = &self.indent {
            reserve(out.len().saturating_add(indent.len().saturating_mul(depth)))?;
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
        Ok(())
    }

    fn write_str(&self, text: &str, out: &mut String) -> Result<()> {
        spend(text.len() as u64 / 64)?;
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                '\0'..='\x1f' => _ = write!(out, "\\u{:04x}", u32::from(c)),
                c if self.ensure_ascii && (!c.is_ascii() || c == '\x7f') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
        Ok(())
    }
}

fn key_text(key: &Value) -> Result<Cow<'_, str>> {
    Ok(match key {
        Value::Str(key) => Cow::Borrowed(key.as_str()),
        Value::None => Cow::Borrowed("null"),
        Value::Bool(bool) => Cow::Borrowed(if *bool { "true" } else { "false" }),
        Value::Int(int) => Cow::Owned(int.to_string()),
        Value::Float(float) => Cow::Owned(json_float(*float)),
        other => {
            return failed(format!("keys must be str, int, float, bool or None, not {}", other.type_name()));
        }
    })
}

fn json_float(float: f64) -> String {
    match float {
        float if float.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        float => float_repr(float),
    }
}
