//! Why a run ended early.

use quarry_engine::disk::{DiskError, OpenError, StartError};
use quarry_engine::index::IndexError;
use quarry_engine::io::DeviceError;

/// A failure of a run; the first ends it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The operating system refused something of the bench's own.
    #[error("{verb}: {source}")]
    Io { verb: &'static str, source: std::io::Error },
    /// A device or file.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Formatting.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Starting a disk.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A running disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The object layer.
    #[error(transparent)]
    Object(#[from] quarry_engine::object::Error),
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A wrong option, or a child that did not do its part.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// Says what was tried when the operating system refused it.
    pub(crate) fn io(verb: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { verb, source }
    }
}
