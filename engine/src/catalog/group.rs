//! Records of consensus groups in the index: which of them are needed.
//!
//! ```text
//! key of a record   group u32 BE | tag u8 | number u64 BE
//! tags              "e" entry of the log, number its index     "s" state: what is dead, and the vote, number 0
//!                   "m" what was applied, number 0             "c" chunk of a snapshot that is staged, number its own
//!                   "r" where its range begins to be counted apart on this disk, number 0; once more when that is over
//! sequence          its stamp: counted up by each record that the group's voter writes on this disk
//! index             System, 01 "g" | key of the record -> head; behind the head of a state: its reach;
//!                   behind that of a range: its bound
//! ```
//!
//! The newest record of a key counts, by (stamp, place). What a state's [`Reach`] kills is not needed, whatever else there is.
//!
//! Invariant: a state's reach kills all that the reach of each older state killed and that was written before that one. So
//! the index is a function of the set of records: the newest of each key, without what the newest state kills.
//! Invariant: every dead record of a group has a smaller stamp than some record that is needed.

use super::counters;
use super::entry::Head;
use super::keys::{CONSENSUS, GroupId};
use super::newest::{Source, damaged};
use super::ranges::Bound;
use super::spaces;
use super::value::{BadValue, version};
use crate::disk::Location;
use crate::disk::catalog::Tx;
use crate::disk::format::bytes::{Put, Reader};
use crate::disk::format::record::RecordView;
use crate::index::{Index, IndexError, Range, Table};

/// What a record of a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum GroupTag {
    /// An entry of the log.
    Entry = b'e',
    /// What is dead, and the vote.
    State = b's',
    /// What was applied.
    Marker = b'm',
    /// A chunk of a snapshot.
    Chunk = b'c',
    /// The range that the group took over begins to be counted apart.
    Range = b'r',
}

/// Key of a consensus record, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupKey {
    /// Which group.
    pub group: GroupId,
    /// What it is.
    pub tag: GroupTag,
    /// Index of an entry, number of a chunk, else 0.
    pub number: u64,
}

impl GroupKey {
    /// Its bytes.
    #[must_use]
    pub fn encode(self) -> [u8; 13] {
        let mut key = [0; 13];
        let (group, rest) = key.split_at_mut(4);
        group.copy_from_slice(&self.group.to_be_bytes());
        let (tag, number) = rest.split_at_mut(1);
        tag.copy_from_slice(&[self.tag as u8]);
        number.copy_from_slice(&self.number.to_be_bytes());
        key
    }

    /// What the bytes say.
    pub fn parse(key: &[u8]) -> Result<Self, BadValue> {
        let bytes: [u8; 13] = key.try_into().map_err(|_| BadValue::Field("group key"))?;
        let [a, b, c, d, tag, number @ ..] = bytes;
        let tag = match tag {
            b'e' => GroupTag::Entry,
            b's' => GroupTag::State,
            b'm' => GroupTag::Marker,
            b'c' => GroupTag::Chunk,
            b'r' => GroupTag::Range,
            _ => return Err(BadValue::Field("group tag")),
        };
        Ok(Self { group: u32::from_be_bytes([a, b, c, d]), tag, number: u64::from_be_bytes(number) })
    }

    fn stored(self) -> Vec<u8> {
        [&CONSENSUS[..], &self.encode()].concat()
    }
}

/// Entries that were cut off the end of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// First index.
    pub from: u64,
    /// Last index.
    pub to: u64,
    /// Entries with smaller stamps are dead.
    pub stamp: u64,
}

/// Which records of a group are dead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Entries below this index are dead.
    pub first: u64,
    /// Entries with smaller stamps than this are dead.
    pub floor: u64,
    /// Chunks with smaller stamps than this are dead.
    pub staged: u64,
    /// Both `from` and `stamp` ascend.
    pub cuts: Vec<Cut>,
}

const VERSION: u8 = 1;

