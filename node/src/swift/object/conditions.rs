//! Conditions of RFC 9110 section 13 on reading, in Swift's order.
//!
//! Invariant: a condition that does not parse is no condition.

use http::header::HeaderMap;

use super::super::headers::{normalize_etag, text};
use super::super::timestamp::parse_http_date;

/// What a reading request asks of the object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Conditions {
    if_match: Option<Vec<String>>,
    if_none_match: Option<Vec<String>>,
    if_modified_since: Option<u64>,
    if_unmodified_since: Option<u64>,
}

impl Conditions {
    /// Parse them; almost always there are none.
    pub(crate) fn parse(headers: &HeaderMap) -> Self {
        Self {
            if_match: text(headers, "if-match").map(etags),
            if_none_match: text(headers, "if-none-match").map(etags),
            if_modified_since: text(headers, "if-modified-since").and_then(parse_http_date),
            if_unmodified_since: text(headers, "if-unmodified-since").and_then(parse_http_date),
        }
    }

    /// The status to answer with when a condition does not hold: 304 or 412. `modified` is rounded up to a second.
    pub(crate) fn verdict(&self, etag: &str, modified: u64) -> Option<u16> {
        let etag = normalize_etag(etag);
        if self.if_none_match.as_ref().is_some_and(|list| matches(list, etag)) {
            return Some(304);
        }
        if self.if_match.as_ref().is_some_and(|list| !matches(list, etag)) {
            return Some(412);
        }
        if self.if_modified_since.is_some_and(|since| modified <= since) {
            return Some(304);
        }
        if self.if_unmodified_since.is_some_and(|since| modified > since) {
            return Some(412);
        }
        None
    }
}

fn etags(list: &str) -> Vec<String> {
    list.split(',').map(normalize_etag).filter(|etag| !etag.is_empty()).map(str::to_owned).collect()
}

fn matches(list: &[String], etag: &str) -> bool {
    list.iter().any(|known| known == "*" || known == etag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const MODIFIED: u64 = 784_111_777;
    const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";

    fn verdict(pairs: &[(&'static str, &'static str)]) -> Option<u16> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        Conditions::parse(&headers).verdict("\"abc\"", MODIFIED)
    }

    #[test]
    fn each_condition_has_its_status() {
        assert_eq!(verdict(&[]), None);
        assert_eq!(verdict(&[("if-match", "abc")]), None);
        assert_eq!(verdict(&[("if-match", "\"x\", \"abc\"")]), None);
        assert_eq!(verdict(&[("if-match", "*")]), None);
        assert_eq!(verdict(&[("if-match", "not-\"abc\"")]), Some(412));
        assert_eq!(verdict(&[("if-none-match", "\"abc\"")]), Some(304));
        assert_eq!(verdict(&[("if-none-match", "x, y")]), None);
        assert_eq!(verdict(&[("if-modified-since", THEN)]), Some(304));
        assert_eq!(verdict(&[("if-modified-since", BEFORE)]), None);
        assert_eq!(verdict(&[("if-unmodified-since", THEN)]), None);
        assert_eq!(verdict(&[("if-unmodified-since", BEFORE)]), Some(412));
        assert_eq!(verdict(&[("if-modified-since", "nonsense")]), None);
        assert_eq!(verdict(&[("if-match", "abc"), ("if-unmodified-since", BEFORE)]), Some(412));
    }
}
