//! Inputs for parsers: targets, their seeds, and a mutational engine over them.
//!
//! A target is a plain function that must not panic. Its seeds are structures that the encoders made; most changed inputs get their
//! checksums made right again, so that what lies behind the checksum is reached too.
//!
//! Invariant: the inputs of a run follow from target, seed and count alone.

mod mutate;
mod targets;

use std::panic::catch_unwind;

use quarry_engine::io::SplitMix64;

pub use targets::TARGETS;

/// One parser, or a family of them.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Must never panic.
    pub run: fn(&[u8]),
    /// Valid inputs.
    pub seeds: fn(&mut SplitMix64) -> Vec<Vec<u8>>,
    /// Makes checksums right again after a change.
    pub mend: fn(&mut Vec<u8>),
    /// Words that mean something to the parser.
    pub words: &'static [&'static str],
}

/// The target of a name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// An input that broke a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The input.
    pub input: Vec<u8>,
    /// What the panic said.
    pub what: String,
}

/// Makes inputs for a target, one after the other.
#[derive(Debug)]
pub struct Source {
    target: &'static Target,
    rng: SplitMix64,
    pool: Vec<Vec<u8>>,
    seeds: usize,
}

/// Inputs kept for further changes, beside the seeds.
const POOL: usize = 256;

impl Source {
    /// Of a target and a seed.
    #[must_use]
    pub fn new(target: &'static Target, seed: u64) -> Self {
        let mut rng = SplitMix64::new(seed);
        let pool = (target.seeds)(&mut rng);
        assert!(!pool.is_empty(), "target {} has no seeds", target.name);
        Self { target, rng, seeds: pool.len(), pool }
    }

    /// The seeds, as they are.
    #[must_use]
    pub fn seeds(&self) -> &[Vec<u8>] {
        &self.pool[..self.seeds]
    }

    /// The next input.
    pub fn make(&mut self) -> Vec<u8> {
        let rng = &mut self.rng;
        let mut input = self.pool[rng.index(self.pool.len())].clone();
        let other = rng.index(self.pool.len());
        for _ in 0..=rng.below(3) {
            mutate::change(rng, &mut input, &self.pool[other], self.target.words);
        }
        if rng.chance(750) {
            (self.target.mend)(&mut input);
        }
        if rng.chance(100) {
            if self.pool.len() < self.seeds + POOL {
                self.pool.push(input.clone());
            } else {
                let place = self.seeds + rng.index(POOL);
                self.pool[place].clone_from(&input);
            }
        }
        input
    }
}

/// Runs a target on an input.
pub fn attempt(target: &Target, input: &[u8]) -> Result<(), Broken> {
    let run = target.run;
    let owned = input.to_vec();
    catch_unwind(move || run(&owned))
        .map_err(|panic| Broken { input: input.to_vec(), what: crate::panic_text(panic.as_ref()) })
}

/// Runs a target on its seeds and on changed inputs while `go_on` says so of their count; the count.
pub fn fuzz(target: &'static Target, seed: u64, go_on: impl Fn(u64) -> bool) -> Result<u64, Broken> {
    let mut source = Source::new(target, seed);
    for input in source.seeds() {
        attempt(target, input)?;
    }
    let mut count = source.seeds as u64;
    while go_on(count) {
        attempt(target, &source.make())?;
        count += 1;
    }
    Ok(count)
}
