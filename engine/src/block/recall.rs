//! What the first era of a volume has of a span, remembered.
//!
//! Without snapshots, which is the rule, all rows of a volume are of its first era. They are read together when a span is asked for a
//! second time: a pass over a volume, or reads all over a large one, look up no more than they need.
//!
//! Invariant: what is remembered of a span gives what [`first_era`] gives.

use std::sync::Arc;

use super::place::{Run, VolumeId};
use super::row::{BlockPlace, BlockRow, CHUNK_KEY, Row, block_key};
use super::span::{SPAN_BLOCKS, SpanRow, span_of};
use super::store::{Mapped, first_era, first_rows};
use crate::disk::Group;
use crate::disk::memo::{Memo, Recalled};
use crate::index::{Index, IndexError, Table};

/// Rows of blocks are remembered span by span, those of all eras.
pub(crate) fn group_of(key: &[u8]) -> Option<Group> {
    let mut group = Group::default();
    group.copy_from_slice(key.get(..CHUNK_KEY + 1).filter(|key| key.first() == Some(&b'b'))?);
    group[CHUNK_KEY] = span_of(group[CHUNK_KEY]);
    Some(group)
}

/// The rows of a span.
struct SpanRows {
    /// Of blocks that have one of their own, in order.
    own: Box<[(u8, BlockRow)]>,
    /// Of the others.
    span: Option<SpanRow>,
}

impl SpanRows {
    fn read(index: &dyn Index, run: &Run, volume: VolumeId) -> Result<Self, IndexError> {
        let whole = Run { first: span_of(run.first), blocks: SPAN_BLOCKS.into(), ..*run };
        let (mut own, mut span) = (Vec::new(), None);
        first_rows(index, &whole, volume, |place, row| match row {
            Row::Block(row) => own.push((place.block, row)),
            Row::Span(row) => span = Some(*row),
        })?;
        Ok(Self { own: own.into(), span })
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.own)
    }

    fn block(&self, block: u8) -> Option<BlockRow> {
        let own = self.own.iter().find(|(own, _)| *own == block).map(|(_, row)| *row);
        own.or_else(|| self.span.as_ref()?.block(block - span_of(block)))
    }

    fn mapped(&self, run: &Run, volume: VolumeId) -> Vec<Mapped> {
        let one = |block| {
            let row = self.block(block)?;
            Some(Mapped { place: BlockPlace::of(run, block), volume, era: 0, row })
        };
        run.numbers().filter_map(one).collect()
    }
}

/// As [`first_era`], from memory where that is possible.
pub(super) fn first_era_known(
    index: &dyn Index,
    memo: &Memo,
    run: &Run,
    volume: VolumeId,
) -> Result<Vec<Mapped>, IndexError> {
    if span_of(run.first) != span_of(run.last()) {
        return first_era(index, run, volume);
    }
    let key = block_key(volume, run.slice, run.chunk, run.first, 0);
    match memo.recall::<SpanRows>(Table::Blocks, &key) {
        Recalled::Known(rows) => Ok(rows.mapped(run, volume)),
        Recalled::Unknown(blank) if blank.again => {
            let rows = SpanRows::read(index, run, volume)?;
            let (found, bytes) = (rows.mapped(run, volume), rows.bytes());
            memo.learn(&blank, Arc::new(rows), bytes);
            Ok(found)
        }
        Recalled::Unknown(_) | Recalled::Never => first_era(index, run, volume),
    }
}

#[cfg(test)]
#[path = "recall_tests.rs"]
mod tests;
