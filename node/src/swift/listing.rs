//! Listings of accounts and containers: what is asked for, and its three formats.
//!
//! Invariant: names are escaped in every format, so that no name can break a listing.

use std::fmt::Write as _;

use http::HeaderValue;
use http::header::{ACCEPT, HeaderMap};
use quarry_engine::object::{ContainerRow, Entry, Listing, ObjectRow, Policies};

use super::error::{Result, SwiftError};

use super::query::{Query, truth};
use super::timestamp;

/// Format of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// One name per line.
    #[default]
    Plain,
    /// A list of objects.
    Json,
    /// `application/xml`.
    Xml,
    /// The same, called `text/xml`.
    TextXml,
}

impl Format {
    /// The formats in the order of preference, by their media types.
    const ALL: [(Self, &'static str); 4] = [
        (Self::Plain, "text/plain"),
        (Self::Json, "application/json"),
        (Self::Xml, "application/xml"),
        (Self::TextXml, "text/xml"),
    ];

    /// `?format=` wins over `Accept`; 406 when nothing fits.
    pub(crate) fn negotiate(query: &Query, headers: &HeaderMap) -> Result<Self> {
        if let Some(format) = query.get("format").filter(|format| !format.is_empty()) {
            return Ok(match format.to_ascii_lowercase().as_str() {
                "json" => Self::Json,
                "xml" => Self::Xml,
                _ => Self::Plain,
            });
        }
        Self::accepted(headers, &Self::ALL)
    }

    /// The best of all formats for `Accept`, for answers of large-object and bulk requests.
    pub(crate) fn of_report(headers: &HeaderMap) -> Result<Self> {
        Self::accepted(headers, &Self::ALL)
    }

    fn accepted(headers: &HeaderMap, offers: &[(Self, &'static str)]) -> Result<Self> {
        let Some(accept) = headers.get(ACCEPT) else { return Ok(Self::Plain) };
        let invalid = || SwiftError::plain(400, "Invalid Accept header");
        let accept = accept.to_str().map_err(|_| invalid())?;
        if accept.trim().is_empty() {
            return Ok(Self::Plain);
        }
        let mut wanted =
            accept.split(',').map(parse_media_range).collect::<Option<Vec<_>>>().ok_or_else(invalid)?;
        wanted.sort_by_key(|(range, quality)| (std::cmp::Reverse(*quality), range.matches('*').count()));
        wanted
            .iter()
            .filter(|(_, quality)| *quality > 0)
            .find_map(|(range, _)| offers.iter().find(|(_, name)| media_matches(range, name)))
            .map(|(format, _)| *format)
            .ok_or_else(|| SwiftError::status(406))
    }

    /// Media type without parameters.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "text/plain",
            Self::Json => "application/json",
            Self::Xml => "application/xml",
            Self::TextXml => "text/xml",
        }
    }

    /// `Content-Type` of a listing.
    pub(crate) fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Plain => "text/plain; charset=utf-8",
            Self::Json => "application/json; charset=utf-8",
            Self::Xml => "application/xml; charset=utf-8",
            Self::TextXml => "text/xml; charset=utf-8",
        })
    }
}

/// A media range and its quality in thousandths.
fn parse_media_range(text: &str) -> Option<(String, u16)> {
    let mut parts = text.split(';').map(str::trim);
    let range = parts.next()?.to_ascii_lowercase();
    let (kind, sub) = range.split_once('/')?;
    if kind.is_empty() || sub.is_empty() || (kind == "*" && sub != "*") {
        return None;
    }
    let mut quality = 1000;
    for parameter in parts {
        if let Some(value) = parameter.strip_prefix("q=") {
            let value: f32 = value.trim().parse().ok()?;
            if !(0.0..=1.0).contains(&value) {
                return None;
            }
            quality = (0..=1000).rev().find(|q| f32::from(*q) / 1000.0 <= value).unwrap_or(0);
        }
    }
    Some((range, quality))
}

fn media_matches(range: &str, name: &str) -> bool {
    range == "*/*" || range == name || range.strip_suffix('*').is_some_and(|kind| name.starts_with(kind))
}

/// A listing that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListingQuery {
    /// For the object layer.
    pub listing: Listing,
    /// Format of the answer.
    pub format: Format,
    /// The format depends on the Accept header.
    pub varies: bool,
}

impl ListingQuery {
    pub(crate) fn parse(query: &Query, headers: &HeaderMap, limit: usize) -> Result<Self> {
        let format = Format::negotiate(query, headers)?;
        let given = |name: &str| query.get(name).unwrap_or("").to_owned();
        let mut wanted = limit;
        if let Some(text) = query.get("limit")
            && !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_digit())
        {
            wanted = text.parse().unwrap_or(usize::MAX);
            if wanted > limit {
                return Err(SwiftError::message(412, format!("Maximum limit is {limit}")));
            }
        }
        let listing = Listing {
            prefix: given("prefix"),
            delimiter: given("delimiter"),
            marker: given("marker"),
            end_marker: given("end_marker"),
            limit: wanted,
            reverse: query.get("reverse").is_some_and(truth),
            path: query.get("path").map(str::to_owned),
        };
        Ok(Self { listing, format, varies: !query.has("format") })
    }
}

