//! Copies inside the server: COPY, and PUT with `X-Copy-From`.
//!
//! Invariant: a copy reads and writes with the caller's own rights, each.

use std::sync::Arc;

use http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED, TRANSFER_ENCODING,
};
use http::{HeaderValue, Response};
use percent_encoding::percent_decode_str;
use quarry_engine::object::ObjectPath;

use super::super::authorize::{Subject, Verb, authorize, quote};
use super::super::body::{RequestBody, ResponseBody};
use super::super::error::{Result, SwiftError};
use super::super::headers::{add_stored, flag, number, text};
use super::super::route::View;
use super::super::{Api, Call, quota, slo};
use super::get::{Fetched, Nature};
use super::{get, put};

/// COPY: the request's object goes where `Destination` says.
pub(crate) async fn to_destination(
    api: &Arc<Api>,
    call: &Call,
    source: ObjectPath,
    view: &View,
) -> Result<Response<ResponseBody>> {
    if text(&call.headers, "destination").is_none_or(str::is_empty) {
        return Err(SwiftError::message(412, "Destination header required"));
    }
    let account = match account_header(&call.headers, "destination-account")? {
        Some(account) => account,
        None => source.account.to_string(),
    };
    let (container, object) = path_header(&call.headers, "destination")?;
    if container.len() > api.limits.max_container_name_length
        || object.len() > api.limits.max_object_name_length
    {
        return Err(SwiftError::message(400, "Destination name too long"));
    }
    let target = ObjectPath { account: account.into(), container: container.into(), object: object.into() };
    copy(api, call, &source, target, view).await
}

/// PUT with `X-Copy-From`: the named object comes to where the request points.
pub(crate) async fn from_header(
    api: &Arc<Api>,
    call: &Call,
    target: ObjectPath,
    view: &View,
    body: &mut RequestBody,
) -> Result<Response<ResponseBody>> {
    if text(&call.headers, "content-length").is_some_and(|length| length.trim() != "0") {
        return Err(SwiftError::plain(400, "Copy requests require a zero byte body"));
    }
    if let Some(piece) = body.next().await
        && !piece.is_ok_and(|piece| piece.is_empty())
    {
        return Err(SwiftError::plain(400, "Copy requests require a zero byte body"));
    }
    let account = match account_header(&call.headers, "x-copy-from-account")? {
        Some(account) => account,
        None => target.account.to_string(),
    };
    let (container, object) = path_header(&call.headers, "x-copy-from")?;
    let source = ObjectPath { account: account.into(), container: container.into(), object: object.into() };
    copy(api, call, &source, target, view).await
}

async fn copy(
    api: &Arc<Api>,
    call: &Call,
    source: &ObjectPath,
    target: ObjectPath,
    view: &View,
) -> Result<Response<ResponseBody>> {
    let view = View { raw: view.manifest, ..view.clone() };
    let fetched = get::fetch(api, call, source, &view, false).await?;
    if fetched.status >= 300 {
        return Ok(fetched.into_response());
    }
    if fetched.length > api.limits.max_file_size {
        return Err(SwiftError::status(413));
    }
    let headers = sink_headers(&call.headers, &fetched, view.manifest);
    let told = told_headers(source, &fetched, &headers);
    let as_manifest = view.manifest && fetched.nature == Nature::Static;
    let sink = Call { headers, ..call.clone_without_headers() };
    let mut body = RequestBody::Inner(fetched.body);
    let mut response = if as_manifest {
        Box::pin(slo::put::put(api, &sink, target, false, &mut body)).await?
    } else {
        authorize(api, &sink, Subject::object(&target), Verb::Write).await?;
        let upload = put::parse(&sink.headers, &target, sink.now, &api.limits)?;
        put::check_absent(api, &sink, &target, &upload.spec.condition).await?;
        quota::check(api, &sink, &target, upload.length).await?;
        let committed = put::store(api, &target, upload, &mut body).await?;
        put::created(&committed, &hex::encode(committed.md5))
    };
    if response.status().is_success() {
        response.headers_mut().extend(told);
    }
    Ok(response)
}

