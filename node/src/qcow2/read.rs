//! The disk of an image, taken out of it piece by piece: each step says what is to be read of the image, or written to the disk.
//!
//! Invariant: what is to be read lies in the image, and takes at most [`MOST`] bytes or two clusters and a sector.
//! Invariant: pieces come in the disk's order, lie in the disk, and none lies over another one: they may be written side by side.
//! Invariant: there are at most as many steps as the disk has clusters and tables, whatever the image says.

use std::collections::VecDeque;

use bytes::Bytes;

use super::layout::{BadImage, Cluster, Layout, expand};

/// Clusters that lie in a row are one piece, of at most so many bytes.
pub const MOST: u64 = 1 << 20;
/// Entries of the first table that are read at once.
const ENTRIES: u64 = 8192;

/// Bytes of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where they begin.
    pub at: u64,
    /// How many.
    pub bytes: u64,
}

/// A part of the disk that does not read as zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it is on the disk.
    pub at: u64,
    /// How many bytes of the disk.
    pub bytes: u64,
    /// What it is made of.
    pub from: Span,
    /// Bytes of the cluster that was compressed.
    pub(super) packed: Option<u64>,
}

impl Piece {
    /// Its bytes, made of those that it is [`from`](Self::from).
    pub fn made_of(&self, bytes: Bytes) -> Result<Bytes, BadImage> {
        let Some(cluster) = self.packed else { return Ok(bytes) };
        let mut whole = expand(cluster, &bytes)?;
        whole.truncate(usize::try_from(self.bytes).unwrap_or(usize::MAX));
        Ok(whole)
    }
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// These bytes are to be [told](Reader::told).
    Want(Span),
    /// This is to be written.
    Write(Piece),
}

/// What was asked for.
#[derive(Debug)]
enum Asked {
    Nothing,
    First,
    Second(u64),
}

/// A second table, and the clusters that it tells of still.
#[derive(Debug)]
pub(super) struct Table {
    bytes: Bytes,
    clusters: std::ops::Range<u64>,
}

/// A second table that is to be looked at once more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Again {
    /// Which of the disk's.
    pub(super) nth: u64,
    /// Where it is.
    pub(super) place: u64,
    /// What lies from here on in the image was taken already.
    pub(super) before: u64,
}

/// An image that is being read.
#[derive(Debug)]
pub struct Reader {
    layout: Layout,
    /// Its bytes.
    image: u64,
    /// Tables that come before the others.
    again: VecDeque<Again>,
    /// Of the present table what lies before this is to be had.
    before: u64,
    /// Entries of the first table, from this one on.
    entries: Bytes,
    nth: u64,
    table: Option<Table>,
    asked: Asked,
}

impl Reader {
    /// Of an image of so many bytes, of which these are the first ([`HEADER`](super::HEADER), or all).
    pub fn new(header: &[u8], image: u64) -> Result<Self, BadImage> {
        let layout = Layout::parse(header)?;
        Ok(Self::rest(layout, image, VecDeque::new(), 0))
    }

    /// Of an image of which a part was taken already: of these tables what lies before they were seen, and all of those from `nth` on.
    pub(super) fn rest(layout: Layout, image: u64, again: VecDeque<Again>, nth: u64) -> Self {
        let (entries, table, asked) = (Bytes::new(), None, Asked::Nothing);
        Self { layout, image, again, before: u64::MAX, entries, nth, table, asked }
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.layout.bytes
    }

    /// The next step; `None`: that was all.
    pub fn step(&mut self) -> Result<Option<Step>, BadImage> {
        assert!(matches!(self.asked, Asked::Nothing), "what was wanted was not told");
        if let Some(piece) = self.piece()? {
            return Ok(Some(Step::Write(piece)));
        }
        if let Some(Again { nth, place, before }) = self.again.pop_front() {
            self.before = before;
            return self.want_second(nth, place).map(Some);
        }
        self.before = u64::MAX;
        while self.nth < self.layout.second_tables() {
            if self.entries.is_empty() {
                let span = first_span(&self.layout, self.image, self.nth)?;
                self.asked = Asked::First;
                return Ok(Some(Step::Want(span)));
            }
            let entry = self.entries.split_to(8);
            let entry = entry.first_chunk().map_or(0, |entry| u64::from_be_bytes(*entry));
            let nth = self.nth;
            self.nth += 1;
            if let Some(place) = Layout::table(entry) {
                return self.want_second(nth, place).map(Some);
            }
        }
        Ok(None)
    }

    fn want_second(&mut self, nth: u64, place: u64) -> Result<Step, BadImage> {
        self.asked = Asked::Second(nth);
        Ok(Step::Want(inside(self.image, place, self.layout.cluster())?))
    }

    /// The bytes that the last step wanted, all of them.
    pub fn told(&mut self, bytes: Bytes) {
        match std::mem::replace(&mut self.asked, Asked::Nothing) {
            Asked::Nothing => panic!("nothing was wanted"),
            Asked::First => self.entries = bytes,
            Asked::Second(nth) => self.table = Some(Table::new(&self.layout, nth, bytes)),
        }
    }

    /// The next piece that the second table tells of, of those that are still to be had.
    fn piece(&mut self) -> Result<Option<Piece>, BadImage> {
        let Some(table) = self.table.as_mut() else { return Ok(None) };
        while let Some(piece) = table.next(&self.layout, self.image)? {
            if piece.from.at < self.before {
                return Ok(Some(piece));
            }
        }
        self.table = None;
        Ok(None)
    }
}

impl Table {
    /// A second table of the disk's.
    pub(super) fn new(layout: &Layout, nth: u64, bytes: Bytes) -> Self {
        let first = nth * layout.per_table();
        Self { bytes, clusters: first..(first + layout.per_table()).min(layout.clusters()) }
    }

