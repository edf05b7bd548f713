//! The end of a history: without trouble a new head finds everything, brings all members to it, and they hold the same.
//!
//! Invariant: every member is whole and counts again, and each block is what clients were told.

use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quarry_volume::head::Standing;
use quarry_volume::store::{Condition, Replicated};

use super::clients::{Ask, Clients, IN_CHUNK};
use super::compare::compare;
use super::control::Control;
use super::oracle::BLOCKS;
use super::part::{Part, VOLUME};
use crate::store::oracle::Violation;

/// Longer than everything that heals takes.
pub(crate) const HEALED: Duration = Duration::from_secs(120);
/// A head has noticed by then whose answer was lost.
pub(crate) const NOTICED: Duration = Duration::from_secs(5);
/// Pause between two looks at how far it is.
pub(crate) const LOOK: Duration = Duration::from_millis(200);

/// Where a volume's clients live.
pub(crate) trait Ground {
    fn now(&self) -> Duration;
    /// Everything moves on a little, and answers are judged.
    fn tick(&mut self) -> Result<(), Violation>;
    fn note(&mut self, what: &str);
    /// What a machine has of volumes, while it is up.
    fn part(&self, n: usize) -> Option<Part>;
    /// The clients, and the volume's row.
    fn clients(&mut self) -> (&mut Clients, &Control);
}

pub(crate) fn pass(ground: &mut impl Ground, time: Duration) -> Result<(), Violation> {
    let end = ground.now() + time;
    while ground.now() < end {
        ground.tick()?;
    }
    Ok(())
}

/// Lets everything go on until this has come to its end.
pub(crate) fn wait<T>(ground: &mut impl Ground, future: impl Future<Output = T>) -> Result<T, Violation> {
    let mut future = pin!(future);
    let end = ground.now() + HEALED;
    while ground.now() < end {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Ok(output);
        }
        ground.tick()?;
    }
    Err(Violation("no answer comes".to_owned()))
}

/// Looks at everything, at the machine `n`; the volume has so many members.
pub(crate) fn look_at_all(ground: &mut impl Ground, n: usize, members: usize) -> Result<(), Violation> {
    let _head = healed(ground, n, members)?;
    for chunk in (0..BLOCKS).step_by(usize::from(IN_CHUNK)) {
        let blocks = chunk..(chunk + IN_CHUNK).min(BLOCKS);
        alone(ground, n, Ask::Read { blocks })?;
    }
    alone(ground, n, Ask::Flush)?;
    // Those that were not waited for have it as well.
    pass(ground, NOTICED)?;
    ground.clients().0.heads.clear();
    let Some(part) = ground.part(n) else {
        return Err(Violation(format!("{n} went down without trouble")));
    };
    let (tables, row) = wait(ground, part.tables(VOLUME))?.map_err(Violation)?;
    if tables.len() != members {
        return Err(Violation(format!("{} members are left", tables.len())));
    }
    let clients = ground.clients().0;
    compare(&tables, &row.snapshots, &mut clients.oracle, clients.happened)
}

/// What must be answered, and not with a failure.
fn alone(ground: &mut impl Ground, n: usize, ask: Ask) -> Result<(), Violation> {
    let now = ground.now();
    let clients = ground.clients().0;
    let failed = clients.failed;
    let said = clients.begin(n, ask, now).ok_or_else(|| Violation("there is no head".to_owned()))?;
    ground.note(&said);
    while !ground.clients().0.is_idle() {
        ground.tick()?;
    }
    if ground.clients().0.failed > failed { Err(Violation(format!("it fails: {said}"))) } else { Ok(()) }
}

/// A head at this machine under which all members are whole and count.
fn healed(ground: &mut impl Ground, n: usize, members: usize) -> Result<Replicated, Violation> {
    let end = ground.now() + HEALED;
    loop {
        // What was asked before comes to its end, one way or the other.
        pass(ground, LOOK)?;
        let now = ground.now();
        let (clients, control) = ground.clients();
        let serves = |head: &&Replicated| head.condition() == Condition::Serving;
        let newest = control.read().0.epoch;
        let head = clients.heads.get(&n).filter(serves).filter(|head| head.epoch() == newest).cloned();
        let (idle, attaching) = (clients.is_idle(), clients.is_attaching());
        let Some(head) = head else {
            if now > end {
                return Err(Violation("nobody can attach the volume".to_owned()));
            }
            if let Some(part) = ground.part(n).filter(|_| !attaching) {
                ground.note(&format!("{n} attaches"));
                ground.clients().0.attach(n, part, now);
            }
            continue;
        };
        let seen = wait(ground, head.members())?;
        let good = seen.iter().filter(|seen| seen.counts && seen.standing == Standing::Active).count();
        if good == members && idle {
            return Ok(head);
        }
        if now > end {
            return Err(Violation(format!("does not heal: {seen:?}")));
        }
    }
}
