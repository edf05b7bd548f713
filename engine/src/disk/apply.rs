//! The applier: durable records into the index, in LSN order, each batch atomically with the position after it.
//!
//! Invariant: live replay and recovery run the same code, so a replayed batch ends in the same index.
//! Invariant: what a batch changes may be found out while the device has it, as soon as all before it is applied; it counts only if
//! nothing has changed the index since.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::Lsn;
use super::batching::{Placed, Written};
use super::catalog::{Catalog, Finished, Tx};
use super::core::Core;
use super::format::record::RecordView;
use super::limits::FEW_RECORDS;
use super::segments::{POSITION_KEY, Position, SegmentMap, State, segment_key};
use super::shared::{DiskError, IndexChange};
use super::tallies::Tallies;
use crate::index::{Index, IndexError, Table};

/// Records whose rows are looked up together.
const FORESEEN: usize = 256;

/// What a batch changes that is not applied yet.
pub(crate) struct Prepared {
    end_lsn: Lsn,
    /// How often the index had been changed.
    changes: u64,
    finished: Finished,
}

/// Applies the records of one batch and the position after it.
pub(crate) fn apply_records(
    index: &dyn Index,
    catalog: &dyn Catalog,
    segments: &mut SegmentMap,
    tallies: &Tallies,
    records: &[Placed],
    position: &Position,
    sealed: Option<u32>,
) -> Result<i64, IndexError> {
    let finished = changes_of(index, catalog, records, position)?;
    commit(index, segments, tallies, finished, &also(position, sealed))
}

/// Segments whose rows go with a batch, whatever it changes.
fn also(position: &Position, sealed: Option<u32>) -> Vec<u32> {
    position.heads.iter().flatten().map(|head| head.segment).chain(sealed).collect()
}

/// What the records of one batch and the position after it change. Changes nothing.
fn changes_of(
    index: &dyn Index,
    catalog: &dyn Catalog,
    records: &[Placed],
    position: &Position,
) -> Result<Finished, IndexError> {
    let mut tx = Tx::new(index);
    let views = records.iter().map(|placed| {
        let Ok(view) = RecordView::parse(&placed.head) else {
            unreachable!("heads were parsed when they were placed or verified")
        };
        view
    });
    let views: Vec<_> = views.collect();
    // Not all at once: a row may be large.
    for (records, views) in records.chunks(FORESEEN).zip(views.chunks(FORESEEN)) {
        if views.len() > FEW_RECORDS {
            tx.foresee(catalog, views)?;
        }
        for (placed, view) in records.iter().zip(views) {
            match placed.from {
                Some(from) => {
                    catalog.relocate(&mut tx, view, from, placed.at)?;
                }
                None => catalog.apply(&mut tx, view, placed.at)?,
            }
        }
    }
    tx.put(Table::System, POSITION_KEY, position.encode());
    Ok(tx.finish())
}

/// Makes a transaction visible: the changes, the live bytes and tallies they moved, and the rows of the segments in `also`.
/// Returns the change of live bytes.
pub(crate) fn commit(
    index: &dyn Index,
    segments: &mut SegmentMap,
    tallies: &Tallies,
    finished: Finished,
    also: &[u32],
) -> Result<i64, IndexError> {
    let Finished { mut set, live, shifts } = finished;
    tallies.shift(&shifts, &mut set);
    for (segment, delta) in &live {
        segments.shift_live(*segment, *delta);
    }
    let touched = live.keys().chain(also).map(|s| (*s, ())).collect::<HashMap<u32, ()>>();
    for segment in touched.into_keys() {
        set.changes.push((Table::System, segment_key(segment), Some(segments.get(segment).encode())));
    }
    index.apply(set)?;
    Ok(live.values().sum())
}

impl Core {
    /// Finds out what the batch changes that is to be applied next, while the device has it; whether that was done now.
    pub(crate) fn prepare_next(&mut self) -> bool {
        let writing = self.writing.as_ref().map(|writing| &writing.batch);
        let Some(batch) = self.unapplied.front().or(writing) else { return false };
        let changes = self.checkpoint.changes();
        // A small one is applied as quickly, and may not have been handed to the device yet.
        if batch.records.len() <= FEW_RECORDS || self.prepared_for(batch).is_some() {
            return false;
        }
        let shared = &self.shared;
        let (index, catalog) = (shared.index.as_ref(), shared.catalog.as_ref());
        // What fails now fails again when it is applied.
        let found = changes_of(index, catalog, &batch.records, &batch.position).ok();
        self.prepared = found.map(|finished| Prepared { end_lsn: batch.end_lsn, changes, finished });
        self.prepared.is_some()
    }

