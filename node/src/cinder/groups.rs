//! `/groups` (3.13): volumes that are snapshotted and deleted together.
//!
//! Invariant: which group a volume is in stands in the volume's own paper, and nowhere else. It holds the volume while it is there.
//! Invariant: a group and its volumes are of one project.
//! Invariant: a group that was copied is `available` when all of the volumes are that were made with it, `creating` before, and `error` where
//! one was not made or its own making was cut off.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::ask::{Answer, Ask, Reply};
use super::fault::Fault;
use super::fields::{fresh_id, given_text, made_state, now, number, paper, text, texts, value};
use super::list::{Rules, page};
use super::quotas::Need;
use super::reserve::reserve;
use super::states::{Deed, rule_of};
use super::volumes::Going;
use super::{Office, ZONE, group_snapshots, group_types, snapshots, types, volumes};
use crate::papers::Paper;

pub(super) const DRAWER: &str = "groups";
/// Of a volume that was made with its group: that group.
const MADE_WITH: &str = "made_with_group";
const RULES: Rules = Rules {
    filters: &["name", "status", "group_type"],
    sorts: &["name", "status", "group_type"],
    what: "Group",
};
/// States that an admin may set.
const STATES: [&str; 6] = ["creating", "available", "deleting", "error", "error_deleting", "updating"];

/// Answers what is under `/groups`.
pub(crate) async fn answer(office: &Arc<Office>, ask: &Ask, rest: &[&str]) -> Reply {
    ask.needs(13)?;
    match (ask.method.as_str(), rest) {
        ("GET", []) => list(office, ask, false).await,
        ("GET", ["detail"]) => list(office, ask, true).await,
        ("POST", []) => create(office, ask).await,
        ("POST", ["action"]) => copy(office, ask).await,
        ("GET", [id]) => {
            let group = find(office, ask, id).await?;
            let volumes = members(office, &group).await?;
            Answer::ok(json!({ "group": detail(ask, &shown(group, &volumes), &volumes) }))
        }
        ("PUT", [id]) => update(office, ask, id).await,
        ("POST", [id, "action"]) => act(office, ask, id).await,
        _ => Err(Fault::nowhere()),
    }
}

/// A group that the caller may see.
pub(crate) async fn find(office: &Office, ask: &Ask, id: &str) -> Result<Arc<Paper>, Fault> {
    let found = office.papers.get(DRAWER, id).await?;
    let found = found.filter(|group| ask.owns(text(group, "project_id")));
    found.ok_or_else(|| Fault::missing(format!("Group {id}")))
}

/// The volumes of a group: those of its project, for what another one was given is not its to copy and delete.
pub(crate) async fn members(office: &Office, group: &Paper) -> Result<Vec<Arc<Paper>>, Fault> {
    let mut volumes = office.papers.all(volumes::DRAWER).await?;
    volumes.retain(|volume| is_of(volume, group));
    Ok(volumes)
}

fn is_of(volume: &Paper, group: &Paper) -> bool {
    text(volume, "group_id") == text(group, "id") && text(volume, "project_id") == text(group, "project_id")
}

/// The group that a volume names and that does not hold it: it is gone, or of another project. Empty where it holds, or none is named.
pub(crate) async fn left_by<'a>(office: &Office, volume: &'a Paper) -> Result<&'a str, Fault> {
    let id = text(volume, "group_id");
    let group = office.papers.get(DRAWER, id).await?;
    Ok(if group.is_some_and(|group| is_of(volume, &group)) { "" } else { id })
}

/// Whether a group may hold a volume: it names one, and not `left`, of which [`left_by`] says that it does not.
pub(crate) fn is_held(volume: &Paper, left: &str) -> bool {
    let group = text(volume, "group_id");
    !group.is_empty() && group != left
}

/// Its state: once all that is made with it is begun, what becomes of that. `volumes` may have others as well.
fn state_of<'a>(group: &'a Paper, volumes: &[Arc<Paper>]) -> &'a str {
    let id = text(group, "id");
    let made = |volume: &&Arc<Paper>| text(volume, MADE_WITH) == id && is_of(volume, group);
    let any = |state: &str| volumes.iter().filter(made).any(|volume| text(volume, "status") == state);
    match made_state(group) {
        "available" if any(rule_of(Deed::Create).failed) => "error",
        "available" if any(rule_of(Deed::Create).during) => "creating",
        state => state,
    }
}

