//! `rewarm train` as a user runs it: what it learns, what it writes, and what it does when things go wrong.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use program::rewarm;
use program::root;
use program::run;
use program::score;
use program::text;
use rewarm::text::dataset::Dataset;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

// ---- a toy preference: what has the good word is better than what has the bad one ----

const GOOD: &str = "nicer";
const BAD: &str = "cliff";
/// Words of the tiny models' vocabulary.
const OTHERS: [&str; 16] = [
    "about", "along", "beans", "bicycle", "could", "counted", "falls", "grows", "harbour", "kettle", "kinds",
    "patience", "short", "sings", "three", "wheel",
];

/// Pairs with prompts of their own.
fn toy_pairs(count: usize) -> String {
    let word = |index: usize| OTHERS[index * 7 % OTHERS.len()];
    (0..count)
        .map(|index| {
            let (a, b, c) = (word(index), word(index / 16 + 3), word(index / 5 + index));
            let side = |value: &str| match index % 3 {
                0 => format!("{value} {a} {b}"),
                1 => format!("{c} {value} {b} {a}"),
                _ => format!("{a} {c} {value}"),
            };
            let prompt = format!("{a} {b} {index}");
            json!({"prompt": prompt, "chosen": side(GOOD), "rejected": side(BAD)}).to_string() + "\n"
        })
        .collect()
}

/// A folder with `pairs.jsonl`.
fn folder_with(pairs: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pairs.jsonl"), pairs).unwrap();
    folder
}

fn model(name: &str) -> String {
    root().join("tests/data/models").join(name).display().to_string()
}

/// The command on `pairs.jsonl` of the folder, into `output` there, with a file of these settings.
fn train_command(folder: &Path, base: &str, output: &str, settings: &str) -> Command {
    let config = folder.join(format!("{output}.toml"));
    let paths = format!("base = '{}'\npairs = 'pairs.jsonl'\noutput = '{output}'\n", model(base));
    std::fs::write(&config, paths + settings).unwrap();
    rewarm(&["train", "--config", config.to_str().unwrap()])
}

fn train(folder: &Path, base: &str, output: &str, settings: &str) -> Output {
    train_command(folder, base, output, settings).output().unwrap()
}

/// The same, which must succeed; the family's record.
fn trained(folder: &Path, base: &str, output: &str, settings: &str) -> Value {
    let result = train(folder, base, output, settings);
    assert!(result.status.success(), "{}", text(&result.stderr));
    record(&folder.join(output))
}

/// The same, which must fail; its error.
fn refused(folder: &Path, base: &str, output: &str, settings: &str) -> String {
    let result = train(folder, base, output, settings);
    assert_eq!(result.status.code(), Some(1), "{result:?}");
    text(&result.stderr)
}

fn record(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("train.json")).unwrap()).unwrap()
}

fn weights(family: &Path, member: usize) -> Vec<u8> {
    std::fs::read(family.join(format!("member-{member}/model.safetensors"))).unwrap()
}

/// A member's log without its times.
fn log(family: &Path, member: usize) -> Vec<Value> {
    let lines = std::fs::read_to_string(family.join(format!("logs/member-{member}.jsonl"))).unwrap();
    lines
        .lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            line.as_object_mut().unwrap().remove("seconds");
            line
        })
        .collect()
}

fn lines(file: &Value, key: &str) -> Vec<u64> {
    file[key].as_array().unwrap().iter().map(|line| line.as_u64().unwrap()).collect()
}

// ---- what it learns and writes ----

