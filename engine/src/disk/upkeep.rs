//! Checkpoints of the index, and what may follow only after one: freeing retired segments.
//!
//! Invariant: a segment becomes free only after (1) the index without it is durable, (2) its last reader has gone,
//! (3) its header says so durably. A crash before (3) finds it retired and repeats the rest.
//! Invariant: `usable` holds only segments that a durable position row names as reserved.

use std::time::Duration;

use tokio::sync::oneshot;

use super::batching::Written;
use super::core::{Core, Purpose};
use super::format::batch::HeadClass;
use super::format::segment::SegmentHeader;
use super::format::superblock::COPIES;
use super::limits::{CHECKPOINT_BYTES, CHECKPOINT_SECONDS};
use super::segments::{POSITION_KEY, State};
use super::shared::{Counters, DiskError};
use crate::index::{IndexError, Table, WriteSet};
use crate::io::{BLOCK, Disk, Op, Wait};

/// What is known of the last and the next checkpoint.
pub(crate) struct CheckpointState {
    /// Somebody needs one now.
    pub(crate) wanted: bool,
    /// Segments that may be opened.
    pub(crate) usable: Vec<u32>,
    /// Who waits for one.
    pub(crate) waiting: Vec<oneshot::Sender<Result<(), DiskError>>>,
    /// Log bytes applied since the last one began.
    bytes: u64,
    /// Index changes applied so far, batches and others.
    changes: u64,
    /// Up to here they are durable.
    durable_changes: u64,
    /// Reserved segments of the last applied position.
    reserved: Vec<u32>,
    running: Option<Running>,
    handed_out: bool,
    next_at: Duration,
}

struct Running {
    changes: u64,
    reserved: Vec<u32>,
    waiting: Vec<oneshot::Sender<Result<(), DiskError>>>,
}

impl Running {
    fn answer(self, result: &Result<(), DiskError>) {
        for reply in self.waiting {
            let _gone = reply.send(result.clone());
        }
    }
}

impl CheckpointState {
    /// The disk is out: whoever waits is told, whatever becomes of the one that is running.
    pub(crate) fn abandon(&mut self, why: &DiskError) {
        let running = self.running.as_mut().map(|running| std::mem::take(&mut running.waiting));
        for reply in running.into_iter().flatten().chain(self.waiting.drain(..)) {
            let _gone = reply.send(Err(why.clone()));
        }
    }

    /// After a durable checkpoint at the opening, whose position names `usable`.
    pub(crate) fn new(usable: Vec<u32>) -> Self {
        Self {
            wanted: false,
            reserved: usable.clone(),
            usable,
            waiting: Vec::new(),
            bytes: 0,
            changes: 0,
            durable_changes: 0,
            running: None,
            handed_out: false,
            next_at: Duration::from_secs(CHECKPOINT_SECONDS),
        }
    }

    pub(crate) fn applied(&mut self, batch: &Written) {
        self.bytes += batch.bytes;
        self.changes += 1;
        self.reserved.clone_from(&batch.position.reserved);
    }

    pub(crate) fn touched(&mut self) {
        self.changes += 1;
    }

    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    pub(crate) fn durable_changes(&self) -> u64 {
        self.durable_changes
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The driver has a checkpoint to fetch.
    pub(crate) fn waits_for_driver(&self) -> bool {
        self.running.is_some() && !self.handed_out
    }

    fn due(&self, now: Duration) -> bool {
        let dirty = self.changes > self.durable_changes;
        let timed = dirty && (self.bytes >= CHECKPOINT_BYTES || now >= self.next_at);
        self.running.is_none() && (timed || self.wanted || !self.waiting.is_empty())
    }
}

/// Segments on their way from retired to free.
#[derive(Default)]
pub(crate) struct Freeing {
    /// Retired, with the count of index changes at which they were.
    retired: Vec<(u32, u64)>,
    round: Vec<u32>,
    writes_left: usize,
    /// The round's headers are written, not yet flushed.
    written: bool,
}

impl Freeing {
    pub(crate) fn retired(&mut self, segment: u32, change: u64) {
        self.retired.push((segment, change));
    }

