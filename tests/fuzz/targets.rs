//! The readers that are tried: each takes one mutated input from a corpus that is in the tree already.
//!
//! A checkpoint that is accepted goes on: texts are tokenized, and scored if that is cheap.

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser as _;
use prost::Message as _;
use rewarm::config;
use rewarm::config::train::TrainOptions;
use rewarm::model::golden::GoldenRewards;
use rewarm::model::golden::token_digest;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::VariantConfig;
use rewarm::offline::score;
use rewarm::offline::score::Backend;
use rewarm::offline::score::Scored;
use rewarm::ops::batch::PackedBatch;
use rewarm::ops::batch::Sequence;
use rewarm::proto;
use rewarm::text::Input;
use rewarm::text::SampleTokenizer;
use rewarm::text::Truncation;
use rewarm::text::dataset::Dataset;
use serde_json::Value;
use tonic::Code;
use tonic::Status;
use tonic::codec::Codec;
use tonic::codec::DecodeBuf;
use tonic::codec::Decoder;
use tonic::codec::EncodeBuf;
use tonic::codec::Encoder;

use crate::mutate;
use crate::mutate::Random;
use crate::support;

/// What became of an input.
pub(crate) enum Verdict {
    Accepted,
    /// And why.
    Refused(String),
    /// An answer that must not be.
    Wrong(String),
}

impl<T, E: Display> From<Result<T, E>> for Verdict {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Accepted,
            Err(error) => Self::Refused(error.to_string()),
        }
    }
}

impl Verdict {
    /// Mutants of what is refused itself would try the first reader only.
    fn expect_accepted(self, what: &str) {
        match self {
            Self::Accepted => {}
            Self::Refused(why) | Self::Wrong(why) => panic!("{what} is not good to begin with: {why}"),
        }
    }
}

/// Tries one input.
type Run = Box<dyn FnMut(&mut Random) -> Verdict>;

/// One reader.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Sets up in an empty folder.
    pub(crate) prepare: fn(&Path) -> Run,
}

pub(crate) const TARGETS: &[Target] = &[
    Target { name: "safetensors", prepare: |scratch| checkpoints(scratch, &MODELS, "safetensors") },
    Target {
        name: "index",
        prepare: |scratch| checkpoints(scratch, &["models/llama-sharded"], "index.json"),
    },
    Target { name: "config", prepare: |scratch| checkpoints(scratch, &MODELS, "config.json") },
    Target { name: "tokenizer", prepare: |scratch| checkpoints(scratch, &TOKENIZERS, "tokenizer.json") },
    Target {
        name: "tokenizer-config",
        prepare: |scratch| checkpoints(scratch, &TOKENIZERS, "tokenizer_config.json"),
    },
    Target { name: "template", prepare: templates },
    Target { name: "manifest", prepare: |scratch| checkpoints(scratch, &["models/llama"], "rewarm.json") },
    Target { name: "golden", prepare: golden },
    Target { name: "adapter", prepare: |scratch| checkpoints(scratch, &ADAPTERS, "adapter_config.json") },
    Target {
        name: "adapter-file",
        prepare: |scratch| checkpoints(scratch, &ADAPTERS, "adapter_model.safetensors"),
    },
    Target { name: "proto", prepare: |_| messages() },
    Target { name: "samples", prepare: |_| samples() },
    Target { name: "pairs", prepare: pairs },
    Target { name: "toml", prepare: toml },
];

const MODELS: [&str; 10] = [
    "models/bert",
    "models/gemma2",
    "models/llama",
    "models/llama-rope-dynamic",
    "models/llama-rope-yarn",
    "models/llama-tied-bias",
    "models/openrlhf-normalized",
    "models/qwen3",
    "models/roberta",
    "models/trl-v-head-file",
];
/// Each over a model of its family.
const TOKENIZERS: [&str; 6] = [
    "models/bert",
    "models/llama",
    "rules/bert-deberta",
    "rules/bert-xlmr",
    "rules/llama-spm",
    "rules/qwen2",
];
const ADAPTERS: [&str; 4] =
    ["lora/llama/adapter-0", "lora/llama/adapter-1", "lora/bert/adapter-0", "lora/bert/adapter-1"];

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

// ---- checkpoints ----

/// A checkpoint whose file is spoiled and put right again.
struct Spoiled {
    dir: PathBuf,
    base: Option<PathBuf>,
    file: PathBuf,
    original: Vec<u8>,
}

