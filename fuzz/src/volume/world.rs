//! Members, heads, what carries their messages, and the group that commits epochs and configurations; all from one seed.
//!
//! Invariant: everything that happens comes from the seed, in the order of its time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quarry_engine::io::SplitMix64;
use quarry_volume::head::{Configuration, DeviceId, Event, Failure, Reply, Session, Settings, Standing};
use quarry_volume::{Fence, Position};

use super::driver::{Ask, Driver, Effect, Request};
use super::oracle::Oracle;
use super::plant::Plant;
use super::site::{Body, Packet, Row, Said, Site};
use crate::cluster::log::Log;
use crate::store::oracle::Violation;

/// Pause between two looks at what is late.
pub(crate) const LOOK: u64 = 50;

/// How messages fare.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Net {
    pub(crate) delay: u64,
    /// Of a thousand.
    pub(crate) lost: u32,
    pub(crate) twice: u32,
}

#[derive(Debug)]
enum Happening {
    ToMember { head: usize, member: usize, life: u64, packet: Packet },
    ToHead { head: usize, member: usize, call: u64, said: Said },
    Complete { member: usize, life: u64 },
    Commit { head: usize, next: Configuration },
    Committed { head: usize, outcome: Result<u32, Fence> },
    Start { member: usize },
    Crash { member: usize },
    Mend { head: usize, member: usize },
}

/// A head that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) driver: Driver,
    /// The last write of its own that it acknowledged.
    acknowledged: u64,
    pub(crate) served: bool,
    pub(crate) stopped: Option<Failure>,
}

/// What the members' group has committed.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) epoch: u64,
    pub(crate) configuration: Configuration,
    /// A decision of an operator is committed: what was acknowledged may be gone.
    pub(crate) forgiven: bool,
}

/// The world.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: SplitMix64,
    pub(crate) net: Net,
    pub(crate) sites: Vec<Site>,
    pub(crate) heads: BTreeMap<usize, Running>,
    pub(crate) control: Control,
    pub(crate) oracle: Oracle,
    pub(crate) log: Log,
    pub(crate) undecided: bool,
    pub(crate) answers: u64,
    pub(crate) fills: u64,
    /// Heads that stopped because acknowledged writes were gone.
    pub(crate) losses: u64,
    pub(crate) last_answer: Option<Result<quarry_volume::head::Done, Failure>>,
    cuts: BTreeSet<(usize, usize)>,
    queue: BTreeMap<(u64, u64), Happening>,
    happened: u64,
    plant: Plant,
    settings: Settings,
}

pub(crate) fn device(n: usize) -> DeviceId {
    DeviceId([u8::try_from(n + 1).unwrap_or(u8::MAX); 16])
}

fn number(device: DeviceId) -> usize {
    usize::from(device.0[0]) - 1
}

impl World {
    pub(crate) fn new(seed: u64, members: usize, settings: Settings, plant: Plant, lines: usize) -> Self {
        let mut rng = SplitMix64::new(seed);
        let mut sites: Vec<Site> = (0..members).map(|_| Site::new(plant)).collect();
        sites.iter_mut().for_each(|site| site.start(&mut rng));
        let configuration = Configuration::new((0..members).map(device).collect());
        Self {
            now: 0,
            rng,
            net: Net { delay: 20, lost: 0, twice: 0 },
            sites,
            heads: BTreeMap::new(),
            control: Control { epoch: 0, configuration, forgiven: false },
            oracle: Oracle::default(),
            log: Log::new(lines),
            undecided: false,
            answers: 0,
            fills: 0,
            losses: 0,
            last_answer: None,
            cuts: BTreeSet::new(),
            queue: BTreeMap::new(),
            happened: 0,
            plant,
            settings,
        }
    }

    pub(crate) fn note(&mut self, what: &str) {
        self.log.note(Duration::from_millis(self.now), what);
    }

    fn at(&mut self, within: u64, happening: Happening) {
        let time = self.now + 1 + self.rng.below(within.max(1));
        self.happened += 1;
        self.queue.insert((time, self.happened), happening);
    }

