//! From a request to the API that answers it, and back out with an id, a count and a line in the log.
//!
//! Invariant: every answer carries X-Trans-Id and X-Openstack-Request-Id.
//! Invariant: by the admin listener, only the node's own machine changes something ([`super::operators`]).
//! Invariant: nothing is formatted for the log unless the line is written.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;

use super::body::{Received, Sent, Tracked};
use super::operators;
use super::target::BetweenRequests;
use super::trans_id::{TransId, TransIds};
use crate::auth::rules::Asked;
use crate::auth::{Access, Arrival, Auth, Session, keystone, unix_now, v1};
use crate::block::Blocks;
use crate::cinder::Cinder;
use crate::control::left::Left;
use crate::control::operator::Operator;
use crate::metrics::{Api, Metrics};
use crate::status::StatusSource;
use crate::swift::SwiftApi;

pub(super) const X_TRANS_ID: HeaderName = HeaderName::from_static("x-trans-id");
pub(super) const X_OPENSTACK_REQUEST_ID: HeaderName = HeaderName::from_static("x-openstack-request-id");
pub(super) const X_TRANS_ID_EXTRA: HeaderName = HeaderName::from_static("x-trans-id-extra");

/// Which listener a connection came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// Swift API and v1 auth.
    Object,
    /// Keystone v3.
    Identity,
    /// Cinder v3.
    Volume,
    /// Metrics and status.
    Admin,
}

/// Who answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Health,
    V1Auth,
    Swift,
    Keystone,
    Cinder,
    Metrics,
    Status,
    Wish,
    Users,
    Compare,
    Nodes,
    Policies,
    Volumes,
    Nothing,
}

/// Everything that requests are answered with.
#[derive(Debug)]
pub(crate) struct Front {
    /// Who calls.
    pub(crate) auth: Arc<Auth>,
    /// The Swift API.
    pub(crate) objects: SwiftApi,
    /// Counters.
    pub(crate) metrics: Arc<Metrics>,
    /// What `/status` shows.
    pub(crate) status: StatusSource,
    /// Takes what operators want of the cluster.
    pub(crate) operator: Option<Operator>,
    /// The volumes, and the address of the admin listener.
    pub(crate) blocks: Option<(Blocks, IpAddr)>,
    /// The volume API.
    pub(crate) cinder: Option<Cinder>,
    /// Whether this node has left its cluster.
    pub(crate) left: Arc<Left>,
    /// Requests that take longer are logged at info.
    pub(crate) slow: Duration,
    /// A request body that stalls for so long is given up.
    pub(crate) body_timeout: Duration,
    ids: TransIds,
}

impl Front {
    /// Over its parts.
    pub(crate) fn new(
        auth: Arc<Auth>,
        objects: SwiftApi,
        metrics: Arc<Metrics>,
        status: StatusSource,
        slow: Duration,
        body_timeout: Duration,
    ) -> Self {
        let (operator, blocks, cinder) = (None, None, None);
        let (left, ids) = (Arc::default(), TransIds::new());
        Self { auth, objects, metrics, status, operator, blocks, cinder, left, slow, body_timeout, ids }
    }

    /// With volumes and their API, for an admin listener at `own`.
    pub(crate) fn with_volumes(self, blocks: Blocks, cinder: Cinder, own: IpAddr) -> Self {
        Self { blocks: Some((blocks, own)), cinder: Some(cinder), ..self }
    }

    /// In a cluster, that operators may change, and that this node may leave.
    pub(crate) fn in_cluster(self, operator: Operator, left: Arc<Left>) -> Self {
        Self { operator: Some(operator), left, ..self }
    }

    /// Answers one request.
    pub(crate) async fn answer(
        self: Arc<Self>,
        entrance: Entrance,
        peer: SocketAddr,
        between: BetweenRequests,
        request: Request<Incoming>,
    ) -> Response<Tracked> {
        let id = self.ids.next(unix_now(), request.headers().get(X_TRANS_ID_EXTRA));
        let mut finish = Finish::begin(&self, entrance, peer, between, &request, &id);
        let received = Arc::clone(&finish.received);
        let mut request = request.map(|body| {
            let body = Received::new(body, self.body_timeout, received);
            if entrance == Entrance::Object { body } else { body.document() }
        });
        request.extensions_mut().insert(peer);
        let mut response = match self.refusal(entrance, peer, &request) {
            Some(why) => text(StatusCode::FORBIDDEN, "text/plain", why),
            None => self.routed(entrance, request, &id, &mut finish).await,
        };
        finish.status = response.status();
        let headers = response.headers_mut();
        headers.entry(X_TRANS_ID).or_insert_with(|| id.header());
        headers.entry(X_OPENSTACK_REQUEST_ID).or_insert_with(|| id.header());
        response.map(|body| Tracked::new(body, finish))
    }

