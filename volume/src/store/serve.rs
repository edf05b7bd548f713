//! Commands of NBD clients on a device.
//!
//! Invariant: every command has an outcome of its kind.

use quarry_engine::block::BLOCK_BYTES;

use super::device::{Device, Piece, Stretch};
use super::error::VolumeError;
use crate::nbd::limits::MAX_EXTENTS;
use crate::nbd::{Command, Context, Errno, Extent, Outcome, Part, allocation, difference};

impl Device {
    /// Carries out a command. Must be driven to its end.
    pub async fn carry_out(&self, command: Command) -> Outcome {
        match self.attempt(command).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let errno = Errno::from(&error);
                if errno == Errno::Io {
                    tracing::error!(%error, "serve a block request");
                }
                Outcome::Failed(errno)
            }
        }
    }

    async fn attempt(&self, command: Command) -> Result<Outcome, VolumeError> {
        match command {
            Command::Read { offset, length } => {
                let pieces = self.read(offset, length.into()).await?;
                return Ok(Outcome::Data(pieces.into_iter().map(part).collect()));
            }
            Command::Write { offset, data, durable: false } => self.write(offset, data).await?,
            Command::Write { offset, data, durable: true } => self.write_through(offset, data).await?,
            Command::Flush => self.flush().await?,
            Command::Trim { offset, length, durable } => {
                // Parts of blocks as well: the protocol asks for less, but a hole in a file of nbdfuse is to read as zeroes.
                self.zero(offset, length, false).await?;
                self.flush_if(durable).await?;
            }
            Command::WriteZeroes { offset, length, allocate, fast, durable } => {
                let aligned = offset.is_multiple_of(BLOCK_BYTES) && length.is_multiple_of(BLOCK_BYTES);
                if fast && (allocate || !aligned) {
                    return Ok(Outcome::Failed(Errno::Unsupported));
                }
                self.zero(offset, length, allocate).await?;
                self.flush_if(durable).await?;
            }
            Command::Cache { .. } => {}
            Command::BlockStatus { offset, length, contexts, one: _ } => {
                let mut all = Vec::with_capacity(contexts.len());
                for context in &contexts {
                    let stretches = match context {
                        Context::Allocation => self.stretches(offset, length, MAX_EXTENTS).await?,
                        Context::Difference(snapshot) => {
                            self.changes(snapshot, offset, length, MAX_EXTENTS).await?
                        }
                    };
                    all.push(stretches.into_iter().map(|stretch| extent(context, stretch)).collect());
                }
                return Ok(Outcome::Status(all));
            }
        }
        Ok(Outcome::Done)
    }

    async fn flush_if(&self, wanted: bool) -> Result<(), VolumeError> {
        if wanted { self.flush().await } else { Ok(()) }
    }
}

pub(super) fn part(piece: Piece) -> Part {
    match piece {
        Piece::Data(data) => Part::Data(data),
        Piece::Zeroes(zeroes) => Part::Hole(u32::try_from(zeroes).expect("reads are short")),
    }
}

pub(super) fn extent(context: &Context, stretch: Stretch) -> Extent {
    let status = match context {
        Context::Allocation if stretch.hole => allocation::HOLE | allocation::ZERO,
        Context::Allocation => 0,
        Context::Difference(_) if stretch.hole => 0,
        Context::Difference(_) => difference::CHANGED,
    };
    Extent { length: stretch.bytes, status }
}
