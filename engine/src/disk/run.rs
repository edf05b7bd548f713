//! Records that lie near one another, read by one request: for whoever goes through a disk in its order.
//!
//! Invariant: a request lies in one segment and reads at most [`RUN_BYTES`].
//! Invariant: every record is verified by itself; a bad place between two of them is no reason to fail.

use bytes::Bytes;

use super::format::record::StoredRecord;
use super::handle::DiskHandle;
use super::limits::MAX_RECORD;
use super::{DiskError, Location};
use crate::io::{BLOCK, RECORD_BUFFER};

/// Most bytes of a request: what one buffer holds, wherever in its first block it begins.
const RUN_BYTES: u64 = (RECORD_BUFFER - 2 * BLOCK) as u64;
/// What is read beside rather than left out: a request more costs a device about as much as so many bytes.
const GAP_BYTES: u64 = 32 << 10;

const _: () = assert!(RUN_BYTES >= MAX_RECORD as u64);

/// A stretch of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    segment: u32,
    from: u64,
    to: u64,
}

impl Stretch {
    /// Of one record.
    pub(crate) fn of(at: Location) -> Self {
        let from = u64::from(at.offset);
        Self { segment: at.segment, from, to: from + u64::from(at.len) }
    }

    /// With a record that lies behind it, if one request reads both.
    pub(crate) fn with(self, at: Location) -> Option<Self> {
        let next = Self::of(at);
        let to = next.to.max(self.to);
        let near = next.segment == self.segment
            && next.from >= self.from
            && next.from <= self.to + GAP_BYTES
            && to - self.from <= RUN_BYTES;
        near.then_some(Self { to, ..self })
    }

    /// Bytes of it.
    pub(crate) fn bytes(self) -> u64 {
        self.to - self.from
    }
}

impl DiskHandle {
    /// The records at places that [`DiskHandle::lookup`] found, each verified, in order; always from the device. Those that lie near
    /// the first, in the order of the disk, are read by one request. Keep the pins until this returns.
    pub(crate) async fn read_run(&self, places: &[Location]) -> Vec<Result<StoredRecord, DiskError>> {
        let mut run: Option<Stretch> = None;
        for at in places.iter().filter(|at| self.check_place(**at).is_ok()) {
            run = run.map_or(Some(Stretch::of(*at)), |run| run.with(*at).or(Some(run)));
        }
        // What fails as a whole is tried one by one.
        let raw = match run.filter(|_| places.len() > 1) {
            Some(run) => self.read_stretch(run).await.ok().map(|raw| (run, raw)),
            None => None,
        };
        let mut records = Vec::with_capacity(places.len());
        for at in places {
            let bytes = raw.as_ref().and_then(|(run, raw)| within(*run, raw, *at));
            records.push(match bytes {
                Some(bytes) => self.verified(*at, bytes),
                None => self.read_uncached(*at).await,
            });
        }
        records
    }

    async fn read_stretch(&self, run: Stretch) -> Result<Bytes, DiskError> {
        let [offset, len] = [run.from, run.bytes()].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        self.read_within(Location { segment: run.segment, offset, len }, 0, len as usize).await
    }
}

fn within(run: Stretch, raw: &Bytes, at: Location) -> Option<Bytes> {
    let Stretch { segment, from, .. } = Stretch::of(at);
    let from = usize::try_from(from.checked_sub(run.from).filter(|_| segment == run.segment)?).ok()?;
    let to = from + at.len as usize;
    (to <= raw.len()).then(|| raw.slice(from..to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(segment: u32, offset: u32, len: u32) -> Location {
        Location { segment, offset, len }
    }

    #[test]
    fn a_run_ends_at_a_gap_a_segment_and_a_buffer() {
        let run = Stretch::of(at(1, 4096, 1000));
        let with = |offset: u64, len: u64| {
            let [offset, len] = [offset, len].map(|n| u32::try_from(n).unwrap());
            run.with(at(1, offset, len)).map(Stretch::bytes)
        };
        assert_eq!(with(5096, 1000), Some(2000));
        assert_eq!(with(5096 + GAP_BYTES, 8), Some(1008 + GAP_BYTES));
        assert_eq!(with(5104 + GAP_BYTES, 8), None);
        assert_eq!(with(0, 8), None, "it lies before");
        assert_eq!(with(5096, RUN_BYTES - 1000), Some(RUN_BYTES));
        assert_eq!(with(5096, RUN_BYTES - 992), None);
        assert_eq!(with(4200, 8), Some(1000), "within it, as an index may say that is damaged");
        assert_eq!(run.with(at(2, 5096, 8)), None);
    }

    #[test]
    fn what_is_not_in_a_run_is_not_taken_from_it() {
        let run = Stretch { segment: 1, from: 4096, to: 4104 };
        let raw = Bytes::from_static(b"12345678");
        assert_eq!(within(run, &raw, at(1, 4096, 8)).as_deref(), Some(&b"12345678"[..]));
        for other in [at(0, 4096, 8), at(1, 4088, 8), at(1, 4096, 16), at(1, 8192, 8)] {
            assert_eq!(within(run, &raw, other), None, "{other:?}");
        }
    }
}
