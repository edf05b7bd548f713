//! Lines of a log that would come again and again: a peer that is wrong is called, or calls, several times a second.
//!
//! Invariant: the first line about an address and a reason is said at once, the same again at most once in [`PAUSE`].
//! Invariant: at most [`KEPT`] of them are remembered; what is forgotten is said again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the same line is held back. Ports do not matter: each try has another one.
const PAUSE: Duration = Duration::from_secs(60);
/// How many lines are remembered.
const KEPT: usize = 256;

/// What was said of peers by this process.
static SAID: Said = Said(Mutex::new(BTreeMap::new()));

#[derive(Debug, Default)]
struct Said(Mutex<BTreeMap<(IpAddr, String), Held>>);

#[derive(Debug)]
struct Held {
    said: Instant,
    /// Lines held back since.
    back: u64,
}

impl Said {
    /// How many such lines were held back since the last one, when one is due.
    fn due(&self, peer: IpAddr, why: &str, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (peer, why.to_owned());
        if let Some(held) = lines.get_mut(&key) {
            if now.saturating_duration_since(held.said) < PAUSE {
                held.back += 1;
                return None;
            }
            let back = held.back;
            *held = Held { said: now, back: 0 };
            return Some(back);
        }
        if lines.len() >= KEPT {
            lines.retain(|_, held| now.saturating_duration_since(held.said) < PAUSE);
        }
        if lines.len() >= KEPT {
            lines.clear();
        }
        lines.insert(key, Held { said: now, back: 0 });
        Some(0)
    }
}

/// How many lines of this peer and reason were held back, when the next one is due now.
pub(super) fn due(peer: IpAddr, why: &str) -> Option<u64> {
    SAID.due(peer, why, Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_line_is_said_at_once_and_then_once_in_a_pause_with_what_was_held_back() {
        let (said, begin) = (Said::default(), Instant::now());
        assert_eq!(said.due(ip(1), "wrong", begin), Some(0));
        for _ in 0..7 {
            assert_eq!(said.due(ip(1), "wrong", begin), None);
        }
        assert_eq!(said.due(ip(1), "other", begin), Some(0), "another reason");
        assert_eq!(said.due(ip(2), "wrong", begin), Some(0), "another peer");
        assert_eq!(said.due(ip(1), "wrong", begin + PAUSE), Some(7));
        assert_eq!(said.due(ip(1), "wrong", begin + PAUSE), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (said, begin) = (Said::default(), Instant::now());
        for n in 0..10 * KEPT {
            said.due(ip(1), &n.to_string(), begin);
            assert!(said.0.lock().unwrap().len() <= KEPT);
        }
    }
}
