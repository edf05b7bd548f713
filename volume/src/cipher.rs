//! Encryption of a volume's blocks: AES-256-XTS, a key for each volume, wrapped by a key that the nodes of a cluster share.
//!
//! ```text
//! wrapped key  u8 what = 1 | check of the wrapping key, 8 B | AES-KW (RFC 3394) of 64 B, 72 B: XTS's data key, then its tweak key
//! ```
//!
//! A unit of XTS is a block of 4 KiB; its number is the block's in the volume.
//!
//! Invariant: what goes to the log of an encrypted volume is ciphertext; the plain bytes end in the head's memory. So what members,
//! audit, cleaner and other nodes see is ciphertext, and checksums are over it.
//! Invariant: a volume's key is written wrapped, and no other way. The wrapping key is handed in, and written nowhere here.
//! Invariant: a snapshot and a clone have their volume's key, so that a block reads the same through each of them.
//! Invariant: a key that was damaged, or wrapped by another key than is known, is refused and never used.

use std::sync::{Arc, PoisonError, RwLock};

use aes::Aes256;
use aes::cipher::consts::U16;
use aes::cipher::inout::InOutBuf;
use aes::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};
use aes_kw::KekAes256;
use quarry_engine::block::BLOCK_LENGTH;

/// Bytes of a volume's key: two of AES-256.
pub const KEY_BYTES: usize = 64;
/// Bytes of a key that wraps others.
pub const WRAPPING_BYTES: usize = 32;
/// Bytes of a wrapped key.
pub const WRAPPED_BYTES: usize = 1 + CHECK_BYTES + KEY_BYTES + 8;
const CHECK_BYTES: usize = 8;
/// AES-256-XTS, wrapped by AES-KW.
const WHAT: u8 = 1;
/// Bytes of an AES block.
const UNIT: usize = 16;

/// Why a volume's bytes cannot be made or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    /// No key to wrap with.
    #[error("this node has no key for encrypted volumes: bring volumes.key from another node of the cluster")]
    NoKey,
    /// Wrapped by a key that is not here.
    #[error("this node has not the key {0}: bring volumes.key from a node that has it")]
    Foreign(KeyName),
    /// Not what was written.
    #[error("the volume's wrapped key is damaged")]
    Damaged,
}

/// What tells keys that wrap others apart, and nothing else about them: a block of zeroes, encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(pub [u8; CHECK_BYTES]);

impl KeyName {
    /// That of a key.
    #[must_use]
    pub fn of(key: &[u8; WRAPPING_BYTES]) -> Self {
        let mut block = aes::Block::default();
        Aes256::new(key.into()).encrypt_block(&mut block);
        Self(*block.first_chunk().expect("a block is longer"))
    }
}

impl std::fmt::Display for KeyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A volume's key as it is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WrappedKey(pub [u8; WRAPPED_BYTES]);

impl std::fmt::Debug for WrappedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WrappedKey")
    }
}

impl WrappedKey {
    /// Which key wrapped it.
    #[must_use]
    pub fn wrapped_by(&self) -> KeyName {
        let [_, rest @ ..] = &self.0;
        KeyName(*rest.first_chunk().expect("it is longer"))
    }
}

type WrappingKey = [u8; WRAPPING_BYTES];

/// Keys that wrap those of volumes: the first wraps, all unwrap. Its clones are the same ring: what becomes of one becomes of all.
#[derive(Clone, Default)]
pub struct KeyRing(Arc<RwLock<Vec<WrappingKey>>>);

impl std::fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KeyRing").field(&self.keys().len()).finish()
    }
}

impl KeyRing {
    /// Of these keys.
    #[must_use]
    pub fn new(keys: Vec<WrappingKey>) -> Self {
        Self(Arc::new(RwLock::new(keys)))
    }

    /// Its keys, for who keeps them.
    #[must_use]
    pub fn keys(&self) -> Vec<WrappingKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What its keys are called.
    #[must_use]
    pub fn names(&self) -> Vec<KeyName> {
        self.keys().iter().map(KeyName::of).collect()
    }

