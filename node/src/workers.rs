//! Background work: a task for each of the engine's workers, and what an operator sees of them.
//!
//! Invariant: a worker stopped at any moment leaves everything consistent; so stopping is dropping its task.

use std::sync::Arc;
use std::time::{Duration, Instant};

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
        for (worker, usual) in workers(store, kept, cluster) {
            let Some(pace) = pace(worker.name(), usual, work) else { continue };
            let calls = store.clone();
            let elapsed = Box::new(move || began.elapsed());
            let runner = Runner::new(worker, pace, elapsed, Box::new(move || calls.client_calls()));
            all.reports.push(runner.reports());
            all.tasks.push(runtime.spawn(runner.run(Box::new(sleep))));
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
    use super::*;
    use crate::config::Size;

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
