//! Another evaluation of the same pairs, to compare with: what came of another recipe, or of the model before this one.
//!
//! Its `evaluation.json` says which pairs it judged, and `rewards.jsonl` beside it what each model gave them. Both sides must have
//! judged the same lines of files of the same content: only then can they be compared pair by pair.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use serde::Deserialize;

use crate::disk;
use crate::offline::evaluate::bootstrap::Resamples;
use crate::offline::evaluate::evaluation::Difference;
use crate::offline::evaluate::evaluation::Estimate;
use crate::offline::evaluate::evaluation::Kind;
use crate::offline::evaluate::evaluation::ModelInfo;
use crate::offline::evaluate::evaluation::Part;
use crate::offline::evaluate::interval::Discordant;
use crate::offline::evaluate::output::EVALUATION;
use crate::offline::evaluate::output::REWARDS;
use crate::offline::evaluate::sets::PairSet;

/// Of rewards of millions of pairs.
const MOST_BYTES: u64 = 4 << 30;

/// What another evaluation found.
#[derive(Debug)]
pub(super) struct Other {
    path: PathBuf,
    models: Vec<Model>,
    sets: Vec<Set>,
    /// By set and line: each model's chosen and rejected reward.
    pairs: BTreeMap<(String, usize), [BTreeMap<String, f64>; 2]>,
}

#[derive(Debug, Deserialize)]
struct Evaluation {
    models: Vec<Model>,
    sets: Vec<Set>,
}

#[derive(Debug, Deserialize)]
struct Model {
    name: String,
    kind: Kind,
}

#[derive(Debug, Deserialize)]
struct Set {
    name: String,
    part: Part,
    digest: String,
}

#[derive(Debug, Deserialize)]
struct Line {
    pairs: String,
    line: usize,
    /// Absent of pairs that could not be scored.
    chosen: Option<BTreeMap<String, f64>>,
    rejected: Option<BTreeMap<String, f64>>,
}

impl Other {
    /// Reads `evaluation.json` at `path` and the rewards beside it.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let path = if path.is_dir() { path.join(EVALUATION) } else { path.to_owned() };
        let rewards = path.with_file_name(REWARDS);
        let read = |path: &Path| {
            disk::read_to_string(path, MOST_BYTES).with_context(|| format!("read {}", path.display()))
        };
        let Evaluation { models, sets } = serde_json::from_str(&read(&path)?)
            .with_context(|| format!("{}: not as rewarm evaluate writes it", path.display()))?;
        let mut pairs = BTreeMap::new();
        for (number, line) in (1..).zip(read(&rewards)?.lines()) {
            let line: Line = serde_json::from_str(line).with_context(|| {
                format!("{}:{number}: not as rewarm evaluate writes it", rewards.display())
            })?;
            if let (Some(chosen), Some(rejected)) = (line.chosen, line.rejected) {
                pairs.insert((line.pairs, line.line), [chosen, rejected]);
            }
        }
        Ok(Self { path, models, sets, pairs })
    }

    /// How models of this evaluation differ from those there that are of their kind: WARM, ENS, or where there is neither the
    /// only members. `margins` are of the set's pairs, one list a model.
    pub(super) fn differences(
        &self,
        set: &PairSet,
        models: &[ModelInfo],
        margins: &[Vec<f64>],
        resamples: usize,
        seed: u64,
    ) -> anyhow::Result<Vec<Difference>> {
        let path = self.path.display();
        let Some(theirs) =
            self.sets.iter().find(|other| other.digest == set.digest && other.part == set.part)
        else {
            let known: Vec<&str> = self.sets.iter().map(|set| set.name.as_str()).collect();
            bail!(
                "{path} has no set of the same content as {}: it was made on {}, which have other pairs",
                set.name,
                known.join(", ")
            );
        };
        let judged = self.pairs.range((theirs.name.clone(), 0)..=(theirs.name.clone(), usize::MAX));
        let judged: Vec<(usize, &[BTreeMap<String, f64>; 2])> =
            judged.map(|((_, line), rewards)| (*line, rewards)).collect();
        let lines: Vec<usize> = set.pairs.iter().map(|pair| pair.line).collect();
        let first_apart = lines.iter().zip(&judged).find(|(line, (other, _))| *line != other);
        ensure!(
            lines.len() == judged.len() && first_apart.is_none(),
            "{path} judged other lines of {}: {} pairs there, {} here{}; the same limits for tokens and truncation make them alike",
            set.name,
            judged.len(),
            lines.len(),
            first_apart.map_or_else(String::new, |(line, _)| format!(", the first apart is line {line}"))
        );
        let mut differences = Vec::new();
        for (model, margins) in models.iter().zip(margins) {
            let Some(other) = self.counterpart(models, model) else { continue };
            let theirs: Vec<bool> = judged
                .iter()
                .map(|(line, [chosen, rejected])| match (chosen.get(other), rejected.get(other)) {
                    (Some(chosen), Some(rejected)) => Ok(chosen > rejected),
                    _ => bail!("{path}: line {line} of {} has no reward of {other}", set.name),
                })
                .collect::<anyhow::Result<_>>()?;
            let ours: Vec<bool> = margins.iter().map(|margin| *margin > 0.0).collect();
            let discordant = Discordant::count(&ours, &theirs);
            let columns =
                [&ours, &theirs].map(|hits| hits.iter().map(|&hit| f64::from(u8::from(hit))).collect());
            let bootstrap = Resamples::new(&columns, resamples, seed).interval(|means| means[0] - means[1]);
            let value = (discordant.only_of as f64 - discordant.only_against as f64) / ours.len() as f64;
            differences.push(Difference {
                of: model.name.clone(),
                against: format!("{other} there"),
                estimate: Estimate { value, interval: discordant.interval(), bootstrap },
                paired: Some(discordant.into()),
            });
        }
        ensure!(
            !differences.is_empty(),
            "{path} has neither WARM nor ENS, as there are here: nothing can be compared"
        );
        Ok(differences)
    }

    /// The model there that is what this one is here.
    fn counterpart(&self, models: &[ModelInfo], model: &ModelInfo) -> Option<&str> {
        let of_kind = |kind: Kind| self.models.iter().filter(move |other| other.kind == kind);
        let is_only_member = models.iter().filter(|model| model.kind == Kind::Member).count() == 1
            && of_kind(Kind::Member).count() == 1;
        match model.kind {
            Kind::Warm | Kind::Ens => of_kind(model.kind).next().map(|other| other.name.as_str()),
            Kind::Member if is_only_member => of_kind(Kind::Member).next().map(|other| other.name.as_str()),
            Kind::Member | Kind::Start => None,
        }
    }
}
