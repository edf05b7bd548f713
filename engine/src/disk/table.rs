//! The segment table: what the segments were when the index was last made durable, written on the device itself.
//!
//! An index may be older than what it made durable: restored from a backup, rolled back with its file system, or that lied. It does not know
//! of the segments that were freed and taken into use again since. What it took for the end of the log would be the middle of it, and
//! what it took for an old segment a new one: acknowledged records would be written over. The table gives it away.
//!
//! Invariant: a segment that a table knows, and that could not be opened without a further checkpoint, has a sequence which the index of that
//! checkpoint, and every later one, says was given.

use super::format::bytes::Put;
use super::format::record::DeviceId;
use super::format::segment::{finish_block, open_block};
use super::format::superblock::{Layout, TABLE_ENTRY};
use super::segments::{Segment, SegmentMap};
use super::upkeep::read_what_can_be;
use crate::io::{BLOCK, Disk};

const MAGIC: &[u8; 8] = b"QUARRYST";
const VERSION: u32 = 1;
/// Copies on the device.
const COPIES: u64 = 2;
/// Bytes of an entry.
const ENTRY: usize = 32;
const _: () = assert!(ENTRY as u64 == TABLE_ENTRY);

/// The bytes of a table.
pub(super) fn encode(device: DeviceId, segments: &SegmentMap) -> Vec<u8> {
    let mut entries = Vec::with_capacity(segments.len() * ENTRY);
    for (_, segment) in segments.iter() {
        entries.extend_from_slice(&segment.encode());
        entries.resize(entries.len().next_multiple_of(ENTRY), 0);
    }
    entries.resize(entries.len().next_multiple_of(BLOCK), 0);
    let mut head = MAGIC.to_vec();
    head.put_u32(VERSION);
    // For the CRC of the block.
    head.put_u32(0);
    head.extend_from_slice(&device.0);
    head.put_u32(crc32fast::hash(&entries));
    let mut out = finish_block(head);
    out.extend_from_slice(&entries);
    out
}

/// The segments of a copy, if it is a whole table of this device.
fn read(disk: &mut dyn Disk, layout: Layout, device: DeviceId, copy: u64) -> std::io::Result<Vec<Segment>> {
    let count = layout.segments as usize;
    let len = BLOCK + (count * ENTRY).next_multiple_of(BLOCK);
    let bytes = read_what_can_be(disk, layout.table_start(copy), len)?;
    let (head, entries) = bytes.split_at(BLOCK);
    let Ok(mut r) = open_block(head, MAGIC, VERSION) else { return Ok(Vec::new()) };
    let whole = r.array() == Ok(device.0) && r.u32() == Ok(crc32fast::hash(entries));
    let entries = entries.chunks_exact(ENTRY).take(if whole { count } else { 0 });
    Ok(entries.filter_map(|entry| Segment::decode(entry).ok()).collect())
}

/// One more than the highest sequence in any table, but for those of these segments.
pub(super) fn next_seq(
    disk: &mut dyn Disk,
    layout: Layout,
    device: DeviceId,
    but: &[u32],
) -> std::io::Result<u64> {
    let mut next = 0;
    for copy in 0..COPIES {
        let known = (0_u32..).zip(read(disk, layout, device, copy)?);
        let given = known.filter(|(number, _)| !but.contains(number)).map(|(_, segment)| segment.seq + 1);
        next = given.max().unwrap_or(0).max(next);
    }
    Ok(next)
}
