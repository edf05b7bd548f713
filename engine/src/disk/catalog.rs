//! The seam between the log and what its records mean.
//!
//! The log knows places, order and checksums. A [`Catalog`] knows keys: which record is the newest of its key, and what
//! the index says of it. One implementation serves a disk (`crate::catalog`); tests of the log bring a small one.
//!
//! Invariant: `apply` is last-writer-wins by (sequence, then newer place): applying the records of the whole log in any
//! order, each at least once, ends in the same index (that is what a rebuild does).
//! Invariant: a decision that depends on other state (conditions, "container exists") was taken before the record
//! was submitted; `apply` never refuses.

use std::collections::{BTreeMap, HashMap};

use super::format::record::{DeviceId, NewRecord, RecordView, StoredRecord};
use super::tallies::Shift;
use super::{Group, Location};
use crate::index::{Index, IndexError, Range, Table, WriteSet};

/// What records mean. Runs on the disk's thread (`is_live` also elsewhere): no blocking but for index reads.
pub trait Catalog: Send + Sync {
    /// Enter a durable record that lies at `at`. Calls [`Tx::born`] for it when it is the newest of its key, and
    /// [`Tx::died`] for every record that thereby stops being needed.
    fn apply(&self, tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), IndexError>;

    /// The record at `from` was copied to `to`: when the index still points at `from`, point at `to` ([`Tx::died`] for
    /// `from`, [`Tx::born`] for `to`) and say true; else change nothing and say false.
    fn relocate(
        &self,
        tx: &mut Tx<'_>,
        record: &RecordView<'_>,
        from: Location,
        to: Location,
    ) -> Result<bool, IndexError>;

    /// Whether the record at `at` is needed: the index points at exactly this place.
    fn is_live(&self, index: &dyn Index, record: &RecordView<'_>, at: Location) -> Result<bool, IndexError>;

    /// A record that was not live has left the log for good (its segment is being freed).
    fn forget(&self, tx: &mut Tx<'_>, record: &RecordView<'_>) -> Result<(), IndexError>;

    /// What shall be moved instead of a needed record at `at`, if not the record itself: parts of it that together hold all that
    /// is needed of it. Each is relocated by itself.
    fn remains(
        &self,
        index: &dyn Index,
        device: DeviceId,
        record: &StoredRecord,
        at: Location,
    ) -> Result<Option<Vec<NewRecord>>, IndexError> {
        let _ = (index, device, record, at);
        Ok(None)
    }

    /// Its place among records that are moved together; `None`: before all that have one, as they come.
    fn order(&self, record: &RecordView<'_>) -> Option<Vec<u8>> {
        let _ = record;
        None
    }

    /// Tells what each segment wins or loses of its live bytes, for an index in which every needed record counted whole.
    fn recount(&self, index: &dyn Index, add: &mut dyn FnMut(u32, i64)) -> Result<(), IndexError> {
        let _ = (index, add);
        Ok(())
    }

    /// The table where a record's own key has its row, if applying or moving it looks there: of a batch all are looked up at once.
    fn home(&self, record: &RecordView<'_>) -> Option<Table> {
        let _ = record;
        None
    }

    /// Rows that readers remember together with this one ([`super::memo`]); a change of any of them makes them forget all. `None`: it is
    /// looked up each time.
    fn group(&self, table: Table, key: &[u8]) -> Option<Group> {
        let _ = (table, key);
        None
    }

    /// A rebuild has applied every record of the log: drop what nothing refers to.
    fn rebuilt(&self, tx: &mut Tx<'_>) -> Result<(), IndexError> {
        let _ = tx;
        Ok(())
    }

    /// Tells what [`Tx::shift`] has made the tallies, from the index alone: for an index that was made before there were any.
    fn count(&self, index: &dyn Index, add: &mut dyn FnMut(Shift)) -> Result<(), IndexError> {
        let _ = (index, add);
        Ok(())
    }
}

/// A key and its value.
type KeyValue = (Vec<u8>, Vec<u8>);

fn footprint(at: Location) -> i64 {
    i64::try_from(super::segments::footprint(at.len)).unwrap_or(i64::MAX)
}

/// Index changes of one batch, seen by the batch's later records, and the live bytes they move.
pub struct Tx<'a> {
    index: &'a dyn Index,
    pending: HashMap<(Table, Vec<u8>), Option<Vec<u8>>>,
    /// What the index says of keys that many records ask for.
    often: HashMap<(Table, Vec<u8>), Option<Vec<u8>>>,
    /// The same of keys that the next records ask for.
    foreseen: HashMap<(Table, Vec<u8>), Option<Vec<u8>>>,
    live: HashMap<u32, i64>,
    shifts: Vec<Shift>,
}

/// What a transaction came to.
pub(crate) struct Finished {
    pub(crate) set: WriteSet,
    /// Live bytes that each segment won or lost.
    pub(crate) live: HashMap<u32, i64>,
    pub(crate) shifts: Vec<Shift>,
}

impl<'a> Tx<'a> {
    /// Nothing changed yet.
    #[must_use]
    pub fn new(index: &'a dyn Index) -> Self {
        Self {
            index,
            pending: HashMap::new(),
            often: HashMap::new(),
            foreseen: HashMap::new(),
            live: HashMap::new(),
            shifts: Vec::new(),
        }
    }

