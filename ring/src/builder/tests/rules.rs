//! Every rule of a builder by its name.

use super::*;

/// The region, zone and so on of each replica of each partition.
fn domains<T>(builder: &Builder, of: impl Fn(&Device) -> T) -> Vec<Vec<T>> {
    let ring = builder.ring().unwrap().unwrap();
    let partitions = 0..u32::try_from(builder.partitions()).unwrap();
    partitions.map(|partition| ring.lookup(partition).map(&of).collect()).collect()
}

fn distinct<T: Ord>(domains: &[T]) -> usize {
    domains.iter().collect::<BTreeSet<_>>().len()
}

#[test]
fn a_partition_rests_for_min_part_hours() {
    let mut builder = regular(settings(10, 300), 4, 2, 4);
    builder.rebalance(100).unwrap();
    builder.set_min_part_hours(24, 100).unwrap();
    let first = table(&builder);
    builder.add(&device(1, 0, 9, 8000), "", 100).unwrap();
    assert!(builder.rebalance(100).unwrap().moved > 300);
    let second = table(&builder);
    let rested: BTreeSet<_> = (0..1024).filter(|&p| moves(&first, &second)[p] > 0).collect();
    builder.add(&device(1, 1, 9, 8000), "", 124).unwrap();
    let done = builder.rebalance(124).unwrap();
    assert_eq!(done.held_back, rested.len() as u64);
    let third = table(&builder);
    assert!((0..1024).all(|p| moves(&second, &third)[p] == 0 || !rested.contains(&p)));
    // When a day is over since the end of the hour of their move, the first may go again.
    builder.add(&device(1, 2, 9, 8000), "", 125).unwrap();
    assert!(builder.rebalance(125).unwrap().held_back <= (1024 - rested.len()) as u64);
    assert!((0..1024).any(|p| moves(&third, &table(&builder))[p] > 0 && rested.contains(&p)));
}

/// What moved at 10:59:59 moved again at 11:00:00: one hour of rest was none. Two nodes that were drained at once lost two replicas
/// of a partition before the first had been filled.
#[test]
fn an_hour_of_rest_is_no_shorter_at_the_end_of_an_hour() {
    let mut builder = regular(settings(8, 300), 3, 1, 4);
    builder.rebalance(10).unwrap();
    builder.add(&device(1, 0, 9, 4000), "", 10).unwrap();
    let moved = builder.rebalance(10).unwrap().partitions_moved;
    assert!(moved > 0);
    assert_eq!(builder.clone().rebalance(11).unwrap().held_back, moved);
    assert_eq!(builder.rebalance(12).unwrap().held_back, 0);
}

/// No rest is none, within the hour of the move too.
#[test]
fn without_min_part_hours_nothing_rests() {
    let mut builder = regular(settings(8, 300), 3, 1, 4);
    builder.set_min_part_hours(0, 10).unwrap();
    builder.rebalance(10).unwrap();
    builder.add(&device(1, 0, 9, 4000), "", 10).unwrap();
    assert!(builder.rebalance(10).unwrap().partitions_moved > 0);
    assert_eq!(builder.rebalance(10).unwrap().held_back, 0);
}

#[test]
fn pretending_that_the_hours_have_passed_lets_everything_move() {
    let mut builder = regular(settings(8, 300), 3, 1, 4);
    builder.rebalance(5).unwrap();
    builder.add(&device(1, 0, 9, 4000), "", 5).unwrap();
    builder.rebalance(5).unwrap();
    let held_back = |builder: &mut Builder| builder.rebalance(5).unwrap().held_back;
    assert!(held_back(&mut builder) > 0);
    builder.pretend_min_part_hours(5);
    assert_eq!(held_back(&mut builder), 0);
}

#[test]
fn a_clock_that_went_back_moves_nothing() {
    let mut builder = regular(settings(8, 300), 3, 1, 4);
    builder.rebalance(1000).unwrap();
    builder.add(&device(1, 0, 9, 4000), "", 1000).unwrap();
    let moved = builder.rebalance(1000).unwrap().partitions_moved;
    assert_eq!(builder.rebalance(10).unwrap().held_back, moved);
}

