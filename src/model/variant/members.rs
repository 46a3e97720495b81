//! The files of a variant's members: opened, and held against each other.

use std::path::Path;
use std::path::PathBuf;

use crate::checkpoint::Checkpoint;
use crate::hub::Snapshot;
use crate::merge::experts;
use crate::merge::kinship;
use crate::merge::kinship::Kinship;
use crate::model::ModelError;
use crate::model::compatible;
use crate::model::config::CheckpointConfig;
use crate::model::manifest::Manifest;
use crate::model::origin;
use crate::model::plan::BackbonePlan;
use crate::model::plan::ModelPlan;
use crate::model::variant::config::Mode;
use crate::model::variant::config::VariantConfig;
use crate::text::SampleTokenizer;
use crate::text::TextEnd;
use crate::text::TextOptions;
use crate::text::TextRule;
use crate::text::compare;

/// One member's files, opened and read but for the weights.
pub(super) struct Member {
    pub(super) path: PathBuf,
    pub(super) manifest: Manifest,
    pub(super) config: CheckpointConfig,
    pub(super) checkpoint: Checkpoint,
    pub(super) tokenizer: SampleTokenizer,
}

impl Member {
    fn part(&self) -> compatible::Candidate<'_> {
        let Self { path, checkpoint, manifest, config, .. } = self;
        compatible::Candidate { path, checkpoint, manifest, config }
    }
}

/// The members of a variant that can be opened, and all that is wrong with them and the others.
pub(super) fn open_members(config: &VariantConfig) -> (Vec<Member>, Vec<ModelError>) {
    let (mut members, mut problems) = (Vec::new(), Vec::new());
    for path in &config.members {
        match open_member(config, path) {
            Ok(member) => members.push(member),
            Err(source) => problems.push(in_member(path, source)),
        }
    }
    if let Some((first, others)) = members.split_first() {
        problems.extend(others.iter().filter_map(|member| compare(config, first, member).err()));
    }
    (members, problems)
}

/// Refuses a member that does not go with the first; in what it may differ is told.
fn compare(config: &VariantConfig, first: &Member, member: &Member) -> Result<(), ModelError> {
    let [first_path, path] = [first, member].map(|member| member.path.display());
    match config.mode {
        Mode::Warm => {
            compatible::check_member(&first.part(), &member.part())?;
            compatible::check_tokens((&first.path, &first.tokenizer), (&member.path, &member.tokenizer))?;
            for difference in compare::differences(&first.tokenizer, &member.tokenizer)? {
                tracing::warn!(
                    variant = config.name,
                    first = %first_path,
                    member = %path,
                    difference,
                    "members differ in their texts: the first one's is used"
                );
            }
            if !compatible::are_stored_alike(&first.checkpoint, &member.checkpoint) {
                tracing::warn!(
                    variant = config.name,
                    first = %first_path,
                    member = %path,
                    "members are stored in different precisions: the merge is as exact as the coarser one"
                );
            }
        }
        Mode::Ens => {
            compatible::check_same_tokens(&first.tokenizer, &member.tokenizer)?;
            let types = |member: &Member| member.tokenizer.type_vocab_size();
            if types(first) != types(member) {
                return Err(ModelError::Unsupported(format!(
                    "models that are given the same tokens must have the same token types (`type_vocab_size` of \
                     config.json), but {first_path} has {}, and {path} has {}",
                    types(first).unwrap_or(0),
                    types(member).unwrap_or(0)
                )));
            }
        }
    }
    Ok(())
}

/// Tells what is odd about members that go together.
pub(super) fn tell(config: &VariantConfig, members: &[Member]) {
    // members that are calibrated at all differ in it: no reason to worry
    if config.mode == Mode::Warm && members.iter().any(|member| member.manifest.calibration.is_some()) {
        tracing::info!(variant = config.name, "calibrations do not apply: one model has nothing to reduce");
    }
    for note in notes(members) {
        tracing::info!(variant = config.name, "{note}");
    }
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
        reward_token: config.backbone.head.appended_token,
        family: config.family().tokenizer,
        tokenizer_class: config.tokenizer_class.clone(),
    };
    let tokenizer = SampleTokenizer::load(checkpoint.text_dir(), &options)?;
    if config.family().takes_types_for_words() && tokenizer.gives_token_types() {
        return Err(ModelError::Unsupported(format!(
            "`model_input_names` of tokenizer_config.json has \"token_type_ids\": {} has none, and transformers adds the \
             embeddings of the words 0 and 1 in their place. Take it out",
            config.model_type
        )));
    }
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
pub(super) fn notes(members: &[Member]) -> Vec<String> {
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

/// What is odd about their kinship.
pub(super) fn findings(
    config: &VariantConfig,
    members: &[Member],
    plans: &[ModelPlan],
) -> Result<Vec<Kinship>, ModelError> {
    let checkpoints: Vec<_> = members.iter().map(|member| &member.checkpoint).collect();
    let mut findings = kinship::kinship(&checkpoints)?;
    if config.mode == Mode::Warm {
        findings.extend(experts::misplaced(&checkpoints, &plans[0].expert_tensors())?);
    }
    Ok(findings)
}

/// An error of one member, unless it names one already.
pub(super) fn in_member(path: &Path, source: ModelError) -> ModelError {
    match source {
        ModelError::Member { .. } => source,
        source => ModelError::Member { path: path.to_owned(), source: Box::new(source) },
    }
}
