//! Manifests of static large objects: what clients send, and what is stored.
//!
//! Sent: `[{"path", "etag"?, "size_bytes"?, "range"?} | {"data"}]`. Stored: `[{"name", "bytes", "hash", ...} | {"data"}]`,
//! the same JSON that real Swift stores, so that clients can read either.
//! Invariant: a stored manifest names exact sizes, ETags and ranges.

use std::fmt::Write as _;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;
use md5::{Digest, Md5};
use serde::Deserialize;
use serde_json::Value;

use super::super::error::{Result, SwiftError};
use super::super::listing::json_string;
use super::super::object::ranges::{self, Spec};

/// A segment as a client names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Bytes in the manifest itself.
    Data(Bytes),
    /// An object, or a range of it.
    Object { path: String, etag: Option<String>, size: Option<u64>, range: Option<Spec> },
}

/// Parse and judge a manifest. `own` is the manifest's container and object: it must not contain itself.
pub(crate) fn parse(body: &[u8], own: (&str, &str)) -> Result<Vec<Wanted>> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|_| SwiftError::message(400, "Manifest must be valid JSON.\n"))?;
    let Value::Array(items) = value else {
        return Err(SwiftError::message(400, "Manifest must be a list.\n"));
    };
    let last = items.len().saturating_sub(1);
    let mut wanted = Vec::with_capacity(items.len());
    let mut errors = String::new();
    for (index, item) in items.iter().enumerate() {
        match parse_segment(item, index == last, own) {
            Ok(segment) => wanted.push(segment),
            Err(why) => {
                let _ = writeln!(errors, "Index {index}: {why}");
            }
        }
    }
    if !items.is_empty() && items.iter().all(|item| item.get("data").is_some()) {
        errors.push_str("Inline data segments require at least one object-backed segment.\n");
    }
    if errors.is_empty() { Ok(wanted) } else { Err(SwiftError::plain(400, errors)) }
}

fn parse_segment(item: &Value, last: bool, own: (&str, &str)) -> Result<Wanted, String> {
    let Value::Object(fields) = item else { return Err("not a JSON object".into()) };
    let allowed: &[&str] = if fields.contains_key("data") {
        &["data"]
    } else if fields.contains_key("path") {
        &["path", "range", "etag", "size_bytes"]
    } else {
        return Err("expected keys to include one of \"data\" or \"path\"".into());
    };
    let mut extra: Vec<String> = fields
        .keys()
        .filter(|key| !allowed.contains(&key.as_str()))
        .map(|key| Value::String(key.clone()).to_string())
        .collect();
    if !extra.is_empty() {
        extra.sort();
        return Err(format!("extraneous keys {}", extra.join(", ")));
    }
    match fields.get("data") {
        Some(data) => parse_data(data),
        None => parse_object(fields, last, own),
    }
}

fn parse_data(data: &Value) -> Result<Wanted, String> {
    let text = data.as_str().ok_or("data must be valid base64")?.trim();
    let bytes = STANDARD
        .decode(text)
        .or_else(|_| STANDARD_NO_PAD.decode(text.trim_end_matches('=')))
        .map_err(|_| "data must be valid base64")?;
    if bytes.is_empty() {
        return Err("too small; each segment must be at least 1 byte.".into());
    }
    Ok(Wanted::Data(bytes.into()))
}

fn parse_object(
    fields: &serde_json::Map<String, Value>,
    last: bool,
    own: (&str, &str),
) -> Result<Wanted, String> {
    let path = fields.get("path").and_then(Value::as_str).ok_or("\"path\" must be a string")?;
    let etag = match fields.get("etag") {
        None | Some(Value::Null) => None,
        Some(Value::String(etag)) => Some(etag.clone()),
        Some(_) => return Err("\"etag\" must be a string or null (if provided)".into()),
    };
    if !path.trim_matches('/').contains('/') {
        return Err("path does not refer to an object. Path must be of the form /container/object.".into());
    }
    let size = match fields.get("size_bytes") {
        None | Some(Value::Null) => None,
        Some(size) => Some(integer(size).ok_or("invalid size_bytes")?),
    };
    if size.is_some_and(|size| size < 1) && !last {
        return Err("too small; each segment must be at least 1 byte.".into());
    }
    let size = size.map(|size| u64::try_from(size).unwrap_or(0));
    let clean = path.trim_start_matches('/');
    if clean.split_once('/') == Some(own) {
        return Err("manifest must not include itself as a segment".into());
    }
    let range = match fields.get("range") {
        None | Some(Value::Null) => None,
        Some(Value::String(range)) if range.is_empty() => None,
        Some(Value::String(range)) => Some(parse_range(range, size)?),
        Some(_) => return Err("invalid range".into()),
    };
    Ok(Wanted::Object { path: clean.to_owned(), etag, size, range })
}

