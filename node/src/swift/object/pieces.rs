//! Bodies put together from pieces: literal bytes, ranges of an open object, ranges of other objects.
//!
//! Invariant: memory is one piece of at most 1 MiB and the plan, whatever the length; the plan has at most [`MAX_INLINE`] bytes of
//! nested manifests' own, and as many pieces as the limits say; [`MAX_LISTED`] manifests are remembered beside it.
//! Invariant: bytes of a segment are sent only when it is the one the plan was made for.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use quarry_engine::object::{Error, ObjectPath, ObjectReader, RangeReader, Store};

use super::super::body::{BoxError, ResponseBody};
use super::super::error::SwiftError;
use super::super::slo::walk::Manifest;

/// Most bytes that manifests themselves have which may wait to be sent: those of more than two of the largest ones.
const MAX_INLINE: u64 = 16 << 20;
/// Most manifests that are remembered, with no more bytes of their own: twice as many as lie in one another.
const MAX_LISTED: usize = 20;

/// One piece of a body.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    /// These bytes.
    Literal(Bytes),
    /// A range of an object that is open already.
    Open(Arc<ObjectReader>, Range<u64>),
    /// A range of an object that will be opened when its turn comes.
    Segment(Arc<Segment>, Range<u64>),
    /// A range of a static large object, whose manifest will be opened when its turn comes.
    Nested(Arc<Manifest>, Range<u64>),
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
            Self::Open(_, range) | Self::Segment(_, range) | Self::Nested(_, range) => {
                range.end - range.start
            }
        }
    }

    /// The part of this piece that `range`, counted from its beginning, selects.
    pub(crate) fn slice(&self, range: Range<u64>) -> Self {
        let inner = |of: &Range<u64>| of.start + range.start..of.start + range.end;
        match self {
            Self::Literal(bytes) => {
                let to = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                let cut = to(range.start)..to(range.end);
                // What is cut out is copied: it would keep all of it.
                let whole = cut == (0..bytes.len());
                Self::Literal(if whole { bytes.clone() } else { Bytes::copy_from_slice(&bytes[cut]) })
            }
            Self::Open(reader, of) => Self::Open(Arc::clone(reader), inner(of)),
            Self::Segment(segment, of) => Self::Segment(Arc::clone(segment), inner(of)),
            Self::Nested(manifest, of) => Self::Nested(Arc::clone(manifest), inner(of)),
        }
    }

    /// The object that it will be taken from.
    fn path(&self) -> Option<&ObjectPath> {
        match self {
            Self::Literal(_) | Self::Open(..) => None,
            Self::Segment(segment, _) => Some(&segment.path),
            Self::Nested(manifest, _) => manifest.path(),
        }
    }

    fn inline(&self) -> u64 {
        match self {
            Self::Literal(bytes) => bytes.len() as u64,
            _ => 0,
        }
    }
}

/// The pieces that make up `range` of the concatenation of `all`.
pub(crate) fn slice(all: &[Piece], range: &Range<u64>) -> Vec<Piece> {
    let mut selected = Vec::new();
    let mut at: u64 = 0;
    for piece in all {
        // Manifests of earlier versions may stand for more bytes than there can be.
        let (begin, end) = (at, at.saturating_add(piece.length()));
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
    /// The manifest of a nested large object is gone, damaged or not the caller's, or too much of it would wait.
    #[error("nested manifest: {}", .0.status_line())]
    Manifest(SwiftError),
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
            PieceError::Manifest(error) => error,
            PieceError::Store(error) => error.into(),
        }
    }
}

/// A manifest that was opened.
struct Listed {
    manifest: Arc<Manifest>,
    pieces: Arc<Vec<Piece>>,
    /// Bytes that it has itself.
    inline: u64,
}

