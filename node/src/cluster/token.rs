//! Join tokens: what a machine needs to become a node, in one word.
//!
//! ```text
//! quarry-join-BASE64URL(version 1 | fingerprint of the authority, 32 | id, 8 | secret, 16 | address)
//! ```
//!
//! Invariant: a token is good once, and until its time is over; it is taken before anything is signed for it.
//! Invariant: the secret is not kept where the token was made, only its hash.
//! Invariant: the fingerprint is how a machine knows whom it gives the secret to.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::identity::{self, Files, IdentityError};
use crate::durable_file;
use crate::storage::random_bytes;

/// What every token begins with.
const PREFIX: &str = "quarry-join-";
const VERSION: u8 = 1;
/// Tokens given out and not used, at most.
const MAX_TOKENS: usize = 1024;
/// Longest text that is looked at.
const MAX_TEXT: usize = 512;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// Of the authority's certificate.
    pub(crate) fingerprint: [u8; 32],
    pub(crate) id: TokenId,
    pub(crate) secret: [u8; 16],
    /// Where to join.
    pub(crate) address: SocketAddr,
}

/// Names a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TokenId(pub(crate) [u8; 8]);

/// What is kept of a token that was given out.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    /// Unix seconds.
    expires: u64,
    /// BLAKE3 of the secret.
    hash: String,
}

/// Why a token is not good.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// Its text.
    #[error("found something that is no token; allowed: the word that `quarry cluster token` prints, whole")]
    Text,
    /// Unknown, used, or with a wrong secret.
    #[error("the token is not known: it was used, or made by another node; make a new one")]
    Unknown,
    /// Too late.
    #[error("the token is expired; make a new one")]
    Expired,
    /// Too many.
    #[error("{MAX_TOKENS} tokens wait to be used; remove some from {}", .0.display())]
    TooMany(PathBuf),
    /// Files.
    #[error(transparent)]
    Files(#[from] IdentityError),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("address", &self.address).finish_non_exhaustive()
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = self.address.to_string();
        let bytes =
            [&[VERSION][..], &self.fingerprint, &self.id.0, &self.secret, address.as_bytes()].concat();
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = Some(text).filter(|text| text.len() <= MAX_TEXT);
        let bytes = text.and_then(|text| URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok());
        let bytes = bytes.ok_or(TokenError::Text)?;
        let parse = || {
            let (version, rest) = bytes.split_first()?;
            let (fingerprint, rest) = rest.split_first_chunk::<32>()?;
            let (id, rest) = rest.split_first_chunk::<8>()?;
            let (secret, address) = rest.split_first_chunk::<16>()?;
            let address = std::str::from_utf8(address).ok()?.parse().ok()?;
            (*version == VERSION).then_some(Self {
                fingerprint: *fingerprint,
                id: TokenId(*id),
                secret: *secret,
                address,
            })
        };
        parse().ok_or(TokenError::Text)
    }
}

impl TokenId {
    fn file(self, tokens: &Path) -> PathBuf {
        tokens.join(hex::encode(self.0))
    }
}

/// The fingerprint of a certificate.
pub(crate) fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// Makes a token that is good for `life` from `now` on.
pub(crate) fn give(
    data: &Path,
    address: SocketAddr,
    now: Duration,
    life: Duration,
) -> Result<Token, TokenError> {
    let files = Files::of(data);
    let authority = identity::read_certificate(&files.authority)?;
    super::authority::make_directory(&files)?;
    if clean(&files.tokens, now)? >= MAX_TOKENS {
        return Err(TokenError::TooMany(files.tokens));
    }
    let token = Token {
        fingerprint: fingerprint(&authority),
        id: TokenId(random_bytes()),
        secret: random_bytes(),
        address,
    };
    let given =
        Given { expires: (now + life).as_secs(), hash: blake3::hash(&token.secret).to_hex().to_string() };
    let file = token.id.file(&files.tokens);
    let text = toml::to_string(&given).map_err(|e| IdentityError::invalid(&file, e))?;
    identity::write(&file, &text)?;
    Ok(token)
}

/// Takes a token: good once.
pub(crate) fn take(data: &Path, id: TokenId, secret: &[u8], now: Duration) -> Result<(), TokenError> {
    let file = id.file(&Files::of(data).tokens);
    let given = match read(&file) {
        Err(IdentityError::Missing(_)) => return Err(TokenError::Unknown),
        other => other?,
    };
    // Compared in constant time.
    let hash = blake3::Hash::from_hex(&given.hash).map_err(|e| IdentityError::invalid(&file, e))?;
    if hash != blake3::hash(secret) {
        return Err(TokenError::Unknown);
    }
    if given.expires <= now.as_secs() {
        return Err(TokenError::Expired);
    }
    // Whoever removes it has it.
    match std::fs::remove_file(&file) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(TokenError::Unknown),
        Err(error) => return Err(IdentityError::file(&file)(error).into()),
    }
    durable_file::sync_directory(&file).map_err(IdentityError::file(&file))?;
    Ok(())
}

