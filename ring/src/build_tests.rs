#![expect(clippy::cast_possible_truncation, reason = "small numbers by construction")]

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::table::scatter;
use crate::{Class, encode};

struct Random(u32);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 += 1;
        u32::try_from(scatter(0x5eed, self.0) % u64::from(bound)).unwrap()
    }
}

/// A random cluster of 1 to 3 regions, each of 1 to 4 zones, each of 1 to 4 nodes, each of 1 to 6 devices.
fn cluster(random: &mut Random, equal_weights: bool) -> Vec<Device> {
    let mut devices = Vec::new();
    for region in 0..=random.below(3) as u16 {
        for zone in 0..=random.below(4) as u16 {
            for node in 0..=random.below(4) {
                for _ in 0..=random.below(6) {
                    let id = devices.len() as u32 * 3;
                    let weight = if equal_weights { 1000 } else { random.below(4) * 500 + random.below(2) };
                    devices.push(Device { id, region, zone, node, weight, class: Class::Hdd });
                }
            }
        }
    }
    devices
}

fn plan(devices: Vec<Device>, part_power: u8, replicas: Replicas) -> Plan {
    Plan { version: 1, part_power, replicas, devices }
}

fn weighted(devices: &[Device]) -> usize {
    devices.iter().filter(|device| device.weight > 0).count()
}

#[test]
fn no_partition_has_two_replicas_on_one_device() {
    for seed in 0..200 {
        let mut random = Random(seed * 10_000);
        let devices = cluster(&mut random, false);
        let replicas = Replicas::from_hundredths(1 + random.below(500));
        let have = weighted(&devices);
        let built = build(plan(devices, 5, replicas));
        if have < replicas.rows() {
            let refused = BuildError::TooFewDevices { wanted: replicas.rows(), devices: have };
            assert_eq!(built, Err(refused), "seed {seed}");
            continue;
        }
        let ring = built.unwrap();
        let mut entries = 0;
        for partition in 0..32 {
            let found: Vec<_> = ring.lookup(partition).map(|device| device.id).collect();
            assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "seed {seed}");
            assert!(ring.lookup(partition).all(|device| device.weight > 0), "seed {seed}");
            entries += found.len();
        }
        let whole = replicas.hundredths() as usize / 100 * 32;
        let fraction = 32 * (replicas.hundredths() as usize % 100) / 100;
        assert_eq!(entries, whole + fraction, "seed {seed}");
    }
}

/// Replicas of one partition in the domains below each parent differ by more than one only where a fuller
/// sibling had no free device.
#[test]
fn replicas_are_spread_over_domains_before_weight_counts() {
    for seed in 0..100 {
        let mut random = Random(seed * 10_000 + 77);
        let devices = cluster(&mut random, false);
        let replicas = Replicas::whole(u16::try_from(1 + random.below(4)).unwrap());
        if weighted(&devices) < replicas.rows() {
            continue;
        }
        let ring = build(plan(devices.clone(), 6, replicas)).unwrap();
        for partition in 0..64 {
            for tier in 1..=3 {
                check_spread(&devices, &ring, partition, tier);
            }
        }
    }
}

fn check_spread(devices: &[Device], ring: &Ring, partition: u32, tier: usize) {
    let path =
        |device: &Device| [u32::from(device.region), u32::from(device.zone), device.node][..tier].to_vec();
    let mut domains: BTreeMap<Vec<u32>, (usize, usize)> = BTreeMap::new();
    for device in devices.iter().filter(|device| device.weight > 0) {
        domains.entry(path(device)).or_default().1 += 1;
    }
    for device in ring.lookup(partition) {
        domains.get_mut(&path(device)).unwrap().0 += 1;
    }
    for (one, &(placed, devices)) in &domains {
        for (other, &(most, _)) in &domains {
            let siblings = one[..tier - 1] == other[..tier - 1];
            assert!(
                !siblings || placed == devices || placed + 1 >= most,
                "partition {partition}: {one:?} has {placed} of {devices}, {other:?} has {most}"
            );
        }
    }
}

