//! Rendered text and token ids against those that Python made, for tokenizers and templates of public models.
//!
//! The fixtures lie beside the repository, in `../shared/fixtures/tokenizers` (its README says how they were
//! made). Without them each test passes and says so, unless `REWARM_REQUIRE_SHARED=1`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use flate2::read::GzDecoder;
use rewarm::text::template::ChatTemplate;
use rewarm::text::{
    Input, Message, SampleTokenizer, TextError, TextOptions, TextRule, TokenizedSample, Truncation,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

const TOKENIZERS: [&str; 5] = ["minilm-l6-v2", "qwen3", "gpt-neox-20b", "deberta-v3", "smollm2"];

fn fixtures() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures/tokenizers");
    if path.is_dir() {
        return Some(path);
    }
    assert!(std::env::var("REWARM_REQUIRE_SHARED").as_deref() != Ok("1"), "../shared/fixtures is not here");
    println!("skipped: ../shared/fixtures is not here");
    None
}

fn rows<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A checkpoint directory with one of the fixtures' tokenizers.
fn checkpoint(fixtures: &Path, name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixtures.join(name)).unwrap() {
        let path = entry.unwrap().path();
        let file_name = path.file_name().unwrap().to_str().unwrap();
        let mut bytes = Vec::new();
        match file_name.strip_suffix(".gz") {
            Some(unzipped) => {
                GzDecoder::new(File::open(&path).unwrap()).read_to_end(&mut bytes).unwrap();
                fs::write(dir.path().join(unzipped), bytes).unwrap();
            }
            None => drop(fs::copy(&path, dir.path().join(file_name)).unwrap()),
        }
    }
    dir
}

fn load(dir: &TempDir, rule: Option<TextRule>, max_tokens: usize) -> SampleTokenizer {
    // 2^20: every fixture's tokenizer has fewer tokens
    let options = TextOptions {
        vocab_size: 1 << 20,
        type_vocab_size: Some(2),
        max_tokens,
        rule,
        ..TextOptions::default()
    };
    SampleTokenizer::load(dir.path(), &options).unwrap()
}

fn text(prompt: &str, response: &str) -> Input {
    Input::Text { prompt: prompt.to_owned(), response: response.to_owned() }
}

