//! `/backups`: full and incremental copies of volumes in the project's own objects.
//!
//! Invariant: a backup that another one builds on is not deleted.
//! Invariant: a volume that is backed up is frozen first: the backup is of one moment.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::ask::{Answer, Ask, Reply};
use super::copy::{Shelf, Shelves};
use super::fault::Fault;
use super::fields::{
    fresh_id, given_flag, given_text, is_id, map, now, number, paper, text, text_map, value,
};
use super::list::{Rules, page};
use super::quotas::Need;
use super::reserve::reserve;
use super::states::{BACKUP_STATES, Deed, rule_of};
use super::volume_view::{is_encrypted, links};
use super::{Office, ZONE, actions, snapshots, types, volumes};
use crate::papers::{Paper, PaperError};

pub(crate) const DRAWER: &str = "backups";
/// Where a backup goes when no container is named.
const CONTAINER: &str = "volumebackups";
/// What an exported record names as its service.
const SERVICE: &str = "cinder.backup.drivers.quarry";
const RULES: Rules = Rules {
    filters: &["name", "status", "volume_id", "project_id"],
    sorts: &["name", "status", "volume_id", "size"],
    what: "Backup",
};

/// Answers what is under `/backups`.
pub(crate) async fn answer(office: &Arc<Office>, ask: &Ask, rest: &[&str]) -> Reply {
    match (ask.method.as_str(), rest) {
        ("GET", []) => list(office, ask, false).await,
        ("GET", ["detail"]) => list(office, ask, true).await,
        ("POST", []) => create(office, ask).await,
        ("POST", ["import_record"]) => import(office, ask).await,
        ("GET", [id]) => {
            let (backup, all) = (find(office, ask, id).await?, office.papers.all(DRAWER).await?);
            Answer::ok(json!({ "backup": detail(ask, &backup, &all) }))
        }
        ("PUT", [id]) => update(office, ask, id).await,
        ("DELETE", [id]) => {
            find(office, ask, id).await?;
            ask.writer("backup:delete")?;
            begin_delete(office, id, false).await
        }
        ("POST", [id, "restore"]) => restore(office, ask, id).await,
        ("GET", [id, "export_record"]) => {
            ask.admin("backup:export-import")?;
            let backup = find(office, ask, id).await?;
            let mut told = (*backup).clone();
            told.remove("task");
            let url = STANDARD.encode(Value::Object(told).to_string());
            Answer::ok(json!({ "backup-record": { "backup_service": SERVICE, "backup_url": url } }))
        }
        ("POST", [id, "action"]) => act(office, ask, id).await,
        _ => Err(Fault::nowhere()),
    }
}

/// A backup that the caller may see.
pub(crate) async fn find(office: &Office, ask: &Ask, id: &str) -> Result<Arc<Paper>, Fault> {
    let found = office.papers.get(DRAWER, id).await?;
    let found = found.filter(|backup| ask.owns(text(backup, "project_id")));
    found.ok_or_else(|| Fault::missing(format!("Backup {id}")))
}

/// Where a backup's objects are.
pub(crate) fn shelf_of(backup: &Paper) -> Shelf {
    Shelf {
        account: text(backup, "account").to_owned(),
        container: text(backup, "container").to_owned(),
        prefix: text(backup, "prefix").to_owned(),
    }
}

/// The same of a backup and of those that it builds on: each may be in a container of its own, and an imported one in another account.
pub(crate) fn shelves_of(backup: &Paper, all: &[Arc<Paper>]) -> Shelves {
    let mut shelves = Shelves::new();
    let mut next = Some(backup);
    while let Some(paper) = next {
        // An imported record may name itself as its parent.
        if shelves.insert(text(paper, "id").to_owned(), shelf_of(paper)).is_some() {
            break;
        }
        let parent = text(paper, "parent_id");
        next = all.iter().find(|other| text(other, "id") == parent).map(|other| &**other);
    }
    shelves
}

/// Whether a backup is whole and stays: it may have been deleted between the choice of it as a parent and the paper that says so.
pub(crate) async fn stands(office: &Office, id: &str) -> Result<bool, PaperError> {
    let found = office.papers.get(DRAWER, id).await?;
    Ok(found.is_some_and(|backup| text(&backup, "status") == "available" && !backup.contains_key("task")))
}

fn brief(ask: &Ask, backup: &Paper) -> Value {
    let id = text(backup, "id");
    let mut shown = json!({ "id": id, "name": value(backup, "name"), "links": links(ask, "backups", id) });
    if ask.since(43) && ask.method != http::Method::GET {
        shown["metadata"] = value(backup, "metadata");
    }
    shown
}