/// As it is shown: in the state that it is in.
fn shown(group: Arc<Paper>, volumes: &[Arc<Paper>]) -> Arc<Paper> {
    let state = state_of(&group, volumes);
    if state == text(&group, "status") {
        return group;
    }
    let mut now = Paper::clone(&group);
    now.insert("status".to_owned(), json!(state));
    Arc::new(now)
}

fn detail(ask: &Ask, group: &Paper, volumes: &[Arc<Paper>]) -> Value {
    let mut shown = Map::new();
    for key in [
        "id",
        "name",
        "description",
        "status",
        "availability_zone",
        "created_at",
        "group_type",
        "volume_types",
    ] {
        shown.insert(key.to_owned(), value(group, key));
    }
    if ask.since(14) {
        shown.insert("group_snapshot_id".to_owned(), value(group, "group_snapshot_id"));
        shown.insert("source_group_id".to_owned(), value(group, "source_group_id"));
    }
    if ask.since(25) && ask.param_flag("list_volume") {
        let ids = volumes.iter().filter(|volume| is_of(volume, group));
        shown.insert("volumes".to_owned(), ids.map(|volume| json!(text(volume, "id"))).collect());
    }
    if ask.since(38) {
        shown.insert("replication_status".to_owned(), json!("disabled"));
    }
    if ask.since(58) && ask.caller.admin {
        shown.insert("project_id".to_owned(), value(group, "project_id"));
    }
    Value::Object(shown)
}

fn brief(group: &Paper) -> Value {
    json!({ "id": text(group, "id"), "name": value(group, "name") })
}

async fn list(office: &Office, ask: &Ask, full: bool) -> Reply {
    let mut all = office.papers.all(DRAWER).await?;
    if !ask.everywhere() {
        all.retain(|group| text(group, "project_id") == ask.caller.project);
    }
    let volumes = office.papers.all(volumes::DRAWER).await?;
    let all = all.into_iter().map(|group| shown(group, &volumes)).collect();
    let page = page(ask, RULES, all)?;
    Answer::ok(page.body(
        ask,
        "groups",
        |group| if full { detail(ask, group, &volumes) } else { brief(group) },
    ))
}

/// Writes a new group within the quota.
async fn add(office: &Office, ask: &Ask, said: Value) -> Result<Arc<Paper>, Fault> {
    let mut made = paper(json!({
        "id": fresh_id(), "project_id": ask.caller.project, "user_id": ask.caller.user, "availability_zone": ZONE,
        "created_at": now(), "status": "available", "group_snapshot_id": null, "source_group_id": null,
    }));
    made.extend(paper(said));
    let wants = [("groups", 1)];
    let _reserved = reserve(office, Need { project: &ask.caller.project, kind: "", wants: &wants }).await?;
    let id = text(&made, "id").to_owned();
    Ok(office.papers.add(DRAWER, &id, made).await?)
}

async fn create(office: &Office, ask: &Ask) -> Reply {
    ask.writer("group:create")?;
    let wanted = ask.member("group")?;
    let kind = wanted.get("group_type").and_then(Value::as_str).unwrap_or("");
    let kind = group_types::named(office, kind).await?;
    let mut ids = Vec::new();
    for name in texts(wanted, "volume_types") {
        ids.push(text(&*types::visible(office, ask, &name).await?, "id").to_owned());
    }
    if ids.is_empty() {
        return Err(Fault::bad("volume_types must be provided to create group."));
    }
    // Nothing here takes snapshots of several volumes at one moment.
    let status = if group_types::wants_consistent(&kind) { "error" } else { "available" };
    let (name, description) = (given_text(wanted, &["name"])?, given_text(wanted, &["description"])?);
    let made = add(office, ask, json!({
        "name": name, "description": description, "group_type": text(&kind, "id"), "volume_types": ids, "status": status,
    }))
    .await?;
    Answer::accepted(json!({ "group": brief(&made) }))
}

