//! Bodies on their way in: one record when small, chunks and a commit when large.
//!
//! Invariant: a writer holds at most one chunk being filled and those that its [`Upload`] has on their way.
//! Invariant: a body is hashed once, in the order it came.
//! Invariant: nothing of a body is visible before its commit, and nothing is left of it when there is none.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quarry_ring::PathHash;

use super::condition::{Needs, needs};
use super::fragments::Fragment;
use super::hashing::Hashing;
use super::md5::Md5;
use super::names::Grant;
use super::objects::{listed, object_draft};
use super::policy::Code;
use super::replica::Draft;
use super::store::{Inner, key_of};
use super::upload::Upload;
use super::{CHUNK, Committed, Condition, Error, ObjectInfo, ObjectPath, PutSpec, Result};
use crate::catalog::{Chunked, DataId, ObjectMeta};
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::disk::format::record::Kind;
use crate::io::aligned_bytes;

/// Times that a version is committed again whose grant was lost.
const AGAIN: u32 = 3;

/// Streams one body into the store. Dropped before [`ObjectWriter::commit`], it leaves nothing behind.
pub struct ObjectWriter {
    inner: Arc<Inner>,
    path: ObjectPath,
    policy: u16,
    hash: PathHash,
    coded: Option<Coded>,
    body: Body,
    upload: Option<Upload>,
    chunks: u32,
}

impl std::fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectWriter")
            .field("path", &self.path)
            .field("size", &self.body.size)
            .finish_non_exhaustive()
    }
}

/// What is fixed before the first byte, where the policy keeps fragments.
#[derive(Debug, Clone, Copy)]
struct Coded {
    code: Code,
    /// Names the body, and with it the key.
    body: DataId,
    sequence: u64,
}

/// The bytes that wait for a full chunk, and the hashes of all that came.
struct Body {
    /// All that waits, when it came in one piece: no copy.
    whole: Bytes,
    /// All that waits, when it came in several.
    pieces: BytesMut,
    expected: usize,
    size: u64,
    /// None while bytes are being hashed, and for ever when that was not waited for.
    md5: Option<Md5>,
    blake3: blake3::Hasher,
}

impl Body {
    fn new(size_hint: Option<u64>) -> Self {
        let expected = size_hint.and_then(|n| usize::try_from(n).ok()).map_or(64 << 10, |n| n.min(CHUNK));
        let (whole, pieces) = (Bytes::new(), BytesMut::new());
        Self { whole, pieces, expected, size: 0, md5: Some(Md5::new()), blake3: blake3::Hasher::new() }
    }

    fn waiting(&self) -> usize {
        self.whole.len() + self.pieces.len()
    }

    /// Hashes bytes that come next.
    async fn hash(&mut self, hashing: &Hashing, part: &Bytes) -> Result<()> {
        let md5 = self.md5.take().ok_or_else(cut_off)?;
        self.md5 = hashing.update(md5, part.clone()).await;
        self.blake3.update(part);
        self.size += part.len() as u64;
        Ok(())
    }

    /// Adds bytes to the chunk being filled, in which they have room.
    fn fill(&mut self, part: Bytes) {
        if self.waiting() == 0 {
            self.whole = part;
            return;
        }
        let wanted = self.waiting() + part.len();
        if self.pieces.is_empty() || wanted > self.pieces.capacity() {
            // The disk takes the chunk from where it lies, if it lies there well.
            let unknown = wanted.next_power_of_two().min(CHUNK);
            let mut pieces = aligned_bytes(if wanted <= self.expected { self.expected } else { unknown });
            pieces.extend_from_slice(&std::mem::take(&mut self.whole));
            pieces.extend_from_slice(&self.pieces);
            self.pieces = pieces;
        }
        self.pieces.extend_from_slice(&part);
    }

    fn take(&mut self) -> Bytes {
        if self.pieces.is_empty() { std::mem::take(&mut self.whole) } else { self.pieces.split().freeze() }
    }
}

