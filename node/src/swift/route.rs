//! From method, URI and headers to one `Operation`: all of the request line is judged here, before anything is touched.
//!
//! Invariant: `parse_request` never panics, whatever it is given.
//! Invariant: names in an `Operation` are UTF-8 without NUL, and none is empty.

use std::sync::Arc;

use http::header::{ALLOW, HeaderMap};
use http::{HeaderValue, Method, Uri};
use percent_encoding::percent_decode_str;
use quarry_engine::object::ObjectPath;

use super::error::{Result, SwiftError};
use super::limits::Limits;
use super::listing::{Format, ListingQuery};
use super::query::Query;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// `GET /info`.
    Info,
    /// On an account.
    Account {
        /// Its name.
        account: Arc<str>,
        /// What to do.
        action: Action,
    },
    /// On a container.
    Container {
        /// Name of its account.
        account: Arc<str>,
        /// Its name.
        container: Arc<str>,
        /// What to do.
        action: Action,
    },
    /// On an object.
    Object {
        /// Its full name.
        path: ObjectPath,
        /// What to do.
        action: ObjectAction,
    },
    /// Delete the objects and containers that the body names.
    BulkDelete {
        /// Account of them all.
        account: Arc<str>,
    },
}

/// What to do with an account or a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// List it.
    Get(Box<ListingQuery>),
    /// Tell its headers.
    Head(Format),
    /// Create it or change its headers.
    Put,
    /// Change its headers.
    Post,
    /// Remove it.
    Delete,
    /// What may be done (CORS pre-flight).
    Options,
}

/// What to do with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectAction {
    /// Send it.
    Get(View),
    /// Send its headers.
    Head(View),
    /// Store the body.
    Put(View),
    /// Store the body, a manifest of a static large object.
    PutManifest {
        /// Send white space while segments are checked.
        heartbeat: bool,
    },
    /// Replace its headers.
    Post,
    /// Remove it.
    Delete,
    /// Remove the segments of a static large object, then it.
    DeleteManifest {
        /// Leave the segments to a worker.
        deferred: bool,
    },
    /// Copy it to where the Destination header says.
    Copy(View),
    /// What may be done (CORS pre-flight).
    Options,
}

/// Which of its faces a large object shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// The manifest itself, not what it stands for.
    pub manifest: bool,
    /// The manifest as a client would send it.
    pub raw: bool,
    /// Only this part of a static large object, as given.
    pub part_number: Option<String>,
}

const ACCOUNT_METHODS: &str = "GET, HEAD, PUT, POST, DELETE, OPTIONS";
const CONTAINER_METHODS: &str = "GET, HEAD, PUT, POST, DELETE, OPTIONS";
pub(crate) const OBJECT_METHODS: &str = "GET, HEAD, PUT, POST, DELETE, OPTIONS, COPY";

/// What a request asks for, or why it cannot be.
pub fn parse_request(method: &Method, uri: &Uri, headers: &HeaderMap, limits: &Limits) -> Result<Operation> {
    let path = decode_path(uri.path())?;
    if path == "/info" {
        return match *method {
            Method::GET | Method::HEAD | Method::OPTIONS => Ok(Operation::Info),
            _ => Err(not_allowed("GET, HEAD, OPTIONS")),
        };
    }
    let (account, container, object) = split_path(&path)?;
    let query = Query::parse(uri.query())?;
    if query.has("bulk-delete") && (*method == Method::POST || *method == Method::DELETE) {
        return Ok(Operation::BulkDelete { account: account.into() });
    }
    let writes = *method == Method::PUT || *method == Method::POST || method.as_str() == "COPY";
    check_name("Account", account, limits.max_account_name_length, true)?;
    if container.is_empty() {
        let action = action(method, &query, headers, limits.account_listing_limit, ACCOUNT_METHODS)?;
        if action == Action::Delete && !query.is_empty() {
            return Err(SwiftError::status(400));
        }
        return Ok(Operation::Account { account: account.into(), action });
    }
    check_name("Container", container, limits.max_container_name_length, writes)?;
    if object.is_empty() {
        let action = action(method, &query, headers, limits.container_listing_limit, CONTAINER_METHODS)?;
        return Ok(Operation::Container { account: account.into(), container: container.into(), action });
    }
    check_name("Object", object, limits.max_object_name_length, writes)?;
    let action = object_action(method, &query)?;
    let path = ObjectPath { account: account.into(), container: container.into(), object: object.into() };
    Ok(Operation::Object { path, action })
}

