//! Best-of-n: how good, by a gold model, is the response that a proxy likes best among n.
//!
//! With k responses to a prompt, the mean over all subsets of n of them needs no drawing: sorted by the proxy, the
//! i-th (from 1) is the best of a subset if the other n − 1 are among the i − 1 before it, so its gold reward counts
//! with weight C(i − 1, n − 1) / C(k, n). That mean is unbiased for n fresh responses (Gao et al. 2022,
//! arXiv:2210.10760, appendix I; as Chen et al. 2021 do for pass@k). A policy that takes the best of n is
//! KL = ln n − (n − 1)/n nats away from the one that it draws from, at most (Beirami et al. 2024, arXiv:2401.01879).

use std::path::Path;

use anyhow::ensure;
use serde::Deserialize;
use serde_json::Value;

use crate::text::Input;
use crate::text::dataset::Beside;
use crate::text::dataset::inputs;
use crate::text::dataset::read_lines;
use crate::text::lines;

/// A prompt with its responses.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Candidates {
    /// In its file, from 1.
    pub(super) line: usize,
    /// At least two.
    pub(super) responses: Vec<Input>,
}

#[derive(Deserialize)]
struct Line {
    prompt: Option<Value>,
    responses: Vec<Value>,
    #[serde(flatten)]
    beside: Beside,
}

/// Reads `{"prompt": .., "responses": [..]}` lines, plain or gzipped; prompt, responses and what is beside them are read
/// as those of pairs are.
pub(super) fn read_candidates(path: &Path) -> anyhow::Result<Vec<Candidates>> {
    let mut candidates = Vec::new();
    read_lines(path, &mut |line, text| {
        let Line { prompt, responses, beside } = serde_json::from_str(text)
            .map_err(|error| format!("not a prompt with responses: {}", lines::explain(text, &error)))?;
        if responses.len() < 2 {
            return Err(format!("`responses` has {}, choosing takes at least 2", responses.len()));
        }
        let named = |(index, response)| (format!("responses[{index}]"), response);
        let responses = inputs(prompt, responses.into_iter().enumerate().map(named).collect(), beside)?;
        candidates.push(Candidates { line, responses });
        Ok(())
    })?;
    ensure!(!candidates.is_empty(), "{} holds no prompts", path.display());
    Ok(candidates)
}

/// 1, 2, 4, .. and `most` itself.
pub(super) fn sizes(most: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1), |n| Some(n * 2));
    powers.take_while(|&n| n < most).chain([most]).collect()
}

/// How far, in nats, best-of-n is from the policy that it draws from.
pub(super) fn kl(n: usize) -> f64 {
    let n = n as f64;
    n.ln() - (n - 1.0) / n
}

