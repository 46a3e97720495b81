//! Methods of Python's types, called.

use std::rc::Rc;
use std::sync::Arc;

use super::chars;
use super::given::{Given, int_or, some, text};
use super::meter::{Result, failed, reserve, spend};
use super::ops::{self, is_plain, like};
use super::str_format::format_method;
use super::value::{Dict, Str, Value, View};
use crate::text::whitespace::is_whitespace;

/// Calls a bound method.
pub(super) fn call(value: &Value, method: &'static str, given: &Given) -> Result<Value> {
    match value {
        Value::Str(it) if it.markup => {
            // safe text escapes its arguments: those that this would change we do not have
            if !given.args.iter().chain(given.kwargs.iter().map(|(_, value)| value)).all(is_plain) {
                return failed(format!("{method} of text that `safe` or `escape` made is not supported"));
            }
            Ok(as_markup(str_method(it, method, given)?)?)
        }
        Value::Str(it) => str_method(it, method, given),
        Value::Dict(it) => dict_method(value, it, method, given),
        Value::Function(_) => from_keys(given),
        Value::List(_) if method == "copy" => given.none("copy").map(|()| value.clone()),
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => items_method(items, method, given),
        Value::Range(_) => items_method(&value.to_vec()?, method, given),
        Value::Cycler(it) => {
            given.none(method)?;
            let place = it.place.get();
            it.place.set(if method == "next" { (place + 1) % it.items.len() } else { 0 });
            Ok(if method == "next" { it.items[place].clone() } else { Value::None })
        }
        Value::Int(_) | Value::Bool(_) => {
            given.none(method)?;
            let int = ops::int(value)?;
            match method {
                "bit_length" => Ok(Value::Int((128 - int.unsigned_abs().leading_zeros()).into())),
                "bit_count" => Ok(Value::Int(int.unsigned_abs().count_ones().into())),
                "conjugate" => Ok(Value::Int(int)),
                _ => unsupported(method),
            }
        }
        Value::Float(float) => {
            given.none(method)?;
            match method {
                "is_integer" => Ok(Value::Bool(float.fract() == 0.0)),
                "conjugate" => Ok(Value::Float(*float)),
                _ => unsupported(method),
            }
        }
        _ => unsupported(method),
    }
}

fn unsupported<T>(method: &str) -> Result<T> {
    failed(format!("the method {method:?} is not supported"))
}

fn as_markup(value: Value) -> Result<Value> {
    Ok(match value {
        Value::Str(it) => Value::Str(it.with_markup(true)),
        Value::List(items) => Value::list(items.iter().cloned().map(as_markup).collect::<Result<_>>()?)?,
        Value::Tuple(items) => Value::tuple(items.iter().cloned().map(as_markup).collect::<Result<_>>()?)?,
        other => other,
    })
}

fn dict_method(value: &Value, dict: &Rc<Dict>, method: &'static str, given: &Given) -> Result<Value> {
    match method {
        "get" => {
            let [key, default] = given.bind("get", ["*key", "*default"], 1)?;
            let key = key.expect("required");
            Ok(dict.get(&key)?.cloned().unwrap_or(default.unwrap_or(Value::None)))
        }
        "items" => given.none(method).map(|()| Value::View(View::Items, Rc::clone(dict))),
        "keys" => given.none(method).map(|()| Value::View(View::Keys, Rc::clone(dict))),
        "values" => given.none(method).map(|()| Value::View(View::Values, Rc::clone(dict))),
        "copy" => given.none(method).map(|()| value.clone()),
        _ => from_keys(given),
    }
}

fn from_keys(given: &Given) -> Result<Value> {
    let [keys, value] = given.bind("fromkeys", ["*keys", "*value"], 1)?;
    let value = value.unwrap_or(Value::None);
    Value::dict(keys.expect("required").to_vec()?.into_iter().map(|key| (key, value.clone())))
}

fn items_method(items: &[Value], method: &'static str, given: &Given) -> Result<Value> {
    let [wanted, start, stop] = given.bind(method, ["*value", "*start", "*stop"], 1)?;
    let wanted = wanted.expect("required");
    let is_wanted =
        |item: &Value| -> Result<bool> { Ok(ops::same(item, &wanted) || ops::equal(item, &wanted)?) };
    if method == "count" {
        let mut count = 0_usize;
        for item in items {
            count += usize::from(is_wanted(item)?);
        }
        return Ok(count.into());
    }
    let (start, stop) = bounds(items.len(), start.as_ref(), stop.as_ref())?;
    for (place, item) in items.iter().enumerate().take(stop).skip(start) {
        if is_wanted(item)? {
            return Ok(place.into());
        }
    }
    failed("the value is not in the list")
}

