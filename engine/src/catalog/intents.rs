//! Intents: versions that a device has and whose lines in the listing are yet to be made, as far as it knows.
//!
//! In an eventual container the devices say what stands, and the listing follows. Each version and tombstone written there says in
//! its record that its line may be missing; so do all copies of it. The index has an entry for each key whose newest record says
//! so, until a record [`Kind::Settled`](crate::disk::format::record::Kind) says that the line has been made.
//!
//! ```text
//! System   01 "i" | path hash     varint version time | varint container id | account text | container text | object text
//! ```
//!
//! Invariant: an entry is of the newest record of its key, so intents are where versions are: they come with every copy and go
//! with every eviction.
//! Invariant: an entry too many costs a look at the line. One too few there is not: only what was said to be settled goes, or what
//! a newer record replaced that has its own.
//! Invariant: a tombstone with an entry is not pruned.

use super::keys::{self, PathHash};
use super::newest::damaged;
use super::query::{decode_path_from, encode_path};
use super::value::BadValue;
use crate::disk::catalog::Tx;
use crate::disk::format::bytes::{Put, Reader};
use crate::disk::format::record::RecordView;
use crate::index::{Index, IndexError, Range, Table};
use crate::object::ObjectPath;

/// A version whose line is yet to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// Under which key the version lies.
    pub hash: PathHash,
    /// Its version time.
    pub sequence: u64,
    /// The id of the container that it was written into.
    pub container: u64,
    /// Its name.
    pub path: ObjectPath,
}

impl Intent {
    fn encode(sequence: u64, container: u64, path: &ObjectPath) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.put_varint(sequence);
        out.put_varint(container);
        out.extend_from_slice(&encode_path(path));
        out
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<Self, BadValue> {
        let hash = key.strip_prefix(&keys::INTENTS).and_then(|hash| hash.try_into().ok());
        let hash = hash.ok_or(BadValue::Field("intent"))?;
        let mut r = Reader::new(value);
        let (sequence, container) = (r.varint()?, r.varint()?);
        Ok(Self { hash, sequence, container, path: decode_path_from(&mut r)? })
    }
}

/// The newest record of a key has an intent now, or has none any more.
pub(super) fn changed(tx: &mut Tx<'_>, key: &[u8], before: bool, now: Option<(u64, u64, ObjectPath)>) {
    match now {
        Some((sequence, container, path)) => {
            tx.put(Table::System, keys::intent(key), Intent::encode(sequence, container, &path));
        }
        None if before => tx.delete(Table::System, keys::intent(key)),
        None => {}
    }
}

/// The line of a version, or of a newer one, has been made.
pub(super) fn settle(tx: &mut Tx<'_>, record: &RecordView<'_>) -> Result<(), IndexError> {
    let key = keys::intent(record.key);
    let Some(value) = tx.get(Table::System, &key)? else { return Ok(()) };
    let sequence = Reader::new(&value).varint().map_err(|e| damaged(e.into()))?;
    if sequence <= record.sequence {
        tx.delete(Table::System, key);
    }
    Ok(())
}

/// Whether the newest record of a key has an intent that was not settled.
pub(super) fn stands(tx: &Tx<'_>, hash: &PathHash) -> Result<bool, IndexError> {
    Ok(tx.get(Table::System, &keys::intent(hash))?.is_some())
}

/// The same, as the index has it now.
pub(crate) fn awaits_line(index: &dyn Index, hash: &PathHash) -> Result<bool, IndexError> {
    Ok(index.get(Table::System, &keys::intent(hash))?.is_some())
}

/// Intents behind `after`, in the order of their keys.
pub(crate) fn intents(
    index: &dyn Index,
    after: Option<&PathHash>,
    limit: usize,
) -> Result<Vec<Intent>, IndexError> {
    let mut range = Range::prefix(&keys::INTENTS);
    if let Some(after) = after {
        range.from = Some([keys::intent(after).as_slice(), &[0]].concat());
    }
    let intent = |pair: Result<crate::index::Pair, IndexError>| {
        let (key, value) = pair?;
        Intent::decode(&key, &value).map_err(damaged)
    };
    index.scan(Table::System, range).take(limit).map(intent).collect()
}

/// How many there are, up to `most`.
pub fn count_intents(index: &dyn Index, most: usize) -> Result<usize, IndexError> {
    let mut count = 0;
    for pair in index.scan(Table::System, Range::prefix(&keys::INTENTS)).take(most) {
        pair?;
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip_and_cut_ones_are_errors() {
        let path = ObjectPath { account: "AUTH_a".into(), container: "c".into(), object: "o/é".into() };
        let (key, value) = (keys::intent(&[7; 16]), Intent::encode(300, 400, &path));
        let intent = Intent { hash: [7; 16], sequence: 300, container: 400, path };
        assert_eq!(Intent::decode(&key, &value), Ok(intent));
        for len in 0..value.len() {
            assert!(Intent::decode(&key, &value[..len]).is_err(), "{len}");
        }
        assert!(Intent::decode(&key[..17], &value).is_err());
    }
}
