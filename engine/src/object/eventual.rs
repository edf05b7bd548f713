//! Eventual containers: their devices say what stands, and the listing follows.
//!
//! | | the group answers | it does not, within [`SOON`] |
//! |---|---|---|
//! | version time | the group's, if it is greater than all that the devices have; else its clock is set and it is asked again | this node's own, greater than all that the devices have |
//! | a change | on a quorum of devices, with an intent | the same |
//! | its line | made at once; where that fails, by the updater | made by the updater |
//! | a read | what the devices have | the same |
//! | a condition | judged by what the devices have, under the group's claim | 503: two nodes could both find that nothing stands |
//! | a change that had one, with its claim lost on the way | 503, and it may stand | the same |
//! | a change that had none, the same | done, as it is on its devices | the same |
//!
//! Invariant: every version and tombstone that is written into an eventual container has an intent in its record, so in the same
//! batch and flush; whatever becomes of the writer, an updater finds it.
//! Invariant: the last writer wins by version time, on every device alike; a change that began after another was acknowledged
//! has a greater time, as far as a look at the devices can tell ([`super::agreed`]).
//! Invariant: a version counts if it was written into this container, or after it was made; one without an intent is from the
//! time when the container was strict, and counts by its line.
//! Invariant: a line is only ever made of the newest version on the devices, and after that is on a quorum of them; so an intent
//! that is delivered twice, late, or out of order changes nothing.
//! Invariant: a policy of fragments is never eventual: only the line names a body there.

use std::sync::Arc;
use std::time::Duration;

use super::copies::Copies;
use super::kept::{Kept, standing_of};
use super::launch::wait;
use super::limits::{AWAY, SOON};
use super::names::{Answer, Ask, Grant, Hold, Line, Names, NewLine, Standing};
use super::replica::BoxFuture;
use super::sight::{Found, Open};
use super::store::{Inner, key_of};
use super::{Account, Container, Error, IndexPolicy, ObjectPath, Result};
use crate::catalog::{Stamp, Version};
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::net::first;

/// Times that a name is looked at again because it was changed in the middle of a look.
const LOOKS: u32 = 32;

/// What a group said, or that it is away and can be done without.
pub(crate) enum Soon<T> {
    Said(T),
    Away(Standing),
}

/// What the devices have of a name.
pub(crate) struct Seen {
    /// The newest, whether it counts or not.
    pub(crate) newest: Option<Stamp>,
    /// The version that stands.
    pub(crate) open: Option<Box<Open>>,
    /// A version from the time when the container was strict, newer than its line: nobody acknowledged it, or it is just being.
    pub(crate) unlisted: Option<u64>,
}

/// What came of a look at the devices.
pub(crate) struct Looked {
    pub(crate) seen: Seen,
    /// Why the newest version could not be opened.
    pub(crate) lost: Option<Error>,
}

impl From<Seen> for Looked {
    fn from(seen: Seen) -> Self {
        Self { seen, lost: None }
    }
}

impl Seen {
    /// Greater than this must be the time of whatever comes next.
    pub(crate) fn floor(&self) -> Timestamp {
        Timestamp(self.newest.map_or(0, |stamp| stamp.sequence))
    }

    /// What stands, without its place.
    pub(crate) fn version(&self) -> Option<Version> {
        let info = &self.open.as_ref()?.meta.info;
        Some(Version { sequence: info.timestamp.0, deleted: false, delete_at: info.delete_at })
    }
}

fn busy() -> Error {
    Error::Unavailable { reason: "the object is being changed again and again".to_owned() }
}

impl Inner {
    pub(crate) fn is_eventual(&self, standing: &Standing) -> bool {
        standing.index == IndexPolicy::Eventual
            && self.names.lines_count()
            && self.policies().code(standing.policy).is_none()
    }

    /// The container of a line, if it is eventual.
    pub(crate) fn eventual_of(&self, line: &Line) -> Option<Standing> {
        line.container.filter(|standing| self.is_eventual(standing))
    }

    fn now(&self) -> Duration {
        self.copies.time.as_ref().map_or(Duration::ZERO, |time| (time.now)())
    }