/// `start` and `stop` as Python clips them.
fn bounds(len: usize, start: Option<&Value>, stop: Option<&Value>) -> Result<(usize, usize)> {
    let clip = |value: Option<&Value>, default: usize| {
        Ok::<_, Box<super::meter::Fault>>(match value {
            None | Some(Value::None) => default,
            Some(value) => {
                let place = ops::int(value)?;
                let place = if place < 0 { place + len as i128 } else { place };
                place.clamp(0, i128::from(u32::MAX)) as usize
            }
        })
    };
    Ok((clip(start, 0)?, clip(stop, len)?.min(len)))
}

fn str_method(it: &Str, method: &'static str, given: &Given) -> Result<Value> {
    let text_of = |value: &Option<Value>| text(value.as_ref().expect("required")).cloned();
    spend(it.len() as u64 / 64)?;
    Ok(match method {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = given.bind(method, ["*chars"], 0)?;
            let chars = some(chars);
            let chars = chars.as_ref().map(text).transpose()?;
            let is_taken = |c: char| chars.map_or_else(|| is_whitespace(c), |chars| chars.contains(c));
            let mut kept: &str = it;
            if method != "rstrip" {
                kept = kept.trim_start_matches(is_taken);
            }
            if method != "lstrip" {
                kept = kept.trim_end_matches(is_taken);
            }
            like(it, kept)
        }
        "lower" => plain(given, method, || it.to_lowercase())?,
        "upper" => plain(given, method, || it.to_uppercase())?,
        "title" => plain(given, method, || chars::title(it))?,
        "capitalize" => plain(given, method, || chars::capitalize(it))?,
        "swapcase" => plain(given, method, || chars::swapcase(it))?,
        "casefold" if it.is_ascii() => plain(given, method, || it.to_ascii_lowercase())?,
        "casefold" => return failed("casefold of text that is not ASCII is not supported: use lower()"),
        "startswith" | "endswith" => {
            let [affix, start, stop] = given.bind(method, ["*affix", "*start", "*stop"], 1)?;
            let affixes = match affix.expect("required") {
                Value::Tuple(affixes) => affixes.to_vec(),
                affix => vec![affix],
            };
            let window = window(it, start.as_ref(), stop.as_ref())?;
            for affix in &affixes {
                let affix = text(affix)?;
                let is_there = |part: &str| match method {
                    "startswith" => part.starts_with(affix.as_str()),
                    _ => part.ends_with(affix.as_str()),
                };
                if window.is_some_and(|(_, part)| is_there(part)) {
                    return Ok(Value::Bool(true));
                }
            }
            Value::Bool(false)
        }
        "find" | "rfind" | "index" | "rindex" => {
            let [part, start, stop] = given.bind(method, ["*sub", "*start", "*stop"], 1)?;
            let part = text_of(&part)?;
            let found = window(it, start.as_ref(), stop.as_ref())?.and_then(|(offset, window)| {
                let at = if method.starts_with('r') { window.rfind(&*part) } else { window.find(&*part) };
                at.map(|at| offset + window[..at].chars().count())
            });
            match found {
                Some(place) => place.into(),
                None if method.ends_with("find") => Value::Int(-1),
                None => return failed("substring not found"),
            }
        }
        "count" => {
            let [part, start, stop] = given.bind(method, ["*sub", "*start", "*stop"], 1)?;
            let part = text_of(&part)?;
            window(it, start.as_ref(), stop.as_ref())?
                .map_or(0, |(_, window)| window.matches(&*part).count())
                .into()
        }
        "replace" => {
            let [old, new, count] = given.bind(method, ["*old", "*new", "*count"], 2)?;
            replace(it, &text_of(&old)?, &text_of(&new)?, int_or(count.as_ref(), -1)?)?.into()
        }
        "split" | "rsplit" => {
            let [separator, most] = given.bind(method, ["sep", "maxsplit"], 0)?;
            let separator = some(separator);
            let separator = separator.as_ref().map(text).transpose()?;
            split(it, separator.map(Str::as_str), int_or(most.as_ref(), -1)?, method == "rsplit")?
        }
        "splitlines" => {
            let [keep_ends] = given.bind(method, ["keepends"], 0)?;
            let keep_ends = keep_ends.is_some_and(|keep| keep.is_true());
            texts(chars::split_lines(it, keep_ends))?
        }
        "partition" | "rpartition" => {
            let [separator] = given.bind(method, ["*sep"], 1)?;
            let separator = text_of(&separator)?;
            if separator.is_empty() {
                return failed("empty separator");
            }
            let parts = match method {
                "partition" => {
                    it.split_once(&*separator).map(|(a, b)| [a, &separator, b]).unwrap_or([it, "", ""])
                }
                _ => it.rsplit_once(&*separator).map(|(a, b)| [a, &separator, b]).unwrap_or(["", "", it]),
            };
            Value::tuple(parts.into_iter().map(Value::from).collect())?
        }
        "removeprefix" => {
            let [affix] = given.bind(method, ["*prefix"], 1)?;
            it.strip_prefix(&*text_of(&affix)?).unwrap_or(it).into()
        }
        "removesuffix" => {
            let [affix] = given.bind(method, ["*suffix"], 1)?;
            it.strip_suffix(&*text_of(&affix)?).unwrap_or(it).into()
        }
        "join" => {
            let [items] = given.bind(method, ["*iterable"], 1)?;
            let mut out = String::new();
            let mut items = items.expect("required").iter()?;
            let mut is_first = true;
            while let Some(item) = items.next()? {
                let Value::Str(item) = &item else {
                    return failed(format!("join needs text, not '{}'", item.type_name()));
                };
                reserve(out.len() + it.len() + item.len())?;
                if !is_first {
                    out += it;
                }
                is_first = false;
                out += item;
            }
            out.into()
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = given.bind(method, ["*width", "*fillchar"], 1)?;
            let fill = fill.as_ref().map_or(Ok(' '), |fill| {
                let fill = text(fill)?;
                let mut chars = fill.chars();
                match (chars.next(), chars.next()) {
                    (Some(c), None) => Ok(c),
                    _ => failed("the fill character must be exactly one character long"),
                }
            })?;
            justify(it, ops::int(&width.expect("required"))?, fill, method)?.into()
        }
        "zfill" => {
            let [width] = given.bind(method, ["*width"], 1)?;
            let missing = missing(it, ops::int(&width.expect("required"))?)?;
            let (sign, digits) = it.split_at(usize::from(it.starts_with(['+', '-'])));
            format!("{sign}{}{digits}", "0".repeat(missing)).into()
        }
        "expandtabs" => {
            let [size] = given.bind(method, ["tabsize"], 0)?;
            expand_tabs(it, int_or(size.as_ref(), 8)?)?.into()
        }
        "format" => Value::from(format_method(it, &given.args, &given.kwargs)?),
        "format_map" => {
            let [map] = given.bind(method, ["*mapping"], 1)?;
            let Some(Value::Dict(dict)) = map else { return failed("format_map needs a mapping") };
            let pairs = dict.entries().iter().filter_map(|(key, value)| match key {
                Value::Str(key) => Some((Arc::from(key.as_str()), value.clone())),
                _ => None,
            });
            Value::from(format_method(it, &[], &pairs.collect::<Vec<_>>())?)
        }
        "isascii" => flag(given, method, || Ok(it.is_ascii()))?,
        "isspace" => flag(given, method, || Ok(!it.is_empty() && it.chars().all(is_whitespace)))?,
        "islower" => flag(given, method, || Ok(chars::is_all(it, char::is_lowercase)))?,
        "isupper" => flag(given, method, || Ok(chars::is_all(it, char::is_uppercase)))?,
        "istitle" => flag(given, method, || Ok(chars::is_title(it)))?,
        "isprintable" => flag(given, method, || Ok(it.chars().all(super::show::is_printable)))?,
        "isalpha" => flag(given, method, || every(it, chars::is_letter))?,
        "isalnum" => flag(given, method, || every(it, chars::is_alphanumeric))?,
        "isdigit" | "isdecimal" => flag(given, method, || every(it, chars::is_digit))?,
        "isnumeric" if it.is_ascii() => flag(given, method, || every(it, chars::is_digit))?,
        "isnumeric" => return failed("isnumeric of text that is not ASCII is not supported: use isdigit()"),
        "isidentifier" => flag(given, method, || {
            let starts = it.chars().next().is_some_and(|c| c == '_' || c.is_alphabetic());
            Ok(starts && every(it, |c| if c == '_' { Ok(true) } else { chars::is_alphanumeric(c) })?)
        })?,
        _ => return unsupported(method),
    })
}

