//! The truth as clients know it: a register for each name, and what listings and totals may say of them together.
//!
//! The container that comes and goes, and its account, are judged by each of its names: whatever concerns all of it is asked of each.
//!
//! Invariant: every line of a listing is judged as a read of its name; totals lie between the least and the most that may stand
//! while they are asked for.
//! Invariant: of an eventual container a read or listing says what somebody once wrote there, or nothing; when all is healed it is
//! judged as any other, by writes that took effect in an order that their answers allow: the last one stands.
//! Invariant: whether a container stands is judged at once also where it is eventual, and no line of it is of a write that was over
//! before it was made, but for what a node that was away wrote shortly before ([`super::lag`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::fleeting::{FLEETING, FLEETING_OBJECTS};
use super::lag::{Course, IN_VAIN};
use super::register::Register;
use crate::store::model::{
    Book, CONTAINERS, Cell, Fact, Line, NAMES, OBJECTS, Op, OpId, Outcome, container_name,
};
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
    /// The containers that are eventual, and which writes in them were over before which number.
    eventual: BTreeSet<usize>,
    over: BTreeMap<OpId, OpId>,
    /// All is healed: reads of that container are judged, too.
    healed: bool,
}

fn name_of(op: &Op) -> Option<Name> {
    match *op {
        Op::Put { c, o, .. } | Op::Post { c, o } | Op::Delete { c, o, .. } | Op::Get { c, o } => Some((c, o)),
        _ => None,
    }
}

/// The container that an operation is about; of an account the one that comes and goes.
pub(super) fn container_of(op: &Op) -> Option<usize> {
    match *op {
        Op::PutContainer { c } | Op::DeleteContainer { c } | Op::List { c, .. } | Op::HeadContainer { c } => {
            Some(c)
        }
        Op::DeleteAccount { a } | Op::ListContainers { a } => Some(a * CONTAINERS),
        _ => name_of(op).map(|(c, _)| c),
    }
}

/// Names of a container that anybody uses.
fn objects(c: usize) -> usize {
    if c == FLEETING { FLEETING_OBJECTS } else { OBJECTS }
}

fn fresh(c: usize, loose: bool) -> Register {
    let register = if c == FLEETING { Register::fleeting() } else { Register::default() };
    if loose { register.loose() } else { register }
}

/// Whether it is a read of all of a container, or, of the one that comes and goes, of whether it stands.
fn reads_all(op: &Op) -> bool {
    matches!(op, Op::List { .. } | Op::ListContainers { .. } | Op::HeadContainer { c: FLEETING })
}

/// Whether it changes the container that comes and goes, or its account.
fn changes_all(op: &Op) -> bool {
    matches!(op, Op::PutContainer { c: FLEETING } | Op::DeleteContainer { .. } | Op::DeleteAccount { .. })
}

/// The rows of a listing by their names: size, ETag, and who wrote the rest.
fn rows_of(c: usize, lines: &[Line]) -> Result<BTreeMap<&str, (u64, String, OpId)>, Violation> {
    let mut rows = BTreeMap::new();
    for line in lines {
        let Line::Row { name, size, etag, meta } = line else {
            return Err(Violation("a subdirectory that nobody asked for".to_owned()));
        };
        rows.insert(name.as_str(), (*size, etag.clone(), *meta));
    }
    if rows.len() != lines.len() || rows.keys().any(|name| !NAMES[..objects(c)].contains(name)) {
        return Err(Violation("names that nobody wrote, or one twice".to_owned()));
    }
    Ok(rows)
}

