//! What an operator sees of the node: `/status`, `quarry status`, and the disks' figures in `/metrics`.
//!
//! Invariant: reading it asks no disk for anything; it shows what the disks' threads last counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::{Deserialize, Serialize};

/// The node at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Of the program.
    pub version: String,
    /// Since the start.
    pub uptime_seconds: u64,
    /// One for each configured disk, in the configuration's order.
    pub disks: Vec<DiskStatus>,
    /// Background work.
    pub workers: Vec<WorkerStatus>,
    /// The cluster, when the node is in one.
    #[serde(default)]
    pub cluster: Option<ClusterStatus>,
}

/// The cluster as a node knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// This node.
    pub node: String,
    /// Version of the ring; 0: there is none yet.
    pub ring_version: u64,
    /// Copies of each object.
    pub replicas: u32,
    /// Partitions of the ring.
    pub partitions: usize,
    /// The consensus groups.
    pub groups: Vec<GroupReport>,
    /// The nodes.
    pub members: Vec<MemberStatus>,
    /// The disks.
    pub devices: Vec<DeviceStatus>,
}

/// A consensus group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReport {
    /// `control`, or `index` and a number.
    pub name: String,
    /// This node takes part in it.
    pub here: bool,
    /// The node that leads, if one is known.
    pub leader: Option<String>,
    /// Its term.
    pub term: u64,
    /// Members that vote.
    pub voters: usize,
    /// Members that do not.
    pub learners: usize,
    /// Last entry of this node's log.
    pub last: u64,
    /// Last entry that this node has applied.
    pub applied: u64,
    /// Of an index group that took lines of a container over from another.
    #[serde(default)]
    pub child: Option<ChildReport>,
}

/// What an index group has that took lines of a container over from another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildReport {
    /// Number of the group that had them before.
    pub parent: u32,
    /// What it has, if it or its parent is at this node; else nothing is known of it here, or it was not made yet.
    pub range: Option<RangeReport>,
}

/// A range of a container's names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeReport {
    /// Whose container it is.
    pub account: String,
    /// The container.
    pub container: String,
    /// The first name.
    pub from: String,
    /// The name behind the last; none: to the container's end.
    pub to: Option<String>,
}

/// A node of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its identity.
    pub node: String,
    /// Where others reach it.
    pub address: String,
    /// `member` or `leaving`.
    pub state: String,
    /// It votes.
    pub votes: bool,
}

/// A disk of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its identity.
    pub device: String,
    /// The node that has it.
    pub node: String,
    /// Its failure domain.
    pub zone: u16,
    /// Its size.
    pub bytes: u64,
    /// `in`, `draining`, `drained`, `out`, or `away` where its node says that it does not serve.
    pub state: String,
    /// Replicas of partitions that the ring gives it.
    pub replicas: u64,
    /// Replicas that it should have by its size.
    pub share: u64,
}

/// One disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// As configured.
    pub path: String,
    /// `ok`, or what is wrong.
    pub state: String,
    /// Bytes that the log can hold.
    pub capacity: u64,
    /// Bytes in segments that are in use.
    pub used: u64,
    /// Bytes that are still referred to.
    pub live: u64,
    /// Clients' writes are refused: it is nearly full, or the file system of its index is.
    #[serde(default)]
    pub refuses: bool,
    /// Bytes that are free where its index lies.
    #[serde(default)]
    pub index_free: Option<u64>,
    /// Counters since the start, by name.
    pub counters: BTreeMap<String, u64>,
}

/// One background worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// `auditor`, `cleaner`, ...
    pub name: String,
    /// `idle`, `busy`, `off`, or what is wrong.
    pub state: String,
    /// What it is doing, and how far it is.
    pub progress: String,
    /// Units of work done since the start.
    pub done: u64,
    /// Units that failed since the start.
    pub errors: u64,
    /// When the round will end, if that can be said.
    pub eta_seconds: Option<u64>,
}

