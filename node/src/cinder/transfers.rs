//! `/os-volume-transfer` and `/volume-transfers` (3.55): a volume changes its project, by a key that its owner hands over.
//!
//! Invariant: of the key only a salted hash is kept; it is shown once.
//! Invariant: a volume that is `awaiting-transfer` names the transfer that it waits for, which was written before: whoever is killed in
//! between leaves a transfer that takes nothing, and no volume that waits for ever.
//! Invariant: what is transferred is in no group: a group's volumes are of its project.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::ask::{Answer, Ask, Reply};
use super::fault::Fault;
use super::fields::{flag, fresh_id, given_flag, given_text, now, number, paper, text, value};
use super::list::{Rules, page};
use super::quotas::Need;
use super::reserve::reserve;
use super::states::{Deed, rule_of};
use super::volume_view::{is_encrypted, links};
use super::{Office, group_snapshots, groups, quotas, types, volumes};
use crate::papers::Paper;
use crate::storage::random_bytes;

const DRAWER: &str = "transfers";
const RULES: Rules =
    Rules { filters: &["name", "volume_id"], sorts: &["name", "volume_id"], what: "Transfer" };

/// Answers what is under either path; `new`: under the one of 3.55.
pub(crate) async fn answer(office: &Office, ask: &Ask, new: bool, rest: &[&str]) -> Reply {
    if new {
        ask.needs(55)?;
    }
    match (ask.method.as_str(), rest) {
        ("GET", []) => list(office, ask, false).await,
        ("GET", ["detail"]) => list(office, ask, true).await,
        ("POST", []) => create(office, ask).await,
        ("GET", [id]) => Answer::ok(json!({ "transfer": detail(ask, &*find(office, ask, id).await?) })),
        ("DELETE", [id]) => delete(office, ask, id).await,
        ("POST", [id, "accept"]) => accept(office, ask, id).await,
        _ => Err(Fault::nowhere()),
    }
}

async fn find(office: &Office, ask: &Ask, id: &str) -> Result<Arc<Paper>, Fault> {
    let found = office.papers.get(DRAWER, id).await?;
    let found = found.filter(|transfer| ask.owns(text(transfer, "project_id")));
    found.ok_or_else(|| Fault::missing(format!("Transfer {id}")))
}

fn brief(ask: &Ask, transfer: &Paper) -> Map<String, Value> {
    let id = text(transfer, "id");
    paper(json!({
        "id": id, "volume_id": text(transfer, "volume_id"), "name": value(transfer, "name"),
        "links": links(ask, "os-volume-transfer", id),
    }))
}

fn detail(ask: &Ask, transfer: &Paper) -> Map<String, Value> {
    let mut shown = brief(ask, transfer);
    shown.insert("created_at".to_owned(), value(transfer, "created_at"));
    if ask.since(55) {
        shown.insert("no_snapshots".to_owned(), json!(flag(transfer, "no_snapshots")));
    }
    if ask.since(57) {
        shown.insert("source_project_id".to_owned(), value(transfer, "project_id"));
        shown.insert("destination_project_id".to_owned(), Value::Null);
        shown.insert("accepted".to_owned(), json!(false));
    }
    shown
}

async fn list(office: &Office, ask: &Ask, full: bool) -> Reply {
    let mut all = office.papers.all(DRAWER).await?;
    if !ask.everywhere() {
        all.retain(|transfer| text(transfer, "project_id") == ask.caller.project);
    }
    let page = page(ask, RULES, all)?;
    Answer::ok(page.body(ask, "transfers", |transfer| {
        Value::Object(if full { detail(ask, transfer) } else { brief(ask, transfer) })
    }))
}

fn hash(salt: &str, key: &str) -> String {
    blake3::hash(format!("{salt} {key}").as_bytes()).to_hex().to_string()
}

