//! The Python that chat templates expect and minijinja does not have.

use std::borrow::Cow;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// Methods of Python's types: `strip`, `lstrip` and `rstrip` with what Python calls whitespace, and those of
/// minijinja-contrib.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match (value.as_str(), method, args) {
        (Some(text), "strip", []) => Ok(text.trim_matches(is_whitespace).into()),
        (Some(text), "lstrip", []) => Ok(text.trim_start_matches(is_whitespace).into()),
        (Some(text), "rstrip", []) => Ok(text.trim_end_matches(is_whitespace).into()),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// The filter `trim`: Python's `str(value).strip`, so that an undefined value is the empty string.
pub(super) fn trim(value: &Value, chars: Option<&str>) -> String {
    let text = value.as_str().map_or_else(|| Cow::Owned(value.to_string()), Cow::Borrowed);
    match chars {
        None => text.trim_matches(is_whitespace).to_owned(),
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_owned(),
    }
}

/// Python counts the four ASCII separators as whitespace, Unicode's `White_Space` does not.
pub(super) fn is_whitespace(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// The test `is sequence`: whatever has a length and an index, so strings and mappings too.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
}

/// The filter `tojson` as `transformers` has it: `json.dumps(value, ensure_ascii=False, ..)`, nothing escaped
/// for HTML.
pub(super) fn tojson(state: &State<'_, '_>, value: &Value, options: Kwargs) -> Result<Value, Error> {
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let indent: Option<u8> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;

    let [item_separator, key_separator] = match separators {
        Some(pair) => pair.try_into().map_err(|_| bad("separators must be two strings"))?,
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
    };
    let layout = Dumps { item_separator, key_separator, indent, depth: 0, is_empty: true };
    let mut out = Vec::new();
    let mut json = serde_json::to_value(value).map_err(unserializable)?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    json.serialize(&mut Serializer::with_formatter(&mut out, layout)).map_err(unserializable)?;
    let text = String::from_utf8(out).expect("serde_json writes UTF-8");
    state.consume_fuel(text.len() as u64 / 4)?; // as minijinja's own
    Ok(if ensure_ascii == Some(true) { escape_non_ascii(&text) } else { text }.into())
}

fn bad(detail: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

fn unserializable(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::BadSerialization, "cannot serialize to JSON").with_source(error)
}

/// The characters that are not ASCII all sit inside strings.
fn escape_non_ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out
}

/// The layout of Python's `json.dumps`.
struct Dumps {
    item_separator: String,
    key_separator: String,
    /// Spaces per level; `None` is all on one line.
    indent: Option<u8>,
    depth: usize,
    /// Whether the list or mapping being written has nothing in it so far.
    is_empty: bool,
}