#[test]
fn at_most_one_replica_of_a_partition_moves_per_version() {
    let mut builder = regular(settings(9, 300), 1, 1, 6);
    builder.rebalance(1).unwrap();
    for zone in 2..4 {
        for node in 0..6 {
            builder.add(&device(1, zone, node, 1000), "", 2).unwrap();
        }
    }
    let before = table(&builder);
    let done = builder.rebalance(2).unwrap();
    let moves = moves(&before, &table(&builder));
    assert!(moves.iter().all(|&moves| moves <= 1));
    assert_eq!((done.moved, done.partitions_moved), (512, 512), "two of three should go, one may");
    assert!(done.after.crowded > 0);
    builder.rebalance(4).unwrap();
    assert_eq!(builder.health().crowded, 0, "the next version ends it");
}

#[test]
fn replicas_on_removed_devices_move_at_once_even_two_of_a_partition_and_even_within_the_hours() {
    let mut builder = regular(settings(10, 300), 3, 2, 3);
    builder.rebalance(1).unwrap();
    builder.add(&device(1, 0, 7, 3000), "", 2).unwrap();
    builder.rebalance(2).unwrap();
    let before = table(&builder);
    let gone = [0, 1, 7, 13];
    for id in gone {
        builder.remove(id, 2).unwrap();
    }
    builder.rebalance(2).unwrap();
    let after = table(&builder);
    assert!(after.iter().flatten().all(|id| !gone.contains(id)));
    let mut several = 0;
    for (before, after) in before.iter().zip(&after) {
        let lost = before.iter().filter(|id| gone.contains(id)).count();
        let moved = before.iter().zip(after).filter(|(b, a)| b != a).count();
        assert!(
            moved == lost || lost == 0 && moved <= 1,
            "others of the partition stay: {before:?} {after:?}"
        );
        several += usize::from(lost > 1);
    }
    assert!(several > 0, "some partition lost two");
}

#[test]
fn a_removed_device_is_there_until_the_rebalance_and_its_id_never_comes_back() {
    let mut builder = regular(settings(6, 200), 2, 1, 3);
    builder.rebalance(1).unwrap();
    builder.remove(5, 2).unwrap();
    assert_eq!(builder.remove(5, 2), Err(EditError::Removed(5)));
    assert_eq!(builder.set_weight(5, 7, 2), Err(EditError::Removed(5)));
    assert_eq!(builder.members().len(), 6);
    assert_eq!(builder.ring().unwrap().unwrap().devices()[5].weight, 0, "no handoff goes there any more");
    builder.rebalance(2).unwrap();
    assert_eq!(builder.members().len(), 5);
    assert_eq!(builder.remove(5, 2), Err(EditError::NoSuchDevice(5)));
    assert_eq!(builder.add(&device(1, 1, 0, 1000), "", 3), Ok(6));
}

#[test]
fn fractional_replicas_come_and_go_with_nothing_else_moving() {
    let mut builder = regular(settings(8, 300), 5, 2, 3);
    builder.rebalance(1).unwrap();
    for (replicas, entries) in [(325, 832), (350, 896), (400, 1024), (325, 832), (300, 768), (250, 640)] {
        let before = table(&builder);
        builder.set_replicas(Replicas::from_hundredths(replicas), 2).unwrap();
        builder.pretend_min_part_hours(2);
        let done = builder.rebalance(2).unwrap();
        let after = table(&builder);
        assert_eq!(after.iter().map(Vec::len).sum::<usize>(), entries, "{replicas}");
        let moved: usize = moves(&before, &after).iter().sum();
        // What was dropped leaves its devices a little uneven.
        assert!(moved <= 24, "{replicas}: {moved} moved");
        let had: usize = before.iter().map(Vec::len).sum();
        assert_eq!(had as u64 + done.placed - done.dropped, entries as u64);
        assert!(off_target(&builder) < 1_000_000, "{replicas}");
        assert_eq!(done.after.crowded, 0, "{replicas}");
    }
}

#[test]
fn a_device_of_weight_zero_is_emptied_one_replica_of_a_partition_at_a_time() {
    let mut builder = regular(settings(8, 300), 3, 2, 3);
    builder.rebalance(1).unwrap();
    let (mine, before) = (held(&builder, 4), table(&builder));
    builder.set_weight(4, 0, 2).unwrap();
    assert_eq!(builder.members().len(), 18, "it stays in the ring");
    let done = builder.rebalance(2).unwrap();
    assert_eq!((held(&builder, 4), done.moved), (0, mine));
    assert!(moves(&before, &table(&builder)).iter().all(|&moves| moves <= 1));
}

