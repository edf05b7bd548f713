//! The table while it is being changed: who has how many, who wants more, and the search for a place.
//!
//! Invariant: `count` is what the rows hold, at every tier; `need` of a domain is what its devices lack in sum.
//! Invariant: a replica is never put on a device that holds its partition already.
//! Invariant: a replica moves only if its row may; from then on no other row of its partition may.

use super::chooser::{Aside, Chooser};
use super::share::ONE;
use super::tree::{DomainId, LEAF, TIERS, Tree};
use crate::table::scatter;

/// No device.
pub(crate) const NONE: u16 = u16::MAX;
/// Most replicas of a partition.
pub(crate) const MOST_ROWS: usize = 32;
const _: () =
    assert!(MOST_ROWS * 100 == crate::MAX_REPLICAS.hundredths() as usize && MOST_ROWS <= u32::BITS as usize);

/// Rows of a partition of which any one may move. Other masks are rows that are without data elsewhere, or have moved
/// already: those may be placed as often as it takes. (32 rows without data look like this; nothing is lost by it.)
pub(crate) const ALL_ROWS: u32 = u32::MAX;

/// Fixed point of keys.
const KEY_BITS: u32 = 32;

/// Among whom a place is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pool {
    /// Devices below their quota.
    Needy,
    /// Every device with weight.
    Any,
    /// Needy ones, and those that could pass on to a needy one.
    Reached,
}

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    /// Devices of the partition's other replicas.
    pub(crate) others: &'a [u16],
    /// Where the replica is: a domain that it does not leave need not have room.
    pub(crate) home: Option<u16>,
    pub(crate) pool: Pool,
    /// Heed what a domain may hold of one partition at so many tiers, from the top.
    pub(crate) heeded: usize,
}

/// The devices of one partition.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Places {
    devices: [u16; MOST_ROWS],
    len: usize,
}

impl Places {
    pub(crate) fn as_slice(&self) -> &[u16] {
        &self.devices[..self.len]
    }
}

/// Devices that a replica can be put on so that in the end a needy one has more.
#[derive(Debug)]
struct Reached {
    chooser: Chooser,
    /// How many of them are in each domain.
    here: Vec<u32>,
}

/// A rebalance in progress.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) rows: &'a mut [Vec<u16>],
    /// Rows of each partition that may move, a bit each.
    pub(crate) movable: Vec<u32>,
    pub(crate) quota: Vec<u32>,
    pub(crate) count: Vec<u32>,
    pub(crate) need: Vec<u32>,
    /// Least and most replicas of one partition in each domain.
    floor: Vec<u8>,
    most: Vec<u8>,
    /// Children that must have replicas of every partition, for each domain.
    owed: Vec<Vec<DomainId>>,
    active: Vec<bool>,
    needy: Chooser,
    any: Option<Chooser>,
    reached: Option<Reached>,
    asides: Vec<Aside>,
}

impl<'a> Work<'a> {
    pub(crate) fn new(
        tree: &'a Tree,
        rows: &'a mut [Vec<u16>],
        movable: Vec<u32>,
        quota: Vec<u32>,
        counts: &[u64],
    ) -> Self {
        let partitions = u32::try_from(movable.len()).expect("at most 2^24 partitions");
        let small = |number: u32| u8::try_from(number).expect("at most 32 replicas");
        let floor: Vec<u8> = quota.iter().map(|quota| small(quota / partitions)).collect();
        let most = quota.iter().map(|quota| small(quota.div_ceil(partitions))).collect();
        let owed = tree.inner().map(|domain| {
            let children = tree.children(domain).filter(|&child| floor[child] > 0);
            children.map(|child| u32::try_from(child).expect("few domains")).collect()
        });
        let owed = owed.collect();
        let count: Vec<u32> =
            counts.iter().map(|&count| u32::try_from(count).expect("at most 2^29 entries")).collect();
        let lacks = |position: usize| {
            let leaf = tree.leaf(position) as usize;
            u64::from(quota[leaf].saturating_sub(count[leaf]))
        };
        let need =
            tree.sums(lacks).into_iter().map(|need| u32::try_from(need).expect("below a quota")).collect();
        let active = tree.domains.iter().map(|domain| domain.active > 0).collect();
        let needy = Chooser::new(tree);
        let asides = Vec::new();
        let mut work = Self {
            tree,
            rows,
            movable,
            quota,
            count,
            need,
            floor,
            most,
            owed,
            active,
            needy,
            any: None,
            reached: None,
            asides,
        };
        for domain in 1..tree.domains.len() {
            work.refresh_needy(u32::try_from(domain).expect("few domains"));
        }
        work
    }

