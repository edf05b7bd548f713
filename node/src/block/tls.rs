//! TLS of NBD clients: the node's certificate, and the authorities of its clients.
//!
//! Files that are replaced count for whoever connects from then on; sessions go on as they were agreed.
//!
//! Invariant: files that are no good, or do not fit one another, change nothing: what was read before counts until they do.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::config::{Nbd, TlsMode};

/// Why TLS cannot be spoken.
pub(super) type Problem = String;

/// Pause between two looks at the files.
const LOOK: Duration = Duration::from_secs(5);

/// The files of `[nbd]` as they were when they were last read.
#[derive(Debug, Clone)]
pub(super) struct Files {
    nbd: Nbd,
    seen: Vec<Option<Stamp>>,
}

/// Which file it is, and when it was changed, in seconds and nanoseconds.
type Stamp = (u64, i64, i64, u64);

impl Files {
    /// As they are now.
    pub(super) fn new(nbd: &Nbd) -> Self {
        Self { nbd: nbd.clone(), seen: stamps(nbd) }
    }

    /// What accepts TLS connections by these files; `None`: none are.
    pub(super) fn acceptor(&self) -> Result<Option<TlsAcceptor>, Problem> {
        acceptor(&self.nbd)
    }

    /// The same, if they have changed since the last look.
    fn look(&mut self) -> Option<Result<Option<TlsAcceptor>, Problem>> {
        let now = stamps(&self.nbd);
        let changed = now != self.seen;
        self.seen = now;
        changed.then(|| self.acceptor())
    }

    /// Shows what accepts connections by the files as they are, for as long as it is polled.
    pub(super) async fn follow(mut self, show: watch::Sender<TlsAcceptor>) {
        loop {
            tokio::time::sleep(LOOK).await;
            match self.look() {
                None | Some(Ok(None)) => {}
                Some(Ok(Some(fresh))) => {
                    tracing::info!("took up the files of TLS of volumes (nbd), which were replaced");
                    show.send_replace(fresh);
                }
                Some(Err(problem)) => {
                    tracing::error!("keep the certificate of volumes (nbd) of before: {problem}");
                }
            }
        }
    }
}

fn stamps(nbd: &Nbd) -> Vec<Option<Stamp>> {
    let stamp = |path: &std::path::PathBuf| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
    };
    [&nbd.certificate, &nbd.key, &nbd.clients].into_iter().flatten().map(stamp).collect()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| format!("read {}: {error}", path.display()))?;
    if certificates.is_empty() {
        return Err(format!("read {}: no certificate is in it", path.display()));
    }
    Ok(certificates)
}

/// What accepts TLS connections; `None`: none are.
fn acceptor(nbd: &Nbd) -> Result<Option<TlsAcceptor>, Problem> {
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Pair {
        certificate: String,
        key: String,
    }

    fn pair() -> Pair {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        Pair { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    /// As tools do that renew certificates: written beside, then renamed.
    fn replace(path: &Path, text: &str) {
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, path).unwrap();
    }

    /// They were read once: a renewed certificate counted when the node was started again, which ends all sessions.
    #[test]
    fn files_that_are_replaced_are_taken_up_once_they_fit() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| -> PathBuf { place.path().join(name) };
        let (first, second) = (pair(), pair());
        replace(&path("cert"), &first.certificate);
        replace(&path("key"), &first.key);
        let (certificate, key) = (Some(path("cert")), Some(path("key")));
        let nbd = Nbd { tls: TlsMode::Required, certificate, key, ..Nbd::default() };
        let mut files = Files::new(&nbd);
        assert!(files.acceptor().unwrap().is_some());
        assert!(files.look().is_none(), "nothing has changed");
        replace(&path("cert"), &second.certificate);
        assert!(files.look().unwrap().is_err(), "a certificate without its key");
        assert!(files.look().is_none(), "that is said once");
        replace(&path("key"), &second.key);
        assert!(files.look().unwrap().unwrap().is_some());
        std::fs::remove_file(path("cert")).unwrap();
        assert!(files.look().unwrap().is_err());
    }
}
