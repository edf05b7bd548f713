//! A network in memory: messages through the real codec, faults by seed, time by its owner.
//!
//! Invariant: equal seeds, faults, calls and turns give equal runs; it has no clock, no thread and no task of its own.
//! Invariant: nothing is polled but in [`SimNet::turn`], and no lock is held while a service is polled.
//!
//! A call is a request on its way, then a running handler, then a response on its way. What is lost on the way makes the call
//! end at its deadline; what is cut or restarted under it makes it end as lost.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::lanes::{Lane, Lanes, lanes_of};
use super::limits::{CALLS_PER_PEER, INBOUND_LARGE_BYTES, RECEIVE_WITHIN, SMALL_REQUEST};
use super::message::{Code, Failure};
use super::wire::{self, Direction, Message};
use super::{NetError, NodeId, Request, Response, Service, Transport};
use crate::io::SplitMix64;
use crate::object::BoxFuture;

/// What the network does to messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimFaults {
    /// Shortest and longest way of a message; what lies between reorders.
    pub delay: (Duration, Duration),
    /// Messages lost, in a thousand.
    pub loss: u32,
    /// Messages that arrive twice, in a thousand.
    pub duplication: u32,
}

impl SimFaults {
    /// A good network.
    pub const NONE: Self =
        Self { delay: (Duration::from_micros(50), Duration::from_micros(200)), loss: 0, duplication: 0 };
}

/// A network; clones share everything.
#[derive(Clone)]
pub struct SimNet {
    shared: Arc<Mutex<State>>,
}

/// A node's end of the network.
#[derive(Debug, Clone)]
pub struct SimNode {
    net: SimNet,
    local: NodeId,
}

type CallId = u64;
/// Of a running handler: a duplicate of a request has one of its own.
type RunId = u64;

struct State {
    now: Duration,
    rng: SplitMix64,
    faults: SimFaults,
    nodes: BTreeMap<NodeId, Node>,
    /// Every node that ever was, and its present life: counted up by each start, so that messages of before go nowhere.
    lives: HashMap<NodeId, Option<u64>>,
    cut: HashSet<(NodeId, NodeId)>,
    /// Messages under way, by time of arrival and then by order of sending.
    under_way: BTreeMap<(Duration, u64), Parcel>,
    calls: BTreeMap<CallId, Call>,
    running: BTreeMap<RunId, Running>,
    /// Handlers to be dropped outside the lock: their drop may call back into the network.
    graveyard: Vec<Running>,
    next: u64,
}

struct Node {
    service: Arc<dyn Service>,
    /// By caller: requests that wait for room, and what is in the service's hands.
    inbound: BTreeMap<NodeId, Inbound>,
}

#[derive(Default)]
struct Inbound {
    waiting: VecDeque<(CallId, Bytes)>,
    lanes: HashMap<Lane, usize>,
    calls: usize,
    bytes: usize,
}

/// Bytes that a request takes of the room that all share.
fn large(bytes: usize) -> usize {
    if bytes <= SMALL_REQUEST { 0 } else { bytes }
}

impl Inbound {
    fn takes(&self, bytes: usize) -> bool {
        self.bytes + large(bytes) <= INBOUND_LARGE_BYTES
    }

    fn has_room(&self, lanes: Lanes) -> bool {
        lanes.into_iter().flatten().all(|lane| self.lanes.get(&lane).is_none_or(|in_it| *in_it < lane.room()))
    }

    fn enter(&mut self, lanes: Lanes, bytes: usize) {
        self.calls += 1;
        self.bytes += large(bytes);
        lanes.into_iter().flatten().for_each(|lane| *self.lanes.entry(lane).or_default() += 1);
    }

    fn leave(&mut self, lanes: Lanes, bytes: usize) {
        self.calls = self.calls.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(large(bytes));
        for lane in lanes.into_iter().flatten() {
            if let Some(in_it) = self.lanes.get_mut(&lane) {
                *in_it = in_it.saturating_sub(1);
            }
        }
        self.lanes.retain(|_, in_it| *in_it > 0);
    }
}

struct Call {
    from: NodeId,
    to: NodeId,
    lives: (u64, u64),
    deadline: Duration,
    lanes: Lanes,
    reply: Option<oneshot::Sender<Result<Response, NetError>>>,
}

