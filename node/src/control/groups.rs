//! The two groups that every node takes part in: the control group, and the first index group.
//!
//! Invariant: groups are founded by the node that made the cluster, once; every other node opens them empty and is filled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quarry_engine::clock::Clock;
use quarry_engine::consensus::{
    Entry, Expected, Group, GroupError, GroupOptions, Groups, Guard, Outcome, RowChange, Settings,
};
use quarry_engine::disk::DiskHandle;
use quarry_engine::index::Range;
use quarry_engine::net::Transport;

use super::runtime::Tokio;
use super::state::{BadState, KeyValue, State, prefix};

/// Number of the control group.
pub(crate) const CONTROL: u32 = 0;
/// Number of the first index group.
pub(crate) const NAMES: u32 = 1;

/// Both groups.
#[derive(Debug, Clone)]
pub(crate) struct Both {
    pub(crate) all: Groups,
    pub(crate) control: Group,
    pub(crate) names: Group,
}

/// Why the control group did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error(transparent)]
    State(#[from] BadState),
    #[error(transparent)]
    Index(#[from] quarry_engine::index::IndexError),
    /// Somebody else changed it first; it is looked at again.
    #[error("the cluster changed meanwhile")]
    Changed,
}

impl Both {
    /// Opens both on a disk. `above`: every version time that this node gave so far, when it founds the cluster.
    pub(crate) async fn open(
        disk: &DiskHandle,
        net: Arc<dyn Transport>,
        founds: bool,
        above: u64,
    ) -> Result<Self, GroupError> {
        if founds {
            let voters = BTreeSet::from([net.local()]);
            Group::found(disk, NAMES, voters.clone(), above).await?;
            Group::found(disk, CONTROL, voters, above).await?;
        }
        let runtime = Arc::new(Tokio::current());
        let options = GroupOptions { disk: disk.clone(), net, settings: Settings::default(), runtime };
        let all = Groups::new();
        let control = all.open(CONTROL, options.clone()).await?;
        let names = all.open(NAMES, options).await?;
        Ok(Self { all, control, names })
    }

    /// Stops both.
    pub(crate) async fn close(&self) {
        for group in self.all.all() {
            if let Err(error) = group.close().await {
                tracing::warn!(group = group.id(), %error, "close group");
            }
        }
    }
}

/// Rows of the control group with their version times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    pub(crate) rows: BTreeMap<Vec<u8>, Vec<u8>>,
    times: BTreeMap<Vec<u8>, u64>,
}

impl Table {
    /// As applied at this node.
    pub(crate) fn read(control: &Group) -> Result<Self, ControlError> {
        let mut table = Self::default();
        for pair in control.scan(&Range::prefix(&prefix()))? {
            let (key, row) = pair?;
            table.times.insert(key.clone(), row.sequence);
            table.rows.insert(key, row.value);
        }
        Ok(table)
    }

    /// What they say.
    pub(crate) fn state(&self) -> Result<State, BadState> {
        State::of_rows(&self.rows)
    }

    /// The newest version time: two tables with one are the same.
    pub(crate) fn newest(&self) -> (usize, u64) {
        (self.rows.len(), self.times.values().copied().max().unwrap_or(0))
    }

    fn guard(&self, key: &[u8]) -> Guard {
        let expected = self.times.get(key).map_or(Expected::Absent, |time| Expected::Sequence(*time));
        Guard { key: key.to_vec(), expected }
    }
}

/// Changes rows of the control group, given that they are as `table` says.
pub(crate) async fn change(
    control: &Group,
    clock: &Clock,
    table: &Table,
    rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
) -> Result<(), ControlError> {
    let guards = rows.iter().map(|(key, _)| table.guard(key)).collect();
    let change = |(key, value)| RowChange { key, sequence: clock.tick().0, value };
    let entry = Entry { term: None, guards, rows: rows.into_iter().map(change).collect() };
    match control.propose(entry).await? {
        Outcome::Applied => Ok(()),
        Outcome::Refused(_) | Outcome::Stale { .. } | Outcome::Fenced { .. } | Outcome::Repeated => {
            Err(ControlError::Changed)
        }
    }
}

/// Rows that stand, as a change.
pub(crate) fn put(rows: impl IntoIterator<Item = KeyValue>) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    rows.into_iter().map(|(key, value)| (key, Some(value))).collect()
}
