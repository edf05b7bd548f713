//! Commands of NBD clients on a volume, whichever kind it is.
//!
//! Invariant: every command has an outcome of its kind.

use std::sync::Arc;

use super::device::{Device, aligned};
use super::elsewhere::Elsewhere;
use super::error::VolumeError;
use super::replicated::Replicated;
use super::serve::{extent, part};
use crate::head::Until;
use crate::nbd::limits::MAX_EXTENTS;
use crate::nbd::{Command, Context, Errno, Outcome};

impl Replicated {
    async fn attempt(&self, command: Command) -> Result<Outcome, VolumeError> {
        let until = |durable| if durable { Until::Durable } else { Until::Written };
        match command {
            Command::Read { offset, length } => {
                let pieces = self.read(offset, length.into()).await?;
                return Ok(Outcome::Data(pieces.into_iter().map(part).collect()));
            }
            Command::Write { offset, data, durable } => self.write(offset, data, until(durable)).await?,
            Command::Flush => self.flush().await?,
            Command::Trim { offset, length, durable } => {
                // Parts of blocks as well, as of a volume with one member.
                self.zero(offset, length, until(durable)).await?;
            }
            Command::WriteZeroes { offset, length, allocate, fast, durable } => {
                if fast && (allocate || !aligned(offset, length)) {
                    return Ok(Outcome::Failed(Errno::Unsupported));
                }
                if allocate {
                    self.write_zeroes(offset, length, until(durable)).await?;
                } else {
                    self.zero(offset, length, until(durable)).await?;
                }
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
}

/// What an NBD client uses.
#[derive(Debug, Clone)]
pub enum Attached {
    /// A volume, or snapshot, whose one member is here.
    Own(Device),
    /// One with several members.
    Shared(Replicated),
    /// A snapshot of one whose head is at another node.
    Elsewhere(Arc<dyn Elsewhere>),
}

impl Attached {
    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Own(device) => device.bytes(),
            Self::Shared(device) => device.bytes(),
            Self::Elsewhere(snapshot) => snapshot.bytes(),
        }
    }

    /// Carries out a command. Must be driven to its end.
    pub async fn carry_out(&self, command: Command) -> Outcome {
        let done = match self {
            Self::Own(device) => return device.carry_out(command).await,
            Self::Shared(device) => device.attempt(command).await,
            Self::Elsewhere(snapshot) => snapshot.attempt(command).await,
        };
        match done {
            Ok(outcome) => outcome,
            Err(error) => {
                let errno = Errno::from(&error);
                tracing::debug!(%error, "serve a block request");
                Outcome::Failed(errno)
            }
        }
    }
}
