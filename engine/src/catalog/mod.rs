//! What the records of objects, listings and uploads mean in a disk's index (engine/FORMAT-objects.md).
//!
//! Invariant: applying the records of a whole log in any order and then [`Catalog::rebuilt`] ends in the index that the
//! log's own order ends in, but for the place of records of which the log holds two copies.
//! Invariant: every chunk row belongs to the object entry that names its data id, or to an open upload that counts it.
//! Invariant: a record of a kind or version that is not known here is never needed: it is reported and left alone.

mod counters;
mod entry;
mod group;
mod intents;
mod keys;
mod newest;
mod object_meta;
mod query;
mod ranges;
mod rows;
mod spaces;
mod sums;
mod value;

pub use counters::{Share, Totals};
pub use entry::{Chunked, DataId, GraveState, Head, ObjectState};
pub use group::{Cut, GroupKey, GroupTag, Reach};
pub(crate) use group::{bounds, group_reach, group_record, group_records, groups, is_over};
pub use intents::{Intent, count_intents};
pub(crate) use intents::{awaits_line, intents};
pub use keys::{
    FIRST_GROUP, GroupId, MAX_GROUP_ID, POLICIES, PathHash, account_key, container_key, containers_prefix,
    given_key, going_key, group_prefix, listing_key, listing_prefix, part_key, policy_key, policy_of,
};
pub(crate) use keys::{
    GIVEN, PART, group_of_space, line_name, parse_given, parse_part, space_of, split_group, worker_place,
};
use object_meta::intent_of_grave;
pub use object_meta::{ObjectMeta, decode_path, encode_grave, encode_tombstone};
pub(crate) use object_meta::{has_fragment, is_chunked};
pub(crate) use query::*;
pub use query::{Due, Found, Grave, Grip, Row, Stamp, Stamps, Version, stamps};
pub(crate) use ranges::lines;
pub use ranges::{Belongs, Bound, GivenValue, Over, PartValue, going_value};
pub use rows::{AccountValue, ContainerValue, ListedEtag, ListingValue};
pub(crate) use spaces::{
    dead_keys, dead_lines, drop_keys, drop_lines, lines_in, row_ranges, spaces, without,
};
pub use sums::{tally, weight};
pub use value::BadValue;

use crate::block::{self, BadOr};
use crate::disk::catalog::{Catalog, Tx};
use crate::disk::format::bytes::{Put, Reader};
use crate::disk::format::record::{DeviceId, Kind, NewRecord, RecordView, StoredRecord};
use crate::disk::{Group, Location, Shift};
use crate::index::{Index, IndexError, Table};
use crate::io::BLOCK;
use crate::object::ObjectPath;
use keys::{RowKey, chunk_key, expiry, open_upload};
use newest::{Outcome, Slot, Standing, enter};
pub(crate) use newest::{Source, damaged};

/// Uploads that one [`Catalog::rebuilt`] gives up; what is left over is given up when the store opens.
const MAX_REBUILT: usize = 1 << 14;

/// The catalog of a disk that holds objects and rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct ObjectCatalog;

impl Catalog for ObjectCatalog {
    fn apply(&self, tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), IndexError> {
        match record.kind {
            Kind::Object | Kind::Evict => apply_object(tx, record, at),
            Kind::Row => apply_row(tx, record, at),
            Kind::Chunk => apply_chunk(tx, record, at),
            Kind::Abort => match data_id(record) {
                Some(id) => give_up(tx, &id),
                None => Ok(()),
            },
            Kind::Settled => intents::settle(tx, record),
            Kind::GroupEntry => match group::parse(record) {
                Ok(key) => group::apply(tx, key, record, at),
                Err(bad) => skip(record, at, bad),
            },
            Kind::VolumeExtent | Kind::VolumeMap => match block::apply(tx, record, at) {
                Ok(()) => Ok(()),
                Err(BadOr::Bad(bad)) => skip(record, at, bad),
                Err(BadOr::Index(error)) => Err(error),
            },
        }
    }

    fn relocate(
        &self,
        tx: &mut Tx<'_>,
        record: &RecordView<'_>,
        from: Location,
        to: Location,
    ) -> Result<bool, IndexError> {
        match record.kind {
            Kind::Object | Kind::Evict => newest::relocate(tx, Table::Objects, record, from, to),
            Kind::Row => newest::relocate(tx, Table::Rows, record, from, to),
            Kind::Chunk => relocate_chunk(tx, record, from, to),
            Kind::GroupEntry => group::relocate(tx, record, from, to),
            Kind::VolumeExtent | Kind::VolumeMap => block::relocate(tx, record, from, to),
            Kind::Abort | Kind::Settled => Ok(false),
        }
    }

