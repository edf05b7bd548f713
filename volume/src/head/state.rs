//! The head's state, and what each event changes in it. What follows from the state: `progress.rs`, `change.rs`, `reading.rs`.

use std::collections::{BTreeMap, VecDeque};

use super::change::Wish;
use super::peer::{Peer, Standing};
use super::reading::Reading;
use super::{
    Action, Configuration, DeviceId, Event, Failure, History, MAX_REQUESTS, Message, Reply, Report, Session,
    Settings, Until,
};
use crate::member::{Fence, Refusal, Token};

/// A write that is not acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    pub(super) sequence: u64,
    /// `None`: it has been answered.
    pub(super) token: Option<Token>,
    pub(super) until: Until,
    /// When it was sent.
    pub(super) tick: u64,
}

/// Flushes after a single write each, after which the next write is taken for another such one.
const PAIRS: u32 = 4;

/// What clients do: who flushes after each write waits for the members twice, unless they are asked for both at once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Habit {
    /// Since the last flush.
    writes: u32,
    /// Flushes in a row that came after one write.
    pairs: u32,
}

impl Habit {
    fn flushed(&mut self) {
        self.pairs = if self.writes == 1 { self.pairs.saturating_add(1) } else { 0 };
        self.writes = 0;
    }

    /// A write has got its place; whether a flush will be next.
    pub(super) fn wrote(&mut self) -> bool {
        self.writes = self.writes.saturating_add(1);
        self.writes == 1 && self.pairs >= PAIRS
    }
}

/// The head of a volume.
#[derive(Debug)]
pub struct Head {
    pub(super) fence: Fence,
    pub(super) configuration: Configuration,
    /// The one that is to be committed.
    pub(super) pending: Option<Configuration>,
    pub(super) settings: Settings,
    pub(super) peers: BTreeMap<DeviceId, Peer>,
    /// What this head continues, with all that it has added; `None`: not chosen yet.
    pub(super) order: Option<History>,
    pub(super) serving: bool,
    /// A quorum has it.
    pub(super) answered: u64,
    /// A quorum has it durably.
    pub(super) flushed: u64,
    /// Up to here a client will want it durably, by what it has done so far.
    pub(super) foreseen: u64,
    /// Bytes of writes up to here are gone.
    pub(super) released: u64,
    /// Writes after `answered`, in order.
    pub(super) open: VecDeque<Open>,
    /// Acknowledged, and to be durable.
    pub(super) unflushed: VecDeque<(u64, Token)>,
    /// Flushes, and up to where.
    pub(super) flushes: Vec<(Token, u64)>,
    pub(super) habit: Habit,
    /// Who waits until all is durable.
    pub(super) settling: Vec<Token>,
    pub(super) reads: Vec<Reading>,
    /// Writes that have no place yet.
    pub(super) waiting: VecDeque<(Token, Until)>,
    /// Counts reads.
    pub(super) tick: u64,
    /// What an operator wants.
    pub(super) wishes: VecDeque<Wish>,
    pub(super) handing_over: Option<Token>,
    pub(super) stopped: Option<Failure>,
    /// Whose history an operator has chosen.
    pub(super) decided: Option<DeviceId>,
    /// What an operator was told last.
    pub(super) told: Option<Vec<(DeviceId, Option<Report>)>>,
}

impl Head {
    /// A head under a fence whose epoch was just granted, over the members that were committed then.
    #[must_use]
    pub fn attach(fence: Fence, configuration: Configuration, settings: Settings) -> (Self, Vec<Action>) {
        let peers: BTreeMap<_, _> = configuration.all().map(|device| (device, Peer::silent())).collect();
        let head = Self {
            fence,
            configuration,
            pending: None,
            settings,
            peers,
            order: None,
            serving: false,
            answered: 0,
            flushed: 0,
            foreseen: 0,
            released: 0,
            open: VecDeque::new(),
            unflushed: VecDeque::new(),
            flushes: Vec::new(),
            habit: Habit::default(),
            settling: Vec::new(),
            reads: Vec::new(),
            waiting: VecDeque::new(),
            tick: 0,
            wishes: VecDeque::new(),
            handing_over: None,
            stopped: None,
            decided: None,
            told: None,
        };
        let mut actions = Vec::new();
        head.peers.keys().for_each(|device| head.ask(*device, &mut actions));
        (head, actions)
    }

