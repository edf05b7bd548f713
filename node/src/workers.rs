//! Background work: a task for each of the engine's workers, and what an operator sees of them.
//!
//! Invariant: a worker stopped at any moment leaves everything consistent; so stopping is dropping its task.
//! Invariant: a worker that panics is started anew, however often, and an operator is told each time.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use quarry_engine::object::Store;
use quarry_engine::sync::Cluster;
use quarry_engine::work::{Kept, Pace, Report, Reports, Runner, State, workers};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::config::Work;
use crate::status::WorkerStatus;

/// The running workers of a node.
#[derive(Debug)]
pub(crate) struct Workers {
    tasks: Vec<JoinHandle<()>>,
    reports: Vec<Reports>,
}

impl Workers {
    /// Starts every worker of the store, as the configuration wants them.
    pub(crate) fn start(
        store: &Store,
        cluster: Option<&Arc<dyn Cluster>>,
        work: &Work,
        runtime: &Handle,
    ) -> Self {
        let began = Instant::now();
        let mut all = Self { tasks: Vec::new(), reports: Vec::new() };
        let kept =
            Kept { deleted: work.reclaim_age.get().as_secs(), expired: work.keep_expired.get().as_secs() };
        for (make, usual) in workers(store, kept, cluster) {
            let Some(pace) = pace(make().name(), usual, work) else { continue };
            let (store, reports) = (store.clone(), Reports::default());
            all.reports.push(reports.clone());
            let start = move |reports| {
                let calls = store.clone();
                let elapsed = Box::new(move || began.elapsed());
                let runner = Runner::new(make(), pace, elapsed, Box::new(move || calls.client_calls()));
                runner.reporting_to(reports)
            };
            all.tasks.push(runtime.spawn(keep(start, reports, FIRST_PAUSE)));
        }
        all
    }

    /// Where their reports can be read.
    pub(crate) fn reports(&self) -> Vec<Reports> {
        self.reports.clone()
    }

    /// Ends them all.
    pub(crate) async fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            // An aborted task ends with an error that says so.
            let _aborted = task.await;
        }
    }
}

