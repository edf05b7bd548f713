//! `/snapshots`.
//!
//! Invariant: a snapshot that is `available` is in the volume layer, and stays what it is until it is deleted.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Office;
use super::ask::{Answer, Ask, Reply};
use super::fault::Fault;
use super::fields::{fresh_id, given_flag, given_text, now, number, paper, text, text_map, value};
use super::list::{Rules, page};
use super::quotas::Need;
use super::reserve::reserve;
use super::states::{Deed, SNAPSHOT_STATES, rule_of};
use super::{group_snapshots, manage, metadata, types, volumes};
use crate::papers::Paper;

pub(crate) const DRAWER: &str = "snapshots";
const RULES: Rules = Rules {
    filters: &[
        "name",
        "status",
        "volume_id",
        "metadata",
        "created_at",
        "updated_at",
        "project_id",
        "availability_zone",
    ],
    sorts: &["status", "volume_id", "name", "size", "updated_at"],
    what: "Snapshot",
};

/// Answers what is under `/snapshots`.
pub(crate) async fn answer(office: &Office, ask: &Ask, rest: &[&str]) -> Reply {
    match (ask.method.as_str(), rest) {
        ("GET", []) => list(office, ask, false).await,
        ("GET", ["detail"]) => list(office, ask, true).await,
        ("POST", []) => create(office, ask).await,
        ("GET", [id]) => Answer::ok(json!({ "snapshot": detail(ask, &*find(office, ask, id).await?) })),
        ("PUT", [id]) => update(office, ask, id).await,
        ("DELETE", [id]) => {
            let snapshot = find(office, ask, id).await?;
            ask.writer("volume:delete_snapshot")?;
            delete(office, &snapshot, false).await
        }
        ("POST", [id, "action"]) => act(office, ask, id).await,
        (_, [id, "metadata", rest @ ..]) => {
            let snapshot = find(office, ask, id).await?;
            metadata::answer(office, ask, DRAWER, &snapshot, rest).await
        }
        _ => Err(Fault::nowhere()),
    }
}

/// A snapshot that the caller may see.
pub(crate) async fn find(office: &Office, ask: &Ask, id: &str) -> Result<Arc<Paper>, Fault> {
    let found = office.papers.get(DRAWER, id).await?;
    let found = found.filter(|snapshot| ask.owns(text(snapshot, "project_id")));
    found.ok_or_else(|| Fault::missing(format!("Snapshot {id}")))
}

pub(crate) fn brief(ask: &Ask, snapshot: &Paper) -> Map<String, Value> {
    let mut shown = paper(json!({
        "id": text(snapshot, "id"),
        "name": value(snapshot, "name"),
        "description": value(snapshot, "description"),
        "volume_id": text(snapshot, "volume_id"),
        "status": text(snapshot, "status"),
        "size": number(snapshot, "size"),
        "metadata": value(snapshot, "metadata"),
        "created_at": value(snapshot, "created_at"),
        "updated_at": value(snapshot, "updated_at"),
    }));
    if ask.since(14) {
        shown.insert("group_snapshot_id".to_owned(), value(snapshot, "group_snapshot_id"));
    }
    if ask.since(41) {
        shown.insert("user_id".to_owned(), value(snapshot, "user_id"));
    }
    if ask.since(65) {
        shown.insert("consumes_quota".to_owned(), json!(true));
    }
    shown
}

fn detail(ask: &Ask, snapshot: &Paper) -> Value {
    let mut shown = brief(ask, snapshot);
    shown.insert("os-extended-snapshot-attributes:progress".to_owned(), value(snapshot, "progress"));
    shown.insert("os-extended-snapshot-attributes:project_id".to_owned(), value(snapshot, "project_id"));
    Value::Object(shown)
}

async fn list(office: &Office, ask: &Ask, full: bool) -> Reply {
    let mut snapshots = office.papers.all(DRAWER).await?;
    if !ask.everywhere() {
        snapshots.retain(|snapshot| text(snapshot, "project_id") == ask.caller.project);
    }
    let page = page(ask, RULES, snapshots)?;
    Answer::ok(page.body(ask, "snapshots", |snapshot| {
        if full { detail(ask, snapshot) } else { Value::Object(brief(ask, snapshot)) }
    }))
}

