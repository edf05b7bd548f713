//! Golden bytes of every message, and what becomes of bytes that are none.

use super::*;
use crate::catalog::{Stamp, Stamps};
use crate::disk::limits::MAX_GROUP;
use crate::net::{Ballot, ConsensusAnswer, ConsensusCall, Position};
use crate::sync::{Answer, Ask, Parts};

const DEVICE: DeviceId = DeviceId([0xd0; 16]);
const HASH: [u8; 16] = [0xa5; 16];
const HANDLE: Handle = Handle { incarnation: 0x0102_0304_0506_0708, number: 300 };
const WITHIN: Duration = Duration::from_millis(0x1234);

fn draft(data: &'static [u8]) -> Draft {
    Draft {
        kind: Kind::Object,
        deleted: false,
        sequence: 0x1_0000,
        number: 7,
        key: b"key".to_vec(),
        meta: b"meta".to_vec(),
        data: Bytes::from_static(data),
    }
}

fn parts() -> Parts {
    [1, 2, 5].into_iter().collect()
}

fn requests() -> Vec<(Request, &'static str)> {
    let (d, h) = ("d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0", "a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5");
    let handle = "fd0807060504030201fb2c01";
    let text = |tag: &str, parts: &[&str]| -> &'static str { format!("{tag}{}", parts.concat()).leak() };
    let tombstone = Draft { kind: Kind::Row, deleted: true, data: Bytes::new(), ..draft(b"") };
    let group = vec![draft(b"bytes"), tombstone];
    let stamps = Ask::Stamps { power: 20, part: 300, after: Some(HASH), limit: 4096, doubt: true };
    let heads = "0100fc0000010007036b6579046d65746105".to_owned() + "0301fc0000010007036b6579046d65746100";
    vec![
        (Request::Ping { payload: Bytes::from_static(b"hello") }, "0005|68656c6c6f"),
        (
            Request::Append { device: DEVICE, group, durability: Durability::Durable, class: Class::Client },
            text("01", &[d, "02", "01", "02", &heads, "|6279746573"]),
        ),
        (Request::Abandon { device: DEVICE, upload: HASH, sequence: 9 }, text("02", &[d, h, "09|"])),
        (Request::Version { device: DEVICE, hash: HASH }, text("03", &[d, h, "|"])),
        (Request::Open { device: DEVICE, hash: HASH }, text("04", &[d, h, "|"])),
        (Request::Read { device: DEVICE, handle: HANDLE, chunk: 2 }, text("05", &[d, handle, "02|"])),
        (Request::Close { device: DEVICE, handle: HANDLE }, text("06", &[d, handle, "|"])),
        (Request::Names(names::tests::begin()), "080d|0101fb2c0101610163016f0105"),
        (
            Request::Announce(Announcement {
                node: None,
                address: "a:1".to_owned(),
                devices: vec![(DEVICE, 300, 2)],
            }),
            text("09", &["00", "03613a31", "01", d, "fb2c01", "02|"]),
        ),
        (Request::Wish(Wish::Device { device: DEVICE, wanted: 2 }), text("0a", &["00", d, "02|"])),
        (Request::Wish(Wish::Node { node: NodeId(HASH), leaving: true }), text("0a", &["01", h, "01|"])),
        (
            Request::Wish(Wish::Row { key: b"ku".to_vec(), value: Some(vec![7]), fresh: true }),
            "0c026b7501010701|",
        ),
        (Request::Wish(Wish::Row { key: b"ku".to_vec(), value: None, fresh: false }), "0c026b750000|"),
        (
            Request::Wish(Wish::Volumes {
                guards: vec![(b"Va".to_vec(), Some(300)), (b"Vb".to_vec(), None)],
                rows: vec![(b"Va".to_vec(), Some(vec![7])), (b"Vb".to_vec(), None)],
            }),
            "0e02025661_01fb2c01_025662_00_02_025661_010107_025662_00|".replace('_', "").leak(),
        ),
        (
            Request::Sync { device: DEVICE, ask: Ask::Sums { power: 8, parts: parts(), group: 64 } },
            text("0b", &[d, "00", "08", "0201020201", "40|"]),
        ),
        (
            Request::Sync { device: DEVICE, ask: stamps },
            text("0b", &[d, "01", "14", "fb2c01", "01", h, "fb0010", "01|"]),
        ),
        (
            Request::Sync { device: DEVICE, ask: Ask::Held { power: 8, from: 7 } },
            text("0b", &[d, "02", "08", "07|"]),
        ),
        (Request::Sync { device: DEVICE, ask: Ask::Record { hash: HASH } }, text("0b", &[d, "03", h, "|"])),
    ]
    .into_iter()
    .chain(consensus_requests())
    .chain(volume::tests::requests())
    .collect()
}