    async fn routed(
        &self,
        entrance: Entrance,
        request: Request<Received>,
        id: &TransId,
        finish: &mut Finish,
    ) -> Response<Sent> {
        match route(entrance, request.uri().path()) {
            _ if entrance != Entrance::Admin && self.left.get() => gone(),
            Route::Health => health(request.method()),
            Route::V1Auth => {
                v1::answer(&self.auth, request.method(), request.uri().path(), request.headers())
                    .map(Sent::Whole)
            }
            Route::Keystone => {
                keystone::answer(&self.auth, Arrival::Identity, request).await.map(Sent::Whole)
            }
            Route::Cinder => match &self.cinder {
                Some(cinder) => cinder.answer(&self.auth, request, id.as_str()).await.map(Sent::Whole),
                None => text(StatusCode::NOT_FOUND, "text/plain", "This node has no volumes.\n"),
            },
            Route::Swift => self.swift(request, id, finish).await,
            Route::Metrics => text(StatusCode::OK, Metrics::CONTENT_TYPE, self.metrics.encode()),
            Route::Status => text(StatusCode::OK, "application/json", self.status.json()),
            Route::Wish => match &self.operator {
                Some(operator) => operator.answer(request).await.map(Sent::Whole),
                None => text(StatusCode::NOT_FOUND, "text/plain", "This node is in no cluster.\n"),
            },
            Route::Compare => match &self.operator {
                Some(operator) => operator.compare().await.map(Sent::Whole),
                None => text(StatusCode::NOT_FOUND, "text/plain", "This node is in no cluster.\n"),
            },
            Route::Nodes => match &self.operator {
                Some(operator) => operator.nodes().await.map(Sent::Whole),
                None => text(StatusCode::NOT_FOUND, "text/plain", "This node is in no cluster.\n"),
            },
            Route::Users => match &self.operator {
                Some(operator) => operator.users(request).await.map(Sent::Whole),
                None => text(StatusCode::NOT_FOUND, "text/plain", "This node is in no cluster.\n"),
            },
            Route::Policies => match &self.operator {
                Some(operator) => operator.policies(request).await.map(Sent::Whole),
                None => text(StatusCode::NOT_FOUND, "text/plain", "This node is in no cluster.\n"),
            },
            Route::Volumes => match &self.blocks {
                Some((blocks, own)) => blocks.answer(request, *own).await.map(Sent::Whole),
                None => text(StatusCode::NOT_FOUND, "text/plain", "This node has no volumes.\n"),
            },
            Route::Nothing => text(StatusCode::NOT_FOUND, "text/plain", "Not found.\n"),
        }
    }

    /// Why an operator's request is not answered, if it is not.
    fn refusal(
        &self,
        entrance: Entrance,
        peer: SocketAddr,
        request: &Request<Received>,
    ) -> Option<&'static str> {
        let own = self.blocks.as_ref().map_or(Ipv4Addr::LOCALHOST.into(), |(_, own)| *own);
        let judged = || operators::refusal(request.method(), request.headers(), peer, own);
        (entrance == Entrance::Admin).then(judged).flatten()
    }

    async fn swift(&self, request: Request<Received>, id: &TransId, finish: &mut Finish) -> Response<Sent> {
        if let Err(error) = self.auth.meet(request.headers()).await {
            return text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{error}\n"));
        }
        let asked = Asked::of_objects(request.method(), request.uri().path());
        let caller = match self.auth.access(request.headers(), &asked) {
            Access::Denied => return v1::unauthorized(&realm(request.uri().path())).map(Sent::Whole),
            Access::Anonymous => None,
            Access::Known(session) => Some(finish.session.insert(session).caller.clone()),
        };
        self.objects.handle(caller, request, id.as_str()).await.map(Sent::Object)
    }
}

fn route(entrance: Entrance, path: &str) -> Route {
    match (entrance, path) {
        (_, "/healthcheck") => Route::Health,
        (Entrance::Object, path) if path.starts_with("/auth/") => Route::V1Auth,
        (Entrance::Object, _) => Route::Swift,
        (Entrance::Identity, _) => Route::Keystone,
        (Entrance::Volume, _) => Route::Cinder,
        (Entrance::Admin, "/metrics") => Route::Metrics,
        (Entrance::Admin, "/status") => Route::Status,
        (Entrance::Admin, "/cluster/wish") => Route::Wish,
        (Entrance::Admin, "/cluster/compare") => Route::Compare,
        (Entrance::Admin, "/cluster/nodes") => Route::Nodes,
        (Entrance::Admin, "/cluster/users") => Route::Users,
        (Entrance::Admin, "/cluster/policies") => Route::Policies,
        (Entrance::Admin, "/volumes") => Route::Volumes,
        (Entrance::Admin, _) => Route::Nothing,
    }
}

