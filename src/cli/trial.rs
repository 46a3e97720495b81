//! Tries checkpoints in a child process of this program, before this process reads them.
//!
//! ```text
//! this process  ── what to try, limits (JSON) ──▶  `rewarm trial`: limits itself, tries
//!               ◀── each step, then digests of all that was read, or what is wrong (JSON lines) ──
//! then loads, and reads nothing but what has these digests (crate::disk)
//! ```
//!
//! A template that overflows the stack when it is compiled, or dropped, a tokenizer that takes all memory, a text that is
//! rendered for ever: what ends a process cannot be caught in it. So it ends a child, and the server serves on. The child
//! never reads weights; golden rewards are scored by the server, on the device that will serve.
//!
//! # The limits
//!
//! The child sets them on itself, first of all. Of memory it takes what a process may have as data, at most three
//! quarters of what the machine or its cgroup has left: a container whose memory is exhausted loses the server, not the
//! child. Its thread has half of the stack that any thread of ours has, so that what fits there fits here. If it
//! dies, the step that it was in is told.
//!
//! # What it costs
//!
//! A process, and each tokenizer and template once more; `checkpoints were tried` in the log (debug) tells the seconds.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::Signal;
use rustix::process::setrlimit;
use serde::Deserialize;
use serde::Serialize;
use tracing::field::Field;
use tracing::field::Visit;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context as LayerContext;
use tracing_subscriber::layer::SubscriberExt;

use crate::disk;
use crate::disk::Proof;
use crate::model::ModelError;
use crate::model::memory;
use crate::model::trial::Subject;
use crate::model::trial::Tried;

/// The subcommand that the child runs.
pub(super) const COMMAND: &str = "trial";

/// Of the thread that tries: half of what threads have by default, where the same will be done.
const STACK_BYTES: usize = 1 << 20;
/// Several times what a tokenizer of 250,000 words needs.
const MAX_MEMORY_BYTES: u64 = 2 << 30;
const MIN_MEMORY_BYTES: u64 = 256 << 20;
/// Of the CPU, for each directory: the largest tokenizer takes two.
const CPU_SECONDS: u64 = 20;
/// Without work on the CPU: files may be on a slow network.
const WAIT_SECONDS: u64 = 60;
/// Of what the child says before it dies, the end.
const TOLD_BYTES: usize = 4096;
/// Of one line of its answer: the digests of some thousand files.
const LINE_BYTES: u64 = 64 << 20;
/// How often something is tried that changes while it is loaded.
const ATTEMPTS: usize = 3;
/// How many children may die before the rest is left untried: each begins anew.
const MAX_DEATHS: usize = 8;

/// Something that is wrong with a subject.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    /// Which of the subjects.
    pub(super) subject: usize,
    /// As loading it would tell; or how the child ended, and in which step.
    pub(super) problem: String,
}

/// Why nothing is loaded: all that is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{}", list(.0))]
pub(super) struct Refusals(pub(super) Vec<Refused>);

fn list(refused: &[Refused]) -> String {
    let problems: Vec<&str> = refused.iter().map(|refused| refused.problem.as_str()).collect();
    match problems.as_slice() {
        [problem] => (*problem).to_owned(),
        _ => format!("{} problems\n  {}", problems.len(), problems.join("\n  ")),
    }
}

/// Limits of one trial.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct TrialLimits {
    memory_bytes: u64,
    cpu_seconds: u64,
    wait_seconds: u64,
}

#[derive(Serialize, Deserialize)]
struct Task {
    limits: TrialLimits,
    subjects: Vec<Subject>,
}

/// What the child tells, one a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    /// It turns to the subject of this index.
    Subject(usize),
    /// What it does next.
    Step(String),
    /// What is wrong with the subject; there may be more.
    Refused(String),
    /// The end: what was read.
    Proved(Proof),
}

/// Tries `subjects`, then lets `load` read those that nothing is wrong with; it is told what is wrong with others. If a file
/// changes in between, both are done again.
pub(super) fn then<T>(subjects: &[Subject], mut load: impl FnMut(&[Refused]) -> T) -> Result<T, Refusals> {
    let mut attempts = 1..=ATTEMPTS;
    loop {
        let (refused, proof) = try_all(subjects);
        let Some(proof) = proof else { return Err(Refusals(refused)) };
        match disk::holding_to(&proof, || load(&refused)) {
            Ok(loaded) => return Ok(loaded),
            Err(changed) => match attempts.next() {
                Some(_) => {
                    tracing::info!(path = %changed.0.display(), "changed while it was loaded, once more")
                }
                None => return Err(Refusals(vec![Refused { subject: 0, problem: changed.to_string() }])),
            },
        }
    }
}

/// Tries `subjects` in a child process; fails with all that is wrong with them.
pub(super) fn try_out(subjects: &[Subject]) -> Result<(), Refusals> {
    let (refused, _) = try_all(subjects);
    if refused.is_empty() { Ok(()) } else { Err(Refusals(refused)) }
}

