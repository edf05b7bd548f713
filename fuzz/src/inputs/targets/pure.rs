//! Ring files and volume extents.

use quarry_engine::io::SplitMix64;
use quarry_ring::{Class, Device, Plan, Replicas, build, decode, encode};
use quarry_volume::{ChunkId, Content, Extent, Fence, Run, SliceId, VolumeId};

use super::super::Target;
use super::crc;

/// A ring file.
pub(super) const RING: Target =
    Target { name: "ring", run: ring, seeds: ring_seeds, mend: mend_ring, words: &[] };
/// A volume's extent record.
pub(super) const EXTENT: Target =
    Target { name: "extent", run: extent, seeds: extent_seeds, mend: mend_extent, words: &[] };

fn ring_seeds(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let device = |id: u32| Device {
        id,
        region: 1,
        zone: u16::try_from(id % 3).unwrap_or(0),
        node: id,
        weight: 100 + id,
        class: [Class::Hdd, Class::Ssd, Class::Nvme][id as usize % 3],
    };
    let plan = |devices: u32, part_power, replicas| Plan {
        version: 3,
        part_power,
        replicas,
        devices: (0..devices).map(device).collect(),
    };
    let plans = [
        plan(1, 0, Replicas::whole(1)),
        plan(5, 4, Replicas::whole(3)),
        plan(4, 6, Replicas::from_hundredths(250)),
    ];
    plans.into_iter().filter_map(|plan| build(plan).ok()).map(|ring| encode(&ring)).collect()
}

fn ring(data: &[u8]) {
    let Ok(ring) = decode(data) else { return };
    assert_eq!(encode(&ring), data, "a ring has one spelling");
    for partition in 0..1_u32 << ring.part_power().min(10) {
        let _devices = (ring.lookup(partition).count(), ring.handoffs(partition).count());
    }
    let _partition = ring.partition_of(&[0xff; 16]);
}

#[expect(clippy::ptr_arg, reason = "every target's repair has one type, and some change the length")]
fn mend_ring(bytes: &mut Vec<u8>) {
    if let Some(body) = bytes.len().checked_sub(32) {
        let sum = blake3::hash(&bytes[..body]);
        bytes[body..].copy_from_slice(sum.as_bytes());
    }
}

fn extent_seeds(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let extent = |first, blocks, content| Extent {
        volume: VolumeId([8; 16]),
        run: Run { slice: SliceId(3), chunk: ChunkId(9), first, blocks },
        fence: Fence { epoch: 4, configuration: 2 },
        sequence: 77,
        content,
    };
    let seeds = [
        extent(0, 1, Content::Data(vec![1])),
        extent(0, 256, Content::Data(vec![7; 256])),
        extent(9, 40, Content::Zeroes),
    ];
    seeds.iter().map(Extent::encode).collect()
}

fn extent(data: &[u8]) {
    let Ok(extent) = Extent::decode(data) else { return };
    assert_eq!(extent.encode(), data, "an extent has one spelling");
    let _bad = (extent.first_bad_block(&[0; 9000]), extent.first_bad_block(&[]), extent.position());
}

#[expect(clippy::ptr_arg, reason = "every target's repair has one type, and some change the length")]
fn mend_extent(bytes: &mut Vec<u8>) {
    if let Some(body) = bytes.len().checked_sub(4) {
        let sum = crc(&[&bytes[..body]]);
        bytes[body..].copy_from_slice(&sum.to_le_bytes());
    }
}
