//! Background work: one shape for all of it.
//!
//! A [`Worker`] does a bounded piece of work per [`Worker::step`]; a [`Runner`] calls it again and again, at the speed that its
//! [`Pacer`] allows, and keeps a [`Report`] that an operator can read. The node gives each runner a task and a way to sleep.
//!
//! Invariant: nothing here spawns, sleeps or reads a clock by itself.
//! Invariant: a worker that is dropped between two steps, or in one, leaves everything consistent.

mod auditor;
mod carry;
mod cleaner;
mod expirer;
mod orderer;
mod pacer;
mod pair;
mod pruner;
mod reaper;
mod replicator;
mod runner;
#[cfg(test)]
mod tests;
mod updater;

pub use auditor::Auditor;
pub use cleaner::Cleaner;
pub use expirer::Expirer;
pub use orderer::Orderer;
pub use pacer::{Pace, Pacer, Pause};
pub use pruner::Pruner;
pub use reaper::Reaper;
pub use replicator::{Ages, Replicator};
pub use runner::{Report, Reports, Runner, Sleep, State};
pub use updater::Updater;

use std::sync::Arc;

use crate::disk::DiskHandle;
use crate::object::{BoxFuture, Replica, Store};
use crate::sync::{Cluster, Listings, Synced};

/// Reads the wall clock: microseconds since the Unix epoch.
pub type Wall = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What a step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// So many units of work; there may be more.
    Did(u32),
    /// Nothing to do for now.
    Idle,
    /// What there is to do waits for others, as for a group without a leader; it will be looked at again as when idle.
    Waits(String),
    /// It failed; it will be tried again after a pause.
    Failed(String),
}

/// How far a worker is and what it met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Items dealt with in this pass.
    pub done: u64,
    /// Items that this pass has to deal with, estimated; 0 when unknown.
    pub total: u64,
    /// Bytes read from a device, or copied, since the start, by workers that read much.
    pub bytes: u64,
    /// Passes completed.
    pub passes: u64,
    /// Things found wrong (not steps that failed), since the start.
    pub findings: u64,
    /// The last of them.
    pub last_finding: Option<String>,
}

impl Progress {
    pub(crate) fn found(&mut self, what: String) {
        self.findings += 1;
        self.last_finding = Some(what);
    }

    pub(crate) fn pass_ended(&mut self) {
        self.passes += 1;
        self.done = 0;
    }
}

/// A piece of background work that never ends.
pub trait Worker: Send {
    /// Its name, with its disk where it has one.
    fn name(&self) -> &str;
    /// Do about `budget` units of work (what a unit is, is the worker's own; at least one is tried).
    fn step(&mut self, budget: u32) -> BoxFuture<'_, Outcome>;
    /// How far it is.
    fn progress(&self) -> Progress;

    /// Whether clients wait for what it does, or soon will: it makes no room for them then.
    fn is_urgent(&self) -> bool {
        false
    }
}

/// Seconds for which the tombstone of an object is kept at least: Swift's reclaim age, one week.
pub const RECLAIM_AGE: u64 = 7 * 24 * 3600;

/// For how many seconds what is gone is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Tombstones of objects, at least.
    pub deleted: u64,
    /// Objects that have expired.
    pub expired: u64,
}

/// The clock of a store, for ages.
fn wall_of(store: &Store) -> Wall {
    let store = store.clone();
    Arc::new(move || store.clock().unix_seconds().saturating_mul(1_000_000))
}

/// What a store's listings say of the versions of one of its disks.
pub(crate) fn listings_of(disk: DiskHandle, local: Arc<dyn Replica>, store: &Store) -> Arc<dyn Listings> {
    Arc::new(replicator::Listed::new(disk, local, store.clone()))
}

/// Makes a worker, and makes it anew when it has panicked.
pub type Make = Box<dyn Fn() -> Box<dyn Worker> + Send + Sync>;

fn make<W: Worker + 'static>(make: impl Fn() -> W + Send + Sync + 'static) -> Make {
    Box::new(move || Box::new(make()))
}

/// Every worker of a store, with its usual pace. `cluster` is the one that its disks are in, if they are in one.
#[must_use]
pub fn workers(store: &Store, kept: Kept, cluster: Option<&Arc<dyn Cluster>>) -> Vec<(Make, Pace)> {
    let (expires, reaps) = (store.clone(), store.clone());
    let mut workers = vec![
        (
            make(move || Expirer::new(expires.clone(), kept.expired)),
            Pace { units_per_second: 200, idle_seconds: 5 },
        ),
        (make(move || Reaper::new(reaps.clone())), Pace { units_per_second: 200, idle_seconds: 10 }),
    ];
    for disk in store.disks() {
        workers.extend(workers_of(store, disk, kept, cluster));
    }
    workers
}

/// Those of a disk.
fn workers_of(
    store: &Store,
    disk: &DiskHandle,
    kept: Kept,
    cluster: Option<&Arc<dyn Cluster>>,
) -> Vec<(Make, Pace)> {
    let mut workers = Vec::new();
    let synced = cluster.map_or_else(
        || Synced::alone(disk.device()),
        |cluster| Synced::new(disk.device(), Arc::clone(cluster)),
    );
    let (wall, synced) = (wall_of(store), Arc::new(synced));
    let replica = store.replicas().iter().find(|replica| replica.device() == disk.device());
    if let (Some(cluster), Some(replica)) = (cluster.cloned(), replica.cloned()) {
        let ages = Ages { reclaim: kept.deleted, ..Ages::default() };
        let (disk, synced, wall) = (disk.clone(), Arc::clone(&synced), wall.clone());
        let listings = listings_of(disk.clone(), Arc::clone(&replica), store);
        let replicator = make(move || {
            let (replica, cluster) = (Arc::clone(&replica), Arc::clone(&cluster));
            let (synced, listings) = (Arc::clone(&synced), Arc::clone(&listings));
            Replicator::new(disk.clone(), replica, cluster, synced, listings, wall.clone(), ages)
        });
        // Units of 64 KiB copied: 256 MiB/s.
        workers.push((replicator, Pace { units_per_second: 4096, idle_seconds: 10 }));
    }
    if cluster.is_some() {
        // Where one disk has all, lines are made with their objects.
        let (disk, store, wall) = (disk.clone(), store.clone(), wall.clone());
        let updater = make(move || Updater::new(disk.clone(), store.clone(), wall.clone()));
        workers.push((updater, Pace { units_per_second: 500, idle_seconds: 3 }));
    }
    let (pruned, at) = (disk.clone(), wall.clone());
    let pruner = make(move || Pruner::new(pruned.clone(), at.clone(), kept.deleted, Arc::clone(&synced)));
    workers.push((pruner, Pace { units_per_second: 20_000, idle_seconds: 300 }));
    let (audited, store) = (disk.clone(), store.clone());
    let auditor = make(move || Auditor::new(audited.clone(), store.clone()));
    // Units of 64 KiB: 4 MiB/s.
    workers.push((auditor, Pace { units_per_second: 64, idle_seconds: 3600 }));
    let cleaned = disk.clone();
    // Units of 64 KiB moved: as fast as the disk when it must be.
    workers.push((
        make(move || Cleaner::new(cleaned.clone())),
        Pace { units_per_second: 4096, idle_seconds: 1 },
    ));
    let ordered = disk.clone();
    // Units of 64 KiB moved: 16 MiB/s.
    let orderer = make(move || Orderer::new(ordered.clone(), wall.clone()));
    workers.push((orderer, Pace { units_per_second: 256, idle_seconds: 5 }));
    workers
}
