//! Consensus messages as bytes.

use bincode::{Decode, Encode};
use bytes::Bytes;

use super::{Payload, WireError, bounded};
use crate::consensus::limits::{APPEND_ENTRIES, MAX_LOG_ENTRY, MAX_MEMBERS};
use crate::disk::limits::MAX_DATA;
use crate::net::NodeId;
use crate::net::message::{Ballot, ConsensusAnswer, ConsensusCall, Position};

#[derive(Encode, Decode)]
pub(super) enum CallHead {
    Append {
        vote: BallotHead,
        previous: Option<PositionHead>,
        committed: Option<PositionHead>,
        entries: Vec<u32>,
    },
    Vote {
        vote: BallotHead,
        last: Option<PositionHead>,
    },
    SnapshotBegin {
        vote: BallotHead,
        transfer: u64,
        head: u32,
    },
    SnapshotChunk {
        transfer: u64,
        number: u64,
        rows: u32,
    },
    SnapshotEnd {
        transfer: u64,
        chunks: u64,
    },
    Members,
    Lead,
    Silent {
        last: Option<PositionHead>,
    },
}

#[derive(Encode, Decode)]
pub(super) enum AnswerHead {
    Appended,
    AppendedTo(Option<PositionHead>),
    Conflict,
    Higher(BallotHead),
    Voted { vote: BallotHead, granted: bool, last: Option<PositionHead> },
    Next(u64),
    Busy,
    Installed(BallotHead),
    Members { voters: Vec<[u8; 16]>, learners: Vec<[u8; 16]> },
    Campaigns,
    Silent(bool),
}

#[derive(Encode, Decode)]
pub(super) struct BallotHead {
    term: u64,
    node: Option<[u8; 16]>,
    committed: bool,
}

#[derive(Encode, Decode)]
pub(super) struct PositionHead {
    term: u64,
    index: u64,
}

impl From<Ballot> for BallotHead {
    fn from(Ballot { term, node, committed }: Ballot) -> Self {
        Self { term, node: node.map(|node| node.0), committed }
    }
}

impl From<BallotHead> for Ballot {
    fn from(BallotHead { term, node, committed }: BallotHead) -> Self {
        Self { term, node: node.map(NodeId), committed }
    }
}

impl From<Position> for PositionHead {
    fn from(Position { term, index }: Position) -> Self {
        Self { term, index }
    }
}

impl From<PositionHead> for Position {
    fn from(PositionHead { term, index }: PositionHead) -> Self {
        Self { term, index }
    }
}

fn head(position: Option<Position>) -> Option<PositionHead> {
    position.map(Into::into)
}

fn position(head: Option<PositionHead>) -> Option<Position> {
    head.map(Into::into)
}

pub(super) fn call_head(call: ConsensusCall) -> Result<(CallHead, Vec<Bytes>), WireError> {
    let (call, payload) = match call {
        ConsensusCall::Append { vote, previous, committed, entries } => {
            bounded(entries.len(), APPEND_ENTRIES, "entries")?;
            let lengths = entries.iter().map(|entry| bounded(entry.len(), MAX_LOG_ENTRY, "entry"));
            let lengths = lengths.collect::<Result<_, _>>()?;
            let (previous, committed) = (head(previous), head(committed));
            (CallHead::Append { vote: vote.into(), previous, committed, entries: lengths }, entries)
        }
        ConsensusCall::Vote { vote, last } => {
            (CallHead::Vote { vote: vote.into(), last: head(last) }, Vec::new())
        }
        ConsensusCall::SnapshotBegin { vote, transfer, head } => {
            let len = bounded(head.len(), MAX_DATA, "head")?;
            (CallHead::SnapshotBegin { vote: vote.into(), transfer, head: len }, vec![head])
        }
        ConsensusCall::SnapshotChunk { transfer, number, rows } => {
            let len = bounded(rows.len(), MAX_DATA, "rows")?;
            (CallHead::SnapshotChunk { transfer, number, rows: len }, vec![rows])
        }
        ConsensusCall::SnapshotEnd { transfer, chunks } => {
            (CallHead::SnapshotEnd { transfer, chunks }, Vec::new())
        }
        ConsensusCall::Members => (CallHead::Members, Vec::new()),
        ConsensusCall::Lead => (CallHead::Lead, Vec::new()),
        ConsensusCall::Silent { last } => (CallHead::Silent { last: head(last) }, Vec::new()),
    };
    Ok((call, payload))
}

