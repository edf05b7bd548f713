//! What two nodes must show each other: TLS 1.3, certificates of the cluster's authority, the node that was meant.
//!
//! Invariant: both sides show a certificate, and a session is never resumed: every connection is judged anew.
//! Invariant: ring is the only provider of cryptography, and it is named, never taken from the process.
//! Invariant: why a peer was refused is known as a value, not read out of a text.

use std::sync::{Arc, Mutex, PoisonError};

use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::net::{NodeId, Refusal};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};

use super::identity::{Identity, parse_name};
use super::token::fingerprint;

/// The protocol of calls, as connections name it.
pub(super) const CALLS: &[u8] = b"quarry/1";
/// The protocol of joining.
pub(super) const JOIN: &[u8] = b"quarry-join/1";
/// What a machine that joins names as the server: the certificate's URI is what counts.
pub(super) const SERVER_NAME: &str = "node.quarry";

/// The one provider of cryptography.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Cluster and node in a certificate, **unverified**: for messages, and behind a check of the chain.
pub(crate) fn name_in(certificate: &CertificateDer<'_>) -> Option<(ClusterId, NodeId)> {
    let parsed = EndEntityCert::try_from(certificate).ok()?;
    let mut names = parsed.valid_uri_names();
    let found = parse_name(names.next()?)?;
    names.next().is_none().then_some(found)
}

/// Whether the key of an identity is that of its certificate.
pub(super) fn check_pair(identity: &Identity) -> Result<(), rustls::Error> {
    certified(identity).map(drop)
}

fn certified(identity: &Identity) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(vec![identity.certificate.clone()], identity.key.clone_key(), &provider())
}

/// Whether an identity's certificate is no longer good so much later.
pub(super) fn ends_within(identity: &Identity, time: std::time::Duration) -> bool {
    let later = UnixTime::since_unix_epoch(super::authority::unix_now() + time);
    judge_chain(&identity.authority, &identity.certificate, Side::Server, later) == Err(Refusal::Expired)
}

/// What came of judging a peer; shared with whoever waits for the handshake.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdict(Arc<Mutex<Option<Result<NodeId, Refusal>>>>);

impl Verdict {
    fn set(&self, judged: Result<NodeId, Refusal>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(judged);
    }

    /// The peer, or why it was refused; `None` when it was never judged.
    pub(super) fn get(&self) -> Option<Result<NodeId, Refusal>> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Judges a peer's certificate.
#[derive(Debug)]
pub(super) struct Checker {
    own: Arc<Identity>,
    /// The node that was called; `None` at the side that was.
    called: Option<NodeId>,
    /// A client may come without a certificate (it wants to join), or with one whose time is over (it wants it renewed): what
    /// lets it in is its token, and the certificate says which node it is.
    optional: bool,
    verdict: Verdict,
}

/// Which way a certificate is used.
#[derive(Debug, Clone, Copy)]
enum Side {
    Client,
    Server,
}

fn verify_chain(
    authority: &CertificateDer<'_>,
    certificate: &CertificateDer<'_>,
    side: Side,
    now: UnixTime,
) -> Result<(), webpki::Error> {
    let parsed = EndEntityCert::try_from(certificate)?;
    let anchor = webpki::anchor_from_trusted_cert(authority)?;
    let usage = match side {
        Side::Client => KeyUsage::client_auth(),
        Side::Server => KeyUsage::server_auth(),
    };
    let algorithms = provider().signature_verification_algorithms.all;
    parsed.verify_for_usage(algorithms, &[anchor], &[], now, usage, None, None).map(drop)
}

fn refusal_of(error: &webpki::Error) -> Refusal {
    match error {
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => Refusal::Expired,
        _ => Refusal::Untrusted,
    }
}

fn judge_chain(
    authority: &CertificateDer<'_>,
    certificate: &CertificateDer<'_>,
    side: Side,
    now: UnixTime,
) -> Result<(), Refusal> {
    verify_chain(authority, certificate, side, now).map_err(|e| refusal_of(&e))
}

/// As [`judge_chain`], but a certificate whose time is over is judged as of its last moment. The time is looked at before the
/// signature, so that it is over says nothing of who signed it.
fn judge_lapsed(
    authority: &CertificateDer<'_>,
    certificate: &CertificateDer<'_>,
    side: Side,
    now: UnixTime,
) -> Result<(), Refusal> {
    let judged = match verify_chain(authority, certificate, side, now) {
        Err(webpki::Error::CertExpired { not_after, .. }) => {
            verify_chain(authority, certificate, side, not_after)
        }
        judged => judged,
    };
    judged.map_err(|e| refusal_of(&e))
}

impl Checker {
    /// Whether an identity would be accepted by others.
    pub(super) fn judge_own(identity: &Identity) -> Result<(), Refusal> {
        let now = UnixTime::now();
        judge_chain(&identity.authority, &identity.certificate, Side::Client, now)?;
        judge_chain(&identity.authority, &identity.certificate, Side::Server, now)
    }

