//! What the API says of itself: versions, services, hosts, pools and their capacity, zones, extensions, filters.
//!
//! Invariant: a node writes about itself alone, in `nodes`; who was not heard of for long is down, and gets no volumes.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::ask::{Answer, Ask, NEWEST, Reply};
use super::fault::Fault;
use super::fields::{flag, number, paper, text, time_text};
use super::{Office, ZONE};
use crate::papers::{Paper, PaperError};
use crate::storage::wall_clock;

const NODES: &str = "nodes";
const SERVICES: &str = "services";
/// Name of the back end in hosts, and of its pool.
const BACKEND: &str = "quarry";
const GIB: u64 = 1 << 30;
/// A node that wrote nothing for so long is down, in microseconds.
const SILENCE: u64 = 90_000_000;
/// A node writes about itself as often, in microseconds.
const WORD: u64 = 30_000_000;
/// The services of a node.
const BINARIES: [&str; 3] = ["cinder-scheduler", "cinder-volume", "cinder-backup"];

/// Where volumes can be.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    /// `node@quarry#quarry`: what volumes have as their host.
    pub(crate) name: String,
    pub(crate) free_gb: i64,
    /// Has room for anything.
    pub(crate) roomy: bool,
    pub(crate) up: bool,
    pub(crate) disabled: bool,
    /// What volume types ask for.
    backend: String,
    total_gb: i64,
    allocated_gb: i64,
    at: String,
}

impl Pool {
    pub(crate) fn capabilities(&self) -> Map<String, Value> {
        paper(json!({
            "volume_backend_name": self.backend, "vendor_name": "Quarry", "storage_protocol": "nbd",
            "driver_version": env!("CARGO_PKG_VERSION"), "pool_name": BACKEND,
            "total_capacity_gb": self.total_gb, "free_capacity_gb": self.free_gb,
            "allocated_capacity_gb": self.allocated_gb, "provisioned_capacity_gb": self.allocated_gb,
            "reserved_percentage": 0, "max_over_subscription_ratio": "20.0",
            "thin_provisioning_support": true, "thick_provisioning_support": false,
            "QoS_support": true, "multiattach": true, "online_extend_support": true,
            "replication_enabled": false, "consistent_group_snapshot_enabled": false,
            "location_info": self.name, "backend_state": if self.up { "up" } else { "down" },
            "timestamp": self.at, "updated": null,
        }))
    }
}

/// What volumes of a node have as their host.
pub(crate) fn host_of(node: &str) -> String {
    format!("{node}@{BACKEND}#{BACKEND}")
}

/// The node in a host.
pub(crate) fn node_of(host: &str) -> &str {
    host.split('@').next().unwrap_or(host)
}

/// What this node says of itself now.
fn own(office: &Office) -> Paper {
    let usages: Vec<_> = office.store.disks().iter().map(quarry_engine::disk::DiskHandle::usage).collect();
    let total: u64 = usages.iter().map(|usage| usage.capacity).sum();
    let live: u64 = usages.iter().map(|usage| usage.live).sum();
    let leaving = office.blocks.exports.shared().is_some_and(|shared| shared.is_leaving());
    paper(json!({
        "node": office.place.host,
        "backend": office.place.backend,
        "nbd": office.place.nbd.map(|nbd| nbd.to_string()),
        "total_gb": total / GIB,
        "free_gb": total.saturating_sub(live) / GIB,
        "roomy": live < total && !leaving,
        "micros": wall_clock(),
    }))
}

/// Writes about this node, when it is time.
pub(crate) async fn say(office: &Office) -> Result<(), PaperError> {
    let (own, node) = (own(office), office.place.host.as_str());
    let said = office.papers.get(NODES, node).await?;
    let told = |said: &Paper| {
        let fresh = office.place.alone || micros(&own).saturating_sub(micros(said)) < WORD;
        let same = ["nbd", "backend"].iter().all(|key| text(said, key) == text(&own, key));
        same && flag(said, "roomy") == flag(&own, "roomy") && fresh
    };
    match said {
        Some(said) if told(&said) => Ok(()),
        Some(_) => {
            let replace = |paper: &mut Paper| -> Result<(), PaperError> {
                *paper = own.clone();
                Ok(())
            };
            office.papers.change(NODES, node, replace).await.map(drop)
        }
        None => office.papers.add(NODES, node, own.clone()).await.map(drop),
    }
}

fn micros(node: &Paper) -> u64 {
    u64::try_from(number(node, "micros")).unwrap_or(0)
}

