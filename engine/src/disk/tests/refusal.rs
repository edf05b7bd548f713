//! Devices that are not ours, or not any more: refused with a typed error, and not one byte is written.

use std::sync::Arc;

use super::kv::{Kv, Rig, SEGMENT};
use crate::disk::format::record::DeviceId;
use crate::disk::format::superblock::{COPIES, ClusterId, Superblock};
use crate::disk::{CacheBytes, Format, Open, OpenError, format, start_on};
use crate::index::{Index, MemoryIndex, Range, Table};
use crate::io::{BLOCK, Disk, SimImage};

const CLUSTER: ClusterId = ClusterId([7; 16]);

fn request() -> Format {
    Format { cluster: CLUSTER, device: DeviceId([9; 16]), segment_size: Some(SEGMENT), overwrite: false }
}

/// Every block of the image that is not zero.
fn contents(image: &SimImage, capacity: u64) -> Vec<(u64, Vec<u8>)> {
    let step = 1 << 20;
    (0..capacity)
        .step_by(step)
        .map(|at| (at, image.peek(at, step.min(usize::try_from(capacity - at).unwrap()))))
        .filter(|(_, bytes)| bytes.iter().any(|b| *b != 0))
        .collect()
}

fn untouched<T>(
    image: &SimImage,
    capacity: u64,
    act: impl FnOnce(&mut dyn Disk) -> Result<T, OpenError>,
) -> OpenError {
    let (before, writes) = (contents(image, capacity), image.counters().writes);
    let Err(refused) = act(&mut image.open()) else { panic!("was not refused") };
    assert_eq!(image.counters().writes, writes, "{refused}");
    assert!(contents(image, capacity) == before);
    refused
}

fn open(image: &SimImage, capacity: u64, cluster: Option<ClusterId>) -> OpenError {
    let index = Arc::new(MemoryIndex::new());
    let (before, writes) = (contents(image, capacity), image.counters().writes);
    let options = Open { cluster, cache_bytes: CacheBytes::small(1 << 20), progress: &mut |_, _| {} };
    let refused = match start_on(Box::new(image.open()), index.clone(), Arc::new(Kv), options) {
        Err(crate::disk::StartError::Open(e)) => e,
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("was not refused"),
    };
    assert_eq!(image.counters().writes, writes, "{refused}");
    assert!(contents(image, capacity) == before);
    assert!(Table::ALL.into_iter().all(|table| index.scan(table, Range::default()).next().is_none()));
    refused
}

const CAPACITY: u64 = 13 * SEGMENT;

fn formatted() -> SimImage {
    let image = SimImage::new(CAPACITY, 1);
    format(&mut image.open(), &request()).unwrap();
    image
}

#[test]
fn formatting_refuses_what_is_there() {
    let image = formatted();
    let refused = untouched(&image, CAPACITY, |disk| format(disk, &request()));
    assert!(matches!(refused, OpenError::AlreadyFormatted { .. }), "{refused}");
    // One damaged copy, or two, is still a device of ours.
    image.flip(COPIES[0] + 30, 1);
    let refused = untouched(&image, CAPACITY, |disk| format(disk, &request()));
    assert!(matches!(refused, OpenError::AlreadyFormatted { .. }), "{refused}");
    image.flip(COPIES[1] + 30, 1);
    let refused = untouched(&image, CAPACITY, |disk| format(disk, &request()));
    assert!(matches!(refused, OpenError::Damaged(_)), "{refused}");
    let mut disk = image.open();
    format(&mut disk, &Format { overwrite: true, ..request() }).unwrap();
}

#[test]
fn formatting_refuses_a_foreign_file_system_and_impossible_sizes() {
    let image = SimImage::new(CAPACITY, 2);
    image.poke(1024 + 56, &[0x53, 0xef]); // ext4's magic
    let refused = untouched(&image, CAPACITY, |disk| format(disk, &request()));
    assert!(matches!(refused, OpenError::Foreign(_)), "{refused}");
    assert!(matches!(open(&image, CAPACITY, Some(CLUSTER)), OpenError::Unformatted));

    for capacity in [BLOCK as u64, 1 << 20, 12 * SEGMENT] {
        let image = SimImage::new(capacity, 3);
        for segment_size in [None, Some(SEGMENT)] {
            let request = Format { segment_size, ..request() };
            let refused = untouched(&image, capacity, |disk| format(disk, &request));
            assert!(matches!(refused, OpenError::TooSmall { least, .. } if least > capacity), "{refused}");
        }
    }
    let image = SimImage::new(CAPACITY, 4);
    for size in [0, 1, 4096, SEGMENT - 1, SEGMENT + 4096, 3 * SEGMENT, 2 << 30] {
        let request = Format { segment_size: Some(size), ..request() };
        let refused = untouched(&image, CAPACITY, |disk| format(disk, &request));
        assert!(matches!(refused, OpenError::SegmentSize(_)), "{refused}");
    }
}

#[test]
fn opening_refuses_what_is_not_ours() {
    let image = SimImage::new(CAPACITY, 5);
    assert!(matches!(open(&image, CAPACITY, None), OpenError::Unformatted));

    let image = formatted();
    let refused = open(&image, CAPACITY, Some(ClusterId([8; 16])));
    assert!(matches!(refused, OpenError::OtherCluster { .. }), "{refused}");

    let block = image.peek(COPIES[0], BLOCK);
    let superblock = Superblock::decode(&block).unwrap();
    let other = Superblock { device: DeviceId([1; 16]), ..superblock };
    image.poke(COPIES[1], &other.encode());
    assert!(
        matches!(open(&image, CAPACITY, None), OpenError::Damaged(_)),
        "the copies contradict each other"
    );

    // A newer version in either copy, even beside a good one.
    for copy in COPIES {
        let image = formatted();
        let mut newer = block.clone();
        newer[8] = 2;
        newer[12..16].fill(0);
        let sum = crc32fast::hash(&newer);
        newer[12..16].copy_from_slice(&sum.to_le_bytes());
        image.poke(copy, &newer);
        assert!(matches!(open(&image, CAPACITY, None), OpenError::Newer(2)));
        let refused = untouched(&image, CAPACITY, |disk| format(disk, &request()));
        assert!(matches!(refused, OpenError::Newer(2)), "{refused}");
    }
}

#[test]
fn opening_refuses_a_device_that_has_shrunk() {
    let whole = formatted();
    let smaller = CAPACITY - SEGMENT;
    let image = SimImage::new(smaller, 6);
    for copy in COPIES {
        image.poke(copy, &whole.peek(copy, BLOCK));
    }
    let refused = open(&image, smaller, None);
    assert!(matches!(refused, OpenError::Shrunk { .. }), "{refused}");
}

#[test]
fn opening_refuses_an_index_of_another_device() {
    let mut rig = Rig::new(12, 7);
    let index = rig.index.clone();
    rig.sim = None;
    let image = SimImage::new(CAPACITY, 8);
    format(&mut image.open(), &Format { device: DeviceId([3; 16]), ..request() }).unwrap();
    rig.image = image.clone();
    let writes = image.counters().writes;
    assert!(matches!(rig.try_open(), Err(OpenError::OtherIndex(_))));
    assert_eq!(image.counters().writes, writes);
    assert!(index.get(Table::System, b"i").unwrap().is_some(), "the other device's index is left alone");
}
