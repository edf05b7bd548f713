//! Reads every needed record of a disk again and again, and says what is not as it was written.
//!
//! A pass walks the objects (each with all its chunks and its BLAKE3), then the rows, then the blocks of volumes. Of objects and rows it
//! brings a page of the index at a time into the order of the disk, and reads what lies near one another by one request: with a
//! page or less of them it goes once through the disk from its beginning to its end, and once for each page with more.
//! It goes on after a restart where it was, also in the middle of a page ([`place`]).
//! An object whose line in the listing is missing or older (a crash between two disks) is listed again ([`lines`]).
//!
//! What is damaged is mended from other devices by whoever mends for readers.
//!
//! Invariant: the audit reads the device, never a cache, and changes no data itself.
//! Invariant: the place moves past a page when all of it was looked at: what could not be looked at is looked at again.
//! Invariant: bytes that are under way are bounded ([`AHEAD_BYTES`]), and no read is under way between two steps.
//! Invariant: whether a disk is read does not hang on whether names can be asked for.

mod lines;
mod look;
mod place;
#[cfg(test)]
mod tests;

use futures_util::stream::{FuturesUnordered, StreamExt};

use self::lines::Lines;
use self::look::{Looked, OpenObject, Wrong};
use self::place::{Place, Reached, order};
use super::{Outcome, Progress, Worker};
use crate::block;
use crate::catalog::{self, Grip, PathHash};
use crate::disk::run::Stretch;
use crate::disk::{DiskHandle, Location};
use crate::index::Table;
use crate::net::once_more;
use crate::object::{BoxFuture, Store};

/// Bytes of a unit.
const UNIT: u64 = 64 << 10;
/// Keys that are brought into the order of the disk together (some ten megabytes), and how many of them are fetched at once.
const PAGE: usize = if cfg!(test) { 120 } else { 1 << 16 };
const FETCH: usize = if cfg!(test) { 50 } else { 1024 };
/// Most records of a request.
const RUN: usize = 128;
/// Bytes for which an item counts at least: what it costs beside its reading.
const LEAST: u64 = 4 << 10;
/// Rows of blocks looked at together.
const BLOCK_ROWS: usize = 64;
/// Requests, and bytes of them, that are under way at a time: a small part of what a disk takes from all its readers.
const AHEAD: usize = 32;
const AHEAD_BYTES: u64 = 8 << 20;
/// Units after which the place is noted in the index: so much is read again after a restart, and what lies in segments that were open.
const NOTE_EVERY: u32 = if cfg!(test) { 4 } else { 1024 };

/// The auditor of a disk. A unit is 64 KiB read, or sixteen small items.
pub struct Auditor {
    name: String,
    disk: DiskHandle,
    /// Without one, listings are not repaired and the place is not noted.
    store: Option<Store>,
    place: Place,
    page: Page,
    /// A large object that is being read.
    open: Option<OpenObject>,
    lines: Option<Lines>,
    /// Units since the place was noted.
    unnoted: u32,
    progress: Progress,
    /// Of a disk that no node has open: what was found since somebody asked.
    told: Vec<String>,
}

/// What is looked at before the place moves.
#[derive(Default)]
struct Page {
    /// Not yet looked at, those that lie last first.
    ahead: Vec<Grip>,
    /// Large objects, to be read one after another.
    large: Vec<Grip>,
    /// Where the one lies that is being read.
    reading: Option<Location>,
    /// When it was walked, segments that were opened before this one had all that they will ever have.
    settled: u64,
    /// Where the place moves.
    last: Option<Vec<u8>>,
    /// [`Progress::done`] at its beginning, or at the last note.
    done_before: u64,
}

impl std::fmt::Debug for Auditor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auditor")
            .field("name", &self.name)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

fn units_of(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1)
}

impl Page {
    /// What comes next and is read by one request, and how many bytes that reads.
    fn next_run(&mut self) -> Option<(Vec<Grip>, u64)> {
        let first = self.ahead.pop()?;
        let (mut stretch, mut run) = (Stretch::of(first.head.at), vec![first]);
        while let Some(longer) = self.ahead.last().and_then(|grip| stretch.with(grip.head.at))
            && run.len() < RUN
        {
            stretch = longer;
            run.extend(self.ahead.pop());
        }
        Some((run, stretch.bytes()))
    }

    /// How far it was looked at; `None`: it was not begun.
    fn reached(&self) -> Option<Reached> {
        let last = self.last.clone()?;
        let next = self.ahead.last().into_iter().chain(&self.large).map(|grip| grip.head.at);
        let next = next.chain(self.reading).map(order).min();
        Some(Reached { last, before: next.unwrap_or((u32::MAX, u32::MAX)), settled: self.settled })
    }
}

