//! Messages as bytes (engine/FORMAT-wire.md): the one family of modules that knows bincode.
//!
//! ```text
//! offset  size  field
//!      0     1  version      1
//!      1     1  kind         1 request, 2 response
//!      2     2  zero
//!      4     4  head_len     at most MAX_HEAD
//!      8     4  payload_len  at most MAX_PAYLOAD
//!     12     4  within       request: milliseconds that the caller waits; response: zero
//!     16     …  head         bincode
//!      …     …  payload      raw bytes, whose lengths stand in the head
//! ```
//!
//! Invariant: every limit is checked before anything is allocated by it.
//! Invariant: any bytes whatever give a message within its limits or a [`WireError`], never a panic.
//! Invariant: payloads are never copied here: they are slices of what came, and chunks of what goes.

mod consensus;
mod names;
mod sync;
mod volume;

use std::time::Duration;

use bincode::{Decode, Encode};
use bytes::Bytes;

use super::NodeId;
use super::limits::{
    FIXED, MAX_CHUNKS, MAX_DEADLINE, MAX_DISKS, MAX_HEAD, MAX_PAYLOAD, MAX_TEXT, MAX_VOLUME_ROWS,
};
use super::message::{Announcement, Code, Failure, Handle, OpenedObject, Request, Response, Wish};
use crate::block::{Fence, VolumeId};
use crate::catalog::Version;
use crate::disk::format::record::{DeviceId, Kind};
use crate::disk::limits::{MAX_DATA, MAX_GROUP_RECORDS, MAX_KEY, MAX_META, MAX_RECORD};
use crate::disk::{Class, Durability};
use crate::object::Draft;

/// The version of the protocol; a node speaks one.
pub const VERSION: u8 = 1;

/// Why bytes are not a message, or a message cannot become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Another version of the protocol.
    #[error("message of protocol version {0}, this node speaks {VERSION}")]
    Version(u8),
    /// A request where a response belongs, or neither.
    #[error("message of kind {0} where another belongs")]
    Kind(u8),
    /// The message ends before its parts do.
    #[error("message is cut short")]
    Truncated,
    /// More bytes than the message has.
    #[error("message has bytes too many")]
    Trailing,
    /// Over a limit: of what.
    #[error("message is over the limit of {0}")]
    Limit(&'static str),
    /// A field with a value that no node writes.
    #[error("message field {0} is invalid")]
    Field(&'static str),
}

/// Which of the two kinds of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the caller.
    Request = 1,
    /// To the caller.
    Response = 2,
}

/// A message ready to be sent: head first, then the payload's chunks.
#[derive(Debug, Clone)]
pub struct Message {
    chunks: Vec<Bytes>,
}

impl Message {
    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }

    /// Never: a message has a head.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Its bytes in order, in pieces.
    #[must_use]
    pub fn into_chunks(self) -> Vec<Bytes> {
        self.chunks
    }
}

/// What the first [`FIXED`] bytes say: lengths within their limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Bytes of the head.
    pub head: usize,
    /// Bytes of the payload.
    pub payload: usize,
    /// How long the caller waits.
    pub within: Duration,
}

impl Lengths {
    /// Bytes of the whole message.
    #[must_use]
    pub fn message(&self) -> usize {
        FIXED + self.head + self.payload
    }
}

/// Reads the first bytes of a message.
pub fn lengths(expected: Direction, fixed: &[u8; FIXED]) -> Result<Lengths, WireError> {
    let [version, kind, zero @ ..] = *fixed;
    let [zero0, zero1, h0, h1, h2, h3, p0, p1, p2, p3, w0, w1, w2, w3] = zero;
    if version != VERSION {
        return Err(WireError::Version(version));
    }
    if kind != expected as u8 {
        return Err(WireError::Kind(kind));
    }
    if [zero0, zero1] != [0, 0] {
        return Err(WireError::Field("zero"));
    }
    let head = u32::from_le_bytes([h0, h1, h2, h3]) as usize;
    let payload = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
    let within = Duration::from_millis(u32::from_le_bytes([w0, w1, w2, w3]).into());
    if head > MAX_HEAD {
        return Err(WireError::Limit("head"));
    }
    if payload > MAX_PAYLOAD {
        return Err(WireError::Limit("payload"));
    }
    let waits = match expected {
        Direction::Request => Duration::ZERO..=MAX_DEADLINE,
        Direction::Response => Duration::ZERO..=Duration::ZERO,
    };
    if !waits.contains(&within) {
        return Err(WireError::Field("within"));
    }
    Ok(Lengths { head, payload, within })
}