impl ObjectWriter {
    pub(crate) fn new(inner: Arc<Inner>, path: ObjectPath, policy: u16, size_hint: Option<u64>) -> Self {
        let coded = inner.policies().code(policy).map(|code| {
            let path_key = key_of(&path, policy, None);
            let (mut body, sequence) = name_body(&inner, &path_key);
            // Its last byte tells fragments apart.
            body[15] = 0;
            Coded { code, body, sequence }
        });
        let hash = key_of(&path, policy, coded.as_ref().map(|coded| &coded.body));
        let body = Body::new(size_hint);
        Self { inner, path, policy, hash, coded, body, upload: None, chunks: 0 }
    }

    /// Append bytes to the body; waits while the disks are behind (back-pressure), so memory stays bounded.
    pub async fn write(&mut self, mut data: Bytes) -> Result<()> {
        while !data.is_empty() {
            // A full chunk goes out only when more comes: a body of one chunk stays one record.
            if self.body.waiting() == CHUNK {
                self.send_chunk().await?;
            }
            let part = data.split_to(data.len().min(CHUNK - self.body.waiting()));
            self.body.hash(&self.inner.hashing, &part).await?;
            self.body.fill(part);
        }
        Ok(())
    }

    async fn send_chunk(&mut self) -> Result<()> {
        let first = self.upload.is_none();
        let upload = self.upload.get_or_insert_with(|| begin_upload(&self.inner, &self.hash, self.coded));
        let chunk = Draft {
            kind: Kind::Chunk,
            deleted: false,
            sequence: upload.sequence,
            number: self.chunks,
            key: upload.id.to_vec(),
            meta: self.hash.to_vec(),
            data: self.body.take(),
        };
        let too_many = || Error::Refused("body has too many chunks".to_owned());
        self.chunks = self.chunks.checked_add(1).ok_or_else(too_many)?;
        if first { upload.open(&self.hash, chunk).await } else { upload.send(chunk).await }
    }

    /// Make the version durable and visible, with its listing row.
    pub async fn commit(mut self, spec: PutSpec) -> Result<Committed> {
        if self.upload.is_some() && self.body.waiting() > 0 {
            self.send_chunk().await?;
        }
        let md5 = self.body.md5.take().ok_or_else(cut_off)?.finish();
        if spec.expect_md5.is_some_and(|expected| expected != md5) {
            return Err(Error::EtagMismatch { actual: hex::encode(md5) });
        }
        let inner = self.inner.clone();
        let (path, policy, condition) = (&self.path, self.policy, &spec.condition);
        let wanted = Wanted { path, hash: self.hash, policy, condition };
        let Permitted { grant, container, intent } = inner.permit(&wanted, spec.timestamp).await?;
        let timestamp = grant.at;
        let info = ObjectInfo {
            timestamp,
            data_timestamp: timestamp,
            size: self.body.size,
            md5,
            blake3: *self.body.blake3.finalize().as_bytes(),
            content_type: spec.content_type,
            delete_at: spec.delete_at,
            listed: spec.listed,
            headers: spec.headers,
        };
        let conditional = spec.condition != Condition::default();
        let line = listed(container, &info, self.coded.map(|_| self.hash), conditional);
        let upload = self.upload.take();
        let fragment = self.coded.map(|coded| Fragment { code: coded.code, index: 0, body: coded.body });
        let chunked = upload.as_ref().map(|upload| Chunked { data_id: upload.id, count: self.chunks });
        let chunk_size = if chunked.is_some() { u32::try_from(CHUNK).unwrap_or(0) } else { 0 };
        let size = info.size;
        let path = self.path.clone();
        let meta = Box::new(ObjectMeta { path, info, chunked, chunk_size, fragment, intent });
        // What waits is the whole body when there are no chunks, and nothing when there are.
        let data = self.body.take();
        let object = object_draft(self.hash, &meta, data.clone());
        let timestamp = match inner.commit(object, grant, Some(line), Class::Client, upload).await {
            Err(Error::GrantLost { unused: true }) if spec.timestamp.is_none() => {
                Box::pin(inner.commit_again(&wanted, meta, data)).await?
            }
            committed => committed.map(|()| timestamp)?,
        };
        Ok(Committed { md5, size, timestamp })
    }
}

