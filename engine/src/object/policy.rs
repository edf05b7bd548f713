//! Storage policies: how an object lies on devices, chosen by its container.
//!
//! Invariant: there is a policy 0 always, numbers and names are given once, and exactly one policy is the default.
//! Invariant: which policy a key belongs to is told by the key ([`crate::catalog::policy_of`]); no two policies share one.

use std::collections::BTreeMap;
use std::sync::Arc;

use quarry_ring::PathHash;

use super::placement::Placement;
use crate::catalog::{POLICIES, policy_of};
use crate::disk::format::record::DeviceId;

/// A body cut into fragments, each on a device of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code {
    /// Fragments that suffice: k.
    pub data: u8,
    /// Devices that may be lost: m.
    pub parity: u8,
}

impl Code {
    /// Most fragments of a body.
    pub const MAX: usize = 32;

    /// `None`: there is no such code.
    #[must_use]
    pub fn new(data: u8, parity: u8) -> Option<Self> {
        let all = usize::from(data) + usize::from(parity);
        (data > 0 && parity > 0 && all <= Self::MAX).then_some(Self { data, parity })
    }

    /// Fragments that suffice.
    #[must_use]
    pub fn k(self) -> usize {
        usize::from(self.data)
    }

    /// All fragments.
    #[must_use]
    pub fn n(self) -> usize {
        usize::from(self.data) + usize::from(self.parity)
    }

    /// Devices that must have a change before the client hears of it.
    #[must_use]
    pub fn quorum(self) -> usize {
        self.k() + 1
    }
}

/// How a policy keeps objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Whole, on as many devices as its ring says.
    Copies,
    /// In fragments.
    Fragments(Code),
}

/// A storage policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its number, below [`POLICIES`].
    pub index: u16,
    /// What clients call it.
    pub name: String,
    /// Other names.
    pub aliases: Vec<String>,
    /// How it keeps objects.
    pub keeps: Keeps,
    /// New containers have it unless they ask for another.
    pub default: bool,
    /// New containers cannot have it.
    pub deprecated: bool,
}

impl Policy {
    /// The one that there is without configuration.
    #[must_use]
    pub fn first() -> Self {
        Self {
            index: 0,
            name: "Policy-0".to_owned(),
            aliases: Vec::new(),
            keeps: Keeps::Copies,
            default: true,
            deprecated: false,
        }
    }

    /// All its names, the first one first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str()).chain(self.aliases.iter().map(String::as_str))
    }
}

/// Why policies do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPolicies {
    /// A number that is too large, or given twice.
    #[error("policy {0}: its number is given twice or is not below {POLICIES}")]
    Number(u16),
    /// A name that Swift does not know, or given twice.
    #[error("policy name '{0}': names have letters, digits and '-', and are given once")]
    Name(String),
    /// None or several.
    #[error("exactly one policy that is not deprecated must be the default")]
    Default,
    /// There is none.
    #[error("policy 0 is missing")]
    First,
}

/// The policies of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies(Vec<Policy>);

impl Default for Policies {
    fn default() -> Self {
        Self(vec![Policy::first()])
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

impl Policies {
    /// All of them, in any order.
    pub fn new(mut policies: Vec<Policy>) -> Result<Self, BadPolicies> {
        policies.sort_by_key(|policy| policy.index);
        if policies.first().is_none_or(|policy| policy.index != 0) {
            return Err(BadPolicies::First);
        }
        let mut names = std::collections::HashSet::new();
        for (n, policy) in policies.iter().enumerate() {
            let twice = n > 0 && policies.get(n - 1).is_some_and(|before| before.index == policy.index);
            if policy.index >= POLICIES || twice {
                return Err(BadPolicies::Number(policy.index));
            }
            for name in policy.names() {
                if !is_name(name) || !names.insert(name.to_ascii_lowercase()) {
                    return Err(BadPolicies::Name(name.to_owned()));
                }
            }
        }
        let default: Vec<&Policy> = policies.iter().filter(|policy| policy.default).collect();
        if !matches!(default.as_slice(), [one] if !one.deprecated) {
            return Err(BadPolicies::Default);
        }
        Ok(Self(policies))
    }

    /// In the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.0.iter()
    }

    /// By its number.
    #[must_use]
    pub fn get(&self, index: u16) -> Option<&Policy> {
        self.0.iter().find(|policy| policy.index == index)
    }

    /// By any of its names, upper and lower case alike; the default for an empty one.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Policy> {
        if name.is_empty() {
            return self.0.iter().find(|policy| policy.default);
        }
        self.0.iter().find(|policy| policy.names().any(|own| own.eq_ignore_ascii_case(name)))
    }

