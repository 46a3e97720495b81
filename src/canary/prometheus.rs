//! Asks a Prometheus, or what speaks like one. Source: its HTTP API, `/api/v1/query`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use serde::Deserialize;
use serde::de::IgnoredAny;
use ureq::Agent;

/// A query that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where queries go.
pub struct Prometheus {
    url: String,
    agent: Agent,
    authorization: Option<String>,
}

/// One series and its value.
#[derive(Debug, Deserialize)]
pub(super) struct Sample {
    pub(super) metric: BTreeMap<String, String>,
    /// When, and what, as text.
    value: (f64, String),
}

impl Sample {
    pub(super) fn number(&self) -> Option<f64> {
        self.value.1.parse().ok().filter(|number: &f64| number.is_finite())
    }
}

#[derive(Deserialize)]
struct Answer {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", tag = "resultType", content = "result")]
enum Data {
    Vector(Vec<Sample>),
    Scalar((f64, String)),
    Matrix(IgnoredAny),
    String(IgnoredAny),
}

impl Prometheus {
    /// At `url`, which may have a path; `token` goes along as a bearer's.
    pub fn new(url: &str, token: Option<&str>) -> Self {
        let config = Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false);
        Self {
            url: url.trim_end_matches('/').to_owned(),
            agent: Agent::new_with_config(config.build()),
            authorization: token.map(|token| format!("Bearer {}", token.trim())),
        }
    }

    /// All series of a query.
    pub(super) fn samples(&self, query: &str) -> anyhow::Result<Vec<Sample>> {
        let mut request = self.agent.get(format!("{}/api/v1/query", self.url)).query("query", query);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let asked = || format!("ask {} for {query}", self.url);
        let mut answer = request.call().with_context(asked)?;
        let status = answer.status();
        let text = answer.body_mut().read_to_string().with_context(asked)?;
        let answer: Answer = serde_json::from_str(&text)
            .with_context(|| format!("{}: it answered {status}, and no JSON of Prometheus", asked()))?;
        ensure!(answer.status == "success", "{}: {}", asked(), answer.error);
        match answer.data {
            Some(Data::Vector(samples)) => Ok(samples),
            Some(Data::Scalar(value)) => Ok(vec![Sample { metric: BTreeMap::new(), value }]),
            _ => bail!("{}: the answer is neither a vector nor a scalar", asked()),
        }
    }

    /// The value of a query that has one at most; none where that is not a number.
    pub(super) fn number(&self, query: &str) -> anyhow::Result<Option<f64>> {
        match &self.samples(query)?[..] {
            [] => Ok(None),
            [one] => Ok(one.number()),
            more => bail!("{query} has {} values instead of one", more.len()),
        }
    }

    /// The first of what a query finds, in words.
    pub(super) fn finds(&self, query: &str) -> anyhow::Result<Option<String>> {
        let samples = self.samples(query)?;
        Ok(samples.first().map(|Sample { metric, value }| format!("{metric:?} {}", value.1)))
    }
}
