//! Aligned buffers: the memory that O_DIRECT transfers move, and the pool that recycles it.
//!
//! Invariant: a buffer starts at a multiple of [`BLOCK`]; its length is a multiple of [`BLOCK`] and at least one.
//! Invariant: every byte of a buffer was initialised once (zero), so no read of it is ever undefined.
//! Invariant: a registered index travels with exactly the memory that was registered under it.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::BLOCK;

/// A large page of most systems; nothing but speed depends on that.
pub(super) const LARGE_PAGE: usize = 2 << 20;

/// Asks for large pages behind memory that nobody has touched yet.
pub(super) fn advise_large(start: *mut u8, len: usize) {
    if !start.addr().is_multiple_of(BLOCK) {
        return;
    }
    // SAFETY: advice on how pages are to be backed changes no byte of them, whosoever they are.
    let advised = unsafe { libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE) };
    if advised != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "ask for large pages");
    }
}

/// A 4 KiB-aligned heap buffer whose length is a multiple of 4 KiB.
///
/// [`AlignedBuf::zeroed`] gives zeros. A buffer taken from a [`BufferPool`] (so, from
/// [`super::Disk::buffer`]) holds whatever its last user left there: its taker fills or zeroes what it does not
/// write. Dropping such a buffer returns its memory to the pool, on whatever thread that happens.
pub struct AlignedBuf {
    memory: Memory,
    len: usize,
    home: Option<Arc<BufferPool>>,
}

impl AlignedBuf {
    /// A buffer of `len` zeros, a positive multiple of [`BLOCK`].
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        assert_len(len);
        Self { memory: Memory::zeroed(len), len, home: None }
    }

    /// Keep the first `len` bytes, a positive multiple of [`BLOCK`] not above the present length.
    pub fn truncate(&mut self, len: usize) {
        assert_len(len);
        assert!(len <= self.len, "truncate to {len} of {}", self.len);
        self.len = len;
    }

    /// The index under which `ring` has registered this memory, if it has.
    pub(crate) fn registered(&self, ring: &BufferPool) -> Option<u16> {
        let home = self.home.as_ref()?;
        if home.identity == ring.identity { self.memory.index } else { None }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory holds at least `len` initialised bytes and lives as long as `self`; `&self` keeps
        // writers away.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        match self.home.take() {
            Some(pool) => pool.put(self.memory),
            // SAFETY: memory without a home belongs to this buffer alone, and the buffer is going away.
            None => unsafe { self.memory.free() },
        }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBuf").field("len", &self.len).field("index", &self.memory.index).finish()
    }
}

// SAFETY: the buffer owns its memory, which no thread keeps to itself; the pool it returns to is behind a mutex.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared buffer can only be read.
unsafe impl Sync for AlignedBuf {}

fn assert_len(len: usize) {
    assert!(
        len > 0 && len.is_multiple_of(BLOCK),
        "buffer length {len} is not a positive multiple of {BLOCK}"
    );
}

/// An allocation: a plain handle, freed by whoever owns it.
#[derive(Clone, Copy)]
struct Memory {
    start: NonNull<u8>,
    capacity: usize,
    index: Option<u16>,
}

