//! The simulated network keeps the contract, does what its faults say, and repeats itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::rig::SimRig;
use crate::net::conformance::{Rig, check_transport};
use crate::net::{NetError, NodeId, Request, Response, Service, SimFaults, Transport};
use crate::object::BoxFuture;

const A: NodeId = NodeId([1; 16]);
const B: NodeId = NodeId([2; 16]);
const WITHIN: Duration = Duration::from_secs(1);

/// Answers pings and counts them.
#[derive(Default)]
struct Counting(AtomicU64);

impl Service for Counting {
    fn handle(&self, _: NodeId, request: Request) -> BoxFuture<'static, Response> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let Request::Ping { payload } = request else { panic!("pings alone") };
        Box::pin(std::future::ready(Response::Pong { payload }))
    }
}

struct Pair {
    rig: SimRig,
    a: Arc<dyn Transport>,
    b: Arc<dyn Transport>,
    at_b: Arc<Counting>,
}

fn pair(seed: u64, faults: SimFaults) -> Pair {
    let mut rig = SimRig::new(seed, faults);
    let at_b = Arc::new(Counting::default());
    let a = rig.start(A, Arc::new(Counting::default()));
    let b = rig.start(B, at_b.clone());
    Pair { rig, a, b, at_b }
}

impl Pair {
    fn ping(&mut self, n: u8) -> Result<Response, NetError> {
        let call = self.a.call(B, Request::Ping { payload: Bytes::from(vec![n]) }, WITHIN);
        self.rig.run(call)
    }
}

#[test]
fn it_keeps_the_contract() {
    check_transport(&mut SimRig::new(1, SimFaults::NONE));
    let slow = (Duration::from_millis(1), Duration::from_millis(30));
    check_transport(&mut SimRig::new(2, SimFaults { delay: slow, ..SimFaults::NONE }));
}

#[test]
fn a_lost_message_ends_at_the_deadline() {
    let mut pair = pair(3, SimFaults { loss: 1000, ..SimFaults::NONE });
    let begun = pair.rig.now();
    assert_eq!(pair.ping(1), Err(NetError::Deadline(B)));
    assert_eq!(pair.rig.now() - begun, WITHIN);
    pair.rig.net.set_faults(SimFaults::NONE);
    assert!(pair.ping(1).is_ok());
}

#[test]
fn a_duplicated_request_is_handled_twice_and_answered_once() {
    let mut pair = pair(4, SimFaults { duplication: 1000, ..SimFaults::NONE });
    for n in 0..50 {
        assert_eq!(pair.ping(n), Ok(Response::Pong { payload: Bytes::from(vec![n]) }));
    }
    for _ in 0..100 {
        pair.rig.turn();
    }
    let handled = pair.at_b.0.load(Ordering::SeqCst);
    assert!((51..=100).contains(&handled), "{handled}");
}

#[test]
fn a_cut_is_one_way_until_it_heals() {
    let mut pair = pair(5, SimFaults::NONE);
    pair.rig.net.cut(A, B);
    assert_eq!(pair.ping(1), Err(NetError::Deadline(B)));
    assert_eq!(pair.at_b.0.load(Ordering::SeqCst), 0);
    pair.rig.net.heal();
    pair.rig.net.cut(B, A);
    assert_eq!(pair.ping(1), Err(NetError::Deadline(B)));
    assert_eq!(pair.at_b.0.load(Ordering::SeqCst), 1, "requests still arrive, answers do not");
    let call = pair.b.call(A, Request::Ping { payload: Bytes::new() }, WITHIN);
    assert_eq!(pair.rig.run(call), Err(NetError::Deadline(A)));
    pair.rig.net.heal();
    assert!(pair.ping(1).is_ok());
}

