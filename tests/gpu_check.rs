//! `deploy/gpu/check`, which proves on a card what can only be proven there, tried on a CPU.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_rewarm");

/// Its exit code and what it printed; none without Python.
fn check(program: &Path, arguments: &[&str]) -> Option<(Option<i32>, String)> {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: deploy/gpu/check is a Python script, and there is no python3");
        return None;
    }
    let out = tempfile::tempdir().unwrap();
    let output = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/gpu/check"))
        .args(["--quick", "--device", "cpu", "--program"])
        .args([program, Path::new("--out"), out.path()])
        .args(arguments)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn promises_that_hold_are_told_by_exit_code_0() {
    let only = ["--only", "facts", "--only", "parity"];
    let Some((code, said)) = check(Path::new(PROGRAM), &only) else { return };
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("ok   rewards of transformers 5.23, f32: "), "{said}");
}

/// By a program whose rewards are a little off, and one whose rewards have noise.
#[test]
fn a_broken_promise_is_told_by_exit_code_1() {
    let noise = r#"sed -E "s/(\"reward\":-?[0-9]+\.[0-9]{3})[0-9]*/\1$(date +%N | cut -c 1-5)/""#;
    let cases = [
        (
            "parity",
            r#"sed -E 's/("reward":-?[0-9]+\.[0-9]{3})[0-9]*/\1/'"#,
            "FAIL rewards of transformers 5.23, f32",
        ),
        ("bits", noise, "FAIL bits equal: in this process and served, twice"),
    ];
    for (stage, filter, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("rewarm");
        let script =
            format!("#!/bin/sh\n[ \"$1\" = score ] || exec {PROGRAM} \"$@\"\n{PROGRAM} \"$@\" | {filter}\n");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let Some((code, said)) = check(&program, &["--only", stage]) else { return };
        assert_eq!(code, Some(1), "{stage}: {said}");
        assert!(said.contains(expected), "{stage}: {said}");
    }
}

#[test]
#[ignore = "all stages: 15 seconds, run by .ci/run"]
fn every_stage_runs() {
    let Some((code, said)) = check(Path::new(PROGRAM), &[]) else { return };
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("0 promises broken, 0 targets of speed missed, unfinished: none"), "{said}");
}
