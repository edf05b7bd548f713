//! A voter's handle of a group.
//!
//! Invariant: what `propose` answers with [`Outcome::Applied`] is in this node's index, and durable on a majority.
//! Invariant: rows are read here only while they are those of one moment; whether that is the newest, [`Group::barrier`] says.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::{Config, EmptyNode, ServerState, SnapshotPolicy};
use tokio::sync::watch;

use super::back;
use super::codec::{Marker, entry_bytes};
use super::confirm::{self, Confirmer, Unconfirmed};
use super::elect::Elector;
use super::limits::{APPEND_ENTRIES, MAX_ENTRY, MAX_ENTRY_ROWS, MAX_GUARDS, MAX_MEMBERS, PREFIX};
use super::log::Log;
use super::machine::Machine;
use super::network::Network;
use super::propose::Proposals;
use super::raft::{Membership, Raft, StoredMembership, log_id};
use super::receive::Receiver;
use super::registry::Family;
use super::runtime::{Runtime, Scoped, scope};
use super::store::Store;
use super::types::{Entry, GroupError, Outcome};
use crate::catalog::{self, GroupId, Row, Totals};
use crate::disk::limits::{MAX_KEY, MAX_META};
use crate::disk::{Class, DiskHandle};
use crate::index::{IndexError, Range, Table};
use crate::net::{Code, ConsensusAnswer, ConsensusCall, Failure, NodeId, Response, Transport};
use crate::object::TotalsOf;

/// Times and sizes of a group.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Pause between two signs of life of a leader; also how long a voter may take to answer one.
    pub heartbeat: Duration,
    /// A voter that has heard of no leader for so long asks the others for an election; at least four times the heartbeat.
    pub silence: Duration,
    /// Entries of the log between two moments at which what is applied may be purged.
    pub snapshot_every: u64,
    /// Applied entries that stay in the log for voters that lag.
    pub keep: u64,
    /// Rows are written also where the leader's disk is nearly full: those of a group that says who may write, and where, are few, and without
    /// them nobody makes room.
    pub takes_always: bool,
}

/// By so much the lease of a leader ends before its silence counts, and a vote may take less than that.
const TICKS: Duration = Duration::from_millis(50);
/// How long a leader that hears of no majority asks again before it says so, and the pause between two questions.
const BARRIER_WITHIN: Duration = Duration::from_secs(3);
const BARRIER_PAUSE: Duration = Duration::from_millis(50);
/// Pause between two looks whether the first entry of the term is applied.
const LOOK: Duration = Duration::from_millis(2);

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            silence: Duration::from_millis(1300),
            snapshot_every: 5_000,
            keep: 20_000,
            takes_always: false,
        }
    }
}

impl Settings {
    fn config(&self, group: GroupId) -> Result<Config, GroupError> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        // openraft calls no elections itself: these are how long a vote may take, and how long voters keep a leader's lease.
        let lease = self.silence.saturating_sub(self.heartbeat + TICKS);
        let config = Config {
            cluster_name: format!("group {group}"),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(lease.saturating_sub(TICKS)),
            election_timeout_max: millis(lease),
            max_payload_entries: APPEND_ENTRIES as u64,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.keep,
            purge_batch_size: self.snapshot_every.clamp(1, 1024),
            replication_lag_threshold: self.snapshot_every,
            ..Config::default()
        };
        config.validate().map_err(|e| GroupError::Unavailable(e.to_string()))
    }
}

/// What a group's voter is made of.
#[derive(Clone)]
pub struct GroupOptions {
    /// Where it keeps everything.
    pub disk: DiskHandle,
    /// How it reaches the other voters.
    pub net: Arc<dyn Transport>,
    /// Times and sizes.
    pub settings: Settings,
    /// Tasks, time and randomness.
    pub runtime: Arc<dyn Runtime>,
}

