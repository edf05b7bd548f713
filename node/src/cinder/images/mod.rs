//! Images: volumes that are made of them (`imageRef`), and that become some (`os-volume_upload_image`). They are an image service's (Glance v2): the configuration says where it is, or the
//! service catalog. It is asked with the token of who asks here.
//!
//! Invariant: bytes that come from the image service have the hash that it says, or the volume ends in `error`.
//! Invariant: what an image is, the service says; it is never guessed from its bytes, and what it says of itself is believed nowhere.
//! Invariant: a token is sent to the image service alone, and is in no log and no answer: it stands in the task of the volume's paper, and goes
//! with it. One that this node gave out and that ends meanwhile has another in its place, as far as its user may still do the same
//! (`auth::renew`); where another Keystone did, the task ends in its error, and a message says why.

mod download;
mod service;
mod unpack;
mod upload;

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Office;
use super::ask::Ask;
use super::copy::CopyError;
use super::fault::Fault;
use super::fields::{is_id, number, paper, text, value};
use super::volumes::DRAWER;
use crate::papers::Paper;
pub(crate) use download::write_out;
pub(crate) use service::ImageError;
use service::{Images, Ticket};
pub(crate) use upload::{give_up, send, upload};

/// How often it is looked whether bytes are wanted still: the volume may have been deleted by force.
const LOOK: Duration = Duration::from_secs(5);
const GIB: i64 = 1 << 30;
/// Formats whose bytes are the disk's.
const PLAIN: [&str; 2] = ["raw", "iso"];
/// What the service says of an image that is nothing of a volume's.
const OTHER: [&str; 17] = [
    "status",
    "visibility",
    "protected",
    "owner",
    "created_at",
    "updated_at",
    "tags",
    "self",
    "file",
    "schema",
    "locations",
    "direct_url",
    "virtual_size",
    "os_hash_algo",
    "os_hash_value",
    "os_hidden",
    "stores",
];

/// What a volume is to be made of.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// For the task.
    pub(crate) image: Value,
    /// `volume_image_metadata` of the volume.
    pub(crate) metadata: Map<String, Value>,
    /// The disk that the image is of, in GiB.
    pub(crate) size: i64,
    /// What the image asks for, in GiB.
    pub(crate) min_disk: i64,
}

fn service_of(ask: &Ask) -> Result<Images, Fault> {
    let url = ask.images.clone();
    let url = url.ok_or_else(|| Fault::bad("Invalid image identifier: there is no image service."))?;
    let ticket = Ticket { token: ask.token.clone(), auth: None };
    let service = Images::at(&url, ask.image_authority.as_deref(), ticket);
    service.map_err(|error| Fault::other(503, error.to_string()))
}

/// The service that a task asks about its image.
fn service_for(office: &Office, image: &Paper) -> Result<Images, ImageError> {
    let ticket = Ticket { token: text(image, "token").to_owned().into(), auth: office.place.auth.clone() };
    Images::at(text(image, "url"), office.place.images.authority.as_deref(), ticket)
}

fn gib(bytes: i64) -> i64 {
    bytes.max(0).div_euclid(GIB) + i64::from(bytes.max(0).rem_euclid(GIB) > 0)
}

/// Whether a task moves an image's bytes.
pub(crate) fn is_moved_by(task: &Paper) -> bool {
    task.get("image").is_some_and(Value::is_object)
}

/// Whether a volume's task is this one still; what cannot be read says nothing.
async fn is_wanted(office: &Office, volume: &Paper) -> bool {
    match office.papers.get(DRAWER, text(volume, "id")).await {
        Ok(there) => there.is_some_and(|there| there.get("task") == volume.get("task")),
        Err(_) => true,
    }
}

/// Does what a volume's task is, as long as it is that.
async fn while_wanted(
    office: &Office,
    volume: &Paper,
    work: impl Future<Output = Result<(), CopyError>>,
) -> Result<(), CopyError> {
    let replaced = async {
        while is_wanted(office, volume).await {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        biased;
        done = work => done,
        () = replaced => Err(CopyError::Image("nobody waits for it any more")),
    }
}

/// An image that the caller may read.
pub(crate) async fn find(ask: &Ask, named: &str) -> Result<Found, Fault> {
    let images = service_of(ask)?;
    let bad = || Fault::bad("Invalid image identifier or unable to access requested image.");
    // Some clients give the image's URL.
    let id = named.rsplit('/').next().filter(|id| is_id(id)).ok_or_else(bad)?;
    let known = match images.show(id).await {
        Ok(known) => paper(known),
        Err(error) if error.is_callers() => return Err(bad()),
        Err(error) => return Err(Fault::other(503, error.to_string())),
    };
    let format = text(&known, "disk_format");
    if text(&known, "status") != "active" {
        return Err(Fault::bad(format!("Invalid input received: Image {id} is not active.")));
    }
    let readable = PLAIN.contains(&format) || format == "qcow2";
    if !readable || text(&known, "container_format") != "bare" {
        return Err(Fault::bad(format!(
            "Image {id} is unacceptable: volumes are made of raw, iso and qcow2, in a bare container."
        )));
    }
    let (bytes, disk) = (number(&known, "size"), number(&known, "virtual_size"));
    let image = json!({
        "id": id, "format": format, "size": bytes, "url": ask.images, "token": ask.token,
        "checksum": value(&known, "checksum"), "algorithm": value(&known, "os_hash_algo"),
        "hash": value(&known, "os_hash_value"),
    });
    let size = gib(if PLAIN.contains(&format) { bytes } else { disk });
    Ok(Found { image, metadata: metadata_of(&known), size, min_disk: number(&known, "min_disk") })
}

/// What a volume tells of the image that it was made of.
fn metadata_of(known: &Paper) -> Map<String, Value> {
    let said = |value: &Value| match value {
        Value::String(text) => Some(json!(text)),
        Value::Number(number) => Some(json!(number.to_string())),
        _ => None,
    };
    let key = |key: &str| match key {
        "id" => "image_id".to_owned(),
        "name" => "image_name".to_owned(),
        key => key.to_owned(),
    };
    let kept = known.iter().filter(|(name, _)| !OTHER.contains(&name.as_str()));
    kept.filter_map(|(name, value)| Some((key(name), said(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_tells_of_its_image_and_its_properties_in_texts() {
        let known = paper(json!({
            "id": "i", "name": "cirros", "checksum": "c", "container_format": "bare", "disk_format": "raw", "min_disk": 1,
            "min_ram": 0, "size": 5, "status": "active", "tags": ["a"], "hw_disk_bus": "virtio", "visibility": "public", "stores": "disk",
        }));
        let expected = json!({
            "image_id": "i", "image_name": "cirros", "checksum": "c", "container_format": "bare", "disk_format": "raw",
            "min_disk": "1", "min_ram": "0", "size": "5", "hw_disk_bus": "virtio",
        });
        assert_eq!(Value::Object(metadata_of(&known)), expected);
        assert_eq!((gib(0), gib(1), gib(GIB), gib(GIB + 1), gib(-1)), (0, 1, 1, 2, 0));
    }
}