    /// The next piece that it tells of, in an image of so many bytes.
    pub(super) fn next(&mut self, layout: &Layout, image: u64) -> Result<Option<Piece>, BadImage> {
        let size = layout.cluster();
        while let Some(cluster) = self.clusters.next() {
            let at = cluster * size;
            let left = layout.bytes - at;
            return Ok(Some(match layout.look(&self.bytes, cluster)? {
                Cluster::Zeroes => continue,
                Cluster::Compressed(place, packed) => {
                    // Whole sectors, but for the image's last one.
                    let packed = packed.min(image.saturating_sub(place));
                    let from = inside(image, place, packed)?;
                    Piece { at, bytes: size.min(left), from, packed: Some(size) }
                }
                Cluster::Plain(place) => {
                    let mut whole = size;
                    while whole + size <= MOST
                        && !self.clusters.is_empty()
                        && layout.look(&self.bytes, self.clusters.start)? == Cluster::Plain(place + whole)
                    {
                        self.clusters.start += 1;
                        whole += size;
                    }
                    let bytes = whole.min(left);
                    Piece { at, bytes, from: inside(image, place, bytes)?, packed: None }
                }
            }));
        }
        Ok(None)
    }
}

/// Some entries of the first table, from one on.
pub(super) fn first_span(layout: &Layout, image: u64, nth: u64) -> Result<Span, BadImage> {
    let some = ENTRIES.min(layout.second_tables() - nth);
    inside(image, layout.place_of(nth)?, some * 8)
}

/// Bytes that lie in an image.
pub(super) fn inside(image: u64, at: u64, bytes: u64) -> Result<Span, BadImage> {
    let there = at.checked_add(bytes).is_some_and(|end| end <= image);
    if there { Ok(Span { at, bytes }) } else { Err(BadImage("it ends too early")) }
}

#[cfg(test)]
mod tests {
    use super::super::{CLUSTER, HEADER, Map, Plan};
    use super::*;

    /// All that is to be written, of an image in memory.
    fn pieces(image: &[u8]) -> Result<Vec<(u64, Bytes)>, BadImage> {
        let part = |span: Span| {
            let at = usize::try_from(span.at).unwrap();
            Bytes::copy_from_slice(&image[at..at + usize::try_from(span.bytes).unwrap()])
        };
        let mut reader = Reader::new(&image[..image.len().min(HEADER)], image.len() as u64)?;
        let mut all = Vec::new();
        while let Some(step) = reader.step()? {
            match step {
                Step::Want(span) => reader.told(part(span)),
                Step::Write(piece) => all.push((piece.at, piece.made_of(part(piece.from))?)),
            }
        }
        Ok(all)
    }

    /// An image of a disk that has bytes in these clusters, each with its own number.
    fn image(disk: u64, used: &[u64]) -> Vec<u8> {
        let mut map = Map::new(disk);
        used.iter().for_each(|cluster| map.mark(cluster * CLUSTER, 1));
        let plan = Plan::new(disk, map);
        let told = (0..plan.told()).flat_map(|number| plan.tell(number));
        let cluster = |cluster: &u64| vec![u8::try_from(cluster % 251).unwrap(); 1 << 16];
        told.chain(used.iter().flat_map(cluster)).collect()
    }

    #[test]
    fn clusters_in_a_row_are_one_piece_up_to_a_mebibyte() {
        let used: Vec<u64> = (3..40).chain([100, 9000]).collect();
        // The disk ends within its last cluster.
        let disk = 9001 * CLUSTER - 512;
        let found = pieces(&image(disk, &used)).unwrap();
        let sizes: Vec<_> = found.iter().map(|(at, bytes)| (at / CLUSTER, bytes.len() as u64)).collect();
        let expected = [(3, MOST), (19, MOST), (35, 5 * CLUSTER), (100, CLUSTER), (9000, CLUSTER - 512)];
        assert_eq!(sizes, expected);
        for (at, bytes) in found {
            for (bytes, cluster) in bytes.chunks(1 << 16).zip(at / CLUSTER..) {
                assert!(bytes.iter().all(|byte| u64::from(*byte) == cluster % 251), "{cluster}");
            }
        }
    }

    /// Made by `qemu-img convert` of the disk below: `-o cluster_size=512,compat=1.1`, and `-c -o cluster_size=1024,compat=0.10`.
    #[test]
    fn what_qemu_made_is_what_it_was_made_of() {
        let parts = [1024..3072, 8192..9216, 97_604..98_304];
        let byte = |at: usize| u8::try_from((at * 7 + at / 256 * 13) % 251).unwrap();
        let disk: Vec<u8> = (0..98_304)
            .map(|at| if parts.iter().any(|part| part.contains(&at)) { byte(at) } else { 0 })
            .collect();
        let images: [&[u8]; 2] =
            [include_bytes!("fixtures/plain.qcow2"), include_bytes!("fixtures/packed.qcow2")];
        for image in images {
            let mut found = vec![0; disk.len()];
            for (at, bytes) in pieces(image).unwrap() {
                let at = usize::try_from(at).unwrap();
                found[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            assert!(found == disk);
        }
    }

    #[test]
    fn what_lies_beyond_the_image_is_an_error() {
        let whole = image(64 << 20, &[0, 1, 5]);
        assert_eq!(pieces(&whole).unwrap().len(), 2);
        for cut in [0, 50, HEADER, 3 << 16, 4 << 16, whole.len() - 1] {
            assert!(pieces(&whole[..cut]).is_err(), "{cut} bytes");
        }
    }
}
