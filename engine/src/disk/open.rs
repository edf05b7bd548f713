//! Formatting and opening a device: every check comes before the first write.
//!
//! | superblock                     | index                         | action                              |
//! |--------------------------------|-------------------------------|-------------------------------------|
//! | absent, damaged, newer, other cluster | any                    | refuse, touch nothing               |
//! | ours                           | empty                         | rebuild from the segments           |
//! | ours                           | of another device             | refuse, touch nothing               |
//! | ours                           | half built, or of an earlier generation | refuse as stale: destroy, reopen |
//! | ours                           | names a batch the log has not | refuse as stale: destroy, reopen    |
//! | ours                           | ours                          | replay                              |
//!
//! Invariant: what recovery makes visible is durable first: the device is flushed before the replay.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::batching::Head;
use super::cache::{Cache, CacheBytes};
use super::catalog::Catalog;
use super::core::Core;
use super::format::batch::{hash, header_len};
use super::format::bytes::{Put, Reader};
use super::format::record::DeviceId;
use super::format::segment::{BadBlock, SegmentHeader};
use super::format::superblock::{COPIES, COUNTS, ClusterId, Layout, Superblock, Verdict, choose};
use super::handle::DiskHandle;
use super::limits::{MAX_BATCH_RECORDS, MAX_SEGMENT, MIN_SEGMENT, MIN_SEGMENTS};
use super::memo::{Memo, Told};
use super::rebuild::{Rebuild, Rebuilt};
use super::recovery::{RecoveryError, Replay, Report};
use super::room::IndexRoom;
use super::segments::{
    IDENTITY_KEY, PARTS_KEY, POSITION_KEY, Position, Segment, SegmentMap, State, segment_key,
};
use super::shared::{Admission, Counters, Nap, Shared};
use super::table;
use super::tallies::Tallies;
use super::upkeep::{CheckpointState, Freeing, flush_now, is_bad_sector, read_now, write_now};
use super::window::{SegmentUse, Window};
use crate::index::{Index, IndexError, Range, Table, WriteSet};
use crate::io::{BLOCK, Disk, SIGNATURE_SPAN, foreign_signature};

/// What a new device shall be.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// Cluster it belongs to.
    pub cluster: ClusterId,
    /// Its identity: random, never reused.
    pub device: DeviceId,
    /// Bytes of a segment; chosen by size when absent.
    pub segment_size: Option<u64>,
    /// Format it even if it holds a file system or an earlier Quarry device.
    pub overwrite: bool,
}

/// Why a device is not opened or formatted. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No superblock.
    #[error("not a Quarry device; format it with `quarry disk format`")]
    Unformatted,
    /// Something else lives there.
    #[error("holds {0}; give --overwrite to destroy it")]
    Foreign(String),
    /// Already one of ours.
    #[error("is already Quarry device {device} of cluster {cluster}; give --overwrite to destroy it")]
    AlreadyFormatted {
        /// Its identity.
        device: DeviceId,
        /// Its cluster.
        cluster: ClusterId,
    },
    /// Of another cluster.
    #[error("belongs to cluster {found}, not to {expected}")]
    OtherCluster {
        /// On the device.
        found: ClusterId,
        /// Ours.
        expected: ClusterId,
    },
    /// Written by a newer program.
    #[error("has format version {0}, newer than this program; upgrade quarry")]
    Newer(u32),
    /// Both superblocks are damaged, or contradict each other.
    #[error("superblock is damaged: {0}; restore it from a replica or reformat")]
    Damaged(&'static str),
    /// Fewer segments than the engine can work with.
    #[error("too small: {capacity} bytes; at least {least} are needed")]
    TooSmall {
        /// Bytes it has.
        capacity: u64,
        /// Bytes it would need.
        least: u64,
    },
    /// A segment size that no device has.
    #[error("segment size {0} is not a power of two from {MIN_SEGMENT} to {MAX_SEGMENT}")]
    SegmentSize(u64),
    /// The device is smaller than when it was formatted.
    #[error("has shrunk: {found} bytes, formatted with {expected}")]
    Shrunk {
        /// Bytes now.
        found: u64,
        /// Bytes at format.
        expected: u64,
    },
    /// The index belongs to another device.
    #[error("index belongs to device {0}, not to this one; check the index path of this disk")]
    OtherIndex(DeviceId),
    /// The index cannot be used and may be destroyed: it is derivable.
    #[error("index is stale: {0}; destroy it and open again")]
    StaleIndex(&'static str),
    /// A read or write failed.
    #[error("{verb}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// What the device said.
        source: std::io::Error,
    },
    /// Recovery failed.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
}

