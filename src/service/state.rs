//! What all handlers share: the phase of the server's life, what serves now, and the limits that hold for all
//! callers together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::engine::Engine;
use crate::metrics;
use crate::metrics::DeviceMemory;
use crate::metrics::ModelInfo;
use crate::metrics::drift;
use crate::model::chain;
use crate::model::variant::VariantInfo;
use crate::service::budget::Budget;
use crate::service::models::Change;
use crate::service::models::LoadError;
use crate::service::models::Models;
use crate::service::models::Serving;
use crate::service::models::Source;
use crate::service::routing::Routing;
use crate::service::routing::weight_problems;
use crate::service::status::ServiceError;
use crate::service::tokenize::TokenizerThreads;
use crate::service::witness::Witness;

/// Limits that hold for all callers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest message, encoded and not compressed.
    pub max_message_bytes: usize,
    /// How long a message may take from its first byte to its last.
    pub message_time: Duration,
    /// More samples in one request are refused.
    pub max_samples_per_request: usize,
    /// What the requests in flight may hold together, from their first byte to the last of their answers; more
    /// are refused.
    pub max_in_flight_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_bytes: 32 << 20,
            message_time: Duration::from_secs(60),
            max_samples_per_request: 1024,
            max_in_flight_bytes: 512 << 20,
        }
    }
}

/// How a reload makes room for the new models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reload {
    /// They are loaded beside the old ones, which serve meanwhile.
    #[default]
    Beside,
    /// The old ones give back their memory first. Nothing serves meanwhile, and if the new ones cannot, the old ones are
    /// loaded again.
    Replace,
}

/// Shared by all handlers.
pub(super) struct State {
    pub(super) limits: Limits,
    /// Told of each request that has ended.
    pub(super) witness: Arc<Witness>,
    reload: Reload,
    pub(super) engine: Engine,
    pub(super) tokenizers: TokenizerThreads,
    source: Arc<dyn Source>,
    /// None while the first models load.
    serving: ArcSwapOption<Serving>,
    /// The variants that served before, while others take their place and none serves.
    replaced: Mutex<Vec<String>>,
    /// Held by whoever replaces what serves.
    replacing: tokio::sync::Mutex<()>,
    /// Told that the operator wants a reload, now or after the one that is under way: many are one.
    pub(super) reload_wanted: Notify,
    pub(super) budget: Budget,
    /// Every call that is being served.
    pub(super) calls: TaskTracker,
    /// Somebody asked the server to stop: it is not ready any more, but still takes requests.
    pub(super) leaving: CancellationToken,
    /// No new work from here on.
    pub(super) draining: CancellationToken,
    /// All is answered: connections close.
    pub(super) closing: CancellationToken,
    /// Told whenever readiness or a variant's health may have changed.
    pub(super) health_changed: Arc<Notify>,
}

impl State {
    pub(super) fn new(
        limits: Limits,
        reload: Reload,
        engine: Engine,
        tokenizers: TokenizerThreads,
        source: Arc<dyn Source>,
        witness: Witness,
    ) -> Self {
        Self {
            limits,
            witness: Arc::new(witness),
            reload,
            engine,
            tokenizers,
            source,
            serving: ArcSwapOption::empty(),
            replaced: Mutex::default(),
            replacing: tokio::sync::Mutex::new(()),
            reload_wanted: Notify::new(),
            budget: Budget::new(limits.max_in_flight_bytes),
            calls: TaskTracker::new(),
            leaving: CancellationToken::new(),
            draining: CancellationToken::new(),
            closing: CancellationToken::new(),
            health_changed: Arc::new(Notify::new()),
        }
    }

    /// Runs a call as a task of its own: known until it ends, aborted when its caller goes, and a panic in it
    /// is only its own error.
    pub(super) async fn run<T, F>(
        self: &Arc<Self>,
        call: impl FnOnce(Arc<Self>) -> F,
    ) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ServiceError>> + Send + 'static,
    {
        let call = call(self.clone()).in_current_span();
        AbortOnDropHandle::new(self.calls.spawn(call)).await.unwrap_or(Err(ServiceError::Panicked))
    }

    /// What serves now, or why nothing does.
    pub(super) fn serving(&self) -> Result<Arc<Serving>, ServiceError> {
        if self.draining.is_cancelled() {
            return Err(ServiceError::Draining);
        }
        self.serving.load_full().ok_or(ServiceError::Loading)
    }

