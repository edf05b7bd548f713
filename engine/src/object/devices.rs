//! The devices that a node can reach, and whom a call asks, in which order.
//!
//! Invariant: a map of devices is fixed; another takes its place whole, and calls in flight keep theirs.
//! Invariant: what is known of a device's health outlives the map that it was learned with.
//! Invariant: candidates come once each: primaries that are up, then handoffs that are up, then those that are down; the ring
//! is asked for handoffs only when the primaries do not suffice.
//! Invariant: a read looks also where a write may have gone that knew an earlier placement: at devices that are being emptied, and at
//! the primaries of the last placements. They come behind the handoffs, and before what is down.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quarry_ring::PathHash;

use super::health::{Known, Standing, Work, order};
use super::launch::Time;
use super::limits::STALL;
use super::placement::Placement;
use super::policy::{Layout, Policies};
use super::replica::Replica;
use super::{Error, Result};
use crate::disk::format::record::DeviceId;

/// A device that can be reached.
pub(crate) struct Member {
    pub(crate) replica: Arc<dyn Replica>,
    local: bool,
    known: Arc<Mutex<Known>>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Member").field(&self.device()).finish()
    }
}

impl Member {
    pub(crate) fn device(&self) -> DeviceId {
        self.replica.device()
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what came of a call. An error that the device gave on good grounds says that it is well.
    pub(crate) fn heard<T>(&self, result: &Result<T>, time: Option<&Time>) {
        match result {
            Err(Error::Unavailable { .. }) => self.failed(time),
            _ => self.known().answered(),
        }
    }

    /// It failed, or does not answer. Without a time nobody would look again: then nothing is noted.
    pub(crate) fn failed(&self, time: Option<&Time>) {
        if let Some(time) = time {
            self.known().failed((time.now)());
        }
    }

    /// Measures a read until it is dropped, done or no longer wanted.
    pub(crate) fn watch(self: &Arc<Self>, work: Work, time: Option<&Time>) -> Option<Watch> {
        let time = time?.clone();
        Some(Watch { member: self.clone(), work, begun: (time.now)(), time, done: false })
    }

    fn standing(&self) -> Standing {
        let known = self.known();
        Standing { local: self.local, down: known.down_since().is_some(), mean: known.mean() }
    }

    /// When a second replica may be asked beside this one.
    pub(crate) fn hedge_after(&self, work: Work) -> Duration {
        self.known().hedge_after(work)
    }
}

/// A read that is being measured.
pub(crate) struct Watch {
    member: Arc<Member>,
    work: Work,
    time: Time,
    begun: Duration,
    done: bool,
}

impl Watch {
    /// It ended.
    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let now = (self.time.now)();
        let took = now.saturating_sub(self.begun);
        let mut known = self.member.known();
        match self.done {
            true => known.took(self.work, took),
            false => known.took_longer(self.work, took),
        }
        if !self.done && took >= STALL {
            known.failed(now);
        }
    }
}

/// Placements that are remembered.
const EARLIER: usize = 4;

/// What candidates are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// They get something.
    Writing,
    /// They are asked for what they have.
    Reading,
}

/// Where objects lie, and the way to each device.
pub(crate) struct Devices {
    placement: Layout,
    /// Those before it, the last one first.
    earlier: Vec<Layout>,
    members: HashMap<DeviceId, Arc<Member>>,
}

impl Devices {
    /// Those of this node and of others; `before` is the map that this one replaces.
    pub(crate) fn new(
        placement: Layout,
        local: &[Arc<dyn Replica>],
        remote: Vec<Arc<dyn Replica>>,
        before: Option<&Self>,
    ) -> Self {
        let local = local.iter().map(|replica| (replica.clone(), true));
        let all = local.chain(remote.into_iter().map(|replica| (replica, false)));
        let member = |(replica, local): (Arc<dyn Replica>, bool)| {
            let device = replica.device();
            let known = before.and_then(|before| before.members.get(&device)).map(|old| old.known.clone());
            (device, Arc::new(Member { replica, local, known: known.unwrap_or_default() }))
        };
        let mut members = HashMap::new();
        for (device, member) in all.map(member) {
            // A device that is here is never asked over the network.
            members.entry(device).or_insert(member);
        }
        let earlier =
            |before: &Self| [&before.placement].into_iter().chain(&before.earlier).cloned().collect();
        let mut earlier: Vec<Layout> = before.map(earlier).unwrap_or_default();
        earlier.truncate(EARLIER);
        Self { placement, earlier, members }
    }

    pub(crate) fn policies(&self) -> &Arc<Policies> {
        &self.placement.policies
    }

    pub(crate) fn member(&self, device: DeviceId) -> Option<&Arc<Member>> {
        self.members.get(&device)
    }

