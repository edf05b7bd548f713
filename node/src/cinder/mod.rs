//! OpenStack's volume API (Cinder v3, microversions 3.0 to 3.71) over the volumes of this node.
//!
//! What a volume is to the API (its name, project, type, state) is a paper (`crate::papers`): kept in the object layer, so that one
//! machine and a cluster keep it with the same code, and so that no operation of the API waits for a volume's disk. What is in a
//! volume is the volume layer's: its name there is `volume-` and the id, a snapshot's `snapshot-` and the id.
//! Invariant: no storage rule lives here: sizes, snapshots and clones are the volume layer's.
//! Invariant: a paper that is under way has a `task`; whatever ends this node, the next start goes on with it (`work`).
//! Invariant: a caller sees its own project's resources alone, and others' as if they were not there; admins see all.
//! Invariant: an answer has no key that is newer than the microversion it was asked in.

mod actions;
mod ask;
mod attach;
mod attachments;
mod backups;
mod copy;
mod drain;
mod fault;
mod fields;
mod group_snapshots;
mod group_types;
mod groups;
mod images;
mod list;
mod manage;
mod messages;
mod metadata;
mod migrate;
mod passing;
mod qos;
mod quotas;
mod reserve;
mod route;
mod schedule;
mod services;
mod several;
mod snapshots;
mod specs;
mod states;
#[cfg(test)]
mod tests;
mod transfers;
mod types;
mod volume_view;
mod volumes;
mod work;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, VARY, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
use quarry_engine::net::Transport;
use quarry_engine::object::Store;
use serde_json::Value;
use tokio::sync::{Notify, Semaphore};

use crate::auth::rules::Asked;
use crate::auth::{Arrival, Auth, Who};
use crate::block::Blocks;
use crate::config;
use crate::papers::Cabinet;
use ask::{Answer, Ask, Caller, NEWEST};
use fault::Fault;

/// Account of the papers: no API reaches it, because it has no reseller prefix.
const ACCOUNT: &str = ".volumes";
/// Largest request body.
const MAX_BODY: usize = 112 << 10;
/// Images that are moved at once: half of all tasks, so that there is always room for short ones.
const IMAGES_AT_ONCE: usize = 4;
/// The one availability zone.
const ZONE: &str = "nova";

/// The volume API; clones are cheap.
#[derive(Debug, Clone)]
pub(crate) struct Cinder {
    office: Arc<Office>,
}

/// Where the volumes of the API are, and who they are reached by.
struct Place {
    /// Of this node.
    host: String,
    /// Where NBD clients connect.
    nbd: Option<SocketAddr>,
    /// What volume types call the volumes of this node.
    backend: String,
    /// How other nodes are reached; nothing where there is none.
    net: Option<Arc<dyn Transport>>,
    /// Where the image service is.
    images: config::ImageService,
    /// What renews the tokens of tasks.
    auth: Option<Arc<Auth>>,
    /// No other node is there.
    alone: bool,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("host", &self.host).finish_non_exhaustive()
    }
}

/// What all requests are answered from.
#[derive(Debug)]
struct Office {
    papers: Arc<Cabinet>,
    /// For the bodies of backups.
    store: Store,
    blocks: Blocks,
    place: Place,
    /// Held while a quota is compared and used up (`reserve`).
    counting: Arc<tokio::sync::Mutex<()>>,
    /// Images that may be moved at once.
    images: Arc<Semaphore>,
    /// Papers whose task is under way here.
    busy: Mutex<HashSet<String>>,
    /// When it was looked last for what is kept of volumes for nothing.
    swept: tokio::sync::Mutex<Option<tokio::time::Instant>>,
    /// There may be a task to be done.
    kick: Notify,
}

