//! An image taken apart while it comes: what a table told of goes straight to where it belongs on the disk.
//!
//! A table may also lie behind what it tells of. So while there are tables that were not seen yet, what no other table told of is to be
//! kept; when all has come, the rest is taken from that.
//!
//! Invariant: each byte of the disk is written once, whether from what comes or from what was kept.
//! Invariant: at most [`WINDOW`] and two clusters of the image are in memory, besides what was fed last, and [`MOST_WANTS`] places.
//! Invariant: once every table was seen, nothing more is kept.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, Bytes, BytesMut};

use super::layout::{BadImage, HEADER, Layout};
use super::read::{Again, MOST, Piece, Reader, Span, Table, first_span, inside};

/// What came stays for so many bytes: a table a little behind what it tells of is as good as one before it.
const WINDOW: u64 = 4 << 20;
/// Bytes that leave the window at once.
const LEAVING: u64 = 1 << 20;
const _: () = assert!(WINDOW >= 2 * MOST);
/// Places of an image that are waited for, or looked at again, at a time.
const MOST_WANTS: usize = 1 << 19;
/// Ranges of the window that were told of, before those that touch are joined: then they are few, for they are sectors at least.
const MOST_TOLD: usize = 1 << 16;
/// What is compressed begins and ends anywhere, but its place is said in these.
const SECTOR: u64 = 512;

/// What is to be done with bytes of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// They are to be written, once [made](Piece::made_of) a piece.
    Write(Piece, Bytes),
    /// They may be wanted from where they are in the image.
    Keep(u64, Bytes),
}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
enum Want {
    /// Entries of the first table, from this one on.
    First(u64),
    Second(u64),
    Piece(Piece),
}

/// An image on its way.
#[derive(Debug)]
pub struct Stream {
    /// Bytes that it shall have.
    image: u64,
    layout: Option<Layout>,
    window: BytesMut,
    /// Where the window begins.
    from: u64,
    /// By the place where they end, and their number.
    wants: BTreeMap<(u64, u64), (Span, Want)>,
    number: u64,
    /// Tables that are waited for.
    tables: usize,
    /// Parts of the window, or of what is behind it, that some table told of.
    told: Vec<(u64, u64)>,
    again: VecDeque<Again>,
    /// Tables of which nothing was taken are among those.
    unseen: bool,
    /// From this entry of the first table on nothing was taken.
    rest: u64,
    acts: VecDeque<Act>,
}

impl Stream {
    /// Of an image that shall have so many bytes.
    #[must_use]
    pub fn new(image: u64) -> Self {
        Self {
            image,
            layout: None,
            window: BytesMut::new(),
            from: 0,
            wants: BTreeMap::new(),
            number: 0,
            tables: 0,
            told: Vec::new(),
            again: VecDeque::new(),
            unseen: false,
            rest: u64::MAX,
            acts: VecDeque::new(),
        }
    }

