//! An index group whose rows several nodes hold: the body of the seam over [`crate::consensus`].
//!
//! Invariant: a row is read only behind a barrier: this node led after the question came, and had applied what came before.
//! Invariant: version times of a term are greater than those of every earlier one: a leader reserves them before it gives
//! them, by a row whose own version time is the ceiling, and the next leader starts above all rows. The leader itself does
//! not follow its reservations: its clock would run ahead of them, and they of it.
//! Invariant: of a time and one that was granted later and without regard to it, in a later term or after the grant of the first had
//! ended without its line, the second lies above a reservation that was made after the first and reaches more than [`RESERVE`]
//! beyond it. So a leader whose rows reach no further when its term begins knows of all that can have overtaken it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;

use super::group::{IndexGroup, Leader, Rows, TotalsOf};
use super::locks::{Claim, Locks, Permit};
use super::names::Elsewhere;
use super::replica::{BoxFuture, Draft};
use super::{Error, IndexPolicy, Result};
use crate::catalog::{Belongs, ContainerValue, GroupId, Row, Totals, account_key, container_key};
use crate::clock::{Clock, Timestamp};
use crate::consensus::{Entry, Given, Group, GroupError, Leading, Outcome, Part, RowChange, Split, TakeBack};
use crate::disk::Class;
use crate::disk::format::record::DeviceId;
use crate::index::Range;
use crate::net::{NodeId, first};

/// The row whose version time is the ceiling (engine/FORMAT-objects.md).
const CEILING_KEY: &[u8] = b"kt";
/// How far ahead version times are reserved.
const RESERVE: Duration = Duration::from_secs(2);
/// How long changes may wait for others to end before a range is given away: a little at first, and longer where that does not do;
/// and how long for the group that takes it over to be led.
const STILL: [Duration; 5] = [
    Duration::from_millis(40),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
    Duration::from_millis(320),
];
const READY: Duration = Duration::from_millis(200);
/// Pause in which changes go on, before they wait again.
const BETWEEN: Duration = Duration::from_millis(100);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// This node's voter of an index group; clones share everything.
#[derive(Clone)]
pub struct Voter {
    shared: Arc<Shared>,
}

struct Shared {
    group: Group,
    clock: Arc<Clock>,
    locks: Locks,
    /// The term in which the clock was set above all rows.
    began: AtomicU64,
    /// The greatest time of any row when that term began: nobody who led before has granted a greater one.
    above: AtomicU64,
    /// The last reservation.
    reserved: Mutex<Reserved>,
    /// Makes one reservation at a time.
    reserving: AsyncMutex<()>,
    /// Nothing is decided here before.
    opened: AtomicBool,
}

#[derive(Clone, Copy, Default)]
struct Reserved {
    term: u64,
    ceiling: u64,
    /// The next one is above this.
    least: u64,
}

/// How far a reservation for this time reaches.
fn reservation(to: u64) -> u64 {
    to.saturating_add(u64::try_from(RESERVE.as_micros()).unwrap_or(0))
}

impl std::fmt::Debug for Voter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Voter").field("group", &self.shared.group).finish_non_exhaustive()
    }
}

fn refused(error: GroupError) -> Error {
    match error {
        GroupError::NoSpace => Error::NoSpace,
        GroupError::Limit(what) => Error::Refused(format!("too much for one change of rows: {what}")),
        other => Error::Unavailable { reason: other.to_string() },
    }
}

impl Voter {
    /// Over a group that is open here, with the clock of this node.
    #[must_use]
    pub fn new(group: Group, clock: Arc<Clock>) -> Self {
        let voter = Self::closed(group, clock);
        voter.open(true);
        voter
    }

    /// The same; nothing is decided here before it is opened, and whoever asks waits as if nobody led.
    #[must_use]
    pub fn closed(group: Group, clock: Arc<Clock>) -> Self {
        let shared = Shared {
            group,
            clock,
            locks: Locks::new(),
            began: AtomicU64::new(0),
            above: AtomicU64::new(0),
            reserved: Mutex::default(),
            reserving: AsyncMutex::default(),
            opened: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Whether this node decides where it leads, from now on.
    pub fn open(&self, opened: bool) {
        self.shared.opened.store(opened, Ordering::Release);
    }

    /// Whether it decides.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.shared.opened.load(Ordering::Acquire)
    }

    /// Whether an account was ever made in the group, or lines were taken over, as far as this node has applied it.
    pub fn is_used(&self) -> Result<bool> {
        if self.shared.group.part().is_some() {
            return Ok(true);
        }
        let accounts = Range::prefix(&account_key(""));
        Ok(self.shared.group.scan(&accounts).map_err(refused)?.next().transpose()?.is_some())
    }

    /// Over which group.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.shared.group
    }
}

impl Voter {
    /// As [`Voter::split_last`], with as many lines as are half of them.
    pub async fn split(
        &self,
        account: &str,
        container: &str,
        to: GroupId,
        ready: impl Fn() -> bool,
    ) -> Result<bool> {
        self.split_last(account, container, to, u64::MAX, ready).await
    }

