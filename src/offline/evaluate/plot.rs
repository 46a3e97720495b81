//! The plots of the page.

use crate::offline::evaluate::curves::Band;
use crate::offline::evaluate::curves::Interpolation;
use crate::offline::evaluate::curves::MemberCount;
use crate::offline::evaluate::curves::Point;
use crate::offline::evaluate::evaluation::BestOfN;
use crate::offline::evaluate::evaluation::BestOfNPoint;
use crate::offline::evaluate::evaluation::Difference;
use crate::offline::evaluate::evaluation::Estimate;
use crate::offline::evaluate::evaluation::Kind;
use crate::offline::evaluate::evaluation::ModelInfo;
use crate::offline::evaluate::evaluation::ModelResult;
use crate::offline::evaluate::evaluation::SetResult;
use crate::offline::evaluate::interval::Interval;
use crate::offline::evaluate::metrics;
use crate::offline::evaluate::metrics::ReliabilityBin;
use crate::offline::evaluate::table::p_value;
use crate::offline::evaluate::verdict::signed;
use crate::offline::svg::AXIS;
use crate::offline::svg::Axis;
use crate::offline::svg::Plot;
use crate::offline::svg::Range;
use crate::offline::svg::Scale;
use crate::offline::svg::Svg;
use crate::offline::svg::WIDTH;
use crate::offline::svg::escape;

/// Of a row with one model.
const ROW: f64 = 27.0;
/// Room for figures at the right end of a row.
const FIGURES: f64 = 58.0;
/// Room that the names of two references need side by side, each below the middle of its own.
const REFERENCE_NAMES: f64 = 60.0;
/// Longer names are cut; the whole one is in the title.
const MAX_LABEL_CHARS: usize = 16;
/// What the scale of agreement goes from and to, on every plot: two models that toss coins, and two that are one.
const AGREEMENT: (f64, f64) = (0.5, 1.0);

// ---- by row ----

/// Accuracy of each model with its interval, beside the rule of length and chance.
pub(super) fn accuracies(set: &SetResult, models: &[ModelInfo]) -> String {
    let rows: Vec<Row> = set
        .models
        .iter()
        .zip(models)
        .map(|(result, model)| Row {
            kind: model.kind,
            label: result.name.clone(),
            figure: fixed(result.accuracy.value, result.accuracy.interval),
            title: format!("{}: accuracy {}", result.name, in_words(result.accuracy)),
            estimate: result.accuracy,
        })
        .collect();
    let references = [(0.5, "chance"), (set.length_baseline.accuracy_ties_half, "longer wins")];
    whiskers(&format!("Accuracy on {}", set.name), "accuracy", &rows, 112.0, &references)
}

/// Paired differences with their intervals, around zero.
pub(super) fn differences(title: &str, differences: &[Difference], models: &[ModelInfo]) -> String {
    let kind =
        |name: &str| models.iter().find(|model| model.name == name).map_or(Kind::Member, |model| model.kind);
    let row = |difference: &Difference| {
        let against = match difference.against.split_once(" member") {
            Some((which, _)) => which, // "mean", "best"
            None => &difference.against,
        };
        let Estimate { value, interval, .. } = difference.estimate;
        let signed = |value| signed(value, interval.decimals());
        let p_value = difference.paired.map_or_else(String::new, |paired| {
            let counts = paired.discordant;
            format!(
                "; only the first is right about {} pairs, only the second about {}, McNemar's p {}",
                counts.only_of,
                counts.only_against,
                p_value(paired.p_value)
            )
        });
        Row {
            kind: kind(&difference.of),
            label: format!("{} − {}", shorten(&difference.of), shorten(against)),
            figure: signed(value),
            title: format!(
                "{} − {}: {}, 95% interval {} to {}{p_value}",
                difference.of,
                difference.against,
                signed(value),
                signed(interval.low),
                signed(interval.high)
            ),
            estimate: difference.estimate,
        }
    };
    let rows: Vec<Row> = differences.iter().map(row).collect();
    whiskers(title, "difference", &rows, 164.0, &[(0.0, "")])
}

