//! The head of a volume: the single writer over 1 to 5 members. Pure: events in, actions out.
//!
//! The caller carries messages, keeps the bytes of writes until [`Action::Release`], keeps the bytes that were read until
//! their answer, commits configurations in the control group, and knows the time: it reports who is overdue.
//!
//! # Attach
//!
//! The control group raises the volume's epoch by compare-and-set and says which configuration is committed. The head asks all for
//! their promise. When [`Configuration::seal`] members have promised, the longest history among them (highest epoch, then sequence) is the
//! base. A quorum begins on it, durably; from then on the head serves.
//!
//! Invariant: whatever was flushed before is in the base: a seal meets each quorum, and a newer epoch was begun on a base
//! that had it as well. Beginning is durable at a quorum before anything is read: what this head's clients were not shown does not
//! appear later.
//! Invariant: only members of the committed configuration are counted, never times or sizes (loss case 2). If they cannot
//! seal, or one that was being filled has acknowledged more than all that are whole, the volume is undecided (loss case 1).
//!
//! # Writes
//!
//! Writes, trims and notes (a snapshot) take consecutive sequences and go to all members in that order.
//!
//! Invariant: acknowledged: a quorum has it in its log. Flushed: a quorum said that it is durable past it. While a
//! change of the configuration is under way, both need a quorum of the old one and of the new one (loss case 5).
//! Invariant: a change is asked for only when a quorum of the new members has all that was acknowledged, and durably all that was
//! flushed.
//! Invariant: a member that refused, or whose flush failed, is not counted before it has promised anew (loss case 4).
//! Invariant: if acknowledged writes that were not flushed are lost by the members (several restarted), the head stops; it never lets a
//! later flush succeed.
//!
//! # Reads
//!
//! Invariant: a read is answered when a quorum has confirmed the fence after it came, so that no other head can have been
//! served by then (loss case 9); by a member that has all that was acknowledged when it came; and when what was read
//! is flushed, so that it does not vanish.
//!
//! # Filling a member
//!
//! A member that is not at the head's end, or that went another way, is filled while writes go on: it becomes not whole, durably; from then on it is
//! sent every write. Beside that all rows of a whole member (each block in each era) that lie above what both have in common
//! are sent, in the order of their places, and for each row that the target itself has from above it, whatever the source has there,
//! also if that is nothing. Such a row takes the place of one of the target's own that is void, and gives way to a write of this epoch.
//!
//! Invariant: when all was sent, and the target has the writes up to the newest row that was sent, it is whole. For take any block,
//! and the newest write to it up to there: it is below the common sequence and was there all the time; or it is a write that the target was
//! sent in order; or it was the source's row when that place was read, or the source's row was a newer one, which is no newer than
//! what the target has reached. Nothing else is there, for what was the target's own is void.
//! Invariant: a member that is not whole is never a base. What it acknowledged before it was filled still counts in a seal.

mod configuration;
mod history;
mod message;

pub use configuration::{Configuration, MAX_MEMBERS};
pub use history::{History, MAX_TURNS, Turn};
pub use message::{Message, Reply, Report, Session};
pub use quarry_engine::disk::format::record::DeviceId;

use crate::member::{Fence, Token};

/// Writes that are not acknowledged, at most; others wait.
pub const MAX_OPEN: u64 = 1024;

/// What is decided elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Fewer members than these never are a configuration, unless an operator decides so: requests wait instead.
    pub least: usize,
    /// Acknowledged writes whose bytes are kept, so that a member which was away for a moment need not be filled.
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
    /// A request has waited as long as it may.
    Expired(Token),
    /// A member's answer in a session; for [`Reply::Promised`] the new one.
    Reply(DeviceId, Session, Reply),
    /// What was sent to a member, or its answer, is lost, or it took too long: nothing is known of the session any more.
    Lost(DeviceId),
    /// A member may be there again: ask it.
    Reachable(DeviceId),
    /// A member has been away for as long as it may.
    Overdue(DeviceId),
    /// [`Action::Fill`] has sent everything; the newest sequence that it sent, or zero.
    Filled(DeviceId, Session, u64),
    /// [`Action::Fill`] cannot go on.
    NotFilled(DeviceId, Session),
    /// [`Action::Change`] is committed.
    Changed(u32),
    /// [`Action::Change`] can never be: another head, or an operator, was first.
    NotChanged,
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
    /// Copy rows, as the head of the module says; then report [`Event::Filled`] or [`Event::NotFilled`].
    Fill {
        /// A whole member that has all up to `after`.
        source: DeviceId,
        /// To whom.
        target: DeviceId,
        /// The target's.
        session: Session,
        /// Up to here both have the same.
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
    /// The head serves.
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
    /// More requests wait than may.
    #[error("too many requests wait")]
    Busy,
}
