//! How clients reach the node: the URLs that tokens and the catalog carry.
//!
//! Invariant: a Host header is only copied into a URL when it is a plain host and port.

use http::HeaderMap;
use http::header::HOST;

use crate::config::Listen;

/// Which listener a request came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The object API.
    Object,
    /// The identity API.
    Identity,
    /// The volume API.
    Volume,
}

/// The node's public ports, and what the configuration says clients should use instead.
#[derive(Debug, Clone)]
pub(crate) struct Endpoints {
    object_port: u16,
    identity_port: u16,
    volume_port: u16,
    object_url: Option<String>,
    identity_url: Option<String>,
    volume_url: Option<String>,
}

impl Endpoints {
    /// For listeners that are bound to these ports.
    pub(crate) fn new(listen: &Listen, object_port: u16, identity_port: u16, volume_port: u16) -> Self {
        let text = |url: &Option<toml::Spanned<String>>| url.as_ref().map(|url| url.get_ref().clone());
        let (object_url, identity_url) = (text(&listen.object_url), text(&listen.identity_url));
        let volume_url = text(&listen.volume_url);
        Self { object_port, identity_port, volume_port, object_url, identity_url, volume_url }
    }

    /// Base URL of the object API, no path, for a client that sent these headers.
    pub(crate) fn object(&self, headers: &HeaderMap, arrival: Arrival) -> String {
        let there = arrival == Arrival::Object;
        self.object_url.clone().unwrap_or_else(|| url(headers, there, self.object_port))
    }

    /// Base URL of the identity API, no path.
    pub(crate) fn identity(&self, headers: &HeaderMap, arrival: Arrival) -> String {
        let there = arrival == Arrival::Identity;
        self.identity_url.clone().unwrap_or_else(|| url(headers, there, self.identity_port))
    }

    /// Base URL of the volume API, no path.
    pub(crate) fn volume(&self, headers: &HeaderMap, arrival: Arrival) -> String {
        let there = arrival == Arrival::Volume;
        self.volume_url.clone().unwrap_or_else(|| url(headers, there, self.volume_port))
    }
}

/// `http://` and the host the client named; with its port when the request came in `there`, else with `port`.
fn url(headers: &HeaderMap, there: bool, port: u16) -> String {
    let named = headers.get(HOST).and_then(|host| host.to_str().ok()).filter(|host| is_plain(host));
    let Some(named) = named else {
        return format!("http://127.0.0.1:{port}");
    };
    if there {
        return format!("http://{named}");
    }
    format!("http://{}:{port}", without_port(named))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

fn is_plain(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    !host.is_empty() && host.len() <= 255 && host.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_host(host: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        headers
    }

    #[test]
    fn urls_use_the_host_that_the_client_named() {
        let endpoints = Endpoints::new(&Listen::default(), 8080, 5000, 8776);
        let object = |host: &str, arrival| endpoints.object(&with_host(host), arrival);
        assert_eq!(object("node:8081", Arrival::Object), "http://node:8081");
        assert_eq!(object("node:5000", Arrival::Identity), "http://node:8080");
        assert_eq!(object("[::1]:5000", Arrival::Identity), "http://[::1]:8080");
        assert_eq!(object("[::1]", Arrival::Identity), "http://[::1]:8080");
        assert_eq!(object("node", Arrival::Identity), "http://node:8080");
        assert_eq!(endpoints.volume(&with_host("node:5000"), Arrival::Identity), "http://node:8776");
        assert_eq!(object("a/b\"", Arrival::Object), "http://127.0.0.1:8080");
        assert_eq!(endpoints.object(&HeaderMap::new(), Arrival::Object), "http://127.0.0.1:8080");
    }
}
