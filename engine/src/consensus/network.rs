//! Calls to the other voters of a group.
//!
//! Invariant: what a voter answers is checked to be an answer to what it was asked; everything else is a failed call.
//! Invariant: a message that says nothing but what is committed is left out only where entries follow, which say it too.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{AsyncRuntime, EmptyNode, OptionalSend, RaftNetwork, RaftNetworkFactory};

use super::codec;
use super::raft::{LogId, Rows, Snapshot, Vote, broken, log_id};
use super::runtime::Ambient;
use super::snapshot::{RowStream, SnapshotData};
use super::store::Store;
use crate::net::{
    Ballot, ConsensusAnswer, ConsensusCall, Failure, NetError, NodeId, Position, Request, Response, Transport,
};

/// How long a voter may take for a part of a snapshot.
const PART_WITHIN: Duration = Duration::from_secs(20);
/// How long what is committed waits for entries to go with.
const ALONE_AFTER: Duration = Duration::from_millis(5);
/// How often a part is sent before the transfer is given up.
const ATTEMPTS: usize = 4;
/// Pause between two questions whether a snapshot is installed.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Pause before a node that was not reached is called again.
const CALL_AGAIN: Duration = Duration::from_millis(200);

/// Makes [`Peer`]s.
pub(crate) struct Network {
    pub(crate) net: Arc<dyn Transport>,
    pub(crate) store: Arc<Store>,
}

/// Another voter of a group.
pub(crate) struct Peer {
    net: Arc<dyn Transport>,
    store: Arc<Store>,
    to: NodeId,
    /// What it said last that it has, and what it was told then to be committed.
    heard: Option<Heard>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heard {
    vote: Vote,
    matching: Option<LogId>,
    committed: Option<LogId>,
}

type Rpc<T> = Result<T, RPCError<NodeId, EmptyNode, RaftError<NodeId>>>;

pub(crate) fn ballot(vote: Vote) -> Ballot {
    Ballot { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn vote_of(ballot: Ballot) -> Vote {
    let Ballot { term, node, committed } = ballot;
    Vote { leader_id: openraft::LeaderId { term, voted_for: node }, committed }
}

pub(crate) fn position(id: Option<LogId>) -> Option<Position> {
    id.map(|id| Position { term: id.leader_id.term, index: id.index })
}

pub(crate) fn id_of(position: Option<Position>) -> Option<LogId> {
    position.map(|Position { term, index }| log_id(term, index))
}

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("the answer is not to this call")]
    Strange,
}

impl CallError {
    /// Whether it is of no use to try again at once.
    fn is_away(&self) -> bool {
        !matches!(self, Self::Net(NetError::Deadline(_) | NetError::Lost { .. }))
    }
}

impl<E: std::error::Error> From<CallError> for RPCError<NodeId, EmptyNode, E> {
    fn from(e: CallError) -> Self {
        if e.is_away() {
            Self::Unreachable(Unreachable::new(&e))
        } else {
            Self::Network(NetworkError::new(&e))
        }
    }
}

impl From<CallError> for StreamingError<Rows, Fatal<NodeId>> {
    fn from(e: CallError) -> Self {
        if e.is_away() {
            Self::Unreachable(Unreachable::new(&e))
        } else {
            Self::Network(NetworkError::new(&e))
        }
    }
}

impl RaftNetworkFactory<Rows> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, _: &EmptyNode) -> Peer {
        Peer { net: Arc::clone(&self.net), store: Arc::clone(&self.store), to: target, heard: None }
    }
}

impl Peer {
    async fn call(&self, call: ConsensusCall, within: Duration) -> Result<ConsensusAnswer, CallError> {
        let request = Request::Consensus { group: self.store.group, call };
        match self.net.call(self.to, request, within).await? {
            Response::Consensus(answer) => Ok(answer),
            Response::Failed(failure) => Err(failure.into()),
            _ => Err(CallError::Strange),
        }
    }

    /// Sends a part of a snapshot, again when it was lost: parts bear that.
    async fn part(&self, call: &ConsensusCall) -> Result<ConsensusAnswer, CallError> {
        let mut attempts = 1;
        loop {
            match self.call(call.clone(), PART_WITHIN).await {
                Err(e) if !e.is_away() && attempts < ATTEMPTS => attempts += 1,
                ended => return ended,
            }
        }
    }

