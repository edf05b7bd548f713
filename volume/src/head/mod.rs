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
//! seal, or one that was being filled has acknowledged more than all that are whole, the volume is undecided (loss case 1). An operator
//! may decide then that one member is the volume. That is committed before anything is done; the others do not count any more, but each may
//! be chosen instead while the first one has not begun. That one may have been left while it was filled, if it has kept what it had: it has what it
//! had acknowledged, and of what came later what it was sent.
//! Invariant: what such a one has is in nobody's history: nothing is common to it and any other member, and all others are filled with all
//! that it has.
//!
//! # Writes
//!
//! Writes and trims take consecutive sequences and go to all members in that order. Each says to which era it belongs. A snapshot is
//! the end of an era: all is made durable ([`Event::Settle`]), the control group counts on, and only then there are places again.
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
//! A member that is not at the head's end, or that went another way, is filled while writes go on: it becomes not whole, durably; from then
//! on it is sent every write. If it holds the beginning of the order and nothing else, it keeps that; otherwise what it has is void, and it
//! begins anew with nothing. Beside the writes all rows of a whole member (each block in each era, each snapshot) are sent that lie above
//! what the target has kept, in the order of their places, each as the write that it is: a newer row stays.
//!
//! Invariant: when all was sent, and the target has the writes up to the newest row that was sent, it is whole. For take any block,
//! and the newest write to it up to there: the target had kept it; or it was sent it in order; or it was the source's row when that place
//! was read, or the source's row was a newer one, which is no newer than what the target has reached. Nothing else is there.
//! Invariant: until a quorum follows the order no more whole members are filled than it needs: each that is would be no base for the next head, and
//! had nothing been acknowledged since, the loss of who fills them would be a loss of the volume.
//! Invariant: a member that is not whole is never a base, unless an operator decides so. What it acknowledged before it was filled still counts in a seal.

mod change;
mod configuration;
#[cfg(test)]
mod decision_tests;
mod events;
mod history;
mod message;
mod peer;
mod progress;
mod reading;
mod state;
#[cfg(test)]
mod tests;

pub use configuration::{Configuration, MAX_MEMBERS};
pub use events::{Action, Done, Event, Failure, MAX_OPEN, MAX_REQUESTS, Settings, Until};
pub(crate) use history::NO_SEQUENCE;
pub use history::{History, MAX_TURNS, Turn};
pub use message::{Message, Reply, Report, Session};
pub use peer::Standing;
pub use quarry_engine::disk::format::record::DeviceId;
pub use state::Head;
