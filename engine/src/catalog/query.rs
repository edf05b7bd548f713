//! What the object layer and the workers ask of a disk's index.
//!
//! Invariant: nothing here changes the index, but for [`prune`], which runs on the applier.

use std::ops::RangeInclusive;

use super::counters::{self, Totals};
use super::entry::{DataId, GraveState, Head, ObjectState};
use super::intents;
use super::keys::{self, FIRST_GROUP, GroupId, PathHash, RowKey};
use super::newest::{self, damaged};
use super::sums;
use super::value::{BadValue, put_text, text};
use crate::disk::Location;
use crate::disk::catalog::Tx;
use crate::disk::format::bytes::Reader;
use crate::index::{Index, IndexError, Pair, Range, Table};
use crate::object::ObjectPath;

/// How often a look-up that saw an object change under it starts again.
const MAX_RETRIES: usize = 100;

/// Where an object's newest version lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its version time.
    pub sequence: u64,
    /// Its record.
    pub record: Location,
    /// Its chunks in order; fewer than the record states when rows are missing.
    pub chunks: Vec<Location>,
}

/// The newest version or tombstone of an object, without its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Its version time.
    pub sequence: u64,
    /// A tombstone.
    pub deleted: bool,
    /// When it expires.
    pub delete_at: Option<u64>,
}

/// A standing row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its version time.
    pub sequence: u64,
    /// Its value, encoded.
    pub value: Vec<u8>,
}

/// An object whose time has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Its place in the queue.
    pub key: Vec<u8>,
    /// Unix seconds.
    pub delete_at: u64,
    /// Which object.
    pub path: ObjectPath,
}

/// A tombstone in the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grave {
    /// Its key in [`Table::Graves`].
    pub key: Vec<u8>,
    /// Its head.
    pub head: Head,
    /// It is the mark of an eviction.
    pub evicted: bool,
}

impl Grave {
    fn decode(key: Vec<u8>, value: &[u8]) -> Result<Self, IndexError> {
        let (head, rest) = Head::decode(value).map_err(damaged)?;
        let evicted = GraveState::decode(rest).map_err(damaged)?.evicted;
        Ok(Self { key, head, evicted })
    }

    /// Of which object it is; `None`: of a row.
    #[must_use]
    pub fn object(&self) -> Option<PathHash> {
        let hash = self.key.strip_prefix(&[Table::Objects as u8])?;
        hash.try_into().ok()
    }
}

/// An entry whose record a worker may read: where in the walk it is, and what to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grip {
    /// Its key in its table.
    pub key: Vec<u8>,
    /// Its head.
    pub head: Head,
}

/// The newest version of an object and its chunks.
pub(crate) fn find_object(index: &dyn Index, hash: &PathHash) -> Result<Option<Found>, IndexError> {
    let mut found = None;
    for _ in 0..MAX_RETRIES {
        let Some(bytes) = index.get(Table::Objects, hash)? else { return Ok(None) };
        let (head, payload) = Head::decode(&bytes).map_err(damaged)?;
        let state = ObjectState::decode(payload).map_err(damaged)?;
        let mut chunks = Vec::new();
        if let Some(chunked) = state.chunked {
            chunks = chunk_places(index, &chunked.data_id, chunked.count)?;
        }
        let complete = state.chunked.is_none_or(|chunked| chunked.count as usize == chunks.len());
        let again = Found { sequence: head.sequence, record: head.at, chunks };
        // Chunks vanish when the version is superseded between the two reads. Seen twice alike, they are lost.
        if complete || found.as_ref() == Some(&again) {
            return Ok(Some(again));
        }
        found = Some(again);
    }
    Ok(found)
}

fn chunk_places(index: &dyn Index, id: &DataId, count: u32) -> Result<Vec<Location>, IndexError> {
    let mut places = Vec::with_capacity(count.min(1 << 16) as usize);
    for (number, pair) in (0..count).zip(index.scan(Table::Chunks, Range::prefix(id))) {
        let (key, value) = pair?;
        if *key != *keys::chunk_key(id, number) {
            break;
        }
        places.push(Head::decode(&value).map_err(damaged)?.0.at);
    }
    Ok(places)
}

/// Whether all chunks of a body are in the index.
pub(crate) fn has_chunks(index: &dyn Index, id: &DataId, count: u32) -> Result<bool, IndexError> {
    Ok(chunk_places(index, id, count)?.len() == count as usize)
}

/// Whether a version names the body that these chunks are: then no abort takes them.
pub(crate) fn is_claimed(index: &dyn Index, id: &DataId, count: u32) -> Result<bool, IndexError> {
    let open = index.get(Table::System, &keys::open_upload(id))?.is_some();
    Ok(!open && has_chunks(index, id, count)?)
}

