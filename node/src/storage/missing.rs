//! Disks that do not open: a node of a cluster starts without them.
//!
//! What one disk holds the cluster has elsewhere, so one dead disk of twelve is no reason to take eleven away from it. To the cluster a disk
//! that is missing at the start is like one that fails later: it answers nothing, nothing is moved off it, and an operator replaces it.
//!
//! | the disk                                                                | node of a cluster | node on its own |
//! |-------------------------------------------------------------------------|-------------------|-----------------|
//! | was never open (a first start, a disk that was just listed)             | refuse            | refuse          |
//! | was open, and is gone, unreadable, damaged, empty; or its index is      | start without it  | refuse          |
//! | was open, and is listed no more, or another one is in its place         | start without it  | refuse          |
//! | is an older copy of itself, or lost what was promised ([`super::known`]) | start without it  | start           |
//! | is in use, of another cluster, of a newer version                       | refuse            | refuse          |
//! | was never used, and has the index of one that is gone                   | make that anew    | refuse          |
//! | has the index of any other disk                                         | refuse            | refuse          |
//! | is the first one, which has the node's votes and the cluster's state    | refuse            | refuse          |
//! | is one of all that are listed, of which none opens                      | refuse            | refuse          |
//!
//! The fifth and the seventh line are for slips, which somebody mends in a minute, and not for dead disks. The eighth: a voter that forgot its votes could
//! undo what was acknowledged (`control/replace.rs`), and without the cluster's state a node can decide nothing. A node on its own has nobody
//! to have it from elsewhere, and promised nothing to others: what its log says of losses is all that can be done.
//!
//! Invariant: a disk is done without only if an earlier start opened it: the data directory says so.
//! Invariant: what is missing is made nowhere anew: no file in its place, no index group of which it may have the votes (`control/seats.rs`),
//! no volume of which it may have the bytes (`block/roll.rs`).

use std::path::{Path, PathBuf};

use quarry_engine::catalog::{DataId, PathHash, Version};
use quarry_engine::disk::format::record::{DeviceId, StoredRecord};
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::disk::{self, Class, Durability, Location, StartError};
use quarry_engine::io::DeviceError;
use quarry_engine::object::{self, BoxFuture, Draft, Error, Opened, Replica};
use quarry_engine::sync::{Answer, Ask};
use rustix::io::Errno;

use super::{OpenError, provision};

/// A disk that the node does without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// As configured, or where it was when it was.
    pub(crate) path: PathBuf,
    /// Which one it was.
    pub(crate) device: DeviceId,
    /// Why it is not open.
    pub(crate) why: String,
}

/// Whether a disk that does not open may be dead. Otherwise somebody made a slip, or a program that is too old was started.
pub(super) fn is_dead(error: &StartError) -> bool {
    match error {
        StartError::Device(DeviceError::Io { source, .. }) => {
            source.kind() != std::io::ErrorKind::PermissionDenied && !is_of_this_node(source)
        }
        StartError::Device(error) => {
            matches!(error, DeviceError::Missing { .. } | DeviceError::TooSmall { .. })
        }
        StartError::Open(error) => !matches!(
            error,
            disk::OpenError::OtherCluster { .. } | disk::OpenError::Newer(_) | disk::OpenError::OtherIndex(_)
        ),
        StartError::Index(_) => true,
        StartError::Thread(_) => false,
    }
}

/// Whether that is a slip. A new disk in the place of another one may have the index of that one.
pub(super) fn is_slip(error: &StartError) -> bool {
    !is_dead(error) && !has_others_index(error)
}

/// The index is that of another disk.
pub(super) fn has_others_index(error: &StartError) -> bool {
    matches!(error, StartError::Open(disk::OpenError::OtherIndex(_)))
}

/// The node has no memory, threads or descriptors left, which says nothing about a disk.
fn is_of_this_node(error: &std::io::Error) -> bool {
    let all = [Errno::NOMEM, Errno::AGAIN, Errno::NFILE, Errno::MFILE];
    Errno::from_io_error(error).is_some_and(|errno| all.contains(&errno))
}

/// Why a disk does not open that was a part of this cluster: what is said of one that was never formatted would have it formatted.
pub(super) fn why(path: &Path, error: &StartError) -> String {
    match error {
        StartError::Open(disk::OpenError::Unformatted) => {
            "not a Quarry device any more: it has no superblock, or another disk is in its place".to_owned()
        }
        error => OpenError::new(path, error).reason,
    }
}

/// Says loudly what is missing, why, and what to do; `forgetting`: how it is forgotten if the cluster never knew it.
pub(super) fn say(missing: &Missing, cluster: ClusterId, forgetting: &str) {
    let Missing { path, device, why } = missing;
    let cluster = provision::cluster_text(cluster);
    tracing::error!(
        disk = %path.display(),
        %device,
        why,
        "this node starts without a disk: copies of what it holds are on other nodes, but fewer than there should be. If it can be mended, mend it \
         and start the node again. If it is lost: put another in, list it as [[disk]] instead (`quarry disk format PATH --cluster {cluster}` makes it one of this cluster), \
         start the node, and have it take over with `quarry disk replace {device} NEW --dead`; or take it out with `quarry disk remove {device}` \
         and out of the configuration (if the cluster knows no such disk: {forgetting})"
    );
}

/// What is said where the disk that has the node's votes does not open.
pub(super) fn has_votes(path: &Path, why: &str) -> OpenError {
    let reason = format!(
        "{why}; it is the first disk, which has this node's votes and what it knows of the cluster, and without it the node does not start. If it \
         is lost, make this machine another node in its own place, with an empty disk listed first: `quarry join TOKEN --data DIR --replace`"
    );
    OpenError { disk: path.to_owned(), reason }
}

/// A device of this node that is not here: it fails whatever it is asked, as one does that failed while it was open.
#[derive(Debug, Clone)]
pub(crate) struct Absent {
    device: DeviceId,
    why: String,
}

impl Absent {
    /// `missing`: what was found out at the start.
    pub(crate) fn new(device: DeviceId, missing: &[Missing]) -> Self {
        let known = missing.iter().find(|missing| missing.device == device);
        let why = known.map_or_else(
            || format!("device {device} is not at this node"),
            |Missing { path, why, .. }| format!("disk {} (device {device}) is away: {why}", path.display()),
        );
        Self { device, why }
    }

    fn fail<T: Send + 'static>(&self) -> BoxFuture<'static, object::Result<T>> {
        Box::pin(std::future::ready(Err(Error::Unavailable { reason: self.why.clone() })))
    }
}

impl Replica for Absent {
    fn device(&self) -> DeviceId {
        self.device
    }

    fn append(&self, _: Vec<Draft>, _: Durability, _: Class) -> BoxFuture<'static, object::Result<()>> {
        self.fail()
    }

    fn abandon(&self, _: DataId, _: u64) {}

    fn version(&self, _: PathHash) -> BoxFuture<'static, object::Result<Option<Version>>> {
        self.fail()
    }

    fn open(&self, _: PathHash) -> BoxFuture<'static, object::Result<Option<Opened>>> {
        self.fail()
    }

    fn read(&self, _: Location) -> BoxFuture<'static, object::Result<StoredRecord>> {
        self.fail()
    }

    fn ask(&self, _: Ask) -> BoxFuture<'static, object::Result<Answer>> {
        self.fail()
    }
}

#[cfg(test)]
#[path = "missing_tests.rs"]
mod tests;
