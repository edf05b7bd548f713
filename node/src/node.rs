//! The node put together: users, disks, APIs, listeners; and taken apart in the reverse order.
//!
//! Invariant: whatever cannot be had is found out before the first request is accepted.
//! Invariant: the well-known test users exist on loopback addresses alone.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::auth::users_file::{self, UsersError};
use crate::auth::{Auth, Endpoints, SetupError, unix_now};
use crate::cluster::{Cluster, ClusterError};
use crate::config::{self, Config};
use crate::http::{Bounds, Entrance, Front, serve};
use crate::metrics::Metrics;
use crate::storage::{OpenError, Progress, Storage};
use crate::swift::{self, SwiftApi};

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory.
    #[error("make data directory {}: {source}; give another one as node.data", path.display())]
    Data {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A listener.
    #[error("listen on {address} ({name}): {source}; stop what listens there, or give another port")]
    Listen {
        /// `object`, `identity` or `admin`.
        name: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Well-known users where others could reach them.
    #[error(
        "add test users: {0} is not a loopback address; their keys are public, so listen on 127.0.0.1 or leave them out"
    )]
    TestUsersExposed(SocketAddr),
    /// Generated users.
    #[error("read users: {0}")]
    Users(String),
    /// Keys, revocations, users.
    #[error("set up authentication: {0}")]
    Auth(String),
    /// Disks.
    #[error(transparent)]
    Disks(#[from] OpenError),
    /// Other nodes.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl From<SetupError> for NodeError {
    fn from(error: SetupError) -> Self {
        Self::Auth(error.to_string())
    }
}

impl From<UsersError> for NodeError {
    fn from(error: UsersError) -> Self {
        Self::Users(error.to_string())
    }
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    /// Where the object API listens.
    pub object: SocketAddr,
    /// Where the identity API listens.
    pub identity: SocketAddr,
    /// Where metrics and status are.
    pub admin: SocketAddr,
    stop: watch::Sender<bool>,
    listeners: JoinSet<()>,
    cluster: Option<Cluster>,
    storage: Storage,
}

/// The users of a node: those of the configuration, or else generated ones; and the test users when wanted.
pub(crate) fn users(config: &Config, test_users: bool) -> Result<Vec<config::Auth>, NodeError> {
    make_private_directory(&config.node.data)?;
    let mut listed = config.auth.clone();
    if listed.is_empty() {
        listed = users_file::load_or_generate(&config.node.data)?;
    }
    if !test_users {
        return Ok(vec![listed]);
    }
    let public = [config.listen.object, config.listen.identity].map(|address| address.0);
    if let Some(exposed) = public.into_iter().find(|address| !address.ip().is_loopback()) {
        return Err(NodeError::TestUsersExposed(exposed));
    }
    let known = users_file::test_users();
    let name = |user: &config::V1User| (user.account.get_ref().clone(), user.user.get_ref().clone());
    let known_names: Vec<_> = known.v1_users.iter().map(name).collect();
    listed.v1_users.retain(|user| !known_names.contains(&name(user)));
    Ok(vec![known, listed])
}

/// Makes a directory, for its owner alone.
pub(crate) fn make_private_directory(path: &Path) -> Result<(), NodeError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| NodeError::Data { path: path.to_owned(), source })
}

impl Node {
    /// Opens the disks and serves; returns when all listeners accept.
    pub(crate) async fn start(
        config: &Config,
        users: &[config::Auth],
        progress: Progress,
    ) -> Result<Self, NodeError> {
        make_private_directory(&config.node.data)?;
        let object = bind("object", config.listen.object).await?;
        let identity = bind("identity", config.listen.identity).await?;
        let admin = bind("admin", config.listen.admin).await?;
        let endpoints = Endpoints::new(&config.listen, object.1.port(), identity.1.port());
        let lists: Vec<_> = users.iter().collect();
        let auth = Arc::new(Auth::open(config, &lists, &config.node.data, endpoints, unix_now)?);
        let storage = open_storage(config, progress).await?;
        let cluster = match start_cluster(config, &storage).await {
            Ok(cluster) => cluster,
            Err(error) => {
                storage.close().await;
                return Err(error);
            }
        };
        let metrics = Metrics::new(storage.status());
        let limits = &config.limits;
        let objects =
            SwiftApi::new(storage.store(), swift::Limits::default(), swift::SwiftOptions::default());
        let (slow, body_timeout) = (config.log.slow.get(), limits.body_timeout.get());
        let front = Front::new(auth, objects, metrics, storage.status(), slow, body_timeout);
        let front = Arc::new(front);
        let (stop, stopped) = watch::channel(false);
        let mut listeners = JoinSet::new();
        let bounds = Bounds::from(limits);
        let addresses = [object.1, identity.1, admin.1];
        for (entrance, (listener, _)) in
            [(Entrance::Object, object), (Entrance::Identity, identity), (Entrance::Admin, admin)]
        {
            listeners.spawn(serve(listener, entrance, Arc::clone(&front), bounds, stopped.clone()));
        }
        let [object, identity, admin] = addresses;
        tracing::info!(%object, %identity, %admin, "serving");
        Ok(Self { object, identity, admin, stop, listeners, cluster, storage })
    }

    /// Stops accepting, lets requests end within the drain time, then closes the disks.
    pub async fn stop(mut self) {
        tracing::info!("stopping: requests in flight may end");
        self.stop.send_replace(true);
        while let Some(ended) = self.listeners.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "end listener");
            }
        }
        if let Some(cluster) = self.cluster {
            cluster.stop().await;
        }
        self.storage.close().await;
        tracing::info!("stopped");
    }
}

/// Takes part in the cluster that is configured.
async fn start_cluster(config: &Config, storage: &Storage) -> Result<Option<Cluster>, NodeError> {
    let Some(settings) = &config.cluster else { return Ok(None) };
    let replicas = storage.store().replicas().to_vec();
    Ok(Some(Cluster::start(settings, &config.node.data, replicas).await?))
}

/// Opening may replay a log: not on a thread that serves.
async fn open_storage(config: &Config, mut progress: Progress) -> Result<Storage, NodeError> {
    let config = config.clone();
    let runtime = tokio::runtime::Handle::current();
    let opened = tokio::task::spawn_blocking(move || Storage::open(&config, &runtime, &mut progress)).await;
    Ok(opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

async fn bind(name: &'static str, address: config::Address) -> Result<(TcpListener, SocketAddr), NodeError> {
    let failed = |source| NodeError::Listen { name, address: address.0, source };
    let listener = TcpListener::bind(address.0).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// SIGTERM and SIGINT, caught from the moment this is made.
#[derive(Debug)]
pub(crate) struct StopSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignal {
    /// Begins to catch; the process is no longer ended by them.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves at the next one.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
