//! What operators want of the cluster: `POST /cluster/wish` on the admin listener; for users see [`super::roster`].
//!
//! ```text
//! {"device": HEX, "wanted": "share" | "empty" | "out"}
//! {"node": HEX, "wanted": "share" | "empty"}
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{NodeId, Response as Answer, Transport, Wish};
use quarry_engine::sync;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::compare::{Compared, History, answering, compare, unsettled};
use super::leaving::left;
use super::member::Member;
use super::report::to_leave;
use super::state::{self, State};
use super::volumes::Register;
use super::{policy_edit, roster};
use crate::http::Received;

/// Most bytes of a wish.
const MAX_BODY: usize = 4096;
/// How long it may take to write it down.
const WITHIN: Duration = Duration::from_secs(10);

/// A wish as operators write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Demand {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<String>,
    pub(crate) wanted: What,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum What {
    Share,
    Empty,
    Out,
}

impl Demand {
    fn wish(&self) -> Result<Wish, &'static str> {
        let id = |text: &str| {
            let mut bytes = [0; 16];
            hex::decode_to_slice(text, &mut bytes).map(|()| bytes).map_err(|_| "an identity is 32 hex digits")
        };
        match (&self.device, &self.node, self.wanted) {
            (Some(device), None, wanted) => {
                Ok(Wish::Device { device: DeviceId(id(device)?), wanted: wanted as u8 })
            }
            (None, Some(_), What::Out) => Err("a node is emptied, and then it may be switched off"),
            (None, Some(node), wanted) => {
                Ok(Wish::Node { node: NodeId(id(node)?), leaving: wanted == What::Empty })
            }
            _ => Err("either a device or a node"),
        }
    }
}

/// Takes wishes to the leader of the control group.
#[derive(Clone)]
pub(crate) struct Operator {
    net: Arc<dyn Transport>,
    state: watch::Receiver<Arc<State>>,
    peers: Arc<dyn sync::Cluster>,
    /// Of the admin listener.
    own: IpAddr,
    history: Arc<History>,
    /// The same of volumes.
    emptied: Arc<History>,
    register: Register,
    begun: Instant,
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Operator")
    }
}

