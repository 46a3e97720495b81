//! Packed weights in a cache directory, as an operator meets them: rewards are the same bits with and without, whatever
//! becomes of the files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::fs;
use std::fs::File;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use program::Server;
use program::rewarm;
use program::score;
use program::text;
use rewarm::bench::shape::Family;
use rewarm::bench::shape::Sizes;

const LINES: &str = "{\"token_ids\": [1, 2, 3, 4, 5]}\n{\"token_ids\": [900, 7, 4000, 12]}\n";

/// A model whose packed weights are worth a file: embedding and MLP are, its attention and norms are too small.
fn model(dir: &Path, seed: u64) -> PathBuf {
    let dir = dir.join(format!("model-{seed}"));
    let sizes = Sizes {
        family: Family::Llama,
        vocab: 8192,
        hidden: 256,
        intermediate: 1024,
        layers: 3,
        heads: 4,
        kv_heads: 4,
        max_tokens: 64,
    };
    sizes.write(&dir, seed).unwrap();
    dir
}

/// `rewarm score`, with this cache.
fn run(cache: &Path, bytes: &str, model: &Path, more: &[&str]) -> Output {
    let mut command =
        rewarm(&[&["score", "--model", model.to_str().unwrap(), "--dtype", "f32"], more].concat());
    command.env("REWARM_CACHE_DIR", cache).env("REWARM_CACHE_BYTES", bytes);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(LINES.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

const SOME: &str = "1000000000";

/// Rewards, and what was said.
fn rewards(cache: &Path, model: &Path) -> (String, String) {
    let output = run(cache, SOME, model, &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

fn files(cache: &Path, end: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cache.join("weights")) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.to_str().unwrap().ends_with(end)).collect()
}

fn is_partial(path: &Path) -> bool {
    path.to_str().unwrap().contains(".rewarm-partial-")
}

fn only_file(cache: &Path) -> PathBuf {
    let files = files(cache, ".weights");
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn rewards_are_the_same_bits_from_a_file_and_whatever_becomes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), model(folder.path(), 1));
    let off = run(&cache, "0", &model, &[]);
    assert!(off.status.success() && files(&cache, "").is_empty(), "{off:?}");
    let expected = text(&off.stdout);
    let same = |what: &str, is_told: bool| {
        let (found, told) = rewards(&cache, &model);
        assert_eq!(found, expected, "{what}");
        assert_eq!(told.contains("packed weights"), is_told, "{what}: {told}");
    };
    same("written", false);
    let path = only_file(&cache);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(cache.join("weights")).unwrap().mode() & 0o777, 0o700);
    assert!(metadata.len() > 16 << 20, "{}", metadata.len());
    same("mapped", false);
    assert_eq!(fs::metadata(&path).unwrap().ino(), metadata.ino(), "it is not written again");

    let change = |what: &str, change: &dyn Fn(&File)| {
        change(&File::options().write(true).open(only_file(&cache)).unwrap());
        same(what, true);
        same(&format!("{what}, and written again"), false);
    };
    let size = metadata.len();
    change("cut to nothing", &|file| file.set_len(0).unwrap());
    change("cut in half", &|file| file.set_len(size / 2).unwrap());
    for at in [size / 2, size - 200] {
        change(&format!("changed at {at}"), &|file| {
            let mut byte = [0];
            File::open(only_file(&cache)).unwrap().read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        });
    }

    // another checkpoint in its place is another model
    let other = self::model(folder.path(), 2);
    fs::copy(other.join("model.safetensors"), model.join("model.safetensors")).unwrap();
    let other = rewards(&cache, &model).0;
    assert_ne!(other, expected);
    assert_eq!(other, text(&run(&cache, "0", &model, &[]).stdout));
}