    /// Asks the group, and does not wait for long where the container is known to be eventual.
    pub(crate) async fn soon<T>(
        &self,
        account: &str,
        container: &str,
        asked: BoxFuture<'_, Result<T>>,
    ) -> Result<Soon<T>> {
        let Some(standing) = self.kept.standing(account, container) else {
            return match asked.await {
                Err(error @ Error::Unavailable { .. }) => {
                    let recalled = self.recall(account, container);
                    recalled.map(Soon::Away).ok_or(error)
                }
                said => said.map(Soon::Said),
            };
        };
        if self.kept.is_away(account, self.now()) {
            return Ok(Soon::Away(standing));
        }
        match first(asked, wait(self.copies.time.as_ref(), SOON)).await {
            None | Some(Err(Error::Unavailable { .. })) => {
                self.kept.away(account, self.now() + AWAY);
                Ok(Soon::Away(standing))
            }
            Some(said) => said.map(Soon::Said),
        }
    }

    /// What this node's own rows say of a container and its account, if it is eventual; so a node that was just started knows, too.
    fn recall(&self, account: &str, container: &str) -> Option<Standing> {
        let (account, container) = (account.to_owned(), container.to_owned());
        let ask = Ask::Container { account: account.clone(), container: container.clone() };
        let Some(Answer::Container(found)) = self.names.remembered(ask) else { return None };
        let eventual = |found: &&Container| self.is_eventual(&standing_of(found));
        self.kept.learn_facts(&account, &container, found.as_ref().filter(eventual));
        let standing = self.kept.standing(&account, &container);
        if standing.is_some() {
            if let Some(Answer::Account(found)) =
                self.names.remembered(Ask::Account { account: account.clone() })
            {
                self.kept.learn_account(&account, found.as_ref());
            }
            self.kept.away(&account, self.now() + AWAY);
        }
        standing
    }

    pub(crate) fn learn(&self, path: &ObjectPath, line: &Line) {
        self.kept.learn(&path.account, &path.container, self.eventual_of(line));
    }

    /// What stands of a name, without a long wait where it can be done without.
    pub(crate) async fn line_soon(&self, path: &ObjectPath) -> Result<Soon<Line>> {
        let said = self.soon(&path.account, &path.container, Box::pin(self.line(path))).await?;
        if let Soon::Said(line) = &said {
            self.learn(path, line);
        }
        Ok(said)
    }

    /// The container of a name: from its group, or as it was last known.
    pub(crate) async fn standing_soon(&self, path: &ObjectPath) -> Result<Option<Standing>> {
        Ok(match self.line_soon(path).await? {
            Soon::Said(line) => line.container,
            Soon::Away(standing) => Some(standing),
        })
    }

    /// A container: of an eventual one, while its group is away, what was last known.
    pub(crate) async fn container_soon(&self, account: &str, container: &str) -> Result<Option<Container>> {
        match self.soon(account, container, Box::pin(self.container(account, container))).await? {
            Soon::Said(found) => {
                let eventual = |found: &&Container| self.is_eventual(&standing_of(found));
                self.kept.learn_facts(account, container, found.as_ref().filter(eventual));
                Ok(found)
            }
            Soon::Away(_) => {
                let unknown = || Error::Unavailable { reason: "the container's group is away".to_owned() };
                self.kept
                    .facts(account, container)
                    .or_else(|| {
                        self.recall(account, container)?;
                        self.kept.facts(account, container)
                    })
                    .ok_or_else(unknown)
                    .map(Some)
            }
        }
    }

    /// An account: where it has eventual containers, while its group is away, what was last known.
    pub(crate) async fn account_soon(&self, account: &str) -> Result<Option<Account>> {
        let asked = self.account(account);
        if !self.kept.has(account) {
            return asked.await;
        }
        let said = if self.kept.is_away(account, self.now()) {
            None
        } else {
            first(Box::pin(asked), wait(self.copies.time.as_ref(), SOON)).await
        };
        match said {
            None | Some(Err(Error::Unavailable { .. })) => {
                self.kept.away(account, self.now() + AWAY);
                let unknown = || Error::Unavailable { reason: "the account's group is away".to_owned() };
                self.kept.account(account).ok_or_else(unknown).map(Some)
            }
            Some(said) => {
                let found = said?;
                self.kept.learn_account(account, found.as_ref());
                Ok(found)
            }
        }
    }
}

