//! Volumes and snapshots of the volume layer that the API takes over, lists as such, and gives up again without deleting them. Whichever
//! node is asked, the one that has them tells of them, and does what is to be done.
//!
//! What is taken over gets the name that the API gives such things; what is given up keeps it.
//! Invariant: nothing that the API has is taken over once more, and what it gives up is as it was.
//! Invariant: a volume is made encrypted or not, and whatever type it gets says so too.

use std::sync::Arc;
use std::time::Duration;

use quarry_engine::block::Fence;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{ListedVolume, NodeId, Request, Response, VolumeAnswer, VolumeCall};
use quarry_volume::VolumeId;
use serde_json::{Map, Value, json};

use super::ask::{Answer, Ask, Reply};
use super::fault::Fault;
use super::fields::{fresh_id, given_flag, given_text, map, now, paper, text, text_map, value};
use super::quotas::Need;
use super::reserve::reserve;
use super::services::node_of;
use super::snapshots::{self, DRAWER as SNAPSHOTS};
use super::states::{Deed, rule_of};
use super::volume_view::{Beside, whole};
use super::volumes::{self, DRAWER as VOLUMES};
use super::work::{device_name, is_own, snapshot_name};
use super::{Office, ZONE, group_snapshots, groups, schedule, types};
use crate::block::listed;
use crate::block::moving::end_of;
use crate::papers::Paper;

const GIB: u64 = 1 << 30;
/// Most members of a list.
const MOST: usize = 1000;
/// Most volumes and snapshots that a node may tell of.
const MOST_LISTED: usize = 1 << 20;
/// How long a node has for a page of its list.
const WITHIN: Duration = Duration::from_secs(10);

/// Answers what is under `/manageable_volumes` and `/os-volume-manage`.
pub(crate) async fn volumes(office: &Arc<Office>, ask: &Ask, rest: &[&str]) -> Reply {
    ask.admin("volume_extension:volume_manage")?;
    match (ask.method.as_str(), rest) {
        ("GET", []) => list_volumes(office, ask, false).await,
        ("GET", ["detail"]) => list_volumes(office, ask, true).await,
        ("POST", []) => manage(office, ask).await,
        _ => Err(Fault::nowhere()),
    }
}

/// Answers what is under `/manageable_snapshots` and `/os-snapshot-manage`.
pub(crate) async fn snapshots(office: &Office, ask: &Ask, rest: &[&str]) -> Reply {
    ask.admin("snapshot_extension:snapshot_manage")?;
    match (ask.method.as_str(), rest) {
        ("GET", []) => list_snapshots(office, ask, false).await,
        ("GET", ["detail"]) => list_snapshots(office, ask, true).await,
        ("POST", []) => manage_snapshot(office, ask).await,
        _ => Err(Fault::nowhere()),
    }
}

/// A size as the API has it.
pub(crate) fn gib(bytes: u64) -> i64 {
    i64::try_from(bytes.div_ceil(GIB)).unwrap_or(i64::MAX)
}

/// What a request names: by its name or, of a volume, its identity.
fn reference(wanted: &Map<String, Value>) -> Result<String, Fault> {
    let named = map(wanted, "ref");
    let name =
        ["source-name", "source-id"].into_iter().map(|key| text(&named, key)).find(|name| !name.is_empty());
    name.map(str::to_owned).ok_or_else(|| Fault::bad("Invalid input: ref has a source-name or a source-id."))
}

/// A volume of the volume layer, as its node tells of it.
struct Found {
    volume: ListedVolume,
    snapshots: Vec<ListedVolume>,
}

/// What the node of a host has.
async fn found(office: &Office, host: &str) -> Result<Vec<Found>, Fault> {
    let mut all: Vec<Found> = Vec::new();
    for one in listed_at(office, host).await? {
        if end_of(&one.name).is_some() {
            continue;
        }
        if !one.snapshot {
            all.push(Found { volume: one, snapshots: Vec::new() });
        } else if let Some(of) = all.last_mut().filter(|of| of.volume.volume == one.volume) {
            of.snapshots.push(one);
        }
    }
    Ok(all)
}

