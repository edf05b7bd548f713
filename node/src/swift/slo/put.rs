//! Storing static large objects: every segment is looked at, then the manifest is stored.
//!
//! Invariant: a stored manifest's segments existed, with these sizes and ETags, when it was stored.
//! Invariant: what it stands for is at most [`MAX_TOTAL`] bytes, and shown in the listing alone: its segments are counted where they are.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, ETAG as ETAG_HEADER, HeaderMap, LAST_MODIFIED, TRANSFER_ENCODING,
};
use http::{HeaderValue, Response, StatusCode};
use quarry_engine::clock::Timestamp;
use quarry_engine::object::{ListedAs, ObjectPath};

use super::super::authorize::{Subject, Verb, authorize, quote};
use super::super::body::{Collect, RequestBody, ResponseBody};
use super::super::error::{Result, SwiftError, reason, status_line};
use super::super::headers::{normalize_etag, number, text};
use super::super::listing::Format;
use super::super::object::get::{self, Nature};
use super::super::object::put::{self, body_length, created};
use super::super::object::ranges;
use super::super::report::{self, Fact};
use super::super::route::View;
use super::super::{Api, Call, quota, timestamp};
use super::manifest::{self, Stored, StoredObject, Wanted};
use super::{ETAG, SIZE};

/// Most bytes that a manifest may stand for: four times as many can still be added up. Nested manifests come to any number.
const MAX_TOTAL: u64 = 1 << 60;

/// Store a manifest sent as the body.
pub(crate) async fn put(
    api: &Arc<Api>,
    call: &Call,
    path: ObjectPath,
    heartbeat: bool,
    body: &mut RequestBody,
) -> Result<Response<ResponseBody>> {
    if call.headers.contains_key("x-copy-from") {
        return Err(SwiftError::status(405));
    }
    authorize(api, call, Subject::object(&path), Verb::Write).await?;
    let length = body_length(&call.headers)?;
    let most = api.limits.slo_max_manifest_size;
    let too_large = || SwiftError::message(413, format!("Manifest File > {most} bytes"));
    if length.is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    let mut probe = call.headers.clone();
    probe.remove(ETAG_HEADER);
    let judged = put::parse(&probe, &path, call.now, &api.limits)?;
    put::check_absent(api, call, &path, &judged.spec.condition).await?;
    quota::check(api, call, &path, length).await?;
    let sent = body.collect(most).await.map_err(|why| match why {
        Collect::TooLarge => too_large(),
        Collect::Broken => SwiftError::status(499),
    })?;
    let wanted = manifest::parse(&sent, (&path.container, &path.object))?;
    let objects = wanted.iter().filter(|segment| matches!(segment, Wanted::Object { .. })).count();
    if objects > api.limits.slo_max_segments {
        let most = api.limits.slo_max_segments;
        return Err(SwiftError::message(413, format!("Number of object-backed segments must be <= {most}")));
    }
    let format = Format::of_report(&call.headers).unwrap_or_default();
    let job = Job { api: Arc::clone(api), call: call.clone(), path, wanted, format };
    if heartbeat {
        return Ok(with_heartbeat(job));
    }
    match job.run().await? {
        Outcome::Stored(response) => Ok(response),
        Outcome::Problems(problems) => Ok(problem_answer(format, &problems)),
    }
}

/// A manifest that has been read, about to be checked against its segments and stored.
struct Job {
    api: Arc<Api>,
    call: Call,
    path: ObjectPath,
    wanted: Vec<Wanted>,
    format: Format,
}

enum Outcome {
    Stored(Response<ResponseBody>),
    /// Segments and what is wrong with them.
    Problems(Vec<(String, String)>),
}

/// What a segment's object looks like now.
#[derive(Debug, Clone)]
struct Seen {
    length: u64,
    etag: String,
    content_type: String,
    modified: Timestamp,
    sub_slo: bool,
}

