//! An image of a volume (`os-volume_upload_image`): the image is made first, empty, and gets its bytes by a task.
//!
//! Invariant: an image is made of a volume as it was at one moment, also one that is in use.
//! Invariant: an image that did not get all of its bytes, or has another hash than they have, is deleted; the volume is what it was.
//! Invariant: a node that was killed gives the image its bytes anew, of what it had frozen.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use quarry_volume::store::{Attached, VolumeError};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use super::service::Images;
use super::{service_for, service_of, while_wanted};
use crate::cinder::ask::{Answer, Ask, Reply};
use crate::cinder::copy::CopyError;
use crate::cinder::fault::Fault;
use crate::cinder::fields::{flag, given_flag, map, number, paper, text, value};
use crate::cinder::states::{Deed, rule_of};
use crate::cinder::volume_view::is_encrypted;
use crate::cinder::work::bytes_of;
use crate::cinder::{Office, actions, types};
use crate::papers::Paper;
use crate::qcow2::{CLUSTER, MAX_DISK, Map as Used, Plan};

/// Bytes that are read at once, and how many pieces of them are under way.
const PIECE: u64 = 1 << 20;
const AHEAD: usize = 4;
/// Stretches that are asked for at once.
const STRETCHES: usize = 4096;
/// What the service says of an image itself, and what says how another one was verified.
const CORE: [&str; 10] = [
    "checksum",
    "container_format",
    "disk_format",
    "min_disk",
    "min_ram",
    "size",
    "name",
    "image_id",
    "image_name",
    "signature_verified",
];
/// The service may be busy with an upload that was cut off: how often it is asked, and the pause in between.
const TRIES: usize = 30;
const PAUSE: Duration = Duration::from_secs(2);

/// What a caller wants of a volume.
struct Wanted {
    name: String,
    format: String,
    visibility: String,
    protected: bool,
}

fn wanted(ask: &Ask, volume: &Paper, given: &Map<String, Value>) -> Result<Wanted, Fault> {
    let said = |key: &str, otherwise: &str| match given.get(key) {
        None | Some(Value::Null) => Ok(otherwise.to_owned()),
        Some(Value::String(text)) if text.chars().count() <= 255 => Ok(text.clone()),
        Some(_) => Err(Fault::bad(format!("Invalid input for field/attribute {key}."))),
    };
    let name = said("image_name", "")?;
    if name.is_empty() {
        return Err(Fault::bad("Invalid input received: No image_name was specified in request."));
    }
    let format = said("disk_format", "raw")?;
    if !matches!(format.as_str(), "raw" | "qcow2") || said("container_format", "bare")? != "bare" {
        let message = "Invalid input received: images of volumes are raw or qcow2, in a bare container.";
        return Err(Fault::bad(message));
    }
    if format == "qcow2" && bytes_of(number(volume, "size")) > MAX_DISK {
        return Err(Fault::bad(
            "Invalid input received: a volume of more than 64 TiB becomes a raw image alone.",
        ));
    }
    let whether = |key: &str| given.get(key).map_or(Ok(false), |given| given_flag(given, key));
    let force = whether("force")?;
    if text(volume, "status") == "in-use" && !force {
        return Err(Fault::state("Volume status is in-use; an image of it is made with force."));
    }
    if is_encrypted(volume) {
        return Err(Fault::state("It is encrypted, and its image would not be."));
    }
    let protected = ask.since(1) && whether("protected")?;
    let visibility = if ask.since(1) { said("visibility", "private")? } else { "private".to_owned() };
    if !matches!(visibility.as_str(), "private" | "shared" | "community" | "public") {
        return Err(Fault::bad("Invalid input for field/attribute visibility."));
    }
    if visibility == "public" {
        ask.admin("volume_extension:volume_actions:upload_public")?;
    }
    Ok(Wanted { name, format, visibility, protected })
}

