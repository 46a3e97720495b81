//! The plots of the page, as SVG that takes its colours from the page's style sheet.
//!
//! # Why not plotters?
//!
//! It writes colours, fonts and text sizes into every shape. The page wants classes instead, so that one style sheet
//! serves light and dark, and a `<title>` in every mark, so that pointing at it tells its figures.

use std::fmt::Display;
use std::fmt::Write;

use crate::offline::evaluate::bootstrap::Interval;
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
use crate::offline::evaluate::metrics::ReliabilityBin;
use crate::offline::evaluate::verdict::signed;

/// Of every plot, in its own units; the page scales it, to about one pixel each on a telephone.
const WIDTH: f64 = 440.0;
/// Of plots with two axes.
const HEIGHT: f64 = 280.0;
/// Of a row with one model.
const ROW: f64 = 27.0;
/// Below the rows: numbers and a title.
const AXIS: f64 = 42.0;
/// Room for figures at the right end of a row.
const FIGURES: f64 = 58.0;
/// Longer names are cut; the whole one is in the title.
const MAX_LABEL_CHARS: usize = 16;
/// Bins of a reliability diagram with a smaller share of the pairs are noise.
const LEAST_BIN_SHARE: f64 = 0.02;

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
            figure: format!("{:.3}", result.accuracy.value),
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
        let Estimate { value, interval } = difference.estimate;
        Row {
            kind: kind(&difference.of),
            label: format!("{} − {}", shorten(&difference.of), shorten(against)),
            figure: signed(value),
            title: format!(
                "{} − {}: {}, 95% interval {} to {}",
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
    let mut svg = Svg::new(&format!("Flipped labels reproduced, {}", set.name), height);
    let x = Scale { from: (0.0, 1.0), to: (label, WIDTH - FIGURES), least_step: 0.0 };
    let bottom = 6.0 + rows.len() as f64 * ROW;
    svg.x_axis(&x, bottom, 6.0, "share of flipped labels reproduced");
    for (number, (result, kind, estimate)) in rows.iter().enumerate() {
        let y = 6.0 + (number as f64 + 0.5) * ROW;
        let title = format!("{}: memorised {}", result.name, in_words(*estimate));
        svg.label(label - 10.0, y, *kind, &result.name);
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
        svg.figure(y, *kind, &format!("{:.3}", estimate.value));
    }
    svg.finish()
}

/// One line of a plot of rows.
struct Row {
    kind: Kind,
    label: String,
    figure: String,
    title: String,
    estimate: Estimate,
}

fn whiskers(title: &str, axis: &str, rows: &[Row], label: f64, references: &[(f64, &str)]) -> String {
    let top = 16.0; // room for the references' names
    let bottom = top + rows.len() as f64 * ROW;
    let mut svg = Svg::new(title, bottom + AXIS);
    let ends = rows.iter().flat_map(|row| [row.estimate.interval.low, row.estimate.interval.high]);
    let mut range = Range::of(ends);
    if let [(zero, "")] = references {
        range.add(*zero);
    }
    let x = Scale { from: range.padded(), to: (label, WIDTH - FIGURES), least_step: 0.0 };
    svg.x_axis(&x, bottom, top, axis);
    for &(value, name) in references.iter().filter(|(value, _)| x.holds(*value)) {
        svg.line("reference", (x.at(value), top - 2.0), (x.at(value), bottom));
        svg.text("note middle", (x.at(value), top - 6.0), name);
    }
    for (number, row) in rows.iter().enumerate() {
        let y = top + (number as f64 + 0.5) * ROW;
        svg.label(label - 10.0, y, row.kind, &row.label);
        svg.open(&row.title);
        // so that pointing anywhere in the row finds its title
        svg.draw(format_args!(
            "<rect class=\"row\" x=\"0\" y=\"{:.1}\" width=\"{WIDTH}\" height=\"{ROW}\"/>",
            y - ROW / 2.0
        ));
        let Interval { low, high } = row.estimate.interval;
        svg.line(&format!("whisker {}", class(row.kind)), (x.at(low), y), (x.at(high), y));
        svg.marker(row.kind, (x.at(row.estimate.value), y));
        svg.close();
        svg.figure(y, row.kind, &row.figure);
    }
    svg.finish()
}

// ---- with two axes ----

/// How often each model is right when it is so confident.
pub(super) fn reliability(set: &SetResult, models: &[ModelInfo]) -> String {
    let is_drawn = |bin: &&ReliabilityBin| bin.pairs as f64 >= LEAST_BIN_SHARE * set.pairs as f64;
    let bins = |model: &'_ ModelResult| -> Vec<ReliabilityBin> {
        model.reliability.bins.iter().filter(is_drawn).cloned().collect()
    };
    let all: Vec<ReliabilityBin> = set.models.iter().flat_map(bins).collect();
    let mut range = Range::of(all.iter().map(|bin| bin.accuracy));
    range.add(0.5);
    range.add(1.0);
    let mut plot = Plot::new(
        &format!("Reliability on {}", set.name),
        Axis::new("confidence, max(p, 1 − p)", (0.5, 1.0)),
        Axis::new("accuracy", range.padded()),
    );
    plot.path("straight", [(0.5, 0.5), (1.0, 1.0)]);
    let most = all.iter().map(|bin| bin.pairs).max().unwrap_or(1) as f64;
    for (model, kind) in in_drawing_order(&set.models, models) {
        let bins = bins(model);
        let at = |bin: &ReliabilityBin| (bin.confidence, bin.accuracy);
        plot.path(&format!("curve {}", class(kind)), bins.iter().map(at));
        for bin in &bins {
            let title = format!(
                "{}: {} pairs, confidence {:.3}, accuracy {:.3}",
                model.name, bin.pairs, bin.confidence, bin.accuracy
            );
            // the area is the number of pairs; members stay in the background
            let largest = if kind == Kind::Member { 2.0 } else { 6.0 };
            plot.disc(kind, at(bin), 1.0 + largest * (bin.pairs as f64 / most).sqrt(), &title);
        }
    }
    plot.finish()
}

