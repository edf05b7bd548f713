//! Giving a range of a container's lines to a group of its own, by one entry of the log.
//!
//! The lines stay where they lie. They are counted before, while rows change; then proposals are held back for the moment that it
//! takes to apply what is under way, so that the entry states exactly how many there are.
//!
//! Invariant: an entry that states a count is proposed when all before it is applied here, in the same term: the count is true at
//! its place in the log.
//! Invariant: what is given away lies at the end of what the group has of the container.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use openraft::error::ClientWriteError;
use tokio::sync::watch;

use super::count;
use super::group::{Group, stopped};
use super::raft::Command;
use super::types::{Entry, Expected, Given, GroupError, Guard, Outcome, Part, RowChange};
use crate::catalog::{self, Belongs, GivenValue, GroupId, Totals, given_key, lines, listing_key};
use crate::index::{IndexError, Range, Table};

/// Lines looked at before others get their turn, and for how long they get it.
const LINES: usize = 2000;
const TURN: Duration = Duration::from_millis(1);

/// A range that shall be a group's of its own: from a name to the end of what the group has of the container.
#[derive(Debug, Clone)]
pub struct Split {
    /// The container.
    pub id: u64,
    /// The first name.
    pub from: String,
    /// The group that takes it over: a number that no group has had.
    pub group: GroupId,
    /// What that one must know of the container.
    pub of: Belongs,
    /// The version time of the change.
    pub sequence: u64,
}

/// Ends a count that came to nothing.
struct Ended<'a>(&'a Group);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.shared.store.count.end(&Totals::default());
    }
}

impl Group {
    /// Ranges that this group gave away, as applied here.
    #[must_use]
    pub fn given(&self) -> Vec<Given> {
        self.shared.store.territory().given.clone()
    }

    /// Ranges that it has taken back.
    #[must_use]
    pub fn returned(&self) -> Vec<Given> {
        self.shared.store.territory().back.clone()
    }

    /// What this group has of a container, if it took a range of it over from another group.
    #[must_use]
    pub fn part(&self) -> Option<Part> {
        self.shared.store.territory().part.clone()
    }

