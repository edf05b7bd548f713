//! The node put together: users, disks, APIs, listeners; and taken apart in the reverse order.
//!
//! Invariant: whatever cannot be had is found out before the first request is accepted.
//! Invariant: the well-known test users exist on loopback addresses alone.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quarry_engine::object::Store;
use quarry_volume::store::VolumeError;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::auth::users_file::{self, UsersError};
use crate::auth::{self, Auth, Endpoints, Listed, SetupError, unix_now};
use crate::block::keys::{KeyError, Keys};
use crate::block::{BlockListeners, Blocks, ListenError};
use crate::cinder::Cinder;
use crate::claim::{Claim, PATIENCE, claim};
use crate::cluster::Identity;
use crate::cluster::identity::Files;
use crate::config::{self, Config};
use crate::control::MemberError;
use crate::control::member::Member;
use crate::control::operator::Operator;
use crate::control::report::report;
use crate::control::state::State;
use crate::http::{Bounds, Entrance, Front, Stage, Starting, serve};
use crate::metrics::Metrics;
use crate::panics;
use crate::papers::Cabinet;
use crate::storage::{self, Disks, OpenError, Progress, Storage};
use crate::swift::{self, SwiftApi};

/// How long a step of stopping may take, and writing down what disks hold in memory.
const STEP: Duration = Duration::from_secs(10);
const CLOSE: Duration = Duration::from_secs(30);

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
    /// Another node has it.
    #[error("claim data directory {}: {source}; give each node a directory of its own as node.data", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who has it.
        source: io::Error,
    },
    /// A listener.
    #[error("listen on {address} ({name}): {source}; stop what listens there, or give another port")]
    Listen {
        /// `object`, `identity`, `volume` or `admin`.
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
    /// Listeners of volumes.
    #[error(transparent)]
    Blocks(#[from] ListenError),
    /// Keys of encrypted volumes.
    #[error("read the key of encrypted volumes: {0}")]
    Keys(#[from] KeyError),
    /// Volumes.
    #[error("read volumes: {0}")]
    Volumes(#[from] VolumeError),
    /// Other nodes.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// Something that it cannot do without.
    #[error("serve: {0}; the log says where; report this, and start the node again")]
    Broken(JoinError),
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

/// Lets the process have as many open files as the system permits: a session's usual limit of 1,024 is a few hundred clients, and where it
/// is reached the index of a disk cannot open its files either.
fn allow_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "raise the limit on open files; set it for the service (LimitNOFILE)");
    }
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    /// Where the object API listens.
    pub object: SocketAddr,
    /// Where the identity API listens.
    pub identity: SocketAddr,
    /// Where the volume API listens.
    pub volume: SocketAddr,
    /// Where metrics and status are.
    pub admin: SocketAddr,
    /// Where NBD clients connect, if anywhere.
    pub nbd: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    drain: Duration,
    listeners: JoinSet<()>,
    member: Option<Member>,
    storage: Storage,
}

/// The users of a node: those of the configuration, or else generated ones; and the test users when wanted. A cluster has
/// those that its founder made.
pub(crate) fn users(config: &Config, test_users: bool) -> Result<Listed, NodeError> {
    let data = &config.node.data;
    make_private_directory(data)?;
    // A directory that is not mounted, or not joined, is not to be filled with new users and keys.
    if config.cluster.is_some() {
        Identity::load(data).map_err(MemberError::from)?;
    }
    storage::check_first_start(config)?;
    let mut listed = Listed { own: config.auth.clone(), ..Listed::default() };
    let founds = Files::of(data).founder.exists();
    match &config.cluster {
        None if listed.own.is_empty() => listed.own = users_file::load_or_generate(data)?,
        None => {}
        Some(_) if founds && listed.own.is_empty() => listed.made = Some(users_file::load_or_generate(data)?),
        Some(_) => listed.made = users_file::of_founder(data)?,
    }
    if !test_users {
        return Ok(listed);
    }
    let public =
        [config.listen.object, config.listen.identity, config.listen.volume].map(|address| address.0);
    if let Some(exposed) = public.into_iter().find(|address| !address.ip().is_loopback()) {
        return Err(NodeError::TestUsersExposed(exposed));
    }
    let known = users_file::test_users();
    let name = |user: &config::V1User| (user.account.get_ref().clone(), user.user.get_ref().clone());
    let known_names: Vec<_> = known.v1_users.iter().map(name).collect();
    listed.own.v1_users.retain(|user| !known_names.contains(&name(user)));
    listed.test = Some(known);
    Ok(listed)
}

/// Makes the data directory this process's own, for as long as what is returned lives; before anything in it is read.
pub(crate) fn claim_data(data: &Path) -> Result<Claim, NodeError> {
    make_private_directory(data)?;
    claim(data, PATIENCE).map_err(|source| NodeError::InUse { path: data.to_owned(), source })
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
        users: &Listed,
        progress: Progress,
    ) -> Result<Self, NodeError> {
        allow_open_files();
        make_private_directory(&config.node.data)?;
        let object = bind("object", config.listen.object).await?;
        let identity = bind("identity", config.listen.identity).await?;
        let volume = bind("volume", config.listen.volume).await?;
        let admin = bind("admin", config.listen.admin).await?;
        let block_listeners = BlockListeners::bind(&config.nbd).await?;
        let endpoints = Endpoints::new(&config.listen, object.1.port(), identity.1.port(), volume.1.port());
        let auth = Arc::new(Auth::open(config, users, &config.node.data, endpoints, unix_now)?);
        let keys = open_keys(config)?;
        let stage = Stage::default();
        let starting = Starting::begin(doors([&object.0, &identity.0, &volume.0, &admin.0]), &stage);
        let starting =
            starting.map_err(|source| NodeError::Listen { name: "object", address: object.1, source })?;
        let disks = open_disks(config, stage.with(progress)).await?;
        stage.opened();
        let opened = async {
            let (store, member) = open_store(config, &disks, users).await?;
            let blocks = Blocks::open(&disks, keys, member.as_ref(), &config.node.data).await?;
            disks.remember()?;
            Ok(((store, member), blocks))
        };
        let ((store, mut member), blocks) = match opened.await {
            Ok(opened) => opened,
            Err(error) => {
                disks.close().await;
                return Err(error);
            }
        };
        let cluster = member.as_ref().map(Member::peers);
        if let Some(member) = &mut member {
            auth.join(Arc::clone(&member.cluster.transport));
            let first = member.state.borrow_and_update().clone();
            auth.adopt(&first.people, None);
            member.cluster.run(follow_people(Arc::clone(&auth), first, member.state.clone()));
        }
        let runtime = tokio::runtime::Handle::current();
        let storage = Storage::start(disks, store, cluster.as_ref(), config, &runtime);
        let status = match &member {
            Some(member) => {
                let (groups, state) = (member.groups.clone(), member.state.clone());
                storage.status().with_cluster(move || report(&groups, &state.borrow()))
            }
            None => storage.status(),
        };
        let metrics = Metrics::new(status.clone());
        let limits = &config.limits;
        let objects =
            SwiftApi::new(storage.store(), swift::Limits::default(), swift::SwiftOptions::default());
        let (slow, body_timeout) = (config.log.slow.get(), limits.body_timeout.get());
        let front = Front::new(Arc::clone(&auth), objects, metrics, status, slow, body_timeout);
        let nbd = block_listeners.address();
        let net = member.as_ref().map(|member| Arc::clone(&member.cluster.transport));
        let alone = net.is_none();
        auth.keep_in(Cabinet::new(storage.store(), auth::PAPERS, alone));
        let followed = Arc::clone(&auth);
        let cinder =
            Cinder::new(storage.store(), blocks.clone(), net, nbd, &config.volumes, Some(Arc::clone(&auth)));
        let front = front.with_volumes(blocks.clone(), cinder.clone(), admin.1.ip());
        let front = Arc::new(match &member {
            Some(member) => front.in_cluster(Operator::new(member, admin.1.ip()), Arc::clone(&member.left)),
            None => front,
        });
        let (stop, stopped) = watch::channel(false);
        let mut listeners = JoinSet::new();
        let mut told = stopped.clone();
        listeners.spawn(async move {
            tokio::select! {
                () = followed.follow(alone) => {}
                _ = told.wait_for(|stopped| *stopped) => {}
            }
        });
        let bounds = Bounds::from(limits);
        let addresses = [object.1, identity.1, volume.1, admin.1];
        drop(starting);
        for (entrance, listener) in doors([object.0, identity.0, volume.0, admin.0]) {
            listeners.spawn(serve(listener, entrance, Arc::clone(&front), bounds, stopped.clone()));
        }
        block_listeners.serve(&blocks.exports, &mut listeners, &stopped);
        cinder.work(&mut listeners, stopped.clone());
        let members = member.as_ref().map(|member| Arc::clone(&member.volumes));
        blocks.replace(&mut listeners, stopped.clone());
        blocks.look_after_keys(&mut listeners, stopped.clone());
        blocks.reap(members, &mut listeners, stopped);
        let [object, identity, volume, admin] = addresses;
        tracing::info!(%object, %identity, %volume, %admin, ?nbd, "serving");
        if !admin.ip().is_loopback() {
            tracing::warn!(%admin, "whoever reaches the admin listener reads metrics, status and volumes' names; keep it private");
        }
        let drain = limits.drain.get();
        Ok(Self { object, identity, volume, admin, nbd, stop, drain, listeners, member, storage })
    }

    /// Waits until something panics without which the node only looks well: a listener, the cluster's state, what looks after keys.
    pub(crate) async fn broken(&mut self) -> NodeError {
        let member = self.member.as_mut();
        let apart = async {
            match member {
                Some(member) => member.cluster.panicked().await,
                None => std::future::pending().await,
            }
        };
        let error = tokio::select! {
            error = panics::first(&mut self.listeners) => error,
            error = apart => error,
        };
        tracing::error!(%error, "a task of the node is gone, and the node stops");
        NodeError::Broken(error)
    }

    /// Stops accepting, lets others lead and requests end within the drain time, then closes the disks.
    pub async fn stop(mut self) {
        tracing::info!("stopping: requests in flight may end");
        self.stop.send_replace(true);
        let leads = self.member.as_ref().map(|member| member.groups.clone());
        let others_lead = async {
            if let Some(groups) = leads {
                within("let others lead", STEP, groups.step_down()).await;
            }
        };
        let answered = async {
            while let Some(ended) = self.listeners.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(%error, "end listener");
                }
            }
        };
        // Beyond the drain time only a device that answers nothing keeps a request.
        let answered = within("answer requests", self.drain + CLOSE, answered);
        tokio::join!(others_lead, answered);
        let Some(disks) = within("end background work", STEP, self.storage.stop()).await else { return };
        if let Some(member) = self.member {
            within("leave the groups", STEP, member.stop()).await;
        }
        within("close the disks", CLOSE, disks.close()).await;
        tracing::info!("stopped");
    }
}

