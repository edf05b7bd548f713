//! Objects: look, change, remove. Bodies come in through [`super::ObjectWriter`].
//!
//! Invariant: a record is believed only when the path in it is the path that was asked for.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quarry_ring::PathHash;

use super::begun::Begun;
use super::condition::{Needs, needs};
use super::copies::grave;
use super::eventual::Soon;
use super::limits::STALL;
use super::names::{Grant, Line, NewLine, Standing};
use super::replica::{Draft, Opened};
use super::sight::{Found, Open};
use super::sources::Sources;
use super::store::{Inner, Store, hash_of, key_of};
use super::stripes::{Stripes, small_body};
use super::upload::Upload;
use super::writer::ObjectWriter;
use super::{Condition, Deleted, Error, ObjectEdit, ObjectInfo, ObjectPath, ObjectReader, Result};
use crate::catalog::{ListedEtag, ListingValue, ObjectMeta, Version};
use crate::clock::Timestamp;
use crate::disk::format::record::Kind;
use crate::disk::{Class, DiskHandle};

/// Seconds after which whoever wrote a body has long given up, or made its line.
const ORPHAN_AGE: u64 = 24 * 3600;

/// Times that a version is opened which is replaced as often meanwhile.
const OPENINGS: u32 = 8;

/// An object's record.
pub(crate) fn object_draft(hash: PathHash, meta: &ObjectMeta, data: bytes::Bytes) -> Draft {
    Draft {
        kind: Kind::Object,
        deleted: false,
        sequence: meta.info.timestamp.0,
        number: 0,
        key: hash.to_vec(),
        meta: meta.encode(),
        data,
    }
}

/// The line of a version in its container's listing.
pub(crate) fn listed(container: u64, info: &ObjectInfo, key: Option<PathHash>, conditional: bool) -> NewLine {
    let listed = &info.listed;
    let value = ListingValue {
        size: info.size,
        shown: listed.size.filter(|shown| *shown != info.size),
        etag: listed.etag.clone().map_or(ListedEtag::Md5(info.md5), ListedEtag::Text),
        content_type: listed.content_type.clone().unwrap_or_else(|| info.content_type.clone()),
        version: None,
        key,
    };
    NewLine { container, at: info.timestamp, value: Some(value.encode()), conditional }
}

/// No line any more.
pub(crate) fn unlisted(container: u64, at: Timestamp, conditional: bool) -> NewLine {
    NewLine { container, at, value: None, conditional }
}

/// Times that a name is looked at again because a newer version than its line's was seen.
pub(super) const LOOKS: u32 = 32;
/// Shortest and longest pause before a name is looked at again of which a newer version could not be made whole.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(250);

/// Whether a version was never acknowledged: it is newer than what a line tells of.
pub(super) fn ahead(line: &Line, sequence: u64) -> bool {
    line.at.is_some_and(|at| at.0 < sequence)
}

pub(super) fn busy() -> Error {
    Error::Unavailable { reason: "the object is being changed again and again".to_owned() }
}

impl Inner {
    /// The best version at least as new as `floor`, the time that the listing's row states; `None`: unknown.
    pub(crate) async fn open_version(
        &self,
        path: &ObjectPath,
        hash: PathHash,
        floor: Option<Timestamp>,
    ) -> Result<Option<Open>> {
        let sight = self.copies.open(path, hash, floor).await?;
        if !sight.stale.is_empty() {
            tracing::debug!(%path, devices = ?sight.stale, "copies are stale, missing or damaged");
        }
        Ok(sight.version())
    }

    /// The newest version of what a line tells of.
    pub(super) async fn version(
        &self,
        path: &ObjectPath,
        line: &Line,
        floor: Option<Timestamp>,
    ) -> Result<Option<Version>> {
        match self.key(path, line) {
            Some(hash) => self.copies.newest(&hash, floor).await,
            None => Ok(None),
        }
    }

