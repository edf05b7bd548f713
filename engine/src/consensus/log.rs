//! The log, as openraft asks for it.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::raft::{LogEntry, LogId, Rows, Stored, Vote, broken};
use super::store::Store;

/// A group's log; clones are readers of the same.
#[derive(Clone)]
pub(crate) struct Log(pub(crate) Arc<Store>);

impl RaftLogReader<Rows> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Stored<Vec<LogEntry>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.0.read(start, end).await.map_err(|e| broken(&e))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Stored<Vec<LogEntry>> {
        self.0.read_some(start, end).await.map_err(|e| broken(&e))
    }
}

impl RaftLogStorage<Rows> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Stored<LogState<Rows>> {
        let (last_purged_log_id, last_log_id) = self.0.ends();
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Stored<()> {
        self.0.save_vote(*vote).await.map_err(|e| broken(&e))
    }

    async fn read_vote(&mut self) -> Stored<Option<Vote>> {
        Ok(self.0.vote())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Rows>) -> Stored<()>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().collect();
        match self.0.append(entries).await {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(e) => Err(broken(&e)),
        }
    }

    async fn truncate(&mut self, log_id: LogId) -> Stored<()> {
        self.0.truncate(log_id.index).await.map_err(|e| broken(&e))
    }

    async fn purge(&mut self, log_id: LogId) -> Stored<()> {
        self.0.purge(log_id).await.map_err(|e| broken(&e))
    }
}
