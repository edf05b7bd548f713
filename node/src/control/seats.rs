//! The index groups that this node votes in: opened when it becomes a voter, closed and given up when it is none any more.
//!
//! Invariant: what a disk has of a group is given up only when the group's leader said that this node is no member, after this
//! node had stopped to take part in it.
//! A group whose lines were taken back is left without asking: nobody needs its word any more.
//! Invariant: a group is on one disk of a node at a time, and stays there for as long as the node is a member. Where two have it, as one
//! came back that had been taken out, its row says on which it is; it is not opened before that is known, and the others give it up.
//! Invariant: a group whose seat here is on a disk that is missing is opened on no other: what this node has voted in it is on that disk, and a
//! voter that forgets its votes could undo what was acknowledged. The seat stays empty until the disk is back, or the row names another.
//! Invariant: a group that was made here by the log of its parent is opened on the parent's disk at once; any other child only when
//! nothing here is about to make it ([`super::children`]).
//!
//! What may go wrong while a disk is missing: one that came back at the same time has an older copy of a group that is on the missing one. So a
//! node that misses a disk believes no copy before it knows the group's row, just as if two disks had it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quarry_engine::clock::Clock;
use quarry_engine::consensus::{self, Group, GroupError, GroupOptions, Groups, Settings};
use quarry_engine::disk::DiskHandle;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{
    Code, ConsensusAnswer, ConsensusCall, Failure, MonotonicClock, NodeId, Request, Response, Transport,
};
use quarry_engine::object::names::{self, NamesService};
use quarry_engine::object::{Options, Voter};
use tokio::sync::{Notify, watch};

use super::children::{self, Parent};
use super::doors::Doors;
use super::groups::{CONTROL, Table};
use super::runtime::Tokio;
use super::seating::{self, Seat};
use super::state::State;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a node may take to say who the members of a group are.
const WITHIN: Duration = Duration::from_secs(2);

/// The seats of this node; clones share everything.
#[derive(Clone)]
pub(crate) struct Seats {
    shared: Arc<Shared>,
}

struct Shared {
    disks: Vec<DiskHandle>,
    net: Arc<dyn Transport>,
    groups: Groups,
    names: names::Seats,
    doors: Doors,
    clock: Arc<Clock>,
    since: MonotonicClock,
    options: Options,
    runtime: Arc<Tokio>,
    voters: Mutex<BTreeMap<u32, Arc<Voter>>>,
    /// A disk of this node was missing at the start.
    misses: bool,
    /// Groups of which it is not said which disk has what this node last voted: more than one had them at the start, or one that is
    /// missing may have them.
    doubtful: Mutex<BTreeSet<u32>>,
    /// Held while a group is opened or given up: there is one voter of a group at a time.
    opening: tokio::sync::Mutex<()>,
    /// A group was made here.
    made: Arc<Notify>,
}

impl std::fmt::Debug for Seats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seats").field("groups", &self.shared.groups).finish_non_exhaustive()
    }
}

/// What seats are made of.
pub(crate) struct Parts {
    pub(crate) disks: Vec<DiskHandle>,
    /// This node has a disk that is not among these.
    pub(crate) misses: bool,
    pub(crate) net: Arc<dyn Transport>,
    pub(crate) groups: Groups,
    pub(crate) clock: Arc<Clock>,
    pub(crate) since: MonotonicClock,
    pub(crate) options: Options,
    pub(crate) runtime: Arc<Tokio>,
}

