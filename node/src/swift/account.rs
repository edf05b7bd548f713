//! Requests on accounts.
//!
//! Invariant: an account that was never written to is answered as an empty one; nothing is created by reading.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, VARY};
use http::{HeaderValue, Response, StatusCode};
use quarry_engine::object::{Account, Deleted, Error, Headers, Made, Share};

use super::acl::AccountAcl;
use super::authorize::{Grant, Subject, Verb, authorize};
use super::body::ResponseBody;
use super::error::{HTML, Result, SwiftError, page};
use super::headers::{Changes, Kind, add_stored, check_merged, check_metadata, number, text};
use super::listing::{Format, ListingQuery, render_containers};
use super::route::Action;
use super::{Api, Call, cors, quota, timestamp};

const METHODS: &str = "GET, HEAD, PUT, POST, DELETE, OPTIONS";
const ACCESS: &str = "x-account-access-control";

/// Act on an account.
pub(crate) async fn run(
    api: &Arc<Api>,
    call: &Call,
    account: &str,
    action: Action,
) -> Result<Response<ResponseBody>> {
    match action {
        Action::Get(query) => get(api, call, account, &query).await,
        Action::Head(format) => head(api, call, account, format).await,
        Action::Put => put(api, call, account).await,
        Action::Post => post(api, call, account).await,
        Action::Delete => delete(api, call, account).await,
        Action::Options => cors::preflight(api, call, None, METHODS).await,
    }
}

/// The account as reading requests see it.
async fn look(api: &Api, call: &Call, account: &str) -> Result<(Grant, Option<Account>)> {
    let grant = authorize(api, call, Subject::account(account), Verb::Read).await?;
    match api.store.account(account).await? {
        Some(found) if found.deleted => Err(SwiftError::status(410)),
        found => Ok((grant, found)),
    }
}

async fn get(api: &Api, call: &Call, account: &str, query: &ListingQuery) -> Result<Response<ResponseBody>> {
    let (grant, found) = look(api, call, account).await?;
    let rows = match &found {
        Some(_) => match api.store.list_containers(account, &query.listing).await {
            Err(Error::NoAccount) => Vec::new(),
            rows => rows?,
        },
        None => Vec::new(),
    };
    let text = render_containers(account, &rows, query.format, &api.store.policies());
    let mut response = listing_response(text, query.format, query.varies);
    describe(api, response.headers_mut(), found.as_ref(), grant);
    Ok(response)
}

async fn head(api: &Api, call: &Call, account: &str, format: Format) -> Result<Response<ResponseBody>> {
    let (grant, found) = look(api, call, account).await?;
    let mut response = listing_response(String::new(), format, false);
    *response.status_mut() = StatusCode::NO_CONTENT;
    describe(api, response.headers_mut(), found.as_ref(), grant);
    Ok(response)
}

async fn put(api: &Api, call: &Call, account: &str) -> Result<Response<ResponseBody>> {
    let mut changes = parse_changes(api, call)?;
    authorize(api, call, Subject::account(account), Verb::Manage).await?;
    quota::change_account(call, &api.store.policies(), &mut changes)?;
    if !api.options.allow_account_management {
        return Err(SwiftError::status(405));
    }
    let made = change(api, account, changes).await?;
    Ok(simple(if made == Made::Created { 201 } else { 202 }))
}

async fn post(api: &Api, call: &Call, account: &str) -> Result<Response<ResponseBody>> {
    let mut changes = parse_changes(api, call)?;
    authorize(api, call, Subject::account(account), Verb::Write).await?;
    quota::change_account(call, &api.store.policies(), &mut changes)?;
    change(api, account, changes).await?;
    Ok(simple(204))
}

async fn delete(api: &Api, call: &Call, account: &str) -> Result<Response<ResponseBody>> {
    authorize(api, call, Subject::account(account), Verb::Manage).await?;
    if !api.options.allow_account_management {
        return Err(SwiftError::status(405));
    }
    match api.store.delete_account(account).await? {
        Deleted::Gone => Ok(simple(204)),
        Deleted::Absent => Err(SwiftError::status(404)),
        Deleted::NotEmpty => Err(SwiftError::status(409)),
    }
}