fn read(file: &Path) -> Result<Given, IdentityError> {
    let text = identity::read(file)?;
    let text = String::from_utf8(text).map_err(|e| IdentityError::invalid(file, e))?;
    toml::from_str(&text).map_err(|e| IdentityError::invalid(file, e.message()))
}

/// Removes expired tokens; how many are left.
fn clean(tokens: &Path, now: Duration) -> Result<usize, IdentityError> {
    let mut left = 0;
    for entry in std::fs::read_dir(tokens).map_err(IdentityError::file(tokens))? {
        let file = entry.map_err(IdentityError::file(tokens))?.path();
        let over = read(&file).is_ok_and(|given| given.expires <= now.as_secs());
        if over {
            match std::fs::remove_file(&file) {
                // Another command clears away too.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.map_err(IdentityError::file(&file))?,
            }
        } else {
            left += 1;
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        let address = "[2001:db8::1]:7000".parse().unwrap();
        Token { fingerprint: [1; 32], id: TokenId([2; 8]), secret: [3; 16], address }
    }

    #[test]
    fn a_token_is_one_word_and_reads_back() {
        let text = token().to_string();
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)), "{text}");
        assert_eq!(text.parse::<Token>().unwrap(), token());
        for cut in 0..text.len() {
            let parsed = text[..cut].parse::<Token>();
            assert!(!parsed.is_ok_and(|parsed| parsed == token()), "{cut}");
        }
        for bad in [
            "",
            "quarry-join-",
            "x",
            &format!("{text}{}", "A".repeat(600)),
            &text.replace("quarry", "Quarry"),
        ] {
            assert!(matches!(bad.parse::<Token>(), Err(TokenError::Text)), "{bad}");
        }
    }

    #[test]
    fn a_token_is_good_once_and_in_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        super::super::authority::init(data, quarry_engine::disk::format::superblock::ClusterId([7; 16]))
            .unwrap();
        let now = super::super::authority::unix_now();
        let (address, life) = ("127.0.0.1:7000".parse().unwrap(), Duration::from_secs(60));
        let token = give(data, address, now, life).unwrap();
        let file = token.id.file(&Files::of(data).tokens);
        assert!(!std::fs::read_to_string(&file).unwrap().contains(&hex::encode(token.secret)));
        assert!(matches!(take(data, token.id, &[0; 16], now), Err(TokenError::Unknown)));
        assert!(matches!(take(data, token.id, &token.secret, now + life), Err(TokenError::Expired)));
        take(data, token.id, &token.secret, now).unwrap();
        assert!(matches!(take(data, token.id, &token.secret, now), Err(TokenError::Unknown)));
        // Expired ones are cleared away when the next is made.
        let first = give(data, address, now, life).unwrap();
        let second = give(data, address, now + life * 2, life).unwrap();
        assert!(!first.id.file(&Files::of(data).tokens).exists());
        assert!(second.id.file(&Files::of(data).tokens).exists());
    }

    /// One found the file, and then not any more: it was told of a file that cannot be read.
    #[test]
    fn of_many_who_show_a_token_at_once_one_is_let_in_and_the_others_hear_that_it_was_used() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        super::super::authority::init(data, quarry_engine::disk::format::superblock::ClusterId([7; 16]))
            .unwrap();
        let (now, address) = (super::super::authority::unix_now(), "127.0.0.1:7000".parse().unwrap());
        for _ in 0..100 {
            let token = give(data, address, now, Duration::from_secs(60)).unwrap();
            let told: Vec<_> = std::thread::scope(|scope| {
                let tries = (0..4).map(|_| scope.spawn(|| take(data, token.id, &token.secret, now)));
                let tries: Vec<_> = tries.collect();
                tries.into_iter().map(|one| one.join().unwrap()).collect()
            });
            assert_eq!(told.iter().filter(|result| result.is_ok()).count(), 1);
            let others = told.into_iter().filter_map(Result::err);
            others.for_each(|error| assert!(matches!(error, TokenError::Unknown), "{error}"));
        }
    }

    /// Two commands at the same moment: one found gone what the other had just cleared away, and failed.
    #[test]
    fn tokens_are_made_by_many_at_once_while_old_ones_are_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        super::super::authority::init(data, quarry_engine::disk::format::superblock::ClusterId([7; 16]))
            .unwrap();
        let (now, address) = (super::super::authority::unix_now(), "127.0.0.1:7000".parse().unwrap());
        let life = Duration::from_secs(60);
        for _ in 0..100 {
            give(data, address, now, life).unwrap();
        }
        let later = now + life * 2;
        std::thread::scope(|scope| {
            let made: Vec<_> = (0..8).map(|_| scope.spawn(|| give(data, address, later, life))).collect();
            for token in made {
                token.join().unwrap().unwrap();
            }
        });
    }
}
