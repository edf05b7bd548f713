//! Elections: when a voter calls one, and how a leader gives its place to another.
//!
//! openraft calls an election when its own queue was silent for a while, and that queue waits for the disk. Here silence is
//! measured where messages arrive, and the other voters are asked before a leader is disturbed.
//!
//! Invariant: without being told to, a voter calls an election only after a majority of voters, itself among them, has heard of no
//! leader for nearly [`Settings::silence`](super::Settings::silence), and has no more of the log.
//! Invariant: the lease that other voters keep for a leader is over when it has been silent for so long.
//! Invariant: a leader that gives its place away proposes nothing more, and what it proposed is with its successor.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use openraft::AsyncRuntime;
use openraft::raft::AppendEntriesRequest;

use super::confirm::is_majority;
use super::group::{GroupStatus, Settings, status_of};
use super::network::{ballot, position};
use super::raft::{Raft, Vote};
use super::runtime::{Ambient, Runtime};
use super::store::Store;
use crate::net::{Ballot, ConsensusAnswer, ConsensusCall, NodeId, Position, Request, Response, Transport};

/// Pause between two looks.
const TICK: Duration = Duration::from_millis(50);
/// Voters call elections so far apart, in the order of their names.
const STAGGER: Duration = Duration::from_millis(100);
/// How long another voter may take to say whether it hears of a leader.
const ASK_WITHIN: Duration = Duration::from_millis(300);
/// Pause after a vain attempt, at least; at most twice that.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a leader that gives its place away waits for another voter to have all of its log.
const CATCH_UP: Duration = Duration::from_secs(2);
/// How long a voter may take to let go of the leader, and to call an election when told to.
const TELL_WITHIN: Duration = Duration::from_millis(500);
/// How long the successor may take to lead.
const SUCCEED: Duration = Duration::from_secs(3);

/// What a voter knows of its leader's life.
pub(crate) struct Elector {
    node: NodeId,
    settings: Settings,
    net: Arc<dyn Transport>,
    runtime: Arc<dyn Runtime>,
    store: Arc<Store>,
    raft: Raft,
    /// When a leader was heard of.
    heard: Mutex<Duration>,
    leaving: AtomicBool,
    closed: AtomicBool,
}

impl Elector {
    pub(crate) fn new(
        settings: Settings,
        net: Arc<dyn Transport>,
        runtime: Arc<dyn Runtime>,
        store: Arc<Store>,
        raft: Raft,
    ) -> Arc<Self> {
        let (node, heard) = (net.local(), Mutex::new(runtime.now()));
        // Elections are called here alone.
        raft.runtime_config().elect(false);
        let (leaving, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { node, settings, net, runtime, store, raft, heard, leaving, closed })
    }

    fn status(&self) -> GroupStatus {
        status_of(&self.raft.metrics().borrow())
    }

    /// Sets of voters of which a majority each decides: two while they are being changed, none where they are not known yet.
    pub(crate) fn voters(&self) -> Vec<BTreeSet<NodeId>> {
        self.raft.metrics().borrow().membership_config.membership().get_joint_config().clone()
    }

    fn last(&self) -> Option<Position> {
        position(self.store.ends().1)
    }

    /// A message of a leader came.
    pub(crate) fn hear(&self, from: Ballot) {
        if from.committed && from.term >= self.raft.metrics().borrow().current_term {
            *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = self.runtime.now();
        }
    }

    /// A message of a node came that is only sent by a leader.
    pub(crate) fn hear_of(&self, from: NodeId) {
        if self.raft.metrics().borrow().current_leader == Some(from) {
            *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = self.runtime.now();
        }
    }

    /// For how long no leader was heard of.
    pub(crate) fn quiet(&self) -> Duration {
        let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        self.runtime.now().saturating_sub(heard)
    }

    /// Whether an election would disturb nobody, as far as this voter knows; `last` is the end of the candidate's log.
    pub(crate) fn would_vote(&self, last: Option<Position>) -> bool {
        let order = |last: Option<Position>| last.map(|last| (last.term, last.index));
        let silent = self.quiet() + self.settings.heartbeat >= self.settings.silence;
        silent && !self.status().leads && order(last) >= order(self.last())
    }

