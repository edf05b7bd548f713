//! Names that another node may decide: requests find their way to the leader.
//!
//! Invariant: a request is asked again only where asking twice does no harm; all of them are made so.
//! Invariant: nobody waits longer than [`PATIENCE`] for a leader, and nobody asks twice without a pause.
//! Invariant: a grant is said to be unused only when every node that was asked to settle it has said that it did not.
//! Invariant: a grant that nobody waits for any more is given back, also when it is not known whether it was given.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::leases::NO_LEASE;
use super::service::{AskedFor, NamesAnswer, NamesRequest, NamesService};
use super::together::{Asks, Said, Together, goes_with_others};
use super::{Answer, Ask, Decider, Elsewhere, Grant, Hold, Names, NewLine, Seats, leads};
use crate::clock::Timestamp;
use crate::disk::Class;
use crate::net::{NetError, NodeId, Request, Response, Timer, Transport, first};
use crate::object::group::Leader;
use crate::object::replica::BoxFuture;
use crate::object::{Error, ObjectPath, Result};

/// How long one node is waited for.
const ATTEMPT: Duration = Duration::from_secs(4);
/// Pause before somebody is asked again, and before the next node when this one named another leader.
const PAUSE: Duration = Duration::from_millis(100);
const SHORT_PAUSE: Duration = Duration::from_millis(5);
/// How often it is looked whether the node that is waited for leads still.
const LOOK: Duration = Duration::from_millis(100);
/// How often this node is asked again while it believes to lead and cannot: it may have been started just now, and finds out
/// only by an election, which begins after 1.3 s of silence.
const OWN_TRIES: u32 = 30;
/// How long a leader is looked for.
pub(super) const PATIENCE: Duration = Duration::from_secs(12);

/// Who votes in a group, as far as this node knows; shared with whoever learns of changes.
#[derive(Debug, Default)]
pub struct Directory {
    voters: RwLock<Vec<NodeId>>,
}

impl Directory {
    /// These.
    #[must_use]
    pub fn of(voters: Vec<NodeId>) -> Self {
        Self { voters: RwLock::new(voters) }
    }

    /// From now on these.
    pub fn replace(&self, voters: Vec<NodeId>) {
        *self.voters.write().unwrap_or_else(PoisonError::into_inner) = voters;
    }

    pub(super) fn all(&self) -> Vec<NodeId> {
        self.voters.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn at(&self, turn: usize) -> Option<NodeId> {
        let voters = self.voters.read().unwrap_or_else(PoisonError::into_inner);
        if voters.is_empty() { None } else { voters.get(turn % voters.len()).copied() }
    }
}

/// Names of an index group, decided wherever it is led; clones share everything.
#[derive(Clone)]
pub struct Routed {
    shared: Arc<Shared>,
}

struct Shared {
    group: u32,
    net: Arc<dyn Transport>,
    timer: Timer,
    /// Those of this node: what decides when it leads.
    seats: Seats,
    directory: Arc<Directory>,
    /// Who answered last.
    leader: Mutex<Option<NodeId>>,
    turn: AtomicU64,
    lease: AtomicU64,
    together: Together,
}

/// Gives a grant back.
fn release(group: u32, lease: u64) -> Request {
    Request::Names(NamesRequest { group, follows: None, what: AskedFor::Release { lease } })
}

/// A grant that is being asked for: given back everywhere if it is not taken.
struct Asking {
    shared: Arc<Shared>,
    number: u64,
    taken: bool,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let shared = &self.shared;
        // Only where it was asked for is known for sure; a release that finds nothing does nothing.
        let known = *shared.leader.lock().unwrap_or_else(PoisonError::into_inner);
        let local = shared.net.local();
        let asked = shared.directory.all().into_iter().chain(known).filter(|node| *node != local);
        if !self.taken {
            for node in asked {
                shared.net.cast(node, release(shared.group, self.number));
            }
        }
    }
}

/// A grant that another node gave.
pub(crate) struct Lease {
    net: Arc<dyn Transport>,
    leader: NodeId,
    group: u32,
    number: u64,
    over: bool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.over {
            self.net.cast(self.leader, release(self.group, self.number));
        }
    }
}

impl std::fmt::Debug for Routed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routed").field("group", &self.shared.group).finish_non_exhaustive()
    }
}

/// Whether something was done that nobody has said to be done; clones share it.
#[derive(Clone, Default)]
pub(super) struct Doubt(Arc<AtomicBool>);