/// All nodes, this one as it is now.
async fn nodes(office: &Office) -> Result<Vec<Arc<Paper>>, Fault> {
    let mut nodes = office.papers.all(NODES).await?;
    nodes.retain(|node| text(node, "node") != office.place.host && !office.place.alone);
    nodes.push(Arc::new(own(office)));
    nodes.sort_by(|a, b| text(a, "node").cmp(text(b, "node")));
    Ok(nodes)
}

fn is_up(node: &Paper) -> bool {
    wall_clock().saturating_sub(micros(node)) < SILENCE
}

/// All pools.
pub(crate) async fn pools(office: &Office) -> Result<Vec<Pool>, Fault> {
    let (volumes, settings) = (office.papers.all("volumes").await?, office.papers.all(SERVICES).await?);
    let pool = |node: &Arc<Paper>| {
        let name = host_of(text(node, "node"));
        let here = volumes.iter().filter(|volume| text(volume, "host") == name);
        let service = format!("{}@{BACKEND}", text(node, "node"));
        let known = settings
            .iter()
            .find(|known| text(known, "host") == service && text(known, "binary") == "cinder-volume");
        Pool {
            backend: Some(text(node, "backend"))
                .filter(|name| !name.is_empty())
                .unwrap_or(BACKEND)
                .to_owned(),
            free_gb: number(node, "free_gb"),
            roomy: flag(node, "roomy"),
            total_gb: number(node, "total_gb"),
            allocated_gb: here.map(|volume| number(volume, "size")).sum(),
            up: is_up(node),
            disabled: known.is_some_and(|known| flag(known, "disabled")),
            at: time_text(micros(node)),
            name,
        }
    };
    Ok(nodes(office).await?.iter().map(pool).collect())
}

/// Answers the paths that tell of the service.
pub(crate) async fn answer(office: &Office, ask: &Ask, resource: &str, rest: &[&str]) -> Reply {
    match (ask.method.as_str(), resource, rest) {
        ("GET", "os-services", []) => list(office, ask).await,
        ("PUT", "os-services", [what]) => change(office, ask, what).await,
        ("GET", "os-hosts", []) => hosts(office, ask).await,
        ("GET", "os-hosts", [name]) => host(office, ask, name).await,
        ("GET", "os-availability-zone", []) => Answer::ok(
            json!({ "availabilityZoneInfo": [{ "zoneName": ZONE, "zoneState": { "available": true } }] }),
        ),
        ("GET", "extensions", []) => Answer::ok(json!({ "extensions": extensions() })),
        ("GET", "scheduler-stats", ["get_pools"]) => get_pools(office, ask).await,
        ("GET", "capabilities", [host]) => capabilities(office, ask, host).await,
        ("GET", "resource_filters", []) => {
            ask.needs(33)?;
            Answer::ok(json!({ "resource_filters": filters(ask.param("resource")) }))
        }
        _ => Err(Fault::nowhere()),
    }
}

async fn get_pools(office: &Office, ask: &Ask) -> Reply {
    ask.admin("scheduler_extension:scheduler_stats:get_pools")?;
    let full = ask.param_flag("detail");
    let one = |pool: &Pool| {
        let mut shown = json!({ "name": pool.name });
        if full {
            shown["capabilities"] = Value::Object(pool.capabilities());
        }
        shown
    };
    let pools: Vec<_> = pools(office).await?.iter().map(one).collect();
    Answer::ok(json!({ "pools": pools }))
}

async fn capabilities(office: &Office, ask: &Ask, host: &str) -> Reply {
    ask.admin("volume_extension:capabilities")?;
    let pools = pools(office).await?;
    let named = |pool: &&Pool| pool.name == host || pool.name.split('#').next() == Some(host);
    let pool = pools.iter().find(named).ok_or_else(|| Fault::missing(format!("Service {host}")))?;
    let known = pool.capabilities();
    Answer::ok(json!({
        "namespace": format!("OS::Storage::Capabilities::{host}"),
        "vendor_name": known["vendor_name"], "volume_backend_name": known["volume_backend_name"],
        "pool_name": known["pool_name"], "driver_version": known["driver_version"],
        "storage_protocol": known["storage_protocol"], "display_name": "Quarry", "description": null,
        "visibility": null, "replication_targets": [], "properties": {},
    }))
}

/// A service of a node, as it is listed.
async fn services(office: &Office) -> Result<Vec<Paper>, Fault> {
    let settings = office.papers.all(SERVICES).await?;
    let mut all = Vec::new();
    for node in nodes(office).await? {
        for binary in BINARIES {
            let name = text(&node, "node");
            let host = if binary == "cinder-volume" { format!("{name}@{BACKEND}") } else { name.to_owned() };
            let set = settings.iter().find(|set| text(set, "host") == host && text(set, "binary") == binary);
            let disabled = set.is_some_and(|set| flag(set, "disabled"));
            all.push(paper(json!({
                "binary": binary, "host": host, "zone": ZONE,
                "status": if disabled { "disabled" } else { "enabled" },
                "state": if is_up(&node) { "up" } else { "down" },
                "updated_at": time_text(micros(&node)),
                "disabled_reason": set.and_then(|set| set.get("reason")).cloned(),
                "frozen": set.is_some_and(|set| flag(set, "frozen")),
            })));
        }
    }
    Ok(all)
}

