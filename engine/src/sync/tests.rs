//! Devices over a simulated network, under random writes, cuts and crashes: in the end they are equal and nothing is lost.

mod rig;

use bytes::Bytes;
use quarry_ring::partition_of;
use rig::{POWER, World, body, hash_of_key};

use crate::catalog::Stamp;
use crate::index::Table;
use crate::io::SplitMix64;
use crate::work::Outcome;

const KEYS: u64 = 24;
/// Of them, what a handoff does not know to be deleted.
const DELETED: u64 = 4;
const HOUR: u64 = 3600;
/// Devices that were away have rested.
const REST: u64 = rig::RECLAIM / 28 + 60;

/// A history from a seed, healed and checked.
fn history(seed: u64, changes_of_the_ring: bool) {
    let mut world = World::new(4, seed);
    let mut rng = SplitMix64::new(seed ^ 0x5eed);
    for _ in 0..60 {
        match rng.below(100) {
            0..50 => world.put(rng.below(KEYS), size(&mut rng)),
            50..68 => world.delete(rng.below(KEYS)),
            68..74 => world.cut(rng.index(4), rng.index(4)),
            74..77 => world.heal(),
            77..80 => world.crash(rng.index(4), true),
            80..82 => world.crash(rng.index(4), false),
            82..84 if changes_of_the_ring => world.turn_ring(),
            84..86 => world.advance(20),
            86..88 => world.prune(),
            _ => world.step(rng.index(4)),
        }
    }
    world.heal();
    world.settle();
    world.check(seed);
    // When tombstones are gone, nothing that they hid is back.
    world.advance(rig::RECLAIM + HOUR);
    world.settle();
    world.advance(REST);
    for _ in 0..3 {
        world.prune();
        world.settle();
    }
    world.check(seed);
}

fn size(rng: &mut SplitMix64) -> usize {
    match rng.below(12) {
        0 => (1 << 20) + 1 + rng.index(1 << 20),
        _ => rng.index(5000),
    }
}

#[test]
fn devices_end_equal_and_lose_nothing() {
    for seed in 0..30 {
        history(seed, false);
    }
}

#[test]
fn devices_end_equal_while_the_ring_turns() {
    for seed in 100..130 {
        history(seed, true);
    }
}

#[test]
fn equal_devices_ask_one_question_each() {
    let mut world = World::new(3, 7);
    for key in 0..40 {
        world.put(key, 100);
    }
    world.advance(60);
    world.settle();
    let before = world.asked();
    for node in 0..3 {
        world.round(node);
    }
    let asked = world.asked() - before;
    // Three devices, two peers each.
    assert_eq!(asked, 6, "questions over the network");
}

#[test]
fn a_lost_device_gets_everything_back_and_handoffs_go_home() {
    let mut world = World::new(4, 8);
    for key in 0..KEYS {
        world.put(key, if key % 8 == 0 { 3 << 20 } else { 2000 });
    }
    world.advance(60);
    world.settle();
    // The ring takes what a device holds to others and back: it must be able to hold the same versions again.
    for _ in 0..4 {
        world.turn_ring();
        world.settle();
        world.check(8);
    }
    world.replace(2);
    world.settle();
    world.check(8);
}

#[test]
fn a_corrupt_handoff_is_not_pushed_but_mended_from_a_primary() {
    let mut world = World::new(4, 9);
    let key = 3;
    world.put(key, 4000);
    world.advance(60);
    world.settle();
    // Everybody has it; then the ring turns, and what lies on the device that is to give it away is damaged.
    let before = world.primaries(key);
    world.turn_ring();
    let giver = *before.iter().find(|node| !world.primaries(key).contains(node)).unwrap();
    world.flip(giver, &body(key, world.newest(key).unwrap().sequence, 4000));
    // It comes before the others, who would fetch it from one another.
    world.advance(60);
    world.round(giver);
    assert!(world.findings() > 0, "it is reported");
    for node in 0..4 {
        assert_eq!(world.holds(node, key).is_some(), world.primaries(key).contains(&node));
    }
    world.settle();
    world.check(9);
}

