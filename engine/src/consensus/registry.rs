//! The groups of a node, and the service that answers other voters for them.
//!
//! Invariant: a call to a group that is not here is refused; nothing is made because somebody asked for it.
//! Invariant: a group whose lines were taken back is closed before they are its parent's on the same disk, and never opened again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::give_up::{give_up, held};
use super::group::{Group, GroupOptions, no_group};
use super::store::Store;
use super::types::GroupError;
use crate::catalog::GroupId;
use crate::disk::DiskHandle;
use crate::net::{NodeId, Request, Response, Service};
use crate::object::BoxFuture;

/// The groups of a node; clones share everything.
#[derive(Clone, Default)]
pub struct Groups {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    open: RwLock<BTreeMap<GroupId, Group>>,
    /// Groups whose lines groups that are open here have taken back.
    over: Mutex<BTreeSet<GroupId>>,
    /// Held while a group is opened.
    opening: tokio::sync::Mutex<()>,
}

/// How a group reaches those that it has given lines to, on the same disk.
#[derive(Clone, Default)]
pub(crate) struct Family(Weak<Shared>);

impl std::fmt::Debug for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.all().iter().map(Group::id)).finish()
    }
}

impl Groups {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that is open here.
    #[must_use]
    pub fn get(&self, group: GroupId) -> Option<Group> {
        self.shared.open.read().unwrap_or_else(PoisonError::into_inner).get(&group).cloned()
    }

    /// Every group that is open here.
    #[must_use]
    pub fn all(&self) -> Vec<Group> {
        self.shared.open.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Groups whose lines were taken back, as groups that are open here know: whoever asks for one is sent to the account's group.
    #[must_use]
    pub fn over(&self) -> BTreeSet<GroupId> {
        self.shared.over().clone()
    }

    /// Opens a group, unless it is open.
    pub async fn open(&self, group: GroupId, options: GroupOptions) -> Result<Group, GroupError> {
        let _alone = self.shared.opening.lock().await;
        if let Some(open) = self.get(group) {
            return Ok(open);
        }
        if self.shared.over().contains(&group) {
            return Err(GroupError::Unavailable("its lines were taken back".to_owned()));
        }
        let opened = Group::open_among(group, options, Family(Arc::downgrade(&self.shared))).await?;
        self.shared.open.write().unwrap_or_else(PoisonError::into_inner).insert(group, opened.clone());
        Ok(opened)
    }

    /// Opens every group that the disk has, and says which could not be opened.
    pub async fn open_all(&self, options: &GroupOptions) -> Vec<(GroupId, GroupError)> {
        let found = match held(&options.disk).await {
            Ok(found) => found,
            Err(e) => return vec![(0, e)],
        };
        let mut failed = Vec::new();
        for group in found {
            // Its parent was just opened, and has taken its lines back.
            if self.shared.over().contains(&group) {
                continue;
            }
            if let Err(e) = self.open(group, options.clone()).await {
                failed.push((group, e));
            }
        }
        failed
    }

    /// Closes a group.
    pub async fn close(&self, group: GroupId) -> Result<(), GroupError> {
        match self.shared.take(group) {
            Some(open) => open.close().await,
            None => Ok(()),
        }
    }

    /// Closes a group and gives up all that its disk has of it: this node must be no member of it any more, by the word of
    /// its leader, given after the group was closed. [`super::sweep`] then makes room.
    pub async fn give_up(&self, group: GroupId, disk: &DiskHandle) -> Result<(), GroupError> {
        self.close(group).await?;
        give_up(group, disk.clone()).await
    }

    /// Gives up what a disk has of a group that is open here on another disk: it is of an earlier life of this node's, which votes there
    /// no more. Of one that is not open it is to be known that this node is no member.
    pub async fn forget(&self, group: GroupId, disk: &DiskHandle) -> Result<(), GroupError> {
        let _alone = self.shared.opening.lock().await;
        if self.get(group).is_some_and(|open| open.disk().device() == disk.device()) {
            return Err(GroupError::Unavailable("it is open on this disk".to_owned()));
        }
        give_up(group, disk.clone()).await
    }

    /// A service that answers other voters, and hands everything else on.
    #[must_use]
    pub fn service(&self, others: Arc<dyn Service>) -> Arc<dyn Service> {
        Arc::new(GroupService { groups: self.clone(), others })
    }
}

impl Shared {
    fn over(&self) -> std::sync::MutexGuard<'_, BTreeSet<GroupId>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, group: GroupId) -> Option<Group> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&group)
    }
}

impl Family {
    /// A group is over: from here on it writes nothing on this disk, and has nothing there. `opening`: whoever calls is being opened,
    /// and nobody else is.
    pub(crate) async fn end(
        &self,
        group: GroupId,
        disk: &DiskHandle,
        opening: bool,
    ) -> Result<(), GroupError> {
        if let Some(shared) = self.0.upgrade() {
            let alone = if opening { None } else { Some(shared.opening.lock().await) };
            shared.over().insert(group);
            let here = shared.open.read().unwrap_or_else(PoisonError::into_inner).get(&group).cloned();
            // On another disk it is in nobody's way: the node gives it up.
            let here = here.filter(|open| open.disk().device() == disk.device());
            let open = here.and_then(|_| shared.take(group));
            drop(alone);
            if let Some(open) = open {
                open.end().await;
            }
        }
        if Store::facts(group, disk).await?.is_some() { give_up(group, disk.clone()).await } else { Ok(()) }
    }
}

struct GroupService {
    groups: Groups,
    others: Arc<dyn Service>,
}

impl Service for GroupService {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        match request {
            Request::Consensus { group, call } => match self.groups.get(group) {
                Some(group) => Box::pin(async move { group.answer(from, call).await }),
                None => Box::pin(std::future::ready(no_group(group))),
            },
            other => self.others.handle(from, other),
        }
    }
}
