//! A head carried out: [`Head`] decides, this sends, keeps bytes, and knows the time.
//!
//! Invariant: all events reach the head one after the other; nobody else decides anything.
//! Invariant: what a member says in a session that is not its present one is not heard.
//! Invariant: the head is driven until its device is dropped or it has stopped; then nothing is answered any more.

mod act;
mod fill;
mod hear;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::AbortHandle;
use quarry_engine::block::{BlockPlace, Fence, VolumeId};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{BlockWrite, VolumeAnswer, VolumeCall};
use quarry_engine::object::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use self::fill::Copied;
use super::bodies::Bodies;
use super::device::Piece;
use super::link::{Answered, Body, Lane, Ordered, Peer, Reach, Unanswered, pump};
use super::waterline::Waterline;
use crate::geometry::Run;
use crate::head::{Action, Configuration, Event, Failure, Head, Report, Session, Standing, Until};
use crate::member::Token;

/// Pause between two looks at who is late.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two looks at members that have nothing else to say: whether they are there, and whether another head is.
const BEAT: u64 = 10;
/// So many looks in a row without an answer are the end of a member that is being filled. All that it was sent would be void, and it is needed by
/// nobody meanwhile; of another one is enough.
const MISSES: u32 = 3;
/// Ticks after which a member that is away is asked again.
const AGAIN: u64 = 3;
/// Ticks after which it is asked again at most, when it is overdue: by then it takes longer with each time.
const AGAIN_MOST: u64 = 30;
/// Ticks after which a member is asked again that could not be filled: the first time, and at most.
const ALONE: u64 = 1200;
const ALONE_MOST: u64 = 18_000;
/// Ticks after which a member that is away is overdue.
const OVERDUE: u64 = 30;
/// Ticks for which the first promises wait for those of the other members.
const TOGETHER: u64 = 8;
/// Ticks for which a request may wait.
const PATIENCE: u64 = 300;

/// Commits a configuration in the control group, or tells under what another head acts that was first.
pub type Commit = Arc<dyn Fn(Configuration) -> BoxFuture<'static, Result<(), Fence>> + Send + Sync>;

/// What a client wants.
#[derive(Debug)]
pub(super) enum Ask {
    Write {
        body: Body,
        until: Until,
        done: oneshot::Sender<Result<(), Failure>>,
    },
    Read {
        what: What,
        done: oneshot::Sender<Result<Got, Failure>>,
    },
    Flush {
        done: oneshot::Sender<Result<(), Failure>>,
    },
    /// All is to be durable that was asked for before.
    Settle {
        done: oneshot::Sender<Result<(), Failure>>,
    },
    /// From here on writes belong to another era, and these are the snapshots.
    Views {
        views: Views,
        done: oneshot::Sender<()>,
    },
    /// Another member is to be brought up to date, and to count then.
    Add(DeviceId),
    /// A member is to go.
    Remove(DeviceId),
    /// What this member has is the volume.
    Decide {
        device: DeviceId,
        /// Whether that is being committed.
        done: oneshot::Sender<bool>,
    },
    /// Whether too few members follow the order, and none of the others is on the way.
    Lacks {
        done: oneshot::Sender<bool>,
    },
    /// Nothing is done any more.
    Stop,
    Show {
        done: oneshot::Sender<Vec<Seen>>,
    },
    /// Who follows the order, in which session, and the end of the order.
    Active {
        done: oneshot::Sender<Active>,
    },
}

/// Members that follow the order, and its end.
pub(super) type Active = (Vec<(DeviceId, Session)>, u64);

/// Which snapshots there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Views {
    /// To which writes belong: above those of all snapshots that ever were.
    pub era: u32,
    /// Eras of snapshots, ascending: each sees its own and those before.
    pub snapshots: Vec<u32>,
}

/// What is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// Bytes, as of an era.
    Run(Run, u32),
    /// What there is, from here on, as of an era; only what was written in eras from another one on.
    Map(BlockPlace, u32, u32),
}

