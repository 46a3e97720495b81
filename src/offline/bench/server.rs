//! `rewarm bench server`: load on a server, beside bare forwards of the same samples where the models are in
//! this process.
//!
//! In each round each variant, in turn, gets: its samples in bare forwards; the same samples in a closed loop;
//! in an open loop, when a rate is given; and one small sample at a time, bare and served alternately. See
//! [`load`](crate::offline::bench::load) for what the two loops can and cannot tell.

use std::collections::BTreeMap;

use anyhow::ensure;
use serde::Serialize;

use crate::model::batch::Sequence;
use crate::model::variant::Variant;
use crate::offline::bench::Control;
use crate::offline::bench::Label;
use crate::offline::bench::Spread;
use crate::offline::bench::Stop;
use crate::offline::bench::batches;
use crate::offline::bench::check_fits;
use crate::offline::bench::ens_and_warm;
use crate::offline::bench::lengths::Lengths;
use crate::offline::bench::lengths::random_ids;
use crate::offline::bench::load::Outcome;
use crate::offline::bench::load::Pace;
use crate::offline::bench::load::Percentiles;
use crate::offline::bench::load::Target;
use crate::offline::bench::load::poisson;
use crate::offline::bench::noise::Noise;
use crate::offline::bench::report::Table;
use crate::offline::bench::report::digits;
use crate::offline::bench::report::spread;
use crate::offline::bench::take_turns;
use crate::offline::bench::time_forwards;
use crate::offline::bench::tokenize;
use crate::text::Input;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names of the server's variants, in the order in which they take turns.
    pub variants: Vec<String>,
    /// The samples of a round.
    pub lengths: Lengths,
    /// Random token ids are below it, where the models are not in this process to tell.
    pub vocab_size: usize,
    /// Of random token ids and of arrivals.
    pub seed: u64,
    /// Of a bare batch.
    pub max_batch_tokens: usize,
    /// In one request.
    pub samples_per_request: usize,
    /// Requests of a round; the samples are used over again. As many as the samples fill when absent.
    pub requests: Option<usize>,
    /// Of the closed loop; 0: none.
    pub callers: usize,
    /// Requests a second of the open loop; none when absent.
    pub rate: Option<f64>,
    /// Small samples of a round that go alone; 0: none.
    pub singles: usize,
    /// Tokens of a small sample.
    pub single_tokens: usize,
}

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

/// A variant in this process, for bare forwards, with the samples as it reads them.
struct Bare<'a> {
    variant: &'a Variant,
    sequences: Vec<Sequence>,
    small: Vec<Sequence>,
}

/// What one turn of one variant gave.
struct Turn {
    bare_seconds: Option<f64>,
    closed: Option<Outcome>,
    open: Option<Outcome>,
    /// Seconds of each small sample: served, and bare.
    singles: Vec<(f64, Option<f64>)>,
}

