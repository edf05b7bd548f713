//! Who exists: users, projects and roles, as the configuration lists them.
//!
//! Invariant: looked up by name or id in constant time; never changes while the node runs.
//! Invariant: keys and passwords are compared in constant time, also for users that do not exist.

use std::collections::HashMap;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::config;
use crate::swift::Caller;

/// Reseller prefixes of accounts; the first is where users of v1 auth live.
pub(crate) const ACCOUNT_PREFIX: &str = "AUTH_";
/// Accounts that also want a service's token.
pub(crate) const SERVICE_PREFIX: &str = "SERVICE_";

/// A user of v1 auth.
#[derive(Debug)]
pub(crate) struct V1User {
    /// `account:user`.
    pub(crate) name: String,
    /// Account without prefix.
    pub(crate) account: String,
    /// As the object API knows it. Groups as Swift's tempauth spells them: account, account:user, groups, owned accounts.
    pub(crate) caller: Caller,
    key: config::Secret,
}

/// A Keystone user.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) default_project: Option<String>,
    /// Role names by project id.
    pub(crate) roles: HashMap<String, Vec<String>>,
    password: config::Secret,
}

/// A Keystone project.
#[derive(Debug)]
pub(crate) struct Project {
    pub(crate) id: String,
    pub(crate) name: String,
}

/// All users and projects.
#[derive(Debug)]
pub(crate) struct Directory {
    v1: HashMap<String, V1User>,
    users: Vec<User>,
    projects: Vec<Project>,
    /// Compares secrets: fresh in each process, so that timing tells nothing.
    compare_key: [u8; 32],
}

/// The lists given to a directory contradict one another.
#[derive(Debug, thiserror::Error)]
#[error("user or project {0:?} is listed in two files")]
pub(crate) struct ListedTwice(String);

impl Directory {
    /// Joins lists that were validated one by one.
    pub(crate) fn new(lists: &[&config::Auth]) -> Result<Self, ListedTwice> {
        let mut compare_key = [0; 32];
        getrandom::fill(&mut compare_key).expect("the operating system has randomness");
        let mut directory = Self { v1: HashMap::new(), users: Vec::new(), projects: Vec::new(), compare_key };
        for list in lists {
            for user in &list.v1_users {
                directory.add_v1(user)?;
            }
            for project in &list.projects {
                directory.add_project(project)?;
            }
            for user in &list.users {
                directory.add_user(user)?;
            }
        }
        Ok(directory)
    }

    fn add_v1(&mut self, user: &config::V1User) -> Result<(), ListedTwice> {
        let account = user.account.get_ref().clone();
        let name = format!("{account}:{}", user.user.get_ref());
        let has = |wanted: &str| user.groups.iter().any(|group| group.get_ref() == wanted);
        let mut groups = vec![account.clone(), name.clone()];
        groups.extend(
            user.groups.iter().map(toml::Spanned::get_ref).filter(|group| *group != ".admin").cloned(),
        );
        if has(".admin") {
            groups.extend([ACCOUNT_PREFIX, SERVICE_PREFIX].map(|prefix| format!("{prefix}{account}")));
        }
        let caller = Caller {
            user: name.clone(),
            user_id: String::new(),
            account: format!("{ACCOUNT_PREFIX}{account}"),
            groups,
            owner: has(".admin"),
            reseller_admin: has(".reseller_admin"),
            reseller_reader: has(".reseller_reader"),
            service: false,
        };
        let entry = V1User { name: name.clone(), account, caller, key: user.key.clone() };
        match self.v1.insert(name.clone(), entry) {
            None => Ok(()),
            Some(_) => Err(ListedTwice(name)),
        }
    }

    fn add_project(&mut self, project: &config::Project) -> Result<(), ListedTwice> {
        let name = project.name.get_ref().clone();
        let id = id_of("project", project.id.as_ref(), &name);
        if self.project(&id).is_some() || self.project_named(&name).is_some() {
            return Err(ListedTwice(name));
        }
        self.projects.push(Project { id, name });
        Ok(())
    }

