//! Who exists: users, projects and roles, as the configuration lists them and the cluster has them.
//!
//! Invariant: never changes; what the cluster changes makes another directory.
//! Invariant: where the cluster has a user or project, what the configuration says of it does not count.
//! Invariant: keys and passwords are compared in constant time, also for users that do not exist.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hmac::{Hmac, Mac};
use quick_cache::sync::Cache;
use sha2::Sha256;

use super::Verifier;
use super::roll::{self, Roll};
use crate::config;
use crate::control::people::{People, Person, V1Person};
use crate::hidden::Hidden;
use crate::papers::Paper;
use crate::swift::Caller;

/// Reseller prefixes of accounts; the first is where users of v1 auth live.
pub(crate) const ACCOUNT_PREFIX: &str = "AUTH_";
/// Accounts that also want a service's token.
pub(crate) const SERVICE_PREFIX: &str = "SERVICE_";

/// Secrets that a node remembers to have verified.
const PROVEN: usize = 4096;

/// What is known of a key or password.
#[derive(Debug)]
enum Known {
    /// As a configuration has it.
    Clear(config::Secret),
    /// As the cluster has it.
    Kept(Verifier),
}

/// A user of v1 auth.
#[derive(Debug)]
pub(crate) struct V1User {
    /// `account:user`.
    pub(crate) name: String,
    /// Account without prefix.
    pub(crate) account: String,
    /// As the object API knows it. Groups as Swift's tempauth spells them: account, account:user, groups, owned accounts.
    pub(crate) caller: Caller,
    key: Known,
}

/// A Keystone user.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) domain: String,
    pub(crate) default_project: Option<String>,
    /// Role names by project id, as they are listed.
    roles: HashMap<String, Vec<String>>,
    password: Known,
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
    compare_key: Hidden<[u8; 32]>,
    /// Compared with for users that do not exist, where verifying takes long.
    decoy: Option<Verifier>,
    /// Digests of secrets that were verified: verifying takes long once.
    proven: Arc<Cache<[u8; 32], ()>>,
    /// All that the identity API knows.
    roll: Roll,
}

/// The lists given to a directory contradict one another.
#[derive(Debug, thiserror::Error)]
#[error("user or project {0:?} is listed in two files")]
pub(crate) struct ListedTwice(String);

impl Directory {
    /// Joins lists that were validated one by one.
    pub(crate) fn new(lists: &[&config::Auth]) -> Result<Self, ListedTwice> {
        let mut directory = Self::empty();
        for list in lists {
            directory.add(list)?;
        }
        Ok(directory)
    }

    /// The users of test suites, those of a cluster, and those that are listed here and that it does not have.
    pub(crate) fn shared(test: Option<&config::Auth>, people: &People, listed: &config::Auth) -> Self {
        let mut directory = Self::empty();
        if !people.v1_users.is_empty() || !people.users.is_empty() {
            directory.decoy = Some(Verifier::decoy());
        }
        let known = |_: ListedTwice| tracing::trace!("what came first counts");
        test.map_or(Ok(()), |test| directory.add(test)).unwrap_or_else(known);
        for (name, person) in &people.v1_users {
            directory.add_v1_person(name, person).unwrap_or_else(known);
        }
        let project = |(id, name): (&String, &String)| Project { id: id.clone(), name: name.clone() };
        directory.projects.extend(people.projects.iter().map(project));
        directory.users.extend(people.users.iter().map(|(id, person)| User::of(id, person)));
        listed.v1_users.iter().for_each(|user| directory.add_v1(user).unwrap_or_else(known));
        listed.projects.iter().for_each(|project| directory.add_project(project).unwrap_or_else(known));
        listed.users.iter().for_each(|user| directory.add_user(user).unwrap_or_else(known));
        directory
    }

    fn empty() -> Self {
        let mut compare_key = Hidden([0; 32]);
        getrandom::fill(&mut *compare_key).expect("the operating system has randomness");
        let (v1, users, projects) = (HashMap::new(), Vec::new(), Vec::new());
        let proven = Arc::new(Cache::new(PROVEN));
        Self { v1, users, projects, compare_key, decoy: None, proven, roll: Roll::default() }
    }

