//! Pieces of blocks that lie near one another on the device are read together, by one request.
//!
//! Invariant: a request lies in one segment, reads at most [`MOST_BYTES`], and nowhere more than [`GAP_BYTES`] at a stretch that
//! nobody asked for.
//! Invariant: every block is verified by itself; what lies between them is not looked at, and need not be readable.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::place::BLOCK_LENGTH;
use super::store::{Mapped, check, verify};
use crate::disk::limits::MAX_RECORD;
use crate::disk::{DiskError, DiskHandle, Location};
use crate::io::{BLOCK, RECORD_BUFFER};

/// What is read beside rather than left out: a request more costs a device about as much as so many bytes.
const GAP_BYTES: u64 = 32 << 10;
/// Most bytes of a request: what one buffer holds, wherever in its first block it begins.
const MOST_BYTES: u64 = (RECORD_BUFFER - 2 * BLOCK) as u64;
/// Requests that are under way together.
const READS: usize = 32;

const _: () = assert!(MOST_BYTES >= MAX_RECORD as u64);

/// Pieces that one request reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Near {
    segment: u32,
    from: u64,
    to: u64,
    /// Numbers of the pieces, with the place of each in the segment.
    pieces: Vec<(usize, u64)>,
}

impl Near {
    fn length(&self) -> usize {
        usize::try_from(self.to - self.from).unwrap_or(0)
    }
}

/// Where a piece begins and ends in its segment; `None`: zeroes, which lie nowhere.
fn extent_of(piece: &[Mapped]) -> Option<(u32, u64, u64)> {
    let first = piece.first().filter(|first| !first.row.is_zeroes())?;
    let from = u64::from(first.row.at.offset) + u64::from(first.row.data);
    Some((first.row.at.segment, from, from + (piece.len() * BLOCK_LENGTH) as u64))
}

/// Which pieces are read together. Zeroes are left out.
pub(super) fn gather(pieces: &[&[Mapped]]) -> Vec<Near> {
    let places = pieces.iter().enumerate().filter_map(|(nth, piece)| Some((extent_of(piece)?, nth)));
    let mut places: Vec<_> = places.collect();
    places.sort_unstable();
    let mut all: Vec<Near> = Vec::new();
    for ((segment, from, to), nth) in places {
        match all.last_mut() {
            Some(near)
                if near.segment == segment
                    && from <= near.to + GAP_BYTES
                    && to.max(near.to) - near.from <= MOST_BYTES =>
            {
                near.to = near.to.max(to);
                near.pieces.push((nth, from));
            }
            _ => all.push(Near { segment, from, to, pieces: vec![(nth, from)] }),
        }
    }
    all
}

/// The bytes of pieces of written blocks, in their order; none of zeroes.
pub(super) async fn read_gathered(
    disk: &DiskHandle,
    pieces: &[&[Mapped]],
    near: Vec<Near>,
) -> Result<Vec<Bytes>, DiskError> {
    for piece in pieces {
        check(disk, piece)?;
    }
    let done: Vec<Vec<(usize, Bytes)>> = match <[Near; 1]>::try_from(near) {
        // As a rule.
        Ok([only]) => vec![read_one(disk, pieces, only).await?],
        Err(near) => {
            let reads: Vec<_> = near.into_iter().map(|near| read_one(disk, pieces, near)).collect();
            stream::iter(reads).buffer_unordered(READS).try_collect().await?
        }
    };
    let mut out = vec![Bytes::new(); pieces.len()];
    for (nth, bytes) in done.into_iter().flatten() {
        if let Some(place) = out.get_mut(nth) {
            *place = bytes;
        }
    }
    Ok(out)
}

async fn read_one(
    disk: &DiskHandle,
    pieces: &[&[Mapped]],
    near: Near,
) -> Result<Vec<(usize, Bytes)>, DiskError> {
    let raw = read_place(disk, near.segment, near.from, near.length()).await;
    let raw = match raw {
        // A bad place between them is no reason to fail.
        Err(DiskError::Io { .. }) if near.pieces.len() > 1 => None,
        other => Some(other?),
    };
    let wanted: usize = near.pieces.iter().map(|(nth, _)| length_of(pieces, *nth)).sum();
    // Whoever keeps a few blocks shall not keep much more than them.
    let apart = wanted * 2 < near.length();
    let mut out = Vec::with_capacity(near.pieces.len());
    for (nth, from) in &near.pieces {
        let length = length_of(pieces, *nth);
        let skip = usize::try_from(from - near.from).unwrap_or(usize::MAX);
        let bytes = match &raw {
            Some(raw) => raw.slice(skip..skip + length),
            None => read_place(disk, near.segment, *from, length).await?,
        };
        if let Some(piece) = pieces.get(*nth) {
            verify(disk, piece, &bytes)?;
        }
        out.push((*nth, if apart { Bytes::copy_from_slice(&bytes) } else { bytes }));
    }
    Ok(out)
}

fn length_of(pieces: &[&[Mapped]], nth: usize) -> usize {
    pieces.get(nth).map_or(0, |piece| piece.len() * BLOCK_LENGTH)
}

async fn read_place(disk: &DiskHandle, segment: u32, from: u64, length: usize) -> Result<Bytes, DiskError> {
    let offset = u32::try_from(from).unwrap_or(u32::MAX);
    let at = Location { segment, offset, len: u32::try_from(length).unwrap_or(u32::MAX) };
    disk.read_within(at, 0, length).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockPlace, BlockRow, ChunkId, Position, SliceId, VolumeId};

    fn block(segment: u32, offset: u32, data: u32) -> Mapped {
        let place = BlockPlace { slice: SliceId(0), chunk: ChunkId(0), block: 0 };
        let at = Location { segment, offset, len: 4400 };
        let row = BlockRow { position: Position::default(), at, data, checksum: 0 };
        Mapped { place, volume: VolumeId([1; 16]), era: 0, row }
    }

    fn gathered(blocks: &[Mapped]) -> Vec<Vec<usize>> {
        let pieces: Vec<&[Mapped]> = blocks.iter().map(std::slice::from_ref).collect();
        let near = gather(&pieces);
        near.into_iter().map(|near| near.pieces.into_iter().map(|(nth, _)| nth).collect()).collect()
    }

    #[test]
    fn what_lies_behind_one_another_is_one_request_whatever_its_order() {
        let blocks: Vec<Mapped> = [8800, 0, 4400].map(|offset| block(3, offset, 200)).into();
        assert_eq!(gathered(&blocks), [[1, 2, 0]]);
    }

    #[test]
    fn far_places_other_segments_and_zeroes_are_apart() {
        let far = u32::try_from(GAP_BYTES).unwrap() + 4096 + 1;
        let blocks = [block(3, 0, 200), block(3, far, 200), block(4, far + 4400, 200), block(4, 0, 0)];
        assert_eq!(gathered(&blocks), [[0], [1], [2]]);
        assert_eq!(gathered(&[block(3, 0, 200), block(3, far - 1, 200)]), [[0, 1]]);
    }

    #[test]
    fn a_request_has_an_end() {
        let blocks: Vec<Mapped> = (0..600).map(|nth| block(1, nth * 4400, 200)).collect();
        let pieces: Vec<&[Mapped]> = blocks.iter().map(std::slice::from_ref).collect();
        let near = gather(&pieces);
        assert_eq!(near.len(), 3);
        assert!(near.iter().all(|near| near.to - near.from <= MOST_BYTES));
    }
}
