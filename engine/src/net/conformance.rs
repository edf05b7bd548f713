//! The contract of [`Transport`], run over every body: the simulated one here, the real ones in `node`.
//!
//! Invariant: panics with what was broken; a body that passes keeps every promise of the trait that two nodes can see.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use super::limits::{
    CALLS_BUT_CONSENSUS, CALLS_PER_PEER, CHANGES_PER_PEER, FLUSHES_PER_DEVICE, GRANTS_PER_GROUP,
    INBOUND_BYTES, INBOUND_LARGE_BYTES, MAX_PAYLOAD, SILENCE,
};
use super::message::{Code, Failure};
use super::wire::WireError;
use super::{
    ConsensusAnswer, ConsensusCall, NetError, NodeId, Request, Response, Service, Transport, VolumeCall,
};
use crate::block::{Fence, VolumeId};
use crate::clock::Timestamp;
use crate::disk::format::record::DeviceId;
use crate::io::SplitMix64;
use crate::object::names::{Ask, AskedFor, NamesAnswer, NamesRequest};
use crate::object::{BoxFuture, ObjectPath};

/// What the suite needs of a body. Nodes know the addresses of all nodes that were ever started, and of no others.
pub trait Rig {
    /// Starts a node, or a new life of one that was stopped, at its old address.
    fn start(&mut self, node: NodeId, service: Arc<dyn Service>) -> Arc<dyn Transport>;
    /// Takes a node away without a farewell.
    fn stop(&mut self, node: NodeId);
    /// Runs a future to its end.
    fn run<T: Send + 'static>(&mut self, work: BoxFuture<'static, T>) -> T;
    /// Lets a future run beside others.
    fn spawn(&mut self, work: BoxFuture<'static, ()>);
    /// Waits.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
    /// Time since some moment.
    fn now(&self) -> Duration;
}

const A: NodeId = NodeId([0xaa; 16]);
const B: NodeId = NodeId([0xbb; 16]);
const STRANGER: NodeId = NodeId([0xcc; 16]);

/// Long for a test, and no call of the suite that should succeed takes nearly so long.
const LONG: Duration = Duration::from_secs(20);
/// What a body may take beyond a deadline.
const GRACE: Duration = Duration::from_millis(1500);

/// Runs everything.
pub fn check_transport(rig: &mut impl Rig) {
    let mut pair = Pair::start(rig);
    pair.unknown_nodes_are_unknown(rig);
    pair.echoes_come_back(rig);
    pair.every_kind_of_answer_comes_back(rig);
    pair.the_largest_payload_fits_and_no_larger(rig);
    pair.many_calls_at_once_keep_apart(rig);
    pair.casts_arrive(rig);
    pair.a_hung_service_costs_its_caller_the_deadline_and_others_nothing(rig);
    pair.a_dropped_call_drops_the_work(rig);
    pair.a_slow_service_is_not_flooded(rig, 1000, 16 << 10);
    pair.a_slow_service_is_not_flooded(rig, 20, MAX_PAYLOAD);
    pair.what_ends_a_wait_gets_through(rig);
    pair.small_calls_pass_large_ones(rig);
    pair.a_peer_that_returns_is_reached_again(rig);
}

/// What a service that does what the first byte of a ping says has seen.
struct Witness {
    from: Mutex<Vec<NodeId>>,
    handled: AtomicUsize,
    calls: AtomicUsize,
    bytes: AtomicUsize,
    most_calls: AtomicUsize,
    most_bytes: AtomicUsize,
    gate: Mutex<Arc<Semaphore>>,
}

impl Witness {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            from: Mutex::default(),
            handled: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            most_calls: AtomicUsize::new(0),
            most_bytes: AtomicUsize::new(0),
            gate: Mutex::new(Arc::new(Semaphore::new(0))),
        })
    }
}

const ECHO: u8 = b'e';
const HANG: u8 = b'h';
const GATE: u8 = b'g';

/// Counts a request while it is in the service's hands.
struct InHands {
    witness: Arc<Witness>,
    bytes: usize,
}

impl InHands {
    fn new(witness: &Arc<Witness>, bytes: usize) -> Self {
        let calls = witness.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let all = witness.bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        witness.most_calls.fetch_max(calls, Ordering::SeqCst);
        witness.most_bytes.fetch_max(all, Ordering::SeqCst);
        Self { witness: Arc::clone(witness), bytes }
    }
}

