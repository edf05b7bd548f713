//! Versions that are kept in fragments, as the coordinator writes, completes and removes them.
//!
//! Each body has a key of its own, and the listing's line names the one that counts: so a body that is being replaced stays whole
//! until the new one is acknowledged, whoever dies meanwhile. What no line names is buried: by whoever replaced it, else by the
//! auditor, when it is so old that nobody can still be at it.
//!
//! Invariant: a version is acknowledged when k + 1 devices have different fragments of it.
//! Invariant: a body goes only after its line: what is acknowledged is never fewer fragments than were written.

use std::sync::Arc;

use quarry_ring::PathHash;

use super::copies::{Copies, tombstone};
use super::devices::Member;
use super::fan::{Fan, missing};
use super::fragments::same_body;
use super::objects::{check_version, object_draft};
use super::policy::Code;
use super::replica::{BoxFuture, Draft};
use super::seats::{Seats, distinct, personal};
use super::{Error, ObjectPath, Result};
use crate::catalog::ObjectMeta;
use crate::clock::Timestamp;
use crate::disk::{Class, Durability};

impl Copies {
    /// Makes a version whose body is in its record durable: the body on m + 1 devices, the record on all.
    pub(crate) async fn put_fragments(
        self: &Arc<Self>,
        hash: &PathHash,
        record: &Draft,
        class: Class,
    ) -> Result<()> {
        let meta = ObjectMeta::decode(&record.meta, record.sequence)?;
        let code = meta.fragment.ok_or(Error::NoObject)?.code;
        let mut candidates = self.candidates_to_write(hash);
        let wanted = candidates.wanted();
        let mut seats = Seats::new(code, &candidates);
        let record = record.clone();
        let next = move || {
            let member = candidates.next()?;
            let index = seats.take(&member)?;
            let own = personal(&record, &meta, index);
            let work = member.replica.append(vec![own], Durability::Durable, class);
            Some((member, seats.asked(index, work)))
        };
        let mut fan = self.fan(wanted, code.quorum(), Box::new(next))?;
        fan.reach().await?;
        self.distinct(&mut fan, code).await?;
        self.finish(fan, |_| {});
        Ok(())
    }

    /// Waits until enough different fragments are there: a device that stalled may have answered beside the one in its place.
    async fn distinct(&self, fan: &mut Fan<u8>, code: Code) -> Result<()> {
        let count = |fan: &Fan<u8>| distinct(fan.good().iter().map(|(_, index)| index));
        if count(fan) < code.quorum() {
            fan.rest().await;
        }
        let good = count(fan);
        if good < code.quorum() { Err(missing(code.quorum(), good, std::iter::empty())) } else { Ok(()) }
    }

    /// Gives the version a new record on every device that has its body; done when k + 1 have it.
    pub(crate) async fn repost(self: &Arc<Self>, hash: PathHash, meta: &ObjectMeta) -> Result<()> {
        let code = meta.fragment.ok_or(Error::NoObject)?.code;
        let mut candidates = self.candidates_to_write(&hash);
        let wanted = candidates.wanted();
        let meta = Arc::new(meta.clone());
        let next = move || {
            let member = candidates.next()?;
            Some((member.clone(), repost_at(member, hash, meta.clone())))
        };
        let mut fan = self.fan(wanted, code.quorum(), Box::new(next))?;
        fan.reach().await?;
        self.finish(fan, |_| {});
        Ok(())
    }

    /// As [`Copies::bury`], without waiting for it where that can go on by itself.
    pub(crate) async fn bury_soon(self: &Arc<Self>, path: ObjectPath, hash: PathHash, at: Timestamp) {
        let copies = self.clone();
        let work = async move { copies.bury(&path, hash, at).await };
        match &self.spawn {
            Some(spawn) => spawn(Box::pin(work)),
            None => work.await,
        }
    }

    /// Buries a body that no line names any more, as far as its devices can be reached; the auditor buries the rest.
    pub(crate) async fn bury(self: &Arc<Self>, path: &ObjectPath, hash: PathHash, at: Timestamp) {
        let mut candidates = self.candidates_to_read(&hash);
        let wanted = candidates.wanted();
        let record = tombstone(path, hash, at);
        let next = move || {
            let member = candidates.next()?;
            let work = member.replica.append(vec![record.clone()], Durability::Durable, Class::Delete);
            Some((member, work))
        };
        let Ok(mut fan) = self.fan(wanted, wanted, Box::new(next)) else { return };
        if let Err(error) = fan.reach().await {
            tracing::debug!(%path, %error, "bury body");
        }
        self.finish(fan, |_| {});
    }
}

/// Gives a device's version a new record, if it has that body.
fn repost_at(member: Arc<Member>, hash: PathHash, meta: Arc<ObjectMeta>) -> BoxFuture<'static, Result<()>> {
    Box::pin(async move {
        let opened = member.replica.open(hash).await?.ok_or(Error::NoObject)?;
        let own = check_version(&meta.path, &opened)?;
        if !same_body(&own, &meta) {
            return Err(Error::NoObject);
        }
        if own.info.timestamp >= meta.info.timestamp {
            return Ok(());
        }
        let new = ObjectMeta { info: meta.info.clone(), ..own };
        let draft = object_draft(hash, &new, opened.record.data());
        // Lets go of the segments: the append may wait for space that only they can give.
        drop(opened);
        member.replica.append(vec![draft], Durability::Durable, Class::Client).await
    })
}