    /// The only device that an object can be on, when there is but one.
    pub(crate) fn sole(&self, hash: &PathHash) -> Option<&Arc<Member>> {
        self.member(self.placement.sole(hash)?)
    }

    /// Where else something may lie that was written under an earlier placement.
    fn elsewhere(&self, hash: &PathHash) -> Vec<DeviceId> {
        let earlier = self.earlier.iter().flat_map(|placement| placement.primaries(hash));
        self.placement.leaving(hash).chain(earlier).collect()
    }

    /// Whom to ask about an object: its primaries, then no more handoffs than `handoffs` times as many. `turn` spreads load.
    pub(crate) fn candidates(
        self: &Arc<Self>,
        hash: &PathHash,
        what: For,
        handoffs: usize,
        turn: usize,
    ) -> Candidates {
        let primaries = self.placement.primaries(hash);
        let wanted = primaries.len();
        let members: Vec<&Arc<Member>> = primaries.iter().filter_map(|id| self.member(*id)).collect();
        let standings: Vec<Standing> = members.iter().map(|member| member.standing()).collect();
        let (mut up, mut down) = (VecDeque::with_capacity(wanted), VecDeque::new());
        for at in order(&standings, turn) {
            let to = if standings[at].down { &mut down } else { &mut up };
            to.push_back(members[at].clone());
        }
        let handoffs = Some(handoffs * wanted);
        Candidates { devices: self.clone(), hash: *hash, primaries, up, down, what, handoffs }
    }
}

/// Whom to ask, best first.
pub(crate) struct Candidates {
    devices: Arc<Devices>,
    hash: PathHash,
    primaries: Vec<DeviceId>,
    up: VecDeque<Arc<Member>>,
    down: VecDeque<Arc<Member>>,
    what: For,
    /// How many handoffs may be asked; `None` when they are among the others.
    handoffs: Option<usize>,
}

impl Candidates {
    /// Replicas that there should be, whether they can be reached or not.
    pub(crate) fn wanted(&self) -> usize {
        self.primaries.len()
    }

    pub(crate) fn primaries(&self) -> &[DeviceId] {
        &self.primaries
    }

    /// The primaries by place, those that can be reached.
    pub(crate) fn places(&self) -> Vec<Option<Arc<Member>>> {
        self.primaries.iter().map(|device| self.devices.member(*device).cloned()).collect()
    }

    /// The first `most` primaries by place that are up, taken out.
    pub(crate) fn places_up(&mut self, most: usize) -> Vec<Arc<Member>> {
        let first: Vec<DeviceId> = self.primaries.iter().take(most).copied().collect();
        let (mut taken, rest): (Vec<_>, Vec<_>) =
            self.up.drain(..).partition(|member| first.contains(&member.device()));
        self.up.extend(rest);
        taken.sort_by_key(|member| first.iter().position(|device| *device == member.device()));
        taken
    }

    /// Devices to look at, if it is time: those that are down and were left alone for a while.
    pub(crate) fn probes(&self, time: Option<&Time>) -> Vec<Arc<Member>> {
        let Some(now) = time.filter(|_| !self.down.is_empty()).map(|time| (time.now)()) else {
            return Vec::new();
        };
        self.down.iter().filter(|member| member.known().probe_due(now)).cloned().collect()
    }

    /// Those that are up come before any that is down, and so count first.
    fn find_handoffs(&mut self, most: usize) {
        let devices = self.devices.clone();
        let mut down = Vec::new();
        // Far enough for as many dead as there may be asked, and no walk over a large ring.
        for device in devices.placement.handoffs(&self.hash).take(2 * most) {
            let Some(member) = devices.member(device) else { continue };
            if member.standing().down {
                down.push(member.clone());
            } else if self.up.len() < most {
                self.up.push_back(member.clone());
            }
        }
        down.truncate(most - self.up.len());
        if self.what == For::Reading {
            let known = self.up.iter().chain(&down).map(|member| member.device());
            let mut seen: HashSet<DeviceId> = self.primaries.iter().copied().chain(known).collect();
            let elsewhere = devices.elsewhere(&self.hash).into_iter().filter(|device| seen.insert(*device));
            let (away, here): (Vec<_>, Vec<_>) = elsewhere
                .filter_map(|device| devices.member(device).cloned())
                .partition(|member| member.standing().down);
            self.up.extend(here);
            down.extend(away);
        }
        self.down.extend(down);
    }
}

impl Iterator for Candidates {
    type Item = Arc<Member>;

    fn next(&mut self) -> Option<Arc<Member>> {
        if self.up.is_empty()
            && let Some(most) = self.handoffs.take()
        {
            self.find_handoffs(most);
        }
        self.up.pop_front().or_else(|| self.down.pop_front())
    }
}
