//! A body that goes to several devices in chunks, and the commit that makes it a version.
//!
//! Every device has a lane of its own. The first chunk chooses the devices: it goes to the primaries, and to handoffs for those that
//! are down, full or stall. Later nobody can take a place, as the chunks before would be missing there: a device that fails
//! is out of this upload, which goes on while a quorum of lanes is left; the replicator mends the rest.
//!
//! Invariant: a commit goes to a device when it has acknowledged every chunk, and to no other.
//! Invariant: a lane has at most [`LANE_CHUNKS`] in flight, and a quorum of lanes less than [`CHUNKS_IN_FLIGHT`] when one more is
//! sent, so memory stays bounded and a device that hangs costs an upload one [`STALL`].
//! Invariant: chunks that no commit claims are given up: all of them when there is none, else those on devices that are out.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use quarry_ring::PathHash;

use super::copies::Copies;
use super::devices::Member;
use super::fan::{Fan, Parts, missing};
use super::fragments::{Fragment, cut};
use super::launch::{Unwanted, launch, wait};
use super::limits::{LANE_CHUNKS, STALL};
use super::policy::Code;
use super::quorum::quorum;
use super::replica::{BoxFuture, Draft};
use super::seats::{Seats, personal};
use super::{CHUNKS_IN_FLIGHT, Error, Result};
use crate::catalog::{DataId, ObjectMeta};
use crate::disk::format::record::DeviceId;
use crate::disk::{Class, Durability};

/// One device of an upload.
struct Lane {
    member: Arc<Member>,
    /// Which fragment goes to it; 0 where bodies are kept whole.
    index: u8,
    running: Vec<BoxFuture<'static, Result<()>>>,
    failed: Option<Error>,
    /// Runs while the upload waits for this lane and nothing of it comes.
    stall: Option<BoxFuture<'static, ()>>,
}

impl Lane {
    fn new(member: Arc<Member>, index: u8) -> Self {
        Self { member, index, running: Vec::new(), failed: None, stall: None }
    }

    fn step(&mut self, context: &mut Context<'_>) {
        let before = self.running.len();
        let failed = &mut self.failed;
        self.running.retain_mut(|work| match work.as_mut().poll(context) {
            Poll::Pending => true,
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(e)) => {
                failed.get_or_insert(e);
                false
            }
        });
        if self.running.len() != before {
            self.stall = None;
        }
    }
}

/// An upload that has chunks in the log. Dropped before its commit, they are given up.
pub(crate) struct Upload {
    pub(crate) id: DataId,
    pub(crate) sequence: u64,
    copies: Arc<Copies>,
    /// Replicas that there should be.
    wanted: usize,
    /// Lanes that suffice.
    needed: usize,
    /// There is but one device that can have the object.
    sole: bool,
    /// How bodies are cut, where each device has a fragment.
    code: Option<Code>,
    /// The first chunk, on its way.
    opening: Option<Fan<u8>>,
    lanes: Vec<Lane>,
    /// Devices that have something of it and no lane, and which fragment.
    out: Vec<(Arc<Member>, u8)>,
    /// Which fragment was given to whom.
    given: Given,
}

type Given = Arc<Mutex<HashMap<DeviceId, u8>>>;

fn given_to(given: &Given, member: &Member) -> u8 {
    let given = given.lock().unwrap_or_else(PoisonError::into_inner);
    given.get(&member.device()).copied().unwrap_or(0)
}

impl Upload {
    pub(crate) fn new(
        copies: Arc<Copies>,
        hash: &PathHash,
        id: DataId,
        sequence: u64,
        code: Option<Code>,
    ) -> Self {
        let sole = copies.devices().sole(hash).cloned().filter(|_| code.is_none());
        let lanes: Vec<Lane> = sole.map(|member| Lane::new(member, 0)).into_iter().collect();
        let (sole, wanted) = (!lanes.is_empty(), lanes.len());
        let (opening, out, given) = (None, Vec::new(), Given::default());
        Self { id, sequence, copies, wanted, needed: quorum(wanted), sole, code, opening, lanes, out, given }
    }

