//! What waits, lane by lane: bounded, admits or refuses, forgets callers who have left.
//!
//! A [`Queue`] is plain data behind the engine's one lock; every method is short and told the time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Config;
use super::EngineError;
use super::Priority;
use super::batcher::Contender;
use super::batcher::Haste;
use super::batcher::LONG_SHARE;
use super::batcher::Turn;
use super::batcher::Waiting;
use super::batcher::choose_lane;
use super::estimate::Throughput;
use super::estimate::duration;
use super::estimate::retry_after;
use super::estimate::seconds_until_served;
use super::estimate::with_reserve;
use super::request::Batch;
use super::request::Departure;
use super::request::Ended;
use super::request::LaneId;
use super::request::Portion;
use super::request::Request;
use super::request::Ticket;
use super::request::tokens_of;
use super::served::Served;
use crate::model::fill::Fill;

/// What runs, or waits at a pause for what was taken after it.
struct RunningBatch {
    lane: LaneId,
    copy: usize,
    num_tokens: usize,
    started: Instant,
    priority: Priority,
    is_long: bool,
    takes_steps: bool,
    /// Device time until the last pause.
    ran: Duration,
    /// Device time that it must have before short requests go again.
    owed: Duration,
    /// Whose callers still wait for it.
    awaited: Vec<Ticket>,
}

impl RunningBatch {
    fn kind(&self) -> usize {
        if self.is_long { LONG } else { SHORT }
    }

    /// Whether it ends at its next step: nobody waits for it.
    fn is_given_up(&self) -> bool {
        self.takes_steps && self.awaited.is_empty()
    }

    /// Whether a request can go before this has ended.
    fn lets_go(&self, priority: Priority, is_long: bool) -> bool {
        let short = self.is_long && Turn::Short(self.priority).allows(priority, is_long);
        self.takes_steps && (short || Turn::MoreUrgent(self.priority).allows(priority, is_long))
    }
}

/// Requests of a lane that batches take together: the short ones, or the long.
#[derive(Default)]
struct Kind {
    waiting: BTreeMap<Ticket, Request>,
    /// By priority.
    waiting_tokens: [usize; 4],
    throughput: Throughput,
}

impl Kind {
    /// Tokens that wait with this priority or a more urgent one.
    fn tokens_up_to(&self, priority: Priority) -> usize {
        self.waiting_tokens[..=priority as usize].iter().sum()
    }
}

/// In so many steps at least is a long sample computed: one is then what 128 tokens take, by default, and a
/// neighbour of so many waits for one at most as long as for its own.
const STEPS_AT_LEAST: usize = 8;

const SHORT: usize = 0;
const LONG: usize = 1;

/// Fewer tokens are not shared out among devices: each would take almost as long as all.
const LEAST_SHARE: usize = 1024;

struct Lane {
    served: Arc<Served>,
    /// A request with a longer sample is long.
    max_step_tokens: usize,
    kinds: [Kind; 2],
    /// Of each copy, the seconds of its device that count against this lane.
    device_times: Vec<f64>,
    is_closed: bool,
}

impl Lane {
    /// The copy that a device runs, if it may.
    fn copy_on(&self, device: usize) -> Option<usize> {
        let copy = self.served.copies.iter().position(|copy| copy.device == device)?;
        self.served.may_run(copy).then_some(copy)
    }

    fn num_copies(&self) -> f64 {
        self.served.copies.len() as f64
    }

    fn shares_a_device_with(&self, other: &Lane) -> bool {
        let is_shared = |device| other.served.copies.iter().any(|copy| copy.device == device);
        self.served.copies.iter().any(|copy| is_shared(copy.device))
    }

    fn kind_of(&self, request: &Request) -> usize {
        if request.longest > self.max_step_tokens { LONG } else { SHORT }
    }

    fn is_empty(&self) -> bool {
        self.kinds.iter().all(|kind| kind.waiting.is_empty())
    }

    /// Tokens of both kinds that wait with this priority or a more urgent one.
    fn tokens_up_to(&self, priority: Priority) -> usize {
        self.kinds.iter().map(|kind| kind.tokens_up_to(priority)).sum()
    }

    /// Seconds of the device for so many tokens of a kind; by the other kind's, before its own were measured.
    fn seconds_for(&self, kind: usize, tokens: usize) -> Option<f64> {
        let seconds = |kind: usize| self.kinds[kind].throughput.seconds_for(tokens);
        seconds(kind).or_else(|| seconds(1 - kind))
    }

    /// Seconds until its devices would have done what waits of a kind, with this priority or a more urgent one.
    fn backlog(&self, kind: usize, priority: Priority) -> f64 {
        let seconds = self.seconds_for(kind, self.kinds[kind].tokens_up_to(priority)).unwrap_or(0.0);
        seconds / self.num_copies()
    }

    /// The request that goes first of those whose turn it is, and its kind.
    fn head(&self, turn: Turn) -> Option<(Ticket, usize)> {
        let heads = self.kinds.iter().zip([SHORT, LONG]);
        let heads = heads.filter_map(|(kind, index)| Some((*kind.waiting.first_key_value()?.0, index)));
        heads.filter(|&(ticket, kind)| turn.allows(ticket.priority, kind == LONG)).min()
    }

    fn contender(&self, copy: usize, turn: Turn) -> Contender {
        let waiting = match self.head(turn) {
            None if self.is_empty() => Waiting::Nothing,
            None => Waiting::Blocked,
            Some((Ticket { priority: Priority::Background, .. }, _)) => Waiting::Background,
            Some((Ticket { priority: Priority::Shadow, .. }, _)) => Waiting::Shadow,
            Some(_) => Waiting::Urgent,
        };
        Contender { waiting, device_time: self.device_times[copy] }
    }

    /// Books `request` out of the queue's room.
    fn release(&mut self, request: &Request, departure: Departure) {
        let num_samples = request.waiting().len();
        let kind = self.kind_of(request);
        self.kinds[kind].waiting_tokens[request.priority as usize] -= request.tokens_left;
        let metrics = self.served.metrics_of(request.priority);
        metrics.queue_left(num_samples, request.tokens_left);
        match departure {
            Departure::Expired => metrics.samples_expired(num_samples),
            Departure::Withdrawn => metrics.samples_withdrawn(num_samples),
            Departure::Refused => metrics.samples_failed(num_samples),
        }
    }

    /// Nobody gets what waits with [`Priority::Shadow`].
    fn forget_shadows(&mut self) {
        for kind in [SHORT, LONG] {
            let is_shadow = |ticket: &Ticket, _: &mut Request| ticket.priority == Priority::Shadow;
            let shadows: Vec<_> = self.kinds[kind].waiting.extract_if(.., is_shadow).collect();
            for (_, request) in shadows {
                self.release(&request, Departure::Refused);
                request.refuse(EngineError::Draining);
            }
        }
    }

    /// Takes the head of the queue of a kind, up to `max_tokens` and of one priority, and as much as `haste` lets. Whoever
    /// is dead on arrival leaves.
    ///
    /// Priorities do not mix, since everyone in a batch waits for all of it: a person who waits for one sample
    /// would wait for 16,384 tokens of a trainer's.
    fn take(
        &mut self,
        kind: usize,
        max_tokens: usize,
        mut haste: Haste,
        now: Instant,
    ) -> (Vec<Portion>, usize) {
        let seconds_per_token = self.seconds_for(kind, 1).unwrap_or(0.0);
        let mut fill = Fill::new(max_tokens);
        let mut portions = Vec::new();
        let priority = self.kinds[kind].waiting.first_key_value().map(|(ticket, _)| ticket.priority);
        while let Some(mut head) = self.kinds[kind].waiting.first_entry() {
            let ticket = *head.key();
            if Some(ticket.priority) != priority {
                break;
            }
            if let Some(departure) = head.get().departure(now) {
                let request = head.remove();
                self.release(&request, departure);
                request.refuse(EngineError::DeadlineExceeded);
                continue;
            }
            let tokens_before = fill.tokens();
            let tokens_then = (tokens_before + head.get().tokens_left).min(max_tokens);
            if !haste.lets(head.get().deadline, tokens_then as f64 * seconds_per_token) {
                break;
            }
            let num_samples = fill.take(head.get().waiting().iter().map(tokens_of));
            if num_samples == 0 {
                break;
            }
            portions.push(head.get_mut().take(ticket, num_samples));
            let is_cut = !head.get().waiting().is_empty();
            if !is_cut {
                head.remove();
            }
            let num_tokens = fill.tokens() - tokens_before;
            self.kinds[kind].waiting_tokens[ticket.priority as usize] -= num_tokens;
            self.served.metrics_of(ticket.priority).queue_left(num_samples, num_tokens);
            if is_cut {
                break;
            }
        }
        (portions, fill.tokens())
    }
}

