//! The service catalog: where the object and identity APIs are, for one project.

use serde_json::{Value, json};

use super::Context;
use crate::auth::directory::{ACCOUNT_PREFIX, role_id};

/// The interfaces that every service is listed with.
const INTERFACES: [&str; 3] = ["public", "internal", "admin"];

/// A service of the node.
struct Service {
    kind: &'static str,
    name: &'static str,
    url: String,
}

/// The services with their URLs for a project.
fn services(context: &Context<'_>, project: &str) -> [Service; 2] {
    [
        Service {
            kind: "object-store",
            name: "swift",
            url: format!("{}/v1/{ACCOUNT_PREFIX}{project}", context.object_base()),
        },
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
    Value::Array(services(context, project).iter().map(entry).collect())
}

/// All services, for `service list`.
pub(super) fn all_services(context: &Context<'_>) -> Vec<Value> {
    let entry = |service: &Service| {
        json!({
            "id": id(service.kind), "type": service.kind, "name": service.name, "enabled": true,
            "links": { "self": format!("{}/v3/services/{}", context.base, id(service.kind)) },
        })
    };
    services(context, "").iter().map(entry).collect()
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
    services(context, "%(project_id)s").iter().flat_map(of_service).collect()
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
