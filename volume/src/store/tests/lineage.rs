//! Clones, volumes that go back, and deleted snapshots: each view against a model, over crashes, by seed.

use std::collections::BTreeMap;

use bytes::Bytes;
use quarry_engine::block::VolumeId;
use quarry_engine::io::SplitMix64;

use super::rig::{Rig, VOLUME, label, locked};
use crate::store::{Device, VolumeError};

const BLOCK: usize = 4096;
/// Blocks that are used.
const BLOCKS: u64 = 300;

type Content = BTreeMap<u64, u8>;

fn check(rig: &mut Rig, device: &Device, content: &Content, context: &str) {
    let found = rig.read(device, 0, BLOCKS * BLOCK as u64);
    for (block, bytes) in (0..).zip(found.chunks(BLOCK)) {
        let expected = content.get(&block).copied().unwrap_or(0);
        assert!(
            bytes.iter().all(|b| *b == expected),
            "{context}: block {block} is {}, not {expected}",
            bytes[0]
        );
    }
}

fn write(rig: &mut Rig, device: &Device, content: &mut Content, rng: &mut SplitMix64) {
    let from = rng.below(BLOCKS);
    let count = (1 + if rng.chance(200) { rng.below(60) } else { rng.below(4) }).min(BLOCKS - from);
    let (offset, length) = (from * BLOCK as u64, count * BLOCK as u64);
    if rng.chance(150) {
        rig.run(device.discard(offset, length)).unwrap();
        content.retain(|block, _| !(from..from + count).contains(block));
    } else {
        let byte = 1 + u8::try_from(rng.below(255)).unwrap();
        let data = vec![byte; usize::try_from(length).unwrap()];
        rig.run(device.write(offset, Bytes::from(data))).unwrap();
        content.extend((from..from + count).map(|block| (block, byte)));
    }
}

fn reap(rig: &mut Rig) {
    let volumes = rig.volumes();
    while rig.run(volumes.reap()).unwrap() {}
}

/// All that is there: volumes, their snapshots, what each holds.
#[derive(Default)]
struct World {
    volumes: BTreeMap<String, Content>,
    snapshots: BTreeMap<(String, String), Content>,
    names: u32,
}

impl World {
    fn check(&self, rig: &mut Rig, context: &str) {
        let volumes = rig.volumes();
        for (name, content) in &self.volumes {
            let device = rig.attach(name);
            check(rig, &device, content, &format!("{context}, {name}"));
        }
        for ((name, snapshot), content) in &self.snapshots {
            let device = volumes.view(name, snapshot).unwrap();
            check(rig, &device, content, &format!("{context}, {name}@{snapshot}"));
        }
        let known: usize = volumes.list().iter().map(|volume| volume.snapshots().len()).sum();
        assert_eq!((volumes.list().len(), known), (self.volumes.len(), self.snapshots.len()), "{context}");
    }

    fn some_volume(&self, rng: &mut SplitMix64) -> String {
        self.volumes.keys().nth(rng.index(self.volumes.len())).unwrap().clone()
    }

    fn some_snapshot(&self, rng: &mut SplitMix64) -> Option<(String, String)> {
        let count = self.snapshots.len();
        (count > 0).then(|| self.snapshots.keys().nth(rng.index(count)).unwrap().clone())
    }

