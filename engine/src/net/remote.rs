//! A replica on another node: [`Replica`] over a [`Transport`].
//!
//! Invariant: what comes over the network is verified here before anybody sees it.
//! Invariant: an object stays readable while its hold lives, as with a local replica, unless nobody read it for a lease and
//! it was replaced meanwhile; then reading ends with an error, never with bytes of another version.

use std::collections::HashMap;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quarry_ring::PathHash;
use tokio::sync::Mutex as AsyncMutex;

use super::message::{Code, Handle, OpenedObject, Request, Response};
use super::{NetError, NodeId, Transport};
use crate::catalog::{DataId, Version};
use crate::disk::format::record::{DeviceId, StoredRecord};
use crate::disk::{Class, Durability, Location};
use crate::object::{BoxFuture, Draft, Error, Opened, Replica, Result};
use crate::sync::{Answer, Ask};

impl From<NetError> for Error {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Wire(_) => Self::Refused(error.to_string()),
            _ => Self::Unavailable { reason: error.to_string() },
        }
    }
}

/// A device of another node; clones share everything.
#[derive(Clone)]
pub struct Remote {
    shared: Arc<Shared>,
}

struct Shared {
    net: Arc<dyn Transport>,
    node: NodeId,
    device: DeviceId,
    within: Duration,
    open: Mutex<OpenTable>,
}

/// What this node has open there. Places of chunks, as callers see them, are (number in this table, position).
#[derive(Default)]
struct OpenTable {
    next: u32,
    leases: HashMap<u32, Arc<Lease>>,
}

/// One opened object with chunks.
struct Lease {
    hash: PathHash,
    /// Version time and head checksum of its record: the same version has the same.
    version: (u64, u32),
    handle: AsyncMutex<Handle>,
}

impl OpenTable {
    fn insert(&mut self, lease: Lease) -> u32 {
        while self.leases.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.leases.insert(number, Arc::new(lease));
        number
    }
}

/// Lets go of a lease, here and there.
struct Hold {
    shared: Arc<Shared>,
    number: u32,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (node, device) = (self.shared.node, self.shared.device);
        f.debug_struct("Remote").field("node", &node).field("device", &device).finish_non_exhaustive()
    }
}

impl Remote {
    /// The device of a node, every call to which may take so long.
    #[must_use]
    pub fn new(net: Arc<dyn Transport>, node: NodeId, device: DeviceId, within: Duration) -> Self {
        let open = Mutex::new(OpenTable::default());
        Self { shared: Arc::new(Shared { net, node, device, within, open }) }
    }
}

impl Replica for Remote {
    fn device(&self) -> DeviceId {
        self.shared.device
    }