struct Running {
    call: CallId,
    lanes: Lanes,
    from: NodeId,
    to: NodeId,
    bytes: usize,
    deadline: Duration,
    /// Absent while it is being polled.
    future: Option<BoxFuture<'static, Response>>,
}

enum Parcel {
    Request { call: CallId, message: Bytes },
    Response { call: CallId, message: Bytes },
    Cancel { call: CallId },
}

impl Parcel {
    fn call(&self) -> CallId {
        match self {
            Self::Request { call, .. } | Self::Response { call, .. } | Self::Cancel { call } => *call,
        }
    }
}

impl std::fmt::Debug for SimNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimNet").finish_non_exhaustive()
    }
}

impl SimNet {
    /// An empty network.
    #[must_use]
    pub fn new(seed: u64, faults: SimFaults) -> Self {
        let state = State {
            now: Duration::ZERO,
            rng: SplitMix64::new(seed),
            faults,
            nodes: BTreeMap::new(),
            lives: HashMap::new(),
            cut: HashSet::new(),
            under_way: BTreeMap::new(),
            calls: BTreeMap::new(),
            running: BTreeMap::new(),
            graveyard: Vec::new(),
            next: 0,
        };
        Self { shared: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a node, or restarts it: what it had in its hands is dropped, and calls to and from it are lost.
    pub fn start(&self, node: NodeId, service: Arc<dyn Service>) -> SimNode {
        self.stop(node);
        let mut state = self.state();
        let life = state.next_number();
        state.lives.insert(node, Some(life));
        state.nodes.insert(node, Node { service, inbound: BTreeMap::new() });
        drop(state);
        SimNode { net: self.clone(), local: node }
    }

    /// A node's end of the network, in its present life.
    #[must_use]
    pub fn end_of(&self, node: NodeId) -> SimNode {
        SimNode { net: self.clone(), local: node }
    }

    /// Takes a node away, as `kill -9` does.
    pub fn stop(&self, node: NodeId) {
        let mut state = self.state();
        state.stop(node);
        let before = (state.nodes.remove(&node), std::mem::take(&mut state.graveyard));
        drop(state);
        drop(before);
    }

    /// Changes what happens to messages sent from now on.
    pub fn set_faults(&self, faults: SimFaults) {
        self.state().faults = faults;
    }

    /// Nothing gets from `from` to `to` any more, what is under way included. One way; the other is another call.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.state().cut.insert((from, to));
    }

    /// Every way is open again.
    pub fn heal(&self) {
        self.state().cut.clear();
    }

    /// The time of the last turn.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.state().now
    }

    /// When something is due next: a message or a deadline. `None`: only handlers may be left.
    #[must_use]
    pub fn next_event(&self) -> Option<Duration> {
        let state = self.state();
        let message = state.under_way.first_key_value().map(|((at, _), _)| *at);
        let deadline = state.calls.values().map(|call| call.deadline).min();
        message.into_iter().chain(deadline).min()
    }

    /// Moves time to `now` (it never goes back), delivers what is due, ends what is over, and polls every handler once.
    /// True when anything moved.
    pub fn turn(&self, now: Duration) -> bool {
        let mut state = self.state();
        state.now = state.now.max(now);
        let delivered = state.deliver();
        let ended = state.end_overdue();
        state.admit();
        let runs: Vec<RunId> = state.running.keys().copied().collect();
        let dead = std::mem::take(&mut state.graveyard);
        drop(state);
        drop(dead);
        runs.into_iter().fold(delivered || ended, |moved, run| self.poll_run(run) || moved)
    }

    fn poll_run(&self, run: RunId) -> bool {
        let taken = self.state().running.get_mut(&run).and_then(|running| running.future.take());
        let Some(mut future) = taken else { return false };
        let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let mut state = self.state();
        match polled {
            Poll::Pending => {
                // Cancelled by what it did itself when it is gone.
                if let Some(running) = state.running.get_mut(&run) {
                    running.future = Some(future);
                    return false;
                }
                drop(state);
                drop(future);
            }
            Poll::Ready(response) => {
                state.finish(run, response);
                drop(state);
                drop(future);
            }
        }
        true
    }
}

