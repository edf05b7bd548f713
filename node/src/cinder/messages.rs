//! `/messages` (3.3): why something that was accepted failed, in words for users.
//!
//! Invariant: a message names what it is about, and nothing of the machines.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Office;
use super::ask::{Answer, Ask, Reply};
use super::fault::Fault;
use super::fields::{fresh_id, paper, text, time_text, value};
use super::list::{Rules, page};
use super::volume_view::links;
use crate::papers::{Paper, PaperError};
use crate::storage::wall_clock;

const DRAWER: &str = "messages";
/// How long a message is kept, in microseconds.
const KEPT: u64 = 30 * 24 * 3600 * 1_000_000;
const RULES: Rules = Rules {
    filters: &["resource_uuid", "resource_type", "event_id", "request_id", "message_level"],
    sorts: &["event_id", "resource_type", "resource_uuid", "message_level", "request_id"],
    what: "Message",
};

/// What failed, in Cinder's numbers and words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    NoBackend,
    Create,
    Extend,
    Delete,
    Snapshot,
    Backup,
    Image,
    ImageToken,
    Upload,
    UploadToken,
    Restore,
    Revert,
    Manage,
    Migrate,
}

impl Event {
    fn codes(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::NoBackend => {
                ("001", "003", "schedule allocate volume:Could not find any available weighted backend.")
            }
            Self::Create => ("001", "001", "schedule allocate volume:An unknown error occurred."),
            Self::Extend => ("006", "001", "extend volume:An unknown error occurred."),
            Self::Delete => ("008", "026", "delete volume:Volume is in use, or its disk does not answer."),
            Self::Snapshot => ("010", "001", "snapshot create:An unknown error occurred."),
            Self::Upload => ("003", "001", "copy volume to image:An unknown error occurred."),
            Self::Image => ("005", "001", "copy image to volume:An unknown error occurred."),
            Self::ImageToken => (
                "005",
                "001",
                "copy image to volume:The token that this was asked for with is no longer good; ask again.",
            ),
            Self::UploadToken => (
                "003",
                "001",
                "copy volume to image:The token that this was asked for with is no longer good; ask again.",
            ),
            Self::Backup => ("013", "001", "create backup:An unknown error occurred."),
            Self::Restore => ("015", "001", "restore backup:An unknown error occurred."),
            Self::Manage => ("016", "001", "manage volume:An unknown error occurred."),
            Self::Migrate => {
                ("017", "001", "migrate volume:The volume is in use, or it could not be copied.")
            }
            Self::Revert => ("007", "001", "revert volume:An unknown error occurred."),
        }
    }
}

/// Keeps a message about a paper of `kind` (`VOLUME`, `VOLUME_SNAPSHOT`, `VOLUME_BACKUP`).
pub(crate) async fn say(office: &Office, event: Event, kind: &str, about: &Paper) -> Result<(), PaperError> {
    let (action, detail, words) = event.codes();
    let now = wall_clock();
    let request = about.get("task").and_then(|task| task.get("request")).cloned().unwrap_or(json!(""));
    let message = paper(json!({
        "id": fresh_id(), "project_id": text(about, "project_id"), "event_id": format!("VOLUME_{kind}_{action}_{detail}"),
        "user_message": words, "message_level": "ERROR", "resource_type": kind, "resource_uuid": text(about, "id"),
        "request_id": request, "created_at": time_text(now), "guaranteed_until": time_text(now + KEPT),
    }));
    office.papers.add(DRAWER, text(&message, "id"), message.clone()).await.map(drop)
}

/// Drops messages that nobody is promised any more.
pub(crate) async fn sweep(office: &Office) -> Result<(), PaperError> {
    let now = time_text(wall_clock());
    for message in office.papers.all(DRAWER).await? {
        if text(&message, "guaranteed_until") < now.as_str() {
            office.papers.remove(DRAWER, text(&message, "id")).await?;
        }
    }
    Ok(())
}

/// Answers what is under `/messages`.
pub(crate) async fn answer(office: &Office, ask: &Ask, rest: &[&str]) -> Reply {
    ask.needs(3)?;
    match (ask.method.as_str(), rest) {
        ("GET", []) => {
            let mut all = office.papers.all(DRAWER).await?;
            all.retain(|message| text(message, "project_id") == ask.caller.project);
            let page = page(ask, RULES, all)?;
            Answer::ok(page.body(ask, "messages", |message| shown(ask, message)))
        }
        ("GET", [id]) => Answer::ok(json!({ "message": shown(ask, &*find(office, ask, id).await?) })),
        ("DELETE", [id]) => {
            find(office, ask, id).await?;
            ask.writer("message:delete")?;
            office.papers.remove(DRAWER, id).await?;
            Answer::bare(204)
        }
        _ => Err(Fault::nowhere()),
    }
}

async fn find(office: &Office, ask: &Ask, id: &str) -> Result<Arc<Paper>, Fault> {
    let found = office.papers.get(DRAWER, id).await?;
    let found = found.filter(|message| ask.owns(text(message, "project_id")));
    found.ok_or_else(|| Fault::missing(format!("Message {id}")))
}

fn shown(ask: &Ask, message: &Paper) -> Value {
    let mut shown = json!({ "links": links(ask, "messages", text(message, "id")) });
    for key in [
        "id",
        "event_id",
        "user_message",
        "message_level",
        "created_at",
        "guaranteed_until",
        "request_id",
        "resource_type",
        "resource_uuid",
    ] {
        shown[key] = value(message, key);
    }
    shown
}
