//! Copies of a version from one replica to another.
//!
//! Invariant: a copy has the version time, meta, data id and bytes of the original; it may be made twice, and beside others.
//! Invariant: only verified bytes are sent, chunks before the commit that names them.

use super::reader::check_chunk;
use super::replica::{COPY, Draft, Replica};
use super::{Error, Result};
use crate::catalog::{ObjectMeta, PathHash};
use crate::disk::format::record::{Kind, StoredRecord};
use crate::disk::{Class, Durability};

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    /// The other replica has this version now.
    Version(u64),
    /// It had a newer one already.
    Newer,
    /// There is no version to copy: none at all, or a tombstone.
    Nothing,
}

/// Copies the newest version of an object, record and chunks, over whatever the other replica has of it, unless that is newer.
pub(crate) async fn copy_version(from: &dyn Replica, to: &dyn Replica, hash: PathHash) -> Result<Copied> {
    let Some(opened) = from.open(hash).await? else { return Ok(Copied::Nothing) };
    let view = opened.record.view();
    let (sequence, record) = (view.sequence, draft(&opened.record, view.sequence));
    let meta = ObjectMeta::decode(view.meta, sequence)?;
    let count = meta.chunked.map_or(0, |chunked| chunked.count as usize);
    if view.kind != Kind::Object || view.deleted || view.key != hash || opened.chunks.len() != count {
        return Err(Error::Corrupt { what: format!("version of {}", meta.path) });
    }
    if to.version(hash).await?.is_some_and(|there| there.sequence > sequence) {
        return Ok(Copied::Newer);
    }
    for (number, at) in opened.chunks.iter().enumerate() {
        let chunk = from.read(*at).await?;
        check_chunk(&meta, &hash, number as u64, &chunk)?;
        // One after the other, the first one first: a device that had given this upload up takes it anew from there.
        to.append(vec![draft(&chunk, sequence)], Durability::Appended, Class::Client).await?;
    }
    to.append(vec![record], Durability::Durable, Class::Client).await?;
    Ok(Copied::Version(sequence))
}

/// What a record was made from, as a part of a copy of this version: where the version was evicted, it may stand again.
pub(crate) fn draft(record: &StoredRecord, version: u64) -> Draft {
    let view = record.view();
    let (mut number, mut meta) = (view.number, view.meta.to_vec());
    match view.kind {
        Kind::Object => number = COPY,
        Kind::Chunk => {
            // The path hash alone: its turn is the other device's affair.
            meta.truncate(size_of::<PathHash>());
            meta.extend_from_slice(&version.to_le_bytes());
        }
        _ => {}
    }
    let (kind, deleted, sequence) = (view.kind, view.deleted, view.sequence);
    Draft { kind, deleted, sequence, number, key: view.key.to_vec(), meta, data: record.data() }
}
