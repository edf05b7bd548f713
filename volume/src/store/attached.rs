//! A volume or snapshot as a device of bytes, whichever kind it is: for who copies volumes, makes them, and reads them back.

use bytes::{Bytes, BytesMut};

use super::device::{Piece, Stretch, joined};
use super::error::VolumeError;
use super::replicated_serve::Attached;
use crate::head::Until;
use crate::member::Refusal;

impl Attached {
    /// The bytes of a range, in pieces that cover it in order.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<Piece>, VolumeError> {
        match self {
            Self::Own(device) => device.read(offset, length).await,
            Self::Shared(device) => device.read(offset, length).await,
            Self::Elsewhere(snapshot) => snapshot.read(offset, length).await,
        }
    }

    /// The bytes of a range in one buffer.
    pub async fn read_whole(&self, offset: u64, length: u64) -> Result<BytesMut, VolumeError> {
        match self {
            Self::Own(device) => device.read_whole(offset, length).await,
            Self::Shared(device) => device.read_whole(offset, length).await,
            Self::Elsewhere(snapshot) => Ok(joined(snapshot.read(offset, length).await?)),
        }
    }

    /// What takes space in a range of whole blocks, from its beginning on: at most so many stretches, which need not reach its end.
    pub async fn stretches(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<Stretch>, VolumeError> {
        match self {
            Self::Own(device) => device.stretches(offset, length, most).await,
            Self::Shared(device) => device.stretches(offset, length, most).await,
            Self::Elsewhere(snapshot) => snapshot.stretches(offset, length, most).await,
        }
    }

    /// Writes bytes; the next flush makes them durable.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        match self {
            Self::Own(device) => device.write(offset, data).await,
            Self::Shared(device) => device.write(offset, data, Until::Written).await,
            Self::Elsewhere(_) => Err(Refusal::NotBegun.into()),
        }
    }

    /// Zeroes a range; whole blocks of it take no space.
    pub async fn zero(&self, offset: u64, length: u64) -> Result<(), VolumeError> {
        match self {
            Self::Own(device) => device.zero(offset, length, false).await,
            Self::Shared(device) => device.zero(offset, length, Until::Written).await,
            Self::Elsewhere(_) => Err(Refusal::NotBegun.into()),
        }
    }

    /// All writes that were answered are durable when this returns.
    pub async fn flush(&self) -> Result<(), VolumeError> {
        match self {
            Self::Own(device) => device.flush().await,
            Self::Shared(device) => device.flush().await,
            Self::Elsewhere(_) => Ok(()),
        }
    }
}
