//! Compares what the members of a volume have.
//!
//! Invariant: a head of this node ends first; that of another node is left alone.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use quarry_engine::block::FIRST_PLACE;
use quarry_engine::net::{BlockWrite, VolumeAnswer, VolumeCall};
use quarry_volume::Fence;
use quarry_volume::head::Session;
use quarry_volume::store::{Peer, VolumeError};

use super::{PAUSE, Shared};
use crate::control::volumes::Row;

/// How often a member is asked the same: it may be slow, and nobody waits for a volume that is compared.
const TRIES: usize = 6;

/// Rows that members have otherwise.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Compared {
    pub(crate) members: usize,
    pub(crate) blocks: usize,
    pub(crate) different: usize,
}

impl Shared {
    /// Compares each block's place in the order, and its bytes, in each era that somebody sees.
    pub(crate) async fn compare(self: &Arc<Self>, name: &str) -> Result<Compared, VolumeError> {
        let local = self.register.local();
        let row = self.not_elsewhere(name).await?;
        self.detach(name).await?;
        let row = self
            .change(row.id, |row| {
                row.epoch += 1;
                row.head = Some(local);
            })
            .await?;
        let compared = self.compare_members(&row).await;
        // Whoever attached it meanwhile has it.
        let epoch = row.epoch;
        self.change(row.id, |row| {
            if row.epoch == epoch {
                row.head = None;
            }
        })
        .await?;
        compared
    }

    /// Compares, with an epoch that was granted for it.
    async fn compare_members(&self, row: &Row) -> Result<Compared, VolumeError> {
        let fence = Fence { epoch: row.epoch, configuration: row.configuration.version };
        let views = row.views().snapshots;
        let mut tables: Vec<Table> = Vec::new();
        for device in row.configuration.members.iter().copied() {
            tables.push(self.table(Peer { device, volume: row.id }, fence, &views).await?);
        }
        let mut places: HashSet<_> = HashSet::new();
        tables.iter().for_each(|table| places.extend(table.keys().copied()));
        let differs = |place: &&(u32, u16, u8, u32)| {
            let mut all = tables.iter().map(|table| table.get(*place));
            let first = all.next().flatten();
            all.any(|other| other != first)
        };
        let different = places.iter().filter(differs).count();
        Ok(Compared { members: tables.len(), blocks: places.len(), different })
    }

    /// What a member has: of each block, in each era that somebody sees, its write and the hash of its bytes.
    async fn table(&self, peer: Peer, fence: Fence, views: &[u32]) -> Result<Table, VolumeError> {
        let session = match self.ask_again(peer, fence, Session(0), VolumeCall::Promise).await? {
            VolumeAnswer::Promised { session, .. } => Session(session),
            other => return Err(refused(peer, &other)),
        };
        let mut table = Table::new();
        for era in views.iter().copied().chain([u32::MAX]) {
            let mut next = Some(FIRST_PLACE);
            while let Some(from) = next {
                let call = VolumeCall::Rows { from, above: 0, data: true, era, since: 0 };
                let answer = self.ask_again(peer, fence, session, call).await?;
                let VolumeAnswer::Rows { rows, next: behind, data } = answer else {
                    return Err(refused(peer, &answer));
                };
                next = behind;
                enter(&mut table, rows, data);
            }
        }
        Ok(table)
    }

    /// Asks a member what bears being asked twice.
    async fn ask_again(
        &self,
        peer: Peer,
        fence: Fence,
        session: Session,
        call: VolumeCall,
    ) -> Result<VolumeAnswer, VolumeError> {
        for _ in 0..TRIES {
            if let Ok(answer) = self.reach.ask(peer, fence, session, call.clone()).await {
                return Ok(answer);
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(VolumeError::Register(format!("the member on device {} does not answer", peer.device)))
    }
}

fn refused(peer: Peer, answer: &VolumeAnswer) -> VolumeError {
    let device = peer.device;
    tracing::warn!(%device, ?answer, "a member cannot be compared; see the log of its node");
    VolumeError::Register(format!("the member on device {device} refuses to be compared"))
}

/// Of each block in an era its write, and the hash of its bytes.
type Table = BTreeMap<(u32, u16, u8, u32), (u64, u64, [u8; 32])>;

fn enter(table: &mut Table, rows: Vec<BlockWrite>, mut data: bytes::Bytes) {
    for row in rows {
        for nth in 0..row.run.blocks {
            let block = u8::try_from(u16::from(row.run.first) + nth).unwrap_or(u8::MAX);
            let bytes = if row.zeroes { bytes::Bytes::new() } else { data.split_to(data.len().min(4096)) };
            let place = (row.run.slice.0, row.run.chunk.0, block, row.era);
            let hash = *blake3::hash(&bytes).as_bytes();
            table.insert(place, (row.position.epoch, row.position.sequence, hash));
        }
    }
}
