//! The builder file: bytes that never change, and damage that is always found.

use super::*;

/// Two devices, a table, one of each event.
fn small() -> Builder {
    let settings = Settings {
        min_part_hours: 0x0102,
        overload: Overload::from_hundredths(0x1112_1314),
        policy: 0x2122,
        ..settings(1, 150)
    };
    let mut builder = Builder::new(settings, 0x3132_3334).unwrap();
    for label in ["a1", "b"] {
        let device = Device {
            id: 0,
            region: 0x4142,
            zone: 0x5152,
            node: 0x6162_6364,
            weight: 1000,
            class: Class::Nvme,
        };
        builder.add(&device, label, 2).unwrap();
    }
    builder.rebalance(3).unwrap();
    builder.add(&device(1, 2, 3, 4), "gone", 4).unwrap();
    builder.remove(2, 5).unwrap();
    builder.set_weight(1, 500, 6).unwrap();
    builder.set_replicas(Replicas::whole(2), 7).unwrap();
    builder.set_overload(Overload::DEFAULT, 8);
    builder.set_min_part_hours(24, 9).unwrap();
    builder.pretend_min_part_hours(10);
    builder.record(11, Change::Imported);
    builder
}

/// These bytes are on disks. If this test fails, the change needs a new format version.
#[test]
fn version_1_of_the_builder_file_never_changes() {
    let bytes = encode_builder(&small());
    let hex: Vec<String> =
        bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    assert_eq!(hex.join("\n"), include_str!("golden_builder.hex").trim_end());
    assert_eq!(decode_builder(&bytes), Ok(small()));
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = encode_builder(&small());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            let error = decode_builder(&damaged).expect_err("damage passed");
            let expected = match at {
                0..8 => matches!(error, BuilderDecodeError::Magic),
                8..10 => matches!(error, BuilderDecodeError::Version(_)),
                _ => error == BuilderDecodeError::Checksum,
            };
            assert!(expected, "byte {at} bit {bit}: {error}");
        }
    }
}

#[test]
fn every_cut_is_found() {
    let bytes = encode_builder(&small());
    for length in 0..bytes.len() {
        decode_builder(&bytes[..length]).expect_err("a cut file passed");
    }
    decode_builder(&[&bytes[..], &[0]].concat()).expect_err("a longer file passed");
}

/// Bytes whose checksum is right are still not trusted: every byte is changed to every kind of value, and what then
/// decodes encodes to the same bytes.
#[test]
fn forged_contents_are_refused_or_mean_what_they_say() {
    let bytes = encode_builder(&small());
    let body = bytes.len() - 32;
    let mut refused = BTreeSet::new();
    for at in 10..body {
        for value in [0, 1, 2, 3, 25, 33, 0x7f, 0x80, 0xfe, 0xff] {
            let mut forged = bytes[..body].to_vec();
            forged[at] = value;
            let checksum = blake3::hash(&forged);
            forged.extend_from_slice(checksum.as_bytes());
            match decode_builder(&forged) {
                Ok(builder) => assert_eq!(encode_builder(&builder), forged, "byte {at} value {value}"),
                Err(error) => {
                    let text = format!("{error:?}");
                    refused.insert(text.split(['(', ' ', '{']).take(2).collect::<String>());
                }
            }
        }
    }
    for kind in [
        "Length",
        "Class3)",
        "Event25)",
        "Reserved",
        "Labels",
        "InvalidRing",
        "InvalidNextId",
        "InvalidLabel",
    ] {
        assert!(refused.contains(kind), "{kind} is not among {refused:?}");
    }
}
