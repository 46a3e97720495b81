//! The files of an evaluation: `evaluation.json`, `rewards.jsonl`, `index.html`; each appears whole or not at all.

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;
use tempfile::NamedTempFile;

use crate::offline::evaluate::Outcome;
use crate::offline::evaluate::evaluation::ModelInfo;
use crate::offline::evaluate::page::page;
use crate::offline::evaluate::sets::PairSet;

/// Writes all three into `folder`, over older ones.
pub fn write(outcome: &Outcome, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let json =
        serde_json::to_string_pretty(&outcome.evaluation).context("write the evaluation as JSON")? + "\n";
    write_file(folder, "evaluation.json", &json)?;
    write_file(folder, "rewards.jsonl", &outcome.rewards)?;
    write_file(folder, "index.html", &page(&outcome.evaluation)?)
}

fn write_file(folder: &Path, name: &str, content: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    let act = || format!("write {}", path.display());
    let mut file = NamedTempFile::new_in(folder).with_context(act)?;
    file.write_all(content.as_bytes()).with_context(act)?;
    file.as_file().sync_all().with_context(act)?;
    // readable by others, as a file that was simply created
    #[cfg(unix)]
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .with_context(act)?;
    file.persist(&path).with_context(act)?;
    Ok(())
}

/// One line for each pair: `{"pairs", "line", "source", "chosen_tokens", "rejected_tokens", "chosen", "rejected"}`,
/// the last two with each model's reward by its name; or `{"pairs", "line", "error"}`.
pub(super) fn rewards_jsonl(sets: &[PairSet], models: &[ModelInfo], rewards: &[Vec<f32>]) -> String {
    let by_name = |sample: usize| -> Value {
        let entry = |(model, rewards): (&ModelInfo, &Vec<f32>)| (model.name.clone(), json!(rewards[sample]));
        models.iter().zip(rewards).map(entry).collect::<Map<_, _>>().into()
    };
    let mut lines = String::new();
    let mut add = |line: Value| writeln!(lines, "{line}").expect("a string takes all");
    for set in sets {
        for pair in &set.pairs {
            add(json!({
                "pairs": set.name,
                "line": pair.line,
                "source": pair.source,
                "chosen_tokens": pair.chosen.tokens,
                "rejected_tokens": pair.rejected.tokens,
                "chosen": by_name(pair.chosen.index),
                "rejected": by_name(pair.rejected.index),
            }));
        }
        for unscorable in &set.unscorable {
            add(json!({"pairs": set.name, "line": unscorable.line, "error": unscorable.problem}));
        }
    }
    lines
}