    async fn send(
        &self,
        vote: Vote,
        head: Bytes,
        mut rows: RowStream,
    ) -> Result<Vote, StreamingError<Rows, Fatal<NodeId>>> {
        let transfer = self.store.next_stamp();
        let begin = ConsensusCall::SnapshotBegin { vote: ballot(vote), transfer, head };
        match self.part(&begin).await? {
            ConsensusAnswer::Next(0) => {}
            ConsensusAnswer::Installed(vote) | ConsensusAnswer::Higher(vote) => return Ok(vote_of(vote)),
            _ => return Err(CallError::Strange.into()),
        }
        let mut chunks = 0;
        while let Some(chunk) = rows.next().await.map_err(|e| StreamingError::StorageError(broken(&e)))? {
            let part = ConsensusCall::SnapshotChunk { transfer, number: chunks, rows: chunk.into() };
            chunks += 1;
            match self.part(&part).await? {
                ConsensusAnswer::Next(next) if next == chunks => {}
                _ => return Err(CallError::Strange.into()),
            }
        }
        loop {
            match self.part(&ConsensusCall::SnapshotEnd { transfer, chunks }).await? {
                ConsensusAnswer::Busy => Ambient::sleep(ASK_AGAIN).await,
                ConsensusAnswer::Installed(vote) => return Ok(vote_of(vote)),
                _ => return Err(CallError::Strange.into()),
            }
        }
    }
}

impl Peer {
    /// Whether a message has nothing to say but what is committed, to a voter that has all that it names; entries that follow say
    /// it as well.
    fn only_commits(&self, rpc: &AppendEntriesRequest<Rows>) -> bool {
        let knows = |heard: Heard| {
            (heard.vote, heard.matching) == (rpc.vote, rpc.prev_log_id) && heard.committed < rpc.leader_commit
        };
        rpc.entries.is_empty() && self.heard.is_some_and(knows)
    }

    /// Waits a moment for entries behind this one; true when there are any.
    async fn grows_beyond(&self, last: Option<LogId>) -> bool {
        let mut grows = pin!(self.store.grows.notified());
        if self.store.ends().1 > last {
            return true;
        }
        let mut over = Ambient::sleep(ALONE_AFTER);
        poll_fn(|context| match grows.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => over.as_mut().poll(context).map(|()| false),
        })
        .await
    }
}

impl RaftNetwork<Rows> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Rows>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<NodeId>> {
        // openraft takes that for an answer; it is none to anything but what is committed: a leader is confirmed by other messages.
        if self.only_commits(&rpc) && self.grows_beyond(rpc.prev_log_id).await {
            return Ok(AppendEntriesResponse::Success);
        }
        let last = rpc.entries.last().map_or(rpc.prev_log_id, |entry| Some(entry.log_id));
        let heard = Heard { vote: rpc.vote, matching: last, committed: rpc.leader_commit };
        self.heard = None;
        let call = ConsensusCall::Append {
            vote: ballot(rpc.vote),
            previous: position(rpc.prev_log_id),
            committed: position(rpc.leader_commit),
            entries: rpc.entries.iter().map(|entry| codec::encode_entry(entry).into()).collect(),
        };
        Ok(match self.call(call, option.hard_ttl()).await? {
            ConsensusAnswer::Appended => {
                self.heard = Some(heard);
                AppendEntriesResponse::Success
            }
            ConsensusAnswer::AppendedTo(to) => AppendEntriesResponse::PartialSuccess(id_of(to)),
            ConsensusAnswer::Conflict => AppendEntriesResponse::Conflict,
            ConsensusAnswer::Higher(vote) => AppendEntriesResponse::HigherVote(vote_of(vote)),
            _ => return Err(CallError::Strange.into()),
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<NodeId>, option: RPCOption) -> Rpc<VoteResponse<NodeId>> {
        let call = ConsensusCall::Vote { vote: ballot(rpc.vote), last: position(rpc.last_log_id) };
        match self.call(call, option.hard_ttl()).await? {
            ConsensusAnswer::Voted { vote, granted, last } => {
                Ok(VoteResponse { vote: vote_of(vote), vote_granted: granted, last_log_id: id_of(last) })
            }
            _ => Err(CallError::Strange.into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<Rows, Fatal<NodeId>>> {
        let SnapshotData::Rows { marker, rows } = *snapshot.snapshot else {
            unreachable!("a machine gives its rows")
        };
        let mut sent = Box::pin(self.send(vote, marker.encode().into(), rows));
        let mut cancel = Box::pin(cancel);
        let vote = poll_fn(|context| match sent.as_mut().poll(context) {
            Poll::Ready(sent) => Poll::Ready(sent),
            Poll::Pending => match cancel.as_mut().poll(context) {
                Poll::Ready(closed) => Poll::Ready(Err(StreamingError::Closed(closed))),
                Poll::Pending => Poll::Pending,
            },
        })
        .await?;
        Ok(SnapshotResponse::new(vote))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(CALL_AGAIN))
    }
}
