//! Reads every needed record of a disk again and again, and says what is not as it was written.
//!
//! A pass walks the objects (each with all its chunks and its BLAKE3), then the rows, then the blocks of volumes. It goes on after a restart where it was.
//! An object whose line in the listing is missing or older (a crash between two disks) is listed again.
//!
//! What is damaged is mended from other devices by whoever mends for readers.
//!
//! Invariant: the audit reads the device, never a cache, and changes no data itself.

use bytes::Bytes;

use super::{Outcome, Progress, Worker};
use crate::block;
use crate::catalog::{self, Grip, ObjectMeta, PathHash};
use crate::disk::format::record::{Kind, RecordView, StoredRecord};
use crate::disk::{DiskError, DiskHandle, Location, Pins};
use crate::index::{IndexError, Table};
use crate::object::{BoxFuture, Error, Store, check_chunk, is_key_of};

/// Bytes of a unit.
const UNIT: u64 = 64 << 10;
/// Keys fetched at once.
const PAGE: usize = 64;
/// Items after which the place is noted in the index.
const NOTE_EVERY: u64 = 1024;

/// The auditor of a disk. A unit is 64 KiB read.
pub struct Auditor {
    name: String,
    disk: DiskHandle,
    /// Without one, listings are not repaired and the place is not noted.
    store: Option<Store>,
    place: Place,
    /// Fetched and not yet looked at, last first.
    ahead: Vec<Grip>,
    /// A large object that is being read.
    open: Option<OpenObject>,
    unnoted: u64,
    progress: Progress,
}

/// Where in the walk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    table: Table,
    after: Vec<u8>,
}

struct OpenObject {
    key: Vec<u8>,
    meta: ObjectMeta,
    chunks: Vec<Location>,
    next: usize,
    hasher: blake3::Hasher,
    _pins: Pins,
}

/// Why something was not as it should be.
enum Wrong {
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

impl std::fmt::Debug for Auditor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auditor")
            .field("name", &self.name)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

fn start() -> Place {
    Place { table: Table::Objects, after: Vec::new() }
}

impl Auditor {
    /// Of one disk. Goes on where an earlier one was.
    #[must_use]
    pub fn new(disk: DiskHandle, store: Store) -> Self {
        let name = format!("auditor {}", disk.device());
        let noted = disk.index().get(Table::System, &catalog::worker_place("auditor")).ok().flatten();
        let place = noted.and_then(|bytes| Place::decode(&bytes)).unwrap_or_else(start);
        let store = Some(store);
        let (ahead, open, progress) = (Vec::new(), None, Progress::default());
        Self { name, disk, store, place, ahead, open, unnoted: 0, progress }
    }

    /// Of a disk that no node has open: one pass from the start that changes nothing.
    #[must_use]
    pub fn offline(disk: DiskHandle) -> Self {
        let name = format!("auditor {}", disk.device());
        let (ahead, open, progress) = (Vec::new(), None, Progress::default());
        Self { name, disk, store: None, place: start(), ahead, open, unnoted: 0, progress }
    }

