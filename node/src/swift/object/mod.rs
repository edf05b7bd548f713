//! Requests on objects.

pub(crate) mod conditions;
pub(crate) mod content_type;
pub(crate) mod copy;
pub(crate) mod delete;
pub(crate) mod expiry;
pub(crate) mod get;
pub(crate) mod pieces;
pub(crate) mod post;
pub(crate) mod put;
pub(crate) mod ranges;

use std::sync::Arc;

use http::Response;
use quarry_engine::object::ObjectPath;

use super::body::{RequestBody, ResponseBody};
use super::error::{Result, SwiftError};
use super::route::{OBJECT_METHODS, ObjectAction};
use super::{Api, Call, cors, slo};

/// Act on an object.
pub(crate) async fn run(
    api: &Arc<Api>,
    call: &Call,
    path: ObjectPath,
    action: ObjectAction,
    body: &mut RequestBody,
) -> Result<Response<ResponseBody>> {
    let large = matches!(action, ObjectAction::Put(_) | ObjectAction::Post | ObjectAction::Copy(_));
    if large && call.headers.contains_key("x-static-large-object") {
        return Err(SwiftError::message(
            400,
            "X-Static-Large-Object is a reserved header. To create a static large object add query param \
             multipart-manifest=put.",
        ));
    }
    match action {
        ObjectAction::Get(view) => Ok(get::fetch(api, call, &path, &view, false).await?.into_response()),
        ObjectAction::Head(view) => Ok(get::fetch(api, call, &path, &view, true).await?.into_response()),
        ObjectAction::Put(view) if call.headers.contains_key("x-copy-from") => {
            Box::pin(copy::from_header(api, call, path, &view, body)).await
        }
        ObjectAction::Put(_) => put::put(api, call, &path, body).await,
        ObjectAction::PutManifest { heartbeat } => {
            Box::pin(slo::put::put(api, call, path, heartbeat, body)).await
        }
        ObjectAction::Post => post::post(api, call, &path).await,
        ObjectAction::Delete => delete::delete(api, call, &path).await,
        ObjectAction::DeleteManifest { .. } => Box::pin(slo::delete::delete(api, call, &path)).await,
        ObjectAction::Copy(view) => Box::pin(copy::to_destination(api, call, path, &view)).await,
        ObjectAction::Options => {
            cors::preflight(api, call, Some((&path.account, &path.container)), OBJECT_METHODS).await
        }
    }
}