async fn create(office: &Office, ask: &Ask) -> Reply {
    ask.writer("volume:create_snapshot")?;
    let wanted = ask.member("snapshot")?;
    let id = match wanted.get("volume_id") {
        None => return Err(Fault::bad("'volume_id' must be specified")),
        Some(id) => id.as_str().unwrap_or("None"),
    };
    let volume = volumes::find(office, ask, id).await?;
    let force = wanted.get("force").map_or(Ok(false), |given| given_flag(given, "force"))?;
    if ask.since(66) && wanted.contains_key("force") && !force {
        return Err(Fault::bad("force is true since 3.66, or not given."));
    }
    let status = text(&volume, "status");
    let fits = rule_of(Deed::Snapshot).begins_in(status);
    if !fits || (status == "in-use" && !force && !ask.since(66)) {
        return Err(Fault::state(format!(
            "Volume {id} status must be available, but current status is: {status}."
        )));
    }
    let metadata = wanted.get("metadata").filter(|given| !given.is_null());
    let metadata = metadata.map_or_else(|| Ok(Map::new()), |given| text_map(given, false))?;
    let name = given_text(wanted, &["name", "display_name"])?;
    let description = given_text(wanted, &["description", "display_description"])?;
    let (user, request) = (&ask.caller.user, &ask.id);
    let made = begin(
        office,
        &volume,
        json!({
            "user_id": user, "name": name, "description": description, "metadata": metadata,
            "task": { "do": rule_of(Deed::CreateSnapshot).name, "request": request },
        }),
    )
    .await?;
    Answer::accepted(json!({ "snapshot": brief(ask, &made) }))
}

/// Takes a new snapshot's share of the quota, writes its paper, and has it made. `said`: what is the caller's to say.
pub(crate) async fn begin(office: &Office, volume: &Paper, said: Value) -> Result<Arc<Paper>, Fault> {
    let kind = types::named(office, text(volume, "volume_type_id")).await?;
    let mut made = paper(json!({
        "id": fresh_id(),
        "volume_id": text(volume, "id"),
        "project_id": text(volume, "project_id"),
        "volume_type_id": text(volume, "volume_type_id"),
        "host": value(volume, "host"),
        "members": value(volume, "members"),
        "size": number(volume, "size"),
        "status": rule_of(Deed::CreateSnapshot).during,
        "progress": "0%",
        "created_at": now(),
        "updated_at": null,
        "group_snapshot_id": null,
        "metadata": {},
    }));
    made.extend(paper(said));
    let wants = [("snapshots", 1), ("gigabytes", number(volume, "size"))];
    let need = Need { project: text(volume, "project_id"), kind: text(&kind, "name"), wants: &wants };
    let _reserved = reserve(office, need).await?;
    let id = text(&made, "id").to_owned();
    let made = office.papers.add(DRAWER, &id, made).await?;
    office.kick.notify_one();
    Ok(made)
}

async fn update(office: &Office, ask: &Ask, id: &str) -> Reply {
    find(office, ask, id).await?;
    ask.writer("volume:update_snapshot")?;
    let wanted = ask.member("snapshot")?;
    let name = given_text(wanted, &["name", "display_name"])?;
    let description = given_text(wanted, &["description", "display_description"])?;
    if name.is_none() && description.is_none() {
        return Err(Fault::bad("At least one of name and description is needed."));
    }
    let changed = change(office, id, |snapshot| {
        for (key, new) in [("name", &name), ("description", &description)] {
            if let Some(new) = new {
                snapshot.insert(key.to_owned(), new.clone());
            }
        }
        Ok(())
    })
    .await?;
    Answer::ok(json!({ "snapshot": brief(ask, &changed) }))
}

