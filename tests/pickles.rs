//! PyTorch's own files, written by torch (`tests/reference/pickles.py`): read as the same tensors in safetensors are, or refused
//! by what they hold.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use program::root;
use program::text;
use rewarm::checkpoint::Checkpoint;
use rewarm::learn::trainable::LoadOptions;
use rewarm::learn::trainable::Trainable;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::VariantConfig;
use tempfile::TempDir;

fn data(path: &str) -> PathBuf {
    root().join("tests/data").join(path)
}

/// A directory with this file as its weights.
fn dir_of(content: &[u8], name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(name), content).unwrap();
    dir
}

fn open(name: &str, as_file: &str) -> (TempDir, Checkpoint) {
    let dir = dir_of(&fs::read(data("pickles").join(name)).unwrap(), as_file);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

#[test]
fn what_torch_saves_has_the_digests_of_the_same_tensors_in_safetensors() {
    for name in ["dtypes", "views", "parameters"] {
        let (_pickled_dir, pickled) = open(&format!("{name}.bin"), "pytorch_model.bin");
        let (_dir, expected) = open(&format!("{name}.safetensors"), "model.safetensors");
        assert_eq!(pickled.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>(), "{name}");
        assert_eq!(pickled.payload_bytes(), expected.payload_bytes(), "{name}");
        for tensor in expected.names() {
            let kind = |checkpoint: &Checkpoint| {
                let info = checkpoint.info(tensor).unwrap();
                (info.dtype, info.shape.clone())
            };
            assert_eq!(kind(&pickled), kind(&expected), "{name}: {tensor}");
            assert_eq!(pickled.digest(tensor).unwrap(), expected.digest(tensor).unwrap(), "{name}: {tensor}");
            let middle =
                |checkpoint: &Checkpoint| checkpoint.sample(tensor, 3).unwrap().values.bytes().to_vec();
            assert_eq!(middle(&pickled), middle(&expected), "{name}: {tensor}");
        }
    }
}

/// The model `llama-bf16`, with these weights.
fn model(weights: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let own = data("models/llama-bf16").join(name);
        let from = if own.exists() { own } else { data("models/llama").join(name) };
        fs::copy(from, dir.path().join(name)).unwrap();
    }
    for (from, to) in weights {
        fs::copy(data(from), dir.path().join(to)).unwrap();
    }
    dir
}

