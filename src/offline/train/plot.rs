//! `train.svg`: loss, accuracy and margin of all members over their steps, training as a line, validation as dots.
//!
//! One panel is below the other: that is as wide as a telephone, where panels side by side could not be read. What the model was
//! before fine-tuning is a line across, and the step that was kept has a ring.
//!
//! A step's own figures jump about, so training is drawn as a running mean. Members differ in steps when they differ in
//! epochs; the axis is that of the longest.

use std::path::Path;

use crate::checkpoint::write::replace_file;
use crate::offline::svg;
use crate::offline::svg::Axis;
use crate::offline::svg::Plot;
use crate::offline::svg::Range;
use crate::offline::svg::Svg;
use crate::offline::train::log::LogLine;
use crate::offline::train::metrics::Metrics;

/// Without variables, which programs other than browsers do not know.
const STYLE: &str = include_str!("plot.css");
/// The classes `member-0`, `member-1`, … of the style; a tenth member looks like the first.
const STYLES: usize = 9;
/// Around panels.
const GAP: f64 = 24.0;
/// Above the panels.
const TITLE_HEIGHT: f64 = 88.0;
/// Between two panels.
const PANEL_GAP: f64 = 12.0;
/// Below them, for each row of the legend.
const LEGEND_HEIGHT: f64 = 24.0;
const LEGEND_COLUMNS: usize = 4;
/// The running mean is over this share of the steps.
const SMOOTH_SHARE: f64 = 0.1;

/// One of the three.
struct Panel {
    title: &'static str,
    value: fn(&Metrics) -> f64,
    /// A level that is worth a line: what no knowledge gets.
    chance: f64,
    /// The highest that there can be.
    most: Option<f64>,
}

const PANELS: [Panel; 3] = [
    Panel { title: "loss (nats)", value: |metrics| metrics.loss, chance: std::f64::consts::LN_2, most: None },
    Panel { title: "accuracy", value: |metrics| metrics.accuracy, chance: 0.5, most: Some(1.0) },
    Panel { title: "margin", value: |metrics| metrics.margin, chance: 0.0, most: None },
];

/// What is drawn of a member in one panel: steps and values.
struct Curves {
    training: Vec<(f64, f64)>,
    validation: Vec<(f64, f64)>,
    /// The step whose weights were written.
    kept: usize,
}

/// Draws the logs of the members, in their order, with the step that was kept of each.
pub(super) fn draw(path: &Path, logs: &[(Vec<LogLine>, usize)]) -> anyhow::Result<()> {
    let width = svg::WIDTH + 2.0 * GAP;
    let of_panel = svg::HEIGHT + PANEL_GAP;
    let legend = TITLE_HEIGHT + PANELS.len() as f64 * of_panel + GAP;
    let rows = logs.len().div_ceil(LEGEND_COLUMNS) as f64;
    let title = format!("Training of {} members: loss, accuracy and margin", logs.len());
    let mut svg = Svg::new(&title, (width, legend + rows * LEGEND_HEIGHT));
    svg.text("title start", (GAP, 28.0), &title);
    let notes = [
        "line: running mean over training steps (with dropout, labels as given)",
        "dots: validation; ring: the step that was kept",
    ];
    for (number, note) in notes.into_iter().enumerate() {
        svg.text("note start", (GAP, 50.0 + 18.0 * number as f64), note);
    }
    for (number, panel) in PANELS.iter().enumerate() {
        let curves: Vec<Curves> = logs.iter().map(|(log, kept)| curves(log, *kept, panel)).collect();
        svg.place((GAP, TITLE_HEIGHT + number as f64 * of_panel), &draw_panel(panel, &curves).svg);
    }
    for member in 0..logs.len() {
        let (row, column) = (member / LEGEND_COLUMNS, member % LEGEND_COLUMNS);
        let x = GAP + column as f64 * (width - GAP) / LEGEND_COLUMNS as f64;
        let y = legend + row as f64 * LEGEND_HEIGHT;
        svg.line(&format!("curve {}", class(member)), (x, y), (x + 22.0, y));
        svg.text("label start", (x + 28.0, y + 4.0), &format!("member-{member}"));
    }
    Ok(replace_file(path, svg.file(STYLE).as_bytes())?)
}

