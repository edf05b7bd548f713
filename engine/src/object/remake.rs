//! A device's fragment of a version, made anew from k others; or moved, where another device has just that one.
//!
//! Invariant: what is made is verified: each fragment that it is made from by its checksums, the whole body by its BLAKE3 before
//! the commit.
//! Invariant: a primary gets the fragment of its place, unless another primary has that; then one that no primary has.
//! Invariant: nothing newer is touched, and a version of which fewer than k fragments can be found is not made.

use bytes::Bytes;
use quarry_ring::PathHash;

use super::fragments::{cut, join, same_body, stripe_len, with_index};
use super::objects::object_draft;
use super::reader::check_chunk;
use super::replica::{COPY, Draft, Opened, Replica};
use super::seats::personal;
use super::{Error, Result};
use crate::catalog::{Chunked, ObjectMeta};
use crate::disk::format::record::{DeviceId, Kind};
use crate::disk::{Class, Durability};

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remade {
    /// So many bytes were written.
    Bytes(u64),
    /// The device had it, or something newer.
    Had,
    /// Too few fragments can be found, or the version was deleted.
    Cannot,
}

/// A device that has the version open.
struct Source<'a> {
    replica: &'a dyn Replica,
    meta: ObjectMeta,
    index: u8,
    opened: Opened,
}

/// What a device has, if that is a version in fragments of which all chunks are there.
fn read_opened(opened: &Opened, hash: &PathHash) -> Result<Option<(ObjectMeta, u8)>> {
    let view = opened.record.view();
    if view.kind != Kind::Object || view.deleted || view.key != hash {
        return Ok(None);
    }
    let meta = ObjectMeta::decode(view.meta, view.sequence)?;
    let count = meta.chunked.map_or(0, |chunked| chunked.count as usize);
    let Some(fragment) = meta.fragment.filter(|_| count == opened.chunks.len()) else { return Ok(None) };
    Ok(Some((meta, fragment.index)))
}

/// The number of the fragment that a device has of a body, all of it.
pub(crate) async fn fragment_of(replica: &dyn Replica, hash: &PathHash) -> Result<Option<u8>> {
    let Some(opened) = replica.open(*hash).await? else { return Ok(None) };
    Ok(read_opened(&opened, hash)?.map(|(_, index)| index))
}

async fn look<'a>(replica: &'a dyn Replica, hash: &PathHash) -> Option<Source<'a>> {
    let opened = replica.open(*hash).await.ok().flatten()?;
    let (meta, index) = read_opened(&opened, hash).ok().flatten()?;
    Some(Source { replica, meta, index, opened })
}

/// What a device is to have of a version.
pub(crate) struct Wanted<'a> {
    /// Key of the version.
    pub(crate) hash: PathHash,
    /// Primaries of its partition, by place.
    pub(crate) places: &'a [DeviceId],
    /// Also where the device has the version already, which then cannot be read.
    pub(crate) anew: bool,
}

/// Gives `target` its fragment of the newest version that `sources` have.
pub(crate) async fn remake(
    sources: &[std::sync::Arc<dyn Replica>],
    target: &dyn Replica,
    wanted: Wanted<'_>,
) -> Result<Remade> {
    let Wanted { hash, places, anew } = wanted;
    let standing = target.version(hash).await?;
    let own = look(target, &hash).await;
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.device() != target.device()) {
        found.extend(look(source.as_ref(), &hash).await);
    }
    let Some(newest) = found.iter().map(|source| source.meta.clone()).max_by_key(|meta| meta.info.timestamp)
    else {
        return Ok(Remade::Cannot);
    };
    let sequence = newest.info.timestamp.0;
    found.retain(|source| same_body(&source.meta, &newest));
    if standing.is_some_and(|there| there.sequence > sequence || there.sequence == sequence && !anew) {
        return Ok(Remade::Had);
    }
    if let Some(own) = own.as_ref().filter(|own| !anew && same_body(&own.meta, &newest)) {
        // It has the body: only the record is older.
        let meta = with_index(&newest, own.index);
        let record = object_draft(hash, &meta, own.opened.record.data());
        let bytes = record.meta.len() as u64;
        target.append(vec![record], Durability::Durable, Class::Client).await?;
        return Ok(Remade::Bytes(bytes));
    }
    let index = match own.filter(|own| same_body(&own.meta, &newest)) {
        Some(own) => own.index,
        None => vacant(&found, places, target.device()),
    };
    let made = match newest.chunked {
        None => small(&found, target, &newest, hash, index).await,
        Some(chunked) => {
            let meta = with_index(&newest, index);
            let made = large(&found, target, &meta, hash, chunked, index).await;
            if !matches!(made, Ok(Remade::Bytes(_)))
                && let Some(chunked) = meta.chunked
            {
                target.abandon(chunked.data_id, sequence);
            }
            made
        }
    };
    drop(found);
    made
}