fn io(verb: &'static str) -> impl FnOnce(std::io::Error) -> OpenError {
    move |source| OpenError::Io { verb, source }
}

/// Reads both superblocks and decides.
pub fn read_superblock(disk: &mut dyn Disk) -> Result<Verdict, OpenError> {
    let [a, b] = COPIES.map(|at| read_copy(disk, at));
    Ok(choose(a?, b?))
}

/// A copy of the superblock. One that the medium cannot read is damaged, which the other one makes good.
fn read_copy(disk: &mut dyn Disk, at: u64) -> Result<Result<Superblock, BadBlock>, OpenError> {
    match read_now(disk, at, BLOCK) {
        Ok(block) => Ok(Superblock::decode(&block)),
        Err(e) if is_bad_sector(&e) => Ok(Err(BadBlock::Crc)),
        Err(e) => Err(io("read superblock")(e)),
    }
}

/// Both copies, the one that does not verify first.
fn damaged_first(disk: &mut dyn Disk) -> Result<Vec<u64>, OpenError> {
    let mut copies = COPIES.to_vec();
    if read_copy(disk, COPIES[0])?.is_ok() {
        copies.reverse();
    }
    Ok(copies)
}

fn copy_of(generation: u64) -> u64 {
    COPIES[usize::from(!generation.is_multiple_of(2))]
}

/// Writes an empty Quarry device.
pub fn format(disk: &mut dyn Disk, request: &Format) -> Result<Superblock, OpenError> {
    let capacity = disk.geometry().capacity;
    let layout = match request.segment_size {
        Some(size) => Layout::with_segment_size(capacity, size),
        None => Layout::plan(capacity),
    };
    let segment_size = request.segment_size.unwrap_or(MIN_SEGMENT);
    if !segment_size.is_power_of_two() || !(MIN_SEGMENT..=MAX_SEGMENT).contains(&segment_size) {
        return Err(OpenError::SegmentSize(segment_size));
    }
    let least = MIN_SEGMENTS * segment_size + (2 << 20);
    let layout = layout.ok_or(OpenError::TooSmall { capacity, least })?;
    if !request.overwrite {
        refuse_what_is_there(disk)?;
    }
    let superblock = Superblock {
        device: request.device,
        cluster: request.cluster,
        generation: 1,
        epoch: 0,
        clean: true,
        index_generation: 1,
        layout,
    };
    // Headers of an earlier format carry another device id, so old segments need no wiping.
    for at in COPIES {
        write_now(disk, at, &superblock.encode()).map_err(io("write superblock"))?;
    }
    flush_now(disk).map_err(io("flush superblock"))?;
    Ok(superblock)
}

fn refuse_what_is_there(disk: &mut dyn Disk) -> Result<(), OpenError> {
    match read_superblock(disk)? {
        Verdict::Use { superblock, .. } => {
            let Superblock { device, cluster, .. } = superblock;
            return Err(OpenError::AlreadyFormatted { device, cluster });
        }
        Verdict::Newer(version) => return Err(OpenError::Newer(version)),
        Verdict::Contradiction => return Err(OpenError::Damaged("its copies name different devices")),
        Verdict::Damaged => return Err(OpenError::Damaged("no copy verifies")),
        Verdict::Absent => {}
    }
    let capacity = disk.geometry().capacity;
    let span = SIGNATURE_SPAN.next_multiple_of(BLOCK);
    let head = read_now(disk, 0, span).map_err(io("read device"))?;
    let tail = read_now(disk, capacity - span as u64, span).map_err(io("read device"))?;
    foreign_signature(&head, &tail).map_or(Ok(()), |found| Err(OpenError::Foreign(found.to_owned())))
}

