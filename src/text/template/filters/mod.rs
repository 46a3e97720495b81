//! jinja2's filters.

mod lists;
mod numbers;
mod texts;

use std::collections::HashSet;

use self::lists::{batch, extreme, fold, follow, group_by, join, map, path, select, slice};
use self::numbers::{file_size, float_of, round, to_int};
use self::texts::{indent, strip_tags, title, truncate, url_encode, xml_attributes};
use super::access;
use super::chars;
use super::given::{Given, int_or, is_given, some, text};
use super::json::tojson;
use super::meter::{Result, failed, reserve, spend};
use super::methods::{self, justify};
use super::ops::{self, Number, escape, like, number};
use super::printf::format_text;
use super::show::str_of;
use super::value::{Key, Str, Value};

pub(super) fn call(name: &str, value: &Value, given: &Given) -> Result<Value> {
    spend(1)?;
    Ok(match name {
        "abs" => {
            given.none(name)?;
            match number(value) {
                Some(Number::Int(int)) => Value::Int(int.abs()),
                Some(Number::Float(float)) => Value::Float(float.abs()),
                None => {
                    value.check_defined()?;
                    return failed(format!("bad operand type for abs(): '{}'", value.type_name()));
                }
            }
        }
        "attr" => {
            let [attribute] = given.bind(name, ["name"], 1)?;
            value.check_defined()?;
            let attribute = text(attribute.as_ref().expect("required"))?.clone();
            access::own_attribute(value, &attribute)?
                .unwrap_or_else(|| Value::undefined("the attribute is undefined"))
        }
        "batch" => batch(value, given)?,
        "slice" => slice(value, given)?,
        "count" | "length" => {
            given.none(name)?;
            match value.len() {
                Some(len) => len.into(),
                None => return failed(format!("object of type '{}' has no len()", value.type_name())),
            }
        }
        "d" | "default" => {
            let [default, boolean] = given.bind(name, ["default_value", "boolean"], 0)?;
            let is_missing = value.is_undefined() || is_given(boolean.as_ref()) && !value.is_true();
            if is_missing { default.unwrap_or_else(|| Value::from("")) } else { value.clone() }
        }
        "capitalize" | "lower" | "title" | "upper" => {
            given.none(name)?;
            let it = soft_str(value)?;
            reserve(it.len())?;
            match name {
                "capitalize" => like(&it, &chars::capitalize(&it)),
                "lower" => like(&it, &it.to_lowercase()),
                "upper" => like(&it, &it.to_uppercase()),
                _ => Value::from(title(&it)), // joined of parts: no longer safe
            }
        }
        "trim" => {
            let [taken] = given.bind(name, ["chars"], 0)?;
            let given = Given { args: some(taken).into_iter().collect(), kwargs: Vec::new() };
            methods::call(&Value::Str(soft_str(value)?), "strip", &given)?
        }
        "string" => given.none(name).and_then(|()| Ok(Value::Str(soft_str(value)?)))?,
        "center" => {
            let [width] = given.bind(name, ["width"], 0)?;
            let it = soft_str(value)?;
            like(&it, &justify(&it, int_or(width.as_ref(), 80)?, ' ', name)?)
        }
        "replace" => {
            let [old, new, count] = given.bind(name, ["old", "new", "count"], 2)?;
            let (old, new) = (old.expect("required"), new.expect("required"));
            let count = int_or(some(count).as_ref(), -1)?;
            Value::from(methods::replace(&str_of(value)?, &str_of(&old)?, &str_of(&new)?, count)?)
        }
        "indent" => indent(value, given)?,
        "truncate" => truncate(value, given)?,
        "wordcount" => {
            given.none(name)?;
            let it = soft_str(value)?;
            let (mut words, mut in_word) = (0_usize, false);
            for c in it.chars() {
                let is_word = c == '_' || chars::is_alphanumeric(c)?;
                words += usize::from(is_word && !in_word);
                in_word = is_word;
            }
            words.into()
        }
        "striptags" => given.none(name).and_then(|()| strip_tags(&str_of(value)?))?,
        "urlencode" => given.none(name).and_then(|()| url_encode(value))?,
        "e" | "escape" | "forceescape" => {
            given.none(name)?;
            match value {
                Value::Str(it) if it.markup && name != "forceescape" => value.clone(),
                value => markup(escape(&str_of(value)?)),
            }
        }
        "safe" => given.none(name).and_then(|()| Ok(markup(str_of(value)?.into_owned())))?,
        "xmlattr" => xml_attributes(value, given)?,
        "filesizeformat" => file_size(value, given)?,
        "format" => {
            let values = match (given.args.is_empty(), given.kwargs.is_empty()) {
                (false, false) => {
                    return failed("format can't handle positional and keyword arguments at the same time");
                }
                (true, false) => {
                    Value::dict(given.kwargs.iter().map(|(key, value)| (Value::from(&**key), value.clone())))?
                }
                _ => Value::tuple(given.args.clone())?,
            };
            format_text(&soft_str(value)?, &values)?
        }
        "first" => {
            given.none(name)?;
            value
                .iter()?
                .next()?
                .unwrap_or_else(|| Value::undefined("the first item of nothing is undefined"))
        }
        "last" => {
            given.none(name)?;
            match (value, value.len()) {
                // backwards by index, which keeps it safe
                (Value::Str(it), Some(_)) if it.markup && !it.is_empty() => {
                    like(it, &it.chars().next_back().into_iter().collect::<String>())
                }
                (_, Some(_)) => value
                    .to_vec()?
                    .pop()
                    .unwrap_or_else(|| Value::undefined("the last item of nothing is undefined")),
                (_, None) => return failed(format!("'{}' object is not reversible", value.type_name())),
            }
        }
        "reverse" => {
            given.none(name)?;
            match value {
                Value::Str(it) => like(it, &it.chars().rev().collect::<String>()),
                Value::Iter(..) => {
                    let mut items = value.to_vec()?;
                    items.reverse();
                    Value::list(items)?
                }
                value => {
                    let mut items = value.to_vec()?;
                    items.reverse();
                    Value::generator(items.into_iter().map(Ok))?
                }
            }
        }
        "list" => given.none(name).and_then(|()| Value::list(value.to_vec()?))?,
        "items" => {
            given.none(name)?;
            match value {
                Value::Undefined(_) => Value::generator([])?,
                Value::Dict(dict) => {
                    let pairs = dict
                        .entries()
                        .iter()
                        .map(|(key, value)| Value::tuple(vec![key.clone(), value.clone()]));
                    Value::generator(pairs)?
                }
                _ => return failed("can only get item pairs from a mapping"),
            }
        }
        "join" => {
            let [separator, attribute] = given.bind(name, ["d", "attribute"], 0)?;
            join(value, separator.as_ref(), some(attribute).as_ref())?
        }
        "int" => to_int(value, given)?,
        "float" => {
            let [default] = given.bind(name, ["default"], 0)?;
            match float_of(value)? {
                Some(float) => Value::Float(float),
                None => default.unwrap_or(Value::Float(0.0)),
            }
        }
        "round" => round(value, given)?,
        "sum" => {
            let [attribute, start] = given.bind(name, ["attribute", "start"], 0)?;
            let path = path(some(attribute).as_ref())?;
            let mut total = start.unwrap_or(Value::Int(0));
            if let Value::Str(_) = total {
                return failed("sum() can't sum strings: use join");
            }
            let mut items = value.iter()?;
            while let Some(item) = items.next()? {
                total = ops::binary("+", &total, &follow(&item, &path, None)?)?;
            }
            total
        }
        "min" | "max" => extreme(name, value, given)?,
        "sort" => {
            let [reverse, case_sensitive, attribute] =
                given.bind(name, ["reverse", "case_sensitive", "attribute"], 0)?;
            let keep_case = is_given(case_sensitive.as_ref());
            let paths = match some(attribute) {
                Some(Value::Str(names)) => {
                    names.split(',').map(|name| path(Some(&Value::from(name)))).collect::<Result<Vec<_>>>()?
                }
                other => vec![path(other.as_ref())?],
            };
            let mut keyed = Vec::new();
            for item in value.to_vec()? {
                let keys = paths.iter().map(|path| Ok(fold(follow(&item, path, None)?, keep_case)));
                keyed.push((Value::list(keys.collect::<Result<_>>()?)?, item));
            }
            Value::list(ops::sorted(keyed, is_given(reverse.as_ref()))?)?
        }
        "dictsort" => {
            let [case_sensitive, by, reverse] = given.bind(name, ["case_sensitive", "by", "reverse"], 0)?;
            let Value::Dict(dict) = value else {
                value.check_defined()?;
                return failed(format!("'{}' object has no attribute 'items'", value.type_name()));
            };
            let by_value = match by.as_ref().map(text).transpose()?.map(Str::as_str) {
                None | Some("key") => false,
                Some("value") => true,
                _ => return failed("dictsort sorts by \"key\" or \"value\""),
            };
            let keep_case = is_given(case_sensitive.as_ref());
            let keyed = dict.entries().iter().map(|(key, value)| {
                let by = fold(if by_value { value } else { key }.clone(), keep_case);
                Ok((by, Value::tuple(vec![key.clone(), value.clone()])?))
            });
            Value::list(ops::sorted(keyed.collect::<Result<_>>()?, is_given(reverse.as_ref()))?)?
        }
        "groupby" => group_by(value, given)?,
        "unique" => {
            let [case_sensitive, attribute] = given.bind(name, ["case_sensitive", "attribute"], 0)?;
            let path = path(some(attribute).as_ref())?;
            let keep_case = is_given(case_sensitive.as_ref());
            let mut seen = HashSet::new();
            let mut kept = Vec::new();
            for item in value.to_vec()? {
                if seen.insert(Key::of(&fold(follow(&item, &path, None)?, keep_case))?) {
                    kept.push(Ok(item));
                }
            }
            Value::generator(kept)?
        }
        "map" => map(value, given)?,
        "select" | "reject" | "selectattr" | "rejectattr" => select(name, value, given)?,
        "tojson" => tojson(value, given)?,
        // its name may come from a message, through `map`
        _ => return failed("no filter is named so"),
    })
}

/// Text as it is; of anything else, what it prints as.
fn soft_str(value: &Value) -> Result<Str> {
    match value {
        Value::Str(text) => Ok(text.clone()),
        other => Ok(Str::new(str_of(other)?.into_owned())),
    }
}

fn markup(text: String) -> Value {
    Value::Str(Str::new(text).with_markup(true))
}
