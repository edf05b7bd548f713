//! The replica seam: one device that holds objects, here or elsewhere; and its body over a local disk.
//!
//! Invariant: a replica decides nothing. Versions order themselves; conditions were judged before.
//! Invariant: a device takes no commit of a body of which it lacks a chunk ([`Uploads`]): such a version would hide the one before
//! it and could not be read.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::under_way::UnderWay;
use super::uploads::Uploads;
use super::{Error, Result};
use crate::catalog::{self, Chunked, DataId, ObjectMeta, PathHash, Version, encode_chunk_meta};
use crate::disk::format::record::{DeviceId, Kind, NewRecord, Parts, StoredRecord};
use crate::disk::limits::{MAX_KEY, MAX_META};
use crate::disk::{Class, DiskError, DiskHandle, Durability, Location};
use crate::index::IndexError;
use crate::sync::{self, Answer, Ask};

/// A future on the heap, so that seams are objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The number of an object's draft that is a copy of a version which another device has: it may stand again where it was
/// evicted. The draft of a chunk of a copy has the version's time behind the path hash in its meta.
pub const COPY: u32 = 1;

/// The number of an object's draft that is another fragment of a version which the device has: it takes the place of that one.
pub const ANOTHER: u32 = 2;

/// A record that does not yet know its device.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Its kind.
    pub kind: Kind,
    /// Tombstone of its key.
    pub deleted: bool,
    /// Version time.
    pub sequence: u64,
    /// Chunk number; of an object 0, [`COPY`] or [`ANOTHER`].
    pub number: u32,
    /// Key.
    pub key: Vec<u8>,
    /// Meta.
    pub meta: Vec<u8>,
    /// Data.
    pub data: Bytes,
}

impl Draft {
    /// Refuses names and headers that no record can hold.
    pub(crate) fn check(&self) -> Result<()> {
        if self.key.len() > MAX_KEY || self.meta.len() > MAX_META {
            return Err(Error::Refused("names and headers are too long".to_owned()));
        }
        Ok(())
    }
}

/// An object's newest version on a replica, kept readable while `hold` lives.
pub struct Opened {
    /// Its record.
    pub record: StoredRecord,
    /// Places of its chunks, in the replica's own terms.
    pub chunks: Arc<[Location]>,
    /// Keeps them readable.
    pub hold: Arc<dyn Any + Send + Sync>,
}

/// One device that holds objects.
pub trait Replica: Send + Sync {
    /// Which.
    fn device(&self) -> DeviceId;
    /// Append a group, all or nothing. Written even when the caller stops waiting after submission.
    fn append(
        &self,
        group: Vec<Draft>,
        durability: Durability,
        class: Class,
    ) -> BoxFuture<'static, Result<()>>;
    /// Give up an upload, without waiting: its chunks become garbage.
    fn abandon(&self, upload: DataId, sequence: u64);
    /// The newest version or tombstone of an object.
    fn version(&self, hash: PathHash) -> BoxFuture<'static, Result<Option<Version>>>;
    /// The newest version of an object, open for reading; `None` for a tombstone.
    fn open(&self, hash: PathHash) -> BoxFuture<'static, Result<Option<Opened>>>;
    /// A record, verified. Its place comes from an [`Opened`] whose hold lives.
    fn read(&self, at: Location) -> BoxFuture<'static, Result<StoredRecord>>;
    /// What it holds, for anti-entropy.
    fn ask(&self, ask: Ask) -> BoxFuture<'static, Result<Answer>> {
        let _ = ask;
        let reason = "this replica does not tell what it holds".to_owned();
        Box::pin(std::future::ready(Err(Error::Unavailable { reason })))
    }
}

impl From<DiskError> for Error {
    fn from(e: DiskError) -> Self {
        match e {
            DiskError::NoSpace => Self::NoSpace,
            DiskError::Corrupt { .. } => Self::Corrupt { what: e.to_string() },
            DiskError::Failed(_) | DiskError::Io { .. } | DiskError::Index(_) | DiskError::Closed => {
                Self::Unavailable { reason: e.to_string() }
            }
        }
    }
}

impl From<IndexError> for Error {
    fn from(e: IndexError) -> Self {
        Self::Unavailable { reason: e.to_string() }
    }
}

/// A disk of this node.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    disk: DiskHandle,
    uploads: Arc<Mutex<Uploads>>,
}

impl Local {
    pub(crate) fn new(disk: DiskHandle) -> Self {
        Self { disk, uploads: Arc::default() }
    }

    fn record(&self, draft: Draft) -> Result<NewRecord> {
        let Draft { kind, deleted, sequence, mut number, key, mut meta, data } = draft;
        let index = self.disk.index();
        match kind {
            Kind::Object if number == ANOTHER => {
                number = match catalog::turn_of(index, &key, sequence, deleted)? {
                    Some(turn) => turn.saturating_add(1),
                    None => catalog::next_turn(index, &key, sequence, deleted)?,
                }
            }
            Kind::Object if number != 0 => number = catalog::next_turn(index, &key, sequence, deleted)?,
            Kind::Chunk => match meta.split_first_chunk::<16>() {
                Some((_, [])) => {}
                Some((owner, version)) => {
                    let version = version.try_into().map(u64::from_le_bytes);
                    let version = version.map_err(|_| Error::Refused("meta of a chunk".to_owned()))?;
                    let turn = catalog::next_turn(index, owner, version, false)?;
                    meta = encode_chunk_meta(owner, turn);
                }
                None => return Err(Error::Refused("meta of a chunk".to_owned())),
            },
            _ => {}
        }
        Ok(self.disk.record(Parts { kind, deleted, sequence, number, key: &key, meta: &meta, data }))
    }

