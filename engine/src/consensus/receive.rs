//! What a voter answers to the others: the other end of [`super::network`].
//!
//! Invariant: a chunk of a snapshot is taken in order and once; the same message twice does what it does once.
//! Invariant: a snapshot that does not come whole changes nothing, and one that has come whole is on this disk before openraft
//! hears of it: whoever sent it may go away.

use std::cmp::Ordering;
use std::sync::{Arc, PoisonError};

use openraft::AsyncRuntime;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};

use super::codec::{self, Marker};
use super::elect::Elector;
use super::limits::CHUNK_BYTES;
use super::network::{ballot, id_of, position, vote_of};
use super::raft::{Raft, Snapshot, SnapshotMeta, Vote};
use super::runtime::Ambient;
use super::snapshot::SnapshotData;
use super::store::Store;
use crate::catalog::BadValue;
use crate::disk::DiskError;
use crate::disk::limits::{MAX_KEY, MAX_META};
use crate::net::{Code, ConsensusAnswer, ConsensusCall, Failure, NodeId};

/// Answers for one voter.
pub(crate) struct Receiver {
    raft: Raft,
    store: Arc<Store>,
    elector: Arc<Elector>,
    /// Held while a part is being staged: parts come one after another.
    transfer: tokio::sync::Mutex<Option<Transfer>>,
}

