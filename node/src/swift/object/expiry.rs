//! When objects expire: `X-Delete-At` and `X-Delete-After`.
//!
//! Invariant: an accepted time lies in the future and has at most ten digits.

use http::header::HeaderMap;
use quarry_engine::object::ObjectInfo;

use super::super::error::{Result, SwiftError};
use super::super::headers::{flag, text};
use super::super::limits::SwiftOptions;

/// The latest time that is told; later ones mean it.
const FAR_FUTURE: u64 = 9_999_999_999;

/// The time a request wants its object to expire, in Unix seconds. `X-Delete-After` wins over `X-Delete-At`.
pub(crate) fn parse(headers: &HeaderMap, now: u64) -> Result<Option<u64>> {
    if headers.contains_key("x-delete-after") {
        let after = text(headers, "x-delete-after").and_then(integer);
        let after = after.ok_or_else(|| SwiftError::plain(400, "Non-integer X-Delete-After"))?;
        let at = clamp(i128::from(now) + after);
        return if at > now { Ok(Some(at)) } else { Err(SwiftError::plain(400, "X-Delete-After in past")) };
    }
    if headers.contains_key("x-delete-at") {
        let at = text(headers, "x-delete-at").and_then(integer);
        let at = clamp(at.ok_or_else(|| SwiftError::plain(400, "Non-integer X-Delete-At"))?);
        return if at > now { Ok(Some(at)) } else { Err(SwiftError::plain(400, "X-Delete-At in past")) };
    }
    Ok(None)
}

/// A whole number of any length; beyond what fits only its sign counts.
pub(crate) fn integer(text: &str) -> Option<i128> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value = i128::from(digits.parse::<u64>().unwrap_or(u64::MAX));
    Some(if negative { -value } else { value })
}

fn clamp(at: i128) -> u64 {
    u64::try_from(at.clamp(0, i128::from(FAR_FUTURE))).unwrap_or(0)
}

/// Whether the object counts as absent for this request.
pub(crate) fn is_hidden(info: &ObjectInfo, headers: &HeaderMap, now: u64, options: &SwiftOptions) -> bool {
    info.delete_at.is_some_and(|at| at <= now) && !opens(headers, options)
}

/// Whether the request wants to see expired objects too, as far as they are there still.
pub(crate) fn opens(headers: &HeaderMap, options: &SwiftOptions) -> bool {
    options.allow_open_expired && flag(headers, "x-open-expired")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn wanted(name: &'static str, value: &str) -> Result<Option<u64>> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        parse(&headers, 1000)
    }

    #[test]
    fn times_must_be_whole_numbers_in_the_future() {
        assert_eq!(wanted("x-delete-at", "1001").unwrap(), Some(1001));
        assert_eq!(wanted("x-delete-at", "1000").unwrap_err().text(), Some("X-Delete-At in past"));
        assert_eq!(wanted("x-delete-at", "0").unwrap_err().text(), Some("X-Delete-At in past"));
        assert_eq!(wanted("x-delete-at", "*").unwrap_err().text(), Some("Non-integer X-Delete-At"));
        assert_eq!(wanted("x-delete-after", "5").unwrap(), Some(1005));
        assert_eq!(wanted("x-delete-after", "0").unwrap_err().text(), Some("X-Delete-After in past"));
        assert_eq!(wanted("x-delete-after", "-9").unwrap_err().text(), Some("X-Delete-After in past"));
        assert_eq!(wanted("x-delete-after", "1.5").unwrap_err().text(), Some("Non-integer X-Delete-After"));
        assert_eq!(wanted("x-other", "5").unwrap(), None);
    }

    #[test]
    fn the_far_future_has_ten_digits() {
        assert_eq!(wanted("x-delete-at", &"1".repeat(100)).unwrap(), Some(9_999_999_999));
        assert_eq!(wanted("x-delete-after", &"9".repeat(30)).unwrap(), Some(9_999_999_999));
    }
}
