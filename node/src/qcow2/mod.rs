//! Images in the format qcow2, pure: `layout` says what their numbers mean, `read` what is to be read and written to get the disk out of one, `stream` the same while it comes,
//! `pack` makes one of a disk. The layout is QEMU's (docs/interop/qcow2), versions 2 and 3.
//!
//! Invariant: nothing here reads or writes: what is wanted is said, and told.

mod layout;
mod pack;
mod read;
mod stream;

pub use layout::{BadImage, HEADER};
pub use pack::{CLUSTER, MAX_DISK, Map, Plan};
pub use read::{MOST, Piece, Reader, Span, Step};
pub use stream::{Act, Stream};