/// A step of stopping, which may not hold up the others for ever: a node can be killed at any moment, and starts again all the same.
async fn within<T>(what: &str, limit: Duration, step: impl Future<Output = T>) -> Option<T> {
    let ended = tokio::time::timeout(limit, step).await;
    if ended.is_err() {
        tracing::warn!(
            what,
            seconds = limit.as_secs(),
            "a step of stopping takes too long and is left; the next start recovers"
        );
    }
    ended.ok()
}

/// Takes over what changes of the cluster's users, keys and revocations.
async fn follow_people(auth: Arc<Auth>, mut last: Arc<State>, mut state: watch::Receiver<Arc<State>>) {
    while state.changed().await.is_ok() {
        let seen = Arc::clone(&state.borrow_and_update());
        auth.adopt(&seen.people, Some(&last.people));
        last = seen;
    }
}

/// The object layer: that of the cluster, when one is configured, or this node's own.
async fn open_store(
    config: &Config,
    disks: &Disks,
    users: &Listed,
) -> Result<(Store, Option<Member>), NodeError> {
    let Some(settings) = &config.cluster else { return Ok((disks.alone()?, None)) };
    let (data, listed) = (&config.node.data, users.clone());
    let member = Member::start(settings, data, disks, storage::options(), listed).await?;
    Ok((member.store.clone(), Some(member)))
}