/// A request as bytes. A longer wait than [`MAX_DEADLINE`] is said as that.
pub fn encode_request(request: Request, within: Duration) -> Result<Message, WireError> {
    let (head, payload) = request_head(request)?;
    let within = within.min(MAX_DEADLINE).as_millis();
    assemble(Direction::Request, &head, payload, u32::try_from(within).unwrap_or(u32::MAX))
}

/// A response as bytes.
pub fn encode_response(response: Response) -> Result<Message, WireError> {
    let (head, payload) = response_head(response)?;
    assemble(Direction::Response, &head, payload, 0)
}

/// A request from a head and a payload whose lengths were checked.
pub fn decode_request(head: &[u8], payload: Bytes) -> Result<Request, WireError> {
    request_of(decode_head(head)?, Payload(payload))
}

/// A response from a head and a payload whose lengths were checked.
pub fn decode_response(head: &[u8], payload: Bytes) -> Result<Response, WireError> {
    response_of(decode_head(head)?, Payload(payload))
}

/// Splits a whole message into head and payload.
pub fn split(expected: Direction, message: &Bytes) -> Result<(Lengths, Bytes, Bytes), WireError> {
    let fixed = message.first_chunk::<FIXED>().ok_or(WireError::Truncated)?;
    let lengths = lengths(expected, fixed)?;
    match message.len().cmp(&lengths.message()) {
        std::cmp::Ordering::Less => Err(WireError::Truncated),
        std::cmp::Ordering::Greater => Err(WireError::Trailing),
        std::cmp::Ordering::Equal => {
            let payload = FIXED + lengths.head;
            Ok((lengths, message.slice(FIXED..payload), message.slice(payload..)))
        }
    }
}

const CODING: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<MAX_HEAD>,
> = bincode::config::standard().with_limit::<MAX_HEAD>();

fn assemble(
    direction: Direction,
    head: &impl Encode,
    payload: Vec<Bytes>,
    within: u32,
) -> Result<Message, WireError> {
    let payload_len: usize = payload.iter().map(Bytes::len).sum();
    if payload_len > MAX_PAYLOAD {
        return Err(WireError::Limit("payload"));
    }
    let mut bytes = vec![0; FIXED];
    let head_len =
        bincode::encode_into_std_write(head, &mut bytes, CODING).map_err(|_| WireError::Field("head"))?;
    if head_len > MAX_HEAD {
        return Err(WireError::Limit("head"));
    }
    let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    let mut fixed = Vec::with_capacity(FIXED);
    fixed.extend_from_slice(&[VERSION, direction as u8, 0, 0]);
    fixed.extend_from_slice(&narrow(head_len));
    fixed.extend_from_slice(&narrow(payload_len));
    fixed.extend_from_slice(&within.to_le_bytes());
    bytes[..FIXED].copy_from_slice(&fixed);
    let mut chunks = vec![Bytes::from(bytes)];
    chunks.extend(payload.into_iter().filter(|chunk| !chunk.is_empty()));
    Ok(Message { chunks })
}

fn decode_head<T: Decode<()>>(head: &[u8]) -> Result<T, WireError> {
    if head.len() > MAX_HEAD {
        return Err(WireError::Limit("head"));
    }
    let (value, taken) = bincode::decode_from_slice(head, CODING).map_err(|e| match e {
        bincode::error::DecodeError::UnexpectedEnd { .. } => WireError::Truncated,
        bincode::error::DecodeError::LimitExceeded => WireError::Limit("head"),
        _ => WireError::Field("head"),
    })?;
    if taken == head.len() { Ok(value) } else { Err(WireError::Trailing) }
}