    /// A new head is granted the next epoch.
    pub(crate) fn attach(&mut self) -> Result<usize, Violation> {
        self.control.epoch += 1;
        let fence = Fence { epoch: self.control.epoch, configuration: self.control.configuration.version };
        let configuration = self.control.configuration.clone();
        let name = usize::try_from(self.control.epoch).unwrap_or(usize::MAX);
        self.note(&format!(
            "attach {name}: {:?}",
            configuration.members.iter().map(|d| d.0[0]).collect::<Vec<_>>()
        ));
        let near = Some(device(self.rng.index(self.sites.len())));
        let settings = Settings { near, ..self.settings };
        let (driver, effects) = Driver::attach(fence, configuration, settings, self.plant, self.now);
        self.heads.insert(name, Running { driver, acknowledged: 0, served: false, stopped: None });
        self.act(name, effects)?;
        Ok(name)
    }

    /// A head's process is gone.
    pub(crate) fn kill(&mut self, head: usize) {
        self.note(&format!("kill head {head}"));
        self.heads.remove(&head);
    }

    pub(crate) fn crash(&mut self, member: usize, away: u64) {
        self.note(&format!("crash {member}"));
        self.sites[member].crash(&mut self.rng);
        if away > 0 {
            self.at(away, Happening::Start { member });
        }
    }

    pub(crate) fn start(&mut self, member: usize) {
        if !self.sites[member].is_up() {
            self.sites[member].start(&mut self.rng);
            self.note(&format!("start {member}"));
        }
    }

    /// Nothing passes between a head and a member for some time; zero: for ever.
    pub(crate) fn cut(&mut self, head: usize, member: usize, time: u64) {
        self.cuts.insert((head, member));
        if time > 0 {
            self.at(time, Happening::Mend { head, member });
        }
    }

    /// Of two heads each is cut off from a member that the other reaches, and who hears both loses its power soon.
    pub(crate) fn split(&mut self, old: usize, new: usize, time: u64) {
        let first = self.rng.index(self.sites.len());
        let next = |n: usize| (first + n) % self.sites.len();
        let (second, third) = (next(1), next(2));
        self.cut(old, first, time);
        self.cut(new, second, time);
        self.at(150, Happening::Crash { member: third });
    }

    pub(crate) fn mend_all(&mut self) {
        self.cuts.clear();
    }

    pub(crate) fn ask(&mut self, head: usize, ask: Ask) -> Result<(), Violation> {
        let oracle = self.oracle.acknowledged;
        // Before it serves it does not know in which era writes are.
        let Some(running) = self.heads.get_mut(&head).filter(|running| running.served) else { return Ok(()) };
        let mark = if ask == Ask::Flush { running.acknowledged } else { oracle };
        let effects = running.driver.request(ask, mark, self.now);
        self.note(&format!("{head}: {ask:?}"));
        self.act(head, effects)
    }

    pub(crate) fn tell(&mut self, head: usize, event: Event) -> Result<(), Violation> {
        let Some(running) = self.heads.get_mut(&head) else { return Ok(()) };
        let effects = running.driver.step(event, self.now);
        self.act(head, effects)
    }

    fn act(&mut self, head: usize, effects: Vec<Effect>) -> Result<(), Violation> {
        for effect in effects {
            match effect {
                Effect::Send(to, packet) => self.send(head, number(to), &packet),
                Effect::Change(next) => self.at(200, Happening::Commit { head, next }),
                Effect::Placed(at, payload) => self.oracle.placed(at, payload),
                Effect::Serving => self.serving(head)?,
                Effect::Answered(request, answer, rows) => {
                    self.note(&format!("{head}: {:?} {:?} -> {answer:?}", request.ask, request.sequence));
                    self.answers += 1;
                    self.last_answer = Some(answer);
                    if answer.is_ok() {
                        self.answered(head, &request, &rows)?;
                    }
                }
                Effect::Undecided => {
                    self.note(&format!("{head}: undecided"));
                    self.undecided = true;
                }
                Effect::Stopped(why) => {
                    self.note(&format!("{head}: stopped, {why:?}"));
                    self.losses += u64::from(matches!(why, Failure::Lost(_)));
                    if let Some(running) = self.heads.get_mut(&head) {
                        running.stopped = Some(why);
                    }
                }
            }
        }
        Ok(())
    }

