//! Quotas of projects, their defaults, and `/limits`.
//!
//! What is used is counted from the papers, never kept beside them: nothing can drift. What is under way is reserved (`reserve`), so
//! no two requests overshoot a quota, at one node or at two.
//! Invariant: -1 is no limit; what is used may be above a limit that was lowered, and then nothing is added.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Office;
use super::ask::{Answer, Ask, Reply};
use super::fault::Fault;
use super::fields::{given_number, number, text};
use crate::papers::{Paper, PaperError};

/// What has a quota, and how much of it a project has by default.
const NAMES: [(&str, i64); 7] = [
    ("volumes", 10),
    ("snapshots", 10),
    ("gigabytes", 1000),
    ("backups", 10),
    ("backup_gigabytes", 1000),
    ("groups", 10),
    ("per_volume_gigabytes", -1),
];
/// What has one for each volume type as well.
const BY_TYPE: [&str; 3] = ["volumes", "gigabytes", "snapshots"];
const DRAWER: &str = "quotas";
/// Paper of the defaults: no project's id.
const DEFAULTS: &str = "class default";

/// Numbers by what they are of.
pub(super) type Numbers = BTreeMap<String, i64>;

/// What shall be used up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need<'a> {
    pub(crate) project: &'a str,
    /// Name of the volume type.
    pub(crate) kind: &'a str,
    /// Name and how much.
    pub(crate) wants: &'a [(&'a str, i64)],
}

async fn names(office: &Office) -> Result<Vec<(String, i64)>, Fault> {
    let mut names: Vec<_> = NAMES.iter().map(|(name, limit)| ((*name).to_owned(), *limit)).collect();
    for kind in super::types::all(office).await? {
        names.extend(BY_TYPE.iter().map(|name| (format!("{name}_{}", text(&kind, "name")), -1)));
    }
    Ok(names)
}

/// The limits of a project; those of any without one.
async fn limits_of(office: &Office, project: Option<&str>) -> Result<Numbers, Fault> {
    let mut limits: Numbers = names(office).await?.into_iter().collect();
    let mut papers = vec![office.papers.get(DRAWER, DEFAULTS).await?];
    if let Some(project) = project {
        papers.push(office.papers.get(DRAWER, project).await?);
    }
    for paper in papers.iter().flatten() {
        for (name, limit) in &mut limits {
            if let Some(given) = paper.get(name).and_then(Value::as_i64) {
                *limit = given;
            }
        }
    }
    Ok(limits)
}

/// What a project uses.
async fn used_by(office: &Office, project: &str) -> Result<Numbers, Fault> {
    let mut used = Numbers::new();
    // An imported record of a backup says of what size it is: whatever it says, counting goes on.
    let mut add = |name: &str, much: i64| {
        let sum = used.entry(name.to_owned()).or_default();
        *sum = sum.saturating_add(much);
    };
    let types = super::types::all(office).await?;
    let kind_of =
        |id: &str| types.iter().find(|kind| text(kind, "id") == id).map(|kind| text(kind, "name").to_owned());
    let volumes = office.papers.all("volumes").await?;
    for volume in volumes.iter().filter(|volume| text(volume, "project_id") == project) {
        let size = number(volume, "size");
        add("volumes", 1);
        add("gigabytes", size);
        if let Some(kind) = kind_of(text(volume, "volume_type_id")) {
            add(&format!("volumes_{kind}"), 1);
            add(&format!("gigabytes_{kind}"), size);
        }
    }
    let snapshots = office.papers.all("snapshots").await?;
    for snapshot in snapshots.iter().filter(|snapshot| text(snapshot, "project_id") == project) {
        let size = number(snapshot, "size");
        add("snapshots", 1);
        add("gigabytes", size);
        if let Some(kind) = kind_of(text(snapshot, "volume_type_id")) {
            add(&format!("snapshots_{kind}"), 1);
            add(&format!("gigabytes_{kind}"), size);
        }
    }
    for backup in office.papers.all("backups").await?.iter().filter(|b| text(b, "project_id") == project) {
        add("backups", 1);
        add("backup_gigabytes", number(backup, "size"));
    }
    let groups = office.papers.all("groups").await?;
    add("groups", count(groups.iter().filter(|group| text(group, "project_id") == project).count()));
    Ok(used)
}

