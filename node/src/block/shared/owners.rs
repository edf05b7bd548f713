//! Which nodes have to do with a volume, and what any of them may change of it: its name, and who is its head.
//!
//! Invariant: a head that does not answer is replaced in the control group before anything is done in its place.
//! Invariant: nobody is refused for a head that another node has let go, however late this node hears of it.
//! Invariant: nobody is given a head of this node that another one took the volume from before it was asked for.

use std::time::Duration;

use quarry_engine::net::{NodeId, Transport};
use quarry_volume::VolumeId;
use quarry_volume::store::{Replicated, VolumeError, is_name};

use super::super::moving::{PREFIXES, end_of};
use super::{PAUSE, Shared, TRIES};
use crate::control::volumes::{RegisterError, Row, Standing};

/// How long the control group is asked whether a head stands. Questions are put one after the other, and whoever connects waits no minute for its
/// volume: a head that has lost it refuses what it is asked, and hears of it within a second.
const STANDS_WITHIN: Duration = Duration::from_secs(1);

impl Shared {
    /// This node.
    pub(crate) fn local(&self) -> NodeId {
        self.register.local()
    }

    /// How other nodes are reached.
    pub(crate) fn net(&self) -> &dyn Transport {
        self.register.net()
    }

    /// A volume's row, as it is known here.
    pub(crate) fn row(&self, id: VolumeId) -> Result<Option<Standing>, VolumeError> {
        Ok(self.register.row(id)?)
    }

    /// This node is to be emptied.
    pub(crate) fn is_leaving(&self) -> bool {
        self.state.borrow().members.get(&self.local()).is_some_and(|member| member.leaving)
    }

    /// The nodes of the cluster that have not left it.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        let state = self.state.borrow();
        state.members.keys().copied().filter(|node| state.takes_part(*node)).collect()
    }

    /// Whether a node was a member and has left, as it is known here.
    pub(crate) fn has_left(&self, node: NodeId) -> bool {
        self.state.borrow().has_left(node)
    }

    /// The nodes that have members of a volume.
    pub(crate) fn nodes_of(&self, row: &Row) -> Vec<NodeId> {
        let state = self.state.borrow();
        row.configuration.all().filter_map(|device| Some(state.devices.get(&device)?.node)).collect()
    }

    /// A volume that can be used, and has its head at no other node.
    pub(in crate::block) async fn not_elsewhere(&self, name: &str) -> Result<Row, VolumeError> {
        for _ in 1..TRIES {
            let (row, time) = self.standing(name)?;
            match self.is_not_elsewhere(&row, time).await {
                Err(VolumeError::Changed) => tokio::time::sleep(PAUSE).await,
                done => return done.map(|()| row),
            }
        }
        Err(VolumeError::Changed)
    }

    /// A head of this node, had again where the row was old by which it was had: all that its client asks would be refused.
    pub(super) async fn as_it_stands<F>(
        &self,
        name: &str,
        have: impl Fn() -> F,
    ) -> Result<Replicated, VolumeError>
    where
        F: Future<Output = Result<Replicated, VolumeError>>,
    {
        for _ in 1..TRIES {
            let (row, time) = self.standing(name)?;
            let device = have().await?;
            // The group itself has granted another epoch.
            if device.epoch() != row.epoch {
                return Ok(device);
            }
            match tokio::time::timeout(STANDS_WITHIN, self.register.stands(row.id, time)).await {
                Ok(Err(RegisterError::Changed)) => tokio::time::sleep(PAUSE).await,
                // Nobody knows better than this node.
                Ok(Ok(()) | Err(RegisterError::Away(_))) | Err(_) => return Ok(device),
            }
        }
        have().await
    }

    /// Refuses a volume whose row stood at this time, and names another node as its head. That node may have let go of it, and this
    /// one not have heard of it yet: then the row has changed, which is told so.
    pub(super) async fn is_not_elsewhere(&self, row: &Row, time: u64) -> Result<(), VolumeError> {
        let Some(head) = row.head.filter(|head| *head != self.local()) else { return Ok(()) };
        match self.register.stands(row.id, time).await {
            Err(RegisterError::Changed) => Err(VolumeError::Changed),
            // Nobody knows better than this node.
            Ok(()) | Err(RegisterError::Away(_)) => {
                Err(VolumeError::InUseAt(row.name.clone(), head.to_string()))
            }
        }
    }

    /// Names this node as a volume's head instead of the one in `row`, which does not answer: what is asked of the head next is asked
    /// here, and that one is refused by the members from then on. Nothing happens where another one has attached it meanwhile.
    pub(crate) async fn seize(&self, row: &Row) -> Result<(), VolumeError> {
        let (local, epoch) = (self.local(), row.epoch);
        let take = |row: &mut Row| {
            if row.epoch == epoch {
                row.epoch += 1;
                row.head = Some(local);
            }
        };
        self.change(row.id, take).await.map(drop)
    }

    /// Gives a volume another name, unless that is taken. Whoever uses it goes on; others find it by the new one.
    pub(crate) async fn rename(&self, name: &str, new: &str) -> Result<(), VolumeError> {
        if !is_name(new) {
            return Err(VolumeError::Name(new.to_owned()));
        }
        let id = self.standing(name)?.0.id;
        let mut last = RegisterError::Changed;
        for _ in 0..TRIES {
            let Some((row, time)) = self.register.row(id)? else {
                return Err(VolumeError::NoVolume(name.to_owned()));
            };
            if row.name == new {
                return Ok(());
            }
            if self.register.find(new)?.is_some() {
                return Err(VolumeError::Taken(new.to_owned()));
            }
            match self.register.rename(&row, time, new).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(last.into())
    }

    /// Volumes that have snapshots whose names begin so, with those names.
    pub(crate) fn frozen_as(&self, prefix: &str) -> Vec<(String, Vec<String>)> {
        let rows = self.register.list().unwrap_or_default().into_iter();
        let named = |row: Row| {
            let names = row.snapshots.iter().map(|snapshot| snapshot.name.clone());
            let names: Vec<_> = names.filter(|name| name.starts_with(prefix)).collect();
            (!names.is_empty()).then_some((row.name, names))
        };
        rows.filter_map(named).collect()
    }

    /// Names of those that are on their way from one kind of volume to another.
    pub(crate) fn on_their_way(&self) -> Vec<String> {
        let named = |before: &&str| self.register.named(before).unwrap_or_default();
        PREFIXES.iter().flat_map(named).filter(|name| end_of(name).is_some()).collect()
    }
}
