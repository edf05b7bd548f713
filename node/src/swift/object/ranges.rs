//! Byte ranges: the `Range` header, and what it selects of a body.
//!
//! Invariant: every selected range is non-empty and lies inside the body.

use std::ops::Range;

/// Most ranges of one request; more are answered as unsatisfiable (each costs the server a seek).
const MAX_RANGES: usize = 50;
/// Most ranges that may overlap another one.
const MAX_OVERLAPS: usize = 2;
/// Most ranges that may begin before the range in front of them.
const MAX_DESCENDING: usize = 8;

/// One range as asked for; both ends inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spec {
    /// `first-` or `first-last`.
    From(u64, Option<u64>),
    /// `-length`: the last bytes.
    Suffix(u64),
}

/// What a `Range` header selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selected {
    /// No (valid) header: everything.
    All,
    /// Nothing that is there: 416.
    Nothing,
    /// These; one is a plain partial answer, several are a multipart one.
    Some(Vec<Range<u64>>),
}

/// Parse a `Range` header; `None` when it is not valid and so must be ignored.
pub(crate) fn parse(header: &str) -> Option<Vec<Spec>> {
    let (unit, list) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    list.split(',').map(|spec| parse_spec(spec.trim())).collect()
}

fn parse_spec(spec: &str) -> Option<Spec> {
    let (first, last) = spec.split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        return number(last).map(Spec::Suffix);
    }
    let first = number(first)?;
    if last.is_empty() {
        return Some(Spec::From(first, None));
    }
    let last = number(last)?;
    if first > last { None } else { Some(Spec::From(first, Some(last))) }
}

/// Digits as a number; more than fits means "very far".
fn number(digits: &str) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX))
}

/// One range in a body of that length; `None` when it selects nothing.
pub(crate) fn resolve(spec: Spec, length: u64) -> Option<Range<u64>> {
    match spec {
        Spec::Suffix(wanted) => {
            let wanted = wanted.min(length);
            (wanted > 0).then(|| length - wanted..length)
        }
        Spec::From(first, last) => {
            (first < length).then(|| first..last.map_or(length, |last| last.saturating_add(1).min(length)))
        }
    }
}

/// What a `Range` header selects of a body of that length.
pub(crate) fn select(header: Option<&str>, length: u64) -> Selected {
    let Some(specs) = header.and_then(parse) else { return Selected::All };
    if length == 0 && specs.iter().any(|spec| matches!(spec, Spec::Suffix(wanted) if *wanted > 0)) {
        return Selected::All;
    }
    let ranges: Vec<Range<u64>> = specs.into_iter().filter_map(|spec| resolve(spec, length)).collect();
    if ranges.is_empty() || is_abusive(&ranges) { Selected::Nothing } else { Selected::Some(ranges) }
}

fn is_abusive(ranges: &[Range<u64>]) -> bool {
    if ranges.len() > MAX_RANGES {
        return true;
    }
    let descending = ranges.windows(2).filter(|pair| pair[1].start < pair[0].start).count();
    let overlapping = (1..ranges.len())
        .filter(|&i| {
            ranges[..i].iter().any(|earlier| earlier.start < ranges[i].end && ranges[i].start < earlier.end)
        })
        .count();
    overlapping > MAX_OVERLAPS || descending > MAX_DESCENDING
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(header: &str, length: u64) -> Selected {
        select(Some(header), length)
    }

    fn some(ranges: &[(u64, u64)]) -> Selected {
        Selected::Some(ranges.iter().map(|(a, b)| *a..*b).collect())
    }

    #[test]
    fn a_range_is_cut_at_the_end_of_the_body() {
        assert_eq!(one("bytes=0-4", 10), some(&[(0, 5)]));
        assert_eq!(one("bytes=5-", 10), some(&[(5, 10)]));
        assert_eq!(one("bytes=5-99", 10), some(&[(5, 10)]));
        assert_eq!(one("bytes=-3", 10), some(&[(7, 10)]));
        assert_eq!(one("bytes=-30", 10), some(&[(0, 10)]));
        assert_eq!(one("bytes=0-99999999999999999999999999", 10), some(&[(0, 10)]));
        assert_eq!(one("bytes=18446744073709551615-", 10), Selected::Nothing);
    }

    #[test]
    fn what_selects_nothing_is_unsatisfiable_and_what_is_invalid_is_ignored() {
        assert_eq!(one("bytes=10-", 10), Selected::Nothing);
        assert_eq!(one("bytes=-0", 10), Selected::Nothing);
        assert_eq!(one("bytes=10-12,100-102", 10), Selected::Nothing);
        for invalid in
            ["0-4", "parsecs=8-12", "bytes=", "bytes=-", "bytes=4-2", "bytes=a-b", "bytes=0-1,x", ""]
        {
            assert_eq!(one(invalid, 10), Selected::All, "{invalid}");
        }
        assert_eq!(select(None, 10), Selected::All);
        assert_eq!(one("bytes=0-", 0), Selected::Nothing);
        assert_eq!(one("bytes=-5", 0), Selected::All);
    }

    #[test]
    fn white_space_and_capitals_do_not_matter() {
        for header in ["BYTES=0-9", "bytes = 0-9", "BYTES = 0 - 9", "bytes=0 - 9", "bytes=0-9 "] {
            assert_eq!(one(header, 100), some(&[(0, 10)]), "{header}");
        }
    }

    #[test]
    fn several_ranges_keep_their_order_and_drop_unsatisfiable_ones() {
        assert_eq!(one("bytes=5-6,0-1,50-", 10), some(&[(5, 7), (0, 2)]));
        assert_eq!(one("bytes=0-1,50-", 10), some(&[(0, 2)]));
    }

    #[test]
    fn abusive_sets_are_refused() {
        let many = (0..51).map(|i| format!("{}-{}", i * 2, i * 2)).collect::<Vec<_>>().join(",");
        assert_eq!(one(&format!("bytes={many}"), 1000), Selected::Nothing);
        assert_eq!(one("bytes=0-,0-,0-,0-", 1000), Selected::Nothing);
        let falling = (0..10).rev().map(|i| format!("{}-{}", i * 2, i * 2)).collect::<Vec<_>>().join(",");
        assert_eq!(one(&format!("bytes={falling}"), 1000), Selected::Nothing);
    }
}
