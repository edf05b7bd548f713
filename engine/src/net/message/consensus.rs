//! What the voters of a group of rows say to one another.
//!
//! Invariant: log entries and heads of snapshots travel as the bytes that lie on disks (engine/FORMAT-groups.md), behind the head.

use bytes::Bytes;

use crate::net::NodeId;

/// A place in a group's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Of the leader that wrote the entry.
    pub term: u64,
    /// Counted up from 0.
    pub index: u64,
}

/// A vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ballot {
    /// Which term.
    pub term: u64,
    /// For whom.
    pub node: Option<NodeId>,
    /// A majority gave it: this node leads.
    pub committed: bool,
}

/// A call to a voter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsensusCall {
    /// Entries of the log; without any, a sign of life.
    Append {
        /// Of the leader.
        vote: Ballot,
        /// The entry before the first.
        previous: Option<Position>,
        /// Up to where the leader has heard of a majority.
        committed: Option<Position>,
        /// In order.
        entries: Vec<Bytes>,
    },
    /// Vote for this node.
    Vote {
        /// For whom.
        vote: Ballot,
        /// The end of its log.
        last: Option<Position>,
    },
    /// A snapshot is coming.
    SnapshotBegin {
        /// Of the leader.
        vote: Ballot,
        /// Names this transfer, at this leader.
        transfer: u64,
        /// What was applied when it was taken.
        head: Bytes,
    },
    /// A part of it.
    SnapshotChunk {
        /// Which transfer.
        transfer: u64,
        /// Counted up from 0.
        number: u64,
        /// Rows.
        rows: Bytes,
    },
    /// All of it was sent: install it. To be repeated until it is.
    SnapshotEnd {
        /// Which transfer.
        transfer: u64,
        /// How many chunks it had.
        chunks: u64,
    },
    /// To a leader: who are the members?
    Members,
    /// From the leader: call an election now.
    Lead,
    /// Have you heard of no leader for long either?
    Silent {
        /// The end of the log of whoever asks.
        last: Option<Position>,
    },
}

/// A voter's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsensusAnswer {
    /// The entries are durable here.
    Appended,
    /// Those up to here are.
    AppendedTo(Option<Position>),
    /// The entry before the first is another here, or missing.
    Conflict,
    /// This voter has a higher vote.
    Higher(Ballot),
    /// To a vote.
    Voted {
        /// Its vote now.
        vote: Ballot,
        /// It is the one asked for.
        granted: bool,
        /// The end of its log.
        last: Option<Position>,
    },
    /// Send this chunk next.
    Next(u64),
    /// Ask again later.
    Busy,
    /// The snapshot is what stands here, or less than that.
    Installed(Ballot),
    /// The members, after a majority confirmed that this node leads.
    Members {
        /// Who votes; while they are being changed, those of before and after.
        voters: Vec<NodeId>,
        /// Who does not.
        learners: Vec<NodeId>,
    },
    /// An election was called.
    Campaigns,
    /// Whether no leader was heard of, and the log is no longer than the one that was asked with.
    Silent(bool),
}
