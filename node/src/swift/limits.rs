//! Every limit of the Swift API in one place: what `/info` tells is what is enforced.
//!
//! Invariant: one metadata value fits into the overall size, and the overall size into the header limit times the count.

use std::time::Duration;

/// Limits of the Swift API; the defaults are those of Swift 2.38.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest object body in bytes.
    pub max_file_size: u64,
    /// Longest metadata name, without its `X-...-Meta-` prefix.
    pub max_meta_name_length: usize,
    /// Longest metadata value.
    pub max_meta_value_length: usize,
    /// Most metadata entries of one account, container or object.
    pub max_meta_count: usize,
    /// Largest sum of metadata names and values.
    pub max_meta_overall_size: usize,
    /// Longest value of any header.
    pub max_header_size: usize,
    /// Longest object name in bytes.
    pub max_object_name_length: usize,
    /// Longest container name in bytes.
    pub max_container_name_length: usize,
    /// Longest account name in bytes.
    pub max_account_name_length: usize,
    /// Most rows of one container listing.
    pub container_listing_limit: usize,
    /// Most rows of one account listing.
    pub account_listing_limit: usize,
    /// Most object-backed segments of one static large object.
    pub slo_max_segments: usize,
    /// Largest manifest a client may send.
    pub slo_max_manifest_size: usize,
    /// Deepest nesting of static large objects.
    pub slo_max_depth: usize,
    /// Most pieces one large-object answer may be assembled from.
    pub max_pieces: usize,
    /// How often a slow answer with a heartbeat sends white space.
    pub yield_frequency: Duration,
    /// Most names in one bulk delete.
    pub bulk_max_deletes: usize,
    /// A bulk delete gives up after this many failures.
    pub bulk_max_failed_deletes: usize,
    /// Largest request body that is read and dropped so that a refusal reaches the client.
    pub max_drain: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_file_size: 5_368_709_122,
            max_meta_name_length: 128,
            max_meta_value_length: 256,
            max_meta_count: 90,
            max_meta_overall_size: 4096,
            max_header_size: 8192,
            max_object_name_length: 1024,
            max_container_name_length: 256,
            max_account_name_length: 256,
            container_listing_limit: 10_000,
            account_listing_limit: 10_000,
            slo_max_segments: 1000,
            slo_max_manifest_size: 8 << 20,
            slo_max_depth: 10,
            max_pieces: 100_000,
            yield_frequency: Duration::from_secs(10),
            bulk_max_deletes: 10_000,
            bulk_max_failed_deletes: 1000,
            max_drain: 1 << 20,
        }
    }
}

/// What of the Swift API is switched on, and how it is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwiftOptions {
    /// Prefixes of account names that are served, with their underscore: `AUTH_`.
    pub reseller_prefixes: Vec<String>,
    /// The one of them that needs a service token as well.
    pub service_prefix: String,
    /// Whether a reseller administrator may create and delete accounts.
    pub allow_account_management: bool,
    /// Whether `X-Open-Expired` lets clients see expired objects.
    pub allow_open_expired: bool,
    /// Whether a CORS answer is given only to allowed origins.
    pub strict_cors_mode: bool,
    /// Version told by `/info`.
    pub version: String,
}

impl Default for SwiftOptions {
    fn default() -> Self {
        Self {
            reseller_prefixes: vec!["AUTH_".into(), "SERVICE_".into()],
            service_prefix: "SERVICE_".into(),
            allow_account_management: true,
            allow_open_expired: true,
            strict_cors_mode: true,
            version: "2.38.3".into(),
        }
    }
}