/// Where domains do not bind (one replica; or equal devices in a regular cluster) weights are met to a slot or two.
#[test]
fn shares_follow_weights() {
    for seed in 0..50 {
        let mut random = Random(seed * 10_000 + 5);
        let devices = cluster(&mut random, false);
        if weighted(&devices) == 0 {
            continue;
        }
        check_balance(devices, Replicas::whole(1), 4.0);
    }
    let regular = |zones: u16, nodes: u32, each: u32| -> Vec<Device> {
        let spots = (0..zones).flat_map(move |zone| (0..nodes * each).map(move |disk| (zone, disk)));
        let device = |(id, (zone, disk)): (usize, (u16, u32))| {
            let weight = 4000;
            Device { id: id as u32, region: 0, zone, node: disk / each, weight, class: Class::Ssd }
        };
        spots.enumerate().map(device).collect()
    };
    check_balance(regular(1, 1, 5), Replicas::whole(3), 1.0);
    check_balance(regular(3, 2, 4), Replicas::whole(3), 1.0);
    check_balance(regular(5, 3, 7), Replicas::whole(3), 1.0);
    check_balance(regular(7, 1, 2), Replicas::from_hundredths(325), 1.0);
}

fn check_balance(devices: Vec<Device>, replicas: Replicas, slots: f64) {
    let total: f64 = devices.iter().map(|device| f64::from(device.weight)).sum();
    let ring = build(plan(devices, 12, replicas)).unwrap();
    let mut placed: BTreeMap<u32, f64> = BTreeMap::new();
    for device in (0..4096).flat_map(|partition| ring.lookup(partition)) {
        *placed.entry(device.id).or_default() += 1.0;
    }
    let entries: f64 = placed.values().sum();
    for device in ring.devices() {
        let wanted = entries * f64::from(device.weight) / total;
        let got = placed.get(&device.id).copied().unwrap_or(0.0);
        assert!((got - wanted).abs() <= slots, "{device:?}: wanted {wanted}, got {got}");
    }
}

/// A dead device is rebuilt from many others at once only if its partitions' other replicas are scattered.
#[test]
fn the_partners_of_a_device_are_many() {
    let device =
        |id: u32| Device { id, region: 0, zone: (id % 4) as u16, node: id, weight: 1, class: Class::Hdd };
    let ring = build(plan((0..40).map(device).collect(), 10, Replicas::whole(3))).unwrap();
    let with_first = (0..1024).filter(|&p| ring.lookup(p).any(|device| device.id == 0));
    let partners: BTreeSet<_> = with_first.flat_map(|p| ring.lookup(p)).map(|device| device.id).collect();
    assert!(partners.len() > 25, "{} of 30 possible partners", partners.len() - 1);
}

#[test]
fn equal_plans_give_equal_bytes_in_whatever_order_devices_come() {
    for seed in 0..20 {
        let mut random = Random(seed * 10_000 + 9);
        let mut devices = cluster(&mut random, true);
        let ring = build(plan(devices.clone(), 7, Replicas::whole(1))).unwrap();
        for last in (1..devices.len()).rev() {
            devices.swap(last, random.below(last as u32 + 1) as usize);
        }
        let again = build(plan(devices, 7, Replicas::whole(1))).unwrap();
        assert_eq!(encode(&ring), encode(&again), "seed {seed}");
    }
}

#[test]
fn a_plan_that_breaks_a_limit_is_refused() {
    let device = Device { id: 1, region: 0, zone: 0, node: 0, weight: 1, class: Class::Hdd };
    let refused = |devices, power| build(plan(devices, power, Replicas::whole(1))).unwrap_err();
    assert_eq!(refused(vec![], 4), BuildError::TooFewDevices { wanted: 1, devices: 0 });
    assert_eq!(refused(vec![device.clone()], 25), BuildError::Invalid(InvalidRing::PartPower(25)));
    assert_eq!(refused(vec![device.clone(), device], 4), BuildError::Invalid(InvalidRing::DeviceOrder(1)));
}
