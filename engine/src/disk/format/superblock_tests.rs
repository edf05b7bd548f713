use super::*;

fn superblock() -> Superblock {
    Superblock {
        device: DeviceId([0x44; 16]),
        cluster: ClusterId([0x55; 16]),
        generation: 6,
        epoch: 5,
        clean: true,
        index_generation: 2,
        layout: Layout::plan(1 << 30).unwrap(),
    }
}

fn resign(block: Vec<u8>) -> Vec<u8> {
    let mut block = block;
    block[12..16].fill(0);
    finish_block(block)
}

#[test]
fn the_bytes_are_those_of_version_1() {
    let block = superblock().encode();
    assert_eq!(
        hex::encode(&block[..96]),
        concat!(
            "51554152525953420100000004182b294444444444444444444444444444444455555555555555555555555555555555",
            "06000000000000000500000000000000000000400000000000000001000000003f000000010000000200000000000000"
        )
    );
    assert!(block.len() == BLOCK && block[96..].iter().all(|b| *b == 0));
    assert_eq!(Superblock::decode(&block), Ok(superblock()));
}

#[test]
fn every_flipped_byte_and_every_cut_is_found() {
    let block = superblock().encode();
    for at in 0..BLOCK {
        let mut bytes = block.clone();
        bytes[at] ^= 4;
        assert!(Superblock::decode(&bytes).is_err(), "byte {at}");
        assert!(Superblock::decode(&block[..at]).is_err(), "{at} bytes");
    }
}

#[test]
fn newer_versions_and_impossible_fields_are_errors_under_a_right_checksum() {
    let with = |at: usize, bytes: &[u8]| {
        let mut block = superblock().encode();
        block[at..at + bytes.len()].copy_from_slice(bytes);
        Superblock::decode(&resign(block))
    };
    assert_eq!(with(8, &2u32.to_le_bytes()), Err(BadBlock::Version(2)));
    for (at, bytes, field) in [
        (48, &[0xff; 8][..], "count"),
        (56, &[0xff; 8][..], "count"),
        (88, &[0xff; 8][..], "count"),
        (64, &[0; 8][..], "layout"),
        (72, &[0xff; 8][..], "layout"),
        (72, &[0; 8][..], "layout"),
        (80, &[0xff; 4][..], "layout"),
        (80, &[0; 4][..], "layout"),
        (84, &[2; 1][..], "clean"),
    ] {
        assert_eq!(with(at, bytes), Err(BadBlock::Field(field)), "at {at}");
    }
}

#[test]
fn the_choice_between_the_copies_is_a_table() {
    let old = superblock();
    let new = Superblock { generation: 7, ..old };
    let other = Superblock { device: DeviceId([1; 16]), ..old };
    let elsewhere = Superblock { cluster: ClusterId([1; 16]), ..old };
    let chosen = |superblock, repair| Verdict::Use { superblock, repair };
    let (magic, crc, version) = (Err(BadBlock::Magic), Err(BadBlock::Crc), Err(BadBlock::Version(9)));
    let field = Err(BadBlock::Field("layout"));
    for (a, b, verdict) in [
        (Ok(old), Ok(new), chosen(new, false)),
        (Ok(old), Ok(old), chosen(old, false)),
        (Ok(old), Ok(other), Verdict::Contradiction),
        (Ok(old), Ok(elsewhere), Verdict::Contradiction),
        (Ok(old), crc, chosen(old, true)),
        (Ok(old), magic, chosen(old, true)),
        (Ok(old), field, chosen(old, true)),
        (Ok(old), version, Verdict::Newer(9)),
        (crc, version, Verdict::Newer(9)),
        (magic, version, Verdict::Newer(9)),
        (crc, crc, Verdict::Damaged),
        (crc, magic, Verdict::Damaged),
        (field, magic, Verdict::Damaged),
        (magic, magic, Verdict::Absent),
    ] {
        assert_eq!(choose(a, b), verdict);
        assert_eq!(choose(b, a), verdict, "the order of the copies does not matter");
    }
}

#[test]
fn the_layout_holds_its_invariants_at_every_size() {
    let mut sizes = vec![0, 1, 4096, u64::MAX, u64::MAX / 2, MIN_SEGMENTS * MIN_SEGMENT];
    let mut size = 1u64 << 20;
    while size <= 1 << 50 {
        sizes.extend([size - 4096, size, size + 4096, size / 7 * 5, size / 9 * 11]);
        size *= 2;
    }
    for capacity in sizes {
        let Some(layout) = Layout::plan(capacity) else {
            assert!(capacity < MIN_SEGMENTS * MIN_SEGMENT + (2 << 20), "{capacity} is large enough");
            continue;
        };
        assert!((MIN_SEGMENTS..=MAX_SEGMENTS).contains(&u64::from(layout.segments)), "{layout:?}");
        assert!((MIN_SEGMENT..=MAX_SEGMENT).contains(&layout.segment_size), "{layout:?}");
        assert!(layout.segment_size.is_power_of_two());
        assert!(layout.data_start() + layout.usable() <= capacity, "{layout:?}");
        assert!(layout.table_start(1) + layout.table_len() <= layout.data_start());
        assert!(layout.table_start(0) >= COPIES[1] + BLOCK as u64);
        assert!(layout.data_start().is_multiple_of(ALIGN));
        let last = layout.segment_start(layout.segments - 1);
        assert!(last + layout.segment_size <= capacity);
        if capacity <= MAX_SEGMENT * MAX_SEGMENTS {
            assert!(capacity - layout.usable() < 2 * layout.segment_size + layout.data_start(), "{layout:?}");
        }
        let superblock = Superblock { layout, ..superblock() };
        assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock), "what is planned can be opened");
    }
}

/// The command line passes any number on; one that no superblock may hold would have made a device nobody can open.
#[test]
fn impossible_segment_sizes_have_no_layout() {
    for size in
        [0, 1, 4096, MIN_SEGMENT - 1, MIN_SEGMENT + 1, MIN_SEGMENT / 2, 3 * MIN_SEGMENT, MAX_SEGMENT * 2]
    {
        assert_eq!(Layout::with_segment_size(1 << 40, size), None, "{size}");
    }
}
