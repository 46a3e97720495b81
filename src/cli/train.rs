//! `rewarm train`: shows how far it is, and prints a table at the end.

use std::collections::BTreeSet;
use std::env;
use std::io::IsTerminal;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use clap::Args;
use indicatif::ProgressBar;

use crate::cli::fetch::Fetcher;
use crate::cli::progress;
use crate::cli::stop;
use crate::cli::trial;
use crate::config::train::TrainOptions;
use crate::model::trial::Subject;
use crate::offline::table::Table;
use crate::offline::train;
use crate::offline::train::Event;
use crate::offline::train::Outcome;
use crate::offline::train::config::Config;
use crate::offline::train::data::DataRecord;
use crate::offline::train::family::FamilyRecord;
use crate::telemetry;

/// Trains a family of reward models on preference pairs: one shared head, then members that can be averaged (WARM).
///
/// A linear probe of the frozen base learns the head that all members start from. Each member is then fine-tuned with
/// its own learning rate, dropout and order of the pairs (Bradley-Terry loss, AdamW), and written to OUTPUT/member-K as
/// a Hugging Face directory with its record, train.json. OUTPUT/logs has a line for each step, OUTPUT/train.svg a plot.
///
/// Ctrl-C (or SIGTERM) stops after the step; a second one at once. The same command goes on from there, also after a
/// kill, and ends with the same weights, bit for bit, as if it had never stopped.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct TrainArgs {
    #[command(flatten)]
    options: TrainOptions,
    /// Reads and counts the pairs, checks the base and the settings, says what would be done, and exits 0 or 1.
    #[arg(long)]
    check: bool,
}

const EXAMPLES: &str = "\
Examples:
  rewarm train --config train.toml
  rewarm train --base path/to/base --pairs pairs.jsonl.gz --output family --num-members 4 --epochs 2";

pub(super) fn run(args: &TrainArgs) -> anyhow::Result<()> {
    start_again_with_threads_told();
    telemetry::start(&telemetry::Config { level: telemetry::Level::warnings(), ..Default::default() });
    let mut config = args.options.load()?;
    let mut fetcher = Fetcher::default();
    for base in config.members.iter_mut().map(|member| &mut member.base).chain([&mut config.base]) {
        *base = fetcher.dir(base)?;
    }
    let bases: BTreeSet<&PathBuf> =
        config.members.iter().map(|member| &member.base).chain([&config.base]).collect();
    let subjects: Vec<Subject> =
        bases.into_iter().map(|dir| Subject::Checkpoint { dir: dir.clone(), base: None }).collect();
    trial::try_out(&subjects)?;
    if args.check {
        let data = train::check(&config)?;
        let plan = format!("{}{}", describe(&data), members(&config));
        return write!(std::io::stdout(), "{plan}").context("write the answer");
    }
    let stop = stop::on_signal()?;
    let mut screen = Screen::new(config.members.len());
    let outcome = train::run(&config, &stop, &mut |event| screen.show(event));
    screen.bar.finish_and_clear();
    match outcome? {
        Outcome::Finished(record) => {
            let (table, output) = (summary(&record), config.output.display());
            write!(
                std::io::stdout(),
                "{table}\nthe family is in {output}, its curves in {output}/train.svg\n"
            )
            .context("write the table")
        }
        Outcome::Stopped { at } => bail!("stopped at {at}; the same command goes on from there"),
    }
}

/// Replaces this process by one whose environment tells candle about threads; returns if it does so already.
///
/// Micro-batches run on threads of ours, and candle would spread each operation over threads of its own, one caller at
/// a time, and read /proc/cpuinfo before each product: six times slower, seen on two cores. It asks nothing but
/// the environment, which a program cannot change safely once it runs.
fn start_again_with_threads_told() {
    const OF_AN_OPERATION: &str = "CANDLE_NUM_THREADS";
    const OF_RAYON: &str = "RAYON_NUM_THREADS";
    if [OF_AN_OPERATION, OF_RAYON].iter().all(|name| env::var_os(name).is_some()) {
        return;
    }
    let threads = env::var(OF_RAYON).unwrap_or_else(|_| rayon::current_num_threads().to_string());
    if let Ok(program) = env::current_exe() {
        // comes back only if it fails: then we are slower, not wrong
        let mut again = Command::new(program);
        let _ = again.args(env::args_os().skip(1)).env(OF_AN_OPERATION, "1").env(OF_RAYON, threads).exec();
    }
}

/// How many pairs there are, and what was left out.
fn describe(data: &DataRecord) -> String {
    let mut lines = String::new();
    for file in &data.training {
        lines += &format!("{}: {} pairs to train on", file.path.display(), file.training_lines.len());
        let counts = [
            (file.flipped_lines.len(), "of them turned round"),
            (file.truncated_pairs, "of them cut to fit"),
            (file.too_long_lines.len(), "left out, too long"),
            (file.equal_lines.len(), "left out, both responses the same"),
        ];
        lines += &list(&counts);
    }
    for file in &data.validation {
        lines += &format!("{}: {} pairs to validate on", file.path.display(), file.validation_lines.len());
        let counts = [
            (file.too_long_lines.len(), "left out, too long"),
            (file.equal_lines.len(), "left out, both responses the same"),
        ];
        lines += &list(&counts);
    }
    lines
}

fn list(counts: &[(usize, &str)]) -> String {
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    counts.map(|(count, what)| format!("; {count} {what}")).collect::<String>() + "\n"
}

