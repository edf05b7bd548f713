//! A replica on another node answers as a local one does, over a real object layer and a simulated network.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::rig::SimRig;
use crate::catalog::{Chunked, ObjectMeta};
use crate::clock::{Timestamp, WallClock};
use crate::disk::format::record::{DeviceId, Kind};
use crate::disk::limits::{MAX_DATA, MAX_KEY, MAX_META};
use crate::disk::{Class, Durability, Location};
use crate::net::conformance::Rig as _;
use crate::net::limits::{HANDLES_PER_PEER, LEASE, MAX_AHEAD, MAX_CHUNKS};
use crate::net::{Code, NodeId, Remote, ReplicaService, Request, Response, Service, SimFaults, Transport};
use crate::object::tests::rig::{self, Rig, bytes};
use crate::object::{
    CHUNK, Draft, Error, Headers, ListedAs, ObjectInfo, ObjectReader, Opened, Replica, Result, hash_of,
};

const CLIENT: NodeId = NodeId([1; 16]);
const SERVER: NodeId = NodeId([2; 16]);
const WITHIN: Duration = Duration::from_secs(5);

struct World {
    rig: Rig,
    sim: SimRig,
    service: ReplicaService,
    net: Arc<dyn Transport>,
    local: Arc<dyn Replica>,
    remote: Arc<dyn Replica>,
}

/// Nothing is served at the caller's own node.
struct Nothing;

impl Service for Nothing {
    fn handle(&self, _: NodeId, _: Request) -> crate::object::BoxFuture<'static, Response> {
        panic!("nobody calls the client");
    }
}

fn wall(rig: &Rig) -> WallClock {
    let wall = rig.wall.clone();
    Box::new(move || wall.load(Ordering::SeqCst))
}

impl World {
    fn new(seed: u64) -> Self {
        let rig = Rig::new(1, seed);
        let mut sim = SimRig::new(seed, SimFaults::NONE);
        let local = rig.store().replicas()[0].clone();
        let net = sim.net.clone();
        let service = ReplicaService::new(vec![local.clone()], Arc::new(move || net.now()), wall(&rig), seed);
        sim.start(SERVER, Arc::new(service.clone()));
        let net = sim.start(CLIENT, Arc::new(Nothing));
        let remote: Arc<dyn Replica> = Arc::new(Remote::new(net.clone(), SERVER, local.device(), WITHIN));
        Self { rig, sim, service, net, local, remote }
    }

    fn turn(&mut self) {
        self.rig.turn();
        self.sim.turn();
    }

    fn run<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..100_000 {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            self.turn();
        }
        panic!("stuck");
    }

    fn pass(&mut self, time: Duration) {
        let sleep = self.sim.sleep(time);
        self.run(sleep);
        self.service.expire();
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            self.turn();
        }
    }

    fn open(&mut self, name: &str) -> Result<Option<Opened>> {
        let opening = self.remote.open(hash_of(&rig::path(name)));
        self.run(opening)
    }

    fn read(&mut self, at: Location) -> Result<Bytes> {
        let reading = self.remote.read(at);
        self.run(reading).map(|record| record.data())
    }
}

fn draft(sequence: u64, data: &Bytes) -> Draft {
    let key = hash_of(&rig::path("x"));
    let info = ObjectInfo {
        timestamp: Timestamp(sequence),
        data_timestamp: Timestamp(sequence),
        size: data.len() as u64,
        md5: [0; 16],
        blake3: [0; 32],
        content_type: String::new(),
        delete_at: None,
        listed: ListedAs::default(),
        headers: Headers::default(),
    };
    let meta =
        ObjectMeta { path: rig::path("x"), info, chunked: None, chunk_size: 0, fragment: None, intent: None };
    Draft {
        kind: Kind::Object,
        deleted: false,
        sequence,
        number: 0,
        key: key.to_vec(),
        meta: meta.encode(),
        data: data.clone(),
    }
}

