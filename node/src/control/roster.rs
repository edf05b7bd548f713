//! Users of the cluster as operators see and change them: `GET` and `POST /cluster/users` on the admin listener.
//!
//! ```text
//! {"do": "set", "name": "ACCOUNT:USER", "secret": "...", "groups": [".admin"]}
//! {"do": "set", "name": "USER", "secret": "...", "project": "PROJECT", "roles": ["admin"]}
//! {"do": "remove", "name": "..."}
//! ```
//!
//! Invariant: whoever changes users is on the node's own machine.
//! Invariant: no answer has a secret.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::people::{People, Person, V1Person, project_key, project_value, user_key, v1_key};
use crate::auth::{Verifier, derived_id};
use crate::hidden::Hidden;

/// Longest name, group or role.
const MAX_TEXT: usize = 255;
/// Most groups or roles of a user.
const MAX_LIST: usize = 64;

/// A user as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shown {
    /// `account:user`, or a Keystone user's name.
    pub(crate) name: String,
    /// Of a v1 user.
    #[serde(default)]
    pub(crate) groups: Vec<String>,
    /// Of a Keystone user: role names by project name.
    #[serde(default)]
    pub(crate) roles: BTreeMap<String, Vec<String>>,
}

/// What shall change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Edit {
    /// Make a user, or change one; what is not given stays.
    Set {
        name: String,
        secret: Option<Hidden>,
        groups: Option<Vec<String>>,
        project: Option<String>,
        roles: Option<Vec<String>>,
    },
    /// Remove one. Its account stays.
    Remove { name: String },
}

/// A row, and what it shall be.
type Change = (Vec<u8>, Option<Vec<u8>>);

/// All users.
pub(crate) fn shown(people: &People) -> Vec<Shown> {
    let v1 = |(name, person): (&String, &V1Person)| Shown {
        name: name.clone(),
        groups: person.groups.clone(),
        roles: BTreeMap::new(),
    };
    let named = |id: &String| people.projects.get(id).unwrap_or(id).clone();
    let user = |person: &Person| Shown {
        name: person.name.clone(),
        groups: Vec::new(),
        roles: person.roles.iter().map(|(id, roles)| (named(id), roles.clone())).collect(),
    };
    people.v1_users.iter().map(v1).chain(people.users.values().map(user)).collect()
}

impl Edit {
    /// The rows that it changes, in the order in which they shall be written. Takes milliseconds where a secret is given.
    pub(crate) fn rows(&self, people: &People) -> Result<Vec<Change>, &'static str> {
        match self {
            Self::Remove { name } => remove(people, name).map(|key| vec![(key, None)]),
            Self::Set { name, secret, groups, project, roles } => {
                let lists = groups.iter().chain(roles);
                let texts = lists.clone().flatten().chain(project).chain([name]);
                if lists.clone().any(|list| list.len() > MAX_LIST) || !texts.clone().all(|text| is_fit(text))
                {
                    return Err("names have 1 to 255 characters, no control characters; a list at most 64");
                }
                if secret.as_ref().is_some_and(|secret| secret.is_empty()) {
                    return Err("an empty key is none");
                }
                let verifier = secret.as_ref().map(|secret| Verifier::of(secret));
                match name.split_once(':') {
                    Some(_) if project.is_some() || roles.is_some() => Err("a v1 user has groups, no roles"),
                    Some((account, user)) if account.is_empty() || user.is_empty() => {
                        Err("a v1 user is ACCOUNT:USER")
                    }
                    Some(_) => Ok(vec![set_v1(people, name, verifier, groups.as_deref())?]),
                    None if groups.is_some() => Err("a Keystone user has roles in a project, no groups"),
                    None => set_user(people, name, verifier, project.as_deref(), roles.as_deref()),
                }
            }
        }
    }
}

fn is_fit(text: &str) -> bool {
    (1..=MAX_TEXT).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn remove(people: &People, name: &str) -> Result<Vec<u8>, &'static str> {
    if people.v1_users.contains_key(name) {
        return Ok(v1_key(name));
    }
    let user = people.users.iter().find(|(_, person)| person.name == name);
    user.map(|(id, _)| user_key(id)).ok_or("the cluster has no such user")
}

fn set_v1(
    people: &People,
    name: &str,
    verifier: Option<Verifier>,
    groups: Option<&[String]>,
) -> Result<Change, &'static str> {
    let known = people.v1_users.get(name);
    let verifier = verifier.or_else(|| known.map(|known| known.verifier.clone()));
    let groups = groups.map_or_else(|| known.map_or_else(Vec::new, |k| k.groups.clone()), <[_]>::to_vec);
    let person = V1Person { groups, verifier: verifier.ok_or("a new user needs a key")? };
    Ok((v1_key(name), Some(person.encode())))
}

