//! Copying a version from one device to another, and mending a damaged one from another's copy.
//!
//! Invariant: a copy has the version's time, meta and data id; its body was verified record by record and, before it is
//! committed, whole by its BLAKE3.
//! Invariant: chunks come before the commit; where the commit does not come, they are given up.
//! Invariant: copying twice, or what was replaced meanwhile, changes nothing that is newer.

use quarry_ring::PathHash;
use tokio::sync::Semaphore;

use super::{Answer, Ask};
use crate::catalog::{self, Chunked, ObjectMeta, Stamp, encode_chunk_meta};
use crate::disk::format::record::{Kind, Parts, StoredRecord};
use crate::disk::{Class, DiskError, DiskHandle, Durability};
use crate::object::{Error, InFlight, Opened, Replica, Result, check_chunk, draft};

/// Chunks on their way at a time.
const IN_FLIGHT: usize = 4;
/// Times that a body is copied whose chunks were dropped on the other side meanwhile.
const ATTEMPTS: u32 = 3;

/// Which of the two devices failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where it was read.
    From,
    /// Where it was written.
    To,
}

/// Why a version was not copied.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct CopyError {
    /// Which device.
    pub side: Side,
    /// What it said.
    #[source]
    pub error: Error,
}

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// So many bytes.
    Bytes(u64),
    /// The version is no longer there.
    Gone,
    /// It is kept in fragments, and each device has another: nothing was copied.
    Fragments,
}

fn from(error: Error) -> CopyError {
    CopyError { side: Side::From, error }
}

fn to(error: Error) -> CopyError {
    CopyError { side: Side::To, error }
}

fn corrupt(hash: &PathHash, what: &str) -> CopyError {
    from(Error::Corrupt { what: format!("{what} of object {}", hex::encode(hash)) })
}

/// The record of the newest version of an object, verified; a tombstone's too.
pub(crate) async fn read_record(replica: &dyn Replica, hash: PathHash) -> Result<Option<StoredRecord>> {
    match replica.ask(Ask::Record { hash }).await? {
        Answer::Record(None) => Ok(None),
        Answer::Record(Some(bytes)) => {
            let bad = |bad| Error::Corrupt { what: format!("record of object {}: {bad}", hex::encode(hash)) };
            StoredRecord::verify(replica.device(), bytes).map(Some).map_err(bad)
        }
        _ => Err(Error::Unavailable { reason: "the peer answered another question".to_owned() }),
    }
}

/// Copies the newest version that `source` holds, if it is still the one of `stamp` or a newer one. A body in pieces has a few of
/// them in memory, and takes a place in `large` first.
pub async fn copy(
    source: &dyn Replica,
    target: &dyn Replica,
    stamp: Stamp,
    large: &Semaphore,
) -> Result<Copied, CopyError> {
    if stamp.deleted {
        return copy_tombstone(source, target, stamp).await;
    }
    for _ in 0..ATTEMPTS {
        let Some(opened) = source.open(stamp.hash).await.map_err(from)? else {
            // Deleted meanwhile: the tombstone is what is to be copied.
            return copy_tombstone(source, target, stamp).await;
        };
        let view = opened.record.view();
        if view.kind != Kind::Object || view.deleted || view.key != stamp.hash {
            return Err(corrupt(&stamp.hash, "record"));
        }
        let meta = ObjectMeta::decode(view.meta, view.sequence).map_err(|e| from(e.into()))?;
        if meta.fragment.is_some() {
            return Ok(Copied::Fragments);
        }
        let bytes = match meta.chunked {
            None => copy_small(target, &opened, &meta, &stamp.hash).await?,
            Some(chunked) => {
                // It is never closed.
                let _place = large.acquire().await;
                copy_large(source, target, &opened, &meta, chunked, &stamp.hash).await?
            }
        };
        if meta.chunked.is_none() || is_whole(target, &stamp.hash, &meta).await? {
            return Ok(Copied::Bytes(bytes));
        }
    }
    Err(to(Error::Unavailable { reason: "chunks are dropped as fast as they are copied".to_owned() }))
}

pub(crate) async fn copy_tombstone(
    source: &dyn Replica,
    target: &dyn Replica,
    stamp: Stamp,
) -> Result<Copied, CopyError> {
    let Some(record) = read_record(source, stamp.hash).await.map_err(from)? else { return Ok(Copied::Gone) };
    let view = record.view();
    if view.kind != Kind::Object || view.key != stamp.hash {
        return Err(corrupt(&stamp.hash, "record"));
    }
    if !view.deleted {
        // A newer put: the next comparison finds it.
        return Ok(Copied::Gone);
    }
    let group = vec![draft(&record, view.sequence)];
    target.append(group, Durability::Durable, Class::Delete).await.map_err(to)?;
    Ok(Copied::Bytes(record.weight() as u64))
}

fn check_body(hash: &PathHash, meta: &ObjectMeta, hasher: &blake3::Hasher) -> Result<(), CopyError> {
    if *hasher.finalize().as_bytes() == meta.info.blake3 && hasher.count() == meta.info.size {
        return Ok(());
    }
    Err(corrupt(hash, "body"))
}

async fn copy_small(
    target: &dyn Replica,
    opened: &Opened,
    meta: &ObjectMeta,
    hash: &PathHash,
) -> Result<u64, CopyError> {
    let data = opened.record.data();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&data);
    check_body(hash, meta, &hasher)?;
    let group = vec![draft(&opened.record, meta.info.timestamp.0)];
    target.append(group, Durability::Durable, Class::Client).await.map_err(to)?;
    Ok(opened.record.weight() as u64)
}

