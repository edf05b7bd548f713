//! Confirming a leader: what [`super::Group::barrier`] asks of other voters.
//!
//! A voter whose own vote is still this leader's has voted for nobody of a later term; where a majority says so, nobody of a later
//! term was elected when it was asked. Voters say it from memory, and the leader asks without openraft, whose queues wait for disks.
//!
//! Invariant: a leader is confirmed by a majority of voters that had this leader's vote as their own after the confirmation was
//! asked for, itself among them if it votes; by a majority of both sets while the voters are being changed.
//! Invariant: only as many are asked as are needed, those that answered soonest. One that fails costs what it takes to say so, and
//! one that is late costs [`HEDGE`]: then all the others are asked, and who answers is asked first from then on.
//! Invariant: one round is under way at a time. Whoever comes meanwhile is confirmed by the next one, with all that came by then: a busy
//! leader asks less often for each of them.
//! Invariant: a voter that asks something of the leader and says with its question whose vote it has need not be asked: what holds of the
//! moment in which it asked holds of all that it was to be told of.
//! Invariant: no clock is believed. A voter of a machine that stood still takes its lease for a living one.

use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::network::{ballot, vote_of};
use super::raft::Vote;
use super::runtime::{Runtime, Sleep};
use super::store::Store;
use crate::net::{ConsensusAnswer, ConsensusCall, NetError, NodeId, Request, Response, Transport};
use crate::object::BoxFuture;

/// For so long those that were asked first are waited for alone.
pub(crate) const HEDGE: Duration = Duration::from_millis(10);
/// So often all are asked, to learn who answers soonest.
const LEARN_EVERY: u64 = 64;

/// Why a leader is not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unconfirmed {
    /// There is a later term.
    #[error("another may lead")]
    Deposed,
    /// Too few answered.
    #[error("too few voters confirm that this node leads")]
    Few,
}

/// The message that asks for a confirmation: it says that its sender leads, and nothing else.
fn question(vote: Vote) -> ConsensusCall {
    ConsensusCall::Append { vote: ballot(vote), previous: None, committed: None, entries: Vec::new() }
}

/// Whether a voter can answer at once: it is asked for nothing but a confirmation, of the leader whose vote it has. It is no sign of
/// life: a leader whose disk hangs would be followed for ever.
pub(crate) fn confirms(store: &Store, call: &ConsensusCall) -> bool {
    let ConsensusCall::Append { vote, previous: None, committed: None, entries } = call else { return false };
    #[cfg(test)]
    if super::store::plant::is(super::store::plant::Bug::ConfirmsAnybody) {
        return vote.committed && entries.is_empty();
    }
    vote.committed && entries.is_empty() && store.vote() == Some(vote_of(*vote))
}

/// The vote of whoever leads in a term.
fn vote_for(leader: NodeId, term: u64) -> Vote {
    Vote { leader_id: openraft::LeaderId { term, voted_for: Some(leader) }, committed: true }
}

/// The term in which this voter follows a leader, to be said with a question: its own vote is that leader's and of no later term.
pub(crate) fn follows(store: &Store, leader: NodeId) -> Option<u64> {
    let term = store.vote()?.leader_id.term;
    (store.vote() == Some(vote_for(leader, term))).then_some(term)
}

/// Whether these are a majority of each set of voters. Of a group that was opened just now none may be known yet: nobody is one then.
pub(crate) fn is_majority(sets: &[BTreeSet<NodeId>], who: &BTreeSet<NodeId>) -> bool {
    !sets.is_empty() && sets.iter().all(|set| set.intersection(who).count() > set.len() / 2)
}

/// Who has confirmed, and who was not asked yet.
struct Round {
    /// A majority of each is needed.
    sets: Vec<BTreeSet<NodeId>>,
    yes: BTreeSet<NodeId>,
    unasked: VecDeque<NodeId>,
}

impl Round {
    /// `order`: all other voters.
    fn new(sets: Vec<BTreeSet<NodeId>>, node: NodeId, order: Vec<NodeId>) -> Self {
        Self { sets, yes: BTreeSet::from([node]), unasked: order.into() }
    }

    fn is_majority(&self, who: &BTreeSet<NodeId>) -> bool {
        is_majority(&self.sets, who)
    }

    fn is_confirmed(&self) -> bool {
        self.is_majority(&self.yes)
    }

    /// Whom to ask first: as many as are a majority if all agree.
    fn first(&mut self) -> Vec<NodeId> {
        let (mut hoped, mut first) = (self.yes.clone(), Vec::new());
        while !self.is_majority(&hoped)
            && let Some(node) = self.unasked.pop_front()
        {
            hoped.insert(node);
            first.push(node);
        }
        first
    }

    /// All others.
    fn rest(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.unasked).into()
    }
}

