//! An object on several devices: quorum, handoff, the best read, fail-over, repair.

use std::time::Duration;

use super::cluster::{Cluster, Shape, put};
use super::rig::{all, bytes, path};
use crate::clock::Timestamp;
use crate::index::Table;
use crate::net::SimFaults;
use crate::object::limits::{GIVE_UP, LAST_RESORT, STALL};
use crate::object::sight::Found;
use crate::object::{Deleted, Error, PutSpec, hash_of};

const MIB: usize = 1 << 20;
/// What a call takes when nobody has to be waited for.
const QUICK: Duration = Duration::from_millis(300);

fn unavailable<T>(result: Result<T, Error>) -> String {
    match result.map(drop) {
        Err(Error::Unavailable { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_put_reaches_all_primaries_and_is_read_from_every_node() {
    let mut cluster = Cluster::new(Shape::new(5, 3), 1);
    for (n, size) in [(0, 100), (1, 70_000), (2, MIB), (3, 3 * MIB + 5)] {
        let (name, body) = (format!("o{n}"), bytes(n, size));
        let stored = cluster.put(0, &name, &body);
        cluster.settle();
        let mut primaries = cluster.primaries(&name);
        primaries.sort_unstable();
        assert_eq!(cluster.holders(&name, stored.timestamp), primaries);
        for node in 0..5 {
            assert!(cluster.get(node, &name, Some(stored.timestamp)).unwrap() == body);
            assert!(cluster.get(node, &name, None).unwrap() == body);
        }
        assert_eq!(cluster.try_delete(0, &name).unwrap(), Deleted::Gone);
        cluster.settle();
        let graves = cluster.versions(&name).into_iter().flatten().filter(|v| v.deleted).count();
        assert_eq!(graves, 3);
        let sight = cluster.sight(4, &name, Some(stored.timestamp)).unwrap();
        assert!(matches!(sight.found, Found::Deleted(version) if version.sequence > stored.timestamp.0));
    }
    for node in 0..5 {
        assert_eq!(cluster.count(node, Table::Chunks), 0, "node {node}");
    }
}

#[test]
fn a_node_that_is_cut_off_is_replaced_by_a_handoff_and_costs_later_clients_nothing() {
    let mut cluster = Cluster::new(Shape::new(5, 3), 2);
    let name = cluster.name_on(&[0, 3]);
    cluster.cut(3);
    for (n, size) in [(0, 5000), (1, 2 * MIB + 1)] {
        let (body, store) = (bytes(n, size), cluster.store(0));
        let (stored, took) = cluster.timed(put(store, name.clone(), body.clone()));
        let stored = stored.unwrap();
        assert!(took < QUICK, "two of three answer: {took:?}");
        cluster.pass(STALL + QUICK);
        let holders = cluster.holders(&name, stored.timestamp);
        assert!(!holders.contains(&3));
        // The first chunk of a large body was acknowledged by two before the third was known to stall.
        assert!(holders.len() == 3 || n == 1 && holders.len() == 2, "{holders:?}");
        let reader = (1..5).find(|node| *node != 3 && !holders.contains(node)).unwrap_or(1);
        assert!(cluster.get(reader, &name, Some(stored.timestamp)).unwrap() == body);
    }
    // By now the node is known to be down: large bodies get three lanes too.
    let body = bytes(3, 3 * MIB);
    let store = cluster.store(0);
    let (stored, took) = cluster.timed(put(store, name.clone(), body.clone()));
    let stored = stored.unwrap();
    assert!(took < QUICK, "{took:?}");
    cluster.settle();
    assert_eq!(cluster.holders(&name, stored.timestamp).len(), 3);
    let (read, took) = {
        let begun = cluster.net.now();
        let read = cluster.get(1, &name, Some(stored.timestamp));
        (read.unwrap(), cluster.net.now() - begun)
    };
    assert!(read == body && took < QUICK, "{took:?}");
    // Back again: somebody looks, and it takes part.
    cluster.net.heal();
    cluster.pass(Duration::from_secs(9));
    cluster.put(0, &name, &body);
    cluster.settle();
    let stored = cluster.put(0, &name, &body);
    cluster.settle();
    assert!(cluster.holders(&name, stored.timestamp).contains(&3));
}

#[test]
fn without_a_quorum_a_put_fails_with_a_reason_and_nothing_is_visible() {
    for size in [5000, 3 * MIB] {
        let mut cluster = Cluster::new(Shape::new(3, 3), 3);
        let old = cluster.put(0, "o", &bytes(1, 10));
        cluster.settle();
        cluster.cut(1);
        cluster.cut(2);
        let mut limit = GIVE_UP + QUICK;
        for _ in 0..3 {
            let store = cluster.store(0);
            let (result, took) = cluster.timed(put(store, "o".to_owned(), bytes(2, size)));
            let reason = unavailable(result);
            assert!(reason.contains("2 devices are needed, 1 answered well; device "), "{reason}");
            assert!(took < limit, "{took:?}");
            // Now it is known.
            limit = LAST_RESORT + QUICK;
        }
        let store = cluster.store(0);
        let names = cluster.run(store.list_objects("AUTH_a", "c", &all())).unwrap();
        let crate::object::Entry::Row(row) = &names[0] else { panic!("a row") };
        assert_eq!((names.len(), row.timestamp, row.size), (1, old.timestamp, 10));
        cluster.net.heal();
        cluster.pass(Duration::from_secs(30));
        for node in 0..3 {
            let kept = usize::from(node == 0 && size == 3 * MIB) * 3;
            assert!(cluster.count(node, Table::Chunks) <= kept, "node {node}: what failed was given up");
        }
        // The minority's version is ahead of the row, whole, and may be made to stand.
        if let Found::Version(open) = cluster.sight(0, "o", Some(old.timestamp)).unwrap().found
            && open.ahead
        {
            let at = open.meta.info.timestamp;
            drop(open);
            let store = cluster.store(0);
            cluster.run(store.inner.copies.assure(hash_of(&path("o")), at)).unwrap();
            assert!(cluster.holders("o", at).len() >= 2);
            assert!(cluster.get(1, "o", Some(at)).unwrap() == bytes(2, size));
        }
        cluster.put(0, "o", &bytes(4, size));
        assert!(cluster.get(2, "o", None).unwrap() == bytes(4, size));
    }
}

/// A node was cut off, took both others to be down, and was connected again by slow links: both were given up, and then both answered
/// well. That was one device less than none that was missing, and whichever worker had asked did nothing any more until the next start.
#[test]
fn devices_that_answer_well_when_they_were_given_up_are_enough() {
    let mut cluster = Cluster::new(Shape::new(3, 3), 12);
    let at = cluster.put(0, "o", &bytes(1, 100)).timestamp;
    cluster.settle();
    let assure = |cluster: &mut Cluster| {
        let store = cluster.store(0);
        cluster.run(async move { store.inner.copies.assure(hash_of(&path("o")), at).await })
    };
    cluster.cut(0);
    unavailable(assure(&mut cluster));
    cluster.net.heal();
    let way = LAST_RESORT * 4 / 5;
    cluster.net.set_faults(SimFaults { delay: (way, way), ..SimFaults::NONE });
    assure(&mut cluster).unwrap();
}

#[test]
fn a_stale_copy_is_passed_over_and_mended() {
    for size in [5000, 2 * MIB + 1] {
        let mut cluster = Cluster::new(Shape::new(5, 3), 4);
        let name = cluster.name_on(&[0, 3]);
        let old = cluster.put(0, &name, &bytes(1, size));
        cluster.settle();
        cluster.cut(3);
        let new = cluster.put(0, &name, &bytes(2, size));
        cluster.pass(STALL + QUICK);
        cluster.net.heal();
        assert_eq!(cluster.versions(&name)[3].unwrap().sequence, old.timestamp.0);
        // Its own node asks it first.
        let sight = cluster.sight(3, &name, Some(old.timestamp)).unwrap();
        assert!(sight.stale.is_empty());
        assert_eq!(sight.version().map(|open| open.ahead), Some(false), "the row is that old");
        let sight = cluster.sight(3, &name, Some(new.timestamp)).unwrap();
        assert_eq!(sight.stale.len(), 1);
        let open = sight.version().unwrap();
        assert_eq!((open.meta.info.timestamp, open.ahead), (new.timestamp, false));
        drop(open);
        assert!(cluster.get(3, &name, Some(new.timestamp)).unwrap() == bytes(2, size));
        cluster.settle();
        assert!(cluster.own_copy(3, &name).unwrap().unwrap() == bytes(2, size), "mended");
        // Ahead of an older row on every other node.
        let ahead = cluster.sight(1, &name, Some(old.timestamp)).unwrap().version().unwrap();
        assert!(ahead.ahead);
    }
}

#[test]
fn an_older_version_is_never_answered_nor_absence() {
    let mut cluster = Cluster::new(Shape::new(3, 3), 5);
    let old = cluster.put(0, "o", &bytes(1, 100));
    cluster.settle();
    cluster.cut(2);
    let new = cluster.put(0, "o", &bytes(2, 100));
    cluster.pass(STALL + QUICK);
    cluster.net.heal();
    cluster.kill(0);
    cluster.kill(1);
    unavailable(cluster.get(2, "o", Some(new.timestamp)));
    unavailable(cluster.get(2, "never", Some(new.timestamp)));
    unavailable(cluster.get(2, "o", None));
    assert!(cluster.get(2, "o", Some(old.timestamp)).unwrap() == bytes(1, 100));
    cluster.start(1);
    cluster.pass(Duration::from_secs(9));
    assert!(cluster.get(2, "o", Some(new.timestamp)).unwrap() == bytes(2, 100));
}

#[test]
fn rotten_bytes_are_passed_over_and_mended() {
    for (size, at) in [(50_000, 20_000), (3 * MIB, 10_000), (3 * MIB, MIB + 7), (3 * MIB, 3 * MIB - 200)] {
        let mut cluster = Cluster::new(Shape::new(4, 3), 6);
        let name = cluster.name_on(&[1]);
        let body = bytes(9, size);
        let stored = cluster.put(0, &name, &body);
        cluster.settle();
        cluster.flip(1, &body[at..at + 100]);
        assert!(matches!(cluster.own_copy(1, &name), Err(Error::Corrupt { .. })));
        assert!(cluster.get(1, &name, Some(stored.timestamp)).unwrap() == body);
        cluster.settle();
        assert!(cluster.own_copy(1, &name).unwrap().unwrap() == body, "mended at {at}");
        assert_eq!(cluster.count(1, Table::Chunks), size.div_ceil(MIB) * usize::from(size > MIB));
        // And so it stays when the index comes anew from the log, or it is mended again.
        cluster.kill(1);
        cluster.start(1);
        assert!(cluster.get(1, &name, Some(stored.timestamp)).unwrap() == body);
    }
}

/// Each of three replicas lacks another chunk.
#[test]
fn one_good_copy_of_each_chunk_is_enough() {
    let mut cluster = Cluster::new(Shape::new(3, 3), 7);
    let body = bytes(9, 5 * MIB);
    let stored = cluster.put(0, "o", &body);
    cluster.settle();
    for node in 0..3 {
        let at = (node + 1) * MIB + 500;
        cluster.flip(node, &body[at..at + 100]);
    }
    for node in 0..3 {
        assert!(cluster.get(node, "o", Some(stored.timestamp)).unwrap() == body);
    }
}

#[test]
fn a_node_that_dies_in_the_middle_of_a_get_is_not_noticed() {
    for seed in 0..4 {
        for pieces in [0, 1, 7, 19] {
            let mut cluster = Cluster::new(Shape::new(5, 3), 20 + seed);
            let name = cluster.name_off(&[0]);
            let body = bytes(seed, 20 * MIB);
            let stored = cluster.put(0, &name, &body);
            cluster.settle();
            let reader = cluster.reader(0, &name, Some(stored.timestamp)).unwrap();
            let mut range = reader.range(0..reader.info.size);
            let mut read = Vec::new();
            for _ in 0..pieces {
                let piece = cluster.run(range.next()).unwrap().unwrap();
                read.extend_from_slice(&piece);
            }
            // All but one, whichever it is read from.
            let primaries = cluster.primaries(&name);
            for (n, node) in primaries.into_iter().enumerate().filter(|(n, _)| *n as u64 != seed % 3) {
                if n % 2 == 0 { cluster.kill(node) } else { cluster.cut(node) }
            }
            let begun = cluster.net.now();
            while let Some(piece) = cluster.run(range.next()) {
                read.extend_from_slice(&piece.unwrap());
            }
            assert!(read == body, "seed {seed}, {pieces} pieces");
            let took = cluster.net.now() - begun;
            assert!(took < 2 * STALL + QUICK, "{took:?}");
        }
    }
}

#[test]
fn a_slow_replica_is_hedged_and_then_avoided() {
    let mut cluster = Cluster::new(Shape::new(5, 3), 8);
    let name = cluster.name_off(&[0]);
    let body = bytes(9, 70_000);
    let stored = cluster.put(0, &name, &body);
    cluster.settle();
    let slow = cluster.primaries(&name)[0];
    cluster.slow_down(slow, 400);
    let mut times = Vec::new();
    for _ in 0..60 {
        let begun = cluster.net.now();
        assert!(cluster.get(0, &name, Some(stored.timestamp)).unwrap() == body);
        times.push(cluster.net.now() - begun);
    }
    times.sort_unstable();
    assert!(times[59] < Duration::from_millis(100), "{times:?}");
    assert!(times[45] < Duration::from_millis(10), "most ask another first: {times:?}");
}

/// The own node's disk is asked first; when it hangs, few clients wait for it, and none for long.
#[test]
fn an_own_disk_that_hangs_is_found_out() {
    let mut cluster = Cluster::new(Shape::new(4, 3), 12);
    let name = cluster.name_on(&[0]);
    let body = bytes(9, 70_000);
    let stored = cluster.put(0, &name, &body);
    cluster.settle();
    cluster.slow_down(0, u64::MAX);
    let mut times = Vec::new();
    for _ in 0..40 {
        let begun = cluster.net.now();
        assert!(cluster.get(0, &name, Some(stored.timestamp)).unwrap() == body);
        times.push(cluster.net.now() - begun);
    }
    times.sort_unstable();
    assert!(times[39] < STALL + QUICK && times[36] < Duration::from_millis(300), "{times:?}");
}

#[test]
fn an_upload_goes_on_without_a_device_that_dies() {
    for seed in 0..6_u64 {
        let mut cluster = Cluster::new(Shape::new(5, 3), 30 + seed);
        let name = cluster.name_off(&[0]);
        let primaries = cluster.primaries(&name);
        let victim = primaries[usize::try_from(seed % 3).unwrap()];
        let body = bytes(seed, 20 * MIB + 77);
        let store = cluster.store(0);
        let mut writer = cluster.run(store.writer(&path(&name), None)).unwrap();
        for (n, piece) in body.chunks(MIB / 2).enumerate() {
            if n == 3 + usize::try_from(seed).unwrap() * 6 {
                if seed % 2 == 0 { cluster.kill(victim) } else { cluster.cut(victim) }
            }
            cluster.run(writer.write(body.slice_ref(piece))).unwrap();
        }
        let stored = cluster.run(writer.commit(PutSpec::default())).unwrap();
        if seed % 2 == 0 {
            cluster.start(victim);
        }
        cluster.net.heal();
        cluster.pass(Duration::from_secs(25));
        let holders = cluster.holders(&name, stored.timestamp);
        assert!(holders.len() == 2 && !holders.contains(&victim), "{holders:?}");
        assert_eq!(cluster.count(victim, Table::Chunks), 0, "seed {seed}");
        for node in 0..5 {
            assert!(cluster.get(node, &name, Some(stored.timestamp)).unwrap() == body);
        }
    }
}

/// A device is restarted between the chunks and the commit: its chunks were given up at its opening, but the coordinator, which
/// had them acknowledged, sent the commit, and the device took it: a version that hid the one before and could not be read.
#[test]
fn a_device_that_was_restarted_in_mid_upload_does_not_take_the_commit() {
    for seed in 0..6 {
        let mut cluster = Cluster::new(Shape::new(3, 3), 40 + seed);
        let old = cluster.put(0, "o", &bytes(1, 2 * MIB));
        cluster.settle();
        let body = bytes(2, 5 * MIB);
        let store = cluster.store(0);
        let mut writer = cluster.run(store.writer(&path("o"), None)).unwrap();
        cluster.run(writer.write(body.clone())).unwrap();
        cluster.settle();
        let restarted: &[usize] = if seed % 2 == 0 { &[2] } else { &[1, 2] };
        for node in restarted {
            cluster.kill(*node);
            cluster.start(*node);
        }
        cluster.settle();
        let result = cluster.run(writer.commit(PutSpec::default()));
        cluster.settle();
        for node in restarted {
            assert!(
                cluster.own_copy(*node, "o").unwrap().unwrap() == bytes(1, 2 * MIB),
                "the old one stands"
            );
            assert_eq!(cluster.count(*node, Table::Chunks), 2);
        }
        let (floor, wanted) = match result {
            Ok(stored) if seed % 2 == 0 => (stored.timestamp, body),
            Err(Error::Unavailable { .. }) if seed % 2 == 1 => (old.timestamp, bytes(1, 2 * MIB)),
            other => panic!("seed {seed}: {other:?}"),
        };
        assert!(cluster.get(2, "o", Some(floor)).unwrap() == wanted, "seed {seed}");
    }
}

#[test]
fn writers_given_up_leave_nothing_anywhere() {
    let mut cluster = Cluster::new(Shape::new(4, 3), 9);
    for polls in [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144] {
        let store = cluster.store(0);
        cluster.abandon(polls, async move {
            let mut writer = store.writer(&path("o"), None).await.unwrap();
            for n in 0..6 {
                writer.write(bytes(n, MIB)).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        cluster.settle();
        for node in 0..4 {
            assert_eq!(cluster.count(node, Table::Chunks), 0, "node {node} after {polls} polls");
            assert_eq!(cluster.versions("o")[node], None);
        }
    }
}

#[test]
fn two_replicas_and_four_and_disks_of_one_node_work_alike() {
    for shape in
        [Shape::new(3, 2), Shape::new(5, 4), Shape { disks: 2, ..Shape::new(2, 3) }, Shape::new(2, 1)]
    {
        let mut cluster = Cluster::new(shape, 10);
        for n in 0..8 {
            let (name, body) = (format!("o{n}"), bytes(n, usize::try_from(n).unwrap() * MIB / 2));
            let stored = cluster.put(usize::try_from(n % 2).unwrap(), &name, &body);
            for node in 0..2 {
                assert!(cluster.get(node, &name, Some(stored.timestamp)).unwrap() == body, "{shape:?}");
            }
        }
    }
}

#[test]
fn a_full_device_is_replaced_and_when_all_are_full_clients_hear_so() {
    let mut cluster = Cluster::new(Shape::new(4, 3), 11);
    let mut stored = Vec::new();
    let refused = (0..700).find_map(|n| {
        let name = format!("o{n}");
        match cluster.try_put(0, &name, &bytes(n, MIB)) {
            Ok(done) => {
                stored.push((name, n, done.timestamp));
                None
            }
            Err(e) => Some(e),
        }
    });
    let error = refused.unwrap();
    assert!(matches!(error, Error::NoSpace), "{error}");
    assert!(stored.len() > 200, "{}", stored.len());
    for (name, n, at) in stored.iter().step_by(9) {
        assert!(cluster.get(1, name, Some(*at)).unwrap() == bytes(*n, MIB));
    }
    let (name, _, _) = &stored[0];
    assert_eq!(cluster.try_delete(0, name).unwrap(), Deleted::Gone, "deletes work");
}

/// Messages are lost, doubled and reordered; a node is cut off now and then. What was acknowledged is read, byte for byte.
#[test]
fn histories_on_a_bad_network() {
    for seed in 0..12 {
        history(seed);
    }
}

fn history(seed: u64) {
    use std::collections::BTreeMap;

    let delay = (Duration::from_micros(50), Duration::from_millis(3));
    let faults = crate::net::SimFaults { delay, loss: 10, duplication: 100 };
    let mut cluster = Cluster::new(Shape { faults, ..Shape::new(5, 3) }, 500 + seed);
    let mut model: BTreeMap<String, Option<(Timestamp, u64, usize)>> = BTreeMap::new();
    let (mut good, mut bad) = (0, 0);
    for n in 0..60_u64 {
        let name = format!("o{}", cluster.rng.below(8));
        match cluster.rng.below(10) {
            0 => {
                cluster.net.heal();
                let node = 1 + cluster.rng.index(4);
                cluster.cut(node);
            }
            1 => cluster.net.heal(),
            2 => match cluster.try_delete(0, &name) {
                Ok(_) => drop(model.insert(name, None)),
                Err(Error::Unavailable { .. }) => bad += 1,
                Err(e) => panic!("seed {seed}, step {n}: {e}"),
            },
            3..=6 => {
                let size = if cluster.rng.chance(300) { 2 * MIB + 17 } else { 4000 };
                match cluster.try_put(0, &name, &bytes(n, size)) {
                    Ok(stored) => {
                        good += 1;
                        model.insert(name, Some((stored.timestamp, n, size)));
                    }
                    Err(Error::Unavailable { .. }) => bad += 1,
                    Err(e) => panic!("seed {seed}, step {n}: {e}"),
                }
            }
            _ => {
                let Some(Some((at, wanted, size))) = model.get(&name).copied() else { continue };
                check(&mut cluster, 0, &name, at, &bytes(wanted, size), &format!("seed {seed}, step {n}"));
            }
        }
    }
    cluster.net.heal();
    cluster.net.set_faults(crate::net::SimFaults::NONE);
    cluster.pass(Duration::from_secs(30));
    assert!(good > bad, "seed {seed}: {good} good, {bad} refused");
    for (name, version) in model {
        let Some((at, wanted, size)) = version else { continue };
        for node in 0..5 {
            let what = format!("seed {seed}, {name} at the end, node {node}");
            assert!(check(&mut cluster, node, &name, at, &bytes(wanted, size), &what), "{what}");
        }
    }
}

/// The version of the row, or one that was refused and is ahead of it, whole. False: nobody who has it could be reached.
fn check(
    cluster: &mut Cluster,
    node: usize,
    name: &str,
    at: Timestamp,
    body: &bytes::Bytes,
    what: &str,
) -> bool {
    let open = match cluster.sight(node, name, Some(at)) {
        Ok(sight) => sight.version(),
        Err(Error::Unavailable { .. }) => return false,
        Err(e) => panic!("{what}: {e}"),
    };
    let Some(open) = open else { return true };
    let (ahead, md5) = (open.ahead, open.meta.info.md5);
    let reader = {
        let store = cluster.store(node);
        cluster.run(async move { store.inner.reader(open).await }).unwrap()
    };
    let read = match cluster.run(super::cluster::read(reader)) {
        Ok(read) => read,
        Err(Error::Unavailable { .. }) => return false,
        Err(e) => panic!("{what}: {e}"),
    };
    let sum: [u8; 16] = <md5::Md5 as md5::Digest>::digest(&read).into();
    assert_eq!(sum, md5, "{what}: half an object");
    assert!(ahead || read == *body, "{what}: wrong bytes");
    true
}