/// Share of flipped labels that each model reproduces.
pub(super) fn memorised(set: &SetResult, models: &[ModelInfo]) -> String {
    let rows: Vec<(&ModelResult, Kind, Estimate)> = set
        .models
        .iter()
        .zip(models)
        .filter_map(|(result, model)| Some((result, model.kind, result.memorised?)))
        .collect();
    let label = 112.0;
    let height = rows.len() as f64 * ROW + AXIS + 6.0;
    let mut svg = Svg::new(&format!("Flipped labels reproduced, {}", set.name), (WIDTH, height));
    let x = Scale::new((0.0, 1.0), (label, WIDTH - FIGURES));
    let bottom = 6.0 + rows.len() as f64 * ROW;
    svg.x_axis(&x, bottom, 6.0, "share of flipped labels reproduced");
    for (number, (result, kind, estimate)) in rows.iter().enumerate() {
        let y = 6.0 + (number as f64 + 0.5) * ROW;
        let title = format!("{}: memorised {}", result.name, in_words(*estimate));
        draw_label(&mut svg, label - 10.0, y, *kind, &result.name);
        let (left, right) = (x.at(0.0), x.at(estimate.value));
        svg.open(&title);
        svg.draw(format_args!(
            "<rect class=\"bar {}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"/>",
            class(*kind),
            y - 8.0,
            right - left,
            16.0
        ));
        svg.line("over", (x.at(estimate.interval.low), y), (x.at(estimate.interval.high), y));
        svg.close();
        draw_figure(&mut svg, y, *kind, &fixed(estimate.value, estimate.interval));
    }
    svg.inline()
}

/// One line of a plot of rows.
struct Row {
    kind: Kind,
    label: String,
    figure: String,
    title: String,
    estimate: Estimate,
}

/// Rows with their intervals, and up to two references.
fn whiskers(title: &str, axis: &str, rows: &[Row], label: f64, references: &[(f64, &str)]) -> String {
    let top = 16.0; // room for the references' names
    let bottom = top + rows.len() as f64 * ROW;
    let mut svg = Svg::new(title, (WIDTH, bottom + AXIS));
    let ends = rows.iter().flat_map(|row| [row.estimate.interval.low, row.estimate.interval.high]);
    let mut range = Range::of(ends);
    if let [(zero, "")] = references {
        range.add(*zero);
    }
    let x = Scale::new(range.padded(), (label, WIDTH - FIGURES));
    svg.x_axis(&x, bottom, top, axis);
    let mut references: Vec<(f64, &str)> = references
        .iter()
        .filter(|(value, _)| x.holds(*value))
        .map(|&(value, name)| (x.at(value), name))
        .collect();
    references.sort_by(|(left, _), (right, _)| left.total_cmp(right));
    // the names of two that are close go to either side
    let anchors = match references[..] {
        [(left, _), (right, _)] if right - left < REFERENCE_NAMES => ["end", "start"],
        _ => ["middle", "middle"],
    };
    for ((at, name), anchor) in references.into_iter().zip(anchors) {
        svg.line("reference", (at, top - 2.0), (at, bottom));
        svg.text(&format!("note {anchor}"), (at, top - 6.0), name);
    }
    for (number, row) in rows.iter().enumerate() {
        let y = top + (number as f64 + 0.5) * ROW;
        draw_label(&mut svg, label - 10.0, y, row.kind, &row.label);
        svg.open(&row.title);
        // so that pointing anywhere in the row finds its title
        svg.draw(format_args!(
            "<rect class=\"row\" x=\"0\" y=\"{:.1}\" width=\"{WIDTH}\" height=\"{ROW}\"/>",
            y - ROW / 2.0
        ));
        let Interval { low, high } = row.estimate.interval;
        svg.line(&format!("whisker {}", class(row.kind)), (x.at(low), y), (x.at(high), y));
        draw_marker(&mut svg, row.kind, (x.at(row.estimate.value), y));
        svg.close();
        draw_figure(&mut svg, y, row.kind, &row.figure);
    }
    svg.inline()
}

