//! The threads that render and tokenize, so that the async ones never wait for a long text.
//!
//! Requests take turns, one step of one sample at a time: a thread takes the request at the front, puts it back
//! at the end if it has more to do, and tokenizes for some milliseconds. So a single sample that arrives behind a
//! request of a thousand, or behind texts of megabytes, waits for a few steps of them, not for all. A request
//! whose caller has gone is dropped at its next turn.
//!
//! A text without a place to cut it makes long steps. Half of the threads take those, one at a time each; the
//! others never do, so that there is always one for the rest.
//!
//! # Why not rayon?
//!
//! A rayon thread prefers the work that its own tasks spawned over what arrives from outside: the turns above
//! would become "the longest request first".

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::sync::mpsc;

use crate::service::request::Received;
use crate::text::Progress;
use crate::text::SampleTokenizer;
use crate::text::TextError;
use crate::text::TokenizedSample;
use crate::text::Truncation;

/// Why one sample has no tokens.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenizeError {
    #[error(transparent)]
    Text(#[from] TextError),
    /// A defect of ours; the panic's own message is in the log.
    #[error("the server failed on this sample")]
    Panicked,
}

type Tokenized = Result<TokenizedSample, TokenizeError>;

/// A fixed set of threads named `tokenize-N`. They end when it is dropped.
pub(super) struct TokenizerThreads {
    turns: Arc<Turns>,
}

#[derive(Default)]
struct Turns {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// In the order of their turns.
    requests: VecDeque<Turn>,
    /// Samples whose next step is long.
    long: VecDeque<Work>,
    is_closed: bool,
}

/// A request that waits for its turn.
struct Turn {
    request: Arc<Request>,
    /// Samples between two steps: they go first, so that there are never more of them than threads.
    begun: Vec<Work>,
    /// The first sample that was not begun.
    next: usize,
}

/// One sample, before its first step or between two.
struct Work {
    request: Arc<Request>,
    index: usize,
    progress: Option<Progress>,
}

struct Request {
    tokenizer: Arc<SampleTokenizer>,
    inputs: Vec<Received>,
    truncation: Truncation,
    max_tokens: usize,
    answers: mpsc::UnboundedSender<(usize, Tokenized)>,
}

impl TokenizerThreads {
    /// So many threads, or one per core; and never one alone: a giant text must not stop everybody else.
    pub(super) fn start(threads: Option<usize>) -> std::io::Result<Self> {
        let turns = Arc::new(Turns::default());
        let cores = || std::thread::available_parallelism().map_or(2, usize::from);
        let num_threads = threads.unwrap_or_else(cores).max(2);
        for index in 0..num_threads {
            let turns = turns.clone();
            let takes_long = index % 2 == 1;
            let work = move || turns.work(takes_long);
            std::thread::Builder::new().name(format!("tokenize-{index}")).spawn(work)?;
        }
        Ok(Self { turns })
    }

    /// One outcome for each of `inputs`, in their order; `max_tokens` counts where it is below the model's limit. Dropping the future withdraws what has not begun.
    pub(super) async fn tokenize(
        &self,
        tokenizer: Arc<SampleTokenizer>,
        inputs: Vec<Received>,
        truncation: Truncation,
        max_tokens: usize,
    ) -> Vec<Tokenized> {
        if inputs.is_empty() {
            return Vec::new();
        }
        let mut outcomes: Vec<Option<Tokenized>> = inputs.iter().map(|_| None).collect();
        let (answers, mut answered) = mpsc::unbounded_channel();
        let request = Arc::new(Request { tokenizer, inputs, truncation, max_tokens, answers });
        self.turns.lock().requests.push_back(Turn { request, begun: Vec::new(), next: 0 });
        self.turns.changed.notify_all();
        while let Some((index, outcome)) = answered.recv().await {
            outcomes[index] = Some(outcome);
        }
        // A thread answers each sample, panics included; an unanswered one would be a panic of its own.
        outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(TokenizeError::Panicked))).collect()
    }
}

