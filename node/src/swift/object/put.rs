//! PUT of objects.
//!
//! Invariant: everything that can be refused without the body is refused before its first byte is asked for.
//! Invariant: a body that breaks off, or is too long, leaves nothing behind.

use std::sync::Arc;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, LAST_MODIFIED};
use http::{HeaderValue, Response, StatusCode};
use quarry_engine::object::{Committed, Condition, EtagMatch, ObjectPath, ObjectWriter, PutSpec};

use super::super::authorize::{Subject, Verb, authorize};
use super::super::body::{RequestBody, ResponseBody};
use super::super::error::{HTML, Result, SwiftError};
use super::super::headers::{Kind, check_metadata, flag, normalize_etag, object_headers, store_value, text};
use super::super::limits::Limits;
use super::super::{Api, Call, quota, timestamp};
use super::{content_type, expiry};

/// A PUT, judged by its headers.
#[derive(Debug)]
pub(crate) struct Upload {
    /// Announced length; `None` for a chunked body.
    pub(crate) length: Option<u64>,
    pub(crate) spec: PutSpec,
}

/// Store the body as an object.
pub(crate) async fn put(
    api: &Arc<Api>,
    call: &Call,
    path: &ObjectPath,
    body: &mut RequestBody,
) -> Result<Response<ResponseBody>> {
    authorize(api, call, Subject::object(path), Verb::Write).await?;
    let upload = parse(&call.headers, path, call.now, &api.limits)?;
    check_absent(api, call, path, &upload.spec.condition).await?;
    // Their questions go to whoever knows in one message.
    let fits = Box::pin(quota::check(api, call, path, upload.length));
    let writer = async { Ok(Box::pin(api.store.writer(path, upload.length)).await?) };
    let ((), writer) = tokio::try_join!(biased; fits, writer)?;
    let committed = fill(api, Box::new(writer), upload, body).await?;
    Ok(created(&committed, &hex::encode(committed.md5)))
}

/// Judge a PUT by its headers.
pub(crate) fn parse(headers: &HeaderMap, path: &ObjectPath, now: u64, limits: &Limits) -> Result<Upload> {
    let length = body_length(headers)?;
    if length.is_some_and(|length| length > limits.max_file_size) {
        return Err(SwiftError::plain(413, "Your request is too large."));
    }
    let delete_at = expiry::parse(headers, now)?;
    check_metadata(headers, Kind::Object, limits)?;
    check_manifest_header(headers)?;
    let condition = condition(headers)?;
    let expect_md5 = match text(headers, "etag").map(normalize_etag).filter(|etag| !etag.is_empty()) {
        None => None,
        Some(etag) => Some(parse_md5(etag).ok_or_else(|| SwiftError::status(422))?),
    };
    let spec = PutSpec {
        content_type: content_type_of(headers, &path.object)?,
        delete_at,
        headers: object_headers(headers),
        expect_md5,
        condition,
        ..PutSpec::default()
    };
    Ok(Upload { length, spec })
}

/// The announced length; `None` for a chunked body; 411 when neither is told.
pub(crate) fn body_length(headers: &HeaderMap) -> Result<Option<u64>> {
    if let Some(coding) = headers.get("transfer-encoding") {
        let coding = coding.to_str().unwrap_or("");
        if coding.contains(',') {
            return Err(SwiftError::plain(501, "Unsupported Transfer-Coding header value"));
        }
        if !coding.trim().eq_ignore_ascii_case("chunked") {
            return Err(SwiftError::plain(400, "Invalid Transfer-Encoding header value"));
        }
        return Ok(None);
    }
    match headers.get(CONTENT_LENGTH) {
        None => Err(SwiftError::plain(411, "Missing Content-Length header.")),
        Some(length) => {
            let length = length.to_str().ok().and_then(|length| length.parse().ok());
            length.map(Some).ok_or_else(|| SwiftError::plain(400, "Invalid Content-Length header value"))
        }
    }
}

fn condition(headers: &HeaderMap) -> Result<Condition> {
    let Some(value) = headers.get("if-none-match") else { return Ok(Condition::default()) };
    if value.as_bytes().trim_ascii() != b"*" {
        return Err(SwiftError::plain(400, "If-None-Match only supports *"));
    }
    Ok(Condition { if_none_match: Some(EtagMatch::Any), ..Condition::default() })
}

/// `X-Object-Manifest` names a container and a prefix.
fn check_manifest_header(headers: &HeaderMap) -> Result<()> {
    let Some(value) = headers.get("x-object-manifest") else { return Ok(()) };
    let value = store_value(value);
    let valid = value.split_once('/').is_some_and(|(container, prefix)| {
        !container.is_empty() && !prefix.is_empty() && !prefix.starts_with('/')
    }) && !value.contains(['?', '&']);
    if valid {
        Ok(())
    } else {
        Err(SwiftError::message(400, "X-Object-Manifest must be in the format container/prefix"))
    }
}