async fn create(office: &Office, ask: &Ask) -> Reply {
    ask.writer("volume:create_transfer")?;
    let wanted = ask.member("transfer")?;
    let id = wanted.get("volume_id").and_then(Value::as_str).unwrap_or("");
    let volume = volumes::find(office, ask, id).await?;
    if is_encrypted(&volume) && !ask.since(70) {
        return Err(Fault::state("transferring encrypted volume is not supported"));
    }
    let alone = wanted.get("no_snapshots").filter(|_| ask.since(55));
    let alone = alone.map_or(Ok(false), |given| given_flag(given, "no_snapshots"))?;
    let snapshots = snapshots_of(office, id).await?;
    if !snapshots.is_empty() && (alone || !ask.since(55)) {
        return Err(Fault::state("The volume has snapshots, which would be left behind."));
    }
    for snapshot in &snapshots {
        if group_snapshots::holds(office, snapshot).await? {
            return Err(Fault::state(
                "Snapshots of it belong to group snapshots, which stay with the project.",
            ));
        }
    }
    let name = given_text(wanted, &["name"])?.unwrap_or(Value::Null);
    let (salt, key) = (hex::encode(random_bytes::<8>()), hex::encode(random_bytes::<16>()));
    let made = paper(json!({
        "id": fresh_id(), "volume_id": id, "project_id": text(&volume, "project_id"), "name": name, "salt": salt,
        "hash": hash(&salt, &key), "no_snapshots": alone, "created_at": now(),
    }));
    let made = office.papers.add(DRAWER, text(&made, "id"), made.clone()).await?;
    if let Err(fault) = wait(office, &made, groups::left_by(office, &volume).await?).await {
        // Where it is not known whether the volume waits, who deletes the transfer has it wait no more.
        if fault.status < 500 {
            office.papers.remove(DRAWER, text(&made, "id")).await?;
        }
        return Err(fault);
    }
    let mut shown = detail(ask, &made);
    shown.insert("auth_key".to_owned(), json!(key));
    Answer::accepted(json!({ "transfer": shown }))
}

/// Has a volume wait for a transfer. `left`: the group that it names and that does not hold it.
async fn wait(office: &Office, transfer: &Paper, left: &str) -> Result<(), Fault> {
    let (rule, of) = (rule_of(Deed::Transfer), text(transfer, "volume_id"));
    let wait = |volume: &mut Paper| -> Result<(), Fault> {
        stands_alone(volume, left)?;
        if !rule.begins_in(text(volume, "status"))
            || text(volume, "project_id") != text(transfer, "project_id")
        {
            return Err(Fault::state("status must be available"));
        }
        volume.insert("status".to_owned(), json!(rule.done));
        volume.insert("transfer".to_owned(), json!(text(transfer, "id")));
        Ok(())
    };
    let changed = office.papers.change(volumes::DRAWER, of, wait).await?;
    changed.map(drop).ok_or_else(|| Fault::missing(format!("Volume {of}")))
}

/// Whether a volume waits for this transfer. Volumes of earlier versions do not say for which one.
fn waits_for(volume: &Paper, transfer: &Paper) -> bool {
    let named = text(volume, "transfer");
    text(volume, "status") == rule_of(Deed::Transfer).done
        && text(volume, "project_id") == text(transfer, "project_id")
        && (named.is_empty() || named == text(transfer, "id"))
}

/// Ends a transfer. An accept that was cut off may have taken the volume and not its snapshots: those follow it, for nobody is left who
/// would give them.
async fn delete(office: &Office, ask: &Ask, id: &str) -> Reply {
    let transfer = find(office, ask, id).await?;
    ask.writer("volume:delete_transfer")?;
    let (of, giver) = (text(&transfer, "volume_id"), text(&transfer, "project_id"));
    let give_back = |volume: &mut Paper| -> Result<(), Fault> {
        if waits_for(volume, &transfer) {
            let_go(volume);
        }
        Ok(())
    };
    let volume = office.papers.change(volumes::DRAWER, of, give_back).await?;
    if let Some(volume) = volume.filter(|volume| text(volume, "project_id") != giver) {
        for snapshot in snapshots_of(office, of).await? {
            let follow = |snapshot: &mut Paper| -> Result<(), Fault> {
                if text(snapshot, "project_id") == giver {
                    give(snapshot, text(&volume, "project_id"), text(&volume, "user_id"));
                }
                Ok(())
            };
            office.papers.change("snapshots", text(&snapshot, "id"), follow).await?;
        }
    }
    office.papers.remove(DRAWER, id).await?;
    Answer::bare(202)
}

