//! Crashes by seed: each block carries the number of its write. After a crash there is a prefix of the order of writes, with
//! all that was flushed, written through, or read.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quarry_engine::io::SplitMix64;

use super::rig::Rig;
use crate::store::{Device, VolumeError};

/// Blocks that are used: of two chunks and what lies between them.
const BLOCKS: u64 = 600;
const BLOCK: usize = 4096;

fn fill(block: u64, number: u64) -> Vec<u8> {
    if number == 0 {
        return vec![0; BLOCK];
    }
    let mut bytes = [block.to_le_bytes(), number.to_le_bytes()].concat();
    bytes.resize(BLOCK, 0);
    SplitMix64::new(block << 32 | number).fill(&mut bytes[16..]);
    bytes
}

/// What was done, block by block in the order of the volume.
#[derive(Debug, Default)]
struct Oracle {
    /// State before `steps`.
    base: BTreeMap<u64, u64>,
    steps: Vec<(u64, u64)>,
    /// So many of them are durable for certain.
    durable: usize,
    clock: u64,
}

impl Oracle {
    fn now(&self, block: u64) -> u64 {
        let last = self.steps.iter().rev().find(|(at, _)| *at == block).map(|(_, number)| *number);
        last.or_else(|| self.base.get(&block).copied()).unwrap_or(0)
    }

    /// A client was given a block.
    fn read(&mut self, block: u64) {
        if let Some(at) = self.steps.iter().rposition(|(step, _)| *step == block) {
            self.durable = self.durable.max(at + 1);
        }
    }

    /// After a crash: takes the longest prefix that the volume can be.
    fn recovered(&mut self, found: &[Vec<u8>], context: &str) {
        let mut fits = vec![0_u64; self.steps.len() + 1];
        let mut by_block: BTreeMap<u64, Vec<(usize, u64)>> = BTreeMap::new();
        for (at, (block, number)) in self.steps.iter().enumerate() {
            by_block.entry(*block).or_default().push((at + 1, *number));
        }
        for (block, bytes) in (0..).zip(found) {
            let mut history = vec![(0, self.base.get(&block).copied().unwrap_or(0))];
            history.extend(by_block.get(&block).into_iter().flatten());
            for (nth, (from, number)) in history.iter().enumerate() {
                if fill(block, *number) == *bytes {
                    let to = history.get(nth + 1).map_or(fits.len(), |(next, _)| *next);
                    fits[*from..to].iter_mut().for_each(|fit| *fit += 1);
                }
            }
        }
        let prefix = (self.durable..fits.len()).rev().find(|at| fits[*at] == found.len() as u64);
        let Some(prefix) = prefix else {
            let best = fits.iter().enumerate().max_by_key(|(_, fit)| **fit).unwrap();
            panic!(
                "{context}: no prefix of {} steps from {} on; best {best:?}",
                self.steps.len(),
                self.durable
            );
        };
        for (block, number) in self.steps.drain(..).take(prefix) {
            self.base.insert(block, number);
        }
        self.durable = 0;
    }
}

/// One operation.
#[derive(Debug, Clone, Copy)]
struct Step {
    from: u64,
    count: u64,
    number: u64,
    trims: bool,
    durable: bool,
}

fn step(rng: &mut SplitMix64, clock: &mut u64) -> Step {
    let from = rng.below(BLOCKS);
    let count = (1 + if rng.chance(150) { rng.below(300) } else { rng.below(6) }).min(BLOCKS - from);
    *clock += 1;
    let zero = rng.chance(150);
    let number = if zero { 0 } else { *clock };
    Step { from, count, number, trims: zero && rng.chance(500), durable: rng.chance(60) }
}

async fn carry_out(device: Device, step: Step) -> Result<(), VolumeError> {
    let Step { from, count, number, trims, durable } = step;
    let (offset, length) = (from * BLOCK as u64, count * BLOCK as u64);
    match (number, trims) {
        (0, true) => device.discard(offset, length).await,
        (0, false) => device.zero(offset, length, count < 3).await,
        _ => {
            let bytes: Vec<u8> = (from..from + count).flat_map(|block| fill(block, number)).collect();
            if durable {
                device.write_through(offset, Bytes::from(bytes)).await
            } else {
                device.write(offset, Bytes::from(bytes)).await
            }
        }
    }
}

/// Flushes under way, each with what had been done before it.
#[derive(Default)]
struct Flushes(Vec<(usize, Flush)>);

type Flush = Pin<Box<dyn Future<Output = Result<(), VolumeError>>>>;

