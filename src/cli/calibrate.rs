//! `rewarm calibrate`: loads each member, shows how far it is, and writes when all are done.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;
use clap::Args;

use crate::checkpoint::lora;
use crate::cli::fetch::Fetcher;
use crate::cli::load;
use crate::cli::progress;
use crate::config::VariantOptions;
use crate::hub;
use crate::hub::HubId;
use crate::model::device::DeviceName;
use crate::model::golden;
use crate::model::golden::GoldenRewards;
use crate::model::manifest::Manifest;
use crate::model::reference::ReferenceRewards;
use crate::model::scorer::Calibration;
use crate::model::variant::Loader;
use crate::model::variant::Mode;
use crate::offline::calibrate;
use crate::offline::calibrate::Measured;
use crate::offline::score::DEFAULT_BATCH_TOKENS;
use crate::offline::score::Local;
use crate::telemetry;
use crate::text::Input;
use crate::text::Truncation;

/// Measures each member's rewards on reference texts: calibration and golden rewards.
///
/// The calibration, mean and standard deviation of a member's raw rewards, goes into `rewarm.json` beside its
/// weights: an ensemble reduces (reward - mean) / std, so that its minimum or median compares like with like. It is
/// part of an ensemble's fingerprint.
///
/// What the member answered on each reference, lengths and rewards alone, goes into `rewarm.reference.json`: a server tells
/// by it how far its traffic has moved from them (`rewarm_drift`).
///
/// Golden rewards, some of the references with the rewards they got, go into `rewarm.golden.json`: a server scores
/// them at every start and reload, and refuses models that do not give them any more.
///
/// Rewards are computed in f32. Weights are never changed, and nothing is written before all members are done.
#[derive(Debug, Args)]
pub(super) struct CalibrateArgs {
    /// Checkpoints: Hugging Face directories.
    #[arg(required = true, value_name = "MEMBER")]
    members: Vec<PathBuf>,
    /// What members were trained on that are LoRA adapters (PEFT directories); their files are written beside the
    /// adapter.
    #[arg(long, value_name = "DIR")]
    base: Option<String>,
    /// Texts, JSON lines, plain or gzipped: lines as for `rewarm score`, or preference pairs, of which both
    /// responses count.
    #[arg(long, required_unless_present = "clear", num_args = 1.., value_name = "FILE")]
    references: Vec<PathBuf>,
    /// How many golden rewards to keep, of texts of all lengths; 0 leaves those that are there.
    #[arg(long, value_name = "N", default_value_t = 32)]
    golden: usize,
    /// Writes golden rewards, and leaves the calibration as it is.
    #[arg(long)]
    golden_only: bool,
    /// Which texts become golden samples.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Measures and reports, and writes nothing.
    #[arg(long)]
    dry_run: bool,
    /// Removes calibration and golden rewards instead.
    #[arg(long, conflicts_with_all = ["base", "references", "golden", "golden_only", "seed", "dry_run", "device", "batch_tokens"])]
    clear: bool,
    /// auto, cpu, cuda, cuda:N, or several cards with commas; auto is the first card that can, else the CPU [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceName>,
    /// A batch takes samples up to this many tokens.
    #[arg(long, default_value_t = DEFAULT_BATCH_TOKENS, value_parser = clap::value_parser!(u32).range(1..))]
    batch_tokens: u32,
}

pub(super) fn run(args: &CalibrateArgs) -> anyhow::Result<()> {
    telemetry::start(&telemetry::Config { level: telemetry::Level::warnings(), ..Default::default() });
    if args.golden_only && args.golden == 0 {
        bail!("--golden-only with --golden 0 leaves nothing to do");
    }
    let members = members(args)?;
    if args.base.is_some() && !members.iter().any(|member| lora::is_adapter(member)) {
        bail!("--{}", lora::NO_ADAPTER);
    }
    if args.clear {
        return clear(&members);
    }
    let references = calibrate::read_references(&args.references).context("read the references")?;
    let mut findings = Vec::with_capacity(members.len());
    for member in &members {
        let finding = measure(args, member, &references);
        findings.push(finding.with_context(|| format!("calibrate {}", member.display()))?);
    }
    print(&report(args, &findings))?;
    if !args.dry_run {
        for finding in &findings {
            finding.write().with_context(|| format!("calibrate {}", finding.member.display()))?;
        }
    }
    Ok(())
}

/// What was found of one member, and shall be written.
struct Finding<'a> {
    member: &'a Path,
    measured: Measured,
    old: Option<Calibration>,
    /// None with `--golden-only`.
    calibration: Option<Calibration>,
    /// None with `--golden-only`.
    reference: Option<ReferenceRewards>,
    /// None with `--golden 0`.
    golden: Option<GoldenRewards>,
}

impl Finding<'_> {
    fn write(&self) -> anyhow::Result<()> {
        if let Some(golden) = &self.golden {
            golden.write(self.member)?;
        }
        if let Some(reference) = &self.reference {
            reference.write(self.member)?;
        }
        if let Some(calibration) = self.calibration {
            Manifest::write_calibration(self.member, Some(calibration))?;
        }
        Ok(())
    }
}

