//! A member's device: the real member over a log that a power cut shortens, and what a reader sees there.
//!
//! Invariant: what completed a flush survives; of the rest a beginning does, for the log is written in order.

use std::collections::{BTreeMap, HashMap, VecDeque};

use quarry_engine::io::SplitMix64;
use quarry_volume::head::{History, Message, Reply, Report, Session};
use quarry_volume::{Action, Answer, Event, Fence, Member, Position, Refusal, Token};

use super::plant::Plant;

/// A block within an era.
pub(crate) type Place = (u8, u32);

/// What a place holds: the write that it is of, and its name; zero for zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) rank: Position,
    pub(crate) value: u64,
}

/// What a place in the order holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payload {
    /// Blocks from `first` on, in an era.
    Write { first: u8, blocks: u8, era: u32, value: u64 },
    /// A snapshot of this era.
    Snapshot { era: u32 },
    /// No place: what is read.
    Read { first: u8, blocks: u8 },
}

/// What travels to a member.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Body {
    Head(Message, Option<Payload>),
    /// Rows and snapshots from another member.
    Rows(Vec<(Place, Row)>, Vec<(u32, Position)>),
}

/// What travels back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said {
    Reply(Reply),
    /// What was read.
    Data(Token, Vec<Row>),
    /// It is noted that the member is not whole; whether it kept what it had.
    Filling(bool),
    Taken,
}

/// One message, by the number of the call that it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Packet {
    pub(crate) call: u64,
    pub(crate) fence: Fence,
    pub(crate) session: Session,
    pub(crate) body: Body,
}

#[derive(Debug, Clone)]
enum Entry {
    Promise(Fence),
    Record(Report),
    /// One record, whole or not at all.
    Rows(Vec<(Place, Row)>),
    Snapshot(u32, Position),
    /// All before is void.
    Wipe,
}

impl Entry {
    fn positions(&self) -> Vec<Position> {
        match self {
            Self::Rows(rows) => rows.iter().map(|(_, row)| row.rank).collect(),
            Self::Snapshot(_, at) => vec![*at],
            _ => Vec::new(),
        }
    }
}

#[derive(Debug, Clone)]
enum Pending {
    Promise(Fence),
    /// What is answered then, to whom.
    Record(u64, Session, Said),
    Append(u64),
    Flush(u64),
}

/// A device with its member.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    log: Vec<Entry>,
    durable: usize,
    member: Option<Member>,
    /// While a promise is made there is none.
    pub(crate) session: Option<Session>,
    sessions: u64,
    /// Where it stands.
    last: Position,
    /// It was told on what to build, in this session.
    begun: bool,
    /// It is filled, in this session.
    filling: bool,
    /// As it is on the disk, or will be when all is flushed; its end counts only while the member is not whole.
    label: Report,
    rows: BTreeMap<Place, Row>,
    pub(crate) snapshots: BTreeMap<u32, Position>,
    pending: VecDeque<(Pending, usize)>,
    /// What came before that on which it builds.
    held: Vec<Packet>,
    calls: HashMap<Token, Packet>,
    tokens: u64,
    /// The next flush fails.
    pub(crate) failing: bool,
    /// The last write that it took.
    pub(crate) accepted: u64,
    /// Says that it flushes, and does not.
    pub(crate) lying: bool,
    /// A block whose bytes are not what was written: checksums say so.
    pub(crate) damaged: Option<u8>,
    /// Writes that were lost here.
    pub(crate) lost: Vec<Position>,
    /// Counts lives: what was sent to another one is not heard.
    pub(crate) life: u64,
    /// Ends of things under way that are to come.
    pub(crate) scheduled: usize,
    plant: Plant,
}

