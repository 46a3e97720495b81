//! An evaluation for a terminal.

use std::fmt::Write;

use crate::offline::evaluate::curves::Band;
use crate::offline::evaluate::evaluation::Estimate;
use crate::offline::evaluate::evaluation::Evaluation;
use crate::offline::evaluate::evaluation::Part;
use crate::offline::evaluate::evaluation::SetResult;
use crate::offline::evaluate::verdict::signed;
use crate::offline::table::Table;

/// Tables in Markdown, and the verdict.
pub fn table(evaluation: &Evaluation) -> String {
    let mut text = String::new();
    for set in &evaluation.sets {
        add_set(set, &mut text);
    }
    let mut add = |title: &str, table: Table| {
        let _ = writeln!(text, "{title}\n\n{table}"); // a string takes all
    };
    for line in &evaluation.interpolations {
        let mut table =
            Table::new(&["λ", "accuracy", "straight line", "above it (95%)", "log-loss", "straight line"]);
        for point in &line.points {
            table.row([
                format!("{:.1}", point.lambda),
                format!("{:.4}", point.accuracy),
                format!("{:.4}", point.straight_accuracy),
                format!(
                    "{} to {}",
                    signed(point.above_straight.low, 3),
                    signed(point.above_straight.high, 3)
                ),
                format!("{:.4}", point.log_loss),
                format!("{:.4}", point.straight_log_loss),
            ]);
        }
        let on = evaluation.curves_on.as_deref().unwrap_or_default();
        add(&format!("From {} to {}, on {on}", line.first, line.second), table);
    }
    if !evaluation.member_counts.is_empty() {
        let mut table = Table::new(&["members", "subsets", "WARM", "ENS"]);
        for count in &evaluation.member_counts {
            let band = |band: &Band| {
                let decimals = band.interval.decimals() + 1; // subsets are judged by the same pairs
                format!("{:.decimals$} ({:.decimals$} to {:.decimals$})", band.mean, band.min, band.max)
            };
            table.row([
                count.members.to_string(),
                format!("{} of {}", count.subsets, count.all_subsets),
                band(&count.warm),
                band(&count.ens),
            ]);
        }
        let on = evaluation.curves_on.as_deref().unwrap_or_default();
        add(&format!("Accuracy by number of members, on {on}: mean (worst to best subset)"), table);
    }
    if let Some(best_of_n) = &evaluation.best_of_n {
        let names = evaluation.models.iter().map(|model| model.name.as_str());
        let headers: Vec<&str> = ["n", "KL"].into_iter().chain(names).chain(["gold"]).collect();
        let mut table = Table::new(&headers);
        for point in &best_of_n.points {
            let cells = [point.n.to_string(), format!("{:.3}", point.kl)];
            let models = point.models.iter().map(|model| format!("{:.3}", model.value));
            table.row(cells.into_iter().chain(models).chain([format!("{:.3}", point.gold)]));
        }
        add(&format!("Best of n by each model: mean gold reward over {} prompts", best_of_n.prompts), table);
    }
    if let Some(cost) = evaluation.cost {
        let _ = writeln!(
            text,
            "Cost: WARM {:.3} ms a sample, ENS of {} members {:.3} ms ({:.2} times); {} samples, {} tokens.\n",
            cost.warm_seconds_per_sample * 1e3,
            cost.members,
            cost.ens_seconds_per_sample * 1e3,
            cost.ens_over_warm,
            cost.samples,
            cost.tokens
        );
    }
    text.push_str(&evaluation.verdict.join("\n"));
    text.push('\n');
    text
}

fn add_set(set: &SetResult, text: &mut String) {
    let mut left_out = Vec::new();
    if !set.unscorable.is_empty() {
        let first = &set.unscorable[0];
        left_out.push(format!(
            "{} cannot be scored, the first in line {}: {}",
            set.unscorable.len(),
            first.line,
            first.problem
        ));
    }
    if !set.equal_lines.is_empty() {
        left_out.push(format!("{} lines of the file have two equal responses", set.equal_lines.len()));
    }
    if set.truncated_pairs > 0 {
        left_out.push(format!("{} truncated", set.truncated_pairs));
    }
    let left_out = left_out.iter().map(|part| format!("; {part}")).collect::<String>();

    let is_corrupted = set.part == Part::Corrupted;
    let first = if is_corrupted { "memorised (95%)" } else { "accuracy (95%)" };
    let mut table =
        Table::new(&["model", first, "ties", "margin", "log-loss", "ECE", "balanced", "ρ length"]);
    for model in &set.models {
        table.row([
            model.name.clone(),
            interval(model.memorised.unwrap_or(model.accuracy)),
            format!("{:.3}", model.ties),
            format!("{:.3}", model.mean_margin),
            format!("{:.3}", model.log_loss),
            format!("{:.3}", model.reliability.expected_calibration_error),
            figure(model.length_controlled.accuracy),
            figure(model.reward_length_spearman),
        ]);
    }
    let baseline = set.length_baseline.accuracy;
    let _ = writeln!(
        text,
        "{}: {} pairs{left_out}; the longer one is chosen in {baseline:.3}\n\n{table}",
        set.name, set.pairs
    );
    let own =
        if is_corrupted { ("memorised", &set.memorised_differences) } else { ("accuracy", &set.differences) };
    for (what, differences) in [own, ("accuracy, against the other evaluation", &set.differences_against)] {
        if differences.is_empty() {
            continue;
        }
        let mut table = Table::new(&[what, "difference", "95%", "only one right", "p"]);
        for difference in differences {
            let Estimate { value, interval, .. } = difference.estimate;
            let decimals = interval.decimals();
            let signed = |value| signed(value, decimals);
            let none = || "–".to_owned();
            let counts = difference.paired.map(|paired| paired.discordant);
            table.row([
                format!("{} − {}", difference.of, difference.against),
                signed(value),
                format!("{} to {}", signed(interval.low), signed(interval.high)),
                counts.map_or_else(none, |counts| format!("{} : {}", counts.only_of, counts.only_against)),
                difference.paired.map_or_else(none, |paired| p_value(paired.p_value)),
            ]);
        }
        let _ = writeln!(text, "{table}");
    }
}

/// With two digits where there is something to see.
pub(super) fn p_value(value: f64) -> String {
    if value < 0.001 { "< 0.001".to_owned() } else { format!("{value:.3}") }
}

fn interval(estimate: Estimate) -> String {
    let Estimate { value, interval, .. } = estimate;
    let decimals = interval.decimals();
    format!("{value:.decimals$} ({:.decimals$} to {:.decimals$})", interval.low, interval.high)
}

fn figure(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"))
}