    /// Whether a checkpoint would let a segment go.
    pub(crate) fn waits_for_checkpoint(&self, durable: u64) -> bool {
        self.retired.iter().any(|(_, change)| *change > durable)
    }

    pub(crate) fn wants_flush(&self) -> bool {
        self.written
    }

    /// A flush is submitted: whether it makes the round durable.
    pub(crate) fn flushing(&mut self) -> bool {
        std::mem::take(&mut self.written)
    }

    pub(crate) fn part_written(&mut self) {
        self.writes_left = self.writes_left.saturating_sub(1);
        if self.writes_left == 0 && !self.round.is_empty() {
            self.written = true;
        }
    }
}

impl Core {
    /// Begins a checkpoint when one is due, and a round of freeing when segments are ready for it.
    pub(crate) fn start_upkeep(&mut self, now: Duration) {
        if self.checkpoint.due(now) {
            self.refresh_reserved();
            self.checkpoint.wanted = false;
            self.checkpoint.bytes = 0;
            self.checkpoint.next_at = now + Duration::from_secs(CHECKPOINT_SECONDS);
            self.checkpoint.running = Some(Running {
                changes: self.checkpoint.changes,
                reserved: self.checkpoint.reserved.clone(),
                waiting: std::mem::take(&mut self.checkpoint.waiting),
            });
            self.checkpoint.handed_out = false;
        }
        self.start_freeing();
    }

    /// Names more reserved segments when no batch is under way to do so. Only between batches: the position row must
    /// not run ahead of what is applied.
    fn refresh_reserved(&mut self) {
        if !self.log_is_quiet() || !self.unapplied.is_empty() {
            return;
        }
        self.position.reserved = self.shared.segments().reserve(&self.position.reserved);
        let row = (Table::System, POSITION_KEY.to_vec(), Some(self.position.encode()));
        match self.shared.index.apply(WriteSet { changes: vec![row] }) {
            Ok(()) => {
                self.checkpoint.changes += 1;
                self.checkpoint.reserved.clone_from(&self.position.reserved);
            }
            Err(e) => {
                self.fail(&format!("the index refused a change ({e}); check its directory, then restart"));
            }
        }
    }

    /// A checkpoint that waits to be carried out by the driver: it calls `Index::checkpoint` and sends
    /// `Request::Checkpointed`.
    pub(crate) fn take_checkpoint(&mut self) -> bool {
        let waits = self.checkpoint.waits_for_driver();
        self.checkpoint.handed_out |= waits;
        waits
    }

    pub(crate) fn checkpointed(&mut self, result: Result<(), IndexError>) {
        let Some(running) = self.checkpoint.running.take() else { return };
        if self.failed() {
            return running.answer(&Err(self.shared.gone()));
        }
        if let Err(e) = result {
            let e = DiskError::from(e);
            self.fail(&format!("checkpoint of the index failed ({e}); check its directory, then restart"));
            return running.answer(&Err(e));
        }
        self.checkpoint.durable_changes = running.changes;
        let segments = self.shared.segments();
        let free = |s: &u32| segments.get(*s).state == State::Free;
        self.checkpoint.usable = running.reserved.iter().copied().filter(free).collect();
        drop(segments);
        Counters::add(&self.shared.counters.checkpoints, 1);
        self.write_table();
        running.answer(&Ok(()));
    }