/// From a group or from a snapshot of one, volume by volume. When one of them cannot be made none is, and the group is none either.
async fn copy(office: &Arc<Office>, ask: &Ask) -> Reply {
    ask.needs(14)?;
    ask.writer("group:create")?;
    let wanted = ask.member("create-from-src")?;
    let said = |key: &str| wanted.get(key).and_then(Value::as_str).filter(|id| !id.is_empty());
    let (snapshot, source) = (said("group_snapshot_id"), said("source_group_id"));
    let (group, sources) = match (snapshot, source) {
        (Some(id), None) => {
            let of = group_snapshots::find(office, ask, id).await?;
            let snapshots = group_snapshots::members(office, &of).await?;
            if group_snapshots::state_of(&of, &snapshots) != "available" {
                return Err(Fault::bad("Invalid group snapshot: its status must be available."));
            }
            (find(office, ask, text(&of, "group_id")).await?, snapshots)
        }
        (None, Some(id)) => {
            let group = find(office, ask, id).await?;
            let volumes = members(office, &group).await?;
            if !volumes.iter().all(|volume| rule_of(Deed::Snapshot).begins_in(text(volume, "status"))) {
                return Err(Fault::bad("Invalid group: a volume of it is neither available nor in-use."));
            }
            (group, volumes)
        }
        _ => return Err(Fault::bad("Either group_snapshot_id or source_group_id is needed.")),
    };
    if sources.is_empty() {
        return Err(Fault::bad("The source has no volumes."));
    }
    let (name, description) = (given_text(wanted, &["name"])?, given_text(wanted, &["description"])?);
    let made = add(office, ask, json!({
        "name": name, "description": description, "group_type": text(&group, "group_type"), "status": "creating",
        "volume_types": value(&group, "volume_types"), "group_snapshot_id": snapshot, "source_group_id": source,
    }))
    .await?;
    for source in sources {
        let volume = copy_of(ask, &source, snapshot.is_some(), &made);
        if let Err(fault) = volumes::begin(office, volume).await {
            let going = Going { force: true, group: text(&made, "id"), ..Going::default() };
            if let Err(error) = dissolve(office, &made, going).await {
                tracing::warn!(
                    group = text(&made, "id"),
                    error = error.message,
                    "take back a group that cannot be whole"
                );
            }
            return Err(fault);
        }
    }
    set_status(office, text(&made, "id"), "available").await?;
    Answer::accepted(json!({ "group": brief(&made) }))
}

/// A new volume of a volume of a group, or of a snapshot of one.
fn copy_of(ask: &Ask, source: &Paper, frozen: bool, group: &Paper) -> Paper {
    let of = text(source, "id");
    paper(json!({
        "id": fresh_id(), "project_id": ask.caller.project, "user_id": ask.caller.user,
        "name": value(source, "name"), "description": value(source, "description"),
        "size": number(source, "size"), "status": rule_of(Deed::Create).during, "attach_status": "detached",
        "availability_zone": ZONE, "host": null, "created_at": now(), "updated_at": null, "bootable": false,
        "volume_type_id": text(source, "volume_type_id"), "group_id": text(group, "id"), MADE_WITH: text(group, "id"),
        "metadata": {}, "admin_metadata": {},
        "snapshot_id": frozen.then_some(of), "source_volid": (!frozen).then_some(of), "migration_status": null,
        "task": { "do": rule_of(Deed::Create).name, "request": ask.id },
    }))
}

