//! `/attachments` (3.27): reserved, connected, completed, deleted.
//!
//! Invariant: what a volume's state is follows from its attachments when one of them goes; where something is under way with it, when that
//! has come to its end.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Office;
use super::ask::{Answer, Ask, Reply};
use super::attach::{connection, enter};
use super::fault::Fault;
use super::fields::{flag, fresh_id, map, now, paper, text, value};
use super::list::{Rules, page};
use super::volumes;
use crate::papers::{Paper, PaperError};

pub(crate) const DRAWER: &str = "attachments";
const RULES: Rules = Rules {
    filters: &["volume_id", "status", "instance_id", "attach_status", "project_id"],
    sorts: &["volume_id", "attach_status"],
    what: "Volume attachment",
};

/// Answers what is under `/attachments`.
pub(crate) async fn answer(office: &Office, ask: &Ask, rest: &[&str]) -> Reply {
    ask.needs(27)?;
    match (ask.method.as_str(), rest) {
        ("GET", []) => list(office, ask, false).await,
        ("GET", ["detail"]) => list(office, ask, true).await,
        ("POST", []) => create(office, ask).await,
        ("GET", [id]) => Answer::ok(json!({ "attachment": detail(&*find(office, ask, id).await?) })),
        ("PUT", [id]) => connect(office, ask, id).await,
        ("POST", [id, "action"]) if ask.body.get("os-complete").is_some() => complete(office, ask, id).await,
        ("DELETE", [id]) => {
            let found = find(office, ask, id).await?;
            ask.writer("volume:attachment_delete")?;
            let volume = text(&found, "volume_id");
            office.papers.remove(DRAWER, id).await?;
            settle(office, volume).await?;
            let left = office.papers.all(DRAWER).await?;
            let left = left.iter().filter(|attachment| text(attachment, "volume_id") == volume);
            Answer::ok(json!({ "attachments": left.map(|attachment| brief(attachment)).collect::<Vec<_>>() }))
        }
        _ => Err(Fault::nowhere()),
    }
}

async fn find(office: &Office, ask: &Ask, id: &str) -> Result<Arc<Paper>, Fault> {
    let found = office.papers.get(DRAWER, id).await?;
    let found = found.filter(|attachment| ask.owns(text(attachment, "project_id")));
    found.ok_or_else(|| {
        Fault::missing(format!("Volume attachment could not be found with filter: attachment_id = {id}."))
    })
}

fn brief(attachment: &Paper) -> Value {
    json!({
        "id": text(attachment, "id"),
        "status": text(attachment, "attach_status"),
        "instance": value(attachment, "instance"),
        "volume_id": text(attachment, "volume_id"),
    })
}

fn detail(attachment: &Paper) -> Value {
    let mut shown = brief(attachment);
    shown["attach_mode"] = value(attachment, "mode");
    shown["attached_at"] = value(attachment, "attached_at");
    shown["detached_at"] = Value::Null;
    let info = map(attachment, "connection_info");
    let mut data = map(&info, "data");
    if let Some(kind) = info.get("driver_volume_type") {
        data.insert("driver_volume_type".to_owned(), kind.clone());
    }
    shown["connection_info"] = Value::Object(data);
    shown
}

async fn list(office: &Office, ask: &Ask, full: bool) -> Reply {
    let mut all = office.papers.all(DRAWER).await?;
    if !ask.everywhere() {
        all.retain(|attachment| text(attachment, "project_id") == ask.caller.project);
    }
    let page = page(ask, RULES, all)?;
    let show = |attachment: &Arc<Paper>| if full { detail(attachment) } else { brief(attachment) };
    Answer::ok(page.body(ask, "attachments", show))
}

/// The mode that is asked for: where it is not, that of the volume.
fn mode_of<'a>(ask: &Ask, given: &'a Map<String, Value>, volume: &Paper) -> Result<&'a str, Fault> {
    let read_only = text(&map(volume, "admin_metadata"), "readonly") == "True";
    let said = given.get("mode").and_then(Value::as_str).filter(|_| ask.since(54));
    let mode = said.unwrap_or(if read_only { "ro" } else { "rw" });
    match mode {
        "ro" => Ok(mode),
        "rw" if !read_only => Ok(mode),
        _ => Err(Fault::bad("Invalid input received: mode is ro or rw, and ro for a read-only volume.")),
    }
}

