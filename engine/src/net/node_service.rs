//! Everything that a node answers: its devices, and the index groups that it votes in.
//!
//! Invariant: a node answers for what it has; for all else it says so, and nothing happens.

use super::message::{Code, Failure, Request, Response};
use super::{NodeId, ReplicaService, Service};
use crate::object::BoxFuture;
use crate::object::names::NamesService;

/// Sends each request to the part of the node that answers it; clones share everything.
#[derive(Debug, Clone)]
pub struct NodeService {
    replicas: ReplicaService,
    names: Option<NamesService>,
}

impl NodeService {
    /// Over devices, and over the index group that this node votes in, if it does.
    #[must_use]
    pub fn new(replicas: ReplicaService, names: Option<NamesService>) -> Self {
        Self { replicas, names }
    }

    /// Ends what others held too long. To be called every few seconds.
    pub fn expire(&self) {
        self.replicas.expire();
        if let Some(names) = &self.names {
            names.expire();
        }
    }
}

impl Service for NodeService {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        match (request, &self.names) {
            (Request::Names(request), Some(names)) => {
                let names = names.clone();
                Box::pin(async move {
                    let answer = names.answer(from, request).await;
                    answer.map_or_else(|error| Response::Failed(error.into()), Response::Names)
                })
            }
            (Request::Names(_), None) => {
                let text = "this node votes in no index group";
                Box::pin(std::future::ready(Response::Failed(Failure::new(Code::NotServed, text))))
            }
            (request, _) => self.replicas.handle(from, request),
        }
    }
}