fn detail(ask: &Ask, backup: &Paper, all: &[Arc<Paper>]) -> Value {
    let id = text(backup, "id");
    let mut shown = Map::new();
    for key in [
        "id",
        "name",
        "description",
        "status",
        "size",
        "object_count",
        "availability_zone",
        "container",
        "created_at",
        "updated_at",
        "fail_reason",
        "volume_id",
        "snapshot_id",
        "data_timestamp",
    ] {
        shown.insert(key.to_owned(), value(backup, key));
    }
    shown.insert("links".to_owned(), links(ask, "backups", id));
    shown.insert("is_incremental".to_owned(), json!(!text(backup, "parent_id").is_empty()));
    let dependent = all.iter().any(|other| text(other, "parent_id") == id);
    shown.insert("has_dependent_backups".to_owned(), json!(dependent));
    if ask.since(18) && ask.caller.admin {
        shown.insert("os-backup-project-attr:project_id".to_owned(), value(backup, "project_id"));
    }
    if ask.since(43) {
        shown.insert("metadata".to_owned(), value(backup, "metadata"));
    }
    if ask.since(56) {
        shown.insert("user_id".to_owned(), value(backup, "user_id"));
    }
    Value::Object(shown)
}

async fn list(office: &Office, ask: &Ask, full: bool) -> Reply {
    let all = office.papers.all(DRAWER).await?;
    let mut mine = all.clone();
    if !ask.everywhere() {
        mine.retain(|backup| text(backup, "project_id") == ask.caller.project);
    }
    let page = page(ask, RULES, mine)?;
    Answer::ok(page.body(
        ask,
        "backups",
        |backup| if full { detail(ask, backup, &all) } else { brief(ask, backup) },
    ))
}

async fn create(office: &Arc<Office>, ask: &Ask) -> Reply {
    ask.writer("backup:create")?;
    let wanted = ask.member("backup")?;
    let said = |key: &str| wanted.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let wish = |key: &str| {
        wanted.get(key).filter(|given| !given.is_null()).map_or(Ok(false), |given| given_flag(given, key))
    };
    let (force, incremental) = (wish("force")?, wish("incremental")?);
    let volume = volumes::find(office, ask, said("volume_id").unwrap_or("")).await?;
    let of = text(&volume, "id");
    if is_encrypted(&volume) {
        return Err(Fault::bad("Invalid volume: it is encrypted, and its backup would lie in clear."));
    }
    let snapshot = match said("snapshot_id") {
        None => None,
        Some(id) => Some(snapshots::find(office, ask, id).await?),
    };
    if snapshot
        .as_ref()
        .is_some_and(|snapshot| text(snapshot, "volume_id") != of || text(snapshot, "status") != "available")
    {
        return Err(Fault::bad("Invalid snapshot: it is of another volume, or not available."));
    }
    if snapshot.is_none() && text(&volume, "status") == "in-use" && !force {
        return Err(Fault::state("Backing up a volume that is in use needs force."));
    }
    let all = office.papers.all(DRAWER).await?;
    let earlier = all.iter().filter(|backup| {
        text(backup, "volume_id") == of
            && text(backup, "status") == "available"
            && text(backup, "project_id") == text(&volume, "project_id")
    });
    let parent =
        earlier.max_by_key(|backup| text(backup, "data_timestamp").to_owned()).filter(|_| incremental);
    if incremental && parent.is_none() {
        return Err(Fault::bad("Invalid backup: No backups available to do an incremental backup."));
    }
    let metadata = wanted.get("metadata").filter(|given| !given.is_null());
    let metadata = metadata.map_or_else(|| Ok(Map::new()), |given| text_map(given, false))?;
    let container =
        said("container").or_else(|| parent.map(|parent| text(parent, "container"))).unwrap_or(CONTAINER);
    if container.contains('/') || container.len() > 255 {
        return Err(Fault::bad("Invalid input for field/attribute container."));
    }
    let (id, project) = (fresh_id(), text(&volume, "project_id"));
    let made = paper(json!({
        "id": id, "project_id": project, "user_id": ask.caller.user, "volume_id": of, "host": value(&volume, "host"),
        "members": value(&volume, "members"),
        "name": given_text(wanted, &["name"])?, "description": given_text(wanted, &["description"])?,
        "snapshot_id": snapshot.as_ref().map(|snapshot| text(snapshot, "id")),
        "parent_id": parent.map(|parent| text(parent, "id")), "container": container,
        "account": format!("AUTH_{project}"), "prefix": format!("volume_{of}/backup_{id}"),
        "size": number(&volume, "size"), "object_count": 0, "status": rule_of(Deed::CreateBackup).during,
        "availability_zone": ZONE, "fail_reason": null, "metadata": metadata, "created_at": now(), "updated_at": null,
        "data_timestamp": snapshot.as_ref().map_or_else(|| json!(now()), |snapshot| value(snapshot, "created_at")),
        "volume_metadata": value(&volume, "metadata"),
        "task": { "do": rule_of(Deed::CreateBackup).name, "request": ask.id },
    }));
    let wants = [("backups", 1), ("backup_gigabytes", number(&volume, "size"))];
    let kind = types::named(office, text(&volume, "volume_type_id")).await?;
    let _reserved = reserve(office, Need { project, kind: text(&kind, "name"), wants: &wants }).await?;
    if snapshot.is_none() {
        actions::begin(office, of, Deed::Backup, &json!({ "backup": id })).await?;
    }
    let made = office.papers.add(DRAWER, &id, made).await?;
    office.kick.notify_one();
    Answer::accepted(json!({ "backup": brief(ask, &made) }))
}

