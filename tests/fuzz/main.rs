//! Mutants of checkpoint files, in process: none may panic, take longer than [`MAX_SECONDS`] or more memory than
//! [`MAX_MEMORY_BYTES`], and an error names the file or its folder.
//!
//! ```text
//! REWARM_FUZZ_INPUTS=100000 REWARM_FUZZ_SEED=7 cargo test --test fuzz -- --nocapture
//! ```
//!
//! A mutant is a file of a tiny checkpoint with some bytes flipped, cut, doubled or swapped, or with a number, a key or
//! a string of its JSON replaced; the same for a seed everywhere. It goes through `Loader::check`, and where that
//! accepts it, through `Loader::load`, and its golden samples are tokenized. What ends a process by a signal ends the test: the last mutant
//! is then in the folder that the test names when it begins.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod mutate;

use std::fs;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use mutate::Mutator;
use rewarm::model::golden::GoldenRewards;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::VariantConfig;

/// Of one mutant.
const MAX_SECONDS: u64 = 10;
/// Of each file, when nobody says how many.
const INPUTS: usize = 300;
/// Of the whole test: who asks for more is ended, and the test with it.
const MAX_MEMORY_BYTES: u64 = 2 << 30;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect(name))
}

/// What became of the mutants of one file.
#[derive(Debug, Default)]
struct Counts {
    inputs: usize,
    refused: usize,
    accepted: usize,
    slowest: Duration,
}

/// A copy of a checkpoint in memory, where there is a folder for that.
fn copy(source: &str) -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    for entry in fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    if !dir.path().join("tokenizer.json").exists() {
        // the tokenizer of a qwen2 model is a BPE, whatever class the files name
        let other = if source.ends_with("qwen2") { "rules/qwen2" } else { "evaluate/member-0" };
        let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(other);
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(other.join(name), dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("rewarm.json"), r#"{"text_rule": "concatenation", "text_end": "as_is"}"#)
            .unwrap();
    }
    dir
}

/// Runs mutants of the part of a file that `range` finds.
fn run(source: &str, file: &str, range: fn(&[u8]) -> std::ops::Range<usize>) {
    // the whole test process: what asks for more is a mutant that must be refused
    let limit = rustix::process::Rlimit { current: Some(MAX_MEMORY_BYTES), maximum: None };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Data, limit);
    let dir = copy(source);
    let path = dir.path().join(file);
    let original = fs::read(&path).unwrap();
    println!("{source}/{file}: mutants are written to {}", path.display());
    let config = VariantConfig::new("fuzz", Mode::Warm, vec![dir.path().to_owned()]);
    assert_eq!(try_one(&config), Ok(()), "as it is");
    let (inputs, seed) = (setting("REWARM_FUZZ_INPUTS", INPUTS), setting("REWARM_FUZZ_SEED", 1));
    let mut mutator = Mutator::new(seed as u64, &format!("{source}/{file}"));
    let mut counts = Counts::default();
    for number in 0..inputs {
        let range = range(&original);
        let mut mutant = original[..range.start].to_vec();
        mutant.extend(mutator.mutate(&original[range.clone()], file.ends_with(".json")));
        // a header's length is right in half of the mutants, so that what is behind it is reached
        if range.start == 8 && number % 2 == 0 {
            let length = (mutant.len() - 8) as u64;
            mutant[..8].copy_from_slice(&length.to_le_bytes());
        }
        mutant.extend(&original[range.end..]);
        fs::write(&path, &mutant).unwrap();
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| try_one(&config)));
        let took = started.elapsed();
        counts.inputs += 1;
        counts.slowest = counts.slowest.max(took);
        let keep = || {
            let kept: PathBuf = std::env::temp_dir().join(format!("rewarm-fuzz-{seed}-{number}-{file}"));
            fs::write(&kept, &mutant).unwrap();
            kept
        };
        assert!(
            took.as_secs() < MAX_SECONDS,
            "{source}/{file} {number}: took {took:?}: {}",
            keep().display()
        );
        match outcome {
            Ok(Ok(())) => counts.accepted += 1,
            Ok(Err(error)) => {
                counts.refused += 1;
                assert!(
                    error.contains(&dir.path().display().to_string()),
                    "{source}/{file} {number}: names no file: {error}: {}",
                    keep().display()
                );
            }
            Err(_) => panic!("{source}/{file} {number}: panicked: {}", keep().display()),
        }
    }
    println!("{source}/{file}: {counts:?}");
    assert!(
        counts.refused > counts.inputs / 10 && (counts.accepted > 0 || counts.inputs < 100),
        "{source}/{file}: {counts:?}"
    );
}

fn try_one(config: &VariantConfig) -> Result<(), String> {
    let chain = |error: rewarm::model::ModelError| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    };
    Loader::default().check(config).map_err(chain)?;
    let golden = GoldenRewards::of_models(config).map_err(chain)?;
    let variant = Loader::default().load(config, &mut |_, _| ()).map_err(chain)?;
    for golden in golden.iter().flatten() {
        let _ = golden.sequences(&variant.tokenizer);
    }
    Ok(())
}

fn whole(bytes: &[u8]) -> std::ops::Range<usize> {
    0..bytes.len()
}

/// The JSON of a safetensors header.
fn header(bytes: &[u8]) -> std::ops::Range<usize> {
    8..8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

#[test]
fn mutants_of_a_safetensors_header() {
    run("tests/data/models/llama", "model.safetensors", header);
}

#[test]
fn mutants_of_a_safetensors_file_and_its_length() {
    run("tests/data/models/bert", "model.safetensors", |_| 0..64);
}

#[test]
fn mutants_of_an_index() {
    run("tests/data/models/llama-sharded", "model.safetensors.index.json", whole);
}

#[test]
fn mutants_of_a_decoders_config() {
    run("tests/data/models/gemma2", "config.json", whole);
}

#[test]
fn mutants_of_a_rope() {
    run("tests/data/models/llama-rope-yarn", "config.json", whole);
}

#[test]
fn mutants_of_an_encoders_config() {
    run("tests/data/models/roberta", "config.json", whole);
}

#[test]
fn mutants_of_a_manifest() {
    run("deploy/demo/member-0", "rewarm.json", whole);
}

#[test]
fn mutants_of_golden_rewards() {
    run("deploy/demo/member-0", "rewarm.golden.json", whole);
}
