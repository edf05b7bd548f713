//! A caller's handle to a disk: appends, reads and look-ups, usable from tokio and without it.
//!
//! Invariant: bytes queued and bytes being read are bounded per disk; callers wait for room (back-pressure).
//! Invariant: a record leaves [`DiskHandle::read`] verified, or not at all.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::answer::{Answer, Submitted};
use super::cache::Cache;
use super::catalog::Catalog;
use super::format::record::{BadRecord, DeviceId, FIXED_HEAD, NewRecord, Parts, StoredRecord};
use super::lane::Lane;
use super::limits::{
    CLIENT_HIGH_WATER, CLIENT_RESERVE, MAX_GROUP, MAX_GROUP_RECORDS, MAX_MOVE_RECORDS, MAX_RECORD,
    SLACK_BYTES, VOLUME_HIGH_WATER,
};
use super::memo::Memo;
use super::segments::State;
use super::shared::{Append, Class, Counters, DiskError, IndexChange, Item, Request, Shared};
use super::tallies::Tallies;
use super::{Durability, Location, Lsn};
use crate::index::{Index, IndexError};
use crate::io::BLOCK;

/// Handle to one open disk; clones are cheap and share everything.
#[derive(Clone)]
pub struct DiskHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) cache: Arc<Cache>,
    /// Reads go this way, if there is one.
    pub(super) lane: Option<Arc<Lane>>,
}

impl std::fmt::Debug for DiskHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskHandle").field("device", &self.shared.device).finish_non_exhaustive()
    }
}

/// Space on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes in all segments.
    pub capacity: u64,
    /// Bytes of needed records.
    pub live: u64,
    /// Bytes in free segments.
    pub free: u64,
    /// Bytes of one segment.
    pub segment_size: u64,
    /// Segments by state: free, open, sealed, retired.
    pub segments: [usize; 4],
}

/// Keeps segments from being recycled while it lives.
#[derive(Debug, Clone)]
pub struct Pins(#[expect(dead_code, reason = "its drop unpins")] Arc<PinSet>);

struct PinSet {
    shared: Arc<Shared>,
    segments: Vec<u32>,
}

impl std::fmt::Debug for PinSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.segments).finish()
    }
}

impl Drop for PinSet {
    fn drop(&mut self) {
        for segment in &self.segments {
            self.shared.pins[*segment as usize].fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Room for one group in a disk's queue.
#[derive(Debug)]
pub struct Room {
    class: Class,
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl DiskHandle {
    /// Identity of the device.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        self.shared.device
    }

    /// The disk's index.
    #[must_use]
    pub fn index(&self) -> &dyn Index {
        self.shared.index.as_ref()
    }

    /// What readers of the index remember of it.
    pub(crate) fn memo(&self) -> &Memo {
        &self.shared.memo
    }

    /// What records mean on this disk.
    #[must_use]
    pub fn catalog(&self) -> &dyn Catalog {
        self.shared.catalog.as_ref()
    }

    /// Sums that the catalog keeps.
    #[must_use]
    pub fn tallies(&self) -> &Tallies {
        &self.shared.tallies
    }

    /// Counters of the disk.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Largest record sequence (version time) that was on the disk when it was opened.
    #[must_use]
    pub fn max_sequence(&self) -> u64 {
        self.shared.max_sequence
    }

    /// Up to here the log is durable: the LSN of its last record that is, those of earlier openings included. It never falls, so who finds a
    /// smaller one at a later opening has an older copy of the device, or one that lost what it had promised.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// How many times the device has been opened, this time included.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.shared.epoch
    }

    /// Why the disk is out, if it is.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<str>> {
        self.shared.failed.get().cloned()
    }

    /// Space.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let segments = self.shared.segments();
        let retired = segments.count(State::Retired) + segments.count(State::Freeing);
        let free = segments.count(State::Free);
        Usage {
            capacity: self.shared.layout.usable(),
            live: segments.live(),
            free: free as u64 * self.shared.layout.segment_size,
            segment_size: self.shared.layout.segment_size,
            segments: [free, segments.count(State::Open), segments.count(State::Sealed), retired],
        }
    }

    /// Builds a record for this device.
    #[must_use]
    pub fn record(&self, parts: Parts<'_>) -> NewRecord {
        NewRecord::new(self.shared.device, parts)
    }

    /// Above the mark at which client writes are refused; so they are where the index has little room.
    #[must_use]
    pub fn above_high_water(&self) -> bool {
        let live = self.shared.live.load(Ordering::Relaxed);
        live > self.shared.layout.usable() / 100 * CLIENT_HIGH_WATER || self.shared.index_room.is_tight()
    }

