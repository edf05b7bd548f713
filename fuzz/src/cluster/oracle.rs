//! The truth as clients know it: a register for each name, and what listings and totals may say of them together.
//!
//! Invariant: every line of a listing is judged as a read of its name; totals lie between the least and the most that may stand
//! while they are asked for.
//! Invariant: of an eventual container a read or listing says what somebody once wrote there, or nothing; when all is healed it is
//! judged as any other, by writes that took effect in an order that their answers allow: the last one stands.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::register::Register;
use crate::store::model::{Book, Cell, Fact, Line, NAMES, OBJECTS, Op, OpId, Outcome};
use crate::store::oracle::Violation;

/// Container and object.
pub(crate) type Name = (usize, usize);

/// What stood in a container at some time since its totals were asked for.
#[derive(Debug)]
struct Watch {
    c: usize,
    seen: Vec<BTreeSet<Cell>>,
}

/// All that clients know.
#[derive(Debug)]
pub(crate) struct Oracle {
    pub(crate) book: Book,
    registers: BTreeMap<Name, Register>,
    /// Reads that a listing under way stands for.
    listings: BTreeMap<OpId, Vec<OpId>>,
    watches: BTreeMap<OpId, Watch>,
    under_way: BTreeMap<OpId, Op>,
    /// Names of which a write was ever told nothing.
    unanswered: BTreeSet<Name>,
    /// The container that is eventual.
    eventual: Option<usize>,
    /// All is healed: reads of that container are judged, too.
    healed: bool,
}

fn name_of(op: &Op) -> Option<Name> {
    match *op {
        Op::Put { c, o, .. } | Op::Post { c, o } | Op::Delete { c, o, .. } | Op::Get { c, o } => Some((c, o)),
        _ => None,
    }
}

fn container_of(op: &Op) -> Option<usize> {
    match *op {
        Op::PutContainer { c } | Op::List { c, .. } | Op::HeadContainer { c } => Some(c),
        _ => name_of(op).map(|(c, _)| c),
    }
}

impl Oracle {
    pub(crate) fn new(eventual: Option<usize>) -> Self {
        Self {
            book: vec![Fact::default()],
            registers: BTreeMap::new(),
            listings: BTreeMap::new(),
            watches: BTreeMap::new(),
            under_way: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            eventual,
            healed: false,
        }
    }

    /// A new operation's number.
    pub(crate) fn number(&mut self, fact: Fact) -> OpId {
        let id = OpId::try_from(self.book.len()).unwrap_or(OpId::MAX);
        self.book.push(fact);
        id
    }

    /// Writes of a name that may still take effect.
    pub(crate) fn writes(&self, name: Name) -> usize {
        self.registers.get(&name).map_or(0, Register::writes)
    }

    pub(crate) fn began(&mut self, id: OpId, op: Op, now: Duration) -> Result<(), Violation> {
        if let Some(c) = container_of(&op).filter(|c| self.is_loose(*c)) {
            if let Some((_, o)) = name_of(&op).filter(|_| !op.reads()) {
                let register = self.registers.entry((c, o)).or_insert_with(Register::loose);
                register.began(id, op.clone(), now);
            }
            self.under_way.insert(id, op);
            return Ok(());
        }
        match op {
            Op::List { c, .. } => {
                let reads = (0..OBJECTS).map(|o| {
                    let read = self.number(Fact::default());
                    self.registers.entry((c, o)).or_default().began(read, Op::Get { c, o }, now);
                    read
                });
                let reads = reads.collect();
                self.listings.insert(id, reads);
            }
            Op::HeadContainer { c } => {
                self.watches.insert(id, Watch { c, seen: vec![BTreeSet::new(); OBJECTS] });
                for o in 0..OBJECTS {
                    self.look((c, o))?;
                }
            }
            _ => {
                if let Some(name) = name_of(&op) {
                    self.registers.entry(name).or_default().began(id, op.clone(), now);
                    self.look(name)?;
                }
            }
        }
        self.under_way.insert(id, op);
        Ok(())
    }

