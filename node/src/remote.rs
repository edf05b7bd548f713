//! Another service that this node asks over HTTP, in the clear or by TLS: where it is, and connections to it.
//!
//! Invariant: by TLS alone a service is believed to be itself whose certificate an authority of the operator's signed.

use std::io::{self, ErrorKind, IoSlice};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Why it is not reached.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RemoteError(String);

impl RemoteError {
    fn because(reason: impl std::fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

/// What a connection is made of.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// A connection whose peer is heard out: a service may answer before it has taken a whole request, and close. What is written then fails, and the reason
/// (a token that is not good any more) waits to be read; so a write that the peer refuses counts as done, and reading tells how it ended.
struct HeardOut(TcpStream);

/// What a write came to; `length` of it were to be written.
fn written(done: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
    match done {
        Poll::Ready(Err(error))
            if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) =>
        {
            Poll::Ready(Ok(length))
        }
        done => done,
    }
}

impl AsyncRead for HeardOut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for HeardOut {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        written(Pin::new(&mut self.0).poll_write(cx, bytes), bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        written(Pin::new(&mut self.0).poll_write_vectored(cx, pieces), length)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Where the service is.
pub(crate) struct Remote {
    /// `host:port`.
    pub(crate) address: String,
    pub(crate) host: String,
    /// What stands before the version in its paths.
    pub(crate) prefix: String,
    tls: Option<TlsConnector>,
}

fn connector(authority: &Path) -> Result<TlsConnector, RemoteError> {
    let failed =
        |error: &dyn std::fmt::Display| RemoteError(format!("read {}: {error}", authority.display()));
    let mut roots = rustls::RootCertStore::empty();
    let read = CertificateDer::pem_file_iter(authority).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    for authority in read.map_err(|error| failed(&error))? {
        roots.add(authority).map_err(|error| failed(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder =
        builder.with_protocol_versions(&[&rustls::version::TLS13]).map_err(|error| failed(&error))?;
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A URL without a slash at its end, and without the version.
pub(crate) fn without_version<'a>(url: &'a str, version: &str) -> &'a str {
    let url = url.trim_end_matches('/');
    url.strip_suffix(version).unwrap_or(url)
}

impl Remote {
    /// At a URL, which may end with `version` (`/v3`); `https` needs the certificates of an authority.
    pub(crate) fn new(url: &str, version: &str, authority: Option<&Path>) -> Result<Self, RemoteError> {
        let odd = |reason: &str| RemoteError(format!("{url}: {reason}"));
        let uri: Uri = url.parse().map_err(RemoteError::because)?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| odd("there is no host in it"))?;
        let (port, tls) = match (uri.scheme_str(), authority) {
            (Some("http"), _) => (80, None),
            (Some("https"), Some(authority)) => (443, Some(connector(authority)?)),
            (Some("https"), None) => return Err(odd("https needs an authority in the configuration")),
            _ => return Err(odd("it is neither http nor https")),
        };
        let prefix = without_version(uri.path(), version).to_owned();
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(port));
        Ok(Self { address, host: host.trim_matches(['[', ']']).to_owned(), prefix, tls })
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Result<Box<dyn Wire>, RemoteError> {
        let stream = TcpStream::connect(&self.address).await.map_err(RemoteError::because)?;
        let stream = HeardOut(stream);
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(self.host.clone()).map_err(RemoteError::because)?;
        Ok(Box::new(tls.connect(name, stream).await.map_err(RemoteError::because)?))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// The service closed before it had read everything, and its answer was lost.
    #[tokio::test]
    async fn a_service_that_answers_early_and_closes_is_heard_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let remote = Remote::new(&format!("http://{}", listener.local_addr().unwrap()), "/v2", None).unwrap();
        let mut asked = remote.connect().await.unwrap();
        let (mut served, _) = listener.accept().await.unwrap();
        asked.write_all(&[7; 4096]).await.unwrap();
        served.read_u8().await.unwrap();
        served.write_all(b"no").await.unwrap();
        // What it has not read makes this a reset.
        drop(served);
        for _ in 0..64 {
            asked.write_all(&[7; 1 << 16]).await.unwrap();
        }
        let mut said = [0; 2];
        asked.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"no");
        let end = asked.read(&mut said).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }

    #[test]
    fn urls_say_where_a_service_is() {
        for (url, address, host, prefix) in [
            ("http://[::1]:5000/identity/v3", "[::1]:5000", "::1", "/identity"),
            ("http://images.example/v2/", "images.example:80", "images.example", "/v2"),
            ("http://images.example", "images.example:80", "images.example", ""),
        ] {
            let remote = Remote::new(url, "/v3", None).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!((remote.address.as_str(), remote.host.as_str()), (address, host), "{url}");
            assert_eq!(remote.prefix, prefix, "{url}");
        }
        for bad in ["https://images.example", "ftp://a", "/v2", "http://", "a b"] {
            assert!(Remote::new(bad, "/v2", None).is_err(), "{bad}");
        }
        assert!(Remote::new("https://a", "/v2", Some(Path::new("/nowhere.pem"))).is_err());
    }
}
