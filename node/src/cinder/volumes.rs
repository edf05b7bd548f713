//! `/volumes`: made, listed, shown, changed, deleted.
//!
//! Invariant: a request is judged whole before a paper is written; what can only fail later ends in `error` with a message.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::ask::{Answer, Ask, Reply};
use super::fault::Fault;
use super::fields::{
    flag, fresh_id, given_flag, given_number, given_text, is_id, map, now, number, paper, text, text_map,
    value,
};
use super::list::{Rules, page};
use super::quotas::Need;
use super::reserve::reserve;
use super::states::{Deed, rule_of};
use super::volume_view::{Beside, brief, detail, whole};
use super::{
    Office, ZONE, actions, group_snapshots, groups, images, metadata, quotas, schedule, several, snapshots,
    types,
};
use crate::papers::Paper;

pub(crate) const DRAWER: &str = "volumes";
/// Largest volume in GiB.
const MAX_SIZE: i64 = 1 << 20;
const RULES: Rules = Rules {
    filters: &[
        "name",
        "status",
        "metadata",
        "bootable",
        "migration_status",
        "availability_zone",
        "group_id",
        "size",
        "created_at",
        "updated_at",
        "project_id",
        "user_id",
        "volume_type_id",
        "host",
        "multiattach",
    ],
    sorts: &["name", "status", "size", "availability_zone", "bootable", "host", "updated_at"],
    what: "Volume",
};
/// What a request to make a volume may say; others are refused from 3.53 on.
const CREATE: [&str; 17] = [
    "name",
    "description",
    "display_name",
    "display_description",
    "size",
    "availability_zone",
    "source_volid",
    "snapshot_id",
    "volume_type",
    "metadata",
    "multiattach",
    "imageRef",
    "image_id",
    "consistencygroup_id",
    "group_id",
    "backup_id",
    "OS-SCH-HNT:scheduler_hints",
];

/// Answers what is under `/volumes`.
pub(crate) async fn answer(office: &Arc<Office>, ask: &Ask, rest: &[&str]) -> Reply {
    match (ask.method.as_str(), rest) {
        ("GET", []) => list(office, ask, false).await,
        ("GET", ["detail"]) => list(office, ask, true).await,
        ("GET", ["summary"]) => summary(office, ask).await,
        ("POST", []) => create(office, ask).await,
        ("GET", [id]) => {
            let (volume, beside) = (find(office, ask, id).await?, Beside::read(office).await?);
            Answer::ok(json!({ "volume": detail(ask, &volume, &beside) }))
        }
        ("PUT", [id]) => update(office, ask, id).await,
        ("DELETE", [id]) => {
            let volume = find(office, ask, id).await?;
            let force = ask.since(23) && ask.param_flag("force");
            if force {
                ask.admin("volume:force_delete")?;
            }
            delete(office, ask, &volume, ask.param_flag("cascade"), force).await
        }
        ("POST", [id, "action"]) => {
            let volume = find(office, ask, id).await?;
            actions::act(office, ask, &volume).await
        }
        (_, [id, "metadata", rest @ ..]) => {
            let volume = find(office, ask, id).await?;
            metadata::answer(office, ask, DRAWER, &volume, rest).await
        }
        ("GET", [id, "encryption"]) => {
            let volume = find(office, ask, id).await?;
            // The key is the volume layer's alone, and no key manager has it.
            let mut shown = map(&volume, "encryption");
            shown.insert("encryption_key_id".to_owned(), Value::Null);
            Answer::ok(Value::Object(shown))
        }
        _ => Err(Fault::nowhere()),
    }
}

/// A volume that the caller may see.
pub(crate) async fn find(office: &Office, ask: &Ask, id: &str) -> Result<Arc<Paper>, Fault> {
    let found = office.papers.get(DRAWER, id).await?;
    let found = found.filter(|volume| ask.owns(text(volume, "project_id")));
    found.ok_or_else(|| Fault::missing(format!("Volume {id}")))
}

