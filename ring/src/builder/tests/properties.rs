//! Properties of random clusters, by seed. A failure prints the line that shows it again.

use super::*;

const SEEDS: u64 = 300;
const STEPS: u32 = 6;
/// Millionths in a replica.
const REPLICA: u64 = 1_000_000;

/// All seeds, or the one that is asked for.
fn seeds() -> impl Iterator<Item = u64> {
    let only = std::env::var("SEED").ok().map(|seed| seed.parse::<u64>().expect("SEED is a number"));
    let range = only.map_or(0..SEEDS, |only| only..only + 1);
    range.into_iter()
}

fn again(seed: u64) -> String {
    format!("again: SEED={seed} cargo test --release -p quarry-ring properties")
}

fn random_device(random: &mut Random, mixed: bool) -> Device {
    let weight = if mixed { 1000 * (1 + random.below(4)) + random.below(100) } else { 1000 };
    device(
        u16::try_from(random.below(2)).unwrap(),
        u16::try_from(random.below(4)).unwrap(),
        random.below(4),
        weight,
    )
}

/// A cluster of 8 to 67 devices, thrown into regions, zones and nodes.
fn cluster(random: &mut Random) -> (Builder, bool) {
    let mixed = random.below(2) == 1;
    let settings = Settings {
        overload: random.of(&[Overload::from_hundredths(0), Overload::DEFAULT, Overload::UNLIMITED]),
        // As long as the pauses between changes, which are even: some moves are held back and some are not.
        min_part_hours: random.of(&[0, 1, 3]),
        ..settings(
            7 + u8::try_from(random.below(4)).unwrap(),
            random.of(&[100, 200, 300, 325, 350, 400, 600]),
        )
    };
    let mut builder = Builder::new(settings, 1).unwrap();
    for _ in 0..8 + random.below(60) {
        builder.add(&random_device(random, mixed), "", 1).unwrap();
    }
    (builder, mixed)
}

/// Add, remove or weigh one device; whether one was removed.
fn edit(builder: &mut Builder, random: &mut Random, mixed: bool, hour: u32) -> bool {
    let at = random.below(u32::try_from(builder.members().len()).unwrap()) as usize;
    let Device { id, weight, .. } = builder.members()[at].device;
    match random.below(4) {
        0 | 1 => {
            let device = random_device(random, mixed);
            builder.add(&device, "", hour).unwrap();
        }
        2 if builder.members().len() > 8 => {
            builder.remove(id, hour).unwrap();
            return true;
        }
        _ => {
            let weight = if random.below(2) == 0 { weight * 2 } else { weight / 2 + 1 };
            builder.set_weight(id, weight, hour).unwrap();
        }
    }
    false
}

/// Every domain has no more replicas of a partition than its target rounded up: two in one zone or node only where
/// the targets leave no other way. In a `new` ring it has no fewer than its target rounded down either.
fn check_dispersion(builder: &Builder, seed: u64, new: bool) {
    let devices = builder.wanted_devices();
    let tree = Tree::new(&devices);
    let targets = builder.shares(&tree, &devices).target;
    let full = builder.partitions() as u64 * share::ONE;
    for partition in 0..builder.partitions() {
        let mut held = vec![0; tree.domains.len()];
        for row in builder.parts().rows.iter().filter_map(|row| row.get(partition)) {
            tree.paths[usize::from(*row)].iter().for_each(|&domain| held[domain as usize] += 1);
        }
        for (domain, &held) in held.iter().enumerate().skip(1) {
            let least = if new { targets[domain] / full } else { 0 };
            let most = targets[domain].div_ceil(full);
            assert!(
                (least..=most).contains(&held),
                "partition {partition}, domain {domain}: {held}; {}",
                again(seed)
            );
        }
    }
}

/// A new ring is exact: each device within one replica of its target, each domain within its bounds.
#[test]
fn a_new_ring_is_balanced_and_dispersed_properties() {
    for seed in seeds() {
        let (mut builder, _) = cluster(&mut Random::new(seed));
        builder.rebalance(1).unwrap();
        assert!(off_target(&builder) < REPLICA, "{}", again(seed));
        check_dispersion(&builder, seed, true);
    }
}

