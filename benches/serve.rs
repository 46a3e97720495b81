//! What the server costs over the bare model, and an ensemble over a merged model.
//!
//! ```text
//! cargo bench --bench serve                 the demo family and a model of SmolLM2-135M's shape
//! cargo bench --bench serve -- demo         only one of them: demo, smollm2
//! ```
//!
//! Both go through the same packed forward on the same token ids: *bare* calls the scorer directly, in batches
//! of `max_batch_tokens`; *served* sends the same samples over gRPC on loopback, from several callers at once
//! and in a closed loop. The two take turns, so that a machine that changes its speed changes both; figures are
//! medians over the rounds. Latencies are of single requests, queueing included.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on should stop")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use rewarm::engine;
use rewarm::model::batch::PackedBatch;
use rewarm::model::batch::Sequence;
use rewarm::model::scorer::Scorer;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::Variant;
use rewarm::model::variant::VariantConfig;
use rewarm::proto;
use rewarm::proto::reward_service_client::RewardServiceClient;
use rewarm::service;
use tonic::transport::Channel;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 5;
const CALLERS: usize = 8;
const SAMPLES_PER_REQUEST: usize = 4;
const MAX_BATCH_TOKENS: usize = 2048;
/// Single requests of one small sample, one after the other.
const SINGLES: usize = 50;

/// What is measured.
struct Workload {
    name: &'static str,
    members: Vec<PathBuf>,
    samples: usize,
    /// Shortest and longest sample, in tokens.
    lengths: (usize, usize),
    vocab: u32,
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!(
        "| model | variant | bare samples/s | served samples/s | served / bare | p50 ms | p99 ms | one alone: bare ms | served ms |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    if is_wanted("demo") {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/demo");
        let members = (0..4).map(|member| demo.join(format!("member-{member}"))).collect();
        runtime.block_on(measure(Workload {
            name: "demo",
            members,
            samples: 1024,
            lengths: (16, 64),
            vocab: 2000,
        }));
    }
    if is_wanted("smollm2") {
        let dir = tempfile::tempdir().unwrap();
        let members: Vec<PathBuf> =
            (0..2).map(|member| dir.path().join(format!("member-{member}"))).collect();
        members.iter().enumerate().for_each(|(seed, path)| write_smollm2_shaped(path, seed as u64));
        let workload = Workload { name: "smollm2", members, samples: 32, lengths: (64, 192), vocab: 49_152 };
        runtime.block_on(measure(workload));
    }
}

async fn measure(workload: Workload) {
    let variants: Vec<VariantConfig> = [("warm", Mode::Warm), ("ens", Mode::Ens)]
        .into_iter()
        .map(|(name, mode)| VariantConfig::new(name, mode, workload.members.clone()))
        .collect();
    let samples = samples(&workload);
    let requests: Vec<Vec<Sequence>> = samples.chunks(SAMPLES_PER_REQUEST).map(<[_]>::to_vec).collect();
    let mut loader = Loader::default();
    let bare: BTreeMap<String, Scorer> =
        variants.iter().map(|v| (v.name.clone(), loader.load(v, &mut |_, _| ()).unwrap().scorer)).collect();
    let (_server, client) = serve(variants).await;

    for (variant, scorer) in &bare {
        let (mut bare_rates, mut served_rates, mut latencies) = (Vec::new(), Vec::new(), Vec::new());
        let single = &samples[..1];
        let (mut bare_singles, mut served_singles) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            tokio::task::block_in_place(|| batches(&samples).iter().for_each(|batch| score(scorer, batch)));
            bare_rates.push(samples.len() as f64 / start.elapsed().as_secs_f64());

            let start = Instant::now();
            latencies.extend(closed_loop(&client, variant, &requests).await);
            served_rates.push(samples.len() as f64 / start.elapsed().as_secs_f64());

            for _ in 0..SINGLES / ROUNDS {
                let start = Instant::now();
                tokio::task::block_in_place(|| score(scorer, single));
                bare_singles.push(start.elapsed().as_secs_f64());
                let start = Instant::now();
                send(&mut client.clone(), variant, single).await;
                served_singles.push(start.elapsed().as_secs_f64());
            }
        }
        let (bare, served) = (quantile(&mut bare_rates, 0.5), quantile(&mut served_rates, 0.5));
        println!(
            "| {} | {variant} of {} | {bare:.1} | {served:.1} | {:.3} | {:.1} | {:.1} | {:.2} | {:.2} |",
            workload.name,
            workload.members.len(),
            served / bare,
            quantile(&mut latencies, 0.5) * 1e3,
            quantile(&mut latencies, 0.99) * 1e3,
            quantile(&mut bare_singles, 0.5) * 1e3,
            quantile(&mut served_singles, 0.5) * 1e3,
        );
    }
}

/// Random ids, lengths spread evenly between the bounds; the same in every run.
fn samples(workload: &Workload) -> Vec<Sequence> {
    let mut noise = Noise(7);
    let (shortest, longest) = workload.lengths;
    (0..workload.samples)
        .map(|_| {
            let tokens = shortest + noise.below((longest - shortest + 1) as u32) as usize;
            let token_ids = (0..tokens).map(|_| noise.below(workload.vocab)).collect();
            Sequence { token_ids, type_ids: vec![0; tokens] }
        })
        .collect()
}

