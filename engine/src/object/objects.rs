//! Objects: look, change, remove. Bodies come in through [`super::ObjectWriter`].
//!
//! Invariant: a record is believed only when the path in it is the path that was asked for.

use std::sync::Arc;

use quarry_ring::PathHash;

use super::accounts::row_draft;
use super::condition::{Needs, holds, needs};
use super::locks::Claim;
use super::replica::{Draft, Opened, Replica};
use super::store::{Inner, Store, hash_of};
use super::writer::{ObjectWriter, Upload};
use super::{Condition, Deleted, Error, ObjectEdit, ObjectInfo, ObjectPath, ObjectReader, Result};
use crate::catalog::{ListedEtag, ListingValue, ObjectMeta, Row, Version, encode_tombstone, listing_key};
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::disk::format::record::Kind;

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
pub(crate) fn listing_draft(id: u64, path: &ObjectPath, info: &ObjectInfo) -> Draft {
    let listed = &info.listed;
    let value = ListingValue {
        size: listed.size.unwrap_or(info.size),
        etag: listed.etag.clone().map_or(ListedEtag::Md5(info.md5), ListedEtag::Text),
        content_type: listed.content_type.clone().unwrap_or_else(|| info.content_type.clone()),
    };
    row_draft(listing_key(id, &path.object), Some(value.encode()), info.timestamp)
}

/// An object's newest version, checked, and the replica that gave it.
pub(crate) struct Open {
    pub(crate) meta: ObjectMeta,
    pub(crate) opened: Opened,
    pub(crate) replica: Arc<dyn Replica>,
}

