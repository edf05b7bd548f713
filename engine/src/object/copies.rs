//! The coordinator of an object's copies: who gets a change, who is asked for a version, and what is mended on the way.
//!
//! ```text
//! change    to n primaries at once; one that is down, full or stalls is replaced by a handoff; done when a quorum is durable
//! read      of one replica, what is older than the floor passed over: primaries, then handoffs; the next one when it is slow
//! unknown   the newest among n - quorum + 1 answers is the floor
//! ```
//!
//! Invariant: a change is acknowledged when a quorum of devices has it durably, primaries and handoffs alike; what was asked beyond
//! that goes on by itself. One that was refused may have reached a minority: it may become visible later, and whole.
//! Invariant: nothing older than the floor is ever answered, and "not there" only when no floor is known.
//! Invariant: where one device alone can hold an object, nothing of this costs anything.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use quarry_ring::PathHash;

use super::devices::{Candidates, Devices, For, Member};
use super::fan::Fan;
use super::health::Budget;
use super::launch::{Time, wait};
use super::limits::{LONGEST_PAUSE, REMINDED, REMINDERS, STALL};
use super::policy::Layout;
use super::quorum::quorum;
use super::remake::{Remade, Wanted, remake};
use super::repair::Repairs;
use super::replica::{BoxFuture, Draft, Replica};
use super::store::{Options, Spawn};
use super::transfer::copy_version;
use super::{Error, ObjectPath, Result};
use crate::catalog::{self, DataId, Stamp, Version, encode_grave, policy_of};
use crate::clock::Timestamp;
use crate::disk::format::record::{DeviceId, Kind};
use crate::disk::{Class, Durability};
use crate::net::first;
use crate::sync;

/// Handoffs that a write may use, in numbers of replicas.
const WRITE_HANDOFFS: usize = 1;
/// Handoffs that a read looks at: those that a write may have used, past those that were down then.
const READ_HANDOFFS: usize = 2;

/// The coordinator of a node.
pub(crate) struct Copies {
    devices: RwLock<Arc<Devices>>,
    pub(crate) spawn: Option<Spawn>,
    pub(crate) time: Option<Time>,
    pub(crate) budget: Mutex<Budget>,
    pub(crate) repairs: Repairs,
    turn: AtomicUsize,
    /// Uploads of which devices are to be told again.
    reminders: AtomicUsize,
}

impl Copies {
    pub(crate) fn new(
        placement: Layout,
        local: &[Arc<dyn Replica>],
        remote: Vec<Arc<dyn Replica>>,
        options: Options,
    ) -> Self {
        let devices = RwLock::new(Arc::new(Devices::new(placement, local, remote, None)));
        let Options { spawn, time } = options;
        let (turn, reminders) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (budget, repairs) = (Mutex::new(Budget::new()), Repairs::default());
        Self { devices, spawn, time, budget, repairs, turn, reminders }
    }

    /// Calls from now on use this placement and these devices; those in flight keep theirs.
    pub(crate) fn place(&self, placement: Layout, local: &[Arc<dyn Replica>], remote: Vec<Arc<dyn Replica>>) {
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        *devices = Arc::new(Devices::new(placement, local, remote, Some(&devices)));
    }

    pub(crate) fn devices(&self) -> Arc<Devices> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn candidates(self: &Arc<Self>, hash: &PathHash, what: For, handoffs: usize) -> Candidates {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let candidates = self.devices().candidates(hash, what, handoffs, turn);
        self.probe(&candidates, hash);
        candidates
    }

    pub(crate) fn candidates_to_write(self: &Arc<Self>, hash: &PathHash) -> Candidates {
        self.candidates(hash, For::Writing, WRITE_HANDOFFS)
    }

    pub(crate) fn candidates_to_read(self: &Arc<Self>, hash: &PathHash) -> Candidates {
        self.candidates(hash, For::Reading, READ_HANDOFFS)
    }

    /// Looks whether devices that are down are back, at nobody's cost.
    fn probe(self: &Arc<Self>, candidates: &Candidates, hash: &PathHash) {
        for member in candidates.probes(self.time.as_ref()) {
            let Some(spawn) = &self.spawn else {
                // Somebody must look; it is the next caller.
                member.known().answered();
                continue;
            };
            let (copies, asked) = (self.clone(), member.replica.version(*hash));
            spawn(Box::pin(async move { member.heard(&asked.await, copies.time.as_ref()) }));
        }
    }

