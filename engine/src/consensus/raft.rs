//! openraft's types, as groups of rows use them.

use std::sync::Arc;

use openraft::{RaftTypeConfig, StorageError, StorageIOError};

use super::runtime::Ambient;
use super::snapshot::SnapshotData;
use super::types::{Entry, Outcome};
use crate::net::NodeId;

/// Groups of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rows;

/// Entries that are proposed together: one entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command(pub(crate) Arc<Vec<Entry>>);

impl RaftTypeConfig for Rows {
    type D = Command;
    type R = Vec<Outcome>;
    type NodeId = NodeId;
    type Node = openraft::EmptyNode;
    type Entry = openraft::Entry<Self>;
    type SnapshotData = SnapshotData;
    type AsyncRuntime = Ambient;
    type Responder = openraft::impls::OneshotResponder<Self>;
}

pub(crate) type LogId = openraft::LogId<NodeId>;
pub(crate) type Vote = openraft::Vote<NodeId>;
pub(crate) type LogEntry = openraft::Entry<Rows>;
pub(crate) type Payload = openraft::EntryPayload<Rows>;
pub(crate) type Membership = openraft::Membership<NodeId, openraft::EmptyNode>;
pub(crate) type StoredMembership = openraft::StoredMembership<NodeId, openraft::EmptyNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<NodeId, openraft::EmptyNode>;
pub(crate) type Snapshot = openraft::Snapshot<Rows>;
pub(crate) type Stored<T> = Result<T, StorageError<NodeId>>;
pub(crate) type Raft = openraft::Raft<Rows>;

/// The log id of an index in a term.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(term, NodeId::default()), index)
}

/// What openraft is told when the disk did not do what it had to: the group stops.
pub(crate) fn broken(e: &(impl std::error::Error + 'static)) -> StorageError<NodeId> {
    StorageIOError::write(openraft::AnyError::new(e)).into()
}

/// Bytes of an entry that every voter took for readable, and are not.
pub(crate) fn broken_value(e: crate::catalog::BadValue) -> crate::disk::DiskError {
    crate::disk::DiskError::from(crate::index::IndexError::Store { verb: "decode", reason: e.to_string() })
}
