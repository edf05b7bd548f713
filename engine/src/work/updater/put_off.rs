//! Intents that could not be delivered although their group answers, and when they are tried again. Pure.
//!
//! Invariant: what is put off is tried again within [`LONGEST`], also where the clock jumps; and at once where it was written anew.
//! Invariant: at most [`MOST`] are remembered: others are tried in each pass.

use std::collections::HashMap;
use std::time::Duration;

use crate::catalog::{Intent, PathHash};

/// First and longest pause, in microseconds.
const FIRST: u64 = 5_000_000;
const LONGEST: u64 = 600_000_000;
/// Pauses are doubled so often.
const DOUBLED: u32 = 7;
/// How long a delivery is waited for: most go in milliseconds, and those that do not are many at a time. One that failed is given more
/// time when it is tried again, at once enough for a device that stalls.
const PATIENCE: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_millis(2500), Duration::from_secs(4)];
/// Most that are remembered.
const MOST: usize = 1 << 14;

#[derive(Debug)]
struct Failed {
    /// Which version's.
    sequence: u64,
    times: u32,
    until: u64,
    /// It was there in this pass.
    seen: bool,
}

/// Those of a disk.
#[derive(Debug, Default)]
pub(super) struct PutOff(HashMap<PathHash, Failed>);

impl PutOff {
    fn of(&self, intent: &Intent) -> Option<&Failed> {
        self.0.get(&intent.hash).filter(|failed| failed.sequence == intent.sequence)
    }

    /// Whether it is left alone for now.
    pub(super) fn waits(&mut self, intent: &Intent, now: u64) -> bool {
        let failed = self.0.get_mut(&intent.hash).filter(|failed| failed.sequence == intent.sequence);
        let Some(failed) = failed else { return false };
        failed.seen = true;
        failed.until > now && failed.until - now <= LONGEST
    }

    /// How long it is waited for.
    pub(super) fn patience(&self, intent: &Intent) -> Duration {
        let times = match self.of(intent) {
            Some(failed) => failed.times as usize,
            // It may have failed before.
            None if self.0.len() >= MOST => PATIENCE.len(),
            None => 0,
        };
        PATIENCE[times.min(PATIENCE.len() - 1)]
    }

    /// It was tried and failed.
    pub(super) fn put_off(&mut self, intent: &Intent, now: u64) {
        if !self.0.contains_key(&intent.hash) && self.0.len() >= MOST {
            return;
        }
        let times = self.of(intent).map_or(0, |failed| failed.times);
        let pause = (FIRST << times.min(DOUBLED)).min(LONGEST);
        let until = now.saturating_add(pause);
        let failed = Failed { sequence: intent.sequence, times: times + 1, until, seen: true };
        self.0.insert(intent.hash, failed);
    }

    /// It was delivered.
    pub(super) fn forget(&mut self, intent: &Intent) {
        self.0.remove(&intent.hash);
    }

    /// All were looked at: those that were not there are gone.
    pub(super) fn pass_ended(&mut self) {
        self.0.retain(|_, failed| std::mem::take(&mut failed.seen));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::ObjectPath;

    fn intent(n: u32, sequence: u64) -> Intent {
        let path = ObjectPath { account: "a".into(), container: "c".into(), object: n.to_string().into() };
        Intent { hash: u128::from(n).to_be_bytes(), sequence, container: 1, path }
    }

    #[test]
    fn pauses_and_patience_grow_and_end() {
        let (mut put_off, intent) = (PutOff::default(), intent(1, 5));
        assert_eq!(put_off.patience(&intent), PATIENCE[0]);
        let (mut now, mut before) = (1_000_000_000_000, 0);
        for _ in 0..20 {
            assert!(!put_off.waits(&intent, now));
            put_off.put_off(&intent, now);
            let began = now;
            while put_off.waits(&intent, now) {
                now += 1_000_000;
            }
            assert!(now - began >= before && now - began <= LONGEST);
            before = now - began;
        }
        assert_eq!((before, put_off.patience(&intent)), (LONGEST, PATIENCE[2]));
        put_off.put_off(&intent, now);
        assert!(put_off.waits(&intent, now));
        assert!(!put_off.waits(&intent, 1000), "the clock was set back by years");
        put_off.forget(&intent);
        assert!(!put_off.waits(&intent, now));
    }

    #[test]
    fn a_later_version_is_not_put_off_and_what_is_gone_is_forgotten() {
        let mut put_off = PutOff::default();
        put_off.put_off(&intent(1, 5), 100);
        assert!(put_off.waits(&intent(1, 5), 100) && !put_off.waits(&intent(1, 6), 100));
        put_off.pass_ended();
        assert_eq!(put_off.0.len(), 1, "it was there");
        put_off.pass_ended();
        assert!(put_off.0.is_empty(), "it was not");
    }

    #[test]
    fn memory_is_bounded() {
        let mut put_off = PutOff::default();
        let most = u32::try_from(MOST).unwrap();
        (0..2 * most).for_each(|n| put_off.put_off(&intent(n, 5), 100));
        assert_eq!(put_off.0.len(), MOST);
        assert!(!put_off.waits(&intent(most, 5), 100), "it is tried in each pass");
        assert_eq!(put_off.patience(&intent(most, 5)), PATIENCE[2]);
    }
}