    fn judge(&self, certificate: &CertificateDer<'_>, side: Side, now: UnixTime) -> Result<NodeId, Refusal> {
        let own = &self.own;
        let named = name_in(certificate);
        let judge = if self.optional { judge_lapsed } else { judge_chain };
        if let Err(why) = judge(&own.authority, certificate, side, now) {
            // Refused anyway: what it says of itself makes the reason clearer.
            let elsewhere = named.is_some_and(|(cluster, _)| cluster != own.cluster);
            return Err(if elsewhere { Refusal::OtherCluster } else { why });
        }
        let (cluster, node) = named.ok_or(Refusal::Nameless)?;
        if cluster != own.cluster {
            return Err(Refusal::OtherCluster);
        }
        if node == own.node {
            return Err(Refusal::OwnIdentity);
        }
        if self.called.is_some_and(|called| called != node) {
            return Err(Refusal::OtherNode);
        }
        Ok(node)
    }

    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        side: Side,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let judged = self.judge(certificate, side, now);
        self.verdict.set(judged);
        judged.map(drop).map_err(|why| rustls::Error::InvalidCertificate(alert_of(why)))
    }
}

/// What the peer is told: an alert has no words, so the kind is chosen to fit.
fn alert_of(why: Refusal) -> CertificateError {
    match why {
        Refusal::Untrusted => CertificateError::UnknownIssuer,
        Refusal::Expired => CertificateError::Expired,
        _ => CertificateError::ApplicationVerificationFailure,
    }
}

fn never(_: &[u8]) -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
}

impl ServerCertVerifier for Checker {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, Side::Server, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never(message)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Checker {
    fn client_auth_mandatory(&self) -> bool {
        !self.optional
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, Side::Client, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never(message)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The side that calls `called`.
pub(super) fn client(own: Arc<Identity>, called: NodeId) -> Result<(ClientConfig, Verdict), rustls::Error> {
    let verdict = Verdict::default();
    let (chain, key) = (vec![own.certificate.clone()], own.key.clone_key());
    let checker = Checker { own, called: Some(called), optional: false, verdict: verdict.clone() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(checker))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![CALLS.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok((config, verdict))
}

/// The side that is called.
pub(super) fn server(own: Arc<Identity>) -> Result<(ServerConfig, Verdict), rustls::Error> {
    serving(own, false, CALLS)
}

/// The side that lets nodes join: they come without a certificate, or with the one they want renewed.
pub(super) fn join_server(own: Arc<Identity>) -> Result<(ServerConfig, Verdict), rustls::Error> {
    serving(own, true, JOIN)
}

fn serving(
    own: Arc<Identity>,
    optional: bool,
    protocol: &[u8],
) -> Result<(ServerConfig, Verdict), rustls::Error> {
    let verdict = Verdict::default();
    let mut chain = vec![own.certificate.clone()];
    if optional {
        // Who joins knows the authority by its fingerprint alone.
        chain.push(own.authority.clone());
    }
    let key = own.key.clone_key();
    let checker = Checker { own, called: None, optional, verdict: verdict.clone() };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(checker))
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok((config, verdict))
}

/// Whom a machine met that wants to join.
#[derive(Debug, Clone)]
pub(super) struct Met {
    pub(super) authority: CertificateDer<'static>,
    pub(super) cluster: ClusterId,
    pub(super) host: NodeId,
}

/// Known once the handshake is over.
#[derive(Debug, Clone, Default)]
pub(super) struct Meeting(Arc<Mutex<Option<Result<Met, Refusal>>>>);

impl Meeting {
    pub(super) fn get(&self) -> Option<Result<Met, Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Knows an authority by its fingerprint alone.
#[derive(Debug)]
struct Pinned {
    fingerprint: [u8; 32],
    meeting: Meeting,
}

impl Pinned {
    fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Met, Refusal> {
        let authority = others.iter().find(|other| fingerprint(other) == self.fingerprint);
        let authority = authority.ok_or(Refusal::OtherCluster)?;
        judge_chain(authority, certificate, Side::Server, now)?;
        let (cluster, host) = name_in(certificate).ok_or(Refusal::Nameless)?;
        Ok(Met { authority: authority.clone().into_owned(), cluster, host })
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let met = self.judge(end_entity, intermediates, now);
        let judged = met.as_ref().map(|_| ServerCertVerified::assertion());
        let judged = judged.map_err(|why| rustls::Error::InvalidCertificate(alert_of(*why)));
        *self.meeting.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(met);
        judged
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        never(message)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The side that wants to join; it shows the certificate that it has, if it has one.
pub(super) fn join_client(
    fingerprint: [u8; 32],
    own: Option<&Identity>,
) -> Result<(ClientConfig, Meeting), rustls::Error> {
    let meeting = Meeting::default();
    let pinned = Pinned { fingerprint, meeting: meeting.clone() };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned));
    let mut config = match own {
        Some(own) => builder.with_client_auth_cert(vec![own.certificate.clone()], own.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![JOIN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok((config, meeting))
}
