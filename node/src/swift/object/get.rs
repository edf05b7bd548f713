//! GET and HEAD of objects; copies read their source the same way.
//!
//! Invariant: conditions and ranges mean the object as the client sees it: for large objects the whole, not the manifest.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED,
};
use http::{HeaderValue, Response, StatusCode};
use quarry_engine::object::{ObjectInfo, ObjectPath, ObjectReader};

use super::super::authorize::{Subject, Verb, authorize};
use super::super::body::ResponseBody;
use super::super::error::{Result, SwiftError, page};
use super::super::headers::{add_stored, header_value, number, text};
use super::super::route::View;
use super::super::{Api, Call, dlo, slo, timestamp};
use super::conditions::Conditions;
use super::expiry;
use super::pieces::{self, Piece};
use super::ranges::{self, Selected};

/// What an object is behind its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    /// Just bytes.
    Plain,
    /// A static large object.
    Static,
    /// A dynamic large object.
    Dynamic,
}

impl Nature {
    pub(crate) fn of(info: &ObjectInfo) -> Self {
        if info.headers.contains_key("x-static-large-object") {
            Self::Static
        } else if info.headers.contains_key("x-object-manifest") {
            Self::Dynamic
        } else {
            Self::Plain
        }
    }
}

/// An object as a client (or a copy) gets it.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) status: u16,
    /// Headers of the answer but for its length.
    pub(crate) headers: HeaderMap,
    pub(crate) body: ResponseBody,
    /// `Content-Length`, also where HEAD sends no body.
    pub(crate) length: u64,
    /// Facts of the stored version.
    pub(crate) info: ObjectInfo,
    pub(crate) nature: Nature,
}

impl Fetched {
    pub(crate) fn into_response(self) -> Response<ResponseBody> {
        let mut response = Response::new(self.body);
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        *response.headers_mut() = self.headers;
        if self.status != 304 {
            response.headers_mut().insert(CONTENT_LENGTH, number(self.length));
        }
        response
    }
}

/// Read an object, or only its headers, for a caller who may.
pub(crate) async fn fetch(
    api: &Arc<Api>,
    call: &Call,
    path: &ObjectPath,
    view: &View,
    head: bool,
) -> Result<Fetched> {
    authorize(api, call, Subject::object(path), Verb::Read).await?;
    let (info, reader) = if head {
        (api.store.object(path).await?, None)
    } else {
        let reader = api.store.open(path).await?;
        (reader.as_ref().map(|reader| reader.info.clone()), reader)
    };
    let info = info.ok_or_else(|| SwiftError::status(404))?;
    if expiry::is_hidden(&info, &call.headers, call.now, &api.options) {
        return Err(SwiftError::status(404));
    }
    match Nature::of(&info) {
        Nature::Static if !view.manifest => {
            Box::pin(slo::get::fetch(api, call, path, view, info, reader)).await
        }
        Nature::Static if view.raw => Box::pin(slo::get::raw(api, call, path, info, head)).await,
        Nature::Dynamic if !view.manifest => Box::pin(dlo::fetch(api, call, path, info, head)).await,
        nature => {
            let mut whole = Whole::of(info, nature);
            if nature == Nature::Static {
                whole.content_type = HeaderValue::from_static("application/json; charset=utf-8");
            }
            if let Some(reader) = reader {
                let size = whole.info.size;
                whole.pieces = Some(vec![Piece::Open(Arc::new(reader), 0..size)]);
            }
            deliver(api, call, whole).await
        }
    }
}

/// All of an object, before conditions and ranges.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) info: ObjectInfo,
    pub(crate) nature: Nature,
    /// As in the header: in quotes for large objects.
    pub(crate) etag: String,
    pub(crate) length: u64,
    pub(crate) content_type: HeaderValue,
    pub(crate) extra: Vec<(HeaderName, HeaderValue)>,
    /// `None` for HEAD.
    pub(crate) pieces: Option<Vec<Piece>>,
    /// Several ranges make the `Range` header void (dynamic large objects).
    pub(crate) one_range_only: bool,
    /// This range, whatever the header says (a part of a static large object).
    pub(crate) part: Option<Range<u64>>,
}

impl Whole {
    pub(crate) fn of(info: ObjectInfo, nature: Nature) -> Self {
        Self {
            etag: hex::encode(info.md5),
            length: info.size,
            content_type: header_value(&info.content_type)
                .unwrap_or_else(|| HeaderValue::from_static("application/octet-stream")),
            info,
            nature,
            extra: Vec::new(),
            pieces: None,
            one_range_only: false,
            part: None,
        }
    }
}

