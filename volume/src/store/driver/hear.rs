//! What members answer, told to the head.
//!
//! Invariant: an answer that is not the kind of its question ends the session, and so does one that is not there: of those to a look whether a
//! member is there that is being filled, several in a row.

use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::VolumeAnswer;

use super::fill::Copied;
use super::{AGAIN, Driver, Got, Told, Waiting, What};
use crate::geometry::{BLOCK_BYTES, Run};
use crate::head::{Action, Event, History, Message, Reply, Report, Session, Turn};
use crate::member::{Refusal, Token};
use crate::store::device::Piece;
use crate::store::link::Unanswered;
use crate::store::replica::refusal_of;

impl Driver {
    pub(super) fn hear(&mut self, told: Told) {
        match told {
            Told::Promised(device, answer) => match &mut self.first {
                Some(first) => {
                    first.push((device, answer));
                    let said = first.iter().map(|(device, _)| *device).collect::<Vec<_>>();
                    if self.head.configuration().members.iter().all(|device| said.contains(device)) {
                        self.first_promises();
                    }
                }
                None => self.promised(device, answer),
            },
            Told::Answered(device, (session, messages, answer)) => {
                if self.is_now(device, session) {
                    self.answered(device, session, messages, answer);
                }
            }
            Told::Read(device, session, token, answer) => {
                if self.is_now(device, session) {
                    self.read(device, session, token, answer);
                }
            }
            Told::Filled(target, session, copied) => {
                if self.is_now(target, session) {
                    self.link(target).filling = None;
                    self.filled(target, session, copied);
                }
            }
            Told::Alive(device, session, answer) => {
                if self.is_now(device, session) {
                    match answer {
                        Ok(answer @ (VolumeAnswer::Done | VolumeAnswer::Tight)) => {
                            self.link(device).missed = 0;
                            self.room(device, answer == VolumeAnswer::Tight);
                        }
                        Ok(VolumeAnswer::Refused(why, one, two)) => {
                            self.refused(device, session, refusal_of(why, one, two));
                        }
                        Err(Unanswered) => self.missed(device),
                        Ok(_) => self.lost(device),
                    }
                }
            }
            Told::Decided(device, session, answer, done) => {
                let mut proposed = false;
                if self.is_now(device, session) {
                    if let Ok(VolumeAnswer::Done | VolumeAnswer::Tight) = answer {
                        let actions = self.head.step(Event::Decide(device));
                        proposed = actions.iter().any(|action| matches!(action, Action::Change(_)));
                        self.act(actions);
                    } else {
                        self.lost(device);
                    }
                }
                // Who no longer waits needs no answer.
                let _gone = done.send(proposed);
            }
            Told::Changed(version, Ok(())) => {
                self.step(Event::Changed(version));
                self.part();
            }
            Told::Changed(_, Err(newer)) => self.step(Event::NotChanged(newer)),
        }
    }

    /// What becomes of a fill. It is the source's matter if the source does not give its rows: another one may.
    fn filled(&mut self, target: DeviceId, session: Session, copied: Copied) {
        let (source, from, answer) = match copied {
            Copied::All(newest) => return self.step(Event::Filled(target, session, newest)),
            Copied::Target(Ok(VolumeAnswer::Refused(why, one, two))) => {
                return self.refused(target, session, refusal_of(why, one, two));
            }
            Copied::Target(Ok(VolumeAnswer::Tight)) => {
                tracing::warn!(device = %target, "a member of a volume has no room for all that it was to be filled with");
                self.leave_alone(target);
                return self.call_off(target);
            }
            Copied::Target(_) => return self.lost(target),
            Copied::Source(source, from, answer) => (source, from, answer),
        };
        tracing::warn!(%source, %target, ?answer, "a member of a volume gives no rows to fill another");
        if !self.is_now(source, from) {
            return self.step(Event::NotFilled(target, session));
        }
        match answer {
            Ok(VolumeAnswer::Unreadable) => self.gave_no_rows(target, session),
            Ok(VolumeAnswer::Refused(why, one, two)) => {
                self.refused(source, from, refusal_of(why, one, two));
            }
            _ => self.lost(source),
        }
    }

    /// The head hears the first promises: those of who has most before the others, for it does not wait for more than a seal.
    pub(super) fn first_promises(&mut self) {
        let mut first = self.first.take().unwrap_or_default();
        first.sort_by_key(|(_, answer)| std::cmp::Reverse(most_of(answer)));
        for (device, answer) in first {
            self.promised(device, answer);
        }
    }

    /// Whatever it was, it was not done. The member is asked anew.
    fn refused(&mut self, device: DeviceId, session: Session, refusal: Refusal) {
        let again = self.now + AGAIN;
        let link = self.link(device);
        link.end_session();
        link.again = again;
        self.step(Event::Reply(device, session, Reply::Refused(refusal)));
    }