    /// What of a chunk goes to each lane, by its fragment.
    fn pieces(&self, chunk: Draft) -> Result<Pieces> {
        let Some(code) = self.code else {
            return Ok(Pieces { id: None, all: vec![chunk.data.clone()], chunk });
        };
        let all = cut(code, &chunk.data)?;
        Ok(Pieces { id: Some(Fragment { code, index: 0, body: self.id }), all, chunk })
    }

    /// Sends the first chunk: to a quorum at least, when this returns.
    pub(crate) async fn open(&mut self, hash: &PathHash, chunk: Draft) -> Result<()> {
        if self.sole {
            return self.send(chunk).await;
        }
        let mut candidates = self.copies.candidates_to_write(hash);
        self.wanted = candidates.wanted();
        self.needed = self.code.map_or(quorum(self.wanted), Code::quorum);
        let (copies, pieces) = (self.copies.clone(), self.pieces(chunk)?);
        let mut seats = self.code.map(|code| Seats::new(code, &candidates));
        let seen = self.given.clone();
        let next = move || {
            let member = candidates.next()?;
            let index = match &mut seats {
                Some(seats) => seats.take(&member)?,
                None => 0,
            };
            seen.lock().unwrap_or_else(PoisonError::into_inner).insert(member.device(), index);
            let work = append(&copies, &member, pieces.of(index), false);
            let work: BoxFuture<'static, Result<u8>> = match &seats {
                Some(seats) => seats.asked(index, work),
                None => Box::pin(async move { work.await.map(|()| index) }),
            };
            Some((member, work))
        };
        let fan = self.copies.fan(self.wanted, self.needed, Box::new(next))?;
        self.opening.insert(fan).reach().await?;
        let given = self.given.clone();
        let of = |member: &Arc<Member>| given_to(&given, member);
        let Some(Parts { good, running, out }) = self.opening.take().map(Fan::into_parts) else {
            return Ok(());
        };
        self.lanes.extend(good.into_iter().map(|(member, index)| Lane::new(member, index)));
        self.lanes.extend(running.into_iter().map(|(member, work)| {
            let index = of(&member);
            let running: Vec<BoxFuture<'static, Result<()>>> = vec![Box::pin(async { work.await.map(drop) })];
            Lane { running, ..Lane::new(member, index) }
        }));
        self.out.extend(out.into_iter().map(|member| (of(&member), member)).map(|(n, member)| (member, n)));
        self.drop_doubles();
        Ok(())
    }

    /// Of two lanes with one fragment the later one goes: its device stalled, and answered when another had its place.
    fn drop_doubles(&mut self) {
        if self.code.is_none() {
            return;
        }
        let mut seen = HashSet::new();
        let (lanes, doubles): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.lanes).into_iter().partition(|lane| seen.insert(lane.index));
        self.lanes = lanes;
        self.out.extend(doubles.into_iter().map(|lane| (lane.member, lane.index)));
    }

    /// Sends one more chunk on all lanes, when there is room.
    pub(crate) async fn send(&mut self, chunk: Draft) -> Result<()> {
        let pieces = self.pieces(chunk)?;
        poll_fn(|context| self.poll_room(context)).await?;
        for lane in &mut self.lanes {
            lane.running.push(append(&self.copies, &lane.member, pieces.of(lane.index), self.sole));
        }
        // Polled once, so that it is submitted.
        poll_fn(|context| {
            self.lanes.iter_mut().for_each(|lane| lane.step(context));
            Poll::Ready(())
        })
        .await;
        Ok(())
    }

    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            self.lanes.iter_mut().for_each(|lane| lane.step(context));
            self.drop_failed()?;
            let mut behind: Vec<usize> = self.lanes.iter().map(|lane| lane.running.len()).collect();
            behind.sort_unstable();
            let enough = behind.get(self.needed.saturating_sub(1));
            let enough = enough.is_some_and(|running| *running < CHUNKS_IN_FLIGHT);
            let limit = if enough { LANE_CHUNKS } else { CHUNKS_IN_FLIGHT };
            let time = self.copies.time.as_ref();
            let (mut waits, mut stalled) = (false, false);
            for lane in self.lanes.iter_mut().filter(|lane| lane.running.len() >= limit) {
                waits = true;
                let stall = lane.stall.get_or_insert_with(|| wait(time, STALL));
                if stall.as_mut().poll(context).is_ready() {
                    stalled = true;
                    lane.member.failed(time);
                    lane.failed = Some(Error::Unavailable { reason: "no answer in time".to_owned() });
                }
            }
            match (waits, stalled) {
                (false, _) => return Poll::Ready(Ok(())),
                (true, false) => return Poll::Pending,
                (true, true) => {}
            }
        }
    }

    /// Lets go of lanes that failed, if enough are left.
    fn drop_failed(&mut self) -> Result<()> {
        let living = self.lanes.iter().filter(|lane| lane.failed.is_none()).count();
        if living == self.lanes.len() {
            return Ok(());
        }
        let (failed, lanes): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.lanes).into_iter().partition(|lane| lane.failed.is_some());
        self.lanes = lanes;
        self.out.extend(failed.iter().map(|lane| (lane.member.clone(), lane.index)));
        for lane in &failed {
            tracing::debug!(device = %lane.member.device(), error = ?lane.failed, "device left out of an upload");
        }
        if living >= self.needed {
            return Ok(());
        }
        let mut errors = failed.into_iter().filter_map(|lane| Some((lane.member.device(), lane.failed?)));
        if self.sole
            && let Some((_, error)) = errors.next()
        {
            return Err(error);
        }
        Err(missing(self.needed, living, errors.map(|(device, e)| (device, e.to_string()))))
    }

    /// Commits on all lanes that have every chunk; done when a quorum has it. `row` rides along when the one device that has all is
    /// that of the row: true then.
    pub(crate) async fn commit(
        mut self,
        record: Draft,
        row: Option<(DeviceId, Draft)>,
        class: Class,
    ) -> Result<bool> {
        self.drop_failed()?;
        let (mut along, rides) = self.along(row);
        let members: Vec<_> = self.lanes.iter().map(|lane| (lane.member.clone(), lane.index)).collect();
        let meta = match self.code {
            Some(_) => Some(ObjectMeta::decode(&record.meta, record.sequence)?),
            None => None,
        };
        let mut lanes = std::mem::take(&mut self.lanes).into_iter();
        // Those whose commit fails are given up below; those are all if this is dropped meanwhile.
        self.out.extend(members);
        let next = move || {
            let lane = lanes.next()?;
            let member = lane.member.clone();
            let own =
                meta.as_ref().map_or_else(|| record.clone(), |meta| personal(&record, meta, lane.index));
            let drafts: Vec<Draft> = [own].into_iter().chain(along.take()).collect();
            Some((member, commit_lane(lane, drafts, class)))
        };
        let mut fan = Fan::new(self.wanted, self.needed, self.copies.time.clone(), Box::new(next));
        let reached = fan.reach().await;
        let (copies, sole) = (self.copies.clone(), self.sole);
        match reached {
            Ok(()) => copies.finish(fan, move |fan| self.spare(fan)),
            Err(e) => {
                self.spare(&fan);
                return Err(if sole { fan.first_error().unwrap_or(e) } else { e });
            }
        }
        Ok(rides)
    }

    /// The row, if it can be in the group of the commit.
    fn along(&self, row: Option<(DeviceId, Draft)>) -> (Option<Draft>, bool) {
        let is_home = |home| self.sole && self.lanes.iter().all(|lane| lane.member.device() == home);
        let along = row.filter(|(home, _)| is_home(*home)).map(|(_, row)| row);
        let rides = along.is_some();
        (along, rides)
    }

    /// Who has committed keeps the chunks; with all others they are given up, now that this is dropped.
    fn spare(mut self, fan: &Fan<()>) {
        let committed =
            |member: &Arc<Member>| fan.good().iter().any(|(good, ())| good.device() == member.device());
        self.out.retain(|(member, _)| !committed(member));
    }
}

