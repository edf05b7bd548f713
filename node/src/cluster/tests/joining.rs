//! Machines join with a token, once.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::net::{NodeId, ReplicaService, Request, Service};

use super::rig::{BOTH, CLUSTER, LONG, runtime};
use crate::cluster::authority::{Authority, Validity, init, node_file, unix_now};
use crate::cluster::join::{JoinError, Joined, join, replace, replaces};
use crate::cluster::token::{Token, TokenError, give};
use crate::cluster::{Cluster, ClusterError, Identity};
use crate::config::{self, Carrier, Config, Source};
use crate::storage;

const LIFE: Duration = Duration::from_secs(60);

fn settings(carrier: Carrier, peers: &[(NodeId, std::net::SocketAddr)]) -> config::Cluster {
    let mut text = format!(
        "[node]\ndata = \"d\"\n[[disk]]\npath = \"p\"\nindex = \"i\"\n[cluster]\nlisten = \"127.0.0.1:0\"\ntransport = \"{carrier}\"\n"
    );
    for (node, address) in peers {
        text += &format!("[[cluster.peer]]\nnode = \"{node}\"\naddress = \"{address}\"\n");
    }
    Config::parse(Source { file: Path::new("test.toml"), text: &text }).unwrap().cluster.unwrap()
}

/// A node without devices.
fn service() -> Arc<dyn Service> {
    let wall = Box::new(storage::wall_clock);
    Arc::new(ReplicaService::new(Vec::new(), crate::cluster::monotonic(), wall, 1))
}

/// A first node that lets others join.
struct First {
    dir: tempfile::TempDir,
    node: NodeId,
    cluster: Cluster,
}

async fn first(carrier: Carrier) -> First {
    let dir = tempfile::tempdir().unwrap();
    storage::remember_cluster(dir.path(), CLUSTER).unwrap();
    let node = init(dir.path(), CLUSTER).unwrap();
    let cluster = Cluster::start(&settings(carrier, &[]), dir.path(), service()).await.unwrap();
    First { dir, node, cluster }
}

impl First {
    fn token(&self) -> Token {
        give(self.dir.path(), self.cluster.address, unix_now(), LIFE).unwrap()
    }
}

#[test]
fn a_machine_joins_and_calls() {
    for carrier in BOTH {
        runtime().block_on(async {
            let first = first(carrier).await;
            let written = std::fs::read_to_string(first.dir.path().join("cluster/address")).unwrap();
            assert_eq!(written.trim(), first.cluster.address.to_string());
            let second = tempfile::tempdir().unwrap();
            let joined = join(second.path(), &first.token()).await.unwrap();
            assert_eq!(
                joined,
                Joined { cluster: CLUSTER, node: joined.node, renewed: false, host: first.node }
            );
            assert_eq!(storage::known_cluster(second.path()).unwrap(), Some(CLUSTER));
            for (file, there) in [("node.pem", true), ("ca.pem", true), ("ca.key", false)] {
                let file = second.path().join("cluster").join(file);
                assert_eq!(file.exists(), there, "{}", file.display());
                if there {
                    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
                }
            }
            let peers = [(first.node, first.cluster.address)];
            let cluster = Cluster::start(&settings(carrier, &peers), second.path(), service()).await.unwrap();
            for to in [first.node, joined.node] {
                let call =
                    cluster.transport.call(to, Request::Ping { payload: Bytes::from_static(b"x") }, LONG);
                assert!(call.await.is_ok(), "{carrier}");
            }
            cluster.stop().await;
            first.cluster.stop().await;
        });
    }
}

#[test]
fn a_token_lets_one_machine_in() {
    runtime().block_on(async {
        let first = first(Carrier::Quic).await;
        let token = first.token();
        let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut joins = tokio::task::JoinSet::new();
        for dir in &dirs {
            let (data, token) = (dir.path().to_owned(), token.clone());
            joins.spawn(async move { join(&data, &token).await });
        }
        let results = joins.join_all().await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        for error in results.into_iter().filter_map(Result::err) {
            let JoinError::Refused { reason, .. } = &error else { panic!("{error}") };
            assert_eq!(*reason, TokenError::Unknown.to_string());
        }
        let written = dirs.iter().filter(|dir| dir.path().join("cluster").exists()).count();
        assert_eq!(written, 1, "who is refused has nothing");
    });
}

#[test]
fn expired_wrong_and_foreign_tokens_are_refused() {
    runtime().block_on(async {
        let (first, other) = (first(Carrier::Tcp).await, first(Carrier::Tcp).await);
        let dir = tempfile::tempdir().unwrap();
        let late = give(first.dir.path(), first.cluster.address, unix_now() - 2 * LIFE, LIFE).unwrap();
        let error = join(dir.path(), &late).await.unwrap_err();
        assert!(error.to_string().contains("expired"), "{error}");
        let wrong = Token { secret: [0; 16], ..first.token() };
        let error = join(dir.path(), &wrong).await.unwrap_err();
        assert!(error.to_string().contains("not known"), "{error}");
        // The token is of one cluster and the address leads to another: the secret is not sent there.
        let foreign = Token { address: other.cluster.address, ..first.token() };
        let error = join(dir.path(), &foreign).await.unwrap_err();
        assert!(
            matches!(&error, JoinError::Host { reason, .. } if reason.contains("another cluster")),
            "{error}"
        );
        let nowhere = Token { address: "127.0.0.1:1".parse().unwrap(), ..first.token() };
        assert!(matches!(join(dir.path(), &nowhere).await, Err(JoinError::Host { .. })));
        assert!(!dir.path().join("cluster").exists());
    });
}

