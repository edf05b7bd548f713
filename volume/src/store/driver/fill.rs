//! Rows carried from one member to another.

use futures_util::future::abortable;
use quarry_engine::block::{FIRST_PLACE, Fence};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{VolumeAnswer, VolumeCall};

use super::{Driver, Told};
use crate::head::Session;
use crate::store::link::{Peer, Reach, Unanswered};

/// How often a page is asked for, or sent.
const TRIES: usize = 4;

/// What came of it.
#[derive(Debug)]
pub(super) enum Copied {
    /// All was sent; the newest sequence among it, or zero.
    All(u64),
    /// The source did not give its rows.
    Source(DeviceId, Session, Result<VolumeAnswer, Unanswered>),
    /// The target did not take them.
    Target(Result<VolumeAnswer, Unanswered>),
}

impl Driver {
    pub(super) fn fill(
        &mut self,
        source: (DeviceId, Session),
        target: DeviceId,
        session: Session,
        common: u64,
    ) {
        let (fence, volume) = (self.fence, self.volume);
        let (reach, told) = (self.reach.clone(), self.told.clone());
        let views = [self.views.snapshots.clone(), vec![self.views.era]].concat();
        let above = common.min(self.link(target).fill_from);
        let (source, from) = (Peer { device: source.0, volume }, source.1);
        let to = Peer { device: target, volume };
        let (task, filling) = abortable(async move {
            let copied = copy(&reach, fence, (source, from), (to, session), above, &views).await;
            drop(told.send(Told::Filled(target, session, copied)));
        });
        tracing::info!(%target, above, "fill a member of a volume");
        // Of what was ended nobody is told.
        self.reach.beside(async move {
            let _ended = task.await;
        });
        self.link(target).filling = Some(filling);
    }
}

/// Asks again where no answer comes, for a volume is not to be copied from its beginning because a disk was slow for a moment: both calls
/// bear being repeated.
pub(super) async fn ask(
    reach: &Reach,
    fence: Fence,
    to: (Peer, Session),
    call: VolumeCall,
) -> Result<VolumeAnswer, Unanswered> {
    for _ in 1..TRIES {
        let answer = reach.ask(to.0, fence, to.1, call.clone()).await;
        if answer.is_ok() {
            return answer;
        }
    }
    reach.ask(to.0, fence, to.1, call).await
}

/// Copies rows above a sequence from member to member: of each view those that none before it sees. The last one is what is there now,
/// frozen or not by the time that it is sent: what belongs to a later era is sent as it is written.
async fn copy(
    reach: &Reach,
    fence: Fence,
    source: (Peer, Session),
    target: (Peer, Session),
    above: u64,
    views: &[u32],
) -> Copied {
    let (mut newest, mut since) = (0, 0);
    for era in views.iter().copied() {
        let mut next = Some(FIRST_PLACE);
        while let Some(from) = next {
            let asked = VolumeCall::Rows { from, above, data: true, era, since };
            let (rows, behind, data) = match ask(reach, fence, source, asked).await {
                Ok(VolumeAnswer::Rows { rows, next, data }) => (rows, next, data),
                other => return Copied::Source(source.0.device, source.1, other),
            };
            newest = rows.iter().map(|row| row.position.sequence).max().unwrap_or(0).max(newest);
            if !rows.is_empty() {
                let put = VolumeCall::Put { rows, data };
                match ask(reach, fence, target, put).await {
                    Ok(VolumeAnswer::Done) => {}
                    other => return Copied::Target(other),
                }
            }
            next = behind;
        }
        since = era.saturating_add(1);
    }
    Copied::All(newest)
}