/// What was read.
#[derive(Debug)]
pub(super) enum Got {
    Pieces(Vec<Piece>),
    /// Rows, and where those behind them begin.
    Map(Vec<BlockWrite>, Option<BlockPlace>),
}

/// A member as its head sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where it is.
    pub device: DeviceId,
    /// Its acknowledgements count.
    pub counts: bool,
    /// How far it is.
    pub standing: Standing,
}

/// How a head is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// It asks the members.
    Attaching,
    /// It serves.
    Serving,
    /// An operator must decide; what is known of each member.
    Undecided(Vec<(DeviceId, Option<Report>)>),
    /// It is none any more.
    Stopped(Failure),
}

/// What came back.
enum Told {
    Answered(DeviceId, Answered),
    Promised(DeviceId, Result<VolumeAnswer, Unanswered>),
    Read(DeviceId, Session, Token, Result<VolumeAnswer, Unanswered>),
    Filled(DeviceId, Session, Copied),
    Alive(DeviceId, Session, Result<VolumeAnswer, Unanswered>),
    /// The same, of the one that is to be the volume.
    Decided(DeviceId, Session, Result<VolumeAnswer, Unanswered>, oneshot::Sender<bool>),
    Changed(u32, Result<(), Fence>),
}

struct Link {
    queue: mpsc::UnboundedSender<Ordered>,
    /// Shared with who sends what is queued.
    lane: Arc<Lane>,
    session: Option<Session>,
    /// A promise is asked for.
    asked: bool,
    /// When it was lost, and when it is asked again.
    lost: Option<u64>,
    again: u64,
    /// Times in a row that it has not promised since it is overdue.
    unheard: u32,
    /// Looks in a row that it has not answered.
    missed: u32,
    overdue: bool,
    /// Its disk shall get no more data from clients.
    tight: bool,
    /// From above here it wants rows.
    fill_from: u64,
    filling: Option<AbortHandle>,
    /// Times in a row that it was left alone as it could not be filled.
    left_alone: u32,
    /// Sources in a row that could not read what it lacks.
    unread: usize,
}

/// How long a member is left alone that could not be filled so often before: each time all that was sent is written in vain.
fn alone(times: u32) -> u64 {
    (ALONE << times.min(8)).min(ALONE_MOST)
}

impl Link {
    fn begin_session(&mut self, session: Session) {
        (self.session, self.lost, self.overdue, self.unheard) = (Some(session), None, false, 0);
        // It says so again, as soon as it follows the order.
        (self.tight, self.missed) = (false, 0);
        self.lane.begin(session);
    }

    /// What is queued is not sent any more.
    fn end_session(&mut self) {
        self.session = None;
        self.lane.begin(Session::default());
    }

    /// Queues a message; false: too much is queued.
    fn send(&self, message: Ordered) -> bool {
        // The pump ends with this link.
        self.lane.takes(&message) && self.queue.send(message).is_ok()
    }
}

enum Waiting {
    Write(Option<Body>, oneshot::Sender<Result<(), Failure>>),
    Read(What, BTreeMap<DeviceId, Got>, oneshot::Sender<Result<Got, Failure>>),
    Flush(oneshot::Sender<Result<(), Failure>>),
}

/// What a head begins with.
pub(super) struct Parts {
    pub(super) head: Head,
    pub(super) begun: Vec<Action>,
    pub(super) volume: VolumeId,
    pub(super) views: Views,
    pub(super) reach: Reach,
    pub(super) commit: Commit,
    pub(super) condition: watch::Sender<Condition>,
    pub(super) waterline: Arc<Waterline>,
}

struct Driver {
    head: Head,
    volume: VolumeId,
    views: Views,
    fence: Fence,
    reach: Reach,
    commit: Commit,
    condition: watch::Sender<Condition>,
    waterline: Arc<Waterline>,
    told: mpsc::UnboundedSender<Told>,
    links: BTreeMap<DeviceId, Link>,
    bodies: Bodies,
    /// With the tick at which it is expired.
    waiting: BTreeMap<Token, (u64, Waiting)>,
    tokens: u64,
    now: u64,
    /// Members for which too much is queued.
    late: Vec<DeviceId>,
    /// The first promises, until all have come or it takes too long. Those of a seal are enough to begin, but who has more than they have would
    /// be filled anew for it.
    first: Option<Vec<(DeviceId, Result<VolumeAnswer, Unanswered>)>>,
    stopped: bool,
}