    fn is_live(&self, index: &dyn Index, record: &RecordView<'_>, at: Location) -> Result<bool, IndexError> {
        let place = match record.kind {
            Kind::Object | Kind::Evict => {
                newest::load(&index, Table::Objects, record.key)?.map(|slot| slot.head.at)
            }
            Kind::Row => newest::load(&index, Table::Rows, record.key)?.map(|slot| slot.head.at),
            Kind::Chunk => match data_id(record) {
                Some(id) => chunk_at(&index, &id, record.number)?.map(|known| known.at),
                None => None,
            },
            Kind::GroupEntry => group::place(index, record)?,
            Kind::VolumeExtent | Kind::VolumeMap => return block::is_live(index, record, at),
            Kind::Abort | Kind::Settled => None,
        };
        Ok(place == Some(at))
    }

    fn remains(
        &self,
        index: &dyn Index,
        device: DeviceId,
        record: &StoredRecord,
        at: Location,
    ) -> Result<Option<Vec<NewRecord>>, IndexError> {
        match record.view().kind {
            Kind::VolumeExtent => block::remains(index, device, record, at),
            _ => Ok(None),
        }
    }

    fn home(&self, record: &RecordView<'_>) -> Option<Table> {
        match record.kind {
            Kind::Object | Kind::Evict => Some(Table::Objects),
            Kind::Row => Some(Table::Rows),
            // One of several blocks has its row with the others of its span.
            Kind::VolumeExtent if record.data_len == BLOCK => Some(Table::Blocks),
            _ => None,
        }
    }

    fn group(&self, table: Table, key: &[u8]) -> Option<Group> {
        if table == Table::Blocks { block::group_of(key) } else { None }
    }

    fn order(&self, record: &RecordView<'_>) -> Option<Vec<u8>> {
        (record.kind == Kind::VolumeExtent).then(|| block::order_of(record)).flatten()
    }

    fn recount(&self, index: &dyn Index, add: &mut dyn FnMut(u32, i64)) -> Result<(), IndexError> {
        block::recount(index, add)
    }

    fn forget(&self, tx: &mut Tx<'_>, record: &RecordView<'_>) -> Result<(), IndexError> {
        // What was skipped when it came was never counted.
        match record.kind {
            Kind::Object if decode_object(record).is_ok() => newest::forget(tx, Table::Objects, record),
            Kind::Row if decode_row_key(record).is_ok() => newest::forget(tx, Table::Rows, record),
            Kind::Object
            | Kind::Row
            | Kind::Chunk
            | Kind::Abort
            | Kind::Evict
            | Kind::Settled
            | Kind::VolumeExtent
            | Kind::VolumeMap
            | Kind::GroupEntry => Ok(()),
        }
    }

    /// Gives up every upload that no object entry claims: those that were open, and the bodies of superseded versions. Ranges
    /// that are counted apart are counted anew.
    fn rebuilt(&self, tx: &mut Tx<'_>) -> Result<(), IndexError> {
        for (key, _) in tx.scan_stored(Table::System, &keys::OPEN_UPLOADS)?.into_iter().take(MAX_REBUILT) {
            if let Some(id) = key.get(keys::OPEN_UPLOADS.len()..).and_then(|id| id.try_into().ok()) {
                give_up(tx, &id)?;
            }
        }
        group::recount(tx)
    }

    fn count(&self, index: &dyn Index, add: &mut dyn FnMut(Shift)) -> Result<(), IndexError> {
        sums::count(index, add)
    }
}

fn skip(record: &RecordView<'_>, at: Location, bad: BadValue) -> Result<(), IndexError> {
    tracing::error!(kind = ?record.kind, segment = at.segment, offset = at.offset, %bad, "skip unreadable record");
    Ok(())
}

fn data_id(record: &RecordView<'_>) -> Option<DataId> {
    record.key.try_into().ok()
}

/// `None`: a tombstone, or an eviction.
fn decode_object(record: &RecordView<'_>) -> Result<Option<ObjectMeta>, BadValue> {
    if record.key.len() != size_of::<PathHash>() {
        return Err(BadValue::Field("path hash"));
    }
    if record.deleted || record.kind == Kind::Evict {
        return Ok(None);
    }
    ObjectMeta::decode(record.meta, record.sequence).map(Some)
}

/// What listing is to be told of a version or tombstone, and its name.
fn intent_of(
    record: &RecordView<'_>,
    meta: &Option<ObjectMeta>,
) -> Result<Option<(ObjectPath, u64)>, BadValue> {
    match meta {
        Some(meta) => Ok(meta.intent.map(|container| (meta.path.clone(), container))),
        None if record.kind == Kind::Evict => Ok(None),
        None => intent_of_grave(record.meta),
    }
}

