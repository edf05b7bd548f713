//! Storage policies as operators see and change them: `/cluster/policies` on the admin listener.
//!
//! Invariant: a new policy gets the lowest number that is free; no change renumbers one.

use quarry_engine::object::Code;
use serde::{Deserialize, Serialize};

use super::plan;
use super::policies::{self, Kind, Row, Rows};
use super::state::State;

/// A policy as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub(crate) index: u16,
    pub(crate) name: String,
    pub(crate) aliases: Vec<String>,
    /// `3 copies`, `4+2`.
    pub(crate) keeps: String,
    pub(crate) default: bool,
    pub(crate) deprecated: bool,
    /// Version of its ring; `None`: there are too few disks.
    pub(crate) ring: Option<u64>,
}

/// What shall be of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Edit {
    /// Any of its names.
    pub(crate) name: String,
    /// A number of copies, or `K+M`: make it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) keeps: Option<String>,
    /// What it is called from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rename: Option<String>,
    /// All its other names from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) aliases: Option<Vec<String>>,
    /// New containers have it.
    #[serde(default)]
    pub(crate) default: bool,
    /// New containers cannot have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deprecated: Option<bool>,
}

/// `3`, `4+2`.
pub(crate) fn parse_kind(text: &str) -> Result<Kind, String> {
    let bad = || format!("'{text}' is neither a number of copies nor K+M");
    match text.split_once('+') {
        Some((data, parity)) => {
            let (data, parity) = (data.parse().map_err(|_| bad())?, parity.parse().map_err(|_| bad())?);
            Code::new(data, parity).map(Kind::Fragments).ok_or_else(bad)
        }
        None => {
            let copies = text.parse().ok().filter(|n| (1..=policies::MAX_COPIES).contains(n));
            copies.map(Kind::Copies).ok_or_else(bad)
        }
    }
}

/// The policies of the cluster.
pub(crate) fn shown(state: &State) -> Vec<Shown> {
    let Ok(all) = state.policies.policies() else { return Vec::new() };
    let kinds = plan::policies(state);
    let keeps = |index: u16| match kinds.get(&index) {
        Some(Kind::Copies(copies)) => format!("{copies} copies"),
        Some(Kind::Fragments(code)) => format!("{}+{}", code.data, code.parity),
        None => String::new(),
    };
    let show = |policy: &quarry_engine::object::Policy| Shown {
        index: policy.index,
        name: policy.name.clone(),
        aliases: policy.aliases.clone(),
        keeps: keeps(policy.index),
        default: policy.default,
        deprecated: policy.deprecated,
        ring: state.builder_of(policy.index).map(quarry_ring::Builder::version),
    };
    all.iter().map(show).collect()
}

impl Edit {
    /// The rows that it changes.
    pub(crate) fn rows(self, state: &State) -> Result<Vec<super::state::KeyValue>, String> {
        let known = state.policies.policies()?;
        let found = known.named(&self.name).filter(|_| !self.name.is_empty()).map(|policy| policy.index);
        let index = match (found, &self.keeps) {
            (None, Some(_)) => free(&state.policies)?,
            (Some(index), None) => index,
            (Some(_), Some(_)) => return Err(format!("there is a policy '{}' already", self.name)),
            (None, None) => return Err(format!("there is no policy '{}'", self.name)),
        };
        let mut row = match (&self.keeps, state.policies.policies.get(&index)) {
            (None, Some(row)) => row.clone(),
            (None, None) => first_row(state),
            (Some(keeps), _) => {
                Row { deprecated: false, kind: parse_kind(keeps)?, names: vec![self.name.clone()] }
            }
        };
        if let Some(name) = self.rename {
            row.names[0] = name;
        }
        if let Some(aliases) = self.aliases {
            row.names.truncate(1);
            row.names.extend(aliases);
        }
        row.deprecated = self.deprecated.unwrap_or(row.deprecated);
        let mut rows = vec![(policies::policy_key(index), row.encode())];
        if self.default {
            rows.push((policies::default_key(), policies::encode_default(index)));
        }
        Ok(rows)
    }
}

fn free(rows: &Rows) -> Result<u16, String> {
    let mut numbers = 1..quarry_engine::catalog::POLICIES;
    numbers
        .find(|index| !rows.policies.contains_key(index))
        .ok_or_else(|| "no policy number is free".to_owned())
}

/// Of the policy that there is without a row.
fn first_row(state: &State) -> Row {
    let copies = state.settings.map_or(1, |settings| settings.replicas);
    let name = quarry_engine::object::Policy::first().name;
    Row { deprecated: false, kind: Kind::Copies(copies), names: vec![name] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(state: &mut State, edit: Edit) -> Result<(), String> {
        for (key, value) in edit.rows(state)? {
            policies::may_write(state, &key, Some(&value)).unwrap()?;
            assert!(!state.policies.has(&key, &value));
            state.policies.take(&key[2..], &value).map_err(|bad| bad.to_string())?;
            assert!(state.policies.has(&key, &value));
        }
        Ok(())
    }

    fn edit(name: &str) -> Edit {
        Edit { name: name.to_owned(), ..Edit::default() }
    }

    fn keeps(name: &str, keeps: &str) -> Edit {
        Edit { keeps: Some(keeps.to_owned()), ..edit(name) }
    }

    #[test]
    fn policies_are_added_named_and_put_first() {
        let mut state = State::default();
        apply(&mut state, Edit { aliases: Some(vec!["cold".to_owned()]), ..keeps("ec", "4+2") }).unwrap();
        apply(&mut state, Edit { default: true, ..keeps("two", "2") }).unwrap();
        apply(
            &mut state,
            Edit { rename: Some("old".to_owned()), deprecated: Some(true), ..edit("policy-0") },
        )
        .unwrap();
        let names: Vec<_> =
            shown(&state).into_iter().map(|p| (p.index, p.name, p.default, p.deprecated)).collect();
        let expected = [(0, "old", false, true), (1, "ec", false, false), (2, "two", true, false)];
        assert_eq!(names, expected.map(|(index, name, first, old)| (index, name.to_owned(), first, old)));
        assert!(apply(&mut state, keeps("COLD", "3")).is_err(), "there is one of that name");
        assert!(apply(&mut state, edit("none")).is_err());
        assert!(
            apply(&mut state, Edit { deprecated: Some(true), ..edit("two") }).is_err(),
            "it is the default"
        );
    }

    #[test]
    fn what_a_policy_keeps_is_a_number_or_a_code() {
        assert_eq!(parse_kind("3"), Ok(Kind::Copies(3)));
        assert_eq!(parse_kind("8+3").map(Kind::width), Ok(11));
        for bad in ["", "0", "99", "4+", "+2", "0+2", "4+0", "30+9", "a"] {
            assert!(parse_kind(bad).is_err(), "{bad}");
        }
    }
}