#[test]
fn overload_lets_dispersion_win_over_weight_by_so_much() {
    // Three zones for three replicas; the third has a tenth less weight.
    let cluster = |overload| {
        let mut builder = Builder::new(Settings { overload, ..settings(12, 300) }, 1).unwrap();
        for id in 0..30 {
            let zone = u16::try_from(id / 10).unwrap();
            builder.add(&device(1, zone, id, if zone == 2 { 900 } else { 1000 }), "", 1).unwrap();
        }
        builder.rebalance(1).unwrap();
        let third: u64 = (20..30).map(|id| held(&builder, id)).sum();
        (third, builder.health())
    };
    let by_weight = 3 * 4096 * 9 / 29;
    let (third, health) = cluster(Overload::from_hundredths(0));
    assert!(third.abs_diff(by_weight) <= 1, "weight alone");
    assert!(health.crowded > 0 && health.balance < 10_000);
    let (third, health) = cluster(Overload::from_hundredths(200));
    assert!(third.abs_diff(by_weight * 102 / 100) <= 1, "two hundredths more than by weight: {third}");
    assert!(health.crowded > 0 && health.balance < 25_000);
    let (third, health) = cluster(Overload::DEFAULT);
    assert_eq!((third, health.crowded), (4096, 0), "a tenth suffices for one replica of each");
}

#[test]
fn more_replicas_than_zones_are_spread_as_evenly_as_they_can() {
    let mut builder = regular(settings(9, 500), 2, 3, 2);
    builder.rebalance(1).unwrap();
    for zones in domains(&builder, |device| device.zone) {
        let first = zones.iter().filter(|&&zone| zone == 0).count();
        assert!((2..=3).contains(&first), "{zones:?}");
    }
    for nodes in domains(&builder, |device| (device.zone, device.node)) {
        assert_eq!(distinct(&nodes), 5);
    }
}

#[test]
fn in_a_single_zone_nodes_are_the_domains() {
    let mut builder = regular(settings(9, 300), 1, 4, 3);
    builder.rebalance(1).unwrap();
    assert!(domains(&builder, |device| device.node).iter().all(|nodes| distinct(nodes) == 3));
    let mut one_node = regular(settings(9, 300), 1, 1, 3);
    one_node.rebalance(1).unwrap();
    assert!(table(&one_node).iter().all(|devices| distinct(devices) == 3), "then devices");
}

#[test]
fn a_new_region_gets_one_replica_of_a_partition_per_version() {
    let overload = Overload::UNLIMITED;
    let mut builder = regular(Settings { overload, ..settings(9, 400) }, 4, 2, 2);
    builder.rebalance(1).unwrap();
    for node in 0..16 {
        builder.add(&device(2, u16::try_from(node / 4).unwrap(), node, 1000), "", 2).unwrap();
    }
    let mut inside = Vec::new();
    for hour in [2, 4, 6] {
        builder.rebalance(hour).unwrap();
        let regions = domains(&builder, |device| device.region);
        let second = |regions: &Vec<u16>| regions.iter().filter(|&&region| region == 2).count();
        inside.push([1, 2].map(|count| regions.iter().filter(|regions| second(regions) == count).count()));
    }
    assert_eq!(inside, [[512, 0], [0, 512], [0, 512]]);
}

#[test]
fn weights_beyond_what_a_device_can_hold_are_capped_at_one_replica_of_each_partition() {
    let mut builder = regular(settings(8, 300), 1, 5, 1);
    builder.set_weight(0, 1_000_000, 1).unwrap();
    builder.rebalance(1).unwrap();
    assert_eq!(held(&builder, 0), 256);
    assert!((1..5).all(|id| held(&builder, id) == 128));
}

#[test]
fn too_few_devices_are_refused_and_nothing_changes() {
    let mut builder = regular(settings(6, 300), 3, 1, 1);
    builder.rebalance(1).unwrap();
    builder.remove(0, 2).unwrap();
    let before = builder.clone();
    let refused = Err(RebalanceError::TooFewDevices { wanted: 3, devices: 2 });
    assert_eq!(builder.rebalance(2), refused);
    assert_eq!(builder, before);
}

