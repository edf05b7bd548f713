//! Builders of rings: our file, and Swift's files.

use quarry_engine::io::SplitMix64;
use quarry_node::swift_ring::import;
use quarry_ring::{
    Builder, Class, Device, Overload, Replicas, Settings, decode_builder, encode, encode_builder,
};

use super::super::Target;
use super::as_is;

/// A builder's file.
pub(super) const BUILDER: Target =
    Target { name: "builder", run: builder, seeds: builder_seeds, mend: mend_builder, words: &[] };
/// Swift's ring and builder files.
pub(super) const SWIFT_RING: Target =
    Target { name: "swift-ring", run: swift_ring, seeds: swift_seeds, mend: as_is, words: WORDS };

/// Operations of pickles.
const WORDS: &[&str] =
    &["}q\u{1}(", "]q\u{2}(", "carray\narray\n", "h\u{1}", "K\u{7}", "u.", "e", "t", "R", "devs"];

/// Largest table that is rebalanced for every input.
const SMALL: usize = 256;

fn builder_seeds(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let make = |part_power, replicas, devices: u16| {
        let settings = Settings {
            part_power,
            replicas: Replicas::from_hundredths(replicas),
            min_part_hours: 2,
            overload: Overload::DEFAULT,
            policy: 1,
            class: None,
        };
        let mut builder = Builder::new(settings, 1).ok()?;
        for n in 0..devices {
            let class = Class::ALL[usize::from(n) % 3];
            let device = Device { id: 0, region: n / 8, zone: n % 3, node: u32::from(n), weight: 100, class };
            builder.add(&device, "label", 1).ok()?;
        }
        builder.rebalance(2).ok()?;
        builder.remove(0, 3).ok()?;
        builder.set_weight(1, 7, 4).ok()?;
        Some(encode_builder(&builder))
    };
    [make(0, 100, 2), make(3, 250, 5), make(6, 300, 12)].into_iter().flatten().collect()
}

fn builder(data: &[u8]) {
    let Ok(builder) = decode_builder(data) else { return };
    assert_eq!(encode_builder(&builder), data, "a builder has one spelling");
    exercise(builder);
}

/// Whatever a builder says, it can be judged, rebalanced and made a ring.
fn exercise(mut builder: Builder) {
    if builder.partitions() > SMALL {
        return;
    }
    let _health = builder.health();
    if let Ok(done) = builder.rebalance(9) {
        assert!(!done.changed || done.after.unplaced == 0, "every replica has a place");
        let ring = builder.ring().expect("what was rebalanced is valid").expect("and complete");
        let _bytes = encode(&ring);
        let again = decode_builder(&encode_builder(&builder));
        assert_eq!(again, Ok(builder), "what was rebalanced can be read back");
    }
}

#[expect(clippy::ptr_arg, reason = "every target's repair has one type, and some change the length")]
fn mend_builder(bytes: &mut Vec<u8>) {
    if let Some(body) = bytes.len().checked_sub(32) {
        let sum = blake3::hash(&bytes[..body]);
        bytes[body..].copy_from_slice(sum.as_bytes());
    }
}

fn swift_seeds(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let files: [&[u8]; 5] = [
        include_bytes!("../../../../node/src/swift_ring/fixtures/small.builder"),
        include_bytes!("../../../../node/src/swift_ring/fixtures/small.ring.gz"),
        include_bytes!("../../../../node/src/swift_ring/fixtures/hole.builder"),
        include_bytes!("../../../../node/src/swift_ring/fixtures/hole.ring.gz"),
        include_bytes!("../../../../node/src/swift_ring/fixtures/empty.builder"),
    ];
    files.into_iter().map(<[u8]>::to_vec).collect()
}

fn swift_ring(data: &[u8]) {
    if let Ok(builder) = import(data, Class::Hdd, 500_000) {
        exercise(builder);
    }
}