/// The keys of encrypted volumes, before others may join: they are told them.
fn open_keys(config: &Config) -> Result<Keys, KeyError> {
    let data = &config.node.data;
    Keys::open(data, config.cluster.is_none() || Files::of(data).authority_key.exists())
}

/// Which API each of the listeners is for.
fn doors<T>(listeners: [T; 4]) -> [(Entrance, T); 4] {
    let [object, identity, volume, admin] = listeners;
    [
        (Entrance::Object, object),
        (Entrance::Identity, identity),
        (Entrance::Volume, volume),
        (Entrance::Admin, admin),
    ]
}

/// Opening may replay a log: not on a thread that serves.
async fn open_disks(config: &Config, mut progress: Progress) -> Result<Disks, NodeError> {
    let own = config.clone();
    let opened = tokio::task::spawn_blocking(move || Disks::open(&own, &mut progress)).await;
    let disks = opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    Ok(disks.kept(config).await?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    /// A port that nobody accepts at any more, or a state of the cluster that nobody follows, looked like a node that was well.
    #[tokio::test]
    async fn a_node_without_one_of_its_tasks_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let listen: String = ["object", "identity", "volume", "admin"]
            .map(|name| format!("{name} = \"127.0.0.1:0\"\n"))
            .concat();
        let text = format!(
            "[node]\ndata = \"data\"\n[listen]\n{listen}[[disk]]\npath = \"disk0\"\nindex = \"index0\"\nsize = \"256M\"\n"
        );
        let config = Config::parse(Source { file: &dir.path().join("quarry.toml"), text: &text }).unwrap();
        let users = users(&config, false).unwrap();
        let mut node = Node::start(&config, &users, Box::new(|_, _, _| ())).await.unwrap();
        let (short, long) = (Duration::from_millis(200), Duration::from_secs(30));
        assert!(tokio::time::timeout(short, node.broken()).await.is_err(), "it is well");
        node.listeners.spawn(async { panic!("planted") });
        let error = tokio::time::timeout(long, node.broken()).await.unwrap();
        assert!(matches!(error, NodeError::Broken(_)), "{error}");
        node.stop().await;
    }

    /// What a listener answers to one request.
    async fn asked(port: u16, method: &str, body: &[u8]) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let head = format!(
            "{method} /healthcheck HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// While an index was made anew, for hours, whoever connected waited and was told nothing.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_takes_long_to_start_says_so_and_then_serves() {
        let dir = tempfile::tempdir().unwrap();
        let free = [(); 4].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = free.each_ref().map(|free| free.local_addr().unwrap().port());
        drop(free);
        let named = ["object", "identity", "volume", "admin"].into_iter().zip(ports);
        let listen: String = named.map(|(name, port)| format!("{name} = \"127.0.0.1:{port}\"\n")).collect();
        let text = format!(
            "[node]\ndata = \"data\"\n[listen]\n{listen}[[disk]]\npath = \"disk0\"\nindex = \"index0\"\nsize = \"256M\"\n"
        );
        let config = Config::parse(Source { file: &dir.path().join("quarry.toml"), text: &text }).unwrap();
        let users = users(&config, false).unwrap();
        let (go, told) = std::sync::mpsc::channel::<()>();
        let progress: Progress = Box::new(move |_, _, _| {
            let _over = told.recv();
        });
        let start = async { Node::start(&config, &users, progress).await.unwrap() };
        let others = async {
            let mut answers = Vec::new();
            for port in ports {
                answers.push(asked(port, "PUT", &vec![0; 1 << 20]).await);
            }
            drop(go);
            answers
        };
        let (node, answers) = tokio::join!(start, others);
        for (answer, form) in
            answers.iter().zip(["The node is", "{\"error\":{", "{\"serviceUnavailable\":{", "The node is"])
        {
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            for wanted in [
                "Retry-After: 10\r\n",
                "X-Trans-Id: tx",
                "X-Openstack-Request-Id: tx",
                "make disk file",
                form,
            ] {
                assert!(answer.contains(wanted), "{wanted} is not in {answer}");
            }
        }
        let answer = asked(node.object.port(), "GET", b"").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        node.stop().await;
    }
}
