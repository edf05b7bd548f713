//! The row machine, as openraft asks for it: applied entries are rows in the index, and the rows are the snapshot.
//!
//! Invariant: what is applied is in the index when `apply` returns; all of it shares one flush, or few.
//! Invariant: openraft hears of no applied state before an installation that was begun has ended.

use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::RaftStateMachine;
use openraft::{OptionalSend, RaftSnapshotBuilder};

use super::back;
use super::codec::{Marker, Staged};
use super::give::give;
use super::install::install;
use super::judge::{Judge, Step};
use super::propose::Proposals;
use super::raft::{LogEntry, LogId, Rows, Snapshot, SnapshotMeta, Stored, StoredMembership, broken};
use super::registry::Family;
use super::snapshot::{RowStream, SnapshotData};
use super::store::{Progress, Store};
use super::types::{GroupError, Outcome, RowChange};
use crate::catalog::{self, GroupTag};
use crate::disk::format::record::{Kind, NewRecord, Parts};
use crate::disk::{DiskError, DiskHandle, Durability};
use crate::index::IndexError;
use crate::net::NodeId;

/// The rows of a group.
pub(crate) struct Machine {
    store: Arc<Store>,
    /// This node.
    node: NodeId,
    /// Those of this node, which wait for what they propose to be applied.
    proposals: Arc<Proposals>,
    /// Groups that it may have to end, to take lines back.
    family: Family,
    marker: Marker,
}

/// The record of a row, whose key in the index this is.
pub(crate) fn row_record(disk: &DiskHandle, key: &[u8], sequence: u64, value: Option<&[u8]>) -> NewRecord {
    let (deleted, meta) = (value.is_none(), value.unwrap_or_default());
    disk.record(Parts { kind: Kind::Row, deleted, sequence, number: 0, key, meta, data: Bytes::new() })
}

/// What was applied on this disk.
pub(crate) async fn load_marker(store: &Store) -> Result<Marker, GroupError> {
    let bad = |what: String| GroupError::Damaged { group: store.group, what };
    match store.fetch(GroupTag::Marker, 0).await.map_err(|e| bad(e.to_string()))? {
        Some((_, data)) => Marker::decode(&data).map_err(|e| bad(e.to_string())),
        None => Ok(Marker::default()),
    }
}

impl Machine {
    /// Ends what a crash interrupted.
    pub(crate) async fn open(
        store: Arc<Store>,
        node: NodeId,
        proposals: Arc<Proposals>,
        family: Family,
    ) -> Result<Self, GroupError> {
        let marker = load_marker(&store).await?;
        let mut machine = Self { store, node, proposals, family, marker };
        let unavailable = |e: DiskError| GroupError::Unavailable(e.to_string());
        match machine.store.staged() {
            Some(staged) => machine.install(staged, true).await.map_err(unavailable)?,
            // Chunks that may lie here are of no use: whoever sent them begins anew.
            None => {
                machine.store.unstage().await.map_err(unavailable)?;
                machine.tell();
            }
        }
        Ok(machine)
    }

    fn tell(&self) {
        let Marker { applied, max_sequence, .. } = self.marker;
        self.store.set_progress(Progress { applied, max_sequence, installing: false });
    }

    async fn install(&mut self, staged: Staged, opening: bool) -> Result<(), DiskError> {
        install(&self.store, &self.family, opening, &staged).await?;
        self.marker = staged.marker;
        Ok(())
    }

    async fn write(&self, steps: Vec<Step>) -> Result<(), DiskError> {
        let mut under_way = Vec::with_capacity(steps.len());
        let (mut moves, mut made) = (false, Vec::new());
        // Where nobody waits for it, it goes with what the disk writes next: the entries that follow, at the latest.
        let nobody_waits = self.proposals.are_done();
        let durability = if nobody_waits { Durability::Lazy } else { Durability::Durable };
        let territory = self.store.territory();
        self.store.count.follow(self.store.disk.index(), &territory, &steps)?;
        for Step { rows, marker, gives } in steps {
            let row = |row: &RowChange| {
                let key = territory.place(&row.key);
                row_record(&self.store.disk, &key, row.sequence, row.value.as_deref())
            };
            let mut records: Vec<NewRecord> = rows.iter().map(row).collect();
            if let Some((row, after)) = rows.first().zip(gives) {
                let child = give(&self.store, self.node, row, &after)?;
                records.extend(child.records);
                made.extend(child.made);
            }
            let borders = |row: &RowChange| matches!(row.key.first(), Some(&catalog::GIVEN | &catalog::PART));
            moves |= rows.iter().any(borders);
            records.push(self.store.marker_record(&marker));
            under_way.push(self.store.submit(records, durability).await?);
        }
        for submitted in under_way {
            submitted.done().await?;
        }
        if moves {
            self.store.survey()?;
        }
        if !made.is_empty() {
            self.store.made.send_modify(|known| known.extend(made));
        }
        Ok(())
    }

