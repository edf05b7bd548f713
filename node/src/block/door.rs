//! Heads on other nodes come in here: what they ask of the members on this node's disks.

use std::sync::Arc;

use quarry_engine::net::{NodeId, Request, Response, Service};
use quarry_engine::object::BoxFuture;
use quarry_volume::store::Members;

/// Answers for members of volumes, and hands everything else on.
pub(crate) struct Door {
    members: Arc<Members>,
    others: Arc<dyn Service>,
}

impl Door {
    pub(crate) fn new(members: Arc<Members>, others: Arc<dyn Service>) -> Self {
        Self { members, others }
    }
}

impl Service for Door {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        match request {
            Request::Volume { device, volume, fence, session, call } => {
                let members = Arc::clone(&self.members);
                Box::pin(async move {
                    Response::Volume(members.answer(device, volume, fence, session, call).await)
                })
            }
            request => self.others.handle(from, request),
        }
    }
}
