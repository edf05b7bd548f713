//! An HTTP/1.1 client that costs next to nothing: one kept connection, requests written whole, bodies read and dropped.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::failure::Failure;

/// Largest head of a response.
const MAX_HEAD: usize = 64 << 10;

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    /// Bytes of the body.
    pub(crate) body: u64,
}

impl Answer {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A head, from its text without the blank line.
fn parse(head: &str) -> Option<Answer> {
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let headers: Option<Vec<_>> = lines
        .map(|line| {
            line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect();
    let mut answer = Answer { status, headers: headers?, body: 0 };
    if status != 204 && status != 304 {
        answer.body = answer.header("content-length")?.parse().ok()?;
    }
    Some(answer)
}

impl Client {
    pub(crate) async fn connect(address: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await.map_err(Failure::io("connect to node"))?;
        stream.set_nodelay(true).map_err(Failure::io("connect to node"))?;
        Ok(Self { stream, buffer: vec![0; 128 << 10] })
    }

    /// Sends a request and reads its whole answer. `headers` are lines, each with its line end.
    pub(crate) async fn request(
        &mut self,
        verb: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> Result<Answer, Failure> {
        let length = body.len();
        let mut out = Vec::with_capacity(512 + length);
        let head =
            format!("{verb} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {length}\r\n{headers}\r\n");
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(body);
        self.stream.write_all(&out).await.map_err(Failure::io("send request"))?;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<Answer, Failure> {
        let (mut filled, end) = (0, b"\r\n\r\n");
        let (answer, already) = loop {
            filled += self.read(filled).await?;
            let head = self.buffer[..filled].windows(end.len()).position(|window| window == end);
            if let Some(at) = head {
                let answer = std::str::from_utf8(&self.buffer[..at]).ok().and_then(parse);
                let answer =
                    answer.ok_or_else(|| Failure::Other("the node's answer is not HTTP/1.1".to_owned()))?;
                break (answer, (filled - at - end.len()) as u64);
            }
            if filled >= MAX_HEAD {
                return Err(Failure::Other("the node's answer has no end to its head".to_owned()));
            }
        };
        let mut left = answer.body.saturating_sub(already);
        while left > 0 {
            left = left.saturating_sub(self.read(0).await? as u64);
        }
        Ok(answer)
    }

    async fn read(&mut self, from: usize) -> Result<usize, Failure> {
        let read = self.stream.read(&mut self.buffer[from..]).await.map_err(Failure::io("read answer"))?;
        if read == 0 {
            return Err(Failure::Other("the node closed the connection".to_owned()));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_and_nonsense_is_refused() {
        let answer = parse("HTTP/1.1 201 Created\r\nContent-Length: 12\r\nX-Auth-Token: t:1").unwrap();
        assert_eq!((answer.status, answer.body, answer.header("x-auth-token")), (201, 12, Some("t:1")));
        assert_eq!(parse("HTTP/1.1 204 No Content").unwrap().body, 0);
        for bad in ["", "HTTP/1.0 200 OK", "HTTP/1.1 2", "HTTP/1.1 200 OK", "HTTP/1.1 200 OK\r\nx"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