/// The newest version or tombstone of an object.
pub(crate) fn version(index: &dyn Index, hash: &PathHash) -> Result<Option<Version>, IndexError> {
    let Some(slot) = newest::load(&index, Table::Objects, hash)? else { return Ok(None) };
    let state = slot.payload().map(ObjectState::decode).transpose().map_err(damaged)?;
    let delete_at = state.and_then(|state| state.delete_at);
    Ok(slot.version().map(|(sequence, deleted)| Version { sequence, deleted, delete_at }))
}

/// Where the newest record of an object lies, a tombstone's too.
pub(crate) fn newest_record(index: &dyn Index, hash: &PathHash) -> Result<Option<Location>, IndexError> {
    let slot = newest::load(&index, Table::Objects, hash)?;
    Ok(slot.filter(|slot| slot.version().is_some()).map(|slot| slot.head.at))
}

/// The turn that a record of this version must have to stand: the next one, when the version was evicted.
pub(crate) fn next_turn(
    index: &dyn Index,
    hash: &[u8],
    sequence: u64,
    deleted: bool,
) -> Result<u32, IndexError> {
    let Some(slot) = newest::load(&index, Table::Objects, hash)? else { return Ok(0) };
    let turn = slot.turn(Table::Objects)?;
    Ok(match slot.standing {
        newest::Standing::Grave(GraveState { evicted: true, put, .. })
            if slot.head.sequence == sequence && put != deleted =>
        {
            turn.saturating_add(1)
        }
        _ if slot.version() == Some((sequence, deleted)) => turn,
        _ => 0,
    })
}

/// The turn that an eviction of this version ends, if the device keeps it: its own, or that of its chunks where a later version
/// names the same.
pub(crate) fn turn_of(
    index: &dyn Index,
    hash: &[u8],
    sequence: u64,
    deleted: bool,
) -> Result<Option<u32>, IndexError> {
    let slot = newest::load(&index, Table::Objects, hash)?;
    let Some(slot) = slot.filter(|slot| slot.version() == Some((sequence, deleted))) else { return Ok(None) };
    let turn = slot.turn(Table::Objects)?;
    let state = slot.payload().map(ObjectState::decode).transpose().map_err(damaged)?;
    let first = match state.and_then(|state| state.chunked) {
        Some(chunked) => super::chunk_at(&index, &chunked.data_id, 0)?.map_or(0, |chunk| chunk.turn),
        None => 0,
    };
    Ok(Some(turn.max(first)))
}

/// Which version of an object a device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    /// Of which object.
    pub hash: PathHash,
    /// Its version time.
    pub sequence: u64,
    /// A tombstone.
    pub deleted: bool,
}

/// A page of what a device holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stamps {
    /// In the order of their hashes.
    pub stamps: Vec<Stamp>,
    /// There may be more behind `upto`.
    pub more: bool,
    /// Up to here the page is complete, if there is more.
    pub upto: Option<PathHash>,
}

/// What an index holds of the objects in `range`, tombstones too, behind `after`; of one policy, or of all.
pub fn stamps(
    index: &dyn Index,
    policy: Option<u16>,
    range: RangeInclusive<PathHash>,
    after: Option<PathHash>,
    limit: usize,
) -> Result<Stamps, IndexError> {
    let mut all = stamps_in(index, Table::Objects, policy, &range, after, limit)?;
    let graves = stamps_in(index, Table::Graves, policy, &range, after, limit)?;
    // A page that is cut short says nothing of what lies behind its end.
    let end = [&all, &graves].into_iter().filter(|page| page.more).filter_map(|page| page.upto).min();
    all.stamps.extend(graves.stamps);
    all.stamps.sort_unstable();
    all.stamps.retain(|stamp| end.is_none_or(|end| stamp.hash <= end));
    // Moved from one table to the other between the two scans.
    all.stamps.dedup_by_key(|stamp| stamp.hash);
    let (mut stamps, mut upto) = (all.stamps, end);
    if stamps.len() > limit {
        stamps.truncate(limit);
        upto = stamps.last().map(|stamp| stamp.hash);
    }
    Ok(Stamps { stamps, more: upto.is_some(), upto })
}

struct Page {
    stamps: Vec<Stamp>,
    more: bool,
    /// The last hash that was looked at.
    upto: Option<PathHash>,
}