fn count(many: usize) -> i64 {
    i64::try_from(many).unwrap_or(i64::MAX)
}

/// What is wanted by the names of quotas: of all, and of its volume type.
pub(super) fn named(need: Need<'_>) -> impl Iterator<Item = (String, i64)> {
    need.wants.iter().flat_map(move |(name, wanted)| {
        [((*name).to_owned(), *wanted), (format!("{name}_{}", need.kind), *wanted)]
    })
}

/// Refuses what is above the project's quota when others use what they have reserved.
pub(super) async fn check(office: &Office, need: Need<'_>, reserved: &Numbers) -> Result<(), Fault> {
    let limits = limits_of(office, Some(need.project)).await?;
    let used = used_by(office, need.project).await?;
    let of = |numbers: &Numbers, name: &str| numbers.get(name).copied().unwrap_or(0);
    for (name, wanted) in named(need) {
        let Some(limit) = limits.get(&name).copied().filter(|limit| *limit >= 0) else { continue };
        let used = of(&used, &name).saturating_add(of(reserved, &name));
        if wanted > 0 && used.saturating_add(wanted) > limit {
            return Err(Fault::over(refusal(&name, wanted, limit, used)));
        }
    }
    Ok(())
}

fn refusal(name: &str, wanted: i64, limit: i64, used: i64) -> String {
    if name.contains("gigabytes") {
        return format!(
            "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed {name} quota. Requested {wanted}G, quota is {limit}G and {used}G has been consumed."
        );
    }
    format!("LimitExceeded: Maximum number of {name} allowed ({limit}) exceeded for quota '{name}'.")
}

/// Refuses a volume that is larger than one of the project may be.
pub(crate) async fn check_size(office: &Office, project: &str, size: i64) -> Result<(), Fault> {
    let limits = limits_of(office, Some(project)).await?;
    match limits.get("per_volume_gigabytes") {
        Some(limit) if *limit >= 0 && size > *limit => Err(Fault::over(format!(
            "VolumeSizeExceedsLimit: Requested volume size {size}G is larger than maximum allowed limit {limit}G."
        ))),
        _ => Ok(()),
    }
}

/// Writes the limits of a type under another name as well. Before it is renamed, and [`forget_type`] afterwards: it has its limits by
/// whichever name it has.
pub(crate) async fn copy_type(office: &Office, from: &str, to: &str) -> Result<(), Fault> {
    each(office, |paper| {
        for name in BY_TYPE {
            if let Some(limit) = paper.get(&format!("{name}_{from}")).cloned() {
                paper.insert(format!("{name}_{to}"), limit);
            }
        }
    })
    .await
}

/// Forgets the limits of a type's name that is no type's any more.
pub(crate) async fn forget_type(office: &Office, name: &str) -> Result<(), Fault> {
    each(office, |paper| BY_TYPE.iter().for_each(|of| drop(paper.remove(&format!("{of}_{name}"))))).await
}

async fn each(office: &Office, edit: impl Fn(&mut Paper) + Send + Sync) -> Result<(), Fault> {
    for name in office.papers.names(DRAWER).await? {
        let edit = |paper: &mut Paper| -> Result<(), Fault> {
            edit(paper);
            Ok(())
        };
        office.papers.change(DRAWER, &name, edit).await?;
    }
    Ok(())
}

fn shown(limits: &Numbers) -> Map<String, Value> {
    limits.iter().map(|(name, limit)| (name.clone(), json!(limit))).collect()
}

/// What is changed: names that are known, numbers from -1 on.
async fn given(office: &Office, ask: &Ask, key: &str) -> Result<Paper, Fault> {
    let known = names(office).await?;
    let mut changes = Paper::new();
    for (name, value) in ask.member(key)? {
        if matches!(name.as_str(), "tenant_id" | "force" | "skip_validation" | "id" | "class_name") {
            continue;
        }
        if !known.iter().any(|(known, _)| known == name) {
            return Err(Fault::bad(format!("Bad key(s) in quota set: {name}")));
        }
        let limit = given_number(value, name)?;
        if !(-1..=i64::from(i32::MAX)).contains(&limit) {
            return Err(Fault::bad(format!("{name} must be -1 or a number up to {}.", i32::MAX)));
        }
        changes.insert(name.clone(), json!(limit));
    }
    Ok(changes)
}

