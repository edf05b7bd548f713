//! How fast a volume may be used. Pure: times are nanoseconds of any clock that does not run back.
//!
//! A bucket holds `burst` tokens at most and gets `per_second` more each second. A request begins when the bucket has any, and may
//! take more than there are: what comes next waits until that is paid. So one request larger than the burst is late, never refused.
//!
//! Invariant: over any time t no more begins than burst + per_second x t, and one request.
//! Invariant: a request waits for the slowest of the buckets that it takes from, and takes from each as if it began at once: a write that
//! waits for the writes' own bucket does not hold up reads.

/// A rate, and how much may come at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rate {
    /// 0: no limit.
    pub per_second: u64,
    /// Tokens of a full bucket.
    pub burst: u64,
}

/// What a rate is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, discards and zeroes.
    Write,
}

/// How many rates there are.
pub const RATES: usize = 6;

/// The limits of a volume: requests a second, then bytes a second; each of all, of reads, of writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits(pub [Rate; RATES]);

impl Limits {
    /// Nothing is limited.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.0.iter().all(|rate| rate.per_second == 0)
    }
}

/// Positions in [`Limits`] of requests and bytes that a request takes from.
fn taken(kind: Kind) -> ([usize; 2], [usize; 2]) {
    match kind {
        Kind::Read => ([0, 1], [3, 4]),
        Kind::Write => ([0, 2], [3, 5]),
    }
}

const SECOND: u128 = 1_000_000_000;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    rate: Rate,
    /// When it is full again if nothing comes.
    full_at: u64,
}

impl Bucket {
    /// In how many nanoseconds so many tokens come.
    fn fills_in(&self, tokens: u64) -> u64 {
        let time = u128::from(tokens) * SECOND / u128::from(self.rate.per_second.max(1));
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    fn earliest(&self, now: u64) -> u64 {
        now.max(self.full_at.saturating_sub(self.fills_in(self.rate.burst)))
    }

    fn take(&mut self, now: u64, tokens: u64) {
        self.full_at = self.full_at.max(now).saturating_add(self.fills_in(tokens));
    }
}

/// The buckets of a volume.
#[derive(Debug, Clone)]
pub struct Buckets([Bucket; RATES]);

impl Buckets {
    /// Full ones.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self(limits.0.map(|rate| Bucket { rate, full_at: 0 }))
    }

    /// A request of `bytes` comes: when it may begin.
    pub fn ask(&mut self, now: u64, kind: Kind, bytes: u64) -> u64 {
        let (requests, data) = taken(kind);
        let tokens = requests.map(|at| (at, 1)).into_iter().chain(data.map(|at| (at, bytes)));
        let mut begins = now;
        for (at, tokens) in tokens.filter(|(_, tokens)| *tokens > 0) {
            let Some(bucket) = self.0.get_mut(at).filter(|bucket| bucket.rate.per_second > 0) else {
                continue;
            };
            begins = begins.max(bucket.earliest(now));
            bucket.take(now, tokens);
        }
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn only(at: usize, per_second: u64, burst: u64) -> Buckets {
        let mut limits = Limits::default();
        limits.0[at] = Rate { per_second, burst };
        assert!(!limits.is_free() && Limits::default().is_free());
        Buckets::new(limits)
    }

    /// Someone who asks for the next when the last began: how many began within a time.
    fn begun(buckets: &mut Buckets, from: u64, within: u64, kind: Kind, bytes: u64) -> u64 {
        let (mut now, mut count) = (from, 0);
        loop {
            now = buckets.ask(now, kind, bytes).max(now);
            if now >= from + within {
                return count;
            }
            count += 1;
        }
    }

    #[test]
    fn requests_come_at_their_rate_and_a_burst_after_a_pause() {
        let mut buckets = only(0, 100, 50);
        // A full bucket, a second's worth, and one on credit.
        assert!((150..=151).contains(&begun(&mut buckets, 7 * S, S, Kind::Read, 4096)));
        assert!((998..=1001).contains(&begun(&mut buckets, 8 * S, 10 * S, Kind::Write, 0)));
        assert!(
            (150..=151).contains(&begun(&mut buckets, 1000 * S, S, Kind::Read, 1)),
            "a long pause fills it once"
        );
    }

    #[test]
    fn bytes_are_counted_and_a_large_request_is_late_not_refused() {
        let mut buckets = only(3, 1 << 20, 0);
        assert_eq!(buckets.ask(S, Kind::Write, 8 << 20), S, "nothing was owed");
        assert_eq!(buckets.ask(S, Kind::Read, 1), 9 * S);
        let mut buckets = only(3, 1 << 20, 1 << 20);
        assert!((10..=12).contains(&begun(&mut buckets, S, 10 * S, Kind::Read, 1 << 20)));
        assert_eq!(buckets.ask(20 * S, Kind::Write, 0), 20 * S, "what has no bytes pays none");
    }

    #[test]
    fn reads_and_writes_have_their_own_and_do_not_wait_for_one_another() {
        let mut buckets = only(2, 10, 0);
        assert_eq!(begun(&mut buckets, S, S, Kind::Write, 4096), 10);
        assert_eq!(buckets.ask(S, Kind::Read, 4096), S, "reads are free");
        let mut limits = Limits::default();
        limits.0[0] = Rate { per_second: 1000, burst: 10 };
        limits.0[2] = Rate { per_second: 1, burst: 0 };
        let mut both = Buckets::new(limits);
        assert_eq!((both.ask(S, Kind::Write, 1), both.ask(S, Kind::Write, 1)), (S, 2 * S));
        assert_eq!(both.ask(S, Kind::Read, 1), S, "a write that waits holds up no read");
    }

    #[test]
    fn the_largest_numbers_do_no_harm() {
        let mut buckets = only(3, 1, u64::MAX);
        for _ in 0..4 {
            buckets.ask(u64::MAX - 5, Kind::Read, u64::MAX);
        }
        let mut buckets = only(3, u64::MAX, u64::MAX);
        assert_eq!(buckets.ask(3, Kind::Read, u64::MAX), 3);
    }
}