impl Memory {
    fn zeroed(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: `assert_len` made the size positive.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, capacity, index: None }
    }

    /// As [`Memory::zeroed`], of large pages where the system has them.
    fn large(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: `assert_len` made the size positive.
        let start = unsafe { alloc(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        advise_large(start.as_ptr(), capacity);
        // SAFETY: as many bytes were allocated, and nobody else knows of them.
        unsafe { start.as_ptr().write_bytes(0, capacity) };
        Self { start, capacity, index: None }
    }

    /// A part of it, which lives as long as the whole.
    fn part(&self, at: usize, capacity: usize, index: Option<u16>) -> Self {
        assert_len(capacity);
        assert!(at.is_multiple_of(BLOCK) && at + capacity <= self.capacity, "{capacity} bytes from {at} on");
        // SAFETY: it lies within the allocation, as was just looked at.
        let start = unsafe { self.start.add(at) };
        Self { start, capacity, index }
    }

    fn layout(capacity: usize) -> Layout {
        assert_len(capacity);
        // What is large begins with a large page.
        let align = if capacity >= LARGE_PAGE { LARGE_PAGE } else { BLOCK };
        match Layout::from_size_align(capacity, align) {
            Ok(layout) => layout,
            Err(_) => panic!("a buffer of {capacity} bytes is beyond any address space"),
        }
    }

    /// # Safety
    /// The caller owns this memory and nobody uses it afterwards.
    unsafe fn free(self) {
        // SAFETY: allocated in `zeroed` with this same layout; ownership is the caller's promise.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

// SAFETY: a handle to heap memory, bound to no thread.
unsafe impl Send for Memory {}
// SAFETY: through a shared handle nothing is read or written.
unsafe impl Sync for Memory {}

/// A size of buffer that a pool keeps, and how many of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SizeClass {
    /// Bytes of each.
    pub(crate) size: usize,
    /// The most that are kept.
    pub(crate) count: usize,
}

/// Bytes of the middle class: the largest record, wherever in its first block it begins. A mebibyte was too little for a
/// mebibyte of data and its head: every read of one took new memory, with its zeroing and its page faults.
pub(crate) const RECORD_BUFFER: usize = (1 << 20) + (128 << 10);

/// What a disk keeps: small reads; large records and ordinary batches; full batches. 56 MiB when all of it is in use.
pub(crate) const CLASSES: [SizeClass; 3] = [
    SizeClass { size: 64 << 10, count: 64 },
    SizeClass { size: RECORD_BUFFER, count: 32 },
    SizeClass { size: 8 << 20, count: 2 },
];

/// What remains when the limit on locked memory is the usual 8 MiB of an unprivileged process.
pub(crate) const SMALL_CLASSES: [SizeClass; 2] =
    [SizeClass { size: 64 << 10, count: 16 }, SizeClass { size: RECORD_BUFFER, count: 4 }];

struct Class {
    size: usize,
    limit: usize,
    stock: Mutex<Stock>,
}

/// Buffers of one size that exist, and those of them that nobody uses.
#[derive(Default)]
struct Stock {
    made: usize,
    free: Vec<Memory>,
}

impl Class {
    fn lock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bounded stock of buffers in a few sizes, shared by a disk and whoever holds its buffers.
///
/// What a class cannot give comes from the heap and goes back there. Contents are not zeroed between users.
pub struct BufferPool {
    identity: u64,
    classes: Vec<Class>,
    /// What all memory with an index is a part of.
    arena: Option<Memory>,
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferPool").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl BufferPool {
    /// A pool that allocates as it is asked, up to its limits.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::with_classes(&CLASSES))
    }

    fn with_classes(sizes: &[SizeClass]) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        assert!(sizes.is_sorted_by_key(|class| class.size));
        let class =
            |class: &SizeClass| Class { size: class.size, limit: class.count, stock: Mutex::default() };
        let classes = sizes.iter().map(class).collect();
        Self { identity: NEXT.fetch_add(1, Ordering::Relaxed), classes, arena: None }
    }

    /// A pool whose whole stock exists and carries an index, with the regions to register under 0, 1, 2 and so on. They lie side by
    /// side in large pages: a device is told of memory by pages.
    pub(crate) fn indexed(sizes: &[SizeClass]) -> (Arc<Self>, Vec<libc::iovec>) {
        let mut pool = Self::with_classes(sizes);
        let arena = Memory::large(sizes.iter().map(|class| class.size * class.count).sum());
        let (mut regions, mut at) = (Vec::new(), 0);
        for class in &pool.classes {
            let mut stock = class.lock();
            for _ in 0..class.limit {
                let memory = arena.part(at, class.size, u16::try_from(regions.len()).ok());
                at += class.size;
                regions
                    .push(libc::iovec { iov_base: memory.start.as_ptr().cast(), iov_len: memory.capacity });
                stock.free.push(memory);
            }
            stock.made = class.limit;
        }
        pool.arena = Some(arena);
        (Arc::new(pool), regions)
    }

    /// A buffer of `len` bytes, a positive multiple of [`BLOCK`]. **Its contents are left-overs.**
    #[must_use]
    pub fn take(self: &Arc<Self>, len: usize) -> AlignedBuf {
        assert_len(len);
        let Some(class) = self.classes.iter().find(|class| class.size >= len) else {
            return AlignedBuf::zeroed(len);
        };
        let mut stock = class.lock();
        let memory = match stock.free.pop() {
            Some(memory) => memory,
            None if stock.made < class.limit => {
                stock.made += 1;
                Memory::zeroed(class.size)
            }
            None => return AlignedBuf::zeroed(len),
        };
        AlignedBuf { memory, len, home: Some(Arc::clone(self)) }
    }

    fn put(&self, memory: Memory) {
        let Some(class) = self.classes.iter().find(|class| class.size == memory.capacity) else {
            unreachable!("every pooled buffer has the size of a class")
        };
        let mut stock = class.lock();
        assert!(stock.free.len() < stock.made, "a buffer came back twice");
        stock.free.push(memory);
    }
}

impl Drop for BufferPool {
    fn drop(&mut self) {
        for class in &self.classes {
            for memory in class.lock().free.drain(..).filter(|memory| memory.index.is_none()) {
                // SAFETY: buffers in use hold an `Arc` of the pool, so all that exists is in these lists, unused.
                unsafe { memory.free() }
            }
        }
        if let Some(arena) = self.arena.take() {
            // SAFETY: as above; its parts are what the lists had, and are not freed by themselves.
            unsafe { arena.free() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_shrink_only() {
        for len in [BLOCK, 3 * BLOCK, 9 << 20] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.as_ptr() as usize % BLOCK, 0);
            assert_eq!(buf.len(), len);
            assert!(buf.iter().all(|byte| *byte == 0));
            buf[len - 1] = 7;
            buf.truncate(BLOCK);
            assert_eq!(buf.len(), BLOCK);
        }
    }

    #[test]
    #[should_panic(expected = "not a positive multiple")]
    fn a_ragged_length_is_our_bug() {
        let _ = AlignedBuf::zeroed(BLOCK + 1);
    }

    #[test]
    #[should_panic(expected = "truncate to")]
    fn a_buffer_does_not_grow() {
        AlignedBuf::zeroed(BLOCK).truncate(2 * BLOCK);
    }

    #[test]
    fn a_pool_recycles_memory_with_its_contents_and_full_size() {
        let pool = BufferPool::new();
        let mut buf = pool.take(2 * BLOCK);
        buf.fill(9);
        buf.truncate(BLOCK);
        let start = buf.as_ptr();
        std::thread::spawn(move || drop(buf)).join().unwrap();
        let again = pool.take(64 << 10);
        assert_eq!(again.as_ptr(), start);
        assert_eq!(again.len(), 64 << 10);
        assert_eq!(again[0], 9);
    }

    #[test]
    fn a_pool_is_bounded_and_survives_being_outlived() {
        let pool = BufferPool::new();
        let held: Vec<_> = (0..CLASSES[2].count + 3).map(|_| pool.take(8 << 20)).collect();
        assert_eq!(held.iter().filter(|buf| buf.home.is_some()).count(), CLASSES[2].count);
        let huge = pool.take((8 << 20) + BLOCK);
        assert!(huge.home.is_none());
        drop(pool);
        assert!(held.iter().all(|buf| buf[0] == 0));
    }

    #[test]
    fn an_index_counts_only_for_the_pool_it_belongs_to() {
        let (pool, regions) = BufferPool::indexed(&SMALL_CLASSES);
        let other = BufferPool::new();
        assert_eq!(regions.len(), 20);
        let mut at = regions[0].iov_base as usize;
        assert!(at.is_multiple_of(LARGE_PAGE));
        for region in &regions {
            assert_eq!(region.iov_base as usize, at, "they lie side by side");
            at += region.iov_len;
        }
        let buf = pool.take(BLOCK);
        let index = buf.registered(&pool).unwrap();
        assert_eq!(regions[usize::from(index)].iov_base as usize, buf.as_ptr() as usize);
        assert_eq!(buf.registered(&other), None);
        assert_eq!(AlignedBuf::zeroed(BLOCK).registered(&pool), None);
    }
}
