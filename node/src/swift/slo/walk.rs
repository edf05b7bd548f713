//! What a static large object consists of, found out while it is sent.
//!
//! Invariant: a manifest is opened when its turn comes, and only where the range has bytes of it: what lies outside may be gone.
//! Invariant: memory is a manifest for each level and those opened last, whatever number of bytes they stand for; the limits are
//! [`super::super::object::pieces`]'s.
//! Invariant: nothing of a container that the caller may not read is sent.

use std::sync::Arc;

use quarry_engine::object::ObjectPath;

use super::super::authorize::{Subject, Verb, authorize};
use super::super::error::{Result, SwiftError};
use super::super::object::expiry;
use super::super::object::pieces::{Piece, Segment};
use super::super::{Api, Call};
use super::ETAG;
use super::get::load;
use super::manifest::Stored;

/// On whose behalf manifests are opened, and in which account.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) api: Arc<Api>,
    pub(crate) call: Call,
    pub(crate) account: Arc<str>,
}

/// A static large object, or one that another has as a segment.
#[derive(Debug)]
pub(crate) struct Manifest {
    reader: Arc<Reader>,
    source: Source,
    /// 1 of what was asked for.
    depth: usize,
}

#[derive(Debug)]
enum Source {
    /// It was read.
    Read(Arc<Vec<Piece>>),
    /// It is to be read here, if it has this ETag still.
    At { path: ObjectPath, etag: String },
}

impl Manifest {
    /// Of what was asked for.
    pub(crate) fn of(reader: Reader, segments: Vec<Stored>) -> Result<Self> {
        let reader = Arc::new(reader);
        let pieces = Arc::new(pieces_of(&reader, segments, 1)?);
        Ok(Self { reader, source: Source::Read(pieces), depth: 1 })
    }

    /// Whether it is the same, so that what was read of the other need not be read again.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (&self.source, &other.source) {
            (Source::At { path, etag }, Source::At { path: other_path, etag: other_etag }) => {
                // What lies in it is as deep as it is.
                path == other_path && etag == other_etag && self.depth == other.depth
            }
            _ => false,
        }
    }

    /// Its segments: of nested ones their manifests.
    pub(crate) async fn pieces(&self) -> Result<Arc<Vec<Piece>>> {
        let Reader { api, call, .. } = &*self.reader;
        let (path, etag) = match &self.source {
            Source::Read(pieces) => return Ok(Arc::clone(pieces)),
            Source::At { path, etag } => (path, etag),
        };
        let gone = || SwiftError::status(409);
        if self.depth > api.limits.slo_max_depth {
            return Err(gone());
        }
        let reader = api.store.open(path).await?.ok_or_else(gone)?;
        if reader.info.headers.get(ETAG) != Some(etag)
            || expiry::is_hidden(&reader.info, &call.headers, call.now, &api.options)
        {
            return Err(gone());
        }
        Ok(Arc::new(pieces_of(&self.reader, load(api, &reader).await?, self.depth)?))
    }

    /// Refuses what its caller may not read.
    pub(crate) async fn authorize(&self, path: &ObjectPath) -> Result<()> {
        let granted = authorize(&self.reader.api, &self.reader.call, Subject::object(path), Verb::Read).await;
        granted.map(drop).map_err(|_| SwiftError::status(409))
    }

    /// Where it is, if it is still to be read.
    pub(crate) fn path(&self) -> Option<&ObjectPath> {
        match &self.source {
            Source::Read(_) => None,
            Source::At { path, .. } => Some(path),
        }
    }

    /// Most pieces that may wait to be sent.
    pub(crate) fn max_pieces(&self) -> usize {
        self.reader.api.limits.max_pieces
    }
}

/// What a manifest says, what it has inline between two objects as one piece: of objects it has few, of those it may have very many.
fn pieces_of(reader: &Arc<Reader>, segments: Vec<Stored>, depth: usize) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut inline = Vec::new();
    for segment in segments {
        match piece_of(reader, segment, depth).ok_or_else(damaged)? {
            Piece::Literal(bytes) => inline.extend_from_slice(&bytes),
            piece => {
                pieces.extend(literal(&mut inline));
                pieces.push(piece);
            }
        }
    }
    pieces.extend(literal(&mut inline));
    Ok(pieces)
}

fn literal(inline: &mut Vec<u8>) -> Option<Piece> {
    let bytes = std::mem::take(inline);
    (!bytes.is_empty()).then(|| Piece::Literal(bytes.into()))
}

fn piece_of(reader: &Arc<Reader>, segment: Stored, depth: usize) -> Option<Piece> {
    let object = match segment {
        Stored::Data { .. } => return segment.bytes().map(Piece::Literal),
        Stored::Object(object) => object,
    };
    let extent = object.extent()?;
    let (container, name) = object.path()?;
    let path =
        ObjectPath { account: Arc::clone(&reader.account), container: container.into(), object: name.into() };
    if object.sub_slo {
        let source = Source::At { path, etag: object.hash };
        let manifest = Manifest { reader: Arc::clone(reader), source, depth: depth + 1 };
        return Some(Piece::Nested(Arc::new(manifest), extent));
    }
    let expected = Some((object.bytes, object.hash));
    Some(Piece::Segment(Arc::new(Segment { path, expected }), extent))
}

fn damaged() -> SwiftError {
    SwiftError::message(500, "Unable to load SLO manifest")
}
