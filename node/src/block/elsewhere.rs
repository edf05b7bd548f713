//! Snapshots of volumes with several members, served by any node: read where the head is. Here are both ends of that.
//!
//! Invariant: no reader takes a volume from a head that answers; one that does not is fenced before this node reads in its place.
//! Invariant: what a reader is told was read while the snapshot was there: what only it saw is given back afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quarry_engine::block::{BLOCK_BYTES, Fence};
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{NodeId, Request, Response, VolumeAnswer, VolumeCall};
use quarry_engine::object::BoxFuture;
use quarry_volume::VolumeId;
use quarry_volume::head::Failure;
use quarry_volume::store::{Attached, Condition, Elsewhere, VolumeError};

use super::shared::{PAUSE, Shared};
use crate::cluster::watch::answers;
use crate::control::volumes::{Row, SnapshotRow};

/// Most bytes of an answer.
const MOST: u64 = 1 << 20;
/// Most blocks that one look at the map takes.
const BLOCKS: usize = 256;
/// How long a head may take to answer.
const WITHIN: Duration = Duration::from_secs(10);
/// How often and how long one is looked for, at least: it may go to another node meanwhile, or not be served yet.
const LOOKS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(30);

/// The first data of a device from a byte on, and where it begins; none before `upto`: that, and no data.
pub(super) async fn first_data(device: &Attached, from: u64, upto: u64) -> Result<(u64, Bytes), VolumeError> {
    let upto = upto.min(device.bytes());
    // Whole blocks.
    let (mut at, end) = (from - from % BLOCK_BYTES, upto.next_multiple_of(BLOCK_BYTES));
    while at < end {
        for stretch in device.stretches(at, end - at, BLOCKS).await? {
            let behind = at + stretch.bytes;
            if stretch.hole {
                at = behind;
                continue;
            }
            let (begins, ends) = (at.max(from), behind.min(upto));
            let data = device.read_whole(begins, ends.saturating_sub(begins).min(MOST)).await?;
            return Ok((begins, data.freeze()));
        }
    }
    Ok((upto, Bytes::new()))
}

/// A snapshot that is read where its volume's head is.
#[derive(Debug)]
struct Frozen {
    shared: Arc<Shared>,
    volume: VolumeId,
    era: u32,
    bytes: u64,
}

impl Elsewhere for Frozen {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn data_from(&self, from: u64, upto: u64) -> BoxFuture<'_, Result<(u64, Bytes), VolumeError>> {
        Box::pin(self.shared.look(self.volume, self.era, from, upto))
    }
}

impl Shared {
    /// What a snapshot sees, wherever the volume's head is.
    pub(crate) async fn view_anywhere(
        self: &Arc<Self>,
        name: &str,
        snapshot: &str,
    ) -> Result<Attached, VolumeError> {
        match self.view(name, snapshot).await {
            Err(VolumeError::InUseAt(..)) => {}
            here => return here.map(Attached::Shared),
        }
        let (row, _) = self.standing(name)?;
        let none = || VolumeError::NoSnapshot(name.to_owned(), snapshot.to_owned());
        let SnapshotRow { era, bytes, .. } = *row.snapshot(snapshot).ok_or_else(none)?;
        Ok(Attached::Elsewhere(Arc::new(Frozen { shared: Arc::clone(self), volume: row.id, era, bytes })))
    }

    /// A volume that has a snapshot of an era, and what that is called.
    fn with_era(&self, id: VolumeId, era: u32) -> Result<(Row, String), VolumeError> {
        let (row, _) = self.row(id)?.ok_or_else(|| VolumeError::NoVolume(hex::encode(id.0)))?;
        let snapshot = row.snapshots.iter().find(|one| one.era == era).map(|one| one.name.clone());
        let snapshot =
            snapshot.ok_or_else(|| VolumeError::NoSnapshot(row.name.clone(), format!("of {era}")))?;
        Ok((row, snapshot))
    }