impl Dumps {
    fn begin<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(bracket)
    }

    fn begin_item<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item_separator.as_bytes())?;
        }
        self.new_line(writer)
    }

    fn end<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.new_line(writer)?;
        }
        self.is_empty = false; // what encloses it has something in it
        writer.write_all(bracket)
    }

    fn new_line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(writer, "\n{:1$}", "", usize::from(indent) * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for Dumps {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"[")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_empty = false;
        Ok(())
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"]")
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.begin(writer, b"{")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key_separator.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.is_empty = false;
        Ok(())
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.end(writer, b"}")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `datetime.strftime`, in English and UTC, with glibc's `%-d` for a number without its leading zero.
///
/// Fails at a directive that is not among the common ones.
pub(super) fn strftime(format: &str, time: SystemTime) -> Result<String, Error> {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let weekday = WEEKDAYS[((days + 4) % 7) as usize]; // the epoch was a Thursday
    let month_name = MONTHS[month as usize - 1];
    let hour = second_of_day / 3600;
    let hour_of_12 = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut directive = letters.next();
        let is_padded = directive != Some('-');
        if !is_padded {
            directive = letters.next();
        }
        let number =
            |value: u64, width: usize| format!("{value:0width$}", width = if is_padded { width } else { 1 });
        out += &match directive {
            Some('a') => weekday[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('B') => month_name.to_owned(),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('H') => number(hour, 2),
            Some('I') => number(hour_of_12, 2),
            Some('j') => number(days - days_before(year) + 1, 3),
            Some('m') => number(month, 2),
            Some('M') => number(second_of_day / 60 % 60, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('S') => number(second_of_day % 60, 2),
            Some('T') => format!("{hour:02}:{:02}:{:02}", second_of_day / 60 % 60, second_of_day % 60),
            Some('y') => number(year % 100, 2),
            Some('Y') => number(year, 4),
            Some('%') => "%".to_owned(),
            _ => {
                let detail = format!("strftime_now does not know all of {format:?}");
                return Err(Error::new(ErrorKind::InvalidOperation, detail));
            }
        };
    }
    Ok(out)
}

/// Days since 1970-01-01 → year, month (1 to 12), day (1 to 31).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366; // never past the right one
    while days_before(year + 1) <= days {
        year += 1;
    }
    let is_leap = days_before(year + 1) - days_before(year) == 366;
    let mut day = days - days_before(year);
    let mut month = 1;
    for length in [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

/// Days from 1970-01-01 to the first of January of `year`.
fn days_before(year: u64) -> u64 {
    let leap_days = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use minijinja::value::Serde;
    use minijinja::{Environment, context};

    use super::*;

    /// `json.dumps` of CPython 3.11 made the expected strings.
    #[test]
    fn tojson_is_json_dumps() {
        let mut env = Environment::new();
        env.add_filter("tojson", tojson);
        let value: serde_json::Value =
            serde_json::from_str(r#"{"b": ["<é>", 1, {}, []], "a": {"c": null, "d": "\u001b\"\n"}}"#)
                .unwrap();
        for (call, expected) in [
            ("v|tojson", r#"{"b": ["<é>", 1, {}, []], "a": {"c": null, "d": "\u001b\"\n"}}"#),
            (
                "v|tojson(indent=2)",
                "{\n  \"b\": [\n    \"<é>\",\n    1,\n    {},\n    []\n  ],\n  \"a\": {\n    \"c\": null,\n    \
                 \"d\": \"\\u001b\\\"\\n\"\n  }\n}",
            ),
            ("v|tojson(indent=none)", r#"{"b": ["<é>", 1, {}, []], "a": {"c": null, "d": "\u001b\"\n"}}"#),
            (
                "v|tojson(separators=(',', ':'), sort_keys=true)",
                r#"{"a":{"c":null,"d":"\u001b\"\n"},"b":["<é>",1,{},[]]}"#,
            ),
            ("'é😀'|tojson(ensure_ascii=true)", r#""\u00e9\ud83d\ude00""#),
        ] {
            let rendered =
                env.render_str(&format!("{{{{ {call} }}}}"), context!(v => Serde(&value))).unwrap();
            assert_eq!(rendered, expected, "{call}");
        }
        assert!(env.render_str("{{ 1|tojson(default=2) }}", ()).is_err());
    }

    /// `time.strftime(format, time.gmtime(seconds))` of CPython 3.11 made the expected strings.
    #[test]
    fn dates_are_what_python_writes() {
        let formatted =
            |format: &str, seconds| strftime(format, UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        assert_eq!(formatted("%d %b %Y", 1_721_995_200), "26 Jul 2024");
        assert_eq!(
            formatted("%A, %B %-d, %Y %I:%M:%S %p", 951_782_399),
            "Monday, February 28, 2000 11:59:59 PM"
        );
        assert_eq!(formatted("%Y-%m-%d %j %a", 951_782_400), "2000-02-29 060 Tue");
        assert_eq!(formatted("%F %T %y%%", 4_107_542_399), "2100-02-28 23:59:59 00%");
        assert_eq!(formatted("%F %j", 4_107_542_400), "2100-03-01 060");
        assert_eq!(formatted("%F %e %H %I", 0), "1970-01-01  1 00 12");
        assert_eq!(formatted("%F %j", 1_735_603_200), "2024-12-31 366");
        for unknown in ["%Q", "%", "%-"] {
            assert!(strftime(unknown, UNIX_EPOCH).is_err(), "{unknown}");
        }
    }
}
