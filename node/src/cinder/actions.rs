//! `POST /volumes/{id}/action`.
//!
//! Invariant: a change of state is decided on the paper that it changes: two requests at once do not both succeed.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::ask::{Answer, Ask, Reply};
use super::fault::Fault;
use super::fields::{flag, given_flag, given_number, map, now, number, text, text_map};
use super::quotas::Need;
use super::reserve::reserve;
use super::states::{ATTACH_STATES, Deed, VOLUME_STATES, rule_of};
use super::volume_view::is_encrypted;
use super::volumes::{DRAWER, within_most};
use super::{Office, attach, groups, images, manage, migrate, quotas, schedule, several, types, volumes};
use crate::papers::Paper;

/// Acts as the body says, on a volume that the caller may see.
pub(crate) async fn act(office: &Arc<Office>, ask: &Ask, volume: &Paper) -> Reply {
    let body = ask.body.as_object().filter(|body| body.len() == 1).and_then(|body| body.iter().next());
    let Some((name, given)) = body else { return Err(Fault::bad("There is no such action.")) };
    // The only one that changes nothing.
    if name != "os-show_image_metadata" {
        ask.writer("volume_extension:volume_actions")?;
    }
    let empty = Map::new();
    let given = given.as_object().unwrap_or(&empty);
    let id = text(volume, "id");
    match name.as_str() {
        "os-extend" => extend(office, ask, volume, given).await,
        "os-reset_status" => reset(office, ask, id, given).await,
        "os-force_delete" => {
            ask.admin("volume_extension:volume_admin_actions:force_delete")?;
            volumes::delete(office, ask, volume, false, true).await
        }
        "os-set_bootable" => {
            let bootable = given_flag(given.get("bootable").unwrap_or(&Value::Null), "bootable")?;
            set(office, id, |volume| drop(volume.insert("bootable".to_owned(), json!(bootable)))).await?;
            Answer::bare(200)
        }
        "os-update_readonly_flag" => {
            let readonly = given_flag(given.get("readonly").unwrap_or(&Value::Null), "readonly")?;
            if text(volume, "status") != "available" {
                return Err(Fault::state("Volume status must be available to update readonly flag."));
            }
            let text = if readonly { "True" } else { "False" };
            set(office, id, |volume| admin_metadata(volume, "readonly", text)).await?;
            Answer::bare(202)
        }
        "os-unmanage" => manage::give_up(office, ask, volume).await,
        "os-migrate_volume" => migrate::migrate(office, ask, volume, given).await,
        "os-migrate_volume_completion" => {
            ask.admin("volume_extension:volume_admin_actions:migrate_volume_completion")?;
            Err(Fault::state("nothing that another service is to complete is under way with the volume."))
        }
        "os-retype" => retype(office, ask, volume, given).await,
        "os-set_image_metadata" => {
            let given = text_map(given.get("metadata").unwrap_or(&Value::Null), false)?;
            let mut all = map(volume, "image_metadata");
            all.extend(given);
            let kept = Value::Object(all.clone());
            set(office, id, |volume| drop(volume.insert("image_metadata".to_owned(), kept.clone()))).await?;
            Answer::ok(json!({ "metadata": all }))
        }
        "os-unset_image_metadata" => unset_image_metadata(office, volume, given).await,
        "os-show_image_metadata" => Answer::ok(json!({ "metadata": map(volume, "image_metadata") })),
        "os-volume_upload_image" => images::upload(office, ask, volume, given).await,
        "revert" => revert(office, ask, volume, given).await,
        _ => attach::act(office, ask, volume, name, given).await,
    }
}

/// Changes a volume's paper, and when it was changed.
pub(crate) async fn set(
    office: &Office,
    id: &str,
    edit: impl Fn(&mut Paper) + Send + Sync,
) -> Result<(), Fault> {
    let edit = |volume: &mut Paper| -> Result<(), Fault> {
        edit(volume);
        volume.insert("updated_at".to_owned(), json!(now()));
        Ok(())
    };
    let changed = office.papers.change(DRAWER, id, edit).await?;
    changed.map(drop).ok_or_else(|| Fault::missing(format!("Volume {id}")))
}

/// Notes what only the service itself says of a volume.
pub(crate) fn admin_metadata(volume: &mut Paper, key: &str, value: &str) {
    let mut all = map(volume, "admin_metadata");
    all.insert(key.to_owned(), json!(value));
    volume.insert("admin_metadata".to_owned(), Value::Object(all));
}