    /// The first data of a snapshot from a byte on, as this node reads it: its volume's head is here, or nowhere.
    pub(super) async fn tell(
        &self,
        id: VolumeId,
        era: u32,
        from: u64,
        upto: u64,
    ) -> Result<(u64, Bytes), VolumeError> {
        let (row, snapshot) = self.with_era(id, era)?;
        let device = Attached::Shared(self.view_known(&row.name, &snapshot).await?);
        let found = first_data(&device, from, upto).await?;
        self.with_era(id, era)?;
        Ok(found)
    }

    /// The same for another node, which asks again. Nobody waits here for a head that is not served yet: a node has room for few calls of
    /// another.
    pub(super) async fn tell_other(
        &self,
        id: VolumeId,
        era: u32,
        from: u64,
        upto: u64,
    ) -> Result<(u64, Bytes), VolumeError> {
        let (row, _) = self.with_era(id, era)?;
        match self.head_now(&row).map(|head| head.condition()) {
            Some(Condition::Attaching | Condition::Undecided(_)) => Err(Failure::TooFew.into()),
            _ => self.tell(id, era, from, upto).await,
        }
    }

    /// The same, from wherever the head is.
    async fn look(&self, id: VolumeId, era: u32, from: u64, upto: u64) -> Result<(u64, Bytes), VolumeError> {
        let (begun, mut looks, mut last) = (Instant::now(), 0, Failure::Unreadable.into());
        while looks < LOOKS || begun.elapsed() < PATIENCE {
            looks += 1;
            let (row, _) = self.with_era(id, era)?;
            match row.head.filter(|head| *head != self.local()) {
                None => match self.tell(id, era, from, upto).await {
                    Ok(found) => return Ok(found),
                    Err(error) => last = error,
                },
                Some(head) => {
                    if let Some(found) = self.told(head, id, era, from, upto).await {
                        return Ok(found);
                    }
                    if !self.nodes().contains(&head) || !answers(self.net(), head).await {
                        self.seize(&row).await?;
                        continue;
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(last)
    }

    /// What another node says of a snapshot.
    async fn told(
        &self,
        node: NodeId,
        volume: VolumeId,
        era: u32,
        from: u64,
        upto: u64,
    ) -> Option<(u64, Bytes)> {
        let call = VolumeCall::View { era, from, upto };
        let request =
            Request::Volume { device: DeviceId([0; 16]), volume, fence: Fence::default(), session: 0, call };
        match self.net().call(node, request, WITHIN).await {
            Ok(Response::Volume(VolumeAnswer::Copied { at, data })) if at >= from => Some((at, data)),
            other => {
                tracing::debug!(%node, ?other, "read a snapshot at another node");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use quarry_volume::store::Piece;

    use super::*;

    /// Bytes 5 to 9000 and the last block of 32 KiB, so that something begins and ends within blocks.
    #[derive(Debug)]
    struct Sparse;

    impl Elsewhere for Sparse {
        fn bytes(&self) -> u64 {
            32 << 10
        }

        fn data_from(&self, from: u64, upto: u64) -> BoxFuture<'_, Result<(u64, Bytes), VolumeError>> {
            let data = |from: u64, to: u64| Bytes::from(vec![7; usize::try_from(to - from).unwrap()]);
            let found = match from {
                0..12_288 => (from, data(from, upto.min(12_288))),
                28_672.. => (from, data(from, upto)),
                _ if upto > 28_672 => (28_672, data(28_672, upto)),
                _ => (upto, Bytes::new()),
            };
            Box::pin(std::future::ready(Ok(found)))
        }
    }

    #[tokio::test]
    async fn the_first_data_of_a_range_begins_and_ends_within_it() {
        let device = Attached::Elsewhere(Arc::new(Sparse));
        let told = async |from, upto| {
            let (at, data) = first_data(&device, from, upto).await.unwrap();
            (at, data.len())
        };
        assert_eq!(told(0, 32 << 10).await, (0, 12_288));
        assert_eq!(told(5, 9).await, (5, 4));
        assert_eq!(told(12_287, 20_000).await, (12_287, 1));
        assert_eq!(told(12_289, 20_000).await, (20_000, 0));
        assert_eq!(told(12_288, 28_673).await, (28_672, 1));
        assert_eq!(told(30_000, u64::MAX).await, (30_000, 2768));
        assert!(matches!(device.read(12_288, 8192).await.unwrap()[..], [Piece::Zeroes(8192)]));
    }
}
