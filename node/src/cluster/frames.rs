//! Messages on a byte stream, whichever it is; and the room that peers have in this node's memory.
//!
//! Invariant: nothing is allocated for a message before its lengths are known to be within their limits and there is room.
//! Invariant: room is given back when the answer is written, or the call is dropped.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quarry_engine::io::aligned_bytes;
use quarry_engine::net::limits::{
    CALLS_PER_PEER, FIXED, INBOUND_BYTES_ALL, INBOUND_LARGE_BYTES, SMALL_REQUEST,
};
use quarry_engine::net::wire::{self, Direction, Lengths, Message, WireError};
use quarry_engine::net::{NodeId, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A message up to this size is sent in one piece, at the price of a copy.
const ONE_PIECE: usize = 64 << 10;

/// Why no message came.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// The stream ended or broke.
    #[error(transparent)]
    Stream(#[from] io::Error),
    /// What came is no message.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// The room of all peers.
#[derive(Debug)]
pub(super) struct Rooms {
    all: Arc<Semaphore>,
    connections: usize,
    /// One for each node of the cluster that ever called.
    peers: Mutex<HashMap<NodeId, Arc<Room>>>,
}

/// The room of one peer.
#[derive(Debug)]
pub(super) struct Room {
    all: Arc<Semaphore>,
    /// Of requests that are not small.
    bytes: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    /// Its connections.
    pub(super) connections: Arc<Semaphore>,
}

/// A place in the room for one request.
#[derive(Debug)]
pub(super) struct Place(
    #[expect(dead_code, reason = "its drop gives the room back")] [OwnedSemaphorePermit; 3],
);

impl Rooms {
    /// A peer may have so many connections.
    pub(super) fn new(connections: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(INBOUND_BYTES_ALL)), connections, peers: Mutex::default() }
    }

    /// Others beside these: what all peers together may have is counted once.
    pub(super) fn beside(&self, connections: usize) -> Self {
        Self { all: Arc::clone(&self.all), connections, peers: Mutex::default() }
    }

    /// That of a peer.
    pub(super) fn of(&self, peer: NodeId) -> Arc<Room> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let room = peers.entry(peer).or_insert_with(|| {
            let semaphore = |n| Arc::new(Semaphore::new(n));
            Arc::new(Room {
                all: Arc::clone(&self.all),
                bytes: semaphore(INBOUND_LARGE_BYTES),
                calls: semaphore(CALLS_PER_PEER),
                connections: semaphore(self.connections),
            })
        });
        Arc::clone(room)
    }
}

impl Room {
    /// Waits for room: the peer waits too, because nobody reads its stream.
    async fn place(&self, bytes: usize) -> io::Result<Place> {
        // Their calls bound the small ones.
        let bytes = if bytes <= SMALL_REQUEST { 0 } else { bytes };
        let bytes = u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let call = Arc::clone(&self.calls).acquire_owned().await.map_err(closed)?;
        let own = Arc::clone(&self.bytes).acquire_many_owned(bytes).await.map_err(closed)?;
        let all = Arc::clone(&self.all).acquire_many_owned(bytes).await.map_err(closed)?;
        Ok(Place([call, own, all]))
    }
}

/// A request, how long its caller waits, and its place.
pub(super) async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
    fixed: [u8; FIXED],
    room: &Room,
) -> Result<(Result<Request, WireError>, Duration, Place), FrameError> {
    let lengths = wire::lengths(Direction::Request, &fixed)?;
    let place = room.place(lengths.message()).await?;
    let (head, payload) = read_parts(stream, lengths).await?;
    Ok((wire::decode_request(&head, payload), lengths.within, place))
}

/// A response.
pub(super) async fn read_response(stream: &mut (impl AsyncRead + Unpin)) -> Result<Response, FrameError> {
    let fixed = read_fixed(stream).await?;
    let lengths = wire::lengths(Direction::Response, &fixed)?;
    let (head, payload) = read_parts(stream, lengths).await?;
    Ok(wire::decode_response(&head, payload)?)
}

/// The first bytes of a message.
pub(super) async fn read_fixed(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; FIXED]> {
    let mut fixed = [0; FIXED];
    stream.read_exact(&mut fixed).await?;
    Ok(fixed)
}

async fn read_parts(stream: &mut (impl AsyncRead + Unpin), lengths: Lengths) -> io::Result<(Vec<u8>, Bytes)> {
    let mut head = vec![0; lengths.head];
    stream.read_exact(&mut head).await?;
    // Where it lies well for the disk that it may go to.
    let mut payload = aligned_bytes(lengths.payload);
    let mut rest = stream.take(lengths.payload as u64);
    while payload.len() < lengths.payload {
        if rest.read_buf(&mut payload).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((head, payload.freeze()))
}

/// Sends a message and flushes.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), message: Message) -> io::Result<()> {
    for chunk in in_pieces(message) {
        stream.write_all(&chunk).await?;
    }
    stream.flush().await
}

/// Large payloads as they are, small messages in one piece.
pub(super) fn in_pieces(message: Message) -> Vec<Bytes> {
    let len = message.len();
    let chunks = message.into_chunks();
    if chunks.len() == 1 || len > ONE_PIECE {
        return chunks;
    }
    vec![chunks.concat().into()]
}
