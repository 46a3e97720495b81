//! What serves now: variants with their lanes, and the routing between them. Replaced in one step, as a whole.
//!
//! A request takes a reference to it once, and keeps it until it is answered. So a reload closes nothing:
//! the last request of the old models drops them, and with them their lanes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::Call;
use crate::engine::Engine;
use crate::engine::Lane;
use crate::engine::Priority;
use crate::metrics::Shadowing;
use crate::model::ModelError;
use crate::model::chain;
use crate::model::device::Device;
use crate::model::golden::GoldenRewards;
use crate::model::variant::FingerprintParts;
use crate::model::variant::Variant;
use crate::model::variant::VariantConfig;
use crate::model::variant::VariantInfo;
use crate::ops::batch::Sequence;
use crate::service::routing::Routing;
use crate::service::routing::ShadowRouting;
use crate::service::self_test;
use crate::text::Input;
use crate::text::SampleTokenizer;
use crate::text::TextRule;
use crate::text::TokenizedSample;
use crate::text::Truncation;
use crate::values::reference::Reference;

/// Which models to serve: what a reload reads again.
#[derive(Clone, Debug, PartialEq)]
pub struct Models {
    /// What is served, never nothing.
    pub variants: Vec<VariantConfig>,
    /// Relative weights by variant name; a variant that is not named is only reached by its name.
    pub weights: BTreeMap<String, f64>,
    /// Who scores a fraction of the requests too.
    pub shadow: Option<ShadowRouting>,
}

/// Where models come from. A trait, so that tests can serve models that are slow, fail, or answer NaN.
pub trait Source: Send + Sync + 'static {
    /// Reads the configuration again, for a reload. The error is told to the operator.
    fn reread(&self) -> Result<Models, String>;

    /// Loads one variant after the other. Called on a thread of its own; may take minutes.
    fn load(&self, variants: &[VariantConfig]) -> Result<Vec<Loaded>, LoadError>;
}

/// A variant, and what it is known to answer.
pub struct Loaded {
    /// The variant.
    pub variant: Variant,
    /// Of each model, in configured order; none: nothing is tested.
    pub golden: Vec<Option<GoldenRewards>>,
}

impl From<Variant> for Loaded {
    /// Without golden rewards.
    fn from(variant: Variant) -> Self {
        Self { variant, golden: Vec::new() }
    }
}

/// Why models do not serve.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be loaded.
    #[error("load variant `{variant}`")]
    Model {
        /// Its name.
        variant: String,
        /// What is wrong with it, or with several members.
        #[source]
        source: ModelError,
    },
    /// They cannot be loaded beside each other.
    #[error("load the variants")]
    Together(#[source] ModelError),
    /// It was loaded, but its first forward gave no usable reward.
    #[error("warm up variant `{variant}`: {problem}")]
    WarmUp {
        /// Its name.
        variant: String,
        /// What went wrong.
        problem: String,
    },
    /// It gives other rewards than it is known to.
    #[error("self-test of variant `{variant}`: {problem}")]
    SelfTest {
        /// Its name.
        variant: String,
        /// Which member, which sample, and what may be the cause.
        problem: String,
    },
    /// What it shadows has other tokens.
    #[error(
        "routing.shadow: a shadow scores the same tokens, and `{shadow}` has another tokenizer than `{variant}`"
    )]
    Shadow {
        /// Who would shadow.
        shadow: String,
        /// Whom.
        variant: String,
    },
    /// Several of them cannot, each for a reason of its own.
    #[error("{} problems\n  {}", .0.len(), .0.iter().map(|error| chain(error)).collect::<Vec<_>>().join("\n  "))]
    Several(Vec<LoadError>),
    /// A card failed, and nothing in this process brings it back.
    #[error("a device was lost, and the process ends for its supervisor to start it anew: {0}")]
    DeviceLost(String),
    /// A defect of ours; the panic's own message is in the log.
    #[error("loading the models panicked")]
    Panicked,
}

impl LoadError {
    /// What the driver said of a card that is lost for this process, if that is what happened.
    pub fn fault(&self) -> Option<String> {
        match self {
            Self::Model { source, .. } | Self::Together(source) => source.fault(),
            Self::Several(errors) => errors.iter().find_map(Self::fault),
            Self::DeviceLost(fault) => Some(fault.clone()),
            Self::WarmUp { .. } | Self::SelfTest { .. } | Self::Shadow { .. } | Self::Panicked => None,
        }
    }

