//! Disk images of users.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use quarry_engine::io::SplitMix64;
use quarry_node::qcow2::{Act, BadImage, HEADER, MOST, Piece, Reader, Span, Step, Stream};

use super::super::Target;
use super::as_is;

/// An image in qcow2.
pub(super) const QCOW2: Target = Target { name: "qcow2", run: read, seeds, mend, words: &[] };

/// The same, while it comes.
pub(super) const STREAM: Target = Target { name: "qcow2-stream", run: stream, seeds, mend, words: &[] };

/// The volume that it is read into.
const VOLUME: u64 = 64 << 20;
/// A step may make one cluster, from as much again.
const LARGEST: u64 = 4 << 20;

fn part(image: &[u8], span: Span) -> Bytes {
    assert!(span.bytes <= LARGEST + 512, "{} bytes are wanted at once", span.bytes);
    Bytes::copy_from_slice(image.get(range(span)).expect("what is wanted lies in the image"))
}

fn range(Span { at, bytes }: Span) -> Range<usize> {
    let place = |at| usize::try_from(at).expect("an image fits memory");
    place(at)..place(at + bytes)
}

fn read(image: &[u8]) {
    let header = &image[..image.len().min(HEADER)];
    let Ok(mut reader) = Reader::new(header, image.len() as u64) else { return };
    if reader.bytes() > VOLUME {
        return;
    }
    // Each step but the last one is a cluster or a table, and those have 512 bytes at least.
    let (mut steps, mut behind) = (0, 0);
    while let Ok(Some(step)) = reader.step() {
        steps += 1;
        assert!(steps <= VOLUME / 512 + VOLUME / 512 / 64 + 2, "it does not end");
        match step {
            Step::Want(span) => reader.told(part(image, span)),
            Step::Write(piece) => {
                assert!(piece.at >= behind && piece.bytes <= MOST.max(LARGEST / 2));
                behind = piece.at + piece.bytes;
                assert!(behind <= reader.bytes(), "it is written beyond the disk");
                if let Ok(data) = piece.made_of(part(image, piece.from)) {
                    assert_eq!(data.len() as u64, piece.bytes);
                }
            }
        }
    }
}

/// What a disk has, by place.
type Disk = BTreeMap<u64, Bytes>;

fn write(disk: &mut Disk, piece: Piece, bytes: Bytes) -> Result<(), BadImage> {
    let made = piece.made_of(bytes)?;
    assert!(disk.insert(piece.at, made).is_none(), "{} is written twice", piece.at);
    Ok(())
}

/// Parts that were kept of an image, and which of its bytes those are.
struct Kept {
    bytes: Vec<u8>,
    there: Vec<bool>,
}

impl Kept {
    fn keep(&mut self, at: u64, bytes: &[u8]) {
        let range = range(Span { at, bytes: bytes.len() as u64 });
        self.bytes[range.clone()].copy_from_slice(bytes);
        self.there[range].fill(true);
    }

    fn take(&self, span: Span) -> Option<Bytes> {
        let range = range(span);
        let all = self.there[range.clone()].iter().all(|there| *there);
        all.then(|| Bytes::copy_from_slice(&self.bytes[range]))
    }
}

/// The disk, of an image that comes in parts of this length; `None`: it has parts over one another that were not kept.
fn streamed(image: &[u8], length: usize) -> Result<Option<Disk>, BadImage> {
    let (mut stream, mut disk) = (Stream::new(image.len() as u64), Disk::new());
    let mut kept = Kept { bytes: vec![0; image.len()], there: vec![false; image.len()] };
    for part in image.chunks(length) {
        stream.feed(part)?;
        if stream.bytes().is_some_and(|bytes| bytes > VOLUME) {
            return Ok(None);
        }
        while let Some(act) = stream.act()? {
            match act {
                Act::Write(piece, bytes) => write(&mut disk, piece, bytes)?,
                Act::Keep(at, bytes) => {
                    assert_eq!(bytes, image[range(Span { at, bytes: bytes.len() as u64 })]);
                    kept.keep(at, &bytes);
                }
            }
        }
    }
    let mut reader = stream.end()?;
    while let Some(step) = reader.step()? {
        let (Step::Want(span) | Step::Write(Piece { from: span, .. })) = step;
        let Some(bytes) = kept.take(span) else { return Ok(None) };
        match step {
            Step::Want(_) => reader.told(bytes),
            Step::Write(piece) => write(&mut disk, piece, bytes)?,
        }
    }
    Ok(Some(disk))
}

