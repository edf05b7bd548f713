//! An index group in memory, the same for all nodes, that can be away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use crate::catalog::{ListingValue, Row, Totals, listing_prefix};
use crate::clock::{Clock, Timestamp};
use crate::disk::Class;
use crate::disk::format::record::DeviceId;
use crate::index::Range;
use crate::net::Timer;
use crate::object::finish::Finisher;
use crate::object::group::{IndexGroup, Leader, Rows, TotalsOf};
use crate::object::locks::{Claim, Locks, Permit};
use crate::object::names::{Answer, Ask, Decider, Grant, Names, NewLine};
use crate::object::{BoxFuture, Draft, Error, ObjectPath, Result};

/// Rows by key; the value is none where a row was removed.
type Kept = BTreeMap<Vec<u8>, (u64, Option<Vec<u8>>)>;

#[derive(Default)]
struct Table(Mutex<Kept>);

struct Group {
    table: Table,
    locks: Arc<Locks>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap()
    }

    fn all(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Row)> {
        let standing = |(key, (sequence, value)): (&Vec<u8>, &(u64, Option<Vec<u8>>))| {
            Some((key.clone(), Row { sequence: *sequence, value: value.clone()? }))
        };
        let rows = self.lock();
        rows.range(prefix.to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter_map(standing)
            .collect()
    }
}

impl IndexGroup for Group {
    fn leader(&self) -> Leader {
        Leader::Own
    }

    fn term(&self) -> u64 {
        0
    }

    fn home(&self) -> Option<DeviceId> {
        None
    }

    fn claim<'a>(&'a self, claim: Claim<'a>) -> BoxFuture<'a, Permit> {
        Box::pin(self.locks.claim(claim))
    }

    fn barrier(&self) -> Option<BoxFuture<'static, Result<()>>> {
        None
    }

    fn ceiling(&self) -> Timestamp {
        Timestamp(u64::MAX)
    }

    fn raise(&self, _: Timestamp) -> BoxFuture<'static, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn row(&self, key: &[u8]) -> Result<Option<Row>> {
        let rows = self.table.lock();
        let row = rows.get(key).and_then(|(sequence, value)| Some((*sequence, value.clone()?)));
        Ok(row.map(|(sequence, value)| Row { sequence, value }))
    }

    fn totals(&self, of: TotalsOf<'_>) -> Result<Totals> {
        let TotalsOf::Container(id) = of else { return Ok(Totals::default()) };
        let lines = self.table.all(&listing_prefix(id));
        let sizes = lines.iter().map(|(_, row)| ListingValue::decode(&row.value).unwrap().size);
        Ok(Totals { objects: lines.len() as u64, bytes: sizes.sum(), ..Totals::default() })
    }

    fn scan(&self, range: Range) -> Rows<'_> {
        let within = |key: &Vec<u8>| {
            range.from.as_ref().is_none_or(|from| key >= from) && range.to.as_ref().is_none_or(|to| key < to)
        };
        let mut rows: Vec<_> = self.table.all(&[]).into_iter().filter(|(key, _)| within(key)).collect();
        if range.reverse {
            rows.reverse();
        }
        Box::new(rows.into_iter().map(|(key, row)| Ok((key.into_boxed_slice(), row))))
    }

    fn marked_accounts(&self, _: &str, _: usize) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn append(&self, rows: Vec<Draft>, _: Class, _: u64) -> BoxFuture<'static, Result<()>> {
        for row in rows {
            let before =
                self.table.lock().insert(row.key, (row.sequence, (!row.deleted).then_some(row.meta)));
            assert!(before.is_none_or(|(sequence, _)| sequence < row.sequence), "rows ascend in time");
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

/// How long the way to a group is looked for.
const PATIENCE: Duration = Duration::from_secs(12);

/// Names of the group, unless it is away: then nobody answers.
pub(super) struct Shelf {
    decider: Decider,
    pub(super) away: AtomicBool,
    /// Every node has rows of its own to look at.
    pub(super) recalls: AtomicBool,
    /// So many of the grants that are given from now on lose their claims at once, as with the leader that gave them; these are known by
    /// their times.
    pub(super) loses: AtomicUsize,
    lost: Arc<Mutex<BTreeSet<Timestamp>>>,
    pub(super) timer: OnceLock<Timer>,
}

impl Shelf {
    pub(super) fn new(clock: Clock) -> Arc<Self> {
        let group = Group { table: Table::default(), locks: Arc::new(Locks::new()) };
        let decider = Decider::new(Arc::new(group), Arc::new(clock), Finisher(None));
        Arc::new(Self {
            decider,
            away: AtomicBool::new(false),
            recalls: AtomicBool::new(false),
            loses: AtomicUsize::new(0),
            lost: Arc::default(),
            timer: OnceLock::new(),
        })
    }

    pub(super) fn leave(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    fn unless_away<T: Send + 'static>(
        &self,
        answer: BoxFuture<'static, Result<T>>,
    ) -> BoxFuture<'static, Result<T>> {
        if !self.away.load(Ordering::SeqCst) {
            return answer;
        }
        let over = (self.timer.get().unwrap())(PATIENCE);
        Box::pin(async move {
            over.await;
            Err(Error::Unavailable { reason: "nobody leads".to_owned() })
        })
    }
}

impl Names for Shelf {
    fn ask(&self, ask: Ask) -> BoxFuture<'static, Result<Answer>> {
        self.unless_away(self.decider.ask(ask))
    }

    fn remembered(&self, ask: Ask) -> Option<Answer> {
        if self.recalls.load(Ordering::SeqCst) { self.decider.read(ask).ok() } else { None }
    }

    fn begin(&self, path: ObjectPath, given: Option<Timestamp>) -> BoxFuture<'static, Result<Grant>> {
        let left = self.loses.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left.is_err() {
            return self.unless_away(self.decider.begin(path, given));
        }
        // It holds the claim of another name instead.
        let other = ObjectPath { object: format!("{} is lost", path.object).into(), ..path.clone() };
        let (grant, other) = (self.decider.begin(path, given), self.decider.begin(other, None));
        let lost = self.lost.clone();
        Box::pin(async move {
            let (grant, other) = (grant.await?, other.await?);
            lost.lock().unwrap().insert(grant.at);
            Ok(Grant { hold: other.hold, ..grant })
        })
    }

    fn settle(&self, grant: Grant, line: NewLine, class: Class) -> BoxFuture<'static, Result<()>> {
        if self.lost.lock().unwrap().remove(&grant.at) {
            return Box::pin(std::future::ready(Err(Error::GrantLost { unused: true })));
        }
        self.unless_away(self.decider.settle(grant, line, class))
    }

    fn lines_count(&self) -> bool {
        true
    }

    fn here(&self) -> bool {
        true
    }
}