/// All that is wrong with `subjects`, and proof of what was read of the others; none where they were not all tried.
///
/// A child that dies is followed by another one for all but what it died of. Of a variant with several members each is
/// tried alone then: one of them may be to blame.
fn try_all(subjects: &[Subject]) -> (Vec<Refused>, Option<Proof>) {
    let mut left: Vec<(usize, Subject)> = subjects.iter().cloned().enumerate().collect();
    let (mut died, mut of_families) = (Vec::new(), Vec::new());
    loop {
        let (mut at, mut told) = (At { subject: 0, step: "starting".to_owned() }, Vec::new());
        let outcome = watch(&task(&left), &mut at, &mut told);
        let of = |place: usize| left.get(place).map_or(0, |(subject, _)| *subject);
        let told =
            told.into_iter().map(|Refused { subject, problem }| Refused { subject: of(subject), problem });
        let subject = of(at.subject);
        let (problem, is_last) = match outcome {
            Ok(Ok(proof)) => {
                died.extend(told);
                let is_told = |family: &Refused| died.iter().any(|told| told.subject == family.subject);
                of_families.retain(|family| !is_told(family));
                died.extend(of_families);
                died.sort_by_key(|refused| refused.subject);
                return (died, Some(proof));
            }
            Ok(Err(problem)) => (problem, died.len() + of_families.len() + 1 >= MAX_DEATHS),
            Err(error) => (format!("the trial in a process of its own: {error:#}"), true),
        };
        if is_last || left.is_empty() {
            died.extend(told.chain(of_families));
            died.push(Refused { subject, problem });
            return (died, None);
        }
        let (_, what) = left.remove(at.subject);
        let alone = what.each_member();
        let list = if alone.is_empty() { &mut died } else { &mut of_families };
        list.push(Refused { subject, problem });
        left.splice(at.subject..at.subject, alone.into_iter().map(|member| (subject, member)));
    }
}

fn task(subjects: &[(usize, Subject)]) -> Task {
    let subjects: Vec<Subject> = subjects.iter().map(|(_, subject)| subject.clone()).collect();
    let directories: usize = subjects.iter().map(num_directories).sum();
    let limits = TrialLimits {
        memory_bytes: memory::left()
            .map_or(MAX_MEMORY_BYTES, |left| left / 4 * 3)
            .clamp(MIN_MEMORY_BYTES, MAX_MEMORY_BYTES),
        cpu_seconds: CPU_SECONDS * directories.max(1) as u64,
        wait_seconds: WAIT_SECONDS,
    };
    Task { limits, subjects }
}

fn num_directories(subject: &Subject) -> usize {
    match subject {
        Subject::Variant { config, .. } => config.members.len(),
        Subject::Checkpoint { .. } => 1,
    }
}

/// Where the child is.
struct At {
    subject: usize,
    step: String,
}

/// Its proof, or how it died; or why there is no answer. What it found wrong before is `told`.
fn watch(task: &Task, at: &mut At, told: &mut Vec<Refused>) -> anyhow::Result<Result<Proof, String>> {
    let started = Instant::now();
    let mut child = Reaped(start(task).context("start it")?);
    let stdout = child.0.stdout.take().context("its output")?;
    let mut stderr = child.0.stderr.take().context("its error output")?;
    let (lines, heard) = mpsc::channel();
    thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        loop {
            let mut line = Vec::new();
            let read = stdout.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) || lines.send(line).is_err() {
                return;
            }
        }
    });
    let last_words = thread::spawn(move || tail(&mut stderr));

    let deadline = started + Duration::from_secs(task.limits.cpu_seconds + task.limits.wait_seconds);
    let mut is_late = false;
    loop {
        match heard.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => match serde_json::from_slice(&line).context("its answer")? {
                Told::Subject(subject) => at.subject = subject,
                Told::Step(step) => at.step = step,
                Told::Refused(problem) => told.push(Refused { subject: at.subject, problem }),
                Told::Proved(proof) => {
                    tracing::debug!(seconds = started.elapsed().as_secs_f64(), "checkpoints were tried");
                    return Ok(Ok(proof));
                }
            },
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                is_late = true;
                break;
            }
        }
    }
    if is_late {
        child.0.kill().context("end it")?;
    }
    let status = child.0.wait().context("wait for its end")?;
    let words = last_words.join().unwrap_or_default();
    let how = if is_late {
        format!("it took more than {} seconds", (deadline - started).as_secs())
    } else {
        cause(status, &words, &task.limits)
    };
    Ok(Err(format!("{}: {how} (tried in a process of its own, which this ended)", at.step)))
}