async fn change(
    office: &Office,
    id: &str,
    edit: impl Fn(&mut Paper) -> Result<(), Fault> + Send + Sync,
) -> Result<Arc<Paper>, Fault> {
    let edit = |snapshot: &mut Paper| -> Result<(), Fault> {
        edit(snapshot)?;
        snapshot.insert("updated_at".to_owned(), json!(now()));
        Ok(())
    };
    let changed = office.papers.change(DRAWER, id, edit).await?;
    changed.ok_or_else(|| Fault::missing(format!("Snapshot {id}")))
}

/// Begins to delete a snapshot, unless a group snapshot holds it. Force is about its state alone.
async fn delete(office: &Office, snapshot: &Paper, force: bool) -> Reply {
    let of = text(snapshot, "group_snapshot_id");
    let of = if group_snapshots::holds(office, snapshot).await? { "" } else { of };
    begin_delete(office, text(snapshot, "id"), force, of).await?;
    Answer::bare(202)
}

/// Marks a snapshot to be deleted, and has it done. `group`: the group snapshot that does not hold it, because it goes with it or is gone.
pub(crate) async fn begin_delete(office: &Office, id: &str, force: bool, group: &str) -> Result<(), Fault> {
    let rule = rule_of(Deed::DeleteSnapshot);
    change(office, id, |snapshot| {
        let of = text(snapshot, "group_snapshot_id");
        let fits = force || rule.begins_in(text(snapshot, "status"));
        if !fits || !of.is_empty() && of != group {
            return Err(Fault::bad("Invalid snapshot: Snapshot status must be available or error, and it is in no group snapshot."));
        }
        snapshot.insert("status".to_owned(), json!(rule.during));
        // Whatever becomes of it, its group snapshot is going or gone.
        snapshot.insert("group_snapshot_id".to_owned(), Value::Null);
        snapshot.insert("task".to_owned(), json!({ "do": rule.name }));
        Ok(())
    })
    .await?;
    office.kick.notify_one();
    Ok(())
}

async fn act(office: &Office, ask: &Ask, id: &str) -> Reply {
    let snapshot = find(office, ask, id).await?;
    let body = ask.body.as_object().and_then(|body| body.iter().next());
    let Some((name, given)) = body else { return Err(Fault::bad("There is no such action.")) };
    let status = given.get("status").and_then(Value::as_str).unwrap_or("").to_lowercase();
    match name.as_str() {
        "os-reset_status" => {
            ask.admin("volume_extension:snapshot_admin_actions:reset_status")?;
            if !SNAPSHOT_STATES.contains(&status.as_str()) {
                return Err(Fault::bad("Invalid input for field/attribute status."));
            }
            change(office, id, |snapshot| {
                snapshot.insert("status".to_owned(), json!(status));
                snapshot.remove("task");
                Ok(())
            })
            .await?;
            Answer::bare(202)
        }
        "os-unmanage" => manage::give_up_snapshot(office, ask, &snapshot).await,
        "os-force_delete" => {
            ask.admin("volume_extension:snapshot_admin_actions:force_delete")?;
            delete(office, &snapshot, true).await
        }
        "os-update_snapshot_status" => {
            ask.writer("snapshot_extension:snapshot_actions:update_snapshot_status")?;
            let progress = given.get("progress").and_then(Value::as_str).map(str::to_owned);
            change(office, id, |snapshot| {
                let fits = match text(snapshot, "status") {
                    "creating" => ["creating", "available", "error"].contains(&status.as_str()),
                    "deleting" => ["deleting", "error_deleting"].contains(&status.as_str()),
                    _ => false,
                };
                if !fits {
                    return Err(Fault::bad(
                        "Provided snapshot status not allowed for snapshot with its status.",
                    ));
                }
                snapshot.insert("status".to_owned(), json!(status));
                if let Some(progress) = &progress {
                    snapshot.insert("progress".to_owned(), json!(progress));
                }
                Ok(())
            })
            .await?;
            Answer::bare(202)
        }
        _ => Err(Fault::bad("There is no such action.")),
    }
}
