//! The README's way from preference pairs to a served family, as a newcomer types it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The shell blocks of a section of the README.
fn blocks(readme: &str, heading: &str) -> Vec<String> {
    let section = readme.split(heading).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
#[ignore = "trains, merges, evaluates and calibrates a family: a minute or two, run by .ci/run"]
fn the_readme_makes_a_family_that_has_learnt_and_can_be_served() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let blocks = blocks(&readme, "\n## From preference pairs to a served family\n");
    let [make, serve] = blocks.as_slice() else { panic!("two blocks, found {blocks:?}") };
    assert!(serve.ends_with("rewarm serve --config family/rewarm.toml\n"), "{serve}");

    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root.join("deploy"), folder.path().join("deploy")).unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_rewarm")).parent().unwrap();
    let script = format!("set -e\nPATH={}:$PATH\n{make}{} --check\n", programs.display(), serve.trim_end());
    let output = Command::new("sh").arg("-c").arg(script).current_dir(folder.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(!told.contains("warning"), "{told}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("the configuration is valid: it serves ens (text_rule: sentence_pair), warm"),
        "{said}"
    );

    let evaluation = std::fs::read(folder.path().join("family/report/evaluation.json")).unwrap();
    let evaluation: Value = serde_json::from_slice(&evaluation).unwrap();
    let validation = &evaluation["sets"][0];
    assert_eq!(validation["name"], "validation");
    for model in validation["models"].as_array().unwrap() {
        let accuracy = model["accuracy"]["value"].as_f64().unwrap();
        assert!(accuracy >= 0.7, "{model}"); // the longer response is chosen in 0.47
    }
    assert!(folder.path().join("family/warm/rewarm.golden.json").is_file());
}