/// A chunk, and what of it goes where.
struct Pieces {
    /// Of the first fragment, where there are fragments.
    id: Option<Fragment>,
    all: Vec<Bytes>,
    chunk: Draft,
}

impl Pieces {
    fn of(&self, index: u8) -> Draft {
        let data = self.all.get(usize::from(index)).cloned().unwrap_or_default();
        let key = self.id.map_or_else(
            || self.chunk.key.clone(),
            |fragment| Fragment { index, ..fragment }.data_id().to_vec(),
        );
        Draft { key, data, meta: self.chunk.meta.clone(), ..self.chunk }
    }
}

/// Has each device give up what it got.
fn give_up(
    copies: &Arc<Copies>,
    members: Vec<(Arc<Member>, u8)>,
    code: Option<Code>,
    body: DataId,
    sequence: u64,
) {
    let Some(code) = code else {
        let members: Vec<Arc<Member>> = members.into_iter().map(|(member, _)| member).collect();
        return copies.abandon(&members, body, sequence);
    };
    for (member, index) in members {
        copies.abandon(&[member], Fragment { code, index, body }.data_id(), sequence);
    }
}

/// Waits for a lane's chunks, then commits.
fn commit_lane(mut lane: Lane, drafts: Vec<Draft>, class: Class) -> BoxFuture<'static, Result<()>> {
    Box::pin(async move {
        poll_fn(|context| {
            lane.step(context);
            if lane.running.is_empty() || lane.failed.is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        if let Some(error) = lane.failed.take() {
            return Err(error);
        }
        lane.member.replica.append(drafts, Durability::Durable, class).await
    })
}

/// A chunk on its way to a device; it moves on also while the client keeps the writer waiting.
fn append(copies: &Copies, member: &Member, chunk: Draft, sole: bool) -> BoxFuture<'static, Result<()>> {
    let work = member.replica.append(vec![chunk], Durability::Appended, Class::Client);
    let Some(spawn) = copies.spawn.as_ref().filter(|_| !sole) else { return work };
    let launched = launch(Some(spawn), work, Unwanted::Finish);
    let gone = || Err(Error::Unavailable { reason: "node is shutting down".to_owned() });
    Box::pin(async move { launched.await.unwrap_or_else(gone) })
}

