//! One suite for every body of [`Index`]: each promise of the trait, checked against a plain model by seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Change, Index, Range, Table, WriteSet};

/// Tables as they ought to be.
pub(super) type Model = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// An index that can lose its memory.
pub(super) trait Subject {
    fn index(&self) -> &dyn Index;
    /// Close or crash, and open again. Batches since the last checkpoint may be lost.
    fn reopen(&mut self);
}

/// splitmix64: enough to make inputs.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn pick(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }

    /// Keys that collide often and contain what comparison code gets wrong: nothing, 0x00, 0x7f, 0x80, 0xff.
    fn key(&mut self) -> Vec<u8> {
        (0..self.below(4)).map(|_| [0x00, 0x7f, 0x80, 0xff][self.pick(4)]).collect()
    }

    fn bound(&mut self) -> Option<Vec<u8>> {
        (self.below(3) > 0).then(|| self.key())
    }

    pub(super) fn table(&mut self) -> Table {
        Table::ALL[self.pick(Table::ALL.len())]
    }

    pub(super) fn write_set(&mut self) -> WriteSet {
        let mut changes: BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>> = BTreeMap::new();
        for _ in 0..self.below(12) {
            let value = (self.below(3) > 0).then(|| self.next().to_le_bytes()[..self.pick(9)].to_vec());
            changes.insert((self.table(), self.key()), value);
        }
        WriteSet { changes: changes.into_iter().map(|((table, key), value)| (table, key, value)).collect() }
    }
}

pub(super) fn change(model: &mut Model, set: &WriteSet) {
    for (table, key, value) in &set.changes {
        match value {
            Some(value) => model.insert((*table, key.clone()), value.clone()),
            None => model.remove(&(*table, key.clone())),
        };
    }
}

/// Everything in the index.
pub(super) fn contents(index: &dyn Index) -> Model {
    let pairs = |table| index.scan(table, Range::default()).map(move |pair| (table, pair.unwrap()));
    Table::ALL
        .into_iter()
        .flat_map(pairs)
        .map(|(table, (key, value))| ((table, key.into_vec()), value.into_vec()))
        .collect()
}

fn expected(model: &Model, table: Table, range: &Range) -> Vec<(Vec<u8>, Vec<u8>)> {
    let inside = |key: &Vec<u8>| {
        range.from.as_ref().is_none_or(|from| key >= from) && range.to.as_ref().is_none_or(|to| key < to)
    };
    let of_table = model.iter().filter(|((of, key), _)| *of == table && inside(key));
    let mut pairs: Vec<_> = of_table.map(|((_, key), value)| (key.clone(), value.clone())).collect();
    if range.reverse {
        pairs.reverse();
    }
    pairs
}

fn scanned(index: &dyn Index, table: Table, range: Range) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pairs = index.scan(table, range).map(Result::unwrap);
    pairs.map(|(key, value)| (key.into_vec(), value.into_vec())).collect()
}

/// Run the whole suite on fresh subjects, its random parts from `seeds` seeds.
pub(super) fn run<S: Subject>(seeds: u64, fresh: impl Fn() -> S) {
    for seed in 0..seeds {
        reads_equal_a_model(&mut fresh(), seed);
        a_scan_stays_on_its_snapshot(&fresh(), seed);
    }
    a_checkpoint_outlives_a_reopen(&mut fresh());
    readers_never_see_half_a_batch(&fresh());
    nothing_is_found_in_an_empty_index(&fresh());
    equal_keys_of_different_tables_are_different(&fresh());
    a_scan_may_change_its_thread(&fresh());
}

fn reads_equal_a_model(subject: &mut impl Subject, seed: u64) {
    let mut random = Random(seed);
    let mut model = Model::new();
    for step in 0..60 {
        let set = random.write_set();
        change(&mut model, &set);
        subject.index().apply(set).unwrap();
        if random.below(10) == 0 {
            subject.index().checkpoint().unwrap();
            subject.reopen();
        }
        let (table, key) = (random.table(), random.key());
        let found = subject.index().get(table, &key).unwrap();
        assert_eq!(found.as_ref(), model.get(&(table, key)), "seed {seed} step {step}");
        let keys: Vec<Vec<u8>> =
            (0..random.below(6)).map(|_| random.key()).collect::<BTreeSet<_>>().into_iter().collect();
        let found = subject.index().get_several(table, &keys).unwrap();
        let wanted: Vec<_> = keys.iter().map(|key| model.get(&(table, key.clone())).cloned()).collect();
        assert_eq!(found, wanted, "seed {seed} step {step}");
        let (from, to) = (random.bound(), random.bound());
        for (from, to) in [(None, None), (from.clone(), None), (None, to.clone()), (from, to)] {
            for reverse in [false, true] {
                let range = Range { from: from.clone(), to: to.clone(), reverse };
                let wanted = expected(&model, table, &range);
                let got = scanned(subject.index(), table, range.clone());
                assert_eq!(got, wanted, "seed {seed} step {step} {table:?} {range:?}");
            }
        }
    }
    assert_eq!(contents(subject.index()), model, "seed {seed}");
}