impl Operator {
    /// For a member whose admin listener is at `own`.
    pub(crate) fn new(member: &Member, own: IpAddr) -> Self {
        let (net, state, peers) =
            (Arc::clone(&member.cluster.transport), member.state.clone(), member.peers());
        let register = Register::new(member.groups.control.clone(), Arc::clone(&net));
        let (history, emptied) = (Arc::default(), Arc::default());
        Self { net, state, peers, own, history, emptied, register, begun: Instant::now() }
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request<Received>) -> Response<Full<Bytes>> {
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "Only POST is allowed here.");
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
        let Ok(body) = body else { return text(StatusCode::BAD_REQUEST, "The wish is too long.") };
        let wanted = serde_json::from_slice::<Demand>(&body.to_bytes()).map_err(|e| e.to_string());
        let wish = wanted.and_then(|wanted| wanted.wish().map_err(str::to_owned));
        let wish = match wish {
            Ok(wish) => wish,
            Err(why) => return text(StatusCode::BAD_REQUEST, &why),
        };
        self.tell(wish).await.map_or_else(|refused| refused, |()| text(StatusCode::OK, "Written down."))
    }

    /// Compares the copies of all partitions.
    pub(crate) async fn compare(&self) -> Response<Full<Bytes>> {
        let seen = Arc::clone(&self.state.borrow());
        let devices = seen.devices.iter().filter(|(_, device)| device.wanted != state::Wanted::Out);
        let devices = devices.map(|(id, _)| *id).collect();
        let nodes = answering(&*self.net, seen.members.keys().copied()).await;
        let is_away = |device: &state::Device| nodes.get(&device.node) == Some(&false);
        let away = seen.devices.iter().filter(|(_, device)| is_away(device)).map(|(id, _)| *id).collect();
        let (mut compared, unsettled, mut volumes) = tokio::join!(
            compare(&*self.peers, devices, &away),
            unsettled(&*self.net, &seen.groups, &nodes),
            left(&self.register, &seen),
        );
        compared.index_groups = seen.groups.len();
        compared.unsettled = unsettled;
        let now = self.begun.elapsed();
        volumes.eta_seconds = self.emptied.note(now, volumes.count());
        let compared = Compared { volumes, ..compared.with_left(to_leave(&seen), &self.history, now) };
        text(StatusCode::OK, &serde_json::to_string(&compared).unwrap_or_default())
    }

    /// Which nodes answer this one, by their names.
    pub(crate) async fn nodes(&self) -> Response<Full<Bytes>> {
        let seen = Arc::clone(&self.state.borrow());
        let nodes = answering(&*self.net, seen.members.keys().copied()).await;
        let nodes: BTreeMap<String, bool> =
            nodes.into_iter().map(|(node, answers)| (node.to_string(), answers)).collect();
        text(StatusCode::OK, &serde_json::to_string(&nodes).unwrap_or_default())
    }

    /// Shows or changes users.
    pub(crate) async fn users(&self, request: Request<Received>) -> Response<Full<Bytes>> {
        let peer = request.extensions().get::<SocketAddr>().map(SocketAddr::ip);
        if !peer.is_some_and(|peer| peer.is_loopback() || peer == self.own) {
            return text(StatusCode::FORBIDDEN, "Users are shown and changed on the node's own machine.");
        }
        let people = self.state.borrow().people.clone();
        if request.method() == Method::GET {
            let shown = serde_json::to_string(&roster::shown(&people)).unwrap_or_default();
            return text(StatusCode::OK, &shown);
        }
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET and POST are allowed here.");
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
        let Ok(body) = body else { return text(StatusCode::BAD_REQUEST, "The change is too long.") };
        // What the parser says may quote a secret.
        let Ok(edit) = serde_json::from_slice::<roster::Edit>(&body.to_bytes()) else {
            return text(StatusCode::BAD_REQUEST, "The change cannot be read.");
        };
        let rows = tokio::task::spawn_blocking(move || edit.rows(&people)).await;
        let rows = match rows {
            Ok(Ok(rows)) => rows,
            Ok(Err(why)) => return text(StatusCode::BAD_REQUEST, why),
            Err(_) => return text(StatusCode::SERVICE_UNAVAILABLE, "The node is stopping."),
        };
        for (key, value) in rows {
            if let Err(refused) = self.tell(Wish::Row { key, value, fresh: false }).await {
                return refused;
            }
        }
        text(StatusCode::OK, "Written down.")
    }

    /// Shows or changes storage policies.
    pub(crate) async fn policies(&self, request: Request<Received>) -> Response<Full<Bytes>> {
        let state = Arc::clone(&self.state.borrow());
        if request.method() == Method::GET {
            let shown = serde_json::to_string(&policy_edit::shown(&state)).unwrap_or_default();
            return text(StatusCode::OK, &shown);
        }
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET and POST are allowed here.");
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
        let Ok(body) = body else { return text(StatusCode::BAD_REQUEST, "The change is too long.") };
        let edit = serde_json::from_slice::<policy_edit::Edit>(&body.to_bytes()).map_err(|e| e.to_string());
        let judged = edit.and_then(|edit| Ok((edit.keeps.is_some(), edit.rows(&state)?)));
        let (new, rows) = match judged {
            Ok(judged) => judged,
            Err(why) => return text(StatusCode::BAD_REQUEST, &why),
        };
        for (at, (key, value)) in rows.iter().cloned().enumerate() {
            // The number of a new policy may be given to another one at this moment.
            let row = Wish::Row { key, value: Some(value), fresh: new && at == 0 };
            if let Err(refused) = self.tell(row).await {
                return refused;
            }
        }
        let mut seen = self.state.clone();
        let all = |state: &Arc<State>| rows.iter().all(|(key, value)| state.policies.has(key, value));
        match tokio::time::timeout(WITHIN, seen.wait_for(all)).await {
            Ok(Ok(_)) => text(StatusCode::OK, "Written down."),
            _ => text(
                StatusCode::CONFLICT,
                "Another change came at the same time; look at the policies and try again.",
            ),
        }
    }

    async fn tell(&self, wish: Wish) -> Result<(), Response<Full<Bytes>>> {
        let wish = quarry_engine::net::Request::Wish(wish);
        match self.net.call(self.net.local(), wish, WITHIN).await {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Failed(failure)) => Err(text(StatusCode::CONFLICT, &failure.to_string())),
            Ok(_) => Err(text(StatusCode::SERVICE_UNAVAILABLE, "The leader answered another question.")),
            Err(error) => Err(text(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())),
        }
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_of_one_disk_or_one_node() {
        let wish = |text: &str| serde_json::from_str::<Demand>(text).map_err(|e| e.to_string());
        let id = "ab".repeat(16);
        let device = wish(&format!(r#"{{"device":"{id}","wanted":"out"}}"#)).unwrap();
        assert_eq!(device.wish(), Ok(Wish::Device { device: DeviceId([0xab; 16]), wanted: 2 }));
        let node = wish(&format!(r#"{{"node":"{id}","wanted":"empty"}}"#)).unwrap();
        assert_eq!(node.wish(), Ok(Wish::Node { node: NodeId([0xab; 16]), leaving: true }));
        for bad in [
            format!(r#"{{"node":"{id}","wanted":"out"}}"#),
            format!(r#"{{"node":"{id}","device":"{id}","wanted":"empty"}}"#),
            r#"{"wanted":"empty"}"#.to_owned(),
            r#"{"node":"xy","wanted":"empty"}"#.to_owned(),
        ] {
            assert!(wish(&bad).unwrap().wish().is_err(), "{bad}");
        }
        assert!(wish(r#"{"node":"xy","wanted":"gone"}"#).is_err());
    }
}
