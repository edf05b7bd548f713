//! Chunks that lie scattered, cleaned and brought into order; what is written meanwhile, and power cuts.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quarry_engine::block::{FIRST_PLACE, Layer, Lie, Mapped, View, VolumeId, bring, lie, take_hint, walk};
use quarry_engine::disk::DiskError;
use quarry_engine::io::SplitMix64;
use quarry_engine::work::{Orderer, Outcome, Worker};

use super::rig::Rig;
use crate::geometry::{ChunkId, SliceId};
use crate::store::Device;

const BLOCK: u64 = 4096;
const CHUNK: u64 = 1 << 20;
const CHUNKS: u64 = 6;
const BLOCKS: u64 = CHUNKS * CHUNK / BLOCK;

/// What blocks hold: the number of the write of each, 0 for zeroes.
type Model = BTreeMap<u64, u64>;

fn fill(block: u64, number: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    if number > 0 {
        SplitMix64::new(block << 32 | number).fill(&mut bytes);
    }
    bytes
}

fn write(rig: &mut Rig, device: &Device, model: &mut Model, block: u64, number: u64) {
    rig.run(device.write(block * BLOCK, Bytes::from(fill(block, number)))).unwrap();
    model.insert(block, number);
}

fn check(rig: &mut Rig, device: &Device, model: &Model, context: &str) {
    for chunk in 0..CHUNKS {
        let found = rig.read(device, chunk * CHUNK, CHUNK);
        for (block, bytes) in (chunk * CHUNK / BLOCK..).zip(found.chunks(4096)) {
            let number = model.get(&block).copied().unwrap_or(0);
            assert!(bytes == fill(block, number), "{context}: block {block} is not of write {number}");
        }
    }
}

/// A volume that was written in order, and then at random: `rounds` times as many blocks as it has.
fn scattered(seed: u64, rounds: u64) -> (Rig, Device, Model) {
    let mut rig = Rig::new(seed);
    rig.create("vol", 1);
    let device = rig.attach("vol");
    let mut model = Model::new();
    for chunk in 0..CHUNKS {
        let first = chunk * CHUNK / BLOCK;
        let bytes: Vec<u8> = (first..first + 256).flat_map(|block| fill(block, 1)).collect();
        rig.run(device.write(chunk * CHUNK, Bytes::from(bytes))).unwrap();
        model.extend((first..first + 256).map(|block| (block, 1)));
    }
    let mut rng = SplitMix64::new(seed);
    for number in 2..2 + rounds * BLOCKS {
        write(&mut rig, &device, &mut model, rng.below(BLOCKS), number);
    }
    rig.run(device.flush()).unwrap();
    (rig, device, model)
}

fn view(chunk: u16) -> View {
    let layer = Layer { volume: VolumeId([1; 16]), era: u32::MAX };
    View { layer, slice: SliceId(0), chunk: ChunkId(chunk) }
}

fn lies(rig: &Rig, chunk: u16) -> Lie {
    lie(&rig.handle(), &view(chunk)).unwrap().unwrap()
}

fn blocks(rig: &Rig) -> Vec<Mapped> {
    walk(&rig.handle(), &[view(0).layer], FIRST_PLACE, 1 << 16).unwrap().0
}

fn clean_all(rig: &mut Rig) -> usize {
    let (mut seen, handle) = (Vec::new(), rig.handle());
    loop {
        let victims = handle.victims(&seen);
        if victims.is_empty() {
            return seen.len();
        }
        seen.extend(victims.iter().copied());
        rig.run(handle.clean_together(&victims)).unwrap();
        rig.run(handle.checkpoint()).unwrap();
    }
}

/// Of the blocks that were moved, how many lie behind the one before them.
fn in_order(before: &[Mapped], after: &[Mapped]) -> (usize, usize) {
    let moved: Vec<&Mapped> = after
        .iter()
        .zip(before)
        .filter(|(now, then)| now.row.at != then.row.at)
        .map(|(now, _)| now)
        .collect();
    let place = |block: &Mapped| (block.row.at.segment, block.row.at.offset + block.row.data);
    let ascends = moved.windows(2).filter(|pair| matches!(pair, [a, b] if place(a) < place(b))).count();
    (ascends, moved.len())
}

