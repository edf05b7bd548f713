//! Nodes of one simulated disk each, their replicators, a ring that can turn, and what clients were told.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quarry_ring::{PathHash, partition_of};

use crate::catalog::{Chunked, ObjectCatalog, ObjectMeta, Stamp, encode_tombstone, tally, weight};
use crate::clock::Timestamp;
use crate::disk::catalog::Catalog;
use crate::disk::format::record::{DeviceId, Kind};
use crate::disk::format::superblock::ClusterId;
use crate::disk::{Class, DiskHandle, Durability, Format, SimulatedDisk, TALLIES, format};
use crate::index::{Index, MemoryIndex, Range, Table, WriteSet};
use crate::io::{CrashPlan, SimImage, SplitMix64};
use crate::net::{NodeId, Remote, ReplicaService, Request, Response, Service, SimFaults, SimNet, Transport};
use crate::object::{
    BoxFuture, Draft, Error, Headers, ListedAs, Local, ObjectInfo, ObjectPath, Replica, check_chunk,
};
use crate::sync::{Cluster, Copied, CopyError, Listings, Synced, copy};
use crate::work::{Ages, Outcome, Pruner, Replicator, Wall, Worker};

pub(super) const POWER: u8 = 4;
/// Seconds.
pub(super) const RECLAIM: u64 = 24 * 3600;
const START: u64 = 1_795_000_000_000_000;
const DISK: u64 = 24 * (16 << 20);
const WITHIN: Duration = Duration::from_secs(2);

/// The ring: three of the devices for each partition, by rotation.
#[derive(Default)]
struct Ring {
    version: u64,
    devices: usize,
    turn: usize,
    without: Option<usize>,
}

impl Ring {
    fn primaries(&self, part: u32) -> Vec<usize> {
        let all = (0..self.devices).map(|n| (part as usize + self.turn + n) % self.devices);
        all.filter(|n| Some(*n) != self.without).take(3).collect()
    }
}

struct View {
    ring: Arc<Mutex<Ring>>,
    replicas: Vec<Arc<dyn Replica>>,
}

impl Cluster for View {
    fn policies(&self) -> Vec<u16> {
        vec![0]
    }

    fn version(&self, _: u16) -> u64 {
        self.ring.lock().unwrap().version
    }

    fn power(&self, _: u16) -> u8 {
        POWER
    }

    fn primaries(&self, _: u16, partition: u32) -> Vec<DeviceId> {
        self.ring.lock().unwrap().primaries(partition).into_iter().map(device_id).collect()
    }

    fn replica(&self, device: DeviceId) -> Option<Arc<dyn Replica>> {
        self.replicas.iter().find(|replica| replica.device() == device).cloned()
    }
}

struct Counting(ReplicaService, Arc<AtomicU64>);

impl Service for Counting {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.handle(from, request)
    }
}

struct Node {
    image: SimImage,
    index: Arc<MemoryIndex>,
    sim: Option<SimulatedDisk>,
    replicator: Option<Replicator>,
    synced: Option<Arc<Synced>>,
    local: Option<Local>,
    findings: u64,
}

/// What was acknowledged last, by key.
#[derive(Default)]
struct Lines(Mutex<BTreeMap<PathHash, (u64, bool)>>);

impl Listings for Lines {
    fn may_stand(&self, stamp: Stamp) -> BoxFuture<'static, Result<bool, Error>> {
        let line = self.0.lock().unwrap().get(&stamp.hash).copied();
        let stands = line.is_some_and(|(sequence, deleted)| !deleted && sequence <= stamp.sequence);
        Box::pin(std::future::ready(Ok(stands && !stamp.deleted)))
    }
}

/// What clients did to a key.
#[derive(Default)]
struct Told {
    /// Every version that any device may have.
    tried: BTreeMap<(u64, bool), usize>,
    /// The newest that was acknowledged.
    acknowledged: Option<(u64, bool)>,
}

