//! The disk's own state, turned by one thread (or by a simulation): requests in, operations and answers out.
//!
//! Invariant: at most one batch is being written and at most one flush is out, side by side; a flush covers only
//! batches whose write had ended when it was submitted. One more batch may stand behind these ([`super::pipeline`]).
//! Invariant: what arrives while a flush is out forms the next batch (group commit without timers). It is written beside
//! that flush only when nobody waits for it to be durable. What is [`Durability::Lazy`] waits in the queue for what others
//! write, no longer than [`LAZY_FLUSH`], and is flushed with that or as late again.
//! Invariant: a record is applied to the index only when it is durable, in LSN order.
//! Invariant: after a failed write, flush or index change nothing more is written or acknowledged (fail-stop).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::apply::Prepared;
use super::batching::{Head, Written};
use super::limits::{COMMIT_BYTES, FEW_RECORDS, LONG_QUEUE_BYTES, UNFLUSHED_BYTES};
use super::pipeline::Behind;
use super::segments::Position;
use super::shared::{Append, Class, Counters, DiskError, Request, Shared, bytes_of};
use super::upkeep::{CheckpointState, Freeing};
use super::{Durability, Lsn};
use crate::io::{Completion, Disk, Gather, Op, Token, Wait};

/// How long what nobody waits for stays in the queue, and written bytes unflushed: more of the same body usually follows.
pub(crate) const LAZY_FLUSH: Duration = Duration::from_millis(5);

/// What an operation in flight was for.
pub(crate) enum Purpose {
    /// Part of the batch being written.
    Batch,
    /// Headers of segments being freed.
    Upkeep,
    /// The segment table: a summary, nothing waits for it.
    Table,
    /// The flush.
    Flush,
    /// The batch being written, whole and with its flush.
    Commit,
    /// A caller's read.
    Read { reply: oneshot::Sender<std::io::Result<Bytes>>, _permit: Option<OwnedSemaphorePermit> },
}

/// The batch being written, and how many of its writes are still out.
pub(crate) struct Writing {
    pub(crate) batch: Written,
    pub(crate) left: usize,
    /// In one request with its flush.
    pub(crate) commits: bool,
}

/// The flush that is out: everything up to `upto` will be durable; `with_upkeep`: freed headers too.
pub(crate) struct Flushing {
    upto: Lsn,
    with_upkeep: bool,
}

/// The core of one disk.
pub(crate) struct Core {
    pub(crate) disk: Box<dyn Disk>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) requests: Receiver<Request>,
    pub(crate) heads: [Option<Head>; 2],
    pub(crate) position: Position,
    pub(crate) next_lsn: Lsn,
    /// Everything up to here is written.
    pub(crate) written_lsn: Lsn,
    pub(crate) durable_lsn: Lsn,
    pub(crate) clients: VecDeque<Append>,
    pub(crate) movers: VecDeque<Append>,
    pub(crate) mover_turn: bool,
    /// When what nobody waits for is written by itself.
    pub(crate) alone_at: Duration,
    /// The segment that the batch being formed found full.
    pub(crate) sealed: Option<u32>,
    pub(crate) writing: Option<Writing>,
    pub(crate) flushing: Option<Flushing>,
    pub(crate) behind: Option<Behind>,
    /// Written, in the order of the log, not yet applied.
    pub(crate) unapplied: VecDeque<Written>,
    /// What the next one changes.
    pub(crate) prepared: Option<Prepared>,
    /// Bytes written that no flush, past or out, covers.
    pub(crate) unflushed: u64,
    /// When bytes that nobody waits for are flushed.
    pub(crate) flush_at: Duration,
    pub(crate) ops: HashMap<Token, Purpose>,
    pub(crate) next_token: Token,
    pub(crate) checkpoint: CheckpointState,
    pub(crate) freeing: Freeing,
    pub(crate) superblock: super::format::superblock::Superblock,
    pub(crate) closing: Option<oneshot::Sender<Result<(), DiskError>>>,
    pub(crate) farewell: Option<Farewell>,
    pub(crate) completions: Vec<Completion>,
    pub(crate) now: Duration,
}

