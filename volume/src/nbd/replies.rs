//! Replies, in the form that was agreed on.
//!
//! Invariant: a reply to a read covers the request exactly once, in ascending order, or is one error.
//! Invariant: with structured or extended replies every reply ends with a chunk that says so.

use bytes::Bytes;

use super::export::{Style, Terms};
use super::limits::MAX_EXTENTS;
use super::outbox::Outbox;
use super::request::Kind;
use super::wire::{EXTENDED_REPLY_MAGIC, Errno, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};

/// A part of what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Bytes.
    Data(Bytes),
    /// As many zeroes that take no space.
    Hole(u32),
}

impl Part {
    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Hole(length) => *length as usize,
        }
    }
}

/// Consecutive bytes of one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many, at least one.
    pub length: u64,
    /// What the context says of them.
    pub status: u32,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// What was read, in order and whole.
    Data(Vec<Part>),
    /// For each context of the command its extents from the offset on.
    Status(Vec<Vec<Extent>>),
    /// Not done.
    Failed(Errno),
}

/// What a reply must repeat or know of its request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) kind: Kind,
    pub(super) cookie: u64,
    /// As in the header.
    pub(super) offset: u64,
    /// Of the effect.
    pub(super) length: u64,
    /// In one piece.
    pub(super) whole: bool,
    /// One extent.
    pub(super) one: bool,
    /// Numbers of the contexts that are answered.
    pub(super) contexts: Vec<u32>,
}

/// Writes replies of one form.
#[derive(Debug)]
pub(super) struct Replies<'a> {
    pub(super) style: Style,
    pub(super) out: &'a mut Outbox,
}