    /// Whether the line says what was acknowledged: then what is found on a device is compared with it.
    pub(super) fn line_counts(&self, line: &Line) -> bool {
        let policy = line.container.map_or(0, |standing| standing.policy);
        self.names.lines_count() || self.policies().code(policy).is_some()
    }

    /// A reader of a version that was found.
    pub(crate) async fn reader(&self, open: Open) -> Result<ObjectReader> {
        if open.meta.fragment.is_some() {
            return self.reader_of_fragments(open).await;
        }
        Ok(self.reader_of_copies(open))
    }

    /// Fails when too few fragments can be reached.
    async fn reader_of_fragments(&self, open: Open) -> Result<ObjectReader> {
        if open.meta.chunked.is_none() {
            let body = small_body(&self.copies, &open).await?;
            return Ok(ObjectReader::over(Arc::new(open.meta), body, Sources::nothing()));
        }
        let meta = Arc::new(open.meta.clone());
        let stripes = Stripes::open(self.copies.clone(), open).await?;
        Ok(ObjectReader::over(meta, bytes::Bytes::new(), Sources::stripes(stripes)))
    }

    fn reader_of_copies(&self, open: Open) -> ObjectReader {
        let Open { hash, meta, opened, member, .. } = open;
        if meta.chunked.is_none() || self.copies.devices().sole(&hash).is_some() {
            return ObjectReader::new(meta, opened, hash, member.replica.clone());
        }
        let (meta, body) = (Arc::new(meta), bytes::Bytes::new());
        let sources = Sources::several(self.copies.clone(), meta.clone(), opened, hash, member);
        ObjectReader::over(meta, body, sources)
    }