impl Reach {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.put_u64(self.first);
        out.put_u64(self.floor);
        out.put_u64(self.staged);
        out.put_varint(self.cuts.len() as u64);
        for cut in &self.cuts {
            out.put_u64(cut.from);
            out.put_u64(cut.to);
            out.put_u64(cut.stamp);
        }
        out
    }

    /// What the bytes say.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadValue> {
        let mut r = Reader::new(bytes);
        version(&mut r, VERSION)?;
        let (first, floor, staged) = (r.u64()?, r.u64()?, r.u64()?);
        let count = r.varint()?;
        let mut cuts = Vec::new();
        for _ in 0..count {
            cuts.push(Cut { from: r.u64()?, to: r.u64()?, stamp: r.u64()? });
        }
        if r.rest().is_empty() {
            Ok(Self { first, floor, staged, cuts })
        } else {
            Err(BadValue::Field("reach"))
        }
    }

    /// Cuts what has an index of `from` to `to` and was written before `stamp`.
    pub fn cut(&mut self, from: u64, to: u64, stamp: u64) {
        let mut to = to;
        while let Some(last) = self.cuts.last().filter(|last| last.from >= from) {
            to = to.max(last.to);
            self.cuts.pop();
        }
        self.cuts.push(Cut { from, to, stamp });
    }

    /// Drops what is below `first`.
    pub fn purge(&mut self, first: u64) {
        self.first = self.first.max(first);
        self.cuts.retain(|cut| cut.to >= first);
    }

    /// Drops every entry that was written before `floor`: the log goes on from `first` with nothing of it.
    pub fn restart(&mut self, first: u64, floor: u64) {
        self.first = self.first.max(first);
        self.floor = self.floor.max(floor);
        self.cuts.retain(|cut| cut.stamp > floor);
    }

    /// Whether a record of this tag, number and stamp is dead.
    #[must_use]
    pub fn kills(&self, tag: GroupTag, number: u64, stamp: u64) -> bool {
        match tag {
            GroupTag::Entry => {
                let cut = |cut: &Cut| (cut.from..=cut.to).contains(&number) && stamp < cut.stamp;
                number < self.first || stamp < self.floor || self.cuts.iter().any(cut)
            }
            GroupTag::Chunk => stamp < self.staged,
            GroupTag::State | GroupTag::Marker | GroupTag::Range => false,
        }
    }

    /// Numbers among which a state with this reach can kill what one with `before` did not.
    fn news(&self, before: &Self, tag: GroupTag) -> Option<(u64, u64)> {
        match tag {
            GroupTag::Entry if self.floor != before.floor => Some((0, u64::MAX)),
            GroupTag::Entry => {
                let (mut low, mut high) = (u64::MAX, 0);
                if self.first != before.first {
                    (low, high) = (before.first, self.first);
                }
                for cut in self.cuts.iter().filter(|cut| !before.cuts.contains(cut)) {
                    low = low.min(cut.from);
                    high = high.max(cut.to);
                }
                (low <= high).then_some((low, high))
            }
            GroupTag::Chunk => (self.staged != before.staged).then_some((0, u64::MAX)),
            GroupTag::State | GroupTag::Marker | GroupTag::Range => None,
        }
    }
}

fn load(from: &impl Source, key: GroupKey) -> Result<Option<(Head, Vec<u8>)>, IndexError> {
    let Some(bytes) = from.value(Table::System, &key.stored())? else { return Ok(None) };
    let (head, payload) = Head::decode(&bytes).map_err(damaged)?;
    Ok(Some((head, payload.to_vec())))
}

fn reach_of(from: &impl Source, group: GroupId) -> Result<Reach, IndexError> {
    match load(from, GroupKey { group, tag: GroupTag::State, number: 0 })? {
        Some((_, payload)) => Reach::decode(&payload).map_err(damaged),
        None => Ok(Reach::default()),
    }
}