    /// The code of a policy that keeps fragments.
    #[must_use]
    pub fn code(&self, index: u16) -> Option<Code> {
        match self.get(index)?.keeps {
            Keeps::Copies => None,
            Keeps::Fragments(code) => Some(code),
        }
    }
}

/// Policies, and a placement for each.
#[derive(Clone)]
pub struct Layout {
    /// Which there are.
    pub policies: Arc<Policies>,
    placements: BTreeMap<u16, Arc<dyn Placement>>,
}

impl std::fmt::Debug for Layout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layout").field("policies", &self.policies).finish_non_exhaustive()
    }
}

impl Layout {
    /// A policy without a placement has no device yet.
    #[must_use]
    pub fn new(policies: Policies, placements: BTreeMap<u16, Arc<dyn Placement>>) -> Self {
        Self { policies: Arc::new(policies), placements }
    }

    /// Policy 0 alone.
    #[must_use]
    pub fn one(placement: Arc<dyn Placement>) -> Self {
        Self::new(Policies::default(), [(0, placement)].into())
    }

    fn placement(&self, hash: &PathHash) -> Option<&Arc<dyn Placement>> {
        self.placements.get(&policy_of(hash))
    }
}

impl<P: Placement + 'static> From<Arc<P>> for Layout {
    fn from(placement: Arc<P>) -> Self {
        Self::one(placement)
    }
}

impl Placement for Layout {
    fn primaries(&self, hash: &PathHash) -> Vec<DeviceId> {
        self.placement(hash).map_or_else(Vec::new, |placement| placement.primaries(hash))
    }

    fn handoffs<'a>(&'a self, hash: &PathHash) -> Box<dyn Iterator<Item = DeviceId> + Send + 'a> {
        match self.placement(hash) {
            Some(placement) => placement.handoffs(hash),
            None => Box::new(std::iter::empty()),
        }
    }

    fn leaving<'a>(&'a self, hash: &PathHash) -> Box<dyn Iterator<Item = DeviceId> + Send + 'a> {
        match self.placement(hash) {
            Some(placement) => placement.leaving(hash),
            None => Box::new(std::iter::empty()),
        }
    }

    fn sole(&self, hash: &PathHash) -> Option<DeviceId> {
        self.placement(hash)?.sole(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(index: u16, name: &str) -> Policy {
        Policy { index, name: name.to_owned(), default: index == 0, ..Policy::first() }
    }

    #[test]
    fn policies_are_found_by_number_and_by_any_name() {
        let mut gold = policy(3, "Gold");
        gold.aliases = vec!["yellow".to_owned()];
        gold.keeps = Keeps::Fragments(Code { data: 4, parity: 2 });
        let policies = Policies::new(vec![gold, policy(0, "std")]).unwrap();
        assert_eq!(policies.named("YELLOW").unwrap().index, 3);
        assert_eq!(policies.named("").unwrap().index, 0);
        assert_eq!(policies.named("silver"), None);
        assert_eq!((policies.code(3).unwrap().n(), policies.code(0)), (6, None));
        assert_eq!(policies.iter().map(|policy| policy.index).collect::<Vec<_>>(), [0, 3]);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let bad = |policies: Vec<Policy>| Policies::new(policies).unwrap_err();
        assert_eq!(bad(vec![policy(1, "a")]), BadPolicies::First);
        assert_eq!(bad(vec![policy(0, "a"), policy(2, "b"), policy(2, "c")]), BadPolicies::Number(2));
        assert_eq!(bad(vec![policy(0, "a"), policy(POLICIES, "b")]), BadPolicies::Number(POLICIES));
        assert_eq!(bad(vec![policy(0, "a"), policy(1, "A")]), BadPolicies::Name("A".to_owned()));
        assert_eq!(bad(vec![policy(0, "a b")]), BadPolicies::Name("a b".to_owned()));
        let mut other = policy(1, "b");
        other.default = true;
        assert_eq!(bad(vec![policy(0, "a"), other]), BadPolicies::Default);
        let deprecated = Policy { deprecated: true, ..policy(0, "a") };
        assert_eq!(bad(vec![deprecated]), BadPolicies::Default);
        assert_eq!((Code::new(0, 2), Code::new(3, 0), Code::new(30, 3)), (None, None, None));
    }
}
