//! What a run against a server found, and its tables.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::bench::Label;
use crate::bench::Spread;
use crate::bench::load::Outcome;
use crate::bench::load::Percentiles;
use crate::bench::report::digits;
use crate::bench::report::spread;
use crate::offline::table::Table;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Rounds that count.
    pub rounds: usize,
    /// Whether the run was stopped before its last round.
    pub is_interrupted: bool,
    /// In their order.
    pub variants: Vec<Served>,
    /// Each ensemble beside the merge of the same members.
    pub ratios: Vec<Ratio>,
}

/// What one variant did.
#[derive(Clone, Debug, Serialize)]
pub struct Served {
    /// Which.
    #[serde(flatten)]
    pub label: Label,
    /// Samples a second in bare forwards; absent where the models are not in this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bare_samples_per_second: Option<Spread>,
    /// Samples a second of the closed loop over the bare ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub served_over_bare: Option<f64>,
    /// Latencies flatter: see the module.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<Loop>,
    /// Latencies count from when a request was due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<Loop>,
    /// One small sample at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub single: Option<Single>,
}

/// What came of one kind of load.
#[derive(Clone, Debug, Serialize)]
pub struct Loop {
    /// Sent in all counted rounds.
    pub requests: usize,
    /// Requests a second that were sent, over the rounds.
    pub requests_per_second: Spread,
    /// Samples a second that got a reward, over the rounds.
    pub samples_per_second: Spread,
    /// Their tokens a second, over the rounds.
    pub tokens_per_second: Spread,
    /// Of all answered requests of all rounds; absent when none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<Percentiles>,
    /// Requests that were not answered, by status.
    pub errors: BTreeMap<String, usize>,
    /// Samples of answered requests that got an error instead of a reward.
    pub failed_samples: usize,
}

/// One small sample at a time.
#[derive(Clone, Debug, Serialize)]
pub struct Single {
    /// Of the sample.
    pub tokens: usize,
    /// How many were served.
    pub samples: usize,
    /// Median of the served ones.
    pub served_p50_ms: f64,
    /// Median of bare forwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bare_p50_ms: Option<f64>,
    /// Median of (served - the bare one before it).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overhead_p50_ms: Option<f64>,
}

/// An ensemble beside the merge of the same members.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// Name of the ensemble.
    pub ens: String,
    /// Name of the merge of the same members.
    pub warm: String,
    /// Samples a second of the merge over those of the ensemble, in the closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_cost: Option<f64>,
    /// Median latency of the ensemble over that of the merge, in the open loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_p50: Option<f64>,
}

impl Loop {
    /// Of what came of each round; `None` of none.
    pub(super) fn new<'a>(rounds: impl Iterator<Item = &'a Outcome> + Clone) -> anyhow::Result<Option<Self>> {
        if rounds.clone().next().is_none() {
            return Ok(None);
        }
        let requests = |round: &Outcome| round.latencies.len() + round.errors.values().sum::<usize>();
        let per_second = |count: &dyn Fn(&Outcome) -> usize| {
            Spread::of(rounds.clone().map(|round| count(round) as f64 / round.seconds))
        };
        let mut errors = BTreeMap::new();
        for (status, count) in rounds.clone().flat_map(|round| &round.errors) {
            *errors.entry(status.clone()).or_default() += count;
        }
        let latencies = rounds.clone().flat_map(|round| round.latencies.iter().copied());
        Ok(Some(Self {
            requests: rounds.clone().map(requests).sum(),
            requests_per_second: per_second(&requests),
            samples_per_second: per_second(&|round| round.samples),
            tokens_per_second: per_second(&|round| round.tokens),
            latency_ms: Percentiles::of(latencies)?,
            errors,
            failed_samples: rounds.map(|round| round.failed_samples).sum(),
        }))
    }
}

impl Single {
    /// Of seconds served and bare, one after the other; `None` of none.
    pub(super) fn new(singles: &[(f64, Option<f64>)], tokens: usize) -> Option<Self> {
        let median_ms = |seconds: Vec<f64>| (!seconds.is_empty()).then(|| Spread::of(seconds).median * 1e3);
        Some(Self {
            tokens,
            samples: singles.len(),
            served_p50_ms: median_ms(singles.iter().map(|(served, _)| *served).collect())?,
            bare_p50_ms: median_ms(singles.iter().filter_map(|(_, bare)| *bare).collect()),
            overhead_p50_ms: median_ms(
                singles.iter().filter_map(|(served, bare)| Some(served - (*bare)?)).collect(),
            ),
        })
    }
}

