//! `train.svg`: loss, accuracy and margin of all members over their steps, training as a line, validation as dots.
//!
//! A step's own figures jump about, so training is drawn as a running mean. Members differ in steps when they differ in
//! epochs; the axis is that of the longest.

use std::path::Path;

use anyhow::Context;
use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::model::save::replace_file;
use crate::offline::train::log::LogLine;
use crate::offline::train::metrics::Metrics;

const WIDTH: u32 = 1500;
const HEIGHT: u32 = 520;
/// Above the panels.
const TITLE_HEIGHT: u32 = 44;
/// Below them, for each row of the legend.
const LEGEND_HEIGHT: u32 = 26;
const LEGEND_COLUMNS: usize = 6;
/// The running mean is over this share of the steps.
const SMOOTH_SHARE: f64 = 0.1;
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(51, 51, 51);
const GRID: RGBColor = RGBColor(229, 229, 229);
/// Okabe and Ito's: told apart by colour-blind eyes too. A tenth member has the first colour again.
const COLOURS: [RGBColor; 9] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(120, 94, 240),
    RGBColor(148, 103, 60),
    RGBColor(102, 102, 102),
];

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
}

/// Draws the logs of the members, in their order.
pub(super) fn draw(path: &Path, logs: &[Vec<LogLine>]) -> anyhow::Result<()> {
    let mut svg = String::new();
    let rows = logs.len().div_ceil(LEGEND_COLUMNS) as u32;
    {
        let size = (WIDTH, TITLE_HEIGHT + HEIGHT + rows * LEGEND_HEIGHT + 10);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        paint(&area, logs).map_err(|error| anyhow!("{error}")).context("draw the curves")?;
    }
    Ok(replace_file(path, svg.as_bytes())?)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn paint(area: &Area<'_>, logs: &[Vec<LogLine>]) -> Drawn {
    area.fill(&WHITE)?;
    let (title, below) = area.split_vertically(TITLE_HEIGHT);
    let (panels, legend) = below.split_vertically(HEIGHT);
    let text = "line: running mean over training steps (with dropout, labels as given) · dots: validation";
    title.draw(&Text::new(text, (24, 16), (FONT, 17).into_font().color(&INK)))?;
    for (panel, area) in PANELS.iter().zip(panels.split_evenly((1, PANELS.len()))) {
        let curves: Vec<Curves> = logs.iter().map(|log| curves(log, panel)).collect();
        paint_panel(&area, panel, &curves)?;
    }
    let width = (WIDTH - 48) as usize / LEGEND_COLUMNS;
    for member in 0..logs.len() {
        let (x, y) = (24 + member % LEGEND_COLUMNS * width, member / LEGEND_COLUMNS * LEGEND_HEIGHT as usize);
        let (x, y) = (x as i32, y as i32 + 14);
        legend.draw(&PathElement::new([(x, y), (x + 28, y)], colour(member).stroke_width(3)))?;
        let style = (FONT, 17).into_font().color(&INK);
        legend.draw(&Text::new(format!("member-{member}"), (x + 36, y - 8), style))?;
    }
    area.present()?;
    Ok(())
}

fn paint_panel(area: &Area<'_>, panel: &Panel, curves: &[Curves]) -> Drawn {
    let points = || curves.iter().flat_map(|curves| curves.training.iter().chain(&curves.validation));
    let steps = points().map(|(step, _)| *step).fold(1.0, f64::max);
    let values = || points().map(|(_, value)| *value).chain([panel.chance]);
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let room = 0.05 * (high - low).max(1e-3);
    let top = (high + room).min(panel.most.unwrap_or(f64::INFINITY));
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, (FONT, 21).into_font().color(&INK))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..steps, low - room..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK.mix(0.5))
        .label_style((FONT, 15).into_font().color(&INK))
        .x_desc("step")
        .x_labels(6)
        .y_labels(8)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| label(*value, top - low))
        .draw()?;
    let chance = [(0.0, panel.chance), (steps, panel.chance)];
    chart.draw_series(DashedLineSeries::new(chance, 6, 6, INK.mix(0.4).stroke_width(1)))?;
    for (member, curves) in curves.iter().enumerate() {
        let colour = colour(member);
        chart.draw_series(LineSeries::new(curves.training.iter().copied(), colour.stroke_width(2)))?;
        // the line between dots leads the eye, and no more
        chart.draw_series(LineSeries::new(
            curves.validation.iter().copied(),
            colour.mix(0.45).stroke_width(1),
        ))?;
        let dot = |point: &(f64, f64)| Circle::new(*point, 4, ShapeStyle::from(&colour).filled());
        chart.draw_series(curves.validation.iter().map(dot))?;
    }
    Ok(())
}

/// As many decimals as a range of this height needs.
fn label(value: f64, height: f64) -> String {
    let decimals = (1.0 - height.log10()).ceil().clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}")
}

fn colour(member: usize) -> RGBColor {
    COLOURS[member % COLOURS.len()]
}

fn curves(log: &[LogLine], panel: &Panel) -> Curves {
    let mut curves = Curves { training: Vec::new(), validation: Vec::new() };
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
        draw(&path, &[log.clone(), log[..20].to_vec(), Vec::new()]).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for expected in ["loss (nats)", "accuracy", "margin", "member-0", "member-2", "step"] {
            assert!(svg.contains(expected), "{expected}");
        }
        // five dots of the first member and one of the second, in three panels
        assert_eq!(svg.matches("<circle").count(), 3 * (5 + 1));
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

    #[test]
    fn labels_have_the_digits_that_the_range_needs() {
        assert_eq!(label(0.6871, 0.5), "0.69");
        assert_eq!(label(12.0, 40.0), "12");
        assert_eq!(label(0.0421, 0.01), "0.042");
    }
}