    fn append(
        &self,
        group: Vec<Draft>,
        durability: Durability,
        class: Class,
    ) -> BoxFuture<'static, Result<()>> {
        if let Some(error) = group.iter().find_map(|draft| draft.check().err()) {
            return Box::pin(ready(Err(error)));
        }
        let device = self.shared.device;
        let asked = self.shared.ask(Request::Append { device, group, durability, class });
        Box::pin(async move {
            match asked.await? {
                Response::Done => Ok(()),
                other => Err(unexpected(other)),
            }
        })
    }

    fn abandon(&self, upload: DataId, sequence: u64) {
        let request = Request::Abandon { device: self.shared.device, upload, sequence };
        self.shared.net.cast(self.shared.node, request);
    }

    fn version(&self, hash: PathHash) -> BoxFuture<'static, Result<Option<Version>>> {
        let asked = self.shared.ask(Request::Version { device: self.shared.device, hash });
        Box::pin(async move {
            match asked.await? {
                Response::Version(version) => Ok(version),
                other => Err(unexpected(other)),
            }
        })
    }

    fn open(&self, hash: PathHash) -> BoxFuture<'static, Result<Option<Opened>>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let Some(OpenedObject { handle, chunks, record }) = shared.ask_open(hash).await? else {
                return Ok(None);
            };
            let record = match shared.verify(record) {
                Ok(record) => record,
                Err(error) => {
                    handle.into_iter().for_each(|handle| shared.close(handle));
                    return Err(error);
                }
            };
            let Some(handle) = handle else {
                return Ok(Some(Opened { record, chunks: Arc::new([]), hold: Arc::new(()) }));
            };
            let lease = Lease { hash, version: version_of(&record), handle: AsyncMutex::new(handle) };
            let number = shared.table().insert(lease);
            let place = |offset| Location { segment: number, offset, len: 0 };
            let chunks = (0..chunks).map(place).collect();
            Ok(Some(Opened { record, chunks, hold: Arc::new(Hold { shared, number }) }))
        })
    }

    fn read(&self, at: Location) -> BoxFuture<'static, Result<StoredRecord>> {
        let shared = Arc::clone(&self.shared);
        let lease = shared.table().leases.get(&at.segment).cloned();
        Box::pin(async move {
            let not_open = || Error::Unavailable { reason: "the object is not open".to_owned() };
            let lease = lease.ok_or_else(not_open)?;
            let handle = *lease.handle.lock().await;
            let first = shared.ask_chunk(handle, at.offset).await?;
            let answer = match first {
                Response::Failed(failure) if failure.code == Code::Expired => {
                    let handle = shared.renew(&lease, handle).await?;
                    shared.ask_chunk(handle, at.offset).await?
                }
                answer => answer,
            };
            match answer {
                Response::Record(record) => shared.verify(record),
                other => Err(unexpected(other)),
            }
        })
    }

    fn ask(&self, ask: Ask) -> BoxFuture<'static, Result<Answer>> {
        let asked = self.shared.ask(Request::Sync { device: self.shared.device, ask });
        Box::pin(async move {
            match asked.await? {
                Response::Sync(answer) => Ok(answer),
                other => Err(unexpected(other)),
            }
        })
    }
}

/// A failure of the other side, or an answer to another question.
fn unexpected(response: Response) -> Error {
    match response {
        Response::Failed(failure) => failure.into(),
        _ => Error::Unavailable { reason: "the peer answered another question".to_owned() },
    }
}

fn version_of(record: &StoredRecord) -> (u64, u32) {
    let view = record.view();
    (view.sequence, view.stated_head_crc())
}

impl Shared {
    fn ask(&self, request: Request) -> BoxFuture<'static, Result<Response, NetError>> {
        self.net.call(self.node, request, self.within)
    }

    fn table(&self) -> MutexGuard<'_, OpenTable> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn verify(&self, record: bytes::Bytes) -> Result<StoredRecord> {
        let corrupt = |bad| Error::Corrupt { what: format!("record from node {}: {bad}", self.node) };
        StoredRecord::verify(self.device, record).map_err(corrupt)
    }

    async fn ask_open(&self, hash: PathHash) -> Result<Option<OpenedObject>> {
        match self.ask(Request::Open { device: self.device, hash }).await? {
            Response::Opened(opened) => Ok(opened),
            other => Err(unexpected(other)),
        }
    }

    async fn ask_chunk(&self, handle: Handle, chunk: u32) -> Result<Response> {
        Ok(self.ask(Request::Read { device: self.device, handle, chunk }).await?)
    }

    fn close(&self, handle: Handle) {
        self.net.cast(self.node, Request::Close { device: self.device, handle });
    }

    /// A handle in the place of one that has expired: of the same version, or none.
    async fn renew(&self, lease: &Lease, expired: Handle) -> Result<Handle> {
        let mut current = lease.handle.lock().await;
        if *current != expired {
            return Ok(*current);
        }
        let replaced = || Error::Unavailable {
            reason: "the object was replaced while nobody read it for the length of a lease".to_owned(),
        };
        let opened = self.ask_open(lease.hash).await?.ok_or_else(replaced)?;
        let handle = opened.handle.ok_or_else(replaced)?;
        let same = self.verify(opened.record).is_ok_and(|record| version_of(&record) == lease.version);
        if !same {
            self.close(handle);
            return Err(replaced());
        }
        *current = handle;
        Ok(handle)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(lease) = self.shared.table().leases.remove(&self.number) else { return };
        // Locked only while somebody renews it; then its lease ends by itself.
        let Ok(handle) = lease.handle.try_lock().map(|handle| *handle) else { return };
        self.shared.close(handle);
    }
}
