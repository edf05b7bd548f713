//! What a node keeps in mind of eventual containers, for the time when their index groups are away.
//!
//! Invariant: all of it is a hint. A container that was deleted, or made anew, while its group was away is found out when an
//! intent is delivered; one that is not known here is taken for a strict one.
//! Invariant: version times that this node gives by itself are given once, and those of two nodes differ in their last bits, but
//! where one in [`NODES`] hashes are alike.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::limits::KEPT;
use super::names::Standing;
use super::{Account, Container, IndexPolicy};
use crate::clock::{Clock, Timestamp};

/// Marks by which the version times of nodes are told apart: so many microseconds are one.
const NODES: u64 = 64;

#[derive(Debug, Default)]
struct State {
    accounts: HashMap<Arc<str>, OfAccount>,
    /// In all accounts.
    containers: usize,
    /// The last version time that was given.
    given: u64,
}

#[derive(Debug, Default)]
struct OfAccount {
    facts: Option<Account>,
    away_until: Option<Duration>,
    containers: HashMap<Arc<str>, OfContainer>,
}

#[derive(Debug)]
struct OfContainer {
    standing: Standing,
    facts: Option<Container>,
}

/// Eventual containers that are known.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    state: Mutex<State>,
    /// Changes that were begun without a group.
    alone: AtomicU64,
}

/// Which container a row tells of.
pub(crate) fn standing_of(facts: &Container) -> Standing {
    Standing { id: facts.created.0, policy: facts.policy, index: facts.index }
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A container, if it is known to be eventual.
    pub(crate) fn standing(&self, account: &str, container: &str) -> Option<Standing> {
        let state = self.lock();
        state.accounts.get(account)?.containers.get(container).map(|kept| kept.standing)
    }

    /// What was last known of it.
    pub(crate) fn facts(&self, account: &str, container: &str) -> Option<Container> {
        let state = self.lock();
        state.accounts.get(account)?.containers.get(container)?.facts.clone()
    }

    /// Whether the account has any.
    pub(crate) fn has(&self, account: &str) -> bool {
        self.lock().accounts.contains_key(account)
    }

    /// What was last known of an account that has any.
    pub(crate) fn account(&self, account: &str) -> Option<Account> {
        self.lock().accounts.get(account)?.facts.clone()
    }

    /// Notes what a group says of a container: `None`, there is none.
    pub(crate) fn learn(&self, account: &str, container: &str, standing: Option<Standing>) {
        let mut state = self.lock();
        let Some(standing) = standing.filter(|standing| standing.index == IndexPolicy::Eventual) else {
            return state.forget(account, container);
        };
        let known = state.accounts.get_mut(account).and_then(|of| of.containers.get_mut(container));
        match known {
            Some(known) if known.standing == standing => {}
            Some(known) => *known = OfContainer { standing, facts: None },
            None => state.insert(account, container, OfContainer { standing, facts: None }),
        }
    }

    /// The same, with all that it says.
    pub(crate) fn learn_facts(&self, account: &str, container: &str, facts: Option<&Container>) {
        self.learn(account, container, facts.map(standing_of));
        let mut state = self.lock();
        let known = state.accounts.get_mut(account).and_then(|of| of.containers.get_mut(container));
        if let Some(known) = known {
            known.facts = facts.cloned();
        }
    }

    /// Notes what a group says of an account.
    pub(crate) fn learn_account(&self, account: &str, facts: Option<&Account>) {
        if let Some(of) = self.lock().accounts.get_mut(account) {
            of.facts = facts.cloned();
        }
    }

    /// The account's group did not answer: it is left alone until then.
    pub(crate) fn away(&self, account: &str, until: Duration) {
        if let Some(of) = self.lock().accounts.get_mut(account) {
            of.away_until = Some(until);
        }
    }

    /// Whether the account's group is left alone.
    pub(crate) fn is_away(&self, account: &str, now: Duration) -> bool {
        self.lock().accounts.get(account).and_then(|of| of.away_until).is_some_and(|until| now < until)
    }

    /// One more change is begun without a group.
    pub(crate) fn count_alone(&self) {
        self.alone.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub(crate) fn alone(&self) -> u64 {
        self.alone.load(Ordering::Relaxed)
    }

    /// A version time that no group gives: later than all that the clock has seen.
    pub(crate) fn time(&self, clock: &Clock, mark: u8) -> Timestamp {
        let mut state = self.lock();
        let next = (clock.tick().0 / NODES + 1) * NODES + u64::from(mark) % NODES;
        state.given = next.max(state.given + NODES);
        let at = Timestamp(state.given);
        clock.observe(at);
        at
    }
}

impl State {
    fn insert(&mut self, account: &str, container: &str, kept: OfContainer) {
        if self.containers >= KEPT {
            self.accounts.clear();
            self.containers = 0;
        }
        self.containers += 1;
        self.accounts.entry(account.into()).or_default().containers.insert(container.into(), kept);
    }

    fn forget(&mut self, account: &str, container: &str) {
        let Some(of) = self.accounts.get_mut(account) else { return };
        if of.containers.remove(container).is_some() {
            self.containers -= 1;
        }
        if of.containers.is_empty() {
            self.accounts.remove(account);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(id: u64, index: IndexPolicy) -> Option<Standing> {
        Some(Standing { id, policy: 0, index })
    }

    #[test]
    fn what_is_eventual_is_kept_until_a_group_says_otherwise() {
        let kept = Kept::default();
        let eventual = standing(5, IndexPolicy::Eventual);
        kept.learn("a", "c", standing(5, IndexPolicy::Strict));
        assert!(!kept.has("a") && kept.standing("a", "c").is_none());
        kept.learn("a", "c", eventual);
        kept.learn("a", "d", eventual);
        assert_eq!((kept.standing("a", "c"), kept.standing("b", "c")), (eventual, None));
        kept.away("a", Duration::from_secs(3));
        kept.away("b", Duration::from_secs(3));
        assert!(kept.is_away("a", Duration::from_secs(2)) && !kept.is_away("a", Duration::from_secs(3)));
        assert!(!kept.is_away("b", Duration::ZERO));
        kept.learn("a", "c", None);
        assert!(kept.standing("a", "c").is_none() && kept.has("a"));
        kept.learn("a", "d", standing(9, IndexPolicy::Strict));
        assert!(!kept.has("a"));
    }

    #[test]
    fn memory_is_bounded() {
        let kept = Kept::default();
        for n in 0..KEPT + 10 {
            kept.learn("a", &n.to_string(), standing(n as u64, IndexPolicy::Eventual));
        }
        assert!(kept.lock().containers <= KEPT && kept.lock().containers > 0);
    }

    #[test]
    fn times_of_two_nodes_differ_and_each_grows() {
        let clock = || Clock::new(Box::new(|| 1_000_000));
        let (ours, theirs, kept, other) = (clock(), clock(), Kept::default(), Kept::default());
        let mut last = Timestamp(0);
        for _ in 0..1000 {
            let (at, there) = (kept.time(&ours, 3), other.time(&theirs, 60));
            assert!(at > last && at != there && ours.tick() > at);
            last = at;
        }
    }
}