async fn copy_large(
    source: &dyn Replica,
    target: &dyn Replica,
    opened: &Opened,
    meta: &ObjectMeta,
    chunked: Chunked,
    hash: &PathHash,
) -> Result<u64, CopyError> {
    if opened.chunks.len() != chunked.count as usize {
        return Err(corrupt(hash, "number of chunks"));
    }
    let sent = send_chunks(source, target, opened, meta, chunked, hash).await;
    let bytes = match sent {
        Ok(bytes) => bytes,
        Err(e) => {
            target.abandon(chunked.data_id, meta.info.timestamp.0);
            return Err(e);
        }
    };
    let group = vec![draft(&opened.record, meta.info.timestamp.0)];
    if let Err(e) = target.append(group, Durability::Durable, Class::Client).await {
        target.abandon(chunked.data_id, meta.info.timestamp.0);
        return Err(to(e));
    }
    Ok(bytes + opened.record.weight() as u64)
}

async fn send_chunks(
    source: &dyn Replica,
    target: &dyn Replica,
    opened: &Opened,
    meta: &ObjectMeta,
    chunked: Chunked,
    hash: &PathHash,
) -> Result<u64, CopyError> {
    let version = meta.info.timestamp.0;
    let (mut bytes, mut hasher, mut appends) = (0, blake3::Hasher::new(), InFlight::<Result<()>>::default());
    for (number, at) in (0..chunked.count).zip(opened.chunks.iter()) {
        let record = source.read(*at).await.map_err(from)?;
        let data = check_chunk(meta, hash, u64::from(number), &record).map_err(from)?;
        hasher.update(&data);
        bytes += record.weight() as u64;
        // The first one is waited for: a device that had given this upload up takes it anew from there.
        while appends.len() >= if number < 2 { 1 } else { IN_FLIGHT } {
            appends.next().await.unwrap_or(Ok(())).map_err(to)?;
        }
        let chunk = vec![draft(&record, version)];
        appends.push(target.append(chunk, Durability::Appended, Class::Client)).await;
    }
    while let Some(appended) = appends.next().await {
        appended.map_err(to)?;
    }
    check_body(hash, meta, &hasher)?;
    Ok(bytes)
}

/// Whether all chunks are there. They may not be: a version that came between took them, or an abort.
async fn is_whole(target: &dyn Replica, hash: &PathHash, meta: &ObjectMeta) -> Result<bool, CopyError> {
    let Some(opened) = target.open(*hash).await.map_err(to)? else { return Ok(true) };
    let view = opened.record.view();
    let same = view.sequence == meta.info.timestamp.0;
    Ok(!same || meta.chunked.is_none_or(|chunked| chunked.count as usize == opened.chunks.len()))
}

/// Writes again what cannot be read of a version on a local disk, from another device's copy of the same version. Returns
/// whether the version is whole.
pub(crate) async fn mend(disk: &DiskHandle, source: &dyn Replica, stamp: Stamp) -> Result<bool> {
    let Some(opened) = source.open(stamp.hash).await? else { return Ok(false) };
    let view = opened.record.view();
    if (view.sequence, view.deleted) != (stamp.sequence, stamp.deleted) || view.key != stamp.hash {
        return Ok(false);
    }
    let meta = ObjectMeta::decode(view.meta, view.sequence)?;
    if meta.fragment.is_some() {
        return Ok(false);
    }
    let find = |index: &dyn crate::index::Index| {
        let Some(found) = catalog::find_object(index, &stamp.hash)? else { return Ok(None) };
        let places = found.chunks.iter().copied().chain([found.record]).collect();
        let turn = catalog::turn_of(index, &stamp.hash, stamp.sequence, false)?;
        Ok(turn.map(|turn| ((found, turn), places)))
    };
    let Some(((found, turn), _pins)) = disk.lookup(find)? else { return Ok(false) };
    if found.sequence != stamp.sequence {
        return Ok(false);
    }
    if damaged(disk.read_uncached(found.record).await)? {
        let data = opened.record.data();
        let parts = Parts {
            kind: view.kind,
            deleted: false,
            sequence: view.sequence,
            number: turn,
            key: view.key,
            meta: view.meta,
            data,
        };
        disk.replace(found.record, disk.record(parts)).await?;
    }
    let Some(chunked) = meta.chunked else { return Ok(true) };
    if opened.chunks.len() != chunked.count as usize || found.chunks.len() != opened.chunks.len() {
        return Ok(false);
    }
    for ((number, theirs), ours) in (0..chunked.count).zip(opened.chunks.iter()).zip(&found.chunks) {
        if !damaged(disk.read_uncached(*ours).await)? {
            continue;
        }
        let record = source.read(*theirs).await?;
        let data = check_chunk(&meta, &stamp.hash, u64::from(number), &record)?;
        let (key, chunk_meta) = (&chunked.data_id[..], encode_chunk_meta(&stamp.hash, turn));
        let sequence = record.view().sequence;
        let parts =
            Parts { kind: Kind::Chunk, deleted: false, sequence, number, key, meta: &chunk_meta, data };
        disk.replace(*ours, disk.record(parts)).await?;
    }
    Ok(true)
}

/// Whether a read found damage; what else goes wrong is an error.
fn damaged(read: Result<StoredRecord, DiskError>) -> Result<bool> {
    match read {
        Ok(_) => Ok(false),
        Err(DiskError::Corrupt { .. } | DiskError::Io { .. }) => Ok(true),
        Err(e) => Err(e.into()),
    }
}
