//! Joining: a machine with a token gets a certificate from a node that has the authority's key.
//!
//! Over TLS with ALPN `quarry-join/1`, each way one message: its length as a little-endian u32, at most [`MAX_MESSAGE`], and
//! JSON. The machine knows the authority by the fingerprint in its token; the key of its certificate is made on it and stays.
//!
//! Invariant: the secret is sent only to a node of the authority that the token names.
//! Invariant: which node a certificate names is decided by the host: a new one, or the one that the machine proved to be.
//! Invariant: the users that the founder made for itself, and the key of encrypted volumes, are told to machines that join, and to
//! nobody else.
//! Invariant: a data directory that belongs to a cluster never changes to another.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::net::limits::{HANDSHAKE_WITHIN, RECEIVE_WITHIN};
use quarry_engine::net::{NodeId, Refusal};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client, server};

use super::authority::{Authority, NODE_LIFE, Validity, make_directory, node_file, pem, unix_now};
use super::identity::{self, Files, Identity, IdentityError};
use super::tls::{self, Met};
use super::token::{self, Token, TokenId};
use crate::auth::users_file;
use crate::block::keys::{self, KeyError};
use crate::durable_file::sync_directory;
use crate::hidden::Hidden;
use crate::storage::{self, cluster_text, random_bytes};

/// Most bytes of a message of joining.
const MAX_MESSAGE: usize = 64 << 10;
/// 2: an answer has the keys of encrypted volumes.
const VERSION: u8 = 2;

/// What a machine asks.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    version: u8,
    token: Hidden,
    secret: Hidden,
    /// A certificate signing request: DER in base64.
    request: String,
}

/// What it is told.
#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase", deny_unknown_fields)]
enum Answer {
    /// Its certificate: DER in base64; the users file of the node, if it made one; and the keys of encrypted volumes.
    Joined { certificate: String, users: Option<String>, volumes: Option<String> },
    /// Not, and why.
    Refused { reason: String },
}

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JoinError {
    /// The host could not be reached or spoken to.
    #[error(
        "{address}: {reason}; is the node running with a [cluster] section, and does the address lead to it?"
    )]
    Host {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The host said no.
    #[error("{address} says: {reason}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The directory belongs elsewhere.
    #[error("{} belongs to cluster {}, the token to cluster {}; use another directory", data.display(), cluster_text(*own), cluster_text(*other))]
    OtherCluster {
        /// Which directory.
        data: PathBuf,
        /// Its cluster.
        own: ClusterId,
        /// The token's.
        other: ClusterId,
    },
    /// Files.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The directory's cluster.
    #[error(transparent)]
    Cluster(#[from] storage::OpenError),
    /// The keys of encrypted volumes.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// What joining came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    /// The certificate of a node that was one already was renewed.
    pub(crate) renewed: bool,
    /// The node that let it in.
    pub(crate) host: NodeId,
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let len = u32::try_from(text.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&len.to_le_bytes()[..], &text].concat()).await?;
    stream.flush().await
}

async fn receive<T: serde::de::DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let len = stream.read_u32_le().await? as usize;
    if len > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message is too long"));
    }
    let mut text = vec![0; len];
    stream.read_exact(&mut text).await?;
    // What the parser says quotes what came, from anybody; it would come into the log, line breaks and all.
    let unreadable = |_| io::Error::new(io::ErrorKind::InvalidData, "message is none of joining");
    serde_json::from_slice(&text).map_err(unreadable)
}

// The host.

/// A node that lets others join.
#[derive(Debug)]
pub(super) struct Host {
    data: PathBuf,
    authority: Authority,
}

impl Host {
    /// With the authority in a data directory; `None` when its key is elsewhere.
    pub(super) fn load(data: &Path) -> Result<Option<Arc<Self>>, IdentityError> {
        match Authority::load(data) {
            Ok(authority) => Ok(Some(Arc::new(Self { data: data.to_owned(), authority }))),
            Err(IdentityError::Missing(path)) if path == Files::of(data).authority_key => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Serves one machine, which is `known` when it showed a certificate of this cluster.
    pub(super) async fn serve(
        self: Arc<Self>,
        mut stream: server::TlsStream<TcpStream>,
        peer: SocketAddr,
        known: Option<NodeId>,
    ) {
        let talk = async {
            let ask: Ask = receive(&mut stream).await?;
            let host = Arc::clone(&self);
            // Files are read and written, and a signature is made.
            let judged = tokio::task::spawn_blocking(move || host.judge(&ask, known)).await;
            let answer = match judged.unwrap_or_else(|e| Err(e.to_string())) {
                Ok((node, certificate)) => {
                    tracing::info!(%peer, %node, renewed = known.is_some(), "node joins");
                    let users = users_file::text(&self.data);
                    let volumes = keys::text(&self.data);
                    Answer::Joined { certificate: STANDARD.encode(certificate), users, volumes }
                }
                Err(reason) => {
                    tracing::warn!(%peer, "refuse to let join: {reason}");
                    Answer::Refused { reason }
                }
            };
            send(&mut stream, &answer).await?;
            stream.shutdown().await
        };
        match timeout(RECEIVE_WITHIN, talk).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%peer, %error, "let join"),
            Err(_) => tracing::info!(%peer, "let join: it takes too long"),
        }
    }