    /// Each variant, and whether callers should come for it: its forwards succeed, and the server is not about
    /// to stop.
    pub(super) fn variants_health(&self) -> BTreeMap<String, bool> {
        let Some(serving) = self.serving.load_full() else {
            return self.replaced().iter().map(|name| (name.clone(), false)).collect();
        };
        let variants = serving.variants.iter();
        let is_staying = !self.leaving.is_cancelled();
        variants.map(|(name, served)| (name.clone(), is_staying && *served.lane.health().borrow())).collect()
    }

    fn replaced(&self) -> MutexGuard<'_, Vec<String>> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether callers should come for some variant.
    pub(super) fn is_ready(&self) -> bool {
        self.variants_health().values().any(|is_healthy| *is_healthy)
    }

    /// Loads the first models and begins to serve them.
    pub(super) async fn load(&self, models: Models) -> Result<(), LoadError> {
        let _replacing = self.replacing.lock().await;
        let serving = self.load_beside(models).await?;
        self.serve(serving);
        Ok(())
    }

    /// Reads the configuration again, loads its models beside the ones that serve, and swaps in one step. On
    /// any error the old ones serve on. Refused while another one is under way.
    pub(super) async fn reload(&self) -> Result<Arc<Serving>, ServiceError> {
        let result = match self.replacing.try_lock() {
            Ok(_replacing) => self.replace_models().await,
            // While the first models load, the lock is theirs: the caller is told so.
            Err(_) => Err(self.serving().err().unwrap_or(ServiceError::ReloadUnderWay)),
        };
        told(result)
    }

    /// As [`Self::reload`], after what is under way.
    pub(super) async fn reload_after_others(&self) -> Result<Arc<Serving>, ServiceError> {
        let _replacing = self.replacing.lock().await;
        told(self.replace_models().await)
    }

    /// Under the lock.
    async fn replace_models(&self) -> Result<Arc<Serving>, ServiceError> {
        if self.draining.is_cancelled() {
            return Err(ServiceError::Draining);
        }
        let source = self.source.clone();
        let reread = tokio::task::spawn_blocking(move || source.reread());
        let models = reread.await.map_err(|_| ServiceError::Panicked)?.map_err(ServiceError::ReloadFailed)?;
        if self.reload == Reload::Replace {
            return self.replace_in_place(models).await;
        }
        let loaded = self.load_beside(models).await.map_err(|error| {
            let mut problem = chain(&error);
            if error.lacks_memory() {
                problem += BESIDE;
            }
            ServiceError::ReloadFailed(problem)
        });
        Ok(self.serve(loaded?))
    }

    /// Ends what serves, then loads other models; if they cannot serve, the old ones again.
    async fn replace_in_place(&self, models: Models) -> Result<Arc<Serving>, ServiceError> {
        let old = match self.serving.load_full() {
            None => None, // another reload has failed altogether
            Some(serving) => {
                *self.replaced() = serving.variants.keys().cloned().collect();
                self.serving.store(None);
                self.health_changed.notify_one();
                tracing::info!("the old models give back their memory, nothing serves until others do");
                Some(serving.give_back().await)
            }
        };
        let problem = match self.load_beside(models).await {
            Ok(serving) => return Ok(self.serve(serving)),
            Err(error) => chain(&error),
        };
        let Some(old) = old else { return Err(ServiceError::NothingServes(problem)) };
        tracing::warn!(error = problem, "the new models cannot serve, the old ones are loaded again");
        match self.load_beside(old).await {
            Ok(serving) => {
                self.serve(serving);
                Err(ServiceError::ReloadFailed(problem))
            }
            Err(again) => {
                let again = chain(&again);
                Err(ServiceError::NothingServes(format!(
                    "{problem}; and the old ones cannot be loaded again: {again}"
                )))
            }
        }
    }

    /// Loads models that nobody is served by yet.
    async fn load_beside(&self, models: Models) -> Result<Serving, LoadError> {
        let loaded = Serving::load(self.source.clone(), &self.engine, models).await;
        let serving = loaded.inspect_err(|error| {
            if let Some(fault) = error.fault() {
                self.engine.lose(&fault);
            }
        })?;
        for served in serving.variants.values() {
            let mut health = served.lane.health();
            let health_changed = self.health_changed.clone();
            // Ends with the lane.
            tokio::spawn(async move {
                while health.changed().await.is_ok() {
                    health_changed.notify_one();
                }
            });
        }
        Ok(serving)
    }

