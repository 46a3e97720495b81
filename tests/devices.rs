//! The engine with copies of a model on several devices, which are played by models that wait, sleep, fail, or are lost.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use rewarm::engine::Call;
use rewarm::engine::Config;
use rewarm::engine::Engine;
use rewarm::engine::EngineError;
use rewarm::engine::Lane;
use rewarm::engine::SampleError;
use rewarm::engine::Scored;
use rewarm::model::ModelError;
use rewarm::model::scorer::Forward;
use rewarm::model::scorer::Scorer;
use rewarm::ops::batch::PackedBatch;
use rewarm::ops::batch::Sequence;
use rewarm::ops::error::OpsError;
use rewarm_cuda::driver::CudaError;
use tokio::task::JoinHandle;

const CONFIG: Config = Config {
    max_batch_tokens: 4096,
    max_step_tokens: 1 << 20,
    max_queue_tokens: 1 << 20,
    share_prefixes: false,
};
const PATIENCE: Duration = Duration::from_secs(60);

/// A device that does what a test says, batch by batch. A sample's reward is its first token.
struct Played {
    /// Told how many samples each batch has.
    asked: mpsc::Sender<usize>,
    /// What to do with each.
    told: std::sync::Mutex<mpsc::Receiver<Do>>,
}

enum Do {
    Answer,
    Fail,
    RunOutOfMemory,
    Fault,
}

struct Control {
    asked: mpsc::Receiver<usize>,
    tell: mpsc::Sender<Do>,
}

impl Control {
    /// Samples of the next batch, which then waits.
    fn asked(&self) -> usize {
        self.asked.recv_timeout(PATIENCE).expect("the device has something to do")
    }

    fn is_idle(&self) -> bool {
        self.asked.recv_timeout(Duration::from_millis(50)).is_err()
    }
}

fn played() -> (Scorer, Control) {
    let ((asked, asks), (tell, told)) = (mpsc::channel(), mpsc::channel());
    let model = Played { asked, told: std::sync::Mutex::new(told) };
    (Scorer::warm(Arc::new(model)), Control { asked: asks, tell })
}

fn cuda(error: CudaError) -> ModelError {
    OpsError::from(error).into()
}

impl Forward for Played {
    fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
        let _ = self.asked.send(batch.len());
        let card = || "a played card".to_owned();
        match self.told.lock().unwrap().recv_timeout(PATIENCE).unwrap_or(Do::Fail) {
            Do::Answer => Ok(first_tokens(batch)),
            Do::Fail => Err(ModelError::Unsupported("on demand".into())),
            Do::RunOutOfMemory => Err(cuda(CudaError::OutOfMemory {
                what: "the activations of a batch".into(),
                asked: 2,
                free: 1,
                card: card(),
            })),
            Do::Fault => Err(cuda(CudaError::Fault { card: card(), problem: "error 700".into() })),
        }
    }
}

fn first_tokens(batch: &PackedBatch) -> Vec<f32> {
    batch.sequences().map(Cow::into_owned).map(|token_ids| token_ids[0] as f32).collect()
}

/// A lane with copies on so many devices.
fn lane(engine: &Engine, num_devices: usize) -> (Lane, Vec<Control>) {
    let (scorers, controls): (Vec<_>, Vec<_>) = (0..num_devices).map(|_| played()).unzip();
    let named = scorers.into_iter().enumerate().map(|(index, scorer)| (format!("cuda:{index}"), scorer));
    (engine.add_lane_on("warm", named.collect()), controls)
}

fn sample(token: u32, length: usize) -> Sequence {
    Sequence { token_ids: vec![token; length], type_ids: vec![0; length] }
}

/// Samples of 1024 tokens, the reward of each its place.
fn long_samples(count: u32) -> Vec<Sequence> {
    (0..count).map(|place| sample(place, 1024)).collect()
}

fn submit(lane: &Lane, samples: Vec<Sequence>) -> JoinHandle<Result<Scored, EngineError>> {
    let lane = lane.clone();
    tokio::spawn(async move { lane.score(samples, Call::default()).await })
}

