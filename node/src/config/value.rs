//! Values of the configuration file that know what they allow.
//!
//! Invariant: a value that parsed is within its bounds; nobody checks it again.
//! Invariant: every refusal says what was found and what is allowed (the file, line and key are added by `located`).

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use quarry_engine::net::NodeId;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

/// A whole number within bounds, with its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count<const MIN: u64, const MAX: u64, const DEFAULT: u64>(pub u64);

/// A number of bytes within bounds, written as `4096`, `"64K"`, `"10G"` or `"1.5TiB"` (powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size<const MIN: u64, const MAX: u64, const DEFAULT: u64>(pub u64);

/// A length of time within bounds (in milliseconds), written as `"500ms"`, `"30s"`, `"5m"`, `"24h"` or `"7d"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span<const MIN_MS: u64, const MAX_MS: u64, const DEFAULT_MS: u64>(pub u64);

/// An address and port to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(pub SocketAddr);

/// Identity of a node, 32 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeName(pub NodeId);

/// What volume types call the volumes of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendName(pub String);

impl Default for BackendName {
    fn default() -> Self {
        Self("quarry".to_owned())
    }
}

/// A key or password: never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> Default for Count<MIN, MAX, DEFAULT> {
    fn default() -> Self {
        const { assert!(MIN <= DEFAULT && DEFAULT <= MAX) };
        Self(DEFAULT)
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> Default for Size<MIN, MAX, DEFAULT> {
    fn default() -> Self {
        const { assert!(MIN <= DEFAULT && DEFAULT <= MAX) };
        Self(DEFAULT)
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> Default for Span<MIN, MAX, DEFAULT> {
    fn default() -> Self {
        const { assert!(MIN <= DEFAULT && DEFAULT <= MAX) };
        Self(DEFAULT)
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> Count<MIN, MAX, DEFAULT> {
    /// As a count of things in memory.
    #[must_use]
    pub fn get(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> Size<MIN, MAX, DEFAULT> {
    /// As a count of bytes in memory.
    #[must_use]
    pub fn get(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl<const MIN: u64, const MAX: u64, const DEFAULT: u64> Span<MIN, MAX, DEFAULT> {
    /// As a duration.
    #[must_use]
    pub fn get(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Bytes in the notation of the configuration: `"10G"`.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    for (unit, name) in UNITS {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    bytes.to_string()
}

/// Milliseconds in the notation of the configuration: `"24h"`.
#[must_use]
pub(crate) fn span_text(ms: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    for (unit, name) in UNITS {
        if ms >= unit && ms.is_multiple_of(unit) {
            return format!("{}{name}", ms / unit);
        }
    }
    format!("{ms}ms")
}

/// Reads a size: `None` when it is not in the notation.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return None,
    };
    scaled(number, 1 << shift)
}

/// Reads a length of time in milliseconds: `None` when it is not in the notation.
#[must_use]
pub(crate) fn parse_span(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    scaled(number, factor)
}

/// `number` (at most three decimal places) times `factor`, in whole numbers.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 3 || (number.contains('.') && fraction.is_empty()) {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let thousandths: u64 = if fraction.is_empty() { 0 } else { format!("{fraction:0<3}").parse().ok()? };
    let part = u128::from(factor) * u128::from(thousandths) / 1000;
    whole.checked_mul(factor)?.checked_add(u64::try_from(part).ok()?)
}

/// Reads a number or a text with `parse`, and checks the bounds; one body for all the bounded types.
struct Bounded<'a> {
    parse: fn(&str) -> Option<u64>,
    numbers: bool,
    allowed: &'a dyn Fn() -> String,
    bounds: (u64, u64),
}

impl Bounded<'_> {
    fn check<E: Error>(&self, found: &dyn fmt::Display, value: Option<u64>) -> Result<u64, E> {
        match value {
            Some(value) if (self.bounds.0..=self.bounds.1).contains(&value) => Ok(value),
            _ => Err(E::custom(format!("found {found}; allowed: {}", (self.allowed)()))),
        }
    }
}

impl Visitor<'_> for Bounded<'_> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&(self.allowed)())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<u64, E> {
        self.check(&value, u64::try_from(value).ok().filter(|_| self.numbers))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<u64, E> {
        self.check(&value, Some(value).filter(|_| self.numbers))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        self.check(&format_args!("{text:?}"), (self.parse)(text))
    }
}

impl<'de, const MIN: u64, const MAX: u64, const DEFAULT: u64> Deserialize<'de> for Count<MIN, MAX, DEFAULT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let allowed = || format!("a whole number from {MIN} to {MAX}");
        let visitor = Bounded { parse: |_| None, numbers: true, allowed: &allowed, bounds: (MIN, MAX) };
        deserializer.deserialize_any(visitor).map(Self)
    }
}

impl<'de, const MIN: u64, const MAX: u64, const DEFAULT: u64> Deserialize<'de> for Size<MIN, MAX, DEFAULT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let allowed = || {
            let (min, max) = (size_text(MIN), size_text(MAX));
            format!("a size in bytes, or with K, M, G or T such as \"10G\", from {min} to {max}")
        };
        let visitor = Bounded { parse: parse_size, numbers: true, allowed: &allowed, bounds: (MIN, MAX) };
        deserializer.deserialize_any(visitor).map(Self)
    }
}

impl<'de, const MIN: u64, const MAX: u64, const DEFAULT: u64> Deserialize<'de> for Span<MIN, MAX, DEFAULT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let allowed = || {
            let (min, max) = (span_text(MIN), span_text(MAX));
            format!(
                "a length of time such as \"500ms\", \"30s\", \"5m\", \"24h\" or \"7d\", from {min} to {max}"
            )
        };
        let visitor = Bounded { parse: parse_span, numbers: false, allowed: &allowed, bounds: (MIN, MAX) };
        deserializer.deserialize_any(visitor).map(Self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let allowed = "an IP address and port such as \"127.0.0.1:8080\" or \"[::1]:8080\"";
        text.parse().map(Self).map_err(|_| {
            D::Error::custom(format!("found {text:?}; allowed: {allowed} (port 0: any free one)"))
        })
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let allowed = "32 hex digits, as `quarry cluster show` prints them on that node";
        text.parse().map(Self).map_err(|_| D::Error::custom(format!("found {text:?}; allowed: {allowed}")))
    }
}