impl Doubt {
    fn arise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Who answers.
enum Who {
    Own(Decider),
    Node(NodeId),
}

impl Routed {
    /// `first_lease` is random, new at every start, so that no grant of an earlier life is taken for one of this.
    #[must_use]
    pub fn new(
        group: u32,
        net: Arc<dyn Transport>,
        timer: Timer,
        own: Option<&NamesService>,
        directory: Arc<Directory>,
        first_lease: u64,
    ) -> Self {
        Self::among(group, net, timer, Seats::from(own.cloned()), directory, first_lease)
    }

    /// As [`Routed::new`]; this node may take part in the group, or not, from one moment to the next.
    #[must_use]
    pub fn among(
        group: u32,
        net: Arc<dyn Transport>,
        timer: Timer,
        seats: Seats,
        directory: Arc<Directory>,
        first_lease: u64,
    ) -> Self {
        let (leader, turn, lease) = (Mutex::new(None), AtomicU64::new(0), AtomicU64::new(first_lease));
        let together = Together::default();
        let shared = Shared { group, net, timer, seats, directory, leader, turn, lease, together };
        Self { shared: Arc::new(shared) }
    }
}

impl Shared {
    /// Who decides here when this node leads.
    fn own(&self) -> Option<Decider> {
        self.seats.decider(self.group)
    }

    fn who(&self) -> Option<Who> {
        if let Some(own) = self.own() {
            match own.group.leader() {
                Leader::Own => return Some(Who::Own(own)),
                Leader::Other(node) => return Some(Who::Node(node)),
                Leader::Unknown => {}
            }
        }
        let known = *self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = || {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            self.directory.at(usize::try_from(turn).unwrap_or(0))
        };
        known.or_else(turn).filter(|node| *node != self.net.local()).map(Who::Node)
    }

    fn learn(&self, leader: Option<NodeId>) {
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }

    /// Waits while `node` may lead, as far as this node's own voter knows.
    async fn deposed(&self, node: NodeId) {
        loop {
            (self.timer)(LOOK).await;
            if self.own().is_some_and(|own| own.group.leader() != Leader::Other(node)) {
                return;
            }
        }
    }

    /// One attempt at another node: what it says, or why it is nobody to say anything and when somebody is asked again.
    async fn attempt(
        self: &Arc<Self>,
        node: NodeId,
        what: AskedFor,
        doubt: &Doubt,
    ) -> Result<Result<NamesAnswer>, (String, Duration)> {
        // Read now that everything that is asked has come.
        let follows = self.own().and_then(|own| own.group.follows(node));
        let request = Request::Names(NamesRequest { group: self.group, follows, what });
        let this = Arc::clone(self);
        let deposed = Box::pin(async move { this.deposed(node).await });
        let Some(answer) = first(self.net.call(node, request, ATTEMPT), deposed).await else {
            doubt.arise();
            self.learn(None);
            return Err((format!("node {node} leads no more"), SHORT_PAUSE));
        };
        match answer {
            Ok(Response::Names(NamesAnswer::NotLeader(hint))) => Err(self.follow(node, hint)),
            Ok(Response::Names(NamesAnswer::Moved(hint))) => {
                doubt.arise();
                Err(self.follow(node, hint))
            }
            Ok(Response::Names(answer)) => {
                self.learn(Some(node));
                Ok(Ok(answer))
            }
            Ok(Response::Failed(failure)) => Ok(Err(failure.into())),
            Ok(_) => Err((format!("node {node} answered another question"), PAUSE)),
            Err(error) => {
                if matches!(error, NetError::Lost { .. } | NetError::Deadline { .. }) {
                    doubt.arise();
                }
                self.learn(None);
                Err((error.to_string(), PAUSE))
            }
        }
    }

    /// As [`Shared::attempt`]; a short question goes with those of others.
    async fn put_to(
        self: &Arc<Self>,
        node: NodeId,
        what: &AskedFor,
        doubt: &Doubt,
    ) -> Result<Result<NamesAnswer>, (String, Duration)> {
        let AskedFor::Ask(ask) = what else {
            return self.attempt(node, what.clone(), doubt).await;
        };
        if !goes_with_others(ask) {
            return self.attempt(node, what.clone(), doubt).await;
        }
        let send = |asks| self.attempt_all(node, asks);
        match self.together.ask(node, ask.clone(), &self.timer, send).await {
            Said::Answer(answer) => Ok(Ok(NamesAnswer::Answer(answer))),
            Said::Later(why, pause) => Err((why, pause)),
            Said::Unavailable(reason) => Ok(Err(Error::Unavailable { reason })),
            Said::Alone => self.attempt(node, what.clone(), doubt).await,
        }
    }

