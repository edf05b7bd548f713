//! The listings of a store, asked for versions of one of its disks.
//!
//! | the version | may stand |
//! |---|---|
//! | its listing was not told of it yet, as far as the disk knows | yes |
//! | a tombstone | no: nobody has what it hides |
//! | its container is gone, or its line, or that names another body | no |
//! | its line is there | yes |
//! | its record cannot be read | yes: nobody can tell, and it costs no more than its room |

use std::sync::Arc;

use crate::catalog::{self, ObjectMeta, Stamp};
use crate::disk::DiskHandle;
use crate::object::{BoxFuture, Error, ObjectPath, Replica, Result, Store};
use crate::sync::Listings;

/// Lines of versions of a disk.
pub(crate) struct Listed {
    disk: DiskHandle,
    local: Arc<dyn Replica>,
    store: Store,
}

impl Listed {
    pub(crate) fn new(disk: DiskHandle, local: Arc<dyn Replica>, store: Store) -> Self {
        Self { disk, local, store }
    }
}

impl Listings for Listed {
    fn may_stand(&self, stamp: Stamp) -> BoxFuture<'static, Result<bool>> {
        let untold = catalog::awaits_line(self.disk.index(), &stamp.hash);
        let (record, store) = (self.local.open(stamp.hash), self.store.clone());
        Box::pin(async move {
            if untold? {
                return Ok(true);
            }
            if stamp.deleted {
                return Ok(false);
            }
            let path = match record.await {
                Ok(Some(opened)) => {
                    let view = opened.record.view();
                    ObjectMeta::decode(view.meta, view.sequence).map(|meta| meta.path)
                }
                // It was replaced meanwhile: whatever stands now is judged in the next round.
                Ok(None) => return Ok(true),
                Err(Error::Corrupt { .. }) => return Ok(true),
                Err(error) => return Err(error),
            };
            match path {
                Ok(path) => is_listed(&store, &path, stamp).await,
                Err(_) => Ok(true),
            }
        })
    }
}

async fn is_listed(store: &Store, path: &ObjectPath, stamp: Stamp) -> Result<bool> {
    let line = store.inner.line(path).await?;
    let here = store.inner.key(path, &line) == Some(stamp.hash);
    Ok(line.container.is_some() && line.at.is_some() && here)
}