fn consensus_requests() -> Vec<(Request, &'static str)> {
    let vote = Ballot { term: 300, node: Some(crate::net::NodeId([0xee; 16])), committed: true };
    let position = Some(Position { term: 2, index: 1000 });
    let ballot = "fb2c0101eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee01";
    let of = |call| Request::Consensus { group: 9, call };
    let entries = vec![Bytes::from_static(b"one"), Bytes::from_static(b"second")];
    let append = ConsensusCall::Append { vote, previous: position, committed: None, entries };
    let begin = ConsensusCall::SnapshotBegin { vote, transfer: 4, head: Bytes::from_static(b"head") };
    let chunk = ConsensusCall::SnapshotChunk { transfer: 4, number: 5, rows: Bytes::from_static(b"rows") };
    let text = |tag: &str, rest: &str| -> &'static str { format!("0709{tag}{rest}").leak() };
    vec![
        (of(append), text("00", &[ballot, "0102fbe803", "00", "020306|6f6e657365636f6e64"].concat())),
        (of(ConsensusCall::Vote { vote, last: None }), text("01", &[ballot, "00|"].concat())),
        (of(begin), text("02", &[ballot, "0404|68656164"].concat())),
        (of(chunk), text("03", "040504|726f7773")),
        (of(ConsensusCall::SnapshotEnd { transfer: 4, chunks: 6 }), text("04", "0406|")),
        (of(ConsensusCall::Members), text("05", "|")),
        (of(ConsensusCall::Lead), text("06", "|")),
        (of(ConsensusCall::Silent { last: None }), text("07", "00|")),
    ]
}

fn consensus_responses() -> Vec<(Response, &'static str)> {
    let vote = Ballot { term: 1, node: None, committed: false };
    let last = Some(Position { term: 2, index: 3 });
    vec![
        (ConsensusAnswer::Appended, "0600|"),
        (ConsensusAnswer::AppendedTo(last), "0601010203|"),
        (ConsensusAnswer::Conflict, "0602|"),
        (ConsensusAnswer::Higher(vote), "0603010000|"),
        (ConsensusAnswer::Voted { vote, granted: true, last }, "060401000001010203|"),
        (ConsensusAnswer::Next(7), "060507|"),
        (ConsensusAnswer::Busy, "0606|"),
        (ConsensusAnswer::Installed(vote), "0607010000|"),
        (
            ConsensusAnswer::Members { voters: vec![crate::net::NodeId([3; 16])], learners: Vec::new() },
            "0608010303030303030303030303030303030300|",
        ),
        (ConsensusAnswer::Campaigns, "0609|"),
        (ConsensusAnswer::Silent(true), "060a01|"),
    ]
    .into_iter()
    .map(|(answer, golden)| (Response::Consensus(answer), golden))
    .collect()
}

fn responses() -> Vec<(Response, &'static str)> {
    let version = Version { sequence: 5, deleted: true, delete_at: Some(6) };
    let record = Bytes::from_static(b"record");
    let opened = OpenedObject { handle: Some(HANDLE), chunks: 3, record: record.clone() };
    let whole = OpenedObject { handle: None, chunks: 0, record: record.clone() };
    let failure = Failure::new(Code::Expired, "late");
    let sums = "080002|01000000000000000000000000000000feffffffffffffffffffffffffffffff";
    let stamps = vec![Stamp { hash: HASH, sequence: 0x0102, deleted: true }];
    let stamps = Stamps { stamps, more: true, upto: Some(HASH) };
    let page = "08010101a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5|a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5020100000000000001";
    vec![
        (Response::Pong { payload: Bytes::from_static(b"hello") }, "0005|68656c6c6f"),
        (Response::Done, "01|"),
        (Response::Version(None), "0200|"),
        (Response::Version(Some(version)), "020105010106|"),
        (Response::Opened(None), "0300|"),
        (Response::Opened(Some(opened)), "030101fd0807060504030201fb2c010306|7265636f7264"),
        (Response::Opened(Some(whole)), "0301000006|7265636f7264"),
        (Response::Record(record), "0406|7265636f7264"),
        (Response::Failed(failure), "0521046c617465|"),
        (Response::Names(names::tests::begun()), "070a|01010902010000fb2c01"),
        (Response::Sync(Answer::Sums(vec![1, u128::MAX - 1])), sums),
        (Response::Sync(Answer::Stamps(stamps)), page),
        (Response::Sync(Answer::Held { parts: parts(), next: Some(9) }), "080202010202010109|"),
        (Response::Sync(Answer::Record(None)), "080300|"),
        (Response::Sync(Answer::Record(Some(Bytes::from_static(b"record")))), "08030106|7265636f7264"),
    ]
    .into_iter()
    .chain(consensus_responses())
    .chain(volume::tests::responses())
    .collect()
}