impl State {
    fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn life(&self, node: NodeId) -> Option<u64> {
        self.lives.get(&node).copied().flatten()
    }

    fn send(&mut self, parcel: &dyn Fn() -> Parcel) {
        let SimFaults { delay: (least, most), loss, duplication } = self.faults;
        let copies = if self.rng.chance(loss) { 0 } else { 1 + usize::from(self.rng.chance(duplication)) };
        for _ in 0..copies {
            let spread = u64::try_from((most.saturating_sub(least)).as_nanos()).unwrap_or(u64::MAX);
            let way = least + Duration::from_nanos(self.rng.below(spread.max(1)));
            let at = (self.now + way, self.next_number());
            self.under_way.insert(at, parcel());
        }
    }

    fn deliver(&mut self) -> bool {
        let mut moved = false;
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let parcel = entry.remove();
            moved = true;
            let Some(call) = self.calls.get(&parcel.call()) else { continue };
            let (from, to, lives) = (call.from, call.to, call.lives);
            let way = if matches!(parcel, Parcel::Response { .. }) { (to, from) } else { (from, to) };
            if self.cut.contains(&way) || (self.life(from), self.life(to)) != (Some(lives.0), Some(lives.1)) {
                continue;
            }
            match parcel {
                Parcel::Request { call, message } => {
                    if let Some(node) = self.nodes.get_mut(&to) {
                        node.inbound.entry(from).or_default().waiting.push_back((call, message));
                    }
                }
                Parcel::Response { call, message } => self.answer(call, &message),
                Parcel::Cancel { call } => self.cancel(call),
            }
        }
        moved
    }

    fn answer(&mut self, call: CallId, message: &Bytes) {
        let Some(mut call) = self.calls.remove(&call) else { return };
        let response = wire::split(Direction::Response, message)
            .and_then(|(_, head, payload)| wire::decode_response(&head, payload))
            .map_err(NetError::from);
        if let Some(reply) = call.reply.take() {
            // The caller may have gone.
            let _gone = reply.send(response);
        }
    }

    /// Hands requests to services, as far as there is room for each caller. One that has no room in its lanes lets others pass: it
    /// would not have been sent.
    fn admit(&mut self) {
        let mut started = Vec::new();
        for (to, node) in &mut self.nodes {
            for (from, inbound) in &mut node.inbound {
                let mut held_back = VecDeque::new();
                while let Some((call, message)) = inbound.waiting.pop_front() {
                    let Some(standing) = self.calls.get(&call) else { continue };
                    let (deadline, lanes) = (standing.deadline, standing.lanes);
                    if inbound.calls >= CALLS_PER_PEER {
                        inbound.waiting.push_front((call, message));
                        break;
                    }
                    if !inbound.has_room(lanes) || !inbound.takes(message.len()) {
                        held_back.push_back((call, message));
                        continue;
                    }
                    inbound.enter(lanes, message.len());
                    started.push((call, (deadline, lanes), (*from, *to), Arc::clone(&node.service), message));
                }
                held_back.append(&mut inbound.waiting);
                inbound.waiting = held_back;
            }
        }
        for (call, (deadline, lanes), (from, to), service, message) in started {
            let bytes = message.len();
            let future: BoxFuture<'static, Response> = Box::pin(async move {
                let request = wire::split(Direction::Request, &message)
                    .and_then(|(_, head, payload)| wire::decode_request(&head, payload));
                match request {
                    Ok(request) => service.handle(from, request).await,
                    Err(error) => Response::Failed(Failure::new(Code::BadRequest, error.to_string())),
                }
            });
            let run = self.next_number();
            self.running
                .insert(run, Running { call, lanes, from, to, bytes, deadline, future: Some(future) });
        }
    }

    fn leave(&mut self, running: &Running) {
        if let Some(inbound) =
            self.nodes.get_mut(&running.to).and_then(|node| node.inbound.get_mut(&running.from))
        {
            inbound.leave(running.lanes, running.bytes);
        }
    }

    fn finish(&mut self, run: RunId, response: Response) {
        let Some(running) = self.running.remove(&run) else { return };
        self.leave(&running);
        let too_long = |_| {
            let failure = Failure::new(Code::Unavailable, "the answer is over a limit");
            wire::encode_response(Response::Failed(failure))
        };
        if let Ok(message) = wire::encode_response(response).or_else(too_long) {
            let message = whole(message);
            let call = running.call;
            self.send(&|| Parcel::Response { call, message: message.clone() });
        }
    }

    /// Forgets a call and lays its handlers to rest.
    fn cancel(&mut self, call: CallId) {
        self.calls.remove(&call);
        self.lay_to_rest(|running| running.call == call);
    }

    fn lay_to_rest(&mut self, over: impl Fn(&Running) -> bool) -> bool {
        let runs: Vec<RunId> = self.running.iter().filter(|(_, run)| over(run)).map(|(id, _)| *id).collect();
        for run in &runs {
            if let Some(running) = self.running.remove(run) {
                self.leave(&running);
                self.graveyard.push(running);
            }
        }
        !runs.is_empty()
    }

    fn end_overdue(&mut self) -> bool {
        let now = self.now;
        let over: Vec<CallId> =
            self.calls.iter().filter(|(_, call)| call.deadline <= now).map(|(id, _)| *id).collect();
        for id in &over {
            if let Some(mut call) = self.calls.remove(id)
                && let Some(reply) = call.reply.take()
            {
                let _gone = reply.send(Err(NetError::Deadline(call.to)));
            }
        }
        self.lay_to_rest(|running| running.deadline <= now) | !over.is_empty()
    }

    /// Ends everything that a node had a part in.
    fn stop(&mut self, node: NodeId) {
        let part = |call: &Call| call.from == node || call.to == node;
        let over: Vec<CallId> = self.calls.iter().filter(|(_, call)| part(call)).map(|(id, _)| *id).collect();
        for id in over {
            if let Some(mut call) = self.calls.remove(&id)
                && let Some(reply) = call.reply.take()
            {
                let reason = "the connection was reset".to_owned();
                let _gone = reply.send(Err(NetError::Lost { to: call.to, reason }));
            }
        }
        self.lay_to_rest(|running| running.from == node || running.to == node);
        for other in self.nodes.values_mut() {
            other.inbound.remove(&node);
        }
        self.lives.insert(node, None);
    }
}

