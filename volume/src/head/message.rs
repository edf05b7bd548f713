//! What a head and its members say to each other. All of it is under the head's fence.
//!
//! A request has one answer, or none. Messages of one session may overtake each other on the way. [`Message::Flush`] and
//! [`Message::Read`] wait at the member for the write that they name, for as long as who asks does. A [`Message::Write`] needs the
//! one before, and the [`Message::Begin`] or [`Message::Fill`] of its session: a member may wait for them for a bounded time or refuse
//! at once, so that who carries a head out sends these one after the other. A second Begin or Fill of a session is refused.

use super::History;
use crate::member::{Refusal, Token};

/// A stretch of a member's life in which it forgets nothing: it makes a new one with each promise, and knows only that one.
/// Numbers are not given twice, also over restarts: what is on its way from before finds no ear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Session(pub u64);

/// What a member has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// All of it durable.
    pub history: History,
    /// It holds this and nothing else. Otherwise it was being filled: it acknowledged up to here, and what it has is no
    /// beginning of any order.
    pub whole: bool,
    /// It holds this, and more if it is not whole. Otherwise it was emptied to be filled, and has nothing of it.
    pub kept: bool,
}

/// What a head asks of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Refuse lower fences for good, and say what you have. The only one without a session.
    Promise,
    /// You hold the beginning of this history: continue it. Writes may follow at once. Said to one that is not whole, it is an operator's
    /// decision: what it has is the volume.
    Begin(History),
    /// You are not whole from now on: blocks are sent to you beside the writes that follow, the first of which comes after the
    /// sequence `after`. If you are whole and end at `common`, keep what you have. Otherwise it is void: drop it all.
    Fill {
        /// Up to here you have what the others have.
        common: u64,
        /// The write before the next.
        after: u64,
    },
    /// You have been sent everything: you are whole again, with this history up to your last write.
    Join(History),
    /// Take this write, or note, in the order.
    Write(u64),
    /// Make all up to this sequence durable.
    Flush(u64),
    /// Say that you are not promised to another.
    Confirm(u64),
    /// Read, as of this sequence or later.
    Read(Token, u64),
}

/// What a member answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To [`Message::Promise`], when it and all of the report is durable.
    Promised(Session, Report),
    /// To [`Message::Begin`], when it is durable.
    Begun,
    /// To [`Message::Fill`], when it is durable that the member is not whole. Who carries the rows is told with it whether it has kept
    /// what it had.
    Filling,
    /// To [`Message::Join`], when it and all that was sent before is durable.
    Joined,
    /// The write has its place in the log.
    Written(u64),
    /// All up to this sequence is durable: each disk under it said so.
    Flushed(u64),
    /// To [`Message::Confirm`].
    Confirmed(u64),
    /// What was read is on its way to who asked. The newest write in it, or zero: the head gives it away when that is durable.
    Read(Token, u64),
    /// A block's checksum is wrong, or the disk cannot read it.
    Unreadable(Token),
    /// No, whatever it was.
    Refused(Refusal),
}
