//! What a node that leads an index group answers to the others.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::decider::Asker;
use super::leases::{Denied, Ended, LeaseId, Leases};
use super::together::{Asks, goes_with_others};
use super::{Answer, Ask, Child, Decider, Elsewhere, Line, Names, NewLine, Page, leads};
use crate::clock::{Clock, Timestamp};
use crate::disk::Class;
use crate::net::limits::MAX_AHEAD;
use crate::net::{MonotonicClock, NodeId};
use crate::object::finish::Finisher;
use crate::object::group::{IndexGroup, Leader};
use crate::object::{Entry, Error, Headers, Listing, ObjectPath, Options, Result};

/// Bytes of names and values in one answer; a longer listing is cut.
const MAX_PAGE: usize = 2 << 20;
/// Entries in one answer.
const MAX_ENTRIES: usize = 10_000;
/// Names of accounts in one answer.
const MAX_ACCOUNTS: u32 = 1000;
/// Bytes that an entry of a listing takes beside its texts.
const ENTRY: usize = 64;

/// A request to the leader of an index group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesRequest {
    /// Which group.
    pub group: u32,
    /// The sender votes in the group, and follows the node that it asks in this term: it has voted for nobody later
    /// ([`IndexGroup::follows`]). So much of a majority need not be asked for by the leader.
    pub follows: Option<u64>,
    /// What is asked for.
    pub what: AskedFor,
}

/// What a node asks of the leader of an index group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskedFor {
    /// [`Names::ask`].
    Ask(Ask),
    /// [`Names::begin`], under a number that this node gives no other.
    Begin {
        /// The number.
        lease: u64,
        /// Whose name.
        path: ObjectPath,
        /// The version time wanted.
        given: Option<Timestamp>,
    },
    /// [`Names::settle`].
    Settle {
        /// The number of the grant.
        lease: u64,
        /// Whose name.
        path: ObjectPath,
        /// The line's version time when the grant was given.
        before: Option<Timestamp>,
        /// The line now.
        line: NewLine,
        /// Whose write it is.
        class: Class,
    },
    /// Give a grant back.
    Release {
        /// Its number.
        lease: u64,
    },
    /// Short questions, answered by what stands after they came.
    Several(Asks),
}

/// The leader's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamesAnswer {
    /// To a question.
    Answer(Answer),
    /// Granted.
    Begun {
        /// What stands.
        line: Line,
        /// The version time of the change.
        at: Timestamp,
    },
    /// Settled, or given back.
    Done,
    /// This node does not lead; perhaps that one does.
    NotLeader(Option<NodeId>),
    /// The same of a node that led when it was asked to settle: it may have done so.
    Moved(Option<NodeId>),
    /// The lines asked for are another group's.
    Elsewhere(Elsewhere),
    /// To several questions, in order; `None`: it is to be asked by itself.
    Several(Vec<Option<Answer>>),
}

/// Answers for an index group that this node votes in; clones share everything.
#[derive(Clone)]
pub struct NamesService {
    shared: Arc<Shared>,
}

struct Shared {
    group: u32,
    decider: Decider,
    leases: Mutex<Leases>,
    clock: MonotonicClock,
}

impl std::fmt::Debug for NamesService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamesService").field("group", &self.shared.group).finish_non_exhaustive()
    }
}

impl NamesService {
    /// Decides for a group by its rows at this node. `clock` gives version times and is the store's; `since` is for leases.
    #[must_use]
    pub fn new(
        number: u32,
        group: Arc<dyn IndexGroup>,
        clock: Arc<Clock>,
        options: &Options,
        since: MonotonicClock,
    ) -> Self {
        let decider = Decider::new(group, clock, Finisher(options.spawn.clone()));
        let shared = Shared { group: number, decider, leases: Mutex::default(), clock: since };
        Self { shared: Arc::new(shared) }
    }

    /// The number of its group.
    pub(super) fn group(&self) -> u32 {
        self.shared.group
    }