/// The account in a path, for a 401's realm.
fn realm(path: &str) -> String {
    let account = path.split('/').nth(2).filter(|account| !account.is_empty()).unwrap_or("unknown");
    percent_encoding::percent_decode_str(account).decode_utf8_lossy().into_owned()
}

fn health(method: &Method) -> Response<Sent> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return text(StatusCode::OK, "text/plain", "OK");
    }
    let mut response =
        text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "Only GET and HEAD are allowed here.\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

/// What a client hears of a node that has left its cluster.
fn gone() -> Response<Sent> {
    let why = "This node has left its cluster; ask another one.\n";
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", why);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn text(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<Sent> {
    let mut response = Response::new(Sent::Whole(Full::new(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The end of a request: counts and logs it when dropped.
#[derive(Debug)]
pub(crate) struct Finish {
    metrics: Arc<Metrics>,
    api: Api,
    slow: Duration,
    started: Instant,
    peer: SocketAddr,
    between: BetweenRequests,
    method: Method,
    uri: Uri,
    id: TransId,
    session: Option<Arc<Session>>,
    received: Arc<AtomicU64>,
    sent: u64,
    /// Of the answer; 499 (as Swift logs it) when the client left before there was one.
    status: StatusCode,
    complete: bool,
}

impl Finish {
    fn begin(
        front: &Front,
        entrance: Entrance,
        peer: SocketAddr,
        between: BetweenRequests,
        request: &Request<Incoming>,
        id: &TransId,
    ) -> Self {
        let api = match entrance {
            Entrance::Object => Api::Object,
            Entrance::Identity => Api::Identity,
            Entrance::Volume => Api::Volume,
            Entrance::Admin => Api::Admin,
        };
        front.metrics.begun();
        between.begin();
        Self {
            metrics: Arc::clone(&front.metrics),
            api,
            slow: front.slow,
            started: Instant::now(),
            peer,
            between,
            method: request.method().clone(),
            uri: request.uri().clone(),
            id: id.clone(),
            session: None,
            received: Arc::default(),
            sent: 0,
            status: StatusCode::from_u16(499).expect("a status has three digits"),
            complete: request.method() == Method::HEAD,
        }
    }

    /// Bytes of the body went out.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// The body is out.
    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }

    /// The body ended in an error: the client sees a cut connection.
    pub(crate) fn failed(&mut self, error: &(dyn std::error::Error + 'static)) {
        tracing::error!(id = %self.id, path = self.uri.path(), error, "send answer");
    }

    fn log(&self, took: Duration) {
        let user = || self.session.as_ref().map_or("-", |session| session.caller.user.as_str());
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(
                    target: "quarry::access",
                    $level,
                    method = %self.method,
                    path = self.uri.path(),
                    status = self.status.as_u16(),
                    ms = took.as_secs_f64() * 1000.0,
                    received = self.received.load(Ordering::Relaxed),
                    sent = self.sent,
                    complete = self.complete,
                    user = user(),
                    peer = %self.peer,
                    id = %self.id,
                    "request"
                )
            };
        }
        if self.status.is_server_error() || took >= self.slow {
            line!(tracing::Level::INFO);
        } else {
            line!(tracing::Level::DEBUG);
        }
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        self.between.end();
        let took = self.started.elapsed();
        let received = self.received.load(Ordering::Relaxed);
        self.metrics.finished(self.api, &self.method, self.status.as_u16(), took, received, self.sent);
        self.log(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_has_its_own_paths() {
        for (entrance, path, expected) in [
            (Entrance::Object, "/healthcheck", Route::Health),
            (Entrance::Object, "/auth/v1.0", Route::V1Auth),
            (Entrance::Object, "/v1/AUTH_test/c/o", Route::Swift),
            (Entrance::Object, "/info", Route::Swift),
            (Entrance::Object, "/metrics", Route::Swift),
            (Entrance::Object, "/v3/auth/tokens", Route::Swift),
            (Entrance::Identity, "/v3/auth/tokens", Route::Keystone),
            (Entrance::Identity, "/status", Route::Keystone),
            (Entrance::Volume, "/v3/volumes", Route::Cinder),
            (Entrance::Admin, "/metrics", Route::Metrics),
            (Entrance::Admin, "/status", Route::Status),
            (Entrance::Admin, "/v1/AUTH_test", Route::Nothing),
        ] {
            assert_eq!(route(entrance, path), expected, "{entrance:?} {path}");
        }
    }

    #[test]
    fn the_realm_is_the_account() {
        assert_eq!(realm("/v1/AUTH_test/c"), "AUTH_test");
        assert_eq!(realm("/v1"), "unknown");
    }
}
