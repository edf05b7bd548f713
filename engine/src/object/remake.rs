//! A device's fragment of a version, made anew from k others; or moved, where another device has just that one.
//!
//! Invariant: what is made is verified: each fragment that it is made from by its checksums, the whole body by its BLAKE3 before
//! the commit.
//! Invariant: a primary gets the fragment of its place, unless another primary has that; then one that no primary has.
//! Invariant: nothing newer is touched, and a version of which fewer than k fragments can be found is not made.
//! Invariant: a primary gives its fragment up for another one only when another primary was seen to have the same and keeps it.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use quarry_ring::PathHash;

use super::fragments::{Fragment, cut, join, same_body, stripe_len, with_index};
use super::objects::object_draft;
use super::reader::check_chunk;
use super::replica::{ANOTHER, COPY, Draft, Opened, Replica};
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

/// The fragment that a device has of its newest version, all of it.
pub(crate) async fn fragment_of(replica: &dyn Replica, hash: &PathHash) -> Result<Option<Fragment>> {
    let Some(opened) = replica.open(*hash).await? else { return Ok(None) };
    Ok(read_opened(&opened, hash)?.and_then(|(meta, _)| meta.fragment))
}

async fn look<'a>(replica: &'a dyn Replica, hash: &PathHash) -> Option<Source<'a>> {
    let opened = replica.open(*hash).await.ok().flatten()?;
    let (meta, index) = read_opened(&opened, hash).ok().flatten()?;
    Some(Source { replica, meta, index, opened })
}

async fn look_at_all<'a>(
    replicas: impl Iterator<Item = &'a Arc<dyn Replica>>,
    hash: &PathHash,
) -> Vec<Source<'a>> {
    join_all(replicas.map(|replica| look(replica.as_ref(), hash))).await.into_iter().flatten().collect()
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
    sources: &[Arc<dyn Replica>],
    target: &dyn Replica,
    wanted: Wanted<'_>,
) -> Result<Remade> {
    let Wanted { hash, places, anew } = wanted;
    let standing = target.version(hash).await?;
    let own = look(target, &hash).await;
    let others = sources.iter().filter(|source| source.device() != target.device());
    let mut found = look_at_all(others, &hash).await;
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
    let making = Making { hash, meta: with_index(&newest, index), index, number: COPY };
    making.write(&found, target).await
}

/// Gives one of the primaries, which come by place, the fragment that `holder` has of its version's body and none of them: one that has the
/// same as another primary.
pub(crate) async fn renumber(
    primaries: &[Arc<dyn Replica>],
    holder: &Arc<dyn Replica>,
    hash: PathHash,
) -> Result<Remade> {
    let mut found = look_at_all(primaries.iter().chain([holder]), &hash).await;
    let of = |device| move |source: &&Source<'_>| source.replica.device() == device;
    let Some((body, index)) =
        found.iter().find(of(holder.device())).map(|held| (held.meta.clone(), held.index))
    else {
        return Ok(Remade::Cannot);
    };
    found.retain(|source| same_body(&source.meta, &body));
    let number_at =
        |primary: &Arc<dyn Replica>| found.iter().find(of(primary.device())).map(|source| source.index);
    let numbers: Vec<Option<u8>> = primaries.iter().map(number_at).collect();
    if numbers.contains(&Some(index)) {
        return Ok(Remade::Had);
    }
    let Some(target) = doubled(&numbers, index).and_then(|at| primaries.get(at)) else {
        return Ok(Remade::Cannot);
    };
    // Its own version: a POST may have come since to the primaries.
    let Some(standing) = found.iter().find(of(target.device())) else { return Ok(Remade::Cannot) };
    let making = Making { hash, meta: with_index(&standing.meta, index), index, number: ANOTHER };
    making.write(&found, target.as_ref()).await
}

/// The place of a primary that has the same fragment as another which keeps it: best that of the fragment that it is to get. Whoever sees the
/// same fragments says the same of who keeps one, so no two are told to give up the last of a number.
fn doubled(numbers: &[Option<u8>], wanted: u8) -> Option<usize> {
    let keeper = |number: u8| {
        let own = usize::from(number);
        let first = || numbers.iter().position(|other| *other == Some(number));
        if numbers.get(own) == Some(&Some(number)) { Some(own) } else { first() }
    };
    let places = numbers.iter().enumerate();
    let spare = places.filter(|(at, number)| number.is_some_and(|number| keeper(number) != Some(*at)));
    let spare: Vec<usize> = spare.map(|(at, _)| at).collect();
    let own = usize::from(wanted);
    if spare.contains(&own) { Some(own) } else { spare.get(own.checked_rem(spare.len())?).copied() }
}

