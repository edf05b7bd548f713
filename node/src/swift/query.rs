//! The query string, decoded once.
//!
//! Invariant: every key and value is UTF-8; the last of several equal keys counts.

use percent_encoding::percent_decode;

use super::error::{Result, SwiftError};

/// Decoded parameters of a query string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decode a raw query string.
    pub(crate) fn parse(raw: Option<&str>) -> Result<Self> {
        let Some(raw) = raw.filter(|raw| !raw.is_empty()) else { return Ok(Self::default()) };
        let mut pairs = Vec::new();
        for part in raw.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            pairs.push((decode(key)?, decode(value)?));
        }
        Ok(Self(pairs))
    }

    /// The value of a parameter, if given.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is given, with whatever value.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Whether a parameter says yes.
    #[must_use]
    pub fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(truth)
    }

    /// Whether there is any parameter.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What Swift takes for a yes.
pub(crate) fn truth(value: &str) -> bool {
    ["true", "1", "yes", "on", "t", "y"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

fn decode(raw: &str) -> Result<String> {
    let spaced;
    let raw = if raw.contains('+') {
        spaced = raw.replace('+', " ");
        &spaced
    } else {
        raw
    };
    match percent_decode(raw.as_bytes()).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(SwiftError::plain(400, "Query parameter not valid UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_the_last_counts() {
        let query = Query::parse(Some("a=1&b=%E2%82%AC+x&c&a=2&=z")).unwrap();
        assert_eq!(query.get("a"), Some("2"));
        assert_eq!(query.get("b"), Some("€ x"));
        assert_eq!(query.get("c"), Some(""));
        assert_eq!(query.get("d"), None);
        assert_eq!(Query::parse(Some("a=%ff")).unwrap_err().code(), 400);
    }

    #[test]
    fn only_six_words_say_yes() {
        for yes in ["true", "1", "yes", "ON", "t", "y"] {
            assert!(truth(yes));
        }
        for no in ["false", "no", "off", "", "garbage", "0"] {
            assert!(!truth(no));
        }
    }
}
