//! Requests on containers.

use std::sync::Arc;

use http::header::{ACCEPT_RANGES, HeaderMap, HeaderName, LAST_MODIFIED};
use http::{HeaderValue, Response, StatusCode};
use quarry_engine::object::{Container, Deleted, Error, Headers, IndexPolicy, Made};

use super::account::{listing_response, simple};
use super::authorize::{Grant, Subject, Verb, authorize};
use super::body::ResponseBody;
use super::error::{Result, SwiftError};
use super::headers::{Changes, Kind, add_stored, check_merged, check_metadata, insert, number, text};
use super::listing::{Format, ListingQuery, render_objects};
use super::route::Action;
use super::{Api, Call, acl, cors, quota, timestamp};

/// Whether the listing decides what stands (`strict`), or follows what the devices have (`eventual`).
const INDEX_POLICY: &str = "x-index-policy";
const METHODS: &str = "GET, HEAD, PUT, POST, DELETE, OPTIONS";

/// Act on a container.
pub(crate) async fn run(
    api: &Arc<Api>,
    call: &Call,
    account: &str,
    container: &str,
    action: Action,
) -> Result<Response<ResponseBody>> {
    match action {
        Action::Get(query) => get(api, call, account, container, &query).await,
        Action::Head(format) => head(api, call, account, container, format).await,
        Action::Put => put(api, call, account, container).await,
        Action::Post => post(api, call, account, container).await,
        Action::Delete => {
            authorize(api, call, Subject::container(account, container), Verb::Write).await?;
            delete(api, account, container).await
        }
        Action::Options => cors::preflight(api, call, Some((account, container)), METHODS).await,
    }
}

async fn look(api: &Api, call: &Call, account: &str, container: &str) -> Result<(Grant, Container)> {
    let grant = authorize(api, call, Subject::container(account, container), Verb::Read).await?;
    let found = api.store.container(account, container).await?;
    found.map(|found| (grant, found)).ok_or_else(|| SwiftError::status(404))
}

async fn get(
    api: &Api,
    call: &Call,
    account: &str,
    container: &str,
    query: &ListingQuery,
) -> Result<Response<ResponseBody>> {
    let (grant, found) = look(api, call, account, container).await?;
    let rows = api.store.list_objects(account, container, &query.listing).await?;
    let mut response =
        listing_response(render_objects(container, &rows, query.format), query.format, query.varies);
    describe(api, response.headers_mut(), &found, grant);
    Ok(response)
}

async fn head(
    api: &Api,
    call: &Call,
    account: &str,
    container: &str,
    format: Format,
) -> Result<Response<ResponseBody>> {
    let (grant, found) = look(api, call, account, container).await?;
    let mut response = listing_response(String::new(), format, false);
    *response.status_mut() = StatusCode::NO_CONTENT;
    describe(api, response.headers_mut(), &found, grant);
    Ok(response)
}

async fn put(api: &Api, call: &Call, account: &str, container: &str) -> Result<Response<ResponseBody>> {
    let grant = authorize(api, call, Subject::container(account, container), Verb::Write).await?;
    let changes = parse_changes(api, call, grant)?;
    let named = text(&call.headers, "x-storage-policy").unwrap_or("").trim();
    let policies = api.store.policies();
    let policy = policies
        .named(named)
        .ok_or_else(|| SwiftError::plain(400, format!("Invalid X-Storage-Policy '{named}'")))?;
    if !named.is_empty() && policy.deprecated {
        return Err(SwiftError::plain(400, format!("Storage Policy '{}' is deprecated", policy.name)));
    }
    let index = index_policy(&call.headers)?;
    if (!named.is_empty() || index.is_some())
        && let Some(found) = api.store.container(account, container).await?
    {
        if !named.is_empty() && found.policy != policy.index {
            return Err(SwiftError::status(409));
        }
        may_become(&found, index)?;
    }
    let limits = &api.limits;
    let edit = |current: Option<&Container>| {
        let before = current.map_or_else(Headers::new, |current| current.headers.clone());
        merged(changes.clone(), before, limits)
    };
    match api.store.put_container_with(account, container, policy.index, index, edit).await {
        // The account is deleted and its containers are being reaped.
        Err(Error::NoAccount) => Err(SwiftError::status(503)),
        made => Ok(simple(if made? == Made::Created { 201 } else { 202 })),
    }
}

