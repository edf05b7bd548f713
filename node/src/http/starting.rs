//! A node whose start takes long: a log is replayed, an index made anew, which may take hours. Whoever asks it something meanwhile is told so.
//!
//! For the first seconds who connects just waits: most starts are over by then, and no request fails for them.
//!
//! Invariant: nothing but this answers before the node serves, and this takes no connection afterwards; one that it took ends with its answer.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::dispatch::{Entrance, X_OPENSTACK_REQUEST_ID, X_TRANS_ID, X_TRANS_ID_EXTRA};
use super::trans_id::TransIds;
use crate::auth::unix_now;
use crate::storage::Progress;

/// How long those who connect wait before they are told.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections of a listener at a time.
const CONNECTIONS: usize = 64;
/// How long one may take.
const WITHIN: Duration = Duration::from_secs(10);
/// How long what a client goes on sending is read.
const REST: Duration = Duration::from_secs(2);
/// Bytes of a request's head.
const HEADER_BYTES: usize = 64 << 10;
/// When to ask again, seconds.
const AGAIN: HeaderValue = HeaderValue::from_static("10");

/// How far the start is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stage(Arc<Mutex<Option<(String, u64)>>>);

impl Stage {
    /// Told what is told to another one as well.
    pub(crate) fn with(&self, mut other: Progress) -> Progress {
        let stage = Arc::clone(&self.0);
        Box::new(move |what, done, total| {
            let percent = u128::from(done.min(total)) * 100 / u128::from(total.max(1));
            let now = Some((what.to_owned(), u64::try_from(percent).unwrap_or(100)));
            *stage.lock().unwrap_or_else(PoisonError::into_inner) = now;
            other(what, done, total);
        })
    }

    /// The disks are open.
    pub(crate) fn opened(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn text(&self) -> String {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((what, percent)) => format!("The node is starting: {what}, {percent} %."),
            None => "The node is starting.".to_owned(),
        }
    }
}

/// Answers at the listeners of a node that is starting, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Starting(#[expect(dead_code, reason = "its tasks end with it")] JoinSet<()>);

impl Starting {
    /// Begins after a while.
    pub(crate) fn begin(listeners: [(Entrance, &TcpListener); 4], stage: &Stage) -> io::Result<Self> {
        let (mut tasks, ids) = (JoinSet::new(), Arc::new(TransIds::new()));
        for (entrance, listener) in listeners {
            // The same socket: what nobody accepted here waits for the node.
            let twin = std::net::TcpListener::from(listener.as_fd().try_clone_to_owned()?);
            tasks.spawn(answer(TcpListener::from_std(twin)?, entrance, stage.clone(), Arc::clone(&ids)));
        }
        Ok(Self(tasks))
    }
}

async fn answer(listener: TcpListener, entrance: Entrance, stage: Stage, ids: Arc<TransIds>) {
    tokio::time::sleep(PATIENCE).await;
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (stage, ids) = (stage.clone(), Arc::clone(&ids));
                // Not one of the tasks that end with the start: who is being answered is answered.
                tokio::spawn(async move {
                    let _ended = tokio::time::timeout(WITHIN, refuse(stream, entrance, stage, ids)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accept connection while starting");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn refuse(stream: TcpStream, entrance: Entrance, stage: Stage, ids: Arc<TransIds>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let id = ids.next(unix_now(), request.headers().get(X_TRANS_ID_EXTRA)).header();
        let mut response = refusal(entrance, &stage.text());
        response.headers_mut().insert(X_TRANS_ID, id.clone());
        response.headers_mut().insert(X_OPENSTACK_REQUEST_ID, id);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .title_case_headers(true)
        .header_read_timeout(WITHIN)
        .max_header_size(HEADER_BYTES);
    match http.serve_connection(TokioIo::new(stream), service).without_shutdown().await {
        Ok(parts) => part_with(parts.io.into_inner()).await,
        Err(error) => tracing::debug!(%error, "refuse a request while starting"),
    }
}

/// Ends a connection whose client may be sending a body: where that is not read, the kernel resets the connection, and the client may never see
/// the answer.
async fn part_with(mut stream: TcpStream) {
    let rest = async {
        stream.shutdown().await?;
        let mut piece = vec![0; 64 << 10];
        while stream.read(&mut piece).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    let _over = tokio::time::timeout(REST, rest).await;
}

/// In the form of the errors of the API that was asked: Keystone's, Cinder's, text elsewhere.
fn refusal(entrance: Entrance, text: &str) -> Response<Full<Bytes>> {
    let code = StatusCode::SERVICE_UNAVAILABLE.as_u16();
    let (content_type, body) = match entrance {
        Entrance::Object | Entrance::Admin => ("text/plain", format!("{text}\n")),
        Entrance::Identity => {
            let error = serde_json::json!({"code": code, "title": "Service Unavailable", "message": text});
            ("application/json", serde_json::json!({ "error": error }).to_string())
        }
        Entrance::Volume => {
            let error = serde_json::json!({"code": code, "message": text});
            ("application/json", serde_json::json!({ "serviceUnavailable": error }).to_string())
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(RETRY_AFTER, AGAIN);
    response
}
