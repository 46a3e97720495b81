//! Cards that are played: which of them a variant goes to, what does not fit, what their loss means for a server, and
//! reloads where memory holds one generation of models.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[expect(dead_code, reason = "of what several tests share, this one needs a part")]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use rewarm::checkpoint::Checkpoint;
use rewarm::model::ModelError;
use rewarm::model::device::Cards;
use rewarm::model::device::DeviceName;
use rewarm::model::device::Parts;
use rewarm::model::dtype::Dtype;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::Variant;
use rewarm::model::variant::VariantConfig;
use rewarm::proto;
use rewarm::service::LoadError;
use rewarm::service::Reload;
use rewarm_cuda::device::Device;
use rewarm_cuda::driver::Card;
use rewarm_cuda::driver::CudaError;
use rewarm_cuda::driver::Launch;
use rewarm_cuda::played::Kernels;
use rewarm_cuda::played::Play;
use rewarm_cuda::played::Played;
use support::FAULT;
use support::Fake;
use support::SOON;
use support::config;
use support::eventually;
use support::models;
use support::request;
use support::rewards;
use support::start;
use support::start_with;
use support::variant;
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

/// Nothing is computed here.
struct Idle;

impl Kernels for Idle {
    fn prepare(&self, _: &str) -> Result<(), CudaError> {
        Ok(())
    }