/// An account's listing in one format.
pub(crate) fn render_containers(
    account: &str,
    rows: &[Entry<ContainerRow>],
    format: Format,
    policies: &Policies,
) -> String {
    match format {
        Format::Plain => lines(rows.iter().map(|entry| match entry {
            Entry::Row(row) => row.name.as_str(),
            Entry::Subdir(name) => name,
        })),
        Format::Json => json_list(rows, |out, row: &ContainerRow| {
            out.push_str("{\"name\": ");
            json_string(out, &row.name);
            let (count, bytes, time) = (row.objects, row.bytes, timestamp::iso(row.changed));
            let _ = write!(out, ", \"count\": {count}, \"bytes\": {bytes}, \"last_modified\": \"{time}\"");
            if let Some(policy) = policies.get(row.policy).map(|policy| policy.name.as_str()) {
                out.push_str(", \"storage_policy\": ");
                json_string(out, policy);
            }
            out.push('}');
        }),
        Format::Xml | Format::TextXml => {
            let mut out = String::from(XML);
            out.push_str("<account name=\"");
            xml(&mut out, account);
            out.push_str("\">\n");
            for entry in rows {
                match entry {
                    Entry::Subdir(name) => {
                        out.push_str("<subdir name=\"");
                        xml(&mut out, name);
                        out.push_str("\" />\n");
                    }
                    Entry::Row(row) => {
                        out.push_str("<container><name>");
                        xml(&mut out, &row.name);
                        let (count, bytes, time) = (row.objects, row.bytes, timestamp::iso(row.changed));
                        let _ = write!(
                            out,
                            "</name><count>{count}</count><bytes>{bytes}</bytes><last_modified>{time}</last_modified>"
                        );
                        if let Some(policy) = policies.get(row.policy).map(|policy| policy.name.as_str()) {
                            out.push_str("<storage_policy>");
                            xml(&mut out, policy);
                            out.push_str("</storage_policy>");
                        }
                        out.push_str("</container>\n");
                    }
                }
            }
            out.push_str("</account>");
            out
        }
    }
}

/// A container's listing in one format.
pub(crate) fn render_objects(container: &str, rows: &[Entry<ObjectRow>], format: Format) -> String {
    match format {
        Format::Plain => lines(rows.iter().map(|entry| match entry {
            Entry::Row(row) => row.name.as_str(),
            Entry::Subdir(name) => name,
        })),
        Format::Json => json_list(rows, |out, row: &ObjectRow| {
            let (hash, slo) = split_etag(&row.etag);
            let _ = write!(out, "{{\"bytes\": {}, \"hash\": ", row.size);
            json_string(out, hash);
            out.push_str(", \"name\": ");
            json_string(out, &row.name);
            out.push_str(", \"content_type\": ");
            json_string(out, &row.content_type);
            let _ = write!(out, ", \"last_modified\": \"{}\"", timestamp::iso(row.timestamp));
            if let Some(slo) = slo {
                out.push_str(", \"slo_etag\": ");
                json_string(out, &format!("\"{slo}\""));
            }
            out.push('}');
        }),
        Format::Xml | Format::TextXml => {
            let mut out = String::from(XML);
            out.push_str("<container name=\"");
            xml(&mut out, container);
            out.push_str("\">");
            for entry in rows {
                match entry {
                    Entry::Subdir(name) => {
                        out.push_str("<subdir name=\"");
                        xml(&mut out, name);
                        out.push_str("\"><name>");
                        xml(&mut out, name);
                        out.push_str("</name></subdir>");
                    }
                    Entry::Row(row) => {
                        out.push_str("<object><name>");
                        xml(&mut out, &row.name);
                        out.push_str("</name><hash>");
                        xml(&mut out, split_etag(&row.etag).0);
                        let _ = write!(out, "</hash><bytes>{}</bytes><content_type>", row.size);
                        xml(&mut out, &row.content_type);
                        let time = timestamp::iso(row.timestamp);
                        let _ = write!(out, "</content_type><last_modified>{time}</last_modified></object>");
                    }
                }
            }
            out.push_str("</container>");
            out
        }
    }
}

/// A listed ETag and the large object's ETag that may stand behind it.
pub(crate) fn split_etag(etag: &str) -> (&str, Option<&str>) {
    match etag.split_once("; slo_etag=") {
        Some((hash, slo)) => (hash, Some(slo)),
        None => (etag, None),
    }
}

const XML: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

fn lines<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut out = String::new();
    for name in names {
        out.push_str(name);
        out.push('\n');
    }
    out
}

fn json_list<R>(rows: &[Entry<R>], mut row_out: impl FnMut(&mut String, &R)) -> String {
    let mut out = String::with_capacity(2 + rows.len() * 160);
    out.push('[');
    for (i, entry) in rows.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        match entry {
            Entry::Row(row) => row_out(&mut out, row),
            Entry::Subdir(name) => {
                out.push_str("{\"subdir\": ");
                json_string(&mut out, name);
                out.push('}');
            }
        }
    }
    out.push(']');
    out
}

/// Append a JSON string. A value stored byte by byte (see `headers`) shows its characters without the mark.
pub(crate) fn json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.strip_prefix('\0').unwrap_or(text).chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' || c == '\u{7f}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Append text escaped for XML, for elements and attributes. Control characters, which XML cannot spell, become `?`.
pub(crate) fn xml(out: &mut String, text: &str) {
    for c in text.strip_prefix('\0').unwrap_or(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\r' => out.push_str("&#13;"),
            '\t' => out.push_str("&#9;"),
            c if c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('?'),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
