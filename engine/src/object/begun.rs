//! The right to change an object: who gives it, and what is judged before it is used.
//!
//! Invariant: what is decided about an object is decided on the version that was acknowledged last: in a strict container the one that
//! its line tells of, in an eventual one the newest on its devices.
//! Invariant: the version time of a change is greater than that of every version that was acknowledged before.

use super::condition::{Needs, holds, needs};
use super::eventual::{Looked, Seen, Soon};
use super::names::{Grant, Hold, Line, Standing};
use super::objects::{LOOKS, ahead, busy};
use super::sight::Open;
use super::store::{Inner, hash_of};
use super::{Condition, Error, ObjectPath, Result};
use crate::catalog::{PathHash, Version};
use crate::clock::Timestamp;

/// The right to change an object, and what was seen on the way to it.
pub(crate) struct Begun {
    pub(crate) grant: Grant,
    /// What stands, where it was looked for.
    pub(crate) version: Option<Version>,
    /// The same in an eventual container.
    pub(crate) seen: Option<Seen>,
    /// Why what the line tells of was not found, where it was looked for and was not.
    pub(crate) lost: Option<Error>,
}

impl Inner {
    /// The right to decide about a name by what stands there: the version that its line tells of. One that is newer and that
    /// nobody acknowledged is made whole first: else a decision by it would be told, and the version never seen again.
    pub(crate) async fn begin(
        &self,
        path: &ObjectPath,
        given: Option<Timestamp>,
        waits: bool,
    ) -> Result<Begun> {
        let begun = self.begin_or_lost(path, given, waits).await?;
        begun.lost.map_or(Ok(Begun { lost: None, ..begun }), Err)
    }

    /// The same where no device that can be reached has what the line tells of, with its loss.
    pub(crate) async fn begin_or_lost(
        &self,
        path: &ObjectPath,
        given: Option<Timestamp>,
        waits: bool,
    ) -> Result<Begun> {
        for _ in 0..LOOKS {
            let grant = match self.begin_unseen(path, given, waits).await? {
                Begun { grant, seen: None, .. } => grant,
                seen => return Ok(seen),
            };
            let (version, lost) = match self.standing_version(path, &grant.line, given.is_some()).await {
                Err(error @ Error::Unavailable { .. }) if grant.line.at.is_some() => (None, Some(error)),
                found => (found?, None),
            };
            match version.filter(|version| ahead(&grant.line, version.sequence)) {
                None => return Ok(Begun { grant, version, seen: None, lost }),
                Some(newer) => {
                    drop(grant);
                    self.relist(path, newer.sequence).await?;
                }
            }
        }
        Err(busy())
    }

    /// The right to decide about a name, whatever stands there. In an eventual container that is looked for all the same. `waits`:
    /// the group must give it, however long that takes.
    pub(crate) async fn begin_unseen(
        &self,
        path: &ObjectPath,
        given: Option<Timestamp>,
        waits: bool,
    ) -> Result<Begun> {
        for _ in 0..LOOKS {
            let grant = match self.grant(path, given, waits).await? {
                Soon::Said(grant) => grant,
                Soon::Away(standing) => return Box::pin(self.begin_alone(path, standing, given)).await,
            };
            let Some(standing) = self.eventual_of(&grant.line) else {
                return Ok(Begun { grant, version: None, seen: None, lost: None });
            };
            // On the heap: few need it, and what lies in a future is in all that wait for it.
            if let Some(begun) = Box::pin(self.begun_by(path, grant, standing, given)).await? {
                return Ok(begun);
            }
        }
        Err(busy())
    }

    /// Judges a change of an object under its claim. `line` is what stands, where lines count.
    pub(crate) async fn judge_change(
        &self,
        path: &ObjectPath,
        begun: &Begun,
        condition: &Condition,
        timestamp: Option<Timestamp>,
    ) -> Result<()> {
        let (needs, line) = (needs(condition), &begun.grant.line);
        if needs == Needs::Nothing && timestamp.is_none() {
            return Ok(());
        }
        if let Some(seen) = &begun.seen {
            if begun.lost.is_some() && needs != Needs::Nothing {
                return Err(Error::Unavailable {
                    reason: "what the condition is about cannot be reached".to_owned(),
                });
            }
            return self.judge_seen(seen, condition);
        }
        let version = self.standing_version(path, line, timestamp.is_some()).await?;
        if version.is_some_and(|version| ahead(line, version.sequence)) {
            return Err(busy());
        }
        if timestamp.zip(version).is_some_and(|(ours, standing)| ours.0 <= standing.sequence) {
            return Err(Error::Superseded);
        }
        let now = self.clock.unix_seconds();
        let stands = version.is_some_and(|v| !v.deleted && v.delete_at.is_none_or(|at| at > now));
        let etag = match needs {
            Needs::Etag if stands => {
                let hash = self.key(path, line).unwrap_or_else(|| hash_of(path));
                match self.open_version(path, hash, line.at).await? {
                    Some(open) if !open.ahead => Some(hex::encode(open.meta.info.md5)),
                    _ => return Err(busy()),
                }
            }
            _ => stands.then(String::new),
        };
        if holds(condition, etag.as_deref()) { Ok(()) } else { Err(Error::ConditionFailed) }
    }

