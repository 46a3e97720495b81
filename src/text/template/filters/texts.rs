//! Filters of texts.

use super::super::chars;
use super::super::given::{Given, int_or, is_given, some, text};
use super::super::meter::{Result, failed, fault, reserve};
use super::super::ops::{escape, like};
use super::super::show::str_of;
use super::super::value::{Dict, Str, Value};
use crate::text::whitespace::is_whitespace;

/// A word begins after a hyphen, white space or an opening bracket.
pub(super) fn title(text: &str) -> String {
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

pub(super) fn indent(value: &Value, given: &Given) -> Result<Value> {
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

pub(super) fn truncate(value: &Value, given: &Given) -> Result<Value> {
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
pub(super) fn strip_tags(text: &str) -> Result<Value> {
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
pub(super) fn cut_out(text: &str, begin: &str, end: &str, out: &mut String) {
    let mut rest = text;
    while let Some(start) = rest.find(begin) {
        let Some(length) = rest[start..].find(end) else { break };
        out.push_str(&rest[..start]);
        rest = &rest[start + length + end.len()..];
    }
    out.push_str(rest);
}

pub(super) fn url_encode(value: &Value) -> Result<Value> {
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
pub(super) fn quote(text: &str, for_query: bool) -> String {
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

pub(super) fn xml_attributes(value: &Value, given: &Given) -> Result<Value> {
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
            other => Ok::<_, Box<super::super::meter::Fault>>(escape(&str_of(other)?)),
        };
        out.push(format!("{}=\"{}\"", escape(key), safe(value)?));
    }
    let joined = out.join(" ");
    let space = autospace.is_none_or(|it| it.is_true()) && !joined.is_empty();
    Ok(Value::from(if space { format!(" {joined}") } else { joined }))
}