impl Seats {
    /// None open yet.
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { disks, misses, net, groups, clock, since, options, runtime } = parts;
        let shared = Shared {
            disks,
            misses,
            net,
            groups,
            names: names::Seats::default(),
            doors: Doors::default(),
            clock,
            since,
            options,
            runtime,
            voters: Mutex::default(),
            doubtful: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            made: Arc::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// This node's voter of a group.
    pub(crate) fn voter(&self, group: u32) -> Option<Arc<Voter>> {
        self.shared.voters.lock().unwrap_or_else(PoisonError::into_inner).get(&group).cloned()
    }

    /// What answers others about names.
    pub(crate) fn names(&self) -> names::Seats {
        self.shared.names.clone()
    }

    /// The index groups that are open here.
    pub(crate) fn open_groups(&self) -> Vec<Group> {
        self.shared.groups.all().into_iter().filter(|group| group.id() != CONTROL).collect()
    }

    /// Makes the index groups of a new cluster on this node's disks, those that are not there.
    pub(crate) async fn found(&self, count: u32, above: u64) -> Result<(), GroupError> {
        let mut known = BTreeSet::new();
        for disk in &self.shared.disks {
            known.extend(consensus::held(disk).await?);
        }
        let disks = self.shared.disks.iter().cycle();
        for (group, disk) in (1..=count).zip(disks).filter(|(group, _)| !known.contains(group)) {
            Group::found(disk, group, BTreeSet::from([self.shared.net.local()]), above).await?;
        }
        Ok(())
    }

    /// Opens what the disks have. One that cannot be opened is left out: the others of its group go on without this node. So is one that
    /// two disks have, or that a missing one may have: what the older of them has promised, the newer has perhaps promised otherwise.
    pub(crate) async fn open_held(&self) -> Result<(), GroupError> {
        let (mut held, mut count) = (Vec::new(), BTreeMap::<u32, usize>::new());
        for disk in &self.shared.disks {
            let mut groups = consensus::held(disk).await?;
            groups.retain(|group| *group != CONTROL);
            groups.iter().for_each(|group| *count.entry(*group).or_default() += 1);
            held.push((disk, groups));
        }
        for group in count.iter().filter(|(_, disks)| **disks > 1).map(|(group, _)| group) {
            tracing::warn!(
                group,
                "more than one disk has this index group; it is opened when its row is known"
            );
        }
        let is_doubtful = |disks: usize| disks > 1 || self.shared.misses;
        let doubtful: BTreeSet<u32> =
            count.into_iter().filter(|(_, disks)| is_doubtful(*disks)).map(|(group, _)| group).collect();
        for (disk, groups) in held {
            for group in groups.into_iter().filter(|group| !doubtful.contains(group)) {
                if self.shared.groups.over().contains(&group) {
                    continue;
                }
                if let Err(error) = self.shared.open(group, disk).await {
                    tracing::error!(group, disk = %disk.device(), %error, "open index group");
                }
            }
            self.shared.sweep(disk.clone());
        }
        *self.shared.doubtful() = doubtful;
        Ok(())
    }

    /// Follows the cluster's state for as long as it is polled.
    pub(crate) async fn run(self, mut state: watch::Receiver<Arc<State>>) {
        let mut pause = tokio::time::interval(PAUSE);
        pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut said = BTreeSet::new();
        loop {
            tokio::select! {
                _ = pause.tick() => {}
                Ok(()) = state.changed() => {}
            }
            let state = Arc::clone(&state.borrow_and_update());
            self.shared.doors.look(seating::wanted(&state));
            self.step(&state, &mut said).await;
        }
    }

    /// Opens groups as they are made here, for as long as it is polled.
    pub(crate) async fn open_made(self) {
        let shared = &self.shared;
        let mut known = BTreeSet::new();
        loop {
            for parent in shared.groups.all() {
                let made = parent.made().borrow().clone();
                for child in made.into_iter().filter(|child| known.insert(*child)) {
                    match shared.open(child, parent.disk()).await {
                        Ok(()) => drop(tokio::spawn(lead(self.clone(), parent.clone(), child))),
                        Err(error) => tracing::error!(group = child, %error, "open index group"),
                    }
                }
            }
            shared.made.notified().await;
        }
    }

    /// Opens and leaves what the state says. `said`: groups whose trouble was told.
    async fn step(&self, state: &State, said: &mut BTreeSet<u32>) {
        let shared = &self.shared;
        let local = shared.net.local();
        for group in state.over.union(&shared.groups.over()) {
            if let Err(error) = shared.end(*group).await {
                tracing::warn!(group, %error, "leave an index group that is over; it is tried again");
            }
        }
        for (group, row) in &state.groups {
            let done = match (row.iter().find(|seat| seat.node == local), shared.groups.get(*group)) {
                (Some(seat), None) => shared.join(state, *group, seat).await,
                (None, Some(open)) => shared.leave(&open, row).await,
                (None, None) if shared.doubtful().contains(group) => shared.leave_all(*group, row).await,
                (Some(_), Some(open)) => shared.forget_others(*group, open.disk().device()).await,
                (None, None) => Ok(()),
            };
            match done {
                Ok(()) => {
                    said.remove(group);
                }
                Err(error) if said.insert(*group) => {
                    tracing::warn!(group, %error, "take part in index group; it is tried again");
                }
                Err(_) => {}
            }
        }
    }
}

impl Shared {
    async fn open(&self, number: u32, disk: &DiskHandle) -> Result<(), GroupError> {
        let _alone = self.opening.lock().await;
        self.open_alone(number, disk).await
    }

