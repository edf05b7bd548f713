//! Volumes as answers show them.
//!
//! Invariant: a key is shown from the microversion on in which Cinder has it, and no earlier.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Office;
use super::ask::Ask;
use super::fault::Fault;
use super::fields::{flag, map, number, text, value};
use crate::papers::Paper;

/// `links` of a resource.
pub(crate) fn links(ask: &Ask, kind: &str, id: &str) -> Value {
    let root = ask.base.strip_suffix("/v3").unwrap_or(&ask.base);
    let project = &ask.caller.project;
    json!([
        { "rel": "self", "href": format!("{root}/v3/{project}/{kind}/{id}") },
        { "rel": "bookmark", "href": format!("{root}/{project}/{kind}/{id}") },
    ])
}

/// Whether a volume was made encrypted, which its type may not say any more.
pub(crate) fn is_encrypted(volume: &Paper) -> bool {
    volume.get("encryption").is_some_and(Value::is_object)
}

/// In a list.
pub(crate) fn brief(ask: &Ask, volume: &Paper) -> Value {
    let id = text(volume, "id");
    json!({ "id": id, "name": value(volume, "name"), "links": links(ask, "volumes", id) })
}

/// What is beside a volume's own paper.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    types: Vec<Arc<Paper>>,
    attachments: Vec<Arc<Paper>>,
}

impl Beside {
    /// What all volumes need.
    pub(crate) async fn read(office: &Office) -> Result<Self, Fault> {
        let types = super::types::all(office).await?;
        let attachments = office.papers.all("attachments").await?;
        Ok(Self { types, attachments })
    }

    fn type_of(&self, volume: &Paper) -> Option<&Arc<Paper>> {
        let id = text(volume, "volume_type_id");
        self.types.iter().find(|kind| text(kind, "id") == id)
    }
}

/// A volume in full, as it is when it was just made or changed.
pub(crate) fn whole(ask: &Ask, volume: &Paper, beside: &Beside) -> Map<String, Value> {
    let id = text(volume, "id");
    let mut metadata = map(volume, "metadata");
    metadata.extend(map(volume, "admin_metadata"));
    let attached = beside.attachments.iter().filter(|attachment| text(attachment, "volume_id") == id);
    let attached = attached.filter(|attachment| text(attachment, "attach_status") == "attached");
    let kind = beside.type_of(volume);
    let encrypted = is_encrypted(volume);
    let mut shown = super::fields::paper(json!({
        "id": id,
        "name": value(volume, "name"),
        "description": value(volume, "description"),
        "size": number(volume, "size"),
        "status": text(volume, "status"),
        "user_id": text(volume, "user_id"),
        "availability_zone": text(volume, "availability_zone"),
        "created_at": value(volume, "created_at"),
        "updated_at": value(volume, "updated_at"),
        "bootable": if flag(volume, "bootable") { "true" } else { "false" },
        "encrypted": encrypted,
        "multiattach": flag(volume, "multiattach"),
        "volume_type": kind.map(|kind| text(kind, "name")),
        "snapshot_id": value(volume, "snapshot_id"),
        "source_volid": value(volume, "source_volid"),
        "consistencygroup_id": null,
        "replication_status": null,
        "migration_status": value(volume, "migration_status"),
        "metadata": metadata,
        "attachments": attached.map(|attachment| attachment_view(attachment)).collect::<Vec<_>>(),
        "links": links(ask, "volumes", id),
    }));
    let mut since = |minor: u16, name: &str, value: Value| {
        if ask.since(minor) {
            shown.insert(name.to_owned(), value);
        }
    };
    since(13, "group_id", value(volume, "group_id"));
    if ask.caller.admin {
        since(21, "provider_id", Value::Null);
        since(61, "cluster_name", Value::Null);
    }
    since(48, "shared_targets", if ask.since(69) { Value::Null } else { json!(false) });
    since(48, "service_uuid", Value::Null);
    since(63, "volume_type_id", value(volume, "volume_type_id"));
    if encrypted {
        since(64, "encryption_key_id", Value::Null);
    }
    since(65, "consumes_quota", json!(true));
    shown
}

/// A volume in full, as a look at it shows it.
pub(crate) fn detail(ask: &Ask, volume: &Paper, beside: &Beside) -> Value {
    let mut shown = whole(ask, volume, beside);
    shown.insert("os-vol-tenant-attr:tenant_id".to_owned(), value(volume, "project_id"));
    if ask.caller.admin {
        shown.insert("os-vol-host-attr:host".to_owned(), value(volume, "host"));
        shown.insert("os-vol-mig-status-attr:migstat".to_owned(), value(volume, "migration_status"));
        shown.insert("os-vol-mig-status-attr:name_id".to_owned(), Value::Null);
    }
    let image = map(volume, "image_metadata");
    if !image.is_empty() {
        shown.insert("volume_image_metadata".to_owned(), Value::Object(image));
    }
    Value::Object(shown)
}

fn attachment_view(attachment: &Paper) -> Value {
    json!({
        "id": text(attachment, "volume_id"),
        "volume_id": text(attachment, "volume_id"),
        "attachment_id": text(attachment, "id"),
        "server_id": value(attachment, "instance"),
        "host_name": value(attachment, "host_name"),
        "device": value(attachment, "device"),
        "attached_at": value(attachment, "attached_at"),
    })
}
