//! Volumes that go to another node: the names that they have meanwhile, and what the node that has one tells the other.
//!
//! Invariant: what is on its way is no export: no client finds it, by its name or by its id.
//! Invariant: other nodes are told of what is on its way alone.

use std::sync::Arc;

use bytes::Bytes;
use quarry_engine::net::VolumeAnswer;
use quarry_volume::VolumeId;
use quarry_volume::store::{Attached, Volume, VolumeError, Volumes};

use super::either::attach_own;
use super::elsewhere::first_data;

/// The two ends of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It goes from here; its bytes are read.
    Leaving,
    /// It comes here; its bytes are written.
    Arriving,
}

/// What such names begin with.
pub(super) const PREFIXES: [&str; 2] = ["leaving-", "arriving-"];
const ENDS: [(End, &str); 2] = [(End::Leaving, PREFIXES[0]), (End::Arriving, PREFIXES[1])];

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
    ENDS.into_iter().find_map(of).filter(|(_, id)| is_id(id))
}

/// Whether it is an id as the volume API gives them.
pub(crate) fn is_id(text: &str) -> bool {
    let dash = |at: usize| matches!(at, 8 | 13 | 18 | 23);
    text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| if dash(at) { b == b'-' } else { b.is_ascii_hexdigit() })
}

pub(super) fn is_on_its_way(volume: &Volume) -> bool {
    end_of(&volume.label.name).is_some()
}

/// The first data from a byte on.
pub(crate) async fn tell(volumes: &Arc<Volumes>, id: VolumeId, from: u64) -> VolumeAnswer {
    match data_from(volumes, id, from).await {
        Ok((at, data)) => VolumeAnswer::Copied { at, data },
        Err(error) => {
            tracing::warn!(volume = %hex::encode(id.0), from, %error, "tell another node what a volume holds");
            VolumeAnswer::Unreadable
        }
    }
}

async fn data_from(volumes: &Arc<Volumes>, id: VolumeId, from: u64) -> Result<(u64, Bytes), VolumeError> {
    let leaves = |volume: &Volume| matches!(end_of(&volume.label.name), Some((End::Leaving, _)));
    let volume = volumes.with_id(id).filter(leaves);
    let volume = volume.ok_or_else(|| VolumeError::NoVolume(hex::encode(id.0)))?;
    // Whoever was its head before is refused from here on.
    let device = Attached::Own(attach_own(volumes, &volume.label.name).await?);
    first_data(&device, from, u64::MAX).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_an_operator_is_no_volume_on_its_way() {
        let id = "00000000-0000-4000-8000-00000000000a";
        for end in [End::Leaving, End::Arriving] {
            assert_eq!(end_of(&end.name_of(id)), Some((end, id)));
        }
        let long = format!("leaving-{}", "the-office-and-everything-that-is-there".get(..36).unwrap());
        for name in
            ["leaving-", "arriving-tomorrow", long.as_str(), "volume-00000000-0000-4000-8000-00000000000a"]
        {
            assert_eq!(end_of(name), None, "{name}");
        }
    }
}
