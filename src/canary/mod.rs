//! Moves traffic to one variant in steps, on all servers alike, while what Prometheus says of it holds; and back when it does
//! not.
//!
//! ```text
//! share 1% ─▶ 5% ─▶ 25% ─▶ ... ─▶ 100%      each: set on every server, then looked at until the pause is over
//!    └───────┴───────┴── a guard is broken, nothing can be known for too long, a server does not answer, Ctrl-C
//!                                            ─▶ the shares from before, on every server
//! ```
//!
//! Servers route by consistent hashing: while the share rises, a key moves at most once, and only to the canary; and a caller
//! who has pinned a fingerprint stays where it is (`src/service/routing.rs`, `score.rs`). The shares are set again at
//! every look, so that a server that has started anew, with what its file says, routes like the others; but only over weights
//! that are the canary's own, or those from before: by any others somebody else has decided meanwhile, which ends it.
//!
//! This is the decision and its clock; [`World`] is what it acts on, so that tests can play days in a moment.

mod guards;
mod prometheus;
mod replicas;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Context;
use anyhow::anyhow;
use anyhow::bail;

pub use crate::canary::guards::Guards;
pub use crate::canary::guards::Judgement;
pub use crate::canary::prometheus::Prometheus;
pub use crate::canary::replicas::Moved;
pub use crate::canary::replicas::Replicas;

/// Relative weights by variant.
pub type Weights = BTreeMap<String, f64>;

/// What a canary shall do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The variant whose share rises.
    pub canary: String,
    /// Its shares, rising, each above 0 and at most 1.
    pub steps: Vec<f64>,
    /// How long each share is looked at.
    pub pause: Duration,
    /// Between two looks.
    pub poll: Duration,
    /// How long it may take until something can be known, or until a server answers.
    pub patience: Duration,
}

/// What a canary acts on.
pub trait World {
    /// Since it began.
    fn now(&self) -> Duration;
    /// Waits; whether somebody wants it to end.
    fn sleep(&mut self, time: Duration) -> bool;
    /// Waits, whoever wants it to end.
    fn wait(&mut self, time: Duration);
    /// What every server routes by now, by what Prometheus last saw; fails unless all agree.
    fn weights(&mut self) -> anyhow::Result<Weights>;
    /// Routes like this on every server that routes by one of `known`; the first of these is what was before.
    fn set(&mut self, weights: &Weights, known: &[Weights]) -> Result<(), NotSet>;
    /// A query of the owner's own that finds something, and what.
    fn alert(&mut self) -> anyhow::Result<Option<String>>;
    /// What the guards say.
    fn judge(&mut self) -> Judgement;
    /// For whoever watches.
    fn say(&mut self, line: &str);
}

/// Servers that do not route as they were told, each with why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotSet {
    /// By weights that somebody else has set, which stay.
    pub taken: Vec<String>,
    /// They did not answer, or refused.
    pub failed: Vec<String>,
}

impl fmt::Display for NotSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { taken, failed } = self;
        write!(formatter, "{}", [&taken[..], failed].concat().join("; "))
    }
}

/// How a canary ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// It has all the traffic of the last step.
    Done,
    /// The shares are those from before.
    Back {
        /// Why.
        reason: String,
    },
    /// Somebody else has set weights meanwhile, which stay; the shares are those from before on the other servers.
    Taken {
        /// Which servers.
        by: String,
    },
    /// They should be, and some server does not answer.
    Stuck {
        /// Why it went back.
        reason: String,
        /// Which server, and what it said.
        problem: String,
    },
}