impl Office {
    fn busy<T>(&self, act: impl FnOnce(&mut HashSet<String>) -> T) -> T {
        act(&mut self.busy.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Cinder {
    /// Over the volumes in `blocks`, as the configuration says, for a node that reaches others by `net` (`None`: it is alone), and whose
    /// NBD clients connect to `nbd`. Tokens of tasks are renewed by `auth`.
    pub(crate) fn new(
        store: Store,
        blocks: Blocks,
        net: Option<Arc<dyn Transport>>,
        nbd: Option<SocketAddr>,
        settings: &config::Volumes,
        auth: Option<Arc<Auth>>,
    ) -> Self {
        let host = net.as_ref().map_or_else(|| "quarry".to_owned(), |net| net.local().to_string());
        let (alone, backend) = (net.is_none(), settings.backend.0.clone());
        let place = Place { host, nbd, backend, net, images: settings.image_service.clone(), auth, alone };
        let papers = Arc::new(Cabinet::new(store.clone(), ACCOUNT, alone));
        let (counting, busy, kick) = (Arc::default(), Mutex::default(), Notify::new());
        let swept = tokio::sync::Mutex::default();
        let images = Arc::new(Semaphore::new(IMAGES_AT_ONCE));
        Self {
            office: Arc::new(Office { papers, store, blocks, place, counting, images, busy, swept, kick }),
        }
    }

    /// Where the image service is, if there is one.
    fn images(&self, auth: &Auth) -> Option<String> {
        let said = self.office.place.images.url.as_ref();
        said.map(|url| url.get_ref().clone()).or_else(|| auth.service_url("image"))
    }

    /// Answers one request.
    pub(crate) async fn answer<B>(
        &self,
        auth: &Arc<Auth>,
        request: Request<B>,
        id: &str,
    ) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let id = format!("req-{id}");
        let minor = ask::microversion(&head.headers);
        let root = auth.volume_url(&head.headers, Arrival::Volume);
        let reply = match &minor {
            Err(fault) => Err(fault.clone()),
            Ok(_) if head.uri.path().trim_matches('/').is_empty() => Ok(services::versions(&root, true)),
            Ok(_) if head.uri.path().trim_matches('/') == "v3" => Ok(services::versions(&root, false)),
            Ok(minor) => match caller(auth, &head).await {
                Err(fault) => Err(fault),
                Ok(None) => Err(Fault::other(401, "The request you have made requires authentication.")),
                Ok(Some(caller)) => match read(&head.method, &head.headers, body).await {
                    Err(fault) => Err(fault),
                    Ok(body) => {
                        let ask = Ask {
                            method: head.method.clone(),
                            query: ask::query(head.uri.query().unwrap_or("")),
                            minor: *minor,
                            caller,
                            base: format!("{root}/v3"),
                            path: head.uri.path().to_owned(),
                            body: body.into(),
                            id: id.clone(),
                            token: token_of(&head.headers).to_owned().into(),
                            images: self.images(auth),
                            image_authority: self.office.place.images.authority.clone(),
                        };
                        Box::pin(route::answer(&self.office, &ask)).await
                    }
                },
            },
        };
        respond(&reply, minor.unwrap_or(0), &id, auth, &head.headers)
    }
}

/// Who sends these headers: a Keystone token with a project, or with a role in the whole system.
async fn caller(auth: &Arc<Auth>, head: &Parts) -> Result<Option<Caller>, Fault> {
    auth.meet(&head.headers).await.map_err(|error| Fault::other(503, error.to_string()))?;
    Ok(known_caller(auth, head))
}

fn known_caller(auth: &Arc<Auth>, head: &Parts) -> Option<Caller> {
    let asked = Asked::of_volumes(&head.method, head.uri.path());
    let session = auth.admitted(token_of(&head.headers), &head.headers, &asked)?;
    let Who { user, project, roles } = session.who()?;
    let has = |wanted: &str| roles.iter().any(|role| role == wanted);
    Some(Caller {
        user: user.to_owned(),
        project: project.unwrap_or("").to_owned(),
        admin: has("admin"),
        writes: roles.iter().any(|role| role != "reader"),
    })
}

fn token_of(headers: &HeaderMap) -> &str {
    headers.get("x-auth-token").and_then(|token| token.to_str().ok()).unwrap_or("")
}

/// The body as JSON; null without one.
async fn read<B>(method: &Method, headers: &HeaderMap, body: B) -> Result<Value, Fault>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        return Err(Fault::other(413, "Request is too large."));
    };
    let bytes = body.to_bytes();
    if bytes.is_empty() || method == Method::GET {
        return Ok(Value::Null);
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("application/json");
    if !kind.contains("json") {
        return Err(Fault::other(415, "Unsupported Content-Type"));
    }
    serde_json::from_slice(&bytes).map_err(|_| Fault::bad("The request body is no JSON."))
}

fn respond(
    reply: &Result<Answer, Fault>,
    minor: u16,
    id: &str,
    auth: &Arc<Auth>,
    asked: &HeaderMap,
) -> Response<Full<Bytes>> {
    let (status, body) = match reply {
        Ok(answer) => (answer.status, answer.body.0.clone()),
        Err(fault) => (fault.status, Some(fault.body())),
    };
    let mut response = match body {
        Some(body) => Response::new(Full::from(body.to_string())),
        None => Response::new(Full::default()),
    };
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if status != 204 {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if status == 401 {
        let uri = auth.identity_url(asked, Arrival::Volume);
        if let Ok(how) = HeaderValue::try_from(format!("Keystone uri=\"{uri}/v3\"")) {
            headers.insert(WWW_AUTHENTICATE, how);
        }
    }
    headers.insert(VARY, HeaderValue::from_static("OpenStack-API-Version"));
    let minor = minor.min(NEWEST);
    if let Ok(version) = HeaderValue::try_from(format!("volume 3.{minor}")) {
        headers.insert("openstack-api-version", version);
    }
    if let Ok(id) = HeaderValue::try_from(id) {
        headers.insert("x-compute-request-id", id.clone());
        headers.insert("x-openstack-request-id", id);
    }
    response
}
