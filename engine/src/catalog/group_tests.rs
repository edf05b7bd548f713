//! Histories of a group's records: the index after the log's order, any order, copies, moves and rebuilds.

use super::*;
use crate::catalog::{GroupKey, GroupTag, Reach, group_reach, group_records};

const GROUP: u32 = 9;

/// A voter's records as its store would write them, and what must stand.
#[derive(Default)]
struct Voter {
    history: History,
    stamp: u64,
    reach: Reach,
    /// Index of each entry of the log, and its stamp.
    log: BTreeMap<u64, u64>,
    next: u64,
    chunks: BTreeMap<u64, u64>,
    marker: Option<u64>,
}

impl Voter {
    fn write(&mut self, tag: GroupTag, number: u64, meta: &[u8]) -> u64 {
        self.stamp += 1;
        let key = GroupKey { group: GROUP, tag, number }.encode();
        self.history.push(record(Kind::GroupEntry, false, self.stamp, 0, &key, meta));
        self.stamp
    }

    fn state(&mut self, change: impl FnOnce(&mut Reach, u64)) {
        change(&mut self.reach, self.stamp + 1);
        let meta = self.reach.encode();
        self.write(GroupTag::State, 0, &meta);
    }

    fn step(&mut self, rng: &mut Rng) {
        match rng.below(12) {
            0..=4 => {
                for _ in 0..=rng.below(4) {
                    let stamp = self.write(GroupTag::Entry, self.next, &[]);
                    self.log.insert(self.next, stamp);
                    self.next += 1;
                }
            }
            5 | 6 if !self.log.is_empty() => {
                let first = *self.log.keys().next().unwrap();
                let from = first + rng.below(self.next - first);
                let last = self.next - 1;
                self.state(|reach, stamp| reach.cut(from, last, stamp));
                self.log.split_off(&from);
                self.next = from;
            }
            7 if !self.log.is_empty() => {
                let first = *self.log.keys().next().unwrap();
                let upto = first + rng.below(self.next - first);
                self.state(|reach, _| reach.purge(upto + 1));
                self.log = self.log.split_off(&(upto + 1));
            }
            8 if rng.below(4) == 0 => {
                self.next += 1 + rng.below(5);
                let first = self.next;
                self.state(|reach, stamp| reach.restart(first, stamp));
                self.log.clear();
            }
            9 => self.marker = Some(self.write(GroupTag::Marker, 0, &[])),
            10 => {
                let number = self.chunks.len() as u64;
                let stamp = self.write(GroupTag::Chunk, number, &[]);
                self.chunks.insert(number, stamp);
            }
            11 if rng.below(3) == 0 => {
                self.state(|reach, stamp| reach.staged = stamp);
                self.chunks.clear();
            }
            _ => self.state(|_, _| {}),
        }
    }

    fn random(seed: u64) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut voter = Self::default();
        for _ in 0..80 {
            voter.step(&mut rng);
        }
        voter
    }

    fn check(&self, bench: &Bench, seed: u64) {
        let index: &dyn Index = &bench.index;
        let of = |tag| -> BTreeMap<u64, u64> {
            group_records(index, (GROUP, tag), (0, u64::MAX))
                .map(|found| found.map(|(number, head)| (number, head.sequence)).unwrap())
                .collect()
        };
        assert_eq!(of(GroupTag::Entry), self.log, "seed {seed}");
        assert_eq!(of(GroupTag::Chunk), self.chunks, "seed {seed}");
        assert_eq!(of(GroupTag::Marker).into_values().next(), self.marker, "seed {seed}");
        assert_eq!(group_reach(index, GROUP).unwrap(), self.reach, "seed {seed}");
    }
}

#[test]
fn any_order_of_a_groups_records_ends_in_what_its_voter_knew() {
    for seed in 0..300 {
        let voter = Voter::random(seed);
        let mut rng = Rng(seed + 1);
        let ordered = rebuild(&voter.history.log);
        voter.check(&ordered, seed);
        for _ in 0..4 {
            let mut log = voter.history.log.clone();
            for _ in 0..10 {
                let n = usize::try_from(rng.below(log.len() as u64)).unwrap();
                log.push(log[n].clone());
            }
            rng.shuffle(&mut log);
            let shuffled = rebuild(&log);
            assert_eq!(shuffled.dump(), ordered.dump(), "seed {seed}");
            assert_eq!(shuffled.live_sum(), ordered.live_sum(), "seed {seed}");
        }
        assert_eq!(ordered.live_sum(), ordered.live_records(&voter.history.log), "seed {seed}");
    }
}

