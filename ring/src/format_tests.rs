use super::*;
use crate::{Plan, build};

fn small() -> Ring {
    let device = |id: u32, class| Device {
        id,
        region: 0x1112,
        zone: 0x2122,
        node: 0x3132_3334,
        weight: 0x4142_4344 + id,
        class,
    };
    let devices = vec![device(7, Class::Hdd), device(0x5152, Class::Nvme)];
    let (version, replicas) = (0x0102_0304_0506_0708, Replicas::from_hundredths(150));
    build(Plan { version, part_power: 1, replicas, devices }).unwrap()
}

/// These bytes are on disks. If this test fails, the change needs a new format version.
#[test]
fn version_1_never_changes() {
    let hex: String = encode(&small()).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, GOLDEN);
}
/// Header, two devices, three entries, checksum.
const GOLDEN: &str = concat!(
    "51525952494e470a010001009600000008070605040302010200000000000000",
    "0700000034333231121122214b43424100000000",
    "5251000034333231121122219694424102000000",
    "010001000000",
    "70b39d66dcccebbf83b2116e488b245ebdc0ef39b658a51fb22ebde8793db38a",
);

#[test]
fn what_is_encoded_is_decoded() {
    for hundredths in [1, 50, 100, 199, 200] {
        let devices = small().devices().to_vec();
        let replicas = Replicas::from_hundredths(hundredths);
        let ring = build(Plan { version: 3, part_power: 9, replicas, devices }).unwrap();
        assert_eq!(decode(&encode(&ring)), Ok(ring));
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = encode(&small());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            let error = decode(&damaged).expect_err("damage passed");
            let expected = match at {
                0..8 => matches!(error, DecodeError::Magic),
                8..10 => matches!(error, DecodeError::Version(_)),
                _ => error == DecodeError::Checksum,
            };
            assert!(expected, "byte {at} bit {bit}: {error}");
        }
    }
}

#[test]
fn every_cut_is_found() {
    let bytes = encode(&small());
    for length in 0..bytes.len() {
        decode(&bytes[..length]).expect_err("a cut file passed");
    }
    decode(&[&bytes[..], &[0]].concat()).expect_err("a longer file passed");
}

/// Bytes whose checksum is right are still not trusted: a writer may be wrong or hostile.
#[test]
fn forged_contents_are_refused_even_with_a_good_checksum() {
    let forge = |at: usize, byte: u8| {
        let mut bytes = encode(&small());
        bytes.truncate(bytes.len() - CHECKSUM_BYTES);
        bytes[at] = byte;
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        decode(&bytes).unwrap_err()
    };
    let entries = HEADER_BYTES + 2 * DEVICE_BYTES;
    assert_eq!(forge(10, 25), InvalidRing::PartPower(25).into());
    assert_eq!(forge(11, 1), DecodeError::Reserved);
    assert_eq!(forge(31, 1), DecodeError::Reserved);
    assert!(matches!(forge(10, 24), DecodeError::Length { .. }));
    assert!(matches!(forge(13, 0xff), DecodeError::Invalid(InvalidRing::Replicas(_))));
    assert!(matches!(forge(27, 0xff), DecodeError::Invalid(InvalidRing::TooManyDevices(_))));
    assert!(matches!(forge(24, 3), DecodeError::Length { .. }));
    assert_eq!(forge(HEADER_BYTES + 16, 3), DecodeError::Class(3));
    assert_eq!(forge(HEADER_BYTES + 17, 1), DecodeError::Reserved);
    assert_eq!(forge(HEADER_BYTES + 2, 0xff), InvalidRing::DeviceOrder(0x5152).into());
    assert_eq!(forge(entries, 9), InvalidRing::NoSuchDevice { partition: 0 }.into());
    let [one, _, _, _, other, _] = encode(&small())[entries..entries + 6].try_into().unwrap();
    assert_eq!(forge(entries, other), InvalidRing::SameDevice { partition: 0 }.into(), "{one} made {other}");
}
