//! Nodes of a cluster in one process: real disks, real time, and a network that they fall from.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quarry_engine::clock::Clock;
use quarry_engine::consensus::Group;
use quarry_engine::net::{Code, Failure, NetError, NodeId, Request, Response, Service, Transport};
use quarry_engine::object::{BoxFuture, Options};
use tokio::sync::watch;

use super::announce::Announcements;
use super::groups::{Opening, Own, Table, change, put};
use super::seating::{self, Seat};
use super::state::{KeyValue, State};
use crate::storage::wall_clock;
use crate::swift::testing::Rig;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

type Alive = Arc<Mutex<HashMap<NodeId, Arc<dyn Service>>>>;

/// Calls between those that are alive.
struct Wire {
    local: NodeId,
    alive: Alive,
}

impl Wire {
    fn service(&self, to: NodeId) -> Option<Arc<dyn Service>> {
        let alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        alive.get(&to).filter(|_| alive.contains_key(&self.local)).cloned()
    }
}

impl Transport for Wire {
    fn local(&self) -> NodeId {
        self.local
    }

    fn call(
        &self,
        to: NodeId,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>> {
        let (from, service) = (self.local, self.service(to));
        Box::pin(async move {
            let gone = || NetError::Unreachable { to, reason: "it is gone".to_owned() };
            let answer = service.ok_or_else(gone)?.handle(from, request);
            tokio::time::timeout(within, answer).await.map_err(|_| NetError::Deadline(to))
        })
    }

    fn cast(&self, to: NodeId, request: Request) {
        if let Some(service) = self.service(to) {
            drop(tokio::spawn(service.handle(self.local, request)));
        }
    }

    fn name(&self) -> &'static str {
        "test"
    }
}

pub(crate) struct Nobody;

impl Service for Nobody {
    fn handle(&self, _: NodeId, _: Request) -> BoxFuture<'static, Response> {
        Box::pin(std::future::ready(Response::Failed(Failure::new(Code::NotServed, "nothing"))))
    }
}

pub(crate) fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

/// A row of the control group that says which nodes shall vote in an index group.
pub(crate) fn seated(group: u32, nodes: &[u8], cluster: &Cluster) -> KeyValue {
    let device = cluster.nodes[0].disk.disk().device();
    let seats: Vec<Seat> = nodes.iter().map(|n| Seat { node: node(*n), device }).collect();
    (seating::group_key(group), seating::encode(&seats))
}

/// A node, which does nothing of its own accord but to take part in groups.
pub(crate) struct Node {
    disk: Rig,
    pub(crate) net: Arc<dyn Transport>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) groups: Own,
    service: Arc<dyn Service>,
    state: watch::Sender<Arc<State>>,
}

/// Three nodes that vote in the control group.
pub(crate) struct Cluster {
    alive: Alive,
    pub(crate) nodes: Vec<Node>,
}

impl Cluster {
    /// The first one has the index groups.
    pub(crate) async fn start(index_groups: u32) -> Self {
        let mut cluster = Self { alive: Alive::default(), nodes: Vec::new() };
        for n in 1..=3 {
            let founds = (n == 1).then_some(index_groups);
            cluster.nodes.push(cluster.open(node(n), founds).await);
        }
        let all: BTreeSet<NodeId> = (1..=3).map(node).collect();
        let control = cluster.control(1);
        until("three nodes vote", async || {
            // What fails is tried again.
            control.status().leads && matches!(control.bring_members(&all, &all).await, Ok(true))
        })
        .await;
        cluster
    }

    async fn open(&self, local: NodeId, founds: Option<u32>) -> Node {
        let disk = Rig::start();
        let net: Arc<dyn Transport> = Arc::new(Wire { local, alive: Arc::clone(&self.alive) });
        let clock = Arc::new(Clock::new(Box::new(wall_clock)));
        let opening = Opening {
            disks: vec![disk.disk()],
            misses: false,
            net: Arc::clone(&net),
            clock: Arc::clone(&clock),
            options: Options::default(),
            founds,
        };
        let groups = Own::open(opening).await.unwrap();
        let (state, seen) = watch::channel(Arc::default());
        drop(tokio::spawn(groups.index.clone().run(seen)));
        let others = groups.service(Arc::new(Nobody));
        let service: Arc<dyn Service> = Arc::new(Announcements {
            groups: groups.clone(),
            net: Arc::clone(&net),
            clock: Arc::clone(&clock),
            others,
        });
        self.alive.lock().unwrap().insert(local, Arc::clone(&service));
        Node { disk, net, clock, groups, service, state }
    }

    pub(crate) fn control(&self, n: u8) -> Group {
        self.nodes[usize::from(n) - 1].groups.control.clone()
    }

    /// What the cluster is, by a node's word.
    pub(crate) fn state(&self, n: u8) -> State {
        Table::read(&self.control(n)).unwrap().state().unwrap()
    }

    /// Writes rows of the control group down; every node that is alive takes its seats.
    pub(crate) async fn write(&self, rows: Vec<KeyValue>) {
        let (first, control) = (&self.nodes[0], self.control(1));
        until("the rows are written", async || {
            let table = Table::read(&control).unwrap();
            change(&control, &first.clock, &table, put(rows.clone())).await.is_ok()
        })
        .await;
        let state = Arc::new(self.state(1));
        self.nodes.iter().for_each(|node| drop(node.state.send_replace(Arc::clone(&state))));
    }

    /// From now on it is not reached, and reaches nobody.
    pub(crate) fn kill(&self, n: u8) {
        self.alive.lock().unwrap().remove(&node(n));
    }

    /// It is reached again.
    pub(crate) fn revive(&self, n: u8) {
        let service = Arc::clone(&self.nodes[usize::from(n) - 1].service);
        self.alive.lock().unwrap().insert(node(n), service);
    }

    pub(crate) async fn stop(self) {
        for node in self.nodes {
            node.groups.close().await;
            node.disk.stop().await;
        }
    }
}

/// Waits until it holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "{what}");
}
