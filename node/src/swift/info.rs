//! `GET /info`: what this server can do and its limits, as clients ask for it.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response};
use quarry_engine::object::Policies;
use serde_json::{Value, json};

use super::body::ResponseBody;
use super::limits::{Limits, SwiftOptions};

/// The document. Policies that new containers cannot have are left out.
pub(crate) fn render(limits: &Limits, options: &SwiftOptions, policies: &Policies) -> String {
    let policies: Vec<Value> = policies
        .iter()
        .filter(|policy| !policy.deprecated)
        .map(|policy| {
            let names: Vec<&str> = policy.names().collect();
            let mut entry = json!({"name": policy.name, "aliases": names.join(", ")});
            if policy.default {
                entry["default"] = true.into();
            }
            entry
        })
        .collect();
    json!({
        "swift": {
            "version": options.version,
            "strict_cors_mode": options.strict_cors_mode,
            "policies": policies,
            "allow_account_management": options.allow_account_management,
            "account_autocreate": true,
            "allow_open_expired": options.allow_open_expired,
            "max_file_size": limits.max_file_size,
            "max_meta_name_length": limits.max_meta_name_length,
            "max_meta_value_length": limits.max_meta_value_length,
            "max_meta_count": limits.max_meta_count,
            "max_meta_overall_size": limits.max_meta_overall_size,
            "max_header_size": limits.max_header_size,
            "max_object_name_length": limits.max_object_name_length,
            "container_listing_limit": limits.container_listing_limit,
            "account_listing_limit": limits.account_listing_limit,
            "max_account_name_length": limits.max_account_name_length,
            "max_container_name_length": limits.max_container_name_length,
            "extra_header_count": 0,
        },
        "slo": {
            "max_manifest_segments": limits.slo_max_segments,
            "max_manifest_size": limits.slo_max_manifest_size,
            "yield_frequency": limits.yield_frequency.as_secs(),
            "min_segment_size": 1,
            "allow_async_delete": false,
        },
        "bulk_delete": {
            "max_deletes_per_request": limits.bulk_max_deletes,
            "max_failed_deletes": limits.bulk_max_failed_deletes,
        },
        "container_quotas": {},
        "account_quotas": {},
        "tempurl": {
            "methods": ["GET", "HEAD", "PUT", "POST", "DELETE"],
            "incoming_remove_headers": ["x-timestamp", "x-open-expired"],
            "incoming_allow_headers": [],
            "outgoing_remove_headers": ["x-object-meta-*"],
            "outgoing_allow_headers": ["x-object-meta-public-*"],
            "allowed_digests": ["sha256", "sha512"],
            "deprecated_digests": [],
        },
        "tempauth": {"account_acls": true},
    })
    .to_string()
}

/// The answer.
pub(crate) fn answer(info: String) -> Response<ResponseBody> {
    let info = Bytes::from(info);
    let mut response = Response::new(ResponseBody::Full(info.clone()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(info.len()));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_tells_the_limits_that_are_enforced() {
        let limits = Limits { max_meta_count: 7, ..Limits::default() };
        let info: Value =
            serde_json::from_str(&render(&limits, &SwiftOptions::default(), &Policies::default())).unwrap();
        assert_eq!(info["swift"]["max_meta_count"], 7);
        assert_eq!(info["swift"]["max_file_size"], 5_368_709_122_u64);
        assert_eq!(info["swift"]["policies"][0]["default"], true);
        assert_eq!(info["slo"]["max_manifest_segments"], 1000);
    }
}