impl Spoiled {
    fn new(scratch: &Path, path: &str, suffix: &str) -> Self {
        let dir = scratch.join(path);
        match path.strip_prefix("rules/") {
            None => copy_files(&data(path), &dir),
            Some(rules) => {
                copy_files(&data("models").join(rules.split('-').next().unwrap()), &dir);
                for name in ["tokenizer.json", "tokenizer_config.json"] {
                    fs::copy(data(path).join(name), dir.join(name)).unwrap();
                }
            }
        }
        let adapted = dir.join("adapter_config.json").exists();
        let base = adapted.then(|| data(path).parent().unwrap().join("base"));
        if !adapted && !dir.join("tokenizer.json").exists() {
            // the tokenizer of a qwen2 model is a BPE, whatever class the files name
            let other = data(if path.ends_with("qwen2") { "rules/qwen2" } else { "evaluate/member-0" });
            for name in ["tokenizer.json", "tokenizer_config.json"] {
                fs::copy(other.join(name), dir.join(name)).unwrap();
            }
        }
        if !adapted {
            let manifest = r#"{"text_rule": "concatenation", "text_end": "as_is", "max_tokens": 32}"#;
            fs::write(dir.join("rewarm.json"), manifest).unwrap();
        }
        let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let file = names
            .filter(|path| path.to_str().unwrap().ends_with(suffix))
            .min()
            .unwrap_or_else(|| panic!("{path} has a file that ends in {suffix}"));
        let original = fs::read(&file).unwrap();
        let spoiled = Self { dir, base, file, original };
        spoiled.try_with(&spoiled.original).expect_accepted(path);
        spoiled
    }

    fn try_with(&self, bytes: &[u8]) -> Verdict {
        fs::write(&self.file, bytes).unwrap();
        let verdict = load_and_score(&self.dir, self.base.as_deref());
        fs::write(&self.file, &self.original).unwrap();
        verdict
    }
}

fn checkpoints(scratch: &Path, paths: &[&str], suffix: &str) -> Run {
    let corpus: Vec<Spoiled> = paths.iter().map(|path| Spoiled::new(scratch, path, suffix)).collect();
    Box::new(move |random| {
        let spoiled = random.pick(&corpus);
        spoiled.try_with(&spoil(&spoiled.original, random))
    })
}

/// JSON as JSON mostly, and the header of a safetensors file too; else, and sometimes, as bytes.
fn spoil(original: &[u8], random: &mut Random) -> Vec<u8> {
    if random.below(4) == 0 {
        return mutate::bytes(original, random);
    }
    if let Ok(value) = serde_json::from_slice::<Value>(original) {
        return mutate::json(&value, random).to_string().into_bytes();
    }
    let (length, rest) = original.split_first_chunk::<8>().expect("a safetensors file");
    let (header, tensors) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header = mutate::json(&serde_json::from_slice(header).unwrap(), random).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), tensors].concat()
}

fn load_and_score(dir: &Path, base: Option<&Path>) -> Verdict {
    let mut config = VariantConfig::new("fuzz", Mode::Warm, vec![dir.to_path_buf()]);
    config.base = base.map(Path::to_path_buf);
    let mut loader = Loader::default();
    let loaded = loader.check(&config).and_then(|_| loader.load(&config, &mut |_, _| ()));
    let variant = match loaded {
        Ok(variant) => variant,
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            return match error.contains(dir.to_str().unwrap()) {
                true => Verdict::Refused(error),
                false => Verdict::Wrong(format!("an error that does not say where: {error}")),
            };
        }
    };
    let text =
        |prompt: &str, response: &str| Input::Text { prompt: prompt.into(), response: response.into() };
    let inputs = [
        text("Name a river in Spain.", " The  Ebro, é\u{1f600} 12 \n"),
        text("", ""),
        Input::Formatted("<s> [CLS] the river </s>".repeat(40)),
        Input::TokenIds(vec![1, 2, 3, 4, 5]),
    ];
    let tokenized = inputs.iter().flat_map(|input| {
        let cut = variant.tokenizer.tokenize(input, Truncation::Left);
        [variant.tokenizer.tokenize(input, Truncation::Reject), cut]
    });
    let sequences: Vec<Sequence> = tokenized
        .filter_map(Result::ok)
        .filter(|sample| sample.token_ids.len() < 2000)
        .map(|sample| Sequence { token_ids: sample.token_ids, type_ids: sample.type_ids })
        .collect();
    if sequences.is_empty() {
        return Verdict::Accepted;
    }
    let batch = PackedBatch::pack(&sequences);
    let rewards = variant.scorer.forward(&batch, &mut vec![Duration::ZERO; variant.scorer.num_members()]);
    match rewards {
        Ok(rewards) if rewards.iter().any(|rewards| rewards.len() != sequences.len()) => {
            Verdict::Wrong("another number of rewards than of samples".to_owned())
        }
        rewards => rewards.into(),
    }
}