    /// To be called by whoever holds `opening`.
    async fn open_alone(&self, number: u32, disk: &DiskHandle) -> Result<(), GroupError> {
        if self.groups.get(number).is_some() {
            return Ok(());
        }
        let runtime = Arc::<Tokio>::clone(&self.runtime);
        let (net, settings) = (Arc::clone(&self.net), Settings::default());
        let options = GroupOptions { disk: disk.clone(), net, settings, runtime };
        let group = self.groups.open(number, options).await?;
        let (mut made, told) = (group.made(), Arc::clone(&self.made));
        drop(tokio::spawn(async move {
            // Ends when the group is closed.
            loop {
                told.notify_one();
                if made.changed().await.is_err() {
                    return;
                }
            }
        }));
        let voter = Arc::new(Voter::closed(group, Arc::clone(&self.clock)));
        self.doors.take(number, Arc::clone(&voter));
        self.voters.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::clone(&voter));
        let since = Arc::clone(&self.since);
        self.names.take(NamesService::new(number, voter, Arc::clone(&self.clock), &self.options, since));
        Ok(())
    }

    async fn join(&self, state: &State, group: u32, seat: &Seat) -> Result<(), GroupError> {
        let holders = self.holders(group).await?;
        // What a disk has of it counts for more than the row, unless others may have something later.
        let disk = match holders[..] {
            [] if !self.may_open(state, group) => return Ok(()),
            [] => {
                let device = if self.lacks_disks() { self.seat_for_sure(group)? } else { seat.device };
                let why = || format!("disk {device}, on which this node's seat is, is not here");
                self.disk(device).ok_or_else(|| GroupError::Unavailable(why()))?
            }
            [one] if !self.doubtful().contains(&group) => one,
            ref several => {
                let device = self.seat_for_sure(group)?;
                let newest = several.iter().find(|disk| disk.device() == device).copied();
                newest.ok_or_else(|| {
                    let why = format!(
                        "none of the disks that have it is disk {device}, on which this node's seat is"
                    );
                    GroupError::Unavailable(why)
                })?
            }
        };
        self.open(group, disk).await?;
        tracing::info!(group, disk = %disk.device(), "this node joins an index group");
        self.forget_others(group, disk.device()).await
    }

    fn doubtful(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self, device: DeviceId) -> Option<&DiskHandle> {
        self.disks.iter().find(|disk| disk.device() == device)
    }

    /// A disk of this node may have what is on none that serves.
    fn lacks_disks(&self) -> bool {
        self.misses || self.disks.iter().any(|disk| disk.failure().is_some())
    }

