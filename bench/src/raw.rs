//! The raw loop: what the disk gives to a program that does nothing else.
//!
//! Invariant: writes are sequential, O_DIRECT, one fdatasync after each; reads are random and O_DIRECT.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use quarry_engine::io::{
    AlignedBuf, BLOCK, Completion, Disk, Op, OpenOptions, SplitMix64, Wait, open_device,
};

use crate::failure::Failure;
use crate::load::{Limit, Pass, micros, now};

/// Largest single transfer.
const LARGEST: usize = 8 << 20;

/// Where the raw loop works.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) path: PathBuf,
    /// First byte.
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// Shared with the engine: cannot be opened a second time through the engine's seam.
    pub(crate) shared: bool,
}

/// The open target.
#[derive(Debug)]
pub(crate) struct Raw {
    target: Target,
    file: File,
    /// Where the next write goes, from the start.
    at: u64,
    source: AlignedBuf,
    random: SplitMix64,
}

impl Raw {
    /// Opens the target and writes it once in full, so that reads find data and flushes no journal.
    pub(crate) fn open(target: Target) -> Result<Self, Failure> {
        let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap_or(0);
        let open = std::fs::OpenOptions::new().read(true).write(true).custom_flags(direct).open(&target.path);
        let file = open.map_err(Failure::io("open the raw loop's file"))?;
        let mut source = AlignedBuf::zeroed(LARGEST);
        SplitMix64::new(1).fill(&mut source);
        let mut raw = Self { target, file, at: 0, source, random: SplitMix64::new(2) };
        let whole = Limit::new(Duration::from_secs(3600), raw.target.len, LARGEST as u64);
        raw.write_pass(LARGEST, whole)?;
        Ok(raw)
    }

    /// Writes of `len` bytes one after the other, each flushed.
    pub(crate) fn write_pass(&mut self, len: usize, limit: Limit) -> Result<Pass, Failure> {
        let len = len.next_multiple_of(BLOCK).clamp(BLOCK, LARGEST);
        let mut latencies = Vec::new();
        let began = now();
        while (latencies.len() as u64) < limit.ops && began.elapsed() < limit.time {
            if self.at + len as u64 > self.target.len {
                self.at = 0;
            }
            let start = now();
            let write = self.file.write_all_at(&self.source[..len], self.target.start + self.at);
            write.and_then(|()| self.file.sync_data()).map_err(Failure::io("write the raw loop's file"))?;
            latencies.push(micros(start));
            self.at += len as u64;
        }
        Ok(Pass::since(began, latencies))
    }

    /// Random reads of `len` bytes within the first `span` bytes, so many in flight.
    pub(crate) fn read_pass(
        &mut self,
        len: usize,
        in_flight: usize,
        span: u64,
        limit: Limit,
    ) -> Result<Pass, Failure> {
        let len = len.next_multiple_of(BLOCK);
        let places = (span.clamp(len as u64, self.target.len) - len as u64) / BLOCK as u64 + 1;
        if self.target.shared {
            return self.read_by_threads(len, in_flight, places, limit);
        }
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let mut disk = open_device(&self.target.path, options)?;
        let mut random = self.random.split();
        read_by_ring(disk.as_mut(), len, in_flight, limit, || {
            self.target.start + random.below(places) * BLOCK as u64
        })
    }

    /// Reads the first `span` bytes in order, `len` at a time, so many in flight.
    pub(crate) fn scan_pass(&mut self, len: usize, in_flight: usize, span: u64) -> Result<Pass, Failure> {
        let len = len.next_multiple_of(BLOCK);
        let (each, span) = (len as u64, span.clamp(len as u64, self.target.len));
        let limit = Limit { ops: (span / each).max(in_flight as u64), time: Duration::from_secs(3600) };
        if self.target.shared {
            return Err(Failure::Other(
                "a device that is shared with the engine is not read in order".to_owned(),
            ));
        }
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        let mut disk = open_device(&self.target.path, options)?;
        let (start, mut at) = (self.target.start, 0);
        read_by_ring(disk.as_mut(), len, in_flight, limit, || {
            let place = start + at;
            at = if at + 2 * each > span { 0 } else { at + each };
            place
        })
    }

    fn read_by_threads(
        &mut self,
        len: usize,
        in_flight: usize,
        places: u64,
        limit: Limit,
    ) -> Result<Pass, Failure> {
        let began = now();
        let share = (limit.ops / in_flight as u64).max(1);
        let generators: Vec<SplitMix64> = (0..in_flight).map(|_| self.random.split()).collect();
        let (file, start) = (&self.file, self.target.start);
        let work = |mut random: SplitMix64| {
            let mut buf = AlignedBuf::zeroed(len);
            let mut latencies = Vec::new();
            while (latencies.len() as u64) < share && began.elapsed() < limit.time {
                let one = now();
                file.read_exact_at(&mut buf, start + random.below(places) * BLOCK as u64)?;
                latencies.push(micros(one));
            }
            Ok::<_, std::io::Error>(latencies)
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> =
                generators.into_iter().map(|random| scope.spawn(move || work(random))).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        let mut all = Vec::new();
        for result in results {
            let done = result.map_err(|_| Failure::Other("a reader of the raw loop panicked".to_owned()))?;
            all.append(&mut done.map_err(Failure::io("read the raw loop's file"))?);
        }
        Ok(Pass::since(began, all))
    }
}

/// Keeps `in_flight` reads in a disk of the engine's own seam.
fn read_by_ring(
    disk: &mut dyn Disk,
    len: usize,
    in_flight: usize,
    limit: Limit,
    mut place: impl FnMut() -> u64,
) -> Result<Pass, Failure> {
    let began = now();
    let mut started = vec![began; in_flight];
    for slot in &mut started {
        *slot = now();
    }
    for token in 0..in_flight as u64 {
        let buf = disk.buffer(len);
        disk.submit(Op::Read { token, offset: place(), buf });
    }
    let (mut begun, mut running) = (in_flight as u64, in_flight);
    let (mut latencies, mut done) = (Vec::new(), Vec::<Completion>::new());
    while running > 0 {
        disk.reap(Wait::AtMost(Duration::from_secs(1)), &mut done);
        for completion in done.drain(..) {
            completion.result.map_err(Failure::io("read the raw loop's file"))?;
            let slot = usize::try_from(completion.token).unwrap_or(0);
            latencies.push(micros(started[slot]));
            let more = begun < limit.ops && began.elapsed() < limit.time;
            let (Some(buf), true) = (completion.buf, more) else {
                running -= 1;
                continue;
            };
            begun += 1;
            started[slot] = now();
            disk.submit(Op::Read { token: completion.token, offset: place(), buf });
        }
    }
    Ok(Pass::since(began, latencies))
}
