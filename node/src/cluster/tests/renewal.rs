//! Certificates are renewed while calls go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quarry_engine::disk::format::superblock::ClusterId;
use quarry_engine::net::{NodeId, Refusal, Request};

use super::rig::{A, B, BOTH, CLUSTER, LONG, authority, identity, pair};
use crate::cluster::authority::{init, renew};
use crate::cluster::{Identity, Keeper, take_up};

#[test]
fn calls_go_on_while_both_ends_renew() {
    for carrier in BOTH {
        let (authority, a, b) = pair(carrier);
        let (stop, done, failed) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let (net, stop, done, failed) = (a.net.clone(), stop.clone(), done.clone(), failed.clone());
                a.runtime().spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let request = Request::Ping { payload: Bytes::from(vec![7; 20_000]) };
                        match net.call(B, request, LONG).await {
                            Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                            Err(_) => failed.fetch_add(1, Ordering::Relaxed),
                        };
                    }
                })
            })
            .collect();
        for _ in 0..5 {
            let before = done.load(Ordering::Relaxed);
            a.keeper.renew(identity(&authority, A)).unwrap();
            b.keeper.renew(identity(&authority, B)).unwrap();
            let begun = Instant::now();
            while done.load(Ordering::Relaxed) < before + 50 {
                assert!(begun.elapsed() < LONG, "{carrier}: calls stopped");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        stop.store(true, Ordering::Relaxed);
        for caller in callers {
            a.runtime().block_on(caller).unwrap();
        }
        assert_eq!(failed.load(Ordering::Relaxed), 0, "{carrier}: no call may notice");
        assert_eq!(a.keeper.generation(), 5);
    }
}

#[test]
fn only_the_same_node_of_the_same_cluster_is_taken_up() {
    let ours = authority(CLUSTER);
    let keeper = Keeper::new(identity(&ours, A));
    assert_eq!(keeper.renew(identity(&ours, B)), Err(Refusal::OtherNode));
    let other = authority(ClusterId([8; 16]));
    assert_eq!(keeper.renew(identity(&other, A)), Err(Refusal::OtherCluster));
    assert_eq!((keeper.current().node, keeper.generation()), (A, 0));
}

#[test]
fn a_renewed_file_is_taken_up_and_a_bad_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let node = init(data, CLUSTER).unwrap();
    let keeper = Keeper::new(Identity::load(data).unwrap());
    let first = keeper.current();
    assert_eq!(renew(data).unwrap(), node);
    take_up(&keeper, data);
    let second = keeper.current();
    assert_eq!((second.node, keeper.generation()), (node, 1));
    assert_ne!(second.certificate, first.certificate);
    assert_ne!(second.key.secret_der(), first.key.secret_der());
    let file = data.join("cluster/node.pem");
    let good = std::fs::read_to_string(&file).unwrap();
    for bad in ["", "rubbish", &good[..good.len() / 2], &good.replace("PRIVATE", "PUBLIC")] {
        std::fs::write(&file, bad).unwrap();
        take_up(&keeper, data);
        assert_eq!(keeper.generation(), 1, "{bad}");
    }
    // Another node's file is not this node's renewal.
    let other = tempfile::tempdir().unwrap();
    let _other: NodeId = init(other.path(), CLUSTER).unwrap();
    std::fs::copy(other.path().join("cluster/node.pem"), &file).unwrap();
    take_up(&keeper, data);
    assert_eq!(keeper.generation(), 1);
}