    /// The disks that have a group, of those that serve: one that failed since the start is as good as missing, and says nothing any more.
    async fn holders(&self, group: u32) -> Result<Vec<&DiskHandle>, GroupError> {
        let mut holders = Vec::new();
        for disk in self.disks.iter().filter(|disk| disk.failure().is_none()) {
            if consensus::held(disk).await?.contains(&group) {
                holders.push(disk);
            }
        }
        Ok(holders)
    }

    /// Where the seat of this node is, by all that this node ever acted by: it joined on another disk by a row that was in its log of the
    /// control group, but what was applied of that log may have been forgotten when its power failed.
    fn seat_for_sure(&self, group: u32) -> Result<DeviceId, GroupError> {
        let not_yet =
            |why: &str| GroupError::Unavailable(format!("which disk has it is not sure yet: {why}"));
        let control = self.groups.get(CONTROL).ok_or_else(|| not_yet("the control group is not here"))?;
        let status = control.status();
        if status.leader.is_none() || status.applied != status.last {
            return Err(not_yet("the cluster's state is not here yet"));
        }
        let state = Table::read(&control).map_err(|e| not_yet(&e.to_string()))?.state();
        let state = state.map_err(|e| not_yet(&e.to_string()))?;
        let local = self.net.local();
        let row = state.groups.get(&group).and_then(|row| row.iter().find(|seat| seat.node == local));
        row.map(|seat| seat.device).ok_or_else(|| not_yet("it has no seat here"))
    }

    /// Gives up what other disks have of a doubtful group that is open on this one.
    async fn forget_others(&self, group: u32, device: DeviceId) -> Result<(), GroupError> {
        if !self.doubtful().contains(&group) {
            return Ok(());
        }
        for old in self.holders(group).await?.into_iter().filter(|disk| disk.device() != device) {
            self.groups.forget(group, old).await?;
            tracing::warn!(group, disk = %old.device(), "gave up what a disk had of an index group from before");
            self.sweep(old.clone());
        }
        self.doubtful().remove(&group);
        Ok(())
    }

    /// Leaves a doubtful group, which is open on no disk, if its leader says that this node is no member.
    async fn leave_all(&self, group: u32, row: &[Seat]) -> Result<(), GroupError> {
        let asked = row.iter().map(|seat| seat.node).collect();
        let local = self.net.local();
        if members(&*self.net, group, &asked).await.is_none_or(|all| all.contains(&local)) {
            return Ok(());
        }
        self.give_up_all(group).await
    }

    async fn give_up_all(&self, group: u32) -> Result<(), GroupError> {
        let _alone = self.opening.lock().await;
        for disk in self.holders(group).await? {
            self.groups.forget(group, disk).await?;
            tracing::info!(group, disk = %disk.device(), "this node has left an index group");
            self.sweep(disk.clone());
        }
        self.doubtful().remove(&group);
        Ok(())
    }

    /// Whether a group of which this node has nothing may be opened: nothing here is about to make it.
    fn may_open(&self, state: &State, group: u32) -> bool {
        let lineage = children::lineage(state, group);
        children::may_open(&lineage, |child, parent| self.parent(state, child, parent))
    }

    /// What this node has of the parent of a child.
    fn parent(&self, state: &State, child: u32, parent: u32) -> Parent {
        let local = self.net.local();
        let seated =
            || state.groups.get(&parent).is_some_and(|row| row.iter().any(|seat| seat.node == local));
        match self.groups.get(parent) {
            Some(open) => Parent::Here { gave: open.given().iter().any(|given| given.group == child) },
            None if seated() => Parent::Coming,
            None => Parent::Elsewhere,
        }
    }

