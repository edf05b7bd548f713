//! `/group_snapshots` (3.14): a snapshot of each volume of a group, one after the other.
//!
//! Invariant: the snapshots name their group snapshot; it goes only together with them, and they with it. What is `available` has all of
//! them: it is `creating` until the last one is there, gone again when one of them cannot be begun, and `error` where one was not made or
//! its own making was cut off.

use std::sync::Arc;

use serde_json::{Value, json};

use super::ask::{Answer, Ask, Reply};
use super::fault::Fault;
use super::fields::{fresh_id, given_text, made_state, now, paper, text, value};
use super::list::{Rules, page};
use super::states::{Deed, rule_of};
use super::{Office, groups, snapshots};
use crate::papers::Paper;

const DRAWER: &str = "group-snapshots";
const RULES: Rules = Rules {
    filters: &["name", "status", "group_id"],
    sorts: &["name", "status", "group_id"],
    what: "Group snapshot",
};
/// States that an admin may set.
const STATES: [&str; 5] = ["creating", "available", "deleting", "error", "error_deleting"];

/// Answers what is under `/group_snapshots`.
pub(crate) async fn answer(office: &Office, ask: &Ask, rest: &[&str]) -> Reply {
    ask.needs(14)?;
    match (ask.method.as_str(), rest) {
        ("GET", []) => list(office, ask, false).await,
        ("GET", ["detail"]) => list(office, ask, true).await,
        ("POST", []) => create(office, ask).await,
        ("GET", [id]) => {
            let one = find(office, ask, id).await?;
            let snapshots = members(office, &one).await?;
            Answer::ok(json!({ "group_snapshot": detail(ask, &one, &snapshots) }))
        }
        ("DELETE", [id]) => {
            let one = find(office, ask, id).await?;
            ask.writer("group:delete_group_snapshot")?;
            let rule = rule_of(Deed::DeleteSnapshot);
            // All are looked at before the first one goes.
            let busy = |status: &str| status != rule.during && !rule.begins_in(status);
            if members(office, &one).await?.iter().any(|snapshot| busy(text(snapshot, "status"))) {
                return Err(Fault::bad(
                    "Invalid group snapshot: a snapshot of it is neither available nor error.",
                ));
            }
            dissolve(office, &one, false).await?;
            Answer::bare(202)
        }
        ("POST", [id, "action"]) => reset(office, ask, id).await,
        _ => Err(Fault::nowhere()),
    }
}

/// A group snapshot that the caller may see.
pub(crate) async fn find(office: &Office, ask: &Ask, id: &str) -> Result<Arc<Paper>, Fault> {
    let found = office.papers.get(DRAWER, id).await?;
    let found = found.filter(|one| ask.owns(text(one, "project_id")));
    found.ok_or_else(|| Fault::missing(format!("GroupSnapshot {id}")))
}

/// Its snapshots: those of its project.
pub(crate) async fn members(office: &Office, one: &Paper) -> Result<Vec<Arc<Paper>>, Fault> {
    let mut all = office.papers.all(snapshots::DRAWER).await?;
    all.retain(|snapshot| is_of(snapshot, one));
    Ok(all)
}

fn is_of(snapshot: &Paper, one: &Paper) -> bool {
    text(snapshot, "group_snapshot_id") == text(one, "id")
        && text(snapshot, "project_id") == text(one, "project_id")
}

/// Its state: once all of its snapshots are begun, what becomes of them. `snapshots` may have others as well.
pub(crate) fn state_of<'a>(one: &'a Paper, snapshots: &[Arc<Paper>]) -> &'a str {
    let any = |state: &str| {
        snapshots.iter().any(|snapshot| is_of(snapshot, one) && text(snapshot, "status") == state)
    };
    match made_state(one) {
        "available" if any(rule_of(Deed::CreateSnapshot).failed) => "error",
        "available" if any(rule_of(Deed::CreateSnapshot).during) => "creating",
        state => state,
    }
}

/// Whether a snapshot is part of a group snapshot that is there: it goes with that one alone.
pub(crate) async fn holds(office: &Office, snapshot: &Paper) -> Result<bool, Fault> {
    Ok(office.papers.get(DRAWER, text(snapshot, "group_snapshot_id")).await?.is_some())
}

/// A group snapshot and its snapshots go; those that go already are left to it.
async fn dissolve(office: &Office, one: &Paper, force: bool) -> Result<(), Fault> {
    let id = text(one, "id");
    for snapshot in members(office, one).await? {
        if text(&snapshot, "status") != rule_of(Deed::DeleteSnapshot).during {
            snapshots::begin_delete(office, text(&snapshot, "id"), force, id).await?;
        }
    }
    office.papers.remove(DRAWER, id).await?;
    Ok(())
}