    fn judge(&self, ask: &Ask, known: Option<NodeId>) -> Result<(NodeId, CertificateDer<'static>), String> {
        if ask.version != VERSION {
            return Err(format!("version {} of joining, this node speaks {VERSION}", ask.version));
        }
        let mut id = [0; 8];
        hex::decode_to_slice(&*ask.token, &mut id).map_err(|_| "the token's id is not hex".to_owned())?;
        let secret = hex::decode(&*ask.secret).map_err(|_| "the secret is not hex".to_owned())?;
        let request = STANDARD.decode(&ask.request).map_err(|_| "the request is not base64".to_owned())?;
        let now = unix_now();
        token::take(&self.data, TokenId(id), &secret, now).map_err(|e| e.to_string())?;
        let node = known.unwrap_or_else(|| NodeId(random_bytes()));
        let signed = self.authority.sign_request(node, &request, Validity::starting(now, NODE_LIFE));
        Ok((node, signed.map_err(|e| format!("sign certificate: {e}"))?))
    }
}

// The machine.

/// Makes a data directory that of a node, or renews its certificate. Nothing is written unless all went well.
pub(crate) async fn join(data: &Path, token: &Token) -> Result<Joined, JoinError> {
    let files = Files::of(data);
    let own = match Identity::load(data) {
        Ok(identity) => Some(Arc::new(identity)),
        Err(IdentityError::Missing(_)) if is_replaced(data) => {
            let advice = "`quarry join --replace` did not finish here; give it once more, with --replace";
            return Err(IdentityError::Exists { path: Files::coming(data).directory, advice }.into());
        }
        Err(IdentityError::Missing(_)) => None,
        Err(error) => return Err(error.into()),
    };
    join_as(data, &files, own, token).await
}

/// Joins as another node, or renews the certificate of the one that it is; the identity is written into `files`.
async fn join_as(
    data: &Path,
    files: &Files,
    own: Option<Arc<Identity>>,
    token: &Token,
) -> Result<Joined, JoinError> {
    let address = token.address;
    let host = |reason: String| JoinError::Host { address, reason };
    let greeting = timeout(HANDSHAKE_WITHIN, greet(token, own.clone())).await;
    let (mut stream, met) =
        greeting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|e| host(e.to_string()))?;
    check_cluster(data, met.cluster)?;
    let key = KeyPair::generate().map_err(|e| host(e.to_string()))?;
    let request = CertificateParams::default().serialize_request(&key).map_err(|e| host(e.to_string()))?;
    let ask = Ask {
        version: VERSION,
        token: hex::encode(token.id.0).into(),
        secret: hex::encode(token.secret).into(),
        request: STANDARD.encode(request.der()),
    };
    let answer = timeout(RECEIVE_WITHIN, talk(&mut stream, &ask)).await;
    let answer =
        answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|e| host(told(&e)))?;
    let (certificate, users, volumes) = match answer {
        Answer::Joined { certificate, users, volumes } => {
            (STANDARD.decode(certificate).map_err(|e| host(e.to_string()))?, users, volumes)
        }
        Answer::Refused { reason } => return Err(JoinError::Refused { address, reason }),
    };
    let certificate = CertificateDer::from(certificate);
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let identity = Identity::new(met.authority.clone(), certificate.clone(), private, &files.node)?;
    if identity.cluster != met.cluster || own.as_ref().is_some_and(|own| own.node != identity.node) {
        return Err(host("it gave a certificate for another node".to_owned()));
    }
    make_directory(files)?;
    storage::remember_cluster(data, identity.cluster)?;
    identity::write(&files.authority, &pem(&met.authority))?;
    identity::write(&files.contacts, &format!("{} {address}\n", met.host))?;
    if let Some(users) = users {
        identity::write(&files.client, &users)?;
    }
    if let Some(volumes) = volumes {
        keys::adopt(data, &volumes)?;
    }
    identity::write(&files.node, &node_file(&key, &certificate))?;
    Ok(Joined { cluster: identity.cluster, node: identity.node, renewed: own.is_some(), host: met.host })
}

/// Joins as another node, in place of the one that this data directory is of: its disk is lost, and with it what it had voted.
/// The old identity stays beside the new one, unused. Interrupted anywhere, it is begun or ended by the next call: the old identity stays in its
/// place until the new one is whole, with the name of whom it replaces.
pub(crate) async fn replace(data: &Path, token: &Token) -> Result<(NodeId, Joined), JoinError> {
    let (files, coming) = (Files::of(data), Files::coming(data));
    if is_replaced(data) {
        return take_place(data);
    }
    let old = Identity::load(data)?.node;
    if files.authority_key.exists() {
        let advice = "this node has the authority's key: copy it to another node's directory first, and remove it here";
        return Err(IdentityError::Exists { path: files.authority_key, advice }.into());
    }
    if coming.directory.exists() {
        // Of a call that was interrupted, and not whole: it is of nobody.
        std::fs::remove_dir_all(&coming.directory).map_err(IdentityError::file(&coming.directory))?;
    }
    let joined = join_as(data, &coming, None, token).await?;
    identity::write(&coming.replaces, &format!("{old}\n"))?;
    let aside = data.join(format!("cluster.of-{old}"));
    rename(&files.directory, &aside)?;
    take_place(data)?;
    Ok((old, joined))
}

