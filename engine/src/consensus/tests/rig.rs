//! Nodes with simulated disks in one thread: their network, their time, their crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::catalog::{GroupId, ObjectCatalog};
use crate::consensus::{
    Entry, Group, GroupError, GroupOptions, Groups, Outcome, RowChange, Settings, SimRuntime,
};
use crate::disk::format::record::DeviceId;
use crate::disk::format::superblock::ClusterId;
use crate::disk::{DiskHandle, Format, SimulatedDisk, format};
use crate::index::{Index, MemoryIndex, Range, Room};
use crate::io::{CrashPlan, SimImage, SplitMix64};
use crate::net::{Code, ConsensusCall, Failure, NodeId, Request, Response, Service, SimFaults, SimNet};
use crate::object::BoxFuture;

struct Nothing;

impl Service for Nothing {
    fn handle(&self, _: NodeId, _: Request) -> BoxFuture<'static, Response> {
        Box::pin(std::future::ready(Response::Failed(Failure::new(Code::NotServed, "nothing"))))
    }
}

/// Counts the messages of leaders that bring no entries.
struct Counted {
    service: Arc<dyn Service>,
    empty: Arc<AtomicU64>,
}

impl Service for Counted {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        if let Request::Consensus { call: ConsensusCall::Append { entries, .. }, .. } = &request {
            self.empty.fetch_add(u64::from(entries.is_empty()), Ordering::Relaxed);
        }
        self.service.handle(from, request)
    }
}

pub(super) struct Node {
    image: SimImage,
    index: Arc<MemoryIndex>,
    disk: Option<SimulatedDisk>,
    pub(super) groups: Groups,
}

pub(super) struct Cluster {
    pub(super) seed: u64,
    pub(super) rng: SplitMix64,
    pub(super) net: SimNet,
    pub(super) runtime: SimRuntime,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    pub(super) settings: Settings,
    /// Who led in which term of which group.
    leaders: BTreeMap<(GroupId, u64), NodeId>,
    /// Messages without entries that leaders have sent.
    pub(super) empty: Arc<AtomicU64>,
    /// Nodes whose disks do nothing for now.
    pub(super) hung: BTreeSet<NodeId>,
}

pub(super) fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

