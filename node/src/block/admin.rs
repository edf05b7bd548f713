//! `/volumes` on the admin listener: GET shows the volumes (`?name=…` one of them, or none), POST changes them. `quarry volume` speaks it.
//!
//! ```text
//! {"create": {"name": …, "bytes": …, "description": …, "encrypted": false}}
//! {"create": {…, "members": 3}}   {"attach": {"name": …, "read_only": false}}   {"detach": {"name": …}}   {"compare": {"name": …}}
//! {"decide": {"name": …, "device": …}}
//! {"extend": {"name": …, "bytes": …}}   {"delete": {"name": …}}
//! {"snapshot": {"name": …, "snapshot": …}}   {"forget_snapshot": {"name": …, "snapshot": …}}
//! {"clone": {"name": …, "volume": …, "snapshot": …, "bytes": 0: as large, "description": …}}   {"flatten": {"name": …}}
//! {"qos": {"name": …, "limits": {"total_iops_sec": …, "total_iops_sec_max": …, …}}}
//! {"revert": {"name": …, "snapshot": …}}   {"diff": {"name": …, "from": snapshot, "to": snapshot or null: now}}
//! {"key": "list"}   {"key": "new"}   {"key": {"use": NAME}}   {"key": {"drop": NAME}}   (`rotation.rs`)
//! ```
//!
//! A difference is answered with `[[offset, bytes], …]`.
//!
//! Invariant: a change that was begun goes on when its caller goes away.
//! Invariant: volumes are changed from the node's own machine alone.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use percent_encoding::percent_decode_str;
use quarry_engine::disk::format::record::DeviceId;
use quarry_volume::VolumeId;
use quarry_volume::nbd::OptionError;
use quarry_volume::pace::Limits;
use quarry_volume::store::{Label, Volume, VolumeError};
use serde::{Deserialize, Serialize};

use super::decide;
use super::lineage::NewClone;
use super::moving;
use super::only_read::{self, only_read};
use super::shared::New;
use super::{Blocks, KeyWish, Said, Shared};
use crate::control::volumes::SnapshotRow;
use crate::http::Received;
use crate::storage::{random_bytes, wall_clock};

/// A query for one volume; behind it stands its name, percent-encoded.
pub(crate) const NAMED: &str = "name=";
/// Most bytes of a change.
const MAX_BODY: usize = 16 << 10;

/// A change as operators write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Wanted {
    Create {
        name: String,
        bytes: u64,
        #[serde(default)]
        description: String,
        /// Its blocks are encrypted at rest.
        #[serde(default)]
        encrypted: bool,
        /// How many nodes have it; 1: this one.
        #[serde(default = "one")]
        members: usize,
    },
    /// This node becomes the head of a volume with several members.
    Attach {
        name: String,
        /// Answered with the export that is only read.
        #[serde(default)]
        read_only: bool,
    },
    /// Nobody is the head of it any more.
    Detach {
        name: String,
    },
    /// What this member has is the volume, whose members have lost what was acknowledged.
    Decide {
        name: String,
        device: String,
    },
    /// Tells whether its members have the same.
    Compare {
        name: String,
    },
    Extend {
        name: String,
        bytes: u64,
    },
    Delete {
        name: String,
    },
    Snapshot {
        name: String,
        snapshot: String,
    },
    ForgetSnapshot {
        name: String,
        snapshot: String,
    },
    Clone {
        name: String,
        volume: String,
        snapshot: String,
        #[serde(default)]
        bytes: u64,
        #[serde(default)]
        description: String,
    },
    Flatten {
        name: String,
    },
    Qos {
        name: String,
        limits: Said,
    },
    Revert {
        name: String,
        snapshot: String,
    },
    Diff {
        name: String,
        from: String,
        to: Option<String>,
    },
    /// What wraps the keys of encrypted volumes.
    Key(KeyWish),
}