fn golden(scratch: &Path) -> Run {
    const GOLDEN: &str = "rewarm.golden.json";
    let original =
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/demo/member-0").join(GOLDEN)).unwrap();
    let original: Value = serde_json::from_slice(&original).unwrap();
    fs::create_dir_all(scratch).unwrap();
    let scratch = scratch.to_owned();
    let tokenizer = support::tokenizer();
    let try_with = move |file: &Value, disturbance: f32| {
        fs::write(scratch.join(GOLDEN), file.to_string()).unwrap();
        let golden = match GoldenRewards::load(&scratch) {
            Ok(Some(golden)) => golden,
            Ok(None) => return Verdict::Wrong("the file is there and was not read".to_owned()),
            Err(error) => return Verdict::Refused(error.to_string()),
        };
        let sequences = match golden.sequences(&tokenizer) {
            Ok(sequences) => sequences,
            Err(error) => return Verdict::Refused(error.to_string()),
        };
        let rewards: Vec<Option<f32>> = (golden.samples.iter().zip(&sequences))
            .map(|(sample, sequence)| sequence.as_ref().map(|_| sample.reward + disturbance))
            .collect();
        match golden.compare(&rewards, rewarm::values::Format::F32) {
            Ok(_) if !disturbance.is_finite() => {
                Verdict::Wrong("a reward that is not finite agrees".to_owned())
            }
            outcome => outcome.into(),
        }
    };
    let mut good = original.clone();
    fit_tokens(&mut good, &support::tokenizer());
    try_with(&good, 0.0).expect_accepted("the golden file");
    let tokenizer = support::tokenizer();
    Box::new(move |random| {
        let mut file = mutate::json(&original, random);
        // a text that changed has other tokens: what is behind their digest is reached with one that fits
        if random.below(8) > 0 {
            fit_tokens(&mut file, &tokenizer);
        }
        let disturbance = *random.pick(&[0.0, 0.0, 0.0, 1e-5, -1e-3, 1.0, 1e38, f32::INFINITY, f32::NAN]);
        try_with(&file, disturbance)
    })
}

/// Gives each sample, if it still is one, the count and the digest of the tokens that it has.
fn fit_tokens(file: &mut Value, tokenizer: &SampleTokenizer) {
    for sample in file.get_mut("samples").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(fields) = sample.as_object_mut() else { continue };
        let input = fields.get("input").cloned().unwrap_or_default();
        let Ok(input) = serde_json::from_value::<Input>(input) else { continue };
        let Ok(sample) = tokenizer.tokenize(&input, Truncation::Reject) else { continue };
        let sequence = Sequence { token_ids: sample.token_ids, type_ids: sample.type_ids };
        fields.insert("tokens".to_owned(), sequence.token_ids.len().into());
        fields.insert("token_digest".to_owned(), token_digest(&sequence).into());
    }
}

// ---- templates ----

