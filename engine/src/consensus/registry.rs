//! The groups of a node, and the service that answers other voters for them.
//!
//! Invariant: a call to a group that is not here is refused; nothing is made because somebody asked for it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::give_up::{give_up, held};
use super::group::{Group, GroupOptions, no_group};
use super::types::GroupError;
use crate::catalog::GroupId;
use crate::disk::DiskHandle;
use crate::net::{NodeId, Request, Response, Service};
use crate::object::BoxFuture;

/// The groups of a node; clones share everything.
#[derive(Clone, Default)]
pub struct Groups {
    groups: Arc<RwLock<BTreeMap<GroupId, Group>>>,
}

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
        self.groups.read().unwrap_or_else(PoisonError::into_inner).get(&group).cloned()
    }

    /// Every group that is open here.
    #[must_use]
    pub fn all(&self) -> Vec<Group> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Opens a group, unless it is open.
    pub async fn open(&self, group: GroupId, options: GroupOptions) -> Result<Group, GroupError> {
        if let Some(open) = self.get(group) {
            return Ok(open);
        }
        let opened = Group::open(group, options).await?;
        self.groups.write().unwrap_or_else(PoisonError::into_inner).insert(group, opened.clone());
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
            if let Err(e) = self.open(group, options.clone()).await {
                failed.push((group, e));
            }
        }
        failed
    }

    /// Closes a group.
    pub async fn close(&self, group: GroupId) -> Result<(), GroupError> {
        let open = self.groups.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
        match open {
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

    /// A service that answers other voters, and hands everything else on.
    #[must_use]
    pub fn service(&self, others: Arc<dyn Service>) -> Arc<dyn Service> {
        Arc::new(GroupService { groups: self.clone(), others })
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
