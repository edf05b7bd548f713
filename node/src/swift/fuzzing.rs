//! The door of the fuzz crate to the parsers of client text. Nothing else calls it.
//!
//! Invariant: every parser keeps the promise its module makes, whatever a client sends; broken ones panic here.

use http::header::HeaderMap;
use http::{Method, Uri};

use super::limits::Limits;
use super::object::conditions::Conditions;
use super::object::ranges::{self, Selected};
use super::slo::manifest;
use super::{acl, headers, listing, parse_request, timestamp};

/// A whole request head: the request line and every header that is parsed on its own.
pub fn request(method: &Method, uri: &Uri, map: &HeaderMap) {
    let limits = Limits::default();
    if let Ok(operation) = parse_request(method, uri, map, &limits) {
        let again = parse_request(method, uri, map, &limits);
        assert!(again.is_ok_and(|again| again == operation), "a request parses to one operation");
    }
    for kind in [headers::Kind::Account, headers::Kind::Container, headers::Kind::Object] {
        let _refusal = headers::check_metadata(map, kind, &limits);
    }
    for (kind, owner) in [(headers::Kind::Account, true), (headers::Kind::Container, false)] {
        let stored = headers::Changes::parse(map, kind, owner).apply(Default::default());
        headers::add_stored(&mut HeaderMap::new(), &stored, owner);
        let _refusal = headers::check_merged(&stored, kind, &limits);
    }
    let stored = headers::object_headers(map);
    headers::add_stored(&mut HeaderMap::new(), &stored, true);
    let _status = Conditions::parse(map).verdict("\"d41d8cd98f00b204e9800998ecf8427e\"", 1_795_000_000);
    let _refusal = listing::Format::of_report(map);
}

/// A `Range` header against a body of `length` bytes: what is selected is not empty and lies inside.
pub fn range(header: &str, length: u64) {
    if let Selected::Some(ranges) = ranges::select(Some(header), length) {
        assert!(!ranges.is_empty());
        for range in ranges {
            assert!(range.start < range.end && range.end <= length, "{range:?} of {length}");
        }
    }
}

/// A container's access list: cleaning is idempotent.
pub fn container_acl(list: &str) {
    for write in [false, true] {
        if let Ok(clean) = acl::clean(list, write) {
            assert_eq!(acl::clean(&clean, write).as_deref(), Ok(clean.as_str()), "cleaned twice");
            let _allowed = acl::allows_referrer(&clean, Some(list));
            let _named = acl::names_group(&clean, &[list.to_owned()]);
            let _open = acl::opens_listings(&clean);
        }
    }
}

/// An account's access list: its one spelling parses to the same list.
pub fn account_acl(text: &str) {
    if let Ok(acl) = acl::AccountAcl::parse(text) {
        let spelling = acl.format();
        assert!(spelling.is_ascii());
        assert_eq!(acl::AccountAcl::parse(&spelling), Ok(acl));
    }
}

/// A manifest of a static large object, as a client sends it and as it may be stored.
pub fn slo_manifest(body: &[u8]) {
    let _wanted = manifest::parse(body, ("c", "o"));
    if let Ok(segments) = manifest::read(body) {
        for segment in &segments {
            let _parts = (segment.length(), segment.bytes());
            if let manifest::Stored::Object(object) = segment {
                let _place = (object.path(), object.extent());
            }
        }
        let _etag = manifest::etag(&segments);
        let _shown = manifest::format(&segments);
        let _raw = manifest::format_raw(&segments);
    }
}

/// An HTTP date: what is parsed is written back to the same second.
pub fn date(text: &str) {
    if let Some(seconds) = timestamp::parse_http_date(text) {
        let Some(micros) = seconds.checked_mul(1_000_000) else { return };
        let written = timestamp::http_date(quarry_engine::clock::Timestamp(micros));
        assert_eq!(written.to_str().ok().and_then(timestamp::parse_http_date), Some(seconds), "{text:?}");
    }
}