    fn launch(&self, _: &Launch<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// Cards with so many bytes of memory each.
struct Machine(Vec<(Card, Arc<Device>)>);

impl Machine {
    fn new(memory: &[u64]) -> Self {
        let card = |(index, &memory): (usize, &u64)| {
            let play = Play::new(Arc::new(Idle));
            let card = Card { index, memory, name: format!("played {index}"), ..play.card };
            let played = Played::new(Play { card: card.clone(), ..play });
            (card, Arc::new(Device::new(played)))
        };
        Self(memory.iter().enumerate().map(card).collect())
    }
}

impl Cards for Machine {
    fn list(&self) -> Result<Vec<Card>, CudaError> {
        Ok(self.0.iter().map(|(card, _)| card.clone()).collect())
    }

    fn open(&self, index: usize) -> Result<Arc<Device>, CudaError> {
        Ok(self.0[index].1.clone())
    }
}

/// Memory for the activations of these tiny batches, and more.
const ROOM: u64 = 16 << 20;
const BATCH_TOKENS: usize = 64;

fn member(index: usize) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/evaluate/member-{index}"))
}

fn weights(path: &Path) -> u64 {
    Checkpoint::open(path).unwrap().payload_bytes()
}

fn on(device: &str, mode: Mode, members: usize) -> VariantConfig {
    let config =
        VariantConfig::new(&format!("{mode:?}").to_lowercase(), mode, (0..members).map(member).collect());
    VariantConfig { device: device.parse().unwrap(), ..config }
}

fn loader(memory: &[u64]) -> Loader {
    Loader::onto(Arc::new(Machine::new(memory))).for_server(BATCH_TOKENS)
}

fn load(loader: &mut Loader, config: &VariantConfig) -> Result<Variant, ModelError> {
    loader.load(config, &mut |_, _| ())
}

fn placed(variant: &Variant) -> (String, Parts, usize) {
    (variant.info.placement.to_string(), variant.info.placement.parts, 1 + variant.others.len())
}

#[test]
fn a_variant_that_fits_has_a_copy_on_each_card_and_one_that_does_not_its_members() {
    let one = weights(&member(0));
    let mut roomy = loader(&[4 * one + ROOM, 4 * one + ROOM]);
    let warm = load(&mut roomy, &on("cuda:0,cuda:1", Mode::Warm, 1)).unwrap();
    assert_eq!(placed(&warm), ("cuda:0,cuda:1".to_owned(), Parts::Copies, 2));
    let ens =
        load(&mut loader(&[4 * one + ROOM, 4 * one + ROOM]), &on("cuda:1,cuda:0", Mode::Ens, 2)).unwrap();
    assert_eq!(placed(&ens), ("cuda:1,cuda:0".to_owned(), Parts::Copies, 2));
    assert_eq!(ens.info.placement.devices[0].card().map(|card| card.name.as_str()), Some("played 1"));
    assert!(ens.info.placement.left.iter().all(|left| left.is_some_and(|left| left < 4 * one + ROOM)));
    let auto = load(&mut loader(&[4 * one + ROOM, 4 * one + ROOM]), &on("auto", Mode::Warm, 1)).unwrap();
    assert_eq!(placed(&auto), ("cuda:0".to_owned(), Parts::Copies, 1));

    // smaller and smaller cards, until they do not have room for both members and a forward
    let tight = |step: u64| {
        let memory = 5 * one - step * (one / 3);
        load(&mut loader(&[memory, memory]), &on("cuda:0,cuda:1", Mode::Ens, 2)).unwrap()
    };
    let spread = (0..).map(tight).find(|variant| variant.info.placement.parts == Parts::Members).unwrap();
    assert_eq!(placed(&spread), ("cuda:0,cuda:1".to_owned(), Parts::Members, 1));
    assert_eq!(spread.scorer.num_members(), 2);
    assert_eq!(spread.info.fingerprint, ens.info.fingerprint, "where it is changes no reward");
}

#[test]
fn what_is_computed_on_a_card_has_a_fingerprint_of_its_own_whichever_card_it_is() {
    let fingerprint = |device: &str| {
        let mut loader = loader(&[1 << 28, 1 << 28]);
        load(&mut loader, &on(device, Mode::Warm, 1)).unwrap().info.fingerprint
    };
    assert_eq!(fingerprint("cuda:0"), fingerprint("cuda:1"));
    assert_ne!(fingerprint("cuda:0"), fingerprint("cpu"));
    let bf16 = |device: &str| {
        let config = VariantConfig { dtype: Dtype::Auto, ..on(device, Mode::Warm, 1) };
        load(&mut loader(&[1 << 28]), &config).unwrap().info.dtype.name()
    };
    assert_eq!(bf16("cuda:0"), "bf16");
}

#[test]
fn what_fits_on_no_card_is_refused_by_name_with_the_numbers() {
    let one = weights(&member(0));
    let refused = |memory: &[u64], config: &VariantConfig| {
        let error = load(&mut loader(memory), config).err().unwrap();
        let all = anyhow::Error::from(error);
        format!("{all:#}")
    };
    let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let single = refused(&[one / 2, one / 2], &on("cuda:0,cuda:1", Mode::Warm, 1));
    for part in ["member-0", &gigabytes(one), "cuda:0 (played 0", "left. Take a larger card"] {
        assert!(single.contains(part), "{single}");
    }
    let several = refused(&[one / 2, one / 2], &on("cuda:0,cuda:1", Mode::Ens, 2));
    assert!(several.contains("cuda:0 (played 0"), "{several}");
}

#[test]
fn variants_that_do_not_fit_together_are_named_with_their_numbers_before_any_is_read() {
    let one = weights(&member(0));
    let machine = loader(&[one * 5 / 2]);
    let [warm, ens] = [on("cuda", Mode::Warm, 2), on("cuda", Mode::Ens, 2)];
    assert!(machine.check_memory(std::slice::from_ref(&ens)).is_ok());
    let (index, error) = machine.check_memory(&[warm.clone(), ens.clone()]).unwrap_err();
    let told = error.to_string();
    assert_eq!(index, None);
    assert!(told.contains("together (warm 0.0 GB, ens 0.0 GB), and cuda:0 (played 0"), "{told}");
    assert!(error.lacks_memory());
    // what they share counts once
    assert!(machine.check_memory(&[ens.clone(), ens.clone()]).is_ok());
    let apart = [warm, VariantConfig { device: DeviceName::Cuda(vec![1]), ..ens.clone() }];
    assert!(loader(&[one * 5 / 2, one * 5 / 2]).check_memory(&apart).is_ok());
    let (index, _) = loader(&[one / 2]).check_memory(&[on("cpu", Mode::Warm, 1), ens]).unwrap_err();
    assert_eq!(index, Some(1));
}

// ---- a server ----

const READY: &str = "rewarm.v1.RewardService";

#[tokio::test]
async fn a_fault_is_answered_with_unavailable_and_ends_the_server_with_its_own_error() {
    let model = Fake::new(1.0);
    let mut server = start(&model).await;
    let mut client = server.client().await;
    model.close();
    let fault = FAULT.to_string();
    let forwards = model.forwards.load(Ordering::SeqCst);
    let held: Vec<_> = [vec![fault.as_str()], vec!["1", "2"]]
        .into_iter()
        .map(|texts| {
            let (mut client, request) = (client.clone(), request(&texts));
            tokio::spawn(async move { client.score(request).await })
        })
        .collect();
    eventually("one runs", async || model.forwards.load(Ordering::SeqCst) > forwards).await;
    model.open();
    let mut refused = 0;
    for call in held {
        // whichever came first
        if let Err(status) = timeout(SOON, call).await.unwrap().unwrap() {
            refused += 1;
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
        }
    }
    assert!(refused > 0);
    let error = timeout(SOON, server.running.stopped()).await.unwrap().unwrap_err();
    assert!(error.fault().is_some_and(|fault| fault.contains("error 700")), "{error}");
    let error = anyhow::Error::from(error).context("serve");
    assert_eq!(rewarm::cli::exit_code(&error), 3);
    assert!(client.score(request(&["1"])).await.is_err());

    let load = |fault: CudaError| {
        let source = ModelError::from(rewarm::ops::error::OpsError::from(fault));
        anyhow::Error::from(LoadError::Model { variant: "warm".to_owned(), source })
    };
    let card = || "a card".to_owned();
    assert_eq!(rewarm::cli::exit_code(&load(CudaError::Fault { card: card(), problem: "700".into() })), 3);
    let too_large = CudaError::OutOfMemory { what: "weights".into(), asked: 2, free: 1, card: card() };
    assert_eq!(rewarm::cli::exit_code(&load(too_large)), 1);
    assert_eq!(rewarm::cli::exit_code(&anyhow::anyhow!("anything else")), 1);
}

/// A server that says what it loads, where memory holds one generation: whatever is loaded beside another is refused.
async fn one_generation(reload: Reload) -> (support::TestServer, Arc<AtomicBool>, Arc<Mutex<Vec<String>>>) {
    let (is_bad, loaded) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let alive: Arc<Mutex<BTreeMap<String, std::sync::Weak<Fake>>>> = Arc::default();
    let mut config = config(models(&[("old", 1.0)]));
    config.reload = reload;
    let (of_load, of_bad) = (loaded.clone(), is_bad.clone());
    let server = start_with(config, move |name| {
        let mut alive = alive.lock().unwrap();
        if alive.values().any(|model| model.strong_count() > 0) {
            return Err("there is no room beside the others".to_owned());
        }
        if name == "new" && of_bad.load(Ordering::SeqCst) {
            return Err("it is damaged".to_owned());
        }
        let model = Fake::new(if name == "old" { 1.0 } else { 2.0 });
        alive.insert(name.to_owned(), Arc::downgrade(&model));
        of_load.lock().unwrap().push(name.to_owned());
        Ok(variant(name, &model))
    })
    .await;
    server.ready().await;
    *server.reread.lock().unwrap() = Ok(models(&[("new", 1.0)]));
    (server, is_bad, loaded)
}

#[tokio::test]
async fn two_generations_that_do_not_fit_are_refused_beside_each_other_and_replaced_where_that_is_asked_for()
{
    let (server, ..) = one_generation(Reload::Beside).await;
    let refused = server.admin().await.reload(proto::ReloadRequest {}).await.unwrap_err();
    assert!(refused.message().contains("the old models serve on"), "{refused:?}");
    assert_eq!(rewards(&server.client().await.score(request(&["3"])).await.unwrap().into_inner()), [3.0]);

    let (server, _, loaded) = one_generation(Reload::Replace).await;
    server.admin().await.reload(proto::ReloadRequest {}).await.unwrap();
    assert_eq!(*loaded.lock().unwrap(), ["old", "new"]);
    assert_eq!(server.health(READY).await, Some(ServingStatus::Serving));
    assert_eq!(rewards(&server.client().await.score(request(&["3"])).await.unwrap().into_inner()), [6.0]);
}

#[tokio::test]
async fn what_is_replaced_finishes_its_work_and_comes_back_if_the_new_models_cannot_serve() {
    let (server, is_bad, loaded) = one_generation(Reload::Replace).await;
    is_bad.store(true, Ordering::SeqCst);
    let failed = server.admin().await.reload(proto::ReloadRequest {}).await.unwrap_err();
    assert_eq!(failed.code(), Code::FailedPrecondition);
    assert!(
        failed.message().contains("the old models serve on: load variant `new`: it is damaged"),
        "{failed:?}"
    );
    assert_eq!(*loaded.lock().unwrap(), ["old", "old"]);
    server.ready().await;
    assert_eq!(rewards(&server.client().await.score(request(&["3"])).await.unwrap().into_inner()), [3.0]);
}

#[tokio::test]
async fn nothing_serves_while_models_are_replaced_and_health_says_so() {
    let slow = Fake::new(1.0);
    let (of_load, mut config) = (slow.clone(), config(models(&[("old", 1.0)])));
    config.reload = Reload::Replace;
    let server = start_with(config, move |name| Ok(variant(name, &of_load))).await;
    server.ready().await;
    *server.reread.lock().unwrap() = Ok(models(&[("new", 1.0)]));
    // what was admitted is finished first: this call, then the first forward of the new models
    slow.close();
    let forwards = slow.forwards.load(Ordering::SeqCst);
    let mut client = server.client().await;
    let mut caller = client.clone();
    let admitted = tokio::spawn(async move { caller.score(request(&["5"])).await });
    eventually("it runs", async || slow.forwards.load(Ordering::SeqCst) > forwards).await;
    let mut admin = server.admin().await;
    let reload = tokio::spawn(async move { admin.reload(proto::ReloadRequest {}).await });
    server.until_health(READY, ServingStatus::NotServing).await;
    assert_eq!(server.health("old").await, Some(ServingStatus::NotServing));
    let refused = client.score(request(&["1"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"));
    assert!(!reload.is_finished());
    slow.open();
    assert_eq!(rewards(&admitted.await.unwrap().unwrap().into_inner()), [5.0]);
    reload.await.unwrap().unwrap();
    server.ready().await;
    assert_eq!(server.health("old").await, None);
}

#[test]
fn experts_are_computed_on_a_cpu_and_refused_on_a_card_by_name() {
    check_on_cpu_alone("qwen3-moe", "qwen3_moe: experts");
}

#[test]
fn latent_attention_is_computed_on_a_cpu_and_refused_on_a_card_by_name() {
    check_on_cpu_alone("minicpm3", "minicpm3: latent attention");
}

#[test]
fn linear_attention_is_computed_on_a_cpu_and_refused_on_a_card_by_name() {
    check_on_cpu_alone("qwen3-5", "qwen3_5: linear attention");
}

fn check_on_cpu_alone(model: &str, what: &str) {
    let dir = tempfile::tempdir().unwrap();
    for from in ["llama", model] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(from);
        for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
    }
    let on = |device: &str| {
        let config = VariantConfig::new("alone", Mode::Warm, vec![dir.path().to_owned()]);
        VariantConfig { device: device.parse().unwrap(), max_tokens: Some(64), ..config }
    };
    let auto = load(&mut loader(&[1 << 40]), &on("auto")).unwrap();
    assert_eq!(placed(&auto).0, "cpu");
    for refused in [
        load(&mut loader(&[1 << 40]), &on("cuda:0")).map(drop),
        loader(&[1 << 40]).check(&on("cuda:0")).map(drop),
    ] {
        let problem = refused.unwrap_err().problems().join("; ");
        assert!(problem.contains(&format!("{what} cannot be computed on a card")), "{problem}");
    }
}
