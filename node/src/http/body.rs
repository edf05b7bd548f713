//! Bodies on their way through the node: counted, timed, and ended.
//!
//! Invariant: a client that stops sending ends its request after the idle time.
//! Invariant: a request is counted and logged once, when its answer is out or given up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::dispatch::Finish;
use crate::swift::ResponseBody;

/// Errors of bodies.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body: an error when the client sends nothing for too long.
#[derive(Debug)]
pub(crate) struct Received {
    body: Incoming,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    count: Arc<AtomicU64>,
}

/// The client sent nothing for the idle time.
#[derive(Debug, thiserror::Error)]
#[error("the client sent nothing for {0:?}")]
pub(crate) struct Stalled(Duration);

impl Received {
    /// Adds the bytes that arrive to `count`.
    pub(crate) fn new(body: Incoming, idle: Duration, count: Arc<AtomicU64>) -> Self {
        Self { body, idle, timer: None, count }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.timer = None;
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                {
                    this.count.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending => {
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.idle)));
                ready!(timer.as_mut().poll(cx));
                Poll::Ready(Some(Err(Stalled(this.idle).into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body, whoever made it.
#[derive(Debug)]
pub(crate) enum Sent {
    /// Known whole.
    Whole(Full<Bytes>),
    /// From the object API.
    Object(ResponseBody),
}

/// An answer's body that says when it is out.
#[derive(Debug)]
pub(crate) struct Tracked {
    body: Sent,
    /// Bytes that are to go out, where that is known: hyper does not ask for the end behind the last of them.
    left: Option<u64>,
    finish: Finish,
}

impl Tracked {
    /// `finish` is dropped with the body.
    pub(crate) fn new(body: Sent, finish: Finish) -> Self {
        let mut tracked = Self { body, left: None, finish };
        tracked.left = tracked.size_hint().exact();
        if tracked.is_end_stream() {
            tracked.finish.complete(); // nobody will poll it
        }
        tracked
    }
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame: Option<Result<Frame<Bytes>, BoxError>> = match &mut this.body {
            Sent::Whole(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(|never| match never {}))
            }
            Sent::Object(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                this.finish.sent(bytes);
                this.left = this.left.map(|left| left.saturating_sub(bytes as u64));
            }
            Some(Err(error)) => this.finish.failed(error.as_ref()),
            None => this.finish.complete(),
        }
        if this.is_end_stream() || this.left == Some(0) && !matches!(frame, Some(Err(_))) {
            this.finish.complete();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Sent::Whole(body) => body.is_end_stream(),
            Sent::Object(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Sent::Whole(body) => body.size_hint(),
            Sent::Object(body) => body.size_hint(),
        }
    }
}
