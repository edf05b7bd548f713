//! Up to when a device is known to hold what its peers hold, and the cluster as the replicator sees it.
//!
//! Invariant: what was compared under one version of the ring says nothing under another.
//! Invariant: the tombstone of an object may go only where every other primary of its partition has been compared past it, and
//! never on a device that is no primary of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quarry_ring::{PathHash, partition_of};

use crate::catalog::policy_of;
use crate::disk::format::record::DeviceId;
use crate::object::Replica;

/// The cluster, as far as anti-entropy needs it. Each storage policy has a ring of its own.
pub trait Cluster: Send + Sync {
    /// Which policies there are.
    fn policies(&self) -> Vec<u16>;
    /// Version of a policy's ring; rises with every change.
    fn version(&self, policy: u16) -> u64;
    /// The ring has 2 to the power of this many partitions.
    fn power(&self, policy: u16) -> u8;
    /// The devices that shall hold a partition, in the order of their places.
    fn primaries(&self, policy: u16, partition: u32) -> Vec<DeviceId>;
    /// A device that can be reached, as far as is known.
    fn replica(&self, device: DeviceId) -> Option<Arc<dyn Replica>>;
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    upto: HashMap<DeviceId, u64>,
}

/// What a device knows of its syncs; shared by its replicator and its pruner.
pub struct Synced {
    device: DeviceId,
    cluster: Option<Arc<dyn Cluster>>,
    state: Mutex<HashMap<u16, State>>,
}

impl std::fmt::Debug for Synced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Synced").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Synced {
    /// Of a device without peers.
    #[must_use]
    pub fn alone(device: DeviceId) -> Self {
        Self { device, cluster: None, state: Mutex::default() }
    }

    /// Of a device of a cluster.
    #[must_use]
    pub fn new(device: DeviceId, cluster: Arc<dyn Cluster>) -> Self {
        Self { device, cluster: Some(cluster), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, HashMap<u16, State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under this version of a policy's ring, everything up to `upto` was found alike here and on the peer.
    pub fn note(&self, policy: u16, version: u64, peer: DeviceId, upto: u64) {
        let mut states = self.state();
        let state = states.entry(policy).or_default();
        if state.version != version {
            *state = State { version, ..State::default() };
        }
        let known = state.upto.entry(peer).or_default();
        *known = upto.max(*known);
    }

    /// Tombstones of this object from before this time may go.
    #[must_use]
    pub fn before(&self, hash: &PathHash) -> u64 {
        let Some(cluster) = &self.cluster else { return u64::MAX };
        let policy = policy_of(hash);
        let version = cluster.version(policy);
        let primaries = cluster.primaries(policy, partition_of(hash, cluster.power(policy)));
        let mut states = self.state();
        let state = states.entry(policy).or_default();
        // The primaries may be of a ring that came meanwhile.
        let of_now = cluster.version(policy) == version && (state.version == version || primaries.len() == 1);
        if !of_now || !primaries.contains(&self.device) {
            return 0;
        }
        let others = primaries.iter().filter(|device| **device != self.device);
        others.map(|peer| state.upto.get(peer).copied().unwrap_or(0)).min().unwrap_or(u64::MAX)
    }
}
