//! A checkpoint's `config.json`: read into what the models need, or refused by name.
//!
//! Reads the form of transformers 4 (`rope_theta`, `rope_scaling`) and of transformers 5
//! (`rope_parameters`). A setting that changes a reward and that we do not know how to follow is an error
//! here, before anything is served.
//!
//! # One rule
//!
//! As for the files of the tokenizer: what transformers 5.23 does with this file, where it is deterministic, is what
//! counts; where it fails, or where two places say what cannot both be meant, the checkpoint is refused, naming the keys
//! and the values. **A key that is absent means the default of the class; null means none**, and is
//! refused where the class needs a value. `tests/reference/sweep.py` takes away and contradicts each key in turn.

use std::path::Path;

use serde::Serialize;
use serde_json::Map;
use serde_json::Value;

use crate::checkpoint::fields::Fields;
use crate::disk;
use crate::model::ModelError;
use crate::model::families;
use crate::model::families::Family;
use crate::model::labels::Labels;
use crate::model::manifest::Manifest;
use crate::model::plan::BackbonePlan;
use crate::model::plan::HeadPlan;
use crate::model::pooling::Pooling;
use crate::model::scorer::Calibration;
use crate::text::TextEnds;
use crate::text::TextRule;

/// Everything in `config.json` and the manifest that determines a reward, but the text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CheckpointConfig {
    /// For example "LlamaForSequenceClassification".
    pub architecture: String,
    /// The family, for example "llama".
    pub model_type: String,
    /// The tokenizer's class, where `tokenizer_config.json` names none. The digest of the text covers what it does.
    #[serde(skip)]
    pub tokenizer_class: Option<String>,
    /// The transformer below the head.
    pub backbone: BackbonePlan,
    /// Where the head is, when the config says so (OpenRLHF); else it is found by its tensors.
    pub value_head_prefix: Option<String>,
    /// OpenRLHF's `(reward - mean) / std`, when `normalize_reward` asks for it.
    pub normalization: Option<Calibration>,
    /// Of the manifest; else the head's origin decides, see [`Self::pooling`].
    pub pooling: Option<Pooling>,
    /// The padding token, which [`Pooling::LastNonPad`] steps over.
    pub pad_token_id: Option<u32>,
    /// What ends a sequence, for [`Pooling::FirstEos`].
    pub eos_token_ids: Vec<u32>,
    /// Which of several labels make the reward; none of a model with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// What the files around it say; in its fingerprint where it became one of the fields above, or text.
    #[serde(skip)]
    pub origin: Origin,
}

/// What the files beside the weights decide or leave open.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Origin {
    /// What was not taken from the checkpoint's own config, in words: for logs and `GetServerInfo`.
    pub notes: Vec<String>,
    /// Why the last token that is not padding cannot be known.
    pub pad_doubt: Option<String>,
    /// How texts are joined, where there is no chat template.
    pub text_rule: Option<TextRule>,
    /// How texts end.
    pub ends: TextEnds,
    /// Why the end of joined texts cannot be known.
    pub end_doubt: Option<String>,
    /// What sentence-transformers applies to scores, where it said so in `config.json`.
    pub activation: Option<String>,
}

impl CheckpointConfig {
    /// Reads a `config.json`, under the manifest beside it.
    pub fn load(path: &Path, manifest: &Manifest) -> Result<Self, ModelError> {
        let text = disk::read_to_string(path, disk::SETTINGS_BYTES)
            .map_err(|source| ModelError::read(path, source))?;
        let fields: Map<String, Value> =
            serde_json::from_str(&text).map_err(|error| ModelError::config(path, error))?;
        Self::parse(&fields, manifest).map_err(|problem| ModelError::config(path, problem))
    }

