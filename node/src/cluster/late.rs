//! A service that is put in its place after the transport that it needs itself.
//!
//! Invariant: before it is there, callers are told so at once; nothing waits.

use std::sync::{Arc, OnceLock};

use quarry_engine::net::{Code, Failure, NodeId, Request, Response, Service};
use quarry_engine::object::BoxFuture;

/// The place of a service.
#[derive(Clone, Default)]
pub(crate) struct LateService(Arc<OnceLock<Arc<dyn Service>>>);

impl LateService {
    /// From now on this answers. The first stays.
    pub(crate) fn set(&self, service: Arc<dyn Service>) {
        let _first = self.0.set(service);
    }
}

impl Service for LateService {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        match self.0.get() {
            Some(service) => service.handle(from, request),
            None => {
                let failure = Failure::new(Code::Unavailable, "the node is starting");
                Box::pin(std::future::ready(Response::Failed(failure)))
            }
        }
    }
}
