//! POST of objects: new headers for the same bytes.
//!
//! Invariant: what makes an object a static large object survives every POST.

use std::sync::Arc;

use http::Response;
use http::header::CONTENT_TYPE;
use quarry_engine::object::{Error, ListedAs, ObjectEdit, ObjectInfo, ObjectPath};

use super::super::account::simple;
use super::super::authorize::{Subject, Verb, authorize};
use super::super::body::ResponseBody;
use super::super::error::{Result, SwiftError};
use super::super::headers::{Kind, check_metadata, is_internal, object_headers};
use super::super::{Api, Call};
use super::expiry;

/// Replace an object's headers.
pub(crate) async fn post(api: &Arc<Api>, call: &Call, path: &ObjectPath) -> Result<Response<ResponseBody>> {
    authorize(api, call, Subject::object(path), Verb::Write).await?;
    check_metadata(&call.headers, Kind::Object, &api.limits)?;
    let delete_at = expiry::parse(&call.headers, call.now)?;
    let content_type = match call.headers.get(CONTENT_TYPE).filter(|given| !given.is_empty()) {
        None => None,
        Some(given) => {
            let given = std::str::from_utf8(given.as_bytes());
            Some(given.map_err(|_| SwiftError::plain(400, "Invalid Content-Type"))?.to_owned())
        }
    };
    let headers = object_headers(&call.headers);
    let edit = |current: &ObjectInfo| {
        if expiry::is_hidden(current, &call.headers, call.now, &api.options) {
            return Err(Error::NoObject);
        }
        let mut headers = headers;
        for (name, value) in &current.headers {
            if is_internal(name) || name == "x-static-large-object" {
                headers.insert(name.clone(), value.clone());
            }
        }
        let listed = ListedAs { content_type: None, ..current.listed.clone() };
        let content_type = content_type.unwrap_or_else(|| current.content_type.clone());
        Ok(ObjectEdit { content_type, delete_at, headers, listed })
    };
    api.store.post_object(path, edit).await?;
    Ok(simple(202))
}