    /// From now on there is an order of all devices, not of the needy alone.
    pub(crate) fn open_any(&mut self) {
        if self.any.is_none() {
            let mut any = Chooser::new(self.tree);
            for domain in 1..self.tree.domains.len() {
                let domain = u32::try_from(domain).expect("few domains");
                any.set(self.tree, domain, self.fullness(domain));
            }
            self.any = Some(any);
        }
    }

    /// Begin anew: the needy are reached, nobody else.
    pub(crate) fn open_reached(&mut self) {
        let here = self.tree.domains.iter().map(|_| 0).collect();
        self.reached = Some(Reached { chooser: Chooser::new(self.tree), here });
        for position in 0..self.tree.paths.len() {
            let leaf = self.tree.leaf(position);
            if self.need[leaf as usize] > 0 {
                self.reach_leaf(leaf, true);
            }
        }
    }

    pub(crate) fn is_reached(&self, position: u16) -> bool {
        let leaf = self.tree.leaf(usize::from(position)) as usize;
        self.reached.as_ref().is_some_and(|reached| reached.here[leaf] > 0)
    }

    /// A device could pass something on, or no longer can.
    pub(crate) fn reach(&mut self, position: u16, can: bool) {
        if self.is_reached(position) != can {
            self.reach_leaf(self.tree.leaf(usize::from(position)), can);
        }
    }

    fn reach_leaf(&mut self, leaf: DomainId, can: bool) {
        let way = self.way_up(self.tree.position(leaf));
        let Some(reached) = &mut self.reached else { return };
        for domain in way {
            let here = &mut reached.here[domain as usize];
            *here = if can { *here + 1 } else { *here - 1 };
            if domain > 0 {
                let key = (*here > 0).then(|| scatter(domain, *here) >> KEY_BITS);
                reached.chooser.set(self.tree, domain, key);
            }
        }
    }

    /// Least first: how much of its quota a domain has, a little jumbled, so that partners vary.
    fn hunger(&self, domain: DomainId) -> Option<u64> {
        let (need, quota) = (self.need[domain as usize], self.quota[domain as usize]);
        let jumble = scatter(domain, need) >> KEY_BITS;
        (need > 0)
            .then(|| ((u64::from(quota.saturating_sub(need)) << KEY_BITS) + jumble) / u64::from(quota.max(1)))
    }

    fn fullness(&self, domain: DomainId) -> Option<u64> {
        let (count, quota) = (self.count[domain as usize], self.quota[domain as usize]);
        let jumble = scatter(domain, count) >> KEY_BITS;
        self.active[domain as usize]
            .then(|| ((u64::from(count) << KEY_BITS) + jumble) / u64::from(quota.max(1)))
    }

    fn refresh_needy(&mut self, domain: DomainId) {
        let key = self.hunger(domain);
        self.needy.set(self.tree, domain, key);
    }

    /// Everything from the leaf of a device to the root.
    fn way_up(&self, position: u16) -> [DomainId; TIERS + 1] {
        let [region, zone, node, leaf] = self.tree.paths[usize::from(position)];
        [leaf, node, zone, region, 0]
    }

    fn change(&mut self, position: u16, more: bool) {
        let way = self.way_up(position);
        let leaf = way[0] as usize;
        let lacking =
            if more { self.count[leaf] < self.quota[leaf] } else { self.count[leaf] <= self.quota[leaf] };
        for domain in way {
            let at = domain as usize;
            if more {
                self.count[at] += 1;
                self.need[at] -= u32::from(lacking);
            } else {
                self.count[at] -= 1;
                self.need[at] += u32::from(lacking);
            }
            if domain == 0 {
                break;
            }
            if lacking {
                self.refresh_needy(domain);
            }
            if self.any.is_some() {
                let fullness = self.fullness(domain);
                self.any.iter_mut().for_each(|any| any.set(self.tree, domain, fullness));
            }
        }
    }