impl Oracle {
    pub(crate) fn new(eventual: BTreeSet<usize>) -> Self {
        Self {
            book: vec![Fact::default()],
            registers: BTreeMap::new(),
            listings: BTreeMap::new(),
            watches: BTreeMap::new(),
            under_way: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            eventual,
            over: BTreeMap::new(),
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
        let c = container_of(&op).unwrap_or_default();
        if self.is_loose(c) && (c != FLEETING || matches!(op, Op::Get { .. })) {
            // What is read there is not judged yet.
            if let Some(name) = name_of(&op).filter(|_| !op.reads()) {
                self.register(name).began(id, op.clone(), now);
            }
            self.under_way.insert(id, op);
            return Ok(());
        }
        if matches!(op, Op::HeadContainer { .. } | Op::ListContainers { .. } | Op::DeleteContainer { .. }) {
            self.watches.insert(id, Watch { c, seen: vec![BTreeSet::new(); objects(c)] });
        }
        if reads_all(&op) {
            let reads = (0..objects(c)).map(|o| {
                let read = self.number(Fact::default());
                self.register((c, o)).began(read, op.clone(), now);
                read
            });
            let reads = reads.collect();
            self.listings.insert(id, reads);
        }
        match name_of(&op) {
            Some(name) => {
                self.register(name).began(id, op.clone(), now);
                self.look(name)?;
            }
            None if changes_all(&op) => {
                (0..objects(c)).for_each(|o| self.register((c, o)).began(id, op.clone(), now));
                self.look_all(c)?;
            }
            None => self.look_all(c)?,
        }
        self.under_way.insert(id, op);
        Ok(())
    }

    fn register(&mut self, name: Name) -> &mut Register {
        let loose = self.is_loose(name.0);
        self.registers.entry(name).or_insert_with(|| fresh(name.0, loose))
    }

    fn look_all(&mut self, c: usize) -> Result<(), Violation> {
        (0..objects(c)).try_for_each(|o| self.look((c, o)))
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
            // Of one that comes and goes, too: nobody has written there.
            None => Ok(BTreeSet::from([Cell::default()])),
        }
    }

    /// An operation will say nothing.
    pub(crate) fn lose(&mut self, id: OpId, now: Duration) -> Result<(), Violation> {
        let Some(op) = self.under_way.remove(&id) else { return Ok(()) };
        self.watches.remove(&id);
        let c = container_of(&op).unwrap_or_default();
        let next = self.next();
        self.over.insert(id, next);
        for (o, read) in self.listings.remove(&id).unwrap_or_default().into_iter().enumerate() {
            self.register((c, o)).lose(read, now, next);
        }
        if changes_all(&op) {
            (0..objects(c)).for_each(|o| self.register((c, o)).lose(id, now, next));
            self.look_all(c)?;
        }
        if let Some(name) = name_of(&op) {
            if !op.reads() {
                self.unanswered.insert(name);
            }
            self.register(name).lose(id, now, next);
            self.look(name)?;
        }
        Ok(())
    }

    /// The first number that was not given to any operation.
    fn next(&self) -> OpId {
        OpId::try_from(self.book.len()).unwrap_or(OpId::MAX)
    }

    /// How an operation went that is about to say something.
    pub(crate) fn went(&mut self, id: OpId, course: Course) {
        let op = self.under_way.get(&id);
        let Some(c) = op.and_then(container_of).filter(|c| self.is_loose(*c)) else { return };
        let one = op.and_then(name_of).map(|(_, o)| o);
        for (_, register) in self.registers.range_mut((c, one.unwrap_or(0))..=(c, one.unwrap_or(OBJECTS))) {
            register.went(id, course);
        }
    }

    /// What an operation is about to say was decided under the grant that it was given at first.
    pub(crate) fn held(&mut self, id: OpId) {
        let name = self.under_way.get(&id).and_then(name_of);
        if let Some(register) = name.and_then(|name| self.registers.get_mut(&name)) {
            register.held(id);
        }
    }

    /// An operation said this. `alone`: perhaps decided by its node alone.
    pub(crate) fn said(&mut self, id: OpId, outcome: &Outcome, alone: bool) -> Result<(), Violation> {
        let Some(op) = self.under_way.remove(&id) else { return Ok(()) };
        self.over.insert(id, self.next());
        let judged = match container_of(&op).is_some_and(|c| self.is_loose(c)) {
            true => self.said_loosely(id, &op, outcome, alone),
            false => self.judge(id, &op, outcome),
        };
        judged.map_err(|why| Violation(format!("op {id} {op:?} said {outcome:?}; {why}")))
    }

