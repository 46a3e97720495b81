//! jinja2's filters.

use std::cmp::Ordering;

use super::access;
use super::chars;
use super::given::{Given, int_or, is_given, some, text};
use super::json::tojson;
use super::meter::{Result, failed, fault, reserve, spend};
use super::methods::{self, justify};
use super::ops::{self, Number, escape, like, number};
use super::predicates;
use super::printf::printf;
use super::show::str_of;
use super::value::{Dict, Key, Missing, Seq, Str, Value};
use crate::text::whitespace::is_whitespace;

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
            like(
                &it,
                &match name {
                    "capitalize" => chars::capitalize(&it),
                    "lower" => it.to_lowercase(),
                    "upper" => it.to_uppercase(),
                    _ => title(&it),
                },
            )
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
            Value::from(printf(&soft_str(value)?, &values)?)
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
            match value.len() {
                Some(_) => value
                    .to_vec()?
                    .pop()
                    .unwrap_or_else(|| Value::undefined("the last item of nothing is undefined")),
                None => return failed(format!("'{}' object is not reversible", value.type_name())),
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
            let mut seen = std::collections::HashSet::new();
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
        _ => return failed(format!("no filter named {name:?}")),
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

// --- attributes of items

/// `"a.0.b"` → its parts; numbers are indices.
fn path(attribute: Option<&Value>) -> Result<Vec<Value>> {
    Ok(match attribute {
        None => Vec::new(),
        Some(Value::Str(path)) => path
            .split('.')
            .map(|part| match part.bytes().all(|c| c.is_ascii_digit()) && !part.is_empty() {
                true => part.parse().map(Value::Int).map_err(|_| fault("an index is too large")),
                false => Ok(Value::from(part)),
            })
            .collect::<Result<_>>()?,
        Some(index) => vec![index.clone()],
    })
}

fn follow(item: &Value, path: &[Value], default: Option<&Value>) -> Result<Value> {
    let mut found = item.clone();
    for part in path {
        found = access::item(&found, part)?;
        if let (Value::Undefined(_), Some(default)) = (&found, default) {
            found = default.clone();
        }
        if let (Value::Undefined(missing), Value::Str(part)) = (&mut found, part) {
            *missing = Missing::Attribute(part.as_str().into());
        }
    }
    Ok(found)
}

fn fold(value: Value, keep_case: bool) -> Value {
    match value {
        Value::Str(text) if !keep_case => like(&text, &text.to_lowercase()),
        value => value,
    }
}

fn map(value: &Value, given: &Given) -> Result<Value> {
    if !value.is_true() {
        return Value::generator([]);
    }
    let mut made = Vec::new();
    if given.args.is_empty() && given.kwargs.iter().any(|(name, _)| &**name == "attribute") {
        let [attribute, default] = given.bind("map", ["attribute", "default"], 1)?;
        let path = path(some(attribute).as_ref())?;
        let default = some(default);
        for item in value.to_vec()? {
            made.push(follow(&item, &path, default.as_ref()));
        }
        return Value::generator(made);
    }
    let Some((name, args)) = given.args.split_first() else {
        return failed("map requires a filter argument");
    };
    let name = text(name)?;
    let given = Given { args: args.to_vec(), kwargs: given.kwargs.clone() };
    for item in value.to_vec()? {
        made.push(call(name, &item, &given));
        if made.last().is_some_and(Result::is_err) {
            break;
        }
    }
    Value::generator(made)
}

fn select(name: &str, value: &Value, given: &Given) -> Result<Value> {
    if !value.is_true() {
        return Value::generator([]);
    }
    let mut args = given.args.as_slice();
    let mut path = Vec::new();
    if name.ends_with("attr") {
        let Some((attribute, rest)) = args.split_first() else {
            return failed("missing parameter for attribute name");
        };
        path = self::path(Some(attribute))?;
        args = rest;
    }
    let test = args.split_first();
    let rest = Given { args: test.map_or(&[][..], |(_, rest)| rest).to_vec(), kwargs: given.kwargs.clone() };
    let wanted = name.starts_with("select");
    let mut kept = Vec::new();
    for item in value.to_vec()? {
        let is_so = follow(&item, &path, None).and_then(|found| match test {
            Some((test, _)) => predicates::call(text(test)?, &found, &rest),
            None => Ok(found.is_true()),
        });
        match is_so {
            Ok(is_so) if is_so == wanted => kept.push(Ok(item)),
            Ok(_) => {}
            Err(fault) => {
                kept.push(Err(fault));
                break;
            }
        }
    }
    Value::generator(kept)
}

fn extreme(name: &str, value: &Value, given: &Given) -> Result<Value> {
    let [case_sensitive, attribute] = given.bind(name, ["case_sensitive", "attribute"], 0)?;
    let path = path(some(attribute).as_ref())?;
    let keep_case = is_given(case_sensitive.as_ref());
    let mut best: Option<(Value, Value)> = None;
    for item in value.to_vec()? {
        let key = fold(follow(&item, &path, None)?, keep_case);
        let is_better = match &best {
            None => true,
            Some((known, _)) if name == "min" => ops::order(&key, known, "<")? == Some(Ordering::Less),
            Some((known, _)) => ops::order(&key, known, ">")? == Some(Ordering::Greater),
        };
        if is_better {
            best = Some((key, item));
        }
    }
    Ok(best
        .map_or_else(|| Value::undefined("the least or greatest of nothing is undefined"), |(_, item)| item))
}

fn group_by(value: &Value, given: &Given) -> Result<Value> {
    let [attribute, default, case_sensitive] =
        given.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
    let path = path(some(attribute).as_ref())?;
    let (default, keep_case) = (some(default), is_given(case_sensitive.as_ref()));
    let mut keyed = Vec::new();
    for item in value.to_vec()? {
        keyed.push((fold(follow(&item, &path, default.as_ref())?, keep_case), item));
    }
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for item in ops::sorted(keyed, false)? {
        let key = fold(follow(&item, &path, default.as_ref())?, keep_case);
        match groups.last_mut() {
            Some((known, items)) if ops::equal(known, &key)? => items.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let mut out = Vec::new();
    for (key, items) in groups {
        let key = if keep_case { key } else { follow(&items[0], &path, default.as_ref())? };
        out.push(Value::Group(Seq::new(vec![key, Value::list(items)?])?));
    }
    Value::list(out)
}

// --- parts of lists

fn batch(value: &Value, given: &Given) -> Result<Value> {
    let [count, fill] = given.bind("batch", ["linecount", "fill_with"], 1)?;
    let count = ops::int(&count.expect("required"))?;
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    for item in value.to_vec()? {
        if batch.len() as i128 == count {
            batches.push(Value::list(std::mem::take(&mut batch)));
        }
        batch.push(item);
    }
    if !batch.is_empty() {
        if let Some(fill) = some(fill) {
            let missing = usize::try_from(count - batch.len() as i128).unwrap_or(0);
            reserve(missing.saturating_mul(size_of::<Value>()))?;
            batch.extend(std::iter::repeat_n(fill, missing));
        }
        batches.push(Value::list(batch));
    }
    Value::generator(batches)
}

fn slice(value: &Value, given: &Given) -> Result<Value> {
    let [slices, fill] = given.bind("slice", ["slices", "fill_with"], 1)?;
    let slices = ops::int(&slices.expect("required"))?;
    let items = value.to_vec()?;
    if slices == 0 {
        return failed("integer division or modulo by zero");
    }
    let slices = usize::try_from(slices).unwrap_or(0);
    reserve(slices.saturating_mul(size_of::<Value>()))?;
    let fill = some(fill);
    let (each, extra) = (items.len() / slices.max(1), items.len() % slices.max(1));
    let mut rest = items.into_iter();
    Value::generator((0..slices).map(|slice| {
        let mut part: Vec<Value> = rest.by_ref().take(each + usize::from(slice < extra)).collect();
        if slice >= extra {
            part.extend(fill.clone());
        }
        Value::list(part)
    }))
}

fn join(value: &Value, separator: Option<&Value>, attribute: Option<&Value>) -> Result<Value> {
    let path = path(attribute)?;
    let separator = separator.map_or(Ok("".into()), str_of)?;
    let mut out = String::new();
    let mut items = value.iter()?;
    let mut is_first = true;
    while let Some(item) = items.next()? {
        let item = follow(&item, &path, None)?;
        let text = str_of(&item)?;
        if !is_first {
            out += &separator;
        }
        is_first = false;
        reserve(text.len() + separator.len())?;
        out += &text;
        if out.len() > 1 << 20 {
            reserve(out.len() / 16)?;
        }
    }
    Ok(Value::from(out))
}

// --- text

/// A word begins after a hyphen, white space or an opening bracket.
fn title(text: &str) -> String {
    let begins_word = |c: char| is_whitespace(c) || "-({[<".contains(c);
    let mut out = String::with_capacity(text.len());
    for part in text.split_inclusive(begins_word) {
        let word = part.trim_end_matches(begins_word);
        let mut letters = word.chars();
        out.extend(letters.next().into_iter().flat_map(char::to_uppercase));
        out.push_str(&letters.as_str().to_lowercase());
        out.push_str(&part[word.len()..]);
    }
    out
}

fn indent(value: &Value, given: &Given) -> Result<Value> {
    let [width, first, blank] = given.bind("indent", ["width", "first", "blank"], 0)?;
    let it = text(value)?;
    let indention = match width {
        Some(Value::Str(indention)) => indention.to_string(),
        width => {
            let width = usize::try_from(int_or(width.as_ref(), 4)?.max(0)).unwrap_or(usize::MAX);
            reserve(width)?;
            " ".repeat(width)
        }
    };
    let with_end = format!("{}\n", it.as_str());
    let lines = chars::split_lines(&with_end, false);
    reserve(it.len().saturating_add(lines.len().saturating_mul(indention.len() + 1)))?;
    let mut out = if is_given(first.as_ref()) { indention.clone() } else { String::new() };
    for (place, line) in lines.iter().enumerate() {
        if place > 0 {
            out.push('\n');
            if is_given(blank.as_ref()) || !line.is_empty() {
                out += &indention;
            }
        }
        out += line;
    }
    Ok(like(it, &out))
}

fn truncate(value: &Value, given: &Given) -> Result<Value> {
    let [length, kill_words, end, leeway] =
        given.bind("truncate", ["length", "killwords", "end", "leeway"], 0)?;
    let length = int_or(length.as_ref(), 255)?;
    let end = end.as_ref().map_or(Ok("..."), |end| text(end).map(Str::as_str))?;
    let leeway = int_or(some(leeway).as_ref(), 5)?;
    let end_length = end.chars().count() as i128;
    if length < end_length || leeway < 0 {
        return failed("truncate needs a length that its end fits in, and a leeway of 0 or more");
    }
    // whatever has a length, and an undefined value has none
    if value.len().is_some_and(|len| len as i128 <= length.saturating_add(leeway)) {
        return Ok(value.clone());
    }
    let it = text(value)?;
    let kept: String = it.chars().take((length - end_length) as usize).collect();
    let kept =
        if is_given(kill_words.as_ref()) { &*kept } else { kept.rsplit_once(' ').map_or(&*kept, |it| it.0) };
    Ok(like(it, &(kept.to_owned() + end)))
}

/// `Markup(text).striptags()`.
fn strip_tags(text: &str) -> Result<Value> {
    let mut rest = String::with_capacity(text.len());
    cut_out(text, "<!--", "-->", &mut rest);
    let mut bare = String::with_capacity(rest.len());
    cut_out(&rest, "<", ">", &mut bare);
    let words: Vec<&str> = bare.split(is_whitespace).filter(|word| !word.is_empty()).collect();
    let joined = words.join(" ");
    let mut out = String::with_capacity(joined.len());
    let mut rest = joined.as_str();
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let entities =
            [("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&#34;", "\"")];
        let known = entities.iter().find(|(entity, _)| rest.starts_with(entity));
        let (length, meaning) = match known {
            Some((entity, meaning)) => (entity.len(), *meaning),
            None if rest[1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '#') => {
                return failed("striptags of an HTML entity other than the basic ones is not supported");
            }
            None => (1, "&"),
        };
        out.push_str(meaning);
        rest = &rest[length..];
    }
    out.push_str(rest);
    Ok(Value::from(out))
}

/// Without what lies between the two; where there is no end, the rest stays.
fn cut_out(text: &str, begin: &str, end: &str, out: &mut String) {
    let mut rest = text;
    while let Some(start) = rest.find(begin) {
        let Some(length) = rest[start..].find(end) else { break };
        out.push_str(&rest[..start]);
        rest = &rest[start + length + end.len()..];
    }
    out.push_str(rest);
}

fn url_encode(value: &Value) -> Result<Value> {
    let pairs = match value {
        Value::Dict(dict) => dict.entries().iter().map(|(key, value)| [key.clone(), value.clone()]).collect(),
        Value::Str(_) => Vec::new(),
        value if value.try_iter().is_some() => {
            let pairs = value.to_vec()?.into_iter().map(|pair| {
                <[Value; 2]>::try_from(pair.to_vec()?).map_err(|_| fault("urlencode needs pairs"))
            });
            pairs.collect::<Result<Vec<[Value; 2]>>>()?
        }
        _ => Vec::new(),
    };
    if matches!(value, Value::Str(_)) || value.try_iter().is_none() {
        return Ok(Value::from(quote(&str_of(value)?, false)));
    }
    let mut out = String::new();
    for [key, value] in pairs {
        if !out.is_empty() {
            out.push('&');
        }
        out += &format!("{}={}", quote(&str_of(&key)?, true), quote(&str_of(&value)?, true));
    }
    Ok(Value::from(out))
}

/// `urllib.parse.quote`.
fn quote(text: &str, for_query: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(byte.into()),
            b'/' if !for_query => out.push('/'),
            b' ' if for_query => out.push('+'),
            byte => out += &format!("%{byte:02X}"),
        }
    }
    out
}