    async fn audit(&mut self, budget: u32) -> Result<Outcome, Wrong> {
        let mut units = 0;
        while units < budget {
            let bytes = match self.item().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => {
                    self.progress.pass_ended();
                    self.note().await?;
                    return Ok(Outcome::Idle);
                }
                Err(Wrong::Found(what)) => {
                    tracing::error!(worker = self.name, what, "audit found damage");
                    self.progress.found(what);
                    self.heal();
                    UNIT
                }
                Err(failed) => return Err(failed),
            };
            units = units.saturating_add(u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1));
        }
        if self.unnoted >= NOTE_EVERY {
            self.note().await?;
        }
        Ok(Outcome::Did(units))
    }

    /// Has the object that was just looked at mended from other devices.
    fn heal(&self) {
        let key: Option<PathHash> = self.place.after.as_slice().try_into().ok();
        if let Some((store, key)) =
            self.store.as_ref().zip(key).filter(|_| self.place.table == Table::Objects)
        {
            store.inner.copies.heal(self.disk.device(), key);
        }
    }

    /// Looks at the next item, or the next chunk of one; returns the bytes read, `None` at the end of a pass.
    async fn item(&mut self) -> Result<Option<u64>, Wrong> {
        if let Some(open) = self.open.take() {
            return self.chunk(open).await.map(Some);
        }
        if self.place.table == Table::Blocks {
            return self.blocks().await;
        }
        let Some(grip) = self.next()? else {
            self.place = Place { table: Table::Blocks, after: Vec::new() };
            return self.blocks().await;
        };
        self.progress.done += 1;
        self.unnoted += 1;
        let read = match self.place.table {
            Table::Objects => self.object(&grip).await,
            _ => self.row(&grip).await,
        };
        read.map(Some)
    }

    fn next(&mut self) -> Result<Option<Grip>, Wrong> {
        if self.ahead.is_empty() {
            self.ahead = catalog::walk(self.disk.index(), self.place.table, &self.place.after, PAGE)?;
            self.ahead.reverse();
            self.progress.total = self.disk.index().stats().keys.max(self.progress.done);
        }
        if let Some(grip) = self.ahead.pop() {
            self.place.after.clone_from(&grip.key);
            return Ok(Some(grip));
        }
        if self.place.table == Table::Rows {
            return Ok(None);
        }
        self.place = Place { table: Table::Rows, after: Vec::new() };
        self.next()
    }

    /// Looks at some blocks of volumes.
    async fn blocks(&mut self) -> Result<Option<u64>, Wrong> {
        let audited = block::audit(&self.disk, &self.place.after, PAGE).await?;
        for what in audited.wrong {
            tracing::error!(worker = self.name, what, "audit found damage");
            self.progress.found(what);
        }
        let Some(last) = audited.last else {
            self.place = start();
            return Ok(None);
        };
        self.place.after = last;
        self.progress.done += audited.rows;
        self.unnoted += audited.rows;
        Ok(Some(audited.bytes))
    }

    async fn object(&mut self, grip: &Grip) -> Result<u64, Wrong> {
        let found = self.disk.lookup(|index| {
            let hash: Option<PathHash> = grip.key.as_slice().try_into().ok();
            let Some(hash) = hash else { return Ok(None) };
            let Some(found) = catalog::find_object(index, &hash)? else { return Ok(None) };
            let mut places = found.chunks.clone();
            places.push(found.record);
            Ok(Some((found, places)))
        })?;
        // Gone since the page was fetched.
        let Some((found, pins)) = found else { return Ok(0) };
        let record = match self.disk.read_uncached(found.record).await {
            Ok(record) => record,
            Err(e) => return Err(self.named(&grip.key, found.record, e).await),
        };
        let meta = check_object(&grip.key, found.sequence, &record)?;
        if let Some(store) = &self.store
            && store.inner.bury_orphan(&meta, &grip.key).await?
        {
            self.progress.found(format!("body of {} that nothing names; buried", meta.path));
        }
        if let Some(store) = &self.store
            && store.inner.relist_found(&meta.path, &grip.key, found.sequence).await?
        {
            self.progress.found(format!("line of {} was missing in its listing; listed again", meta.path));
        }
        let count = meta.chunked.map_or(0, |chunked| chunked.count as usize);
        if count != found.chunks.len() {
            return Err(Wrong::Found(format!("chunks of {} are missing", meta.path)));
        }
        let read = u64::from(found.record.len);
        let mut hasher = blake3::Hasher::new();
        if meta.chunked.is_none() {
            hasher.update(&record.data());
            check_hash(&meta, &hasher)?;
            return Ok(read);
        }
        let (key, chunks) = (grip.key.clone(), found.chunks);
        self.open = Some(OpenObject { key, meta, chunks, next: 0, hasher, _pins: pins });
        Ok(read)
    }

    /// A damaged object by its name, where its head still tells it, else by its hash.
    async fn named(&self, key: &[u8], at: Location, e: DiskError) -> Wrong {
        let head = self.disk.salvage_head(at).await;
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

    async fn chunk(&mut self, mut open: OpenObject) -> Result<u64, Wrong> {
        let Some(at) = open.chunks.get(open.next).copied() else {
            check_hash(&open.meta, &open.hasher)?;
            return Ok(0);
        };
        let path = &open.meta.path;
        let damaged = |e: Wrong| match e {
            Wrong::Found(what) => Wrong::Found(format!("chunk {} of {path}: {what}", open.next)),
            failed @ Wrong::Failed(_) => failed,
        };
        let record = self.disk.read_uncached(at).await.map_err(|e| damaged(e.into()))?;
        let data: Bytes =
            check_chunk(&open.meta, &open.key, open.next as u64, &record).map_err(|e| damaged(e.into()))?;
        open.hasher.update(&data);
        open.next += 1;
        self.open = Some(open);
        Ok(u64::from(at.len))
    }

    async fn row(&mut self, grip: &Grip) -> Result<u64, Wrong> {
        let place = |index: &dyn crate::index::Index| {
            let now = catalog::walk_one(index, Table::Rows, &grip.key)?;
            Ok(now.map(|head| (head, vec![head.at])))
        };
        let Some((head, _pins)) = self.disk.lookup(place)? else { return Ok(0) };
        let record = self.disk.read_uncached(head.at).await?;
        let view = record.view();
        let ours = view.kind == Kind::Row && !view.deleted && view.key == grip.key;
        if !ours || view.sequence != head.sequence {
            return Err(Wrong::Found(format!(
                "record of row {:?} is another one",
                catalog::row_name(&grip.key)
            )));
        }
        Ok(u64::from(head.at.len))
    }

    /// Notes the place in the index. It may be lost: then the audit goes on earlier.
    async fn note(&mut self) -> Result<(), Wrong> {
        self.unnoted = 0;
        if self.store.is_none() {
            return Ok(());
        }
        let value = self.place.encode();
        let change = move |tx: &mut crate::disk::catalog::Tx<'_>| {
            tx.put(Table::System, catalog::worker_place("auditor"), value);
            Ok(())
        };
        Ok(self.disk.submit_prune(Box::new(change)).await?)
    }
}

