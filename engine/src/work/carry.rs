//! Carries versions between a device and its peers for the replicator, several at a time.
//!
//! Several, because each waits for a peer and for a flush: a lost device is filled by all its peers together, and what arrives
//! together is flushed together.
//!
//! Invariant: at most [`MOST`] versions are on their way at a time, of them [`LARGE`] whose bodies come in pieces, so memory is
//! bounded whatever differs.
//! Invariant: what cannot be read on one side is a finding, and ends nothing.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quarry_ring::partition_of;
use tokio::sync::Semaphore;

use crate::catalog::{Stamp, Version};
use crate::disk::DiskHandle;
use crate::disk::format::record::DeviceId;
use crate::object::{BoxFuture, Error, Remade, Replica, Result, Wanted, remake, renumber};
use crate::sync::{self, Cluster, Copied, CopyError, Side};

/// Versions on their way at a time. Each waits for a peer and for a flush, which they share.
pub(super) const MOST: usize = 32;
/// Bodies in pieces, or in fragments, on their way at a time: each has a few pieces in memory.
pub(super) const LARGE: usize = 4;
/// Bytes of a unit.
const UNIT: u64 = 64 << 10;

/// A policy and its partitions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ring {
    pub(super) policy: u16,
    pub(super) power: u8,
}

/// Where a version is carried.
#[derive(Clone)]
pub(super) enum Way {
    /// From a peer.
    Pull(Arc<dyn Replica>),
    /// To a primary.
    Push(Arc<dyn Replica>),
}

/// What carrying came to.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Units of work.
    pub(super) units: u32,
    /// Versions that were written.
    pub(super) copied: u64,
    /// What was found wrong.
    pub(super) findings: Vec<String>,
}

/// What carrying several came to.
#[derive(Debug, Default)]
pub(super) struct Carried {
    pub(super) done: Done,
    /// Why the first of those failed that did.
    pub(super) failed: Option<Error>,
    /// Primaries that have no room.
    pub(super) full: Vec<DeviceId>,
}

impl Done {
    pub(super) fn bytes(bytes: u64) -> Self {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).saturating_add(1);
        Self { units, copied: 1, findings: Vec::new() }
    }

    fn nothing() -> Self {
        Self { units: 1, ..Self::default() }
    }

    fn found(what: String) -> Self {
        Self { units: 1, copied: 0, findings: vec![what] }
    }

    /// Adds what something else came to.
    pub(super) fn add(&mut self, other: Self) {
        self.units = self.units.saturating_add(other.units);
        self.copied += other.copied;
        self.findings.extend(other.findings);
    }
}

/// A device and the cluster around it.
pub(super) struct Carrier {
    pub(super) disk: DiskHandle,
    pub(super) local: Arc<dyn Replica>,
    pub(super) cluster: Arc<dyn Cluster>,
    large: Semaphore,
}

/// Whether a device that has `standing` needs nothing of a version.
fn has(standing: Option<Version>, stamp: &Stamp) -> bool {
    standing.is_some_and(|there| (there.sequence, there.deleted) >= (stamp.sequence, stamp.deleted))
}

impl Carrier {
    pub(super) fn new(disk: DiskHandle, local: Arc<dyn Replica>, cluster: Arc<dyn Cluster>) -> Self {
        Self { disk, local, cluster, large: Semaphore::new(LARGE) }
    }

    /// A device that can be reached, as far as is known.
    pub(super) fn reach(&self, device: DeviceId) -> Result<Arc<dyn Replica>> {
        let away = || Error::Unavailable { reason: format!("device {device} is not reached") };
        self.cluster.replica(device).ok_or_else(away)
    }

