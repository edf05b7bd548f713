//! What a head decided, carried out.

use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::VolumeCall;

use super::{Condition, Driver, Told, Waiting, What};
use crate::head::{Action, Done, Failure, Message, Session};
use crate::member::Token;
use crate::store::link::{Body, Ordered, Peer, call_of};

impl Driver {
    pub(super) fn act(&mut self, actions: Vec<Action>) {
        // Before anybody is told.
        let (_, answered, durable) = self.head.reach();
        self.waterline.rise(answered, durable);
        let (lone, flushed) = self.flushed_alone(&actions);
        for action in actions {
            match action {
                Action::Send(device, _, Message::Flush(goal))
                    if goal == lone && flushed.contains(&device) => {}
                Action::Send(device, session, message) => {
                    let flush = message == Message::Write(lone) && flushed.contains(&device);
                    self.send(device, session, message, flush);
                }
                Action::Place(token, sequence) => {
                    if let Some((_, Waiting::Write(body, _))) = self.waiting.get_mut(&token)
                        && let Some(body) = body.take()
                    {
                        // A write is of the era in which it gets its place.
                        self.bodies.keep(sequence, Body { era: self.views.era, ..body });
                    }
                }
                Action::Release(upto) => self.bodies.release(upto),
                Action::Fill { source, target, session, common } => {
                    self.fill(source, target, session, common);
                }
                Action::StopFill(device, _) => {
                    if let Some(filling) = self.link(device).filling.take() {
                        filling.abort();
                    }
                }
                Action::Change(configuration) => {
                    tracing::info!(?configuration, "change the members of a volume");
                    let (told, version) = (self.told.clone(), configuration.version);
                    let committed = (self.commit)(configuration);
                    self.reach.beside(async move {
                        let committed = committed.await;
                        drop(told.send(Told::Changed(version, committed)));
                    });
                }
                Action::Answer(token, answer) => self.answer(token, answer),
                Action::Undecided(known) => {
                    tracing::error!(
                        ?known,
                        "a volume needs a decision: its members have not all that was acknowledged"
                    );
                    self.condition.send_replace(Condition::Undecided(known));
                }
                Action::Decided => drop(self.condition.send_replace(Condition::Attaching)),
                Action::Serving => drop(self.condition.send_replace(Condition::Serving)),
                Action::Stopped(why) => {
                    tracing::info!(%why, "a head of a volume stops");
                    self.condition.send_replace(Condition::Stopped(why));
                    self.stopped = true;
                }
            }
        }
    }

    /// The write that is alone under way, and the members that are asked for it and its flush in one message: a trip less. Were there others, they
    /// would wait for its flush.
    fn flushed_alone(&self, actions: &[Action]) -> (u64, Vec<DeviceId>) {
        let (end, answered, _) = self.head.reach();
        if end != answered + 1 {
            return (end, Vec::new());
        }
        let sent = |device: &DeviceId, session: &Session, what: &Message| {
            actions.iter().any(|action| {
                matches!(action, Action::Send(to, of, message) if (to, of, message) == (device, session, what))
            })
        };
        let both = actions.iter().filter_map(|action| match action {
            Action::Send(device, session, Message::Flush(goal)) if *goal == end => {
                sent(device, session, &Message::Write(end)).then_some(*device)
            }
            _ => None,
        });
        (end, both.collect())
    }

    /// `flush`: a write is answered when it is durable.
    fn send(&mut self, device: DeviceId, session: Session, message: Message, flush: bool) {
        let (fence, to) = (self.fence, Peer { device, volume: self.volume });
        let (reach, told) = (self.reach.clone(), self.told.clone());
        match message {
            Message::Promise => {
                let link = self.link(device);
                if !std::mem::replace(&mut link.asked, true) {
                    link.end_session();
                    self.reach.beside(async move {
                        let answer = reach.ask(to, fence, Session(0), VolumeCall::Promise).await;
                        drop(told.send(Told::Promised(device, answer)));
                    });
                }
            }
            Message::Read(token, at) => {
                let Some((_, Waiting::Read(what, ..))) = self.waiting.get(&token) else { return };
                let call = match *what {
                    What::Run(run, era) => VolumeCall::Read { run, at, era },
                    // A head asks only who has all that was acknowledged.
                    What::Map(from, era, since) => {
                        VolumeCall::Rows { from, above: 0, data: false, era, since }
                    }
                };
                self.reach.beside(async move {
                    let answer = reach.ask(to, fence, session, call).await;
                    drop(told.send(Told::Read(device, session, token, answer)));
                });
            }
            Message::Flush(_) | Message::Confirm(_) => {
                let Some(call) = call_of(&message) else { return };
                self.reach.beside(async move {
                    let answer = reach.ask(to, fence, session, call).await;
                    drop(told.send(Told::Answered(device, (session, vec![message], answer))));
                });
            }
            Message::Begin(_) | Message::Fill { .. } | Message::Join(_) | Message::Write(_) => {
                let body = match message {
                    Message::Write(sequence) => self.bodies.get(sequence).cloned(),
                    _ => None,
                };
                if !self.link(device).send(Ordered { fence, session, message, body, flush }) {
                    tracing::warn!(%device, "a member of a volume is too far behind, and is filled anew");
                    self.late.push(device);
                }
            }
        }
    }

    fn answer(&mut self, token: Token, answer: Result<Done, Failure>) {
        // Who no longer waits needs no answer.
        match (self.waiting.remove(&token).map(|(_, waiting)| waiting), answer) {
            (Some(Waiting::Read(_, mut got, done)), Ok(Done::Read(device))) => {
                let _gone = done.send(got.remove(&device).ok_or(Failure::Unreadable));
            }
            (Some(Waiting::Read(_, _, done)), answer) => {
                let _gone = done.send(Err(answer.err().unwrap_or(Failure::Unreadable)));
            }
            (Some(Waiting::Write(_, done) | Waiting::Flush(done)), answer) => {
                let _gone = done.send(answer.map(drop));
            }
            (None, _) => {}
        }
    }
}