    /// Has these keys from now on.
    pub fn replace(&self, keys: Vec<WrappingKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn named(&self, name: KeyName) -> Result<WrappingKey, CipherError> {
        self.keys().into_iter().find(|key| KeyName::of(key) == name).ok_or(CipherError::Foreign(name))
    }

    /// Wraps a volume's new key, which is random.
    pub fn wrap(&self, key: &[u8; KEY_BYTES]) -> Result<WrappedKey, CipherError> {
        Ok(wrap(self.keys().first().ok_or(CipherError::NoKey)?, key))
    }

    /// The same by the key of a name.
    pub fn wrap_by(&self, name: KeyName, key: &[u8; KEY_BYTES]) -> Result<WrappedKey, CipherError> {
        Ok(wrap(&self.named(name)?, key))
    }

    /// The same volume's key, wrapped by the key of a name. What comes of it is the same each time.
    pub fn rewrap(&self, name: KeyName, wrapped: &WrappedKey) -> Result<WrappedKey, CipherError> {
        self.wrap_by(name, &self.unwrap(wrapped)?)
    }

    fn unwrap(&self, wrapped: &WrappedKey) -> Result<[u8; KEY_BYTES], CipherError> {
        let [what, rest @ ..] = &wrapped.0;
        let (_, inner) = rest.split_first_chunk::<CHECK_BYTES>().ok_or(CipherError::Damaged)?;
        if *what != WHAT {
            return Err(CipherError::Damaged);
        }
        let key = KekAes256::from(self.named(wrapped.wrapped_by())?).unwrap_vec(inner);
        key.ok().and_then(|key| key.try_into().ok()).ok_or(CipherError::Damaged)
    }

    /// The cipher of a volume.
    pub fn open(&self, wrapped: &WrappedKey) -> Result<Cipher, CipherError> {
        Ok(Cipher::new(&self.unwrap(wrapped)?))
    }
}

fn wrap(wrapping: &WrappingKey, key: &[u8; KEY_BYTES]) -> WrappedKey {
    let wrapped = KekAes256::from(*wrapping).wrap_vec(key).expect("its length is a multiple of eight");
    let whole = [&[WHAT][..], &KeyName::of(wrapping).0, &wrapped].concat();
    WrappedKey(whole.try_into().expect("a wrapped key is eight bytes longer"))
}

/// AES-256-XTS (IEEE 1619) with a volume's key.
#[derive(Clone)]
pub struct Cipher {
    data: Aes256,
    tweak: Aes256,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cipher")
    }
}

impl Cipher {
    fn new(key: &[u8; KEY_BYTES]) -> Self {
        let (data, tweak) = key.split_at(WRAPPING_BYTES);
        Self { data: Aes256::new(data.into()), tweak: Aes256::new(tweak.into()) }
    }

    /// Encrypts whole blocks in their place; `first`: the number of the first in the volume.
    pub fn encrypt(&self, first: u64, blocks: &mut [u8]) {
        for (block, number) in blocks.chunks_exact_mut(BLOCK_LENGTH).zip(first..) {
            self.unit(number, block, |block| self.data.encrypt_blocks_inout(units(block)));
        }
    }

    /// As [`Cipher::encrypt`], back.
    pub fn decrypt(&self, first: u64, blocks: &mut [u8]) {
        for (block, number) in blocks.chunks_exact_mut(BLOCK_LENGTH).zip(first..) {
            self.unit(number, block, |block| self.data.decrypt_blocks_inout(units(block)));
        }
    }

    fn unit(&self, number: u64, block: &mut [u8], turn: impl Fn(&mut [u8])) {
        let mut first = aes::Block::from(u128::from(number).to_le_bytes());
        self.tweak.encrypt_block(&mut first);
        let first = u128::from_le_bytes(first.into());
        whiten(first, block);
        turn(block);
        whiten(first, block);
    }
}

fn units(block: &mut [u8]) -> InOutBuf<'_, '_, aes::Block> {
    let (units, rest) = InOutBuf::from(block).into_chunks::<U16>();
    assert!(rest.is_empty(), "a block is whole units");
    units
}

/// Adds the tweak of each unit to it.
fn whiten(first: u128, block: &mut [u8]) {
    let mut tweak = first;
    for unit in block.chunks_exact_mut(UNIT) {
        for (byte, other) in unit.iter_mut().zip(tweak.to_le_bytes()) {
            *byte ^= other;
        }
        // Times x in the field of 2^128 elements.
        tweak = tweak << 1 ^ if tweak >> 127 == 1 { 0x87 } else { 0 };
    }
}

#[cfg(test)]
#[path = "cipher_tests.rs"]
mod tests;