    /// Bytes that are free where the index lies, as last looked at; `None`: it lies on no file system.
    #[must_use]
    pub fn index_free(&self) -> Option<u64> {
        self.shared.index_room.free()
    }

    /// Above the mark from which on no volume is placed here, nor the whole of one copied here.
    #[must_use]
    pub fn above_volume_mark(&self) -> bool {
        self.shared.live.load(Ordering::Relaxed) > self.shared.layout.usable() / 100 * VOLUME_HIGH_WATER
    }

    /// Appends a group (one batch, all or nothing) and waits as long as `durability` says. The group is written even
    /// when the caller stops waiting after submission.
    pub async fn append(
        &self,
        group: Vec<NewRecord>,
        durability: Durability,
        class: Class,
    ) -> Result<Lsn, DiskError> {
        let items = group.into_iter().map(|record| Item { record, from: None }).collect();
        self.append_items(items, durability, class).await
    }

    pub(crate) async fn append_items(
        &self,
        items: Vec<Item>,
        durability: Durability,
        class: Class,
    ) -> Result<Lsn, DiskError> {
        self.submit_items(items, durability, class).await?.done().await
    }

    async fn submit_items(
        &self,
        items: Vec<Item>,
        durability: Durability,
        class: Class,
    ) -> Result<Submitted, DiskError> {
        if class == Class::Client && self.above_high_water() {
            return Err(DiskError::NoSpace);
        }
        let (reply, answer) = Answer::new();
        let mut append = Append { items, durability, class, reply: Some(reply), permit: None };
        let bytes = append.most_bytes();
        let most = if class == Class::Cleaner { MAX_MOVE_RECORDS } else { MAX_GROUP_RECORDS };
        assert!(append.items.len() <= most && bytes <= MAX_GROUP, "group over its limit");
        append.permit = self.shared.admission.write(class, bytes).await;
        self.shared.send(Request::Append(append))?;
        Ok(answer.submitted(&self.shared))
    }

    /// As [`DiskHandle::append`], but waits only until the group has its place in the queue. Groups of one class that are
    /// submitted one after another lie in the log in that order.
    pub async fn submit(
        &self,
        group: Vec<NewRecord>,
        durability: Durability,
        class: Class,
    ) -> Result<Submitted, DiskError> {
        let items = group.into_iter().map(|record| Item { record, from: None }).collect();
        self.submit_items(items, durability, class).await
    }

    /// Waits for room in the queue for one record that adds so many bytes at most, so that it can be submitted later without
    /// waiting.
    pub async fn room(&self, bytes: usize, class: Class) -> Room {
        Room { class, bytes, permit: self.shared.admission.write(class, bytes).await }
    }

    /// Submits a record for which there is [`DiskHandle::room`]: it has its place in the queue when this returns.
    pub fn submit_now(
        &self,
        record: NewRecord,
        durability: Durability,
        room: Room,
    ) -> Result<Submitted, DiskError> {
        let (reply, answer) = Answer::new();
        let Room { class, bytes, permit } = room;
        let items = vec![Item { record, from: None }];
        let append = Append { items, durability, class, reply: Some(reply), permit };
        assert!(append.most_bytes() <= bytes, "a record larger than its room");
        self.shared.send(Request::Append(append))?;
        Ok(answer.submitted(&self.shared))
    }

    /// Has all be written and flushed at once that was submitted as [`Durability::Lazy`] before.
    pub fn hasten(&self) {
        // Of a disk that is gone whoever waits is told so.
        let _gone = self.shared.send(Request::Hasten);
    }

    /// Whether free segments hold all that the queues can hold, so that what is submitted now will not be told that the disk
    /// is full.
    #[must_use]
    pub fn has_slack(&self) -> bool {
        let free = self.shared.free.load(Ordering::Relaxed);
        free > CLIENT_RESERVE as u64 + SLACK_BYTES.div_ceil(self.shared.layout.segment_size)
    }

    /// Submits a group without waiting for anything, from where waiting is impossible (a `Drop`). Not counted against
    /// the queue: for small records only.
    pub fn submit_detached(&self, group: Vec<NewRecord>, class: Class) {
        let items = group.into_iter().map(|record| Item { record, from: None }).collect();
        let durability = Durability::Appended;
        let append = Append { items, durability, class, reply: None, permit: None };
        assert!(append.most_bytes() <= 64 << 10, "detached group over its limit");
        // A disk that is gone aborts the upload by itself at its next opening.
        let _gone = self.shared.send(Request::Append(append));
    }

