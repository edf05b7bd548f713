//! The healing phase: without faults, everything is there, both ways of opening agree, and the disk takes writes again.

use std::collections::BTreeMap;

use quarry_engine::catalog::{Head, ObjectCatalog};
use quarry_engine::disk::catalog::Catalog;
use quarry_engine::disk::{TALLIES, check};
use quarry_engine::index::{Index, Range, Table};
use quarry_engine::object::Condition;

use super::history::History;
use super::model::{ALL_CONTAINERS, OBJECTS, Op};
use super::oracle::Violation;
use super::plan;
use super::world::{Down, IndexFate};

/// What an index says, without the places of records.
type Facts = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// First byte of the catalog's own keys in [`Table::System`].
const CATALOG: u8 = 1;

fn facts(index: &dyn Index) -> Result<Facts, Violation> {
    let bad = |e: &dyn std::fmt::Display| Violation(format!("read index: {e}"));
    let mut facts = Facts::new();
    for table in [Table::Objects, Table::Rows, Table::Chunks, Table::System] {
        for pair in index.scan(table, Range::default()) {
            let (key, value) = pair.map_err(|e| bad(&e))?;
            let value = match table {
                Table::System if key.first() != Some(&CATALOG) => continue,
                Table::System => value.to_vec(),
                _ => {
                    let (head, payload) = Head::decode(&value).map_err(|e| bad(&e))?;
                    [&head.sequence.to_le_bytes(), payload].concat()
                }
            };
            facts.insert((table, key.into_vec()), value);
        }
    }
    Ok(facts)
}

fn difference(kept: &Facts, rebuilt: &Facts) -> Option<String> {
    let entry = |facts: &Facts, key| facts.get(key).map(hex::encode);
    let keys = kept.keys().chain(rebuilt.keys());
    let differs = |key: &&(Table, Vec<u8>)| kept.get(*key) != rebuilt.get(*key);
    keys.into_iter().find(differs).map(|key| {
        let (table, name) = key;
        format!("{table:?} {name:02x?}: kept {:?}, rebuilt {:?}", entry(kept, key), entry(rebuilt, key))
    })
}

impl History {
    pub(crate) fn heal(&mut self) -> Result<(), Violation> {
        self.calm()?;
        self.sweep()?;
        let seed = self.rng.next_u64();
        self.restart(Down::Kill, IndexFate::Prefix(seed))?;
        self.settle_uploads();
        let kept = facts(self.world.index.as_ref())?;
        self.check_sums()?;
        self.restart(Down::Kill, IndexFate::Lost)?;
        self.settle_uploads();
        let rebuilt = facts(self.world.index.as_ref())?;
        if let Some(difference) = difference(&kept, &rebuilt) {
            return Err(Violation(format!("a rebuilt index differs: {difference}")));
        }
        self.check_sums()?;
        self.check_offline()?;
        self.empty()
    }

    /// The sums that the disk keeps are those of what its index has.
    fn check_sums(&self) -> Result<(), Violation> {
        let Some(disk) = self.world.disk() else { return Ok(()) };
        let (mut kept, mut counted) = (BTreeMap::new(), BTreeMap::<u32, u128>::new());
        disk.tallies().visit(0..TALLIES, |tally, sum| {
            kept.insert(tally, sum);
        });
        let mut add = |(tally, by): (u32, u128)| {
            let sum = counted.entry(tally).or_default();
            *sum = sum.wrapping_add(by);
        };
        let count = ObjectCatalog.count(self.world.index.as_ref(), &mut add);
        count.map_err(|e| Violation(format!("count sums: {e}")))?;
        if kept == counted {
            return Ok(());
        }
        Err(Violation("sums are not those of what the index has".to_owned()))
    }

    fn sweep(&mut self) -> Result<(), Violation> {
        plan::sweep().into_iter().try_for_each(|op| self.alone(op))
    }

    /// Uploads that were left open are given up behind the callers' backs.
    fn settle_uploads(&mut self) {
        for _ in 0..500 {
            self.world.turn();
        }
    }

    fn check_offline(&mut self) -> Result<(), Violation> {
        let seed = self.rng.next_u64();
        self.world.down(Down::Kill, IndexFate::Prefix(seed), &mut self.rng);
        let mut disk = self.world.image.open();
        let report = check(&mut disk, &mut |_, _| {}).map_err(|e| Violation(format!("check: {e}")))?;
        drop(disk);
        // A torn tail stays in the log, and looks like damage to whoever has no index.
        if report.bad > 0 && self.summary.crashes == 0 {
            return Err(Violation(format!("check finds damage: {:?}", report.findings)));
        }
        self.restart(Down::Kill, IndexFate::Prefix(seed))
    }

    /// Everything is deleted; then the space is there again.
    fn empty(&mut self) -> Result<(), Violation> {
        for (c, o) in (0..ALL_CONTAINERS).flat_map(|c| (0..OBJECTS).map(move |o| (c, o))) {
            self.alone(Op::Delete { c, o, condition: Condition::default() })?;
        }
        self.clean_all()?;
        self.settle_uploads();
        let refused = self.summary.no_space;
        self.alone(Op::PutContainer { c: 0 })?;
        for o in 0..OBJECTS {
            self.alone(Op::Put { c: 0, o, condition: Condition::default(), wrong_md5: false })?;
        }
        if self.summary.no_space > refused {
            let usage = self.world.disk().map(|disk| disk.usage());
            return Err(Violation(format!("deletes gave no space back: {usage:?}")));
        }
        self.sweep()
    }
}
