//! A deterministic simulated disk: crashes, torn writes, rot and I/O errors on demand, from a seed.
//!
//! Invariant: same seed, same calls, same results; no clock and no thread.
//! Invariant: a request takes effect when it completes; what was not flushed survives a crash only by luck.
//! Invariant: the n-th read, write or flush is counted at submission, from 1, over the life of the image.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::platter::{Block, Platter, SECTOR, blocks_of, torn_sectors};
use super::random::SplitMix64;
use super::{BLOCK, Completion, Disk, Gather, Geometry, MAX_REQUESTS, Op, Wait, Wake, Waker, check_range};

/// What goes wrong, and when. Numbers are those of [`SimCounters`]: the first write of an image is write 1.
#[derive(Debug, Clone, Default)]
pub struct SimFaults {
    /// Reads that fail with EIO.
    pub fail_reads: BTreeSet<u64>,
    /// Byte ranges that the medium cannot read: ENODATA, as Linux says it of drives.
    pub unreadable: Vec<Range<u64>>,
    /// Writes that fail with EIO, having written any subset of their sectors.
    pub fail_writes: BTreeSet<u64>,
    /// Flushes that fail with EIO. No later flush makes durable what they covered (as fsync behaves).
    pub fail_flushes: BTreeSet<u64>,
    /// Writes that are acknowledged and never happen.
    pub lost_writes: BTreeSet<u64>,
    /// Writes that land at another byte offset (aligned, within the capacity) instead of their own.
    pub misdirected_writes: BTreeMap<u64, u64>,
    /// Writes of which one byte, at a place within the write, is changed by an exclusive-or.
    pub rotten_writes: BTreeMap<u64, (usize, u8)>,
    /// Flushes succeed and make nothing durable.
    pub lying_flush: bool,
    /// The power fails while this write is in flight.
    pub power_off_at_write: Option<u64>,
    /// The power fails while this flush is in flight.
    pub power_off_at_flush: Option<u64>,
}

/// Requests submitted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimCounters {
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Bytes of the reads.
    pub bytes_read: u64,
    /// Bytes of the writes.
    pub bytes_written: u64,
}

/// The luck of unflushed writes in a crash, each on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashPlan {
    /// Out of a thousand, how many reach the platter.
    pub keep_permille: u32,
    /// Out of a thousand of those, how many do so only in part, torn between sectors of 512 bytes.
    pub tear_permille: u32,
}

impl CrashPlan {
    /// Nothing unflushed survives.
    pub const LOSE_ALL: Self = Self { keep_permille: 0, tear_permille: 0 };
    /// Every write survives, those in flight included.
    pub const KEEP_ALL: Self = Self { keep_permille: 1000, tear_permille: 0 };
    /// Any subset survives, some of it torn.
    pub const MIXED: Self = Self { keep_permille: 500, tear_permille: 300 };
}

/// What a crash did to unflushed writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CrashOutcome {
    /// Survived whole.
    pub kept: usize,
    /// Survived in part.
    pub torn: usize,
    /// Gone.
    pub lost: usize,
}

/// A completed or interrupted write that no flush has made durable.
#[derive(Debug, Clone)]
struct Loose {
    sequence: u64,
    offset: u64,
    blocks: Vec<Block>,
    /// Covered by a failed flush: later flushes pass over it.
    stuck: bool,
}

impl Loose {
    fn end(&self) -> u64 {
        self.offset + (self.blocks.len() * BLOCK) as u64
    }
}

/// The media and what the drive's cache holds over it.
#[derive(Debug, Clone, Default)]
struct Media {
    durable: Platter,
    visible: Platter,
    loose: Vec<Loose>,
    next_sequence: u64,
}

impl Media {
    fn land(&mut self, offset: u64, blocks: Vec<Block>, write_through: bool) {
        self.visible.put(offset, &blocks);
        if write_through {
            self.durable.put(offset, &blocks);
        } else {
            self.loosen(offset, blocks);
        }
    }