/// What is left of a payload.
struct Payload(Bytes);

impl Payload {
    fn take(&mut self, len: u32) -> Result<Bytes, WireError> {
        let len = len as usize;
        if len > self.0.len() {
            return Err(WireError::Truncated);
        }
        Ok(self.0.split_to(len))
    }

    fn end(&self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
    }
}

// The heads. Variants and fields are only ever added at the end, and with a new version.

#[derive(Encode, Decode)]
enum RequestHead {
    Ping {
        payload: u32,
    },
    Append {
        device: [u8; 16],
        durability: u8,
        class: u8,
        group: Vec<DraftHead>,
    },
    Abandon {
        device: [u8; 16],
        upload: [u8; 16],
        sequence: u64,
    },
    Version {
        device: [u8; 16],
        hash: [u8; 16],
    },
    Open {
        device: [u8; 16],
        hash: [u8; 16],
    },
    Read {
        device: [u8; 16],
        handle: HandleHead,
        chunk: u32,
    },
    Close {
        device: [u8; 16],
        handle: HandleHead,
    },
    Consensus {
        group: u32,
        call: consensus::CallHead,
    },
    Names {
        body: u32,
    },
    Announce {
        node: Option<[u8; 16]>,
        address: String,
        devices: Vec<([u8; 16], u64, u16)>,
    },
    Wish {
        of_node: bool,
        id: [u8; 16],
        wanted: u8,
    },
    Sync {
        device: [u8; 16],
        ask: sync::AskHead,
    },
    Row {
        key: Vec<u8>,
        value: Option<Vec<u8>>,
        fresh: bool,
    },
    Volume {
        device: [u8; 16],
        volume: [u8; 16],
        epoch: u64,
        configuration: u32,
        session: u64,
        call: volume::CallHead,
    },
    Volumes {
        guards: Guards,
        rows: Rows,
    },
}

type Guards = Vec<(Vec<u8>, Option<u64>)>;
type Rows = Vec<(Vec<u8>, Option<Vec<u8>>)>;

#[derive(Encode, Decode)]
struct DraftHead {
    kind: u8,
    deleted: bool,
    sequence: u64,
    number: u32,
    key: Vec<u8>,
    meta: Vec<u8>,
    data: u32,
}

#[derive(Encode, Decode)]
struct HandleHead {
    incarnation: u64,
    number: u64,
}

#[derive(Encode, Decode)]
enum ResponseHead {
    Pong { payload: u32 },
    Done,
    Version(Option<VersionHead>),
    Opened(Option<OpenedHead>),
    Record { record: u32 },
    Failed { code: u8, text: String },
    Consensus(consensus::AnswerHead),
    Names { body: u32 },
    Sync(sync::AnswerHead),
    Volume(volume::AnswerHead),
}

#[derive(Encode, Decode)]
struct VersionHead {
    sequence: u64,
    deleted: bool,
    delete_at: Option<u64>,
}

#[derive(Encode, Decode)]
struct OpenedHead {
    handle: Option<HandleHead>,
    chunks: u32,
    record: u32,
}

impl From<Handle> for HandleHead {
    fn from(Handle { incarnation, number }: Handle) -> Self {
        Self { incarnation, number }
    }
}

impl From<HandleHead> for Handle {
    fn from(HandleHead { incarnation, number }: HandleHead) -> Self {
        Self { incarnation, number }
    }
}

/// Wire numbers of [`Durability`] and of the classes that a peer may use.
const DURABILITIES: [(Durability, u8); 2] = [(Durability::Appended, 1), (Durability::Durable, 2)];
const CLASSES: [(Class, u8); 2] = [(Class::Client, 1), (Class::Delete, 2)];

fn number_of<T: PartialEq>(table: &[(T, u8)], value: &T, field: &'static str) -> Result<u8, WireError> {
    table.iter().find(|(known, _)| known == value).map(|(_, n)| *n).ok_or(WireError::Field(field))
}

fn value_of<T: Copy>(table: &[(T, u8)], number: u8, field: &'static str) -> Result<T, WireError> {
    table.iter().find(|(_, n)| *n == number).map(|(value, _)| *value).ok_or(WireError::Field(field))
}

