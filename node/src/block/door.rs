//! Heads on other nodes come in here: what they ask of the members on this node's disks; and nodes to which volumes go.

use std::sync::{Arc, OnceLock};

use quarry_engine::net::{NodeId, Request, Response, Service, VolumeAnswer, VolumeCall};
use quarry_engine::object::BoxFuture;
use quarry_volume::store::{Members, Volumes};

use super::moving;

/// The volumes with one member on this node, once they are there.
pub(crate) type OwnVolumes = Arc<OnceLock<Arc<Volumes>>>;

/// Answers for members of volumes and for volumes that go to other nodes, and hands everything else on.
pub(crate) struct Door {
    members: Arc<Members>,
    own: OwnVolumes,
    others: Arc<dyn Service>,
}

impl Door {
    pub(crate) fn new(members: Arc<Members>, own: OwnVolumes, others: Arc<dyn Service>) -> Self {
        Self { members, own, others }
    }
}

impl Service for Door {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        match request {
            Request::Volume { volume, call: VolumeCall::Copy { from }, .. } => {
                let own = self.own.get().cloned();
                Box::pin(async move {
                    Response::Volume(match own {
                        Some(own) => moving::tell(&own, volume, from).await,
                        None => VolumeAnswer::Unreadable,
                    })
                })
            }
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
