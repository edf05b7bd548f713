//! Bugs planted on purpose: a harness that cannot fail shows nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quarry_engine::catalog::{Head, ObjectCatalog, tally, weight};
use quarry_engine::disk::catalog::{Catalog, Tx};
use quarry_engine::disk::format::record::{Kind, RecordView};
use quarry_engine::disk::{Group, Location};
use quarry_engine::index::{Index, IndexError, Table};

/// A bug to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Plant {
    /// None: the real thing.
    #[default]
    Nothing,
    /// The drive says that it has flushed, and has not.
    LyingFlush,
    /// A copy by the cleaner wins over a version that was written meanwhile.
    BlindMove,
    /// Tombstones are forgotten as soon as they are applied, while what they deleted still lies in the log.
    EarlyReclaim,
    /// Of a group of records, now and then the row is lost.
    LostRow,
    /// The sum of a version is not subtracted when a tombstone takes its place.
    SumNotSubtracted,
}

impl Plant {
    /// The catalog with the bug in it.
    #[must_use]
    pub fn catalog(self) -> Arc<dyn Catalog> {
        match self {
            Self::Nothing | Self::LyingFlush => Arc::new(ObjectCatalog),
            _ => Arc::new(Faulty { plant: self, rows: AtomicU64::new(0) }),
        }
    }
}

/// The real catalog, but for one bug.
struct Faulty {
    plant: Plant,
    rows: AtomicU64,
}

fn grave_key(record: &RecordView<'_>) -> Vec<u8> {
    let table = if record.kind == Kind::Object { Table::Objects } else { Table::Rows };
    [&[table as u8], record.key].concat()
}

/// Adds a version of an object to its sum, or takes it away: what a bug does to the index alone shall not show in the sums.
fn shift(tx: &mut Tx<'_>, record: &RecordView<'_>, deleted: bool, sequence: u64, add: bool) {
    if let (Kind::Object, Ok(hash)) = (record.kind, record.key.try_into()) {
        let weight = weight(&hash, sequence, deleted);
        tx.shift(tally(&hash), if add { weight } else { 0_u128.wrapping_sub(weight) });
    }
}

impl Catalog for Faulty {
    fn apply(&self, tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), IndexError> {
        if self.plant == Plant::LostRow
            && record.kind == Kind::Row
            && self.rows.fetch_add(1, Ordering::Relaxed) % 40 == 39
        {
            return Ok(());
        }
        let replaced = self.plant == Plant::SumNotSubtracted && record.deleted;
        let before = if replaced { tx.get(Table::Objects, record.key)? } else { None };
        ObjectCatalog.apply(tx, record, at)?;
        if let Some((head, _)) = before.as_deref().and_then(|entry| Head::decode(entry).ok()) {
            shift(tx, record, false, head.sequence, true);
        }
        if self.plant == Plant::EarlyReclaim && record.deleted {
            let key = grave_key(record);
            if tx.get(Table::Graves, &key)?.is_some() {
                shift(tx, record, true, record.sequence, false);
                tx.died(at);
                tx.delete(Table::Graves, key);
            }
        }
        Ok(())
    }

    fn relocate(
        &self,
        tx: &mut Tx<'_>,
        record: &RecordView<'_>,
        from: Location,
        to: Location,
    ) -> Result<bool, IndexError> {
        if self.plant == Plant::BlindMove && record.kind == Kind::Object {
            // No look at what stands: the copy is entered as if it were the newest.
            for (table, key) in [(Table::Objects, record.key.to_vec()), (Table::Graves, grave_key(record))] {
                let entry = tx.get(table, &key)?;
                if let Some((head, _)) = entry.as_deref().and_then(|entry| Head::decode(entry).ok()) {
                    shift(tx, record, table == Table::Graves, head.sequence, false);
                }
            }
            tx.delete(Table::Objects, record.key);
            tx.delete(Table::Graves, grave_key(record));
            tx.died(from);
            ObjectCatalog.apply(tx, record, to)?;
            return Ok(true);
        }
        ObjectCatalog.relocate(tx, record, from, to)
    }

    fn group(&self, table: Table, key: &[u8]) -> Option<Group> {
        ObjectCatalog.group(table, key)
    }

    fn is_live(&self, index: &dyn Index, record: &RecordView<'_>, at: Location) -> Result<bool, IndexError> {
        ObjectCatalog.is_live(index, record, at)
    }

    fn forget(&self, tx: &mut Tx<'_>, record: &RecordView<'_>) -> Result<(), IndexError> {
        ObjectCatalog.forget(tx, record)
    }

    fn rebuilt(&self, tx: &mut Tx<'_>) -> Result<(), IndexError> {
        ObjectCatalog.rebuilt(tx)
    }
}
