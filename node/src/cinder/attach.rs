//! Attaching by actions, as before 3.27: reserve, attach, connect, begin to detach, detach.
//!
//! An attachment says who means to use a volume; NBD clients are served without one. Connection information names the NBD URI.
//! Invariant: a volume is `in-use` exactly while it has an attachment, but for what an admin resets.

use serde_json::{Map, Value, json};

use super::actions::admin_metadata;
use super::ask::{Answer, Ask, Reply};
use super::attachments::{self, DRAWER as ATTACHMENTS};
use super::fault::Fault;
use super::fields::{flag, fresh_id, is_id, map, now, paper, text};
use super::states::{Deed, rule_of};
use super::volumes::DRAWER;
use super::work::device_name;
use super::{Office, several};
use crate::block::only_read;
use crate::papers::Paper;

/// Acts on a volume that the caller may see.
pub(crate) async fn act(
    office: &Office,
    ask: &Ask,
    volume: &Paper,
    name: &str,
    given: &Map<String, Value>,
) -> Reply {
    let id = text(volume, "id");
    match name {
        "os-reserve" => step(office, id, Deed::Reserve).await,
        "os-unreserve" => {
            move_on(office, id, &["attaching", "reserved"], "available", "unreserve").await?;
            Answer::bare(202)
        }
        "os-begin_detaching" => step(office, id, Deed::BeginDetaching).await,
        "os-roll_detaching" => {
            move_on(office, id, &["detaching"], "in-use", "roll_detaching").await?;
            Answer::bare(202)
        }
        "os-attach" => attach(office, volume, given).await,
        "os-detach" => detach(office, volume, given.get("attachment_id"), false).await,
        "os-force_detach" => {
            ask.admin("volume_extension:volume_admin_actions:force_detach")?;
            detach(office, volume, given.get("attachment_id"), true).await
        }
        "os-initialize_connection" => {
            if !given.get("connector").is_some_and(Value::is_object) {
                return Err(Fault::bad("Must specify 'connector'"));
            }
            let info = connection(office, volume, "rw").await?;
            Answer::ok(json!({ "connection_info": info }))
        }
        "os-terminate_connection" => Answer::bare(202),
        _ => Err(Fault::bad(format!("There is no such action: {name}."))),
    }
}

/// A step that is done at once.
async fn step(office: &Office, id: &str, deed: Deed) -> Reply {
    let rule = rule_of(deed);
    move_on(office, id, rule.from, rule.done, rule.name).await?;
    Answer::bare(202)
}

/// From one of some states into another.
async fn move_on(office: &Office, id: &str, from: &[&str], to: &str, what: &str) -> Result<(), Fault> {
    let changed = office
        .papers
        .change(DRAWER, id, |volume| -> Result<(), Fault> {
            let status = text(volume, "status");
            // A volume that several may attach stays in use while one more comes.
            let one_more = what == "reserve" && status == "in-use" && flag(volume, "multiattach");
            if !from.contains(&status) && !one_more {
                let wanted = from.join(" or ");
                return Err(Fault::state(format!(
                    "Volume status must be {wanted} to {what}, but is {status}."
                )));
            }
            let back = what == "unreserve" && text(volume, "attach_status") == "attached";
            let to = if back { "in-use" } else { to };
            volume.insert("status".to_owned(), json!(to));
            volume.insert("updated_at".to_owned(), json!(now()));
            Ok(())
        })
        .await?;
    changed.map(drop).ok_or_else(|| Fault::missing(format!("Volume {id}")))
}