#[test]
fn appends_versions_and_opens_answer_as_a_local_replica_does() {
    let mut world = World::new(1);
    let hash = hash_of(&rig::path("x"));
    let (body, sequence) = (bytes(5, 70_000), 77);
    let version = world.remote.version(hash);
    assert_eq!(world.run(version).unwrap(), None);
    assert!(world.open("x").unwrap().is_none());
    let append = world.remote.append(vec![draft(sequence, &body)], Durability::Durable, Class::Client);
    world.run(append).unwrap();
    for replica in [world.local.clone(), world.remote.clone()] {
        let version = world.run(replica.version(hash)).unwrap().unwrap();
        assert_eq!((version.sequence, version.deleted), (sequence, false));
        let opened = world.run(replica.open(hash)).unwrap().unwrap();
        assert_eq!((opened.record.data(), opened.chunks.len()), (body.clone(), 0));
    }
    assert_eq!(world.service.open(), 0, "an object without chunks is not held");
    let tombstone = Draft { deleted: true, data: Bytes::new(), ..draft(78, &body) };
    let append = world.remote.append(vec![tombstone], Durability::Durable, Class::Delete);
    world.run(append).unwrap();
    let version = world.remote.version(hash);
    assert!(world.run(version).unwrap().unwrap().deleted);
    assert!(world.open("x").unwrap().is_none());
}

#[test]
fn a_large_object_is_read_whole_while_it_is_overwritten() {
    let mut world = World::new(2);
    let body = bytes(6, 3 * CHUNK + 12_345);
    world.rig.put("big", &body);
    let opened = world.open("big").unwrap().unwrap();
    assert_eq!((opened.chunks.len(), world.service.open()), (4, 1));
    let view = opened.record.view();
    let meta = ObjectMeta::decode(view.meta, view.sequence).unwrap();
    world.rig.put("big", &bytes(7, 100));
    let reader = ObjectReader::new(meta, opened, hash_of(&rig::path("big")), world.remote.clone());
    let mut range = reader.range(1000..reader.info.size);
    let mut read = Vec::new();
    while let Some(piece) = world.run(range.next()) {
        read.extend_from_slice(&piece.unwrap());
    }
    assert!(read == body[1000..]);
    drop((reader, range));
    world.settle();
    assert_eq!(world.service.open(), 0, "what is let go here is let go there");
}

#[test]
fn a_lease_that_ran_out_is_made_anew_for_the_same_version_alone() {
    let mut world = World::new(3);
    let body = bytes(8, 2 * CHUNK);
    world.rig.put("big", &body);
    let opened = world.open("big").unwrap().unwrap();
    world.pass(LEASE / 2);
    assert!(world.read(opened.chunks[0]).unwrap() == body[..CHUNK]);
    world.pass(LEASE / 2);
    assert_eq!(world.service.open(), 1, "a read makes the lease anew");
    world.pass(LEASE);
    assert_eq!(world.service.open(), 0);
    assert!(world.read(opened.chunks[1]).unwrap() == body[CHUNK..], "opened anew, unseen");
    assert_eq!(world.service.open(), 1);
    world.rig.put("big", &bytes(9, 2 * CHUNK));
    world.pass(LEASE);
    let error = world.read(opened.chunks[0]).unwrap_err();
    assert!(matches!(&error, Error::Unavailable { reason } if reason.contains("replaced")), "{error}");
    world.settle();
    assert_eq!(world.service.open(), 0, "the newer version is not kept open");
}

#[test]
fn a_restarted_peer_knows_no_handle_of_before() {
    let mut world = World::new(4);
    let body = bytes(8, 2 * CHUNK);
    world.rig.put("big", &body);
    world.rig.put("other", &bytes(9, 2 * CHUNK));
    let opened = world.open("big").unwrap().unwrap();
    let net = world.sim.net.clone();
    let (clock, wall) = (Arc::new(move || net.now()), wall(&world.rig));
    let service = ReplicaService::new(vec![world.local.clone()], clock, wall, 999);
    world.sim.start(SERVER, Arc::new(service.clone()));
    // The new life gives the same number to another object.
    let _other = world.open("other").unwrap().unwrap();
    assert!(world.read(opened.chunks[1]).unwrap() == body[CHUNK..]);
    assert_eq!(service.open(), 2);
}