    /// Makes an object's record durable on a quorum of its devices. `row` rides along when the one device that has all is that of
    /// the row: true then.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        hash: &PathHash,
        record: Draft,
        row: Option<(DeviceId, Draft)>,
        class: Class,
    ) -> Result<bool> {
        let devices = self.devices();
        if catalog::has_fragment(&record.meta) && !record.deleted {
            self.put_fragments(hash, &record, class).await?;
            return Ok(false);
        }
        let Some(member) = devices.sole(hash) else {
            self.put(hash, record, class).await?;
            return Ok(false);
        };
        let row = row.filter(|(home, _)| *home == member.device());
        let rides = row.is_some();
        let mut drafts = Vec::with_capacity(2);
        drafts.push(record);
        drafts.extend(row.map(|(_, row)| row));
        member.replica.append(drafts, Durability::Durable, class).await?;
        Ok(rides)
    }

    /// Makes a record durable on a quorum of an object's devices.
    async fn put(self: &Arc<Self>, hash: &PathHash, record: Draft, class: Class) -> Result<()> {
        let mut candidates = self.candidates_to_write(hash);
        let wanted = candidates.wanted();
        let next = move || {
            let member = candidates.next()?;
            let work = member.replica.append(vec![record.clone()], Durability::Durable, class);
            Some((member, work))
        };
        let mut fan = self.fan(wanted, quorum(wanted), Box::new(next))?;
        fan.reach().await?;
        self.finish(fan, |_| {});
        Ok(())
    }

    pub(crate) fn fan<T>(&self, wanted: usize, needed: usize, next: super::fan::Next<T>) -> Result<Fan<T>> {
        if wanted == 0 {
            return Err(Error::Unavailable { reason: "no device holds this partition".to_owned() });
        }
        Ok(Fan::new(wanted, needed, self.time.clone(), next))
    }

    /// Lets what was asked beyond the quorum go on by itself, and then looks at what came of it.
    pub(crate) fn finish<T: Send + 'static>(
        &self,
        mut fan: Fan<T>,
        then: impl FnOnce(&Fan<T>) + Send + 'static,
    ) {
        match &self.spawn {
            Some(spawn) if !fan.is_over() => spawn(Box::pin(async move {
                fan.rest().await;
                then(&fan);
            })),
            _ => then(&fan),
        }
    }

    /// The newest version or tombstone among so many answers that every acknowledged change is among them (unless handoffs took
    /// it: then the listing's row alone knows); at least as new as `floor`, the time that the row states.
    pub(crate) async fn newest(
        self: &Arc<Self>,
        hash: &PathHash,
        floor: Option<Timestamp>,
    ) -> Result<Option<Version>> {
        if let Some(member) = self.devices().sole(hash) {
            let version = member.replica.version(*hash).await?;
            return new_enough(version, floor);
        }
        let versions = self.versions(hash, |wanted| wanted - quorum(wanted) + 1).await?;
        let newest =
            versions.into_iter().filter_map(|(_, version)| version).max_by_key(|v| (v.sequence, v.deleted));
        if let Ok(found) = new_enough(newest, floor) {
            return Ok(found);
        }
        // One device that has it is enough: that every other one is asked too is the exception.
        self.holder(hash, floor.unwrap_or_default()).await.map(|(_, version)| Some(version))
    }

    /// Any device that has a version of this time or a newer one, wherever it may lie.
    async fn holder(self: &Arc<Self>, hash: &PathHash, at: Timestamp) -> Result<(Arc<Member>, Version)> {
        let mut candidates = self.candidates_to_read(hash);
        let (hash, wanted) = (*hash, candidates.wanted());
        let next = move || {
            let member = candidates.next()?;
            Some((member.clone(), holds(member, hash, at)))
        };
        let mut fan = self.fan(wanted, 1, Box::new(next))?;
        fan.reach().await?;
        fan.into_good().into_iter().next().ok_or(Error::NoObject)
    }

    async fn versions(
        self: &Arc<Self>,
        hash: &PathHash,
        needed: impl FnOnce(usize) -> usize,
    ) -> Result<Vec<(Arc<Member>, Option<Version>)>> {
        let mut candidates = self.candidates_to_read(hash);
        let (hash, wanted) = (*hash, candidates.wanted());
        let next = move || {
            let member = candidates.next()?;
            let work = member.replica.version(hash);
            Some((member, work))
        };
        let needed = if wanted == 0 { 0 } else { needed(wanted) };
        let mut fan = self.fan(wanted.min(needed), needed, Box::new(next))?;
        fan.reach().await?;
        Ok(fan.into_good())
    }

    /// Copies the version that `from` has to `to`, by and by.
    pub(crate) fn mend(self: &Arc<Self>, from: &Arc<Member>, to: &Arc<Member>, hash: PathHash) {
        let Some(spawn) = &self.spawn else { return };
        let devices = self.devices();
        let Some(code) = devices.policies().code(policy_of(&hash)) else {
            return self.repairs.start(spawn, from.clone(), to.clone(), hash);
        };
        let (primaries, sources) = self.sources(&hash, code);
        self.repairs.remake(spawn, primaries, sources, to.clone(), hash);
    }

    /// Has what a device cannot read of a version written anew, by and by, from other devices.
    pub(crate) fn heal(self: &Arc<Self>, device: DeviceId, hash: PathHash) {
        let devices = self.devices();
        let Some(to) = devices.member(device).filter(|_| devices.sole(&hash).is_none()) else { return };
        let from = self.candidates_to_read(&hash).find(|member| member.device() != device);
        if let Some(from) = from {
            self.mend(&from, to, hash);
        }
    }

    /// The primaries of a version in fragments, and where its fragments are looked for.
    fn sources(
        self: &Arc<Self>,
        hash: &PathHash,
        code: super::policy::Code,
    ) -> (Vec<DeviceId>, Vec<Arc<dyn Replica>>) {
        let candidates = self.candidates_to_read(hash);
        let primaries = candidates.primaries().to_vec();
        // As many handoffs as there can be fragments of devices that were down.
        let sources = candidates.take(2 * code.n()).map(|member| member.replica.clone());
        (primaries, sources.collect())
    }

    /// Has an upload given up by these devices; those that are down are told again when they are back.
    pub(crate) fn abandon(self: &Arc<Self>, members: &[Arc<Member>], id: DataId, sequence: u64) {
        members.iter().for_each(|member| member.replica.abandon(id, sequence));
        let (Some(spawn), Some(time)) = (&self.spawn, &self.time) else { return };
        for member in members.iter().filter(|member| member.known().down_since().is_some()) {
            if self.reminders.fetch_add(1, Ordering::Relaxed) >= REMINDERS {
                self.reminders.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            let (copies, member, time) = (self.clone(), member.clone(), time.clone());
            spawn(Box::pin(async move {
                for _ in 0..REMINDED {
                    (time.timer)(LONGEST_PAUSE).await;
                    let answer = member.replica.version(PathHash::default()).await;
                    member.heard(&answer, Some(&time));
                    if answer.is_ok() {
                        member.replica.abandon(id, sequence);
                        break;
                    }
                }
                copies.reminders.fetch_sub(1, Ordering::Relaxed);
            }));
        }
    }

    /// Makes sure that a quorum of an object's devices has the version, or tombstone, of this time or a newer one.
    pub(crate) async fn assure(self: &Arc<Self>, hash: PathHash, at: Timestamp) -> Result<()> {
        if self.devices().sole(&hash).is_some() {
            return Ok(());
        }
        let mut candidates = self.candidates_to_write(&hash);
        let wanted = candidates.wanted();
        let primaries = candidates.primaries().to_vec();
        let next = move || {
            let member = candidates.next()?;
            Some((member.clone(), holds(member, hash, at)))
        };
        let code = self.devices().policies().code(policy_of(&hash));
        let needed = code.map_or(quorum(wanted), super::policy::Code::quorum);
        let mut fan = self.fan(wanted, needed, Box::new(next))?;
        let Err(error) = fan.reach().await else { return Ok(()) };
        // It is lost when too few are left who may have it; who has it, has perhaps not answered yet.
        let _in_time = first(Box::pin(fan.rest()), wait(self.time.as_ref(), STALL)).await;
        let (mut holders, mut lacking) = (fan.good().to_vec(), fan.refused(|e| matches!(e, Error::NoObject)));
        // Those that were given up may have answered all the same.
        let Some(missing) = needed.checked_sub(holders.len()).filter(|missing| *missing > 0) else {
            return Ok(());
        };
        if holders.is_empty() {
            // Nobody who gets something now, but perhaps a device that got it under an earlier placement.
            let Ok(elsewhere) = self.holder(&hash, at).await else { return Err(error) };
            holders.push(elsewhere);
        }
        let Some((_, version)) = holders.first().cloned() else { return Err(error) };
        let from: Arc<[Arc<Member>]> = holders.into_iter().map(|(member, _)| member).collect();
        lacking.sort_by_key(|member| !primaries.contains(&member.device()));
        let mut lacking = lacking.into_iter();
        if let Some(code) = code.filter(|_| !version.deleted) {
            let to: Vec<Arc<Member>> = lacking.collect();
            return self.complete(hash, code, to, missing).await;
        }
        let next = move || {
            let to = lacking.next()?;
            let work = copy_or_bury(from.clone(), to.clone(), hash, version);
            Some((to, work))
        };
        // However long a copy takes: each of its calls ends by its own deadline.
        Fan::new(missing, missing, None, Box::new(next)).reach().await
    }
}