    /// Who decides.
    pub(super) fn decider(&self) -> &Decider {
        &self.shared.decider
    }

    /// Answers a request of another node.
    pub async fn answer(&self, from: NodeId, request: NamesRequest) -> Result<NamesAnswer> {
        let NamesRequest { group, follows, what } = request;
        let shared = &self.shared;
        if group != shared.group {
            return Ok(NamesAnswer::NotLeader(None));
        }
        if let AskedFor::Release { lease } = what {
            let grant = shared.leases().end((from, lease), (shared.clock)());
            drop(grant);
            return Ok(NamesAnswer::Done);
        }
        if !leads(&*shared.decider.group) {
            return Ok(shared.not_leader());
        }
        let (term, settles) = (shared.decider.group.term(), matches!(what, AskedFor::Settle { .. }));
        match shared.lead(from, follows, what).await {
            // It may have stopped to lead in the middle: it is to be asked again, of whoever leads.
            Err(Error::GrantLost { unused: true }) if shared.decider.moved(term) => Ok(shared.not_leader()),
            Err(Error::Unavailable { .. }) if shared.decider.moved(term) => {
                Ok(if settles { NamesAnswer::Moved(shared.leader()) } else { shared.not_leader() })
            }
            Err(Error::Elsewhere(elsewhere)) => Ok(NamesAnswer::Elsewhere(elsewhere)),
            answer => answer,
        }
    }

    /// Ends grants whose time is over. To be called every few seconds.
    pub fn expire(&self) {
        let over = self.shared.leases().expire((self.shared.clock)());
        if !over.is_empty() {
            tracing::warn!(grants = over.len(), "grants of other nodes ran out: a node was lost, or is slow");
        }
        for grant in over {
            self.shared.decider.ran_out(&grant);
        }
    }

    /// Grants that other nodes hold.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shared.leases().len()
    }
}

impl Shared {
    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_leader(&self) -> NamesAnswer {
        NamesAnswer::NotLeader(self.leader())
    }

    fn leader(&self) -> Option<NodeId> {
        match self.decider.group.leader() {
            Leader::Other(node) => Some(node),
            Leader::Own | Leader::Unknown => None,
        }
    }

    async fn lead(&self, from: NodeId, follows: Option<u64>, what: AskedFor) -> Result<NamesAnswer> {
        let asker = follows.map(|term| (from, term));
        match what {
            AskedFor::Ask(ask) => {
                let (ask, more) = bound(ask);
                Ok(NamesAnswer::Answer(cut(self.decider.ask_for(ask, asker).await?, more)))
            }
            AskedFor::Begin { lease, path, given } => self.begin((from, lease), path, given, asker).await,
            AskedFor::Settle { lease, path, before, line, class } => {
                let ended = self.leases().settle((from, lease), (self.clock)());
                match ended {
                    Ended::Held(grant) => self.decider.settle(*grant, line, class).await?,
                    Ended::Unused => self.decider.settle_late(&path, before, line, class).await?,
                    Ended::Used => {
                        let settled = self.decider.settle_late(&path, before, line, class).await;
                        settled.map_err(used)?;
                    }
                }
                Ok(NamesAnswer::Done)
            }
            AskedFor::Release { .. } => Ok(NamesAnswer::Done),
            AskedFor::Several(Asks(asks)) => Ok(NamesAnswer::Several(self.several(asks, asker).await?)),
        }
    }

    async fn several(&self, asks: Vec<Ask>, asker: Asker) -> Result<Vec<Option<Answer>>> {
        self.decider.behind_barrier_for(asker).await?;
        let mut bytes = 0;
        let answer = |ask| {
            // Whatever is odd about it, or too long, it says when it is asked by itself.
            let answer = Some(ask).filter(goes_with_others).and_then(|ask| self.decider.read(ask).ok())?;
            let more = weight(&answer);
            let fits = bytes + more <= MAX_PAGE;
            bytes += if fits { more } else { 0 };
            fits.then_some(answer)
        };
        Ok(asks.into_iter().map(answer).collect())
    }

