//! A variant: from its configuration to a scorer, a tokenizer, and a fingerprint.

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use candle_core::DType;
use candle_core::Device;
use serde::Deserialize;
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::checkpoint::Digest;
use crate::checkpoint::ahead::ReadAhead;
use crate::checkpoint::hex;
use crate::hub::Snapshot;
use crate::merge::kinship;
use crate::merge::kinship::Kinship;
use crate::model::ModelError;
use crate::model::RewardModel;
use crate::model::compatible;
use crate::model::config::CheckpointConfig;
use crate::model::ensemble::Ensemble;
use crate::model::golden::GoldenRewards;
use crate::model::layout;
use crate::model::manifest::Manifest;
use crate::model::memory;
use crate::model::origin;
use crate::model::paths;
use crate::model::plan::BackbonePlan;
use crate::model::plan::ModelPlan;
use crate::model::pooling::HeadKind;
use crate::model::pooling::Pooling;
use crate::model::scorer::Calibration;
use crate::model::scorer::Members;
use crate::model::scorer::Reduction;
use crate::model::scorer::Scorer;
use crate::model::weights::TensorStore;
use crate::model::weights::Weights;
use crate::ops::Ops;
use crate::ops::composed::Composed;
use crate::ops::cpu::Cpu;
use crate::ops::cpu::Isa;
use crate::text::SampleTokenizer;
use crate::text::TextEnd;
use crate::text::TextOptions;
use crate::text::TextRule;

/// How members become one reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One model: merged already, or members merged at load.
    Warm,
    /// N members, whose rewards are reduced.
    Ens,
}

impl Mode {
    /// As in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Ens => "ens",
        }
    }
}

/// What the weights and activations are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats.
    F16,
    /// bf16 where this machine is faster in it and the weights are not f16; else f32, on a GPU f16.
    Auto,
}

impl Dtype {
    /// As in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Auto => "auto",
        }
    }

    /// What `auto` means here, which is told.
    fn resolve(self, device: &Device, members: &[Member], variant: &str) -> Self {
        if self != Self::Auto {
            return self;
        }
        let stored_in_f16 = members.iter().any(|member| {
            let infos = member.checkpoint.names().filter_map(|name| member.checkpoint.info(name));
            infos.map(|info| info.dtype).any(|dtype| dtype == safetensors::Dtype::F16)
        });
        let isa = Isa::best();
        let (dtype, why) = match (device.is_cpu(), stored_in_f16) {
            (true, true) => {
                (Self::F32, "the weights are f16, of which bf16 would drop three bits".to_owned())
            }
            (true, false) if isa.prefers_bf16() => (Self::Bf16, format!("the CPU has {}", isa.name())),
            (true, false) => (Self::F32, format!("the CPU ({}) is not faster in bf16", isa.name())),
            (false, true) => (Self::F16, "the weights are f16".to_owned()),
            (false, false) => {
                (Self::Bf16, "of the GPU's fast precisions the one without overflow".to_owned())
            }
        };
        tracing::info!(variant, dtype = dtype.name(), why, "dtype auto");
        dtype
    }

    fn tensor_dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
            Self::Auto => unreachable!("resolved before anything is loaded"),
        }
    }
}

/// One variant, as configured. `config.rs` has checked it: the lists agree in length, there is at least one member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VariantConfig {
    /// As in requests and metrics.
    pub name: String,
    /// WARM or ENS.
    pub mode: Mode,
    /// Checkpoint directories, or LoRA adapters over `base`; one for a merged model. What is still at a hub has a path that
    /// `hub::place` made, and is fetched before a variant is loaded.
    #[serde(with = "paths::many")]
    pub members: Vec<PathBuf>,
    /// What members that are adapters were trained on.
    #[serde(with = "paths::optional")]
    pub base: Option<PathBuf>,
    /// Mode `warm`: one per member, summing to 1; equal when absent.
    pub coefficients: Option<Vec<f64>>,
    /// Mode `ens`.
    pub reduction: Reduction,
    /// What to compute in.
    pub dtype: Dtype,
    /// "cpu", "cuda" or "cuda:N".
    pub device: String,
    /// The limit for tokens, in place of the model's own.
    pub max_tokens: Option<usize>,
    /// Overrides the checkpoint's pooling.
    pub pooling: Option<Pooling>,
}

