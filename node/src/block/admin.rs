//! `/volumes` on the admin listener: GET shows the volumes, POST changes them. `quarry volume` speaks it.
//!
//! ```text
//! {"create": {"name": …, "bytes": …, "description": …, "encrypted": false}}
//! {"extend": {"name": …, "bytes": …}}   {"delete": {"name": …}}
//! {"snapshot": {"name": …, "snapshot": …}}   {"forget_snapshot": {"name": …, "snapshot": …}}
//! {"clone": {"name": …, "volume": …, "snapshot": …, "bytes": 0: as large, "description": …}}   {"flatten": {"name": …}}
//! {"qos": {"name": …, "limits": {"total_iops_sec": …, "total_iops_sec_max": …, …}}}
//! {"revert": {"name": …, "snapshot": …}}   {"diff": {"name": …, "from": snapshot, "to": snapshot or null: now}}
//! ```
//!
//! A difference is answered with `[[offset, bytes], …]`.
//!
//! Invariant: a change that was begun goes on when its caller goes away.
//! Invariant: volumes are changed from the node's own machine alone.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use quarry_volume::VolumeId;
use quarry_volume::store::{Label, Volume, VolumeError};
use serde::{Deserialize, Serialize};

use super::{Blocks, Said};
use crate::http::Received;
use crate::storage::{random_bytes, wall_clock};

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
            let shown: Vec<Shown> =
                self.exports.volumes().list().iter().map(|volume| self.shown(volume)).collect();
            return text(StatusCode::OK, &serde_json::to_string(&shown).unwrap_or_default());
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
        match tokio::spawn(async move { blocks.change(wanted).await }).await {
            Ok(Ok(done)) => text(StatusCode::OK, &done),
            Ok(Err(error)) => text(status_of(&error), &error.to_string()),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    async fn change(&self, wanted: Wanted) -> Result<String, VolumeError> {
        if let Wanted::Diff { name, from, to } = &wanted {
            let changed = self.exports.volumes().difference(name, from, to.as_deref()).await?;
            return Ok(serde_json::to_string(&changed).unwrap_or_default());
        }
        self.act(wanted).await.map(|()| "Done.".to_owned())
    }

    async fn act(&self, wanted: Wanted) -> Result<(), VolumeError> {
        let volumes = self.exports.volumes();
        let now = wall_clock() / 1000;
        match wanted {
            Wanted::Create { name, bytes, description, encrypted } => {
                let key = encrypted.then(|| volumes.wrap(&random_bytes())).transpose()?;
                let label = Label { name, description, bytes, made: now, key, ..Label::default() };
                volumes.create(VolumeId(random_bytes()), label).await.map(drop)
            }
            Wanted::Extend { name, bytes } => volumes.extend(&name, bytes).await.map(drop),
            Wanted::Delete { name } => self.exports.delete(&name).await,
            Wanted::Snapshot { name, snapshot } => volumes.snapshot(&name, &snapshot, now).await.map(drop),
            Wanted::ForgetSnapshot { name, snapshot } => self.exports.forget_snapshot(&name, &snapshot).await,
            Wanted::Clone { name, volume, snapshot, bytes, description } => {
                let label = Label { name, description, bytes, made: now, ..Label::default() };
                volumes.clone_snapshot(VolumeId(random_bytes()), label, &volume, &snapshot).await.map(drop)
            }
            Wanted::Flatten { name } => volumes.flatten(&name).await,
            Wanted::Qos { name, limits } => self.exports.limit(&name, limits.0).await,
            Wanted::Revert { name, snapshot } => self.exports.revert(&name, &snapshot).await,
            Wanted::Diff { .. } => Ok(()),
        }
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
        }
    }
}

fn status_of(error: &VolumeError) -> StatusCode {
    match error {
        VolumeError::NoVolume(_) | VolumeError::NoSnapshot(..) => StatusCode::NOT_FOUND,
        VolumeError::Taken(_) | VolumeError::InUse(_) | VolumeError::HasClones(..) => StatusCode::CONFLICT,
        VolumeError::NoRoom => StatusCode::INSUFFICIENT_STORAGE,
        VolumeError::Disk(_) | VolumeError::Refused(_) | VolumeError::Label(_) | VolumeError::Cipher(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => StatusCode::BAD_REQUEST,
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response
}