impl std::fmt::Debug for GroupOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupOptions").field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// What a voter knows of its group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GroupStatus {
    /// The present term.
    pub term: u64,
    /// Who leads, as far as is known: this node only if `leads`.
    pub leader: Option<NodeId>,
    /// This node leads.
    pub leads: bool,
    /// It runs. A voter whose disk failed does not.
    pub runs: bool,
    /// Index of the last entry of the log.
    pub last: Option<u64>,
    /// Index of the last applied entry.
    pub applied: Option<u64>,
    /// Index up to which the log was purged.
    pub purged: Option<u64>,
    /// Voters, as this node knows them. While they are being changed, those of before and after.
    pub voters: BTreeSet<NodeId>,
    /// Members that do not vote.
    pub learners: BTreeSet<NodeId>,
    /// The voters are being changed, to these.
    pub changing: Option<BTreeSet<NodeId>>,
    /// What says who the members are is applied here, so no other leader can know of others.
    pub members_stand: bool,
    /// Of a leader: the last index that each other member is known to have.
    pub matched: BTreeMap<NodeId, Option<u64>>,
}

/// Of a [`GroupStatus`] what each request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Office {
    /// The present term.
    pub term: u64,
    /// Who leads, as far as is known: this node only if `leads`.
    pub leader: Option<NodeId>,
    /// This node leads.
    pub leads: bool,
}

/// What holds for whoever leads: see [`Group::barrier`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leading {
    /// The term in which this node leads. What is decided now is proposed with it.
    pub term: u64,
    /// Version times that are given from now on must be greater.
    pub above: u64,
}

/// A voter of a group; clones share everything.
#[derive(Clone)]
pub struct Group {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    node: NodeId,
    pub(super) store: Arc<Store>,
    pub(super) raft: Raft,
    pub(super) proposals: Arc<Proposals>,
    receiver: Receiver,
    pub(super) elector: Arc<Elector>,
    confirmer: Confirmer,
    /// Asks those who may not answer: whoever waits for a confirmation does not wait for that.
    pub(super) prober: Confirmer,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) net: Arc<dyn Transport>,
    takes_always: bool,
    /// Held while lines are given away or taken back.
    pub(super) reshaping: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("id", &self.id()).finish_non_exhaustive()
    }
}

pub(super) fn stopped(e: impl std::fmt::Display) -> GroupError {
    GroupError::Unavailable(e.to_string())
}

/// Greater numbers stand for later lives of a group on a disk.
pub(super) fn numbered(group: GroupId) -> Result<(), GroupError> {
    if group > catalog::MAX_GROUP_ID { Err(GroupError::Limit("number of a group")) } else { Ok(()) }
}

impl Group {
    /// Makes a group of the rows that a disk has, which may be none, with these voters; true when it was made, false when the
    /// disk had it already. It is the state up to the first place of the log, and that is purged: whoever joins gets the rows
    /// as a snapshot. `above` is at least every version time that was given so far. Voters other than the first must be founded
    /// from the same rows; whoever opens the group empty joins as a member that does not vote.
    pub async fn found(
        disk: &DiskHandle,
        group: GroupId,
        voters: BTreeSet<NodeId>,
        above: u64,
    ) -> Result<bool, GroupError> {
        if voters.is_empty() || voters.len() > MAX_MEMBERS {
            return Err(GroupError::Limit("voters"));
        }
        numbered(group)?;
        let store = Store::open(group, disk.clone()).await?;
        if store.ends() != (None, None) || store.vote().is_some() {
            return Ok(false);
        }
        let first = log_id(0, 0);
        let membership = StoredMembership::new(Some(first), Membership::new(vec![voters], ()));
        let marker =
            Marker { applied: Some(first), part: 0, max_sequence: above, term: 0, floor: above, membership };
        store.found(&marker).await.map_err(stopped)?;
        Ok(true)
    }

    /// Opens this node's voter of a group: from what its disk has, or empty, to be filled by a leader.
    pub async fn open(group: GroupId, options: GroupOptions) -> Result<Self, GroupError> {
        Self::open_among(group, options, Family::default()).await
    }

