//! Comparisons against plain sets, by seed; what they cost.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::catalog::{tally, weight};
use crate::io::SplitMix64;
use quarry_ring::partition_of;

/// What a device holds, without a device.
#[derive(Default, Clone)]
struct Set(BTreeMap<PathHash, Stamp>);

impl Set {
    fn put(&mut self, hash: PathHash, sequence: u64, deleted: bool) {
        self.0.insert(hash, Stamp { hash, sequence, deleted });
    }

    fn within(&self, power: u8, part: u32) -> impl Iterator<Item = &Stamp> {
        self.0.values().filter(move |stamp| partition_of(&stamp.hash, power) == part)
    }

    fn answer(&self, ask: &Ask) -> Answer {
        match ask {
            Ask::Sums { power, parts, group } => {
                let mut by_part: BTreeMap<u32, u128> = BTreeMap::new();
                for stamp in self.0.values() {
                    let sum = by_part.entry(partition_of(&stamp.hash, *power)).or_default();
                    *sum = sum.wrapping_add(weight(&stamp.hash, stamp.sequence, stamp.deleted));
                }
                let of = |range: &Range<u32>| {
                    by_part.range(range.clone()).fold(0_u128, |sum, (_, more)| sum.wrapping_add(*more))
                };
                let sum = |group: &Vec<Range<u32>>| group.iter().map(of).fold(0_u128, u128::wrapping_add);
                let groups = parts.groups(*group);
                assert!(groups.len() <= MAX_SUMS && parts.ranges().len() <= MAX_RUNS);
                Answer::Sums(groups.iter().map(sum).collect())
            }
            Ask::Stamps { power, part, after, limit, .. } => {
                let limit = *limit as usize;
                let behind = self.within(*power, *part).filter(|stamp| Some(stamp.hash) > *after);
                let mut stamps: Vec<Stamp> = behind.copied().take(limit + 1).collect();
                let more = stamps.len() > limit;
                stamps.truncate(limit);
                let upto = stamps.last().map(|stamp| stamp.hash).filter(|_| more);
                Answer::Stamps(Stamps { stamps, more, upto })
            }
            _ => panic!("a comparison asks for sums and stamps"),
        }
    }
}

/// What was found, questions, and bytes of answers from one side.
fn compare(power: u8, parts: Parts, mine: &Set, theirs: &Set) -> (Vec<Difference>, usize, usize) {
    let mut comparison = Comparison::new(power, parts);
    let (mut found, mut asks, mut bytes) = (Vec::new(), 0, 0);
    while let Some(ask) = comparison.ask() {
        let (a, b) = (mine.answer(&ask), theirs.answer(&ask));
        bytes += match &b {
            Answer::Sums(sums) => sums.len() * 16,
            Answer::Stamps(stamps) => stamps.stamps.len() * 25,
            _ => 0,
        };
        asks += 1;
        assert!(asks < 100_000, "endless");
        found.extend(comparison.tell(&a, &b).unwrap());
    }
    (found, asks, bytes)
}

fn random_hash(rng: &mut SplitMix64) -> PathHash {
    let mut hash = [0; 16];
    rng.fill(&mut hash);
    hash
}

fn set(rng: &mut SplitMix64, count: usize) -> Set {
    let mut set = Set::default();
    for _ in 0..count {
        let (hash, sequence) = (random_hash(rng), 1 + rng.below(1000));
        set.put(hash, sequence, rng.chance(200));
    }
    set
}

#[test]
fn exactly_what_differs_is_found() {
    for seed in 0..60 {
        let mut rng = SplitMix64::new(seed);
        let power = u8::try_from(rng.below(12)).unwrap();
        let count = [0, 3, 300][rng.index(3)];
        let mine = set(&mut rng, count);
        let mut theirs = if rng.chance(100) { Set::default() } else { mine.clone() };
        for _ in 0..rng.below(20) {
            let any = mine.0.keys().nth(rng.index(mine.0.len().max(1))).copied();
            match (rng.below(3), any) {
                (0, Some(hash)) => theirs.0.retain(|other, _| *other != hash),
                (1, Some(hash)) => theirs.put(hash, 2000, rng.chance(500)),
                _ => theirs.put(random_hash(&mut rng), 5, false),
            }
        }
        let shared: Parts = (0..1_u32 << power).filter(|_| rng.chance(700)).collect();
        let within = |hash: &PathHash| shared.contains(partition_of(hash, power));
        let keys: BTreeSet<PathHash> = mine.0.keys().chain(theirs.0.keys()).copied().collect();
        let wanted: Vec<PathHash> =
            keys.into_iter().filter(|hash| within(hash) && mine.0.get(hash) != theirs.0.get(hash)).collect();
        let (mut found, ..) = compare(power, shared, &mine, &theirs);
        found.sort_by_key(|difference| difference.hash);
        assert_eq!(found.iter().map(|d| d.hash).collect::<Vec<_>>(), wanted, "seed {seed}");
        for Difference { hash, mine: a, theirs: b } in found {
            assert_eq!((a, b), (mine.0.get(&hash).copied(), theirs.0.get(&hash).copied()), "seed {seed}");
        }
    }
}