/// A tombstone that was reclaimed while a device which had not heard of it was away, taken out of the ring so that nobody waited
/// for it: when it returned, the deleted object came back everywhere.
#[test]
fn a_device_that_was_away_too_long_brings_nothing_back() {
    let mut world = World::new(4, 10);
    for key in 0..KEYS {
        world.put(key, 500);
    }
    world.advance(60);
    world.settle();
    let away = 3;
    world.isolate(away);
    world.without(Some(away));
    for key in 0..KEYS / 2 {
        world.delete(key);
    }
    // The others work on meanwhile: they are not away.
    for _ in 0..=8 {
        world.advance(rig::RECLAIM / 8);
        world.settle_but(&[away]);
    }
    for _ in 0..3 {
        world.prune_but(&[away]);
        world.settle_but(&[away]);
    }
    assert_eq!(graves(&world, 0..3), 0, "the tombstones are gone");
    // Something that only the device that was away has, written after its last sync: it is news.
    let sequence = world.put_on(away, 100, 700);
    world.restart(away);
    world.heal();
    world.without(None);
    world.advance(60);
    world.settle();
    world.check(10);
    assert_eq!(world.newest(100), Some(Stamp { hash: hash_of_key(100), sequence, deleted: false }));
    assert!(world.findings() > 0);
}

/// Two primaries were away when a version was put, on the third and a handoff; those two were in sync with one another over what else they
/// share, and then away for longer than tombstones are kept, while the others were back. Whichever of the two returned took its last sync for
/// proof that the version had been deleted, and dropped the last copy of it.
#[test]
fn a_version_that_no_primary_has_is_kept_where_its_listing_names_it() {
    for survivor in 0..2 {
        let mut world = World::new(4, 21);
        for key in 0..KEYS {
            world.put(key, 300);
        }
        world.advance(60);
        world.settle();
        let part = |key: &u64| partition_of(&hash_of_key(*key), POWER);
        let key = KEYS;
        let deleted = (KEYS + 1..).find(|other| part(other) == part(&key)).unwrap();
        let primaries = world.primaries(key);
        let spare = (0..4).find(|node| !primaries.contains(node)).unwrap();
        let holders = [primaries[0], spare];
        world.isolate(primaries[1]);
        world.isolate(primaries[2]);
        world.put_done_on(&holders, key, 800);
        // Nobody knows of its deletion any more.
        world.put_done_on(&holders, deleted, 900);
        world.advance(60);
        for _ in 0..4 {
            for node in holders {
                world.round(node);
            }
        }
        for node in holders {
            assert!(world.holds(node, key).is_some());
        }
        world.delete_on(&[], deleted);
        world.heal();
        holders.iter().for_each(|node| world.isolate(*node));
        for _ in 0..=8 {
            world.advance(rig::RECLAIM / 8);
            world.round(primaries[1]);
            world.round(primaries[2]);
        }
        world.heal();
        let (back, lost) = (holders[survivor], holders[1 - survivor]);
        world.replace(lost);
        world.isolate(lost);
        world.restart(back);
        world.advance(60);
        for _ in 0..4 {
            for node in (0..4).filter(|node| *node != lost) {
                world.round(node);
            }
        }
        world.heal();
        world.settle();
        for node in primaries {
            assert!(world.holds(node, key).is_some(), "survivor {survivor}: device {node}");
            assert!(world.holds(node, deleted).is_none(), "survivor {survivor}: device {node}");
        }
        world.check(21);
    }
}

