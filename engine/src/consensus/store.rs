//! A group's records on a disk: its state, its log, the snapshot that is staged; and what is known of them in memory.
//!
//! Invariant: every record gets the next stamp; what is in memory is what the records say once they are durable.
//! Invariant: a state record says all that earlier ones said, so whichever of two that are written at once comes last is right.
//! Invariant: a vote is answered, and an entry counted, only after the disk has flushed it.
//! Invariant: purged <= applied in what is durable, but for a snapshot that is staged and decided: no entry goes before its rows are here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::codec::{self, Facts, Marker, Staged};
use super::count::Count;
use super::limits::{APPEND_BYTES, APPEND_ENTRIES, MAX_CUTS, TAIL_BYTES};
use super::raft::{LogEntry, LogId, Vote};
use super::territory::Territory;
use super::types::{Given, GroupError, Part};
use crate::catalog::{
    self, GIVEN, GroupId, GroupKey, GroupTag, PART, PartValue, Reach, group_prefix, space_of,
};
use crate::disk::format::record::{Kind, NewRecord, Parts};
use crate::disk::limits::{MAX_GROUP, MAX_GROUP_RECORDS};
use crate::disk::{Class, DiskError, DiskHandle, Durability};
use crate::index::{Index, IndexError, Range, Table};
use crate::io::BLOCK;
use crate::net::NodeId;

/// Committed effects must find room whatever clients fill: whether there is room for them is asked before.
const CLASS: Class = Class::Delete;

/// The records of one group on one disk.
pub(crate) struct Store {
    pub(crate) group: GroupId,
    pub(crate) disk: DiskHandle,
    inner: Mutex<Inner>,
    /// Groups that were made on this disk out of this one.
    pub(crate) made: watch::Sender<Vec<GroupId>>,
    /// Lines that are being counted while rows change.
    pub(crate) count: Count,
    /// Entries are being added to the log.
    pub(crate) grows: Notify,
    /// Entries that a planted bug writes too late.
    #[cfg(test)]
    held: Mutex<Vec<NewRecord>>,
}

#[derive(Default)]
struct Inner {
    /// The last that was given.
    stamp: u64,
    reach: Reach,
    facts: Facts,
    last: Option<LogId>,
    tail: Tail,
    progress: Progress,
    territory: Arc<Territory>,
    /// Groups of which nothing is left on this disk where their lines were taken back.
    settled: BTreeSet<GroupId>,
    /// Nothing is applied any more.
    ended: bool,
}

/// What readers of rows must know.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    pub(crate) applied: Option<LogId>,
    pub(crate) max_sequence: u64,
    /// Rows are those of no moment: a snapshot is being installed.
    pub(crate) installing: bool,
}

/// The end of the log in memory.
#[derive(Default)]
struct Tail {
    entries: BTreeMap<u64, (LogEntry, usize)>,
    bytes: usize,
}

impl Tail {
    fn push(&mut self, entry: LogEntry, bytes: usize) {
        self.bytes += bytes;
        if let Some((_, before)) = self.entries.insert(entry.log_id.index, (entry, bytes)) {
            self.bytes -= before;
        }
    }

    fn keep(&mut self, wanted: impl Fn(u64) -> bool) {
        self.entries.retain(|index, _| wanted(*index));
        self.bytes = self.entries.values().map(|(_, bytes)| bytes).sum();
    }

    /// Lets go of the oldest, which are durable.
    fn shrink(&mut self) {
        while self.bytes > TAIL_BYTES
            && let Some((_, (_, bytes))) = self.entries.pop_first()
        {
            self.bytes -= bytes;
        }
    }
}

impl Inner {
    /// Drops the entries up to `upto` from what is known; the next state record says so.
    fn forget(&mut self, upto: LogId) {
        if self.last.is_some_and(|last| last.index >= upto.index) {
            self.reach.purge(upto.index + 1);
        } else {
            self.reach.restart(upto.index + 1, self.stamp);
            self.last = None;
        }
        self.facts.purged = Some(upto);
        self.tail.keep(|index| index > upto.index);
    }
}