/// The answer to `close`: to be given when the core is gone, and with it its hold on the device and the index.
pub(crate) struct Farewell {
    reply: oneshot::Sender<Result<(), DiskError>>,
    result: Result<(), DiskError>,
}

impl Farewell {
    pub(crate) fn say(self) {
        let _gone = self.reply.send(self.result);
    }
}

/// Whether the thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Continue,
    Closed,
}

impl Core {
    /// One round: take requests, start what can start, wait at most `wait` for the device, act on what it answered.
    pub(crate) fn turn(&mut self, now: Duration, wait: Wait) -> Turn {
        self.now = now;
        self.shared.nap.end();
        let connected = self.take_requests();
        self.start(now);
        let mut done = std::mem::take(&mut self.completions);
        let busy = !done.is_empty() || self.checkpoint.waits_for_driver() || self.prepare_next();
        let wait = if busy { Wait::Never } else { wait };
        if let Some(room) = self.room_behind() {
            self.shared.nap.begin_until(room);
        } else if self.writing.is_some() || self.holds_back() {
            self.shared.nap.begin();
        } else if !self.clients.is_empty() && self.waits_for_company() {
            self.shared.nap.begin_light(self.room_in_queue(LONG_QUEUE_BYTES));
        }
        self.disk.reap(wait, &mut done);
        for completion in done.drain(..) {
            self.complete(completion);
        }
        self.completions.append(&mut done);
        // What came meanwhile is the next batch: to be on its way before what has ended is applied.
        let connected = self.take_requests() && connected;
        self.start(now);
        if self.finished() {
            self.finish()
        } else if connected {
            Turn::Continue
        } else {
            self.orphaned()
        }
    }

    /// Nothing to do until a request, a completion or a timer comes.
    #[must_use]
    pub(crate) fn idle(&self) -> bool {
        self.ops.is_empty()
            && self.log_is_quiet()
            && self.unapplied.is_empty()
            && !self.checkpoint.is_running()
    }

    /// No batch is being written or flushed.
    pub(crate) fn log_is_quiet(&self) -> bool {
        self.writing.is_none() && self.flushing.is_none()
    }

    pub(crate) fn failed(&self) -> bool {
        self.shared.failed.get().is_some()
    }