#[test]
fn a_model_has_the_same_fingerprint_and_rewards_in_either_form() {
    let fingerprint = |dir: &Path| {
        let config = VariantConfig::new("v", Mode::Warm, vec![dir.to_owned()]);
        Loader::default().load(&config, &mut |_, _| ()).unwrap().info.fingerprint
    };
    let score = |dir: &Path| {
        let output = program::score(&["--model", dir.to_str().unwrap()], r#"{"token_ids": [3, 5, 8]}"#);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let safetensors = ("models/llama-bf16/model.safetensors", "model.safetensors");
    let expected = model(&[safetensors]);
    let whole = model(&[("pickles/model.bin", "pytorch_model.bin")]);
    let index = "pytorch_model.bin.index.json";
    let parts = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", index];
    let from: Vec<String> = parts.iter().map(|part| format!("pickles/{part}")).collect();
    let sharded: Vec<(&str, &str)> = from.iter().map(String::as_str).zip(parts).collect();
    let sharded = model(&sharded);
    // safetensors win, whatever is beside them
    let both = model(&[safetensors, ("pickles/refused-training.bin", "pytorch_model.bin")]);
    for dir in [&whole, &sharded, &both] {
        assert_eq!(fingerprint(dir.path()), fingerprint(expected.path()));
        assert_eq!(score(dir.path()), score(expected.path()));
    }

    // and what merges or trains them reads them as well
    Trainable::load(whole.path(), &LoadOptions::default()).unwrap();
    let merged = tempfile::tempdir().unwrap().path().join("merged").display().to_string();
    let [whole, sharded] = [&whole, &sharded].map(|dir| dir.path().to_str().unwrap());
    let output = program::run(&["merge", whole, sharded, "--output", &merged]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(score(Path::new(&merged)), score(expected.path()));
    fs::remove_dir_all(merged).unwrap();
}

#[test]
fn what_is_not_tensors_alone_is_refused_by_its_name() {
    for (name, says) in [
        (
            "training",
            &["under `model` (beside `epoch`, `optimizer`)", "weights_only=True)['model'], 'OUT/"][..],
        ),
        ("numbers", &["`step` is a number"]),
        ("arguments", &["`args` is an object of argparse.Namespace"]),
        ("complex", &["`a` is a tensor of a type that is not read, the class torch.ComplexFloatStorage"]),
        ("negative", &["`a` is a view whose values are changed"]),
        ("float8", &["`a` is an object of torch._utils._rebuild_tensor_v3"]),
        ("sparse", &["`a` is an object of torch._utils._rebuild_sparse_tensor"]),
        ("quantized", &["`a` is an object of torch._utils._rebuild_qtensor"]),
        ("list", &["holds a list, not a dictionary of tensors"]),
        ("tensor", &["holds an object of torch._utils._rebuild_tensor_v2, not a dictionary"]),
        ("legacy", &["before version 1.6", "torch.save(torch.load("]),
        ("protocol", &["pickle_protocol"]),
        ("compressed", &["compressed", "torch.save(torch.load("]),
        ("script", &["TorchScript"]),
    ] {
        let content = fs::read(data("pickles").join(format!("refused-{name}.bin"))).unwrap();
        let dir = dir_of(&content, "pytorch_model.bin");
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        for word in says.iter().chain(&["pytorch_model.bin"]) {
            assert!(error.contains(word), "{name}: {error}");
        }
    }
}

#[test]
fn a_file_that_is_cut_or_changed_is_an_error_or_a_checkpoint_and_never_the_end() {
    let whole = fs::read(data("pickles/views.bin")).unwrap();
    let open = |content: &[u8]| Checkpoint::open(dir_of(content, "pytorch_model.bin").path()).map(drop);
    for length in [0, 1, 3, 4, 5, 100, whole.len() / 2, whole.len() - 30, whole.len() - 1] {
        let error = open(&whole[..length]).unwrap_err().to_string();
        assert!(error.contains("pytorch_model.bin") && error.contains("damaged"), "{length}: {error}");
    }
    let mut state = 7_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    for _ in 0..1000 {
        let mut changed = whole.clone();
        for _ in 0..1 + random() % 3 {
            let at = random() % changed.len();
            changed[at] = random() as u8;
        }
        let _ = open(&changed);
    }
}

/// A zip as torch writes it, with this pickle.
fn zipped(pickle: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    archive.start_file("archive/data.pkl", stored).unwrap();
    archive.write_all(pickle).unwrap();
    archive.finish().unwrap().into_inner()
}

/// Harmless here, where the guard sees each instruction before candle does: there it would be copies without end, a stack that
/// overflows, and an allocation of gigabytes.
#[test]
fn a_pickle_that_grows_without_end_is_refused() {
    let nested = [&b"\x80\x02)"[..], &b"\x85".repeat(1_000_000), b"."].concat();
    // ((x, x), (x, x)), 40 times
    let doubled: Vec<u8> = (0..40_u8).flat_map(|at| [b'h', at, b'h', at, 0x86, b'q', at + 1]).collect();
    let doubled = [&b"\x80\x02)q\x00"[..], &doubled, b"."].concat();
    let long_text = [&b"\x80\x02X"[..], &u32::MAX.to_le_bytes(), b"abc"].concat();
    let long_number = [&b"\x80\x02\x8a\xff"[..], &[1; 255], b"."].concat();
    let memo = [&b"\x80\x02("[..], &b"N".repeat(100_000), b"t", &b"q\x01".repeat(100_000), b"."].concat();
    for (what, pickle, says) in [
        ("nested", nested, "deeper than 64"),
        ("doubled", doubled, "no model has so many"),
        ("memo", memo, "no model has so many"),
        ("long text", long_text, "ends in a text"),
        ("long number", long_number, "number of 255 bytes"),
        ("a dictionary's instruction", b"\x80\x02(d.".to_vec(), "makes a dictionary as no torch does"),
        (
            "a call",
            b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.".to_vec(),
            "holds an object of os.system",
        ),
        ("nothing", b"\x80\x02.".to_vec(), "makes nothing"),
    ] {
        let error =
            Checkpoint::open(dir_of(&zipped(&pickle), "pytorch_model.bin").path()).unwrap_err().to_string();
        assert!(error.contains(says), "{what}: {error}");
    }
}
