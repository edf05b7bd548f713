//! A device of another node, on a real disk, over both bodies: it answers as it does at home.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quarry_engine::catalog::{Chunked, ObjectCatalog, ObjectMeta};
use quarry_engine::clock::{Clock, Timestamp};
use quarry_engine::disk::format::record::{DeviceId, Kind};
use quarry_engine::disk::{CacheBytes, Class, DiskConfig, DiskHandle, Durability, Format, format, start};
use quarry_engine::index::RocksOptions;
use quarry_engine::io::{OpenOptions, open_device};
use quarry_engine::net::limits::LEASE;
use quarry_engine::net::{Remote, ReplicaService};
use quarry_engine::object::{
    Draft, Error, Headers, ListedAs, ObjectInfo, ObjectPath, Options, Replica, Spread, Store,
};

use super::rig::{A, B, BOTH, CLUSTER, Echo, LONG, TestNode, authority, identity};
use crate::config::Carrier;
use crate::storage::wall_clock;

const HASH: [u8; 16] = [3; 16];
const DATA: [u8; 16] = [4; 16];
const CHUNK: usize = 300_000;

/// A formatted disk in a sparse file: a test needs no steady speed.
fn disk(dir: &Path) -> (Store, DiskHandle) {
    let config = DiskConfig {
        device: dir.join("disk"),
        io: OpenOptions::default(),
        index: RocksOptions::default(),
        index_path: dir.join("index"),
        cache_bytes: CacheBytes::small(8 << 20),
        cluster: Some(CLUSTER),
    };
    std::fs::File::create(&config.device).unwrap().set_len(208 << 20).unwrap();
    let request =
        Format { cluster: CLUSTER, device: DeviceId([2; 16]), segment_size: None, overwrite: false };
    format(open_device(&config.device, config.io).unwrap().as_mut(), &request).unwrap();
    let (disk, _) = start(&config, Arc::new(ObjectCatalog), &mut |_, _| {}).unwrap();
    let placement = Box::new(Spread::over(vec![disk.device()]));
    let clock = Clock::new(Box::new(wall_clock));
    (Store::start(vec![disk.clone()], placement, clock, Options::default()).unwrap(), disk)
}

fn body(seed: u8, len: usize) -> Bytes {
    (0..len).map(|at| u8::try_from(at % 251).unwrap() ^ seed).collect()
}

fn chunk(number: u32, data: Bytes) -> Draft {
    let (key, meta) = (DATA.to_vec(), HASH.to_vec());
    Draft { kind: Kind::Chunk, deleted: false, sequence: 1000, number, key, meta, data }
}

fn object(sequence: u64, chunked: Option<Chunked>, data: Bytes) -> Draft {
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
    let path = ObjectPath { account: "AUTH_a".into(), container: "c".into(), object: "o".into() };
    let meta = ObjectMeta {
        path,
        info,
        chunked,
        chunk_size: u32::try_from(CHUNK).unwrap(),
        fragment: None,
        intent: None,
    }
    .encode();
    Draft { kind: Kind::Object, deleted: false, sequence, number: 0, key: HASH.to_vec(), meta, data }
}