impl Inner {
    /// The newest version on the first replica that answers.
    pub(crate) async fn open_version(&self, path: &ObjectPath) -> Result<Option<Open>> {
        let hash = hash_of(path);
        let mut last = Error::Unavailable { reason: "no device holds this partition".to_owned() };
        for replica in self.replicas_of(&hash) {
            match replica.open(hash).await {
                Ok(None) => return Ok(None),
                Ok(Some(opened)) => match check_version(path, &opened) {
                    Ok(meta) => return Ok(Some(Open { meta, opened, replica })),
                    Err(e) => last = e,
                },
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    async fn version(&self, hash: PathHash) -> Result<Option<Version>> {
        let mut last = Error::Unavailable { reason: "no device holds this partition".to_owned() };
        for replica in self.replicas_of(&hash) {
            match replica.version(hash).await {
                Ok(version) => return Ok(version),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    /// Judges a change of an object under its claim, before the change's time is chosen.
    pub(crate) async fn judge_change(
        &self,
        path: &ObjectPath,
        condition: &Condition,
        timestamp: Option<Timestamp>,
    ) -> Result<()> {
        let needs = needs(condition);
        if needs == Needs::Nothing && timestamp.is_none() {
            return Ok(());
        }
        let version = self.version(hash_of(path)).await?;
        if timestamp.zip(version).is_some_and(|(ours, standing)| ours.0 <= standing.sequence) {
            return Err(Error::Superseded);
        }
        let now = self.clock.unix_seconds();
        let stands = version.is_some_and(|v| !v.deleted && v.delete_at.is_none_or(|at| at > now));
        let etag = match needs {
            Needs::Etag if stands => {
                self.open_version(path).await?.map(|open| hex::encode(open.meta.info.md5))
            }
            _ => stands.then(String::new),
        };
        if holds(condition, etag.as_deref()) { Ok(()) } else { Err(Error::ConditionFailed) }
    }

    /// Removes an object's newest version under its claim, if `still` says so of it.
    pub(crate) async fn remove_object(
        &self,
        path: &ObjectPath,
        condition: &Condition,
        still: impl Fn(Version) -> bool + Send,
    ) -> Result<Deleted> {
        let hash = hash_of(path);
        let permit = self.claim(Claim::Object(path)).await;
        let version = self.version(hash).await?.filter(|version| !version.deleted);
        self.judge_change(path, condition, None).await?;
        if !version.is_some_and(still) {
            return Ok(Deleted::Absent);
        }
        let now = self.clock.tick();
        let container = self.container_row(&path.account, &path.container)?;
        let row = container.map(|(_, value)| row_draft(listing_key(value.id, &path.object), None, now));
        let object = Draft {
            kind: Kind::Object,
            deleted: true,
            sequence: now.0,
            number: 0,
            key: hash.to_vec(),
            meta: encode_tombstone(path),
            data: bytes::Bytes::new(),
        };
        self.commit(hash, object, row, Class::Delete, None, permit).await?;
        Ok(Deleted::Gone)
    }

    /// Removes a line that no object stands behind, under the object's claim.
    pub(crate) async fn remove_line(&self, path: &ObjectPath) -> Result<()> {
        let permit = self.claim(Claim::Object(path)).await;
        let absent = self.version(hash_of(path)).await?.is_none_or(|version| version.deleted);
        let container = self.container_row(&path.account, &path.container)?;
        let Some((_, value)) = container.filter(|_| absent) else { return Ok(()) };
        let row = row_draft(listing_key(value.id, &path.object), None, self.clock.tick());
        self.commit_rows(vec![row], Class::Delete, permit).await
    }

    /// Lists a version again whose line is missing or older; true when it was so. A crash between the group of an object and
    /// that of its row, on two disks, leaves this behind.
    pub(crate) async fn relist(&self, path: &ObjectPath, sequence: u64) -> Result<bool> {
        let Some((_, container)) = self.container_row(&path.account, &path.container)? else {
            return Ok(false);
        };
        let key = listing_key(container.id, &path.object);
        let listed = |row: Option<Row>, sequence| row.is_some_and(|row| row.sequence >= sequence);
        if listed(self.group.row(&key)?, sequence) {
            return Ok(false);
        }
        // Looked at again under the claim: most likely the version was just being replaced.
        let permit = self.claim(Claim::Object(path)).await;
        let Some((_, container)) = self.container_row(&path.account, &path.container)? else {
            return Ok(false);
        };
        let Some(Open { meta, .. }) = self.open_version(path).await? else { return Ok(false) };
        let row = listing_draft(container.id, path, &meta.info);
        if listed(self.group.row(&row.key)?, row.sequence) {
            return Ok(false);
        }
        self.commit_rows(vec![row], Class::Delete, permit).await?;
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
    if meta.chunked.is_none() && view.data_len as u64 != meta.info.size {
        return Err(corrupt("size"));
    }
    Ok(meta)
}

impl Store {
    /// Facts of the newest version, `None` when absent. Does not look at the container.
    pub async fn object(&self, path: &ObjectPath) -> Result<Option<ObjectInfo>> {
        self.count_call();
        Ok(self.inner.open_version(path).await?.map(|open| open.meta.info))
    }

    /// The newest version, open for reading.
    pub async fn open(&self, path: &ObjectPath) -> Result<Option<ObjectReader>> {
        self.count_call();
        let found = self.inner.open_version(path).await?;
        Ok(found
            .map(|Open { meta, opened, replica }| ObjectReader::new(meta, opened, hash_of(path), replica)))
    }

    /// Begin a body. `size_hint` is the announced length, if any. [`Error::NoContainer`] when the container is absent;
    /// [`Error::NoSpace`] above the high-water mark.
    pub async fn writer(&self, path: &ObjectPath, size_hint: Option<u64>) -> Result<ObjectWriter> {
        self.count_call();
        if self.inner.container_row(&path.account, &path.container)?.is_none() {
            return Err(Error::NoContainer);
        }
        let hash = hash_of(path);
        let full =
            |device| self.inner.disks.iter().any(|disk| disk.device() == device && disk.above_high_water());
        if self.inner.replicas_of(&hash).iter().any(|replica| full(replica.device())) {
            return Err(Error::NoSpace);
        }
        Ok(ObjectWriter::new(self.inner.clone(), path.clone(), hash, size_hint))
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
        let permit = inner.claim(Claim::Object(path)).await;
        let Some(Open { mut meta, opened, .. }) = inner.open_version(path).await? else {
            return Err(Error::NoObject);
        };
        let Some((_, container)) = inner.container_row(&path.account, &path.container)? else {
            return Err(Error::NoObject);
        };
        let ObjectEdit { content_type, delete_at, headers, listed } = edit(&meta.info)?;
        let now = inner.clock.tick();
        meta.info = ObjectInfo { timestamp: now, content_type, delete_at, headers, listed, ..meta.info };
        let hash = hash_of(path);
        let object = object_draft(hash, &meta, opened.record.data());
        // Lets go of the segments: the append may wait for space that only they can give.
        drop(opened);
        let row = listing_draft(container.id, path, &meta.info);
        inner.commit(hash, object, Some(row), Class::Client, None::<Upload>, permit).await?;
        Ok(now)
    }

    /// Remove the newest version.
    pub async fn delete_object(&self, path: &ObjectPath, condition: &Condition) -> Result<Deleted> {
        self.count_call();
        self.inner.remove_object(path, condition, |_| true).await
    }
}