fn xml_attributes(value: &Value, given: &Given) -> Result<Value> {
    let [autospace] = given.bind("xmlattr", ["autospace"], 0)?;
    let Value::Dict(dict) = value else {
        value.check_defined()?;
        return failed(format!("'{}' object has no attribute 'items'", value.type_name()));
    };
    let dict: &Dict = dict;
    let mut out = Vec::new();
    for (key, value) in dict.entries() {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let key = text(key)?;
        if key.contains([' ', '\t', '\n', '\r', '\x0b', '\x0c', '/', '>', '=']) {
            return failed("invalid character in attribute name");
        }
        let safe = |text: &Value| match text {
            Value::Str(text) if text.markup => Ok(text.to_string()),
            other => Ok::<_, Box<super::meter::Fault>>(escape(&str_of(other)?)),
        };
        out.push(format!("{}=\"{}\"", escape(key), safe(value)?));
    }
    let joined = out.join(" ");
    let space = autospace.is_none_or(|it| it.is_true()) && !joined.is_empty();
    Ok(Value::from(if space { format!(" {joined}") } else { joined }))
}

// --- numbers

/// What Python's `float(value)` is; `None` where it raises a type or value error.
fn float_of(value: &Value) -> Result<Option<f64>> {
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
fn without_underscores(text: &str) -> String {
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let is_fine = text
        .match_indices('_')
        .all(|(at, _)| is_digit(text[..at].chars().next_back()) && is_digit(text[at + 1..].chars().next()));
    if is_fine { text.replace('_', "") } else { text.to_owned() }
}

fn to_int(value: &Value, given: &Given) -> Result<Value> {
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

fn whole(float: f64) -> Result<i128> {
    if float.abs() > 1e38 { failed("an integer of more than 127 bits") } else { Ok(float as i128) }
}

fn round(value: &Value, given: &Given) -> Result<Value> {
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
fn round_half_even(float: f64, digits: i32) -> f64 {
    if !float.is_finite() {
        return float;
    }
    if digits >= 0 {
        return format!("{float:.*}", digits as usize).parse().expect("a number");
    }
    let unit = 10_f64.powi(-digits);
    (float / unit).round_ties_even() * unit
}

fn file_size(value: &Value, given: &Given) -> Result<Value> {
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
