//! Anti-entropy over objects in fragments: lost disks, handoffs, a ring that turns.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quarry_ring::{Class, Device, Plan, Replicas, Ring, build};

use super::cluster::{Cluster, Shape};
use super::rig::bytes;
use crate::disk::format::record::DeviceId;
use crate::index::Table;
use crate::object::limits::STALL;
use crate::object::{Placement, Replica, RingPlacement, Wanted, remake};
use crate::sync::{Cluster as Peers, Synced};
use crate::work::{Ages, Outcome, Replicator, Wall, Worker, listings_of};

const MIB: usize = 1 << 20;

/// The cluster as one node's replicator sees it.
struct View {
    ring: Arc<Mutex<(u64, RingPlacement)>>,
    replicas: Vec<Arc<dyn Replica>>,
}

impl Peers for View {
    fn policies(&self) -> Vec<u16> {
        vec![1]
    }

    fn version(&self, _: u16) -> u64 {
        self.ring.lock().unwrap().0
    }

    fn power(&self, _: u16) -> u8 {
        self.ring.lock().unwrap().1.ring().part_power()
    }

    fn primaries(&self, policy: u16, partition: u32) -> Vec<DeviceId> {
        assert_eq!(policy, 1);
        self.ring.lock().unwrap().1.devices_of(partition)
    }

    fn replica(&self, device: DeviceId) -> Option<Arc<dyn Replica>> {
        self.replicas.iter().find(|replica| replica.device() == device).cloned()
    }
}

struct Workers {
    ring: Arc<Mutex<(u64, RingPlacement)>>,
    all: Vec<Replicator>,
}

fn workers(cluster: &Cluster) -> Workers {
    let ring = Arc::new(Mutex::new((1, cluster.coded_placement())));
    let wall: Wall = {
        let wall = cluster.wall.clone();
        // All that was written has settled.
        Arc::new(move || wall.load(Ordering::SeqCst) + 60_000_000)
    };
    let one = |node: usize| {
        let (store, disk) = (cluster.store(node), cluster.handles(node).remove(0));
        let replicas = store.replicas().iter().cloned().chain(cluster.others(node)).collect();
        let view: Arc<dyn Peers> = Arc::new(View { ring: ring.clone(), replicas });
        let synced = Arc::new(Synced::new(disk.device(), view.clone()));
        let ages = Ages { reclaim: 24 * 3600, settle: 10 };
        let local = store.replicas()[0].clone();
        let listings = listings_of(disk.clone(), local.clone(), &store);
        Replicator::new(disk, local, view, synced, listings, wall.clone(), ages)
    };
    let all = (0..cluster.len()).map(one).collect();
    Workers { ring, all }
}

impl Workers {
    /// Every replicator has a few passes.
    fn sync(&mut self, cluster: &mut Cluster) {
        for _ in 0..4 {
            for worker in &mut self.all {
                let mut steps = 0;
                while let Outcome::Did(_) = cluster.run(worker.step(64)) {
                    steps += 1;
                    assert!(steps < 1000, "it gets on");
                }
            }
        }
    }
}

fn sorted(have: Vec<Option<u8>>) -> Vec<u8> {
    let mut have: Vec<u8> = have.into_iter().flatten().collect();
    have.sort_unstable();
    have
}

fn fill(cluster: &mut Cluster) -> Vec<(String, bytes::Bytes)> {
    let sizes = [2 * MIB + 5, 3000, MIB + 1, 40_000, 2 * MIB, 7];
    let bodies: Vec<_> = (0_u64..).zip(sizes).map(|(n, size)| (format!("o{n}"), bytes(n, size))).collect();
    for (name, body) in &bodies {
        cluster.put(0, name, body);
    }
    cluster.pass(STALL + Duration::from_millis(500));
    bodies
}

#[test]
fn a_disk_that_lost_all_gets_its_fragments_made_anew() {
    let mut cluster = Cluster::new(Shape::coded(5, 3, 2), 31);
    let bodies = fill(&mut cluster);
    let keys: Vec<_> = bodies.iter().map(|(name, _)| cluster.key(0, name).unwrap()).collect();
    let before: Vec<_> = keys.iter().map(|key| cluster.fragments(*key)).collect();
    for lost in [1, 4] {
        keys.iter().for_each(|key| cluster.forget(lost, *key));
        assert_eq!(cluster.count(lost, Table::Chunks), 0);
        let mut workers = workers(&cluster);
        workers.sync(&mut cluster);
    }
    let after: Vec<_> = keys.iter().map(|key| cluster.fragments(*key)).collect();
    assert_eq!(after, before);
    cluster.cut(2);
    cluster.cut(3);
    for (name, body) in &bodies {
        assert!(cluster.try_open(0, name).unwrap().unwrap() == *body, "{name} from what was made");
    }
}

