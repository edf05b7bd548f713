//! Where the chunks of an open version are read: a replica, and the others that can take its place in mid-stream.
//!
//! Invariant: another replica is read only where it has the same body: the same data id, number of chunks and size.
//! Invariant: each chunk may come from each replica: damage of one chunk is no reason to do without the others.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quarry_ring::PathHash;
use tokio::sync::OnceCell;

use super::copies::Copies;
use super::devices::{Candidates, Member, Watch};
use super::health::Work;
use super::launch::{Unwanted, launch};
use super::limits::STALL;
use super::objects::check_version;
use super::race::{Attempt, race};
use super::reader::check_chunk;
use super::replica::{BoxFuture, Opened, Replica};
use super::stripes::Stripes;
use super::{Error, Result};
use crate::catalog::ObjectMeta;
use crate::disk::Location;

/// An open copy of the version.
struct Copy {
    replica: Arc<dyn Replica>,
    chunks: Arc<[Location]>,
    _hold: Arc<dyn Any + Send + Sync>,
}

impl Copy {
    fn new(replica: Arc<dyn Replica>, opened: Opened) -> Self {
        Self { replica, chunks: opened.chunks, _hold: opened.hold }
    }

    async fn read(&self, meta: &ObjectMeta, hash: &PathHash, number: u64) -> Result<Bytes> {
        let place = usize::try_from(number).ok().and_then(|n| self.chunks.get(n));
        let lost = || Error::Corrupt { what: format!("place of chunk {number} of {:?}", meta.path) };
        let record = self.replica.read(*place.ok_or_else(lost)?).await?;
        check_chunk(meta, hash, number, &record)
    }
}

/// A replica that may have a copy, opened when it is needed.
struct Slot {
    member: Arc<Member>,
    copy: OnceCell<Copy>,
}

/// Replicas in the order in which they were found.
struct Slots {
    known: Vec<Arc<Slot>>,
    /// Read first: the last one that gave a chunk.
    preferred: usize,
    more: Candidates,
}

struct Several {
    meta: Arc<ObjectMeta>,
    hash: PathHash,
    copies: Arc<Copies>,
    slots: Mutex<Slots>,
}

enum Kind {
    /// There are no chunks.
    Nothing,
    Stripes(Arc<Stripes>),
    One(Arc<(Arc<ObjectMeta>, PathHash, Copy)>),
    Several(Arc<Several>),
}

/// Where chunks are read.
pub(crate) struct Sources(Kind);

impl Sources {
    /// Of a body that is in the record.
    pub(crate) fn nothing() -> Self {
        Self(Kind::Nothing)
    }

    /// Fragments.
    pub(crate) fn stripes(stripes: Stripes) -> Self {
        Self(Kind::Stripes(Arc::new(stripes)))
    }

    /// One replica alone.
    pub(crate) fn one(
        meta: Arc<ObjectMeta>,
        opened: Opened,
        hash: PathHash,
        replica: Arc<dyn Replica>,
    ) -> Self {
        Self(Kind::One(Arc::new((meta, hash, Copy::new(replica, opened)))))
    }

    /// The replica that has it open, and any other that has the same body.
    pub(crate) fn several(
        copies: Arc<Copies>,
        meta: Arc<ObjectMeta>,
        opened: Opened,
        hash: PathHash,
        member: Arc<Member>,
    ) -> Self {
        let more = copies.candidates_to_read(&hash);
        let copy = OnceCell::new_with(Some(Copy::new(member.replica.clone(), opened)));
        let known = vec![Arc::new(Slot { member, copy })];
        let slots = Mutex::new(Slots { known, preferred: 0, more });
        Self(Kind::Several(Arc::new(Several { meta, hash, copies, slots })))
    }

    /// A chunk's data, verified.
    pub(crate) fn read(&self, number: u64) -> BoxFuture<'static, Result<Bytes>> {
        match &self.0 {
            Kind::Nothing => Box::pin(std::future::ready(Err(Error::NoObject))),
            Kind::Stripes(stripes) => {
                let work = stripes.clone().read(number);
                let launched = launch(stripes.spawn(), Box::pin(work), Unwanted::Drop);
                let gone = || Err(Error::Unavailable { reason: "node is shutting down".to_owned() });
                Box::pin(async move { launched.await.unwrap_or_else(gone) })
            }
            Kind::One(one) => {
                let one = one.clone();
                Box::pin(async move { one.2.read(&one.0, &one.1, number).await })
            }
            Kind::Several(several) => {
                let work = several.clone().read(number);
                // Moves on while the client keeps the reader waiting; else its deadlines would be the client's.
                let launched = launch(several.copies.spawn.as_ref(), Box::pin(work), Unwanted::Drop);
                let gone = || Err(Error::Unavailable { reason: "node is shutting down".to_owned() });
                Box::pin(async move { launched.await.unwrap_or_else(gone) })
            }
        }
    }
}