fn apply_object(tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), IndexError> {
    let (meta, intent) = match decode_object(record).and_then(|meta| Ok((intent_of(record, &meta)?, meta))) {
        Ok((intent, meta)) => (meta, intent),
        Err(bad) => return skip(record, at, bad),
    };
    let evicted = record.kind == Kind::Evict;
    let new = meta.as_ref().map(|meta| ObjectState { turn: record.number, ..meta.state() });
    let standing = match new {
        Some(state) => Standing::Put(state.encode()),
        None => {
            let put = evicted && !record.deleted;
            Standing::Grave(GraveState { evicted, put, turn: record.number, intent: intent.is_some() })
        }
    };
    let state_of = |slot: &Slot| {
        let state = slot.payload().map(ObjectState::decode).transpose().map_err(damaged)?;
        Ok::<_, IndexError>(state.unwrap_or_default())
    };
    let new = new.unwrap_or_default();
    match enter(tx, Table::Objects, record, at, standing)? {
        Outcome::Same => {}
        Outcome::Older { current } => {
            let claimed = state_of(&current)?.chunked.map(|chunked| chunked.data_id);
            if let Some(old) = new.chunked.filter(|old| Some(old.data_id) != claimed) {
                // What was evicted may be about to come back.
                drop_chunks(tx, &old, current.evicted_in().unwrap_or(u32::MAX))?;
            }
        }
        Outcome::Newest { before } => {
            let kept = (!evicted).then_some((record.sequence, record.deleted));
            sums::replace(tx, record.key, sums::kept(&before), kept);
            let intended = before.as_ref().map(Slot::has_intent).transpose()?.unwrap_or(false);
            intents::changed(tx, record.key, intended, intent.map(|(path, id)| (record.sequence, id, path)));
            let before = before.as_ref().map(state_of).transpose()?.unwrap_or_default();
            if before.delete_at != new.delete_at
                && let Some(due) = before.delete_at
            {
                tx.delete(Table::System, expiry(due, record.key));
            }
            if let Some((due, meta)) = new.delete_at.zip(meta) {
                tx.put(Table::System, expiry(due, record.key), query::encode_path(&meta.path));
            }
            let same_data = before.chunked.map(|c| c.data_id) == new.chunked.map(|c| c.data_id);
            if let Some(old) = before.chunked.filter(|_| !same_data) {
                drop_chunks(tx, &old, if evicted { record.number } else { u32::MAX })?;
            }
            if let Some(claimed) = new.chunked.filter(|_| !same_data) {
                tx.delete(Table::System, open_upload(&claimed.data_id));
            }
        }
    }
    Ok(())
}

fn apply_row(tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), IndexError> {
    let (group, key) = match decode_row_key(record) {
        Ok(key) => key,
        Err(bad) => return skip(record, at, bad),
    };
    let standing = if record.deleted {
        Standing::Grave(GraveState::default())
    } else {
        Standing::Put(record.meta.to_vec())
    };
    if let Outcome::Newest { before } = enter(tx, Table::Rows, record, at, standing)? {
        let after = (!record.deleted).then_some(record.meta);
        counters::row_changed(tx, group, &key, before.as_ref().and_then(Slot::payload), after)?;
    }
    Ok(())
}

/// The group and key of a row whose value is readable too.
fn decode_row_key<'a>(record: &RecordView<'a>) -> Result<(GroupId, RowKey<'a>), BadValue> {
    let (group, key) = split_group(record.key)?;
    Ok((group, decode_row_within(key, (!record.deleted).then_some(record.meta))?))
}

fn decode_row_within<'a>(key: &'a [u8], value: Option<&[u8]>) -> Result<RowKey<'a>, BadValue> {
    let key = RowKey::parse(key)?;
    if let Some(value) = value {
        match key {
            RowKey::Control(_) => {}
            RowKey::Account(_) => AccountValue::decode(value).map(drop)?,
            RowKey::Container { .. } => ContainerValue::decode(value).map(drop)?,
            RowKey::Listing { .. } => ListingValue::decode(value).map(drop)?,
            RowKey::Part => PartValue::decode(value).map(drop)?,
            RowKey::Going => ranges::check_going(value)?,
            RowKey::Given { .. } => GivenValue::decode(value).map(drop)?,
        }
    }
    Ok(key)
}

/// Whether a row with this key, without its group's prefix, and this value would be taken.
pub(crate) fn check_row(key: &[u8], value: Option<&[u8]>) -> Result<(), BadValue> {
    decode_row_within(key, value).map(drop)
}

