//! Which waiting samples go together now. Pure: numbers in, numbers out.
//!
//! First a lane is chosen, then the head of its queue is taken, in its order, until the next sample would exceed
//! the budget of tokens, or the next request would let the batch end too late for one that is in it. The head always
//! goes, so nothing can starve behind what came later.
//!
//! # Why in strict order?
//!
//! Batches are packed, never padded: samples of like length have nothing to gain from each other's company, and
//! what strict order leaves unused of a batch is less than one sample.
//!
//! # Why by device time?
//!
//! Lanes share the device by the seconds they use it, because a batch of an ensemble of four costs four times
//! that of one model: taking turns would give ENS four fifths of the device, and counting tokens would too. A
//! lane's `device_time` rises by what its batches take, and the lane with the least goes first. A lane that does
//! not contend is lifted to the time of the one that is served: whoever slept has no credit.
//!
//! # Who goes between the steps of a batch?
//!
//! A request with a sample above `max_step_tokens` is *long*. Batches hold long requests or short ones, and one of
//! long requests is computed in [`steps`](crate::model::steps); between them go
//!
//! - whatever is more urgent, as long as any waits: long requests too, so that at most one batch of each priority
//!   is under way;
//! - short requests of any lane, in turns: for two seconds of theirs the long one gets [one](LONG_SHARE). So it
//!   cannot starve, and beside it they take half as long again, and wait for one step at first. Background work
//!   goes only between the steps of background work.
//!
//! A long request that is no more urgent waits until the one before it is done: keys, values and hidden states of a
//! layer are held for one at a time. Between the layers of a batch of short requests, if it is larger than a step,
//! goes only what is more urgent: in turns they would all be done later, and none earlier than the last now.

use tokio::time::Instant;

use super::Priority;

/// What a long request gets of the device, by what others have had between two of its steps.
pub(super) const LONG_SHARE: f64 = 0.5;

/// Who may go now.
#[derive(Clone, Copy, Debug)]
pub(super) enum Turn {
    /// Nothing runs.
    Anybody,
    /// Between the steps of a batch of this priority.
    MoreUrgent(Priority),
    /// Between the steps of a long request of this priority.
    Short(Priority),
}

impl Turn {
    pub(super) fn allows(self, priority: Priority, is_long: bool) -> bool {
        match self {
            Self::Anybody => true,
            Self::MoreUrgent(than) => priority < than,
            Self::Short(beside) => !is_long && priority <= beside.max(Priority::Normal),
        }
    }
}

/// How long a batch may take: a half of what is left of any of its requests' time, by the present throughput, since all of them
/// are answered at its end; and of the time of those that wait for the same device meanwhile. The other half is for what
/// the estimate does not know, and for the way back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Haste {
    starts: Instant,
    is_empty: bool,
    /// In seconds.
    most: f64,
}

impl Haste {
    /// Nobody is in the batch, which is about to start.
    pub(super) fn new(starts: Instant) -> Self {
        Self { starts, is_empty: true, most: f64::INFINITY }
    }

    fn left(&self, deadline: Option<Instant>) -> f64 {
        let until = |deadline: Instant| deadline.saturating_duration_since(self.starts).as_secs_f64();
        deadline.map_or(f64::INFINITY, until)
    }

    /// Another request waits until the batch has ended, and takes so many seconds of its own. What comes too late anyhow is not
    /// waited for.
    pub(super) fn keeps_waiting(&mut self, deadline: Option<Instant>, seconds: f64) {
        let left = self.left(deadline);
        if seconds <= left {
            self.most = self.most.min(left / 2.0);
        }
    }

    /// Whether a request is let in, with which the batch takes so many seconds. The first always is: an estimate could never
    /// be refuted otherwise; for one that comes too late even if it goes alone, no other is kept back.
    pub(super) fn lets(&mut self, deadline: Option<Instant>, seconds: f64) -> bool {
        let is_first = std::mem::take(&mut self.is_empty);
        if !is_first && seconds > self.most.min(self.left(deadline) / 2.0) {
            return false;
        }
        self.keeps_waiting(deadline, seconds);
        true
    }
}

/// What a lane has waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// Nothing.
    Nothing,
    /// Only what may not go now.
    Blocked,
    /// Only background work, which yields to anything else in any lane.
    Background,
    /// Only what nobody waits for, which yields to that too.
    Shadow,
    /// Something that a caller wants soon.
    Urgent,
}

/// A lane, as the choice sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contender {
    pub(super) waiting: Waiting,
    /// Seconds of the device that count against this lane.
    pub(super) device_time: f64,
}

