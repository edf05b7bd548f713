//! What a cluster keeps of a key or password: enough to know it again, and not enough to say it.
//!
//! Invariant: a secret cannot be read from what is kept of it; each guess costs all rounds.
//! Invariant: comparing takes a time that depends on neither side.

use std::num::NonZeroU32;

use quarry_engine::disk::format::bytes::{Put, Reader, Truncated};
use ring::pbkdf2;

use crate::storage::random_bytes;

/// Rounds of new verifiers: a login costs milliseconds, once at each node while it runs.
const ROUNDS: NonZeroU32 = NonZeroU32::new(20_000).expect("more than none");
/// Most rounds that are believed: a row may not stop a node.
const MAX_ROUNDS: u32 = 1_000_000;

/// PBKDF2 (RFC 8018) of a secret, with HMAC-SHA-256.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Verifier {
    rounds: NonZeroU32,
    salt: [u8; 16],
    hash: [u8; 32],
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    /// Of a secret; takes milliseconds.
    pub(crate) fn of(secret: &str) -> Self {
        let mut made = Self { rounds: ROUNDS, salt: random_bytes(), hash: [0; 32] };
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &made.salt, secret.as_bytes(), &mut made.hash);
        made
    }

    /// One that is of no secret that anybody knows.
    pub(crate) fn decoy() -> Self {
        Self { rounds: ROUNDS, salt: random_bytes(), hash: random_bytes() }
    }

    /// Whether it is of this secret; takes milliseconds.
    pub(crate) fn knows(&self, secret: &str) -> bool {
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::verify(algorithm, self.rounds, &self.salt, secret.as_bytes(), &self.hash).is_ok()
    }

    /// The same for equal verifiers alone.
    pub(crate) fn text(&self) -> String {
        hex::encode([&self.salt[..], &self.hash].concat())
    }

    /// Appends it: rounds as a varint, salt 16 B, hash 32 B.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.put_varint(u64::from(self.rounds.get()));
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(&self.hash);
    }

    /// Reads one; `None` when it is none.
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Option<Self>, Truncated> {
        let rounds = u32::try_from(r.varint()?).ok().filter(|rounds| *rounds <= MAX_ROUNDS);
        let (salt, hash) = (r.array()?, r.array()?);
        Ok(rounds.and_then(NonZeroU32::new).map(|rounds| Self { rounds, salt, hash }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_known_again_and_no_other() {
        let one = Verifier::of("secret");
        assert!(one.knows("secret") && !one.knows("secret2") && !one.knows(""));
        assert_ne!(one, Verifier::of("secret"), "salted");
        let mut bytes = Vec::new();
        one.put(&mut bytes);
        let again = Verifier::read(&mut Reader::new(&bytes)).unwrap().unwrap();
        assert!(again == one && again.knows("secret"));
        assert!(!bytes.windows(6).any(|part| part == b"secret"));
        assert!(!format!("{one:?}").contains(char::is_numeric));
    }

    #[test]
    fn more_rounds_than_a_node_can_bear_are_none() {
        for rounds in [0, u64::from(MAX_ROUNDS) + 1, u64::MAX] {
            let mut bytes = Vec::new();
            bytes.put_varint(rounds);
            bytes.extend_from_slice(&[0; 48]);
            assert_eq!(Verifier::read(&mut Reader::new(&bytes)), Ok(None));
        }
    }
}