/// Accuracy along one line, and the straight line between its ends.
pub(super) fn interpolation(line: &Interpolation) -> String {
    let range = Range::of(line.points.iter().flat_map(|point| [point.accuracy, point.straight_accuracy]));
    let mut plot = Plot::new(
        &format!("Accuracy from {} to {}", line.first, line.second),
        Axis::new("λ: weights (1 − λ) · first + λ · second", (0.0, 1.0)),
        Axis::new("accuracy", range.padded()),
    );
    plot.path("straight", line.points.iter().map(|point| (point.lambda, point.straight_accuracy)));
    plot.path("curve warm", line.points.iter().map(|point| (point.lambda, point.accuracy)));
    for point in &line.points {
        let Point { lambda, accuracy, log_loss, straight_accuracy, .. } = point;
        let title = format!(
            "λ = {lambda:.1}: accuracy {accuracy:.4}, straight line {straight_accuracy:.4}, log-loss {log_loss:.4}"
        );
        let is_end = [0.0, 1.0].contains(lambda);
        plot.disc(if is_end { Kind::Member } else { Kind::Warm }, (*lambda, *accuracy), 4.5, &title);
    }
    plot.finish()
}

/// Many lines at once: how far each is above or below its straight line.
pub(super) fn interpolations(lines: &[Interpolation]) -> String {
    let above = |point: &Point| point.accuracy - point.straight_accuracy;
    let mut range = Range::of(lines.iter().flat_map(|line| line.points.iter().map(above)));
    range.add(0.0);
    let mut plot = Plot::new(
        "Accuracy along the lines between members, above the straight line",
        Axis::new("λ", (0.0, 1.0)),
        Axis::new("accuracy − straight line", range.padded()),
    );
    plot.path("straight", [(0.0, 0.0), (1.0, 0.0)]);
    for line in lines {
        plot.path("curve member", line.points.iter().map(|point| (point.lambda, above(point))));
        for point in &line.points {
            let title = format!(
                "{} to {}, λ = {:.1}: {}",
                line.first,
                line.second,
                point.lambda,
                signed(above(point))
            );
            plot.disc(Kind::Member, (point.lambda, above(point)), 2.5, &title);
        }
    }
    let mean = |step: usize| {
        let values: Vec<f64> = lines.iter().map(|line| above(&line.points[step])).collect();
        (lines[0].points[step].lambda, Band::new(&values).mean)
    };
    let means: Vec<(f64, f64)> = (0..lines[0].points.len()).map(mean).collect();
    plot.path("curve warm", means.iter().copied());
    for (lambda, mean) in means {
        plot.disc(
            Kind::Warm,
            (lambda, mean),
            4.5,
            &format!("mean of all lines, λ = {lambda:.1}: {}", signed(mean)),
        );
    }
    plot.finish()
}