    /// Notes what may stand at a name now, for those who count.
    fn look(&mut self, name: Name) -> Result<(), Violation> {
        let (c, o) = name;
        if !self.watches.values().any(|watch| watch.c == c) {
            return Ok(());
        }
        let cells = self.cells(name)?;
        for watch in self.watches.values_mut().filter(|watch| watch.c == c) {
            watch.seen[o].extend(cells.iter().copied());
        }
        Ok(())
    }

    /// Whether a write of this name was ever told nothing.
    pub(crate) fn was_unanswered(&self, name: Name) -> bool {
        self.unanswered.contains(&name)
    }

    /// All that may stand at a name.
    pub(crate) fn cells(&self, name: Name) -> Result<BTreeSet<Cell>, Violation> {
        match self.registers.get(&name) {
            Some(register) => register.cells(&self.book),
            None => Ok(BTreeSet::from([Cell::default()])),
        }
    }

    /// An operation will say nothing.
    pub(crate) fn lose(&mut self, id: OpId, now: Duration) -> Result<(), Violation> {
        let Some(op) = self.under_way.remove(&id) else { return Ok(()) };
        self.watches.remove(&id);
        if let Op::List { c, .. } = op {
            for (o, read) in self.listings.remove(&id).unwrap_or_default().into_iter().enumerate() {
                self.registers.entry((c, o)).or_default().lose(read, now);
            }
        }
        if let Some(name) = name_of(&op) {
            if !op.reads() {
                self.unanswered.insert(name);
            }
            self.registers.entry(name).or_default().lose(id, now);
            self.look(name)?;
        }
        Ok(())
    }

    /// What an operation is about to say was decided under the grant that it was given at first.
    pub(crate) fn held(&mut self, id: OpId) {
        let name = self.under_way.get(&id).and_then(name_of);
        if let Some(register) = name.and_then(|name| self.registers.get_mut(&name)) {
            register.held(id);
        }
    }

    /// An operation said this.
    pub(crate) fn said(&mut self, id: OpId, outcome: &Outcome) -> Result<(), Violation> {
        let Some(op) = self.under_way.remove(&id) else { return Ok(()) };
        if container_of(&op).is_some_and(|c| self.is_loose(c)) {
            let judged = self.said_loosely(id, &op, outcome);
            return judged.map_err(|why| Violation(format!("op {id} {op:?} said {outcome:?}; {why}")));
        }
        let judged = match (&op, outcome) {
            (Op::List { c, .. }, Outcome::Lines(lines)) => self.listed(id, *c, lines),
            (Op::HeadContainer { .. }, Outcome::Container(Some((_, objects, bytes)))) => {
                self.counted(id, *objects, *bytes)
            }
            (Op::PutContainer { .. }, Outcome::Made(_)) => Ok(()),
            _ => match name_of(&op) {
                Some(name) => self.told(name, id, &|said| said == outcome),
                None => Err(Violation("no such answer".to_owned())),
            },
        };
        judged.map_err(|why| Violation(format!("op {id} {op:?} said {outcome:?}; {why}")))
    }

    fn told(&mut self, name: Name, id: OpId, fits: &dyn Fn(&Outcome) -> bool) -> Result<(), Violation> {
        let Self { registers, book, .. } = self;
        registers.entry(name).or_default().said(id, fits, book)?;
        self.look(name)
    }