/// The length of something that must not be longer than `most`.
fn bounded(len: usize, most: usize, what: &'static str) -> Result<u32, WireError> {
    u32::try_from(len).ok().filter(|_| len <= most).ok_or(WireError::Limit(what))
}

fn request_head(request: Request) -> Result<(RequestHead, Vec<Bytes>), WireError> {
    let head = match request {
        Request::Ping { payload } => {
            let head = RequestHead::Ping { payload: bounded(payload.len(), MAX_PAYLOAD, "payload")? };
            return Ok((head, vec![payload]));
        }
        Request::Append { device, group, durability, class } => {
            bounded(group.len(), MAX_GROUP_RECORDS, "group")?;
            let durability = number_of(&DURABILITIES, &durability, "durability")?;
            let class = number_of(&CLASSES, &class, "class")?;
            let (mut heads, mut payload) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
            for draft in group {
                let (head, data) = draft_head(draft)?;
                heads.push(head);
                payload.push(data);
            }
            return Ok((RequestHead::Append { device: device.0, durability, class, group: heads }, payload));
        }
        Request::Abandon { device, upload, sequence } => {
            RequestHead::Abandon { device: device.0, upload, sequence }
        }
        Request::Version { device, hash } => RequestHead::Version { device: device.0, hash },
        Request::Open { device, hash } => RequestHead::Open { device: device.0, hash },
        Request::Read { device, handle, chunk } => {
            RequestHead::Read { device: device.0, handle: handle.into(), chunk }
        }
        Request::Close { device, handle } => RequestHead::Close { device: device.0, handle: handle.into() },
        Request::Consensus { group, call } => {
            let (call, payload) = consensus::call_head(call)?;
            return Ok((RequestHead::Consensus { group, call }, payload));
        }
        Request::Names(names) => {
            let body = names::encode(&names)?;
            return Ok((
                RequestHead::Names { body: bounded(body.len(), MAX_PAYLOAD, "payload")? },
                vec![body],
            ));
        }
        Request::Wish(Wish::Device { device, wanted }) => {
            RequestHead::Wish { of_node: false, id: device.0, wanted }
        }
        Request::Wish(Wish::Node { node, leaving }) => {
            RequestHead::Wish { of_node: true, id: node.0, wanted: u8::from(leaving) }
        }
        Request::Wish(Wish::Row { key, value, fresh }) => {
            bounded(key.len(), MAX_KEY, "key")?;
            bounded(value.as_ref().map_or(0, Vec::len), MAX_META, "value")?;
            RequestHead::Row { key, value, fresh }
        }
        Request::Wish(Wish::Volumes { guards, rows }) => {
            check_rows(&guards, &rows)?;
            RequestHead::Volumes { guards, rows }
        }
        Request::Announce(Announcement { node, address, devices }) => {
            bounded(address.len(), MAX_TEXT, "address")?;
            bounded(devices.len(), MAX_DISKS, "disks")?;
            let devices = devices.into_iter().map(|(id, bytes, zone)| (id.0, bytes, zone)).collect();
            RequestHead::Announce { node: node.map(|node| node.0), address, devices }
        }
        Request::Sync { device, ask } => RequestHead::Sync { device: device.0, ask: sync::ask_head(ask)? },
        Request::Volume { device, volume, fence: Fence { epoch, configuration }, session, call } => {
            let (call, payload) = volume::call_head(call)?;
            let (device, volume) = (device.0, volume.0);
            return Ok((
                RequestHead::Volume { device, volume, epoch, configuration, session, call },
                payload,
            ));
        }
    };
    Ok((head, Vec::new()))
}

/// Holds a wish about volumes to its limits.
fn check_rows(guards: &Guards, rows: &Rows) -> Result<(), WireError> {
    bounded(guards.len(), MAX_VOLUME_ROWS, "guards")?;
    bounded(rows.len(), MAX_VOLUME_ROWS, "rows")?;
    for (key, _) in guards {
        bounded(key.len(), MAX_KEY, "key")?;
    }
    for (key, value) in rows {
        bounded(key.len(), MAX_KEY, "key")?;
        bounded(value.as_ref().map_or(0, Vec::len), MAX_META, "value")?;
    }
    Ok(())
}

