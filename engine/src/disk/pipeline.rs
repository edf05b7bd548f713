//! Two batches on their way to a quick device: one that it commits, and one behind it that it begins by itself.
//!
//! A write of some records with its flush takes a fast disk 0.1 ms. To be woken when it has ended, to form the next batch and to
//! have that begun takes half as long again, in which the device would do nothing. So the next batch is formed and handed over
//! while the first is out. It is closed by that, and who comes later waits for the one after it: it is worth its flush only when
//! there is much in it. A device that is not quick loses nothing by waiting, and gains the company.
//!
//! Invariant: a batch stands behind another only while that is committed, written with its flush in one request; the device begins
//! it when that has ended, and not at all if that failed.
//! Invariant: it takes no turn from the cleaner, and opens no segment.

use super::Durability;
use super::core::{Core, Flushing, Writing};
use super::format::batch::HeadClass;
use super::limits::{COMMIT_BYTES, MAX_BATCH, SPLIT_FROM};
use super::shared::Append;
use crate::io::BLOCK;

/// Part of the bytes that are being committed which is worth a flush of its own behind them. Less costs more flushes, more comes
/// seldom before the device has ended: at a half, 32 callers had 0.71 of what a raw loop did, at a quarter 0.83.
const WORTH: u64 = 4;

/// What stands behind the commit that is out.
pub(crate) struct Behind {
    pub(crate) writing: Writing,
    pub(crate) flushing: Flushing,
}

impl Core {
    /// Forms the batch behind the commit that is out, if there is enough for one. False: there is not.
    pub(crate) fn start_behind(&mut self) -> bool {
        self.room_behind() == Some(0) && !self.clients.is_empty() && self.start_class(HeadClass::Hot)
    }

    /// Bytes that must come before a batch is worth to stand behind the commit that is out. `None`: none may, however many.
    pub(crate) fn room_behind(&self) -> Option<usize> {
        let commit = self.writing.as_ref().filter(|writing| writing.commits)?;
        let waits = |append: &Append| append.durability == Durability::Durable;
        let may = self.behind.is_none()
            && self.unapplied.is_empty()
            && self.movers.is_empty()
            && self.clients.front().is_none_or(waits)
            && !self.failed()
            && self.disk.pipelines();
        let worth = usize::try_from(commit.batch.bytes / WORTH).unwrap_or(usize::MAX);
        may.then(|| self.room_in_queue(worth))
    }

    /// Most groups of clients for the batch being formed. Whoever comes together is answered together and comes together again,
    /// while the device waits for them; in two halves one is committed while the other is applied.
    pub(crate) fn share_of_clients(&self) -> usize {
        let all = self.clients.len();
        let split = all >= SPLIT_FROM && self.log_is_quiet() && self.disk.pipelines();
        if split { all.div_ceil(2) } else { all }
    }

    /// Most bytes of the batch being formed. What stands behind another is committed whole.
    pub(crate) fn most_bytes_now(&self) -> usize {
        if self.writing.is_some() { COMMIT_BYTES - BLOCK } else { MAX_BATCH }
    }

    /// The commit that was out has ended: what stands behind it is out now.
    pub(crate) fn advance(&mut self) {
        if let Some(Behind { writing, flushing }) = self.behind.take() {
            (self.writing, self.flushing) = (Some(writing), Some(flushing));
        }
    }
}