struct Assembly {
    store: Store,
    /// Expired segments count as well.
    open_expired: bool,
    queue: VecDeque<Piece>,
    /// Bytes of literals that wait.
    inline: u64,
    /// Containers that the caller may read.
    allowed: BTreeSet<Arc<str>>,
    /// Manifests opened last, the newest first: an object often has the same one many times over.
    listed: VecDeque<Listed>,
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
            let piece = self.queue.pop_front()?;
            self.inline = self.inline.saturating_sub(piece.inline());
            match piece {
                Piece::Literal(bytes) if bytes.is_empty() => {}
                Piece::Literal(bytes) => return Some(Ok(bytes)),
                Piece::Open(reader, range) => self.current = Some(reader.range(range)),
                Piece::Segment(segment, range) => match self.open(&segment).await {
                    Ok(reader) if range.end <= reader.info.size => self.current = Some(reader.range(range)),
                    Ok(_) => return Some(Err(changed(&segment))),
                    Err(error) => return Some(Err(error)),
                },
                Piece::Nested(manifest, range) => {
                    if let Err(error) = self.expand(&manifest, &range).await {
                        return Some(Err(PieceError::Manifest(error)));
                    }
                }
            }
        }
    }

    /// What a manifest stands for.
    async fn pieces_of(&mut self, manifest: &Arc<Manifest>) -> Result<Arc<Vec<Piece>>, SwiftError> {
        let known = self.listed.iter().position(|listed| listed.manifest.is(manifest));
        let listed = match known.and_then(|at| self.listed.remove(at)) {
            Some(listed) => listed,
            None => {
                let pieces = manifest.pieces().await?;
                let inline = pieces.iter().map(Piece::inline).sum();
                Listed { manifest: Arc::clone(manifest), pieces, inline }
            }
        };
        let pieces = Arc::clone(&listed.pieces);
        self.listed.push_front(listed);
        self.listed.truncate(MAX_LISTED);
        while self.listed.len() > 1
            && self.listed.iter().map(|listed| listed.inline).sum::<u64>() > MAX_INLINE
        {
            self.listed.pop_back();
        }
        Ok(pieces)
    }

    /// Puts what this part of a manifest stands for in its place.
    async fn expand(&mut self, manifest: &Arc<Manifest>, range: &Range<u64>) -> Result<(), SwiftError> {
        let all = self.pieces_of(manifest).await?;
        let selected = slice(&all, range);
        for path in selected.iter().filter_map(Piece::path) {
            if !self.allowed.contains(&path.container) {
                manifest.authorize(path).await?;
                self.allowed.insert(Arc::clone(&path.container));
            }
        }
        self.inline += selected.iter().map(Piece::inline).sum::<u64>();
        if self.inline > MAX_INLINE || self.queue.len() + selected.len() > manifest.max_pieces() {
            return Err(SwiftError::status(409));
        }
        for piece in selected.into_iter().rev() {
            self.queue.push_front(piece);
        }
        Ok(())
    }

    /// Opens the manifests that what comes first lies in, so that what is wrong with them is known before the answer begins.
    async fn open_first(&mut self) -> Result<(), SwiftError> {
        while let Some(at) = self.queue.iter().position(|piece| !matches!(piece, Piece::Literal(_)))
            && let Some(Piece::Nested(manifest, range)) = self.queue.get(at)
        {
            let (manifest, range) = (Arc::clone(manifest), range.clone());
            let before: Vec<Piece> = self.queue.drain(..=at).take(at).collect();
            self.expand(&manifest, &range).await?;
            for piece in before.into_iter().rev() {
                self.queue.push_front(piece);
            }
        }
        Ok(())
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
        if !self.open_expired && info.delete_at.is_some_and(|at| at <= super::super::timestamp::now()) {
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

/// Start sending: the first bytes are read before the answer begins, so that a failure there still has a status. Segments that
/// expired count as gone, unless these are to be opened too.
pub(crate) async fn body(
    store: &Store,
    pieces: Vec<Piece>,
    length: u64,
    open_expired: bool,
) -> Result<ResponseBody, SwiftError> {
    let mut assembly = Assembly {
        store: store.clone(),
        open_expired,
        inline: pieces.iter().map(Piece::inline).sum(),
        queue: pieces.into(),
        allowed: BTreeSet::new(),
        listed: VecDeque::new(),
        current: None,
        opened: None,
    };
    assembly.open_first().await?;
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
                Piece::Open(..) | Piece::Nested(..) => "?".to_owned(),
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