fn action(
    method: &Method,
    query: &Query,
    headers: &HeaderMap,
    limit: usize,
    allowed: &str,
) -> Result<Action> {
    Ok(match *method {
        Method::GET => Action::Get(Box::new(ListingQuery::parse(query, headers, limit)?)),
        Method::HEAD => Action::Head(Format::negotiate(query, headers)?),
        Method::PUT => Action::Put,
        Method::POST => Action::Post,
        Method::DELETE => Action::Delete,
        Method::OPTIONS => Action::Options,
        _ => return Err(not_allowed(allowed)),
    })
}

fn object_action(method: &Method, query: &Query) -> Result<ObjectAction> {
    let manifest = query.get("multipart-manifest");
    let view = View {
        manifest: manifest == Some("get"),
        raw: manifest == Some("get") && query.get("format") == Some("raw"),
        part_number: query.get("part-number").map(str::to_owned),
    };
    Ok(match *method {
        Method::GET => ObjectAction::Get(view),
        Method::HEAD => ObjectAction::Head(view),
        Method::PUT if manifest == Some("put") => {
            ObjectAction::PutManifest { heartbeat: query.is_true("heartbeat") }
        }
        Method::PUT => ObjectAction::Put(view),
        Method::POST => ObjectAction::Post,
        Method::DELETE if manifest == Some("delete") => {
            ObjectAction::DeleteManifest { deferred: query.is_true("async") }
        }
        Method::DELETE => ObjectAction::Delete,
        Method::OPTIONS => ObjectAction::Options,
        _ if method.as_str() == "COPY" => ObjectAction::Copy(view),
        _ => return Err(not_allowed(OBJECT_METHODS)),
    })
}

/// The decoded path; UTF-8 without NUL.
fn decode_path(raw: &str) -> Result<std::borrow::Cow<'_, str>> {
    let invalid = || SwiftError::message(412, "Invalid UTF8 or contains NULL");
    let path = percent_decode_str(raw).decode_utf8().map_err(|_| invalid())?;
    if path.contains('\0') { Err(invalid()) } else { Ok(path) }
}

