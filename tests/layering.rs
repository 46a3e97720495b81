//! The picture in `src/lib.rs`: a use points down or right, or it is a mistake.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::path::Path;

/// Each room with the rooms it may use, apart from itself. `main.rs` and `lib.rs` may use all.
const MAY_USE: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "client",
            "config",
            "disk",
            "engine",
            "metrics",
            "model",
            "offline",
            "service",
            "telemetry",
            "text",
        ],
    ),
    ("config", &["disk", "engine", "model", "offline", "service", "telemetry", "text"]),
    ("telemetry", &[]),
    ("service", &["disk", "engine", "metrics", "model", "proto", "text"]),
    ("client", &["model", "offline", "proto", "text"]),
    ("offline", &["disk", "metrics", "model", "text"]),
    ("engine", &["metrics", "model"]),
    ("model", &["disk", "metrics", "text"]),
    ("text", &["disk", "metrics"]),
    ("disk", &[]),
    ("metrics", &[]),
    ("proto", &[]),
];

/// Crates that a room must not name: tensors stay below `service`, gRPC and async above `model` and `offline`.
const MUST_NOT_NAME: &[(&str, &[&str])] = &[
    ("service", &["candle_core", "candle_nn", "rewarm_kernels"]),
    ("engine", &["candle_core", "candle_nn", "rewarm_kernels", "tonic"]),
    ("model", &["tonic", "tokio"]),
    ("offline", &["rewarm_kernels", "tonic", "tokio"]),
    ("text", &["candle_core", "candle_nn", "rewarm_kernels", "tonic", "tokio"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_use_points_down_or_right() {
    let mut mistakes = Vec::new();
    check_folder(&root().join("src"), &mut mistakes);
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

fn check_folder(folder: &Path, mistakes: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            check_folder(&path, mistakes);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            check_file(&path, mistakes);
        }
    }
}

fn check_file(path: &Path, mistakes: &mut Vec<String>) {
    let name = path.strip_prefix(root()).unwrap();
    let room = name.iter().nth(1).unwrap().to_str().unwrap().trim_end_matches(".rs");
    // `kernels` is a crate of its own, which cannot name ours
    if ["main", "lib", "kernels"].contains(&room) {
        return;
    }
    let may_use = list(MAY_USE, room).unwrap_or_else(|| panic!("{room} is not in the picture"));
    let must_not_name = list(MUST_NOT_NAME, room).unwrap_or_default();
    for (number, line) in (1..).zip(std::fs::read_to_string(path).unwrap().lines()) {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        for used in words_after(code, "crate::").filter(|used| *used != room && !may_use.contains(used)) {
            // `crate::{a, b}` hides rooms from this test: one module per line.
            let used = if used.is_empty() { "several rooms in one line" } else { used };
            mistakes.push(format!("{}:{number} uses {used}", name.display()));
        }
        for named in must_not_name.iter().filter(|named| code.contains(&format!("{named}::"))) {
            mistakes.push(format!("{}:{number} names {named}", name.display()));
        }
    }
}

fn list(table: &[(&str, &'static [&'static str])], room: &str) -> Option<&'static [&'static str]> {
    table.iter().find(|(name, _)| *name == room).map(|(_, list)| *list)
}

/// Each word that follows `prefix` in `line`.
fn words_after<'a>(line: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    line.match_indices(prefix).map(move |(at, _)| {
        let rest = &line[at + prefix.len()..];
        &rest[..rest.find(|character| !is_word(character)).unwrap_or(rest.len())]
    })
}
