//! What volumes were at one moment, kept while something is made of it: a backup, an image, another volume.
//!
//! Invariant: it is let go when that comes to an end, however it ends. While a task is tried again it stays: what is made is of one moment.
//! Invariant: it has the name of what is made. So an image of a volume is never of what was kept for an earlier one.
//! Invariant: what no task names any more is let go: the task was taken away (a state that was set by hand, a forced delete), or the node
//! was killed when it had ended. Of a volume with several members whose head is gone for ever, another node does it.

use std::collections::HashSet;
use std::time::Duration;

use quarry_volume::store::{Attached, VolumeError};
use serde_json::Value;
use tokio::time::Instant;

use super::fields::{map, text};
use super::work::Trouble;
use super::{Office, backups, several, volumes};
use crate::papers::{Paper, PaperError};
use crate::storage::wall_clock;

const PREFIX: &str = "passing-";
/// How often it is looked for what no task names.
const EVERY: Duration = Duration::from_secs(60);

/// The name of what is kept for the volume, backup or image `id`.
pub(super) fn name_for(id: &str) -> String {
    format!("{PREFIX}{id}")
}

/// Freezes a volume; that it was done already is good.
pub(super) async fn freeze(office: &Office, volume: &str, snapshot: &str) -> Result<(), Trouble> {
    several::lead(office, volume).await?;
    match office.blocks.exports.freeze(volume, snapshot, wall_clock() / 1000).await {
        Ok(()) | Err(VolumeError::Taken(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Forgets what was frozen, but for volumes that were made of it; that it is not there is good.
pub(super) async fn thaw(office: &Office, volume: &str, snapshot: &str) -> Result<(), Trouble> {
    several::lead(office, volume).await?;
    let exports = &office.blocks.exports;
    match exports.certainly(|| exports.let_snapshot_go(volume, snapshot)).await {
        Ok(()) | Err(VolumeError::NoSnapshot(..) | VolumeError::NoVolume(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What a snapshot sees.
pub(super) async fn view(office: &Office, volume: &str, snapshot: &str) -> Result<Attached, VolumeError> {
    several::lead(office, volume).await?;
    let exports = &office.blocks.exports;
    exports.certainly(|| exports.view(volume, snapshot)).await
}

/// Makes `id` of a volume as it is now, or was when this was begun before.
pub(super) async fn while_kept<T>(
    office: &Office,
    volume: &str,
    id: &str,
    make: impl AsyncFnOnce(&str) -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    let kept = name_for(id);
    freeze(office, volume, &kept).await?;
    let made = make(&kept).await;
    if !matches!(made, Err(Trouble::Again(_) | Trouble::Later(_)))
        && let Err(error) = thaw(office, volume, &kept).await
    {
        // What was made is made; the sweep finds it.
        tracing::warn!(volume, kept, %error, "let go what was kept of a volume; it is tried again");
    }
    made
}

/// Now and then: lets go what no task names.
pub(super) async fn sweep(office: &Office, swept: &mut Option<Instant>) -> Result<(), PaperError> {
    if swept.is_some_and(|swept| swept.elapsed() < EVERY) {
        return Ok(());
    }
    // Before the papers: who keeps something has told its paper so.
    let kept = all_here(office).await;
    if !kept.is_empty() {
        let wanted = wanted(office).await?;
        for (volume, snapshot, id) in kept {
            // A task that was taken away may not have heard of it.
            let is_read =
                office.busy(|busy| busy.contains(&id) || id_of(&volume).is_some_and(|id| busy.contains(id)));
            if is_read || wanted.contains(&id) {
                continue;
            }
            tracing::info!(
                volume,
                snapshot,
                "let go what was kept of a volume for what is not made any more"
            );
            if let Err(error) = thaw(office, &volume, &snapshot).await {
                tracing::warn!(volume, snapshot, %error, "let go what was kept of a volume");
            }
        }
    }
    *swept = Some(Instant::now());
    Ok(())
}

/// Whose volume has this name in the volume layer.
fn id_of(device: &str) -> Option<&str> {
    device.strip_prefix("volume-")
}

/// All that is kept of volumes of this node, and of those with several members that it sees to: volume, snapshot, and for what.
async fn all_here(office: &Office) -> Vec<(String, String, String)> {
    let exports = &office.blocks.exports;
    let own = exports.volumes().named(|name| id_of(name).is_some()).into_iter();
    let own = own.flat_map(|volume| {
        let all = volume.snapshots().into_iter().map(|snapshot| snapshot.label.name);
        all.map(|snapshot| (volume.label.name.clone(), snapshot)).collect::<Vec<_>>()
    });
    let mut seen_to = Vec::new();
    if let Some(shared) = exports.shared() {
        for (volume, snapshots) in shared.frozen_as(PREFIX) {
            if several::sees_to(office, &volume).await {
                seen_to.extend(snapshots.into_iter().map(|snapshot| (volume.clone(), snapshot)));
            }
        }
    }
    let passing = |(volume, snapshot): (String, String)| {
        let id = snapshot.strip_prefix(PREFIX)?.to_owned();
        Some((volume, snapshot, id))
    };
    own.chain(seen_to).filter_map(passing).collect()
}

/// What is being made.
async fn wanted(office: &Office) -> Result<HashSet<String>, PaperError> {
    let mut wanted = HashSet::new();
    for drawer in [volumes::DRAWER, backups::DRAWER] {
        for paper in office.papers.all(drawer).await? {
            if paper.get("task").is_some_and(Value::is_object) {
                wanted.insert(text(&paper, "id").to_owned());
                wanted.insert(image_of(&paper));
            }
        }
    }
    Ok(wanted)
}

/// The image that a volume's task is about.
pub(super) fn image_of(volume: &Paper) -> String {
    text(&map(&map(volume, "task"), "image"), "id").to_owned()
}