fn draw_panel(panel: &Panel, curves: &[Curves]) -> Plot {
    let points = || curves.iter().flat_map(|curves| curves.training.iter().chain(&curves.validation));
    let steps = points().map(|(step, _)| *step).fold(1.0, f64::max);
    let (low, high) = Range::of(points().map(|(_, value)| *value).chain([panel.chance])).padded();
    let high = high.min(panel.most.unwrap_or(f64::INFINITY));
    let mut plot =
        Plot::new(panel.title, Axis::of_counts("step", (0.0, steps)), Axis::new(panel.title, (low, high)));
    plot.path("straight", [(0.0, panel.chance), (steps, panel.chance)]);
    if let Some(&(_, before)) =
        curves.iter().find_map(|curves| curves.validation.first().filter(|(step, _)| *step == 0.0))
    {
        plot.path("before", [(0.0, before), (steps, before)]);
        let (x, y) = plot.place((steps, before));
        plot.svg.text("note end", (x, y - 5.0), "before fine-tuning");
    }
    for (member, curves) in curves.iter().enumerate() {
        let class = class(member);
        plot.path(&format!("curve {class}"), curves.training.iter().copied());
        // the line between dots leads the eye, and no more
        plot.path(&format!("curve thin {class}"), curves.validation.iter().copied());
        for &(step, value) in &curves.validation {
            let title = format!("member-{member} after step {step}: {} {value:.4}", panel.title);
            plot.disc(&class, (step, value), 4.0, &title);
            if step == curves.kept as f64 {
                let (x, y) = plot.place((step, value));
                plot.svg.draw(format_args!(
                    "<circle class=\"ring {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"8\"/>"
                ));
            }
        }
    }
    plot
}

fn class(member: usize) -> String {
    format!("member-{}", member % STYLES)
}

fn curves(log: &[LogLine], kept: usize, panel: &Panel) -> Curves {
    let mut curves = Curves { training: Vec::new(), validation: Vec::new(), kept };
    for line in log {
        match line {
            LogLine::Training(line) => {
                curves.training.push((line.step as f64, (panel.value)(&line.metrics)));
            }
            LogLine::Validation(line) => {
                curves.validation.push((line.step as f64, (panel.value)(&line.metrics)));
            }
        }
    }
    curves.training = smooth(&curves.training);
    curves
}

/// The mean over a window that ends at the point, from where half a window is there.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let window = ((points.len() as f64 * SMOOTH_SHARE) as usize).max(1);
    let mean = |end: usize| {
        let part = &points[(end + 1).saturating_sub(window)..=end];
        part.iter().map(|(_, value)| value).sum::<f64>() / part.len() as f64
    };
    (window / 2..points.len()).map(|index| (points[index].0, mean(index))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::train::log::TrainingLine;
    use crate::offline::train::log::ValidationLine;

    #[test]
    fn all_members_are_drawn_in_all_panels() {
        let metrics =
            |step: usize| Metrics { pairs: 4, loss: 1.0 / step as f64, accuracy: 0.75, margin: step as f64 };
        let log: Vec<LogLine> = (1..=50)
            .flat_map(|step| {
                let training = TrainingLine {
                    step,
                    epoch: 0,
                    tokens: 10,
                    learning_rate: 1e-5,
                    metrics: metrics(step),
                    objective: 0.5,
                    gradient_norm: 1.0,
                    seconds: 0.1,
                };
                let validation = ValidationLine { step, metrics: metrics(step), seconds: 0.1 };
                let validation = step.is_multiple_of(10).then_some(LogLine::Validation(validation));
                [LogLine::Training(training)].into_iter().chain(validation)
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.svg");
        draw(&path, &[(log.clone(), 30), (log[..20].to_vec(), 0), (Vec::new(), 0)]).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for expected in ["loss (nats)", "accuracy", "margin", "member-0", "member-2", "step"] {
            assert!(svg.contains(expected), "{expected}");
        }
        // five dots of the first member and one of the second, in three panels
        assert_eq!(svg.matches("<circle class=\"mark").count(), 3 * (5 + 1));
        assert_eq!(svg.matches("<circle class=\"ring member-0").count(), 3, "one step was kept of the first");
        assert!(svg.contains("<title>Training of 3 members") && svg.contains("max-width: 100%"), "{svg}");
        assert!(!svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn the_running_mean_starts_with_half_a_window() {
        let points: Vec<(f64, f64)> = (0..100).map(|step| (f64::from(step), f64::from(step))).collect();
        let smoothed = smooth(&points);
        assert_eq!((smoothed.len(), smoothed[0], smoothed[94]), (95, (5.0, 2.5), (99.0, 94.5)));
        assert_eq!(smooth(&points[..3]), points[..3]);
        assert_eq!(smooth(&[]), []);
    }
}
