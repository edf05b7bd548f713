//! Every limit of the disk engine, and how the limits depend on one another.

use crate::io::{BLOCK, IN_PLACE_FROM, RECORD_BUFFER};

/// Bytes of object data under one CRC.
pub const CRC_SPAN: usize = 64 << 10;
/// Largest key of a record: a row key with an account, a container and a 1,024-byte name, escaped.
pub const MAX_KEY: usize = 4 << 10;
/// Largest meta of a record: all headers of an object and its full name.
pub const MAX_META: usize = 64 << 10;
/// Largest data of a record.
pub const MAX_DATA: usize = 1 << 20;
/// Largest record in the log.
pub const MAX_RECORD: usize = MAX_DATA + MAX_META + MAX_KEY + 4096;
/// Data from this size on starts at a block boundary, so that it is written and read without a second copy.
pub const ALIGN_FROM: usize = IN_PLACE_FROM;
/// Most records in one batch.
pub const MAX_BATCH_RECORDS: usize = 2048;
/// Most bytes of a batch that is written and flushed in one request: what takes longer is flushed while the next batch is written.
pub const COMMIT_BYTES: usize = 2 << 20;
/// Most records of such a batch that the disk's thread may rather write itself: one or two callers, who wait for nothing else.
pub const FEW_RECORDS: usize = 8;
/// Fewest groups in the queue of a quick device that is idle that are taken in two halves.
pub const SPLIT_FROM: usize = 16;
/// Bytes in the queue that are written beside a flush, not after it: they take the device longer than the flush they would share.
pub const LONG_QUEUE_BYTES: usize = 4 << 20;
/// Bytes that a record takes beside its own: its descriptor when moved (28), its footer entry (16), padding to 8.
pub const RECORD_OVERHEAD: usize = 48;
/// Most records that the cleaner moves in one group.
pub const MAX_MOVE_RECORDS: usize = 1024;
/// Bytes that the cleaner holds in memory to bring them into order before it writes them: the more, the longer the runs of a
/// volume's blocks that meet.
pub const MOVE_MEMORY: usize = 48 << 20;
/// Most segments that are cleaned together.
pub const MOST_TOGETHER: usize = 16;
/// Most bytes of one batch, header and padding included.
pub const MAX_BATCH: usize = 8 << 20;
/// Most records that one caller may bind together; they share a batch.
pub const MAX_GROUP_RECORDS: usize = 8;
/// Most bytes of a group.
pub const MAX_GROUP: usize = 4 << 20;
/// Bytes that may wait or be in flight per disk before submitters wait.
pub const QUEUE_BYTES: usize = 32 << 20;
/// The same for deletes alone.
pub const DELETE_QUEUE_BYTES: usize = 8 << 20;
/// The same for the cleaner alone.
pub const CLEANER_QUEUE_BYTES: usize = 8 << 20;
/// What all queues of a disk can hold, with the ends of segments that large batches leave unused.
pub const SLACK_BYTES: u64 = 80 << 20;
/// Free segments that only deletes and the cleaner may take.
pub const CLIENT_RESERVE: usize = 4;
/// Free segments that only the cleaner may take.
pub const DELETE_RESERVE: usize = 2;
/// Bytes of reads in flight per disk before readers wait.
pub const READ_BYTES: usize = 64 << 20;
/// Bytes written without a flush before one is forced: half of what may be queued, so that there is room to write beside it.
pub const UNFLUSHED_BYTES: u64 = 16 << 20;
/// Log bytes after which a checkpoint is due: bounds replay.
pub const CHECKPOINT_BYTES: u64 = 256 << 20;
/// Seconds after which a checkpoint is due when anything changed.
pub const CHECKPOINT_SECONDS: u64 = 30;
/// Segments that may be opened between two checkpoints.
pub const RESERVED_SEGMENTS: usize = 64;
/// Most bytes of what readers remember of the index ([`super::memo`]): of some gigabytes of volumes that are read at random.
pub const MEMO_BYTES: u64 = 16 << 20;
/// Smallest and largest segment.
pub const MIN_SEGMENT: u64 = 16 << 20;
/// Largest segment.
pub const MAX_SEGMENT: u64 = 1 << 30;
/// Most segments on one device: bounds the segment table at 2 MiB a copy.
pub const MAX_SEGMENTS: u64 = 65_536;
/// Fewest segments on one device: two heads, their successors, the reserve, and room to clean.
pub const MIN_SEGMENTS: u64 = 12;
/// Live bytes above which no new volumes are placed, in percent of the usable bytes.
pub const VOLUME_HIGH_WATER: u64 = 75;
/// Live bytes above which client writes are refused, in percent of the usable bytes.
pub const CLIENT_HIGH_WATER: u64 = 90;

const _: () = assert!(MAX_GROUP >= MAX_RECORD + 3 * (MAX_META + MAX_KEY + 4096));
const _: () = assert!(MAX_BATCH >= MAX_GROUP + MAX_BATCH_RECORDS * 32 + 2 * BLOCK);
const _: () = assert!(RECORD_BUFFER >= MAX_RECORD + 2 * BLOCK);
const _: () = assert!(MAX_BATCH as u64 * 2 <= MIN_SEGMENT);
const _: () = assert!(UNFLUSHED_BYTES * 2 <= QUEUE_BYTES as u64);
const _: () = assert!(MAX_BATCH_RECORDS >= MAX_GROUP_RECORDS && MAX_BATCH_RECORDS >= MAX_MOVE_RECORDS);
const _: () =
    assert!(QUEUE_BYTES >= MAX_GROUP && DELETE_QUEUE_BYTES >= MAX_GROUP && CLEANER_QUEUE_BYTES >= MAX_GROUP);
const _: () =
    assert!(SLACK_BYTES >= ((QUEUE_BYTES + DELETE_QUEUE_BYTES + CLEANER_QUEUE_BYTES) * 5 / 3) as u64);
const _: () = assert!(CLIENT_RESERVE > DELETE_RESERVE && DELETE_RESERVE >= 1);
const _: () = assert!(MIN_SEGMENTS > 2 * CLIENT_RESERVE as u64);
const _: () = assert!(CRC_SPAN.is_multiple_of(BLOCK) && MAX_DATA.is_multiple_of(CRC_SPAN));
const _: () = assert!(VOLUME_HIGH_WATER < CLIENT_HIGH_WATER && CLIENT_HIGH_WATER < 100);
