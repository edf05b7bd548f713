//! Runs one worker for ever and keeps its report.
//!
//! Invariant: every step is followed by a pause (of nothing, perhaps), so that a runner can always be stopped.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::pacer::{Pace, Pacer, Pause};
use super::{Outcome, Progress, Worker};
use crate::object::BoxFuture;

/// Gives a future that is ready after a while.
pub type Sleep = Box<dyn Fn(Duration) -> BoxFuture<'static, ()> + Send + Sync>;
/// Time since some beginning, never backwards.
type Elapsed = Box<dyn Fn() -> Duration + Send + Sync>;
/// Calls of clients so far.
type ClientCalls = Box<dyn Fn() -> u64 + Send + Sync>;

/// What a worker is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Not yet begun, or nothing to do.
    #[default]
    Idle,
    /// At work.
    Working,
    /// What there is to do waits for others.
    Waiting,
    /// The last step failed.
    Failing,
}

/// What an operator sees of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Its name.
    pub name: String,
    /// What it is about.
    pub state: State,
    /// How far it is.
    pub progress: Progress,
    /// Items per second, lately.
    pub rate: u64,
    /// Bytes per second, lately, of a worker that reads or copies much.
    pub bytes_rate: u64,
    /// Seconds until the pass ends, at that rate.
    pub eta_seconds: Option<u64>,
    /// Steps that failed.
    pub errors: u64,
    /// Why, the last time.
    pub last_error: Option<String>,
    /// What it waits for, while it does.
    pub waits_for: Option<String>,
}

/// Shows a runner's report while it runs; clones are cheap.
#[derive(Debug, Clone, Default)]
pub struct Reports(Arc<Mutex<Report>>);

impl Reports {
    /// The report as it stands.
    #[must_use]
    pub fn read(&self) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that the worker panicked, and when it is started anew.
    pub fn panicked(&self, why: &str, pause: Duration) {
        let seconds = pause.as_secs();
        self.edit(|report| {
            report.state = State::Failing;
            report.errors += 1;
            report.last_error = Some(format!("it panicked, and is started anew within {seconds} s: {why}"));
            report.waits_for = None;
        });
    }

    fn edit(&self, edit: impl FnOnce(&mut Report)) {
        edit(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Runs a worker.
pub struct Runner {
    worker: Box<dyn Worker>,
    pacer: Pacer,
    elapsed: Elapsed,
    client_calls: ClientCalls,
    reports: Reports,
    window: Window,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("worker", &self.worker.name()).finish_non_exhaustive()
    }
}

/// The stretch of time over which the rate is measured.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    began: Duration,
    done: u64,
    bytes: u64,
    passes: u64,
}

/// How often a worker that makes room for clients looks whether they wait for it.
const LOOK: Duration = Duration::from_millis(50);

const RATE_WINDOW: Duration = Duration::from_secs(10);

impl Runner {
    /// A runner of `worker` at `pace`. `elapsed` and `client_calls` only ever grow.
    #[must_use]
    pub fn new(worker: Box<dyn Worker>, pace: Pace, elapsed: Elapsed, client_calls: ClientCalls) -> Self {
        let reports = Reports::default();
        reports.edit(|report| worker.name().clone_into(&mut report.name));
        Self { worker, pacer: Pacer::new(pace), elapsed, client_calls, reports, window: Window::default() }
    }

    /// It reports where one before it did.
    #[must_use]
    pub fn reporting_to(mut self, reports: Reports) -> Self {
        reports.edit(|report| self.worker.name().clone_into(&mut report.name));
        self.reports = reports;
        self
    }

    /// Where its report can be read.
    #[must_use]
    pub fn reports(&self) -> Reports {
        self.reports.clone()
    }

    /// One step; returns the pause that must follow.
    pub async fn turn(&mut self) -> Pause {
        let (began, calls) = ((self.elapsed)(), (self.client_calls)());
        let outcome = self.worker.step(self.pacer.budget()).await;
        let took = (self.elapsed)().saturating_sub(began);
        let clients = (self.client_calls)() != calls;
        self.report(&outcome, began + took);
        match outcome {
            Outcome::Did(units) => self.pacer.after_work(units, took, clients),
            // Whoever is waited for may come back at any moment, and the look is a cheap one.
            Outcome::Idle | Outcome::Waits(_) => self.pacer.after_idling().into(),
            Outcome::Failed(_) => self.pacer.after_failure().into(),
        }
    }

    /// Steps and pauses until it is dropped.
    pub async fn run(mut self, sleep: Sleep) {
        loop {
            let pause = self.turn().await;
            sleep(pause.least).await;
            let mut left = pause.whole.saturating_sub(pause.least);
            while !left.is_zero() && !self.worker.is_urgent() {
                let nap = left.min(LOOK);
                sleep(nap).await;
                left -= nap;
            }
        }
    }

    fn report(&mut self, outcome: &Outcome, now: Duration) {
        let progress = self.worker.progress();
        let rate = self.rate(&progress, now);
        let name = self.worker.name();
        self.reports.edit(|report| {
            report.state = match outcome {
                Outcome::Did(_) => State::Working,
                Outcome::Idle => State::Idle,
                Outcome::Waits(_) => State::Waiting,
                Outcome::Failed(_) => State::Failing,
            };
            if let Outcome::Failed(why) = outcome {
                tracing::warn!(worker = name, why, "background work failed");
                report.errors += 1;
                report.last_error = Some(why.clone());
            }
            report.waits_for = match outcome {
                Outcome::Waits(what) => Some(what.clone()),
                _ => None,
            };
            if let Some((items, bytes)) = rate {
                (report.rate, report.bytes_rate) = (items, bytes);
            }
            let left = progress.total.saturating_sub(progress.done);
            report.eta_seconds = (progress.total > 0).then(|| left.checked_div(report.rate)).flatten();
            report.progress = progress;
        });
    }

    /// Items and bytes a second, when a window of time is over.
    fn rate(&mut self, progress: &Progress, now: Duration) -> Option<(u64, u64)> {
        let took = now.saturating_sub(self.window.began);
        let Progress { done, bytes, passes, .. } = *progress;
        let next = Window { began: now, done, bytes, passes };
        if progress.passes != self.window.passes {
            self.window = next;
            return None;
        }
        if took < RATE_WINDOW {
            return None;
        }
        let before = std::mem::replace(&mut self.window, next);
        let per_second = |now: u64, before: u64| now.saturating_sub(before).checked_div(took.as_secs());
        Some((per_second(done, before.done)?, per_second(bytes, before.bytes)?))
    }
}