// ---- with two axes ----

/// How often each model is right when it is so confident.
pub(super) fn reliability(set: &SetResult, models: &[ModelInfo]) -> String {
    let all = set.models.iter().flat_map(|model| &model.reliability.bins);
    let mut range = Range::of(all.flat_map(|bin| [bin.interval.low, bin.interval.high]));
    range.add(0.5);
    range.add(1.0);
    let mut plot = Plot::new(
        &format!("Reliability on {}", set.name),
        Axis::new("confidence, max(p, 1 − p)", (0.5, 1.0)),
        Axis::new("accuracy", range.padded()),
    );
    plot.path("straight", [(0.5, 0.5), (1.0, 1.0)]);
    for (model, kind) in in_drawing_order(&set.models, models) {
        let bins = &model.reliability.bins;
        let at = |bin: &ReliabilityBin| (bin.confidence, bin.accuracy);
        plot.path(&format!("curve {}", class(kind)), bins.iter().map(at));
        for bin in bins {
            let ReliabilityBin { pairs, confidence, accuracy, interval } = bin;
            let title = format!(
                "{}: {pairs} pairs, confidence {confidence:.3}, accuracy {accuracy:.3}, 95% interval {:.3} to {:.3}",
                model.name, interval.low, interval.high
            );
            // members stay in the background; of the others each interval is drawn
            if kind == Kind::Member {
                plot.disc(class(kind), at(bin), 2.0, &title);
            } else {
                let ends = [(*confidence, interval.low), (*confidence, interval.high)];
                plot.path(&format!("whisker thin {}", class(kind)), ends);
                draw_marker_at(&mut plot, kind, at(bin), &title);
            }
        }
    }
    plot.svg.inline()
}

/// Accuracy along one line, and the straight line between its ends.
pub(super) fn interpolation(line: &Interpolation) -> String {
    // where the accuracy would be if it were above the straight line by either end of that interval
    let low = |point: &Point| (point.lambda, point.straight_accuracy + point.above_straight.low);
    let high = |point: &Point| (point.lambda, point.straight_accuracy + point.above_straight.high);
    let range = Range::of(line.points.iter().flat_map(|point| [low(point).1, high(point).1]));
    let mut plot = Plot::new(
        &format!("Accuracy from {} to {}", line.first, line.second),
        Axis::new("λ: weights (1 − λ) · first + λ · second", (0.0, 1.0)),
        Axis::new("accuracy", range.padded()),
    );
    plot.path("band warm", line.points.iter().map(low).chain(line.points.iter().rev().map(high)));
    plot.path("straight", line.points.iter().map(|point| (point.lambda, point.straight_accuracy)));
    plot.path("curve warm", line.points.iter().map(|point| (point.lambda, point.accuracy)));
    for point in &line.points {
        let Point { lambda, accuracy, log_loss, straight_accuracy, above_straight, .. } = point;
        let title = format!(
            "λ = {lambda:.1}: accuracy {accuracy:.4}, straight line {straight_accuracy:.4}, above it (95%) {} to {}, log-loss \
             {log_loss:.4}",
            signed(above_straight.low, 3),
            signed(above_straight.high, 3)
        );
        let is_end = [0.0, 1.0].contains(lambda);
        plot.disc(class(if is_end { Kind::Member } else { Kind::Warm }), (*lambda, *accuracy), 4.5, &title);
    }
    plot.svg.inline()
}