pub(super) fn voters(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<NodeId> {
    numbers.into_iter().map(node).collect()
}

/// A change of a row that only the control group's keys allow: any value.
pub(super) fn put(key: u64, sequence: u64, value: &str) -> RowChange {
    RowChange { key: format!("k{key:06}").into_bytes(), sequence, value: Some(value.into()) }
}

pub(super) fn rows(rows: Vec<RowChange>) -> Entry {
    Entry { term: None, guards: Vec::new(), rows }
}

fn fresh_image(n: u8, seed: u64) -> SimImage {
    let image = SimImage::new(16 * (16 << 20), seed);
    let request = Format {
        cluster: ClusterId([7; 16]),
        device: DeviceId([n; 16]),
        segment_size: Some(16 << 20),
        overwrite: false,
    };
    format(&mut image.open(), &request).unwrap();
    image
}

impl Cluster {
    /// Nodes 1 to `count`, their disks open, no group yet.
    pub(super) fn new(seed: u64, count: u8) -> Self {
        let mut rng = SplitMix64::new(seed);
        let settings = Settings {
            heartbeat: Duration::from_millis(100),
            silence: Duration::from_millis(600),
            snapshot_every: 50,
            keep: 20,
            takes_always: false,
        };
        let mut cluster = Self {
            seed,
            net: SimNet::new(rng.next_u64(), SimFaults::NONE),
            runtime: SimRuntime::new(rng.next_u64()),
            rng,
            nodes: BTreeMap::new(),
            settings,
            leaders: BTreeMap::new(),
            empty: Arc::default(),
            hung: BTreeSet::new(),
        };
        (1..=count).for_each(|n| cluster.add(n));
        cluster
    }

    /// A new machine, or one whose disk was lost.
    pub(super) fn add(&mut self, n: u8) {
        let image = fresh_image(n, self.rng.next_u64());
        let index = Arc::new(MemoryIndex::new());
        self.nodes.insert(node(n), Node { image, index, disk: None, groups: Groups::new() });
        self.start(n);
    }

    pub(super) fn start(&mut self, n: u8) {
        let node_id = node(n);
        let member = self.nodes.get_mut(&node_id).unwrap();
        let index = member.index.clone() as Arc<dyn Index>;
        let disk = SimulatedDisk::open(Box::new(member.image.open()), index, Arc::new(ObjectCatalog));
        member.disk = Some(disk.unwrap_or_else(|e| panic!("seed {}: {e}", self.seed)).0);
        member.groups = Groups::new();
        let (service, empty) = (member.groups.service(Arc::new(Nothing)), Arc::clone(&self.empty));
        let net = self.net.start(node_id, Arc::new(Counted { service, empty }));
        let options = GroupOptions {
            disk: member.disk.as_ref().unwrap().handle(),
            net: Arc::new(net),
            settings: self.settings.clone(),
            runtime: self.runtime.node(node_id),
        };
        let groups = member.groups.clone();
        let seed = self.seed;
        self.runtime.spawn(
            node_id,
            Box::pin(async move {
                let failed = groups.open_all(&options).await;
                assert!(failed.is_empty(), "seed {seed}: {failed:?}");
            }),
        );
    }

    /// The file system of its index is found nearly full when it is started.
    pub(super) fn fill_index(&mut self, n: u8) {
        self.nodes[&node(n)].index.set_room(Room { free: 0, total: 1 << 30 });
    }

    pub(super) fn options(&self, n: u8) -> GroupOptions {
        let member = &self.nodes[&node(n)];
        GroupOptions {
            disk: member.disk.as_ref().unwrap().handle(),
            net: Arc::new(self.net.end_of(node(n))),
            settings: self.settings.clone(),
            runtime: self.runtime.node(node(n)),
        }
    }

    pub(super) fn disk(&self, n: u8) -> DiskHandle {
        self.nodes[&node(n)].disk.as_ref().unwrap().handle()
    }

    /// Opens a group on a node.
    pub(super) fn open(&mut self, n: u8, group: GroupId) -> Group {
        let (groups, options) = (self.nodes[&node(n)].groups.clone(), self.options(n));
        self.run(async move { groups.open(group, options).await }).unwrap()
    }

    /// Founds a group on all of its voters, and opens it there.
    pub(super) fn found(&mut self, group: GroupId, of: u8) {
        for n in 1..=of {
            let (disk, voters) = (self.disk(n), voters(1..=of));
            assert!(self.run(async move { Group::found(&disk, group, voters, 0).await }).unwrap());
            self.open(n, group);
        }
    }

    pub(super) fn is_up(&self, n: u8) -> bool {
        self.nodes[&node(n)].disk.is_some()
    }

    pub(super) fn group(&self, n: u8, group: GroupId) -> Option<Group> {
        self.nodes[&node(n)].groups.get(group)
    }

    /// The power fails: what was not flushed is lost in part, the index goes back, or is lost whole.
    pub(super) fn crash(&mut self, n: u8) {
        let lost = self.rng.chance(300);
        self.fail(n, lost);
    }

    /// As [`Cluster::crash`]; the index is lost whole.
    pub(super) fn crash_without_index(&mut self, n: u8) {
        self.fail(n, true);
    }

    fn fail(&mut self, n: u8, lost: bool) {
        let node_id = node(n);
        self.net.stop(node_id);
        self.runtime.kill(node_id);
        let member = self.nodes.get_mut(&node_id).unwrap();
        member.groups = Groups::new();
        member.disk = None;
        member.image.crash(CrashPlan::MIXED, &mut self.rng);
        if lost {
            member.index = Arc::new(MemoryIndex::new());
        } else {
            member.index.crash_by(self.rng.next_u64());
        }
    }

    pub(super) fn turn(&mut self) {
        let turning = self.nodes.iter_mut().filter(|(id, _)| !self.hung.contains(id));
        let mut disks: Vec<&mut SimulatedDisk> = turning.filter_map(|(_, n)| n.disk.as_mut()).collect();
        self.runtime.turn(&self.net, &mut || disks.iter_mut().for_each(|disk| disk.turn()));
        for (id, member) in &self.nodes {
            for group in member.groups.all() {
                let status = group.status();
                if status.leads {
                    let first = *self.leaders.entry((group.id(), status.term)).or_insert(*id);
                    assert_eq!(first, *id, "seed {}: two leaders in term {}", self.seed, status.term);
                }
            }
        }
    }

    pub(super) fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..400_000 {
            if let Poll::Ready(done) = future.as_mut().poll(&mut context) {
                return done;
            }
            self.turn();
        }
        panic!("seed {}: stuck at {:?}", self.seed, self.runtime.now());
    }

    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.runtime.now() + time;
        while self.runtime.now() < end {
            self.turn();
        }
    }

    /// Turns until it holds.
    pub(super) fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = self.runtime.now() + Duration::from_secs(60);
        while !holds(self) {
            assert!(self.runtime.now() < end, "seed {}: {what} does not come", self.seed);
            self.turn();
        }
    }

    /// The leader that a majority confirms.
    pub(super) fn leader(&mut self, group: GroupId) -> (u8, Group) {
        for _ in 0..200 {
            for n in self.numbers() {
                let Some(voter) = self.group(n, group).filter(|g| g.status().leads) else { continue };
                let asked = voter.clone();
                let runtime = self.runtime.node(node(200));
                let confirmed = self.run(async move { within(&*runtime, asked.barrier()).await });
                if matches!(confirmed, Some(Ok(_))) {
                    return (n, voter);
                }
            }
            self.pass(Duration::from_millis(100));
        }
        panic!("seed {}: nobody leads group {group}", self.seed);
    }

    pub(super) fn numbers(&self) -> Vec<u8> {
        self.nodes.keys().map(|id| id.0[0]).collect()
    }

    /// Proposes at whoever leads until it is known what became of it.
    pub(super) fn propose(&mut self, group: GroupId, entry: &Entry) -> Outcome {
        loop {
            let (_, leader) = self.leader(group);
            let (entry, runtime) = (entry.clone(), self.runtime.node(node(200)));
            match self.run(async move { within(&*runtime, leader.propose(entry)).await }) {
                Some(Ok(outcome)) => return outcome,
                Some(Err(GroupError::NotLeader(_) | GroupError::Unavailable(_))) | None => {}
                Some(Err(e)) => panic!("seed {}: {e}", self.seed),
            }
        }
    }

    pub(super) fn dump(&self, n: u8, group: GroupId) -> Vec<(Vec<u8>, u64, Vec<u8>)> {
        let voter = self.group(n, group).unwrap();
        let rows = voter.scan(&Range::default()).unwrap();
        rows.map(|row| row.map(|(key, row)| (key, row.sequence, row.value)).unwrap()).collect()
    }

    /// Waits until all these voters have applied the same, and their rows are equal.
    pub(super) fn settle(&mut self, group: GroupId, numbers: &[u8]) {
        self.leader(group);
        let numbers = numbers.to_vec();
        self.until("agreement", |cluster| {
            let of = |n: &u8| cluster.group(*n, group).map(|g| (g.status().applied, g.status().last));
            let all: Vec<_> = numbers.iter().map(of).collect();
            all.iter().all(|one| one.is_some_and(|(applied, last)| applied == last && applied.is_some()))
                && all.windows(2).all(|pair| pair[0] == pair[1])
        });
        let first = self.dump(numbers[0], group);
        for n in &numbers {
            assert_eq!(self.dump(*n, group), first, "seed {}: rows of node {n}", self.seed);
        }
    }
}

/// The result, unless five seconds pass before.
pub(super) async fn within<T>(
    runtime: &dyn crate::consensus::Runtime,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut over = runtime.sleep(Duration::from_secs(5));
    let mut work = Box::pin(work);
    std::future::poll_fn(|context| {
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        over.as_mut().poll(context).map(|()| None)
    })
    .await
}
