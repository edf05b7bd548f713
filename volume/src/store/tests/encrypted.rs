//! Encrypted volumes: what the disk has of them, and what opens them. Histories of clones and snapshots: `lineage.rs`.

use std::sync::Arc;

use bytes::Bytes;
use quarry_engine::block::VolumeId;

use super::rig::{Rig, SEGMENT, SEGMENTS, VOLUME, keys, label, locked};
use crate::store::{Label, VolumeError, Volumes};
use crate::{CipherError, KeyName, KeyRing};

/// Sixteen bytes that are found nowhere by chance.
const MARK: &[u8; 16] = b"plain, word, xyz";

fn text(blocks: usize) -> Bytes {
    Bytes::from(MARK.repeat(blocks * 4096 / MARK.len()))
}

fn seen_on_disk(rig: &Rig) -> bool {
    let segments = 0..SEGMENTS;
    segments
        .map(|segment| rig.image.peek(segment * SEGMENT, usize::try_from(SEGMENT).unwrap()))
        .any(|bytes| bytes.chunks(MARK.len()).any(|place| place == MARK))
}

#[test]
fn the_disk_has_nothing_of_what_was_written() {
    let mut rig = Rig::new(1);
    rig.create_as(locked("vol"), 1);
    let device = rig.attach("vol");
    // Whole blocks, over the end of a chunk; a part of a block; zeroes that take space.
    rig.run(device.write((1 << 20) - 8192, text(4))).unwrap();
    rig.run(device.write(100, text(2))).unwrap();
    rig.run(device.zero(1 << 22, 8192, true)).unwrap();
    let before = rig.read(&device, 0, 1 << 20);
    assert_eq!(before[100..116], *MARK, "what is not durable yet reads as it was written");
    rig.run(device.flush()).unwrap();
    assert!(!seen_on_disk(&rig));
    drop(device);
    rig.crash(false);
    let device = rig.attach("vol");
    assert_eq!(rig.read(&device, 0, 1 << 20), before);
    assert_eq!(rig.read(&device, (1 << 20) - 8192, 16384), text(4));
    let untouched = rig.read(&device, VOLUME - 8192, 8192);
    let zeroed = rig.read(&device, 1 << 22, 8192);
    assert!(untouched.iter().chain(&zeroed).all(|byte| *byte == 0));
    // The search itself finds what is there.
    rig.create("open", 2);
    let open = rig.attach("open");
    rig.run(open.write_through(0, text(1))).unwrap();
    assert!(seen_on_disk(&rig));
}

#[test]
fn without_the_key_nothing_is_read_written_or_made() {
    let mut rig = Rig::new(3);
    rig.create_as(locked("vol"), 1);
    let device = rig.attach("vol");
    rig.run(device.write_through(0, text(1))).unwrap();
    let volumes = rig.volumes();
    rig.run(volumes.snapshot("vol", "s", 1)).unwrap();
    drop((device, volumes));
    let disk = rig.handle();
    for keys in [KeyRing::default(), KeyRing::new(vec![[6; 32]])] {
        let volumes = Arc::new(Volumes::open(vec![disk.clone()]).unwrap().with_keys(keys));
        let foreign = |error| matches!(error, VolumeError::Cipher(CipherError::Foreign(_)));
        assert!(foreign(rig.run(volumes.attach("vol")).unwrap_err()));
        assert!(foreign(volumes.view("vol", "s").unwrap_err()));
        assert!(foreign(rig.run(volumes.revert("vol", "s")).unwrap_err()));
        let clone = volumes.clone_snapshot(VolumeId([9; 16]), label("clone"), "vol", "s");
        assert!(foreign(rig.run(clone).unwrap_err()));
    }
    let none = Volumes::open(vec![disk.clone()]).unwrap();
    assert!(matches!(none.wrap(&[1; 64]).unwrap_err(), VolumeError::Cipher(CipherError::NoKey)));
    // An older key stays good behind a newer one.
    let keys = KeyRing::new(vec![[6; 32], [5; 32]]);
    let volumes = Volumes::open(vec![disk]).unwrap().with_keys(keys);
    let device = rig.run(volumes.attach("vol")).unwrap();
    assert_eq!(rig.read(&device, 0, 4096), text(1));
}

#[test]
fn volumes_are_wrapped_anew_each_by_itself_and_no_key_goes_that_one_needs() {
    let (mut rig, keys) = (Rig::new(4), keys());
    rig.create_as(locked("one"), 1);
    rig.create_as(locked("two"), 2);
    let (old, new) = (KeyName::of(&[5; 32]), KeyName::of(&[6; 32]));
    let volumes = Volumes::open(vec![rig.handle()]).unwrap().with_keys(keys.clone());
    let device = rig.run(volumes.attach("one")).unwrap();
    rig.run(device.write_through(0, text(1))).unwrap();
    rig.run(volumes.snapshot("one", "s", 1)).unwrap();
    rig.run(volumes.clone_snapshot(VolumeId([9; 16]), label("clone"), "one", "s")).unwrap();
    // Its label stays for its clone, seen by nobody, and names its key.
    rig.run(volumes.let_go("one")).unwrap();
    let counts = |volumes: &Volumes| volumes.wrapped_by().into_iter().collect::<Vec<_>>();
    assert_eq!(counts(&volumes), [(old, 3)]);
    let never = || -> Result<(), VolumeError> { unreachable!("it is needed") };
    assert!(!rig.run(volumes.unless_wrapped(old, never)).unwrap());
    assert_eq!(rig.run(volumes.rewrap(new)).unwrap(), 0, "nothing is wrapped by a key that is not here");
    assert_eq!(counts(&volumes), [(old, 3)]);
    keys.replace(vec![[6; 32], [5; 32]]);
    assert_eq!(rig.run(volumes.rewrap(new)).unwrap(), 3);
    assert_eq!((rig.run(volumes.rewrap(new)).unwrap(), counts(&volumes)), (0, vec![(new, 3)]));
    let went = rig.run(volumes.unless_wrapped(old, || -> Result<(), VolumeError> {
        keys.replace(vec![[6; 32]]);
        Ok(())
    }));
    assert!(went.unwrap());
    drop((device, volumes));
    // After a restart, with the new key alone.
    let volumes = Arc::new(Volumes::open(vec![rig.handle()]).unwrap().with_keys(keys));
    assert_eq!(counts(&volumes), [(new, 3)]);
    let device = rig.run(volumes.attach("clone")).unwrap();
    assert_eq!(rig.read(&device, 0, 4096), text(1));
    let made = volumes.create(VolumeId([8; 16]), Label { key: locked("x").key, ..label("late") });
    let late = rig.run(made).unwrap_err();
    assert!(matches!(late, VolumeError::Cipher(CipherError::Foreign(name)) if name == old), "{late}");
}