/// Drives a head until nobody asks any more.
pub(super) async fn drive(parts: Parts, mut asks: mpsc::UnboundedReceiver<Ask>) {
    let Parts { head, begun, volume, views, reach, commit, condition, waterline } = parts;
    let fence = head.fence();
    let (told, mut hears) = mpsc::unbounded_channel();
    let bodies = Bodies::new(Arc::clone(&reach.kept));
    let mut driver = Driver {
        head,
        volume,
        views,
        fence,
        reach,
        commit,
        condition,
        waterline,
        told,
        links: BTreeMap::new(),
        bodies,
        waiting: BTreeMap::new(),
        tokens: 0,
        now: 0,
        late: Vec::new(),
        first: Some(Vec::new()),
        stopped: false,
    };
    driver.act(begun);
    let mut tick = (driver.reach.timer)(TICK);
    while !driver.stopped {
        tokio::select! {
            // In this order, so that equal seeds give equal runs in a simulation.
            biased;
            () = &mut tick => {
                driver.tick();
                tick = (driver.reach.timer)(TICK);
            }
            Some(told) = hears.recv() => driver.hear(told),
            ask = asks.recv() => match ask {
                Some(ask) => driver.ask(ask),
                None => return,
            },
        }
    }
}

impl Driver {
    fn step(&mut self, event: Event) {
        let actions = self.head.step(event);
        self.act(actions);
        if let Some(upto) = self.bodies.too_many() {
            let actions = self.head.step(Event::Spare(upto));
            self.act(actions);
        }
        while let Some(device) = self.late.pop() {
            self.lost(device);
        }
    }

    /// A write that some member could not take gets no place: it would put the member out instead of being refused. For one that does not
    /// count nothing is refused.
    fn is_tight(&self) -> bool {
        let counts = |device| self.head.configuration().counts(device);
        self.links.iter().any(|(device, link)| link.tight && link.session.is_some() && counts(*device))
    }

    /// Takes note of whether a member has room. One that follows the order stays, also where it does not count: it has all.
    fn room(&mut self, device: DeviceId, tight: bool) {
        if std::mem::replace(&mut self.link(device).tight, tight) != tight {
            self.step(Event::Tight(device, tight));
        }
    }

    /// A member cannot be filled: others write meanwhile.
    fn leave_alone(&mut self, device: DeviceId) {
        self.lost(device);
        let now = self.now;
        let link = self.link(device);
        (link.again, link.tight) = (now + alone(link.left_alone), false);
        link.left_alone = link.left_alone.saturating_add(1);
    }

    /// A source cannot read a block, and goes on serving all others. When each other one has been tried the target waits.
    fn gave_no_rows(&mut self, target: DeviceId, session: Session) {
        self.step(Event::NoRows(target, session));
        let sources = self.head.members().filter(|(_, standing)| *standing == Standing::Active).count();
        let link = self.link(target);
        link.unread += 1;
        if link.unread < sources {
            return self.lost(target);
        }
        tracing::error!(%target, "a member of a volume is not filled: what it lacks cannot be read");
        self.leave_alone(target);
        self.call_off(target);
    }

    /// Has a member be at once what it was before it was filled: until it promises, what it was sent has its room on the disk. That is a
    /// session that nobody uses.
    fn call_off(&self, device: DeviceId) {
        let (reach, fence, to) = (self.reach.clone(), self.fence, Peer { device, volume: self.volume });
        self.reach.beside(async move {
            drop(fill::ask(&reach, fence, (to, Session(0)), VolumeCall::Promise).await);
        });
    }

