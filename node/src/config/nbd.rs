//! The section of block volumes.
//!
//! Invariant: nobody beyond this machine reaches an export without a certificate that an authority of the operator's signed.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::located::{ConfigError, Source};
use super::value::{Address, BackendName, Count};

/// `[nbd]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nbd {
    /// Where clients of volumes connect; nowhere when absent.
    pub listen: Option<Spanned<Address>>,
    /// The same as a socket in the file system, for users who may open it.
    pub socket: Option<Spanned<PathBuf>>,
    /// When TLS is spoken on `listen`.
    pub tls: TlsMode,
    /// The node's certificate chain, PEM.
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// Authorities that sign clients' certificates, PEM; clients need none when absent.
    pub clients: Option<PathBuf>,
    /// Connections that use volumes at once; further ones are refused.
    pub connections: Count<1, 65_536, 1024>,
}

/// `[volumes]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Volumes {
    /// What the extra spec `volume_backend_name` of a volume type names: its volumes are made on nodes that say so.
    pub backend: BackendName,
    /// Where images are that volumes are made of, and become.
    pub image_service: ImageService,
}

/// The image service (Glance v2).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageService {
    /// `http://` or `https://`, a host, a port, and what comes before `/v2`; where this node's service catalog says when absent.
    pub url: Option<Spanned<String>>,
    /// With an authority's certificates, PEM: who signed the certificate of an `https` URL.
    pub authority: Option<PathBuf>,
}

impl Volumes {
    /// Checks what the types do not.
    pub(super) fn validate(&self, source: &Source<'_>) -> Result<(), ConfigError> {
        let Some(url) = &self.image_service.url else { return Ok(()) };
        let text = url.get_ref();
        let fits = text.parse::<http::Uri>().is_ok_and(|uri| {
            let secure = uri.scheme_str() == Some("https") && self.image_service.authority.is_some();
            (secure || uri.scheme_str() == Some("http")) && uri.host().is_some() && uri.query().is_none()
        });
        if fits {
            return Ok(());
        }
        let problem = format!(
            "found {text:?}; allowed: http://HOST:PORT, or https://HOST:PORT together with authority, the certificates of who signs"
        );
        Err(source.error(url.span(), problem))
    }

    /// Takes relative paths from a directory.
    pub(super) fn locate(&mut self, base: &Path) {
        if let Some(authority) = &mut self.image_service.authority {
            *authority = base.join(&*authority);
        }
    }
}

/// When TLS is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Never.
    #[default]
    Off,
    /// If the client wishes.
    Offered,
    /// Always.
    Required,
}

impl Nbd {
    /// Checks what the types do not.
    pub(super) fn validate(&self, source: &Source<'_>) -> Result<(), ConfigError> {
        let at = source.text.find("[nbd]").unwrap_or(0);
        let pair = self.certificate.is_some() && self.key.is_some();
        if self.tls != TlsMode::Off && !pair {
            let problem = "found nbd.tls without certificate and key; allowed: both, or tls = \"off\"";
            return Err(source.error(at..at, problem));
        }
        if let Some(listen) = &self.listen
            && !listen.get_ref().0.ip().is_loopback()
            && (self.tls != TlsMode::Required || self.clients.is_none())
        {
            let problem = format!(
                "found {}, which other machines reach; allowed: 127.0.0.1, or tls = \"required\" with clients",
                listen.get_ref().0
            );
            return Err(source.error(listen.span(), problem));
        }
        Ok(())
    }

    /// Takes relative paths from the file's directory.
    pub(super) fn locate(&mut self, base: &Path) {
        let files = [&mut self.certificate, &mut self.key, &mut self.clients];
        for path in files.into_iter().flatten().chain(self.socket.as_mut().map(Spanned::get_mut)) {
            *path = base.join(&*path);
        }
    }
}