impl Job {
    async fn run(self) -> Result<Outcome> {
        let mut seen: HashMap<&str, Result<Seen, u16>> = HashMap::new();
        let mut problems = Vec::new();
        let mut segments = Vec::with_capacity(self.wanted.len());
        let mut total: u64 = 0;
        for (index, wanted) in self.wanted.iter().enumerate() {
            let Wanted::Object { path, etag, size, range } = wanted else {
                if let Wanted::Data(bytes) = wanted {
                    total = total.saturating_add(bytes.len() as u64);
                    segments.push(Stored::data(bytes));
                }
                continue;
            };
            if !seen.contains_key(path.as_str()) {
                let look = self.look(path).await;
                seen.insert(path, look);
            }
            let now = match &seen[path.as_str()] {
                Ok(now) => now,
                Err(status) => {
                    problems.push((quote(path), status_line(*status)));
                    continue;
                }
            };
            let last = index + 1 == self.wanted.len();
            let (stored, length) = check(path, etag.as_deref(), *size, *range, last, now, &mut problems);
            total = total.saturating_add(length);
            segments.push(Stored::Object(stored));
        }
        if !problems.is_empty() {
            return Ok(Outcome::Problems(problems));
        }
        if total > MAX_TOTAL {
            return Err(SwiftError::message(400, format!("Large objects have at most {MAX_TOTAL} bytes")));
        }
        self.store(&segments, total).await.map(Outcome::Stored)
    }

    /// HEAD of a segment, with the caller's rights.
    async fn look(&self, path: &str) -> Result<Seen, u16> {
        let (container, object) = path.split_once('/').ok_or(404_u16)?;
        let path = ObjectPath {
            account: Arc::clone(&self.path.account),
            container: container.into(),
            object: object.into(),
        };
        let mut headers = HeaderMap::new();
        if let Some(referrer) = self.call.headers.get("referer") {
            headers.insert("referer", referrer.clone());
        }
        let call = Call { headers, ..self.call.clone_without_headers() };
        let fetched = Box::pin(get::fetch(&self.api, &call, &path, &View::default(), true)).await;
        let fetched = fetched.map_err(|error| error.code())?;
        let etag = text(&fetched.headers, "etag").map(normalize_etag).unwrap_or_default().to_owned();
        Ok(Seen {
            length: fetched.length,
            etag,
            content_type: fetched.info.content_type,
            modified: Timestamp(timestamp::ceil_seconds(fetched.info.timestamp) * 1_000_000),
            sub_slo: fetched.nature == Nature::Static,
        })
    }

    async fn store(&self, segments: &[Stored], total: u64) -> Result<Response<ResponseBody>> {
        let slo_etag = manifest::etag(segments);
        let claimed = text(&self.call.headers, "etag").map(normalize_etag).filter(|etag| !etag.is_empty());
        if claimed.is_some_and(|claimed| claimed != slo_etag) {
            return Err(SwiftError::status(422));
        }
        let body = Bytes::from(manifest::format(segments));
        let mut headers = self.call.headers.clone();
        headers.remove(ETAG_HEADER);
        headers.remove(TRANSFER_ENCODING);
        headers.insert(CONTENT_LENGTH, number(body.len() as u64));
        let mut upload = put::parse(&headers, &self.path, self.call.now, &self.api.limits)?;
        let spec = &mut upload.spec;
        spec.headers.insert("x-static-large-object".into(), "True".into());
        spec.headers.insert(ETAG.into(), slo_etag.clone());
        spec.headers.insert(SIZE.into(), total.to_string());
        spec.headers.remove("x-object-manifest");
        let md5 = hex::encode(<md5::Md5 as md5::Digest>::digest(&body));
        spec.listed = ListedAs {
            size: Some(total),
            etag: Some(format!("{md5}; slo_etag={slo_etag}")),
            content_type: None,
        };
        let mut body = RequestBody::Inner(ResponseBody::Full(body));
        let committed = put::store(&self.api, &self.path, upload, &mut body).await?;
        Ok(created(&committed, &format!("\"{slo_etag}\"")))
    }
}

