//! Proposals on their way: what comes while others are under way goes together, as one entry of the log.
//!
//! openraft waits for the disk's flush between one proposal and the next, so a flush is shared by what is in one.
//!
//! Invariant: of what "this node does not lead" is answered to, nothing is in the log, and nothing will be.
//! Invariant: proposals reach the log in the order in which they were made.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::AsyncRuntime;
use openraft::error::ClientWriteError;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::codec::entry_bytes;
use super::group::status_of;
use super::limits::{COMMAND_BYTES, COMMANDS_UNDER_WAY, MAX_COMMAND_ENTRIES};
use super::raft::{Command, Raft};
use super::runtime::Ambient;
use super::types::{Entry, GroupError, Outcome};

type Answer = Result<Outcome, GroupError>;

struct Waiting {
    entry: Entry,
    answer: oneshot::Sender<Answer>,
}

/// The queue of a group's proposals.
pub(crate) struct Proposals {
    queue: Mutex<Option<VecDeque<Waiting>>>,
    came: Notify,
    room: Arc<Semaphore>,
    /// Nothing is sent for so long as somebody wants it so.
    held: AtomicUsize,
    /// Commands that were sent and have not ended.
    sent: AtomicUsize,
}

/// Holds proposals back.
pub(crate) struct Pause(Arc<Proposals>);

impl Drop for Pause {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::SeqCst);
        self.0.came.notify_one();
    }
}

impl Proposals {
    pub(crate) fn new() -> Arc<Self> {
        let room = Arc::new(Semaphore::new(COMMANDS_UNDER_WAY));
        Arc::new(Self {
            queue: Mutex::new(Some(VecDeque::new())),
            came: Notify::new(),
            room,
            held: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<VecDeque<Waiting>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Proposes an entry and waits for what becomes of it.
    pub(crate) async fn propose(&self, entry: Entry) -> Answer {
        let (answer, outcome) = oneshot::channel();
        match self.lock().as_mut() {
            Some(queue) => queue.push_back(Waiting { entry, answer }),
            None => return Err(closed()),
        }
        self.came.notify_one();
        outcome.await.unwrap_or_else(|_| Err(closed()))
    }

    /// What comes from now on waits until this is dropped.
    pub(crate) fn pause(self: &Arc<Self>) -> Pause {
        self.held.fetch_add(1, Ordering::SeqCst);
        Pause(Arc::clone(self))
    }

    /// Nothing is on its way.
    pub(crate) fn are_done(&self) -> bool {
        self.sent.load(Ordering::SeqCst) == 0
    }

    /// Ends [`Proposals::run`].
    pub(crate) fn close(&self) {
        let waiting = self.lock().take();
        drop(waiting);
        self.came.notify_one();
    }

    /// Sends what is proposed until it is closed.
    pub(crate) async fn run(self: Arc<Self>, raft: Raft) {
        loop {
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else { return };
            let batch = loop {
                match self.take() {
                    None => return,
                    Some(batch) if batch.is_empty() => self.came.notified().await,
                    Some(batch) => break batch,
                }
            };
            let (entries, answers): (Vec<_>, Vec<_>) = batch.into_iter().map(|w| (w.entry, w.answer)).unzip();
            let status = status_of(&raft.metrics().borrow());
            if !status.leads {
                // Held back while another came to lead, most likely: it is not in the log, and that is to be known.
                self.sent.fetch_sub(1, Ordering::SeqCst);
                tell(answers, Err(GroupError::NotLeader(status.leader)));
                continue;
            }
            let this = Arc::clone(&self);
            let sent = raft.client_write_ff(Command(Arc::new(entries))).await;
            Ambient::spawn(async move {
                let outcomes = match sent {
                    Ok(outcomes) => outcomes.await.map_err(|_| closed()),
                    Err(fatal) => Err(GroupError::Unavailable(fatal.to_string())),
                };
                let outcomes = outcomes.and_then(|written| match written {
                    Ok(written) => Ok(written.data),
                    // Also said of entries that were in the log and had to give way.
                    Err(e @ ClientWriteError::ForwardToLeader(_)) => {
                        Err(GroupError::Unavailable(e.to_string()))
                    }
                    Err(e @ ClientWriteError::ChangeMembershipError(_)) => {
                        Err(GroupError::Unavailable(e.to_string()))
                    }
                });
                this.sent.fetch_sub(1, Ordering::SeqCst);
                drop(permit);
                tell(answers, outcomes);
            });
        }
    }

    /// What goes next; `None` when closed.
    fn take(&self) -> Option<Vec<Waiting>> {
        let mut guard = self.lock();
        let queue = guard.as_mut()?;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        if self.held.load(Ordering::SeqCst) > 0 {
            return Some(batch);
        }
        while let Some(next) = queue.front() {
            let more = entry_bytes(&next.entry);
            let full = batch.len() >= MAX_COMMAND_ENTRIES || bytes + more > COMMAND_BYTES;
            if full && !batch.is_empty() {
                break;
            }
            bytes += more;
            batch.extend(queue.pop_front());
        }
        self.sent.fetch_add(usize::from(!batch.is_empty()), Ordering::SeqCst);
        Some(batch)
    }
}

fn closed() -> GroupError {
    GroupError::Unavailable("the group is closed, or its disk is out".to_owned())
}

fn tell(answers: Vec<oneshot::Sender<Answer>>, outcomes: Result<Vec<Outcome>, GroupError>) {
    match outcomes {
        Ok(outcomes) => {
            for (answer, outcome) in answers.into_iter().zip(outcomes) {
                // Whoever proposed may have gone.
                let _gone = answer.send(Ok(outcome));
            }
        }
        Err(e) => {
            for answer in answers {
                let _gone = answer.send(Err(e.clone()));
            }
        }
    }
}
