//! The control group: which nodes and disks the cluster has, and the ring over them.
//!
//! Invariant: the control group alone says what the cluster is; files and configuration only help to find it.

mod announce;
mod children;
pub(crate) mod compare;
mod doors;
mod follow;
pub(crate) mod founding;
mod govern;
pub(crate) mod groups;
mod health;
mod introduce;
mod join;
pub(crate) mod leaving;
pub(crate) mod left;
pub(crate) mod member;
mod noting;
pub(crate) mod operator;
pub(crate) mod people;
mod plan;
pub(crate) mod policies;
pub(crate) mod policy_edit;
mod replace;
pub(crate) mod report;
pub(crate) mod roster;
mod runtime;
pub(crate) mod seating;
mod seats;
mod split;
pub(crate) mod state;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod volumes;

use quarry_engine::consensus::GroupError;
use quarry_engine::disk::format::record::DeviceId;

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
    /// Its members of volumes.
    #[error("read volumes: {0}")]
    Volumes(#[from] quarry_volume::store::VolumeError),
    /// What it has voted is on another disk.
    #[error(
        "the first disk, {found}, is not the one that has this node's votes, {known}: list that one first, or, if it is lost, make \
         this machine another node in its own place with `quarry join TOKEN --data DIR --replace`; a node that forgot its votes \
         could undo what was acknowledged"
    )]
    OtherDisk {
        /// The disk that is there.
        found: DeviceId,
        /// The disk that was there.
        known: String,
    },
    /// It votes for another node.
    #[error(
        "the first disk, {0}, has the votes of another node, in whose place this one comes: give it an empty disk (`quarry disk format \
         --overwrite`), or list another disk first"
    )]
    Votes(DeviceId),
    /// The index groups of the new cluster may be on a disk that is missing, and must not be made a second time.
    #[error(
        "disk {0} is missing, and the cluster is not founded yet: the node that founds it starts with all its disks"
    )]
    Unfounded(DeviceId),
    /// It has none.
    #[error("a node of a cluster needs a disk")]
    NoDisk,
}
