//! Templates against what jinja2 made of them: our own small ones, always, and those of public packages, if a
//! variable names the file. `tests/reference/templates.py` makes both files and tells how.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::value::Value;
use super::{ChatTemplate, TextError};

/// The first line of a file.
#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    variables: Map<String, Json>,
}

/// Every other line.
#[derive(Deserialize)]
struct Row {
    name: String,
    source: String,
    compile_error: Option<String>,
    results: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    rendered: Option<String>,
    error: Option<String>,
}

#[derive(Default)]
struct Counts {
    templates: usize,
    equal: usize,
    both_raise: usize,
    /// Templates refused when loaded that jinja2 compiles, by reason.
    refused: BTreeMap<String, usize>,
    /// Templates that jinja2 refuses.
    broken: usize,
    different: Vec<String>,
}

fn compare(path: &Path) -> Counts {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let Cases { cases } = serde_json::from_str(lines.next().unwrap()).unwrap();
    let mut counts = Counts::default();
    for line in lines {
        let row: Row = serde_json::from_str(line).unwrap();
        counts.templates += 1;
        let template = ChatTemplate::new(&row.source, &BTreeMap::new());
        let template = match (template, &row.compile_error) {
            (Err(_), Some(_)) => {
                counts.broken += 1;
                continue;
            }
            (Err(error), None) if row.results.iter().all(|outcome| outcome.error.is_some()) => {
                *counts.refused.entry(format!("never renders: {error}")).or_default() += 1;
                continue;
            }
            (Err(error), None) => {
                *counts.refused.entry(format!("{error} ({})", row.name)).or_default() += 1;
                continue;
            }
            (Ok(_), Some(error)) => {
                counts.different.push(format!("{}: loads, and jinja2 says {error}", row.name));
                continue;
            }
            (Ok(template), None) => template,
        };
        // 26 Jul 2024, 12:00
        let template = template.with_clock(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_721_995_200));
        for (case, outcome) in cases.iter().zip(&row.results) {
            let variables = || {
                let given = case.variables.iter();
                given.map(|(name, value)| Ok((name.as_str(), Value::from_json(value)?))).collect()
            };
            let difference = match (template.run(1 << 16, variables), &outcome.rendered) {
                (Ok(rendered), Some(expected)) if rendered == *expected => {
                    counts.equal += 1;
                    continue;
                }
                (Err(TextError::TemplateRefused { message }), None)
                    if outcome.error == Some(format!("TemplateError: {message}")) =>
                {
                    counts.both_raise += 1;
                    continue;
                }
                (Err(TextError::TemplateFailed { .. }), None)
                    if outcome.error.as_ref().is_some_and(|error| !error.starts_with("TemplateError:")) =>
                {
                    counts.both_raise += 1;
                    continue;
                }
                (ours, _) => format!("ours   {ours:?}\njinja2 {:?}{:?}", outcome.rendered, outcome.error),
            };
            let shown = if row.source.len() < 500 { row.source.as_str() } else { "" };
            counts.different.push(format!("{} | {}\n{shown}\n{difference}", row.name, case.name));
        }
    }
    counts
}

#[test]
fn our_small_templates_render_as_in_python() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates.jsonl");
    let counts = compare(&path);
    let differences = counts.different.join("\n\n");
    assert!(counts.different.is_empty(), "{} differ\n{differences}", counts.different.len());
    // each refusal is meant, and in the file
    let refused: HashMap<_, _> =
        counts.refused.into_iter().filter(|(reason, _)| !reason.contains("(refused")).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    assert!(counts.equal > 300, "{} equal", counts.equal);
}

#[test]
fn templates_of_public_packages_render_as_in_python() {
    let Ok(path) = std::env::var("REWARM_TEMPLATE_CASES") else {
        println!("skipped: REWARM_TEMPLATE_CASES names no file (tests/reference/templates.py makes one)");
        return;
    };
    let counts = compare(Path::new(&path));
    println!(
        "{} templates: {} equal, {} raise in both, {} are none to jinja2 either, {} refused when loaded",
        counts.templates,
        counts.equal,
        counts.both_raise,
        counts.broken,
        counts.refused.values().sum::<usize>(),
    );
    println!("{:#?}", counts.refused);
    for different in &counts.different {
        println!("\n{different}");
    }
    assert!(counts.different.is_empty(), "{} differ", counts.different.len());
}
