//! Giving up what a device need not keep.
//!
//! Invariant: a version goes only while it still stands, in the turn in which it was seen; nothing newer is touched.

use bytes::Bytes;

use crate::catalog::{self, Stamp};
use crate::disk::format::record::{Kind, Parts};
use crate::disk::limits::MAX_GROUP_RECORDS;
use crate::disk::{Class, DiskHandle, Durability};
use crate::object::Result;

/// Keeps these versions no longer, where they are still what stands. Nothing is deleted: other devices have them.
pub(crate) async fn evict(disk: &DiskHandle, stamps: &[Stamp]) -> Result<()> {
    let (meta, data) = (&[][..], Bytes::new());
    for some in stamps.chunks(MAX_GROUP_RECORDS) {
        let mut group = Vec::with_capacity(some.len());
        for Stamp { hash, sequence, deleted } in some.iter().copied() {
            let Some(number) = catalog::turn_of(disk.index(), &hash, sequence, deleted)? else { continue };
            let (kind, key, data) = (Kind::Evict, &hash[..], data.clone());
            group.push(disk.record(Parts { kind, deleted, sequence, number, key, meta, data }));
        }
        if !group.is_empty() {
            disk.append(group, Durability::Durable, Class::Delete).await?;
        }
    }
    Ok(())
}
