//! The image service (Glance, v2), as its clients speak to it: with the token of who asks, or one in its place ([`Ticket`]).
//!
//! Invariant: an answer has a limit, and a service that says nothing for [`SILENCE`] is given up. So is one that bytes of an image are wanted
//! from, and that is not reached for as long: it may be starting, as this node is after a power failure.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{Method, Request, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::auth::Auth;
use crate::hidden::Hidden;
use crate::remote::{Remote, RemoteError};

/// How long it may say nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// How long it may take to keep what it was sent.
const KEEPING: Duration = Duration::from_secs(600);
/// Pause between two tries to reach it.
const PAUSE: Duration = Duration::from_secs(2);
/// Largest answer that is no image.
const MAX_ANSWER: usize = 1 << 20;

/// Why it did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// It cannot be reached.
    #[error("the image service is not reached: {0}")]
    Unreachable(#[from] RemoteError),
    /// It breaks off.
    #[error("the image service does not answer: {0}")]
    Away(String),
    /// It does not know the caller.
    #[error("the token that this was asked for with is no longer good for the image service")]
    Token,
    /// It says no.
    #[error("the image service answers {0}")]
    Refused(StatusCode),
}

impl ImageError {
    fn away(reason: impl std::fmt::Display) -> Self {
        Self::Away(reason.to_string())
    }

    fn silent() -> Self {
        Self::away("it says nothing")
    }

    fn refused(status: StatusCode) -> Self {
        if status == StatusCode::UNAUTHORIZED { Self::Token } else { Self::Refused(status) }
    }

    /// Whether the caller is to blame.
    pub(crate) fn is_callers(&self) -> bool {
        matches!(self, Self::Token) || matches!(self, Self::Refused(status) if status.is_client_error())
    }
}

type Sent = UnsyncBoxBody<Bytes, std::io::Error>;

fn whole(bytes: impl Into<Bytes>) -> Sent {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// What the service is asked with: the caller's token, or one in its place, where this node gave it out and it ends.
pub(crate) struct Ticket {
    pub(crate) token: Hidden,
    /// `None`: it is not renewed.
    pub(crate) auth: Option<Arc<Auth>>,
}

impl Ticket {
    fn now(&self) -> String {
        let lasting = self.auth.as_ref().and_then(|auth| auth.lasting(&self.token));
        lasting.unwrap_or_else(|| self.token.0.clone())
    }
}

/// The service, and what it is asked with.
pub(crate) struct Images {
    remote: Remote,
    ticket: Ticket,
}

/// What is downloaded.
pub(crate) struct Download {
    body: Incoming,
    /// Drives the connection while this lives.
    _connection: JoinSet<()>,
}

impl Download {
    /// The next bytes; `None`: that was all.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        loop {
            let frame = tokio::time::timeout(SILENCE, self.body.frame()).await;
            match frame.map_err(|_| ImageError::silent())? {
                None => return Ok(None),
                Some(Err(error)) => return Err(ImageError::away(error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                },
            }
        }
    }
}

impl Images {
    /// The service at a URL.
    pub(crate) fn at(url: &str, authority: Option<&Path>, ticket: Ticket) -> Result<Self, ImageError> {
        Ok(Self { remote: Remote::new(url, "/v2", authority)?, ticket })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Sent,
    ) -> Result<(StatusCode, Download), ImageError> {
        let io = TokioIo::new(self.remote.connect().await?);
        let shaken = hyper::client::conn::http1::handshake(io).await;
        let (mut sender, connection) = shaken.map_err(ImageError::away)?;
        let mut running = JoinSet::new();
        // How it ends is told by the body's end.
        running.spawn(async move { drop(connection.await) });
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.remote.prefix));
        request = request.header("host", &self.remote.address).header("x-auth-token", self.ticket.now());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).map_err(ImageError::away)?;
        let answer = sender.send_request(request).await.map_err(ImageError::away)?;
        Ok((answer.status(), Download { body: answer.into_body(), _connection: running }))
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ImageError> {
        let body = whole(body.map_or_else(String::new, Value::to_string));
        let asked = async {
            let headers = [("content-type", "application/json")];
            let (status, answer) = self.send(method, path, &headers, body).await?;
            if !status.is_success() {
                return Err(ImageError::refused(status));
            }
            let whole = Limited::new(answer.body, MAX_ANSWER).collect().await;
            let whole = whole.map_err(|_| ImageError::away("its answer is too long or broken"))?;
            Ok(serde_json::from_slice(&whole.to_bytes()).unwrap_or(Value::Null))
        };
        tokio::time::timeout(SILENCE, asked).await.unwrap_or_else(|_| Err(ImageError::silent()))
    }

    /// What it knows of an image.
    pub(crate) async fn show(&self, id: &str) -> Result<Value, ImageError> {
        self.ask(Method::GET, &format!("/v2/images/{id}"), None).await
    }

    /// Makes an image that has no bytes yet.
    pub(crate) async fn create(&self, wanted: &Value) -> Result<Value, ImageError> {
        self.ask(Method::POST, "/v2/images", Some(wanted)).await
    }

    /// Deletes an image.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), ImageError> {
        self.ask(Method::DELETE, &format!("/v2/images/{id}"), None).await.map(drop)
    }

    /// What it knows of an image, whenever within [`SILENCE`] it is reached.
    pub(crate) async fn show_at_last(&self, id: &str) -> Result<Value, ImageError> {
        let shown = async {
            loop {
                match self.show(id).await {
                    Err(ImageError::Unreachable(_)) => tokio::time::sleep(PAUSE).await,
                    answer => return answer,
                }
            }
        };
        tokio::time::timeout(SILENCE, shown).await.unwrap_or_else(|_| Err(ImageError::silent()))
    }

    /// Gives an image its bytes, `length` of them.
    pub(crate) async fn upload(
        &self,
        id: &str,
        length: u64,
        bytes: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), ImageError> {
        let taken = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&taken);
        let frames = bytes.map(move |piece| {
            let piece = piece?;
            counted.fetch_add(piece.len() as u64, Ordering::Relaxed);
            Ok(Frame::data(piece))
        });
        let (body, whole) = (BodyExt::boxed_unsync(StreamBody::new(frames)), length.to_string());
        let headers = [("content-type", "application/octet-stream"), ("content-length", whole.as_str())];
        let path = format!("/v2/images/{id}/file");
        let mut sent = std::pin::pin!(self.send(Method::PUT, &path, &headers, body));
        let mut before = 0;
        let (status, _) = loop {
            let patience = if before == length { KEEPING } else { SILENCE };
            if let Ok(answer) = tokio::time::timeout(patience, &mut sent).await {
                break answer?;
            }
            let now = taken.load(Ordering::Relaxed);
            if now == before {
                return Err(ImageError::silent());
            }
            before = now;
        };
        if status.is_success() { Ok(()) } else { Err(ImageError::refused(status)) }
    }

    /// The bytes of an image.
    pub(crate) async fn download(&self, id: &str) -> Result<Download, ImageError> {
        let path = format!("/v2/images/{id}/file");
        let asked = async {
            loop {
                match self.send(Method::GET, &path, &[], whole(Bytes::new())).await {
                    Err(ImageError::Unreachable(_)) => tokio::time::sleep(PAUSE).await,
                    answer => return answer,
                }
            }
        };
        let asked = tokio::time::timeout(SILENCE, asked).await;
        let (status, body) = asked.unwrap_or_else(|_| Err(ImageError::silent()))?;
        match status {
            StatusCode::OK => Ok(body),
            status => Err(ImageError::refused(status)),
        }
    }
}