async fn snapshots_of(office: &Office, volume: &str) -> Result<Vec<Arc<Paper>>, Fault> {
    let mut snapshots = office.papers.all("snapshots").await?;
    snapshots.retain(|snapshot| text(snapshot, "volume_id") == volume);
    Ok(snapshots)
}

/// Refuses a volume of a group: whoever has the group copies and deletes its volumes, whosesoever they are by then.
fn stands_alone(volume: &Paper, left: &str) -> Result<(), Fault> {
    if !groups::is_held(volume, left) {
        return Ok(());
    }
    Err(Fault::state("A volume of a group is not transferred; it is to be taken out of the group first."))
}

/// What waits for a transfer waits no more.
fn let_go(paper: &mut Paper) {
    if text(paper, "status") == rule_of(Deed::Transfer).done {
        paper.insert("status".to_owned(), json!("available"));
        paper.remove("transfer");
    }
}

fn give(paper: &mut Paper, project: &str, user: &str) {
    paper.insert("project_id".to_owned(), json!(project));
    paper.insert("user_id".to_owned(), json!(user));
    let_go(paper);
}

async fn accept(office: &Office, ask: &Ask, id: &str) -> Reply {
    ask.writer("volume:accept_transfer")?;
    let key = ask.member("accept")?.get("auth_key").and_then(Value::as_str).unwrap_or("");
    let missing = || Fault::missing(format!("Transfer {id}"));
    let transfer = office.papers.get(DRAWER, id).await?.ok_or_else(missing)?;
    let right = ring_compare(&hash(text(&transfer, "salt"), key), text(&transfer, "hash"));
    if !right {
        return Err(Fault::bad(format!("Invalid auth key: Attempt to transfer {id} with invalid auth key.")));
    }
    let of = text(&transfer, "volume_id");
    let volume = office.papers.get(volumes::DRAWER, of).await?.ok_or_else(missing)?;
    let kind = types::named(office, text(&volume, "volume_type_id")).await?;
    let project = ask.caller.project.as_str();
    let snapshots = snapshots_of(office, of).await?;
    // What an accept that was cut off has given already is counted where it is.
    let comes = |paper: &Paper| text(paper, "project_id") != project;
    let (one, size) = if comes(&volume) { (1, number(&volume, "size")) } else { (0, 0) };
    quotas::check_size(office, project, size).await?;
    let coming: Vec<_> = snapshots.iter().filter(|snapshot| comes(snapshot)).collect();
    let frozen: i64 = coming.iter().map(|snapshot| number(snapshot, "size")).sum();
    let many = i64::try_from(coming.len()).unwrap_or(i64::MAX);
    let wants = [("volumes", one), ("gigabytes", size + frozen), ("snapshots", many)];
    let _reserved = reserve(office, Need { project, kind: text(&kind, "name"), wants: &wants }).await?;
    let give = |paper: &mut Paper| -> Result<(), Fault> {
        give(paper, project, &ask.caller.user);
        Ok(())
    };
    // The volume first: of two who accept at the same time at two nodes one has it. Who had it, and was killed then, goes on; it may
    // wait for another transfer by now, of whoever took it, and then it goes on waiting.
    let left = groups::left_by(office, &volume).await?;
    let take = |paper: &mut Paper| -> Result<(), Fault> {
        if waits_for(paper, &transfer) {
            stands_alone(paper, left)?;
            // What held it holds it no more, whoever has the volume.
            paper.insert("group_id".to_owned(), Value::Null);
            return give(paper);
        }
        if text(paper, "project_id") == project {
            return Ok(());
        }
        Err(Fault::missing(format!("Transfer {id}")))
    };
    office.papers.change(volumes::DRAWER, of, take).await?.ok_or_else(missing)?;
    for snapshot in snapshots {
        office.papers.change("snapshots", text(&snapshot, "id"), give).await?;
    }
    office.papers.remove(DRAWER, id).await?;
    Answer::accepted(json!({ "transfer": brief(ask, &transfer) }))
}

/// Compares two hashes in a time that does not tell where they differ.
fn ring_compare(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}