/// Accuracy by number of members, WARM and ENS, with bands from the worst to the best subset.
pub(super) fn member_counts(counts: &[MemberCount]) -> String {
    let bands = counts.iter().flat_map(|count| [&count.warm, &count.ens]);
    let range = Range::of(bands.flat_map(|band| [band.min, band.max]));
    let last = counts.len() as f64;
    let mut plot = Plot::new(
        "Accuracy by number of members",
        Axis { least_step: 1.0, ..Axis::new("members, M", (0.8, last + 0.2)) },
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
            let Band { mean, min, max } = *band(count);
            let title = format!(
                "{name} of {} members: mean accuracy {mean:.4}, worst {min:.4}, best {max:.4}, over {} of {} subsets",
                count.members, count.subsets, count.all_subsets
            );
            plot.marker(kind, (x(count), mean), &title);
        }
    }
    plot.finish()
}

/// Mean gold reward of the best of n, by KL.
pub(super) fn best_of_n(best_of_n: &BestOfN, models: &[ModelInfo]) -> String {
    let points = &best_of_n.points;
    let mut range = Range::of(points.iter().flat_map(|point| point.models.iter().map(|model| model.value)));
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
        plot.path(&format!("curve {}", class(kind)), points.iter().map(|point| (point.kl, value(point))));
        for point in points {
            let title =
                format!("{}, best of {}: {}", models[*number].name, point.n, in_words(point.models[*number]));
            plot.marker(kind, (point.kl, value(point)), &title);
        }
    }
    plot.finish()
}

/// Share of pairs in which two models prefer the same side.
pub(super) fn agreement(set: &SetResult, models: &[ModelInfo]) -> String {
    let shares = &set.agreement.same_side;
    let label = 112.0;
    let cell = ((WIDTH - label) / models.len() as f64).min(64.0);
    let height = cell.min(34.0);
    let top = 58.0;
    let mut svg = Svg::new(&format!("Agreement on {}", set.name), top + models.len() as f64 * height + 4.0);
    let apart = |row: usize, column: usize| (row != column).then(|| shares[row][column]);
    let pairs =
        (0..models.len()).flat_map(|row| (0..models.len()).filter_map(move |column| apart(row, column)));
    let least = pairs.fold(1.0, f64::min);
    for (row, model) in models.iter().enumerate() {
        let y = top + (row as f64 + 0.5) * height;
        svg.label(label - 10.0, y, model.kind, &model.name);
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
            let strength = if least < 1.0 { (share - least) / (1.0 - least) } else { 1.0 };
            let opacity = if row == column { 0.0 } else { 0.10 + 0.45 * strength };
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
    svg.finish()
}

/// Members first, so that WARM and ENS lie on top.
fn in_drawing_order<'a, T>(items: &'a [T], models: &[ModelInfo]) -> Vec<(&'a T, Kind)> {
    let mut order: Vec<(&T, Kind)> = items.iter().zip(models.iter().map(|model| model.kind)).collect();
    order.sort_by_key(|(_, kind)| match kind {
        Kind::Member => 0,
        Kind::Ens => 1,
        Kind::Warm => 2,
    });
    order
}

fn in_words(estimate: Estimate) -> String {
    let Estimate { value, interval } = estimate;
    format!("{value:.4}, 95% interval {:.4} to {:.4}", interval.low, interval.high)
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Member => "member",
        Kind::Warm => "warm",
        Kind::Ens => "ens",
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

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(letter),
        }
    }
    escaped
}

// ---- scales ----

/// From the smallest to the largest of some values.
struct Range {
    low: f64,
    high: f64,
}