    /// Under which everything is sent. It stays the same while this head lives.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// As committed, as far as this head knows.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Each member, and how far it is.
    pub fn members(&self) -> impl Iterator<Item = (DeviceId, Standing)> + '_ {
        self.peers.iter().map(|(device, peer)| (*device, peer.standing))
    }

    /// The session of a member that is not silent. Bytes that were read in another one are of no use.
    #[must_use]
    pub fn session(&self, device: DeviceId) -> Option<Session> {
        let peer = self.peers.get(&device).filter(|peer| peer.standing != Standing::Silent);
        peer.map(|peer| peer.session)
    }

    /// What it continues, with all that it has added.
    #[must_use]
    pub fn order(&self) -> Option<&History> {
        self.order.as_ref()
    }

    /// The last sequence, the last one that is acknowledged, and the last one that is durable.
    #[must_use]
    pub fn reach(&self) -> (u64, u64, u64) {
        (self.end(), self.answered, self.flushed)
    }

    /// Whether a quorum of members has begun.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.serving && self.stopped.is_none()
    }

    /// Whether nothing is acknowledged any more, and nobody is on the way who could change that: members have been away for as long as they
    /// may, or there is nobody to fill them from.
    #[must_use]
    pub fn lacks_members(&self) -> bool {
        let mut members = self.configuration.members.iter().filter_map(|device| self.peers.get(device));
        let stays = |peer: &Peer| peer.is_active() || peer.overdue || peer.standing == Standing::Promised;
        self.order.is_some() && self.joint(|_| 0).is_none() && members.all(stays)
    }

    pub(super) fn end(&self) -> u64 {
        self.order.as_ref().map_or(0, History::end)
    }

    /// What to do about an event.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(failure) = self.stopped {
            if let Event::Write(token, _)
            | Event::Read(token)
            | Event::Flush(token)
            | Event::Settle(token)
            | Event::HandOver(token) = event
            {
                actions.push(Action::Answer(token, Err(failure)));
            }
            return actions;
        }
        self.take(event, &mut actions);
        if self.stopped.is_none() {
            self.progress(&mut actions);
        }
        actions
    }

    fn take(&mut self, event: Event, actions: &mut Vec<Action>) {
        match event {
            Event::Write(token, until) => self.request(token, actions, |head| {
                head.waiting.push_back((token, until));
            }),
            Event::Read(token) => self.request(token, actions, |head| head.read(token)),
            Event::Flush(token) => self.request(token, actions, |head| {
                head.habit.flushed();
                // Nothing is answered before it serves.
                head.flushes.push((token, head.answered));
            }),
            Event::Synced => self.habit.flushed(),
            Event::Settle(token) => self.request(token, actions, |head| head.settling.push(token)),
            Event::HandOver(token) => {
                self.request(token, actions, |head| head.handing_over = Some(token));
            }
            Event::Expired(token) => self.expire(token, actions),
            Event::Reply(device, session, reply) => self.reply(device, session, reply, actions),
            Event::Lost(device, session) => {
                if self.known(device, session).is_some() {
                    self.lose(device, actions);
                }
            }
            Event::Reachable(device) => self.ask(device, actions),
            Event::Overdue(device) => {
                self.lose(device, actions);
                if let Some(peer) = self.peers.get_mut(&device) {
                    peer.overdue = true;
                }
            }
            Event::Filled(device, session, newest) => {
                // Of an order that was left, by decision, there may be rows with sequences that are still to come.
                let newest = newest.min(self.end());
                if let Some(peer) = self.known(device, session).filter(|p| p.standing == Standing::Filling) {
                    peer.filled = Some(newest);
                }
            }
            Event::NotFilled(device, session) => {
                if self.known(device, session).is_some_and(|p| p.standing == Standing::Filling) {
                    self.lose(device, actions);
                    self.ask(device, actions);
                }
            }
            Event::NoRows(device, session) => {
                if let Some(peer) = self.known(device, session).filter(|p| p.standing == Standing::Filling) {
                    peer.avoid = peer.source.map(|(source, _)| source).or(peer.avoid);
                    self.lose(device, actions);
                }
            }
            Event::Tight(device, tight) => {
                if let Some(peer) = self.peers.get_mut(&device) {
                    peer.tight = tight;
                }
            }
            Event::Spare(upto) => self.release(upto.min(self.answered), actions),
            Event::Changed(version) => self.changed(version, actions),
            Event::NotChanged(newer) => self.stop(Failure::Fenced(newer), actions),
            Event::Add(device) => self.wish(Wish::Add(device)),
            Event::Remove(device) => self.wish(Wish::Remove(device)),
            Event::Decide(device) => self.decide(device, actions),
        }
    }

    fn request(&mut self, token: Token, actions: &mut Vec<Action>, act: impl FnOnce(&mut Self)) {
        if self.handing_over.is_some() {
            actions.push(Action::Answer(token, Err(Failure::HandedOver)));
        } else if self.requests().iter().sum::<usize>() >= MAX_REQUESTS {
            actions.push(Action::Answer(token, Err(Failure::Busy)));
        } else {
            act(self);
        }
    }

    pub(super) fn known(&mut self, device: DeviceId, session: Session) -> Option<&mut Peer> {
        let known = |peer: &&mut Peer| peer.standing != Standing::Silent && peer.session == session;
        self.peers.get_mut(&device).filter(known)
    }

    fn reply(&mut self, device: DeviceId, session: Session, reply: Reply, actions: &mut Vec<Action>) {
        match reply {
            Reply::Refused(Refusal::Fenced(newer)) if newer.epoch > self.fence.epoch => {
                return self.stop(Failure::Fenced(newer), actions);
            }
            Reply::Promised(session, report) => return self.promised(device, session, report, actions),
            _ => {}
        }
        let open = self.open.front().map_or(0, |first| first.sequence);
        let tick_of = |open_writes: &VecDeque<Open>, sequence: u64| {
            let at = usize::try_from(sequence.checked_sub(open)?).ok()?;
            open_writes.get(at).map(|write| write.tick)
        };
        let tick = match reply {
            Reply::Written(sequence) => tick_of(&self.open, sequence),
            _ => None,
        };
        let Some(peer) = self.known(device, session) else { return };
        match reply {
            Reply::Begun if peer.standing == Standing::Beginning => peer.standing = Standing::Active,
            Reply::Joined if peer.standing == Standing::Joining => peer.standing = Standing::Active,
            Reply::Filling => self.filling(device, actions),
            Reply::Written(sequence) => {
                peer.written = peer.written.max(sequence);
                peer.confirmed = peer.confirmed.max(tick.unwrap_or(0));
            }
            Reply::Flushed(sequence) => {
                peer.durable = peer.durable.max(sequence);
                peer.written = peer.written.max(sequence);
            }
            Reply::Confirmed(tick) => {
                peer.confirmed = peer.confirmed.max(tick);
                peer.confirming = false;
            }
            Reply::Read(token, newest) => self.was_read(device, token, newest),
            Reply::Unreadable(token) => self.unreadable(device, token),
            // Whatever it was, it was not done: what this member has is to be asked anew.
            Reply::Refused(_) => self.lose(device, actions),
            Reply::Begun | Reply::Joined | Reply::Promised(..) => {}
        }
    }

    /// How many wait, of each kind; without those that have a place.
    fn requests(&self) -> [usize; 4] {
        [self.waiting.len(), self.flushes.len(), self.settling.len(), self.reads.len()]
    }

    fn expire(&mut self, token: Token, actions: &mut Vec<Action>) {
        let before = (self.requests(), self.unflushed.len());
        self.waiting.retain(|(waiting, _)| *waiting != token);
        self.flushes.retain(|(waiting, _)| *waiting != token);
        self.settling.retain(|waiting| *waiting != token);
        self.reads.retain(|read| read.token != token);
        self.unflushed.retain(|(_, waiting)| *waiting != token);
        let mut found = before != (self.requests(), self.unflushed.len());
        // It keeps its place in the order.
        if let Some(write) = self.open.iter_mut().find(|write| write.token == Some(token)) {
            write.token = None;
            found = true;
        }
        if self.handing_over == Some(token) {
            self.handing_over = None;
            found = true;
        }
        if found {
            actions.push(Action::Answer(token, Err(Failure::TooFew)));
        }
    }

    /// All requests end, and nothing is done any more.
    pub(super) fn stop(&mut self, failure: Failure, actions: &mut Vec<Action>) {
        let open = self.open.drain(..).filter_map(|write| write.token);
        let waiting = self.waiting.drain(..).map(|(token, _)| token);
        let unflushed = self.unflushed.drain(..).map(|(_, token)| token);
        let flushes = self.flushes.drain(..).map(|(token, _)| token);
        let reads = self.reads.drain(..).map(|read| read.token);
        let all = open.chain(waiting).chain(unflushed).chain(flushes).chain(reads);
        let all = all.chain(self.settling.drain(..));
        actions.extend(all.chain(self.handing_over.take()).map(|token| Action::Answer(token, Err(failure))));
        for (device, peer) in &self.peers {
            if peer.standing == Standing::Filling {
                actions.push(Action::StopFill(*device, peer.session));
            }
        }
        self.stopped = Some(failure);
        actions.push(Action::Stopped(failure));
    }

    /// Sends to all who follow the order.
    pub(super) fn send_all(&self, message: &Message, actions: &mut Vec<Action>) {
        let following = self.peers.iter().filter(|(_, peer)| peer.receives());
        actions.extend(following.map(|(id, peer)| Action::Send(*id, peer.session, message.clone())));
    }
}