/// `os-volume_upload_image`.
pub(crate) async fn upload(office: &Office, ask: &Ask, volume: &Paper, given: &Map<String, Value>) -> Reply {
    let Wanted { name, format, visibility, protected } = wanted(ask, volume, given)?;
    let id = text(volume, "id");
    let images = service_of(ask)?;
    let kind = types::named(office, text(volume, "volume_type_id")).await?;
    let mut known = map(volume, "image_metadata");
    known.retain(|key, _| !CORE.contains(&key.as_str()) && !key.starts_with("os_"));
    known.extend(paper(json!({
        "name": name, "disk_format": format, "container_format": "bare", "visibility": visibility, "protected": protected,
    })));
    let made = match images.create(&Value::Object(known)).await {
        Ok(made) => paper(made),
        Err(error) if error.is_callers() => {
            return Err(Fault::bad(format!("No image is made: {error}.")));
        }
        Err(error) => return Err(Fault::other(503, error.to_string())),
    };
    let image = text(&made, "id").to_owned();
    let task = json!({ "request": ask.id, "image": { "id": image, "format": format, "url": ask.images, "token": ask.token } });
    if let Err(fault) = actions::begin(office, id, Deed::Upload, &task).await {
        // Nobody is told of it.
        let _left = images.delete(&image).await;
        return Err(fault);
    }
    let mut shown = json!({
        "id": id, "updated_at": value(volume, "updated_at"), "status": rule_of(Deed::Upload).during,
        "display_description": value(volume, "description"), "size": number(volume, "size"),
        "volume_type": {
            "id": text(&kind, "id"), "name": text(&kind, "name"), "description": value(&kind, "description"),
            "is_public": flag(&kind, "is_public"), "qos_specs_id": value(&kind, "qos_specs_id"), "extra_specs": {},
            "created_at": value(&kind, "created_at"), "updated_at": null, "deleted": false, "deleted_at": null,
        },
        "image_id": image, "container_format": "bare", "disk_format": format, "image_name": name,
    });
    if ask.since(1) {
        shown["visibility"] = json!(visibility);
        shown["protected"] = json!(protected);
    }
    Answer::accepted(json!({ "os-volume_upload_image": shown }))
}

/// Gives the image of a volume's task the bytes of what was frozen.
pub(crate) async fn send(office: &Office, volume: &Paper, source: Attached) -> Result<(), CopyError> {
    let image = map(&map(volume, "task"), "image");
    let images = service_for(office, &image)?;
    let id = text(&image, "id");
    while_wanted(office, volume, Box::pin(give(&images, id, text(&image, "format"), source))).await
}

/// Deletes the image of a volume's task: what is not whole is none. Its state says so where it cannot be deleted.
pub(crate) async fn give_up(office: &Office, volume: &Paper) {
    let image = map(&map(volume, "task"), "image");
    if let Ok(images) = service_for(office, &image) {
        let _left = images.delete(text(&image, "id")).await;
    }
}

async fn give(images: &Images, id: &str, format: &str, source: Attached) -> Result<(), CopyError> {
    let plan = if format == "qcow2" { Some(plan(&source).await?) } else { None };
    let bytes = plan.as_ref().map_or(source.bytes(), Plan::bytes);
    let size = |known: &Paper| known.get("size").and_then(Value::as_u64);
    let known = at_rest(images, id).await?;
    if text(&known, "status") == "active" {
        // The end of what was begun before.
        return if size(&known) == Some(bytes) { Ok(()) } else { Err(OTHER) };
    }
    let hash = Arc::new(Mutex::new(Sha512::new()));
    images.upload(id, bytes, pieces(source, plan, Arc::clone(&hash))).await?;
    let known = paper(images.show(id).await?);
    let hash = hex::encode(hash.lock().unwrap_or_else(PoisonError::into_inner).clone().finalize());
    let alike = text(&known, "os_hash_algo") != "sha512" || text(&known, "os_hash_value") == hash;
    if size(&known) == Some(bytes) && alike { Ok(()) } else { Err(OTHER) }
}

const OTHER: CopyError = CopyError::Image("the image service has other bytes than it was sent");

