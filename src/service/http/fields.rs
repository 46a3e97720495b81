//! Every field that a body of texts may have in one of the dialects, and what those mean that several share. What is not
//! here is ignored: clients send `labels`, `user`, `parameters` and more.

use serde::Deserialize;
use serde_json::Value;

use crate::service::http::dialect::Activation;
use crate::service::http::dialect::Context;
use crate::service::http::json::Inputs;
use crate::service::http::json::Texts;

/// A body; what it does not say is none.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    pub(super) model: Option<String>,

    // texts to be judged: vLLM, SGLang
    pub(super) input: Option<Inputs>,
    pub(super) messages: Option<Vec<Value>>,
    pub(super) text: Option<Inputs>,
    pub(super) input_ids: Option<Inputs>,
    pub(super) add_special_tokens: Option<bool>,
    pub(super) chat_template: Option<String>,
    pub(super) chat_template_kwargs: Option<Value>,
    pub(super) add_generation_prompt: Option<bool>,
    pub(super) continue_final_message: Option<bool>,

    // pairs: vLLM, TEI
    pub(super) query: Option<String>,
    pub(super) documents: Option<Texts>,
    pub(super) texts: Option<Texts>,
    pub(super) queries: Option<Texts>,
    pub(super) items: Option<Texts>,
    pub(super) data_1: Option<Texts>,
    pub(super) data_2: Option<Texts>,
    pub(super) text_1: Option<Texts>,
    pub(super) text_2: Option<Texts>,
    pub(super) top_n: Option<usize>,
    pub(super) return_documents: Option<bool>,
    pub(super) return_text: Option<bool>,
    pub(super) instruction: Option<String>,
    pub(super) max_tokens_per_query: Option<u64>,
    pub(super) max_tokens_per_doc: Option<u64>,

    // activation, and what is too long
    use_activation: Option<bool>,
    activation: Option<bool>,
    softmax: Option<bool>,
    raw_scores: Option<bool>,
    truncate_prompt_tokens: Option<i64>,
    truncation_side: Option<String>,
    truncate: Option<bool>,
    truncation_direction: Option<String>,

    // of the request and its answer
    priority: Option<i64>,
    request_id: Option<String>,
    normalize: Option<bool>,
    task: Option<String>,
    dimensions: Option<u64>,
    pub(super) encoding_format: Option<String>,
    embed_dtype: Option<String>,
}

impl Fields {
    /// Takes what vLLM's routes have in common; refuses what is not done here, and says which activation is asked for.
    pub(super) fn vllm(&mut self, context: &mut Context) -> Activation {
        // -1 is the limit of the model
        let own_limit = self.truncate_prompt_tokens.filter(|tokens| *tokens != -1);
        context.at_most(own_limit, "truncate_prompt_tokens");
        let is_truncated = self.truncate_prompt_tokens.map(|_| true);
        context.truncate(is_truncated, "truncation_side", self.truncation_side.as_deref());
        context.refuse(
            self.priority.is_some_and(|priority| priority != 0),
            "priority",
            "is a number: here it has names (interactive, normal, background), in the header x-rewarm-priority",
        );
        context.refuse(
            self.normalize.is_some(),
            "normalize",
            "is for embeddings: rewards have `use_activation`",
        );
        let is_other = self.task.as_ref().is_some_and(|task| !["classify", "score"].contains(&task.as_str()));
        context.refuse(is_other, "task", "only classify and score are known here");
        context.refuse(
            self.instruction.is_some(),
            "instruction",
            "has no place in the model's texts: leave it out",
        );
        for (field, limit) in [
            ("max_tokens_per_query", self.max_tokens_per_query),
            ("max_tokens_per_doc", self.max_tokens_per_doc),
        ] {
            context.refuse(
                limit.is_some_and(|limit| limit > 0),
                field,
                "is not known: the model's limit counts",
            );
        }
        self.openai(context);
        if let Some(request_id) = self.request_id.take().filter(|_| context.asked.request_id.is_empty()) {
            context.violations.check_length("request_id", &request_id);
            context.asked.request_id = request_id;
        }
        Activation::asked(self.use_activation.or(self.activation).or(self.softmax))
    }

    /// Takes what all routes in the manner of OpenAI have in common.
    pub(super) fn openai(&mut self, context: &mut Context) {
        context.refuse(
            self.dimensions.is_some_and(|dimensions| dimensions != 1),
            "dimensions",
            "a reward is one number: leave it out, or send 1",
        );
        let is_f32 = self.embed_dtype.as_ref().is_none_or(|dtype| dtype == "float32");
        context.refuse(!is_f32, "embed_dtype", "only float32 is known");
        context.model(self.model.take());
    }

    /// Takes what TEI's routes have in common, and says which activation is asked for.
    pub(super) fn tei(&mut self, context: &mut Context) -> Activation {
        context.truncate(self.truncate, "truncation_direction", self.truncation_direction.as_deref());
        context.model(self.model.take());
        Activation::asked(self.raw_scores.map(|is_raw| !is_raw))
    }
}