    /// The same, among others.
    pub(super) async fn open_among(
        group: GroupId,
        options: GroupOptions,
        family: Family,
    ) -> Result<Self, GroupError> {
        let GroupOptions { disk, net, settings, runtime } = options;
        numbered(group)?;
        let config = Arc::new(settings.config(group)?);
        let (node, current) = (net.local(), Arc::clone(&runtime));
        let (peers, kept) = (Arc::clone(&net), Arc::clone(&net));
        let (within, takes_always) = (settings.heartbeat, settings.takes_always);
        let opened = scope(Arc::clone(&runtime), async move {
            let store = Store::open(group, disk).await?;
            store.take_up().await.map_err(stopped)?;
            store.resign(node);
            back::settle(&store, &family, true).await?;
            let proposals = Proposals::new();
            let machine = Machine::open(Arc::clone(&store), node, Arc::clone(&proposals), family).await?;
            let network = Network { net: peers, store: Arc::clone(&store) };
            let log = Log(Arc::clone(&store));
            let raft = Raft::new(node, config, network, log, machine).await.map_err(stopped)?;
            <super::runtime::Ambient as openraft::AsyncRuntime>::spawn(
                Arc::clone(&proposals).run(raft.clone()),
            );
            let elector = Elector::new(settings, net, current, Arc::clone(&store), raft.clone());
            if status_of(&raft.metrics().borrow()).voters == BTreeSet::from([node]) {
                // Nobody else can lead: there is nothing to wait for.
                raft.trigger().elect().await.map_err(stopped)?;
            }
            <super::runtime::Ambient as openraft::AsyncRuntime>::spawn(Arc::clone(&elector).run());
            Ok::<_, GroupError>((store, raft, proposals, elector))
        });
        let (store, raft, proposals, elector) = opened.await?;
        let receiver = Receiver::new(raft.clone(), Arc::clone(&store), Arc::clone(&elector));
        let net = kept;
        let confirmer = || Confirmer::new(Arc::clone(&net), Arc::clone(&runtime), Arc::clone(&store), within);
        let (confirmer, prober) = (confirmer(), confirmer());
        let reshaping = tokio::sync::Mutex::default();
        let shared = Shared {
            node,
            store,
            raft,
            proposals,
            receiver,
            elector,
            confirmer,
            prober,
            runtime,
            net,
            takes_always,
            reshaping,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(super) fn scope<F: Future>(&self, future: F) -> Scoped<F> {
        scope(Arc::clone(&self.shared.runtime), future)
    }

    /// Which group.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.shared.store.group
    }

    /// What its keys on this disk begin with, as a group's number.
    fn space(&self) -> GroupId {
        self.shared.store.space()
    }

    /// The disk that it lies on.
    #[must_use]
    pub fn disk(&self) -> &DiskHandle {
        &self.shared.store.disk
    }

    /// Proposes an entry and waits until it is applied here, or refused.
    pub async fn propose(&self, entry: Entry) -> Result<Outcome, GroupError> {
        self.propose_as(entry, Class::Client).await
    }

    /// The same with rows of this class: those that free space are taken also where there is little left.
    pub async fn propose_as(&self, entry: Entry, class: Class) -> Result<Outcome, GroupError> {
        check(&entry)?;
        if back::takes_back(&entry) {
            // It would not be alone in its log entry.
            return Err(GroupError::Limit("ranges taken back"));
        }
        let grows = entry.rows.iter().any(|row| row.value.is_some());
        let is_refused = grows && class == Class::Client && !self.shared.takes_always;
        if is_refused && self.shared.store.disk.above_high_water() {
            return Err(GroupError::NoSpace);
        }
        let office = self.office();
        if !office.leads {
            return Err(GroupError::NotLeader(office.leader));
        }
        self.shared.proposals.propose(entry).await
    }

    /// Who leads, as far as is known here.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.office().leader
    }

