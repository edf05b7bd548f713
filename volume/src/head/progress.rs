//! What follows from the head's state: places, acknowledgements, flushes.

use super::peer::Peer;
use super::state::{Head, Open};
use super::{Action, Configuration, Done, Failure, MAX_OPEN, Message, Standing, Until};

/// Writes that a member may lack and be asked to flush all the same: it waits for them there.
const NEAR: u64 = 16;

impl Head {
    /// Does all that can be done now. Each part is a function of the state alone, so that it does not matter which event made it
    /// possible.
    pub(super) fn progress(&mut self, actions: &mut Vec<Action>) {
        self.choose(actions);
        self.place(actions);
        self.join(actions);
        self.look_for_loss(actions);
        if self.stopped.is_some() {
            return;
        }
        self.serve(actions);
        self.give_places(actions);
        self.acknowledge(actions);
        self.answer_reads(actions);
        self.flush(actions);
        self.reconfigure(actions);
        self.hand_over(actions);
    }

    /// The most that a quorum of these members has reached; `None`: too few are active.
    pub(super) fn quorum_of(&self, members: &Configuration, reached: impl Fn(&Peer) -> u64) -> Option<u64> {
        let active = members.members.iter().filter_map(|device| self.peers.get(device));
        let mut reached: Vec<u64> = active.filter(|peer| peer.is_active()).map(reached).collect();
        reached.sort_unstable_by(|a, b| b.cmp(a));
        reached.get(members.quorum() - 1).copied()
    }

    /// The same, of the old and the new members while they change.
    pub(super) fn joint(&self, reached: impl Fn(&Peer) -> u64) -> Option<u64> {
        let now = self.quorum_of(&self.configuration, &reached)?;
        match &self.pending {
            None => Some(now),
            Some(pending) => Some(now.min(self.quorum_of(pending, &reached)?)),
        }
    }

    fn serve(&mut self, actions: &mut Vec<Action>) {
        if !self.serving && self.joint(|_| 0).is_some() {
            self.serving = true;
            actions.push(Action::Serving);
        }
    }

    /// Gives waiting writes their places in the order.
    fn give_places(&mut self, actions: &mut Vec<Action>) {
        while self.serving && self.end() - self.answered < MAX_OPEN {
            let (Some((token, until)), Some(order)) = (self.waiting.pop_front(), &mut self.order) else {
                return;
            };
            let sequence = order.end() + 1;
            order.grow(sequence);
            self.open.push_back(Open { sequence, token: Some(token), until, tick: self.tick });
            if until == Until::Written && self.habit.wrote() {
                self.foreseen = sequence;
            }
            actions.push(Action::Place(token, sequence));
            self.send_all(&Message::Write(sequence), actions);
        }
    }

    /// Answers writes and flushes.
    fn acknowledge(&mut self, actions: &mut Vec<Action>) {
        let Some(written) = self.joint(|peer| peer.written) else { return };
        self.answered = self.answered.max(written);
        while let Some(first) = self.open.front().copied().filter(|open| open.sequence <= self.answered) {
            self.open.pop_front();
            match (first.token, first.until) {
                (None, _) => {}
                (Some(token), Until::Written) => actions.push(Action::Answer(token, Ok(Done::Written))),
                (Some(token), Until::Durable) => self.unflushed.push_back((first.sequence, token)),
            }
        }
        if let Some(durable) = self.joint(|peer| peer.durable) {
            self.flushed = self.flushed.max(durable);
        }
        let flushed = self.flushed;
        while let Some((_, token)) = self.unflushed.pop_front_if(|(sequence, _)| *sequence <= flushed) {
            actions.push(Action::Answer(token, Ok(Done::Written)));
        }
        let done = self.flushes.extract_if(.., |(_, goal)| *goal <= flushed);
        actions.extend(done.map(|(token, _)| Action::Answer(token, Ok(Done::Flushed))));
        if self.serving && self.waiting.is_empty() && flushed == self.end() {
            let settled = self.settling.drain(..);
            actions.extend(settled.map(|token| Action::Answer(token, Ok(Done::Flushed))));
        }
        // What every member has durably none of them is sent again: a volume at rest keeps nothing.
        let safe = |peer: &Peer| if peer.is_active() { peer.durable } else { 0 };
        let everywhere = self.peers.values().map(safe).min().unwrap_or(0);
        let released = self.answered.saturating_sub(self.settings.keep).max(everywhere.min(self.answered));
        self.release(released, actions);
    }

    /// Bytes up to here are kept no more.
    pub(super) fn release(&mut self, upto: u64, actions: &mut Vec<Action>) {
        if upto > self.released {
            self.released = upto;
            actions.push(Action::Release(upto));
        }
    }

    /// Asks members to make durable what somebody waits for. One flush at a time for each: the next takes all that came meanwhile.
    fn flush(&mut self, actions: &mut Vec<Action>) {
        let open = self.open.iter().rev().find(|open| open.until == Until::Durable);
        let open = open.map_or(0, |open| open.sequence);
        let unflushed = self.unflushed.back().map_or(0, |(sequence, _)| *sequence);
        let flushes = self.flushes.iter().map(|(_, goal)| *goal).max().unwrap_or(0);
        let mut goal = open.max(unflushed).max(flushes).max(self.newest_read()).max(self.foreseen);
        if self.handing_over.is_some() || !self.settling.is_empty() {
            goal = goal.max(self.end());
        }
        let changes = self.wants_change();
        if changes {
            goal = goal.max(self.flushed);
        }
        let goal = if goal > self.flushed || changes { goal } else { 0 };
        for (device, peer) in &mut self.peers {
            let wanted = goal.max(peer.owes);
            if !peer.is_active() || peer.flushing >= wanted || peer.flushing > peer.durable {
                continue;
            }
            // It holds one of a few places of its device until it is done. Where much is still to come it would keep others' flushes waiting.
            let far = wanted > peer.written + NEAR;
            let (goal, owes) = if far { (peer.written, wanted) } else { (wanted, 0) };
            peer.owes = owes;
            if peer.flushing < goal {
                peer.flushing = goal;
                actions.push(Action::Send(*device, peer.session, Message::Flush(goal)));
            }
        }
    }

    fn hand_over(&mut self, actions: &mut Vec<Action>) {
        let Some(token) = self.handing_over else { return };
        let end = self.end();
        let done = self.serving && self.flushed == end && self.waiting.is_empty();
        if done && self.reads.is_empty() && self.flushes.is_empty() && self.pending.is_none() {
            self.handing_over = None;
            actions.push(Action::Answer(token, Ok(Done::HandedOver(end))));
            self.stop(Failure::HandedOver, actions);
        }
    }

    /// Whether writes that were acknowledged are with no member any more, because several were started anew; or whether whoever had the
    /// base is away before a quorum has begun on it. Another one may be found then, but only under another epoch.
    fn look_for_loss(&mut self, actions: &mut Vec<Action>) {
        if self.order.is_none() || self.peers.values().any(Peer::receives) {
            return;
        }
        let members = self.configuration.members.iter().filter_map(|device| self.peers.get(device));
        let all = members.clone().all(|peer| peer.overdue || peer.standing == Standing::Promised);
        let heard = members.clone().filter(|peer| peer.standing == Standing::Promised).count();
        if all && !self.serving {
            self.stop(Failure::TooFew, actions);
        } else if all && heard >= self.configuration.seal() {
            let most = members.filter_map(|peer| peer.report.as_ref()).map(|report| report.history.end());
            self.stop(Failure::Lost(most.max().unwrap_or(0)), actions);
        }
    }
}
