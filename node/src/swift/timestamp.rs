//! Swift's spellings of a version time.
//!
//! Invariant: `Last-Modified` is never earlier than the time it stands for (it is rounded up to a second).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use quarry_engine::clock::Timestamp;

/// `X-Timestamp`: seconds with five decimals.
pub(crate) fn normal(time: Timestamp) -> HeaderValue {
    ascii(&format!("{:010}.{:05}", time.seconds(), time.subsec_micros() / 10))
}

/// Seconds, rounded up: what `Last-Modified` and date conditions compare.
pub(crate) fn ceil_seconds(time: Timestamp) -> u64 {
    time.0.div_ceil(1_000_000)
}

/// An HTTP date, rounded up to a second.
pub(crate) fn http_date(time: Timestamp) -> HeaderValue {
    ascii(&httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(ceil_seconds(time).min(MAX_SECONDS))))
}

/// The latest second that HTTP dates can spell (year 9999).
const MAX_SECONDS: u64 = 253_402_300_799;

/// ISO 8601 with six decimals and no zone, as listings show it.
pub(crate) fn iso(time: Timestamp) -> String {
    let seconds = time.seconds();
    let (year, month, day) = civil(seconds / 86_400);
    let rest = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}",
        rest / 3600,
        rest / 60 % 60,
        rest % 60,
        time.subsec_micros()
    )
}

/// Year, month and day of a day number since 1970-01-01 (proleptic Gregorian calendar, by eras of 400 years).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_shifted + 2) / 5 + 1;
    let month = if month_shifted < 10 { month_shifted + 3 } else { month_shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// The day number since 1970-01-01 of a date that exists, from 1970 on.
pub(crate) fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    if year > 9999 || !(1..=31).contains(&day) {
        return None;
    }
    let guess = (year.checked_sub(1970)? * 365 + (year - 1969) / 4 + (month.clamp(1, 12) - 1) * 28 + day)
        .saturating_sub(60);
    (guess..guess + 120).find(|days| civil(*days) == (year, month, day))
}

/// Seconds of an HTTP date in any of its three spellings.
pub(crate) fn parse_http_date(text: &str) -> Option<u64> {
    let time = httpdate::parse_http_date(text.trim()).ok()?;
    time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// The wall clock in seconds, for expiry and never for order.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The wall clock as a version time, for things that do not exist yet (an empty account).
pub(crate) fn now_precise() -> Timestamp {
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    Timestamp(u64::try_from(micros).unwrap_or(u64::MAX))
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_knows_leap_days_and_fractions() {
        assert_eq!(iso(Timestamp(0)), "1970-01-01T00:00:00.000000");
        assert_eq!(iso(Timestamp(1_709_210_096_000_007)), "2024-02-29T12:34:56.000007");
        assert_eq!(iso(Timestamp(4_107_542_399_999_999)), "2100-02-28T23:59:59.999999");
        assert_eq!(iso(Timestamp(4_107_542_400_000_000)), "2100-03-01T00:00:00.000000");
    }

    #[test]
    fn every_day_is_found_again_and_others_are_not() {
        for days in 0..60_000 {
            let (year, month, day) = civil(days);
            assert_eq!(days_since_epoch(year, month, day), Some(days));
        }
        assert_eq!(days_since_epoch(2024, 2, 30), None);
        assert_eq!(days_since_epoch(2024, 13, 1), None);
        // What a client says is anything.
        for (year, day) in [(2024, 0), (2024, 32), (2024, u64::MAX), (u64::MAX, 1), (10_000, 1)] {
            assert_eq!(days_since_epoch(year, 1, day), None);
        }
        assert_eq!(days_since_epoch(2024, 0, 1), None);
        assert_eq!(days_since_epoch(1969, 1, 1), None);
        let (year, month, day) = (9999, 12, 31);
        assert_eq!(days_since_epoch(year, month, day).map(civil), Some((year, month, day)));
    }

    #[test]
    fn last_modified_is_rounded_up_and_x_timestamp_is_not() {
        let time = Timestamp(1_709_210_096_000_007);
        assert_eq!(http_date(time), "Thu, 29 Feb 2024 12:34:57 GMT");
        assert_eq!(normal(time), "1709210096.00000");
        assert_eq!(normal(Timestamp(1_500_000_000_123_456)), "1500000000.12345");
    }

    #[test]
    fn dates_come_in_three_spellings() {
        let expected = Some(784_111_777);
        assert_eq!(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"), expected);
        assert_eq!(parse_http_date("Sunday, 06-Nov-94 08:49:37 GMT"), expected);
        assert_eq!(parse_http_date("Sun Nov  6 08:49:37 1994"), expected);
        assert_eq!(parse_http_date("yesterday"), None);
    }
}
