//! What one write takes to the device: pieces of memory that lie one behind another there.
//!
//! A body of a mebibyte that already lies as O_DIRECT wants it goes to the device from where it is. Copying it first costs more
//! processor than all the rest of its write.
//!
//! Invariant: every piece begins at a multiple of [`BLOCK`] in memory, and its length is a positive multiple of it.
//! Invariant: nobody can change a piece while the device reads it: it is this write's own, or shared and immutable.

use bytes::{Buf, Bytes, BytesMut};

use super::BLOCK;
use super::buffer::{AlignedBuf, BufferPool};

/// Most pieces of one write: what one system call takes (`IOV_MAX` of Linux).
pub const MAX_PIECES: usize = 1024;
/// What is shorter is copied: that costs less than another piece.
pub const IN_PLACE_FROM: usize = 32 << 10;

enum Piece {
    Own(AlignedBuf),
    Shared(Bytes),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(buf) => buf,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// The bytes of one write.
#[derive(Default)]
pub struct Gather {
    pieces: Vec<Piece>,
    len: usize,
}

impl std::fmt::Debug for Gather {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gather").field("pieces", &self.pieces.len()).field("len", &self.len).finish()
    }
}

impl From<AlignedBuf> for Gather {
    fn from(buf: AlignedBuf) -> Self {
        let len = buf.len();
        Self { pieces: vec![Piece::Own(buf)], len }
    }
}

impl Gather {
    /// Bytes of all pieces.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no piece.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Pieces in it.
    #[cfg(test)]
    pub(crate) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Adds a buffer behind the others.
    pub fn push(&mut self, buf: AlignedBuf) {
        self.add(Piece::Own(buf));
    }

    /// Adds bytes behind the others, from where they lie. Panics unless they are [`Gather::is_fit`].
    pub fn share(&mut self, bytes: Bytes) {
        assert!(Self::is_fit(&bytes), "shared bytes that are not whole blocks in place");
        self.add(Piece::Shared(bytes));
    }

    /// Whether a device can take bytes from where they lie: whole blocks, at a multiple of one.
    #[must_use]
    pub fn is_fit(bytes: &[u8]) -> bool {
        !bytes.is_empty() && bytes.len().is_multiple_of(BLOCK) && bytes.as_ptr().addr().is_multiple_of(BLOCK)
    }

    fn add(&mut self, piece: Piece) {
        assert!(self.pieces.len() < MAX_PIECES, "more than {MAX_PIECES} pieces in one write");
        self.len += piece.bytes().len();
        self.pieces.push(piece);
    }

    /// The pieces' bytes, but for the first `skip`.
    pub(super) fn slices(&self, skip: usize) -> impl Iterator<Item = &[u8]> {
        let mut skip = skip;
        self.pieces.iter().filter_map(move |piece| {
            let bytes = piece.bytes();
            let from = skip.min(bytes.len());
            skip -= from;
            bytes.get(from..).filter(|rest| !rest.is_empty())
        })
    }

    /// The only piece, with the index under which `ring` has registered its memory.
    pub(super) fn registered(&self, ring: &BufferPool) -> Option<(&[u8], u16)> {
        match self.pieces.as_slice() {
            [Piece::Own(buf)] => buf.registered(ring).map(|index| (&**buf, index)),
            _ => None,
        }
    }

    /// All bytes in one place: for bodies that have no device.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.slices(0).flatten().copied().collect()
    }
}

/// Where the pieces of a write lie, as the kernel wants to be told.
#[derive(Default)]
pub(super) struct Vectors(Vec<libc::iovec>);

// SAFETY: addresses of memory that is bound to no thread; whoever uses them keeps the `Gather` that owns it.
unsafe impl Send for Vectors {}

impl Vectors {
    /// Of all but the first `skip` bytes.
    pub(super) fn of(gather: &Gather, skip: usize) -> Self {
        let vector = |bytes: &[u8]| libc::iovec {
            // The kernel only reads what is written to a device.
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        Self(gather.slices(skip).map(vector).collect())
    }

    /// For the submission entry: valid as long as `self` is not changed.
    pub(super) fn parts(&self) -> (*const libc::iovec, u32) {
        (self.0.as_ptr(), u32::try_from(self.0.len()).unwrap_or(u32::MAX))
    }
}

/// Empty memory with room for `len` bytes. From [`IN_PLACE_FROM`] on they begin at a multiple of [`BLOCK`], so that a device can
/// take them from there.
#[must_use]
pub fn aligned_bytes(len: usize) -> BytesMut {
    if len < IN_PLACE_FROM {
        return BytesMut::with_capacity(len);
    }
    let mut bytes = BytesMut::with_capacity(len + BLOCK - 1);
    let lead = bytes.as_ptr().addr().wrapping_neg() % BLOCK;
    bytes.resize(lead, 0);
    bytes.advance(lead);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_for_a_device_begins_at_a_block_and_stays_there() {
        assert!(aligned_bytes(0).capacity() == 0 && aligned_bytes(BLOCK).capacity() >= BLOCK);
        for len in [IN_PLACE_FROM, IN_PLACE_FROM + BLOCK, (1 << 20) + 5] {
            let mut bytes = aligned_bytes(len);
            assert!(bytes.is_empty() && bytes.capacity() >= len);
            bytes.resize(len, 7);
            let bytes = bytes.freeze();
            assert_eq!(bytes.as_ptr().addr() % BLOCK, 0);
            assert_eq!(Gather::is_fit(&bytes), len.is_multiple_of(BLOCK));
        }
    }

    fn filled(byte: u8) -> Bytes {
        let mut bytes = aligned_bytes(IN_PLACE_FROM);
        bytes.resize(IN_PLACE_FROM, byte);
        bytes.freeze()
    }

    #[test]
    fn pieces_follow_one_another_and_skipping_cuts_them_anywhere() {
        let mut own = AlignedBuf::zeroed(2 * BLOCK);
        own.fill(1);
        let mut gather = Gather::from(own);
        gather.share(filled(2).slice(..BLOCK));
        gather.push(AlignedBuf::zeroed(BLOCK));
        assert_eq!(gather.len(), 4 * BLOCK);
        let whole = gather.to_vec();
        for skip in [0, 1, 2 * BLOCK, 2 * BLOCK + 1, 3 * BLOCK, 4 * BLOCK - 1, 4 * BLOCK] {
            let rest: Vec<u8> = gather.slices(skip).flatten().copied().collect();
            assert!(rest == whole[skip..], "{skip}");
        }
    }

    #[test]
    #[should_panic(expected = "not whole blocks")]
    fn bytes_that_do_not_fit_are_our_bug() {
        Gather::default().share(filled(0).slice(1..=BLOCK));
    }
}
