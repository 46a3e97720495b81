//! Asks a Prometheus, or what speaks like one. Source: its HTTP API, `/api/v1/query`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use anyhow::anyhow;
use anyhow::bail;
use anyhow::ensure;
use serde::Deserialize;
use serde::de::IgnoredAny;
use ureq::Agent;
use ureq::tls::Certificate;
use ureq::tls::PemItem;
use ureq::tls::RootCerts;
use ureq::tls::TlsConfig;

/// A query that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where queries go.
pub struct Prometheus {
    url: String,
    /// The same without a name and a password.
    shown: String,
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
    /// At `url`, which may have a path; `token` goes along as a bearer's, and `ca`, in PEM, is who signs its certificate in
    /// place of the public roots.
    pub fn new(url: &str, token: Option<&str>, ca: Option<&str>) -> Self {
        let roots = match ca {
            None => RootCerts::WebPki,
            Some(ca) => {
                let certificate = |item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                };
                let certificates = ureq::tls::parse_pem(ca.as_bytes()).filter_map(certificate);
                RootCerts::from(certificates.collect::<Vec<Certificate<'static>>>())
            }
        };
        let url = url.trim_end_matches('/').to_owned();
        let authority = url.find("://").map_or(0, |at| at + "://".len());
        let path = url[authority..].find('/').map_or(url.len(), |at| authority + at);
        let mut shown = url.clone();
        if let Some(at) = url[authority..path].rfind('@') {
            shown.replace_range(authority..=authority + at, "");
        }
        let config = Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .tls_config(TlsConfig::builder().root_certs(roots).build());
        Self {
            url,
            shown,
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
        let asked = || format!("ask {} for {query}", self.shown);
        let mut answer = request.call().map_err(in_words).with_context(asked)?;
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

/// With what helps where nobody vouches for the certificate.
fn in_words(error: ureq::Error) -> anyhow::Error {
    let problem = error.to_string();
    let is_distrusted = problem.contains("invalid peer certificate");
    let cure = if is_distrusted { ": name who signs it with --prometheus-ca" } else { "" };
    anyhow!("{problem}{cure}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_the_url_goes_along_and_is_not_told() {
        for (url, shown) in
            [("https://me:s@cret@host:9/p@th/", "https://host:9/p@th"), ("http://host:9", "http://host:9")]
        {
            let prometheus = Prometheus::new(url, None, None);
            assert_eq!(
                (prometheus.url.as_str(), prometheus.shown.as_str()),
                (url.trim_end_matches('/'), shown)
            );
        }
    }
}
