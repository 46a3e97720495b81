//! What must hold while the share rises: queries to Prometheus about the canary and about what it takes over.

use std::time::Duration;

use crate::canary::prometheus::Prometheus;

/// What is looked at, over the last `window`.
#[derive(Clone, Debug, PartialEq)]
pub struct Guards {
    /// The variant whose share rises; the others are what it is compared with.
    pub canary: String,
    /// Further matchers of all series, such as `job="rewarm"`; or empty.
    pub matchers: String,
    /// How far back.
    pub window: Duration,
    /// Fewer requests of the canary within the window say nothing.
    pub min_requests: f64,
    /// By how much the canary's share of requests that failed, and of samples without a reward, may exceed the others'.
    pub max_errors: f64,
    /// How many times as long its 99th percentile may be as the others'.
    pub max_slowdown: f64,
    /// Of the pairs that shadows have scored too, the share that the canary may order otherwise; none: it is not looked at.
    pub max_disagreement: Option<f64>,
    /// Queries of the owner's own: one that finds something is a reason to go back, as in an alert rule.
    pub alerts: Vec<String>,
}

/// What guards say.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    /// All hold: in words, with their numbers.
    Holds(String),
    /// One does not.
    Broken(String),
    /// Too little is known, and why.
    Unknown(String),
}

/// Statuses that are the server's doing.
const FAILURES: &str = "UNKNOWN|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|DATA_LOSS|RESOURCE_EXHAUSTED";

impl Guards {
    /// The first of the owner's queries that finds something, and what.
    pub fn alert(&self, prometheus: &Prometheus) -> anyhow::Result<Option<String>> {
        self.found(|query| prometheus.finds(query))
    }

    fn found(
        &self,
        finds: impl Fn(&str) -> anyhow::Result<Option<String>>,
    ) -> anyhow::Result<Option<String>> {
        for alert in &self.alerts {
            if let Some(found) = finds(alert)? {
                return Ok(Some(format!("{alert} finds {found}")));
            }
        }
        Ok(None)
    }

    /// Asks, and decides.
    pub fn judge(&self, prometheus: &Prometheus) -> Judgement {
        self.decide(|query| prometheus.number(query), |query| prometheus.finds(query))
    }

    /// `number`: of a query with one value, none where there is none or it is not a number.
    fn decide(
        &self,
        number: impl Fn(&str) -> anyhow::Result<Option<f64>>,
        finds: impl Fn(&str) -> anyhow::Result<Option<String>>,
    ) -> Judgement {
        let decided = || -> anyhow::Result<Judgement> {
            if let Some(found) = self.found(finds)? {
                return Ok(Judgement::Broken(found));
            }
            let requests = number(&self.requests())?.unwrap_or(0.0);
            if requests < self.min_requests {
                let (window, needed) = (self.window, self.min_requests);
                return Ok(Judgement::Unknown(format!(
                    "the canary answered {requests:.0} requests in {window:?}, fewer than {needed:.0}"
                )));
            }
            let unknown =
                |what| Ok(Judgement::Unknown(format!("Prometheus has no number for the canary's {what}")));
            let mut told = Vec::new();
            for (what, query) in [
                ("failed requests", self.failed_requests()),
                ("samples without reward", self.failed_samples()),
            ] {
                let of = |is_canary| number(&query.replace(WHO, &self.who(is_canary)));
                let Some(canary) = of(true)? else { return unknown(what) };
                // who has nothing left to compare with has passed the steps before
                let others = of(false)?.unwrap_or(0.0);
                let line = format!("{what} {:.2}%, others {:.2}%", 100.0 * canary, 100.0 * others);
                if canary - others > self.max_errors {
                    return Ok(Judgement::Broken(line));
                }
                told.push(line);
            }
            let p99 = |is_canary| number(&self.p99().replace(WHO, &self.who(is_canary)));
            let Some(canary) = p99(true)? else { return unknown("p99") };
            if let Some(others) = p99(false)? {
                let line = format!("p99 {:.0} ms, others {:.0} ms", 1e3 * canary, 1e3 * others);
                if canary > self.max_slowdown * others {
                    return Ok(Judgement::Broken(format!(
                        "{line}: more than {} times as long",
                        self.max_slowdown
                    )));
                }
                told.push(line);
            }
            if let Some(max) = self.max_disagreement {
                let Some(share) = number(&self.disagreement())? else {
                    return Ok(Judgement::Unknown("no shadow has scored pairs of the canary".to_owned()));
                };
                let line = format!("{:.1}% of the pairs are ordered otherwise", 100.0 * share);
                if share > max {
                    return Ok(Judgement::Broken(line));
                }
                told.push(line);
            }
            Ok(Judgement::Holds(told.join("; ")))
        };
        decided().unwrap_or_else(|error| Judgement::Unknown(format!("{error:#}")))
    }

