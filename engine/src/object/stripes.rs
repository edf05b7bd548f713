//! Where the fragments of an open version are read: any k devices that have different ones.
//!
//! Invariant: a version is open when k devices with different fragments of its body have it open; then it stays readable, and
//! others only take the place of one that fails or is slow.
//! Invariant: fragments of the body itself are preferred: while all k are there, nothing need be computed.

use std::any::Any;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quarry_ring::PathHash;
use tokio::sync::OnceCell;

use super::copies::Copies;
use super::devices::{Candidates, Member, Watch};
use super::fragments::{Fragment, join, same_body, stripe_len};
use super::health::Work;
use super::limits::STALL;
use super::objects::check_version;
use super::race::{Attempt, gather, race};
use super::reader::check_chunk;
use super::replica::{BoxFuture, Opened};
use super::sight::Open;
use super::store::Spawn;
use super::{Error, Result};
use crate::catalog::ObjectMeta;
use crate::disk::Location;
use crate::disk::format::record::DeviceId;

/// A device that has the version open.
struct Part {
    member: Arc<Member>,
    /// As this device has it.
    meta: ObjectMeta,
    index: u8,
    chunks: Arc<[Location]>,
    _hold: Arc<dyn Any + Send + Sync>,
}

impl Part {
    fn new(member: Arc<Member>, meta: ObjectMeta, opened: Opened) -> Option<Self> {
        let index = meta.fragment?.index;
        Some(Self { member, meta, index, chunks: opened.chunks, _hold: opened.hold })
    }
}

/// A device that may have a part of it, opened when it is needed.
struct Slot {
    member: Arc<Member>,
    part: OnceCell<Part>,
}

impl Slot {
    fn index(&self) -> Option<u8> {
        self.part.get().map(|part| part.index)
    }
}

struct Found {
    /// Those that gave something last come first, and of these those with fragments of the body.
    slots: Vec<Arc<Slot>>,
    /// Who may have another.
    more: Candidates,
}

/// An open version.
pub(crate) struct Stripes {
    meta: Arc<ObjectMeta>,
    hash: PathHash,
    fragment: Fragment,
    copies: Arc<Copies>,
    found: Mutex<Found>,
}

/// A device's part of the version, if it has one of this body.
async fn open_part(member: Arc<Member>, meta: Arc<ObjectMeta>, hash: PathHash) -> Result<(Part, Bytes)> {
    let opened = member.replica.open(hash).await?.ok_or(Error::NoObject)?;
    let own = check_version(&meta.path, &opened)?;
    if !same_body(&own, &meta) {
        return Err(Error::Superseded);
    }
    let small = opened.record.data();
    Ok((Part::new(member, own, opened).ok_or(Error::NoObject)?, small))
}

/// The body of a version that is small enough to lie in a record, from a device that has it.
pub(crate) async fn small_body(copies: &Arc<Copies>, open: &Open) -> Result<Bytes> {
    if open.meta.fragment.is_none_or(|fragment| fragment.has_small()) {
        return Ok(open.opened.record.data());
    }
    let (meta, hash) = (Arc::new(open.meta.clone()), open.hash);
    let mut candidates = copies.candidates_to_read(&hash);
    let next = || {
        let member = candidates.next()?;
        let patience = member.hedge_after(Work::Look);
        let (meta, copies) = (meta.clone(), copies.clone());
        let work: BoxFuture<'static, Result<Bytes, Error>> = Box::pin(async move {
            let found = open_part(member.clone(), meta, hash).await;
            member.heard(&found, copies.time.as_ref());
            let (part, small) = found?;
            let here = part.meta.fragment.is_some_and(|fragment| fragment.has_small());
            if here { Ok(small) } else { Err(Error::NoObject) }
        });
        Some(Attempt { work, patience })
    };
    race(copies.time.as_ref(), &copies.budget, next).await.map_err(|errors| too_few(&meta, 0, &errors))
}

fn too_few(meta: &ObjectMeta, k: usize, errors: &[Error]) -> Error {
    let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let path = &meta.path;
    Error::Unavailable { reason: format!("{k} fragments of {path} are needed: {}", why.join("; ")) }
}

impl Found {
    /// The next device that was not tried.
    fn next(&mut self, tried: &[DeviceId]) -> Option<Arc<Slot>> {
        if let Some(slot) = self.slots.iter().find(|slot| !tried.contains(&slot.member.device())) {
            return Some(slot.clone());
        }
        let slots = &self.slots;
        let known = |member: &Arc<Member>| slots.iter().any(|slot| slot.member.device() == member.device());
        let member = self.more.find(|member| !known(member))?;
        let slot = Arc::new(Slot { member, part: OnceCell::new() });
        self.slots.push(slot.clone());
        Some(slot)
    }
}

