//! Who may change something by the admin listener: programs on the node's own machine.
//!
//! It knows no passwords. Figures are read from elsewhere too, when the listener is at an address that others reach; changes are not. A
//! page in a browser of the node's machine can send requests there, so what a browser sent is refused: it says where it comes from.
//!
//! Invariant: whatever may change something is judged here, before it is looked at.

use std::net::{IpAddr, SocketAddr};

use http::header::ORIGIN;
use http::{HeaderMap, HeaderName, Method};

/// Sent by browsers alone; pages can neither set nor drop it.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Why a request to the admin listener, which is at `own`, is not answered; `None`: it is.
pub(super) fn refusal(
    method: &Method,
    headers: &HeaderMap,
    peer: SocketAddr,
    own: IpAddr,
) -> Option<&'static str> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let peer = peer.ip().to_canonical();
    if !peer.is_loopback() && peer != own.to_canonical() {
        return Some("Changes are made on the node's own machine.\n");
    }
    let page = headers.contains_key(ORIGIN) || headers.contains_key(SEC_FETCH_SITE);
    page.then_some("Changes are not made by pages in browsers.\n")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Who reached the listener could take every disk out of the cluster, and a page in a browser of the machine could add an admin.
    #[test]
    fn only_programs_of_the_machine_itself_change_something() {
        let none = HeaderMap::new();
        let judge = |method: Method, headers: &HeaderMap, peer: &str, own: &str| {
            refusal(&method, headers, SocketAddr::new(peer.parse().unwrap(), 4711), own.parse().unwrap())
                .is_none()
        };
        for (peer, own, allowed) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.9.1.2", "0.0.0.0", true),
            ("::1", "::", true),
            ("::ffff:127.0.0.1", "::", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("::ffff:192.0.2.7", "192.0.2.7", true),
            ("192.0.2.8", "192.0.2.7", false),
            ("192.0.2.8", "0.0.0.0", false),
            ("::ffff:192.0.2.8", "::", false),
        ] {
            assert_eq!(judge(Method::POST, &none, peer, own), allowed, "{peer} at {own}");
            assert_eq!(judge(Method::DELETE, &none, peer, own), allowed, "{peer} at {own}");
            assert!(judge(Method::GET, &none, peer, own), "figures are for all who reach it");
        }
        for name in [ORIGIN, SEC_FETCH_SITE] {
            let headers = HeaderMap::from_iter([(name, HeaderValue::from_static("null"))]);
            assert!(!judge(Method::POST, &headers, "127.0.0.1", "127.0.0.1"));
            assert!(judge(Method::GET, &headers, "127.0.0.1", "127.0.0.1"));
        }
    }
}
