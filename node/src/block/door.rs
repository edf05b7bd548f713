//! Heads on other nodes come in here: what they ask of the members on this node's disks; nodes to which volumes go; those that serve a
//! snapshot of a volume whose head is here; and those whose users ask what volumes there are.

use std::sync::{Arc, OnceLock, Weak};

use quarry_engine::net::{NodeId, Request, Response, Service, VolumeAnswer, VolumeCall};
use quarry_engine::object::BoxFuture;
use quarry_volume::store::Members;

use super::{Exports, listed, moving};

/// The volumes with one member on this node, once they are there.
pub(crate) type OwnVolumes = Arc<OnceLock<Weak<Exports>>>;

/// Answers for members of volumes and for this node's volumes, and hands everything else on.
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
                let own = self.own.get().and_then(Weak::upgrade);
                Box::pin(async move {
                    Response::Volume(match own {
                        Some(own) => moving::tell(own.volumes(), volume, from).await,
                        None => VolumeAnswer::Unreadable,
                    })
                })
            }
            Request::Volume { volume, call: VolumeCall::View { era, from, upto }, .. } => {
                let own = self.own.get().and_then(Weak::upgrade);
                let shared = own.and_then(|own| own.shared().cloned());
                Box::pin(async move {
                    let told = match shared {
                        Some(shared) => shared.tell_other(volume, era, from, upto).await.ok(),
                        None => None,
                    };
                    let answer = told.map(|(at, data)| VolumeAnswer::Copied { at, data });
                    Response::Volume(answer.unwrap_or(VolumeAnswer::Unreadable))
                })
            }
            Request::Volume { call: VolumeCall::List { from }, .. } => {
                let own = self.own.get().and_then(Weak::upgrade);
                let told = own.map(|own| VolumeAnswer::Listed(listed::page(&own, from)));
                Box::pin(async move { Response::Volume(told.unwrap_or(VolumeAnswer::Unreadable)) })
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