/// Each is there, and given once, or it would be measured twice and reported as two.
fn members(args: &CalibrateArgs) -> anyhow::Result<Vec<PathBuf>> {
    let mut fetcher = Fetcher::default();
    let mut find = |member: &PathBuf| {
        let place = hub::place(member, Path::new("")).map_err(anyhow::Error::msg)?;
        match HubId::of(&place) {
            Some(id) if !args.dry_run => bail!(
                "{id} is a model of the hub, whose copy here others use too, and this command writes beside the weights: \
                 download it, `hf download {} --local-dir DIR`, and give that directory",
                id.download_arguments()
            ),
            _ => fetcher.dir(&place),
        }
    };
    let paths = args.members.iter().map(&mut find).collect::<Result<Vec<_>, _>>()?;
    let mut seen = HashSet::new();
    for path in &paths {
        if !seen.insert(path.canonicalize().with_context(|| format!("find {}", path.display()))?) {
            bail!("{} is given twice", path.display());
        }
    }
    Ok(paths)
}

fn measure<'a>(args: &CalibrateArgs, member: &'a Path, references: &[Input]) -> anyhow::Result<Finding<'a>> {
    let options = VariantOptions {
        mode: Some(Mode::Warm),
        model: Some(member.display().to_string()),
        base: args.base.clone().filter(|_| lora::is_adapter(member)),
        device: args.device.clone(),
        ..VariantOptions::default()
    };
    let config = options.check("member", Path::new(""))?;
    let variant = load::load(&mut Loader::default(), &config)?;
    let pooling = variant.info.pooling;
    let max_batch_tokens = args.batch_tokens as usize;
    let model = Local { variant, truncation: Truncation::Reject, max_batch_tokens };

    let bar = progress::counted(&format!("calibrate {}", member.display()), "texts");
    bar.set_length(references.len() as u64);
    let measured = calibrate::measure(&model, references, &mut |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let golden =
        (args.golden > 0).then(|| measured.golden_rewards(args.golden, args.seed, pooling)).transpose()?;
    let calibration = (!args.golden_only).then(|| measured.calibration()).transpose()?;
    let reference = calibration.is_some().then(|| measured.reference_rewards(references));
    Ok(Finding { member, old: Manifest::load(member)?.calibration, measured, calibration, reference, golden })
}

fn report(args: &CalibrateArgs, findings: &[Finding<'_>]) -> String {
    let mut rows = vec![
        ["member", "texts", "too long", "mean", "std", "min", "max", "calibration"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for Finding { member, measured, old, calibration, .. } in findings {
        let count = measured.samples.len();
        let (mean, std) = measured.mean_and_std();
        let (min, max) = measured.range();
        let change = match calibration {
            None => format!("{}, stays", shown(*old)),
            new if new == old => format!("{}, as before", shown(*old)),
            new => format!("{} → {}", shown(*old), shown(*new)),
        };
        let mut row = vec![member.display().to_string(), count.to_string(), measured.too_long.to_string()];
        row.extend([mean, std, f64::from(min), f64::from(max)].map(|value| format!("{value:.4}")));
        row.push(change);
        rows.push(row);
    }
    let mut text = aligned(&rows);
    for Finding { member, measured, golden, .. } in findings {
        if let Some(reason) = measured.unscorable.first() {
            let count = measured.unscorable.len();
            text += &format!("{}: {count} texts cannot be scored: {reason}\n", member.display());
        }
        if let Some(golden) = golden {
            let lengths = || golden.samples.iter().map(|sample| sample.tokens);
            let (shortest, longest) = (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0));
            text += &format!(
                "{}: {} golden rewards, of {shortest} to {longest} tokens\n",
                member.join(golden::FILE_NAME).display(),
                golden.samples.len()
            );
        }
    }
    if args.dry_run {
        text += "dry run: nothing was written\n";
    }
    text
}

fn shown(calibration: Option<Calibration>) -> String {
    match calibration {
        Some(Calibration { mean, std }) => format!("({mean:.4}, {std:.4})"),
        None => "none".to_owned(),
    }
}

/// Columns that line up: names to the left, numbers to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let last = rows[0].len() - 1;
    let widths: Vec<usize> = (0..=last)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("{cell:<width$}"),
            _ if column == last => cell.clone(),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ") + "\n"
    };
    rows.iter().map(line).collect()
}

fn clear(members: &[PathBuf]) -> anyhow::Result<()> {
    for member in members {
        let clear = || {
            let of_references = ReferenceRewards::remove(member)?;
            let calibration = Manifest::write_calibration(member, None)?;
            anyhow::Ok((calibration || of_references, GoldenRewards::remove(member)?))
        };
        let removed = match clear().with_context(|| format!("clear {}", member.display()))? {
            (true, true) => "removed calibration and golden rewards",
            (true, false) => "removed the calibration",
            (false, true) => "removed the golden rewards",
            (false, false) => "there was nothing to remove",
        };
        print(&format!("{}: {removed}\n", member.display()))?;
    }
    Ok(())
}

fn print(text: &str) -> anyhow::Result<()> {
    std::io::stdout().write_all(text.as_bytes()).context("write the report")
}