    fn step(&mut self, rig: &mut Rig, rng: &mut SplitMix64) {
        let volumes = rig.volumes();
        self.names += 1;
        let fresh = format!("n{}", self.names);
        match rng.below(100) {
            0..60 => {
                let name = self.some_volume(rng);
                let device = rig.attach(&name);
                for _ in 0..4 {
                    write(rig, &device, self.volumes.get_mut(&name).unwrap(), rng);
                }
            }
            60..75 => {
                let name = self.some_volume(rng);
                rig.run(volumes.snapshot(&name, &fresh, 1)).unwrap();
                self.snapshots.insert((name.clone(), fresh), self.volumes[&name].clone());
            }
            75..84 => {
                let Some((name, snapshot)) = self.some_snapshot(rng) else { return };
                if rng.chance(500) {
                    rig.run(volumes.let_snapshot_go(&name, &snapshot)).unwrap();
                    self.snapshots.remove(&(name, snapshot));
                    return;
                }
                match rig.run(volumes.forget_snapshot(&name, &snapshot)) {
                    Ok(()) => drop(self.snapshots.remove(&(name, snapshot))),
                    Err(VolumeError::HasClones(..)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            84..89 if self.volumes.len() < 5 => {
                let Some((name, snapshot)) = self.some_snapshot(rng) else { return };
                let id = VolumeId([u8::try_from(10 + self.names % 240).unwrap(); 16]);
                let label = crate::store::Label { bytes: 0, ..label(&fresh) };
                rig.run(volumes.clone_snapshot(id, label, &name, &snapshot)).unwrap();
                self.volumes.insert(fresh, self.snapshots[&(name, snapshot)].clone());
            }
            89..92 => {
                let name = self.some_volume(rng);
                rig.run(volumes.flatten(&name)).unwrap();
                assert!(volumes.find(&name).unwrap().parent().is_none());
            }
            92..95 => {
                let Some((name, snapshot)) = self.some_snapshot(rng) else { return };
                rig.run(volumes.revert(&name, &snapshot)).unwrap();
                self.volumes.insert(name.clone(), self.snapshots[&(name, snapshot)].clone());
            }
            95..97 if self.volumes.len() > 1 => {
                let name = self.some_volume(rng);
                if rng.chance(500) {
                    rig.run(volumes.let_go(&name)).unwrap();
                    self.volumes.remove(&name);
                    self.snapshots.retain(|(of, _), _| *of != name);
                    return;
                }
                match rig.run(volumes.delete(&name)) {
                    Ok(()) => {
                        self.volumes.remove(&name);
                        self.snapshots.retain(|(of, _), _| *of != name);
                    }
                    Err(VolumeError::HasClones(..)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            _ => {
                for _ in 0..rng.below(4) {
                    rig.run(volumes.reap()).unwrap();
                }
            }
        }
    }
}

fn clean(rig: &mut Rig) {
    let handle = rig.handle();
    while handle.usage().free < handle.usage().capacity / 3 {
        let Some(victim) = handle.victim(&[]) else { return };
        rig.run(handle.clean(victim)).unwrap();
        rig.run(handle.checkpoint()).unwrap();
    }
}

fn history(seed: u64) {
    let mut rig = Rig::new(seed);
    let mut rng = SplitMix64::new(seed);
    let mut world = World::default();
    // Every other one is encrypted, and with it all that comes from it.
    rig.create_as(if seed.is_multiple_of(2) { label("vol") } else { locked("vol") }, 1);
    world.volumes.insert("vol".into(), Content::new());
    for life in 0..5 {
        for _ in 0..30 {
            world.step(&mut rig, &mut rng);
            clean(&mut rig);
        }
        world.check(&mut rig, &format!("seed {seed} life {life}"));
        for name in world.volumes.keys().cloned().collect::<Vec<_>>() {
            let device = rig.attach(&name);
            rig.run(device.flush()).unwrap();
        }
        let keep_index = !rng.chance(300);
        rig.crash(keep_index);
        world.check(&mut rig, &format!("seed {seed} life {life} after a crash"));
    }
    reap(&mut rig);
    world.check(&mut rig, &format!("seed {seed} reaped"));
    // All go, children first: nothing is left but notes.
    while !world.volumes.is_empty() {
        let volumes = rig.volumes();
        for name in world.volumes.keys().cloned().collect::<Vec<_>>() {
            if rig.run(volumes.delete(&name)).is_ok() {
                world.volumes.remove(&name);
            }
        }
        // What was let go may be a clone of what is left.
        reap(&mut rig);
    }
    reap(&mut rig);
    assert!(rig.handle().usage().live < 100_000, "seed {seed}: {} bytes are left", rig.handle().usage().live);
}

#[test]
fn every_view_is_what_it_was_whatever_becomes_of_the_others() {
    let first = std::env::var("QUARRY_SEED").ok().and_then(|s| s.parse().ok());
    let seeds = first.map_or(0..30_u64, |seed| seed..seed + 1);
    for seed in seeds {
        // Reproduce one: QUARRY_SEED=<seed> cargo test --release -p quarry-volume every_view
        history(seed);
    }
}

fn fill(rig: &mut Rig, device: &Device, from: u64, mib: u64, byte: u8) {
    for at in from..from + mib {
        rig.run(device.write_through(at << 20, Bytes::from(vec![byte; 1 << 20]))).unwrap();
    }
}

#[test]
fn a_deleted_snapshot_gives_back_what_only_it_held() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
        let mut rig = Rig::new(1);
        rig.create("vol", 1);
        let device = rig.attach("vol");
        let volumes = rig.volumes();
        for round in 0..3_u8 {
            fill(&mut rig, &device, 0, 4, round + 1);
            rig.run(volumes.snapshot("vol", &format!("s{round}"), 1)).unwrap();
        }
        fill(&mut rig, &device, 0, 4, 9);
        let mut before = rig.handle().usage().live;
        assert!(before > 16 << 20);
        for (nth, snapshot) in order.into_iter().enumerate() {
            rig.run(volumes.forget_snapshot("vol", &format!("s{snapshot}"))).unwrap();
            if nth == 1 {
                // What a crash cuts off is done after it.
                drop(volumes.clone());
            }
            reap(&mut rig);
            let live = rig.handle().usage().live;
            assert!(before - live > 4 << 20, "{order:?}: {snapshot} gave back {}", before - live);
            before = live;
            for left in &order[nth + 1..] {
                let view = volumes.view("vol", &format!("s{left}")).unwrap();
                assert_eq!(rig.read(&view, 0, 4096), vec![u8::try_from(*left).unwrap() + 1; 4096]);
            }
        }
        assert_eq!(rig.read(&device, 0, 4096), vec![9; 4096]);
    }
}

/// The log holds records that nothing needs until they are cleaned: an index that is made anew meets them again.
#[test]
fn what_a_deleted_snapshot_held_does_not_come_back_with_a_new_index() {
    let mut rig = Rig::new(2);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let volumes = rig.volumes();
    fill(&mut rig, &device, 0, 4, 1);
    rig.run(volumes.snapshot("vol", "s", 1)).unwrap();
    fill(&mut rig, &device, 0, 4, 2);
    rig.run(volumes.forget_snapshot("vol", "s")).unwrap();
    reap(&mut rig);
    let live = rig.handle().usage().live;
    drop((device, volumes));
    for keep_index in [true, false, true] {
        rig.crash(keep_index);
        reap(&mut rig);
        assert!(rig.handle().usage().live.abs_diff(live) < 8192, "{} and {live}", rig.handle().usage().live);
        let device = rig.attach("vol");
        assert_eq!(rig.read(&device, 0, 4096), vec![2; 4096]);
    }
}

#[test]
fn a_parent_stays_for_its_clones() {
    let mut rig = Rig::new(3);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let volumes = rig.volumes();
    fill(&mut rig, &device, 0, 2, 1);
    rig.run(volumes.snapshot("vol", "s", 1)).unwrap();
    fill(&mut rig, &device, 1, 1, 2);
    let small = crate::store::Label { bytes: VOLUME / 2, ..label("small") };
    assert!(matches!(
        rig.run(volumes.clone_snapshot(VolumeId([9; 16]), small, "vol", "s")),
        Err(VolumeError::Smaller(..))
    ));
    let large = crate::store::Label { bytes: VOLUME * 2, ..label("clone") };
    let live = rig.handle().usage().live;
    let clone = rig.run(volumes.clone_snapshot(VolumeId([9; 16]), large, "vol", "s")).unwrap();
    assert!(rig.handle().usage().live - live < 2000, "a clone costs nothing");
    assert_eq!(volumes.parent_of(&clone), Some(("vol".into(), "s".into())));
    assert!(matches!(rig.run(volumes.forget_snapshot("vol", "s")), Err(VolumeError::HasClones(..))));
    assert!(matches!(rig.run(volumes.delete("vol")), Err(VolumeError::HasClones(..))));
    let own = rig.attach("clone");
    assert_eq!(own.bytes(), 2 * VOLUME);
    assert_eq!(rig.read(&own, 1 << 20, 4096), vec![1; 4096], "as the snapshot was");
    rig.run(own.discard(0, 4096)).unwrap();
    rig.run(own.write(2 * VOLUME - 4096, Bytes::from(vec![7; 4096]))).unwrap();
    rig.run(volumes.snapshot("clone", "mine", 1)).unwrap();
    rig.run(own.write(1 << 20, Bytes::from(vec![8; 4096]))).unwrap();
    rig.run(volumes.flatten("clone")).unwrap();
    rig.run(volumes.delete("vol")).unwrap();
    reap(&mut rig);
    drop((device, own, volumes));
    for keep_index in [true, false] {
        rig.crash(keep_index);
        reap(&mut rig);
        let volumes = rig.volumes();
        let own = rig.attach("clone");
        let mine = volumes.view("clone", "mine").unwrap();
        assert_eq!(rig.read(&own, 0, 8192), [vec![0; 4096], vec![1; 4096]].concat());
        assert_eq!(rig.read(&mine, 1 << 20, 4096), vec![1; 4096]);
        assert_eq!(rig.read(&own, 1 << 20, 8192), [vec![8; 4096], vec![1; 4096]].concat());
        assert_eq!(rig.read(&mine, 2 * VOLUME - 4096, 4096), vec![7; 4096]);
    }
}

/// What is connected to a clone goes on looking through to its parent when the clone has become independent. There, what was trimmed went with
/// the snapshot, and what lay below showed again.
#[test]
fn a_clone_that_took_over_hides_its_parent_from_who_is_connected() {
    let mut rig = Rig::new(8);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let volumes = rig.volumes();
    rig.run(device.write(0, Bytes::from(vec![1; 8192]))).unwrap();
    rig.run(volumes.snapshot("vol", "one", 1)).unwrap();
    rig.run(device.discard(0, 4096)).unwrap();
    rig.run(volumes.snapshot("vol", "two", 1)).unwrap();
    rig.run(device.write(0, Bytes::from(vec![3; 4096]))).unwrap();
    let made = label("clone");
    rig.run(volumes.clone_snapshot(VolumeId([9; 16]), made, "vol", "two")).unwrap();
    let connected = rig.attach("clone");
    let expected = Content::from([(1, 1)]);
    check(&mut rig, &connected, &expected, "before");
    rig.run(volumes.flatten("clone")).unwrap();
    rig.run(volumes.forget_snapshot("vol", "two")).unwrap();
    reap(&mut rig);
    check(&mut rig, &connected, &expected, "after");
}

#[test]
fn going_back_costs_what_changed_and_fences_whoever_wrote() {
    let mut rig = Rig::new(4);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let volumes = rig.volumes();
    fill(&mut rig, &device, 0, 16, 1);
    rig.run(volumes.snapshot("vol", "s", 1)).unwrap();
    rig.run(device.write(5 << 20, Bytes::from(vec![2; 8192]))).unwrap();
    rig.run(device.write(20 << 20, Bytes::from(vec![3; 4096]))).unwrap();
    assert_eq!(rig.run(volumes.difference("vol", "s", None)).unwrap(), [(5 << 20, 8192), (20 << 20, 4096)]);
    let written = rig.handle().usage().live;
    rig.run(volumes.revert("vol", "s")).unwrap();
    assert!(rig.handle().usage().live < written + 32_768);
    assert!(rig.run(device.read(0, 4096)).is_err(), "it was fenced");
    let device = rig.attach("vol");
    assert_eq!(rig.read(&device, 5 << 20, 12_288), vec![1; 12_288]);
    assert_eq!(rig.read(&device, 20 << 20, 4096), vec![0; 4096]);
    assert!(matches!(rig.run(volumes.revert("vol", "t")), Err(VolumeError::NoSnapshot(..))));
}