const TEMPLATES: [&str; 4] = [
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[U] ' + message['content'] | \
     trim }}{% elif message.role == 'assistant' %}{{ ' [A] ' ~ message.content.strip() ~ eos_token }}{% else %}\
     {{ raise_exception('roles: ' ~ message.role) }}{% endif %}{% endfor %}",
    "{%- set ns = namespace(last='', n=0) -%}\n{%- for m in messages if m.content is string -%}\n  {%- set ns.n = ns.n \
     + loop.index0 // 2 -%}\n  {%- if loop.first and m.role == 'system' %}{% set sys = m.content %}{% continue %}\
     {% endif %}\n  {{- '<' ~ m.role | upper ~ '>' }}{{ m.content.split('\\n')[-1] if '\\n' in m.content else m.content \
     }}\n{%- endfor %}{{ ns | length }}{{ sys }}",
    "{%- macro turn(role, text='', *args) -%}{% if role %}{{ role | title }}: {% endif %}{{ text | \
     replace('a', 'b') | tojson(indent=2) }}{%- endmacro -%}{% for m in messages %}{{ turn(m.role, m.content) }}\
     {% endfor %}{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}{% call turn('x') %}{% endcall %}",
    "{% set items = [1, 2.5, 'x', none, true] %}{{ items | map('string') | join(', ') }}{{ '%s-%d' % ('a', 3) }}\
     {% filter upper %}{% for a in items recursive %}{{ a }}{% endfor %}{% endfilter %}{{ messages | selectattr('role', \
     'equalto', 'user') | list | length }}{{ {'a': 1}.items() | list }}{{ 'abc'[::-1] }}{# note #}{% raw %}{{ x }}{% endraw %}",
];
const WORDS: [&str; 60] = [
    "{%",
    "%}",
    "{{",
    "}}",
    "{#",
    "#}",
    "-%}",
    "{%-",
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if true %}",
    "{% endif %}",
    "{% else %}",
    "{% set x = x ~ x %}",
    "{% set x %}",
    "{% endset %}",
    "{% macro m() %}",
    "{% endmacro %}",
    "{{ m() }}",
    "{% call m() %}",
    "{% endcall %}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{% break %}",
    "{% continue %}",
    "{% raw %}",
    "{% endraw %}",
    "{% generation %}",
    "{% endgeneration %}",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "not ",
    "-",
    "+",
    "* 999999999",
    "** 99",
    "// 0",
    "% 0",
    "[::-1]",
    "[9999:]",
    "| tojson",
    "| list",
    "| join(',')",
    "| center(999999)",
    "| indent(99999)",
    "range(99999)",
    "namespace()",
    "loop(",
    "loop.previtem",
    "messages",
    "none",
    "'x' * 99999",
    "is defined",
    "is iterable",
    ".items()",
    ".replace('', 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx')",
];

fn templates(scratch: &Path) -> Run {
    let spoiled = Spoiled::new(scratch, "models/llama", "tokenizer.json");
    let file = spoiled.dir.join("chat_template.jinja");
    Box::new(move |random| {
        let template = *random.pick(&TEMPLATES);
        fs::write(&file, mutate::program(template, &WORDS, random)).unwrap();
        load_and_score(&spoiled.dir, None)
    })
}

// ---- messages ----

/// A message that is bytes already.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        let rest = prost::bytes::Buf::remaining(buffer);
        prost::bytes::Buf::advance(buffer, rest);
        Ok(Some(()))
    }
}

fn messages() -> Run {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let fake = support::Fake::new(1.0);
    let server = runtime.block_on(support::start(&fake));
    let mut client = tonic::client::Grpc::new(runtime.block_on(server.channel()));
    let corpus = requests();
    Box::new(move |random| {
        let _alive = &server;
        let message = mutate::bytes(random.pick::<Vec<u8>>(&corpus), random);
        let answer = runtime.block_on(async {
            client.ready().await.unwrap();
            let path = tonic::codegen::http::uri::PathAndQuery::from_static("/rewarm.v1.RewardService/Score");
            client.unary(tonic::Request::new(message), path, Raw).await
        });
        match answer {
            Err(status) if status.code() == Code::Internal && status.message().contains("server failed") => {
                Verdict::Wrong(status.to_string())
            }
            Err(status) if status.code() == Code::Unavailable => Verdict::Wrong(status.to_string()),
            answer => answer.into(),
        }
    })
}

/// One request for each way to say what to score, encoded.
fn requests() -> Vec<Vec<u8>> {
    let sample = |input| proto::Sample { id: "a".to_owned(), input: Some(input) };
    let samples = vec![
        sample(proto::sample::Input::Text(proto::Text {
            prompt: "1 2".to_owned(),
            response: "3".to_owned(),
        })),
        sample(proto::sample::Input::Formatted("4 5 6".to_owned())),
        sample(proto::sample::Input::TokenIds(proto::TokenIds { ids: vec![1, 2, 3, 300] })),
        sample(proto::sample::Input::Conversation(proto::Conversation {
            messages: vec![proto::Message {
                role: "user".to_owned(),
                content: "7".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        })),
    ];
    let request = proto::ScoreRequest {
        request_id: "r".to_owned(),
        samples,
        variant: "warm".to_owned(),
        routing_key: "k".to_owned(),
        priority: proto::Priority::Background.into(),
        truncation: proto::Truncation::Left.into(),
        return_members: true,
        ..Default::default()
    };
    let alone = request
        .samples
        .iter()
        .map(|sample| proto::ScoreRequest { samples: vec![sample.clone()], ..Default::default() });
    alone.chain([request.clone()]).map(|request| request.encode_to_vec()).collect()
}

// ---- lines ----

const SAMPLES: [&str; 6] = [
    r#"{"id": 7, "prompt": "Name a prime.", "response": "Seven."}"#,
    r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}"#,
    r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}], "tools": [{"type": "function", "function": {"name": "f"}}]}"#,
    r#"{"formatted": "<s>x"}"#,
    r#"{"token_ids": [1, 2, 3]}"#,
    "\n",
];
const PAIRS: [&str; 4] = [
    r#"{"prompt": "Name a prime.", "chosen": "Seven.", "rejected": "Eight.", "source": "arithmetic"}"#,
    r#"{"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello!"}], "rejected": "Go away."}"#,
    r#"{"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No."}]}"#,
    r#"{"prompt": "Hi", "chosen": [{"role": "system", "content": "s"}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No."}]}"#,
];

