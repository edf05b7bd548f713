//! Headers in and out: metadata rules, and values that are stored without loss.
//!
//! Invariant: a stored value is the UTF-8 text that came, or, for other bytes, NUL followed by one character per byte.
//! Invariant: metadata that would break a limit after merging is never stored.

use std::ops::Bound;

use http::HeaderValue;
use http::header::{HeaderMap, HeaderName};
use quarry_engine::object::Headers;

use super::error::{Result, SwiftError};
use super::limits::Limits;
use super::query::truth;

/// What metadata belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Account,
    Container,
    Object,
}

impl Kind {
    /// Prefix of its metadata headers.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Account => "x-account-meta-",
            Self::Container => "x-container-meta-",
            Self::Object => "x-object-meta-",
        }
    }

    /// Prefix of the headers that remove its metadata.
    fn removal(self) -> &'static str {
        match self {
            Self::Account => "x-remove-account-meta-",
            Self::Container => "x-remove-container-meta-",
            Self::Object => "x-remove-object-meta-",
        }
    }
}

/// Headers only the owner of an account sees and sets.
pub(crate) const OWNER_HEADERS: [&str; 9] = [
    "x-container-read",
    "x-container-write",
    "x-container-sync-key",
    "x-container-sync-to",
    "x-account-meta-temp-url-key",
    "x-account-meta-temp-url-key-2",
    "x-container-meta-temp-url-key",
    "x-container-meta-temp-url-key-2",
    "x-account-access-control",
];

/// Headers besides metadata that a client may store with an object.
pub(crate) const OBJECT_HEADERS: [&str; 7] = [
    "content-disposition",
    "content-encoding",
    "x-object-manifest",
    "cache-control",
    "content-language",
    "expires",
    "x-robots-tag",
];

/// Headers besides metadata that a client may store with a container, and their removal headers.
const CONTAINER_HEADERS: [(&str, &str); 4] = [
    ("x-container-read", "x-remove-container-read"),
    ("x-container-write", "x-remove-container-write"),
    ("x-container-sync-key", "x-remove-container-sync-key"),
    ("x-container-sync-to", "x-remove-container-sync-to"),
];

/// The text of a header, if it is given and is UTF-8.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
}

/// Whether a header says yes.
pub(crate) fn flag(headers: &HeaderMap, name: &str) -> bool {
    text(headers, name).is_some_and(|value| truth(value.trim()))
}

/// A header's value as it is stored.
pub(crate) fn store_value(value: &HeaderValue) -> String {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            std::iter::once('\0').chain(value.as_bytes().iter().map(|byte| char::from(*byte))).collect()
        }
    }
}

/// A stored value as a header, the very bytes that came.
pub(crate) fn header_value(stored: &str) -> Option<HeaderValue> {
    match stored.strip_prefix('\0') {
        None => HeaderValue::from_bytes(stored.as_bytes()).ok(),
        Some(chars) => {
            let bytes: Vec<u8> = chars.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect();
            HeaderValue::from_bytes(&bytes).ok()
        }
    }
}

/// Number of bytes a stored value had in its header.
fn value_length(stored: &str) -> usize {
    stored.strip_prefix('\0').map_or(stored.len(), |chars| chars.chars().count())
}

/// Check all headers of a request by themselves (what they come to together with stored ones is `check_merged`'s).
pub(crate) fn check_metadata(headers: &HeaderMap, kind: Kind, limits: &Limits) -> Result<()> {
    let prefix = kind.prefix();
    let (mut count, mut size) = (0, 0);
    for (name, value) in headers {
        if value.len() > limits.max_header_size {
            let short: String = name.as_str().chars().take(limits.max_meta_name_length).collect();
            return Err(SwiftError::plain(400, format!("Header value too long: {short}")));
        }
        let Some(key) = name.as_str().strip_prefix(prefix) else { continue };
        if key.is_empty() {
            return Err(SwiftError::plain(400, "Metadata name cannot be empty"));
        }
        if kind != Kind::Object && std::str::from_utf8(value.as_bytes()).is_err() {
            return Err(SwiftError::plain(400, "Metadata must be valid UTF-8"));
        }
        if key.len() > limits.max_meta_name_length {
            return Err(SwiftError::plain(400, format!("Metadata name too long: {name}")));
        }
        if value.len() > limits.max_meta_value_length {
            let limit = limits.max_meta_value_length;
            return Err(SwiftError::plain(400, format!("Metadata value longer than {limit}: {name}")));
        }
        count += 1;
        size += key.len() + value.len();
        check_totals(count, size, limits)?;
    }
    Ok(())
}

