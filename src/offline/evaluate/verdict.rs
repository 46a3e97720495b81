//! What an evaluation comes to, in words.

use crate::offline::evaluate::evaluation::Difference;
use crate::offline::evaluate::evaluation::Estimate;
use crate::offline::evaluate::evaluation::Evaluation;
use crate::offline::evaluate::evaluation::Kind;
use crate::offline::evaluate::evaluation::Part;
use crate::offline::evaluate::evaluation::SetResult;

/// Accuracies that differ by less than a point are as good as each other.
const AS_GOOD: f64 = 0.01;
/// Fewer pairs cannot show that: what was not seen in n pairs may still be as frequent as 3/n (the rule of three, for
/// 95%), and the bootstrap, which draws from what was seen, knows nothing of it.
const AS_GOOD_PAIRS: usize = 300;

/// The headline, about the first set that nothing was trained on, and more.
pub(super) fn verdict(evaluation: &Evaluation) -> Vec<String> {
    let is_unseen = |set: &&SetResult| matches!(set.part, Part::All | Part::HeldOut);
    let mut unseen = evaluation.sets.iter().filter(is_unseen);
    let mut sentences = Vec::new();
    let headline_set = unseen.next().or(evaluation.sets.first());
    if let Some(set) = headline_set {
        sentences.push(headline(evaluation, set));
    }
    sentences.extend(unseen.filter_map(|set| Some(format!("{}.", compare(set, warm_ens(set)?)))));
    sentences.extend(evaluation.sets.iter().filter_map(|set| memorised(evaluation, set)));
    sentences.extend(barrier(evaluation));
    sentences
}

fn warm_ens(set: &SetResult) -> Option<&Difference> {
    set.difference("WARM", "ENS")
}

fn headline(evaluation: &Evaluation, set: &SetResult) -> String {
    if let Some(difference) = warm_ens(set) {
        let cost = evaluation.cost.map_or(String::new(), |cost| {
            format!(", at 1/{:.1} of the cost ({} members)", cost.ens_over_warm, cost.members)
        });
        return format!("{}{cost}.", compare(set, difference));
    }
    let model = &set.models[0];
    format!("{} is right about {} of {} pairs of {}.", model.name, share(model.accuracy), set.pairs, set.name)
}

fn compare(set: &SetResult, difference: &Difference) -> String {
    let Estimate { value, interval } = difference.estimate;
    let (of, against) = (&difference.of, &difference.against);
    let finding = if interval.low > 0.0 {
        format!("{of} is better than {against} on {}", set.name)
    } else if interval.high < 0.0 {
        format!("{of} is worse than {against} on {}", set.name)
    } else if interval.low >= -AS_GOOD && interval.high <= AS_GOOD && set.pairs >= AS_GOOD_PAIRS {
        format!("{of} is as good as {against} on {}, to within a point", set.name)
    } else {
        format!("The {} pairs of {} cannot tell {of} from {against}", set.pairs, set.name)
    };
    format!(
        "{finding}: difference in accuracy {}, 95% interval {} to {}",
        signed(value),
        signed(interval.low),
        signed(interval.high)
    )
}

fn memorised(evaluation: &Evaluation, set: &SetResult) -> Option<String> {
    let of = |kind| set.models[evaluation.position(kind)?].memorised;
    let (warm, ens) = (of(Kind::Warm)?, of(Kind::Ens)?);
    Some(format!("Of {} flipped labels, WARM reproduces {} and ENS {}.", set.pairs, share(warm), share(ens)))
}

fn barrier(evaluation: &Evaluation) -> Option<String> {
    let highest = evaluation.interpolations.iter().map(|line| line.accuracy_barrier).reduce(f64::max)?;
    let lines = match evaluation.interpolations.as_slice() {
        [line] => format!("Between {} and {}", line.first, line.second),
        lines => format!("On {} lines between members", lines.len()),
    };
    Some(if highest == 0.0 {
        format!("{lines} accuracy never falls below the straight line.")
    } else {
        format!("{lines} accuracy falls {highest:.4} below the straight line at most.")
    })
}

/// "0.972 (95% interval 0.965 to 0.979)".
fn share(estimate: Estimate) -> String {
    let Estimate { value, interval } = estimate;
    format!("{value:.3} (95% interval {:.3} to {:.3})", interval.low, interval.high)
}

/// With three decimals and a sign that stands out; a difference that rounds to zero has none.
pub(super) fn signed(value: f64) -> String {
    let text = format!("{value:+.3}");
    match text.trim_start_matches(['+', '-']) {
        zero @ "0.000" => zero.to_owned(),
        digits if value < 0.0 => format!("−{digits}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_stand_out() {
        let cases = [(0.0123, "+0.012"), (-0.0123, "−0.012"), (-0.0001, "0.000"), (0.0, "0.000")];
        for (value, text) in cases {
            assert_eq!(signed(value), text);
        }
    }
}