/// Many lines at once: how far each is above or below its straight line.
pub(super) fn interpolations(lines: &[Interpolation]) -> String {
    let above = |point: &Point| point.accuracy - point.straight_accuracy;
    let points = || lines.iter().flat_map(|line| &line.points);
    let mut range = Range::of(points().map(above));
    range.add(0.0);
    // the line in the middle of them all has no interval of its own; this is what one line has
    let half = |point: &Point| (point.above_straight.high - point.above_straight.low) / 2.0;
    let halves: Vec<f64> = points().map(half).collect();
    let half = metrics::mean(halves.iter().copied());
    range.add(half);
    range.add(-half);
    let mut plot = Plot::new(
        "Accuracy along the lines between members, above the straight line",
        Axis::new("λ", (0.0, 1.0)),
        Axis::new("accuracy − straight line", range.padded()),
    );
    plot.path("band member", [(0.0, -half), (1.0, -half), (1.0, half), (0.0, half)]);
    plot.path("straight", [(0.0, 0.0), (1.0, 0.0)]);
    for line in lines {
        plot.path("curve member", line.points.iter().map(|point| (point.lambda, above(point))));
        for point in &line.points {
            let title = format!(
                "{} to {}, λ = {:.1}: {}",
                line.first,
                line.second,
                point.lambda,
                signed(above(point), 3)
            );
            plot.disc("member", (point.lambda, above(point)), 2.5, &title);
        }
    }
    let mean = |step: usize| {
        let values: Vec<f64> = lines.iter().map(|line| above(&line.points[step])).collect();
        (lines[0].points[step].lambda, metrics::mean(values.iter().copied()))
    };
    let means: Vec<(f64, f64)> = (0..lines[0].points.len()).map(mean).collect();
    plot.path("curve warm", means.iter().copied());
    for (lambda, mean) in means {
        plot.disc(
            "warm",
            (lambda, mean),
            4.5,
            &format!("mean of all lines, λ = {lambda:.1}: {}", signed(mean, 3)),
        );
    }
    plot.svg.inline()
}

/// Accuracy by number of members, WARM and ENS, with bands from the worst to the best subset.
pub(super) fn member_counts(counts: &[MemberCount]) -> String {
    let bands = counts.iter().flat_map(|count| [&count.warm, &count.ens]);
    let range = Range::of(bands.flat_map(|band| [band.min, band.max, band.interval.low, band.interval.high]));
    let last = counts.len() as f64;
    let mut plot = Plot::new(
        "Accuracy by number of members",
        Axis::of_counts("members, M", (0.8, last + 0.2)),
        Axis::new("accuracy", range.padded()),
    );
    type Of = fn(&MemberCount) -> &Band;
    let models: [(Kind, &str, Of, f64); 2] =
        [(Kind::Ens, "ENS", |count| &count.ens, 0.05), (Kind::Warm, "WARM", |count| &count.warm, -0.05)];
    for (kind, name, band, aside) in models {
        let x = |count: &MemberCount| count.members as f64 + aside;
        let there = counts.iter().map(|count| (x(count), band(count).max));
        let back = counts.iter().rev().map(|count| (x(count), band(count).min));
        plot.path(&format!("band {}", class(kind)), there.chain(back));
        plot.path(&format!("curve {}", class(kind)), counts.iter().map(|count| (x(count), band(count).mean)));
        for count in counts {
            let Band { mean, min, max, interval } = *band(count);
            let title = format!(
                "{name} of {} members: mean accuracy {mean:.4}, worst {min:.4}, best {max:.4}, over {} of {} subsets; by the \
                 number of pairs, 95% interval {:.4} to {:.4}",
                count.members, count.subsets, count.all_subsets, interval.low, interval.high
            );
            plot.path(
                &format!("whisker thin {}", class(kind)),
                [(x(count), interval.low), (x(count), interval.high)],
            );
            draw_marker_at(&mut plot, kind, (x(count), mean), &title);
        }
    }
    plot.svg.inline()
}

