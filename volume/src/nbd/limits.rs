//! All that a client can make this side keep, and how the limits relate.
//!
//! Invariant: what one connection owes is at most [`MAX_OWED`] and one request more; what it keeps while options are
//! haggled over is at most [`MAX_OPTION_DATA`], an answer to a list, and its [`MAX_OPTIONS`] refusals.

use quarry_engine::block::BLOCK_BYTES;

/// Longest string of the protocol: names, descriptions, queries.
pub const MAX_STRING: usize = 4096;
/// Data of an option that is kept to be read.
pub const MAX_OPTION_DATA: usize = 64 << 10;
/// Data of an option that is let pass unread; with more the connection ends.
pub const MAX_OPTION_SKIPPED: u32 = 1 << 20;
/// Options that one connection may try.
pub const MAX_OPTIONS: u32 = 1000;
/// Exports that are listed.
pub const MAX_LISTED: usize = 10_000;
/// Metadata contexts that one connection may select.
pub const MAX_CONTEXTS: usize = 16;
/// Bytes of one read or write: what is announced and what is kept to.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Bytes of a write that is too long, or misplaced, and let pass unread; with more the connection ends.
pub const MAX_SKIPPED_PAYLOAD: u64 = 64 << 20;
/// Requests of one connection that are being carried out.
pub const MAX_IN_FLIGHT: usize = 256;
/// Bytes of payload, of reads and block statuses to come and of unsent replies at which no more input is taken.
pub const MAX_OWED: usize = 64 << 20;
/// Extents in one answer of a metadata context.
pub const MAX_EXTENTS: usize = 1 << 16;
/// Bytes of one extent in an answer, at most.
const EXTENT_BYTES: usize = 16;
/// A piece of a reply that is copied beside its header; a longer one is sent from where it lies.
pub(super) const COPIED: usize = 8 << 10;

/// Extents that an answer of a context has at most for a range of so many bytes: each block may differ from the one before, and the range
/// may begin and end within one.
#[must_use]
pub fn extents_of(length: u64) -> usize {
    usize::try_from(length / BLOCK_BYTES)
        .map_or(MAX_EXTENTS, |blocks| blocks.saturating_add(2).min(MAX_EXTENTS))
}

/// Bytes of the answer to a block status of so many contexts.
pub(super) fn status_bytes(contexts: usize, length: u64, one: bool) -> usize {
    contexts * (8 + EXTENT_BYTES * if one { 1 } else { extents_of(length) })
}

const _: () = assert!(MAX_STRING * 2 + 16 < MAX_OPTION_DATA && MAX_OPTION_DATA < MAX_OPTION_SKIPPED as usize);
const _: () = assert!(MAX_PAYLOAD as usize <= MAX_OWED && MAX_PAYLOAD as u64 <= MAX_SKIPPED_PAYLOAD);
const _: () = assert!(MAX_EXTENTS * EXTENT_BYTES + 8 < MAX_PAYLOAD as usize && MAX_EXTENTS <= 1 << 20);
