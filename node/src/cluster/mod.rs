//! This node among others: who it is, how it is reached, how it calls them.
//!
//! Invariant: two clusters never mix: every connection is judged by the cluster's own authority, on both sides.
//! Invariant: certificates are renewed without a restart: the running node takes up its file when it changes.

pub(crate) mod authority;
mod both;
mod core;
mod frames;
pub(crate) mod identity;
pub(crate) mod join;
mod listener;
mod lives;
mod quic;
mod said;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
pub(crate) mod token;
pub(crate) mod watch;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use quarry_engine::net::{NodeId, Router, Service, Timer, Transport};
use quarry_engine::object::Spawn;
use tokio::net::TcpListener;
use tokio::task::{JoinError, JoinSet};

pub use self::both::Both;
pub use self::core::{AddressBook, Parts};
pub use identity::{Identity, IdentityError, Keeper};
pub use quic::Quic;
pub use tcp::Tcp;

use crate::config::{self, Carrier};
use crate::panics;
use crate::storage::{self, cluster_text};
use identity::Files;
use join::Host;
use listener::Entrances;

/// Pause between two looks at the file of the certificate.
const LOOK: Duration = Duration::from_secs(5);
/// A certificate that ends sooner is renewed, or its renewal asked for.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 24 * 3600);
/// Pause between two reminders.
const REMIND: Duration = Duration::from_secs(24 * 3600);
/// How often a free port is looked for that is free for UDP and TCP.
const PORT_TRIES: usize = 16;

/// Why a node does not take part in its cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Its identity.
    #[error("open identity: {0}")]
    Identity(#[from] IdentityError),
    /// The identity and the disks are of two clusters.
    #[error(
        "open identity: {} is of cluster {of_identity}, the disks are of cluster {of_disks}; two clusters never mix",
        path.display()
    )]
    TwoClusters {
        /// The identity.
        path: PathBuf,
        /// Its cluster.
        of_identity: String,
        /// The data directory's.
        of_disks: String,
    },
    /// Its listener.
    #[error("listen on {address} (cluster): {source}; stop what listens there, or give another port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The data directory's cluster.
    #[error(transparent)]
    Data(#[from] storage::OpenError),
}

/// A node that takes part in a cluster.
pub struct Cluster {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where others reach it, if that is known.
    pub reached: Option<SocketAddr>,
    /// Calls to every node, the own one included.
    pub transport: Arc<dyn Transport>,
    /// Where nodes are reached.
    pub book: Arc<AddressBook>,
    /// Nodes that are called while nothing is known of the cluster.
    pub contacts: Vec<NodeId>,
    quic: Option<Quic>,
    tasks: JoinSet<()>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Listens, and serves the node to the others.
    pub(crate) async fn start(
        settings: &config::Cluster,
        data: &Path,
        service: Arc<dyn Service>,
    ) -> Result<Self, ClusterError> {
        let files = Files::of(data);
        let identity = Identity::load(data)?;
        if let Some(own) = storage::known_cluster(data)?
            && own != identity.cluster
        {
            let (of_identity, of_disks) = (cluster_text(identity.cluster), cluster_text(own));
            return Err(ClusterError::TwoClusters { path: files.node, of_identity, of_disks });
        }
        let node = identity.node;
        let mut peers = join::contacts(data)?;
        peers.extend(settings.peers.iter().map(|peer| (peer.node.get_ref().0, peer.address.get_ref().0)));
        let contacts = peers.iter().map(|(node, _)| *node).collect();
        let book = Arc::new(AddressBook::new(peers));
        let keeper = Arc::new(Keeper::new(identity));
        let parts = Parts { keeper: Arc::clone(&keeper), book: Arc::clone(&book), service };
        let host = Host::load(data)?;
        let joins = host.is_some();
        let Listening { address, net, quic, mut tasks } = listen(settings, parts.clone(), host)?;
        let reached = settings.reached_at(address);
        if let Some(reached) = reached {
            identity::write(&files.address, &format!("{reached}\n"))?;
        }
        tasks.spawn(look_after(keeper, data.to_owned()));
        let transport: Arc<dyn Transport> = Arc::new(Router::new(net, parts.service, timer(), spawn()));
        for peer in &settings.peers {
            tasks.spawn(watch::watch(Arc::clone(&transport), peer.node.get_ref().0));
        }
        tracing::info!(%address, %node, carrier = %settings.transport, joins, "taking part in the cluster");
        Ok(Self { address, reached, transport, book, contacts, quic, tasks })
    }

