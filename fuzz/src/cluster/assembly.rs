//! A node put together of the engine's real parts, as `node/src/control/member.rs` does: groups, names, objects, workers.
//!
//! Invariant: nothing here is simulated but the runtime, the network and the drives that are handed in.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quarry_engine::clock::{Clock, Timestamp};
use quarry_engine::consensus::{Group, GroupOptions, Groups, Runtime, Settings};
use quarry_engine::disk::DiskHandle;
use quarry_engine::net::{
    LateService, NodeId, NodeService, Remote, ReplicaService, SimNode, Timer, Transport,
};
use quarry_engine::object::names::{Divided, Names, Seats};
use quarry_engine::object::{Layout, Options, Parts, Placement, Replica, Spawn, Spread, Store, Time};
use quarry_engine::sync::{Cluster, Peers};
use quarry_engine::work::{Kept, Pace, Runner, workers};

use super::board::Board;
use super::keeper::Keeper;
use super::machine::{Life, Running, Wall};
use super::plant::Plant;
use crate::blocks;
use crate::blocks::control::Control;
use crate::blocks::part::{self, Part};

/// Number of the index group.
pub(crate) const NAMES: u32 = 1;
/// Pause between two looks at the ring, as a node's follower has it.
const FOLLOW: Duration = Duration::from_millis(250);
/// Pause between two looks of a leader at its members.
const GOVERN: Duration = Duration::from_millis(500);
/// Pause between two looks at what others hold.
const EXPIRE: Duration = Duration::from_secs(1);
/// How long a call to a device of another node may take.
const WITHIN: Duration = Duration::from_secs(10);
/// Seconds after which a worker that had nothing to do looks again, at most: less than a history takes.
pub(crate) const IDLE: u64 = 15;
/// The same of the reaper, who shall be at it while clients are.
const SOON: u64 = 1;
/// Seconds for which tombstones are kept.
pub(crate) const RECLAIM: u64 = 3600;

/// What a node is made of.
pub(crate) struct Making {
    pub(crate) disks: Vec<DiskHandle>,
    pub(crate) net: SimNode,
    pub(crate) late: LateService,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) wall: Wall,
    pub(crate) board: Board,
    pub(crate) plant: Plant,
    /// Of the volume, if there is one.
    pub(crate) control: Option<Control>,
    /// New in every life.
    pub(crate) random: u64,
}

/// Starts a node: the rest of it comes as its runtime is polled.
pub(crate) fn start(making: Making) -> Life {
    let groups = Groups::new();
    let life = Life { groups: groups.clone(), running: Arc::default(), failed: Arc::default() };
    let (running, failed) = (life.running.clone(), life.failed.clone());
    let runtime = making.runtime.clone();
    runtime.spawn(Box::pin(async move {
        match assemble(making, groups).await {
            Ok(node) => *running.lock().unwrap_or_else(PoisonError::into_inner) = Some(node),
            Err(why) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(why),
        }
    }));
    life
}

fn timer(runtime: &Arc<dyn Runtime>) -> Timer {
    let runtime = runtime.clone();
    Arc::new(move |time| runtime.sleep(time))
}