struct Transfer {
    from: NodeId,
    number: u64,
    vote: Vote,
    marker: Marker,
    next: u64,
    installing: Option<Arc<std::sync::Mutex<Installing>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Installing {
    UnderWay,
    Done(Vote),
    Failed,
}

impl Transfer {
    fn state(&self) -> Option<Installing> {
        self.installing.as_ref().map(|state| *state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn unavailable(e: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Unavailable, e.to_string())
}

fn bad(e: BadValue) -> Failure {
    Failure::new(Code::BadRequest, format!("consensus message: {e}"))
}

impl From<DiskError> for Failure {
    fn from(e: DiskError) -> Self {
        unavailable(e)
    }
}

impl Receiver {
    pub(crate) fn new(raft: Raft, store: Arc<Store>, elector: Arc<Elector>) -> Self {
        Self { raft, store, elector, transfer: tokio::sync::Mutex::new(None) }
    }

    /// The answer to a call; to be polled with the group's runtime at hand.
    pub(crate) async fn answer(&self, from: NodeId, call: ConsensusCall) -> Result<ConsensusAnswer, Failure> {
        match call {
            ConsensusCall::Append { vote, previous, committed, entries } => {
                self.elector.hear(vote);
                let entries = entries.iter().map(|bytes| codec::decode_entry(bytes).map_err(bad));
                let rpc = AppendEntriesRequest {
                    vote: vote_of(vote),
                    prev_log_id: id_of(previous),
                    entries: entries.collect::<Result<_, _>>()?,
                    leader_commit: id_of(committed),
                };
                check_order(&rpc)?;
                Ok(match self.raft.append_entries(rpc).await.map_err(unavailable)? {
                    AppendEntriesResponse::Success => ConsensusAnswer::Appended,
                    AppendEntriesResponse::PartialSuccess(to) => ConsensusAnswer::AppendedTo(position(to)),
                    AppendEntriesResponse::Conflict => ConsensusAnswer::Conflict,
                    AppendEntriesResponse::HigherVote(vote) => ConsensusAnswer::Higher(ballot(vote)),
                })
            }
            ConsensusCall::Vote { .. } if self.store.is_empty() => {
                // What it once held and promised, if it did, is gone: it is no voter before it was filled.
                let vote = ballot(self.store.vote().unwrap_or_default());
                Ok(ConsensusAnswer::Voted { vote, granted: false, last: None })
            }
            ConsensusCall::Vote { vote, last } => {
                let rpc = VoteRequest { vote: vote_of(vote), last_log_id: id_of(last) };
                let VoteResponse { vote, vote_granted, last_log_id } =
                    self.raft.vote(rpc).await.map_err(unavailable)?;
                let last = position(last_log_id);
                Ok(ConsensusAnswer::Voted { vote: ballot(vote), granted: vote_granted, last })
            }
            ConsensusCall::Silent { last } => Ok(ConsensusAnswer::Silent(self.elector.would_vote(last))),
            ConsensusCall::SnapshotBegin { vote, transfer, head } => {
                self.elector.hear(vote);
                let marker = Marker::decode(&head).map_err(bad)?;
                self.begin(from, transfer, vote_of(vote), marker).await
            }
            ConsensusCall::SnapshotChunk { transfer, number, rows } => {
                self.elector.hear_of(from);
                self.chunk(from, transfer, number, &rows).await
            }
            ConsensusCall::SnapshotEnd { transfer, chunks } => {
                self.elector.hear_of(from);
                self.end(from, transfer, chunks).await
            }
            ConsensusCall::Members | ConsensusCall::Lead => {
                Err(Failure::new(Code::BadRequest, "asked of the wrong part of a voter"))
            }
        }
    }

    async fn begin(
        &self,
        from: NodeId,
        number: u64,
        vote: Vote,
        marker: Marker,
    ) -> Result<ConsensusAnswer, Failure> {
        let mut transfer = self.transfer.lock().await;
        if let Some(known) = transfer.as_ref()
            && (known.from, known.number) == (from, number)
        {
            // The message came twice.
            return Ok(ConsensusAnswer::Next(known.next));
        }
        let own = self.store.vote().unwrap_or_default();
        if !matches!(own.partial_cmp(&vote), Some(Ordering::Less | Ordering::Equal)) {
            return Ok(ConsensusAnswer::Higher(ballot(own)));
        }
        let Some(last) = marker.applied else { return Err(bad(BadValue::Field("applied"))) };
        let progress = self.store.progress();
        let (purged, end) = self.store.ends();
        let in_log =
            purged.is_none_or(|p| p.index < last.index) && end.is_some_and(|e| e.index >= last.index);
        let known = progress.applied >= Some(last)
            || (in_log
                && self
                    .store
                    .read(last.index, last.index + 1)
                    .await?
                    .first()
                    .is_some_and(|e| e.log_id == last));
        if own == vote && known {
            return Ok(ConsensusAnswer::Installed(ballot(vote)));
        }
        let under_way = transfer.as_ref().is_some_and(|known| known.state() == Some(Installing::UnderWay));
        if progress.installing || under_way {
            return Err(unavailable("another snapshot is being installed"));
        }
        *transfer = None;
        self.store.unstage().await?;
        *transfer = Some(Transfer { from, number, vote, marker, next: 0, installing: None });
        Ok(ConsensusAnswer::Next(0))
    }

    async fn chunk(
        &self,
        from: NodeId,
        transfer: u64,
        number: u64,
        rows: &[u8],
    ) -> Result<ConsensusAnswer, Failure> {
        let mut guard = self.transfer.lock().await;
        let known = this_transfer(&mut guard, from, transfer)?;
        if number > known.next || known.installing.is_some() {
            return Err(Failure::new(Code::BadRequest, "chunk of a snapshot out of order"));
        }
        if number == known.next {
            let decoded = codec::decode_chunk(rows).map_err(bad)?;
            if rows.len() > CHUNK_BYTES + MAX_KEY + MAX_META + 64 || decoded.is_empty() {
                return Err(bad(BadValue::Field("chunk")));
            }
            self.store.stage(number, rows.to_vec()).await?;
            known.next += 1;
        }
        Ok(ConsensusAnswer::Next(number + 1))
    }

    async fn end(&self, from: NodeId, transfer: u64, chunks: u64) -> Result<ConsensusAnswer, Failure> {
        let mut guard = self.transfer.lock().await;
        let known = this_transfer(&mut guard, from, transfer)?;
        if chunks != known.next {
            return Err(Failure::new(Code::BadRequest, "chunks of a snapshot are missing"));
        }
        match known.state() {
            None => {
                known.installing = Some(self.install(known.vote, known.marker.clone(), chunks));
                Ok(ConsensusAnswer::Busy)
            }
            Some(Installing::UnderWay) => Ok(ConsensusAnswer::Busy),
            Some(Installing::Done(vote)) => Ok(ConsensusAnswer::Installed(ballot(vote))),
            Some(Installing::Failed) => Err(unavailable("the snapshot could not be installed")),
        }
    }

    fn install(&self, vote: Vote, marker: Marker, chunks: u64) -> Arc<std::sync::Mutex<Installing>> {
        let state = Arc::new(std::sync::Mutex::new(Installing::UnderWay));
        let (raft, store, told) = (self.raft.clone(), Arc::clone(&self.store), Arc::clone(&state));
        Ambient::spawn(async move {
            let snapshot_id = format!("staged-{chunks}");
            let last_membership = marker.membership.clone();
            let meta = SnapshotMeta { last_log_id: marker.applied, last_membership, snapshot_id };
            let wanted = marker.applied;
            let snapshot = Box::new(SnapshotData::Staged { marker, chunks });
            let ended = raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await;
            // openraft did not want it: its space is given back.
            if ended.is_ok()
                && store.progress().applied < wanted
                && let Err(e) = store.unstage().await
            {
                tracing::error!(%e, "drop staged snapshot");
            }
            *told.lock().unwrap_or_else(PoisonError::into_inner) = match ended {
                Ok(response) => Installing::Done(response.vote),
                Err(e) => {
                    tracing::error!(%e, "install snapshot");
                    Installing::Failed
                }
            };
        });
        state
    }
}

fn this_transfer(guard: &mut Option<Transfer>, from: NodeId, number: u64) -> Result<&mut Transfer, Failure> {
    let known = guard.as_mut().filter(|known| (known.from, known.number) == (from, number));
    known.ok_or_else(|| Failure::new(Code::Expired, "no such transfer of a snapshot"))
}

/// openraft takes the order of entries on trust.
fn check_order(rpc: &AppendEntriesRequest<super::raft::Rows>) -> Result<(), Failure> {
    let mut before = rpc.prev_log_id;
    for entry in &rpc.entries {
        let next = before.map_or(0, |id| id.index + 1);
        if entry.log_id.index != next || before.is_some_and(|id| id.leader_id > entry.log_id.leader_id) {
            return Err(bad(BadValue::Field("order of entries")));
        }
        before = Some(entry.log_id);
    }
    Ok(())
}