async fn keep(office: &Office, name: &str, changes: Paper) -> Result<(), Fault> {
    let merged = |paper: &mut Paper| -> Result<(), Fault> {
        paper.extend(changes.clone());
        Ok(())
    };
    if office.papers.change(DRAWER, name, merged).await?.is_some() {
        return Ok(());
    }
    match office.papers.add(DRAWER, name, changes.clone()).await {
        Err(PaperError::Taken) => office.papers.change(DRAWER, name, merged).await.map(drop),
        done => Ok(done.map(drop)?),
    }
}

/// `/os-quota-sets/…`.
pub(crate) async fn sets(office: &Office, ask: &Ask, rest: &[&str]) -> Reply {
    match (ask.method.as_str(), rest) {
        ("GET", [project]) => {
            if !ask.owns(project) {
                return Err(Fault::forbidden("volume_extension:quotas:show"));
            }
            let limits = limits_of(office, Some(project)).await?;
            let mut set = shown(&limits);
            if ask.param_flag("usage") {
                let used = used_by(office, project).await?;
                for (name, limit) in &mut set {
                    let in_use = used.get(name).copied().unwrap_or(0);
                    *limit = json!({ "limit": limit, "in_use": in_use, "reserved": 0 });
                }
            }
            set.insert("id".to_owned(), json!(project));
            Answer::ok(json!({ "quota_set": set }))
        }
        ("GET", [project, "defaults"]) => {
            if !ask.owns(project) {
                return Err(Fault::forbidden("volume_extension:quotas:show"));
            }
            let mut set = shown(&limits_of(office, None).await?);
            set.insert("id".to_owned(), json!(project));
            Answer::ok(json!({ "quota_set": set }))
        }
        ("PUT", [project]) => {
            ask.admin("volume_extension:quotas:update")?;
            let changes = given(office, ask, "quota_set").await?;
            keep(office, project, changes).await?;
            Answer::ok(json!({ "quota_set": shown(&limits_of(office, Some(project)).await?) }))
        }
        ("DELETE", [project]) => {
            ask.admin("volume_extension:quotas:delete")?;
            office.papers.remove(DRAWER, project).await?;
            Answer::bare(200)
        }
        _ => Err(Fault::nowhere()),
    }
}

/// `/os-quota-class-sets/…`: the one class is `default`.
pub(crate) async fn classes(office: &Office, ask: &Ask, rest: &[&str]) -> Reply {
    ask.admin("volume_extension:quota_classes")?;
    match (ask.method.as_str(), rest) {
        ("GET", [class]) => {
            let mut set = shown(&limits_of(office, None).await?);
            set.insert("id".to_owned(), json!(class));
            Answer::ok(json!({ "quota_class_set": set }))
        }
        ("PUT", ["default"]) => {
            let changes = given(office, ask, "quota_class_set").await?;
            keep(office, DEFAULTS, changes).await?;
            Answer::ok(json!({ "quota_class_set": shown(&limits_of(office, None).await?) }))
        }
        _ => Err(Fault::nowhere()),
    }
}

/// `/limits`.
pub(crate) async fn limits(office: &Office, ask: &Ask, rest: &[&str]) -> Reply {
    if ask.method != http::Method::GET || !rest.is_empty() {
        return Err(Fault::nowhere());
    }
    let project = match ask.param("project_id").or_else(|| ask.param("tenant_id")) {
        Some(project) if ask.caller.admin && ask.since(39) => project,
        _ => &ask.caller.project,
    };
    let limits = limits_of(office, Some(project)).await?;
    let used = used_by(office, project).await?;
    let limit = |name: &str| limits.get(name).copied().unwrap_or(-1);
    let used = |name: &str| used.get(name).copied().unwrap_or(0);
    Answer::ok(json!({ "limits": { "rate": [], "absolute": {
        "maxTotalVolumes": limit("volumes"),
        "maxTotalSnapshots": limit("snapshots"),
        "maxTotalVolumeGigabytes": limit("gigabytes"),
        "maxTotalBackups": limit("backups"),
        "maxTotalBackupGigabytes": limit("backup_gigabytes"),
        "totalVolumesUsed": used("volumes"),
        "totalSnapshotsUsed": used("snapshots"),
        "totalGigabytesUsed": used("gigabytes"),
        "totalBackupsUsed": used("backups"),
        "totalBackupGigabytesUsed": used("backup_gigabytes"),
    } } }))
}