    fn serving(&mut self, head: usize) -> Result<(), Violation> {
        let Some(running) = self.heads.get_mut(&head) else { return Ok(()) };
        let active = running.driver.head.members().find(|(_, standing)| *standing == Standing::Active);
        let Some((device, _)) = active else {
            return Err(Violation("a head serves without a member".to_owned()));
        };
        let site = &self.sites[number(device)];
        running.driver.era = site.snapshots.keys().max().map_or(0, |era| era + 1);
        running.served = true;
        let epoch = running.driver.epoch();
        let order = running.driver.head.order().cloned().unwrap_or_default();
        // Its own first writes may have their places already.
        let base = order.until(order.turns().last().map_or(0, |turn| turn.base));
        let lost: BTreeSet<Position> = self.sites.iter().flat_map(|site| site.lost.iter().copied()).collect();
        self.note(&format!("{head}: serves on {base:?}"));
        let forgiven = std::mem::take(&mut self.control.forgiven);
        self.oracle.serves(epoch, &base, &lost, forgiven)
    }

    fn answered(&mut self, head: usize, request: &Request, rows: &[Row]) -> Result<(), Violation> {
        let Some(running) = self.heads.get_mut(&head) else { return Ok(()) };
        let epoch = running.driver.epoch();
        match (request.ask, request.sequence) {
            (Ask::Write { .. } | Ask::Snapshot, Some(sequence)) => {
                running.acknowledged = running.acknowledged.max(sequence);
                let durable = matches!(request.ask, Ask::Snapshot | Ask::Write { durable: true, .. });
                self.oracle.written(Position { epoch, sequence }, durable)
            }
            (Ask::Flush, _) if request.mark > 0 => {
                self.oracle.durable(Position { epoch, sequence: request.mark })
            }
            (Ask::Read { first, .. }, _) => {
                self.note(&format!(
                    "{head}: read {:?}",
                    rows.iter().map(|row| row.value).collect::<Vec<_>>()
                ));
                self.oracle.read(first, rows, request.mark)
            }
            _ => Ok(()),
        }
    }

    fn send(&mut self, head: usize, member: usize, packet: &Packet) {
        let life = self.sites[member].life;
        let times = 1 + u32::from(self.rng.chance(self.net.twice));
        for _ in 0..times {
            if !self.cuts.contains(&(head, member)) && !self.rng.chance(self.net.lost) {
                let packet = packet.clone();
                self.at(self.net.delay, Happening::ToMember { head, member, life, packet });
            }
        }
    }

    fn answers(
        &mut self,
        head: usize,
        member: usize,
        said: Vec<(u64, Session, Said)>,
    ) -> Result<(), Violation> {
        for (call, _, said) in said {
            self.check(member, &said)?;
            // The number of a call says whose it is.
            let head = usize::try_from(call >> 32).unwrap_or(head);
            if !self.cuts.contains(&(head, member)) && !self.rng.chance(self.net.lost) {
                self.at(self.net.delay, Happening::ToHead { head, member, call, said });
            }
        }
        while self.sites[member].scheduled < self.sites[member].under_way() {
            self.sites[member].scheduled += 1;
            let life = self.sites[member].life;
            self.at(15, Happening::Complete { member, life });
        }
        Ok(())
    }

