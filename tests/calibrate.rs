//! `rewarm calibrate` as a user runs it, and the self-test of a server with what it wrote.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::path::PathBuf;

use program::Server;
use program::root;
use program::run;
use program::score;
use program::text;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::VariantConfig;
use rewarm::proto::ReloadRequest;
use rewarm::proto::admin_service_client::AdminServiceClient;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

const REFERENCES: &str = "deploy/demo/pairs.jsonl";

/// What makes a copy of a checkpoint, without what was calibrated of it.
const FILES: [&str; 5] =
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// Copies of checkpoints, `m0`, `m1` and so on, in a folder of their own.
struct Members {
    folder: TempDir,
    names: Vec<String>,
}

impl Members {
    fn copy(sources: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..sources.len()).map(|index| format!("m{index}")).collect();
        for (source, name) in sources.iter().zip(&names) {
            let target = folder.path().join(name);
            fs::create_dir(&target).unwrap();
            for file in FILES {
                let source = root().join(source).join(file);
                if source.exists() {
                    fs::copy(source, target.join(file)).unwrap();
                }
            }
        }
        Self { folder, names }
    }

    /// Two members of the demo family.
    fn demo() -> Self {
        Self::copy(&["deploy/demo/member-0", "deploy/demo/member-1"])
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn paths(&self) -> Vec<String> {
        self.names.iter().map(|name| self.path(name).display().to_string()).collect()
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap()
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_str(&self.read(file)).unwrap()
    }

    /// Runs `rewarm calibrate` on all of them: exit code 0 or not, and what it said.
    fn try_calibrate(&self, args: &[&str]) -> Result<String, String> {
        let paths = self.paths();
        let members: Vec<&str> = paths.iter().map(String::as_str).collect();
        let output = run(&[&["calibrate"], &members[..], args].concat());
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn calibrate(&self, args: &[&str]) -> String {
        self.try_calibrate(args).unwrap()
    }

    /// The file of a configuration that serves them as an ensemble, with more lines for its variant.
    fn config(&self, lines: &str) -> String {
        let path = self.path("serve.toml");
        let members = serde_json::to_string(&self.names).unwrap();
        let variant = format!("[variants.ens]\nmode = 'ens'\nmembers = {members}\n{lines}\n");
        fs::write(&path, format!("[server]\ndrain_grace_seconds = 0\n{variant}")).unwrap();
        path.display().to_string()
    }

    /// Why a server does not start.
    fn refused(&self, lines: &str) -> String {
        let config = self.config(lines);
        let any = "127.0.0.1:0";
        let args = [
            "serve",
            "--config",
            &config,
            "--log-level",
            "error",
            "--listen",
            any,
            "--admin",
            any,
            "--metrics",
            any,
        ];
        let output = run(&args);
        assert_eq!(output.status.code(), Some(1));
        let error = text(&output.stderr);
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    /// Changes a JSON file.
    fn change(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let mut document = self.json(file);
        change(&mut document);
        fs::write(self.path(file), document.to_string()).unwrap();
    }
}

fn raw_rewards(member: &Path, lines: &str) -> Vec<f64> {
    let output = score(&["--model", member.to_str().unwrap()], lines);
    assert!(output.status.success(), "{output:?}");
    let reward = |line: &str| serde_json::from_str::<Value>(line).unwrap()["reward"].as_f64().unwrap();
    text(&output.stdout).lines().map(reward).collect()
}

fn fingerprint(members: &Members) -> String {
    let paths = members.paths().into_iter().map(PathBuf::from).collect();
    let config = VariantConfig::new("ens", Mode::Ens, paths);
    Loader::default().load(&config, &mut |_, _| ()).unwrap().info.fingerprint
}

// ---- the command ----

#[test]
fn a_calibration_is_what_the_rewards_of_both_responses_say() {
    let members = Members::demo();
    fs::write(members.path("m1/rewarm.json"), r#"{"pooling": "cls"}"#).unwrap();
    let weights = fs::read(members.path("m1/model.safetensors")).unwrap();
    let before = fingerprint(&members);
    let report = members.calibrate(&["--references", REFERENCES, "--golden", "0"]);
    assert!(!members.path("m0/rewarm.golden.json").exists());
    assert_ne!(fingerprint(&members), before);

    let pairs = fs::read_to_string(root().join(REFERENCES)).unwrap();
    let pairs = pairs.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let lines: String = pairs
        .flat_map(|pair| {
            ["chosen", "rejected"].map(|side| json!({"prompt": pair["prompt"], "response": pair[side]}))
        })
        .map(|line| line.to_string() + "\n")
        .collect();
    for name in ["m0", "m1"] {
        let rewards = raw_rewards(&members.path(name), &lines);
        let count = rewards.len() as f64;
        let mean = rewards.iter().sum::<f64>() / count;
        let std = (rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f64>() / count).sqrt();
        let calibration = &members.json(&format!("{name}/rewarm.json"))["calibration"];
        for (what, expected) in [("mean", mean), ("std", std)] {
            let written = calibration[what].as_f64().unwrap();
            // room for what the neighbours in a batch change in f32
            assert!((written - expected).abs() < 1e-6, "{name} {what}: {written}, not {expected}");
        }
        let shown = format!("{}  {count}  ", members.path(name).display());
        assert!(report.contains(&format!("none → ({mean:.4}, {std:.4})")), "{report}");
        assert!(report.split_whitespace().collect::<Vec<_>>().join("  ").contains(&shown), "{report}");
    }
    assert_eq!(members.json("m1/rewarm.json")["pooling"], "cls", "other keys stay");
    assert_eq!(fs::read(members.path("m1/model.safetensors")).unwrap(), weights);

    // an ensemble reduces calibrated rewards
    let one = r#"{"prompt": "How was it?", "response": "I won a prize at the fair."}"#;
    let ens = score(&["--members", &members.paths().join(","), "--mode", "ens", "--reduction", "min"], one);
    let ens: Value = serde_json::from_slice(&ens.stdout).unwrap();
    for (index, name) in ["m0", "m1"].iter().enumerate() {
        let calibration = &members.json(&format!("{name}/rewarm.json"))["calibration"];
        let [mean, std] = ["mean", "std"].map(|what| calibration[what].as_f64().unwrap());
        let expected = (raw_rewards(&members.path(name), one)[0] - mean) / std;
        assert!((ens["member_rewards"][index].as_f64().unwrap() - expected).abs() < 1e-5, "{name}: {ens}");
    }
}

#[test]
fn what_is_written_is_repeatable_and_can_be_cleared() {
    let members = Members::demo();
    let dry = members.calibrate(&["--references", REFERENCES, "--dry-run"]);
    assert!(dry.contains("nothing was written"), "{dry}");
    assert!(!members.path("m0/rewarm.json").exists() && !members.path("m0/rewarm.golden.json").exists());

    members.calibrate(&["--references", REFERENCES]);
    let written = ["m0/rewarm.json", "m0/rewarm.golden.json", "m1/rewarm.golden.json"];
    let before = written.map(|file| members.read(file));
    let again = members.calibrate(&["--references", REFERENCES]);
    assert_eq!(again.matches(", as before").count(), 2, "{again}");
    assert_eq!(written.map(|file| members.read(file)), before);
    assert_eq!(members.json("m0/rewarm.golden.json")["samples"].as_array().unwrap().len(), 32);

    let more =
        members.calibrate(&["--references", REFERENCES, "--golden-only", "--golden", "7", "--seed", "1"]);
    assert_eq!(more.matches("stays").count(), 2, "{more}");
    assert_eq!(members.read("m0/rewarm.json"), before[0]);
    assert_eq!(members.json("m0/rewarm.golden.json")["samples"].as_array().unwrap().len(), 7);

    // golden rewards determine no reward, calibrations do
    let fingerprint_before = fingerprint(&members);
    fs::remove_file(members.path("m0/rewarm.golden.json")).unwrap();
    assert_eq!(fingerprint(&members), fingerprint_before);
    let cleared = members.calibrate(&["--clear"]);
    assert!(cleared.contains("m0: removed the calibration\n"), "{cleared}");
    assert!(cleared.contains("m1: removed calibration and golden rewards\n"), "{cleared}");
    assert_ne!(fingerprint(&members), fingerprint_before);
    assert!(members.calibrate(&["--clear"]).contains("m0: there was nothing to remove"));
    assert!(!members.path("m0/rewarm.json").exists());
}

#[test]
fn what_cannot_be_calibrated_is_refused_and_nothing_is_written() {
    let members = Members::copy(&["deploy/demo/member-0"]);
    let lines = |texts: &[String]| -> String {
        texts.iter().map(|text| json!({"prompt": "p", "response": text}).to_string() + "\n").collect()
    };
    let write = |name: &str, content: &str| {
        fs::write(members.path(name), content).unwrap();
        members.path(name).display().to_string()
    };
    let few = write("few.jsonl", &lines(&(0..99).map(|i| format!("day {i}")).collect::<Vec<_>>()));
    let long = write("long.jsonl", &lines(&vec!["happy ".repeat(600); 120]));
    let same = write("same.jsonl", &lines(&vec!["the same".to_owned(); 120]));
    let broken = write("broken.jsonl", "{\"prompt\": \"p\", \"chosen\": \"c\"}\n");
    let member = members.paths().remove(0);
    let cases: [(&[&str], &str); 9] = [
        (&["--references", &few], "99 references were scored, a calibration needs 100"),
        (&["--references", &few, "--golden-only", "--golden", "0"], "leaves nothing to do"),
        (&["--references", &same], "all 120 references got the same reward"),
        (&["--references", &long, "--golden-only"], "no reference could be scored"),
        (&["--references", &broken], "broken.jsonl:1: not a pair"),
        (&["--references", "nowhere.jsonl"], "nowhere.jsonl"),
        (&["nowhere", "--references", REFERENCES], "`nowhere` is not a directory"),
        (&[&member, "--references", REFERENCES], "is given twice"),
        (&[], "--references"),
    ];
    for (args, says) in cases {
        let error = members.try_calibrate(args).unwrap_err();
        assert!(error.contains(says), "{args:?}: {error}");
    }
    assert!(!members.path("m0/rewarm.json").exists() && !members.path("m0/rewarm.golden.json").exists());

    // what is too long among enough others is counted, of several files
    let report = members.calibrate(&["--references", REFERENCES, &long, &few]);
    let row: Vec<&str> = report.lines().nth(1).unwrap().split_whitespace().collect();
    let pairs = fs::read_to_string(root().join(REFERENCES)).unwrap().lines().count();
    assert_eq!(row[1..3], [(2 * pairs + 99).to_string(), "120".to_owned()], "{report}");
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let members = Members::copy(&["deploy/demo/member-0"]);
    // a directory where the file should go: also root is refused
    fs::create_dir(members.path("m0/rewarm.golden.json")).unwrap();
    let error = members.try_calibrate(&["--references", REFERENCES]).unwrap_err();
    assert!(error.contains("rewarm.golden.json"), "{error}");
    assert!(!members.path("m0/rewarm.json").exists());
}

// ---- the self-test ----

#[test]
fn golden_rewards_that_agree_serve_in_every_precision() {
    let members = Members::demo();
    members.calibrate(&["--references", REFERENCES]);
    struct Case {
        lines: &'static str,
        /// What is logged of each member.
        message: &'static str,
        /// Of its 32 samples.
        compared: RangeInclusive<u64>,
    }
    const AGREE: &str = "self-test: golden rewards agree";
    let cases = [
        Case { lines: "", message: AGREE, compared: 32..=32 },
        Case { lines: "dtype = 'bf16'", message: AGREE, compared: 32..=32 },
        Case { lines: "dtype = 'f16'", message: AGREE, compared: 32..=32 },
        Case { lines: "max_tokens = 30", message: AGREE, compared: 1..=31 },
        Case {
            lines: "[batching]\nmax_batch_tokens = 40\nmax_queue_tokens = 40",
            message: AGREE,
            compared: 2..=31,
        },
        Case { lines: "pooling = 'mean'", message: "golden rewards do not apply", compared: 0..=0 },
    ];
    for Case { lines, message, compared } in cases {
        let server = Server::start(&["--config", &members.config(lines)]);
        let told: Vec<&Value> = server.log.iter().filter(|line| line["message"] == message).collect();
        assert_eq!(told.len(), 2, "{lines}: {:?}", server.log);
        for line in told {
            assert!(compared.contains(&line["compared"].as_u64().unwrap_or(0)), "{lines}: {line}");
        }
    }
}

/// Issue 19, A8: both were let through.
#[test]
fn a_self_test_that_compares_nothing_or_nothing_finite_has_failed() {
    let members = Members::demo();
    members.calibrate(&["--references", REFERENCES]);
    let error = members.refused("max_tokens = 8");
    assert!(error.contains("none of the 32 golden samples was scored: the shortest has "), "{error}");
    assert!(error.contains("rewarm calibrate --golden-only"), "{error}");
    members.change("m1/rewarm.golden.json", |golden| {
        for sample in golden["samples"].as_array_mut().unwrap() {
            sample["reward"] = serde_json::json!(1e39);
        }
    });
    let error = members.refused("");
    assert!(error.contains("m1/rewarm.golden.json: `samples[0].reward` is inf in f32"), "{error}");
}

#[test]
fn golden_rewards_that_disagree_refuse_to_start_and_say_why() {
    let members = Members::demo();
    members.calibrate(&["--references", REFERENCES]);
    let golden = members.read("m1/rewarm.golden.json");
    let (tokenizer, weights) = ("m1/tokenizer.json", "m1/model.safetensors");

    // a value that another one replaced
    members.change("m1/rewarm.golden.json", |golden| {
        let reward = &mut golden["samples"][4]["reward"];
        *reward = json!(reward.as_f64().unwrap() + 0.001);
    });
    let error = members.refused("");
    assert!(
        error.contains("self-test of variant `ens`: ") && error.contains("/m1: golden sample 5 of 32"),
        "{error}"
    );
    assert!(error.contains(" in f32; 1 of 32 disagree"), "{error}");
    fs::write(members.path("m1/rewarm.golden.json"), &golden).unwrap();

    // other weights, of the same family: also seen in bf16
    let own = fs::read(members.path(weights)).unwrap();
    fs::copy(members.path("m0/model.safetensors"), members.path(weights)).unwrap();
    for lines in ["", "dtype = 'bf16'"] {
        let error = members.refused(lines);
        assert!(
            error.contains("/m1: golden sample") && error.contains("Weights, config.json or pooling"),
            "{error}"
        );
    }
    fs::write(members.path(weights), own).unwrap();

    // another tokenizer, of both members, for an ensemble has but one: two words change their ids
    let own = members.read(tokenizer);
    for file in [tokenizer, "m0/tokenizer.json"] {
        members.change(file, |document| {
            let vocabulary = document["model"]["vocab"].as_object_mut().unwrap();
            let (one, other) = (vocabulary["the"].clone(), vocabulary["my"].clone());
            vocabulary.insert("the".to_owned(), other);
            vocabulary.insert("my".to_owned(), one);
        });
    }
    let error = members.refused("");
    assert!(error.contains("/m0: golden sample") && error.contains("tokenizer, chat template"), "{error}");
    fs::write(members.path(tokenizer), &own).unwrap();
    fs::write(members.path("m0/tokenizer.json"), &own).unwrap();

    // a file that is not whole: a check finds it, too
    fs::write(members.path("m1/rewarm.golden.json"), &golden[..golden.len() / 2]).unwrap();
    assert!(members.refused("").contains("m1/rewarm.golden.json: "));
    let check = run(&["serve", "--check", "--config", &members.config("")]);
    assert!(text(&check.stderr).contains("m1/rewarm.golden.json: "), "{check:?}");
    // neither scoring nor calibrating needs it, and the latter replaces it
    assert!(score(&["--model", &members.paths()[1]], "{\"token_ids\": [2, 3]}\n").status.success());
    members.calibrate(&["--references", REFERENCES, "--golden-only"]);
    assert_eq!(members.read("m1/rewarm.golden.json"), golden);
    drop(Server::start(&["--config", &members.config("")]));
}

#[test]
fn a_changed_chat_template_is_told_from_changed_weights() {
    let members = Members::copy(&["tests/data/models/llama-tied-bias"]);
    let line = |i: usize| {
        let turns = json!([{"role": "user", "content": format!("a{i}")}, {"role": "assistant", "content": "b".repeat(i % 9)}]);
        json!({"messages": turns}).to_string() + "\n"
    };
    let references = members.path("references.jsonl");
    fs::write(&references, (0..120).map(line).collect::<String>()).unwrap();
    members.calibrate(&["--references", references.to_str().unwrap()]);
    drop(Server::start(&["--config", &members.config("")]));
    let template = members.read("m0/chat_template.jinja");
    fs::write(members.path("m0/chat_template.jinja"), format!("a {template}")).unwrap();
    let error = members.refused("");
    assert!(error.contains("golden sample 1 of 32 gives") && error.contains("chat template"), "{error}");
}

#[tokio::test]
async fn a_reload_whose_golden_rewards_disagree_leaves_the_old_models_serving() {
    let members = Members::demo();
    members.calibrate(&["--references", REFERENCES]);
    let server = Server::start(&["--config", &members.config("")]);
    let sample = "{\"prompt\": \"How was it?\", \"response\": \"I won a prize.\"}\n";
    let rewards = || text(&score(&["--server", &server.url()], sample).stdout);
    let before = rewards();

    let own = fs::read(members.path("m1/model.safetensors")).unwrap();
    // in one step, as a deployment would: the old models' file stays whole for those who have it open
    fs::copy(members.path("m0/model.safetensors"), members.path("other")).unwrap();
    fs::rename(members.path("other"), members.path("m1/model.safetensors")).unwrap();
    let mut admin = AdminServiceClient::connect(format!("http://{}", server.admin)).await.unwrap();
    let status = admin.reload(ReloadRequest {}).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(
        status.message().starts_with("the old models serve on: self-test of variant `ens`: "),
        "{status:?}"
    );
    assert_eq!(rewards(), before);

    fs::write(members.path("own"), own).unwrap();
    fs::rename(members.path("own"), members.path("m1/model.safetensors")).unwrap();
    admin.reload(ReloadRequest {}).await.unwrap();
    assert_eq!(rewards(), before);
}

/// The references themselves have not drifted from the references.
#[test]
fn a_server_tells_how_far_its_traffic_is_from_the_references() {
    let members = Members::demo();
    members.calibrate(&["--references", REFERENCES, "--golden", "0"]);
    let reference = members.json("m0/rewarm.reference.json");
    let texts = reference["rewards"].as_array().unwrap().len();
    assert!(texts >= 100 && reference["tokens"].as_array().unwrap().len() == texts);

    let config = members.config("");
    let server = Server::start(&["--config", &config]);
    let pairs = fs::read_to_string(root().join(REFERENCES)).unwrap();
    let lines: String = pairs
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .flat_map(|pair| {
            ["chosen", "rejected"].map(|of| json!({"prompt": pair["prompt"], "response": pair[of]}))
        })
        .map(|line| line.to_string() + "\n")
        .collect();
    let scored = score(&["--server", &server.url()], lines);
    assert!(scored.status.success(), "{}", text(&scored.stderr));
    let (_, page) = program::get(&server.metrics, "/metrics");
    let value = |series: &str| -> f64 {
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series} is not in {page}")).parse().unwrap()
    };
    for statistic in ["reward", "length", "truncation", "length_correlation", "disagreement"] {
        let drift = value(&format!("rewarm_drift{{variant=\"ens\",token=\"\",statistic=\"{statistic}\"}}"));
        assert!(drift.abs() < 0.15, "{statistic}: {drift}");
    }
    assert!(value("rewarm_reference_disagreement_mean{variant=\"ens\"}") > 0.0);

    // one who has no reference of the same texts has none; a file that is broken is told
    fs::remove_file(members.path("m1/rewarm.reference.json")).unwrap();
    let server = Server::start(&["--config", &config]);
    let (_, page) = program::get(&server.metrics, "/metrics");
    assert!(!page.contains("rewarm_reference_reward_mean{"), "{page}");
    drop(server);
    fs::write(members.path("m1/rewarm.reference.json"), "{}").unwrap();
    let error = members.refused("");
    assert!(error.contains("rewarm.reference.json") && error.contains("missing field"), "{error}");
}
