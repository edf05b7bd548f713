//! Last writer wins: which record of a key the index points at, and how many dead ones the log still holds.
//!
//! ```text
//! there is      record is         index points at    ghosts
//! nothing       any               it                 0
//! anything      newer             it                 + 1 if there was a put
//! anything      same, same place  unchanged          unchanged
//! put           a copy of it      it                 + 1
//! anything      older             unchanged          + 1 if the record is a put
//! ```
//!
//! Newer: greater by (sequence, tombstone, turn, evicted, place). An eviction is of one version in one turn, so it is newer
//! than that and older than all that is newer; the version that comes back later has the next turn. Two copies of one record
//! differ in place only; either may win. The one that is applied later does: a damaged record is mended by a copy of it.
//!
//! Invariant: a key is in its table or in Graves, never in both.
//! Invariant: ghosts are never fewer than the dead put-records of the key in the log.

use super::entry::{GraveState, Head, ObjectState};
use super::keys::grave_key;
use super::value::BadValue;
use crate::disk::Location;
use crate::disk::catalog::Tx;
use crate::disk::format::record::{Kind, RecordView};
use crate::index::{Index, IndexError, Table};

/// Where entries are read from: the index, or the index with a batch's changes on top.
pub(crate) trait Source {
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError>;
}

impl Source for Tx<'_> {
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.get(table, key)
    }
}

impl Source for &dyn Index {
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.get(table, key)
    }
}

/// A stored value that is not what this catalog wrote: the index is damaged and must be rebuilt.
pub(crate) fn damaged(bad: BadValue) -> IndexError {
    IndexError::Store { verb: "decode", reason: bad.to_string() }
}

/// What stands for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// A put, with its payload.
    Put(Vec<u8>),
    /// A tombstone, or the mark of an eviction.
    Grave(GraveState),
}

/// The newest record of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) head: Head,
    pub(crate) standing: Standing,
}

impl Slot {
    /// The payload of a put.
    pub(crate) fn payload(&self) -> Option<&[u8]> {
        match &self.standing {
            Standing::Put(payload) => Some(payload),
            Standing::Grave(_) => None,
        }
    }

    /// The version that the device keeps, as (sequence, deleted); `None`: it was evicted.
    pub(crate) fn version(&self) -> Option<(u64, bool)> {
        match self.standing {
            Standing::Put(_) => Some((self.head.sequence, false)),
            Standing::Grave(grave) => (!grave.evicted).then_some((self.head.sequence, true)),
        }
    }

    /// The turn in which the version was evicted.
    pub(crate) fn evicted_in(&self) -> Option<u32> {
        match self.standing {
            Standing::Grave(GraveState { evicted: true, turn, .. }) => Some(turn),
            _ => None,
        }
    }

    /// Whether it is about a tombstone.
    fn of_deleted(&self) -> bool {
        matches!(self.standing, Standing::Grave(GraveState { put: false, .. }))
    }

    /// Whether its record, of an object, says that its line may be missing.
    pub(crate) fn has_intent(&self) -> Result<bool, IndexError> {
        match &self.standing {
            Standing::Put(payload) => ObjectState::decode(payload).map(|state| state.intent).map_err(damaged),
            Standing::Grave(grave) => Ok(grave.intent),
        }
    }

    /// How often it came back.
    pub(crate) fn turn(&self, table: Table) -> Result<u32, IndexError> {
        match &self.standing {
            Standing::Put(payload) if table == Table::Objects => {
                ObjectState::decode(payload).map(|state| state.turn).map_err(damaged)
            }
            Standing::Put(_) => Ok(0),
            Standing::Grave(grave) => Ok(grave.turn),
        }
    }

    fn rank(&self, table: Table) -> Result<(u64, bool, u32, bool, Location), IndexError> {
        let evicted = matches!(self.standing, Standing::Grave(GraveState { evicted: true, .. }));
        Ok((self.head.sequence, self.of_deleted(), self.turn(table)?, evicted, self.head.at))
    }
}

