use super::*;
use crate::index::conformance::{self, Model, Random, Subject, change, contents};

struct Simulated {
    index: MemoryIndex,
    seed: u64,
}

impl Subject for Simulated {
    fn index(&self) -> &dyn Index {
        &self.index
    }

    fn reopen(&mut self) {
        self.seed += 1;
        self.index.crash_by(self.seed);
    }
}

#[test]
fn conforms() {
    conformance::run(50, || Simulated { index: MemoryIndex::new(), seed: 0 });
}

/// A seeded history: what is checkpointed first, then `unsaved` batches; the model after each of those.
fn history(index: &MemoryIndex, seed: u64, unsaved: usize) -> Vec<Model> {
    let mut random = Random(seed);
    let mut model = Model::new();
    let mut apply = |model: &mut Model| {
        let set = random.write_set();
        change(model, &set);
        index.apply(set).unwrap();
    };
    (0..10).for_each(|_| apply(&mut model));
    index.checkpoint().unwrap();
    let mut states = vec![model.clone()];
    for _ in 0..unsaved {
        apply(&mut model);
        states.push(model.clone());
    }
    states
}

#[test]
fn a_crash_leaves_exactly_the_batches_it_was_told_to_keep() {
    for seed in 0..20 {
        for kept in 0..=8 {
            let index = MemoryIndex::new();
            let states = history(&index, seed, 7);
            assert_eq!(index.unsaved(), 7);
            index.crash_at(kept);
            assert_eq!(contents(&index), states[kept.min(7)], "seed {seed} kept {kept}");
            assert_eq!(index.unsaved(), 0);
            index.crash();
            assert_eq!(contents(&index), states[kept.min(7)], "what one crash left, a second does not take");
        }
    }
}

#[test]
fn a_seeded_crash_repeats_and_reaches_every_prefix() {
    let mut reached = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let crashed = || {
            let index = MemoryIndex::new();
            let states = history(&index, 3, 4);
            index.crash_by(seed);
            states.iter().rposition(|state| *state == contents(&index)).unwrap()
        };
        let position = crashed();
        assert_eq!(position, crashed(), "seed {seed}");
        reached.insert(position);
    }
    assert_eq!(reached.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[test]
fn a_failing_index_changes_nothing_until_the_crash_heals_it() {
    let index = MemoryIndex::new();
    let set = |value: u8| WriteSet { changes: vec![(Table::System, vec![1], Some(vec![value]))] };
    index.fail_after(2);
    index.apply(set(1)).unwrap();
    index.checkpoint().unwrap();
    assert!(matches!(index.apply(set(2)), Err(IndexError::Store { verb: "apply", .. })));
    assert!(matches!(index.checkpoint(), Err(IndexError::Store { verb: "checkpoint", .. })));
    assert_eq!(index.get(Table::System, &[1]).unwrap().unwrap(), [1]);
    index.crash();
    index.apply(set(3)).unwrap();
    assert_eq!(index.get(Table::System, &[1]).unwrap().unwrap(), [3]);
}

#[test]
#[should_panic(expected = "twice")]
fn a_key_given_twice_is_our_bug() {
    let twice = |value: u8| (Table::Rows, vec![9], Some(vec![value]));
    let _ = MemoryIndex::new().apply(WriteSet { changes: vec![twice(1), twice(2)] });
}
