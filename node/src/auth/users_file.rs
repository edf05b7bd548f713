//! The users that a node makes for itself at its first start, and the well-known ones of test suites.
//!
//! Invariant: nothing has a default key: each is drawn from the operating system's randomness.
//! Invariant: a users file is written once, whole, mode 600; an unreadable one is an error, never replaced.

use std::path::{Path, PathBuf};

use crate::config::{Auth, LoadError, Source};
use crate::durable_file;

/// Name of the generated file in the node's data directory.
const FILE: &str = "users.toml";

/// v1 account, user, key and groups of the users that Swift's test suites expect, by convention of its sample
/// configuration. For loopback only.
const TEST_USERS: [(&str, &str, &str, &[&str]); 7] = [
    ("test", "tester", "testing", &[".admin"]),
    ("test", "tester2", "testing2", &[".admin"]),
    ("test", "tester3", "testing3", &[]),
    ("test2", "tester2", "testing2", &[".admin"]),
    ("test5", "tester5", "testing5", &["service"]),
    ("admin", "admin", "admin", &[".admin", ".reseller_admin"]),
    ("admin", "auditor", "admin_ro", &[".reseller_reader"]),
];

/// Why the users could not be read or made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsersError {
    /// The file was refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It could not be written.
    #[error("{}: {source}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The users in `data`; made at the first call: `test:tester` for v1 auth, and `demo` in project `demo` for Keystone.
pub(crate) fn load_or_generate(data: &Path) -> Result<Auth, UsersError> {
    let file = data.join(FILE);
    match file.try_exists() {
        Ok(true) => {}
        Ok(false) => {
            let text = generated();
            durable_file::replace(&file, text.as_bytes(), durable_file::PRIVATE)
                .map_err(|source| UsersError::Write { file: file.clone(), source })?;
            tracing::info!(file = %file.display(), "users and their keys were made; they are in this file");
        }
        Err(source) => return Err(UsersError::Write { file, source }),
    }
    Ok(Auth::load(&file)?)
}

/// What the file of the users in `data` says, if there is one.
pub(crate) fn text(data: &Path) -> Option<String> {
    std::fs::read_to_string(data.join(FILE)).ok()
}

/// The users that a node made which let this one join its cluster.
pub(crate) fn of_founder(data: &Path) -> Result<Option<Auth>, UsersError> {
    let file = crate::cluster::identity::Files::of(data).client;
    match file.try_exists() {
        Ok(true) => Ok(Some(Auth::load(&file)?)),
        Ok(false) => Ok(None),
        Err(source) => Err(UsersError::Write { file, source }),
    }
}

/// The users of Swift's test suites with their well-known keys.
pub(crate) fn test_users() -> Auth {
    let text: String =
        TEST_USERS.iter().map(|(account, user, key, groups)| v1_user(account, user, key, groups)).collect();
    Auth::parse(Source { file: Path::new("test users"), text: &text }).expect("the table above is valid")
}

fn generated() -> String {
    let heading = "# Made by quarry at its first start. Keep it private; edit it as you like.\n";
    let tester = v1_user("test", "tester", &secret(), &[".admin"]);
    let demo = format!(
        "\n[[project]]\nname = \"demo\"\n\n[[user]]\nname = \"demo\"\npassword = \"{}\"\ndefault_project = \"demo\"\n\
         roles = {{ demo = [\"admin\", \"member\"] }}\n",
        secret()
    );
    format!("{heading}{tester}{demo}")
}

fn v1_user(account: &str, user: &str, key: &str, groups: &[&str]) -> String {
    let groups: Vec<_> = groups.iter().map(|group| format!("{group:?}")).collect();
    format!(
        "\n[[v1_user]]\naccount = \"{account}\"\nuser = \"{user}\"\nkey = \"{key}\"\ngroups = [{}]\n",
        groups.join(", ")
    )
}

/// 192 random bits as 48 hex digits: nothing in it needs quoting anywhere.
fn secret() -> String {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_made_once_and_differ_between_nodes() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = load_or_generate(one.path()).unwrap();
        let again = load_or_generate(one.path()).unwrap();
        let other = load_or_generate(two.path()).unwrap();
        assert!(first.v1_users[0].key == again.v1_users[0].key);
        assert!(first.v1_users[0].key != other.v1_users[0].key);
        assert!(first.users[0].password != first.v1_users[0].key);
        assert_eq!(first.v1_users[0].key.0.len(), 48);
    }

    #[test]
    fn a_broken_users_file_is_an_error_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "[[v1_user]]\n").unwrap();
        assert!(load_or_generate(dir.path()).is_err());
        assert_eq!(std::fs::read_to_string(dir.path().join(FILE)).unwrap(), "[[v1_user]]\n");
    }

    #[test]
    fn the_test_users_are_the_reference_suites() {
        assert_eq!(test_users().v1_users.len(), 7);
    }
}
