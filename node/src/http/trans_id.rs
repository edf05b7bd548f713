//! Transaction ids as Swift writes them: `tx`, 21 hex digits that differ, `-`, and ten hex digits of the time.
//!
//! Invariant: no two ids of one process are equal; ids of two processes differ with overwhelming likelihood.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;

/// Bytes of an id without extra: `tx`, 21, `-`, 10.
const LENGTH: usize = 2 + 21 + 1 + 10;

/// Most characters that a client may add with X-Trans-Id-Extra, as in Swift.
const MAX_EXTRA: usize = 32;

/// Makes ids.
#[derive(Debug)]
pub(crate) struct TransIds {
    seed: u64,
    next: AtomicU64,
}

/// One id.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct TransId(HeaderValue);

impl TransIds {
    /// Begins at a random place.
    pub(crate) fn new() -> Self {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).expect("the operating system has randomness");
        Self { seed: u64::from_le_bytes(seed), next: AtomicU64::new(0) }
    }

    /// A new id at `now` (Unix seconds), with what the client wants added.
    pub(crate) fn next(&self, now: u64, extra: Option<&HeaderValue>) -> TransId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut text = [0; LENGTH];
        text[..2].copy_from_slice(b"tx");
        put_hex(&mut text[2..18], mixed(self.seed ^ mixed(number)));
        put_hex(&mut text[18..23], mixed(self.seed.rotate_left(32).wrapping_add(number)));
        text[23] = b'-';
        put_hex(&mut text[24..], now);
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let extra =
            extra.map(HeaderValue::as_bytes).filter(|extra| !extra.is_empty() && extra.iter().all(plain));
        let value = match extra {
            None => HeaderValue::from_bytes(&text),
            Some(extra) => {
                HeaderValue::from_bytes(&[&text, &b"-"[..], &extra[..extra.len().min(MAX_EXTRA)]].concat())
            }
        };
        TransId(value.expect("hex digits and checked characters"))
    }
}

impl TransId {
    /// As a header.
    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// As text.
    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or("")
    }
}

impl fmt::Display for TransId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TransId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A bijection of 64-bit numbers that spreads neighbours (the finaliser of SplitMix64).
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The lowest digits of `value`, as many as there is room for.
fn put_hex(room: &mut [u8], value: u64) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (place, byte) in room.iter_mut().rev().enumerate() {
        *byte = DIGITS[((value >> (4 * place)) & 15) as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_swifts_form_and_differ() {
        let ids = TransIds::new();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let id = ids.next(0x6742_0000, None);
            let text = id.as_str();
            assert_eq!(text.len(), 34);
            assert!(text.starts_with("tx") && text.ends_with("-0067420000"), "{text}");
            assert!(text[2..23].bytes().all(|b| b.is_ascii_hexdigit()));
            assert!(seen.insert(text.to_owned()));
        }
    }

    #[test]
    fn a_clients_extra_is_added_when_it_is_plain() {
        let ids = TransIds::new();
        let extra = |text: &str| ids.next(0, Some(&HeaderValue::from_str(text).unwrap())).as_str().to_owned();
        assert!(extra("job-7").ends_with("-0000000000-job-7"));
        assert_eq!(extra("bad extra").len(), 34);
        assert_eq!(extra(&"x".repeat(100)).len(), 34 + 1 + 32);
    }
}
