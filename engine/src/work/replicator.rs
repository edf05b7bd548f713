//! Keeps what a device holds equal to what its peers hold, in rounds.
//!
//! | what the device holds | with whom | how |
//! |---|---|---|
//! | partitions of which it is a primary | each other primary, a few pairs at a time | compare; pull what the peer has newer |
//! | all others (handoffs, and what the ring took away) | every primary | page by page: take the tombstone of what is deleted; push what one lacks; evict what all have |
//!
//! A device pulls what it lacks, and its peers pull what they lack: so nothing is copied twice, and each device sets its own pace.
//! A round over equal devices is one question and one answer for each peer. A device that was away first has each of its versions judged
//! ([`crate::sync::judge`]), and is believed only then.
//!
//! Invariant: a copy is evicted only when every primary was seen to have that version or a newer one, in this very step.
//! Invariant: what a primary says is deleted is pushed to no other; the tombstone is kept with it, as whoever knows of it may forget it.
//! Invariant: a pair counts as synced up to a time when a whole comparison found nothing older that differs; nothing is assumed
//! from copies made.
//! Invariant: what is younger than the settling time is left alone: its writer may still be at it.

mod fragments;
mod listed;
mod pages;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) use self::listed::Listed;
use self::pages::Page;
use super::carry::{Carrier, Done, Ring};
use super::pair::{Bounds, PAIRS, Pair, turn};
use super::{Outcome, Progress, Wall, Worker};
use crate::catalog;
use crate::disk::format::record::DeviceId;
use crate::disk::{DiskHandle, TALLY_BITS};
use crate::index::{Range, Table};
use crate::object::{BoxFuture, Error, Replica, Result};
use crate::sync::{self, Answer, Ask, Cluster, Comparison, Listings, Parts, Synced, is_away};

const SECOND: u64 = 1_000_000;

/// How a replicator goes about it.
#[derive(Debug, Clone, Copy)]
pub struct Ages {
    /// Seconds for which tombstones are kept at least.
    pub reclaim: u64,
    /// Seconds after which a write has reached all devices that it will reach by itself.
    pub settle: u64,
}

impl Default for Ages {
    fn default() -> Self {
        Self { reclaim: super::RECLAIM_AGE, settle: 10 }
    }
}

/// The replicator of a device. A unit is 64 KiB copied, or a question.
pub struct Replicator {
    name: String,
    disk: DiskHandle,
    cluster: Arc<dyn Cluster>,
    carrier: Arc<Carrier>,
    synced: Arc<Synced>,
    listings: Arc<dyn Listings>,
    wall: Wall,
    ages: Ages,
    /// By policy.
    views: BTreeMap<u16, View>,
    /// Policies that this pass has still to do, the next one last; none between two passes.
    left: Option<Vec<u16>>,
    /// What became of those that it has done.
    passed: Passed,
    round: Option<Round>,
    progress: Progress,
}

/// What became of the rounds of a pass.
#[derive(Default)]
struct Passed {
    copied: bool,
    failed: Option<String>,
}

/// The device in one policy.
#[derive(Default)]
struct View {
    shares: Shares,
    /// When all that the device held was last judged.
    judged: Option<u64>,
    /// When the device last completed a sync, if it was away since.
    away_since: Option<u64>,
}

/// What a version of the ring says of this device. Parts are those of the sync's questions: the policy's number is in them.
#[derive(Default)]
struct Shares {
    version: u64,
    own: Parts,
    peers: BTreeMap<DeviceId, Parts>,
}

struct Round {
    ring: Ring,
    version: u64,
    bounds: Bounds,
    /// When the device last completed a sync, if it was away since.
    away_since: Option<u64>,
    /// Something could not be judged.
    undecided: bool,
    /// The last comes first.
    tasks: Vec<Task>,
    copied: u64,
    /// Primaries that had no room for what was pushed to them.
    full: BTreeSet<DeviceId>,
    failed: Option<String>,
}

enum Task {
    /// Judge what a partition holds.
    Doubt(Page),
    Pair(Box<Pair>),
    Handoff(Page),
}

impl std::fmt::Debug for Replicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replicator").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Where it is noted when the device was last in sync with a peer; all peers' rows of a policy begin with that of none.
fn peer_row(policy: u16, peer: Option<DeviceId>) -> Vec<u8> {
    let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
    catalog::worker_place(&match policy {
        0 => format!("synced {peer}"),
        policy => format!("synced-in {policy} {peer}"),
    })
}

/// The number of a policy's first partition among the parts that are compared.
fn first_part(policy: u16, power: u8) -> u32 {
    u32::from(policy) << power
}

impl Replicator {
    /// Of a local disk, and the same as a replica. `synced` is shared with the disk's pruner.
    #[must_use]
    pub fn new(
        disk: DiskHandle,
        local: Arc<dyn Replica>,
        cluster: Arc<dyn Cluster>,
        synced: Arc<Synced>,
        listings: Arc<dyn Listings>,
        wall: Wall,
        ages: Ages,
    ) -> Self {
        let name = format!("replicator {}", disk.device());
        let progress = Progress::default();
        let carrier = Arc::new(Carrier::new(disk.clone(), local, cluster.clone()));
        Self {
            name,
            disk,
            cluster,
            carrier,
            synced,
            listings,
            wall,
            ages,
            views: BTreeMap::new(),
            left: None,
            passed: Passed::default(),
            round: None,
            progress,
        }
    }

