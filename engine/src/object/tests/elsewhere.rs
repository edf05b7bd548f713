//! Objects that lie where an earlier placement put them.

use super::cluster::{Cluster, Shape, place};
use super::rig::{bytes, path};
use crate::clock::Timestamp;
use crate::object::{Placement, hash_of};

/// An object whose acknowledged version is on one device alone, which is no primary and no handoff any more: its time, and whom it
/// can be asked through.
fn left_behind(cluster: &mut Cluster, name: &str, size: usize) -> (Timestamp, usize) {
    let primaries = cluster.primaries(name);
    let leaving = primaries[0];
    let through = (0..cluster.len()).find(|node| !primaries.contains(node)).unwrap();
    cluster.put(through, name, &bytes(1, 10));
    cluster.settle();
    let stored = cluster.put(through, name, &bytes(2, size));
    cluster.settle();
    let ring = cluster.weighed(|node| u32::from(usize::try_from(node).unwrap() != leaving));
    cluster.turn_copies(ring);
    for node in primaries.into_iter().filter(|node| *node != leaving) {
        // Those have what was there before.
        cluster.forget(node, hash_of(&path(name)));
    }
    assert_eq!(cluster.holders(name, stored.timestamp), [leaving]);
    (stored.timestamp, through)
}

/// Under load a cluster that drained a node answered 503: the line told of a version that was on the drained device and on one that
/// did not answer, and a drained device was asked for nothing.
#[test]
fn what_only_a_device_has_that_is_being_emptied_is_found() {
    for (seed, size) in [(31, 100), (32, 2 << 20)] {
        let mut cluster = Cluster::new(Shape::new(5, 3), seed);
        let name = cluster.name_on(&[0]);
        let (at, through) = left_behind(&mut cluster, &name, size);
        assert!(cluster.get(through, &name, Some(at)).unwrap() == bytes(2, size));
        let store = cluster.store(through);
        let newest = cluster.run(store.inner.copies.newest(&hash_of(&path(&name)), Some(at))).unwrap();
        assert_eq!(newest.map(|version| version.sequence), Some(at.0));
    }
}

/// A version ahead of its line that was found there was to be made whole, and only devices that get something were asked for it:
/// each of 32 looks failed at once.
#[test]
fn what_only_such_a_device_has_is_made_whole() {
    for (seed, size) in [(33, 100), (34, 2 << 20)] {
        let mut cluster = Cluster::new(Shape::new(5, 3), seed);
        let name = cluster.name_on(&[0]);
        let (at, through) = left_behind(&mut cluster, &name, size);
        let store = cluster.store(through);
        cluster.run(store.inner.copies.assure(hash_of(&path(&name)), at)).unwrap();
        let primaries = cluster.primaries(&name);
        let holders = cluster.holders(&name, at);
        assert!(primaries.iter().filter(|node| holders.contains(node)).count() >= 2, "{holders:?}");
        for node in 0..5 {
            assert!(cluster.get(node, &name, Some(at)).unwrap() == bytes(2, size));
        }
    }
}

/// In a cluster of many devices a primary of the ring before is most often no handoff either.
#[test]
fn what_a_primary_of_the_ring_before_has_is_found() {
    let mut cluster = Cluster::new(Shape::new(12, 3), 35);
    let (name, hash) = ("o".to_owned(), hash_of(&path("o")));
    let primaries = cluster.primaries(&name);
    let through = (0..12).find(|node| !primaries.contains(node)).unwrap();
    let stored = cluster.put(through, &name, &bytes(2, 100));
    cluster.settle();
    for node in &primaries[1..] {
        cluster.forget(*node, hash);
    }
    assert_eq!(cluster.holders(&name, stored.timestamp), primaries[..1]);
    let device = cluster.placement().primaries(&hash)[0];
    // A ring in which a read would not come by the device.
    let mut rings = (1..100).map(|n| cluster.weighed(|node| 1 + (node * n) % 7));
    let far = rings.find(|ring| {
        let placement = place(ring);
        !placement.primaries(&hash).contains(&device)
            && !placement.handoffs(&hash).take(6).any(|handoff| handoff == device)
    });
    cluster.turn_copies(far.unwrap());
    assert!(cluster.get(through, &name, Some(stored.timestamp)).unwrap() == bytes(2, 100));
}
