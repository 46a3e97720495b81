//! `rewarm evaluate`: reads what was asked for, shows how far the evaluation is, prints a table and writes files.

use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;

use crate::cli::TruncationArg;
use crate::cli::fetch::Fetcher;
use crate::cli::progress;
use crate::cli::trial;
use crate::config::VariantOptions;
use crate::model::device::DeviceName;
use crate::model::dtype::Dtype;
use crate::model::scorer::Reduction;
use crate::model::trial::Subject;
use crate::model::variant::Mode;
use crate::offline::evaluate;
use crate::offline::evaluate::Config;
use crate::offline::evaluate::Curve;
use crate::offline::evaluate::NamedFile;
use crate::offline::evaluate::Progress;
use crate::offline::evaluate::Unit;
use crate::offline::score::DEFAULT_BATCH_TOKENS;
use crate::telemetry;

/// Compares members, their merge (WARM) and their ensemble (ENS) on preference pairs.
///
/// Each line of a pairs file is {"prompt", "chosen", "rejected"}, strings or lists of messages, with an optional
/// "source"; the file may be gzipped. All models judge the same pairs, each different sample once; intervals are of 95%:
/// Wilson's of shares, Tango's of differences between two models, with McNemar's exact test. Writes evaluation.json (every figure), rewards.jsonl (every reward) and index.html (one page
/// with plots, which needs no network) into --output, and prints a table.
///
/// A tie counts as wrong in "accuracy". Length is in tokens of prompt and response. Length-controlled accuracy is the
/// mean of the accuracies where the chosen response is longer and where it is shorter. ECE is the expected calibration
/// error of sigmoid(margin), in ten bins of equal count. Pairs that cannot be scored are counted and listed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct EvaluateArgs {
    /// Checkpoints of one family, directories or models of the hub; one alone is evaluated by itself.
    #[arg(long, value_name = "DIR,DIR", num_args = 1.., value_delimiter = ',', required = true)]
    members: Vec<String>,
    /// What members (and --gold) were trained on, where they are LoRA adapters (PEFT directories).
    #[arg(long, value_name = "DIR")]
    base: Option<String>,
    /// Files of pairs, each with a name for tables and plots [default name: the file's].
    #[arg(long, value_name = "NAME=FILE", num_args = 1.., required = true, value_parser = parse_pairs)]
    pairs: Vec<NamedFile>,
    /// Where the results go: a folder, made if need be.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// The members' merge, as made by `rewarm merge` [default: merged at load].
    #[arg(long, value_name = "DIR", conflicts_with = "coefficients")]
    warm: Option<PathBuf>,
    /// WARM: the members' shares, summing to 1 [default: equal].
    #[arg(long, value_delimiter = ',', value_name = "SHARE,SHARE")]
    coefficients: Option<Vec<f64>>,
    /// ENS: mean, min, median, mean-std=BETA or uwo=LAMBDA [default: mean].
    #[arg(long)]
    reduction: Option<Reduction>,
    /// What `rewarm train` wrote down (train.json): splits the file that was trained on, by its content, into pairs
    /// with their right label, pairs with a flipped label, and pairs held out.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// What the members were before fine-tuning, to compare with [default: the folder `start` that `rewarm train` leaves beside
    /// its record].
    #[arg(long, value_name = "DIR")]
    start: Option<PathBuf>,
    /// Another evaluation of the same pairs, its evaluation.json: WARM and ENS here are compared with those there, pair by pair.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Merges along the line between two members, at 0, 0.1, .. 1.
    #[arg(long, default_value = "first")]
    curve: Curve,
    /// The file of pairs that curves are measured on, by its name [default: the first that was not trained on].
    #[arg(long, value_name = "NAME")]
    curve_on: Option<String>,
    /// Accuracy by number of members: so many subsets of each size; 0: none.
    #[arg(long, value_name = "N", default_value_t = 10)]
    subsets: usize,
    /// Prompts with responses, {"prompt", "responses": [..]}, to choose the best of n from.
    #[arg(long, value_name = "FILE", requires = "gold")]
    best_of_n: Option<PathBuf>,
    /// The model that judges what was chosen.
    #[arg(long, value_name = "DIR", requires = "best_of_n")]
    gold: Option<PathBuf>,
    /// Of each bootstrap.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    resamples: u32,
    /// Of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What to compute in [default: f32].
    #[arg(long)]
    dtype: Option<Dtype>,
    /// auto, cpu, cuda, cuda:N, or several cards with commas; auto is the first card that can, else the CPU [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceName>,
    /// The limit for tokens, in place of the models' own.
    #[arg(long)]
    max_tokens: Option<usize>,
    /// What to do with a sample that is longer than the limit; a rejected one takes its pair with it.
    #[arg(long, default_value = "reject")]
    truncation: TruncationArg,
    /// A batch takes samples up to this many tokens.
    #[arg(long, default_value_t = DEFAULT_BATCH_TOKENS, value_parser = clap::value_parser!(u32).range(1..))]
    batch_tokens: u32,
}

