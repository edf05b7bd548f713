use super::*;

fn payload() -> Vec<u8> {
    (0..2 * BLOCK_LENGTH).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

fn sample() -> Extent {
    let mut extent = Extent {
        volume: VolumeId(*b"volume-identity!"),
        run: Run { slice: SliceId(0x0102_0304), chunk: ChunkId(0x1112), first: 254, blocks: 2 },
        fence: Fence { epoch: 0x2122_2324_2526_2728, configuration: 0x3132_3334 },
        sequence: 0x4142_4344_4546_4748,
        content: Content::Zeroes,
    };
    let payload = payload();
    let blocks = payload.chunks_exact(BLOCK_LENGTH).map(|block| block.try_into().unwrap());
    extent.content =
        Content::Data((0..).zip(blocks).map(|(at, block)| extent.checksum_of(at, block)).collect());
    extent
}

fn zeroes() -> Extent {
    Extent { content: Content::Zeroes, run: Run { first: 0, blocks: 256, ..sample().run }, ..sample() }
}

/// These bytes are on disks. If this test fails, the change needs a new record version.
#[test]
fn version_1_never_changes() {
    let hex = |extent: &Extent| extent.encode().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(hex(&sample()), GOLDEN_DATA);
    assert_eq!(hex(&zeroes()), GOLDEN_ZEROES);
}
/// Version, content, chunk, slice; volume; epoch, sequence; configuration, run; two block checksums; checksum.
const GOLDEN_DATA: &str = concat!(
    "0100121104030201",
    "766f6c756d652d6964656e7469747921",
    "28272625242322214847464544434241",
    "34333231fe000200",
    "30f37f6019a00387",
    "9e690e48",
);
const GOLDEN_ZEROES: &str = concat!(
    "0101121104030201",
    "766f6c756d652d6964656e7469747921",
    "28272625242322214847464544434241",
    "3433323100000001",
    "813f9f72",
);

#[test]
fn checksums_that_follow_from_sums_are_those_of_the_bytes() {
    let bare = Extent { content: Content::Zeroes, ..sample() };
    assert_eq!(bare.holding(&Sums::of(&payload())), sample());
}

#[test]
fn what_is_encoded_is_decoded() {
    for extent in [sample(), zeroes()] {
        assert_eq!(Extent::decode(&extent.encode()), Ok(extent));
    }
    let whole = Extent { content: Content::Data((0..256).collect()), ..zeroes() };
    assert_eq!(whole.encode().len(), MAX_EXTENT_BYTES);
    assert_eq!(zeroes().encode().len(), MIN_EXTENT_BYTES);
    assert_eq!(Extent::decode(&whole.encode()), Ok(whole));
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_record_is_found() {
    for extent in [sample(), zeroes()] {
        let bytes = extent.encode();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let expected = if at == 0 { ExtentError::Version(damaged[0]) } else { ExtentError::Checksum };
                assert_eq!(Extent::decode(&damaged), Err(expected), "byte {at} bit {bit}");
            }
            Extent::decode(&bytes[..at]).expect_err("a cut record passed");
        }
        Extent::decode(&[&bytes[..], &[0]].concat()).expect_err("a longer record passed");
    }
}

#[test]
fn forged_records_are_refused_even_with_a_good_checksum() {
    let forge = |at: usize, byte: u8| {
        let mut bytes = sample().encode();
        bytes.truncate(bytes.len() - CHECKSUM_BYTES);
        bytes[at] = byte;
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        Extent::decode(&bytes).unwrap_err()
    };
    assert_eq!(forge(1, 2), ExtentError::Content(2));
    assert_eq!(forge(1, 1), ExtentError::Length(60));
    assert_eq!(forge(44, 255), ExtentError::Run { first: 255, blocks: 2 });
    assert_eq!(forge(45, 1), ExtentError::Reserved);
    assert_eq!(forge(46, 0), ExtentError::Run { first: 254, blocks: 0 });
    assert_eq!(forge(46, 1), ExtentError::Length(60));
    assert_eq!(forge(47, 0xff), ExtentError::Run { first: 254, blocks: 0xff02 });
}

#[test]
fn a_damaged_payload_is_found_in_its_block() {
    let extent = sample();
    let good = payload();
    assert_eq!(extent.first_bad_block(&good), None);
    for at in (0..good.len()).step_by(97) {
        let mut damaged = good.clone();
        damaged[at] ^= 0x10;
        assert_eq!(extent.first_bad_block(&damaged), Some(u16::from(at >= BLOCK_LENGTH)), "byte {at}");
    }
    assert_eq!(extent.first_bad_block(&good[..good.len() - 1]), Some(1));
    assert_eq!(extent.first_bad_block(&[&good[..], &[0]].concat()), Some(2));
    assert_eq!(zeroes().first_bad_block(&good), Some(0));
    assert_eq!(zeroes().first_bad_block(&[]), None);
}

/// A drive that writes a good block to the wrong place, or loses a write and returns the one before.
#[test]
fn a_misdirected_or_stale_block_fails() {
    let changes: [fn(&mut Extent); 6] = [
        |extent| extent.volume.0[15] ^= 1,
        |extent| extent.run.slice.0 += 1,
        |extent| extent.run.chunk.0 += 1,
        |extent| extent.run.first -= 1,
        |extent| extent.fence.epoch -= 1,
        |extent| extent.sequence -= 1,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut other = sample();
        change(&mut other);
        assert_eq!(other.first_bad_block(&payload()), Some(0), "change {number}");
    }
}