    fn add_user(&mut self, user: &config::User) -> Result<(), ListedTwice> {
        let name = user.name.get_ref().clone();
        let id = id_of("user", user.id.as_ref(), &name);
        if self.user(&id).is_some() || self.user_named(&name).is_some() {
            return Err(ListedTwice(name));
        }
        let project_id = |name: &str| self.project_named(name).map(|project| project.id.clone());
        let roles =
            user.roles.iter().filter_map(|(name, roles)| Some((project_id(name.get_ref())?, roles.clone())));
        let roles: HashMap<_, _> = roles.collect();
        let only = || if roles.len() == 1 { roles.keys().next().cloned() } else { None };
        let default_project = match &user.default_project {
            Some(name) => project_id(name.get_ref()),
            None => only(),
        };
        self.users.push(User { id, name, default_project, roles, password: user.password.clone() });
        Ok(())
    }

    /// The v1 user `account:user`, if the key is right.
    pub(crate) fn v1_login(&self, name: &str, key: &str) -> Option<&V1User> {
        let user = self.v1.get(name);
        self.same(user.map(|user| &user.key), key).then_some(user).flatten()
    }

    /// The Keystone user, if the password is right.
    pub(crate) fn password_login(&self, user: Option<&User>, password: &str) -> bool {
        self.same(user.map(|user| &user.password), password)
    }

    /// The v1 user `account:user`.
    pub(crate) fn v1(&self, name: &str) -> Option<&V1User> {
        self.v1.get(name)
    }

    /// All Keystone users.
    pub(crate) fn users(&self) -> &[User] {
        &self.users
    }

    /// All projects.
    pub(crate) fn projects(&self) -> &[Project] {
        &self.projects
    }

    /// A Keystone user by id.
    pub(crate) fn user(&self, id: &str) -> Option<&User> {
        self.users.iter().find(|user| user.id == id)
    }

    /// A Keystone user by name.
    pub(crate) fn user_named(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name)
    }

    /// A project by id.
    pub(crate) fn project(&self, id: &str) -> Option<&Project> {
        self.projects.iter().find(|project| project.id == id)
    }

    /// A project by name.
    pub(crate) fn project_named(&self, name: &str) -> Option<&Project> {
        self.projects.iter().find(|project| project.name == name)
    }

    /// All role names that anyone has, sorted.
    pub(crate) fn roles(&self) -> Vec<&str> {
        let mut roles: Vec<&str> =
            self.users.iter().flat_map(|user| user.roles.values()).flatten().map(String::as_str).collect();
        roles.sort_unstable();
        roles.dedup();
        roles
    }

    /// Whether `given` is the secret, in a time that depends on neither.
    fn same(&self, secret: Option<&config::Secret>, given: &str) -> bool {
        let known = self.digest(secret.map_or("", |secret| &secret.0));
        let right = known.verify_slice(&self.digest(given).finalize().into_bytes()).is_ok();
        right && secret.is_some()
    }

    fn digest(&self, text: &str) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.compare_key).expect("HMAC takes keys of any length");
        mac.update(text.as_bytes());
        mac
    }
}

impl V1User {
    /// Changes with the key: ties tokens to it.
    pub(crate) fn fingerprint(&self) -> String {
        fingerprint("v1", &self.name, &self.key)
    }
}

impl User {
    /// Changes with the password: ties tokens to it.
    pub(crate) fn fingerprint(&self) -> String {
        fingerprint("user", &self.id, &self.password)
    }
}

/// Id of a role: Keystone wants one, the name is what counts.
pub(crate) fn role_id(name: &str) -> String {
    derived_id("role", name)
}

fn id_of(kind: &str, given: Option<&toml::Spanned<String>>, name: &str) -> String {
    given.map_or_else(|| derived_id(kind, name), |id| id.get_ref().clone())
}

/// An id that stays the same as long as the name does: 32 hex digits, as Keystone's.
fn derived_id(kind: &str, name: &str) -> String {
    hex::encode(&blake3::hash(format!("quarry {kind} {name}").as_bytes()).as_bytes()[..16])
}

fn fingerprint(kind: &str, name: &str, secret: &config::Secret) -> String {
    let text = format!("quarry {kind} {}:{name}:{}", name.len(), secret.0);
    hex::encode(&blake3::hash(text.as_bytes()).as_bytes()[..8])
}