/// The content type given, or guessed from the name.
pub(crate) fn content_type_of(headers: &HeaderMap, name: &str) -> Result<String> {
    match headers.get(CONTENT_TYPE) {
        Some(given) if !given.is_empty() && !flag(headers, "x-detect-content-type") => {
            let given = std::str::from_utf8(given.as_bytes());
            given.map(str::to_owned).map_err(|_| SwiftError::plain(400, "Invalid Content-Type"))
        }
        _ => Ok(content_type::guess(name).to_owned()),
    }
}

fn parse_md5(etag: &str) -> Option<[u8; 16]> {
    let mut md5 = [0; 16];
    hex::decode_to_slice(etag, &mut md5).ok().map(|()| md5)
}

/// Refuse early what `If-None-Match: *` will refuse at the end, and save the client its body.
pub(crate) async fn check_absent(
    api: &Api,
    call: &Call,
    path: &ObjectPath,
    condition: &Condition,
) -> Result<()> {
    if condition.if_none_match.is_some()
        && let Some(info) = api.store.object(path).await?
        && info.delete_at.is_none_or(|at| at > call.now)
    {
        return Err(SwiftError::status(412));
    }
    Ok(())
}

/// Stream a body into the store.
pub(crate) async fn store(
    api: &Api,
    path: &ObjectPath,
    upload: Upload,
    body: &mut RequestBody,
) -> Result<Committed> {
    let writer = Box::new(api.store.writer(path, upload.length).await?);
    fill(api, writer, upload, body).await
}

async fn fill(
    api: &Api,
    mut writer: Box<ObjectWriter>,
    upload: Upload,
    body: &mut RequestBody,
) -> Result<Committed> {
    let mut size: u64 = 0;
    while let Some(piece) = body.next().await {
        let Ok(piece) = piece else {
            return Err(SwiftError::status(499));
        };
        size += piece.len() as u64;
        if size > api.limits.max_file_size {
            return Err(SwiftError::plain(413, "Your request is too large."));
        }
        writer.write(piece).await?;
    }
    if upload.length.is_some_and(|length| length != size) {
        return Err(SwiftError::status(499));
    }
    Ok(writer.commit(upload.spec).await?)
}

/// The answer to a successful PUT.
pub(crate) fn created(committed: &Committed, etag: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HTML);
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    headers.insert(LAST_MODIFIED, timestamp::http_date(committed.timestamp));
    if let Ok(etag) = HeaderValue::from_str(etag) {
        headers.insert(ETAG, etag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(pairs: &[(&'static str, &'static str)]) -> Result<Upload> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        let path = ObjectPath { account: "a".into(), container: "c".into(), object: "o.txt".into() };
        parse(&headers, &path, 1000, &Limits::default())
    }

    fn code(pairs: &[(&'static str, &'static str)]) -> u16 {
        judge(pairs).unwrap_err().code()
    }

    #[test]
    fn the_length_must_be_told_and_fit() {
        assert_eq!(code(&[]), 411);
        assert_eq!(code(&[("content-length", "x")]), 400);
        assert_eq!(code(&[("transfer-encoding", "gzip,chunked")]), 501);
        assert_eq!(code(&[("transfer-encoding", "gzip")]), 400);
        assert_eq!(judge(&[("transfer-encoding", "chunked")]).unwrap().length, None);
        assert_eq!(judge(&[("content-length", "5368709122")]).unwrap().length, Some(5_368_709_122));
        assert_eq!(code(&[("content-length", "5368709123")]), 413);
    }

    #[test]
    fn headers_are_judged_before_the_body() {
        const LENGTH: (&str, &str) = ("content-length", "1");
        assert_eq!(code(&[LENGTH, ("etag", "nonsense")]), 422);
        assert_eq!(code(&[LENGTH, ("if-none-match", "x")]), 400);
        assert_eq!(code(&[LENGTH, ("x-object-manifest", "nothing")]), 400);
        assert_eq!(code(&[LENGTH, ("x-object-manifest", "c//p")]), 400);
        assert_eq!(code(&[LENGTH, ("x-object-manifest", "c/p?q")]), 400);
        assert_eq!(code(&[LENGTH, ("x-delete-at", "1")]), 400);
        let upload = judge(&[
            LENGTH,
            ("etag", "\"900150983cd24fb0d6963f7d28e17f72\""),
            ("if-none-match", "*"),
            ("x-object-manifest", "c/p"),
            ("x-object-meta-a", "1"),
        ])
        .unwrap();
        assert!(upload.spec.expect_md5.is_some());
        assert_eq!(upload.spec.condition.if_none_match, Some(EtagMatch::Any));
        assert_eq!(upload.spec.content_type, "text/plain");
        assert_eq!(upload.spec.headers.len(), 2);
    }
}