/// The cleaner at work between the steps: it copies records and drops dead ones; what it leaves rebuilds to the same.
#[test]
fn cleaning_keeps_a_groups_records_and_resurrects_none() {
    for seed in 0..300 {
        let voter = Voter::random(seed);
        let mut history = History { next: 1 << 20, ..History::default() };
        let mut bench = Bench::default();
        let mut rng = Rng(seed + 7);
        for (record, at) in voter.history.log.clone() {
            bench.apply(&record, at);
            history.log.push((record, at));
            let n = usize::try_from(rng.below(history.log.len() as u64)).unwrap();
            let (copy, from) = history.log[n].clone();
            let live = ObjectCatalog.is_live(&bench.index, &copy.view(), from).unwrap();
            if live {
                history.push(copy.clone());
                let to = history.log.last().unwrap().1;
                assert!(bench.run(|tx| ObjectCatalog.relocate(tx, &copy.view(), from, to)), "seed {seed}");
            } else {
                let to = Location { segment: 9, ..from };
                assert!(!bench.run(|tx| ObjectCatalog.relocate(tx, &copy.view(), from, to)), "seed {seed}");
            }
            let n = usize::try_from(rng.below(history.log.len() as u64)).unwrap();
            let (record, at) = history.log[n].clone();
            if !ObjectCatalog.is_live(&bench.index, &record.view(), at).unwrap() {
                bench.run(|tx| ObjectCatalog.forget(tx, &record.view()));
                history.log.remove(n);
            }
        }
        voter.check(&bench, seed);
        assert_eq!(bench.live_sum(), bench.live_records(&history.log), "seed {seed}");
        rng.shuffle(&mut history.log);
        let rebuilt = rebuild(&history.log);
        voter.check(&rebuilt, seed);
        assert_eq!(rebuilt.dump(), bench.dump(), "seed {seed}");
    }
}

#[test]
fn rows_of_groups_have_totals_of_their_own() {
    let mut bench = Bench::default();
    let mut history = History::default();
    for group in [1, 2, 3] {
        let prefix = crate::catalog::group_prefix(group);
        let mut put = |sequence, key: &[u8], value: &[u8]| {
            history.push(record(Kind::Row, false, sequence, 0, &[&prefix[..], key].concat(), value));
        };
        let container = ContainerValue {
            id: 5,
            put: 1,
            policy: 0,
            index: Default::default(),
            headers: Headers::default(),
        };
        put(1, &container_key("a", "c"), &container.encode());
        for n in 0..u64::from(group) {
            let etag = ListedEtag::Md5([0; 16]);
            let line = ListingValue {
                size: 10,
                etag,
                content_type: "text/plain".to_owned(),
                version: None,
                key: None,
                shown: None,
            };
            put(2, &listing_key(5, &n.to_string()), &line.encode());
        }
    }
    for (record, at) in &history.log {
        bench.apply(record, *at);
    }
    for group in [1, 2, 3] {
        let objects = u64::from(group);
        let totals = Totals { containers: 1, objects, bytes: objects * 10, ..Totals::default() };
        assert_eq!(account_totals_in(&bench.index, group, "a").unwrap(), totals);
        let totals = Totals { containers: 0, ..totals };
        assert_eq!(container_totals_in(&bench.index, group, 5).unwrap(), totals);
    }
}

#[test]
fn keys_and_reaches_that_are_none_are_errors() {
    let key = GroupKey { group: 1, tag: GroupTag::Entry, number: u64::MAX };
    assert_eq!(GroupKey::parse(&key.encode()), Ok(key));
    assert!(GroupKey::parse(&key.encode()[..12]).is_err());
    assert!(GroupKey::parse(b"\0\0\0\x01z\0\0\0\0\0\0\0\0").is_err());
    let mut reach = Reach { first: 1, floor: 2, staged: 3, cuts: Vec::new() };
    reach.cut(10, 20, 7);
    reach.cut(15, 16, 9);
    let bytes = reach.encode();
    let golden = "01010000000000000002000000000000000300000000000000020a00000000000000140000000000000007000000000000000f\
                  0000000000000010000000000000000900000000000000";
    assert_eq!(hex::encode(&bytes), golden.replace(' ', ""));
    assert_eq!(Reach::decode(&bytes), Ok(reach));
    for len in 0..bytes.len() {
        assert!(Reach::decode(&bytes[..len]).is_err(), "{len}");
    }
}
