//! Static large objects: a stored manifest that stands for the concatenation of its segments.

pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod manifest;
pub(crate) mod put;
pub(crate) mod walk;

/// Where the manifest's object keeps the ETag of the whole, in the stored headers.
pub(crate) const ETAG: &str = "x-object-sysmeta-slo-etag";
/// Where it keeps the size of the whole.
pub(crate) const SIZE: &str = "x-object-sysmeta-slo-size";