impl VariantConfig {
    /// On the CPU in `f32`, equal coefficients or the mean, everything else as the checkpoints say.
    pub fn new(name: &str, mode: Mode, members: Vec<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            mode,
            members,
            base: None,
            coefficients: None,
            reduction: Reduction::default(),
            dtype: Dtype::default(),
            device: "cpu".to_owned(),
            max_tokens: None,
            pooling: None,
        }
    }

    /// The golden rewards that hold for its models, one for each, in configured order; which do not is told.
    pub fn golden_rewards(&self) -> Result<Vec<Option<GoldenRewards>>, ModelError> {
        let tell = |member: &Path, why: &str| {
            tracing::info!(variant = self.name, member = %member.display(), why, "golden rewards do not apply");
        };
        let mut of_members =
            self.members.iter().map(|path| GoldenRewards::load(path)).collect::<Result<Vec<_>, _>>()?;
        if self.mode == Mode::Warm && self.members.len() > 1 {
            if let Some(member) = of_members.iter().position(Option::is_some) {
                tell(&self.members[member], "they are a member's, and several are merged");
            }
            return Ok(vec![None]);
        }
        for (golden, path) in of_members.iter_mut().zip(&self.members) {
            let overrides =
                |golden: &mut GoldenRewards| self.pooling.is_some_and(|rule| rule.name() != golden.pooling);
            if golden.take_if(overrides).is_some() {
                tell(path, "the configuration overrides the pooling rule that they were taken with");
            }
        }
        Ok(of_members)
    }
}

/// What is told of a loaded variant.
#[derive(Clone, Debug)]
pub struct VariantInfo {
    /// As configured.
    pub name: String,
    /// WARM or ENS.
    pub mode: Mode,
    /// In configured order.
    pub members: Vec<MemberInfo>,
    /// For example "mean" or "uwo(lambda=0.5)"; empty in mode `warm`.
    pub reduction: String,
    /// "f32", "f16" or "bf16".
    pub dtype: &'static str,
    /// For example "cpu" or "cuda:0".
    pub device: String,
    /// The longest sample.
    pub max_tokens: usize,
    /// Hex digest of everything that determines a reward.
    pub fingerprint: String,
    /// For example "LlamaForSequenceClassification".
    pub architecture: String,
    /// For example "last_non_pad".
    pub pooling: &'static str,
    /// How a prompt and a response become one sequence: "chat_template", "concatenation", "sentence_pair", or "none".
    pub text_rule: &'static str,
    /// What of how it scores its config does not say, in words.
    pub notes: Vec<String>,
}

/// One of the models that a variant was made from.
#[derive(Clone, Debug)]
pub struct MemberInfo {
    /// The directory: as configured, or in the hub's cache.
    pub path: String,
    /// "org/name@COMMIT", where it is in a hub's cache.
    pub source: Option<String>,
    /// Its share in a merge, else 1.
    pub coefficient: f64,
    /// Hex digest of its weights.
    pub digest: String,
    /// As applied.
    pub calibration: Option<Calibration>,
}

/// A loaded variant.
pub struct Variant {
    /// What is told of it.
    pub info: VariantInfo,
    /// Gives rewards.
    pub scorer: Scorer,
    /// Gives token ids; shared between variants with equal text files.
    pub tokenizer: Arc<SampleTokenizer>,
}

/// Loads variants, and shares between them what is equal: tensors and tokenizers.
#[derive(Default)]
pub struct Loader {
    store: TensorStore,
    /// By all that decides what they answer: the text, and what of it the model has rows for.
    tokenizers: HashMap<(Digest, usize, Option<usize>), Arc<SampleTokenizer>>,
    /// What is known to be in memory, or was found to fit there.
    counted: HashSet<Digest>,
}

/// One member's files, opened and read but for the weights.
struct Member {
    path: PathBuf,
    manifest: Manifest,
    config: CheckpointConfig,
    checkpoint: Checkpoint,
    tokenizer: SampleTokenizer,
}