/// Measures all variants of the plan on the same samples, in turns. `here` are the same models in this process,
/// where they are.
pub fn run(
    target: &mut dyn Target,
    here: &[Variant],
    plan: &Plan,
    control: &mut Control<'_>,
) -> anyhow::Result<Report> {
    let labels = labels(target.variants()?, &plan.variants)?;
    for label in &labels {
        check_fits(label, plan.lengths.longest(), "--lengths")?;
        check_fits(label, if plan.singles > 0 { plan.single_tokens } else { 0 }, "--single-tokens")?;
    }
    let smallest = here.iter().map(|variant| variant.tokenizer.vocab_size()).min();
    let vocab_size = smallest.unwrap_or(plan.vocab_size);
    let mut inputs = plan.lengths.inputs(vocab_size, plan.seed);
    // Bare and served are the same samples, also when not all of them are asked for.
    inputs.truncate(plan.requests.map_or(usize::MAX, |requests| requests * plan.samples_per_request));
    let small = vec![random_ids(&mut Noise::new(plan.seed), plan.single_tokens, vocab_size)];
    let bare = (labels.iter())
        .map(|label| {
            let Some(variant) = here.iter().find(|variant| variant.info.name == label.name) else {
                return Ok(None);
            };
            let (sequences, small) = (tokenize(variant, &inputs)?, tokenize(variant, &small)?);
            Ok(Some(Bare { variant, sequences, small }))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let requests = plan.group(&inputs);

    let names: Vec<String> = labels.iter().map(|label| label.name.clone()).collect();
    let turns = take_turns(control, &names, |index, round, stop| {
        plan.turn(target, &names[index], bare[index].as_ref(), &requests, &small, round as u64, stop)
    })?;

    let rounds = turns.of[0].len();
    let variants = (labels.into_iter().zip(turns.of))
        .map(|(label, turns)| served(label, &turns, inputs.len(), plan))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let ratios = ens_and_warm(variants.iter().map(|variant| &variant.label))
        .into_iter()
        .map(|(ens, warm)| Ratio::new(&variants[ens], &variants[warm]))
        .collect();
    Ok(Report { rounds, is_interrupted: turns.is_interrupted, variants, ratios })
}

/// The labels of these names, in this order.
fn labels(of_server: Vec<Label>, names: &[String]) -> anyhow::Result<Vec<Label>> {
    if names.is_empty() {
        ensure!(!of_server.is_empty(), "the server has no variant: it may still be loading, ask again");
        return Ok(of_server);
    }
    (names.iter())
        .map(|name| {
            let found = of_server.iter().find(|label| label.name == *name).cloned();
            found.ok_or_else(|| {
                let there: Vec<&str> = of_server.iter().map(|label| label.name.as_str()).collect();
                anyhow::anyhow!("--variant {name}: the server has {}: name one of them", there.join(", "))
            })
        })
        .collect()
}

impl Plan {
    /// The requests of a round.
    fn group(&self, inputs: &[Input]) -> Vec<Vec<Input>> {
        let filled = inputs.len().div_ceil(self.samples_per_request);
        match self.requests {
            None => inputs.chunks(self.samples_per_request).map(<[_]>::to_vec).collect(),
            Some(requests) if requests <= filled => {
                inputs.chunks(self.samples_per_request).take(requests).map(<[_]>::to_vec).collect()
            }
            Some(requests) => {
                let mut samples = inputs.iter().cycle().cloned();
                (0..requests).map(|_| samples.by_ref().take(self.samples_per_request).collect()).collect()
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one turn needs all that a round has, and is called once")]
    fn turn(
        &self,
        target: &mut dyn Target,
        variant: &str,
        bare: Option<&Bare<'_>>,
        requests: &[Vec<Input>],
        small: &[Input],
        round: u64,
        stop: &Stop,
    ) -> anyhow::Result<Option<Turn>> {
        let mut turn = Turn { bare_seconds: None, closed: None, open: None, singles: Vec::new() };
        if let Some(bare) = bare.filter(|_| self.callers > 0) {
            let batches = batches(&bare.sequences, self.max_batch_tokens);
            turn.bare_seconds = time_forwards(bare.variant, &batches, false, stop)?;
        }
        if self.callers > 0 && !stop.is_set() {
            turn.closed = target.load(variant, requests, &Pace::Closed { callers: self.callers }, stop)?;
        }
        if let Some(rate) = self.rate.filter(|_| !stop.is_set()) {
            let due = poisson(rate, requests.len(), self.seed.wrapping_add(round));
            turn.open = target.load(variant, requests, &Pace::Open { due }, stop)?;
        }
        let one = [small.to_vec()];
        for _ in 0..self.singles {
            let bare_seconds = match bare {
                Some(bare) => time_forwards(bare.variant, &batches(&bare.small, usize::MAX), false, stop)?,
                None => None,
            };
            let outcome = target.load(variant, &one, &Pace::Closed { callers: 1 }, stop)?;
            if stop.is_set() {
                break;
            }
            let served = outcome.unwrap_or_default().latencies;
            turn.singles.extend(served.first().map(|latency| (latency.as_secs_f64(), bare_seconds)));
        }
        Ok((!stop.is_set()).then_some(turn))
    }
}

fn served(label: Label, turns: &[Turn], samples: usize, plan: &Plan) -> anyhow::Result<Served> {
    let bare: Vec<f64> = turns.iter().filter_map(|turn| turn.bare_seconds).collect();
    let bare = (!bare.is_empty()).then(|| Spread::of(bare.iter().map(|seconds| samples as f64 / seconds)));
    let closed = Loop::new(turns.iter().filter_map(|turn| turn.closed.as_ref()))?;
    let open = Loop::new(turns.iter().filter_map(|turn| turn.open.as_ref()))?;
    let singles: Vec<(f64, Option<f64>)> =
        turns.iter().flat_map(|turn| turn.singles.iter().copied()).collect();
    Ok(Served {
        label,
        served_over_bare: (closed.as_ref().zip(bare.as_ref()))
            .map(|(closed, bare)| closed.samples_per_second.median / bare.median),
        bare_samples_per_second: bare,
        closed,
        open,
        single: Single::new(&singles, plan.single_tokens),
    })
}

impl Loop {
    fn new<'a>(rounds: impl Iterator<Item = &'a Outcome> + Clone) -> anyhow::Result<Option<Self>> {
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
    fn new(singles: &[(f64, Option<f64>)], tokens: usize) -> Option<Self> {
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
    fn new(ens: &Served, warm: &Served) -> Self {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn plan() -> Plan {
        Plan {
            variants: Vec::new(),
            lengths: Lengths::Tokens(vec![3, 4, 5, 6, 7]),
            vocab_size: 100,
            seed: 0,
            max_batch_tokens: 10,
            samples_per_request: 2,
            requests: None,
            callers: 2,
            rate: Some(10.0),
            singles: 3,
            single_tokens: 4,
        }
    }

    /// A server that answers each request in 10 ms for each of its tokens, one request at a time, and refuses
    /// every third.
    struct Slow {
        asked: usize,
        paces: Vec<Pace>,
    }

    fn label(name: &str, mode: &str) -> Label {
        Label {
            name: name.to_owned(),
            mode: mode.to_owned(),
            members: vec!["a".to_owned(), "b".to_owned()],
            dtype: "f32".to_owned(),
            device: "cpu".to_owned(),
            architecture: "None".to_owned(),
            max_tokens: 16,
            fingerprint: "f".to_owned(),
        }
    }

    impl Target for Slow {
        fn variants(&mut self) -> anyhow::Result<Vec<Label>> {
            Ok(vec![label("warm", "warm"), label("ens", "ens")])
        }

        fn load(
            &mut self,
            variant: &str,
            requests: &[Vec<Input>],
            pace: &Pace,
            _stop: &Stop,
        ) -> anyhow::Result<Option<Outcome>> {
            self.paces.push(pace.clone());
            let cost = if variant == "ens" { 0.02 } else { 0.01 };
            let mut outcome = Outcome::default();
            for request in requests {
                self.asked += 1;
                if self.asked.is_multiple_of(3) && requests.len() > 1 {
                    *outcome.errors.entry("RESOURCE_EXHAUSTED".to_owned()).or_default() += 1;
                    continue;
                }
                let tokens = |input: &Input| match input {
                    Input::TokenIds(ids) => ids.len(),
                    other => panic!("{other:?}"),
                };
                let tokens: usize = request.iter().map(tokens).sum();
                outcome.latencies.push(Duration::from_secs_f64(cost * tokens as f64));
                outcome.samples += request.len();
                outcome.tokens += tokens;
                outcome.seconds += cost * tokens as f64;
            }
            Ok(Some(outcome))
        }
    }

    #[test]
    fn figures_agree_with_what_the_server_did() {
        let mut target = Slow { asked: 0, paces: Vec::new() };
        let rounds = crate::offline::bench::Rounds { warmup: 0, counted: 3 };
        let mut control = Control { rounds, stop: Stop::default(), progress: &mut |_, _, _| () };
        let report = run(&mut target, &[], &plan(), &mut control).unwrap();

        let [warm, ens] = &report.variants[..] else { panic!("{report:?}") };
        let (closed, open) = (warm.closed.as_ref().unwrap(), warm.open.as_ref().unwrap());
        assert_eq!((closed.requests, open.requests), (9, 9), "three requests a round");
        assert_eq!(closed.errors["RESOURCE_EXHAUSTED"], 3);
        assert_eq!(closed.latency_ms.unwrap().requests, 6);
        assert!((closed.tokens_per_second.median - 100.0).abs() < 1e-6);
        let single = warm.single.as_ref().unwrap();
        assert!((single.served_p50_ms - 40.0).abs() < 1e-6);
        assert_eq!((single.samples, single.bare_p50_ms, single.overhead_p50_ms), (9, None, None));
        assert_eq!((&warm.bare_samples_per_second, warm.served_over_bare), (&None, None));
        let closed_rate = |served: &Served| served.closed.as_ref().unwrap().samples_per_second.median;
        assert_eq!(report.ratios[0].closed_cost, Some(closed_rate(warm) / closed_rate(ens)));

        let open: Vec<&Pace> = target.paces.iter().filter(|pace| matches!(pace, Pace::Open { .. })).collect();
        assert_eq!(open[0], open[1], "variants of a round have the same arrivals");
        assert_ne!(open[0], open[2], "rounds have their own");
        let text = report.to_string();
        assert!(text.contains("3 of 9: RESOURCE_EXHAUSTED 3"), "{text}");
    }

    #[test]
    fn requests_use_the_samples_over_again() {
        let inputs: Vec<Input> = (1..=5).map(|id| Input::TokenIds(vec![id])).collect();
        let ids = |requests: Option<usize>| -> Vec<Vec<u32>> {
            let id = |input: &Input| match input {
                Input::TokenIds(ids) => ids[0],
                other => panic!("{other:?}"),
            };
            let grouped = Plan { requests, ..plan() }.group(&inputs);
            grouped.iter().map(|request| request.iter().map(id).collect()).collect()
        };
        assert_eq!(ids(None), [vec![1, 2], vec![3, 4], vec![5]]);
        assert_eq!(ids(Some(2)), [[1, 2], [3, 4]]);
        assert_eq!(ids(Some(4)), [[1, 2], [3, 4], [5, 1], [2, 3]]);
    }

    #[test]
    fn a_variant_that_the_server_does_not_have_is_named() {
        let there = vec![label("warm", "warm"), label("ens", "ens")];
        let error = labels(there, &["cold".to_owned()]).unwrap_err().to_string();
        assert_eq!(error, "--variant cold: the server has warm, ens: name one of them");
    }
}