pub(crate) fn load(from: &impl Source, table: Table, key: &[u8]) -> Result<Option<Slot>, IndexError> {
    if let Some(bytes) = from.value(table, key)? {
        let (head, payload) = Head::decode(&bytes).map_err(damaged)?;
        return Ok(Some(Slot { head, standing: Standing::Put(payload.to_vec()) }));
    }
    let Some(bytes) = from.value(Table::Graves, &grave_key(table, key))? else { return Ok(None) };
    let (head, rest) = Head::decode(&bytes).map_err(damaged)?;
    let grave = GraveState::decode(rest).map_err(damaged)?;
    Ok(Some(Slot { head, standing: Standing::Grave(grave) }))
}

fn store(tx: &mut Tx<'_>, table: Table, key: &[u8], slot: &Slot) {
    match &slot.standing {
        Standing::Put(payload) => tx.put(table, key, slot.head.encode(payload)),
        Standing::Grave(grave) => {
            tx.put(Table::Graves, grave_key(table, key), slot.head.encode(&grave.encode()));
        }
    }
}

fn remove(tx: &mut Tx<'_>, table: Table, key: &[u8], slot: &Slot) {
    match slot.standing {
        Standing::Put(_) => tx.delete(table, key),
        Standing::Grave(_) => tx.delete(Table::Graves, grave_key(table, key)),
    }
}

/// What entering a record changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is the newest of its key; `before` stood there.
    Newest { before: Option<Slot> },
    /// A newer one stands.
    Older { current: Slot },
    /// It stood there already.
    Same,
}

/// Enters a record.
pub(crate) fn enter(
    tx: &mut Tx<'_>,
    table: Table,
    record: &RecordView<'_>,
    at: Location,
    standing: Standing,
) -> Result<Outcome, IndexError> {
    let mut new = Slot { head: Head::of(record, at), standing };
    let Some(mut current) = load(tx, table, record.key)? else {
        store(tx, table, record.key, &new);
        tx.born(at);
        return Ok(Outcome::Newest { before: None });
    };
    let (rank, standing) = (new.rank(table)?, current.rank(table)?);
    let version = |(sequence, deleted, turn, evicted, _)| (sequence, deleted, turn, evicted);
    let copy = version(rank) == version(standing) && new.standing == current.standing;
    match rank.cmp(&standing) {
        std::cmp::Ordering::Equal => Ok(Outcome::Same),
        std::cmp::Ordering::Less if !copy => {
            if new.payload().is_some() {
                current.head.ghosts += 1;
                store(tx, table, record.key, &current);
            }
            Ok(Outcome::Older { current })
        }
        _ => {
            new.head.ghosts = current.head.ghosts + u64::from(current.payload().is_some());
            if current.payload().is_some() != new.payload().is_some() {
                remove(tx, table, record.key, &current);
            }
            store(tx, table, record.key, &new);
            tx.died(current.head.at);
            tx.born(at);
            Ok(Outcome::Newest { before: Some(current) })
        }
    }
}

/// Whether a record is a put: what is counted as a ghost once it is dead.
fn is_put(record: &RecordView<'_>) -> bool {
    !record.deleted && record.kind != Kind::Evict
}

/// Follows a copy of a record. A copy that came too late is one more ghost.
pub(crate) fn relocate(
    tx: &mut Tx<'_>,
    table: Table,
    record: &RecordView<'_>,
    from: Location,
    to: Location,
) -> Result<bool, IndexError> {
    // A pruned tombstone: nothing is left to protect.
    let Some(mut slot) = load(tx, table, record.key)? else { return Ok(false) };
    let moved = slot.head.at == from;
    if moved {
        slot.head.at = to;
        tx.died(from);
        tx.born(to);
    }
    if is_put(record) {
        slot.head.ghosts += 1;
    }
    store(tx, table, record.key, &slot);
    Ok(moved)
}

/// A dead record of the key has left the log.
pub(crate) fn forget(tx: &mut Tx<'_>, table: Table, record: &RecordView<'_>) -> Result<(), IndexError> {
    if !is_put(record) {
        return Ok(());
    }
    if let Some(mut slot) = load(tx, table, record.key)? {
        slot.head.ghosts = slot.head.ghosts.saturating_sub(1);
        store(tx, table, record.key, &slot);
    }
    Ok(())
}
