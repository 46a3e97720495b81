//! `rewarm bench server`: load on a server, beside bare forwards of the same samples where the models are in
//! this process.
//!
//! In each round each variant, in turn, gets: its samples in bare forwards; the same samples in a closed loop;
//! in an open loop, when a rate is given; and one small sample at a time, bare and served alternately. See
//! [`load`](crate::bench::load) for what the two loops can and cannot tell.

mod report;

use anyhow::ensure;

use crate::bench::Control;
use crate::bench::Label;
use crate::bench::Spread;
use crate::bench::batches;
use crate::bench::check_fits;
use crate::bench::ens_and_warm;
use crate::bench::lengths::Lengths;
use crate::bench::lengths::random_ids;
use crate::bench::load::Outcome;
use crate::bench::load::Pace;
use crate::bench::load::Target;
use crate::bench::load::poisson;
use crate::bench::noise::Noise;
pub use crate::bench::server::report::Loop;
pub use crate::bench::server::report::Ratio;
pub use crate::bench::server::report::Report;
pub use crate::bench::server::report::Served;
pub use crate::bench::server::report::Single;
use crate::bench::take_turns;
use crate::bench::time_forwards;
use crate::bench::tokenize;
use crate::model::variant::Variant;
use crate::offline::Stop;
use crate::ops::batch::Sequence;
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
            turn.bare_seconds = time_forwards(bare.variant, &batches, true, stop)?;
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
                Some(bare) => time_forwards(bare.variant, &batches(&bare.small, usize::MAX), true, stop)?,
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
        let rounds = crate::bench::Rounds { warmup: 0, counted: 3 };
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