    fn listed(&mut self, id: OpId, c: usize, lines: &[Line]) -> Result<(), Violation> {
        let mut rows = BTreeMap::new();
        for line in lines {
            let Line::Row { name, size, etag, meta } = line else {
                return Err(Violation("a subdirectory that nobody asked for".to_owned()));
            };
            rows.insert(name.as_str(), (*size, etag.clone(), *meta));
        }
        if rows.len() != lines.len() || rows.keys().any(|name| !NAMES.contains(name)) {
            return Err(Violation("names that nobody wrote, or one twice".to_owned()));
        }
        for (o, read) in self.listings.remove(&id).unwrap_or_default().into_iter().enumerate() {
            let row = rows.get(NAMES[o]).cloned();
            let book = self.book.clone();
            let fits = move |outcome: &Outcome| match outcome {
                Outcome::Version(Some(cell)) => row.as_ref().is_some_and(|(size, etag, meta)| {
                    let fact = &book[cell.data as usize];
                    cell.meta == *meta && fact.size == *size && fact.etag == *etag
                }),
                _ => row.is_none(),
            };
            self.told((c, o), read, &fits).map_err(|why| Violation(format!("{}: {why}", NAMES[o])))?;
        }
        Ok(())
    }

    fn counted(&mut self, id: OpId, objects: u64, bytes: u64) -> Result<(), Violation> {
        let Some(watch) = self.watches.remove(&id) else { return Ok(()) };
        let size = |cell: &Cell| self.book[cell.data as usize].size;
        let sum = |of: &dyn Fn(&BTreeSet<Cell>) -> Option<u64>| watch.seen.iter().filter_map(of).sum::<u64>();
        let least = sum(&|cells| Some(u64::from(!cells.contains(&Cell::default()))));
        let most = sum(&|cells| Some(u64::from(cells.iter().any(|cell| cell.data != 0))));
        let (low, high) =
            (sum(&|cells| cells.iter().map(size).min()), sum(&|cells| cells.iter().map(size).max()));
        if (least..=most).contains(&objects) && (low..=high).contains(&bytes) {
            return Ok(());
        }
        Err(Violation(format!("right would be {least} to {most} objects of {low} to {high} bytes")))
    }

    fn is_loose(&self, c: usize) -> bool {
        self.eventual == Some(c) && !self.healed
    }

    /// From here on reads of an eventual container are judged as others.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
    }

    /// What is told while an eventual container may lag: nothing that nobody wrote.
    fn said_loosely(&mut self, id: OpId, op: &Op, outcome: &Outcome) -> Result<(), Violation> {
        let nobody = || Err(Violation("nobody wrote that".to_owned()));
        match (op, outcome) {
            (Op::Get { .. }, Outcome::Version(None))
            | (Op::PutContainer { .. }, Outcome::Made(_))
            | (Op::HeadContainer { .. }, Outcome::Container(Some(_))) => Ok(()),
            (Op::Get { .. }, Outcome::Version(Some(cell))) if self.wrote(cell.data) => Ok(()),
            (Op::List { .. }, Outcome::Lines(lines)) => {
                let fits = |line: &Line| match line {
                    Line::Row { name, size, etag, meta } => {
                        let fact = &self.book[*meta as usize];
                        NAMES.contains(&name.as_str()) && fact.size == *size && fact.etag == *etag
                    }
                    Line::Subdir(_) => false,
                };
                if lines.iter().all(fits) { Ok(()) } else { nobody() }
            }
            (Op::Put { .. }, Outcome::ConditionFailed)
            | (Op::Delete { .. }, Outcome::ConditionFailed | Outcome::Absent) => {
                if let Some(register) = name_of(op).and_then(|name| self.registers.get_mut(&name)) {
                    register.in_vain(id);
                }
                Ok(())
            }
            (Op::Put { .. }, Outcome::Done) | (Op::Delete { .. }, Outcome::Gone) => match name_of(op) {
                Some(name) => self.told(name, id, &|said| said == outcome),
                None => nobody(),
            },
            _ => nobody(),
        }
    }

    /// Whether this is a body that somebody put. That its name is the one that was asked for, the reader has compared.
    fn wrote(&self, data: OpId) -> bool {
        self.book.get(data as usize).is_some_and(|fact| !fact.etag.is_empty())
    }

    /// What was lost takes effect no more.
    pub(crate) fn settle(&mut self) {
        self.registers.values_mut().for_each(Register::settle);
    }
}