async fn update(office: &Office, ask: &Ask, id: &str) -> Reply {
    let group = find(office, ask, id).await?;
    ask.writer("group:update")?;
    let wanted = ask.member("group")?;
    let (name, description) = (given_text(wanted, &["name"])?, given_text(wanted, &["description"])?);
    let ids = |key: &str| -> Vec<String> {
        let text = wanted.get(key).and_then(Value::as_str).unwrap_or("");
        text.split(',').map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect()
    };
    let (add, remove) = (ids("add_volumes"), ids("remove_volumes"));
    if name.is_none() && description.is_none() && add.is_empty() && remove.is_empty() {
        return Err(Fault::bad(
            "At least one of name, description, add_volumes and remove_volumes is needed.",
        ));
    }
    let kinds = texts(&group, "volume_types");
    for volume in &remove {
        let volume = volumes::find(office, ask, volume).await?;
        if text(&volume, "group_id") != id {
            return Err(Fault::state("a volume to be removed is not in the group."));
        }
    }
    for volume in &add {
        let volume = volumes::find(office, ask, volume).await?;
        if text(&volume, "project_id") != text(&group, "project_id") {
            return Err(Fault::state("a volume to be added is of another project than the group."));
        }
        if !rule_of(Deed::Snapshot).begins_in(text(&volume, "status")) {
            return Err(Fault::state("a volume to be added must be available or in-use."));
        }
        let held = is_held(&volume, left_by(office, &volume).await?);
        if held || !kinds.iter().any(|kind| kind == text(&volume, "volume_type_id")) {
            return Err(Fault::state(
                "a volume to be added is in another group, or of a type that this one does not take.",
            ));
        }
    }
    let moves =
        add.iter().map(|volume| (volume, json!(id))).chain(remove.iter().map(|volume| (volume, Value::Null)));
    for (volume, group) in moves {
        super::actions::set(office, volume, |volume| {
            drop(volume.insert("group_id".to_owned(), group.clone()));
        })
        .await?;
    }
    let edit = |group: &mut Paper| -> Result<(), Fault> {
        for (key, new) in [("name", &name), ("description", &description)] {
            if let Some(new) = new {
                group.insert(key.to_owned(), new.clone());
            }
        }
        Ok(())
    };
    office.papers.change(DRAWER, id, edit).await?;
    Answer::bare(202)
}

/// Deletes a group, with its volumes where that is wished. Whether each of them may go is looked at before the first one does.
async fn delete(office: &Office, group: &Paper, whole: bool) -> Reply {
    let id = text(group, "id");
    let volumes = members(office, group).await?;
    if group_snapshots::any_of(office, id).await? {
        return Err(Fault::bad("Invalid group: it has group snapshots."));
    }
    if !whole && !volumes.is_empty() {
        return Err(Fault::bad(
            "Invalid group: it is not empty; delete-volumes deletes its volumes with it.",
        ));
    }
    let mut frozen = office.papers.all(snapshots::DRAWER).await?;
    // A group snapshot is gone at once, and its snapshots a moment later.
    frozen.retain(|snapshot| text(snapshot, "status") != rule_of(Deed::DeleteSnapshot).during);
    let going = Going { group: id, ..Going::default() };
    for volume in &volumes {
        volumes::may_go(office, volume, going, &frozen).await?;
    }
    dissolve(office, group, going).await?;
    Answer::bare(202)
}

/// A group and its volumes go.
async fn dissolve(office: &Office, group: &Paper, going: Going<'_>) -> Result<(), Fault> {
    for volume in members(office, group).await? {
        volumes::begin_delete(office, text(&volume, "id"), going).await?;
    }
    office.papers.remove(DRAWER, text(group, "id")).await?;
    Ok(())
}

async fn set_status(office: &Office, id: &str, status: &str) -> Result<(), Fault> {
    let edit = |group: &mut Paper| -> Result<(), Fault> {
        group.insert("status".to_owned(), json!(status));
        Ok(())
    };
    office.papers.change(DRAWER, id, edit).await.map(drop)
}

async fn act(office: &Office, ask: &Ask, id: &str) -> Reply {
    let group = find(office, ask, id).await?;
    if let Some(given) = ask.body.get("delete") {
        ask.writer("group:delete")?;
        let whole = given.get("delete-volumes").and_then(Value::as_bool).unwrap_or(false);
        return delete(office, &group, whole).await;
    }
    if let Some(given) = ask.body.get("reset_status") {
        ask.needs(20)?;
        ask.admin("group:reset_status")?;
        let status = given.get("status").and_then(Value::as_str).unwrap_or("").to_lowercase();
        if !STATES.contains(&status.as_str()) {
            return Err(Fault::bad("Invalid input for field/attribute status."));
        }
        set_status(office, id, &status).await?;
        return Answer::bare(202);
    }
    Err(Fault::bad("There is no such action."))
}
