//! A disk as an image in qcow2 (version 3), made while it is sent: where everything lies is settled before the first byte.
//!
//! ```text
//! header | table of reference counts | reference counts | first table | second tables | clusters that are used, in the disk's order
//! ```
//!
//! Invariant: how many bytes the image has, and where each cluster lies, follows from what was marked, and from nothing that is read later.
//! Invariant: everything is a whole cluster, and is referenced once.

use bytes::Bytes;

const CLUSTER_BITS: u32 = 16;
/// Bytes of a cluster.
pub const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of a cluster of tables, and of reference counts.
const ENTRIES: u64 = CLUSTER / 8;
const COUNTS: u64 = CLUSTER / 2;
/// An entry's cluster is referenced once.
const ONCE: u64 = 1 << 63;
/// Bytes of the largest disk: its map takes 128 MiB of memory.
pub const MAX_DISK: u64 = 64 << 40;

/// Clusters of a disk that are used.
#[derive(Debug)]
pub struct Map {
    clusters: u64,
    words: Vec<u64>,
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("a map of a disk fits memory")
}

impl Map {
    /// Of a disk of so many bytes; nothing is used.
    pub fn new(disk: u64) -> Self {
        let clusters = disk.div_ceil(CLUSTER);
        Self { clusters, words: vec![0; index(clusters.div_ceil(64))] }
    }

    /// There is something in these bytes.
    pub fn mark(&mut self, at: u64, bytes: u64) {
        for cluster in at / CLUSTER..(at + bytes).div_ceil(CLUSTER).min(self.clusters) {
            self.words[index(cluster / 64)] |= 1 << (cluster % 64);
        }
    }

    fn has(&self, cluster: u64) -> bool {
        cluster < self.clusters && self.words[index(cluster / 64)] >> (cluster % 64) & 1 == 1
    }

    /// The first used cluster from one on.
    fn next(&self, from: u64) -> Option<u64> {
        let mut cluster = from;
        while cluster < self.clusters {
            let word = self.words[index(cluster / 64)] >> (cluster % 64);
            if word != 0 {
                return Some(cluster + u64::from(word.trailing_zeros()));
            }
            cluster = (cluster / 64 + 1) * 64;
        }
        None
    }
}

/// A second table that is there.
#[derive(Debug)]
struct Second {
    /// Which of the disk's.
    nth: u64,
    /// Used clusters before its own.
    before: u64,
}

/// Where everything of an image lies, in clusters.
#[derive(Debug)]
pub struct Plan {
    disk: u64,
    map: Map,
    second: Vec<Second>,
    /// Of the table of reference counts, the counts, the first table.
    tables: u64,
    counts: u64,
    first: u64,
    used: u64,
}

impl Plan {
    /// Of a disk of so many bytes.
    pub fn new(disk: u64, map: Map) -> Self {
        let (mut second, mut used) = (Vec::new(), 0);
        for nth in 0..map.clusters.div_ceil(ENTRIES) {
            // A table's clusters are whole words.
            let words = map.words.iter().skip(index(nth * ENTRIES / 64)).take(index(ENTRIES / 64));
            let own: u64 = words.map(|word| u64::from(word.count_ones())).sum();
            if own > 0 {
                second.push(Second { nth, before: used });
                used += own;
            }
        }
        let first = map.clusters.div_ceil(ENTRIES).div_ceil(ENTRIES);
        let rest = 1 + first + second.len() as u64 + used;
        // Counts count themselves.
        let (mut tables, mut counts) = (0, 0);
        loop {
            let wanted = (rest + tables + counts).div_ceil(COUNTS);
            if wanted == counts {
                break;
            }
            (counts, tables) = (wanted, wanted.div_ceil(ENTRIES));
        }
        Self { disk, map, second, tables, counts, first, used }
    }

    /// Clusters before the disk's own.
    pub fn told(&self) -> u64 {
        1 + self.tables + self.counts + self.first + self.second.len() as u64
    }

    /// Bytes of the image.
    pub fn bytes(&self) -> u64 {
        (self.told() + self.used) * CLUSTER
    }

    /// A cluster before the disk's own.
    pub fn tell(&self, number: u64) -> Bytes {
        let mut words = vec![0_u64; index(ENTRIES)];
        let (tables, counts) = (1, 1 + self.tables);
        let first = counts + self.counts;
        let second = first + self.first;
        if number == 0 {
            return self.header();
        }
        for (word, at) in words.iter_mut().zip(0..) {
            *word = if number < counts {
                let nth = (number - tables) * ENTRIES + at;
                if nth < self.counts { (counts + nth) * CLUSTER } else { 0 }
            } else if number < first {
                self.four_counts((number - counts) * COUNTS + at * 4)
            } else if number < second {
                let nth = (number - first) * ENTRIES + at;
                let found = self.second.binary_search_by_key(&nth, |table| table.nth);
                found.map_or(0, |rank| ONCE | ((second + rank as u64) * CLUSTER))
            } else {
                break;
            };
        }
        if let Some(table) = number.checked_sub(second).and_then(|rank| self.second.get(index(rank))) {
            let mut place = self.told() + table.before;
            for (word, cluster) in words.iter_mut().zip(table.nth * ENTRIES..) {
                if self.map.has(cluster) {
                    *word = ONCE | (place * CLUSTER);
                    place += 1;
                }
            }
        }
        words.into_iter().flat_map(u64::to_be_bytes).collect()
    }

