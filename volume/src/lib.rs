//! Block volumes: where a byte lies, how a write is recorded, and what a member promises. Pure so far.
//!
//! Invariant: knows no HTTP. What is decided here reads no clock, disk or socket.

mod geometry;
mod member;
pub mod nbd;
pub mod store;

pub use geometry::{
    BLOCK_BYTES, BLOCKS_PER_CHUNK, CHUNK_BYTES, ChunkId, Geometry, GeometryError, MAX_VOLUME_BYTES, Run,
    SLICE_BYTES, SliceId, SplitError,
};
pub use member::{Action, Answer, Event, Fence, MAX_WAITING, Member, Position, Refusal, Token};
pub use quarry_engine::block::{
    Content, EXTENT_VERSION, Extent, ExtentError, MAX_EXTENT_BYTES, MIN_EXTENT_BYTES, VolumeId,
    block_checksum,
};