async fn change(
    office: &Office,
    id: &str,
    edit: impl Fn(&mut Paper) -> Result<(), Fault> + Send + Sync,
) -> Result<Arc<Paper>, Fault> {
    let edit = |backup: &mut Paper| -> Result<(), Fault> {
        edit(backup)?;
        backup.insert("updated_at".to_owned(), json!(now()));
        Ok(())
    };
    office.papers.change(DRAWER, id, edit).await?.ok_or_else(|| Fault::missing(format!("Backup {id}")))
}

async fn update(office: &Office, ask: &Ask, id: &str) -> Reply {
    ask.needs(9)?;
    find(office, ask, id).await?;
    ask.writer("backup:update")?;
    let wanted = ask.member("backup")?;
    let (name, description) = (given_text(wanted, &["name"])?, given_text(wanted, &["description"])?);
    let metadata =
        wanted.get("metadata").filter(|_| ask.since(43)).map(|given| text_map(given, false)).transpose()?;
    if name.is_none() && description.is_none() && metadata.is_none() {
        return Err(Fault::bad("Missing updates: name, description or metadata."));
    }
    let changed = change(office, id, |backup| {
        for (key, new) in [("name", &name), ("description", &description)] {
            if let Some(new) = new {
                backup.insert(key.to_owned(), new.clone());
            }
        }
        if let Some(metadata) = &metadata {
            backup.insert("metadata".to_owned(), Value::Object(metadata.clone()));
        }
        Ok(())
    })
    .await?;
    Answer::ok(json!({ "backup": brief(ask, &changed) }))
}

async fn begin_delete(office: &Office, id: &str, force: bool) -> Reply {
    let rule = rule_of(Deed::DeleteBackup);
    if office.papers.all(DRAWER).await?.iter().any(|other| text(other, "parent_id") == id) {
        return Err(Fault::bad("Invalid backup: Incremental backups exist for this backup."));
    }
    let volumes = office.papers.all(volumes::DRAWER).await?;
    let needs = |volume: &Arc<Paper>| {
        let task = volume.get("task").and_then(Value::as_object);
        let named = task.is_some_and(|task| text(task, "backup") == id && text(task, "do") == "restore");
        named || (task.is_some() && text(volume, "backup_id") == id)
    };
    if volumes.iter().any(needs) {
        return Err(Fault::bad("Invalid backup: it is being restored."));
    }
    change(office, id, |backup| {
        if !force && !rule.begins_in(text(backup, "status")) {
            return Err(Fault::bad("Invalid backup: Backup status must be available or error"));
        }
        backup.insert("status".to_owned(), json!(rule.during));
        backup.insert("task".to_owned(), json!({ "do": rule.name }));
        Ok(())
    })
    .await?;
    office.kick.notify_one();
    Answer::bare(202)
}

