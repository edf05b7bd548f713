//! Every limit of messages and transports, and how the limits depend on one another.

use std::time::Duration;

use crate::disk::limits::{MAX_DATA, MAX_GROUP, MAX_GROUP_RECORDS, MAX_KEY, MAX_META, MAX_RECORD};

/// Bytes before the head of every message.
pub const FIXED: usize = 16;
/// Most bytes of a head: a full group's keys and metas, and their lengths.
pub const MAX_HEAD: usize = MAX_GROUP_RECORDS * (MAX_KEY + MAX_META + HEAD_PER_DRAFT) + HEAD_PER_CALL;
/// Bytes that a head spends on one draft beside its key and meta.
pub const HEAD_PER_DRAFT: usize = 64;
/// Bytes that a head spends on a call.
pub const HEAD_PER_CALL: usize = 1024;
/// Most raw bytes behind the head.
pub const MAX_PAYLOAD: usize = MAX_GROUP;
/// Most bytes of the text of a failure.
pub const MAX_TEXT: usize = 512;
/// Most disks that a node announces.
pub const MAX_DISKS: usize = 1024;
/// Most turns of a volume's history that are told.
pub const MAX_TURNS: usize = 64;
/// Most runs of blocks in a message.
pub const MAX_WRITES: usize = 1024;
/// Most volumes and snapshots of a page of their list.
pub const MAX_LISTED: usize = 512;
/// Most rows of volumes, and most guards, of one wish.
pub const MAX_VOLUME_ROWS: usize = 4;
/// Most chunks of an object that is opened over the network: 8 TiB.
pub const MAX_CHUNKS: u32 = 8 << 20;
/// Calls of one node that may be in the hands of another.
pub const CALLS_PER_PEER: usize = 64;
/// Those that are not of consensus: the rest is consensus' own.
pub const CALLS_BUT_CONSENSUS: usize = CALLS_PER_PEER - 16;
/// Grants that one node may wait for at another.
pub const GRANTS_PER_PEER: usize = 16;
/// Those of one index group: others' get through while it has no quorum.
pub const GRANTS_PER_GROUP: usize = 10;
/// Those of one name: one for when the present one ends, and one behind it.
pub const GRANTS_PER_NAME: usize = 2;
/// Changes of accounts and containers that one node may have under way at another.
pub const CHANGES_PER_PEER: usize = 8;
/// Flushes of volumes that one node may wait for at another.
pub const FLUSHES_PER_PEER: usize = 16;
/// Those on one device.
pub const FLUSHES_PER_DEVICE: usize = 8;
/// Other calls about volumes that one node may have under way at another, on one device: if that hangs, each stays until it is given up.
pub const VOLUMES_PER_DEVICE: usize = 16;
/// Calls about volumes that one node may have under way at another which take as long as a pass over the volume's rows.
pub const LONG_PER_PEER: usize = 6;
/// Request bytes of one node that may be in the hands of another.
pub const INBOUND_BYTES: usize = 32 << 20;
/// A request that is no larger waits for no room but that of its call: voters hear each other while large ones wait for a disk.
pub const SMALL_REQUEST: usize = 32 << 10;
/// Request bytes of one node that may be in the hands of another, of those that are larger.
pub const INBOUND_LARGE_BYTES: usize = INBOUND_BYTES - CALLS_PER_PEER * SMALL_REQUEST;
/// Request bytes of all nodes that may be in the hands of one, of those that are larger than [`SMALL_REQUEST`].
pub const INBOUND_BYTES_ALL: usize = 256 << 20;
/// Connections that a node keeps open for others.
pub const MAX_CONNECTIONS: usize = 4096;
/// Connections that one node may have to another where each carries one call: those of calls, and those that drain.
pub const CONNECTIONS_PER_PEER: usize = CALLS_PER_PEER + 16;
/// How long two nodes may take to know each other.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long a request may take to arrive whole.
pub const RECEIVE_WITHIN: Duration = Duration::from_secs(30);
/// Longest deadline that a call may have.
pub const MAX_DEADLINE: Duration = Duration::from_secs(600);
/// A connection on which nothing came for so long is dead.
pub const SILENCE: Duration = Duration::from_secs(10);
/// Pause between two signs of life on a connection.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How far the version time of what a peer appends may be ahead of this node's wall clock.
pub const MAX_AHEAD: Duration = Duration::from_secs(3600);
/// How long an opened object that nobody reads stays readable.
pub const LEASE: Duration = Duration::from_secs(60);
/// Opened objects that a node holds for one other.
pub const HANDLES_PER_PEER: usize = 1024;
/// Opened objects that a node holds for all others.
pub const MAX_HANDLES: usize = 8192;
/// Places of chunks that a node keeps for what one other has open: 16 bytes each.
pub const PLACES_PER_PEER: usize = MAX_CHUNKS as usize;
/// Places of chunks that a node keeps for what all others have open: 256 MiB.
pub const MAX_PLACES: usize = 2 * PLACES_PER_PEER;

const _: () = assert!(MAX_PAYLOAD >= MAX_RECORD && MAX_PAYLOAD >= MAX_DATA);
const _: () = assert!(MAX_HEAD <= 1 << 20, "a head is allocated before it is known to be good");
const _: () = assert!(MAX_TEXT + HEAD_PER_DRAFT <= HEAD_PER_CALL);
const _: () =
    assert!(INBOUND_LARGE_BYTES >= FIXED + MAX_HEAD + MAX_PAYLOAD && INBOUND_BYTES_ALL >= INBOUND_BYTES);
const _: () = assert!(MAX_HANDLES >= HANDLES_PER_PEER && MAX_PLACES >= PLACES_PER_PEER);
const _: () = assert!(PLACES_PER_PEER >= MAX_CHUNKS as usize, "the largest object can be opened");
const _: () = assert!(
    GRANTS_PER_PEER + CHANGES_PER_PEER + FLUSHES_PER_PEER + LONG_PER_PEER < CALLS_BUT_CONSENSUS,
    "what settles a grant gets through, and so do the writes that a flush waits for"
);
const _: () = assert!(
    FLUSHES_PER_DEVICE + LONG_PER_PEER + VOLUMES_PER_DEVICE < CALLS_BUT_CONSENSUS,
    "a device that hangs leaves room for calls about all else"
);
const _: () = assert!(
    GRANTS_PER_NAME < GRANTS_PER_GROUP
        && GRANTS_PER_GROUP < GRANTS_PER_PEER
        && FLUSHES_PER_DEVICE < FLUSHES_PER_PEER
);
const _: () = assert!(CONNECTIONS_PER_PEER > CALLS_PER_PEER && MAX_CONNECTIONS >= CONNECTIONS_PER_PEER);
const _: () = assert!(SILENCE.as_secs() >= 2 * KEEP_ALIVE.as_secs());
const _: () = assert!(MAX_TURNS * 24 + MAX_WRITES * 40 + HEAD_PER_CALL <= MAX_HEAD);
const _: () = assert!(MAX_LISTED * (MAX_TEXT + HEAD_PER_DRAFT) + HEAD_PER_CALL <= MAX_HEAD);
const _: () =
    assert!(MAX_VOLUME_ROWS * (2 * MAX_KEY + MAX_META + HEAD_PER_DRAFT) + HEAD_PER_CALL <= MAX_HEAD);
const _: () = assert!(LEASE.as_secs() > HANDSHAKE_WITHIN.as_secs() + RECEIVE_WITHIN.as_secs());
