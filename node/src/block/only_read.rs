//! Exports that are only read: `NAME/ro`, of any volume or snapshot that has an export `NAME`.
//!
//! Invariant: who entered such an export changes nothing: the session refuses every write, trim and zeroing with EPERM, and says so
//! before (NBD_FLAG_READ_ONLY). It shares the volume's head with those who write, and sees what they wrote.

use quarry_volume::nbd::{Export, OptionError};
use quarry_volume::store::Attached;

use super::Exports;
use super::exports::Use;

/// Behind the name of an export that is only read. No volume has a name with a slash.
const SUFFIX: &str = "/ro";

/// The export of a volume that is only read.
pub(crate) fn only_read(export: &str) -> String {
    format!("{export}{SUFFIX}")
}

fn plain(name: &str) -> (&str, bool) {
    name.strip_suffix(SUFFIX).map_or((name, false), |name| (name, true))
}

fn shown(export: Export, read_only: bool) -> Export {
    if read_only { Export { name: only_read(&export.name), read_only, ..export } } else { export }
}

/// What a client is told of an export.
pub(super) async fn look(exports: &Exports, name: &str) -> Result<Export, OptionError> {
    let (name, read_only) = plain(name);
    let found = exports.certainly_of(name, || std::future::ready(exports.look(name))).await?;
    Ok(shown(found, read_only))
}

/// An export to be used.
pub(super) async fn open(exports: &Exports, name: &str) -> Result<(Export, Attached, Use), OptionError> {
    let (name, read_only) = plain(name);
    let (export, device, held) = exports.certainly_of(name, || exports.open(name)).await?;
    Ok((shown(export, read_only), device, held))
}
