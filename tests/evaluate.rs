//! `rewarm evaluate` as a user runs it, against figures that `tests/reference/evaluate.py` computed with numpy, scipy
//! and scikit-learn.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use program::root;
use program::run;
use program::score;
use program::text;
use rewarm::text::dataset::Dataset;
use serde_json::Value;
use serde_json::json;

/// Rewards may differ in their last digits: another machine sums in another order.
const ATOL: f64 = 2e-4;
const MEMBERS: [&str; 3] = ["member-0", "member-1", "member-2"];

fn data(name: &str) -> PathBuf {
    root().join("tests/data/evaluate").join(name)
}

fn members() -> String {
    MEMBERS.map(|name| data(name).display().to_string()).join(",")
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Runs it on the tiny family; `args` say on what.
fn evaluate(output: &Path, args: &[&str]) -> Value {
    let members = members();
    let base = ["evaluate", "--members", &members, "--output", output.to_str().unwrap()];
    let run = run(&[&base, args].concat());
    assert!(run.status.success(), "{run:?}");
    // member-1 alone has a calibration: no reason to warn, least of all for every merge of the curves
    assert_eq!(text(&run.stderr), "");
    assert!(text(&run.stdout).contains("index.html"), "{run:?}");
    read_json(&output.join("evaluation.json"))
}

/// The error line of a run that must fail.
fn refusal(args: &[&str]) -> String {
    let output = tempfile::tempdir().unwrap();
    let run = run(&[&["evaluate", "--output", output.path().to_str().unwrap()], args].concat());
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert_eq!(text(&run.stdout), "");
    let error = text(&run.stderr).lines().last().unwrap().to_owned();
    assert!(error.starts_with("error: "), "{error}");
    assert_eq!(fs::read_dir(output.path()).unwrap().count(), 0, "nothing half done stays behind");
    error
}

#[track_caller]
fn assert_close(found: &Value, expected: &Value, tolerance: f64, what: &str) {
    let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
    assert!((found - expected).abs() <= tolerance, "{what}: {found} is not {expected}");
}

/// Holds one set of `evaluation.json` to the reference.
fn assert_set(set: &Value, expected: &Value) {
    let name = set["name"].as_str().unwrap();
    assert_eq!(set["pairs"], expected["pairs"], "{name}");
    // one step of an accuracy for Monte Carlo error, and one for where a percentile falls between two steps
    let interval_atol = 2.0 / set["pairs"].as_f64().unwrap();
    let is_corrupted = set["part"] == "corrupted";
    for (model, expected) in
        set["models"].as_array().unwrap().iter().zip(expected["models"].as_array().unwrap())
    {
        let what = |figure: &str| format!("{figure} of {} on {name}", model["name"]);
        for figure in ["accuracy_ties_half", "ties", "mean_margin", "log_loss"] {
            assert_close(&model[figure], &expected[figure], ATOL, &what(figure));
        }
        for figure in ["reward_length_pearson", "reward_length_spearman"] {
            assert_close(&model[figure], &expected[figure], ATOL, &what(figure));
        }
        assert_close(&model["accuracy"]["value"], &expected["accuracy"], 1e-12, &what("accuracy"));
        let ece = &model["reliability"]["expected_calibration_error"];
        assert_close(ece, &expected["expected_calibration_error"], ATOL, &what("ece"));
        let controlled = &model["length_controlled"]["accuracy"];
        assert_close(controlled, &expected["length_controlled"], 1e-12, &what("length-controlled accuracy"));
        let estimate = if is_corrupted { &model["memorised"] } else { &model["accuracy"] };
        assert_close(&estimate["value"], &expected["hits"], 1e-12, &what("hits"));
        for (end, name) in ["low", "high"].into_iter().enumerate() {
            assert_close(&estimate[name], &expected["interval"][end], 1e-12, &what(name));
            let of_bootstrap = &estimate["bootstrap"][name];
            assert_close(of_bootstrap, &expected["bootstrap"][end], interval_atol, &what("bootstrap"));
        }
        let bins = model["reliability"]["bins"].as_array().unwrap();
        let expected_bins = expected["bins"].as_array().unwrap();
        assert_eq!(bins.len(), expected_bins.len(), "{}", what("bins"));
        for (bin, expected) in bins.iter().zip(expected_bins) {
            for (place, figure) in ["accuracy", "low", "high"].into_iter().enumerate() {
                assert_close(&bin[figure], &expected[place], 1e-12, &what("bin"));
            }
        }
    }
    let differences = if is_corrupted { &set["memorised_differences"] } else { &set["differences"] };
    let mut compared = 0;
    for difference in differences.as_array().unwrap() {
        let title =
            format!("{} - {}", difference["of"].as_str().unwrap(), difference["against"].as_str().unwrap());
        if let Some(expected) = expected["differences"].get(&title) {
            assert_close(&difference["value"], &expected[0], 1e-12, &title);
            for (end, name) in ["low", "high"].into_iter().enumerate() {
                // Tango's ends are found to half the digits there
                assert_close(&difference[name], &expected[1 + end], 1e-6, &title);
                assert_close(&difference["bootstrap"][name], &expected[3 + end], interval_atol, &title);
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 6, "WARM − ENS, and five models − the mean member");
    assert_close(&set["length_baseline"]["accuracy"], &expected["length_baseline"], 1e-12, "length baseline");
    for matrix in ["same_side", "pearson", "spearman"] {
        for row in 0..5 {
            for column in 0..5 {
                let what = format!("{matrix} [{row}][{column}] on {name}");
                let found = &set["agreement"][matrix][row][column];
                assert_close(found, &expected[matrix][row][column], ATOL, &what);
            }
        }
    }
    let sources = set["sources"].as_array().unwrap();
    assert_eq!(sources.len(), expected["sources"].as_object().unwrap().len());
    for source in sources {
        let expected = &expected["sources"][source["source"].as_str().unwrap_or("None")];
        for model in 0..5 {
            assert_close(&source["accuracy"][model], &expected[model], 1e-12, &format!("{source}"));
        }
    }
}

/// A training record of the pairs, as `rewarm train` writes it.
fn write_record(folder: &Path, digest: &str) -> PathBuf {
    let lines = &read_json(&data("expected.json"))["lines"];
    let record = json!({
        "settings": {"epochs": 3},
        "data": {"training": [{
            "path": "elsewhere/pairs.jsonl",
            "digest": digest,
            "training_lines": lines["training"],
            "flipped_lines": lines["flipped"],
        }]},
    });
    let path = folder.join("train.json");
    fs::write(&path, record.to_string()).unwrap();
    path
}

fn digest(path: &Path) -> String {
    blake3::Hash::from_bytes(Dataset::read(path).unwrap().digest).to_hex().to_string()
}

#[test]
fn every_figure_equals_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = format!("all={}", data("pairs.jsonl").display());
    let candidates = data("candidates.jsonl");
    let gold = data("member-2");
    let found = evaluate(
        folder.path(),
        &[
            "--pairs",
            &pairs,
            "--resamples",
            "3000",
            "--curve",
            "off",
            "--subsets",
            "0",
            "--best-of-n",
            candidates.to_str().unwrap(),
            "--gold",
            gold.to_str().unwrap(),
        ],
    );
    let expected = read_json(&data("expected.json"));
    let set = &found["sets"][0];
    assert_set(set, &expected["all"]);
    assert_eq!(set["equal_lines"], expected["equal_lines"]);
    let unscorable = set["unscorable"].as_array().unwrap();
    let lines: Vec<&Value> = unscorable.iter().map(|pair| &pair["line"]).collect();
    assert_eq!(json!(lines), expected["unscorable"]);
    assert!(unscorable[0]["problem"].as_str().unwrap().contains("the limit is 64"), "{unscorable:?}");
    assert!(set["models"][0]["ties"].as_f64().unwrap() > 0.0);

    let best_of_n = &found["best_of_n"];
    for point in best_of_n["points"].as_array().unwrap() {
        let n = point["n"].to_string();
        assert_close(&point["kl"], &expected["kl"][&n], 1e-12, "kl");
        for model in 0..5 {
            let value = &point["models"][model]["value"];
            assert_close(
                value,
                &expected["best_of_n"][&n][model],
                ATOL,
                &format!("best of {n}, model {model}"),
            );
        }
        // the gold model is member-2 itself
        assert_close(&point["gold"], &expected["best_of_n"][&n][2], ATOL, "gold");
    }
    assert_eq!(best_of_n["points"].as_array().unwrap().len(), 4);
}

#[test]
fn a_training_record_splits_the_file_it_speaks_of_by_content() {
    let folder = tempfile::tempdir().unwrap();
    // another name and place: the content counts
    let copy = folder.path().join("copy.jsonl");
    fs::copy(data("pairs.jsonl"), &copy).unwrap();
    let record = write_record(folder.path(), &digest(&copy));
    let found = evaluate(
        &folder.path().join("out"),
        &[
            "--pairs",
            &format!("train={}", copy.display()),
            "--record",
            record.to_str().unwrap(),
            "--resamples",
            "3000",
            "--curve",
            "off",
            "--subsets",
            "0",
        ],
    );
    let expected = read_json(&data("expected.json"));
    let sets = found["sets"].as_array().unwrap();
    let parts: Vec<&str> = sets.iter().map(|set| set["part"].as_str().unwrap()).collect();
    assert_eq!(parts, ["clean", "corrupted", "held-out"]);
    for (set, part) in sets.iter().zip(parts) {
        assert_set(set, &expected[part]);
    }
    assert_eq!(sets[1]["name"], "train (corrupted)");
    assert!(sets[0]["models"][0]["memorised"].is_null());

    let other = write_record(folder.path(), &"0".repeat(64));
    let pairs = format!("train={}", copy.display());
    let error = refusal(&["--members", &members(), "--pairs", &pairs, "--record", other.to_str().unwrap()]);
    assert!(error.contains("none of the pairs files has the content") && error.contains("00000"), "{error}");

    fs::write(&copy, fs::read_to_string(&copy).unwrap().lines().next().unwrap()).unwrap();
    let torn = write_record(folder.path(), &digest(&copy));
    let error = refusal(&["--members", &members(), "--pairs", &pairs, "--record", torn.to_str().unwrap()]);
    assert!(error.contains("training_lines hold line 2, where") && error.contains("has no pair"), "{error}");
}

#[test]
fn rewards_are_those_of_score_and_each_seed_repeats() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pairs = data("pairs.jsonl");
    let args = ["--pairs", pairs.to_str().unwrap(), "--resamples", "200", "--batch-tokens", "300"];
    let mut found = evaluate(first.path(), &args);
    let mut again = evaluate(second.path(), &args);
    for evaluation in [&mut found, &mut again] {
        assert!(evaluation["cost"]["ens_over_warm"].as_f64().unwrap() > 0.0);
        evaluation.as_object_mut().unwrap().remove("cost"); // measured seconds
        evaluation.as_object_mut().unwrap().remove("verdict"); // tells the cost
    }
    assert_eq!(found, again);
    assert_eq!(found["sets"][0]["name"], "pairs", "a file without a name is named after itself");

    let rewards = fs::read_to_string(first.path().join("rewards.jsonl")).unwrap();
    let rewards: Vec<Value> = rewards.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (scored, failed): (Vec<Value>, Vec<Value>) =
        rewards.into_iter().partition(|line| line["error"].is_null());
    assert_eq!((scored.len(), failed.len()), (116, 2));
    let source = fs::read_to_string(&pairs).unwrap();
    let source: Vec<Value> = source.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let chosen: String = scored
        .iter()
        .map(|line| &source[line["line"].as_u64().unwrap() as usize - 1])
        .map(|pair| format!("{}\n", json!({"prompt": pair["prompt"], "response": pair["chosen"]})))
        .collect();
    for (model, arguments) in [
        ("member-1", vec!["--model".to_owned(), data("member-1").display().to_string()]),
        ("WARM", vec!["--members".to_owned(), members(), "--mode".to_owned(), "warm".to_owned()]),
        ("ENS", vec!["--members".to_owned(), members(), "--mode".to_owned(), "ens".to_owned()]),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = text(&score(&arguments, chosen.clone()).stdout).to_owned();
        for (line, expected) in scored.iter().zip(output.lines()) {
            let expected: Value = serde_json::from_str(expected).unwrap();
            assert_close(&line["chosen"][model], &expected["reward"], 1e-5, model);
            assert_eq!(line["chosen_tokens"], expected["tokens"]);
        }
    }
}

#[test]
fn curves_start_and_end_at_what_was_measured_already() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = data("pairs.jsonl");
    let found = evaluate(
        folder.path(),
        &["--pairs", pairs.to_str().unwrap(), "--resamples", "50", "--curve", "pairs", "--curve-on", "pairs"],
    );
    let accuracy = |model: usize| found["sets"][0]["models"][model]["accuracy"]["value"].as_f64().unwrap();
    let lines = found["interpolations"].as_array().unwrap();
    let ends: Vec<(&str, &str)> = lines
        .iter()
        .map(|line| (line["first"].as_str().unwrap(), line["second"].as_str().unwrap()))
        .collect();
    assert_eq!(ends, [("member-0", "member-1"), ("member-0", "member-2"), ("member-1", "member-2")]);
    for (line, (first, second)) in lines.iter().zip([(0, 1), (0, 2), (1, 2)]) {
        let points = line["points"].as_array().unwrap();
        assert_eq!(points.len(), 11);
        assert_eq!(points[0]["accuracy"], accuracy(first));
        assert_eq!(points[10]["accuracy"], accuracy(second));
        let middle = (accuracy(first) + accuracy(second)) / 2.0;
        assert_close(&points[5]["straight_accuracy"], &json!(middle), 1e-12, "straight line");
    }
    // half way is the equal merge of two
    let half = evaluate(
        &folder.path().join("half"),
        &[
            "--pairs",
            pairs.to_str().unwrap(),
            "--resamples",
            "50",
            "--coefficients",
            "0.5,0.5,0",
            "--curve",
            "off",
            "--subsets",
            "0",
        ],
    );
    assert_eq!(lines[0]["points"][5]["accuracy"], half["sets"][0]["models"][3]["accuracy"]["value"]);
    assert_close(
        &lines[0]["points"][5]["log_loss"],
        &half["sets"][0]["models"][3]["log_loss"],
        1e-12,
        "log-loss half way",
    );

    let counts = found["member_counts"].as_array().unwrap();
    let subsets: Vec<&Value> = counts.iter().map(|count| &count["subsets"]).collect();
    assert_eq!(json!(subsets), json!([3, 3, 1]));
    let mean = (0..3).map(accuracy).sum::<f64>() / 3.0;
    for mode in ["warm", "ens"] {
        assert_close(&counts[0][mode]["mean"], &json!(mean), 1e-12, "one member");
    }
    assert_close(&counts[2]["warm"]["mean"], &json!(accuracy(3)), 1e-12, "WARM of all");
    assert_close(&counts[2]["ens"]["mean"], &json!(accuracy(4)), 1e-12, "ENS of all");
}