/// A node that asks and one that has a disk.
struct World {
    caller: TestNode,
    called: TestNode,
    service: ReplicaService,
    /// Milliseconds of the clock that leases go by.
    time: Arc<AtomicU64>,
    local: Arc<dyn Replica>,
    remote: Remote,
    disk: DiskHandle,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(carrier: Carrier) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, disk) = disk(dir.path());
        let local = store.replicas()[0].clone();
        let time = Arc::new(AtomicU64::new(0));
        let clock = time.clone();
        let clock = Arc::new(move || Duration::from_millis(clock.load(Ordering::SeqCst)));
        let service = ReplicaService::new(vec![local.clone()], clock, Box::new(wall_clock), 7);
        let authority = authority(CLUSTER);
        let caller = TestNode::new(carrier, identity(&authority, A), Arc::new(Echo));
        let called = TestNode::new(carrier, identity(&authority, B), Arc::new(service.clone()));
        caller.knows(B, called.address);
        let remote = Remote::new(caller.net.clone(), B, disk.device(), LONG);
        Self { caller, called, service, time, local, remote, disk, _dir: dir }
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.caller.runtime().block_on(work)
    }

    fn append(&self, group: Vec<Draft>) -> Result<(), Error> {
        self.run(self.remote.append(group, Durability::Durable, Class::Client))
    }

    fn pass_a_lease(&self) {
        self.time.fetch_add(u64::try_from(LEASE.as_millis()).unwrap(), Ordering::SeqCst);
        self.service.expire();
    }

    /// What is let go here is let go there, soon.
    fn wait_until_nothing_is_open(&self) {
        let begun = Instant::now();
        while self.service.open() > 0 {
            assert!(begun.elapsed() < LONG, "{} are open", self.service.open());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(self) {
        self.run(self.disk.close()).unwrap();
        self.caller.close();
        self.called.close();
    }
}

#[test]
fn a_remote_replica_answers_as_its_disk_does() {
    for carrier in BOTH {
        let world = World::new(carrier);
        assert_eq!(world.run(world.remote.version(HASH)).unwrap(), None, "{carrier}");
        assert!(world.run(world.remote.open(HASH)).unwrap().is_none(), "{carrier}");
        let chunks = [body(1, CHUNK), body(2, 12_345)];
        let chunked = Some(Chunked { data_id: DATA, count: 2 });
        world.append(vec![chunk(0, chunks[0].clone()), chunk(1, chunks[1].clone())]).unwrap();
        world.append(vec![object(1001, chunked, Bytes::new())]).unwrap();
        let replicas: [&dyn Replica; 2] = [world.local.as_ref(), &world.remote];
        for replica in replicas {
            let version = world.run(replica.version(HASH)).unwrap().unwrap();
            assert_eq!((version.sequence, version.deleted), (1001, false), "{carrier}");
            let opened = world.run(replica.open(HASH)).unwrap().unwrap();
            for (place, wanted) in opened.chunks.iter().zip(&chunks) {
                let read = world.run(replica.read(*place)).unwrap();
                assert!(read.data() == *wanted, "{carrier}");
            }
            assert_eq!(opened.chunks.len(), 2, "{carrier}");
        }
        world.wait_until_nothing_is_open();
        let bad = world.append(vec![object(u64::MAX, None, Bytes::new())]);
        assert!(matches!(bad, Err(Error::Refused(_))), "{carrier}: {bad:?}");
        world.stop();
    }
}

#[test]
fn a_lease_that_ran_out_at_the_disk_is_made_anew_for_the_same_version_alone() {
    for carrier in BOTH {
        let world = World::new(carrier);
        let data = body(3, CHUNK);
        world.append(vec![chunk(0, data.clone())]).unwrap();
        world.append(vec![object(1001, Some(Chunked { data_id: DATA, count: 1 }), Bytes::new())]).unwrap();
        let opened = world.run(world.remote.open(HASH)).unwrap().unwrap();
        let read = || world.run(world.remote.read(opened.chunks[0]));
        assert_eq!(world.service.open(), 1, "{carrier}");
        world.pass_a_lease();
        assert_eq!(world.service.open(), 0, "{carrier}");
        assert!(read().unwrap().data() == data, "{carrier}: opened anew, unseen");
        world.append(vec![object(1002, None, body(4, 100))]).unwrap();
        assert!(read().unwrap().data() == data, "{carrier}: held, so still there");
        world.pass_a_lease();
        let error = read().map(drop).unwrap_err();
        assert!(
            matches!(&error, Error::Unavailable { reason } if reason.contains("replaced")),
            "{carrier}: {error}"
        );
        drop(opened);
        world.wait_until_nothing_is_open();
        world.stop();
    }
}