/// Apply conditions and ranges.
pub(crate) async fn deliver(api: &Api, call: &Call, whole: Whole) -> Result<Fetched> {
    let mut headers = HeaderMap::with_capacity(16);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_TYPE, whole.content_type.clone());
    headers.insert(LAST_MODIFIED, timestamp::http_date(whole.info.timestamp));
    if let Ok(etag) = HeaderValue::from_str(&whole.etag) {
        headers.insert(ETAG, etag);
    }
    headers.insert(HeaderName::from_static("x-timestamp"), timestamp::normal(whole.info.timestamp));
    if let Some(at) = whole.info.delete_at {
        headers.insert(HeaderName::from_static("x-delete-at"), number(at));
    }
    add_stored(&mut headers, &whole.info.headers, true);
    headers.extend(whole.extra.iter().cloned());

    let modified = timestamp::ceil_seconds(whole.info.timestamp);
    if let Some(status) = Conditions::parse(&call.headers).verdict(&whole.etag, modified) {
        return Ok(refused(status, headers, whole));
    }
    let header = text(&call.headers, "range");
    let selected = match &whole.part {
        Some(part) => Selected::Some(vec![part.clone()]),
        None if whole.pieces.is_none() => Selected::All,
        None => match ranges::select(header, whole.length) {
            _ if whole.one_range_only && header.is_some_and(|header| header.contains(',')) => Selected::All,
            selected => selected,
        },
    };
    match selected {
        Selected::All => {
            let body = send(api, call, whole.pieces.as_deref(), &(0..whole.length)).await?;
            Ok(Fetched {
                status: 200,
                headers,
                body,
                length: whole.length,
                info: whole.info,
                nature: whole.nature,
            })
        }
        Selected::Nothing => Ok(unsatisfiable(headers, whole)),
        Selected::Some(ranges) if ranges.len() == 1 => {
            let range = ranges[0].clone();
            insert_range(&mut headers, &range, whole.length);
            let body = send(api, call, whole.pieces.as_deref(), &range).await?;
            let length = range.end - range.start;
            Ok(Fetched { status: 206, headers, body, length, info: whole.info, nature: whole.nature })
        }
        Selected::Some(ranges) => multipart(api, call, headers, whole, &ranges).await,
    }
}

async fn send(api: &Api, call: &Call, pieces: Option<&[Piece]>, range: &Range<u64>) -> Result<ResponseBody> {
    let Some(all) = pieces else { return Ok(ResponseBody::empty()) };
    let expired = expiry::opens(&call.headers, &api.options);
    pieces::body(&api.store, pieces::slice(all, range), range.end - range.start, expired).await
}

/// A condition does not hold: 304 or 412.
fn refused(status: u16, mut headers: HeaderMap, whole: Whole) -> Fetched {
    let body = if status == 304 || whole.pieces.is_none() { Bytes::new() } else { page(status) };
    if status != 304 {
        headers.insert(CONTENT_TYPE, super::super::error::HTML);
    }
    let length = body.len() as u64;
    Fetched {
        status,
        headers,
        body: ResponseBody::Full(body),
        length,
        info: whole.info,
        nature: whole.nature,
    }
}

fn unsatisfiable(mut headers: HeaderMap, whole: Whole) -> Fetched {
    let body = page(416);
    headers.insert(CONTENT_TYPE, super::super::error::HTML);
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{}", whole.length)) {
        headers.insert(CONTENT_RANGE, value);
    }
    let length = body.len() as u64;
    Fetched {
        status: 416,
        headers,
        body: ResponseBody::Full(body),
        length,
        info: whole.info,
        nature: whole.nature,
    }
}

fn insert_range(headers: &mut HeaderMap, range: &Range<u64>, length: u64) {
    let text = format!("bytes {}-{}/{length}", range.start, range.end.saturating_sub(1));
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(CONTENT_RANGE, value);
    }
}

/// Several ranges: a `multipart/byteranges` body.
async fn multipart(
    api: &Api,
    call: &Call,
    mut headers: HeaderMap,
    whole: Whole,
    ranges: &[Range<u64>],
) -> Result<Fetched> {
    let mut random = [0_u8; 16];
    getrandom::fill(&mut random).map_err(|_| SwiftError::status(500))?;
    let boundary = hex::encode(random);
    let all = whole.pieces.as_deref().unwrap_or_default();
    let mut plan = Vec::with_capacity(ranges.len() * 3);
    for range in ranges {
        let mut head = Vec::new();
        head.extend_from_slice(format!("--{boundary}\r\nContent-Type: ").as_bytes());
        head.extend_from_slice(whole.content_type.as_bytes());
        let (first, last) = (range.start, range.end - 1);
        head.extend_from_slice(
            format!("\r\nContent-Range: bytes {first}-{last}/{}\r\n\r\n", whole.length).as_bytes(),
        );
        plan.push(Piece::Literal(head.into()));
        plan.extend(pieces::slice(all, range));
        plan.push(Piece::Literal(Bytes::from_static(b"\r\n")));
    }
    plan.push(Piece::Literal(format!("--{boundary}--").into()));
    let length = plan.iter().map(Piece::length).fold(0, u64::saturating_add);
    if let Ok(value) = HeaderValue::from_str(&format!("multipart/byteranges;boundary={boundary}")) {
        headers.insert(CONTENT_TYPE, value);
    }
    let expired = expiry::opens(&call.headers, &api.options);
    let body = pieces::body(&api.store, plan, length, expired).await?;
    Ok(Fetched { status: 206, headers, body, length, info: whole.info, nature: whole.nature })
}

/// Read a whole object into memory, at most `limit` bytes.
pub(crate) async fn read_all(reader: &ObjectReader, limit: u64) -> Result<Bytes> {
    let size = reader.info.size;
    if size > limit {
        return Err(SwiftError::status(500));
    }
    let mut stream = reader.range(0..size);
    let mut all = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    while let Some(piece) = stream.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all.into())
}