/// What a request wants to change, checked by itself. Only owners get as far as writing to an account.
fn parse_changes(api: &Api, call: &Call) -> Result<Changes> {
    let mut changes = Changes::parse(&call.headers, Kind::Account, true);
    if call.headers.contains_key(ACCESS) {
        let input = text(&call.headers, ACCESS).unwrap_or("\u{fffd}");
        let list = AccountAcl::parse(input).map_err(|why| {
            let words = format!("X-Account-Access-Control invalid: {why}\n\nInput: {input}\n");
            SwiftError::message(400, words)
                .with(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"))
        })?;
        changes.set(ACCESS, Some(list).filter(|list| !list.is_empty()).map(|list| list.format()));
    }
    check_metadata(&call.headers, Kind::Account, &api.limits)?;
    Ok(changes)
}

async fn change(api: &Api, account: &str, changes: Changes) -> Result<Made> {
    let limits = &api.limits;
    let edit = |current: Option<&Account>| {
        let before = current.map_or_else(Headers::new, |current| current.headers.clone());
        let after = changes.clone().apply(before);
        check_merged(&after, Kind::Account, limits)
            .map_err(|error| Error::Refused(error.text().unwrap_or_default().to_owned()))?;
        Ok(after)
    };
    match api.store.put_account(account, edit).await {
        Err(Error::NoAccount) => Err(SwiftError::status(410)),
        made => Ok(made?),
    }
}

/// Headers that tell about the account.
fn describe(api: &Api, headers: &mut HeaderMap, found: Option<&Account>, grant: Grant) {
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let now = timestamp::now_precise();
    let (containers, objects, bytes, created, changed) = found.map_or((0, 0, 0, now, now), |found| {
        (found.containers, found.objects, found.bytes, found.created, found.changed)
    });
    headers.insert(HeaderName::from_static("x-account-container-count"), number(containers));
    headers.insert(HeaderName::from_static("x-account-object-count"), number(objects));
    headers.insert(HeaderName::from_static("x-account-bytes-used"), number(bytes));
    headers.insert(HeaderName::from_static("x-timestamp"), timestamp::normal(created));
    headers.insert(HeaderName::from_static("x-put-timestamp"), timestamp::normal(changed));
    let Some(found) = found else { return };
    for policy in api.store.policies().iter() {
        let share = found.policies.iter().find(|(index, _)| *index == policy.index).map(|(_, share)| *share);
        // The first one is told of always, others where there is something.
        let Some(share) = share.or_else(|| (policy.index == 0).then(Share::default)) else { continue };
        let prefix = format!("x-account-storage-policy-{}", policy.name.to_ascii_lowercase());
        for (what, value) in [
            ("container-count", share.containers),
            ("object-count", share.objects),
            ("bytes-used", share.bytes),
        ] {
            if let Ok(name) = HeaderName::from_bytes(format!("{prefix}-{what}").as_bytes()) {
                headers.insert(name, number(value));
            }
        }
    }
    add_stored(headers, &found.headers, grant.owner);
}

/// A listing's answer: 204 when there is nothing to say.
pub(crate) fn listing_response(text: String, format: Format, varies: bool) -> Response<ResponseBody> {
    let status = if text.is_empty() { StatusCode::NO_CONTENT } else { StatusCode::OK };
    let body = Bytes::from(text);
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, format.content_type());
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    if varies {
        headers.insert(VARY, HeaderValue::from_static("Accept"));
    }
    *response.body_mut() = ResponseBody::Full(body);
    response
}

/// An answer that is nothing but its status.
pub(crate) fn simple(status: u16) -> Response<ResponseBody> {
    let body = page(status);
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HTML);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = ResponseBody::Full(body);
    response
}
