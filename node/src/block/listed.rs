//! A node's volumes with one member and their snapshots, told page by page to nodes whose users ask for them.
//!
//! Invariant: a list that changes between two pages may miss what changed, and ends.

use quarry_engine::net::ListedVolume;
use quarry_engine::net::limits::MAX_LISTED;
use quarry_volume::store::Volume;

use super::Exports;

/// All of them, each volume with its snapshots behind it.
pub(crate) fn all(exports: &Exports) -> Vec<ListedVolume> {
    exports.volumes().list().iter().flat_map(|volume| with_snapshots(exports, volume)).collect()
}

fn with_snapshots(exports: &Exports, volume: &Volume) -> Vec<ListedVolume> {
    let one = |name: &str, bytes, snapshot: bool| {
        let export = if snapshot { format!("{}@{name}", volume.label.name) } else { name.to_owned() };
        ListedVolume {
            volume: volume.id,
            snapshot,
            name: name.to_owned(),
            bytes,
            encrypted: volume.label.key.is_some(),
            used: exports.users_of(&export) > 0,
        }
    };
    let mut all = vec![one(&volume.label.name, volume.label.bytes, false)];
    all.extend(volume.snapshots().iter().map(|frozen| one(&frozen.label.name, frozen.label.bytes, true)));
    all
}

/// Those behind the first `from`, as many as a message takes.
pub(crate) fn page(exports: &Exports, from: u32) -> Vec<ListedVolume> {
    let known = usize::try_from(from).unwrap_or(usize::MAX);
    all(exports).into_iter().skip(known).take(MAX_LISTED).collect()
}