    /// The same by what the devices have.
    fn judge_seen(&self, seen: &Seen, condition: &Condition) -> Result<()> {
        let info = seen.open.as_ref().map(|open| &open.meta.info);
        let now = self.clock.unix_seconds();
        let stands = info.filter(|info| info.delete_at.is_none_or(|at| at > now));
        let etag = stands.map(|info| hex::encode(info.md5));
        if holds(condition, etag.as_deref()) { Ok(()) } else { Err(Error::ConditionFailed) }
    }

    /// The version that a line tells of, open, or why there is none.
    pub(crate) async fn standing_open(&self, path: &ObjectPath, hash: PathHash, line: &Line) -> Result<Open> {
        if self.line_counts(line) && line.at.is_none() {
            return Err(Error::NoObject);
        }
        let gone = || if line.at.is_some() { busy() } else { Error::NoObject };
        self.open_version(path, hash, line.at).await?.ok_or_else(gone)
    }

    /// The version that stands under a claim; `graves`: tombstones too, where the line alone does not tell.
    async fn standing_version(
        &self,
        path: &ObjectPath,
        line: &Line,
        graves: bool,
    ) -> Result<Option<Version>> {
        if self.line_counts(line) && line.at.is_none() && !graves {
            return Ok(None);
        }
        self.version(path, line, line.at).await
    }
}

impl Inner {
    /// Whether a group's grant is later than all that the devices have; `None`: the name is to be asked for again.
    pub(crate) async fn begun_by(
        &self,
        path: &ObjectPath,
        grant: Grant,
        standing: Standing,
        given: Option<Timestamp>,
    ) -> Result<Option<Begun>> {
        let Looked { seen, lost } = self.look_for(path, standing, Some(&grant.line)).await?;
        if let Some(newer) = seen.unlisted {
            drop(grant);
            self.relist(path, newer).await?;
            return Ok(None);
        }
        let floor = seen.floor();
        if floor < grant.at {
            return Ok(Some(Begun { grant, version: seen.version(), seen: Some(seen), lost }));
        }
        if given.is_some() {
            return Err(Error::Superseded);
        }
        drop(grant);
        self.pass(path, floor).await?;
        Ok(None)
    }

    /// From here on the group gives this name times that are greater.
    async fn pass(&self, path: &ObjectPath, at: Timestamp) -> Result<()> {
        self.names.begin(path.clone(), Some(at)).await.map(drop)
    }

    /// The right to change an object of an eventual container whose group is away: nobody gives it, and nobody else is kept away.
    pub(crate) async fn begin_alone(
        &self,
        path: &ObjectPath,
        standing: Standing,
        given: Option<Timestamp>,
    ) -> Result<Begun> {
        let seen = self.seen(path, standing, None).await?;
        let floor = seen.floor();
        if given.is_some_and(|given| given <= floor) {
            return Err(Error::Superseded);
        }
        self.clock.observe(floor.max(Timestamp(standing.id)));
        self.kept.count_alone();
        let mark = || blake3::hash(&self.home().0).as_bytes()[0];
        let at = given.unwrap_or_else(|| self.kept.time(&self.clock, mark()));
        let line = Line { container: Some(standing), at: None, key: None };
        let grant = Grant { path: path.clone(), line, at, group: 0, hold: Hold::Alone };
        Ok(Begun { grant, version: seen.version(), seen: Some(seen), lost: None })
    }

    /// A grant of whoever decides. `waits`: also for a group that is away.
    pub(crate) async fn grant(
        &self,
        path: &ObjectPath,
        given: Option<Timestamp>,
        waits: bool,
    ) -> Result<Soon<Grant>> {
        let asked = self.names.begin(path.clone(), given);
        let said = if waits {
            Soon::Said(asked.await?)
        } else {
            self.soon(&path.account, &path.container, asked).await?
        };
        if let Soon::Said(grant) = &said {
            self.learn(path, &grant.line);
        }
        Ok(said)
    }
}
