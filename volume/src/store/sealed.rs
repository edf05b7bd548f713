//! Between what clients see of an encrypted volume and what members have.

use bytes::{Bytes, BytesMut};
use quarry_engine::block::BLOCK_BYTES;

use super::device::Piece;
use crate::cipher::Cipher;

/// What members have of whole blocks that a client wrote at an offset.
pub(super) fn sealed(cipher: Option<&Cipher>, offset: u64, data: Bytes) -> Bytes {
    let Some(cipher) = cipher else { return data };
    let mut blocks = data.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    cipher.encrypt(offset / BLOCK_BYTES, &mut blocks);
    blocks.freeze()
}

/// What clients see of pieces that members have from an offset on.
pub(super) fn opened(cipher: Option<&Cipher>, offset: u64, pieces: Vec<Piece>) -> Vec<Piece> {
    let Some(cipher) = cipher else { return pieces };
    let mut next = offset / BLOCK_BYTES;
    let open = |piece| match piece {
        Piece::Data(data) => {
            let mut blocks = data.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            cipher.decrypt(next, &mut blocks);
            next += blocks.len() as u64 / BLOCK_BYTES;
            Piece::Data(blocks.freeze())
        }
        Piece::Zeroes(zeroes) => {
            next += zeroes / BLOCK_BYTES;
            Piece::Zeroes(zeroes)
        }
    };
    pieces.into_iter().map(open).collect()
}