    fn start_freeing(&mut self) {
        let durable = self.checkpoint.durable_changes;
        if !self.freeing.round.is_empty()
            || !self.freeing.retired.iter().any(|(_, change)| *change <= durable)
        {
            return;
        }
        // Readers look at this count around their look-ups: first count, then look at the pins.
        self.shared.frees.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let ready = |(segment, change): &(u32, u64)| *change <= durable && !self.shared.pinned(*segment);
        let (round, wait): (Vec<_>, Vec<_>) = self.freeing.retired.iter().copied().partition(ready);
        self.freeing.retired = wait;
        for (segment, _) in round {
            let header = {
                let mut segments = self.shared.segments();
                let s = segments.get_mut(segment);
                assert!(s.state == State::Retired && s.live == 0, "segment {segment} is freed while needed");
                s.state = State::Freeing;
                SegmentHeader {
                    device: self.shared.device,
                    segment,
                    class: s.class.unwrap_or(HeadClass::Hot),
                    freed: true,
                    seq: s.seq,
                    first_lsn: 0,
                    epoch: self.shared.epoch,
                }
            };
            self.freeing.round.push(segment);
            self.freeing.writes_left += 1;
            // The first batch goes as well: a segment whose header rots is known by it, and this one must not be.
            let mut blocks = header.encode();
            blocks.resize(2 * BLOCK, 0);
            self.write_upkeep(self.shared.layout.segment_start(segment), &blocks);
        }
    }

    fn write_upkeep(&mut self, offset: u64, bytes: &[u8]) {
        let mut buf = self.disk.buffer(bytes.len());
        buf.copy_from_slice(bytes);
        let token = self.token(Purpose::Upkeep);
        self.disk.submit(Op::Write { token, offset, data: buf.into() });
    }

    /// The freed headers are durable: their segments may be reserved again.
    pub(crate) fn freed_durably(&mut self) {
        let round = std::mem::take(&mut self.freeing.round);
        let mut segments = self.shared.segments();
        let mut set = WriteSet::default();
        for segment in &round {
            *segments.get_mut(*segment) = super::segments::Segment::default();
            let key = super::segments::segment_key(*segment);
            set.changes.push((Table::System, key, Some(segments.get(*segment).encode())));
        }
        self.shared.count_free(&segments);
        drop(segments);
        Counters::add(&self.shared.counters.freed, round.len() as u64);
        if let Err(e) = self.shared.index.apply(set) {
            return self
                .fail(&format!("the index refused a change ({e}); check its directory, then restart"));
        }
        self.checkpoint.touched();
        // Whoever waits for space needs these named by a checkpoint.
        self.checkpoint.wanted |=
            self.checkpoint.usable.is_empty() || !self.clients.is_empty() || !self.movers.is_empty();
    }

    /// The summary on the device, for tools that have no index. Left out while an earlier one is still on its way: writes in
    /// flight must not overlap, and the next checkpoint brings a newer one.
    fn write_table(&mut self) {
        if self.ops.values().any(|purpose| matches!(purpose, Purpose::Table)) {
            return;
        }
        let table = super::table::encode(self.shared.device, &self.shared.segments());
        let copy = self.shared.counters.checkpoints.load(std::sync::atomic::Ordering::Relaxed) % 2;
        let mut buf = self.disk.buffer(table.len());
        buf.copy_from_slice(&table);
        let token = self.token(Purpose::Table);
        let offset = self.shared.layout.table_start(copy);
        self.disk.submit(Op::Write { token, offset, data: buf.into() });
    }