#[test]
fn a_toy_family_is_learnt_and_scores_merged() {
    let folder = folder_with(&toy_pairs(240));
    let settings = "num_members = 2\nlearning_rate = [2e-3, 4e-3]\ndropout = [0.0, 0.1]\nepochs = 2\nbatch_pairs = 8\n\
        validate_every = 20\n";
    let record = trained(folder.path(), "bert", "family", settings);
    let family = folder.path().join("family");

    for member in 0..2 {
        let result = &record["results"][member.to_string()];
        let accuracy = |key: &str| result[key]["accuracy"].as_f64().unwrap();
        assert!(accuracy("validation") >= 0.95, "{result}");
        let loss = |key: &str| result[key]["loss"].as_f64().unwrap();
        assert!(loss("validation") < loss("validation_at_start"), "{result}");
        let steps = 2 * 216usize.div_ceil(8);
        assert_eq!((&result["steps"], &result["planned_steps"]), (&json!(steps), &json!(steps)));

        let log = log(&family, member);
        let of_kind = |kind: &str| log.iter().filter(|line| line["kind"] == kind).count();
        assert_eq!((of_kind("training"), of_kind("validation")), (steps, 1 + steps.div_ceil(20)));
        let own: Value = serde_json::from_slice(
            &std::fs::read(family.join(format!("member-{member}/train.json"))).unwrap(),
        )
        .unwrap();
        assert_eq!((&own["data"], &own["result"]), (&record["data"], result));
        assert_eq!(own["own"], record["members"][member]);
    }
    let rates: Vec<f64> = (0..2).map(|m| record["members"][m]["learning_rate"].as_f64().unwrap()).collect();
    assert!(rates.contains(&2e-3) && rates.contains(&4e-3), "{rates:?}");
    assert!(record["probe"]["accuracy"].as_f64().unwrap() > 0.6, "{}", record["probe"]);
    assert!(!family.join("state").exists(), "what a run goes on from is of no use any more");
    assert!(std::fs::read_to_string(family.join("train.svg")).unwrap().contains("member-1"));

    let members =
        [0, 1].map(|member| family.join(format!("member-{member}")).display().to_string()).join(",");
    let samples =
        [GOOD, BAD].map(|word| json!({"prompt": "beans", "response": format!("{word} falls")}).to_string());
    for mode in ["warm", "ens"] {
        let scored = score(&["--members", &members, "--mode", mode], samples.join("\n"));
        assert!(scored.status.success(), "{}", text(&scored.stderr));
        let rewards: Vec<f64> = text(&scored.stdout)
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["reward"].as_f64().unwrap())
            .collect();
        assert!(rewards[0] > rewards[1] + 0.5, "{mode}: {rewards:?}");
    }
}

#[test]
fn the_step_of_least_validation_loss_is_kept_and_training_stops_when_it_does_not_come_back() {
    // a fifth of 24 labels is turned round, and in the end they are learnt by heart: validation gets worse
    let folder = folder_with(&toy_pairs(40));
    let settings = "num_members = 1\nlearning_rate = 1e-2\ndropout = 0\nepochs = 16\nbatch_pairs = 8\nvalidate_every = 4\n\
        validation_fraction = 0.4\ncorrupt = 0.2\nseed = 1\n[probe]\nl2 = 100.0\n";
    let record = trained(folder.path(), "bert", "family", &format!("patience = 2\n{settings}"));
    let result = &record["results"]["0"];
    let log = log(&folder.path().join("family"), 0);
    let losses: Vec<(u64, f64)> = log
        .iter()
        .filter(|line| line["kind"] == "validation")
        .map(|line| (line["step"].as_u64().unwrap(), line["loss"].as_f64().unwrap()))
        .collect();
    let best = losses.iter().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
    let first = losses.iter().position(|(_, loss)| *loss == best).unwrap();
    assert_eq!(
        (result["kept_step"].as_u64().unwrap(), result["validation"]["loss"].as_f64().unwrap()),
        losses[first]
    );
    assert_eq!(losses.len(), first + 1 + 2, "two validations without a lower loss end it: {losses:?}");
    let steps = result["steps"].as_u64().unwrap();
    assert!(
        steps == losses.last().unwrap().0 && steps < result["planned_steps"].as_u64().unwrap(),
        "{result}"
    );

    assert!(first > 0 && steps > result["kept_step"].as_u64().unwrap(), "{result}");

    let until = format!("keep = 'last'\n{settings}");
    let last = trained(folder.path(), "bert", "last", &until);
    let of_last = &last["results"]["0"];
    assert_eq!(
        (&of_last["kept_step"], &of_last["steps"]),
        (&of_last["planned_steps"], &of_last["planned_steps"])
    );

    // what was written is what that step had, and the start what there was before
    let pairs = std::fs::read_to_string(folder.path().join("pairs.jsonl")).unwrap();
    let held_out: Vec<&str> = (1..)
        .zip(pairs.lines())
        .filter(|(line, _)| {
            lines(&record["data"]["training"][0], "training_lines").iter().all(|own| own != line)
        })
        .map(|(_, pair)| pair)
        .collect();
    let loss = judge(&folder.path().join("family/member-0"), &held_out);
    assert!((loss - best).abs() < 1e-5, "{loss} is not {best}");
    let loss = judge(&folder.path().join("family/start"), &held_out);
    assert!((loss - losses[0].1).abs() < 1e-5, "{loss} is not {}", losses[0].1);
}

