//! Audit of volumes: blocks read from the device and verified, row by row.
//!
//! Invariant: a block that is moved or overwritten meanwhile is no finding.

use futures_util::stream::{self, StreamExt};

use super::place::VolumeId;
use super::row::{Row, parse_block_key};
use super::store::{Mapped, piece, read};
use crate::catalog::damaged;
use crate::disk::{DiskError, DiskHandle, Location};
use crate::index::{Index, IndexError, Range, Table};

/// Pieces that are being read at a time, a mebibyte each at most.
const READS: usize = 8;

/// What a look at some blocks came to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Audited {
    /// The last row that was looked at; `None`: there was none left.
    pub last: Option<Vec<u8>>,
    /// Blocks.
    pub rows: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What is not as it was written.
    pub wrong: Vec<String>,
}

type Rows = (Option<Vec<u8>>, Vec<Mapped>);

fn rows(index: &dyn Index, after: &[u8], most: usize) -> Result<Rows, IndexError> {
    let mut range = Range::prefix(b"b");
    if !after.is_empty() {
        range.from = Some([after, &[0]].concat());
    }
    let (mut last, mut found) = (None, Vec::with_capacity(most));
    for pair in index.scan(Table::Blocks, range).take(most) {
        let (key, value) = pair?;
        let (place, era) = parse_block_key(&key).map_err(damaged)?;
        let volume = key.get(1..17).and_then(|id| id.try_into().ok()).map(VolumeId);
        let volume = volume.unwrap_or(VolumeId([0; 16]));
        let row = Row::decode(&key, &value).map_err(damaged)?;
        found.extend(row.blocks(place).map(|(place, row)| Mapped { place, volume, era, row }));
        last = Some(key.into_vec());
    }
    Ok((last, found))
}

/// Reads the blocks of the rows behind `after`, at most so many.
pub async fn audit(disk: &DiskHandle, after: &[u8], most: usize) -> Result<Audited, DiskError> {
    let found = disk.lookup(|index| {
        let rows = rows(index, after, most)?;
        let places: Vec<Location> = rows.1.iter().map(|block| block.row.at).collect();
        Ok(Some((rows, places)))
    })?;
    let Some(((last, blocks), _pins)) = found else { return Ok(Audited::default()) };
    let mut audited = Audited { last, rows: blocks.len() as u64, ..Audited::default() };
    let piece = |group| async move { (group, read(disk, group).await) };
    let reads: Vec<_> = pieces(&blocks).into_iter().map(piece).collect();
    let mut reads = stream::iter(reads).buffered(READS);
    while let Some((group, read)) = reads.next().await {
        match read {
            Ok(bytes) => audited.bytes += bytes.len() as u64,
            Err(error @ (DiskError::Corrupt { .. } | DiskError::Io { .. })) => {
                audited.wrong.extend(group.first().map(|first| finding(first, &error)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(audited)
}

/// Blocks that are read together; those that are zeroes lie nowhere.
fn pieces(blocks: &[Mapped]) -> Vec<&[Mapped]> {
    let (mut pieces, mut rest) = (Vec::new(), blocks);
    while !rest.is_empty() {
        let (group, behind) = rest.split_at(piece(rest));
        pieces.extend(group.first().filter(|first| !first.row.is_zeroes()).map(|_| group));
        rest = behind;
    }
    pieces
}

fn finding(first: &Mapped, error: &DiskError) -> String {
    let Mapped { place, volume, .. } = first;
    let (slice, chunk, block) = (place.slice.0, place.chunk.0, place.block);
    let volume = hex::encode(volume.0);
    format!("volume {volume}, slice {slice}, chunk {chunk}, block {block}: {error}")
}
