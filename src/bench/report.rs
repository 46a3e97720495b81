//! What a run found: tables for people, JSON for programs.

use crate::bench::Spread;

/// Three digits, or all before the point.
pub(super) fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// "12.3 (11.9 to 12.8)".
pub(super) fn spread(spread: &Spread) -> String {
    format!("{} ({} to {})", digits(spread.median), digits(spread.min), digits(spread.max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        let cases =
            [(1234.5, "1234"), (12.345, "12.3"), (1.2345, "1.23"), (0.01234, "0.012"), (-12.34, "-12.3")];
        for (value, text) in cases {
            assert_eq!(digits(value), text);
        }
    }
}