    fn promised(&mut self, device: DeviceId, answer: Result<VolumeAnswer, Unanswered>) {
        if !self.is_member(device) {
            return;
        }
        self.link(device).asked = false;
        match answer {
            Ok(VolumeAnswer::Promised { session, turns, end, whole, kept }) => {
                let turns = turns.into_iter().map(|(epoch, base)| Turn { epoch, base }).collect();
                let Some(history) = History::new(turns, end) else { return self.lost(device) };
                let session = Session(session);
                let link = self.link(device);
                link.begin_session(session);
                let report = Report { history, whole, kept };
                self.step(Event::Reply(device, session, Reply::Promised(session, report)));
            }
            Ok(VolumeAnswer::Refused(why, one, two)) => {
                let refusal = refusal_of(why, one, two);
                if matches!(refusal, Refusal::Fenced(_)) {
                    // It is in no session: any number says that.
                    self.step(Event::Reply(device, Session(0), Reply::Refused(refusal)));
                } else {
                    self.lost(device);
                }
            }
            _ => self.lost(device),
        }
    }

    fn answered(
        &mut self,
        device: DeviceId,
        session: Session,
        messages: Vec<Message>,
        answer: Result<VolumeAnswer, Unanswered>,
    ) {
        let fills = |message: &Message| matches!(message, Message::Fill { .. });
        match answer {
            Ok(VolumeAnswer::Refused(why, one, two)) => {
                self.refused(device, session, refusal_of(why, one, two));
            }
            Ok(VolumeAnswer::Tight) if messages.iter().any(fills) => {
                tracing::warn!(%device, "a member of a volume has no room to be filled");
                self.leave_alone(device);
            }
            Ok(answer @ (VolumeAnswer::Done | VolumeAnswer::Tight | VolumeAnswer::Filling(_))) => {
                if let VolumeAnswer::Filling(from) = answer {
                    self.link(device).fill_from = from;
                }
                let tells = |message: &Message| {
                    matches!(message, Message::Write(_) | Message::Begin(_) | Message::Join(_))
                };
                if messages.iter().any(tells) {
                    self.room(device, answer == VolumeAnswer::Tight);
                }
                for message in messages {
                    let reply = match message {
                        Message::Begin(_) => Reply::Begun,
                        Message::Fill { .. } => Reply::Filling,
                        Message::Join(_) => Reply::Joined,
                        Message::Write(sequence) => Reply::Written(sequence),
                        Message::Flush(sequence) => Reply::Flushed(sequence),
                        Message::Confirm(number) => Reply::Confirmed(number),
                        Message::Promise | Message::Read(..) => continue,
                    };
                    let begins = matches!(reply, Reply::Begun | Reply::Joined);
                    self.step(Event::Reply(device, session, reply));
                    if begins {
                        let link = self.link(device);
                        (link.left_alone, link.unread) = (0, 0);
                        self.thin(device);
                    }
                }
            }
            _ => self.lost(device),
        }
    }

    fn read(
        &mut self,
        device: DeviceId,
        session: Session,
        token: Token,
        answer: Result<VolumeAnswer, Unanswered>,
    ) {
        let reply = match answer {
            Ok(answer @ (VolumeAnswer::Read { .. } | VolumeAnswer::Rows { .. })) => {
                let Some((_, Waiting::Read(what, got, _))) = self.waiting.get_mut(&token) else { return };
                match got_of(*what, answer) {
                    Some((newest, one)) => {
                        got.insert(device, one);
                        Reply::Read(token, newest)
                    }
                    None => Reply::Unreadable(token),
                }
            }
            Ok(VolumeAnswer::Unreadable) => Reply::Unreadable(token),
            Ok(VolumeAnswer::Refused(why, one, two)) => {
                return self.refused(device, session, refusal_of(why, one, two));
            }
            _ => return self.lost(device),
        };
        self.step(Event::Reply(device, session, reply));
    }
}

/// How much a member has that has promised: the epoch that was begun last, and the end.
fn most_of(answer: &Result<VolumeAnswer, Unanswered>) -> Option<(u64, u64)> {
    match answer {
        Ok(VolumeAnswer::Promised { turns, end, .. }) => {
            Some((turns.last().map_or(0, |(epoch, _)| *epoch), *end))
        }
        _ => None,
    }
}

/// What was read with the newest write in it, if it is what was asked for.
fn got_of(what: What, answer: VolumeAnswer) -> Option<(u64, Got)> {
    match (what, answer) {
        (What::Run(run, _), VolumeAnswer::Read { newest, pieces, data }) => {
            Some((newest, Got::Pieces(pieces_of(run, &pieces, data)?)))
        }
        (What::Map(..), VolumeAnswer::Rows { rows, next, .. }) => {
            let newest = rows.iter().map(|row| row.position.sequence).max().unwrap_or(0);
            Some((newest, Got::Map(rows, next)))
        }
        _ => None,
    }
}

/// The pieces of a run, if they are all of it.
fn pieces_of(run: Run, pieces: &[(u16, bool)], mut data: bytes::Bytes) -> Option<Vec<Piece>> {
    let mut out = Vec::with_capacity(pieces.len());
    let mut blocks = 0_u64;
    for (count, zeroes) in pieces {
        let length = u64::from(*count) * BLOCK_BYTES;
        blocks += u64::from(*count);
        if *zeroes {
            out.push(Piece::Zeroes(length));
            continue;
        }
        let length = usize::try_from(length).ok()?;
        if data.len() < length {
            return None;
        }
        out.push(Piece::Data(data.split_to(length)));
    }
    (blocks == u64::from(run.blocks) && data.is_empty()).then_some(out)
}