/// The pause before a worker that panicked is started anew: longer each time in a row, since it may come to the same place again.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Runs a worker for ever: with a new one in the place of one that panicked.
async fn keep(start: impl Fn(Reports) -> Runner, reports: Reports, first_pause: Duration) {
    let mut pause = first_pause;
    loop {
        let since = Instant::now();
        let life = async { start(reports.clone()).run(Box::new(sleep)).await };
        // Nothing of the worker is used afterwards: what it had in memory goes with it.
        let Err(panic) = AssertUnwindSafe(life).catch_unwind().await else { continue };
        if since.elapsed() > LONGEST_PAUSE {
            pause = first_pause;
        }
        let why = message_of(panic.as_ref());
        reports.panicked(why, pause);
        tracing::error!(
            worker = reports.read().name,
            why,
            pause_seconds = pause.as_secs(),
            "background work panicked, which is a bug: please report it with the lines above; it is started anew after the pause"
        );
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What a panic says.
fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

/// Bytes of the auditor's and the replicator's unit.
const UNIT: u64 = 64 << 10;

/// A worker's pace where the configuration says something of it, else the usual one; `None`: it is switched off.
fn pace(name: &str, usual: Pace, work: &Work) -> Option<Pace> {
    match name.split(' ').next() {
        Some("auditor") => {
            let units_per_second = units(work.audit_rate.0);
            (units_per_second > 0).then_some(Pace { units_per_second, ..usual })
        }
        Some("replicator") => Some(Pace { units_per_second: units(work.replicate_rate.0), ..usual }),
        Some("expirer") => Some(Pace { idle_seconds: work.expire_every.get().as_secs(), ..usual }),
        Some("reaper") => Some(Pace { idle_seconds: work.reap_every.get().as_secs(), ..usual }),
        _ => Some(usual),
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

fn sleep(pause: Duration) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(tokio::time::sleep(pause))
}

/// A report as an operator reads it.
pub(crate) fn status_of(reports: &Reports) -> WorkerStatus {
    let Report { name, state, progress, rate, bytes_rate, eta_seconds, errors, last_error, waits_for } =
        reports.read();
    let state = match state {
        State::Idle => "idle".to_owned(),
        State::Working => "busy".to_owned(),
        State::Waiting => format!("waiting: {}", waits_for.unwrap_or_default()),
        State::Failing => format!("failing: {}", last_error.unwrap_or_default()),
    };
    let mut said = format!("pass {}: {} of {}, {rate}/s", progress.passes + 1, progress.done, progress.total);
    if progress.bytes > 0 {
        said = format!("{said}, {} KiB/s", bytes_rate >> 10);
    }
    if let Some(finding) = &progress.last_finding {
        said = format!("{said}; {} findings, last: {finding}", progress.findings);
    }
    WorkerStatus { name, state, progress: said, done: progress.done, errors, eta_seconds }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use quarry_engine::object::BoxFuture;
    use quarry_engine::work::{Outcome, Progress, Worker};

    use super::*;
    use crate::config::Size;

    /// Panics in its second step, in each of its first two lives.
    struct Fragile {
        life: u32,
        steps: u32,
    }

    impl Worker for Fragile {
        fn name(&self) -> &str {
            "fragile"
        }

        fn step(&mut self, _: u32) -> BoxFuture<'_, Outcome> {
            self.steps += 1;
            assert!(self.life > 2 || self.steps < 2, "life {}", self.life);
            Box::pin(std::future::ready(Outcome::Did(1)))
        }

        fn progress(&self) -> Progress {
            Progress { done: u64::from(self.life), ..Progress::default() }
        }
    }

    /// A worker that panicked did nothing any more until the node was started anew, and the status went on to say what it had said
    /// last.
    #[tokio::test]
    async fn a_worker_that_panics_is_started_anew_and_its_report_says_so() {
        let (lives, reports) = (AtomicU32::new(0), Reports::default());
        let began = Instant::now();
        let start = move |reports| {
            let life = 1 + lives.fetch_add(1, Ordering::SeqCst);
            let worker = Box::new(Fragile { life, steps: 0 });
            let pace = Pace { units_per_second: 1000, idle_seconds: 1 };
            let elapsed = Box::new(move || began.elapsed());
            Runner::new(worker, pace, elapsed, Box::new(|| 0)).reporting_to(reports)
        };
        let pause = Duration::from_millis(20);
        let task = tokio::spawn(keep(start, reports.clone(), pause));
        let mut said = Vec::new();
        while reports.read().progress.done < 3 {
            let report = reports.read();
            if report.state == State::Failing && said.last() != report.last_error.as_ref() {
                said.extend(report.last_error);
            }
            assert!(began.elapsed() < Duration::from_secs(60) && !task.is_finished(), "{said:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        task.abort();
        assert_eq!((reports.read().name.as_str(), reports.read().errors), ("fragile", 2));
        assert!(said.iter().all(|why| why.contains("panicked") && why.contains("life ")), "{said:?}");
        assert!(!said.is_empty());
    }

    #[test]
    fn the_configuration_sets_the_pace_of_its_workers_and_leaves_the_others() {
        let usual = Pace { units_per_second: 7, idle_seconds: 9 };
        let work = Work::default();
        assert_eq!(pace("auditor 0f", usual, &work), Some(Pace { units_per_second: 64, ..usual }));
        assert_eq!(pace("expirer", usual, &work), Some(Pace { idle_seconds: 5, ..usual }));
        assert_eq!(pace("reaper", usual, &work), Some(Pace { idle_seconds: 10, ..usual }));
        assert_eq!(pace("replicator 0f", usual, &work), Some(Pace { units_per_second: 4096, ..usual }));
        assert_eq!(pace("cleaner 0f", usual, &work), Some(usual));
        let quiet = Work { audit_rate: Size(0), ..Work::default() };
        assert_eq!(pace("auditor 0f", usual, &quiet), None);
    }
}
