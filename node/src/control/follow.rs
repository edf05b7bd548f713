//! What every node makes of the cluster's state: addresses, voters, devices.
//!
//! Invariant: a disk of this node that is missing is one that fails whatever it is asked, like one that failed while it was open.
//! Invariant: a ring is used only together with the devices that it names; calls under way keep the one that they began with.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use quarry_engine::net::{NodeId, Remote, Transport};
use quarry_engine::object::names::Divided;
use quarry_engine::object::{Layout, Placement, Replica, RingPlacement, Store};
use quarry_engine::sync::Peers;

use super::groups::{CONTROL, ControlError, Own, Table};
use super::left::Left;
use super::state::State;
use crate::cluster::{AddressBook, watch};
use crate::storage::{Absent, Missing};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a call to a device of another node may take.
const WITHIN: Duration = Duration::from_secs(10);

/// Follows the control group.
pub(crate) struct Follower {
    pub(crate) groups: Own,
    pub(crate) net: Arc<dyn Transport>,
    pub(crate) book: Arc<AddressBook>,
    pub(crate) names: Divided,
    pub(crate) store: Store,
    pub(crate) peers: Arc<Peers>,
    pub(crate) left: Arc<Left>,
    /// Disks of this node that did not open.
    pub(crate) missing: Arc<[Missing]>,
    pub(crate) seen: tokio::sync::watch::Sender<Arc<State>>,
}

impl Follower {
    /// Follows for as long as it is polled.
    pub(crate) async fn run(self) {
        let mut newest = (0, 0);
        let mut applied = None;
        let mut failed: Option<String> = None;
        let mut leaders = BTreeMap::new();
        let mut watched = BTreeSet::from([self.net.local()]);
        let mut pause = tokio::time::interval(PAUSE);
        loop {
            pause.tick().await;
            self.say_voters();
            self.say_leaders(&mut leaders);
            self.watch(&mut watched);
            let now = self.groups.control.status().applied;
            if now == applied {
                continue;
            }
            match self.look(&mut newest) {
                Ok(()) => (applied, failed) = (now, None),
                Err(error) => {
                    let why = error.to_string();
                    if failed.as_ref() != Some(&why) {
                        tracing::warn!("read the cluster's state: {why}");
                    }
                    failed = Some(why);
                }
            }
        }
    }

    /// Tells whoever asks for names who votes in which group: by the group where it is here, else by its row.
    fn say_voters(&self) {
        let seen = Arc::clone(&self.seen.borrow());
        for (group, row) in &seen.groups {
            self.names.voters(*group, row.iter().map(|seat| seat.node).collect());
        }
        for group in self.groups.index.open_groups() {
            let voters = group.status().voters;
            if !voters.is_empty() {
                self.names.voters(group.id(), voters.into_iter().collect());
            }
        }
    }

    /// Logs who leads, when that changes.
    fn say_leaders(&self, known: &mut BTreeMap<u32, Option<NodeId>>) {
        for group in self.groups.all() {
            let leader = group.leader();
            if known.insert(group.id(), leader).unwrap_or_default() == leader {
                continue;
            }
            let name =
                if group.id() == CONTROL { "control".to_owned() } else { format!("index {}", group.id()) };
            match leader {
                Some(node) => tracing::info!(group = name, %node, own = group.status().leads, "node leads"),
                None => tracing::warn!(group = name, "nobody leads"),
            }
        }
    }

    /// Begins to watch members that are new.
    fn watch(&self, watched: &mut BTreeSet<NodeId>) {
        let seen = Arc::clone(&self.seen.borrow());
        for node in seen.members.keys() {
            if watched.insert(*node) {
                // Ends with the runtime: a member is watched for as long as this node runs.
                drop(tokio::spawn(watch::watch(Arc::clone(&self.net), *node)));
            }
        }
    }

    fn look(&self, newest: &mut (usize, u64)) -> Result<(), ControlError> {
        let table = Table::read(&self.groups.control)?;
        if table.newest() == *newest {
            return Ok(());
        }
        let state = table.state()?;
        for (node, member) in &state.members {
            self.book.set(*node, member.address);
        }
        if let Some(settings) = state.settings {
            self.names.divide(settings.index_groups);
        }
        self.place(&state);
        self.left.see(state.has_left(self.net.local()));
        self.seen.send_replace(Arc::new(state));
        *newest = table.newest();
        Ok(())
    }

    /// Uses the rings of this state, if any is another than before, and the devices.
    fn place(&self, state: &State) {
        let before = self.seen.borrow().clone();
        let owners = |state: &State| -> Vec<_> {
            state.devices.iter().map(|(id, device)| (*id, device.node)).collect()
        };
        let same = before.builder == state.builder
            && before.other_builders == state.other_builders
            && before.policies == state.policies
            && owners(&before) == owners(state);
        if same {
            return;
        }
        let policies = match state.policies.policies() {
            Ok(policies) => policies,
            Err(error) => return tracing::error!(error, "use storage policies"),
        };
        let mut rings: BTreeMap<u16, Arc<RingPlacement>> = BTreeMap::new();
        for builder in state.builder.iter().chain(state.other_builders.values()) {
            let Ok(Some(ring)) = builder.ring() else { continue };
            let policy = builder.settings().policy;
            let numbers: HashMap<_, _> = state.ring_devices(policy).into_iter().collect();
            match RingPlacement::new(ring, numbers) {
                Ok(placement) => drop(rings.insert(policy, Arc::new(placement))),
                Err(error) => return tracing::error!(%error, policy, "use ring"),
            }
        }
        if rings.is_empty() {
            return;
        }
        let version = rings.get(&0).map_or(0, |placement| placement.ring().version());
        let local = self.net.local();
        let own: BTreeSet<_> = self.store.replicas().iter().map(|replica| replica.device()).collect();
        let others = state.devices.iter().filter(|(id, _)| !own.contains(id));
        let remote = |(id, device): (&_, &super::state::Device)| -> Arc<dyn Replica> {
            if device.node == local {
                return Arc::new(Absent::new(*id, &self.missing));
            }
            Arc::new(Remote::new(Arc::clone(&self.net), device.node, *id, WITHIN))
        };
        let others: Vec<_> = others.map(remote).collect();
        let (all, count) = (self.store.replicas().iter().chain(&others).cloned(), rings.len());
        let placements = rings.iter().map(|(policy, ring)| (*policy, Arc::clone(ring) as Arc<dyn Placement>));
        let layout = Layout::new(policies, placements.collect());
        self.peers.replace(rings, all);
        self.store.place(layout, others);
        tracing::info!(version, policies = count, devices = state.devices.len(), "rings are in use");
    }
}