    /// With what the identity API was told, and what `before` has verified.
    pub(crate) fn told(mut self, region: &str, papers: &[Arc<Paper>], before: Option<&Self>) -> Self {
        if let Some(before) = before {
            self.compare_key.clone_from(&before.compare_key);
            self.proven = Arc::clone(&before.proven);
        }
        let mut roll = Roll::new(region);
        for project in &self.projects {
            roll.list_project(&project.id, &project.name);
        }
        for user in &self.users {
            roll.list_user(&user.id, &user.name, user.default_project.as_deref(), user.roles.iter());
        }
        roll.tell(papers);
        for paper in papers.iter().filter(|paper| roll::text(paper, "kind") == "user") {
            let Some(password) = kept(paper) else { continue };
            let id = roll::text(paper, "id");
            self.users.retain(|user| user.id != id);
            let default = Some(roll::text(paper, "default_project_id")).filter(|project| !project.is_empty());
            self.users.push(User {
                id: id.to_owned(),
                name: roll::text(paper, "name").to_owned(),
                domain: roll::text(paper, "domain_id").to_owned(),
                default_project: default.map(str::to_owned),
                roles: HashMap::new(),
                password,
            });
            self.decoy.get_or_insert_with(Verifier::decoy);
        }
        self.roll = roll;
        self
    }

    /// All that the identity API knows.
    pub(crate) fn roll(&self) -> &Roll {
        &self.roll
    }

    fn add(&mut self, list: &config::Auth) -> Result<(), ListedTwice> {
        list.v1_users.iter().try_for_each(|user| self.add_v1(user))?;
        list.projects.iter().try_for_each(|project| self.add_project(project))?;
        list.users.iter().try_for_each(|user| self.add_user(user))
    }

    fn add_v1(&mut self, user: &config::V1User) -> Result<(), ListedTwice> {
        let groups: Vec<String> = user.groups.iter().map(toml::Spanned::get_ref).cloned().collect();
        self.put_v1(user.account.get_ref(), v1_name(user), &groups, Known::Clear(user.key.clone()))
    }

    fn add_v1_person(&mut self, name: &str, person: &V1Person) -> Result<(), ListedTwice> {
        let account = name.split(':').next().unwrap_or(name);
        self.put_v1(account, name.to_owned(), &person.groups, Known::Kept(person.verifier.clone()))
    }

    fn put_v1(&mut self, account: &str, name: String, of: &[String], key: Known) -> Result<(), ListedTwice> {
        let account = account.to_owned();
        let has = |wanted: &str| of.iter().any(|group| group == wanted);
        let mut groups = vec![account.clone(), name.clone()];
        groups.extend(of.iter().filter(|group| *group != ".admin").cloned());
        if has(".admin") {
            groups.extend([ACCOUNT_PREFIX, SERVICE_PREFIX].map(|prefix| format!("{prefix}{account}")));
        }
        let caller = Caller {
            user: name.clone(),
            user_id: String::new(),
            account: format!("{ACCOUNT_PREFIX}{account}"),
            groups,
            roles: Vec::new(),
            owner: has(".admin"),
            reseller_admin: has(".reseller_admin"),
            reseller_reader: has(".reseller_reader"),
            service: false,
        };
        match self.v1.entry(name.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => Err(ListedTwice(name)),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(V1User { name, account, caller, key });
                Ok(())
            }
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
        if self.user(&id).is_some() || self.user_named(&name, roll::DOMAIN).is_some() {
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
        let password = Known::Clear(user.password.clone());
        let domain = roll::DOMAIN.to_owned();
        self.users.push(User { id, name, domain, default_project, roles, password });
        Ok(())
    }

    /// The v1 user `account:user`, if the key is right.
    pub(crate) fn v1_login(&self, name: &str, key: &str) -> Option<&V1User> {
        let user = self.v1.get(name);
        self.same(name, user.map(|user| &user.key), key).then_some(user).flatten()
    }

    /// The Keystone user, if the password is right.
    pub(crate) fn password_login(&self, user: Option<&User>, password: &str) -> bool {
        self.same(user.map_or("", |user| &user.id), user.map(|user| &user.password), password)
    }

    /// Whether the secret of an application credential is right.
    pub(crate) fn credential_login(&self, paper: Option<&Paper>, secret: &str) -> bool {
        let known = paper.and_then(kept);
        self.same(paper.map_or("", |paper| roll::text(paper, "id")), known.as_ref(), secret)
    }

    /// The v1 user `account:user`.
    pub(crate) fn v1(&self, name: &str) -> Option<&V1User> {
        self.v1.get(name)
    }

    /// A Keystone user by id.
    pub(crate) fn user(&self, id: &str) -> Option<&User> {
        self.users.iter().find(|user| user.id == id)
    }

    /// A Keystone user by name, in its domain.
    pub(crate) fn user_named(&self, name: &str, domain: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name && user.domain == domain)
    }

    /// A listed project by id.
    fn project(&self, id: &str) -> Option<&Project> {
        self.projects.iter().find(|project| project.id == id)
    }

    /// A listed project by name.
    fn project_named(&self, name: &str) -> Option<&Project> {
        self.projects.iter().find(|project| project.name == name)
    }

