//! Bodies: what a request brings and what an answer carries.
//!
//! Invariant: a small answer is one `Bytes` and no allocation besides; a large one is never held whole.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::Stream;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes that come piece by piece.
pub(crate) type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, BoxError>> + Send>>;

/// The body of an answer.
pub enum ResponseBody {
    /// Known whole.
    Full(Bytes),
    /// Produced as the client takes it.
    Stream {
        /// Where the pieces come from.
        stream: ByteStream,
        /// Bytes still to come, when known: `Content-Length`.
        left: Option<u64>,
    },
}

impl std::fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Full(bytes) => f.debug_tuple("Full").field(&bytes.len()).finish(),
            Self::Stream { left, .. } => f.debug_struct("Stream").field("left", left).finish_non_exhaustive(),
        }
    }
}

impl ResponseBody {
    /// No bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::Full(Bytes::new())
    }

    /// Bytes still to come, when known.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::Stream { left, .. } => *left,
        }
    }

    /// The next piece, for those who read an answer inside the server.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        self.frame().await.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()))
    }
}

impl From<Bytes> for ResponseBody {
    fn from(bytes: Bytes) -> Self {
        Self::Full(bytes)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Stream { stream, left } => match stream.as_mut().poll_next(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Ok(bytes))) => {
                    if let Some(left) = left {
                        *left = left.saturating_sub(bytes.len() as u64);
                    }
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => match left {
                    Some(left) if *left > 0 => {
                        *left = 0;
                        Poll::Ready(Some(Err("answer ended early".into())))
                    }
                    _ => Poll::Ready(None),
                },
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        // An empty body is told as one of length 0: hyper drops `Content-Length: 0` (which Swift sends with 204, and its
        // clients read) from an answer that says it has no body.
        match self {
            Self::Full(_) => false,
            Self::Stream { left, .. } => *left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The body of a request, or of a copy inside the server.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// Nothing (left) to read.
    Empty,
    /// From a client.
    Client(UnsyncBoxBody<Bytes, BoxError>),
    /// From another object.
    Inner(ResponseBody),
}

impl RequestBody {
    /// Take over a client's body; one without bytes costs nothing.
    pub(crate) fn from_client<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() { Self::Empty } else { Self::Client(body.map_err(Into::into).boxed_unsync()) }
    }

    /// The next piece of data; polling it the first time makes the server send `100 Continue`.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        let result = match self {
            Self::Empty => return None,
            Self::Client(body) => loop {
                match body.frame().await {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            break Some(Ok(data));
                        }
                    }
                    Some(Err(error)) => break Some(Err(error)),
                    None => break None,
                }
            },
            Self::Inner(body) => body.next().await,
        };
        if !matches!(result, Some(Ok(_))) {
            *self = Self::Empty;
        }
        result
    }

    /// Read all of it, at most `limit` bytes.
    pub(crate) async fn collect(&mut self, limit: usize) -> Result<Bytes, Collect> {
        let mut all: Vec<u8> = Vec::new();
        let mut first = None;
        while let Some(piece) = self.next().await {
            let piece = piece.map_err(|_| Collect::Broken)?;
            if all.len() + first.as_ref().map_or(0, Bytes::len) + piece.len() > limit {
                return Err(Collect::TooLarge);
            }
            match first.take() {
                None if all.is_empty() => first = Some(piece),
                None => all.extend_from_slice(&piece),
                Some(earlier) => {
                    all.extend_from_slice(&earlier);
                    all.extend_from_slice(&piece);
                }
            }
        }
        Ok(first.unwrap_or_else(|| all.into()))
    }

    /// Whether nothing is left to read.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

/// Why a body could not be read whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Collect {
    /// Longer than allowed.
    TooLarge,
    /// The sender went away.
    Broken,
}