fn a_scan_stays_on_its_snapshot(subject: &impl Subject, seed: u64) {
    let mut random = Random(seed);
    let mut model = Model::new();
    for _ in 0..20 {
        let set = random.write_set();
        change(&mut model, &set);
        subject.index().apply(set).unwrap();
    }
    for reverse in [false, true] {
        let table = random.table();
        let range = Range { reverse, ..Range::default() };
        let wanted = expected(&model, table, &range);
        let mut scan = subject.index().scan(table, range);
        let mut got = Vec::new();
        // The first batch falls between the call and its first key, the others in its middle.
        loop {
            let set = random.write_set();
            change(&mut model, &set);
            subject.index().apply(set).unwrap();
            if random.below(4) == 0 {
                subject.index().checkpoint().unwrap();
            }
            let Some(pair) = scan.next() else { break };
            let (key, value) = pair.unwrap();
            got.push((key.into_vec(), value.into_vec()));
        }
        assert!(scan.next().is_none(), "an ended scan stays at its end");
        assert_eq!(got, wanted, "seed {seed}");
    }
}

fn a_checkpoint_outlives_a_reopen(subject: &mut impl Subject) {
    let mut random = Random(7);
    let mut model = Model::new();
    for _ in 0..50 {
        let set = random.write_set();
        change(&mut model, &set);
        subject.index().apply(set).unwrap();
    }
    subject.index().checkpoint().unwrap();
    subject.reopen();
    assert_eq!(contents(subject.index()), model);
    // An index with nothing new can be checkpointed, and again.
    subject.index().checkpoint().unwrap();
    subject.index().checkpoint().unwrap();
    subject.reopen();
    assert_eq!(contents(subject.index()), model);
}

fn readers_never_see_half_a_batch(subject: &impl Subject) {
    const KEYS: u8 = 50;
    let index = subject.index();
    let generation = |number: u32| {
        let change = |key: u8| -> Change { (Table::Rows, vec![key], Some(number.to_le_bytes().to_vec())) };
        WriteSet { changes: (0..KEYS).map(change).collect() }
    };
    index.apply(generation(0)).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut newest = 0;
            while !done.load(Ordering::Relaxed) {
                let rows = scanned(index, Table::Rows, Range::default());
                assert_eq!(rows.len(), usize::from(KEYS));
                assert!(rows.iter().all(|(_, value)| *value == rows[0].1), "half a batch: {rows:?}");
                let number = u32::from_le_bytes(rows[0].1.as_slice().try_into().unwrap());
                assert!(number >= newest, "a later scan is not older");
                newest = number;
                let keys: Vec<Vec<u8>> = (0..KEYS).map(|key| vec![key]).collect();
                let several = index.get_several(Table::Rows, &keys).unwrap();
                assert!(several.iter().all(|value| *value == several[0]), "half a batch: {several:?}");
            }
        });
        threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                index.checkpoint().unwrap();
            }
        });
        for number in 1..500 {
            index.apply(generation(number)).unwrap();
            let read = index.get(Table::Rows, &[0]).unwrap().unwrap();
            assert_eq!(read, number.to_le_bytes(), "the applier reads its own batch");
        }
        done.store(true, Ordering::Relaxed);
    });
}

fn nothing_is_found_in_an_empty_index(subject: &impl Subject) {
    for table in Table::ALL {
        assert_eq!(subject.index().get(table, b"").unwrap(), None);
        for reverse in [false, true] {
            let inverted = Range { from: Some(vec![2]), to: Some(vec![1]), reverse };
            assert_eq!(scanned(subject.index(), table, inverted), []);
        }
    }
    subject.index().apply(WriteSet::default()).unwrap();
    subject.index().checkpoint().unwrap();
    assert_eq!(contents(subject.index()), Model::new());
    assert_eq!(subject.index().stats().keys, 0);
}

fn equal_keys_of_different_tables_are_different(subject: &impl Subject) {
    let change =
        |(number, table): (usize, Table)| (table, b"same".to_vec(), Some(number.to_le_bytes().to_vec()));
    subject
        .index()
        .apply(WriteSet { changes: Table::ALL.into_iter().enumerate().map(change).collect() })
        .unwrap();
    for (number, table) in Table::ALL.into_iter().enumerate() {
        assert_eq!(subject.index().get(table, b"same").unwrap().unwrap(), number.to_le_bytes());
    }
    assert_eq!(subject.index().stats().keys, Table::ALL.len() as u64);
}

fn a_scan_may_change_its_thread(subject: &impl Subject) {
    let keys = 0..100_u8;
    let changes = keys.clone().map(|key| (Table::Objects, vec![key], Some(vec![key]))).collect();
    subject.index().apply(WriteSet { changes }).unwrap();
    let mut scan = subject.index().scan(Table::Objects, Range::default());
    let first = scan.next().unwrap().unwrap();
    assert_eq!(*first.0, [0]);
    let rest = std::thread::scope(|threads| threads.spawn(move || scan.count()).join().unwrap());
    assert_eq!(rest, keys.len() - 1);
}
