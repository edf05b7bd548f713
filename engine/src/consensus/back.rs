//! Taking a range of lines back from the group that has it, when that one is shut and has no line.
//!
//! The entry makes the range the group's own again, from its place in the log on. What is on the disks is made so before anything that
//! comes behind it is applied: a voter of the child may lag, so lines may stand here whose deletes it has not applied.
//!
//! Invariant: of a child that is on the same disk nothing is applied any more when its range is the parent's there.
//! Invariant: lines of the range that are not above the floor are dead on every disk: no record of the child's brings one back, neither
//! from its log nor in a rebuild.
//! Invariant: what is taken back lies directly behind what the group has of the container, so that what it has stays one piece.
//!
//! A crash in the middle leaves the row that says that the range was taken back, and a bound that is not over: it is gone on with when
//! the group is opened.

use std::sync::Arc;

use openraft::error::ClientWriteError;

use super::group::{Group, stopped};
use super::limits::MAX_ENTRY_ROWS;
use super::machine::row_record;
use super::raft::{Command, LogEntry, Payload};
use super::registry::Family;
use super::store::{Store, record};
use super::types::{Entry, Expected, Given, GroupError, Guard, Outcome, RowChange};
use crate::catalog::{
    self, Bound, GIVEN, GivenValue, GroupId, GroupKey, GroupTag, Over, given_key, going_key, listing_key,
};
use crate::disk::{Class, DiskError, Durability};
use crate::index::Table;

/// Stamp of the record that ends a bound: the one that begins it has 1.
const OVER: u64 = 2;

/// A range that shall be the group's own again.
#[derive(Debug, Clone)]
pub struct TakeBack {
    /// The container.
    pub id: u64,
    /// The first name.
    pub from: String,
    /// Who has it: shut, without a line, and without children.
    pub group: GroupId,
    /// The child made nothing above this version time.
    pub floor: u64,
    /// The attempt for which it was shut: the version time of the row that remembers it here. `None`: it is shut for ever.
    pub attempt: Option<u64>,
    /// The version time of the change: above the floor.
    pub sequence: u64,
}

/// Whether an entry takes a range back.
pub(crate) fn takes_back(entry: &Entry) -> bool {
    let back = |row: &RowChange| {
        let value = row.value.as_deref().filter(|_| row.key.first() == Some(&GIVEN));
        value.and_then(|value| GivenValue::decode(value).ok()).is_some_and(|value| value.back.is_some())
    };
    entry.rows.iter().any(back)
}

/// The same of an entry of the log, in which it is alone.
pub(crate) fn is_alone(entry: &LogEntry) -> bool {
    matches!(&entry.payload, Payload::Normal(Command(entries)) if entries.iter().any(takes_back))
}

impl Group {
    /// Takes a range back. When this returns it is this group's here.
    pub async fn take_back(&self, wanted: TakeBack) -> Result<Outcome, GroupError> {
        let TakeBack { id, from, group, floor, attempt, sequence } = wanted;
        let (status, store) = (self.status(), &self.shared.store);
        if !status.leads {
            return Err(GroupError::NotLeader(status.leader));
        }
        let _alone = self.shared.reshaping.lock().await;
        let territory = store.territory();
        let first = territory.given.iter().filter(|given| given.id == id).map(|given| &given.from).min();
        if first != Some(&from) || sequence <= floor {
            return Err(GroupError::Limit("range to take back"));
        }
        let key = given_key(id, &from);
        let row = self.row(&key)?.ok_or_else(|| stopped("the range is nobody's"))?;
        let value = GivenValue::decode(&row.value).map_err(stopped)?;
        if value.group != group || value.back.is_some() {
            return Err(stopped("the range is another group's"));
        }
        let mut guards = vec![Guard { key: key.clone(), expected: Expected::Sequence(row.sequence) }];
        let value = GivenValue { back: Some(floor), ..value };
        let mut rows = vec![RowChange { key, sequence, value: Some(value.encode()) }];
        if let Some(attempt) = attempt {
            let key = going_key(id);
            guards.push(Guard { key: key.clone(), expected: Expected::Sequence(attempt) });
            rows.push(RowChange { key, sequence, value: None });
        }
        let entry = Entry { term: Some(status.term), guards, rows };
        super::group::check(&entry)?;
        let sent = self.scope(self.shared.raft.client_write_ff(Command(Arc::new(vec![entry])))).await;
        match sent.map_err(stopped)?.await.map_err(stopped)? {
            Ok(written) => written.data.into_iter().next().ok_or_else(|| stopped("no outcome")),
            Err(ClientWriteError::ForwardToLeader(to)) => Err(GroupError::NotLeader(to.leader_id)),
            Err(e @ ClientWriteError::ChangeMembershipError(_)) => Err(stopped(e)),
        }
    }
}

