//! Bugs planted in the seams of the real member service: a harness that cannot fail shows nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use quarry_engine::block::{BLOCK_LENGTH, NoteTag, Position, VolumeId};
use quarry_engine::catalog::ObjectCatalog;
use quarry_engine::disk::catalog::{Catalog, Tx};
use quarry_engine::disk::format::record::{DeviceId, Kind, NewRecord, RecordView, StoredRecord};
use quarry_engine::disk::{Group, Location};
use quarry_engine::index::{Index, IndexError, Table};
use quarry_engine::net::{BlockWrite, VolumeAnswer, VolumeCall};

use super::part::VOLUME;
use crate::cluster::locked;

/// A bug to plant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Plant {
    /// None: the real thing.
    #[default]
    Nothing,
    /// A member says that it flushed, and did not.
    FlushForgotten,
    /// What a member promised is forgotten when its node starts again.
    PromiseForgotten,
    /// A member is whole although a row was not entered.
    RowForgotten,
    /// A member that went another way keeps what it has when it is filled.
    VoidKept,
    /// Members confirm the fence of whoever asks.
    FencedReads,
    /// A read is given away before what was read is durable.
    ReadTooEarly,
    /// Writes go where the last snapshot sees them.
    SnapshotWritten,
    /// Who is filled takes all rows for one era's.
    ErasMixed,
    /// Who is filled is not sent what a clone sees of its parent.
    ParentForgotten,
    /// A clone begins as its parent is now.
    CloneOfNow,
    /// Who goes back to a snapshot is not told what changed since.
    ChangeForgotten,
}

/// What a member's answers need to be bent.
#[derive(Debug, Default)]
pub(crate) struct Bent(Mutex<HashMap<DeviceId, u64>>);

impl Plant {
    /// The catalog of every drive.
    pub(crate) fn catalog(self) -> Arc<dyn Catalog> {
        match self {
            Self::PromiseForgotten => Arc::new(Forgetful),
            _ => Arc::new(ObjectCatalog),
        }
    }

    /// What a member is asked instead.
    pub(crate) fn asked(
        self,
        bent: &Bent,
        (device, volume): (DeviceId, VolumeId),
        call: VolumeCall,
    ) -> VolumeCall {
        match (self, call) {
            (Self::FlushForgotten, VolumeCall::Flush(_)) => VolumeCall::Confirm,
            (Self::FlushForgotten, VolumeCall::Write { writes, data, flush: true }) => {
                VolumeCall::Write { writes, data, flush: false }
            }
            (Self::RowForgotten, VolumeCall::Put { rows, data }) => {
                without(rows, data, |at| at.sequence % 4 == 3)
            }
            (Self::ParentForgotten, VolumeCall::Put { rows, data }) if volume != VOLUME => {
                without(rows, data, |at| at.sequence == 1)
            }
            (
                Self::ChangeForgotten,
                VolumeCall::Rows { from, above, data: false, era, since: since @ 1.. },
            ) => VolumeCall::Rows { from, above, data: false, era, since: since + 1 },
            (Self::CloneOfNow, VolumeCall::Fork { clone, at, .. }) => {
                VolumeCall::Fork { clone, era: u32::MAX, at }
            }
            (Self::SnapshotWritten, VolumeCall::Write { mut writes, data, flush }) => {
                writes.iter_mut().for_each(|write| write.era = write.era.saturating_sub(1));
                VolumeCall::Write { writes, data, flush }
            }
            (Self::ErasMixed, VolumeCall::Put { mut rows, data }) => {
                rows.iter_mut().for_each(|row| row.era = 0);
                VolumeCall::Put { rows, data }
            }
            (Self::VoidKept, VolumeCall::Fill { common, after }) => {
                let end = locked(&bent.0).get(&device).copied();
                VolumeCall::Fill { common: end.unwrap_or(common), after }
            }
            (_, call) => call,
        }
    }

    /// What it answers instead.
    pub(crate) fn answered(
        self,
        bent: &Bent,
        device: DeviceId,
        confirms: bool,
        answer: VolumeAnswer,
    ) -> VolumeAnswer {
        match (self, answer) {
            (Self::FencedReads, VolumeAnswer::Refused(..)) if confirms => VolumeAnswer::Done,
            (Self::ReadTooEarly, VolumeAnswer::Read { pieces, data, .. }) => {
                VolumeAnswer::Read { newest: 0, pieces, data }
            }
            (Self::VoidKept, VolumeAnswer::Promised { session, turns, end, whole, kept }) => {
                locked(&bent.0).insert(device, end);
                VolumeAnswer::Promised { session, turns, end, whole, kept }
            }
            (_, answer) => answer,
        }
    }
}

/// Some rows are left out.
fn without(rows: Vec<BlockWrite>, mut data: Bytes, which: impl Fn(Position) -> bool) -> VolumeCall {
    let (mut kept, mut parts) = (Vec::new(), Vec::new());
    for row in rows {
        let length = if row.zeroes { 0 } else { usize::from(row.run.blocks) * BLOCK_LENGTH };
        let bytes = data.split_to(length.min(data.len()));
        if !which(row.position) {
            kept.push(row);
            parts.push(bytes);
        }
    }
    VolumeCall::Put { rows: kept, data: parts.concat().into() }
}

/// The real catalog, but that promises leave no trace.
struct Forgetful;

impl Catalog for Forgetful {
    fn apply(&self, tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), IndexError> {
        // Behind the volume's id.
        if record.kind == Kind::VolumeMap && record.key.get(16) == Some(&(NoteTag::Promise as u8)) {
            return Ok(());
        }
        ObjectCatalog.apply(tx, record, at)
    }

    fn relocate(
        &self,
        tx: &mut Tx<'_>,
        record: &RecordView<'_>,
        from: Location,
        to: Location,
    ) -> Result<bool, IndexError> {
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

    fn remains(
        &self,
        index: &dyn Index,
        device: DeviceId,
        record: &StoredRecord,
        at: Location,
    ) -> Result<Option<Vec<NewRecord>>, IndexError> {
        ObjectCatalog.remains(index, device, record, at)
    }

    fn rebuilt(&self, tx: &mut Tx<'_>) -> Result<(), IndexError> {
        ObjectCatalog.rebuilt(tx)
    }
}
