//! Names of a cluster, divided over its index groups: an account is in one of them, with all that is in it.
//!
//! Ranges of a large container may be in groups of their own ([`super::routes`]).
//!
//! Invariant: the group of an account follows from its name and the number of groups alone, for ever.
//! Invariant: what concerns all accounts is gathered from all groups, and what need be done once is done where a group is led.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::routes::Known;
use super::{Answer, Ask, Decider, Directory, Grant, Names, NewLine, Routed, Seats};
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::net::{NodeId, Timer, Transport};
use crate::object::replica::BoxFuture;
use crate::object::{Error, ObjectPath, Result, odd};

/// Names of accounts in one answer.
const MAX_ACCOUNTS: u32 = 1000;

/// The group of an account, from 1, among so many: a power of two.
#[must_use]
pub fn group_of(account: &str, groups: u32) -> u32 {
    assert!(groups.is_power_of_two(), "the number of index groups is a power of two");
    let power = u8::try_from(groups.trailing_zeros()).unwrap_or(0);
    1 + quarry_ring::partition_of(&quarry_ring::path_hash(account, "", ""), power)
}

/// Names of all index groups; clones share everything.
#[derive(Clone)]
pub struct Divided {
    shared: Arc<Shared>,
}

struct Shared {
    net: Arc<dyn Transport>,
    timer: Timer,
    seats: Seats,
    first_lease: u64,
    groups: RwLock<Vec<Part>>,
    /// Groups that took ranges of containers over, by their numbers.
    children: RwLock<BTreeMap<u32, Part>>,
    known: Known,
}

/// One of the groups.
#[derive(Clone)]
struct Part {
    routed: Routed,
    directory: Arc<Directory>,
}

impl Shared {
    fn make(&self, group: u32) -> Part {
        let directory = Arc::new(Directory::default());
        let (net, timer) = (Arc::clone(&self.net), Arc::clone(&self.timer));
        let known = Arc::clone(&directory);
        let routed = Routed::among(group, net, timer, self.seats.clone(), known, self.first_lease);
        Part { routed, directory }
    }
}

impl std::fmt::Debug for Divided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Divided").field("groups", &self.groups()).finish_non_exhaustive()
    }
}

impl Divided {
    /// Into no groups yet. `seats` are those of this node, and `first_lease` is random, new at every start.
    #[must_use]
    pub fn new(net: Arc<dyn Transport>, timer: Timer, seats: Seats, first_lease: u64) -> Self {
        let (groups, children, known) = (RwLock::default(), RwLock::default(), Known::default());
        Self { shared: Arc::new(Shared { net, timer, seats, first_lease, groups, children, known }) }
    }

    /// Into so many groups, once; a power of two.
    pub fn divide(&self, groups: u32) {
        let shared = &self.shared;
        let mut parts = shared.groups.write().unwrap_or_else(PoisonError::into_inner);
        if parts.is_empty() {
            assert!(groups.is_power_of_two(), "the number of index groups is a power of two");
            *parts = (1..=groups).map(|group| shared.make(group)).collect();
        }
    }

    /// How many groups there are; 0 while that is not known.
    #[must_use]
    pub fn groups(&self) -> u32 {
        u32::try_from(self.parts().len()).unwrap_or(u32::MAX)
    }

    /// Who votes in a group, as far as is known here.
    pub fn voters(&self, group: u32, voters: Vec<NodeId>) {
        match self.part(group) {
            Some(part) => part.directory.replace(voters),
            // Before it is known how many there are, none is a child.
            None if self.groups() > 0 => self.child_part(group, Vec::new).directory.replace(voters),
            None => {}
        }
    }