/// Mean gold reward of the best of n, by KL.
pub(super) fn best_of_n(best_of_n: &BestOfN, models: &[ModelInfo]) -> String {
    let points = &best_of_n.points;
    let ends = |model: &Estimate| [model.interval.low, model.interval.high];
    let mut range = Range::of(points.iter().flat_map(|point| point.models.iter().flat_map(ends)));
    points.iter().for_each(|point| range.add(point.gold));
    let farthest = points.last().map_or(1.0, |point| point.kl);
    let mut plot = Plot::new(
        "Best of n: mean gold reward",
        Axis::new("KL = ln n − (n − 1)/n, in nats", (-0.02 * farthest, farthest * 1.02)),
        Axis::new("gold reward", range.padded()),
    );
    plot.path("straight", points.iter().map(|point| (point.kl, point.gold)));
    let numbers: Vec<usize> = (0..models.len()).collect();
    for (number, kind) in in_drawing_order(&numbers, models) {
        let value = |point: &BestOfNPoint| point.models[*number].value;
        if kind != Kind::Member {
            let end = |of: fn(Interval) -> f64| {
                move |point: &BestOfNPoint| (point.kl, of(point.models[*number].interval))
            };
            let (low, high) = (end(|interval| interval.low), end(|interval| interval.high));
            plot.path(
                &format!("band {}", class(kind)),
                points.iter().map(low).chain(points.iter().rev().map(high)),
            );
        }
        plot.path(&format!("curve {}", class(kind)), points.iter().map(|point| (point.kl, value(point))));
        for point in points {
            let title =
                format!("{}, best of {}: {}", models[*number].name, point.n, in_words(point.models[*number]));
            draw_marker_at(&mut plot, kind, (point.kl, value(point)), &title);
        }
    }
    plot.svg.inline()
}

/// Share of pairs in which two models prefer the same side.
pub(super) fn agreement(set: &SetResult, models: &[ModelInfo]) -> String {
    let shares = &set.agreement.same_side;
    let label = 112.0;
    let cell = ((WIDTH - label) / models.len() as f64).min(64.0);
    let height = cell.min(34.0);
    let top = 58.0;
    let bottom = top + models.len() as f64 * height;
    let mut svg = Svg::new(&format!("Agreement on {}", set.name), (WIDTH, bottom + AXIS));
    let strength = |share: f64| ((share - AGREEMENT.0) / (AGREEMENT.1 - AGREEMENT.0)).clamp(0.0, 1.0);
    let opacity = |share: f64| 0.55 * strength(share);
    let (steps, width) = (10, 16.0);
    for step in 0..=steps {
        let share = AGREEMENT.0 + (AGREEMENT.1 - AGREEMENT.0) * f64::from(step) / f64::from(steps);
        let x = label + f64::from(step) * width;
        svg.draw(format_args!(
            "<rect class=\"cell\" x=\"{x:.1}\" y=\"{:.1}\" width=\"{width}\" height=\"10\" fill-opacity=\"{:.2}\"/>",
            bottom + 14.0,
            opacity(share)
        ));
    }
    let ends = (label, label + f64::from(steps + 1) * width);
    svg.text("number end", (ends.0 - 6.0, bottom + 23.0), &format!("{} or less", AGREEMENT.0));
    svg.text("number start", (ends.1 + 6.0, bottom + 23.0), &format!("{}: share of pairs", AGREEMENT.1));
    for (row, model) in models.iter().enumerate() {
        let y = top + (row as f64 + 0.5) * height;
        draw_label(&mut svg, label - 10.0, y, model.kind, &model.name);
        let x = label + (row as f64 + 0.5) * cell;
        svg.draw(format_args!(
            "<text class=\"{}\" transform=\"translate({:.1} {:.1}) rotate(-32)\">{}</text>",
            label_class(model.kind, "start"),
            x - 6.0,
            top - 8.0,
            escape(&shorten(&model.name))
        ));
        for (column, other) in models.iter().enumerate() {
            let (share, x) = (shares[row][column], label + column as f64 * cell);
            let opacity = if row == column { 0.0 } else { opacity(share) };
            svg.open(&format!(
                "{} and {} prefer the same side in {share:.4} of the pairs",
                model.name, other.name
            ));
            svg.draw(format_args!(
                "<rect class=\"cell\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"3\" fill-opacity=\"{opacity:.2}\"/>",
                x + 1.0,
                y - height / 2.0 + 1.0,
                cell - 2.0,
                height - 2.0
            ));
            // three decimals take some 34 units, without the zero some 26; the title tells them in any case
            let text = match cell {
                _ if row == column => "·".to_owned(),
                ..26.0 => String::new(),
                ..40.0 => format!("{share:.3}").trim_start_matches('0').to_owned(),
                _ => format!("{share:.3}"),
            };
            svg.text("number middle", (x + cell / 2.0, y + 4.0), &text);
            svg.close();
        }
    }
    svg.inline()
}

