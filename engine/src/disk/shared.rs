//! What the disk's thread and its callers share.
//!
//! Invariant: a segment pinned before the last look-up that named it is not recycled until it is unpinned.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::answer::{Announcer, Answer, Waiting};
use super::catalog::{Catalog, Tx};
use super::format::record::{BadRecord, DeviceId, NewRecord};
use super::format::superblock::Layout;
use super::hints::Hints;
use super::limits::{ALIGN_FROM, CLEANER_QUEUE_BYTES, DELETE_QUEUE_BYTES, QUEUE_BYTES, READ_BYTES};
use super::memo::Memo;
use super::room::IndexRoom;
use super::segments::{SegmentMap, State};
use super::tallies::Tallies;
use super::{Durability, Location, Lsn};
use crate::index::{Index, IndexError};
use crate::io::{AlignedBuf, Lanes, Waker};

/// Why the disk did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DiskError {
    /// The disk was taken out after an error; nothing is served until an operator looked at it.
    #[error("disk is out: {0}")]
    Failed(Arc<str>),
    /// Above the high-water mark, and cleaning gives nothing.
    #[error("disk is full")]
    NoSpace,
    /// Bytes at a place are not the record that the index says.
    #[error("record at segment {} offset {} is corrupt: {bad}", at.segment, at.offset)]
    Corrupt {
        /// Where.
        at: Location,
        /// How.
        bad: BadRecord,
    },
    /// A read failed; the disk is still in.
    #[error("read at segment {} offset {}: {kind}", at.segment, at.offset)]
    Io {
        /// Where.
        at: Location,
        /// What the device said.
        kind: std::io::ErrorKind,
    },
    /// The index could not be read.
    #[error(transparent)]
    Index(#[from] Arc<IndexError>),
    /// The disk was closed.
    #[error("disk is closed")]
    Closed,
}

impl From<IndexError> for DiskError {
    fn from(e: IndexError) -> Self {
        Self::Index(Arc::new(e))
    }
}

/// Whose write it is: decides what happens when space is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// New data of clients: refused above the high-water mark.
    Client,
    /// Tombstones and what else frees space: always taken.
    Delete,
    /// Records on the move.
    Cleaner,
}

/// One record to append, and where it was copied from if the cleaner moves it.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) record: NewRecord,
    pub(crate) from: Option<Location>,
}

impl Item {
    /// Most bytes it can add to a batch.
    pub(crate) fn most_bytes(&self) -> usize {
        let padding = if self.record.data().len() >= ALIGN_FROM { crate::io::BLOCK } else { 8 };
        self.record.stored_len() + padding + 32
    }
}

/// A group to append.
pub(crate) struct Append {
    pub(crate) items: Vec<Item>,
    pub(crate) durability: Durability,
    pub(crate) class: Class,
    pub(crate) reply: Option<Answer>,
    /// Held until the group is written and answered: that bounds the queue.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

impl Append {
    /// Most bytes it can add to a batch: records, their alignment, their descriptors.
    pub(crate) fn most_bytes(&self) -> usize {
        self.items.iter().map(Item::most_bytes).sum()
    }

    /// Somebody waits for it now.
    pub(crate) fn hasten(&mut self) {
        if self.durability == Durability::Lazy {
            self.durability = Durability::Durable;
        }
    }

    /// It is durable; its answer comes when the index has it.
    pub(crate) fn durable(&self) {
        self.reply.iter().for_each(Answer::durable);
    }

    pub(crate) fn announcer(&self) -> Option<Announcer> {
        self.reply.as_ref().filter(|_| self.durability == Durability::Durable).map(Answer::announcer)
    }

    pub(crate) fn answer(self, result: Result<Lsn, DiskError>) {
        let mut waiting = Waiting::default();
        self.tell(result, &mut waiting);
        waiting.wake();
    }

