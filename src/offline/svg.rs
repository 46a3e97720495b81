//! Plots as SVG. Shapes have classes instead of colours and fonts, so that a style sheet can serve light and dark, and
//! marks have titles, so that pointing at them tells their figures.

use std::fmt::Display;
use std::fmt::Write;

/// Of a plot, in its own units; shown at about one pixel each on a telephone.
pub(super) const WIDTH: f64 = 440.0;
/// Of a plot with two axes.
pub(super) const HEIGHT: f64 = 280.0;
/// Below what is drawn: numbers and a title.
pub(super) const AXIS: f64 = 42.0;

/// Shapes that become a picture.
pub(super) struct Svg {
    title: String,
    size: (f64, f64),
    shapes: String,
}

impl Svg {
    /// Of this title, for those who cannot see it, and this width and height.
    pub(super) fn new(title: &str, size: (f64, f64)) -> Self {
        Self { title: escape(title), size, shapes: String::new() }
    }

    /// Adds a shape, as it is written.
    pub(super) fn draw(&mut self, shape: impl Display) {
        let _ = writeln!(self.shapes, "{shape}"); // a string takes all
    }

    /// Until [`Self::close`], what is drawn has this title.
    pub(super) fn open(&mut self, title: &str) {
        self.draw(format_args!("<g><title>{}</title>", escape(title)));
    }

    pub(super) fn close(&mut self) {
        self.draw("</g>");
    }

    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        self.draw(format_args!(
            "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    pub(super) fn text(&mut self, class: &str, at: (f64, f64), text: &str) {
        self.draw(format_args!(
            "<text class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            at.0,
            at.1,
            escape(text)
        ));
    }

    /// Vertical lines at round values, with their numbers and a title below.
    pub(super) fn x_axis(&mut self, x: &Scale, bottom: f64, top: f64, title: &str) {
        let (ticks, decimals) = x.ticks(5.0);
        for tick in ticks {
            self.line("grid", (x.at(tick), top), (x.at(tick), bottom));
            self.text("number middle", (x.at(tick), bottom + 16.0), &minus(tick, decimals));
        }
        self.line("axis", (x.to.0, bottom), (x.to.1, bottom));
        self.text("note middle", ((x.to.0 + x.to.1) / 2.0, bottom + 34.0), title);
    }

    /// Adds a whole picture, its left upper corner there.
    pub(super) fn place(&mut self, at: (f64, f64), other: &Self) {
        let Self { title, shapes, .. } = other;
        self.draw(format_args!(
            "<g transform=\"translate({:.1} {:.1})\" role=\"img\" aria-label=\"{title}\">\n{shapes}</g>",
            at.0, at.1
        ));
    }

    /// The picture as part of a page, which gives it width and style.
    pub(super) fn inline(&self) -> String {
        let Self { title, size: (width, height), shapes } = self;
        format!(
            "<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{title}\">\n{shapes}</svg>"
        )
    }

    /// The picture as a file of its own, as wide as it is or as there is room for; of its style, the class `paper` is what it is
    /// drawn on.
    pub(super) fn file(&self, style: &str) -> String {
        let Self { title, size: (width, height), shapes } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             style=\"max-width: 100%; height: auto\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" \
             aria-label=\"{title}\">\n<title>{title}</title>\n<style>\n{style}</style>\n<rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n{shapes}</svg>\n"
        )
    }
}

/// Two axes and what is drawn between them.
pub(super) struct Plot {
    pub(super) svg: Svg,
    x: Scale,
    y: Scale,
}

impl Plot {
    pub(super) fn new(title: &str, x: Axis<'_>, y: Axis<'_>) -> Self {
        let mut svg = Svg::new(title, (WIDTH, HEIGHT));
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

    /// Where a point with these values is.
    pub(super) fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.x.at(x), self.y.at(y))
    }

    /// A line through points; nothing where there are none.
    pub(super) fn path(&mut self, class: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        let points: Vec<String> = points
            .into_iter()
            .map(|point| self.place(point))
            .map(|(x, y)| format!("{x:.1} {y:.1}"))
            .collect();
        if !points.is_empty() {
            self.svg.draw(format_args!("<path class=\"{class}\" d=\"M{}\"/>", points.join("L")));
        }
    }

    /// A disc that tells its title when it is pointed at.
    pub(super) fn disc(&mut self, class: &str, at: (f64, f64), radius: f64, title: &str) {
        let (x, y) = self.place(at);
        self.svg.open(title);
        self.svg.draw(format_args!(
            "<circle class=\"mark {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\"/>"
        ));
        self.svg.close();
    }
}

/// From the smallest to the largest of some values.
pub(super) struct Range {
    low: f64,
    high: f64,
}

impl Range {
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut range = Self { low: f64::INFINITY, high: f64::NEG_INFINITY };
        values.for_each(|value| range.add(value));
        range
    }

    pub(super) fn add(&mut self, value: f64) {
        self.low = self.low.min(value);
        self.high = self.high.max(value);
    }

    /// With some room at both ends; never empty.
    pub(super) fn padded(&self) -> (f64, f64) {
        let room = ((self.high - self.low) * 0.06).max(0.002);
        (self.low - room, self.high + room)
    }
}

/// What an axis shows.
pub(super) struct Axis<'a> {
    title: &'a str,
    range: (f64, f64),
    /// Between ticks; 0 for any.
    least_step: f64,
}

impl<'a> Axis<'a> {
    pub(super) fn new(title: &'a str, range: (f64, f64)) -> Self {
        Self { title, range, least_step: 0.0 }
    }

    /// Of what there are only whole numbers of.
    pub(super) fn of_counts(title: &'a str, range: (f64, f64)) -> Self {
        Self { title, range, least_step: 1.0 }
    }

    fn scale(&self, start: f64, end: f64) -> Scale {
        Scale { least_step: self.least_step, ..Scale::new(self.range, (start, end)) }
    }
}

/// From values to places.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    from: (f64, f64),
    to: (f64, f64),
    /// Between ticks; 0 for any.
    least_step: f64,
}

impl Scale {
    /// Of values between two, at places between two.
    pub(super) fn new(from: (f64, f64), to: (f64, f64)) -> Self {
        Self { from, to, least_step: 0.0 }
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        let share = (value - self.from.0) / (self.from.1 - self.from.0);
        self.to.0 + share * (self.to.1 - self.to.0)
    }

    pub(super) fn holds(&self, value: f64) -> bool {
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

/// What users wrote, as text and not as markup.
pub(super) fn escape(text: &str) -> String {
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
        let ticks = |low, high| Scale::new((low, high), (0.0, 1.0)).ticks(5.0);
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
        let mut svg = Svg::new("<x>", (10.0, 10.0));
        svg.text("label", (0.0, 0.0), "</text><script>");
        svg.open("<y>");
        let text = svg.inline();
        assert!(!text.contains("<x>") && !text.contains("<script>") && !text.contains("<y>"), "{text}");
    }

    #[test]
    fn numbers_on_axes_have_a_real_minus_and_no_negative_zero() {
        assert_eq!(
            (minus(-0.5, 1), minus(-0.0, 1), minus(0.25, 2)),
            ("−0.5".to_owned(), "0.0".to_owned(), "0.25".to_owned())
        );
    }
}
