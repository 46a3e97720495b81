//! Files of JSON lines: how they may be packed, and what a file is that is something else.
//!
//! A line is one JSON object. A UTF-8 byte order mark is read past, and gzip is unpacked, whatever the file is called.
//! What else people have at hand (Parquet, Arrow, CSV, one JSON array, UTF-16, ..) is known by how it begins, and
//! refused with the command that converts it. `tests/reference/lines.py` makes such files with the programs themselves, runs
//! the command that each error names, and compares what comes out.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::disk;

/// What a gzip file starts with, whatever it is called.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Keys of the lines that we read: a first line with one of these between commas is the header of a table.
const COLUMNS: [&str; 9] =
    ["prompt", "chosen", "rejected", "response", "responses", "messages", "formatted", "text", "token_ids"];

/// A file of lines, unpacked if it is gzipped, behind a byte order mark.
///
/// Fails with [`io::ErrorKind::InvalidData`] if it begins like something that holds no JSON lines, naming the way out.
pub fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let mut file = BufReader::new(disk::open(path)?);
    if file.fill_buf()?.starts_with(&GZIP_MAGIC) {
        let mut unpacked = BufReader::new(MultiGzDecoder::new(file));
        begin(&mut unpacked)?;
        Ok(Box::new(unpacked))
    } else {
        begin(&mut file)?;
        Ok(Box::new(file))
    }
}

/// Reads past a byte order mark; fails as [`open`] does.
pub fn begin(input: &mut impl BufRead) -> io::Result<()> {
    let beginning = input.fill_buf()?;
    if let Some(problem) = mistaken(beginning) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
    }
    if beginning.starts_with(BYTE_ORDER_MARK) {
        input.consume(BYTE_ORDER_MARK.len());
    }
    Ok(())
}

