//! What is to be sent, in order: headers gathered in one buffer, long data as it lies.
//!
//! Invariant: the bytes come out in the order in which they were put in, and `remaining` counts them all.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::limits::COPIED;

/// Zeroes that many replies share.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Bytes for the client. Read them as a [`Buf`].
#[derive(Debug, Default)]
pub struct Outbox {
    sealed: VecDeque<Bytes>,
    /// Behind all that is sealed.
    open: BytesMut,
    bytes: usize,
}

impl Outbox {
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.open.put_slice(bytes);
        self.bytes += bytes.len();
    }

    pub(super) fn put_u16(&mut self, number: u16) {
        self.put(&number.to_be_bytes());
    }

    pub(super) fn put_u32(&mut self, number: u32) {
        self.put(&number.to_be_bytes());
    }

    pub(super) fn put_u64(&mut self, number: u64) {
        self.put(&number.to_be_bytes());
    }

    /// A piece that is not copied unless it is small.
    pub(super) fn put_data(&mut self, data: Bytes) {
        if data.len() <= COPIED {
            return self.put(&data);
        }
        if !self.open.is_empty() {
            self.sealed.push_back(self.open.split().freeze());
        }
        self.bytes += data.len();
        self.sealed.push_back(data);
    }

    pub(super) fn put_zeroes(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let piece = left.min(ZEROES.len());
            self.put_data(Bytes::from_static(&ZEROES).slice(..piece));
            left -= piece;
        }
    }
}

impl Buf for Outbox {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.sealed.front().map_or(&self.open, |bytes| bytes)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let open = Some(self.open.as_ref()).filter(|open| !open.is_empty());
        let pieces = self.sealed.iter().map(Bytes::as_ref).chain(open);
        let filled = slices.iter_mut().zip(pieces).map(|(slice, piece)| *slice = IoSlice::new(piece));
        filled.count()
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.bytes, "sent {count} of {} bytes", self.bytes);
        self.bytes -= count;
        let mut left = count;
        while left > 0 {
            let Some(first) = self.sealed.front_mut() else { return self.open.advance(left) };
            let step = left.min(first.len());
            first.advance(step);
            left -= step;
            if first.is_empty() {
                self.sealed.pop_front();
            }
        }
    }
}