/// Other voters, those that answered soonest before the others.
#[derive(Default)]
struct Soonest {
    order: Vec<NodeId>,
    rounds: u64,
}

impl Soonest {
    /// These voters in order, and whether all are to be asked.
    fn begin(&mut self, voters: BTreeSet<NodeId>) -> (Vec<NodeId>, bool) {
        self.rounds += 1;
        self.order.retain(|node| voters.contains(node));
        let new: Vec<NodeId> = voters.into_iter().filter(|node| !self.order.contains(node)).collect();
        self.order.extend(new);
        (self.order.clone(), self.rounds % LEARN_EVERY == 1)
    }

    fn answered(&mut self, first: Vec<NodeId>) {
        let rest: Vec<NodeId> = self.order.drain(..).filter(|node| !first.contains(node)).collect();
        self.order = first.into_iter().chain(rest).collect();
    }
}

/// Asks the other voters.
pub(crate) struct Confirmer {
    net: Arc<dyn Transport>,
    runtime: Arc<dyn Runtime>,
    store: Arc<Store>,
    /// How long a voter may take.
    within: Duration,
    soonest: Mutex<Soonest>,
    /// Rounds that were begun.
    begun: AtomicU64,
    /// The last one that came to its end; held while one is under way.
    ended: tokio::sync::Mutex<Option<Ended>>,
}

/// What a round came to.
struct Ended {
    number: u64,
    term: u64,
    sets: Vec<BTreeSet<NodeId>>,
    confirmed: Result<(), Unconfirmed>,
}

/// A voter that was asked.
type Asked = (NodeId, BoxFuture<'static, Result<Response, NetError>>);

/// A round under way.
struct Asking<'a> {
    confirmer: &'a Confirmer,
    vote: Vote,
    round: Round,
    asked: Vec<Asked>,
    answered: Vec<NodeId>,
    hedge: Sleep,
}

impl Confirmer {
    pub(crate) fn new(
        net: Arc<dyn Transport>,
        runtime: Arc<dyn Runtime>,
        store: Arc<Store>,
        within: Duration,
    ) -> Self {
        let (soonest, begun, ended) = (Mutex::default(), AtomicU64::new(0), tokio::sync::Mutex::default());
        Self { net, runtime, store, within, soonest, begun, ended }
    }

    fn soonest(&self) -> MutexGuard<'_, Soonest> {
        self.soonest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, node: NodeId, vote: Vote) -> Asked {
        let request = Request::Consensus { group: self.store.group, call: question(vote) };
        (node, self.net.call(node, request, self.within))
    }

    fn is_own(&self, vote: Vote) -> Result<(), Unconfirmed> {
        if self.store.vote() == Some(vote) { Ok(()) } else { Err(Unconfirmed::Deposed) }
    }

    /// Confirms that this node leads in a term, among voters of these sets.
    pub(crate) async fn confirm(&self, term: u64, sets: Vec<BTreeSet<NodeId>>) -> Result<(), Unconfirmed> {
        // Rounds of higher numbers ask after this moment.
        let came = self.begun.load(Ordering::SeqCst);
        let mut last = self.ended.lock().await;
        let shared = last.take().filter(|last| last.number > came && last.term == term && last.sets == sets);
        let ended = match shared {
            Some(shared) => shared,
            None => {
                let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
                let confirmed = self.round(term, &sets).await;
                Ended { number, term, sets, confirmed }
            }
        };
        let confirmed = ended.confirmed;
        *last = Some(ended);
        confirmed.and_then(|()| self.is_own(vote_for(self.net.local(), term)))
    }

    async fn round(&self, term: u64, sets: &[BTreeSet<NodeId>]) -> Result<(), Unconfirmed> {
        let node = self.net.local();
        let vote = vote_for(node, term);
        self.is_own(vote)?;
        let others = sets.iter().flatten().filter(|voter| **voter != node).copied().collect();
        let (order, all) = self.soonest().begin(others);
        let round = Round::new(sets.to_vec(), node, order);
        let hedge = self.runtime.sleep(if all { Duration::ZERO } else { HEDGE });
        let mut asking =
            Asking { confirmer: self, vote, round, asked: Vec::new(), answered: Vec::new(), hedge };
        let first = asking.round.first();
        asking.ask(first);
        let confirmed = poll_fn(|context| asking.step(context)).await;
        self.soonest().answered(asking.answered);
        confirmed
    }
}

impl Confirmer {
    /// Whether a voter that said with its question that it follows this node in a term is enough to confirm that.
    pub(crate) fn is_confirmed_by(&self, follower: NodeId, term: u64, sets: Vec<BTreeSet<NodeId>>) -> bool {
        let node = self.net.local();
        let mut round = Round::new(sets, node, Vec::new());
        round.yes.insert(follower);
        round.is_confirmed() && self.store.vote() == Some(vote_for(node, term))
    }
}

