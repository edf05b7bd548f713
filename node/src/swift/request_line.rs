//! Raw bytes in a request line: Swift's clients may send names unescaped, HTTP libraries refuse such lines.
//!
//! [`EscapeRequestLine`] wraps a connection below the HTTP server and percent-escapes every byte of a request line that is
//! not ASCII, so that the API sees the name and answers by Swift's rules (412 when it is not UTF-8).
//! Invariant: no byte after a request line is changed, until the server has begun its answer to that request.
//! Invariant: a connection whose request lines are ASCII costs one scan of each line.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection with escaped request lines.
#[derive(Debug)]
pub struct EscapeRequestLine<T> {
    inner: T,
    place: Place,
    /// Escaped bytes that did not fit into the reader's buffer.
    pending: Vec<u8>,
    /// How much of `pending` was given out.
    given: usize,
}

/// Where in a request the next bytes read belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In front of the request line, where empty lines are allowed and skipped.
    Before,
    /// In the request line.
    Line,
    /// Behind it.
    After,
}

/// Interim answers (`100 Continue`) do not end a request.
const INTERIM: &[u8] = b"HTTP/1.1 1";

impl<T> EscapeRequestLine<T> {
    /// Wrap a fresh connection.
    pub fn new(inner: T) -> Self {
        Self { inner, place: Place::Before, pending: Vec::new(), given: 0 }
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    fn note_answer(&mut self, begin: &[u8]) {
        if !begin.is_empty() && !begin.starts_with(INTERIM) {
            self.place = Place::Before;
        }
    }
}

/// Escape the part of `bytes` that lies in the request line, `None` when nothing has to be changed; and where the bytes
/// behind them belong.
fn escape(bytes: &[u8], place: Place) -> (Option<Vec<u8>>, Place) {
    let start = match place {
        Place::Before => bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len()),
        Place::Line => 0,
        Place::After => return (None, Place::After),
    };
    if start == bytes.len() {
        return (None, place);
    }
    let end = bytes[start..].iter().position(|byte| *byte == b'\n').map(|at| start + at);
    let next = if end.is_some() { Place::After } else { Place::Line };
    let line = &bytes[start..end.unwrap_or(bytes.len())];
    if line.is_ascii() {
        return (None, next);
    }
    let mut escaped = Vec::with_capacity(bytes.len() + 64);
    escaped.extend_from_slice(&bytes[..start]);
    for byte in line {
        if byte.is_ascii() {
            escaped.push(*byte);
        } else {
            escaped.extend_from_slice(&[b'%', hex_digit(byte >> 4), hex_digit(byte & 15)]);
        }
    }
    escaped.extend_from_slice(&bytes[start + line.len()..]);
    (Some(escaped), next)
}

fn hex_digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'A' + value - 10 }
}

impl<T: AsyncRead + Unpin> AsyncRead for EscapeRequestLine<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.given == this.pending.len() {
            let before = buf.filled().len();
            let result = Pin::new(&mut this.inner).poll_read(cx, buf);
            if this.place == Place::After || !matches!(result, Poll::Ready(Ok(()))) {
                return result;
            }
            let read = &buf.filled()[before..];
            if read.is_empty() {
                return result;
            }
            let (escaped, next) = escape(read, this.place);
            this.place = next;
            let Some(escaped) = escaped else { return result };
            buf.set_filled(before);
            this.pending = escaped;
            this.given = 0;
        }
        let left = &this.pending[this.given..];
        let count = left.len().min(buf.remaining());
        buf.put_slice(&left[..count]);
        this.given += count;
        if this.given == this.pending.len() {
            this.pending = Vec::new();
            this.given = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for EscapeRequestLine<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        if matches!(result, Poll::Ready(Ok(_))) {
            this.note_answer(buf);
        }
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        if matches!(result, Poll::Ready(Ok(_))) {
            let begin = bufs.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| &slice[..]);
            this.note_answer(begin);
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn only_the_request_line_is_escaped() {
        let (escaped, next) =
            escape(b"PUT /v1/\xc3\xa9\xff HTTP/1.1\r\nX: \xc3\xa9\r\n\r\n\xff", Place::Before);
        assert_eq!(escaped.unwrap(), b"PUT /v1/%C3%A9%FF HTTP/1.1\r\nX: \xc3\xa9\r\n\r\n\xff");
        assert_eq!(next, Place::After);
        assert_eq!(escape(b"GET / HTTP/1.1\r\nX: \xff\r\n", Place::Before), (None, Place::After));
        assert_eq!(escape(b"GET /abc", Place::Before), (None, Place::Line));
        assert_eq!(escape(b"\r\nGET /\xff", Place::Before), (Some(b"\r\nGET /%FF".to_vec()), Place::Line));
        assert_eq!(escape(b"\r\n\xff", Place::Line), (None, Place::After));
        assert_eq!(escape(b"\r\n", Place::Before), (None, Place::Before));
    }

    #[test]
    fn bodies_pass_unchanged_and_the_next_request_is_escaped_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let mut server = EscapeRequestLine::new(server);
            let mut buffer = [0; 256];
            client.write_all(b"PUT /\xff HTTP/1.1\r\n\r\n").await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                let n = server.read(&mut buffer[..4]).await.unwrap();
                seen.extend_from_slice(&buffer[..n]);
            }
            assert_eq!(seen, b"PUT /%FF HTTP/1.1\r\n\r\n");
            server.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            client.write_all(b"\xfe body").await.unwrap();
            let n = server.read(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..n], b"\xfe body");
            server.write_all(b"HTTP/1.1 201 Created\r\n\r\n").await.unwrap();
            client.write_all(b"GET /\xfe HTTP/1.1\r\n\r\n").await.unwrap();
            let n = server.read(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..n], b"GET /%FE HTTP/1.1\r\n\r\n");
        });
    }
}
