//! Reads: from one member, given away when a quorum has confirmed the fence and what was read is durable.

use super::state::Head;
use super::{Action, DeviceId, Done, Failure, Message};
use crate::member::Token;

/// A read that has not been answered.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) token: Token,
    /// Its own number: what is sent from then on confirms it.
    tick: u64,
    /// All that was acknowledged when it came.
    after: u64,
    at: Option<DeviceId>,
    /// Members that could not read it.
    failed: Vec<DeviceId>,
    got: Option<(DeviceId, u64)>,
}

impl Head {
    pub(super) fn read(&mut self, token: Token) {
        self.tick += 1;
        let read =
            Reading { token, tick: self.tick, after: self.answered, at: None, failed: Vec::new(), got: None };
        self.reads.push(read);
    }

    pub(super) fn forget_reads_at(&mut self, device: DeviceId) {
        for read in &mut self.reads {
            if read.at == Some(device) && read.got.is_none() {
                read.at = None;
            }
        }
    }

    pub(super) fn was_read(&mut self, device: DeviceId, token: Token, newest: u64) {
        let waiting = |read: &&mut Reading| read.token == token && read.at == Some(device);
        // By decision there may be blocks of an order that was left, with sequences that are still to come: they are durable.
        let newest = newest.min(self.end());
        let Some(read) = self.reads.iter_mut().find(waiting) else { return };
        read.got = Some((device, newest));
        // It was sent after the read came.
        let tick = read.tick;
        if let Some(peer) = self.peers.get_mut(&device) {
            peer.confirmed = peer.confirmed.max(tick);
        }
    }

    pub(super) fn unreadable(&mut self, device: DeviceId, token: Token) {
        let waiting = |read: &&mut Reading| read.token == token && read.at == Some(device);
        if let Some(read) = self.reads.iter_mut().find(waiting) {
            read.failed.push(device);
            read.at = None;
        }
    }

    /// The newest write that a client is about to be shown.
    pub(super) fn newest_read(&self) -> u64 {
        self.reads.iter().filter_map(|read| read.got).map(|(_, newest)| newest).max().unwrap_or(0)
    }

    pub(super) fn answer_reads(&mut self, actions: &mut Vec<Action>) {
        if !self.serving || self.reads.is_empty() {
            return;
        }
        self.send_reads(actions);
        let (confirmed, flushed) = (self.joint(|peer| peer.confirmed).unwrap_or(0), self.flushed);
        let may = |read: &mut Reading| {
            read.tick <= confirmed && read.got.is_some_and(|(_, newest)| newest <= flushed)
        };
        let done = self.reads.extract_if(.., may);
        actions.extend(done.filter_map(|read| {
            let (device, _) = read.got?;
            Some(Action::Answer(read.token, Ok(Done::Read(device))))
        }));
        self.confirm(confirmed, actions);
    }

    /// Sends reads to members that have all that was acknowledged when they came.
    fn send_reads(&mut self, actions: &mut Vec<Action>) {
        let active = self.peers.iter().filter(|(_, peer)| peer.is_active());
        let mut active: Vec<_> = active.map(|(id, peer)| (*id, peer.session, peer.written)).collect();
        active.sort_by_key(|(id, ..)| self.settings.near != Some(*id));
        let mut hopeless = Vec::new();
        for read in self.reads.iter_mut().filter(|read| read.at.is_none()) {
            let able =
                active.iter().find(|(id, _, written)| *written >= read.after && !read.failed.contains(id));
            if let Some((device, session, _)) = able {
                read.at = Some(*device);
                actions.push(Action::Send(*device, *session, Message::Read(read.token, read.after)));
            } else if self.peers.keys().all(|id| read.failed.contains(id)) {
                hopeless.push(read.token);
            }
        }
        self.reads.retain(|read| !hopeless.contains(&read.token));
        actions.extend(hopeless.into_iter().map(|token| Action::Answer(token, Err(Failure::Unreadable))));
    }

    /// Has members confirm the fence for all reads that wait, one round at a time.
    fn confirm(&mut self, confirmed: u64, actions: &mut Vec<Action>) {
        let Some(wanted) = self.reads.iter().map(|read| read.tick).max() else { return };
        if wanted <= confirmed {
            return;
        }
        let tick = self.tick;
        for (device, peer) in &mut self.peers {
            let reads_there = self.reads.iter().filter(|read| read.at == Some(*device) && read.got.is_none());
            let expected = reads_there.map(|read| read.tick).max().unwrap_or(0).max(peer.confirmed);
            if peer.is_active() && !peer.confirming && expected < wanted {
                peer.confirming = true;
                actions.push(Action::Send(*device, peer.session, Message::Confirm(tick)));
            }
        }
    }
}