    fn judge(&mut self, id: OpId, op: &Op, outcome: &Outcome) -> Result<(), Violation> {
        let c = container_of(op).unwrap_or_default();
        match (op, outcome) {
            (Op::List { .. }, Outcome::Lines(lines)) => self.listed(id, c, lines),
            (Op::HeadContainer { .. }, Outcome::Container(Some((_, objects, bytes)))) => {
                self.found(id, c)?;
                self.counted(id, *objects, *bytes)
            }
            (Op::ListContainers { .. }, Outcome::Containers(rows)) => match rows.as_slice() {
                [] => self.shown(id, c, &Outcome::NoContainer),
                [(name, objects, bytes)] if *name == container_name(c) => {
                    self.found(id, c)?;
                    self.counted(id, *objects, *bytes)
                }
                _ => Err(Violation("containers that nobody made".to_owned())),
            },
            (Op::List { .. }, Outcome::NoContainer)
            | (Op::HeadContainer { .. }, Outcome::Container(None)) => {
                self.shown(id, c, &Outcome::NoContainer)
            }
            (Op::ListContainers { .. }, Outcome::NoAccount) => self.shown(id, c, outcome),
            (Op::PutContainer { .. }, Outcome::Made(_)) if c != FLEETING => Ok(()),
            _ if changes_all(op) => {
                self.refused_rightly(id, outcome)?;
                (0..objects(c)).try_for_each(|o| self.told((c, o), id, &|said| said == outcome))
            }
            // Where there is no container there is no object.
            (Op::Get { c, o }, Outcome::Version(None)) => {
                self.told((*c, *o), id, &|said| said == outcome || *said == Outcome::NoContainer)
            }
            _ => match name_of(op) {
                Some(name) => {
                    if *outcome == Outcome::NoContainer {
                        // What it wrote was for a container that has gone.
                        self.unanswered.insert(name);
                    }
                    self.told(name, id, &|said| said == outcome)
                }
                None => Err(Violation("no such answer".to_owned())),
            },
        }
    }

    /// A container is not empty only if one of its names is taken.
    fn refused_rightly(&mut self, id: OpId, outcome: &Outcome) -> Result<(), Violation> {
        let Some(watch) = self.watches.remove(&id) else { return Ok(()) };
        let names = self.registers.range((watch.c, 0)..=(watch.c, OBJECTS));
        let taken = watch.seen.iter().flatten().any(|cell| *cell != Cell::default())
            || names.into_iter().any(|(_, register)| register.is_behind());
        if *outcome == Outcome::NotEmpty && !taken {
            return Err(Violation("nothing was in it".to_owned()));
        }
        Ok(())
    }

    /// A read of the container or account that comes and goes saw this everywhere.
    fn shown(&mut self, id: OpId, c: usize, outcome: &Outcome) -> Result<(), Violation> {
        self.watches.remove(&id);
        let mut reads = self.listings.remove(&id).unwrap_or_default().into_iter().enumerate();
        reads.try_for_each(|(o, read)| self.told((c, o), read, &|said| said == outcome))
    }

    /// A read saw that the container stands.
    fn found(&mut self, id: OpId, c: usize) -> Result<(), Violation> {
        let mut reads = self.listings.remove(&id).unwrap_or_default().into_iter().enumerate();
        reads.try_for_each(|(o, read)| self.told((c, o), read, &|said| matches!(said, Outcome::Version(_))))
    }

    fn told(&mut self, name: Name, id: OpId, fits: &dyn Fn(&Outcome) -> bool) -> Result<(), Violation> {
        let loose = self.is_loose(name.0);
        let Self { registers, book, .. } = self;
        registers.entry(name).or_insert_with(|| fresh(name.0, loose)).said(id, fits, book)?;
        self.look(name)
    }

