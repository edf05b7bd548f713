//! Calls to the own node stay there.

use std::future::{pending, ready};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::rig::SimRig;
use crate::net::conformance::{Rig, check_transport};
use crate::net::{NetError, NodeId, Request, Response, Router, Service, SimFaults, Transport};
use crate::object::BoxFuture;

const OWN: NodeId = NodeId([1; 16]);

/// Answers a ping without bytes never, and others with the very same bytes.
struct Own;

impl Service for Own {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        assert_eq!(from, OWN);
        match request {
            Request::Ping { payload } if payload.is_empty() => Box::pin(pending()),
            Request::Ping { payload } => Box::pin(ready(Response::Pong { payload })),
            _ => panic!("pings alone"),
        }
    }
}

fn router(rig: &mut SimRig) -> Router {
    let net = rig.start(OWN, Arc::new(Own));
    // Whatever went to the network now would be lost.
    rig.net.set_faults(SimFaults { loss: 1000, ..SimFaults::NONE });
    Router::new(net, Arc::new(Own), rig.timer(), rig.spawner())
}

#[test]
fn own_calls_are_not_encoded_and_not_sent() {
    let mut rig = SimRig::new(1, SimFaults::NONE);
    let router = router(&mut rig);
    // Larger than any message may be: a call that were encoded would fail.
    let payload = Bytes::from(vec![1; 64 << 20]);
    let call = router.call(OWN, Request::Ping { payload: payload.clone() }, Duration::from_secs(1));
    let Ok(Response::Pong { payload: back }) = rig.run(call) else { panic!("no answer") };
    assert_eq!(back.as_ptr(), payload.as_ptr());
    router.cast(OWN, Request::Ping { payload });
    rig.turn();
    assert!(rig.tasks.lock().unwrap().is_empty(), "a cast is run");
}

#[test]
fn own_calls_have_deadlines_too() {
    let mut rig = SimRig::new(1, SimFaults::NONE);
    let router = router(&mut rig);
    let call = router.call(OWN, Request::Ping { payload: Bytes::new() }, Duration::from_secs(1));
    assert_eq!(rig.run(call), Err(NetError::Deadline(OWN)));
    assert_eq!(rig.now(), Duration::from_secs(1));
}

/// A rig whose nodes all stand behind a router.
struct Routed(SimRig);

impl Rig for Routed {
    fn start(&mut self, node: NodeId, service: Arc<dyn Service>) -> Arc<dyn Transport> {
        let net = self.0.start(node, service.clone());
        Arc::new(Router::new(net, service, self.0.timer(), self.0.spawner()))
    }

    fn stop(&mut self, node: NodeId) {
        self.0.stop(node);
    }

    fn run<T: Send + 'static>(&mut self, work: BoxFuture<'static, T>) -> T {
        self.0.run(work)
    }

    fn spawn(&mut self, work: BoxFuture<'static, ()>) {
        self.0.spawn(work);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(time)
    }

    fn now(&self) -> Duration {
        self.0.now()
    }
}

#[test]
fn others_are_reached_through_it() {
    check_transport(&mut Routed(SimRig::new(9, SimFaults::NONE)));
}
