//! How many calls to one peer may be under way, by what they wait for there.
//!
//! A peer takes [`CALLS_PER_PEER`] calls. Some are done when its disk is; others wait there until somebody else is done: for the
//! lock of a name, for a container's objects to settle, for a disk's flush. Were there no difference, calls that wait could take all the
//! room, and what they wait for would not get through.
//!
//! Invariant: calls of consensus wait for no others: what those wait for is, in the end, a commit.
//! Invariant: calls that wait for others' calls have a bound of their own, and all of these bounds together leave room.
//! Invariant: a disk that hangs takes a part of the room, however many volumes have a member there.
//! Invariant: a name that many want takes no room from other names: a few of its calls wait at the leader, the rest here.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::limits::{
    CALLS_BUT_CONSENSUS, CHANGES_PER_PEER, FLUSHES_PER_DEVICE, FLUSHES_PER_PEER, GRANTS_PER_GROUP,
    GRANTS_PER_NAME, GRANTS_PER_PEER, LONG_PER_PEER, VOLUMES_PER_DEVICE,
};
use super::message::{Request, VolumeCall};
use super::{NetError, NodeId};
use crate::disk::format::record::DeviceId;
use crate::object::names::{Ask, AskedFor};

/// What shares a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lane {
    /// All but consensus.
    Others,
    /// Grants of names: each waits until the one before it is settled or given back.
    Grants,
    /// Those of one index group: of one that has no quorum each waits for that until it gives up.
    GrantsOf(u32),
    /// Those of one name, by its hash.
    Name(u64),
    /// Changes of accounts and containers: each may wait until uploads have settled. What is asked while another change waits for it
    /// (of a container's ranges) is not among them.
    Changes,
    /// Flushes of volumes: as long as the disk takes.
    Flushes,
    /// Those on one device.
    FlushesOf(DeviceId),
    /// What of volumes waits until writes have come, and goes through all their rows.
    Long,
    /// All else of volumes on one device: as long as the disk takes, or another call to the same member.
    VolumesOf(DeviceId),
}

impl Lane {
    /// How many calls it takes.
    pub(super) fn room(self) -> usize {
        match self {
            Self::Others => CALLS_BUT_CONSENSUS,
            Self::Grants => GRANTS_PER_PEER,
            Self::GrantsOf(_) => GRANTS_PER_GROUP,
            Self::Name(_) => GRANTS_PER_NAME,
            Self::Changes => CHANGES_PER_PEER,
            Self::Flushes => FLUSHES_PER_PEER,
            Self::FlushesOf(_) => FLUSHES_PER_DEVICE,
            Self::Long => LONG_PER_PEER,
            Self::VolumesOf(_) => VOLUMES_PER_DEVICE,
        }
    }
}

/// The lanes in which a call must have room, narrow ones first: who waits for the wide ones holds room that is its own anyway.
pub(super) type Lanes = [Option<Lane>; 4];

/// Those of a call.
pub(super) fn lanes_of(request: &Request) -> Lanes {
    let others = Some(Lane::Others);
    match request {
        Request::Consensus { .. } => [None; 4],
        Request::Names(asked) => match &asked.what {
            AskedFor::Begin { path, .. } => {
                let mut hasher = DefaultHasher::new();
                (asked.group, path).hash(&mut hasher);
                let name = Lane::Name(hasher.finish());
                [Some(name), Some(Lane::GrantsOf(asked.group)), Some(Lane::Grants), others]
            }
            AskedFor::Ask(
                Ask::PutAccount { .. }
                | Ask::MarkAccount { .. }
                | Ask::RemoveMarked { .. }
                | Ask::PutContainer { .. }
                | Ask::DeleteContainer { .. },
            ) => [Some(Lane::Changes), others, None, None],
            _ => [others, None, None, None],
        },
        // Both wait for the disk.
        Request::Volume {
            device,
            call: VolumeCall::Flush(_) | VolumeCall::Write { flush: true, .. },
            ..
        } => [Some(Lane::FlushesOf(*device)), Some(Lane::Flushes), others, None],
        Request::Volume {
            call: VolumeCall::Thin { .. } | VolumeCall::Fork { .. } | VolumeCall::TakeOver { .. },
            ..
        } => [Some(Lane::Long), others, None, None],
        Request::Volume { device, .. } => [Some(Lane::VolumesOf(*device)), others, None, None],
        _ => [others, None, None, None],
    }
}

