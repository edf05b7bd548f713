//! Reads of one caller beside the disk's thread: no other thread is woken for them, where the caller looks after its lane.
//!
//! Invariant: a disk that is out or closed is not read by a lane either.
//! Invariant: who reads through a lane calls [`Lane::begin`] before it waits, and [`Lane::collect`] when its descriptor says so, until
//! nothing is out.
//! Invariant: bytes being read are bounded per disk, whatever way they are read.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::handle::DiskHandle;
use super::shared::{Counters, DiskError, Shared, bytes_of};
use crate::io::{AlignedBuf, BLOCK, Completion, ReadRing, Token};

struct Waiting {
    reply: oneshot::Sender<std::io::Result<Bytes>>,
    _permit: Option<OwnedSemaphorePermit>,
}

struct State {
    ring: ReadRing,
    waiting: HashMap<Token, Waiting>,
    next: Token,
}

/// A way to read a disk.
pub struct Lane {
    shared: Arc<Shared>,
    state: Mutex<State>,
    event: OwnedFd,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("device", &self.shared.device).finish_non_exhaustive()
    }
}

impl AsFd for Lane {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl AsRawFd for Lane {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl Lane {
    /// Has the device begin the reads that were asked for since the last call, and hands on what it has read: a quick one may
    /// have done so when the kernel comes back from its bell.
    pub fn begin(&self) {
        self.hand_on(|ring, done| {
            ring.begin(done);
            ring.collect(done);
        });
    }

    /// Hands on what has been read; whether there was anything.
    pub fn collect(&self) -> bool {
        self.hand_on(ReadRing::collect)
    }

    fn hand_on(&self, turn: impl FnOnce(&mut ReadRing, &mut Vec<Completion>)) -> bool {
        let mut done = Vec::new();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        turn(&mut state.ring, &mut done);
        if done.is_empty() {
            return false;
        }
        let done: Vec<_> = done
            .into_iter()
            .filter_map(|completion| Some((state.waiting.remove(&completion.token)?, completion)))
            .collect();
        drop(state);
        for (waiting, completion) in done {
            let bytes = completion.result.map(|()| completion.buf.map_or_else(Bytes::new, bytes_read));
            // Who asked may have gone.
            let _gone = waiting.reply.send(bytes);
        }
        true
    }

    /// Nothing is out.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ring.is_idle()
    }

    pub(super) async fn read(&self, offset: u64, len: usize) -> Result<std::io::Result<Bytes>, DiskError> {
        let permit = self.shared.admission.read(len).await;
        if self.shared.failed.get().is_some() {
            return Err(self.shared.gone());
        }
        let (reply, answer) = oneshot::channel();
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.next += 1;
            let token = state.next;
            match state.ring.submit(token, offset, len) {
                None => return Err(self.shared.gone()),
                Some(Err(error)) => return Ok(Err(error)),
                Some(Ok(())) => {}
            }
            state.waiting.insert(token, Waiting { reply, _permit: permit });
        }
        Counters::add(&self.shared.counters.reads, 1);
        answer.await.map_err(|_| self.shared.gone())
    }
}

/// As [`bytes_of`], but that a block's bytes are not copied, wherever they lie: who reads through a lane copies them to where they go.
fn bytes_read(buf: AlignedBuf) -> Bytes {
    const HANDED_ON: usize = 2 * BLOCK;
    if buf.len() <= HANDED_ON { Bytes::from_owner(buf) } else { bytes_of(buf) }
}

impl DiskHandle {
    /// A lane to this disk; `None` where its body has none.
    pub fn lane(&self) -> std::io::Result<Option<Arc<Lane>>> {
        let Some(lanes) = self.shared.lanes.clone() else { return Ok(None) };
        let ring = ReadRing::open(lanes)?;
        let event = ring.event().try_clone_to_owned()?;
        let state = Mutex::new(State { ring, waiting: HashMap::new(), next: 0 });
        Ok(Some(Arc::new(Lane { shared: self.shared.clone(), state, event })))
    }

    /// The same disk, read through a lane of it.
    #[must_use]
    pub fn through(&self, lane: Arc<Lane>) -> Self {
        assert!(Arc::ptr_eq(&self.shared, &lane.shared), "a lane is of one disk");
        Self { lane: Some(lane), ..self.clone() }
    }
}
