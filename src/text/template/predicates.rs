//! jinja2's tests: what may stand after `is`.

use super::chars;
use super::given::Given;
use super::meter::{Result, failed, spend};
use super::names::{FILTERS, FILTERS_MISSING, TESTS};
use super::ops;
use super::show::str_of;
use super::value::{Key, Value};

pub(super) fn call(name: &str, value: &Value, given: &Given) -> Result<bool> {
    spend(1)?;
    let operator = match name {
        "==" | "eq" | "equalto" => Some("=="),
        "!=" | "ne" => Some("!="),
        "<" | "lt" | "lessthan" => Some("<"),
        "<=" | "le" => Some("<="),
        ">" | "gt" | "greaterthan" => Some(">"),
        ">=" | "ge" => Some(">="),
        "in" => Some("in"),
        _ => None,
    };
    if let Some(operator) = operator {
        let [other] = given.bind(name, ["*other"], 1)?;
        return ops::compare(operator, value, &other.expect("required"));
    }
    if let "divisibleby" | "sameas" = name {
        let [other] = given.bind(name, [if name == "sameas" { "other" } else { "num" }], 1)?;
        let other = other.expect("required");
        return match name {
            "sameas" => same_as(value, &other),
            _ => ops::equal(&ops::binary("%", value, &other)?, &Value::Int(0)),
        };
    }
    given.none(name)?;
    Ok(match name {
        "odd" => ops::equal(&ops::binary("%", value, &Value::Int(2))?, &Value::Int(1))?,
        "even" => ops::equal(&ops::binary("%", value, &Value::Int(2))?, &Value::Int(0))?,
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "false" => matches!(value, Value::Bool(false)),
        "true" => matches!(value, Value::Bool(true)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Float(_)),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "lower" => chars::is_all(&str_of(value)?, char::is_lowercase),
        "upper" => chars::is_all(&str_of(value)?, char::is_uppercase),
        "escaped" => matches!(value, Value::Str(text) if text.markup),
        "iterable" => value.try_iter().is_some() || matches!(value, Value::Loop(_)),
        "sequence" => matches!(
            value,
            Value::Undefined(_)
                | Value::Str(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Group(_)
                | Value::Dict(_)
                | Value::Range(_)
        ),
        "callable" => matches!(
            value,
            Value::Undefined(_)
                | Value::Macro(_)
                | Value::Loop(_)
                | Value::Joiner(_)
                | Value::Method(_)
                | Value::Function(_)
        ),
        "filter" => is_known(value, FILTERS)? || is_known(value, FILTERS_MISSING)?,
        "test" => is_known(value, TESTS)?,
        // its name may come from a message, through `select`
        _ => return failed("no test is named so"),
    })
}

fn is_known(value: &Value, names: &[&str]) -> Result<bool> {
    Key::of(value)?;
    Ok(matches!(value, Value::Str(name) if names.contains(&name.as_str())))
}

/// `value is other`.
fn same_as(value: &Value, other: &Value) -> Result<bool> {
    let hangs_on_memory = |value: &Value| {
        matches!(
            value,
            Value::Undefined(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) | Value::Tuple(_)
        )
    };
    if hangs_on_memory(value) && value.type_name() == other.type_name() {
        return failed("sameas between numbers or texts hangs on how Python stores them: use ==");
    }
    Ok(ops::same(value, other))
}