fn check_totals(count: usize, size: usize, limits: &Limits) -> Result<()> {
    if count > limits.max_meta_count {
        let limit = limits.max_meta_count;
        return Err(SwiftError::plain(400, format!("Too many metadata items; max {limit}")));
    }
    if size > limits.max_meta_overall_size {
        let limit = limits.max_meta_overall_size;
        return Err(SwiftError::plain(400, format!("Total metadata too large; max {limit}")));
    }
    Ok(())
}

/// Check what would be stored after merging.
pub(crate) fn check_merged(stored: &Headers, kind: Kind, limits: &Limits) -> Result<()> {
    let prefix = kind.prefix();
    let (mut count, mut size) = (0, 0);
    for (name, value) in stored.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)) {
        let Some(key) = name.strip_prefix(prefix) else { break };
        count += 1;
        size += key.len() + value_length(value);
    }
    check_totals(count, size, limits)
}

/// Changes to the stored headers of an account or container: `None` removes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Changes(Vec<(String, Option<String>)>);

impl Changes {
    /// What a PUT or POST asks to change. Headers of the owner are dropped silently for others.
    pub(crate) fn parse(headers: &HeaderMap, kind: Kind, owner: bool) -> Self {
        let mut changes = Vec::new();
        let allowed = |name: &str| owner || !OWNER_HEADERS.contains(&name);
        for (name, value) in headers {
            let name = name.as_str();
            if let Some(key) = name.strip_prefix(kind.removal()) {
                let full = format!("{}{key}", kind.prefix());
                // A header that sets the same name in the same request wins.
                if allowed(&full) && !headers.contains_key(&full) {
                    changes.push((full, None));
                }
            } else if name.starts_with(kind.prefix()) && allowed(name) {
                changes.push((name.to_owned(), Some(store_value(value)).filter(|value| !value.is_empty())));
            }
        }
        if kind == Kind::Container && owner {
            for (name, removal) in CONTAINER_HEADERS {
                if let Some(value) = headers.get(name) {
                    changes
                        .push((name.to_owned(), Some(store_value(value)).filter(|value| !value.is_empty())));
                } else if headers.contains_key(removal) {
                    changes.push((name.to_owned(), None));
                }
            }
        }
        Self(changes)
    }

    /// One change more.
    pub(crate) fn set(&mut self, name: &str, value: Option<String>) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value));
    }

    /// The stored headers with these changes made.
    pub(crate) fn apply(self, mut stored: Headers) -> Headers {
        for (name, value) in self.0 {
            match value {
                Some(value) => stored.insert(name, value),
                None => stored.remove(&name),
            };
        }
        stored
    }
}

/// Add stored headers to an answer, as this caller may see them.
pub(crate) fn add_stored(answer: &mut HeaderMap, stored: &Headers, owner: bool) {
    for (name, value) in stored {
        if is_internal(name) || (!owner && OWNER_HEADERS.contains(&name.as_str())) {
            continue;
        }
        if let (Ok(name), Some(value)) = (HeaderName::from_bytes(name.as_bytes()), header_value(value)) {
            answer.append(name, value);
        }
    }
}

/// Facts this API keeps among the stored headers and does not show.
pub(crate) fn is_internal(name: &str) -> bool {
    name.starts_with("x-object-sysmeta-")
}

/// What of a request's headers is stored with an object.
pub(crate) fn object_headers(headers: &HeaderMap) -> Headers {
    let mut stored = Headers::new();
    for (name, value) in headers {
        if name.as_str().starts_with(Kind::Object.prefix()) {
            stored.insert(name.as_str().to_owned(), store_value(value));
        }
    }
    for name in OBJECT_HEADERS {
        if let Some(value) = headers.get(name) {
            stored.insert(name.to_owned(), store_value(value));
        }
    }
    stored
}

/// An ETag header's value without quotes.
pub(crate) fn normalize_etag(value: &str) -> &str {
    let value = value.trim();
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

/// A number as a header.
pub(crate) fn number(value: u64) -> HeaderValue {
    HeaderValue::from(value)
}

/// Text as a header; text that cannot be one is left out.
pub(crate) fn insert(answer: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Some(value) = header_value(value) {
        answer.insert(name, value);
    }
}

#[cfg(test)]
#[path = "headers_tests.rs"]
mod tests;