/// Reads disks and workers.
type Read = dyn Fn() -> (Vec<DiskStatus>, Vec<WorkerStatus>) + Send + Sync;
/// Reads the cluster.
type ReadCluster = dyn Fn() -> ClusterStatus + Send + Sync;

/// Reads the node's state when asked; clones are cheap.
#[derive(Clone)]
pub(crate) struct StatusSource {
    started: Instant,
    read: Arc<Read>,
    cluster: Option<Arc<ReadCluster>>,
}

impl fmt::Debug for StatusSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusSource").finish_non_exhaustive()
    }
}

impl StatusSource {
    /// Over a function that reads disks and workers.
    pub(crate) fn new(
        read: impl Fn() -> (Vec<DiskStatus>, Vec<WorkerStatus>) + Send + Sync + 'static,
    ) -> Self {
        Self { started: Instant::now(), read: Arc::new(read), cluster: None }
    }

    /// With the cluster.
    pub(crate) fn with_cluster(self, read: impl Fn() -> ClusterStatus + Send + Sync + 'static) -> Self {
        Self { cluster: Some(Arc::new(read)), ..self }
    }

    /// The state now.
    pub(crate) fn status(&self) -> Status {
        let (disks, workers) = (self.read)();
        let uptime_seconds = self.started.elapsed().as_secs();
        let cluster = self.cluster.as_ref().map(|read| read());
        Status { version: env!("CARGO_PKG_VERSION").to_owned(), uptime_seconds, disks, workers, cluster }
    }

    /// The state now, as JSON.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(&self.status()).expect("a status is plain data")
    }

    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        let disk = DiskStatus {
            path: "disk0".to_owned(),
            state: "ok".to_owned(),
            capacity: 1024,
            ..DiskStatus::default()
        };
        Self::new(move || (vec![disk.clone()], Vec::new()))
    }
}

/// A figure of each disk: its name in `/metrics`, what it is, and how it is read.
type DiskGauge = (&'static str, &'static str, fn(&DiskStatus) -> Option<u64>);

const DISK_GAUGES: [DiskGauge; 6] = [
    ("disk_capacity_bytes", "Bytes that the log can hold", |disk| Some(disk.capacity)),
    ("disk_used_bytes", "Bytes in segments that are in use", |disk| Some(disk.used)),
    ("disk_live_bytes", "Bytes that are still referred to", |disk| Some(disk.live)),
    ("disk_ok", "1 while the disk serves", |disk| Some(u64::from(disk.state == "ok"))),
    ("disk_refuses_writes", "1 while clients' writes are refused for want of room", |disk| {
        Some(u64::from(disk.refuses))
    }),
    ("disk_index_free_bytes", "Bytes that are free where the index lies", |disk| disk.index_free),
];

impl Collector for StatusSource {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.status();
        for (name, help, read) in DISK_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for disk in &status.disks {
                let Some(value) = read(disk) else { continue };
                let value = i64::try_from(value).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&[("disk", disk.path.as_str())])?)?;
            }
        }
        let names: BTreeSet<&str> =
            status.disks.iter().flat_map(|disk| disk.counters.keys()).map(String::as_str).collect();
        for name in names {
            let full_name = format!("disk_{name}");
            let mut family = encoder.encode_descriptor(
                &full_name,
                "Counter of the disk engine",
                None,
                MetricType::Counter,
            )?;
            for disk in &status.disks {
                let value = disk.counters.get(name).copied().unwrap_or(0);
                ConstCounter::new(value).encode(family.encode_family(&[("disk", disk.path.as_str())])?)?;
            }
        }
        let done: WorkerCounter = |worker| worker.done;
        let errors: WorkerCounter = |worker| worker.errors;
        for (name, help, read) in [
            ("worker_done", "Units of background work done", done),
            ("worker_errors", "Units that failed", errors),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for worker in &status.workers {
                ConstCounter::new(read(worker))
                    .encode(family.encode_family(&[("worker", worker.name.as_str())])?)?;
            }
        }
        Ok(())
    }
}

type WorkerCounter = fn(&WorkerStatus) -> u64;
