//! Who may decide at the same time: sharded locks over accounts, containers and objects.
//!
//! Invariant: locks are taken in the order account, row, container, object, at most one of each; so there is no deadlock, also
//! when unrelated names share a shard.
//! Invariant: a [`Permit`] is held from the first look at the state until the change is applied.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::ObjectPath;

const ACCOUNT_SHARDS: u64 = 64;
const CONTAINER_SHARDS: u64 = 1024;
const OBJECT_SHARDS: u64 = 4096;

/// What a decision is about.
#[derive(Debug, Clone, Copy)]
pub enum Claim<'a> {
    /// The account's row changes.
    Account(&'a str),
    /// The container's row changes; the account stays as it is, objects in it may change.
    Container {
        /// Its account.
        account: &'a str,
        /// Its name.
        container: &'a str,
    },
    /// As [`Claim::Container`], and the account may be created.
    ContainerAndAccount {
        /// Its account.
        account: &'a str,
        /// Its name.
        container: &'a str,
    },
    /// The container's row goes if nothing is in it: as [`Claim::Container`], and no object in it changes.
    Emptiness {
        /// Its account.
        account: &'a str,
        /// Its name.
        container: &'a str,
    },
    /// The object changes; the container stays as it is, but for its listing.
    Object(&'a ObjectPath),
}

/// The right to decide; dropped, it passes on.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    /// The term of the group in which it was given: what is decided under it counts in no other.
    pub(crate) term: u64,
    _shared: [Option<OwnedRwLockReadGuard<()>>; 2],
    _exclusive: [Option<OwnedRwLockWriteGuard<()>>; 2],
}

/// The locks of one index group.
#[derive(Debug)]
pub(crate) struct Locks {
    accounts: Vec<Arc<RwLock<()>>>,
    /// Of containers' rows.
    rows: Vec<Arc<RwLock<()>>>,
    /// Of what is in containers.
    containers: Vec<Arc<RwLock<()>>>,
    objects: Vec<Arc<RwLock<()>>>,
}

fn shard<'a>(shards: &'a [Arc<RwLock<()>>], name: &impl Hash) -> &'a Arc<RwLock<()>> {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let at = usize::try_from(hasher.finish() % shards.len() as u64).unwrap_or(0);
    &shards[at]
}

async fn shared(lock: &Arc<RwLock<()>>) -> Option<OwnedRwLockReadGuard<()>> {
    Some(Arc::clone(lock).read_owned().await)
}

async fn exclusive(lock: &Arc<RwLock<()>>) -> Option<OwnedRwLockWriteGuard<()>> {
    Some(Arc::clone(lock).write_owned().await)
}

impl Locks {
    pub(crate) fn new() -> Self {
        let shards = |n: u64| (0..n).map(|_| Arc::default()).collect();
        Self {
            accounts: shards(ACCOUNT_SHARDS),
            rows: shards(CONTAINER_SHARDS),
            containers: shards(CONTAINER_SHARDS),
            objects: shards(OBJECT_SHARDS),
        }
    }

    pub(crate) async fn claim(&self, claim: Claim<'_>) -> Permit {
        match claim {
            Claim::Account(account) => {
                let account = exclusive(shard(&self.accounts, &account)).await;
                Permit { term: 0, _shared: [None, None], _exclusive: [account, None] }
            }
            Claim::Container { account, container } => {
                let held = shared(shard(&self.accounts, &account)).await;
                let row = exclusive(shard(&self.rows, &(account, container))).await;
                Permit { term: 0, _shared: [held, None], _exclusive: [row, None] }
            }
            Claim::ContainerAndAccount { account, container } => {
                let held = exclusive(shard(&self.accounts, &account)).await;
                let row = exclusive(shard(&self.rows, &(account, container))).await;
                Permit { term: 0, _shared: [None, None], _exclusive: [held, row] }
            }
            Claim::Emptiness { account, container } => {
                let held = shared(shard(&self.accounts, &account)).await;
                let row = exclusive(shard(&self.rows, &(account, container))).await;
                let content = exclusive(shard(&self.containers, &(account, container))).await;
                Permit { term: 0, _shared: [held, None], _exclusive: [row, content] }
            }
            Claim::Object(path) => {
                let container = (&*path.account, &*path.container);
                let held = shared(shard(&self.containers, &container)).await;
                let object = exclusive(shard(&self.objects, path)).await;
                Permit { term: 0, _shared: [held, None], _exclusive: [object, None] }
            }
        }
    }
}
