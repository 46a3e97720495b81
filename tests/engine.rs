//! The engine with models that are slow, fail, panic or answer NaN on demand.
//!
//! Nothing sleeps: a model waits at a gate that the test opens, and the runtime's clock is paused, so that a
//! deadline passes when nothing else is left to do.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use proptest::prelude::*;
use rewarm::engine::Call;
use rewarm::engine::Config;
use rewarm::engine::Engine;
use rewarm::engine::EngineError;
use rewarm::engine::Lane;
use rewarm::engine::Priority;
use rewarm::engine::SampleError;
use rewarm::engine::Scored;
use rewarm::model::ModelError;
use rewarm::model::scorer::Forward;
use rewarm::model::scorer::Members;
use rewarm::model::scorer::Reduction;
use rewarm::model::scorer::Scorer;
use rewarm::model::steps::Steps;
use rewarm::ops::Ahead;
use rewarm::ops::batch::PackedBatch;
use rewarm::ops::batch::Sequence;
use rewarm::ops::error::OpsError;
use rewarm_cuda::driver::CudaError;
use tokio::task::JoinHandle;
use tokio::time::Instant;

// ---- the fakes ----

/// A batch with one of these tokens in it ...
const FAIL: u32 = 9001;
const PANIC: u32 = 9002;
const TOO_FEW: u32 = 9003;
/// ... and the reward of a sample with one of these.
const NAN: u32 = 9004;
const INFINITE: u32 = 9005;

/// A function of the token ids and their order, exact in `f32` for the small ones used here.
fn reward_of(token_ids: &[u32]) -> f32 {
    token_ids.iter().zip(1u32..).map(|(token, place)| (token * place) as f32).sum()
}

/// What a caller must get for a sample.
fn expected(token_ids: &[u32]) -> Result<f32, &'static str> {
    match token_ids {
        _ if [FAIL, PANIC, TOO_FEW].iter().any(|bad| token_ids.contains(bad)) => Err("failed"),
        _ if [NAN, INFINITE].iter().any(|bad| token_ids.contains(bad)) => Err("not finite"),
        _ => Ok(reward_of(token_ids)),
    }
}

/// Closed, it stops every forward at its door.
#[derive(Default)]
struct Gate {
    /// So many may pass.
    room: Mutex<usize>,
    changed: Condvar,
}

const UNPOISONED: &str = "nobody panics who holds the gate";

impl Gate {
    fn open(&self) {
        self.set(true);
    }

    fn set(&self, is_open: bool) {
        *self.room.lock().expect(UNPOISONED) = if is_open { usize::MAX } else { 0 };
        self.changed.notify_all();
    }

    /// Lets one more pass.
    fn admit(&self) {
        *self.room.lock().expect(UNPOISONED) += 1;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let room = self.room.lock().expect(UNPOISONED);
        let mut room = self.changed.wait_while(room, |room| *room == 0).expect(UNPOISONED);
        if *room != usize::MAX {
            *room -= 1;
        }
    }
}

/// The token ids of each sample.
type Batch = Vec<Vec<u32>>;

struct Fake {
    gate: Arc<Gate>,
    /// Told the samples of each forward before it stops at the gate; closed when the model is dropped.
    arrivals: mpsc::Sender<Batch>,
}

/// Of a forward in steps. At each it stops at the gate.
const PAUSES: usize = 3;

impl Forward for Fake {
    fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
        let _ = self.arrivals.send(batch.sequences().map(Cow::into_owned).collect());
        self.gate.pass();
        self.answer(batch)
    }

    fn forward_in_steps(&self, batch: &PackedBatch, steps: &mut Steps<'_>) -> Result<Vec<f32>, ModelError> {
        if steps.max_tokens().is_none() {
            return self.forward(batch);
        }
        let _ = self.arrivals.send(batch.sequences().map(Cow::into_owned).collect());
        for _ in 0..PAUSES {
            self.gate.pass();
            steps.pause()?;
        }
        self.gate.pass();
        self.answer(batch)
    }

    fn takes_steps(&self) -> bool {
        true
    }
}

impl Fake {
    fn answer(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
        let has = |token| batch.token_ids().contains(&token);
        assert!(!has(PANIC), "on demand");
        if has(FAIL) {
            return Err(ModelError::Unsupported("on demand".into()));
        }
        let reward = |token_ids: &[u32]| match token_ids {
            _ if token_ids.contains(&NAN) => f32::NAN,
            _ if token_ids.contains(&INFINITE) => f32::INFINITY,
            _ => reward_of(token_ids),
        };
        let skipped = usize::from(has(TOO_FEW));
        Ok(batch.sequences().skip(skipped).map(|token_ids| reward(&token_ids)).collect())
    }
}

/// What a model was asked.
struct Asked(mpsc::Receiver<Batch>);