fn set_user(
    people: &People,
    name: &str,
    verifier: Option<Verifier>,
    project: Option<&str>,
    roles: Option<&[String]>,
) -> Result<Vec<Change>, &'static str> {
    let known = people.users.iter().find(|(_, person)| person.name == name);
    let id = known.map_or_else(|| derived_id("user", name), |(id, _)| id.clone());
    let mut rows = Vec::new();
    let mut person = match (known, verifier) {
        (Some((_, person)), Some(verifier)) => Person { verifier, ..person.clone() },
        (Some((_, person)), None) => person.clone(),
        (None, Some(verifier)) => {
            let (default_project, roles) = (None, BTreeMap::new());
            Person { name: name.to_owned(), default_project, roles, verifier }
        }
        (None, None) => return Err("a new user needs a password"),
    };
    match (project, roles) {
        (Some(project), roles) => {
            let there = people.projects.iter().find(|(_, name)| *name == project).map(|(id, _)| id.clone());
            let of = there.clone().unwrap_or_else(|| derived_id("project", project));
            if there.is_none() {
                rows.push((project_key(&of), Some(project_value(project))));
            }
            match roles.unwrap_or(&["member".to_owned()]) {
                [] => drop(person.roles.remove(&of)),
                roles => drop(person.roles.insert(of.clone(), roles.to_vec())),
            }
            person.default_project.get_or_insert(of);
        }
        (None, Some(_)) => return Err("roles are those in a project"),
        (None, None) => {}
    }
    if person.default_project.as_ref().is_some_and(|project| !person.roles.contains_key(project)) {
        person.default_project = person.roles.keys().next().cloned();
    }
    rows.push((user_key(&id), Some(person.encode())));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(people: &mut People, edit: &str) -> Result<usize, &'static str> {
        let edit: Edit = serde_json::from_str(edit).unwrap();
        let rows = edit.rows(people)?;
        let many = rows.len();
        for (key, value) in rows {
            assert_eq!(people.may_write(&key, value.as_deref()), Ok(()));
            match value {
                Some(value) => people.take(&key[2..], &value).unwrap(),
                None if key.starts_with(b"kuv") => {
                    people.v1_users.remove(std::str::from_utf8(&key[3..]).unwrap());
                }
                None => drop(people.users.remove(std::str::from_utf8(&key[3..]).unwrap())),
            }
        }
        Ok(many)
    }

    #[test]
    fn what_is_not_given_stays() {
        let mut people = People::default();
        let secret: Edit =
            serde_json::from_str(r#"{"do":"set","name":"test:a","secret":"hunter2"}"#).unwrap();
        assert!(!format!("{secret:?}").contains("hunter2"));
        let new = r#"{"do":"set","name":"test:a","secret":"s","groups":[".admin"]}"#;
        assert_eq!(apply(&mut people, new), Ok(1));
        assert_eq!(apply(&mut people, r#"{"do":"set","name":"test:a","secret":"t"}"#), Ok(1));
        let user = &people.v1_users["test:a"];
        assert!(user.verifier.knows("t") && user.groups == [".admin"]);
        assert_eq!(apply(&mut people, r#"{"do":"set","name":"test:a","groups":[]}"#), Ok(1));
        assert!(people.v1_users["test:a"].verifier.knows("t") && people.v1_users["test:a"].groups.is_empty());
        assert_eq!(apply(&mut people, r#"{"do":"remove","name":"test:a"}"#), Ok(1));
        assert!(shown(&people).is_empty());
    }

    #[test]
    fn a_keystone_user_has_roles_in_projects_that_are_made_as_needed() {
        let mut people = People::default();
        let new = r#"{"do":"set","name":"ann","secret":"s","project":"one","roles":["admin","member"]}"#;
        assert_eq!(apply(&mut people, new), Ok(2));
        assert_eq!(apply(&mut people, r#"{"do":"set","name":"ann","project":"two"}"#), Ok(2));
        let seen = shown(&people);
        let roles = &seen[0].roles;
        assert_eq!((roles["one"].len(), roles["two"].as_slice()), (2, &["member".to_owned()][..]));
        assert_eq!(apply(&mut people, r#"{"do":"set","name":"ann","project":"one","roles":[]}"#), Ok(1));
        let person = people.users.values().next().unwrap();
        assert_eq!(person.default_project.as_ref(), person.roles.keys().next());
        assert!(!serde_json::to_string(&shown(&people)).unwrap().contains("secret"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut people = People::default();
        for edit in [
            r#"{"do":"set","name":"a:b"}"#,
            r#"{"do":"set","name":":b","secret":"s"}"#,
            r#"{"do":"set","name":"a:b","secret":"s","project":"p"}"#,
            r#"{"do":"set","name":"a","secret":"s","groups":["g"]}"#,
            r#"{"do":"set","name":"a","secret":"s","roles":["r"]}"#,
            r#"{"do":"set","name":"a","secret":""}"#,
            r#"{"do":"set","name":"","secret":"s"}"#,
            r#"{"do":"set","name":"a\nb:c","secret":"s"}"#,
            r#"{"do":"remove","name":"a"}"#,
        ] {
            assert!(apply(&mut people, edit).is_err(), "{edit}");
        }
    }
}
