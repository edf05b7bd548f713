//! Fields that the values of records and rows share: text, headers, and why a value is bad.

use crate::disk::format::bytes::{Put, Reader, Truncated};
use crate::object::Headers;

/// Why bytes are not the value they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    /// The bytes end before a field does.
    #[error("value is cut short")]
    Truncated,
    /// Written by a newer Quarry, or no value at all.
    #[error("value has unknown version {0}")]
    Version(u8),
    /// A field that no writer produces.
    #[error("value field {0} is invalid")]
    Field(&'static str),
}

impl From<Truncated> for BadValue {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_prefixed(text.as_bytes());
}

pub(crate) fn text<'a>(r: &mut Reader<'a>) -> Result<&'a str, BadValue> {
    std::str::from_utf8(r.prefixed()?).map_err(|_| BadValue::Field("text"))
}

/// `varint count`, then name and value of each header, prefixed, in name order.
pub(crate) fn put_headers(out: &mut Vec<u8>, headers: &Headers) {
    out.put_varint(headers.len() as u64);
    for (name, value) in headers {
        put_text(out, name);
        put_text(out, value);
    }
}

pub(crate) fn headers(r: &mut Reader<'_>) -> Result<Headers, BadValue> {
    let count = r.varint()?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = text(r)?.to_owned();
        headers.insert(name, text(r)?.to_owned());
    }
    Ok(headers)
}

pub(crate) fn version(r: &mut Reader<'_>, known: u8) -> Result<(), BadValue> {
    match r.u8()? {
        v if v == known => Ok(()),
        other => Err(BadValue::Version(other)),
    }
}
