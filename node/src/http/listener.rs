//! One listener: accepts, serves HTTP/1.1, and drains when told to stop.
//!
//! Invariant: at most `connections` are served at once; the next waits in the kernel's queue (back-pressure).
//! Invariant: after `stop`, nothing new is accepted, and all connections end by the drain time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::dispatch::{Entrance, Front};
use super::target::{BetweenRequests, Lines};
use crate::config::Limits;

/// Pause after a failed accept (out of descriptors): time for others to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener allows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    connections: usize,
    headers: usize,
    header_bytes: usize,
    header_timeout: Duration,
    drain: Duration,
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        Self {
            connections: limits.connections.get(),
            headers: limits.headers.get(),
            header_bytes: limits.header_bytes.get(),
            header_timeout: limits.header_timeout.get(),
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
    let mut http = http1::Builder::new();
    // Some of Swift's clients compare names of headers with their case.
    http.timer(TokioTimer::new())
        .title_case_headers(true)
        .header_read_timeout(bounds.header_timeout)
        .max_headers(bounds.headers)
        .max_header_size(bounds.header_bytes);
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(bounds.connections));
    let (kill, killed) = watch::channel(false);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &room) => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Some((stream, peer, permit)) = accepted else { continue };
        front.metrics.connected(entrance);
        let answering = Arc::clone(&front);
        let between = BetweenRequests::new();
        let stream = Lines::new(stream, between.clone());
        let service = service_fn(move |request| {
            let (front, between) = (Arc::clone(&answering), between.clone());
            async move { Ok::<_, Infallible>(front.answer(entrance, peer, between, request).await) }
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        let mut killed = killed.clone();
        let metrics = Arc::clone(&front.metrics);
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
    drop(listener);
    if tokio::time::timeout(bounds.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(?entrance, "requests still ran after the drain time and were cut");
    }
    kill.send_replace(true);
    let everyone = u32::try_from(bounds.connections).unwrap_or(u32::MAX);
    // Each task gives its place back at once when killed; the wait is for the scheduler alone.
    let _ = tokio::time::timeout(Duration::from_secs(5), room.acquire_many(everyone)).await;
}

/// A place, then a connection: in this order, so that a full node leaves connections to the kernel's queue.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%peer, %error, "set TCP_NODELAY");
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
