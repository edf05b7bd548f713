//! Reading static large objects: the whole, a part, or the manifest in raw form.
//!
//! Its manifest is read here; what it consists of is found out while it is sent ([`super::walk`]).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderName};
use md5::{Digest, Md5};
use quarry_engine::object::{ObjectInfo, ObjectPath, ObjectReader};

use super::super::body::ResponseBody;
use super::super::error::{HTML, Result, SwiftError};
use super::super::headers::number;
use super::super::object::get::{Fetched, Nature, Whole, deliver, read_all};
use super::super::object::pieces::Piece;
use super::super::route::View;
use super::super::{Api, Call};
use super::manifest::{self, Stored};
use super::walk::{Manifest, Reader};
use super::{ETAG, SIZE};

/// Stored manifests are longer than sent ones, but not by more than this factor.
const STORED_FACTOR: u64 = 8;

/// Read the object that a manifest stands for. Without a reader only its headers.
pub(crate) async fn fetch(
    api: &Arc<Api>,
    call: &Call,
    path: &ObjectPath,
    view: &View,
    info: ObjectInfo,
    reader: Option<ObjectReader>,
) -> Result<Fetched> {
    let part = part_number(view, call)?;
    let head = reader.is_none();
    let mut whole = Whole::of(info, Nature::Static);
    let known = whole.info.headers.get(SIZE).and_then(|size| size.parse().ok());
    whole.length = known.ok_or_else(|| SwiftError::message(500, "Unable to load SLO manifest"))?;
    whole.etag = format!("\"{}\"", whole.info.headers.get(ETAG).map_or("", String::as_str));
    if let Ok(value) = HeaderValue::from_str(&hex::encode(whole.info.md5)) {
        whole.extra.push((HeaderName::from_static("x-manifest-etag"), value));
    }
    if head && part.is_none() {
        return deliver(api, call, whole).await;
    }
    let reader = match reader {
        Some(reader) => reader,
        None => api.store.open(path).await?.ok_or_else(|| SwiftError::status(404))?,
    };
    let segments = load(api, &reader).await?;
    if let Some(number_wanted) = part {
        whole.extra.push((HeaderName::from_static("x-parts-count"), number(segments.len() as u64)));
        match part_range(&segments, number_wanted) {
            None => return no_such_part(api, call, whole, head).await,
            Some(range) => whole.part = Some(range),
        }
    }
    if !head {
        let reader = Reader { api: Arc::clone(api), call: call.clone(), account: Arc::clone(&path.account) };
        let wanted = whole.part.clone().unwrap_or(0..whole.length);
        whole.pieces = Some(vec![Piece::Nested(Arc::new(Manifest::of(reader, segments)?), wanted)]);
        if let Some(range) = whole.part.clone() {
            return deliver_part(api, call, whole, &range).await;
        }
    }
    deliver(api, call, whole).await
}

/// A part's pieces begin at its first byte, so they are sent whole under the part's range.
async fn deliver_part(api: &Api, call: &Call, mut whole: Whole, range: &Range<u64>) -> Result<Fetched> {
    let total = whole.length;
    whole.part = None;
    whole.length = range.end - range.start;
    let mut fetched =
        deliver(api, &Call { headers: without_range(call), ..call.clone_without_headers() }, whole).await?;
    if fetched.status == 200 {
        fetched.status = 206;
        let text = format!("bytes {}-{}/{total}", range.start, range.end - 1);
        if let Ok(value) = HeaderValue::from_str(&text) {
            fetched.headers.insert(CONTENT_RANGE, value);
        }
    }
    Ok(fetched)
}

fn without_range(call: &Call) -> http::HeaderMap {
    let mut headers = call.headers.clone();
    headers.remove("range");
    headers
}

async fn no_such_part(api: &Api, call: &Call, mut whole: Whole, head: bool) -> Result<Fetched> {
    let total = whole.length;
    whole.pieces = None;
    let mut fetched = deliver(api, call, whole).await?;
    if fetched.status != 200 {
        return Ok(fetched);
    }
    let body =
        if head { Bytes::new() } else { Bytes::from_static(b"The requested part number is not satisfiable") };
    fetched.status = 416;
    fetched.length = body.len() as u64;
    fetched.body = ResponseBody::Full(body);
    fetched.headers.insert(CONTENT_TYPE, HTML);
    if let Ok(value) = HeaderValue::from_str(&format!("bytes */{total}")) {
        fetched.headers.insert(CONTENT_RANGE, value);
    }
    Ok(fetched)
}

/// The manifest as a client would send it.
pub(crate) async fn raw(
    api: &Arc<Api>,
    call: &Call,
    path: &ObjectPath,
    info: ObjectInfo,
    head: bool,
) -> Result<Fetched> {
    let reader = api.store.open(path).await?.ok_or_else(|| SwiftError::status(404))?;
    let text = Bytes::from(manifest::format_raw(&load(api, &reader).await?));
    let mut whole = Whole::of(info, Nature::Static);
    whole.etag = hex::encode(Md5::digest(&text));
    whole.length = text.len() as u64;
    whole.pieces = (!head).then(|| vec![Piece::Literal(text)]);
    deliver(api, call, whole).await
}

/// Read a stored manifest.
pub(crate) async fn load(api: &Api, reader: &ObjectReader) -> Result<Vec<Stored>> {
    let limit = api.limits.slo_max_manifest_size as u64 * STORED_FACTOR;
    manifest::read(&read_all(reader, limit).await?)
}

/// The part a request asks for.
fn part_number(view: &View, call: &Call) -> Result<Option<usize>> {
    let Some(text) = &view.part_number else { return Ok(None) };
    let number = text.trim().parse::<u64>().ok().filter(|number| *number > 0);
    let number =
        number.ok_or_else(|| SwiftError::message(400, "Part number must be an integer greater than 0"))?;
    if call.headers.contains_key("range") {
        return Err(SwiftError::message(400, "Range requests are not supported with part number queries"));
    }
    Ok(Some(usize::try_from(number).unwrap_or(usize::MAX)))
}

fn part_range(segments: &[Stored], number: usize) -> Option<Range<u64>> {
    let mut at: u64 = 0;
    for (i, segment) in segments.iter().enumerate() {
        let length = segment.length()?;
        let end = at.checked_add(length)?;
        if i + 1 == number {
            return (length > 0).then_some(at..end);
        }
        at = end;
    }
    None
}
