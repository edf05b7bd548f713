//! DELETE of objects.

use std::sync::Arc;

use http::Response;
use quarry_engine::object::{Condition, Deleted, ObjectPath};

use super::super::account::simple;
use super::super::authorize::{Subject, Verb, authorize};
use super::super::body::ResponseBody;
use super::super::error::{Result, SwiftError};
use super::super::headers::text;
use super::super::{Api, Call};
use super::expiry::integer;

/// Remove an object.
pub(crate) async fn delete(api: &Arc<Api>, call: &Call, path: &ObjectPath) -> Result<Response<ResponseBody>> {
    authorize(api, call, Subject::object(path), Verb::Write).await?;
    if !call.headers.contains_key("x-if-delete-at") {
        return remove(api, path, call.now).await;
    }
    let wanted = text(&call.headers, "x-if-delete-at").and_then(integer);
    let wanted = wanted.ok_or_else(|| SwiftError::plain(400, "Bad X-If-Delete-At header value"))?;
    let info = api.store.object(path).await?.ok_or_else(|| SwiftError::status(404))?;
    if info.delete_at.map(i128::from) != Some(wanted) {
        return Err(SwiftError::message(412, "X-If-Delete-At and X-Delete-At do not match"));
    }
    // Whoever names its time knows that it is over: that is not told apart.
    answer(api.store.delete_object(path, &Condition::default()).await?)
}

/// Remove an object; the caller has been authorised. One that expired is removed as well, but nobody was to see it any more.
pub(crate) async fn remove(api: &Api, path: &ObjectPath, now: u64) -> Result<Response<ResponseBody>> {
    match api.store.take_object(path, &Condition::default()).await? {
        (Deleted::Gone, Some(delete_at)) if delete_at <= now => Err(SwiftError::status(404)),
        (deleted, _) => answer(deleted),
    }
}

fn answer(deleted: Deleted) -> Result<Response<ResponseBody>> {
    match deleted {
        Deleted::Gone => Ok(simple(204)),
        Deleted::Absent => Err(SwiftError::status(404)),
        Deleted::NotEmpty => Err(SwiftError::status(409)),
    }
}