    /// One attempt at another node with several questions.
    async fn attempt_all(self: &Arc<Self>, node: NodeId, asks: Vec<Ask>) -> Vec<Said> {
        let number = asks.len();
        let all = |said| vec![said; number];
        match self.attempt(node, AskedFor::Several(Asks(asks)), &Doubt::default()).await {
            Ok(Ok(NamesAnswer::Several(answers))) if answers.len() == number => {
                answers.into_iter().map(|answer| answer.map_or(Said::Alone, Said::Answer)).collect()
            }
            Ok(Err(Error::Unavailable { reason })) => all(Said::Unavailable(reason)),
            Ok(_) => all(Said::Alone),
            Err((why, pause)) => all(Said::Later(why, pause)),
        }
    }

    /// A node that does not lead says who may.
    fn follow(&self, node: NodeId, hint: Option<NodeId>) -> (String, Duration) {
        let hint = hint.filter(|hint| *hint != node && *hint != self.net.local());
        self.learn(hint);
        let pause = if hint.is_some() { SHORT_PAUSE } else { PAUSE };
        (format!("node {node} does not lead"), pause)
    }

    /// Asks whoever leads, until somebody does or patience is over.
    async fn lead<T: Send + 'static>(
        self: Arc<Self>,
        what: AskedFor,
        doubt: Doubt,
        own: impl Fn(Decider) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
        read: impl Fn(&Arc<Self>, NamesAnswer, NodeId) -> Option<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let why = Arc::new(Mutex::new("no voter of the group is known".to_owned()));
        let (this, last) = (Arc::clone(&self), Arc::clone(&why));
        let note = move |reason| *last.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        let asked = async move {
            let (mut tries, mut soon) = (0, SHORT_PAUSE);
            loop {
                if this.seats.is_over(this.group) {
                    return Err(Elsewhere::Unknown.into());
                }
                let pause = match this.who() {
                    Some(Who::Own(decider)) => {
                        let term = decider.group.term();
                        match own(decider.clone()).await {
                            Err(Error::Unavailable { reason })
                                if decider.moved(term) || tries < OWN_TRIES =>
                            {
                                tries += 1;
                                doubt.arise();
                                note(reason);
                                PAUSE
                            }
                            Err(error @ Error::GrantLost { unused: true }) if decider.moved(term) => {
                                note(error.to_string());
                                SHORT_PAUSE
                            }
                            answer => return answer,
                        }
                    }
                    Some(Who::Node(node)) => match this.put_to(node, &what, &doubt).await {
                        Ok(Ok(NamesAnswer::Elsewhere(elsewhere))) => return Err(elsewhere.into()),
                        Ok(Ok(answer)) => {
                            let odd =
                                || Error::Unavailable { reason: "an answer to another question".to_owned() };
                            return read(&this, answer, node).ok_or_else(odd);
                        }
                        Ok(Err(error)) => return Err(error),
                        Err((reason, pause)) => {
                            note(reason);
                            pause
                        }
                    },
                    None => PAUSE,
                };
                // At first after a moment: a group that was just made, or is handed over, is led soon.
                soon = soon.saturating_mul(2);
                (this.timer)(pause.min(soon)).await;
            }
        };
        match first(Box::pin(asked), (self.timer)(PATIENCE)).await {
            Some(answer) => answer,
            None => {
                let why = why.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Err(Error::Unavailable { reason: format!("nobody decided about names in time: {why}") })
            }
        }
    }
}

impl Shared {
    /// Makes a line by a lease, if the leader knows it, or as one whose grant is lost.
    async fn settle_by(
        self: Arc<Self>,
        lease: u64,
        path: ObjectPath,
        before: Option<Timestamp>,
        line: NewLine,
        class: Class,
        doubt: Doubt,
    ) -> Result<()> {
        let late = (path.clone(), line.clone());
        let own = move |decider: Decider| -> BoxFuture<'static, Result<()>> {
            let (path, line) = late.clone();
            Box::pin(async move { decider.settle_late(&path, before, line, class).await })
        };
        let what = AskedFor::Settle { lease, path, before, line, class };
        let read = |_: &Arc<Self>, answer, _| matches!(answer, NamesAnswer::Done).then_some(());
        match self.lead(what, doubt.clone(), own, read).await {
            Err(Error::GrantLost { unused }) => {
                let unused = unused && before.is_none() && !doubt.is();
                Err(Error::GrantLost { unused })
            }
            // The line may have been made, and have gone with its container.
            Err(Error::NoContainer) if doubt.is() => Err(Error::GrantLost { unused: false }),
            settled => settled,
        }
    }
}

