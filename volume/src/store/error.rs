//! Why something about a volume cannot be done.

use quarry_engine::disk::DiskError;
use quarry_engine::disk::format::record::DeviceId;

use super::label::BadLabel;
use crate::cipher::CipherError;
use crate::geometry::{GeometryError, SplitError};
use crate::head::Failure;
use crate::member::Refusal;

/// Why something about a volume cannot be done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VolumeError {
    /// No volume of this name.
    #[error("there is no volume `{0}`")]
    NoVolume(String),
    /// It is on a disk of this node that is not here.
    #[error("volume `{0}` is on disk {1}, which is away; it is there again when the disk is")]
    Away(String, DeviceId),
    /// No snapshot of this name.
    #[error("volume `{0}` has no snapshot `{1}`")]
    NoSnapshot(String, String),
    /// What is read was a snapshot, which somebody deleted meanwhile: what only it saw is being given back.
    #[error("the snapshot was deleted")]
    SnapshotGone,
    /// The name is taken.
    #[error("the name `{0}` is taken")]
    Taken(String),
    /// No name.
    #[error("`{0}` is no name: 1 to 255 bytes, no spaces, none of @ / : ? #")]
    Name(String),
    /// Longer than may be.
    #[error("the description is longer than 1024 bytes")]
    Description,
    /// Volumes do not shrink.
    #[error("a volume of {0} bytes cannot become {1} bytes: volumes do not shrink")]
    Shrink(u64, u64),
    /// Somebody uses it.
    #[error("volume `{0}` is in use")]
    InUse(String),
    /// A node is its head.
    #[error("volume `{0}` has its head at node {1}: detach it first, from any node")]
    InUseAt(String, String),
    /// What others are clones of stays.
    #[error("`{0}` has a clone, volume `{1}`: delete or flatten that first")]
    HasClones(String, String),
    /// A clone holds all of its snapshot.
    #[error("a clone of {0} bytes cannot have {1} bytes")]
    Smaller(u64, u64),
    /// Above the mark at which no new volumes are placed, or full.
    #[error("no disk has room for it")]
    NoRoom,
    /// More eras than there are numbers.
    #[error("the volume had too many snapshots")]
    Eras,
    /// The size cannot be had.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The range cannot be had.
    #[error(transparent)]
    Range(#[from] SplitError),
    /// The member does not do it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Its bytes are encrypted, and cannot be made or read.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// The head of a volume with several members does not do it.
    #[error(transparent)]
    Head(#[from] Failure),
    /// Its members have not all that was acknowledged.
    #[error(
        "members of the volume have lost what was acknowledged: an operator must decide which of them is the volume (`quarry volume decide`)"
    )]
    Undecided,
    /// An operator's decision which member is the volume is not carried out.
    #[error("nothing is decided: {0}")]
    NotDecided(String),
    /// So many nodes that could have a member are not there.
    #[error("a volume with {0} members needs as many nodes with disks in the ring, and may have 5")]
    TooFewNodes(usize),
    /// A clone that is being made, or whose making was cut off.
    #[error("volume `{0}` is being made: use it when it is there; if that was cut off, delete it")]
    BeingMade(String),
    /// It would have more than may be.
    #[error("volume `{0}` has {1} snapshots, and may have no more")]
    TooManySnapshots(String, usize),
    /// What the cluster knows of the volume cannot be read or changed now.
    #[error("{0}")]
    Register(String),
    /// What was to be changed was changed meanwhile, by somebody else.
    #[error("somebody else changed the volume at the same time")]
    Changed,
    /// A note is unreadable.
    #[error(transparent)]
    Label(#[from] BadLabel),
    /// The disk does not do it.
    #[error(transparent)]
    Disk(#[from] DiskError),
}
