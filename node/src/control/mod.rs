//! The control group: which nodes and disks the cluster has, and the ring over them.
//!
//! Invariant: the control group alone says what the cluster is; files and configuration only help to find it.

mod announce;
mod follow;
pub(crate) mod founding;
mod govern;
pub(crate) mod groups;
mod introduce;
pub(crate) mod member;
pub(crate) mod operator;
mod peers;
pub(crate) mod people;
mod plan;
pub(crate) mod report;
pub(crate) mod roster;
mod runtime;
pub(crate) mod seating;
mod seats;
pub(crate) mod state;

use quarry_engine::consensus::GroupError;

use crate::cluster::{ClusterError, IdentityError};

/// Why a node is no member of its cluster.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// Its transport or its identity.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Its files.
    #[error("open identity: {0}")]
    Identity(#[from] IdentityError),
    /// Its groups.
    #[error("open group: {0}")]
    Group(#[from] GroupError),
    /// Its objects.
    #[error("open store: {0}")]
    Store(#[from] quarry_engine::object::Error),
    /// It has none.
    #[error("a node of a cluster needs a disk")]
    NoDisk,
}
