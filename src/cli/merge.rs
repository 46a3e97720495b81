//! `rewarm merge`: the arguments, a bar, warnings and the table.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::checkpoint::write::MAX_SHARD_BYTES;
use crate::cli::fetch::Fetcher;
use crate::cli::progress;
use crate::cli::stop;
use crate::cli::trial;
use crate::config::ConfigError;
use crate::config::coefficient_problems;
use crate::config::normalised;
use crate::model::trial::Subject;
use crate::offline::merge::Merge;
use crate::offline::merge::Options;
use crate::offline::merge::greedy::Greedy;
use crate::values::Format;

/// Averages the weights of reward models into one (WARM).
///
/// Members are Hugging Face directories, or models of the hub (org/name@revision), of one family: fine-tuned from one pretrain, with the same architecture,
/// vocabulary and head. What cannot be averaged is refused, what is odd is warned of. Sums run in f64 and are rounded
/// once. The result is an ordinary Hugging Face directory with the first member's config, tokenizer and chat template,
/// and rewarm-merge.json: what was merged, by digest, and how alike it was. It appears whole or not at all.
///
/// With --base, members may be LoRA adapters (PEFT directories) over it; each is merged into the base first.
#[derive(Debug, Args)]
pub(super) struct MergeArgs {
    /// The checkpoints, or LoRA adapters over --base.
    #[arg(required = true, value_name = "MEMBER")]
    members: Vec<PathBuf>,
    /// Where the merged checkpoint is written; must not exist yet.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// The members' shares, summing to 1 [default: equal].
    #[arg(long, value_delimiter = ',', value_name = "SHARE,SHARE", allow_negative_numbers = true)]
    coefficients: Option<Vec<f64>>,
    /// What the merge is stored in [default: what the members are stored in, the widest of them].
    #[arg(long)]
    dtype: Option<Format>,
    /// The pretrain: what adapters were trained on, and what the members' updates are measured from.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Adds members in order of their accuracy on these preference pairs (JSON lines), while it does not fall.
    #[arg(long, value_name = "PAIRS", conflicts_with = "coefficients")]
    greedy: Option<PathBuf>,
    /// A larger checkpoint is cut into files of at most this size.
    #[arg(long, value_name = "BYTES", default_value_t = MAX_SHARD_BYTES,
          value_parser = clap::value_parser!(u64).range(1..))]
    max_shard_bytes: u64,
}

pub(super) fn run(args: MergeArgs) -> anyhow::Result<()> {
    if let Some(coefficients) = &args.coefficients {
        let problems = coefficient_problems(coefficients, args.members.len());
        if !problems.is_empty() {
            return Err(ConfigError::from(problems).into());
        }
    }
    let mut fetcher = Fetcher::default();
    let members = args.members.iter().map(|member| fetcher.named(member)).collect::<Result<_, _>>()?;
    let base = args.base.as_deref().map(|base| fetcher.named(base)).transpose()?;
    let stop = stop::on_signal()?;
    let goes_on = || !stop.is_set();
    let mut options = Options {
        members,
        base,
        coefficients: args.coefficients.map(normalised),
        dtype: args.dtype,
        output: args.output,
        max_shard_bytes: args.max_shard_bytes,
    };
    let subject = |dir: &PathBuf| Subject::Checkpoint { dir: dir.clone(), base: options.base.clone() };
    trial::try_out(&options.members.iter().map(subject).collect::<Vec<_>>())?;
    let mut merge = Merge::open(options.clone())?;
    warn(merge.warnings());
    let mut greedy = None;
    if let Some(pairs) = &args.greedy {
        let bar = progress::counted("", "pairs");
        let mut progress = |doing: &str, done, total| {
            bar.set_message(doing.to_owned());
            bar.set_length(total);
            bar.set_position(done);
            goes_on()
        };
        let chosen = Greedy::choose(&options.members, options.base.as_deref(), pairs, &mut progress)?;
        bar.finish_and_clear();
        options.members = chosen.kept();
        merge = Merge::open(options)?;
        greedy = Some(chosen);
    }
    let bar = progress::bytes("merge");
    let told = merge.warnings().len();
    let report = merge.write(greedy, &mut |read, total| {
        bar.set_length(total);
        bar.set_position(read);
        goes_on()
    })?;
    bar.finish_and_clear();
    warn(&report.warnings[told..]);
    writeln!(std::io::stdout(), "{report}").context("write the answer")
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        // nobody may be reading; the provenance has it too
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
}
