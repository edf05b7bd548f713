//! Every on-disk version ever released opens: an image of each lies in tests/fixtures.
//!
//! An image is kept as pieces: `offset u64 | len u32 | bytes`, little-endian, zeros left out.

use std::sync::Arc;

use super::kv::{Rig, SEGMENT};
use crate::disk::format::bytes::Reader;
use crate::index::MemoryIndex;
use crate::io::{BLOCK, CrashPlan, SimImage, SplitMix64};

const SEGMENTS: u64 = 12;
const V1: &[u8] = include_bytes!("../../../tests/fixtures/v1.image");

/// Key, version and value of everything in the image; `None`: deleted.
fn contents() -> Vec<(String, u64, Option<Vec<u8>>)> {
    let text = |n: u64| format!("value {n} ").repeat(usize::try_from(n * 13).unwrap()).into_bytes();
    let mut out: Vec<_> = (1..=12u64).map(|n| (format!("small{n}"), n, Some(text(n)))).collect();
    // Zeros cost nothing here, and fill a segment: one has a footer.
    out.extend((20..=36u64).map(|n| (format!("large{n}"), n, Some(vec![0; 1 << 20]))));
    out.push(("small3".to_owned(), 40, None));
    out.push(("small4".to_owned(), 41, Some(b"overwritten".to_vec())));
    out.push(("aligned".to_owned(), 42, Some(vec![7; 40_000])));
    out
}

fn build() -> SimImage {
    let mut rig = Rig::new(SEGMENTS, 1);
    for (key, version, value) in contents() {
        match value {
            Some(value) => rig.put(&key, version, &value).unwrap(),
            None => rig.delete(&key, version).unwrap(),
        };
    }
    let handle = rig.handle();
    if let Some(victim) = handle.victim(&[]) {
        rig.sim().run(handle.clean(victim)).unwrap();
    }
    rig.put_appended("never acknowledged", 50, b"in flight").unwrap();
    // Crashed, not closed: opening it takes the whole recovery.
    rig.crash(CrashPlan::KEEP_ALL, &mut SplitMix64::new(1));
    rig.image
}

fn pack(image: &SimImage) -> Vec<u8> {
    let mut out = Vec::new();
    for at in (0..(SEGMENTS + 1) * SEGMENT).step_by(BLOCK) {
        let block = image.peek(at, BLOCK);
        let Some(last) = block.iter().rposition(|b| *b != 0) else { continue };
        out.extend_from_slice(&at.to_le_bytes());
        out.extend_from_slice(&u32::try_from(last + 1).unwrap().to_le_bytes());
        out.extend_from_slice(&block[..=last]);
    }
    out
}

fn unpack(pieces: &[u8]) -> SimImage {
    let image = SimImage::new((SEGMENTS + 1) * SEGMENT, 1);
    let mut r = Reader::new(pieces);
    while !r.rest().is_empty() {
        let (at, len) = (r.u64().unwrap(), r.u32().unwrap());
        image.poke(at, r.take(len as usize).unwrap());
    }
    image
}

fn check(image: SimImage) {
    let mut rig = Rig { image, index: Arc::new(MemoryIndex::new()), sim: None };
    let report = rig.open();
    assert!(report.rebuilt.is_some() && report.damaged == 0 && report.lost.is_empty(), "{report:?}");
    let all = contents();
    for (key, version, value) in &all {
        if all.iter().any(|(other, newer, _)| other == key && newer > version) {
            continue;
        }
        let wanted = value.clone().map(|value| (*version, value.into()));
        assert!(rig.get(key).unwrap() == wanted, "{key}");
    }
    rig.put("new", 60, b"and it takes new records").unwrap();
    rig.sim = None;
    rig.open();
    assert!(rig.get("new").unwrap().is_some());
}

#[test]
fn an_image_of_version_1_opens_and_reads_whole() {
    check(unpack(V1));
}

#[test]
#[ignore = "writes the fixture anew: only for a new version of the format"]
fn write_the_fixture() {
    let image = build();
    let packed = pack(&image);
    assert!(packed.len() < 200 << 10, "{} bytes", packed.len());
    check(unpack(&packed));
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1.image");
    std::fs::write(path, packed).unwrap();
}
