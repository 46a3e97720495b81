//! Filters of lists and of what lists hold.

use std::cmp::Ordering;

use super::super::given::{Given, is_given, some, text};
use super::super::meter::{Result, failed, fault, reserve};
use super::super::ops::like;
use super::super::show::str_of;
use super::super::value::{Seq, Value};
use super::super::{access, ops, predicates};
use super::call;

/// `"a.0.b"` → its parts; numbers are indices.
pub(super) fn path(attribute: Option<&Value>) -> Result<Vec<Value>> {
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

pub(super) fn follow(item: &Value, path: &[Value], default: Option<&Value>) -> Result<Value> {
    let mut found = item.clone();
    for part in path {
        found = access::item(&found, part)?;
        if let (Value::Undefined(_), Some(default)) = (&found, default) {
            found = default.clone();
        }
    }
    Ok(found)
}

pub(super) fn fold(value: Value, keep_case: bool) -> Value {
    match value {
        Value::Str(text) if !keep_case => like(&text, &text.to_lowercase()),
        value => value,
    }
}

pub(super) fn map(value: &Value, given: &Given) -> Result<Value> {
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

pub(super) fn select(name: &str, value: &Value, given: &Given) -> Result<Value> {
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

pub(super) fn extreme(name: &str, value: &Value, given: &Given) -> Result<Value> {
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

pub(super) fn group_by(value: &Value, given: &Given) -> Result<Value> {
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

pub(super) fn batch(value: &Value, given: &Given) -> Result<Value> {
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

pub(super) fn slice(value: &Value, given: &Given) -> Result<Value> {
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

pub(super) fn join(value: &Value, separator: Option<&Value>, attribute: Option<&Value>) -> Result<Value> {
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