/// The fragment that a device should have: that of its place; when another primary has it, one that none has.
fn vacant(found: &[Source<'_>], places: &[DeviceId], target: DeviceId) -> u8 {
    let own = places.iter().position(|device| *device == target).and_then(|at| u8::try_from(at).ok());
    let taken = |index: u8| {
        let mut primaries = found.iter().filter(|source| places.contains(&source.replica.device()));
        primaries.any(|source| source.index == index)
    };
    let count = found.first().and_then(|source| source.meta.fragment).map_or(1, |fragment| fragment.code.n());
    let mut all = 0..u8::try_from(count).unwrap_or(u8::MAX);
    let own = own.filter(|own| all.contains(own)).unwrap_or(0);
    if taken(own) { all.find(|index| !taken(*index)).unwrap_or(own) } else { own }
}

fn record_of(meta: &ObjectMeta, hash: PathHash, body: Bytes, index: u8) -> Draft {
    let mut record = personal(&object_draft(hash, meta, body), meta, index);
    record.number = COPY;
    record
}

async fn small(
    found: &[Source<'_>],
    target: &dyn Replica,
    meta: &ObjectMeta,
    hash: PathHash,
    index: u8,
) -> Result<Remade> {
    let whole = |source: &&Source<'_>| source.meta.fragment.is_some_and(|fragment| fragment.has_small());
    for source in found.iter().filter(whole) {
        let body = source.opened.record.data();
        if *blake3::hash(&body).as_bytes() != meta.info.blake3 {
            continue;
        }
        let record = record_of(meta, hash, body, index);
        let bytes = (record.data.len() + record.meta.len()) as u64;
        target.append(vec![record], Durability::Durable, Class::Client).await?;
        return Ok(Remade::Bytes(bytes));
    }
    Ok(Remade::Cannot)
}

/// `meta` is the version as `target` shall have it.
async fn large(
    found: &[Source<'_>],
    target: &dyn Replica,
    meta: &ObjectMeta,
    hash: PathHash,
    chunked: Chunked,
    index: u8,
) -> Result<Remade> {
    let (mut bytes, mut hasher) = (0, blake3::Hasher::new());
    let moved = found.iter().find(|source| source.index == index);
    for number in 0..chunked.count {
        let at = u64::from(number);
        let part = match moved {
            Some(source) => read(source, &hash, at).await?,
            None => {
                let Some(stripe) = stripe(found, meta, &hash, at).await? else { return Ok(Remade::Cannot) };
                hasher.update(&stripe);
                let code = meta.fragment.ok_or(Error::NoObject)?.code;
                cut(code, &stripe)?.get(usize::from(index)).cloned().ok_or(Error::NoObject)?
            }
        };
        bytes += part.len() as u64;
        // One after the other, the first one first: a device that had given this upload up takes it anew from there.
        let chunk = chunk_of(meta, hash, number, part)?;
        target.append(vec![chunk], Durability::Appended, Class::Client).await?;
    }
    if moved.is_none() && *hasher.finalize().as_bytes() != meta.info.blake3 {
        return Err(Error::Corrupt { what: format!("body of {}, made from fragments", meta.path) });
    }
    let record = record_of(meta, hash, Bytes::new(), index);
    target.append(vec![record], Durability::Durable, Class::Client).await?;
    Ok(Remade::Bytes(bytes))
}

fn chunk_of(meta: &ObjectMeta, hash: PathHash, number: u32, data: Bytes) -> Result<Draft> {
    let id = meta.chunked.ok_or(Error::NoObject)?.data_id;
    let sequence = meta.info.timestamp.0;
    let owner = [&hash[..], &sequence.to_le_bytes()].concat();
    Ok(Draft { kind: Kind::Chunk, deleted: false, sequence, number, key: id.to_vec(), meta: owner, data })
}

async fn read(source: &Source<'_>, hash: &PathHash, number: u64) -> Result<Bytes> {
    let place = usize::try_from(number).ok().and_then(|n| source.opened.chunks.get(n)).copied();
    let record = source.replica.read(place.ok_or(Error::NoObject)?).await?;
    check_chunk(&source.meta, hash, number, &record)
}

/// A stripe from any k fragments that can be read; `None`: there are fewer.
async fn stripe(
    found: &[Source<'_>],
    meta: &ObjectMeta,
    hash: &PathHash,
    number: u64,
) -> Result<Option<Bytes>> {
    let code = meta.fragment.ok_or(Error::NoObject)?.code;
    let mut parts: Vec<(u8, Bytes)> = Vec::with_capacity(code.k());
    for source in found {
        if parts.len() == code.k() {
            break;
        }
        if parts.iter().any(|(index, _)| *index == source.index) {
            continue;
        }
        // Another one takes the place of one that cannot be read.
        if let Ok(part) = read(source, hash, number).await {
            parts.push((source.index, part));
        }
    }
    if parts.len() < code.k() {
        return Ok(None);
    }
    join(code, stripe_len(meta, number), &parts).map(Some)
}