pub(super) struct World {
    net: SimNet,
    nodes: Vec<Node>,
    ring: Arc<Mutex<Ring>>,
    wall: Arc<AtomicU64>,
    asked: Arc<AtomicU64>,
    rng: SplitMix64,
    told: BTreeMap<u64, Told>,
    lines: Arc<Lines>,
    /// Nobody reaches them.
    isolated: Vec<usize>,
}

fn node_id(node: usize) -> NodeId {
    NodeId([u8::try_from(node).unwrap() + 1; 16])
}

fn device_id(node: usize) -> DeviceId {
    DeviceId([u8::try_from(node).unwrap() + 101; 16])
}

fn path(key: u64) -> ObjectPath {
    ObjectPath { account: "a".into(), container: "c".into(), object: key.to_string().into() }
}

pub(super) fn hash_of_key(key: u64) -> PathHash {
    crate::object::hash_of(&path(key))
}

pub(super) fn body(key: u64, sequence: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    SplitMix64::new(key ^ sequence).fill(&mut out);
    out
}

fn info(sequence: u64, body: &[u8]) -> ObjectInfo {
    ObjectInfo {
        timestamp: Timestamp(sequence),
        data_timestamp: Timestamp(sequence),
        size: body.len() as u64,
        md5: [7; 16],
        blake3: *blake3::hash(body).as_bytes(),
        content_type: "text/plain".to_owned(),
        delete_at: None,
        listed: ListedAs::default(),
        headers: Headers::default(),
    }
}

/// The groups of a put, commit last.
fn put_groups(key: u64, sequence: u64, len: usize) -> Vec<Draft> {
    let (hash, body) = (hash_of_key(key), Bytes::from(body(key, sequence, len)));
    let draft = |kind, number, key: &[u8], meta, data| Draft {
        kind,
        deleted: false,
        sequence,
        number,
        key: key.to_vec(),
        meta,
        data,
    };
    let mut meta = ObjectMeta {
        path: path(key),
        info: info(sequence, &body),
        chunked: None,
        chunk_size: 0,
        fragment: None,
        intent: None,
    };
    let mut out = Vec::new();
    if len > 1 << 20 {
        let mut data_id = [0; 16];
        data_id[..8].copy_from_slice(&sequence.to_le_bytes());
        meta.chunk_size = 1 << 20;
        for (number, at) in (0_u32..).zip((0..len).step_by(1 << 20)) {
            let data = body.slice(at..len.min(at + (1 << 20)));
            out.push(draft(Kind::Chunk, number, &data_id, hash.to_vec(), data));
        }
        meta.chunked = Some(Chunked { data_id, count: u32::try_from(out.len()).unwrap() });
    }
    let data = if len > 1 << 20 { Bytes::new() } else { body };
    out.push(draft(Kind::Object, 0, &hash, meta.encode(), data));
    out
}

fn delete_groups(key: u64, sequence: u64) -> Vec<Draft> {
    let (hash, meta) = (hash_of_key(key), encode_tombstone(&path(key)));
    let kind = Kind::Object;
    vec![Draft { kind, deleted: true, sequence, number: 0, key: hash.to_vec(), meta, data: Bytes::new() }]
}

async fn write(replica: Local, drafts: Vec<Draft>, class: Class) -> bool {
    for draft in drafts {
        let chunk = draft.kind == Kind::Chunk;
        let durability = if chunk { Durability::Appended } else { Durability::Durable };
        if replica.append(vec![draft], durability, class).await.is_err() {
            return false;
        }
    }
    true
}