impl Loader {
    /// Loads one variant. `progress` is told (bytes read, bytes in all) as often as something was read.
    pub fn load(
        &mut self,
        config: &VariantConfig,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Variant, ModelError> {
        let device = parse_device(&config.device)?;
        let mut members = open_members(config)?;
        for kinship in findings(&members)? {
            let path = members[kinship.member].path.display();
            tracing::warn!(variant = config.name, member = %path, "{}", kinship.finding);
        }

        let total: u64 = members.iter().map(|member| member.checkpoint.payload_bytes()).sum();
        let mut read = 0;
        let mut progress = |bytes: u64| {
            read += bytes;
            progress(read.min(total), total);
        };
        let dtype = config.dtype.resolve(&device, &members, &config.name);
        if device.is_cpu() {
            let needed = self.count_bytes(config, &members, dtype)?;
            let models = if config.mode == Mode::Ens { members.len() } else { 1 };
            memory::check(needed, memory::left(), models, dtype.name())
                .map_err(|error| in_member(&members[0].path, error.into()))?;
        }
        let store = &mut self.store;
        let loaded = match (device, dtype.tensor_dtype()) {
            (Device::Cpu, dtype) => load_family(config, &members, Cpu::new(dtype), store, &mut progress),
            (device, dtype) => {
                load_family(config, &members, Composed { device, dtype }, store, &mut progress)
            }
        }?;
        progress(total); // what was read of several copies or not at all counts as read

        let coefficients = coefficients(config);
        let infos: Vec<MemberInfo> = members
            .iter()
            .zip(&loaded.digests)
            .zip(&coefficients)
            .map(|((member, digest), &coefficient)| MemberInfo {
                path: member.path.display().to_string(),
                source: Snapshot::of(&member.path).map(|snapshot| snapshot.to_string()),
                coefficient,
                digest: hex(digest),
                calibration: member.manifest.calibration.filter(|_| config.mode == Mode::Ens),
            })
            .collect();
        let fingerprint = fingerprint(config, &members, &infos, &loaded.heads, dtype)?;
        let notes = notes(&members);
        let architecture = members[0].config.architecture.clone();
        // the members read the same tokens; none may get one that its embedding has no row for
        let narrowest = (0..members.len()).min_by_key(|&member| members[member].tokenizer.vocab_size());
        let tokenizer = members.swap_remove(narrowest.unwrap_or(0)).tokenizer;
        let key = (tokenizer.digest(), tokenizer.vocab_size(), tokenizer.type_vocab_size());
        let tokenizer = self.tokenizers.entry(key).or_insert_with(|| Arc::new(tokenizer)).clone();
        let (calibrations, reduction) = match config.mode {
            Mode::Warm => (vec![None], None),
            Mode::Ens => (infos.iter().map(|info| info.calibration).collect(), Some(config.reduction)),
        };
        let scorer = Scorer::new(loaded.family, calibrations, reduction);
        let info = VariantInfo {
            name: config.name.clone(),
            mode: config.mode,
            members: infos,
            reduction: if config.mode == Mode::Ens { config.reduction.to_string() } else { String::new() },
            dtype: dtype.name(),
            device: config.device.clone(),
            max_tokens: tokenizer.max_tokens(),
            fingerprint,
            architecture,
            pooling: loaded.heads[0].1.name(),
            text_rule: text_rule(&tokenizer),
            notes,
        };
        Ok(Variant { info, scorer, tokenizer })
    }

    /// Bytes of the weights that loading will keep, on a CPU. A tensor that several models have, or an earlier variant,
    /// counts once; it is known by a few of its values, so that never more is counted than will be kept.
    fn count_bytes(
        &mut self,
        config: &VariantConfig,
        members: &[Member],
        dtype: Dtype,
    ) -> Result<u64, ModelError> {
        const SAMPLE: usize = 64;
        let width = if dtype == Dtype::Bf16 { 2 } else { 4 }; // f16 is widened when it is loaded
        let sources = sources(config, members);
        let groups = groups(config, &sources);
        let mut needed = 0;
        for (group, member) in groups.iter().zip(members) {
            let plan =
                checked_plan(group, &member.config).map_err(|source| in_member(&member.path, source))?;
            for name in unread(&plan, group) {
                let mut identity = blake3::Hasher::new();
                identity.update(dtype.name().as_bytes());
                for (checkpoint, coefficient) in *group {
                    identity.update(&coefficient.to_le_bytes());
                    if checkpoint.is_updated(&name) {
                        // a part of the sum would take the whole of a factor
                        identity.update(format!("{} {name}", checkpoint.dir().display()).as_bytes());
                    } else {
                        let sample = checkpoint.sample(&name, SAMPLE)?;
                        identity.update(format!("{:?} {:?}", sample.dtype, sample.shape).as_bytes());
                        identity.update(sample.values.bytes());
                    }
                }
                if self.counted.insert(*identity.finalize().as_bytes()) {
                    let shape = group[0].0.info(&name).map(|info| info.shape.as_slice());
                    needed += shape.unwrap_or_default().iter().product::<usize>() as u64 * width;
                }
            }
        }
        Ok(needed)
    }

    /// Checks everything that can be checked without reading weights: files, configs, tokenizers, shapes. Returns the
    /// text rule.
    pub fn check(&mut self, config: &VariantConfig) -> Result<&'static str, ModelError> {
        Ok(text_rule(&self.checked_tokenizers(config)?[0].1))
    }

