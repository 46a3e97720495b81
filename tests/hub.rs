//! Models of a hub, by the real program: a hub on loopback serves them, and breaks in all the ways that hubs do.
//!
//! `tests/reference/hub.py` shows that Python's libraries use what is fetched here, and the other way round.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/hub.rs"]
mod hub;
#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Instant;

use hub::Access;
use hub::Files;
use hub::TestHub;
use hub::digest;
use hub::files_asked;
use hub::files_in;
use program::Server;
use program::root;
use program::text;
use rewarm::proto;
use rewarm::proto::admin_service_client::AdminServiceClient;
use rewarm::proto::reward_service_client::RewardServiceClient;
use tempfile::TempDir;

/// A hub, and a cache of one's own.
struct Setting {
    hub: TestHub,
    home: TempDir,
    variables: Vec<(&'static str, String)>,
}

const LINE: &str = r#"{"token_ids": [3, 5, 8, 13, 21]}"#;

impl Setting {
    fn new() -> Self {
        Self { hub: TestHub::start(), home: tempfile::tempdir().unwrap(), variables: Vec::new() }
    }

    fn with(&self, name: &'static str, value: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        // the same cache: `home` is only held
        let mut variables = self.variables.clone();
        if !variables.iter().any(|(name, _)| *name == "HF_HOME") {
            variables.push(("HF_HOME", self.home.path().display().to_string()));
        }
        variables.push((name, value.to_owned()));
        Self { hub: self.hub.clone(), home, variables }
    }

    fn set(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["HF_", "HUGGING", "TRANSFORMERS_"].iter().any(|start| name.starts_with(start))
                || name.to_lowercase().ends_with("_proxy")
            {
                command.env_remove(name);
            }
        }
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", self.hub.endpoint());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = program::rewarm(args);
        self.set(&mut command);
        command.output().unwrap()
    }

