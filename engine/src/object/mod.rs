//! The object layer: accounts, containers and objects over disks, with exact listings.
//!
//! Swift and S3 are two spellings of this layer. A rule (ETag, listing order, conditions, expiry) lives here once.
//! Invariant: every `Ok` of a change is durable on a quorum and visible to every later call.
//! Invariant: engine knows no HTTP: no header is given a meaning here.
//! Invariant: nothing here spawns a task, sleeps or reads a clock but [`crate::clock::Clock`].

mod accounts;
mod agreed;
mod begun;
mod coded;
mod condition;
mod copies;
mod deliver;
mod devices;
mod eventual;
mod fan;
mod finish;
mod fragments;
mod group;
mod hashing;
mod health;
mod in_flight;
mod kept;
mod launch;
pub mod limits;
mod listing;
mod locks;
mod md5;
pub mod names;
mod objects;
mod placement;
mod policy;
mod quorum;
mod race;
mod reader;
mod remake;
mod repair;
mod replica;
mod seats;
mod sight;
mod sources;
mod store;
mod stripes;
mod transfer;
mod types;
mod under_way;
mod upload;
mod uploads;
mod voter;
mod writer;

pub(crate) use accounts::{odd, row_draft};
pub(crate) use deliver::{Delivered, Silent};
pub use fragments::Fragment;
pub(crate) use fragments::is_key_of;
pub use group::{IndexGroup, Leader, Rows, TotalsOf};
pub(crate) use in_flight::InFlight;
pub use launch::Time;
pub use locks::{Claim, Permit};
pub use placement::{Placement, RingPlacement, Spread, UnknownDevice};
pub use policy::{BadPolicies, Code, Keeps, Layout, Policies, Policy};
pub use quorum::{Asked, Tally, Verdict, quorum};
pub(crate) use reader::check_chunk;
pub use reader::{ObjectReader, RangeReader};
pub(crate) use remake::{Remade, Wanted, fragment_of, remake, renumber};
#[cfg(test)]
pub(crate) use replica::Local;
pub use replica::{ANOTHER, BoxFuture, COPY, Draft, Opened, Replica};
#[cfg(test)]
pub(crate) use store::hash_of;
pub(crate) use store::key_of;
pub use store::{Options, Parts, Spawn, Store};
pub(crate) use transfer::draft;
pub use types::*;
pub use voter::Voter;
pub use writer::ObjectWriter;

/// Bytes of a chunk of a large body; a body of at most this many lies in its record.
pub const CHUNK: usize = crate::disk::limits::MAX_DATA;
/// Chunks that a writer has in flight before it waits.
pub const CHUNKS_IN_FLIGHT: usize = 4;
/// Chunks that a reader asks for before they are wanted.
pub const READ_AHEAD: usize = 2;

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
    /// Others have decided about the name since the right to do so was granted, or may have.
    #[error("{}; try again", lost(*.unused))]
    GrantLost {
        /// The change did not come to be, and nobody has seen anything of it.
        unused: bool,
    },
    /// Stored bytes failed verification. Never returned as data.
    #[error("corrupt: {what}")]
    Corrupt {
        /// Where and how.
        what: String,
    },
    /// The lines asked for are decided elsewhere. Callers of the object layer never see this: it is asked there.
    #[error("{0}")]
    Elsewhere(names::Elsewhere),
    /// An edit closure refused the change, or names and headers are longer than a record holds; the text says which.
    #[error("refused: {0}")]
    Refused(String),
}

/// What is known of a change whose grant was lost.
fn lost(unused: bool) -> &'static str {
    if unused {
        "the grant was lost"
    } else {
        "the grant was lost, and nobody can tell what became of the change"
    }
}

/// Result of the object layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<crate::catalog::BadValue> for Error {
    fn from(e: crate::catalog::BadValue) -> Self {
        Self::Corrupt { what: e.to_string() }
    }
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

#[cfg(test)]
pub(crate) mod tests;