fn stamps_in(
    index: &dyn Index,
    table: Table,
    policy: Option<u16>,
    range: &RangeInclusive<PathHash>,
    after: Option<PathHash>,
    limit: usize,
) -> Result<Page, IndexError> {
    let prefix: &[u8] = if table == Table::Graves { &[Table::Objects as u8] } else { &[] };
    let from = match after {
        Some(after) => [prefix, &after, &[0]].concat(),
        None => [prefix, range.start()].concat(),
    };
    let to = [prefix, range.end(), &[0]].concat();
    let mut page = Page { stamps: Vec::new(), more: false, upto: None };
    for (looked, pair) in
        index.scan(table, Range { from: Some(from), to: Some(to), reverse: false }).enumerate()
    {
        if looked == limit {
            page.more = true;
            break;
        }
        let (key, value) = pair?;
        let hash = key.get(prefix.len()..).and_then(|hash| hash.try_into().ok());
        let hash = hash.ok_or_else(|| damaged(BadValue::Field("path hash")))?;
        let (head, rest) = Head::decode(&value).map_err(damaged)?;
        page.upto = Some(hash);
        let evicted = table == Table::Graves && GraveState::decode(rest).map_err(damaged)?.evicted;
        if !evicted && policy.is_none_or(|policy| policy == keys::policy_of(&hash)) {
            page.stamps.push(Stamp { hash, sequence: head.sequence, deleted: table == Table::Graves });
        }
    }
    Ok(page)
}

/// A standing row.
pub(crate) fn row(index: &dyn Index, key: &[u8]) -> Result<Option<Row>, IndexError> {
    index.get(Table::Rows, key)?.map(|bytes| decode_row(&bytes)).transpose()
}

/// A row from a scan of [`Table::Rows`].
pub(crate) fn decode_row(bytes: &[u8]) -> Result<Row, IndexError> {
    let (head, value) = Head::decode(bytes).map_err(damaged)?;
    Ok(Row { sequence: head.sequence, value: value.to_vec() })
}

/// Totals of a container of the first group, by its id.
pub(crate) fn container_totals(index: &dyn Index, id: u64) -> Result<Totals, IndexError> {
    container_totals_in(index, FIRST_GROUP, id)
}

/// Totals of an account of the first group.
pub(crate) fn account_totals(index: &dyn Index, account: &str) -> Result<Totals, IndexError> {
    account_totals_in(index, FIRST_GROUP, account)
}

/// Totals of a container of a group, by its id.
pub(crate) fn container_totals_in(index: &dyn Index, group: GroupId, id: u64) -> Result<Totals, IndexError> {
    counters::of_container(&index, group, id)
}

/// Totals of a range of a container that is counted apart.
pub(crate) fn range_totals(
    index: &dyn Index,
    space: GroupId,
    id: u64,
    from: &str,
) -> Result<Totals, IndexError> {
    counters::of_range(&index, space, id, from)
}

/// Totals of an account of a group.
pub(crate) fn account_totals_in(
    index: &dyn Index,
    group: GroupId,
    account: &str,
) -> Result<Totals, IndexError> {
    counters::of_account(&index, group, account)
}

fn system_rows(
    index: &dyn Index,
    prefix: &[u8],
    limit: usize,
) -> impl Iterator<Item = Result<Pair, IndexError>> {
    index.scan(Table::System, Range::prefix(prefix)).take(limit)
}

/// Uploads that no commit has claimed.
pub(crate) fn open_uploads(index: &dyn Index, limit: usize) -> Result<Vec<DataId>, IndexError> {
    let id = |pair: Result<Pair, IndexError>| {
        let (key, _) = pair?;
        let id = key.get(keys::OPEN_UPLOADS.len()..).and_then(|id| id.try_into().ok());
        id.ok_or_else(|| damaged(BadValue::Field("open upload")))
    };
    system_rows(index, &keys::OPEN_UPLOADS, limit).map(id).collect()
}

/// Accounts of the first group that are marked deleted, behind `marker`.
pub(crate) fn marked_accounts(
    index: &dyn Index,
    marker: &str,
    limit: usize,
) -> Result<Vec<String>, IndexError> {
    marked_accounts_in(index, FIRST_GROUP, marker, limit)
}

/// Accounts of a group that are marked deleted, behind `marker`.
pub(crate) fn marked_accounts_in(
    index: &dyn Index,
    group: GroupId,
    marker: &str,
    limit: usize,
) -> Result<Vec<String>, IndexError> {
    let prefix = keys::marked_accounts(group);
    let name = |pair: Result<Pair, IndexError>| {
        let (key, _) = pair?;
        let name = key.get(prefix.len()..).map(|name| name.to_vec());
        name.and_then(|name| String::from_utf8(name).ok()).ok_or_else(|| damaged(BadValue::Field("account")))
    };
    let from = Some([&prefix, marker.as_bytes(), &[0]].concat()).filter(|_| !marker.is_empty());
    let all = Range::prefix(&prefix);
    let range = Range { from: from.or(all.from), ..all };
    index.scan(Table::System, range).take(limit).map(name).collect()
}

/// Value of a row of the expiry queue.
pub(super) fn encode_path(path: &ObjectPath) -> Vec<u8> {
    let mut out = Vec::new();
    for part in [&path.account, &path.container, &path.object] {
        put_text(&mut out, part);
    }
    out
}