#[test]
fn what_the_cleaner_moves_lies_in_order_of_address() {
    let (mut rig, device, model) = scattered(1, 3);
    let before = blocks(&rig);
    let handle = rig.handle();
    let victims = handle.victims(&[]);
    assert!(!victims.is_empty());
    rig.run(handle.clean_together(&victims)).unwrap();
    let (ascends, moved) = in_order(&before, &blocks(&rig));
    assert!(moved > 100, "{moved} blocks were moved");
    assert_eq!(ascends, moved - 1, "all that was moved together lies in order of address");
    check(&mut rig, &device, &model, "cleaned");
}

/// Records of a mebibyte stayed whole in the log for the sake of the last blocks that nobody had overwritten: a volume that was
/// written in order and then at random took almost twice its size for ever.
#[test]
fn a_record_of_which_little_is_needed_is_not_kept_whole() {
    let (mut rig, device, model) = scattered(2, 3);
    let before = rig.handle().usage().live;
    assert!(
        before < 9 << 20,
        "{before} bytes: what was written first counts for the few blocks that are needed"
    );
    clean_all(&mut rig);
    let after = rig.handle().usage().live;
    assert!(after < 8 << 20, "{after} bytes for 6 MiB");
    assert!(rig.handle().counters().cut_records.load(Ordering::Relaxed) > 0);
    check(&mut rig, &device, &model, "cleaned");
    let report = rig.crash(false);
    assert!(report.lost.is_empty());
    drop(device);
    let device = rig.attach("vol");
    check(&mut rig, &device, &model, "rebuilt");
}

#[test]
fn a_chunk_that_is_read_and_lies_scattered_is_brought_into_order() {
    let (mut rig, device, model) = scattered(3, 2);
    assert_eq!(take_hint(&rig.handle()), None, "who writes leaves no hint");
    rig.read(&device, 0, 64 << 10);
    assert_eq!(take_hint(&rig.handle()), None, "nor does one short read");
    rig.read(&device, 2 * CHUNK, CHUNK);
    assert_eq!(take_hint(&rig.handle()), Some(view(2)));
    let before = lies(&rig, 2);
    assert!(before.is_scattered() && before.requests > 50, "{before:?}");
    let rows = blocks(&rig);
    let moved = rig.run(bring(&rig.handle(), &view(2), before.newest)).unwrap();
    assert!((CHUNK..CHUNK * 9 / 8).contains(&moved), "{moved} bytes");
    assert_eq!(in_order(&rows, &blocks(&rig)), (255, 256));
    assert_eq!(lies(&rig, 2), Lie { requests: 1, after: 1, ..before });
    let reads = rig.handle().counters().reads.load(Ordering::Relaxed);
    rig.read(&device, 2 * CHUNK, CHUNK);
    assert_eq!(rig.handle().counters().reads.load(Ordering::Relaxed) - reads, 1);
    assert_eq!(take_hint(&rig.handle()), None);
    assert_eq!(rig.run(bring(&rig.handle(), &view(2), before.newest)).unwrap(), 0, "once is enough");
    check(&mut rig, &device, &model, "in order");
}

#[test]
fn the_orderer_waits_for_a_rest_and_leaves_alone_what_is_written_to() {
    let (mut rig, device, mut model) = scattered(4, 2);
    let clock = Arc::new(AtomicU64::new(0));
    let wall = clock.clone();
    let mut orderer = Orderer::new(rig.handle(), Arc::new(move || wall.load(Ordering::Relaxed)));
    check(&mut rig, &device, &model, "before");
    let mut steps = |rig: &mut Rig| while matches!(rig.run(orderer.step(64)), Outcome::Did(_)) {};
    steps(&mut rig);
    clock.store(29_000_000, Ordering::Relaxed);
    steps(&mut rig);
    let moved = |rig: &Rig| rig.handle().counters().ordered_bytes.load(Ordering::Relaxed);
    assert_eq!(moved(&rig), 0, "they rest");
    write(&mut rig, &device, &mut model, 256 + 7, 99_999);
    rig.run(device.flush()).unwrap();
    clock.store(31_000_000, Ordering::Relaxed);
    steps(&mut rig);
    let requests: Vec<usize> = (0..6).map(|chunk| lies(&rig, chunk).requests).collect();
    assert!(requests[1] > 50, "{requests:?}: it was written to");
    assert!([0, 2, 3, 4, 5].iter().all(|chunk| requests[*chunk] == 1), "{requests:?}");
    clock.store(62_000_000, Ordering::Relaxed);
    steps(&mut rig);
    assert_eq!(lies(&rig, 1).requests, 1, "it has rested");
    check(&mut rig, &device, &model, "in order");
}