impl Drop for TokenizerThreads {
    fn drop(&mut self) {
        self.turns.lock().is_closed = true;
        self.turns.changed.notify_all();
    }
}

impl Turns {
    fn work(&self, takes_long: bool) {
        while let Some(work) = self.next(takes_long) {
            let (request, index) = (work.request.clone(), work.index);
            match catch_unwind(AssertUnwindSafe(|| step(work))) {
                Ok(Ok(Step::More(work))) => self.put_back(work),
                Ok(Ok(Step::Done(sample))) => request.answer(index, Ok(sample)),
                Ok(Err(error)) => request.answer(index, Err(error.into())),
                Err(_) => request.answer(index, Err(TokenizeError::Panicked)),
            }
        }
    }

    /// Waits for something to do; none once the threads shall end.
    fn next(&self, takes_long: bool) -> Option<Work> {
        let mut waiting = self.lock();
        loop {
            if waiting.is_closed {
                return None;
            }
            if takes_long && let Some(work) = waiting.long.pop_front() {
                if !work.request.answers.is_closed() {
                    return Some(work);
                }
            } else if let Some(mut turn) = waiting.requests.pop_front() {
                if turn.request.answers.is_closed() {
                    continue;
                }
                let work = turn.begun.pop().unwrap_or_else(|| {
                    turn.next += 1;
                    Work { request: turn.request.clone(), index: turn.next - 1, progress: None }
                });
                if turn.next < turn.request.inputs.len() || !turn.begun.is_empty() {
                    waiting.requests.push_back(turn);
                }
                return Some(work);
            } else {
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// A sample that needs more steps waits for its request's next turn.
    fn put_back(&self, work: Work) {
        let mut waiting = self.lock();
        let is_long = work.progress.as_ref().is_some_and(Progress::is_long);
        if is_long {
            waiting.long.push_back(work);
        } else if let Some(turn) =
            waiting.requests.iter_mut().find(|turn| Arc::ptr_eq(&turn.request, &work.request))
        {
            turn.begun.push(work);
        } else {
            let request = work.request.clone();
            let next = request.inputs.len();
            waiting.requests.push_back(Turn { request, begun: vec![work], next });
        }
        drop(waiting);
        self.changed.notify_all();
    }

    /// Nothing under the lock can panic half-way.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Request {
    fn answer(&self, index: usize, outcome: Tokenized) {
        // The caller may have gone.
        let _ = self.answers.send((index, outcome));
    }
}

enum Step {
    Done(TokenizedSample),
    More(Work),
}

fn step(mut work: Work) -> Result<Step, TextError> {
    let Request { tokenizer, inputs, truncation, max_tokens, .. } = &*work.request;
    let mut progress = match work.progress.take() {
        Some(progress) => progress,
        None => inputs[work.index].begin(tokenizer, *truncation)?.at_most(*max_tokens),
    };
    Ok(match tokenizer.step(&mut progress)? {
        Some(sample) => Step::Done(sample),
        None => Step::More(Work { progress: Some(progress), ..work }),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::text::Input;
    use crate::text::TextOptions;

    type Answers = mpsc::UnboundedReceiver<(usize, Tokenized)>;

    fn request(samples: usize) -> (Arc<Request>, Answers) {
        request_of(vec![Input::TokenIds(vec![1]); samples])
    }

    fn request_of(inputs: Vec<Input>) -> (Arc<Request>, Answers) {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/llama");
        let options = TextOptions { vocab_size: 1 << 20, max_tokens: 8, ..TextOptions::default() };
        let tokenizer = Arc::new(SampleTokenizer::load(&model, &options).unwrap());
        let inputs = inputs.into_iter().map(Received::Input).collect();
        let (answers, answered) = mpsc::unbounded_channel();
        (
            Arc::new(Request {
                tokenizer,
                inputs,
                truncation: Truncation::Reject,
                max_tokens: usize::MAX,
                answers,
            }),
            answered,
        )
    }

    #[test]
    fn requests_take_turns_and_those_whose_caller_left_are_dropped() {
        let turns = Turns::default();
        let (long, _long_answers) = request(3);
        let (gone, gone_answers) = request(1000);
        let (short, _short_answers) = request(1);
        for request in [&long, &gone, &short] {
            turns.lock().requests.push_back(Turn { request: request.clone(), begun: Vec::new(), next: 0 });
        }
        drop(gone_answers);
        let mut order = Vec::new();
        while !turns.lock().requests.is_empty() {
            let work = turns.next(true).unwrap();
            order.push((work.request.inputs.len(), work.index));
        }
        assert_eq!(order, [(3, 0), (1, 0), (3, 1), (3, 2)]);
    }

    #[test]
    fn a_text_of_many_steps_waits_for_its_next_turn_between_them() {
        let turns = Turns::default();
        let (long, mut long_answers) = request_of(vec![Input::Formatted("ab ".repeat(30 << 10)); 2]);
        let (short, _short_answers) = request(1);
        for request in [&long, &short] {
            turns.lock().requests.push_back(Turn { request: request.clone(), begun: Vec::new(), next: 0 });
        }
        let mut order = Vec::new();
        while !turns.lock().requests.is_empty() {
            let work = turns.next(false).unwrap();
            order.push((work.request.inputs.len(), work.index));
            let (request, index) = (work.request.clone(), work.index);
            match step(work) {
                Ok(Step::More(work)) => turns.put_back(work),
                Ok(Step::Done(sample)) => request.answer(index, Ok(sample)),
                Err(error) => request.answer(index, Err(error.into())),
            }
        }
        // begun samples go first, and the short request waits for one step only
        assert_eq!(order[..3], [(2, 0), (1, 0), (2, 0)]);
        assert!(order.iter().filter(|turn| **turn == (2, 0)).count() > 2, "{order:?}");
        let mut answered = Vec::new();
        while let Ok((index, outcome)) = long_answers.try_recv() {
            assert!(matches!(outcome, Err(TokenizeError::Text(TextError::TooLong { .. }))), "{outcome:?}");
            answered.push(index);
        }
        assert_eq!(answered, [0, 1]);
    }

    #[test]
    fn one_thread_never_takes_long_steps() {
        let turns = Turns::default();
        let (giant, _giant_answers) = request_of(vec![Input::Formatted("a".repeat(300 << 10))]);
        let (short, _short_answers) = request(1);
        turns.lock().requests.push_back(Turn { request: giant.clone(), begun: Vec::new(), next: 0 });
        while turns.lock().long.is_empty() {
            match step(turns.next(false).unwrap()) {
                Ok(Step::More(work)) => turns.put_back(work),
                _ => panic!("there is no place to cut it"),
            }
        }
        turns.lock().requests.push_back(Turn { request: short.clone(), begun: Vec::new(), next: 0 });
        assert!(Arc::ptr_eq(&turns.next(false).unwrap().request, &short));
        assert!(Arc::ptr_eq(&turns.next(true).unwrap().request, &giant));
    }

    #[tokio::test]
    async fn outcomes_come_in_the_order_of_the_inputs() {
        let threads = TokenizerThreads::start(None).unwrap();
        let inputs: Vec<Received> = (0..100).map(|id| Received::Input(Input::TokenIds(vec![id]))).collect();
        let tokenizer = request(1).0.tokenizer.clone();
        let outcomes = threads.tokenize(tokenizer, inputs, Truncation::Reject, usize::MAX).await;
        let ids: Vec<u32> = outcomes.into_iter().map(|outcome| outcome.unwrap().token_ids[0]).collect();
        assert_eq!(ids, (0..100).collect::<Vec<u32>>());
    }
}
