//! OpenStack Swift's object API (v1) over the object layer.
//!
//! A request is parsed fully into an [`route::Operation`], authorised, then acted on; each step has its module.
//! Invariant: no storage rule lives here: listings, counters, durability and conditions on writes are the object layer's.
//! Invariant: `/info` names exactly what is here.

mod account;
mod acl;
mod authorize;
mod body;
mod bulk;
mod caller;
mod container;
mod cors;
mod dlo;
mod error;
pub mod fuzzing;
mod headers;
mod info;
mod limits;
mod listing;
mod object;
mod query;
mod quota;
mod report;
mod route;
mod slo;
mod tempurl;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::rig as testing;
mod timestamp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderName};
use http::{HeaderValue, Method, Request, Response, Uri};
use hyper::body::Body;
use quarry_engine::object::Store;

pub use body::{BoxError, ResponseBody};
pub use caller::Caller;
pub use error::SwiftError;
pub use limits::{Limits, SwiftOptions};
pub use listing::{Format, ListingQuery};
pub use query::Query;
pub use route::{Action, ObjectAction, Operation, View, parse_request};

use body::RequestBody;

/// How long a refused request's body is read and dropped, at most.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// The Swift API; clones are cheap.
#[derive(Debug, Clone)]
pub struct SwiftApi {
    inner: Arc<Api>,
}

/// What every step of a request needs.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) store: Store,
    pub(crate) limits: Limits,
    pub(crate) options: SwiftOptions,
}

/// One request: who, and with which headers.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) caller: Option<Caller>,
    pub(crate) headers: HeaderMap,
    /// Unix seconds at its arrival, for expiry.
    pub(crate) now: u64,
    /// What a signature in the query lets it reach; then the caller does not count.
    pub(crate) scope: Option<tempurl::Scope>,
}

impl Call {
    /// The same request with no headers: for requests that it leads to.
    pub(crate) fn clone_without_headers(&self) -> Self {
        Self {
            caller: self.caller.clone(),
            headers: HeaderMap::new(),
            now: self.now,
            scope: self.scope.clone(),
        }
    }
}

impl SwiftApi {
    /// The API over an object layer.
    #[must_use]
    pub fn new(store: Store, limits: Limits, options: SwiftOptions) -> Self {
        Self { inner: Arc::new(Api { store, limits, options }) }
    }

    /// Answer one request under `/v1/`, or `/info`. `caller` is `None` for a request without a valid token. The client's
    /// address, for temporary URLs that name a range, is taken from the request's extensions (a `SocketAddr`).
    pub async fn handle<B>(
        &self,
        caller: Option<Caller>,
        request: Request<B>,
        trans_id: &str,
    ) -> Response<ResponseBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (head, body) = request.into_parts();
        let call = Call { caller, headers: head.headers, now: timestamp::now(), scope: None };
        let mut body = RequestBody::from_client(body);
        let peer = head.extensions.get::<SocketAddr>().copied();
        let (call, mut response) = self.answer(call, &head.method, &head.uri, peer, &mut body).await;
        if !body.is_empty() && head.method != Method::GET {
            self.drain(&call.headers, &mut body).await;
        }
        finish(&call.headers, response.headers_mut(), trans_id);
        response
    }

    async fn answer(
        &self,
        mut call: Call,
        method: &Method,
        uri: &Uri,
        peer: Option<SocketAddr>,
        body: &mut RequestBody,
    ) -> (Call, Response<ResponseBody>) {
        let api = &self.inner;
        let scope = tempurl::verify(api, method, uri, peer, call.now).await;
        let parsed = match scope {
            Err(error) => Err(error),
            Ok(None) => parse_request(method, uri, &call.headers, &api.limits),
            Ok(scope) => {
                call.scope = scope;
                tempurl::restrict(method, uri, &mut call.headers)
                    .and_then(|uri| parse_request(method, &uri, &call.headers, &api.limits))
            }
        };
        let result = match parsed {
            Ok(operation) => Box::pin(run(api, &call, operation, body)).await,
            Err(error) => Err(error),
        };
        let mut response = result.unwrap_or_else(SwiftError::into_response);
        if let Some(scope) = &call.scope {
            tempurl::dress(scope, method, uri.path(), &mut response);
        }
        (call, response)
    }

    /// Read and drop what is left of a small body, so that the refusal reaches a client that is still sending.
    /// A client that waits for `100 Continue` has sent nothing and is not asked to.
    async fn drain(&self, headers: &HeaderMap, body: &mut RequestBody) {
        if headers.contains_key("expect") {
            return;
        }
        let most = self.inner.limits.max_drain;
        let announced =
            headers::text(headers, "content-length").and_then(|length| length.parse::<u64>().ok());
        if announced.is_some_and(|length| length > most) {
            return;
        }
        let read = async {
            let mut left = most;
            while let Some(Ok(piece)) = body.next().await {
                let Some(rest) = left.checked_sub(piece.len() as u64) else { break };
                left = rest;
            }
        };
        if tokio::time::timeout(DRAIN_TIME, read).await.is_err() {
            tracing::debug!("client sends its refused body too slowly");
        }
    }
}

async fn run(
    api: &Arc<Api>,
    call: &Call,
    operation: Operation,
    body: &mut RequestBody,
) -> error::Result<Response<ResponseBody>> {
    match operation {
        Operation::Info => Ok(info::answer(info::render(&api.limits, &api.options, &api.store.policies()))),
        Operation::Account { account, action } => account::run(api, call, &account, action).await,
        Operation::Container { account, container, action } => {
            let options = matches!(action, Action::Options);
            let result = container::run(api, call, &account, &container, action).await;
            if options { result } else { Ok(cors::expose(api, call, &account, &container, result).await) }
        }
        Operation::Object { path, action } => {
            let options = matches!(action, ObjectAction::Options);
            let (account, container) = (Arc::clone(&path.account), Arc::clone(&path.container));
            let result = object::run(api, call, path, action, body).await;
            if options { result } else { Ok(cors::expose(api, call, &account, &container, result).await) }
        }
        Operation::BulkDelete { account } => bulk::run(api, call, &account, body).await,
    }
}

/// Headers of every answer.
fn finish(request: &HeaderMap, answer: &mut HeaderMap, trans_id: &str) {
    if let Ok(id) = HeaderValue::from_str(trans_id) {
        answer.insert(HeaderName::from_static("x-trans-id"), id.clone());
        answer.insert(HeaderName::from_static("x-openstack-request-id"), id);
    }
    if headers::text(request, "connection").is_some_and(|value| value.eq_ignore_ascii_case("keep-alive")) {
        answer.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    }
}