    /// Subject to the luck of a crash, and visible to nobody by this alone.
    fn loosen(&mut self, offset: u64, blocks: Vec<Block>) {
        self.loose.push(Loose { sequence: self.next_sequence, offset, blocks, stuck: false });
        self.next_sequence += 1;
    }

    fn flush(&mut self, before: u64) {
        let covered = |loose: &Loose| !loose.stuck && loose.sequence < before;
        let (flushed, mut rest): (Vec<_>, Vec<_>) = self.loose.drain(..).partition(covered);
        for loose in &flushed {
            self.durable.put(loose.offset, &loose.blocks);
            // A stuck write below it can no longer come to light.
            rest.retain(|old| {
                old.sequence > loose.sequence || old.end() <= loose.offset || loose.end() <= old.offset
            });
        }
        self.loose = rest;
    }

    fn fail_flush(&mut self, before: u64) {
        self.loose.iter_mut().filter(|loose| loose.sequence < before).for_each(|loose| loose.stuck = true);
    }

    fn crash(&mut self, plan: CrashPlan, rng: &mut SplitMix64) -> CrashOutcome {
        let mut outcome = CrashOutcome::default();
        for loose in std::mem::take(&mut self.loose) {
            if !rng.chance(plan.keep_permille) {
                outcome.lost += 1;
            } else if rng.chance(plan.tear_permille) {
                let sectors = torn_sectors(loose.blocks.len() * BLOCK / SECTOR, rng);
                let merged = self.durable.merged(loose.offset, &loose.blocks, &sectors);
                self.durable.put(loose.offset, &merged);
                outcome.torn += 1;
            } else {
                self.durable.put(loose.offset, &loose.blocks);
                outcome.kept += 1;
            }
        }
        self.visible = self.durable.clone();
        outcome
    }
}

/// A request between submission and completion.
struct Flying {
    generation: u64,
    /// Counted by submissions.
    order: u64,
    number: u64,
    /// For a flush: writes with a smaller sequence completed before it was submitted.
    before: u64,
    op: Op,
    /// A durable write that has landed, and is now being flushed.
    landed: bool,
}

impl Flying {
    /// Place and bytes that it is writing.
    fn writes(&self) -> Option<(u64, &Gather)> {
        match &self.op {
            Op::Write { offset, data, .. } => Some((*offset, data)),
            Op::WriteDurably { offset, data, .. } if !self.landed => Some((*offset, data)),
            _ => None,
        }
    }

    fn is_durable_write(&self) -> bool {
        matches!(self.op, Op::WriteDurably { .. })
    }
}

struct Inner {
    geometry: Geometry,
    media: Media,
    faults: SimFaults,
    counters: SimCounters,
    rng: SplitMix64,
    /// Whether it says that it pipelines: now so, now so.
    moods: SplitMix64,
    /// A durable write failed: none that follows is begun.
    broken: bool,
    submitted: u64,
    flying: Vec<Flying>,
    answers: Vec<(u64, Completion)>,
    /// Each crash starts another; disks of an earlier one only see errors.
    generation: u64,
    powered: bool,
    open: bool,
}

impl Inner {
    fn admit(&mut self, generation: u64, op: Op) {
        assert!(self.flying.len() < MAX_REQUESTS, "more than {MAX_REQUESTS} requests in flight");
        let number = match &op {
            Op::Read { buf, .. } => {
                self.counters.bytes_read += buf.len() as u64;
                next(&mut self.counters.reads)
            }
            Op::Write { data, offset, .. } | Op::WriteDurably { data, offset, .. } => {
                self.assert_alone(*offset, data.len() as u64);
                self.counters.bytes_written += data.len() as u64;
                next(&mut self.counters.writes)
            }
            Op::Flush { .. } => next(&mut self.counters.flushes),
        };
        let (order, before) = (next(&mut self.submitted), self.media.next_sequence);
        self.flying.push(Flying { generation, order, number, before, op, landed: false });
    }

    /// Of durable writes only the first is under way.
    fn is_under_way(&self, flying: &Flying) -> bool {
        let before = |other: &Flying| other.is_durable_write() && other.order < flying.order;
        !flying.is_durable_write() || !self.flying.iter().any(before)
    }