    /// Whether there was too little memory.
    pub(super) fn lacks_memory(&self) -> bool {
        match self {
            Self::Model { source, .. } | Self::Together(source) => source.lacks_memory(),
            Self::Several(errors) => errors.iter().any(Self::lacks_memory),
            Self::WarmUp { .. }
            | Self::SelfTest { .. }
            | Self::Shadow { .. }
            | Self::DeviceLost(_)
            | Self::Panicked => false,
        }
    }
}

/// One variant that serves.
pub(super) struct ServedVariant {
    pub(super) info: VariantInfo,
    pub(super) tokenizer: Arc<SampleTokenizer>,
    pub(super) lane: Lane,
    /// What it answered on the references of `rewarm calibrate`.
    pub(super) reference: Reference,
}

impl ServedVariant {
    /// Which models it and its shadow are, in one word.
    pub(super) fn models_with(&self, shadow: &Self) -> String {
        format!("{}/{}", self.info.fingerprint, shadow.info.fingerprint)
    }
}

/// All that serves.
#[derive(Clone)]
pub(super) struct Serving {
    /// As configured.
    pub(super) configs: Arc<Vec<VariantConfig>>,
    pub(super) variants: Arc<BTreeMap<String, Arc<ServedVariant>>>,
    pub(super) routing: Routing,
}

/// Each variant's fingerprint, and what that is made of: without the models, which a reload may have to give back.
pub(super) type Functions = BTreeMap<String, (String, FingerprintParts)>;

/// A variant that is another function than before.
pub(super) struct Change<'a> {
    pub(super) variant: &'a str,
    /// Its fingerprint, if it was there.
    pub(super) before: Option<&'a str>,
    /// Its fingerprint, if it is there.
    pub(super) after: Option<&'a str>,
    /// What differs, where both are.
    pub(super) parts: Vec<&'static str>,
}

impl Serving {
    /// What function each variant is.
    pub(super) fn functions(&self) -> Functions {
        let function =
            |info: &VariantInfo| (info.name.clone(), (info.fingerprint.clone(), info.parts.clone()));
        self.infos().map(function).collect()
    }

    /// What is another function than in `before`, which may be nothing.
    pub(super) fn changes<'a>(&'a self, before: &'a Functions) -> Vec<Change<'a>> {
        let mut changes = Vec::new();
        for info in self.infos() {
            let was = before.get(&info.name);
            if was.is_none_or(|(fingerprint, _)| *fingerprint != info.fingerprint) {
                changes.push(Change {
                    variant: &info.name,
                    before: was.map(|(fingerprint, _)| &**fingerprint),
                    after: Some(&info.fingerprint),
                    parts: was.map(|(_, parts)| info.changed_parts(parts)).unwrap_or_default(),
                });
            }
        }
        for (variant, (fingerprint, _)) in before {
            if !self.variants.contains_key(variant) {
                changes.push(Change { variant, before: Some(fingerprint), after: None, parts: Vec::new() });
            }
        }
        changes
    }

    /// Loads `models`, gives each a lane, and returns when each has answered a first forward with a finite
    /// reward, and what has golden rewards agrees with them.
    pub(super) async fn load(
        source: Arc<dyn Source>,
        engine: &Engine,
        models: Models,
    ) -> Result<Self, LoadError> {
        let Models { variants, weights, shadow } = models;
        let configs = Arc::new(variants);
        let of_task = configs.clone();
        let loading = tokio::task::spawn_blocking(move || source.load(&of_task));
        let loaded = loading.await.map_err(|_| LoadError::Panicked)??;
        let mut served = BTreeMap::new();
        for Loaded { variant: Variant { info, scorer, others, tokenizer, reference }, golden } in loaded {
            // members that are spread run on the thread of their first device
            let names = info.placement.devices.iter().map(Device::name);
            let copies = names.zip(std::iter::once(scorer).chain(others)).collect();
            let lane = engine.add_lane_on(&info.name, copies);
            warm_up(&lane, &tokenizer)
                .await
                .map_err(|problem| LoadError::WarmUp { variant: info.name.clone(), problem })?;
            self_test::run(&lane, engine.config().max_queue_tokens, &tokenizer, &info, golden)
                .await
                .map_err(|problem| LoadError::SelfTest { variant: info.name.clone(), problem })?;
            tracing::info!(
                variant = info.name,
                architecture = info.architecture,
                members = info.members.len(),
                dtype = info.dtype.name(),
                device = %info.placement,
                max_tokens = info.max_tokens,
                text_rule = TextRule::name_of(info.text_rule),
                fingerprint = info.fingerprint,
                "loaded variant"
            );
            served.insert(info.name.clone(), Arc::new(ServedVariant { info, tokenizer, lane, reference }));
        }
        if let Some(shadow) = &shadow {
            reads_the_same(&shadow.variant, &served).await?;
        }
        Ok(Self { configs, variants: Arc::new(served), routing: Routing::new(&weights, shadow) })
    }