#[test]
fn what_is_not_ours_alone_is_not_used_and_what_cannot_be_written_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), model(folder.path(), 1));
    let expected = text(&run(&cache, "0", &model, &[]).stdout);
    rewards(&cache, &model);
    let told_once = |what: &str, problem: &str| {
        let (found, told) = rewards(&cache, &model);
        assert_eq!(found, expected, "{what}");
        assert!(
            told.matches("packed weights cannot be kept").count() == 1 && told.contains(problem),
            "{what}: {told}"
        );
    };
    let path = only_file(&cache);
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    told_once("others may read it", "mode 640");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let weights = cache.join("weights");
    fs::set_permissions(&weights, Permissions::from_mode(0o770)).unwrap();
    told_once("others may write there", "chmod go=");
    fs::set_permissions(&weights, Permissions::from_mode(0o700)).unwrap();
    if std::os::unix::fs::chown(&path, Some(12_345), None).is_ok() {
        told_once("it is somebody else's", "belongs to user 12345");
        std::os::unix::fs::chown(&path, Some(rustix::process::geteuid().as_raw()), None).unwrap();
    }
    // an open writer could change it at any time
    let writer = File::options().write(true).open(&path).unwrap();
    told_once("somebody may write to it", "");
    drop(writer);
    fs::remove_dir_all(&weights).unwrap();
    fs::write(&weights, "in the way").unwrap();
    told_once("there is no folder", "not a folder");
    fs::remove_file(&weights).unwrap();
    let small = run(&cache, "1000000", &model, &[]);
    assert_eq!(text(&small.stdout), expected);
    assert!(text(&small.stderr).contains("REWARM_CACHE_BYTES"), "{small:?}");
    let left =
        [files(&cache, ".weights"), files(&cache, "").into_iter().filter(|path| is_partial(path)).collect()]
            .concat();
    assert!(left.is_empty(), "a model that is too large leaves nothing: {left:?}");
}

#[test]
fn what_was_used_longest_ago_is_dropped_and_members_share_what_is_equal() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let models = [1, 2].map(|seed| model(folder.path(), seed));
    rewards(&cache, &models[0]);
    let (first, size) = (only_file(&cache), fs::metadata(only_file(&cache)).unwrap().len());
    run(&cache, &(size * 2 - 1).to_string(), &models[1], &[]);
    assert_ne!(only_file(&cache), first, "the one that was used before");
    rewards(&cache, &models[0]);
    assert_eq!(files(&cache, ".weights").len(), 2);
    let [a, b] = models.each_ref().map(|model| model.to_str().unwrap());
    let family = |bytes: &str| {
        let mut command =
            rewarm(&["score", "--mode", "ens", "--members", &format!("{a},{b}"), "--dtype", "f32"]);
        command.env("REWARM_CACHE_DIR", &cache).env("REWARM_CACHE_BYTES", bytes);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(LINES.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    assert_eq!(family(SOME), family("0"));
    assert_eq!(files(&cache, ".weights").len(), 2, "all parts were there");
}

#[test]
fn two_first_starts_at_once_end_with_one_file_and_a_killed_one_leaves_nothing_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), model(folder.path(), 1));
    let expected = text(&run(&cache, "0", &model, &[]).stdout);
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..3).map(|_| scope.spawn(|| rewards(&cache, &model))).collect();
        started.into_iter().for_each(|one| assert_eq!(one.join().unwrap().0, expected));
    });
    fs::remove_file(only_file(&cache)).unwrap();

    // killed as soon as something is there
    let mut command = rewarm(&["score", "--model", model.to_str().unwrap(), "--dtype", "f32"]);
    command
        .env("REWARM_CACHE_DIR", &cache)
        .env("REWARM_CACHE_BYTES", SOME)
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let began = Instant::now();
    while !files(&cache, "").iter().any(|path| is_partial(path)) {
        assert!(began.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        if !files(&cache, ".weights").is_empty() {
            break; // it was faster than we
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(rewards(&cache, &model).0, expected);
    only_file(&cache);
    let left: Vec<_> =
        files(&cache, "").into_iter().filter(|path| path.to_str().unwrap().contains("partial")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Whoever cuts the file of a server that serves from it waits, and neither ends it nor moves a reward.
#[test]
fn a_file_that_is_cut_under_a_running_server_does_it_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, model) = (folder.path().join("cache"), model(folder.path(), 1));
    let config = folder.path().join("rewarm.toml");
    let variant = format!("[variants.v]\nmode = 'warm'\nmodel = '{}'\ndtype = 'f32'\n", model.display());
    fs::write(&config, variant).unwrap();
    let args = ["--config", config.to_str().unwrap()];
    let server = Server::start_as(&args, |command| {
        command.env("REWARM_CACHE_DIR", &cache).env("REWARM_CACHE_BYTES", SOME);
    });
    let ask = || {
        let output = score(&["--server", &format!("http://{}", server.listen)], LINES);
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout)
    };
    let expected = ask();
    let path = only_file(&cache);
    let maps = fs::read_to_string(format!("/proc/{}/maps", server.pid())).unwrap();
    assert!(maps.contains(path.to_str().unwrap()), "the first start serves from the file, too");
    File::create(&path).unwrap(); // waits until the server has a copy
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert_eq!(ask(), expected);
}
