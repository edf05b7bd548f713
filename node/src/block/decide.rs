//! Volumes whose members have lost what was acknowledged: what each of them has, and an operator's decision that one of them is the volume.
//!
//! Invariant: nothing is decided but by an operator, of a volume that its head says is undecided. A head that served, or began to, while there
//! were members enough does not know that it is: where too few are left, another one is asked, under the next epoch.
//! Invariant: the volume gets as many members again as it had: what the others had is void, and they are filled.

use std::collections::BTreeMap;

use quarry_engine::disk::format::record::DeviceId;
use quarry_volume::head::{Failure, Report};
use quarry_volume::store::{Condition, VolumeError};

use super::shared::{PAUSE, Shared, TRIES, taken_over};
use crate::control::volumes::Row;

/// What an undecided volume's members have, as its head was told.
pub(super) type Known = BTreeMap<DeviceId, Option<Report>>;

/// A device as operators write it.
pub(super) fn device_of(text: &str) -> Option<DeviceId> {
    let mut id = [0; 16];
    hex::decode_to_slice(text, &mut id).ok().map(|()| DeviceId(id))
}

/// What one of its members has, for people.
pub(super) fn words(report: Option<&Report>) -> String {
    let Some(Report { history, whole, kept }) = report else { return "away".to_owned() };
    let (epoch, end) = (history.position().epoch, history.end());
    if !*kept {
        return format!(
            "undecided: had the first {end} writes, and was emptied to be filled: it has nothing"
        );
    }
    if *whole && history.turns().is_empty() {
        return "undecided: has nothing: no head has begun there".to_owned();
    }
    let left = if *whole { "" } else { ", and was left while it was filled" };
    format!("undecided: has the first {end} writes, the last of head {epoch}{left}")
}

impl Shared {
    /// What the members of a volume have that is undecided, where its head is here.
    pub(super) async fn undecided(&self, row: &Row) -> Known {
        match self.head_now(row).map(|head| head.condition()) {
            Some(Condition::Undecided(known)) => known.into_iter().collect(),
            _ => Known::new(),
        }
    }

    /// Has a head here that says that the volume is undecided: if need be another one, where the one that there is lacks members.
    async fn ask_anew(&self, row: &Row) -> Result<(), VolumeError> {
        match self.attach_if(&row.name, |_| true).await {
            Err(VolumeError::Undecided) => return Ok(()),
            Ok(_) | Err(VolumeError::Head(Failure::TooFew)) => {}
            Err(other) => return Err(other),
        }
        self.give_up(row).await?;
        match self.attach_if(&row.name, |_| true).await {
            // Or one member has all, and only others are missing.
            Err(VolumeError::Undecided | VolumeError::Head(Failure::TooFew)) => Ok(()),
            Ok(_) => Err(VolumeError::NotDecided("the volume is served".to_owned())),
            Err(other) => Err(other),
        }
    }

    /// The head here is none any more, if it lacks members: nothing would come of it.
    async fn give_up(&self, row: &Row) -> Result<(), VolumeError> {
        let place = self.place(row.id);
        let mut head = place.head.lock().await;
        if let Some(device) = head.as_ref().filter(|device| !device.has_stopped())
            && !device.lacks_members().await?
        {
            let why = "enough of its members answer, or come to; look with `quarry volume show`";
            return Err(VolumeError::NotDecided(why.to_owned()));
        }
        *head = None;
        Ok(())
    }

    /// What one member has is the volume from now on, whatever was acknowledged beside it.
    pub(crate) async fn decide(&self, name: &str, device: DeviceId) -> Result<(), VolumeError> {
        let row = self.not_elsewhere(name).await?;
        if !row.configuration.all().any(|member| member == device) {
            return Err(VolumeError::NotDecided("this is no member of it".to_owned()));
        }
        // Of the others there may be none left: it has what it was before it was filled, or what it was filled with.
        let counted = row.configuration.counts(device);
        self.ask_anew(&row).await?;
        // Waited for: clients that come meanwhile have its place for a moment, too.
        let head = self.place(row.id).head.lock().await.clone().ok_or_else(taken_over)?;
        let wanted = u8::try_from(Self::members_of(&row)).unwrap_or(u8::MAX);
        self.change(row.id, |now| now.wanted = now.wanted.max(wanted)).await?;
        tracing::warn!(volume = %row.name, %device, counted, "an operator decides which member is the volume");
        if !head.decide(device).await? {
            let why = "this member does not answer or has nothing, or another decision is being committed; look again with `quarry volume show`";
            return Err(VolumeError::NotDecided(why.to_owned()));
        }
        for _ in 0..TRIES {
            match head.condition() {
                Condition::Serving => return Ok(()),
                Condition::Stopped(why) => return Err(why.into()),
                Condition::Attaching | Condition::Undecided(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        let why = "the decision is being committed, and not known here yet; look with `quarry volume show` before you decide again";
        Err(VolumeError::NotDecided(why.to_owned()))
    }
}
