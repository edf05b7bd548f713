//! How many replicas make a change: Swift's rule.
//!
//! Invariant: a tally is decided once and for all: more answers never turn it round.

use std::future::poll_fn;
use std::task::Poll;

use super::replica::BoxFuture;
use super::{Error, Result};

/// Replicas that must have a change before the client hears of it: `(n + 1) / 2`.
#[must_use]
pub const fn quorum(replicas: usize) -> usize {
    replicas.div_ceil(2)
}

/// What the answers so far mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not decided.
    Open,
    /// Enough have it.
    Reached,
    /// Too many failed.
    Lost,
}

/// Judges `done` successes and `failed` failures among `replicas`.
#[must_use]
pub const fn judge(replicas: usize, done: usize, failed: usize) -> Verdict {
    if done >= quorum(replicas) {
        Verdict::Reached
    } else if failed > replicas - quorum(replicas) {
        Verdict::Lost
    } else {
        Verdict::Open
    }
}

/// Runs one future per replica until a quorum is reached or lost. What was submitted goes on without being waited for.
pub(crate) async fn reach(mut appends: Vec<BoxFuture<'static, Result<()>>>) -> Result<()> {
    let replicas = appends.len();
    if replicas == 0 {
        return Err(Error::Unavailable { reason: "no device holds this partition".to_owned() });
    }
    let (mut done, mut failed, mut last) = (0, 0, None);
    poll_fn(move |context| {
        appends.retain_mut(|append| match append.as_mut().poll(context) {
            Poll::Pending => true,
            Poll::Ready(Ok(())) => {
                done += 1;
                false
            }
            Poll::Ready(Err(e)) => {
                failed += 1;
                last = Some(e);
                false
            }
        });
        match judge(replicas, done, failed) {
            Verdict::Open => Poll::Pending,
            Verdict::Reached => Poll::Ready(Ok(())),
            Verdict::Lost => {
                let unknown = || Error::Unavailable { reason: "no quorum".to_owned() };
                Poll::Ready(Err(last.take().unwrap_or_else(unknown)))
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_half_rounded_up() {
        assert_eq!([1, 2, 3, 4, 5].map(quorum), [1, 1, 2, 2, 3]);
    }

    #[test]
    fn every_tally_ends_decided_and_stays_so() {
        for replicas in 1..6 {
            for done in 0..=replicas {
                for failed in 0..=(replicas - done) {
                    let now = judge(replicas, done, failed);
                    if done + failed == replicas {
                        assert_ne!(now, Verdict::Open, "{replicas} {done} {failed}");
                    } else if now != Verdict::Open {
                        assert_eq!(judge(replicas, done + 1, failed), now, "{replicas} {done} {failed}");
                        assert_eq!(judge(replicas, done, failed + 1), now, "{replicas} {done} {failed}");
                    }
                }
            }
        }
    }
}