    fn listed(&mut self, id: OpId, c: usize, lines: &[Line]) -> Result<(), Violation> {
        let rows = rows_of(c, lines)?;
        for (o, read) in self.listings.remove(&id).unwrap_or_default().into_iter().enumerate() {
            let row = rows.get(NAMES[o]).cloned();
            let book = self.book.clone();
            let fits = move |outcome: &Outcome| match outcome {
                Outcome::Version(Some(cell)) => row.as_ref().is_some_and(|(size, etag, meta)| {
                    let fact = &book[cell.data as usize];
                    cell.meta == *meta && fact.size == *size && fact.etag == *etag
                }),
                Outcome::NoContainer => false,
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
        self.eventual.contains(&c) && !self.healed
    }

    /// From here on reads of an eventual container are judged as others.
    pub(crate) fn heal(&mut self) {
        self.healed = true;
        self.registers.values_mut().for_each(Register::heal);
    }

    /// What is told while an eventual container may lag: nothing that nobody wrote.
    fn said_loosely(&mut self, id: OpId, op: &Op, outcome: &Outcome, alone: bool) -> Result<(), Violation> {
        let nobody = || Err(Violation("nobody wrote that".to_owned()));
        let c = container_of(op).unwrap_or_default();
        match (op, outcome) {
            (Op::Get { .. }, Outcome::Version(None)) => Ok(()),
            (Op::Get { .. }, Outcome::Version(Some(cell))) if self.wrote(cell.data) => Ok(()),
            (Op::List { .. }, Outcome::Lines(lines)) => {
                let rows = rows_of(c, lines)?;
                let fits = |(size, etag, meta): &(u64, String, OpId)| {
                    let fact = &self.book[*meta as usize];
                    fact.size == *size && fact.etag == *etag
                };
                if !rows.values().all(fits) {
                    return nobody();
                }
                if c == FLEETING { self.listed_loosely(id, &rows) } else { Ok(()) }
            }
            (Op::Put { .. }, Outcome::ConditionFailed)
            | (Op::Delete { .. }, Outcome::ConditionFailed | Outcome::Absent) => {
                let register = name_of(op).and_then(|name| self.registers.get_mut(&name));
                register.map_or(Ok(()), |register| register.in_vain(id))
            }
            (Op::Put { c, o, .. }, Outcome::Done) => {
                self.told((*c, *o), id, &|said| said == outcome || alone && *said == IN_VAIN)
            }
            (Op::Delete { c, o, .. }, Outcome::Gone) => self.told((*c, *o), id, &|said| said == outcome),
            _ if c == FLEETING => self.said_of_fleeting(id, op, outcome),
            (Op::PutContainer { .. }, Outcome::Made(_))
            | (Op::HeadContainer { .. }, Outcome::Container(Some(_))) => Ok(()),
            _ => nobody(),
        }
    }

    /// The same of the one that comes and goes, which its group decides alone. Headers and totals may be what was last known of it.
    fn said_of_fleeting(&mut self, id: OpId, op: &Op, outcome: &Outcome) -> Result<(), Violation> {
        match (op, outcome) {
            (Op::HeadContainer { .. }, Outcome::Container(Some(_))) => {
                self.watches.remove(&id);
                let mut reads = self.listings.remove(&id).unwrap_or_default().into_iter().enumerate();
                reads.try_for_each(|(o, read)| self.register((FLEETING, o)).in_vain(read))
            }
            (Op::ListContainers { .. }, Outcome::Containers(rows)) if !rows.is_empty() => {
                self.watches.remove(&id);
                match rows.as_slice() {
                    [(name, ..)] if *name == container_name(FLEETING) => self.found(id, FLEETING),
                    _ => Err(Violation("containers that nobody made".to_owned())),
                }
            }
            _ => self.judge(id, op, outcome),
        }
    }

    /// No line is of what was over before its container was made.
    fn listed_loosely(
        &mut self,
        id: OpId,
        rows: &BTreeMap<&str, (u64, String, OpId)>,
    ) -> Result<(), Violation> {
        for (o, read) in self.listings.remove(&id).unwrap_or_default().into_iter().enumerate() {
            let wrote = rows.get(NAMES[o]).map(|(.., meta)| *meta);
            let over = wrote.and_then(|wrote| self.over.get(&wrote).copied());
            let strays =
                wrote.map(|wrote| self.register((FLEETING, o)).comes_into(wrote)).unwrap_or_default();
            let fits = move |outcome: &Outcome| match outcome {
                Outcome::Version(made) => over.is_none_or(|over| {
                    made.is_none_or(|made| made.data < over || strays.contains(&made.data))
                }),
                _ => false,
            };
            let told = self.told((FLEETING, o), read, &fits);
            told.map_err(|why| Violation(format!("{}: {why}", NAMES[o])))?;
        }
        Ok(())
    }

    /// Whether this is a body that somebody put. That its name is the one that was asked for, the reader has compared.
    fn wrote(&self, data: OpId) -> bool {
        self.book.get(data as usize).is_some_and(|fact| !fact.etag.is_empty())
    }

    /// Whether the container that comes and goes may be absent, as far as was told.
    pub(crate) fn may_be_absent(&self, c: usize) -> bool {
        self.registers.get(&(c, 0)).is_none_or(Register::may_lie_nowhere)
    }

    /// The reaper has found nothing to do any more.
    pub(crate) fn reap(&mut self) {
        self.registers.values_mut().for_each(Register::reap);
    }

    /// What was lost takes effect no more.
    pub(crate) fn settle(&mut self) {
        self.registers.values_mut().for_each(Register::settle);
    }
}