fn draft_head(draft: Draft) -> Result<(DraftHead, Bytes), WireError> {
    let Draft { kind, deleted, sequence, number, key, meta, data } = draft;
    bounded(key.len(), MAX_KEY, "key")?;
    bounded(meta.len(), MAX_META, "meta")?;
    let len = bounded(data.len(), MAX_DATA, "data")?;
    Ok((DraftHead { kind: kind as u8, deleted, sequence, number, key, meta, data: len }, data))
}

fn request_of(head: RequestHead, mut payload: Payload) -> Result<Request, WireError> {
    let request = match head {
        RequestHead::Ping { payload: len } => Request::Ping { payload: payload.take(len)? },
        RequestHead::Append { device, durability, class, group } => {
            bounded(group.len(), MAX_GROUP_RECORDS, "group")?;
            let drafts = group.into_iter().map(|head| draft_of(head, &mut payload));
            Request::Append {
                device: DeviceId(device),
                group: drafts.collect::<Result<_, _>>()?,
                durability: value_of(&DURABILITIES, durability, "durability")?,
                class: value_of(&CLASSES, class, "class")?,
            }
        }
        RequestHead::Abandon { device, upload, sequence } => {
            Request::Abandon { device: DeviceId(device), upload, sequence }
        }
        RequestHead::Version { device, hash } => Request::Version { device: DeviceId(device), hash },
        RequestHead::Open { device, hash } => Request::Open { device: DeviceId(device), hash },
        RequestHead::Read { device, handle, chunk } => {
            Request::Read { device: DeviceId(device), handle: handle.into(), chunk }
        }
        RequestHead::Close { device, handle } => {
            Request::Close { device: DeviceId(device), handle: handle.into() }
        }
        RequestHead::Wish { of_node: false, id, wanted } => {
            Request::Wish(Wish::Device { device: DeviceId(id), wanted })
        }
        RequestHead::Wish { of_node: true, id, wanted: wanted @ (0 | 1) } => {
            Request::Wish(Wish::Node { node: NodeId(id), leaving: wanted == 1 })
        }
        RequestHead::Wish { .. } => return Err(WireError::Field("wish")),
        RequestHead::Row { key, value, fresh } => {
            bounded(key.len(), MAX_KEY, "key")?;
            bounded(value.as_ref().map_or(0, Vec::len), MAX_META, "value")?;
            Request::Wish(Wish::Row { key, value, fresh })
        }
        RequestHead::Announce { node, address, devices } => {
            bounded(address.len(), MAX_TEXT, "address")?;
            bounded(devices.len(), MAX_DISKS, "disks")?;
            let device = |(id, bytes, zone)| (DeviceId(id), bytes, zone);
            let devices = devices.into_iter().map(device).collect();
            Request::Announce(Announcement { node: node.map(NodeId), address, devices })
        }
        RequestHead::Consensus { group, call } => {
            Request::Consensus { group, call: consensus::call_of(call, &mut payload)? }
        }
        RequestHead::Names { body } => Request::Names(names::decode(&payload.take(body)?)?),
        RequestHead::Sync { device, ask } => {
            Request::Sync { device: DeviceId(device), ask: sync::ask_of(ask)? }
        }
        RequestHead::Volume { device, volume, epoch, configuration, session, call } => Request::Volume {
            device: DeviceId(device),
            volume: VolumeId(volume),
            fence: Fence { epoch, configuration },
            session,
            call: volume::call_of(call, &mut payload)?,
        },
        RequestHead::Volumes { guards, rows } => {
            check_rows(&guards, &rows)?;
            Request::Wish(Wish::Volumes { guards, rows })
        }
    };
    payload.end()?;
    Ok(request)
}