    /// Lets time pass.
    pub(crate) fn sleep(&self, time: Duration) -> crate::object::BoxFuture<'static, ()> {
        self.shared.runtime.sleep(time)
    }

    /// Groups that were made on this disk out of this one since it was opened: to be opened.
    #[must_use]
    pub fn made(&self) -> watch::Receiver<Vec<GroupId>> {
        self.shared.store.made.subscribe()
    }

    /// The name behind which half of the lines lie that this group has of a container, but no more than `most`; `None`: there are
    /// too few. They are walked from the end, and no others.
    pub async fn middle(&self, id: u64, most: u64) -> Result<Option<String>, GroupError> {
        let half = (self.totals(crate::object::TotalsOf::Container(id))?.objects / 2).min(most);
        if half == 0 {
            return Ok(None);
        }
        let mut left = half;
        let mut middle = None;
        let back = self.shared.store.territory().back.clone();
        let starts: Vec<Vec<u8>> = back.iter().map(|back| listing_key(back.id, &back.from)).collect();
        self.each(Range { reverse: true, ..lines(id, "", None) }, |key, _| {
            left = left.saturating_sub(1);
            middle = Some(key.to_vec());
            // A range that was taken back keeps its row.
            Ok(left > 0 || starts.iter().any(|start| start == key))
        })
        .await?;
        let prefix = catalog::listing_prefix(id).len();
        let name = middle.and_then(|key| key.get(prefix..).map(<[u8]>::to_vec));
        name.map(String::from_utf8).transpose().map_err(stopped)
    }

    /// Walks rows on a snapshot until `take` says that it is enough; others get their turns meanwhile.
    async fn each(
        &self,
        range: Range,
        mut take: impl FnMut(&[u8], &[u8]) -> Result<bool, IndexError>,
    ) -> Result<(), GroupError> {
        let index = self.shared.store.disk.index();
        // All scans begin before the first turn of others.
        let scans: Vec<_> = self.shared.store.territory().scans(&range);
        let scans: Vec<_> =
            scans.into_iter().map(|(prefix, range)| (prefix, index.scan(Table::Rows, range))).collect();
        let mut looked = 0;
        for (prefix, scan) in scans {
            for pair in scan {
                let (key, value) = pair.map_err(stopped)?;
                if !take(key.get(prefix..).unwrap_or_default(), &value).map_err(stopped)? {
                    return Ok(());
                }
                looked += 1;
                if looked % LINES == 0 {
                    self.shared.runtime.sleep(TURN).await;
                }
            }
        }
        Ok(())
    }

    /// Gives a range away. Where it is applied the child is there, to be opened; whoever leads this group had best lead that.
    /// `still` is waited for when the lines are counted, and what it gives is kept until the entry is applied here.
    pub async fn split<T>(
        &self,
        split: Split,
        still: impl Future<Output = Result<T, GroupError>>,
    ) -> Result<(Outcome, T), GroupError> {
        let Split { id, from, group, of, sequence } = split;
        let (status, store) = (self.status(), &self.shared.store);
        if !status.leads {
            return Err(GroupError::NotLeader(status.leader));
        }
        super::group::numbered(group)?;
        let _alone = self.shared.reshaping.lock().await;
        let territory = store.territory();
        if let Some(other) = territory.moved(&listing_key(id, &from)) {
            return Err(GroupError::Moved(other));
        }
        if from.is_empty() || territory.part.as_ref().is_some_and(|part| part.value.from >= from) {
            return Err(GroupError::Limit("first name of a range"));
        }
        let to = territory.end_of(id);
        let counting = Ended(self);
        let counted = self.count(lines(id, &from, to.as_deref())).await?;
        let kept = still.await?;
        let held = self.shared.proposals.pause();
        let quiet = || {
            let status = self.status();
            self.shared.proposals.are_done() && status.applied == status.last
        };
        if !self.until(quiet).await {
            return Err(stopped("proposals under way do not end"));
        }
        if self.status().changing.is_some() {
            return Err(stopped("the voters are being changed"));
        }
        // All is applied here: what other leaders of the group gave away is known.
        let territory = store.territory();
        if territory.given.iter().chain(&territory.back).any(|given| given.group == group) {
            return Err(GroupError::Limit("number of a group, which was used"));
        }
        let Some(Totals { objects, bytes, .. }) = store.count.end(&counted) else {
            return Err(stopped("somebody else counts"));
        };
        let value = GivenValue { to, group, objects, bytes, of, back: None };
        let key = given_key(id, &from);
        let guards = vec![Guard { key: key.clone(), expected: Expected::Absent }];
        let rows = vec![RowChange { key, sequence, value: Some(value.encode()) }];
        let entry = Entry { term: Some(status.term), guards, rows };
        super::group::check(&entry)?;
        let sent = self.scope(self.shared.raft.client_write_ff(Command(Arc::new(vec![entry])))).await;
        // What was held back comes behind it.
        drop((held, counting));
        let written = sent.map_err(stopped)?.await.map_err(stopped)?;
        // The others hear at once that it is committed: the child needs a majority of them.
        let _later = self.scope(self.shared.raft.trigger().heartbeat()).await;
        match written {
            Ok(written) => {
                let outcome = written.data.into_iter().next().ok_or_else(|| stopped("no outcome"))?;
                Ok((outcome, kept))
            }
            Err(ClientWriteError::ForwardToLeader(to)) => Err(GroupError::NotLeader(to.leader_id)),
            Err(e @ ClientWriteError::ChangeMembershipError(_)) => Err(stopped(e)),
        }
    }

    /// Begins to follow changes of lines, and counts them as they were at that moment.
    async fn count(&self, lines: Range) -> Result<Totals, GroupError> {
        let count = &self.shared.store.count;
        let mut totals = Totals::default();
        let applying = count.applying().await;
        count.begin(lines.clone());
        let mut walk = Box::pin(self.each(lines, |_, value| count::add(&mut totals, value).map(|()| true)));
        // The walk's snapshot is taken at its first poll: nothing is applied between that and the beginning.
        let begun = poll_fn(|context| Poll::Ready(walk.as_mut().poll(context))).await;
        drop(applying);
        match begun {
            Poll::Ready(walked) => walked?,
            Poll::Pending => walk.as_mut().await?,
        }
        drop(walk);
        Ok(totals)
    }
}