/// How a device is to be opened.
pub struct Open<'a> {
    /// Refuse a device of another cluster.
    pub cluster: Option<ClusterId>,
    /// Bytes of the read cache.
    pub cache_bytes: CacheBytes,
    /// Told (done, total) segments while the index is rebuilt.
    pub progress: &'a mut dyn FnMut(u64, u64),
}

/// A core ready to be turned, its handle, and what opening found.
pub(crate) struct Opened {
    pub(crate) core: Core,
    pub(crate) handle: DiskHandle,
    pub(crate) report: Report,
}

/// The superblock of a device that may be opened.
pub(crate) fn check_device(
    disk: &mut dyn Disk,
    expected: Option<ClusterId>,
) -> Result<(Superblock, bool), OpenError> {
    let (superblock, repair) = match read_superblock(disk)? {
        Verdict::Use { superblock, repair } => (superblock, repair),
        Verdict::Absent => return Err(OpenError::Unformatted),
        Verdict::Newer(version) => return Err(OpenError::Newer(version)),
        Verdict::Contradiction => return Err(OpenError::Damaged("its copies name different devices")),
        Verdict::Damaged => return Err(OpenError::Damaged("no copy verifies")),
    };
    if let Some(expected) = expected
        && superblock.cluster != expected
    {
        return Err(OpenError::OtherCluster { found: superblock.cluster, expected });
    }
    let found = disk.geometry().capacity;
    if found < superblock.layout.capacity {
        return Err(OpenError::Shrunk { found, expected: superblock.layout.capacity });
    }
    Ok((superblock, repair))
}

/// Whether the index fits the device: `Ok(true)` when it is empty.
pub(crate) fn check_index(index: &dyn Index, superblock: &Superblock) -> Result<bool, OpenError> {
    let Some(identity) = index.get(Table::System, IDENTITY_KEY)? else {
        let anything = Table::ALL.into_iter().find_map(|table| index.scan(table, Range::default()).next());
        return match anything {
            None => Ok(true),
            Some(_) => Err(OpenError::StaleIndex("an earlier rebuild did not finish")),
        };
    };
    let mut r = Reader::new(&identity);
    let parsed = r.array().and_then(|id| Ok((DeviceId(id), r.u64()?)));
    let (device, generation) = parsed.map_err(|_| OpenError::StaleIndex("its identity row is damaged"))?;
    if device != superblock.device {
        return Err(OpenError::OtherIndex(device));
    }
    if generation != superblock.index_generation {
        return Err(OpenError::StaleIndex("it is of an earlier generation"));
    }
    Ok(false)
}

/// Opens a device with its index: checks, fences, recovers.
#[expect(clippy::needless_pass_by_value, reason = "it holds the caller's only borrow of `progress`")]
pub(crate) fn open(
    mut disk: Box<dyn Disk>,
    index: Arc<dyn Index>,
    catalog: Arc<dyn Catalog>,
    options: Open<'_>,
) -> Result<Opened, OpenError> {
    let (mut superblock, repair) = check_device(disk.as_mut(), options.cluster)?;
    let empty = check_index(index.as_ref(), &superblock)?;
    let was_clean = superblock.clean;
    superblock.generation += 1;
    superblock.epoch += 1;
    superblock.clean = false;
    if empty {
        superblock.index_generation = another_generation(superblock.index_generation);
    }
    let copies = if repair { damaged_first(disk.as_mut())? } else { vec![copy_of(superblock.generation)] };
    for at in copies {
        // Each is durable before the next is touched: at no moment is the only whole copy being written.
        write_now(disk.as_mut(), at, &superblock.encode()).map_err(io("write superblock"))?;
        flush_now(disk.as_mut()).map_err(io("flush superblock"))?;
    }

    let recovered = if empty {
        rebuild(disk.as_mut(), &superblock, index.as_ref(), catalog.as_ref(), options.progress)?
    } else {
        replay(disk.as_mut(), &superblock, was_clean, index.as_ref(), catalog.as_ref())?
    };
    let Recovered { segments, tallies, mut position, heads, report } = recovered;
    forget_stale_openings(disk.as_mut(), &superblock, &segments, &mut position)?;
    // Also those of segments that cannot be read any more: what is saved now would be taken for older than the table.
    let (layout, device) = (superblock.layout, superblock.device);
    let given = table::next_seq(disk.as_mut(), layout, device, &[]).map_err(io("read segment table"))?;
    position.next_seq = position.next_seq.max(given);
    position.reserved = segments.reserve(&[]);
    save_opening(index.as_ref(), &superblock, &position, &segments)?;
    tracing::info!(
        device = %superblock.device, epoch = superblock.epoch, was_clean, io = disk.name(),
        batches = report.batches, records = report.records, lost = report.lost.len(),
        torn_tail = report.torn_tail, rebuilt = report.rebuilt.unwrap_or("no"), "disk opened"
    );
    for range in &report.lost {
        tracing::error!(device = %superblock.device, from = range.start, to = range.end,
            "acknowledged records are unreadable; run `quarry disk audit`, repair from replicas, replace the disk");
    }
    Ok(assemble(
        disk,
        index,
        catalog,
        superblock,
        segments,
        tallies,
        position,
        heads,
        report,
        options.cache_bytes,
    ))
}

