//! What is known of a device from its answers: down or not, how fast. Pure: the time is handed in.
//!
//! Invariant: a device that failed is down until it answers; while it is down it is asked last, and once in a pause by nobody's
//! client ([`Known::probe_due`]).
//! Invariant: the pause grows with each failure that comes after the one before was over, up to [`LONGEST_PAUSE`].
//! Invariant: of a thousand reads at most [`HEDGES_PER_THOUSAND`] hedge, and [`HEDGE_BURST`] more.

use std::time::Duration;

use super::limits::{
    FIRST_PAUSE, HEDGE_BURST, HEDGE_FLOOR, HEDGES_PER_THOUSAND, LOCAL_PACE, LONGEST_PAUSE, STALL,
};

/// What kind of work took so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A version, or an object opened.
    Look,
    /// A chunk.
    Chunk,
}

/// How long answers take, in microseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Latency {
    mean: u64,
    /// Where 95 of 100 answers are faster: goes up 19 times as far for a slower answer as down for a faster one.
    slow: u64,
}

impl Latency {
    fn add(&mut self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX >> 8).min(u64::MAX >> 8);
        if self.slow == 0 {
            *self = Self { mean: took, slow: took * 2 + 1 };
            return;
        }
        self.mean = (self.mean * 7 + took) / 8;
        let step = self.slow / 8 + 19;
        self.slow =
            if took > self.slow { self.slow + step } else { self.slow - (step / 19).min(self.slow / 2) };
    }
}

/// What is known of one device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// In a row, those that came within a pause counted as one.
    failures: u32,
    /// Not to be asked until then.
    until: Duration,
    /// Since when it is down.
    since: Option<Duration>,
    look: Latency,
    chunk: Latency,
}

impl Known {
    /// It gave an error that says that it cannot serve, or no answer.
    pub(crate) fn failed(&mut self, now: Duration) {
        // Calls that were in flight together fail together.
        if self.failures == 0 || now >= self.until {
            self.failures = self.failures.saturating_add(1);
            self.until = now + self.pause();
        }
        self.since.get_or_insert(now);
    }

    /// It answered.
    pub(crate) fn answered(&mut self) {
        (self.failures, self.since) = (0, None);
    }

    /// A read took so long.
    pub(crate) fn took(&mut self, work: Work, time: Duration) {
        self.latency(work).add(time);
    }

    /// A read was given up after so long: worth a note only when that was long for it.
    pub(crate) fn took_longer(&mut self, work: Work, than: Duration) {
        let latency = self.latency(work);
        if than > Duration::from_micros(latency.mean) {
            latency.add(than);
        }
    }

    fn latency(&mut self, work: Work) -> &mut Latency {
        match work {
            Work::Look => &mut self.look,
            Work::Chunk => &mut self.chunk,
        }
    }

    fn pause(&self) -> Duration {
        FIRST_PAUSE.saturating_mul(1 << (self.failures.saturating_sub(1)).min(16)).min(LONGEST_PAUSE)
    }

    /// Since when it is down.
    pub(crate) fn down_since(&self) -> Option<Duration> {
        self.since
    }

    /// Whether somebody should see now if it is back: true once in a pause.
    pub(crate) fn probe_due(&mut self, now: Duration) -> bool {
        let due = self.failures > 0 && now >= self.until;
        if due {
            self.until = now + self.pause();
        }
        due
    }

    /// How long it usually takes to answer.
    pub(crate) fn mean(&self) -> Duration {
        Duration::from_micros(self.look.mean)
    }

    /// When a second replica may be asked beside it.
    pub(crate) fn hedge_after(&self, work: Work) -> Duration {
        let latency = match work {
            Work::Look => self.look,
            Work::Chunk => self.chunk,
        };
        Duration::from_micros(latency.slow).clamp(HEDGE_FLOOR, STALL)
    }
}

/// What a read looks at when it chooses whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) local: bool,
    pub(crate) down: bool,
    pub(crate) mean: Duration,
}

/// The order in which replicas are asked: the own node's (unless they are that slow), then the fastest, those that are down last.
/// Equals (within a factor of two, and all below a millisecond) take turns.
pub(crate) fn order(replicas: &[Standing], turn: usize) -> Vec<usize> {
    let count = replicas.len().max(1);
    let rank = |at: usize| {
        let Standing { local, down, mean } = replicas[at];
        let local = local && mean < LOCAL_PACE;
        let pace = if local { 0 } else { mean.as_millis().checked_ilog2().map_or(0, |log| log + 1) };
        (down, !local, pace, (at + turn) % count)
    };
    let mut order: Vec<usize> = (0..replicas.len()).collect();
    order.sort_by_key(|at| rank(*at));
    order
}