impl Slots {
    /// The replica that is asked as the `turn`th: the preferred one, then all others.
    fn turn(&mut self, turn: usize) -> Option<usize> {
        if turn == 0 {
            return Some(self.preferred);
        }
        let at = if turn <= self.preferred { turn - 1 } else { turn };
        while self.known.len() <= at {
            let known = &self.known;
            let is_new =
                |member: &Arc<Member>| known.iter().all(|slot| slot.member.device() != member.device());
            let member = self.more.find(is_new)?;
            self.known.push(Arc::new(Slot { member, copy: OnceCell::new() }));
        }
        Some(at)
    }
}

impl Several {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(self: Arc<Self>, number: u64) -> Result<Bytes> {
        let mut turn = 0;
        let damaged: Arc<Mutex<Vec<Arc<Member>>>> = Arc::default();
        let next = || {
            let (at, slot) = {
                let mut slots = self.slots();
                let at = slots.turn(turn)?;
                (at, slots.known[at].clone())
            };
            turn += 1;
            let patience = slot.member.hedge_after(Work::Chunk).min(STALL);
            Some(Attempt { work: self.clone().attempt(at, slot, number, damaged.clone()), patience })
        };
        let won = race(self.copies.time.as_ref(), &self.copies.budget, next).await;
        let (at, data) = won.map_err(|errors| self.why(number, errors))?;
        let from = {
            let mut slots = self.slots();
            slots.preferred = at;
            slots.known[at].member.clone()
        };
        for to in damaged.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.copies.mend(&from, &to, self.hash);
        }
        Ok(data)
    }

    fn attempt(
        self: Arc<Self>,
        at: usize,
        slot: Arc<Slot>,
        number: u64,
        damaged: Arc<Mutex<Vec<Arc<Member>>>>,
    ) -> BoxFuture<'static, Result<(usize, Bytes), Error>> {
        Box::pin(async move {
            let time = self.copies.time.as_ref();
            let watch = slot.member.watch(Work::Chunk, time);
            let result = self.read_slot(&slot, number).await;
            watch.into_iter().for_each(Watch::done);
            slot.member.heard(&result, time);
            if matches!(result, Err(Error::Corrupt { .. })) {
                damaged.lock().unwrap_or_else(PoisonError::into_inner).push(slot.member.clone());
            }
            result.map(|data| (at, data))
        })
    }

    async fn read_slot(&self, slot: &Slot, number: u64) -> Result<Bytes> {
        let copy = slot.copy.get_or_try_init(|| self.open(&slot.member)).await?;
        copy.read(&self.meta, &self.hash, number).await
    }

    /// Opens the version at another replica. What was posted since has the same body.
    async fn open(&self, member: &Member) -> Result<Copy> {
        let opened = member.replica.open(self.hash).await?.ok_or(Error::NoObject)?;
        let meta = check_version(&self.meta.path, &opened)?;
        let same = meta.chunked == self.meta.chunked
            && (meta.info.size, meta.chunk_size) == (self.meta.info.size, self.meta.chunk_size);
        if same { Ok(Copy::new(member.replica.clone(), opened)) } else { Err(Error::Superseded) }
    }

    fn why(&self, number: u64, errors: Vec<Error>) -> Error {
        let nobody = || Error::Unavailable {
            reason: format!("no replica gives chunk {number} of {}", self.meta.path),
        };
        worst(errors).unwrap_or_else(nobody)
    }
}

/// The damage that somebody saw, or what the first said that had the version; `None`: others have another one, and who had it is
/// not there.
fn worst(mut errors: Vec<Error>) -> Option<Error> {
    let damage = errors.iter().position(|e| matches!(e, Error::Corrupt { .. }));
    let had = || errors.iter().position(|e| !matches!(e, Error::Superseded | Error::NoObject));
    damage.or_else(had).map(|at| errors.swap_remove(at))
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let alone = matches!(self.0, Kind::One(_));
        f.debug_struct("Sources").field("alone", &alone).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A simulated cluster (seed 45) told the reader of a large body that a newer version exists: the device that it read from was
    /// slow and was lost, and another one, asked meanwhile, had a newer version. That is no answer to a GET.
    #[test]
    fn a_reader_is_not_told_that_others_have_another_version() {
        let gone = || Error::Unavailable { reason: "gone".to_owned() };
        let corrupt = || Error::Corrupt { what: "chunk".to_owned() };
        let said = |errors| worst(errors).map(|e| e.to_string());
        assert_eq!(said(vec![Error::Superseded, gone()]), Some(gone().to_string()));
        assert_eq!(said(vec![gone(), Error::Superseded, corrupt()]), Some(corrupt().to_string()));
        assert_eq!(said(vec![Error::Superseded, Error::NoObject]), None);
        assert_eq!(said(Vec::new()), None);
    }
}