async fn listed_at(office: &Office, host: &str) -> Result<Vec<ListedVolume>, Fault> {
    let net = match &office.place.net {
        Some(net) if !is_own(office, host) => net,
        _ => return Ok(listed::all(&office.blocks.exports)),
    };
    let node: NodeId = node_of(host)
        .parse()
        .map_err(|_| Fault::bad(format!("Invalid host: No available service named {host}.")))?;
    let away = || Fault::other(503, format!("Service {host} does not answer."));
    let mut all: Vec<ListedVolume> = Vec::new();
    loop {
        let call = VolumeCall::List { from: u32::try_from(all.len()).unwrap_or(u32::MAX) };
        let (device, volume, fence) = (DeviceId([0; 16]), VolumeId([0; 16]), Fence::default());
        let asked = Request::Volume { device, volume, fence, session: 0, call };
        match net.call(node, asked, WITHIN).await {
            Ok(Response::Volume(VolumeAnswer::Listed(page))) if page.is_empty() => return Ok(all),
            Ok(Response::Volume(VolumeAnswer::Listed(page))) if all.len() < MOST_LISTED => all.extend(page),
            _ => return Err(away()),
        }
    }
}

fn id_in<'a>(name: &'a str, before: &str) -> Option<&'a str> {
    name.strip_prefix(before).filter(|id| super::fields::is_id(id))
}

fn one(name: &str, bytes: u64, known: Option<&str>, used: bool, full: bool) -> Map<String, Value> {
    let why = match (known, used) {
        (Some(_), _) => json!("already managed"),
        (None, true) => json!("an NBD client is connected"),
        (None, false) => Value::Null,
    };
    let mut shown = paper(json!({
        "reference": { "source-name": name }, "size": gib(bytes), "safe_to_manage": why.is_null(),
    }));
    if full {
        shown.extend(paper(json!({ "reason_not_safe": why, "cinder_id": known, "extra_info": null })));
    }
    shown
}

/// A page, by `limit`, `offset` and `sort`; there are no links, as what is listed has no ids.
fn cut(ask: &Ask, mut all: Vec<Map<String, Value>>) -> Result<Vec<Value>, Fault> {
    let whole = |name: &str| match ask.param(name) {
        None => Ok(None),
        Some(said) => {
            let number = said.parse::<usize>().ok();
            number
                .map(Some)
                .ok_or_else(|| Fault::bad(format!("Invalid input received: {name} must be an integer.")))
        }
    };
    let (limit, offset) = (whole("limit")?.unwrap_or(MOST).min(MOST), whole("offset")?.unwrap_or(0));
    let (key, order) =
        ask.param("sort").unwrap_or("reference:asc").split_once(':').unwrap_or(("reference", "asc"));
    match key {
        "size" => all.sort_by_key(|one| one.get("size").and_then(Value::as_i64)),
        "reference" => all.sort_by_key(|one| text(&map(one, "reference"), "source-name").to_owned()),
        _ => return Err(Fault::bad("Invalid input received: sort is by size or reference.")),
    }
    if order == "desc" {
        all.reverse();
    }
    Ok(all.into_iter().skip(offset).take(limit).map(Value::Object).collect())
}

async fn list_volumes(office: &Office, ask: &Ask, full: bool) -> Reply {
    let found = found(office, ask.param("host").unwrap_or("")).await?;
    let known = office.papers.all(VOLUMES).await?;
    let show = |Found { volume, .. }: &Found| {
        let id = id_in(&volume.name, "volume-");
        let id = id.filter(|id| known.iter().any(|paper| text(paper, "id") == *id));
        one(&volume.name, volume.bytes, id, volume.used, full)
    };
    let all = found.iter().map(show).collect();
    Answer::ok(json!({ "manageable-volumes": cut(ask, all)? }))
}

