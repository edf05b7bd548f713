//! The index groups that this node votes in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use super::service::{NamesAnswer, NamesRequest, NamesService};
use super::{Decider, Elsewhere, Grown, leads};
use crate::net::NodeId;
use crate::object::Result;

/// Answers for index groups by their numbers; clones share everything. Groups come and go while it is in use.
#[derive(Clone, Default)]
pub struct Seats {
    seats: Arc<RwLock<BTreeMap<u32, NamesService>>>,
    /// Groups whose lines were taken back.
    over: Arc<RwLock<BTreeSet<u32>>>,
}

impl std::fmt::Debug for Seats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.read(|seats| seats.keys().copied().collect::<Vec<_>>())).finish()
    }
}

impl From<Option<NamesService>> for Seats {
    fn from(service: Option<NamesService>) -> Self {
        let seats = Self::default();
        if let Some(service) = service {
            seats.take(service);
        }
        seats
    }
}

impl Seats {
    fn read<T>(&self, of: impl FnOnce(&BTreeMap<u32, NamesService>) -> T) -> T {
        of(&self.seats.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on this node answers for the service's group.
    pub fn take(&self, service: NamesService) {
        let mut seats = self.seats.write().unwrap_or_else(PoisonError::into_inner);
        seats.insert(service.group(), service);
    }

    /// This node answers for the group no more.
    pub fn leave(&self, group: u32) {
        let left = self.seats.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
        drop(left);
    }

    /// The lines of a group were taken back: this node answers for it no more, but that it has nothing. True the first time.
    pub fn end(&self, group: u32) -> bool {
        let fresh = self.over.write().unwrap_or_else(PoisonError::into_inner).insert(group);
        self.leave(group);
        fresh
    }

    pub(super) fn is_over(&self, group: u32) -> bool {
        self.over.read().unwrap_or_else(PoisonError::into_inner).contains(&group)
    }

    /// Whoever answers for a group here.
    #[must_use]
    pub fn get(&self, group: u32) -> Option<NamesService> {
        self.read(|seats| seats.get(&group).cloned())
    }

    /// Everybody who answers for a group here.
    #[must_use]
    pub fn all(&self) -> Vec<NamesService> {
        self.read(|seats| seats.values().cloned().collect())
    }

    pub(super) fn decider(&self, group: u32) -> Option<Decider> {
        self.read(|seats| seats.get(&group).map(|service| service.decider().clone()))
    }

    /// Of the containers of a group that this node leads, one that grew since the last look and has more lines there than this.
    pub fn grown(&self, group: u32, lines: u64) -> Result<Option<Grown>> {
        match self.decider(group).filter(|decider| leads(&*decider.group)) {
            Some(decider) => decider.grown(lines),
            None => Ok(None),
        }
    }

    /// The groups that this node leads.
    pub(super) fn led(&self) -> Vec<u32> {
        let all = self.all();
        all.iter().filter(|seat| leads(&*seat.decider().group)).map(NamesService::group).collect()
    }

    /// Answers a request of another node.
    pub async fn answer(&self, from: NodeId, request: NamesRequest) -> Result<NamesAnswer> {
        match self.get(request.group) {
            Some(service) => service.answer(from, request).await,
            None if self.is_over(request.group) => Ok(NamesAnswer::Elsewhere(Elsewhere::Unknown)),
            None => Ok(NamesAnswer::NotLeader(None)),
        }
    }

    /// Ends grants whose time is over. To be called every few seconds.
    pub fn expire(&self) {
        self.all().iter().for_each(NamesService::expire);
    }
}
