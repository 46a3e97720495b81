//! What a neighbour feels of a long sample, which is computed in steps.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/checkpoints.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod checkpoints;

use std::time::Duration;
use std::time::Instant;

use checkpoints::TinyCheckpoint;
use checkpoints::VOCAB;
use rewarm::bench::shape::Family;
use rewarm::bench::shape::Sizes;
use rewarm::engine::Call;
use rewarm::engine::Config;
use rewarm::engine::Engine;
use rewarm::engine::Lane;
use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::VariantConfig;
use rewarm::ops::batch::Sequence;

/// Tokens of the long sample, and of its neighbours'.
const LONG: usize = 16_000;
const SHORT: usize = 128;
/// Of the 99th percentile beside a long sample, by that without.
const MAX_RATIO: f64 = 3.0;

fn sequence(tokens: usize, salt: usize) -> Sequence {
    let token_ids = (0..tokens).map(|at| (5 + (at * at + salt) % (VOCAB - 5)) as u32).collect();
    Sequence { token_ids, type_ids: vec![0; tokens] }
}

async fn score(lane: &Lane, tokens: usize, salt: usize) {
    let scored = lane.score(vec![sequence(tokens, salt)], Call::default()).await.unwrap();
    scored.outcomes[0].as_ref().unwrap();
}

/// Seconds of each call of some callers within two seconds, who each wait for one answer before the next call.
async fn latencies(lane: &Lane, callers: usize) -> Vec<f64> {
    let end = Instant::now() + Duration::from_secs(2);
    let call = |caller: usize| {
        let lane = lane.clone();
        async move {
            let mut seconds = Vec::new();
            while Instant::now() < end {
                let begun = Instant::now();
                score(&lane, SHORT, caller).await;
                seconds.push(begun.elapsed().as_secs_f64());
            }
            seconds
        }
    };
    let calls: Vec<_> = (0..callers).map(|caller| tokio::spawn(call(caller))).collect();
    let mut seconds = Vec::new();
    for call in calls {
        seconds.extend(call.await.unwrap());
    }
    seconds
}

fn quantile(seconds: &mut [f64], q: f64) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[((seconds.len() - 1) as f64 * q) as usize]
}

/// The 99th percentile of shorts beside long ones, by that without, in turns, since other work on the machine comes
/// and goes.
async fn ratio(lane: &Lane, callers: usize) -> f64 {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        without.extend(latencies(lane, callers).await);
        let long = tokio::spawn({
            let lane = lane.clone();
            async move {
                loop {
                    score(&lane, LONG, 0).await;
                }
            }
        });
        with.extend(latencies(lane, callers).await);
        long.abort();
        assert!(long.await.unwrap_err().is_cancelled(), "it was scored until then");
        score(lane, SHORT, 0).await; // when the long one has stopped
    }
    let [p50, p99] = [0.5, 0.99].map(|q| quantile(&mut with, q) / quantile(&mut without, q));
    let ms = quantile(&mut without, 0.99) * 1e3;
    println!("{callers} callers: p99 {ms:.1} ms, beside {LONG} tokens x{p99:.2} (p50 x{p50:.2})");
    p99
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: it measures"]
async fn a_neighbour_of_a_long_sample_waits_at_most_three_times_as_long() {
    for family in [Family::Llama, Family::Bert] {
        let (hidden, heads) = (256, 8);
        let kv_heads = if family == Family::Llama { 2 } else { heads };
        let (vocab, intermediate, layers, max_tokens) = (VOCAB, 768, 6, LONG);
        let sizes = Sizes { family, vocab, hidden, intermediate, layers, heads, kv_heads, max_tokens };
        let dir = tempfile::tempdir().unwrap();
        TinyCheckpoint::of(sizes, 1).write(dir.path());
        let config = VariantConfig::new("toy", Mode::Warm, vec![dir.path().to_owned()]);
        let scorer = Loader::default().load(&config, &mut |_, _| ()).unwrap().scorer;
        let lane = Engine::start(Config {
            max_batch_tokens: 16_384,
            max_step_tokens: 1024,
            max_queue_tokens: 1 << 20,
            share_prefixes: true,
        })
        .add_lane("toy", scorer);
        println!("{family:?}");
        for callers in [1, 4] {
            // others on this machine make it longer, never shorter
            let mut is_within = false;
            for _ in 0..3 {
                is_within = ratio(&lane, callers).await <= MAX_RATIO;
                if is_within {
                    break;
                }
            }
            assert!(is_within, "{family:?}, {callers} callers");
        }
    }
}
