//! Objects that a node holds open for others: a table with limits and leases. Pure: the time is handed in.
//!
//! Invariant: a handle is found by the node that it was given to, until its lease is over, and by nobody else.
//! Invariant: at most [`HANDLES_PER_PEER`] are held for one node and [`MAX_HANDLES`] in all; of their chunks' places at most
//! [`PLACES_PER_PEER`] and [`MAX_PLACES`].
//! Invariant: what is let go is dropped outside the table: dropping unpins segments.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::NodeId;
use super::limits::{HANDLES_PER_PEER, LEASE, MAX_HANDLES, MAX_PLACES, PLACES_PER_PEER};
use super::message::Handle;
use crate::disk::Location;
use crate::disk::format::record::DeviceId;

/// Keeps an opened object readable.
pub(super) type Hold = Arc<dyn Any + Send + Sync>;

struct Held {
    peer: NodeId,
    device: DeviceId,
    chunks: Arc<[Location]>,
    hold: Hold,
    until: Duration,
}

/// The table.
pub(super) struct Handles {
    incarnation: u64,
    next: u64,
    held: HashMap<u64, Held>,
    places: usize,
    per_peer: HashMap<NodeId, Share>,
}

/// What is held for one peer.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    handles: usize,
    places: usize,
}

/// Why nothing more is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Handles {
    pub(super) fn new(incarnation: u64) -> Self {
        Self { incarnation, next: 1, held: HashMap::new(), places: 0, per_peer: HashMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Keeps `hold` for `peer`.
    pub(super) fn keep(
        &mut self,
        peer: NodeId,
        device: DeviceId,
        chunks: Arc<[Location]>,
        hold: Hold,
        now: Duration,
    ) -> Result<Handle, Full> {
        let own = self.per_peer.get(&peer).copied().unwrap_or_default();
        let own = Share { handles: own.handles + 1, places: own.places + chunks.len() };
        let (handles, places) = (self.held.len() + 1, self.places + chunks.len());
        if own.handles > HANDLES_PER_PEER || own.places > PLACES_PER_PEER {
            return Err(Full);
        }
        if handles > MAX_HANDLES || places > MAX_PLACES {
            return Err(Full);
        }
        self.per_peer.insert(peer, own);
        self.places = places;
        let number = self.next;
        self.next += 1;
        self.held.insert(number, Held { peer, device, chunks, hold, until: now + LEASE });
        Ok(Handle { incarnation: self.incarnation, number })
    }

    /// The place of a chunk, and what keeps it readable; makes the lease anew. `None`: not held. The inner `None`: no such
    /// chunk.
    pub(super) fn chunk(
        &mut self,
        peer: NodeId,
        device: DeviceId,
        handle: Handle,
        chunk: u32,
        now: Duration,
    ) -> Option<Option<(Location, Hold)>> {
        let held = self.find(peer, device, handle).filter(|held| held.until > now)?;
        held.until = now + LEASE;
        let at = usize::try_from(chunk).ok().and_then(|n| held.chunks.get(n)).copied();
        Some(at.map(|at| (at, held.hold.clone())))
    }

    /// Lets go.
    pub(super) fn close(&mut self, peer: NodeId, device: DeviceId, handle: Handle) -> Option<Hold> {
        self.find(peer, device, handle)?;
        self.remove(handle.number)
    }

    /// Lets go of all whose lease is over.
    pub(super) fn expire(&mut self, now: Duration) -> Vec<Hold> {
        let over = |(number, held): (&u64, &Held)| (held.until <= now).then_some(*number);
        let over: Vec<u64> = self.held.iter().filter_map(over).collect();
        over.into_iter().filter_map(|number| self.remove(number)).collect()
    }

    fn find(&mut self, peer: NodeId, device: DeviceId, handle: Handle) -> Option<&mut Held> {
        let ours = handle.incarnation == self.incarnation;
        let held = self.held.get_mut(&handle.number).filter(|_| ours)?;
        (held.peer == peer && held.device == device).then_some(held)
    }

    fn remove(&mut self, number: u64) -> Option<Hold> {
        let held = self.held.remove(&number)?;
        self.places -= held.chunks.len();
        if let Some(own) = self.per_peer.get_mut(&held.peer) {
            own.handles -= 1;
            own.places -= held.chunks.len();
            if own.handles == 0 {
                self.per_peer.remove(&held.peer);
            }
        }
        Some(held.hold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId([1; 16]);
    const B: NodeId = NodeId([2; 16]);
    const DEVICE: DeviceId = DeviceId([9; 16]);
    const T: Duration = Duration::from_secs(1000);

    fn chunks() -> Arc<[Location]> {
        [Location { segment: 1, offset: 8, len: 16 }].into()
    }

    fn keep(handles: &mut Handles, peer: NodeId, now: Duration) -> Result<Handle, Full> {
        handles.keep(peer, DEVICE, chunks(), Arc::new(()), now)
    }

    #[test]
    fn a_handle_serves_its_peer_and_device_alone() {
        let mut handles = Handles::new(7);
        let handle = keep(&mut handles, A, T).unwrap();
        assert!(handles.chunk(A, DEVICE, handle, 0, T).unwrap().is_some());
        assert!(handles.chunk(A, DEVICE, handle, 1, T).unwrap().is_none(), "no such chunk");
        assert!(handles.chunk(B, DEVICE, handle, 0, T).is_none());
        assert!(handles.chunk(A, DeviceId([8; 16]), handle, 0, T).is_none());
        assert!(handles.chunk(A, DEVICE, Handle { incarnation: 6, ..handle }, 0, T).is_none());
        assert!(handles.close(B, DEVICE, handle).is_none());
        assert!(handles.close(A, DEVICE, handle).is_some());
        assert!(handles.chunk(A, DEVICE, handle, 0, T).is_none());
    }

    #[test]
    fn a_lease_ends_unless_it_is_used() {
        let mut handles = Handles::new(7);
        let (idle, used) = (keep(&mut handles, A, T).unwrap(), keep(&mut handles, A, T).unwrap());
        assert!(handles.chunk(A, DEVICE, used, 0, T + LEASE / 2).is_some());
        assert!(handles.chunk(A, DEVICE, idle, 0, T + LEASE).is_none(), "also before anybody cleans up");
        assert_eq!(handles.expire(T + LEASE).len(), 1);
        assert_eq!(handles.expire(T + LEASE).len(), 0);
        assert!(handles.chunk(A, DEVICE, used, 0, T + LEASE).is_some());
    }

    #[test]
    fn handles_are_limited_for_one_peer_and_for_all() {
        let mut handles = Handles::new(7);
        for _ in 0..HANDLES_PER_PEER {
            keep(&mut handles, A, T).unwrap();
        }
        assert_eq!(keep(&mut handles, A, T), Err(Full));
        let mut peer = 0u64;
        while handles.len() < MAX_HANDLES {
            peer += 1;
            let mut id = [0xff; 16];
            id[..8].copy_from_slice(&peer.to_le_bytes());
            keep(&mut handles, NodeId(id), T).unwrap();
        }
        assert_eq!(keep(&mut handles, B, T), Err(Full));
        assert_eq!(handles.expire(T + LEASE).len(), MAX_HANDLES);
        assert!(keep(&mut handles, A, T + LEASE).is_ok());
        assert_eq!(handles.per_peer.len(), 1, "peers without handles are forgotten");
    }

    /// A thousand handles are little, but each keeps the places of its object's chunks: those of the largest object are 128 MiB.
    #[test]
    fn places_of_chunks_are_limited_for_one_peer_and_for_all() {
        let mut handles = Handles::new(7);
        let place = Location { segment: 1, offset: 8, len: 16 };
        let half: Arc<[Location]> = vec![place; PLACES_PER_PEER / 2].into();
        let mut keep = |peer, now| handles.keep(peer, DEVICE, Arc::clone(&half), Arc::new(()), now);
        let first = keep(A, T).unwrap();
        keep(A, T).unwrap();
        assert_eq!(keep(A, T), Err(Full));
        keep(B, T).unwrap();
        keep(B, T).unwrap();
        let other = NodeId([3; 16]);
        assert_eq!(keep(other, T), Err(Full), "of all");
        assert!(handles.close(A, DEVICE, first).is_some());
        let again = handles.keep(other, DEVICE, Arc::clone(&half), Arc::new(()), T);
        assert!(again.is_ok(), "what is let go counts no more");
        assert_eq!(handles.expire(T + LEASE).len(), 4);
        assert_eq!((handles.places, handles.per_peer.len()), (0, 0));
    }
}
