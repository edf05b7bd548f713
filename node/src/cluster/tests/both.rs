//! QUIC with TCP beside it: what goes over which.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quarry_engine::block::{Fence, VolumeId};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{NetError, NodeId, Request, Response, Service, Transport, VolumeAnswer, VolumeCall};
use quarry_engine::object::BoxFuture;
use tokio::runtime::Runtime;

use super::rig::{A, B, CLUSTER, LONG, any_port, authority, identity, runtime};
use crate::cluster::authority::Authority;
use crate::cluster::{AddressBook, Both, Keeper, Parts, Quic, start_both};

/// Answers pings, and members of volumes.
struct Member;

impl Service for Member {
    fn handle(&self, _: NodeId, request: Request) -> BoxFuture<'static, Response> {
        Box::pin(std::future::ready(match request {
            Request::Ping { payload } => Response::Pong { payload },
            _ => Response::Volume(VolumeAnswer::Done),
        }))
    }
}

struct Node {
    net: Arc<dyn Transport>,
    quic: Quic,
    book: Arc<AddressBook>,
    runtime: Runtime,
}

fn parts(authority: &Authority, node: NodeId) -> Parts {
    let keeper = Arc::new(Keeper::new(identity(authority, node)));
    Parts { keeper, book: Arc::default(), service: Arc::new(Member) }
}

fn node(authority: &Authority, node: NodeId) -> (Node, std::net::SocketAddr) {
    let (runtime, parts) = (runtime(), parts(authority, node));
    let book = Arc::clone(&parts.book);
    let started = {
        let _inside = runtime.enter();
        // The port that UDP was given may be another's for TCP.
        (0..16).find_map(|_| start_both(parts.clone(), any_port()).ok())
    };
    let (both, quic, address): (Both, Quic, _) = started.unwrap();
    (Node { net: Arc::new(both), quic, book, runtime }, address)
}

impl Node {
    fn asks(&self, request: Request, within: Duration) -> Result<Response, NetError> {
        self.runtime.block_on(self.net.call(B, request, within))
    }

    fn pings(&self, within: Duration) -> bool {
        let answer = self.asks(Request::Ping { payload: Bytes::from_static(b"ping") }, within);
        matches!(answer, Ok(Response::Pong { .. }))
    }

    fn is_told(&self, within: Duration) -> bool {
        let (device, volume, call) = (DeviceId([1; 16]), VolumeId([2; 16]), VolumeCall::Confirm);
        let request = Request::Volume { device, volume, fence: Fence::default(), session: 1, call };
        matches!(self.asks(request, within), Ok(Response::Volume(VolumeAnswer::Done)))
    }
}

#[test]
fn calls_about_volumes_go_over_tcp_and_others_over_quic() {
    let authority = authority(CLUSTER);
    let ((a, _), (b, address)) = (node(&authority, A), node(&authority, B));
    a.book.set(B, address);
    assert!(a.pings(LONG) && a.is_told(LONG));
    b.runtime.block_on(b.quic.close());
    assert!(!a.pings(Duration::from_millis(500)));
    assert!(a.is_told(LONG), "TCP is there");
}

#[test]
fn who_is_not_reached_over_tcp_is_called_over_quic() {
    let authority = authority(CLUSTER);
    let (a, _) = node(&authority, A);
    let (runtime, parts) = (runtime(), parts(&authority, B));
    let quic = {
        let _inside = runtime.enter();
        Quic::start(parts, any_port()).unwrap()
    };
    a.book.set(B, quic.address().unwrap());
    assert!(a.is_told(LONG) && a.is_told(LONG));
    runtime.block_on(quic.close());
    assert!(!a.is_told(Duration::from_millis(500)), "nobody is there");
}