#[test]
fn the_page_needs_nothing_else_and_user_text_stays_text() {
    let folder = tempfile::tempdir().unwrap();
    let record = write_record(folder.path(), &digest(&data("pairs.jsonl")));
    let (train, candidates) = (format!("train={}", data("pairs.jsonl").display()), data("candidates.jsonl"));
    let other = folder.path().join("other.jsonl");
    fs::write(&other, "{\"prompt\":\"about\",\"chosen\":\"beans\",\"rejected\":\"harbour\"}\n").unwrap();
    let named = format!("<img src>&={}", other.display());
    evaluate(
        folder.path(),
        &[
            "--pairs",
            &named,
            &train,
            "--record",
            record.to_str().unwrap(),
            "--best-of-n",
            candidates.to_str().unwrap(),
            "--gold",
            data("member-0").to_str().unwrap(),
            "--resamples",
            "50",
        ],
    );
    let page = fs::read_to_string(folder.path().join("index.html")).unwrap();
    for foreign in ["http:", "https:", "<script", "<link", "@import", "url(", "<img", "<kitchen>", "NaN"] {
        assert!(!page.contains(foreign), "the page holds {foreign}");
    }
    assert!(page.contains("&lt;img src&gt;&amp;") && page.contains("&lt;kitchen&gt;"));
    for section in [
        "Accuracy",
        "Differences",
        "Memorised labels",
        "Between and among members",
        "Best of n",
        "Reliability",
        "Agreement",
        "All figures",
    ] {
        assert!(page.contains(&format!("<h2>{section}</h2>")), "{section} is missing");
    }
    // each plot says what it is, and what it draws is where a number is
    assert_eq!(
        page.matches("role=\"img\" aria-label=").count(),
        page.matches("<svg viewBox=\"0 0 440").count()
    );
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert_eq!(page.matches("<g>").count(), page.matches("</g>").count());
}