    fn score(&self, args: &[&str]) -> Output {
        let mut command = program::rewarm(&[&["score"], args].concat());
        self.set(&mut command);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // a refusal may come before its input is read
        let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), LINE.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// The line with the reward.
    fn reward(&self, args: &[&str]) -> String {
        let output = self.score(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// What is said where there is none.
    fn refusal(&self, args: &[&str]) -> String {
        let output = self.score(args);
        assert!(!output.status.success(), "{args:?}");
        text(&output.stderr)
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.home.path().join("hub").join(format!("models--{}", name.replace('/', "--")))
    }
}

fn model(name: &str) -> PathBuf {
    root().join("tests/data/models").join(name)
}

/// What a repository has beside a model.
fn with_clutter(mut files: Files) -> Files {
    for name in
        ["pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "model.gguf", "events.out", ".gitattributes"]
    {
        files.insert(name.to_owned(), b"not for us".to_vec());
    }
    files
}

#[test]
fn a_model_is_fetched_once_and_only_what_is_needed_of_it() {
    let setting = Setting::new();
    let commit = setting.hub.push("org/tiny", with_clutter(files_in(&model("llama"))));
    let expected = setting.reward(&["--model", model("llama").to_str().unwrap()]);
    assert_eq!(setting.hub.asked().len(), 0, "a directory asks no hub");

    let with_token = setting.with("HF_TOKEN", "hf_secret");
    assert_eq!(with_token.reward(&["--model", "org/tiny"]), expected);
    let asked = setting.hub.asked();
    let fetched: Vec<String> = files_asked(&asked).into_iter().collect();
    assert_eq!(fetched, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
    for asked in &asked {
        assert_eq!(
            asked.has_token,
            !asked.path.starts_with("/cdn/"),
            "the token is for the hub alone: {asked:?}"
        );
    }

    // the layout of Python's library
    let repository = setting.repository("org/tiny");
    assert_eq!(fs::read_to_string(repository.join("refs/main")).unwrap(), commit);
    let weights = repository.join("snapshots").join(&commit).join("model.safetensors");
    let blob = digest(&fs::read(model("llama").join("model.safetensors")).unwrap());
    assert_eq!(fs::read_link(&weights).unwrap(), Path::new("../../blobs").join(&blob));
    assert!(!repository.join("blobs").join(format!("{blob}.incomplete")).exists());

    // a branch is asked for anew; what is there is not fetched again
    assert_eq!(setting.reward(&["--model", "org/tiny"]), expected);
    let asked = setting.hub.asked();
    assert_eq!(
        asked.iter().map(|asked| asked.path.as_str()).collect::<Vec<_>>(),
        ["/api/models/org/tiny/revision/main"]
    );
    // a commit is what it is
    assert_eq!(setting.reward(&["--model", &format!("org/tiny@{commit}")]), expected);
    assert_eq!(setting.hub.asked().len(), 0);
    assert_eq!(setting.with("HF_HUB_OFFLINE", "1").reward(&["--model", "org/tiny"]), expected);
    assert_eq!(setting.hub.asked().len(), 0);

    // nobody answers, or who answers is not well: what was fetched last
    let nobody = setting.with("HF_ENDPOINT", "http://127.0.0.1:1");
    assert_eq!(nobody.reward(&["--model", "org/tiny"]), expected);
    setting.hub.set_down(true);
    let output = setting.score(&["--model", "org/tiny"]);
    assert_eq!(text(&output.stdout), expected);
    assert!(text(&output.stderr).contains("taken from the hub's cache as it is"), "{}", text(&output.stderr));
}

#[test]
fn every_place_of_a_model_takes_a_hub_id() {
    let setting = Setting::new();
    for (name, dir) in [("a", "evaluate/member-0"), ("b", "evaluate/member-1")] {
        setting.hub.push(&format!("org/{name}"), files_in(&root().join("tests/data").join(dir)));
    }
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name).display().to_string();
    let run = |args: &[&str]| {
        let output = setting.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    run(&["merge", "org/a", "org/b", "--base", "org/a", "--output", &out("merged")]);
    let members = ["--members", "org/a,org/b", "--mode"];
    let merged = setting.reward(&["--model", &out("merged")]);
    assert_eq!(setting.reward(&[&members[..], &["warm"]].concat()), merged);
    assert!(setting.reward(&[&members[..], &["ens"]].concat()).contains("member_rewards"));
    fs::write(
        folder.path().join("pairs.jsonl"),
        r#"{"prompt": "a", "chosen": "b c", "rejected": "c d"}"#.to_owned() + "\n",
    )
    .unwrap();
    let pairs = out("pairs.jsonl");
    let table = run(&[
        "evaluate",
        "--members",
        "org/a",
        "org/b",
        "--warm",
        "org/a",
        "--pairs",
        &pairs,
        "--output",
        &out("report"),
        "--curve",
        "off",
        "--subsets",
        "0",
    ]);
    assert!(table.contains("org/a@"), "{table}");
    run(&[
        "train",
        "--base",
        "org/a",
        "--pairs",
        &pairs,
        "--validation-fraction",
        "0",
        "--output",
        &out("family"),
        "--check",
    ]);
    run(&["bench", "model", "--model", "org/a", "--lengths", "8x1", "--rounds", "1"]);

    // it writes beside the weights
    let output = setting.run(&["calibrate", "org/a", "--references", &pairs]);
    assert!(
        text(&output.stderr).contains("`hf download org/a --revision main --local-dir DIR`"),
        "{output:?}"
    );
}

#[test]
fn adapters_and_shards_are_fetched_with_what_lists_them() {
    let setting = Setting::new();
    let local = tempfile::tempdir().unwrap();
    for (name, content) in files_in(&model("llama")).into_iter().chain(files_in(&model("llama-sharded"))) {
        if name != "model.safetensors" {
            fs::write(local.path().join(name), content).unwrap();
        }
    }
    let expected = setting.reward(&["--model", local.path().to_str().unwrap()]);
    setting.hub.push("org/sharded", files_in(local.path()));
    assert_eq!(setting.reward(&["--model", "org/sharded"]), expected);
    let offline = setting.with("HF_HUB_OFFLINE", "1");
    assert_eq!(offline.reward(&["--model", "org/sharded"]), expected);

    // PyTorch's own file, where there are no safetensors
    let mut pickled = files_in(&model("llama"));
    pickled.extend(files_in(&model("llama-bf16")));
    for (name, content) in &pickled {
        fs::write(local.path().join(name), content).unwrap();
    }
    let expected = setting.reward(&["--model", local.path().to_str().unwrap()]);
    pickled.remove("model.safetensors");
    let weights = fs::read(root().join("tests/data/pickles/model.bin")).unwrap();
    pickled.insert("pytorch_model.bin".to_owned(), weights);
    setting.hub.push("org/pickled", pickled);
    assert_eq!(setting.reward(&["--model", "org/pickled"]), expected);
    assert_eq!(offline.reward(&["--model", "org/pickled"]), expected);

    let (adapter, base) =
        (root().join("tests/data/adapters/low-rank"), root().join("tests/data/lora/llama/base"));
    let expected = setting.reward(&["--model", adapter.to_str().unwrap(), "--base", base.to_str().unwrap()]);
    setting.hub.push("org/adapter", files_in(&adapter));
    let commit = setting.hub.push("org/base", files_in(&base));
    assert_eq!(setting.reward(&["--model", "org/adapter", "--base", "org/base"]), expected);
    assert_eq!(offline.reward(&["--model", "org/adapter", "--base", "org/base"]), expected);
    let config = local.path().join("rewarm.toml");
    fs::write(&config, "[variants.a]\nmode = 'warm'\nmodel = 'org/adapter'\nbase = 'hf://org/base@main'\n")
        .unwrap();
    let output = offline.run(&["serve", "--check", "--config", config.to_str().unwrap()]);
    assert!(text(&output.stderr).contains(&format!("the base is org/base@{commit}")), "{output:?}");

    let refusal = setting.refusal(&["--model", "org/sharded", "--base", "org/sharded"]);
    assert!(refusal.contains("base is for LoRA adapters: none of the members is one"), "{refusal}");
}

#[test]
fn a_download_that_was_cut_goes_on() {
    let weights = fs::read(model("llama").join("model.safetensors")).unwrap();
    let partial = |setting: &Setting| {
        let blobs = setting.repository("org/tiny").join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        blobs.join(format!("{}.incomplete", digest(&weights)))
    };
    let ranges = |setting: &Setting| -> Vec<Option<String>> {
        let asked = setting.hub.asked().into_iter().filter(|asked| asked.path.starts_with("/cdn/"));
        asked.map(|asked| asked.range).collect()
    };
    let from = |bytes: usize| Some(format!("bytes={bytes}-"));
    let expected = Setting::new().reward(&["--model", model("llama").to_str().unwrap()]);
    let check = |what: &str, prepare: &dyn Fn(&Setting), expected_ranges: &[Option<String>]| {
        let setting = Setting::new();
        setting.hub.push("org/tiny", files_in(&model("llama")));
        prepare(&setting);
        assert_eq!(setting.reward(&["--model", "org/tiny"]), expected, "{what}");
        assert_eq!(ranges(&setting), expected_ranges, "{what}");
        assert!(!partial(&setting).exists(), "{what}");
    };
    check("the connection broke", &|setting| setting.hub.cut_after(1000), &[None, from(1000)]);
    check(
        "the process ended",
        &|setting| fs::write(partial(setting), &weights[..777]).unwrap(),
        &[from(777)],
    );
    check("all of it was there", &|setting| fs::write(partial(setting), &weights).unwrap(), &[]);
    check(
        "the server sends the whole",
        &|setting| {
            fs::write(partial(setting), &weights[..777]).unwrap();
            setting.hub.ignore_ranges();
        },
        &[from(777)],
    );
    check(
        "what was there is something else",
        &|setting| fs::write(partial(setting), vec![7; 777]).unwrap(),
        &[from(777), None],
    );
    check(
        "what was there is too long",
        &|setting| fs::write(partial(setting), vec![7; weights.len() + 1]).unwrap(),
        &[None],
    );
}

#[test]
fn a_silent_download_is_tried_again_and_given_up_in_the_end() {
    let setting = Setting::new().with("HF_HUB_DOWNLOAD_TIMEOUT", "1");
    setting.hub.push("org/tiny", files_in(&model("llama")));
    let weights = fs::metadata(model("llama").join("model.safetensors")).unwrap().len();
    let ranges = || -> Vec<Option<String>> {
        let asked = setting.hub.asked().into_iter().filter(|asked| asked.path.starts_with("/cdn/"));
        asked.map(|asked| asked.range).collect()
    };
    let from = |bytes: usize| Some(format!("bytes={bytes}-"));

    // it brings something, and then nothing
    setting.hub.stall([1000].into_iter().chain([0; 20]));
    let began = Instant::now();
    let refusal = setting.refusal(&["--model", "org/tiny"]);
    let took = began.elapsed().as_secs_f32();
    assert!((5.0..20.0).contains(&took), "{took}");
    for word in [
        "nothing came for 1 s (HF_HUB_DOWNLOAD_TIMEOUT)",
        "the download was cut, going on",
        &format!("of={weights}"),
        "gives_up_in_seconds=5",
        "gives_up_in_seconds=1",
        "no new byte came for 5 s, in ",
        &format!("1000 of {weights} bytes are in the cache"),
    ] {
        assert!(refusal.contains(word), "{word}: {refusal}");
    }
    let asked = ranges();
    assert!((5..9).contains(&asked.len()), "{asked:?}");

    // each brings something: it goes on for as long as it takes
    setting.hub.stall([500; 6]);
    let output = setting.score(&["--model", "org/tiny"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(ranges(), (2..9).map(|half| from(500 * half)).collect::<Vec<_>>());
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let setting = Setting::new();
    let with_token = setting.with("HF_TOKEN", "hf_secret");
    let endpoint = setting.hub.endpoint();
    setting.hub.push("org/tiny", files_in(&model("llama")));
    let mut other = with_clutter(Files::from([("config.json".to_owned(), b"{}".to_vec())]));
    other.remove("pytorch_model.bin");
    setting.hub.push("org/other", other);
    let says = |setting: &Setting, id: &str, words: &[&str]| {
        let refusal = setting.refusal(&["--model", id]);
        for word in words.iter().chain(&[id, "taken for a model of the hub"]) {
            assert!(refusal.contains(word), "{id}: {refusal}");
        }
        assert!(!refusal.contains("hf_secret"), "{refusal}");
    };
    says(&setting, "org/none", &["has no model `org/none`", "set HF_TOKEN"]);
    says(&with_token, "org/none", &["has no model `org/none`", "must be allowed"]);
    says(&setting, "org/tiny@gone", &["`org/tiny` has no revision `gone`"]);
    says(&setting, &format!("org/tiny@{}", "0".repeat(40)), &["has no revision `0000"]);
    says(&setting, "org/other", &["no safetensors", "model.gguf", "onnx/model.onnx"]);
    says(&setting.with("HF_HUB_OFFLINE", "1"), "org/tiny", &["not in the cache", "HF_HUB_OFFLINE"]);
    says(
        &setting.with("HF_ENDPOINT", "http://127.0.0.1:1"),
        "org/tiny",
        &["http://127.0.0.1:1/api", "cannot be reached"],
    );
    setting.hub.set_access(Access::Gated);
    says(&setting, "org/tiny", &["is gated", &format!("{endpoint}/org/tiny"), "set HF_TOKEN"]);
    says(&with_token, "org/tiny", &["is gated", &format!("{endpoint}/org/tiny"), "the account whose token"]);
    setting.hub.set_access(Access::BadToken);
    says(&with_token, "org/tiny", &["does not know the token"]);
    setting.hub.set_access(Access::Public);
    for (file, kind) in [("model.safetensors", "SHA-256"), ("config.json", "git SHA-1")] {
        setting.hub.damage(Some(file));
        says(&setting, "org/tiny", &[&format!("`{file}`"), &format!("its {kind} is"), "the hub lists"]);
        // and nothing of it is kept
        setting.hub.damage(None);
        setting.reward(&["--model", "org/tiny"]);
        fs::remove_dir_all(setting.repository("org/tiny")).unwrap();
    }

    // what no hub is asked for
    setting.hub.asked();
    for id in ["./org/tiny", "tiny", "tests/tiny", "org/tiny/x", "hf://tiny"] {
        let refusal = setting.refusal(&["--model", id]);
        assert!(
            refusal.contains("is not a directory") || refusal.contains("is no hub id"),
            "{id}: {refusal}"
        );
    }
    assert_eq!(setting.hub.asked().len(), 0);
}

#[test]
fn what_the_disk_has_no_room_for_is_refused_before_anything_is_written() {
    let setting = Setting::new();
    setting.hub.push("org/tiny", files_in(&model("llama")));
    setting.hub.list("model.safetensors", 1 << 60);
    let server = ["serve", "--check", "--config"].map(str::to_owned);
    let config = setting.home.path().join("rewarm.toml");
    fs::write(&config, "[variants.warm]\nmode = 'warm'\nmodel = 'org/tiny'\n").unwrap();
    let checked = setting.run(&[&server[0], &server[1], &server[2], config.to_str().unwrap()]);
    for refusal in [setting.refusal(&["--model", "org/tiny"]), text(&checked.stderr)] {
        // 2^60 bytes, and the settings and the tokenizer
        for word in [
            "`org/tiny@main` has 11529215046",
            " bytes to fetch, and ",
            " are free on the disk",
            "HF_HUB_CACHE",
        ] {
            assert!(refusal.contains(word), "{word}: {refusal}");
        }
    }
    assert!(files_asked(&setting.hub.asked()).is_empty() && !setting.repository("org/tiny").exists());
}

/// A disk loses what it holds, and people edit files of the cache: what is not what the hub lists is no part of a model.
#[test]
fn what_is_damaged_in_the_cache_is_fetched_anew() {
    let setting = Setting::new();
    let commit = setting.hub.push("org/tiny", files_in(&model("llama")));
    let pinned = format!("org/tiny@{commit}");
    let expected = setting.reward(&["--model", &pinned]);
    let snapshot = setting.repository("org/tiny").join("snapshots").join(&commit);
    let path = |file: &str| snapshot.join(file);
    let flip = |bytes: &mut Vec<u8>| *bytes.last_mut().unwrap() ^= 1;
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1);
    type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);
    let cases: [(&str, Damage<'_>, &str); 4] = [
        ("config.json", &flip, "its git SHA-1 is"),
        ("tokenizer.json", &cut, "the hub lists"),
        ("model.safetensors", &cut, "bytes, the hub lists"),
        ("tokenizer_config.json", &Vec::clear, "it has 0 bytes"),
    ];
    for (file, damage, said) in cases {
        // the blob behind the link, and a file in place of the link
        for replaces_link in [false, true] {
            let mut bytes = fs::read(path(file)).unwrap();
            damage(&mut bytes);
            if replaces_link {
                fs::remove_file(path(file)).unwrap();
            }
            fs::write(path(file), &bytes).unwrap();
            let refusal = setting.with("HF_HUB_OFFLINE", "1").refusal(&["--model", &pinned]);
            for word in ["or not whole", &format!("`{file}` is damaged"), said] {
                assert!(refusal.contains(word), "{file}: {refusal}");
            }
            setting.hub.asked();
            for id in [pinned.as_str(), "org/tiny"] {
                assert_eq!(setting.reward(&["--model", id]), expected, "{file}");
            }
            // a blob that is whole is linked again, and not fetched
            let fetched: Vec<String> = files_asked(&setting.hub.asked()).into_iter().collect();
            let wanted: &[&str] = if replaces_link { &[] } else { &[file] };
            assert_eq!(fetched, wanted);
            assert!(fs::read_link(path(file)).is_ok(), "{file}");
        }
    }
}

/// What `hf_hub_download` leaves: no listing of the commit, which tells what else there is.
#[test]
fn what_others_have_fetched_is_used() {
    let setting = Setting::new();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = setting.repository("org/theirs");
    let snapshot = repository.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), commit).unwrap();
    for (name, content) in
        files_in(&model("llama")).into_iter().filter(|(name, _)| name != "model.safetensors")
    {
        fs::write(snapshot.join(name), content).unwrap();
    }
    let offline = setting.with("HF_HUB_OFFLINE", "1");
    assert!(offline.refusal(&["--model", "org/theirs"]).contains("or not whole"));
    fs::copy(model("llama").join("model.safetensors"), snapshot.join("model.safetensors")).unwrap();
    let expected = setting.reward(&["--model", model("llama").to_str().unwrap()]);
    assert_eq!(offline.reward(&["--model", "org/theirs"]), expected);
    assert_eq!(offline.reward(&["--model", &format!("org/theirs@{commit}")]), expected);
    assert_eq!(
        setting.with("HF_ENDPOINT", "http://127.0.0.1:1").reward(&["--model", "org/theirs"]),
        expected
    );
}

#[test]
fn a_server_tells_the_commit_and_a_reload_follows_the_branch() {
    let setting = Setting::new();
    let first = setting.hub.push("org/tiny", files_in(&model("llama")));
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("rewarm.toml");
    let local = model("llama");
    fs::write(
        &config,
        format!(
            "[server]\ndrain_grace_seconds = 0\n[routing]\nweights = {{ hub = 1 }}\n\
             [variants.hub]\nmode = 'warm'\nmodel = 'org/tiny'\n[variants.local]\nmode = 'warm'\nmodel = '{}'\n",
            local.display()
        ),
    )
    .unwrap();
    let config = config.to_str().unwrap();
    let output = setting.run(&["serve", "--check", "--config", config]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let server = Server::start_as(&["--config", config], |command| setting.set(command));
    assert!(server.log.iter().any(|line| line["commit"] == first.as_str()), "{:?}", server.log);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = RewardServiceClient::connect(server.url()).await.unwrap();
        let variants =
            client.get_server_info(proto::GetServerInfoRequest {}).await.unwrap().into_inner().variants;
        let sources: Vec<&str> = variants.iter().map(|variant| variant.members[0].source.as_str()).collect();
        assert_eq!(sources, [format!("org/tiny@{first}").as_str(), ""]);
        assert_eq!(variants[0].fingerprint, variants[1].fingerprint, "where files are from is no part of it");

        let second = setting.hub.push("org/tiny", files_in(&model("llama-tied-bias")));
        let mut admin = AdminServiceClient::connect(format!("http://{}", server.admin)).await.unwrap();
        let reloaded = admin.reload(proto::ReloadRequest {}).await.unwrap().into_inner().variants;
        assert_eq!(reloaded[0].members[0].source, format!("org/tiny@{second}"));
        assert_ne!(reloaded[0].fingerprint, variants[0].fingerprint);
        assert_eq!(reloaded[1].fingerprint, variants[1].fingerprint);

        // a branch whose commit is no model: the old one serves on
        setting.hub.push("org/tiny", Files::from([("config.json".to_owned(), b"{}".to_vec())]));
        let refused = admin.reload(proto::ReloadRequest {}).await.unwrap_err();
        assert!(refused.message().contains("has no safetensors"), "{refused}");
        let variants =
            client.get_server_info(proto::GetServerInfoRequest {}).await.unwrap().into_inner().variants;
        assert_eq!(variants[0].members[0].source, format!("org/tiny@{second}"));
    });
}
