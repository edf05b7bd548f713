//! The session of one connection, from the agreed [`Terms`] to its end. Pure: bytes and outcomes in, bytes and commands
//! out.
//!
//! Commands may be carried out at once and finished in any order: a client that cares waits for a reply before it sends
//! what depends on it.
//!
//! Invariant: every whole request gets exactly one reply, or the connection ends.
//! Invariant: no input is taken while more is owed than [`MAX_OWED`] or [`MAX_IN_FLIGHT`] commands are open.
//! Invariant: a refused request changes nothing, and its payload is let pass.
//! Invariant: after a disconnect no byte is taken; what is open is still finished and answered.

use std::sync::Arc;

use bytes::buf::Limit;
use bytes::{Buf, BufMut, BytesMut};
use quarry_engine::io::Slabs;

use super::export::Terms;
use super::limits::{MAX_IN_FLIGHT, MAX_OWED, status_bytes};
use super::outbox::Outbox;
use super::replies::{Outcome, Query, Replies, query};
use super::request::{Command, Header, Kind, Verdict, chosen_contexts, header, header_bytes, judge, place};
use super::wire::{Errno, command_flag};

/// What the caller is asked to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Carry it out, and give the ticket back with [`Session::finish`].
    Run(Ticket, Command),
    /// Take no more input; when all tickets are back, send the outbox and close.
    Disconnect,
    /// Close at once: the client does not keep to the protocol.
    Close(Violation),
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// No request's magic number.
    #[error("no request")]
    Magic,
    /// A payload longer than may be let pass.
    #[error("a payload of {0} bytes")]
    Flood(u64),
}

/// One open command. There is exactly one for each reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    query: Query,
    owed: usize,
}

/// One connection that has agreed.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    stage: Stage,
    partial: Vec<u8>,
    /// Bytes of payload that arrives, of payloads of open commands, and of reads and block statuses to come.
    owed: usize,
    open: usize,
    outbox: Outbox,
    /// Where payloads lie.
    memory: Arc<Slabs>,
}

#[derive(Debug)]
enum Stage {
    Header,
    /// The data of a write.
    Payload(Header, BytesMut, usize),
    /// The contexts of a block status.
    Contexts(Header, usize),
    Skip(Header, u64, Errno),
    Over,
}

impl Session {
    /// Begins; `unsent` is what the handshake has not sent yet.
    #[must_use]
    pub fn new(terms: Terms, unsent: Outbox) -> Self {
        let (stage, partial, memory) = (Stage::Header, Vec::new(), Arc::default());
        Self { terms, stage, partial, owed: 0, open: 0, outbox: unsent, memory }
    }

    /// With memory for payloads that it shares with others.
    #[must_use]
    pub fn with_memory(self, memory: Arc<Slabs>) -> Self {
        Self { memory, ..self }
    }

