//! A simulated network polled by hand, in virtual time.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::net::conformance::Rig;
use crate::net::{NodeId, Service, SimFaults, SimNet, Timer, Transport};
use crate::object::{BoxFuture, Spawn};

/// What moves on beside the future that is waited for.
pub(crate) type Tasks = Arc<Mutex<Vec<BoxFuture<'static, ()>>>>;

pub(crate) struct SimRig {
    pub(crate) net: SimNet,
    pub(crate) tasks: Tasks,
}

impl SimRig {
    pub(crate) fn new(seed: u64, faults: SimFaults) -> Self {
        Self { net: SimNet::new(seed, faults), tasks: Tasks::default() }
    }

    pub(crate) fn timer(&self) -> Timer {
        let net = self.net.clone();
        Arc::new(move |time| sleep(net.clone(), time))
    }

    pub(crate) fn spawner(&self) -> Spawn {
        let tasks = self.tasks.clone();
        Arc::new(move |work| tasks.lock().unwrap().push(work))
    }

    /// Polls what runs beside.
    pub(crate) fn poll_tasks(&self) {
        let mut context = Context::from_waker(Waker::noop());
        let mut running = std::mem::take(&mut *self.tasks.lock().unwrap());
        running.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
        self.tasks.lock().unwrap().append(&mut running);
    }

    /// One turn: to what is due next when nothing moves, a millisecond on at most.
    pub(crate) fn turn(&self) {
        self.poll_tasks();
        if !self.net.turn(self.net.now()) {
            let soon = self.net.now() + Duration::from_millis(1);
            let next = self.net.next_event().map_or(soon, |next| next.min(soon));
            self.net.turn(next.max(self.net.now() + Duration::from_micros(1)));
        }
    }
}

fn sleep(net: SimNet, time: Duration) -> BoxFuture<'static, ()> {
    let end = net.now() + time;
    Box::pin(std::future::poll_fn(move |_| if net.now() >= end { Poll::Ready(()) } else { Poll::Pending }))
}

impl Rig for SimRig {
    fn start(&mut self, node: NodeId, service: Arc<dyn Service>) -> Arc<dyn Transport> {
        Arc::new(self.net.start(node, service))
    }

    fn stop(&mut self, node: NodeId) {
        self.net.stop(node);
    }

    fn run<T: Send + 'static>(&mut self, mut work: BoxFuture<'static, T>) -> T {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..1_000_000 {
            if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
                return done;
            }
            self.turn();
        }
        panic!("stuck at {:?}", self.net.now());
    }

    fn spawn(&mut self, work: BoxFuture<'static, ()>) {
        self.tasks.lock().unwrap().push(work);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        sleep(self.net.clone(), time)
    }

    fn now(&self) -> Duration {
        self.net.now()
    }
}
