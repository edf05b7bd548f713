//! Which child of a domain comes first, found in one step and kept in logarithmic time.
//!
//! Each domain holds a winner tree over its children: a node is the least of the two below it, and a key carries the
//! number of its child.
//!
//! Invariant: a child that is not to be chosen has the key `NEVER`; after a search all keys are as before.

use super::tree::{DomainId, Tree};

const NEVER: u64 = u64::MAX;
const CHILD_BITS: u32 = 16;

/// Winner trees of all domains that have children.
#[derive(Debug)]
pub(crate) struct Chooser {
    /// Where the tree of each domain begins; it has two nodes for each child.
    begins: Vec<u32>,
    keys: Vec<u64>,
}

impl Chooser {
    /// Nobody is to be chosen yet.
    pub(crate) fn new(tree: &Tree) -> Self {
        let mut begins = Vec::new();
        let mut length = 0_usize;
        for domain in tree.inner() {
            begins.push(u32::try_from(length).expect("two nodes for each of few domains"));
            length += 2 * tree.children(domain).len();
        }
        Self { begins, keys: vec![NEVER; length] }
    }

    /// Set the key of a child; least first. `None`: never.
    pub(crate) fn set(&mut self, tree: &Tree, child: DomainId, key: Option<u64>) {
        let parent = &tree.domains[tree.domains[child as usize].parent as usize];
        let number = u64::from(child - parent.first_child);
        let key = key.map_or(NEVER, |key| (key.min(NEVER >> (CHILD_BITS + 1)) << CHILD_BITS) | number);
        self.put(tree, child, key);
    }

    fn put(&mut self, tree: &Tree, child: DomainId, key: u64) {
        let parent = tree.domains[child as usize].parent;
        let domain = &tree.domains[parent as usize];
        let length = 2 * domain.children as usize;
        let begin = self.begins[parent as usize] as usize;
        let nodes = &mut self.keys[begin..begin + length];
        let mut at = (domain.children + child - domain.first_child) as usize;
        nodes[at] = key;
        while at > 1 {
            at /= 2;
            let least = nodes[2 * at].min(nodes[2 * at + 1]);
            if nodes[at] == least {
                break;
            }
            nodes[at] = least;
        }
    }

    fn key(&self, tree: &Tree, child: DomainId) -> u64 {
        let parent = tree.domains[child as usize].parent;
        let domain = &tree.domains[parent as usize];
        let leaf = domain.children + child - domain.first_child;
        self.keys[self.begins[parent as usize] as usize + leaf as usize]
    }

    /// The key of a child that may be chosen.
    pub(crate) fn rank(&self, tree: &Tree, child: DomainId) -> Option<u64> {
        Some(self.key(tree, child)).filter(|&key| key != NEVER)
    }

    /// The first child of a domain.
    pub(crate) fn first(&self, tree: &Tree, domain: DomainId) -> Option<DomainId> {
        // Of a tree with one leaf the leaf is the root.
        let key = self.keys[self.begins[domain as usize] as usize + 1];
        let number = u32::try_from(key & ((1 << CHILD_BITS) - 1)).expect("16 bits");
        (key != NEVER).then(|| tree.domains[domain as usize].first_child + number)
    }

    /// Take a child out for a while; what brings it back.
    pub(crate) fn set_aside(&mut self, tree: &Tree, child: DomainId) -> Aside {
        let aside = Aside { child, key: self.key(tree, child) };
        self.put(tree, child, NEVER);
        aside
    }

    pub(crate) fn bring_back(&mut self, tree: &Tree, aside: &Aside) {
        self.put(tree, aside.child, aside.key);
    }
}

/// A child that was set aside.
#[derive(Debug)]
pub(crate) struct Aside {
    child: DomainId,
    key: u64,
}