async fn list_snapshots(office: &Office, ask: &Ask, full: bool) -> Reply {
    let found = found(office, ask.param("host").unwrap_or("")).await?;
    let known = office.papers.all(SNAPSHOTS).await?;
    let mut all = Vec::new();
    for Found { volume, snapshots } in &found {
        for ListedVolume { name, bytes, .. } in snapshots {
            let id = id_in(name, "snapshot-").filter(|id| known.iter().any(|paper| text(paper, "id") == *id));
            let mut shown = one(name, *bytes, id, false, full);
            shown.insert("source_reference".to_owned(), json!({ "source-name": volume.name }));
            all.push(shown);
        }
    }
    Answer::ok(json!({ "manageable-snapshots": cut(ask, all)? }))
}

fn invalid(name: &str) -> Fault {
    Fault::bad(format!(
        "Failed to manage existing volume due to invalid backend reference {name}: there is none, or it is managed already."
    ))
}

async fn manage(office: &Arc<Office>, ask: &Ask) -> Reply {
    let wanted = ask.member("volume")?;
    let host = wanted.get("host").and_then(Value::as_str).unwrap_or("");
    if host.is_empty() {
        return Err(Fault::bad("Invalid input: 'host' is a required property"));
    }
    let name = reference(wanted)?;
    let all = found(office, host).await?.into_iter().map(|found| found.volume);
    let found = all.into_iter().find(|volume| volume.name == name || hex::encode(volume.volume.0) == name);
    let found = found.ok_or_else(|| invalid(&name))?;
    if let Some(id) = id_in(&found.name, "volume-")
        && office.papers.get(VOLUMES, id).await?.is_some()
    {
        return Err(invalid(&name));
    }
    let kind = match wanted.get("volume_type").and_then(Value::as_str) {
        Some(kind) => types::visible(office, ask, kind).await?,
        None => types::default_of(office, &ask.caller.project).await?,
    };
    let encryption = types::encryption_of(&kind);
    if encryption.is_object() != found.encrypted {
        return Err(Fault::bad(
            "Invalid volume type: of the type and the volume one is encrypted, and the other is not.",
        ));
    }
    let metadata = wanted.get("metadata").filter(|given| !given.is_null());
    let metadata = metadata.map_or_else(|| Ok(Map::new()), |given| text_map(given, false))?;
    let bootable = wanted.get("bootable").map_or(Ok(false), |given| given_flag(given, "bootable"))?;
    let size = gib(found.bytes);
    let made = paper(json!({
        "id": fresh_id(), "project_id": ask.caller.project, "user_id": ask.caller.user, "host": host,
        "name": given_text(wanted, &["name"])?, "description": given_text(wanted, &["description"])?,
        "size": size, "status": rule_of(Deed::Manage).during, "attach_status": "detached",
        "availability_zone": ZONE, "created_at": now(), "updated_at": null, "bootable": bootable,
        "multiattach": schedule::is_multiattach(&kind), "encryption": encryption, "volume_type_id": value(&kind, "id"),
        "group_id": null, "metadata": metadata, "admin_metadata": {}, "snapshot_id": null, "source_volid": null,
        "backup_id": null, "migration_status": null,
        "task": { "do": rule_of(Deed::Manage).name, "of": found.name, "request": ask.id },
    }));
    let wants = [("volumes", 1), ("gigabytes", size)];
    let need = Need { project: &ask.caller.project, kind: text(&kind, "name"), wants: &wants };
    let _reserved = reserve(office, need).await?;
    let made = office.papers.add(VOLUMES, text(&made, "id"), made.clone()).await?;
    office.kick.notify_one();
    Answer::accepted(json!({ "volume": whole(ask, &made, &Beside::read(office).await?) }))
}