    async fn replicate(&mut self, budget: u32) -> Result<Outcome> {
        let mut units = 0_u32;
        while units < budget {
            let mut round = match self.round.take() {
                Some(round) if round.version == self.cluster.version(round.ring.policy) => round,
                // The ring has changed: what was found out is no longer what is wanted.
                Some(round) => {
                    self.left.get_or_insert_default().push(round.ring.policy);
                    continue;
                }
                None => match self.next()? {
                    Some(round) => round,
                    None => return Ok(self.pass_ended(units)),
                },
            };
            let Some(task) = round.tasks.pop() else {
                self.end(&round).await?;
                continue;
            };
            let done = match task {
                Task::Doubt(page) => self.doubt(&mut round, page).await,
                Task::Pair(pair) => self.pairs(&mut round, *pair).await,
                Task::Handoff(page) => self.handoff(&mut round, page).await,
            };
            match done {
                Ok(did) => {
                    self.progress.done += 1;
                    self.progress.total = self.progress.done + round.tasks.len() as u64;
                    units = units.saturating_add(did.max(1));
                }
                Err(e) => {
                    units += 1;
                    round.undecided = true;
                    round.failed = Some(e.to_string());
                }
            }
            self.round = Some(round);
        }
        Ok(Outcome::Did(units))
    }

    async fn end(&mut self, round: &Round) -> Result<()> {
        if round.away_since.is_some() && !round.undecided {
            sync::note_return(&self.disk, (self.wall)()).await?;
            tracing::info!(worker = self.name, "the device was away; all that it holds was judged");
            if let Some(view) = self.views.get_mut(&round.ring.policy) {
                view.judged = Some((self.wall)());
            }
            // What it is believed to hold can be compared now.
            self.passed.copied = true;
        }
        self.passed.copied |= round.copied > 0;
        if let Some(why) = &round.failed {
            self.passed.failed = Some(why.clone());
        }
        Ok(())
    }

    fn pass_ended(&mut self, units: u32) -> Outcome {
        self.progress.pass_ended();
        let passed = std::mem::take(&mut self.passed);
        match passed.failed {
            Some(why) => Outcome::Failed(why),
            // What was copied is compared once more at once.
            None if passed.copied => Outcome::Did(units.max(1)),
            None => Outcome::Idle,
        }
    }

    /// The next round of this pass; `None` once at the end of each.
    fn next(&mut self) -> Result<Option<Round>> {
        let left = self.left.get_or_insert_with(|| {
            let mut policies = self.cluster.policies();
            policies.reverse();
            policies
        });
        match left.pop() {
            Some(policy) => self.begin(policy).map(Some),
            None => {
                self.left = None;
                Ok(None)
            }
        }
    }

    /// Sees in which policies the device was away, which must be known of all before it is believed in any.
    fn look(&mut self) -> Result<()> {
        let (now, reclaim) = ((self.wall)(), self.ages.reclaim.saturating_mul(SECOND));
        let policies = self.cluster.policies();
        self.views.retain(|policy, _| policies.contains(policy));
        for policy in policies {
            self.share_out(policy)?;
            let times = self.sync_times(policy)?;
            let Some(view) = self.views.get_mut(&policy) else { continue };
            let judged = view.judged.is_some_and(|judged| now.saturating_sub(judged) < reclaim);
            let away = is_away(now, reclaim, &times) && !judged;
            view.away_since = away.then(|| times.into_iter().max().unwrap_or(0));
        }
        self.disk.believe(self.views.values().all(|view| view.away_since.is_none()));
        Ok(())
    }

    fn begin(&mut self, policy: u16) -> Result<Round> {
        let now = (self.wall)();
        let reclaim = self.ages.reclaim.saturating_mul(SECOND);
        self.look()?;
        let (version, power) = (self.cluster.version(policy), self.cluster.power(policy));
        let away_since = self.views.get(&policy).and_then(|view| view.away_since);
        let mut round = Round {
            ring: Ring { policy, power },
            version,
            bounds: Bounds {
                upto: now.saturating_sub(self.ages.settle.saturating_mul(SECOND)),
                reclaim_before: now.saturating_sub(reclaim),
            },
            away_since,
            undecided: false,
            tasks: Vec::new(),
            copied: 0,
            full: BTreeSet::new(),
            failed: None,
        };
        let held = self.held(policy, power)?;
        self.progress.done = 0;
        let shares = self.views.get(&policy).map(|view| &view.shares);
        if round.away_since.is_some() {
            round.tasks.extend(held.iter().map(Page::of).map(Task::Doubt));
            return Ok(round);
        }
        let passes = self.progress.passes;
        let own = |part: u32| shares.is_some_and(|shares| shares.own.contains(part));
        round.tasks.extend(held.iter().filter(|part| !own(*part)).map(Page::of).map(Task::Handoff));
        for (at, (peer, parts)) in shares.into_iter().flat_map(|shares| &shares.peers).enumerate() {
            let comparison = Comparison::new(power, parts.clone());
            round.tasks.push(Task::Pair(Box::new(Pair::new(
                *peer,
                comparison,
                (at as u64 + passes).is_multiple_of(2),
            ))));
        }
        Ok(round)
    }

