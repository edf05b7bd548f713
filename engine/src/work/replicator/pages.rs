//! What a device holds of a partition, page by page: handed off to its primaries, or judged after the device was away.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures_util::future::join_all;
use quarry_ring::PathHash;

use super::{Replicator, Round, Task};
use crate::catalog::{Stamp, Stamps};
use crate::disk::format::record::DeviceId;
use crate::object::{Error, Replica, Result};
use crate::sync::{self, Answer, Ask, Judgement, judge};
use crate::work::carry::Way;
use crate::work::pair::Bounds;

/// Versions looked at in one go.
const PAGE: u32 = 256;
/// Lines that are asked for together.
const TOGETHER: usize = 64;
/// Times that a page of handoffs is looked at again because something had to be carried.
const ATTEMPTS: u32 = 3;

/// Where in a partition.
#[derive(Clone, Copy)]
pub(super) struct Page {
    part: u32,
    after: Option<PathHash>,
    attempts: u32,
}

impl Page {
    pub(super) fn of(part: u32) -> Self {
        Self { part, after: None, attempts: 0 }
    }

    /// The page behind this one, if there is one.
    fn next(self, page: &Stamps) -> Option<Self> {
        page.upto.filter(|_| page.more).map(|upto| Self { after: Some(upto), attempts: 0, ..self })
    }
}
/// Whether a device that holds `theirs` needs nothing of `own`.
fn has(own: &Stamp, theirs: Option<&Stamp>, reclaim_before: u64) -> bool {
    match theirs {
        Some(theirs) => theirs >= own,
        // It has pruned it, or never had what it deleted.
        None => own.deleted && own.sequence < reclaim_before,
    }
}

/// Another device, and what it has of a page.
pub(super) type Known = (Arc<dyn Replica>, BTreeMap<PathHash, Stamp>);

/// Who knows that a version is deleted, and the newest tombstone that says so.
fn deletion(own: &Stamp, known: &[Known]) -> Option<(Arc<dyn Replica>, Stamp)> {
    let of = |theirs: &BTreeMap<_, Stamp>| theirs.get(&own.hash).copied();
    let newer = |theirs: &Stamp| !own.deleted && theirs.deleted && theirs > own;
    let tombstones = known.iter().filter_map(|(device, theirs)| Some((device, of(theirs).filter(newer)?)));
    let (device, tombstone) = tombstones.max_by_key(|(_, tombstone)| *tombstone)?;
    Some((Arc::clone(device), tombstone))
}
impl Replicator {
    fn page(&self, power: u8, page: Page) -> Result<Stamps> {
        let Page { part, after, .. } = page;
        let ask = Ask::Stamps { power, part, after, limit: PAGE, doubt: true };
        match sync::answer(&self.disk, &ask)? {
            Answer::Stamps(stamps) => Ok(stamps),
            _ => Ok(Stamps::default()),
        }
    }

    /// What another device has of a page of ours.
    async fn theirs(
        &self,
        power: u8,
        page: Page,
        ours: &Stamps,
        device: DeviceId,
        doubt: bool,
    ) -> Result<Known> {
        let replica = self.carrier.reach(device)?;
        let (mut theirs, mut after) = (BTreeMap::new(), page.after);
        let last = ours.stamps.last().map(|stamp| stamp.hash);
        loop {
            let limit = u32::try_from(sync::MAX_STAMPS).unwrap_or(u32::MAX);
            let ask = Ask::Stamps { power, part: page.part, after, limit, doubt };
            let Answer::Stamps(stamps) = replica.ask(ask).await? else {
                return Err(Error::Unavailable { reason: "the peer answered another question".to_owned() });
            };
            theirs.extend(stamps.stamps.iter().map(|stamp| (stamp.hash, *stamp)));
            if !stamps.more || stamps.upto >= last {
                return Ok((replica, theirs));
            }
            if stamps.upto <= after {
                return Err(Error::Unavailable { reason: "the peer's list does not get on".to_owned() });
            }
            after = stamps.upto;
        }
    }