fn damaged(group: GroupId, what: &dyn std::fmt::Display) -> GroupError {
    GroupError::Damaged { group, what: what.to_string() }
}

impl Store {
    /// Reads what the disk has of a group; makes its first record when it has nothing.
    pub(crate) async fn open(group: GroupId, disk: DiskHandle) -> Result<Arc<Self>, GroupError> {
        let bad = |what: &dyn std::fmt::Display| damaged(group, what);
        let index = disk.index();
        let (last, mut stamp) = last_entry(index, group).map_err(|e| bad(&e))?;
        let chunks = catalog::group_records(index, (group, GroupTag::Chunk), (0, u64::MAX));
        for chunk in chunks {
            stamp = stamp.max(chunk.map_err(|e| bad(&e))?.1.sequence);
        }
        let reach = catalog::group_reach(index, group).map_err(|e| bad(&e))?;
        let store = Self {
            group,
            disk,
            inner: Mutex::default(),
            made: watch::Sender::default(),
            count: Count::default(),
            grows: Notify::new(),
            #[cfg(test)]
            held: Mutex::default(),
        };
        let marker = store.fetch(GroupTag::Marker, 0).await.map_err(|e| bad(&e))?;
        let state = store.fetch(GroupTag::State, 0).await.map_err(|e| bad(&e))?;
        let facts = match &state {
            Some((at, data)) => {
                stamp = stamp.max(*at);
                Facts::decode(data).map_err(|e| bad(&e))?
            }
            None if stamp == 0 && marker.is_none() => Facts::default(),
            None => return Err(damaged(group, &"its state is missing")),
        };
        stamp = stamp.max(marker.map_or(0, |(at, _)| at));
        let mut last_id = facts.purged;
        if let Some(index) = last {
            let entries = store.read_disk(index, index + 1).await.map_err(|e| bad(&e))?;
            last_id = entries.first().map(|entry| entry.log_id);
        }
        let fresh = state.is_none();
        let inner = Inner { stamp, reach, facts, last: last_id, ..Inner::default() };
        *store.lock() = inner;
        if fresh {
            store.change(|_| {}).await.map_err(|e| GroupError::Unavailable(e.to_string()))?;
        }
        store.check().map_err(|what| damaged(group, &what))?;
        store.survey().map_err(|e| damaged(group, &e))?;
        Ok(Arc::new(store))
    }

    /// Looks which rows are this group's, as its rows and its state say.
    pub(crate) fn survey(&self) -> Result<(), IndexError> {
        let (space, host) = (self.space(), self.lock().facts.host.clone());
        let mut territory = Territory { space, host, ..Territory::default() };
        let prefix = group_prefix(space);
        let unreadable = |e: catalog::BadValue| IndexError::Store { verb: "decode", reason: e.to_string() };
        let range = |tag| Range::prefix(&[&prefix[..], &[tag]].concat());
        for pair in self.disk.index().scan(Table::Rows, range(GIVEN)) {
            let (key, value) = pair?;
            let row = catalog::decode_row(&value)?;
            let given = Given::of_row(key.get(prefix.len()..).unwrap_or_default(), &row.value);
            let given = given.map_err(unreadable)?;
            let to = if given.back.is_some() { &mut territory.back } else { &mut territory.given };
            to.push(given);
        }
        if let Some(pair) = self.disk.index().scan(Table::Rows, range(PART)).next() {
            let (key, value) = pair?;
            let row = catalog::decode_row(&value)?;
            let id = catalog::parse_part(key.get(prefix.len()..).unwrap_or_default()).map_err(unreadable)?;
            let value = PartValue::decode(&row.value).map_err(unreadable)?;
            territory.part = Some(Part { id, sequence: row.sequence, value });
        }
        let mut inner = self.lock();
        let unsettled = territory.back.iter().filter(|back| !inner.settled.contains(&back.group));
        territory.returning = unsettled.cloned().collect();
        inner.territory = Arc::new(territory);
        Ok(())
    }

    /// Nothing is left here of what a group made of lines that were taken back.
    pub(crate) fn settled(&self, group: GroupId) -> Result<(), IndexError> {
        self.lock().settled.insert(group);
        self.survey()
    }