impl Replies<'_> {
    pub(super) fn reply(&mut self, query: &Query, outcome: Outcome) {
        match (query.kind, outcome) {
            (_, Outcome::Failed(errno)) => self.error(query.cookie, query.offset, errno),
            (Kind::Read, Outcome::Data(parts)) => self.data(query, parts),
            (Kind::BlockStatus, Outcome::Status(lists)) => self.status(query, &lists),
            (Kind::BlockStatus, Outcome::Done) => panic!("a block status has extents"),
            (Kind::Read, Outcome::Done) if query.length > 0 => panic!("a read has data"),
            (_, Outcome::Done) => self.done(query),
            (kind, outcome) => panic!("{outcome:?} is no outcome of a {kind:?}"),
        }
    }

    pub(super) fn error(&mut self, cookie: u64, offset: u64, errno: Errno) {
        match self.style {
            Style::Simple => self.simple(cookie, errno.number()),
            Style::Structured | Style::Extended => {
                self.chunk(cookie, offset, chunk::DONE, chunk::ERROR, 6);
                self.out.put_u32(errno.number());
                self.out.put_u16(0);
            }
        }
    }

    fn done(&mut self, query: &Query) {
        match self.style {
            Style::Simple => self.simple(query.cookie, 0),
            Style::Structured | Style::Extended => {
                self.chunk(query.cookie, query.offset, chunk::DONE, chunk::NONE, 0);
            }
        }
    }

    fn simple(&mut self, cookie: u64, errno: u32) {
        self.out.put_u32(SIMPLE_REPLY_MAGIC);
        self.out.put_u32(errno);
        self.out.put_u64(cookie);
    }

    fn chunk(&mut self, cookie: u64, offset: u64, flags: u16, kind: u16, length: usize) {
        let extended = self.style == Style::Extended;
        self.out.put_u32(if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC });
        self.out.put_u16(flags);
        self.out.put_u16(kind);
        self.out.put_u64(cookie);
        if extended {
            self.out.put_u64(offset);
            self.out.put_u64(length as u64);
        } else {
            self.out.put_u32(u32::try_from(length).expect("chunks are short"));
        }
    }

    fn data(&mut self, query: &Query, mut parts: Vec<Part>) {
        parts.retain(|part| part.bytes() > 0);
        let covered: usize = parts.iter().map(Part::bytes).sum();
        assert_eq!(covered as u64, query.length, "a read covers the request");
        match self.style {
            Style::Simple => {
                self.simple(query.cookie, 0);
                parts.into_iter().for_each(|part| self.part(part));
            }
            Style::Structured | Style::Extended if query.whole => {
                self.chunk(query.cookie, query.offset, chunk::DONE, chunk::OFFSET_DATA, 8 + covered);
                self.out.put_u64(query.offset);
                parts.into_iter().for_each(|part| self.part(part));
            }
            Style::Structured | Style::Extended => self.pieces(query, parts),
        }
    }

    fn part(&mut self, part: Part) {
        match part {
            Part::Data(data) => self.out.put_data(data),
            Part::Hole(length) => self.out.put_zeroes(length as usize),
        }
    }

    /// A chunk for every run of data and every run of holes.
    fn pieces(&mut self, query: &Query, parts: Vec<Part>) {
        let mut offset = query.offset;
        let end = query.offset + query.length;
        let mut parts = parts.into_iter().peekable();
        while let Some(first) = parts.next() {
            let hole = matches!(first, Part::Hole(_));
            let mut length = first.bytes();
            let mut run = vec![first];
            while let Some(more) = parts.next_if(|part| matches!(part, Part::Hole(_)) == hole) {
                length += more.bytes();
                run.push(more);
            }
            let flags = if offset + length as u64 == end { chunk::DONE } else { 0 };
            if hole {
                self.chunk(query.cookie, query.offset, flags, chunk::OFFSET_HOLE, 12);
                self.out.put_u64(offset);
                self.out.put_u32(u32::try_from(length).expect("reads are short"));
            } else {
                self.chunk(query.cookie, query.offset, flags, chunk::OFFSET_DATA, 8 + length);
                self.out.put_u64(offset);
                run.into_iter().for_each(|part| self.part(part));
            }
            offset += length as u64;
        }
    }

    fn status(&mut self, query: &Query, lists: &[Vec<Extent>]) {
        assert_eq!(lists.len(), query.contexts.len(), "a list for every context");
        let last = lists.len().saturating_sub(1);
        if lists.is_empty() {
            return self.done(query);
        }
        for (number, (id, list)) in query.contexts.iter().zip(lists).enumerate() {
            let extents = tidy(list, query.length, if query.one { 1 } else { MAX_EXTENTS });
            assert!(!extents.is_empty(), "a block status has extents");
            let flags = if number == last { chunk::DONE } else { 0 };
            if self.style == Style::Extended {
                let length = 8 + 16 * extents.len();
                self.chunk(query.cookie, query.offset, flags, chunk::BLOCK_STATUS_EXT, length);
                self.out.put_u32(*id);
                self.out.put_u32(u32::try_from(extents.len()).expect("few extents"));
                for Extent { length, status } in extents {
                    self.out.put_u64(length);
                    self.out.put_u64(status.into());
                }
            } else {
                let length = 4 + 8 * extents.len();
                self.chunk(query.cookie, query.offset, flags, chunk::BLOCK_STATUS, length);
                self.out.put_u32(*id);
                for Extent { length, status } in extents {
                    self.out.put_u32(u32::try_from(length).expect("not longer than the request"));
                    self.out.put_u32(status);
                }
            }
        }
    }
}

/// The extents with neighbours of one status joined, within the request, and at most so many.
fn tidy(list: &[Extent], length: u64, most: usize) -> Vec<Extent> {
    let mut tidied: Vec<Extent> = Vec::new();
    let mut left = length;
    for extent in list {
        let length = extent.length.min(left);
        left -= length;
        if length == 0 {
            continue;
        }
        let full = tidied.len() == most;
        match tidied.last_mut() {
            Some(before) if before.status == extent.status => before.length += length,
            _ if full => break,
            _ => tidied.push(Extent { length, ..*extent }),
        }
    }
    tidied
}

/// What the reply to an admitted header must know.
pub(super) fn query(kind: Kind, header: &super::request::Header, terms: &Terms) -> Query {
    use super::wire::command_flag::{DF, REQ_ONE};
    let contexts =
        if kind == Kind::BlockStatus { (1..).take(terms.contexts.len()).collect() } else { Vec::new() };
    Query {
        kind,
        cookie: header.cookie,
        offset: header.offset,
        length: header.length,
        whole: header.flags & DF != 0,
        one: header.flags & REQ_ONE != 0,
        contexts,
    }
}