impl World {
    pub(super) fn new(devices: usize, seed: u64) -> Self {
        let node = |n: usize| {
            let image = SimImage::new(DISK, seed * 100 + n as u64);
            let (cluster, device) = (ClusterId([7; 16]), device_id(n));
            let request = Format { cluster, device, segment_size: Some(16 << 20), overwrite: false };
            format(&mut image.open(), &request).unwrap();
            let index = Arc::new(MemoryIndex::new());
            Node { image, index, sim: None, replicator: None, synced: None, local: None, findings: 0 }
        };
        let mut world = Self {
            net: SimNet::new(seed, SimFaults::NONE),
            nodes: (0..devices).map(node).collect(),
            ring: Arc::new(Mutex::new(Ring { version: 1, devices, ..Ring::default() })),
            wall: Arc::new(AtomicU64::new(START)),
            asked: Arc::default(),
            rng: SplitMix64::new(seed),
            told: BTreeMap::new(),
            lines: Arc::default(),
            isolated: Vec::new(),
        };
        (0..devices).for_each(|n| world.open(n));
        world
    }

    fn wall(&self) -> Wall {
        let wall = self.wall.clone();
        Arc::new(move || wall.load(Ordering::SeqCst))
    }

    fn open(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let index = node.index.clone() as Arc<dyn Index>;
        let sim = SimulatedDisk::open(Box::new(node.image.open()), index, Arc::new(ObjectCatalog)).unwrap().0;
        let disk = sim.handle();
        node.sim = Some(sim);
        let own = Local::new(disk.clone());
        node.local = Some(own.clone());
        let local: Arc<dyn Replica> = Arc::new(own);
        let (net, wall) = (self.net.clone(), self.wall.clone());
        let wall = Box::new(move || wall.load(Ordering::SeqCst));
        let service = ReplicaService::new(vec![local.clone()], Arc::new(move || net.now()), wall, 1);
        let service = Counting(service, self.asked.clone());
        let net: Arc<dyn Transport> = Arc::new(self.net.start(node_id(n), Arc::new(service)));
        let replica = |other: usize| -> Arc<dyn Replica> {
            if other == n {
                return local.clone();
            }
            Arc::new(Remote::new(net.clone(), node_id(other), device_id(other), WITHIN))
        };
        let replicas = (0..self.nodes.len()).map(replica).collect();
        let cluster: Arc<dyn Cluster> = Arc::new(View { ring: self.ring.clone(), replicas });
        let synced = Arc::new(Synced::new(disk.device(), cluster.clone()));
        let ages = Ages { reclaim: RECLAIM, settle: 10 };
        let replicator =
            Replicator::new(disk, local, cluster, synced.clone(), self.lines.clone(), self.wall(), ages);
        let node = &mut self.nodes[n];
        (node.replicator, node.synced) = (Some(replicator), Some(synced));
    }

    fn close(&mut self, n: usize) {
        self.net.stop(node_id(n));
        let node = &mut self.nodes[n];
        node.findings += node.replicator.take().map_or(0, |replicator| replicator.progress().findings);
        (node.sim, node.local) = (None, None);
    }

    pub(super) fn crash(&mut self, n: usize, keep_index: bool) {
        self.nodes[n].image.power_off();
        self.close(n);
        let node = &mut self.nodes[n];
        node.image.crash(CrashPlan::MIXED, &mut self.rng);
        if keep_index {
            node.index.crash_by(self.rng.next_u64());
        } else {
            node.index = Arc::new(MemoryIndex::new());
        }
        self.open(n);
    }

    pub(super) fn restart(&mut self, n: usize) {
        self.close(n);
        self.open(n);
    }

    /// A new disk in the place of one that was lost, with the old one's identity in the ring.
    pub(super) fn replace(&mut self, n: usize) {
        self.close(n);
        let image = SimImage::new(DISK, 4711);
        let (cluster, device) = (ClusterId([7; 16]), device_id(n));
        let request = Format { cluster, device, segment_size: Some(16 << 20), overwrite: false };
        format(&mut image.open(), &request).unwrap();
        (self.nodes[n].image, self.nodes[n].index) = (image, Arc::new(MemoryIndex::new()));
        self.open(n);
    }

    fn turn(&mut self) {
        for node in &mut self.nodes {
            node.sim.as_mut().unwrap().turn();
        }
        if !self.net.turn(self.net.now()) {
            let soon = self.net.now() + Duration::from_millis(1);
            let next = self.net.next_event().map_or(soon, |next| next.min(soon));
            self.net.turn(next.max(self.net.now() + Duration::from_micros(1)));
        }
    }