/// What the service knows of an image, when no upload of it is under way there.
async fn at_rest(images: &Images, id: &str) -> Result<Paper, CopyError> {
    let mut known = paper(images.show_at_last(id).await?);
    for _ in 1..TRIES {
        if text(&known, "status") != "saving" {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        known = paper(images.show(id).await?);
    }
    Ok(known)
}

/// What of a volume takes space.
async fn plan(source: &Attached) -> Result<Plan, CopyError> {
    let (disk, mut at) = (source.bytes(), 0);
    let mut used = Used::new(disk);
    while at < disk {
        let some = source.stretches(at, disk - at, STRETCHES).await?;
        if some.is_empty() {
            return Err(CopyError::Image("what of the volume takes space is not known"));
        }
        for stretch in some {
            if !stretch.hole {
                used.mark(at, stretch.bytes);
            }
            at += stretch.bytes;
        }
    }
    Ok(Plan::new(disk, used))
}

async fn read(source: &Attached, at: u64, bytes: u64) -> std::io::Result<Bytes> {
    let read: Result<BytesMut, VolumeError> = source.read_whole(at, bytes).await;
    read.map(BytesMut::freeze).map_err(std::io::Error::other)
}

fn noted(hash: &Mutex<Sha512>, bytes: Bytes) -> Bytes {
    hash.lock().unwrap_or_else(PoisonError::into_inner).update(&bytes);
    bytes
}

type Hash = Arc<Mutex<Sha512>>;

/// A part of what is sent.
enum Part {
    /// A cluster that tells of the disk.
    Told(Bytes),
    /// Bytes of the volume: where, and how many.
    Read(u64, u64),
}

/// All bytes of a volume, in order, or as a qcow2: first what is told of the disk, then its bytes.
fn parts(disk: u64, plan: Option<Plan>) -> Box<dyn Iterator<Item = Part> + Send> {
    let Some(plan) = plan else {
        let starts = (0..disk.div_ceil(PIECE)).map(|nth| nth * PIECE);
        return Box::new(starts.map(move |at| Part::Read(at, PIECE.min(disk - at))));
    };
    let (mut told, mut at, mut behind) = (0..plan.told(), 0, 0);
    Box::new(std::iter::from_fn(move || {
        if behind > 0 {
            // The disk ends within its last cluster, which is whole all the same.
            return Some(Part::Told(vec![0; usize::try_from(std::mem::take(&mut behind)).ok()?].into()));
        }
        if let Some(number) = told.next() {
            return Some(Part::Told(plan.tell(number)));
        }
        let (from, length) = plan.run(at, PIECE / CLUSTER)?;
        at = from + length;
        behind = at.saturating_sub(disk);
        Some(Part::Read(from, length - behind))
    }))
}

/// What is sent: some of it is read while what comes before is on its way.
fn pieces(
    source: Attached,
    plan: Option<Plan>,
    hash: Hash,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let parts = parts(source.bytes(), plan);
    let source = Arc::new(source);
    let read = move |part| {
        let source = Arc::clone(&source);
        async move {
            match part {
                Part::Told(bytes) => Ok(bytes),
                Part::Read(at, bytes) => read(&source, at, bytes).await,
            }
        }
    };
    stream::iter(parts).map(read).buffered(AHEAD).map(move |piece| Ok(noted(&hash, piece?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Such a volume is one that was taken over as it was found.
    #[test]
    fn a_disk_that_ends_within_a_cluster_is_read_to_its_end_and_no_further() {
        let disk = 3 * CLUSTER + 4096;
        let mut map = Used::new(disk);
        map.mark(CLUSTER, 4096);
        map.mark(3 * CLUSTER, 4096);
        let plan = Plan::new(disk, map);
        let whole = plan.bytes();
        let (mut sent, mut read) = (0, Vec::new());
        for part in parts(disk, Some(plan)) {
            match part {
                Part::Told(bytes) => sent += bytes.len() as u64,
                Part::Read(at, bytes) => {
                    assert!(at + bytes <= disk);
                    sent += bytes;
                    read.push((at, bytes));
                }
            }
        }
        assert_eq!((sent, read), (whole, vec![(CLUSTER, CLUSTER), (3 * CLUSTER, 4096)]));
    }
}
