//! Bodies on their way out: every record verified, and checked to be the piece that was asked for.
//!
//! Invariant: a reader's version stays readable while the reader lives, overwritten, deleted or moved meanwhile.
//! Invariant: no byte leaves before the record it lies in was verified.
//! Invariant: a chunk is an error only when no replica that has the same body gives it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use quarry_ring::PathHash;

use super::fragments::{fragment_len, stripe_len};
use super::in_flight::InFlight;
use super::replica::{Opened, Replica};
use super::sources::Sources;
use super::{CHUNK, Error, ObjectInfo, READ_AHEAD, Result};
use crate::catalog::ObjectMeta;
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
    meta: Arc<ObjectMeta>,
    inline: Bytes,
    chunks: Sources,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("path", &self.meta.path).finish_non_exhaustive()
    }
}

impl ObjectReader {
    /// Over one replica alone.
    pub(crate) fn new(meta: ObjectMeta, opened: Opened, hash: PathHash, replica: Arc<dyn Replica>) -> Self {
        let meta = Arc::new(meta);
        let inline = inline(&meta, &opened);
        Self::over(meta.clone(), inline, Sources::one(meta, opened, hash, replica))
    }

    pub(crate) fn over(meta: Arc<ObjectMeta>, inline: Bytes, chunks: Sources) -> Self {
        Self { info: meta.info.clone(), source: Arc::new(Source { meta, inline, chunks }) }
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
    reads: InFlight<Result<Bytes>>,
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
            let read = self.source.chunks.read(number);
            self.reads.push(read).await;
            self.asked = ((number + 1) * size).min(self.end);
        }
        let number = self.given / size;
        let short =
            || Error::Corrupt { what: format!("end of chunk {number} of {:?}", self.source.meta.path) };
        let data = self.reads.next().await.ok_or_else(short)??;
        let within = |n: u64| usize::try_from(n - number * size).unwrap_or(usize::MAX);
        let end = self.end.min((number + 1) * size);
        Ok(data.slice(within(self.given)..within(end)))
    }
}

/// The body, when it lies in the record.
fn inline(meta: &ObjectMeta, opened: &Opened) -> Bytes {
    if meta.chunked.is_none() { opened.record.data() } else { Bytes::new() }
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
        && view.meta.starts_with(hash);
    if !ours {
        return Err(corrupt("identity"));
    }
    let stripe = stripe_len(meta, number);
    let expected = meta.fragment.map_or(stripe, |fragment| fragment_len(fragment.code, stripe));
    if view.data_len as u64 != expected {
        return Err(corrupt("size"));
    }
    Ok(record.data())
}
