//! What a builder promises: rules by name, properties by seed, bytes by example.

mod files;
mod properties;
mod rules;

use super::*;

/// Random numbers from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((z ^ (z >> 31)) % u64::from(bound)).unwrap()
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(u32::try_from(choices.len()).unwrap()) as usize]
    }
}

fn settings(part_power: u8, replicas: u32) -> Settings {
    Settings {
        part_power,
        replicas: Replicas::from_hundredths(replicas),
        min_part_hours: 1,
        overload: Overload::DEFAULT,
        policy: 0,
        class: None,
    }
}

fn device(region: u16, zone: u16, node: u32, weight: u32) -> Device {
    Device { id: 0, region, zone, node, weight, class: Class::Hdd }
}

/// So many zones with so many nodes with so many devices of one weight.
fn regular(settings: Settings, zones: u16, nodes: u32, devices: u32) -> Builder {
    let mut builder = Builder::new(settings, 1).unwrap();
    for zone in 0..zones {
        for node in 0..nodes {
            for _ in 0..devices {
                builder.add(&device(1, zone, node, 1000), "", 1).unwrap();
            }
        }
    }
    builder
}

/// The devices of every partition, in replica order.
fn table(builder: &Builder) -> Vec<Vec<u32>> {
    let ring = builder.ring().unwrap().expect("it is built");
    let partitions = 0..u32::try_from(builder.partitions()).unwrap();
    partitions.map(|partition| ring.lookup(partition).map(|device| device.id).collect()).collect()
}

/// Replicas of each partition that are not where they were.
fn moves(before: &[Vec<u32>], after: &[Vec<u32>]) -> Vec<usize> {
    let moved =
        |(before, after): (&Vec<u32>, &Vec<u32>)| before.iter().zip(after).filter(|(b, a)| b != a).count();
    before.iter().zip(after).map(moved).collect()
}

/// Furthest that a device is from its target, in millionths of a replica.
fn off_target(builder: &Builder) -> u64 {
    builder.loads().iter().map(|load| (load.replicas * 1_000_000).abs_diff(load.target)).max().unwrap_or(0)
}

/// What the devices below their targets lack, in millionths of a replica: so much has to move.
fn lacking(builder: &Builder) -> u64 {
    builder.loads().iter().map(|load| load.target.saturating_sub(load.replicas * 1_000_000)).sum()
}

/// Replicas on a device.
fn held(builder: &Builder, id: u32) -> u64 {
    let at = builder.members().iter().position(|member| member.device.id == id).expect("the device is there");
    builder.loads()[at].replicas
}
