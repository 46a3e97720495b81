//! `rewarm train`: shows how far it is, and prints a table at the end.

use std::collections::BTreeSet;
use std::collections::VecDeque;
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
use indicatif::HumanCount;
use indicatif::HumanDuration;
use indicatif::ProgressBar;

use crate::cli::fetch::Fetcher;
use crate::cli::progress;
use crate::cli::stop;
use crate::cli::trial;
use crate::config::train::TrainOptions;
use crate::model::trial::Subject;
use crate::offline::table::Table;
use crate::offline::train;
use crate::offline::train::Checked;
use crate::offline::train::Event;
use crate::offline::train::Outcome;
use crate::offline::train::config::Config;
use crate::offline::train::data::DataRecord;
use crate::offline::train::family::FamilyRecord;
use crate::offline::train::family::MemberResult;
use crate::offline::train::metrics::Metrics;
use crate::offline::train::plan::Plan;
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
        let Checked { config, data, plan } = train::check(&config)?;
        let told = format!("{}{}{}\n", describe(&data), members(&config), work(&plan));
        return write!(std::io::stdout(), "{told}").context("write the answer");
    }
    let stop = stop::on_signal()?;
    let mut screen = Screen::new(config.members.len());
    let outcome = train::run(&config, &stop, &mut |event| screen.show(event));
    screen.bar.finish_and_clear();
    match outcome? {
        Outcome::Finished(record) => {
            let (table, output) = (summary(&record), config.output.display());
            let warnings: String =
                record.warnings.iter().map(|warning| format!("\nwarning: {warning}\n")).collect();
            write!(
                std::io::stdout(),
                "{table}{warnings}\nthe family is in {output}, its curves in {output}/train.svg\n"
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

/// How much work it is.
fn work(plan: &Plan) -> String {
    let Plan { steps, training_tokens, other_tokens, threads, time } = plan;
    let seconds = time.as_secs_f64();
    let time = match seconds {
        ..0.95 => "less than a second".to_owned(),
        ..90.0 => format!("about {seconds:.0} seconds"),
        ..5400.0 => format!("about {:.0} minutes", seconds / 60.0),
        _ => format!("about {:.1} hours", seconds / 3600.0),
    };
    let tokens = |tokens: usize| HumanCount(tokens as u64);
    format!(
        "{steps} steps in all: {} tokens to learn from and {} to look at, {time} on {threads} threads",
        tokens(*training_tokens),
        tokens(*other_tokens)
    )
}

/// Which step a member was taken after, and why.
fn kept(result: &MemberResult) -> String {
    let MemberResult { steps, planned_steps, kept_step, validation, validation_at_start, .. } = result;
    let (Some(validation), Some(start)) = (validation, validation_at_start) else {
        return format!("its last step, {steps}, is kept");
    };
    let early = if steps < planned_steps {
        format!("; stopped after step {steps} of {planned_steps}")
    } else {
        String::new()
    };
    format!(
        "step {kept_step} is kept: validation loss {:.4}, before fine-tuning {:.4}{early}",
        validation.loss, start.loss
    )
}

/// What each member will be.
fn members(config: &Config) -> Table {
    let mut table = Table::new(&["member", "base", "learning rate", "dropout", "epochs", "seed"]);
    for (index, own) in config.members.iter().enumerate() {
        table.row([
            format!("member-{index}"),
            own.base.display().to_string(),
            format!("{:.1e}", own.learning_rate),
            format!("{:.3}", own.dropout),
            own.epochs.to_string(),
            own.seed.to_string(),
        ]);
    }
    table
}

/// What each member became, below what all of them were before.
fn summary(record: &FamilyRecord) -> Table {
    let results = record.results.values();
    let before = results.clone().find_map(|result| result.validation_at_start);
    let mut headers = vec!["", "rate", "dropout", "kept step", "loss, last epoch", "acc."];
    if before.is_some() {
        headers.extend(["val. loss", "acc."]);
    }
    headers.push("time");
    let mut table = Table::new(&headers);
    let none = || "–".to_owned();
    let figure = |value: f64| format!("{value:.4}");
    let validation = |metrics: Option<Metrics>| -> Vec<String> {
        let figures = metrics.map(|metrics| vec![figure(metrics.loss), figure(metrics.accuracy)]);
        before.map_or_else(Vec::new, |_| figures.unwrap_or_else(|| vec![none(), none()]))
    };
    let mut row = vec!["before".to_owned(), none(), none(), "0".to_owned()];
    row.extend(match &record.probe {
        Some(probe) => [figure(probe.loss), figure(probe.accuracy)],
        None => [none(), none()],
    });
    row.extend(validation(before));
    row.push(none());
    table.row(row);
    for (index, result) in &record.results {
        let own = &record.members[*index];
        let mut row = vec![
            format!("member-{index}"),
            format!("{:.1e}", own.learning_rate),
            format!("{:.3}", own.dropout),
            format!("{} of {}", result.kept_step, result.planned_steps),
            figure(result.training.loss),
            figure(result.training.accuracy),
        ];
        row.extend(validation(result.validation));
        row.push(format!("{:#}", HumanDuration(Duration::from_secs_f64(result.seconds))));
        table.row(row);
    }
    table
}

/// A bar on a terminal; elsewhere a line now and then.
struct Screen {
    bar: ProgressBar,
    is_terminal: bool,
    num_members: usize,
    /// What is under way.
    of: String,
    /// Of the member under way.
    steps: usize,
    last_line: Instant,
    /// Pairs, tokens and seconds of the last steps.
    recent: VecDeque<(usize, usize, f64)>,
}

/// Rates are of steps that took so long together.
const RECENT_SECONDS: f64 = 10.0;

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

impl Screen {
    fn new(num_members: usize) -> Self {
        let bar = progress::styled("{percent}%");
        let is_terminal = std::io::stderr().is_terminal();
        let last_line = Instant::now();
        Self {
            bar,
            is_terminal,
            num_members,
            of: String::new(),
            steps: 0,
            last_line,
            recent: VecDeque::new(),
        }
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
        self.bar.set_message(prefix.clone());
        self.of = prefix;
        self.bar.set_length(length as u64);
        self.bar.set_position(position as u64);
        self.bar.reset_eta();
    }

    fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Data(data) => self.line(describe(data).trim_end()),
            Event::Planned(plan) => self.line(&work(plan)),
            Event::ProbeProgress { done, pairs } => {
                if self.of != "probe" {
                    self.begin("probe".to_owned(), *pairs, 0);
                }
                self.bar.set_position(*done as u64);
            }
            Event::Probed(probe) => self.line(&format!(
                "the shared head: loss {:.4}, accuracy {:.4} on the training pairs, l2 {}",
                probe.loss, probe.accuracy, probe.l2
            )),
            Event::MemberBegins { member, own, done, steps, tokens } => {
                (self.steps, self.recent) = (*steps, VecDeque::new());
                let resumed = if *done > 0 { format!(", going on after step {done}") } else { String::new() };
                self.line(&format!(
                    "member-{member} of {}: learning rate {:.2e}, dropout {:.3}, {steps} steps{resumed}",
                    self.num_members, own.learning_rate, own.dropout
                ));
                self.begin(format!("member-{member}"), tokens.0, tokens.1);
            }
            Event::Stepped { member, line } => {
                self.recent.push_back((line.metrics.pairs, line.tokens, line.seconds));
                let seconds = |recent: &VecDeque<(usize, usize, f64)>| -> f64 {
                    recent.iter().map(|(_, _, seconds)| seconds).sum()
                };
                while self.recent.len() > 1 && seconds(&self.recent) - self.recent[0].2 > RECENT_SECONDS {
                    self.recent.pop_front();
                }
                let seconds = seconds(&self.recent);
                let pairs = self.recent.iter().map(|(pairs, ..)| pairs).sum::<usize>() as f64 / seconds;
                let tokens = self.recent.iter().map(|(_, tokens, _)| tokens).sum::<usize>() as f64 / seconds;
                let message = format!(
                    "step {}/{} loss {:.4} accuracy {:.2} | {pairs:.1} pairs/s {tokens:.0} tokens/s",
                    line.step, self.steps, line.metrics.loss, line.metrics.accuracy
                );
                self.bar.inc(line.tokens as u64);
                if !self.is_terminal && (self.last_line.elapsed() >= LINE_EVERY || line.step == self.steps) {
                    self.line(&format!("member-{member} {message}"));
                    self.last_line = Instant::now();
                }
                self.bar.set_message(format!("{} {message}", self.of));
            }
            Event::ValidationProgress { done, pairs, .. } => {
                self.bar.set_message(format!("{} validation {done}/{pairs}", self.of));
            }
            Event::Validated { member, line } => self.line(&format!(
                "member-{member} after step {}: validation loss {:.4}, accuracy {:.4}, margin {:.4}",
                line.step, line.metrics.loss, line.metrics.accuracy, line.metrics.margin
            )),
            Event::Finished { member, path, result, is_old } => {
                let was = if *is_old { "was there already" } else { "is written" };
                self.line(&format!("member-{member} {was}: {}; {}", path.display(), kept(result)));
            }
        }
    }
}