    /// That what a member has is to be the volume is for good: it says first that it is there.
    fn decide(&mut self, device: DeviceId, done: oneshot::Sender<bool>) {
        let Some(session) = self.links.get(&device).and_then(|link| link.session) else {
            // Who no longer waits needs no answer.
            let _gone = done.send(false);
            return;
        };
        let (reach, told, fence) = (self.reach.clone(), self.told.clone(), self.fence);
        let to = Peer { device, volume: self.volume };
        self.reach.beside(async move {
            let answer = reach.ask(to, fence, session, VolumeCall::Confirm).await;
            drop(told.send(Told::Decided(device, session, answer, done)));
        });
    }

    fn ask(&mut self, ask: Ask) {
        let ask = match ask {
            Ask::Write { body: Body { data: Some(_), .. }, done, .. } if self.is_tight() => {
                // Who no longer waits needs no answer.
                let _gone = done.send(Err(Failure::NoSpace));
                return;
            }
            other => other,
        };
        self.tokens += 1;
        let token = Token(self.tokens);
        let (waiting, event) = match ask {
            Ask::Write { body, until, done } => {
                if self.waterline.was_looked_at() {
                    self.step(Event::Synced);
                }
                (Waiting::Write(Some(body), done), Event::Write(token, until))
            }
            Ask::Read { what, done } => (Waiting::Read(what, BTreeMap::new(), done), Event::Read(token)),
            Ask::Flush { done } => (Waiting::Flush(done), Event::Flush(token)),
            Ask::Settle { done } => (Waiting::Flush(done), Event::Settle(token)),
            Ask::Views { views, done } => {
                self.see(views);
                let _gone = done.send(());
                return;
            }
            Ask::Add(device) => return self.step(Event::Add(device)),
            Ask::Remove(device) => return self.step(Event::Remove(device)),
            Ask::Decide { device, done } => return self.decide(device, done),
            Ask::Lacks { done } => {
                let _gone = done.send(self.head.lacks_members());
                return;
            }
            Ask::Stop => {
                self.condition.send_replace(Condition::Stopped(Failure::HandedOver));
                self.stopped = true;
                return;
            }
            Ask::Active { done } => {
                let active = self.head.members().filter(|(_, standing)| *standing == Standing::Active);
                let there =
                    active.filter_map(|(device, _)| Some((device, self.links.get(&device)?.session?)));
                let _gone = done.send((there.collect(), self.head.reach().0));
                return;
            }
            Ask::Show { done } => {
                // Who no longer waits needs no answer.
                let _gone = done.send(self.seen());
                return;
            }
        };
        self.waiting.insert(token, (self.now + PATIENCE, waiting));
        self.step(event);
    }

    /// Snapshots have come or gone.
    fn see(&mut self, views: Views) {
        self.views = views;
        let able = self.head.members().filter(|(_, standing)| *standing == Standing::Active);
        let able: Vec<DeviceId> = able.map(|(device, _)| device).collect();
        able.into_iter().for_each(|device| self.thin(device));
    }

    /// Has a member give back what no snapshot sees. One that is away now is told when it is there again.
    fn thin(&self, device: DeviceId) {
        let Views { era, snapshots } = self.views.clone();
        let all_stand = usize::try_from(era).is_ok_and(|era| era == snapshots.len());
        let session = self.links.get(&device).and_then(|link| link.session);
        let Some(session) = session.filter(|_| !all_stand) else { return };
        let (reach, fence, to) = (self.reach.clone(), self.fence, Peer { device, volume: self.volume });
        let call = VolumeCall::Thin { views: snapshots, era, at: self.head.reach().0 };
        // It goes on there, however long it takes.
        self.reach.beside(async move { drop(reach.ask(to, fence, session, call).await) });
    }

    fn seen(&self) -> Vec<Seen> {
        let configuration = self.head.configuration();
        let seen = |(device, standing)| Seen { device, counts: configuration.counts(device), standing };
        self.head.members().map(seen).collect()
    }

