//! What a node answers for its devices: the other end of [`super::Remote`].
//!
//! Invariant: a request is checked whole before a device hears of it; no request of a peer can make a device panic.
//! Invariant: no peer's version time is far ahead of the wall clock: the node's own versions would have to follow it for ever.
//! Invariant: what a peer holds open is limited, and let go when its lease is over ([`ReplicaService::expire`]).
//! Invariant: a peer reads chunks of what it has opened, never a place of its own choosing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::handles::{Full, Handles};
use super::limits::{MAX_AHEAD, MAX_CHUNKS};
use super::message::{Code, Failure, Handle, OpenedObject, Request, Response};
use super::{NodeId, Service};
use crate::catalog::ObjectMeta;
use crate::clock::WallClock;
use crate::disk::format::record::{DeviceId, FIXED_HEAD, Kind};
use crate::disk::limits::{CRC_SPAN, MAX_DATA, MAX_GROUP, MAX_GROUP_RECORDS};
use crate::disk::{Class, Durability};
use crate::io::BLOCK;
use crate::object::{BoxFuture, Draft, Replica};

/// Time since some moment, never running backwards: for leases.
pub type MonotonicClock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Answers for the devices of a node; clones share everything.
#[derive(Clone)]
pub struct ReplicaService {
    shared: Arc<Shared>,
}

struct Shared {
    replicas: Vec<Arc<dyn Replica>>,
    handles: Mutex<Handles>,
    clock: MonotonicClock,
    wall: WallClock,
}

impl std::fmt::Debug for ReplicaService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicaService").field("open", &self.open()).finish_non_exhaustive()
    }
}

impl ReplicaService {
    /// Over these devices. `clock` is for leases, `wall` for judging version times. `incarnation` is random, new at every
    /// start, so that no handle of before means anything.
    #[must_use]
    pub fn new(
        replicas: Vec<Arc<dyn Replica>>,
        clock: MonotonicClock,
        wall: WallClock,
        incarnation: u64,
    ) -> Self {
        let handles = Mutex::new(Handles::new(incarnation));
        Self { shared: Arc::new(Shared { replicas, handles, clock, wall }) }
    }

    /// Lets go of what nobody has read for the length of a lease. To be called every few seconds.
    pub fn expire(&self) {
        let now = (self.shared.clock)();
        let over = self.shared.handles().expire(now);
        // Outside the lock: unpinning is work.
        drop(over);
    }

    /// Objects held open for others.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.handles().len()
    }
}

impl Service for ReplicaService {
    fn handle(&self, from: NodeId, request: Request) -> BoxFuture<'static, Response> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.answer(from, request).await.unwrap_or_else(Response::Failed) })
    }
}

impl Shared {
    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replica(&self, device: DeviceId) -> Result<&Arc<dyn Replica>, Failure> {
        let found = self.replicas.iter().find(|replica| replica.device() == device);
        found.ok_or_else(|| Failure::new(Code::NoDevice, format!("device {device} is not at this node")))
    }

    async fn answer(&self, from: NodeId, request: Request) -> Result<Response, Failure> {
        match request {
            Request::Ping { payload } => Ok(Response::Pong { payload }),
            Request::Append { device, group, durability, class } => {
                self.append(device, group, durability, class).await
            }
            Request::Abandon { device, upload, sequence } => {
                let replica = self.replica(device)?;
                self.check_time(sequence)?;
                replica.abandon(upload, sequence);
                Ok(Response::Done)
            }
            Request::Version { device, hash } => {
                Ok(Response::Version(self.replica(device)?.version(hash).await?))
            }
            Request::Open { device, hash } => self.open(from, device, hash).await,
            Request::Read { device, handle, chunk } => self.read(from, device, handle, chunk).await,
            Request::Close { device, handle } => {
                let hold = self.handles().close(from, device, handle);
                drop(hold);
                Ok(Response::Done)
            }
            Request::Announce(_) | Request::Wish(_) => {
                Err(Failure::new(Code::NotServed, "this node is in no cluster"))
            }
            // `consensus::Groups` stands before this service where there are groups.
            Request::Consensus { .. } => Err(Failure::new(Code::NotServed, "there are no groups here")),
            Request::Volume { .. } => Err(Failure::new(Code::NotServed, "there are no volumes here")),
            Request::Names(_) => Err(Failure::new(Code::NotServed, "devices do not decide about names")),
            Request::Sync { device, ask } => Ok(Response::Sync(self.replica(device)?.ask(ask).await?)),
        }
    }

