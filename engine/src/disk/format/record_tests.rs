use super::*;

const DEVICE: DeviceId = DeviceId([0x11; 16]);

fn record(data: &'static [u8]) -> NewRecord {
    let (key, meta) = (&b"key"[..], &b"meta"[..]);
    let data = Bytes::from_static(data);
    NewRecord::new(
        DEVICE,
        Parts { kind: Kind::Object, deleted: false, sequence: 7, number: 3, key, meta, data },
    )
}

fn stored(record: &NewRecord) -> Vec<u8> {
    let mut bytes = record.head_bytes().to_vec();
    bytes.extend_from_slice(record.data());
    bytes.resize(record.stored_len(), 0);
    bytes
}

#[test]
fn the_bytes_of_a_head_are_those_of_version_1() {
    assert_eq!(
        hex::encode(record(b"data").head_bytes()),
        "26150aec010003000400000004000000070000000000000003000000300000006b65796d657461702148150000000000"
    );
}

#[test]
fn a_record_of_summed_data_is_the_same_record() {
    let mut data = vec![0; MAX_DATA];
    crate::io::SplitMix64::new(1).fill(&mut data);
    let data = Bytes::from(data);
    for blocks in [0, 1, 15, 16, 17, 32, 256] {
        let data = data.slice(..blocks * BLOCK);
        let sums = Sums::of(&data);
        let (key, meta) = (&b"key"[..], &b"meta"[..]);
        let parts =
            Parts { kind: Kind::VolumeExtent, deleted: false, sequence: 7, number: 3, key, meta, data };
        let [new, summed] = [NewRecord::new(DEVICE, parts.clone()), NewRecord::summed(DEVICE, parts, &sums)];
        assert_eq!((stored(&new), new.data()), (stored(&summed), summed.data()), "{blocks}");
    }
}

#[test]
fn a_record_round_trips() {
    let whole = Bytes::from(stored(&record(b"data")));
    let back = StoredRecord::verify(DEVICE, whole.clone()).unwrap();
    let view = back.view();
    assert_eq!((view.kind, view.deleted, view.sequence, view.number), (Kind::Object, false, 7, 3));
    assert_eq!((view.key, view.meta, &back.data()[..]), (&b"key"[..], &b"meta"[..], &b"data"[..]));
    assert_eq!(stored(&NewRecord::verbatim(&back)), whole, "the cleaner moves it byte for byte");
}

#[test]
fn every_flipped_byte_of_head_and_data_is_found() {
    let whole = stored(&record(b"some data"));
    let padding = whole.len() - 7;
    for at in 0..padding {
        for mask in [1, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= mask;
            let found = StoredRecord::verify(DEVICE, bytes.into());
            assert!(found.is_err(), "byte {at} flipped by {mask:#x}");
        }
    }
}

#[test]
fn a_flip_in_the_last_span_of_large_data_is_found_there() {
    static DATA: [u8; CRC_SPAN + 10] = [5; CRC_SPAN + 10];
    let mut bytes = stored(&record(&DATA));
    let at = bytes.len() - 7;
    bytes[at] ^= 1;
    let bad = StoredRecord::verify(DEVICE, bytes.into()).unwrap_err();
    assert_eq!(bad, BadRecord::DataCrc { at: CRC_SPAN });
}

#[test]
fn every_cut_is_found() {
    let whole = Bytes::from(stored(&record(b"12345678")));
    for len in 0..whole.len() {
        assert!(StoredRecord::verify(DEVICE, whole.slice(..len)).is_err(), "{len} bytes");
    }
}

#[test]
fn bytes_of_another_device_or_another_name_fail() {
    let whole = stored(&record(b"data"));
    assert_eq!(StoredRecord::verify(DeviceId([0x12; 16]), whole.into()).unwrap_err(), BadRecord::HeadCrc);
    // The data of one key under the head of another: each verifies by itself, not together.
    let (key, meta, data) = (&b"kez"[..], &b"meta"[..], Bytes::from_static(b"data"));
    let parts = Parts { kind: Kind::Object, deleted: false, sequence: 7, number: 3, key, meta, data };
    let other = NewRecord::new(DEVICE, parts);
    let crcs = other.head_bytes().len() - 1;
    assert_ne!(other.head_bytes()[32..crcs], record(b"data").head_bytes()[32..crcs]);
    for (sequence, number) in [(8, 3), (7, 4)] {
        let parts = Parts { sequence, number, ..parts_of(b"data") };
        let moved = NewRecord::new(DEVICE, parts);
        let at = 32 + 3 + 4;
        let mine = record(b"data");
        assert_ne!(moved.head_bytes()[at..at + 4], mine.head_bytes()[at..at + 4], "seeded with its identity");
    }
}

fn parts_of(data: &'static [u8]) -> Parts<'static> {
    let data = Bytes::from_static(data);
    Parts { kind: Kind::Object, deleted: false, sequence: 7, number: 3, key: b"key", meta: b"meta", data }
}

#[test]
fn any_bytes_whatever_end_in_a_value_or_an_error() {
    let mut rng = crate::io::SplitMix64::new(1);
    for round in 0..20_000 {
        let mut bytes = vec![0; rng.index(300)];
        rng.fill(&mut bytes);
        if round % 2 == 0 && bytes.len() > 32 {
            bytes[4] = 1;
            bytes[5] = 0;
            bytes[6..8].copy_from_slice(&3u16.to_le_bytes());
            bytes[9..16].fill(0);
        }
        assert!(StoredRecord::verify(DEVICE, bytes.into()).is_err());
    }
}