    fn link(&mut self, device: DeviceId) -> &mut Link {
        let (reach, told, volume) = (&self.reach, &self.told, self.volume);
        self.links.entry(device).or_insert_with(|| {
            let (queue, ordered) = mpsc::unbounded_channel();
            let (told, lane) = (told.clone(), Arc::new(Lane::default()));
            let answered = move |answered| drop(told.send(Told::Answered(device, answered)));
            let to = Peer { device, volume };
            reach.beside(pump(reach.clone(), to, Arc::clone(&lane), ordered, answered));
            Link {
                queue,
                lane,
                session: None,
                asked: false,
                lost: None,
                again: 0,
                unheard: 0,
                missed: 0,
                overdue: false,
                tight: false,
                fill_from: 0,
                filling: None,
                left_alone: 0,
                unread: 0,
            }
        })
    }

    fn is_member(&self, device: DeviceId) -> bool {
        self.head.members().any(|(member, _)| member == device)
    }

    /// Lets go of who is no member any more: it is asked nothing, and that its disk is full is nobody's matter.
    fn part(&mut self) {
        let members: Vec<DeviceId> = self.head.members().map(|(device, _)| device).collect();
        self.links.retain(|device, _| members.contains(device));
    }

    fn is_now(&self, device: DeviceId, session: Session) -> bool {
        self.links.get(&device).is_some_and(|link| link.session == Some(session))
    }

    fn lost(&mut self, device: DeviceId) {
        let now = self.now;
        let link = self.link(device);
        let session = link.session.unwrap_or_default();
        link.end_session();
        link.lost.get_or_insert(now);
        if link.overdue {
            link.unheard = link.unheard.saturating_add(1);
        }
        link.again = now + (AGAIN << link.unheard.min(8)).min(AGAIN_MOST);
        self.step(Event::Lost(device, session));
    }

    /// A member did not answer whether it is there.
    fn missed(&mut self, device: DeviceId) {
        let is_filled = |standing| matches!(standing, Standing::Filling | Standing::Joining);
        let filled = self.head.members().any(|(member, standing)| member == device && is_filled(standing));
        let link = self.link(device);
        link.missed += 1;
        if !filled || link.missed >= MISSES {
            self.lost(device);
        }
    }

    /// A head that nobody asks anything would not notice that a member died, or that it was fenced.
    fn beat(&self) {
        let there = self.links.iter().filter_map(|(device, link)| Some((*device, link.session?)));
        for (device, session) in there {
            let (reach, told, fence) = (self.reach.clone(), self.told.clone(), self.fence);
            let to = Peer { device, volume: self.volume };
            self.reach.beside(async move {
                let answer = reach.ask(to, fence, session, VolumeCall::Confirm).await;
                drop(told.send(Told::Alive(device, session, answer)));
            });
        }
    }

    fn tick(&mut self) {
        self.now += 1;
        let now = self.now;
        if now == TOGETHER {
            self.first_promises();
        }
        if now.is_multiple_of(BEAT) {
            self.beat();
        }
        let silent = self.head.members().filter(|(_, standing)| *standing == Standing::Silent);
        let mut again: Vec<DeviceId> = silent.map(|(device, _)| device).collect();
        again.retain(|device| self.links.get(device).is_some_and(|link| !link.asked && now >= link.again));
        let overdue: Vec<DeviceId> = self
            .links
            .iter_mut()
            .filter(|(_, link)| !link.overdue && link.lost.is_some_and(|lost| lost + OVERDUE <= now))
            .map(|(device, link)| {
                link.overdue = true;
                *device
            })
            .collect();
        let expired: Vec<Token> =
            self.waiting.iter().filter(|(_, (until, _))| *until == now).map(|(token, _)| *token).collect();
        for device in again {
            let link = self.link(device);
            link.again = now + AGAIN;
            link.lost.get_or_insert(now);
            self.step(Event::Reachable(device));
        }
        overdue.into_iter().for_each(|device| self.step(Event::Overdue(device)));
        expired.into_iter().for_each(|token| self.step(Event::Expired(token)));
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        for link in self.links.values() {
            if let Some(filling) = &link.filling {
                filling.abort();
            }
        }
    }
}
