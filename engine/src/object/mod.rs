//! The object layer: accounts, containers and objects over disks, with exact listings.
//!
//! Swift and S3 are two spellings of this layer. A rule (ETag, listing order, conditions, expiry) lives here once.
//! Invariant: every `Ok` of a change is durable on a quorum and visible to every later call.
//! Invariant: engine knows no HTTP: no header is given a meaning here.

mod types;

pub use types::*;

use bytes::Bytes;
use crate::clock::Timestamp;

/// Why an operation of the object layer was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The account is deleted (and not yet reaped), or absent where it must exist.
    #[error("account not found")]
    NoAccount,
    /// The container does not exist.
    #[error("container not found")]
    NoContainer,
    /// The object does not exist.
    #[error("object not found")]
    NoObject,
    /// A [`Condition`] did not hold.
    #[error("condition not met")]
    ConditionFailed,
    /// The body's MD5 is not the one announced.
    #[error("etag mismatch: body is {actual}")]
    EtagMismatch {
        /// Lower-case hex MD5 of what arrived.
        actual: String,
    },
    /// A newer version exists (the caller gave a timestamp that is not newer).
    #[error("a newer version exists")]
    Superseded,
    /// The disks are above their high-water mark. Deletes still work.
    #[error("no space for client writes")]
    NoSpace,
    /// No quorum of devices can serve this now (failed or overloaded). Nothing half-written is visible.
    #[error("unavailable: {reason}")]
    Unavailable {
        /// For the operator and the client.
        reason: String,
    },
    /// Stored bytes failed verification. Never returned as data.
    #[error("corrupt: {what}")]
    Corrupt {
        /// Where and how.
        what: String,
    },
    /// An edit closure refused the change; the text is the API's own.
    #[error("refused: {0}")]
    Refused(String),
}

/// Result of the object layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Handle to the object layer of this node; clones are cheap.
#[derive(Debug, Clone)]
pub struct Store {}

/// Streams one body into the store. Dropped before [`ObjectWriter::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct ObjectWriter {}

/// An open object version: its facts, and its bytes on demand. What it reads stays readable while it lives,
/// also when the object is overwritten or deleted meanwhile.
#[derive(Debug)]
pub struct ObjectReader {
    /// Facts of the version.
    pub info: ObjectInfo,
}

#[expect(clippy::unused_async, clippy::unimplemented, unused_variables, missing_docs, reason = "signatures first")]
impl Store {
    /// The account, `None` when it never existed or has been reaped.
    pub async fn account(&self, account: &str) -> Result<Option<Account>> { unimplemented!() }
    /// Create the account or change its headers: `edit` sees the current state (under the account's lock) and returns all stored
    /// headers that shall stand afterwards. [`Error::NoAccount`] when it is deleted and not yet reaped.
    pub async fn put_account(&self, account: &str, edit: impl FnOnce(Option<&Account>) -> Result<Headers> + Send) -> Result<Made> { unimplemented!() }
    /// Mark the account deleted; the reaper removes its containers and objects, then the mark.
    pub async fn delete_account(&self, account: &str) -> Result<Deleted> { unimplemented!() }
    /// Containers of an account in name order. [`Error::NoAccount`] when absent.
    pub async fn list_containers(&self, account: &str, listing: &Listing) -> Result<Vec<Entry<ContainerRow>>> { unimplemented!() }

    /// Every account name, in order, from `marker` on (exclusive).
    pub async fn list_accounts(&self, marker: &str, limit: usize) -> Result<Vec<String>> { unimplemented!() }

    /// The container, `None` when absent.
    pub async fn container(&self, account: &str, container: &str) -> Result<Option<Container>> { unimplemented!() }
    /// Create the container (with `policy`) or change its headers; the account is created when absent (with no headers).
    /// `edit` as in [`Store::put_account`].
    pub async fn put_container(&self, account: &str, container: &str, policy: u16, edit: impl FnOnce(Option<&Container>) -> Result<Headers> + Send) -> Result<Made> { unimplemented!() }
    /// Change the headers of an existing container: [`Error::NoContainer`] when absent.
    pub async fn post_container(&self, account: &str, container: &str, edit: impl FnOnce(&Container) -> Result<Headers> + Send) -> Result<()> { unimplemented!() }
    /// Remove an empty container.
    pub async fn delete_container(&self, account: &str, container: &str) -> Result<Deleted> { unimplemented!() }
    /// Objects of a container in name order. [`Error::NoContainer`] when absent.
    pub async fn list_objects(&self, account: &str, container: &str, listing: &Listing) -> Result<Vec<Entry<ObjectRow>>> { unimplemented!() }

    /// Facts of the newest version, `None` when absent. Does not look at the container.
    pub async fn object(&self, path: &ObjectPath) -> Result<Option<ObjectInfo>> { unimplemented!() }
    /// The newest version, open for reading.
    pub async fn open(&self, path: &ObjectPath) -> Result<Option<ObjectReader>> { unimplemented!() }
    /// Begin a body. `size_hint` is the announced length, if any. [`Error::NoContainer`] when the container is absent;
    /// [`Error::NoSpace`] above the high-water mark.
    pub async fn writer(&self, path: &ObjectPath, size_hint: Option<u64>) -> Result<ObjectWriter> { unimplemented!() }
    /// Replace headers, content type and expiry of the newest version, keeping its data. `edit` sees the current version.
    /// [`Error::NoObject`] when absent.
    pub async fn post_object(&self, path: &ObjectPath, edit: impl FnOnce(&ObjectInfo) -> Result<ObjectEdit> + Send) -> Result<Timestamp> { unimplemented!() }
    /// Remove the newest version.
    pub async fn delete_object(&self, path: &ObjectPath, condition: &Condition) -> Result<Deleted> { unimplemented!() }
}

/// What a POST leaves an object with.
#[derive(Debug, Clone, Default)]
pub struct ObjectEdit {
    /// MIME type.
    pub content_type: String,
    /// Unix seconds at which the object expires.
    pub delete_at: Option<u64>,
    /// Stored headers.
    pub headers: Headers,
    /// How listings show it.
    pub listed: ListedAs,
}

#[expect(clippy::unused_async, clippy::unimplemented, unused_variables, missing_docs, reason = "signatures first")]
impl ObjectWriter {
    /// Append bytes to the body; waits while the disks are behind (back-pressure), so memory stays bounded.
    pub async fn write(&mut self, data: Bytes) -> Result<()> { unimplemented!() }
    /// Make the version durable and visible, with its listing row.
    pub async fn commit(self, spec: PutSpec) -> Result<Committed> { unimplemented!() }
}

#[expect(clippy::unused_async, clippy::unimplemented, unused_variables, missing_docs, reason = "signatures first")]
impl ObjectReader {
    /// The bytes of `range`, in pieces of at most 1 MiB, as the consumer asks for them: call [`RangeReader::next`] until `None`.
    /// Panics when the range lies outside `0..info.size`.
    pub fn range(&self, range: std::ops::Range<u64>) -> RangeReader { unimplemented!() }
}

/// Bytes of a range, piece by piece; owns what it needs (`'static`, `Send`).
#[derive(Debug)]
pub struct RangeReader {}

#[expect(clippy::unused_async, clippy::unimplemented, unused_variables, missing_docs, reason = "signatures first")]
impl RangeReader {
    /// The next piece, `None` after the last. Verified: a piece that fails is an error and ends the stream.
    pub async fn next(&mut self) -> Option<Result<Bytes>> { unimplemented!() }
}