    /// Waits until a majority has confirmed that this node leads, and until everything that was ever acknowledged is applied
    /// here: what is read afterwards is not older than this call.
    ///
    /// What this term acknowledged was applied here before; what earlier terms did lies before this term's first entry.
    pub async fn barrier(&self) -> Result<Leading, GroupError> {
        let Office { term, .. } = self.office();
        let until = self.shared.runtime.now() + BARRIER_WITHIN;
        loop {
            self.leads_in(term)?;
            let over = self.shared.runtime.now() >= until;
            match self.shared.confirmer.confirm(term, self.voters()).await {
                Ok(()) => break,
                // The status comes a moment after openraft knows who leads; callers judge by it whether to ask elsewhere.
                Err(Unconfirmed::Deposed) if over => return Err(GroupError::NotLeader(None)),
                Err(Unconfirmed::Deposed) => {
                    // openraft hears of it too, sooner than by the next sign of life.
                    let _ended = self.scope(self.shared.raft.trigger().heartbeat()).await;
                }
                Err(e @ Unconfirmed::Few) if over => return Err(stopped(e)),
                // The others may be busy, or were just started.
                Err(Unconfirmed::Few) => {}
            }
            self.shared.runtime.sleep(BARRIER_PAUSE).await;
        }
        while !self.has_begun(term) {
            if self.shared.runtime.now() >= until {
                return Err(stopped("the first entry of the term is not applied"));
            }
            self.shared.runtime.sleep(LOOK).await;
            self.leads_in(term)?;
        }
        self.leads_in(term)?;
        Ok(Leading { term, above: self.max_sequence() })
    }

    /// What [`Group::barrier`] gives, where it need not be waited for: the question came from a voter that follows this node in a
    /// term, as it said with it, and the two are a majority.
    #[must_use]
    pub fn confirmed_by(&self, follower: NodeId, term: u64) -> Option<Leading> {
        let confirmed = self.shared.confirmer.is_confirmed_by(follower, term, self.voters());
        (confirmed && self.leads_in(term).is_ok() && self.has_begun(term))
            .then(|| Leading { term, above: self.max_sequence() })
    }

    /// The term in which this voter follows a leader: what [`Group::confirmed_by`] needs. To be read after the question came.
    #[must_use]
    pub fn follows(&self, leader: NodeId) -> Option<u64> {
        confirm::follows(&self.shared.store, leader)
    }

    fn leads_in(&self, term: u64) -> Result<(), GroupError> {
        let office = self.office();
        if office.leads && office.term == term { Ok(()) } else { Err(GroupError::NotLeader(office.leader)) }
    }

    /// Whether an entry of this term is applied here: then all of earlier terms are.
    fn has_begun(&self, term: u64) -> bool {
        self.shared.store.progress().applied.is_some_and(|applied| applied.leader_id.term == term)
    }

    /// Greatest version time of a row that was ever applied here.
    #[must_use]
    pub fn max_sequence(&self) -> u64 {
        self.shared.store.progress().max_sequence
    }

    fn believed(&self) -> Result<(), GroupError> {
        if self.shared.store.progress().installing {
            return Err(stopped("a snapshot is being installed"));
        }
        Ok(())
    }

    /// A standing row, as applied here. The key is without the group's prefix.
    pub fn row(&self, key: &[u8]) -> Result<Option<Row>, GroupError> {
        self.believed()?;
        let territory = self.shared.store.territory();
        if let Some(group) = territory.moved(key) {
            return Err(GroupError::Moved(group));
        }
        catalog::row(self.shared.store.disk.index(), &territory.place(key)).map_err(stopped)
    }

