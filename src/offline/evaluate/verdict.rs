//! What an evaluation comes to, in words.

use crate::offline::evaluate::evaluation::Difference;
use crate::offline::evaluate::evaluation::Estimate;
use crate::offline::evaluate::evaluation::Evaluation;
use crate::offline::evaluate::evaluation::Kind;
use crate::offline::evaluate::evaluation::Part;
use crate::offline::evaluate::evaluation::SetResult;
use crate::offline::evaluate::interval::Interval;

/// Accuracies that differ by less than a point are as good as each other.
const AS_GOOD: f64 = 0.01;

/// The headline, about the first set that nothing was trained on, and more.
pub(super) fn verdict(evaluation: &Evaluation) -> Vec<String> {
    let is_unseen = |set: &&SetResult| matches!(set.part, Part::All | Part::HeldOut);
    let mut unseen = evaluation.sets.iter().filter(is_unseen);
    let mut sentences = Vec::new();
    let headline_set = unseen.next().or(evaluation.sets.first());
    if let Some(set) = headline_set {
        sentences.push(headline(evaluation, set));
        sentences.extend(warm_ens(set).and_then(could_show));
        sentences.extend(from_start(set));
        sentences.extend(
            set.differences_against.iter().map(|difference| format!("{}.", compare(set, difference))),
        );
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

/// What fine-tuning brought: of WARM, or of the only member.
fn from_start(set: &SetResult) -> Option<String> {
    let difference = set.differences.iter().find(|difference| difference.against == "start")?;
    let finding = compare(set, difference);
    Some(format!("{}.", finding.replace("start", "the start (the head before fine-tuning)")))
}

fn compare(set: &SetResult, difference: &Difference) -> String {
    let Estimate { value, interval, .. } = difference.estimate;
    let (of, against) = (&difference.of, &difference.against);
    let finding = match finding(interval) {
        Finding::Better => format!("{of} is better than {against} on {}", set.name),
        Finding::Worse => format!("{of} is worse than {against} on {}", set.name),
        Finding::AsGood => format!("{of} is as good as {against} on {}, to within a point", set.name),
        Finding::Open => format!("The {} pairs of {} cannot tell {of} from {against}", set.pairs, set.name),
    };
    let decimals = interval.decimals();
    format!(
        "{finding}: difference in accuracy {}, 95% interval {} to {}",
        signed(value, decimals),
        signed(interval.low, decimals),
        signed(interval.high, decimals)
    )
}

/// Where nothing was found: what would have been.
fn could_show(difference: &Difference) -> Option<String> {
    if finding(difference.estimate.interval) != Finding::Open {
        return None;
    }
    Some(match difference.paired?.detectable {
        Some(detectable) => {
            format!(
                "So many pairs would show a difference of {detectable:.3} or more, four times in five at least."
            )
        }
        None => "So few pairs could show no difference, however large.".to_owned(),
    })
}

/// What an interval of a difference says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finding {
    Better,
    Worse,
    AsGood,
    Open,
}

fn finding(interval: Interval) -> Finding {
    match interval {
        Interval { low, .. } if low > 0.0 => Finding::Better,
        Interval { high, .. } if high < 0.0 => Finding::Worse,
        Interval { low, high } if low >= -AS_GOOD && high <= AS_GOOD => Finding::AsGood,
        _ => Finding::Open,
    }
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
    let Estimate { value, interval, .. } = estimate;
    let decimals = interval.decimals();
    format!("{value:.decimals$} (95% interval {:.decimals$} to {:.decimals$})", interval.low, interval.high)
}

/// With a sign that stands out; a difference that rounds to zero has none.
pub(super) fn signed(value: f64, decimals: usize) -> String {
    let text = format!("{value:+.decimals$}");
    match text.trim_start_matches(['+', '-']) {
        zero if zero.chars().all(|letter| matches!(letter, '0' | '.')) => zero.to_owned(),
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
            assert_eq!(signed(value, 3), text);
        }
        assert_eq!((signed(-0.06, 2), signed(0.004, 2)), ("−0.06".to_owned(), "0.00".to_owned()));
    }

    #[test]
    fn an_interval_says_what_it_can() {
        let of = |low, high| finding(Interval { low, high });
        assert_eq!(of(0.01, 0.2), Finding::Better);
        assert_eq!(of(-0.2, -0.01), Finding::Worse);
        assert_eq!(of(-0.009, 0.009), Finding::AsGood);
        assert_eq!(of(-0.06, 0.06), Finding::Open);
    }
}