    /// Runs `find` and pins the segments of what it found, so that they are not recycled while the pins live.
    pub fn lookup<T>(
        &self,
        find: impl Fn(&dyn Index) -> Result<Option<(T, Vec<Location>)>, IndexError>,
    ) -> Result<Option<(T, Pins)>, DiskError> {
        loop {
            let before = self.shared.frees.load(Ordering::SeqCst);
            let Some((found, places)) = find(self.index())? else { return Ok(None) };
            let mut segments: Vec<u32> = places.iter().map(|at| at.segment).collect();
            segments.sort_unstable();
            segments.dedup();
            let pins = self.pin(segments);
            if self.shared.frees.load(Ordering::SeqCst) == before {
                return Ok(Some((found, pins)));
            }
        }
    }

    /// Segments that were opened before this one get no more records, and what they have is in the index.
    pub(crate) fn settled(&self) -> u64 {
        let segments = self.shared.segments();
        let open = segments.iter().filter(|(_, segment)| segment.state == State::Open);
        let newest = || segments.iter().map(|(_, segment)| segment.seq).max().unwrap_or(0);
        open.map(|(_, segment)| segment.seq).min().unwrap_or_else(|| newest() + 1)
    }

    /// When a segment was opened: counted by openings. `None`: there is no such segment.
    pub(crate) fn opened(&self, segment: u32) -> Option<u64> {
        Some(self.shared.seqs.get(segment as usize)?.load(Ordering::Acquire))
    }

    /// Keeps segments from being recycled. A number beyond the disk (a damaged index row) pins nothing.
    pub(crate) fn pin(&self, mut segments: Vec<u32>) -> Pins {
        segments.retain(|segment| *segment < self.shared.layout.segments);
        for segment in &segments {
            self.shared.pins[*segment as usize].fetch_add(1, Ordering::SeqCst);
        }
        Pins(Arc::new(PinSet { shared: self.shared.clone(), segments }))
    }

    /// Whether a record can lie there at all: what the index says is not believed blindly.
    pub(crate) fn check_place(&self, at: Location) -> Result<(), DiskError> {
        let end = u64::from(at.offset) + u64::from(at.len);
        let possible = at.segment < self.shared.layout.segments
            && end <= self.shared.layout.segment_size
            && (FIXED_HEAD..=MAX_RECORD).contains(&(at.len as usize));
        if possible { Ok(()) } else { Err(DiskError::Corrupt { at, bad: BadRecord::Field("place") }) }
    }

    /// The record at a place that [`DiskHandle::lookup`] found, verified. Keep its pins until this returns.
    pub async fn read(&self, at: Location) -> Result<StoredRecord, DiskError> {
        self.check_place(at)?;
        let seq = self.shared.seqs[at.segment as usize].load(Ordering::Acquire);
        if let Some(hit) = self.cache.get(seq, at) {
            Counters::add(&self.shared.counters.cache_hits, 1);
            return Ok(hit);
        }
        let record = self.read_uncached(at).await?;
        self.cache.put(seq, at, &record);
        Ok(record)
    }

    /// As [`DiskHandle::read`], always from the device: for audits.
    pub async fn read_uncached(&self, at: Location) -> Result<StoredRecord, DiskError> {
        self.check_place(at)?;
        let start = self.shared.layout.segment_start(at.segment) + u64::from(at.offset);
        let lead = usize::try_from(start % BLOCK as u64).unwrap_or(0);
        let len = (lead + at.len as usize).next_multiple_of(BLOCK);
        let raw = self
            .read_raw(start - lead as u64, len)
            .await?
            .map_err(|e| DiskError::Io { at, kind: e.kind() })?;
        // Cut short, it does not verify.
        let bytes = raw.slice(lead.min(raw.len())..raw.len().min(lead + at.len as usize));
        // A small slice would keep its whole buffer alive in the cache.
        let bytes = if bytes.len() * 2 < raw.len() { Bytes::copy_from_slice(&bytes) } else { bytes };
        self.verified(at, bytes)
    }

    /// What was read at a place, verified.
    pub(super) fn verified(&self, at: Location, bytes: Bytes) -> Result<StoredRecord, DiskError> {
        StoredRecord::verify(self.shared.device, bytes).map_err(|bad| {
            self.count_corrupt();
            DiskError::Corrupt { at, bad }
        })
    }