#[test]
fn a_single_model_and_pairs_that_all_tie_have_figures_too() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = folder.path().join("ties.jsonl");
    let line = "{\"prompt\":\"about\",\"chosen\":\"Zephyr\",\"rejected\":\"quartz\"}\n";
    fs::write(&pairs, line.repeat(3)).unwrap();
    let out = folder.path().join("out");
    let member = data("member-0");
    let [member, pairs, out_path] = [&member, &pairs, &out].map(|path| path.to_str().unwrap());
    let run =
        run(&["evaluate", "--members", member, "--pairs", pairs, "--output", out_path, "--resamples", "20"]);
    assert!(run.status.success(), "{run:?}");
    let found = read_json(&out.join("evaluation.json"));
    assert_eq!(found["models"].as_array().unwrap().len(), 1);
    let model = &found["sets"][0]["models"][0];
    // Wilson's of none of three: z² / (3 + z²)
    let accuracy = &model["accuracy"];
    assert_eq!((&accuracy["value"], &accuracy["low"]), (&json!(0.0), &json!(0.0)));
    assert_close(&accuracy["high"], &json!(0.561_497_031_754_308), 1e-12, "high end");
    assert_eq!(accuracy["bootstrap"], json!({"low": 0.0, "high": 0.0}));
    assert_eq!((&model["ties"], &model["accuracy_ties_half"]), (&json!(1.0), &json!(0.5)));
    assert_close(&model["log_loss"], &json!(2.0_f64.ln()), 1e-12, "log-loss");
    // one text, one length: there is nothing to correlate or to balance
    assert!(model["reward_length_spearman"].is_null() && model["length_controlled"]["accuracy"].is_null());
    assert!(found["cost"].is_null() && found["interpolations"].as_array().unwrap().is_empty());
    assert!(found["sets"][0]["differences"].as_array().unwrap().is_empty());
    let page = fs::read_to_string(out.join("index.html")).unwrap();
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn equal_models_are_not_known_to_be_equal_and_the_verdict_says_what_could_have_been_seen() {
    let folder = tempfile::tempdir().unwrap();
    let lines = fs::read_to_string(data("pairs.jsonl")).unwrap();
    let pairs = folder.path().join("sixty.jsonl");
    fs::write(
        &pairs,
        lines.lines().filter(|line| !line.contains("Zephyr")).take(62).collect::<Vec<_>>().join("\n"),
    )
    .unwrap();
    let out = folder.path().join("out");
    // a member, itself as the merge and itself as the start: whatever it judges, no two of them differ
    let member = data("member-0").display().to_string();
    let args =
        ["--members", &member, "--warm", &member, "--start", &member, "--pairs", pairs.to_str().unwrap()];
    let run = run(&[&["evaluate"], &args[..], &["--output", out.to_str().unwrap()]].concat());
    assert!(run.status.success(), "{run:?}");
    let found = read_json(&out.join("evaluation.json"));
    let set = &found["sets"][0];
    let count = set["pairs"].as_f64().unwrap();
    assert!((58.0..=62.0).contains(&count), "{count}");
    let names: Vec<&str> =
        found["models"].as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["member-0", "WARM", "start"]);
    let differences = set["differences"].as_array().unwrap();
    let titles: Vec<String> = differences
        .iter()
        .map(|one| format!("{} - {}", one["of"].as_str().unwrap(), one["against"].as_str().unwrap()))
        .collect();
    assert_eq!(titles, ["WARM - start", "member-0 - start", "WARM - member-0"]);
    let z_squared = 1.959_963_984_540_054_f64.powi(2);
    for difference in differences {
        assert_eq!(difference["value"], json!(0.0));
        assert_close(&difference["high"], &json!(z_squared / (count + z_squared)), 1e-9, "high end");
        assert_close(&difference["low"], &json!(-z_squared / (count + z_squared)), 1e-9, "low end");
        assert_eq!(
            (&difference["only_of"], &difference["only_against"], &difference["p_value"]),
            (&json!(0), &json!(0), &json!(1.0))
        );
        assert!(difference["detectable"].as_f64().unwrap() > 0.05);
    }
    let told = text(&run.stdout);
    for expected in ["cannot tell WARM from the start", "95% interval −0.06 to +0.06", "| start "] {
        assert!(told.contains(expected), "{expected} in {told}");
    }
    let widest = told.lines().filter(|line| line.starts_with('|')).map(|line| line.chars().count()).max();
    assert!(widest.unwrap() <= 100, "{told}");
}