/// The lane whose turn it is: the least served of those with urgent work, else of those with background work, else of
/// those with shadow work.
/// Lifts all that do not contend to the chosen one's device time, but for those that would if they were let.
pub(super) fn choose_lane(lanes: &mut [Contender]) -> Option<usize> {
    let contending = [Waiting::Urgent, Waiting::Background, Waiting::Shadow]
        .into_iter()
        .find(|&waiting| lanes.iter().any(|lane| lane.waiting == waiting))?;
    let chosen = (0..lanes.len())
        .filter(|&lane| lanes[lane].waiting == contending)
        .min_by(|&a, &b| lanes[a].device_time.total_cmp(&lanes[b].device_time))?;
    let now = lanes[chosen].device_time;
    let sleeps = |lane: &&mut Contender| lane.waiting != contending && lane.waiting != Waiting::Blocked;
    for lane in lanes.iter_mut().filter(sleeps) {
        lane.device_time = lane.device_time.max(now);
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_batch_takes_half_of_the_time_that_its_most_urgent_request_has() {
        let starts = Instant::now();
        // deadlines in seconds, and what the batch would take with that request
        let admitted = |requests: &[(Option<u64>, f64)]| -> Vec<bool> {
            let mut haste = Haste::new(starts);
            let deadline =
                |seconds: Option<u64>| seconds.map(|seconds| starts + Duration::from_secs(seconds));
            requests.iter().map(|&(seconds, took)| haste.lets(deadline(seconds), took)).collect()
        };
        assert_eq!(admitted(&[(None, 50.0), (None, 1e9)]), [true, true]);
        assert_eq!(admitted(&[(Some(10), 1.0), (None, 5.0), (None, 5.1)]), [true, true, false]);
        assert_eq!(admitted(&[(None, 1.0), (Some(10), 5.0), (None, 5.1)]), [true, true, false]);
        assert_eq!(admitted(&[(None, 1.0), (Some(10), 5.1)]), [true, false]);
        assert_eq!(admitted(&[(Some(10), 9.0), (None, 9.1)]), [true, false], "in time if it goes alone");
        assert_eq!(admitted(&[(Some(10), 11.0), (None, 20.0), (Some(50), 25.0)]), [true, true, true]);

        let mut haste = Haste::new(starts);
        haste.keeps_waiting(Some(starts + Duration::from_secs(6)), 1.0);
        haste.keeps_waiting(Some(starts), 1.0);
        assert_eq!([3.5, 3.0, 3.5].map(|seconds| haste.lets(None, seconds)), [true, true, false]);
    }

    #[test]
    fn the_least_served_lane_goes_first_and_sleepers_get_no_credit() {
        use Waiting::{Background, Blocked, Nothing, Shadow, Urgent};
        struct Case {
            name: &'static str,
            lanes: &'static [(Waiting, f64)],
            chosen: Option<usize>,
            device_times: &'static [f64],
        }
        let cases = [
            Case { name: "no lane", lanes: &[], chosen: None, device_times: &[] },
            Case { name: "idle", lanes: &[(Nothing, 1.0)], chosen: None, device_times: &[1.0] },
            Case {
                name: "least served",
                lanes: &[(Urgent, 2.0), (Urgent, 1.0)],
                chosen: Some(1),
                device_times: &[2.0, 1.0],
            },
            Case {
                name: "a sleeper is lifted",
                lanes: &[(Urgent, 7.0), (Nothing, 1.0)],
                chosen: Some(0),
                device_times: &[7.0, 7.0],
            },
            Case {
                name: "a sleeper in debt stays so",
                lanes: &[(Urgent, 7.0), (Nothing, 8.0)],
                chosen: Some(0),
                device_times: &[7.0, 8.0],
            },
            Case {
                name: "background yields in any lane, without credit",
                lanes: &[(Background, 1.0), (Urgent, 7.0)],
                chosen: Some(1),
                device_times: &[7.0, 7.0],
            },
            Case {
                name: "who may not go now keeps its place",
                lanes: &[(Blocked, 1.0), (Urgent, 7.0), (Nothing, 1.0)],
                chosen: Some(1),
                device_times: &[1.0, 7.0, 7.0],
            },
            Case {
                name: "shadow work yields to background",
                lanes: &[(Shadow, 1.0), (Background, 7.0)],
                chosen: Some(1),
                device_times: &[7.0, 7.0],
            },
            Case {
                name: "background is shared fairly too",
                lanes: &[(Background, 2.0), (Background, 1.0), (Nothing, 0.0)],
                chosen: Some(1),
                device_times: &[2.0, 1.0, 1.0],
            },
        ];
        for Case { name, lanes, chosen, device_times } in cases {
            let mut lanes: Vec<Contender> =
                lanes.iter().map(|&(waiting, device_time)| Contender { waiting, device_time }).collect();
            assert_eq!(choose_lane(&mut lanes), chosen, "{name}");
            let times: Vec<f64> = lanes.iter().map(|lane| lane.device_time).collect();
            assert_eq!(times, device_times, "{name}");
        }
    }
}
