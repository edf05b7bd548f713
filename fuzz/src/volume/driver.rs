//! A head where it runs: its messages, the bytes that it keeps, the filling of members, and its client.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use quarry_volume::head::{
    Action, Configuration, DeviceId, Done, Event, Failure, Head, Message, Reply, Session, Settings, Until,
};
use quarry_volume::{Fence, Position, Token};

use super::plant::Plant;
use super::site::{Body, Packet, Payload, Place, Row, Said, Site};

/// How long a call may take.
pub(crate) const PATIENCE: u64 = 400;
/// How long a member may be away.
const AWAY: u64 = 2_000;
/// How long a request may take.
pub(crate) const REQUEST: u64 = 20_000;
/// Rows of one message.
const PAGE: usize = 3;

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Write { first: u8, blocks: u8, value: u64, durable: bool },
    Snapshot,
    Read { first: u8, blocks: u8 },
    Flush,
    HandOver,
}

/// A request under way.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) ask: Ask,
    pub(crate) since: u64,
    pub(crate) sequence: Option<u64>,
    /// As the oracle counted when it came.
    pub(crate) mark: u64,
}

/// What the world does for a head.
#[derive(Debug)]
pub(crate) enum Effect {
    Send(DeviceId, Packet),
    Change(Configuration),
    Placed(Position, Payload),
    Serving,
    Answered(Request, Result<Done, Failure>, Vec<Row>),
    Undecided,
    Stopped(Failure),
}

#[derive(Debug)]
struct Call {
    to: DeviceId,
    session: Session,
    since: u64,
    fill: bool,
}

/// Rows on their way from one member to another.
#[derive(Debug)]
struct Fill {
    source: (DeviceId, Session),
    session: Session,
    common: u64,
    newest: u64,
    from: Option<Place>,
    /// The snapshots are sent.
    begun: bool,
    sent: u64,
}

/// A head and what is around it.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) head: Head,
    pub(crate) requests: BTreeMap<Token, Request>,
    pub(crate) change: Option<Configuration>,
    pub(crate) era: u32,
    payloads: BTreeMap<u64, Payload>,
    calls: BTreeMap<u64, Call>,
    data: HashMap<Token, (DeviceId, Vec<Row>)>,
    fills: BTreeMap<DeviceId, Fill>,
    /// Members that kept what they had when they began to be filled.
    kept: BTreeSet<DeviceId>,
    /// Since when a member is silent.
    silent: BTreeMap<DeviceId, u64>,
    tokens: u64,
    number: u64,
    plant: Plant,
}

impl Driver {
    pub(crate) fn attach(
        fence: Fence,
        configuration: Configuration,
        settings: Settings,
        plant: Plant,
        now: u64,
    ) -> (Self, Vec<Effect>) {
        let (head, actions) = Head::attach(fence, configuration, settings);
        let mut driver = Self {
            head,
            requests: BTreeMap::new(),
            change: None,
            era: 0,
            payloads: BTreeMap::new(),
            calls: BTreeMap::new(),
            data: HashMap::new(),
            fills: BTreeMap::new(),
            kept: BTreeSet::new(),
            silent: BTreeMap::new(),
            tokens: 0,
            // The number of a call says whose it is.
            number: fence.epoch << 32,
            plant,
        };
        let effects = driver.act(actions, now);
        (driver, effects)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.head.fence().epoch
    }

    pub(crate) fn step(&mut self, event: Event, now: u64) -> Vec<Effect> {
        let actions = self.head.step(event);
        self.act(actions, now)
    }

    pub(crate) fn request(&mut self, ask: Ask, mark: u64, now: u64) -> Vec<Effect> {
        self.tokens += 1;
        let token = Token(self.tokens);
        self.requests.insert(token, Request { ask, since: now, sequence: None, mark });
        let event = match ask {
            Ask::Write { durable: false, .. } => Event::Write(token, Until::Written),
            Ask::Write { durable: true, .. } | Ask::Snapshot => Event::Write(token, Until::Durable),
            Ask::Read { .. } => Event::Read(token),
            Ask::Flush => Event::Flush(token),
            Ask::HandOver => Event::HandOver(token),
        };
        self.step(event, now)
    }

