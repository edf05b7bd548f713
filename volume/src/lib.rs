//! Block volumes: where a byte lies, what a member promises, volumes on disks, and the NBD protocol.
//!
//! Invariant: knows no HTTP. Decisions (`head`, `member`, `geometry`, `nbd`) read no clock, disk or socket; `store` acts on them.

mod cipher;
mod geometry;
pub mod head;
mod member;
pub mod nbd;
pub mod pace;
pub mod store;

pub use cipher::{
    Cipher, CipherError, KEY_BYTES, KeyName, KeyRing, WRAPPED_BYTES, WRAPPING_BYTES, WrappedKey,
};
pub use geometry::{
    BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNK_BYTES, ChunkId, Geometry, GeometryError, MAX_VOLUME_BYTES, Run,
    SLICE_BYTES, SliceId, SplitError,
};
pub use member::{Action, Answer, Event, Fence, MAX_WAITING, Member, Position, Refusal, Token};
pub use quarry_engine::block::{
    Content, EXTENT_VERSION, Extent, ExtentError, MAX_EXTENT_BYTES, MIN_EXTENT_BYTES, VolumeId,
    block_checksum,
};