/// The head of which queue goes next.
#[derive(Clone, Copy)]
struct Chosen {
    lane: LaneId,
    copy: usize,
    priority: Priority,
    kind: usize,
}

/// What is known of a device.
#[derive(Default)]
struct DeviceBooks {
    /// The one that runs is the last; those before it are at a pause.
    running: Vec<RunningBatch>,
    /// What was taken for when that has ended.
    ahead: Option<RunningBatch>,
    /// Of the lane that was chosen last, when it was.
    device_time: f64,
}

/// All lanes.
pub(super) struct Queue {
    config: Config,
    lanes: BTreeMap<LaneId, Lane>,
    next_lane: LaneId,
    next_ticket: u64,
    devices: Vec<DeviceBooks>,
    /// Why no more work is taken.
    closed: Option<EngineError>,
}

impl Queue {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            lanes: BTreeMap::new(),
            next_lane: 0,
            next_ticket: 0,
            devices: Vec::new(),
            closed: None,
        }
    }

    /// One more, by its index.
    pub(super) fn add_device(&mut self) -> usize {
        self.devices.push(DeviceBooks::default());
        self.devices.len() - 1
    }

    /// Whether work may wait for one device while another has none.
    pub(super) fn has_several_devices(&self) -> bool {
        self.devices.len() > 1
    }

    pub(super) fn add_lane(&mut self, served: Served) -> LaneId {
        let id = self.next_lane;
        self.next_lane += 1;
        let max_step_tokens = if served.takes_steps() { self.config.max_step_tokens } else { usize::MAX };
        // no credit for the time before it existed
        let device_times = served.copies.iter().map(|copy| self.devices[copy.device].device_time).collect();
        let lane = Lane {
            served: Arc::new(served),
            max_step_tokens,
            kinds: Default::default(),
            device_times,
            is_closed: false,
        };
        self.lanes.insert(id, lane);
        id
    }

    /// Counts what happens in one lane from here on.
    pub(super) fn show(&self, lane: LaneId) {
        if let Some(lane) = self.lanes.get(&lane) {
            lane.served.show();
        }
    }

    /// Refuses new work for one lane.
    pub(super) fn close(&mut self, lane: LaneId) {
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.is_closed = true;
            lane.forget_shadows();
        }
    }

    /// Refuses new work for all lanes.
    pub(super) fn drain(&mut self) {
        self.closed.get_or_insert(EngineError::Draining);
        self.lanes.values_mut().for_each(Lane::forget_shadows);
    }

    /// Refuses new work for all lanes, and all that waits.
    pub(super) fn refuse_all(&mut self, error: &EngineError) {
        self.closed = Some(error.clone());
        for lane in self.lanes.values_mut() {
            for kind in [SHORT, LONG] {
                for (_, request) in std::mem::take(&mut lane.kinds[kind].waiting) {
                    lane.release(&request, Departure::Refused);
                    request.refuse(error.clone());
                }
            }
        }
    }

    /// Whether everything that was admitted is answered.
    pub(super) fn is_idle(&self) -> bool {
        self.running().all(|batch| batch.priority == Priority::Shadow)
            && self.lanes.values().all(Lane::is_empty)
    }

    /// Batches that run, or are at a pause, or were taken ahead, on any device.
    fn running(&self) -> impl Iterator<Item = &RunningBatch> {
        self.devices.iter().flat_map(|device| device.running.iter().chain(&device.ahead))
    }

    /// Why a request is not admitted, if so.
    pub(super) fn check(&self, lane_id: LaneId, request: &Request) -> Result<(), EngineError> {
        let now = request.admitted;
        let tokens = request.tokens_left;
        let limit = self.config.max_queue_tokens;
        if let Some(error) = &self.closed {
            return Err(error.clone());
        }
        let lane = self.lanes.get(&lane_id).filter(|lane| !lane.is_closed).ok_or(EngineError::Draining)?;
        if tokens > limit {
            return Err(EngineError::TooLarge { tokens, limit });
        }
        if request.priority == Priority::Shadow {
            return self.check_shadow(lane, tokens);
        }
        // what is less urgent goes after it, and so takes no room from it
        let waiting = lane.tokens_up_to(request.priority);
        if waiting + tokens > limit {
            let kind =
                if lane.kinds[LONG].tokens_up_to(request.priority) * 2 > waiting { LONG } else { SHORT };
            let until = waiting + tokens - limit;
            let seconds = self.seconds_until_served(lane_id, kind, until, Priority::Normal, now);
            return Err(EngineError::QueueFull { waiting, limit, retry_after: retry_after(seconds) });
        }
        let Some(left) = request.deadline.map(|deadline| deadline.saturating_duration_since(now)) else {
            return Ok(());
        };
        if left.is_zero() {
            lane.served.metrics_of(request.priority).samples_expired(request.waiting().len());
            return Err(EngineError::DeadlineExceeded);
        }
        // A lane with nothing to do always tries, or a bad estimate could never be refuted.
        let has_work = lane.tokens_up_to(Priority::Background) > 0
            || self.running().any(|batch| batch.lane == lane_id && batch.priority != Priority::Shadow);
        let kind = lane.kind_of(request);
        let until = lane.kinds[kind].tokens_up_to(request.priority) + tokens;
        let seconds = self.seconds_until_served(lane_id, kind, until, request.priority, now);
        match seconds.map(with_reserve) {
            Some(wait) if has_work && wait > left => Err(EngineError::WouldExpire { wait, left }),
            _ => Ok(()),
        }
    }

    /// Shadow work waits for a device that is about to be free, a batch of it at most.
    fn check_shadow(&self, lane: &Lane, tokens: usize) -> Result<(), EngineError> {
        let others = self.lanes.values().filter(|other| other.shares_a_device_with(lane));
        let before: usize = others.map(|other| other.tokens_up_to(Priority::Background)).sum();
        let (waiting, limit) = (lane.tokens_up_to(Priority::Shadow), self.config.max_batch_tokens);
        let has_room = waiting == 0 || waiting + tokens <= limit;
        match before == 0 && has_room {
            true => Ok(()),
            false => Err(EngineError::QueueFull {
                waiting: before + waiting,
                limit,
                retry_after: retry_after(None),
            }),
        }
    }

    /// Lets a request wait that [`Self::check`] has not refused since the lock was taken.
    pub(super) fn enter(&mut self, lane: LaneId, request: Request) -> Ticket {
        let ticket = Ticket { priority: request.priority, number: self.next_ticket };
        self.next_ticket += 1;
        let lane = self.lanes.get_mut(&lane).expect("a lane that was checked is there");
        let metrics = lane.served.metrics_of(request.priority);
        metrics.queue_entered(request.waiting().len(), request.tokens_left);
        let kind = lane.kind_of(&request);
        lane.kinds[kind].waiting_tokens[ticket.priority as usize] += request.tokens_left;
        lane.kinds[kind].waiting.insert(ticket, request);
        ticket
    }

    /// Estimates the seconds until a lane has served its next `tokens` of a kind; `None` before it was measured.
    fn seconds_until_served(
        &self,
        lane_id: LaneId,
        kind: usize,
        tokens: usize,
        priority: Priority,
        now: Instant,
    ) -> Option<f64> {
        let lane = self.lanes.get(&lane_id)?;
        let own = lane.seconds_for(kind, tokens)? / lane.num_copies();
        // others' background work goes before ours only if ours is background as well
        let rivals = priority.max(Priority::Normal);
        let backlogs = self
            .lanes
            .iter()
            .filter(|(_, other)| other.shares_a_device_with(lane))
            .flat_map(|(&id, lane)| [SHORT, LONG].map(|kind| (id, kind, lane.backlog(kind, rivals))));
        // what runs of another lane may be all that waited there a moment ago
        let contends = |&(id, of_kind, seconds): &(LaneId, usize, f64)| {
            let is_its = |batch: &RunningBatch| {
                batch.lane == id && batch.kind() == of_kind && batch.priority <= rivals
            };
            // short ones wait for no long ones of any lane but in turns
            (id, of_kind) != (lane_id, kind)
                && (kind == LONG || of_kind == SHORT)
                && (seconds > 0.0 || self.running().any(is_its))
        };
        let others = backlogs.filter(contends).map(|(.., seconds)| seconds);
        // shadow work makes nobody refused: what of it runs ends soon
        let stays = |batch: &&RunningBatch| {
            let is_over = batch.is_given_up() || batch.priority == Priority::Shadow;
            !is_over && !batch.lets_go(priority, kind == LONG)
        };
        // until the first of its devices is free
        let until_free = |device: usize| -> f64 {
            let DeviceBooks { running, ahead, .. } = &self.devices[device];
            let running: f64 =
                running.iter().filter(stays).filter_map(|batch| self.left_of(batch, now)).sum();
            let goes_first = ahead.iter().filter(|ahead| ahead.priority <= priority);
            running + goes_first.filter_map(|ahead| self.expected_of(ahead)).sum::<f64>()
        };
        let devices = lane.served.copies.iter().map(|copy| copy.device);
        let running = devices.map(until_free).fold(f64::INFINITY, f64::min);
        let is_background = priority == Priority::Background;
        let seconds = running + seconds_until_served(own, others, is_background);
        let is_beside =
            |batch: &RunningBatch| batch.is_long && batch.priority <= rivals && !batch.is_given_up();
        let beside_long = self.running().any(is_beside)
            || self.lanes.values().any(|lane| lane.kinds[LONG].tokens_up_to(rivals) > 0);
        Some(if kind == SHORT && beside_long { seconds * (1.0 + LONG_SHARE) } else { seconds })
    }

    /// The seconds that a batch should take in all.
    fn expected_of(&self, batch: &RunningBatch) -> Option<f64> {
        self.lanes.get(&batch.lane)?.seconds_for(batch.kind(), batch.num_tokens)
    }

    /// The seconds until a batch that runs should have ended.
    fn left_of(&self, batch: &RunningBatch, now: Instant) -> Option<f64> {
        let ran = now.saturating_duration_since(batch.started).as_secs_f64();
        Some((self.expected_of(batch)? - ran).max(0.0))
    }

    /// Removes what still waits of a request, and frees its room; from now on no estimate counts on the time of what
    /// runs.
    pub(super) fn withdraw(&mut self, lane: LaneId, ticket: Ticket, departure: Departure) -> Option<Request> {
        let running =
            self.devices.iter_mut().flat_map(|device| device.running.iter_mut().chain(&mut device.ahead));
        for batch in running.filter(|batch| batch.lane == lane) {
            batch.awaited.retain(|awaited| *awaited != ticket);
        }
        let lane = self.lanes.get_mut(&lane)?;
        let request = lane.kinds.iter_mut().find_map(|kind| kind.waiting.remove(&ticket))?;
        lane.release(&request, departure);
        Some(request)
    }

    /// What a device should do next, if anything waits for it.
    pub(super) fn next_batch(&mut self, device: usize, now: Instant) -> Option<Batch> {
        debug_assert!(self.devices[device].running.is_empty(), "one device, one batch");
        self.batch_of(device, Turn::Anybody, now)
    }

    /// What a device should do when its batch has ended, if that is certain now: as many tokens wait as make a batch of
    /// every device that could take them, and nothing between. What comes later and is more urgent goes before it.
    pub(super) fn take_ahead(&mut self, device: usize, now: Instant) -> Option<Batch> {
        let DeviceBooks { running, ahead: None, .. } = &self.devices[device] else { return None };
        let [RunningBatch { lane: of, copy, takes_steps: false, .. }] = running[..] else { return None };
        // the lane whose batch runs will have had its time then
        let expected = self.expected_of(&running[0]).unwrap_or(0.0);
        self.charge(of, copy, expected);
        let chosen = self.choose(device, Turn::Anybody);
        self.charge(of, copy, -expected);
        let chosen = chosen?;
        let Chosen { lane, priority, kind, .. } = chosen;
        let lane = self.lanes.get(&lane)?;
        let waiting = lane.kinds[kind].waiting_tokens[priority as usize];
        let is_enough = waiting >= self.config.max_batch_tokens.saturating_mul(lane.served.copies.len());
        if kind == LONG || priority == Priority::Shadow || !is_enough || self.count_idle(lane) > 0 {
            return None;
        }
        let starts = now + duration(self.left_of(&self.devices[device].running[0], now).unwrap_or(0.0));
        let (running, batch) = self.batch_from(chosen, now, starts)?;
        self.devices[device].ahead = Some(running);
        Some(batch)
    }

    /// Counts seconds of a device against a lane.
    fn charge(&mut self, lane: LaneId, copy: usize, seconds: f64) {
        if let Some(lane) = self.lanes.get_mut(&lane) {
            lane.device_times[copy] += seconds;
        }
    }

    /// What goes before the batch that a device has ahead, if anything does.
    pub(super) fn next_before_ahead(&mut self, device: usize, now: Instant) -> Option<Batch> {
        let priority = self.devices[device].ahead.as_ref()?.priority;
        self.batch_of(device, Turn::MoreUrgent(priority), now)
    }

    /// The batch that a device has ahead runs from now on.
    pub(super) fn start_ahead(&mut self, device: usize, now: Instant) {
        let DeviceBooks { running, ahead, .. } = &mut self.devices[device];
        running.extend(ahead.take().map(|batch| RunningBatch { started: now, ..batch }));
    }

    /// The batch that runs is at a pause, and ran for so long since the last one.
    pub(super) fn step_ended(&mut self, device: usize, ran: Duration) {
        let Some(batch) = self.devices[device].running.last_mut() else { return };
        batch.ran += ran;
        batch.owed = batch.owed.saturating_sub(ran);
        if batch.priority != Priority::Shadow
            && let Some(lane) = self.lanes.get_mut(&batch.lane)
        {
            lane.device_times[batch.copy] += ran.as_secs_f64();
        }
    }

    /// What a device should do before the batch that is at a pause goes on, if anything.
    pub(super) fn next_between_steps(&mut self, device: usize, now: Instant) -> Option<Batch> {
        let &RunningBatch { priority, is_long, owed, .. } = self.devices[device].running.last()?;
        let urgent = self.batch_of(device, Turn::MoreUrgent(priority), now);
        let mut short = || self.batch_of(device, Turn::Short(priority), now);
        urgent.or_else(|| (is_long && owed.is_zero()).then(&mut short)?)
    }

    /// Of these devices, how many run nothing.
    fn count_idle(&self, lane: &Lane) -> usize {
        let devices = lane.served.copies.iter().map(|copy| copy.device);
        devices.filter(|&device| self.devices[device].running.is_empty()).count()
    }

    fn batch_of(&mut self, device: usize, turn: Turn, now: Instant) -> Option<Batch> {
        loop {
            let chosen = self.choose(device, turn)?;
            if let Some((running, batch)) = self.batch_from(chosen, now, now) {
                self.devices[device].running.push(running);
                return Some(batch);
            }
            // all that was looked at had expired or left: look again
        }
    }

    /// Lanes take turns on each device by its own clock, those that have a copy there: what one has of a device that the
    /// others cannot use is no debt.
    fn choose(&mut self, device: usize, turn: Turn) -> Option<Chosen> {
        let copies: Vec<(LaneId, usize)> =
            self.lanes.iter().filter_map(|(&id, lane)| Some((id, lane.copy_on(device)?))).collect();
        let mut contenders: Vec<Contender> =
            copies.iter().map(|&(id, copy)| self.lanes[&id].contender(copy, turn)).collect();
        let chosen = choose_lane(&mut contenders)?;
        for (&(id, copy), contender) in copies.iter().zip(&contenders) {
            let lane = self.lanes.get_mut(&id).expect("found among them");
            lane.device_times[copy] = contender.device_time;
        }
        self.devices[device].device_time = contenders[chosen].device_time;
        let (lane, copy) = copies[chosen];
        let (Ticket { priority, .. }, kind) = self.lanes[&lane].head(turn).expect("it contends");
        Some(Chosen { lane, copy, priority, kind })
    }

    /// The first that waits where it was chosen, as the books have it and as the device does, which starts it then; none
    /// if all of it had expired or left.
    fn batch_from(&mut self, chosen: Chosen, now: Instant, starts: Instant) -> Option<(RunningBatch, Batch)> {
        let Chosen { lane: id, copy, priority, kind } = chosen;
        let idle = self.count_idle(&self.lanes[&id]).max(1);
        let mut haste = Haste::new(starts);
        let chosen = &self.lanes[&id];
        let others =
            self.lanes.iter().filter(|(other, lane)| **other != id && lane.shares_a_device_with(chosen));
        for (_, other) in others {
            if let Some((ticket, kind)) = other.head(Turn::Anybody)
                && ticket.priority <= priority.max(Priority::Normal)
            {
                let head = &other.kinds[kind].waiting[&ticket];
                haste.keeps_waiting(head.deadline, other.seconds_for(kind, head.tokens_left).unwrap_or(0.0));
            }
        }
        let lane = self.lanes.get_mut(&id).expect("found among them");
        // several devices that have nothing to do share what waits
        let share = lane.kinds[kind].waiting_tokens[priority as usize].div_ceil(idle).max(LEAST_SHARE);
        // what has a device that others may want at any moment lets go of it soon, on a card too
        let most = match priority {
            Priority::Shadow => self.config.max_step_tokens.min(self.config.max_batch_tokens),
            _ => self.config.max_batch_tokens,
        };
        let max_tokens = if idle > 1 { share } else { usize::MAX }.min(most);
        let (portions, num_tokens) = lane.take(kind, max_tokens, haste, now);
        if portions.is_empty() {
            return None;
        }
        let takes_steps = num_tokens > lane.max_step_tokens;
        let is_long = kind == LONG;
        // a batch of short ones pauses where that costs nothing
        let step_tokens = if is_long { lane.max_step_tokens.div_ceil(STEPS_AT_LEAST) } else { usize::MAX };
        let (ran, owed) = (Duration::ZERO, Duration::ZERO);
        let awaited = portions.iter().map(|portion| portion.ticket).collect();
        let served = lane.served.clone();
        let step_tokens = takes_steps.then_some(step_tokens);
        let started = now;
        let running = RunningBatch {
            lane: id,
            copy,
            num_tokens,
            started,
            priority,
            is_long,
            takes_steps,
            ran,
            owed,
            awaited,
        };
        Some((running, Batch { served, copy, priority, portions, num_tokens, started, step_tokens }))
    }

    /// Accounts for the batch that a device took last.
    pub(super) fn batch_ended(&mut self, device: usize, ended: Ended) {
        let Ended { num_tokens, elapsed } = ended;
        let running = &mut self.devices[device].running;
        let Some(batch) = running.pop() else { return };
        if let Some(outer) = running.last_mut()
            && batch.priority >= outer.priority
        {
            outer.owed = elapsed.mul_f64(LONG_SHARE);
        }
        if batch.priority == Priority::Shadow {
            return; // small batches, at nobody's cost
        }
        let Some(lane) = self.lanes.get_mut(&batch.lane) else { return };
        lane.device_times[batch.copy] += elapsed.saturating_sub(batch.ran).as_secs_f64();
        if num_tokens > 0 {
            lane.kinds[batch.kind()].throughput.observe(num_tokens, elapsed);
        }
    }

    /// Removes a lane that is closed and has served all it admitted.
    pub(super) fn take_retired(&mut self) -> Option<Arc<Served>> {
        let runs = |id: LaneId| self.running().any(|batch| batch.lane == id);
        let (&id, _) =
            self.lanes.iter().find(|&(&id, lane)| lane.is_closed && lane.is_empty() && !runs(id))?;
        self.lanes.remove(&id).map(|lane| lane.served)
    }

    /// Removes everything, whatever state it is in.
    pub(super) fn take_all(&mut self) -> impl Sized + use<> {
        self.drain();
        for device in &mut self.devices {
            device.running.clear();
            device.ahead = None;
        }
        std::mem::take(&mut self.lanes)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio::sync::watch;

    use super::*;
    use crate::engine::Outcome;
    use crate::engine::SampleError;
    use crate::engine::Scored;
    use crate::engine::request::Times;
    use crate::engine::served::Copy;
    use crate::model::ModelError;
    use crate::model::scorer::Forward;
    use crate::model::scorer::Reward;
    use crate::model::scorer::Scorer;
    use crate::ops::batch::PackedBatch;
    use crate::ops::batch::Sequence;

    const STEP: usize = 20;

    type Answered = oneshot::Receiver<Result<Scored, EngineError>>;

    /// Never asked: these tests play the device.
    struct NoModel;

    impl Forward for NoModel {
        fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
            Ok(vec![0.0; batch.len()])
        }
    }

    fn queue(max_batch_tokens: usize, max_queue_tokens: usize, num_lanes: usize) -> (Queue, Vec<LaneId>) {
        let mut queue = Queue::new(Config {
            max_batch_tokens,
            max_step_tokens: STEP,
            max_queue_tokens,
            share_prefixes: true,
        });
        queue.add_device();
        let lanes = (0..num_lanes).map(|_| add_lane(&mut queue)).collect();
        (queue, lanes)
    }

    /// The one that all lanes have, but where a test says otherwise.
    const DEVICE: usize = 0;

    fn add_lane(queue: &mut Queue) -> LaneId {
        add_lane_on(queue, &[DEVICE])
    }

    fn add_lane_on(queue: &mut Queue, devices: &[usize]) -> LaneId {
        let copy = |&device: &usize| Copy::new(device, Scorer::warm(Arc::new(NoModel)));
        let copies = devices.iter().map(copy).collect();
        queue.add_lane(Served::new("test", copies, true, watch::channel(true).0))
    }

    /// A request whose samples have these lengths and consist of the token `token`.
    fn request(
        token: u32,
        lengths: &[usize],
        priority: Priority,
        deadline: Option<Instant>,
    ) -> (Request, Answered) {
        let sequence = |&length| Sequence { token_ids: vec![token; length], type_ids: vec![0; length] };
        let (answer, answered) = oneshot::channel();
        (Request::new(lengths.iter().map(sequence).collect(), priority, deadline, answer), answered)
    }

    fn admit(queue: &mut Queue, lane: LaneId, token: u32, lengths: &[usize], priority: Priority) -> Answered {
        let (request, answered) = request(token, lengths, priority, None);
        queue.check(lane, &request).expect("there is room");
        queue.enter(lane, request);
        answered
    }

    /// The first token of every sample of a batch.
    fn tokens(batch: &Batch) -> Vec<u32> {
        batch.portions.iter().flat_map(Portion::sequences).map(|sequence| sequence.token_ids[0]).collect()
    }

    /// Plays the device: each sample's reward is its first token.
    fn run(queue: &mut Queue, batch: Batch, elapsed: Duration) {
        let reward =
            |token| Ok(Reward { reward: token as f32, member_rewards: vec![token as f32], reward_std: None });
        let outcomes: Vec<Outcome> = tokens(&batch).into_iter().map(reward).collect();
        let times = Times { compute: elapsed, ..Times::default() };
        queue.batch_ended(DEVICE, batch.answer(outcomes, times));
    }

    fn run_all(queue: &mut Queue) -> Vec<Vec<u32>> {
        let mut batches = Vec::new();
        while let Some(batch) = queue.next_batch(DEVICE, Instant::now()) {
            batches.push(tokens(&batch));
            run(queue, batch, Duration::from_secs(1));
        }
        batches
    }

    /// What a device takes while its batch runs is what it would take after it, if that is a full batch and certain.
    #[test]
    fn a_batch_is_taken_ahead_only_where_it_is_full_and_nobody_is_served_worse() {
        let (mut queue, lanes) = queue(10, 1000, 2);
        let now = Instant::now();
        let _first = admit(&mut queue, lanes[0], 1, &[10], Priority::Normal);
        assert!(queue.take_ahead(DEVICE, now).is_none(), "nothing runs");
        let running = queue.next_batch(DEVICE, now).unwrap();
        assert!(queue.take_ahead(DEVICE, now).is_none(), "nothing waits");
        let _second = admit(&mut queue, lanes[0], 2, &[6], Priority::Normal);
        assert!(queue.take_ahead(DEVICE, now).is_none(), "more may come beside it");
        let _third = admit(&mut queue, lanes[0], 3, &[6], Priority::Normal);
        let ahead = queue.take_ahead(DEVICE, now).unwrap();
        assert_eq!(tokens(&ahead), [2]);
        let _others = [4, 5].map(|token| admit(&mut queue, lanes[0], token, &[10], Priority::Normal));
        assert!(queue.take_ahead(DEVICE, now).is_none(), "one at most");
        assert!(!queue.is_idle());

        run(&mut queue, running, Duration::from_secs(1));
        assert!(!queue.is_idle(), "it waits for its turn");
        let _urgent = admit(&mut queue, lanes[1], 7, &[1], Priority::Interactive);
        let urgent = queue.next_before_ahead(DEVICE, now).unwrap();
        assert_eq!(tokens(&urgent), [7]);
        run(&mut queue, urgent, Duration::from_secs(1));
        assert!(queue.next_before_ahead(DEVICE, now).is_none());
        queue.start_ahead(DEVICE, now);
        run(&mut queue, ahead, Duration::from_secs(1));
        assert_eq!(run_all(&mut queue), [vec![3], vec![4], vec![5]]);
        assert!(queue.is_idle());
    }

    /// The lane whose batch runs will have had its second by then.
    #[test]
    fn lanes_take_turns_ahead_too() {
        let (mut queue, lanes) = queue(10, 1000, 2);
        let now = Instant::now();
        let _answers: Vec<_> = (0..4)
            .flat_map(|_| [0, 1])
            .map(|lane| admit(&mut queue, lanes[lane], lane as u32, &[10], Priority::Normal))
            .collect();
        let mut running = queue.next_batch(DEVICE, now).unwrap();
        let mut order = Vec::new();
        while let Some(ahead) = {
            order.extend(tokens(&running));
            // before anything was measured nothing is expected of it
            let ahead = if order.len() > 2 { queue.take_ahead(DEVICE, now) } else { None };
            run(&mut queue, running, Duration::from_secs(1));
            match ahead {
                Some(ahead) => {
                    queue.start_ahead(DEVICE, now);
                    Some(ahead)
                }
                None => queue.next_batch(DEVICE, now),
            }
        } {
            running = ahead;
        }
        assert_eq!(order, [0, 1, 0, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn a_lane_that_closes_is_not_retired_before_what_was_taken_ahead_has_run() {
        let (mut queue, lanes) = queue(10, 1000, 1);
        let now = Instant::now();
        let _answers = [1, 2].map(|token| admit(&mut queue, lanes[0], token, &[10], Priority::Normal));
        let running = queue.next_batch(DEVICE, now).unwrap();
        let ahead = queue.take_ahead(DEVICE, now).unwrap();
        queue.close(lanes[0]);
        run(&mut queue, running, Duration::from_secs(1));
        assert!(queue.take_retired().is_none());
        queue.start_ahead(DEVICE, now);
        run(&mut queue, ahead, Duration::from_secs(1));
        assert!(queue.take_retired().is_some() && queue.is_idle());
    }

    #[test]
    fn shadow_work_is_refused_where_others_wait_and_never_in_their_way() {
        let (mut queue, lanes) = queue(100, 60, 2);
        let now = Instant::now();
        let shadow = |queue: &mut Queue, token: u32, lengths: &[usize]| {
            let (request, answered) = request(token, lengths, Priority::Shadow, None);
            queue.check(lanes[1], &request)?;
            queue.enter(lanes[1], request);
            Ok::<_, EngineError>(answered)
        };
        let _running = admit(&mut queue, lanes[0], 1, &[5], Priority::Normal);
        let running = queue.next_batch(DEVICE, now).unwrap();
        let mut first = shadow(&mut queue, 8, &[STEP, STEP]).expect("the device is about to be free");
        assert!(shadow(&mut queue, 8, &[61]).is_err(), "a batch of it at most");
        let _second = shadow(&mut queue, 9, &[1]).unwrap();
        // all the room there is, as if there was no shadow
        let _full = [[30, 30], [31, 29]].map(|lengths| {
            let (request, _) = request(2, &lengths, Priority::Background, None);
            queue.check(lanes[0], &request)
        });
        assert!(_full.iter().all(Result::is_ok));
        let _background = admit(&mut queue, lanes[0], 2, &[10], Priority::Background);
        assert!(matches!(shadow(&mut queue, 9, &[1]), Err(EngineError::QueueFull { .. })), "others wait");
        run(&mut queue, running, Duration::from_secs(1));
        let background = queue.next_batch(DEVICE, now).unwrap();
        assert_eq!(tokens(&background), [2], "before any shadow");
        run(&mut queue, background, Duration::from_secs(1));

        // it takes the device for a step's tokens at a time, whatever a batch may have, and is no part of what others share
        let times: Vec<f64> = queue.lanes.values().map(|lane| lane.device_times[0]).collect();
        let batch = queue.next_batch(DEVICE, now).unwrap();
        assert_eq!(tokens(&batch), [8]);
        let until = |queue: &Queue| queue.seconds_until_served(lanes[0], SHORT, 10, Priority::Normal, now);
        let running = until(&queue);
        run(&mut queue, batch, Duration::from_secs(100));
        assert_eq!((until(&queue), running.is_some()), (running, true), "it makes nobody wait by the books");
        assert_eq!(queue.lanes.values().map(|lane| lane.device_times[0]).collect::<Vec<_>>(), times);

        // a drain waits for none of it
        let running = queue.next_batch(DEVICE, now).unwrap();
        queue.drain();
        assert!(queue.is_idle() && queue.next_between_steps(DEVICE, now).is_none());
        run(&mut queue, running, Duration::from_secs(1));
        assert!(first.try_recv().unwrap().is_ok_and(|scored| scored.outcomes.len() == 2));
        assert!(queue.next_batch(DEVICE, now).is_none());
    }

    #[test]
    fn priority_goes_first_then_who_came_first_and_no_batch_mixes() {
        let (mut queue, lanes) = queue(4, 100, 1);
        let waits = [
            (1, Priority::Background),
            (2, Priority::Normal),
            (3, Priority::Interactive),
            (4, Priority::Normal),
            (5, Priority::Background),
            (6, Priority::Interactive),
        ]
        .map(|(token, priority)| admit(&mut queue, lanes[0], token, &[1], priority));
        assert_eq!(run_all(&mut queue), [[3, 6], [2, 4], [1, 5]]);
        for mut answered in waits {
            assert!(answered.try_recv().expect("answered").is_ok());
        }
    }

    #[test]
    fn a_cut_request_keeps_its_place_and_is_answered_once_it_is_complete() {
        let (mut queue, lanes) = queue(2, 100, 1);
        let mut cut = admit(&mut queue, lanes[0], 1, &[1, 1, 1], Priority::Normal);
        let _later = admit(&mut queue, lanes[0], 2, &[1], Priority::Normal);
        let batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
        assert_eq!(tokens(&batch), [1, 1]);
        run(&mut queue, batch, Duration::from_secs(1));
        assert!(cut.try_recv().is_err(), "one sample still waits");
        assert_eq!(run_all(&mut queue), [[1, 2]]);
        let scored = cut.try_recv().expect("answered").expect("scored");
        assert_eq!(scored.outcomes.len(), 3);
        assert_eq!(scored.compute, Duration::from_secs(2));
    }

    #[test]
    fn a_long_sample_does_not_starve_behind_a_stream_of_short_ones() {
        let (mut queue, lanes) = queue(10, 1000, 1);
        let mut answers = vec![admit(&mut queue, lanes[0], 1, &[3], Priority::Normal)];
        answers.push(admit(&mut queue, lanes[0], 2, &[50], Priority::Normal));
        let mut batches = Vec::new();
        for _ in 0..3 {
            answers.push(admit(&mut queue, lanes[0], 3, &[3], Priority::Normal));
            let batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
            batches.push(tokens(&batch));
            run(&mut queue, batch, Duration::from_secs(1));
        }
        assert_eq!(batches, [vec![1], vec![2], vec![3, 3, 3]]);
    }

    #[test]
    fn contending_lanes_share_the_device_by_time() {
        let (mut queue, lanes) = queue(1, 1000, 2);
        let lengths = [1; 200];
        let _answers = [1, 4].map(|token| {
            let lane = lanes[usize::from(token == 4)];
            admit(&mut queue, lane, token, &lengths, Priority::Normal)
        });
        let mut seconds = [0, 0];
        for _ in 0..100 {
            let batch = queue.next_batch(DEVICE, Instant::now()).expect("both have work");
            let cost = u64::from(tokens(&batch)[0]); // the second lane is an ensemble of four
            seconds[usize::from(cost == 4)] += cost;
            run(&mut queue, batch, Duration::from_secs(cost));
            assert!(seconds[0].abs_diff(seconds[1]) <= 4, "{seconds:?}");
        }
    }

    #[test]
    fn a_lane_that_slept_or_is_new_has_no_credit() {
        let (mut queue, lanes) = queue(1, 1000, 2);
        let _busy = admit(&mut queue, lanes[0], 1, &[1; 50], Priority::Normal);
        for _ in 0..20 {
            let batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
            run(&mut queue, batch, Duration::from_secs(1));
        }
        let new = add_lane(&mut queue);
        let _slept = admit(&mut queue, lanes[1], 2, &[1; 50], Priority::Normal);
        let _new = admit(&mut queue, new, 3, &[1; 50], Priority::Normal);
        let mut turns = [0; 4];
        for _ in 0..30 {
            let batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
            turns[tokens(&batch)[0] as usize] += 1;
            run(&mut queue, batch, Duration::from_secs(1));
        }
        assert!(turns[1..].iter().all(|turns| (9..=11).contains(turns)), "{turns:?}");
    }

    #[test]
    fn background_work_of_one_lane_yields_to_anything_in_another() {
        let (mut queue, lanes) = queue(1, 1000, 2);
        let _background = admit(&mut queue, lanes[0], 1, &[1, 1], Priority::Background);
        let _normal = admit(&mut queue, lanes[1], 2, &[1, 1], Priority::Normal);
        assert_eq!(run_all(&mut queue), [[2], [2], [1], [1]]);
    }

    #[test]
    fn what_expired_or_was_left_never_reaches_the_model_and_frees_its_room() {
        let (mut queue, lanes) = queue(100, 10, 1);
        let now = Instant::now();
        let deadline = Some(now + Duration::from_secs(60));
        let (expiring, mut expired) = request(1, &[2, 2], Priority::Normal, deadline);
        queue.enter(lanes[0], expiring);
        drop(admit(&mut queue, lanes[0], 2, &[3], Priority::Normal));
        let mut patient = admit(&mut queue, lanes[0], 3, &[3], Priority::Normal);
        let (too_much, _) = request(4, &[1], Priority::Normal, None);
        assert!(matches!(queue.check(lanes[0], &too_much), Err(EngineError::QueueFull { waiting: 10, .. })));

        let batch = queue.next_batch(DEVICE, now + Duration::from_secs(60)).expect("work");
        assert_eq!(tokens(&batch), [3]);
        assert_eq!(
            expired.try_recv().expect("answered").expect_err("expired"),
            EngineError::DeadlineExceeded
        );
        run(&mut queue, batch, Duration::from_secs(1));
        assert!(patient.try_recv().expect("answered").is_ok());
        assert!(queue.is_idle());
        let (whole_queue, _answered) = request(5, &[10], Priority::Normal, None);
        assert_eq!(queue.check(lanes[0], &whole_queue), Ok(()));
    }

    #[test]
    fn a_caller_who_leaves_while_a_part_runs_gets_no_more_of_the_device() {
        let (mut queue, lanes) = queue(2, 6, 1);
        let (six, answered) = request(1, &[1; 6], Priority::Normal, None);
        let ticket = queue.enter(lanes[0], six);
        let batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
        drop(answered);
        assert!(queue.withdraw(lanes[0], ticket, Departure::Withdrawn).is_some(), "four samples waited");
        assert!(!queue.is_idle(), "two run");
        run(&mut queue, batch, Duration::from_secs(1));
        assert!(queue.is_idle());
        let (whole_queue, _answered) = request(2, &[6], Priority::Normal, None);
        assert_eq!(queue.check(lanes[0], &whole_queue), Ok(()));
    }

    #[test]
    fn what_would_expire_is_refused_at_once_but_an_idle_lane_always_tries() {
        let (mut queue, lanes) = queue(100, 1000, 2);
        let _answers = [0, 1].map(|lane| {
            let answered = admit(&mut queue, lanes[lane], 1, &[100], Priority::Normal);
            let batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
            run(&mut queue, batch, Duration::from_secs(10)); // ten tokens per second
            answered
        });
        let in_five_seconds =
            |tokens| request(1, &[tokens], Priority::Normal, Some(Instant::now() + Duration::from_secs(5))).0;
        assert_eq!(queue.check(lanes[0], &in_five_seconds(100)), Ok(()), "idle");

        let _waiting = admit(&mut queue, lanes[0], 1, &[24], Priority::Normal);
        assert_eq!(queue.check(lanes[0], &in_five_seconds(9)), Ok(()));
        let _more = admit(&mut queue, lanes[0], 1, &[16], Priority::Normal);
        let refused = queue
            .check(lanes[0], &in_five_seconds(20))
            .expect_err("4 s of others, 2 s of its own, and a half");
        assert!(
            matches!(refused, EngineError::WouldExpire { wait, .. } if wait == Duration::from_secs(9)),
            "{refused:?}"
        );

        let _rival = admit(&mut queue, lanes[1], 1, &[100], Priority::Normal);
        assert!(queue.check(lanes[0], &in_five_seconds(9)).is_err(), "the other lane takes its half");
        let late = request(1, &[1], Priority::Normal, Some(Instant::now())).0;
        assert_eq!(queue.check(lanes[0], &late), Err(EngineError::DeadlineExceeded));
    }

    #[test]
    fn a_full_queue_says_when_to_come_back_and_a_larger_request_never_to() {
        let (mut queue, lanes) = queue(100, 100, 1);
        let _measured = admit(&mut queue, lanes[0], 1, &[100], Priority::Normal);
        assert_eq!(run_all(&mut queue).len(), 1); // a hundred tokens per second
        let _waiting = admit(&mut queue, lanes[0], 1, &[90], Priority::Normal);
        let refused = queue.check(lanes[0], &request(1, &[60], Priority::Normal, None).0);
        let retry_after = Duration::from_millis(500);
        assert_eq!(refused, Err(EngineError::QueueFull { waiting: 90, limit: 100, retry_after }));
        let too_large = queue.check(lanes[0], &request(1, &[60, 60], Priority::Normal, None).0);
        assert_eq!(too_large, Err(EngineError::TooLarge { tokens: 120, limit: 100 }));
        queue.close(lanes[0]);
        let closed = queue.check(lanes[0], &request(1, &[1], Priority::Normal, None).0);
        assert_eq!(closed, Err(EngineError::Draining));
        assert!(queue.take_retired().is_none(), "90 tokens are still to be scored");
    }

    #[test]
    fn what_is_less_urgent_takes_no_room_from_a_request() {
        let (mut queue, lanes) = queue(100, 100, 1);
        let lane = lanes[0];
        let waiting_before =
            |queue: &Queue, priority| match queue.check(lane, &request(1, &[60], priority, None).0) {
                Ok(()) => None,
                Err(EngineError::QueueFull { waiting, .. }) => Some(waiting),
                Err(other) => panic!("{other:?}"),
            };
        let mut answers = vec![admit(&mut queue, lane, 3, &[100], Priority::Background)];
        assert_eq!(waiting_before(&queue, Priority::Background), Some(100));
        assert_eq!(waiting_before(&queue, Priority::Normal), None);
        answers.push(admit(&mut queue, lane, 2, &[50], Priority::Normal));
        assert_eq!(waiting_before(&queue, Priority::Normal), Some(50));
        answers.push(admit(&mut queue, lane, 1, &[60], Priority::Interactive));
        assert_eq!(waiting_before(&queue, Priority::Interactive), Some(60));
        assert_eq!(waiting_before(&queue, Priority::Normal), Some(110));
        assert_eq!(waiting_before(&queue, Priority::Background), Some(210));
        assert_eq!(run_all(&mut queue), [[1], [2], [3]]);
        assert!(answers.iter_mut().all(|answered| answered.try_recv().expect("answered").is_ok()));
    }

    // ---- overload ----

    /// Plays one device, and callers who ask for ten times what it can do, by a clock of its own.
    #[derive(Clone, Copy)]
    struct Overload {
        deadline: f64,
        /// Of a request.
        lengths: &'static [usize],
        max_batch_tokens: usize,
        seconds_per_token: f64,
        seconds_per_batch: f64,
        /// Batches take up to so much of that more, or less.
        noise: f64,
        num_lanes: usize,
    }

    impl Overload {
        /// What part of its capacity goes into answers in time, and what part of those admitted is late.
        fn play(&self) -> (f64, f64) {
            const LASTS: f64 = 60.0;
            let (mut queue, lanes) = queue(self.max_batch_tokens, 1 << 20, self.num_lanes);
            let mut seed = 1_u64;
            let mut random = move || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 11) as f64 / (1_u64 << 53) as f64
            };
            let begun = Instant::now();
            let at = |seconds: f64| begun + Duration::from_secs_f64(seconds);
            for &lane in &lanes {
                let _warm_up = admit(&mut queue, lane, 1, self.lengths, Priority::Normal);
                let batch = queue.next_batch(DEVICE, begun).expect("work");
                run(&mut queue, batch, Duration::from_secs_f64(self.seconds(self.lengths.iter().sum())));
            }
            let whole = self.seconds(self.max_batch_tokens) / self.max_batch_tokens as f64;
            let capacity = 1.0 / (whole * self.lengths.iter().sum::<usize>() as f64);
            let mut waiting: Vec<(LaneId, Ticket, f64, Answered)> = Vec::new();
            let (mut arrives, mut admitted, mut in_time, mut late) = (0.0, 0_u32, 0_u32, 0_u32);
            // with when it ends
            let mut running: Option<(Batch, f64)> = None;
            while arrives < LASTS {
                let ends = running.as_ref().map_or(f64::INFINITY, |&(_, ends)| ends);
                let now = ends.min(arrives);
                if let Some((batch, _)) = running.take_if(|_| ends <= arrives) {
                    let took = ends - batch.started.duration_since(begun).as_secs_f64();
                    run(&mut queue, batch, Duration::from_secs_f64(took));
                } else {
                    arrives += -(1.0 - random()).ln() / (10.0 * capacity);
                    let lane = lanes[(random() * lanes.len() as f64) as usize];
                    let due = now + self.deadline;
                    let (mut asks, answered) = request(1, self.lengths, Priority::Normal, Some(at(due)));
                    asks.admitted = at(now);
                    if queue.check(lane, &asks).is_ok() {
                        admitted += 1;
                        waiting.push((lane, queue.enter(lane, asks), due, answered));
                    }
                }
                waiting.retain_mut(|(lane, ticket, due, answered)| {
                    let is_late = now > *due;
                    match answered.try_recv() {
                        Ok(_) if !is_late => in_time += 1,
                        _ if is_late => {
                            late += 1;
                            queue.withdraw(*lane, *ticket, Departure::Expired);
                        }
                        _ => return true,
                    }
                    false
                });
                if running.is_none() {
                    running = queue.next_batch(DEVICE, at(now)).map(|batch| {
                        let noise = 1.0 + self.noise * (2.0 * random() - 1.0);
                        let ends = now + noise * self.seconds(batch.num_tokens);
                        (batch, ends)
                    });
                }
            }
            (f64::from(in_time) / LASTS / capacity, f64::from(late) / f64::from(admitted))
        }

        fn seconds(&self, tokens: usize) -> f64 {
            self.seconds_per_batch + self.seconds_per_token * tokens as f64
        }
    }

    #[test]
    fn ten_times_what_it_can_do_is_served_as_if_it_were_once_and_all_of_that_in_time() {
        let usual = Overload {
            deadline: 2.0,
            lengths: &[128; 4],
            max_batch_tokens: 16_384,
            seconds_per_token: 1.7e-4,
            seconds_per_batch: 1e-3,
            noise: 0.0,
            num_lanes: 1,
        };
        let mut failures = Vec::new();
        for (name, overload) in [
            ("a batch of all the tokens that it may have takes longer than the deadline", usual),
            ("batches take up to a fifth more or less", Overload { noise: 0.2, ..usual }),
            ("two variants", Overload { num_lanes: 2, noise: 0.2, ..usual }),
            ("one sample at a time", Overload { lengths: &[40], seconds_per_token: 2e-4, ..usual }),
            ("a request is larger than a batch", Overload { max_batch_tokens: 256, noise: 0.2, ..usual }),
            ("a card", Overload { seconds_per_token: 2e-5, seconds_per_batch: 4e-3, noise: 0.2, ..usual }),
            ("long deadlines", Overload { deadline: 30.0, noise: 0.2, ..usual }),
            ("short ones", Overload { deadline: 0.4, lengths: &[32], noise: 0.1, ..usual }),
        ] {
            let (goodput, late) = overload.play();
            if goodput < 0.95 || late > 0.001 {
                failures.push(format!(
                    "{name}: {goodput:.3} of its capacity in time, {late:.5} of what was admitted late"
                ));
            }
        }
        assert!(failures.is_empty(), "{failures:#?}");
    }

    // ---- several devices ----

    /// The first token of what a device does next, for so many seconds.
    fn next_on(queue: &mut Queue, device: usize, elapsed: u64) -> Option<u32> {
        let batch = queue.next_batch(device, Instant::now())?;
        let first = tokens(&batch)[0];
        let outcomes = vec![Err(SampleError::ForwardFailed); batch.portions.len()];
        let times = Times { compute: Duration::from_secs(elapsed), ..Times::default() };
        let ended = batch.answer(outcomes, times);
        queue.batch_ended(device, ended);
        Some(first)
    }

    #[test]
    fn lanes_share_each_device_that_they_contend_for() {
        let (mut queue, _) = queue(1, 10_000, 0);
        queue.add_device();
        let (both, first) = (add_lane_on(&mut queue, &[0, 1]), add_lane_on(&mut queue, &[0]));
        let _both = admit(&mut queue, both, 1, &[1; 500], Priority::Normal);
        let _first = admit(&mut queue, first, 2, &[1; 500], Priority::Normal);
        let mut turns = [0; 3];
        for _ in 0..100 {
            turns[next_on(&mut queue, 0, 1).expect("both wait for it") as usize] += 1;
            assert_eq!(next_on(&mut queue, 1, 1), Some(1), "the other has no copy there");
        }
        assert_eq!(turns, [0, 50, 50], "what one has of another device is no debt, nor credit for the other");
        let late = add_lane_on(&mut queue, &[0, 1]);
        let _late = admit(&mut queue, late, 3, &[1; 500], Priority::Normal);
        let on_first: Vec<u32> = (0..30).filter_map(|_| next_on(&mut queue, 0, 1)).collect();
        let on_second: Vec<u32> = (0..30).filter_map(|_| next_on(&mut queue, 1, 1)).collect();
        let count = |turns: &[u32], token| turns.iter().filter(|&&turn| turn == token).count();
        assert_eq!([1, 2, 3].map(|token| count(&on_first, token)), [10, 10, 10]);
        assert_eq!([1, 3].map(|token| count(&on_second, token)), [15, 15]);
    }

    #[test]
    fn copies_halve_the_wait_that_is_expected() {
        for (devices, wait) in [(&[0][..], 9.0), (&[0, 1], 4.5)] {
            let (mut queue, _) = queue(10, 1000, 0);
            queue.add_device();
            let lane = add_lane_on(&mut queue, devices);
            let _measured = admit(&mut queue, lane, 1, &[10], Priority::Normal);
            next_on(&mut queue, 0, 1).expect("work"); // ten tokens per second
            let _waiting = admit(&mut queue, lane, 1, &[10; 4], Priority::Normal);
            let deadline = Some(Instant::now() + Duration::from_secs(2));
            let refused = queue.check(lane, &request(1, &[20], Priority::Normal, deadline).0);
            let wait = Duration::from_secs_f64(wait);
            assert!(
                matches!(refused, Err(EngineError::WouldExpire { wait: told, .. }) if told == wait),
                "{refused:?}"
            );
        }
    }

    // ---- steps ----

    /// Computed in steps above 20 tokens.
    struct Stepping;

    impl Forward for Stepping {
        fn forward(&self, batch: &PackedBatch) -> Result<Vec<f32>, ModelError> {
            Ok(vec![0.0; batch.len()])
        }

        fn takes_steps(&self) -> bool {
            true
        }
    }

    fn stepping_queue(num_lanes: usize) -> (Queue, Vec<LaneId>) {
        let (mut queue, _) = queue(100, 10_000, 0);
        let mut add = || {
            let copy = Copy::new(DEVICE, Scorer::warm(Arc::new(Stepping)));
            queue.add_lane(Served::new("test", vec![copy], true, watch::channel(true).0))
        };
        let lanes = (0..num_lanes).map(|_| add()).collect();
        (queue, lanes)
    }

    /// The first token of each sample that goes before the batch goes on, which ran for so many seconds.
    fn between(queue: &mut Queue, ran: u64, elapsed: u64) -> Vec<u32> {
        queue.step_ended(DEVICE, Duration::from_secs(ran));
        let Some(batch) = queue.next_between_steps(DEVICE, Instant::now()) else { return Vec::new() };
        let first = tokens(&batch);
        run(queue, batch, Duration::from_secs(elapsed));
        first
    }

    const NOBODY: [u32; 0] = [];

    #[test]
    fn short_requests_go_between_the_steps_of_a_long_one_in_turns() {
        let (mut queue, lanes) = stepping_queue(2);
        let [own, other] = [lanes[0], lanes[1]];
        let mut long = admit(&mut queue, own, 1, &[50], Priority::Normal);
        let batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
        assert_eq!((batch.step_tokens, tokens(&batch)), (Some(3), vec![1]));
        let mut waits = vec![
            admit(&mut queue, own, 2, &[50], Priority::Interactive), // more urgent
            admit(&mut queue, own, 3, &[5, 50], Priority::Normal),
            admit(&mut queue, other, 4, &[50], Priority::Normal),
            admit(&mut queue, own, 5, &[5], Priority::Background),
            admit(&mut queue, own, 6, &[5, 5], Priority::Normal),
            admit(&mut queue, other, 7, &[90], Priority::Interactive),
        ];
        queue.step_ended(DEVICE, Duration::from_secs(1));
        let urgent = queue.next_between_steps(DEVICE, Instant::now()).expect("the person's");
        let first = tokens(&urgent);
        assert_eq!(first, [7], "the other lane has had less of the device");
        run(&mut queue, urgent, Duration::from_secs(3));
        assert_eq!(between(&mut queue, 0, 1), [2]);
        assert_eq!(between(&mut queue, 0, 4), [6, 6], "nothing is owed for what is more urgent");
        waits.push(admit(&mut queue, own, 8, &[5], Priority::Normal));
        assert_eq!(between(&mut queue, 0, 1), NOBODY);
        assert_eq!(between(&mut queue, 1, 1), NOBODY, "half of four seconds is owed");
        waits.push(admit(&mut queue, own, 9, &[5], Priority::Interactive));
        assert_eq!(between(&mut queue, 0, 1), [9]);
        assert_eq!(between(&mut queue, 1, 1), [8]);
        assert_eq!(between(&mut queue, 100, 1), NOBODY, "long ones and background work wait");
        run(&mut queue, batch, Duration::from_secs(103));
        assert!(long.try_recv().expect("answered").is_ok());
        let mut rest = run_all(&mut queue);
        rest.sort();
        assert_eq!(rest, [vec![3, 3], vec![4], vec![5]], "a request is long as a whole");
        for mut answered in waits {
            assert!(answered.try_recv().expect("answered").is_ok());
        }
        assert!(queue.is_idle());
    }

    #[test]
    fn between_the_steps_of_background_work_all_else_goes_and_background_work_in_turns() {
        let (mut queue, lanes) = stepping_queue(1);
        let _long = admit(&mut queue, lanes[0], 1, &[50], Priority::Background);
        let batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
        let waits = [(2, Priority::Background), (3, Priority::Normal), (4, Priority::Normal)]
            .map(|(token, priority)| admit(&mut queue, lanes[0], token, &[95], priority));
        assert!(waits.len() == 3);
        assert_eq!(between(&mut queue, 0, 1), [3]);
        assert_eq!(between(&mut queue, 0, 1), [4], "nothing is owed");
        assert_eq!(between(&mut queue, 0, 1), NOBODY, "95 tokens are long as well");
        let _short = admit(&mut queue, lanes[0], 5, &[5], Priority::Background);
        let _again = admit(&mut queue, lanes[0], 6, &[5; 20], Priority::Background);
        assert_eq!(between(&mut queue, 0, 2), vec![5; 1].into_iter().chain(vec![6; 19]).collect::<Vec<_>>());
        assert_eq!(between(&mut queue, 0, 1), NOBODY, "one second is owed");
        assert_eq!(between(&mut queue, 1, 1), [6]);
        run(&mut queue, batch, Duration::from_secs(3));
    }

    #[test]
    fn only_what_is_more_urgent_goes_between_the_layers_of_short_requests() {
        let (mut queue, lanes) = stepping_queue(1);
        let _many = admit(&mut queue, lanes[0], 1, &[10; 4], Priority::Normal);
        let batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
        assert_eq!(batch.step_tokens, Some(usize::MAX));
        let _normal = admit(&mut queue, lanes[0], 2, &[1], Priority::Normal);
        let _background = admit(&mut queue, lanes[0], 3, &[1], Priority::Background);
        assert_eq!(between(&mut queue, 9, 1), NOBODY);
        let _person = admit(&mut queue, lanes[0], 4, &[1], Priority::Interactive);
        assert_eq!(between(&mut queue, 9, 1), [4]);
        run(&mut queue, batch, Duration::from_secs(18));
        let batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
        assert_eq!((tokens(&batch), batch.step_tokens), (vec![2], None), "no larger than a step");
    }

    #[test]
    fn a_long_batch_counts_against_its_lane_while_it_is_under_way() {
        let (mut queue, lanes) = stepping_queue(2);
        let _long = admit(&mut queue, lanes[0], 1, &[50], Priority::Normal);
        let batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
        let _own = admit(&mut queue, lanes[0], 2, &[20; 100], Priority::Normal);
        let _other = admit(&mut queue, lanes[1], 3, &[20; 100], Priority::Normal);
        let mut seconds = [0_u64, 0];
        for _ in 0..24 {
            // one second of the long one for two of others
            match between(&mut queue, 1, 2).first() {
                Some(2) => seconds[0] += 2,
                Some(_) => seconds[1] += 2,
                None => {}
            }
            seconds[0] += 1;
            assert!(seconds[0].abs_diff(seconds[1]) <= 5, "{seconds:?}");
        }
        run(&mut queue, batch, Duration::from_secs(24));
        assert!(queue.lanes.values().all(|lane| (32.0..=40.0).contains(&lane.device_times[0])));
    }

    #[test]
    fn a_short_request_is_not_refused_for_the_long_ones_before_it() {
        let (mut queue, lanes) = stepping_queue(1);
        let in_seconds = |tokens, seconds| {
            request(1, &[tokens], Priority::Normal, Some(Instant::now() + Duration::from_secs(seconds))).0
        };
        for length in [10, 50] {
            let _measured = admit(&mut queue, lanes[0], 1, &[length], Priority::Normal);
            assert_eq!(run_all(&mut queue).len(), 1); // ten short tokens per second, and fifty of long ones
        }
        let _longs = admit(&mut queue, lanes[0], 1, &[50; 20], Priority::Normal);
        let batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
        assert_eq!(queue.check(lanes[0], &in_seconds(8, 2)), Ok(()), "1.2 s beside a long one, and a half");
        let refused = queue.check(lanes[0], &in_seconds(20, 2));
        assert!(
            matches!(refused, Err(EngineError::WouldExpire { wait, .. }) if wait == Duration::from_millis(4500)),
            "{refused:?}"
        );
        assert!(
            queue.check(lanes[0], &in_seconds(50, 15)).is_err(),
            "900 tokens and 100 that run: 20 s, and a half"
        );
        assert_eq!(queue.check(lanes[0], &in_seconds(50, 32)), Ok(()));
        queue.batch_ended(DEVICE, batch.give_up(Times::default()));
        assert_eq!(queue.lanes[&lanes[0]].kinds[LONG].throughput.seconds_for(50), Some(1.0), "not measured");
    }

    #[test]
    fn a_long_batch_that_nobody_waits_for_is_in_no_estimate() {
        let (mut queue, lanes) = stepping_queue(1);
        let _measured = admit(&mut queue, lanes[0], 1, &[50], Priority::Normal);
        assert_eq!(run_all(&mut queue).len(), 1); // 50 tokens per second
        let in_three_seconds =
            || request(1, &[50], Priority::Normal, Some(Instant::now() + Duration::from_secs(3))).0;
        let (long, answered) = request(1, &[200], Priority::Normal, None);
        let ticket = queue.enter(lanes[0], long);
        let _batch = queue.next_batch(DEVICE, Instant::now()).expect("work");
        assert!(queue.check(lanes[0], &in_three_seconds()).is_err(), "4 s of the other and 1 s of its own");
        drop(answered);
        assert!(queue.withdraw(lanes[0], ticket, Departure::Withdrawn).is_none(), "the device has it");
        assert_eq!(queue.check(lanes[0], &in_three_seconds()), Ok(()), "it ends at its next step");
    }
}