/// A fragment that a device is given.
struct Making {
    hash: PathHash,
    /// The version as the device shall have it.
    meta: ObjectMeta,
    index: u8,
    /// Of the object's draft.
    number: u32,
}

impl Making {
    async fn write(&self, found: &[Source<'_>], target: &dyn Replica) -> Result<Remade> {
        let Some(chunked) = self.meta.chunked else { return self.small(found, target).await };
        let made = self.large(found, target, chunked).await;
        if !matches!(made, Ok(Remade::Bytes(_))) {
            target.abandon(chunked.data_id, self.meta.info.timestamp.0);
        }
        made
    }

    fn record(&self, body: Bytes) -> Draft {
        let mut record = personal(&object_draft(self.hash, &self.meta, body), &self.meta, self.index);
        record.number = self.number;
        record
    }

    async fn small(&self, found: &[Source<'_>], target: &dyn Replica) -> Result<Remade> {
        let whole = |source: &&Source<'_>| source.meta.fragment.is_some_and(|fragment| fragment.has_small());
        for source in found.iter().filter(whole) {
            let body = source.opened.record.data();
            if *blake3::hash(&body).as_bytes() != self.meta.info.blake3 {
                continue;
            }
            let record = self.record(body);
            let bytes = (record.data.len() + record.meta.len()) as u64;
            target.append(vec![record], Durability::Durable, Class::Client).await?;
            return Ok(Remade::Bytes(bytes));
        }
        Ok(Remade::Cannot)
    }

    async fn large(&self, found: &[Source<'_>], target: &dyn Replica, chunked: Chunked) -> Result<Remade> {
        let Self { hash, meta, index, .. } = self;
        let (mut bytes, mut hasher) = (0, blake3::Hasher::new());
        let moved = found.iter().find(|source| source.index == *index);
        for number in 0..chunked.count {
            let at = u64::from(number);
            let part = match moved {
                Some(source) => read(source, hash, at).await?,
                None => {
                    let Some(stripe) = stripe(found, meta, hash, at).await? else {
                        return Ok(Remade::Cannot);
                    };
                    hasher.update(&stripe);
                    let code = meta.fragment.ok_or(Error::NoObject)?.code;
                    cut(code, &stripe)?.get(usize::from(*index)).cloned().ok_or(Error::NoObject)?
                }
            };
            bytes += part.len() as u64;
            // One after the other, the first one first: a device that had given this upload up takes it anew from there.
            let chunk = chunk_of(meta, *hash, number, part)?;
            target.append(vec![chunk], Durability::Appended, Class::Client).await?;
        }
        if moved.is_none() && *hasher.finalize().as_bytes() != meta.info.blake3 {
            return Err(Error::Corrupt { what: format!("body of {}, made from fragments", meta.path) });
        }
        target.append(vec![self.record(Bytes::new())], Durability::Durable, Class::Client).await?;
        Ok(Remade::Bytes(bytes))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_what_another_primary_keeps_is_given_another_fragment() {
        let of = |numbers: [i8; 5]| numbers.map(|number| u8::try_from(number).ok());
        // The fragment that the handoff has, what the primaries have, and whose place is chosen.
        let cases = [
            (1, [0, 0, 2, 3, 4], Some(1)),
            (0, [1, 1, 2, 3, 4], Some(0)),
            (3, [0, 1, 2, 0, 4], Some(3)),
            // Who has the fragment of its place keeps it, also when it comes last.
            (0, [4, 1, 2, 3, 4], Some(0)),
            (0, [2, 4, 4, 3, 1], Some(2)),
            // Two too many: each handoff chooses that of its place.
            (1, [0, 0, 0, 3, 4], Some(1)),
            (2, [0, 0, 0, 3, 4], Some(2)),
            // None is there twice: one cannot be read.
            (1, [0, -1, 2, 3, 4], None),
            (1, [-1, -1, -1, -1, -1], None),
        ];
        for (wanted, numbers, chosen) in cases {
            assert_eq!(doubled(&of(numbers), wanted), chosen, "{wanted} to {numbers:?}");
        }
    }
}
