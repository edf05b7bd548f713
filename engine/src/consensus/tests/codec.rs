//! Golden bytes of what groups write, and what becomes of bytes that are none.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::rig::{node, voters};
use crate::catalog::BadValue;
use crate::consensus::codec::{
    ChunkWriter, Facts, Marker, Staged, decode_chunk, decode_entry, encode_entry, entry_bytes,
};
use crate::consensus::raft::{Command, LogEntry, Membership, Payload, StoredMembership, Vote, log_id};
use crate::consensus::territory::Host;
use crate::consensus::{Entry, Expected, Guard, RowChange};

fn row(value: Option<&[u8]>) -> RowChange {
    RowChange { key: b"ka".to_vec(), sequence: 0x0102, value: value.map(<[u8]>::to_vec) }
}

fn command() -> Vec<Entry> {
    let guards = vec![
        Guard { key: b"kb".to_vec(), expected: Expected::Absent },
        Guard { key: b"kc".to_vec(), expected: Expected::Sequence(9) },
    ];
    vec![
        Entry { term: Some(3), guards, rows: vec![row(Some(b"value")), row(None)] },
        Entry { term: None, guards: Vec::new(), rows: Vec::new() },
    ]
}

fn membership() -> Membership {
    Membership::new(
        vec![voters([1]), voters([1, 2])],
        voters([1, 2, 3])
            .into_iter()
            .map(|n| (n, openraft::EmptyNode {}))
            .collect::<std::collections::BTreeMap<_, _>>(),
    )
}

fn marker() -> Marker {
    let membership = StoredMembership::new(Some(log_id(1, 2)), Membership::new(vec![voters([1])], ()));
    Marker { applied: Some(log_id(3, 4)), part: 5, max_sequence: 6, term: 7, floor: 8, membership }
}

fn bytes_of(parts: &[&str]) -> String {
    parts.concat()
}

fn u64_hex(n: u64) -> String {
    hex::encode(n.to_le_bytes())
}

#[test]
fn log_entries_have_these_bytes_for_ever() {
    let head = bytes_of(&["01", &u64_hex(2), &u64_hex(3)]);
    let blank = LogEntry { log_id: log_id(2, 3), payload: Payload::Blank };
    assert_eq!(hex::encode(encode_entry(&blank)), bytes_of(&[&head, "00"]));
    let payload = Payload::Normal(Command(Arc::new(command())));
    let entry = LogEntry { log_id: log_id(2, 3), payload };
    let sequence = u64_hex(0x0102);
    let golden = bytes_of(&[
        &head,
        "01",
        "02", // rows, two entries
        "01",
        &u64_hex(3),
        "02",
        "026b62",
        "00",
        "026b63",
        "01",
        &u64_hex(9), // term and guards
        "02",
        "026b61",
        &sequence,
        "01",
        "0576616c7565",
        "026b61",
        &sequence,
        "00", // rows
        "00",
        "00",
        "00",
    ]);
    assert_eq!(hex::encode(encode_entry(&entry)), golden);
    let (one, two, three) = (hex::encode([1; 16]), hex::encode([2; 16]), hex::encode([3; 16]));
    let members = LogEntry { log_id: log_id(2, 3), payload: Payload::Membership(membership()) };
    let golden = bytes_of(&[&head, "02", "02", "01", &one, "02", &one, &two, "03", &one, &two, &three]);
    assert_eq!(hex::encode(encode_entry(&members)), golden);
    for entry in [blank, entry, members] {
        let bytes = encode_entry(&entry);
        let decoded = decode_entry(&bytes).unwrap();
        assert_eq!(decoded.log_id, entry.log_id);
        assert!(decoded.payload == entry.payload);
        every_cut_and_flip(&bytes, |bytes| decode_entry(bytes).map(|entry| encode_entry(&entry)));
    }
}

#[test]
fn states_and_markers_have_these_bytes_for_ever() {
    let one = hex::encode([1; 16]);
    let option = |term, index| bytes_of(&["01", &u64_hex(term), &u64_hex(index)]);
    let golden_marker = bytes_of(&[
        "01",
        &option(3, 4),
        &u64_hex(5),
        &u64_hex(6),
        &u64_hex(7),
        &u64_hex(8), // how far
        &option(1, 2),
        "01",
        "01",
        &one,
        "01",
        &one, // members
    ]);
    assert_eq!(hex::encode(marker().encode()), golden_marker);
    assert_eq!(Marker::decode(&marker().encode()), Ok(marker()));
    assert_eq!(Marker::decode(&Marker::default().encode()), Ok(Marker::default()));
    let facts = Facts {
        vote: Some(Vote::new_committed(9, node(1))),
        purged: Some(log_id(1, 1)),
        life: 0x0203,
        given_up: true,
        host: Some(Host { space: 5, id: 7, from: "m".to_owned(), to: Some("t".to_owned()) }),
        staged: Some(Staged { marker: marker(), chunks: 12 }),
    };
    let golden = bytes_of(&[
        "01",
        "01",
        &u64_hex(9),
        "01",
        &one,
        "01", // vote
        &option(1, 1),
        "0302",
        "01", // life
        "01",
        "05",
        &u64_hex(7),
        "016d",
        "01",
        "0174", // host
        "01",
        &u64_hex(12),
        &golden_marker,
    ]);
    assert_eq!(hex::encode(facts.encode()), golden);
    assert_eq!(Facts::decode(&facts.encode()), Ok(facts.clone()));
    assert_eq!(hex::encode(Facts::default().encode()), "0100000000000000");
    every_cut_and_flip(&facts.encode(), |bytes| Facts::decode(bytes).map(|facts| facts.encode()));
    every_cut_and_flip(&marker().encode(), |bytes| Marker::decode(bytes).map(|marker| marker.encode()));
}

#[test]
fn chunks_have_these_bytes_for_ever() {
    let mut chunk = ChunkWriter::default();
    assert_eq!(chunk.take(), None);
    chunk.push(b"ka", 0x0102, b"value");
    let bytes = chunk.take().unwrap();
    assert_eq!(hex::encode(&bytes), bytes_of(&["01026b61", &u64_hex(0x0102), "010576616c7565"]));
    assert_eq!(decode_chunk(&bytes), Ok(vec![row(Some(b"value"))]));
    assert!(decode_chunk(&[]).is_err());
}

/// Cut bytes are errors; flipped ones are errors or other values, whose bytes are those.
fn every_cut_and_flip(bytes: &[u8], again: impl Fn(&[u8]) -> Result<Vec<u8>, BadValue>) {
    assert_eq!(again(bytes).as_deref(), Ok(bytes));
    for len in 0..bytes.len() {
        assert!(again(&bytes[..len]).is_err(), "{len}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(again(&flipped).as_deref(), Ok(bytes), "bit {bit}");
    }
}

#[test]
fn the_size_of_an_entry_is_never_underestimated() {
    let entries = command();
    let sum: usize = entries.iter().map(entry_bytes).sum();
    let entry = LogEntry { log_id: log_id(1, 1), payload: Payload::Normal(Command(Arc::new(entries))) };
    assert!(encode_entry(&entry).len() <= sum + 64);
}

#[test]
fn members_beyond_the_limit_are_refused() {
    let many: BTreeSet<_> = (0..65).map(node).collect();
    let members = Payload::Membership(Membership::new(vec![many], ()));
    let bytes = encode_entry(&LogEntry { log_id: log_id(1, 1), payload: members });
    assert!(decode_entry(&bytes).is_err());
}