/// A volume as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) bytes: u64,
    pub(crate) description: String,
    /// Milliseconds since 1970.
    pub(crate) made: u64,
    pub(crate) snapshots: Vec<ShownSnapshot>,
    /// `volume@snapshot` that it is a clone of.
    #[serde(default)]
    pub(crate) parent: Option<String>,
    /// At rest.
    #[serde(default)]
    pub(crate) encrypted: bool,
    /// How fast it may be used.
    pub(crate) limits: Said,
    /// Connections of clients.
    pub(crate) users: usize,
    /// Of a volume that has several members.
    #[serde(default)]
    pub(crate) several: Option<Several>,
}

/// What a volume with several members is shown with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Several {
    pub(crate) epoch: u64,
    /// The head's node.
    pub(crate) head: Option<String>,
    /// Version of the configuration.
    pub(crate) configuration: u32,
    pub(crate) members: Vec<ShownMember>,
}

/// A member as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShownMember {
    pub(crate) device: String,
    /// Its acknowledgements count.
    pub(crate) counts: bool,
    /// As its head sees it, if that is at this node.
    pub(crate) state: Option<String>,
}

fn one() -> usize {
    1
}

/// A snapshot as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShownSnapshot {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) made: u64,
}

impl Blocks {
    /// Answers one request; `own` is the admin listener's address.
    pub(crate) async fn answer(&self, request: Request<Received>, own: IpAddr) -> Response<Full<Bytes>> {
        let peer = request.extensions().get::<SocketAddr>().map(SocketAddr::ip);
        if request.method() == Method::GET {
            return match self.all_shown(request.uri().query()).await {
                Ok(shown) => text(StatusCode::OK, &serde_json::to_string(&shown).unwrap_or_default()),
                Err(error) => text(status_of(&error), &error.to_string()),
            };
        }
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET and POST are allowed here.");
        }
        if !peer.is_some_and(|peer| peer.is_loopback() || peer == own) {
            return text(StatusCode::FORBIDDEN, "Volumes are changed on the node's own machine.");
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
        let Ok(body) = body else { return text(StatusCode::BAD_REQUEST, "The change is too long.") };
        let wanted = match serde_json::from_slice::<Wanted>(&body.to_bytes()) {
            Ok(wanted) => wanted,
            Err(error) => return text(StatusCode::BAD_REQUEST, &error.to_string()),
        };
        let blocks = self.clone();
        let act = async move {
            match wanted {
                Wanted::Key(wish) => {
                    blocks.keys.act(&wish).await.map_err(|e| (StatusCode::CONFLICT, e.to_string()))
                }
                wanted => {
                    let changed = blocks.exports.certainly(|| blocks.change(wanted.clone())).await;
                    changed.map_err(|e| (status_of(&e), e.to_string()))
                }
            }
        };
        match tokio::spawn(act).await {
            Ok(Ok(done)) => text(StatusCode::OK, &done),
            Ok(Err((status, error))) => text(status, &error),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    async fn change(&self, wanted: Wanted) -> Result<String, VolumeError> {
        if let Wanted::Create { name, .. } | Wanted::Clone { name, .. } = &wanted
            && moving::end_of(name).is_some()
        {
            return Err(VolumeError::Taken(name.clone()));
        }
        if let Wanted::Diff { name, from, to } = &wanted {
            let changed = self.exports.difference(name, from, to.as_deref()).await?;
            return Ok(serde_json::to_string(&changed).unwrap_or_default());
        }
        if let Wanted::Compare { name } = &wanted {
            if self.exports.users_of(name) > 0 {
                return Err(VolumeError::InUse(name.clone()));
            }
            let compared = self.shared_of(name)?.compare(name).await?;
            return Ok(serde_json::to_string(&compared).unwrap_or_default());
        }
        if let Wanted::Attach { name, read_only: true } = &wanted {
            let export = only_read::look(&self.exports, &only_read(name)).await;
            let export = export.map_err(|error| match error {
                OptionError::Unknown => VolumeError::NoVolume(name.clone()),
                other => VolumeError::Register(format!("{other:?}")),
            })?;
            if let Some((shared, row)) = self.exports.several(name) {
                shared.attach(&row.name).await?;
            }
            return Ok(export.name);
        }
        self.act(wanted).await.map(|()| "Done.".to_owned())
    }

    async fn act(&self, wanted: Wanted) -> Result<(), VolumeError> {
        let volumes = self.exports.volumes();
        let now = wall_clock() / 1000;
        match wanted {
            Wanted::Create { name, bytes, description, encrypted, members: members @ 2.. } => {
                if volumes.has(&name) {
                    return Err(VolumeError::Taken(name));
                }
                let shared = self.exports.shared().ok_or(VolumeError::TooFewNodes(members))?;
                let id = VolumeId(random_bytes());
                shared
                    .create(New {
                        id,
                        name,
                        bytes,
                        description,
                        encrypted,
                        limits: Limits::default(),
                        members,
                    })
                    .await
            }
            Wanted::Attach { name, .. } => {
                self.shared_of(&name)?.attach(&self.exports.called(&name)).await.map(drop)
            }
            Wanted::Decide { name, device } => {
                let device = decide::device_of(&device).ok_or_else(|| {
                    VolumeError::NotDecided(
                        "a device is 32 hex digits, as `quarry volume show` has them".to_owned(),
                    )
                })?;
                self.shared_of(&name)?.decide(&self.exports.called(&name), device).await
            }
            Wanted::Detach { name } => {
                let name = self.exports.called(&name);
                if self.exports.users_of(&name) > 0 {
                    return Err(VolumeError::InUse(name));
                }
                self.shared_of(&name)?.detach(&name).await
            }
            Wanted::Create { name, bytes, description, encrypted, .. } => {
                if self.exports.several(&name).is_some() {
                    return Err(VolumeError::Taken(name));
                }
                let key = encrypted.then(|| volumes.wrap(&random_bytes())).transpose()?;
                let label = Label { name, description, bytes, made: now, key, ..Label::default() };
                volumes.create(VolumeId(random_bytes()), label).await.map(drop)
            }
            Wanted::Extend { name, bytes } => match self.exports.several(&name) {
                Some((shared, row)) => shared.extend(&row.name, bytes).await,
                None => volumes.extend(&name, bytes).await.map(drop),
            },
            Wanted::Delete { name } => self.exports.delete(&name).await,
            Wanted::Snapshot { name, snapshot } => match self.exports.several(&name) {
                Some((shared, row)) => shared.snapshot(&row.name, &snapshot).await,
                None => volumes.snapshot(&name, &snapshot, now).await.map(drop),
            },
            Wanted::ForgetSnapshot { name, snapshot } => self.exports.forget_snapshot(&name, &snapshot).await,
            Wanted::Clone { name, volume, snapshot, bytes, description } => {
                if let Some((shared, row)) = self.exports.several(&volume) {
                    let volume = row.name;
                    if volumes.find(&name).is_ok() {
                        return Err(VolumeError::Taken(name));
                    }
                    let wanted =
                        NewClone { name, bytes, description, limits: Limits::default(), volume, snapshot };
                    return shared.clone_snapshot(wanted).await;
                }
                if self.exports.several(&name).is_some() {
                    return Err(VolumeError::Taken(name));
                }
                let label = Label { name, description, bytes, made: now, ..Label::default() };
                volumes.clone_snapshot(VolumeId(random_bytes()), label, &volume, &snapshot).await.map(drop)
            }
            Wanted::Flatten { name } => self.exports.flatten(&name).await,
            Wanted::Qos { name, limits } => self.exports.limit(&name, limits.0).await,
            Wanted::Revert { name, snapshot } => self.exports.revert(&name, &snapshot).await,
            Wanted::Diff { .. } | Wanted::Compare { .. } | Wanted::Key(_) => Ok(()),
        }
    }

    /// The volumes, or the one that is asked for.
    async fn all_shown(&self, query: Option<&str>) -> Result<Vec<Shown>, VolumeError> {
        let name = query.and_then(|query| query.strip_prefix(NAMED));
        let name = name.map(|name| percent_decode_str(name).decode_utf8_lossy());
        if let Some(name) = &name {
            self.exports.hear_of(name).await?;
        }
        let mut shown: Vec<Shown> =
            self.exports.volumes().list().iter().map(|volume| self.shown(volume)).collect();
        shown.extend(self.shown_several().await);
        shown.retain(|volume| name.as_ref().is_none_or(|name| volume.name == **name));
        shown.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(shown)
    }

    fn shared_of(&self, name: &str) -> Result<&Arc<Shared>, VolumeError> {
        let found = self.exports.several(name).map(|(shared, _)| shared);
        found.ok_or_else(|| VolumeError::NoVolume(name.to_owned()))
    }

    /// Volumes with several members.
    async fn shown_several(&self) -> Vec<Shown> {
        let Some(shared) = self.exports.shared() else { return Vec::new() };
        let mut all = Vec::new();
        for row in shared.list() {
            let (seen, parent) = (shared.seen(&row).await, shared.parent_of(&row));
            let undecided = shared.undecided(&row).await;
            let standing = |device: DeviceId| {
                let seen = seen.iter().find(|seen| seen.device == device)?;
                Some(format!("{:?}", seen.standing).to_lowercase())
            };
            let member = |device: DeviceId| ShownMember {
                device: hex::encode(device.0),
                counts: row.configuration.counts(device),
                state: match undecided.get(&device) {
                    Some(report) => Some(decide::words(report.as_ref())),
                    None => standing(device),
                },
            };
            let several = Several {
                epoch: row.epoch,
                head: row.head.map(|head| head.to_string()),
                configuration: row.configuration.version,
                members: row.configuration.all().map(member).collect(),
            };
            all.push(Shown {
                users: self.exports.users_of(&row.name),
                name: row.name,
                id: hex::encode(row.id.0),
                bytes: row.bytes,
                description: row.description,
                made: row.made,
                snapshots: row.snapshots.iter().map(shown_snapshot).collect(),
                parent,
                encrypted: row.key.is_some(),
                limits: Said(row.limits),
                several: Some(several),
            });
        }
        all
    }

    fn shown(&self, volume: &Volume) -> Shown {
        let snapshots = volume.snapshots().into_iter().map(|snapshot| ShownSnapshot {
            name: snapshot.label.name,
            bytes: snapshot.label.bytes,
            made: snapshot.label.made,
        });
        Shown {
            name: volume.label.name.clone(),
            id: hex::encode(volume.id.0),
            bytes: volume.label.bytes,
            description: volume.label.description.clone(),
            made: volume.label.made,
            snapshots: snapshots.collect(),
            parent: self
                .exports
                .volumes()
                .parent_of(volume)
                .map(|(name, snapshot)| format!("{name}@{snapshot}")),
            limits: Said(volume.label.limits),
            encrypted: volume.label.key.is_some(),
            users: self.exports.users_of(&volume.label.name),
            several: None,
        }
    }
}

fn shown_snapshot(snapshot: &SnapshotRow) -> ShownSnapshot {
    ShownSnapshot { name: snapshot.name.clone(), bytes: snapshot.bytes, made: snapshot.made }
}

fn status_of(error: &VolumeError) -> StatusCode {
    match error {
        VolumeError::NoVolume(_) | VolumeError::NoSnapshot(..) => StatusCode::NOT_FOUND,
        VolumeError::Taken(_)
        | VolumeError::InUse(_)
        | VolumeError::InUseAt(..)
        | VolumeError::BeingMade(_)
        | VolumeError::NotDecided(_)
        | VolumeError::TooManySnapshots(..)
        | VolumeError::HasClones(..) => StatusCode::CONFLICT,
        VolumeError::NoRoom | VolumeError::TooFewNodes(_) => StatusCode::INSUFFICIENT_STORAGE,
        VolumeError::Disk(_)
        | VolumeError::Away(..)
        | VolumeError::Refused(_)
        | VolumeError::Label(_)
        | VolumeError::Cipher(_)
        | VolumeError::Head(_)
        | VolumeError::Undecided
        | VolumeError::Register(_)
        | VolumeError::Changed => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response
}
