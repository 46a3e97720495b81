//! The self-test of a variant before it serves: its golden rewards, scored again.
//!
//! They go through the variant's lane, as requests will: on the device thread, in batches, and during a reload in
//! turns with the models that serve. Members of an ensemble mostly have the same samples: each is scored once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Call;
use crate::engine::Lane;
use crate::engine::Priority;
use crate::engine::SampleError;
use crate::model::fill;
use crate::model::golden::GoldenRewards;
use crate::model::scorer::Reward;
use crate::model::variant::MemberInfo;
use crate::model::variant::VariantInfo;
use crate::ops::batch::Sequence;
use crate::text::SampleTokenizer;

/// For a model's texts to be rendered and tokenized before it serves: what takes longer is no model to serve.
const TEXT_LIMIT: Duration = Duration::from_secs(60);

/// Scores the golden rewards of each member and compares; fails with what disagrees, in words.
///
/// A sample that is longer than the variant's limit or than `max_queue_tokens` is left out: it would not be served.
/// If all are, the test has failed.
pub(super) async fn run(
    lane: &Lane,
    max_queue_tokens: usize,
    tokenizer: &Arc<SampleTokenizer>,
    info: &VariantInfo,
    golden: Vec<Option<GoldenRewards>>,
) -> Result<(), String> {
    let mut samples = Samples::default();
    let mut tests = Vec::new(); // of members that have golden rewards: their indices into `samples`
    for (member, golden) in golden.into_iter().enumerate() {
        let Some(golden) = golden else { continue };
        let path = &info.members[member].path;
        let (golden, sequences) = in_time(tokenizer, move |tokenizer| {
            let sequences = golden.sequences(tokenizer);
            (golden, sequences)
        })
        .await
        .map_err(|problem| format!("{path}: {problem}"))?;
        let sequences = sequences.map_err(|error| format!("{path}: {error}"))?;
        let fits = |sequence: &Sequence| sequence.token_ids.len() <= max_queue_tokens;
        let places: Vec<Option<usize>> =
            sequences.into_iter().map(|sequence| Some(samples.place(sequence.filter(fits)?))).collect();
        tests.push((member, golden, places));
    }
    let rewards = score(lane, max_queue_tokens, samples.sequences).await?;
    for (member, golden, places) in tests {
        let of_member = &info.members[member];
        let raw = |place: &Option<usize>| place.map(|place| raw_reward(&rewards[place], member, of_member));
        let raw_rewards: Vec<Option<f32>> = places.iter().map(raw).collect();
        let largest_difference = golden
            .compare(&raw_rewards, info.dtype)
            .map_err(|error| format!("{}: {error}", of_member.path))?;
        let compared = raw_rewards.iter().flatten().count();
        let too_long = raw_rewards.len() - compared;
        let (variant, path) = (&info.name, &of_member.path);
        tracing::info!(
            variant,
            member = path,
            compared,
            too_long,
            largest_difference,
            "self-test: golden rewards agree"
        );
    }
    Ok(())
}

/// Renders and tokenizes on a thread that nobody else waits for: neither an async one, nor one of those that
/// tokenize for the models that serve.
pub(super) async fn in_time<T: Send + 'static>(
    tokenizer: &Arc<SampleTokenizer>,
    work: impl FnOnce(&SampleTokenizer) -> T + Send + 'static,
) -> Result<T, String> {
    let tokenizer = tokenizer.clone();
    let working = tokio::task::spawn_blocking(move || work(&tokenizer));
    match tokio::time::timeout(TEXT_LIMIT, working).await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(_)) => Err("rendering or tokenizing a text panicked, see the log".to_owned()),
        Err(_) => Err(format!(
            "rendering and tokenizing a few texts took more than {} seconds",
            TEXT_LIMIT.as_secs()
        )),
    }
}

/// Sequences to score, each once.
#[derive(Default)]
struct Samples {
    sequences: Vec<Sequence>,
    places: HashMap<(Vec<u32>, Vec<u32>), usize>,
}

impl Samples {
    /// Where the reward of a sequence will be.
    fn place(&mut self, sequence: Sequence) -> usize {
        let key = (sequence.token_ids.clone(), sequence.type_ids.clone());
        *self.places.entry(key).or_insert_with(|| {
            self.sequences.push(sequence);
            self.sequences.len() - 1
        })
    }
}

/// One reward per sequence, none where it was not finite; in requests that the queue takes.
async fn score(
    lane: &Lane,
    max_queue_tokens: usize,
    sequences: Vec<Sequence>,
) -> Result<Vec<Option<Reward>>, String> {
    let mut rewards = Vec::with_capacity(sequences.len());
    let lengths = sequences.iter().map(|sequence| sequence.token_ids.len());
    for run in fill::runs(lengths, max_queue_tokens) {
        let request = sequences[run].to_vec();
        let call = Call { priority: Priority::Interactive, deadline: None };
        let scored = lane.score(request, call).await.map_err(|error| error.to_string())?;
        for outcome in scored.outcomes {
            rewards.push(match outcome {
                Ok(reward) => Some(reward),
                Err(SampleError::NotFinite { .. }) => None,
                Err(error @ SampleError::ForwardFailed) => return Err(format!("a golden sample: {error}")),
            });
        }
    }
    Ok(rewards)
}

/// What the member answered before its calibration.
fn raw_reward(reward: &Option<Reward>, member: usize, info: &MemberInfo) -> f32 {
    let Some(reward) = reward else { return f32::NAN };
    let calibrated = reward.member_rewards[member];
    match info.calibration {
        Some(calibration) => calibration.undo(f64::from(calibrated)) as f32,
        None => calibrated,
    }
}
