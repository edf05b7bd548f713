//! What changed between two snapshots: a mark for each write that was the first of its blocks in its era.
//!
//! ```text
//! Blocks   "m" | volume 16 B | era u32 BE | slice u32 BE | chunk u16 BE | first u8 | last u8   -> u8 version
//!          "x" | volume 16 B | era u32 BE        what only this snapshot saw is gone          -> u8 version
//! ```
//!
//! Invariant: every row of an era above 0 lies in a mark of that era; era 0 has nothing before it, and no marks. Further marks do no
//! harm.
//! Invariant: a row goes only when no view sees it. The newest row of a block is seen by the volume itself, and stays: it may be what
//! keeps older records, still in the log, from coming back when an index is made anew.
//! Invariant: views only become fewer, but for new ones that see what the volume sees; so what was found to be unseen stays so.

use std::cmp::Reverse;

use super::map;
use super::place::{ChunkId, Run, SliceId, VolumeId};
use super::row::{BlockPlace, Row, parse_block_key, run_range};
use crate::catalog::{BadValue, damaged};
use crate::disk::DiskError;
use crate::disk::DiskHandle;
use crate::disk::catalog::Tx;
use crate::disk::format::bytes::Reader;
use crate::index::{Index, IndexError, Range, Table, after_prefix};

const VERSION: u8 = 1;

/// A write that was the first of its era to some of its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// When.
    pub era: u32,
    /// Where.
    pub run: Run,
    key: Box<[u8]>,
}

fn prefix(volume: VolumeId) -> Vec<u8> {
    [&b"m"[..], &volume.0].concat()
}

/// The key of a run's mark.
pub(super) fn key(volume: VolumeId, era: u32, run: &Run) -> Vec<u8> {
    let mut key = prefix(volume);
    key.extend_from_slice(&era.to_be_bytes());
    key.extend_from_slice(&run.slice.0.to_be_bytes());
    key.extend_from_slice(&run.chunk.0.to_be_bytes());
    key.extend_from_slice(&[run.first, run.last()]);
    key
}

/// Marks a run that holds blocks which its era had not written before.
pub(super) fn put(tx: &mut Tx<'_>, volume: VolumeId, era: u32, run: &Run) {
    if era > 0 {
        tx.put(Table::Blocks, key(volume, era, run), [VERSION]);
    }
}

fn parse(key: Box<[u8]>) -> Result<Mark, BadValue> {
    let mut r = Reader::new(&key);
    let _prefix_and_volume = r.take(17)?;
    let era = u32::from_be_bytes(r.array()?);
    let slice = SliceId(u32::from_be_bytes(r.array()?));
    let chunk = ChunkId(u16::from_be_bytes(r.array()?));
    let [first, last] = r.array()?;
    let blocks = last.checked_sub(first).ok_or(BadValue::Field("run of a mark"))?;
    let run = Run { slice, chunk, first, blocks: u16::from(blocks) + 1 };
    Ok(Mark { era, run, key })
}

/// Marks of the eras above `after` and up to `upto`, in the order of era and place; behind `last`, at most so many.
pub fn marks(
    disk: &DiskHandle,
    volume: VolumeId,
    after: Option<u32>,
    upto: u32,
    last: Option<&Mark>,
    most: usize,
) -> Result<Vec<Mark>, DiskError> {
    let of = |era: u32| [prefix(volume), era.to_be_bytes().to_vec()].concat();
    let begin = after.map_or_else(|| Some(prefix(volume)), |era| era.checked_add(1).map(of));
    let Some(begin) = begin else { return Ok(Vec::new()) };
    let from = last.map_or(begin, |mark| [&mark.key[..], &[0]].concat());
    let range = Range { from: Some(from), to: after_prefix(&of(upto)), reverse: false };
    let found = disk.index().scan(Table::Blocks, range).take(most);
    let found = found.map(|pair| parse(pair?.0).map_err(damaged));
    Ok(found.collect::<Result<_, IndexError>>()?)
}

