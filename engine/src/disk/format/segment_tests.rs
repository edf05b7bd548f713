use super::*;

const DEVICE: DeviceId = DeviceId([0x33; 16]);
const SIZE: u64 = 16 << 20;

fn header() -> SegmentHeader {
    let class = HeadClass::Cold;
    SegmentHeader { device: DEVICE, segment: 2, class, freed: false, seq: 9, first_lsn: 77, epoch: 3 }
}

fn footer() -> Footer {
    let entry = |n: u32| FooterEntry { offset: 4096 * n, len: 512, head_len: 128, kind: Kind::Object };
    Footer {
        device: DEVICE,
        segment: 2,
        seq: 9,
        end: 1 << 20,
        end_lsn: 200,
        entries: (1..4).map(entry).collect(),
    }
}

fn read(bytes: &[u8]) -> Result<Footer, BadBlock> {
    let trailer = Trailer::decode(&bytes[bytes.len() - BLOCK..], SIZE)?;
    assert!(trailer.belongs_to(DEVICE, 2, 9) && !trailer.belongs_to(DEVICE, 2, 8));
    let skip = usize::try_from(u64::from(trailer.offset) - (SIZE - bytes.len() as u64)).unwrap();
    trailer.entries(&bytes[skip..])
}

#[test]
fn the_bytes_of_header_entries_and_trailer_are_those_of_version_1() {
    assert_eq!(
        hex::encode(&header().encode()[..64]),
        concat!(
            "515541525259534701000000d7090dd63333333333333333333333333333333302000000010100000900000000000000",
            "4d000000000000000300000000000000"
        )
    );
    assert!(header().encode()[64..].iter().all(|b| *b == 0));
    let bytes = footer().encode(SIZE);
    assert_eq!(bytes.len(), footer_len(3));
    assert_eq!(
        hex::encode(&bytes[..48]),
        "001000000002000080000000010000000020000000020000800000000100000000300000000200008000000001000000"
    );
    assert_eq!(
        hex::encode(&bytes[BLOCK..BLOCK + 68]),
        concat!(
            "515541525259465401000000a73ae4aa3333333333333333333333333333333302000000030000000900000000000000",
            "00e0ff00773b008f00001000c800000000000000"
        )
    );
}

#[test]
fn header_and_footer_round_trip() {
    assert_eq!(SegmentHeader::decode(&header().encode()), Ok(header()));
    let freed = SegmentHeader { freed: true, ..header() };
    assert_eq!(SegmentHeader::decode(&freed.encode()), Ok(freed));
    assert_eq!(read(&footer().encode(SIZE)), Ok(footer()));
    let empty = Footer { entries: Vec::new(), ..footer() };
    assert_eq!(read(&empty.encode(SIZE)), Ok(empty));
}

#[test]
fn every_flipped_byte_is_found() {
    let block = header().encode();
    for at in 0..BLOCK {
        let mut bytes = block.clone();
        bytes[at] ^= 0x10;
        assert!(SegmentHeader::decode(&bytes).is_err(), "header byte {at}");
    }
    let whole = footer().encode(SIZE);
    for at in (0..3 * FOOTER_ENTRY).chain(BLOCK..2 * BLOCK) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        assert!(read(&bytes).is_err(), "footer byte {at}");
    }
}

#[test]
fn every_cut_is_found() {
    let (block, whole) = (header().encode(), footer().encode(SIZE));
    for len in 0..BLOCK {
        assert!(SegmentHeader::decode(&block[..len]).is_err());
        assert!(Trailer::decode(&whole[BLOCK..BLOCK + len], SIZE).is_err());
    }
    let trailer = Trailer::decode(&whole[BLOCK..], SIZE).unwrap();
    for len in 0..3 * FOOTER_ENTRY {
        assert!(trailer.entries(&whole[..len]).is_err());
    }
}

fn resign(block: &mut [u8]) {
    let sum = block_crc(block);
    block[CRC_AT].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn newer_versions_and_hostile_fields_are_errors() {
    let mut block = header().encode();
    block[8] = 2;
    resign(&mut block);
    assert_eq!(SegmentHeader::decode(&block), Err(BadBlock::Version(2)));
    for at in [40, 48, 56] {
        let mut block = header().encode();
        block[at..at + 8].fill(0xff);
        resign(&mut block);
        assert_eq!(SegmentHeader::decode(&block), Err(BadBlock::Field("count")), "at {at}");
    }
    let mut block = footer().encode(SIZE)[BLOCK..].to_vec();
    for (at, field) in [(36, "offset"), (48, "offset"), (60, "count"), (56, "offset")] {
        let clean = block.clone();
        let width = if at == 60 { 8 } else { 4 };
        block[at..at + width].fill(0xff);
        resign(&mut block);
        assert_eq!(Trailer::decode(&block, SIZE), Err(BadBlock::Field(field)), "at {at}");
        block = clean;
    }
}

/// An entry with an empty head would make a rebuild read nothing at a block boundary, which no disk can.
#[test]
fn entries_that_no_writer_makes_are_errors_under_a_right_checksum() {
    for bad in [
        FooterEntry { offset: 4096, len: 512, head_len: 0, kind: Kind::Row },
        FooterEntry { offset: 0, len: 512, head_len: 128, kind: Kind::Row },
        FooterEntry { offset: 4096, len: 64, head_len: 128, kind: Kind::Row },
        FooterEntry { offset: 1 << 20, len: 512, head_len: 128, kind: Kind::Row },
        FooterEntry { offset: u32::MAX, len: 512, head_len: 128, kind: Kind::Row },
    ] {
        let bytes = Footer { entries: vec![bad], ..footer() }.encode(SIZE);
        assert_eq!(read(&bytes), Err(BadBlock::Field("offset")), "{bad:?}");
    }
}
