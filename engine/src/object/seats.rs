//! Who takes which fragment of a version that is being written.
//!
//! Invariant: the device at place i of its partition takes fragment i; a handoff takes that of a primary that is down, failed or
//! stalls.
//! Invariant: a fragment is given to a second device only when the first one failed or stalls.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::Result;
use super::devices::{Candidates, Member};
use super::fragments::with_index;
use super::policy::Code;
use super::replica::{BoxFuture, Draft};
use crate::catalog::ObjectMeta;

/// Fragments that were given back.
type Back = Arc<Mutex<Vec<u8>>>;

/// The fragments of a version, and who has which.
pub(crate) struct Seats {
    /// The primaries by place, those that can be reached.
    places: Vec<Option<Arc<Member>>>,
    holders: Vec<Option<Arc<Member>>>,
    back: Back,
}

fn is_down(member: &Member) -> bool {
    member.known().down_since().is_some()
}

impl Seats {
    pub(crate) fn new(code: Code, candidates: &Candidates) -> Self {
        let mut places = candidates.places();
        places.resize(code.n(), None);
        let holders = vec![None; code.n()];
        Self { places, holders, back: Back::default() }
    }

    /// The fragment that a device shall take; `None`: all are taken.
    pub(crate) fn take(&mut self, member: &Arc<Member>) -> Option<u8> {
        let own = self
            .places
            .iter()
            .position(|place| place.as_ref().is_some_and(|place| place.device() == member.device()));
        let own = own.filter(|at| self.holders[*at].is_none());
        let at = own.or_else(|| self.given_back()).or_else(|| self.lost())?;
        self.holders[at] = Some(member.clone());
        u8::try_from(at).ok()
    }

    fn given_back(&self) -> Option<usize> {
        self.back.lock().unwrap_or_else(PoisonError::into_inner).pop().map(usize::from)
    }

    /// A fragment that nobody has and whose device is down, or that a device has which stalls.
    fn lost(&self) -> Option<usize> {
        let down = |member: &Option<Arc<Member>>| member.as_ref().is_none_or(|member| is_down(member));
        let free = |at: &usize| self.holders[*at].is_none() && down(&self.places[*at]);
        let stalls = |at: &usize| self.holders[*at].is_some() && down(&self.holders[*at]);
        let all = 0..self.holders.len();
        all.clone().find(free).or_else(|| all.clone().find(stalls))
    }

    /// What a device is asked, and that its fragment is free again when it fails.
    pub(crate) fn asked(
        &self,
        index: u8,
        work: BoxFuture<'static, Result<()>>,
    ) -> BoxFuture<'static, Result<u8>> {
        let back = self.back.clone();
        Box::pin(async move {
            let result = work.await;
            if result.is_err() {
                back.lock().unwrap_or_else(PoisonError::into_inner).push(index);
            }
            result.map(|()| index)
        })
    }
}

/// How many different fragments are among these.
pub(crate) fn distinct<'a>(indices: impl Iterator<Item = &'a u8>) -> usize {
    indices.collect::<std::collections::HashSet<_>>().len()
}

/// The record of a version as the device with this fragment has it.
pub(crate) fn personal(record: &Draft, meta: &ObjectMeta, index: u8) -> Draft {
    let meta = with_index(meta, index);
    let here = meta.chunked.is_none() && meta.fragment.is_none_or(|fragment| fragment.has_small());
    let data = if here { record.data.clone() } else { Bytes::new() };
    Draft { meta: meta.encode(), data, key: record.key.clone(), ..*record }
}
