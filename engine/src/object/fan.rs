//! The same asked of several devices at once, until enough have answered.
//!
//! Invariant: a device that fails or stalls is replaced by the next candidate; [`Tally`] alone decides when, and when it is over.
//! Invariant: what was asked goes on after the verdict for as long as the fan is polled, and ends by its own deadline.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::devices::Member;
use super::launch::Time;
use super::limits::{GIVE_UP, LAST_RESORT, STALL};
use super::quorum::{Asked, Tally, Verdict};
use super::replica::BoxFuture;
use super::{Error, Result};
use crate::disk::format::record::DeviceId;

/// The next candidate, already asked.
pub(crate) type Next<T> = Box<dyn FnMut() -> Option<(Arc<Member>, BoxFuture<'static, Result<T>>)> + Send>;

struct Run<T> {
    member: Arc<Member>,
    work: BoxFuture<'static, Result<T>>,
    stood: Asked,
    /// When it stands otherwise.
    patience: Option<BoxFuture<'static, ()>>,
    /// It was down when it was asked.
    last_resort: bool,
}

impl<T> Run<T> {
    fn new(member: Arc<Member>, work: BoxFuture<'static, Result<T>>, time: Option<&Time>) -> Self {
        let last_resort = member.known().down_since().is_some();
        let stall = if last_resort { LAST_RESORT } else { STALL };
        let patience = time.map(|time| (time.timer)(stall));
        Self { member, work, stood: Asked::Running, patience, last_resort }
    }

    /// Whether its time is over once more.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        self.patience.as_mut().is_some_and(|patience| patience.as_mut().poll(context).is_ready())
    }

    fn stalls(&mut self, tally: &mut Tally, time: Option<&Time>) {
        if self.stood == Asked::Running {
            self.member.failed(time);
            tally.stalls();
            self.stood = Asked::Stalled;
            self.patience = time.map(|time| (time.timer)(GIVE_UP - STALL));
            if !self.last_resort {
                return;
            }
        }
        tally.gives_up();
        (self.stood, self.patience) = (Asked::GivenUp, None);
    }
}

/// What a fan has come to.
pub(crate) struct Parts<T> {
    pub(crate) good: Vec<(Arc<Member>, T)>,
    pub(crate) running: Vec<(Arc<Member>, BoxFuture<'static, Result<T>>)>,
    pub(crate) out: Vec<Arc<Member>>,
}

/// Devices that are asked the same.
pub(crate) struct Fan<T> {
    tally: Tally,
    needed: usize,
    next: Next<T>,
    time: Option<Time>,
    running: Vec<Run<T>>,
    good: Vec<(Arc<Member>, T)>,
    failed: Vec<(Arc<Member>, Error)>,
}

impl<T> Fan<T> {
    /// Nobody is asked before it is polled.
    pub(crate) fn new(wanted: usize, needed: usize, time: Option<Time>, next: Next<T>) -> Self {
        let tally = Tally::new(wanted, needed);
        let (running, good, failed) = (Vec::with_capacity(wanted), Vec::with_capacity(wanted), Vec::new());
        Self { tally, needed, next, time, running, good, failed }
    }

    fn fill(&mut self) {
        while self.tally.asks() {
            let Some((member, work)) = (self.next)() else {
                self.tally.exhaust();
                return;
            };
            self.running.push(Run::new(member, work, self.time.as_ref()));
            self.tally.asked();
        }
    }

    /// Looks at every answer that has come; true when there is more to do at once.
    fn step(&mut self, context: &mut Context<'_>) -> bool {
        self.fill();
        let before = self.running.len();
        let mut at = 0;
        while let Some(run) = self.running.get_mut(at) {
            if let Poll::Ready(result) = run.work.as_mut().poll(context) {
                let Run { member, stood, .. } = self.running.swap_remove(at);
                member.heard(&result, self.time.as_ref());
                self.tally.answered(result.is_ok(), stood);
                match result {
                    Ok(value) => self.good.push((member, value)),
                    Err(e) => self.failed.push((member, e)),
                }
                continue;
            }
            while run.is_late(context) {
                run.stalls(&mut self.tally, self.time.as_ref());
            }
            at += 1;
        }
        self.running.len() != before || self.tally.asks()
    }

    /// Waits until enough have answered well, or no more can.
    pub(crate) async fn reach(&mut self) -> Result<()> {
        poll_fn(|context| {
            loop {
                let moved = self.step(context);
                match self.tally.verdict() {
                    Verdict::Reached => return Poll::Ready(Ok(())),
                    Verdict::Lost => return Poll::Ready(Err(self.why())),
                    Verdict::Open if moved => {}
                    Verdict::Open => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Waits until nobody is left who may answer, or as many have answered well as are wanted.
    pub(crate) async fn rest(&mut self) {
        poll_fn(|context| {
            while self.step(context) {}
            if self.running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Asks nobody any more.
    pub(crate) fn close(&mut self) {
        self.tally.exhaust();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.running.is_empty()
    }

    /// Who has answered well so far.
    pub(crate) fn good(&self) -> &[(Arc<Member>, T)] {
        &self.good
    }

    /// Everybody who was asked.
    pub(crate) fn asked(&self) -> Vec<Arc<Member>> {
        let running = self.running.iter().map(|run| &run.member);
        let failed = self.failed.iter().map(|(member, _)| member);
        let good = self.good.iter().map(|(member, _)| member);
        running.chain(failed).chain(good).cloned().collect()
    }

    /// Who failed so.
    pub(crate) fn refused(&self, so: impl Fn(&Error) -> bool) -> Vec<Arc<Member>> {
        self.failed.iter().filter(|(_, e)| so(e)).map(|(member, _)| member.clone()).collect()
    }

    /// What the first that failed said.
    pub(crate) fn first_error(self) -> Option<Error> {
        self.failed.into_iter().next().map(|(_, e)| e)
    }

    /// The answers.
    pub(crate) fn into_good(self) -> Vec<(Arc<Member>, T)> {
        self.good
    }

    /// The answers, what may still become one, and who failed or is late.
    pub(crate) fn into_parts(self) -> Parts<T> {
        let mut parts = Parts { good: self.good, running: Vec::new(), out: Vec::new() };
        for run in self.running {
            match run.stood {
                Asked::Running => parts.running.push((run.member, run.work)),
                Asked::Stalled | Asked::GivenUp => parts.out.push(run.member),
            }
        }
        parts.out.extend(self.failed.into_iter().map(|(member, _)| member));
        parts
    }

    /// Why it failed: what all say, or how many are missing and what each said.
    fn why(&mut self) -> Error {
        let own = |e: &Error| matches!(e, Error::Refused(_));
        if let Some(at) = self.failed.iter().position(|(_, e)| own(e)) {
            return self.failed.swap_remove(at).1;
        }
        let full = self.failed.iter().filter(|(_, e)| matches!(e, Error::NoSpace)).count();
        if self.good.len() + full >= self.needed {
            // With room there would have been enough.
            return Error::NoSpace;
        }
        let said = self.failed.iter().map(|(member, e)| (member.device(), e.to_string()));
        let silent = self.running.iter().map(|run| (run.member.device(), "no answer yet".to_owned()));
        missing(self.needed, self.good.len(), said.chain(silent))
    }
}

/// Too few devices answered.
pub(crate) fn missing(needed: usize, good: usize, others: impl Iterator<Item = (DeviceId, String)>) -> Error {
    let mut reason = format!("{needed} devices are needed, {good} answered well");
    for (device, why) in others {
        reason.push_str(&format!("; device {device}: {why}"));
    }
    Error::Unavailable { reason }
}