impl Flushes {
    fn begin(&mut self, device: &Device, oracle: &Oracle) {
        let device = device.clone();
        self.0.push((oracle.steps.len(), Box::pin(async move { device.flush().await })));
    }

    fn poll(&mut self, oracle: &mut Oracle) {
        let mut context = Context::from_waker(Waker::noop());
        self.0.retain_mut(|(upto, flush)| match flush.as_mut().poll(&mut context) {
            Poll::Ready(result) => {
                result.unwrap();
                oracle.durable = oracle.durable.max(*upto);
                false
            }
            Poll::Pending => true,
        });
    }

    /// Drives a future to its end beside the flushes, or for so many turns.
    fn run<T>(
        &mut self,
        rig: &mut Rig,
        oracle: &mut Oracle,
        turns: u64,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let mut future = std::pin::pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..turns {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return Some(output);
            }
            rig.sim.as_mut().unwrap().turn();
            self.poll(oracle);
        }
        None
    }
}

/// More turns than anything takes.
const ALL: u64 = 100_000;

/// One life, until the power fails.
fn live(rig: &mut Rig, device: &Device, oracle: &mut Oracle, context: &str) {
    let mut rng = SplitMix64::new(rig.rng.next_u64());
    let mut flushes = Flushes::default();
    for _ in 0..1 + rng.below(150) {
        match rng.below(20) {
            0 => flushes.begin(device, oracle),
            1 | 2 => {
                let (from, count) = (rng.below(BLOCKS - 8), 1 + rng.below(8));
                let read = device.read_whole(from * BLOCK as u64, count * BLOCK as u64);
                let found = flushes.run(rig, oracle, ALL, read).unwrap().unwrap();
                for (block, bytes) in (from..).zip(found.chunks(BLOCK)) {
                    assert_eq!(bytes, fill(block, oracle.now(block)), "{context}: block {block} while alive");
                    oracle.read(block);
                }
            }
            3..6 => rig.sim.as_mut().unwrap().turn(),
            _ => {
                let step = step(&mut rng, &mut oracle.clock);
                oracle.steps.extend((step.from..step.from + step.count).map(|block| (block, step.number)));
                // The power may fail while it is under way.
                let turns = if rng.chance(20) { rng.below(6) } else { ALL };
                let Some(done) = flushes.run(rig, oracle, turns, carry_out(device.clone(), step)) else {
                    return;
                };
                done.unwrap();
                if step.durable && step.number > 0 {
                    oracle.durable = oracle.steps.len();
                }
            }
        }
        flushes.poll(oracle);
        clean(rig, &mut rng, &mut flushes, oracle);
    }
}

fn clean(rig: &mut Rig, rng: &mut SplitMix64, flushes: &mut Flushes, oracle: &mut Oracle) {
    let handle = rig.handle();
    if handle.usage().free < handle.usage().capacity / 2
        && let Some(victim) = handle.victim(&[])
    {
        flushes.run(rig, oracle, ALL, handle.clean(victim)).unwrap().unwrap();
    }
    if rng.chance(30) {
        flushes.run(rig, oracle, ALL, handle.checkpoint()).unwrap().unwrap();
    }
}

fn whole(rig: &mut Rig, device: &Device) -> Vec<Vec<u8>> {
    rig.read(device, 0, BLOCKS * BLOCK as u64).chunks(BLOCK).map(<[u8]>::to_vec).collect()
}

fn history(seed: u64) {
    let mut rig = Rig::new(seed);
    rig.create("vol", 3);
    let mut oracle = Oracle::default();
    for life in 0..8 {
        let device = rig.attach("vol");
        let context = format!("seed {seed} life {life}");
        let found = whole(&mut rig, &device);
        oracle.recovered(&found, &context);
        live(&mut rig, &device, &mut oracle, &context);
        drop(device);
        let keep_index = !rig.rng.chance(200);
        let report = rig.crash(keep_index);
        assert!(report.lost.is_empty(), "{context}: {report:?}");
    }
    let device = rig.attach("vol");
    let found = whole(&mut rig, &device);
    oracle.recovered(&found, &format!("seed {seed}, the end"));
}

#[test]
fn after_a_crash_there_is_a_prefix_with_all_that_was_flushed_or_read() {
    let first = std::env::var("QUARRY_SEED").ok().and_then(|s| s.parse().ok());
    let seeds = first.map_or(0..25_u64, |seed| seed..seed + 1);
    for seed in seeds {
        // Reproduce one: QUARRY_SEED=<seed> cargo test --release -p quarry-volume after_a_crash
        history(seed);
    }
}