#[test]
fn a_rebalance_with_nothing_to_do_makes_no_version() {
    let mut builder = regular(settings(6, 300), 3, 1, 2);
    assert!(builder.rebalance(1).unwrap().changed);
    let before = builder.clone();
    let again = builder.rebalance(9).unwrap();
    assert!(!again.changed && again.version == 1 && again.moved == 0);
    assert_eq!(builder, before);
}

/// Found by the fuzzer: the version after the last could be written and not be read.
#[test]
fn the_last_version_is_the_last() {
    let mut parts = regular(settings(2, 100), 1, 1, 2).parts().clone();
    parts.version = MAX_VERSION;
    let mut builder = Builder::from_parts(parts.clone()).unwrap();
    assert_eq!(builder.rebalance(1), Err(RebalanceError::NoVersion));
    parts.version += 1;
    assert_eq!(Builder::from_parts(parts), Err(InvalidBuilder::Version(MAX_VERSION + 1)));
}

#[test]
fn a_policy_takes_its_class_only() {
    let class = Some(Class::Nvme);
    let mut builder = Builder::new(Settings { class, ..settings(4, 100) }, 1).unwrap();
    let refused = EditError::Class { wanted: Class::Nvme, given: Class::Hdd };
    assert_eq!(builder.add(&device(1, 1, 1, 1), "", 1), Err(refused));
    let fast = Device { class: Class::Nvme, ..device(1, 1, 1, 1) };
    assert_eq!(builder.add(&fast, "fast", 1), Ok(0));
}

#[test]
fn edits_out_of_bounds_are_refused_and_change_nothing() {
    let mut builder = regular(settings(4, 100), 1, 1, 1);
    let before = builder.clone();
    assert_eq!(builder.add(&device(1, 1, 1, 1), &"x".repeat(65), 1), Err(EditError::Label));
    assert_eq!(builder.add(&device(1, 1, 1, 1), "a\nb", 1), Err(EditError::Label));
    assert_eq!(builder.set_replicas(Replicas::whole(0), 1), Err(InvalidRing::Replicas(0).into()));
    assert_eq!(builder.set_replicas(Replicas::whole(33), 1), Err(InvalidRing::Replicas(3300).into()));
    assert_eq!(builder.set_min_part_hours(9000, 1), Err(EditError::MinPartHours(9000)));
    assert_eq!(builder.remove(1, 1), Err(EditError::NoSuchDevice(1)));
    assert_eq!(builder, before);
}

#[test]
fn the_history_tells_what_was_done_and_what_is_pending() {
    let mut builder = regular(settings(4, 100), 1, 1, 2);
    builder.rebalance(7).unwrap();
    builder.set_weight(1, 500, 8).unwrap();
    let pending: Vec<_> = builder.pending().copied().collect();
    assert_eq!(
        pending,
        [Event { version: 2, hour: 8, change: Change::Weighted { device: 1, from: 1000, to: 500 } }]
    );
    builder.rebalance(9).unwrap();
    assert_eq!(builder.pending().count(), 0);
    let last = builder.history().last().unwrap();
    assert!(
        matches!(last, Event { version: 2, hour: 9, change: Change::Rebalanced { moved, placed: 0 } } if *moved > 0)
    );
}

#[test]
fn a_history_keeps_the_newest() {
    let mut builder = regular(settings(0, 100), 1, 1, 1);
    for weight in 0..u32::try_from(MAX_HISTORY).unwrap() + 9 {
        builder.set_weight(0, weight, weight).unwrap();
    }
    assert_eq!(builder.history().len(), MAX_HISTORY);
    assert_eq!(builder.history().last().unwrap().hour, u32::try_from(MAX_HISTORY).unwrap() + 8);
    Builder::from_parts(builder.parts().clone()).unwrap();
}

#[test]
fn the_partners_of_a_device_are_many() {
    let mut builder = regular(settings(12, 300), 4, 5, 4);
    builder.rebalance(1).unwrap();
    let with_first = table(&builder).into_iter().filter(|devices| devices.contains(&0));
    let partners: BTreeSet<_> = with_first.flatten().collect();
    assert!(partners.len() > 55, "{} of 60 possible partners", partners.len() - 1);
}