    /// One of those under way has come to its end, or to the middle of it.
    fn progress(&mut self) {
        let under_way = |(at, flying): (usize, &Flying)| self.is_under_way(flying).then_some(at);
        let candidates: Vec<usize> = self.flying.iter().enumerate().filter_map(under_way).collect();
        let chosen = candidates[self.rng.index(candidates.len())];
        let flying = self.flying.swap_remove(chosen);
        self.finish(flying);
    }

    fn assert_alone(&self, offset: u64, len: u64) {
        for flying in &self.flying {
            if let Some((other, data)) = flying.writes() {
                let apart = offset + len <= other || other + data.len() as u64 <= offset;
                assert!(apart, "writes in flight overlap: {offset}+{len} and {other}+{}", data.len());
            }
        }
    }

    fn power_off(&mut self) {
        self.powered = false;
        let begun =
            |flying: &Flying| self.is_under_way(flying) && !(self.broken && flying.is_durable_write());
        let under_way: Vec<bool> = self.flying.iter().map(begun).collect();
        for (flying, begun) in std::mem::take(&mut self.flying).into_iter().zip(under_way) {
            if let (Some((offset, data)), true) = (flying.writes(), begun) {
                self.media.loosen(offset, blocks_of(&data.to_vec()));
            }
            self.answers.push((flying.generation, answer(flying.op, Err(power_error()))));
        }
    }

    fn finish(&mut self, flying: Flying) {
        let cut = match &flying.op {
            _ if flying.writes().is_some() => self.faults.power_off_at_write == Some(flying.number),
            Op::Read { .. } => false,
            _ => self.faults.power_off_at_flush == Some(flying.number),
        };
        if cut {
            self.flying.push(flying);
            return self.power_off();
        }
        let durable = flying.is_durable_write();
        let Flying { generation, order, number, before, mut op, landed } = flying;
        let result = match &mut op {
            Op::WriteDurably { .. } if self.broken => Err(media_error()),
            Op::Read { offset, buf, .. } => self.read(number, *offset, buf),
            Op::Write { offset, data, .. } => self.write(number, *offset, &data.to_vec()),
            Op::WriteDurably { offset, data, .. } if !landed => {
                match self.write(number, *offset, &data.to_vec()) {
                    Ok(()) => {
                        let number = next(&mut self.counters.flushes);
                        let before = self.media.next_sequence;
                        let landed = true;
                        return self.flying.push(Flying { generation, order, number, before, op, landed });
                    }
                    failed => failed,
                }
            }
            Op::WriteDurably { .. } | Op::Flush { .. } => self.flush(number, before),
        };
        self.broken |= durable && result.is_err();
        self.answers.push((generation, answer(op, result)));
    }

    fn read(&self, number: u64, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset + buf.len() as u64;
        let bad = |range: &Range<u64>| range.start < end && offset < range.end;
        if self.faults.fail_reads.contains(&number) {
            return Err(media_error());
        }
        if self.faults.unreadable.iter().any(bad) {
            return Err(io::Error::from_raw_os_error(libc::ENODATA));
        }
        self.media.visible.read(offset, buf);
        Ok(())
    }

    fn write(&mut self, number: u64, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut blocks = blocks_of(buf);
        if self.faults.fail_writes.contains(&number) {
            let sectors = torn_sectors(buf.len() / SECTOR, &mut self.rng);
            let merged = self.media.visible.merged(offset, &blocks, &sectors);
            self.media.land(offset, merged, self.geometry.write_through);
            return Err(media_error());
        }
        if self.faults.lost_writes.contains(&number) {
            return Ok(());
        }
        if let Some((place, mask)) = self.faults.rotten_writes.get(&number) {
            Arc::make_mut(&mut blocks[place / BLOCK])[place % BLOCK] ^= mask;
        }
        let target = self.faults.misdirected_writes.get(&number).copied().unwrap_or(offset);
        let end = target + buf.len() as u64;
        assert!(target.is_multiple_of(BLOCK as u64) && end <= self.geometry.capacity);
        self.media.land(target, blocks, self.geometry.write_through);
        Ok(())
    }