/// Members first, so that WARM and ENS lie on top.
fn in_drawing_order<'a, T>(items: &'a [T], models: &[ModelInfo]) -> Vec<(&'a T, Kind)> {
    let mut order: Vec<(&T, Kind)> = items.iter().zip(models.iter().map(|model| model.kind)).collect();
    order.sort_by_key(|(_, kind)| match kind {
        Kind::Member => 0,
        Kind::Start => 1,
        Kind::Ens => 2,
        Kind::Warm => 3,
    });
    order
}

/// With the digits that it deserves.
fn fixed(value: f64, interval: Interval) -> String {
    format!("{value:.*}", interval.decimals())
}

fn in_words(estimate: Estimate) -> String {
    let Estimate { value, interval, .. } = estimate;
    format!("{value:.4}, 95% interval {:.4} to {:.4}", interval.low, interval.high)
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Member => "member",
        Kind::Warm => "warm",
        Kind::Ens => "ens",
        Kind::Start => "start",
    }
}

fn label_class(kind: Kind, anchor: &str) -> String {
    let strength = if kind == Kind::Member { "" } else { "strong " };
    format!("label {strength}{anchor}")
}

fn shorten(name: &str) -> String {
    if name.chars().count() <= MAX_LABEL_CHARS {
        return name.to_owned();
    }
    // the end of a path tells more than its start
    let skip = name.chars().count() - (MAX_LABEL_CHARS - 1);
    format!("…{}", name.chars().skip(skip).collect::<String>())
}

/// A model's name, or what a row is about, ending at `x`.
fn draw_label(svg: &mut Svg, x: f64, y: f64, kind: Kind, name: &str) {
    let is_name = !name.contains(" − ");
    let shown = if is_name { shorten(name) } else { name.to_owned() };
    svg.text(&label_class(kind, "end"), (x, y + 4.0), &shown);
}

/// A figure at the right end of a row.
fn draw_figure(svg: &mut Svg, y: f64, kind: Kind, text: &str) {
    let strength = if kind == Kind::Member { "" } else { "strong " };
    svg.text(&format!("number {strength}end"), (WIDTH - 4.0, y + 4.0), text);
}

/// A disc, for ENS a diamond and for the start a square: they are told apart without colour, too.
fn draw_marker(svg: &mut Svg, kind: Kind, (x, y): (f64, f64)) {
    match kind {
        Kind::Ens => svg.draw(format_args!(
            "<path class=\"mark ens\" d=\"M{:.1} {y:.1}L{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}Z\"/>",
            x - 6.5,
            y - 6.5,
            x + 6.5,
            y + 6.5
        )),
        Kind::Warm => {
            svg.draw(format_args!("<circle class=\"mark warm\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5.5\"/>"))
        }
        Kind::Start => svg.draw(format_args!(
            "<rect class=\"mark start\" x=\"{:.1}\" y=\"{:.1}\" width=\"10\" height=\"10\"/>",
            x - 5.0,
            y - 5.0
        )),
        Kind::Member => {
            svg.draw(format_args!("<circle class=\"mark member\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"))
        }
    }
}

/// The same at a point of a plot, with a title.
fn draw_marker_at(plot: &mut Plot, kind: Kind, at: (f64, f64), title: &str) {
    let at = plot.place(at);
    plot.svg.open(title);
    draw_marker(&mut plot.svg, kind, at);
    plot.svg.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_at_their_start() {
        assert_eq!(shorten("member-0"), "member-0");
        assert_eq!(shorten("runs/2026/member-12"), "…/2026/member-12");
    }
}
