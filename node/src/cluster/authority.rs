//! The cluster's certificate authority: made once, signs the certificates of nodes.
//!
//! Invariant: what is signed names exactly one node of this cluster, whatever was asked for.
//! Invariant: the authority's key lies on the nodes that let others join, and travels nowhere.

use std::io;
use std::path::Path;
use std::time::Duration;

use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::net::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use super::identity::{self, Files, Identity, IdentityError, name_of};
use super::tls;
use crate::storage::{cluster_text, random_bytes};

/// How long a node's certificate is good for.
pub(crate) const NODE_LIFE: Duration = Duration::from_secs(398 * DAY);
/// How long the authority is good for.
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * DAY);
/// How far clocks of machines may be apart.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);
const DAY: u64 = 24 * 3600;

/// From when to when a certificate is good, in time since the Unix epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validity {
    from: Duration,
    to: Duration,
}

impl Validity {
    /// From a little before `now`, for `life`.
    pub(crate) fn starting(now: Duration, life: Duration) -> Self {
        Self { from: now.saturating_sub(CLOCK_SLACK), to: now + life }
    }

    /// Between two times.
    #[cfg(test)]
    pub(crate) fn between(from: Duration, to: Duration) -> Self {
        Self { from, to }
    }
}

/// Time since the Unix epoch.
pub(crate) fn unix_now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// The authority with its key.
pub(crate) struct Authority {
    cluster: ClusterId,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// What went wrong in making a certificate.
pub(crate) type MakeError = rcgen::Error;

impl Authority {
    /// A new one; its key in PEM form beside it.
    pub(crate) fn make(cluster: ClusterId, now: Duration) -> Result<(Self, String), MakeError> {
        let key = KeyPair::generate()?;
        let mut params = params(
            &format!("Quarry cluster {}", cluster_text(cluster)),
            Validity::starting(now, AUTHORITY_LIFE),
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.der().clone();
        let text = key.serialize_pem();
        let issuer = Issuer::new(params, key);
        Ok((Self { cluster, certificate, issuer }, text))
    }

    /// The one in a data directory, for the cluster of the node there.
    pub(crate) fn load(data: &Path) -> Result<Self, IdentityError> {
        let files = Files::of(data);
        let certificate = identity::read_certificate(&files.authority)?;
        let node = identity::read_certificate(&files.node)?;
        let (cluster, _) = tls::name_in(&node)
            .ok_or_else(|| IdentityError::invalid(&files.node, "the certificate names no node"))?;
        let key = identity::read(&files.authority_key)?;
        let invalid = |reason: &dyn std::fmt::Display| IdentityError::invalid(&files.authority_key, reason);
        let key = String::from_utf8(key).map_err(|e| invalid(&e))?;
        let key = KeyPair::from_pem(&key).map_err(|e| invalid(&e))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| invalid(&e))?;
        Ok(Self { cluster, certificate, issuer })
    }

