//! All servers of a deployment: told alike, and asked what they do.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use anyhow::Context;
use anyhow::ensure;

use crate::canary::NotSet;
use crate::canary::Weights;
use crate::canary::prometheus::Prometheus;
use crate::client::AdminClient;
use crate::client::Set;

/// Shares that differ by less are the same: a server says them as quotients of weights.
const SAME: f64 = 1e-6;

/// The servers.
pub struct Replicas {
    admin: AdminClient,
    /// Matchers of their series.
    matchers: String,
    moved: Moved,
}

/// The servers that may not be as before: told something else, and not yet told to go back. Its clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Moved(Arc<Mutex<BTreeSet<SocketAddr>>>);

impl Moved {
    /// Where they are.
    pub fn servers(&self) -> Vec<SocketAddr> {
        self.locked().iter().copied().collect()
    }

    fn locked(&self) -> MutexGuard<'_, BTreeSet<SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replicas {
    /// Those whose admin services `admin` reaches, and whose series have `matchers`.
    pub fn new(admin: AdminClient, matchers: String) -> Self {
        Self { admin, matchers, moved: Moved::default() }
    }

    /// Those that may not be as before, now and whenever it is asked.
    pub fn moved(&self) -> Moved {
        self.moved.clone()
    }

    /// What every server routes by; fails unless all agree, and Prometheus sees as many as are told.
    pub fn weights(&self, prometheus: &Prometheus, canary: &str) -> anyhow::Result<Weights> {
        let samples = prometheus.samples(&format!("rewarm_route_weight{{{}}}", self.matchers))?;
        let mut by_server: BTreeMap<String, Weights> = BTreeMap::new();
        for sample in &samples {
            let label = |name: &str| sample.metric.get(name).map(String::as_str).unwrap_or_default();
            let server = format!("{} {}", label("job"), label("instance"));
            let weight =
                sample.number().with_context(|| format!("{server} has a weight that is no number"))?;
            by_server.entry(server).or_default().insert(label("variant").to_owned(), weight);
        }
        let mut servers = by_server.into_iter();
        let (first, weights) =
            servers.next().context("Prometheus knows no server: rewarm_route_weight has no series")?;
        for (server, other) in servers {
            let agrees = weights.len() == other.len()
                && weights
                    .iter()
                    .all(|(name, weight)| other.get(name).is_some_and(|other| (other - weight).abs() < SAME));
            ensure!(agrees, "{first} routes by {weights:?} and {server} by {other:?}: make them agree first");
        }
        ensure!(
            weights.contains_key(canary),
            "the servers have no variant `{canary}`: {}",
            weights.keys().cloned().collect::<Vec<_>>().join(", ")
        );
        let (seen, told) = (samples.len() / weights.len(), self.admin.servers()?.addresses().len());
        ensure!(
            seen == told,
            "Prometheus sees {seen} servers and --admin reaches {told}: all must be told alike (--admin NAME:PORT takes all \
             addresses of a name; --matchers picks the series)"
        );
        Ok(weights)
    }

    /// Routes like this on every server that routes by one of `known`; the first of these is what was before.
    pub fn set(&self, weights: &Weights, known: &[Weights]) -> Result<(), NotSet> {
        let servers = self.admin.servers();
        let servers =
            servers.map_err(|error| NotSet { taken: Vec::new(), failed: vec![format!("{error:#}")] })?;
        let is_back = known.first() == Some(weights);
        if !is_back {
            self.moved.locked().extend(servers.addresses());
        }
        let mut not_set = NotSet::default();
        for (address, outcome) in self.admin.set_routing(&servers, weights, known) {
            let is_ours = match outcome {
                Set::Done => !is_back,
                Set::Taken(problem) => {
                    not_set.taken.push(problem);
                    false
                }
                Set::Failed(problem) => {
                    not_set.failed.push(problem);
                    continue;
                }
            };
            if !is_ours {
                self.moved.locked().remove(&address);
            }
        }
        if not_set == NotSet::default() { Ok(()) } else { Err(not_set) }
    }
}