impl Inner {
    /// What the devices have of a name. `line`: what its group says, if it is known.
    pub(crate) async fn seen(
        &self,
        path: &ObjectPath,
        standing: Standing,
        line: Option<&Line>,
    ) -> Result<Seen> {
        let Looked { seen, lost } = self.look_for(path, standing, line).await?;
        lost.map_or(Ok(seen), Err)
    }

    /// The same where enough devices were heard and none has what they or the line say that there is: for whoever only needs to know of it.
    pub(crate) async fn look_for(
        &self,
        path: &ObjectPath,
        standing: Standing,
        line: Option<&Line>,
    ) -> Result<Looked> {
        let hash = key_of(path, standing.policy, None);
        for _ in 0..LOOKS {
            let newest = self.copies.agreed(hash, self.clock.unix_seconds()).await?;
            // What a line says is on a quorum: who hears of less takes the devices that have it to be down.
            let listed = line.and_then(|line| line.at);
            let newest = newest.max(listed.map(|at| Stamp { hash, sequence: at.0, deleted: false }));
            let mut seen = Seen { newest, open: None, unlisted: None };
            let Some(stamp) = newest.filter(|stamp| !stamp.deleted) else { return Ok(seen.into()) };
            let open = match self.copies.open(path, hash, Some(Timestamp(stamp.sequence))).await {
                Err(error @ Error::Unavailable { .. }) => return Ok(Looked { seen, lost: Some(error) }),
                found => found?.found,
            };
            let Found::Version(open) = open else { continue };
            if open.ahead {
                continue;
            }
            let at = open.meta.info.timestamp;
            match open.meta.intent {
                Some(container) if container == standing.id || at.0 > standing.id => seen.open = Some(open),
                Some(_) => {}
                None => match line.map(|line| line.at) {
                    Some(None) => {}
                    Some(Some(listed)) if listed < at => seen.unlisted = Some(at.0),
                    Some(Some(_)) | None => seen.open = Some(open),
                },
            }
            return Ok(seen.into());
        }
        Err(busy())
    }

    /// What makes the line of a change in an eventual container, if it is one.
    pub(crate) fn lister(&self, grant: &Grant) -> Option<Lister> {
        self.eventual_of(&grant.line)?;
        let (names, copies, kept) = (Arc::clone(&self.names), self.copies.clone(), Arc::clone(&self.kept));
        Some(Lister { names, copies, kept })
    }
}

/// Of a change that is on its devices: to try it again would be to judge it by itself.
fn stands(error: Error) -> Error {
    match error {
        Error::GrantLost { .. } => Error::GrantLost { unused: false },
        other => other,
    }
}

/// Makes lines of changes that are on their devices already.
pub(crate) struct Lister {
    names: Arc<dyn Names>,
    copies: Arc<Copies>,
    kept: Arc<Kept>,
}

impl Lister {
    /// Makes the line if that goes soon. If not, the change stands all the same: an updater will find its intent. Of one with a condition
    /// nobody can tell then.
    pub(crate) async fn list(
        self,
        hash: quarry_ring::PathHash,
        grant: Grant,
        line: NewLine,
        class: Class,
    ) -> Result<()> {
        if matches!(grant.hold, Hold::Alone) {
            return Ok(());
        }
        let (account, at) = (grant.path.account.clone(), grant.at);
        let conditional = line.conditional;
        let settle = self.names.settle(grant, line, class);
        if conditional {
            // Only its line says that the claim held until then: else another may have found the same as this one.
            settle.await.map_err(stands)?;
            self.copies.settled(hash, at);
            return Ok(());
        }
        let time = self.copies.time.as_ref();
        match first(settle, wait(time, SOON)).await {
            Some(Ok(())) => self.copies.settled(hash, at),
            Some(Err(Error::GrantLost { .. })) => {}
            None | Some(Err(Error::Unavailable { .. })) => {
                let now = time.map_or(Duration::ZERO, |time| (time.now)());
                self.kept.away(&account, now + AWAY);
            }
            Some(Err(error)) => return Err(error),
        }
        Ok(())
    }
}
