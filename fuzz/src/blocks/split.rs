//! Two heads at a time, of which the older one does not hear that it is fenced: the present head and the next one do not hear each other,
//! and a third machine hears first the next one, and then, when that serves, the old one. So the old head has a quorum that it may
//! still ask, and what stands against it is what the third one knows.
//!
//! An old head that asks for anything while nobody hears it waits until its calls are given up, and then asks for a promise: it learns
//! that it is fenced before it did any harm; and so does one that writes when it is heard again. So mostly its clients rest while nobody
//! hears it, and then look at what it has.

use std::time::Duration;

use super::history::History;
use super::trouble::{self, Cure};
use crate::cluster::machine::node_id;

/// Pause between two looks at whether it can go on, and how often that is waited for.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 40;
/// Out of a thousand, how often the clients of the old head rest, and how often the third machine loses its power.
const RESTS: u32 = 800;
const FALLS: u32 = 500;

/// Which machines they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Split {
    old: usize,
    next: usize,
    third: usize,
    /// For so many looks what is to come is waited for.
    looks: u32,
}

impl Split {
    fn later(self) -> Option<Self> {
        self.looks.checked_sub(1).map(|looks| Self { looks, ..self })
    }
}

impl History {
    /// The present head is about to be parted from two others, by their numbers.
    pub(super) fn split(&mut self, next: usize, third: usize) {
        let Some(old) = self.clients.current().filter(|_| !self.is_split()) else { return };
        // What the old head shows is its own member's, and the third one counts.
        let mut others = self.world.up();
        others.retain(|n| *n < self.members && *n != old);
        if old >= self.members || others.len() < 2 {
            return;
        }
        let next = others.remove(next % others.len());
        let third = others.remove(third % others.len());
        let split = Split { old, next, third, looks: LOOKS };
        self.clients.hushed = self.rng.chance(RESTS).then_some(old);
        self.clients.looked_at = None;
        self.cures.push((self.world.now() + LOOK, Cure::Part(split)));
    }

    fn is_split(&self) -> bool {
        self.cures.iter().any(|(_, cure)| matches!(cure, Cure::Part(_) | Cure::Turn(_)))
    }

    /// Neither of the two hears the old head any more, and one of them takes the volume.
    pub(super) fn part_heads(&mut self, split: Split) {
        let Split { old, next, third, .. } = split;
        let busy = self.clients.hushed.is_some() && self.clients.is_asked(old);
        if let Some(later) = split.later().filter(|_| busy) {
            self.cures.push((self.world.now() + LOOK, Cure::Part(later)));
            return;
        }
        trouble::cut(&self.world, node_id(old), node_id(next));
        trouble::cut(&self.world, node_id(old), node_id(third));
        self.attach(next);
        let strike = self.world.now() + Duration::from_millis(50 + self.rng.below(300));
        self.cures.push((strike, Cure::Turn(Split { looks: LOOKS, ..split })));
    }

    /// Now the old head hears the third machine, and perhaps the next one does not.
    pub(super) fn turn(&mut self, split: Split) {
        let Split { old, next, third, .. } = split;
        let waits = self.clients.current() != Some(next);
        if let Some(later) = split.later().filter(|_| waits) {
            self.cures.push((self.world.now() + LOOK, Cure::Turn(later)));
            return;
        }
        self.clients.looked_at = self.clients.hushed.take();
        self.world.net.heal();
        trouble::cut(&self.world, node_id(old), node_id(next));
        if self.rng.chance(FALLS) {
            self.crash(third, true);
            // Before the old head wants to do without it.
            let back = self.world.now() + Duration::from_millis(20 + self.rng.below(200));
            self.cures.push((back, Cure::Start(third)));
            trouble::cut(&self.world, node_id(next), node_id(third));
        }
        let end = self.world.now() + Duration::from_secs(1) + self.within(Duration::from_secs(5));
        self.cures.push((end, Cure::Connect));
    }
}