/// Lets a deed begin: its state and its task are written, or it is refused.
pub(crate) async fn begin(office: &Office, id: &str, deed: Deed, task: &Value) -> Result<(), Fault> {
    begin_with(office, id, deed, task, &Value::Null).await
}

/// As [`begin`], and writes what else is so meanwhile.
pub(crate) async fn begin_with(
    office: &Office,
    id: &str,
    deed: Deed,
    task: &Value,
    besides: &Value,
) -> Result<(), Fault> {
    let rule = rule_of(deed);
    let changed = office
        .papers
        .change(DRAWER, id, |volume| -> Result<(), Fault> {
            let status = text(volume, "status").to_owned();
            if !rule.begins_in(&status) {
                let wanted = rule.from.join(" or ");
                return Err(Fault::state(format!(
                    "Volume status must be {wanted} to {}, but is {status}.",
                    rule.name
                )));
            }
            let mut task = task.clone();
            task["do"] = json!(rule.name);
            task["before"] = json!(status);
            volume.insert("task".to_owned(), task);
            volume.insert("status".to_owned(), json!(rule.during));
            volume.insert("updated_at".to_owned(), json!(now()));
            volume.extend(besides.as_object().cloned().unwrap_or_default());
            Ok(())
        })
        .await?;
    changed.ok_or_else(|| Fault::missing(format!("Volume {id}")))?;
    office.kick.notify_one();
    Ok(())
}

async fn extend(office: &Office, ask: &Ask, volume: &Paper, given: &Map<String, Value>) -> Reply {
    let size = given_number(given.get("new_size").unwrap_or(&Value::Null), "new_size")?;
    within_most(size)?;
    let (id, before) = (text(volume, "id"), number(volume, "size"));
    if size <= before {
        return Err(Fault::bad(format!(
            "Invalid input received: New size for extend must be greater than current size. (current: {before}, extended: {size})."
        )));
    }
    let used = text(volume, "status") == "in-use";
    if used && !ask.since(42) {
        return Err(Fault::state("Volume status must be available to extend."));
    }
    quotas::check_size(office, text(volume, "project_id"), size).await?;
    let kind = types::named(office, text(volume, "volume_type_id")).await?;
    let wants = [("gigabytes", size - before)];
    let need = Need { project: text(volume, "project_id"), kind: text(&kind, "name"), wants: &wants };
    let _reserved = reserve(office, need).await?;
    begin(office, id, Deed::Extend, &json!({ "size": size })).await?;
    Answer::bare(202)
}

async fn reset(office: &Office, ask: &Ask, id: &str, given: &Map<String, Value>) -> Reply {
    ask.admin("volume_extension:volume_admin_actions:reset_status")?;
    let state = |key: &str, known: &[&str]| match given.get(key) {
        None => Ok(None),
        Some(Value::String(state)) if known.contains(&state.to_lowercase().as_str()) => {
            Ok(Some(state.to_lowercase()))
        }
        Some(_) => Err(Fault::bad(format!("Invalid input for field/attribute {key}."))),
    };
    let (status, attach) = (state("status", &VOLUME_STATES)?, state("attach_status", &ATTACH_STATES)?);
    let migration = given.get("migration_status").cloned();
    if status.is_none() && attach.is_none() && migration.is_none() {
        return Err(Fault::bad("Must specify 'status', 'attach_status' or 'migration_status' for update."));
    }
    set(office, id, |volume| {
        if let Some(status) = &status {
            volume.insert("status".to_owned(), json!(status));
            // What was under way is given up.
            volume.remove("task");
        }
        if let Some(attach) = &attach {
            volume.insert("attach_status".to_owned(), json!(attach));
        }
        if let Some(migration) = &migration {
            let none = migration == "none";
            let value = if none { Value::Null } else { migration.clone() };
            volume.insert("migration_status".to_owned(), value);
        }
    })
    .await?;
    Answer::bare(202)
}

