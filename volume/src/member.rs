//! A member of a slice: what it has promised, and which writes and reads it therefore takes. Pure: events in,
//! actions out.
//!
//! The caller carries out actions in order on one log, and reports completions in order. A member is at
//! one [`Position`]: it holds exactly the head's writes up to there.
//!
//! Invariant: completed promise <= highest promise. Whatever is below the highest is refused, reads too, from the
//! moment a higher promise is asked for; the promise is answered only when it is durable.
//! Invariant: durable <= written <= accepted, and accepted grows by one sequence at a time.
//! Invariant: in a new epoch nothing is accepted before the head has named the position on which it builds, and it is
//! the member's own: two histories never join.
//! Invariant: after a failed write or flush everything is refused for good.

use std::collections::VecDeque;

pub use quarry_engine::block::{Fence, Position};

/// Requests of each kind that may wait for the disk.
pub const MAX_WAITING: usize = 1024;

/// The caller's name for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What happens to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A head asks to be promised that lower fences are refused.
    Promise(Token, Fence),
    /// A promised head names the history that it continues, before its first write.
    Begin(Token, Fence, Position),
    /// A write with its sequence. The caller keeps the payload.
    Write(Token, Fence, u64),
    /// A read.
    Read(Token, Fence),
    /// Make everything written so far durable.
    Flush(Token, Fence),
    /// [`Action::Persist`] is durable, and so is all that the log holds before it.
    Persisted(Fence),
    /// [`Action::Append`] of this sequence has its place in the log: nothing that comes later is there without it.
    Appended(u64),
    /// Everything up to this sequence is durable.
    Flushed(u64),
    /// A write or flush failed, whichever: the disk is taken out.
    Failed,
}

/// What the caller does next, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Log the promise and flush, then report [`Event::Persisted`].
    Persist(Fence),
    /// Log this write, then report [`Event::Appended`].
    Append(Token, Position),
    /// Flush, then report [`Event::Flushed`] with this sequence.
    Flush(u64),
    /// Serve this read from what is written.
    Serve(Token),
    /// Tell the head.
    Answer(Token, Answer),
}

/// What a head is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Lower fences are refused from now on, crash or not. All of the member's history, durable.
    Promised(Position),
    /// The member stands where the head builds.
    Begun,
    /// Appended.
    Written,
    /// Durable.
    Flushed,
    /// Not done, and why.
    Refused(Refusal),
}

/// Why a member does not do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A higher promise was asked for.
    #[error("fenced by a newer head: epoch {}, configuration {}", .0.epoch, .0.configuration)]
    Fenced(Fence),
    /// Under this fence nothing is promised yet.
    #[error("ask for the promise first")]
    NotPromised,
    /// Under this epoch no history is named yet.
    #[error("name the history first")]
    NotBegun,
    /// Another history than the one to be continued: resync first.
    #[error("the member is at epoch {}, sequence {}", .0.epoch, .0.sequence)]
    Elsewhere(Position),
    /// Not the next sequence, which is this.
    #[error("the next sequence is {0}")]
    OutOfOrder(u64),
    /// [`MAX_WAITING`] requests wait.
    #[error("too many requests wait for the disk")]
    Busy,
    /// The disk has failed.
    #[error("the disk is out")]
    Out,
}

/// A member of one slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The highest promise asked for; not durable yet while `promises` has it.
    highest: Fence,
    /// The highest promise that is durable.
    promised: Fence,
    /// Epoch whose head has begun.
    begun: Option<u64>,
    /// The last write handed to the log.
    accepted: Position,
    written: u64,
    durable: u64,
    out: bool,
    promises: VecDeque<(Token, Fence, Position)>,
    writes: VecDeque<(Token, u64)>,
    flushes: VecDeque<(Token, u64)>,
}

impl Member {
    /// As the log tells after a start: the highest promise and the last write found, which the caller has flushed
    /// before it relies on them. A head that had begun must begin again, for later writes may be lost.
    #[must_use]
    pub fn recovered(promised: Fence, last: Position) -> Self {
        Self {
            highest: promised,
            promised,
            begun: None,
            accepted: last,
            written: last.sequence,
            durable: last.sequence,
            out: false,
            promises: VecDeque::new(),
            writes: VecDeque::new(),
            flushes: VecDeque::new(),
        }
    }

    /// The highest promise that was asked for: a new head asks for more.
    #[must_use]
    pub fn highest(&self) -> Fence {
        self.highest
    }

