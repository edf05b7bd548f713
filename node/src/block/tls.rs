//! TLS of NBD clients: the node's certificate, and the authorities of its clients.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::config::{Nbd, TlsMode};

/// Why TLS cannot be spoken.
pub(super) type Problem = String;

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| format!("read {}: {error}", path.display()))?;
    if certificates.is_empty() {
        return Err(format!("read {}: no certificate is in it", path.display()));
    }
    Ok(certificates)
}

/// What accepts TLS connections; `None`: none are.
pub(super) fn acceptor(nbd: &Nbd) -> Result<Option<TlsAcceptor>, Problem> {
    let (Some(certificate), Some(key)) = (&nbd.certificate, &nbd.key) else { return Ok(None) };
    if nbd.tls == TlsMode::Off {
        return Ok(None);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let builder = match &nbd.clients {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(|error| format!("use {}: {error}", path.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| error.to_string())?)
        }
    };
    let private = PrivateKeyDer::from_pem_file(key);
    let private = private.map_err(|error| format!("read {}: {error}", key.display()))?;
    let config = builder.with_single_cert(certificates(certificate)?, private);
    let config = config.map_err(|error| format!("use {}: {error}", certificate.display()))?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}