impl Drop for InHands {
    fn drop(&mut self) {
        self.witness.calls.fetch_sub(1, Ordering::SeqCst);
        self.witness.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// A witness behind the seam.
struct Behind(Arc<Witness>);

impl Service for Behind {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        let witness = Arc::clone(&self.0);
        Box::pin(async move {
            lock(&witness.from).push(from);
            witness.handled.fetch_add(1, Ordering::SeqCst);
            let payload = match request {
                Request::Ping { payload } => payload,
                Request::Consensus { .. } => return Response::Consensus(ConsensusAnswer::Silent(true)),
                Request::Names(NamesRequest { what: AskedFor::Release { .. }, .. }) => {
                    return Response::Names(NamesAnswer::Done);
                }
                Request::Names(_) | Request::Volume { .. } => {
                    let _in_hands = InHands::new(&witness, 0);
                    let gate = Arc::clone(&lock(&witness.gate));
                    let _through = gate.acquire().await;
                    return Response::Names(NamesAnswer::Done);
                }
                _ => return Response::Failed(Failure::new(Code::NotServed, "pings alone")),
            };
            let _in_hands = InHands::new(&witness, payload.len());
            match payload.first() {
                Some(&HANG) => std::future::pending().await,
                Some(&GATE) => {
                    let gate = Arc::clone(&lock(&witness.gate));
                    // Never closed.
                    let _through = gate.acquire().await;
                    Response::Pong { payload: payload.slice(..1) }
                }
                _ => Response::Pong { payload },
            }
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn payload(kind: u8, seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    SplitMix64::new(seed).fill(&mut bytes);
    if let Some(first) = bytes.first_mut() {
        *first = kind;
    }
    bytes.into()
}

/// A ping, and what came back.
async fn ping(
    net: Arc<dyn Transport>,
    to: NodeId,
    payload: Bytes,
    within: Duration,
) -> Result<Bytes, NetError> {
    match net.call(to, Request::Ping { payload }, within).await? {
        Response::Pong { payload } => Ok(payload),
        other => panic!("a ping was answered by {other:?}"),
    }
}

struct Pair {
    a: Arc<dyn Transport>,
    b: Arc<dyn Transport>,
    at_a: Arc<Witness>,
    at_b: Arc<Witness>,
}

impl Pair {
    fn start(rig: &mut impl Rig) -> Self {
        let (at_a, at_b) = (Witness::new(), Witness::new());
        let a = rig.start(A, Arc::new(Behind(Arc::clone(&at_a))));
        let b = rig.start(B, Arc::new(Behind(Arc::clone(&at_b))));
        assert_eq!((a.local(), b.local()), (A, B));
        Self { a, b, at_a, at_b }
    }

    fn ping(&self, payload: Bytes, within: Duration) -> BoxFuture<'static, Result<Bytes, NetError>> {
        Box::pin(ping(Arc::clone(&self.a), B, payload, within))
    }

    /// Waits until `holds` says so.
    fn until(&self, rig: &mut impl Rig, what: &str, holds: impl Fn(&Witness) -> bool) {
        let begun = rig.now();
        while !holds(&self.at_b) {
            assert!(rig.now() < begun + LONG, "{what}");
            let pause = rig.sleep(Duration::from_millis(5));
            rig.run(pause);
        }
    }

    fn unknown_nodes_are_unknown(&self, rig: &mut impl Rig) {
        let asked = rig.run(Box::pin(ping(Arc::clone(&self.a), STRANGER, Bytes::new(), LONG)));
        assert_eq!(asked, Err(NetError::Unknown(STRANGER)));
        self.a.cast(STRANGER, Request::Ping { payload: Bytes::new() });
    }

    fn echoes_come_back(&self, rig: &mut impl Rig) {
        for len in [0, 1, 100, 4096, 100_000] {
            let sent = payload(ECHO, len as u64, len);
            assert_eq!(rig.run(self.ping(sent.clone(), LONG)), Ok(sent), "{len} bytes");
        }
        let sent = payload(ECHO, 1, 50);
        let back = rig.run(Box::pin(ping(Arc::clone(&self.b), A, sent.clone(), LONG)));
        assert_eq!(back, Ok(sent), "the other way");
        assert!(lock(&self.at_b.from).iter().all(|from| *from == A), "callers are who they are");
        assert!(lock(&self.at_a.from).iter().all(|from| *from == B) && !lock(&self.at_a.from).is_empty());
    }

    fn every_kind_of_answer_comes_back(&self, rig: &mut impl Rig) {
        let device = crate::disk::format::record::DeviceId([1; 16]);
        let asked = self.a.call(B, Request::Version { device, hash: [2; 16] }, LONG);
        let failure = Failure::new(Code::NotServed, "pings alone");
        assert_eq!(rig.run(asked), Ok(Response::Failed(failure)));
    }

    fn the_largest_payload_fits_and_no_larger(&self, rig: &mut impl Rig) {
        let sent = payload(ECHO, 3, MAX_PAYLOAD);
        let back = rig.run(self.ping(sent.clone(), LONG));
        assert!(back == Ok(sent), "the largest payload comes back");
        let handled = self.at_b.handled.load(Ordering::SeqCst);
        let refused = rig.run(self.ping(payload(ECHO, 3, MAX_PAYLOAD + 1), LONG));
        assert_eq!(refused, Err(NetError::Wire(WireError::Limit("payload"))));
        assert_eq!(self.at_b.handled.load(Ordering::SeqCst), handled, "nothing of it was handled");
    }

    fn many_calls_at_once_keep_apart(&self, rig: &mut impl Rig) {
        let sent = |n: u64| payload(ECHO, n, usize::try_from(n * 37 % 5000).unwrap_or(0) + 9);
        let calls = (0..300).map(|n| self.ping(sent(n), LONG)).collect();
        for (n, back) in (0..).zip(all(rig, calls)) {
            assert_eq!(back, Ok(sent(n)), "call {n}");
        }
    }

    fn casts_arrive(&self, rig: &mut impl Rig) {
        let before = self.at_b.handled.load(Ordering::SeqCst);
        // Casts may need a runtime around them.
        let net = Arc::clone(&self.a);
        rig.run(Box::pin(async move { net.cast(B, Request::Ping { payload: Bytes::new() }) }));
        self.until(rig, "a cast arrives", |b| b.handled.load(Ordering::SeqCst) == before + 1);
    }

    fn a_hung_service_costs_its_caller_the_deadline_and_others_nothing(&self, rig: &mut impl Rig) {
        let within = Duration::from_millis(400);
        let begun = rig.now();
        let hung = rig.run(self.ping(payload(HANG, 1, 10), within));
        let took = rig.now() - begun;
        assert_eq!(hung, Err(NetError::Deadline(B)));
        assert!(took >= within && took < within + GRACE, "a deadline of {within:?} took {took:?}");
        self.until(rig, "work ends with its caller's deadline", |b| b.calls.load(Ordering::SeqCst) == 0);
        // One hangs, others pass it by.
        let (reply, answer) = oneshot::channel();
        let call = self.ping(payload(HANG, 1, 10), within * 3);
        rig.spawn(Box::pin(async move { drop(reply.send(call.await)) }));
        let begun = rig.now();
        let sent = payload(ECHO, 2, 10);
        assert_eq!(rig.run(self.ping(sent.clone(), LONG)), Ok(sent));
        assert!(rig.now() - begun < within * 3, "an echo waited for a hung call");
        let hung = rig.run(Box::pin(answer));
        assert_eq!(hung, Ok(Err(NetError::Deadline(B))));
        self.until(rig, "work ends", |b| b.calls.load(Ordering::SeqCst) == 0);
    }

    fn a_dropped_call_drops_the_work(&self, rig: &mut impl Rig) {
        let call = self.ping(payload(HANG, 1, 100_000), LONG * 3);
        let (stop, stopped) = oneshot::channel::<()>();
        rig.spawn(Box::pin(either(call, Box::pin(async move { drop(stopped.await) }))));
        self.until(rig, "a call arrives", |b| b.calls.load(Ordering::SeqCst) == 1);
        drop(stop);
        self.until(rig, "a dropped call drops the work", |b| b.calls.load(Ordering::SeqCst) == 0);
    }

    fn a_slow_service_is_not_flooded(&self, rig: &mut impl Rig, count: u64, len: usize) {
        let witness = &self.at_b;
        let gate = Arc::new(Semaphore::new(0));
        *lock(&witness.gate) = Arc::clone(&gate);
        witness.most_calls.store(0, Ordering::SeqCst);
        witness.most_bytes.store(0, Ordering::SeqCst);
        let sent = payload(GATE, 9, len);
        let answers: Vec<_> = (0..count).map(|_| spawned(rig, self.ping(sent.clone(), LONG))).collect();
        self.until(rig, "calls arrive", |b| b.calls.load(Ordering::SeqCst) > 0);
        let pause = rig.sleep(Duration::from_millis(400));
        rig.run(pause);
        gate.add_permits(usize::try_from(count).unwrap_or(0));
        for answer in answers {
            let back = rig.run(Box::pin(answer));
            assert!(matches!(&back, Ok(Ok(back)) if back[..] == [GATE]), "a patient call failed: {back:?}");
        }
        let most = (witness.most_calls.load(Ordering::SeqCst), witness.most_bytes.load(Ordering::SeqCst));
        assert!(most.0 <= CALLS_PER_PEER, "{} calls at once", most.0);
        assert!(most.1 <= INBOUND_BYTES, "{} bytes at once", most.1);
        assert!(most.0 > 1, "calls wait for one another");
    }

    /// Many callers of one name took all calls that a peer takes: each waited for the one that had the name, and that one could
    /// neither settle nor have its change committed.
    fn what_ends_a_wait_gets_through(&self, rig: &mut impl Rig) {
        let soon = LONG / 4;
        let gate = Arc::new(Semaphore::new(0));
        *lock(&self.at_b.gate) = Arc::clone(&gate);
        self.at_b.most_calls.store(0, Ordering::SeqCst);
        let names = |what| Request::Names(NamesRequest { group: 1, follows: None, what });
        let begin = |object: String| {
            let (account, container) = (Arc::from("a"), Arc::from("c"));
            let path = ObjectPath { account, container, object: object.into() };
            names(AskedFor::Begin { lease: 1, path, given: None })
        };
        let change = || {
            let (account, container) = ("a".to_owned(), "c".to_owned());
            names(AskedFor::Ask(Ask::DeleteContainer { account, container, created: Timestamp(1) }))
        };
        let flush = || Request::Volume {
            device: DeviceId([1; 16]),
            volume: VolumeId([2; 16]),
            fence: Fence { epoch: 1, configuration: 1 },
            session: 1,
            call: VolumeCall::Flush(1),
        };
        let hot = (0..100).map(|_| begin("hot".to_owned()));
        let wait = hot.chain((0..100).map(|_| flush())).chain((0..100).map(|_| change()));
        let mut answers: Vec<_> = wait.map(|request| spawned(rig, self.a.call(B, request, LONG))).collect();
        self.until(rig, "calls wait", |b| b.calls.load(Ordering::SeqCst) > 2);
        let released = rig.run(self.a.call(B, names(AskedFor::Release { lease: 1 }), soon));
        assert_eq!(released, Ok(Response::Names(NamesAnswer::Done)), "a grant is given back");
        let cold = (0..100).map(|n| begin(n.to_string()));
        answers.extend(cold.map(|request| spawned(rig, self.a.call(B, request, LONG))));
        let in_hands = |b: &Witness| b.calls.load(Ordering::SeqCst);
        let waiting = GRANTS_PER_GROUP + FLUSHES_PER_DEVICE + CHANGES_PER_PEER;
        self.until(rig, "others' names are asked for too", |b| in_hands(b) == waiting);
        let released = rig.run(self.a.call(B, names(AskedFor::Release { lease: 1 }), soon));
        assert_eq!(released, Ok(Response::Names(NamesAnswer::Done)), "a grant is given back");
        // Whatever it is that waits.
        let pings: Vec<_> = (0..100).map(|_| spawned(rig, self.ping(payload(GATE, 9, 10), LONG))).collect();
        self.until(rig, "calls fill their room", |b| in_hands(b) == CALLS_BUT_CONSENSUS);
        let consensus = Request::Consensus { group: 1, call: ConsensusCall::Silent { last: None } };
        let heard = rig.run(self.a.call(B, consensus, soon));
        assert_eq!(heard, Ok(Response::Consensus(ConsensusAnswer::Silent(true))), "voters hear each other");
        gate.add_permits(answers.len() + pings.len());
        for answer in answers {
            assert_eq!(rig.run(Box::pin(answer)), Ok(Ok(Response::Names(NamesAnswer::Done))));
        }
        for answer in pings {
            assert!(matches!(rig.run(Box::pin(answer)), Ok(Ok(_))));
        }
        let most = self.at_b.most_calls.load(Ordering::SeqCst);
        assert!(most <= CALLS_BUT_CONSENSUS, "{most} calls at once");
    }

    /// Large requests that wait for a disk filled the room of all that their node asks.
    fn small_calls_pass_large_ones(&self, rig: &mut impl Rig) {
        let gate = Arc::new(Semaphore::new(0));
        *lock(&self.at_b.gate) = Arc::clone(&gate);
        let sent = payload(GATE, 9, MAX_PAYLOAD);
        let most = INBOUND_LARGE_BYTES / MAX_PAYLOAD;
        let large: Vec<_> = (0..most + 3).map(|_| spawned(rig, self.ping(sent.clone(), 3 * LONG))).collect();
        let full = |b: &Witness| b.calls.load(Ordering::SeqCst) + 1 >= most;
        self.until(rig, "large calls fill their room", full);
        let pause = rig.sleep(Duration::from_millis(200));
        rig.run(pause);
        let consensus = Request::Consensus { group: 1, call: ConsensusCall::Silent { last: None } };
        let heard = rig.run(self.a.call(B, consensus, LONG / 4));
        assert_eq!(heard, Ok(Response::Consensus(ConsensusAnswer::Silent(true))), "voters hear each other");
        gate.add_permits(large.len());
        for answer in large {
            assert!(matches!(rig.run(Box::pin(answer)), Ok(Ok(_))));
        }
    }

    fn a_peer_that_returns_is_reached_again(&mut self, rig: &mut impl Rig) {
        rig.stop(B);
        let within = Duration::from_millis(500);
        let begun = rig.now();
        let gone = rig.run(self.ping(payload(ECHO, 1, 10), within));
        let took = rig.now() - begun;
        assert!(gone.is_err() && took < within + GRACE, "{gone:?} after {took:?}");
        self.b = rig.start(B, Arc::new(Behind(Arc::clone(&self.at_b))));
        let begun = rig.now();
        let sent = payload(ECHO, 1, 10);
        while rig.run(self.ping(sent.clone(), within)).is_err() {
            assert!(rig.now() < begun + SILENCE * 2, "a peer that came back is not reached");
        }
        let sent = payload(ECHO, 4, 10);
        let back = rig.run(Box::pin(ping(Arc::clone(&self.b), A, sent.clone(), LONG)));
        assert_eq!(back, Ok(sent), "a new life reaches others");
    }
}

/// Lets a future run beside others; its result.
fn spawned<T: Send + 'static>(rig: &mut impl Rig, work: BoxFuture<'static, T>) -> oneshot::Receiver<T> {
    let (reply, answer) = oneshot::channel();
    rig.spawn(Box::pin(async move { drop(reply.send(work.await)) }));
    answer
}

/// All results, in order.
fn all<T: Send + 'static>(rig: &mut impl Rig, work: Vec<BoxFuture<'static, T>>) -> Vec<T> {
    let count = work.len();
    let answers: Vec<_> = work.into_iter().map(|one| spawned(rig, one)).collect();
    let results = answers.into_iter().filter_map(|answer| rig.run(Box::pin(answer)).ok());
    let results: Vec<T> = results.collect();
    assert_eq!(results.len(), count, "a call ended without a result");
    results
}

/// Ends when one of the two does, and drops the other.
async fn either<T>(mut one: BoxFuture<'static, T>, mut other: BoxFuture<'static, ()>) {
    std::future::poll_fn(|context| {
        if one.as_mut().poll(context).is_ready() {
            return std::task::Poll::Ready(());
        }
        other.as_mut().poll(context)
    })
    .await;
}