fn check_object(key: &[u8], sequence: u64, record: &StoredRecord) -> Result<ObjectMeta, Wrong> {
    let view = record.view();
    let wrong = |what: &str| Wrong::Found(format!("record of object {}: {what}", hex::encode(key)));
    if view.kind != Kind::Object || view.deleted || view.key != key || view.sequence != sequence {
        return Err(wrong("is another one"));
    }
    let meta = ObjectMeta::decode(view.meta, view.sequence).map_err(|bad| wrong(&bad.to_string()))?;
    if !<&PathHash>::try_from(key).is_ok_and(|hash| is_key_of(&meta, hash)) {
        return Err(wrong("names another object"));
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

impl Place {
    fn encode(&self) -> Vec<u8> {
        [&[self.table as u8], self.after.as_slice()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (table, after) = bytes.split_first()?;
        let table = [Table::Objects, Table::Rows, Table::Blocks].into_iter().find(|t| *t as u8 == *table)?;
        Some(Self { table, after: after.to_vec() })
    }
}

impl Worker for Auditor {
    fn name(&self) -> &str {
        &self.name
    }

    fn step(&mut self, budget: u32) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            match self.audit(budget).await {
                Ok(outcome) => outcome,
                Err(Wrong::Found(why) | Wrong::Failed(why)) => Outcome::Failed(format!("audit: {why}")),
            }
        })
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}
