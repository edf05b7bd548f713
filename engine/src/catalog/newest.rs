//! Last writer wins: which record of a key the index points at, and how many dead ones the log still holds.
//!
//! ```text
//! there is      record is         index points at    ghosts
//! nothing       any               it                 0
//! put/grave     newer             it                 + 1 if there was a put
//! put/grave     same, same place  unchanged          unchanged
//! put           a copy of it      it                 + 1
//! put/grave     older             unchanged          + 1 if the record is a put
//! ```
//!
//! Newer: greater by (sequence, tombstone, place). Two copies of one record differ in place only; either may win. The one that
//! is applied later does: a damaged record is mended by a copy of it.
//!
//! Invariant: a key is in its table or in Graves, never in both.
//! Invariant: ghosts are never fewer than the dead put-records of the key in the log.

use super::entry::Head;
use super::keys::grave_key;
use super::value::BadValue;
use crate::disk::Location;
use crate::disk::catalog::Tx;
use crate::disk::format::record::RecordView;
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

/// The newest record of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) head: Head,
    /// `None`: a tombstone.
    pub(crate) payload: Option<Vec<u8>>,
}

pub(crate) fn load(from: &impl Source, table: Table, key: &[u8]) -> Result<Option<Slot>, IndexError> {
    if let Some(bytes) = from.value(table, key)? {
        let (head, payload) = Head::decode(&bytes).map_err(damaged)?;
        return Ok(Some(Slot { head, payload: Some(payload.to_vec()) }));
    }
    let Some(bytes) = from.value(Table::Graves, &grave_key(table, key))? else { return Ok(None) };
    let (head, _) = Head::decode(&bytes).map_err(damaged)?;
    Ok(Some(Slot { head, payload: None }))
}

fn store(tx: &mut Tx<'_>, table: Table, key: &[u8], slot: &Slot) {
    match &slot.payload {
        Some(payload) => tx.put(table, key, slot.head.encode(payload)),
        None => tx.put(Table::Graves, grave_key(table, key), slot.head.encode(&[])),
    }
}

fn remove(tx: &mut Tx<'_>, table: Table, key: &[u8], slot: &Slot) {
    match slot.payload {
        Some(_) => tx.delete(table, key),
        None => tx.delete(Table::Graves, grave_key(table, key)),
    }
}

/// What entering a record changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is the newest of its key; `before` was the payload, if a put stood there.
    Newest { before: Option<Vec<u8>> },
    /// A newer one stands, with this payload if it is a put.
    Older { current: Option<Vec<u8>> },
    /// It stood there already.
    Same,
}

/// Enters a record; `payload` is `None` for a tombstone.
pub(crate) fn enter(
    tx: &mut Tx<'_>,
    table: Table,
    record: &RecordView<'_>,
    at: Location,
    payload: Option<Vec<u8>>,
) -> Result<Outcome, IndexError> {
    let mut head = Head::of(record, at);
    let Some(mut current) = load(tx, table, record.key)? else {
        store(tx, table, record.key, &Slot { head, payload });
        tx.born(at);
        return Ok(Outcome::Newest { before: None });
    };
    let rank = |head: &Head, deleted: bool| (head.sequence, deleted, head.at);
    let (old, new) = (rank(&current.head, current.payload.is_none()), rank(&head, payload.is_none()));
    if old == new {
        return Ok(Outcome::Same);
    }
    let copy = (old.0, old.1) == (new.0, new.1) && current.payload == payload;
    if new < old && !copy {
        if payload.is_some() {
            current.head.ghosts += 1;
            store(tx, table, record.key, &current);
        }
        return Ok(Outcome::Older { current: current.payload });
    }
    head.ghosts = current.head.ghosts + u64::from(current.payload.is_some());
    if current.payload.is_some() != payload.is_some() {
        remove(tx, table, record.key, &current);
    }
    store(tx, table, record.key, &Slot { head, payload });
    tx.died(current.head.at);
    tx.born(at);
    Ok(Outcome::Newest { before: current.payload })
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
    if !record.deleted {
        slot.head.ghosts += 1;
    }
    store(tx, table, record.key, &slot);
    Ok(moved)
}

/// A dead record of the key has left the log.
pub(crate) fn forget(tx: &mut Tx<'_>, table: Table, record: &RecordView<'_>) -> Result<(), IndexError> {
    if record.deleted {
        return Ok(());
    }
    if let Some(mut slot) = load(tx, table, record.key)? {
        slot.head.ghosts = slot.head.ghosts.saturating_sub(1);
        store(tx, table, record.key, &slot);
    }
    Ok(())
}
