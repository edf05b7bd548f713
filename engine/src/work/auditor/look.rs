//! One item of an audit: read from the device, and compared with what the index and its own words say.
//!
//! Invariant: what was replaced, removed or moved meanwhile is no finding.

use futures_util::stream::{self, StreamExt};

use super::lines::Named;
use crate::catalog::{self, Found, Grip, Head, ObjectMeta, PathHash};
use crate::disk::format::record::{Kind, RecordView, StoredRecord};
use crate::disk::{DiskError, DiskHandle, Location, Pins};
use crate::index::{Index, IndexError, Table};
use crate::object::{Error, check_chunk, is_key_of};

/// Chunks of a large object that are being read at a time.
const CHUNKS_AHEAD: usize = 8;

/// Why something was not as it should be.
#[derive(Debug)]
pub(super) enum Wrong {
    /// The record or the bytes: a finding.
    Found(String),
    /// The disk or the store, for now.
    Failed(String),
}

impl From<DiskError> for Wrong {
    fn from(e: DiskError) -> Self {
        match e {
            DiskError::Corrupt { .. } | DiskError::Io { .. } => Self::Found(e.to_string()),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<IndexError> for Wrong {
    fn from(e: IndexError) -> Self {
        Self::Failed(e.to_string())
    }
}

impl From<Error> for Wrong {
    fn from(e: Error) -> Self {
        match e {
            Error::Corrupt { what } => Self::Found(what),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// What a look at an item came to.
pub(super) enum Looked {
    /// It is no longer there.
    Gone,
    /// It is as it was written. Of an object: what its line is asked for by.
    Sound(Option<Named>),
    /// An object in chunks, of which the record alone was looked at.
    Large,
}

/// Looks at items of a table that lie near one another, in their order on the disk; what each came to.
pub(super) async fn look(
    disk: &DiskHandle,
    table: Table,
    grips: Vec<Grip>,
) -> Vec<(Grip, Result<Looked, Wrong>)> {
    let (mut looked, mut here) = (Vec::with_capacity(grips.len()), Vec::with_capacity(grips.len()));
    for grip in grips {
        match find(disk, table, &grip) {
            Ok(Some((found, pins))) => here.push((grip, found, pins)),
            Ok(None) => looked.push((grip, Ok(Looked::Gone))),
            Err(wrong) => looked.push((grip, Err(wrong))),
        }
    }
    let places: Vec<Location> = here.iter().map(|(_, found, _)| found.record).collect();
    let records = disk.read_run(&places).await;
    for ((grip, found, _pins), record) in here.into_iter().zip(records) {
        let one = match (record, table) {
            (Ok(record), Table::Objects) => small(&grip, &found, &record),
            (Ok(record), _) => row(&grip, &found, &record),
            (Err(e), Table::Objects) => Err(named(disk, &grip.key, found.record, e).await),
            (Err(e), _) => Err(e.into()),
        };
        looked.push((grip, one));
    }
    looked
}

/// Where an item lies now; `None` when it is gone.
fn find(disk: &DiskHandle, table: Table, grip: &Grip) -> Result<Option<(Found, Pins)>, Wrong> {
    let object = |index: &dyn Index| {
        let hash: Option<PathHash> = grip.key.as_slice().try_into().ok();
        let found = hash.map(|hash| catalog::find_object(index, &hash)).transpose()?.flatten();
        Ok(found.map(|found| {
            let places = found.chunks.iter().copied().chain([found.record]).collect();
            (found, places)
        }))
    };
    let row = |index: &dyn Index| {
        let head = catalog::walk_one(index, table, &grip.key)?;
        Ok(head
            .map(|Head { sequence, at, .. }| (Found { sequence, record: at, chunks: Vec::new() }, vec![at])))
    };
    Ok(if table == Table::Objects { disk.lookup(object)? } else { disk.lookup(row)? })
}

fn small(grip: &Grip, found: &Found, record: &StoredRecord) -> Result<Looked, Wrong> {
    let meta = check_object(&grip.key, found, record)?;
    if meta.chunked.is_some() {
        return Ok(Looked::Large);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&record.data());
    check_hash(&meta, &hasher)?;
    Ok(Looked::Sound(Some(Named::of(&meta, &grip.key, found.sequence))))
}

fn row(grip: &Grip, found: &Found, record: &StoredRecord) -> Result<Looked, Wrong> {
    let view = record.view();
    let ours = view.kind == Kind::Row && !view.deleted && view.key == grip.key;
    if !ours || view.sequence != found.sequence {
        let name = catalog::row_name(&grip.key);
        return Err(Wrong::Found(format!("record of row {name:?} is another one")));
    }
    Ok(Looked::Sound(None))
}

/// A damaged object by its name, where its head still tells it, else by its hash.
async fn named(disk: &DiskHandle, key: &[u8], at: Location, e: DiskError) -> Wrong {
    let head = disk.salvage_head(at).await;
    let name = head
        .as_deref()
        .and_then(|head| RecordView::parse(head).ok())
        .and_then(|view| ObjectMeta::decode(view.meta, view.sequence).ok())
        .map_or_else(|| format!("path hash {}", hex::encode(key)), |meta| meta.path.to_string());
    match Wrong::from(e) {
        Wrong::Found(what) => Wrong::Found(format!("object {name}: {what}")),
        failed @ Wrong::Failed(_) => failed,
    }
}

/// A large object that is being read.
pub(super) struct OpenObject {
    pub(super) key: Vec<u8>,
    meta: ObjectMeta,
    chunks: Vec<Location>,
    next: usize,
    hasher: blake3::Hasher,
    _pins: Pins,
}

/// Opens a large object; `None` when it is gone.
pub(super) async fn open(disk: &DiskHandle, grip: &Grip) -> Result<Option<(OpenObject, Named)>, Wrong> {
    let Some((found, pins)) = find(disk, Table::Objects, grip)? else { return Ok(None) };
    let record = match disk.read_uncached(found.record).await {
        Ok(record) => record,
        Err(e) => return Err(named(disk, &grip.key, found.record, e).await),
    };
    let meta = check_object(&grip.key, &found, &record)?;
    let line = Named::of(&meta, &grip.key, found.sequence);
    let (key, chunks, hasher) = (grip.key.clone(), found.chunks, blake3::Hasher::new());
    Ok(Some((OpenObject { key, meta, chunks, next: 0, hasher, _pins: pins }, line)))
}

impl OpenObject {
    /// Reads about so many bytes, a chunk at least; how many it were, and whether that was the last of them.
    pub(super) async fn read_on(&mut self, disk: &DiskHandle, most: u64) -> Result<(u64, bool), Wrong> {
        let (first, mut begun) = (self.next, 0);
        let wanted = self.chunks.iter().skip(first).take_while(|at| {
            let before = begun;
            begun += u64::from(at.len);
            before < most
        });
        let wanted: Vec<Location> = wanted.copied().collect();
        let (mut bytes, reads): (u64, Vec<_>) =
            (0, wanted.iter().map(|at| disk.read_uncached(*at)).collect());
        let mut reads = stream::iter(reads).buffered(CHUNKS_AHEAD);
        while let Some(read) = reads.next().await {
            let data = match read {
                Ok(record) => check_chunk(&self.meta, &self.key, self.next as u64, &record)
                    .map(|data| (data, record.weight())),
                Err(e) => return Err(self.damaged(e.into())),
            };
            let (data, weight) = data.map_err(|e| self.damaged(e.into()))?;
            self.hasher.update(&data);
            self.next += 1;
            bytes += weight as u64;
        }
        let whole = self.next >= self.chunks.len();
        if whole {
            check_hash(&self.meta, &self.hasher)?;
        }
        Ok((bytes, whole))
    }

    fn damaged(&self, e: Wrong) -> Wrong {
        match e {
            Wrong::Found(what) => Wrong::Found(format!("chunk {} of {}: {what}", self.next, self.meta.path)),
            failed @ Wrong::Failed(_) => failed,
        }
    }
}

/// What an object's record says, if it is the one that the index means.
fn check_object(key: &[u8], found: &Found, record: &StoredRecord) -> Result<ObjectMeta, Wrong> {
    let (view, sequence) = (record.view(), found.sequence);
    let wrong = |what: &str| Wrong::Found(format!("record of object {}: {what}", hex::encode(key)));
    if view.kind != Kind::Object || view.deleted || view.key != key || view.sequence != sequence {
        return Err(wrong("is another one"));
    }
    let meta = ObjectMeta::decode(view.meta, view.sequence).map_err(|bad| wrong(&bad.to_string()))?;
    if !<&PathHash>::try_from(key).is_ok_and(|hash| is_key_of(&meta, hash)) {
        return Err(wrong("names another object"));
    }
    let count = meta.chunked.map_or(0, |chunked| chunked.count as usize);
    if count != found.chunks.len() {
        return Err(Wrong::Found(format!("chunks of {} are missing", meta.path)));
    }
    Ok(meta)
}

fn check_hash(meta: &ObjectMeta, hasher: &blake3::Hasher) -> Result<(), Wrong> {
    let whole = meta.fragment.is_none_or(|fragment| meta.chunked.is_none() && fragment.has_small());
    if !whole || *hasher.finalize().as_bytes() == meta.info.blake3 && hasher.count() == meta.info.size {
        return Ok(());
    }
    Err(Wrong::Found(format!("bytes of {} are not those that were put", meta.path)))
}
