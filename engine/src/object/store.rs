//! The store: disks, placement, the index group, and how a decided change is made durable.
//!
//! Invariant: a permit is held until the change that it covers is applied, also when the caller stops waiting (given that
//! [`Options::spawn`] is set, or that callers never stop).
//! Invariant: object and row share one group, batch and flush when one disk has all; else the object comes first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quarry_ring::{PathHash, path_hash};

use super::copies::Copies;
use super::finish::Finisher;
use super::group::SingleVoter;
use super::hashing::Hashing;
use super::kept::Kept;
use super::launch::Time;
use super::names::{self, Answer, Ask, Decider, Grant, Line, Names, NewLine};
use super::placement::Placement;
use super::policy::{Layout, Policies};
use super::replica::{BoxFuture, Draft, Local, Replica};
use super::upload::Upload;
use super::{Error, ObjectPath, Result, odd};
use crate::catalog::{self, DataId, ObjectMeta, policy_key};
use crate::clock::{Clock, Timestamp};
use crate::disk::format::record::DeviceId;
use crate::disk::{Class, DiskHandle};

/// Uploads given up at one opening; more wait for the next.
const MAX_LEFTOVERS: usize = 1 << 16;

/// Starts a future that then runs by itself, whatever happens to its caller (`tokio::spawn` in the node).
pub type Spawn = Arc<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>;

/// How a store runs.
#[derive(Clone, Default)]
pub struct Options {
    /// Finishes changes whose caller stops waiting. Without it callers must not stop.
    pub spawn: Option<Spawn>,
    /// Ends waits for devices that do not answer. Without it a call takes as long as its device.
    pub time: Option<Time>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options").field("spawn", &self.spawn.is_some()).field("time", &self.time).finish()
    }
}

/// What a store over the devices of several nodes is made of.
pub struct Parts {
    /// The disks of this node.
    pub disks: Vec<DiskHandle>,
    /// The devices of other nodes.
    pub others: Vec<Arc<dyn Replica>>,
    /// Which objects lie where.
    pub placement: Box<dyn Placement>,
    /// Where names are decided.
    pub names: Arc<dyn Names>,
    /// This node's clock, which whatever decides here shares.
    pub clock: Arc<Clock>,
    /// How it runs.
    pub options: Options,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("disks", &self.disks).finish_non_exhaustive()
    }
}

/// Handle to the object layer of this node; clones are cheap.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) disks: Vec<DiskHandle>,
    pub(crate) names: Arc<dyn Names>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) copies: Arc<Copies>,
    pub(crate) kept: Arc<Kept>,
    /// Those of this node.
    replicas: Vec<Arc<dyn Replica>>,
    finisher: Finisher,
    pub(crate) hashing: Hashing,
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
        let (clock, finisher) = (Arc::new(clock), Finisher(options.spawn.clone()));
        let names = names::alone(Decider::new(group, Arc::clone(&clock), finisher));
        Self::shared(Parts { disks, others: Vec::new(), placement, names, clock, options })
    }

    /// A store over the devices of several nodes. Uploads that a crash left open on the disks of this one are given up.
    pub fn shared(parts: Parts) -> Result<Self> {
        let Parts { disks, others, placement, names, clock, options } = parts;
        let mut replicas: Vec<Arc<dyn Replica>> = Vec::new();
        for disk in &disks {
            clock.observe(Timestamp(disk.max_sequence()));
            let local = Local::new(disk.clone());
            let leftovers = catalog::open_uploads(disk.index(), MAX_LEFTOVERS)?;
            if !leftovers.is_empty() {
                tracing::info!(device = %disk.device(), uploads = leftovers.len(), "give up uploads left open");
            }
            for upload in leftovers {
                local.abandon(upload, clock.tick().0);
            }
            replicas.push(Arc::new(local));
        }
        let (finisher, client_calls) = (Finisher(options.spawn.clone()), AtomicU64::new(0));
        let (hashing, layout) = (Hashing::default(), Layout::one(placement.into()));
        let copies = Arc::new(Copies::new(layout, &replicas, others, options));
        let kept = Arc::default();
        let inner = Inner { disks, names, clock, copies, kept, replicas, finisher, hashing, client_calls };
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

    /// Places objects otherwise from now on: on this node's disks and on the devices of `others`. Calls in flight go on as they
    /// began. What is known of a device's health stays known.
    pub fn place(&self, layout: impl Into<Layout>, others: Vec<Arc<dyn Replica>>) {
        self.inner.copies.place(layout.into(), &self.inner.replicas, others);
    }

    /// The storage policies, as far as this node knows.
    #[must_use]
    pub fn policies(&self) -> Arc<Policies> {
        self.inner.policies()
    }

    /// The clock of this node.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    /// Calls of clients so far, those of volumes on its disks included: background work looks whether it moves.
    #[must_use]
    pub fn client_calls(&self) -> u64 {
        let of_volumes = |disk: &DiskHandle| disk.counters().block_calls.load(Ordering::Relaxed);
        let of_volumes: u64 = self.inner.disks.iter().map(of_volumes).sum();
        self.inner.client_calls.load(Ordering::Relaxed).wrapping_add(of_volumes)
    }

    /// Changes of objects in eventual containers so far that were begun here while their index group was away.
    #[must_use]
    pub fn changes_alone(&self) -> u64 {
        self.inner.kept.alone()
    }

    pub(crate) fn count_call(&self) {
        self.inner.client_calls.fetch_add(1, Ordering::Relaxed);
    }
}

