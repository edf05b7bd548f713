//! The service catalog: where the object, volume and identity APIs are, for one project.

use serde_json::{Value, json};

use super::Context;
use super::resources::{shown, sort_of};
use crate::auth::directory::{ACCOUNT_PREFIX, role_id};
use crate::auth::roll::{flag, text};

/// The interfaces that every service is listed with.
const INTERFACES: [&str; 3] = ["public", "internal", "admin"];

/// A service of the node.
struct Service {
    kind: &'static str,
    name: &'static str,
    url: String,
}

/// The services with their URLs for a project.
fn services(context: &Context<'_>, project: &str) -> [Service; 4] {
    let volume = context.auth.volume_url(context.headers, context.arrival);
    [
        Service {
            kind: "object-store",
            name: "swift",
            url: format!("{}/v1/{ACCOUNT_PREFIX}{project}", context.object_base()),
        },
        Service { kind: "block-storage", name: "cinder", url: format!("{volume}/v3") },
        Service { kind: "volumev3", name: "cinderv3", url: format!("{volume}/v3/{project}") },
        Service { kind: "identity", name: "keystone", url: format!("{}/v3", context.base) },
    ]
}

/// The catalog of a project's token; empty without a project.
pub(super) fn of_project(context: &Context<'_>, project: Option<&str>) -> Value {
    let Some(project) = project else {
        return json!([]);
    };
    let entry = |service: &Service| {
        let endpoints: Vec<_> =
            INTERFACES.iter().map(|interface| endpoint(context, service, interface, &service.url)).collect();
        json!({ "id": id(service.kind), "type": service.kind, "name": service.name, "endpoints": endpoints })
    };
    let mut all: Vec<Value> = services(context, project).iter().map(entry).collect();
    let roll = context.roll();
    for service in roll.all("service").filter(|service| flag(service, "enabled", true)) {
        let of = roll.all("endpoint").filter(|endpoint| text(endpoint, "service_id") == text(service, "id"));
        let shown = of.filter(|endpoint| flag(endpoint, "enabled", true)).map(|endpoint| {
            let url = text(endpoint, "url");
            let url = url.replace("%(project_id)s", project).replace("%(tenant_id)s", project);
            json!({
                "id": text(endpoint, "id"), "interface": text(endpoint, "interface"), "region": endpoint.get("region"),
                "region_id": endpoint.get("region_id"), "url": url.replace("$(project_id)s", project),
            })
        });
        let shown: Vec<Value> = shown.collect();
        // A service that nobody can reach is not told of.
        if !shown.is_empty() {
            let (id, kind) = (text(service, "id"), text(service, "type"));
            all.push(json!({ "id": id, "type": kind, "name": text(service, "name"), "endpoints": shown }));
        }
    }
    Value::Array(all)
}

/// All services, for `service list`.
pub(super) fn all_services(context: &Context<'_>) -> Vec<Value> {
    let entry = |service: &Service| {
        json!({
            "id": id(service.kind), "type": service.kind, "name": service.name, "enabled": true,
            "links": { "self": format!("{}/v3/services/{}", context.base, id(service.kind)) },
        })
    };
    let own = services(context, "");
    let told = context.roll().all("service").map(|paper| shown(context, sort_of("service"), paper));
    own.iter().map(entry).chain(told).collect()
}

/// All endpoints, for `endpoint list`; the project is left as Keystone's placeholder.
pub(super) fn all_endpoints(context: &Context<'_>) -> Vec<Value> {
    let of_service = |service: &Service| {
        INTERFACES.map(|interface| {
            let mut value = endpoint(context, service, interface, &service.url);
            value["service_id"] = json!(id(service.kind));
            value["enabled"] = json!(true);
            value
        })
    };
    let own = services(context, "%(project_id)s");
    let told = context.roll().all("endpoint").map(|paper| shown(context, sort_of("endpoint"), paper));
    own.iter().flat_map(of_service).chain(told).collect()
}

fn endpoint(context: &Context<'_>, service: &Service, interface: &str, url: &str) -> Value {
    let region = &context.auth.region;
    json!({
        "id": id(&format!("{} {interface}", service.kind)),
        "interface": interface, "region": region, "region_id": region, "url": url,
    })
}

fn id(name: &str) -> String {
    role_id(&format!("service {name}"))
}