fn lines(corpus: &[&str], random: &mut Random) -> Vec<u8> {
    let mut lines = Vec::new();
    for _ in 0..=random.below(3) {
        let line = random.pick(corpus).as_bytes();
        lines.extend(match serde_json::from_slice::<Value>(line) {
            Ok(value) if random.below(4) > 0 => mutate::json(&value, random).to_string().into_bytes(),
            _ => mutate::bytes(line, random),
        });
        lines.push(b'\n');
    }
    lines
}

struct NoModel;

impl Backend for NoModel {
    fn score(&mut self, inputs: Vec<Input>) -> anyhow::Result<Vec<Result<Scored, String>>> {
        Ok(inputs.iter().map(|_| Err(String::new())).collect())
    }
}

fn samples() -> Run {
    Box::new(|random| {
        let input = lines(&SAMPLES, random);
        let mut output = Vec::new();
        match score::run(&*input, &mut output, &mut NoModel, &mut |_| ()) {
            Ok(summary) if output.iter().filter(|&&byte| byte == b'\n').count() != summary.lines => {
                Verdict::Wrong("another number of lines out than in".to_owned())
            }
            result => result.into(),
        }
    })
}

fn pairs(scratch: &Path) -> Run {
    fs::create_dir_all(scratch).unwrap();
    let file = scratch.join("pairs.jsonl");
    Box::new(move |random| {
        fs::write(&file, lines(&PAIRS, random)).unwrap();
        Dataset::read(&file).into()
    })
}

// ---- settings ----

const SERVE: &str = r#"
[server]
listen = "127.0.0.1:0"
drain_seconds = 5
[log]
level = "info"
[batching]
max_batch_tokens = 1024
share_prefixes = true
[variants.warm]
mode = "warm"
members = ["a", "b"]
coefficients = [0.5, 0.5]
dtype = "auto"
[variants.ens]
mode = "ens"
members = ["a", "b"]
reduction = { uwo = { lambda = 0.5 } }
[routing]
weights = { warm = 1, ens = 0.5 }
"#;

const TRAIN: &str = r#"
base = "a"
pairs = ["pairs.jsonl"]
output = "out"
num_members = 3
learning_rate = [1e-5, 2e-5]
dropout = [0.0, 0.1]
epochs = 2
seed = 7
"#;

/// `rewarm train` as far as its flags.
#[derive(clap::Parser)]
struct Train {
    #[command(flatten)]
    options: TrainOptions,
}

fn toml(scratch: &Path) -> Run {
    const WORDS: [&str; 22] = [
        "[",
        "]",
        "[[",
        "{",
        "}",
        "=",
        "\"",
        "'''",
        "0",
        "-1",
        "1e400",
        "nan",
        "inf",
        "18446744073709551616",
        "0x7f",
        "true",
        "1979-05-27",
        "[variants.warm]",
        "\n",
        "members",
        "[server]\n",
        "a.b.c.d = 1\n",
    ];
    for member in ["a", "b"] {
        fs::create_dir_all(scratch.join(member)).unwrap();
    }
    fs::write(scratch.join("pairs.jsonl"), PAIRS[0]).unwrap();
    let file = scratch.join("rewarm.toml");
    let serve = {
        let file = file.clone();
        move |text: &str| -> Verdict {
            fs::write(&file, text).unwrap();
            config::load(&config::Overrides { config: Some(file.clone()), ..Default::default() }).into()
        }
    };
    let train = move |text: &str| -> Verdict {
        fs::write(&file, text).unwrap();
        let flags = ["train".as_ref(), "--config".as_ref(), file.as_os_str()];
        Train::try_parse_from(flags).unwrap().options.load().into()
    };
    serve(SERVE).expect_accepted("SERVE");
    train(TRAIN).expect_accepted("TRAIN");
    Box::new(move |random| match random.below(3) {
        0 => train(&mutate::program(TRAIN, &WORDS, random)),
        _ => serve(&mutate::program(SERVE, &WORDS, random)),
    })
}