    /// What was agreed on.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// What is to be sent.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Commands whose tickets are not back.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open
    }

    /// Is input taken at present?
    #[must_use]
    pub fn takes_input(&self) -> bool {
        let room = self.open < MAX_IN_FLIGHT && self.owed + self.outbox.remaining() < MAX_OWED;
        match self.stage {
            Stage::Over => false,
            // What has begun is owed already.
            Stage::Payload(..) => true,
            Stage::Header | Stage::Contexts(..) | Stage::Skip(..) => room,
        }
    }

    /// After a disconnect: nothing is left to do but to close.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over) && self.open == 0 && !self.outbox.has_remaining()
    }

    /// Room for the rest of a payload, so that it need not be copied: read into it, and call [`Session::feed`] without
    /// bytes afterwards. `None` where no payload is awaited.
    pub fn payload_room(&mut self) -> Option<Limit<&mut BytesMut>> {
        match &mut self.stage {
            Stage::Payload(_, data, length) => {
                let left = *length - data.len();
                Some(data.limit(left))
            }
            _ => None,
        }
    }

    /// Takes bytes: how many, and what is asked for. Without an action all are taken, unless [`Session::takes_input`]
    /// says no.
    pub fn feed(&mut self, input: &[u8]) -> (usize, Option<Action>) {
        let mut rest = input;
        while self.takes_input() {
            let needed = self.needed();
            let (piece, behind) = rest.split_at(needed.min(rest.len()));
            rest = behind;
            match &mut self.stage {
                Stage::Payload(_, data, _) => data.extend_from_slice(piece),
                Stage::Skip(_, left, _) => *left -= piece.len() as u64,
                Stage::Header | Stage::Contexts(..) => self.partial.extend_from_slice(piece),
                Stage::Over => {}
            }
            if piece.len() < needed {
                break;
            }
            if let Some(action) = self.whole() {
                return (input.len() - rest.len(), Some(action));
            }
        }
        (input.len() - rest.len(), None)
    }

    /// Bytes until the stage's piece is whole.
    fn needed(&self) -> usize {
        match &self.stage {
            Stage::Header => header_bytes(self.terms.style) - self.partial.len(),
            Stage::Payload(_, data, length) => length - data.len(),
            Stage::Contexts(_, length) => length - self.partial.len(),
            Stage::Skip(_, left, _) => usize::try_from(*left).unwrap_or(usize::MAX),
            Stage::Over => 0,
        }
    }

    /// The stage's piece is there.
    fn whole(&mut self) -> Option<Action> {
        match std::mem::replace(&mut self.stage, Stage::Header) {
            Stage::Header => {
                let header = header(&self.partial, self.terms.style);
                self.partial.clear();
                self.header(header)
            }
            Stage::Payload(header, data, _) => {
                let durable = header.flags & command_flag::FUA != 0;
                let (offset, data) = (header.offset, data.freeze());
                // Owed since its first byte was awaited.
                self.owed -= data.len();
                let command = Command::Write { offset, data, durable };
                Some(self.run(query(Kind::Write, &header, &self.terms), command))
            }
            Stage::Contexts(header, _) => {
                let payload = std::mem::take(&mut self.partial);
                self.chosen(&header, &payload)
            }
            Stage::Skip(header, _, errno) => {
                self.refuse(&header, errno);
                None
            }
            Stage::Over => None,
        }
    }

    fn header(&mut self, header: Option<Header>) -> Option<Action> {
        let Some(header) = header else { return Some(self.close(Violation::Magic)) };
        match judge(&header, &self.terms) {
            Verdict::Disconnect => {
                self.stage = Stage::Over;
                return Some(Action::Disconnect);
            }
            Verdict::Flood(bytes) => return Some(self.close(Violation::Flood(bytes))),
            Verdict::Refuse(errno, 0) => self.refuse(&header, errno),
            Verdict::Refuse(errno, payload) => self.stage = Stage::Skip(header, payload, errno),
            Verdict::Payload(length) => {
                let length = length as usize;
                self.owed += length;
                // Where it lies well for the disk that it will go to.
                self.stage = Stage::Payload(header, self.memory.take(length), length);
            }
            Verdict::Contexts(length) => self.stage = Stage::Contexts(header, length as usize),
            Verdict::Run(kind, None) => {
                let query = query(kind, &header, &self.terms);
                self.replies().reply(&query, Outcome::Done);
            }
            Verdict::Run(kind, Some(command)) => {
                return Some(self.run(query(kind, &header, &self.terms), command));
            }
        }
        None
    }

    /// A block status whose payload is there.
    fn chosen(&mut self, header: &Header, payload: &[u8]) -> Option<Action> {
        let chosen = chosen_contexts(payload, &self.terms).and_then(|(length, chosen)| {
            place(header.offset, length, Kind::BlockStatus, &self.terms)?;
            Ok((length, chosen))
        });
        let (length, chosen) = match chosen {
            Ok(chosen) => chosen,
            Err(errno) => {
                self.refuse(header, errno);
                return None;
            }
        };
        let contexts = chosen.iter().filter_map(|place| self.terms.contexts.get(*place)).cloned().collect();
        let mut query = query(Kind::BlockStatus, header, &self.terms);
        query.length = length;
        query.contexts = chosen.iter().filter_map(|place| u32::try_from(place + 1).ok()).collect();
        let one = query.one;
        Some(self.run(query, Command::BlockStatus { offset: header.offset, length, contexts, one }))
    }

    fn run(&mut self, query: Query, command: Command) -> Action {
        let owed = match &command {
            Command::Read { length, .. } => *length as usize,
            Command::Write { data, .. } => data.len(),
            Command::BlockStatus { length, contexts, one, .. } => status_bytes(contexts.len(), *length, *one),
            _ => 0,
        };
        self.owed += owed;
        self.open += 1;
        Action::Run(Ticket { query, owed }, command)
    }

    fn close(&mut self, violation: Violation) -> Action {
        self.stage = Stage::Over;
        Action::Close(violation)
    }

    fn refuse(&mut self, header: &Header, errno: Errno) {
        self.replies().error(header.cookie, header.offset, errno);
    }

    fn replies(&mut self) -> Replies<'_> {
        Replies { style: self.terms.style, out: &mut self.outbox }
    }

    /// A command came to its end.
    ///
    /// Panics if the outcome is none of its kind, or does not cover the request: our bug.
    #[expect(clippy::needless_pass_by_value, reason = "a ticket is given back once")]
    pub fn finish(&mut self, ticket: Ticket, outcome: Outcome) {
        self.open -= 1;
        self.owed -= ticket.owed;
        self.replies().reply(&ticket.query, outcome);
    }
}

#[cfg(test)]
#[path = "tests/session_tests.rs"]
mod tests;