    /// The leader that gives its place away has said so.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Calls elections until it is closed.
    pub(crate) async fn run(self: Arc<Self>) {
        while !self.closed.load(Ordering::Acquire) {
            Ambient::sleep(TICK).await;
            let status = self.status();
            if status.leads {
                *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = self.runtime.now();
            }
            // Who does not know the members yet has no part in elections, but hears of no leader either.
            if status.leads || self.is_leaving() || !status.voters.contains(&self.node) {
                continue;
            }
            let before =
                status.voters.iter().filter(|node| **node < self.node && Some(**node) != status.leader);
            let rank = u32::try_from(before.count()).unwrap_or(u32::MAX);
            let alone = status.voters.len() == 1;
            if !alone && self.quiet() < self.settings.silence + STAGGER.saturating_mul(rank) {
                continue;
            }
            if !self.agreed(&status).await {
                continue;
            }
            // An openraft that has ended needs no election.
            let _ended = self.raft.trigger().elect().await;
            let more = self.runtime.random() % u64::try_from(PAUSE.as_millis()).unwrap_or(1);
            Ambient::sleep(PAUSE + Duration::from_millis(more)).await;
        }
    }

    /// Whether a majority hears of no leader either.
    async fn agreed(&self, status: &GroupStatus) -> bool {
        let last = self.last();
        let others = status.voters.iter().filter(|node| **node != self.node);
        let ask = |node| (node, self.tell(node, ConsensusCall::Silent { last }, ASK_WITHIN));
        let asked: Vec<_> = others.copied().map(ask).collect();
        let mut agree = BTreeSet::from([self.node]);
        for (node, answer) in asked {
            if answer.await == Some(ConsensusAnswer::Silent(true)) {
                agree.insert(node);
            }
        }
        is_majority(&self.voters(), &agree) && self.quiet() >= self.settings.silence
    }

    /// Asks another voter, at once; the answer may be waited for.
    fn tell(
        &self,
        node: NodeId,
        call: ConsensusCall,
        within: Duration,
    ) -> impl Future<Output = Option<ConsensusAnswer>> + use<> {
        let request = Request::Consensus { group: self.store.group, call };
        let asked = Ambient::spawn(self.net.call(node, request, within));
        async move {
            match asked.await {
                Ok(Ok(Response::Consensus(answer))) => Some(answer),
                _ => None,
            }
        }
    }

    /// Gives the leader's place to another voter, and waits until it leads. Nothing, where this node does not lead or no other can.
    pub(crate) async fn step_down(&self) {
        if self.status().voters == [self.node].into() {
            return;
        }
        self.leaving.store(true, Ordering::Release);
        let Some((term, to)) = self.successor().await else { return };
        let _silence_does_it = self.give_to(term, to).await;
        let until = self.runtime.now() + SUCCEED;
        while self.runtime.now() < until && self.status().leader.is_none_or(|leader| leader == self.node) {
            Ambient::sleep(TICK / 5).await;
        }
        let leader = self.status().leader.map(|leader| leader.to_string());
        tracing::info!(group = self.store.group, leader, "gave the lead away");
    }

    /// Lets go of the leader's place, which this node has in a term, and tells a voter that has all of its log to take it; whether that
    /// one calls an election. As soon as a majority has let go it wins; it need not be told by all.
    pub(crate) async fn give_to(&self, term: u64, to: NodeId) -> bool {
        let vote =
            Vote { leader_id: openraft::LeaderId { term: term + 1, voted_for: Some(to) }, committed: false };
        // Whoever has heard of a higher term keeps no lease for this leader any more, and votes at once.
        let loosen = ConsensusCall::Append {
            vote: ballot(vote),
            previous: None,
            committed: None,
            entries: Vec::new(),
        };
        let status = self.status();
        let others = status.voters.iter().filter(|node| **node != self.node && **node != to);
        let told = others.map(|node| {
            let (node, told) = (*node, self.tell(*node, loosen.clone(), TELL_WITHIN));
            async move { told.await.map(|_| node) }
        });
        let mut told: FuturesUnordered<_> = told.collect();
        let own = AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
        // Where it does not work, silence does it.
        let _ended = self.raft.append_entries(own).await;
        let (sets, mut let_go) = (self.voters(), BTreeSet::from([self.node, to]));
        while !is_majority(&sets, &let_go)
            && let Some(node) = told.next().await
        {
            let_go.extend(node);
        }
        self.tell(to, ConsensusCall::Lead, TELL_WITHIN).await == Some(ConsensusAnswer::Campaigns)
    }

    /// The term of this leader, and a voter that has all of its log, or most.
    async fn successor(&self) -> Option<(u64, NodeId)> {
        let until = self.runtime.now() + CATCH_UP;
        loop {
            let status = self.status();
            let others =
                status.matched.iter().filter(|(node, _)| status.voters.contains(node) && **node != self.node);
            let (to, matched) = others.max_by_key(|(_, matched)| **matched)?;
            if !status.leads {
                return None;
            }
            let whole = *matched >= status.last && status.applied >= status.last;
            if whole || self.runtime.now() >= until {
                return Some((status.term, *to));
            }
            Ambient::sleep(TICK / 10).await;
        }
    }
}
