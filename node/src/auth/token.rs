//! Tokens: what they say, how they are sealed, and which were taken back.
//!
//! A token is a Fernet token (<https://github.com/fernet/spec>) over [`Claims`] as JSON: nothing is stored for it, and
//! any node with the key can check it. A v1 token is the same with the prefix `AUTH_tk`. A node alone has its key and the
//! revocations in files; nodes of a cluster have both as rows of the control group.
//! Invariant: claims are believed only from a token that the key authenticates.
//! Invariant: an expired or revoked token is refused, whatever a cache holds.
//! Invariant: revocations are durable before they are answered, and bounded: expired ones are dropped.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};

use fernet::Fernet;
use serde::{Deserialize, Serialize};

use crate::control::people::{Keys, People};
use crate::durable_file;
use crate::hidden::Hidden;

/// Prefix of tokens given out by v1 auth, as Swift's.
pub(crate) const V1_PREFIX: &str = "AUTH_tk";

/// Most revocations remembered: some days longer than their tokens would have been good.
const MAX_REVOKED: usize = 49_152;

/// Longest token that is looked at.
const MAX_TOKEN: usize = 2048;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    /// Of this layout.
    #[serde(rename = "v")]
    pub(crate) version: u8,
    /// Which of the two kinds of user.
    #[serde(rename = "k")]
    pub(crate) kind: Kind,
    /// `account:user`, or a Keystone user's id.
    #[serde(rename = "u")]
    pub(crate) user: String,
    /// Project id of a scoped Keystone token.
    #[serde(rename = "p", skip_serializing_if = "Option::is_none", default)]
    pub(crate) project: Option<String>,
    /// Domain id of a token for a domain.
    #[serde(rename = "d", skip_serializing_if = "Option::is_none", default)]
    pub(crate) domain: Option<String>,
    /// For the whole system.
    #[serde(rename = "s", skip_serializing_if = "std::ops::Not::not", default)]
    pub(crate) system: bool,
    /// Id of the trust that it acts by.
    #[serde(rename = "t", skip_serializing_if = "Option::is_none", default)]
    pub(crate) trust: Option<String>,
    /// Id of the application credential that it was given for.
    #[serde(rename = "c", skip_serializing_if = "Option::is_none", default)]
    pub(crate) credential: Option<String>,
    /// How the user was authenticated.
    #[serde(rename = "m")]
    pub(crate) methods: Vec<String>,
    /// Unix seconds.
    #[serde(rename = "i")]
    pub(crate) issued: u64,
    /// Unix seconds.
    #[serde(rename = "e")]
    pub(crate) expires: u64,
    /// Names this token and those made from it; what is revoked.
    #[serde(rename = "a")]
    pub(crate) audit: String,
    /// Fingerprint of the user's key or password: a changed one ends the tokens.
    #[serde(rename = "f")]
    pub(crate) secret: Hidden,
}

/// Version of [`Claims`] that is written and read.
pub(crate) const CLAIMS_VERSION: u8 = 1;

/// The two kinds of user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Of v1 auth.
    #[serde(rename = "1")]
    V1,
    /// Of Keystone.
    #[serde(rename = "3")]
    Keystone,
}

/// The key or the revocations could not be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// Reading or writing.
    #[error("{}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Content that is not what it must be; replacing it would bring revoked tokens back, or end all tokens.
    #[error("{}: not {expected}; restore it, or remove it (then all tokens given out end)", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What it must be.
        expected: &'static str,
    },
    /// Too many unexpired revocations.
    #[error("{MAX_REVOKED} tokens were revoked of late")]
    Full,
    /// The cluster did not take note of a revocation.
    #[error("tell the cluster: {0}")]
    Cluster(String),
}

/// Seals and opens tokens.
pub(crate) struct Tokens {
    sealers: RwLock<Sealers>,
    revoked: Mutex<HashMap<String, u64>>,
    /// Of a node alone.
    revoked_file: Option<PathBuf>,
}

/// What seals and opens.
enum Sealers {
    /// The key of a node alone.
    One(Fernet),
    /// Those of a cluster.
    Many { keys: Keys, by_number: BTreeMap<u64, Fernet> },
}

