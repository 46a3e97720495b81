//! An evaluation as one web page that needs nothing else: no network, no script.

use anyhow::Context;
use minijinja::AutoEscape;
use minijinja::Environment;
use minijinja::Value;
use minijinja::context;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use serde::Serialize;

use crate::offline::evaluate::evaluation::Evaluation;
use crate::offline::evaluate::evaluation::Part;
use crate::offline::evaluate::evaluation::SetResult;
use crate::offline::evaluate::interval::Interval;
use crate::offline::evaluate::plot;
use crate::offline::evaluate::verdict::signed;

const TEMPLATE: &str = include_str!("page.html");
/// More lines than that share one plot.
const MAX_LINE_PLOTS: usize = 2;

/// A plot and what to see in it.
#[derive(Serialize)]
struct Figure {
    title: String,
    caption: String,
    /// Markup: `plot` escapes what users wrote.
    svg: String,
}

impl Figure {
    fn new(title: impl Into<String>, caption: impl Into<String>, svg: String) -> Self {
        Self { title: title.into(), caption: caption.into(), svg }
    }
}

/// The page.
pub(super) fn page(evaluation: &Evaluation) -> anyhow::Result<String> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("fixed", |value: Value, decimals: usize| match f64::try_from(value) {
        Ok(value) => format!("{value:.decimals$}").replace('-', "−"),
        Err(_) => "–".to_owned(), // a figure that does not exist
    });
    environment.add_filter("signed", signed);
    environment.add_filter("decimals", |estimate: Value| -> Result<usize, minijinja::Error> {
        let end = |name: &str| f64::try_from(estimate.get_attr(name)?);
        Ok(Interval { low: end("low")?, high: end("high")? }.decimals())
    });
    let page = environment.template_from_str(TEMPLATE).context("read the page's template")?;
    let models = &evaluation.models;
    let is_corrupted = |set: &&SetResult| set.part == Part::Corrupted;
    let others = || evaluation.sets.iter().filter(|set| !is_corrupted(set));
    let corrupted = || evaluation.sets.iter().filter(is_corrupted);

    let accuracies: Vec<Figure> =
        others().map(|set| Figure::new(&set.name, pairs(set), plot::accuracies(set, models))).collect();
    let differences: Vec<Figure> = others()
        .filter(|set| !set.differences.is_empty())
        .map(|set| {
            let title = format!("Differences in accuracy on {}", set.name);
            Figure::new(&set.name, pairs(set), plot::differences(&title, &set.differences, models))
        })
        .collect();
    let against: Vec<Figure> = others()
        .filter(|set| !set.differences_against.is_empty())
        .map(|set| {
            let title = format!("Differences from the other evaluation on {}", set.name);
            Figure::new(&set.name, pairs(set), plot::differences(&title, &set.differences_against, models))
        })
        .collect();
    let memorised: Vec<Figure> = corrupted()
        .flat_map(|set| {
            let title = format!("Differences in memorisation on {}", set.name);
            let bars = Figure::new(&set.name, pairs(set), plot::memorised(set, models));
            let forest = (!set.memorised_differences.is_empty()).then(|| {
                let svg = plot::differences(&title, &set.memorised_differences, models);
                Figure::new("Differences", "Left of zero: memorises less.", svg)
            });
            [Some(bars), forest].into_iter().flatten()
        })
        .collect();
    let reliability: Vec<Figure> =
        others().map(|set| Figure::new(&set.name, pairs(set), plot::reliability(set, models))).collect();
    let agreement: Vec<Figure> = match models.len() {
        1 => Vec::new(),
        _ => evaluation
            .sets
            .iter()
            .map(|set| Figure::new(&set.name, pairs(set), plot::agreement(set, models)))
            .collect(),
    };
    let html = page.render(context! {
        evaluation => Serde(evaluation),
        accuracies => Serde(accuracies),
        differences => Serde(differences),
        against => Serde(against),
        memorised => Serde(memorised),
        curves => Serde(curves(evaluation)),
        best_of_n => Serde(best_of_n(evaluation)),
        reliability => Serde(reliability),
        agreement => Serde(agreement),
    });
    html.context("fill the page's template")
}

fn pairs(set: &SetResult) -> String {
    let count = |number: usize, what: &str| (number > 0).then(|| format!("{number} {what}"));
    [
        count(set.pairs, if set.pairs == 1 { "pair" } else { "pairs" }),
        count(set.truncated_pairs, "truncated"),
        count(set.unscorable.len(), "not scorable"),
        count(set.equal_lines.len(), "lines with equal responses left out"),
    ]
    .into_iter()
    .flatten()
    .collect::<Vec<_>>()
    .join(", ")
}

fn curves(evaluation: &Evaluation) -> Vec<Figure> {
    let lines = &evaluation.interpolations;
    let mut figures: Vec<Figure> = if lines.len() <= MAX_LINE_PLOTS {
        lines
            .iter()
            .map(|line| {
                let title = format!("From {} to {}", line.first, line.second);
                let caption = match line.accuracy_barrier {
                    0.0 => "Never below the straight line between the ends (dashed); the band is the 95% interval of the distance.".to_owned(),
                    barrier => format!(
                        "At most {barrier:.3} below the straight line between the ends (dashed); the band is the 95% interval of the \
                         distance: where it holds the dashed line there may be no barrier."
                    ),
                };
                Figure::new(title, caption, plot::interpolation(line))
            })
            .collect()
    } else {
        let highest = lines.iter().map(|line| line.accuracy_barrier).fold(0.0, f64::max);
        let title = format!("All {} lines between two members", lines.len());
        let caption = format!(
            "Above zero: better than the straight line between the ends. The lowest falls {highest:.3} below. Highlighted: the mean; \
             the grey band is as wide as the 95% interval of one line."
        );
        vec![Figure::new(title, caption, plot::interpolations(lines))]
    };
    if !evaluation.member_counts.is_empty() {
        figures.push(Figure::new(
            "By number of members",
            "Mean over subsets of M members; the band reaches from the worst to the best subset, thin lines are 95% intervals by the number of pairs.",
            plot::member_counts(&evaluation.member_counts),
        ));
    }
    figures
}

fn best_of_n(evaluation: &Evaluation) -> Option<Figure> {
    let best_of_n = evaluation.best_of_n.as_ref()?;
    let caption = format!(
        "{} prompts with {} responses or more. Dashed: chosen by the gold model itself.",
        best_of_n.prompts, best_of_n.responses
    );
    Some(Figure::new(
        "Gold reward of what is chosen",
        caption,
        plot::best_of_n(best_of_n, &evaluation.models),
    ))
}