async fn restore(office: &Arc<Office>, ask: &Ask, id: &str) -> Reply {
    let backup = find(office, ask, id).await?;
    ask.writer("backup:restore")?;
    let wanted = ask.member("restore")?;
    if text(&backup, "status") != "available" {
        return Err(Fault::bad("Invalid backup: Backup status must be available"));
    }
    let volume = match wanted.get("volume_id").and_then(Value::as_str).filter(|id| !id.is_empty()) {
        Some(volume) => {
            let volume = volumes::find(office, ask, volume).await?;
            if number(&volume, "size") < number(&backup, "size") {
                return Err(Fault::state("volume is smaller than the backup."));
            }
            if office.blocks.exports.users_of(&super::work::device_name(text(&volume, "id"))) > 0 {
                return Err(Fault::state("Volume is in use: an NBD client is connected."));
            }
            actions::begin(office, text(&volume, "id"), Deed::Restore, &json!({ "backup": id })).await?;
            volume
        }
        None => {
            let name = given_text(wanted, &["name"])?.filter(|name| !name.is_null());
            let name = name.unwrap_or_else(|| json!(format!("restore_backup_{id}")));
            let kind = types::default_of(office, &ask.caller.project).await?;
            let made = paper(json!({
                "id": fresh_id(), "project_id": ask.caller.project, "user_id": ask.caller.user, "name": name,
                "description": format!("auto-created_from_restore_from_backup {id}"), "size": number(&backup, "size"),
                "status": rule_of(Deed::Create).during, "attach_status": "detached", "availability_zone": ZONE,
                "host": null, "created_at": now(), "updated_at": null, "bootable": false,
                "volume_type_id": text(&kind, "id"), "group_id": null, "metadata": map(&backup, "volume_metadata"),
                "admin_metadata": {}, "snapshot_id": null, "source_volid": null, "backup_id": id, "migration_status": null,
                "task": { "do": rule_of(Deed::Create).name, "request": ask.id },
            }));
            volumes::begin(office, made).await?
        }
    };
    Answer::accepted(json!({ "restore": {
        "backup_id": id, "volume_id": text(&volume, "id"), "volume_name": text(&volume, "name"),
    } }))
}

async fn import(office: &Office, ask: &Ask) -> Reply {
    ask.admin("backup:export-import")?;
    let record = ask.member("backup-record")?;
    let bad = || Fault::bad("Invalid input received: the backup record is unreadable.");
    let url = record.get("backup_url").and_then(Value::as_str).ok_or_else(bad)?;
    let decoded = STANDARD.decode(url.trim()).map_err(|_| bad())?;
    let told: Value = serde_json::from_slice(&decoded).map_err(|_| bad())?;
    let mut made = told.as_object().cloned().ok_or_else(bad)?;
    let id = text(&made, "id").to_owned();
    let whole =
        ["account", "container", "prefix", "volume_id"].iter().all(|key| !text(&made, key).is_empty());
    // Whoever imports a record reads what it names: only objects of backups.
    if !is_id(&id)
        || !whole
        || !text(&made, "prefix").starts_with("volume_")
        || !text(&made, "account").starts_with("AUTH_")
    {
        return Err(bad());
    }
    made.insert("project_id".to_owned(), json!(ask.caller.project));
    made.insert("user_id".to_owned(), json!(ask.caller.user));
    made.insert("status".to_owned(), json!("available"));
    made.remove("task");
    let made = office.papers.add(DRAWER, &id, made).await?;
    let mut shown = brief(ask, &made);
    if let Some(shown) = shown.as_object_mut() {
        shown.remove("metadata");
    }
    Ok(Answer { status: 201, body: Some(json!({ "backup": shown })).into() })
}

async fn act(office: &Office, ask: &Ask, id: &str) -> Reply {
    find(office, ask, id).await?;
    if ask.body.get("os-force_delete").is_some() {
        ask.admin("volume_extension:backup_admin_actions:force_delete")?;
        return begin_delete(office, id, true).await;
    }
    let Some(given) = ask.body.get("os-reset_status") else {
        return Err(Fault::bad("There is no such action."));
    };
    ask.admin("volume_extension:backup_admin_actions:reset_status")?;
    let status = given.get("status").and_then(Value::as_str).unwrap_or("").to_lowercase();
    if !BACKUP_STATES.contains(&status.as_str()) {
        return Err(Fault::bad("Invalid input for field/attribute status."));
    }
    change(office, id, |backup| {
        backup.insert("status".to_owned(), json!(status));
        backup.remove("task");
        Ok(())
    })
    .await?;
    Answer::bare(202)
}

/// Whether another backup's objects are the same ones: an imported record, and the one that it is of.
pub(crate) fn shares(backup: &Paper, all: &[Arc<Paper>]) -> bool {
    let same = |other: &&Arc<Paper>| text(other, "prefix") == text(backup, "prefix");
    all.iter().filter(same).any(|other| text(other, "id") != text(backup, "id"))
}