/// Headers of the PUT that a copy amounts to: the source's, overridden by the request's.
fn sink_headers(request: &HeaderMap, fetched: &Fetched, manifest: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if !flag(request, "x-fresh-metadata") {
        add_stored(&mut headers, &fetched.info.headers, true);
        headers.remove("x-static-large-object");
        headers.remove("x-object-manifest");
        // A new time to live replaces the source's.
        if let Some(at) = fetched.info.delete_at
            && !request.contains_key("x-delete-after")
        {
            headers.insert("x-delete-at", number(at));
        }
    }
    for (name, value) in request {
        headers.insert(name, value.clone());
    }
    for name in ["x-copy-from", "x-copy-from-account", "destination", "destination-account"] {
        headers.remove(name);
    }
    headers.remove(TRANSFER_ENCODING);
    if headers.get(CONTENT_TYPE).is_none_or(HeaderValue::is_empty)
        && let Some(value) = fetched.headers.get(CONTENT_TYPE)
    {
        headers.insert(CONTENT_TYPE, value.clone());
    }
    headers.insert(CONTENT_LENGTH, number(fetched.length));
    if manifest && let Some(value) = fetched.headers.get("x-object-manifest") {
        headers.insert("x-object-manifest", value.clone());
    }
    let whole = fetched.status == 200
        && match fetched.nature {
            Nature::Plain => true,
            Nature::Dynamic => manifest,
            Nature::Static => false,
        };
    if whole && let Some(etag) = fetched.headers.get(ETAG) {
        headers.insert(ETAG, etag.clone());
    }
    headers
}

/// What the answer tells about a copy.
fn told_headers(source: &ObjectPath, fetched: &Fetched, sink: &HeaderMap) -> HeaderMap {
    let mut told = HeaderMap::new();
    let from = format!("{}/{}", source.container, source.object);
    for (name, value) in [("x-copied-from-account", quote(&source.account)), ("x-copied-from", quote(&from))]
    {
        if let Ok(value) = HeaderValue::from_str(&value) {
            told.insert(HeaderName::from_static(name), value);
        }
    }
    if let Some(value) = fetched.headers.get(LAST_MODIFIED) {
        told.insert("x-copied-from-last-modified", value.clone());
    }
    for (name, value) in sink {
        if name.as_str().starts_with("x-object-meta-") || name.as_str() == "x-delete-at" {
            told.insert(name, value.clone());
        }
    }
    told
}

/// An account named in a header.
fn account_header(headers: &HeaderMap, name: &str) -> Result<Option<String>> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let value = decode(value.as_bytes())?;
    if value.is_empty() {
        return Err(SwiftError::message(412, "Account name cannot be empty"));
    }
    if value.contains('/') {
        return Err(SwiftError::message(412, "Account name cannot contain slashes"));
    }
    Ok(Some(value))
}

/// A container and an object named in a header.
fn path_header(headers: &HeaderMap, name: &str) -> Result<(String, String)> {
    let words = if name == "destination" { "Destination" } else { "X-Copy-From" };
    let bad = || {
        SwiftError::message(412, format!("{words} header must be of the form <container name>/<object name>"))
    };
    let value = decode(headers.get(name).ok_or_else(bad)?.as_bytes())?;
    let value = value.strip_prefix('/').unwrap_or(&value);
    match value.split_once('/') {
        Some((container, object)) if !container.is_empty() && !object.is_empty() => {
            Ok((container.to_owned(), object.to_owned()))
        }
        _ => Err(bad()),
    }
}

fn decode(value: &[u8]) -> Result<String> {
    let invalid = || SwiftError::message(412, "Invalid UTF8 or contains NULL");
    let text = std::str::from_utf8(value).map_err(|_| invalid())?;
    let text = percent_decode_str(text).decode_utf8().map_err(|_| invalid())?;
    if text.contains('\0') { Err(invalid()) } else { Ok(text.into_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(value: &'static str) -> Result<(String, String)> {
        let mut headers = HeaderMap::new();
        headers.insert("destination", HeaderValue::from_static(value));
        path_header(&headers, "destination")
    }

    #[test]
    fn a_destination_names_container_and_object() {
        assert_eq!(destination("c/o/p").unwrap(), ("c".into(), "o/p".into()));
        assert_eq!(destination("/c%20d/o%252F").unwrap(), ("c d".into(), "o%2F".into()));
        for bad in ["c", "//o", "/c", "c/", "", "c/%00"] {
            assert_eq!(destination(bad).unwrap_err().code(), 412, "{bad}");
        }
    }
}
