use super::super::record::{NewRecord, Parts};
use super::*;

const DEVICE: DeviceId = DeviceId([0x22; 16]);

/// A batch of three records, the second one moved, and its header.
fn sample() -> (BatchHeader, Vec<u8>) {
    let new = |key: &'static [u8], data: &'static [u8]| {
        let data = bytes::Bytes::from_static(data);
        let parts = Parts { kind: Kind::Row, deleted: false, sequence: 9, number: 0, key, meta: b"m", data };
        NewRecord::new(DEVICE, parts)
    };
    let records = [new(b"a", b""), new(b"b", b"some data"), new(b"c", b"12345678")];
    let mut offset = header_len(3, 1).next_multiple_of(8);
    let mut body = vec![0; offset];
    let mut descriptors = Vec::new();
    for (i, record) in records.iter().enumerate() {
        let from = (i == 1).then_some(Location { segment: 5, offset: 4096, len: 56 });
        descriptors.push(Descriptor {
            offset: u32::try_from(offset).unwrap(),
            len: u32::try_from(record.stored_len()).unwrap(),
            head_crc: record.view().stated_head_crc(),
            kind: Kind::Row,
            from,
        });
        body.extend_from_slice(record.head_bytes());
        body.extend_from_slice(record.data());
        offset += record.stored_len();
        body.resize(offset, 0);
    }
    body.resize(BLOCK, 0);
    let header = BatchHeader {
        device: DEVICE,
        segment: 3,
        segment_seq: 8,
        first_lsn: 100,
        durable_lsn: 99,
        prev_hash: 0x0123_4567_89ab_cdef,
        epoch: 4,
        total_len: 4096,
        records: descriptors,
    };
    let encoded = header.encode();
    body[..encoded.len()].copy_from_slice(&encoded);
    (header, body)
}

/// Puts a right checksum on a header that was tampered with.
fn resign(header: &mut [u8]) {
    let sum = crc(header);
    header[CRC_AT].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn the_bytes_of_a_header_are_those_of_version_1() {
    assert_eq!(
        hex::encode(sample().0.encode()),
        concat!(
            "514241540100000022222222222222222222222222222222030000000300000008000000000000006400000000000000",
            "6300000000000000efcdab896745230194000000001000000400000000000000b859a52f000000009800000028000000",
            "4229066e03000000c0000000380000009c9f7e9403010000050000000010000038000000f800000030000000c204ea3e",
            "03000000"
        )
    );
}

#[test]
fn a_batch_round_trips() {
    let (header, batch) = sample();
    assert_eq!(BatchHeader::decode(&batch), Ok(header.clone()));
    assert_eq!(BatchHeader::stated_len(&batch), Some(header.encoded_len()));
    assert_eq!((header.flaw(&batch), header.end_lsn()), (None, 103));
}

#[test]
fn every_flipped_byte_of_header_and_records_is_found() {
    let (header, batch) = sample();
    let end = header.records.last().map(|d| (d.offset + d.len) as usize).unwrap();
    let len = header.encoded_len();
    // Zeros between records are nobody's bytes; the second record has 7 of them at its end.
    let second = header.records[1];
    let padding = (second.offset + second.len - 7) as usize..(second.offset + second.len) as usize;
    let gap = len..header.records[0].offset as usize;
    for at in (0..end).filter(|at| !padding.contains(at) && !gap.contains(at)) {
        let mut bytes = batch.clone();
        bytes[at] ^= 0x40;
        let found = BatchHeader::decode(&bytes);
        if at < len {
            assert!(found.is_err(), "header byte {at}");
        } else {
            assert!(found.unwrap().flaw(&bytes).is_some(), "record byte {at}");
        }
    }
}

#[test]
fn every_cut_is_found() {
    let (header, batch) = sample();
    for len in 0..header.encoded_len() {
        assert!(BatchHeader::decode(&batch[..len]).is_err(), "{len} bytes");
    }
    let end = header.records.last().map(|d| (d.offset + d.len) as usize).unwrap();
    for len in header.encoded_len()..end {
        assert!(header.flaw(&batch[..len]).is_some(), "{len} bytes");
    }
}

#[test]
fn a_newer_version_is_told_apart_from_damage() {
    let mut bytes = sample().0.encode();
    bytes[4] = 2;
    assert_eq!(BatchHeader::decode(&bytes), Err(BadBatch::Crc));
    resign(&mut bytes);
    assert_eq!(BatchHeader::decode(&bytes), Err(BadBatch::Version(2)));
}

/// A checksum is no proof of good will: whoever can write to the disk can compute one.
#[test]
fn hostile_fields_under_a_right_checksum_are_errors() {
    let clean = sample().0.encode();
    for (at, value, field) in [
        (40, u64::MAX, "count"),
        (32, u64::MAX, "count"),
        (72, u64::MAX, "count"),
        (48, 100, "durable_lsn"),
        (68, 1, "total_len"),
        (68, u64::from(u32::MAX), "total_len"),
        (88, u64::from(u32::MAX), "offset"),
        (88, 4088, "offset"),
    ] {
        let mut bytes = clean.clone();
        let width = if at == 68 || at == 88 { 4 } else { 8 };
        bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        resign(&mut bytes);
        assert_eq!(BatchHeader::decode(&bytes), Err(BadBatch::Field(field)), "at {at}");
    }
    let mut rng = crate::io::SplitMix64::new(2);
    for _ in 0..50_000 {
        let mut bytes = clean.clone();
        for _ in 0..1 + rng.index(4) {
            let at = rng.index(bytes.len());
            bytes[at] ^= u8::try_from(1 + rng.below(255)).unwrap();
        }
        if let Some(len) = BatchHeader::stated_len(&bytes).filter(|len| *len <= bytes.len()) {
            resign(&mut bytes[..len]);
        }
        if let Ok(header) = BatchHeader::decode(&bytes) {
            assert!(header.end_lsn() >= header.first_lsn && header.flaw(&bytes).is_some());
        }
    }
}

/// Fuzzing found it: a header whose checksum is right and whose LSNs run over the end overflowed when it was read.
#[test]
fn lsns_that_overflow_are_refused() {
    let descriptor = Descriptor { offset: 104, len: 64, head_crc: 0, kind: Kind::Row, from: None };
    let mut header = BatchHeader {
        device: DeviceId([1; 16]),
        segment: 0,
        segment_seq: 1,
        first_lsn: 1,
        durable_lsn: 0,
        prev_hash: 0,
        epoch: 1,
        total_len: 4096,
        records: vec![descriptor],
    };
    assert_eq!(BatchHeader::decode(&header.encode()), Ok(header.clone()));
    for beyond in [1 << 63, u64::MAX] {
        header.first_lsn = beyond;
        assert_eq!(BatchHeader::decode(&header.encode()), Err(BadBatch::Field("count")));
    }
}