fn apply_chunk(tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), IndexError> {
    let Some(id) = data_id(record) else { return skip(record, at, BadValue::Field("data id")) };
    let (owner, turn) = match chunk_meta(record.meta) {
        Ok(meta) => meta,
        Err(bad) => return skip(record, at, bad),
    };
    match chunk_at(tx, &id, record.number)? {
        Some(known) if known.at == at || known.turn > turn => return Ok(()),
        // The later copy counts: it may be there to mend a damaged one.
        Some(copy) => tx.died(copy.at),
        None => {}
    }
    let key = chunk_key(&id, record.number);
    tx.put(Table::Chunks, key, Head::of(record, at).encode(&entry::encode_turn(turn)));
    tx.born(at);
    let owner = newest::load(tx, Table::Objects, owner)?;
    let owner =
        owner.as_ref().and_then(Slot::payload).map(ObjectState::decode).transpose().map_err(damaged)?;
    if owner.and_then(|state| state.chunked).is_some_and(|chunked| chunked.data_id == id) {
        return Ok(());
    }
    open_until(tx, &id, u64::from(record.number) + 1)
}

/// Notes that an upload which no object claims has so many chunks, or more.
fn open_until(tx: &mut Tx<'_>, id: &DataId, seen: u64) -> Result<(), IndexError> {
    if uploaded(tx, id)?.is_none_or(|known| known < seen) {
        let mut out = Vec::new();
        out.put_varint(seen);
        tx.put(Table::System, open_upload(id), out);
    }
    Ok(())
}

fn relocate_chunk(
    tx: &mut Tx<'_>,
    record: &RecordView<'_>,
    from: Location,
    to: Location,
) -> Result<bool, IndexError> {
    let Some(id) = data_id(record) else { return Ok(false) };
    let Some(known) = chunk_at(tx, &id, record.number)?.filter(|known| known.at == from) else {
        return Ok(false);
    };
    let entry = Head::of(record, to).encode(&entry::encode_turn(known.turn));
    tx.put(Table::Chunks, chunk_key(&id, record.number), entry);
    tx.died(from);
    tx.born(to);
    Ok(true)
}

/// A chunk in the index.
struct ChunkAt {
    at: Location,
    turn: u32,
}

fn chunk_at(from: &impl newest::Source, id: &DataId, number: u32) -> Result<Option<ChunkAt>, IndexError> {
    let Some(bytes) = from.value(Table::Chunks, &chunk_key(id, number))? else { return Ok(None) };
    let (head, rest) = Head::decode(&bytes).map_err(damaged)?;
    let turn = entry::decode_turn(rest).map_err(damaged)?;
    Ok(Some(ChunkAt { at: head.at, turn }))
}

/// Whose chunk it is, and in which turn of its version.
fn chunk_meta(meta: &[u8]) -> Result<(&PathHash, u32), BadValue> {
    let (owner, rest) = meta.split_first_chunk::<16>().ok_or(BadValue::Field("path hash"))?;
    Ok((owner, entry::decode_turn(rest)?))
}

/// Meta of a chunk: whose it is, and in which turn of its version.
pub(crate) fn encode_chunk_meta(owner: &PathHash, turn: u32) -> Vec<u8> {
    [&owner[..], &entry::encode_turn(turn)].concat()
}

/// Chunks that an open upload may have: one more than the largest number seen.
fn uploaded(tx: &Tx<'_>, id: &DataId) -> Result<Option<u64>, IndexError> {
    let Some(bytes) = tx.get(Table::System, &open_upload(id))? else { return Ok(None) };
    Reader::new(&bytes).varint().map(Some).map_err(|e| damaged(e.into()))
}

/// Drops the chunks that came in turn `most` of their version or before. What came later belongs to a record that is still to
/// be applied, or to nobody.
fn drop_chunks(tx: &mut Tx<'_>, chunked: &Chunked, most: u32) -> Result<(), IndexError> {
    let mut later = false;
    for number in 0..chunked.count {
        match chunk_at(tx, &chunked.data_id, number)? {
            Some(known) if known.turn <= most => {
                tx.died(known.at);
                tx.delete(Table::Chunks, chunk_key(&chunked.data_id, number));
            }
            known => later |= known.is_some(),
        }
    }
    if later {
        return open_until(tx, &chunked.data_id, u64::from(chunked.count));
    }
    tx.delete(Table::System, open_upload(&chunked.data_id));
    Ok(())
}

fn give_up(tx: &mut Tx<'_>, id: &DataId) -> Result<(), IndexError> {
    // A claimed upload has no such row: an abort that comes after the commit changes nothing.
    let Some(count) = uploaded(tx, id)? else { return Ok(()) };
    let count = u32::try_from(count).map_err(|_| damaged(BadValue::Field("open upload")))?;
    drop_chunks(tx, &Chunked { data_id: *id, count }, u32::MAX)
}

#[cfg(test)]
mod tests;