    /// Standing rows of a range, as applied here; lines that another group has taken over are none of them. Keys and bounds are
    /// without the group's prefix.
    pub fn scan(
        &self,
        range: &Range,
    ) -> Result<impl Iterator<Item = Result<(Vec<u8>, Row), IndexError>> + Send + '_, GroupError> {
        self.believed()?;
        let index = self.shared.store.disk.index();
        let scans = self.shared.store.territory().scans(range).into_iter();
        let pairs = move |(prefix, range)| index.scan(Table::Rows, range).map(move |pair| (prefix, pair));
        Ok(scans.flat_map(pairs).map(|(prefix, pair)| {
            let (key, value) = pair?;
            Ok((key.get(prefix..).unwrap_or_default().to_vec(), catalog::decode_row(&value)?))
        }))
    }

    /// Exact totals, as applied here; lines that another group has taken over are not in them.
    pub fn totals(&self, of: TotalsOf<'_>) -> Result<Totals, GroupError> {
        self.believed()?;
        let index = self.shared.store.disk.index();
        let territory = self.shared.store.territory();
        let host = territory.host.as_ref();
        match of {
            TotalsOf::Account(account) => catalog::account_totals_in(index, territory.space, account),
            TotalsOf::Container(id) => match host.filter(|host| host.id == id) {
                Some(host) => catalog::range_totals(index, host.space, id, &host.from),
                None => catalog::container_totals_in(index, territory.space, id),
            },
        }
        .map_err(stopped)
    }

    /// Accounts marked deleted, as applied here, behind `marker`.
    pub fn marked_accounts(&self, marker: &str, limit: usize) -> Result<Vec<String>, GroupError> {
        self.believed()?;
        let index = self.shared.store.disk.index();
        catalog::marked_accounts_in(index, self.space(), marker, limit).map_err(stopped)
    }

    /// Calls an election, if this node may vote and has not stepped down: it will probably lead.
    pub async fn campaign(&self) -> Result<(), GroupError> {
        if self.shared.elector.is_leaving() {
            return Err(stopped("this node gives its leads away"));
        }
        self.scope(self.shared.raft.trigger().elect()).await.map_err(stopped)
    }

    /// Before this node stops: gives the leader's place to another voter, if it leads and another can. From then on it never leads.
    pub async fn step_down(&self) {
        self.scope(self.shared.elector.step_down()).await;
    }

    /// Purges what is applied, but for what [`Settings::keep`] says.
    pub async fn compact(&self) -> Result<(), GroupError> {
        self.scope(self.shared.raft.trigger().snapshot()).await.map_err(stopped)
    }

    /// Sets of voters of which a majority each decides.
    pub(super) fn voters(&self) -> Vec<BTreeSet<NodeId>> {
        self.shared.elector.voters()
    }

    /// Who leads now, as far as this voter knows.
    #[must_use]
    pub fn office(&self) -> Office {
        let metrics = self.shared.raft.metrics();
        let metrics = metrics.borrow();
        let leads = metrics.state == ServerState::Leader;
        let leaving = self.shared.elector.is_leaving();
        Office {
            term: metrics.current_term,
            // Whoever asks for a leader waits for the next one.
            leader: other_or_own(&metrics).filter(|leader| !leaving || *leader != self.shared.node),
            leads: leads && !leaving,
        }
    }

    /// What this voter knows now.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let Office { leader, leads, .. } = self.office();
        GroupStatus { leader, leads, ..status_of(&self.shared.raft.metrics().borrow()) }
    }

    /// For how long this member has heard of no leader; none, where it leads.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        self.shared.elector.quiet()
    }

    /// Follows what this voter knows.
    #[must_use]
    pub fn watch(&self) -> StatusWatch {
        StatusWatch { metrics: self.shared.raft.metrics() }
    }

    /// Answers another voter.
    pub(crate) async fn answer(&self, from: NodeId, call: ConsensusCall) -> Response {
        if confirm::confirms(&self.shared.store, &call) {
            return Response::Consensus(ConsensusAnswer::Appended);
        }
        let answer = match call {
            ConsensusCall::Members => self.say_members().await,
            ConsensusCall::Lead => self.lead(from).await,
            call => self.scope(self.shared.receiver.answer(from, call)).await,
        };
        answer.map_or_else(Response::Failed, Response::Consensus)
    }

    /// Stops this voter. Its disk stays open, and keeps all that it has of the group.
    pub async fn close(&self) -> Result<(), GroupError> {
        self.shared.proposals.close();
        self.shared.elector.close();
        self.scope(self.shared.raft.shutdown()).await.map_err(stopped)
    }

    /// Stops this voter for ever: when this returns nothing of it is being applied, and nothing will be.
    pub(crate) async fn end(&self) {
        self.shared.store.end().await;
        if let Err(error) = self.close().await {
            tracing::warn!(group = self.id(), %error, "close a group whose lines were taken back");
        }
    }

    /// Its records.
    #[cfg(test)]
    pub(crate) fn store(&self) -> Arc<Store> {
        Arc::clone(&self.shared.store)
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.shared.node
    }
}