async fn assemble(making: Making, groups: Groups) -> Result<Running, String> {
    let Making { disks, net, late, runtime, wall, board, plant, control, random } = making;
    let first = disks.first().cloned().ok_or("no disk")?;
    let net: Arc<dyn Transport> = Arc::new(net);
    let part = control.map(|control| {
        let (disks, net, runtime) = (disks.clone(), net.clone(), runtime.clone());
        Part::new(part::Making { disks, net, runtime, control, plant: blocks::Plant::Nothing })
    });
    let part = part.transpose()?;
    let spawner = runtime.clone();
    let spawn: Spawn = Arc::new(move |work| spawner.spawn(work));
    let since = runtime.clone();
    let monotonic: quarry_engine::net::MonotonicClock = Arc::new(move || since.now());
    let time = Time { timer: timer(&runtime), now: monotonic.clone() };
    let options = Options { spawn: Some(spawn), time: Some(time) };
    let reading = wall.clone();
    let clock = Arc::new(Clock::new(Box::new(move || reading.now())));
    clock.observe(Timestamp(disks.iter().map(DiskHandle::max_sequence).max().unwrap_or(0)));
    let with = GroupOptions { disk: first, net: net.clone(), settings: settings(), runtime: runtime.clone() };
    let group = groups.open(NAMES, with.clone()).await.map_err(|e| format!("open group: {e}"))?;
    let seats = Seats::default();
    let divided = Divided::new(net.clone(), timer(&runtime), seats.clone(), random >> 1);
    divided.divide(1);
    let keeper = Keeper {
        with,
        groups: groups.clone(),
        seats: seats.clone(),
        divided: divided.clone(),
        clock: clock.clone(),
        options: options.clone(),
        since: monotonic.clone(),
        voters: Arc::default(),
        board: board.clone(),
    };
    keeper.seat(&group);
    keeper.open_held().await;
    let voters = keeper.voters.clone();
    let names: Arc<dyn Names> = plant.names(Arc::new(divided.clone()));
    let placement = Box::new(Spread::over(Vec::new()));
    let parts = Parts { disks, others: Vec::new(), placement, names, clock, options };
    let store = Store::shared(parts).map_err(|e| format!("start store: {e}"))?;
    let reading = wall.clone();
    let reading = Box::new(move || reading.now());
    let replicas = ReplicaService::new(store.replicas().to_vec(), monotonic.clone(), reading, random);
    let node = NodeService::new(replicas, seats);
    late.set(plant.service(groups.service(match &part {
        Some(part) => part.door(Some(Arc::new(node.clone()))),
        None => Arc::new(node.clone()),
    })));
    let follower =
        Follower { net, store: store.clone(), board, peers: Arc::default(), plant, used: AtomicU64::new(0) };
    let peers: Arc<dyn Cluster> = follower.peers.clone();
    follower.look();
    runtime.spawn(Box::pin(look_after(runtime.clone(), node)));
    runtime.spawn(Box::pin(govern(runtime.clone(), group.clone(), follower.board.clone())));
    runtime.spawn(Box::pin(keeper.run()));
    let pause = runtime.clone();
    runtime.spawn(Box::pin(async move {
        loop {
            follower.look();
            pause.sleep(FOLLOW).await;
        }
    }));
    let mut reports = Vec::new();
    for (make, pace) in workers(&store, Kept { deleted: RECLAIM, expired: 0 }, Some(&peers)) {
        let worker = make();
        let idle = if worker.name() == "reaper" { SOON } else { IDLE };
        let pace = Pace { idle_seconds: pace.idle_seconds.min(idle), ..pace };
        let (elapsed, calls) = (monotonic.clone(), store.clone());
        let runner =
            Runner::new(worker, pace, Box::new(move || elapsed()), Box::new(move || calls.client_calls()));
        reports.push(runner.reports());
        let pause = timer(&runtime);
        runtime.spawn(Box::pin(runner.run(Box::new(move |time| pause(time)))));
    }
    Ok(Running { store, reports, voters, divided, part })
}

fn settings() -> Settings {
    Settings { snapshot_every: 200, keep: 100, ..Settings::default() }
}

/// Ends what others held too long.
async fn look_after(runtime: Arc<dyn Runtime>, node: NodeService) {
    loop {
        runtime.sleep(EXPIRE).await;
        node.expire();
    }
}

/// How many of so many members vote.
pub(crate) fn voters(members: usize) -> usize {
    members - (1 - members % 2)
}

/// Makes every node a member and the first of them voters, where this one leads.
async fn govern(runtime: Arc<dyn Runtime>, group: Group, board: Board) {
    loop {
        runtime.sleep(GOVERN).await;
        if !group.status().leads {
            continue;
        }
        let members: BTreeSet<NodeId> = board.read().owners.values().copied().collect();
        let wanted = members.iter().take(voters(members.len())).copied().collect();
        // What fails is tried again.
        let _failed = group.bring_members(&members, &wanted).await;
    }
}

/// Uses the newest ring that this node has heard of.
struct Follower {
    net: Arc<dyn Transport>,
    store: Store,
    board: Board,
    peers: Arc<Peers>,
    plant: Plant,
    /// Number of what is in use.
    used: AtomicU64,
}

impl Follower {
    fn look(&self) {
        let published = self.board.read();
        if self.used.swap(published.number, Ordering::Relaxed) == published.number {
            return;
        }
        let local = self.net.local();
        let others = published.owners.iter().filter(|(_, node)| **node != local);
        let remote = |(device, node): (&_, &_)| -> Arc<dyn Replica> {
            self.plant.replica(Arc::new(Remote::new(self.net.clone(), *node, *device, WITHIN)))
        };
        let others: Vec<_> = others.map(remote).collect();
        let all = self.store.replicas().iter().chain(&others).cloned();
        self.peers.replace(published.placements.clone(), all);
        let rings = published.placements.iter();
        let placements = rings.map(|(policy, ring)| (*policy, ring.clone() as Arc<dyn Placement>));
        let layout = Layout::new(published.policies.clone(), placements.collect());
        self.store.place(layout, others);
    }
}

/// A lock whose holder never leaves anything half-made.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
