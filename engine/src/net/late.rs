//! A service that is put in its place after the transport that it needs itself.
//!
//! Invariant: before it is there, callers are told so at once; nothing waits.
//! Invariant: who asks about names hears that this node does not lead, and asks others, or this one again.

use std::sync::{Arc, OnceLock};

use super::{Code, Failure, NodeId, Request, Response, Service};
use crate::object::BoxFuture;
use crate::object::names::NamesAnswer;

/// The place of a service; clones share it.
#[derive(Clone, Default)]
pub struct LateService(Arc<OnceLock<Arc<dyn Service>>>);

impl LateService {
    /// From now on this answers. The first stays.
    pub fn set(&self, service: Arc<dyn Service>) {
        let _first = self.0.set(service);
    }
}

impl std::fmt::Debug for LateService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LateService").field("there", &self.0.get().is_some()).finish()
    }
}

impl Service for LateService {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        match self.0.get() {
            Some(service) => service.handle(from, request),
            None => Box::pin(std::future::ready(starting(&request))),
        }
    }
}

fn starting(request: &Request) -> Response {
    match request {
        Request::Names(_) => Response::Names(NamesAnswer::NotLeader(None)),
        _ => Response::Failed(Failure::new(Code::Unavailable, "the node is starting")),
    }
}
