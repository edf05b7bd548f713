//! Who may decide at the same time: sharded locks over accounts, containers and objects.
//!
//! Invariant: locks are taken in the order account, row, container, object, at most one of each; so there is no deadlock, also
//! when unrelated names share a shard.
//! Invariant: a [`Permit`] is held from the first look at the state until the change is applied.
//! Invariant: while an object is claimed, it is known here whether a version time was granted for it that is greater than a given one
//! and whose line was not made: it is remembered where the lock is, so in bounded room ([`Unlisted`]).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::ObjectPath;
use crate::clock::Timestamp;

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

/// The greatest version time that was granted for objects of a shard whose line was not made: of the object that was granted last it is
/// known by itself, of all others together.
#[derive(Debug, Clone, Copy, Default)]
struct Unlisted {
    /// A hash of the object that was granted last.
    name: u64,
    /// Its greatest time.
    at: Timestamp,
    /// The greatest time of any other.
    others: Timestamp,
}

impl Unlisted {
    /// A time is granted; whether its line will be made is not known yet.
    fn with(self, name: u64, at: Timestamp) -> Self {
        if name == self.name {
            return Self { at: self.at.max(at), ..self };
        }
        Self { name, at, others: self.others.max(self.at) }
    }

    /// A line of an object was made, and with it all that was granted for it before is over.
    fn without(self, name: u64) -> Self {
        if name == self.name { Self { at: Timestamp::default(), ..self } } else { self }
    }

    /// Of another name that cannot be told from all others it is said, too.
    fn is_later(&self, name: u64, at: Timestamp) -> bool {
        self.others > at || name == self.name && self.at > at
    }
}

/// The claim of an object.
#[derive(Debug)]
struct Claimed {
    name: u64,
    guard: OwnedRwLockWriteGuard<Unlisted>,
    /// What was granted under this permit, and what was known before.
    granted: Option<(Timestamp, Unlisted)>,
}

/// The right to decide; dropped, it passes on.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    /// The term of the group in which it was given: what is decided under it counts in no other.
    pub(crate) term: u64,
    _shared: Option<OwnedRwLockReadGuard<()>>,
    exclusive: Exclusive,
}

/// What a permit has alone. A permit is a part of many futures: it is kept small.
#[derive(Debug)]
enum Exclusive {
    Rows { _guards: [Option<OwnedRwLockWriteGuard<()>>; 2] },
    Object(Claimed),
}

impl Permit {
    fn of(shared: Option<OwnedRwLockReadGuard<()>>, guards: [Option<OwnedRwLockWriteGuard<()>>; 2]) -> Self {
        Self { term: 0, _shared: shared, exclusive: Exclusive::Rows { _guards: guards } }
    }

    fn object(&mut self) -> Option<&mut Claimed> {
        match &mut self.exclusive {
            Exclusive::Object(claimed) => Some(claimed),
            Exclusive::Rows { .. } => None,
        }
    }

    /// A version time is granted under it.
    pub(crate) fn grant(&mut self, at: Timestamp) {
        if let Some(claimed) = self.object() {
            let before = *claimed.guard;
            claimed.granted = Some((at, before));
            *claimed.guard = before.with(claimed.name, at);
        }
    }

    /// The line of a version time was made under it. Of an older time than was granted: nothing was written with that one.
    pub(crate) fn listed(&mut self, at: Timestamp) {
        if let Some(claimed) = self.object()
            && let Some((granted, before)) = claimed.granted
        {
            *claimed.guard = if granted == at { before.without(claimed.name) } else { before };
        }
    }

    /// Whether a greater time than this was granted for the object here, and its line was not made.
    pub(crate) fn is_overtaken(&self, at: Timestamp) -> bool {
        matches!(&self.exclusive, Exclusive::Object(claimed) if claimed.guard.is_later(claimed.name, at))
    }
}