    /// Put a replica on a device; takes it off where it was.
    pub(crate) fn put(&mut self, partition: usize, row: usize, leaf: DomainId) {
        let position = self.tree.position(leaf);
        let old = std::mem::replace(&mut self.rows[row][partition], position);
        if old != NONE {
            self.change(old, false);
        }
        self.change(position, true);
    }

    /// Move a replica: the only one of its partition in this version.
    pub(crate) fn relocate(&mut self, partition: usize, row: usize, leaf: DomainId) {
        assert!(self.may_move(partition, row), "a replica moves only if its row may");
        if self.movable[partition] == ALL_ROWS {
            self.movable[partition] = 1 << row;
        }
        self.put(partition, row, leaf);
    }

    pub(crate) fn may_move(&self, partition: usize, row: usize) -> bool {
        self.movable[partition] >> row & 1 == 1
    }

    pub(crate) fn device(&self, partition: usize, row: usize) -> Option<u16> {
        self.rows[row].get(partition).copied()
    }

    /// The devices of a partition but that of row `except`.
    pub(crate) fn places(&self, partition: usize, except: usize) -> Places {
        let mut places = Places { devices: [NONE; MOST_ROWS], len: 0 };
        for (row, devices) in self.rows.iter().enumerate() {
            if let Some(&device) = devices.get(partition)
                && row != except
                && device != NONE
            {
                places.devices[places.len] = device;
                places.len += 1;
            }
        }
        places
    }

    /// Replicas among `devices` in a domain of a tier.
    pub(crate) fn held(&self, devices: &[u16], tier: usize, domain: DomainId) -> u8 {
        let inside = devices.iter().filter(|&&device| self.tree.paths[usize::from(device)][tier] == domain);
        u8::try_from(inside.count()).unwrap_or(u8::MAX)
    }

    /// How far a device is above its quota, in fixed point of the quota.
    pub(crate) fn surplus(&self, position: u16) -> u64 {
        let leaf = self.tree.leaf(usize::from(position)) as usize;
        let (count, quota) = (self.count[leaf], self.quota[leaf]);
        u64::from(count.saturating_sub(quota)) * ONE / u64::from(quota.max(1))
    }

    pub(crate) fn has_surplus(&self, position: u16) -> bool {
        let leaf = self.tree.leaf(usize::from(position)) as usize;
        self.count[leaf] > self.quota[leaf]
    }

    /// Whether a domain above a device holds more than its quota.
    pub(crate) fn in_full_domain(&self, position: u16) -> bool {
        let path = &self.tree.paths[usize::from(position)][..LEAF];
        path.iter().any(|&domain| self.count[domain as usize] > self.quota[domain as usize])
    }

    /// Children of a domain that must have replicas of every partition.
    pub(crate) fn owed(&self, domain: DomainId) -> &[DomainId] {
        &self.owed[domain as usize]
    }

    /// Least replicas of one partition that a domain shall hold.
    pub(crate) fn least(&self, domain: DomainId) -> u8 {
        self.floor[domain as usize]
    }

    /// Most replicas of one partition that a domain shall hold.
    pub(crate) fn most(&self, domain: DomainId) -> u8 {
        self.most[domain as usize]
    }

    /// A place for a replica that has none.
    pub(crate) fn place_for_new(&mut self, wish: &Wish<'_>) -> Option<DomainId> {
        self.find(0, 0, wish)
    }

    /// A place for a replica that leaves `home`, without taking from any domain that is heeded what it must have.
    pub(crate) fn place_for(&mut self, home: u16, wish: &Wish<'_>) -> Option<DomainId> {
        let path = self.tree.paths[usize::from(home)];
        match self.bound(&path, wish) {
            None => self.find(0, 0, wish),
            Some(LEAF) => None,
            Some(tier) => self.find(path[tier], tier + 1, wish),
        }
    }

