//! Stores of several nodes over simulated disks and a simulated network, polled by hand in virtual time.
//!
//! Each node has the container `AUTH_a/c` in a group of its own; devices are placed by one ring, each node in a zone of its own.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quarry_ring::{Class, Device, PathHash, Plan, Replicas, Ring, build};

use super::rig::{DISK, START, path};
use crate::catalog::{self, ObjectCatalog, Version};
use crate::clock::{Clock, Timestamp};
use crate::disk::format::record::DeviceId;
use crate::disk::format::superblock::ClusterId;
use crate::disk::{DiskHandle, Format, SimulatedDisk, format};
use crate::index::{Index, MemoryIndex, Table};
use crate::io::{CrashPlan, SimImage, SplitMix64};
use crate::net::{NodeId, Remote, ReplicaService, SimFaults, SimNet, Transport};
use crate::object::names::Names;
use crate::object::sight::Sight;
use crate::object::{
    BoxFuture, Code, Committed, Condition, Deleted, Error, Keeps, Layout, ObjectReader, Options, Parts,
    Placement, Policies, Policy, PutSpec, Replica, Result, RingPlacement, Spawn, Store, Time, hash_of,
};

/// How long a call to another node may take.
pub(crate) const WITHIN: Duration = Duration::from_secs(20);

struct Disk {
    device: DeviceId,
    image: SimImage,
    index: Arc<MemoryIndex>,
    sim: Option<SimulatedDisk>,
}

type Tasks = Arc<Mutex<Vec<BoxFuture<'static, ()>>>>;

struct Node {
    id: NodeId,
    disks: Vec<Disk>,
    /// Absent while it is dead.
    store: Option<Store>,
    tasks: Tasks,
    transport: Option<Arc<dyn Transport>>,
    /// Its disks turn once in so many turns.
    pace: u64,
}

/// What a cluster is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) nodes: u8,
    /// On each node.
    pub(crate) disks: u8,
    pub(crate) replicas: u16,
    pub(crate) faults: SimFaults,
    /// The container's policy keeps fragments.
    pub(crate) code: Option<Code>,
}

impl Shape {
    /// One disk on each node, and a good network.
    pub(crate) const fn new(nodes: u8, replicas: u16) -> Self {
        Self { nodes, disks: 1, replicas, faults: SimFaults::NONE, code: None }
    }

    /// The same, and objects in fragments.
    pub(crate) const fn coded(nodes: u8, data: u8, parity: u8) -> Self {
        let code = Some(Code { data, parity });
        Self { nodes, disks: 1, replicas: 3, faults: SimFaults::NONE, code }
    }
}

pub(crate) struct Cluster {
    pub(crate) net: SimNet,
    pub(crate) rng: SplitMix64,
    pub(crate) wall: Arc<AtomicU64>,
    nodes: Vec<Node>,
    ring: Ring,
    /// How policy 1 keeps fragments, and its ring.
    coded: Option<(Code, Ring)>,
    turns: u64,
    lives: u64,
    /// One group for all, where it is not a group of each node's own.
    names: Option<Arc<dyn Names>>,
}

pub(crate) fn place(ring: &Ring) -> RingPlacement {
    let ids: HashMap<u32, DeviceId> = ring.devices().iter().map(|d| (d.id, device_id(d.id))).collect();
    RingPlacement::new(ring.clone(), ids).unwrap()
}

fn node_id(node: usize) -> NodeId {
    NodeId([u8::try_from(node).unwrap() + 1; 16])
}

fn device_id(number: u32) -> DeviceId {
    DeviceId([u8::try_from(number).unwrap() + 1; 16])
}

fn make_disk(number: u32, seed: u64) -> Disk {
    let image = SimImage::new(DISK, seed + u64::from(number));
    let device = device_id(number);
    let cluster = ClusterId([7; 16]);
    let request = Format { cluster, device, segment_size: Some(16 << 20), overwrite: false };
    format(&mut image.open(), &request).unwrap();
    Disk { device, image, index: Arc::new(MemoryIndex::new()), sim: None }
}

