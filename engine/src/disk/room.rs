//! Room where the index lies: another file system than the disk, which others fill as well.
//!
//! Where that is full, RocksDB can neither flush nor be opened: the disk would go out, and stay out when the node is started again, so that
//! nothing could be deleted either. Clients' writes are refused before that, as above the high-water mark.
//!
//! Invariant: what deletes, moves or frees is always taken: it makes room.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::disk::format::record::DeviceId;
use crate::index::Room;

/// Bytes that stay free: what RocksDB needs beside its tables while it merges some, and for what deletes.
const RESERVE: u64 = 1 << 30;
/// On a small file system a part of it: one in so many bytes.
const PART: u64 = 16;

/// Whether there is little room, as last looked at.
#[derive(Debug)]
pub(crate) struct IndexRoom {
    tight: AtomicBool,
    /// Bytes; [`NOT_KNOWN`] where it does not lie on a file system.
    free: AtomicU64,
}

const NOT_KNOWN: u64 = u64::MAX;

impl Default for IndexRoom {
    fn default() -> Self {
        Self { tight: AtomicBool::default(), free: AtomicU64::new(NOT_KNOWN) }
    }
}

impl IndexRoom {
    pub(crate) fn is_tight(&self) -> bool {
        self.tight.load(Ordering::Relaxed)
    }

    /// What was free, where that is known.
    pub(crate) fn free(&self) -> Option<u64> {
        Some(self.free.load(Ordering::Relaxed)).filter(|free| *free != NOT_KNOWN)
    }

    /// Takes note of what an index says, `None` where it does not lie on a file system.
    pub(crate) fn look(&self, device: DeviceId, room: Option<Room>) {
        let Some(room) = room else { return };
        self.free.store(room.free, Ordering::Relaxed);
        let tight = is_tight(room);
        if self.tight.swap(tight, Ordering::Relaxed) == tight {
            return;
        }
        if tight {
            tracing::warn!(disk = %device, free = room.free, wanted = reserve(room),
                "the file system of the index is nearly full: clients' writes are refused; make room there, or give the index another place");
        } else {
            tracing::info!(disk = %device, free = room.free, "the file system of the index has room again");
        }
    }
}

fn reserve(room: Room) -> u64 {
    RESERVE.min(room.total / PART)
}

fn is_tight(room: Room) -> bool {
    room.free < reserve(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_is_a_gibibyte_and_less_on_a_small_file_system() {
        let tight = |free, total| is_tight(Room { free, total });
        assert!(tight((1 << 30) - 1, 100 << 30) && !tight(1 << 30, 100 << 30));
        assert!(tight((64 << 20) - 1, 1 << 30) && !tight(64 << 20, 1 << 30));
        assert!(!tight(0, 0), "of a file system that counts nothing");
    }
}
