//! Best-of-n, from the file of prompts to what the gold model thinks of the choices.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;

use crate::model::variant::Loader;
use crate::model::variant::Mode;
use crate::model::variant::VariantConfig;
use crate::offline::evaluate::Config;
use crate::offline::evaluate::Judges;
use crate::offline::evaluate::Progress;
use crate::offline::evaluate::best_of_n;
use crate::offline::evaluate::bootstrap::Resamples;
use crate::offline::evaluate::evaluation::BestOfN;
use crate::offline::evaluate::evaluation::BestOfNPoint;
use crate::offline::evaluate::evaluation::Estimate;
use crate::offline::evaluate::evaluation::Unscorable;
use crate::offline::evaluate::load;
use crate::offline::evaluate::metrics;
use crate::offline::evaluate::samples;
use crate::offline::evaluate::samples::Origin;
use crate::offline::evaluate::samples::Pool;
use crate::offline::evaluate::samples::Runner;
use crate::offline::evaluate::samples::Sample;
use crate::text::Input;
use crate::text::SampleTokenizer;
use crate::text::Truncation;

/// Prompts whose responses can all be scored.
pub(super) struct Choices {
    file: Arc<Path>,
    /// `[prompts][responses]`, with the line of each prompt.
    prompts: Vec<(usize, Vec<(Input, Sample)>)>,
    unscorable: Vec<Unscorable>,
}

impl Choices {
    pub(super) fn new(
        path: &Path,
        candidates: &[best_of_n::Candidates],
        pool: &mut Pool,
        tokenizer: &SampleTokenizer,
        truncation: Truncation,
    ) -> Self {
        let mut choices = Self { file: path.into(), prompts: Vec::new(), unscorable: Vec::new() };
        for candidates in candidates {
            match add_responses(
                pool,
                &choices.file,
                candidates.line,
                &candidates.responses,
                tokenizer,
                truncation,
            ) {
                Ok(samples) => {
                    let responses = candidates.responses.iter().cloned().zip(samples).collect();
                    choices.prompts.push((candidates.line, responses));
                }
                Err(problem) => choices.unscorable.push(Unscorable { line: candidates.line, problem }),
            }
        }
        choices
    }

    /// Loads the gold model and lets it judge what the others choose.
    pub(super) fn judge(
        &mut self,
        config: &Config,
        gold: &Path,
        judges: &Judges,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> anyhow::Result<BestOfN> {
        // its own limit: `max_tokens` is about the models that are judged
        let variant = VariantConfig {
            base: config.base.clone(),
            dtype: config.dtype,
            device: config.device.clone(),
            ..VariantConfig::new("gold", Mode::Warm, vec![gold.to_owned()])
        };
        let gold = load(&mut Loader::default(), &variant, progress)?;
        let mut pool = Pool::default();
        let mut prompts: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        for (line, responses) in &self.prompts {
            let inputs: Vec<Input> = responses.iter().map(|(input, _)| input.clone()).collect();
            match add_responses(&mut pool, &self.file, *line, &inputs, &gold.tokenizer, config.truncation) {
                Ok(samples) => prompts.push((
                    responses.iter().map(|(_, sample)| sample.index).collect(),
                    samples.iter().map(|sample| sample.index).collect(),
                )),
                Err(problem) => {
                    self.unscorable
                        .push(Unscorable { line: *line, problem: format!("gold model: {problem}") });
                }
            }
        }
        if prompts.is_empty() {
            let why = self.unscorable.first().map_or("", |unscorable| &unscorable.problem);
            bail!("no prompt of {} can be scored: {why}", self.file.display());
        }
        let everything: Vec<usize> = (0..pool.len()).collect();
        let runner = Runner { names: vec!["the gold model"], scorer: &gold.scorer };
        let scores = samples::score(
            &pool,
            &everything,
            &[runner],
            config.max_batch_tokens,
            "score with the gold model",
            progress,
        )?;
        let gold_rewards = &scores[0].raw[0];
        let most = prompts.iter().map(|(responses, _)| responses.len()).min().unwrap_or(1);
        let at = |n: usize| {
            let chosen_by = |rewards: Option<&Vec<f32>>| -> Vec<f64> {
                let of_prompt = |(proxy, gold): &(Vec<usize>, Vec<usize>)| {
                    let gold_f32: Vec<f32> = gold.iter().map(|&sample| gold_rewards[sample]).collect();
                    let gold: Vec<f64> = gold_f32.iter().map(|&reward| f64::from(reward)).collect();
                    let proxy = match rewards {
                        Some(rewards) => proxy.iter().map(|&sample| rewards[sample]).collect(),
                        None => gold_f32,
                    };
                    best_of_n::best_of_n(&proxy, &gold, n)
                };
                prompts.iter().map(of_prompt).collect()
            };
            let columns: Vec<Vec<f64>> =
                judges.rewards.iter().map(|rewards| chosen_by(Some(rewards))).collect();
            let resamples = Resamples::new(&columns, config.resamples, config.seed);
            let estimate = |(column, values): (usize, &Vec<f64>)| {
                let bootstrap = resamples.interval(|means| means[column]);
                Estimate::by_bootstrap(metrics::mean(values.iter().copied()), bootstrap)
            };
            BestOfNPoint {
                n,
                kl: best_of_n::kl(n),
                models: columns.iter().enumerate().map(estimate).collect(),
                gold: metrics::mean(chosen_by(None).into_iter()),
            }
        };
        Ok(BestOfN {
            path: self.file.display().to_string(),
            gold: gold.info.members[0].path.clone(),
            gold_fingerprint: gold.info.fingerprint.clone(),
            prompts: prompts.len(),
            responses: most,
            unscorable: std::mem::take(&mut self.unscorable),
            points: best_of_n::sizes(most).into_iter().map(at).collect(),
        })
    }
}

/// All responses to a prompt, or why one of them cannot be scored.
fn add_responses(
    pool: &mut Pool,
    file: &Arc<Path>,
    line: usize,
    responses: &[Input],
    tokenizer: &SampleTokenizer,
    truncation: Truncation,
) -> Result<Vec<Sample>, String> {
    let origin = |number: usize| Origin { file: file.clone(), line, part: format!("response {number}") };
    let responses: Vec<_> =
        responses.iter().zip(1..).map(|(input, number)| (input, origin(number))).collect();
    let samples = pool.add(tokenizer, truncation, &responses);
    let numbered = |(sample, number): (Result<Sample, String>, usize)| {
        sample.map_err(|problem| format!("response {number}: {problem}"))
    };
    samples.into_iter().zip(1..).map(numbered).collect()
}