    /// As [`Append::answer`], one of several: who waits is woken when all are told.
    pub(crate) fn tell(self, result: Result<Lsn, DiskError>, waiting: &mut Waiting) {
        if let Some(reply) = self.reply {
            reply.tell(result, waiting);
        }
    }
}

/// An index-only change, run between batches.
pub(crate) type IndexChange = Box<dyn FnOnce(&mut Tx<'_>) -> Result<(), IndexError> + Send>;

/// What callers ask of the disk's thread.
pub(crate) enum Request {
    Append(Append),
    /// Raw bytes of the device: offset and length are multiples of the block.
    Read {
        offset: u64,
        len: usize,
        reply: oneshot::Sender<std::io::Result<Bytes>>,
        permit: Option<OwnedSemaphorePermit>,
    },
    Change {
        change: IndexChange,
        reply: oneshot::Sender<Result<(), DiskError>>,
    },
    /// The cleaner has dealt with the records of a segment up to `upto`; `heads` are those that were dead.
    Forget {
        segment: u32,
        seq: u64,
        upto: u32,
        last: bool,
        heads: Vec<Vec<u8>>,
        reply: oneshot::Sender<Result<bool, DiskError>>,
    },
    /// Write a checkpoint now; answered when it is durable.
    Checkpoint {
        reply: oneshot::Sender<Result<(), DiskError>>,
    },
    /// Somebody waits now for what was submitted as [`Durability::Lazy`].
    Hasten,
    /// The index finished the checkpoint that [`super::core::Core::take_checkpoint`] handed out.
    Checkpointed(Result<(), IndexError>),
    Close {
        reply: oneshot::Sender<Result<(), DiskError>>,
    },
}

/// Counters for operators, tests and the bench. All only grow, but for the gauges.
#[derive(Debug, Default)]
pub struct Counters {
    /// Batches written.
    pub batches: AtomicU64,
    /// Of these, formed while the one before was out, to be begun by the device itself.
    pub behind: AtomicU64,
    /// Flushes of the device.
    pub flushes: AtomicU64,
    /// Records appended.
    pub records: AtomicU64,
    /// Bytes written to the log, padding included.
    pub written_bytes: AtomicU64,
    /// Bytes of records that clients appended.
    pub client_bytes: AtomicU64,
    /// Bytes of records that the cleaner moved.
    pub moved_bytes: AtomicU64,
    /// Records that the cleaner moved in parts, because most of their blocks were overwritten.
    pub cut_records: AtomicU64,
    /// Bytes that were moved for their order alone.
    pub ordered_bytes: AtomicU64,
    /// Reads and writes of clients of volumes.
    pub block_calls: AtomicU64,
    /// Reads from the device.
    pub reads: AtomicU64,
    /// Records served from the cache.
    pub cache_hits: AtomicU64,
    /// Records that failed verification.
    pub corrupt: AtomicU64,
    /// Checkpoints completed.
    pub checkpoints: AtomicU64,
    /// Segments freed.
    pub freed: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// Shared state of one disk.
pub(crate) struct Shared {
    pub(crate) device: DeviceId,
    pub(crate) layout: Layout,
    pub(crate) index: Arc<dyn Index>,
    pub(crate) memo: Arc<Memo>,
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) requests: Sender<Request>,
    pub(crate) waker: Waker,
    /// What lanes are made from, where the disk's body has them.
    pub(crate) lanes: Option<Lanes>,
    pub(crate) nap: Nap,
    pub(crate) admission: Admission,
    pub(crate) segments: Mutex<SegmentMap>,
    pub(crate) tallies: Tallies,
    pub(crate) hints: Mutex<Hints>,
    /// What it holds was judged since it was opened, and is believed.
    pub(crate) believed: AtomicBool,
    /// Sequence of each segment's present use.
    pub(crate) seqs: Box<[AtomicU64]>,
    pub(crate) pins: Box<[AtomicU64]>,
    /// Counted up before a segment's pins are looked at for freeing.
    pub(crate) frees: AtomicU64,
    pub(crate) counters: Counters,
    pub(crate) live: AtomicU64,
    /// Free segments.
    pub(crate) free: AtomicU64,
    pub(crate) index_room: IndexRoom,
    pub(crate) failed: OnceLock<Arc<str>>,
    pub(crate) max_sequence: u64,
    /// LSN up to which the log is durable.
    pub(crate) durable: AtomicU64,
    pub(crate) epoch: u64,
}

/// Whether the disk's thread need not be woken for an append: it has writes or a flush out, could start nothing before they
/// end, and looks at its queue then. Or nothing is queued but what is lazy: for more of that it need not be woken,
/// until the queue is long. Or what is queued is too little for a batch behind the one that is out.
///
/// Invariant: no append is overlooked. The thread ends its nap before it looks at the queue, an append is queued before the
/// nap is looked at, and a fence stands between the two on either side: one of them sees the other.
#[derive(Debug, Default)]
pub(crate) struct Nap {
    depth: AtomicU8,
    /// Bytes that may come while it is not deep.
    room: AtomicUsize,
}

const AWAKE: u8 = 0;
/// Until something comes that is not lazy, or much that is.
const LIGHT: u8 = 1;
const DEEP: u8 = 2;
/// Until much comes, or what is out ends.
const UNTIL: u8 = 3;

impl Nap {
    /// Called with something in flight whose completion ends the nap.
    pub(crate) fn begin(&self) {
        self.depth.store(DEEP, Ordering::Relaxed);
    }

    /// Called where time ends the nap, or what is not lazy, or so many bytes that are.
    pub(crate) fn begin_light(&self, room: usize) {
        self.room.store(room, Ordering::Relaxed);
        self.depth.store(LIGHT, Ordering::Release);
    }

    /// Called with something in flight whose completion ends the nap, where so many bytes do too.
    pub(crate) fn begin_until(&self, room: usize) {
        self.room.store(room, Ordering::Relaxed);
        self.depth.store(UNTIL, Ordering::Release);
    }

    /// Called before a look at the queue.
    pub(crate) fn end(&self) {
        self.depth.store(AWAKE, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Whether it goes on. Called behind what was queued.
    fn outlasts(&self, append: Durability, bytes: usize) -> bool {
        fence(Ordering::SeqCst);
        match self.depth.load(Ordering::Acquire) {
            DEEP => true,
            LIGHT => append == Durability::Lazy && self.takes(bytes),
            UNTIL => self.takes(bytes),
            _ => false,
        }
    }

    /// Whether there is room for so many bytes more.
    fn takes(&self, bytes: usize) -> bool {
        let less = |room: usize| Some(room.saturating_sub(bytes));
        let before = self.room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        before.is_ok_and(|room| room > bytes)
    }
}

/// Small reads are copied out so that their buffer can be used again at once; large ones are handed over.
pub(crate) fn bytes_of(buf: AlignedBuf) -> Bytes {
    const COPY_UP_TO: usize = 64 << 10;
    if buf.len() <= COPY_UP_TO { Bytes::copy_from_slice(&buf) } else { Bytes::from_owner(buf) }
}

/// Bytes that may be queued, by class, so that clients waiting for space never keep deletes or the cleaner out.
pub(crate) struct Admission {
    client: Arc<Semaphore>,
    delete: Arc<Semaphore>,
    cleaner: Arc<Semaphore>,
    reads: Arc<Semaphore>,
}

impl Admission {
    pub(crate) fn new() -> Self {
        let bytes = |n| Arc::new(Semaphore::new(n));
        Self {
            client: bytes(QUEUE_BYTES),
            delete: bytes(DELETE_QUEUE_BYTES),
            cleaner: bytes(CLEANER_QUEUE_BYTES),
            reads: bytes(READ_BYTES),
        }
    }

    /// Waits for room for a group.
    pub(crate) async fn write(&self, class: Class, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let (semaphore, limit) = match class {
            Class::Client => (&self.client, QUEUE_BYTES),
            Class::Delete => (&self.delete, DELETE_QUEUE_BYTES),
            Class::Cleaner => (&self.cleaner, CLEANER_QUEUE_BYTES),
        };
        Self::acquire(semaphore, bytes, limit).await
    }

    /// Waits for room for a read.
    pub(crate) async fn read(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Self::acquire(&self.reads, bytes, READ_BYTES).await
    }

    async fn acquire(semaphore: &Arc<Semaphore>, bytes: usize, limit: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.clamp(1, limit)).unwrap_or(u32::MAX);
        semaphore.clone().acquire_many_owned(permits).await.ok()
    }
}

impl Shared {
    /// The segment map. A panic while it was held is our bug and has already taken the disk's thread down.
    pub(crate) fn segments(&self) -> MutexGuard<'_, SegmentMap> {
        self.segments.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What readers noticed.
    pub(crate) fn hints(&self) -> MutexGuard<'_, Hints> {
        self.hints.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes note of how many segments are free: called where that changes.
    pub(crate) fn count_free(&self, segments: &SegmentMap) {
        self.free.store(segments.count(State::Free) as u64, Ordering::Relaxed);
    }

    /// Looks how much room the index has. May wait for its file system.
    pub(crate) fn look_for_room(&self) {
        self.index_room.look(self.device, self.index.room());
    }

    pub(crate) fn pinned(&self, segment: u32) -> bool {
        self.pins[segment as usize].load(Ordering::SeqCst) > 0
    }

    pub(crate) fn send(&self, request: Request) -> Result<(), DiskError> {
        let append = match &request {
            Request::Append(append) => Some((append.durability, append.most_bytes())),
            _ => None,
        };
        self.requests.send(request).map_err(|_| self.gone())?;
        if !append.is_some_and(|(durability, bytes)| self.nap.outlasts(durability, bytes)) {
            self.waker.wake();
        }
        Ok(())
    }

    /// Why nobody answers.
    pub(crate) fn gone(&self) -> DiskError {
        self.failed.get().map_or(DiskError::Closed, |reason| DiskError::Failed(reason.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The disk's thread slept for the whole five milliseconds beside a queue that had long been worth a batch: a device that writes two
    /// mebibytes in one of them was idle most of the time.
    #[test]
    fn a_light_nap_ends_with_a_long_queue_or_with_who_waits() {
        let nap = Nap::default();
        assert!(!nap.outlasts(Durability::Lazy, 1), "it is awake");
        nap.begin_light(100);
        assert!(nap.outlasts(Durability::Lazy, 60) && !nap.outlasts(Durability::Durable, 1));
        assert!(!nap.outlasts(Durability::Lazy, 40), "now it is long");
        assert!(!nap.outlasts(Durability::Lazy, 1), "and stays so until somebody looked");
        nap.end();
        nap.begin_light(100);
        assert!(nap.outlasts(Durability::Lazy, 99) && !nap.outlasts(Durability::Lazy, 2));
        nap.begin();
        assert!(nap.outlasts(Durability::Durable, 1 << 30), "what is out wakes it");
        nap.begin_until(100);
        assert!(nap.outlasts(Durability::Durable, 99) && !nap.outlasts(Durability::Lazy, 1), "so does much");
    }
}