impl Asked {
    /// The next batch, or `None` once the model was dropped. Blocks the runtime's one thread, and so stops its
    /// clock, which would otherwise jump to the next deadline while the device is at work.
    fn next(&self) -> Option<Batch> {
        match self.0.recv_timeout(Duration::from_secs(60)) {
            Ok(batch) => Some(batch),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the model was not asked"),
        }
    }

    /// All batches until now.
    fn so_far(&self) -> Vec<Batch> {
        self.0.try_iter().collect()
    }
}

/// A model whose gate is closed, its gate, and what it was asked.
fn gated_model() -> (Arc<Fake>, Arc<Gate>, Asked) {
    let gate = Arc::new(Gate::default());
    let (arrivals, asked) = mpsc::channel();
    (Arc::new(Fake { gate: gate.clone(), arrivals }), gate, Asked(asked))
}

fn open_model() -> Arc<Fake> {
    let (model, gate, _) = gated_model();
    gate.open();
    model
}

const CONFIG: Config =
    Config { max_batch_tokens: 8, max_step_tokens: 100, max_queue_tokens: 1000, share_prefixes: true };

fn sequences(samples: &[&[u32]]) -> Vec<Sequence> {
    let sequence =
        |token_ids: &&[u32]| Sequence { token_ids: token_ids.to_vec(), type_ids: vec![0; token_ids.len()] };
    samples.iter().map(sequence).collect()
}

/// Scores in a task of its own, and returns when the request has been admitted or refused.
async fn submit(lane: &Lane, samples: &[&[u32]], call: Call) -> JoinHandle<Result<Scored, EngineError>> {
    let (lane, sequences) = (lane.clone(), sequences(samples));
    let task = tokio::spawn(async move { lane.score(sequences, call).await });
    tokio::task::yield_now().await; // one runtime thread: the task runs up to its first wait
    task
}

/// A caller hangs up.
async fn leave(task: JoinHandle<Result<Scored, EngineError>>) {
    task.abort();
    assert!(task.await.is_err_and(|gone| gone.is_cancelled()));
}

fn with_priority(priority: Priority) -> Call {
    Call { priority, deadline: None }
}

fn assert_scored(scored: &Scored, samples: &[&[u32]]) {
    assert_eq!(scored.outcomes.len(), samples.len());
    for (outcome, sample) in scored.outcomes.iter().zip(samples) {
        let got = match outcome {
            Ok(reward) => Ok(reward.reward),
            Err(SampleError::ForwardFailed) => Err("failed"),
            Err(SampleError::NotFinite { reward }) => {
                assert!(!reward.is_finite());
                Err("not finite")
            }
        };
        assert_eq!(got, expected(sample), "{sample:?}");
    }
}

// ---- rewards and failures ----

#[tokio::test]
async fn each_sample_gets_its_own_reward_in_order() {
    let lane = Engine::start(CONFIG).add_lane("warm", Scorer::warm(open_model()));
    let samples: &[&[u32]] = &[&[1, 2], &[3; 20], &[4], &[5, 6, 7], &[8; 8], &[9]];
    assert_scored(&lane.score(sequences(samples), Call::default()).await.unwrap(), samples);
    assert!(lane.score(Vec::new(), Call::default()).await.unwrap().outcomes.is_empty());
}

#[tokio::test]
async fn a_bad_sample_fails_alone() {
    let lane = Engine::start(CONFIG).add_lane("warm", Scorer::warm(open_model()));
    for bad in [FAIL, PANIC, TOO_FEW, NAN, INFINITE] {
        let samples: &[&[u32]] = &[&[1, 2], &[3, bad], &[4]];
        assert_scored(&lane.score(sequences(samples), Call::default()).await.unwrap(), samples);
        assert_scored(&lane.score(sequences(&[&[bad]]), Call::default()).await.unwrap(), &[&[bad]]);
    }
}

#[tokio::test]
async fn an_ensemble_never_averages_fewer_members() {
    /// Fails, and answers NaN, one token number above the other member.
    struct Picky(Arc<Fake>);
    impl Forward for Picky {
        fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
            let rename = |&token: &u32| {
                if token == 8001 {
                    FAIL
                } else if token == 8004 {
                    NAN
                } else {
                    token
                }
            };
            let renamed: Vec<Sequence> = batch
                .sequences()
                .map(|ids| ids.iter().map(rename).collect::<Vec<u32>>())
                .map(|token_ids| Sequence { type_ids: vec![0; token_ids.len()], token_ids })
                .collect();
            self.0.forward(&PackedBatch::pack(&renamed))
        }
    }
    let members: Vec<(Arc<dyn Forward>, _)> =
        vec![(open_model(), None), (Arc::new(Picky(open_model())), None)];
    for reduction in [Reduction::Mean, Reduction::Min, Reduction::Median] {
        let lane = Engine::start(CONFIG).add_lane("ens", Scorer::ens(members.clone(), reduction));
        let scored = lane.score(sequences(&[&[1], &[8001], &[8004], &[2]]), Call::default()).await.unwrap();
        let outcomes = scored.outcomes;
        assert_eq!(outcomes[0].as_ref().unwrap().member_rewards, [1.0, 1.0]);
        assert_eq!(outcomes[1], Err(SampleError::ForwardFailed));
        assert!(matches!(outcomes[2], Err(SampleError::NotFinite { .. })));
        assert_eq!(outcomes[3].as_ref().unwrap().reward, 2.0);
    }
}