impl Copies {
    /// Makes fragments until so many devices that lacked the version have it.
    async fn complete(
        self: &Arc<Self>,
        hash: PathHash,
        code: super::policy::Code,
        lacking: Vec<Arc<Member>>,
        mut missing: usize,
    ) -> Result<()> {
        let (places, sources) = self.sources(&hash, code);
        for to in lacking {
            let wanted = Wanted { hash, places: &places, anew: false };
            if matches!(
                remake(&sources, to.replica.as_ref(), wanted).await,
                Ok(Remade::Bytes(_) | Remade::Had)
            ) {
                missing -= 1;
            }
            if missing == 0 {
                return Ok(());
            }
        }
        Err(Error::Unavailable { reason: format!("{missing} more devices must have the newest version") })
    }
}

/// Nothing older than the floor is an answer, and neither is nothing at all.
fn new_enough(version: Option<Version>, floor: Option<Timestamp>) -> Result<Option<Version>> {
    let Some(floor) = floor else { return Ok(version) };
    let new = version.filter(|version| version.sequence >= floor.0);
    let older = || Error::Unavailable { reason: "only older versions can be reached".to_owned() };
    new.ok_or_else(older).map(Some)
}

/// The version that a device has, if it is at least that new.
fn holds(member: Arc<Member>, hash: PathHash, at: Timestamp) -> BoxFuture<'static, Result<Version>> {
    Box::pin(async move {
        let version = member.replica.version(hash).await?;
        version.filter(|version| version.sequence >= at.0).ok_or(Error::NoObject)
    })
}