    /// Whether `given` is the secret of `whose`, in a time that depends on neither.
    fn same(&self, whose: &str, secret: Option<&Known>, given: &str) -> bool {
        let verifier = match secret {
            Some(Known::Kept(verifier)) => Some(verifier),
            Some(Known::Clear(_)) => None,
            None => self.decoy.as_ref(),
        };
        if let Some(verifier) = verifier {
            let proof = self.digest(&format!("{} {whose} {given}", whose.len()));
            let proof: [u8; 32] = proof.finalize().into_bytes().into();
            if self.proven.get(&proof).is_some() {
                return true;
            }
            let right = verifier.knows(given) && secret.is_some();
            if right {
                self.proven.insert(proof, ());
            }
            return right;
        }
        let clear = match secret {
            Some(Known::Clear(secret)) => secret.0.as_str(),
            _ => "",
        };
        let right = self.digest(clear).verify_slice(&self.digest(given).finalize().into_bytes()).is_ok();
        right && secret.is_some()
    }

    fn digest(&self, text: &str) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&*self.compare_key).expect("HMAC takes keys of any length");
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
    fn of(id: &str, person: &Person) -> Self {
        Self {
            id: id.to_owned(),
            name: person.name.clone(),
            domain: roll::DOMAIN.to_owned(),
            default_project: person.default_project.clone(),
            roles: person.roles.clone().into_iter().collect(),
            password: Known::Kept(person.verifier.clone()),
        }
    }

    /// Changes with the password: ties tokens to it.
    pub(crate) fn fingerprint(&self) -> String {
        fingerprint("user", &self.id, &self.password)
    }
}

/// What is kept of the password in a user's paper.
fn kept(user: &Paper) -> Option<Known> {
    let bytes = hex::decode(roll::text(user, "verifier")).ok()?;
    Verifier::read(&mut quarry_engine::disk::format::bytes::Reader::new(&bytes))
        .ok()
        .flatten()
        .map(Known::Kept)
}

/// Id of a role: Keystone wants one, the name is what counts.
pub(crate) fn role_id(name: &str) -> String {
    derived_id("role", name)
}

fn id_of(kind: &str, given: Option<&toml::Spanned<String>>, name: &str) -> String {
    given.map_or_else(|| derived_id(kind, name), |id| id.get_ref().clone())
}

/// An id that stays the same as long as the name does: 32 hex digits, as Keystone's.
pub(crate) fn derived_id(kind: &str, name: &str) -> String {
    hex::encode(&blake3::hash(format!("quarry {kind} {name}").as_bytes()).as_bytes()[..16])
}

/// `account:user`.
pub(crate) fn v1_name(user: &config::V1User) -> String {
    format!("{}:{}", user.account.get_ref(), user.user.get_ref())
}

/// What a cluster keeps of the users and projects of a list: each with the key of its row. Takes milliseconds for each user
/// of which `wanted` says that it is needed.
pub(crate) fn rows_of(list: &config::Auth, wanted: impl Fn(&[u8]) -> bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    use crate::control::people::{project_key, project_value, user_key, v1_key};
    // Identities are worked out in one place.
    let directory = Directory::shared(None, &People::default(), list);
    let verifier = |known: &Known| match known {
        Known::Clear(secret) => Verifier::of(&secret.0),
        Known::Kept(verifier) => verifier.clone(),
    };
    let mut rows = Vec::new();
    for project in directory.projects.iter().filter(|project| wanted(&project_key(&project.id))) {
        rows.push((project_key(&project.id), project_value(&project.name)));
    }
    for user in list.v1_users.iter().filter(|user| wanted(&v1_key(&v1_name(user)))) {
        let groups = user.groups.iter().map(toml::Spanned::get_ref).cloned().collect();
        let person = V1Person { groups, verifier: Verifier::of(&user.key.0) };
        rows.push((v1_key(&v1_name(user)), person.encode()));
    }
    for user in directory.users.iter().filter(|user| wanted(&user_key(&user.id))) {
        let (name, default_project) = (user.name.clone(), user.default_project.clone());
        let roles: BTreeMap<_, _> = user.roles.clone().into_iter().collect();
        let person = Person { name, default_project, roles, verifier: verifier(&user.password) };
        rows.push((user_key(&user.id), person.encode()));
    }
    rows
}

fn fingerprint(kind: &str, name: &str, secret: &Known) -> String {
    let secret = match secret {
        Known::Clear(secret) => secret.0.clone(),
        Known::Kept(verifier) => verifier.text(),
    };
    let text = format!("quarry {kind} {}:{name}:{secret}", name.len());
    hex::encode(&blake3::hash(text.as_bytes()).as_bytes()[..8])
}
