//! Request targets that are not UTF-8, which hyper answers with 400 before any API sees them.
//!
//! Swift answers 412 ("Invalid UTF8 or contains NULL"). So the line is changed, in place and in its length, into one that is
//! valid HTTP and that no API accepts: its target ends in `%00`, and its other bytes above ASCII become `_`.
//! Invariant: bytes of a body that an API reads are never changed: only the first line of what arrives between two requests is
//! looked at.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Whether a connection is between two requests, so that what arrives next is a request line.
#[derive(Debug, Clone)]
pub(crate) struct BetweenRequests(Arc<AtomicBool>);

impl BetweenRequests {
    /// Of a new connection: nothing has arrived.
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// A request's head is in.
    pub(crate) fn begin(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// Its answer is out.
    pub(crate) fn end(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A connection whose request lines are made valid.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: TcpStream,
    between: BetweenRequests,
}

impl Lines {
    /// `between` is told by whoever answers.
    pub(crate) fn new(stream: TcpStream, between: BetweenRequests) -> Self {
        Self { stream, between }
    }
}

impl AsyncRead for Lines {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if this.between.0.load(Ordering::Acquire)
            && let Some(arrived) = buf.filled_mut().get_mut(before..)
        {
            make_valid(arrived);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Lines {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Changes a first line `METHOD TARGET HTTP/1.x` whose target is not UTF-8; everything else stays.
fn make_valid(arrived: &mut [u8]) {
    let end = arrived.iter().position(|&b| b == b'\n').unwrap_or(arrived.len());
    let line = &mut arrived[..end];
    if line.is_ascii() || std::str::from_utf8(line).is_ok() {
        return;
    }
    let (Some(first), Some(last)) =
        (line.iter().position(|&b| b == b' '), line.iter().rposition(|&b| b == b' '))
    else {
        return;
    };
    let is_request =
        line[last..].starts_with(b" HTTP/1.") && line.get(first + 1) == Some(&b'/') && last > first + 4;
    if !is_request {
        return;
    }
    for byte in line[first + 1..last].iter_mut().filter(|byte| !byte.is_ascii()) {
        *byte = b'_';
    }
    line[last - 3..last].copy_from_slice(b"%00");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_valid(line: &[u8]) -> Vec<u8> {
        let mut bytes = line.to_vec();
        make_valid(&mut bytes);
        bytes
    }

    #[test]
    fn a_target_that_is_not_utf8_becomes_one_that_no_api_accepts() {
        assert_eq!(
            made_valid(b"PUT /v1/AUTH_test/\xbf\xa4\xe0c HTTP/1.1\r\nX-A: \xff\r\n\r\n"),
            b"PUT /v1/AUTH_test/_%00 HTTP/1.1\r\nX-A: \xff\r\n\r\n"
        );
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        for line in [
            &b"GET /v1/a HTTP/1.1\r\n\r\n"[..],
            "GET /v1/\u{e4} HTTP/1.1\r\n\r\n".as_bytes(),
            b"GET /v1/a HTTP/1.1\r\nX-Object-Meta-A: \xff\r\n\r\n",
            b"\xff\xfe body",
            b"a /\xff\xff\xff\xff b\n",
            b"GET /\xff HTTP/1.1\r\n",
            b"",
        ] {
            assert_eq!(made_valid(line), line, "{line:?}");
        }
    }
}