#[test]
fn two_evaluations_of_the_same_pairs_compare_pair_by_pair_and_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let pairs = data("pairs.jsonl");
    let fast = ["--pairs", pairs.to_str().unwrap(), "--resamples", "50", "--curve", "off", "--subsets", "0"];
    evaluate(&first, &fast);
    let other = first.join("evaluation.json");
    let against = ["--against", other.to_str().unwrap()];
    // member-2 in place of the merge: what WARM was there is known from the first run's rewards
    let warm = data("member-2");
    let found = evaluate(&second, &[&fast[..], &against, &["--warm", warm.to_str().unwrap()]].concat());
    let expected = read_json(&other);
    let set = &found["sets"][0];
    let differences = set["differences_against"].as_array().unwrap();
    let titles: Vec<(&str, &str)> = differences
        .iter()
        .map(|one| (one["of"].as_str().unwrap(), one["against"].as_str().unwrap()))
        .collect();
    assert_eq!(titles, [("WARM", "WARM there"), ("ENS", "ENS there")]);
    let accuracy = |evaluation: &Value, model: usize| {
        evaluation["sets"][0]["models"][model]["accuracy"]["value"].as_f64().unwrap()
    };
    assert_close(
        &differences[0]["value"],
        &json!(accuracy(&found, 3) - accuracy(&expected, 3)),
        1e-12,
        "WARM",
    );
    assert!(differences[0]["only_of"].as_u64().unwrap() > 0, "{differences:?}");
    assert_eq!(
        (&differences[1]["only_of"], &differences[1]["only_against"]),
        (&json!(0), &json!(0)),
        "ENS is the same"
    );
    assert!(fs::read_to_string(second.join("index.html")).unwrap().contains("Against the other evaluation"));

    let members = members();
    let refused = |more: &[&str]| refusal(&[&["--members", &members], &against[..], more].concat());
    let fewer = folder.path().join("fewer.jsonl");
    fs::write(&fewer, fs::read_to_string(&pairs).unwrap().lines().next().unwrap()).unwrap();
    let error = refused(&["--pairs", fewer.to_str().unwrap()]);
    assert!(error.contains("has no set of the same content as fewer"), "{error}");
    let error = refused(&[&fast[..], &["--truncation", "right"]].concat());
    assert!(error.contains("judged other lines of pairs: 116 pairs there, 118 here"), "{error}");
}