#[test]
fn what_is_held_open_for_one_peer_is_limited() {
    let mut world = World::new(5);
    world.rig.put("big", &bytes(8, 2 * CHUNK));
    let mut open = Vec::new();
    for _ in 0..HANDLES_PER_PEER {
        open.push(world.open("big").unwrap().unwrap());
    }
    let error = world.open("big").map(drop).unwrap_err();
    assert!(matches!(&error, Error::Unavailable { reason } if reason.contains("too many")), "{error}");
    open.pop();
    world.settle();
    assert!(world.open("big").is_ok());
}

#[test]
fn errors_keep_their_kind() {
    let mut world = World::new(6);
    let body = bytes(8, 100_000);
    world.rig.put("x", &body);
    world.rig.flip(0, &body[50_000..50_100]);
    assert!(matches!(world.open("x").map(drop), Err(Error::Corrupt { .. })));
    let other = Remote::new(world.net.clone(), SERVER, DeviceId([0xee; 16]), WITHIN);
    let error = world.run(other.version([0; 16])).unwrap_err();
    assert!(
        matches!(&error, Error::Unavailable { reason } if reason.contains("not at this node")),
        "{error}"
    );
    let long = Draft { key: vec![0; MAX_KEY + 1], ..draft(1, &body) };
    let append = world.remote.append(vec![long], Durability::Durable, Class::Client);
    assert!(matches!(world.run(append), Err(Error::Refused(_))));
    let unknown = Remote::new(world.net.clone(), NodeId([9; 16]), world.local.device(), WITHIN);
    assert!(matches!(world.run(unknown.version([0; 16])), Err(Error::Unavailable { .. })));
}

#[test]
fn no_request_of_a_peer_makes_a_device_panic() {
    let mut world = World::new(7);
    let device = world.local.device();
    let append =
        |group| Request::Append { device, group, durability: Durability::Durable, class: Class::Client };
    let large = |data: usize| Draft { meta: vec![0; MAX_META], ..draft(1, &bytes(1, data)) };
    let groups = [
        vec![],
        vec![draft(1, &Bytes::new()); 9],
        vec![large(MAX_DATA + 1)],
        vec![large(MAX_DATA); 4],
        vec![Draft { key: vec![1; MAX_KEY], kind: Kind::Row, ..large(MAX_DATA / 2) }; 8],
    ];
    for group in groups {
        let answer = world.service.handle(CLIENT, append(group));
        let answer = world.run(answer);
        assert!(
            matches!(&answer, Response::Failed(failure) if failure.code == Code::BadRequest),
            "{answer:?}"
        );
    }
    let body = bytes(8, 2 * CHUNK);
    world.rig.put("big", &body);
    let hash = hash_of(&rig::path("big"));
    let answer = world.service.handle(CLIENT, Request::Open { device, hash });
    let Response::Opened(Some(opened)) = world.run(answer) else { panic!("it is there") };
    let handle = opened.handle.unwrap();
    for (peer, chunk, code) in
        [(CLIENT, 2, Code::BadRequest), (CLIENT, u32::MAX, Code::BadRequest), (SERVER, 0, Code::Expired)]
    {
        let answer = world.service.handle(peer, Request::Read { device, handle, chunk });
        let answer = world.run(answer);
        assert!(matches!(&answer, Response::Failed(failure) if failure.code == code), "{answer:?}");
    }
}

#[test]
fn an_abandoned_upload_leaves_nothing() {
    let mut world = World::new(8);
    let hash = hash_of(&rig::path("x"));
    let chunk =
        Draft { kind: Kind::Chunk, key: vec![4; 16], meta: hash.to_vec(), ..draft(90, &bytes(1, 5000)) };
    let append = world.remote.append(vec![chunk], Durability::Durable, Class::Client);
    world.run(append).unwrap();
    assert_eq!(world.rig.count(0, crate::index::Table::Chunks), 1);
    world.remote.abandon([4; 16], 91);
    world.settle();
    assert_eq!(world.rig.count(0, crate::index::Table::Chunks), 0);
}