/// Account, container and object of a path `/v1/...`; the last two may be empty.
fn split_path(path: &str) -> Result<(&str, &str, &str)> {
    let rest = path.strip_prefix("/v1.0").or_else(|| path.strip_prefix("/v1"));
    let Some(rest) = rest else {
        // A path of one part names no account, whatever its version.
        let lone = path
            .strip_prefix('/')
            .is_some_and(|rest| !rest.is_empty() && !rest.trim_end_matches('/').contains('/'));
        return Err(if lone { SwiftError::message(412, "Bad URL") } else { SwiftError::status(404) });
    };
    if rest.is_empty() {
        return Err(SwiftError::message(412, "Bad URL"));
    }
    let Some(rest) = rest.strip_prefix('/') else { return Err(SwiftError::status(404)) };
    if rest.is_empty() {
        return Err(SwiftError::message(412, "Bad URL"));
    }
    let mut parts = rest.splitn(3, '/');
    let (account, container, object) =
        (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    if account.is_empty() || (container.is_empty() && !object.is_empty()) {
        return Err(SwiftError::status(404));
    }
    Ok((account, container, object))
}

fn check_name(what: &str, name: &str, limit: usize, refuse: bool) -> Result<()> {
    if name.len() <= limit {
        return Ok(());
    }
    if refuse {
        Err(SwiftError::message(400, format!("{what} name length of {} longer than {limit}", name.len())))
    } else {
        Err(SwiftError::status(404))
    }
}

fn not_allowed(methods: &str) -> SwiftError {
    let value = HeaderValue::from_str(methods).unwrap_or_else(|_| HeaderValue::from_static("GET"));
    SwiftError::status(405).with(ALLOW, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> Result<Operation> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        parse_request(&method, &uri.parse().unwrap(), &HeaderMap::new(), &Limits::default())
    }

    fn code(method: &str, uri: &str) -> u16 {
        parse(method, uri).unwrap_err().code()
    }

    #[test]
    fn a_path_names_account_container_and_object() {
        let Operation::Object { path, action } = parse("PUT", "/v1/AUTH_a/c%20d/x//%C3%A9/%2525").unwrap()
        else {
            panic!("not an object")
        };
        assert_eq!((&*path.account, &*path.container, &*path.object), ("AUTH_a", "c d", "x//é/%25"));
        assert_eq!(action, ObjectAction::Put(View::default()));
        assert!(matches!(parse("GET", "/v1/a/c/"), Ok(Operation::Container { action: Action::Get(_), .. })));
        assert!(matches!(parse("HEAD", "/v1/a/"), Ok(Operation::Account { action: Action::Head(_), .. })));
        assert!(matches!(parse("GET", "/info"), Ok(Operation::Info)));
    }

    #[test]
    fn bad_paths_have_swifts_statuses() {
        assert_eq!(code("GET", "/v1/a/%ff"), 412);
        assert_eq!(code("PUT", "/v1/a/b%00c"), 412);
        assert_eq!(code("PUT", "/v1/"), 412);
        assert_eq!(code("PUT", "/v1"), 412);
        assert_eq!(code("GET", "/v1/a//o"), 404);
        assert_eq!(code("GET", "/v1//c/o"), 404);
        assert_eq!(code("GET", "/v1///o"), 404);
        assert_eq!(code("GET", "/elsewhere"), 412);
        assert_eq!(code("GET", "/v2/a/c"), 404);
        assert_eq!(code("GET", "//v1/a"), 404);
        assert_eq!(code("LICK", "/v1/a"), 405);
        assert_eq!(code("LICK", "/v1/a/c/o"), 405);
        assert_eq!(code("COPY", "/v1/a/c"), 405);
        assert_eq!(code("PUT", &format!("/v1/a/{}", "c".repeat(257))), 400);
        assert_eq!(code("PUT", &format!("/v1/a/c/{}", "o".repeat(1025))), 400);
        assert_eq!(code("GET", &format!("/v1/a/c/{}", "o".repeat(1025))), 404);
        assert_eq!(code("DELETE", "/v1/a?x=y"), 400);
    }

    #[test]
    fn the_query_chooses_the_face_of_a_large_object() {
        let Ok(Operation::Object { action: ObjectAction::Get(view), .. }) =
            parse("GET", "/v1/a/c/o?multipart-manifest=get&format=raw&part-number=3")
        else {
            panic!("not a GET")
        };
        assert!(view.manifest && view.raw);
        assert_eq!(view.part_number.as_deref(), Some("3"));
        let put = parse("PUT", "/v1/a/c/o?multipart-manifest=put&heartbeat=on");
        assert!(matches!(
            put,
            Ok(Operation::Object { action: ObjectAction::PutManifest { heartbeat: true }, .. })
        ));
        assert!(matches!(parse("POST", "/v1/a?bulk-delete"), Ok(Operation::BulkDelete { .. })));
        assert!(matches!(parse("DELETE", "/v1/a/c/o?bulk-delete"), Ok(Operation::BulkDelete { .. })));
    }

    #[test]
    fn no_bytes_make_the_parser_panic() {
        let mut seed = 1_u64;
        for _ in 0..20_000 {
            let mut text = String::from("/v1/");
            for _ in 0..20 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                text.push(char::from(b"/%0ac?=&Ff+.-\"v1~"[(seed >> 33) as usize % 17]));
            }
            if let Ok(uri) = text.parse::<Uri>() {
                for method in [Method::GET, Method::PUT, Method::DELETE] {
                    let _ = parse_request(&method, &uri, &HeaderMap::new(), &Limits::default());
                }
            }
        }
    }
}
