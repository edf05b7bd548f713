//! The index groups that this node votes in: opened when it becomes a voter, closed and given up when it is none any more.
//!
//! Invariant: what a disk has of a group is given up only when the group's leader said that this node is no member, after this
//! node had stopped to take part in it.
//! A group whose lines were taken back is left without asking: nobody needs its word any more.
//! Invariant: a group is on one disk of a node at a time, and stays there for as long as the node is a member.
//! Invariant: a group that was made here by the log of its parent is opened on the parent's disk at once; any other child only when
//! nothing here is about to make it ([`super::children`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quarry_engine::clock::Clock;
use quarry_engine::consensus::{self, Group, GroupError, GroupOptions, Groups, Settings};
use quarry_engine::disk::DiskHandle;
use quarry_engine::net::{
    Code, ConsensusAnswer, ConsensusCall, Failure, MonotonicClock, NodeId, Request, Response, Transport,
};
use quarry_engine::object::names::{self, NamesService};
use quarry_engine::object::{Options, Voter};
use tokio::sync::{Notify, watch};

use super::children::{self, Parent};
use super::doors::Doors;
use super::groups::CONTROL;
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
        let Parts { disks, net, groups, clock, since, options, runtime } = parts;
        let shared = Shared {
            disks,
            net,
            groups,
            names: names::Seats::default(),
            doors: Doors::default(),
            clock,
            since,
            options,
            runtime,
            voters: Mutex::default(),
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

    /// Opens what the disks have. One that cannot be opened is left out: the others of its group go on without this node.
    pub(crate) async fn open_held(&self) -> Result<(), GroupError> {
        for disk in &self.shared.disks {
            for group in consensus::held(disk).await?.into_iter().filter(|group| *group != CONTROL) {
                if self.shared.groups.over().contains(&group) {
                    continue;
                }
                if let Err(error) = self.shared.open(group, disk).await {
                    tracing::error!(group, disk = %disk.device(), %error, "open index group");
                }
            }
            self.shared.sweep(disk.clone());
        }
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
                (Some(_), Some(_)) | (None, None) => Ok(()),
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
        let lineage = children::lineage(state, group);
        if !children::may_open(&lineage, |child, parent| self.parent(state, child, parent)) {
            return Ok(());
        }
        // What a disk has of it counts for more than the row.
        let mut disk = self.disks.iter().find(|disk| disk.device() == seat.device);
        for other in &self.disks {
            if consensus::held(other).await?.contains(&group) {
                disk = Some(other);
            }
        }
        let disk =
            disk.ok_or_else(|| GroupError::Unavailable(format!("disk {} is not here", seat.device)))?;
        self.open(group, disk).await?;
        tracing::info!(group, disk = %disk.device(), "this node joins an index group");
        Ok(())
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

/// Who are members of a group, those that do not vote too, by the word of its leader, which is one of these nodes.
pub(super) async fn members(
    net: &dyn Transport,
    group: u32,
    asked: &BTreeSet<NodeId>,
) -> Option<BTreeSet<NodeId>> {
    for node in asked {
        let request = Request::Consensus { group, call: ConsensusCall::Members };
        if let Ok(Response::Consensus(ConsensusAnswer::Members { voters, learners })) =
            net.call(*node, request, WITHIN).await
        {
            return Some(voters.into_iter().chain(learners).collect());
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