#[test]
fn equal_devices_exchange_one_sum_and_one_difference_a_few_kilobytes() {
    let mut rng = SplitMix64::new(1);
    let mine = set(&mut rng, 2000);
    for power in [0, 8, 18] {
        let all = Parts::range(0..1 << power);
        assert_eq!(compare(power, all.clone(), &mine, &mine), (vec![], 1, 16), "{power}");
        let mut theirs = mine.clone();
        let hash = *mine.0.keys().nth(77).unwrap();
        theirs.put(hash, 3000, true);
        let (found, asks, bytes) = compare(power, all, &mine, &theirs);
        assert_eq!(found.len(), 1);
        assert!(asks <= 6 && bytes <= 6000, "{power}: {asks} questions, {bytes} bytes");
    }
}

#[test]
fn a_full_tally_is_cut_finer_and_long_lists_are_paged() {
    let mut rng = SplitMix64::new(2);
    let mut mine = Set::default();
    for _ in 0..MAX_STAMPS * 3 {
        let mut hash = random_hash(&mut rng);
        // All in one tally, as on a large disk of a large cluster.
        hash[..2].copy_from_slice(&[7, 7]);
        hash[2] &= 0x0f;
        assert_eq!(tally(&hash), 0x07070);
        mine.put(hash, 9, false);
    }
    let mut theirs = mine.clone();
    let lost: Vec<PathHash> = mine.0.keys().step_by(4000).copied().collect();
    theirs.0.retain(|hash, _| !lost.contains(hash));
    let (found, asks, bytes) = compare(12, Parts::range(0..1 << 12), &mine, &theirs);
    assert_eq!(found.iter().map(|d| d.hash).collect::<Vec<_>>(), lost);
    assert!(asks < 20 && bytes < 130_000, "{asks} questions, {bytes} bytes");
    let (found, ..) = compare(12, Parts::range(0..1 << 12), &mine, &Set::default());
    assert_eq!(found.len(), mine.0.len());
    let (found, ..) = compare(12, Parts::range(0..1 << 12), &Set::default(), &mine);
    assert_eq!(found.len(), mine.0.len());
}

#[test]
fn answers_that_do_not_fit_are_refused() {
    let stamp = |n: u8| Stamp { hash: [n; 16], sequence: 1, deleted: false };
    let page = |stamps: Vec<Stamp>, upto: Option<u8>| {
        Answer::Stamps(Stamps { stamps, more: upto.is_some(), upto: upto.map(|n| [n; 16]) })
    };
    let nothing = page(vec![], None);
    for bad in [
        page(vec![stamp(2), stamp(1)], None),
        page(vec![stamp(1), stamp(1)], None),
        page(vec![stamp(3)], Some(2)),
        Answer::Stamps(Stamps { stamps: vec![], more: true, upto: None }),
        Answer::Sums(vec![]),
        Answer::Record(None),
    ] {
        let mut comparison = Comparison { stack: vec![Item::Stamps { power: 0, part: 0, after: None }] };
        comparison.ask().unwrap();
        assert!(comparison.tell(&nothing, &bad).is_err(), "{bad:?}");
    }
    let mut comparison = Comparison::new(3, Parts::range(0..8));
    comparison.ask().unwrap();
    assert!(comparison.tell(&Answer::Sums(vec![1]), &Answer::Sums(vec![1, 2])).is_err());
}

#[test]
fn groups_are_cut_by_powers_of_the_fan() {
    assert_eq!([2, 64, 65, 4096, 4097, 1 << 18].map(finer_group), [1, 1, 64, 64, 4096, 4096]);
}
