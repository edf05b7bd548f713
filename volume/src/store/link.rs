//! How a head's messages reach a member, here or on another node.
//!
//! Invariant: writes to a member, and what begins or ends their order, are sent one message after the other, so that none
//! overtakes another; writes that came during the last message go together. One that is to be durable before anything else is done is flushed
//! by the same message.
//! Invariant: a member on this node is called, not sent to.
//! Invariant: what waits to be sent to one member is bounded, and what belongs to a session that ended is not sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quarry_engine::block::{Fence, Position, Run, VolumeId};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{BlockWrite, NodeId, Request, Response, Timer, Transport, VolumeAnswer, VolumeCall};
use tokio::sync::mpsc;

use super::bodies::Kept;
use super::members::Members;
use crate::head::{Message, Session};

/// How long a member may take to answer.
pub(super) const WITHIN: Duration = Duration::from_secs(3);
/// Most writes and bytes of one message.
const GATHERED: usize = 64;
const GATHERED_BYTES: usize = 1 << 20;
/// Most bytes that wait to be sent to a member, each message counted with some more: one that is further behind is filled anew.
const MOST_BEHIND: u64 = 64 << 20;
const MESSAGE_BYTES: u64 = 512;

/// Where a device is.
pub type Whereabouts = Arc<dyn Fn(DeviceId) -> Option<NodeId> + Send + Sync>;

/// What members are reached by.
#[derive(Clone)]
pub struct Reach {
    /// Those on this node.
    pub members: Arc<Members>,
    /// Other nodes; `None`: there are none.
    pub net: Option<Arc<dyn Transport>>,
    /// Which node has a device.
    pub node_of: Whereabouts,
    /// Ends what takes too long.
    pub timer: Timer,
    /// Shared by all heads of the node.
    pub kept: Arc<Kept>,
}

impl std::fmt::Debug for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reach").finish_non_exhaustive()
    }
}

/// Nothing is known of what became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unanswered;

impl Reach {
    /// Runs this beside its caller.
    pub(super) fn beside(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.members.beside(Box::pin(work));
    }

    /// Asks a member, for no longer than it may take.
    pub async fn ask(
        &self,
        to: Peer,
        fence: Fence,
        session: Session,
        call: VolumeCall,
    ) -> Result<VolumeAnswer, Unanswered> {
        let Peer { device, volume } = to;
        if self.members.has(device) {
            let answer = self.members.answer(device, volume, fence, session.0, call);
            let over = (self.timer)(WITHIN);
            return tokio::select! {
                biased;
                answer = answer => Ok(answer),
                () = over => Err(Unanswered),
            };
        }
        let (Some(net), Some(node)) = (&self.net, (self.node_of)(device)) else { return Err(Unanswered) };
        let request = Request::Volume { device, volume, fence, session: session.0, call };
        match net.call(node, request, WITHIN).await {
            Ok(Response::Volume(answer)) => Ok(answer),
            Ok(other) => {
                tracing::debug!(?other, "ask a member of a volume");
                Err(Unanswered)
            }
            Err(error) => {
                tracing::debug!(%error, "ask a member of a volume");
                Err(Unanswered)
            }
        }
    }
}

/// A member: the device, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where it is.
    pub device: DeviceId,
    /// Which volume.
    pub volume: VolumeId,
}

/// The bytes of a write.
#[derive(Debug, Clone)]
pub(super) struct Body {
    pub(super) run: Run,
    /// `None`: zeroes.
    pub(super) data: Option<Bytes>,
    /// The one in which it has got its place.
    pub(super) era: u32,
}

/// What goes to a member in order.
#[derive(Debug)]
pub(super) struct Ordered {
    pub(super) fence: Fence,
    pub(super) session: Session,
    pub(super) message: Message,
    /// Of a write.
    pub(super) body: Option<Body>,
    /// Of a write: what [`Message::Flush`] of it asks is asked with it.
    pub(super) flush: bool,
}

impl Ordered {
    fn bytes(&self) -> u64 {
        let data = self.body.as_ref().and_then(|body| body.data.as_ref());
        MESSAGE_BYTES + data.map_or(0, |data| data.len() as u64)
    }
}

/// What a driver and who sends for it both know of a member.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// The present session; 0: none.
    session: AtomicU64,
    waiting: AtomicU64,
}

impl Lane {
    pub(super) fn begin(&self, session: Session) {
        self.session.store(session.0, Ordering::Release);
    }

    /// Counts a message that is queued; false: it may not be.
    pub(super) fn takes(&self, message: &Ordered) -> bool {
        let bytes = message.bytes();
        let fits = self.waiting.load(Ordering::Acquire) + bytes <= MOST_BEHIND;
        if fits {
            self.waiting.fetch_add(bytes, Ordering::AcqRel);
        }
        fits
    }

    /// A message left the queue; false: it is not to be sent.
    fn left(&self, message: &Ordered) -> bool {
        self.waiting.fetch_sub(message.bytes(), Ordering::AcqRel);
        self.session.load(Ordering::Acquire) == message.session.0
    }
}

/// What came back: the messages that it answers.
pub(super) type Answered = (Session, Vec<Message>, Result<VolumeAnswer, Unanswered>);