    /// A group that took a range over; it is made known with these voters.
    fn child_part(&self, group: u32, voters: impl FnOnce() -> Vec<NodeId>) -> Part {
        let mut children = self.shared.children.write().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let part = self.shared.make(group);
            part.directory.replace(voters());
            part
        };
        children.entry(group).or_insert_with(make).clone()
    }

    /// The group of an account's containers.
    pub(super) fn base(&self, account: &str) -> Result<u32> {
        match self.groups() {
            0 => {
                Err(Error::Unavailable { reason: "the cluster's index groups are not known yet".to_owned() })
            }
            groups => Ok(group_of(account, groups)),
        }
    }

    /// A group that took over lines of a container of the account: first its voters are those of the account's group.
    pub(super) fn child(&self, account: &str, group: u32) -> Result<Routed> {
        let parent = self.part(self.base(account)?);
        let voters = || parent.map(|part| part.directory.all()).unwrap_or_default();
        Ok(self.child_part(group, voters).routed)
    }

    /// What decides for a group here.
    pub(super) fn decider(&self, group: u32) -> Option<Decider> {
        self.shared.seats.decider(group)
    }

    pub(super) fn known(&self) -> &Known {
        &self.shared.known
    }

    pub(super) async fn pause(&self, time: std::time::Duration) {
        (self.shared.timer)(time).await;
    }

    fn parts(&self) -> Vec<Part> {
        self.shared.groups.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn part(&self, group: u32) -> Option<Part> {
        let at = usize::try_from(group.checked_sub(1)?).ok()?;
        self.shared.groups.read().unwrap_or_else(PoisonError::into_inner).get(at).cloned()
    }

    pub(super) fn of(&self, account: &str) -> Result<Routed> {
        let unknown =
            || Error::Unavailable { reason: "the account's index group is not known yet".to_owned() };
        self.part(self.base(account)?).map(|part| part.routed).ok_or_else(unknown)
    }

    /// Names of accounts of all groups, in order.
    async fn accounts(self, marker: String, limit: u32) -> Result<Answer> {
        let limit = limit.min(MAX_ACCOUNTS);
        let mut all = Vec::new();
        for part in self.parts() {
            match part.routed.ask(Ask::Accounts { marker: marker.clone(), limit }).await? {
                Answer::Accounts(names) => all.extend(names),
                other => return odd(other),
            }
        }
        all.sort_unstable();
        all.truncate(limit as usize);
        Ok(Answer::Accounts(all))
    }

    /// Accounts marked deleted in the groups that this node leads, in order: each is somebody's to reap.
    async fn marked(self, marker: String, limit: u32) -> Result<Answer> {
        let mut all = Vec::new();
        for group in self.shared.seats.led() {
            let Some(decider) = self.shared.seats.decider(group) else { continue };
            match decider.ask(Ask::MarkedAccounts { marker: marker.clone(), limit }).await {
                Ok(Answer::Accounts(names)) => all.extend(names),
                // It leads no more, or is just about to: whoever does looks there.
                Ok(_) | Err(Error::Unavailable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        all.sort_unstable();
        all.truncate(limit as usize);
        Ok(Answer::Accounts(all))
    }
}

impl Names for Divided {
    fn ask(&self, ask: Ask) -> BoxFuture<'static, Result<Answer>> {
        match &ask {
            Ask::Accounts { marker, limit } => Box::pin(self.clone().accounts(marker.clone(), *limit)),
            Ask::MarkedAccounts { marker, limit } => Box::pin(self.clone().marked(marker.clone(), *limit)),
            Ask::Line { path } if !path.object.is_empty() => {
                let (this, path) = (self.clone(), path.clone());
                Box::pin(async move {
                    let line = |routed: &Routed| routed.ask(Ask::Line { path: path.clone() });
                    this.ask_about(&path, line).await
                })
            }
            _ => {
                let this = self.clone();
                Box::pin(async move { this.ask_all(ask).await })
            }
        }
    }

    fn remembered(&self, ask: Ask) -> Option<Answer> {
        let account = ask.account()?.to_owned();
        self.of(&account).ok()?.remembered(ask)
    }

    fn begin(&self, path: ObjectPath, given: Option<Timestamp>) -> BoxFuture<'static, Result<Grant>> {
        let this = self.clone();
        Box::pin(
            async move { this.ask_about(&path, |routed: &Routed| routed.begin(path.clone(), given)).await },
        )
    }

    fn settle(&self, grant: Grant, line: NewLine, class: Class) -> BoxFuture<'static, Result<()>> {
        let this = self.clone();
        Box::pin(async move { this.settle_anywhere(grant, line, class).await })
    }

    fn lines_count(&self) -> bool {
        true
    }

    fn here(&self) -> bool {
        !self.shared.seats.led().is_empty()
    }

    fn group_of(&self, account: &str) -> u32 {
        self.base(account).unwrap_or(0)
    }
}
