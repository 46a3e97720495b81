//! The README's way from preference pairs to a served family, as a newcomer types it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

/// The shell blocks of a section of the README.
fn blocks(readme: &str, heading: &str) -> Vec<String> {
    let section = readme.split(heading).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// The tutorial's two blocks: what makes the family, and what serves it.
fn tutorial() -> [String; 2] {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let blocks = blocks(&readme, "\n## From preference pairs to a served family\n");
    let [make, serve] = blocks.as_slice() else { panic!("two blocks, found {blocks:?}") };
    [make.clone(), serve.clone()]
}

/// Runs a script in a folder that has what a clone has; what it printed, and the folder.
fn run(script: &str) -> (String, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy"),
        folder.path().join("deploy"),
    )
    .unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_rewarm")).parent().unwrap();
    let script = format!("set -e\nPATH={}:$PATH\n{script}", programs.display());
    let output = Command::new("sh").arg("-c").arg(script).current_dir(folder.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(!told.contains("warning"), "{told}");
    (String::from_utf8_lossy(&output.stdout).into_owned(), folder)
}

/// How far WARM is above the model before fine-tuning on the test pairs: accuracy, and the lower end of its interval.
fn gain(folder: &Path) -> (f64, f64) {
    let evaluation = std::fs::read(folder.join("family/report/evaluation.json")).unwrap();
    let evaluation: Value = serde_json::from_slice(&evaluation).unwrap();
    let test = &evaluation["sets"][0];
    assert_eq!((test["name"].as_str(), test["pairs"].as_u64()), (Some("test"), Some(480)));
    let of_warm = |difference: &&Value| difference["of"] == "WARM" && difference["against"] == "start";
    let difference = test["differences"].as_array().unwrap().iter().find(of_warm).unwrap();
    (difference["value"].as_f64().unwrap(), difference["low"].as_f64().unwrap())
}

#[test]
#[ignore = "trains, merges, evaluates and calibrates a family: a minute or two, run by .ci/run"]
fn the_readme_makes_a_family_that_is_better_than_its_start_and_can_be_served() {
    let [make, serve] = tutorial();
    assert!(serve.ends_with("rewarm serve --config family/rewarm.toml\n"), "{serve}");
    let (said, folder) = run(&format!("{make}{} --check\n", serve.trim_end()));
    assert!(
        said.contains("the configuration is valid: it serves ens (text_rule: sentence_pair), warm"),
        "{said}"
    );
    assert!(said.contains("WARM is better than the start (the head before fine-tuning) on test"), "{said}");
    let (gained, low) = gain(folder.path());
    assert!(gained > 0.03 && low > 0.0, "{gained}, at least {low}");
    assert!(folder.path().join("family/warm/rewarm.golden.json").is_file());
}

#[test]
#[ignore = "trains five small families: a minute or two, run by .ci/run"]
fn the_median_of_five_seeds_is_better_than_its_start() {
    let [make, _] = tutorial();
    let mut lows: Vec<f64> = (0..5)
        .map(|seed| {
            // half the members, once over the pairs, without curves and calibration: what is left of the tutorial takes a sixth
            let small = make
                .replace("--epochs 2", &format!("--epochs 1 --num-members 2 --seed {seed}"))
                .replace("--output family/report", "--curve off --subsets 0 --output family/report");
            let end = small.find("rewarm calibrate").unwrap();
            let (_, folder) = run(&small[..end]);
            gain(folder.path()).1
        })
        .collect();
    lows.sort_by(f64::total_cmp);
    assert!(lows[2] > 0.0, "lower ends of the five intervals: {lows:?}");
}
