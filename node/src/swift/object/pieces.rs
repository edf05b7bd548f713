//! Bodies put together from pieces: literal bytes, ranges of an open object, ranges of other objects.
//!
//! Invariant: memory is one piece of at most 1 MiB and the plan, whatever the length.
//! Invariant: bytes of a segment are sent only when it is the one the plan was made for.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use quarry_engine::object::{Error, ObjectPath, ObjectReader, RangeReader, Store};

use super::super::body::{BoxError, ResponseBody};
use super::super::error::SwiftError;

/// One piece of a body.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    /// These bytes.
    Literal(Bytes),
    /// A range of an object that is open already.
    Open(Arc<ObjectReader>, Range<u64>),
    /// A range of an object that will be opened when its turn comes.
    Segment(Arc<Segment>, Range<u64>),
}

/// An object that a body takes bytes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) path: ObjectPath,
    /// Its size and MD5 in hex when the manifest was made: it must still be that object.
    pub(crate) expected: Option<(u64, String)>,
}

impl Piece {
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Literal(bytes) => bytes.len() as u64,
            Self::Open(_, range) | Self::Segment(_, range) => range.end - range.start,
        }
    }

    /// The part of this piece that `range`, counted from its beginning, selects.
    pub(crate) fn slice(&self, range: Range<u64>) -> Self {
        let inner = |of: &Range<u64>| of.start + range.start..of.start + range.end;
        match self {
            Self::Literal(bytes) => {
                let to = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                Self::Literal(bytes.slice(to(range.start)..to(range.end)))
            }
            Self::Open(reader, of) => Self::Open(Arc::clone(reader), inner(of)),
            Self::Segment(segment, of) => Self::Segment(Arc::clone(segment), inner(of)),
        }
    }
}

/// The pieces that make up `range` of the concatenation of `all`.
pub(crate) fn slice(all: &[Piece], range: &Range<u64>) -> Vec<Piece> {
    let mut selected = Vec::new();
    let mut at = 0;
    for piece in all {
        let (begin, end) = (at, at + piece.length());
        at = end;
        let (from, to) = (range.start.max(begin), range.end.min(end));
        if from < to {
            selected.push(piece.slice(from - begin..to - begin));
        }
        if end >= range.end {
            break;
        }
    }
    selected
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PieceError {
    /// The segment is gone, or another object stands in its place.
    #[error("segment {0} is missing or changed")]
    Segment(String),
    /// The object layer failed.
    #[error(transparent)]
    Store(#[from] Error),
}

impl From<PieceError> for SwiftError {
    fn from(error: PieceError) -> Self {
        match error {
            PieceError::Segment(what) => {
                tracing::info!(segment = %what, "large object has a missing or changed segment");
                Self::status(409)
            }
            PieceError::Store(error) => error.into(),
        }
    }
}

struct Assembly {
    store: Store,
    queue: VecDeque<Piece>,
    current: Option<RangeReader>,
    /// The segment opened last: neighbouring pieces are often of one object.
    opened: Option<(Arc<Segment>, Arc<ObjectReader>)>,
}

impl Assembly {
    async fn next(&mut self) -> Option<Result<Bytes, PieceError>> {
        let item = self.advance().await;
        if matches!(item, Some(Err(_))) {
            self.queue.clear();
            self.current = None;
        }
        item
    }

    async fn advance(&mut self) -> Option<Result<Bytes, PieceError>> {
        loop {
            if let Some(reader) = &mut self.current {
                match reader.next().await {
                    Some(bytes) => return Some(bytes.map_err(PieceError::from)),
                    None => self.current = None,
                }
            }
            match self.queue.pop_front()? {
                Piece::Literal(bytes) if bytes.is_empty() => {}
                Piece::Literal(bytes) => return Some(Ok(bytes)),
                Piece::Open(reader, range) => self.current = Some(reader.range(range)),
                Piece::Segment(segment, range) => match self.open(&segment).await {
                    Ok(reader) if range.end <= reader.info.size => self.current = Some(reader.range(range)),
                    Ok(_) => return Some(Err(changed(&segment))),
                    Err(error) => return Some(Err(error)),
                },
            }
        }
    }

    async fn open(&mut self, segment: &Arc<Segment>) -> Result<Arc<ObjectReader>, PieceError> {
        if let Some((known, reader)) = &self.opened
            && known == segment
        {
            return Ok(Arc::clone(reader));
        }
        let reader = self.store.open(&segment.path).await?.ok_or_else(|| changed(segment))?;
        let info = &reader.info;
        if let Some((size, etag)) = &segment.expected
            && (info.size != *size || hex::encode(info.md5) != *etag)
        {
            return Err(changed(segment));
        }
        if info.delete_at.is_some_and(|at| at <= super::super::timestamp::now()) {
            return Err(changed(segment));
        }
        let reader = Arc::new(reader);
        self.opened = Some((Arc::clone(segment), Arc::clone(&reader)));
        Ok(reader)
    }
}

fn changed(segment: &Segment) -> PieceError {
    PieceError::Segment(format!("{}/{}", segment.path.container, segment.path.object))
}

/// Start sending: the first bytes are read before the answer begins, so that a failure there still has a status.
pub(crate) async fn body(store: &Store, pieces: Vec<Piece>, length: u64) -> Result<ResponseBody, SwiftError> {
    let mut assembly = Assembly { store: store.clone(), queue: pieces.into(), current: None, opened: None };
    let first = match assembly.next().await {
        None => Bytes::new(),
        Some(first) => first?,
    };
    if first.len() as u64 == length {
        return Ok(ResponseBody::Full(first));
    }
    let rest = stream::unfold(assembly, |mut assembly| async move {
        let item = assembly.next().await?;
        let item = item.map_err(|error| {
            tracing::warn!(%error, "answer broken off");
            BoxError::from(error)
        });
        Some((item, assembly))
    });
    let stream = stream::once(std::future::ready(Ok(first))).chain(rest);
    Ok(ResponseBody::Stream { stream: Box::pin(stream), left: Some(length) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(pieces: &[Piece]) -> String {
        pieces
            .iter()
            .map(|piece| match piece {
                Piece::Literal(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                Piece::Segment(segment, range) => format!("<{} {range:?}>", segment.path.object),
                Piece::Open(..) => "?".to_owned(),
            })
            .collect()
    }

    #[test]
    fn a_slice_of_pieces_cuts_the_first_and_the_last() {
        let path = ObjectPath { account: "a".into(), container: "c".into(), object: "o".into() };
        let segment = Arc::new(Segment { path, expected: None });
        let all = [
            Piece::Literal(Bytes::from_static(b"abc")),
            Piece::Segment(segment, 10..20),
            Piece::Literal(Bytes::from_static(b"xyz")),
        ];
        assert_eq!(text(&slice(&all, &(0..16))), "abc<o 10..20>xyz");
        assert_eq!(text(&slice(&all, &(1..14))), "bc<o 10..20>x");
        assert_eq!(text(&slice(&all, &(5..7))), "<o 12..14>");
        assert_eq!(text(&slice(&all, &(13..15))), "xy");
        assert_eq!(text(&slice(&all, &(3..3))), "");
    }
}
