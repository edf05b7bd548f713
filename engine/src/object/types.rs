//! What the object layer says to its callers: Swift's and S3's common words, no protocol's spelling.

use std::sync::Arc;

pub use crate::catalog::Share;
use crate::clock::Timestamp;

/// Stored headers of an account, container or object: lower-case names, UTF-8 values, sorted by name.
///
/// Opaque to the engine, but for no rule at all: which headers may be stored is the API's decision.
pub type Headers = std::collections::BTreeMap<String, String>;

/// The full name of an object. Never empty in any part.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectPath {
    /// Swift account (Keystone project), with its reseller prefix: `AUTH_test`.
    pub account: Arc<str>,
    /// Container name.
    pub container: Arc<str>,
    /// Object name; may contain slashes.
    pub object: Arc<str>,
}

impl std::fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.account, self.container, self.object)
    }
}

/// An account as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// When it was created.
    pub created: Timestamp,
    /// When its headers last changed.
    pub changed: Timestamp,
    /// Deleted by its reseller and not yet reaped: answers 410.
    pub deleted: bool,
    /// Exact number of containers.
    pub containers: u64,
    /// Exact number of objects in all containers.
    pub objects: u64,
    /// Exact sum of the listed sizes of all objects.
    pub bytes: u64,
    /// What of these is in which storage policy; only policies that have something.
    pub policies: Vec<(u16, Share)>,
    /// Stored headers.
    pub headers: Headers,
}

/// What holds in a container while its index group has no leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IndexPolicy {
    /// Its listing says what stands; nothing can be changed.
    #[default]
    Strict,
    /// The devices say what stands, and changes go on there; the listing follows.
    Eventual,
}

/// A container as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// When it was created.
    pub created: Timestamp,
    /// When its headers last changed (PUT or POST).
    pub changed: Timestamp,
    /// Number of the storage policy; fixed at creation.
    pub policy: u16,
    /// What holds while its index group has no leader.
    pub index: IndexPolicy,
    /// Exact number of objects.
    pub objects: u64,
    /// Exact sum of the sizes of their bodies.
    pub bytes: u64,
    /// Stored headers.
    pub headers: Headers,
}

/// What a listing shows of an object, where that differs from the object itself (large-object manifests).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListedAs {
    /// Bytes shown; counted are those of the body, since what a manifest stands for is counted where it is.
    pub size: Option<u64>,
    /// ETag text shown (may carry parameters such as `; slo_etag=...`).
    pub etag: Option<String>,
    /// Content type shown.
    pub content_type: Option<String>,
}

/// One object version, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Of the newest change, data or headers: Swift's `X-Timestamp`, `Last-Modified`.
    pub timestamp: Timestamp,
    /// Of the data.
    pub data_timestamp: Timestamp,
    /// Bytes of the body.
    pub size: u64,
    /// MD5 of the body.
    pub md5: [u8; 16],
    /// BLAKE3 of the body.
    pub blake3: [u8; 32],
    /// MIME type.
    pub content_type: String,
    /// Unix seconds at which the object expires. An expired object is still returned by the engine until
    /// it is reaped: the API compares with its clock and answers 404.
    pub delete_at: Option<u64>,
    /// How listings show it.
    pub listed: ListedAs,
    /// Stored headers.
    pub headers: Headers,
}

/// What a writer hands over when the last byte is in.
#[derive(Debug, Clone, Default)]
pub struct PutSpec {
    /// MIME type.
    pub content_type: String,
    /// Unix seconds at which the object expires.
    pub delete_at: Option<u64>,
    /// How listings show it.
    pub listed: ListedAs,
    /// Stored headers.
    pub headers: Headers,
    /// Refuse with [`super::Error::EtagMismatch`] and store nothing when the body's MD5 differs.
    pub expect_md5: Option<[u8; 16]>,
    /// Evaluated atomically with the commit.
    pub condition: Condition,
    /// Version time given by the caller (Swift's trusted `X-Timestamp`); the clock's when absent.
    pub timestamp: Option<Timestamp>,
}

/// A condition on the object's current version (RFC 9110 section 13), evaluated atomically with the change.
/// Both must hold. An expired object counts as absent when `now` (Unix seconds) is past its `delete_at`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// If-Match.
    pub if_match: Option<EtagMatch>,
    /// If-None-Match.
    pub if_none_match: Option<EtagMatch>,
}

/// Right-hand side of If-Match and If-None-Match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EtagMatch {
    /// `*`: any current version.
    Any,
    /// One of these MD5 ETags in lower-case hex (no quotes).
    OneOf(Vec<String>),
}

/// A stored object, as told to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// MD5 of the body.
    pub md5: [u8; 16],
    /// Bytes of the body.
    pub size: u64,
    /// Version time.
    pub timestamp: Timestamp,
}

/// What a listing is asked for. All bounds compare names as UTF-8 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Only names that begin so.
    pub prefix: String,
    /// Roll up names that contain this after the prefix into [`Entry::Subdir`]. Empty: no roll-up.
    pub delimiter: String,
    /// Only names after this (before it when reversed). Empty: from the start.
    pub marker: String,
    /// Only names before this (after it when reversed). Empty: to the end.
    pub end_marker: String,
    /// At most this many entries, subdirs counted.
    pub limit: usize,
    /// Descending order.
    pub reverse: bool,
    /// Swift's `path=`: only the pseudo-directory's direct children; overrides prefix and delimiter.
    pub path: Option<String>,
}

/// One line of a listing: a row, or names rolled up at the delimiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry<R> {
    /// A row.
    Row(R),
    /// Rolled-up names: the common prefix, delimiter included.
    Subdir(String),
}

/// A container in an account's listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerRow {
    /// Name.
    pub name: String,
    /// Objects in it.
    pub objects: u64,
    /// Bytes in it.
    pub bytes: u64,
    /// When it was created (Swift shows the time of the last PUT).
    pub changed: Timestamp,
    /// Its storage policy.
    pub policy: u16,
}

/// An object in a container's listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRow {
    /// Name.
    pub name: String,
    /// Listed bytes.
    pub size: u64,
    /// Listed ETag: 32 hex digits, or what [`ListedAs::etag`] said.
    pub etag: String,
    /// MIME type.
    pub content_type: String,
    /// Time of the newest change.
    pub timestamp: Timestamp,
}

/// Whether a PUT made something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It was not there before.
    Created,
    /// It was there; its headers were changed.
    Updated,
}

/// What became of a DELETE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deleted {
    /// It was there and is gone.
    Gone,
    /// It was not there.
    Absent,
    /// A container that still has objects; nothing was changed.
    NotEmpty,
}