    /// What would serve the same.
    fn models(&self) -> Models {
        let (weights, shadow) = (self.routing.weights().clone(), self.routing.shadow().cloned());
        Models { variants: self.configs.to_vec(), weights, shadow }
    }

    /// Ends it: what was admitted is finished, then the models give back their memory. Returns what would serve the same.
    pub(super) async fn give_back(self: Arc<Self>) -> Models {
        let models = self.models();
        let of_lanes: Vec<_> = self.variants.values().map(|served| served.lane.health()).collect();
        drop(self);
        for mut health in of_lanes {
            while health.changed().await.is_ok() {}
        }
        models
    }

    /// Who may be shadowed by whom, and which models they are.
    pub(super) fn shadowings(&self) -> impl Iterator<Item = (Shadowing, String)> {
        let shadow = self.routing.shadow().and_then(|shadow| self.variants.get(&shadow.variant));
        let others = self.variants.values().filter_map(move |of| Some((of, shadow?)));
        others.filter(|(of, shadow)| !Arc::ptr_eq(of, shadow)).map(|(of, shadow)| {
            let names = Shadowing { variant: of.info.name.clone(), shadow: shadow.info.name.clone() };
            (names, of.models_with(shadow))
        })
    }

    /// The variants' descriptions, by name.
    pub(super) fn infos(&self) -> impl Iterator<Item = &VariantInfo> {
        self.variants.values().map(|served| &served.info)
    }
}

/// A shadow scores the tokens of others: it must read them as they do.
pub(super) async fn reads_the_same(
    shadow: &str,
    served: &BTreeMap<String, Arc<ServedVariant>>,
) -> Result<(), LoadError> {
    const PROBE: &str = "Zürich, 3.14 e-mails\n\tto \u{4f60}\u{597d} — the \u{1f600} same?";
    let Some(shadow) = served.get(shadow) else { return Ok(()) };
    for (name, other) in served {
        if Arc::ptr_eq(&shadow.tokenizer, &other.tokenizer) {
            continue;
        }
        let tokens = |of: &Arc<ServedVariant>| {
            let tokenize = |tokenizer: &SampleTokenizer| {
                let probe = Input::Formatted(PROBE.to_owned());
                tokenizer.tokenize(&probe, Truncation::Right).map(|sample| sample.token_ids).ok()
            };
            let tokenizer = of.tokenizer.clone();
            async move { self_test::in_time(&tokenizer, tokenize).await.ok().flatten() }
        };
        if tokens(shadow).await != tokens(other).await {
            return Err(LoadError::Shadow { shadow: shadow.info.name.clone(), variant: name.clone() });
        }
    }
    Ok(())
}

/// The first forward: allocates what later ones reuse, and proves that a reward comes out.
async fn warm_up(lane: &Lane, tokenizer: &Arc<SampleTokenizer>) -> Result<(), String> {
    let text = Input::Text { prompt: "Is it warm?".to_owned(), response: "It is.".to_owned() };
    let formatted = Input::Formatted("Is it warm? It is.".to_owned());
    // A template may demand more than one turn of each: such a model still scores formatted text.
    let tokenize = move |tokenizer: &SampleTokenizer| {
        let tokenized = tokenizer.tokenize(&text, Truncation::Right);
        tokenized.or_else(|_| tokenizer.tokenize(&formatted, Truncation::Right))
    };
    let TokenizedSample { token_ids, type_ids, .. } =
        self_test::in_time(tokenizer, tokenize).await?.map_err(|error| error.to_string())?;
    let call = Call { priority: Priority::Interactive, deadline: None };
    let scored =
        lane.score(vec![Sequence { token_ids, type_ids }], call).await.map_err(|error| error.to_string())?;
    match scored.outcomes.into_iter().next() {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("no outcome".to_owned()),
    }
}