/// Runs a plan to its end. Fails if it cannot begin.
pub fn run(plan: &Plan, world: &mut impl World) -> anyhow::Result<Ending> {
    let before = world.weights()?;
    let share_before = share(&before, &plan.canary);
    anyhow::ensure!(
        before.iter().any(|(name, weight)| *name != plan.canary && *weight > 0.0),
        "`{}` has all the traffic already: there is nothing that it could take over",
        plan.canary
    );
    anyhow::ensure!(
        plan.steps.last().is_some_and(|last| *last > share_before),
        "`{}` has {:.1}% of the traffic already: none of --steps is above it",
        plan.canary,
        100.0 * share_before
    );
    world.say(&format!("`{}` has {:.1}% of the traffic", plan.canary, 100.0 * share_before));
    // What fires without the canary would take it back for nothing that it has done.
    if let Some(found) = world.alert().context("nothing was changed, since --alert cannot be asked")? {
        bail!("nothing was changed: {found} already, before the start");
    }
    // Whoever may not be told, for want of a token or a certificate, says so here, and not when the patience is over.
    let mut known = vec![before];
    world.set(&known[0], &known).map_err(|problem| match problem.failed.is_empty() {
        true => anyhow!("nothing was changed, since Prometheus saw other weights than are set: {problem}"),
        false => anyhow!("nothing was changed, since every server must take what it is told: {problem}"),
    })?;
    for &step in plan.steps.iter().filter(|step| **step > share_before) {
        known.push(with_share(&known[0], &plan.canary, step));
        if let Err(end) = hold(plan, world, step, &known) {
            return Ok(back(plan, world, &known, end));
        }
    }
    Ok(Ending::Done)
}

/// Why a canary does not go on.
enum End {
    /// A reason to go back.
    Reason(String),
    /// Others have decided: which servers.
    Taken(String),
}

/// Sets one share, the last of what is known, and looks until its pause is over.
fn hold(plan: &Plan, world: &mut impl World, step: f64, known_weights: &[Weights]) -> Result<(), End> {
    let weights = &known_weights[known_weights.len() - 1];
    let reason = |reason| Err(End::Reason(reason));
    world.say(&format!("{:.1}% for {:?}", 100.0 * step, plan.pause));
    let begun = world.now();
    // when all servers answered, and when the guards could say something, last
    let (mut set, mut known) = (begun, begun);
    loop {
        match world.set(weights, known_weights) {
            Ok(()) => set = world.now(),
            Err(NotSet { taken, .. }) if !taken.is_empty() => return Err(End::Taken(taken.join("; "))),
            Err(problem) => world.say(&problem.to_string()),
        }
        if world.now() - set > plan.patience {
            return reason(format!("a server has not answered for {:?}", plan.patience));
        }
        if world.sleep(plan.poll) {
            return reason("it was asked to end".to_owned());
        }
        let now = world.now();
        let is_over = now - begun >= plan.pause;
        match world.judge() {
            Judgement::Broken(broken) => return reason(broken),
            Judgement::Holds(readings) => {
                known = now;
                world.say(&readings);
                if is_over && set >= begun && now - set <= 2 * plan.poll {
                    return Ok(());
                }
            }
            Judgement::Unknown(why) => {
                world.say(&format!("cannot be judged: {why}"));
                // The first samples of a step take their time: the pause is theirs, too.
                if now - known > plan.patience.max(plan.pause) {
                    return reason(format!("nothing could be known for {:?}: {why}", now - known));
                }
            }
        }
    }
}

/// As before wherever nobody else has decided; as long as it takes, within the patience.
fn back(plan: &Plan, world: &mut impl World, known: &[Weights], end: End) -> Ending {
    let (reason, mut by) = match end {
        End::Reason(reason) => (reason, None),
        End::Taken(by) => ("somebody else has set weights".to_owned(), Some(by)),
    };
    world.say(&format!("goes back: {reason}"));
    let begun = world.now();
    loop {
        let NotSet { taken, failed } = match world.set(&known[0], known) {
            Ok(()) => NotSet::default(),
            Err(problem) => problem,
        };
        if !taken.is_empty() {
            by = Some(taken.join("; "));
        }
        if failed.is_empty() {
            return by.map_or(Ending::Back { reason }, |by| Ending::Taken { by });
        }
        let problem = failed.join("; ");
        if world.now() - begun > plan.patience {
            return Ending::Stuck { reason, problem };
        }
        world.say(&problem);
        world.wait(plan.poll.min(Duration::from_secs(1)));
    }
}

fn share(weights: &Weights, name: &str) -> f64 {
    weights.get(name).unwrap_or(&0.0) / weights.values().sum::<f64>()
}

