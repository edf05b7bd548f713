//! Bulk delete: many objects and containers in one request, and a report.
//!
//! Invariant: objects go before containers, so that a list may name a container with all its objects.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response};
use percent_encoding::percent_decode;
use quarry_engine::object::ObjectPath;

use super::authorize::{Subject, Verb, authorize, quote};
use super::body::{Collect, RequestBody, ResponseBody};
use super::error::{Result, SwiftError, status_line};
use super::headers::text;
use super::listing::Format;
use super::object::delete::remove;
use super::object::put::body_length;
use super::report::{self, Fact};
use super::{Api, Call, Limits, container};

/// What became of the deletions so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    deleted: u64,
    absent: u64,
    failed: Vec<(String, String)>,
    /// A failure was the server's.
    server_failed: bool,
    aborted: Option<SwiftError>,
}

impl Tally {
    /// Delete one object (`container/object`) or container and count it.
    pub(crate) async fn remove(&mut self, api: &Arc<Api>, call: &Call, account: &Arc<str>, name: &str) {
        let result = Box::pin(remove_one(api, call, account, name)).await;
        self.count(name, &result);
    }

    /// Count one result.
    pub(crate) fn count(&mut self, name: &str, result: &Result<()>) {
        match result {
            Ok(()) => self.deleted += 1,
            Err(error) if error.code() == 404 => self.absent += 1,
            Err(error) => {
                self.server_failed |= error.code() >= 500;
                let why = if error.code() == 400 { error.text() } else { None };
                self.failed.push((quote(name), why.map_or_else(|| error.status_line(), str::to_owned)));
            }
        }
    }

    /// Stop with an error.
    pub(crate) fn abort(&mut self, error: SwiftError) {
        self.aborted = Some(error);
    }

    /// Whether so much failed that going on is pointless; then the tally is closed.
    pub(crate) fn is_hopeless(&mut self, limits: &Limits) -> bool {
        if self.failed.len() >= limits.bulk_max_failed_deletes && self.aborted.is_none() {
            self.abort(SwiftError::message(400, "Max delete failures exceeded"));
        }
        self.aborted.is_some()
    }

    fn outcome(&self) -> (String, String) {
        if let Some(error) = &self.aborted {
            return (error.status_line(), error.text().unwrap_or_default().to_owned());
        }
        if !self.failed.is_empty() {
            let status = if self.server_failed { "502 Bad Gateway".to_owned() } else { status_line(400) };
            return (status, String::new());
        }
        if self.deleted + self.absent == 0 {
            return (status_line(400), "Invalid bulk delete.".to_owned());
        }
        (status_line(200), String::new())
    }
}

/// Delete what the body names, one per line.
pub(crate) async fn run(
    api: &Arc<Api>,
    call: &Call,
    account: &Arc<str>,
    body: &mut RequestBody,
) -> Result<Response<ResponseBody>> {
    let format = Format::of_report(&call.headers)?;
    let mut tally = Tally::default();
    match names(api, call, body).await {
        Err(error) => tally.abort(error),
        Ok(names) => {
            let (objects, containers): (Vec<_>, Vec<_>) = names
                .iter()
                .partition(|name| name.as_ref().is_ok_and(|name| name.trim_matches('/').contains('/')));
            for name in objects.into_iter().chain(containers) {
                match name {
                    Ok(name) => tally.remove(api, call, account, name).await,
                    Err(raw) => tally.count(raw, &Err(SwiftError::status(412))),
                }
                if tally.is_hopeless(&api.limits) {
                    break;
                }
            }
        }
    }
    Ok(answer(format, &tally))
}

/// The report of a tally.
pub(crate) fn answer(format: Format, tally: &Tally) -> Response<ResponseBody> {
    let (status, words) = tally.outcome();
    let facts = [
        ("Response Status", Fact::Text(status)),
        ("Response Body", Fact::Text(words)),
        ("Number Deleted", Fact::Number(tally.deleted)),
        ("Number Not Found", Fact::Number(tally.absent)),
    ];
    let mut text = report::render(format, &facts, &tally.failed, "delete");
    if matches!(format, Format::Xml | Format::TextXml) {
        text.insert_str(0, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    }
    let body = Bytes::from(text);
    let mut response = Response::new(ResponseBody::empty());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.name()));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = ResponseBody::Full(body);
    response
}

/// The names in the body; a name that is not UTF-8, or has a NUL, is given back as an error.
async fn names(
    api: &Api,
    call: &Call,
    body: &mut RequestBody,
) -> Result<Vec<std::result::Result<String, String>>> {
    let limits = &api.limits;
    if text(&call.headers, "content-type")
        .is_some_and(|given| !given.is_empty() && !given.starts_with("text/plain"))
    {
        return Err(SwiftError::status(406));
    }
    body_length(&call.headers).map_err(|_| SwiftError::status(411))?;
    // Percent-encoding triples a name; a line break follows it.
    let longest = (limits.max_object_name_length + limits.max_container_name_length + 2) * 3 + 2;
    let sent =
        body.collect(limits.bulk_max_deletes.saturating_mul(longest)).await.map_err(|why| match why {
            Collect::TooLarge => SwiftError::status(413),
            Collect::Broken => SwiftError::status(499),
        })?;
    let mut names = Vec::new();
    for line in sent.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
        if names.len() >= limits.bulk_max_deletes {
            let most = limits.bulk_max_deletes;
            return Err(SwiftError::message(413, format!("Maximum Bulk Deletes: {most} per request")));
        }
        if line.len() > longest {
            return Err(SwiftError::message(400, "Invalid File Name"));
        }
        let name = percent_decode(line).decode_utf8();
        names.push(match name {
            Ok(name) if !name.contains('\0') => Ok(name.into_owned()),
            _ => Err(String::from_utf8_lossy(line).into_owned()),
        });
    }
    Ok(names)
}

async fn remove_one(api: &Arc<Api>, call: &Call, account: &Arc<str>, name: &str) -> Result<()> {
    match name.trim_start_matches('/').split_once('/') {
        Some((container, object)) if !object.is_empty() => {
            let path = ObjectPath {
                account: Arc::clone(account),
                container: container.into(),
                object: object.into(),
            };
            authorize(api, call, Subject::object(&path), Verb::Write).await?;
            remove(api, &path, call.now).await.map(drop)
        }
        _ => {
            let name = name.trim_matches('/');
            if name.is_empty() {
                return Err(SwiftError::status(404));
            }
            authorize(api, call, Subject::container(account, name), Verb::Write).await?;
            container::delete(api, account, name).await.map(drop)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_is_the_worst_that_happened() {
        let mut tally = Tally::default();
        assert_eq!(tally.outcome(), ("400 Bad Request".into(), "Invalid bulk delete.".into()));
        tally.count("c/o", &Err(SwiftError::status(404)));
        assert_eq!(tally.outcome().0, "200 OK");
        tally.count("c/o", &Err(SwiftError::status(409)));
        assert_eq!(tally.outcome().0, "400 Bad Request");
        assert_eq!(tally.failed, [("c/o".to_owned(), "409 Conflict".to_owned())]);
        tally.count("c/o", &Err(SwiftError::status(503)));
        assert_eq!(tally.outcome().0, "502 Bad Gateway");
    }
}