fn whole(image: &[u8]) -> Result<Disk, BadImage> {
    let mut reader = Reader::new(&image[..image.len().min(HEADER)], image.len() as u64)?;
    let mut disk = Disk::new();
    while let Some(step) = reader.step()? {
        match step {
            Step::Want(span) => reader.told(part(image, span)),
            Step::Write(piece) => write(&mut disk, piece, part(image, piece.from))?,
        }
    }
    Ok(disk)
}

fn stream(image: &[u8]) {
    let length = 1 + image
        .iter()
        .take(4096)
        .fold(image.len(), |sum: usize, byte| (sum * 31 + usize::from(*byte)) % 9000);
    if let Ok(Some(disk)) = streamed(image, length) {
        assert!(whole(image).is_ok_and(|other| other == disk), "it is another disk than the whole image's");
    }
}

/// Two that QEMU made, plain and compressed, and a small one with what it makes seldom: clusters of zeroes, and a disk that ends within its last one.
fn seeds(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let plain = include_bytes!("../../../../node/src/qcow2/fixtures/plain.qcow2");
    let packed = include_bytes!("../../../../node/src/qcow2/fixtures/packed.qcow2");
    vec![plain.to_vec(), packed.to_vec(), small(0)]
}

/// Clusters of 512 bytes, one of them compressed, one zeroed; the tables so far behind.
fn small(behind: usize) -> Vec<u8> {
    let mut image = vec![0; behind + 8 * 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &9_u32.to_be_bytes());
    put(24, &(130_u64 * 512 - 100).to_be_bytes());
    put(36, &3_u32.to_be_bytes());
    put(40, &(behind as u64 + 512).to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    for (nth, table) in [(0, 1024), (2, 1536)] {
        put(behind + 512 + nth * 8, &(1 << 63 | (behind as u64 + table)).to_be_bytes());
    }
    // Two in a row, a stored block of deflate, zeroes; the disk's last cluster.
    let packed = 1_u64 << 62 | 1 << 61 | 3000;
    for (nth, entry) in [1 << 63 | 2048, 1 << 63 | 2560, packed, 1].into_iter().enumerate() {
        put(behind + 1024 + nth * 8, &u64::to_be_bytes(entry));
    }
    put(behind + 1536 + 8, &(1_u64 << 63 | 2048).to_be_bytes());
    put(2048, &[7; 600]);
    put(3000, &[1, 0, 2, 0xff, 0xfd]);
    put(3005, &[9; 512]);
    image
}

/// The magic and the version, and places that lie in the image.
fn mend(image: &mut Vec<u8>) {
    if image.len() < HEADER {
        return as_is(image);
    }
    image[..4].copy_from_slice(b"QFI\xfb");
    image[4..7].fill(0);
    image[7] = 2 + image[7] % 2;
    image[8..16].fill(0);
    image[32..36].fill(0);
    image[72..80].fill(0);
    // A volume of the size that is looked at.
    image[24..28].fill(0);
    image[28] &= 3;
    image[20..23].fill(0);
    if !(9..=21).contains(&image[23]) {
        image[23] = 9 + image[23] % 13;
    }
    image[36..38].fill(0);
    image[40..46].fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_streamed_is_the_disk_wherever_its_tables_are() {
        // At last one whose tables come when what they tell of has left the window: longer than what is changed at random.
        for image in [seeds(&mut SplitMix64::new(0)), vec![small(6 << 20)]].concat() {
            let disk = whole(&image).unwrap();
            assert!(!disk.is_empty());
            for length in [1, 4096, image.len()] {
                assert_eq!(
                    streamed(&image, length).unwrap().as_ref(),
                    Some(&disk),
                    "{} by {length}",
                    image.len()
                );
            }
        }
    }
}