/// The caller's side of all peers, for bodies that run in a runtime. A simulated network counts by itself.
#[derive(Debug, Default)]
pub struct CallLanes {
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

/// Lanes that calls are in or wait for.
#[derive(Debug, Default)]
struct Peer(Mutex<HashMap<Lane, Arc<Semaphore>>>);

/// A call's place in its lanes, to be held until it has ended.
#[derive(Debug)]
pub struct CallPlace(#[expect(dead_code, reason = "its drop gives the room back")] [Option<Held>; 4]);

/// A place in one lane, or the wait for it.
#[derive(Debug)]
struct Held {
    // Given back before it is looked whether somebody else is in the lane.
    permit: Option<OwnedSemaphorePermit>,
    room: Option<Arc<Semaphore>>,
    peer: Arc<Peer>,
    lane: Lane,
}

impl Peer {
    fn lanes(&self) -> MutexGuard<'_, HashMap<Lane, Arc<Semaphore>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    async fn take(peer: Arc<Peer>, lane: Lane) -> Result<Self, NetError> {
        let room = {
            let mut lanes = peer.lanes();
            Arc::clone(lanes.entry(lane).or_insert_with(|| Arc::new(Semaphore::new(lane.room()))))
        };
        let mut held = Self { permit: None, room: Some(Arc::clone(&room)), peer, lane };
        held.permit = Some(room.acquire_owned().await.map_err(|_| NetError::Closed)?);
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut lanes = self.peer.lanes();
        drop(self.room.take());
        // Names come and go. Whoever else is in it, or waits, has it too.
        if lanes.get(&self.lane).is_some_and(|room| Arc::strong_count(room) == 1) {
            lanes.remove(&self.lane);
        }
    }
}

impl CallLanes {
    /// Waits until the call may be sent.
    pub async fn enter(&self, to: NodeId, request: &Request) -> Result<CallPlace, NetError> {
        self.take(to, lanes_of(request)).await
    }

    async fn take(&self, to: NodeId, lanes: Lanes) -> Result<CallPlace, NetError> {
        let peer = {
            let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(peers.entry(to).or_default())
        };
        let mut places = [None, None, None, None];
        for (place, lane) in places.iter_mut().zip(lanes) {
            if let Some(lane) = lane {
                *place = Some(Held::take(Arc::clone(&peer), lane).await?);
            }
        }
        Ok(CallPlace(places))
    }

    #[cfg(test)]
    fn known(&self, to: NodeId) -> usize {
        let peers = self.peers.lock().unwrap();
        peers.get(&to).map_or(0, |peer| peer.lanes().len())
    }
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::net::ConsensusCall;
    use crate::object::ObjectPath;
    use crate::object::names::NamesRequest;

    const TO: NodeId = NodeId([1; 16]);

    fn begin(object: &str) -> Request {
        begin_in(1, object)
    }

    fn begin_in(group: u32, object: &str) -> Request {
        let (account, container) = (Arc::from("a"), Arc::from("c"));
        let path = ObjectPath { account, container, object: Arc::from(object) };
        let what = AskedFor::Begin { lease: 1, path, given: None };
        Request::Names(NamesRequest { group, follows: None, what })
    }

    fn release() -> Request {
        Request::Names(NamesRequest { group: 1, follows: None, what: AskedFor::Release { lease: 1 } })
    }