    /// Gives the upper half of what this group has of a container, but no more than `most` lines, to another group, of which nothing
    /// was heard before; false when there is too little to divide, or the container is eventual. Nobody holds a grant for anything in the container in that
    /// moment: where others hold some for longer than [`STILL`], nothing is done, and it is to be tried again. `ready` says whether
    /// the other group is led: changes that came meanwhile wait for that, for a while.
    pub async fn split_last(
        &self,
        account: &str,
        container: &str,
        to: GroupId,
        most: u64,
        ready: impl Fn() -> bool,
    ) -> Result<bool> {
        let shared = &self.shared;
        shared.barrier().await?;
        let found = match shared.group.part() {
            Some(part) => Some((part.id, part.value.of)),
            None => {
                let row = shared.group.row(&container_key(account, container)).map_err(refused)?;
                let value = row.map(|row| ContainerValue::decode(&row.value)).transpose()?;
                if value.as_ref().is_some_and(|value| value.index == IndexPolicy::Eventual) {
                    // A child would not know that it is.
                    return Ok(false);
                }
                let of =
                    |policy| Belongs { account: account.to_owned(), container: container.to_owned(), policy };
                value.map(|value| (value.id, of(value.policy)))
            }
        };
        let found = found.filter(|(_, of)| of.account == account && of.container == container);
        let Some((id, of)) = found else { return Err(Error::NoContainer) };
        let Some(from) = shared.group.middle(id, most).await.map_err(refused)? else { return Ok(false) };
        let at = shared.clock.tick();
        if at > shared.ceiling() {
            shared.raise(at).await?;
        }
        let split = Split { id, from, group: to, of, sequence: at.0 };
        let still = shared.still(account, container);
        let (outcome, permit) = shared.group.split(split, still).await.map_err(refused)?;
        if outcome != Outcome::Applied {
            return Err(Error::Unavailable { reason: "the range was not given away".to_owned() });
        }
        let mut waited = Duration::ZERO;
        while !ready() && waited < READY {
            shared.group.sleep(LOOK).await;
            waited += LOOK;
        }
        drop(permit);
        Ok(true)
    }

    /// Takes a range back from a group that is shut by the attempt that this group remembers, or for ever; it made nothing above
    /// `floor`. False: it is not so any more.
    pub(super) async fn take_back(&self, given: &Given, attempt: Option<u64>, floor: u64) -> Result<bool> {
        let shared = &self.shared;
        shared.barrier().await?;
        // From here on this node gives no version time that the child may have given.
        shared.clock.observe(Timestamp(floor));
        let at = shared.clock.tick();
        if at > shared.ceiling() {
            shared.raise(at).await?;
        }
        let (id, from, group) = (given.id, given.from.clone(), given.group);
        let back = TakeBack { id, from, group, floor, attempt, sequence: at.0 };
        match shared.group.take_back(back).await.map_err(refused)? {
            Outcome::Applied => Ok(true),
            _ => Ok(false),
        }
    }
}

#[cfg(test)]
impl Voter {
    pub(crate) fn shared_clock(&self) -> &Clock {
        &self.shared.clock
    }
}

impl Shared {
    fn term(&self) -> u64 {
        self.group.office().term
    }

    /// Waits for a barrier that began after this call.
    async fn barrier(&self) -> Result<()> {
        let leading = self.group.barrier().await.map_err(refused)?;
        self.begin(leading);
        Ok(())
    }

    /// Sets the clock above all rows, once in a term.
    fn begin(&self, Leading { term, above }: Leading) {
        if self.began.load(Ordering::SeqCst) != term {
            self.above.fetch_max(above, Ordering::SeqCst);
            self.clock.observe(Timestamp(above));
            self.began.store(term, Ordering::SeqCst);
        }
    }

    /// Waits for a moment in which nothing in a container is being decided, and holds it.
    async fn still(&self, account: &str, container: &str) -> std::result::Result<Permit, GroupError> {
        for within in STILL {
            let claim = Box::pin(self.locks.claim(Claim::Emptiness { account, container }));
            if let Some(permit) = first(claim, self.group.sleep(within)).await {
                return Ok(permit);
            }
            self.group.sleep(BETWEEN).await;
        }
        Err(GroupError::Unavailable("changes of the container are under way".to_owned()))
    }

    fn ceiling(&self) -> Timestamp {
        let Reserved { term, ceiling, .. } = *self.reserved();
        Timestamp(if term == self.term() { ceiling } else { 0 })
    }

