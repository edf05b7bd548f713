//! Who is not let in, and what each side is told.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::net::{NetError, NodeId, Refusal, Response};

use super::rig::{A, B, BOTH, CLUSTER, Echo, LONG, TestNode, authority, day, identity, pair};
use crate::cluster::Identity;
use crate::cluster::authority::{Authority, Validity, unix_now};
use crate::cluster::identity::name_of;
use crate::config::Carrier;

/// A node with `identity` calls a good node B of the cluster, and is called by a good node A.
/// What the stranger is told when it calls B, and what A is told when it calls the stranger under `name`.
fn both_ways(
    carrier: Carrier,
    good: &Authority,
    stranger: impl Fn() -> Identity,
    name: NodeId,
) -> [Result<Response, NetError>; 2] {
    let (a, b) = (identity(good, A), identity(good, B));
    let (a, b) = (TestNode::new(carrier, a, Arc::new(Echo)), TestNode::new(carrier, b, Arc::new(Echo)));
    let stranger = TestNode::new(carrier, stranger(), Arc::new(Echo));
    stranger.knows(B, b.address);
    a.knows(name, stranger.address);
    a.knows(B, b.address);
    let results = [stranger.ping(B, LONG), a.ping(name, LONG)];
    assert!(a.ping(B, LONG).is_ok(), "the good ones still talk");
    results
}

fn refused(to: NodeId, why: Refusal) -> Result<Response, NetError> {
    Err(NetError::Refused { to, why })
}

#[test]
fn a_node_of_another_cluster_is_refused_by_both_sides() {
    const C: NodeId = NodeId([0xc; 16]);
    for carrier in BOTH {
        let other = authority(ClusterId([8; 16]));
        let [calls, called] = both_ways(carrier, &authority(CLUSTER), || identity(&other, C), C);
        assert_eq!(calls, refused(B, Refusal::OtherCluster), "{carrier}: the stranger sees it first");
        assert_eq!(called, refused(C, Refusal::OtherCluster), "{carrier}");
    }
}

#[test]
fn a_certificate_of_a_false_authority_is_refused() {
    const C: NodeId = NodeId([0xc; 16]);
    for carrier in BOTH {
        // It says the right cluster, and another authority signed it.
        let forger = authority(CLUSTER);
        let [calls, called] = both_ways(carrier, &authority(CLUSTER), || identity(&forger, C), C);
        assert_eq!(calls, refused(B, Refusal::Untrusted), "{carrier}");
        assert_eq!(called, refused(C, Refusal::Untrusted), "{carrier}");
    }
}

/// As [`Identity::new`] makes it, with the good authority's certificate beside one that it would refuse.
fn unchecked(
    good: &Authority,
    issued: crate::cluster::authority::Issued,
    cluster: ClusterId,
    node: NodeId,
) -> Identity {
    Identity {
        node,
        cluster,
        authority: good.certificate().clone(),
        certificate: issued.certificate,
        key: rustls::pki_types::PrivatePkcs8KeyDer::from(issued.key.serialize_der()).into(),
    }
}

#[test]
fn one_authority_for_two_clusters_does_not_mix_them() {
    const C: NodeId = NodeId([0xc; 16]);
    for carrier in BOTH {
        let good = authority(CLUSTER);
        let other = ClusterId([8; 16]);
        let stranger = || unchecked(&good, good.issue_name(&name_of(other, C), day()).unwrap(), other, C);
        let [calls, called] = both_ways(carrier, &good, stranger, C);
        assert_eq!(calls, refused(B, Refusal::OtherCluster), "{carrier}");
        assert_eq!(called, refused(C, Refusal::OtherCluster), "{carrier}");
    }
}

#[test]
fn an_expired_or_future_certificate_is_refused() {
    const C: NodeId = NodeId([0xc; 16]);
    let (now, hour) = (unix_now(), Duration::from_secs(3600));
    let times =
        [Validity::between(now - 2 * hour, now - hour), Validity::between(now + hour, now + 2 * hour)];
    for (carrier, validity) in BOTH.into_iter().zip(times) {
        let good = authority(CLUSTER);
        let stranger = || good.issue(C, validity).unwrap().identity(&good, Path::new("test")).unwrap();
        let [calls, called] = both_ways(carrier, &good, stranger, C);
        assert_eq!(calls, refused(B, Refusal::ByPeer), "{carrier}: an alert has no words");
        assert_eq!(called, refused(C, Refusal::Expired), "{carrier}");
    }
}

#[test]
fn a_cloned_identity_is_refused_by_the_original_and_by_the_clone() {
    for carrier in BOTH {
        let authority = authority(CLUSTER);
        let original = TestNode::new(carrier, identity(&authority, A), Arc::new(Echo));
        let clone = TestNode::new(carrier, identity(&authority, A), Arc::new(Echo));
        // The clone is started on another machine and believes that the original is B.
        clone.knows(B, original.address);
        assert_eq!(clone.ping(B, LONG), refused(B, Refusal::OwnIdentity), "{carrier}");
        original.knows(B, clone.address);
        assert_eq!(original.ping(B, LONG), refused(B, Refusal::OwnIdentity), "{carrier}");
    }
}