fn plain(given: &Given, method: &str, result: impl FnOnce() -> String) -> Result<Value> {
    given.none(method).map(|()| result().into())
}

fn flag(given: &Given, method: &str, result: impl FnOnce() -> Result<bool>) -> Result<Value> {
    given.none(method)?;
    Ok(Value::Bool(result()?))
}

fn every(text: &str, is_so: impl Fn(char) -> Result<bool>) -> Result<bool> {
    for c in text.chars() {
        if !is_so(c)? {
            return Ok(false);
        }
    }
    Ok(!text.is_empty())
}

/// The part of a text between two places, and where it begins; `None` if that is after its end.
fn window<'t>(
    text: &'t str,
    start: Option<&Value>,
    stop: Option<&Value>,
) -> Result<Option<(usize, &'t str)>> {
    if start.is_none() && stop.is_none() {
        return Ok(Some((0, text)));
    }
    let len = text.chars().count();
    let (start, stop) = bounds(len, start, stop)?;
    if start > len || start > stop {
        return Ok(None);
    }
    let byte = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(at, _)| at);
    Ok(Some((start, &text[byte(start)..byte(stop)])))
}

fn texts<'t>(parts: impl IntoIterator<Item = &'t str>) -> Result<Value> {
    Value::list(parts.into_iter().map(Value::from).collect())
}