/// The mean, over all subsets of `n` of a prompt's responses, of the gold reward of the one that `proxy` likes best;
/// of several that it likes the same, the mean. `n` is from 1 to the number of responses.
pub(super) fn best_of_n(proxy: &[f32], gold: &[f64], n: usize) -> f64 {
    let count = proxy.len();
    debug_assert!((1..=count).contains(&n) && gold.len() == count);
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&left, &right| proxy[left].total_cmp(&proxy[right]));
    // C(i - 1, n - 1) / C(k, n), from the best down: the best has n / k, and the next below i has (i - n) / (i - 1) of it
    let mut weights = vec![0.0; count];
    let mut weight = n as f64 / count as f64;
    for rank in (n..=count).rev() {
        weights[rank - 1] = weight;
        weight *= (rank - n) as f64 / (rank as f64 - 1.0).max(1.0);
    }
    let mut done = 0;
    let mut expected = 0.0;
    for group in order.chunk_by(|&left, &right| proxy[left] == proxy[right]) {
        let weight: f64 = weights[done..done + group.len()].iter().sum();
        let mean = group.iter().map(|&index| gold[index]).sum::<f64>() / group.len() as f64;
        expected += weight * mean;
        done += group.len();
    }
    expected
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// All subsets of `n` of so many, as bits.
    fn subsets(count: usize, n: usize) -> impl Iterator<Item = Vec<usize>> {
        (0_u32..1 << count)
            .filter(move |bits| bits.count_ones() as usize == n)
            .map(move |bits| (0..count).filter(|index| bits >> index & 1 == 1).collect())
    }

    fn brute_force(proxy: &[f32], gold: &[f64], n: usize) -> f64 {
        let best = |subset: Vec<usize>| {
            let top = subset.iter().map(|&index| proxy[index]).fold(f32::NEG_INFINITY, f32::max);
            let best: Vec<usize> = subset.into_iter().filter(|&index| proxy[index] == top).collect();
            best.iter().map(|&index| gold[index]).sum::<f64>() / best.len() as f64
        };
        let values: Vec<f64> = subsets(proxy.len(), n).map(best).collect();
        values.iter().sum::<f64>() / values.len() as f64
    }

    #[test]
    fn the_weights_are_those_of_all_subsets() {
        let gold = [0.3, -1.0, 2.5, 0.0, 7.0, -3.5, 1.25, 4.0];
        let proxies: [[f32; 8]; 2] =
            [[0.1, 5.0, -2.0, 3.0, 0.5, 4.0, -1.0, 2.0], [1.0, -0.5, 9.0, 9.5, 0.0, 2.0, 3.0, -7.0]];
        for proxy in proxies {
            for n in 1..=8 {
                let (found, expected) = (best_of_n(&proxy, &gold, n), brute_force(&proxy, &gold, n));
                assert!((found - expected).abs() < 1e-12, "n = {n}: {found} is not {expected}");
            }
        }
    }

    #[test]
    fn of_equals_the_mean_counts() {
        let gold = [1.0, 2.0, 4.0, 8.0, 16.0];
        for proxy in [[0.0; 5], [0.0, -0.0, 1.0, 1.0, 1.0], [3.0, 1.0, 3.0, 1.0, 3.0]] {
            for n in 1..=5 {
                let expected = brute_force(&proxy, &gold, n);
                let found = best_of_n(&proxy, &gold, n);
                assert!((found - expected).abs() < 1e-12, "{proxy:?}, n = {n}: {found} is not {expected}");
            }
        }
    }

    #[test]
    fn a_perfect_proxy_climbs_and_one_of_one_is_the_mean() {
        let gold = [1.0, 2.0, 3.0];
        let proxy = [1.0, 2.0, 3.0];
        assert!((best_of_n(&proxy, &gold, 1) - 2.0).abs() < 1e-12);
        assert!((best_of_n(&proxy, &gold, 2) - 8.0 / 3.0).abs() < 1e-12);
        assert!((best_of_n(&proxy, &gold, 3) - 3.0).abs() < 1e-12);
        assert_eq!(kl(1), 0.0);
        assert!((kl(4) - (4.0_f64.ln() - 0.75)).abs() < 1e-15);
    }

    #[test]
    fn many_responses_do_not_overflow() {
        let proxy: Vec<f32> = (0..5000_u16).map(f32::from).collect();
        let gold: Vec<f64> = proxy.iter().map(|&reward| f64::from(reward)).collect();
        // the mean of the largest of n from 0..k is n (k + 1) / (n + 1) - 1
        for n in [1, 2, 1024, 5000] {
            let expected = n as f64 * 5001.0 / (n as f64 + 1.0) - 1.0;
            assert!((best_of_n(&proxy, &gold, n) - expected).abs() < 1e-6, "n = {n}");
        }
    }

    #[test]
    fn sizes_double_up_to_the_number_of_responses() {
        assert_eq!(sizes(2), [1, 2]);
        assert_eq!(sizes(6), [1, 2, 4, 6]);
        assert_eq!(sizes(8), [1, 2, 4, 8]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, r#"{{"prompt":"p","responses":["a","b"],"id":1}}"#).unwrap();
        assert_eq!(read_candidates(file.path()).unwrap()[0].responses.len(), 2);
        writeln!(file, r#"{{"prompt":[{{"role":"user","content":"p"}}],"responses":["a"]}}"#).unwrap();
        let error = read_candidates(file.path()).unwrap_err().to_string();
        assert!(error.ends_with(":2: `responses` has 1, choosing takes at least 2"), "{error}");
    }
}