/// Bradley-Terry loss of a checkpoint on pairs.
fn judge(model: &Path, pairs: &[&str]) -> f64 {
    let sample = |pair: &str, side: &str| {
        let pair: Value = serde_json::from_str(pair).unwrap();
        json!({"prompt": pair["prompt"], "response": pair[side]}).to_string()
    };
    let samples: Vec<String> =
        pairs.iter().flat_map(|pair| [sample(pair, "chosen"), sample(pair, "rejected")]).collect();
    let scored = score(&["--model", model.to_str().unwrap()], samples.join("\n"));
    let rewards: Vec<f64> = text(&scored.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["reward"].as_f64().unwrap())
        .collect();
    let loss: f64 = rewards.chunks(2).map(|sides| (sides[1] - sides[0]).exp().ln_1p()).sum();
    loss / pairs.len() as f64
}

#[test]
fn members_that_learnt_nothing_or_the_same_are_told() {
    let folder = folder_with(&toy_pairs(40));
    // every step is worse than none: this rate breaks the model
    let settings =
        "num_members = 2\nlearning_rate = 3.0\ndropout = 0\nbatch_pairs = 8\nvalidation_fraction = 0.4\n";
    let output = train(folder.path(), "bert", "family", settings);
    let told = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for expected in [
        "| before ",
        "member-0 is the model before fine-tuning",
        "member-1 is the model before fine-tuning",
        "member-0 and member-1 are copies of each other (neither has learnt anything)",
    ] {
        assert!(told.contains(expected), "{expected} in {told}");
    }
    let family = folder.path().join("family");
    assert!(weights(&family, 0) == std::fs::read(family.join("start/model.safetensors")).unwrap());
    let record = trained(folder.path(), "bert", "last", &format!("keep = 'last'\n{settings}"));
    assert!(
        record["warnings"].to_string().contains("member-0: validation loss rose from 0."),
        "{}",
        record["warnings"]
    );

    // the same order, and next to the same rate
    let settings = "dropout = 0\nbatch_pairs = 8\n[[members]]\nlearning_rate = 1e-3\nseed = 1\n\
        [[members]]\nlearning_rate = 1.001e-3\nseed = 1\n[[members]]\nlearning_rate = 1e-3\nseed = 2\n";
    let record = trained(folder.path(), "bert", "twins", settings);
    let warnings: Vec<&str> =
        record["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let of_twins: Vec<&&str> = warnings.iter().filter(|warning| warning.contains("are copies")).collect();
    assert!(of_twins.len() == 1 && of_twins[0].starts_with("member-0 and member-1"), "{warnings:?}");
}

#[test]
fn a_check_says_rates_steps_tokens_and_time_and_trains_nothing() {
    let folder = folder_with(&toy_pairs(100));
    let mut command =
        train_command(folder.path(), "bert", "family", "num_members = 3\nbatch_pairs = 9\nepochs = 2\n");
    let output = command.arg("--check").output().unwrap();
    let told = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(told.contains("60 steps in all: "), "{told}");
    assert!(told.contains(" to look at, ") && told.contains(" on "), "{told}");
    // a width of 16 and 20 steps want more than the highest that is proposed
    for rate in ["1.0e-3", "2.0e-3", "4.0e-3"] {
        assert!(told.contains(&format!("| {rate} ")), "{rate} in {told}");
    }
    assert!(!folder.path().join("family").exists());
}

#[test]
fn on_a_terminal_progress_is_one_line_that_is_cut_to_its_width() {
    let folder = folder_with(&toy_pairs(60));
    let command =
        train_command(folder.path(), "bert", "family", "num_members = 1\nepochs = 3\nbatch_pairs = 2\n");
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let script = format!("stty cols 50 rows 20; exec {}", quoted.join(" "));
    let output =
        Command::new("script").args(["-qec", &script, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let told = text(&output.stdout);
    assert!(output.status.success(), "{told}");
    let bars: Vec<&str> = told.split(['\r', '\n']).filter(|line| line.contains(" left: member-0 ")).collect();
    assert!(bars.len() >= 2, "{told}");
    for bar in bars {
        // what is between an escape and a letter moves the cursor, and has no width
        let mut shown = String::new();
        let mut is_moving = false;
        for letter in bar.chars() {
            match (is_moving, letter) {
                (false, '\u{1b}') => is_moving = true,
                (false, _) => shown.push(letter),
                (true, _) => is_moving = !letter.is_ascii_alphabetic(),
            }
        }
        // what was printed above it, filled up to whole lines, may stand before
        let (before, _) = shown.split_once("%, ").unwrap();
        let start = before.rfind(' ').unwrap() - 1;
        assert!(shown[start..].chars().count() <= 50, "{shown:?}");
    }
}

#[test]
fn what_a_run_writes_does_not_depend_on_threads_or_on_the_run() {
    let folder = folder_with(&toy_pairs(60));
    let settings = "num_members = 2\nepochs = 1\nbatch_pairs = 8\nmicro_batch_tokens = 40\nlearning_rate = 1e-3\n\
        dropout = 0.2\nvalidation_fraction = 0\n";
    for (output, threads) in [("one", "1"), ("three", "3"), ("again", "3")] {
        let mut command = train_command(folder.path(), "llama", output, settings);
        let result = command.env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(result.status.success(), "{}", text(&result.stderr));
    }
    let [one, three, again] = ["one", "three", "again"].map(|output| folder.path().join(output));
    for member in 0..2 {
        assert!(weights(&one, member) == weights(&three, member), "threads change nothing");
        assert!(weights(&again, member) == weights(&three, member), "nor does a second run");
        assert_eq!(log(&one, member), log(&three, member));
    }
    assert!(weights(&one, 0) != weights(&one, 1), "the members' orders differ");
}

#[test]
fn a_run_that_is_stopped_and_killed_ends_as_if_it_had_not_been() {
    let folder = folder_with(&toy_pairs(120));
    let settings = "num_members = 2\nepochs = 2\nbatch_pairs = 4\nlearning_rate = 1e-3\ndropout = 0.1\n\
        checkpoint_every = 3\nvalidate_every = 5\n";
    trained(folder.path(), "bert", "whole", settings);

    let family = folder.path().join("parts");
    let written = |member: usize| {
        let log = std::fs::read_to_string(family.join(format!("logs/member-{member}.jsonl")));
        log.map_or(0, |log| log.lines().count())
    };
    // the member, a number of lines in its log, and what happens then
    for (member, lines, signal) in
        [(0, 2, "-KILL"), (0, 17, "-KILL"), (0, 30, "-TERM"), (1, 1, "-INT"), (1, 23, "-KILL")]
    {
        let mut command = train_command(folder.path(), "bert", "parts", settings);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        while written(member) < lines {
            assert!(child.try_wait().unwrap().is_none(), "it ended before line {lines} of member-{member}");
            std::thread::yield_now();
        }
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success());
        if signal != "-KILL" {
            let error = text(&output.stderr);
            assert!(error.contains("the same command goes on from there"), "{error}");
        }
    }
    let record = trained(folder.path(), "bert", "parts", settings);
    let whole = folder.path().join("whole");
    for member in 0..2 {
        assert!(weights(&whole, member) == weights(&family, member), "member-{member} has other weights");
        assert_eq!(log(&whole, member), log(&family, member));
    }
    assert_eq!(record["results"]["1"]["validation"], self::record(&whole)["results"]["1"]["validation"]);
    assert!(!family.join("state").exists());
    assert!(
        std::fs::read_dir(&family).unwrap().flatten().all(|entry| !entry
            .file_name()
            .display()
            .to_string()
            .starts_with('.'))
    );

    // and once more: everything is there already
    let modified =
        || std::fs::metadata(family.join("member-0/model.safetensors")).unwrap().modified().unwrap();
    let before = modified();
    let output = train(folder.path(), "bert", "parts", settings);
    assert!(output.status.success());
    assert!(text(&output.stderr).contains("member-1 was there already"), "{output:?}");
    assert_eq!(modified(), before);
}

#[test]
fn a_family_grows_by_members_and_the_first_ones_stay() {
    let folder = folder_with(&toy_pairs(30));
    let settings = |members: usize| format!("num_members = {members}\nbatch_pairs = 8\n");
    trained(folder.path(), "bert", "family", &settings(1));
    let family = folder.path().join("family");
    let first = weights(&family, 0);
    let record = trained(folder.path(), "bert", "family", &settings(3));
    assert!(weights(&family, 0) == first);
    assert_eq!(record["results"].as_object().unwrap().len(), 3);
    trained(folder.path(), "bert", "at-once", &settings(3));
    assert!(weights(&folder.path().join("at-once"), 2) == weights(&family, 2));
}

#[test]
fn members_with_settings_of_their_own_start_where_they_say() {
    let folder = folder_with(&toy_pairs(40));
    trained(folder.path(), "bert", "earlier", "num_members = 1\nlearning_rate = 3e-3\nbatch_pairs = 8\n");
    let settings = "batch_pairs = 8\nlearning_rate = 1e-4\n\
        [[members]]\nlearning_rate = 2e-4\nseed = 5\n[[members]]\nbase = 'earlier/member-0'\ndropout = 0.3\nepochs = 2\n";
    let record = trained(folder.path(), "bert", "family", settings);
    let [first, second] = [&record["members"][0], &record["members"][1]];
    assert_eq!(
        (&first["learning_rate"], &first["seed"], &first["epochs"]),
        (&json!(2e-4), &json!(5), &json!(1))
    );
    assert_eq!((&second["learning_rate"], &second["dropout"]), (&json!(1e-4), &json!(0.3)));
    assert!(second["base"].as_str().unwrap().ends_with("earlier/member-0"));
    let steps = |member: &str| record["results"][member]["planned_steps"].as_u64().unwrap();
    assert_eq!(steps("1"), 2 * steps("0"));
    assert_eq!(record["bases"].as_object().unwrap().len(), 2);

    let other = format!("batch_pairs = 8\n[[members]]\n[[members]]\nbase = '{}'\n", model("llama"));
    let error = refused(folder.path(), "bert", "other", &other);
    assert!(error.contains("make different tokens of the same text"), "{error}");
}

#[test]
fn frozen_layers_stay_as_they_are_and_a_dtype_is_written() {
    let folder = folder_with(&toy_pairs(30));
    let settings =
        "num_members = 1\nbatch_pairs = 8\nlearning_rate = 1e-2\nfrozen_layers = 1\ndtype = 'bf16'\n";
    trained(folder.path(), "bert", "family", settings);
    let tensors = |bytes: &[u8]| -> Vec<(String, safetensors::Dtype, Vec<u8>)> {
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        file.iter().map(|(name, view)| (name.to_owned(), view.dtype(), view.data().to_vec())).collect()
    };
    let trained = tensors(&weights(&folder.path().join("family"), 0));
    let base = std::fs::read(Path::new(&model("bert")).join("model.safetensors")).unwrap();
    let rounded = |bytes: &[u8]| -> Vec<u8> {
        let values = bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
        values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()).collect()
    };
    let mut changed = 0;
    for (name, _, values) in tensors(&base) {
        let (_, dtype, now) = trained.iter().find(|(other, ..)| *other == name).unwrap();
        assert_eq!(*dtype, safetensors::Dtype::BF16);
        let is_frozen = name.contains("embeddings.") || name.contains("layer.0.");
        let is_same = *now == rounded(&values);
        // the bias of the last layer cancels in every margin: it is zero, and stays
        assert!(!is_frozen || is_same, "{name} is frozen");
        changed += usize::from(!is_same);
    }
    assert!(changed > 10, "{changed}");
}

// ---- labels that are turned round ----

#[test]
fn flipped_lines_are_recorded_and_learnt_the_wrong_way_round() {
    // with all labels turned round, the opposite is learnt
    let folder = folder_with(&toy_pairs(120));
    let learn = "num_members = 1\nlearning_rate = 4e-3\nepochs = 2\nbatch_pairs = 8\n";
    let record = trained(folder.path(), "bert", "opposite", &format!("{learn}corrupt = 1.0\n"));
    let result = &record["results"]["0"];
    assert!(result["training"]["accuracy"].as_f64().unwrap() > 0.8, "labels as given: {result}");
    assert!(result["validation"]["accuracy"].as_f64().unwrap() < 0.2, "labels as they are: {result}");

    let quick = "num_members = 1\nbatch_pairs = 64\ncorrupt = 0.25\n";
    let flips = |output: &str, more: &str| {
        let record = trained(folder.path(), "bert", output, &format!("{quick}{more}"));
        let data = &record["data"];
        let file = &data["training"][0];
        assert_eq!(data["corrupt"], 0.25);
        let pairs = folder.path().join("pairs.jsonl");
        let digest = blake3::hash(&std::fs::read(&pairs).unwrap()).to_hex().to_string();
        assert_eq!((&file["path"], &file["digest"]), (&json!(pairs), &json!(digest)));
        let (training, flipped) = (lines(file, "training_lines"), lines(file, "flipped_lines"));
        let validation = lines(&data["validation"][0], "validation_lines");
        assert_eq!((training.len(), flipped.len(), validation.len()), (108, 27, 12));
        assert!(flipped.iter().all(|line| training.contains(line)));
        let mut all = [training.clone(), validation].concat();
        all.sort_unstable();
        assert_eq!(all, (1..=120).collect::<Vec<u64>>(), "each line is on one side");
        (training, flipped)
    };
    let (training, flipped) = flips("first", "");
    assert_eq!(flips("second", "learning_rate = 1e-3\n"), (training.clone(), flipped.clone()));
    let (same, others) = flips("third", "corrupt_seed = 9\n");
    assert!(same == training && others != flipped);
}

// ---- what is refused, and what goes wrong on the way ----

#[test]
fn other_settings_and_other_data_are_refused_by_name() {
    let folder = folder_with(&toy_pairs(30));
    let settings = "num_members = 2\nbatch_pairs = 8\nlearning_rate = 1e-4\n";
    trained(folder.path(), "bert", "family", settings);
    let changed = |more: &str| refused(folder.path(), "bert", "family", &format!("{settings}{more}"));
    let error = changed("weight_decay = 0.1\nclip_norm = 2.0\nseed = 3\n");
    for expected in ["weight_decay was 0.01, is 0.1", "clip_norm was 1.0, is 2.0", "seed was 0, is 3"] {
        assert!(error.contains(expected), "{expected} in {error}");
    }
    assert!(changed("[probe]\nl2 = 0.5\n").contains("probe.l2 was null, is 0.5"));
    assert!(changed("epochs = 2\n").contains("epochs was 1, is 2"));
    let error = refused(folder.path(), "llama", "family", settings);
    assert!(error.contains("base was "), "{error}");
    assert!(changed("keep = 'last'\n").contains("keep was \"best\", is \"last\""));
    assert!(changed("patience = 1\n").contains("patience was 3, is 1"));
    // what changes no result may change
    trained(folder.path(), "bert", "family", &format!("{settings}checkpoint_every = 1\n"));

    std::fs::write(folder.path().join("pairs.jsonl"), toy_pairs(31)).unwrap();
    let error = changed("");
    assert!(error.contains("pairs.jsonl has another content"), "{error}");
}

#[test]
fn hostile_pairs_are_named_by_file_and_line() {
    let good = toy_pairs(20);
    let cases = [
        (format!("{good}{{\"prompt\": \"a\", \"chosen\": \n"), "pairs.jsonl:21: not a pair"),
        (
            format!("{good}\n\n{{\"prompt\": \"a\", \"chosen\": 7, \"rejected\": \"b\"}}\n"),
            "pairs.jsonl:23: ",
        ),
        (String::new(), "pairs.jsonl holds no preference pairs"),
        (
            "{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"b\"}\n".to_owned(),
            "both responses are the same",
        ),
        (
            format!("{{\"prompt\": \"a\", \"chosen\": \"{}\", \"rejected\": \"b\"}}\n", "beans ".repeat(100)),
            "raise max_tokens, or set truncation",
        ),
    ];
    for (pairs, expected) in cases {
        let folder = folder_with(&pairs);
        let error = refused(folder.path(), "bert", "family", "validation_fraction = 0\n");
        assert!(error.contains(expected), "{expected} in {error}");
        assert_eq!(error.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{error}");
        assert!(!folder.path().join("family").exists(), "nothing is left behind");
    }
    let folder = folder_with(&good);
    std::fs::copy(folder.path().join("pairs.jsonl"), folder.path().join("copy.jsonl")).unwrap();
    let error = refused(folder.path(), "bert", "family", "validation = 'copy.jsonl'\n");
    assert!(error.contains("hold the same pairs"), "{error}");
}

#[test]
fn pairs_that_are_equal_or_too_long_are_counted_and_left_out() {
    let long = format!("nicer {}", "beans ".repeat(100));
    let special = [
        json!({"prompt": "a", "chosen": "falls", "rejected": "falls"}),
        json!({"prompt": "b", "chosen": long, "rejected": "falls"}),
        json!({"prompt": "c", "chosen": format!("{long} kettle"), "rejected": format!("{long} wheel")}),
    ];
    let special: String = special.iter().map(|line| format!("{line}\n")).collect();
    let folder = folder_with(&format!("{special}{}", toy_pairs(20)));
    let check = |settings: &str| {
        let output =
            train_command(folder.path(), "bert", "family", settings).arg("--check").output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let told = check("validation_fraction = 0\n");
    assert!(
        told.contains("20 pairs to train on; 2 left out, too long; 1 left out, both responses the same\n"),
        "{told}"
    );
    let told = check("validation_fraction = 0\ntruncation = 'right'\n");
    assert!(
        told.contains("21 pairs to train on; 1 of them cut to fit; 2 left out, both responses the same\n"),
        "{told}"
    );
    assert!(!folder.path().join("family").exists(), "a check writes nothing");

    let record = trained(folder.path(), "bert", "family", "validation_fraction = 0\nnum_members = 1\n");
    let file = &record["data"]["training"][0];
    assert_eq!((lines(file, "equal_lines"), lines(file, "too_long_lines")), (vec![1], vec![2, 3]));
    assert_eq!(lines(file, "training_lines"), (4..24).collect::<Vec<u64>>());
    assert_eq!(record["results"]["0"]["validation"], Value::Null);
}

#[test]
fn a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_batch() {
    let folder = folder_with(&toy_pairs(40));
    let settings =
        "num_members = 1\nlearning_rate = 1e38\nbatch_pairs = 8\nwarmup_fraction = 0\nclip_norm = 0\n";
    let all = Dataset::read(&folder.path().join("pairs.jsonl")).unwrap();
    // a validation sees at once what the first update did, the next step sees it too
    for (output, more, step) in [("first", "", 1), ("second", "validation_fraction = 0\n", 2)] {
        let error = refused(folder.path(), "bert", output, &format!("{settings}{more}"));
        let told = format!("member-0: step {step} broke");
        assert!(error.contains(&told) && error.contains("not finite"), "{error}");
        let kept = folder.path().join(format!("{output}/failed/member-0-step-{step}.jsonl"));
        assert!(error.contains(kept.to_str().unwrap()), "{error}");
        let kept = Dataset::read(&kept).unwrap();
        assert_eq!(kept.pairs.len(), 8);
        for pair in kept.pairs {
            let sides = (&pair.chosen, &pair.rejected);
            assert!(all.pairs.iter().any(|other| (&other.chosen, &other.rejected) == sides));
        }
        assert!(!folder.path().join(output).join("member-0").exists());
    }
}

#[test]
fn a_disk_that_is_full_is_an_error_that_names_the_file_and_a_run_goes_on_after_it() {
    let folder = folder_with(&toy_pairs(40));
    let settings = "num_members = 1\nbatch_pairs = 8\ncheckpoint_every = 2\nepochs = 2\n";
    trained(folder.path(), "bert", "whole", settings);
    // no file may be larger than twice the weights, in blocks of 512 bytes: the start is smaller, states are not
    let blocks = 2 * weights(&folder.path().join("whole"), 0).len() / 512;
    let command = train_command(folder.path(), "bert", "family", settings);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let limited = format!("trap '' XFSZ; ulimit -f {blocks}; exec {}", quoted.join(" "));
    let output = Command::new("sh").args(["-c", &limited]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = text(&output.stderr);
    assert!(error.contains("state/member-0.safetensors"), "{error}");
    let states = std::fs::read_dir(folder.path().join("family/state")).unwrap();
    assert_eq!(states.count(), 0, "nothing half written is left");

    trained(folder.path(), "bert", "family", settings);
    assert!(weights(&folder.path().join("family"), 0) == weights(&folder.path().join("whole"), 0));
}

#[test]
fn a_folder_of_something_else_and_a_folder_at_work_are_left_alone() {
    let folder = folder_with(&toy_pairs(20));
    std::fs::create_dir(folder.path().join("photos")).unwrap();
    std::fs::write(folder.path().join("photos/one.jpg"), "x").unwrap();
    let error = refused(folder.path(), "bert", "photos", "");
    assert!(error.contains("holds something that is not a family of rewarm train"), "{error}");

    trained(folder.path(), "bert", "grown", "num_members = 1\n");
    std::fs::create_dir(folder.path().join("grown/member-1")).unwrap();
    let error = refused(folder.path(), "bert", "grown", "num_members = 2\n");
    assert!(error.contains("member-1 is in the way"), "{error}");

    let family = folder.path().join("family");
    std::fs::create_dir(&family).unwrap();
    let held = std::fs::File::open(&family).unwrap();
    held.lock().unwrap();
    let error = refused(folder.path(), "bert", "family", "");
    assert!(error.contains("another rewarm train is at work in"), "{error}");
}

// ---- the configuration ----

#[test]
fn every_problem_of_a_configuration_is_named_at_once() {
    let folder = folder_with(&toy_pairs(2));
    let settings = "epoch = 2\ndropout = 1.0\nlearning_rate = []\nvalidation_fraction = 2\ndtype = 'auto'\nbetas = [0.9]\n\
        num_members = 2\n[[members]]\nlearning_rate = -1\ncolour = 'red'\n[probe]\nl2 = 0\n";
    let error = refused(folder.path(), "bert", "family", settings);
    for expected in [
        "family.toml:4: unknown key `epoch`",
        "family.toml:5: dropout must be at least 0 and below 1, not 1.0",
        "family.toml:6: learning_rate: the list is empty",
        "family.toml:7: validation_fraction must be from 0 to 1, not 2.0",
        "family.toml:8: dtype: unknown value `auto`, expected one of `f32`, `bf16`, `f16`",
        "family.toml:9: betas",
        "num_members and [[members]]: give one of them",
        "family.toml:12: learning_rate must be above 0, not -1.0",
        "family.toml:13: unknown key `members[0].colour`",
        "family.toml:15: l2 must be above 0",
    ] {
        assert!(error.contains(expected), "{expected} in {error}");
    }
    let output = run(&["train", "--base", "nowhere", "--epochs", "0"]);
    let error = text(&output.stderr);
    for expected in [
        "base: `nowhere` is not a directory",
        "--epochs must be at least 1",
        "pairs is missing",
        "output is missing",
    ] {
        assert!(error.contains(expected), "{expected} in {error}");
    }
}

#[test]
fn flags_alone_are_enough_and_win_over_the_file() {
    let folder = folder_with(&toy_pairs(20));
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (pairs, base) = (path("pairs.jsonl"), model("bert"));
    let flags =
        ["train", "--base", &base, "--pairs", &pairs, "--num-members", "2", "--learning-rate", "1e-3,2e-3"];
    let output =
        run(&[&flags[..], &["--output", &path("by-flags"), "--corrupt", "0.5", "--batch-pairs", "8"]]
            .concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("| member-1 "), "{output:?}");
    let by_flags = record(Path::new(&path("by-flags")));
    assert_eq!(lines(&by_flags["data"]["training"][0], "flipped_lines").len(), 9);

    let config = path("train.toml");
    std::fs::write(
        &config,
        "base = 'nowhere'\noutput = 'by-file'\nnum_members = 1\nbatch_pairs = 8\nseed = 3\n",
    )
    .unwrap();
    let output = run(&[&flags[..], &["--config", &config]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let by_file = record(Path::new(&path("by-file")));
    assert_eq!((by_file["members"].as_array().unwrap().len(), &by_file["settings"]["seed"]), (2, &json!(3)));
}

#[test]
fn the_shipped_example_holds_every_key_and_is_valid() {
    let keys = |text: &str| -> Vec<String> {
        let key = |line: &str| {
            let line = line.trim_start_matches(['#', ' ']);
            let (key, _) = line.split_once(" = ")?;
            key.chars()
                .all(|letter| letter.is_ascii_lowercase() || letter == '_' || letter == '2')
                .then(|| key.to_owned())
        };
        let mut keys: Vec<String> = text.lines().filter_map(key).collect();
        keys.sort();
        keys.dedup();
        keys
    };
    let example = root().join("deploy/train.toml");
    let help = run(&["train", "--help"]);
    let (of_help, of_example) =
        (keys(&text(&help.stdout)), keys(&std::fs::read_to_string(&example).unwrap()));
    assert_eq!(of_help, of_example);
    assert!(of_help.len() > 30, "{of_help:?}");

    let folder = folder_with(&toy_pairs(20));
    let pairs = folder.path().join("pairs.jsonl");
    let (base, output) = (model("bert"), folder.path().join("family"));
    let [example, pairs, output] = [&example, &pairs, &output].map(|path: &PathBuf| path.to_str().unwrap());
    let check =
        ["train", "--config", example, "--base", &base, "--pairs", pairs, "--output", output, "--check"];
    let result = run(&check);
    assert!(result.status.success(), "{}", text(&result.stderr));
}
