//! A node as a member of its cluster: transport, groups, names and objects put together.
//!
//! Invariant: a node answers others only when all of it is there.
//! Invariant: what the founder wanted is written into the control group once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quarry_engine::clock::{Clock, Timestamp};
use quarry_engine::consensus::Group;
use quarry_engine::disk::DiskHandle;
use quarry_engine::net::{Announcement, NodeService, ReplicaService, Service};
use quarry_engine::object::names::Divided;
use quarry_engine::object::{Options, Parts, Spread, Store};
use quarry_engine::sync;
use tokio::sync::watch;

use super::announce::{Announcements, announce};
use super::follow::Follower;
use super::govern::govern;
use super::groups::{ControlError, Opening, Own, Table, change, put};
use super::introduce::introduce;
use super::peers::Peers;
use super::seating::{self, Seat};
use super::state::{Settings, State, settings_key};
use super::{MemberError, founding, replace};
use crate::auth::Listed;
use crate::cluster::late::LateService;
use crate::cluster::{self, Cluster};
use crate::config;
use crate::storage::{random_bytes, wall_clock};

/// How long a start waits for a ring and for users, so that the first requests find them.
const READY: Duration = Duration::from_secs(5);

/// Rows of one change.
const ROWS: usize = 4;

/// Pause between two looks at what others hold.
const EXPIRE: Duration = Duration::from_secs(1);

/// A running member.
pub(crate) struct Member {
    pub(crate) cluster: Cluster,
    pub(crate) groups: Own,
    pub(crate) store: Store,
    pub(crate) state: watch::Receiver<Arc<State>>,
    peers: Arc<Peers>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Member {
    /// Takes part in the cluster with these disks.
    pub(crate) async fn start(
        settings: &config::Cluster,
        data: &Path,
        disks: Vec<DiskHandle>,
        options: Options,
        listed: Listed,
    ) -> Result<Self, MemberError> {
        let first = disks.first().cloned().ok_or(MemberError::NoDisk)?;
        replace::check(data, &first)?;
        let late = LateService::default();
        let mut cluster = Cluster::start(settings, data, Arc::new(late.clone())).await?;
        let clock = Arc::new(Clock::new(Box::new(wall_clock)));
        let above = disks.iter().map(DiskHandle::max_sequence).max().unwrap_or(0);
        clock.observe(Timestamp(above));
        let founder = founding::read(data)?;
        let founding = founder.and_then(|(settings, founded)| (!founded).then_some(settings));
        let net = Arc::clone(&cluster.transport);
        let opening = Opening {
            disks: disks.clone(),
            net: Arc::clone(&net),
            clock: Arc::clone(&clock),
            options: options.clone(),
            founds: founding.map(|settings| settings.index_groups),
        };
        let groups = Own::open(opening).await?;
        replace::remember(data, &first)?;
        let (timer, lease) = (cluster::timer(), u64::from_le_bytes(random_bytes()) >> 1);
        let names = Divided::new(Arc::clone(&net), timer, groups.index.names(), lease);
        let bytes: Vec<_> =
            disks.iter().map(|disk| (disk.device(), disk.usage().capacity, settings.zone)).collect();
        let parts = Parts {
            disks,
            others: Vec::new(),
            placement: Box::new(Spread::over(Vec::new())),
            names: Arc::new(names.clone()),
            clock: Arc::clone(&clock),
            options,
        };
        let store = Store::shared(parts)?;
        let incarnation = u64::from_le_bytes(random_bytes());
        let replicas = ReplicaService::new(
            store.replicas().to_vec(),
            cluster::monotonic(),
            Box::new(wall_clock),
            incarnation,
        );
        let node = NodeService::new(replicas, groups.index.names());
        let others: Arc<dyn Service> = Arc::new(node.clone());
        let announcements = Announcements {
            groups: groups.clone(),
            net: Arc::clone(&net),
            clock: Arc::clone(&clock),
            others,
        };
        late.set(groups.service(Arc::new(announcements)));
        let (seen, state) = watch::channel(Arc::default());
        let (book, peers) = (Arc::clone(&cluster.book), Arc::<Peers>::default());
        let follower = Follower {
            groups: groups.clone(),
            net: Arc::clone(&net),
            book,
            names,
            store: store.clone(),
            peers: Arc::clone(&peers),
            seen,
        };
        cluster.run(follower.run());
        cluster.run(govern(groups.clone(), Arc::clone(&net), Arc::clone(&clock)));
        cluster.run(groups.index.clone().run(state.clone()));
        cluster.run(look_after(node));
        cluster.run(replace::take_place(Arc::clone(&net), state.clone(), data.to_owned()));
        cluster.run(introduce(Arc::clone(&net), state.clone(), listed, founder.is_some()));
        if let Some(settings) = founding {
            cluster.run(found(groups.clone(), clock, data.to_owned(), settings));
        }
        match cluster.reached {
            Some(reached) => {
                let what = Announcement { node: None, address: reached.to_string(), devices: bytes };
                cluster.run(announce(groups.clone(), net, cluster.contacts.clone(), what));
            }
            None => {
                tracing::error!(
                    "others cannot reach this node at a wildcard address; give cluster.advertise"
                );
            }
        }
        let mut state = state;
        if tokio::time::timeout(READY, state.wait_for(|state| state.is_usable())).await.is_err() {
            tracing::warn!("the cluster is not known yet: requests are refused until it is");
        }
        Ok(Self { cluster, groups, store, state, peers })
    }

    /// The cluster as the replicators see it.
    pub(crate) fn peers(&self) -> Arc<dyn sync::Cluster> {
        Arc::<Peers>::clone(&self.peers)
    }

    /// Takes no more part.
    pub(crate) async fn stop(self) {
        self.groups.close().await;
        self.cluster.stop().await;
    }
}

/// Ends what others held too long.
async fn look_after(node: NodeService) {
    let mut pause = tokio::time::interval(EXPIRE);
    loop {
        pause.tick().await;
        node.expire();
    }
}

/// Writes down what the founder wanted, unless that was done.
async fn found(groups: Own, clock: Arc<Clock>, data: PathBuf, settings: Settings) {
    loop {
        let founded = try_found(&groups, &clock, settings).await;
        match founded.map(|()| founding::done(&data, settings)) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::warn!(%error, "remember that the cluster is founded"),
            Err(error) => tracing::debug!(%error, "found cluster"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn try_found(groups: &Own, clock: &Clock, settings: Settings) -> Result<(), ControlError> {
    let leading = groups.control.barrier().await?;
    clock.observe(Timestamp(leading.above));
    let table = Table::read(&groups.control)?;
    let state = table.state()?;
    if state.settings.is_some() {
        return Ok(());
    }
    let node = groups.control.node();
    let new = groups.index.open_groups().into_iter().filter(|group| !state.groups.contains_key(&group.id()));
    let row = |group: Group| {
        let seat = Seat { node, device: group.disk().device() };
        (seating::group_key(group.id()), seating::encode(&[seat]))
    };
    let rows: Vec<_> = new.map(row).collect();
    for some in rows.chunks(ROWS) {
        change(&groups.control, clock, &table, put(some.to_vec())).await?;
    }
    // Last: where this stands, all does.
    change(&groups.control, clock, &table, put([(settings_key(), settings.encode())])).await
}
