//! Whether the copies of each partition are equal: `GET /cluster/compare` on the admin listener. Sums are asked for, not data. And
//! whether each index group has a leader and its voters.
//!
//! Invariant: nodes that do not answer are asked for nothing more: who waits for the answer waits for them once, and only seconds.
//! Invariant: where nothing could be compared, or a group is not as it shall be, nobody hears that all is well.
//! Invariant: a partition counts as equal when every device that should have it has said so, and all said the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{NodeId, Transport};
use quarry_engine::sync::{Answer, Ask, Cluster, MAX_SUMS, Parts};
use serde::{Deserialize, Serialize};

use super::leaving::Left;
use super::seating::{self, Seating};
use super::seats;
use crate::cluster::watch;

/// Partitions that differ and are named, at most.
const MAX_NAMED: usize = 100;
/// Index groups that are asked at the same time.
const GROUPS: usize = 32;
/// Partitions of a ring of which it can be said who else holds something.
const MAX_HELD_POWER: u8 = 20;

/// What came out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compared {
    /// Versions of the rings that were compared by, by policy.
    pub(crate) ring_versions: BTreeMap<u16, u64>,
    /// Partitions of all rings.
    pub(crate) partitions: u64,
    /// Partitions whose copies are equal.
    pub(crate) equal: u64,
    /// Partitions of which they are not, by policy; at most so many of each.
    pub(crate) different: BTreeMap<u16, Vec<u32>>,
    /// Partitions of which a device did not answer.
    pub(crate) unknown: u64,
    /// Devices that did not answer, and why.
    pub(crate) silent: BTreeMap<String, String>,
    /// Partitions that devices hold for others, by device.
    pub(crate) handoffs: BTreeMap<String, u64>,
    /// Copies of partitions that are to be moved or made equal, those that the ring will take off a disk among them.
    pub(crate) left: u64,
    /// When that will be done, as fast as it went since somebody first asked.
    pub(crate) eta_seconds: Option<u64>,
    /// Index groups, those among them that took lines over from others.
    #[serde(default)]
    pub(crate) index_groups: usize,
    /// Those whose leader does not answer, or says that others vote than shall.
    #[serde(default)]
    pub(crate) unsettled: Vec<u32>,
    /// Volumes that are to leave their nodes.
    #[serde(default)]
    pub(crate) volumes: Left,
}

/// How much was left, whenever somebody asked.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Option<(Duration, u64)>>);

impl History {
    /// Notes what is left at a time, and says when nothing will be.
    pub(super) fn note(&self, now: Duration, left: u64) -> Option<u64> {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // More than before is another task.
        let (since, most) = *begun.filter(|(_, most)| *most >= left).get_or_insert((now, left));
        *begun = (left > 0).then_some((since, most));
        let took = now.saturating_sub(since).as_secs();
        if left == 0 {
            Some(0)
        } else {
            left.saturating_mul(took).checked_div(most - left).filter(|_| took > 0)
        }
    }
}

impl Compared {
    /// All copies are equal, and where they belong; each index group has its voters; no volume is to leave its node.
    pub(crate) fn is_clean(&self) -> bool {
        let known = !self.ring_versions.is_empty() && self.unsettled.is_empty();
        let objects =
            known && self.equal == self.partitions && self.silent.is_empty() && self.handoffs.is_empty();
        objects && self.volumes.count() == 0
    }

    /// With what the ring is going to move, and when it will be done.
    pub(crate) fn with_left(self, to_leave: u64, history: &History, now: Duration) -> Self {
        let left = to_leave + (self.partitions - self.equal) + self.handoffs.values().sum::<u64>();
        Self { left, eta_seconds: history.note(now, left), ..self }
    }

    /// In one line.
    pub(crate) fn summary(&self) -> String {
        let Self { ring_versions, partitions, equal, left, eta_seconds, .. } = self;
        if ring_versions.is_empty() {
            return "no ring is known at this node yet: nothing was compared".to_owned();
        }
        let versions: Vec<String> = ring_versions.values().map(ToString::to_string).collect();
        let versions = versions.join(", ");
        let equal = format!("ring version {versions}: {equal} of {partitions} partitions have equal copies");
        match (left, eta_seconds) {
            (0, _) => format!("{equal}, nothing is to be moved"),
            (left, Some(seconds)) => {
                format!("{equal}, {left} copies are to be moved or mended, in about {seconds} s")
            }
            (left, None) => {
                format!("{equal}, {left} copies are to be moved or mended; ask again to learn how long")
            }
        }
    }
}