    fn run<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..1_000_000 {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            self.turn();
        }
        panic!("stuck");
    }

    pub(super) fn handle(&self, n: usize) -> DiskHandle {
        self.nodes[n].sim.as_ref().unwrap().handle()
    }

    fn local(&self, n: usize) -> Local {
        self.nodes[n].local.clone().unwrap()
    }

    pub(super) fn index(&self, n: usize) -> &dyn Index {
        self.nodes[n].index.as_ref()
    }

    fn tick(&self) -> u64 {
        self.wall.fetch_add(1000, Ordering::SeqCst) + 1000
    }

    pub(super) fn advance(&self, seconds: u64) {
        self.wall.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }

    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    pub(super) fn findings(&self) -> u64 {
        let of = |node: &Node| node.findings + node.replicator.as_ref().map_or(0, |r| r.progress().findings);
        self.nodes.iter().map(of).sum()
    }

    pub(super) fn cut(&self, a: usize, b: usize) {
        self.net.cut(node_id(a), node_id(b));
        self.net.cut(node_id(b), node_id(a));
    }

    pub(super) fn isolate(&mut self, n: usize) {
        self.isolated.push(n);
        (0..self.nodes.len()).filter(|other| *other != n).for_each(|other| self.cut(n, other));
    }

    pub(super) fn heal(&mut self) {
        self.isolated.clear();
        self.net.heal();
    }

    pub(super) fn turn_ring(&self) {
        let mut ring = self.ring.lock().unwrap();
        (ring.version, ring.turn) = (ring.version + 1, ring.turn + 1);
    }

    pub(super) fn without(&self, device: Option<usize>) {
        let mut ring = self.ring.lock().unwrap();
        (ring.version, ring.without) = (ring.version + 1, device);
    }

    pub(super) fn primaries(&self, key: u64) -> Vec<usize> {
        self.ring.lock().unwrap().primaries(partition_of(&hash_of_key(key), POWER))
    }

    /// As a coordinator does: to each primary, and to others for those that do not answer; two make it a success.
    fn change(&mut self, key: u64, version: (u64, bool), len: usize, drafts: &[Draft]) {
        self.told.entry(key).or_default().tried.insert(version, len);
        let primaries = self.primaries(key);
        let others: Vec<usize> = (0..self.nodes.len()).filter(|n| !primaries.contains(n)).collect();
        let without = self.ring.lock().unwrap().without;
        let mut spare = others.into_iter().filter(|n| Some(*n) != without);
        let mut done = 0;
        for n in primaries {
            let n = if self.rng.chance(150) { spare.next().unwrap_or(n) } else { n };
            if self.isolated.contains(&n) || self.rng.chance(100) {
                continue;
            }
            let class = if version.1 { Class::Delete } else { Class::Client };
            let local = self.local(n);
            done += usize::from(self.run(write(local, drafts.to_vec(), class)));
        }
        if done >= 2 {
            self.acknowledge(key, version);
        }
    }

    fn acknowledge(&mut self, key: u64, version: (u64, bool)) {
        let told = self.told.entry(key).or_default();
        told.acknowledged = told.acknowledged.max(Some(version));
        let line = told.acknowledged.unwrap_or(version);
        self.lines.0.lock().unwrap().insert(hash_of_key(key), line);
    }

    pub(super) fn put(&mut self, key: u64, len: usize) {
        let sequence = self.tick();
        self.change(key, (sequence, false), len, &put_groups(key, sequence, len));
    }

    pub(super) fn delete(&mut self, key: u64) {
        let sequence = self.tick();
        self.change(key, (sequence, true), 0, &delete_groups(key, sequence));
    }

    pub(super) fn put_on(&mut self, n: usize, key: u64, len: usize) -> u64 {
        let sequence = self.tick();
        self.told.entry(key).or_default().tried.insert((sequence, false), len);
        let local = self.local(n);
        assert!(self.run(write(local, put_groups(key, sequence, len), Class::Client)));
        sequence
    }

    pub(super) fn delete_on(&mut self, nodes: &[usize], key: u64) {
        let sequence = self.tick();
        for n in nodes {
            let local = self.local(*n);
            assert!(self.run(write(local, delete_groups(key, sequence), Class::Delete)));
        }
        self.told.entry(key).or_default().tried.insert((sequence, true), 0);
        self.acknowledge(key, (sequence, true));
    }

    /// A PUT that these took, and that is acknowledged.
    pub(super) fn put_done_on(&mut self, nodes: &[usize], key: u64, len: usize) {
        let sequence = self.put_on(nodes[0], key, len);
        for to in &nodes[1..] {
            self.copy(nodes[0], *to, key).unwrap();
        }
        self.acknowledge(key, (sequence, false));
    }

    /// Leaves a device no room for clients.
    pub(super) fn fill_up(&mut self, n: usize) {
        let (sequence, mut sizes) = (self.tick(), vec![1, 4 << 10, 64 << 10, 1 << 20]);
        for number in 0..u32::MAX {
            let Some(size) = sizes.last() else { return };
            let (key, meta, data) = (vec![0xdd; 16], vec![1; 16], Bytes::from(vec![9; *size]));
            let chunk = Draft { kind: Kind::Chunk, deleted: false, sequence, number, key, meta, data };
            let local = self.local(n);
            if !self.run(write(local, vec![chunk], Class::Client)) {
                sizes.pop();
            }
        }
    }

    pub(super) fn copy(&mut self, from: usize, to: usize, key: u64) -> Result<Copied, CopyError> {
        let stamp = self.holds(from, key).unwrap();
        let (from, to) = (self.local(from), self.local(to));
        self.run(async move { copy(&from, &to, stamp, &tokio::sync::Semaphore::new(1)).await })
    }

    /// One step of a replicator.
    pub(super) fn step(&mut self, n: usize) {
        let mut replicator = self.nodes[n].replicator.take().unwrap();
        let _outcome = self.run(replicator.step(4));
        self.nodes[n].replicator = Some(replicator);
    }

    /// Steps to the end of a round; whether it ended with nothing to do.
    pub(super) fn round(&mut self, n: usize) -> bool {
        let mut replicator = self.nodes[n].replicator.take().unwrap();
        let passes = replicator.progress().passes;
        let mut idle = false;
        for _ in 0..10_000 {
            let outcome = self.run(replicator.step(16));
            if outcome == Outcome::Idle || replicator.progress().passes != passes {
                idle = outcome == Outcome::Idle;
                break;
            }
        }
        self.nodes[n].replicator = Some(replicator);
        idle
    }

    /// What ends a replicator's work for now, if anything does.
    pub(super) fn rest(&mut self, n: usize) -> Option<Outcome> {
        let mut replicator = self.nodes[n].replicator.take().unwrap();
        let mut outcomes = (0..100).map(|_| self.run(replicator.step(16)));
        let rest = outcomes.find(|outcome| !matches!(outcome, Outcome::Did(_)));
        self.nodes[n].replicator = Some(replicator);
        rest
    }

    /// A device gives a version up that it need not keep.
    pub(super) fn evict(&mut self, n: usize, key: u64) {
        let (disk, stamp) = (self.handle(n), self.holds(n, key).unwrap());
        self.run(crate::sync::evict(&disk, &[stamp])).unwrap();
    }

    pub(super) fn settle(&mut self) {
        self.settle_but(&[]);
    }

    /// Rounds until nobody has anything to do.
    pub(super) fn settle_but(&mut self, but: &[usize]) {
        self.advance(60);
        let all: Vec<usize> = (0..self.nodes.len()).filter(|n| !but.contains(n)).collect();
        let mut quiet = 0;
        for _ in 0..60 {
            let idle = all.iter().map(|n| self.round(*n)).collect::<Vec<_>>();
            quiet = if idle.iter().all(|idle| *idle) { quiet + 1 } else { 0 };
            if quiet == 2 {
                return;
            }
        }
        if but.is_empty() {
            panic!("the devices do not settle");
        }
    }

    pub(super) fn prune(&mut self) {
        self.prune_but(&[]);
    }

    /// Cleans and prunes, as far as there is anything to do.
    pub(super) fn prune_but(&mut self, but: &[usize]) {
        for n in (0..self.nodes.len()).filter(|n| !but.contains(n)) {
            let disk = self.handle(n);
            // What was written so far is forced out of the open segment, so that ghosts can be cleaned away.
            self.fill(n);
            for _ in 0..8 {
                let Some(victim) = disk.victim(&[]) else { break };
                self.run(disk.clean(victim)).unwrap();
                self.run(disk.checkpoint()).unwrap();
            }
            let synced = self.nodes[n].synced.clone().unwrap();
            let mut pruner = Pruner::new(disk, self.wall(), RECLAIM, synced);
            for _ in 0..10 {
                if self.run(pruner.step(1000)) == Outcome::Idle {
                    break;
                }
            }
        }
    }

    /// Garbage that fills a segment: chunks of an upload that is given up.
    fn fill(&mut self, n: usize) {
        let id = [0xee; 16];
        let sequence = self.tick();
        for number in 0..17 {
            let data = Bytes::from(vec![9; 1 << 20]);
            let (key, meta) = (id.to_vec(), vec![1; 16]);
            let chunk = Draft { kind: Kind::Chunk, deleted: false, sequence, number, key, meta, data };
            let local = self.local(n);
            assert!(self.run(write(local, vec![chunk], Class::Delete)));
        }
        self.local(n).abandon(id, sequence);
        let disk = self.handle(n);
        self.run(disk.checkpoint()).unwrap();
        for _ in 0..50 {
            self.turn();
        }
    }

    /// Drops every tombstone of a device, as no pruner does.
    pub(super) fn reclaim_early(&mut self, n: usize) {
        let disk = self.handle(n);
        let graves = crate::catalog::graves(disk.index(), &[], 1000).unwrap();
        let change = disk.submit_prune(Box::new(move |tx| {
            for grave in &graves {
                tx.died(grave.head.at);
                tx.delete(Table::Graves, grave.key.clone());
                let hash = grave.object().unwrap();
                tx.shift(tally(&hash), 0_u128.wrapping_sub(weight(&hash, grave.head.sequence, true)));
            }
            Ok(())
        }));
        self.run(change).unwrap();
    }

    /// The index of a device as it was before there were sums.
    pub(super) fn forget_sums(&mut self, n: usize) {
        let disk = self.handle(n);
        self.run(disk.checkpoint()).unwrap();
        self.close(n);
        let index = self.nodes[n].index.clone();
        let rows = index.scan(Table::System, Range::prefix(b"T"));
        let changes = rows.map(|row| (Table::System, row.unwrap().0.into_vec(), None)).collect();
        index.apply(WriteSet { changes }).unwrap();
        self.open(n);
    }

    pub(super) fn spoil_sum(&mut self, n: usize, hash: PathHash) {
        let disk = self.handle(n);
        let change = disk.submit_prune(Box::new(move |tx| {
            tx.shift(tally(&hash), 5);
            Ok(())
        }));
        self.run(change).unwrap();
    }

    /// Flips a bit in the only place of a disk that holds these bytes.
    pub(super) fn flip(&mut self, n: usize, needle: &[u8]) {
        let image = &self.nodes[n].image;
        let step = 1 << 20;
        let found = (0..DISK / step).find_map(|at| {
            let len = usize::try_from((DISK - at * step).min(step + 8192)).unwrap();
            let bytes = image.peek(at * step, len);
            let found = bytes.windows(needle.len()).position(|window| window == needle)?;
            Some(at * step + found as u64)
        });
        image.flip(found.unwrap() + 100, 0x10);
        // The cache would hide it.
        self.restart(n);
    }

    pub(super) fn holds(&self, n: usize, key: u64) -> Option<Stamp> {
        let hash = hash_of_key(key);
        let version = crate::catalog::version(self.index(n), &hash).unwrap()?;
        Some(Stamp { hash, sequence: version.sequence, deleted: version.deleted })
    }

    pub(super) fn newest(&self, key: u64) -> Option<Stamp> {
        (0..self.nodes.len()).filter_map(|n| self.holds(n, key)).max()
    }

    pub(super) fn read(&mut self, n: usize, key: u64) -> Option<Bytes> {
        let (local, hash) = (self.local(n), hash_of_key(key));
        let opened = self.run(local.open(hash)).unwrap()?;
        let view = opened.record.view();
        let meta = ObjectMeta::decode(view.meta, view.sequence).unwrap();
        if meta.chunked.is_none() {
            return Some(opened.record.data());
        }
        assert_eq!(meta.chunked.unwrap().count as usize, opened.chunks.len(), "chunks are missing");
        let mut out = Vec::new();
        for (number, at) in (0..).zip(opened.chunks.iter()) {
            let record = self.run(local.read(*at)).unwrap();
            out.extend_from_slice(&check_chunk(&meta, &hash, number, &record).unwrap());
        }
        Some(out.into())
    }

    /// The sums of every device are those of what it holds.
    pub(super) fn check_sums(&self, seed: u64) {
        for n in 0..self.nodes.len() {
            let (mut kept, mut counted) = (BTreeMap::new(), BTreeMap::<u32, u128>::new());
            self.handle(n).tallies().visit(0..TALLIES, |tally, sum| {
                kept.insert(tally, sum);
            });
            let mut add = |(tally, by): (u32, u128)| {
                let sum = counted.entry(tally).or_default();
                *sum = sum.wrapping_add(by);
            };
            ObjectCatalog.count(self.index(n), &mut add).unwrap();
            assert_eq!(kept, counted, "seed {seed}: sums of device {n}");
        }
    }

    /// All is as clients were told, alike on every primary, and nowhere else.
    pub(super) fn check(&mut self, seed: u64) {
        self.check_sums(seed);
        for key in self.told.keys().copied().collect::<Vec<_>>() {
            let primaries = self.primaries(key);
            // A tombstone may go here sooner than there.
            let old = self.wall.load(Ordering::SeqCst) - RECLAIM * 1_000_000;
            let counts = |stamp: &Stamp| !stamp.deleted || stamp.sequence >= old;
            let newest = self.newest(key).filter(counts);
            for n in 0..self.nodes.len() {
                let held = self.holds(n, key);
                if primaries.contains(&n) {
                    assert_eq!(held.filter(counts), newest, "seed {seed}: key {key} on device {n}");
                } else {
                    assert_eq!(
                        held, None,
                        "seed {seed}: key {key} is still on device {n}, which is no primary of it"
                    );
                }
            }
            let told = &self.told[&key];
            let version = newest.map(|stamp| (stamp.sequence, stamp.deleted));
            match (version, told.acknowledged) {
                (Some(version), acknowledged) => {
                    assert!(
                        Some(version) >= acknowledged,
                        "seed {seed}: key {key} is {version:?}, told {acknowledged:?}"
                    );
                    assert!(
                        told.tried.contains_key(&version),
                        "seed {seed}: key {key} was never {version:?}"
                    );
                }
                // A tombstone may be gone, with all that it hid.
                (None, Some((sequence, deleted))) => {
                    let later = told.tried.range((sequence, true)..).any(|((_, deleted), _)| *deleted);
                    assert!(deleted || later, "seed {seed}: key {key} is lost");
                }
                (None, None) => {}
            }
            if let Some((sequence, false)) = version {
                let len = self.told[&key].tried[&(sequence, false)];
                for n in primaries {
                    let read = self.read(n, key).unwrap();
                    assert!(
                        read == body(key, sequence, len),
                        "seed {seed}: bytes of key {key} on device {n}"
                    );
                }
            }
        }
    }
}