async fn list(office: &Office, ask: &Ask, full: bool) -> Reply {
    let mut volumes = office.papers.all(DRAWER).await?;
    if !ask.everywhere() {
        volumes.retain(|volume| text(volume, "project_id") == ask.caller.project);
    }
    let page = page(ask, RULES, volumes)?;
    let beside = if full { Beside::read(office).await? } else { Beside::default() };
    Answer::ok(
        page.body(
            ask,
            "volumes",
            |volume| {
                if full { detail(ask, volume, &beside) } else { brief(ask, volume) }
            },
        ),
    )
}

async fn summary(office: &Office, ask: &Ask) -> Reply {
    ask.needs(12)?;
    let mut volumes = office.papers.all(DRAWER).await?;
    if !ask.everywhere() {
        volumes.retain(|volume| text(volume, "project_id") == ask.caller.project);
    }
    let size: i64 = volumes.iter().map(|volume| number(volume, "size")).sum();
    let mut summary = paper(json!({ "total_size": size, "total_count": volumes.len() }));
    if ask.since(36) {
        let mut all: Map<String, Value> = Map::new();
        for (key, value) in volumes.iter().flat_map(|volume| map(volume, "metadata")) {
            let values = all.entry(key).or_insert_with(|| json!([]));
            if let Some(values) = values.as_array_mut().filter(|values| !values.contains(&value)) {
                values.push(value);
            }
        }
        summary.insert("metadata".to_owned(), Value::Object(all));
    }
    Answer::ok(json!({ "volume-summary": summary }))
}

/// What a new volume is made from.
#[derive(Debug, Default)]
struct Source {
    /// In the paper: `snapshot`, `volume`, `backup`, `image`, or nothing.
    kind: &'static str,
    id: String,
    /// At least so many GiB.
    size: i64,
    volume_type_id: String,
    bootable: bool,
    /// What the volume tells of the image that it was made of.
    image_metadata: Map<String, Value>,
    /// For the task.
    image: Value,
}

async fn source(office: &Office, ask: &Ask, wanted: &Map<String, Value>) -> Result<Source, Fault> {
    let named = |key: &str| wanted.get(key).and_then(Value::as_str).filter(|id| !id.is_empty());
    if let Some(id) = named("imageRef").or_else(|| named("image_id")) {
        return of_image(images::find(ask, id).await?, wanted);
    }
    if let Some(id) = named("snapshot_id") {
        let snapshot = snapshots::find(office, ask, id).await?;
        let status = text(&snapshot, "status");
        if status != "available" && status != "in-use" {
            return Err(Fault::bad(format!(
                "Invalid snapshot: Originating snapshot status must be one of 'available, in-use' values, not {status}."
            )));
        }
        let of = office.papers.get(DRAWER, text(&snapshot, "volume_id")).await?;
        let of = of.unwrap_or_default();
        return Ok(Source {
            kind: "snapshot",
            id: id.to_owned(),
            size: number(&snapshot, "size"),
            volume_type_id: text(&snapshot, "volume_type_id").to_owned(),
            bootable: flag(&of, "bootable"),
            image_metadata: map(&of, "image_metadata"),
            ..Source::default()
        });
    }
    if let Some(id) = named("source_volid") {
        let volume = find(office, ask, id).await?;
        if !rule_of(Deed::Snapshot).begins_in(text(&volume, "status")) {
            return Err(Fault::state("source volume status must be available or in-use."));
        }
        return Ok(Source {
            kind: "volume",
            id: id.to_owned(),
            size: number(&volume, "size"),
            volume_type_id: text(&volume, "volume_type_id").to_owned(),
            bootable: flag(&volume, "bootable"),
            image_metadata: map(&volume, "image_metadata"),
            ..Source::default()
        });
    }
    if let Some(id) = named("backup_id") {
        ask.needs(47)?;
        let backup = super::backups::find(office, ask, id).await?;
        let status = text(&backup, "status");
        if status != "available" {
            return Err(Fault::bad(format!(
                "Invalid backup: Backup status must be available, but current status is: {status}."
            )));
        }
        let size = number(&backup, "size");
        return Ok(Source { kind: "backup", id: id.to_owned(), size, ..Source::default() });
    }
    Ok(Source::default())
}

