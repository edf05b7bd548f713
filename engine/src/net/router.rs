//! Calls to the own node, answered on the spot; all others go to the network.
//!
//! Invariant: a call to the own node is neither encoded nor sent, and still ends by its deadline.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::{NetError, NodeId, Request, Response, Service, Timer, Transport};
use crate::object::BoxFuture;

/// A transport for a node with a service of its own.
#[derive(Clone)]
pub struct Router {
    net: Arc<dyn Transport>,
    service: Arc<dyn Service>,
    timer: Timer,
    spawn: crate::object::Spawn,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("local", &self.local()).finish_non_exhaustive()
    }
}

impl Router {
    /// The own node answers by `service`; `net` reaches the others. `timer` ends calls; `spawn` runs casts.
    #[must_use]
    pub fn new(
        net: Arc<dyn Transport>,
        service: Arc<dyn Service>,
        timer: Timer,
        spawn: crate::object::Spawn,
    ) -> Self {
        Self { net, service, timer, spawn }
    }
}

impl Transport for Router {
    fn local(&self) -> NodeId {
        self.net.local()
    }

    fn call(
        &self,
        to: NodeId,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'static, Result<Response, NetError>> {
        if to != self.local() {
            return self.net.call(to, request, within);
        }
        let answer = self.service.handle(to, request);
        let over = (self.timer)(within);
        Box::pin(async move { first(answer, over).await.ok_or(NetError::Deadline(to)) })
    }

    fn cast(&self, to: NodeId, request: Request) {
        if to != self.local() {
            self.net.cast(to, request);
            return;
        }
        let answer = self.service.handle(to, request);
        (self.spawn)(Box::pin(async move { drop(answer.await) }));
    }

    fn name(&self) -> &'static str {
        "router"
    }
}

/// Lets whoever is ready go first.
pub(crate) async fn once_more() {
    let mut looked = false;
    poll_fn(|context| {
        if std::mem::replace(&mut looked, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The answer, or `None` when `over` is ready first.
pub(crate) async fn first<'a, T>(mut answer: BoxFuture<'a, T>, mut over: BoxFuture<'a, ()>) -> Option<T> {
    poll_fn(|context| {
        if let Poll::Ready(answer) = answer.as_mut().poll(context) {
            return Poll::Ready(Some(answer));
        }
        over.as_mut().poll(context).map(|()| None)
    })
    .await
}