async fn retype(office: &Office, ask: &Ask, volume: &Paper, given: &Map<String, Value>) -> Reply {
    let name = given.get("new_type").and_then(Value::as_str).unwrap_or("");
    if name.is_empty() {
        return Err(Fault::bad("Invalid input received: new_type is missing."));
    }
    let kind = types::visible(office, ask, name).await?;
    let rule = rule_of(Deed::Retype);
    let status = text(volume, "status");
    if !rule.begins_in(status) {
        return Err(Fault::state(format!(
            "Volume status must be available or in-use to retype, but is {status}."
        )));
    }
    if text(&kind, "id") == text(volume, "volume_type_id") {
        return Err(Fault::bad(format!("Invalid input received: New volume_type same as original: {name}.")));
    }
    if groups::is_held(volume, groups::left_by(office, volume).await?) {
        return Err(Fault::state("Volume belongs to a group, which does not let it change its type."));
    }
    let multiattach = schedule::is_multiattach(&kind);
    if status == "in-use" && multiattach != flag(volume, "multiattach") {
        return Err(Fault::bad(
            "Invalid input received: Retype from and to multiattach types is refused while the volume is in use.",
        ));
    }
    let goes = match given.get("migration_policy").and_then(Value::as_str).unwrap_or("never") {
        "never" => false,
        "on-demand" => true,
        _ => return Err(Fault::bad("Invalid input received: migration_policy is never or on-demand.")),
    };
    let encryption = types::encryption_of(&kind);
    let (members, had) = (several::wanted_by(&kind), several::members(volume));
    let anew = encryption.is_object() != is_encrypted(volume) || members != had;
    if anew && !goes {
        return Err(Fault::bad(
            "Retype needs a migration: of the two types one is encrypted, or has other numbers of members.",
        ));
    }
    let host = text(volume, "host").to_owned();
    // What has several members is at several hosts.
    let stays = members.min(had) > 1 || schedule::fits(office, &kind, &host).await?;
    let to = if stays { Some(host) } else { schedule::roomiest(office, &kind).await?.filter(|_| goes) };
    let Some(to) = to else {
        let message = "Retype needs a move to another back end, and there is none that fits.";
        return Err(Fault::bad(message));
    };
    let (project, size) = (text(volume, "project_id"), number(volume, "size"));
    // What the new type has a quota for; the totals stay as they are.
    let named = [format!("volumes_{}", text(&kind, "name")), format!("gigabytes_{}", text(&kind, "name"))];
    let wants = [(named[0].as_str(), 1), (named[1].as_str(), size)];
    let _reserved = reserve(office, Need { project, kind: "", wants: &wants }).await?;
    if anew || !stays {
        let kind = Some((text(&kind, "id").to_owned(), multiattach));
        migrate::begin(office, volume, Deed::Retype, migrate::Way { to, kind, encryption, members }).await?;
        return Answer::bare(202);
    }
    set(office, text(volume, "id"), |volume| {
        volume.insert("volume_type_id".to_owned(), kind.get("id").cloned().unwrap_or(Value::Null));
        volume.insert("multiattach".to_owned(), json!(multiattach));
    })
    .await?;
    // It may be used faster or slower from now on.
    office.kick.notify_one();
    Answer::bare(202)
}

async fn unset_image_metadata(office: &Office, volume: &Paper, given: &Map<String, Value>) -> Reply {
    let key = given.get("key").and_then(Value::as_str).unwrap_or("");
    let mut all = map(volume, "image_metadata");
    if all.remove(key).is_none() {
        return Err(Fault::other(404, "Metadata does not exist."));
    }
    let kept = Value::Object(all);
    let id = text(volume, "id");
    set(office, id, |volume| drop(volume.insert("image_metadata".to_owned(), kept.clone()))).await?;
    Answer::bare(200)
}

/// To the newest snapshot, as Cinder allows.
async fn revert(office: &Office, ask: &Ask, volume: &Paper, given: &Map<String, Value>) -> Reply {
    ask.needs(40)?;
    let (id, wanted) = (text(volume, "id"), given.get("snapshot_id").and_then(Value::as_str).unwrap_or(""));
    let snapshots = office.papers.all("snapshots").await?;
    let of = snapshots.iter().filter(|snapshot| text(snapshot, "volume_id") == id);
    let newest = of.max_by_key(|snapshot| text(snapshot, "created_at").to_owned());
    let newest = newest.filter(|snapshot| text(snapshot, "id") == wanted);
    let Some(newest) = newest else {
        super::snapshots::find(office, ask, wanted).await?;
        return Err(Fault::bad("Invalid snapshot: a volume reverts to its newest snapshot alone."));
    };
    if text(newest, "status") != "available"
        || number(newest, "size") != number(volume, "size")
        || flag(volume, "multiattach")
    {
        return Err(Fault::state("Volume and snapshot must be available and of one size to revert."));
    }
    if office.blocks.exports.users_of(&super::work::device_name(id)) > 0 {
        return Err(Fault::state("Volume is in use: an NBD client is connected."));
    }
    begin(office, id, Deed::Revert, &json!({ "snapshot": wanted })).await?;
    Answer::bare(202)
}
