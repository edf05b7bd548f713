//! Mends copies that readers have seen to be stale, missing or damaged.
//!
//! Invariant: at most [`REPAIRS`] at a time and one for each copy; what comes beyond these is dropped: another reader, the auditor
//! or the replicator sees it again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quarry_ring::PathHash;

use super::devices::Member;
use super::limits::REPAIRS;
use super::remake::{Remade, Wanted, remake};
use super::replica::Replica;
use super::store::Spawn;
use super::transfer::{Copied, copy_version};
use crate::disk::format::record::DeviceId;

/// Repairs under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Repairs {
    running: Arc<Mutex<HashSet<(PathHash, DeviceId)>>>,
}

/// One of them; it ends when this is dropped.
struct Running {
    repairs: Repairs,
    what: (PathHash, DeviceId),
}

impl Drop for Running {
    fn drop(&mut self) {
        self.repairs.table().remove(&self.what);
    }
}

impl Repairs {
    fn table(&self) -> MutexGuard<'_, HashSet<(PathHash, DeviceId)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, what: (PathHash, DeviceId)) -> Option<Running> {
        let mut running = self.table();
        let room = running.len() < REPAIRS && running.insert(what);
        room.then(|| Running { repairs: self.clone(), what })
    }

    /// Copies an object's version from one device to another, if there is room for it.
    pub(crate) fn start(&self, spawn: &Spawn, from: Arc<Member>, to: Arc<Member>, hash: PathHash) {
        let (source, device) = (from.device(), to.device());
        let Some(running) = self.enter((hash, device)) else { return };
        spawn(Box::pin(async move {
            let object = hex::encode(hash);
            match copy_version(from.replica.as_ref(), to.replica.as_ref(), hash).await {
                Ok(Copied::Version(_)) => {
                    tracing::info!(object, %device, from = %source, "copy repaired");
                }
                Ok(Copied::Newer | Copied::Nothing) => {}
                Err(error) => tracing::warn!(object, %device, from = %source, %error, "repair copy"),
            }
            drop(running);
        }));
    }
}

impl Repairs {
    /// Gives a device its fragment of a version anew, if there is room for it.
    pub(crate) fn remake(
        &self,
        spawn: &Spawn,
        places: Vec<DeviceId>,
        sources: Vec<Arc<dyn Replica>>,
        to: Arc<Member>,
        hash: PathHash,
    ) {
        let device = to.device();
        let Some(running) = self.enter((hash, device)) else { return };
        spawn(Box::pin(async move {
            let object = hex::encode(hash);
            let wanted = Wanted { hash, places: &places, anew: true };
            match remake(&sources, to.replica.as_ref(), wanted).await {
                Ok(Remade::Bytes(bytes)) => tracing::info!(object, %device, bytes, "fragment repaired"),
                Ok(Remade::Had | Remade::Cannot) => {}
                Err(error) => tracing::warn!(object, %device, %error, "repair fragment"),
            }
            drop(running);
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_are_few_and_each_is_done_once_at_a_time() {
        let repairs = Repairs::default();
        let what = |n: u8| ([n; 16], DeviceId([1; 16]));
        let first = repairs.enter(what(0)).unwrap();
        assert!(repairs.enter(what(0)).is_none(), "it is being mended");
        let others: Vec<Running> = (1..=9).filter_map(|n| repairs.enter(what(n))).collect();
        assert_eq!(others.len(), REPAIRS - 1);
        drop(first);
        assert!(repairs.enter(what(0)).is_some());
    }
}