    /// A member that says that it is whole must be.
    fn check(&mut self, member: usize, said: &Said) -> Result<(), Violation> {
        let site = &self.sites[member];
        let report = match said {
            Said::Reply(Reply::Promised(_, report)) => report.clone(),
            Said::Reply(Reply::Joined) => site.report(site.accepted),
            _ => return Ok(()),
        };
        if report.whole && site.accepted == report.history.end() {
            self.oracle.check(member, site, &report.history)?;
        }
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        match happening {
            Happening::ToMember { head, member, life, packet } => {
                if self.sites[member].life != life || self.cuts.contains(&(head, member)) {
                    return Ok(());
                }
                if matches!(packet.body, Body::Rows(..)) {
                    self.fills += 1;
                }
                let said = self.sites[member].take(packet);
                self.answers(head, member, said)
            }
            Happening::ToHead { head, member, call, said } => {
                if self.cuts.contains(&(head, member)) {
                    return Ok(());
                }
                let Some(running) = self.heads.get_mut(&head) else { return Ok(()) };
                let effects = running.driver.hear(call, said, self.now);
                self.act(head, effects)
            }
            Happening::Complete { member, life } => {
                if self.sites[member].life != life {
                    return Ok(());
                }
                self.sites[member].scheduled = self.sites[member].scheduled.saturating_sub(1);
                let said = self.sites[member].complete(true);
                self.answers(0, member, said)
            }
            Happening::Commit { head, next } => {
                let fence = Fence { epoch: self.control.epoch, configuration: next.version };
                let current = head as u64 == self.control.epoch;
                let outcome = if current && next.version == self.control.configuration.version + 1 {
                    self.note(&format!(
                        "{head}: committed {:?}",
                        next.members.iter().map(|d| d.0[0]).collect::<Vec<_>>()
                    ));
                    self.control.configuration = next;
                    Ok(self.control.configuration.version)
                } else {
                    Err(fence)
                };
                self.at(200, Happening::Committed { head, outcome });
                Ok(())
            }
            Happening::Committed { head, outcome } => match outcome {
                Ok(version) => self.tell(head, Event::Changed(version)),
                Err(newer) => self.tell(head, Event::NotChanged(newer)),
            },
            Happening::Start { member } => {
                self.start(member);
                Ok(())
            }
            Happening::Crash { member } => {
                if self.sites[member].is_up() {
                    self.crash(member, 20);
                }
                Ok(())
            }
            Happening::Mend { head, member } => {
                self.cuts.remove(&(head, member));
                Ok(())
            }
        }
    }

    /// Lets so much time pass.
    pub(crate) fn pass(&mut self, time: u64) -> Result<(), Violation> {
        let end = self.now + time;
        loop {
            let look = (self.now / LOOK + 1) * LOOK;
            let next = self.queue.first_key_value().map_or(u64::MAX, |((at, _), _)| *at);
            if next.min(look) > end {
                self.now = end;
                return Ok(());
            }
            if next <= look {
                self.now = next;
                if let Some((_, happening)) = self.queue.pop_first() {
                    self.happen(happening)?;
                }
            } else {
                self.now = look;
                self.look()?;
            }
        }
    }

    /// Heads learn what is late, and go on with the filling of members.
    fn look(&mut self) -> Result<(), Violation> {
        let names: Vec<usize> = self.heads.keys().copied().collect();
        for head in names {
            let Some(running) = self.heads.get_mut(&head) else { continue };
            let effects = running.driver.tick(self.now);
            let fills = running.driver.fills();
            self.act(head, effects)?;
            for (target, source) in fills {
                let Some(running) = self.heads.get_mut(&head) else { continue };
                let site = &self.sites[number(source)];
                let reachable = site.is_up() && !self.cuts.contains(&(head, number(source)));
                let effects = match reachable {
                    true => running.driver.fill(target, site, self.now),
                    false => running.driver.not_filled(target, self.now),
                };
                self.act(head, effects)?;
            }
        }
        Ok(())
    }

    /// The newest head that may still do something.
    pub(crate) fn current(&self) -> Option<usize> {
        let newest = self.heads.iter().next_back();
        newest.filter(|(_, running)| running.stopped.is_none()).map(|(name, _)| *name)
    }
}