impl Site {
    pub(crate) fn new(plant: Plant) -> Self {
        Self {
            log: Vec::new(),
            durable: 0,
            member: None,
            session: None,
            sessions: 0,
            last: Position::default(),
            begun: false,
            filling: false,
            label: Report { history: History::default(), whole: true, kept: true },
            rows: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            pending: VecDeque::new(),
            held: Vec::new(),
            calls: HashMap::new(),
            tokens: 0,
            failing: false,
            accepted: 0,
            lying: false,
            damaged: None,
            lost: Vec::new(),
            life: 0,
            scheduled: 0,
            plant,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.member.is_some()
    }

    /// The power fails: what was not flushed is kept up to some place.
    pub(crate) fn crash(&mut self, rng: &mut SplitMix64) {
        self.member = None;
        let kept = self.durable + rng.index(self.log.len() - self.durable + 1);
        let gone: Vec<Entry> = self.log.drain(kept..).collect();
        self.lost.extend(gone.iter().flat_map(Entry::positions));
        self.pending.clear();
        self.held.clear();
        self.calls.clear();
        self.scheduled = 0;
        self.life += 1;
        self.failing = false;
    }

    /// Recovery.
    pub(crate) fn start(&mut self, rng: &mut SplitMix64) {
        self.durable = self.log.len();
        self.rows.clear();
        self.snapshots.clear();
        self.label = Report { history: History::default(), whole: true, kept: true };
        let (mut fence, mut last) = (Fence::default(), Position::default());
        for entry in self.log.clone() {
            match &entry {
                Entry::Promise(promised) => fence = *promised,
                Entry::Record(label) => self.label = label.clone(),
                Entry::Wipe => last = Position::default(),
                _ => last = entry.positions().into_iter().fold(last, Position::max),
            }
            self.enter(&entry);
        }
        self.life += 1;
        self.session = None;
        self.sessions = rng.next_u64();
        self.member = Some(Member::recovered(fence, last));
    }

    /// What it has: as it would answer a promise.
    pub(crate) fn report(&self, last: u64) -> Report {
        if !self.label.whole {
            return self.label.clone();
        }
        Report { history: self.label.history.until(last), whole: true, kept: true }
    }

    fn enter(&mut self, entry: &Entry) {
        match entry {
            Entry::Rows(rows) => {
                for (place, row) in rows {
                    let before = self.rows.get(place).map(|row| row.rank);
                    if before <= Some(row.rank) {
                        self.rows.insert(*place, *row);
                    }
                }
            }
            Entry::Snapshot(era, at) => {
                self.snapshots.insert(*era, *at);
            }
            Entry::Wipe => {
                self.rows.clear();
                self.snapshots.clear();
            }
            _ => {}
        }
    }

    fn push(&mut self, entry: Entry) {
        self.enter(&entry);
        self.log.push(entry);
    }

    /// What a view sees of a block: the newest row of its era or an older one.
    pub(crate) fn see(&self, block: u8, era: u32) -> Row {
        let newest = self.rows.range((block, 0)..=(block, era)).next_back();
        newest.map_or(Row { rank: Position::default(), value: 0 }, |(_, row)| *row)
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// A message came. What it leads to at once.
    pub(crate) fn take(&mut self, packet: Packet) -> Vec<(u64, Session, Said)> {
        let Some(member) = &self.member else { return Vec::new() };
        let no = |refusal| vec![(packet.call, packet.session, Said::Reply(Reply::Refused(refusal)))];
        let blind =
            self.plant == Plant::FencedReads && matches!(packet.body, Body::Head(Message::Read(..), _));
        if !blind && !matches!(packet.body, Body::Head(Message::Promise, _)) {
            if packet.fence.epoch < member.highest().epoch {
                return no(Refusal::Fenced(member.highest()));
            }
            if Some(packet.session) != self.session {
                return no(Refusal::NotPromised);
            }
        }
        let needs = match &packet.body {
            Body::Head(Message::Write(sequence), _) => sequence - 1,
            Body::Head(Message::Flush(sequence) | Message::Read(_, sequence), _) => *sequence,
            _ => 0,
        };
        let early = matches!(packet.body, Body::Head(Message::Write(_), _)) && !self.begun;
        if early || needs > self.accepted {
            self.held.push(packet);
            return Vec::new();
        }
        let mut said = self.give(packet);
        loop {
            let accepted = self.accepted;
            let next = self.held.iter().position(|packet| match packet.body {
                Body::Head(Message::Write(sequence), _) => self.begun && sequence <= accepted + 1,
                Body::Head(Message::Flush(sequence) | Message::Read(_, sequence), _) => sequence <= accepted,
                _ => true,
            });
            let Some(next) = next else { return said };
            let packet = self.held.swap_remove(next);
            if self.session == Some(packet.session) {
                said.extend(self.give(packet));
            }
        }
    }

    fn give(&mut self, packet: Packet) -> Vec<(u64, Session, Said)> {
        let token = self.token();
        let fence = packet.fence;
        let event = match &packet.body {
            Body::Head(Message::Promise, _) => {
                self.session = None;
                Event::Promise(token, fence)
            }
            Body::Head(Message::Begin(history), _) => return self.begin(token, &packet, history),
            Body::Head(Message::Fill { common, after }, _) => return self.fill(&packet, *common, *after),
            Body::Head(Message::Join(history), _) => return self.join(&packet, history),
            Body::Head(Message::Write(sequence), _) => Event::Write(token, fence, *sequence),
            Body::Head(Message::Flush(_), _) => Event::Flush(token, fence),
            Body::Head(Message::Confirm(_) | Message::Read(..), _) => Event::Read(token, fence),
            Body::Rows(rows, snapshots) => {
                rows.iter().for_each(|row| self.push(Entry::Rows(vec![*row])));
                snapshots.iter().for_each(|(era, at)| self.push(Entry::Snapshot(*era, *at)));
                return vec![(packet.call, packet.session, Said::Taken)];
            }
        };
        if self.plant == Plant::FencedReads && matches!(packet.body, Body::Head(Message::Read(..), _)) {
            return vec![self.serve(&packet)];
        }
        self.calls.insert(token, packet);
        let actions = self.member.as_mut().map(|member| member.step(event)).unwrap_or_default();
        self.act(actions)
    }

    fn begin(&mut self, token: Token, packet: &Packet, history: &History) -> Vec<(u64, Session, Said)> {
        let no = |refusal| vec![(packet.call, packet.session, Said::Reply(Reply::Refused(refusal)))];
        if !self.label.whole {
            return no(Refusal::NotBegun);
        }
        let Some(member) = &mut self.member else { return Vec::new() };
        if history.end() != self.accepted {
            return no(Refusal::Elsewhere(history.position()));
        }
        match member.step(Event::Begin(token, packet.fence, self.last))[..] {
            [Action::Answer(_, Answer::Begun)] => {
                self.begun = true;
                self.label = Report { history: history.clone(), whole: true, kept: true };
                self.record(packet, Said::Reply(Reply::Begun))
            }
            _ => no(Refusal::Elsewhere(self.last)),
        }
    }

    fn fill(&mut self, packet: &Packet, common: u64, after: u64) -> Vec<(u64, Session, Said)> {
        if std::mem::replace(&mut self.begun, true) {
            let no = Reply::Refused(Refusal::Elsewhere(self.last));
            return vec![(packet.call, packet.session, Said::Reply(no))];
        }
        let kept = self.label.whole && self.accepted == common;
        self.label = Report { whole: false, kept, ..self.report(self.accepted) };
        if !kept && self.plant != Plant::VoidKept {
            self.push(Entry::Wipe);
        }
        let base = Position { epoch: packet.fence.epoch, sequence: after };
        let mut member = Member::recovered(packet.fence, base);
        let token = self.token();
        member.step(Event::Begin(token, packet.fence, base));
        self.member = Some(member);
        (self.accepted, self.filling) = (after, true);
        self.record(packet, Said::Filling(kept))
    }

    fn join(&mut self, packet: &Packet, history: &History) -> Vec<(u64, Session, Said)> {
        if !std::mem::take(&mut self.filling) {
            return vec![(packet.call, packet.session, Said::Reply(Reply::Refused(Refusal::NotBegun)))];
        }
        self.label = Report { history: history.until(self.accepted), whole: true, kept: true };
        self.record(packet, Said::Reply(Reply::Joined))
    }

    /// Notes what the member has; answers when that is durable.
    fn record(&mut self, packet: &Packet, said: Said) -> Vec<(u64, Session, Said)> {
        self.push(Entry::Record(self.label.clone()));
        self.pending.push_back((Pending::Record(packet.call, packet.session, said), self.log.len()));
        self.hurry()
    }

    /// Rows of the places after `from`, above a sequence.
    pub(crate) fn page(&self, from: Option<Place>, count: usize, above: u64) -> Vec<(Place, Row)> {
        let wanted = |(place, row): &(&Place, &Row)| {
            from.is_none_or(|from| **place > from) && row.rank.sequence > above
        };
        self.rows.iter().filter(wanted).take(count).map(|(place, row)| (*place, *row)).collect()
    }

    fn serve(&self, packet: &Packet) -> (u64, Session, Said) {
        let said = match packet.body {
            Body::Head(Message::Read(token, _), Some(Payload::Read { first, blocks })) => {
                let blocks = first..first + blocks;
                if self.damaged.is_some_and(|damaged| blocks.contains(&damaged)) {
                    return (packet.call, packet.session, Said::Reply(Reply::Unreadable(token)));
                }
                Said::Data(token, blocks.map(|block| self.see(block, u32::MAX)).collect())
            }
            Body::Head(Message::Confirm(tick), _) => Said::Reply(Reply::Confirmed(tick)),
            _ => Said::Reply(Reply::Refused(Refusal::Out)),
        };
        (packet.call, packet.session, said)
    }

    fn act(&mut self, actions: Vec<Action>) -> Vec<(u64, Session, Said)> {
        let mut said = Vec::new();
        for action in actions {
            match action {
                Action::Persist(fence) => {
                    self.push(Entry::Promise(fence));
                    self.pending.push_back((Pending::Promise(fence), self.log.len()));
                    said.extend(self.hurry());
                }
                Action::Append(token, at) => {
                    let payload = match self.calls.get(&token).map(|packet| &packet.body) {
                        Some(Body::Head(_, Some(payload))) => *payload,
                        _ => continue,
                    };
                    (self.accepted, self.last) = (at.sequence, at);
                    match payload {
                        Payload::Snapshot { era } => self.push(Entry::Snapshot(era, at)),
                        Payload::Write { first, blocks, era, value } => {
                            let row = Row { rank: at, value };
                            let blocks = first..first + blocks;
                            self.push(Entry::Rows(blocks.map(|block| ((block, era), row)).collect()));
                        }
                        Payload::Read { .. } => {}
                    }
                    self.pending.push_back((Pending::Append(at.sequence), self.log.len()));
                }
                Action::Flush(goal) => self.pending.push_back((Pending::Flush(goal), self.log.len())),
                Action::Serve(token) => {
                    said.extend(self.calls.remove(&token).map(|packet| self.serve(&packet)));
                }
                Action::Answer(token, answer) => said.extend(self.answer(token, answer)),
            }
        }
        said
    }

    /// The bug: what is under way is taken for done.
    fn hurry(&mut self) -> Vec<(u64, Session, Said)> {
        let mut said = Vec::new();
        while self.plant == Plant::EarlyPromise && !self.pending.is_empty() {
            said.extend(self.complete(false));
        }
        said
    }

    fn answer(&mut self, token: Token, answer: Answer) -> Option<(u64, Session, Said)> {
        let packet = self.calls.remove(&token)?;
        let reply = match (answer, &packet.body) {
            (Answer::Promised(last), _) => {
                self.sessions = self.sessions.wrapping_add(1);
                let session = Session(self.sessions);
                // Another promise is under way: this session is over already.
                let last_one =
                    !self.pending.iter().any(|(pending, _)| matches!(pending, Pending::Promise(_)));
                (self.session, self.last) = (last_one.then_some(session), last);
                (self.begun, self.filling) = (false, false);
                self.accepted = if self.label.whole { last.sequence } else { self.accepted };
                Reply::Promised(session, self.report(last.sequence))
            }
            (Answer::Written, Body::Head(Message::Write(sequence), _)) => Reply::Written(*sequence),
            (Answer::Flushed, Body::Head(Message::Flush(goal), _)) => Reply::Flushed(*goal),
            (Answer::Refused(refusal), _) => Reply::Refused(refusal),
            _ => return None,
        };
        Some((packet.call, packet.session, Said::Reply(reply)))
    }

    /// How much is under way on the disk.
    pub(crate) fn under_way(&self) -> usize {
        self.pending.len()
    }

    /// The oldest thing under way on the disk comes to its end.
    pub(crate) fn complete(&mut self, really: bool) -> Vec<(u64, Session, Said)> {
        let (Some((pending, at)), Some(member)) = (self.pending.pop_front(), &mut self.member) else {
            return Vec::new();
        };
        let flushes = !matches!(pending, Pending::Append(_));
        if flushes && self.failing {
            self.failing = false;
            // What was not durable is gone, whatever the system says later.
            if self.plant == Plant::FailedFlush {
                self.lost.extend(self.log[self.durable..].iter().flat_map(Entry::positions));
                self.lying = true;
            } else {
                let actions = member.step(Event::Failed);
                self.pending.clear();
                return self.act(actions);
            }
        }
        if flushes && really && !self.lying {
            self.durable = self.durable.max(at);
        }
        let event = match pending {
            Pending::Promise(fence) => Event::Persisted(fence),
            Pending::Record(call, session, said) => return vec![(call, session, said)],
            Pending::Append(sequence) => Event::Appended(sequence),
            Pending::Flush(goal) => Event::Flushed(goal),
        };
        let actions = member.step(event);
        self.act(actions)
    }
}
