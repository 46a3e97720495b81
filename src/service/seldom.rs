//! Log lines of what may happen a thousand times a second: one in a while, with how many there were.

use std::time::Duration;
use std::time::Instant;

/// Lets one pass after each pause, and counts those that it does not.
#[derive(Debug)]
pub(super) struct Seldom {
    pause: Duration,
    last: Option<Instant>,
    untold: u64,
}

impl Seldom {
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, last: None, untold: 0 }
    }

    /// How many there were since the last line, this one included, if it is time for another.
    pub(super) fn pass(&mut self) -> Option<u64> {
        self.untold += 1;
        if self.last.is_some_and(|last| last.elapsed() < self.pause) {
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_passes_in_a_while_and_says_how_many_there_were() {
        let mut seldom = Seldom::new(Duration::from_secs(3600));
        assert_eq!([seldom.pass(), seldom.pass(), seldom.pass()], [Some(1), None, None]);
        seldom.pause = Duration::ZERO;
        assert_eq!([seldom.pass(), seldom.pass()], [Some(3), Some(1)]);
    }
}