/// Copies a tombstone as it is, its intent included.
async fn copy_tombstone(from: &dyn Replica, to: &dyn Replica, hash: PathHash, sequence: u64) -> Result<()> {
    let stamp = Stamp { hash, sequence, deleted: true };
    match sync::copy_tombstone(from, to, stamp).await {
        Ok(sync::Copied::Bytes(_)) => Ok(()),
        Ok(_) => Err(Error::NoObject),
        Err(error) => Err(Error::Unavailable { reason: error.to_string() }),
    }
}

/// Puts on `to` what one of `from` has.
fn copy_or_bury(
    from: Arc<[Arc<Member>]>,
    to: Arc<Member>,
    hash: PathHash,
    version: Version,
) -> BoxFuture<'static, Result<()>> {
    Box::pin(async move {
        let mut result = Err(Error::NoObject);
        for from in from.iter() {
            let (from, to) = (from.replica.as_ref(), to.replica.as_ref());
            result = match version.deleted {
                true => copy_tombstone(from, to, hash, version.sequence).await,
                false => copy_version(from, to, hash).await.map(drop),
            };
            if result.is_ok() {
                break;
            }
        }
        result
    })
}

/// The record that deletes an object.
pub(crate) fn tombstone(path: &ObjectPath, hash: PathHash, at: Timestamp) -> Draft {
    grave(path, hash, at, None)
}

/// The record that deletes an object; `intent`: the id of a container whose listing is yet to be told.
pub(crate) fn grave(path: &ObjectPath, hash: PathHash, at: Timestamp, intent: Option<u64>) -> Draft {
    Draft {
        kind: Kind::Object,
        deleted: true,
        sequence: at.0,
        number: 0,
        key: hash.to_vec(),
        meta: encode_grave(path, intent),
        data: bytes::Bytes::new(),
    }
}
