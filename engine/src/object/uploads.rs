//! What a device knows of the uploads that it takes part in: whether all of a body is here. Pure.
//!
//! A coordinator sends the chunks of a body, and then a commit that names them. The device may have been restarted in between
//! and have lost them, or have been told to give the upload up while the commit was on its way.
//!
//! Invariant: a commit is let through only when every chunk that it names was appended in this life of the device and not given
//! up since, or is in its index; and while it is under way nothing of it is given up.
//! Invariant: what was given up stays so until its first chunk comes anew, as a copy from another replica begins.

use std::collections::{HashMap, VecDeque};

use super::limits::UPLOADS;
use crate::catalog::DataId;

/// Numbers that were seen, as ranges that do not touch.
type Ranges = Vec<(u32, u32)>;

#[derive(Debug)]
enum State {
    Here(Ranges),
    /// A commit is on its way into the log. True: the upload was to be given up meanwhile.
    Committing(Ranges, bool),
    GivenUp,
}

/// The uploads of one life of a device.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    states: HashMap<DataId, State>,
    /// In the order they came; those that ended are still in it.
    order: VecDeque<DataId>,
}

impl Uploads {
    /// Whether a chunk may be appended.
    pub(crate) fn may_add(&mut self, id: &DataId, number: u32) -> bool {
        let given_up = matches!(self.states.get(id), Some(State::GivenUp));
        if given_up && number == 0 {
            self.states.remove(id);
        }
        !given_up || number == 0
    }

    /// A chunk was appended. False: the upload was given up while it was; it is to be given up again.
    #[must_use]
    pub(crate) fn added(&mut self, id: DataId, number: u32) -> bool {
        match self.state(id, || State::Here(Ranges::new())) {
            State::Here(ranges) | State::Committing(ranges, _) => insert(ranges, number),
            State::GivenUp => return false,
        }
        true
    }

    /// The upload shall be given up. False: not now, as it is being committed.
    #[must_use]
    pub(crate) fn give_up(&mut self, id: DataId) -> bool {
        match self.state(id, || State::GivenUp) {
            State::Committing(_, wanted) => {
                *wanted = true;
                false
            }
            state => {
                *state = State::GivenUp;
                true
            }
        }
    }

    /// Whether a commit may be appended; from now on its chunks stay. `indexed` says whether all are in the index.
    pub(crate) fn begin_commit<E>(
        &mut self,
        id: DataId,
        count: u32,
        indexed: impl FnOnce() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let ranges = match self.states.get_mut(&id) {
            Some(State::GivenUp) => return Ok(false),
            Some(State::Here(ranges) | State::Committing(ranges, _)) => std::mem::take(ranges),
            None => Ranges::new(),
        };
        let whole = ranges.as_slice() == [(0, count)] || indexed()?;
        let state = if whole { State::Committing(ranges, false) } else { State::Here(ranges) };
        *self.state(id, || State::GivenUp) = state;
        Ok(whole)
    }

    /// The commit ended, well or not. True: the upload is to be given up now.
    #[must_use]
    pub(crate) fn end_commit(&mut self, id: &DataId, well: bool) -> bool {
        match self.states.remove(id) {
            Some(State::Committing(ranges, wanted)) if !well => {
                let state = if wanted { State::GivenUp } else { State::Here(ranges) };
                self.states.insert(*id, state);
                wanted
            }
            _ => false,
        }
    }

    fn state(&mut self, id: DataId, new: impl FnOnce() -> State) -> &mut State {
        if !self.states.contains_key(&id) {
            self.bound();
            self.order.push_back(id);
        }
        self.states.entry(id).or_insert_with(new)
    }

    fn bound(&mut self) {
        while self.states.len() >= UPLOADS || self.order.len() >= 2 * UPLOADS {
            let Some(oldest) = self.order.pop_front() else { return };
            self.states.remove(&oldest);
        }
    }
}

fn insert(ranges: &mut Ranges, number: u32) {
    let next = number.saturating_add(1);
    let at = ranges.partition_point(|(_, end)| *end < number);
    match ranges.get_mut(at) {
        Some((start, end)) if *start <= number && number < *end => {}
        Some((_, end)) if *end == number => {
            *end = next;
            let end = *end;
            if ranges.get(at + 1).is_some_and(|(start, _)| *start == end) {
                ranges[at].1 = ranges[at + 1].1;
                ranges.remove(at + 1);
            }
        }
        Some((start, _)) if *start == next => *start = number,
        _ => ranges.insert(at, (number, next)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DataId = [1; 16];

    fn commit(uploads: &mut Uploads, count: u32, indexed: bool) -> bool {
        uploads.begin_commit(A, count, || Ok::<_, ()>(indexed)).unwrap()
    }

    #[test]
    fn chunks_in_any_order_make_a_whole_and_a_missing_one_does_not() {
        let mut rng = crate::io::SplitMix64::new(5);
        for count in 2..40 {
            let mut numbers: Vec<u32> = (0..count).chain(0..count / 3).collect();
            rng.shuffle(&mut numbers);
            let mut uploads = Uploads::default();
            let mut seen = std::collections::BTreeSet::new();
            for number in numbers {
                assert!(uploads.may_add(&A, number));
                assert!(uploads.added(A, number));
                seen.insert(number);
                assert_eq!(commit(&mut uploads, count, false), seen.len() == count as usize, "{seen:?}");
            }
            assert!(!uploads.end_commit(&A, true));
            assert!(!commit(&mut uploads, count, false) && commit(&mut uploads, count, true));
        }
    }

    #[test]
    fn what_was_given_up_begins_anew_with_its_first_chunk() {
        let mut uploads = Uploads::default();
        assert!((0..3).all(|number| uploads.added(A, number)));
        assert!(uploads.give_up(A));
        assert!(!commit(&mut uploads, 3, true), "a late commit");
        assert!(!uploads.may_add(&A, 1), "a late chunk");
        assert!(!uploads.added(A, 2), "one that was under way");
        assert!(uploads.may_add(&A, 0) && uploads.may_add(&A, 1));
        assert!(uploads.added(A, 0));
        assert!(!commit(&mut uploads, 3, false));
        assert!((1..3).all(|number| uploads.added(A, number)));
        assert!(commit(&mut uploads, 3, false));
    }

    #[test]
    fn a_commit_under_way_keeps_its_chunks() {
        for well in [true, false] {
            let mut uploads = Uploads::default();
            assert!((0..2).all(|number| uploads.added(A, number)));
            assert!(commit(&mut uploads, 2, false));
            assert!(!uploads.give_up(A), "not now");
            assert_eq!(uploads.end_commit(&A, well), !well, "when it has failed");
            assert_eq!(commit(&mut uploads, 2, true), well);
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut uploads = Uploads::default();
        let id = |n: usize| *blake3::hash(&n.to_le_bytes()).as_bytes().first_chunk::<16>().unwrap();
        for n in 0..3 * UPLOADS {
            assert!(uploads.added(id(n), 0));
            match n % 3 {
                0 => assert!(uploads.give_up(id(n))),
                1 => assert!(!uploads.end_commit(&id(n), true)),
                _ => {}
            }
            assert!(uploads.states.len() <= UPLOADS && uploads.order.len() <= 2 * UPLOADS);
        }
        let last = uploads.begin_commit(id(3 * UPLOADS - 1), 1, || Ok::<_, ()>(false));
        assert_eq!(last, Ok(true), "the newest are known");
    }
}