    /// Nothing is applied from here on, nor is anything still being applied.
    pub(crate) async fn end(&self) {
        self.lock().ended = true;
        drop(self.count.applying().await);
    }

    /// Whether nothing may be applied any more. To be asked by whoever holds [`Count::applying`].
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Which rows are this group's, and where they lie.
    pub(crate) fn territory(&self) -> Arc<Territory> {
        Arc::clone(&self.lock().territory)
    }

    /// Whether the log is without holes.
    fn check(&self) -> Result<(), String> {
        let mut next = self.lock().facts.purged.map(|purged| purged.index + 1);
        let entries = catalog::group_records(self.disk.index(), (self.group, GroupTag::Entry), (0, u64::MAX));
        for entry in entries {
            let (number, _) = entry.map_err(|e| e.to_string())?;
            if next.is_some_and(|next| next != number) {
                return Err(format!("entry {next:?} of its log is missing"));
            }
            next = Some(number + 1);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn vote(&self) -> Option<Vote> {
        self.lock().facts.vote
    }

    /// What the keys of this life's rows begin with, as a group's number.
    pub(crate) fn space(&self) -> GroupId {
        space_of(self.group, self.lock().facts.life)
    }

    /// How often this disk gave the group up.
    pub(crate) fn life(&self) -> u16 {
        self.lock().facts.life
    }

    /// What the newest state of a group on a disk says, if there is one.
    pub(crate) async fn facts(group: GroupId, disk: &DiskHandle) -> Result<Option<Facts>, GroupError> {
        let key = GroupKey { group, tag: GroupTag::State, number: 0 };
        let state = fetch(disk, key).await.map_err(|e| GroupError::Unavailable(e.to_string()))?;
        state.map(|(_, data)| Facts::decode(&data)).transpose().map_err(|e| damaged(group, &e))
    }

    /// The group was given up and not opened since.
    pub(crate) fn given_up(&self) -> bool {
        self.lock().facts.given_up
    }

    /// Nothing was ever applied or logged here in this life.
    pub(crate) fn is_empty(&self) -> bool {
        self.ends() == (None, None)
    }

    /// A leader that was started anew does not go on leading in the same term: what was decided in that term was decided by
    /// claims that are forgotten.
    pub(crate) fn resign(&self, node: NodeId) {
        if let Some(vote) = &mut self.lock().facts.vote
            && vote.leader_id.voted_for == Some(node)
        {
            vote.committed = false;
        }
    }

    pub(crate) fn staged(&self) -> Option<Staged> {
        self.lock().facts.staged.clone()
    }

    pub(crate) fn progress(&self) -> Progress {
        self.lock().progress
    }

    pub(crate) fn set_progress(&self, progress: Progress) {
        self.lock().progress = progress;
    }

    /// The last purged and the last present log id.
    pub(crate) fn ends(&self) -> (Option<LogId>, Option<LogId>) {
        let inner = self.lock();
        (inner.facts.purged, inner.last.max(inner.facts.purged))
    }

    /// A number that no other use of this disk has had.
    pub(crate) fn next_stamp(&self) -> u64 {
        let mut inner = self.lock();
        inner.stamp += 1;
        inner.stamp
    }

    fn record(&self, tag: GroupTag, number: u64, stamp: u64, meta: &[u8], data: Vec<u8>) -> NewRecord {
        record(&self.disk, GroupKey { group: self.group, tag, number }, stamp, meta, data)
    }

    /// The record that says what was applied.
    pub(crate) fn marker_record(&self, marker: &Marker) -> NewRecord {
        self.record(GroupTag::Marker, 0, self.next_stamp(), &[], marker.encode())
    }

    /// Changes what is known and makes the state record that says so.
    fn state_record(&self, change: impl FnOnce(&mut Inner)) -> NewRecord {
        let mut inner = self.lock();
        inner.stamp += 1;
        change(&mut inner);
        let (stamp, meta, data) = (inner.stamp, inner.reach.encode(), inner.facts.encode());
        drop(inner);
        self.record(GroupTag::State, 0, stamp, &meta, data)
    }

    async fn change(&self, change: impl FnOnce(&mut Inner)) -> Result<(), DiskError> {
        let record = self.state_record(change);
        self.disk.append(vec![record], Durability::Durable, CLASS).await.map(drop)
    }

    /// Queues a group of records behind all that were queued before.
    pub(crate) async fn submit(
        &self,
        records: Vec<NewRecord>,
        durability: Durability,
    ) -> Result<crate::disk::Submitted, DiskError> {
        self.disk.submit(records, durability, CLASS).await
    }

    /// A durable vote.
    pub(crate) async fn save_vote(&self, vote: Vote) -> Result<(), DiskError> {
        #[cfg(test)]
        if plant::is(plant::Bug::VoteNotWritten) {
            self.lock().facts.vote = Some(vote);
            return Ok(());
        }
        self.change(|inner| inner.facts.vote = Some(vote)).await
    }

    /// Adds entries behind the log; they are durable when this returns.
    pub(crate) async fn append(&self, entries: Vec<LogEntry>) -> Result<(), DiskError> {
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries {
            let data = codec::encode_entry(&entry);
            let mut inner = self.lock();
            inner.stamp += 1;
            let stamp = inner.stamp;
            inner.last = Some(entry.log_id);
            let number = entry.log_id.index;
            inner.tail.push(entry, data.len());
            drop(inner);
            records.push(self.record(GroupTag::Entry, number, stamp, &[], data));
        }
        self.grows.notify_waiters();
        #[cfg(test)]
        let records = plant::hold_back(&self.held, records);
        let mut under_way = Vec::new();
        for group in groups_of(records) {
            under_way.push(self.submit(group, Durability::Durable).await?);
        }
        for submitted in under_way {
            submitted.done().await?;
        }
        self.lock().tail.shrink();
        Ok(())
    }

    /// Removes the entries from `from` on.
    pub(crate) async fn truncate(&self, from: u64) -> Result<(), DiskError> {
        let (purged, last) = self.ends();
        let Some(end) = last.filter(|last| last.index >= from) else { return Ok(()) };
        let before = match from.checked_sub(1).filter(|index| purged.is_none_or(|p| p.index < *index)) {
            Some(index) => self.read(index, index + 1).await?.first().map(|entry| entry.log_id),
            None => purged,
        };
        self.change(|inner| {
            let stamp = inner.stamp;
            inner.reach.cut(from, end.index, stamp);
            assert!(inner.reach.cuts.len() <= MAX_CUTS, "a log was cut too often between two purges");
            inner.last = before;
            inner.tail.keep(|index| index < from);
        })
        .await
    }

    /// Removes the entries up to `upto`, if they were applied. openraft purges what a snapshot covers without waiting for it: were that
    /// durable before the installation is decided, a crash would leave a voter that has neither the entries nor their rows. Then
    /// [`Store::installed`] removes them.
    pub(crate) async fn purge(&self, upto: LogId) -> Result<(), DiskError> {
        {
            let inner = self.lock();
            if inner.facts.purged >= Some(upto) || inner.progress.applied < Some(upto) {
                return Ok(());
            }
        }
        self.change(|inner| inner.forget(upto)).await
    }

    /// The entries from `start` to below `end`, as far as they are there.
    pub(crate) async fn read(&self, start: u64, end: u64) -> Result<Vec<LogEntry>, DiskError> {
        let (first_in_memory, mut tail) = {
            let inner = self.lock();
            let end = end.min(inner.last.map_or(0, |last| last.index + 1));
            let first = inner.tail.entries.first_key_value().map_or(end, |(first, _)| *first);
            let range = start.min(end)..end;
            (first.min(end), inner.tail.entries.range(range).map(|(_, (e, _))| e.clone()).collect::<Vec<_>>())
        };
        if start >= first_in_memory {
            return Ok(tail);
        }
        let mut entries = self.read_disk(start, first_in_memory).await?;
        entries.append(&mut tail);
        Ok(entries)
    }

    /// As [`Store::read`], no more than one message takes, and at least one.
    pub(crate) async fn read_some(&self, start: u64, end: u64) -> Result<Vec<LogEntry>, DiskError> {
        let (mut found, mut bytes, mut next) = (Vec::new(), 0, start);
        while next < end && found.len() < APPEND_ENTRIES {
            let known = self.lock().tail.entries.get(&next).map(|(entry, bytes)| (entry.clone(), *bytes));
            let (entry, size) = match known {
                Some(known) => known,
                None => {
                    let Some(entry) = self.read(next, next + 1).await?.pop() else { break };
                    let size = codec::encode_entry(&entry).len();
                    (entry, size)
                }
            };
            if !found.is_empty() && bytes + size > APPEND_BYTES {
                break;
            }
            bytes += size;
            next += 1;
            found.push(entry);
        }
        Ok(found)
    }

    async fn read_disk(&self, start: u64, end: u64) -> Result<Vec<LogEntry>, DiskError> {
        let Some(high) = end.checked_sub(1) else { return Ok(Vec::new()) };
        let found = self.disk.lookup(|index| {
            let entries = catalog::group_records(index, (self.group, GroupTag::Entry), (start, high));
            let places = entries.map(|entry| Ok(entry?.1.at)).collect::<Result<Vec<_>, IndexError>>()?;
            Ok(Some((places.clone(), places)))
        })?;
        let Some((places, _pins)) = found else { return Ok(Vec::new()) };
        let mut entries = Vec::with_capacity(places.len());
        for at in places {
            let record = self.disk.read(at).await?;
            let entry = codec::decode_entry(&record.data());
            entries.push(entry.map_err(|e| undecodable(&e))?);
        }
        Ok(entries)
    }

    /// A record's stamp and data.
    pub(crate) async fn fetch(&self, tag: GroupTag, number: u64) -> Result<Option<(u64, Bytes)>, DiskError> {
        fetch(&self.disk, GroupKey { group: self.group, tag, number }).await
    }

    /// Throws away what is staged.
    pub(crate) async fn unstage(&self) -> Result<(), DiskError> {
        self.change(|inner| inner.reach.staged = inner.stamp).await
    }

    /// Stages a chunk; durable no later than what is queued after it.
    pub(crate) async fn stage(&self, number: u64, chunk: Vec<u8>) -> Result<(), DiskError> {
        let record = self.record(GroupTag::Chunk, number, self.next_stamp(), &[], chunk);
        self.submit(vec![record], Durability::Appended).await?.done().await.map(drop)
    }

    /// From here on the staged snapshot will be installed, crash or no crash.
    pub(crate) async fn decide(&self, staged: Staged) -> Result<(), DiskError> {
        self.change(|inner| {
            inner.facts.staged = Some(staged);
            inner.progress.installing = true;
        })
        .await
    }

    /// What was queued is durable, and in the index.
    pub(crate) async fn sync(&self) -> Result<(), DiskError> {
        self.change(|_| {}).await
    }

    /// The rows are those of the snapshot, and the log begins behind it.
    pub(crate) async fn installed(&self, marker: &Marker) -> Result<(), DiskError> {
        let marker_record = self.marker_record(marker);
        let state = self.state_record(|inner| {
            inner.facts.staged = None;
            inner.reach.staged = inner.stamp;
            if let Some(applied) = marker.applied.filter(|applied| inner.facts.purged < Some(*applied)) {
                inner.forget(applied);
            }
        });
        self.disk.append(vec![marker_record, state], Durability::Durable, CLASS).await?;
        self.set_progress(Progress {
            applied: marker.applied,
            max_sequence: marker.max_sequence,
            installing: false,
        });
        Ok(self.survey()?)
    }

    /// The group is here from now on.
    pub(crate) async fn take_up(&self) -> Result<(), DiskError> {
        if !self.given_up() {
            return Ok(());
        }
        self.change(|inner| inner.facts.given_up = false).await
    }

    /// All that is here of the group is dead, rows too: they are of a life that has ended. The next one begins empty.
    pub(crate) async fn give_up(&self) -> Result<(), DiskError> {
        let marker = self.marker_record(&Marker::default());
        let state = self.state_record(|inner| {
            let life = inner.facts.life + 1;
            inner.facts = Facts { life, given_up: true, ..Facts::default() };
            inner.reach = Reach { first: 0, floor: inner.stamp, staged: inner.stamp, cuts: Vec::new() };
            (inner.last, inner.tail) = (None, Tail::default());
        });
        self.disk.append(vec![marker, state], Durability::Durable, CLASS).await?;
        self.set_progress(Progress::default());
        Ok(self.survey()?)
    }

    /// Makes a group out of the rows that are here: they are what was applied up to the first log id.
    pub(crate) async fn found(&self, marker: &Marker) -> Result<(), DiskError> {
        let marker_record = self.marker_record(marker);
        let state = self.state_record(|inner| {
            inner.facts.purged = marker.applied;
            inner.reach.first = marker.applied.map_or(0, |id| id.index + 1);
        });
        self.disk.append(vec![marker_record, state], Durability::Durable, CLASS).await.map(drop)
    }
}

/// A consensus record.
pub(crate) fn record(disk: &DiskHandle, key: GroupKey, stamp: u64, meta: &[u8], data: Vec<u8>) -> NewRecord {
    let (kind, data) = (Kind::GroupEntry, Bytes::from(data));
    disk.record(Parts { kind, deleted: false, sequence: stamp, number: 0, key: &key.encode(), meta, data })
}

/// The needed record of a key.
async fn fetch(disk: &DiskHandle, key: GroupKey) -> Result<Option<(u64, Bytes)>, DiskError> {
    let found =
        disk.lookup(|index| Ok(catalog::group_record(index, key)?.map(|head| (head, vec![head.at]))))?;
    let Some((head, _pins)) = found else { return Ok(None) };
    let record = disk.read(head.at).await?;
    Ok(Some((head.sequence, record.data())))
}

fn undecodable(e: &catalog::BadValue) -> DiskError {
    DiskError::from(IndexError::Store { verb: "decode", reason: e.to_string() })
}

/// The greatest index of an entry, and the greatest stamp of any.
fn last_entry(index: &dyn Index, group: GroupId) -> Result<(Option<u64>, u64), IndexError> {
    let (mut last, mut stamp) = (None, 0);
    for entry in catalog::group_records(index, (group, GroupTag::Entry), (0, u64::MAX)) {
        let (number, head) = entry?;
        (last, stamp) = (Some(number), stamp.max(head.sequence));
    }
    Ok((last, stamp))
}

/// Records in groups that a disk takes.
fn groups_of(records: Vec<NewRecord>) -> Vec<Vec<NewRecord>> {
    let mut groups: Vec<Vec<NewRecord>> = Vec::new();
    let mut bytes = 0;
    for record in records {
        let more = record.stored_len() + BLOCK + 64;
        match groups.last_mut().filter(|group| group.len() < MAX_GROUP_RECORDS && bytes + more <= MAX_GROUP) {
            Some(group) => {
                bytes += more;
                group.push(record);
            }
            None => {
                bytes = more;
                groups.push(vec![record]);
            }
        }
    }
    groups
}

/// Bugs that tests plant, to see that histories find them.
#[cfg(test)]
pub(crate) mod plant {
    use std::cell::Cell;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Bug {
        VoteNotWritten,
        EntriesOneBehind,
        ConfirmsAnybody,
    }

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    struct Uproot;

    impl Drop for Uproot {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }

    pub(crate) fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// What is written now: with the bug, what should have been written the last time.
    pub(super) fn hold_back(
        held: &std::sync::Mutex<Vec<super::NewRecord>>,
        records: Vec<super::NewRecord>,
    ) -> Vec<super::NewRecord> {
        if !is(Bug::EntriesOneBehind) {
            return records;
        }
        std::mem::replace(&mut *held.lock().unwrap(), records)
    }

    /// Runs `f` with a bug in this thread.
    pub(crate) fn with<T>(bug: Bug, f: impl FnOnce() -> T) -> T {
        let _uproot = Uproot;
        PLANTED.set(Some(bug));
        f()
    }
}