impl Range {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut range = Self { low: f64::INFINITY, high: f64::NEG_INFINITY };
        values.for_each(|value| range.add(value));
        range
    }

    fn add(&mut self, value: f64) {
        self.low = self.low.min(value);
        self.high = self.high.max(value);
    }

    /// With some room at both ends; never empty.
    fn padded(&self) -> (f64, f64) {
        let room = ((self.high - self.low) * 0.06).max(0.002);
        (self.low - room, self.high + room)
    }
}

/// What an axis shows.
struct Axis<'a> {
    title: &'a str,
    range: (f64, f64),
    /// Between ticks; 0 for any.
    least_step: f64,
}

impl<'a> Axis<'a> {
    fn new(title: &'a str, range: (f64, f64)) -> Self {
        Self { title, range, least_step: 0.0 }
    }

    fn scale(&self, start: f64, end: f64) -> Scale {
        Scale { from: self.range, to: (start, end), least_step: self.least_step }
    }
}

/// From values to places.
#[derive(Clone, Copy)]
struct Scale {
    from: (f64, f64),
    to: (f64, f64),
    /// Between ticks; 0 for any.
    least_step: f64,
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let share = (value - self.from.0) / (self.from.1 - self.from.0);
        self.to.0 + share * (self.to.1 - self.to.0)
    }

    fn holds(&self, value: f64) -> bool {
        (self.from.0..=self.from.1).contains(&value)
    }

    /// Round values, at most so many steps apart, and the decimals that they need.
    fn ticks(&self, steps: f64) -> (Vec<f64>, usize) {
        let rough = ((self.from.1 - self.from.0) / steps).max(self.least_step);
        let power = rough.log10().floor();
        let unit = 10.0_f64.powf(power);
        let step =
            [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * unit).find(|step| *step >= rough * 0.999);
        let step = step.unwrap_or(unit * 10.0);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let (first, last) = ((self.from.0 / step).ceil() as i64, (self.from.1 / step).floor() as i64);
        ((first..=last).map(|number| number as f64 * step).collect(), decimals)
    }
}

// ---- drawing ----

/// Two axes and what is drawn between them.
struct Plot {
    svg: Svg,
    x: Scale,
    y: Scale,
}

impl Plot {
    fn new(title: &str, x: Axis<'_>, y: Axis<'_>) -> Self {
        let mut svg = Svg::new(title, HEIGHT);
        let (left, top, bottom) = (50.0, 22.0, HEIGHT - AXIS);
        let plot_x = x.scale(left, WIDTH - 12.0);
        let plot_y = y.scale(bottom, top);
        let (ticks, decimals) = plot_y.ticks(5.0);
        for tick in ticks {
            let at = plot_y.at(tick);
            svg.line("grid", (left, at), (WIDTH - 12.0, at));
            svg.text("number end", (left - 8.0, at + 4.0), &minus(tick, decimals));
        }
        svg.text("note start", (4.0, 10.0), y.title);
        svg.x_axis(&plot_x, bottom, top, x.title);
        Self { svg, x: plot_x, y: plot_y }
    }

    fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.x.at(x), self.y.at(y))
    }

    fn path(&mut self, class: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        let points: Vec<String> = points
            .into_iter()
            .map(|point| self.place(point))
            .map(|(x, y)| format!("{x:.1} {y:.1}"))
            .collect();
        self.svg.draw(format_args!("<path class=\"{class}\" d=\"M{}\"/>", points.join("L")));
    }

    fn disc(&mut self, kind: Kind, at: (f64, f64), radius: f64, title: &str) {
        let (x, y) = self.place(at);
        self.svg.open(title);
        self.svg.draw(format_args!(
            "<circle class=\"mark {}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\"/>",
            class(kind)
        ));
        self.svg.close();
    }

    fn marker(&mut self, kind: Kind, at: (f64, f64), title: &str) {
        let at = self.place(at);
        self.svg.open(title);
        self.svg.marker(kind, at);
        self.svg.close();
    }

    fn finish(self) -> String {
        self.svg.finish()
    }
}

struct Svg {
    text: String,
}

impl Svg {
    fn new(title: &str, height: f64) -> Self {
        let title = escape(title);
        Self {
            text: format!("<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{title}\">\n"),
        }
    }

    fn draw(&mut self, shape: impl Display) {
        let _ = writeln!(self.text, "{shape}"); // a string takes all
    }