    /// The same, outside of its domain of a tier.
    pub(crate) fn place_outside(&mut self, home: u16, tier: usize, wish: &Wish<'_>) -> Option<DomainId> {
        let path = self.tree.paths[usize::from(home)];
        match self.bound(&path, wish) {
            None => self.find(0, 0, wish),
            Some(bound) if bound < tier => self.find(path[bound], bound + 1, wish),
            Some(_) => None,
        }
    }

    /// The lowest tier where a replica cannot leave its domain.
    fn bound(&self, path: &[DomainId; TIERS], wish: &Wish<'_>) -> Option<usize> {
        let must_stay = |&tier: &usize| self.held(wish.others, tier, path[tier]) < self.least(path[tier]);
        (0..wish.heeded).rev().find(must_stay)
    }

    /// A place in a domain of a tier, beside the domain where the replica is.
    pub(crate) fn place_within(
        &mut self,
        home: u16,
        (tier, domain): (usize, DomainId),
        wish: &Wish<'_>,
    ) -> Option<DomainId> {
        let path = self.tree.paths[usize::from(home)];
        let above = tier.checked_sub(1).map_or(0, |above| path[above]);
        let beside = self.tree.domains[domain as usize].parent == above;
        let spared = |tier: usize| self.held(wish.others, tier, path[tier]) >= self.least(path[tier]);
        if !beside || !(tier..TIERS).all(spared) || !self.has_room(domain, tier, wish) {
            return None;
        }
        self.enter(domain, tier, wish)
    }

    fn pool(&mut self, pool: Pool) -> &mut Chooser {
        match pool {
            Pool::Needy => &mut self.needy,
            Pool::Any => self.any.as_mut().expect("opened before it is searched"),
            Pool::Reached => &mut self.reached.as_mut().expect("opened before it is searched").chooser,
        }
    }

    /// Look below a domain whose children are of `tier`.
    fn find(&mut self, domain: DomainId, tier: usize, wish: &Wish<'_>) -> Option<DomainId> {
        let tree = self.tree;
        if tier < wish.heeded
            && let Some(child) = self.most_owed(domain, tier, wish)
            && let Some(found) = self.enter(child, tier, wish)
        {
            return Some(found);
        }
        let mark = self.asides.len();
        let found = loop {
            let Some(child) = self.pool(wish.pool).first(tree, domain) else { break None };
            if self.has_room(child, tier, wish)
                && let Some(found) = self.enter(child, tier, wish)
            {
                break Some(found);
            }
            let aside = self.pool(wish.pool).set_aside(tree, child);
            self.asides.push(aside);
        };
        while self.asides.len() > mark {
            let aside = self.asides.pop().expect("longer than the mark");
            self.pool(wish.pool).bring_back(tree, &aside);
        }
        found
    }

    fn enter(&mut self, child: DomainId, tier: usize, wish: &Wish<'_>) -> Option<DomainId> {
        if tier == LEAF { Some(child) } else { self.find(child, tier + 1, wish) }
    }

    /// The first of the children that do not have what they must.
    fn most_owed(&mut self, domain: DomainId, tier: usize, wish: &Wish<'_>) -> Option<DomainId> {
        let tree = self.tree;
        let mut best = None;
        for at in 0..self.owed[domain as usize].len() {
            let child = self.owed[domain as usize][at];
            let lacks = self.held(wish.others, tier, child) < self.floor[child as usize];
            if lacks
                && self.has_room(child, tier, wish)
                && let Some(rank) = self.pool(wish.pool).rank(tree, child)
            {
                best = best.into_iter().chain([(rank, child)]).min();
            }
        }
        best.map(|(_, child)| child)
    }

    fn has_room(&self, child: DomainId, tier: usize, wish: &Wish<'_>) -> bool {
        let held = self.held(wish.others, tier, child);
        let at_home = wish.home.map(|home| self.tree.paths[usize::from(home)][tier]) == Some(child);
        if tier == LEAF {
            return held == 0 && !at_home;
        }
        tier >= wish.heeded || at_home || held < self.most[child as usize]
    }
}