async fn list(office: &Office, ask: &Ask) -> Reply {
    ask.admin("volume_extension:services:index")?;
    let mut all = services(office).await?;
    let (host, binary) = (ask.param("host"), ask.param("binary"));
    all.retain(|service| {
        let of = text(service, "host");
        host.is_none_or(|host| of == host || node_of(of) == host)
            && binary.is_none_or(|binary| text(service, "binary") == binary)
    });
    for service in &mut all {
        let volume = text(service, "binary") == "cinder-volume";
        let frozen = service.remove("frozen");
        if let Some(frozen) = frozen.filter(|_| volume) {
            service.insert("frozen".to_owned(), frozen);
            service.insert("replication_status".to_owned(), json!("disabled"));
            service.insert("active_backend_id".to_owned(), Value::Null);
            if ask.since(49) {
                let state = service.get("state").cloned().unwrap_or(Value::Null);
                service.insert("backend_state".to_owned(), state);
            }
        }
        if ask.since(7) {
            service.insert("cluster".to_owned(), Value::Null);
        }
    }
    Answer::ok(json!({ "services": all }))
}

async fn change(office: &Office, ask: &Ask, what: &str) -> Reply {
    ask.admin("volume_extension:services:update")?;
    let said = |key: &str| ask.body.get(key).and_then(Value::as_str).unwrap_or("");
    let (host, binary) = (said("host"), said("binary"));
    let all = services(office).await?;
    let known =
        |binary: &str| all.iter().any(|one| text(one, "host") == host && text(one, "binary") == binary);
    let (binary, key, new, reason) = match what {
        "enable" => (binary, "disabled", false, Value::Null),
        "disable" => (binary, "disabled", true, Value::Null),
        "disable-log-reason" => {
            let reason = said("disabled_reason").trim();
            if reason.is_empty() || reason.len() > 255 {
                return Err(Fault::bad("Invalid input for field/attribute disabled_reason."));
            }
            (binary, "disabled", true, json!(reason))
        }
        "freeze" | "thaw" if !known("cinder-volume") => {
            return Err(Fault::bad(format!("Service cinder-volume on host {host} could not be found.")));
        }
        "freeze" => ("cinder-volume", "frozen", true, Value::Null),
        "thaw" => ("cinder-volume", "frozen", false, Value::Null),
        _ => return Err(Fault::nowhere()),
    };
    if !known(binary) {
        return Err(Fault::missing(format!("Service {binary} on host {host}")));
    }
    let name = format!("{binary} {host}");
    let empty = paper(json!({ "host": host, "binary": binary }));
    match office.papers.add(SERVICES, &name, empty).await {
        Ok(_) | Err(PaperError::Taken) => {}
        Err(error) => return Err(error.into()),
    }
    let edit = |set: &mut Paper| -> Result<(), Fault> {
        set.insert(key.to_owned(), json!(new));
        if key == "disabled" {
            set.insert("reason".to_owned(), reason.clone());
        }
        Ok(())
    };
    office.papers.change(SERVICES, &name, edit).await?;
    if key == "frozen" {
        return Answer::bare(200);
    }
    let status = if new { "disabled" } else { "enabled" };
    let mut shown =
        json!({ "host": host, "service": binary, "binary": binary, "disabled": new, "status": status });
    if what != "disable" {
        shown["disabled_reason"] = reason;
    }
    Answer::ok(shown)
}

async fn hosts(office: &Office, ask: &Ask) -> Reply {
    ask.admin("volume_extension:hosts")?;
    let one = |service: Paper| {
        json!({
            "host_name": service["host"], "service": service["binary"], "zone": service["zone"],
            "service-status": if service["state"] == "up" { "available" } else { "unavailable" },
            "service-state": service["status"], "last-update": service["updated_at"],
        })
    };
    let all: Vec<_> = services(office).await?.into_iter().map(one).collect();
    Answer::ok(json!({ "hosts": all }))
}