    /// Replaces the routing weights; where some are `expected`, only if they are one of these.
    pub(super) fn set_routing(
        &self,
        weights: BTreeMap<String, f64>,
        expected: &[BTreeMap<String, f64>],
    ) -> Result<Arc<Serving>, ServiceError> {
        let Ok(_replacing) = self.replacing.try_lock() else { return Err(ServiceError::ReloadUnderWay) };
        let serving = self.serving()?;
        let problems = weight_problems(&weights, serving.variants.keys().map(String::as_str));
        if !problems.is_empty() {
            return Err(ServiceError::field("weights", problems.join(", ")));
        }
        let routing = Routing::new(&weights, serving.routing.shadow().cloned());
        if routing == serving.routing {
            return Ok(serving); // said again, for servers that may have started anew
        }
        if !expected.is_empty() && !expected.iter().any(|weights| serving.routing.is_by(weights)) {
            return Err(ServiceError::OtherWeights { actual: serving.routing.shares() });
        }
        tracing::info!(weights = ?routing.weights(), "routing changed");
        let Serving { configs, variants, .. } = (*serving).clone();
        Ok(self.serve(Serving { configs, variants, routing }))
    }

    /// The one step in which everything is replaced.
    fn serve(&self, serving: Serving) -> Arc<Serving> {
        let models: Vec<ModelInfo> = serving.infos().map(model_info).collect();
        for model in &models {
            metrics::register_variant(&model.variant, model.num_members);
        }
        serving.variants.values().for_each(|served| served.lane.show());
        for served in serving.variants.values() {
            drift::watch(&served.info.name, &served.info.fingerprint, served.reference);
        }
        serving.shadowings().for_each(|(names, models)| names.register(&models));
        metrics::models_served(&models);
        metrics::device_memory(&memory_of(serving.infos()));
        metrics::routing_changed(serving.routing.weights());
        let serving = Arc::new(serving);
        let before = self.serving.swap(Some(serving.clone()));
        if let Some(before) = &before {
            for Change { variant, before, after, parts } in serving.changes(&before.functions()) {
                let parts = parts.join(", ");
                tracing::info!(variant, before, after, changed = parts, "the fingerprint has changed");
            }
        }
        self.health_changed.notify_one();
        serving
    }
}

/// What helps where two generations do not fit.
const BESIDE: &str = "; the new models are loaded beside the old ones: with `reload = \"replace\"` below [server] those give \
                      back their memory first, and nothing is served meanwhile";

/// Counts and logs how a reload ended.
fn told(result: Result<Arc<Serving>, ServiceError>) -> Result<Arc<Serving>, ServiceError> {
    match &result {
        Ok(_) => {
            metrics::reload_finished(metrics::Reload::Succeeded);
            tracing::info!("reloaded");
        }
        Err(error) => {
            metrics::reload_finished(metrics::Reload::Failed);
            tracing::warn!(%error, "reload failed");
        }
    }
    result
}

/// Of each device what was left last.
fn memory_of<'a>(infos: impl Iterator<Item = &'a VariantInfo>) -> Vec<DeviceMemory> {
    let mut memory: BTreeMap<String, DeviceMemory> = BTreeMap::new();
    let placed = infos.flat_map(|info| info.placement.devices.iter().zip(&info.placement.left));
    for (device, &left) in placed {
        let total = device.card().map(|card| card.memory);
        let known =
            memory.entry(device.name()).or_insert(DeviceMemory { device: device.name(), total, left });
        known.left = [known.left, left].into_iter().flatten().min();
    }
    memory.into_values().collect()
}

fn model_info(info: &VariantInfo) -> ModelInfo {
    ModelInfo {
        variant: info.name.clone(),
        mode: info.mode.name().to_owned(),
        num_members: info.members.len(),
        dtype: info.dtype.name().to_owned(),
        device: info.placement.to_string(),
        fingerprint: info.fingerprint.clone(),
        architecture: info.architecture.clone(),
    }
}