/// Through a history of changes: no two replicas on one device, one move of a partition, rest for min-part-hours, and
/// in the end balance and dispersion again.
#[test]
fn changes_keep_the_rules_properties() {
    for seed in seeds() {
        let mut random = Random::new(seed);
        let (mut builder, mixed) = cluster(&mut random);
        let mut hour = 1;
        builder.rebalance(hour).unwrap();
        for _ in 0..STEPS {
            hour += 2 * random.below(3);
            let removed = edit(&mut builder, &mut random, mixed, hour);
            let (before, last) = (table(&builder), builder.last_moved().to_vec());
            let lost = |partition: usize| {
                let gone = |id: &&u32| !builder.members().iter().any(|m| m.device.id == **id && !m.removed);
                removed && before[partition].iter().any(|id| gone(&id))
            };
            let lost: Vec<_> = (0..builder.partitions()).map(lost).collect();
            builder.rebalance(hour).unwrap();
            let rest = u32::from(builder.settings().min_part_hours);
            // `table` makes a ring, and that refuses two replicas on one device.
            for (partition, moves) in moves(&before, &table(&builder)).into_iter().enumerate() {
                let rests = rest > 0 && last[partition] > 0 && hour - last[partition] <= rest;
                assert!(moves <= 1 || lost[partition], "partition {partition}; {}", again(seed));
                assert!(
                    moves == 0 || !rests || lost[partition],
                    "partition {partition} rests; {}",
                    again(seed)
                );
            }
        }
        settle(&mut builder, hour, seed);
        check_dispersion(&builder, seed, false);
        assert!(off_target(&builder) < 2 * REPLICA, "off by {}; {}", off_target(&builder), again(seed));
    }
}

/// Rebalance until nothing changes any more, which is soon; replicas moved.
fn settle(builder: &mut Builder, hour: u32, seed: u64) -> u64 {
    let mut moved = 0;
    for later in 1..12 {
        let done = builder.rebalance(hour + later * 100).unwrap();
        moved += done.moved;
        if done.moved == 0 {
            return moved;
        }
    }
    panic!("it never settles; {}", again(seed))
}

/// What one change moves, against what the devices below their new targets lack: within 5 % (but one in a hundred, which
/// dispersion forces to more) where the domains are wide, and within 5 % over all changes of all clusters.
#[test]
fn changes_move_little_more_than_they_must_properties() {
    let (mut all_moved, mut all_least) = (0, 0);
    let (mut free_moved, mut free_least, mut changes, mut beyond) = (0, 0, 0, 0);
    for seed in seeds() {
        let mut random = Random::new(seed);
        let (mut builder, mixed) = cluster(&mut random);
        let mut hour = 1;
        settle(&mut builder, hour, seed);
        for _ in 0..STEPS {
            hour += 10_000;
            let crowded = builder.health().crowded;
            edit(&mut builder, &mut random, mixed, hour);
            let least = lacking(&builder);
            // Without overload weight alone sets the bounds of domains, and moves of a pair are common.
            let Settings { replicas, overload, .. } = *builder.settings();
            let wide = replicas.hundredths().is_multiple_of(100) && overload.hundredths() > 0;
            let free = wide && crowded + builder.health().crowded == 0;
            let moved = settle(&mut builder, hour, seed) * REPLICA;
            if free && builder.health().crowded == 0 {
                free_moved += moved;
                free_least += least;
                changes += 1;
                // Rounding may be on the other side of a few devices.
                let rounding = builder.members().len() as u64 * REPLICA / 4;
                if moved > least * 21 / 20 + rounding {
                    println!("moved {moved}, least {least}; {}", again(seed));
                    beyond += 1;
                }
            }
            all_moved += moved;
            all_least += least;
        }
    }
    assert!(beyond * 100 <= changes, "{beyond} of {changes} beyond 5 %");
    assert!(free_moved * 100 <= free_least * 101, "moved {free_moved}, least {free_least}");
    assert!(all_moved * 100 <= all_least * 105, "moved {all_moved}, least {all_least}");
}

#[test]
fn equal_calls_give_equal_bytes_properties() {
    for seed in seeds().take(30) {
        let make = || {
            let mut random = Random::new(seed);
            let (mut builder, mixed) = cluster(&mut random);
            for hour in 1..4 {
                builder.rebalance(hour).unwrap();
                edit(&mut builder, &mut random, mixed, hour);
            }
            encode_builder(&builder)
        };
        let bytes = make();
        assert_eq!(bytes, make(), "{}", again(seed));
        assert_eq!(encode_builder(&decode_builder(&bytes).unwrap()), bytes, "{}", again(seed));
    }
}