#[test]
fn a_merge_that_was_made_already_is_taken_as_it_is_and_long_samples_can_be_cut() {
    let folder = tempfile::tempdir().unwrap();
    let (pairs, warm) = (data("pairs.jsonl"), data("member-2"));
    let members = members();
    let out = folder.path().to_str().unwrap();
    let args =
        ["--members", &members, "--pairs", pairs.to_str().unwrap(), "--resamples", "50", "--curve", "off"];
    let more = ["--warm", warm.to_str().unwrap(), "--truncation", "right", "--output", out];
    let run = run(&[&["evaluate"], &args[..], &more].concat());
    assert!(run.status.success(), "{run:?}");
    let found = read_json(&folder.path().join("evaluation.json"));
    let set = &found["sets"][0];
    assert_eq!((&set["pairs"], &set["truncated_pairs"]), (&json!(118), &json!(2)));
    assert!(set["unscorable"].as_array().unwrap().is_empty());
    let (mut member, mut warm) = (set["models"][2].clone(), set["models"][3].clone());
    assert_eq!(warm["name"], "WARM");
    member["name"].take();
    warm["name"].take();
    assert_eq!(warm, member, "member-2 was given as the merge");
    // all members' merge by the curve is another model
    assert_ne!(found["member_counts"][2]["warm"]["mean"], warm["accuracy"]["value"]);

    let llama = root().join("tests/data/models/llama").display().to_string();
    let error = refusal(&[&args[..], &["--warm", &llama]].concat());
    assert!(error.contains("member-0/tokenizer.json and \"BPE\" in "), "{error}");
}

