//! Volumes on the engine: those of one member, on a disk of this node, and heads and members of those that have several.
//!
//! Invariant: what was flushed, or read, is durable and applied, and never lost; what was written later may be, from its end on.

mod attached;
mod bodies;
mod copy;
mod device;
mod driver;
mod elsewhere;
mod error;
mod fork;
mod former;
mod going;
mod label;
mod lineage;
mod link;
mod members;
mod namesakes;
mod overlay;
mod promise;
mod replica;
mod replicated;
mod replicated_lineage;
mod replicated_serve;
mod roll;
mod rows;
mod sealed;
mod seat;
mod serve;
mod tail;
#[cfg(test)]
mod tests;
mod volumes;
mod waterline;

pub use bodies::Kept;
pub use device::{Device, Piece, Stretch};
pub use driver::{Commit, Condition, Seen, Views};
pub use elsewhere::Elsewhere;
pub use error::VolumeError;
pub use label::{BadLabel, Label, MAX_DESCRIPTION, MAX_NAME, Parent, SnapshotLabel, is_name};
pub use link::{Peer, Reach, Unanswered, Whereabouts};
pub use members::Members;
pub use replicated::{Attachment, Replicated};
pub use replicated_serve::Attached;
pub use roll::{Noted, Roll};
pub use seat::{Seat, Snapshot};
pub use tail::Placed;
pub use volumes::{Volume, Volumes};