    /// The same of what it holds; the error names field and value.
    pub fn parse(fields: &Map<String, Value>, manifest: &Manifest) -> Result<Self, String> {
        let fields = Fields(fields);
        fields.refuse_unless(
            "per_layer_config",
            Value::is_null,
            "layers with configs of their own are not supported",
        )?;
        let model_type: String = fields.required("model_type")?;
        let architecture = match fields.0.get("architectures") {
            None | Some(Value::Null) => format!("{model_type} (unnamed)"),
            Some(Value::Array(names)) if names.len() == 1 && names[0].is_string() => {
                names[0].as_str().unwrap_or_default().to_owned()
            }
            Some(other) => return Err(format!("`architectures` is {other}: expected one name")),
        };
        let family = families::find(&model_type)?;
        check_architecture(&architecture, family)?;
        let (labels, of_labels) =
            Labels::settle(&fields, manifest.label.as_ref(), manifest.label_weights.as_ref())?;
        let of_text = match family.nested {
            None => fields,
            Some(key) => match fields.0.get(key) {
                Some(Value::Object(nested)) => Fields(nested),
                other => {
                    let found = other.map_or("missing".to_owned(), |value| value.to_string());
                    return Err(format!("`{key}` is {found}: expected the config of the text model"));
                }
            },
        };
        let backbone = (family.parse)(&of_text)?;
        let normalization = if fields.optional::<bool>("normalize_reward")?.unwrap_or(false) {
            let calibration = Calibration { mean: fields.required("mean")?, std: fields.required("std")? };
            if !(calibration.std > 0.0 && calibration.std.is_finite() && calibration.mean.is_finite()) {
                return Err(format!("`std` is {}: `normalize_reward` needs one above zero", calibration.std));
            }
            Some(calibration)
        } else {
            None
        };
        let eos_token_ids = match of_text.0.get("eos_token_id") {
            None => family.eos_token_id.into_iter().collect(),
            Some(Value::Array(ids)) => ids.iter().filter_map(Value::as_u64).map(|id| id as u32).collect(),
            Some(Value::Number(id)) => id.as_u64().map(|id| id as u32).into_iter().collect(),
            _ => Vec::new(),
        };
        let pad_token_id = match of_text.0.get("pad_token_id") {
            _ if manifest.pad_token_id.is_some() => manifest.pad_token_id,
            None => family.pad_token_id,
            // transformers writes -1 for "none" in some families
            Some(_) => of_text.optional::<i64>("pad_token_id")?.and_then(|id| u32::try_from(id).ok()),
        };
        Ok(Self {
            architecture,
            model_type,
            tokenizer_class: fields.optional("tokenizer_class")?,
            backbone,
            value_head_prefix: fields.optional("value_head_prefix")?,
            normalization,
            pooling: manifest.pooling,
            pad_token_id,
            eos_token_ids,
            labels,
            origin: Origin {
                activation: activation(&fields),
                notes: of_labels.into_iter().collect(),
                ..Origin::default()
            },
        })
    }

    /// Whose it is.
    pub fn family(&self) -> &'static Family {
        families::find(&self.model_type).expect("the family's row has read it")
    }

    /// The pooling rule: the manifest's, or else that of the head. Fails where the files leave it open.
    ///
    /// transformers' `*ForSequenceClassification` of a decoder looks for the rightmost token that is not padding, and
    /// takes the last token where none is named.
    pub fn pooling(&self, head: &HeadPlan) -> Result<Pooling, ModelError> {
        let rule = match (self.pooling, head.pooling) {
            (Some(rule), _) => rule,
            (None, Pooling::LastNonPad) => match (&self.origin.pad_doubt, self.pad_token_id) {
                (Some(doubt), _) => return Err(ModelError::Unsupported(doubt.clone())),
                (None, Some(_)) => Pooling::LastNonPad,
                (None, None) => Pooling::LastToken,
            },
            (None, rule) => rule,
        };
        if rule == Pooling::FirstEos && self.eos_token_ids.is_empty() {
            return Err(ModelError::Unsupported(
                "pooling first_eos needs an `eos_token_id` in config.json".to_owned(),
            ));
        }
        Ok(rule)
    }
}

/// As sentence-transformers saved it in version 4 and later, and before.
fn activation(fields: &Fields<'_>) -> Option<String> {
    let of_version_4 = fields.0.get("sentence_transformers").and_then(|own| own.get("activation_fn"));
    let name = of_version_4.or_else(|| fields.0.get("sbert_ce_default_activation_function"));
    name.and_then(Value::as_str).map(str::to_owned)
}

/// Accepts the classes that are one scalar reward on one of our backbones.
fn check_architecture(architecture: &str, family: &Family) -> Result<(), String> {
    let Family { model_type, class, .. } = family;
    // but for the first, with a value head beside, or as the base of a training
    let tasks = [
        "ForSequenceClassification",
        "ForCausalLM",
        "ForMaskedLM",
        "ForPreTraining",
        "Model",
        "ForRewardModel", // InternLM2
        "LMHeadModel",    // GPT-2
        "ForConditionalGeneration",
        "ForCausalLMWithValueHead",
    ];
    // the causal Gemma-3 is no Gemma3Text..., and MosaicML's own classes begin with MPT
    let is_class = |name: &str| name.eq_ignore_ascii_case(class) || format!("{name}Text") == *class;
    let supported = architecture == "RewardModel" // OpenRLHF
        || architecture == format!("{model_type} (unnamed)")
        || architecture == "AutoModelForCausalLMWithValueHead"
        || tasks.iter().any(|task| architecture.strip_suffix(task).is_some_and(is_class));
    if supported {
        return Ok(());
    }
    Err(format!(
        "architecture `{architecture}` is not supported with model_type `{model_type}`: supported are \
         {class}ForSequenceClassification, OpenRLHF's RewardModel, and {class}ForCausalLM with a value head"
    ))
}
