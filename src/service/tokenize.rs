//! The threads that render and tokenize, so that the async ones never wait for a long text.
//!
//! Requests take turns, one sample at a time: a thread takes the request at the front, puts it back at the
//! end if it has more samples, and tokenizes one. So a single sample that arrives behind a request of a
//! thousand waits for a few of them, not for all. A request whose caller has gone is dropped at its next turn.
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
    /// Requests, each with the index of its next sample, in the order of their turns.
    requests: VecDeque<(Arc<Request>, usize)>,
    is_closed: bool,
}

struct Request {
    tokenizer: Arc<SampleTokenizer>,
    inputs: Vec<Received>,
    truncation: Truncation,
    answers: mpsc::UnboundedSender<(usize, Tokenized)>,
}

impl TokenizerThreads {
    /// One thread per core, and never one alone: a giant text must not stop everybody else.
    pub(super) fn start() -> std::io::Result<Self> {
        let turns = Arc::new(Turns::default());
        let num_threads = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
        for index in 0..num_threads {
            let turns = turns.clone();
            std::thread::Builder::new().name(format!("tokenize-{index}")).spawn(move || turns.work())?;
        }
        Ok(Self { turns })
    }

    /// One outcome for each of `inputs`, in their order. Dropping the future withdraws what has not begun.
    pub(super) async fn tokenize(
        &self,
        tokenizer: Arc<SampleTokenizer>,
        inputs: Vec<Received>,
        truncation: Truncation,
    ) -> Vec<Tokenized> {
        let mut outcomes: Vec<Option<Tokenized>> = inputs.iter().map(|_| None).collect();
        let (answers, mut answered) = mpsc::unbounded_channel();
        if !inputs.is_empty() {
            let request = Arc::new(Request { tokenizer, inputs, truncation, answers });
            self.turns.lock().requests.push_back((request, 0));
            self.turns.changed.notify_all();
        }
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
    fn work(&self) {
        while let Some((request, index)) = self.next_sample() {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let input = request.inputs[index].read()?;
                request.tokenizer.tokenize(&input, request.truncation)
            }));
            let outcome = outcome.map_err(|_| TokenizeError::Panicked).and_then(|outcome| Ok(outcome?));
            // The caller may have gone.
            let _ = request.answers.send((index, outcome));
        }
    }

    /// Waits for a sample; none once the threads shall end.
    fn next_sample(&self) -> Option<(Arc<Request>, usize)> {
        let mut waiting = self.lock();
        loop {
            if waiting.is_closed {
                return None;
            }
            match waiting.requests.pop_front() {
                Some((request, _)) if request.answers.is_closed() => {}
                Some((request, index)) => {
                    if index + 1 < request.inputs.len() {
                        waiting.requests.push_back((request.clone(), index + 1));
                    }
                    return Some((request, index));
                }
                None => waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Nothing under the lock can panic half-way.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::text::Input;
    use crate::text::TextOptions;

    fn request(samples: usize) -> (Arc<Request>, mpsc::UnboundedReceiver<(usize, Tokenized)>) {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/llama");
        let options = TextOptions { vocab_size: 100, max_tokens: 8, ..TextOptions::default() };
        let tokenizer = Arc::new(SampleTokenizer::load(&model, &options).unwrap());
        let inputs = (0..samples).map(|_| Received::Input(Input::TokenIds(vec![1]))).collect();
        let (answers, answered) = mpsc::unbounded_channel();
        (Arc::new(Request { tokenizer, inputs, truncation: Truncation::Reject, answers }), answered)
    }

    #[test]
    fn requests_take_turns_and_those_whose_caller_left_are_dropped() {
        let turns = Turns::default();
        let (long, _long_answers) = request(3);
        let (gone, gone_answers) = request(1000);
        let (short, _short_answers) = request(1);
        for request in [&long, &gone, &short] {
            turns.lock().requests.push_back((request.clone(), 0));
        }
        drop(gone_answers);
        let mut order = Vec::new();
        while !turns.lock().requests.is_empty() {
            let (request, index) = turns.next_sample().unwrap();
            order.push((request.inputs.len(), index));
        }
        assert_eq!(order, [(3, 0), (1, 0), (3, 1), (3, 2)]);
    }

    #[tokio::test]
    async fn outcomes_come_in_the_order_of_the_inputs() {
        let threads = TokenizerThreads::start().unwrap();
        let inputs: Vec<Received> = (0..100).map(|id| Received::Input(Input::TokenIds(vec![id]))).collect();
        let tokenizer = request(1).0.tokenizer.clone();
        let outcomes = threads.tokenize(tokenizer, inputs, Truncation::Reject).await;
        let ids: Vec<u32> = outcomes.into_iter().map(|outcome| outcome.unwrap().token_ids[0]).collect();
        assert_eq!(ids, (0..100).collect::<Vec<u32>>());
    }
}