/// Follows what a voter knows of its group.
pub struct StatusWatch {
    metrics: watch::Receiver<openraft::RaftMetrics<NodeId, EmptyNode>>,
}

impl std::fmt::Debug for StatusWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatusWatch").finish_non_exhaustive()
    }
}

impl StatusWatch {
    /// Waits for a change; `None` when the voter is gone.
    pub async fn changed(&mut self) -> Option<GroupStatus> {
        self.metrics.changed().await.ok()?;
        Some(status_of(&self.metrics.borrow_and_update()))
    }

    /// What is known now.
    #[must_use]
    pub fn now(&self) -> GroupStatus {
        status_of(&self.metrics.borrow())
    }
}

/// Who leads; this node only if it does. One that made others the voters is its term's leader still, and decides nothing.
fn other_or_own(metrics: &openraft::RaftMetrics<NodeId, EmptyNode>) -> Option<NodeId> {
    let leads = metrics.state == ServerState::Leader;
    metrics.current_leader.filter(|leader| leads || *leader != metrics.id)
}

pub(super) fn status_of(metrics: &openraft::RaftMetrics<NodeId, EmptyNode>) -> GroupStatus {
    let membership = metrics.membership_config.membership();
    let matched = metrics.replication.iter().flatten();
    GroupStatus {
        term: metrics.current_term,
        leader: other_or_own(metrics),
        leads: metrics.state == ServerState::Leader,
        runs: metrics.running_state.is_ok() && metrics.state != ServerState::Shutdown,
        last: metrics.last_log_index,
        applied: metrics.last_applied.map(|id| id.index),
        purged: metrics.purged.map(|id| id.index),
        voters: membership.voter_ids().collect(),
        learners: membership.learner_ids().collect(),
        changing: membership.get_joint_config().get(1).cloned(),
        members_stand: *metrics.membership_config.log_id() <= metrics.last_applied,
        matched: matched.map(|(node, id)| (*node, id.map(|id| id.index))).collect(),
    }
}

/// Holds an entry to its limits: what is in the log cannot be refused any more.
pub(super) fn check(entry: &Entry) -> Result<(), GroupError> {
    if entry.rows.len() > MAX_ENTRY_ROWS {
        return Err(GroupError::Limit("rows"));
    }
    if entry.guards.len() > MAX_GUARDS {
        return Err(GroupError::Limit("guards"));
    }
    let keys = entry.rows.iter().map(|row| &row.key).chain(entry.guards.iter().map(|guard| &guard.key));
    if keys.into_iter().any(|key| key.len() + PREFIX > MAX_KEY) {
        return Err(GroupError::Limit("key"));
    }
    let values = entry.rows.iter().filter_map(|row| row.value.as_ref());
    if values.into_iter().any(|value| value.len() > MAX_META) || entry_bytes(entry) > MAX_ENTRY {
        return Err(GroupError::Limit("value"));
    }
    if entry.rows.len() > 1 && entry.rows.iter().any(|row| row.key.first() == Some(&catalog::GIVEN)) {
        // What is taken back ends the attempt, too.
        if !back::takes_back(entry) {
            return Err(GroupError::Limit("ranges given away"));
        }
    }
    let mut seen = BTreeSet::new();
    for row in &entry.rows {
        let readable = catalog::check_row(&row.key, row.value.as_deref());
        readable.map_err(|e| GroupError::Unavailable(format!("row of an entry: {e}")))?;
        if !seen.insert(&row.key) {
            return Err(GroupError::Limit("changes of one row"));
        }
    }
    Ok(())
}

/// Says that a group is not here.
pub(crate) fn no_group(group: GroupId) -> Response {
    Response::Failed(Failure::new(Code::NotServed, format!("group {group} is not at this node")))
}