    /// Bytes of a record from `skip` on, unverified: the caller knows their checksums.
    pub(crate) async fn read_within(
        &self,
        at: Location,
        skip: usize,
        len: usize,
    ) -> Result<Bytes, DiskError> {
        let start = self.shared.layout.segment_start(at.segment) + u64::from(at.offset) + skip as u64;
        let lead = usize::try_from(start % BLOCK as u64).unwrap_or(0);
        let whole = (lead + len).next_multiple_of(BLOCK);
        let raw = self.read_raw(start - lead as u64, whole).await?;
        let raw = raw.map_err(|e| DiskError::Io { at, kind: e.kind() })?;
        if raw.len() < lead + len {
            return Err(DiskError::Corrupt { at, bad: BadRecord::Truncated });
        }
        Ok(raw.slice(lead..lead + len))
    }

    /// Takes note of something that background work may make better, once so much weight has come together.
    pub(crate) fn give_hint(&self, about: &[u8], weight: u32, wanted: u32) {
        self.shared.hints().give(about, weight, wanted);
    }

    /// The oldest hint that is ready.
    pub(crate) fn take_hint(&self) -> Option<Box<[u8]>> {
        self.shared.hints().take()
    }

    /// Counts bytes that were moved for their order.
    pub(crate) fn count_ordered(&self, bytes: u64) {
        Counters::add(&self.shared.counters.ordered_bytes, bytes);
    }

    /// Counts a read or a write of a volume's client, which background work makes room for.
    pub fn count_call(&self) {
        Counters::add(&self.shared.counters.block_calls, 1);
    }

    /// Counts bytes that were not what they should be.
    pub(crate) fn count_corrupt(&self) {
        Counters::add(&self.shared.counters.corrupt, 1);
    }

    /// Bytes of the device, unverified; the outer error is the disk's, the inner the read's.
    pub(crate) async fn read_raw(
        &self,
        offset: u64,
        len: usize,
    ) -> Result<std::io::Result<Bytes>, DiskError> {
        if let Some(lane) = &self.lane {
            return lane.read(offset, len).await;
        }
        let permit = self.shared.admission.read(len).await;
        let (reply, answer) = oneshot::channel();
        self.shared.send(Request::Read { offset, len, reply, permit })?;
        answer.await.map_err(|_| self.shared.gone())
    }

    /// Writes a record anew in the place of one that cannot be read; nothing changes when the index points elsewhere by then.
    pub(crate) async fn replace(&self, at: Location, record: NewRecord) -> Result<Lsn, DiskError> {
        self.append_items(vec![Item { record, from: Some(at) }], Durability::Durable, Class::Cleaner).await
    }

    /// Whether what the disk holds may be believed: said by its replicator once it has judged it.
    #[must_use]
    pub fn believed(&self) -> bool {
        self.shared.believed.load(Ordering::Acquire)
    }

    /// Says whether what the disk holds may be believed. False when it is opened.
    pub fn believe(&self, believed: bool) {
        self.shared.believed.store(believed, Ordering::Release);
    }

    /// Runs an index-only change between two batches. It may be lost in a crash: it must be safe to repeat.
    pub async fn submit_prune(&self, change: IndexChange) -> Result<(), DiskError> {
        let (reply, answer) = oneshot::channel();
        self.shared.send(Request::Change { change, reply })?;
        answer.await.unwrap_or_else(|_| Err(self.shared.gone()))
    }

    /// Tells the disk that dead records of a segment were dealt with; true when the segment is retired by it.
    pub(crate) async fn forget(
        &self,
        segment: u32,
        seq: u64,
        upto: u32,
        last: bool,
        heads: Vec<Vec<u8>>,
    ) -> Result<bool, DiskError> {
        let (reply, answer) = oneshot::channel();
        self.shared.send(Request::Forget { segment, seq, upto, last, heads, reply })?;
        answer.await.unwrap_or_else(|_| Err(self.shared.gone()))
    }

    /// Makes the index durable now; bounds the replay of the next opening.
    pub async fn checkpoint(&self) -> Result<(), DiskError> {
        let (reply, answer) = oneshot::channel();
        self.shared.send(Request::Checkpoint { reply })?;
        answer.await.unwrap_or_else(|_| Err(self.shared.gone()))
    }

    /// Writes what is queued, checkpoints, marks the device clean and ends its thread.
    pub async fn close(&self) -> Result<(), DiskError> {
        let (reply, answer) = oneshot::channel();
        self.shared.send(Request::Close { reply })?;
        answer.await.unwrap_or_else(|_| Err(self.shared.gone()))
    }
}