async fn post(api: &Api, call: &Call, account: &str, container: &str) -> Result<Response<ResponseBody>> {
    let grant = authorize(api, call, Subject::container(account, container), Verb::Write).await?;
    let changes = parse_changes(api, call, grant)?;
    let (limits, index) = (&api.limits, index_policy(&call.headers)?);
    if index.is_some()
        && let Some(found) = api.store.container(account, container).await?
    {
        may_become(&found, index)?;
    }
    let edit = |current: &Container| merged(changes.clone(), current.headers.clone(), limits);
    api.store.post_container_with(account, container, index, edit).await?;
    Ok(simple(204))
}

/// What shall hold in a container while its index group has no leader, if the request says.
fn index_policy(headers: &HeaderMap) -> Result<Option<IndexPolicy>> {
    if !headers.contains_key(INDEX_POLICY) {
        return Ok(None);
    }
    match text(headers, INDEX_POLICY).map(str::trim) {
        Some("strict") => Ok(Some(IndexPolicy::Strict)),
        Some("eventual") => Ok(Some(IndexPolicy::Eventual)),
        _ => Err(SwiftError::plain(400, "Invalid X-Index-Policy; allowed: strict, eventual")),
    }
}

/// What is eventual stays so.
fn may_become(found: &Container, index: Option<IndexPolicy>) -> Result<()> {
    match (found.index, index) {
        (IndexPolicy::Eventual, Some(IndexPolicy::Strict)) => Err(SwiftError::status(409)),
        _ => Ok(()),
    }
}

/// Remove a container; the caller has been authorised.
pub(crate) async fn delete(api: &Api, account: &str, container: &str) -> Result<Response<ResponseBody>> {
    match api.store.delete_container(account, container).await? {
        Deleted::Gone => Ok(simple(204)),
        Deleted::Absent => Err(SwiftError::status(404)),
        Deleted::NotEmpty => Err(SwiftError::status(409)),
    }
}

fn merged(
    changes: Changes,
    before: Headers,
    limits: &super::Limits,
) -> quarry_engine::object::Result<Headers> {
    let after = changes.apply(before);
    check_merged(&after, Kind::Container, limits)
        .map_err(|error| Error::Refused(error.text().unwrap_or_default().to_owned()))?;
    Ok(after)
}

fn parse_changes(api: &Api, call: &Call, grant: Grant) -> Result<Changes> {
    let mut changes = Changes::parse(&call.headers, Kind::Container, grant.owner);
    for (name, write) in [("x-container-read", false), ("x-container-write", true)] {
        if !call.headers.contains_key(name) {
            continue;
        }
        let list =
            text(&call.headers, name).ok_or_else(|| SwiftError::message(400, "ACL must be valid UTF-8"))?;
        let list = acl::clean(list, write).map_err(|why| SwiftError::message(400, why))?;
        if grant.owner {
            changes.set(name, Some(list).filter(|list| !list.is_empty()));
        }
    }
    check_metadata(&call.headers, Kind::Container, &api.limits)?;
    quota::check_container_headers(&call.headers)?;
    Ok(changes)
}

/// Headers that tell about the container.
fn describe(api: &Api, headers: &mut HeaderMap, found: &Container, grant: Grant) {
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(LAST_MODIFIED, timestamp::http_date(found.changed));
    headers.insert(HeaderName::from_static("x-container-object-count"), number(found.objects));
    headers.insert(HeaderName::from_static("x-container-bytes-used"), number(found.bytes));
    headers.insert(HeaderName::from_static("x-timestamp"), timestamp::normal(found.created));
    headers.insert(HeaderName::from_static("x-put-timestamp"), timestamp::normal(found.changed));
    if let Some(policy) = api.store.policies().get(found.policy) {
        insert(headers, HeaderName::from_static("x-storage-policy"), &policy.name);
    }
    let index = match found.index {
        IndexPolicy::Strict => "strict",
        IndexPolicy::Eventual => "eventual",
    };
    headers.insert(HeaderName::from_static(INDEX_POLICY), HeaderValue::from_static(index));
    add_stored(headers, &found.headers, grant.owner);
}