/// What each member will be.
fn members(config: &Config) -> Table {
    let mut table = Table::new(&["member", "base", "learning rate", "dropout", "epochs", "seed"]);
    for (index, own) in config.members.iter().enumerate() {
        table.row([
            format!("member-{index}"),
            own.base.display().to_string(),
            format!("{:.2e}", own.learning_rate),
            format!("{:.3}", own.dropout),
            own.epochs.to_string(),
            own.seed.to_string(),
        ]);
    }
    table
}

/// What each member became.
fn summary(record: &FamilyRecord) -> Table {
    let has_validation = record.results.values().any(|result| result.validation.is_some());
    let mut headers =
        vec!["member", "learning rate", "dropout", "epochs", "steps", "train loss", "train acc."];
    if has_validation {
        headers.extend(["val. loss", "val. acc.", "val. margin"]);
    }
    headers.extend(["pairs/s", "time"]);
    let mut table = Table::new(&headers);
    for (index, result) in &record.results {
        let own = &record.members[*index];
        let pairs = (result.training.pairs * own.epochs) as f64;
        let mut row = vec![
            format!("member-{index}"),
            format!("{:.2e}", own.learning_rate),
            format!("{:.3}", own.dropout),
            own.epochs.to_string(),
            result.steps.to_string(),
            format!("{:.4}", result.training.loss),
            format!("{:.4}", result.training.accuracy),
        ];
        if let Some(validation) = &result.validation {
            row.extend(
                [validation.loss, validation.accuracy, validation.margin].map(|value| format!("{value:.4}")),
            );
        }
        row.push(format!("{:.1}", pairs / result.seconds.max(1e-9)));
        row.push(indicatif::HumanDuration(Duration::from_secs_f64(result.seconds)).to_string());
        table.row(row);
    }
    table
}

/// A bar on a terminal; elsewhere a line now and then.
struct Screen {
    bar: ProgressBar,
    is_terminal: bool,
    num_members: usize,
    /// Of the member under way.
    steps: usize,
    last_line: Instant,
    /// Since the member began or was gone on with.
    pairs: usize,
    tokens: usize,
    seconds: f64,
}

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

impl Screen {
    fn new(num_members: usize) -> Self {
        let bar = progress::styled("{prefix} [{bar:30}] {percent}% {msg}, {eta} left");
        let is_terminal = std::io::stderr().is_terminal();
        let last_line = Instant::now();
        Self { bar, is_terminal, num_members, steps: 0, last_line, pairs: 0, tokens: 0, seconds: 0.0 }
    }

    /// A line that stays.
    fn line(&self, line: &str) {
        if self.is_terminal {
            self.bar.println(line);
        } else {
            // Not `eprintln`, which panics when nobody reads.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    fn begin(&mut self, prefix: String, length: usize, position: usize) {
        self.bar.set_prefix(prefix);
        self.bar.set_message("");
        self.bar.set_length(length as u64);
        self.bar.set_position(position as u64);
        self.bar.reset_eta();
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Data(data) => self.line(describe(data).trim_end()),
            Event::ProbeProgress { done, pairs } => {
                if self.bar.prefix() != "probe" {
                    self.begin("probe".to_owned(), *pairs, 0);
                }
                self.bar.set_position(*done as u64);
            }
            Event::Probed(probe) => self.line(&format!(
                "the shared head: loss {:.4}, accuracy {:.4} on the training pairs, l2 {}",
                probe.loss, probe.accuracy, probe.l2
            )),
            Event::MemberBegins { member, own, done, steps, tokens } => {
                (self.steps, self.pairs, self.tokens, self.seconds) = (*steps, 0, 0, 0.0);
                let resumed = if *done > 0 { format!(", going on after step {done}") } else { String::new() };
                self.line(&format!(
                    "member-{member} of {}: learning rate {:.2e}, dropout {:.3}, {steps} steps{resumed}",
                    self.num_members, own.learning_rate, own.dropout
                ));
                self.begin(format!("member-{member}"), tokens.0, tokens.1);
            }
            Event::Stepped { member, line } => {
                self.pairs += line.metrics.pairs;
                self.tokens += line.tokens;
                self.seconds += line.seconds;
                let (pairs, tokens) = (self.pairs as f64 / self.seconds, self.tokens as f64 / self.seconds);
                let message = format!(
                    "step {}/{} loss {:.4} accuracy {:.2} | {pairs:.1} pairs/s {tokens:.0} tokens/s",
                    line.step, self.steps, line.metrics.loss, line.metrics.accuracy
                );
                self.bar.inc(line.tokens as u64);
                if !self.is_terminal && (self.last_line.elapsed() >= LINE_EVERY || line.step == self.steps) {
                    self.line(&format!("member-{member} {message}"));
                    self.last_line = Instant::now();
                }
                self.bar.set_message(message);
            }
            Event::ValidationProgress { done, pairs, .. } => {
                self.bar.set_message(format!("validation {done}/{pairs}"));
            }
            Event::Validated { member, line } => self.line(&format!(
                "member-{member} after step {}: validation loss {:.4}, accuracy {:.4}, margin {:.4}",
                line.step, line.metrics.loss, line.metrics.accuracy, line.metrics.margin
            )),
            Event::Finished { member, path, is_old } => {
                let was = if *is_old { "was there already" } else { "is written" };
                self.line(&format!("member-{member} {was}: {}", path.display()));
            }
        }
    }
}