async fn attach(office: &Office, volume: &Paper, given: &Map<String, Value>) -> Reply {
    let said = |key: &str| given.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let (instance, host, device) = (said("instance_uuid"), said("host_name"), said("mountpoint"));
    if instance.is_none() == host.is_none() {
        return Err(Fault::bad("Invalid input received: one of instance_uuid and host_name is needed."));
    }
    if instance.is_some_and(|instance| !is_id(instance)) {
        return Err(Fault::bad("Invalid input received: instance_uuid is no UUID."));
    }
    let mode = said("mode").unwrap_or("rw");
    if mode != "rw" && mode != "ro" {
        return Err(Fault::bad("Invalid input received: mode is rw or ro."));
    }
    if mode == "rw" && text(&map(volume, "admin_metadata"), "readonly") == "True" {
        return Err(Fault::state("A read-only volume is attached with mode ro."));
    }
    let attachment = paper(json!({
        "id": fresh_id(),
        "volume_id": text(volume, "id"),
        "project_id": text(volume, "project_id"),
        "instance": instance,
        "host_name": host,
        "device": device,
        "mode": mode,
        "attach_status": "attached",
        "attached_at": now(),
        "created_at": now(),
        "detached_at": null,
        "connection_info": connection(office, volume, mode).await?,
    }));
    enter(office, text(volume, "id"), mode).await?;
    office.papers.add(ATTACHMENTS, text(&attachment, "id"), attachment.clone()).await?;
    Answer::bare(202)
}

/// Makes a volume used, if it may be.
pub(crate) async fn enter(office: &Office, id: &str, mode: &str) -> Result<(), Fault> {
    let rule = rule_of(Deed::Attach);
    let changed = office
        .papers
        .change(DRAWER, id, |volume| -> Result<(), Fault> {
            let status = text(volume, "status");
            let one_more = status == "in-use" && flag(volume, "multiattach");
            if !rule.begins_in(status) && !one_more {
                let wanted = rule.from.join(" or ");
                return Err(Fault::state(format!(
                    "Volume status must be {wanted} to attach, but is {status}."
                )));
            }
            volume.insert("status".to_owned(), json!(rule.done));
            volume.insert("attach_status".to_owned(), json!("attached"));
            volume.insert("updated_at".to_owned(), json!(now()));
            admin_metadata(volume, "attached_mode", mode);
            Ok(())
        })
        .await?;
    changed.map(drop).ok_or_else(|| Fault::missing(format!("Volume {id}")))
}

async fn detach(office: &Office, volume: &Paper, wanted: Option<&Value>, force: bool) -> Reply {
    let id = text(volume, "id");
    let all = office.papers.all(ATTACHMENTS).await?;
    let of: Vec<_> = all.iter().filter(|attachment| text(attachment, "volume_id") == id).collect();
    let chosen = match wanted.and_then(Value::as_str) {
        Some(wanted) => of.iter().find(|attachment| text(attachment, "id") == wanted),
        None if of.len() > 1 && !force => {
            return Err(Fault::state("Volume has several attachments: attachment_id is needed."));
        }
        None => of.first(),
    };
    let status = text(volume, "status");
    if !force && !rule_of(Deed::Detach).begins_in(status) {
        return Err(Fault::state(format!(
            "Volume status must be in-use or detaching to detach, but is {status}."
        )));
    }
    if let Some(attachment) = chosen {
        office.papers.remove(ATTACHMENTS, text(attachment, "id")).await?;
    }
    attachments::settle(office, id).await?;
    Answer::bare(202)
}

/// Where and how a volume is used: over NBD. With mode `ro`, and of a volume that is marked read-only, the export is one that refuses
/// writes.
pub(crate) async fn connection(office: &Office, volume: &Paper, mode: &str) -> Result<Value, Fault> {
    let address = several::address(office, volume).await?;
    let address = address.ok_or_else(|| Fault::bad("No node that has the volume serves NBD clients now."))?;
    let (at, port) = address.rsplit_once(':').unwrap_or((&address, "10809"));
    let id = text(volume, "id");
    let read_only = mode == "ro" || text(&map(volume, "admin_metadata"), "readonly") == "True";
    let export = device_name(id);
    let export = if read_only { only_read(&export) } else { export };
    let specs = super::qos::for_clients(office, volume).await?;
    Ok(json!({
        "driver_volume_type": "nbd",
        "data": {
            "uri": format!("nbd://{address}/{export}"),
            "host": at,
            "port": port.parse::<u16>().unwrap_or(10_809),
            "export": export,
            "volume_id": id,
            "access_mode": if read_only { "ro" } else { "rw" },
            "discard": !read_only,
            // What clients are given is plain: what is encrypted is encrypted behind, and theirs must not be it once more.
            "encrypted": false,
            "qos_specs": specs,
        },
    }))
}