    /// Carries one version.
    pub(super) fn carry(
        self: &Arc<Self>,
        ring: Ring,
        way: Way,
        stamp: Stamp,
    ) -> BoxFuture<'static, Result<Done>> {
        let carrier = self.clone();
        Box::pin(async move {
            match way {
                Way::Pull(peer) => carrier.pull(ring, peer.as_ref(), stamp).await,
                Way::Push(primary) => carrier.push(ring, primary.as_ref(), stamp).await,
            }
        })
    }

    /// Carries all of these, whatever becomes of the others.
    pub(super) async fn carry_all(self: &Arc<Self>, ring: Ring, all: Vec<(Way, Stamp)>) -> Carried {
        let mut carried = Carried::default();
        let mut running = FuturesUnordered::new();
        let mut all = all.into_iter();
        loop {
            while running.len() < MOST
                && let Some((way, stamp)) = all.next()
            {
                let to = match &way {
                    Way::Push(primary) => Some(primary.device()),
                    Way::Pull(_) => None,
                };
                let work = self.carry(ring, way, stamp);
                running.push(async move { (to, work.await) });
            }
            match running.next().await {
                Some((_, Ok(one))) => carried.done.add(one),
                Some((to, Err(error))) => {
                    let full = matches!(error, Error::NoSpace);
                    carried.full.extend(to.filter(|to| full && !carried.full.contains(to)));
                    carried.failed = carried.failed.or(Some(error));
                }
                None => return carried,
            }
        }
    }

    async fn pull(&self, ring: Ring, peer: &dyn Replica, stamp: Stamp) -> Result<Done> {
        // Another peer may have given it meanwhile.
        if has(self.local.version(stamp.hash).await?, &stamp) {
            return Ok(Done::nothing());
        }
        match sync::copy(peer, self.local.as_ref(), stamp, &self.large).await {
            Ok(copied) => self.copied(ring, copied, stamp, self.local.as_ref(), false).await,
            Err(CopyError { side: Side::From, error: error @ Error::Corrupt { .. } }) => {
                Ok(Done::found(format!("device {}: {error}", peer.device())))
            }
            Err(e) => Err(e.error),
        }
    }

    /// What cannot be read here is mended from a primary, if one has it.
    async fn push(&self, ring: Ring, primary: &dyn Replica, stamp: Stamp) -> Result<Done> {
        match sync::copy(self.local.as_ref(), primary, stamp, &self.large).await {
            Ok(copied) => self.copied(ring, copied, stamp, primary, true).await,
            Err(CopyError { side: Side::From, error: error @ Error::Corrupt { .. } }) => {
                for other in self.primaries(ring, &stamp) {
                    let Ok(other) = self.reach(other) else { continue };
                    if sync::mend(&self.disk, other.as_ref(), stamp).await.unwrap_or(false) {
                        break;
                    }
                }
                Ok(Done::found(error.to_string()))
            }
            Err(e) => Err(e.error),
        }
    }

    async fn copied(
        &self,
        ring: Ring,
        copied: Copied,
        stamp: Stamp,
        target: &dyn Replica,
        handoff: bool,
    ) -> Result<Done> {
        match copied {
            Copied::Bytes(bytes) => Ok(Done::bytes(bytes)),
            Copied::Gone => Ok(Done::nothing()),
            Copied::Fragments => self.remake(ring, stamp, target, handoff).await,
        }
    }

    /// Gives a primary its fragment of a version, made from those that the primaries have (and this device, a handoff); or ours,
    /// if that is it.
    async fn remake(&self, ring: Ring, stamp: Stamp, target: &dyn Replica, handoff: bool) -> Result<Done> {
        // It is never closed.
        let _place = self.large.acquire().await;
        let places = self.primaries(ring, &stamp);
        let mut sources: Vec<Arc<dyn Replica>> =
            places.iter().filter_map(|device| self.cluster.replica(*device)).collect();
        sources.extend(handoff.then(|| Arc::clone(&self.local)));
        let wanted = Wanted { hash: stamp.hash, places: &places, anew: false };
        match remake(&sources, target, wanted).await? {
            Remade::Bytes(bytes) => Ok(Done::bytes(bytes)),
            Remade::Had | Remade::Cannot => Ok(Done::nothing()),
        }
    }

    /// Gives our fragment of a version, a handoff's, to a primary that has the same as another, where no primary has it; returns the bytes
    /// written, `None` where none can be given it.
    pub(super) async fn renumber(
        &self,
        primaries: &[Arc<dyn Replica>],
        stamp: &Stamp,
    ) -> Result<Option<u64>> {
        // It is never closed.
        let _place = self.large.acquire().await;
        Ok(match renumber(primaries, &self.local, stamp.hash).await? {
            Remade::Bytes(bytes) => Some(bytes),
            Remade::Had => Some(0),
            Remade::Cannot => None,
        })
    }

    fn primaries(&self, ring: Ring, stamp: &Stamp) -> Vec<DeviceId> {
        self.cluster.primaries(ring.policy, partition_of(&stamp.hash, ring.power))
    }
}