impl Stripes {
    /// Opens a version at k devices.
    pub(crate) async fn open(copies: Arc<Copies>, open: Open) -> Result<Self> {
        let Open { hash, meta, opened, member, .. } = open;
        let fragment = meta.fragment.ok_or(Error::NoObject)?;
        let (code, time) = (fragment.code, copies.time.clone());
        let mut more = copies.candidates_to_read(&hash);
        let mut parts: Vec<Part> = Vec::new();
        let seen: Arc<Mutex<HashSet<u8>>> = Arc::default();
        let lock = |seen: &Mutex<HashSet<u8>>, index| {
            seen.lock().unwrap_or_else(PoisonError::into_inner).insert(index)
        };
        let first = member.device();
        parts.extend(Part::new(member, meta.clone(), opened));
        lock(&seen, fragment.index);
        let meta = Arc::new(meta);
        let mut firsts: Vec<Arc<Member>> = more.places_up(code.k());
        firsts.reverse();
        let next = || {
            let member = loop {
                let member = firsts.pop().or_else(|| more.next())?;
                if member.device() != first {
                    break member;
                }
            };
            let patience = member.hedge_after(Work::Look);
            let (meta, seen, time) = (meta.clone(), seen.clone(), time.clone());
            let work: BoxFuture<'static, Result<Part, Error>> = Box::pin(async move {
                let watch = member.watch(Work::Look, time.as_ref());
                let found = open_part(member.clone(), meta, hash).await;
                watch.into_iter().for_each(Watch::done);
                member.heard(&found, time.as_ref());
                let (part, _) = found?;
                // Another device has the same: one of them is as good as the other.
                if lock(&seen, part.index) { Ok(part) } else { Err(Error::Superseded) }
            });
            Some(Attempt { work, patience })
        };
        if code.k() > parts.len() {
            let wanted = code.k() - parts.len();
            let won = gather(copies.time.as_ref(), &copies.budget, wanted, next).await;
            let others = won.map_err(|errors| too_few(&meta, code.k(), &errors))?;
            parts.extend(others);
        }
        parts.sort_by_key(|part| part.index);
        let open = |part: Part| Slot { member: part.member.clone(), part: OnceCell::new_with(Some(part)) };
        let mut slots: Vec<Arc<Slot>> = parts.into_iter().map(|part| Arc::new(open(part))).collect();
        // Those that were not needed may be later.
        let rest = firsts.into_iter().rev().filter(|member| member.device() != first);
        slots.extend(rest.map(|member| Arc::new(Slot { member, part: OnceCell::new() })));
        let found = Mutex::new(Found { slots, more });
        Ok(Self { meta, hash, fragment, copies, found })
    }

    pub(crate) fn spawn(&self) -> Option<&Spawn> {
        self.copies.spawn.as_ref()
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stripe, from the fragments that come first.
    pub(crate) async fn read(self: Arc<Self>, number: u64) -> Result<Bytes> {
        let code = self.fragment.code;
        let mut tried: Vec<DeviceId> = Vec::new();
        let seen: Arc<Mutex<HashSet<u8>>> = Arc::default();
        let next = || {
            let slot = self.found().next(&tried)?;
            tried.push(slot.member.device());
            let patience = slot.member.hedge_after(Work::Chunk).min(STALL);
            Some(Attempt { work: self.clone().attempt(slot, number, seen.clone()), patience })
        };
        let won = gather(self.copies.time.as_ref(), &self.copies.budget, code.k(), next).await;
        let parts = won.map_err(|errors| self.why(&errors))?;
        // Who was passed over comes later next time: a device that hangs is waited for once.
        let gave: HashSet<u8> = parts.iter().map(|(index, _)| *index).collect();
        self.found().slots.sort_by_key(|slot| {
            let index = slot.index();
            (index.is_none_or(|index| !gave.contains(&index)), index.unwrap_or(u8::MAX))
        });
        join(code, stripe_len(&self.meta, number), &parts)
    }

    fn attempt(
        self: Arc<Self>,
        slot: Arc<Slot>,
        number: u64,
        seen: Arc<Mutex<HashSet<u8>>>,
    ) -> BoxFuture<'static, Result<(u8, Bytes), Error>> {
        Box::pin(async move {
            let time = self.copies.time.as_ref();
            let member = &slot.member;
            let watch = member.watch(Work::Chunk, time);
            let result = self.fragment(&slot, number).await;
            watch.into_iter().for_each(Watch::done);
            member.heard(&result, time);
            if matches!(result, Err(Error::Corrupt { .. })) {
                self.copies.mend(member, member, self.hash);
            }
            let (index, data) = result?;
            let new = seen.lock().unwrap_or_else(PoisonError::into_inner).insert(index);
            if new { Ok((index, data)) } else { Err(Error::Superseded) }
        })
    }

    async fn fragment(&self, slot: &Slot, number: u64) -> Result<(u8, Bytes)> {
        let open =
            async { Ok::<_, Error>(open_part(slot.member.clone(), self.meta.clone(), self.hash).await?.0) };
        let part = slot.part.get_or_try_init(|| open).await?;
        let place = usize::try_from(number).ok().and_then(|n| part.chunks.get(n)).copied();
        let lost = || Error::Corrupt { what: format!("place of chunk {number} of {:?}", self.meta.path) };
        let record = slot.member.replica.read(place.ok_or_else(lost)?).await?;
        Ok((part.index, check_chunk(&part.meta, &self.hash, number, &record)?))
    }

    fn why(&self, errors: &[Error]) -> Error {
        too_few(&self.meta, self.fragment.code.k(), errors)
    }
}
