//! Cross-origin requests: pre-flight answers and the headers that browsers want to see.

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ALLOW, HeaderMap, VARY,
};
use http::{HeaderValue, Response};
use quarry_engine::object::Headers;

use super::body::ResponseBody;
use super::error::{Result, SwiftError};
use super::headers::{insert, text};
use super::{Api, Call};

const ORIGIN: &str = "x-container-meta-access-control-allow-origin";
const EXPOSE: &str = "x-container-meta-access-control-expose-headers";
const MAX_AGE: &str = "x-container-meta-access-control-max-age";

/// Headers every browser may see of an answer.
const EXPOSED: &str = "cache-control, content-language, content-type, expires, last-modified, pragma, etag, \
                       x-timestamp, x-trans-id, x-openstack-request-id";

/// Answer an OPTIONS request on a container or one of its objects.
pub(crate) async fn preflight(
    api: &Api,
    call: &Call,
    container: Option<(&str, &str)>,
    methods: &'static str,
) -> Result<Response<ResponseBody>> {
    let mut response = Response::new(ResponseBody::empty());
    let headers = response.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(methods));
    headers.insert("content-length", HeaderValue::from_static("0"));
    let (Some(origin), Some((account, name))) = (text(&call.headers, "origin"), container) else {
        return Ok(response);
    };
    let stored = api.store.container(account, name).await?.map(|found| found.headers).unwrap_or_default();
    let wanted = text(&call.headers, "access-control-request-method").unwrap_or("");
    if !allows(&stored, origin) || !methods.split(", ").any(|method| method == wanted) {
        return Err(SwiftError::status(401).with(ALLOW, HeaderValue::from_static(methods)));
    }
    let mut varies = allow_origin(headers, &stored, origin);
    if let Some(age) = stored.get(MAX_AGE) {
        insert(headers, ACCESS_CONTROL_MAX_AGE, age);
    }
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
    if let Some(names) = call.headers.get("access-control-request-headers") {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
        varies.push("Access-Control-Request-Headers");
    }
    add_vary(headers, &varies);
    Ok(response)
}

/// Add what a cross-origin request may see to its answer.
pub(crate) async fn expose(
    api: &Api,
    call: &Call,
    account: &str,
    container: &str,
    result: Result<Response<ResponseBody>>,
) -> Response<ResponseBody> {
    let mut response = result.unwrap_or_else(SwiftError::into_response);
    let Some(origin) = text(&call.headers, "origin") else { return response };
    let Ok(found) = api.store.container(account, container).await else { return response };
    let stored = found.map(|found| found.headers).unwrap_or_default();
    if api.options.strict_cors_mode && !allows(&stored, origin) {
        return response;
    }
    let headers = response.headers_mut();
    let mut exposed = EXPOSED.to_owned();
    for name in headers.keys().map(http::HeaderName::as_str) {
        if name.starts_with("x-container-meta") || name.starts_with("x-object-meta") {
            exposed.push_str(", ");
            exposed.push_str(name);
        }
    }
    for name in stored.get(EXPOSE).map_or("", String::as_str).split_whitespace() {
        exposed.push_str(", ");
        exposed.push_str(&name.to_ascii_lowercase());
    }
    insert(headers, ACCESS_CONTROL_EXPOSE_HEADERS, &exposed);
    let varies = allow_origin(headers, &stored, origin);
    add_vary(headers, &varies);
    response
}

fn allows(stored: &Headers, origin: &str) -> bool {
    stored
        .get(ORIGIN)
        .is_some_and(|list| list.split_whitespace().any(|allowed| allowed == "*" || allowed == origin))
}

fn allow_origin(headers: &mut HeaderMap, stored: &Headers, origin: &str) -> Vec<&'static str> {
    if stored.get(ORIGIN).is_some_and(|list| list.trim() == "*") {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        Vec::new()
    } else {
        insert(headers, ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        vec!["Origin"]
    }
}

fn add_vary(headers: &mut HeaderMap, varies: &[&str]) {
    let before = text(headers, "vary").unwrap_or("").to_owned();
    let all: Vec<&str> =
        Some(before.as_str()).filter(|v| !v.is_empty()).into_iter().chain(varies.iter().copied()).collect();
    if !all.is_empty() {
        insert(headers, VARY, &all.join(", "));
    }
}