/// The locks of one index group.
#[derive(Debug)]
pub(crate) struct Locks {
    accounts: Vec<Arc<RwLock<()>>>,
    /// Of containers' rows.
    rows: Vec<Arc<RwLock<()>>>,
    /// Of what is in containers.
    containers: Vec<Arc<RwLock<()>>>,
    objects: Vec<Arc<RwLock<Unlisted>>>,
}

fn number_of(name: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

fn shard_at<T>(shards: &[Arc<RwLock<T>>], number: u64) -> &Arc<RwLock<T>> {
    let at = usize::try_from(number % shards.len() as u64).unwrap_or(0);
    &shards[at]
}

fn shard<'a>(shards: &'a [Arc<RwLock<()>>], name: &impl Hash) -> &'a Arc<RwLock<()>> {
    shard_at(shards, number_of(name))
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
        let objects = (0..OBJECT_SHARDS).map(|_| Arc::default()).collect();
        Self {
            accounts: shards(ACCOUNT_SHARDS),
            rows: shards(CONTAINER_SHARDS),
            containers: shards(CONTAINER_SHARDS),
            objects,
        }
    }

    pub(crate) async fn claim(&self, claim: Claim<'_>) -> Permit {
        match claim {
            Claim::Account(account) => {
                let account = exclusive(shard(&self.accounts, &account)).await;
                Permit::of(None, [account, None])
            }
            Claim::Container { account, container } => {
                let held = shared(shard(&self.accounts, &account)).await;
                let row = exclusive(shard(&self.rows, &(account, container))).await;
                Permit::of(held, [row, None])
            }
            Claim::ContainerAndAccount { account, container } => {
                let held = exclusive(shard(&self.accounts, &account)).await;
                let row = exclusive(shard(&self.rows, &(account, container))).await;
                Permit::of(None, [held, row])
            }
            Claim::Emptiness { account, container } => {
                let held = shared(shard(&self.accounts, &account)).await;
                let row = exclusive(shard(&self.rows, &(account, container))).await;
                let content = exclusive(shard(&self.containers, &(account, container))).await;
                Permit::of(held, [row, content])
            }
            Claim::Object(path) => {
                let container = (&*path.account, &*path.container);
                let held = shared(shard(&self.containers, &container)).await;
                let name = number_of(path);
                let guard = Arc::clone(shard_at(&self.objects, name)).write_owned().await;
                let exclusive = Exclusive::Object(Claimed { name, guard, granted: None });
                Permit { term: 0, _shared: held, exclusive }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u64 = 1;
    const B: u64 = 2;

    fn at(time: u64) -> Timestamp {
        Timestamp(time)
    }

    #[test]
    fn what_was_granted_and_not_listed_is_known_until_its_name_has_a_later_line() {
        let none = Unlisted::default();
        assert!(!none.is_later(A, at(0)));
        let one = none.with(A, at(5));
        assert!(one.is_later(A, at(4)) && !one.is_later(A, at(5)), "its own is not later than itself");
        assert!(!one.is_later(B, at(4)), "another name");
        assert!(!one.with(A, at(7)).without(A).is_later(A, at(4)), "a later line");
        // An older time, that a caller wanted, hides no later one.
        assert!(one.with(A, at(3)).is_later(A, at(4)));
        assert!(one.without(B).is_later(A, at(4)), "another's line");
    }

    #[test]
    fn what_another_name_takes_the_place_of_is_not_forgotten() {
        let two = Unlisted::default().with(A, at(5)).with(B, at(9));
        assert!(two.is_later(A, at(4)) && two.is_later(B, at(8)));
        assert!(!two.is_later(A, at(5)), "the other's later time is not this one's");
        let back = two.with(A, at(10));
        assert!(back.is_later(A, at(8)), "B's may be A's: nobody knows any more");
        assert!(back.without(A).is_later(A, at(8)));
        assert!(!back.without(A).is_later(A, at(9)));
    }
}
