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
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{Announcement, LateService, NodeService, ReplicaService, Service, Transport};
use quarry_engine::object::names::Divided;
use quarry_engine::object::{Options, Parts, Replica, Spread, Store};
use quarry_engine::sync;
use quarry_engine::sync::Peers;
use quarry_volume::store::Members;
use tokio::sync::watch;

use super::announce::{Announcements, Announcer};
use super::follow::Follower;
use super::govern::govern;
use super::groups::{ControlError, Opening, Own, Table, change, put};
use super::health;
use super::introduce::introduce;
use super::join::Joiner;
use super::left::Left;
use super::noting;
use super::seating::{self, Seat};
use super::split::Splitter;
use super::state::{Settings, State, settings_key};
use super::volumes::{self, Register};
use super::{MemberError, founding, replace};
use crate::auth::Listed;
use crate::block::{Door, OwnVolumes};
use crate::cluster::{self, Cluster};
use crate::config;
use crate::storage::{Absent, Disks, Missing, random_bytes, wall_clock};

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
    pub(crate) left: Arc<Left>,
    /// Of volumes, on this node's disks.
    pub(crate) volumes: Arc<Members>,
    /// Volumes that other nodes may ask of.
    pub(crate) own: OwnVolumes,
    peers: Arc<Peers>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// What a node has once its groups are open.
struct Base {
    groups: Own,
    net: Arc<dyn Transport>,
    clock: Arc<Clock>,
    left: Arc<Left>,
    /// Its data directory.
    data: PathBuf,
    /// Its disks that did not open.
    missing: Arc<[Missing]>,
}

