//! The groups that this node takes part in: the control group, as every node does, and index groups.
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
use quarry_engine::net::{Service, Transport};
use quarry_engine::object::Options;

use super::MemberError;
use super::runtime::Tokio;
use super::seats::{self, Seats};
use super::state::{BadState, KeyValue, State, prefix};
use crate::cluster;

/// Number of the control group; index groups are counted from 1.
pub(crate) const CONTROL: u32 = 0;

/// The groups of this node.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    pub(crate) control: Group,
    pub(crate) index: Seats,
    all: Groups,
}

/// What they are opened with.
pub(crate) struct Opening {
    pub(crate) disks: Vec<DiskHandle>,
    /// This node has a disk that is not among these.
    pub(crate) misses: bool,
    pub(crate) net: Arc<dyn Transport>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) options: Options,
    /// How many index groups are to be made, by the founder of a cluster.
    pub(crate) founds: Option<u32>,
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

impl Own {
    /// Opens what the disks have; the control group is on the first.
    pub(crate) async fn open(opening: Opening) -> Result<Self, MemberError> {
        let Opening { disks, misses, net, clock, options, founds } = opening;
        let first = disks.first().cloned().ok_or(MemberError::NoDisk)?;
        // Every version time that this node gave so far.
        let above = disks.iter().map(DiskHandle::max_sequence).max().unwrap_or(0);
        let (all, runtime) = (Groups::new(), Arc::new(Tokio::current()));
        let parts = seats::Parts {
            disks,
            misses,
            net: Arc::clone(&net),
            groups: all.clone(),
            clock,
            since: cluster::monotonic(),
            options,
            runtime: Arc::clone(&runtime),
        };
        let index = Seats::new(parts);
        if let Some(count) = founds {
            index.found(count, above).await?;
            Group::found(&first, CONTROL, BTreeSet::from([net.local()]), above).await?;
        }
        let options = GroupOptions {
            disk: first,
            net,
            settings: Settings { takes_always: true, ..Settings::default() },
            runtime,
        };
        let control = all.open(CONTROL, options).await?;
        index.open_held().await?;
        Ok(Self { control, index, all })
    }

    /// A group that is open here.
    pub(crate) fn group(&self, group: u32) -> Option<Group> {
        self.all.get(group)
    }

    /// Every group that is open here.
    pub(crate) fn all(&self) -> Vec<Group> {
        self.all.all()
    }

    /// Answers other voters, and hands everything else on.
    pub(crate) fn service(&self, others: Arc<dyn Service>) -> Arc<dyn Service> {
        self.all.service(others)
    }

    /// Gives away the lead of every group that this node leads. From then on it takes no part in elections.
    pub(crate) async fn step_down(&self) {
        let all = self.all();
        futures_util::future::join_all(all.iter().map(Group::step_down)).await;
    }

    /// Stops them all.
    pub(crate) async fn close(&self) {
        for group in self.all() {
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
        Outcome::Refused(_)
        | Outcome::Stale { .. }
        | Outcome::Fenced { .. }
        | Outcome::Moved(_)
        | Outcome::Repeated => Err(ControlError::Changed),
    }
}

/// Rows that stand, as a change.
pub(crate) fn put(rows: impl IntoIterator<Item = KeyValue>) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    rows.into_iter().map(|(key, value)| (key, Some(value))).collect()
}
