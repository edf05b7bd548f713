//! openraft's own suite over the log and the machine, each store on a simulated disk with a thread of its own.

use std::sync::Arc;

use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, StorageError};

use crate::catalog::ObjectCatalog;
use crate::consensus::log::Log;
use crate::consensus::machine::Machine;
use crate::consensus::propose::Proposals;
use crate::consensus::raft::{LogId, Rows};
use crate::consensus::registry::Family;
use crate::consensus::store::{Progress, Store};
use crate::disk::format::record::DeviceId;
use crate::disk::format::superblock::ClusterId;
use crate::disk::{CacheBytes, DiskHandle, Format, Open, format, start_on};
use crate::index::MemoryIndex;
use crate::io::SimImage;
use crate::net::NodeId;

impl From<u64> for NodeId {
    fn from(n: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&n.to_be_bytes());
        Self(bytes)
    }
}

struct Disks;

/// Closes the disk: a simulated one never sleeps, so its thread must not be left behind.
struct Guard(DiskHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        let mut close = std::pin::pin!(self.0.close());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        while close.as_mut().poll(&mut context).is_pending() {
            std::thread::yield_now();
        }
    }
}

impl StoreBuilder<Rows, Log, Machine, Guard> for Disks {
    async fn build(&self) -> Result<(Guard, Log, Machine), StorageError<NodeId>> {
        let image = SimImage::new(16 * (16 << 20), 1);
        let request = Format {
            cluster: ClusterId([7; 16]),
            device: DeviceId([1; 16]),
            segment_size: Some(16 << 20),
            overwrite: false,
        };
        format(&mut image.open(), &request).unwrap();
        let device = Box::new(image.open());
        let index = Arc::new(MemoryIndex::new());
        let options =
            Open { cluster: None, cache_bytes: CacheBytes::small(1 << 20), progress: &mut |_, _| {} };
        let (disk, _) = start_on(device, index, Arc::new(ObjectCatalog), options).unwrap();
        let store = Store::open(7, disk.clone()).await.unwrap();
        let machine = Machine::open(Arc::clone(&store), NodeId([1; 16]), Proposals::new(), Family::default())
            .await
            .unwrap();
        // The suite purges what it has not applied; a store does that only for what a snapshot brings.
        let everything = LogId::new(CommittedLeaderId::new(u64::MAX, NodeId([0xff; 16])), u64::MAX);
        store.set_progress(Progress { applied: Some(everything), ..Progress::default() });
        Ok((Guard(disk), Log(store), machine))
    }
}

/// Time and tasks of tokio.
struct Tokio;

impl crate::consensus::Runtime for Tokio {
    fn spawn(&self, task: crate::object::BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn now(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }

    fn sleep(&self, _: std::time::Duration) -> crate::consensus::Sleep {
        Box::pin(std::future::pending())
    }

    fn random(&self) -> u64 {
        7
    }
}

#[test]
fn openrafts_suite_passes() {
    crate::consensus::runtime::within(Arc::new(Tokio), || assert!(Suite::test_all(Disks).is_ok()));
}