    /// The same, and gives the members' tokenizers and where they are from.
    pub(super) fn checked_tokenizers(
        &mut self,
        config: &VariantConfig,
    ) -> Result<Vec<(PathBuf, SampleTokenizer)>, ModelError> {
        parse_device(&config.device)?;
        let members = open_members(config)?;
        let sources = sources(config, &members);
        for (group, member) in groups(config, &sources).iter().zip(&members) {
            let check = || {
                let plan = checked_plan(group, &member.config)?;
                member.config.pooling(&plan.head)
            };
            check().map_err(|source| in_member(&member.path, source))?;
        }
        Ok(members.into_iter().map(|member| (member.path, member.tokenizer)).collect())
    }
}

fn open_members(config: &VariantConfig) -> Result<Vec<Member>, ModelError> {
    let members = config
        .members
        .iter()
        .map(|path| open_member(config, path).map_err(|source| in_member(path, source)))
        .collect::<Result<Vec<_>, _>>()?;
    let first = &members[0];
    if config.mode == Mode::Warm {
        let parts: Vec<_> = members
            .iter()
            .map(|member| (member.path.as_path(), &member.config, &member.checkpoint))
            .collect();
        compatible::check_members(&parts)?;
        for member in &members[1..] {
            compatible::check_tokens((&first.path, &first.tokenizer), (&member.path, &member.tokenizer))?;
        }
    }
    for member in &members[1..] {
        let differ = |what: &str| {
            tracing::warn!(
                variant = config.name,
                first = %first.path.display(),
                member = %member.path.display(),
                "members differ in {what}: the first one's is used"
            );
        };
        if member.tokenizer.digest() != first.tokenizer.digest() {
            if config.mode == Mode::Ens {
                return Err(ModelError::Unsupported(format!(
                    "the members of an ensemble read the same tokens, but {} and {} differ in tokenizer, chat template, \
                     text rule or length limit",
                    first.path.display(),
                    member.path.display()
                )));
            }
            differ("chat template, names of special tokens, text rule or length limit");
        }
        if config.mode == Mode::Ens && member.tokenizer.type_vocab_size() != first.tokenizer.type_vocab_size()
        {
            return Err(ModelError::Unsupported(format!(
                "the members of an ensemble read the same tokens, but {} and {} differ in token types \
                 (`type_vocab_size`)",
                first.path.display(),
                member.path.display()
            )));
        }
        if config.mode == Mode::Warm && !compatible::are_stored_alike(&first.checkpoint, &member.checkpoint) {
            tracing::warn!(
                variant = config.name,
                first = %first.path.display(),
                member = %member.path.display(),
                "members are stored in different precisions: the merge is as exact as the coarser one"
            );
        }
    }
    // members that are calibrated at all differ in it: no reason to worry
    if config.mode == Mode::Warm && members.iter().any(|member| member.manifest.calibration.is_some()) {
        tracing::info!(variant = config.name, "calibrations do not apply: one model has nothing to reduce");
    }
    for note in notes(&members) {
        tracing::info!(variant = config.name, "{note}");
    }
    Ok(members)
}

