//! The closed loop: so many operations in flight, each begun when one ends; and what a pass came to.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::future::{MaybeDone, maybe_done};

use crate::failure::Failure;

/// When a pass ends: whatever comes first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) time: Duration,
    pub(crate) ops: u64,
}

impl Limit {
    /// At most `time`, and at most `bytes` in operations of `each`.
    pub(crate) fn new(time: Duration, bytes: u64, each: u64) -> Self {
        Self { time, ops: (bytes / each.max(1)).max(1) }
    }
}

/// What one pass did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pass {
    pub(crate) ops: u64,
    pub(crate) seconds: f64,
    /// Microseconds of each operation, sorted.
    latencies: Vec<u32>,
}

impl Pass {
    /// From what was counted since `began`.
    pub(crate) fn since(began: Instant, mut latencies: Vec<u32>) -> Self {
        let seconds = began.elapsed().as_secs_f64().max(1e-9);
        latencies.sort_unstable();
        Self { ops: latencies.len() as u64, seconds, latencies }
    }

    /// Operations a second.
    pub(crate) fn rate(&self) -> f64 {
        as_f64(self.ops) / self.seconds
    }

    /// Microseconds that `percent` of the operations stayed within.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(last * percent / 100).copied().map_or(0.0, f64::from)
    }
}

/// The moment; the bench's whole purpose is to look at the clock.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Microseconds since `began`.
pub(crate) fn micros(began: Instant) -> u32 {
    u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// A count as a float; counts of a bench stay far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(crate) fn as_f64(n: u64) -> f64 {
    n as f64
}

/// Keeps `workers.len()` operations in flight until the limit. `op` gets its worker and the operation's number.
pub(crate) async fn closed_loop<W>(
    workers: Vec<W>,
    limit: Limit,
    op: impl AsyncFn(&mut W, u64) -> Result<(), Failure>,
) -> Result<(Pass, Vec<W>), Failure> {
    let next = Cell::new(0u64);
    let began = now();
    let (op, next) = (&op, &next);
    let work = |mut worker: W| async move {
        let mut latencies = Vec::new();
        while next.get() < limit.ops && began.elapsed() < limit.time {
            let number = next.replace(next.get() + 1);
            let start = now();
            op(&mut worker, number).await?;
            latencies.push(micros(start));
        }
        Ok::<_, Failure>((latencies, worker))
    };
    // All have the waker of this task, not one each: those that a batch answers together are woken once.
    let mut working: Vec<_> = workers.into_iter().map(|worker| Box::pin(maybe_done(work(worker)))).collect();
    poll_fn(|context| {
        let under_way = working.iter_mut().filter(|work| !matches!(***work, MaybeDone::Done(_)));
        match under_way.filter_map(|work| work.as_mut().poll(context).is_pending().then_some(())).count() {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
    let (mut all, mut workers) = (Vec::new(), Vec::new());
    for worker in working.iter_mut().filter_map(|work| work.as_mut().take_output()) {
        let (mut latencies, worker) = worker?;
        all.append(&mut latencies);
        workers.push(worker);
    }
    Ok((Pass::since(began, all), workers))
}

/// The middle of some figures; the mean of the two middle ones when their number is even.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (None, _) => 0.0,
        (Some(one), 1) => *one,
        (Some(upper), _) => sorted.get(middle - 1).map_or(*upper, |lower| f64::midpoint(*lower, *upper)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle() {
        assert_eq!(
            [median(&[]), median(&[3.0]), median(&[9.0, 1.0, 2.0]), median(&[4.0, 1.0])],
            [0.0, 3.0, 2.0, 2.5]
        );
    }

    #[test]
    fn a_pass_ends_at_its_number_of_operations() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let limit = Limit::new(Duration::from_secs(60), 4096 * 10, 4096);
        let run = closed_loop(vec![(); 3], limit, async |(), _| {
            tokio::task::yield_now().await;
            Ok(())
        });
        let (pass, workers) = runtime.block_on(run).unwrap();
        assert_eq!((pass.ops, workers.len()), (10, 3));
    }
}