/// One primary had no room for what handoffs had for it. In each round the handoff came as far as its first page, failed there, and began
/// anew: the others never got what was on the pages behind it.
#[test]
fn a_full_primary_keeps_nothing_from_the_others() {
    let mut world = World::new(4, 20);
    let part = |key: &u64| partition_of(&hash_of_key(*key), POWER);
    let keys: Vec<u64> = (0..).filter(|key| part(key) == part(&0)).take(600).collect();
    let primaries = world.primaries(keys[0]);
    let spare = (0..4).find(|node| !primaries.contains(node)).unwrap();
    for key in &keys {
        world.put_on(spare, *key, 100);
    }
    world.fill_up(primaries[0]);
    world.advance(60);
    for node in &primaries {
        world.round(*node);
    }
    let rest = world.rest(spare);
    assert!(matches!(rest, Some(Outcome::Failed(_))), "{rest:?}");
    for key in &keys {
        let held: Vec<bool> = (0..4).map(|node| world.holds(node, *key).is_some()).collect();
        let wanted: Vec<bool> = (0..4).map(|node| node != primaries[0]).collect();
        assert_eq!(held, wanted, "key {key}");
    }
    // It has room again.
    world.replace(primaries[0]);
    world.settle();
    world.check(20);
}

fn graves(world: &World, nodes: std::ops::Range<usize>) -> usize {
    nodes.map(|node| world.index(node).scan(Table::Graves, Default::default()).count()).sum()
}

/// A world with a version on all primaries and on a handoff, that was deleted on the primaries alone; and that handoff.
fn deleted_but_on_a_handoff(seed: u64) -> (World, usize) {
    let mut world = World::new(4, seed);
    for key in 0..KEYS {
        world.put(key, 300);
    }
    world.settle();
    let primaries = world.primaries(DELETED);
    let spare = (0..4).find(|node| !primaries.contains(node)).unwrap();
    world.put_on(primaries[0], DELETED, 800);
    for to in [primaries[1], primaries[2], spare] {
        world.copy(primaries[0], to, DELETED).unwrap();
    }
    world.delete_on(&primaries, DELETED);
    (world, spare)
}

/// All were off together for longer than tombstones are kept. The primaries were back first, compared, and dropped the tombstone
/// before the handoff had been judged, and so before it could hear of it: it gave the deleted object to all of them.
#[test]
fn a_handoff_that_missed_a_delete_brings_nothing_back_after_a_night() {
    let (mut world, spare) = deleted_but_on_a_handoff(16);
    let key = DELETED;
    world.advance(rig::RECLAIM + HOUR);
    (0..4).for_each(|node| world.restart(node));
    for _ in 0..3 {
        world.settle_but(&[spare]);
        world.prune_but(&[spare]);
    }
    // The return is known after another start.
    (0..4).for_each(|node| world.restart(node));
    world.settle_but(&[spare]);
    world.prune_but(&[spare]);
    world.settle();
    world.check(16);
    assert_eq!(world.newest(key).filter(|stamp| !stamp.deleted), None);
    world.advance(REST);
    world.settle();
    for _ in 0..3 {
        world.prune();
    }
    assert_eq!(graves(&world, 0..4), 0, "the tombstones are gone");
    world.check(16);
}

/// A handoff heard of a deletion while a primary was away, and kept what was deleted until that one would answer. Then the ring took
/// that primary away, the others dropped the tombstone, and the handoff gave them the deleted object.
#[test]
fn a_handoff_that_hears_of_a_deletion_brings_nothing_back() {
    let (mut world, spare) = deleted_but_on_a_handoff(17);
    let key = DELETED;
    let away = world.primaries(key)[2];
    world.isolate(away);
    world.advance(60);
    for node in (0..4).filter(|node| *node != away) {
        world.round(node);
    }
    assert!(world.holds(spare, key).is_some_and(|stamp| stamp.deleted), "it has the tombstone");
    world.heal();
    world.settle();
    world.check(17);
    assert!(world.holds(spare, key).is_none());
}

/// A primary that had given up a tombstone drops what that hid without a word. Whoever pushed it looked again at once, for ever.
#[test]
fn what_a_primary_does_not_keep_is_told_and_not_pushed_for_ever() {
    let mut world = World::new(4, 19);
    let key = 4;
    let primaries = world.primaries(key);
    let spare = (0..4).find(|node| !primaries.contains(node)).unwrap();
    world.put_on(primaries[0], key, 800);
    for to in [primaries[1], primaries[2], spare] {
        world.copy(primaries[0], to, key).unwrap();
    }
    world.delete_on(&primaries[..1], key);
    world.evict(primaries[0], key);
    world.advance(60);
    for node in &primaries {
        world.round(*node);
    }
    let Some(Outcome::Failed(why)) = world.rest(spare) else { panic!("it is pushed for ever") };
    assert!(why.contains("1 versions are pushed to primaries that do not keep them"), "{why}");
    assert!(world.holds(spare, key).is_some_and(|stamp| !stamp.deleted), "it stays");
}