/// Opens a member: a checkpoint, or an adapter over `base`. What an adapter has no file for is as in its base, but the
/// calibration of another model's rewards.
pub fn open_files(
    path: &Path,
    base: Option<&Path>,
) -> Result<(Checkpoint, Manifest, CheckpointConfig), ModelError> {
    let checkpoint = Checkpoint::open_over(path, base)?;
    let mut manifest = Manifest::load(path)?;
    if let Some(base) = checkpoint.base() {
        manifest = manifest.or(Manifest { calibration: None, ..Manifest::load(base)? });
    }
    let config_path = checkpoint.dir_of("config.json").join("config.json");
    let mut config = CheckpointConfig::load(&config_path, &manifest)?;
    origin::settle(&checkpoint, &manifest, &mut config)?;
    Ok((checkpoint, manifest, config))
}

/// What turns samples into token ids for a member, up to its own limit, or to the one that is asked for: `max_tokens`,
/// else the manifest's.
///
/// Fails if the model has no position for the last of so many tokens. Rotary positions have no end, so such a limit
/// may lie beyond the length that the model was made for.
pub fn load_tokenizer(
    checkpoint: &Checkpoint,
    manifest: &Manifest,
    config: &CheckpointConfig,
    max_tokens: Option<usize>,
) -> Result<SampleTokenizer, ModelError> {
    let model_limit = config.backbone.max_tokens;
    let asked = max_tokens.map(|limit| ("max_tokens", limit));
    let asked = asked.or(manifest.max_tokens.map(|limit| ("`max_tokens` of rewarm.json", limit)));
    if let Some((place, limit)) = asked
        && limit > model_limit
    {
        if !config.backbone.has_endless_positions() {
            return Err(ModelError::Unsupported(format!(
                "{place} is {limit}, the model has positions for {model_limit} tokens"
            )));
        }
        tracing::info!(
            max_tokens = limit,
            made_for = model_limit,
            "the limit is above the length that config.json declares: rotary positions go on"
        );
    }
    if model_limit == 0 {
        return Err(ModelError::Unsupported(
            "`max_position_embeddings` leaves no room for a token: positions begin after `pad_token_id`"
                .to_owned(),
        ));
    }
    let options = TextOptions {
        vocab_size: config.backbone.vocab_size(),
        type_vocab_size: config.backbone.type_vocab_size(),
        max_tokens: model_limit,
        asked_max_tokens: asked.map(|(_, limit)| limit),
        rule: manifest.text_rule,
        default_rule: config.origin.text_rule.or(default_rule(&config.backbone)),
        ends: config.origin.ends,
        family: config.family().tokenizer,
        tokenizer_class: config.tokenizer_class.clone(),
    };
    let tokenizer = SampleTokenizer::load(checkpoint.text_dir(), &options)?;
    match &config.origin.end_doubt {
        Some(doubt) if tokenizer.rule() == Some(TextRule::Concatenation) => {
            Err(ModelError::Unsupported(doubt.clone()))
        }
        _ => Ok(tokenizer),
    }
}

/// How a prompt and a response are joined for a model without a chat template: what encoders are pretrained on; of a
/// decoder nothing is known.
fn default_rule(backbone: &BackbonePlan) -> Option<TextRule> {
    (!backbone.is_causal()).then_some(TextRule::SentencePair)
}

fn open_member(config: &VariantConfig, path: &Path) -> Result<Member, ModelError> {
    let (checkpoint, manifest, mut checkpoint_config) = open_files(path, config.base.as_deref())?;
    if config.pooling.is_some() {
        checkpoint_config.pooling = config.pooling;
    }
    let tokenizer = load_tokenizer(&checkpoint, &manifest, &checkpoint_config, config.max_tokens)?;
    Ok(Member { path: path.to_owned(), manifest, config: checkpoint_config, checkpoint, tokenizer })
}