/// Makes what was taken back this group's on its disk. `opening`: the group is being opened.
pub(crate) async fn settle(store: &Store, family: &Family, opening: bool) -> Result<(), GroupError> {
    while let Some(back) = store.territory().returning.first().cloned() {
        settle_one(store, family, opening, &back).await?;
        store.settled(back.group).map_err(stopped)?;
    }
    Ok(())
}

async fn settle_one(store: &Store, family: &Family, opening: bool, back: &Given) -> Result<(), GroupError> {
    let (disk, to) = (&store.disk, back.to.as_deref());
    let space = store.territory().space_of(&listing_key(back.id, &back.from));
    let within = |bound: &Bound| {
        let behind = to.is_some_and(|to| bound.from.as_str() >= to);
        (bound.space, bound.id) == (space, back.id) && bound.from >= back.from && !behind
    };
    let mut bounds = catalog::bounds(disk.index()).map_err(stopped)?;
    bounds.retain(|(_, bound)| within(bound));
    family.end(back.group, disk, opening).await?;
    // Without its bound it has no line here, or all was done before.
    let Some(own) = bounds.iter().position(|(group, _)| *group == back.group) else { return Ok(()) };
    // What it gave away itself it has taken back, although that may not be applied here: nothing of those is left anywhere.
    let own = bounds.remove(own);
    for (group, _) in &bounds {
        family.end(*group, disk, opening).await?;
    }
    let floor = back.back.unwrap_or(0);
    bury(store, catalog::lines_in(space, back.id, &back.from, to), floor).await.map_err(stopped)?;
    // Lines that were swept before are not in the index, and must not come back into it.
    disk.checkpoint().await.map_err(stopped)?;
    // Its own comes last: while that is missing all of this is done again.
    for (group, bound) in bounds.into_iter().chain([own]) {
        let over = Some(Over { to: back.to.clone(), floor });
        let meta = Bound { over, ..bound }.encode();
        let key = GroupKey { group, tag: GroupTag::Range, number: 0 };
        let ended = record(disk, key, OVER, &meta, Vec::new());
        disk.append(vec![ended], Durability::Durable, Class::Delete).await.map_err(stopped)?;
    }
    Ok(())
}

/// Gives lines that are not above the floor a tombstone each.
async fn bury(store: &Store, lines: crate::index::Range, floor: u64) -> Result<(), DiskError> {
    let disk = &store.disk;
    let mut records = Vec::new();
    for pair in disk.index().scan(Table::Rows, lines) {
        let (key, value) = pair?;
        let row = catalog::decode_row(&value)?;
        if row.sequence <= floor {
            records.push(row_record(disk, &key, row.sequence, None));
        }
        if records.len() >= MAX_ENTRY_ROWS {
            store.submit(std::mem::take(&mut records), Durability::Appended).await?.done().await?;
        }
    }
    if !records.is_empty() {
        store.submit(records, Durability::Appended).await?.done().await?;
    }
    Ok(())
}