/// In the order of arrival, as the server's batcher takes them.
fn batches(samples: &[Sequence]) -> Vec<&[Sequence]> {
    let mut batches = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, sample) in samples.iter().enumerate() {
        if tokens + sample.token_ids.len() > MAX_BATCH_TOKENS && index > start {
            batches.push(&samples[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += sample.token_ids.len();
    }
    batches.push(&samples[start..]);
    batches
}

fn score(scorer: &Scorer, samples: &[Sequence]) {
    let batch = PackedBatch::pack(samples);
    let rewards = scorer.forward(&batch, &mut vec![Duration::ZERO; scorer.num_members()]).unwrap();
    assert!(rewards.iter().flatten().all(|reward| reward.is_finite()));
}

/// Seconds of each request.
async fn closed_loop(
    client: &RewardServiceClient<Channel>,
    variant: &str,
    requests: &[Vec<Sequence>],
) -> Vec<f64> {
    let (requests, next) = (Arc::new(requests.to_vec()), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (mut client, variant) = (client.clone(), variant.to_owned());
            let (requests, next) = (requests.clone(), next.clone());
            tokio::spawn(async move {
                let mut seconds = Vec::new();
                while let Some(samples) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    send(&mut client, &variant, samples).await;
                    seconds.push(start.elapsed().as_secs_f64());
                }
                seconds
            })
        })
        .collect();
    let mut seconds = Vec::new();
    for caller in callers {
        seconds.extend(caller.await.unwrap());
    }
    seconds
}

async fn send(client: &mut RewardServiceClient<Channel>, variant: &str, samples: &[Sequence]) {
    let samples: Vec<proto::Sample> = samples
        .iter()
        .map(|sample| proto::Sample {
            id: String::new(),
            input: Some(proto::sample::Input::TokenIds(proto::TokenIds { ids: sample.token_ids.clone() })),
        })
        .collect();
    let count = samples.len();
    let request = proto::ScoreRequest { samples, variant: variant.to_owned(), ..Default::default() };
    let results = client.score(request).await.unwrap().into_inner().results;
    assert_eq!(results.len(), count);
    let is_score = |result: &proto::SampleResult| {
        matches!(result.outcome, Some(proto::sample_result::Outcome::Score(_)))
    };
    assert!(results.iter().all(is_score), "{results:?}");
}

fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

struct FromDisk;

impl service::Source for FromDisk {
    fn reread(&self) -> Result<service::Models, String> {
        Err("a bench does not reload".to_owned())
    }

    fn load(&self, variants: &[VariantConfig]) -> Result<Vec<Variant>, service::LoadError> {
        let mut loader = Loader::default();
        Ok(variants.iter().map(|variant| loader.load(variant, &mut |_, _| ()).unwrap()).collect())
    }
}

async fn serve(variants: Vec<VariantConfig>) -> (service::Running, RewardServiceClient<Channel>) {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = service::Config {
        listen: any_port,
        admin: any_port,
        metrics: any_port,
        limits: service::Limits {
            max_message_bytes: 32 << 20,
            max_samples_per_request: 1024,
            max_in_flight_bytes: 256 << 20,
        },
        engine: engine::Config {
            max_batch_tokens: MAX_BATCH_TOKENS,
            max_queue_tokens: 1 << 20,
            share_prefixes: true,
        },
        keepalive: Duration::from_secs(30),
        drain_grace: Duration::ZERO,
        drain_limit: Duration::ZERO,
        models: service::Models { variants, weights: [("warm".to_owned(), 1.0)].into() },
    };
    let running = service::start(config, FromDisk).await.unwrap();
    let channel = Channel::from_shared(format!("http://{}", running.addresses.listen))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = RewardServiceClient::new(channel);
    while client.get_server_info(proto::GetServerInfoRequest {}).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (running, client)
}

/// Knuth's MMIX generator.
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 32) * u64::from(bound)) >> 32) as u32
    }
}

/// A checkpoint of SmolLM2-135M's shape with random weights in f16: 30 layers x 576, 9 heads on 3, 49152 words.
fn write_smollm2_shaped(dir: &Path, seed: u64) {
    let (hidden, intermediate, kv, vocab) = (576, 1536, 192, 49_152);
    let config = serde_json::json!({
        "architectures": ["LlamaForSequenceClassification"], "model_type": "llama", "vocab_size": vocab,
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "rope_theta": 100_000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu", "pad_token_id": 2,
    });
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": {"word": 0}, "unk_token": "word"},
    });
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        ("score.weight".to_owned(), vec![1, hidden]),
    ];
    for layer in 0..30 {
        for (name, shape) in [
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![intermediate, hidden]),
            ("mlp.up_proj", vec![intermediate, hidden]),
            ("mlp.down_proj", vec![hidden, intermediate]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let mut noise = Noise(seed);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let count: usize = shape.iter().product();
            let draw =
                |_| half::f16::from_f32(noise.below(1 << 16) as f32 / (1 << 20) as f32 - 0.03).to_le_bytes();
            let bytes = (0..count).flat_map(draw).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}
