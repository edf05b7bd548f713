//! Every limit of groups, and how the limits depend on one another.

use crate::disk::limits::{MAX_DATA, MAX_GROUP, MAX_GROUP_RECORDS, MAX_KEY, MAX_META};
use crate::net::limits::MAX_PAYLOAD;

/// Bytes that a group's prefix adds to a key.
pub const PREFIX: usize = 5;
/// Most rows of an entry: with the marker they are one group of records.
pub const MAX_ENTRY_ROWS: usize = MAX_GROUP_RECORDS - 1;
/// Most guards of an entry.
pub const MAX_GUARDS: usize = 16;
/// Most entries that are proposed together.
pub const MAX_COMMAND_ENTRIES: usize = 256;
/// Bytes of entries that are proposed together; one alone may be longer.
pub const COMMAND_BYTES: usize = 256 << 10;
/// Most bytes of an entry.
pub const MAX_ENTRY: usize =
    MAX_ENTRY_ROWS * (MAX_KEY + MAX_META + PER_ROW) + MAX_GUARDS * (MAX_KEY + PER_ROW) + PER_ROW;
/// Bytes that a row or a guard takes beside its key and value.
pub const PER_ROW: usize = 32;
/// Most bytes of an encoded log entry: the data of one record.
pub const MAX_LOG_ENTRY: usize = MAX_DATA;
/// Bytes of log entries sent in one message, if there is more than one.
pub const APPEND_BYTES: usize = 1 << 20;
/// Most log entries in one message.
pub const APPEND_ENTRIES: usize = 300;
/// Bytes of rows in a chunk of a snapshot, if there is more than one row.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Commands of proposals that are under way at once; what comes meanwhile goes together. With four of 32 clients' PUTs each had few
/// of them, and each costs messages and flushes on every voter.
pub const COMMANDS_UNDER_WAY: usize = 1;
/// Bytes of the end of a log that are kept in memory.
pub const TAIL_BYTES: usize = 4 << 20;
/// Most members of a group.
pub const MAX_MEMBERS: usize = 64;
/// Cuts of a log that its state can remember at once.
pub const MAX_CUTS: usize = 1024;
/// Groups of records that an installation of a snapshot has under way.
pub const INSTALL_UNDER_WAY: usize = 64;

const _: () = assert!(MAX_ENTRY + COMMAND_BYTES + 64 <= MAX_LOG_ENTRY, "a command is one record");
const _: () = assert!(APPEND_BYTES + MAX_LOG_ENTRY <= MAX_PAYLOAD, "log entries fit into a message");
const _: () = assert!(CHUNK_BYTES + MAX_KEY + MAX_META + PER_ROW <= MAX_DATA, "a chunk is one record");
const _: () = assert!(
    MAX_ENTRY_ROWS * (MAX_KEY + MAX_META + 512) + MAX_DATA <= MAX_GROUP,
    "rows and marker are one group"
);
const _: () = assert!(MAX_CUTS * 24 + 64 <= MAX_META, "a reach is one record's meta");