/// Whether a group has any.
pub(crate) async fn any_of(office: &Office, group: &str) -> Result<bool, Fault> {
    Ok(office.papers.all(DRAWER).await?.iter().any(|one| text(one, "group_id") == group))
}

fn brief(one: &Paper) -> Value {
    json!({ "id": text(one, "id"), "name": value(one, "name"), "group_type_id": text(one, "group_type_id") })
}

fn detail(ask: &Ask, one: &Paper, snapshots: &[Arc<Paper>]) -> Value {
    let mut shown = brief(one);
    for key in ["group_id", "created_at", "description"] {
        shown[key] = value(one, key);
    }
    shown["status"] = json!(state_of(one, snapshots));
    if ask.since(58) && ask.caller.admin {
        shown["project_id"] = value(one, "project_id");
    }
    shown
}

async fn list(office: &Office, ask: &Ask, full: bool) -> Reply {
    let mut all = office.papers.all(DRAWER).await?;
    if !ask.everywhere() {
        all.retain(|one| text(one, "project_id") == ask.caller.project);
    }
    let snapshots = office.papers.all(snapshots::DRAWER).await?;
    // What is asked for by its status is what is shown of it.
    let all = all.into_iter().map(|one| {
        let status = json!(state_of(&one, &snapshots));
        let mut one = one.as_ref().clone();
        one.insert("status".to_owned(), status);
        Arc::new(one)
    });
    let page = page(ask, RULES, all.collect())?;
    Answer::ok(page.body(ask, "group_snapshots", |one| {
        if full {
            return detail(ask, one, &snapshots);
        }
        // Lists name it and say no more.
        json!({ "id": text(one, "id"), "name": value(one, "name") })
    }))
}

async fn create(office: &Office, ask: &Ask) -> Reply {
    ask.writer("group:create_group_snapshot")?;
    let wanted = ask.member("group_snapshot")?;
    let id = wanted.get("group_id").and_then(Value::as_str).unwrap_or("");
    let group = groups::find(office, ask, id).await?;
    let volumes = groups::members(office, &group).await?;
    if volumes.is_empty() {
        return Err(Fault::bad("Invalid group: Source group is empty."));
    }
    if let Some(volume) =
        volumes.iter().find(|volume| !rule_of(Deed::Snapshot).begins_in(text(volume, "status")))
    {
        return Err(Fault::state(format!(
            "Volume {} status must be available or in-use.",
            text(volume, "id")
        )));
    }
    let made = paper(json!({
        "id": fresh_id(), "project_id": text(&group, "project_id"), "user_id": ask.caller.user, "group_id": id,
        "group_type_id": text(&group, "group_type"), "name": given_text(wanted, &["name"])?,
        "description": given_text(wanted, &["description"])?, "status": "creating", "created_at": now(),
    }));
    let made = office.papers.add(DRAWER, text(&made, "id"), made.clone()).await?;
    for volume in volumes {
        let said = json!({
            "user_id": ask.caller.user, "name": value(&made, "name"), "description": value(&made, "description"),
            "group_snapshot_id": text(&made, "id"),
            "task": { "do": rule_of(Deed::CreateSnapshot).name, "request": ask.id },
        });
        // One that has not all of its snapshots is none.
        if let Err(fault) = snapshots::begin(office, &volume, said).await {
            if let Err(error) = dissolve(office, &made, true).await {
                tracing::warn!(
                    of = text(&made, "id"),
                    error = error.message,
                    "take back a group snapshot that cannot be whole"
                );
            }
            return Err(fault);
        }
    }
    set_status(office, text(&made, "id"), "available").await?;
    Answer::accepted(json!({ "group_snapshot": brief(&made) }))
}

async fn reset(office: &Office, ask: &Ask, id: &str) -> Reply {
    ask.needs(19)?;
    find(office, ask, id).await?;
    ask.admin("group:reset_group_snapshot_status")?;
    let status =
        ask.member("reset_status")?.get("status").and_then(Value::as_str).unwrap_or("").to_lowercase();
    if !STATES.contains(&status.as_str()) {
        return Err(Fault::bad("Invalid input for field/attribute status."));
    }
    set_status(office, id, &status).await?;
    Answer::bare(202)
}

async fn set_status(office: &Office, id: &str, status: &str) -> Result<(), Fault> {
    let edit = |one: &mut Paper| -> Result<(), Fault> {
        one.insert("status".to_owned(), json!(status));
        Ok(())
    };
    office.papers.change(DRAWER, id, edit).await.map(drop)
}