fn make_ring(shape: Shape, replicas: u16) -> Ring {
    let device = |id: u32| {
        let node = id / u32::from(shape.disks);
        let zone = u16::try_from(node).unwrap();
        Device { id, region: 0, zone, node, weight: 1, class: Class::Nvme }
    };
    let devices = (0..u32::from(shape.nodes) * u32::from(shape.disks)).map(device).collect();
    build(Plan { version: 1, part_power: 6, replicas: Replicas::whole(replicas), devices }).unwrap()
}

impl Cluster {
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        Self::with_names(shape, seed, None)
    }

    /// Names are decided by these.
    pub(crate) fn with_names(shape: Shape, seed: u64, names: Option<Arc<dyn Names>>) -> Self {
        let node = |node: u8| {
            let disk = |n: u8| make_disk(u32::from(node * shape.disks + n), seed);
            let disks = (0..shape.disks).map(disk).collect();
            Node {
                id: node_id(node.into()),
                disks,
                store: None,
                tasks: Tasks::default(),
                transport: None,
                pace: 1,
            }
        };
        let mut cluster = Self {
            net: SimNet::new(seed, SimFaults::NONE),
            rng: SplitMix64::new(seed),
            wall: Arc::new(AtomicU64::new(START * 1_000_000)),
            nodes: (0..shape.nodes).map(node).collect(),
            ring: make_ring(shape, shape.replicas),
            coded: shape.code.map(|code| (code, make_ring(shape, u16::try_from(code.n()).unwrap()))),
            turns: 0,
            lives: 0,
            names,
        };
        for node in 0..cluster.nodes.len() {
            cluster.start(node);
            let store = cluster.store(node);
            let policy = u16::from(shape.code.is_some());
            cluster.run(store.put_container("AUTH_a", "c", policy, |_| Ok(Default::default()))).unwrap();
        }
        cluster.net.set_faults(shape.faults);
        cluster
    }

    pub(crate) fn placement(&self) -> RingPlacement {
        place(&self.ring)
    }

    fn layout(&self) -> Layout {
        let mut policies = vec![Policy::first()];
        let mut placements: BTreeMap<u16, Arc<dyn Placement>> = BTreeMap::new();
        placements.insert(0, Arc::new(self.placement()));
        if let Some((code, ring)) = &self.coded {
            let (name, keeps) = ("coded".to_owned(), Keeps::Fragments(*code));
            policies.push(Policy { index: 1, name, keeps, default: false, ..Policy::first() });
            placements.insert(1, Arc::new(place(ring)));
        }
        Layout::new(Policies::new(policies).unwrap(), placements)
    }

    pub(crate) fn coded_placement(&self) -> RingPlacement {
        place(&self.coded.as_ref().unwrap().1)
    }

    /// A ring of the same devices with other weights, by their nodes.
    pub(crate) fn weighed(&self, weight: impl Fn(u32) -> u32) -> Ring {
        let devices = self.ring.devices().iter().cloned();
        let devices = devices.map(|device| Device { weight: weight(device.node), ..device }).collect();
        let (version, replicas) = (self.ring.version() + 1, Replicas::whole(3));
        build(Plan { version, part_power: 6, replicas, devices }).unwrap()
    }

    /// Another ring for copies, from now on.
    pub(crate) fn turn_copies(&mut self, ring: Ring) {
        self.ring = ring;
        for node in (0..self.nodes.len()).filter(|node| self.nodes[*node].store.is_some()) {
            self.store(node).place(self.layout(), self.others(node));
        }
    }

    /// Another ring for fragments, from now on.
    pub(crate) fn turn_ring(&mut self, ring: Ring) {
        let code = self.coded.as_ref().unwrap().0;
        self.coded = Some((code, ring));
        for node in 0..self.nodes.len() {
            self.store(node).place(self.layout(), self.others(node));
        }
    }

    /// The nodes of the primaries of a key of policy 1, by place.
    pub(crate) fn places(&self, key: &PathHash) -> Vec<usize> {
        let (_, ring) = self.coded.as_ref().unwrap();
        let node = |device: DeviceId| {
            let has = |node: &Node| node.disks.iter().any(|disk| disk.device == device);
            self.nodes.iter().position(has).unwrap()
        };
        place(ring).primaries(key).into_iter().map(node).collect()
    }

    pub(crate) fn clock(&self) -> Clock {
        let wall = self.wall.clone();
        // Each reading is a little later than the last.
        Clock::new(Box::new(move || wall.fetch_add(1, Ordering::SeqCst)))
    }

    pub(crate) fn time(&self) -> Time {
        let (net, clock) = (self.net.clone(), self.net.clone());
        Time { timer: Arc::new(move |time| sleep(net.clone(), time)), now: Arc::new(move || clock.now()) }
    }

    fn spawner(&self, node: usize) -> Spawn {
        let tasks = self.nodes[node].tasks.clone();
        Arc::new(move |work| tasks.lock().unwrap().push(work))
    }

    /// Starts a node, or a new life of one that was killed.
    pub(crate) fn start(&mut self, node: usize) {
        let options = Options { spawn: Some(self.spawner(node)), time: Some(self.time()) };
        let (clock, placement) = (self.clock(), self.placement());
        for disk in &mut self.nodes[node].disks {
            let index = disk.index.clone() as Arc<dyn Index>;
            let device = Box::new(disk.image.open());
            disk.sim = Some(SimulatedDisk::open(device, index, Arc::new(ObjectCatalog)).unwrap().0);
        }
        let (disks, placement) = (self.handles(node), Box::new(placement));
        let store = match self.names.clone() {
            None => Store::start(disks, placement, clock, options).unwrap(),
            Some(names) => {
                disks.iter().for_each(|disk| disk.believe(true));
                let (clock, others) = (Arc::new(clock), Vec::new());
                Store::shared(Parts { disks, others, placement, names, clock, options }).unwrap()
            }
        };
        self.lives += 1;
        let (net, wall) = (self.net.clone(), self.wall.clone());
        let service = ReplicaService::new(
            store.replicas().to_vec(),
            Arc::new(move || net.now()),
            Box::new(move || wall.load(Ordering::SeqCst)),
            self.lives,
        );
        let transport: Arc<dyn Transport> = Arc::new(self.net.start(self.nodes[node].id, Arc::new(service)));
        self.nodes[node].transport = Some(transport);
        store.place(self.layout(), self.others(node));
        self.nodes[node].store = Some(store);
    }

    pub(crate) fn others(&self, node: usize) -> Vec<Arc<dyn Replica>> {
        let transport = self.nodes[node].transport.clone().unwrap();
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != node);
        let remote = others.flat_map(|(_, other)| {
            let device = |disk: &Disk| {
                Arc::new(Remote::new(transport.clone(), other.id, disk.device, WITHIN)) as Arc<dyn Replica>
            };
            other.disks.iter().map(device)
        });
        remote.collect()
    }

    /// `kill -9`: what was not flushed survives by luck.
    pub(crate) fn kill(&mut self, node: usize) {
        self.net.stop(self.nodes[node].id);
        let (rng, node) = (&mut self.rng, &mut self.nodes[node]);
        // Taken out first: what is dropped may want to start another task.
        let dying = std::mem::take(&mut *node.tasks.lock().unwrap());
        drop(dying);
        node.tasks.lock().unwrap().clear();
        node.store = None;
        for disk in &mut node.disks {
            disk.sim = None;
            disk.image.crash(CrashPlan::MIXED, rng);
            disk.index.crash_by(rng.next_u64());
        }
    }

    /// The next life of a node, which was killed, makes its indexes from the logs.
    pub(crate) fn lose_indexes(&mut self, node: usize) {
        for disk in &mut self.nodes[node].disks {
            disk.index = Arc::new(MemoryIndex::new());
        }
    }

    /// Nothing gets to a node or from it any more.
    pub(crate) fn cut(&self, node: usize) {
        for other in self.nodes.iter().filter(|other| other.id != self.nodes[node].id) {
            self.net.cut(self.nodes[node].id, other.id);
            self.net.cut(other.id, self.nodes[node].id);
        }
    }

    /// The disks of a node turn once in so many turns, which are about milliseconds.
    pub(crate) fn slow_down(&mut self, node: usize, pace: u64) {
        self.nodes[node].pace = pace;
    }

    pub(crate) fn store(&self, node: usize) -> Store {
        self.nodes[node].store.clone().unwrap()
    }

    pub(crate) fn handles(&self, node: usize) -> Vec<DiskHandle> {
        self.nodes[node].disks.iter().filter_map(|disk| Some(disk.sim.as_ref()?.handle())).collect()
    }

    /// Everything moves on a little: to what is due next when nothing moves, a millisecond on at most.
    pub(crate) fn turn(&mut self) {
        self.turns += 1;
        let mut context = Context::from_waker(Waker::noop());
        for node in &mut self.nodes {
            if self.turns.is_multiple_of(node.pace) {
                node.disks.iter_mut().filter_map(|disk| disk.sim.as_mut()).for_each(SimulatedDisk::turn);
            }
            let mut running = std::mem::take(&mut *node.tasks.lock().unwrap());
            running.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            node.tasks.lock().unwrap().append(&mut running);
        }
        if !self.net.turn(self.net.now()) {
            let soon = self.net.now() + Duration::from_millis(1);
            let next = self.net.next_event().map_or(soon, |next| next.min(soon));
            self.net.turn(next.max(self.net.now() + Duration::from_micros(1)));
        }
    }

    pub(crate) fn run<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..500_000 {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            self.turn();
        }
        panic!("stuck at {:?}", self.net.now());
    }

    /// As `run`, and how long it took.
    pub(crate) fn timed<F: Future>(&mut self, future: F) -> (F::Output, Duration) {
        let begun = self.net.now();
        let output = self.run(future);
        (output, self.net.now() - begun)
    }

    /// Polls a future a few times and drops it.
    pub(crate) fn abandon<F: Future>(&mut self, polls: u32, future: F) {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..polls {
            if future.as_mut().poll(&mut context).is_ready() {
                return;
            }
            self.turn();
        }
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.net.now() + time;
        while self.net.now() < end {
            self.turn();
        }
    }

    /// Long enough for what goes on by itself in a healthy cluster.
    pub(crate) fn settle(&mut self) {
        self.pass(Duration::from_millis(200));
    }

    /// The nodes of an object's primaries, in order.
    pub(crate) fn primaries(&self, name: &str) -> Vec<usize> {
        let devices = self.placement().primaries(&hash_of(&path(name)));
        let node = |device: DeviceId| {
            let has = |node: &Node| node.disks.iter().any(|disk| disk.device == device);
            self.nodes.iter().position(has).unwrap()
        };
        devices.into_iter().map(node).collect()
    }

    /// A name of which no primary is on these nodes.
    pub(crate) fn name_off(&self, nodes: &[usize]) -> String {
        let names = (0..10_000).map(|n| format!("o{n}"));
        let mut off = names.filter(|name| self.primaries(name).iter().all(|node| !nodes.contains(node)));
        off.next().unwrap()
    }

    /// A name of which all these nodes have a primary.
    pub(crate) fn name_on(&self, nodes: &[usize]) -> String {
        let mut names = (0..10_000).map(|n| format!("o{n}"));
        names.find(|name| nodes.iter().all(|node| self.primaries(name).contains(node))).unwrap()
    }

    /// What each node that is alive has of an object: its newest version on any of its disks.
    pub(crate) fn versions(&self, name: &str) -> Vec<Option<Version>> {
        let hash = hash_of(&path(name));
        let newest = |node: usize| {
            let versions =
                self.handles(node).into_iter().map(|disk| catalog::version(disk.index(), &hash).unwrap());
            versions.flatten().max_by_key(|version| version.sequence)
        };
        (0..self.nodes.len()).map(newest).collect()
    }

    /// Nodes that have this version.
    pub(crate) fn holders(&self, name: &str, at: Timestamp) -> Vec<usize> {
        let versions = self.versions(name).into_iter().enumerate();
        versions.filter(|(_, v)| v.is_some_and(|v| v.sequence == at.0)).map(|(node, _)| node).collect()
    }

    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Takes a version off a node's disks, as if it had never come.
    pub(crate) fn forget(&mut self, node: usize, key: PathHash) {
        for disk in self.handles(node) {
            let Some(version) = catalog::version(disk.index(), &key).unwrap() else { continue };
            let stamp = catalog::Stamp { hash: key, sequence: version.sequence, deleted: version.deleted };
            self.run(async move { crate::sync::evict(&disk, &[stamp]).await }).unwrap();
        }
    }

    pub(crate) fn count(&self, node: usize, table: Table) -> usize {
        let rows = |disk: &Disk| disk.index.scan(table, crate::index::Range::default()).count();
        self.nodes[node].disks.iter().map(rows).sum()
    }

    /// Flips a bit in the first place of a node's first disk that holds these bytes.
    pub(crate) fn flip(&mut self, node: usize, needle: &[u8]) {
        let image = &self.nodes[node].disks[0].image;
        let step = 1 << 20;
        let found = (0..DISK / step).find_map(|n| {
            let len = usize::try_from((DISK - n * step).min(step + 4096)).unwrap();
            let bytes = image.peek(n * step, len);
            let at = bytes.windows(needle.len()).position(|window| window == needle)?;
            Some(n * step + at as u64)
        });
        image.flip(found.unwrap(), 0x10);
    }

    pub(crate) fn try_put(&mut self, node: usize, name: &str, body: &Bytes) -> Result<Committed> {
        let store = self.store(node);
        self.run(put(store, name.to_owned(), body.clone()))
    }

    pub(crate) fn put(&mut self, node: usize, name: &str, body: &Bytes) -> Committed {
        self.try_put(node, name, body).unwrap()
    }

    pub(crate) fn try_delete(&mut self, node: usize, name: &str) -> Result<Deleted> {
        let store = self.store(node);
        self.run(async move { store.delete_object(&path(name), &Condition::default()).await })
    }

    /// What a node sees of an object whose row states `floor`.
    pub(crate) fn sight(&mut self, node: usize, name: &str, floor: Option<Timestamp>) -> Result<Sight> {
        let store = self.store(node);
        self.run(async move { store.inner.copies.open(&path(name), hash_of(&path(name)), floor).await })
    }

    pub(crate) fn reader(
        &mut self,
        node: usize,
        name: &str,
        floor: Option<Timestamp>,
    ) -> Result<ObjectReader> {
        let open = self.sight(node, name, floor)?.version().ok_or(Error::NoObject)?;
        let store = self.store(node);
        self.run(async move { store.inner.reader(open).await })
    }

    pub(crate) fn get(&mut self, node: usize, name: &str, floor: Option<Timestamp>) -> Result<Bytes> {
        let reader = self.reader(node, name, floor)?;
        self.run(read(reader))
    }

    /// The bytes that a node's own copy gives, chunk by chunk, nobody else asked.
    pub(crate) fn own_copy(&mut self, node: usize, name: &str) -> Result<Option<Bytes>> {
        let store = self.store(node);
        let hash = hash_of(&path(name));
        self.run(async move {
            for replica in store.replicas() {
                if let Some(opened) = replica.open(hash).await? {
                    let meta = crate::object::objects::check_version(&path(name), &opened)?;
                    return read(ObjectReader::new(meta, opened, hash, replica.clone())).await.map(Some);
                }
            }
            Ok(None)
        })
    }
}

fn sleep(net: SimNet, time: Duration) -> BoxFuture<'static, ()> {
    let end = net.now() + time;
    Box::pin(std::future::poll_fn(move |_| if net.now() >= end { Poll::Ready(()) } else { Poll::Pending }))
}

/// Puts a body as a client does.
pub(crate) async fn put(store: Store, name: String, body: Bytes) -> Result<Committed> {
    let mut writer = store.writer(&path(&name), Some(body.len() as u64)).await?;
    for piece in body.chunks(300_000) {
        writer.write(Bytes::copy_from_slice(piece)).await?;
    }
    writer.commit(PutSpec::default()).await
}

/// All bytes of a version.
pub(crate) async fn read(reader: ObjectReader) -> Result<Bytes> {
    let mut range = reader.range(0..reader.info.size);
    let mut out = Vec::new();
    while let Some(piece) = range.next().await {
        out.extend_from_slice(&piece?);
    }
    Ok(out.into())
}