impl Sealers {
    fn sealing(&self, now: u64) -> Option<&Fernet> {
        match self {
            Self::One(fernet) => Some(fernet),
            Self::Many { keys, by_number } => by_number.get(&keys.sealing(now)?),
        }
    }

    fn open(&self, sealed: &str) -> Option<Vec<u8>> {
        match self {
            Self::One(fernet) => fernet.decrypt(sealed).ok(),
            Self::Many { by_number, .. } => {
                by_number.values().rev().find_map(|fernet| fernet.decrypt(sealed).ok())
            }
        }
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("revoked_file", &self.revoked_file).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Reads the key and the revocations kept in `data`; makes a key at the first start.
    pub(crate) fn open(data: &Path) -> Result<Self, TokenError> {
        let key_file = data.join("token.key");
        let failed = |file: &Path| {
            let file = file.to_owned();
            move |source| TokenError::File { file, source }
        };
        let key = match std::fs::read_to_string(&key_file) {
            Ok(key) => key,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = Fernet::generate_key();
                durable_file::replace(&key_file, key.as_bytes(), durable_file::PRIVATE)
                    .map_err(failed(&key_file))?;
                key
            }
            Err(error) => return Err(failed(&key_file)(error)),
        };
        let fernet = Fernet::new(key.trim())
            .ok_or(TokenError::Damaged { file: key_file, expected: "a Fernet key" })?;
        let revoked_file = data.join("revoked.json");
        let revoked = match std::fs::read(&revoked_file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|_| TokenError::Damaged {
                file: revoked_file.clone(),
                expected: "a list of revoked tokens",
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => HashMap::new(),
            Err(error) => return Err(failed(&revoked_file)(error)),
        };
        let sealers = RwLock::new(Sealers::One(fernet));
        Ok(Self { sealers, revoked: Mutex::new(revoked), revoked_file: Some(revoked_file) })
    }

    /// Of a cluster; opens and seals nothing until it has [adopted](Self::adopt) keys.
    pub(crate) fn shared() -> Self {
        let sealers = Sealers::Many { keys: Keys::default(), by_number: BTreeMap::new() };
        Self { sealers: RwLock::new(sealers), revoked: Mutex::default(), revoked_file: None }
    }

    /// Takes over the keys and revocations of the cluster. What was revoked here stays so until it expires.
    pub(crate) fn adopt(&self, people: &People, now: u64) {
        use base64::Engine as _;
        let fernet = |(number, key): (&u64, &crate::control::people::Key)| {
            let text = base64::engine::general_purpose::URL_SAFE.encode(key.bytes);
            Fernet::new(&text).map(|fernet| (*number, fernet))
        };
        let by_number = people.keys.0.iter().filter_map(fernet).collect();
        let many = Sealers::Many { keys: people.keys.clone(), by_number };
        *self.sealers.write().unwrap_or_else(PoisonError::into_inner) = many;
        let mut revoked = self.revoked();
        revoked.retain(|_, until| *until > now);
        revoked.extend(people.revoked.iter().map(|(audit, until)| (audit.clone(), *until)));
    }

    fn sealers(&self) -> std::sync::RwLockReadGuard<'_, Sealers> {
        self.sealers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token for some claims; `None` while the cluster's keys are not known.
    pub(crate) fn seal(&self, claims: &Claims) -> Option<String> {
        let json = serde_json::to_vec(claims).expect("claims are plain data");
        let sealed = self.sealers().sealing(claims.issued)?.encrypt(&json);
        let sealed = sealed.trim_end_matches('=');
        Some(match claims.kind {
            Kind::V1 => format!("{V1_PREFIX}{sealed}"),
            Kind::Keystone => sealed.to_owned(),
        })
    }

    /// The claims of a token that is ours, unexpired at `now` (Unix seconds) and not revoked.
    pub(crate) fn open_token(&self, token: &str, now: u64) -> Option<Claims> {
        self.open_late(token, now, 0)
    }

    /// The same of one that may have expired so many seconds ago.
    pub(crate) fn open_late(&self, token: &str, now: u64, late: u64) -> Option<Claims> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (kind, sealed) = match token.strip_prefix(V1_PREFIX) {
            Some(sealed) => (Kind::V1, sealed),
            None => (Kind::Keystone, token),
        };
        let json = self.sealers().open(sealed)?;
        let claims: Claims = serde_json::from_slice(&json).ok()?;
        let fits = claims.version == CLAIMS_VERSION
            && claims.kind == kind
            && now < claims.expires.saturating_add(late);
        (fits && !self.revoked().contains_key(&claims.audit)).then_some(claims)
    }