/// What is to be put, and when it may be.
struct Wanted<'a> {
    path: &'a ObjectPath,
    /// Where its record lies.
    hash: PathHash,
    policy: u16,
    condition: &'a Condition,
}

/// The right to put an object.
struct Permitted {
    grant: Grant,
    /// The number of its container.
    container: u64,
    /// The same, where that is eventual.
    intent: Option<u64>,
}

impl Inner {
    /// The right to put an object, if what stands allows it.
    async fn permit(&self, wanted: &Wanted<'_>, given: Option<Timestamp>) -> Result<Permitted> {
        let Wanted { path, policy, condition, .. } = *wanted;
        let begun = match needs(condition) {
            Needs::Nothing => self.begin_unseen(path, given, false).await?,
            _ => self.begin(path, given, true).await?,
        };
        let Some(standing) = begun.grant.line.container else { return Err(Error::NoContainer) };
        if standing.policy != policy {
            // The container was made anew meanwhile: the body lies where nobody would look for it.
            return Err(Error::NoContainer);
        }
        self.judge_change(path, &begun, condition, given).await?;
        let intent = self.eventual_of(&begun.grant.line).map(|standing| standing.id);
        Ok(Permitted { grant: begun.grant, container: standing.id, intent })
    }

    /// Commits a version once more whose grant was lost, by a new leader or by time, before it had a line: nobody has seen it, so
    /// it may have a later time, and what was decided since stands before it. Returns that time.
    async fn commit_again(
        &self,
        wanted: &Wanted<'_>,
        mut meta: Box<ObjectMeta>,
        data: Bytes,
    ) -> Result<Timestamp> {
        let (hash, mut lost) = (wanted.hash, Error::GrantLost { unused: true });
        for _ in 0..AGAIN {
            if meta.chunked.is_some() && meta.fragment.is_none() {
                // A device without the body does not take a record that names it.
                self.copies.assure(hash, meta.info.timestamp).await?;
            }
            let Permitted { grant, container, intent } = self.permit(wanted, None).await?;
            let at = grant.at;
            meta.intent = intent;
            (meta.info.timestamp, meta.info.data_timestamp) = (at, at);
            let key = meta.fragment.map(|_| hash);
            let line = listed(container, &meta.info, key, *wanted.condition != Condition::default());
            let committed = if meta.chunked.is_some() && meta.fragment.is_some() {
                // What of the body is on a device stays as it is.
                self.repost(hash, ObjectMeta::clone(&meta), grant, line).await
            } else {
                let object = object_draft(hash, &meta, data.clone());
                self.commit(object, grant, Some(line), Class::Client, None).await
            };
            match committed {
                Err(error @ Error::GrantLost { unused: true }) => lost = error,
                committed => return committed.map(|()| at),
            }
        }
        Err(lost)
    }
}

/// Some bytes of the body were written and not waited for.
fn cut_off() -> Error {
    Error::Refused("a part of the body was not taken whole".to_owned())
}

/// The name of an upload: no other upload of this node has its time (chunks carry it, so it is observed after a restart),
/// and no other node has its device.
fn begin_upload(inner: &Inner, hash: &PathHash, coded: Option<Coded>) -> Upload {
    let (id, sequence) = match coded {
        Some(coded) => (coded.body, coded.sequence),
        None => name_body(inner, hash),
    };
    Upload::new(inner.copies.clone(), hash, id, sequence, coded.map(|coded| coded.code))
}

fn name_body(inner: &Inner, hash: &PathHash) -> (DataId, u64) {
    let sequence = inner.clock.tick().0;
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"quarry data id v1\0");
    hasher.update(&inner.home().0);
    hasher.update(&sequence.to_le_bytes());
    hasher.update(hash);
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    (id, sequence)
}