    /// Bytes of the disk, as soon as they are known.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        self.layout.map(|layout| layout.bytes)
    }

    /// What came next. [`act`](Self::act) says what is to be done.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), BadImage> {
        self.window.extend_from_slice(bytes);
        if self.came() > self.image {
            return Err(BadImage("it is longer than it shall be"));
        }
        if self.layout.is_none() && self.came() >= self.image.min(HEADER as u64) {
            let layout = Layout::parse(self.window.get(..HEADER).unwrap_or(&self.window))?;
            self.layout = Some(layout);
            self.want_first(&layout, 0)?;
        }
        Ok(())
    }

    /// The next thing to be done with what came so far.
    pub fn act(&mut self) -> Result<Option<Act>, BadImage> {
        let Some(layout) = self.layout else { return Ok(None) };
        loop {
            if let Some(act) = self.acts.pop_front() {
                return Ok(Some(act));
            }
            let came = self.came();
            let Some(first) = self.wants.first_entry().filter(|first| first.key().0 <= came) else {
                self.leave();
                return Ok(self.acts.pop_front());
            };
            let (span, want) = first.remove();
            let bytes = self.part(span);
            match want {
                Want::Piece(piece) => {
                    self.tell(of_its_own(&piece));
                    return Ok(Some(Act::Write(piece, bytes)));
                }
                Want::First(nth) => {
                    self.tables -= 1;
                    self.tell(span);
                    self.first(&layout, nth, span, &bytes)?;
                }
                Want::Second(nth) => {
                    self.tables -= 1;
                    self.tell(span);
                    self.second(&layout, nth, span, bytes)?;
                }
            }
        }
    }

    /// That was all, and all that was to be done with it is: what is to be taken from what was kept.
    pub fn end(self) -> Result<Reader, BadImage> {
        let layout =
            self.layout.filter(|_| self.came() == self.image).ok_or(BadImage("it ends too early"))?;
        assert!(self.wants.is_empty(), "all of them end within the image");
        Ok(Reader::rest(layout, self.image, self.again, self.rest))
    }

    fn came(&self) -> u64 {
        self.from + self.window.len() as u64
    }

    /// A part of the window.
    fn part(&self, Span { at, bytes }: Span) -> Bytes {
        let from = usize::try_from(at - self.from).expect("a window fits memory");
        let bytes = usize::try_from(bytes).expect("a window fits memory");
        Bytes::copy_from_slice(&self.window[from..from + bytes])
    }

    fn tell(&mut self, Span { at, bytes }: Span) {
        self.told.push((at, at + bytes));
        if self.told.len() >= MOST_TOLD {
            self.told = joined(std::mem::take(&mut self.told));
        }
    }

    fn want(&mut self, span: Span, want: Want) {
        assert!(span.at >= self.from, "it has left the window");
        self.wants.insert((span.at + span.bytes, self.number), (span, want));
        self.number += 1;
    }

    /// Waits for entries of the first table; they lie in a row.
    fn want_first(&mut self, layout: &Layout, nth: u64) -> Result<(), BadImage> {
        if nth < layout.second_tables() {
            let span = first_span(layout, self.image, nth)?;
            self.tables += 1;
            self.want(span, Want::First(nth));
        }
        Ok(())
    }

    /// Whether so many more may be waited for, or looked at again.
    fn has_room(&self, more: usize) -> bool {
        self.wants.len() + self.again.len() + more <= MOST_WANTS
    }

    fn first(&mut self, layout: &Layout, nth: u64, span: Span, entries: &[u8]) -> Result<(), BadImage> {
        let (entries, _) = entries.as_chunks::<8>();
        if !self.has_room(entries.len()) {
            // Nothing of it, or of what is behind it, is taken before all is there.
            (self.rest, self.unseen) = (nth, true);
            self.acts.push_back(Act::Keep(span.at, self.part(span)));
            return Ok(());
        }
        for (entry, nth) in entries.iter().zip(nth..) {
            let Some(place) = Layout::table(u64::from_be_bytes(*entry)) else { continue };
            let span = inside(self.image, place, layout.cluster())?;
            if place < self.from {
                self.unseen = true;
                self.again.push_back(Again { nth, place, before: u64::MAX });
            } else {
                self.tables += 1;
                self.want(span, Want::Second(nth));
            }
        }
        self.want_first(layout, nth + entries.len() as u64)
    }

    fn second(&mut self, layout: &Layout, nth: u64, span: Span, bytes: Bytes) -> Result<(), BadImage> {
        let mut table = Table::new(layout, nth, bytes.clone());
        // How far what is late reaches.
        let (mut pieces, mut late) = (Vec::new(), None);
        let mut before = self.from;
        while let Some(piece) = table.next(layout, self.image)? {
            if piece.from.at < self.from {
                late = late.max(Some(piece.from.at + piece.from.bytes));
            } else if self.has_room(pieces.len() + 1) {
                pieces.push(piece);
            } else {
                (before, self.unseen) = (u64::MAX, true);
                pieces.clear();
                break;
            }
        }
        if late.is_some() || before == u64::MAX {
            self.again.push_back(Again { nth, place: span.at, before });
            self.acts.push_back(Act::Keep(span.at, bytes));
        }
        // It began before the window, which is longer than it.
        if let Some(bytes) = late.and_then(|end| end.checked_sub(self.from)).filter(|bytes| *bytes > 0) {
            self.acts.push_back(Act::Keep(self.from, self.part(Span { at: self.from, bytes })));
        }
        for piece in pieces {
            self.want(piece.from, Want::Piece(piece));
        }
        Ok(())
    }

    /// Lets the window's beginning go, at last all of it; what may be wanted of it is kept.
    fn leave(&mut self) {
        let cluster = self.layout.map_or(0, |layout| layout.cluster());
        let stays = WINDOW.max(2 * cluster + SECTOR);
        // Whole blocks of whatever keeps them.
        let to = if self.came() == self.image {
            self.image
        } else {
            self.came().saturating_sub(stays) / LEAVING * LEAVING
        };
        if to <= self.from {
            return;
        }
        self.told = joined(std::mem::take(&mut self.told));
        if self.tables > 0 || self.unseen {
            let mut at = self.from;
            let told: Vec<_> = self.told.iter().copied().take_while(|(begins, _)| *begins < to).collect();
            for (begins, ends) in told.into_iter().chain([(to, to)]) {
                if begins > at {
                    self.acts.push_back(Act::Keep(at, self.part(Span { at, bytes: begins - at })));
                }
                at = at.max(ends);
            }
        }
        self.told.retain(|(_, ends)| *ends > to);
        self.window.advance(usize::try_from(to - self.from).expect("a window fits memory"));
        self.from = to;
    }
}

/// The same ranges, in order, none beside or over another one.
fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    ranges.dedup_by(|(begins, ends), (_, before)| {
        let joins = *begins <= *before;
        if joins {
            *before = (*before).max(*ends);
        }
        joins
    });
    ranges
}

/// The part of a piece's bytes that is surely no other one's: what is compressed shares its first and last sector.
fn of_its_own(piece: &Piece) -> Span {
    let Span { at, bytes } = piece.from;
    if piece.packed.is_none() {
        return piece.from;
    }
    let (begins, ends) = (at.next_multiple_of(SECTOR), (at + bytes - 1) / SECTOR * SECTOR);
    Span { at: begins, bytes: ends.saturating_sub(begins) }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