/// What eras have of the blocks of a run that no view sees. `views`: the last eras of the snapshots, and the present one as it is known,
/// ascending. What was written after the last of them is not judged: there may be snapshots that whoever asks has not heard of.
fn unseen(
    index: &dyn Index,
    volume: VolumeId,
    run: &Run,
    views: &[u32],
) -> Result<Vec<(BlockPlace, u32)>, IndexError> {
    let mut blocks = Vec::new();
    for pair in index.scan(Table::Blocks, run_range(volume, run)) {
        let (key, value) = pair?;
        let (place, era) = parse_block_key(&key).map_err(damaged)?;
        let row = Row::decode(&key, &value).map_err(damaged)?;
        let within = row.blocks(place).filter(|(place, _)| (run.first..=run.last()).contains(&place.block));
        blocks.extend(within.map(|(place, _)| (place, era)));
    }
    // Newest first, as rows of blocks are; those of spans come before.
    blocks.sort_unstable_by_key(|(place, era)| (*place, Reverse(*era)));
    let hidden = blocks.windows(2).filter_map(|pair| {
        let [(before, hidden_from), (place, era)] = pair else { return None };
        let first = views.partition_point(|view| view < era);
        let unseen = views.get(first).is_some_and(|view| view >= hidden_from);
        (before == place && unseen).then_some((*place, *era))
    });
    Ok(hidden.collect())
}

/// Drops, of the marked runs, what no view sees, and the space that it kept; with `marks_too` the marks as well, for
/// which there must be no older view left. How many blocks it was.
pub async fn thin(
    disk: &DiskHandle,
    volume: VolumeId,
    marks: &[Mark],
    views: &[u32],
    marks_too: bool,
) -> Result<usize, DiskError> {
    let mut blocks = Vec::new();
    for mark in marks {
        blocks.extend(unseen(disk.index(), volume, &mark.run, views)?);
    }
    // Marks may overlap.
    blocks.sort_unstable();
    blocks.dedup();
    let count = blocks.len();
    let done: Vec<Box<[u8]>> =
        if marks_too { marks.iter().map(|mark| mark.key.clone()).collect() } else { Vec::new() };
    if count + done.len() > 0 {
        let change = move |tx: &mut Tx<'_>| {
            map::drop_blocks(tx, volume, &blocks)?;
            done.into_iter().for_each(|key| tx.delete(Table::Blocks, key));
            Ok(())
        };
        disk.submit_prune(Box::new(change)).await?;
    }
    Ok(count)
}

fn thinned_key(volume: VolumeId, era: u32) -> Vec<u8> {
    [&b"x"[..], &volume.0, &era.to_be_bytes()].concat()
}

/// Whether what only a deleted snapshot saw is known to be gone. An index that was made anew knows nothing of it.
pub fn is_thinned(disk: &DiskHandle, volume: VolumeId, era: u32) -> Result<bool, DiskError> {
    Ok(disk.index().get(Table::Blocks, &thinned_key(volume, era))?.is_some())
}

/// What only a deleted snapshot saw is gone.
pub async fn set_thinned(disk: &DiskHandle, volume: VolumeId, era: u32) -> Result<(), DiskError> {
    let key = thinned_key(volume, era);
    let change = move |tx: &mut Tx<'_>| {
        tx.put(Table::Blocks, key, [VERSION]);
        Ok(())
    };
    disk.submit_prune(Box::new(change)).await
}

/// Keys of marks and of what was thinned that a volume still has, at most so many.
pub(super) fn some_keys(
    index: &dyn Index,
    volume: VolumeId,
    most: usize,
) -> Result<Vec<Box<[u8]>>, IndexError> {
    let all = |tag: &[u8]| index.scan(Table::Blocks, Range::prefix(&[tag, &volume.0].concat()));
    all(b"m").chain(all(b"x")).take(most).map(|pair| pair.map(|(key, _)| key)).collect()
}
