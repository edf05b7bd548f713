//! Bytes of writes that heads keep, so that a member which was away for a moment need not be filled.
//!
//! Invariant: as long as a member of each of many volumes is away, a node's heads keep a bounded number of bytes: [`NODE`], and [`EACH`] for every
//! volume. What is not answered is kept in any case.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::link::Body;

/// Bytes that every volume may keep.
const EACH: u64 = 4 << 20;
/// Bytes that all volumes of a node together may keep before each is held to its own.
const NODE: u64 = 512 << 20;

/// What the heads of a node keep together.
#[derive(Debug, Default)]
pub struct Kept {
    bytes: AtomicU64,
}

/// What one head keeps, by sequence.
pub(super) struct Bodies {
    all: BTreeMap<u64, Body>,
    bytes: u64,
    node: Arc<Kept>,
}

fn weight(body: &Body) -> u64 {
    body.data.as_ref().map_or(0, |data| data.len() as u64)
}

impl Bodies {
    pub(super) fn new(node: Arc<Kept>) -> Self {
        Self { all: BTreeMap::new(), bytes: 0, node }
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&Body> {
        self.all.get(&sequence)
    }

    pub(super) fn keep(&mut self, sequence: u64, body: Body) {
        let bytes = weight(&body);
        if let Some(before) = self.all.insert(sequence, body) {
            self.gone(weight(&before));
        }
        self.bytes += bytes;
        self.node.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Those up to this sequence are needed no more.
    pub(super) fn release(&mut self, upto: u64) {
        while let Some(first) = self.all.first_entry().filter(|first| *first.key() <= upto) {
            let bytes = weight(&first.remove());
            self.gone(bytes);
        }
    }

    /// Up to where they are too much to be kept while others need the memory, if they are.
    pub(super) fn too_many(&self) -> Option<u64> {
        if self.bytes <= EACH || self.node.bytes.load(Ordering::Relaxed) <= NODE {
            return None;
        }
        let mut left = self.bytes;
        let over = self.all.iter().take_while(|(_, body)| {
            let over = left > EACH;
            left -= weight(body);
            over
        });
        over.last().map(|(sequence, _)| *sequence)
    }

    fn gone(&mut self, bytes: u64) {
        self.bytes -= bytes;
        self.node.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Bodies {
    fn drop(&mut self) {
        self.node.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::geometry::{ChunkId, Run, SliceId};

    fn body(len: usize) -> Body {
        let run = Run { slice: SliceId(0), chunk: ChunkId(0), first: 0, blocks: 1 };
        Body { run, data: Some(Bytes::from(vec![0; len])), era: 0 }
    }

    #[test]
    fn a_volume_keeps_less_when_those_of_its_node_keep_much() {
        let node = Arc::new(Kept::default());
        let mut bodies = Bodies::new(Arc::clone(&node));
        for sequence in 1..=8 {
            bodies.keep(sequence, body(1 << 20));
        }
        assert_eq!(bodies.too_many(), None, "it is alone");
        node.bytes.fetch_add(NODE, Ordering::Relaxed);
        assert_eq!(bodies.too_many(), Some(4));
        bodies.release(4);
        assert_eq!((bodies.too_many(), bodies.bytes), (None, EACH));
        assert!(bodies.get(4).is_none() && bodies.get(5).is_some());
        bodies.keep(9, Body { data: None, ..body(0) });
        bodies.keep(9, body(100));
        assert_eq!(bodies.too_many(), Some(5));
        drop(bodies);
        assert_eq!(node.bytes.load(Ordering::Relaxed), NODE);
    }
}