/// A volume of an image is at least as large as the disk that the image is of, and as the image asks for.
fn of_image(image: images::Found, wanted: &Map<String, Value>) -> Result<Source, Fault> {
    let given = wanted.get("size").filter(|given| !given.is_null());
    let given = given.map(|given| given_number(given, "size")).transpose()?;
    if let Some(given) = given.filter(|given| (1..image.min_disk).contains(given)) {
        return Err(Fault::bad(format!(
            "Invalid input received: Volume size {given}GB cannot be smaller than the image minDisk size {}GB.",
            image.min_disk
        )));
    }
    let images::Found { image, metadata: image_metadata, size, .. } = image;
    Ok(Source { kind: "image", size, bootable: true, image_metadata, image, ..Source::default() })
}

fn size_of(wanted: &Map<String, Value>, source: &Source) -> Result<i64, Fault> {
    let size = match wanted.get("size") {
        None | Some(Value::Null) if source.size > 0 && source.kind != "image" => source.size,
        None | Some(Value::Null) => {
            return Err(Fault::bad("Invalid input received: 'size' is a required property"));
        }
        Some(size) => given_number(size, "size")?,
    };
    if size <= 0 {
        return Err(Fault::bad("Invalid input received: Volume size must be an integer and greater than 0"));
    }
    within_most(size)?;
    if size < source.size {
        let message = format!(
            "Invalid input received: Volume size '{size}'GB cannot be smaller than the {} size {}GB.",
            source.kind, source.size
        );
        return Err(Fault::bad(message));
    }
    Ok(size)
}

/// Refuses more than a volume may have: what is counted and multiplied afterwards stays far from overflowing.
pub(crate) fn within_most(size: i64) -> Result<(), Fault> {
    if size > MAX_SIZE {
        return Err(Fault::bad(format!("Invalid input received: Volume size is at most {MAX_SIZE} GiB")));
    }
    Ok(())
}

async fn create(office: &Arc<Office>, ask: &Ask) -> Reply {
    ask.writer("volume:create")?;
    let wanted = ask.member("volume")?;
    if ask.caller.project.is_empty() {
        return Err(Fault::bad("A volume belongs to a project; the token has none."));
    }
    if ask.since(53)
        && let Some(other) = wanted.keys().find(|key| !CREATE.contains(&key.as_str()))
    {
        let message = format!("Additional properties are not allowed ('{other}' was unexpected)");
        return Err(Fault::bad(message));
    }
    let source = source(office, ask, wanted).await?;
    let size = size_of(wanted, &source)?;
    let multiattach =
        wanted.get("multiattach").map_or(Ok(false), |given| given_flag(given, "multiattach"))?;
    if multiattach {
        return Err(Fault::bad("multiattach is a property of volume types."));
    }
    let kind = chosen_type(office, ask, wanted, &source).await?;
    let zone = given_text(wanted, &["availability_zone"])?.unwrap_or(Value::Null);
    if zone.as_str().is_some_and(|zone| zone != ZONE && !zone.is_empty()) {
        let zone = zone.as_str().unwrap_or("");
        return Err(Fault::bad(format!("Invalid input received: Availability zone '{zone}' is invalid.")));
    }
    let group = chosen_group(office, ask, wanted, &kind).await?;
    let metadata = wanted.get("metadata").filter(|given| !given.is_null());
    let metadata = metadata.map_or_else(|| Ok(Map::new()), |given| text_map(given, false))?;
    let made = paper(json!({
        "id": fresh_id(),
        "project_id": ask.caller.project,
        "user_id": ask.caller.user,
        "name": given_text(wanted, &["name", "display_name"])?,
        "description": given_text(wanted, &["description", "display_description"])?,
        "size": size,
        "status": rule_of(Deed::Create).during,
        "attach_status": "detached",
        "availability_zone": ZONE,
        "host": Value::Null,
        "created_at": now(),
        "updated_at": null,
        "bootable": source.bootable,
        "volume_type_id": value(&kind, "id"),
        "group_id": group,
        "metadata": metadata,
        "admin_metadata": {},
        "snapshot_id": (source.kind == "snapshot").then_some(&source.id),
        "source_volid": (source.kind == "volume").then_some(&source.id),
        "backup_id": (source.kind == "backup").then_some(&source.id),
        "image_metadata": source.image_metadata,
        "migration_status": null,
        "task": { "do": rule_of(Deed::Create).name, "request": ask.id, "image": source.image },
    }));
    let made = begin(office, made).await?;
    Answer::accepted(json!({ "volume": whole(ask, &made, &Beside::read(office).await?) }))
}

