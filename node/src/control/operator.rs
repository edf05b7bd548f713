//! What operators want of the cluster: `POST /cluster/wish` on the admin listener.
//!
//! ```text
//! {"device": HEX, "wanted": "share" | "empty" | "out"}
//! {"node": HEX, "wanted": "share" | "empty"}
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{NodeId, Response as Answer, Transport, Wish};
use serde::{Deserialize, Serialize};

use crate::http::Received;

/// Most bytes of a wish.
const MAX_BODY: usize = 4096;
/// How long it may take to write it down.
const WITHIN: Duration = Duration::from_secs(10);

/// A wish as operators write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
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

impl Wanted {
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
pub(crate) struct Operator(pub(crate) Arc<dyn Transport>);

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Operator")
    }
}

impl Operator {
    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request<Received>) -> Response<Full<Bytes>> {
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "Only POST is allowed here.");
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
        let Ok(body) = body else { return text(StatusCode::BAD_REQUEST, "The wish is too long.") };
        let wanted = serde_json::from_slice::<Wanted>(&body.to_bytes()).map_err(|e| e.to_string());
        let wish = wanted.and_then(|wanted| wanted.wish().map_err(str::to_owned));
        let wish = match wish {
            Ok(wish) => wish,
            Err(why) => return text(StatusCode::BAD_REQUEST, &why),
        };
        let local = self.0.local();
        match self.0.call(local, quarry_engine::net::Request::Wish(wish), WITHIN).await {
            Ok(Answer::Done) => text(StatusCode::OK, "Written down."),
            Ok(Answer::Failed(failure)) => text(StatusCode::CONFLICT, &failure.to_string()),
            Ok(_) => text(StatusCode::SERVICE_UNAVAILABLE, "The leader answered another question."),
            Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
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
        let wish = |text: &str| serde_json::from_str::<Wanted>(text).map_err(|e| e.to_string());
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
