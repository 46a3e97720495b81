//! The files of an evaluation: `evaluation.json`, `rewards.jsonl`, `index.html`; each appears whole or not at all.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::checkpoint::write::replace_file;
use crate::offline::evaluate::Outcome;
use crate::offline::evaluate::evaluation::ModelInfo;
use crate::offline::evaluate::page::page;
use crate::offline::evaluate::sets::PairSet;

/// Every figure.
pub(super) const EVALUATION: &str = "evaluation.json";
/// Every reward.
pub(super) const REWARDS: &str = "rewards.jsonl";

/// Writes all three into `folder`, over older ones.
pub fn write(outcome: &Outcome, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let json =
        serde_json::to_string_pretty(&outcome.evaluation).context("write the evaluation as JSON")? + "\n";
    replace_file(&folder.join(EVALUATION), json.as_bytes())?;
    replace_file(&folder.join(REWARDS), outcome.rewards.as_bytes())?;
    Ok(replace_file(&folder.join("index.html"), page(&outcome.evaluation)?.as_bytes())?)
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