/// Takes a new volume's share of the quota, writes its paper, and has it made. What its type says of it is said here, so that no way of
/// making volumes leaves it out: one whose encryption is missing would be written in clear.
pub(crate) async fn begin(office: &Arc<Office>, mut volume: Paper) -> Result<Arc<Paper>, Fault> {
    let (project, size) = (text(&volume, "project_id").to_owned(), number(&volume, "size"));
    let made_of = types::named(office, text(&volume, "volume_type_id")).await?;
    let kind = text(&made_of, "name");
    let host = schedule::choose(office, &volume, &made_of).await?;
    volume.insert("encryption".to_owned(), types::encryption_of(&made_of));
    volume.insert("multiattach".to_owned(), json!(schedule::is_multiattach(&made_of)));
    if several::wanted_by(&made_of) > 1 {
        volume.insert("members".to_owned(), json!(several::wanted_by(&made_of)));
    }
    volume.insert("host".to_owned(), json!(Some(host).filter(|host| !host.is_empty())));
    within_most(size)?;
    quotas::check_size(office, &project, size).await?;
    let wants = [("volumes", 1), ("gigabytes", size)];
    let _reserved = reserve(office, Need { project: &project, kind, wants: &wants }).await?;
    let id = text(&volume, "id").to_owned();
    let made = office.papers.add(DRAWER, &id, volume).await?;
    office.kick.notify_one();
    Ok(made)
}

async fn chosen_type(
    office: &Office,
    ask: &Ask,
    wanted: &Map<String, Value>,
    source: &Source,
) -> Result<Arc<Paper>, Fault> {
    match wanted.get("volume_type").filter(|given| !given.is_null()) {
        Some(Value::String(name)) => types::visible(office, ask, name).await,
        Some(_) => Err(Fault::bad("Invalid input for field/attribute volume_type: it is no text.")),
        None => {
            let all = types::all(office).await?;
            let of_source = all.iter().find(|kind| text(kind, "id") == source.volume_type_id);
            match of_source {
                Some(kind) => Ok(Arc::clone(kind)),
                None => types::default_of(office, &ask.caller.project).await,
            }
        }
    }
}

async fn chosen_group(
    office: &Office,
    ask: &Ask,
    wanted: &Map<String, Value>,
    kind: &Paper,
) -> Result<Value, Fault> {
    let Some(id) = wanted.get("group_id").and_then(Value::as_str).filter(|_| ask.since(13)) else {
        return Ok(Value::Null);
    };
    if !is_id(id) {
        return Err(Fault::bad("Invalid input for field/attribute group_id."));
    }
    let group = super::groups::find(office, ask, id).await?;
    if text(&group, "project_id") != ask.caller.project {
        return Err(Fault::bad("Invalid group: it is of another project than the volume."));
    }
    if !super::fields::texts(&group, "volume_types").iter().any(|known| known == text(kind, "id")) {
        return Err(Fault::bad("Invalid volume type: the group does not take it."));
    }
    Ok(json!(id))
}

