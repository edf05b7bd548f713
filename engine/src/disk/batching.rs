//! Forming a batch: which groups go together, where it lies, and the segment it needs.
//!
//! Invariant: a group is never split over batches, a batch never over segments.
//! Invariant: a segment is opened only when a durable checkpoint named it as reserved: replay finds it there.

use super::answer::{Announcer, Waiting};
use super::assembly::assemble;
use super::core::{Core, Writing};
use super::format::batch::{BatchHeader, Descriptor, HeadClass, hash, header_len};
use super::format::segment::{Footer, FooterEntry, SegmentHeader, footer_len};
use super::limits::{ALIGN_FROM, CLIENT_RESERVE, DELETE_RESERVE, MAX_BATCH_RECORDS};
use super::segments::{HeadPosition, Position, State};
use super::shared::{Append, Class, Counters, DiskError, Item};
use super::{Durability, Location, Lsn};
use crate::io::{BLOCK, Told};

/// An open segment that a head appends to.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) segment: u32,
    pub(crate) seq: u64,
    /// Where the next batch goes.
    pub(crate) offset: u64,
    pub(crate) entries: Vec<FooterEntry>,
    /// The entries are all that the segment holds. Where something could not be read at an opening they are not, and the segment gets no
    /// footer: a rebuild would take what is not listed for never written.
    pub(crate) lists_all: bool,
}

impl Head {
    fn room(&self, segment_size: u64, more: usize) -> usize {
        let footer = footer_len(self.entries.len() + more) as u64;
        usize::try_from(segment_size.saturating_sub(self.offset + footer)).unwrap_or(usize::MAX)
    }
}

/// A record as the applier needs it: head bytes and places.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) head: Vec<u8>,
    pub(crate) at: Location,
    pub(crate) from: Option<Location>,
}

/// Who waits for a group of a batch.
pub(crate) struct Waiter {
    append: Append,
    lsn: Lsn,
}

/// A batch that has been placed.
pub(crate) struct Written {
    /// LSN after its last record.
    pub(crate) end_lsn: Lsn,
    pub(crate) bytes: u64,
    pub(crate) records: Vec<Placed>,
    /// The position once it is applied.
    pub(crate) position: Position,
    /// The segment that was full before it.
    pub(crate) sealed: Option<u32>,
    waiters: Vec<Waiter>,
}

impl Written {
    pub(crate) fn wants_durability(&self) -> bool {
        self.waiters.iter().any(|w| w.append.durability == Durability::Durable)
    }

    /// Who was in no hurry is.
    pub(crate) fn hasten(&mut self) {
        self.waiters.iter_mut().for_each(|waiter| waiter.append.hasten());
    }

    /// Answers those who wait only for the write.
    pub(crate) fn answer_appended(&mut self) {
        let (appended, durable) = std::mem::take(&mut self.waiters)
            .into_iter()
            .partition::<Vec<_>, _>(|w| w.append.durability == Durability::Appended);
        self.waiters = durable;
        tell(appended, &Ok(()));
    }

    /// Tells who waits for durability alone.
    pub(crate) fn say_durable(&self) {
        self.waiters.iter().for_each(|waiter| waiter.append.durable());
    }

    /// As [`Written::say_durable`], from elsewhere.
    pub(crate) fn on_durable(&self) -> Told {
        let announcers: Vec<_> = self.waiters.iter().filter_map(|waiter| waiter.append.announcer()).collect();
        Box::new(move || announcers.iter().for_each(Announcer::durable))
    }

    /// Answers everybody else.
    pub(crate) fn answer(self, result: &Result<(), DiskError>) {
        tell(self.waiters, result);
    }
}

fn tell(waiters: Vec<Waiter>, result: &Result<(), DiskError>) {
    let mut waiting = Waiting::default();
    for Waiter { append, lsn } in waiters {
        append.tell(result.clone().map(|()| lsn), &mut waiting);
    }
    waiting.wake();
}

/// Places of a batch's records, computed before any byte is copied.
struct Plan {
    header: BatchHeader,
    groups: Vec<Append>,
}