/// A message in one piece, as it would be on a wire.
fn whole(message: Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(message.len());
    message.into_chunks().iter().for_each(|chunk| bytes.extend_from_slice(chunk));
    bytes.freeze()
}

/// The caller's end of a call; dropped unfinished, it cancels.
struct Caller {
    net: SimNet,
    call: CallId,
}

impl Drop for Caller {
    fn drop(&mut self) {
        let call = self.call;
        let mut state = self.net.state();
        if let Some(standing) = state.calls.get_mut(&call) {
            standing.reply = None;
            state.send(&|| Parcel::Cancel { call });
        }
    }
}

impl SimNode {
    fn begin(
        &self,
        to: NodeId,
        request: Request,
        within: Duration,
        reply: Option<oneshot::Sender<Result<Response, NetError>>>,
    ) -> Result<CallId, NetError> {
        let lanes = lanes_of(&request);
        let message = whole(wire::encode_request(request, within)?);
        let mut state = self.net.state();
        let own = state.life(self.local).ok_or(NetError::Closed)?;
        let Some(peer) = state.lives.get(&to).copied() else { return Err(NetError::Unknown(to)) };
        let Some(peer) = peer else {
            return Err(NetError::Unreachable { to, reason: "nobody listens".to_owned() });
        };
        let id = state.next_number();
        let deadline = state.now + within;
        let call = Call { from: self.local, to, lives: (own, peer), deadline, lanes, reply };
        state.calls.insert(id, call);
        state.send(&|| Parcel::Request { call: id, message: message.clone() });
        Ok(id)
    }
}

impl Transport for SimNode {
    fn local(&self) -> NodeId {
        self.local
    }

    fn call(
        &self,
        to: NodeId,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>> {
        let node = self.clone();
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let call = node.begin(to, request, within, Some(reply))?;
            let _caller = Caller { net: node.net.clone(), call };
            answer.await.unwrap_or(Err(NetError::Closed))
        })
    }

    fn cast(&self, to: NodeId, request: Request) {
        // Nobody is told.
        let _lost = self.begin(to, request, RECEIVE_WITHIN, None);
    }

    fn name(&self) -> &'static str {
        "sim"
    }
}