    fn send(&mut self, to: DeviceId, session: Session, body: Body, fill: bool, now: u64) -> Effect {
        self.number += 1;
        let call = self.number;
        self.calls.insert(call, Call { to, session, since: now, fill });
        Effect::Send(to, Packet { call, fence: self.head.fence(), session, body })
    }

    fn act(&mut self, actions: Vec<Action>, now: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        for action in actions {
            match action {
                Action::Send(to, session, message) => {
                    let payload = match &message {
                        Message::Write(sequence) => Some(
                            *self.payloads.get(sequence).expect("bytes are kept until they are released"),
                        ),
                        Message::Read(token, _) => self.requests.get(token).and_then(|request| {
                            let Ask::Read { first, blocks } = request.ask else { return None };
                            Some(Payload::Read { first, blocks })
                        }),
                        _ => None,
                    };
                    effects.push(self.send(to, session, Body::Head(message, payload), false, now));
                }
                Action::Place(token, sequence) => effects.extend(self.place(token, sequence)),
                Action::Release(sequence) => self.payloads = self.payloads.split_off(&(sequence + 1)),
                Action::Fill { source, target, session, common } => {
                    let common = if self.kept.remove(&target) { common } else { 0 };
                    let fill = Fill { source, session, common, newest: 0, from: None, begun: false, sent: 0 };
                    self.fills.insert(target, fill);
                }
                Action::StopFill(target, _) => {
                    self.fills.remove(&target);
                }
                Action::Change(next) => {
                    self.change = Some(next.clone());
                    effects.push(Effect::Change(next));
                }
                Action::Answer(token, answer) => effects.extend(self.answer(token, answer)),
                Action::Undecided(_) => effects.push(Effect::Undecided),
                Action::Decided => {}
                Action::Serving => effects.push(Effect::Serving),
                Action::Stopped(why) => effects.push(Effect::Stopped(why)),
            }
        }
        effects
    }

    fn place(&mut self, token: Token, sequence: u64) -> Option<Effect> {
        let era = self.era;
        let request = self.requests.get_mut(&token)?;
        request.sequence = Some(sequence);
        let payload = match request.ask {
            Ask::Write { first, blocks, value, .. } => Payload::Write { first, blocks, era, value },
            _ => {
                self.era += 1;
                Payload::Snapshot { era }
            }
        };
        self.payloads.insert(sequence, payload);
        Some(Effect::Placed(Position { epoch: self.epoch(), sequence }, payload))
    }

    fn answer(&mut self, token: Token, answer: Result<Done, Failure>) -> Option<Effect> {
        let request = self.requests.remove(&token)?;
        let rows = match answer {
            Ok(Done::Read(from)) => {
                let (device, rows) = self.data.remove(&token).expect("what is given away was read");
                assert_eq!(device, from, "by the member that the head means");
                rows
            }
            _ => Vec::new(),
        };
        Some(Effect::Answered(request, answer, rows))
    }

    /// An answer came.
    pub(crate) fn hear(&mut self, call: u64, said: Said, now: u64) -> Vec<Effect> {
        let Some(Call { to, session, .. }) = self.calls.remove(&call) else { return Vec::new() };
        match said {
            Said::Reply(reply) => self.step(Event::Reply(to, session, reply), now),
            Said::Data(token, rows) => {
                let newest = rows.iter().map(|row| row.rank.sequence).max().unwrap_or(0);
                let newest = if self.plant == Plant::ReadTooEarly { 0 } else { newest };
                if self.plant == Plant::FencedReads {
                    return self.answer_fenced(token, rows);
                }
                if self.head.session(to) != Some(session) {
                    // Read for a session that is over: these bytes may be old.
                    return Vec::new();
                }
                self.data.insert(token, (to, rows));
                self.step(Event::Reply(to, session, Reply::Read(token, newest)), now)
            }
            Said::Filling(kept) => {
                self.kept.remove(&to);
                if kept {
                    self.kept.insert(to);
                }
                self.step(Event::Reply(to, session, Reply::Filling), now)
            }
            Said::Taken => Vec::new(),
        }
    }