/// What a file is that begins like this, and how it becomes JSON lines; `None` if it may hold some.
fn mistaken(beginning: &[u8]) -> Option<String> {
    let packed: [(&[u8], &str, &str); 6] = [
        // from standard input, for whatever the file is called
        (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc < FILE"),
        (b"\xfd7zXZ\0", "xz", "xz -dc < FILE"),
        (b"BZh", "bzip2", "bzip2 -dc < FILE"),
        (b"PK\x03\x04", "zip", "unzip -p FILE"),
        (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc < FILE"),
        (&GZIP_MAGIC, "gzip twice", "gzip -dc < FILE"),
    ];
    if let Some((_, name, command)) = packed.iter().find(|(magic, _, _)| beginning.starts_with(magic)) {
        return Some(format!("it is packed with {name}: unpack it first, `{command} > pairs.jsonl`"));
    }
    let arrow = |name: &str, read: &str| {
        format!(
            "it is {name}: convert it with `python -c \"import json, pyarrow as pa, pyarrow.parquet as pq; \
             [print(json.dumps(row, default=str)) for row in {read}.to_pylist()]\" > pairs.jsonl`"
        )
    };
    if beginning.starts_with(b"PAR1") {
        return Some(arrow("a Parquet file", "pq.read_table('FILE')"));
    }
    if beginning.starts_with(b"ARROW1") {
        return Some(arrow("an Arrow file", "pa.ipc.open_file('FILE').read_all()"));
    }
    if beginning.starts_with(b"\xff\xff\xff\xff") {
        return Some(arrow(
            "an Arrow stream, as `datasets` saves it",
            "pa.ipc.open_stream('FILE').read_all()",
        ));
    }
    for (mark, name) in [
        (&b"\xff\xfe\0\0"[..], "UTF-32"),
        (b"\0\0\xfe\xff", "UTF-32"),
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
        (b"{\0", "UTF-16LE"),
        (b"[\0", "UTF-16LE"),
        (b"\0{", "UTF-16BE"),
        (b"\0[", "UTF-16BE"),
    ] {
        if beginning.starts_with(mark) {
            return Some(format!(
                "it is {name}, and JSON lines are UTF-8: convert it with `iconv -f {name} -t UTF-8 FILE > pairs.jsonl`"
            ));
        }
    }
    mistaken_text(beginning.strip_prefix(BYTE_ORDER_MARK).unwrap_or(beginning))
}

fn mistaken_text(beginning: &[u8]) -> Option<String> {
    let beginning = beginning.trim_ascii_start();
    let line = beginning.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    if beginning.starts_with(b"version https://git-lfs") {
        return Some("it is a pointer of Git LFS, not the file: fetch that with `git lfs pull`".to_owned());
    }
    if beginning.starts_with(b"[") {
        return Some(
            "it is one JSON array, not a JSON object on each line: convert it with `python -c \"import json, sys; \
             [print(json.dumps(row)) for row in json.load(sys.stdin)]\" < FILE > pairs.jsonl`"
                .to_owned(),
        );
    }
    if line == b"{" {
        return Some(
            "its first object goes on over several lines: JSON lines have one object on each. Convert it with \
             `jq -c . FILE > pairs.jsonl`"
                .to_owned(),
        );
    }
    if beginning.starts_with(b"<") {
        return Some("it is a web page or XML: download the file itself".to_owned());
    }
    let header = std::str::from_utf8(line).ok().filter(|line| !line.starts_with('{'))?;
    let separator = [',', '\t', ';'].into_iter().find(|&separator| header.contains(separator))?;
    let is_column = |name: &str| COLUMNS.contains(&name.trim().trim_matches('"'));
    header.split(separator).any(is_column).then(|| {
        let delimiter = if separator == ',' { String::new() } else { format!(", delimiter={separator:?}") };
        format!(
            "it is a table (CSV): convert it with `python -c \"import csv, json, sys; \
             csv.field_size_limit(1 << 30); [print(json.dumps(row)) for row in csv.DictReader(sys.stdin{})]\" < FILE > \
             pairs.jsonl`",
            delimiter.replace('"', "'")
        )
    })
}

/// What is wrong with a line that is no JSON, and how to mend it where that is known.
pub fn explain(line: &str, error: &serde_json::Error) -> String {
    if error.is_syntax()
        && let Some(literal) = ["NaN", "Infinity"].into_iter().find(|literal| outside_strings(line, literal))
    {
        return format!(
            "{literal} is no JSON, though Python writes it: put null there, `python -c \"import json, sys; \
             [print(json.dumps(json.loads(line, parse_constant=lambda _: None))) for line in sys.stdin]\" < FILE > \
             pairs.jsonl`"
        );
    }
    error.to_string()
}

/// Whether a word stands in the text of a JSON document, but not in a string of it.
fn outside_strings(json: &str, word: &str) -> bool {
    let mut rest = json;
    loop {
        let quote = rest.find('"').unwrap_or(rest.len());
        if rest[..quote].contains(word) {
            return true;
        }
        let Some(mut string) = rest.get(quote + 1..) else { return false };
        loop {
            match string.find(['"', '\\']) {
                Some(at) if string.as_bytes()[at] == b'\\' => {
                    // what follows is escaped: one character, whatever its length
                    let mut escaped = string[at + 1..].chars();
                    escaped.next();
                    string = escaped.as_str();
                }
                Some(at) => {
                    rest = &string[at + 1..];
                    break;
                }
                None => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_of_lines_is_named_with_the_command_that_converts_it() {
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        for (beginning, what) in [
            (b"PAR1\x15\x04".to_vec(), "pq.read_table"),
            (b"ARROW1\0\0".to_vec(), "open_file"),
            (b"\xff\xff\xff\xff\x10\x01".to_vec(), "open_stream"),
            (b"\x28\xb5\x2f\xfd\x04".to_vec(), "zstd -dc < FILE > pairs.jsonl"),
            (b"PK\x03\x04".to_vec(), "unzip -p FILE"),
            (utf16("\u{feff}{\"prompt\""), "iconv -f UTF-16 "),
            (utf16("{\"prompt\""), "iconv -f UTF-16LE"),
            (b"[{\"prompt\": \"p\"}]".to_vec(), "json.load(sys.stdin)"),
            (b"\xef\xbb\xbf\n [\n".to_vec(), "json.load(sys.stdin)"),
            (b"{\n  \"prompt\"".to_vec(), "jq -c"),
            (b"id,prompt,chosen,rejected\r\n1,a,b,c\n".to_vec(), "csv.DictReader(sys.stdin)"),
            (b"\"prompt\"\t\"response\"\n".to_vec(), "csv.DictReader(sys.stdin, delimiter='\\t')"),
            (b"<!DOCTYPE html>".to_vec(), "web page"),
            (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "git lfs pull"),
        ] {
            let problem = mistaken(&beginning).unwrap_or_default();
            assert!(problem.contains(what), "{beginning:?}: {problem}");
        }
        for lines in ["", "\n\n", "{\"prompt\": \"a,b\"}", "\u{feff}{\"prompt\": 1}", "prompt", "x, y"] {
            assert_eq!(mistaken(lines.as_bytes()), None, "{lines}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_read_past() {
        let mut input = "\u{feff}{}\n".as_bytes();
        begin(&mut input).unwrap();
        assert_eq!(input, b"{}\n");
    }

    #[test]
    fn pythons_literals_are_known_outside_of_strings() {
        let explained =
            |line: &str| explain(line, &serde_json::from_str::<serde_json::Value>(line).unwrap_err());
        assert!(explained(r#"{"a": "x", "score": NaN}"#).contains("NaN is no JSON"));
        assert!(explained(r#"{"a": "\"é\\", "b": -Infinity}"#).contains("Infinity is no JSON"));
        assert!(!explained(r#"{"a": "NaN \" NaN"#).contains("no JSON"));
        assert!(!explained(r#"{"a": "NaN", b}"#).contains("no JSON"));
        assert!(!explained("{\"a\": \"\\é").contains("no JSON"));
    }
}
