//! Bugs planted on purpose: a harness that cannot fail shows nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quarry_engine::catalog::ObjectCatalog;
use quarry_engine::disk::Location;
use quarry_engine::disk::catalog::{Catalog, Tx};
use quarry_engine::disk::format::record::{Kind, RecordView};
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

impl Catalog for Faulty {
    fn apply(&self, tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), IndexError> {
        if self.plant == Plant::LostRow
            && record.kind == Kind::Row
            && self.rows.fetch_add(1, Ordering::Relaxed) % 40 == 39
        {
            return Ok(());
        }
        ObjectCatalog.apply(tx, record, at)?;
        if self.plant == Plant::EarlyReclaim && record.deleted {
            let key = grave_key(record);
            if tx.get(Table::Graves, &key)?.is_some() {
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
            tx.delete(Table::Objects, record.key);
            tx.delete(Table::Graves, grave_key(record));
            tx.died(from);
            ObjectCatalog.apply(tx, record, to)?;
            return Ok(true);
        }
        ObjectCatalog.relocate(tx, record, from, to)
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