/// The key of a record that is readable.
pub(super) fn parse(record: &RecordView<'_>) -> Result<GroupKey, BadValue> {
    let key = GroupKey::parse(record.key)?;
    if key.tag == GroupTag::State {
        Reach::decode(record.meta)?;
    }
    if key.tag == GroupTag::Range {
        Bound::decode(record.meta)?;
    }
    Ok(key)
}

pub(super) fn apply(
    tx: &mut Tx<'_>,
    key: GroupKey,
    record: &RecordView<'_>,
    at: Location,
) -> Result<(), IndexError> {
    let before = reach_of(tx, key.group)?;
    if before.kills(key.tag, key.number, record.sequence) {
        return Ok(());
    }
    let head = Head::of(record, at);
    if let Some((current, _)) = load(tx, key)? {
        if (current.sequence, current.at) >= (head.sequence, head.at) {
            return Ok(());
        }
        tx.died(current.at);
    }
    tx.born(at);
    let payload = if matches!(key.tag, GroupTag::State | GroupTag::Range) { record.meta } else { &[] };
    tx.put(Table::System, key.stored(), head.encode(payload));
    if key.tag == GroupTag::State {
        let reach = Reach::decode(record.meta).map_err(damaged)?;
        sweep(tx, key.group, &reach, &before)?;
    }
    if key.tag == GroupTag::Range {
        let bound = Bound::decode(record.meta).map_err(damaged)?;
        match bound.over {
            Some(_) => counters::unbound(tx, &bound)?,
            None => counters::bound(tx, &bound)?,
        }
    }
    Ok(())
}

/// Takes out of the index what a new state kills.
fn sweep(tx: &mut Tx<'_>, group: GroupId, reach: &Reach, before: &Reach) -> Result<(), IndexError> {
    for tag in [GroupTag::Entry, GroupTag::Chunk] {
        let Some((low, high)) = reach.news(before, tag) else { continue };
        for (stored, value) in tx.range(Table::System, &range(group, tag, low, high))? {
            let (head, _) = Head::decode(&value).map_err(damaged)?;
            let key = stored.get(CONSENSUS.len()..).unwrap_or_default();
            let number = GroupKey::parse(key).map_err(damaged)?.number;
            if reach.kills(tag, number, head.sequence) {
                tx.died(head.at);
                tx.delete(Table::System, stored);
            }
        }
    }
    Ok(())
}

pub(super) fn relocate(
    tx: &mut Tx<'_>,
    record: &RecordView<'_>,
    from: Location,
    to: Location,
) -> Result<bool, IndexError> {
    let Ok(key) = parse(record) else { return Ok(false) };
    let Some((head, payload)) = load(tx, key)?.filter(|(head, _)| head.at == from) else { return Ok(false) };
    tx.put(Table::System, key.stored(), Head { at: to, ..head }.encode(&payload));
    tx.died(from);
    tx.born(to);
    Ok(true)
}

/// Where the record of a key lies that the index points at.
pub(super) fn place(index: &dyn Index, record: &RecordView<'_>) -> Result<Option<Location>, IndexError> {
    let Ok(key) = parse(record) else { return Ok(None) };
    Ok(load(&index, key)?.map(|(head, _)| head.at))
}

fn range(group: GroupId, tag: GroupTag, low: u64, high: u64) -> Range {
    let from = GroupKey { group, tag, number: low }.stored();
    let mut to = GroupKey { group, tag, number: high }.stored();
    to.push(0);
    Range { from: Some(from), to: Some(to), reverse: false }
}

/// The needed record of a key: its stamp and place.
pub(crate) fn group_record(index: &dyn Index, key: GroupKey) -> Result<Option<Head>, IndexError> {
    Ok(load(&index, key)?.map(|(head, _)| head))
}

/// The reach of a group's newest state.
pub(crate) fn group_reach(index: &dyn Index, group: GroupId) -> Result<Reach, IndexError> {
    reach_of(&index, group)
}

