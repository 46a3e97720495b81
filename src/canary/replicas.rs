//! All servers of a deployment: told alike, and asked what they do.

use std::collections::BTreeMap;

use anyhow::Context;
use anyhow::ensure;

use crate::canary::Weights;
use crate::canary::prometheus::Prometheus;
use crate::client::AdminClient;

/// Shares that differ by less are the same: a server says them as quotients of weights.
const SAME: f64 = 1e-6;

/// The servers.
pub struct Replicas {
    admin: AdminClient,
    /// Matchers of their series.
    matchers: String,
}

impl Replicas {
    /// Those whose admin services `admin` reaches, and whose series have `matchers`.
    pub fn new(admin: AdminClient, matchers: String) -> Self {
        Self { admin, matchers }
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
        let (seen, told) = (samples.len() / weights.len(), self.admin.servers()?.len());
        ensure!(
            seen == told,
            "Prometheus sees {seen} servers and --admin reaches {told}: all must be told alike (--admin NAME:PORT takes all \
             addresses of a name; --matchers picks the series)"
        );
        Ok(weights)
    }

    /// Routes like this on every server.
    pub fn set(&self, weights: &Weights) -> anyhow::Result<()> {
        self.admin.set_routing(weights)
    }
}