#[tokio::test]
async fn health_falls_after_three_batches_without_a_reward_and_one_reward_restores_it() {
    let lane = Engine::start(CONFIG).add_lane("warm", Scorer::warm(open_model()));
    let health = lane.health();
    for (sample, is_healthy) in [
        (FAIL, true),
        (NAN, true),
        (1, true),
        (NAN, true),
        (PANIC, true),
        (FAIL, false),
        (NAN, false),
        (1, true),
    ] {
        lane.score(sequences(&[&[sample]]), Call::default()).await.unwrap();
        assert_eq!(*health.borrow(), is_healthy, "after {sample}");
    }
}

// ---- waiting ----

#[tokio::test(start_paused = true)]
async fn a_deadline_is_kept_while_the_device_is_busy() {
    let (model, gate, asked) = gated_model();
    let lane = Engine::start(CONFIG).add_lane("warm", Scorer::warm(model));
    let in_a_minute = Call { deadline: Some(Instant::now() + Duration::from_secs(60)), ..Call::default() };
    let running = submit(&lane, &[&[1], &[2; 8]], in_a_minute).await;
    assert_eq!(asked.next().unwrap(), [[1]]);
    let waiting = submit(&lane, &[&[3]], in_a_minute).await;
    let patient = submit(&lane, &[&[4]], Call::default()).await;
    assert_eq!(running.await.unwrap().unwrap_err(), EngineError::DeadlineExceeded);
    assert_eq!(waiting.await.unwrap().unwrap_err(), EngineError::DeadlineExceeded);
    gate.open();
    assert_scored(&patient.await.unwrap().unwrap(), &[&[4]]);
    assert_eq!(asked.next().unwrap(), [[4]], "what expired never reached the model");
    let too_late = lane.score(sequences(&[&[5]]), in_a_minute).await;
    assert_eq!(too_late.unwrap_err(), EngineError::DeadlineExceeded);
}

#[tokio::test]
async fn the_work_of_callers_who_leave_never_reaches_the_model() {
    let (model, gate, asked) = gated_model();
    let engine = Engine::start(Config {
        max_batch_tokens: 8,
        max_step_tokens: 100,
        max_queue_tokens: 100,
        share_prefixes: true,
    });
    let lane = engine.add_lane("warm", Scorer::warm(model));
    let running = submit(&lane, &[&[1; 8], &[2; 8]], Call::default()).await;
    assert_eq!(asked.next().unwrap(), [[1; 8]]);
    let leaving = submit(&lane, &[&[3; 92]], Call::default()).await;
    assert!(matches!(
        lane.score(sequences(&[&[4]]), Call::default()).await,
        Err(EngineError::QueueFull { waiting: 100, .. })
    ));
    leave(running).await;
    leave(leaving).await;
    let staying = submit(&lane, &[&[5; 92]], Call::default()).await;
    gate.open();
    assert_scored(&staying.await.unwrap().unwrap(), &[&[5; 92]]);
    assert_eq!(asked.next().unwrap(), [[5; 92]]);
    assert!(asked.so_far().is_empty());
}

#[tokio::test]
async fn a_person_goes_before_trainers_and_background_work_last() {
    let (model, gate, asked) = gated_model();
    let lane = Engine::start(CONFIG).add_lane("warm", Scorer::warm(model));
    let first = submit(&lane, &[&[1]], Call::default()).await;
    asked.next().unwrap();
    let background = submit(&lane, &[&[2]], with_priority(Priority::Background)).await;
    let normal = submit(&lane, &[&[3]], with_priority(Priority::Normal)).await;
    let interactive = submit(&lane, &[&[4]], with_priority(Priority::Interactive)).await;
    gate.open();
    for task in [first, background, normal, interactive] {
        assert!(task.await.unwrap().is_ok());
    }
    let order: Vec<_> = asked.so_far().concat().concat();
    assert_eq!(order, [4, 3, 2]);
}

