//! The base of the order, and changes of who the members are.

use super::peer::{Peer, Standing};
use super::state::Head;
use super::{Action, Configuration, DeviceId, History, MAX_MEMBERS, Report};
use crate::member::Position;

/// What an operator wants of the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Add(DeviceId),
    Remove(DeviceId),
}

impl Wish {
    fn applied(self, to: &Configuration) -> Configuration {
        match self {
            Self::Add(device) => to.adding(device),
            Self::Remove(device) => to.removing(device),
        }
    }
}

impl Head {
    /// Chooses the base, when those who must have promised have.
    pub(super) fn choose(&mut self, actions: &mut Vec<Action>) {
        if self.order.is_some() || self.pending.is_some() {
            return;
        }
        let members = self.configuration.members.iter().filter_map(|device| self.peers.get(device));
        let reports: Vec<&Report> = members.clone().filter_map(|peer| peer.report.as_ref()).collect();
        let whole = reports.iter().filter(|report| report.whole).map(|report| &report.history);
        let longest = whole.max_by_key(|history| history.position());
        // Who is not whole has acknowledged all that it had before.
        let acknowledged = reports.iter().map(|report| report.history.position()).max();
        let found = longest.filter(|longest| {
            reports.len() >= self.configuration.seal() && acknowledged <= Some(longest.position())
        });
        // It is the only one then, and whole by decision.
        let alone = |device: DeviceId| self.configuration.members == [device];
        let decided = self.decided.filter(|device| alone(*device)).and(reports.first());
        let epoch = self.fence.epoch;
        let order = match decided {
            // Others may have the same beginning. What it has beside that they have not, and it would not be sent to them.
            Some(Report { history, whole: false, .. }) => {
                Some(History::unknown(Position { epoch, sequence: history.end() }))
            }
            Some(report) => Some(report.history.begun(epoch)),
            None => found.map(|longest| longest.begun(epoch)),
        };
        if let Some(order) = order {
            let end = order.end();
            self.order = Some(order);
            (self.answered, self.flushed, self.released) = (end, end, end);
            if self.told.take().is_some() {
                actions.push(Action::Decided);
            }
            return;
        }
        if members.clone().any(|peer| peer.report.is_none() && !peer.overdue) {
            return;
        }
        let known: Vec<_> = self.peers.iter().map(|(id, peer)| (*id, peer.report.clone())).collect();
        if self.told.as_ref() != Some(&known) {
            self.told = Some(known.clone());
            actions.push(Action::Undecided(known));
        }
    }

    /// An operator says whose history it is.
    pub(super) fn decide(&mut self, device: DeviceId, actions: &mut Vec<Action>) {
        let report = self.peers.get(&device).and_then(|peer| peer.report.as_ref());
        // One that was being filled has all that it had acknowledged, and some of what came later, unless it was emptied for it.
        // One that was added and never filled says that it is whole, for nothing was ever begun there: it is the volume that was never written.
        let counts = self.configuration.counts(device);
        let able = report.is_some_and(|Report { history, whole, kept }| {
            if *whole { counts || !history.turns().is_empty() } else { *kept && history.end() > 0 }
        });
        if able && self.order.is_none() && self.pending.is_none() && self.told.is_some() {
            self.decided = Some(device);
            self.propose(self.configuration.only(device), actions);
        }
        // Of two that were left one died: the other has all that was flushed, has begun, and can serve alone if it is to.
        let follows = self.peers.get(&device).is_some_and(Peer::is_active);
        if follows && !self.serving && self.pending.is_none() {
            self.propose(self.configuration.only(device), actions);
        }
    }

    fn propose(&mut self, next: Configuration, actions: &mut Vec<Action>) {
        self.pending = Some(next.clone());
        actions.push(Action::Change(next));
    }

    /// Takes note of what is wanted of the members, once.
    pub(super) fn wish(&mut self, wish: Wish) {
        if !self.wishes.contains(&wish) {
            self.wishes.push_back(wish);
        }
    }

