//! A runtime in one thread and in virtual time, for simulations.
//!
//! Invariant: equal seeds, tasks and turns give equal runs; it has no clock and no thread of its own.
//! Invariant: no lock is held while a task is polled or dropped.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::runtime::{Runtime, Sleep};
use crate::io::SplitMix64;
use crate::net::{NodeId, SimNet};
use crate::object::BoxFuture;

/// Longest step of virtual time: disks take turns between steps.
const STEP: Duration = Duration::from_millis(1);
/// Rounds of polling within one moment after which something spins: our bug.
const ROUNDS: u32 = 10_000;

/// Tasks of all nodes and their time; clones share everything.
#[derive(Clone)]
pub struct SimRuntime {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    ready: Arc<Mutex<VecDeque<TaskId>>>,
}

type TaskId = u64;

struct State {
    now: Duration,
    rng: SplitMix64,
    next: u64,
    tasks: BTreeMap<TaskId, Task>,
    timers: BTreeMap<(Duration, u64), Waker>,
}

struct Task {
    owner: NodeId,
    /// Absent while it is being polled.
    future: Option<BoxFuture<'static, ()>>,
    flag: Arc<Flag>,
}

struct Flag {
    task: TaskId,
    queued: AtomicBool,
    ready: Arc<Mutex<VecDeque<TaskId>>>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.task);
        }
    }
}

impl std::fmt::Debug for SimRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimRuntime").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl SimRuntime {
    /// Nothing runs yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            now: Duration::ZERO,
            rng: SplitMix64::new(seed),
            next: 0,
            tasks: BTreeMap::new(),
            timers: BTreeMap::new(),
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), ready: Arc::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runtime of one node.
    #[must_use]
    pub fn node(&self, owner: NodeId) -> Arc<dyn Runtime> {
        Arc::new(NodeRuntime { runtime: self.clone(), owner })
    }

    /// Drops every task of a node, as `kill -9` does.
    pub fn kill(&self, owner: NodeId) {
        let mut state = self.state();
        let (dead, alive) =
            std::mem::take(&mut state.tasks).into_iter().partition(|(_, task)| task.owner == owner);
        state.tasks = alive;
        drop(state);
        drop::<BTreeMap<TaskId, Task>>(dead);
    }

    /// The present.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.state().now
    }

    /// Runs `task` beside everything else, as the node's.
    pub fn spawn(&self, owner: NodeId, task: BoxFuture<'static, ()>) {
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        let ready = Arc::clone(&self.shared.ready);
        let flag = Arc::new(Flag { task: id, queued: AtomicBool::new(false), ready });
        state.tasks.insert(id, Task { owner, future: Some(task), flag: Arc::clone(&flag) });
        drop(state);
        flag.wake();
    }

    /// Polls what was woken, and what that wakes. True when anything was.
    fn poll_ready(&self) -> bool {
        let mut polled = false;
        for _ in 0..ROUNDS {
            let next = self.shared.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(id) = next else { return polled };
            polled = true;
            let taken = self.state().tasks.get_mut(&id).and_then(|task| {
                task.flag.queued.store(false, Ordering::SeqCst);
                task.future.take().map(|future| (future, Arc::clone(&task.flag)))
            });
            let Some((mut future, flag)) = taken else { continue };
            let ended = future.as_mut().poll(&mut Context::from_waker(&Waker::from(flag))).is_ready();
            let mut state = self.state();
            if ended {
                state.tasks.remove(&id);
            } else if let Some(task) = state.tasks.get_mut(&id) {
                task.future = Some(future);
                continue;
            }
            // It has ended, or killed its own node.
            drop(state);
            drop(future);
        }
        polled
    }

    fn fire(&self) -> bool {
        let mut state = self.state();
        let now = state.now;
        let later = state.timers.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut state.timers, later);
        drop(state);
        let fired = !due.is_empty();
        due.into_values().for_each(Waker::wake);
        fired
    }

    /// Everything that can happen now happens; then time goes to what is due next, a millisecond on at most. `disks` gives
    /// each disk a turn.
    pub fn turn(&self, net: &SimNet, disks: &mut dyn FnMut()) {
        for _ in 0..3 {
            let mut moved = self.fire();
            moved |= self.poll_ready();
            moved |= net.turn(self.now());
            disks();
            if !moved && !self.poll_ready() {
                break;
            }
        }
        let next_timer = self.state().timers.first_key_value().map(|((at, _), _)| *at);
        let mut state = self.state();
        let soon = state.now + STEP;
        let next = next_timer.into_iter().chain(net.next_event()).min().unwrap_or(soon);
        state.now = next.clamp(state.now + Duration::from_micros(10), soon);
    }
}

struct NodeRuntime {
    runtime: SimRuntime,
    owner: NodeId,
}

impl Runtime for NodeRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.runtime.spawn(self.owner, task);
    }

    fn now(&self) -> Duration {
        self.runtime.now()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        let mut state = self.runtime.state();
        state.next += 1;
        let end = (state.now.saturating_add(time), state.next);
        drop(state);
        Box::pin(SimSleep { runtime: self.runtime.clone(), end, set: false })
    }

    fn random(&self) -> u64 {
        self.runtime.state().rng.next_u64()
    }
}

struct SimSleep {
    runtime: SimRuntime,
    end: (Duration, u64),
    set: bool,
}

impl Future for SimSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let end = self.end;
        let mut state = self.runtime.state();
        if state.now >= end.0 {
            return Poll::Ready(());
        }
        state.timers.insert(end, context.waker().clone());
        drop(state);
        self.set = true;
        Poll::Pending
    }
}

impl Drop for SimSleep {
    fn drop(&mut self) {
        if self.set {
            let waker = self.runtime.state().timers.remove(&self.end);
            drop(waker);
        }
    }
}