/// Needed records of a group with numbers from `low` to `high`, in order.
pub(crate) fn group_records(
    index: &dyn Index,
    (group, tag): (GroupId, GroupTag),
    (low, high): (u64, u64),
) -> impl Iterator<Item = Result<(u64, Head), IndexError>> {
    index.scan(Table::System, range(group, tag, low, high)).map(|pair| {
        let (stored, value) = pair?;
        let key = GroupKey::parse(stored.get(CONSENSUS.len()..).unwrap_or_default()).map_err(damaged)?;
        Ok((key.number, Head::decode(&value).map_err(damaged)?.0))
    })
}

/// The number of every group of which there is any record.
fn numbers(index: &dyn Index) -> Result<Vec<GroupId>, IndexError> {
    let mut found = Vec::new();
    let mut from = Some(CONSENSUS.to_vec());
    let end = crate::index::after_prefix(&CONSENSUS);
    while let Some(start) = from {
        let range = Range { from: Some(start), to: end.clone(), reverse: false };
        let Some(pair) = index.scan(Table::System, range).next() else { break };
        let (stored, _) = pair?;
        let group =
            GroupKey::parse(stored.get(CONSENSUS.len()..).unwrap_or_default()).map_err(damaged)?.group;
        found.push(group);
        from = group.checked_add(1).map(|next| [&CONSENSUS[..], &next.to_be_bytes()].concat());
    }
    Ok(found)
}

/// Every group that has a record on a disk, but for those of which it knows their range alone.
pub(crate) fn groups(index: &dyn Index) -> Result<Vec<GroupId>, IndexError> {
    let mut found = Vec::new();
    for group in numbers(index)? {
        let all = Range {
            from: Some([&CONSENSUS[..], &group.to_be_bytes()].concat()),
            to: group.checked_add(1).map(|next| [&CONSENSUS[..], &next.to_be_bytes()].concat()),
            reverse: false,
        };
        let range = GroupKey { group, tag: GroupTag::Range, number: 0 }.stored();
        if index.scan(Table::System, all).take(2).any(|pair| pair.is_ok_and(|(key, _)| *key != *range)) {
            found.push(group);
        }
    }
    Ok(found)
}

/// Where ranges begin that are counted apart on a disk, with the groups that took them over.
pub(crate) fn bounds(index: &dyn Index) -> Result<Vec<(GroupId, Bound)>, IndexError> {
    Ok(all_bounds(index)?.into_iter().filter(|(_, bound)| bound.over.is_none()).collect())
}

fn all_bounds(index: &dyn Index) -> Result<Vec<(GroupId, Bound)>, IndexError> {
    let mut found = Vec::new();
    for group in numbers(index)? {
        if let Some(bound) = bound_of(&index, group)? {
            found.push((group, bound));
        }
    }
    Ok(found)
}

fn bound_of(from: &impl Source, group: GroupId) -> Result<Option<Bound>, IndexError> {
    let range = load(from, GroupKey { group, tag: GroupTag::Range, number: 0 })?;
    range.map(|(_, meta)| Bound::decode(&meta).map_err(damaged)).transpose()
}

/// Whether a disk's range that a group took over was taken back.
pub(crate) fn is_over(from: &impl Source, group: GroupId) -> Result<bool, IndexError> {
    Ok(bound_of(from, group)?.is_some_and(|bound| bound.over.is_some()))
}

/// At the end of a rebuild: lines may have been counted before their range was known, and lines may stand that are dead, because
/// their range was taken back.
pub(super) fn recount(tx: &mut Tx<'_>) -> Result<(), IndexError> {
    let mut containers: Vec<(GroupId, u64)> =
        bounds(tx.index())?.into_iter().map(|(_, bound)| (bound.space, bound.id)).collect();
    containers.sort_unstable();
    containers.dedup();
    containers.into_iter().try_for_each(|(space, id)| counters::recount(tx, space, id))?;
    // Last: what is counted anew is what the index has without these changes.
    for (_, bound) in all_bounds(tx.index())? {
        if let Some(over) = &bound.over {
            spaces::drop_dead(tx, &bound, over)?;
        }
    }
    Ok(())
}
