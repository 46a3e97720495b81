//! From a checkpoint to a model in training, with the head that a base may lack.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
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
use crate::disk;
use crate::learn::parameter::Parameter;
use crate::merge;
use crate::model::ModelError;
use crate::model::RewardModel;
use crate::model::backbone::BackboneConfig;
use crate::model::config::CheckpointConfig;
use crate::model::head;
use crate::model::manifest::Manifest;
use crate::model::origin;
use crate::model::variant;
use crate::model::weights::Weights;
use crate::ops::training::Parameters;
use crate::ops::training::Training;
use crate::values::Averaged;

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
    /// The limit for tokens, in place of the model's own.
    pub max_tokens: Option<usize>,
}

impl Default for LoadOptions {
    /// Everything is trained.
    fn default() -> Self {
        Self { frozen_embeddings: false, frozen_layers: 0, train_head: true, seed: 0, max_tokens: None }
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
        let mut fields = read_fields(&config_path)?;
        let tokenizer = variant::load_tokenizer(&checkpoint, &manifest, &config, options.max_tokens)?;
        let num_layers = config.backbone.num_layers();
        if options.frozen_layers > num_layers {
            let problem =
                format!("frozen_layers is {}, the model has {num_layers} layers", options.frozen_layers);
            return Err(ModelError::Unsupported(problem));
        }

        let mut build = load_model(&checkpoint, &config, BTreeMap::new());
        let mut lacking = BTreeMap::new();
        if let Err(ModelError::NoHead { .. }) = build {
            // transformers reads no batch of several with a decoder that has no padding token
            if config.pad_token_id.is_none() && matches!(config.backbone, BackboneConfig::Decoder(_)) {
                let padding = tokenizer.pad_token_id().or(config.eos_token_ids.first().copied()).unwrap_or(0);
                config.pad_token_id = Some(padding);
                fields.insert("pad_token_id".to_owned(), json!(padding));
            }
            lacking = head::native(&config, config.backbone.prefix_in(&checkpoint));
            lacking.retain(|name, _| checkpoint.info(name).is_none());
            build = load_model(&checkpoint, &config, lacking.clone());
        }
        let Built { model, order, prefix } = build?;
        let names = save::Names::new(&config, model.head().kind(), &prefix);
        save::name_architecture(&mut fields, &config, model.head().kind());

        let width = fields.get("initializer_range").and_then(Value::as_f64).unwrap_or(0.02);
        let is_frozen = frozen(options, &config.backbone, &prefix, model.head().last_layer());
        let mut tensors = Vec::with_capacity(order.len());
        for base_name in order {
            let (shape, values) = match lacking.get(&base_name) {
                Some(shape) => (shape.clone(), draw(&base_name, shape.iter().product(), width, options.seed)),
                None => read_values(&checkpoint, &base_name)?,
            };
            let var = Var::from_vec(values, shape, &Device::Cpu)?;
            let name = names.written(&base_name);
            tensors.push(Held { trained: !is_frozen(&base_name), name, base_name, var });
        }
        let parameters: Vec<Parameter> = tensors
            .iter()
            .filter(|held| held.trained)
            .map(|held| Parameter {
                name: held.name.clone(),
                var: held.var.clone(),
                decays: held.var.rank() > 1,
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
        })
    }
}

/// A model of names, and the names.
struct Built {
    model: RewardModel<Training>,
    order: Vec<String>,
    prefix: String,
}

fn load_model(
    checkpoint: &Checkpoint,
    config: &CheckpointConfig,
    lacking: BTreeMap<String, Vec<usize>>,
) -> Result<Built, ModelError> {
    let (members, mut progress) = ([(checkpoint, 1.0)], |_| ());
    let ops = Arc::new(Training::new(Arc::default(), None));
    let weights = Weights::new(
        &members,
        config.backbone.prefix_in(checkpoint),
        &config.backbone,
        &ops,
        None,
        &mut progress,
    );
    let mut weights = weights.with_lacking(lacking);
    let model = RewardModel::load(&mut weights, config)?;
    let (order, prefix) = (weights.unread(), weights.backbone_prefix().to_owned());
    weights.finish()?;
    Ok(Built { model, order, prefix })
}

fn read_fields(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let text =
        disk::read_to_string(path, disk::SETTINGS_BYTES).map_err(|source| ModelError::read(path, source))?;
    serde_json::from_str(&text).map_err(|error| ModelError::config(path, error))
}

/// Tells by a name in the base whether a tensor stays as it is.
fn frozen(
    options: &LoadOptions,
    backbone: &BackboneConfig,
    prefix: &str,
    last_layer: &str,
) -> impl Fn(&str) -> bool + use<> {
    let (embeddings, layers) = match backbone {
        BackboneConfig::Decoder(_) => ("embed_tokens.", "layers."),
        BackboneConfig::Encoder(_) => ("embeddings.", "encoder.layer."),
    };
    let mut starts: Vec<String> =
        (0..options.frozen_layers).map(|index| format!("{prefix}{layers}{index}.")).collect();
    if options.frozen_embeddings || options.frozen_layers > 0 {
        starts.push(format!("{prefix}{embeddings}"));
    }
    if !options.train_head {
        starts.push(format!("{last_layer}."));
    }
    move |name| starts.iter().any(|start| name.starts_with(start))
}

/// Shape and values of a tensor, in `f32`.
fn read_values(checkpoint: &Checkpoint, name: &str) -> Result<(Vec<usize>, Vec<f32>), ModelError> {
    let tensor = checkpoint.read(name)?;
    let shape = tensor.shape.to_vec();
    let mut sources = [(tensor, 1.0)];
    let values =
        merge::average(name, &mut sources, DType::F32, |dtype, bytes| checkpoint.room(dtype, bytes))?;
    let Averaged::F32(values) = values else { unreachable!("asked for f32") };
    Ok((shape, values))
}

/// The same values for a seed and a name, whatever else is drawn: a bias is zero, weights are normal.
fn draw(name: &str, count: usize, width: f64, seed: u64) -> Vec<f32> {
    if name.ends_with(".bias") {
        return vec![0.0; count];
    }
    let key = blake3::hash(format!("{seed} {name}").as_bytes());
    let mut random = ChaCha8Rng::from_seed(*key.as_bytes());
    // Box and Muller's; the offset keeps the logarithm finite
    let mut uniform = || (f64::from(random.next_u32()) + 0.5) / f64::from(1 << 16) / f64::from(1 << 16);
    let mut normal =
        || (-2.0 * uniform().ln()).sqrt() * (2.0 * std::f64::consts::PI * uniform()).cos() * width;
    (0..count).map(|_| normal() as f32).collect()
}