pub(super) fn call_of(head: CallHead, payload: &mut Payload) -> Result<ConsensusCall, WireError> {
    Ok(match head {
        CallHead::Append { vote, previous, committed, entries } => {
            bounded(entries.len(), APPEND_ENTRIES, "entries")?;
            let entries = entries.into_iter().map(|len| {
                bounded(len as usize, MAX_LOG_ENTRY, "entry")?;
                payload.take(len)
            });
            ConsensusCall::Append {
                vote: vote.into(),
                previous: position(previous),
                committed: position(committed),
                entries: entries.collect::<Result<_, _>>()?,
            }
        }
        CallHead::Vote { vote, last } => ConsensusCall::Vote { vote: vote.into(), last: position(last) },
        CallHead::SnapshotBegin { vote, transfer, head } => {
            bounded(head as usize, MAX_DATA, "head")?;
            ConsensusCall::SnapshotBegin { vote: vote.into(), transfer, head: payload.take(head)? }
        }
        CallHead::SnapshotChunk { transfer, number, rows } => {
            bounded(rows as usize, MAX_DATA, "rows")?;
            ConsensusCall::SnapshotChunk { transfer, number, rows: payload.take(rows)? }
        }
        CallHead::SnapshotEnd { transfer, chunks } => ConsensusCall::SnapshotEnd { transfer, chunks },
        CallHead::Members => ConsensusCall::Members,
        CallHead::Lead => ConsensusCall::Lead,
        CallHead::Silent { last } => ConsensusCall::Silent { last: position(last) },
    })
}

fn plain(nodes: &[NodeId]) -> Result<Vec<[u8; 16]>, WireError> {
    bounded(nodes.len(), 2 * MAX_MEMBERS, "members")?;
    Ok(nodes.iter().map(|node| node.0).collect())
}

fn nodes(plain: Vec<[u8; 16]>) -> Result<Vec<NodeId>, WireError> {
    bounded(plain.len(), 2 * MAX_MEMBERS, "members")?;
    Ok(plain.into_iter().map(NodeId).collect())
}

pub(super) fn answer_head(answer: &ConsensusAnswer) -> Result<AnswerHead, WireError> {
    Ok(match *answer {
        ConsensusAnswer::Appended => AnswerHead::Appended,
        ConsensusAnswer::AppendedTo(to) => AnswerHead::AppendedTo(head(to)),
        ConsensusAnswer::Conflict => AnswerHead::Conflict,
        ConsensusAnswer::Higher(vote) => AnswerHead::Higher(vote.into()),
        ConsensusAnswer::Voted { vote, granted, last } => {
            AnswerHead::Voted { vote: vote.into(), granted, last: head(last) }
        }
        ConsensusAnswer::Next(chunk) => AnswerHead::Next(chunk),
        ConsensusAnswer::Busy => AnswerHead::Busy,
        ConsensusAnswer::Installed(vote) => AnswerHead::Installed(vote.into()),
        ConsensusAnswer::Members { ref voters, ref learners } => {
            AnswerHead::Members { voters: plain(voters)?, learners: plain(learners)? }
        }
        ConsensusAnswer::Campaigns => AnswerHead::Campaigns,
        ConsensusAnswer::Silent(silent) => AnswerHead::Silent(silent),
    })
}

pub(super) fn answer_of(head: AnswerHead) -> Result<ConsensusAnswer, WireError> {
    Ok(match head {
        AnswerHead::Appended => ConsensusAnswer::Appended,
        AnswerHead::AppendedTo(to) => ConsensusAnswer::AppendedTo(position(to)),
        AnswerHead::Conflict => ConsensusAnswer::Conflict,
        AnswerHead::Higher(vote) => ConsensusAnswer::Higher(vote.into()),
        AnswerHead::Voted { vote, granted, last } => {
            ConsensusAnswer::Voted { vote: vote.into(), granted, last: position(last) }
        }
        AnswerHead::Next(chunk) => ConsensusAnswer::Next(chunk),
        AnswerHead::Busy => ConsensusAnswer::Busy,
        AnswerHead::Installed(vote) => ConsensusAnswer::Installed(vote.into()),
        AnswerHead::Members { voters, learners } => {
            ConsensusAnswer::Members { voters: nodes(voters)?, learners: nodes(learners)? }
        }
        AnswerHead::Campaigns => ConsensusAnswer::Campaigns,
        AnswerHead::Silent(silent) => ConsensusAnswer::Silent(silent),
    })
}
