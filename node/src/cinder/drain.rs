//! A node that is to be emptied gives its volumes with one member to other nodes, a few at a time: as an admin would who migrates each.
//!
//! A volume of the API goes by its own paper. One of an operator has none: it gets one in `moves`, which names the export and goes with the
//! move. What is in use, or has snapshots, stays; `quarry cluster compare` names it.
//!
//! Invariant: what goes is whole somewhere at every moment, and is found by its name before and afterwards, whatever is killed (`migrate`).
//! Invariant: a volume that could not go is tried again, after a pause.

use quarry_volume::store::Volume;
use serde_json::{Value, json};

use super::fault::Fault;
use super::fields::{fresh_id, now, paper, text, time_text};
use super::states::{Deed, rule_of};
use super::work::{device_name, is_own};
use super::{Office, migrate, schedule, services, several, types, volumes};
use crate::block::Said;
use crate::block::moving::end_of;
use crate::papers::{Paper, PaperError};
use crate::storage::wall_clock;

/// Papers of operators' volumes on their way.
pub(crate) const MOVES: &str = "moves";
/// Volumes on their way from one node at a time.
const AT_ONCE: usize = 2;
/// Pause before one that could not go is tried again, in microseconds.
const AGAIN: u64 = 60_000_000;

/// Lets some go, if this node is to be emptied.
pub(super) async fn step(office: &Office) -> Result<(), PaperError> {
    let leaving = office.blocks.exports.shared().is_some_and(|shared| shared.is_leaving());
    if leaving { empty(office).await } else { Ok(()) }
}

/// Lets some of this node's volumes go.
pub(super) async fn empty(office: &Office) -> Result<(), PaperError> {
    let (known, moves) = (office.papers.all(volumes::DRAWER).await?, office.papers.all(MOVES).await?);
    let ours = |paper: &&std::sync::Arc<Paper>| is_own(office, text(paper, "host"));
    let on_their_way = known.iter().chain(&moves).filter(ours).filter(|paper| migrate::is_on_its_way(paper));
    let mut free = AT_ONCE.saturating_sub(on_their_way.count());
    for done in moves.iter().filter(ours).filter(|paper| !paper.contains_key("task")) {
        if !office.blocks.exports.has(text(done, "device")) {
            office.papers.remove(MOVES, text(done, "id")).await?;
        }
    }
    let late = time_text(wall_clock().saturating_sub(AGAIN));
    let failed_lately = |paper: &Paper| {
        let failed = text(paper, "migration_status") == "error" || text(paper, "status") == "error";
        failed && text(paper, "updated_at") > late.as_str()
    };
    for volume in office.blocks.exports.volumes().list() {
        let name = &volume.label.name;
        if free == 0 || end_of(name).is_some() || office.blocks.exports.users_of(name) > 0 {
            continue;
        }
        let of_api = known.iter().find(|paper| device_name(text(paper, "id")) == *name);
        let moved = moves.iter().filter(ours).find(|paper| text(paper, "device") == name);
        if of_api.or(moved).is_some_and(|paper| paper.contains_key("task") || failed_lately(paper)) {
            continue;
        }
        let begun = match of_api {
            Some(paper) => begin(office, paper).await,
            None => begin_own(office, &volume, moved.map(|paper| text(paper, "id"))).await,
        };
        match begun {
            Ok(()) => free -= 1,
            Err(fault) => {
                tracing::debug!(name, why = fault.message, "a volume stays at a node that is to be emptied");
            }
        }
    }
    Ok(())
}

async fn begin(office: &Office, volume: &Paper) -> Result<(), Fault> {
    let kind = types::named(office, text(volume, "volume_type_id")).await?;
    let to = schedule::elsewhere(office, &kind, text(volume, "host")).await?;
    let to = to.ok_or_else(|| Fault::state("no other node has room and fits its type."))?;
    let encryption = volume.get("encryption").cloned().unwrap_or(Value::Null);
    let way = migrate::Way { to, kind: None, encryption, members: several::members(volume) };
    migrate::begin(office, volume, Deed::Migrate, way).await
}

/// Writes the paper of an operator's volume, or takes the one of a try before.
async fn begin_own(office: &Office, volume: &Volume, before: Option<&str>) -> Result<(), Fault> {
    if !volume.snapshots().is_empty() {
        return Err(Fault::state("it has snapshots."));
    }
    let host = services::host_of(&office.place.host);
    let to = schedule::elsewhere(office, &Paper::new(), &host).await?;
    let to = to.ok_or_else(|| Fault::state("no other node has room."))?;
    let (label, rule) = (&volume.label, rule_of(Deed::Migrate));
    let encryption = label.key.map_or(Value::Null, |_| json!({}));
    let id = before.map_or_else(fresh_id, str::to_owned);
    let made = paper(json!({
        "id": id, "device": label.name, "host": host, "bytes": label.bytes,
        "description": label.description, "limits": Said(label.limits), "status": rule.during, "updated_at": now(),
        "task": {
            "do": rule.name, "phase": "leave", "to": to, "encryption": encryption, "members": 1, "before": "available",
        },
    }));
    let edit = |paper: &mut Paper| -> Result<(), Fault> {
        *paper = made.clone();
        Ok(())
    };
    if office.papers.change(MOVES, &id, edit).await?.is_none() {
        office.papers.add(MOVES, &id, made.clone()).await?;
    }
    office.kick.notify_one();
    Ok(())
}