fn decode_path(value: &[u8]) -> Result<ObjectPath, BadValue> {
    decode_path_from(&mut Reader::new(value))
}

pub(super) fn decode_path_from(r: &mut Reader<'_>) -> Result<ObjectPath, BadValue> {
    let (account, container, object) = (text(r)?, text(r)?, text(r)?);
    Ok(ObjectPath { account: account.into(), container: container.into(), object: object.into() })
}

/// Objects that expire at or before `now`, oldest first, from behind the place `after`.
pub(crate) fn due(
    index: &dyn Index,
    after: Option<&[u8]>,
    now: u64,
    limit: usize,
) -> Result<Vec<Due>, IndexError> {
    let mut due = Vec::new();
    let all = Range::prefix(&keys::EXPIRIES);
    let range = Range { from: after.map(|after| [after, &[0]].concat()).or(all.from), ..all };
    for pair in index.scan(Table::System, range).take(limit) {
        let (key, value) = pair?;
        let (delete_at, _) = keys::parse_expiry(&key).map_err(damaged)?;
        if delete_at > now {
            break;
        }
        due.push(Due { key: key.to_vec(), delete_at, path: decode_path(&value).map_err(damaged)? });
    }
    Ok(due)
}

/// Tombstones after `after`, in key order.
pub(crate) fn graves(index: &dyn Index, after: &[u8], limit: usize) -> Result<Vec<Grave>, IndexError> {
    let from = if after.is_empty() { None } else { Some([after, &[0]].concat()) };
    let scan = index.scan(Table::Graves, Range { from, to: None, reverse: false }).take(limit);
    scan.map(|pair| pair.and_then(|(key, value)| Grave::decode(key.into_vec(), &value))).collect()
}

/// Entries of a table after the key `after`, in key order.
pub(crate) fn walk(
    index: &dyn Index,
    table: Table,
    after: &[u8],
    limit: usize,
) -> Result<Vec<Grip>, IndexError> {
    let from = if after.is_empty() { None } else { Some([after, &[0]].concat()) };
    let grip = |pair: Result<Pair, IndexError>| {
        let (key, value) = pair?;
        let (head, _) = Head::decode(&value).map_err(damaged)?;
        Ok(Grip { key: key.into_vec(), head })
    };
    index.scan(table, Range { from, to: None, reverse: false }).take(limit).map(grip).collect()
}

/// The head of one entry.
pub(crate) fn walk_one(index: &dyn Index, table: Table, key: &[u8]) -> Result<Option<Head>, IndexError> {
    let Some(bytes) = index.get(table, key)? else { return Ok(None) };
    Head::decode(&bytes).map(|(head, _)| Some(head)).map_err(damaged)
}

/// Whether a tombstone protects nothing any more: no ghost in the log, and, for an object's, old enough that no
/// other device can still offer what it deleted. The mark of an eviction protects from ghosts alone.
pub(crate) fn may_prune(grave: &Grave, reclaim_before: u64) -> bool {
    let ages = grave.object().is_some() && !grave.evicted;
    grave.head.ghosts == 0 && (!ages || grave.head.sequence < reclaim_before)
}

/// Drops a tombstone, when [`may_prune`] still holds and the listing has been told of it.
pub(crate) fn prune(tx: &mut Tx<'_>, key: &[u8], reclaim_before: u64) -> Result<(), IndexError> {
    let Some(bytes) = tx.get(Table::Graves, key)? else { return Ok(()) };
    let grave = Grave::decode(key.to_vec(), &bytes)?;
    let told = |hash| Ok::<_, IndexError>(!intents::stands(tx, &hash)?);
    if may_prune(&grave, reclaim_before) && grave.object().map_or(Ok(true), told)? {
        tx.died(grave.head.at);
        tx.delete(Table::Graves, key);
        if let Some(hash) = grave.object().filter(|_| !grave.evicted) {
            sums::replace(tx, &hash, Some((grave.head.sequence, true)), None);
        }
    }
    Ok(())
}

/// The name of an account, container or object whose row has this key.
pub(crate) fn row_name(key: &[u8]) -> Result<String, IndexError> {
    let (_, key) = keys::split_group(key).map_err(damaged)?;
    match RowKey::parse(key).map_err(damaged)? {
        RowKey::Control(name) => Ok(String::from_utf8_lossy(name).into_owned()),
        RowKey::Account(name) => Ok(name.to_owned()),
        RowKey::Container { container, .. } => Ok(container.to_owned()),
        RowKey::Listing { object, .. } | RowKey::Given { from: object } => Ok(object.to_owned()),
        RowKey::Part | RowKey::Going => Ok(String::new()),
    }
}