async fn update(office: &Office, ask: &Ask, id: &str) -> Reply {
    find(office, ask, id).await?;
    ask.writer("volume:update")?;
    let wanted = ask.member("volume")?;
    let name = given_text(wanted, &["name", "display_name"])?;
    let description = given_text(wanted, &["description", "display_description"])?;
    let metadata = wanted.get("metadata").map(|given| text_map(given, false)).transpose()?;
    if name.is_none() && description.is_none() && metadata.is_none() {
        return Err(Fault::bad("At least one of name, description and metadata is needed."));
    }
    let changed = office
        .papers
        .change(DRAWER, id, |volume| -> Result<(), Fault> {
            for (key, new) in [("name", &name), ("description", &description)] {
                if let Some(new) = new {
                    volume.insert(key.to_owned(), new.clone());
                }
            }
            if let Some(metadata) = &metadata {
                volume.insert("metadata".to_owned(), Value::Object(metadata.clone()));
            }
            volume.insert("updated_at".to_owned(), json!(now()));
            Ok(())
        })
        .await?;
    let changed = changed.ok_or_else(|| Fault::missing(format!("Volume {id}")))?;
    Answer::ok(json!({ "volume": whole(ask, &changed, &Beside::read(office).await?) }))
}

/// How a volume is to be deleted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Going<'a> {
    /// Its snapshots go with it.
    pub(crate) cascade: bool,
    /// Its state does not matter; what holds it does.
    pub(crate) force: bool,
    /// The group that does not hold it: it goes with it, or is gone.
    pub(crate) group: &'a str,
}

/// Begins to delete a volume.
pub(crate) async fn delete(office: &Office, ask: &Ask, volume: &Paper, cascade: bool, force: bool) -> Reply {
    ask.writer("volume:delete")?;
    let going = Going { cascade, force, group: groups::left_by(office, volume).await? };
    may_go(office, volume, going, &office.papers.all(snapshots::DRAWER).await?).await?;
    begin_delete(office, text(volume, "id"), going).await?;
    Answer::bare(202)
}

/// Refuses to delete a volume that something holds. `frozen`: the snapshots that count, of whatever volume.
pub(crate) async fn may_go(
    office: &Office,
    volume: &Paper,
    going: Going<'_>,
    frozen: &[Arc<Paper>],
) -> Result<(), Fault> {
    let id = text(volume, "id");
    is_free(volume, going)?;
    for snapshot in frozen.iter().filter(|snapshot| text(snapshot, "volume_id") == id) {
        let free = rule_of(Deed::DeleteSnapshot).begins_in(text(snapshot, "status"));
        if !going.cascade || !free || group_snapshots::holds(office, snapshot).await? {
            return Err(Fault::state(
                "Volume cannot be deleted while it has snapshots, or while they are used.",
            ));
        }
    }
    if office.blocks.exports.users_of(&super::work::device_name(id)) > 0 {
        return Err(Fault::state("Volume is in use: an NBD client is connected."));
    }
    Ok(())
}

/// What a volume's own paper says of whether it may be deleted.
fn is_free(volume: &Paper, going: Going<'_>) -> Result<(), Fault> {
    let rule = rule_of(Deed::Delete);
    let fits = going.force || rule.begins_in(text(volume, "status"));
    if !fits || text(volume, "attach_status") == "attached" || groups::is_held(volume, going.group) {
        return Err(Fault::state(format!(
            "Volume status must be {} and must not be migrating, attached, belong to a group, have snapshots, awaiting a transfer, or be disassociated from snapshots after volume transfer.",
            rule.from.join(" or ")
        )));
    }
    Ok(())
}

/// Marks a volume to be deleted, and has it done.
pub(crate) async fn begin_delete(office: &Office, id: &str, going: Going<'_>) -> Result<(), Fault> {
    let rule = rule_of(Deed::Delete);
    let changed = office
        .papers
        .change(DRAWER, id, |volume| -> Result<(), Fault> {
            is_free(volume, going)?;
            volume.insert("status".to_owned(), json!(rule.during));
            volume.insert("task".to_owned(), json!({ "do": rule.name, "cascade": going.cascade }));
            // Whatever becomes of it, its group is going or gone.
            volume.insert("group_id".to_owned(), Value::Null);
            Ok(())
        })
        .await;
    let changed = match changed {
        // Nothing can be written down, and space comes back by deleting: it is done at once instead.
        Err(fault) if fault.is_full() => {
            return super::work::delete_at_once(office, id, going.cascade).await;
        }
        changed => changed?,
    };
    changed.ok_or_else(|| Fault::missing(format!("Volume {id}")))?;
    office.kick.notify_one();
    Ok(())
}