/// The key that places an object and names it in the index, in the first policy.
pub(crate) fn hash_of(path: &ObjectPath) -> PathHash {
    key_of(path, 0, None)
}

/// The same in any policy; `body` where each body has a key of its own.
pub(crate) fn key_of(path: &ObjectPath, policy: u16, body: Option<&DataId>) -> PathHash {
    policy_key(policy, path_hash(&path.account, &path.container, &path.object), body)
}

impl Inner {
    /// The device that names this node's uploads.
    pub(crate) fn home(&self) -> DeviceId {
        self.disks.first().map_or(DeviceId([0; 16]), DiskHandle::device)
    }

    pub(crate) fn replicas(&self) -> &[Arc<dyn Replica>] {
        &self.replicas
    }

    pub(crate) fn policies(&self) -> Arc<Policies> {
        self.copies.devices().policies().clone()
    }

    /// The key of what a line tells of; `None`: each body has a key of its own, and there is none.
    pub(crate) fn key(&self, path: &ObjectPath, line: &Line) -> Option<PathHash> {
        let policy = line.container.map_or(0, |standing| standing.policy);
        match self.policies().code(policy) {
            Some(_) => line.key,
            None => Some(key_of(path, policy, None)),
        }
    }

    /// What stands of a name; without an object, of a container alone.
    pub(crate) async fn line(&self, path: &ObjectPath) -> Result<Line> {
        match self.names.ask(Ask::Line { path: path.clone() }).await? {
            Answer::Line(line) => Ok(line),
            other => odd(other),
        }
    }

    /// The key that the line names now.
    pub(crate) async fn key_now(&self, path: &ObjectPath) -> Result<Option<PathHash>> {
        let line = self.line(path).await?;
        Ok(self.key(path, &line))
    }

    /// Gives a version that is kept in fragments a new record, and then its line.
    pub(crate) async fn repost(
        &self,
        hash: PathHash,
        meta: ObjectMeta,
        grant: Grant,
        line: NewLine,
    ) -> Result<()> {
        let (copies, names) = (self.copies.clone(), Arc::clone(&self.names));
        let work = async move {
            copies.repost(hash, &meta).await?;
            let replaced = replaced(&grant, &hash);
            names.settle(grant, line, Class::Client).await?;
            if let Some(Replaced { path, hash, at }) = replaced {
                copies.bury_soon(path, hash, at).await;
            }
            Ok(())
        };
        self.finisher.finish(work).await
    }

    /// Removes the line of a body that has a key of its own, and then the body.
    pub(crate) async fn unlist_and_bury(&self, hash: PathHash, grant: Grant, line: NewLine) -> Result<()> {
        let (copies, names) = (self.copies.clone(), Arc::clone(&self.names));
        let (path, at) = (grant.path.clone(), grant.at);
        let work = async move {
            names.settle(grant, line, Class::Delete).await?;
            copies.bury_soon(path, hash, at).await;
            Ok(())
        };
        self.finisher.finish(work).await
    }

    /// Makes a change of an object and of its line durable. `upload` is what the change claims: given up when it fails.
    pub(crate) async fn commit(
        &self,
        object: Draft,
        grant: Grant,
        line: Option<NewLine>,
        class: Class,
        upload: Option<Upload>,
    ) -> Result<()> {
        object.check()?;
        let hash: PathHash = object.key.as_slice().try_into().unwrap_or_default();
        let home = grant.home();
        let row = match (&line, home) {
            (Some(line), Some(home)) => Some((home, line.row(&grant.path, line.at)?)),
            _ => None,
        };
        row.as_ref().map_or(Ok(()), |(_, row)| row.check())?;
        let (copies, names, lister) = (self.copies.clone(), Arc::clone(&self.names), self.lister(&grant));
        let work = async move {
            let rode = match upload {
                Some(upload) => upload.commit(object, row, class).await?,
                None => copies.commit(&hash, object, row, class).await?,
            };
            if let Some((lister, line)) = lister.zip(line.clone()) {
                return lister.list(hash, grant, line, class).await;
            }
            let replaced = replaced(&grant, &hash);
            // Where the row rode with the object, it is there already.
            if let Some(line) = line.filter(|_| !rode) {
                names.settle(grant, line, class).await?;
            }
            if let Some(Replaced { path, hash, at }) = replaced {
                copies.bury_soon(path, hash, at).await;
            }
            Ok(())
        };
        self.finisher.finish(work).await
    }
}

/// A body with a key of its own that another one takes the place of.
struct Replaced {
    path: ObjectPath,
    hash: PathHash,
    at: Timestamp,
}

/// What goes once the line names `hash`.
fn replaced(grant: &Grant, hash: &PathHash) -> Option<Replaced> {
    let old = grant.line.key.filter(|old| old != hash)?;
    Some(Replaced { path: grant.path.clone(), hash: old, at: grant.at })
}