    fn flush(&mut self, number: u64, before: u64) -> io::Result<()> {
        if self.faults.fail_flushes.contains(&number) {
            self.media.fail_flush(before);
            return Err(media_error());
        }
        if !self.faults.lying_flush {
            self.media.flush(before);
        }
        Ok(())
    }

    fn new_generation(&mut self) {
        self.power_off();
        self.generation += 1;
        self.powered = true;
        self.broken = false;
        self.open = false;
    }
}

fn next(counter: &mut u64) -> u64 {
    *counter += 1;
    *counter
}

fn media_error() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn power_error() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

fn answer(op: Op, result: io::Result<()>) -> Completion {
    match op {
        Op::Read { token, buf, .. } => Completion { token, result, buf: Some(buf) },
        Op::Write { token, .. } | Op::WriteDurably { token, .. } | Op::Flush { token } => {
            Completion { token, result, buf: None }
        }
    }
}

/// The drive on the bench: a shared handle that outlives the [`SimDisk`]s opened on it.
#[derive(Clone)]
pub struct SimImage {
    inner: Arc<Mutex<Inner>>,
}

/// The state of a whole image at one moment: contents, unflushed writes, nothing in flight.
#[derive(Debug, Clone)]
pub struct SimSnapshot {
    media: Media,
}

impl SimImage {
    /// An empty drive of `capacity` bytes, a positive multiple of [`BLOCK`]. The seed decides the order of completions.
    #[must_use]
    pub fn new(capacity: u64, seed: u64) -> Self {
        assert!(capacity > 0 && capacity.is_multiple_of(BLOCK as u64));
        let inner = Inner {
            geometry: Geometry { capacity, write_through: false },
            media: Media::default(),
            faults: SimFaults::default(),
            counters: SimCounters::default(),
            rng: SplitMix64::new(seed),
            moods: SplitMix64::new(!seed),
            broken: false,
            submitted: 0,
            flying: Vec::new(),
            answers: Vec::new(),
            generation: 0,
            powered: true,
            open: false,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Open it. Only one disk may be open at a time; a crash closes it.
    #[must_use]
    pub fn open(&self) -> SimDisk {
        let mut inner = self.lock();
        assert!(inner.powered, "open of a simulated disk without power: crash() switches it on again");
        assert!(!inner.open, "a simulated disk is opened twice");
        inner.open = true;
        SimDisk { image: self.clone(), generation: inner.generation, geometry: inner.geometry }
    }

    /// Make the cache write-through, before opening: writes are durable when they complete.
    pub fn set_write_through(&self, write_through: bool) {
        self.lock().geometry.write_through = write_through;
    }

    /// Change what goes wrong from here on.
    pub fn edit_faults(&self, edit: impl FnOnce(&mut SimFaults)) {
        edit(&mut self.lock().faults);
    }

    /// Requests submitted so far.
    #[must_use]
    pub fn counters(&self) -> SimCounters {
        self.lock().counters
    }

    /// Cut the power: everything in flight, and everything after, fails until [`SimImage::crash`].
    pub fn power_off(&self) {
        self.lock().power_off();
    }

    /// False after a power cut, whether by [`SimImage::power_off`] or by a fault.
    #[must_use]
    pub fn is_powered(&self) -> bool {
        self.lock().powered
    }

    /// Crash: unflushed writes, and those in flight, survive by luck. Disks open on the image only see errors from now
    /// on, and it can be opened again. Faults stay, but for the power cuts.
    pub fn crash(&self, plan: CrashPlan, rng: &mut SplitMix64) -> CrashOutcome {
        let mut inner = self.lock();
        inner.new_generation();
        inner.faults.power_off_at_write = None;
        inner.faults.power_off_at_flush = None;
        inner.media.crash(plan, rng)
    }

    /// Writes that a crash now could lose, without those in flight.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.lock().media.loose.len()
    }

    /// Rot: exclusive-or one byte of the media.
    pub fn flip(&self, offset: u64, mask: u8) {
        let mut inner = self.lock();
        assert!(offset < inner.geometry.capacity);
        let Media { durable, visible, .. } = &mut inner.media;
        for platter in [durable, visible] {
            let mut byte = [0];
            platter.read(offset, &mut byte);
            platter.patch(offset, &[byte[0] ^ mask]);
        }
    }

    /// What a reader would see, at any offset; no fault applies.
    #[must_use]
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.lock().media.visible.read(offset, &mut bytes);
        bytes
    }

