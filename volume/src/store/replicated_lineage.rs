//! Volumes with several members that come from one another: clones of snapshots, and volumes that go back to one.
//!
//! Invariant: who makes a clone, or makes one independent, knows which members have done it: the others have done it or not.
//! Invariant: going back can be cut off anywhere and begun again; it costs what changed since the snapshot.

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use quarry_engine::block::{BlockPlace, FIRST_PLACE, VolumeId};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{VolumeAnswer, VolumeCall};

use super::device::Piece;
use super::error::VolumeError;
use super::link::Unanswered;
use super::replicated::Replicated;
use crate::head::{Failure, Session, Until};

/// How often a member is asked the same.
const TRIES: usize = 4;
/// Runs that go back together.
const TOGETHER: usize = 32;

impl Replicated {
    /// Has a member of another volume made beside each of its own, as a snapshot is; those that did. What others have of it is nobody's
    /// to rely on.
    pub async fn fork(&self, clone: VolumeId, era: u32) -> Result<Vec<DeviceId>, VolumeError> {
        let (active, at) = self.active().await?;
        let call = VolumeCall::Fork { clone, era, at };
        let asked = active.into_iter().map(|member| {
            let call = call.clone();
            async move { (member.0, self.ask_again(member, call).await) }
        });
        let mut forked = Vec::new();
        for (device, answer) in join_all(asked).await {
            match answer {
                Ok(VolumeAnswer::Done) => forked.push(device),
                other => tracing::warn!(%device, ?other, "a member of a volume makes no member of its clone"),
            }
        }
        Ok(forked)
    }

    /// Has all its members, which are to be these, for themselves what they see of the volume below; `oldest`: the era of its oldest
    /// snapshot.
    pub async fn take_over(&self, members: &[DeviceId], oldest: Option<u32>) -> Result<(), VolumeError> {
        let (active, _) = self.active().await?;
        if members.iter().any(|member| active.iter().all(|(device, _)| device != member)) {
            return Err(Failure::TooFew.into());
        }
        let oldest = oldest.unwrap_or(u32::MAX);
        let each = active.into_iter().map(|member| self.take_over_at(member, oldest));
        join_all(each).await.into_iter().collect()
    }

    async fn take_over_at(&self, member: (DeviceId, Session), oldest: u32) -> Result<(), VolumeError> {
        let mut next: Option<BlockPlace> = Some(FIRST_PLACE);
        while let Some(from) = next {
            match self.ask_again(member, VolumeCall::TakeOver { from, oldest }).await {
                Ok(VolumeAnswer::Rows { next: behind, .. }) => next = behind,
                other => {
                    tracing::warn!(device = %member.0, ?other, "a member does not take over what is below it");
                    return Err(Failure::TooFew.into());
                }
            }
        }
        Ok(())
    }

    /// These calls bear being repeated.
    async fn ask_again(
        &self,
        member: (DeviceId, Session),
        call: VolumeCall,
    ) -> Result<VolumeAnswer, Unanswered> {
        for _ in 1..TRIES {
            let answer = self.ask_one(member, call.clone()).await;
            if answer.is_ok() {
                return answer;
            }
        }
        self.ask_one(member, call).await
    }

    /// Makes the volume what the snapshot of an era is. Nobody else may be writing.
    pub async fn go_back_to(&self, era: u32) -> Result<(), VolumeError> {
        let then = self.as_of(era, self.geometry());
        let mut next = Some(0);
        while let Some(from) = next {
            let (changed, behind) = self.map(from, era.saturating_add(1)).await?;
            let places = changed.iter().filter_map(|row| Some((self.offset_of(&row.run)?, row.run.bytes())));
            let back: Vec<_> = places.map(|(at, bytes)| self.go_back(&then, at, bytes)).collect();
            stream::iter(back).buffered(TOGETHER).try_collect::<Vec<()>>().await?;
            next = behind;
        }
        self.flush().await
    }

    async fn go_back(&self, then: &Self, mut at: u64, bytes: u64) -> Result<(), VolumeError> {
        for piece in then.read(at, bytes).await? {
            match piece {
                Piece::Data(data) => {
                    let bytes = data.len() as u64;
                    self.write(at, data, Until::Written).await?;
                    at += bytes;
                }
                Piece::Zeroes(bytes) => {
                    for run in self.geometry().split(at, bytes)? {
                        self.write_run(run, None, Until::Written).await?;
                    }
                    at += bytes;
                }
            }
        }
        Ok(())
    }
}
