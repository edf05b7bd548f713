//! Volumes and snapshots that were let go while others were clones of them. Histories: `lineage.rs`.

use bytes::Bytes;
use quarry_engine::block::VolumeId;

use super::rig::{Rig, label};
use crate::store::VolumeError;

fn reap(rig: &mut Rig) {
    let volumes = rig.volumes();
    while rig.run(volumes.reap()).unwrap() {}
}

#[test]
fn what_clones_need_is_unseen_and_goes_with_the_last_of_them() {
    let mut rig = Rig::new(4);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    rig.run(device.write_through(0, Bytes::from(vec![1; 1 << 20]))).unwrap();
    let volumes = rig.volumes();
    rig.run(volumes.snapshot("vol", "s", 1)).unwrap();
    rig.run(volumes.snapshot("vol", "alone", 1)).unwrap();
    for (id, name) in [(2, "a"), (3, "b")] {
        rig.run(volumes.clone_snapshot(VolumeId([id; 16]), label(name), "vol", "s")).unwrap();
    }
    rig.run(volumes.let_snapshot_go("vol", "s")).unwrap();
    rig.run(volumes.let_snapshot_go("vol", "alone")).unwrap();
    assert!(volumes.view("vol", "s").is_err() && volumes.find("vol").unwrap().snapshots().is_empty());
    // Its name is free, and what gets it is another.
    rig.run(volumes.snapshot("vol", "s", 2)).unwrap();
    rig.run(volumes.let_go("vol")).unwrap();
    assert!(matches!(rig.run(volumes.attach("vol")), Err(VolumeError::NoVolume(_))));
    assert!(rig.run(device.write(0, Bytes::from(vec![9; 4096]))).is_err(), "its head is refused");
    rig.create("vol", 4);
    let other = rig.attach("vol");
    assert_eq!(rig.read(&other, 0, 4096), vec![0; 4096]);
    drop((device, other, volumes));
    for keep_index in [true, false] {
        rig.crash(keep_index);
        reap(&mut rig);
        let volumes = rig.volumes();
        let names: Vec<String> = volumes.list().into_iter().map(|volume| volume.label.name).collect();
        assert_eq!(names, ["a", "b", "vol"]);
        for name in ["a", "b"] {
            let clone = rig.attach(name);
            assert_eq!(rig.read(&clone, 0, 1 << 20), vec![1; 1 << 20]);
        }
    }
    let volumes = rig.volumes();
    rig.run(volumes.delete("a")).unwrap();
    reap(&mut rig);
    assert!(rig.handle().usage().live > 1 << 20, "the other clone needs it");
    rig.run(volumes.flatten("b")).unwrap();
    reap(&mut rig);
    let clone = rig.attach("b");
    assert_eq!(rig.read(&clone, 0, 1 << 20), vec![1; 1 << 20]);
    rig.run(volumes.delete("b")).unwrap();
    rig.run(volumes.delete("vol")).unwrap();
    reap(&mut rig);
    assert!(rig.handle().usage().live < 100_000, "{} bytes are left", rig.handle().usage().live);
}

/// Who reads a snapshot while it is deleted was given zeroes, or what was there before, for what only it saw.
#[test]
fn what_a_deleted_snapshot_saw_is_refused_and_never_read_wrongly() {
    let mut rig = Rig::new(6);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    rig.run(device.write_through(0, Bytes::from(vec![1; 1 << 20]))).unwrap();
    let volumes = rig.volumes();
    for name in ["gone", "going", "last"] {
        rig.run(volumes.snapshot("vol", name, 1)).unwrap();
        rig.run(device.write_through(0, Bytes::from(vec![2; 1 << 20]))).unwrap();
    }
    rig.run(volumes.clone_snapshot(VolumeId([2; 16]), label("clone"), "vol", "going")).unwrap();
    let views = ["gone", "going", "last"].map(|name| volumes.view("vol", name).unwrap());
    rig.run(volumes.forget_snapshot("vol", "gone")).unwrap();
    reap(&mut rig);
    assert!(matches!(rig.run(views[0].read_whole(0, 4096)), Err(VolumeError::SnapshotGone)));
    assert!(matches!(rig.run(views[0].stretches(0, 4096, 1)), Err(VolumeError::SnapshotGone)));
    // All is there for the clone, and for who looked before.
    rig.run(volumes.let_snapshot_go("vol", "going")).unwrap();
    reap(&mut rig);
    assert_eq!(rig.read(&views[1], 0, 4096), vec![2; 4096]);
    assert_eq!(rig.read(&views[2], 0, 4096), vec![2; 4096]);
    rig.run(volumes.delete("clone")).unwrap();
    reap(&mut rig);
    assert!(matches!(rig.run(views[1].read_whole(0, 4096)), Err(VolumeError::SnapshotGone)));
    rig.run(volumes.delete("vol")).unwrap();
    assert!(matches!(rig.run(views[2].read_whole(0, 4096)), Err(VolumeError::SnapshotGone)));
}

#[test]
fn a_volume_gets_another_name_and_limits_also_over_a_crash() {
    let mut rig = Rig::new(5);
    rig.create("one", 1);
    rig.create("two", 2);
    let volumes = rig.volumes();
    assert!(matches!(rig.run(volumes.rename("one", "two")), Err(VolumeError::Taken(_))));
    assert!(matches!(rig.run(volumes.rename("one", "a b")), Err(VolumeError::Name(_))));
    rig.run(volumes.rename("one", "three")).unwrap();
    let mut limits = crate::pace::Limits::default();
    limits.0[1] = crate::pace::Rate { per_second: 100, burst: 10 };
    rig.run(volumes.limit("three", limits)).unwrap();
    drop(volumes);
    rig.crash(true);
    let volumes = rig.volumes();
    assert!(volumes.find("one").is_err());
    assert_eq!(volumes.find("three").unwrap().label.limits, limits);
}
