//! From a checkpoint to a model in training, with the head that a base may lack.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use candle_core::Var;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::Held;
use super::Trainable;
use super::save;
use super::threads::Threads;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::quantized;
use crate::disk;
use crate::learn::memory::Needed;
use crate::learn::parameter::Parameter;
use crate::merge;
use crate::model::ModelError;
use crate::model::RewardModel;
use crate::model::config::CheckpointConfig;
use crate::model::layout;
use crate::model::manifest::Manifest;
use crate::model::origin;
use crate::model::plan::ModelPlan;
use crate::model::plan::Part;
use crate::model::plan::Role;
use crate::model::plan::TensorPlan;
use crate::model::variant;
use crate::model::weights::Weights;
use crate::ops::training::Parameters;
use crate::ops::training::Training;
use crate::values::Format;
use crate::values::Values;

/// What is trained of a checkpoint, and what is made where it lacks something.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOptions {
    /// Whether the embeddings, with their norm, stay as they are.
    pub frozen_embeddings: bool,
    /// So many layers, the first ones, stay as they are; and the embeddings, if it is not 0.
    pub frozen_layers: usize,
    /// Whether the last layer of the head is trained. What is before it (BERT's pooler, RoBERTa's dense layer) always is.
    pub train_head: bool,
    /// For the layers that a base without a head lacks.
    pub seed: u64,
    /// Whether the weights of the best step will be kept beside those of the last: they take memory.
    pub keeps_best: bool,
    /// The limit for tokens, in place of the model's own.
    pub max_tokens: Option<usize>,
    /// Bytes that may be taken for the model and for what training adds to it; none: whatever it takes.
    pub memory_left: Option<u64>,
}

impl Default for LoadOptions {
    /// Everything is trained.
    fn default() -> Self {
        Self {
            frozen_embeddings: false,
            frozen_layers: 0,
            train_head: true,
            seed: 0,
            keeps_best: false,
            max_tokens: None,
            memory_left: None,
        }
    }
}

impl Trainable {
    /// Reads a checkpoint of any served family: with a reward head of any kind, or a base without one
    /// (`*Model`, `*ForCausalLM`, `*ForMaskedLM`). Such a base gets the head that transformers' `*ForSequenceClassification`
    /// puts on it, with weights drawn from a normal distribution of the config's `initializer_range` and biases of zero.
    ///
    /// Works on as many threads as the rayon pool has in which this is called.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Self, ModelError> {
        let load = || Self::read(dir, options);
        load().map_err(|source| ModelError::Member { path: dir.to_owned(), source: Box::new(source) })
    }

    fn read(dir: &Path, options: &LoadOptions) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(dir)?;
        let manifest = Manifest::load(dir)?;
        let config_path = dir.join("config.json");
        let mut config = CheckpointConfig::load(&config_path, &manifest)?;
        origin::settle(&checkpoint, &manifest, &mut config)?;
        if let Some(what) = config.backbone.on_cpu_alone() {
            return Err(ModelError::Unsupported(format!(
                "{}: {what} can be served and merged here, but not trained",
                config.model_type
            )));
        }
        if config.labels.is_some() {
            return Err(ModelError::Unsupported(
                "the base has several labels, of which rewarm.json chooses: what is trained has one, so start from the same \
                 model with a new head, M.from_pretrained(DIR, num_labels=1, \
                 ignore_mismatched_sizes=True).save_pretrained(OUT) with transformers"
                    .to_owned(),
            ));
        }
        let mut fields = read_fields(&config_path)?;
        quantized::make_plain(&mut fields);
        let tokenizer = variant::load_tokenizer(&checkpoint, &manifest, &config, options.max_tokens)?;
        let num_layers = config.backbone.layers.len();
        if options.frozen_layers > num_layers {
            let problem =
                format!("frozen_layers is {}, the model has {num_layers} layers", options.frozen_layers);
            return Err(ModelError::Unsupported(problem));
        }

        let plan = match layout::plan(&checkpoint, &config) {
            Err(ModelError::NoHead { .. }) => {
                // transformers reads no batch of several with a decoder that has no padding token
                if config.pad_token_id.is_none() && config.backbone.is_causal() {
                    let eos = config.eos_token_ids.first().copied();
                    let padding = tokenizer.pad_token_id().or(eos).unwrap_or(0);
                    config.pad_token_id = Some(padding);
                    fields.insert("pad_token_id".to_owned(), json!(padding));
                }
                let plan = layout::plan_with_native_head(&checkpoint, &config);
                layout::check_base(&plan, &checkpoint)?;
                plan
            }
            plan => {
                let plan = plan?;
                layout::check(&plan, [&checkpoint])?;
                plan
            }
        };
        let needed = Needed::new(&plan, |part| !is_frozen(options, part), options.keeps_best);
        needed.check(options.memory_left)?;
        let model = load_model(&plan, &config)?;
        save::name_architecture(&mut fields, &config, plan.head.kind);

        let width = fields.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02);
        let mut tensors = Vec::with_capacity(plan.tensors.len());
        for tensor in &plan.tensors {
            let values = match checkpoint.contains(&tensor.name) {
                true => read_values(&checkpoint, &tensor.name)?,
                false => draw(tensor, width, options.seed),
            };
            let var = Var::from_vec(values, tensor.shape.as_slice(), &Device::Cpu)?;
            tensors.push(Held {
                trained: !is_frozen(options, tensor.part),
                name: save::name_of(tensor, &plan),
                base_name: tensor.name.clone(),
                part: tensor.part,
                role: tensor.role,
                var,
            });
        }
        let parameters: Vec<Parameter> = tensors
            .iter()
            .filter(|held| held.trained)
            .map(|held| Parameter {
                name: held.name.clone(),
                var: held.var.clone(),
                decays: held.role.is_matrix(),
            })
            .collect();
        let detached: Parameters =
            tensors.iter().map(|held| (held.base_name.clone(), held.var.as_detached_tensor())).collect();
        let mut tracked = detached.clone();
        let trained = tensors.iter().filter(|held| held.trained);
        tracked.extend(trained.map(|held| (held.base_name.clone(), held.var.as_tensor().clone())));
        Ok(Self {
            dir: dir.to_owned(),
            config: fields,
            tokenizer,
            model,
            tensors,
            parameters,
            tracked: Arc::new(tracked),
            detached: Arc::new(detached),
            threads: Threads::new()?,
            needed,
        })
    }
}

