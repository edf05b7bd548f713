//! Counters and histograms in the OpenMetrics text format.
//!
//! Invariant: a label's values are a closed set: no client can make the number of series grow.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::http::Entrance;
use crate::panics;
use crate::status::StatusSource;

/// Which API a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Api {
    Object,
    Identity,
    Volume,
    Admin,
}

/// Methods, the rest under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Verb(&'static str);

const VERBS: [Verb; 7] =
    [Verb("GET"), Verb("HEAD"), Verb("PUT"), Verb("POST"), Verb("DELETE"), Verb("COPY"), Verb("OPTIONS")];

impl Verb {
    fn of(method: &Method) -> Self {
        VERBS.into_iter().find(|verb| verb.0 == method.as_str()).unwrap_or(Verb("other"))
    }
}

impl EncodeLabelValue for Verb {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        EncodeLabelValue::encode(&self.0, encoder)
    }
}

impl EncodeLabelValue for Api {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let name = match self {
            Self::Object => "object",
            Self::Identity => "identity",
            Self::Volume => "volume",
            Self::Admin => "admin",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

impl From<Entrance> for Api {
    fn from(entrance: Entrance) -> Self {
        match entrance {
            Entrance::Object => Self::Object,
            Entrance::Identity => Self::Identity,
            Entrance::Volume => Self::Volume,
            Entrance::Admin => Self::Admin,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    api: Api,
    method: Verb,
    status: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TimeLabels {
    api: Api,
    method: Verb,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ApiLabel {
    api: Api,
}

/// What the node counts about its requests; the disks' figures are read from them when asked for.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<TimeLabels, Histogram, fn() -> Histogram>,
    connections: Family<ApiLabel, Gauge>,
    in_flight: Gauge,
    received: Counter,
    sent: Counter,
}

/// From half a millisecond to about 16 s.
fn latency_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

impl Metrics {
    /// Of `/metrics`.
    pub(crate) const CONTENT_TYPE: &'static str =
        "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// All at zero; `disks` tells what the disks are like when asked.
    pub(crate) fn new(disks: StatusSource) -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::with_prefix("quarry"),
            requests: Family::default(),
            seconds: Family::new_with_constructor(latency_histogram),
            connections: Family::default(),
            in_flight: Gauge::default(),
            received: Counter::default(),
            sent: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("http_requests", "Requests answered", metrics.requests.clone());
        registry.register(
            "http_request_seconds",
            "Time from request head to the answer's last byte",
            metrics.seconds.clone(),
        );
        registry.register("http_connections", "Open connections", metrics.connections.clone());
        registry.register("http_in_flight", "Requests being answered", metrics.in_flight.clone());
        registry.register("http_received_bytes", "Bytes of request bodies", metrics.received.clone());
        registry.register("http_sent_bytes", "Bytes of answers' bodies", metrics.sent.clone());
        registry.register("panics", "Panics of the process, each of which is a bug", panics::counter());
        registry.register_collector(Box::new(disks));
        Arc::new(metrics)
    }

    /// A request's head is in.
    pub(crate) fn begun(&self) {
        self.in_flight.inc();
    }

    /// A request's answer is out, or the client gave up.
    pub(crate) fn finished(
        &self,
        api: Api,
        method: &Method,
        status: u16,
        took: Duration,
        received: u64,
        sent: u64,
    ) {
        let method = Verb::of(method);
        self.requests.get_or_create(&RequestLabels { api, method, status: status.into() }).inc();
        self.seconds.get_or_create(&TimeLabels { api, method }).observe(took.as_secs_f64());
        self.in_flight.dec();
        self.received.inc_by(received);
        self.sent.inc_by(sent);
    }

    /// A connection was accepted.
    pub(crate) fn connected(&self, entrance: Entrance) {
        self.connections.get_or_create(&ApiLabel { api: entrance.into() }).inc();
    }

    /// A connection ended.
    pub(crate) fn disconnected(&self, entrance: Entrance) {
        self.connections.get_or_create(&ApiLabel { api: entrance.into() }).dec();
    }

    /// Everything, as text.
    pub(crate) fn encode(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("writing into a String never fails");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_clients_invent_share_one_series() {
        let metrics = Metrics::new(StatusSource::for_test());
        for method in ["GET", "BREW", "FOO"] {
            metrics.begun();
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            metrics.finished(Api::Object, &method, 200, Duration::from_millis(1), 1, 2);
        }
        let text = metrics.encode();
        assert!(
            text.contains("quarry_http_requests_total{api=\"object\",method=\"GET\",status=\"200\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("quarry_http_requests_total{api=\"object\",method=\"other\",status=\"200\"} 2"),
            "{text}"
        );
        assert!(
            text.contains("quarry_http_in_flight 0") && text.contains("quarry_http_sent_bytes_total 6"),
            "{text}"
        );
        assert!(text.contains("quarry_disk_capacity_bytes{disk=\"disk0\"} 1024"), "{text}");
        assert!(text.contains("quarry_disk_refuses_writes{disk=\"disk0\"} 0"), "{text}");
        assert!(!text.contains("quarry_disk_index_free_bytes{"), "it is not known: {text}");
        assert!(text.contains("\nquarry_panics_total "), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
