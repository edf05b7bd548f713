//! Bodies on their way out: every record verified, and checked to be the piece that was asked for.
//!
//! Invariant: a reader's version stays readable while the reader lives, overwritten, deleted or moved meanwhile.
//! Invariant: no byte leaves before the record it lies in was verified.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use quarry_ring::PathHash;

use super::in_flight::InFlight;
use super::replica::{BoxFuture, Opened, Replica};
use super::{CHUNK, Error, ObjectInfo, READ_AHEAD, Result};
use crate::catalog::ObjectMeta;
use crate::disk::Location;
use crate::disk::format::record::{Kind, StoredRecord};

/// An open object version: its facts, and its bytes on demand. What it reads stays readable while it lives,
/// also when the object is overwritten or deleted meanwhile.
#[derive(Debug)]
pub struct ObjectReader {
    /// Facts of the version.
    pub info: ObjectInfo,
    source: Arc<Source>,
}

struct Source {
    meta: ObjectMeta,
    inline: Bytes,
    chunks: Arc<[Location]>,
    hash: PathHash,
    replica: Arc<dyn Replica>,
    _hold: Arc<dyn std::any::Any + Send + Sync>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("path", &self.meta.path).finish_non_exhaustive()
    }
}

impl ObjectReader {
    pub(crate) fn new(meta: ObjectMeta, opened: Opened, hash: PathHash, replica: Arc<dyn Replica>) -> Self {
        let info = meta.info.clone();
        let inline = if meta.chunked.is_none() { opened.record.data() } else { Bytes::new() };
        let source = Source { meta, inline, chunks: opened.chunks, hash, replica, _hold: opened.hold };
        Self { info, source: Arc::new(source) }
    }

    /// The bytes of `range`, in pieces of at most 1 MiB, as the consumer asks for them: call [`RangeReader::next`] until `None`.
    /// Panics when the range lies outside `0..info.size`.
    #[must_use]
    pub fn range(&self, range: Range<u64>) -> RangeReader {
        assert!(range.start <= range.end && range.end <= self.info.size, "range outside the object");
        let source = self.source.clone();
        RangeReader {
            source,
            asked: range.start,
            given: range.start,
            end: range.end,
            reads: InFlight::default(),
        }
    }
}

/// Bytes of a range, piece by piece; owns what it needs (`'static`, `Send`).
pub struct RangeReader {
    source: Arc<Source>,
    /// Up to here chunks were asked for.
    asked: u64,
    /// Up to here bytes were given out.
    given: u64,
    end: u64,
    reads: InFlight<Result<StoredRecord>>,
}

impl std::fmt::Debug for RangeReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let left = self.given..self.end;
        f.debug_struct("RangeReader")
            .field("source", &self.source)
            .field("left", &left)
            .finish_non_exhaustive()
    }
}

impl RangeReader {
    /// The next piece, `None` after the last. Verified: a piece that fails is an error and ends the stream.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        if self.given == self.end {
            return None;
        }
        let piece = match self.source.meta.chunked {
            None => Ok(self.inline_piece()),
            Some(_) => self.chunk_piece().await,
        };
        match &piece {
            Ok(bytes) => self.given += bytes.len() as u64,
            Err(_) => {
                self.given = self.end;
                self.reads.clear();
            }
        }
        Some(piece)
    }

    fn inline_piece(&self) -> Bytes {
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        self.source.inline.slice(at(self.given)..at(self.end.min(self.given + CHUNK as u64)))
    }

    async fn chunk_piece(&mut self) -> Result<Bytes> {
        let size = u64::from(self.source.meta.chunk_size);
        while self.asked < self.end && self.reads.len() <= READ_AHEAD {
            let number = self.asked / size;
            let read = self.source.read(number)?;
            self.reads.push(read).await;
            self.asked = ((number + 1) * size).min(self.end);
        }
        let number = self.given / size;
        let short = || self.source.corrupt("end", number);
        let record = self.reads.next().await.ok_or_else(short)??;
        let data = check_chunk(&self.source.meta, &self.source.hash, number, &record)?;
        let within = |n: u64| usize::try_from(n - number * size).unwrap_or(usize::MAX);
        let end = self.end.min((number + 1) * size);
        Ok(data.slice(within(self.given)..within(end)))
    }
}

impl Source {
    fn corrupt(&self, what: &str, number: u64) -> Error {
        Error::Corrupt { what: format!("{what} of chunk {number} of {:?}", self.meta.path) }
    }

    fn read(&self, number: u64) -> Result<BoxFuture<'static, Result<StoredRecord>>> {
        let place = usize::try_from(number).ok().and_then(|n| self.chunks.get(n));
        let at = place.ok_or_else(|| self.corrupt("place", number))?;
        Ok(self.replica.read(*at))
    }
}

/// The data of a chunk, if the record is the chunk that was asked for, whole.
pub(crate) fn check_chunk(
    meta: &ObjectMeta,
    hash: &[u8],
    number: u64,
    record: &StoredRecord,
) -> Result<Bytes> {
    let view = record.view();
    let corrupt =
        |what: &str| Error::Corrupt { what: format!("{what} of chunk {number} of {:?}", meta.path) };
    let ours = view.kind == Kind::Chunk
        && meta.chunked.is_some_and(|chunked| view.key == chunked.data_id)
        && u64::from(view.number) == number
        && view.meta == hash;
    if !ours {
        return Err(corrupt("identity"));
    }
    let size = u64::from(meta.chunk_size);
    let expected = meta.info.size.saturating_sub(number * size).min(size);
    if view.data_len as u64 != expected {
        return Err(corrupt("size"));
    }
    Ok(record.data())
}