    /// Until [`Self::close`], what is drawn has this title.
    fn open(&mut self, title: &str) {
        self.draw(format_args!("<g><title>{}</title>", escape(title)));
    }

    fn close(&mut self) {
        self.draw("</g>");
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        self.draw(format_args!(
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    fn text(&mut self, class: &str, at: (f64, f64), text: &str) {
        self.draw(format_args!(
            "<text class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            at.0,
            at.1,
            escape(text)
        ));
    }

    /// A model's name, or what a row is about, ending at `x`.
    fn label(&mut self, x: f64, y: f64, kind: Kind, name: &str) {
        let is_name = !name.contains(" − ");
        let shown = if is_name { shorten(name) } else { name.to_owned() };
        self.text(&label_class(kind, "end"), (x, y + 4.0), &shown);
    }

    /// A figure at the right end of a row.
    fn figure(&mut self, y: f64, kind: Kind, text: &str) {
        let strength = if kind == Kind::Member { "" } else { "strong " };
        self.text(&format!("number {strength}end"), (WIDTH - 4.0, y + 4.0), text);
    }

    /// A disc, or for ENS a diamond: the two are told apart without colour, too.
    fn marker(&mut self, kind: Kind, (x, y): (f64, f64)) {
        match kind {
            Kind::Ens => self.draw(format_args!(
                "<path class=\"mark ens\" d=\"M{:.1} {y:.1}L{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}Z\"/>",
                x - 6.5,
                y - 6.5,
                x + 6.5,
                y + 6.5
            )),
            Kind::Warm => {
                self.draw(format_args!("<circle class=\"mark warm\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5.5\"/>"))
            }
            Kind::Member => {
                self.draw(format_args!("<circle class=\"mark member\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"))
            }
        }
    }

    fn x_axis(&mut self, x: &Scale, bottom: f64, top: f64, title: &str) {
        let (ticks, decimals) = x.ticks(5.0);
        for tick in ticks {
            self.line("grid", (x.at(tick), top), (x.at(tick), bottom));
            self.text("number middle", (x.at(tick), bottom + 16.0), &minus(tick, decimals));
        }
        self.line("axis", (x.to.0, bottom), (x.to.1, bottom));
        self.text("note middle", ((x.to.0 + x.to.1) / 2.0, bottom + 34.0), title);
    }

    fn finish(mut self) -> String {
        self.text.push_str("</svg>");
        self.text
    }
}

/// With a minus that is as wide as a plus, and none before zero.
fn minus(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(zero) if zero.chars().all(|letter| matches!(letter, '0' | '.')) => zero.to_owned(),
        Some(digits) => format!("−{digits}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let ticks = |low, high| Scale { from: (low, high), to: (0.0, 1.0), least_step: 0.0 }.ticks(5.0);
        let close = |found: Vec<f64>, expected: &[f64]| {
            found.len() == expected.len()
                && found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9)
        };
        let (found, decimals) = ticks(0.0, 1.0);
        assert!(close(found, &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]) && decimals == 1);
        let (found, decimals) = ticks(-0.013, 0.011);
        assert!(close(found, &[-0.01, -0.005, 0.0, 0.005, 0.01]) && decimals == 3);
        let (found, decimals) = ticks(0.0, 40.0);
        assert!(close(found, &[0.0, 10.0, 20.0, 30.0, 40.0]) && decimals == 0);
    }

    #[test]
    fn what_users_wrote_cannot_become_markup() {
        assert_eq!(escape("<b a='\"'>&"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;");
        let mut svg = Svg::new("<x>", 10.0);
        svg.text("label", (0.0, 0.0), "</text><script>");
        svg.open("<y>");
        let text = svg.finish();
        assert!(!text.contains("<x>") && !text.contains("<script>") && !text.contains("<y>"), "{text}");
    }

    #[test]
    fn names_are_cut_at_their_start() {
        assert_eq!(shorten("member-0"), "member-0");
        assert_eq!(shorten("runs/2026/member-12"), "…/2026/member-12");
    }

    #[test]
    fn numbers_on_axes_have_a_real_minus_and_no_negative_zero() {
        assert_eq!(
            (minus(-0.5, 1), minus(-0.0, 1), minus(0.25, 2)),
            ("−0.5".to_owned(), "0.0".to_owned(), "0.25".to_owned())
        );
    }
}