/// What decided something about the members that their own config does not say; each once.
fn notes(members: &[Member]) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    for member in members {
        let end = member.tokenizer.end();
        let end = (end != TextEnd::AsIs)
            .then(|| format!("the end of texts is not as they are given: text_end {}", end.name()));
        let base = member.checkpoint.base().and_then(Snapshot::of).map(|base| format!("the base is {base}"));
        for note in member.config.origin.notes.iter().cloned().chain(end).chain(base) {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    notes
}

fn findings(members: &[Member]) -> Result<Vec<Kinship>, ModelError> {
    Ok(kinship::kinship(&members.iter().map(|member| &member.checkpoint).collect::<Vec<_>>())?)
}

fn text_rule(tokenizer: &SampleTokenizer) -> &'static str {
    tokenizer.rule().map_or("none", TextRule::name)
}

/// What is made of the members' weights, whatever form of the operations runs them.
struct LoadedFamily {
    family: Box<dyn Members>,
    /// Of each model.
    heads: Vec<(HeadKind, Pooling)>,
    /// Of each member.
    digests: Vec<Digest>,
}

fn load_family<O: Ops>(
    config: &VariantConfig,
    members: &[Member],
    ops: O,
    store: &mut TensorStore,
    progress: &mut dyn FnMut(u64),
) -> Result<LoadedFamily, ModelError> {
    let ops = Arc::new(ops);
    let models = load_models(config, members, &ops, store, progress)?;
    let heads = models.iter().map(|loaded| (loaded.head, loaded.model.head().pooling())).collect();
    let digests = models.iter().flat_map(|loaded| loaded.digests.iter().copied()).collect();
    let family = Ensemble::new(ops, models.into_iter().map(|loaded| loaded.model).collect());
    let (layers, of_members) = family.count_layers();
    if layers < of_members {
        tracing::info!(variant = config.name, layers, of_members, "members share layers");
    }
    Ok(LoadedFamily { family: Box::new(family), heads, digests })
}

/// A model, whose head it has, and the digests of the members it was made from.
struct Loaded<O: Ops> {
    model: RewardModel<O>,
    head: HeadKind,
    digests: Vec<Digest>,
}

/// The models of a variant.
fn load_models<O: Ops>(
    config: &VariantConfig,
    members: &[Member],
    ops: &Arc<O>,
    store: &mut TensorStore,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<Loaded<O>>, ModelError> {
    let sources = sources(config, members);
    let groups = groups(config, &sources);
    let mut models = Vec::with_capacity(groups.len());
    for (group, member) in groups.into_iter().zip(members) {
        let mut load = || {
            let plan = checked_plan(group, &member.config)?;
            let weights = Weights::new(&plan, group, ops, Some(store), progress);
            thread::scope(|scope| {
                let ahead = ReadAhead::start(scope, group, unread(&plan, group));
                let mut weights = weights.reading_ahead(Some(ahead));
                let model = RewardModel::load(&mut weights, &plan, &member.config)?;
                Ok(Loaded { model, head: plan.head.kind, digests: weights.finish()? })
            })
        };
        models.push(load().map_err(|source| in_member(&member.path, source))?);
    }
    Ok(models)
}

/// What each member has, and its share.
fn sources<'m>(config: &VariantConfig, members: &'m [Member]) -> Vec<(&'m Checkpoint, f64)> {
    members.iter().map(|member| &member.checkpoint).zip(coefficients(config)).collect()
}

/// What each model is made from.
fn groups<'s, 'm>(
    config: &VariantConfig,
    sources: &'s [(&'m Checkpoint, f64)],
) -> Vec<&'s [(&'m Checkpoint, f64)]> {
    match config.mode {
        Mode::Warm => vec![sources],
        Mode::Ens => sources.chunks(1).collect(),
    }
}

/// The plan of a model that is made from these members; refuses what can be refused without reading weights.
fn checked_plan(members: &[(&Checkpoint, f64)], config: &CheckpointConfig) -> Result<ModelPlan, ModelError> {
    let plan = layout::plan(members[0].0, config)?;
    layout::check(&plan, members.iter().map(|(checkpoint, _)| *checkpoint))?;
    Ok(plan)
}

/// The tensors of a plan whose digests are not known yet, in the order in which they are loaded.
fn unread(plan: &ModelPlan, members: &[(&Checkpoint, f64)]) -> Vec<String> {
    let is_known = |name: &str| members.iter().all(|(checkpoint, _)| checkpoint.known_digest(name).is_some());
    let names = plan.tensors.iter().map(|tensor| &tensor.name);
    names.filter(|name| !is_known(name)).cloned().collect()
}