impl Auditor {
    /// Of one disk. Goes on where an earlier one was.
    #[must_use]
    pub fn new(disk: DiskHandle, store: Store) -> Self {
        let noted = disk.index().get(Table::System, &catalog::worker_place("auditor")).ok().flatten();
        let place = noted.and_then(|bytes| Place::decode(&bytes)).unwrap_or_else(Place::start);
        Self { place, lines: Some(Lines::new(store.clone())), store: Some(store), ..Self::offline(disk) }
    }

    /// Of a disk that no node has open: one pass from the start that changes nothing.
    #[must_use]
    pub fn offline(disk: DiskHandle) -> Self {
        Self {
            name: format!("auditor {}", disk.device()),
            disk,
            store: None,
            place: Place::start(),
            page: Page::default(),
            open: None,
            lines: None,
            unnoted: 0,
            progress: Progress::default(),
            told: Vec::new(),
        }
    }

    /// What was found on a disk that no node has open since this was called last; a node says it in its log.
    pub fn take_findings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }

    async fn audit(&mut self, budget: u32) -> Result<Outcome, Wrong> {
        let mut units = 0;
        while units < budget {
            let did = match self.some(budget - units).await {
                Ok(Some(did)) => did,
                // First what was done is told.
                Ok(None) if units > 0 => break,
                Ok(None) => {
                    self.ask_lines(true).await?;
                    self.place = Place::start();
                    self.progress.pass_ended();
                    self.note().await?;
                    return Ok(Outcome::Idle);
                }
                Err(failed) => {
                    // All of the page once more that was not noted: nothing is passed over.
                    self.progress.done = self.page.done_before.min(self.progress.done);
                    (self.page, self.open) = (Page::default(), None);
                    return Err(failed);
                }
            };
            units = units.saturating_add(did);
        }
        self.unnoted = self.unnoted.saturating_add(units);
        if self.unnoted >= NOTE_EVERY {
            self.note().await?;
        }
        Ok(Outcome::Did(units))
    }

    /// Looks at what comes next, about as much as `budget` units; what it came to, `None` at the end of a pass.
    async fn some(&mut self, budget: u32) -> Result<Option<u32>, Wrong> {
        if let Some(open) = self.open.take() {
            return self.chunks(open, budget).await.map(Some);
        }
        if let Some(grip) = self.page.large.pop() {
            return self.large(&grip).await.map(Some);
        }
        if self.place.table == Table::Blocks {
            return self.blocks().await;
        }
        if self.page.ahead.is_empty() && !self.turn_page().await? {
            self.place = Place::of(match self.place.table {
                Table::Objects => Table::Rows,
                _ => Table::Blocks,
            });
            return Ok(Some(0));
        }
        self.records(budget).await.map(Some)
    }

    /// The place moves past the page, and the next is brought into order; false where there is none.
    async fn turn_page(&mut self) -> Result<bool, Wrong> {
        if let Some(last) = self.page.last.take() {
            self.place.pass(last);
        }
        let settled = self.disk.settled();
        let (mut ahead, mut after) = (Vec::<Grip>::new(), self.place.after.clone());
        while ahead.len() < PAGE {
            let some = catalog::walk(self.disk.index(), self.place.table, &after, FETCH)?;
            let Some(last) = some.last() else { break };
            after.clone_from(&last.key);
            ahead.extend(some);
            once_more().await;
        }
        let (full, walked) = (ahead.len() >= PAGE, ahead.last().map(|grip| grip.key.clone()));
        let (last, settled) = match &self.place.reached {
            // The same page once more, but for what was looked at. It may have grown.
            Some(reached) => {
                ahead.retain(|grip| grip.key <= reached.last && !reached.covers(&self.disk, grip));
                let last = walked.filter(|walked| full && *walked < reached.last);
                (last.or_else(|| Some(reached.last.clone())), reached.settled)
            }
            None => (walked, settled),
        };
        ahead.sort_unstable_by_key(|grip| std::cmp::Reverse(grip.head.at));
        let more = last.is_some();
        let done_before = self.progress.done;
        self.page = Page { ahead, large: Vec::new(), reading: None, settled, last, done_before };
        self.progress.total = self.disk.index().stats().keys.max(self.progress.done);
        Ok(more)
    }

    /// Looks at records of the page, several requests at a time.
    async fn records(&mut self, budget: u32) -> Result<u32, Wrong> {
        let (mut under_way, mut bytes, mut cost) = (FuturesUnordered::new(), 0, 0);
        loop {
            while cost < u64::from(budget) * UNIT
                && (under_way.is_empty() || bytes < AHEAD_BYTES && under_way.len() < AHEAD)
                && let Some((run, length)) = self.page.next_run()
            {
                bytes += length;
                cost += length.max(run.len() as u64 * LEAST);
                let (disk, table) = (self.disk.clone(), self.place.table);
                under_way.push(async move { (look::look(&disk, table, run).await, length) });
            }
            let Some((looked, length)) = under_way.next().await else { return Ok(units_of(cost)) };
            bytes -= length;
            self.progress.bytes += length;
            for (grip, looked) in looked {
                self.judge(grip, looked)?;
            }
            self.ask_lines(false).await?;
        }
    }

    fn judge(&mut self, grip: Grip, looked: Result<Looked, Wrong>) -> Result<(), Wrong> {
        self.progress.done += 1;
        match looked {
            Ok(Looked::Gone) => {}
            Ok(Looked::Sound(named)) => {
                if let Some((lines, named)) = self.lines.as_mut().zip(named) {
                    lines.push(named);
                }
            }
            Ok(Looked::Large) => self.page.large.push(grip),
            Err(Wrong::Found(what)) => self.found(what, &grip.key),
            Err(failed) => return Err(failed),
        }
        Ok(())
    }

    /// Opens a large object.
    async fn large(&mut self, grip: &Grip) -> Result<u32, Wrong> {
        match look::open(&self.disk, grip).await {
            Ok(Some((open, named))) => {
                self.page.reading = Some(grip.head.at);
                if let Some(lines) = &mut self.lines {
                    lines.push(named);
                }
                self.open = Some(open);
            }
            Ok(None) => {}
            Err(Wrong::Found(what)) => self.found(what, &grip.key),
            Err(failed) => return Err(failed),
        }
        self.ask_lines(false).await?;
        Ok(1)
    }

    /// Reads on in a large object.
    async fn chunks(&mut self, mut open: OpenObject, budget: u32) -> Result<u32, Wrong> {
        let at = self.page.reading.take();
        match open.read_on(&self.disk, u64::from(budget) * UNIT).await {
            Ok((bytes, whole)) => {
                self.progress.bytes += bytes;
                (self.open, self.page.reading) = ((!whole).then_some(open), at.filter(|_| !whole));
                Ok(units_of(bytes))
            }
            Err(Wrong::Found(what)) => {
                self.found(what, &open.key);
                Ok(1)
            }
            Err(failed) => Err(failed),
        }
    }

    /// Takes note of damage.
    fn tell(&mut self, what: String) {
        tracing::error!(worker = self.name, what, "audit found damage");
        if self.store.is_none() {
            self.told.push(what.clone());
        }
        self.progress.found(what);
    }

    /// Takes note of damage, and has an object mended from other devices.
    fn found(&mut self, what: String, key: &[u8]) {
        self.tell(what);
        let key: Option<PathHash> = key.try_into().ok();
        if let Some((store, key)) =
            self.store.as_ref().zip(key).filter(|_| self.place.table == Table::Objects)
        {
            store.inner.copies.heal(self.disk.device(), key);
        }
    }

    /// Asks for the lines of what was looked at, when that is due. `all`: at the end of a pass.
    async fn ask_lines(&mut self, all: bool) -> Result<(), Wrong> {
        let Some(lines) = &mut self.lines else { return Ok(()) };
        while lines.are_due(all) {
            let asked = lines.ask(all).await;
            asked.findings.into_iter().for_each(|what| self.progress.found(what));
            if let Some(why) = asked.failed {
                return if all { Err(Wrong::Failed(why)) } else { Ok(()) };
            }
        }
        Ok(())
    }

    /// Looks at some blocks of volumes.
    async fn blocks(&mut self) -> Result<Option<u32>, Wrong> {
        let audited = block::audit(&self.disk, &self.place.after, BLOCK_ROWS).await?;
        audited.wrong.into_iter().for_each(|what| self.tell(what));
        let Some(last) = audited.last else { return Ok(None) };
        self.place.after = last;
        self.progress.done += audited.rows;
        self.progress.bytes += audited.bytes;
        Ok(Some(units_of(audited.bytes)))
    }

    /// Notes the place in the index. It may be lost: then the audit goes on earlier.
    async fn note(&mut self) -> Result<(), Wrong> {
        self.unnoted = 0;
        if let Some(reached) = self.page.reached() {
            self.place.reached = Some(reached);
            self.page.done_before = self.progress.done;
        }
        if self.store.is_none() {
            return Ok(());
        }
        let value = self.place.encode();
        let change = move |tx: &mut crate::disk::catalog::Tx<'_>| {
            tx.put(Table::System, catalog::worker_place("auditor"), value);
            Ok(())
        };
        Ok(self.disk.submit_prune(Box::new(change)).await?)
    }
}

impl Worker for Auditor {
    fn name(&self) -> &str {
        &self.name
    }

    fn step(&mut self, budget: u32) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            match self.audit(budget).await {
                Ok(outcome) => outcome,
                Err(Wrong::Found(why) | Wrong::Failed(why)) => Outcome::Failed(format!("audit: {why}")),
            }
        })
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }
}