    fn meta(&self) -> Option<SnapshotMeta> {
        let applied = self.marker.applied?;
        let snapshot_id = format!("{}-{}", applied.leader_id.term, applied.index);
        let last_membership = self.marker.membership.clone();
        Some(SnapshotMeta { last_log_id: Some(applied), last_membership, snapshot_id })
    }

    async fn stage(&self, mut rows: RowStream) -> Result<u64, DiskError> {
        self.store.unstage().await?;
        let mut chunks = 0;
        while let Some(chunk) = rows.next().await? {
            self.store.stage(chunks, chunk).await?;
            chunks += 1;
        }
        Ok(chunks)
    }

    async fn replace(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> Result<(), DiskError> {
        let (marker, chunks) = match data {
            SnapshotData::Staged { marker, chunks } => (marker, chunks),
            SnapshotData::Rows { marker, rows } => (marker, self.stage(rows).await?),
            SnapshotData::Nothing => (Marker::default(), 0),
        };
        let membership = meta.last_membership.clone();
        let staged = Staged { marker: Marker { applied: meta.last_log_id, membership, ..marker }, chunks };
        self.store.decide(staged.clone()).await?;
        self.install(staged, false).await
    }

    /// Applies entries of which none is behind one that takes lines back.
    async fn apply_some(&mut self, entries: &[LogEntry]) -> Stored<Vec<Vec<Outcome>>> {
        let (store, territory) = (Arc::clone(&self.store), self.store.territory());
        let stands = |key: &[u8]| {
            let row = catalog::row(store.disk.index(), &territory.place(key))?;
            Ok(row.map(|row| row.sequence))
        };
        let mut judge = Judge::new(self.marker.clone(), Arc::clone(&territory), stands);
        let mut outcomes = Vec::with_capacity(entries.len());
        for entry in entries {
            outcomes.push(judge.apply(entry).map_err(|e| broken(&e))?);
        }
        let (steps, marker) = judge.finish();
        self.write(steps).await.map_err(|e| broken(&e))?;
        self.marker = marker;
        Ok(outcomes)
    }
}

fn over() -> DiskError {
    DiskError::from(IndexError::Store { verb: "apply", reason: "the group is over".to_owned() })
}

impl RaftStateMachine<Rows> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Stored<(Option<LogId>, StoredMembership)> {
        Ok((self.marker.applied, self.marker.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Stored<Vec<Vec<Outcome>>>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let store = Arc::clone(&self.store);
        let _nobody_begins_to_count = store.count.applying().await;
        if store.has_ended() {
            return Err(broken(&over()));
        }
        let entries: Vec<LogEntry> = entries.into_iter().collect();
        let mut outcomes = Vec::with_capacity(entries.len());
        for some in entries.split_inclusive(back::is_alone) {
            outcomes.extend(self.apply_some(some).await?);
            // What comes behind it is judged by what is left then.
            back::settle(&store, &self.family, false).await.map_err(|e| broken(&e))?;
        }
        self.tell();
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.meta())
    }

    async fn begin_receiving_snapshot(&mut self) -> Stored<Box<SnapshotData>> {
        Ok(Box::new(SnapshotData::Nothing))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<SnapshotData>) -> Stored<()> {
        let store = Arc::clone(&self.store);
        let _nobody_begins_to_count = store.count.applying().await;
        if store.has_ended() {
            return Err(broken(&over()));
        }
        self.replace(meta, *snapshot).await.map_err(|e| broken(&e))
    }

    async fn get_current_snapshot(&mut self) -> Stored<Option<Snapshot>> {
        let Some(meta) = self.meta() else { return Ok(None) };
        let rows = RowStream::begin(&self.store.disk, &self.store.territory());
        let snapshot = Box::new(SnapshotData::Rows { marker: self.marker.clone(), rows });
        Ok(Some(Snapshot { meta, snapshot }))
    }
}

/// Says what a snapshot would say now: the rows themselves are it.
pub(crate) struct Builder(Option<SnapshotMeta>);

impl RaftSnapshotBuilder<Rows> for Builder {
    async fn build_snapshot(&mut self) -> Stored<Snapshot> {
        let nothing = || SnapshotMeta { snapshot_id: "0-0".to_owned(), ..SnapshotMeta::default() };
        let meta = self.0.clone().unwrap_or_else(nothing);
        Ok(Snapshot { meta, snapshot: Box::new(SnapshotData::Nothing) })
    }
}