impl Drop for Upload {
    fn drop(&mut self) {
        let (id, sequence) = (self.id, self.sequence);
        let mut lanes = std::mem::take(&mut self.lanes);
        let mut members = std::mem::take(&mut self.out);
        members.extend(lanes.iter().map(|lane| (lane.member.clone(), lane.index)));
        let (code, given) = (self.code, self.given.clone());
        let opening = self.opening.take();
        if lanes.iter().all(|lane| lane.running.is_empty()) && opening.is_none() && members.is_empty() {
            return;
        }
        let copies = self.copies.clone();
        let Some(spawn) = self.copies.spawn.as_ref().filter(|_| !self.sole) else {
            // What is not yet submitted is dropped before the chunks are given up.
            drop(lanes);
            members.extend(opening.iter().flat_map(|fan| fan.asked()).map(|member| {
                let index = given_to(&given, &member);
                (member, index)
            }));
            drop(opening);
            return give_up(&copies, members, code, id, sequence);
        };
        // What is under way ends first: a chunk that came after its end would stay.
        spawn(Box::pin(async move {
            if let Some(mut fan) = opening {
                fan.close();
                fan.rest().await;
                members.extend(fan.asked().into_iter().map(|member| {
                    let index = given_to(&given, &member);
                    (member, index)
                }));
            }
            poll_fn(|context| {
                lanes.iter_mut().for_each(|lane| lane.step(context));
                if lanes.iter().all(|lane| lane.running.is_empty()) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            give_up(&copies, members, code, id, sequence);
        }));
    }
}