    /// Its cluster.
    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Its certificate.
    #[cfg(test)]
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate for a node whose key is `key`.
    pub(crate) fn sign(
        &self,
        node: NodeId,
        key: &impl PublicKeyData,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, MakeError> {
        self.sign_name(&name_of(self.cluster, node), key, validity)
    }

    /// A certificate with any name.
    fn sign_name(
        &self,
        name: &str,
        key: &impl PublicKeyData,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, MakeError> {
        let mut params = params("Quarry node", validity);
        params.subject_alt_names = vec![SanType::URI(name.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    /// A certificate for a node that asks for one: its key is taken from the request, whose signature is checked; what else
    /// it asks for is not looked at.
    pub(crate) fn sign_request(
        &self,
        node: NodeId,
        request: &[u8],
        validity: Validity,
    ) -> Result<CertificateDer<'static>, MakeError> {
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
        self.sign(node, &request.public_key, validity)
    }

    /// An identity with a new key: for the first node, for renewal on this machine, and for tests.
    pub(crate) fn issue(&self, node: NodeId, validity: Validity) -> Result<Issued, MakeError> {
        let key = KeyPair::generate()?;
        let certificate = self.sign(node, &key, validity)?;
        Ok(Issued { certificate, key })
    }

    /// A certificate of this authority with another name in it.
    #[cfg(test)]
    pub(crate) fn issue_name(&self, name: &str, validity: Validity) -> Result<Issued, MakeError> {
        let key = KeyPair::generate()?;
        let certificate = self.sign_name(name, &key, validity)?;
        Ok(Issued { certificate, key })
    }
}

/// A certificate and its key.
pub(crate) struct Issued {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: KeyPair,
}

impl Issued {
    /// As an identity.
    pub(crate) fn identity(self, authority: &Authority, whence: &Path) -> Result<Identity, IdentityError> {
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(self.key.serialize_der()).into();
        Identity::new(authority.certificate.clone(), self.certificate, key, whence)
    }
}

fn params(name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + validity.from;
    params.not_after = epoch + validity.to;
    params.serial_number = Some(SerialNumber::from_slice(&random_bytes::<16>()));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A certificate in PEM form: base64 in lines of 64.
pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut out = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for (at, character) in text.char_indices() {
        if at > 0 && at % 64 == 0 {
            out.push('\n');
        }
        out.push(character);
    }
    out + "\n-----END CERTIFICATE-----\n"
}

/// Makes the authority, the cluster and its first node in a data directory. `settle` writes what else a founder has, before there is a node:
/// where there is one, all is there.
pub(crate) fn found(
    data: &Path,
    cluster: ClusterId,
    settle: impl FnOnce() -> Result<(), IdentityError>,
) -> Result<NodeId, IdentityError> {
    let files = Files::of(data);
    let advice = if files.node.exists() {
        "this directory belongs to a cluster; use another one"
    } else {
        "`quarry cluster init` did not finish here; remove the directory in which this file is, and try again"
    };
    for path in [&files.authority, &files.authority_key, &files.node] {
        if path.try_exists().map_err(IdentityError::file(path))? {
            return Err(IdentityError::Exists { path: path.clone(), advice });
        }
    }
    make_directory(&files)?;
    let now = unix_now();
    let made = |e: MakeError| IdentityError::invalid(&files.authority, e);
    let (authority, authority_key) = Authority::make(cluster, now).map_err(made)?;
    let node = NodeId(random_bytes());
    let issued = authority.issue(node, Validity::starting(now, NODE_LIFE)).map_err(made)?;
    // The node's file last: it is what says that there is an identity.
    identity::write(&files.authority_key, &authority_key)?;
    identity::write(&files.authority, &pem(&authority.certificate))?;
    settle()?;
    identity::write(&files.node, &node_file(&issued.key, &issued.certificate))?;
    Ok(node)
}

/// The same, with nothing else.
#[cfg(test)]
pub(crate) fn init(data: &Path, cluster: ClusterId) -> Result<NodeId, IdentityError> {
    found(data, cluster, || Ok(()))
}

/// Makes the directory of an identity, for its owner alone.
pub(crate) fn make_directory(files: &Files) -> Result<(), IdentityError> {
    use std::os::unix::fs::DirBuilderExt;
    for directory in [&files.directory, &files.tokens] {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        match made {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(IdentityError::file(directory)(e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A new key and certificate for the node of a data directory whose authority lies there too.
pub(crate) fn renew(data: &Path) -> Result<NodeId, IdentityError> {
    let files = Files::of(data);
    let authority = Authority::load(data)?;
    let node = Identity::load(data)?.node;
    let made = |e: MakeError| IdentityError::invalid(&files.node, e);
    let issued = authority.issue(node, Validity::starting(unix_now(), NODE_LIFE)).map_err(made)?;
    identity::write(&files.node, &node_file(&issued.key, &issued.certificate))?;
    Ok(node)
}

/// The text of a node's file.
pub(crate) fn node_file(key: &KeyPair, certificate: &CertificateDer<'_>) -> String {
    key.serialize_pem() + &pem(certificate)
}