    /// What to do about an event.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let request = match event {
            Event::Promise(token, fence) => (token, self.promise(token, fence)),
            Event::Begin(token, fence, base) => (token, self.begin(token, fence, base)),
            Event::Write(token, fence, sequence) => (token, self.write(token, fence, sequence)),
            Event::Read(token, fence) => (token, self.admit(fence).map(|()| vec![Action::Serve(token)])),
            Event::Flush(token, fence) => (token, self.flush(token, fence)),
            Event::Persisted(_) | Event::Appended(_) | Event::Flushed(_) if self.out => return Vec::new(),
            Event::Persisted(fence) => return self.persisted(fence),
            Event::Appended(sequence) => return self.appended(sequence),
            Event::Flushed(sequence) => return self.flushed(sequence),
            Event::Failed => return self.fail(),
        };
        match request {
            (_, Ok(actions)) => actions,
            (token, Err(refusal)) => vec![Action::Answer(token, Answer::Refused(refusal))],
        }
    }

    /// May a request under this fence be served?
    fn admit(&self, fence: Fence) -> Result<(), Refusal> {
        self.not_below(fence)?;
        if fence == self.promised { Ok(()) } else { Err(Refusal::NotPromised) }
    }

    fn not_below(&self, fence: Fence) -> Result<(), Refusal> {
        if self.out {
            return Err(Refusal::Out);
        }
        if fence.epoch < self.highest.epoch || fence.configuration < self.highest.configuration {
            return Err(Refusal::Fenced(self.highest));
        }
        Ok(())
    }

    fn promise(&mut self, token: Token, fence: Fence) -> Result<Vec<Action>, Refusal> {
        self.not_below(fence)?;
        if fence == self.promised && self.promises.is_empty() {
            // Durable already, but the history it is answered with may not be: log it once more.
            if self.durable == self.accepted.sequence {
                return Ok(vec![Action::Answer(token, Answer::Promised(self.accepted))]);
            }
        }
        room(self.promises.len())?;
        self.highest = fence;
        // Lower fences are refused from here on, so that this is all the history they can ever have.
        self.promises.push_back((token, fence, self.accepted));
        Ok(vec![Action::Persist(fence)])
    }

    fn begin(&mut self, token: Token, fence: Fence, base: Position) -> Result<Vec<Action>, Refusal> {
        self.admit(fence)?;
        if base != self.accepted {
            return Err(Refusal::Elsewhere(self.accepted));
        }
        self.begun = Some(fence.epoch);
        Ok(vec![Action::Answer(token, Answer::Begun)])
    }

    fn write(&mut self, token: Token, fence: Fence, sequence: u64) -> Result<Vec<Action>, Refusal> {
        self.admit(fence)?;
        if self.begun != Some(fence.epoch) {
            return Err(Refusal::NotBegun);
        }
        let next = self.accepted.sequence.saturating_add(1);
        if sequence != next || sequence == u64::MAX {
            return Err(Refusal::OutOfOrder(next));
        }
        room(self.writes.len())?;
        self.accepted = Position { epoch: fence.epoch, sequence };
        self.writes.push_back((token, sequence));
        Ok(vec![Action::Append(token, self.accepted)])
    }

    fn flush(&mut self, token: Token, fence: Fence) -> Result<Vec<Action>, Refusal> {
        self.admit(fence)?;
        let goal = self.accepted.sequence;
        if self.durable >= goal {
            return Ok(vec![Action::Answer(token, Answer::Flushed)]);
        }
        room(self.flushes.len())?;
        self.flushes.push_back((token, goal));
        Ok(vec![Action::Flush(goal)])
    }

    fn persisted(&mut self, fence: Fence) -> Vec<Action> {
        let (token, asked, history) =
            self.promises.pop_front().expect("only what was asked for is persisted");
        assert_eq!(asked, fence, "promises are persisted in order");
        self.promised = fence;
        // The log is one: what stood before the promise is durable with it.
        assert!(
            history.sequence <= self.written,
            "the log completes in order: first the writes, then the promise"
        );
        self.durable = self.durable.max(history.sequence);
        vec![Action::Answer(token, Answer::Promised(history))]
    }

    /// A write accepted before a newer promise is still answered: it is in the history that the newer head is given.
    fn appended(&mut self, sequence: u64) -> Vec<Action> {
        let (token, expected) = self.writes.pop_front().expect("only what was accepted is appended");
        assert_eq!(sequence, expected, "writes are appended in order");
        self.written = sequence;
        vec![Action::Answer(token, Answer::Written)]
    }

    fn flushed(&mut self, sequence: u64) -> Vec<Action> {
        assert!(sequence <= self.written, "the log completes in order: first the write, then its flush");
        self.durable = self.durable.max(sequence);
        let done = self.flushes.iter().take_while(|(_, goal)| *goal <= self.durable).count();
        self.flushes.drain(..done).map(|(token, _)| Action::Answer(token, Answer::Flushed)).collect()
    }

    fn fail(&mut self) -> Vec<Action> {
        self.out = true;
        let promises = self.promises.drain(..).map(|(token, ..)| token);
        let writes = self.writes.drain(..).map(|(token, _)| token);
        let flushes = self.flushes.drain(..).map(|(token, _)| token);
        let waiting = promises.chain(writes).chain(flushes);
        waiting.map(|token| Action::Answer(token, Answer::Refused(Refusal::Out))).collect()
    }
}

fn room(waiting: usize) -> Result<(), Refusal> {
    if waiting < MAX_WAITING { Ok(()) } else { Err(Refusal::Busy) }
}

#[cfg(test)]
#[path = "member_tests.rs"]
mod tests;