impl Member {
    /// Takes part in the cluster with these disks, as far as they are open.
    pub(crate) async fn start(
        settings: &config::Cluster,
        data: &Path,
        disks: &Disks,
        options: Options,
        listed: Listed,
    ) -> Result<Self, MemberError> {
        let (known, missing, disks) = (disks.known(), disks.missing(), disks.handles());
        let first = disks.first().ok_or(MemberError::NoDisk)?;
        replace::check(data, first, !missing.is_empty())?;
        let founder = founding::read(data)?;
        let founding = founder.and_then(|(settings, founded)| (!founded).then_some(settings));
        if let Some(missing) = missing.first().filter(|_| founding.is_some()) {
            return Err(MemberError::Unfounded(missing.device));
        }
        let late = LateService::default();
        let mut cluster = Cluster::start(settings, data, Arc::new(late.clone())).await?;
        let base = open_groups(&cluster, data, &disks, missing, &options, founding).await?;
        replace::remember(data, first)?;
        let announced =
            disks.iter().map(|disk| (disk.device(), disk.usage().capacity, settings.zone)).collect();
        let members = Arc::new(Members::open(disks.clone())?);
        let (names, store) = base.objects(disks.clone(), options)?;
        let own = OwnVolumes::default();
        let door = |others| Door::new(Arc::clone(&members), Arc::clone(&own), others);
        base.answer_others(&mut cluster, &store, door, &late);
        let (peers, mut state) = base.follow(&mut cluster, names.clone(), &store);
        base.split(&mut cluster, &state, names, settings);
        cluster.run(introduce(Arc::clone(&base.net), state.clone(), listed, founder.is_some()));
        if let Some(settings) = founding {
            cluster.run(found(base.groups.clone(), Arc::clone(&base.clock), data.to_owned(), settings));
        }
        let register = Register::new(base.groups.control.clone(), Arc::clone(&base.net));
        cluster.run(volumes::sweep(register, Arc::clone(&members)));
        base.announce(&mut cluster, announced);
        cluster.run(noting::note(known, state.clone(), disks.clone(), base.net.local()));
        cluster.run(health::tell(Arc::clone(&base.net), state.clone(), disks));
        if tokio::time::timeout(READY, state.wait_for(|state| state.is_usable())).await.is_err() {
            tracing::warn!("the cluster is not known yet: requests are refused until it is");
        }
        let (groups, left) = (base.groups, base.left);
        Ok(Self { cluster, groups, store, state, left, volumes: members, own, peers })
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

/// Opens the groups that the disks have, or makes them, with a clock that is past all that this node ever gave.
async fn open_groups(
    cluster: &Cluster,
    data: &Path,
    disks: &[DiskHandle],
    missing: Vec<Missing>,
    options: &Options,
    founding: Option<Settings>,
) -> Result<Base, MemberError> {
    let net = Arc::clone(&cluster.transport);
    let clock = Arc::new(Clock::new(Box::new(wall_clock)));
    let above = disks.iter().map(DiskHandle::max_sequence).max().unwrap_or(0);
    clock.observe(Timestamp(above));
    let opening = Opening {
        disks: disks.to_vec(),
        misses: !missing.is_empty(),
        net: Arc::clone(&net),
        clock: Arc::clone(&clock),
        options: options.clone(),
        founds: founding.map(|settings| settings.index_groups),
    };
    let groups = Own::open(opening).await?;
    let (left, data, missing) = (Arc::default(), data.to_owned(), missing.into());
    Ok(Base { groups, net, clock, left, data, missing })
}

impl Base {
    /// Names that are decided anywhere, and objects on the disks of all nodes: there is no ring yet.
    fn objects(&self, disks: Vec<DiskHandle>, options: Options) -> Result<(Divided, Store), MemberError> {
        let (timer, lease) = (cluster::timer(), u64::from_le_bytes(random_bytes()) >> 1);
        let names = Divided::new(Arc::clone(&self.net), timer, self.groups.index.names(), lease);
        let parts = Parts {
            disks,
            others: Vec::new(),
            placement: Box::new(Spread::over(Vec::new())),
            names: Arc::new(names.clone()),
            clock: Arc::clone(&self.clock),
            options,
        };
        Ok((names, Store::shared(parts)?))
    }

    /// From now on others are answered.
    fn answer_others(
        &self,
        cluster: &mut Cluster,
        store: &Store,
        door: impl FnOnce(Arc<dyn Service>) -> Door,
        late: &LateService,
    ) {
        let incarnation = u64::from_le_bytes(random_bytes());
        let (since, wall) = (cluster::monotonic(), Box::new(wall_clock));
        let absent = self.missing.iter().map(|disk| Absent::new(disk.device, &self.missing));
        let absent = absent.map(|absent| -> Arc<dyn Replica> { Arc::new(absent) });
        let all = store.replicas().iter().cloned().chain(absent).collect();
        let replicas = ReplicaService::new(all, since, wall, incarnation);
        let node = NodeService::new(replicas, self.groups.index.names());
        let others: Arc<dyn Service> = Arc::new(door(Arc::new(node.clone())));
        let announcements = Announcements {
            groups: self.groups.clone(),
            net: Arc::clone(&self.net),
            clock: Arc::clone(&self.clock),
            others,
        };
        late.set(self.groups.service(Arc::new(announcements)));
        cluster.run(look_after(node));
    }

    /// Follows the control group, and does what follows from it: here, and where this node leads, for all.
    fn follow(
        &self,
        cluster: &mut Cluster,
        names: Divided,
        store: &Store,
    ) -> (Arc<Peers>, watch::Receiver<Arc<State>>) {
        let (seen, state) = watch::channel(Arc::default());
        let peers = Arc::<Peers>::default();
        let follower = Follower {
            groups: self.groups.clone(),
            net: Arc::clone(&self.net),
            book: Arc::clone(&cluster.book),
            names,
            store: store.clone(),
            peers: Arc::clone(&peers),
            left: Arc::clone(&self.left),
            missing: Arc::clone(&self.missing),
            seen,
        };
        cluster.run(follower.run());
        cluster.run(govern(self.groups.clone(), Arc::clone(&self.net), Arc::clone(&self.clock)));
        cluster.run(self.groups.index.clone().run(state.clone()));
        cluster.run(replace::take_place(Arc::clone(&self.net), state.clone(), self.data.clone()));
        (peers, state)
    }

    /// Opens groups that take lines over here, and gives lines of containers that grew to such.
    fn split(
        &self,
        cluster: &mut Cluster,
        state: &watch::Receiver<Arc<State>>,
        names: Divided,
        settings: &config::Cluster,
    ) {
        let (groups, net, state) = (self.groups.clone(), Arc::clone(&self.net), state.clone());
        cluster.run(groups.index.clone().open_made());
        let joiner = Joiner::new(groups.clone(), names, settings.join_after.get());
        cluster.run(Splitter { groups, net, state, lines: settings.split_lines.0, joiner }.run());
    }

    /// Tells the cluster where this node is, and which disks it has.
    fn announce(&self, cluster: &mut Cluster, devices: Vec<(DeviceId, u64, u16)>) {
        let Some(reached) = cluster.reached else {
            return tracing::error!(
                "others cannot reach this node at a wildcard address; give cluster.advertise"
            );
        };
        let what = Announcement { node: None, address: reached.to_string(), devices };
        let contacts = cluster.contacts.clone();
        let own = Announcer {
            groups: self.groups.clone(),
            net: Arc::clone(&self.net),
            contacts,
            left: Arc::clone(&self.left),
        };
        cluster.run(own.run(what));
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
