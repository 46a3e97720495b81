//! Mutation fuzzing: whatever is in a file or a message, the answer is a value or an error.
//!
//! ```text
//! fuzz (the test) ─▶ a child process per target ─▶ one mutated input after the other, in process
//!        ▲                     │ input by input: its number, in a file
//!        └── ended by a signal, panicked, over 10 s or over 1 GiB: the input's number, and the child goes on behind it
//! ```
//!
//! An input is a function of target, seed and number, so each can be had again. By hand:
//!
//! ```sh
//! cargo test --test fuzz -- --ignored --nocapture                             # two minutes over all targets
//! REWARM_FUZZ_INPUTS=200000 cargo test --test fuzz -- --ignored --nocapture   # so many inputs for each target
//! REWARM_FUZZ_SEED=7 REWARM_FUZZ_ONLY=tokenizer cargo test --test fuzz -- --ignored --nocapture      # others, of one target
//! REWARM_FUZZ_ONLY=tokenizer:0:4711 cargo test --test fuzz -- --ignored --nocapture   # this one again
//! ```
//!
//! `mutate` spoils bytes, JSON and texts; `targets` are the readers, each with a corpus that is in the tree already: the
//! tiny checkpoints and files of the other tests.
//!
//! # Why not cargo-fuzz?
//!
//! It needs a nightly compiler and a second build of all dependencies. What it brings, coverage as a guide, matters
//! less here than mutations that know JSON: most bytes of a `tokenizer.json` are equal to the parser.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "shared with tests that use more of it")]
mod support;

mod mutate;
mod targets;

use std::io::BufRead;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use targets::TARGETS;
use targets::Verdict;

/// No input may take longer.
const MAX_SECONDS: u64 = 10;
/// Nor more memory than this above what the process had before.
const MAX_BYTES: u64 = 1 << 30;
/// After so many failures of a target its other inputs are not tried.
const MAX_FAILURES: usize = 20;
/// Of each target, where nobody says how many, and where two minutes suffice.
const USUAL_INPUTS: u64 = 2000;
/// Where a child is told what to do, as `target:seed:first:last:milliseconds`.
const CHILD: &str = "REWARM_FUZZ_CHILD";

/// What came of a target's inputs.
#[derive(Default)]
struct Report {
    inputs: u64,
    accepted: u64,
    slowest_ms: u64,
    failures: Vec<String>,
}

#[test]
#[ignore = "takes two minutes"]
fn no_input_ends_the_process() {
    let variable = |name: &str| std::env::var(name).ok();
    let seed: u64 = variable("REWARM_FUZZ_SEED").map_or(0, |seed| seed.parse().unwrap());
    let only = variable("REWARM_FUZZ_ONLY");
    let inputs: Option<u64> = variable("REWARM_FUZZ_INPUTS").map(|inputs| inputs.parse().unwrap());
    let seconds: u64 = variable("REWARM_FUZZ_SECONDS").map_or(120, |seconds| seconds.parse().unwrap());
    const AT_A_TIME: u64 = 2;
    let each = Duration::from_millis(seconds * 1000 * AT_A_TIME / TARGETS.len() as u64);
    let mut jobs: Vec<(&str, u64, u64, u64, Duration)> = match &only {
        Some(only) if only.contains(':') => {
            let parts: Vec<&str> = only.split(':').collect();
            let [name, seed, number] = parts[..] else { panic!("REWARM_FUZZ_ONLY: target:seed:number") };
            let number: u64 = number.parse().unwrap();
            vec![(name, seed.parse().unwrap(), number, number + 1, Duration::MAX)]
        }
        only => {
            // The same inputs in every run of CI: a machine that is faster must not be the first to try others.
            let usual = if variable("REWARM_FUZZ_SECONDS").is_some() { u64::MAX } else { USUAL_INPUTS };
            let (last, time) = inputs.map_or((usual, each), |inputs| (inputs, Duration::MAX));
            let is_meant = |name: &str| only.as_ref().is_none_or(|only| only == name);
            let targets = TARGETS.iter().filter(|target| is_meant(target.name));
            targets.map(|target| (target.name, seed, 0, last, time)).collect()
        }
    };
    jobs.reverse();
    let jobs = Mutex::new(jobs);
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let Some(job) = jobs.lock().unwrap().pop() else { return };
                    let report = run_target(job);
                    let Report { inputs, accepted, slowest_ms, failures } = &report;
                    println!(
                        "{:16} {inputs:9} inputs, {accepted:9} accepted, {:9} refused, slowest {slowest_ms:6} ms, {} failures",
                        job.0,
                        inputs.saturating_sub(*accepted + failures.len() as u64),
                        failures.len()
                    );
                    reports.lock().unwrap().push(report);
                }
            });
        }
    });
    let reports = reports.into_inner().unwrap();
    println!("{} inputs in all", reports.iter().map(|report| report.inputs).sum::<u64>());
    let failures: Vec<String> = reports.into_iter().flat_map(|report| report.failures).collect();
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// Runs children until the target's inputs, or its time, are used up.
fn run_target((name, seed, first, last, time): (&str, u64, u64, u64, Duration)) -> Report {
    let mut report = Report::default();
    let (mut next, begun) = (first, Instant::now());
    while next < last && begun.elapsed() < time && report.failures.len() < MAX_FAILURES {
        let folder = tempfile::tempdir().unwrap();
        let number_file = folder.path().join("number");
        std::fs::write(&number_file, next.to_le_bytes()).unwrap();
        let left = u64::try_from(time.saturating_sub(begun.elapsed()).as_millis()).unwrap_or(u64::MAX);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(CHILD, format!("{name}:{seed}:{next}:{last}:{left}"))
            .env("REWARM_FUZZ_FOLDER", folder.path())
            .env("RAYON_NUM_THREADS", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap_or_default();
            if let Some(failure) = line.strip_prefix("FAILURE ") {
                report.failures.push(failure.to_owned());
            } else if let Some(counts) = line.strip_prefix("COUNTS ") {
                let counts: Vec<u64> = counts.split(' ').map(|count| count.parse().unwrap()).collect();
                report.accepted += counts[0];
                report.slowest_ms = report.slowest_ms.max(counts[1]);
            }
        }
        let status = child.wait().unwrap();
        let number = u64::from_le_bytes(std::fs::read(&number_file).unwrap().try_into().unwrap());
        if let Some(signal) = status.signal() {
            report.failures.push(format!("{name}:{seed}:{number}: ended by signal {signal}"));
        }
        assert_ne!(status.code(), Some(101), "{name}: a child failed by itself: run it by hand, {CHILD}");
        report.inputs += number + 1 - next;
        next = number + 1;
    }
    report
}

