//! What is moved of a record: all of it, or where most of its blocks were overwritten, a record for each run of those that are
//! still needed.
//!
//! Without this a mebibyte that was written at once stays whole in the log for the sake of its last block.
//!
//! Invariant: a part is a record like any other: the same write (epoch, sequence, era), the same blocks at the same places, so the
//! checksum of each block stays what it was; no two parts of a record share a block.
//! Invariant: a record is cut where a quarter of its blocks is not needed, and from then on counts for less in its segment
//! (`map.rs`), so that the cleaner comes for it. Parts take less than the whole; so cleaning comes to an end.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::extent::{Content, Extent};
use super::map::{Known, count_of, parse};
use super::place::{BLOCK_LENGTH, Run};
use super::row::{Row, parse_block_key, run_range};
use super::store::extent_record_of;
use crate::catalog::damaged;
use crate::disk::Location;
use crate::disk::footprint;
use crate::disk::format::record::{DeviceId, NewRecord, RecordView, StoredRecord};
use crate::index::{Index, IndexError, Table};

/// How many blocks of a record of several are needed.
pub(super) fn needed_of(index: &dyn Index, at: Location) -> Result<u16, IndexError> {
    Ok(count_of(&index, at)?.unwrap_or_default())
}

/// The parts of a record, if it is better moved in parts.
pub(crate) fn remains(
    index: &dyn Index,
    device: DeviceId,
    record: &StoredRecord,
    at: Location,
) -> Result<Option<Vec<NewRecord>>, IndexError> {
    let view = record.view();
    let Ok(known) = parse(&view) else { return Ok(None) };
    let Content::Data(checksums) = &known.extent.content else { return Ok(None) };
    let Some(count) = count_of(&index, at)? else { return Ok(None) };
    if !gains(u64::from(count), u64::from(known.extent.run.blocks)) {
        return Ok(None);
    }
    let runs = runs_of(&needed(index, &known, at)?);
    let data = record.data();
    let parts: Vec<NewRecord> =
        runs.iter().filter_map(|run| part(device, &known, checksums, *run, &data)).collect();
    let bytes: u64 =
        parts.iter().map(|part| footprint(u32::try_from(part.stored_len()).unwrap_or(u32::MAX))).sum();
    Ok((!parts.is_empty() && bytes < footprint(at.len)).then_some(parts))
}

/// Whether a record of which so many of its blocks are needed is moved in parts.
pub(super) fn gains(needed: u64, blocks: u64) -> bool {
    needed * 4 <= blocks * 3
}

/// Blocks of a record that rows point at.
fn needed(index: &dyn Index, known: &Known, at: Location) -> Result<BTreeSet<u8>, IndexError> {
    let run = &known.extent.run;
    let mut blocks = BTreeSet::new();
    for pair in index.scan(Table::Blocks, run_range(known.extent.volume, run)) {
        let (key, value) = pair?;
        let (place, era) = parse_block_key(&key).map_err(damaged)?;
        if era == known.era {
            let row = Row::decode(&key, &value).map_err(damaged)?;
            blocks.extend(row.blocks(place).filter(|(_, row)| row.at == at).map(|(place, _)| place.block));
        }
    }
    Ok(blocks)
}

/// First and last of blocks that follow one another.
fn runs_of(blocks: &BTreeSet<u8>) -> Vec<(u8, u8)> {
    let mut runs: Vec<(u8, u8)> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*block) => *last = *block,
            _ => runs.push((*block, *block)),
        }
    }
    runs
}

/// The record of a run of the record's blocks.
fn part(
    device: DeviceId,
    known: &Known,
    checksums: &[u32],
    (first, last): (u8, u8),
    data: &Bytes,
) -> Option<NewRecord> {
    let whole = &known.extent;
    let skip = usize::from(first.checked_sub(whole.run.first)?);
    let blocks = u16::from(last - first) + 1;
    let upto = skip + usize::from(blocks);
    let checksums = checksums.get(skip..upto)?.to_vec();
    let run = Run { first, blocks, ..whole.run };
    let bytes = Bytes::copy_from_slice(data.get(skip * BLOCK_LENGTH..upto * BLOCK_LENGTH)?);
    let part = Extent { run, content: Content::Data(checksums), ..whole.clone() };
    Some(extent_record_of(device, &part, known.era, bytes))
}

/// What brings records of blocks that are moved together into their order: by volume, era and address.
pub(crate) fn order_of(record: &RecordView<'_>) -> Option<Vec<u8>> {
    let (volume, address) = (record.key.get(1..17)?, record.key.get(17..24)?);
    Some([volume, &record.number.to_be_bytes(), address].concat())
}

#[cfg(test)]
#[path = "remains_tests.rs"]
mod tests;