/// Compare a segment with its object; what is wrong is added to `problems`.
fn check(
    path: &str,
    etag: Option<&str>,
    size: Option<u64>,
    range: Option<ranges::Spec>,
    last: bool,
    now: &Seen,
    problems: &mut Vec<(String, String)>,
) -> (StoredObject, u64) {
    let mut problem = |what: &str| problems.push((quote(path), what.to_owned()));
    let mut length = now.length;
    let mut stored_range = None;
    if let Some(spec) = range {
        match ranges::resolve(spec, now.length) {
            None => problem("Unsatisfiable Range"),
            Some(range) if range == (0..now.length) => {}
            Some(range) => {
                length = range.end - range.start;
                stored_range = Some(format!("{}-{}", range.start, range.end - 1));
            }
        }
    }
    if length < 1 && !last {
        problem("Too small; each segment must be at least 1 byte.");
    }
    if size.is_some_and(|size| size != now.length) {
        problem("Size Mismatch");
    }
    if etag.is_some_and(|etag| etag != now.etag) {
        problem("Etag Mismatch");
    }
    let stored = StoredObject {
        name: format!("/{path}"),
        bytes: now.length,
        hash: now.etag.clone(),
        content_type: now.content_type.clone(),
        last_modified: timestamp::iso(now.modified),
        range: stored_range,
        sub_slo: now.sub_slo,
    };
    (stored, length)
}

fn problem_answer(format: Format, problems: &[(String, String)]) -> Response<ResponseBody> {
    let body = Bytes::from(report::render(format, &[], problems, "upload"));
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.name()));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    *response.body_mut() = ResponseBody::Full(body);
    response
}

/// Answer 202 at once and send white space until the outcome is known.
fn with_heartbeat(job: Job) -> Response<ResponseBody> {
    let (format, pause) = (job.format, job.api.limits.yield_frequency);
    let work: BoxFuture<'static, Bytes> = async move { final_words(format, job.run().await) }.boxed();
    let beats = stream::unfold(Some(work), move |work| async move {
        let mut work = work?;
        match tokio::time::timeout(pause, &mut work).await {
            Ok(words) => Some((Ok(words), None)),
            Err(_) => Some((Ok(Bytes::from_static(b" ")), Some(work))),
        }
    });
    let stream = stream::once(std::future::ready(Ok(Bytes::from_static(b" ")))).chain(beats);
    let mut response = Response::new(ResponseBody::Stream { stream: Box::pin(stream), left: None });
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.name()));
    response
}

fn final_words(format: Format, outcome: Result<Outcome>) -> Bytes {
    let fact = |name: &'static str, text: &str| (name, Fact::Text(text.to_owned()));
    let failed = |status: u16, words: Option<&str>, problems: &[(String, String)]| {
        let (title, explanation) = reason(status);
        let standard = format!("{title}\n{explanation}");
        let facts = [
            fact("Response Status", &status_line(status)),
            fact("Response Body", words.unwrap_or(&standard)),
        ];
        report::render(format, &facts, problems, "upload")
    };
    let report = match outcome {
        Ok(Outcome::Stored(response)) => {
            let header = |name| text(response.headers(), name).unwrap_or_default();
            let facts = [
                fact("Response Status", &status_line(201)),
                fact("Etag", header("etag")),
                fact("Last Modified", header(LAST_MODIFIED.as_str())),
                fact("Response Body", ""),
            ];
            report::render(format, &facts, &[], "upload")
        }
        Ok(Outcome::Problems(problems)) => failed(400, None, &problems),
        Err(error) => failed(error.code(), error.text(), &[]),
    };
    Bytes::from(format!("\r\n\r\n{report}"))
}
