//! Background work: a task for each of the engine's workers, and what an operator sees of them.
//!
//! Invariant: a worker stopped at any moment leaves everything consistent; so stopping is dropping its task.

use std::time::{Duration, Instant};

use quarry_engine::object::Store;
use quarry_engine::work::{RECLAIM_AGE, Report, Reports, Runner, State, workers};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::status::WorkerStatus;

/// The running workers of a node.
#[derive(Debug)]
pub(crate) struct Workers {
    tasks: Vec<JoinHandle<()>>,
    reports: Vec<Reports>,
}

impl Workers {
    /// Starts every worker of the store.
    pub(crate) fn start(store: &Store, runtime: &Handle) -> Self {
        let began = Instant::now();
        let mut all = Self { tasks: Vec::new(), reports: Vec::new() };
        for (worker, pace) in workers(store, RECLAIM_AGE) {
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

fn sleep(pause: Duration) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(tokio::time::sleep(pause))
}

/// A report as an operator reads it.
pub(crate) fn status_of(reports: &Reports) -> WorkerStatus {
    let Report { name, state, progress, rate, eta_seconds, errors, last_error } = reports.read();
    let state = match state {
        State::Idle => "idle".to_owned(),
        State::Working => "busy".to_owned(),
        State::Failing => format!("failing: {}", last_error.unwrap_or_default()),
    };
    let mut said = format!("pass {}: {} of {}, {rate}/s", progress.passes + 1, progress.done, progress.total);
    if let Some(finding) = &progress.last_finding {
        said = format!("{said}; {} findings, last: {finding}", progress.findings);
    }
    WorkerStatus { name, state, progress: said, done: progress.done, errors, eta_seconds }
}