    /// Takes what is queued; whether anybody is left who could ask for more.
    fn take_requests(&mut self) -> bool {
        // The sender is shared as well, and this core has a share: only that it is the last one says that every handle is gone. Looked at
        // first, so that what they asked for before is taken.
        let connected = Arc::strong_count(&self.shared) > 1;
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        loop {
            match self.requests.try_recv() {
                Ok(request) => self.take(request),
                Err(TryRecvError::Empty) => return connected,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn take(&mut self, request: Request) {
        if self.failed() {
            return self.refuse(request);
        }
        match request {
            Request::Append(append) if append.class == Class::Cleaner => self.movers.push_back(append),
            Request::Append(append) => {
                if self.clients.is_empty() {
                    self.alone_at = self.now + LAZY_FLUSH;
                }
                self.clients.push_back(append);
            }
            Request::Read { offset, len, reply, permit } => {
                let buf = self.disk.buffer(len);
                assert!(buf.len() == len, "a buffer has the length asked for");
                let token = self.token(Purpose::Read { reply, _permit: permit });
                Counters::add(&self.shared.counters.reads, 1);
                self.disk.submit(Op::Read { token, offset, buf });
            }
            Request::Change { change, reply } => {
                let result = self.run_change(change);
                let _gone = reply.send(result);
            }
            Request::Forget { segment, seq, upto, last, heads, reply } => {
                let result = self.run_forget(segment, seq, upto, last, &heads);
                let _gone = reply.send(result);
            }
            Request::Checkpoint { reply } => self.checkpoint.waiting.push(reply),
            Request::Hasten => self.hasten(),
            Request::Checkpointed(result) => self.checkpointed(result),
            Request::Close { reply } => self.closing = Some(reply),
        }
    }

    /// Answers a request on a disk that is out. Reads are refused as well: the disk's word is no longer good.
    fn refuse(&self, request: Request) {
        let gone = self.shared.gone();
        match request {
            Request::Append(append) => append.answer(Err(gone)),
            Request::Read { reply, .. } => drop(reply),
            Request::Change { reply, .. } | Request::Checkpoint { reply } | Request::Close { reply } => {
                let _gone = reply.send(Err(gone));
            }
            Request::Forget { reply, .. } => {
                let _gone = reply.send(Err(gone));
            }
            Request::Checkpointed(_) | Request::Hasten => {}
        }
    }

    /// What was lazy is waited for from now on.
    fn hasten(&mut self) {
        self.clients.iter_mut().chain(&mut self.movers).for_each(Append::hasten);
        let behind = self.behind.iter_mut().map(|behind| &mut behind.writing);
        let writing = self.writing.iter_mut().chain(behind).map(|writing| &mut writing.batch);
        writing.chain(&mut self.unapplied).for_each(Written::hasten);
    }

    pub(crate) fn token(&mut self, purpose: Purpose) -> Token {
        self.next_token += 1;
        self.ops.insert(self.next_token, purpose);
        self.next_token
    }

    /// Starts whatever can start now, and applies what is durable.
    fn start(&mut self, now: Duration) {
        if self.failed() {
            return;
        }
        self.start_upkeep(now);
        self.start_writes();
        self.apply_durable();
    }

    fn start_writes(&mut self) {
        let due = self.unflushed > 0 && self.now >= self.flush_at;
        // Each goes to the device at once: it flushes while we form the next batch, and works on both while we apply.
        if self.flushing.is_none() && (due || self.must_flush()) {
            self.start_flush();
            self.disk.reap(Wait::Never, &mut self.completions);
        }
        let free = self.writing.is_none() && !self.failed();
        let started = free && !self.holds_back() && !self.waits_for_company() && self.start_batch();
        // A small one, where there is nothing to apply, the device hears of when this thread goes to sleep: it may rather do it itself.
        let large = |writing: &Writing| writing.batch.records.len() > FEW_RECORDS;
        if started && (!self.unapplied.is_empty() || self.writing.as_ref().is_some_and(large)) {
            self.disk.reap(Wait::Never, &mut self.completions);
        }
        if self.start_behind() {
            self.disk.reap(Wait::Never, &mut self.completions);
        }
    }

    /// Between two pieces of work: a flush that has ended is followed by the next at once.
    fn look_at_device(&mut self) {
        let mut done = std::mem::take(&mut self.completions);
        self.disk.reap(Wait::Never, &mut done);
        if done.is_empty() {
            return;
        }
        for completion in done.drain(..) {
            self.complete(completion);
        }
        self.completions.append(&mut done);
        if !self.failed() {
            self.take_requests();
            self.start_writes();
        }
    }

    /// Somebody waits for what no flush covers yet, past or out; or too much of that has gathered.
    fn must_flush(&self) -> bool {
        let covered = self.flushing.as_ref().map_or(self.durable_lsn, |flush| flush.upto);
        let waits = |batch: &Written| batch.end_lsn > covered + 1 && batch.wants_durability();
        self.unapplied.iter().rev().any(waits)
            || self.unflushed >= UNFLUSHED_BYTES
            || self.freeing.wants_flush()
    }

    /// Whether what is queued is better left to grow until the flush that is out has ended: written now it would only wait
    /// for the flush after this one, and what comes next for the one after that. What nobody waits for goes on, and so does
    /// what takes the device long: then the time of the flush is time lost.
    fn holds_back(&self) -> bool {
        if self.flushing.is_none() {
            return false;
        }
        let mut queued = self.clients.iter().chain(&self.movers);
        let waits = |append: &Append| append.durability == Durability::Durable;
        (self.must_flush() || queued.any(waits)) && !self.queue_is_long()
    }

    fn queue_is_long(&self) -> bool {
        self.room_in_queue(LONG_QUEUE_BYTES) == 0
    }

    /// Bytes that it lacks of so many.
    pub(crate) fn room_in_queue(&self, bytes: usize) -> usize {
        let mut left = bytes;
        for append in self.clients.iter().chain(&self.movers) {
            left = left.saturating_sub(append.most_bytes());
            if left == 0 {
                break;
            }
        }
        left
    }

    /// Whether all that is queued may wait for others to share a batch and a flush with.
    fn waits_for_company(&self) -> bool {
        let mut queued = self.clients.iter().chain(&self.movers);
        self.now < self.alone_at
            && self.closing.is_none()
            && !self.queue_is_long()
            && queued.all(|append| append.durability == Durability::Lazy)
    }

    /// Something is due soon that nobody will wake this thread for.
    pub(crate) fn has_lazy_work(&self) -> bool {
        self.unflushed > 0 || (!self.clients.is_empty() && self.waits_for_company())
    }

    /// Submits the one write of a batch: with its flush, where somebody waits for that and it does not take long.
    pub(crate) fn submit_batch(&mut self, batch: Written, offset: u64, data: Gather) {
        let stands_behind = self.writing.is_some();
        let alone = self.flushing.is_none() || stands_behind;
        let short = batch.bytes <= COMMIT_BYTES as u64 && !self.disk.geometry().write_through;
        if !(short && alone && batch.wants_durability()) {
            assert!(!stands_behind, "only what is committed whole stands behind another");
            self.submit_write(offset, data);
            self.writing = Some(Writing { batch, left: 1, commits: false });
            return;
        }
        let flushing = Flushing { upto: batch.end_lsn - 1, with_upkeep: self.freeing.flushing() };
        Counters::add(&self.shared.counters.flushes, 1);
        let token = self.token(Purpose::Commit);
        self.disk.announce(batch.on_durable());
        self.disk.submit(Op::WriteDurably { token, offset, data });
        let writing = Writing { batch, left: 1, commits: true };
        if stands_behind {
            Counters::add(&self.shared.counters.behind, 1);
            self.behind = Some(Behind { writing, flushing });
        } else {
            (self.writing, self.flushing) = (Some(writing), Some(flushing));
        }
    }

    /// Submits a part of a batch, to be flushed by a flush of its own.
    pub(crate) fn submit_write(&mut self, offset: u64, data: Gather) {
        let token = self.token(Purpose::Batch);
        self.disk.submit(Op::Write { token, offset, data });
    }

    fn start_flush(&mut self) {
        let with_upkeep = self.freeing.flushing();
        self.flushing = Some(Flushing { upto: self.written_lsn, with_upkeep });
        self.unflushed = 0;
        if self.disk.geometry().write_through {
            self.flushed();
        } else {
            let token = self.token(Purpose::Flush);
            Counters::add(&self.shared.counters.flushes, 1);
            self.disk.submit(Op::Flush { token });
        }
    }

    fn flushed(&mut self) {
        let Some(Flushing { upto, with_upkeep }) = self.flushing.take() else {
            unreachable!("a flush ends only while one is out");
        };
        let fresh = self.unapplied.iter().filter(|batch| batch.end_lsn > self.durable_lsn + 1);
        fresh.take_while(|batch| batch.end_lsn <= upto + 1).for_each(Written::say_durable);
        self.durable_lsn = upto;
        self.shared.durable.store(upto, Ordering::Release);
        if with_upkeep {
            self.freed_durably();
        }
    }

    fn complete(&mut self, completion: Completion) {
        let Some(purpose) = self.ops.remove(&completion.token) else {
            unreachable!("a completion for a token that was never given out");
        };
        match (purpose, completion.result) {
            (Purpose::Read { reply, .. }, Ok(())) => {
                let bytes = completion.buf.map_or_else(Bytes::new, bytes_of);
                let _gone = reply.send(Ok(bytes));
            }
            (Purpose::Read { reply, .. }, Err(e)) => {
                let _gone = reply.send(Err(e));
            }
            (_, Err(e)) => {
                self.fail(&format!("device refused a write or flush ({e}); replace the disk, then restart"));
            }
            (Purpose::Flush, Ok(())) => self.flushed(),
            (Purpose::Commit, Ok(())) => {
                self.batch_part_written();
                self.unflushed = 0;
                self.flushed();
                self.advance();
            }
            (Purpose::Batch, Ok(())) => self.batch_part_written(),
            (Purpose::Upkeep, Ok(())) => self.freeing.part_written(),
            (Purpose::Table, Ok(())) => {}
        }
    }

    fn batch_part_written(&mut self) {
        let Some(writing) = &mut self.writing else {
            unreachable!("a batch write ends only while one is out");
        };
        writing.left -= 1;
        if writing.left > 0 {
            return;
        }
        let Some(Writing { mut batch, .. }) = self.writing.take() else { unreachable!("looked at above") };
        self.written_lsn = batch.end_lsn - 1;
        self.unflushed += batch.bytes;
        self.flush_at = self.now + LAZY_FLUSH;
        batch.answer_appended();
        self.unapplied.push_back(batch);
    }

    /// Applies every written batch that is durable, and answers its waiters.
    fn apply_durable(&mut self) {
        while self.unapplied.front().is_some_and(|batch| batch.end_lsn <= self.durable_lsn + 1) {
            let Some(batch) = self.unapplied.pop_front() else { return };
            if let Err(e) = self.apply(&batch) {
                let reason = format!("the index refused a change: {e}; look after it, then restart");
                batch.answer(&Err(DiskError::from(e)));
                return self.fail(&reason);
            }
            self.look_at_device();
            batch.answer(&Ok(()));
        }
    }

    /// Takes the disk out. Everything that waits is told; nothing is tried again.
    pub(crate) fn fail(&mut self, reason: &str) {
        let first = self.shared.failed.set(Arc::from(reason)).is_ok();
        if first {
            tracing::error!(device = %self.shared.device, reason, "disk is out");
        }
        self.refuse_all();
    }

    fn refuse_all(&mut self) {
        let gone = self.shared.gone();
        self.flushing = None;
        let behind = self.behind.take().map(|behind| behind.writing);
        for Writing { batch, .. } in self.writing.take().into_iter().chain(behind) {
            batch.answer(&Err(gone.clone()));
        }
        for batch in self.unapplied.drain(..) {
            batch.answer(&Err(gone.clone()));
        }
        for append in self.clients.drain(..).chain(self.movers.drain(..)) {
            append.answer(Err(gone.clone()));
        }
        self.checkpoint.abandon(&gone);
        // Flush and write completions that are still to come find no purpose of theirs left to serve.
        for purpose in self.ops.values_mut() {
            if !matches!(purpose, Purpose::Read { .. }) {
                *purpose = Purpose::Table;
            }
        }
    }

    /// Every handle is gone: close as if asked to, with nobody to answer.
    fn orphaned(&mut self) -> Turn {
        if self.failed() {
            return Turn::Closed;
        }
        if self.closing.is_none() {
            let (reply, _nobody) = oneshot::channel();
            self.closing = Some(reply);
        }
        Turn::Continue
    }

    fn finished(&self) -> bool {
        self.closing.is_some()
            && (self.failed()
                || self.idle()
                    && self.clients.is_empty()
                    && self.movers.is_empty()
                    && self.checkpoint.waiting.is_empty())
    }

    /// The last acts: index checkpoint, clean superblock. Blocking is right here, nobody waits for anything else.
    fn finish(&mut self) -> Turn {
        let Some(reply) = self.closing.take() else { return Turn::Continue };
        let result = if self.failed() { Err(self.shared.gone()) } else { self.close_cleanly() };
        self.farewell = Some(Farewell { reply, result });
        Turn::Closed
    }
}