fn join(message: Message) -> Bytes {
    message.into_chunks().concat().into()
}

fn expected(direction: Direction, golden: &str, within: u32) -> Vec<u8> {
    let (head, payload) = golden.split_once('|').unwrap();
    let (head, payload) = (hex::decode(head).unwrap(), hex::decode(payload).unwrap());
    let mut bytes = vec![1, direction as u8, 0, 0];
    for n in [head.len(), payload.len()] {
        bytes.extend_from_slice(&u32::try_from(n).unwrap().to_le_bytes());
    }
    bytes.extend_from_slice(&within.to_le_bytes());
    [bytes, head, payload].concat()
}

fn request_from(bytes: &Bytes) -> Result<Request, WireError> {
    let (_, head, payload) = split(Direction::Request, bytes)?;
    decode_request(&head, payload)
}

fn response_from(bytes: &Bytes) -> Result<Response, WireError> {
    let (_, head, payload) = split(Direction::Response, bytes)?;
    decode_response(&head, payload)
}

fn same(one: &Request, other: &Request) -> bool {
    // Drafts are not comparable; their texts are.
    format!("{one:?}") == format!("{other:?}")
}

#[test]
fn requests_have_these_bytes_for_ever() {
    for (request, golden) in requests() {
        let bytes = join(encode_request(request.clone(), WITHIN).unwrap());
        assert_eq!(
            hex::encode(&bytes),
            hex::encode(expected(Direction::Request, golden, 0x1234)),
            "{request:?}"
        );
        assert!(same(&request_from(&bytes).unwrap(), &request), "{request:?}");
        assert_eq!(split(Direction::Request, &bytes).unwrap().0.within, WITHIN);
    }
}

#[test]
fn responses_have_these_bytes_for_ever() {
    for (response, golden) in responses() {
        let bytes = join(encode_response(response.clone()).unwrap());
        assert_eq!(
            hex::encode(&bytes),
            hex::encode(expected(Direction::Response, golden, 0)),
            "{response:?}"
        );
        assert_eq!(response_from(&bytes), Ok(response));
    }
}

#[test]
fn payloads_are_not_copied() {
    let payload = Bytes::from(vec![7; 4096]);
    let chunks = encode_request(Request::Ping { payload: payload.clone() }, WITHIN).unwrap().into_chunks();
    assert_eq!(chunks[1].as_ptr(), payload.as_ptr());
    let Ok(Request::Ping { payload: back }) = decode_request(&chunks[0][FIXED..], payload.clone()) else {
        panic!("a ping is a ping");
    };
    assert_eq!(back.as_ptr(), payload.as_ptr());
}

fn all_messages() -> Vec<(Direction, Bytes)> {
    let request = |(request, _)| (Direction::Request, join(encode_request(request, WITHIN).unwrap()));
    let response = |(response, _)| (Direction::Response, join(encode_response(response).unwrap()));
    requests().into_iter().map(request).chain(responses().into_iter().map(response)).collect()
}

fn read(direction: Direction, bytes: &Bytes) -> Result<(), WireError> {
    match direction {
        Direction::Request => request_from(bytes).map(drop),
        Direction::Response => response_from(bytes).map(drop),
    }
}

#[test]
fn messages_that_are_cut_or_too_long_are_errors() {
    for (direction, bytes) in all_messages() {
        for len in 0..bytes.len() {
            assert_eq!(read(direction, &bytes.slice(..len)), Err(WireError::Truncated), "{len} of {bytes:?}");
        }
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        assert_eq!(read(direction, &longer), Err(WireError::Trailing));
        // The same with lengths that agree with what is there.
        let (lengths, head, payload) = split(direction, &bytes).unwrap();
        for len in 0..lengths.head {
            let cut = match direction {
                Direction::Request => decode_request(&head[..len], payload.clone()).map(drop),
                Direction::Response => decode_response(&head[..len], payload.clone()).map(drop),
            };
            assert!(cut.is_err(), "{len} of head {head:?}");
        }
        if !payload.is_empty() {
            let short = payload.slice(1..);
            let cut = match direction {
                Direction::Request => decode_request(&head, short).map(drop),
                Direction::Response => decode_response(&head, short).map(drop),
            };
            assert_eq!(cut, Err(WireError::Truncated));
        }
    }
}

#[test]
fn any_changed_byte_gives_an_error_or_another_message_within_the_limits() {
    for (direction, bytes) in all_messages() {
        for at in 0..bytes.len() {
            for value in 0..=255 {
                let mut changed = bytes.to_vec();
                changed[at] = value;
                let unchanged = changed == bytes;
                let result = read(direction, &changed.into());
                assert!(result.is_ok() || !unchanged);
                assert!(
                    result.is_err() || unchanged || at >= 12,
                    "byte {at} of the fixed part does not count"
                );
            }
        }
    }
}

