//! Reads of an object's newest version: which replica is asked, and what is passed over.
//!
//! Invariant: nothing older than the floor is ever answered, and "not there" only when no floor is known.
//! Invariant: a tombstone is an answer as a version is.

use std::sync::{Arc, Mutex, PoisonError};

use quarry_ring::PathHash;

use super::copies::Copies;
use super::devices::{Member, Watch};
use super::fan::missing;
use super::health::Work;
use super::objects::check_version;
use super::race::{Attempt, race};
use super::replica::{BoxFuture, Opened};
use super::{Error, ObjectPath, Result};
use crate::catalog::{ObjectMeta, Version};
use crate::clock::Timestamp;
use crate::disk::format::record::DeviceId;

/// A version that was found.
pub(crate) struct Open {
    /// Under which key it lies.
    pub(crate) hash: PathHash,
    pub(crate) meta: ObjectMeta,
    pub(crate) opened: Opened,
    pub(crate) member: Arc<Member>,
    /// Newer than the floor: to be made whole before it is served ([`Copies::assure`]), unless no floor was known.
    pub(crate) ahead: bool,
}

/// What a read found.
pub(crate) enum Found {
    /// A version, at least as new as the floor.
    Version(Box<Open>),
    /// A tombstone, newer than the floor or, without one, the newest that is known.
    Deleted(Version),
    /// Nothing, and no floor says that there must be something.
    Absent,
}

/// What a read found, and what it saw on the way.
pub(crate) struct Sight {
    pub(crate) found: Found,
    /// Devices whose copy is older than what was found, missing or damaged.
    pub(crate) stale: Vec<Arc<Member>>,
}

impl Sight {
    fn of(found: Found) -> Self {
        Self { found, stale: Vec::new() }
    }

    /// The version, if it stands.
    pub(crate) fn version(self) -> Option<Open> {
        match self.found {
            Found::Version(open) => Some(*open),
            Found::Deleted(_) | Found::Absent => None,
        }
    }
}

/// Why a replica's answer was passed over.
struct Passed {
    member: Arc<Member>,
    error: Error,
    /// It answered: its copy is stale, missing or damaged.
    mend: bool,
}

/// What one replica has.
enum Has {
    Version(Box<ObjectMeta>, Opened),
    Tombstone(Version),
}

impl Has {
    fn sequence(&self) -> u64 {
        match self {
            Self::Version(meta, _) => meta.info.timestamp.0,
            Self::Tombstone(version) => version.sequence,
        }
    }
}

impl Copies {
    /// The best version at least as new as `floor`, the time that the listing's row states.
    pub(crate) async fn open(
        self: &Arc<Self>,
        path: &ObjectPath,
        hash: PathHash,
        floor: Option<Timestamp>,
    ) -> Result<Sight> {
        if let Some(member) = self.devices().sole(&hash) {
            return self.open_sole(path, hash, member, floor).await;
        }
        let (known, floor) = match floor {
            Some(floor) => (true, floor.0),
            None => match self.newest(&hash, None).await? {
                None => return Ok(Sight::of(Found::Absent)),
                Some(version) if version.deleted => return Ok(Sight::of(Found::Deleted(version))),
                Some(version) => (false, version.sequence),
            },
        };
        let passed: Arc<Mutex<Vec<Passed>>> = Arc::default();
        let mut candidates = self.candidates_to_read(&hash);
        let needed = candidates.wanted();
        let primaries: Vec<DeviceId> = candidates.primaries().to_vec();
        let next = || {
            let member = candidates.next()?;
            let patience = member.hedge_after(Work::Look);
            Some(Attempt { work: self.look(path, hash, member, floor, passed.clone()), patience })
        };
        let won = race(self.time.as_ref(), &self.budget, next).await;
        let passed = std::mem::take(&mut *passed.lock().unwrap_or_else(PoisonError::into_inner));
        let Ok((member, has)) = won else {
            if needed == 0 {
                return Err(Error::Unavailable { reason: "no device holds this partition".to_owned() });
            }
            let others = passed.iter().map(|p| (p.member.device(), p.error.to_string()));
            return Err(missing(1, 0, others));
        };
        let stale = passed.into_iter().filter(|p| p.mend && primaries.contains(&p.member.device()));
        let stale: Vec<Arc<Member>> = stale.map(|p| p.member).collect();
        let ahead = known && has.sequence() > floor;
        let found = match has {
            Has::Tombstone(version) => Found::Deleted(version),
            Has::Version(meta, opened) => {
                if !ahead {
                    stale.iter().for_each(|to| self.mend(&member, to, hash));
                }
                Found::Version(Box::new(Open { hash, meta: *meta, opened, member, ahead }))
            }
        };
        Ok(Sight { found, stale })
    }

    async fn open_sole(
        &self,
        path: &ObjectPath,
        hash: PathHash,
        member: &Arc<Member>,
        floor: Option<Timestamp>,
    ) -> Result<Sight> {
        let floor = floor.map(|floor| floor.0);
        let older = || Error::Unavailable { reason: "the device has an older version".to_owned() };
        let Some(opened) = member.replica.open(hash).await? else {
            let Some(floor) = floor else { return Ok(Sight::of(Found::Absent)) };
            let version = member.replica.version(hash).await?.filter(|version| version.sequence >= floor);
            return version.map(|version| Sight::of(Found::Deleted(version))).ok_or_else(older);
        };
        let meta = check_version(path, &opened)?;
        let sequence = meta.info.timestamp.0;
        if floor.is_some_and(|floor| sequence < floor) {
            return Err(older());
        }
        let ahead = floor.is_some_and(|floor| sequence > floor);
        let member = member.clone();
        Ok(Sight::of(Found::Version(Box::new(Open { hash, meta, opened, member, ahead }))))
    }

    /// Asks one replica for a version at least as new as `floor`.
    fn look(
        self: &Arc<Self>,
        path: &ObjectPath,
        hash: PathHash,
        member: Arc<Member>,
        floor: u64,
        passed: Arc<Mutex<Vec<Passed>>>,
    ) -> BoxFuture<'static, Result<(Arc<Member>, Has), ()>> {
        let (copies, path) = (self.clone(), path.clone());
        Box::pin(async move {
            let watch = member.watch(Work::Look, copies.time.as_ref());
            let has = has(&path, hash, &member, floor).await;
            watch.into_iter().for_each(Watch::done);
            member.heard(&has, copies.time.as_ref());
            has.map(|has| (member.clone(), has)).map_err(|error| {
                let mend = matches!(error, Error::Corrupt { .. } | Error::Superseded | Error::NoObject);
                let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
                passed.push(Passed { member, error, mend });
            })
        })
    }
}

/// What a replica has, if it is at least as new as `floor`: [`Error::Superseded`] and [`Error::NoObject`] say that it is not.
async fn has(path: &ObjectPath, hash: PathHash, member: &Member, floor: u64) -> Result<Has> {
    if let Some(opened) = member.replica.open(hash).await? {
        let meta = check_version(path, &opened)?;
        let new = meta.info.timestamp.0 >= floor;
        return if new { Ok(Has::Version(Box::new(meta), opened)) } else { Err(Error::Superseded) };
    }
    let version = member.replica.version(hash).await?.ok_or(Error::NoObject)?;
    if version.sequence < floor {
        return Err(Error::Superseded);
    }
    if version.deleted { Ok(Has::Tombstone(version)) } else { Err(Error::NoObject) }
}