impl<'de> Deserialize<'de> for BackendName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if text.is_empty() || text.len() > 255 || !text.bytes().all(good) {
            let allowed = "1 to 255 letters, digits, `-`, `_` and `.`";
            return Err(D::Error::custom(format!("found {text:?}; allowed: {allowed}")));
        }
        Ok(Self(text))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What serde says of a value of another type quotes it.
        let text = String::deserialize(deserializer);
        let text = text.map_err(|_| D::Error::custom("found no text; allowed: a text in quotes"))?;
        if text.is_empty() || text.len() > 256 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            let found = format!("{} characters", text.chars().count());
            return Err(D::Error::custom(format!(
                "found {found}; allowed: 1 to 256 printable ASCII characters, no spaces"
            )));
        }
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_as_written() {
        for (text, bytes) in
            [("4096", 4096), ("64K", 65536), ("10G", 10 << 30), ("1.5TiB", 3 << 39), ("0", 0)]
        {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "G", "10X", "1.G", "-1", "1.2345G", "99999999999999999999"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        assert_eq!(size_text(10 << 30), "10G");
    }

    #[test]
    fn spans_read_back_as_written() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("1.5h", 5_400_000), ("7d", 604_800_000)] {
            assert_eq!(parse_span(text), Some(ms), "{text}");
        }
        for text in ["", "30", "s", "1y"] {
            assert_eq!(parse_span(text), None, "{text}");
        }
        assert_eq!(span_text(86_400_000), "1d");
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret("hunter2".to_owned())), "Secret");
        // What was written without its quotes.
        #[derive(Debug, Deserialize)]
        struct User {
            #[expect(dead_code, reason = "it is shown, or not")]
            key: Secret,
        }
        for wrong in ["4711", "[\"4711\"]", "\"47 11\"", "{ a = 4711 }"] {
            let error = toml::from_str::<User>(&format!("key = {wrong}")).unwrap_err();
            assert!(!error.message().contains("47"), "{error}");
        }
    }
}
