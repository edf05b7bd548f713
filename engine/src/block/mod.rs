//! Blocks of volumes on one disk: their records, their rows in the index, and how they are read (engine/FORMAT-blocks.md).
//!
//! Knows nothing of heads, members and snapshots beyond an era's number: the crate `volume` decides, this keeps.
//!
//! Invariant: applying the records of a whole log in any order ends in rows that the log's own order ends in, but for
//! rows of volumes that are gone.

mod audit;
mod extent;
mod map;
mod marks;
mod near;
mod note;
mod order;
mod place;
mod recall;
mod remains;
mod row;
mod span;
#[cfg(test)]
mod span_tests;
mod store;
#[cfg(test)]
mod tests;

pub use audit::{Audited, audit};
pub use extent::{
    Content, EXTENT_VERSION, Extent, ExtentError, MAX_EXTENT_BYTES, MIN_EXTENT_BYTES, block_checksum,
};
pub(crate) use map::{BadOr, recount};
pub use marks::{Mark, is_thinned, marks, set_thinned, thin};
pub use note::{FIRST_PLACE, Note, NoteKey, NoteTag};
pub use order::{Lie, View, bring, lie, take_hint};
pub use place::{
    BLOCK_BYTES, BLOCK_LENGTH, BLOCKS_PER_CHUNK, CHUNK_BYTES, ChunkId, Fence, Position, Run, SliceId,
    VolumeId,
};
pub(crate) use recall::group_of;
pub(crate) use remains::{order_of, remains};
pub use row::{BlockPlace, BlockRow};
pub use store::{
    Layer, Mapped, data_record, extent_bytes, extent_record, find, last_position, note_record, notes, piece,
    read, read_pieces, reap, walk,
};

use crate::disk::Location;
use crate::disk::catalog::Tx;
use crate::disk::format::record::{Kind, RecordView};
use crate::index::{Index, IndexError};

/// Enters a record of a volume.
pub(crate) fn apply(tx: &mut Tx<'_>, record: &RecordView<'_>, at: Location) -> Result<(), BadOr> {
    match record.kind {
        Kind::VolumeMap => note::apply(tx, record, at),
        _ => map::apply(tx, record, at),
    }
}

/// A record of a volume was moved.
pub(crate) fn relocate(
    tx: &mut Tx<'_>,
    record: &RecordView<'_>,
    from: Location,
    to: Location,
) -> Result<bool, IndexError> {
    match record.kind {
        Kind::VolumeMap => note::relocate(tx, record, from, to),
        _ => map::relocate(tx, record, from, to),
    }
}

/// Whether a record of a volume is needed.
pub(crate) fn is_live(index: &dyn Index, record: &RecordView<'_>, at: Location) -> Result<bool, IndexError> {
    match record.kind {
        Kind::VolumeMap => note::is_live(index, record, at),
        _ => map::is_live(index, record, at),
    }
}