#[test]
fn handoffs_bring_their_fragments_home_and_give_them_up() {
    let mut cluster = Cluster::new(Shape::coded(7, 3, 2), 32);
    cluster.cut(2);
    cluster.cut(5);
    // Two rounds: by the second it is known who is down.
    fill(&mut cluster);
    let bodies = fill(&mut cluster);
    cluster.net.heal();
    cluster.pass(Duration::from_secs(30));
    let mut workers = workers(&cluster);
    workers.sync(&mut cluster);
    for (name, body) in &bodies {
        let key = cluster.key(0, name).unwrap();
        let (places, have) = (cluster.places(&key), cluster.fragments(key));
        for (index, node) in places.iter().enumerate() {
            assert_eq!(have[*node].map(usize::from), Some(index), "{name}: {have:?} at {places:?}");
        }
        assert_eq!(sorted(have), [0, 1, 2, 3, 4], "{name}: nothing is left on handoffs");
        assert!(cluster.try_open(0, name).unwrap().unwrap() == *body);
    }
}

#[test]
fn after_a_ring_change_the_new_device_has_the_place_that_it_took_over() {
    let mut cluster = Cluster::new(Shape::coded(6, 3, 2), 33);
    let bodies = fill(&mut cluster);
    let keys: Vec<_> = bodies.iter().map(|(name, _)| cluster.key(0, name).unwrap()).collect();
    let mut workers = workers(&cluster);
    // Without the fourth.
    let zone = |id: u32| u16::try_from(id).unwrap();
    let device = |id: u32| Device { id, region: 0, zone: zone(id), node: id, weight: 1, class: Class::Nvme };
    let devices = (0..6).filter(|id| *id != 3).map(device).collect();
    let ring: Ring =
        build(Plan { version: 2, part_power: 6, replicas: Replicas::whole(5), devices }).unwrap();
    cluster.turn_ring(ring);
    *workers.ring.lock().unwrap() = (2, cluster.coded_placement());
    workers.sync(&mut cluster);
    for (key, (name, body)) in keys.iter().zip(&bodies) {
        let have = cluster.fragments(*key);
        assert_eq!(have[3], None, "{name}: given up by the one that left");
        assert_eq!(sorted(have), [0, 1, 2, 3, 4], "{name}: each once");
        assert!(cluster.try_open(0, name).unwrap().unwrap() == *body);
    }
}

/// A handoff had the same fragment as a primary when the ring made it a primary in the place of another device. All primaries had the version
/// then, by its stamp, and that device gave up the only fragment of its number: fewer disks could be lost from then on.
#[test]
fn a_fragment_that_only_a_handoff_has_goes_to_a_primary_that_has_the_same_as_another() {
    for size in [5000, 2 * MIB + 5] {
        let mut cluster = Cluster::new(Shape::coded(6, 3, 2), 35);
        let body = bytes(1, size);
        cluster.put(0, "o", &body);
        cluster.pass(STALL + Duration::from_millis(500));
        let key = cluster.key(0, "o").unwrap();
        let devices = cluster.coded_placement().primaries(&key);
        let replicas: Vec<_> = cluster.store(0).replicas().iter().cloned().chain(cluster.others(0)).collect();
        let spare = replicas.iter().find(|replica| !devices.contains(&replica.device())).unwrap().clone();
        let wanted = Wanted { hash: key, places: &devices, anew: false };
        cluster.run(remake(&replicas, spare.as_ref(), wanted)).unwrap();
        let twice: Vec<u8> = sorted(cluster.fragments(key));
        assert_eq!(twice, [0, 0, 1, 2, 3, 4]);
        let leaves = u32::try_from(cluster.places(&key)[1]).unwrap();
        let device = |id: u32| {
            let zone = u16::try_from(id).unwrap();
            Device { id, region: 0, zone, node: id, weight: 1, class: Class::Nvme }
        };
        let devices = (0..6).filter(|id| *id != leaves).map(device).collect();
        let plan = Plan { version: 2, part_power: 6, replicas: Replicas::whole(5), devices };
        let mut workers = workers(&cluster);
        cluster.turn_ring(build(plan).unwrap());
        *workers.ring.lock().unwrap() = (2, cluster.coded_placement());
        workers.sync(&mut cluster);
        let have = cluster.fragments(key);
        assert_eq!(have[leaves as usize], None, "{size}: given up by the one that left");
        assert_eq!(sorted(have.clone()), [0, 1, 2, 3, 4], "{size}: each once");
        assert!(cluster.try_open(0, "o").unwrap().unwrap() == body);
        for worker in &mut workers.all {
            assert!(
                matches!(cluster.run(worker.step(64)), Outcome::Idle),
                "{size}: nothing is left to be done"
            );
        }
        // Also from the logs alone.
        drop(workers);
        for node in 0..cluster.len() {
            cluster.kill(node);
            cluster.lose_indexes(node);
            cluster.start(node);
        }
        assert_eq!(cluster.fragments(key), have, "{size}");
    }
}

#[test]
fn of_a_body_with_too_few_fragments_nothing_is_made_and_the_sync_ends() {
    let mut cluster = Cluster::new(Shape::coded(5, 3, 2), 34);
    let bodies = fill(&mut cluster);
    let key = cluster.key(0, &bodies[0].0).unwrap();
    for node in 1..4 {
        cluster.forget(node, key);
    }
    let mut workers = workers(&cluster);
    workers.sync(&mut cluster);
    assert_eq!(cluster.fragments(key).into_iter().flatten().count(), 2);
    assert!(cluster.try_open(0, &bodies[0].0).is_err());
    assert!(cluster.try_open(0, &bodies[1].0).unwrap().unwrap() == bodies[1].1);
}