/// Where a record of this shape goes when the batch has reached `at` (both from the start of the batch). Large data starts
/// on a block boundary.
pub(super) fn place(at: usize, head: usize, data: usize) -> usize {
    let at = at.next_multiple_of(8);
    if data < ALIGN_FROM { at } else { (at + head).next_multiple_of(BLOCK) - head }
}

impl Core {
    /// Forms and submits a batch when something is queued and there is a place for it. False: nothing was started.
    pub(crate) fn start_batch(&mut self) -> bool {
        let class = match (self.clients.is_empty(), self.movers.is_empty()) {
            (true, true) => return false,
            (false, true) => HeadClass::Hot,
            (true, false) => HeadClass::Cold,
            (false, false) if self.mover_turn => HeadClass::Cold,
            (false, false) => HeadClass::Hot,
        };
        self.mover_turn = class == HeadClass::Hot;
        if self.start_class(class) {
            return true;
        }
        // No place for one kind must not hold up the other: deletes and moves are what makes room.
        let other = if class == HeadClass::Hot { HeadClass::Cold } else { HeadClass::Hot };
        self.start_class(other)
    }

    fn queue(&mut self, class: HeadClass) -> &mut std::collections::VecDeque<Append> {
        match class {
            HeadClass::Hot => &mut self.clients,
            HeadClass::Cold => &mut self.movers,
        }
    }

    pub(crate) fn start_class(&mut self, class: HeadClass) -> bool {
        let Some(first) = self.queue(class).front() else { return false };
        let need = (header_len(MAX_BATCH_RECORDS, 0) + first.most_bytes()).next_multiple_of(BLOCK);
        let segment_size = self.shared.layout.segment_size;
        let fits = self.heads[class as usize]
            .as_ref()
            .is_some_and(|head| head.room(segment_size, MAX_BATCH_RECORDS) >= need);
        let mut writes = Vec::new();
        let mut opened = false;
        let most = self.most_bytes_now();
        if self.writing.is_some() && (!fits || need > most) {
            return false;
        }
        if !fits {
            let Some(segment) = self.next_segment(class) else { return false };
            let full = self.heads[class as usize].as_ref().map(|head| head.segment);
            writes.extend(self.seal(class));
            self.sealed = full;
            self.open_segment(class, segment);
            opened = true;
        }
        let Some(open) = self.heads[class as usize].as_ref() else { return false };
        let room = open.room(segment_size, MAX_BATCH_RECORDS).min(most);
        let Some(head) = self.head_position(class) else { return false };
        let groups = self.take_groups(class, room);
        self.write_batch(class, head, groups, opened, writes);
        true
    }

    /// The next reserved segment, if the class may take one.
    fn next_segment(&mut self, class: HeadClass) -> Option<u32> {
        let free = self.shared.segments().count(State::Free);
        let reserve = match (class, self.clients.front().map(|a| a.class)) {
            (HeadClass::Cold, _) => 0,
            (HeadClass::Hot, Some(Class::Delete)) => DELETE_RESERVE,
            (HeadClass::Hot, _) => CLIENT_RESERVE,
        };
        if free <= reserve {
            self.short_of_space(class);
            return None;
        }
        let segments = self.shared.segments();
        let next = self.checkpoint.usable.iter().copied().find(|s| segments.get(*s).state == State::Free);
        drop(segments);
        if next.is_none() {
            self.checkpoint.wanted = true;
        }
        next
    }

