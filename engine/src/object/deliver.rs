//! Delivering intents: the listing is told what the devices have.
//!
//! | the group says | what is done |
//! |---|---|
//! | the container is gone, or was made anew after the version | the version is buried, and nothing newer |
//! | the line is of that version or a newer one | nothing |
//! | the line is older, or there is none | it is made of the newest version that the devices have, under the name's claim |
//!
//! Invariant: whatever the devices have by then is what the line says; so the order and the number of deliveries are nothing.
//! Invariant: after a delivery the group gives the name greater times than the intent's, also where no line is left.

use std::time::Duration;

use super::agreed::settled;
use super::copies::tombstone;
use super::launch::wait;
use super::names::{Ask, Line};
use super::objects::{listed, unlisted};
use super::store::{Inner, key_of};
use super::{Error, ObjectPath, Result};
use crate::catalog::Intent;
use crate::clock::Timestamp;
use crate::disk::format::record::DeviceId;
use crate::disk::{Class, Durability};
use crate::net::first;

/// How long a group is waited for.
const PATIENT: Duration = Duration::from_secs(4);

/// Who does not answer where a name is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silent {
    /// The index group of its account.
    Group(u32),
    /// That of its container's lines.
    Container,
}

/// What became of an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// The line was made, or removed.
    Made,
    /// It was so already.
    Known,
    /// Its container is gone; so is the version now.
    Orphan,
}

impl Inner {
    /// Makes the line of a version of which a device has an intent, as the devices have it now. It is waited for so long at most.
    pub(crate) async fn deliver(&self, intent: &Intent, within: Duration) -> Result<Delivered> {
        let late =
            || Error::Unavailable { reason: "the group or the devices did not answer in time".to_owned() };
        let deliver = Box::pin(self.deliver_patiently(intent));
        first(deliver, wait(self.copies.time.as_ref(), within)).await.unwrap_or_else(|| Err(late()))
    }

    /// Whether nobody answers for an account.
    pub(crate) async fn is_away(&self, account: &str) -> bool {
        self.is_silent(Ask::Account { account: account.to_owned() }).await
    }

    async fn is_silent(&self, ask: Ask) -> bool {
        let said = first(self.names.ask(ask), wait(self.copies.time.as_ref(), PATIENT)).await;
        matches!(said, None | Some(Err(Error::Unavailable { .. })))
    }

    /// Whether nobody answers for an account, or for the lines of a container.
    pub(crate) async fn who_is_silent(&self, path: &ObjectPath) -> Option<Silent> {
        if self.is_away(&path.account).await {
            return Some(Silent::Group(self.names.group_of(&path.account)));
        }
        self.is_silent(Ask::Line { path: path.clone() }).await.then_some(Silent::Container)
    }

    async fn deliver_patiently(&self, intent: &Intent) -> Result<Delivered> {
        let path = &intent.path;
        if let Some(done) = self.judge_intent(intent, &self.line(path).await?).await? {
            return Ok(done);
        }
        // The group's later times are greater than the intent's, also where nothing of it stays in a line.
        let grant = self.names.begin(path.clone(), Some(Timestamp(intent.sequence))).await?;
        if let Some(done) = self.judge_intent(intent, &grant.line).await? {
            return Ok(done);
        }
        let Some(standing) = grant.line.container else { return Ok(Delivered::Orphan) };
        let seen = self.seen(path, standing, None).await?;
        if seen.floor() < Timestamp(intent.sequence) {
            return Err(Error::Unavailable { reason: "only older versions can be reached".to_owned() });
        }
        let line = match &seen.open {
            Some(open) => listed(standing.id, &open.meta.info, None, false),
            None => unlisted(standing.id, seen.floor(), false),
        };
        if line.value.is_none() && grant.line.at.is_none() {
            return Ok(Delivered::Known);
        }
        self.names.settle(grant, line, Class::Delete).await?;
        Ok(Delivered::Made)
    }

    /// Whether there is nothing to be done for an intent, where its name's line is this.
    async fn judge_intent(&self, intent: &Intent, line: &Line) -> Result<Option<Delivered>> {
        let Intent { hash, sequence, container, path } = intent;
        let Some(standing) = line.container else { return self.drop_orphan(intent).await.map(Some) };
        let same = standing.id == *container || *sequence > standing.id;
        if !same || key_of(path, standing.policy, None) != *hash {
            return self.drop_orphan(intent).await.map(Some);
        }
        Ok(line.at.is_some_and(|at| at.0 >= *sequence).then_some(Delivered::Known))
    }

    /// Buries a version whose container is gone, and nothing that is newer.
    async fn drop_orphan(&self, intent: &Intent) -> Result<Delivered> {
        let Intent { hash, sequence, path, .. } = intent;
        let grave = tombstone(path, *hash, Timestamp(*sequence));
        self.copies.commit(hash, grave, None, Class::Delete).await?;
        Ok(Delivered::Orphan)
    }

    /// An intent of a device of this node is no more.
    pub(crate) async fn settle_intent(&self, device: DeviceId, intent: &Intent) -> Result<()> {
        let Some(replica) = self.replicas().iter().find(|replica| replica.device() == device) else {
            return Ok(());
        };
        let record = settled(&intent.hash, Timestamp(intent.sequence));
        replica.append(vec![record], Durability::Appended, Class::Delete).await
    }
}