/// A device that was away is believed when it was judged; whoever knew of a deletion may forget it from then on.
#[test]
fn a_device_that_was_away_takes_tombstones_before_it_is_believed() {
    let (mut world, spare) = deleted_but_on_a_handoff(18);
    let key = DELETED;
    world.advance(rig::RECLAIM + HOUR);
    world.round(spare);
    assert!(world.holds(spare, key).is_some_and(|stamp| stamp.deleted), "it has the tombstone");
    world.settle();
    world.check(18);
}

#[test]
fn an_index_from_before_there_were_sums_gets_them() {
    let mut world = World::new(3, 14);
    for key in 0..KEYS {
        world.put(key, 300);
    }
    world.delete(2);
    world.forget_sums(1);
    world.check_sums(14);
    world.put(3, 300);
    world.crash(1, true);
    world.check_sums(14);
    world.settle();
    world.check(14);
}

#[test]
fn a_handoff_stays_until_every_primary_has_it() {
    let mut world = World::new(4, 15);
    let key = 4;
    let primaries = world.primaries(key);
    let spare = (0..4).find(|node| !primaries.contains(node)).unwrap();
    world.put_on(primaries[0], key, 800);
    world.copy(primaries[0], spare, key).unwrap();
    world.advance(60);
    // Each has judged itself before.
    for node in &primaries {
        world.round(*node);
    }
    world.isolate(primaries[2]);
    for _ in 0..3 {
        world.round(spare);
        assert!(world.holds(spare, key).is_some(), "a primary has not answered");
    }
    world.heal();
    world.settle();
    assert!(world.holds(spare, key).is_none());
    world.check(15);
}

/// Planted: tombstones are dropped at once, whoever has heard of them.
#[test]
fn reclaiming_early_is_found() {
    let mut world = World::new(3, 11);
    world.put(1, 100);
    world.advance(60);
    world.settle();
    world.isolate(2);
    world.delete(1);
    world.advance(60);
    for node in 0..2 {
        world.reclaim_early(node);
    }
    world.heal();
    world.settle();
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.check(11)));
    assert!(found.is_err(), "a deleted object is back, and nobody saw it");
}

/// Planted: a sum is not subtracted when its version goes.
#[test]
fn a_sum_that_is_not_subtracted_is_found() {
    let mut world = World::new(3, 12);
    world.put(1, 100);
    world.spoil_sum(0, hash_of_key(1));
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.check_sums(12)));
    assert!(found.is_err(), "sums are not those of what the device holds, and nobody saw it");
}

#[test]
fn an_old_version_is_taken_and_replaces_nothing_newer_and_its_chunks_go() {
    let mut world = World::new(3, 13);
    let part = partition_of(&hash_of_key(5), POWER);
    assert_eq!(world.primaries(5).len(), 3, "{part}");
    let old = world.put_on(0, 5, (2 << 20) + 5);
    let new = world.put_on(1, 5, 100);
    assert!(new > old);
    world.copy(0, 1, 5).unwrap();
    assert_eq!(world.holds(1, 5).map(|stamp| stamp.sequence), Some(new));
    assert_eq!(
        world.index(1).scan(Table::Chunks, Default::default()).count(),
        0,
        "chunks of a loser are given up"
    );
    world.copy(1, 0, 5).unwrap();
    world.copy(1, 0, 5).unwrap();
    assert_eq!(world.holds(0, 5), world.holds(1, 5));
    assert_eq!(world.index(0).scan(Table::Chunks, Default::default()).count(), 0);
    assert_eq!(world.read(0, 5), Some(Bytes::from(body(5, new, 100))));
}