#[test]
fn what_cannot_be_evaluated_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let good = "{\"prompt\":\"p\",\"chosen\":\"about\",\"rejected\":\"beans\"}\n";
    let good_path = write("good.jsonl", good);
    let long = format!("{{\"prompt\":\"p\",\"chosen\":\"{}\",\"rejected\":\"b\"}}\n", "beans ".repeat(80));
    let all = members();
    let llama =
        format!("{},{}", data("member-0").display(), root().join("tests/data/models/llama").display());
    // same words, another activation: an ensemble could be made of them, a merge could not
    let gelu_new = folder.path().join("gelu-new");
    fs::create_dir(&gelu_new).unwrap();
    for file in fs::read_dir(data("member-0")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), gelu_new.join(file.file_name())).unwrap();
    }
    let config = fs::read_to_string(gelu_new.join("config.json")).unwrap();
    assert!(config.contains("\"gelu\""));
    fs::write(gelu_new.join("config.json"), config.replace("\"gelu\"", "\"gelu_new\"")).unwrap();
    let unlike = format!("{},{}", data("member-0").display(), gelu_new.display());
    let cases: [(&[&str], &str); 12] = [
        (&["--members", &unlike, "--pairs", &good_path], "cannot be merged: "),
        (
            &["--members", &all, "--pairs", &write("bad.jsonl", &format!("{good}{{\n"))],
            "bad.jsonl:2: not a pair",
        ),
        (
            &["--members", &all, "--pairs", &write("empty.jsonl", "\n")],
            "empty.jsonl holds no preference pairs",
        ),
        (&["--members", &all, "--pairs", "nowhere.jsonl"], "nowhere.jsonl"),
        (&["--members", &all, "--pairs", &write("long.jsonl", &long)], "can be scored: line 1: chosen: "),
        (&["--members", &all, "--pairs", &good_path, &good_path], "two files of pairs are called `good`"),
        (
            &["--members", &all, "--pairs", &good_path, "--curve-on", "other"],
            "the files of pairs are called good",
        ),
        (&["--members", &llama, "--pairs", &good_path], "must make the same ones of a text, but "),
        (&["--members", &all, "--pairs", &good_path, "--coefficients", "0.5,0.5"], "coefficients"),
        (&["--members", &all, "--pairs", &good_path, "--reduction", "uwo=-1"], "reduction"),
        (
            &["--members", &all, "--pairs", &good_path, "--record", &write("r.json", "{}")],
            "r.json: missing field",
        ),
        (
            &[
                "--members",
                &all,
                "--pairs",
                &good_path,
                "--best-of-n",
                &good_path,
                "--gold",
                &data("member-0").display().to_string(),
            ],
            "good.jsonl:1: not a prompt with responses: missing field `responses`",
        ),
    ];
    for (args, reason) in cases {
        let error = refusal(args);
        assert!(error.contains(reason), "{error} does not say {reason}");
    }
}