    /// The counts of four clusters, of 16 bits each.
    fn four_counts(&self, from: u64) -> u64 {
        let all = self.told() + self.used;
        (from..from + 4).fold(0, |word, cluster| word << 16 | u64::from(cluster < all))
    }

    fn header(&self) -> Bytes {
        let mut header = vec![0; index(CLUSTER)];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        let whole = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes();
        put(0, b"QFI\xfb");
        put(4, &3_u32.to_be_bytes());
        put(20, &CLUSTER_BITS.to_be_bytes());
        put(24, &self.disk.to_be_bytes());
        put(36, &whole(self.map.clusters.div_ceil(ENTRIES)));
        put(40, &((1 + self.tables + self.counts) * CLUSTER).to_be_bytes());
        put(48, &CLUSTER.to_be_bytes());
        put(56, &whole(self.tables));
        // Counts have 2^4 bits; the header ends here.
        put(96, &4_u32.to_be_bytes());
        put(100, &104_u32.to_be_bytes());
        header.into()
    }

    /// The first used clusters of the disk from a byte on, at most `most` of them: where they begin, and how many bytes.
    pub fn run(&self, from: u64, most: u64) -> Option<(u64, u64)> {
        let first = self.map.next(from / CLUSTER)?;
        let behind = (first..first + most).find(|cluster| !self.map.has(*cluster)).unwrap_or(first + most);
        Some((first * CLUSTER, (behind - first) * CLUSTER))
    }
}

#[cfg(test)]
mod tests {
    use super::super::HEADER;
    use super::super::layout::{Cluster, Layout};
    use super::*;

    #[test]
    fn what_is_packed_is_found_where_a_reader_looks() {
        // Three second tables, of which the middle one is empty.
        let disk = 3 * ENTRIES * CLUSTER;
        let used = [0, 1, 63, 64, ENTRIES - 1, 2 * ENTRIES + 5];
        let mut map = Map::new(disk);
        for cluster in used {
            map.mark(cluster * CLUSTER + 4096, 4096);
        }
        let plan = Plan::new(disk, map);
        let image: Vec<u8> = (0..plan.told()).flat_map(|number| plan.tell(number)).collect();
        assert_eq!(plan.bytes(), image.len() as u64 + used.len() as u64 * CLUSTER);
        let layout = Layout::parse(&image[..HEADER]).unwrap();
        assert_eq!((layout.bytes, layout.second_tables()), (disk, 3));
        let word = |at: u64| u64::from_be_bytes(image[index(at)..index(at) + 8].try_into().unwrap());
        let mut found = Vec::new();
        for nth in 0..3 {
            let Some(place) = Layout::table(word(layout.place_of(nth).unwrap())) else {
                assert_eq!(nth, 1);
                continue;
            };
            let table = &image[index(place)..index(place + CLUSTER)];
            for cluster in nth * ENTRIES..(nth + 1) * ENTRIES {
                if let Cluster::Plain(place) = layout.look(table, cluster).unwrap() {
                    found.push((cluster, place / CLUSTER));
                }
            }
        }
        let expected: Vec<_> = used.into_iter().zip(plan.told()..).collect();
        assert_eq!(found, expected);
        // All clusters of the image are counted once, and no other.
        let counts: u64 = (0..ENTRIES).map(|at| u64::from(word(2 * CLUSTER + at * 8).count_ones())).sum();
        assert_eq!((word(CLUSTER), counts), (2 * CLUSTER, plan.bytes() / CLUSTER));
        assert_eq!(
            (plan.run(0, 16), plan.run(2 * CLUSTER, 16)),
            (Some((0, 2 * CLUSTER)), Some((63 * CLUSTER, 2 * CLUSTER)))
        );
        assert_eq!(
            (plan.run(63 * CLUSTER, 1), plan.run(disk - CLUSTER, 9)),
            (Some((63 * CLUSTER, CLUSTER)), None)
        );
    }

    #[test]
    fn counts_count_themselves() {
        for clusters in [0, 1, COUNTS - 6, COUNTS - 5, COUNTS - 4, COUNTS, 5 * COUNTS] {
            let disk = 8 * COUNTS * CLUSTER;
            let mut map = Map::new(disk);
            map.mark(0, clusters * CLUSTER);
            let plan = Plan::new(disk, map);
            let all = plan.bytes() / CLUSTER;
            assert!(plan.counts * COUNTS >= all && (plan.counts - 1) * COUNTS < all, "{clusters}: {plan:?}");
        }
    }
}