/// The canary has this share, and the others what is left, in their old proportions.
fn with_share(before: &Weights, canary: &str, share: f64) -> Weights {
    let others: f64 = before.iter().filter(|(name, _)| *name != canary).map(|(_, weight)| weight).sum();
    let rest = before.iter().filter(|(name, _)| *name != canary);
    let mut weights: Weights =
        rest.map(|(name, weight)| (name.clone(), (1.0 - share) * weight / others)).collect();
    weights.insert(canary.to_owned(), share);
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Servers, guards and a clock that do what a test says.
    struct Played {
        now: Duration,
        weights: Weights,
        set: Vec<f64>,
        /// What the guards say at a time, of a share.
        judge: fn(Duration, f64) -> Judgement,
        /// Whether servers answer at a time.
        answers: fn(Duration) -> bool,
        ends: Option<Duration>,
        /// When somebody else sets the canary's share, and to what.
        other: Option<(Duration, f64)>,
        alert: Option<&'static str>,
    }

    impl World for Played {
        fn now(&self) -> Duration {
            self.now
        }

        fn sleep(&mut self, time: Duration) -> bool {
            self.now += time;
            self.ends.is_some_and(|end| end <= self.now)
        }

        fn wait(&mut self, time: Duration) {
            self.now += time;
        }

        fn weights(&mut self) -> anyhow::Result<Weights> {
            Ok(self.weights.clone())
        }

        fn set(&mut self, weights: &Weights, known: &[Weights]) -> Result<(), NotSet> {
            if !(self.answers)(self.now) {
                return Err(NotSet {
                    failed: vec!["a:50052 does not answer".to_owned()],
                    ..NotSet::default()
                });
            }
            if let Some((_, share)) = self.other.take_if(|(time, _)| *time <= self.now) {
                self.weights = with_share(&self.weights, "ens", share);
            }
            if !known.contains(&self.weights) {
                return Err(NotSet { taken: vec!["a:50052 is by others".to_owned()], ..NotSet::default() });
            }
            let rounded = |weights: &Weights| (1000.0 * share(weights, "ens")).round() / 1000.0;
            if (rounded(&self.weights) - rounded(weights)).abs() > 0.0 {
                self.set.push(rounded(weights));
            }
            self.weights.clone_from(weights);
            Ok(())
        }

        fn judge(&mut self) -> Judgement {
            (self.judge)(self.now, share(&self.weights, "ens"))
        }

        fn alert(&mut self) -> anyhow::Result<Option<String>> {
            Ok(self.alert.map(str::to_owned))
        }

        fn say(&mut self, _line: &str) {}
    }

    impl Played {
        /// The canary's share.
        fn percent(&self) -> u32 {
            (100.0 * share(&self.weights, "ens")).round() as u32
        }
    }

    fn played(judge: fn(Duration, f64) -> Judgement) -> Played {
        let weights = [("warm", 3.0), ("old", 1.0), ("ens", 0.0)];
        Played {
            now: Duration::ZERO,
            weights: weights.map(|(name, weight)| (name.to_owned(), weight)).into(),
            set: Vec::new(),
            judge,
            answers: |_| true,
            ends: None,
            other: None,
            alert: None,
        }
    }

    fn plan() -> Plan {
        let seconds = Duration::from_secs;
        Plan {
            canary: "ens".to_owned(),
            steps: vec![0.05, 0.5, 1.0],
            pause: seconds(300),
            poll: seconds(15),
            patience: seconds(600),
        }
    }

    fn good(_: Duration, _: f64) -> Judgement {
        Judgement::Holds(String::new())
    }

    #[test]
    fn it_rises_step_by_step_and_the_others_keep_their_proportions() {
        let mut world = played(good);
        assert_eq!(run(&plan(), &mut world).unwrap(), Ending::Done);
        assert_eq!(world.set, [0.05, 0.5, 1.0]);
        assert!(world.now >= Duration::from_secs(900) && world.now < Duration::from_secs(960));
        let half = with_share(&played(good).weights, "ens", 0.5);
        assert_eq!((half["warm"], half["old"], half["ens"]), (0.375, 0.125, 0.5));
    }

    #[test]
    fn it_begins_above_the_share_that_is_there() {
        let mut world = played(good);
        world.weights.insert("ens".to_owned(), 1.0);
        run(&plan(), &mut world).unwrap();
        assert_eq!(world.set, [0.5, 1.0]);
        assert!(run(&plan(), &mut world).is_err(), "all is there");
        world.weights = [("warm", 1.0), ("ens", 9.0)].map(|(name, weight)| (name.to_owned(), weight)).into();
        let below = Plan { steps: vec![0.5], ..plan() };
        let error = run(&below, &mut world).unwrap_err().to_string();
        assert!(error.contains("90.0% of the traffic already"), "{error}");
    }

    #[test]
    fn it_goes_back_when_a_guard_is_broken_or_nothing_can_be_known_or_somebody_asks() {
        let broken = |_, share| match share > 0.4 {
            true => Judgement::Broken("p99 is 3 times as long".to_owned()),
            false => Judgement::Holds(String::new()),
        };
        let mut world = played(broken);
        let Ending::Back { reason } = run(&plan(), &mut world).unwrap() else { panic!() };
        assert!(reason.contains("p99"), "{reason}");
        assert_eq!(world.set, [0.05, 0.5, 0.0]);

        let mut world = played(|_, _| Judgement::Unknown("too few requests".to_owned()));
        let Ending::Back { reason } = run(&plan(), &mut world).unwrap() else { panic!() };
        assert!(reason.contains("nothing could be known") && reason.contains("too few requests"), "{reason}");
        assert_eq!(world.set, [0.05, 0.0]);

        let mut world = Played { ends: Some(Duration::from_secs(400)), ..played(good) };
        assert!(matches!(run(&plan(), &mut world).unwrap(), Ending::Back { .. }));
        assert_eq!(world.set, [0.05, 0.5, 0.0]);
    }

    #[test]
    fn servers_that_do_not_answer_for_a_while_are_waited_for_and_then_it_goes_back() {
        let away = |now: Duration| !(100..400).contains(&now.as_secs());
        let mut world = Played { answers: away, ..played(good) };
        assert_eq!(run(&plan(), &mut world).unwrap(), Ending::Done);

        let gone = |now: Duration| now.as_secs() < 100 || now.as_secs() > 1000;
        let mut world = Played { answers: gone, ..played(good) };
        assert!(matches!(run(&plan(), &mut world).unwrap(), Ending::Back { .. }));
        assert_eq!(world.set, [0.05, 0.0]);

        let mut world = Played { answers: |now| now.as_secs() < 100, ..played(good) };
        let Ending::Stuck { problem, .. } = run(&plan(), &mut world).unwrap() else { panic!() };
        assert!(problem.contains("a:50052"), "{problem}");

        // who refuses from the first is not waited for
        let mut world = Played { answers: |_| false, ..played(good) };
        let error = format!("{:#}", run(&plan(), &mut world).unwrap_err());
        assert!(error.contains("nothing was changed") && error.contains("a:50052"), "{error}");
        assert_eq!((world.now, world.set.len()), (Duration::ZERO, 0));
    }

    #[test]
    fn what_somebody_else_has_set_stays() {
        // in the middle of a step, while it goes back, and before the start
        let other = |time, share| Some((Duration::from_secs(time), share));
        let mut world = Played { other: other(400, 0.3), ..played(good) };
        let Ending::Taken { by } = run(&plan(), &mut world).unwrap() else { panic!() };
        assert!(by.contains("a:50052"), "{by}");
        assert_eq!((world.set.clone(), world.percent()), (vec![0.05, 0.5], 30));

        let broken = |now: Duration, _| match now.as_secs() >= 60 {
            true => Judgement::Broken("p99".to_owned()),
            false => Judgement::Holds(String::new()),
        };
        let mut world = Played { other: other(60, 0.3), ..played(broken) };
        assert!(matches!(run(&plan(), &mut world).unwrap(), Ending::Taken { .. }));
        assert_eq!(world.percent(), 30);

        let mut world = Played { other: other(0, 0.3), ..played(good) };
        let error = run(&plan(), &mut world).unwrap_err().to_string();
        assert!(error.contains("Prometheus saw other weights") && error.contains("a:50052"), "{error}");
    }

    #[test]
    fn an_alert_that_fires_before_the_start_is_an_error_before_anything_moves() {
        let mut world = Played { alert: Some("ALERTS finds {} 1"), ..played(good) };
        let error = run(&plan(), &mut world).unwrap_err().to_string();
        assert!(error.contains("nothing was changed: ALERTS finds {} 1 already"), "{error}");
        assert_eq!((world.now, world.set.len()), (Duration::ZERO, 0));
    }
}