/// `str.replace`.
pub(super) fn replace(text: &str, old: &str, new: &str, most: i128) -> Result<String> {
    let found = text.matches(old).count();
    let times = if most < 0 { found } else { found.min(most as usize) };
    reserve(text.len().saturating_add(times.saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, times))
}

fn split(text: &str, separator: Option<&str>, most: i128, from_right: bool) -> Result<Value> {
    let most = usize::try_from(most).unwrap_or(usize::MAX - 1);
    spend(text.len() as u64 / 8)?;
    match separator {
        Some("") => failed("empty separator"),
        Some(separator) if from_right => {
            let mut parts: Vec<&str> = text.rsplitn(most + 1, separator).collect();
            parts.reverse();
            texts(parts)
        }
        Some(separator) => texts(text.splitn(most + 1, separator)),
        None => {
            let mut parts = Vec::new();
            let mut rest = if from_right {
                text.trim_end_matches(is_whitespace)
            } else {
                text.trim_start_matches(is_whitespace)
            };
            while !rest.is_empty() {
                let cut = match from_right {
                    _ if parts.len() == most => None,
                    true => rest.rfind(is_whitespace),
                    false => rest.find(is_whitespace),
                };
                let Some(at) = cut else {
                    parts.push(rest);
                    break;
                };
                if from_right {
                    let width = rest[at..].chars().next().map_or(0, char::len_utf8);
                    parts.push(&rest[at + width..]);
                    rest = rest[..at].trim_end_matches(is_whitespace);
                } else {
                    parts.push(&rest[..at]);
                    rest = rest[at..].trim_start_matches(is_whitespace);
                }
            }
            if from_right {
                parts.reverse();
            }
            texts(parts)
        }
    }
}

/// How many characters a text lacks to be `width` wide.
fn missing(text: &str, width: i128) -> Result<usize> {
    let width = usize::try_from(width.max(0)).unwrap_or(usize::MAX);
    let missing = width.saturating_sub(text.chars().count());
    reserve(missing.saturating_mul(4))?;
    Ok(missing)
}

/// `str.center`, `str.ljust` and `str.rjust`.
pub(super) fn justify(text: &str, width: i128, fill: char, method: &str) -> Result<String> {
    let missing = missing(text, width)?;
    let before = match method {
        "ljust" => 0,
        "rjust" => missing,
        // CPython's own rule for which side gets the odd one
        _ => missing / 2 + (missing & width as usize & 1),
    };
    let fills = |count| std::iter::repeat_n(fill, count);
    Ok(fills(before).chain(text.chars()).chain(fills(missing - before)).collect())
}

fn expand_tabs(text: &str, size: i128) -> Result<String> {
    let size = usize::try_from(size.max(0)).unwrap_or(usize::MAX);
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                reserve(out.len().saturating_add(spaces))?;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            c => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(out)
}