    fn now<F: Future>(work: F) -> Option<F::Output> {
        match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    fn enters(lanes: &CallLanes, request: &Request) -> Option<CallPlace> {
        now(lanes.enter(TO, request)).map(Result::unwrap)
    }

    #[test]
    fn one_name_that_many_want_takes_no_room_from_others() {
        let lanes = CallLanes::default();
        let hot: Vec<_> = (0..100).filter_map(|_| enters(&lanes, &begin("hot"))).collect();
        assert_eq!(hot.len(), GRANTS_PER_NAME);
        assert!(enters(&lanes, &begin("cold")).is_some());
        let all: Vec<_> = (0..100).filter_map(|n| enters(&lanes, &begin(&n.to_string()))).collect();
        assert_eq!(hot.len() + all.len(), GRANTS_PER_GROUP);
        let other: Vec<_> = (0..100).filter_map(|n| enters(&lanes, &begin_in(2, &n.to_string()))).collect();
        assert_eq!(
            hot.len() + all.len() + other.len(),
            GRANTS_PER_PEER,
            "a group without a quorum stops no other"
        );
        assert!(enters(&lanes, &release()).is_some(), "what ends the wait gets through");
    }

    fn volume(call: VolumeCall) -> Request {
        volume_on(1, call)
    }

    fn volume_on(device: u8, call: VolumeCall) -> Request {
        let (device, volume) = (DeviceId([device; 16]), crate::block::VolumeId([1; 16]));
        Request::Volume { device, volume, fence: crate::block::Fence::default(), session: 1, call }
    }

    /// All members on a node that had been away were told at once to thin their volumes, and nothing else got through for three seconds.
    #[test]
    fn long_work_on_volumes_and_flushes_keep_neither_writes_nor_signs_of_life_waiting() {
        let lanes = CallLanes::default();
        let thin = volume(VolumeCall::Thin { views: Vec::new(), era: 1, at: 1 });
        let long: Vec<_> = (0..100).filter_map(|_| enters(&lanes, &thin)).collect();
        assert_eq!(long.len(), LONG_PER_PEER);
        let flushes: Vec<_> =
            (0..100).filter_map(|_| enters(&lanes, &volume(VolumeCall::Flush(1)))).collect();
        assert_eq!(flushes.len(), FLUSHES_PER_DEVICE);
        assert!(enters(&lanes, &volume(VolumeCall::Confirm)).is_some());
        let write = |flush| VolumeCall::Write { writes: Vec::new(), data: bytes::Bytes::new(), flush };
        assert!(enters(&lanes, &volume(write(false))).is_some());
        assert!(enters(&lanes, &volume(write(true))).is_none(), "it waits for the disk as well");
    }

    /// Heads of sixty volumes asked members on a disk that hung for their promise, again and again: nothing else got through to that node.
    #[test]
    fn a_disk_that_hangs_leaves_room_for_all_else() {
        let lanes = CallLanes::default();
        let calls = [VolumeCall::Promise, VolumeCall::Confirm, VolumeCall::Flush(1)];
        let hung = |call: &VolumeCall| {
            (0..100).filter_map(|_| enters(&lanes, &volume(call.clone()))).collect::<Vec<_>>()
        };
        let places: Vec<_> = calls.iter().map(hung).collect();
        assert_eq!(
            places.iter().map(Vec::len).collect::<Vec<_>>(),
            [VOLUMES_PER_DEVICE, 0, FLUSHES_PER_DEVICE]
        );
        let other: Vec<_> =
            calls.iter().filter_map(|call| enters(&lanes, &volume_on(2, call.clone()))).collect();
        assert_eq!(other.len(), calls.len(), "a disk beside it is reached");
        assert!(enters(&lanes, &release()).is_some());
    }

    #[test]
    fn consensus_gets_through_whatever_waits() {
        let lanes = CallLanes::default();
        let all: Vec<_> = (0..100).filter_map(|_| enters(&lanes, &release())).collect();
        assert_eq!(all.len(), CALLS_BUT_CONSENSUS);
        let consensus = Request::Consensus { group: 1, call: ConsensusCall::Members };
        assert!((0..100).all(|_| enters(&lanes, &consensus).is_some()));
    }

    #[test]
    fn who_waits_gets_the_place_of_who_leaves_and_who_gives_up_leaves_nothing() {
        let lanes = CallLanes::default();
        let mut places: Vec<_> = (0..GRANTS_PER_NAME).filter_map(|_| enters(&lanes, &begin("x"))).collect();
        let mut context = Context::from_waker(Waker::noop());
        let request = begin("x");
        let mut waits: Pin<Box<dyn Future<Output = _>>> = Box::pin(lanes.enter(TO, &request));
        let mut gives_up: Pin<Box<dyn Future<Output = _>>> = Box::pin(lanes.enter(TO, &request));
        assert!(waits.as_mut().poll(&mut context).is_pending());
        assert!(gives_up.as_mut().poll(&mut context).is_pending());
        places.pop();
        drop(gives_up);
        let Poll::Ready(place) = waits.as_mut().poll(&mut context) else { panic!("it waits") };
        assert!(enters(&lanes, &request).is_none());
        drop((waits, place, places));
        assert_eq!(lanes.known(TO), 0, "a name that nobody wants is forgotten");
    }
}