/// How many reads may ask a second replica because the first is slow.
#[derive(Debug)]
pub(crate) struct Budget {
    /// In thousandths of a hedge.
    saved: u32,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self { saved: HEDGE_BURST * 1000 }
    }

    /// A read begins.
    pub(crate) fn read(&mut self) {
        self.saved = (self.saved + HEDGES_PER_THOUSAND).min(HEDGE_BURST * 1000);
    }

    /// A hedge, if there is one left.
    pub(crate) fn take(&mut self) -> bool {
        let left = self.saved.checked_sub(1000);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::from_secs(100);

    #[test]
    fn pauses_double_up_to_the_longest_and_end_with_an_answer() {
        let mut known = Known::default();
        assert!(known.down_since().is_none() && !known.probe_due(T));
        let mut now = T;
        for pause in [250, 500, 1000, 2000, 4000, 8000, 8000] {
            known.failed(now);
            // What was in flight beside it.
            known.failed(now + Duration::from_millis(1));
            assert_eq!(known.down_since(), Some(T));
            assert!(!known.probe_due(now + Duration::from_millis(pause - 1)), "{pause}");
            now += Duration::from_millis(pause);
            let mut at_once = known.clone();
            assert!(at_once.probe_due(now) && !at_once.probe_due(now), "one probe in a pause");
        }
        known.answered();
        assert!(known.down_since().is_none() && !known.probe_due(now + LONGEST_PAUSE));
        known.failed(now);
        assert!(known.probe_due(now + FIRST_PAUSE), "the pause is short again");
    }

    #[test]
    fn the_delay_of_a_hedge_is_where_few_answers_are_slower() {
        let mut known = Known::default();
        assert_eq!(known.hedge_after(Work::Look), HEDGE_FLOOR);
        let mut rng = crate::io::SplitMix64::new(7);
        let mut slower = 0;
        for n in 0..20_000 {
            let took = Duration::from_micros(20_000 + rng.below(100_000));
            if n >= 10_000 && took > known.hedge_after(Work::Look) {
                slower += 1;
            }
            known.took(Work::Look, took);
        }
        assert!((100..1000).contains(&slower), "{slower} of 10000");
        assert_eq!(known.hedge_after(Work::Chunk), HEDGE_FLOOR, "kinds of work are apart");
        let before = known.clone();
        known.took_longer(Work::Look, Duration::from_micros(10));
        assert_eq!(
            (known.mean(), known.hedge_after(Work::Look)),
            (before.mean(), before.hedge_after(Work::Look))
        );
        known.took_longer(Work::Look, Duration::from_secs(1));
        assert!(known.mean() > before.mean());
        (0..100).for_each(|_| known.took(Work::Look, Duration::from_secs(100)));
        assert_eq!(known.hedge_after(Work::Look), STALL);
    }

    #[test]
    fn the_own_node_comes_first_then_the_fast_and_the_dead_last() {
        let remote = |millis| Standing { local: false, down: false, mean: Duration::from_millis(millis) };
        let (near, far) = (remote(1), remote(9));
        let local = Standing { local: true, ..remote(50) };
        let dead = Standing { down: true, ..near };
        let table = [
            (vec![near, far, local], 0, vec![2, 0, 1]),
            (vec![dead, far, local], 0, vec![2, 1, 0]),
            (vec![Standing { mean: LOCAL_PACE, ..local }, far], 0, vec![1, 0]),
            (vec![far, near, dead], 0, vec![1, 0, 2]),
            (vec![Standing { down: true, ..local }, far], 0, vec![1, 0]),
            (vec![near, near, near], 0, vec![0, 1, 2]),
            (vec![near, near, near], 1, vec![2, 0, 1]),
            (vec![near, near, near], 2, vec![1, 2, 0]),
            (vec![dead, dead], 0, vec![0, 1]),
            (vec![], 5, vec![]),
        ];
        for (replicas, turn, wanted) in table {
            assert_eq!(order(&replicas, turn), wanted, "{replicas:?} {turn}");
        }
    }

    #[test]
    fn few_reads_hedge() {
        let mut budget = Budget::new();
        let hedges = (0..100_000).filter(|_| {
            budget.read();
            budget.take()
        });
        let most = usize::try_from(HEDGES_PER_THOUSAND * 100 + HEDGE_BURST).unwrap();
        assert!((most - 20..=most).contains(&hedges.count()));
    }
}