impl Asking<'_> {
    fn ask(&mut self, nodes: Vec<NodeId>) {
        let asked = nodes.into_iter().map(|node| self.confirmer.ask(node, self.vote));
        self.asked.extend(asked);
    }

    fn step(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Unconfirmed>> {
        loop {
            let (mut failed, mut deposed) = (false, false);
            let (answered, yes) = (&mut self.answered, &mut self.round.yes);
            self.asked.retain_mut(|(node, call)| {
                let Poll::Ready(answer) = call.as_mut().poll(context) else { return true };
                match answer {
                    Ok(Response::Consensus(ConsensusAnswer::Appended)) => {
                        answered.push(*node);
                        yes.insert(*node);
                    }
                    Ok(Response::Consensus(ConsensusAnswer::Higher(_))) => deposed = true,
                    _ => failed = true,
                }
                false
            });
            if deposed {
                return Poll::Ready(Err(Unconfirmed::Deposed));
            }
            if self.round.is_confirmed() {
                return Poll::Ready(Ok(()));
            }
            let mut rest_is_due = || failed || self.hedge.as_mut().poll(context).is_ready();
            if !self.round.unasked.is_empty() && rest_is_due() {
                let rest = self.round.rest();
                self.ask(rest);
                continue;
            }
            if self.asked.is_empty() {
                return Poll::Ready(Err(Unconfirmed::Few));
            }
            return Poll::Pending;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[u8]) -> BTreeSet<NodeId> {
        numbers.iter().map(|n| NodeId([*n; 16])).collect()
    }

    fn list(numbers: &[u8]) -> Vec<NodeId> {
        numbers.iter().map(|n| NodeId([*n; 16])).collect()
    }

    fn first(sets: &[&[u8]], node: u8, order: &[u8]) -> Vec<NodeId> {
        let sets = sets.iter().map(|numbers| set(numbers)).collect();
        Round::new(sets, NodeId([node; 16]), list(order)).first()
    }

    #[test]
    fn who_knows_no_voters_yet_is_no_majority_of_them() {
        assert!(!is_majority(&[], &set(&[1])));
        assert!(!is_majority(&[set(&[])], &set(&[1])));
        for (voters, least) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)] {
            let first = |most: u8| (1..=most).map(|n| NodeId([n; 16])).collect::<BTreeSet<_>>();
            assert!(is_majority(&[first(voters)], &first(least)), "{voters}");
            assert!(!is_majority(&[first(voters)], &first(least - 1)), "{voters}");
        }
    }

    #[test]
    fn as_many_are_asked_as_are_a_majority_with_the_leader() {
        assert_eq!(first(&[&[1]], 1, &[]), list(&[]));
        assert_eq!(first(&[&[1, 2]], 1, &[2]), list(&[2]));
        assert_eq!(first(&[&[1, 2, 3]], 1, &[3, 2]), list(&[3]));
        assert_eq!(first(&[&[1, 2, 3, 4, 5]], 1, &[4, 2, 5, 3]), list(&[4, 2]));
    }

    #[test]
    fn a_leader_that_does_not_vote_any_more_does_not_count() {
        assert_eq!(first(&[&[2, 3, 4]], 1, &[4, 2, 3]), list(&[4, 2]));
    }

    #[test]
    fn a_majority_of_both_sets_is_asked_while_voters_are_changed() {
        let (old, new): (&[u8], &[u8]) = (&[1, 2, 3], &[1, 4, 5]);
        let mut round = Round::new(vec![set(old), set(new)], NodeId([1; 16]), list(&[2, 3, 4, 5]));
        assert_eq!(round.first(), list(&[2, 3, 4]));
        round.yes.extend(list(&[2, 3]));
        assert!(!round.is_confirmed());
        round.yes.extend(list(&[4]));
        assert!(round.is_confirmed());
        assert_eq!(round.rest(), list(&[5]));
    }

    #[test]
    fn who_answered_is_asked_first_and_who_left_is_not_asked() {
        let mut soonest = Soonest::default();
        assert_eq!(soonest.begin(set(&[2, 3, 4])), (list(&[2, 3, 4]), true));
        soonest.answered(list(&[4, 3]));
        assert_eq!(soonest.begin(set(&[2, 3, 4])), (list(&[4, 3, 2]), false));
        soonest.answered(list(&[]));
        assert_eq!(soonest.begin(set(&[2, 3, 5])), (list(&[3, 2, 5]), false));
        let learns = (0..128).filter(|_| soonest.begin(set(&[2])).1).count();
        assert_eq!(learns, 2);
    }
}
