//! Nodes with real sockets on 127.0.0.1, each on a runtime of its own, so that one can be taken away without a farewell.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::net::conformance::Rig;
use quarry_engine::net::{NetError, NodeId, Request, Response, Service, Transport};
use quarry_engine::object::BoxFuture;
use tokio::runtime::Runtime;

use crate::cluster::authority::{Authority, Validity, unix_now};
use crate::cluster::{AddressBook, Identity, Keeper, Parts, Quic, start_tcp};
use crate::config::Carrier;

pub(super) const CLUSTER: ClusterId = ClusterId([7; 16]);
pub(super) const A: NodeId = NodeId([0xa; 16]);
pub(super) const B: NodeId = NodeId([0xb; 16]);
pub(super) const BOTH: [Carrier; 2] = [Carrier::Quic, Carrier::Tcp];
/// Long enough for everything that should work.
pub(super) const LONG: Duration = Duration::from_secs(20);

pub(super) fn day() -> Validity {
    Validity::starting(unix_now(), Duration::from_secs(24 * 3600))
}

pub(super) fn authority(cluster: ClusterId) -> Authority {
    Authority::make(cluster, unix_now()).unwrap().0
}

pub(super) fn identity(authority: &Authority, node: NodeId) -> Identity {
    authority.issue(node, day()).unwrap().identity(authority, Path::new("test")).unwrap()
}

pub(super) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

pub(super) fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Starts a body; tries again while the port is still held by an earlier life.
pub(super) fn start(
    carrier: Carrier,
    runtime: &Runtime,
    parts: &Parts,
    address: SocketAddr,
) -> (Arc<dyn Transport>, SocketAddr, Option<Quic>) {
    let _inside = runtime.enter();
    let begun = Instant::now();
    loop {
        let started = match carrier {
            Carrier::Quic => Quic::start(parts.clone(), address).map(|quic| {
                let bound = quic.address().unwrap();
                (Arc::new(quic.clone()) as Arc<dyn Transport>, bound, Some(quic))
            }),
            Carrier::Tcp => start_tcp(parts.clone(), address)
                .map(|(tcp, bound)| (Arc::new(tcp) as Arc<dyn Transport>, bound, None)),
        };
        match started {
            Ok(started) => return started,
            Err(error) => assert!(begun.elapsed() < LONG, "listen on {address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A node of its own.
pub(super) struct TestNode {
    pub(super) net: Arc<dyn Transport>,
    pub(super) address: SocketAddr,
    pub(super) keeper: Arc<Keeper>,
    pub(super) book: Arc<AddressBook>,
    quic: Option<Quic>,
    runtime: Option<Runtime>,
}

impl TestNode {
    pub(super) fn new(carrier: Carrier, identity: Identity, service: Arc<dyn Service>) -> Self {
        let runtime = runtime();
        let (keeper, book) = (Arc::new(Keeper::new(identity)), Arc::new(AddressBook::default()));
        let parts = Parts { keeper: keeper.clone(), book: book.clone(), service };
        let (net, address, quic) = start(carrier, &runtime, &parts, any_port());
        Self { net, address, keeper, book, quic, runtime: Some(runtime) }
    }

    pub(super) fn knows(&self, node: NodeId, address: SocketAddr) {
        self.book.set(node, address);
    }

    pub(super) fn ping(&self, to: NodeId, within: Duration) -> Result<Response, NetError> {
        let call = self.net.call(to, Request::Ping { payload: Bytes::from_static(b"ping") }, within);
        self.runtime.as_ref().unwrap().block_on(call)
    }

    /// Stops with a farewell.
    pub(super) fn close(self) {
        if let Some(quic) = &self.quic {
            self.runtime().block_on(quic.close());
        }
    }

    pub(super) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waits for its threads: one that was still running, on a busy machine, answered the call after its end.
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }
}

/// Answers pings.
pub(super) struct Echo;

impl Service for Echo {
    fn handle(&self, _: NodeId, request: Request) -> BoxFuture<'static, Response> {
        let Request::Ping { payload } = request else { panic!("pings alone") };
        Box::pin(std::future::ready(Response::Pong { payload }))
    }
}

/// Two nodes of one cluster that know each other.
pub(super) fn pair(carrier: Carrier) -> (Authority, TestNode, TestNode) {
    let authority = authority(CLUSTER);
    let a = TestNode::new(carrier, identity(&authority, A), Arc::new(Echo));
    let b = TestNode::new(carrier, identity(&authority, B), Arc::new(Echo));
    a.knows(B, b.address);
    b.knows(A, a.address);
    (authority, a, b)
}

/// A body that can be taken away although others hold it.
struct Slot {
    local: NodeId,
    net: Mutex<Option<Arc<dyn Transport>>>,
}

impl Transport for Slot {
    fn local(&self) -> NodeId {
        self.local
    }

    fn call(
        &self,
        to: NodeId,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>> {
        self.net.lock().unwrap().as_ref().unwrap().call(to, request, within)
    }

    fn cast(&self, to: NodeId, request: Request) {
        self.net.lock().unwrap().as_ref().unwrap().cast(to, request);
    }

    fn name(&self) -> &'static str {
        "slot"
    }
}

struct Life {
    node: NodeId,
    keeper: Arc<Keeper>,
    alive: Option<(Runtime, Arc<Slot>)>,
}

/// The suite's view of a body.
pub(super) struct BodyRig {
    carrier: Carrier,
    authority: Authority,
    book: Arc<AddressBook>,
    main: Runtime,
    lives: Vec<Life>,
    begun: Instant,
}

impl BodyRig {
    pub(super) fn new(carrier: Carrier) -> Self {
        Self {
            carrier,
            authority: authority(CLUSTER),
            book: Arc::new(AddressBook::default()),
            main: runtime(),
            lives: Vec::new(),
            begun: Instant::now(),
        }
    }
}

impl Rig for BodyRig {
    fn start(&mut self, node: NodeId, service: Arc<dyn Service>) -> Arc<dyn Transport> {
        let at = self.lives.iter().position(|life| life.node == node).unwrap_or_else(|| {
            // Its key outlives it, as on a disk.
            let keeper = Arc::new(Keeper::new(identity(&self.authority, node)));
            self.lives.push(Life { node, keeper, alive: None });
            self.lives.len() - 1
        });
        let runtime = runtime();
        let parts = Parts { keeper: self.lives[at].keeper.clone(), book: self.book.clone(), service };
        let address = self.book.get(node).unwrap_or_else(any_port);
        let (net, address, _) = start(self.carrier, &runtime, &parts, address);
        self.book.set(node, address);
        let slot = Arc::new(Slot { local: node, net: Mutex::new(Some(net)) });
        self.lives[at].alive = Some((runtime, slot.clone()));
        slot
    }

    fn stop(&mut self, node: NodeId) {
        let life = self.lives.iter_mut().find(|life| life.node == node).unwrap();
        let (runtime, slot) = life.alive.take().unwrap();
        // Waits for its threads: one that was still running, on a busy machine, answered the call after its end.
        runtime.shutdown_timeout(Duration::from_secs(10));
        *slot.net.lock().unwrap() = None;
    }

    fn run<T: Send + 'static>(&mut self, work: BoxFuture<'static, T>) -> T {
        self.main.block_on(work)
    }

    fn spawn(&mut self, work: BoxFuture<'static, ()>) {
        self.main.spawn(work);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let _inside = self.main.enter();
        Box::pin(tokio::time::sleep(time))
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }
}