    /// Put bytes on the media, durable at once, at any offset; no fault applies.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        let mut inner = self.lock();
        assert!(offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= inner.geometry.capacity));
        inner.media.durable.patch(offset, bytes);
        inner.media.visible.patch(offset, bytes);
    }

    /// Take a copy of the media and of the drive's cache; blocks are shared, so it costs little.
    #[must_use]
    pub fn snapshot(&self) -> SimSnapshot {
        SimSnapshot { media: self.lock().media.clone() }
    }

    /// Go back to a copy. Disks open on the image only see errors from now on; faults and counters stay.
    pub fn restore(&self, snapshot: &SimSnapshot) {
        let mut inner = self.lock();
        inner.new_generation();
        inner.media = snapshot.media.clone();
    }

    /// Bytes of memory that the contents take.
    #[must_use]
    pub fn resident_bytes(&self) -> usize {
        self.lock().media.visible.resident()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for SimImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimImage").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

/// A simulated disk. `reap` completes what it likes in what order it likes and never sleeps: with
/// [`Wait::AtMost`] at least one request when there is any, with [`Wait::Never`] perhaps none. Its waker does nothing.
#[derive(Debug)]
pub struct SimDisk {
    image: SimImage,
    generation: u64,
    geometry: Geometry,
}

impl SimDisk {
    /// A disk on an image of its own.
    #[must_use]
    pub fn new(capacity: u64, seed: u64) -> Self {
        SimImage::new(capacity, seed).open()
    }

    /// The handle with which to crash it.
    #[must_use]
    pub fn image(&self) -> SimImage {
        self.image.clone()
    }
}

impl Disk for SimDisk {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn submit(&mut self, op: Op) {
        let mut inner = self.image.lock();
        let alive = inner.powered && inner.generation == self.generation;
        match check_range(self.geometry.capacity, op) {
            Ok(op) if alive => inner.admit(self.generation, op),
            Ok(op) => inner.answers.push((self.generation, answer(op, Err(power_error())))),
            Err(refused) => inner.answers.push((self.generation, refused)),
        }
    }

    fn reap(&mut self, wait: Wait, out: &mut Vec<Completion>) {
        let mut inner = self.image.lock();
        if inner.generation == self.generation {
            let waiting = inner.flying.len() as u64;
            let count = match wait {
                Wait::Never => inner.rng.below(waiting + 1),
                Wait::AtMost(_) if waiting > 0 && inner.answers.is_empty() => 1 + inner.rng.below(waiting),
                Wait::AtMost(_) => inner.rng.below(waiting + 1),
            };
            for _ in 0..count {
                // A power cut in between leaves nothing flying.
                if inner.flying.is_empty() {
                    break;
                }
                inner.progress();
            }
        }
        let mine = |answer: &mut (u64, Completion)| answer.0 == self.generation;
        out.extend(inner.answers.extract_if(.., mine).map(|(_, completion)| completion));
    }

    fn pipelines(&self) -> bool {
        self.image.lock().moods.chance(500)
    }

    fn waker(&self) -> Waker {
        Arc::new(NoWake)
    }

    fn name(&self) -> &'static str {
        "sim"
    }
}

impl Drop for SimDisk {
    fn drop(&mut self) {
        let mut inner = self.image.lock();
        if inner.generation == self.generation {
            while !inner.flying.is_empty() {
                inner.progress();
            }
            inner.open = false;
            inner.broken = false;
        }
        inner.answers.retain(|(generation, _)| *generation != self.generation);
    }
}

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

#[cfg(test)]
#[path = "sim_tests.rs"]
mod tests;