    /// Gives the primaries what they lack of a page that they shall hold and this device shall not; what all have goes from here.
    pub(super) async fn handoff(&mut self, round: &mut Round, page: Page) -> Result<u32> {
        let primaries = round.primaries(self.cluster.as_ref(), page.part);
        if primaries.is_empty() {
            return Err(Error::Unavailable { reason: "no device shall hold this partition".to_owned() });
        }
        if primaries.contains(&self.disk.device()) {
            // The ring has changed under this step: it is no handoff any more.
            return Ok(1);
        }
        let ours = self.page(round.ring.power, page)?;
        let next = page.next(&ours);
        let Bounds { upto, reclaim_before } = round.bounds;
        let settled: Vec<Stamp> =
            ours.stamps.iter().filter(|stamp| stamp.sequence <= upto).copied().collect();
        let (mut away, mut known) = (None, Vec::new());
        for device in primaries {
            match self.theirs(round.ring.power, page, &ours, device, false).await {
                Ok(theirs) => known.push(theirs),
                // The others get theirs all the same.
                Err(e) => away = Some(e),
            }
        }
        let (mut deleted, mut pushed, mut lacking) = (Vec::new(), Vec::new(), HashSet::new());
        for stamp in &settled {
            if let Some((primary, tombstone)) = deletion(stamp, &known).filter(|(_, it)| it.sequence <= upto)
            {
                lacking.insert(stamp.hash);
                deleted.push((Way::Pull(primary), tombstone));
                continue;
            }
            for (primary, theirs) in &known {
                if !has(stamp, theirs.get(&stamp.hash), reclaim_before) {
                    lacking.insert(stamp.hash);
                    // One that has no room is asked again in the next round; deletions it always takes.
                    if stamp.deleted || !round.full.contains(&primary.device()) {
                        pushed.push((Way::Push(Arc::clone(primary)), *stamp));
                    }
                }
            }
        }
        let everywhere = away.is_none();
        round.failed = away.map(|e| e.to_string()).or(round.failed.take());
        let tried = !deleted.is_empty() || !pushed.is_empty();
        let deleted = self.carrier.carry_all(round.ring, deleted).await;
        let pushed = self.carrier.carry_all(round.ring, pushed).await;
        let (not_kept, moved) = (pushed.done.copied, deleted.done.copied + pushed.done.copied > 0);
        let failed = pushed.failed.or(deleted.failed);
        let stuck = !tried || failed.is_some() && !moved;
        if let Some(error) = failed {
            // It is tried again in the next round. Neither the others nor the pages behind this one wait for it.
            round.failed = Some(error.to_string());
        }
        round.full.extend(pushed.full);
        let units =
            self.count(round, deleted.done).saturating_add(self.count(round, pushed.done)).saturating_add(1);
        if !lacking.is_empty() && !stuck && page.attempts < ATTEMPTS {
            // What was pushed is looked for before anything goes.
            round.tasks.push(Task::Handoff(Page { attempts: page.attempts + 1, ..page }));
            return Ok(units);
        }
        if not_kept > 0 {
            // To push it again at once would go on for ever.
            round.failed = Some(format!("{not_kept} versions are pushed to primaries that do not keep them"));
        }
        if everywhere {
            // What a primary cannot be given stays here, and nothing else because of it.
            let settled: Vec<Stamp> =
                settled.into_iter().filter(|stamp| !lacking.contains(&stamp.hash)).collect();
            let settled = self.without_sole_fragments(round, settled, &known).await;
            sync::evict(&self.disk, &settled).await?;
        }
        round.tasks.extend(next.map(Task::Handoff));
        Ok(units)
    }

    /// Those of these versions that no listing names. While an index group does not answer the device stays unbelieved, and if that one is
    /// dead for good, for ever: what cannot be judged is kept, and may not be believed ([`crate::sync::judge`] says why).
    async fn not_listed(&self, round: &mut Round, doubtful: &[Stamp]) -> Vec<Stamp> {
        let mut gone = Vec::new();
        for some in doubtful.chunks(TOGETHER) {
            let answers = join_all(some.iter().map(|stamp| self.listings.may_stand(*stamp))).await;
            for (stamp, answer) in some.iter().zip(answers) {
                match answer {
                    Ok(true) => {}
                    Ok(false) => gone.push(*stamp),
                    Err(e) => {
                        round.undecided = true;
                        let reason = "a device that was away cannot be judged: what is listed is not known";
                        round.failed = Some(format!("{reason}: {e}"));
                    }
                }
            }
        }
        gone
    }

    /// Judges a page of a device that was away.
    pub(super) async fn doubt(&mut self, round: &mut Round, page: Page) -> Result<u32> {
        let ours = self.page(round.ring.power, page)?;
        let me = self.disk.device();
        let (mut known, mut silent) = (Vec::new(), 0);
        let primaries = round.primaries(self.cluster.as_ref(), page.part);
        for device in primaries.into_iter().filter(|device| *device != me) {
            match self.theirs(round.ring.power, page, &ours, device, true).await {
                Ok(theirs) => known.push(theirs),
                Err(_) => silent += 1,
            }
        }
        let last_sync = round.away_since.unwrap_or(0);
        let (mut doubtful, mut deleted) = (Vec::new(), Vec::new());
        for stamp in &ours.stamps {
            // Once it is believed, whoever knows of the deletion may forget it.
            deleted.extend(deletion(stamp, &known).map(|(primary, it)| (Way::Pull(primary), it)));
            let told = known.iter().map(|(_, theirs)| Some(theirs.get(&stamp.hash).copied()));
            let others: Vec<_> = told.chain(std::iter::repeat_n(None, silent)).collect();
            match judge(*stamp, last_sync, &others) {
                Judgement::Ask => doubtful.push(*stamp),
                Judgement::Wait => {
                    round.undecided = true;
                    let reason = "a device that was away cannot be judged: a primary does not answer";
                    round.failed = Some(reason.to_owned());
                }
                Judgement::Keep | Judgement::Believe => {}
            }
        }
        let dropped = self.not_listed(round, &doubtful).await;
        if !dropped.is_empty() {
            self.progress.found(format!("{} versions were deleted while the device was away", dropped.len()));
            sync::evict(&self.disk, &dropped).await?;
        }
        let carried = self.carrier.carry_all(round.ring, deleted).await;
        if let Some(error) = carried.failed {
            // All is judged again in the next round; the pages behind this one do not wait for it.
            round.undecided = true;
            round.failed = Some(error.to_string());
        }
        let units = self.count(round, carried.done).saturating_add(1);
        round.tasks.extend(page.next(&ours).map(Task::Doubt));
        Ok(units)
    }
}
