//! The store: disks, placement, the index group, and how a decided change is made durable.
//!
//! Invariant: a permit is held until the change that it covers is applied, also when the caller stops waiting (given that
//! [`Options::spawn`] is set, or that callers never stop).
//! Invariant: object and row share one group, batch and flush when they share a disk; else the object comes first.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quarry_ring::{PathHash, path_hash};

use super::group::{IndexGroup, SingleVoter};
use super::locks::{Claim, Permit};
use super::placement::Placement;
use super::replica::{BoxFuture, Draft, Local, Replica};
use super::writer::Upload;
use super::{Error, ObjectPath, Result, quorum};
use crate::catalog;
use crate::clock::{Clock, Timestamp};
use crate::disk::{Class, DiskHandle, Durability};

/// Uploads given up at one opening; more wait for the next.
const MAX_LEFTOVERS: usize = 1 << 16;

/// Starts a future that then runs by itself, whatever happens to its caller (`tokio::spawn` in the node).
pub type Spawn = Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>;

/// How a store runs.
#[derive(Clone, Default)]
pub struct Options {
    /// Finishes changes whose caller stops waiting. Without it callers must not stop.
    pub spawn: Option<Spawn>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("spawn", &self.spawn.is_some()).finish()
    }
}

/// Handle to the object layer of this node; clones are cheap.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) disks: Vec<DiskHandle>,
    pub(crate) group: Arc<dyn IndexGroup>,
    pub(crate) clock: Clock,
    replicas: Vec<Arc<dyn Replica>>,
    placement: Box<dyn Placement>,
    options: Options,
    client_calls: AtomicU64,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("disks", &self.inner.disks).finish_non_exhaustive()
    }
}

impl Store {
    /// A store over local disks, at least one. Rows live on the first. Uploads that a crash left open are given up.
    pub fn start(
        disks: Vec<DiskHandle>,
        placement: Box<dyn Placement>,
        clock: Clock,
        options: Options,
    ) -> Result<Self> {
        let Some(first) = disks.first() else {
            return Err(Error::Unavailable { reason: "no disks".to_owned() });
        };
        let group = Arc::new(SingleVoter::new(first.clone()));
        let mut replicas: Vec<Arc<dyn Replica>> = Vec::new();
        for disk in &disks {
            clock.observe(Timestamp(disk.max_sequence()));
            let local = Local(disk.clone());
            let leftovers = catalog::open_uploads(disk.index(), MAX_LEFTOVERS)?;
            if !leftovers.is_empty() {
                tracing::info!(device = %disk.device(), uploads = leftovers.len(), "give up uploads left open");
            }
            for upload in leftovers {
                local.abandon(upload, clock.tick().0);
            }
            replicas.push(Arc::new(local));
        }
        let client_calls = AtomicU64::new(0);
        let inner = Inner { disks, group, clock, replicas, placement, options, client_calls };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The disks of this node.
    #[must_use]
    pub fn disks(&self) -> &[DiskHandle] {
        &self.inner.disks
    }

    /// The disks of this node as replicas: what other nodes may ask of them.
    #[must_use]
    pub fn replicas(&self) -> &[Arc<dyn Replica>] {
        &self.inner.replicas
    }

    /// The clock of this node.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Calls of clients so far: background work looks whether it moves.
    #[must_use]
    pub fn client_calls(&self) -> u64 {
        self.inner.client_calls.load(Ordering::Relaxed)
    }

    pub(crate) fn count_call(&self) {
        self.inner.client_calls.fetch_add(1, Ordering::Relaxed);
    }
}

/// The hash that places an object and names it in the index.
pub(crate) fn hash_of(path: &ObjectPath) -> PathHash {
    path_hash(&path.account, &path.container, &path.object)
}

impl Inner {
    /// The replicas of an object that can be reached.
    pub(crate) fn replicas_of(&self, hash: &PathHash) -> Vec<Arc<dyn Replica>> {
        let devices = self.placement.devices(hash);
        let replica = |id| self.replicas.iter().find(|replica| replica.device() == id).cloned();
        devices.into_iter().filter_map(replica).collect()
    }

    pub(crate) async fn claim(&self, claim: Claim<'_>) -> Permit {
        self.group.claim(claim).await
    }

    /// Makes a change of an object and of its row durable. `upload` is what the change claims: given up when it fails.
    pub(crate) async fn commit(
        &self,
        hash: PathHash,
        object: Draft,
        row: Option<Draft>,
        class: Class,
        upload: Option<Upload>,
        permit: Permit,
    ) -> Result<()> {
        object.check()?;
        row.as_ref().map_or(Ok(()), Draft::check)?;
        let (replicas, group) = (self.replicas_of(&hash), self.group.clone());
        self.finish(async move {
            let home = group.home();
            let mut row_left = row.clone();
            let mut appends = Vec::with_capacity(replicas.len());
            for replica in &replicas {
                let mut drafts = vec![object.clone()];
                if replica.device() == home {
                    drafts.extend(row_left.take());
                }
                appends.push(replica.append(drafts, Durability::Durable, class));
            }
            quorum::reach(appends).await?;
            if let Some(upload) = upload {
                upload.claimed();
            }
            if let Some(row) = row_left {
                group.append(vec![row], class).await?;
            }
            drop(permit);
            Ok(())
        })
        .await
    }

    /// Makes changes of rows durable.
    pub(crate) async fn commit_rows(&self, rows: Vec<Draft>, class: Class, permit: Permit) -> Result<()> {
        for row in &rows {
            row.check()?;
        }
        let group = self.group.clone();
        self.finish(async move {
            group.append(rows, class).await?;
            drop(permit);
            Ok(())
        })
        .await
    }

    async fn finish(&self, work: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
        let Some(spawn) = &self.options.spawn else { return work.await };
        let (reply, answer) = tokio::sync::oneshot::channel();
        spawn(Box::pin(async move {
            // The caller may have gone; the change stands all the same.
            let _gone = reply.send(work.await);
        }));
        let gone = |_| Err(Error::Unavailable { reason: "node is shutting down".to_owned() });
        answer.await.unwrap_or_else(gone)
    }
}
