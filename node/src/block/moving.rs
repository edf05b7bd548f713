//! Volumes that go to another node: the names that they have meanwhile, and what the node that has one tells the other.
//!
//! Invariant: what is on its way is no export: no client finds it, by its name or by its id.
//! Invariant: other nodes are told of what is on its way alone.

use bytes::Bytes;
use quarry_engine::net::VolumeAnswer;
use quarry_volume::VolumeId;
use quarry_volume::store::{Volume, VolumeError, Volumes};

/// Most bytes of an answer.
const MOST: u64 = 1 << 20;
/// Most blocks that one look at the map takes.
const BLOCKS: usize = 256;

/// The two ends of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It goes from here; its bytes are read.
    Leaving,
    /// It comes here; its bytes are written.
    Arriving,
}

const ENDS: [(End, &str); 2] = [(End::Leaving, "leaving-"), (End::Arriving, "arriving-")];
/// Length of an id of the volume API.
const ID: usize = 36;

impl End {
    /// The name that a volume of the volume API has meanwhile.
    pub(crate) fn name_of(self, id: &str) -> String {
        let (_, before) = ENDS[usize::from(self == Self::Arriving)];
        format!("{before}{id}")
    }
}

/// Which end of which volume's way has this name.
pub(crate) fn end_of(name: &str) -> Option<(End, &str)> {
    let of = |(end, before): (End, &str)| name.strip_prefix(before).map(|id| (end, id));
    ENDS.into_iter().find_map(of).filter(|(_, id)| id.len() == ID)
}

pub(super) fn is_on_its_way(volume: &Volume) -> bool {
    end_of(&volume.label.name).is_some()
}

/// The first data from a byte on.
pub(crate) async fn tell(volumes: &Volumes, id: VolumeId, from: u64) -> VolumeAnswer {
    match data_from(volumes, id, from).await {
        Ok((at, data)) => VolumeAnswer::Copied { at, data },
        Err(error) => {
            tracing::warn!(volume = %hex::encode(id.0), from, %error, "tell another node what a volume holds");
            VolumeAnswer::Unreadable
        }
    }
}

async fn data_from(volumes: &Volumes, id: VolumeId, from: u64) -> Result<(u64, Bytes), VolumeError> {
    let leaves = |volume: &Volume| matches!(end_of(&volume.label.name), Some((End::Leaving, _)));
    let volume = volumes.with_id(id).filter(leaves);
    let volume = volume.ok_or_else(|| VolumeError::NoVolume(hex::encode(id.0)))?;
    // Whoever was its head before is refused from here on.
    let device = volumes.attach(&volume.label.name).await?;
    let (mut at, end) = (from, device.bytes());
    while at < end {
        for stretch in device.stretches(at, end - at, BLOCKS).await? {
            if stretch.hole {
                at += stretch.bytes;
                continue;
            }
            let data = device.read_whole(at, stretch.bytes.min(MOST)).await?;
            return Ok((at, data.freeze()));
        }
    }
    Ok((end, Bytes::new()))
}