/// Not a test of its own: what [`run_target`] starts.
#[test]
#[ignore = "started by the other one"]
fn child() {
    let Ok(job) = std::env::var(CHILD) else { return };
    let parts: Vec<&str> = job.split(':').collect();
    let [name, seed, first, last, milliseconds] = parts[..] else { panic!("{CHILD}={job}") };
    let number = |text: &str| text.parse::<u64>().unwrap();
    let (seed, first, last) = (number(seed), number(first), number(last));
    let until = Instant::now().checked_add(Duration::from_millis(number(milliseconds)));
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target's name");
    let folder = std::env::var("REWARM_FUZZ_FOLDER").unwrap();
    let folder = Path::new(&folder);
    let number_file = std::fs::OpenOptions::new().write(true).open(folder.join("number")).unwrap();

    let mut run = (target.prepare)(&folder.join("scratch"));
    let panic_message = Arc::new(Mutex::new(String::new()));
    let told = panic_message.clone();
    std::panic::set_hook(Box::new(move |info| {
        *told.lock().unwrap() = info.to_string().replace('\n', " ");
    }));
    let watched = watch(format!("{name}:{seed}"));
    let (mut accepted, mut slowest_ms) = (0, 0);
    for number in first..last {
        if until.is_some_and(|until| Instant::now() > until) {
            break;
        }
        number_file.write_all_at(&number.to_le_bytes(), 0).unwrap();
        watched.store(number + 1, Ordering::Relaxed);
        let begun = Instant::now();
        let mut random = mutate::Random::new(seed, number);
        match catch_unwind(AssertUnwindSafe(|| run(&mut random))) {
            Ok(Verdict::Accepted) => accepted += 1,
            Ok(Verdict::Refused(_)) => {}
            Ok(Verdict::Wrong(problem)) => println!("FAILURE {name}:{seed}:{number}: {problem}"),
            Err(_) => {
                println!("FAILURE {name}:{seed}:{number}: {}", panic_message.lock().unwrap());
            }
        }
        slowest_ms = slowest_ms.max(begun.elapsed().as_millis() as u64);
    }
    println!("COUNTS {accepted} {slowest_ms}");
}

/// A thread that ends the process when an input, whose number + 1 it is told, takes too long or too much memory.
fn watch(name: String) -> Arc<AtomicU64> {
    let watched = Arc::new(AtomicU64::new(0));
    let numbers = watched.clone();
    let at_first = resident_bytes();
    std::thread::spawn(move || {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let number = numbers.load(Ordering::Relaxed);
            if number != last {
                (last, since) = (number, Instant::now());
            }
            let bytes = resident_bytes().saturating_sub(at_first);
            let problem = if since.elapsed() > Duration::from_secs(MAX_SECONDS) {
                format!("takes longer than {MAX_SECONDS} s")
            } else if bytes > MAX_BYTES {
                format!("takes {} MiB", bytes >> 20)
            } else {
                continue;
            };
            println!("FAILURE {name}:{}: {problem}", number.saturating_sub(1));
            std::process::exit(1);
        }
    });
    watched
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