#[test]
fn a_directory_of_another_cluster_does_not_join() {
    runtime().block_on(async {
        let first = first(Carrier::Quic).await;
        let dir = tempfile::tempdir().unwrap();
        storage::remember_cluster(dir.path(), ClusterId([9; 16])).unwrap();
        let token = first.token();
        let error = join(dir.path(), &token).await.unwrap_err();
        assert!(matches!(error, JoinError::OtherCluster { .. }), "{error}");
        // The token was not used up.
        assert!(join(tempfile::tempdir().unwrap().path(), &token).await.is_ok());
    });
}

#[test]
fn who_is_a_node_already_renews() {
    runtime().block_on(async {
        let first = first(Carrier::Quic).await;
        let dir = tempfile::tempdir().unwrap();
        let joined = join(dir.path(), &first.token()).await.unwrap();
        let before = Identity::load(dir.path()).unwrap();
        let again = join(dir.path(), &first.token()).await.unwrap();
        assert_eq!((again.node, again.renewed), (joined.node, true));
        assert_ne!(Identity::load(dir.path()).unwrap().certificate, before.certificate);
    });
}

/// A node that was away when its certificate ended could never come back under its name: the host looked at the certificate's
/// time before it looked at the token.
#[test]
fn a_node_whose_certificate_is_over_renews_with_a_token() {
    runtime().block_on(async {
        let first = first(Carrier::Quic).await;
        let dir = tempfile::tempdir().unwrap();
        let joined = join(dir.path(), &first.token()).await.unwrap();
        let (now, hour) = (unix_now(), Duration::from_secs(3600));
        let over = Validity::between(now - 2 * hour, now - hour);
        let write = |authority: &Authority| {
            let issued = authority.issue(joined.node, over).unwrap();
            let text = node_file(&issued.key, &issued.certificate);
            std::fs::write(dir.path().join("cluster/node.pem"), text).unwrap();
        };
        // Whoever made the certificate is looked at, although its time is over.
        write(&super::rig::authority(CLUSTER));
        let token = first.token();
        let error = join(dir.path(), &token).await.unwrap_err();
        assert!(error.to_string().contains("refuses this node's certificate"), "{error}");
        write(&Authority::load(first.dir.path()).unwrap());
        let again = join(dir.path(), &token).await.unwrap();
        assert_eq!((again.node, again.renewed), (joined.node, true));
    });
}

#[test]
fn a_node_without_an_identity_or_with_disks_of_another_cluster_does_not_start() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let started = Cluster::start(&settings(Carrier::Quic, &[]), dir.path(), service()).await;
        let error = started.map(drop).unwrap_err().to_string();
        assert!(error.contains("quarry cluster init") && error.contains("quarry join"), "{error}");
        init(dir.path(), CLUSTER).unwrap();
        storage::remember_cluster(dir.path(), ClusterId([9; 16])).unwrap();
        let started = Cluster::start(&settings(Carrier::Quic, &[]), dir.path(), service()).await;
        assert!(matches!(started.map(drop), Err(ClusterError::TwoClusters { .. })));
        assert!(init(dir.path(), CLUSTER).is_err(), "an identity is never replaced");
    });
}

/// Whoever gave up waiting, or lost power, had a directory without an identity; joined again, it was a node that replaced nobody, and the old
/// one stayed a voter for good.
#[test]
fn a_replacement_that_is_interrupted_is_done_by_the_next_one() {
    runtime().block_on(async {
        let first = first(Carrier::Tcp).await;
        let second = tempfile::tempdir().unwrap();
        let data = second.path();
        let old = join(data, &first.token()).await.unwrap().node;
        // A host that says nothing, and a user who has waited long enough.
        let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let unheard = Token { address: deaf.local_addr().unwrap(), ..first.token() };
        assert!(tokio::time::timeout(Duration::from_millis(300), replace(data, &unheard)).await.is_err());
        assert_eq!(Identity::load(data).unwrap().node, old, "it is who it was");
        // What a call left that had got further.
        std::fs::create_dir(data.join("cluster.new")).unwrap();
        std::fs::write(data.join("cluster.new").join("replaces"), "rubbish").unwrap();
        let (replaced, joined) = replace(data, &first.token()).await.unwrap();
        assert_eq!((replaced, replaces(data).unwrap()), (old, Some(old)));
        assert_eq!(Identity::load(data).unwrap().node, joined.node);
        assert!(joined.node != old && data.join(format!("cluster.of-{old}")).exists());
        // Power fails between the two names.
        std::fs::rename(data.join("cluster"), data.join("cluster.new")).unwrap();
        let error = join(data, &first.token()).await.unwrap_err().to_string();
        assert!(error.contains("--replace"), "{error}");
        assert_eq!(replace(data, &unheard).await.unwrap(), (old, joined));
        assert_eq!((Identity::load(data).unwrap().node, replaces(data).unwrap()), (joined.node, Some(old)));
        first.cluster.stop().await;
    });
}
