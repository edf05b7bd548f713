//! Messages between nodes.

use bytes::Bytes;
use quarry_engine::catalog::{Stamp, Stamps, Version};
use quarry_engine::disk::format::record::{DeviceId, Kind};
use quarry_engine::disk::{Class, Durability};
use quarry_engine::io::SplitMix64;
use quarry_engine::net::limits::{FIXED, MAX_HEAD, MAX_PAYLOAD};
use quarry_engine::net::wire::{
    Direction, Message, decode_request, decode_response, encode_request, encode_response, split,
};
use quarry_engine::net::{
    Ballot, Code, ConsensusAnswer, ConsensusCall, Failure, Handle, NodeId, OpenedObject, Position, Request,
    Response,
};
use quarry_engine::object::Draft;
use quarry_engine::sync::{Answer, Ask, Parts};

use super::super::Target;
use super::put_u32;

/// A request.
pub(super) const REQUEST: Target =
    Target { name: "wire-request", run: request, seeds: requests, mend, words: &[] };
/// A response.
pub(super) const RESPONSE: Target =
    Target { name: "wire-response", run: response, seeds: responses, mend, words: &[] };

fn join(message: Message) -> Vec<u8> {
    message.into_chunks().concat()
}

fn parts() -> Parts {
    [1, 2, 5, 200_000].into_iter().collect()
}

fn stamps() -> Stamps {
    let stamp = |n| Stamp { hash: [n; 16], sequence: 1 << 50, deleted: n == 2 };
    Stamps { stamps: vec![stamp(1), stamp(2)], more: true, upto: Some([3; 16]) }
}

fn requests(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let (device, hash) = (DeviceId([3; 16]), [4; 16]);
    let handle = Handle { incarnation: u64::MAX, number: 300 };
    let draft = |kind, len: usize| Draft {
        kind,
        deleted: len == 0,
        sequence: 1 << 50,
        number: 7,
        key: vec![5; 16],
        meta: vec![6; 40],
        data: Bytes::from(vec![7; len]),
    };
    let group = vec![draft(Kind::Object, 100), draft(Kind::Row, 0)];
    let vote = Ballot { term: 9, node: Some(NodeId([1; 16])), committed: true };
    let previous = Some(Position { term: 8, index: 1 << 33 });
    let entries = vec![Bytes::from(vec![1; 30]), Bytes::from(vec![2; 10])];
    let append = ConsensusCall::Append { vote, previous, committed: None, entries };
    let requests = [
        Request::Ping { payload: Bytes::from_static(b"payload") },
        Request::Append { device, group, durability: Durability::Durable, class: Class::Client },
        Request::Abandon { device, upload: hash, sequence: 9 },
        Request::Version { device, hash },
        Request::Open { device, hash },
        Request::Read { device, handle, chunk: 77 },
        Request::Close { device, handle },
        Request::Consensus { group: 2, call: append },
        Request::Consensus { group: 1, call: ConsensusCall::SnapshotEnd { transfer: 5, chunks: 6 } },
        Request::Sync { device, ask: Ask::Sums { power: 18, parts: parts(), group: 64 } },
        Request::Sync {
            device,
            ask: Ask::Stamps { power: 20, part: 7, after: Some(hash), limit: 9, doubt: true },
        },
        Request::Sync { device, ask: Ask::Held { power: 8, from: 3 } },
        Request::Sync { device, ask: Ask::Record { hash } },
    ];
    let encode = |request| encode_request(request, std::time::Duration::from_secs(5)).ok().map(join);
    requests.into_iter().filter_map(encode).collect()
}

fn responses(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let handle = Some(Handle { incarnation: 1 << 40, number: 2 });
    let record = Bytes::from(vec![8; 64]);
    let responses = [
        Response::Pong { payload: Bytes::from_static(b"payload") },
        Response::Done,
        Response::Consensus(ConsensusAnswer::AppendedTo(Some(Position { term: 1, index: 300 }))),
        Response::Version(Some(Version { sequence: 5, deleted: true, delete_at: Some(6) })),
        Response::Opened(Some(OpenedObject { handle, chunks: 3, record: record.clone() })),
        Response::Record(record),
        Response::Failed(Failure::new(Code::Expired, "late")),
        Response::Sync(Answer::Sums(vec![1 << 100, 2])),
        Response::Sync(Answer::Stamps(stamps())),
        Response::Sync(Answer::Held { parts: parts(), next: Some(77) }),
        Response::Sync(Answer::Record(Some(Bytes::from(vec![9; 64])))),
    ];
    responses.into_iter().filter_map(|response| encode_response(response).ok().map(join)).collect()
}

/// What reads back is within the limits, and has the same bytes when it is written again as what it reads back from that.
fn request(data: &[u8]) {
    let Ok((lengths, head, payload)) = split(Direction::Request, &Bytes::copy_from_slice(data)) else {
        return;
    };
    assert!(lengths.head <= MAX_HEAD && lengths.payload <= MAX_PAYLOAD);
    let Ok(request) = decode_request(&head, payload) else { return };
    let again = encode_request(request, lengths.within).map(join).expect("what was read can be written");
    let (_, head, payload) =
        split(Direction::Request, &again.clone().into()).expect("what was written can be split");
    let request = decode_request(&head, payload).expect("what was written can be read");
    assert!(encode_request(request, lengths.within).map(join).is_ok_and(|third| third == again));
}

fn response(data: &[u8]) {
    let Ok((_, head, payload)) = split(Direction::Response, &Bytes::copy_from_slice(data)) else { return };
    let Ok(response) = decode_response(&head, payload) else { return };
    let again = encode_response(response.clone()).map(join).expect("what was read can be written");
    let (_, head, payload) =
        split(Direction::Response, &again.into()).expect("what was written can be split");
    assert_eq!(decode_response(&head, payload), Ok(response));
}

/// Makes the payload's length agree with what is there, as far as it goes.
#[expect(clippy::ptr_arg, reason = "every target's repair has one type, and some change the length")]
fn mend(bytes: &mut Vec<u8>) {
    let head = super::u32_at(bytes, 4).unwrap_or(0);
    if let Some(payload) = bytes.len().checked_sub(FIXED).and_then(|rest| rest.checked_sub(head)) {
        put_u32(bytes, 8, u32::try_from(payload).unwrap_or(0));
    }
}