/// The number of an index that is made anew. Counted on, a device and an older copy of it came to the same one, and the one was opened with an
/// index that had been made from the other.
fn another_generation(old: u64) -> u64 {
    loop {
        let generation = RandomState::new().hash_one(old) % COUNTS;
        if generation != old {
            return generation;
        }
    }
}

struct Recovered {
    segments: SegmentMap,
    tallies: Tallies,
    position: Position,
    heads: [Option<Head>; 2],
    report: Report,
}

fn rebuild(
    disk: &mut dyn Disk,
    superblock: &Superblock,
    index: &dyn Index,
    catalog: &dyn Catalog,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Recovered, OpenError> {
    let Superblock { layout, device, .. } = *superblock;
    let tallies = Tallies::default();
    let work = Rebuild { disk, layout, device, index, catalog, tallies: &tallies, progress };
    let (segments, position, rebuilt) = work.run()?;
    let Rebuilt { segments: count, by_footer, records, damaged } = rebuilt;
    if count > 0 {
        tracing::warn!(%device, segments = count, by_footer, records, damaged, "index rebuilt from the segments");
    }
    let why = (count > 0).then_some("there was none");
    let report = Report { records, damaged, rebuilt: why, ..Report::default() };
    Ok(Recovered { segments, tallies, position, heads: [None, None], report })
}

fn replay(
    disk: &mut dyn Disk,
    superblock: &Superblock,
    clean: bool,
    index: &dyn Index,
    catalog: &dyn Catalog,
) -> Result<Recovered, OpenError> {
    let Superblock { layout, device, .. } = *superblock;
    let row = index.get(Table::System, POSITION_KEY)?;
    let position = row
        .and_then(|row| Position::decode(&row).ok())
        .filter(|position| position.fits(layout))
        .ok_or(OpenError::StaleIndex("its position row is missing or damaged"))?;
    if !last_batch_is_there(disk, layout, &position)? {
        return Err(OpenError::StaleIndex("it is ahead of the log"));
    }
    let reserved = &position.reserved;
    let given = table::next_seq(disk, layout, device, reserved).map_err(io("read segment table"))?;
    if given > position.next_seq {
        return Err(OpenError::StaleIndex(
            "it is older than what it had made durable: restored, or rolled back",
        ));
    }
    let mut segments = load_segments(index, layout, &position)?;
    recount_once(index, catalog, &mut segments)?;
    let tallies = load_tallies(index, catalog)?;
    let mut replay = Replay {
        disk,
        layout,
        device,
        index,
        catalog,
        segments: &mut segments,
        tallies: &tallies,
        position,
        clean,
        held: HashMap::new(),
    };
    let report = replay.run()?;
    let heads = replay.heads()?;
    let position = replay.position;
    Ok(Recovered { segments, tallies, position, heads, report })
}

/// A segment that was opened by a batch which recovery did not take (torn, or behind a torn one) is free, yet its header says
/// that it is in use: a rebuild would believe it, and its sequence will be given out again. So it is freed for good; also where the header
/// rots and a first batch says the same, as a rebuild goes by that.
fn forget_stale_openings(
    disk: &mut dyn Disk,
    superblock: &Superblock,
    segments: &SegmentMap,
    position: &mut Position,
) -> Result<(), OpenError> {
    let Superblock { layout, device, epoch, .. } = *superblock;
    let mut wrote = false;
    let reserved = position.reserved.clone();
    for segment in reserved.into_iter().filter(|s| segments.get(*s).state == State::Free) {
        let used = Window::new(disk, layout, device, segment).in_use().map_err(io("read segment header"))?;
        let Some(SegmentUse { class, seq, .. }) = used else { continue };
        position.next_seq = position.next_seq.max(seq + 1);
        let freed = SegmentHeader { device, segment, class, freed: true, seq, first_lsn: 0, epoch };
        let mut blocks = freed.encode();
        blocks.resize(2 * BLOCK, 0);
        write_now(disk, layout.segment_start(segment), &blocks).map_err(io("free segment"))?;
        wrote = true;
    }
    if wrote { flush_now(disk).map_err(io("free segment")) } else { Ok(()) }
}

/// An index that knows of a batch which the log does not hold is ahead: the device lost what it had acknowledged.
fn last_batch_is_there(disk: &mut dyn Disk, layout: Layout, position: &Position) -> Result<bool, OpenError> {
    let Some(last) = position.last else { return Ok(true) };
    let end = u64::from(last.offset) + u64::from(last.len);
    let longest = header_len(MAX_BATCH_RECORDS, MAX_BATCH_RECORDS);
    let possible = u64::from(last.offset).is_multiple_of(BLOCK as u64) && last.len as usize <= longest;
    if last.segment >= layout.segments || end > layout.segment_size || !possible {
        return Ok(false);
    }
    let at = layout.segment_start(last.segment) + u64::from(last.offset);
    let len = (last.len as usize).next_multiple_of(BLOCK);
    match read_now(disk, at, len) {
        Ok(header) => {
            Ok(header.get(..last.len as usize).is_some_and(|header| hash(header) == position.prev_hash))
        }
        // What the medium cannot read it may well hold. The index has what the batch said; from a log without it none could be made anew.
        Err(e) if is_bad_sector(&e) => Ok(true),
        Err(e) => Err(io("read log")(e)),
    }
}

fn load_segments(index: &dyn Index, layout: Layout, position: &Position) -> Result<SegmentMap, OpenError> {
    let mut segments = SegmentMap::new(layout);
    for pair in index.scan(Table::System, Range::prefix(b"s")) {
        let (key, value) = pair?;
        let number = key.get(1..).and_then(|k| k.try_into().ok()).map(u32::from_be_bytes);
        let segment = Segment::decode(&value).ok();
        let (Some(number), Some(segment)) = (number.filter(|n| *n < layout.segments), segment) else {
            return Err(OpenError::StaleIndex("a segment row is damaged"));
        };
        *segments.get_mut(number) = segment;
    }
    // A row is written when its segment is touched; the position says which segments are open.
    for number in 0..layout.segments {
        let head = position.heads.iter().flatten().any(|head| head.segment == number);
        let s = segments.get_mut(number);
        s.state = match s.state {
            _ if head => State::Open,
            State::Open => State::Sealed,
            other => other,
        };
    }
    Ok(segments)
}

/// An index from before there were tallies gets them here, at the prefix of the log that it holds.
fn load_tallies(index: &dyn Index, catalog: &dyn Catalog) -> Result<Tallies, OpenError> {
    let loaded = Tallies::load(index).map_err(|_| OpenError::StaleIndex("its tallies are damaged"))?;
    if let Some(tallies) = loaded {
        return Ok(tallies);
    }
    tracing::info!("index has no tallies yet: count them once");
    let (tallies, set) = Tallies::counted(index, |add| catalog.count(index, add))?;
    index.apply(set)?;
    Ok(tallies)
}

/// Segments of an index from before parts of records counted get their live bytes counted so.
fn recount_once(
    index: &dyn Index,
    catalog: &dyn Catalog,
    segments: &mut SegmentMap,
) -> Result<(), OpenError> {
    if index.get(Table::System, PARTS_KEY)?.is_some() {
        return Ok(());
    }
    let mut shifts: HashMap<u32, i64> = HashMap::new();
    catalog.recount(index, &mut |segment, by| *shifts.entry(segment).or_default() += by)?;
    let mut changes = vec![(Table::System, PARTS_KEY.to_vec(), Some(Vec::new()))];
    // A damaged row may name a segment that there is not.
    shifts.retain(|segment, _| (*segment as usize) < segments.len());
    for (segment, by) in shifts {
        segments.shift_live(segment, by);
        changes.push((Table::System, segment_key(segment), Some(segments.get(segment).encode())));
    }
    Ok(index.apply(WriteSet { changes })?)
}

fn save_opening(
    index: &dyn Index,
    superblock: &Superblock,
    position: &Position,
    segments: &SegmentMap,
) -> Result<(), IndexError> {
    let mut identity = superblock.device.0.to_vec();
    identity.put_u64(superblock.index_generation);
    let mut changes = vec![
        (Table::System, IDENTITY_KEY.to_vec(), Some(identity)),
        (Table::System, POSITION_KEY.to_vec(), Some(position.encode())),
        Tallies::marker(),
        (Table::System, PARTS_KEY.to_vec(), Some(Vec::new())),
    ];
    let in_use = segments.iter().filter(|(_, s)| s.state != State::Free);
    changes.extend(in_use.map(|(number, s)| (Table::System, segment_key(number), Some(s.encode()))));
    index.apply(WriteSet { changes })?;
    index.checkpoint()
}

#[expect(clippy::too_many_arguments, reason = "the one place where the parts of a disk meet")]
fn assemble(
    disk: Box<dyn Disk>,
    index: Arc<dyn Index>,
    catalog: Arc<dyn Catalog>,
    superblock: Superblock,
    segments: SegmentMap,
    tallies: Tallies,
    position: Position,
    heads: [Option<Head>; 2],
    report: Report,
    cache_bytes: CacheBytes,
) -> Opened {
    let (sender, requests) = channel();
    let mut freeing = Freeing::default();
    for (segment, _) in segments.iter().filter(|(_, s)| s.state == State::Retired) {
        freeing.retired(segment, 0);
    }
    let live = segments.live();
    let seqs = segments.iter().map(|(_, s)| AtomicU64::new(s.seq)).collect();
    let pins = (0..superblock.layout.segments).map(|_| AtomicU64::new(0)).collect();
    let free = segments.count(State::Free) as u64;
    let memo = Arc::new(Memo::new(Arc::clone(&catalog)));
    let shared = Arc::new(Shared {
        device: superblock.device,
        layout: superblock.layout,
        index: Arc::new(Told { index, memo: Arc::clone(&memo) }),
        memo,
        catalog,
        requests: sender,
        waker: disk.waker(),
        lanes: disk.lanes(),
        nap: Nap::default(),
        admission: Admission::new(),
        segments: Mutex::new(segments),
        tallies,
        hints: Mutex::default(),
        believed: AtomicBool::new(false),
        seqs,
        pins,
        frees: AtomicU64::new(0),
        counters: Counters::default(),
        live: AtomicU64::new(live),
        free: AtomicU64::new(free),
        index_room: IndexRoom::default(),
        failed: OnceLock::new(),
        max_sequence: position.max_sequence,
        durable: AtomicU64::new(position.applied),
        epoch: superblock.epoch,
    });
    shared.look_for_room();
    let core = Core {
        disk,
        shared: shared.clone(),
        requests,
        heads,
        next_lsn: position.applied + 1,
        written_lsn: position.applied,
        durable_lsn: position.applied,
        checkpoint: CheckpointState::new(position.reserved.clone()),
        position,
        clients: VecDeque::new(),
        movers: VecDeque::new(),
        mover_turn: false,
        alone_at: Duration::ZERO,
        sealed: None,
        writing: None,
        flushing: None,
        behind: None,
        unapplied: VecDeque::new(),
        prepared: None,
        unflushed: 0,
        flush_at: Duration::ZERO,
        ops: HashMap::new(),
        next_token: 0,
        freeing,
        superblock,
        closing: None,
        farewell: None,
        completions: Vec::new(),
        now: Duration::ZERO,
    };
    Opened {
        core,
        handle: DiskHandle { shared, cache: Arc::new(Cache::new(cache_bytes)), lane: None },
        report,
    }
}