impl Ratio {
    pub(super) fn new(ens: &Served, warm: &Served) -> Self {
        let rate = |served: &Served| served.closed.as_ref().map(|closed| closed.samples_per_second.median);
        let p50 = |served: &Served| Some(served.open.as_ref()?.latency_ms?.p50);
        // A loop in which all was refused has no cost.
        let over = |a: Option<f64>, b: Option<f64>| Some(a? / b?).filter(|ratio| ratio.is_finite());
        Self {
            ens: ens.label.name.clone(),
            warm: warm.label.name.clone(),
            closed_cost: over(rate(warm), rate(ens)),
            open_p50: over(p50(ens), p50(warm)),
        }
    }
}

// ---- tables ----

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let loops = |kind: &dyn Fn(&Served) -> Option<&Loop>| -> Vec<(&Served, &Loop)> {
            let both = |served| Some((served, kind(served)?));
            self.variants.iter().filter_map(both).map(|(served, of): (&Served, _)| (served, of)).collect()
        };
        let closed = loops(&|served| served.closed.as_ref());
        if !closed.is_empty() {
            writeln!(f, "Closed loop (a caller waits for its answer; stalls are seen by few requests):\n")?;
            writeln!(f, "{}", load_table(&closed, true))?;
        }
        let open = loops(&|served| served.open.as_ref());
        if !open.is_empty() {
            writeln!(f, "Open loop (latency from when a request was due):\n")?;
            writeln!(f, "{}", load_table(&open, false))?;
        }
        let singles: Vec<(&Served, &Single)> =
            self.variants.iter().filter_map(|served| Some((served, served.single.as_ref()?))).collect();
        if !singles.is_empty() {
            writeln!(f, "One small sample at a time, median ms:\n")?;
            writeln!(f, "{}", single_table(&singles))?;
        }
        for Ratio { ens, warm, closed_cost, open_p50 } in &self.ratios {
            if let Some(cost) = closed_cost {
                writeln!(f, "{ens} costs {} times {warm} in the closed loop", digits(*cost))?;
            }
            if let Some(ratio) = open_p50 {
                writeln!(f, "{ens} takes {} times as long as {warm} in the open loop (p50)", digits(*ratio))?;
            }
        }
        Ok(())
    }
}

fn load_table(loops: &[(&Served, &Loop)], is_closed: bool) -> Table {
    let mut headers = vec!["variant", "models", "dtype"];
    headers.extend(if is_closed {
        &["bare samples/s", "samples/s", "served / bare"][..]
    } else {
        &["requests/s", "samples/s"]
    });
    headers.extend(["requests", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms", "errors"]);
    let mut table = Table::new(&headers);
    let maybe = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for (served, of) in loops {
        let Served { label, bare_samples_per_second: bare, served_over_bare, .. } = served;
        let mut row = vec![label.name.clone(), label.kind(), label.dtype.clone()];
        if is_closed {
            row.push(maybe(bare.as_ref().map(spread)));
            row.push(spread(&of.samples_per_second));
            row.push(maybe(served_over_bare.map(digits)));
        } else {
            row.push(spread(&of.requests_per_second));
            row.push(spread(&of.samples_per_second));
        }
        row.push(of.requests.to_string());
        let latencies = of.latency_ms.map(|ms| [ms.p50, ms.p90, ms.p99, ms.p99_9, ms.max].map(digits));
        row.extend(latencies.unwrap_or_else(|| ["-"; 5].map(str::to_owned)));
        row.push(errors(of));
        table.row(row);
    }
    table
}

fn single_table(singles: &[(&Served, &Single)]) -> Table {
    let mut table = Table::new(&["variant", "models", "dtype", "tokens", "bare", "served", "overhead"]);
    let maybe = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), digits);
    for (Served { label, .. }, single) in singles {
        table.row([
            label.name.clone(),
            label.kind(),
            label.dtype.clone(),
            single.tokens.to_string(),
            maybe(single.bare_p50_ms),
            digits(single.served_p50_ms),
            maybe(single.overhead_p50_ms),
        ]);
    }
    table
}

/// "0", or "3 of 40: RESOURCE_EXHAUSTED 3".
fn errors(of: &Loop) -> String {
    let count: usize = of.errors.values().sum();
    let mut text = match count {
        0 => "0".to_owned(),
        _ => {
            let by_status: Vec<String> =
                of.errors.iter().map(|(status, count)| format!("{status} {count}")).collect();
            format!("{count} of {}: {}", of.requests, by_status.join(", "))
        }
    };
    if of.failed_samples > 0 {
        text += &format!("; {} samples", of.failed_samples);
    }
    text
}
