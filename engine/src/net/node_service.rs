//! Everything that a node answers: its devices, and the index groups that it votes in.
//!
//! Invariant: a node answers for what it has; for all else it says so, and nothing happens.

use super::message::{Request, Response};
use super::{NodeId, ReplicaService, Service};
use crate::object::BoxFuture;
use crate::object::names::Seats;

/// Sends each request to the part of the node that answers it; clones share everything.
#[derive(Debug, Clone)]
pub struct NodeService {
    replicas: ReplicaService,
    names: Seats,
}

impl NodeService {
    /// Over devices, and over the index groups that this node votes in.
    #[must_use]
    pub fn new(replicas: ReplicaService, names: impl Into<Seats>) -> Self {
        Self { replicas, names: names.into() }
    }

    /// Ends what others held too long. To be called every few seconds.
    pub fn expire(&self) {
        self.replicas.expire();
        self.names.expire();
    }
}

impl Service for NodeService {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        match request {
            Request::Names(request) => {
                let names = self.names.clone();
                Box::pin(async move {
                    let answer = names.answer(from, request).await;
                    answer.map_or_else(|error| Response::Failed(error.into()), Response::Names)
                })
            }
            request => self.replicas.handle(from, request),
        }
    }
}
