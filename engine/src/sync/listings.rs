//! What listings say of a version that a device has which was away, and no primary.

use crate::catalog::Stamp;
use crate::object::{BoxFuture, Result};

/// The listings, as far as anti-entropy needs them.
pub trait Listings: Send + Sync {
    /// Whether a version of the device may be what its name stands for. False: it was replaced or deleted, or its container is gone. An
    /// error: nobody can tell now.
    fn may_stand(&self, stamp: Stamp) -> BoxFuture<'static, Result<bool>>;
}