    /// Takes a token back, and all of its audit id, until then: at a node alone durably, blocking on the file; in a cluster the rows must have
    /// it already.
    pub(crate) fn revoke(&self, audit: &str, until: u64, now: u64) -> Result<(), TokenError> {
        let mut revoked = self.revoked();
        revoked.retain(|_, until| *until > now);
        if revoked.len() >= MAX_REVOKED {
            return Err(TokenError::Full);
        }
        revoked.insert(audit.to_owned(), until);
        let Some(file) = &self.revoked_file else { return Ok(()) };
        let json = serde_json::to_vec(&*revoked).expect("revocations are plain data");
        durable_file::replace(file, &json, durable_file::PRIVATE)
            .map_err(|source| TokenError::File { file: file.clone(), source })
    }

    fn revoked(&self) -> std::sync::MutexGuard<'_, HashMap<String, u64>> {
        self.revoked.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A fresh audit id, in Keystone's form: 16 random bytes in URL-safe base64.
pub(crate) fn audit_id() -> String {
    use base64::Engine as _;
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn claims(kind: Kind) -> Claims {
        Claims {
            version: CLAIMS_VERSION,
            kind,
            user: "test:tester".to_owned(),
            project: None,
            domain: None,
            system: false,
            trust: None,
            credential: None,
            methods: vec!["password".to_owned()],
            issued: NOW,
            expires: NOW + 60,
            audit: audit_id(),
            secret: "f".to_owned().into(),
        }
    }

    #[test]
    fn a_token_opens_to_its_claims_until_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        for kind in [Kind::V1, Kind::Keystone] {
            let token = tokens.seal(&claims(kind)).unwrap();
            assert_eq!(token.starts_with("AUTH_tk"), kind == Kind::V1);
            let opened = tokens.open_token(&token, NOW + 59).unwrap();
            assert_eq!((opened.kind, opened.user.as_str()), (kind, "test:tester"));
            assert_eq!(tokens.open_token(&token, NOW + 60), None, "expired");
        }
    }

    #[test]
    fn a_changed_byte_ends_a_token() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let token = tokens.seal(&claims(Kind::Keystone)).unwrap();
        for at in 0..token.len() - 1 {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(tokens.open_token(&String::from_utf8(bytes).unwrap(), NOW), None, "byte {at}");
        }
        for bad in ["", "AUTH_tk", "gAAAAA", "AUTH_tkgAAAAA", "\u{e4}", &"A".repeat(5000)] {
            assert_eq!(tokens.open_token(bad, NOW), None);
        }
    }

    #[test]
    fn a_token_of_one_kind_is_none_of_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path()).unwrap();
        let keystone = tokens.seal(&claims(Kind::Keystone)).unwrap();
        assert_eq!(tokens.open_token(&format!("AUTH_tk{keystone}"), NOW), None);
        let v1 = tokens.seal(&claims(Kind::V1)).unwrap();
        assert_eq!(tokens.open_token(v1.strip_prefix("AUTH_tk").unwrap(), NOW), None);
    }

    #[test]
    fn the_key_and_revocations_outlive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, revoked) = (claims(Kind::V1), claims(Kind::V1));
        let (kept_token, revoked_token) = {
            let tokens = Tokens::open(dir.path()).unwrap();
            let revoked_token = tokens.seal(&revoked).unwrap();
            tokens.revoke(&revoked.audit, revoked.expires, NOW).unwrap();
            assert_eq!(tokens.open_token(&revoked_token, NOW), None);
            (tokens.seal(&kept).unwrap(), revoked_token)
        };
        let tokens = Tokens::open(dir.path()).unwrap();
        assert_eq!(tokens.open_token(&kept_token, NOW), Some(kept));
        assert_eq!(tokens.open_token(&revoked_token, NOW), None);
        std::fs::write(dir.path().join("revoked.json"), b"{").unwrap();
        assert!(matches!(Tokens::open(dir.path()), Err(TokenError::Damaged { .. })), "never silently empty");
    }
}