    /// Leaves a group, if its leader says that this node is no member any more.
    async fn leave(&self, open: &Group, row: &[Seat]) -> Result<(), GroupError> {
        let (group, disk, local) = (open.id(), open.disk().clone(), self.net.local());
        let asked = row.iter().map(|seat| seat.node).collect();
        let gone = async || members(&*self.net, group, &asked).await.is_some_and(|all| !all.contains(&local));
        if !gone().await {
            return Ok(());
        }
        let _alone = self.opening.lock().await;
        self.names.leave(group);
        self.doors.leave(group);
        self.voters.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
        self.groups.close(group).await?;
        // Asked again: what this node has promised since the first answer, it has promised as a member.
        if !gone().await {
            return self.open_alone(group, &disk).await;
        }
        self.groups.give_up(group, &disk).await?;
        tracing::info!(group, disk = %disk.device(), "this node has left an index group");
        self.sweep(disk);
        Ok(())
    }

    /// Leaves a group whose lines were taken back, if it is here.
    async fn end(&self, group: u32) -> Result<(), GroupError> {
        if self.doubtful().contains(&group) && self.groups.get(group).is_none() {
            self.give_up_all(group).await?;
        }
        let _alone = self.opening.lock().await;
        let fresh = self.names.end(group);
        let open = self.groups.get(group);
        if !fresh && open.is_none() {
            return Ok(());
        }
        self.doors.leave(group);
        let voter = self.voters.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
        if let Some(open) = &open {
            self.groups.give_up(group, open.disk()).await?;
        }
        if let Some(disk) = voter.map(|voter| voter.group().disk().clone()) {
            tracing::info!(group, "the lines of an index group are its parent's again: it is over");
            self.sweep(disk);
        }
        Ok(())
    }

    /// Makes room of what was given up.
    fn sweep(&self, disk: DiskHandle) {
        drop(tokio::spawn(async move {
            match consensus::sweep(&disk).await {
                Ok(0) => {}
                Ok(rows) => tracing::info!(rows, disk = %disk.device(), "rows that were given up are gone"),
                Err(error) => tracing::warn!(%error, disk = %disk.device(), "sweep rows that were given up"),
            }
        }));
    }
}

/// Where the parent is led: calls the election of a child that was just made. Later elections are the child's own business.
async fn lead(seats: Seats, parent: Group, number: u32) {
    let Some(child) = seats.shared.groups.get(number).filter(|_| parent.status().leads) else { return };
    if let Err(error) = child.elect_first().await {
        tracing::warn!(group = number, %error, "call the election of a new index group");
    }
}

/// The members of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Members {
    pub(super) voters: BTreeSet<NodeId>,
    pub(super) learners: BTreeSet<NodeId>,
}

impl Members {
    /// Those that vote, and those that do not.
    pub(super) fn all(&self) -> BTreeSet<NodeId> {
        self.voters.union(&self.learners).copied().collect()
    }
}

/// Who are members of a group, those that do not vote too, by the word of its leader, which is one of these nodes.
pub(super) async fn members(
    net: &dyn Transport,
    group: u32,
    asked: &BTreeSet<NodeId>,
) -> Option<BTreeSet<NodeId>> {
    members_of(net, group, asked).await.map(|members| members.all())
}

/// The same, apart.
pub(super) async fn members_of(net: &dyn Transport, group: u32, asked: &BTreeSet<NodeId>) -> Option<Members> {
    for node in asked {
        let request = Request::Consensus { group, call: ConsensusCall::Members };
        if let Ok(Response::Consensus(ConsensusAnswer::Members { voters, learners })) =
            net.call(*node, request, WITHIN).await
        {
            let (voters, learners) = (voters.into_iter().collect(), learners.into_iter().collect());
            return Some(Members { voters, learners });
        }
    }
    None
}

/// Whether a node says that it has nothing of a group.
pub(super) async fn has_nothing(net: &dyn Transport, group: u32, node: NodeId) -> bool {
    let request = Request::Consensus { group, call: ConsensusCall::Members };
    let answer = net.call(node, request, WITHIN).await;
    matches!(answer, Ok(Response::Failed(Failure { code: Code::NotServed, .. })))
}

#[cfg(test)]
#[path = "seats_tests.rs"]
mod tests;