async fn create(office: &Office, ask: &Ask) -> Reply {
    ask.writer("volume:attachment_create")?;
    let given = ask.member("attachment")?;
    let id = given.get("volume_uuid").and_then(Value::as_str).unwrap_or("");
    let volume = volumes::find(office, ask, id).await?;
    let mode = mode_of(ask, given, &volume)?;
    let instance = given.get("instance_uuid").cloned().unwrap_or(Value::Null);
    let connector =
        given.get("connector").and_then(Value::as_object).filter(|connector| !connector.is_empty());
    // Before the volume is reserved: who cannot be told where it is leaves it as it was.
    let info = match connector {
        Some(_) => connection(office, &volume, mode).await?,
        None => Value::Null,
    };
    reserve(office, id).await?;
    let mut attachment = paper(json!({
        "id": fresh_id(),
        "volume_id": id,
        "project_id": text(&volume, "project_id"),
        "instance": instance,
        "mode": mode,
        "attach_status": "reserved",
        "attached_at": null,
        "created_at": now(),
        "connection_info": {},
    }));
    if let Some(connector) = connector {
        use_connector(&mut attachment, connector, info);
    }
    let kept = office.papers.add(DRAWER, text(&attachment, "id"), attachment.clone()).await?;
    if connector.is_some() {
        settle(office, id).await?;
    }
    Answer::ok(json!({ "attachment": detail(&kept) }))
}

fn use_connector(attachment: &mut Paper, connector: &Map<String, Value>, info: Value) {
    attachment.insert("connection_info".to_owned(), info);
    attachment.insert("attach_status".to_owned(), json!("attaching"));
    attachment.insert("host_name".to_owned(), connector.get("host").cloned().unwrap_or(Value::Null));
    attachment.insert("device".to_owned(), connector.get("mountpoint").cloned().unwrap_or(Value::Null));
    attachment.insert("attached_at".to_owned(), json!(now()));
}

async fn reserve(office: &Office, id: &str) -> Result<(), Fault> {
    let changed = office
        .papers
        .change(volumes::DRAWER, id, |volume| -> Result<(), Fault> {
            let status = text(volume, "status");
            let shared = matches!(status, "in-use" | "reserved" | "attaching") && flag(volume, "multiattach");
            if status != "available" && !shared {
                return Err(Fault::bad(format!(
                    "Invalid volume: Volume {id} status must be available or downloading to reserve, but the current status is {status}."
                )));
            }
            if status == "available" {
                volume.insert("status".to_owned(), json!("reserved"));
            }
            Ok(())
        })
        .await?;
    changed.map(drop).ok_or_else(|| Fault::missing(format!("Volume {id}")))
}

async fn connect(office: &Office, ask: &Ask, id: &str) -> Reply {
    let found = find(office, ask, id).await?;
    ask.writer("volume:attachment_update")?;
    let connector = ask.member("attachment")?.get("connector").and_then(Value::as_object);
    let connector = connector.ok_or_else(|| Fault::bad("Invalid input received: connector is missing."))?;
    let volume = text(&found, "volume_id");
    let volume = volumes::find(office, ask, volume).await?;
    let info = connection(office, &volume, text(&found, "mode")).await?;
    let changed = office
        .papers
        .change(DRAWER, id, |attachment| -> Result<(), Fault> {
            use_connector(attachment, connector, info.clone());
            Ok(())
        })
        .await?;
    let changed = changed.ok_or_else(|| Fault::missing(format!("Volume attachment {id}")))?;
    settle(office, text(&volume, "id")).await?;
    Answer::ok(json!({ "attachment": detail(&changed) }))
}

async fn complete(office: &Office, ask: &Ask, id: &str) -> Reply {
    ask.needs(44)?;
    let found = find(office, ask, id).await?;
    ask.writer("volume:attachment_complete")?;
    if text(&found, "attach_status") == "reserved" {
        return Err(Fault::state("The attachment has no connector yet."));
    }
    let mark = |attachment: &mut Paper| -> Result<(), Fault> {
        attachment.insert("attach_status".to_owned(), json!("attached"));
        Ok(())
    };
    office.papers.change(DRAWER, id, mark).await?;
    let mode = text(&found, "mode");
    enter(office, text(&found, "volume_id"), mode).await?;
    Answer::bare(204)
}

/// The state that a volume's attachments make, and whether it is attached.
pub(crate) async fn made_by(
    office: &Office,
    volume: &str,
) -> Result<(&'static str, &'static str), PaperError> {
    let all = office.papers.all(DRAWER).await?;
    let of: Vec<_> = all.iter().filter(|attachment| text(attachment, "volume_id") == volume).collect();
    let any = |status: &str| of.iter().any(|attachment| text(attachment, "attach_status") == status);
    Ok(match () {
        () if any("attached") => ("in-use", "attached"),
        () if any("attaching") => ("attaching", "detached"),
        () if any("reserved") => ("reserved", "detached"),
        () => ("available", "detached"),
    })
}

/// Gives a volume the state that its attachments make. One with which something is under way keeps its own until that has come to its
/// end, which asks the attachments then.
pub(crate) async fn settle(office: &Office, volume: &str) -> Result<(), Fault> {
    let (status, attached) = made_by(office, volume).await?;
    super::actions::set(office, volume, |paper| {
        if !paper.get("task").is_some_and(Value::is_object) {
            paper.insert("status".to_owned(), json!(status));
        }
        paper.insert("attach_status".to_owned(), json!(attached));
        if attached == "detached" {
            let mut kept = map(paper, "admin_metadata");
            kept.remove("attached_mode");
            paper.insert("admin_metadata".to_owned(), Value::Object(kept));
        }
    })
    .await
}
