//! How fast background work may go: pure.
//!
//! Invariant: over any long time a worker does at most its units per second, and at most a quarter of the time
//! while clients are served, unless they come to wait for it (`Pause`).
//! Invariant: a step takes about [`STEP`], however long a unit takes: the pause that clients are owed follows it, and so does the
//! report. (A unit of 64 KiB may be a record of 200 bytes, and a question to another node.)

use std::time::Duration;

/// A worker's speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Most units in a second.
    pub units_per_second: u32,
    /// Seconds until it looks again when there was nothing to do.
    pub idle_seconds: u64,
}

/// Part of the time that work may take while clients are served: one in so many.
const SHARE_BESIDE_CLIENTS: u32 = 4;
/// Work between two pauses, in parts of a second: short enough that clients hardly wait for it.
const SLICES_PER_SECOND: u32 = 20;
const STEP: Duration = Duration::from_millis(1000 / SLICES_PER_SECOND as u64);
/// Units of the first step: nothing is known yet of how long they take.
const FIRST: u32 = 16;
/// First and longest pause after failures.
const FAILED: Duration = Duration::from_secs(1);
const FAILED_MOST: Duration = Duration::from_secs(60);

/// What follows a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// So long at least.
    pub least: Duration,
    /// So long, where clients are made room for: unless they come to wait for the work meanwhile.
    pub whole: Duration,
}

impl From<Duration> for Pause {
    fn from(whole: Duration) -> Self {
        Self { least: whole, whole }
    }
}

/// Says how much to do next and how long to pause after it.
#[derive(Debug, Clone)]
pub struct Pacer {
    pace: Pace,
    failures: u32,
    /// Units that a step has time for, as far as earlier ones tell.
    fits: u32,
}

impl Pacer {
    /// At this pace.
    #[must_use]
    pub fn new(pace: Pace) -> Self {
        Self { pace, failures: 0, fits: FIRST }
    }

    /// Units for the next step.
    #[must_use]
    pub fn budget(&self) -> u32 {
        (self.pace.units_per_second / SLICES_PER_SECOND).min(self.fits).max(1)
    }

    /// The pause after a step that did `units` in `took`, while clients called (or not).
    pub fn after_work(&mut self, units: u32, took: Duration, clients: bool) -> Pause {
        self.failures = 0;
        self.learn(units, took);
        let due = Duration::from_secs(1) * units / self.pace.units_per_second.max(1);
        let by_rate = due.saturating_sub(took);
        let beside_clients = if clients { took * (SHARE_BESIDE_CLIENTS - 1) } else { Duration::ZERO };
        Pause { least: by_rate, whole: by_rate.max(beside_clients) }
    }

    /// A step's time has room for as many units as this step would have done in it; twice as many as now at most.
    fn learn(&mut self, units: u32, took: Duration) {
        let in_a_step = u128::from(units) * STEP.as_micros() / took.as_micros().max(1);
        let in_a_step = u32::try_from(in_a_step).unwrap_or(u32::MAX);
        self.fits = in_a_step.clamp(1, self.budget().saturating_mul(2));
    }

    /// The pause when there was nothing to do.
    pub fn after_idling(&mut self) -> Duration {
        self.failures = 0;
        Duration::from_secs(self.pace.idle_seconds)
    }

    /// The pause after a failure: longer each time in a row.
    pub fn after_failure(&mut self) -> Duration {
        let pause = FAILED * (1 << self.failures.min(6));
        self.failures += 1;
        pause.min(FAILED_MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pacer(units_per_second: u32) -> Pacer {
        Pacer::new(Pace { units_per_second, idle_seconds: 7 })
    }

    #[test]
    fn work_is_held_to_its_rate() {
        let mut pacer = pacer(100);
        assert_eq!(pacer.budget(), 5);
        let took = Duration::from_millis(10);
        assert_eq!(pacer.after_work(5, took, false), Duration::from_millis(40).into());
        assert_eq!(pacer.after_work(5, Duration::from_secs(3), false), Duration::ZERO.into());
    }

    #[test]
    fn clients_come_first() {
        let mut pacer = pacer(1_000_000);
        let took = Duration::from_millis(10);
        let room = Pause { least: Duration::ZERO, whole: Duration::from_millis(30) };
        assert_eq!(pacer.after_work(5, took, true), room);
        assert_eq!(pacer.after_work(5, took, false), Duration::ZERO.into());
    }

    /// An auditor that may read 10 GiB a second had 8,192 units for a step. Of small objects in a cluster those took eight seconds, in
    /// which it seemed to stand still, and then it rested for 24, since a client had called meanwhile.
    #[test]
    fn a_step_is_short_however_long_a_unit_takes() {
        let mut pacer = pacer(160_000);
        let (mut elapsed, mut done) = (Duration::ZERO, 0);
        for _ in 0..20 {
            let units = pacer.budget();
            let took = Duration::from_millis(1) * units;
            assert!(took <= Duration::from_millis(50), "{units} units");
            elapsed += took + pacer.after_work(units, took, true).whole;
            done += units;
        }
        let most = u128::from(done) * 5;
        assert!(elapsed.as_millis() <= most, "{done} units in {elapsed:?}");
        assert!(pacer.budget() >= 40, "and not shorter than need be: {}", pacer.budget());
    }

    #[test]
    fn quick_units_come_to_the_whole_rate_soon_and_one_slow_step_is_forgotten() {
        let mut pacer = pacer(160_000);
        let quick = |pacer: &mut Pacer| {
            for _ in 0..14 {
                let units = pacer.budget();
                pacer.after_work(units, Duration::from_micros(1) * units, false);
            }
            pacer.budget()
        };
        assert_eq!(quick(&mut pacer), 8000);
        pacer.after_work(8000, Duration::from_secs(100), false);
        assert_eq!(pacer.budget(), 4);
        assert_eq!(quick(&mut pacer), 8000);
        pacer.after_work(1, Duration::from_secs(9), false);
        assert_eq!(pacer.budget(), 1, "at least one is tried");
    }

    #[test]
    fn failures_in_a_row_wait_longer_up_to_a_minute_and_are_forgiven() {
        let mut pacer = pacer(1);
        let pauses: Vec<u64> = (0..9).map(|_| pacer.after_failure().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pacer.after_idling().as_secs(), 7);
        assert_eq!(pacer.after_failure().as_secs(), 1);
    }

    #[test]
    fn a_pace_of_nothing_still_moves() {
        let mut pacer = pacer(0);
        assert_eq!(pacer.budget(), 1);
        assert_eq!(pacer.after_work(1, Duration::ZERO, false), Duration::from_secs(1).into());
    }
}