async fn host(office: &Office, ask: &Ask, host: &str) -> Reply {
    ask.admin("volume_extension:hosts")?;
    let all = services(office).await?;
    let known = all.iter().any(|one| text(one, "host") == host && text(one, "binary") == "cinder-volume");
    if !known {
        return Err(Fault::missing(format!("Host {host}")));
    }
    let here = |paper: &&Arc<Paper>| text(paper, "host").split('#').next() == Some(host);
    let volumes = office.papers.all("volumes").await?;
    let snapshots = office.papers.all("snapshots").await?;
    let volumes: Vec<_> = volumes.iter().filter(here).collect();
    let snapshots: Vec<_> = snapshots.iter().filter(here).collect();
    let resource = |project: &str| {
        let of = |paper: &&&Arc<Paper>| project == "(total)" || text(paper, "project_id") == project;
        let sum = |papers: &[&Arc<Paper>]| -> (usize, i64) {
            let of: Vec<_> = papers.iter().filter(of).collect();
            (of.len(), of.iter().map(|paper| number(paper, "size")).sum())
        };
        let ((volumes, gb), (snapshots, snapshot_gb)) = (sum(&volumes), sum(&snapshots));
        json!({ "resource": {
            "host": host, "project": project, "volume_count": volumes.to_string(), "total_volume_gb": gb.to_string(),
            "snapshot_count": snapshots.to_string(), "total_snapshot_gb": snapshot_gb.to_string(),
        } })
    };
    let mut projects: Vec<_> = volumes.iter().map(|volume| text(volume, "project_id")).collect();
    projects.sort_unstable();
    projects.dedup();
    let all: Vec<_> = std::iter::once("(total)").chain(projects).map(resource).collect();
    Answer::ok(json!({ "host": all }))
}

/// The document of versions; at `/` as a choice.
pub(crate) fn versions(root: &str, choice: bool) -> Answer {
    let body = json!({ "versions": [{
        "id": "v3.0", "status": "CURRENT", "version": format!("3.{NEWEST}"), "min_version": "3.0",
        "updated": "2026-11-26T00:00:00Z",
        "links": [
            { "rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/" },
            { "rel": "self", "href": format!("{root}/v3/") },
        ],
        "media-types": [{ "base": "application/json", "type": "application/vnd.openstack.volume+json;version=3" }],
    }] });
    Answer { status: if choice { 300 } else { 200 }, body: Some(body).into() }
}

fn extensions() -> Vec<Value> {
    let known = [
        ("os-volume-actions", "VolumeActions", "Enable volume actions."),
        ("os-admin-actions", "AdminActions", "Enable admin actions."),
        (
            "os-extended-snapshot-attributes",
            "ExtendedSnapshotAttributes",
            "Extended snapshot attributes support.",
        ),
        ("os-types-extra-specs", "TypesExtraSpecs", "Type extra specs support."),
        ("os-types-manage", "TypesManage", "Types manage support."),
        ("os-volume-type-access", "VolumeTypeAccess", "Volume type access support."),
        ("os-volume-type-encryption", "VolumeTypeEncryption", "Encryption support for volume types."),
        ("os-quota-sets", "Quotas", "Quota management support."),
        ("os-quota-class-sets", "QuotaClasses", "Quota classes management support."),
        ("os-services", "Services", "Services support."),
        ("os-hosts", "Hosts", "Admin-only host administration."),
        ("os-availability-zone", "AvailabilityZones", "Describe Availability Zones."),
        ("os-volume-transfer", "VolumeTransfer", "Volume transfer management support."),
        ("qos-specs", "Qos_specs_manage", "QoS specs support."),
        ("backups", "Backups", "Backups support."),
        ("scheduler-stats", "Scheduler_stats", "Scheduler stats support."),
        ("capabilities", "Capabilities", "Capabilities support."),
    ];
    let one = |(alias, name, description): (&str, &str, &str)| json!({ "alias": alias, "name": name, "description": description, "links": [], "updated": "2026-11-26T00:00:00+00:00" });
    known.into_iter().map(one).collect()
}

fn filters(wanted: Option<&str>) -> Vec<Value> {
    let known: [(&str, &[&str]); 6] = [
        (
            "volume",
            &[
                "name",
                "status",
                "metadata",
                "bootable",
                "migration_status",
                "availability_zone",
                "group_id",
                "size",
                "created_at",
                "updated_at",
            ],
        ),
        (
            "snapshot",
            &["name", "status", "volume_id", "metadata", "availability_zone", "created_at", "updated_at"],
        ),
        ("backup", &["name", "status", "volume_id"]),
        ("group", &["name"]),
        ("attachment", &["volume_id", "status", "instance_id", "attach_status"]),
        ("message", &["resource_uuid", "resource_type", "event_id", "request_id", "message_level"]),
    ];
    let kept = known.into_iter().filter(|(resource, _)| wanted.is_none_or(|wanted| wanted == *resource));
    kept.map(|(resource, filters)| json!({ "resource": resource, "filters": filters })).collect()
}
