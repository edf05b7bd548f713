//! Bodies on their way through the node: counted, timed, and ended.
//!
//! Invariant: a client that stops sending ends its request after the idle time; of a request that is a document, so does one that sends it byte
//! by byte: such a one needs no login, and holds a place.
//! Invariant: a request is counted and logged once, when its answer is out or given up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use super::dispatch::Finish;
use crate::swift::ResponseBody;

/// Errors of bodies.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body: an error when the client sends nothing for too long.
#[derive(Debug)]
pub(crate) struct Received {
    body: Incoming,
    idle: Duration,
    /// When all of it must be there, if it is known to be small.
    until: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    count: Arc<AtomicU64>,
}

/// The client gave the body up, or takes too long.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stalled {
    /// It sent nothing for the idle time.
    #[error("the client sent nothing for {0:?}")]
    Nothing(Duration),
    /// A document that is still not there.
    #[error("the client takes too long to send a document")]
    Slowly,
}

impl Received {
    /// Adds the bytes that arrive to `count`.
    pub(crate) fn new(body: Incoming, idle: Duration, count: Arc<AtomicU64>) -> Self {
        Self { body, idle, until: None, timer: None, count }
    }

    /// Of a document: all of it is to be there within the idle time.
    pub(crate) fn document(self) -> Self {
        Self { until: Some(Instant::now() + self.idle), ..self }
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
                let idle = || Instant::now() + this.idle;
                let timer = this.timer.get_or_insert_with(|| {
                    let end = this.until.map_or_else(idle, |until| until.min(idle()));
                    Box::pin(tokio::time::sleep_until(end))
                });
                ready!(timer.as_mut().poll(cx));
                let slowly = this.until.is_some_and(|until| until <= Instant::now());
                let why = if slowly { Stalled::Slowly } else { Stalled::Nothing(this.idle) };
                Poll::Ready(Some(Err(why.into())))
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