fn rewards(scored: &Scored) -> Vec<f32> {
    scored.outcomes.iter().map(|outcome| outcome.as_ref().unwrap().reward).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_devices_do_twice_as_much() {
    /// 10 ms for each batch.
    struct Sleeps(Arc<AtomicUsize>);
    impl Forward for Sleeps {
        fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
            std::thread::sleep(Duration::from_millis(10));
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(first_tokens(batch))
        }
    }
    let mut seconds = Vec::new();
    for num_devices in [1, 2] {
        let engine = Engine::start(CONFIG);
        let batches: Vec<Arc<AtomicUsize>> = (0..num_devices).map(|_| Arc::default()).collect();
        let copy = |(index, batches): (usize, &Arc<AtomicUsize>)| {
            (format!("cuda:{index}"), Scorer::warm(Arc::new(Sleeps(batches.clone()))))
        };
        let lane = engine.add_lane_on("warm", batches.iter().enumerate().map(copy).collect());
        let begun = Instant::now();
        // what one caller asks for at once, and what many do
        let one = submit(&lane, (0..40).map(|token| sample(token, 4096)).collect());
        let many: Vec<_> = (0..40).map(|token| submit(&lane, vec![sample(token, 4096)])).collect();
        assert_eq!(
            rewards(&one.await.unwrap().unwrap()),
            (0..40).map(|token| token as f32).collect::<Vec<_>>()
        );
        for (token, task) in many.into_iter().enumerate() {
            assert_eq!(rewards(&task.await.unwrap().unwrap()), [token as f32]);
        }
        seconds.push(begun.elapsed().as_secs_f64());
        let batches: Vec<usize> = batches.iter().map(|batches| batches.load(Ordering::Relaxed)).collect();
        assert_eq!(batches.iter().sum::<usize>(), 80);
        assert!(batches.iter().all(|&of_device| of_device >= 80 / num_devices * 3 / 4), "{batches:?}");
    }
    assert!(seconds[1] < 0.65 * seconds[0], "{seconds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_devices_share_a_request_and_its_outcomes_come_together_in_order() {
    let engine = Engine::start(CONFIG);
    let (lane, devices) = lane(&engine, 2);
    let task = submit(&lane, long_samples(4));
    assert_eq!([devices[0].asked(), devices[1].asked()], [2, 2]);
    devices[1].tell.send(Do::Answer).unwrap();
    assert!(devices[1].is_idle() && !task.is_finished());
    devices[0].tell.send(Do::Answer).unwrap();
    assert_eq!(rewards(&task.await.unwrap().unwrap()), [0.0, 1.0, 2.0, 3.0]);

    // what is small goes to one of them, and who comes then to the other
    let small = submit(&lane, vec![sample(7, 10), sample(8, 10)]);
    let busy = usize::from(devices[0].is_idle());
    let next = submit(&lane, vec![sample(9, 10)]);
    assert_eq!(devices[1 - busy].asked(), 1);
    devices[1 - busy].tell.send(Do::Answer).unwrap();
    assert_eq!(rewards(&next.await.unwrap().unwrap()), [9.0]);
    devices[busy].tell.send(Do::Answer).unwrap();
    assert_eq!(rewards(&small.await.unwrap().unwrap()), [7.0, 8.0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variants_on_other_devices_do_not_wait_for_each_other() {
    let engine = Engine::start(CONFIG);
    let (warm, devices) = lane(&engine, 1);
    let (scorer, other) = played();
    let ens = engine.add_lane_on("ens", vec![("cuda:1".to_owned(), scorer)]);
    let held = submit(&warm, long_samples(1));
    devices[0].asked();
    let free = submit(&ens, long_samples(1));
    other.asked();
    other.tell.send(Do::Answer).unwrap();
    assert_eq!(rewards(&free.await.unwrap().unwrap()), [0.0]);
    devices[0].tell.send(Do::Answer).unwrap();
    assert!(held.await.unwrap().is_ok());
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_fails_again_and_again_takes_no_work_as_long_as_another_does_well() {
    let engine = Engine::start(CONFIG);
    let (lane, devices) = lane(&engine, 2);
    let health = lane.health();
    // the other one is held up, so that all goes to the one that fails
    let held = submit(&lane, long_samples(1));
    let (bad, good) = match devices[0].asked.recv_timeout(Duration::from_millis(500)) {
        Ok(_) => (&devices[1], &devices[0]),
        Err(_) => (&devices[0], &devices[1]),
    };
    for _ in 0..3 {
        let task = submit(&lane, long_samples(1));
        bad.asked();
        bad.tell.send(Do::Fail).unwrap();
        assert_eq!(task.await.unwrap().unwrap().outcomes, [Err(SampleError::ForwardFailed)]);
    }
    assert!(*health.borrow(), "a copy does well");
    let waits = submit(&lane, long_samples(1));
    assert!(bad.is_idle());
    good.tell.send(Do::Answer).unwrap();
    good.tell.send(Do::Answer).unwrap();
    assert!(held.await.unwrap().is_ok() && waits.await.unwrap().is_ok());

    // when none does well all try, and the first reward makes the lane healthy
    for _ in 0..3 {
        good.tell.send(Do::Fail).unwrap();
        submit(&lane, long_samples(1)).await.unwrap().unwrap();
    }
    assert!(!*health.borrow());
    for control in [good, bad, good, bad] {
        control.tell.send(Do::Answer).unwrap();
    }
    let tasks = [submit(&lane, long_samples(1)), submit(&lane, long_samples(1))];
    for task in tasks {
        assert!(task.await.unwrap().is_ok());
    }
    assert!(*health.borrow());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_device_ends_all_that_waits_and_lets_others_finish() {
    let engine = Engine::start(CONFIG);
    let mut lost = engine.lost();
    let (both, devices) = lane(&engine, 2);
    let (scorer, _) = played();
    let other = engine.add_lane_on("ens", vec![("cuda:0".to_owned(), scorer)]);
    let shared = submit(&both, long_samples(8)); // four of it run
    assert_eq!([devices[0].asked(), devices[1].asked()], [4, 4]);
    let [waits, elsewhere] = [submit(&both, long_samples(1)), submit(&other, long_samples(1))];
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(lost.borrow().is_none());
    devices[0].tell.send(Do::Fault).unwrap();
    lost.changed().await.unwrap();
    assert!(
        lost.borrow().as_ref().is_some_and(|what| what.contains("a played card") && what.contains("700"))
    );
    for task in [shared, waits, elsewhere] {
        assert_eq!(task.await.unwrap().unwrap_err(), EngineError::DeviceLost);
    }
    for lane in [&both, &other] {
        let late = lane.score(long_samples(1), Call::default()).await;
        assert_eq!(late.unwrap_err(), EngineError::DeviceLost);
    }
    devices[1].tell.send(Do::Answer).unwrap();
    engine.drain().await; // comes to an end
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_elsewhere_when_a_device_is_lost_is_answered() {
    let engine = Engine::start(CONFIG);
    let (warm, devices) = lane(&engine, 1);
    let (scorer, other) = played();
    let ens = engine.add_lane_on("ens", vec![("cuda:1".to_owned(), scorer)]);
    let [faulty, whole] = [submit(&warm, long_samples(1)), submit(&ens, long_samples(2))];
    devices[0].asked();
    other.asked();
    devices[0].tell.send(Do::Fault).unwrap();
    assert_eq!(faulty.await.unwrap().unwrap_err(), EngineError::DeviceLost);
    other.tell.send(Do::Answer).unwrap();
    assert_eq!(rewards(&whole.await.unwrap().unwrap()), [0.0, 1.0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_little_memory_for_a_batch_is_no_loss() {
    let engine = Engine::start(CONFIG);
    let (lane, devices) = lane(&engine, 1);
    let task = submit(&lane, long_samples(2));
    for (samples, what) in [(2, Do::RunOutOfMemory), (1, Do::Answer), (1, Do::RunOutOfMemory)] {
        assert_eq!(devices[0].asked(), samples, "each is tried alone");
        devices[0].tell.send(what).unwrap();
    }
    let outcomes = task.await.unwrap().unwrap().outcomes;
    assert!(outcomes[0].is_ok());
    assert_eq!(outcomes[1], Err(SampleError::ForwardFailed));
    assert!(engine.lost().borrow().is_none());
    devices[0].tell.send(Do::Answer).unwrap();
    assert!(submit(&lane, long_samples(1)).await.unwrap().is_ok());
}