    /// Reads from the ring what this device shares with whom, once for each of its versions.
    fn share_out(&mut self, policy: u16) -> Result<()> {
        let (version, power) = (self.cluster.version(policy), self.cluster.power(policy));
        if power > TALLY_BITS {
            let why = format!("rings of more than 2^{TALLY_BITS} partitions are not compared");
            return Err(Error::Refused(why));
        }
        if self.views.get(&policy).is_some_and(|view| view.shares.version == version) {
            return Ok(());
        }
        let mut shares = Shares { version, own: Parts::default(), peers: BTreeMap::new() };
        let me = self.disk.device();
        for partition in 0..1_u32 << power {
            let primaries = self.cluster.primaries(policy, partition);
            let part = first_part(policy, power) + partition;
            if !primaries.contains(&me) {
                continue;
            }
            shares.own.push(part..part + 1);
            for peer in primaries.into_iter().filter(|device| *device != me) {
                shares.peers.entry(peer).or_default().push(part..part + 1);
            }
        }
        self.views.entry(policy).or_default().shares = shares;
        Ok(())
    }

    fn held(&self, policy: u16, power: u8) -> Result<Parts> {
        let (mut all, mut from) = (Parts::default(), first_part(policy, power));
        loop {
            let Answer::Held { parts, next } = sync::answer(&self.disk, &Ask::Held { power, from })? else {
                return Ok(all);
            };
            parts.ranges().iter().for_each(|range| all.push(range.clone()));
            match next {
                Some(next) => from = next,
                None => return Ok(all),
            }
        }
    }

    /// When the device last completed a sync, with each peer of now; with each that ever was when it has none of now.
    fn sync_times(&self, policy: u16) -> Result<Vec<u64>> {
        let index = self.disk.index();
        let prefix = peer_row(policy, None);
        let mut times = Vec::new();
        for pair in index.scan(Table::System, Range::prefix(&prefix)) {
            let (key, value) = pair?;
            let time = value.as_ref().try_into().map_or(0, u64::from_le_bytes);
            times.push((key, time));
        }
        let peers = self.views.get(&policy).into_iter().flat_map(|view| view.shares.peers.keys());
        let rows: Vec<_> = peers.map(|peer| peer_row(policy, Some(*peer))).collect();
        let of_now = |(key, _): &&(Box<[u8]>, u64)| rows.iter().any(|row| **row == **key);
        let current: Vec<u64> = times.iter().filter(of_now).map(|(_, time)| *time).collect();
        Ok(if current.is_empty() { times.into_iter().map(|(_, time)| time).collect() } else { current })
    }

    /// Moves this pair on, and a few that come next with it.
    async fn pairs(&mut self, round: &mut Round, first: Pair) -> Result<u32> {
        let mut pairs = vec![first];
        while pairs.len() < PAIRS
            && let Some(Task::Pair(_)) = round.tasks.last()
            && let Some(Task::Pair(pair)) = round.tasks.pop()
        {
            pairs.push(*pair);
        }
        let turned = turn(&self.carrier, round.ring, round.bounds, pairs).await;
        round.tasks.extend(turned.pairs.into_iter().rev().map(|pair| Task::Pair(Box::new(pair))));
        let units = self.count(round, turned.done);
        for peer in turned.synced {
            self.note_synced(round, peer).await?;
        }
        if let Some(error) = turned.failed {
            round.undecided = true;
            round.failed = Some(error.to_string());
        }
        Ok(units)
    }

    /// Takes note of what was carried; returns its units.
    fn count(&mut self, round: &mut Round, done: Done) -> u32 {
        round.copied += done.copied;
        done.findings.into_iter().for_each(|finding| self.progress.found(finding));
        done.units
    }

    async fn note_synced(&self, round: &Round, peer: DeviceId) -> Result<()> {
        self.synced.note(round.ring.policy, round.version, peer, round.bounds.upto);
        let (key, value) =
            (peer_row(round.ring.policy, Some(peer)), round.bounds.upto.to_le_bytes().to_vec());
        let change = move |tx: &mut crate::disk::catalog::Tx<'_>| {
            tx.put(Table::System, key, value);
            Ok(())
        };
        Ok(self.disk.submit_prune(Box::new(change)).await?)
    }
}

impl Round {
    /// The devices that shall hold a part.
    fn primaries(&self, cluster: &dyn Cluster, part: u32) -> Vec<DeviceId> {
        let Ring { policy, power } = self.ring;
        cluster.primaries(policy, part - first_part(policy, power))
    }
}

impl Worker for Replicator {
    fn name(&self) -> &str {
        &self.name
    }

    fn step(&mut self, budget: u32) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            self.replicate(budget).await.unwrap_or_else(|e| Outcome::Failed(format!("replicate: {e}")))
        })
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}
