//! Who a node is: its certificate, its key, and the cluster's authority; as files and in memory.
//!
//! ```text
//! DATA/cluster/ca.pem     certificate of the cluster's authority
//! DATA/cluster/ca.key     its key, on nodes that let others join
//! DATA/cluster/node.pem   key and certificate of this node; the certificate has one name, quarry://CLUSTER/NODE
//! DATA/cluster/tokens/    join tokens that were given out and not used
//! DATA/cluster/address    where the running node is reached
//! DATA/cluster/founder    on the node that made the cluster: what was wanted of it
//! DATA/cluster/client     on every other: the users that the founder made, for clients of this node
//! DATA/cluster/disk       the disk that has this node's votes
//! DATA/cluster/devices    the disks that this node has, also those that are missing (`storage/known.rs`)
//! DATA/cluster/replaces   on a node that takes the place of another, until the cluster knows: that one
//! DATA/cluster/contacts   on every other: the node that let it join, and where that is reached
//! DATA/cluster.new/       the same of the node that is to take this one's place, until it is whole
//! DATA/cluster.of-NODE/   the same of a node in whose place this one came
//! ```
//!
//! Invariant: every file is mode 600 and whole; a key never leaves the machine that made it.
//! Invariant: key and certificate are replaced together, in one file.
//! Invariant: certificate and key fit together, and are this cluster's: checked whenever they are read.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::net::{NodeId, Refusal};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

use super::tls::{self, Checker};
use crate::durable_file;
use crate::storage::{cluster_text, parse_cluster};

/// Largest file that is read as a certificate or key.
const MAX_FILE: u64 = 64 << 10;

/// Where the files of an identity lie.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) directory: PathBuf,
    pub(crate) authority: PathBuf,
    pub(crate) authority_key: PathBuf,
    pub(crate) node: PathBuf,
    pub(crate) tokens: PathBuf,
    /// Where others reach the running node.
    pub(crate) address: PathBuf,
    pub(crate) founder: PathBuf,
    pub(crate) contacts: PathBuf,
    pub(crate) client: PathBuf,
    pub(crate) disk: PathBuf,
    /// The disks that the node had at its last start.
    pub(crate) devices: PathBuf,
    pub(crate) replaces: PathBuf,
}

impl Files {
    /// Of a data directory.
    pub(crate) fn of(data: &Path) -> Self {
        Self::within(data.join("cluster"))
    }

    /// Of the identity that comes in place of the one there, while it is not whole.
    pub(crate) fn coming(data: &Path) -> Self {
        Self::within(data.join("cluster.new"))
    }

    fn within(directory: PathBuf) -> Self {
        let file = |name: &str| directory.join(name);
        Self {
            authority: file("ca.pem"),
            authority_key: file("ca.key"),
            node: file("node.pem"),
            tokens: file("tokens"),
            address: file("address"),
            founder: file("founder"),
            contacts: file("contacts"),
            client: file("client"),
            disk: file("disk"),
            devices: file("devices"),
            replaces: file("replaces"),
            directory,
        }
    }
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is none.
    #[error("{}: not there; make the cluster with `quarry cluster init`, or join one with `quarry join`", .0.display())]
    Missing(PathBuf),
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// How.
        reason: String,
    },
    /// Something is there that would be lost.
    #[error("{}: is there already; {advice}", path.display())]
    Exists {
        /// What.
        path: PathBuf,
        /// What to do.
        advice: &'static str,
    },
}