fn coefficients(config: &VariantConfig) -> Vec<f64> {
    match (config.mode, &config.coefficients) {
        (Mode::Warm, Some(coefficients)) => coefficients.clone(),
        (Mode::Warm, None) => vec![1.0 / config.members.len() as f64; config.members.len()],
        (Mode::Ens, _) => vec![1.0; config.members.len()],
    }
}

/// Hex digest of everything that determines a reward: weights, config, head, pooling rule, tokenizer, template,
/// limit, reduction, calibration and dtype. Neither paths nor the variant's name count.
fn fingerprint(
    config: &VariantConfig,
    members: &[Member],
    infos: &[MemberInfo],
    heads: &[(HeadKind, Pooling)],
    dtype: Dtype,
) -> Result<String, ModelError> {
    let configs: Vec<_> = members.iter().map(|member| &member.config).collect();
    let parts: Vec<_> =
        infos.iter().map(|info| (&info.digest, info.coefficient.to_bits(), info.calibration)).collect();
    let content = serde_json::json!({
        "fingerprint_version": 2,
        "mode": config.mode,
        "members": parts,
        "configs": configs,
        "heads": heads,
        "reduction": (config.mode == Mode::Ens).then_some(config.reduction),
        "dtype": dtype.name(),
        "text": hex(&members[0].tokenizer.digest()),
    });
    Ok(blake3::hash(content.to_string().as_bytes()).to_hex().to_string())
}

fn in_member(path: &Path, source: ModelError) -> ModelError {
    ModelError::Member { path: path.to_owned(), source: Box::new(source) }
}

fn parse_device(name: &str) -> Result<Device, ModelError> {
    let unknown = || ModelError::Unsupported(format!("device `{name}`: expected cpu, cuda or cuda:N"));
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::new_cuda(0)?),
        _ => {
            let ordinal = name.strip_prefix("cuda:").ok_or_else(unknown)?;
            Ok(Device::new_cuda(ordinal.parse().map_err(|_| unknown())?)?)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    #[test]
    fn what_is_shared_takes_memory_once() {
        let path = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        let count = |loader: &mut Loader, mode, dtype, members: &[PathBuf]| {
            let config = VariantConfig::new("v", mode, members.to_vec());
            let members = open_members(&config).unwrap();
            loader.count_bytes(&config, &members, dtype).unwrap()
        };
        let fresh = |mode, dtype, members: &[PathBuf]| count(&mut Loader::default(), mode, dtype, members);
        let one = path("models/llama");
        let payload = Checkpoint::open(&one).unwrap().payload_bytes();
        assert_eq!(
            fresh(Mode::Warm, Dtype::F32, slice::from_ref(&one)),
            payload,
            "stored in f32, all of it used"
        );
        assert_eq!(fresh(Mode::Warm, Dtype::Bf16, slice::from_ref(&one)), payload / 2);
        assert_eq!(fresh(Mode::Ens, Dtype::F32, &[one.clone(), one.clone()]), payload);

        // members of a family differ in all that was trained
        let [a, b] = ["evaluate/member-0", "evaluate/member-1"].map(path);
        let sizes = [&a, &b].map(|member| fresh(Mode::Warm, Dtype::F32, slice::from_ref(member)));
        let both = fresh(Mode::Ens, Dtype::F32, &[a.clone(), b.clone()]);
        assert!(sizes[0] < both && both <= sizes[0] + sizes[1], "{sizes:?} {both}");
        assert_eq!(fresh(Mode::Warm, Dtype::F32, &[a.clone(), b.clone()]), sizes[0]);
        let mut loader = Loader::default();
        assert_eq!(count(&mut loader, Mode::Ens, Dtype::F32, &[a.clone(), b.clone()]), both);
        assert_eq!(count(&mut loader, Mode::Warm, Dtype::F32, &[a]), 0, "it is there");
        assert!(count(&mut loader, Mode::Warm, Dtype::Bf16, &[b]) > 0, "in another precision");
    }
}