    async fn begin(
        &self,
        id: LeaseId,
        path: ObjectPath,
        given: Option<Timestamp>,
        asker: Asker,
    ) -> Result<NamesAnswer> {
        let begun = |line: Line, at: Timestamp| NamesAnswer::Begun { line, at };
        if let Some(grant) = self.leases().held(id) {
            return Ok(begun(grant.line, grant.at));
        }
        let latest = (self.decider.clock.unix_seconds() + MAX_AHEAD.as_secs()).saturating_mul(1_000_000);
        if given.is_some_and(|given| given.0 > latest) {
            return Err(Error::Refused("the version time is far ahead of the leader's clock".to_owned()));
        }
        let grant = self.decider.grant(path, given, asker).await?;
        let (line, at) = (grant.line, grant.at);
        let taken = self.leases().insert(id, grant, (self.clock)());
        match taken {
            Ok(()) => Ok(begun(line, at)),
            Err(Denied::Over) => Err(Error::Unavailable { reason: "the grant has ended".to_owned() }),
            Err(Denied::Full) => {
                Err(Error::Unavailable { reason: "the node holds too many grants".to_owned() })
            }
        }
    }
}

/// Bytes that an answer to a short question takes, about.
fn weight(answer: &Answer) -> usize {
    let texts =
        |headers: &Headers| headers.iter().map(|(name, value)| name.len() + value.len() + ENTRY).sum();
    let more: usize = match answer {
        Answer::Account(Some(account)) => texts(&account.headers) + account.policies.len() * ENTRY,
        Answer::Container(Some(container)) => texts(&container.headers),
        Answer::Split { answer, children } => {
            let named = |child: &Child| child.container.len() + child.from.len() + ENTRY;
            weight(answer) + children.iter().map(named).sum::<usize>()
        }
        _ => 0,
    };
    more + ENTRY
}

/// Of a grant that something may have come of.
pub(super) fn used(error: Error) -> Error {
    match error {
        Error::GrantLost { .. } | Error::NoContainer => Error::GrantLost { unused: false },
        other => other,
    }
}

/// Bounds a listing to [`MAX_ENTRIES`]; how many more were asked for.
fn bound(mut ask: Ask) -> (Ask, usize) {
    let mut more = 0;
    let mut bound = |listing: &mut Listing| {
        more = listing.limit.saturating_sub(MAX_ENTRIES);
        listing.limit -= more;
    };
    match &mut ask {
        Ask::Containers { listing, .. } | Ask::Objects { listing, .. } => bound(listing),
        Ask::Accounts { limit, .. } | Ask::MarkedAccounts { limit, .. } => {
            *limit = (*limit).min(MAX_ACCOUNTS);
        }
        _ => {}
    }
    (ask, more)
}

/// Cuts a listing to what one message holds.
fn cut(answer: Answer, more: usize) -> Answer {
    match answer {
        Answer::Containers(page) => Answer::Containers(cut_page(page, more, |row| row.name.len())),
        Answer::Objects(page) => Answer::Objects(cut_page(page, more, |row| {
            row.name.len() + row.etag.len() + row.content_type.len()
        })),
        Answer::Split { answer, children } => {
            Answer::Split { answer: Box::new(cut(*answer, more)), children }
        }
        other => other,
    }
}

fn cut_page<R>(page: Page<R>, more: usize, texts: impl Fn(&R) -> usize) -> Page<R> {
    let Page { mut entries, .. } = page;
    let mut bytes = 0;
    let fits = |entry: &Entry<R>| {
        bytes += ENTRY
            + match entry {
                Entry::Row(row) => texts(row),
                Entry::Subdir(name) => name.len(),
            };
        bytes <= MAX_PAGE
    };
    let most = entries.iter().map(fits).take_while(|fits| *fits).count().max(1);
    let cut = entries.len() > most || (more > 0 && entries.len() == MAX_ENTRIES);
    entries.truncate(most);
    Page { entries, cut }
}