/// The original is connected to a third node, and then a copy of it calls there.
fn original_third_and_clone(carrier: Carrier) -> [TestNode; 3] {
    let (authority, original, third) = pair(carrier);
    assert!(original.ping(B, LONG).is_ok());
    let clone = TestNode::new(carrier, identity(&authority, A), Arc::new(Echo));
    clone.knows(B, third.address);
    [original, third, clone]
}

#[test]
fn a_clone_is_refused_by_third_nodes_while_the_original_is_connected() {
    let [original, _third, clone] = original_third_and_clone(Carrier::Quic);
    let refused = Err(NetError::Refused { to: B, why: Refusal::Twice });
    assert_eq!(clone.ping(B, LONG), refused);
    assert!(original.ping(B, LONG).is_ok(), "the original is not disturbed");
    // It is told also when nobody is calling at the moment at which it is refused.
    assert_eq!(clone.ping(B, Duration::from_millis(100)), Err(NetError::Deadline(B)));
    std::thread::sleep(Duration::from_millis(3500));
    assert_eq!(clone.ping(B, Duration::from_millis(100)), refused);
    // Once the original is gone, there is one again.
    original.close();
    assert!(clone.ping(B, LONG).is_ok());
}

#[test]
fn a_clone_is_refused_over_tcp_too() {
    let [original, _third, clone] = original_third_and_clone(Carrier::Tcp);
    let refused = clone.ping(B, LONG);
    assert!(matches!(refused, Err(NetError::Lost { to: B, .. })), "{refused:?}");
    assert!(original.ping(B, LONG).is_ok(), "the original is not disturbed");
    original.close();
    assert!(clone.ping(B, LONG).is_ok());
}

#[test]
fn a_node_at_another_ones_address_is_refused() {
    const C: NodeId = NodeId([0xc; 16]);
    for carrier in BOTH {
        let (_, a, b) = pair(carrier);
        a.knows(C, b.address);
        assert_eq!(a.ping(C, LONG), refused(C, Refusal::OtherNode), "{carrier}");
        assert!(a.ping(B, LONG).is_ok());
    }
}

#[test]
fn a_certificate_without_a_node_is_refused() {
    const C: NodeId = NodeId([0xc; 16]);
    let good_name = name_of(CLUSTER, C);
    for (carrier, name) in BOTH.into_iter().zip(["https://example.org/", &good_name.to_uppercase()]) {
        let good = authority(CLUSTER);
        let stranger = || unchecked(&good, good.issue_name(name, day()).unwrap(), CLUSTER, C);
        let [calls, called] = both_ways(carrier, &good, stranger, C);
        assert_eq!(calls, refused(B, Refusal::ByPeer), "{carrier}");
        assert_eq!(called, refused(C, Refusal::Nameless), "{carrier}");
    }
}

/// TLS settings of somebody who has no certificate and believes everybody.
fn nobody(protocol: &[u8]) -> rustls::ClientConfig {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    #[derive(Debug)]
    struct Credulous;
    impl ServerCertVerifier for Credulous {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }
    let mut config = rustls::ClientConfig::builder_with_provider(crate::cluster::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    config
}

#[test]
fn a_client_without_a_certificate_is_refused_over_tcp() {
    let (_, _a, b) = pair(Carrier::Tcp);
    let ended = b.runtime().block_on(async {
        use tokio::io::AsyncReadExt;
        let stream = tokio::net::TcpStream::connect(b.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(nobody(b"quarry/1")));
        let name = "node.quarry".try_into().unwrap();
        // In TLS 1.3 the client is done before it is judged.
        let mut stream = connector.connect(name, stream).await?;
        stream.read_u8().await
    });
    let alert = ended.unwrap_err().into_inner().and_then(|e| e.downcast::<rustls::Error>().ok()).unwrap();
    assert_eq!(*alert, rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired));
}

#[test]
fn a_client_without_a_certificate_is_refused_over_quic() {
    let (_, _a, b) = pair(Carrier::Quic);
    let reason = b.runtime().block_on(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(nobody(b"quarry/1")).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        match endpoint.connect_with(config, b.address, "node.quarry").unwrap().await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    });
    let quinn::ConnectionError::ConnectionClosed(close) = reason else { panic!("{reason}") };
    assert_eq!(u64::from(close.error_code), 0x100 + 116, "certificate_required");
}

#[test]
fn another_version_of_the_protocol_is_not_spoken() {
    let (_, _a, b) = pair(Carrier::Quic);
    let connected = b.runtime().block_on(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(nobody(b"quarry/2")).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        endpoint.connect_with(config, b.address, "node.quarry").unwrap().await
    });
    assert!(connected.is_err());
}