    /// The version that was acknowledged last, or one that came after it and is acknowledged hereby.
    pub(crate) async fn acknowledged(&self, path: &ObjectPath) -> Result<Option<Open>> {
        if !self.names.lines_count() && self.policies().iter().count() == 1 {
            return self.open_version(path, hash_of(path), None).await;
        }
        let (mut why, mut waited) = (busy(), Duration::ZERO);
        for _ in 0..LOOKS {
            let line = match self.line_soon(path).await? {
                Soon::Said(line) => line,
                Soon::Away(standing) => {
                    return Ok(Box::pin(self.seen(path, standing, None)).await?.open.map(|open| *open));
                }
            };
            if let Some(standing) = self.eventual_of(&line) {
                let seen = Box::pin(self.seen(path, standing, Some(&line))).await?;
                let Some(newer) = seen.unlisted else { return Ok(seen.open.map(|open| *open)) };
                self.relist(path, newer).await?;
                continue;
            }
            let Some(hash) = self.key(path, &line) else { return Ok(None) };
            if !self.line_counts(&line) {
                return self.open_version(path, hash, None).await;
            }
            let Some(at) = line.at else { return Ok(None) };
            let newer = match self.copies.open(path, hash, Some(at)).await?.found {
                Found::Version(open) if !open.ahead => return Ok(Some(*open)),
                Found::Version(open) => open.meta.info.timestamp.0,
                Found::Deleted(version) => version.sequence,
                Found::Absent if self.key_now(path).await? == Some(hash) => return Ok(None),
                // Replaced meanwhile, and buried.
                Found::Absent => continue,
            };
            // A writer is at work or was lost half-way: what a reader has seen must stay.
            match self.relist(path, newer).await {
                // Whoever had it is gone, perhaps: then nobody has seen it. Or too few can be reached just now.
                Err(error @ Error::Unavailable { .. }) => {
                    why = error;
                    let Some(time) = self.copies.time.as_ref().filter(|_| waited < STALL) else { continue };
                    let pause = waited.clamp(FIRST_LOOK, LAST_LOOK);
                    (time.timer)(pause).await;
                    waited += pause;
                }
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Err(why)
    }

    /// Removes an object's newest version under its claim, if `still` says so of it and of the number of its container. `waits`: for
    /// a group that is away, however the container is. Of a version that is lost its line alone tells; to remove that no device need have it.
    pub(crate) async fn remove_object(
        &self,
        path: &ObjectPath,
        condition: &Condition,
        waits: bool,
        still: impl Fn(Version, Option<u64>) -> bool + Send,
    ) -> Result<Deleted> {
        let conditional = needs(condition) != Needs::Nothing;
        let begun = match conditional {
            true => self.begin(path, None, true).await?,
            false => self.begin_or_lost(path, None, waits).await?,
        };
        self.judge_change(path, &begun, condition, None).await?;
        let Begun { grant, version, seen, lost } = begun;
        let container = grant.line.container.map(|standing| standing.id);
        let told = || seen.map(|seen| seen.floor()).or(grant.line.at);
        let lost_at = lost.as_ref().and_then(|_| told());
        let version =
            lost_at.map(|at| Version { sequence: at.0, deleted: false, delete_at: None }).or(version);
        let Some(version) = version.filter(|version| !version.deleted) else {
            return match lost {
                Some(error) => Err(error),
                None => self.unlist_stray(path, grant).await,
            };
        };
        if !still(version, container) {
            return lost.map_or(Ok(Deleted::Absent), Err);
        }
        let line = grant.line.container.map(|standing| unlisted(standing.id, grant.at, conditional));
        let Some(hash) = self.key(path, &grant.line) else { return Ok(Deleted::Absent) };
        if let Some(line) = line.clone().filter(|_| grant.line.key.is_some()) {
            self.unlist_and_bury(hash, grant, line).await?;
            return Ok(Deleted::Gone);
        }
        let intent = self.eventual_of(&grant.line).map(|standing| standing.id);
        let object = grave(path, hash, grant.at, intent);
        self.commit(object, grant, line, Class::Delete, None).await?;
        Ok(Deleted::Gone)
    }

    /// Nothing stands of a name. Where lines do not count, and the object lay on another disk than its line, a crash in the middle of a
    /// DELETE leaves that: listed, and counted, for ever.
    async fn unlist_stray(&self, path: &ObjectPath, grant: Grant) -> Result<Deleted> {
        let standing = grant.line.container.filter(|_| !self.line_counts(&grant.line));
        let Some(standing) = standing else { return Ok(Deleted::Absent) };
        if self.line(path).await?.at.is_none() {
            return Ok(Deleted::Absent);
        }
        let line = unlisted(standing.id, grant.at, false);
        self.names.settle(grant, line, Class::Delete).await?;
        Ok(Deleted::Gone)
    }

    /// Removes a line of a container that no object stands behind, under the object's claim.
    pub(crate) async fn remove_line(&self, path: &ObjectPath, container: u64) -> Result<()> {
        let grant = self.names.begin(path.clone(), None).await?;
        let absent = self.version(path, &grant.line, None).await?.is_none_or(|version| version.deleted);
        let meant = |standing: &Standing| absent && standing.id == container;
        let Some(standing) = grant.line.container.filter(meant) else { return Ok(()) };
        let line = unlisted(standing.id, grant.at, false);
        self.names.settle(grant, line, Class::Delete).await
    }

    /// Buries a body that has a key of its own which no line names, if it is so old that nobody can be at it any more.
    pub(crate) async fn bury_orphan(
        &self,
        path: &ObjectPath,
        key: &[u8],
        written: Timestamp,
    ) -> Result<bool> {
        let now = self.clock.unix_seconds().saturating_mul(1_000_000);
        let old = written.0.saturating_add(ORPHAN_AGE.saturating_mul(1_000_000)) < now;
        let Some(hash) = <PathHash>::try_from(key).ok().filter(|_| old) else { return Ok(false) };
        if self.line(path).await?.key == Some(hash) {
            return Ok(false);
        }
        // Under the claim: nobody decides about the name meanwhile.
        let grant = self.names.begin(path.clone(), None).await?;
        let line = self.line(path).await?;
        if line.key == Some(hash) {
            return Ok(false);
        }
        self.copies.bury(path, hash, grant.at).await;
        Ok(true)
    }

    /// As [`Inner::relist`], for a version that was found under a key: not if the container keeps its objects elsewhere now.
    pub(crate) async fn relist_found(&self, path: &ObjectPath, key: &[u8], sequence: u64) -> Result<bool> {
        let line = self.line(path).await?;
        if self.key(path, &line).is_none_or(|hash| hash != key) {
            return Ok(false);
        }
        self.relist(path, sequence).await
    }

    /// Brings the line of an object up to its newest version, when it is older than `sequence`, the time of one that was seen on
    /// a device; true when it was so. A crash between the object and its line leaves this behind, and so does a writer that was
    /// lost half-way.
    pub(crate) async fn relist(&self, path: &ObjectPath, sequence: u64) -> Result<bool> {
        // Where lines count, what has none was never acknowledged, or was deleted; a tombstone may lie where nobody looks.
        let behind = |line: &Line, sequence| line.at.map_or(!self.line_counts(line), |at| at.0 < sequence);
        let line = self.line(path).await?;
        let seen = self.key(path, &line);
        if line.container.is_none() || !behind(&line, sequence) {
            return Ok(false);
        }
        // Looked at again under the claim: most likely the version was just being replaced.
        let grant = self.names.begin(path.clone(), None).await?;
        let line = self.line(path).await?;
        let Some(standing) = line.container else { return Ok(false) };
        // Under another key the time says nothing.
        let Some(hash) = self.key(path, &line).filter(|hash| seen == Some(*hash)) else { return Ok(false) };
        let floor = line.at.map(|at| at.max(Timestamp(sequence)));
        let new = match self.copies.open(path, hash, floor).await?.found {
            Found::Version(open) => listed(standing.id, &open.meta.info, line.key, false),
            Found::Deleted(version) if line.at.is_some() => {
                unlisted(standing.id, Timestamp(version.sequence), false)
            }
            Found::Deleted(_) | Found::Absent => return Ok(false),
        };
        if !behind(&line, new.at.0) {
            return Ok(false);
        }
        // What a line says must be found again whichever devices can be reached.
        self.copies.assure(hash, new.at).await?;
        self.names.settle(grant, new, Class::Delete).await?;
        Ok(true)
    }
}

/// The facts of an opened version, if it is the one that was asked for and all of it is there.
pub(crate) fn check_version(path: &ObjectPath, opened: &Opened) -> Result<ObjectMeta> {
    let view = opened.record.view();
    let corrupt = |what: &str| Error::Corrupt { what: format!("{what} of {path:?}") };
    if view.kind != Kind::Object || view.deleted {
        return Err(corrupt("record kind"));
    }
    let meta = ObjectMeta::decode(view.meta, view.sequence)?;
    if meta.path != *path {
        return Err(corrupt("path in the record"));
    }
    let chunks = meta.chunked.map_or(0, |chunked| chunked.count as usize);
    if opened.chunks.len() != chunks {
        return Err(corrupt("number of chunks"));
    }
    let small = meta.fragment.is_none_or(|fragment| fragment.has_small());
    let size = if small { meta.info.size } else { 0 };
    if meta.chunked.is_none() && view.data_len as u64 != size {
        return Err(corrupt("size"));
    }
    Ok(meta)
}

impl Store {
    /// Facts of the newest version, `None` when absent. Does not look at the container.
    pub async fn object(&self, path: &ObjectPath) -> Result<Option<ObjectInfo>> {
        self.count_call();
        Ok(self.inner.acknowledged(path).await?.map(|open| open.meta.info))
    }

    /// The newest version, open for reading.
    pub async fn open(&self, path: &ObjectPath) -> Result<Option<ObjectReader>> {
        self.count_call();
        let mut tries = 0;
        loop {
            let Some(open) = self.inner.acknowledged(path).await? else { return Ok(None) };
            let hash = open.hash;
            tries += 1;
            match self.inner.reader(open).await {
                // Replaced, and buried before all of it was open?
                Err(_) if tries < OPENINGS && self.inner.key_now(path).await? != Some(hash) => {}
                reader => return reader.map(Some),
            }
        }
    }

    /// Begin a body. `size_hint` is the announced length, if any. [`Error::NoContainer`] when the container is absent;
    /// [`Error::NoSpace`] above the high-water mark.
    pub async fn writer(&self, path: &ObjectPath, size_hint: Option<u64>) -> Result<ObjectWriter> {
        self.count_call();
        let container = ObjectPath { object: "".into(), ..path.clone() };
        let standing = self.inner.standing_soon(&container).await?.ok_or(Error::NoContainer)?;
        let policy = standing.policy;
        if self.inner.policies().get(policy).is_none() {
            return Err(Error::Unavailable { reason: format!("storage policy {policy} is not known here") });
        }
        // Of several devices those that are full are passed over when the first bytes are there.
        let hash = key_of(path, policy, None);
        let sole = self.inner.copies.devices().sole(&hash).map(|member| member.device());
        let full = |disk: &DiskHandle| Some(disk.device()) == sole && disk.above_high_water();
        if self.inner.disks.iter().any(full) {
            return Err(Error::NoSpace);
        }
        Ok(ObjectWriter::new(self.inner.clone(), path.clone(), policy, size_hint))
    }

    /// Replace headers, content type and expiry of the newest version, keeping its data. `edit` sees the current version.
    /// [`Error::NoObject`] when absent.
    pub async fn post_object(
        &self,
        path: &ObjectPath,
        edit: impl FnOnce(&ObjectInfo) -> Result<ObjectEdit> + Send,
    ) -> Result<Timestamp> {
        self.count_call();
        let inner = &self.inner;
        let Begun { grant, seen, .. } = inner.begin(path, None, false).await?;
        let Some(standing) = grant.line.container else { return Err(Error::NoObject) };
        let hash = inner.key(path, &grant.line).ok_or(Error::NoObject)?;
        let Open { mut meta, opened, .. } = match seen {
            Some(seen) => *seen.open.ok_or(Error::NoObject)?,
            None => inner.standing_open(path, hash, &grant.line).await?,
        };
        meta.intent = inner.eventual_of(&grant.line).map(|standing| standing.id);
        if meta.chunked.is_some() && meta.fragment.is_none() {
            // A device without the body does not take a record that names it.
            inner.copies.assure(hash, meta.info.timestamp).await?;
        }
        let ObjectEdit { content_type, delete_at, headers, listed: shown } = edit(&meta.info)?;
        let now = grant.at;
        meta.info =
            ObjectInfo { timestamp: now, content_type, delete_at, headers, listed: shown, ..meta.info };
        // Keeps the data that it saw: another body that came meanwhile must not be hidden by it. In an eventual container it is on the
        // devices that it does, and they say what stands.
        let line = listed(standing.id, &meta.info, grant.line.key, meta.intent.is_none());
        if meta.fragment.is_some() {
            drop(opened);
            inner.repost(hash, meta, grant, line).await?;
            return Ok(now);
        }
        let object = object_draft(hash, &meta, opened.record.data());
        // Lets go of the segments: the append may wait for space that only they can give.
        drop(opened);
        inner.commit(object, grant, Some(line), Class::Client, None::<Upload>).await?;
        Ok(now)
    }

    /// Remove the newest version.
    pub async fn delete_object(&self, path: &ObjectPath, condition: &Condition) -> Result<Deleted> {
        self.count_call();
        self.inner.remove_object(path, condition, false, |_, _| true).await
    }

    /// As [`Self::delete_object`], and tells when what was there would have expired: in Unix seconds, maybe gone by.
    pub async fn take_object(
        &self,
        path: &ObjectPath,
        condition: &Condition,
    ) -> Result<(Deleted, Option<u64>)> {
        self.count_call();
        let taken = OnceLock::new();
        let took = |version: Version, _| {
            // It is asked once, under the claim.
            let _ = taken.set(version.delete_at);
            true
        };
        let deleted = self.inner.remove_object(path, condition, false, took).await?;
        Ok((deleted, taken.into_inner().flatten()))
    }
}
