//! What a head knows of one member, and how that becomes a part of the order.

use super::state::Head;
use super::{Action, DeviceId, Message, Report, Session};

/// How far a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is known of it.
    Silent,
    /// It has promised.
    Promised,
    /// It was told on what to build.
    Beginning,
    /// It is not whole, and is sent what it lacks.
    Filling,
    /// It was sent all.
    Joining,
    /// It has all up to what it answers, and is counted.
    Active,
}

/// One member.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) standing: Standing,
    /// The last one that is known; meaningless while it is silent.
    pub(super) session: Session,
    pub(super) report: Option<Report>,
    /// It has been away for as long as it may.
    pub(super) overdue: bool,
    /// Its disk has little room.
    pub(super) tight: bool,
    pub(super) written: u64,
    pub(super) durable: u64,
    /// The highest flush that was asked for.
    pub(super) flushing: u64,
    /// What it lacks when it was to be asked for a flush of it; it is asked for that as it comes.
    pub(super) owes: u64,
    /// The fence stood when this tick had come.
    pub(super) confirmed: u64,
    /// A confirmation is under way.
    pub(super) confirming: bool,
    /// From whom it is filled, and up to where both have the same.
    pub(super) source: Option<(DeviceId, u64)>,
    /// Who was lost while it filled this one, or could not read all: another does it, if there is one. Kept over sessions.
    pub(super) avoid: Option<DeviceId>,
    /// The newest row that it was sent, when all were sent.
    pub(super) filled: Option<u64>,
}

impl Peer {
    pub(super) fn silent() -> Self {
        Self {
            standing: Standing::Silent,
            session: Session::default(),
            report: None,
            overdue: false,
            tight: false,
            written: 0,
            durable: 0,
            flushing: 0,
            owes: 0,
            confirmed: 0,
            confirming: false,
            source: None,
            avoid: None,
            filled: None,
        }
    }

    pub(super) fn is_active(&self) -> bool {
        self.standing == Standing::Active
    }

    /// It is sent every write.
    pub(super) fn receives(&self) -> bool {
        matches!(
            self.standing,
            Standing::Beginning | Standing::Filling | Standing::Joining | Standing::Active
        )
    }

    /// It has the beginning of the order, and goes on from there.
    fn keeps(&self) -> bool {
        self.source.is_none_or(|(_, common)| {
            self.report.as_ref().is_some_and(|report| report.whole && report.history.end() == common)
        })
    }
}

impl Head {
    /// Nothing is known of a member any more.
    pub(super) fn lose(&mut self, device: DeviceId, actions: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(&device) else { return };
        if peer.standing == Standing::Filling {
            actions.push(Action::StopFill(device, peer.session));
        }
        *peer = Peer { session: peer.session, overdue: peer.overdue, avoid: peer.avoid, ..Peer::silent() };
        self.forget_reads_at(device);
        // Who was filled from there begins again.
        let filled_from = |peer: &Peer| {
            let source = peer.source.filter(|_| peer.standing == Standing::Filling && peer.filled.is_none());
            source.is_some_and(|(source, _)| source == device)
        };
        let orphans: Vec<DeviceId> =
            self.peers.iter().filter(|(_, peer)| filled_from(peer)).map(|(id, _)| *id).collect();
        for orphan in orphans {
            self.lose(orphan, actions);
            if let Some(peer) = self.peers.get_mut(&orphan) {
                peer.avoid = Some(device);
            }
            self.ask(orphan, actions);
        }
    }

    /// Asks a silent member for its promise.
    pub(super) fn ask(&self, device: DeviceId, actions: &mut Vec<Action>) {
        if self.peers.get(&device).is_some_and(|peer| peer.standing == Standing::Silent) {
            actions.push(Action::Send(device, Session::default(), Message::Promise));
        }
    }

    /// A member has promised.
    pub(super) fn promised(
        &mut self,
        device: DeviceId,
        session: Session,
        report: Report,
        actions: &mut Vec<Action>,
    ) {
        let Some(peer) = self.peers.get(&device) else { return };
        if session == peer.session {
            return;
        }
        if peer.standing != Standing::Silent {
            // It has forgotten the session that is known here.
            self.lose(device, actions);
        }
        let Some(peer) = self.peers.get_mut(&device) else { return };
        let (standing, report, avoid) = (Standing::Promised, Some(report), peer.avoid);
        *peer = Peer { standing, session, report, avoid, ..Peer::silent() };
    }