fn draft_of(head: DraftHead, payload: &mut Payload) -> Result<Draft, WireError> {
    let DraftHead { kind, deleted, sequence, number, key, meta, data } = head;
    let kind = Kind::from_u8(kind).ok_or(WireError::Field("kind"))?;
    bounded(key.len(), MAX_KEY, "key")?;
    bounded(meta.len(), MAX_META, "meta")?;
    bounded(data as usize, MAX_DATA, "data")?;
    Ok(Draft { kind, deleted, sequence, number, key, meta, data: payload.take(data)? })
}

fn response_head(response: Response) -> Result<(ResponseHead, Vec<Bytes>), WireError> {
    Ok(match response {
        Response::Pong { payload } => {
            (ResponseHead::Pong { payload: bounded(payload.len(), MAX_PAYLOAD, "payload")? }, vec![payload])
        }
        Response::Done => (ResponseHead::Done, Vec::new()),
        Response::Version(version) => {
            let head = version.map(|Version { sequence, deleted, delete_at }| VersionHead {
                sequence,
                deleted,
                delete_at,
            });
            (ResponseHead::Version(head), Vec::new())
        }
        Response::Opened(None) => (ResponseHead::Opened(None), Vec::new()),
        Response::Opened(Some(OpenedObject { handle, chunks, record })) => {
            bounded(chunks as usize, MAX_CHUNKS as usize, "chunks")?;
            let len = bounded(record.len(), MAX_RECORD, "record")?;
            let head = OpenedHead { handle: handle.map(Into::into), chunks, record: len };
            (ResponseHead::Opened(Some(head)), vec![record])
        }
        Response::Record(record) => {
            (ResponseHead::Record { record: bounded(record.len(), MAX_RECORD, "record")? }, vec![record])
        }
        Response::Failed(Failure { code, text }) => {
            bounded(text.len(), MAX_TEXT, "text")?;
            (ResponseHead::Failed { code: code as u8, text }, Vec::new())
        }
        Response::Consensus(answer) => {
            (ResponseHead::Consensus(consensus::answer_head(&answer)?), Vec::new())
        }
        Response::Names(answer) => {
            let body = names::encode(&answer)?;
            (ResponseHead::Names { body: bounded(body.len(), MAX_PAYLOAD, "payload")? }, vec![body])
        }
        Response::Sync(answer) => {
            let (head, payload) = sync::answer_head(answer)?;
            (ResponseHead::Sync(head), payload)
        }
        Response::Volume(answer) => {
            let (head, payload) = volume::answer_head(answer)?;
            (ResponseHead::Volume(head), payload)
        }
    })
}

fn response_of(head: ResponseHead, mut payload: Payload) -> Result<Response, WireError> {
    let response = match head {
        ResponseHead::Pong { payload: len } => Response::Pong { payload: payload.take(len)? },
        ResponseHead::Done => Response::Done,
        ResponseHead::Version(version) => {
            Response::Version(version.map(|VersionHead { sequence, deleted, delete_at }| Version {
                sequence,
                deleted,
                delete_at,
            }))
        }
        ResponseHead::Opened(None) => Response::Opened(None),
        ResponseHead::Opened(Some(OpenedHead { handle, chunks, record })) => {
            bounded(chunks as usize, MAX_CHUNKS as usize, "chunks")?;
            bounded(record as usize, MAX_RECORD, "record")?;
            let handle = handle.map(Into::into);
            Response::Opened(Some(OpenedObject { handle, chunks, record: payload.take(record)? }))
        }
        ResponseHead::Record { record } => {
            bounded(record as usize, MAX_RECORD, "record")?;
            Response::Record(payload.take(record)?)
        }
        ResponseHead::Failed { code, text } => {
            bounded(text.len(), MAX_TEXT, "text")?;
            let code = Code::from_u8(code).ok_or(WireError::Field("code"))?;
            Response::Failed(Failure { code, text })
        }
        ResponseHead::Consensus(answer) => Response::Consensus(consensus::answer_of(answer)?),
        ResponseHead::Names { body } => Response::Names(names::decode(&payload.take(body)?)?),
        ResponseHead::Sync(head) => Response::Sync(sync::answer_of(head, &mut payload)?),
        ResponseHead::Volume(head) => Response::Volume(volume::answer_of(head, &mut payload)?),
    };
    payload.end()?;
    Ok(response)
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