#[test]
fn a_snapshot_keeps_its_blocks_when_they_are_brought_into_order_and_views_do_not_take_turns() {
    let (mut rig, device, then) = scattered(5, 2);
    let volumes = rig.volumes();
    rig.run(volumes.snapshot("vol", "s", 0)).unwrap();
    let (mut model, mut rng) = (then.clone(), SplitMix64::new(6));
    for number in 100_000..100_000 + BLOCKS / 2 {
        write(&mut rig, &device, &mut model, rng.below(BLOCKS), number);
    }
    rig.run(device.flush()).unwrap();
    let frozen = volumes.view("vol", "s").unwrap();
    for round in 0..6 {
        check(&mut rig, &device, &model, "now");
        check(&mut rig, &frozen, &then, "then");
        let mut moved = 0;
        while let Some(view) = take_hint(&rig.handle()) {
            let lies = lie(&rig.handle(), &view).unwrap().unwrap();
            moved += rig.run(bring(&rig.handle(), &view, lies.newest)).unwrap();
        }
        assert!(round < 3 || moved == 0, "round {round}: {moved} bytes are moved to and fro");
    }
}

type Bring = Pin<Box<dyn Future<Output = Result<u64, DiskError>>>>;

#[test]
fn what_is_written_or_trimmed_while_a_chunk_is_moved_stays() {
    let mut inside = 0;
    for step in (0..70).step_by(5) {
        let (mut rig, device, mut model) = scattered(7, 2);
        let (handle, newest) = (rig.handle(), lies(&rig, 1).newest);
        let mut moving: Bring = Box::pin(async move { bring(&handle, &view(1), newest).await });
        let mut context = Context::from_waker(Waker::noop());
        let mut done = None;
        for _ in 0..step {
            if done.is_none()
                && let Poll::Ready(moved) = moving.as_mut().poll(&mut context)
            {
                done = Some(moved.unwrap());
            }
            rig.sim.as_mut().unwrap().turn();
        }
        inside += u32::from(done.is_none());
        write(&mut rig, &device, &mut model, 256 + 3, 500_000);
        rig.run(device.discard((256 + 40) * BLOCK, 20 * BLOCK)).unwrap();
        model.extend((256 + 40..256 + 60).map(|block| (block, 0)));
        if done.is_none() {
            rig.run(moving).unwrap();
        }
        check(&mut rig, &device, &model, &format!("step {step}"));
        drop(device);
        rig.crash(step % 2 == 0);
        let device = rig.attach("vol");
        check(&mut rig, &device, &model, &format!("step {step}, after a crash"));
    }
    assert!((3..13).contains(&inside), "{inside}");
}

/// Cleans and orders until the power fails; how many flushes that took.
fn work(rig: &mut Rig) -> u64 {
    let before = rig.image.counters().flushes;
    let handle = rig.handle();
    for chunk in 0..6 {
        let Ok(Some(lies)) = lie(&handle, &view(chunk)) else { break };
        if rig.run(bring(&handle, &view(chunk), lies.newest)).is_err() {
            break;
        }
    }
    let mut seen = Vec::new();
    while let [victim] = handle.victims(&seen)[..]
        && rig.run(handle.clean_together(&[victim])).is_ok()
        && rig.run(handle.checkpoint()).is_ok()
    {
        seen.push(victim);
    }
    rig.image.counters().flushes - before
}

#[test]
fn a_power_cut_at_each_flush_of_cleaning_and_ordering_loses_nothing() {
    let (mut rig, device, _) = scattered(8, 3);
    drop(device);
    let flushes = work(&mut rig);
    assert!(flushes >= 7, "{flushes} flushes");
    for cut in 1..=flushes {
        for keep_index in [true, false] {
            let (mut rig, device, model) = scattered(8, 3);
            drop(device);
            let now = rig.image.counters().flushes;
            rig.image.edit_faults(|faults| faults.power_off_at_flush = Some(now + cut));
            work(&mut rig);
            let report = rig.crash(keep_index);
            let context = format!("cut {cut}, index kept: {keep_index}");
            assert!(report.lost.is_empty(), "{context}: {report:?}");
            let device = rig.attach("vol");
            check(&mut rig, &device, &model, &context);
            // And what was begun is ended.
            clean_all(&mut rig);
            check(&mut rig, &device, &model, &format!("{context}, cleaned"));
        }
    }
}