    /// Runs something for as long as this node takes part.
    pub(crate) fn run(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Waits until one of the tasks panics.
    pub(crate) async fn panicked(&mut self) -> JoinError {
        panics::first(&mut self.tasks).await
    }

    /// Takes no more part.
    pub(crate) async fn stop(mut self) {
        self.tasks.shutdown().await;
        if let Some(quic) = self.quic {
            quic.close().await;
        }
    }
}

/// A node's ears.
struct Listening {
    address: SocketAddr,
    net: Arc<dyn Transport>,
    quic: Option<Quic>,
    tasks: JoinSet<()>,
}

fn listen(
    settings: &config::Cluster,
    parts: Parts,
    join: Option<Arc<Host>>,
) -> Result<Listening, ClusterError> {
    let wanted = settings.listen.0;
    let failed = |source| ClusterError::Listen { address: wanted, source };
    let mut entrances = Entrances { keeper: Arc::clone(&parts.keeper), calls: None, join };
    let mut tasks = JoinSet::new();
    if settings.transport == Carrier::Tcp {
        let tcp = Tcp::new(parts);
        entrances.calls = Some(tcp.shared());
        let (listener, address) = bind_tcp(wanted).map_err(failed)?;
        tasks.spawn(listener::run(listener, entrances));
        return Ok(Listening { address, net: Arc::new(tcp), quic: None, tasks });
    }
    // Machines join, and members of volumes are called, over TCP, at the port that others are called at over UDP.
    let tries = if wanted.port() == 0 { PORT_TRIES } else { 1 };
    let mut found = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..tries {
        let quic = Quic::start(parts.clone(), wanted).map_err(failed)?;
        let address = quic.address().map_err(failed)?;
        match bind_tcp(address) {
            Ok((listener, _)) => {
                let tcp = Tcp::beside(&quic);
                entrances.calls = Some(tcp.shared());
                tasks.spawn(listener::run(listener, entrances));
                let net = Arc::new(Both::new(quic.clone(), tcp));
                return Ok(Listening { address, net, quic: Some(quic), tasks });
            }
            Err(error) => found = error,
        }
    }
    Err(failed(found))
}

fn bind_tcp(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket =
        if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(1024)?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Time since the first call of this.
pub(crate) fn monotonic() -> quarry_engine::net::MonotonicClock {
    let begun = Instant::now();
    Arc::new(move || begun.elapsed())
}

/// Real time.
#[must_use]
pub fn timer() -> Timer {
    Arc::new(|time| Box::pin(async move { tokio::time::sleep(time).await }))
}

/// Tasks of the runtime that this is called in.
#[must_use]
pub fn spawn() -> Spawn {
    let runtime = tokio::runtime::Handle::current();
    Arc::new(move |work| drop(runtime.spawn(work)))
}

/// Takes up a renewed certificate, and sees to it that there is one in time.
async fn look_after(keeper: Arc<Keeper>, data: PathBuf) {
    let mut seen = changed_at(&data);
    let mut reminded: Option<Instant> = None;
    let mut pause = tokio::time::interval(LOOK);
    loop {
        pause.tick().await;
        if reminded.is_none_or(|last| last.elapsed() >= REMIND)
            && tls::ends_within(&keeper.current(), RENEW_BEFORE)
        {
            reminded = Some(Instant::now());
            ask_renewal(data.clone()).await;
        }
        let now = changed_at(&data);
        if now != seen {
            seen = now;
            take_up(&keeper, &data);
        }
    }
}

/// When the file of the certificate was last replaced.
fn changed_at(data: &Path) -> Option<SystemTime> {
    std::fs::metadata(Files::of(data).node).and_then(|file| file.modified()).ok()
}

/// Shows what is in the file now; a file that is no good changes nothing.
pub(crate) fn take_up(keeper: &Keeper, data: &Path) {
    let file = Files::of(data).node;
    match Identity::load(data) {
        Ok(identity) => match keeper.renew(identity) {
            Ok(()) => tracing::info!(file = %file.display(), "certificate was renewed"),
            Err(why) => tracing::error!(file = %file.display(), "keep the certificate of before: {why}"),
        },
        Err(error) => tracing::error!(%error, "keep the certificate of before"),
    }
}

/// Renews where the authority's key lies; elsewhere somebody has to.
async fn ask_renewal(data: PathBuf) {
    let renewed = tokio::task::spawn_blocking(move || authority::renew(&data)).await;
    match renewed {
        Ok(Ok(node)) => tracing::info!(%node, "made a new certificate: the old one was near its end"),
        Ok(Err(IdentityError::Missing(_))) => tracing::warn!(
            "this node's certificate ends within {} days; renew it with `quarry join` and a new token",
            RENEW_BEFORE.as_secs() / (24 * 3600)
        ),
        Ok(Err(error)) => tracing::error!(%error, "renew certificate"),
        Err(error) => tracing::error!(%error, "renew certificate"),
    }
}

/// Identities of a cluster that exists in memory alone: for measuring, and for whoever embeds nodes.
pub fn temporary_cluster(nodes: &[NodeId]) -> Result<Vec<Identity>, IdentityError> {
    let whence = Path::new("temporary cluster");
    let made = |e: authority::MakeError| IdentityError::invalid(whence, e);
    let now = authority::unix_now();
    let (authority, _) = authority::Authority::make(storage::random_cluster(), now).map_err(made)?;
    let issue = |node: &NodeId| {
        let validity = authority::Validity::starting(now, Duration::from_secs(24 * 3600));
        authority.issue(*node, validity).map_err(made)?.identity(&authority, whence)
    };
    nodes.iter().map(issue).collect()
}

/// Starts QUIC on `address`, and TCP beside it; where they listen.
pub fn start_both(parts: Parts, address: SocketAddr) -> io::Result<(Both, Quic, SocketAddr)> {
    let keeper = Arc::clone(&parts.keeper);
    let quic = Quic::start(parts, address)?;
    let (listener, bound) = bind_tcp(quic.address()?)?;
    let tcp = Tcp::beside(&quic);
    tokio::spawn(listener::run(listener, Entrances { keeper, calls: Some(tcp.shared()), join: None }));
    Ok((Both::new(quic.clone(), tcp), quic, bound))
}

/// Starts a TCP body that listens on `address`; where it listens.
pub fn start_tcp(parts: Parts, address: SocketAddr) -> io::Result<(Tcp, SocketAddr)> {
    let (listener, bound) = bind_tcp(address)?;
    let keeper = Arc::clone(&parts.keeper);
    let tcp = Tcp::new(parts);
    tokio::spawn(listener::run(listener, Entrances { keeper, calls: Some(tcp.shared()), join: None }));
    Ok((tcp, bound))
}