    /// Tells members that have promised how to go on.
    pub(super) fn place(&mut self, actions: &mut Vec<Action>) {
        let Some(order) = self.order.clone() else { return };
        let waiting = self.peers.iter().filter(|(_, peer)| peer.standing == Standing::Promised);
        let waiting: Vec<(DeviceId, Report)> =
            waiting.filter_map(|(id, peer)| Some((*id, peer.report.clone()?))).collect();
        // Whose history it is by decision, and has not noted that: it begins as it is.
        let chosen = |device, report: &Report| {
            let decided = !report.whole && self.decided == Some(device) && !self.serving;
            decided && report.history.end() == order.end()
        };
        let waiting = waiting.into_iter().map(|(device, report)| {
            let continues = report.whole && order.holds(&report.history) || chosen(device, &report);
            let begins = continues && report.history.end() >= self.released;
            (!begins, report.history, continues, device)
        });
        let mut waiting: Vec<_> = waiting.collect();
        // If one of them is to be held back, it is the one that has most.
        waiting.sort_by_key(|(filled, history, ..)| (*filled, history.position()));
        for (filled, history, continues, device) in waiting {
            let next = if !filled {
                let message = Message::Begin(order.until(history.end()));
                Some((message, Standing::Beginning, history.end(), None))
            } else if continues && self.holds_back(device) {
                None
            } else {
                let common = order.common(&history);
                self.source(device).map(|(source, after)| {
                    (Message::Fill { common, after }, Standing::Filling, after, Some((source, common)))
                })
            };
            let Some((message, standing, after, source)) = next else { continue };
            let Some(peer) = self.peers.get_mut(&device) else { continue };
            peer.standing = standing;
            (peer.written, peer.durable, peer.flushing) = (after, after, after);
            peer.source = source;
            let session = peer.session;
            actions.push(Action::Send(device, session, message));
            let missed = after + 1..=order.end();
            actions.extend(missed.map(|sequence| Action::Send(device, session, Message::Write(sequence))));
        }
    }

    /// A whole member that would be whole no more while it is filled waits, as long as others are on the way to the quorum without it: if who has
    /// most dies meanwhile, the volume can begin on what this one has. One that is filled with all does not count for that: it takes long, and
    /// is again what it was when it is cut off.
    fn holds_back(&self, device: DeviceId) -> bool {
        let quorum = self.configuration.quorum();
        let others = self.configuration.members.iter().filter(|member| **member != device);
        let others: Vec<&Peer> = others.filter_map(|member| self.peers.get(member)).collect();
        let on_the_way = others.iter().filter(|peer| peer.receives() && peer.keeps()).count();
        let there = others.iter().filter(|peer| peer.is_active()).count();
        self.configuration.counts(device) && on_the_way >= quorum && there < quorum
    }

    /// Who can fill another, and what it has.
    fn source(&self, target: DeviceId) -> Option<(DeviceId, u64)> {
        let able = self
            .peers
            .iter()
            .filter(|(id, peer)| **id != target && peer.is_active() && peer.written >= self.released);
        let avoid = self.peers.get(&target).and_then(|peer| peer.avoid);
        able.max_by_key(|(id, peer)| (Some(**id) != avoid, peer.written))
            .map(|(id, peer)| (*id, peer.written))
    }

    /// A member has noted that it is not whole: it can be filled.
    pub(super) fn filling(&mut self, device: DeviceId, actions: &mut Vec<Action>) {
        let Some(peer) = self.peers.get(&device) else { return };
        if let (Standing::Filling, Some((source, common))) = (peer.standing, peer.source) {
            let Some(from) = self.session(source) else { return };
            let session = peer.session;
            actions.push(Action::Fill { source: (source, from), target: device, session, common });
        }
    }

    /// Makes those whole that have been sent everything.
    pub(super) fn join(&mut self, actions: &mut Vec<Action>) {
        let Some(order) = &self.order else { return };
        for (device, peer) in &mut self.peers {
            let all = peer.filled.is_some_and(|newest| peer.written >= newest);
            if peer.standing == Standing::Filling && all {
                peer.standing = Standing::Joining;
                actions.push(Action::Send(*device, peer.session, Message::Join(order.clone())));
            }
        }
    }
}