/// Sends what comes, in order, until nobody sends any more.
pub(super) async fn pump(
    reach: Reach,
    to: Peer,
    lane: Arc<Lane>,
    mut queue: mpsc::UnboundedReceiver<Ordered>,
    answered: impl Fn(Answered) + Send,
) {
    let mut kept: Option<Ordered> = None;
    // A session that broke: what follows in it is not sent.
    let mut broken: Option<Session> = None;
    loop {
        let first = match kept.take() {
            Some(first) => first,
            None => match queue.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        if !lane.left(&first) || broken == Some(first.session) {
            continue;
        }
        let (fence, session) = (first.fence, first.session);
        let mut messages = vec![first.message.clone()];
        let call = match call_of(&first.message) {
            Some(call) => call,
            None => {
                let mut batch = Batch::default();
                batch.add(&first);
                match first.message {
                    Message::Write(sequence) if first.flush => messages.push(Message::Flush(sequence)),
                    _ => kept = gather(&mut batch, &mut messages, session, &lane, &mut queue),
                }
                batch.call(first.flush)
            }
        };
        let fills = matches!(call, VolumeCall::Fill { .. });
        let answer = reach.ask(to, fence, session, call).await;
        let done = match &answer {
            Ok(VolumeAnswer::Tight) => !fills,
            Ok(VolumeAnswer::Done | VolumeAnswer::Filling(_)) => true,
            _ => false,
        };
        if !done {
            broken = Some(session);
        }
        answered((session, messages, answer));
    }
}

/// Takes the writes that have come since; what is none of them is given back.
fn gather(
    batch: &mut Batch,
    messages: &mut Vec<Message>,
    session: Session,
    lane: &Lane,
    queue: &mut mpsc::UnboundedReceiver<Ordered>,
) -> Option<Ordered> {
    while batch.has_room() {
        match queue.try_recv() {
            Ok(next)
                if next.session == session && matches!(next.message, Message::Write(_)) && !next.flush =>
            {
                lane.left(&next);
                batch.add(&next);
                messages.push(next.message);
            }
            Ok(next) => return Some(next),
            Err(_) => return None,
        }
    }
    None
}

#[derive(Default)]
struct Batch {
    writes: Vec<BlockWrite>,
    parts: Vec<Bytes>,
    bytes: usize,
}

impl Batch {
    fn has_room(&self) -> bool {
        self.writes.len() < GATHERED && self.bytes < GATHERED_BYTES
    }

    fn add(&mut self, write: &Ordered) {
        let (Message::Write(sequence), Some(body)) = (&write.message, &write.body) else { return };
        let position = Position { epoch: write.fence.epoch, sequence: *sequence };
        let zeroes = body.data.is_none();
        self.writes.push(BlockWrite { position, run: body.run, era: body.era, zeroes });
        if let Some(data) = &body.data {
            self.bytes += data.len();
            self.parts.push(data.clone());
        }
    }

    fn call(self, flush: bool) -> VolumeCall {
        let data = match <[Bytes; 1]>::try_from(self.parts) {
            Ok([one]) => one,
            Err(parts) => {
                let mut whole = BytesMut::with_capacity(self.bytes);
                parts.iter().for_each(|part| whole.extend_from_slice(part));
                whole.freeze()
            }
        };
        VolumeCall::Write { writes: self.writes, data, flush }
    }
}

/// A message that carries no bytes, as it travels; `None`: it does.
pub(super) fn call_of(message: &Message) -> Option<VolumeCall> {
    let fields = |history: &crate::head::History| {
        history.turns().iter().map(|turn| (turn.epoch, turn.base)).collect::<Vec<_>>()
    };
    Some(match message {
        Message::Promise => VolumeCall::Promise,
        Message::Begin(history) => VolumeCall::Begin { turns: fields(history), end: history.end() },
        Message::Fill { common, after } => VolumeCall::Fill { common: *common, after: *after },
        Message::Join(history) => VolumeCall::Join { turns: fields(history), end: history.end() },
        Message::Flush(sequence) => VolumeCall::Flush(*sequence),
        Message::Confirm(_) => VolumeCall::Confirm,
        Message::Write(_) | Message::Read(..) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_member_is_bounded() {
        let lane = Lane::default();
        lane.begin(Session(4));
        let data = Some(Bytes::from(vec![1; 1 << 20]));
        let run = Run {
            slice: crate::geometry::SliceId(0),
            chunk: crate::geometry::ChunkId(0),
            first: 0,
            blocks: 256,
        };
        let one = |session| Ordered {
            fence: Fence { epoch: 1, configuration: 1 },
            session: Session(session),
            message: Message::Write(1),
            body: Some(Body { run, data: data.clone(), era: 0 }),
            flush: false,
        };
        let many = (0..100).filter(|_| lane.takes(&one(4))).count();
        assert_eq!(many, 63, "messages count too");
        assert!(lane.left(&one(4)) && lane.takes(&one(4)) && !lane.takes(&one(4)));
        lane.begin(Session(5));
        assert!(!lane.left(&one(4)), "of a session that ended");
    }
}
