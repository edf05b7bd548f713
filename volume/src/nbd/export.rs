//! What a server offers, and what both sides have agreed on.

use std::sync::Arc;

use super::limits::MAX_PAYLOAD;
use super::wire::feature;

/// The context that says what takes space.
pub(super) const ALLOCATION: &str = "base:allocation";
/// The contexts that say what was written since a snapshot, and the snapshot's name.
pub(super) const DIFFERENCE: &str = "quarry:snapshot-diff:";

/// A volume, or a snapshot, as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its own name, also where the client used another.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// Size.
    pub bytes: u64,
    /// Smallest length and alignment of a request: a power of two up to 64 KiB.
    pub minimum_block: u32,
    /// Length and alignment that cost no reading before writing.
    pub preferred_block: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Seeks cost.
    pub rotational: bool,
    /// Several connections see the same, and a flush on one is a flush of all.
    pub multi_connection: bool,
    /// Only over TLS.
    pub tls_only: bool,
    /// Snapshots from which the difference can be asked for.
    pub snapshots: Vec<Arc<str>>,
}

impl Export {
    /// Panics if the sizes contradict the protocol or one another: our bug.
    pub(super) fn check(&self) {
        let (least, preferred) = (self.minimum_block, self.preferred_block);
        assert!(least.is_power_of_two() && least <= 64 << 10, "minimum block {least}");
        let fits = preferred.is_power_of_two() && preferred >= least.max(512) && preferred <= MAX_PAYLOAD;
        assert!(fits, "preferred block {preferred}");
        assert!(self.bytes.is_multiple_of(least.into()), "{} bytes in blocks of {least}", self.bytes);
    }

    /// The transmission flags. `selectable`: contexts were selected, so that a block status can ask for some of them; a client that only
    /// looks may still select them.
    pub(super) fn features(&self, style: Style, selectable: bool) -> u16 {
        use feature::{
            BLOCK_STATUS_PAYLOAD, CACHE, DF, FAST_ZERO, FLUSH, FUA, HAS_FLAGS, MULTI_CONN, READ_ONLY,
            ROTATIONAL, TRIM, WRITE_ZEROES,
        };
        let when = |condition, flags| if condition { flags } else { 0 };
        HAS_FLAGS
            | FLUSH
            | FUA
            | CACHE
            | when(self.read_only, READ_ONLY)
            | when(!self.read_only, TRIM | WRITE_ZEROES | FAST_ZERO)
            | when(self.rotational, ROTATIONAL)
            | when(self.multi_connection, MULTI_CONN)
            | when(style != Style::Simple, DF)
            | when(style == Style::Extended && selectable, BLOCK_STATUS_PAYLOAD)
    }

    /// All contexts of this export.
    fn contexts(&self) -> impl Iterator<Item = Context> {
        let differences = self.snapshots.iter().map(|name| Context::Difference(name.clone()));
        std::iter::once(Context::Allocation).chain(differences)
    }

    /// The contexts that queries find; `wildcards`: an empty end of a name finds all of them.
    pub(super) fn find_contexts(&self, queries: &[String], wildcards: bool) -> Vec<Context> {
        let finds = |query: &str, name: &str| {
            name == query || (wildcards && query.ends_with(':') && name.starts_with(query))
        };
        let wanted = |context: &Context| {
            // Once for all queries: a client may send thousands, to an export of as many snapshots.
            let name = context.name();
            queries.iter().any(|query| finds(query, &name))
        };
        self.contexts().filter(wanted).collect()
    }

    /// The contexts of this export, however many.
    pub(super) fn all_contexts(&self) -> Vec<Context> {
        self.contexts().collect()
    }
}

/// A kind of metadata that a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Context {
    /// What takes space.
    Allocation,
    /// What was written since the snapshot of this name.
    Difference(Arc<str>),
}

impl Context {
    /// As it stands on the wire.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Allocation => ALLOCATION.to_owned(),
            Self::Difference(snapshot) => format!("{DIFFERENCE}{snapshot}"),
        }
    }
}

/// The form of requests and replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Style {
    /// 28 bytes, and 16 back.
    #[default]
    Simple,
    /// 28 bytes, and chunks back.
    Structured,
    /// 32 bytes and 64-bit lengths both ways, in chunks.
    Extended,
}

/// What a handshake ended with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Which export.
    pub export: Export,
    /// How messages look.
    pub style: Style,
    /// Selected contexts; a context's number on the wire is its place here and one more.
    pub contexts: Vec<Context>,
}

impl Terms {
    pub(super) fn has(&self, feature: u16) -> bool {
        self.export.features(self.style, !self.contexts.is_empty()) & feature != 0
    }
}