/// What a device says: the sums of its partitions, and how many it holds that are not its own.
type Said = (BTreeMap<u32, u128>, u64);

/// Which of these nodes answer now.
pub(crate) async fn answering(
    net: &dyn Transport,
    nodes: impl Iterator<Item = NodeId>,
) -> BTreeMap<NodeId, bool> {
    let asked =
        nodes.map(|node| async move { (node, node == net.local() || watch::answers(net, node).await) });
    join_all(asked).await.into_iter().collect()
}

/// The index groups whose leader does not answer, or says that others vote than their rows say.
pub(crate) async fn unsettled(
    net: &dyn Transport,
    groups: &Seating,
    nodes: &BTreeMap<NodeId, bool>,
) -> Vec<u32> {
    let mut found = Vec::new();
    let all: Vec<_> = groups.iter().collect();
    for some in all.chunks(GROUPS) {
        let asked = some.iter().map(|(group, row)| async move {
            let wanted = seating::nodes(row);
            let there = wanted.iter().filter(|node| nodes.get(*node) != Some(&false)).copied().collect();
            (seats::members(net, **group, &there).await != Some(wanted)).then_some(**group)
        });
        found.extend(join_all(asked).await.into_iter().flatten());
    }
    found
}

/// Compares all partitions of all policies; `away`: devices of nodes that do not answer.
pub(crate) async fn compare(
    cluster: &dyn Cluster,
    devices: BTreeSet<DeviceId>,
    away: &BTreeSet<DeviceId>,
) -> Compared {
    let why = || "its node does not answer".to_owned();
    let silent = away.intersection(&devices).map(|device| (device.to_string(), why())).collect();
    let mut compared = Compared { silent, ..Compared::default() };
    for policy in cluster.policies() {
        let version = cluster.version(policy);
        if version > 0 {
            compared.ring_versions.insert(policy, version);
            compare_policy(cluster, policy, &devices, &mut compared).await;
        }
    }
    compared
}

async fn compare_policy(
    cluster: &dyn Cluster,
    policy: u16,
    devices: &BTreeSet<DeviceId>,
    compared: &mut Compared,
) {
    let power = cluster.power(policy);
    let partitions: u32 = 1 << power;
    let primaries: Vec<Vec<DeviceId>> = (0..partitions).map(|part| cluster.primaries(policy, part)).collect();
    let mut of: BTreeMap<DeviceId, Vec<u32>> = devices.iter().map(|device| (*device, Vec::new())).collect();
    for (part, devices) in (0_u32..).zip(&primaries) {
        devices.iter().for_each(|device| of.entry(*device).or_default().push(part));
    }
    // One that said nothing of another policy keeps nobody waiting once more.
    of.retain(|device, _| !compared.silent.contains_key(&device.to_string()));
    let asked = of.into_iter().map(|(device, parts)| async move {
        (device, ask(cluster, device, Ring { policy, power }, &parts).await)
    });
    compared.partitions += u64::from(partitions);
    let mut sums: BTreeMap<DeviceId, BTreeMap<u32, u128>> = BTreeMap::new();
    for (device, said) in join_all(asked).await {
        match said {
            Ok((own, others)) => {
                sums.insert(device, own);
                if others > 0 {
                    *compared.handoffs.entry(device.to_string()).or_default() += others;
                }
            }
            Err(why) => drop(compared.silent.insert(device.to_string(), why)),
        }
    }
    let mut different = Vec::new();
    for (part, devices) in (0_u32..).zip(&primaries) {
        let said: Option<BTreeSet<u128>> =
            devices.iter().map(|device| sums.get(device)?.get(&part).copied()).collect();
        match said {
            None => compared.unknown += 1,
            Some(said) if said.len() == 1 => compared.equal += 1,
            Some(_) if different.len() < MAX_NAMED => different.push(part),
            Some(_) => {}
        }
    }
    if !different.is_empty() {
        compared.different.insert(policy, different);
    }
}

/// How the partitions of a policy are asked for.
#[derive(Debug, Clone, Copy)]
struct Ring {
    policy: u16,
    power: u8,
}