    fn who(&self, is_canary: bool) -> String {
        let operator = if is_canary { "=" } else { "!=" };
        format!("variant{operator}\"{}\",variant!=\"\"{}", self.canary, self.further())
    }

    fn further(&self) -> String {
        if self.matchers.is_empty() { String::new() } else { format!(",{}", self.matchers) }
    }

    fn window(&self) -> String {
        format!("[{}s]", self.window.as_secs())
    }

    fn requests(&self) -> String {
        format!("sum(increase(rewarm_requests_total{{{}}}{}))", self.who(true), self.window())
    }

    fn failed_requests(&self) -> String {
        let w = self.window();
        format!(
            "sum(rate(rewarm_requests_total{{code=~\"{FAILURES}\",{WHO}}}{w})) / sum(rate(rewarm_requests_total{{{WHO}}}{w}))"
        )
    }

    fn failed_samples(&self) -> String {
        let w = self.window();
        format!(
            "sum(rate(rewarm_samples_total{{outcome=~\"not_finite|failed\",{WHO}}}{w})) / \
             sum(rate(rewarm_samples_total{{{WHO}}}{w}))"
        )
    }

    fn p99(&self) -> String {
        let w = self.window();
        format!(
            "histogram_quantile(0.99, sum by (le) (rate(rewarm_request_duration_seconds_bucket{{{WHO}}}{w})))"
        )
    }

    fn disagreement(&self) -> String {
        let (w, further, canary) = (self.window(), self.further(), &self.canary);
        let pairs = |more: &str| {
            let of =
                |label: &str| format!("rewarm_shadow_pairs_total{{{label}=\"{canary}\"{more}{further}}}{w}");
            format!("sum(rate({}) or rate({}))", of("variant"), of("shadow"))
        };
        format!("{} / {}", pairs(",agree=\"false\""), pairs(""))
    }
}

/// In a query: whose series.
const WHO: &str = "@WHO@";

#[cfg(test)]
mod tests {
    use super::*;

    fn guards() -> Guards {
        Guards {
            canary: "ens".to_owned(),
            matchers: "job=\"rewarm\"".to_owned(),
            window: Duration::from_secs(300),
            min_requests: 50.0,
            max_errors: 0.01,
            max_slowdown: 1.5,
            max_disagreement: Some(0.1),
            alerts: vec!["ALERTS{alertname=\"X\"}".to_owned()],
        }
    }

    /// Requests, failures, p99 and disagreement of the canary, beside others that are well.
    fn judge(requests: f64, failed: f64, p99: Option<f64>, disagreement: Option<f64>) -> Judgement {
        let number = |query: &str| {
            assert!(query.contains("job=\"rewarm\"") && query.contains("[300s]"), "{query}");
            let is_canary = query.contains("variant=\"ens\"");
            Ok(match query {
                _ if query.contains("increase") => Some(requests),
                _ if query.contains("shadow_pairs") => disagreement,
                _ if query.contains("quantile") => {
                    if is_canary {
                        p99
                    } else {
                        Some(0.1)
                    }
                }
                _ => Some(if is_canary { failed } else { 0.001 }),
            })
        };
        guards().decide(number, |_| Ok(None))
    }

    #[test]
    fn each_guard_breaks_by_itself() {
        assert!(matches!(judge(100.0, 0.002, Some(0.12), Some(0.05)), Judgement::Holds(_)));
        assert!(matches!(judge(100.0, 0.002, None, Some(0.05)), Judgement::Unknown(_)));
        for (judgement, expected) in [
            (judge(100.0, 0.02, Some(0.1), Some(0.0)), "failed requests 2.00%, others 0.10%"),
            (judge(100.0, 0.0, Some(0.16), Some(0.0)), "p99 160 ms, others 100 ms"),
            (judge(100.0, 0.0, Some(0.1), Some(0.2)), "20.0% of the pairs"),
        ] {
            let Judgement::Broken(reason) = judgement else { panic!("{judgement:?}") };
            assert!(reason.contains(expected), "{reason}");
        }
        assert!(matches!(judge(49.0, 0.02, Some(9.0), Some(1.0)), Judgement::Unknown(_)));
        assert!(matches!(judge(100.0, 0.0, Some(0.1), None), Judgement::Unknown(_)));
    }

    #[test]
    fn an_alert_of_the_owners_breaks_and_an_answer_that_does_not_come_says_nothing() {
        let found = guards().decide(|_| Ok(Some(0.0)), |_| Ok(Some("{pod=\"a\"} 1".to_owned())));
        assert!(matches!(found, Judgement::Broken(reason) if reason.contains("ALERTS")));
        let failed = guards().decide(|_| Err(anyhow::anyhow!("connection refused")), |_| Ok(None));
        assert_eq!(failed, Judgement::Unknown("connection refused".to_owned()));
    }
}
