//! What a node remembers of its volumes beside their disks: which there are, on which disk, and which key wraps theirs. A disk that is away
//! does not say it.
//!
//! Invariant: a volume is in the roll before it is made, and as long as it is there; what was renamed or deleted is in it as it was for a
//! moment longer.

use quarry_engine::block::VolumeId;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::object::BoxFuture;

use super::volumes::Volume;
use crate::cipher::KeyName;

/// A volume as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Noted {
    /// The disk.
    pub device: DeviceId,
    /// Its identity.
    pub id: VolumeId,
    /// The key that wraps its own, if it is encrypted.
    pub key: Option<KeyName>,
    /// Its name; none where it is there for its clones alone.
    pub name: Option<String>,
}

impl Noted {
    pub(super) fn of(volume: &Volume) -> Self {
        let (label, device) = (&volume.label, volume.seat().disk().device());
        let name = Some(label.name.clone()).filter(|_| !label.going);
        Self { device, id: volume.id, key: label.key.map(|key| key.wrapped_by()), name }
    }
}

/// Where the roll is kept.
pub trait Roll: Send + Sync + std::fmt::Debug {
    /// Writes it down, durably. Calls come one after the other, or at the same time.
    fn write(&self, all: Vec<Noted>) -> BoxFuture<'static, std::io::Result<()>>;
}