impl Ring {
    /// The number by which devices know the first partition; those of one policy follow one another.
    fn first(self) -> u32 {
        u32::from(self.policy) << self.power
    }
}

async fn ask(cluster: &dyn Cluster, device: DeviceId, ring: Ring, own: &[u32]) -> Result<Said, String> {
    let replica = cluster.replica(device).ok_or("the node does not know it")?;
    let ask = |ask: Ask| {
        let replica = Arc::clone(&replica);
        async move { replica.ask(ask).await.map_err(|e| e.to_string()) }
    };
    let odd = || "it answered another question".to_owned();
    let (power, first) = (ring.power, ring.first());
    let mut sums = BTreeMap::new();
    for some in own.chunks(MAX_SUMS) {
        let parts: Parts = some.iter().map(|part| first + part).collect();
        match ask(Ask::Sums { power, parts, group: 1 }).await? {
            Answer::Sums(said) if said.len() == some.len() => sums.extend(some.iter().copied().zip(said)),
            _ => return Err(odd()),
        }
    }
    let (mut others, mut from) = (0, Some(first).filter(|_| power <= MAX_HELD_POWER));
    while let Some(at) = from {
        match ask(Ask::Held { power, from: at }).await? {
            Answer::Held { parts, next } => {
                let strange = parts.iter().filter(|part| own.binary_search(&(part - first)).is_err());
                others += strange.count() as u64;
                from = next.filter(|next| *next > at);
            }
            _ => return Err(odd()),
        }
    }
    Ok((sums, others))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use quarry_engine::object::Replica;

    use super::*;

    /// A ring over two devices. Neither may be asked that is known to be away.
    struct Half;

    const THERE: DeviceId = DeviceId([1; 16]);
    const AWAY: DeviceId = DeviceId([2; 16]);

    impl Cluster for Half {
        fn policies(&self) -> Vec<u16> {
            vec![0, 1]
        }

        fn version(&self, _: u16) -> u64 {
            7
        }

        fn power(&self, _: u16) -> u8 {
            1
        }

        fn primaries(&self, _: u16, _: u32) -> Vec<DeviceId> {
            vec![THERE, AWAY]
        }

        fn replica(&self, device: DeviceId) -> Option<Arc<dyn Replica>> {
            assert_eq!(device, THERE, "a device of a node that is away is not asked");
            None
        }
    }

    /// With one node down, each of its devices was waited for until who asked had given up, and nobody learned anything.
    #[test]
    fn devices_of_a_node_that_is_away_are_not_waited_for() {
        let devices = BTreeSet::from([THERE, AWAY]);
        let compared = compare(&Half, devices, &BTreeSet::from([AWAY])).now_or_never().unwrap();
        assert_eq!(compared.silent.get(&AWAY.to_string()).unwrap(), "its node does not answer");
        assert_eq!((compared.partitions, compared.unknown, compared.equal), (4, 4, 0));
        assert!(!compared.is_clean());
    }

    /// A script that restarts nodes in turn went on while a group had no leader, and when the node that it asked knew no ring yet.
    #[test]
    fn all_is_well_only_when_something_was_compared_and_every_group_is_as_it_shall_be() {
        let clean = Compared {
            ring_versions: BTreeMap::from([(0, 1)]),
            partitions: 4,
            equal: 4,
            index_groups: 8,
            ..Compared::default()
        };
        assert!(clean.is_clean());
        assert!(!Compared { unsettled: vec![3], ..clean.clone() }.is_clean());
        let unknown = Compared { index_groups: 8, ..Compared::default() };
        assert!(
            !unknown.is_clean() && unknown.summary().contains("no ring is known"),
            "{}",
            unknown.summary()
        );
        assert!(!Compared { equal: 3, ..clean }.is_clean());
    }

    #[test]
    fn what_is_left_ends_when_it_goes_on_like_this() {
        let history = History::default();
        let at = |seconds, left| history.note(Duration::from_secs(seconds), left);
        assert_eq!(at(0, 100), None);
        assert_eq!(at(10, 100), None, "nothing moved yet");
        assert_eq!((at(20, 80), at(40, 50)), (Some(80), Some(40)));
        assert_eq!(at(50, 90), Some(450));
        assert_eq!(at(60, 200), None, "another task");
        assert_eq!((at(70, 100), at(80, 0), at(90, 40)), (Some(10), Some(0), None));
    }
}