/// A child that does not outlive its purpose.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // it may have ended already
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(task: &Task) -> anyhow::Result<Child> {
    // this very program, also where its file was replaced since it started
    let of_this_process = Path::new("/proc/self/exe");
    let program = match of_this_process.exists() {
        true => of_this_process.to_owned(),
        false => std::env::current_exe().context("find this program")?,
    };
    let mut command = Command::new(program);
    // in a group of its own, so that Ctrl-C is for us to handle; threads and backtraces are of no use there
    command.arg0("rewarm").arg(COMMAND).process_group(0).env("RUST_BACKTRACE", "0");
    // the allocator takes what it needs, not a gigabyte at once, which would count
    command.env("MIMALLOC_ARENA_EAGER_COMMIT", "0");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("its input")?;
    let sent = stdin.write_all(&serde_json::to_vec(task)?);
    match sent {
        // it died at once: how, is told by its end
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(child),
        sent => sent.map(|()| child).context("tell it what to try"),
    }
}

/// The end of what is said, without waiting for room.
fn tail(stream: &mut impl Read) -> String {
    let (mut kept, mut piece) = (Vec::new(), [0; TOLD_BYTES]);
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        kept.extend_from_slice(&piece[..read]);
        kept.drain(..kept.len().saturating_sub(TOLD_BYTES));
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Why it ended, for people.
fn cause(status: ExitStatus, words: &str, limits: &TrialLimits) -> String {
    let signal = status.signal().and_then(Signal::from_named_raw);
    // the runtime's own words; the panic's message is in the line after the place
    if words.contains("has overflowed its stack") {
        return "the stack overflowed".to_owned();
    }
    if words.contains("memory allocation of") || words.contains("capacity overflow") {
        return format!("it took more than {} MB of memory", limits.memory_bytes >> 20);
    }
    if let Some((_, message)) = words.split_once("panicked at ") {
        let message: String = message.lines().skip(1).take(1).flat_map(str::chars).take(300).collect();
        return format!("it panicked: {}", message.escape_debug());
    }
    match (signal, status.code()) {
        (Some(Signal::XCPU), _) => format!("it took more than {} seconds of CPU time", limits.cpu_seconds),
        (Some(Signal::KILL), _) => {
            "it was killed, by a person or by the system for want of memory".to_owned()
        }
        (Some(signal), _) => format!("it died by signal {} ({signal:?})", signal.as_raw()),
        (None, code) => {
            let words: String = words.trim().chars().take(300).collect();
            format!("it ended with {code:?}: {}", words.escape_debug())
        }
    }
}

// ---- in the child ----

/// The child's whole life.
pub(super) fn run() -> anyhow::Result<()> {
    // whoever waits for the answer may die first
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // if memory ends in spite of the limit, then this process is to go; not everybody may say so
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let task: Task = serde_json::from_reader(std::io::stdin().lock()).context("read what to try")?;
    let TrialLimits { memory_bytes, cpu_seconds, .. } = task.limits;
    let limits = [(Resource::Core, 0), (Resource::Data, memory_bytes), (Resource::Cpu, cpu_seconds)];
    for (resource, limit) in limits {
        // what is allowed at most stays, where it is less than this already
        let allowed = rustix::process::getrlimit(resource).maximum;
        let current = Some(allowed.map_or(limit, |allowed| allowed.min(limit)));
        setrlimit(resource, Rlimit { current, maximum: allowed })
            .with_context(|| format!("limit {resource:?} to {limit}"))?;
    }
    // not `init`, which listens to the crates that log by other means, of which some tell of each letter
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Steps))
        .context("listen for steps")?;
    let (subjects, work) =
        (task.subjects, thread::Builder::new().name("trial".to_owned()).stack_size(STACK_BYTES));
    let trial = work.spawn(move || {
        disk::noting(|| {
            let mut tried = Tried::default();
            for (index, subject) in subjects.iter().enumerate() {
                tell(&Told::Subject(index));
                let problems = subject.try_out(&mut tried);
                problems
                    .iter()
                    .flat_map(ModelError::problems)
                    .map(Told::Refused)
                    .for_each(|told| tell(&told));
            }
        })
    });
    match trial.context("start a thread")?.join() {
        Ok(((), proof)) => tell(&Told::Proved(proof)),
        // said already, to standard error
        Err(_) => std::process::exit(101),
    }
    Ok(())
}

fn tell(told: &Told) {
    let mut line = serde_json::to_vec(told).expect("strings and lists are JSON");
    line.push(b'\n');
    // nobody reads: then nobody waits for an answer
    let _ = std::io::stdout().lock().write_all(&line);
}

/// Tells the steps that readers of a checkpoint mark.
struct Steps;

impl<S: tracing::Subscriber> Layer<S> for Steps {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: LayerContext<'_, S>) -> bool {
        metadata.target() == disk::STEP
    }

    fn on_event(&self, event: &tracing::Event<'_>, _: LayerContext<'_, S>) {
        let mut step = Step::default();
        event.record(&mut step);
        tell(&Told::Step(format!("{}: {}", step.path, step.doing)));
    }
}

#[derive(Default)]
struct Step {
    doing: String,
    path: String,
}

impl Visit for Step {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "path" {
            self.path = format!("{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "doing" => value.clone_into(&mut self.doing),
            "path" => value.clone_into(&mut self.path),
            _ => {}
        }
    }
}