#[tokio::test]
async fn what_queues_while_the_device_is_busy_goes_together() {
    let (model, gate, asked) = gated_model();
    let lane = Engine::start(CONFIG).add_lane("warm", Scorer::warm(model));
    let mut tasks = vec![submit(&lane, &[&[1]], Call::default()).await];
    assert_eq!(asked.next().unwrap(), [[1]], "an idle device waits for nobody");
    for token in 2..13 {
        tasks.push(submit(&lane, &[&[token]], Call::default()).await);
    }
    gate.open();
    for task in tasks {
        assert!(task.await.unwrap().is_ok());
    }
    assert_eq!(asked.next().unwrap().concat(), [2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(asked.next().unwrap().concat(), [10, 11, 12]);
}

#[tokio::test]
async fn ten_times_what_fits_is_refused_and_the_rest_is_answered() {
    let (model, gate, asked) = gated_model();
    let engine = Engine::start(Config {
        max_batch_tokens: 16,
        max_step_tokens: 100,
        max_queue_tokens: 100,
        share_prefixes: true,
    });
    let lane = engine.add_lane("warm", Scorer::warm(model));
    let running = submit(&lane, &[&[1; 10]], Call::default()).await;
    asked.next().unwrap();
    let mut waiting = Vec::new();
    for token in 0..100 {
        waiting.push((token, submit(&lane, &[&[token; 4], &[token; 6]], Call::default()).await));
    }
    gate.open();
    assert!(running.await.unwrap().is_ok());
    let (mut admitted, mut refused) = (0, 0);
    for (token, task) in waiting {
        match task.await.unwrap() {
            Ok(scored) => {
                admitted += 1;
                assert_scored(&scored, &[&[token; 4], &[token; 6]]);
            }
            Err(EngineError::QueueFull { waiting: 100, limit: 100, retry_after }) => {
                refused += 1;
                assert!((Duration::from_millis(10)..=Duration::from_secs(60)).contains(&retry_after));
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((admitted, refused), (10, 90));
    let seen: usize = asked.so_far().iter().map(Vec::len).sum();
    assert_eq!(seen, 2 * admitted, "what was refused never reached the model");
}

// ---- steps ----

/// More than a step.
const LONG: &[u32] = &[7; 101];

#[tokio::test]
async fn others_run_between_the_steps_of_a_long_sample_but_no_other_long_one() {
    let (model, gate, asked) = gated_model();
    let (other, other_gate, other_asked) = gated_model();
    let engine = Engine::start(CONFIG);
    let lane = engine.add_lane("warm", Scorer::warm(model));
    let other_lane = engine.add_lane("other", Scorer::warm(other));
    let long = submit(&lane, &[LONG], Call::default()).await;
    assert_eq!(asked.next().unwrap(), [LONG]);
    let second = submit(&lane, &[LONG, &[1]], Call::default()).await;
    let short = submit(&lane, &[&[2], &[3]], Call::default()).await;
    gate.admit();
    assert_eq!(asked.next().unwrap(), [[2], [3]], "past the other long one");
    gate.admit();
    assert_scored(&short.await.unwrap().unwrap(), &[&[2], &[3]]);
    // whose turn it is among equals, a clock decides: the queue's own tests tell
    let elsewhere = submit(&other_lane, &[&[4]], with_priority(Priority::Interactive)).await;
    other_gate.open();
    gate.admit();
    assert_eq!(other_asked.next().unwrap(), [[4]]);
    assert_scored(&elsewhere.await.unwrap().unwrap(), &[&[4]]);
    assert!(!long.is_finished() && asked.so_far().is_empty());
    gate.open();
    let scored = long.await.unwrap().unwrap();
    assert_scored(&scored, &[LONG]);
    assert_scored(&second.await.unwrap().unwrap(), &[LONG, &[1]]);
    assert_eq!(asked.next().unwrap(), [LONG]);
}

#[tokio::test]
async fn what_is_more_urgent_goes_between_the_steps_of_any_batch_even_if_it_is_long() {
    let (model, gate, asked) = gated_model();
    let config = Config { max_batch_tokens: 200, ..CONFIG };
    let lane = Engine::start(config).add_lane("warm", Scorer::warm(model));
    let background = with_priority(Priority::Background);
    let mut tasks = vec![submit(&lane, &[&[1; 60], &[2; 60]], background).await];
    assert_eq!(asked.next().unwrap().len(), 2);
    tasks.push(submit(&lane, &[&[3]], background).await);
    tasks.push(submit(&lane, &[LONG], Call::default()).await);
    gate.admit();
    assert_eq!(asked.next().unwrap(), [LONG]);
    tasks.push(submit(&lane, &[&[4]], Call::default()).await);
    tasks.push(submit(&lane, &[&[5; 101]], with_priority(Priority::Interactive)).await);
    gate.admit();
    assert_eq!(asked.next().unwrap(), [[5; 101]]);
    gate.open();
    for task in tasks {
        assert!(task.await.unwrap().is_ok());
    }
    assert_eq!(asked.next().unwrap(), [[4]]);
    assert_eq!(asked.next().unwrap(), [[3]], "background work waits for the batch");
}

#[tokio::test(start_paused = true)]
async fn a_long_sample_that_nobody_waits_for_stops_at_its_next_step() {
    let (model, gate, asked) = gated_model();
    let engine = Engine::start(CONFIG);
    let lane = engine.add_lane("warm", Scorer::warm(model));
    let health = lane.health();
    let in_a_minute = Call { deadline: Some(Instant::now() + Duration::from_secs(60)), ..Call::default() };
    for call in [Call::default(), in_a_minute, Call::default(), Call::default()] {
        let long = submit(&lane, &[LONG], call).await;
        assert_eq!(asked.next().unwrap(), [LONG]);
        match call.deadline {
            None => leave(long).await,
            Some(_) => assert_eq!(long.await.unwrap().unwrap_err(), EngineError::DeadlineExceeded),
        }
        let short = submit(&lane, &[&[1]], Call::default()).await;
        gate.admit(); // up to the pause
        gate.admit(); // and the short one
        assert_scored(&short.await.unwrap().unwrap(), &[&[1]]);
        assert_eq!(asked.next().unwrap(), [[1]]);
    }
    engine.drain().await;
    assert!(asked.so_far().is_empty(), "none is tried again");
    assert!(*health.borrow(), "nothing has failed");
}

#[tokio::test]
async fn a_long_sample_fails_alone_and_its_neighbours_between_the_steps_too() {
    let (model, gate, asked) = gated_model();
    let config = Config { max_batch_tokens: 400, ..CONFIG };
    let lane = Engine::start(config).add_lane("warm", Scorer::warm(model));
    for bad in [FAIL, PANIC, TOO_FEW, NAN] {
        gate.set(false);
        let mut long = LONG.to_vec();
        long.push(bad);
        let task = submit(&lane, &[LONG, &long, &[1]], Call::default()).await;
        assert_eq!(asked.next().unwrap().len(), 3);
        let neighbour = submit(&lane, &[&[2], &[bad]], Call::default()).await;
        gate.open();
        assert_scored(&task.await.unwrap().unwrap(), &[LONG, &long, &[1]]);
        assert_scored(&neighbour.await.unwrap().unwrap(), &[&[2], &[bad]]);
        asked.so_far();
    }
}

#[tokio::test]
async fn a_long_sample_under_way_is_finished_by_a_drain_and_by_a_closed_lane() {
    let (model, gate, asked) = gated_model();
    let engine = Engine::start(CONFIG);
    let lane = engine.add_lane("warm", Scorer::warm(model));
    let long = submit(&lane, &[LONG], Call::default()).await;
    asked.next().unwrap();
    lane.close();
    let (replaced, replaced_gate, replaced_asked) = gated_model();
    replaced_gate.open();
    let new = engine.add_lane("warm", Scorer::warm(replaced));
    let short = submit(&new, &[&[1]], Call::default()).await;
    gate.admit();
    assert!(short.await.unwrap().is_ok());
    assert_eq!(replaced_asked.next().unwrap(), [[1]]);
    new.close();
    gate.admit();
    assert_eq!(replaced_asked.next(), None, "a lane that is done is dropped at a pause");
    let draining = tokio::spawn({
        let engine = engine.clone();
        async move { engine.drain().await }
    });
    tokio::task::yield_now().await;
    assert!(!draining.is_finished());
    gate.open();
    draining.await.unwrap();
    assert_scored(&long.await.unwrap().unwrap(), &[LONG]);
    assert_eq!(asked.next(), None, "the model is dropped");
}

// ---- the end ----

#[tokio::test]
async fn drain_refuses_what_is_new_and_waits_for_what_was_admitted() {
    let (model, gate, asked) = gated_model();
    let engine = Engine::start(CONFIG);
    let lanes = [
        engine.add_lane("warm", Scorer::warm(model)),
        engine.add_lane("ens", Scorer::ens(vec![(open_model(), None)], Reduction::Mean)),
    ];
    let mut tasks = Vec::new();
    for token in 1..50 {
        tasks.push(submit(&lanes[token as usize % 2], &[&[token], &[token; 5]], Call::default()).await);
    }
    asked.next().unwrap();
    let draining = tokio::spawn({
        let engine = engine.clone();
        async move { engine.drain().await }
    });
    tokio::task::yield_now().await;
    assert!(!draining.is_finished());
    let late = lanes[0].score(sequences(&[&[1]]), Call::default()).await;
    assert_eq!(late.unwrap_err(), EngineError::Draining);
    let late = engine.add_lane("new", Scorer::warm(open_model()));
    let late = late.score(sequences(&[&[1]]), Call::default()).await;
    assert_eq!(late.unwrap_err(), EngineError::Draining);
    gate.open();
    draining.await.unwrap();
    for (token, task) in (1..50).zip(tasks) {
        assert_scored(&task.await.unwrap().unwrap(), &[&[token], &[token; 5]]);
    }
    engine.drain().await; // a second time returns at once
}

#[tokio::test]
async fn drain_does_not_wait_for_those_who_left() {
    let (model, gate, asked) = gated_model();
    let engine = Engine::start(CONFIG);
    let lane = engine.add_lane("warm", Scorer::warm(model));
    let task = submit(&lane, &[&[1; 8], &[2; 8]], Call::default()).await;
    asked.next().unwrap();
    leave(task).await;
    gate.open();
    engine.drain().await;
    assert!(asked.so_far().is_empty());
}

#[tokio::test]
async fn a_closed_lane_finishes_its_work_and_drops_its_model() {
    let (model, gate, asked) = gated_model();
    let engine = Engine::start(CONFIG);
    let old = engine.add_lane("warm", Scorer::warm(model));
    let running = submit(&old, &[&[1; 8], &[2; 8]], Call::default()).await;
    asked.next().unwrap();
    old.close();
    let refused = old.score(sequences(&[&[3]]), Call::default()).await;
    assert_eq!(refused.unwrap_err(), EngineError::Draining);
    gate.open();
    assert_scored(&running.await.unwrap().unwrap(), &[&[1; 8], &[2; 8]]);
    assert_eq!(asked.next().unwrap(), [[2; 8]]);
    assert_eq!(asked.next(), None, "the model is dropped, though the lane is still held");
    let new = engine.add_lane("warm", Scorer::warm(open_model()));
    assert!(new.score(sequences(&[&[3]]), Call::default()).await.is_ok());
}

#[tokio::test]
async fn dropping_the_last_handles_closes_the_lane_and_stops_the_thread() {
    let engine = Engine::start(CONFIG);
    let (model, gate, asked) = gated_model();
    gate.open();
    let lane = engine.add_lane("warm", Scorer::warm(model));
    drop(lane.clone());
    assert!(lane.score(sequences(&[&[1]]), Call::default()).await.is_ok());
    asked.next().unwrap();
    drop(lane);
    assert_eq!(asked.next(), None);

    let (model, gate, asked) = gated_model();
    let lane = engine.add_lane("warm", Scorer::warm(model));
    drop(engine);
    let task = submit(&lane, &[&[1]], Call::default()).await;
    asked.next().unwrap();
    leave(task).await;
    drop(lane);
    gate.open();
    assert_eq!(asked.next(), None, "the thread ends after the batch that ran");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thousands_of_callers_get_their_own_rewards() {
    let engine = Engine::start(Config {
        max_batch_tokens: 512,
        max_step_tokens: 100,
        max_queue_tokens: 1_000_000,
        share_prefixes: true,
    });
    let lanes = [(); 2].map(|()| engine.add_lane("warm", Scorer::warm(open_model())));
    let tasks: Vec<_> = (0..5000)
        .map(|token| {
            let lane = lanes[token as usize % 2].clone();
            tokio::spawn(async move {
                let scored = lane.score(sequences(&[&[token, 1]]), Call::default()).await.unwrap();
                assert_scored(&scored, &[&[token, 1]]);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

// ---- the law ----

#[derive(Clone, Debug)]
enum Step {
    /// A request, with whatever its samples do to the model.
    Score { lane: usize, samples: Vec<Vec<u32>>, priority: Priority, deadline_ms: Option<u64> },
    /// A caller leaves.
    Leave { caller: prop::sample::Index },
    /// Callers and the device get a chance to run.
    Yield,
    /// A lane is replaced.
    Close { lane: usize },
    /// The device is held up, or goes on.
    Gate { is_open: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let token = prop_oneof![30 => 0u32..1000, 1 => 9001u32..=9005];
    let samples = prop::collection::vec(prop::collection::vec(token, 1..12), 1..6);
    let priority = prop::sample::select(vec![Priority::Interactive, Priority::Normal, Priority::Background]);
    prop_oneof![
        8 => (0usize..2, samples, priority, prop::option::weighted(0.3, 0u64..20))
            .prop_map(|(lane, samples, priority, deadline_ms)| Step::Score { lane, samples, priority, deadline_ms }),
        2 => any::<prop::sample::Index>().prop_map(|caller| Step::Leave { caller }),
        4 => Just(Step::Yield),
        1 => (0usize..2).prop_map(|lane| Step::Close { lane }),
        2 => any::<bool>().prop_map(|is_open| Step::Gate { is_open }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever arrives, leaves, expires, fails and closes: who is still there gets one answer, and with it one
    /// outcome for each sample, which depends on that sample alone.
    #[test]
    fn every_admitted_sample_is_answered_exactly_once(steps in prop::collection::vec(step(), 1..60), num_devices in 1..=3) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let engine = Engine::start(Config { max_batch_tokens: 16, max_step_tokens: 6, max_queue_tokens: 120, share_prefixes: true });
            let gate = Arc::new(Gate::default());
            let model = || Arc::new(Fake { gate: gate.clone(), arrivals: mpsc::channel().0 }) as Arc<dyn Forward>;
            let add_lane = |index: usize| match index {
                0 => engine.add_lane_on("warm", (0..num_devices).map(|device| (device.to_string(), Scorer::warm(model()))).collect()),
                _ => engine.add_lane("ens", Scorer::ens(vec![(model(), None), (model(), None)], Reduction::Min)),
            };
            let mut lanes = [0, 1].map(add_lane);
            let mut callers = Vec::new();
            let mut left = HashSet::new();
            for step in steps {
                match step {
                    Step::Score { lane, samples, priority, deadline_ms } => {
                        let deadline = deadline_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
                        let borrowed: Vec<&[u32]> = samples.iter().map(Vec::as_slice).collect();
                        let task = submit(&lanes[lane], &borrowed, Call { priority, deadline }).await;
                        callers.push((samples, deadline, task));
                    }
                    Step::Leave { caller } if !callers.is_empty() => {
                        let caller = caller.index(callers.len());
                        callers[caller].2.abort();
                        left.insert(caller);
                    }
                    Step::Leave { .. } => {}
                    Step::Yield => tokio::task::yield_now().await,
                    Step::Close { lane } => {
                        lanes[lane].close();
                        lanes[lane] = add_lane(lane);
                    }
                    Step::Gate { is_open } => gate.set(is_open),
                }
            }
            gate.open();
            engine.drain().await;
            for (index, (samples, deadline, task)) in callers.into_iter().enumerate() {
                match task.await {
                    Ok(Ok(scored)) => {
                        let samples: Vec<&[u32]> = samples.iter().map(Vec::as_slice).collect();
                        assert_scored(&scored, &samples);
                    }
                    Ok(Err(EngineError::DeadlineExceeded | EngineError::WouldExpire { .. })) => {
                        assert!(deadline.is_some(), "it never set a deadline");
                    }
                    Ok(Err(EngineError::QueueFull { waiting, limit, .. })) => assert!(waiting <= 3 * limit, "of each priority"),
                    Ok(Err(EngineError::TooLarge { tokens, limit })) => assert!(tokens > limit),
                    Ok(Err(EngineError::Draining)) => panic!("every request came before the drain"),
                    Ok(Err(EngineError::DeviceLost)) => panic!("none is"),
                    Err(gone) => assert!(gone.is_cancelled() && left.contains(&index), "{gone}"),
                }
            }
        });
    }
}

// ---- a batch ahead ----

/// What became of the batches of a [`Card`], by the first token of each: the samples of a test have one token.
#[derive(Debug, PartialEq)]
enum Event {
    /// It was prepared.
    Prepared(u32),
    /// All of it is asked for, and whether it was prepared; the next one is, if it was to be.
    Asked(u32, bool),
    /// Its results are there.
    Read(u32),
}

/// A model on a device that computes by itself: what it asks for takes no time, and then it waits at the gate.
struct Card {
    gate: Arc<Gate>,
    events: mpsc::Sender<Event>,
    is_lost: AtomicBool,
}

/// Beside those above: the end of the card.
const FAULT: u32 = 9006;
/// Its preparation panics.
const PANICS_AHEAD: u32 = 9007;

impl Members for Card {
    fn num_members(&self) -> usize {
        1
    }

    fn prepare(&self, batch: &PackedBatch) -> Result<Option<Ahead>, ModelError> {
        let first = batch.token_ids()[0];
        let _ = self.events.send(Event::Prepared(first));
        assert_ne!(first, PANICS_AHEAD, "on demand");
        Ok(Some(Box::new(batch.clone())))
    }

    fn forward(
        &self,
        batch: &PackedBatch,
        _: &mut [Duration],
        steps: &mut Steps<'_>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let first = batch.token_ids()[0];
        let ahead = steps.take_ahead().map(|ahead| ahead.downcast::<PackedBatch>().expect("its own"));
        if let Some(ahead) = &ahead {
            assert!(ahead.sequences().eq(batch.sequences()), "what was prepared is what runs");
        }
        steps.meanwhile();
        let _ = self.events.send(Event::Asked(first, ahead.is_some()));
        self.gate.pass();
        let _ = self.events.send(Event::Read(first));
        if first == FAULT || self.is_lost.load(Ordering::SeqCst) {
            self.is_lost.store(true, Ordering::SeqCst);
            let (card, problem) = ("a card".to_owned(), "error 700".to_owned());
            return Err(OpsError::from(CudaError::Fault { card, problem }).into());
        }
        Ok(vec![batch.sequences().map(|token_ids| reward_of(&token_ids)).collect()])
    }

    fn takes_steps(&self) -> bool {
        false
    }

    fn shares_prefixes(&self, _: usize) -> bool {
        false
    }
}

/// An engine with a card, whose gate is closed; a batch of the token 1 runs, and a full one of each other token waits.
async fn card_with(
    waiting: &[u32],
) -> (Engine, Lane, Arc<Gate>, mpsc::Receiver<Event>, Vec<JoinHandle<Result<Scored, EngineError>>>) {
    let (gate, engine) = (Arc::new(Gate::default()), Engine::start(CONFIG));
    let (events, told) = mpsc::channel();
    let card = Card { gate: gate.clone(), events, is_lost: AtomicBool::new(false) };
    let lane = engine.add_lane("card", Scorer::new(Box::new(card), vec![None], None));
    let mut tasks = vec![submit(&lane, &[&[1; 8]], Call::default()).await];
    assert_eq!(next_of(&told), Event::Asked(1, false));
    for token in waiting {
        tasks.push(submit(&lane, &[&[*token; 8]], Call::default()).await);
    }
    (engine, lane, gate, told, tasks)
}

fn next_of(told: &mpsc::Receiver<Event>) -> Event {
    told.recv_timeout(Duration::from_secs(60)).expect("the model was asked")
}

fn events_of<const N: usize>(told: &mpsc::Receiver<Event>) -> [Event; N] {
    std::array::from_fn(|_| next_of(told))
}

#[tokio::test]
async fn the_next_batch_is_prepared_while_a_device_computes_and_each_is_answered_once() {
    let (_engine, lane, gate, told, tasks) = card_with(&[2, 3, 4]).await;
    gate.admit();
    // 1 ran alone when it was asked for; from here on there is always one ahead
    assert_eq!(events_of(&told), [Event::Read(1), Event::Prepared(3), Event::Asked(2, false)]);
    // what does not fill a batch waits for company
    let few = submit(&lane, &[&[5; 3]], Call::default()).await;
    gate.open();
    let expected = [
        Event::Read(2),
        Event::Prepared(4),
        Event::Asked(3, true),
        Event::Read(3),
        Event::Asked(4, true),
        Event::Read(4),
        Event::Asked(5, false),
        Event::Read(5),
    ];
    assert_eq!(events_of(&told), expected);
    for (task, token) in tasks.into_iter().zip(1..) {
        assert_scored(&task.await.unwrap().unwrap(), &[&[token; 8]]);
    }
    assert_scored(&few.await.unwrap().unwrap(), &[&[5; 3]]);
}

#[tokio::test]
async fn whoever_leaves_a_batch_that_is_ahead_is_not_computed_and_the_urgent_go_before_it() {
    let (_engine, lane, gate, told, mut tasks) = card_with(&[2, 3, 4]).await;
    gate.admit();
    assert_eq!(events_of(&told), [Event::Read(1), Event::Prepared(3), Event::Asked(2, false)]);
    let urgent = submit(&lane, &[&[6; 2]], with_priority(Priority::Interactive)).await;
    leave(tasks.remove(2)).await;
    gate.admit();
    assert_eq!(events_of(&told), [Event::Read(2), Event::Asked(6, false)]);
    gate.open();
    // 3 is gone: 4 was not ahead, since 3 was
    assert_eq!(events_of(&told), [Event::Read(6), Event::Asked(4, false), Event::Read(4)]);
    assert_scored(&urgent.await.unwrap().unwrap(), &[&[6; 2]]);
    for (task, token) in tasks.into_iter().zip([1, 2, 4]) {
        assert_scored(&task.await.unwrap().unwrap(), &[&[token; 8]]);
    }
}

#[tokio::test]
async fn drains_and_reloads_wait_for_the_batch_that_is_ahead() {
    let (engine, lane, gate, told, tasks) = card_with(&[2, PANICS_AHEAD, 4]).await;
    gate.admit();
    let expected = [Event::Read(1), Event::Prepared(PANICS_AHEAD), Event::Asked(2, false)];
    assert_eq!(events_of(&told), expected);
    lane.close(); // another one has taken its place
    drop(lane);
    let drain = tokio::spawn(async move { engine.drain().await });
    tokio::task::yield_now().await;
    assert!(!drain.is_finished());
    gate.open();
    // what fails ahead is done when it is its turn
    assert_eq!(events_of(&told), [Event::Read(2), Event::Prepared(4), Event::Asked(PANICS_AHEAD, false)]);
    for (task, token) in tasks.into_iter().zip([1, 2, PANICS_AHEAD, 4]) {
        let scored = task.await.unwrap().unwrap();
        assert_eq!(scored.outcomes.len(), 1);
        assert_eq!(scored.outcomes[0].as_ref().unwrap().reward, reward_of(&[token; 8]));
    }
    drain.await.unwrap();
    while told.recv_timeout(Duration::from_secs(60)).is_ok() {} // until the model is dropped
}

#[tokio::test]
async fn a_card_that_is_lost_answers_the_batch_that_is_ahead() {
    let (engine, _lane, gate, told, tasks) = card_with(&[FAULT, 3, 4]).await;
    gate.admit();
    assert_eq!(events_of(&told), [Event::Read(1), Event::Prepared(3), Event::Asked(FAULT, false)]);
    gate.open();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    assert_scored(answers[0].as_ref().unwrap(), &[&[1; 8]]);
    let lost = |answer: &Result<Scored, EngineError>| matches!(answer, Err(EngineError::DeviceLost));
    assert!(answers[1..].iter().all(lost), "{answers:?}");
    assert!(engine.lost().borrow().is_some());
}
