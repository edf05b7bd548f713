//! One listener: accepts, serves HTTP/1.1, and drains when told to stop.
//!
//! Invariant: at most `connections` are served at once; the next waits in the kernel's queue (back-pressure).
//! Invariant: a client that takes nothing of an answer for `body_timeout` is given up.
//! Invariant: after `stop`, nothing new is accepted, and all connections end by the drain time.
//! Invariant: a client that keeps a connection hears that it ends: by `Connection: close` on an answer, or, when it asks nothing
//! for [`NOTICE`], by its end while nothing is under way.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::header::CONNECTION;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::dispatch::{Entrance, Front};
use super::target::{BetweenRequests, Lines};
use crate::config::Limits;

/// Pause after a failed accept (out of descriptors): time for others to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long kept connections still take a request after `stop`, which is answered with `Connection: close`: a client that is busy
/// asks again within this time, and one that is not notices the end before it asks.
const NOTICE: Duration = Duration::from_secs(1);

/// How long connections are taken after `stop` that were made before it.
const LATE: Duration = Duration::from_millis(20);

/// Pause between two lines that say that a listener is full.
const SAY_FULL: Duration = Duration::from_secs(60);

/// What a listener allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    connections: usize,
    headers: usize,
    header_bytes: usize,
    header_timeout: Duration,
    body_timeout: Duration,
    drain: Duration,
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        Self {
            connections: limits.connections.get(),
            headers: limits.headers.get(),
            header_bytes: limits.header_bytes.get(),
            header_timeout: limits.header_timeout.get(),
            body_timeout: limits.body_timeout.get(),
            drain: limits.drain.get(),
        }
    }
}

/// Serves until `stop` says true, then drains.
pub(crate) async fn serve(
    listener: TcpListener,
    entrance: Entrance,
    front: Arc<Front>,
    bounds: Bounds,
    mut stop: watch::Receiver<bool>,
) {
    let desk = Desk::new(entrance, front, bounds, stop.clone());
    let mut said: Option<Instant> = None;
    loop {
        if desk.room.available_permits() == 0 && said.is_none_or(|said| said.elapsed() >= SAY_FULL) {
            said = Some(Instant::now());
            let most = bounds.connections;
            tracing::warn!(
                ?entrance,
                most,
                "every place of this listener is taken: who connects now waits (limits.connections)"
            );
        }
        let accepted = tokio::select! {
            accepted = accept(&listener, &desk.room, &bounds) => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        if let Some(accepted) = accepted {
            desk.take(accepted);
        }
    }
    // Those in the kernel's queue believe to be connected: they are answered, not reset.
    let end = tokio::time::Instant::now() + LATE;
    while let Ok(accepted) = tokio::time::timeout_at(end, accept(&listener, &desk.room, &bounds)).await {
        if let Some(accepted) = accepted {
            desk.take(accepted);
        }
    }
    drop(listener);
    desk.drain(bounds).await;
}

/// What a listener's connections have in common.
struct Desk {
    entrance: Entrance,
    front: Arc<Front>,
    http: http1::Builder,
    graceful: GracefulShutdown,
    room: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
    kill: watch::Sender<bool>,
}

/// A connection, and its place.
type Accepted = (TcpStream, SocketAddr, OwnedSemaphorePermit);

impl Desk {
    fn new(entrance: Entrance, front: Arc<Front>, bounds: Bounds, stop: watch::Receiver<bool>) -> Self {
        let mut http = http1::Builder::new();
        // Some of Swift's clients compare names of headers with their case.
        http.timer(TokioTimer::new())
            .title_case_headers(true)
            .header_read_timeout(bounds.header_timeout)
            .max_headers(bounds.headers)
            .max_header_size(bounds.header_bytes);
        let room = Arc::new(Semaphore::new(bounds.connections));
        let (graceful, (kill, _)) = (GracefulShutdown::new(), watch::channel(false));
        Self { entrance, front, http, graceful, room, stop, kill }
    }

    /// Serves a connection, on a task of its own.
    fn take(&self, (stream, peer, permit): Accepted) {
        let (entrance, front, stop) = (self.entrance, Arc::clone(&self.front), self.stop.clone());
        let metrics = Arc::clone(&front.metrics);
        metrics.connected(entrance);
        let between = BetweenRequests::new();
        let stream = Lines::new(stream, between.clone());
        let service = service_fn(move |request| {
            let (front, between, stop) = (Arc::clone(&front), between.clone(), stop.clone());
            async move {
                let mut response = front.answer(entrance, peer, between, request).await;
                if *stop.borrow() {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let connection = self.graceful.watch(self.http.serve_connection(TokioIo::new(stream), service));
        let mut killed = self.kill.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "serve connection");
                },
                _ = killed.wait_for(|killed| *killed) => {}
            }
            metrics.disconnected(entrance);
            drop(permit);
        });
    }

    /// Ends all connections: first those whose client asks once more, then those that are idle, then those that take too long.
    async fn drain(self, bounds: Bounds) {
        let everyone = u32::try_from(bounds.connections).unwrap_or(u32::MAX);
        let notice = NOTICE.min(bounds.drain);
        if tokio::time::timeout(notice, self.room.acquire_many(everyone)).await.is_ok() {
            return;
        }
        let rest = bounds.drain.saturating_sub(notice);
        if tokio::time::timeout(rest, self.graceful.shutdown()).await.is_err() {
            let entrance = self.entrance;
            tracing::warn!(?entrance, "requests still ran after the drain time and were cut");
        }
        self.kill.send_replace(true);
        // Each task gives its place back at once when killed; the wait is for the scheduler alone.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.room.acquire_many(everyone)).await;
    }
}

/// A place, then a connection: in this order, so that a full node leaves connections to the kernel's queue.
async fn accept(listener: &TcpListener, room: &Arc<Semaphore>, bounds: &Bounds) -> Option<Accepted> {
    let permit = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%peer, %error, "set TCP_NODELAY");
            }
            // What an object's reader has not taken keeps segments from being used again: who takes nothing is given up by the kernel, also
            // one whose machine answers that its window is closed (`tcp_probe_timer`). Swift's proxy does so after `client_timeout`.
            let patience = u32::try_from(bounds.body_timeout.as_millis()).unwrap_or(u32::MAX);
            if let Err(error) = sockopt::set_tcp_user_timeout(&stream, patience) {
                tracing::debug!(%peer, %error, "set TCP_USER_TIMEOUT");
            }
            Some((stream, peer, permit))
        }
        Err(error) => {
            tracing::warn!(%error, "accept connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}