impl Routed {
    /// Makes a line whose grant another group gave.
    pub(super) async fn settle_late(
        &self,
        path: ObjectPath,
        before: Option<Timestamp>,
        line: NewLine,
        class: Class,
        doubt: Doubt,
    ) -> Result<()> {
        Arc::clone(&self.shared).settle_by(NO_LEASE, path, before, line, class, doubt).await
    }

    /// As [`Names::settle`]; `doubt` arises where it may have been done and nobody said so.
    pub(super) async fn settle_in_doubt(
        &self,
        grant: Grant,
        line: NewLine,
        class: Class,
        doubt: Doubt,
    ) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let (path, before) = (grant.path.clone(), grant.line.at);
        let lease = match grant.hold {
            // Where another node leads now, it judges the line as one whose grant is lost.
            Hold::Own { .. } => match shared.own() {
                None => NO_LEASE,
                Some(own) if !leads(&*own.group) => NO_LEASE,
                Some(own) => match own.settle(grant, line.clone(), class).await {
                    Err(Error::Unavailable { .. }) if !leads(&*own.group) => {
                        doubt.arise();
                        NO_LEASE
                    }
                    Err(Error::GrantLost { unused: true }) if !leads(&*own.group) => NO_LEASE,
                    settled => return settled,
                },
            },
            Hold::Alone => {
                let reason = "nobody has granted the change of the line".to_owned();
                return Err(Error::Unavailable { reason });
            }
            Hold::Leased(mut lease) => {
                lease.over = true;
                lease.number
            }
        };
        shared.settle_by(lease, path, before, line, class, doubt).await
    }
}

impl Names for Routed {
    fn ask(&self, ask: Ask) -> BoxFuture<'static, Result<Answer>> {
        let shared = Arc::clone(&self.shared);
        let own_ask = ask.clone();
        let own = move |decider: Decider| decider.ask(own_ask.clone());
        let read = |_: &Arc<Shared>, answer, _| match answer {
            NamesAnswer::Answer(answer) => Some(answer),
            _ => None,
        };
        Box::pin(shared.lead(AskedFor::Ask(ask), Doubt::default(), own, read))
    }

    fn remembered(&self, ask: Ask) -> Option<Answer> {
        self.shared.own()?.read(ask).ok()
    }

    fn begin(&self, path: ObjectPath, given: Option<Timestamp>) -> BoxFuture<'static, Result<Grant>> {
        let shared = Arc::clone(&self.shared);
        let number = shared.lease.fetch_add(1, Ordering::Relaxed);
        let own_path = path.clone();
        let number_of_group = shared.group;
        let own = move |decider: Decider| -> BoxFuture<'static, Result<Grant>> {
            let granted = decider.begin(own_path.clone(), given);
            Box::pin(async move { granted.await.map(|grant| Grant { group: number_of_group, ..grant }) })
        };
        let what = AskedFor::Begin { lease: number, path: path.clone(), given };
        let read = move |shared: &Arc<Shared>, answer, leader| match answer {
            NamesAnswer::Begun { line, at } => {
                let (net, group) = (Arc::clone(&shared.net), shared.group);
                let lease = Lease { net, leader, group, number, over: false };
                Some(Grant { path: path.clone(), line, at, group, hold: Hold::Leased(lease) })
            }
            _ => None,
        };
        Box::pin(async move {
            let mut asking = Asking { shared: Arc::clone(&shared), number, taken: false };
            let granted = shared.lead(what, Doubt::default(), own, read).await;
            asking.taken = granted.is_ok();
            granted
        })
    }

    fn settle(&self, grant: Grant, line: NewLine, class: Class) -> BoxFuture<'static, Result<()>> {
        let this = self.clone();
        Box::pin(async move { this.settle_in_doubt(grant, line, class, Doubt::default()).await })
    }

    fn lines_count(&self) -> bool {
        true
    }

    fn here(&self) -> bool {
        self.shared.own().is_some_and(|own| leads(&*own.group))
    }
}
