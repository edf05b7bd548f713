//! Another service that this node asks over HTTP, in the clear or by TLS: where it is, and connections to it.
//!
//! Invariant: by TLS alone a service is believed to be itself whose certificate an authority of the operator's signed.

use std::path::Path;
use std::sync::Arc;

use http::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
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
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(self.host.clone()).map_err(RemoteError::because)?;
        Ok(Box::new(tls.connect(name, stream).await.map_err(RemoteError::because)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