    /// Checkpoint, clean superblock; the core is idle.
    pub(crate) fn close_cleanly(&mut self) -> Result<(), DiskError> {
        self.shared.index.checkpoint()?;
        self.superblock.clean = true;
        self.superblock.generation += 1;
        let copy = COPIES[usize::from(self.superblock.generation % 2 == 1)];
        let io = |e: std::io::Error| DiskError::Failed(format!("close superblock: {e}").into());
        write_now(self.disk.as_mut(), copy, &self.superblock.encode()).map_err(io)?;
        flush_now(self.disk.as_mut()).map_err(io)
    }
}

/// Writes at once, for openings and closings: nothing else is in flight.
pub(crate) fn write_now(disk: &mut dyn Disk, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    let mut buf = disk.buffer(bytes.len());
    buf.copy_from_slice(bytes);
    run_now(disk, Op::Write { token: 0, offset, data: buf.into() }).map(|_| ())
}

/// Flushes at once.
pub(crate) fn flush_now(disk: &mut dyn Disk) -> std::io::Result<()> {
    run_now(disk, Op::Flush { token: 0 }).map(|_| ())
}

/// Reads at once.
pub(crate) fn read_now(
    disk: &mut dyn Disk,
    offset: u64,
    len: usize,
) -> std::io::Result<crate::io::AlignedBuf> {
    let buf = disk.buffer(len);
    run_now(disk, Op::Read { token: 0, offset, buf })?
        .ok_or_else(|| std::io::Error::other("read came back without its buffer"))
}

/// As [`read_now`], with zeros for the blocks that the medium cannot read: one bad sector must not keep a disk from
/// opening. Any other error is the device's, and is returned; so is that of a device of which nothing can be read here nor elsewhere,
/// which may be its path's, and over in a while: what it holds must not be taken for what was never written.
pub(crate) fn read_what_can_be(
    disk: &mut dyn Disk,
    offset: u64,
    len: usize,
) -> std::io::Result<crate::io::AlignedBuf> {
    match read_now(disk, offset, len) {
        Err(e) if is_bad_sector(&e) => {}
        other => return other,
    }
    let mut whole = disk.buffer(len);
    whole.fill(0);
    let mut unread = Vec::new();
    for (at, block) in (offset..).step_by(BLOCK).zip(whole.chunks_mut(BLOCK)) {
        match read_now(disk, at, BLOCK) {
            Ok(read) => block.copy_from_slice(&read),
            Err(e) if is_bad_sector(&e) => unread.push(at),
            Err(e) => return Err(e),
        }
    }
    let (Some(first), Some(last)) = (unread.first(), unread.last()) else { return Ok(whole) };
    answers(disk)?;
    // It may have come back meanwhile: then most of it can be read. Bad sectors are not all tried twice, each takes a drive seconds.
    let still = |read: std::io::Result<_>| read.is_err_and(|e| is_bad_sector(&e));
    if still(read_now(disk, *first, BLOCK)) && still(read_now(disk, *last, BLOCK)) {
        return Ok(whole);
    }
    for at in unread {
        let from = usize::try_from(at - offset).unwrap_or(usize::MAX);
        match (read_now(disk, at, BLOCK), whole.get_mut(from..from + BLOCK)) {
            (Ok(read), Some(block)) => block.copy_from_slice(&read),
            (Err(e), _) if !is_bad_sector(&e) => return Err(e),
            _ => {}
        }
    }
    Ok(whole)
}

/// The device's error if it reads neither copy of its superblock.
fn answers(disk: &mut dyn Disk) -> std::io::Result<()> {
    let [first, second] = COPIES;
    read_now(disk, first, BLOCK).or_else(|_| read_now(disk, second, BLOCK)).map(|_| ())
}

/// Whether it is the medium that cannot be read, at this place. Linux says ENODATA for what a drive cannot read, EILSEQ for what does not
/// agree with its protection, EREMOTEIO for what a target refuses (`blk_errors` in block/blk-core.c), and EIO for all else.
pub(crate) fn is_bad_sector(e: &std::io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EIO | libc::ENODATA | libc::EILSEQ | libc::EREMOTEIO))
}

fn run_now(disk: &mut dyn Disk, op: Op) -> std::io::Result<Option<crate::io::AlignedBuf>> {
    disk.submit(op);
    let mut out = Vec::new();
    loop {
        disk.reap(Wait::AtMost(Duration::from_secs(1)), &mut out);
        if let Some(done) = out.pop() {
            return done.result.map(|()| done.buf);
        }
    }
}