#[test]
fn templates_render_as_in_python() {
    #[derive(Deserialize)]
    struct Row {
        template: String,
        case: String,
        messages: Vec<Message>,
        add_generation_prompt: bool,
        bos_token: String,
        eos_token: String,
        rendered: Option<String>,
        error: Option<String>,
    }
    let Some(fixtures) = fixtures() else { return };
    let rows: Vec<Row> = rows(&fixtures.join("golden_chat.jsonl"));
    assert_eq!(rows.len(), 144);
    let mut failures = Vec::new();
    for row in rows {
        let source =
            fs::read_to_string(fixtures.join(format!("chat_templates/{}.jinja", row.template))).unwrap();
        let special_tokens = BTreeMap::from([
            ("bos_token".to_owned(), row.bos_token.into()),
            ("eos_token".to_owned(), row.eos_token.into()),
        ]);
        let template = ChatTemplate::new(&source, &special_tokens).unwrap();
        // 26 Jul 2024, 12:00
        let template = template.with_clock(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_721_995_200));
        let is_as_expected =
            match (template.render(&row.messages.into(), row.add_generation_prompt), row.error) {
                (Ok(rendered), None) => Some(rendered) == row.rendered,
                (Err(TextError::TemplateRefused { message }), Some(error)) => message == error,
                _ => false,
            };
        if !is_as_expected {
            failures.push(format!("{} {} {}", row.template, row.case, row.add_generation_prompt));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn token_ids_are_those_of_python() {
    #[derive(Deserialize)]
    struct Row {
        tokenizer: String,
        text: String,
        pair: Option<String>,
        ids: Vec<u32>,
        ids_no_special: Option<Vec<u32>>,
        type_ids: Option<Vec<u32>>,
    }
    let Some(fixtures) = fixtures() else { return };
    let rows: Vec<Row> = rows(&fixtures.join("golden_tokens.jsonl"));
    assert_eq!(rows.len(), 95);
    let mut failures = Vec::new();
    for name in TOKENIZERS {
        let dir = checkpoint(&fixtures, name);
        let single = load(&dir, Some(TextRule::Concatenation), 1 << 20);
        let pair = load(&dir, Some(TextRule::SentencePair), 1 << 20);
        for row in rows.iter().filter(|row| row.tokenizer == name) {
            let (numbers, of_numbers) = SMOLLM2_NUMBERS;
            let is_other = name == "smollm2" && row.text == numbers;
            let expected = if is_other { of_numbers.to_vec() } else { row.ids.clone() };
            let expected_bare = if is_other { Some(of_numbers.to_vec()) } else { row.ids_no_special.clone() };
            let ids = |tokenized: Result<TokenizedSample, TextError>| match tokenized {
                Ok(sample) => sample.token_ids,
                Err(TextError::Empty) => Vec::new(),
                Err(error) => panic!("{name} {:?}: {error}", row.text),
            };
            let mut check = |what: &str, is_equal: bool| {
                if !is_equal {
                    failures.push(format!("{name} {what} {:?} {:?}", row.text, row.pair));
                }
            };
            if let Some(response) = &row.pair {
                let sample = pair.tokenize(&text(&row.text, response), Truncation::Reject).unwrap();
                check("pair ids", sample.token_ids == expected);
                // of these, only BertTokenizer gives a model token types
                let types = row.type_ids.clone().filter(|_| name == "minilm-l6-v2");
                check("pair type ids", sample.type_ids == types.unwrap_or(vec![0; expected.len()]));
            } else {
                check("ids", ids(single.tokenize(&text(&row.text, ""), Truncation::Reject)) == expected);
                check("ids", ids(single.tokenize(&text("", &row.text), Truncation::Reject)) == expected);
                let formatted = single.tokenize(&Input::Formatted(row.text.clone()), Truncation::Reject);
                check("ids without special tokens", Some(ids(formatted)) == expected_bare);
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Where `AutoTokenizer` of transformers 5.23 makes other tokens of these files than the `tokenizers` library makes of
/// `tokenizer.json` alone, which the rows were made with: as its class GPT2Tokenizer, SmolLM2's loses the `Digits`
/// pre-tokenizer, so " ½" and " ①" are no longer cut after the space.
const SMOLLM2_NUMBERS: (&str, [u32; 18]) = (
    "١٢٣ ७८९ ½ ①",
    [164, 111, 164, 112, 164, 113, 216, 9310, 251, 9310, 123, 9310, 124, 3351, 138, 4636, 235, 250],
);

/// Truncation drops tokens of a sequence; it never tokenizes anew, so what stays is a part of the whole.
#[test]
fn truncation_keeps_the_scaffold_and_the_response() {
    let Some(fixtures) = fixtures() else { return };
    let prompt = "user assistant 日本語のテキスト 👩‍👩‍👧 naïve\tcafé\n\n".repeat(50);
    let response = "  The answer is 42 🎉, and “quoted”.";
    for name in ["qwen3", "smollm2"] {
        let dir = checkpoint(&fixtures, name);
        let unlimited = load(&dir, None, 1 << 20);
        let whole = unlimited.tokenize(&text(&prompt, response), Truncation::Reject).unwrap();
        let bare = unlimited.tokenize(&text("", response), Truncation::Reject).unwrap();
        let limit = bare.token_ids.len() + 20;
        let limited = load(&dir, None, limit);
        let tail = |sample: &TokenizedSample| sample.token_ids[sample.token_ids.len() - 12..].to_vec();
        for truncation in [Truncation::Left, Truncation::Right] {
            let fitted = limited.tokenize(&text(&prompt, response), truncation).unwrap();
            assert_eq!(fitted.token_ids.len(), limit, "{name} {truncation:?}");
            assert_eq!(fitted.truncated_tokens, whole.token_ids.len() - limit, "{name} {truncation:?}");
            assert_eq!(
                fitted.token_ids[..3],
                whole.token_ids[..3],
                "{name} {truncation:?}: the header stays"
            );
            assert_eq!(tail(&fitted), tail(&whole), "{name} {truncation:?}: the response stays");
        }
    }
}