    /// Forgets what is wished next if it is so already, or would leave too few.
    fn forget_wishes(&mut self) {
        let Self { configuration, settings, wishes, .. } = self;
        let is_open = |wish: &mut Wish| {
            let next = wish.applied(configuration);
            let same = (&next.members, &next.joining) == (&configuration.members, &configuration.joining);
            let fewer = next.members.len() < configuration.members.len();
            !same && (!fewer || next.members.len() >= settings.least.max(1))
        };
        while wishes.pop_front_if(|wish| !is_open(wish)).is_some() {}
    }

    /// The configuration that there should be instead, and whether it is what was wished. A wish for which the members are not there keeps nobody
    /// from demoting those that died.
    fn wanted(&self) -> Option<(Configuration, bool)> {
        let wished = self.wishes.front().map(|wish| wish.applied(&self.configuration));
        let wished = wished.filter(|next| self.quorum_of(next, |_| 0).is_some());
        wished.map(|next| (next, true)).or_else(|| Some((self.due()?, false)))
    }

    /// The configuration that there should be for who died, or has all by now.
    fn due(&self) -> Option<Configuration> {
        let away = |device: &&DeviceId| {
            self.peers.get(device).is_some_and(|peer| peer.overdue && peer.standing == Standing::Silent)
        };
        let mut next = self.configuration.clone();
        for device in self.configuration.members.iter().filter(away) {
            next = next.demoting(*device);
        }
        let fewer = next.members.len() < self.configuration.members.len();
        if fewer && next.members.len() >= self.settings.least.max(1) {
            return Some(next);
        }
        if self.configuration.members.len() >= MAX_MEMBERS {
            return None;
        }
        // As soon as one counts that has little room, clients write no more: it is needed where another is away, or has as little.
        let tight = |device: &DeviceId| self.peers.get(device).is_some_and(|peer| peer.tight);
        let needed = fewer || self.configuration.members.iter().any(tight);
        let ready = |device: &&DeviceId| {
            self.peers.get(device).is_some_and(|peer| peer.is_active() && (needed || !peer.tight))
        };
        let joined = self.configuration.joining.iter().find(ready)?;
        Some(self.configuration.promoting(*joined))
    }

    pub(super) fn wants_change(&self) -> bool {
        self.order.is_some() && self.pending.is_none() && self.wanted().is_some()
    }

    /// Asks for another configuration, if a quorum of its members has all that was promised to clients.
    pub(super) fn reconfigure(&mut self, actions: &mut Vec<Action>) {
        if self.order.is_none() || self.pending.is_some() {
            return;
        }
        self.forget_wishes();
        let Some((mut next, wished)) = self.wanted() else { return };
        next.version = self.configuration.version.saturating_add(1);
        let written = self.quorum_of(&next, |peer| peer.written);
        let durable = self.quorum_of(&next, |peer| peer.durable);
        if written >= Some(self.answered) && durable >= Some(self.flushed) {
            if wished {
                self.wishes.pop_front();
            } else if next.members.len() < self.configuration.members.len() {
                // Who wanted one to go thought that others were there: it looks again.
                self.wishes.retain(|wish| !matches!(wish, Wish::Remove(_)));
            }
            self.propose(next, actions);
        }
    }

    /// The configuration that was asked for is committed.
    pub(super) fn changed(&mut self, version: u32, actions: &mut Vec<Action>) {
        let Some(next) = self.pending.take_if(|pending| pending.version == version) else { return };
        let gone: Vec<DeviceId> =
            self.peers.keys().filter(|known| !next.all().any(|device| device == **known)).copied().collect();
        for device in gone {
            self.lose(device, actions);
            self.peers.remove(&device);
        }
        let new: Vec<DeviceId> = next.all().filter(|device| !self.peers.contains_key(device)).collect();
        self.configuration = next;
        for device in new {
            self.peers.insert(device, Peer::silent());
            self.ask(device, actions);
        }
    }
}