#[test]
fn a_stopped_node_is_unreachable_and_what_it_was_doing_is_lost() {
    let mut pair = pair(6, SimFaults { delay: (WITHIN / 4, WITHIN / 4), ..SimFaults::NONE });
    let call = pair.a.call(B, Request::Ping { payload: Bytes::new() }, WITHIN);
    let (done, mut ended) = tokio::sync::oneshot::channel();
    pair.rig.spawn(Box::pin(async move { drop(done.send(call.await)) }));
    pair.rig.turn();
    pair.rig.net.stop(B);
    pair.rig.turn();
    assert!(matches!(ended.try_recv(), Ok(Err(NetError::Lost { to: B, .. }))));
    assert!(matches!(pair.ping(1), Err(NetError::Unreachable { to: B, .. })));
    assert!(matches!(
        pair.rig.run(pair.b.call(A, Request::Ping { payload: Bytes::new() }, WITHIN)),
        Err(NetError::Closed)
    ));
}

/// What a run looked like: results and times.
fn history(seed: u64) -> Vec<(Duration, bool)> {
    let delay = (Duration::from_millis(1), Duration::from_millis(400));
    let mut pair = pair(seed, SimFaults { delay, loss: 100, duplication: 100 });
    let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..100u8 {
        let (call, report, net) = (
            pair.a.call(B, Request::Ping { payload: Bytes::from(vec![n]) }, WITHIN),
            report.clone(),
            pair.rig.net.clone(),
        );
        pair.rig.spawn(Box::pin(async move {
            let ok = call.await.is_ok();
            report.send((net.now(), ok)).unwrap();
        }));
    }
    drop(report);
    let mut seen = Vec::new();
    while seen.len() < 100 {
        pair.rig.turn();
        while let Ok(one) = reports.try_recv() {
            seen.push(one);
        }
    }
    seen
}

#[test]
fn equal_seeds_give_equal_runs() {
    let first = history(7);
    assert_eq!(first, history(7));
    assert_ne!(first, history(8));
    assert!(first.iter().any(|(_, ok)| *ok) && first.iter().any(|(_, ok)| !*ok));
}

/// A body with a planted bug.
struct Broken {
    inner: Arc<dyn Transport>,
    bug: Bug,
    spawn: crate::object::Spawn,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bug {
    /// Waits for twice as long and three seconds.
    Overtime,
    /// A dropped call goes on.
    NoCancel,
    /// Bytes of an answer are changed.
    Garbles,
}

impl Transport for Broken {
    fn local(&self) -> NodeId {
        self.inner.local()
    }

    fn call(
        &self,
        to: NodeId,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>> {
        let over = if self.bug == Bug::Overtime { within * 2 + Duration::from_secs(3) } else { within };
        let call = self.inner.call(to, request, over);
        let (bug, spawn) = (self.bug, self.spawn.clone());
        Box::pin(async move {
            if bug == Bug::NoCancel {
                let (reply, answer) = tokio::sync::oneshot::channel();
                spawn(Box::pin(async move { drop(reply.send(call.await)) }));
                return answer.await.unwrap();
            }
            match call.await? {
                Response::Pong { payload } if bug == Bug::Garbles => {
                    Ok(Response::Pong { payload: payload.iter().map(|byte| byte ^ 1).collect() })
                }
                response => Ok(response),
            }
        })
    }

    fn cast(&self, to: NodeId, request: Request) {
        self.inner.cast(to, request);
    }

    fn name(&self) -> &'static str {
        "broken"
    }
}

struct BrokenRig(SimRig, Bug);

impl Rig for BrokenRig {
    fn start(&mut self, node: NodeId, service: Arc<dyn Service>) -> Arc<dyn Transport> {
        Arc::new(Broken { inner: self.0.start(node, service), bug: self.1, spawn: self.0.spawner() })
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
#[should_panic(expected = "a deadline of")]
fn the_suite_finds_a_body_that_takes_overtime() {
    check_transport(&mut BrokenRig(SimRig::new(1, SimFaults::NONE), Bug::Overtime));
}

#[test]
#[should_panic(expected = "a dropped call drops the work")]
fn the_suite_finds_a_body_that_does_not_cancel() {
    check_transport(&mut BrokenRig(SimRig::new(1, SimFaults::NONE), Bug::NoCancel));
}

#[test]
#[should_panic(expected = "bytes")]
fn the_suite_finds_a_body_that_garbles() {
    check_transport(&mut BrokenRig(SimRig::new(1, SimFaults::NONE), Bug::Garbles));
}
