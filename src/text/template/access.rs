//! Attributes and items: Python's own of each type, and jinja2's way from one to the other.
//!
//! `value.name` is a method or another attribute, else the item of that name; `value[index]` is the item, else
//! the attribute. So `tool.items` is the method, whatever keys the mapping has. What would change a list or a
//! mapping is undefined, as in the sandbox that `transformers` uses.

use std::rc::Rc;
use std::sync::Arc;

use super::meter::{Result, failed};
use super::names::METHODS_MISSING;
use super::ops::{self, like};
use super::value::{Key, Missing, Value};

/// `value.name`: a method or another attribute of Python's type, else the item of that name.
pub(super) fn attribute(value: &Value, name: &Arc<str>) -> Result<Value> {
    if let Value::Undefined(missing) = value {
        return failed(missing.to_string());
    }
    if let Some(found) = own_attribute(value, name)? {
        return Ok(found);
    }
    if let Value::Dict(dict) = value
        && let Some(item) = dict.get_str(name)
    {
        return Ok(item.clone());
    }
    Ok(Value::Undefined(Missing::Attribute(Arc::clone(name))))
}

/// `value[index]`: an item, else the attribute of that name.
pub(super) fn item(value: &Value, index: &Value) -> Result<Value> {
    if let Value::Undefined(missing) = value {
        return failed(missing.to_string());
    }
    let found = match value {
        Value::Dict(dict) => match Key::of(index) {
            Ok(_) => dict.get(index)?.cloned(),
            Err(_) => None,
        },
        Value::Str(text) => match place(index, || text.chars().count()) {
            Some(place) => text.chars().nth(place).map(|c| like(text, c.encode_utf8(&mut [0; 4]))),
            None => None,
        },
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
            place(index, || items.len()).and_then(|place| items.get(place).cloned())
        }
        Value::Range(range) => place(index, || range.len()).map(|place| range.get(place)),
        _ => None,
    };
    if let Some(found) = found {
        return Ok(found);
    }
    if let Value::Str(name) = index
        && let Some(found) = own_attribute(value, name)?
    {
        return Ok(found);
    }
    // the index may be a message's text: it is not named
    Ok(Value::undefined("a missing item or attribute is undefined"))
}

fn place(index: &Value, len: impl FnOnce() -> usize) -> Option<usize> {
    let index = match index {
        Value::Int(int) => *int,
        Value::Bool(bool) => i128::from(*bool),
        _ => return None,
    };
    let len = len() as i128;
    let index = if index < 0 { index + len } else { index };
    (0..len).contains(&index).then_some(index as usize)
}

const STR: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
    "encode",
    "maketrans",
    "translate",
];
const DICT: &[&str] = &["copy", "fromkeys", "get", "items", "keys", "values"];
const LIST: &[&str] = &["copy", "count", "index"];
const TUPLE: &[&str] = &["count", "index"];
const INT: &[&str] = &["bit_count", "bit_length", "conjugate", "as_integer_ratio", "from_bytes", "to_bytes"];
const FLOAT: &[&str] = &["conjugate", "is_integer", "as_integer_ratio", "fromhex", "hex"];
const VIEW: &[&str] = &["isdisjoint", "mapping"];
const GENERATOR: &[&str] = &["close", "send", "throw"];
const CYCLER: &[&str] = &["next", "reset"];

/// Whether some type has a method of that name that we have too.
pub(super) fn is_method(name: &str) -> bool {
    [STR, DICT, LIST, INT, FLOAT, CYCLER].iter().any(|methods| methods.contains(&name))
        && !METHODS_MISSING.contains(&name)
}

/// An attribute of Python's type; `None` if it has none of that name.
pub(super) fn own_attribute(value: &Value, name: &str) -> Result<Option<Value>> {
    let methods = match value {
        Value::Str(_) => STR,
        Value::Dict(_) => DICT,
        Value::List(_) => LIST,
        Value::Tuple(_) | Value::Group(_) | Value::Range(_) => TUPLE,
        Value::Int(_) | Value::Bool(_) => INT,
        Value::Float(_) => FLOAT,
        Value::View(..) => VIEW,
        Value::Iter(..) => GENERATOR,
        Value::Cycler(_) => CYCLER,
        Value::Function("dict") => &["fromkeys"],
        _ => &[],
    };
    if let Some(method) = methods.iter().find(|method| **method == name) {
        return Ok(Some(Value::Method(Rc::new((value.clone(), method)))));
    }
    Ok(match (value, name) {
        (Value::Dict(_), "clear" | "pop" | "popitem" | "setdefault" | "update")
        | (
            Value::List(_),
            "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort",
        ) => Some(Value::undefined("what would change a list or a mapping is not allowed in a template")),
        (Value::Group(items), "grouper") => items.first().cloned(),
        (Value::Group(items), "list") => items.get(1).cloned(),
        (Value::Range(range), "start") => Some(Value::Int(range.start)),
        (Value::Range(range), "stop") => Some(Value::Int(range.stop)),
        (Value::Range(range), "step") => Some(Value::Int(range.step)),
        (Value::Int(_) | Value::Bool(_), "real" | "numerator") => Some(Value::Int(ops::int(value)?)),
        (Value::Int(_) | Value::Bool(_), "imag") => Some(Value::Int(0)),
        (Value::Int(_) | Value::Bool(_), "denominator") => Some(Value::Int(1)),
        (Value::Float(float), "real") => Some(Value::Float(*float)),
        (Value::Float(_), "imag") => Some(Value::Float(0.0)),
        (Value::Namespace(attributes), name) => attributes.borrow().get_str(name).cloned(),
        (Value::Cycler(it), "current") => it.items.get(it.place.get()).cloned(),
        (Value::Cycler(it), "pos") => Some(Value::from(it.place.get())),
        (Value::Cycler(it), "items") => Some(Value::Tuple(it.items.clone())),
        (Value::Joiner(it), "used") => Some(Value::Bool(it.used.get())),
        (Value::Joiner(it), "sep") => Some(it.separator.clone()),
        (Value::Macro(it), "name") => Some(it.name.as_deref().map_or(Value::None, Value::from)),
        (Value::Macro(_), "arguments" | "catch_kwargs" | "catch_varargs" | "caller" | "explicit_caller") => {
            return failed("what a macro tells of its parameters is not supported");
        }
        (Value::Loop(_), _) => return failed("attributes of `loop` are not supported through a filter"),
        _ => None,
    })
}