    /// The bug: nobody is asked whether the volume is still this head's.
    fn answer_fenced(&mut self, token: Token, rows: Vec<Row>) -> Vec<Effect> {
        let Some(request) = self.requests.remove(&token) else { return Vec::new() };
        vec![Effect::Answered(request, Ok(Done::Read(DeviceId([0; 16]))), rows)]
    }

    /// Members for whose filling the next page may be read: the last one has arrived.
    pub(crate) fn fills(&self) -> Vec<(DeviceId, DeviceId)> {
        let idle = self
            .fills
            .iter()
            .filter(|(target, _)| !self.calls.values().any(|call| call.fill && call.to == **target));
        idle.map(|(target, fill)| (*target, fill.source.0)).collect()
    }

    /// Reads the next page at the source; with it goes what it has of snapshots.
    pub(crate) fn fill(&mut self, target: DeviceId, site: &Site, now: u64) -> Vec<Effect> {
        let Some(fill) = self.fills.get_mut(&target) else { return Vec::new() };
        if site.session != Some(fill.source.1) {
            // It says so when its rows are asked for.
            let (source, session) = fill.source;
            return self.step(Event::Lost(source, session), now);
        }
        let session = fill.session;
        if !std::mem::replace(&mut fill.begun, true) {
            let newer = site.snapshots.iter().filter(|(_, at)| at.sequence > fill.common);
            let snapshots: Vec<_> = newer.map(|(era, at)| (*era, *at)).collect();
            fill.newest = snapshots.iter().map(|(_, at)| at.sequence).fold(fill.newest, u64::max);
            return vec![self.send(target, session, Body::Rows(Vec::new(), snapshots), true, now)];
        }
        let page = site.page(fill.from, PAGE, fill.common);
        let Some((last, _)) = page.last() else {
            let newest = fill.newest;
            self.fills.remove(&target);
            return self.step(Event::Filled(target, session, newest), now);
        };
        if page.iter().any(|((block, _), _)| site.damaged == Some(*block)) {
            // What fails its checksum is not handed on. Another one has it.
            self.fills.remove(&target);
            return self.step(Event::NoRows(target, session), now);
        }
        fill.from = Some(*last);
        let mut rows = Vec::new();
        for (place, row) in page {
            fill.sent += 1;
            if self.plant == Plant::RowForgotten && fill.sent % 4 == 3 {
                continue;
            }
            fill.newest = fill.newest.max(row.rank.sequence);
            rows.push((place, row));
        }
        vec![self.send(target, session, Body::Rows(rows, Vec::new()), true, now)]
    }

    pub(crate) fn not_filled(&mut self, target: DeviceId, now: u64) -> Vec<Effect> {
        let Some(fill) = self.fills.remove(&target) else { return Vec::new() };
        self.step(Event::NotFilled(target, fill.session), now)
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        let late: Vec<u64> =
            self.calls.iter().filter(|(_, call)| call.since + PATIENCE < now).map(|(n, _)| *n).collect();
        for call in late {
            let Some(Call { to, session, .. }) = self.calls.remove(&call) else { continue };
            self.fills.remove(&to);
            effects.extend(self.step(Event::Lost(to, session), now));
        }
        let expired: Vec<Token> =
            self.requests.iter().filter(|(_, asked)| asked.since + REQUEST < now).map(|(t, _)| *t).collect();
        for token in expired {
            effects.extend(self.step(Event::Expired(token), now));
        }
        let members: Vec<_> = self.head.members().collect();
        for (device, standing) in members {
            if standing != quarry_volume::head::Standing::Silent {
                self.silent.remove(&device);
                continue;
            }
            let since = *self.silent.entry(device).or_insert(now);
            let asked = self.calls.values().any(|call| call.to == device);
            if since + AWAY < now {
                self.silent.insert(device, now);
                effects.extend(self.step(Event::Overdue(device), now));
            } else if !asked {
                effects.extend(self.step(Event::Reachable(device), now));
            }
        }
        effects
    }
}