/// The order to give an upload up came after its commit was through: the coordinator had not heard of it. From then on the device
/// refused every other record of that body, a POST's and a replicator's, until its node was started again.
#[test]
fn a_body_that_was_given_up_after_its_commit_takes_other_records() {
    let mut world = World::new(11);
    let (body, hash) = (bytes(1, 5000), hash_of(&rig::path("x")));
    let chunk = Draft { kind: Kind::Chunk, key: vec![4; 16], meta: hash.to_vec(), ..draft(90, &body) };
    let object = |sequence| {
        let small = draft(sequence, &Bytes::new());
        let mut meta = ObjectMeta::decode(&small.meta, small.sequence).unwrap();
        meta.info.size = body.len() as u64;
        (meta.chunked, meta.chunk_size) = (Some(Chunked { data_id: [4; 16], count: 1 }), 1 << 20);
        Draft { meta: meta.encode(), ..small }
    };
    for draft in [chunk, object(91)] {
        let append = world.remote.append(vec![draft], Durability::Durable, Class::Client);
        world.run(append).unwrap();
    }
    world.remote.abandon([4; 16], 92);
    world.settle();
    let append = world.remote.append(vec![object(93)], Durability::Durable, Class::Client);
    world.run(append).unwrap();
    let opened = world.open("x").unwrap().unwrap();
    assert_eq!((opened.record.view().sequence, opened.chunks.len()), (93, 1));
}

/// A peer whose clock was wrong wrote with a version time near the end of time. At the next start the node's clock went on from
/// there, ran over, and every write panicked; with a clock some years ahead, every later version carried those years.
#[test]
fn a_version_time_far_ahead_is_refused() {
    let mut world = World::new(9);
    let body = bytes(8, 100);
    let now = world.rig.wall.load(Ordering::SeqCst);
    let ahead = u64::try_from(MAX_AHEAD.as_micros()).unwrap();
    for (sequence, good) in [(now + ahead, true), (now + 2 * ahead, false), (u64::MAX, false)] {
        let append = world.remote.append(vec![draft(sequence, &body)], Durability::Durable, Class::Client);
        let result = world.run(append);
        assert_eq!(result.is_ok(), good, "{sequence}: {result:?}");
        assert!(result.is_ok() || matches!(result, Err(Error::Refused(_))));
        let device = world.local.device();
        let answer = world.service.handle(CLIENT, Request::Abandon { device, upload: [4; 16], sequence });
        assert_eq!(world.run(answer) == Response::Done, good, "{sequence}");
    }
}

/// A chunk numbered 4,294,967,295 and then its upload's end put a disk out of service, at every later start again; with one less
/// its thread walked four thousand million numbers. So did an object that said to have so many chunks, once it was replaced.
#[test]
fn no_number_of_chunks_stops_a_disk() {
    let mut world = World::new(10);
    let hash = hash_of(&rig::path("x"));
    let chunk = |number| Draft {
        kind: Kind::Chunk,
        number,
        key: vec![4; 16],
        meta: hash.to_vec(),
        ..draft(90, &bytes(1, 5000))
    };
    let object = |count| {
        let small = draft(91, &Bytes::new());
        let mut meta = ObjectMeta::decode(&small.meta, small.sequence).unwrap();
        meta.chunked = Some(Chunked { data_id: [4; 16], count });
        Draft { meta: meta.encode(), ..small }
    };
    let unreadable = Draft { meta: vec![0xff; 10], ..object(1) };
    let bad = [u32::MAX, u32::MAX - 1, MAX_CHUNKS].map(chunk);
    for draft in bad.into_iter().chain([object(u32::MAX), object(MAX_CHUNKS + 1), unreadable]) {
        let device = world.local.device();
        let (durability, class) = (Durability::Durable, Class::Client);
        let append = Request::Append { device, group: vec![draft], durability, class };
        let answer = world.service.handle(CLIENT, append);
        let answer = world.run(answer);
        assert!(
            matches!(&answer, Response::Failed(failure) if failure.code == Code::BadRequest),
            "{answer:?}"
        );
    }
    world.remote.abandon([4; 16], 92);
    world.settle();
    world.rig.put("x", &bytes(2, 100));
    assert!(world.open("x").unwrap().is_some(), "the disk goes on");
}
