//! The section of the identity service.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::located::{ConfigError, Source};
use super::value::Secret;

/// `[identity]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// Another Keystone, whose tokens are good here.
    pub external: Option<External>,
}

/// Another Keystone, and as whom this node asks it about tokens.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// `http://` or `https://`, a host, a port, and what comes before `/v3`.
    pub url: Spanned<String>,
    /// With an authority's certificates, PEM: who signed the certificate of an `https` URL.
    pub authority: Option<PathBuf>,
    /// Name of a user who may validate tokens.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Name of a project in which it has a role.
    pub project: String,
    /// Name of the domain of the user.
    #[serde(default = "default_domain")]
    pub user_domain: String,
    /// Name of the domain of the project.
    #[serde(default = "default_domain")]
    pub project_domain: String,
}

fn default_domain() -> String {
    "Default".to_owned()
}

impl Identity {
    /// Checks what the types do not.
    pub(super) fn validate(&self, source: &Source<'_>) -> Result<(), ConfigError> {
        let Some(external) = &self.external else { return Ok(()) };
        let text = external.url.get_ref();
        let fits = text.parse::<http::Uri>().is_ok_and(|uri| {
            let secure = uri.scheme_str() == Some("https") && external.authority.is_some();
            (secure || uri.scheme_str() == Some("http")) && uri.host().is_some() && uri.query().is_none()
        });
        if fits {
            return Ok(());
        }
        let problem = format!(
            "found {text:?}; allowed: http://HOST:PORT, or https://HOST:PORT together with authority, the certificates of who signs"
        );
        Err(source.error(external.url.span(), problem))
    }

    /// Takes relative paths from a directory.
    pub(super) fn locate(&mut self, base: &Path) {
        if let Some(authority) = self.external.as_mut().and_then(|external| external.authority.as_mut()) {
            *authority = base.join(&authority);
        }
    }
}
