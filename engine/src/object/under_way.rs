//! What is on its way into a disk's log, and what becomes of uploads when it ends. Whoever waits for that may go at any moment.
//!
//! Invariant: every piece that was admitted is ended once: when its group has ended, well or not, or when it is certain that it never
//! comes into the queue. Where nobody waits for the group any more, whoever ends it does that, which is the disk's thread.
//! Invariant: nothing is ended while its group may still come into the log: an abort, which goes before the writes of clients where space
//! is short, would take the chunks from under a commit.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use super::Result;
use super::replica::{Local, Piece};
use crate::disk::Submitted;

/// Pieces of uploads, with their version times.
pub(super) type Pieces = Vec<(Piece, u64)>;

/// A group with pieces of uploads. Dropped, they are ended as it stands.
pub(super) struct UnderWay<'a> {
    local: &'a Local,
    pieces: Pieces,
    how: How,
}

/// How that stands.
enum How {
    /// It did not come into the log, or not as far as it was waited for.
    Failed,
    /// It has its place in the queue.
    Queued(Submitted),
    Well,
}

impl<'a> UnderWay<'a> {
    pub(super) fn new(local: &'a Local) -> Self {
        Self { local, pieces: Vec::new(), how: How::Failed }
    }

    /// One more, which was admitted.
    pub(super) fn add(&mut self, piece: Piece, sequence: u64) {
        self.pieces.push((piece, sequence));
    }

    /// Waits for a group that is in the queue.
    pub(super) async fn wait(&mut self, submitted: Submitted) -> Result<()> {
        self.how = How::Queued(submitted);
        let How::Queued(submitted) = &mut self.how else { return Ok(()) };
        let done = submitted.wait().await;
        self.how = if done.is_ok() { How::Well } else { How::Failed };
        Ok(done.map(drop)?)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let pieces = std::mem::take(&mut self.pieces);
        if pieces.is_empty() {
            return;
        }
        match std::mem::replace(&mut self.how, How::Failed) {
            How::Failed => end(self.local, &pieces, false),
            How::Well => end(self.local, &pieces, true),
            How::Queued(submitted) => Left::watch(self.local.clone(), pieces, submitted),
        }
    }
}

fn end(local: &Local, pieces: &Pieces, well: bool) {
    for (piece, sequence) in pieces {
        local.ended(piece, *sequence, well);
    }
}

/// A group in the queue that nobody waits for any more.
struct Left(Mutex<Option<(Local, Pieces, Submitted)>>);

impl Left {
    fn watch(local: Local, pieces: Pieces, submitted: Submitted) {
        Arc::new(Self(Mutex::new(Some((local, pieces, submitted))))).look();
    }

    /// Ends the pieces if the group has ended; if not, this is called again when it has.
    fn look(self: Arc<Self>) {
        let waker = Waker::from(Arc::clone(&self));
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, _, submitted)) = left.as_mut() else { return };
        let Poll::Ready(done) = submitted.poll(&mut Context::from_waker(&waker)) else { return };
        let ended = left.take();
        drop(left);
        if let Some((local, pieces, _)) = ended {
            end(&local, &pieces, done.is_ok());
        }
    }
}

impl Wake for Left {
    fn wake(self: Arc<Self>) {
        self.look();
    }
}