const EXAMPLES: &str = "\
Examples:
  rewarm evaluate --members a,b,c --pairs val=val.jsonl ood=ood.jsonl.gz --output report
  rewarm evaluate --members a,b,c --pairs val=val.jsonl train=train.jsonl --record train.json --output report
  rewarm evaluate --members d,e,f --pairs val=val.jsonl --against report/evaluation.json --output report-2
  rewarm evaluate --members a,b,c --pairs val.jsonl --best-of-n samples.jsonl --gold judge --output report";

pub(super) fn run(args: EvaluateArgs) -> anyhow::Result<()> {
    telemetry::start(&telemetry::Config { level: telemetry::Level::warnings(), ..Default::default() });
    let output = args.output.clone();
    // Before anything slow: a folder that cannot be written is told at once.
    std::fs::create_dir_all(&output).with_context(|| format!("create {}", output.display()))?;
    tempfile::tempfile_in(&output).with_context(|| format!("write into {}", output.display()))?;
    let mut config = args.check()?;
    let mut fetcher = Fetcher::default();
    (config.members, config.base) = fetcher.family(&config.members, config.base.as_deref())?;
    config.warm = config.warm.map(|warm| fetcher.named(&warm)).transpose()?;
    config.start = config.start.map(|start| fetcher.named(&start)).transpose()?;
    if let Some((_, gold)) = &mut config.best_of_n {
        *gold = fetcher.named(gold)?;
    }

    let gold = config.best_of_n.as_ref().map(|(_, gold)| gold);
    let dirs = config.members.iter().chain(&config.warm).chain(&config.start).chain(gold);
    let subjects: Vec<Subject> =
        dirs.map(|dir| Subject::Checkpoint { dir: dir.clone(), base: config.base.clone() }).collect();
    trial::try_out(&subjects)?;

    let mut bar = Bar::default();
    let outcome = evaluate::run(&config, &mut |progress| bar.show(progress))?;
    bar.clear();
    evaluate::write(&outcome, &output)?;
    let page = output.join("index.html");
    let table = evaluate::table(&outcome.evaluation);
    writeln!(std::io::stdout(), "{table}\nSee {}", page.display()).context("write the table")
}

impl EvaluateArgs {
    /// What this means, or all that speaks against it.
    fn check(self) -> anyhow::Result<Config> {
        let options = |mode| VariantOptions {
            mode: Some(mode),
            members: Some(self.members.clone()),
            base: self.base.clone(),
            dtype: self.dtype,
            device: self.device.clone(),
            max_tokens: self.max_tokens,
            ..VariantOptions::default()
        };
        let warm = VariantOptions { coefficients: self.coefficients.clone(), ..options(Mode::Warm) };
        let ens = VariantOptions { reduction: self.reduction, ..options(Mode::Ens) };
        warm.check("warm", Path::new(""))?;
        let ens = ens.check("ens", Path::new(""))?;
        Ok(Config {
            members: ens.members,
            base: ens.base,
            warm: self.warm,
            coefficients: self.coefficients,
            reduction: ens.reduction,
            dtype: ens.dtype,
            device: ens.device,
            max_tokens: ens.max_tokens,
            truncation: self.truncation.into(),
            max_batch_tokens: self.batch_tokens as usize,
            pairs: self.pairs,
            record: self.record,
            start: self.start,
            against: self.against,
            curve: self.curve,
            curve_on: self.curve_on,
            subsets: self.subsets,
            best_of_n: self.best_of_n.zip(self.gold),
            resamples: self.resamples as usize,
            seed: self.seed,
        })
    }
}

/// `NAME=FILE`, or a file that is named after itself: `a/val.jsonl.gz` is `val`.
fn parse_pairs(text: &str) -> Result<NamedFile, String> {
    let (name, path) = match text.split_once('=') {
        Some((name, path)) => (name.to_owned(), PathBuf::from(path)),
        None => {
            let path = PathBuf::from(text);
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let name = name.strip_suffix(".gz").unwrap_or(&name);
            (name.strip_suffix(".jsonl").unwrap_or(name).to_owned(), path)
        }
    };
    if name.is_empty() || path.as_os_str().is_empty() {
        return Err("give NAME=FILE, or FILE".to_owned());
    }
    Ok(NamedFile { name, path })
}

/// One bar after the other.
#[derive(Default)]
struct Bar {
    of: String,
    bar: Option<ProgressBar>,
}

impl Bar {
    fn show(&mut self, progress: Progress<'_>) {
        if self.of != progress.what {
            self.clear();
            self.of = progress.what.to_owned();
            self.bar = Some(match progress.unit {
                Unit::Bytes => progress::bytes(progress.what),
                Unit::Tokens => progress::counted(progress.what, "tokens"),
            });
        }
        if let Some(bar) = &self.bar {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_name_is_named_after_itself() {
        let name = |text: &str| parse_pairs(text).map(|file| (file.name, file.path));
        assert_eq!(name("a/val.jsonl.gz"), Ok(("val".to_owned(), "a/val.jsonl.gz".into())));
        assert_eq!(name("x=a/val.jsonl"), Ok(("x".to_owned(), "a/val.jsonl".into())));
        assert_eq!(name("v.2.jsonl"), Ok(("v.2".to_owned(), "v.2.jsonl".into())));
        for bad in ["=a", "a=", ""] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