fn parse_range(range: &str, size: Option<u64>) -> Result<Spec, String> {
    let specs = ranges::parse(&format!("bytes={range}")).ok_or("invalid range")?;
    let [spec] = specs.as_slice() else { return Err("multiple ranges (only one allowed)".into()) };
    match size {
        Some(size) if ranges::resolve(*spec, size).is_none() => Err("unsatisfiable range".into()),
        _ => Ok(*spec),
    }
}

/// A whole number, also spelled as text.
fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// A segment as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Stored {
    /// Bytes in the manifest itself, in Base64.
    Data {
        /// The Base64 text.
        data: String,
    },
    /// An object, or a range of it.
    Object(StoredObject),
}

/// An object-backed segment as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct StoredObject {
    /// `/container/object`.
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) hash: String,
    #[serde(default)]
    pub(crate) content_type: String,
    #[serde(default)]
    pub(crate) last_modified: String,
    /// `first-last`, both inclusive.
    #[serde(default)]
    pub(crate) range: Option<String>,
    #[serde(default)]
    pub(crate) sub_slo: bool,
}

impl StoredObject {
    /// Container and object.
    pub(crate) fn path(&self) -> Option<(&str, &str)> {
        self.name.trim_start_matches('/').split_once('/')
    }

    /// The bytes of the segment's object that are used.
    pub(crate) fn extent(&self) -> Option<Range<u64>> {
        match &self.range {
            None => Some(0..self.bytes),
            Some(range) => {
                let (first, last) = range.split_once('-')?;
                let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
                (first <= last && last < self.bytes).then(|| first..last + 1)
            }
        }
    }
}

impl Stored {
    pub(crate) fn data(bytes: &[u8]) -> Self {
        Self::Data { data: STANDARD.encode(bytes) }
    }

    /// Bytes it stands for; `None` when the manifest is damaged.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::Data { .. } => self.bytes().map(|bytes| bytes.len() as u64),
            Self::Object(object) => object.extent().map(|range| range.end - range.start),
        }
    }

    /// The bytes in the manifest itself.
    pub(crate) fn bytes(&self) -> Option<Bytes> {
        match self {
            Self::Data { data } => STANDARD.decode(data).ok().map(Bytes::from),
            Self::Object(_) => None,
        }
    }
}

/// The ETag of the whole: the MD5 of the segments' ETags (with their ranges).
pub(crate) fn etag(segments: &[Stored]) -> String {
    let mut md5 = Md5::new();
    for segment in segments {
        match segment {
            Stored::Data { .. } => md5.update(hex::encode(Md5::digest(segment.bytes().unwrap_or_default()))),
            Stored::Object(object) => {
                md5.update(&object.hash);
                if let Some(range) = &object.range {
                    md5.update(format!(":{range};"));
                }
            }
        }
    }
    hex::encode(md5.finalize())
}

/// The manifest as it is stored.
pub(crate) fn format(segments: &[Stored]) -> String {
    list(segments, |out, object| {
        for (i, (key, value)) in [
            ("name", Field::Text(&object.name)),
            ("bytes", Field::Number(object.bytes)),
            ("hash", Field::Text(&object.hash)),
            ("content_type", Field::Text(&object.content_type)),
            ("last_modified", Field::Text(&object.last_modified)),
        ]
        .into_iter()
        .enumerate()
        {
            field(out, i == 0, key, &value);
        }
        if let Some(range) = &object.range {
            field(out, false, "range", &Field::Text(range));
        }
        if object.sub_slo {
            out.push_str(", \"sub_slo\": true");
        }
    })
}

/// The manifest as a client would send it (`format=raw`).
pub(crate) fn format_raw(segments: &[Stored]) -> String {
    list(segments, |out, object| {
        field(out, true, "etag", &Field::Text(&object.hash));
        field(out, false, "path", &Field::Text(&object.name));
        if let Some(range) = &object.range {
            field(out, false, "range", &Field::Text(range));
        }
        field(out, false, "size_bytes", &Field::Number(object.bytes));
    })
}

enum Field<'a> {
    Text(&'a str),
    Number(u64),
}

fn field(out: &mut String, first: bool, key: &str, value: &Field<'_>) {
    if !first {
        out.push_str(", ");
    }
    json_string(out, key);
    out.push_str(": ");
    match value {
        Field::Text(text) => json_string(out, text),
        Field::Number(number) => out.push_str(&number.to_string()),
    }
}

fn list(segments: &[Stored], object_out: impl Fn(&mut String, &StoredObject)) -> String {
    let mut out = String::from("[");
    for (i, segment) in segments.iter().enumerate() {
        out.push_str(if i == 0 { "{" } else { ", {" });
        match segment {
            Stored::Data { data } => field(&mut out, true, "data", &Field::Text(data)),
            Stored::Object(object) => object_out(&mut out, object),
        }
        out.push('}');
    }
    out.push(']');
    out
}

/// Read a stored manifest.
pub(crate) fn read(stored: &[u8]) -> Result<Vec<Stored>> {
    serde_json::from_slice(stored).map_err(|_| SwiftError::message(500, "Unable to load SLO manifest"))
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