async fn manage_snapshot(office: &Office, ask: &Ask) -> Reply {
    let wanted = ask.member("snapshot")?;
    let of = wanted.get("volume_id").and_then(Value::as_str).unwrap_or("");
    let volume = volumes::find(office, ask, of).await?;
    let name = reference(wanted)?;
    let made = found(office, text(&volume, "host")).await?;
    let made = made.into_iter().find(|found| found.volume.name == device_name(of));
    // Others write their snapshots' names with a line before.
    let name = name.strip_prefix('_').unwrap_or(&name);
    let frozen = made.into_iter().flat_map(|made| made.snapshots);
    let found = frozen.into_iter().find(|snapshot| snapshot.name == name);
    let found = found.ok_or_else(|| invalid(name))?;
    if let Some(id) = id_in(name, "snapshot-")
        && office.papers.get(SNAPSHOTS, id).await?.is_some()
    {
        return Err(invalid(name));
    }
    let metadata = wanted.get("metadata").filter(|given| !given.is_null());
    let metadata = metadata.map_or_else(|| Ok(Map::new()), |given| text_map(given, false))?;
    let said = json!({
        "user_id": ask.caller.user, "name": given_text(wanted, &["name"])?,
        "description": given_text(wanted, &["description"])?, "metadata": metadata, "size": gib(found.bytes),
        "task": { "do": rule_of(Deed::ManageSnapshot).name, "of": name, "request": ask.id },
    });
    let made = snapshots::begin(office, &volume, said).await?;
    Answer::accepted(json!({ "snapshot": snapshots::brief(ask, &made) }))
}

/// Gives a volume up: the API forgets it.
pub(crate) async fn give_up(office: &Office, ask: &Ask, volume: &Paper) -> Reply {
    ask.admin("volume_extension:volume_unmanage")?;
    let id = text(volume, "id");
    let all = office.papers.all(SNAPSHOTS).await?;
    if all.iter().any(|snapshot| text(snapshot, "volume_id") == id) {
        return Err(Fault::state("Volume cannot be unmanaged while it has snapshots."));
    }
    let rule = rule_of(Deed::Manage);
    if text(volume, "status") != rule.done && text(volume, "status") != rule.failed {
        return Err(Fault::state("Volume status must be available or error_managing to unmanage."));
    }
    if groups::is_held(volume, groups::left_by(office, volume).await?) {
        return Err(Fault::state("Volume belongs to a group."));
    }
    office.papers.remove(VOLUMES, id).await?;
    Answer::bare(202)
}

/// Gives a snapshot up: the API forgets it.
pub(crate) async fn give_up_snapshot(office: &Office, ask: &Ask, snapshot: &Paper) -> Reply {
    ask.admin("snapshot_extension:snapshot_unmanage")?;
    if text(snapshot, "status") != rule_of(Deed::ManageSnapshot).done {
        return Err(Fault::bad("Invalid snapshot: Snapshot status must be available to unmanage."));
    }
    if group_snapshots::holds(office, snapshot).await? {
        return Err(Fault::bad("Invalid snapshot: it belongs to a group snapshot."));
    }
    office.papers.remove(SNAPSHOTS, text(snapshot, "id")).await?;
    Answer::bare(202)
}

/// What a task of taking over does: it may have been done before.
pub(crate) async fn take_over(
    office: &Office,
    drawer: &str,
    paper: &Paper,
) -> Result<(), quarry_volume::store::VolumeError> {
    let (exports, id) = (&office.blocks.exports, text(paper, "id"));
    let task = map(paper, "task");
    let of = text(&task, "of");
    if drawer == VOLUMES {
        let new = device_name(id);
        return if exports.volumes().find(&new).is_ok() { Ok(()) } else { exports.rename(of, &new).await };
    }
    let (volume, new) = (device_name(text(paper, "volume_id")), snapshot_name(id));
    if exports.volumes().view(&volume, &new).is_ok() {
        return Ok(());
    }
    exports.volumes().rename_snapshot(&volume, of, &new).await
}