#[test]
fn lengths_are_refused_before_anything_is_made_of_them() {
    let fixed = |head: u32, payload: u32, within: u32| {
        let mut bytes = [0; FIXED];
        bytes[..2].copy_from_slice(&[VERSION, 1]);
        bytes[4..8].copy_from_slice(&head.to_le_bytes());
        bytes[8..12].copy_from_slice(&payload.to_le_bytes());
        bytes[12..].copy_from_slice(&within.to_le_bytes());
        bytes
    };
    let of = |bytes: [u8; FIXED]| lengths(Direction::Request, &bytes);
    let (head, payload) = (u32::try_from(MAX_HEAD).unwrap(), u32::try_from(MAX_PAYLOAD).unwrap());
    assert!(of(fixed(head, payload, 600_000)).is_ok());
    assert_eq!(of(fixed(head + 1, 0, 0)), Err(WireError::Limit("head")));
    assert_eq!(of(fixed(0, payload + 1, 0)), Err(WireError::Limit("payload")));
    assert_eq!(of(fixed(u32::MAX, u32::MAX, 0)), Err(WireError::Limit("head")));
    assert_eq!(of(fixed(0, 0, 600_001)), Err(WireError::Field("within")));
    assert_eq!(lengths(Direction::Response, &fixed(0, 0, 0)), Err(WireError::Kind(1)));
    let mut newer = fixed(0, 0, 0);
    newer[0] = 2;
    assert_eq!(of(newer), Err(WireError::Version(2)));
}

#[test]
fn a_length_in_a_head_that_lies_allocates_nothing_large() {
    // A failure whose text claims 2^63 bytes, and a group that claims 2^60 drafts.
    let text = [&[5, 33, 253][..], &(1_u64 << 63).to_le_bytes()].concat();
    assert!(decode_response(&text, Bytes::new()).is_err());
    let group = [&[1][..], &[0; 16], &[1, 1, 253], &(1_u64 << 60).to_le_bytes()].concat();
    assert_eq!(decode_request(&group, Bytes::new()).map(drop), Err(WireError::Limit("head")));
}

#[test]
fn the_largest_group_fits_and_a_larger_does_not() {
    let draft = |meta: usize, data: usize| Draft {
        kind: Kind::Chunk,
        deleted: false,
        sequence: u64::MAX,
        number: u32::MAX,
        key: vec![1; MAX_KEY],
        meta: vec![2; meta],
        data: Bytes::from(vec![3; data]),
    };
    let group = |count: usize, meta, data| Request::Append {
        device: DEVICE,
        group: (0..count).map(|_| draft(meta, data)).collect(),
        durability: Durability::Appended,
        class: Class::Delete,
    };
    let most = group(MAX_GROUP_RECORDS, MAX_META, MAX_GROUP / MAX_GROUP_RECORDS);
    let bytes = join(encode_request(most.clone(), WITHIN).unwrap());
    assert!(same(&request_from(&bytes).unwrap(), &most));
    assert!(bytes.len() <= FIXED + MAX_HEAD + MAX_PAYLOAD);
    for (request, limit) in [
        (group(MAX_GROUP_RECORDS + 1, 0, 0), "group"),
        (group(1, MAX_META + 1, 0), "meta"),
        (group(1, 0, MAX_DATA + 1), "data"),
        (group(MAX_GROUP_RECORDS, 0, MAX_DATA), "payload"),
    ] {
        assert_eq!(encode_request(request, WITHIN).map(drop), Err(WireError::Limit(limit)));
    }
}

#[test]
fn what_a_peer_may_not_say_has_no_bytes() {
    let append =
        |class| Request::Append { device: DEVICE, group: vec![], durability: Durability::Durable, class };
    assert!(encode_request(append(Class::Client), WITHIN).is_ok());
    assert_eq!(encode_request(append(Class::Cleaner), WITHIN).map(drop), Err(WireError::Field("class")));
    let text = Failure { code: Code::Busy, text: "x".repeat(MAX_TEXT + 1) };
    assert_eq!(encode_response(Response::Failed(text)).map(drop), Err(WireError::Limit("text")));
}

#[test]
fn a_text_is_cut_at_a_character() {
    let failure = Failure::new(Code::Corrupt, "é".repeat(MAX_TEXT));
    assert_eq!(failure.text.len(), MAX_TEXT);
    let failure = Failure::new(Code::Corrupt, format!("x{}", "é".repeat(MAX_TEXT)));
    assert_eq!(failure.text.len(), MAX_TEXT - 1);
}

#[test]
fn codes_have_these_numbers_for_ever() {
    let numbers = Code::ALL.map(|code| code as u8);
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 32, 33, 34, 35, 36]);
    assert!((0..=255).filter(|n| Code::from_u8(*n).is_some()).count() == Code::ALL.len());
}
