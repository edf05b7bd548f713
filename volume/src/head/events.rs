//! What a head is told, and what it has its caller do.

use super::{Configuration, DeviceId, Message, Reply, Report, Session};
use crate::member::{Fence, Token};

/// Writes that are not acknowledged, at most; others wait.
pub const MAX_OPEN: u64 = 1024;

/// Requests that may wait for their turn, at most.
pub const MAX_REQUESTS: usize = 8192;

/// What is decided elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Fewer members than these never are a configuration, unless an operator decides so: requests wait instead.
    pub least: usize,
    /// Acknowledged writes whose bytes are kept, at most, while some member has them not durably, so that one which was away for a moment need not
    /// be filled.
    pub keep: u64,
    /// Reads go there if they can.
    pub near: Option<DeviceId>,
}

/// When a write is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// A quorum has it.
    Written,
    /// A quorum has it and all before it durably: FUA, notes.
    Durable,
}

/// What happens to a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client's write, trim, or note.
    Write(Token, Until),
    /// A client reads.
    Read(Token),
    /// A client wants all that was answered to be durable.
    Flush(Token),
    /// One has wanted it and seen by itself that it was ([`super::Head::reach`]).
    Synced,
    /// All that came before is to be durable, also writes for which nobody waits any more. Nothing comes until it is answered.
    Settle(Token),
    /// A request has waited as long as it may.
    Expired(Token),
    /// A member's answer in a session; for [`Reply::Promised`] the new one.
    Reply(DeviceId, Session, Reply),
    /// What was sent to a member, or its answer, is lost, or it took too long: nothing is known of the session any more.
    Lost(DeviceId, Session),
    /// A member that is [`super::Standing::Silent`] may be there again: ask it. Said from time to time while it is, also after it
    /// refused something.
    Reachable(DeviceId),
    /// A member has been away for as long as it may.
    Overdue(DeviceId),
    /// [`Action::Fill`] has sent everything; the newest sequence that it sent, or zero.
    Filled(DeviceId, Session, u64),
    /// [`Action::Fill`] cannot go on for a reason of the target's. If the source refuses or says nothing, that is its [`Event::Reply`] or
    /// [`Event::Lost`].
    NotFilled(DeviceId, Session),
    /// [`Action::Fill`] cannot go on: the source cannot read what it should send. It stays a member, and another one may be able to. The target is
    /// asked anew when it is said to be reachable.
    NoRows(DeviceId, Session),
    /// Bytes of writes up to this sequence are too much to be kept for members that are away, in so far as they were answered.
    Spare(u64),
    /// [`Action::Change`] is committed.
    Changed(u32),
    /// [`Action::Change`] can never be: another head, which acts under this, was first.
    NotChanged(Fence),
    /// Whether a member's disk has so little room that clients shall write no more while it counts. Said before what is known of it
    /// since makes it count.
    Tight(DeviceId, bool),
    /// An operator wants one more member.
    Add(DeviceId),
    /// An operator wants a member to go.
    Remove(DeviceId),
    /// An operator has decided that what this member has is the volume, whatever was acknowledged beside it.
    Decide(DeviceId),
    /// Make all durable, take nothing new, and tell: another node goes on.
    HandOver(Token),
}

/// What the caller does next, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Tell a member, under the head's fence. The token in [`Action::Place`] says what a write is.
    Send(DeviceId, Session, Message),
    /// A request has got this sequence. Its bytes are kept until [`Action::Release`].
    Place(Token, u64),
    /// Bytes of writes up to this sequence are needed no more.
    Release(u64),
    /// Copy rows, as the head of the module says; then report [`Event::Filled`], [`Event::NotFilled`] or
    /// [`Event::NoRows`].
    Fill {
        /// A whole member, in this session: rows that it has in another one are not to be sent, for a restart may have lost the
        /// newest of them.
        source: (DeviceId, Session),
        /// To whom.
        target: DeviceId,
        /// The target's.
        session: Session,
        /// Up to here both have the same, if the target has kept what it had; otherwise everything is sent.
        common: u64,
    },
    /// End what [`Action::Fill`] does in this session.
    StopFill(DeviceId, Session),
    /// Commit this in the control group, if the epoch and the version before it still stand; ask until the outcome is known.
    Change(Configuration),
    /// A request has come to its end.
    Answer(Token, Result<Done, Failure>),
    /// The volume needs an operator: what is known of each member. Tell, and go on reporting who is reachable.
    Undecided(Vec<(DeviceId, Option<Report>)>),
    /// It needs none any more: whose history it is was decided, or found, as a member came back.
    Decided,
    /// The head serves. A caller that must know what the base holds (its snapshots) hands in writes from here on.
    Serving,
    /// The head is none any more; all requests have been answered.
    Stopped(Failure),
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// As much as was asked for.
    Written,
    /// All that was answered before is durable.
    Flushed,
    /// Give the client what this member read.
    Read(DeviceId),
    /// All up to this sequence is durable, and nothing came after it.
    HandedOver(u64),
}

/// Why a request failed, or a head ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A newer head has the volume.
    #[error("fenced by a newer head: epoch {}", .0.epoch)]
    Fenced(Fence),
    /// It was handed over.
    #[error("the volume is handed over")]
    HandedOver,
    /// Too few members answered within the time.
    #[error("too few members of the volume answer")]
    TooFew,
    /// No member can read it.
    #[error("no member can read these blocks")]
    Unreadable,
    /// Members have lost writes that were acknowledged and not flushed.
    #[error("writes after sequence {0} were lost before they were flushed")]
    Lost(u64),
    /// A member has no room. Said by who carries the head out, before the write has a place.
    #[error("a member of the volume has no room")]
    NoSpace,
    /// More requests wait than may.
    #[error("too many requests wait")]
    Busy,
}
