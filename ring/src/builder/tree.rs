//! The failure domains as a tree in arrays: root, regions, zones, nodes, devices.
//!
//! Invariant: the children of a domain are neighbours, and every domain comes before its children.
//! Invariant: every device of the table is a leaf, also one without weight: it may still hold replicas.

use crate::Device;

/// Tiers below the root: region, zone, node, device.
pub(crate) const TIERS: usize = 4;
/// Index of the devices' tier.
pub(crate) const LEAF: usize = TIERS - 1;

/// A domain, by its index in the tree; 0 is the root.
pub(crate) type DomainId = u32;

#[derive(Debug, Clone)]
pub(crate) struct Domain {
    pub(crate) parent: DomainId,
    pub(crate) first_child: DomainId,
    pub(crate) children: u32,
    /// Devices below that have weight.
    pub(crate) active: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) domains: Vec<Domain>,
    /// Of each device, by position: its region, zone, node and leaf.
    pub(crate) paths: Vec<[DomainId; TIERS]>,
    /// Device of each leaf, in the order of the leaves.
    positions: Vec<u16>,
    first_leaf: DomainId,
}

impl Tree {
    /// Of devices in the order of their positions.
    pub(crate) fn new(devices: &[Device]) -> Self {
        let mut order: Vec<u16> = (0..=u16::MAX).take(devices.len()).collect();
        let key = |&position: &u16| {
            let device = &devices[usize::from(position)];
            [u32::from(device.region), u32::from(device.zone), device.node, u32::from(position)]
        };
        order.sort_by_cached_key(key);
        let mut tree = Self {
            domains: vec![Domain { parent: 0, first_child: 0, children: 0, active: 0 }],
            paths: vec![[0; TIERS]; devices.len()],
            positions: Vec::new(),
            first_leaf: 0,
        };
        for tier in 0..TIERS {
            tree.first_leaf = index32(tree.domains.len());
            let mut last = None;
            for position in &order {
                let at = usize::from(*position);
                let parent = tier.checked_sub(1).map_or(0, |above| tree.paths[at][above]);
                let name = (parent, key(position)[tier]);
                if last != Some(name) {
                    tree.add_domain(parent);
                    last = Some(name);
                }
                tree.paths[at][tier] = index32(tree.domains.len() - 1);
            }
        }
        tree.positions = order;
        for (at, _) in devices.iter().enumerate().filter(|(_, device)| device.weight > 0) {
            tree.domains[0].active += 1;
            for domain in tree.paths[at] {
                tree.domains[domain as usize].active += 1;
            }
        }
        tree
    }

    fn add_domain(&mut self, parent: DomainId) {
        let new = index32(self.domains.len());
        let above = &mut self.domains[parent as usize];
        if above.children == 0 {
            above.first_child = new;
        }
        above.children += 1;
        self.domains.push(Domain { parent, first_child: 0, children: 0, active: 0 });
    }

    /// Position of the device of a leaf.
    pub(crate) fn position(&self, leaf: DomainId) -> u16 {
        self.positions[(leaf - self.first_leaf) as usize]
    }

    /// The leaf of the device at a position.
    pub(crate) fn leaf(&self, position: usize) -> DomainId {
        self.paths[position][LEAF]
    }

    pub(crate) fn children(&self, domain: DomainId) -> std::ops::Range<usize> {
        let domain = &self.domains[domain as usize];
        domain.first_child as usize..(domain.first_child + domain.children) as usize
    }

    /// Domains that have children, parents before children.
    pub(crate) fn inner(&self) -> impl Iterator<Item = DomainId> + use<> {
        0..self.first_leaf
    }

    /// Sums over the devices below every domain of a figure that each device has.
    pub(crate) fn sums(&self, figure: impl Fn(usize) -> u64) -> Vec<u64> {
        let mut sums = vec![0; self.domains.len()];
        for (position, path) in self.paths.iter().enumerate() {
            let figure = figure(position);
            sums[0] += figure;
            for domain in path {
                sums[*domain as usize] += figure;
            }
        }
        sums
    }
}

fn index32(index: usize) -> u32 {
    u32::try_from(index).expect("five tiers of at most 65,536 domains")
}