/// Whether the old identity is out of its place, and the new one not yet in it.
fn is_replaced(data: &Path) -> bool {
    !Files::of(data).directory.exists() && Files::coming(data).replaces.exists()
}

/// Puts the new identity in its place.
fn take_place(data: &Path) -> Result<(NodeId, Joined), JoinError> {
    let (files, coming) = (Files::of(data), Files::coming(data));
    let Identity { cluster, node, .. } = Identity::load_from(&coming)?;
    let old = node_in(&coming.replaces)?.ok_or_else(|| IdentityError::Missing(coming.replaces.clone()))?;
    rename(&coming.directory, &files.directory)?;
    let host = contacts(data)?.first().map_or(node, |(host, _)| *host);
    Ok((old, Joined { cluster, node, renewed: false, host }))
}

fn rename(from: &Path, to: &Path) -> Result<(), IdentityError> {
    std::fs::rename(from, to).and_then(|()| sync_directory(to)).map_err(IdentityError::file(to))
}

/// The node in whose place this one came, while the cluster has not taken note of it.
pub(crate) fn replaces(data: &Path) -> Result<Option<NodeId>, IdentityError> {
    node_in(&Files::of(data).replaces)
}

/// The node that a file names, if it is there.
fn node_in(file: &Path) -> Result<Option<NodeId>, IdentityError> {
    match identity::read(file) {
        Ok(text) => {
            let node = String::from_utf8_lossy(&text).trim().parse();
            node.map(Some).map_err(|_| IdentityError::invalid(file, "not the identity of a node"))
        }
        Err(IdentityError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The node that let this one join, and where it was reached then; none at the node that made the cluster.
pub(super) fn contacts(data: &Path) -> Result<Vec<(NodeId, SocketAddr)>, IdentityError> {
    let file = Files::of(data).contacts;
    let text = match identity::read(&file) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(IdentityError::Missing(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let parse = |line: &str| {
        let (node, address) = line.split_once(' ')?;
        Some((node.parse().ok()?, address.parse().ok()?))
    };
    let bad = || IdentityError::invalid(&file, "a line is no node and its address; join again");
    text.lines().map(|line| parse(line).ok_or_else(bad)).collect()
}

/// Why the host said nothing. That it takes no fancy to the certificate shown comes after the handshake, as an alert.
fn told(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(_)) => Refusal::ByPeer.to_string(),
        _ => error.to_string(),
    }
}

/// Holds a directory to its cluster before the secret is sent.
fn check_cluster(data: &Path, other: ClusterId) -> Result<(), JoinError> {
    match storage::known_cluster(data)? {
        Some(own) if own != other => Err(JoinError::OtherCluster { data: data.to_owned(), own, other }),
        _ => Ok(()),
    }
}

async fn greet(token: &Token, own: Option<Arc<Identity>>) -> io::Result<(client::TlsStream<TcpStream>, Met)> {
    let (config, meeting) = tls::join_client(token.fingerprint, own.as_deref()).map_err(io::Error::other)?;
    let name = ServerName::try_from(tls::SERVER_NAME).map_err(io::Error::other)?;
    let stream = TcpStream::connect(token.address).await?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    match meeting.get() {
        Some(Ok(met)) => Ok((connected?, met)),
        Some(Err(why)) => Err(io::Error::other(why)),
        None => Err(connected.err().unwrap_or_else(|| io::Error::other("nobody was met"))),
    }
}

async fn talk(stream: &mut client::TlsStream<TcpStream>, ask: &Ask) -> io::Result<Answer> {
    send(stream, ask).await?;
    receive(stream).await
}

/// How long a token is good when nothing is said.
pub(crate) const TOKEN_LIFE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    /// A stranger needs no token to be heard: a field's name with a line break in it wrote lines of its own into the log.
    #[tokio::test]
    async fn what_a_stranger_sends_is_not_quoted() {
        for text in [
            r#"{"version":2,"a\nWARN node joins":2}"#,
            r#"{"version":"a\nWARN node joins"}"#,
            "",
            "{",
            "\u{1b}[31m",
        ] {
            let len = u32::try_from(text.len()).unwrap().to_le_bytes();
            let bytes = [&len[..], text.as_bytes()].concat();
            let error = receive::<Ask>(&mut &bytes[..]).await.err().unwrap();
            assert_eq!(error.to_string(), "message is none of joining", "{text:?}");
        }
        for len in [u32::try_from(MAX_MESSAGE).unwrap() + 1, u32::MAX] {
            let error = receive::<Ask>(&mut &len.to_le_bytes()[..]).await.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{len}");
        }
    }
}
