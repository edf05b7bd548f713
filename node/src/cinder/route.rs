//! Which resource a path means. `/v3/volumes` and `/v3/PROJECT/volumes` are the same since 3.67; both are taken always.
//!
//! Invariant: a path that names a project names the token's, for whoever is no admin.

use std::sync::Arc;

use super::ask::{Ask, Reply};
use super::fault::Fault;
use super::{
    Office, attachments, backups, group_snapshots, group_types, groups, manage, messages, qos, quotas,
    services, snapshots, transfers, types, volumes,
};

/// Resources, by the first part of their paths.
const RESOURCES: [&str; 29] = [
    "volumes",
    "snapshots",
    "types",
    "os-quota-sets",
    "os-quota-class-sets",
    "limits",
    "os-services",
    "os-hosts",
    "os-availability-zone",
    "extensions",
    "scheduler-stats",
    "capabilities",
    "resource_filters",
    "attachments",
    "os-volume-transfer",
    "volume-transfers",
    "qos-specs",
    "messages",
    "groups",
    "group_types",
    "group_snapshots",
    "backups",
    "default-types",
    "clusters",
    "workers",
    "manageable_volumes",
    "manageable_snapshots",
    "os-volume-manage",
    "os-snapshot-manage",
];

/// Answers a request of somebody who is known.
pub(crate) async fn answer(office: &Arc<Office>, ask: &Ask) -> Reply {
    let path = ask.path.strip_suffix(".json").unwrap_or(&ask.path);
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    // An empty part is kept where an id stands: `/volumes/` is no list.
    let mut parts: Vec<&str> = decoded.trim_start_matches('/').split('/').collect();
    if parts.first() != Some(&"v3") {
        return Err(Fault::nowhere());
    }
    parts.remove(0);
    let named = parts.first().is_some_and(|first| RESOURCES.contains(first));
    if !named && parts.len() > 1 {
        let project = parts.remove(0);
        if !ask.caller.admin && project != ask.caller.project {
            return Err(Fault::bad("Malformed request url"));
        }
    }
    let Some((resource, rest)) = parts.split_first() else { return Err(Fault::nowhere()) };
    match *resource {
        "volumes" => volumes::answer(office, ask, rest).await,
        "snapshots" => snapshots::answer(office, ask, rest).await,
        "types" => types::answer(office, ask, rest).await,
        "default-types" => types::defaults(office, ask, rest).await,
        "os-quota-sets" => quotas::sets(office, ask, rest).await,
        "os-quota-class-sets" => quotas::classes(office, ask, rest).await,
        "limits" => quotas::limits(office, ask, rest).await,
        "os-services"
        | "os-hosts"
        | "os-availability-zone"
        | "extensions"
        | "scheduler-stats"
        | "capabilities"
        | "resource_filters" => services::answer(office, ask, resource, rest).await,
        "attachments" => attachments::answer(office, ask, rest).await,
        "os-volume-transfer" | "volume-transfers" => {
            transfers::answer(office, ask, *resource == "volume-transfers", rest).await
        }
        "qos-specs" => qos::answer(office, ask, rest).await,
        "messages" => messages::answer(office, ask, rest).await,
        "groups" => groups::answer(office, ask, rest).await,
        "group_types" => group_types::answer(office, ask, rest).await,
        "group_snapshots" => group_snapshots::answer(office, ask, rest).await,
        "backups" => backups::answer(office, ask, rest).await,
        "manageable_volumes" | "os-volume-manage" => manage::volumes(office, ask, rest).await,
        "manageable_snapshots" | "os-snapshot-manage" => manage::snapshots(office, ask, rest).await,
        _ => Err(Fault::nowhere()),
    }
}