    fn prepared_for(&self, batch: &Written) -> Option<&Prepared> {
        let changes = self.checkpoint.changes();
        self.prepared.as_ref().filter(|known| known.end_lsn == batch.end_lsn && known.changes == changes)
    }

    pub(crate) fn apply(&mut self, batch: &Written) -> Result<(), IndexError> {
        let shared = self.shared.clone();
        let is_prepared = self.prepared_for(batch).is_some();
        let prepared = self.prepared.take().filter(|_| is_prepared);
        let finished = match prepared {
            Some(prepared) => prepared.finished,
            None => {
                changes_of(shared.index.as_ref(), shared.catalog.as_ref(), &batch.records, &batch.position)?
            }
        };
        let mut segments = shared.segments();
        if let Some(sealed) = batch.sealed {
            segments.get_mut(sealed).state = State::Sealed;
        }
        let also = also(&batch.position, batch.sealed);
        let delta = commit(shared.index.as_ref(), &mut segments, &shared.tallies, finished, &also)?;
        drop(segments);
        self.moved_live(delta);
        self.checkpoint.applied(batch);
        Ok(())
    }

    fn moved_live(&self, delta: i64) {
        let magnitude = delta.unsigned_abs();
        if delta >= 0 {
            self.shared.live.fetch_add(magnitude, Ordering::Relaxed);
        } else {
            self.shared.live.fetch_sub(magnitude, Ordering::Relaxed);
        }
    }

    /// An index-only change of a caller.
    pub(crate) fn run_change(&mut self, change: IndexChange) -> Result<(), DiskError> {
        let shared = self.shared.clone();
        let mut tx = Tx::new(shared.index.as_ref());
        let result = change(&mut tx)
            .and_then(|()| {
                commit(shared.index.as_ref(), &mut shared.segments(), &shared.tallies, tx.finish(), &[])
            })
            .map(|delta| self.moved_live(delta));
        self.checkpoint.touched();
        result.map_err(|e| self.index_failed(e))
    }

    /// A change that the index did not take leaves the segment map ahead of it: nothing may follow.
    fn index_failed(&mut self, e: IndexError) -> DiskError {
        self.fail(&format!("the index refused a change ({e}); check its directory, then restart"));
        DiskError::from(e)
    }

    /// The cleaner has dealt with a segment's records up to `upto`: dead ones are forgotten, and at the end the segment is
    /// retired. If anything in it is needed still it stays as it is, and its dead records with it: were they forgotten, the tombstones
    /// that keep them dead would go before them, and a rebuild would bring them back.
    pub(crate) fn run_forget(
        &mut self,
        segment: u32,
        seq: u64,
        upto: u32,
        last: bool,
        heads: &[Vec<u8>],
    ) -> Result<bool, DiskError> {
        let shared = self.shared.clone();
        let before = shared.segments().get(segment);
        let expected = before.state == State::Sealed && before.seq == seq && before.retired_to <= upto;
        if !expected {
            // A second cleaner, or a message that came twice: its work was done.
            return Ok(false);
        }
        let stuck = before.live > 0;
        let mut tx = Tx::new(shared.index.as_ref());
        for head in heads.iter().filter(|_| !stuck) {
            let Ok(view) = RecordView::parse(head) else {
                unreachable!("the cleaner sends heads it has verified")
            };
            if let Err(e) = shared.catalog.forget(&mut tx, &view) {
                return Err(self.index_failed(e));
            }
        }
        let mut segments = shared.segments();
        let s = segments.get_mut(segment);
        s.stuck = stuck;
        if !stuck {
            s.retired_to = upto;
        }
        let retired = last && !stuck;
        if retired {
            s.state = State::Retired;
        }
        let committed =
            commit(shared.index.as_ref(), &mut segments, &shared.tallies, tx.finish(), &[segment]);
        drop(segments);
        let delta = committed.map_err(|e| self.index_failed(e))?;
        self.moved_live(delta);
        self.checkpoint.touched();
        if retired {
            self.freeing.retired(segment, self.checkpoint.changes());
        }
        Ok(retired)
    }
}
