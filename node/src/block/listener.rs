//! Where NBD clients connect: a TCP address, a socket in the file system.
//!
//! Invariant: a socket in the file system is its owner's alone, and one that a dead node left is replaced.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quarry_volume::nbd::Tls;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::admission::Admission;
use super::connection::{Host, Wire, serve};
use super::threads::Threads;
use super::{Exports, tls};
use crate::config::{Nbd, TlsMode};

/// Why NBD clients cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address.
    #[error("listen on {0} (nbd): {1}; stop what listens there, or give another port")]
    Address(SocketAddr, io::Error),
    /// A socket.
    #[error("listen on {path} (nbd): {source}; give another path as nbd.socket")]
    Socket {
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Certificates.
    #[error("set up TLS of volumes: {0}")]
    Tls(String),
}

/// Bound listeners that accept nobody yet.
#[derive(Debug)]
pub(crate) struct BlockListeners {
    tcp: Option<(TcpListener, SocketAddr)>,
    unix: Option<(UnixListener, PathBuf)>,
    acceptor: Option<Acceptor>,
    mode: Tls,
    most: usize,
}

/// What accepts TLS connections, and the files that it is from.
struct Acceptor {
    files: tls::Files,
    now: tokio_rustls::TlsAcceptor,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("files", &self.files).finish_non_exhaustive()
    }
}

impl BlockListeners {
    /// Binds what the configuration names.
    pub(crate) async fn bind(nbd: &Nbd) -> Result<Self, ListenError> {
        let files = tls::Files::new(nbd);
        let acceptor = files.acceptor().map_err(ListenError::Tls)?.map(|now| Acceptor { files, now });
        let mode = match nbd.tls {
            TlsMode::Off => Tls::Off,
            TlsMode::Offered => Tls::Offered,
            TlsMode::Required => Tls::Required,
        };
        let tcp = match &nbd.listen {
            None => None,
            Some(address) => {
                let address = address.get_ref().0;
                let failed = |error| ListenError::Address(address, error);
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                let bound = listener.local_addr().map_err(failed)?;
                Some((listener, bound))
            }
        };
        let unix = match &nbd.socket {
            None => None,
            Some(path) => {
                let path = path.get_ref().clone();
                let listener = bind_socket(&path)
                    .map_err(|source| ListenError::Socket { path: path.display().to_string(), source })?;
                Some((listener, path))
            }
        };
        let most = usize::try_from(nbd.connections.0).unwrap_or(usize::MAX);
        Ok(Self { tcp, unix, acceptor, mode, most })
    }

    /// The address that clients connect to.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|(_, address)| *address)
    }

    /// Accepts clients until the node stops; each task ends when its clients are gone.
    pub(crate) fn serve(
        self,
        exports: &Arc<Exports>,
        tasks: &mut JoinSet<()>,
        stopped: &watch::Receiver<bool>,
    ) {
        let acceptor = self.acceptor.map(|Acceptor { files, now }| {
            let (show, shown) = watch::channel(now);
            let mut stopped = stopped.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = files.follow(show) => {}
                    () = told(&mut stopped) => {}
                }
            });
            shown
        });
        let exports = Arc::clone(exports);
        let admission = Arc::new(Admission::new(self.most));
        let host = Host { exports, tls: self.mode, acceptor, admission, stopped: stopped.clone() };
        let threads = Arc::new(Threads::start());
        if let Some((listener, _)) = self.tcp {
            tasks.spawn(accept_tcp(listener, host.clone(), Arc::clone(&threads)));
        }
        if let Some((listener, path)) = self.unix {
            // Who may open the socket is who its owner is: nothing is sent over a network.
            let host = Host { tls: Tls::Off, acceptor: None, ..host };
            tasks.spawn(accept_unix(listener, path, host, threads));
        }
    }
}

fn bind_socket(path: &PathBuf) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    // What else is there is somebody's file.
    if std::fs::symlink_metadata(path).is_ok_and(|file| !file.file_type().is_socket()) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is there, and no socket"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves one client as a task. `wire`: called where it is served.
fn begin(
    wire: impl FnOnce() -> io::Result<Box<dyn Wire>> + Send + 'static,
    host: &Host,
    threads: &Threads,
    clients: &mut JoinSet<()>,
) {
    let host = host.clone();
    let client = async move {
        let served = match wire() {
            Ok(wire) => serve(wire, host).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            tracing::debug!(%error, "end an NBD connection");
        }
    };
    match threads.next() {
        Some(runtime) => clients.spawn_on(client, runtime),
        None => clients.spawn(client),
    };
    // Those that ended are forgotten.
    while clients.try_join_next().is_some() {}
}

/// A client whose machine is gone holds its volume for less than two minutes.
fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 5)?;
    sockopt::set_socket_keepalive(stream, true)
}

async fn accept_tcp(listener: TcpListener, host: Host, threads: Arc<Threads>) {
    let mut clients = JoinSet::new();
    let mut stopped = host.stopped.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Replies must not wait for more of them.
                    let _slower = stream.set_nodelay(true);
                    if let Err(error) = keep_alive(&stream) {
                        tracing::debug!(%error, "look after an NBD connection");
                    }
                    let wire = move || Ok(Box::new(TcpStream::from_std(stream.into_std()?)?) as Box<dyn Wire>);
                    begin(wire, &host, &threads, &mut clients);
                }
                Err(error) => pause(&error).await,
            },
            () = told(&mut stopped) => break,
        }
    }
    while clients.join_next().await.is_some() {}
}

async fn accept_unix(listener: UnixListener, path: PathBuf, host: Host, threads: Arc<Threads>) {
    let mut clients = JoinSet::new();
    let mut stopped = host.stopped.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let wire = move || Ok(Box::new(UnixStream::from_std(stream.into_std()?)?) as Box<dyn Wire>);
                    begin(wire, &host, &threads, &mut clients);
                }
                Err(error) => pause(&error).await,
            },
            () = told(&mut stopped) => break,
        }
    }
    while clients.join_next().await.is_some() {}
    let _gone = std::fs::remove_file(path);
}

/// The node is told to stop.
pub(super) async fn told(stopped: &mut watch::Receiver<bool>) {
    // A node that is gone has stopped too.
    let _gone = stopped.wait_for(|stop| *stop).await;
}

/// Out of descriptors, most likely: the next try is a moment later.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "accept an NBD client");
    tokio::time::sleep(Duration::from_millis(50)).await;
}