    fn reserved(&self) -> MutexGuard<'_, Reserved> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn raise(&self, to: Timestamp) -> Result<()> {
        let _one = self.reserving.lock().await;
        if to <= self.ceiling() {
            return Ok(());
        }
        let (term, least) = (self.term(), self.reserved().least);
        let ceiling = reservation(to.0.max(least));
        let row = RowChange { key: CEILING_KEY.to_vec(), sequence: ceiling, value: Some(Vec::new()) };
        // A mark that is written over and over; deletes need version times, too.
        self.propose(vec![row], Class::Delete, term).await?;
        let mut reserved = self.reserved();
        // Whoever abandoned a grant meanwhile needs another one behind it.
        if reserved.least == least {
            *reserved = Reserved { term, ceiling, least };
        }
        Ok(())
    }

    /// As [`refused`]; where lines went, the rows say.
    fn refused(&self, error: GroupError) -> Error {
        let GroupError::Moved(group) = error else { return refused(error) };
        match self.group.given().into_iter().find(|given| given.group == group) {
            Some(Given { from, to, .. }) => Error::Elsewhere(Elsewhere::Moved { group, from, to }),
            // They are just coming back.
            None => Error::Elsewhere(Elsewhere::Shut { at: Timestamp::default() }),
        }
    }

    async fn propose(&self, rows: Vec<RowChange>, class: Class, term: u64) -> Result<()> {
        let entry = Entry { term: Some(term), guards: Vec::new(), rows };
        let outcome = match self.group.propose_as(entry, class).await {
            Err(GroupError::NotLeader(_)) => return Err(Error::GrantLost { unused: true }),
            proposed => proposed.map_err(refused)?,
        };
        match outcome {
            Outcome::Applied => Ok(()),
            Outcome::Stale { .. } => {
                Err(Error::Unavailable { reason: "somebody else changed the row later".to_owned() })
            }
            Outcome::Moved(group) => Err(self.refused(GroupError::Moved(group))),
            Outcome::Fenced { .. } => Err(Error::GrantLost { unused: true }),
            Outcome::Refused(_) | Outcome::Repeated => {
                Err(Error::Unavailable { reason: "the index group has another leader".to_owned() })
            }
        }
    }
}

impl IndexGroup for Voter {
    fn leader(&self) -> Leader {
        let office = self.shared.group.office();
        match office.leader {
            _ if office.leads && !self.is_open() => Leader::Unknown,
            _ if office.leads => Leader::Own,
            Some(node) if node != self.shared.group.node() => Leader::Other(node),
            _ => Leader::Unknown,
        }
    }

    fn term(&self) -> u64 {
        self.shared.term()
    }

    fn home(&self) -> Option<DeviceId> {
        None
    }

    fn claim<'a>(&'a self, claim: Claim<'a>) -> BoxFuture<'a, Permit> {
        Box::pin(async move {
            let mut permit = self.shared.locks.claim(claim).await;
            permit.term = self.shared.term();
            permit
        })
    }

    fn barrier(&self) -> Option<BoxFuture<'static, Result<()>>> {
        let shared = Arc::clone(&self.shared);
        Some(Box::pin(async move { shared.barrier().await }))
    }

    fn barrier_with(&self, follower: NodeId, term: u64) -> Option<BoxFuture<'static, Result<()>>> {
        let leading = self.shared.group.confirmed_by(follower, term);
        let Some(leading) = leading else { return self.barrier() };
        self.shared.begin(leading);
        None
    }

    fn follows(&self, leader: NodeId) -> Option<u64> {
        self.shared.group.follows(leader)
    }

    fn ceiling(&self) -> Timestamp {
        self.shared.ceiling()
    }

    fn raise(&self, to: Timestamp) -> BoxFuture<'static, Result<()>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.raise(to).await })
    }

    /// What was granted in this term is above all rows of its beginning, and not meant.
    fn overtaken(&self, at: Timestamp) -> bool {
        self.shared.above.load(Ordering::SeqCst) > reservation(at.0)
    }

    fn abandon(&self, at: Timestamp) {
        let mut reserved = self.shared.reserved();
        let least = reserved.least.max(at.0.saturating_add(1));
        *reserved = Reserved { ceiling: 0, least, ..*reserved };
    }

    fn row(&self, key: &[u8]) -> Result<Option<Row>> {
        self.shared.group.row(key).map_err(|e| self.shared.refused(e))
    }

    fn totals(&self, of: TotalsOf<'_>) -> Result<Totals> {
        self.shared.group.totals(of).map_err(refused)
    }

    fn scan(&self, range: Range) -> Rows<'_> {
        match self.shared.group.scan(&range) {
            Ok(rows) => Box::new(rows.map(|pair| {
                let (key, row) = pair?;
                Ok((key.into_boxed_slice(), row))
            })),
            Err(error) => Box::new(std::iter::once(Err(refused(error)))),
        }
    }

    fn marked_accounts(&self, marker: &str, limit: usize) -> Result<Vec<String>> {
        self.shared.group.marked_accounts(marker, limit).map_err(refused)
    }

    fn given(&self) -> Vec<Given> {
        self.shared.group.given()
    }

    fn part(&self) -> Option<Part> {
        self.shared.group.part()
    }

    fn max_sequence(&self) -> u64 {
        self.shared.group.max_sequence()
    }

    fn append(&self, rows: Vec<Draft>, class: Class, term: u64) -> BoxFuture<'static, Result<()>> {
        let shared = Arc::clone(&self.shared);
        let change = |draft: Draft| RowChange {
            key: draft.key,
            sequence: draft.sequence,
            value: (!draft.deleted).then_some(draft.meta),
        };
        let rows = rows.into_iter().map(change).collect();
        Box::pin(async move { shared.propose(rows, class, term).await })
    }
}
