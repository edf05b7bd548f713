//! Disk images of users.

use bytes::Bytes;
use quarry_engine::io::SplitMix64;
use quarry_node::qcow2::{HEADER, MOST, Reader, Span, Step};

use super::super::Target;
use super::as_is;

/// An image in qcow2.
pub(super) const QCOW2: Target = Target { name: "qcow2", run: read, seeds, mend, words: &[] };

/// The volume that it is read into.
const VOLUME: u64 = 64 << 20;
/// A step may make one cluster, from as much again.
const LARGEST: u64 = 4 << 20;

fn part(image: &[u8], span: Span) -> Bytes {
    assert!(span.bytes <= LARGEST + 512, "{} bytes are wanted at once", span.bytes);
    let at = usize::try_from(span.at).unwrap_or(usize::MAX);
    let end = at + usize::try_from(span.bytes).unwrap_or(usize::MAX);
    Bytes::copy_from_slice(image.get(at..end).expect("what is wanted lies in the image"))
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

/// Two that QEMU made, plain and compressed, and a small one with what it makes seldom: clusters of zeroes, and a disk that ends within its last one.
fn seeds(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let plain = include_bytes!("../../../../node/src/qcow2/fixtures/plain.qcow2");
    let packed = include_bytes!("../../../../node/src/qcow2/fixtures/packed.qcow2");
    vec![plain.to_vec(), packed.to_vec(), small()]
}

/// Clusters of 512 bytes, one of them compressed, one zeroed.
fn small() -> Vec<u8> {
    let mut image = vec![0; 8 * 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &9_u32.to_be_bytes());
    put(24, &(130_u64 * 512 - 100).to_be_bytes());
    put(36, &3_u32.to_be_bytes());
    put(40, &512_u64.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    for (nth, table) in [(0, 1024_u64), (2, 1536)] {
        put(512 + nth * 8, &(1 << 63 | table).to_be_bytes());
    }
    // Two in a row, a stored block of deflate, zeroes; the disk's last cluster.
    let packed = 1_u64 << 62 | 1 << 61 | 3000;
    for (nth, entry) in [1 << 63 | 2048, 1 << 63 | 2560, packed, 1].into_iter().enumerate() {
        put(1024 + nth * 8, &u64::to_be_bytes(entry));
    }
    put(1536 + 8, &(1_u64 << 63 | 2048).to_be_bytes());
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