    /// No segment for the head of the queue: deletes go first; clients wait for the cleaner, or are told that the disk is
    /// full when cleaning can give nothing.
    fn short_of_space(&mut self, class: HeadClass) {
        self.checkpoint.wanted |= self.freeing.waits_for_checkpoint(self.checkpoint.durable_changes());
        if self.closing.is_some() {
            // Nobody cleans any more, so nobody who waits for space can ever be served.
            for append in std::mem::take(self.queue(class)) {
                append.answer(Err(DiskError::Closed));
            }
            return;
        }
        if class == HeadClass::Cold {
            return;
        }
        if self.clients.front().is_some_and(|a| a.class == Class::Client)
            && let Some(at) = self.clients.iter().position(|a| a.class == Class::Delete)
            && let Some(delete) = self.clients.remove(at)
        {
            self.clients.push_front(delete);
        }
        if !self.can_make_room() {
            let (refused, kept): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.clients).into_iter().partition(|a| a.class == Class::Client);
            self.clients = kept.into();
            for append in refused {
                append.answer(Err(DiskError::NoSpace));
            }
        }
    }

    /// Whether cleaning or a checkpoint will free at least one segment.
    fn can_make_room(&self) -> bool {
        self.shared.segments().can_make_room(self.shared.layout.segment_size)
    }

    fn take_groups(&mut self, class: HeadClass, room: usize) -> Vec<Append> {
        let most = if class == HeadClass::Hot { self.share_of_clients() } else { usize::MAX };
        let queue = self.queue(class);
        let mut groups = Vec::new();
        let (mut bytes, mut records) = (header_len(MAX_BATCH_RECORDS, 0), 0);
        while let Some(next) = queue.front() {
            let (more, count) = (next.most_bytes(), next.items.len());
            let full = bytes + more > room || records + count > MAX_BATCH_RECORDS;
            if (full || groups.len() >= most) && !groups.is_empty() {
                break;
            }
            assert!(!full, "the first group was measured before");
            bytes += more;
            records += count;
            groups.extend(queue.pop_front());
        }
        groups
    }

    fn open_segment(&mut self, class: HeadClass, segment: u32) {
        let seq = self.position.next_seq;
        self.position.next_seq += 1;
        let mut segments = self.shared.segments();
        let s = segments.get_mut(segment);
        assert!(s.state == State::Free && s.live == 0, "segment {segment} is opened while in use");
        *s = super::segments::Segment { state: State::Open, class: Some(class), seq, ..Default::default() };
        self.shared.count_free(&segments);
        drop(segments);
        self.shared.seqs[segment as usize].store(seq, std::sync::atomic::Ordering::Release);
        let (entries, offset) = (Vec::new(), BLOCK as u64);
        self.heads[class as usize] = Some(Head { segment, seq, offset, entries, lists_all: true });
    }

    /// Ends the head's segment: its footer, to be written with the next batch, if it can have one.
    fn seal(&mut self, class: HeadClass) -> Option<(u64, Vec<u8>)> {
        let head = self.heads[class as usize].take()?;
        let size = self.shared.layout.segment_size;
        let end = u32::try_from(head.offset).unwrap_or(u32::MAX);
        {
            // `Sealed` comes with the batch that follows: until then records of it may be unapplied, and the cleaner
            // would take them for dead.
            self.shared.segments().get_mut(head.segment).end = end;
        }
        if !head.lists_all {
            return None;
        }
        let footer = Footer {
            device: self.shared.device,
            segment: head.segment,
            seq: head.seq,
            end,
            end_lsn: self.next_lsn,
            entries: head.entries,
        };
        let bytes = footer.encode(size);
        let at = self.shared.layout.segment_start(head.segment) + size - bytes.len() as u64;
        Some((at, bytes))
    }

    fn plan(&mut self, head: HeadPosition, groups: Vec<Append>) -> Plan {
        let items: Vec<&Item> = groups.iter().flat_map(|g| g.items.iter()).collect();
        let relocated = items.iter().filter(|i| i.from.is_some()).count();
        let mut at = header_len(items.len(), relocated);
        let mut records = Vec::with_capacity(items.len());
        for item in &items {
            let view = item.record.view();
            let offset = place(at, view.head_len, view.data_len);
            at = offset + item.record.stored_len();
            records.push(Descriptor {
                offset: u32::try_from(offset).unwrap_or(u32::MAX),
                len: u32::try_from(item.record.stored_len()).unwrap_or(u32::MAX),
                head_crc: view.stated_head_crc(),
                kind: view.kind,
                from: item.from,
            });
            self.position.max_sequence = self.position.max_sequence.max(view.sequence);
        }
        let header = BatchHeader {
            device: self.shared.device,
            segment: head.segment,
            segment_seq: head.seq,
            first_lsn: self.next_lsn,
            durable_lsn: self.durable_lsn,
            prev_hash: self.position.prev_hash,
            epoch: self.shared.epoch,
            total_len: u32::try_from(at.next_multiple_of(BLOCK)).unwrap_or(u32::MAX),
            records,
        };
        Plan { header, groups }
    }

    fn write_batch(
        &mut self,
        class: HeadClass,
        head: HeadPosition,
        groups: Vec<Append>,
        opened: bool,
        writes: Vec<(u64, Vec<u8>)>,
    ) {
        let Plan { header, groups } = self.plan(head, groups);
        let encoded = header.encode();
        let first = opened.then(|| {
            let first = SegmentHeader {
                device: self.shared.device,
                segment: head.segment,
                class,
                freed: false,
                seq: head.seq,
                first_lsn: header.first_lsn,
                epoch: self.shared.epoch,
            };
            first.encode()
        });
        let lead: &[u8] = first.as_deref().unwrap_or_default();
        let items = groups.iter().flat_map(|g| g.items.iter());
        let total = header.total_len as usize;
        let data = assemble(self.disk.as_mut(), lead, &encoded, total, &header.records, items);

        let lead = lead.len() as u64;
        let offset = self.shared.layout.segment_start(head.segment) + u64::from(head.offset) - lead;
        let batch = self.placed(class, head, &header, &encoded, groups);
        Counters::add(&self.shared.counters.batches, 1);
        Counters::add(&self.shared.counters.records, header.records.len() as u64);
        Counters::add(&self.shared.counters.written_bytes, batch.bytes);
        if writes.is_empty() {
            return self.submit_batch(batch, offset, data);
        }
        self.submit_write(offset, data);
        self.writing = Some(Writing { batch, left: 1 + writes.len(), commits: false });
        for (offset, bytes) in writes {
            let mut footer = self.disk.buffer(bytes.len());
            footer.copy_from_slice(&bytes);
            self.submit_write(offset, footer.into());
        }
    }

    /// Moves the head past the batch and remembers what the applier needs of it.
    fn placed(
        &mut self,
        class: HeadClass,
        head: HeadPosition,
        header: &BatchHeader,
        encoded: &[u8],
        groups: Vec<Append>,
    ) -> Written {
        let base = head.offset;
        let mut descriptors = header.records.iter();
        let (mut records, mut waiters) = (Vec::with_capacity(header.records.len()), Vec::new());
        let mut entries = Vec::with_capacity(header.records.len());
        let mut moved = 0;
        for mut append in groups {
            for item in std::mem::take(&mut append.items) {
                let Some(d) = descriptors.next() else { unreachable!("one descriptor for each record") };
                let at = Location { segment: head.segment, offset: base + d.offset, len: d.len };
                let head = item.record.into_head();
                let head_len = u32::try_from(head.len()).unwrap_or(u32::MAX);
                entries.push(FooterEntry { offset: at.offset, len: at.len, head_len, kind: d.kind });
                moved += if item.from.is_some() { u64::from(d.len) } else { 0 };
                records.push(Placed { head, at, from: item.from });
            }
            let lsn = self.next_lsn + records.len() as u64 - 1;
            waiters.push(Waiter { append, lsn });
        }
        let all: u64 = header.records.iter().map(|d| u64::from(d.len)).sum();
        Counters::add(&self.shared.counters.moved_bytes, moved);
        Counters::add(&self.shared.counters.client_bytes, all - moved);
        if let Some(open) = self.heads[class as usize].as_mut() {
            open.offset += u64::from(header.total_len);
            open.entries.append(&mut entries);
        }
        self.next_lsn = header.end_lsn();
        self.position.applied = self.next_lsn - 1;
        self.position.prev_hash = hash(encoded);
        let len = u32::try_from(encoded.len()).unwrap_or(u32::MAX);
        self.position.last = Some(Location { segment: head.segment, offset: base, len });
        self.position.heads = [HeadClass::Hot, HeadClass::Cold].map(|class| self.head_position(class));
        self.position.reserved = self.shared.segments().reserve(&self.position.reserved);
        Written {
            end_lsn: self.next_lsn,
            bytes: u64::from(header.total_len),
            records,
            position: self.position.clone(),
            sealed: self.sealed.take(),
            waiters,
        }
    }

    pub(crate) fn head_position(&self, class: HeadClass) -> Option<HeadPosition> {
        let head = self.heads[class as usize].as_ref()?;
        let offset = u32::try_from(head.offset).unwrap_or(u32::MAX);
        Some(HeadPosition { segment: head.segment, seq: head.seq, offset })
    }
}