    /// What is written stays: a version time of a wrong clock would be the newest of its key until that time has come, and the
    /// clock of every node that finds it on its disk would run on from there.
    fn check_time(&self, sequence: u64) -> Result<(), Failure> {
        let ahead = u64::try_from(MAX_AHEAD.as_micros()).unwrap_or(u64::MAX);
        if sequence <= (self.wall)().saturating_add(ahead) {
            return Ok(());
        }
        let text = "the version time is far ahead of this node's clock; look at the clocks of both machines";
        Err(Failure::new(Code::Refused, text))
    }

    async fn append(
        &self,
        device: DeviceId,
        group: Vec<Draft>,
        durability: Durability,
        class: Class,
    ) -> Result<Response, Failure> {
        let replica = self.replica(device)?;
        check_group(&group)?;
        group.iter().try_for_each(|draft| self.check_time(draft.sequence))?;
        replica.append(group, durability, class).await?;
        Ok(Response::Done)
    }

    async fn open(&self, from: NodeId, device: DeviceId, hash: [u8; 16]) -> Result<Response, Failure> {
        let Some(opened) = self.replica(device)?.open(hash).await? else { return Ok(Response::Opened(None)) };
        let record = opened.record.bytes();
        let chunks = u32::try_from(opened.chunks.len()).ok().filter(|n| *n <= MAX_CHUNKS);
        let chunks = chunks.ok_or_else(|| Failure::new(Code::Refused, "object has too many chunks"))?;
        let handle = if chunks == 0 {
            None
        } else {
            let now = (self.clock)();
            let kept = self.handles().keep(from, device, opened.chunks, opened.hold, now);
            Some(kept.map_err(|Full| Failure::new(Code::Busy, "too many objects are held open"))?)
        };
        Ok(Response::Opened(Some(OpenedObject { handle, chunks, record })))
    }

    async fn read(
        &self,
        from: NodeId,
        device: DeviceId,
        handle: Handle,
        chunk: u32,
    ) -> Result<Response, Failure> {
        let replica = self.replica(device)?;
        let now = (self.clock)();
        let found = self.handles().chunk(from, device, handle, chunk, now);
        let place = found.ok_or_else(|| Failure::new(Code::Expired, "the object is no longer held open"))?;
        let (at, hold) =
            place.ok_or_else(|| Failure::new(Code::BadRequest, "the object has no such chunk"))?;
        let record = replica.read(at).await?;
        drop(hold);
        Ok(Response::Record(record.bytes()))
    }
}

/// Most bytes that a draft can take in a batch: its record, alignment, descriptor.
fn most_bytes(draft: &Draft) -> usize {
    let data = draft.data.len();
    let head = FIXED_HEAD + draft.key.len() + draft.meta.len() + data.div_ceil(CRC_SPAN) * 4 + 8;
    head + data.next_multiple_of(8) + BLOCK + 32
}

/// Holds a group to what a disk asserts of its callers.
fn check_group(group: &[Draft]) -> Result<(), Failure> {
    let bad = |text: &str| Err(Failure::new(Code::BadRequest, text));
    if group.is_empty() || group.len() > MAX_GROUP_RECORDS {
        return bad("a group has 1 to 8 records");
    }
    for draft in group {
        draft.check()?;
        if draft.data.len() > MAX_DATA {
            return bad("data of a record is too long");
        }
        if draft.kind == Kind::Evict {
            return bad("only its own node evicts what a device keeps");
        }
    }
    if group.iter().map(most_bytes).sum::<usize>() > MAX_GROUP {
        return bad("group is too large");
    }
    group.iter().try_for_each(check_chunks)
}

/// The disk walks an upload's chunks by their numbers when it is given up, and an object's when it is replaced: what a record
/// says of them must be a number that a walk comes to the end of.
fn check_chunks(draft: &Draft) -> Result<(), Failure> {
    let bad = |text: String| Failure::new(Code::BadRequest, text);
    let chunks = match draft.kind {
        Kind::Chunk => draft.number.saturating_add(1),
        Kind::Object if !draft.deleted => {
            let meta = ObjectMeta::decode(&draft.meta, draft.sequence);
            let meta = meta.map_err(|e| bad(format!("object record is unreadable: {e}")))?;
            meta.chunked.map_or(0, |chunked| chunked.count)
        }
        _ => 0,
    };
    if chunks > MAX_CHUNKS {
        return Err(bad(format!("object has too many chunks; allowed: at most {MAX_CHUNKS}")));
    }
    Ok(())
}

const _: () = assert!(MAX_GROUP_RECORDS == 8, "a message above says so");