    fn uploads(&self) -> MutexGuard<'_, Uploads> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses chunks of an upload that was given up, and commits of bodies that are not here.
    fn admit(&self, piece: &Piece) -> Result<()> {
        let mut uploads = self.uploads();
        let here = match piece {
            Piece::Chunk(id, number) => uploads.may_add(id, *number),
            Piece::Commit(Chunked { data_id, count }) => {
                let index = self.disk.index();
                // It may have been given up when its first commit was through already.
                uploads.begin_commit(*data_id, *count, || catalog::has_chunks(index, data_id, *count))?
                    || catalog::is_claimed(index, data_id, *count)?
            }
        };
        if here { Ok(()) } else { Err(Error::NoObject) }
    }

    /// What was admitted is in the log, or will not be.
    pub(super) fn ended(&self, piece: &Piece, sequence: u64, well: bool) {
        let (id, give_up) = match piece {
            Piece::Chunk(id, number) => (id, well && !self.uploads().added(*id, *number)),
            Piece::Commit(Chunked { data_id, .. }) => (data_id, self.uploads().end_commit(data_id, well)),
        };
        if give_up {
            self.write_abort(*id, sequence);
        }
    }

    fn write_abort(&self, upload: DataId, sequence: u64) {
        let (key, meta) = (&upload[..], &[][..]);
        let parts =
            Parts { kind: Kind::Abort, deleted: false, sequence, number: 0, key, meta, data: Bytes::new() };
        self.disk.submit_detached(vec![self.disk.record(parts)], Class::Delete);
    }
}

/// What a record is to an upload.
pub(super) enum Piece {
    Chunk(DataId, u32),
    Commit(Chunked),
}

impl Piece {
    fn of(draft: &Draft) -> Result<Option<Self>> {
        Ok(match draft.kind {
            Kind::Chunk => draft.key.as_slice().try_into().ok().map(|id| Self::Chunk(id, draft.number)),
            Kind::Object if !draft.deleted && catalog::is_chunked(&draft.meta) => {
                ObjectMeta::decode(&draft.meta, draft.sequence)?.chunked.map(Self::Commit)
            }
            _ => None,
        })
    }
}

impl Replica for Local {
    fn device(&self) -> DeviceId {
        self.disk.device()
    }

    fn append(
        &self,
        group: Vec<Draft>,
        durability: Durability,
        class: Class,
    ) -> BoxFuture<'static, Result<()>> {
        let this = self.clone();
        Box::pin(async move {
            let mut under_way = UnderWay::new(&this);
            for draft in &group {
                draft.check()?;
                if let Some(piece) = Piece::of(draft)? {
                    this.admit(&piece)?;
                    under_way.add(piece, draft.sequence);
                }
            }
            let group = group.into_iter().map(|draft| this.record(draft)).collect::<Result<Vec<_>>>()?;
            let submitted = this.disk.submit(group, durability, class).await?;
            under_way.wait(submitted).await
        })
    }

    fn abandon(&self, upload: DataId, sequence: u64) {
        if self.uploads().give_up(upload) {
            self.write_abort(upload, sequence);
        }
    }

    fn version(&self, hash: PathHash) -> BoxFuture<'static, Result<Option<Version>>> {
        let version = catalog::version(self.disk.index(), &hash).map_err(Error::from);
        Box::pin(std::future::ready(version))
    }

    fn open(&self, hash: PathHash) -> BoxFuture<'static, Result<Option<Opened>>> {
        let disk = self.disk.clone();
        Box::pin(async move {
            let found = disk.lookup(|index| {
                let Some(found) = catalog::find_object(index, &hash)? else { return Ok(None) };
                let mut places = found.chunks.clone();
                places.push(found.record);
                Ok(Some((found, places)))
            })?;
            let Some((found, pins)) = found else { return Ok(None) };
            let record = disk.read(found.record).await?;
            Ok(Some(Opened { record, chunks: found.chunks.into(), hold: Arc::new(pins) }))
        })
    }

    fn read(&self, at: Location) -> BoxFuture<'static, Result<StoredRecord>> {
        let disk = self.disk.clone();
        Box::pin(async move { Ok(disk.read(at).await?) })
    }

    fn ask(&self, ask: Ask) -> BoxFuture<'static, Result<Answer>> {
        let disk = self.disk.clone();
        Box::pin(async move {
            let Ask::Record { hash } = ask else { return sync::answer(&disk, &ask) };
            let find = |index: &dyn crate::index::Index| {
                Ok(catalog::newest_record(index, &hash)?.map(|at| (at, vec![at])))
            };
            let Some((at, _pins)) = disk.lookup(find)? else { return Ok(Answer::Record(None)) };
            Ok(Answer::Record(Some(disk.read(at).await?.bytes())))
        })
    }
}