/// A model of names.
fn load_model(plan: &ModelPlan, config: &CheckpointConfig) -> Result<RewardModel<Training>, ModelError> {
    let ops = Arc::new(Training::new(Arc::default(), None));
    let mut progress = |_| ();
    RewardModel::load(&mut Weights::new(plan, &[], &ops, None, &mut progress), plan, config)
}

fn read_fields(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let text =
        disk::read_to_string(path, disk::SETTINGS_BYTES).map_err(|source| ModelError::read(path, source))?;
    serde_json::from_str(&text).map_err(|error| ModelError::config(path, error))
}

/// Whether a tensor of this part stays as it is.
fn is_frozen(options: &LoadOptions, part: Part) -> bool {
    match part {
        Part::Embedding => options.frozen_embeddings || options.frozen_layers > 0,
        Part::Layer(index) => index < options.frozen_layers,
        Part::Output => !options.train_head,
        Part::End | Part::Dense => false,
    }
}

/// The values of a tensor, in `f32`.
fn read_values(checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>, ModelError> {
    let mut sources = [(checkpoint.read(name)?, 1.0)];
    let values =
        merge::average(name, &mut sources, Format::F32, |dtype, bytes| checkpoint.room(dtype, bytes))?;
    let Values::F32(values) = values else { unreachable!("asked for f32") };
    Ok(values)
}

/// The same values for a seed and a name, whatever else is drawn: weights are normal, offsets zero, a norm's factors one.
fn draw(tensor: &TensorPlan, width: f64, seed: u64) -> Vec<f32> {
    let count = tensor.shape.iter().product();
    match tensor.role {
        Role::Bias | Role::NormBias => return vec![0.0; count],
        Role::NormWeight => return vec![1.0; count],
        Role::Weight | Role::Table => {}
    }
    let key = blake3::hash(format!("{seed} {}", tensor.name).as_bytes());
    let mut random = ChaCha8Rng::from_seed(*key.as_bytes());
    // Box and Muller's; the offset keeps the logarithm finite
    let mut uniform = || (f64::from(random.next_u32()) + 0.5) / f64::from(1 << 16) / f64::from(1 << 16);
    let mut normal =
        || (-2.0 * uniform().ln()).sqrt() * (2.0 * std::f64::consts::PI * uniform()).cos() * width;
    (0..count).map(|_| normal() as f32).collect()
}