impl IdentityError {
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { path: path.to_owned(), source }
    }

    pub(crate) fn invalid(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// A node's identity.
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    pub(super) authority: CertificateDer<'static>,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// The one name in a node's certificate.
pub(crate) fn name_of(cluster: ClusterId, node: NodeId) -> String {
    format!("quarry://{}/{node}", cluster_text(cluster))
}

/// Cluster and node of a name.
pub(crate) fn parse_name(name: &str) -> Option<(ClusterId, NodeId)> {
    let (cluster, node) = name.strip_prefix("quarry://")?.split_once('/')?;
    let found = (parse_cluster(cluster)?, node.parse().ok()?);
    // One identity has one spelling.
    (name_of(found.0, found.1) == name).then_some(found)
}

impl Identity {
    /// From its parts; `whence` names them in errors.
    pub(crate) fn new(
        authority: CertificateDer<'static>,
        certificate: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        whence: &Path,
    ) -> Result<Self, IdentityError> {
        let invalid = |reason: &str| IdentityError::invalid(whence, reason);
        let (cluster, node) = tls::name_in(&certificate)
            .ok_or_else(|| invalid("the certificate names no node; join anew, or restore the file"))?;
        let identity = Self { node, cluster, authority, certificate, key };
        tls::check_pair(&identity).map_err(|reason| {
            invalid(&format!("the certificate does not fit its key: {reason}; restore the file"))
        })?;
        match Checker::judge_own(&identity) {
            Ok(()) => Ok(identity),
            // Refused by every peer, which says so clearly; a node whose clock is wrong must still start.
            Err(Refusal::Expired) => {
                tracing::error!(file = %whence.display(), "this node's certificate is expired or not yet valid; renew it");
                Ok(identity)
            }
            Err(why) => Err(invalid(&format!("{why}; restore the file, or join anew"))),
        }
    }

    /// The one in a data directory.
    pub(crate) fn load(data: &Path) -> Result<Self, IdentityError> {
        Self::load_from(&Files::of(data))
    }

    /// The one in these files.
    pub(crate) fn load_from(files: &Files) -> Result<Self, IdentityError> {
        let authority = read_certificate(&files.authority)?;
        let text = read(&files.node)?;
        let invalid = |e| IdentityError::invalid(&files.node, pem_text(&e));
        let certificate = CertificateDer::from_pem_slice(&text).map_err(invalid)?;
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(invalid)?;
        Self::new(authority, certificate, key, &files.node)
    }
}

fn pem_text(error: &rustls::pki_types::pem::Error) -> String {
    format!("not in PEM form ({error}); restore the file")
}

/// A file's bytes, if it is not unreasonably large.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => IdentityError::Missing(path.to_owned()),
        _ => IdentityError::File { path: path.to_owned(), source },
    };
    let length = std::fs::metadata(path).map_err(failed)?;
    if length.len() > MAX_FILE {
        return Err(IdentityError::invalid(
            path,
            format!("{} bytes; allowed: at most {MAX_FILE}", length.len()),
        ));
    }
    // It may have gone since.
    std::fs::read(path).map_err(failed)
}

/// The certificate in a file.
pub(crate) fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, IdentityError> {
    let text = read(path)?;
    CertificateDer::from_pem_slice(&text).map_err(|e| IdentityError::invalid(path, pem_text(&e)))
}

/// Writes a file that only its owner reads.
pub(crate) fn write(path: &Path, content: &str) -> Result<(), IdentityError> {
    durable_file::replace(path, content.as_bytes(), durable_file::PRIVATE).map_err(IdentityError::file(path))
}

/// The identity that a running node shows, which may change under it.
#[derive(Debug)]
pub struct Keeper {
    current: RwLock<Arc<Identity>>,
    renewed: watch::Sender<u64>,
}

impl Keeper {
    /// With a first identity.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self { current: RwLock::new(Arc::new(identity)), renewed: watch::Sender::new(0) }
    }

    /// What is shown now.
    #[must_use]
    pub fn current(&self) -> Arc<Identity> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How often it was renewed: a connection of an earlier time takes no new calls.
    #[must_use]
    pub fn generation(&self) -> u64 {
        *self.renewed.borrow()
    }

    /// Shows another certificate of the same node from now on.
    pub fn renew(&self, identity: Identity) -> Result<(), Refusal> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if identity.cluster != current.cluster {
            return Err(Refusal::OtherCluster);
        }
        if identity.node != current.node {
            return Err(Refusal::OtherNode);
        }
        *current = Arc::new(identity);
        drop(current);
        self.renewed.send_modify(|count| *count += 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        let (cluster, node) = (ClusterId([0xab; 16]), NodeId([1; 16]));
        let name = name_of(cluster, node);
        assert_eq!(name, "quarry://abababababababababababababababab/01010101010101010101010101010101");
        assert_eq!(parse_name(&name), Some((cluster, node)));
        for bad in [
            name.to_uppercase(),
            name.replace("ab", "AB"),
            format!("{name}/"),
            format!("{name}0"),
            name.replace("quarry", "http"),
            String::new(),
        ] {
            assert_eq!(parse_name(&bad), None, "{bad}");
        }
    }
}
