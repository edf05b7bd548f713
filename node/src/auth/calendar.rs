//! Times as Keystone writes them.

/// `2026-11-23T22:55:05.000000Z` for Unix seconds (proleptic Gregorian calendar, after Howard Hinnant's
/// "chrono-compatible low-level date algorithms").
pub(crate) fn iso8601(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000000Z")
}

/// Unix seconds of `2026-11-23T22:55:05`, with or without fractions and `Z`; `None` when it is no such time.
pub(crate) fn seconds_of(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once('T')?;
    let time = match time.split_once('.') {
        Some((time, fraction)) if fraction.bytes().all(|b| b.is_ascii_digit()) => time,
        Some(_) => return None,
        None => time,
    };
    let numbers = |text: &str, separator: char| -> Option<[u64; 3]> {
        let parts: Vec<u64> = text.split(separator).map(|part| part.parse().ok()).collect::<Option<_>>()?;
        parts.try_into().ok()
    };
    let ([year, month, day], [hour, minute, second]) = (numbers(date, '-')?, numbers(time, ':')?);
    let valid = (1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !valid || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (shifted_year, from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::{iso8601, seconds_of};

    #[test]
    fn known_days_come_out() {
        assert_eq!(iso8601(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(iso8601(951_782_400), "2000-02-29T00:00:00.000000Z");
        assert_eq!(iso8601(1_709_251_199), "2024-02-29T23:59:59.000000Z");
        assert_eq!(iso8601(4_102_444_800), "2100-01-01T00:00:00.000000Z");
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        for seconds in [0, 951_782_400, 1_709_251_199, 4_102_444_800] {
            assert_eq!(seconds_of(&iso8601(seconds)), Some(seconds));
        }
        assert_eq!(seconds_of("2000-02-29T00:00:00"), Some(951_782_400));
        for bad in [
            "",
            "bad.123Z",
            "2000-13-01T00:00:00Z",
            "2000-01-01",
            "2000-01-01T25:00:00",
            "1969-01-01T00:00:00",
        ] {
            assert_eq!(seconds_of(bad), None, "{bad}");
        }
    }
}
