//! What every dialect of a body has in common: from the samples it holds to a request, and from the outcome to JSON.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use serde_json::Value;

use crate::service::budget::Room;
use crate::service::http::json::Inputs;
use crate::service::http::options::Asked;
use crate::service::http::options::truncation;
use crate::service::request::JsonConversation;
use crate::service::request::JsonMessage;
use crate::service::request::Received;
use crate::service::request::Request;
use crate::service::request::TemplateArguments;
use crate::service::request::Violations;
use crate::service::score::Score;
use crate::service::score::Scored;
use crate::service::status::ServiceError;
use crate::text::Input;
use crate::text::Truncation;

/// Reads a body; [`Room`] grows by what is made of it beside its own bytes.
pub(super) type Read = fn(&[u8], Context, &mut Room) -> Result<Understood, ServiceError>;

/// Makes the answer of an outcome.
pub(super) type Write = Box<dyn FnOnce(&Scored) -> Value + Send>;

/// What a body is read with.
pub(super) struct Context {
    pub(super) asked: Asked,
    pub(super) max_samples: usize,
    /// Of all texts, written out.
    pub(super) max_bytes: usize,
    /// Names of what serves.
    pub(super) variants: Vec<String>,
    pub(super) violations: Violations,
}

/// A request, and how it is answered.
pub(super) struct Understood {
    pub(super) request: Request,
    pub(super) request_id: String,
    pub(super) write: Write,
}

impl Context {
    /// The field `model`, which most clients must fill with something: it counts where it is the name of a variant, and
    /// nothing else was asked for.
    pub(super) fn model(&mut self, model: Option<String>) {
        if let Some(name) = model.filter(|name| self.asked.variant.is_empty() && self.variants.contains(name))
        {
            self.asked.variant = name;
        }
    }

    /// The prompt that the samples share, for a caller that gives no key: a group of responses is never split.
    pub(super) fn prompt(&mut self, prompt: &str) {
        if self.asked.routing_key.is_empty() {
            prompt.clone_into(&mut self.asked.routing_key);
        }
    }

    /// A field that means something this server does not do.
    pub(super) fn refuse(&mut self, is_asked: bool, field: &str, problem: &str) {
        if is_asked {
            self.violations.add(field, problem);
        }
    }

    /// What the body says of samples that are too long, where it says something.
    pub(super) fn truncate(&mut self, asked: Option<bool>, side_field: &str, side: Option<&str>) {
        let side = side.map(|side| (truncation(side), side));
        if let Some((None | Some(Truncation::Reject), _)) = side {
            self.violations.add(side_field, "is neither left nor right");
        }
        match asked {
            Some(true) => {
                let side = side.and_then(|(side, _)| side).unwrap_or(Truncation::Right);
                self.asked.truncation = Some(side);
            }
            Some(false) => self.asked.truncation = Some(Truncation::Reject),
            None => {}
        }
    }

    /// To how many tokens a body wants samples cut, where it says it.
    pub(super) fn at_most(&mut self, tokens: Option<i64>, field: &str) {
        let Some(tokens) = tokens else { return };
        match usize::try_from(tokens) {
            Ok(tokens @ 1..) => self.asked.max_tokens = Some(tokens),
            _ => self.violations.add(field, format!("is {tokens}, and no number of tokens")),
        }
    }

    /// The request of these samples, which all get a reward, or none does; `field` is what the dialect calls them.
    pub(super) fn understand(
        mut self,
        inputs: Vec<Received>,
        field: &'static str,
        write: impl FnOnce(&Scored) -> Value + Send + 'static,
    ) -> Result<Understood, ServiceError> {
        if inputs.len() > self.max_samples {
            let problem = format!("has {} samples, the limit is {}", inputs.len(), self.max_samples);
            self.violations.add(field, problem);
        }
        self.violations.none()?;
        let request_id = self.asked.request_id.clone();
        let request = self.asked.request(inputs, Some(field));
        Ok(Understood { request, request_id, write: Box::new(write) })
    }
}

/// What is done to a reward before it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activation {
    /// Nothing.
    Raw,
    /// Only where it is asked for by name.
    Sigmoid,
}

impl Activation {
    /// `is_asked` by the caller; who says nothing gets what the model says.
    pub(super) fn asked(is_asked: Option<bool>) -> Self {
        if is_asked == Some(true) { Self::Sigmoid } else { Self::Raw }
    }

    /// Of a reward, which is finite, as JSON: exactly the `f32` that gRPC answers.
    pub(super) fn of(self, score: &Score) -> Value {
        let reward = f64::from(score.reward);
        debug_assert!(reward.is_finite());
        match self {
            Self::Raw => reward.into(),
            Self::Sigmoid => (1.0 / (1.0 + (-reward).exp())).into(),
        }
    }
}

/// The scores of an outcome in which every sample has one.
pub(super) fn scores(scored: &Scored) -> impl Iterator<Item = &Score> {
    debug_assert!(scored.results.iter().all(Result::is_ok));
    scored.results.iter().flatten()
}

/// The name of the variant that scored.
pub(super) fn model(scored: &Scored) -> &str {
    &scored.served.info.name
}

/// All tokens of a request.
pub(super) fn tokens(scored: &Scored) -> usize {
    scores(scored).map(|score| score.tokens).sum()
}

/// As it was asked for, or one that no other answer of this process has.
pub(super) fn id(prefix: &str, request_id: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    match request_id {
        "" => format!("{prefix}-{:x}-{:x}", now().as_nanos(), NEXT.fetch_add(1, Ordering::Relaxed)),
        id => format!("{prefix}-{id}"),
    }
}

/// In seconds since 1970.
pub(super) fn created() -> u64 {
    now().as_secs()
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Samples of these inputs; texts as `of` takes them.
pub(super) fn samples(inputs: Inputs, of: impl Fn(String) -> Received) -> Vec<Received> {
    let ids = |ids| Received::Input(Input::TokenIds(ids));
    match inputs {
        Inputs::Text(text) => vec![of(text)],
        Inputs::Texts(texts) => texts.into_iter().map(of).collect(),
        Inputs::Ids(list) => vec![ids(list)],
        Inputs::IdLists(lists) => lists.into_iter().map(ids).collect(),
    }
}

/// A conversation of these messages, each whole, which a tokenizer thread reads.
pub(super) fn conversation(messages: Vec<JsonMessage>, chat_template_kwargs: Option<Value>) -> Received {
    let arguments = chat_template_kwargs.map(|arguments| arguments.to_string()).unwrap_or_default();
    Received::conversation(JsonConversation {
        messages,
        own: TemplateArguments { tools: String::new(), chat_template_kwargs: arguments },
        defaults: Arc::default(),
    })
}

/// A whole message.
pub(super) fn message(message: &Value) -> JsonMessage {
    JsonMessage { role: String::new(), content: String::new(), json: message.to_string() }
}
