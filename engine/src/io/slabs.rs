//! Memory for what is on its way to a device, used again and again.
//!
//! Fresh memory is zeroed by the kernel page by page, which for a mebibyte costs as much processor as to write it. And a device is told of
//! memory by pages: of large ones it hears less, and takes half as long where it is a virtual one.
//!
//! Invariant: nobody sees what others left there: what was not written since it was taken has no length.
//! Invariant: of what is in use no byte is taken twice, for it is carved off a slab, which is whole again when all of it is dropped.
//! Invariant: at most [`KEPT`] slabs are kept. Where all of them are in use others are made, and go with who uses them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

use super::BLOCK;
use super::buffer::{LARGE_PAGE, advise_large};
use super::gather::{IN_PLACE_FROM, aligned_bytes};

/// Bytes of a slab.
const SLAB: usize = 2 * LARGE_PAGE;
/// Slabs that are kept: what may be queued for a disk, and as much again as lies unused between what is in use.
const KEPT: usize = 12;

const _: () = assert!(SLAB.is_multiple_of(LARGE_PAGE) && LARGE_PAGE.is_multiple_of(BLOCK));

/// A stock of memory. It goes when this is dropped and nobody uses any of it.
#[derive(Default)]
pub struct Slabs(Mutex<State>);

#[derive(Default)]
struct State {
    /// The rest of the slab that is being carved.
    rest: Option<BytesMut>,
    /// Carved; the one that was first is first.
    carved: VecDeque<BytesMut>,
}

impl std::fmt::Debug for Slabs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slabs").field("carved", &self.state().carved.len()).finish_non_exhaustive()
    }
}

impl Slabs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`aligned_bytes`]; from the stock, where that is worth it.
    #[must_use]
    pub fn take(&self, len: usize) -> BytesMut {
        if !(IN_PLACE_FROM..=SLAB).contains(&len) {
            return aligned_bytes(len);
        }
        let room = len.next_multiple_of(BLOCK);
        let mut state = self.state();
        let mut slab = match state.rest.take() {
            Some(rest) if rest.capacity() >= room => rest,
            rest => {
                state.carved.extend(rest);
                state.next()
            }
        };
        state.rest = Some(slab.split_off(room));
        slab
    }
}

impl State {
    /// A whole slab: one that nobody uses any more, or a new one.
    fn next(&mut self) -> BytesMut {
        let whole = self.carved.iter_mut().position(|slab| slab.try_reclaim(SLAB + LARGE_PAGE));
        let mut slab = whole.and_then(|at| self.carved.remove(at)).unwrap_or_else(|| {
            if self.carved.len() >= KEPT {
                self.carved.pop_front();
            }
            fresh()
        });
        // From its first large page on.
        let lead = slab.as_ptr().addr().wrapping_neg() % LARGE_PAGE;
        let mut slab = slab.split_off(lead);
        drop(slab.split_off(SLAB));
        slab
    }
}

/// Memory with a slab in it.
fn fresh() -> BytesMut {
    let mut slab = BytesMut::with_capacity(SLAB + LARGE_PAGE);
    let lead = slab.as_ptr().addr().wrapping_neg() % LARGE_PAGE;
    let room = slab.spare_capacity_mut();
    if let Some(pages) = room.get_mut(lead..lead + SLAB) {
        advise_large(pages.as_mut_ptr().cast(), SLAB);
    }
    slab
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Gather;

    fn taken(slabs: &Slabs, len: usize, byte: u8) -> bytes::Bytes {
        let mut bytes = slabs.take(len);
        assert!(bytes.is_empty() && bytes.capacity() >= len);
        bytes.resize(len, byte);
        bytes.freeze()
    }

    #[test]
    fn what_is_in_use_is_nobody_elses_and_fits_a_device() {
        let slabs = Slabs::default();
        let mut held = VecDeque::new();
        for turn in 0..2000_usize {
            let len = [IN_PLACE_FROM, 1 << 20, SLAB, IN_PLACE_FROM + 1, 700_000, 4096, SLAB + 1][turn % 7];
            let byte = u8::try_from(turn % 251).unwrap();
            let bytes = taken(&slabs, len, byte);
            assert!(len < IN_PLACE_FROM || Gather::is_fit(&bytes) == len.is_multiple_of(BLOCK), "{len}");
            held.push_back((bytes, byte));
            if turn % 50 > 10 {
                let (bytes, byte) = held.pop_front().unwrap();
                assert!(bytes.iter().all(|one| *one == byte), "{turn}");
            }
        }
        assert!(slabs.state().carved.len() < KEPT);
    }

    #[test]
    fn memory_that_came_back_is_used_again() {
        let slabs = Slabs::default();
        let places: std::collections::HashSet<_> =
            (0..100).map(|_| taken(&slabs, 1 << 20, 1).as_ptr()).collect();
        assert_eq!(places.len(), SLAB >> 20, "one slab does");
        let held: Vec<_> = (0..3 * (SLAB >> 20)).map(|_| taken(&slabs, 1 << 20, 1)).collect();
        let places = held.iter().map(|bytes| bytes.as_ptr()).collect::<std::collections::HashSet<_>>();
        drop(held);
        let again: Vec<_> = (0..3 * (SLAB >> 20)).map(|_| taken(&slabs, 1 << 20, 1)).collect();
        assert!(again.iter().all(|bytes| places.contains(&bytes.as_ptr())));
    }

    #[test]
    fn a_stock_is_bounded_and_what_is_in_use_outlives_it() {
        let slabs = Slabs::default();
        let held: Vec<_> = (0..2 * KEPT).map(|_| taken(&slabs, SLAB, 7)).collect();
        assert_eq!(slabs.state().carved.len() + 1, KEPT, "and the one that is being carved");
        drop(slabs);
        assert!(held.iter().all(|bytes| bytes.iter().all(|byte| *byte == 7)));
    }
}