    /// The value of a key, changes of this transaction included.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        // One allocation for each look-up, where there is anything to find.
        if !self.pending.is_empty() || !self.foreseen.is_empty() {
            let key = (table, key.to_vec());
            if let Some(value) = self.pending.get(&key).or_else(|| self.foreseen.get(&key)) {
                return Ok(value.clone());
            }
        }
        self.index.get(table, key)
    }

    /// Asks the index now for what records are about to ask for: together it costs much less than one after the other. What was
    /// foreseen before is forgotten.
    pub(crate) fn foresee(
        &mut self,
        catalog: &dyn Catalog,
        records: &[RecordView<'_>],
    ) -> Result<(), IndexError> {
        let mut tables: BTreeMap<Table, Vec<Vec<u8>>> = BTreeMap::new();
        for record in records {
            if let Some(table) = catalog.home(record) {
                tables.entry(table).or_default().push(record.key.to_vec());
            }
        }
        self.foreseen.clear();
        for (table, mut keys) in tables {
            keys.sort_unstable();
            keys.dedup();
            let values = self.index.get_several(table, &keys)?;
            self.foreseen.extend(keys.into_iter().map(|key| (table, key)).zip(values));
        }
        Ok(())
    }

    /// As [`Tx::get`], of a key that many records of a batch ask for: the index is asked once.
    pub fn get_often(&mut self, table: Table, key: Vec<u8>) -> Result<Option<Vec<u8>>, IndexError> {
        let key = (table, key);
        if let Some(value) = self.pending.get(&key).or_else(|| self.often.get(&key)) {
            return Ok(value.clone());
        }
        let value = self.index.get(table, &key.1)?;
        self.often.insert(key, value.clone());
        Ok(value)
    }

    /// Sets a key.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.pending.insert((table, key.into()), Some(value.into()));
    }

    /// Removes a key.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.pending.insert((table, key.into()), None);
    }

    /// Keys of the index that begin with `prefix`, in order, **without** the changes of this transaction.
    pub fn scan_stored(&self, table: Table, prefix: &[u8]) -> Result<Vec<crate::index::Pair>, IndexError> {
        let range = Range::prefix(prefix);
        self.index.scan(table, range).collect()
    }

    /// Whether a key of a range is among the changes of this transaction.
    #[must_use]
    pub fn touches(&self, table: Table, range: &Range) -> bool {
        let within = |key: &[u8]| {
            range.from.as_deref().is_none_or(|from| key >= from)
                && range.to.as_deref().is_none_or(|to| key < to)
        };
        self.pending.keys().any(|(of, key)| *of == table && within(key))
    }

    /// Pairs of a range, lazily, **without** the changes of this transaction.
    pub fn stored(
        &self,
        table: Table,
        range: Range,
    ) -> impl Iterator<Item = Result<crate::index::Pair, IndexError>> + use<'a> {
        self.index.scan(table, range)
    }

    /// The index, **without** the changes of this transaction.
    #[must_use]
    pub fn index(&self) -> &'a dyn Index {
        self.index
    }

    /// Pairs of a range, in order, changes of this transaction included.
    pub fn range(&self, table: Table, range: &Range) -> Result<Vec<KeyValue>, IndexError> {
        let mut pairs = BTreeMap::new();
        for pair in self.index.scan(table, Range { reverse: false, ..range.clone() }) {
            let (key, value) = pair?;
            pairs.insert(key.into_vec(), value.into_vec());
        }
        let within = |key: &Vec<u8>| {
            range.from.as_ref().is_none_or(|from| key >= from) && range.to.as_ref().is_none_or(|to| key < to)
        };
        for ((_, key), value) in self.pending.iter().filter(|((t, key), _)| *t == table && within(key)) {
            match value {
                Some(value) => pairs.insert(key.clone(), value.clone()),
                None => pairs.remove(key),
            };
        }
        Ok(pairs.into_iter().collect())
    }

    /// The record at `at` is needed from now on.
    pub fn born(&mut self, at: Location) {
        *self.live.entry(at.segment).or_default() += footprint(at);
    }

    /// The record at `at` is no longer needed.
    pub fn died(&mut self, at: Location) {
        *self.live.entry(at.segment).or_default() -= footprint(at);
    }

    /// A record counts for so much more, or less.
    pub fn weigh(&mut self, segment: u32, by: i64) {
        *self.live.entry(segment).or_default() += by;
    }

    /// Adds to a tally, modulo 2^128.
    pub fn shift(&mut self, tally: u32, by: u128) {
        self.shifts.push((tally, by));
    }

    pub(crate) fn finish(self) -> Finished {
        let changes = self.pending.into_iter().map(|((table, key), value)| (table, key, value));
        let mut changes: Vec<_> = changes.collect();
        // In order the index finds the place of each beside the one before.
        changes.sort_unstable_by(|(a, x, _), (b, y, _)| (a, x).cmp(&(b, y)));
        Finished { set: WriteSet { changes }, live: self.live, shifts: self.shifts }
    }
}
