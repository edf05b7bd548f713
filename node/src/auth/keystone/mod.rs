//! Keystone v3 (<https://docs.openstack.org/api-ref/identity/v3/>): version documents, authentication by password, token and
//! application credential, the catalog; domains, projects, users, groups, roles and who has them, trusts, credentials.
//!
//! Users that the configuration or the cluster lists come first; what the API is told is kept as papers (`super::keep`).
//! Invariant: a request is parsed whole into [`Call`] before anything is looked up.
//! Invariant: every refusal has Keystone's shape, `{"error": {"code", "title", "message"}}`.

mod catalog;
mod cleanup;
mod config;
mod grants;
mod lent;
mod making;
mod members;
mod own;
mod resources;
pub(crate) mod scope;
mod signed;
mod tokens;
mod trusts;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, VARY};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
use serde_json::{Value, json};

use super::directory::Directory;
use super::roll::Roll;
use super::rules::Asked;
use super::token::Kind as TokenKind;
use super::{Arrival, Auth, Session};
use signed::Signed;

/// Largest request body.
const MAX_BODY: usize = 64 << 10;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Call<'a> {
    Versions,
    Version,
    Authenticate,
    /// A token for a request that was signed with an EC2 key.
    Signed(Signed),
    ShowToken,
    RevokeToken,
    Catalog,
    OwnProjects,
    OwnDomains,
    /// What the roll has: parts of the path behind `/v3`.
    Roll(Vec<&'a str>),
}

/// An answer or a refusal.
type Reply = Result<Answer, Refusal>;

/// A good answer.
struct Answer {
    status: StatusCode,
    body: Value,
    subject: Option<String>,
}

impl Answer {
    fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body, subject: None }
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    BadRequest(&'static str),
    Bad(String),
    Unauthorized,
    Forbidden,
    Refused(String),
    Conflict(String),
    NotFound(String),
    MethodNotAllowed(&'static str),
    TooLarge,
    Unavailable(String),
}

impl Refusal {
    fn status_and_message(&self) -> (StatusCode, String) {
        match self {
            Self::BadRequest(what) => {
                (StatusCode::BAD_REQUEST, format!("The request cannot be read: {what}."))
            }
            Self::Bad(what) => (StatusCode::BAD_REQUEST, format!("The request cannot be read: {what}.")),
            Self::Refused(why) => (StatusCode::FORBIDDEN, format!("That is not possible: {why}.")),
            Self::Conflict(what) => (StatusCode::CONFLICT, format!("That cannot be: {what}.")),
            Self::Unauthorized => {
                (StatusCode::UNAUTHORIZED, "The request you have made requires authentication.".to_owned())
            }
            Self::Forbidden => (StatusCode::FORBIDDEN, "This needs the role admin.".to_owned()),
            Self::NotFound(what) => (StatusCode::NOT_FOUND, format!("Could not find {what}.")),
            Self::MethodNotAllowed(_) => (
                StatusCode::METHOD_NOT_ALLOWED,
                "The method is not allowed for the requested URL.".to_owned(),
            ),
            Self::TooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, format!("The body is larger than {MAX_BODY} bytes."))
            }
            Self::Unavailable(why) => (StatusCode::SERVICE_UNAVAILABLE, why.clone()),
        }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let (status, message) = self.status_and_message();
        let title = status.canonical_reason().unwrap_or("Error");
        let mut response = respond(
            status,
            &json!({ "error": { "code": status.as_u16(), "title": title, "message": message } }),
        );
        match self {
            Self::Unauthorized => {
                let how = HeaderValue::from_static("Keystone uri=\"/v3\"");
                response.headers_mut().insert("www-authenticate", how);
            }
            Self::MethodNotAllowed(allowed) => {
                response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
            }
            _ => {}
        }
        response
    }
}

/// Answers a request to the identity listener (or to `/v3` elsewhere).
pub(crate) async fn answer<B>(
    auth: &Arc<Auth>,
    arrival: Arrival,
    request: Request<B>,
) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let reply = match parse(&head.method, head.uri.path()) {
        Err(refusal) => Err(refusal),
        Ok(call) => match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => up_to_date(auth, arrival, &head, &call, &body.to_bytes()).await,
            Err(_) => Err(Refusal::TooLarge),
        },
    };
    match reply {
        Err(refusal) => refusal.into_response(),
        Ok(answer) => {
            let mut response = match &answer.body {
                Value::Null => Response::new(Full::default()),
                body => respond(answer.status, body),
            };
            *response.status_mut() = answer.status;
            response.headers_mut().insert(VARY, HeaderValue::from_static("X-Auth-Token"));
            if let Some(token) = answer.subject.and_then(|token| HeaderValue::try_from(token).ok()) {
                response.headers_mut().insert("x-subject-token", token);
            }
            response
        }
    }
}

/// Answers from what all nodes were told. Tokens are asked for all the time: for them it is looked up what others were told only where
/// what is known here says no.
async fn up_to_date(auth: &Arc<Auth>, arrival: Arrival, head: &Parts, call: &Call<'_>, body: &[u8]) -> Reply {
    let look = async || match auth.refresh().await {
        Ok(changed) => changed,
        Err(error) => {
            tracing::debug!(%error, "read who uses the identity API");
            false
        }
    };
    let of_tokens = matches!(call, Call::Authenticate | Call::Signed(_) | Call::ShowToken);
    if !of_tokens {
        Box::pin(look()).await;
    }
    let reply = act(auth, arrival, head, call, body).await;
    match reply {
        Err(Refusal::Unauthorized | Refusal::NotFound(_)) if of_tokens && Box::pin(look()).await => {
            act(auth, arrival, head, call, body).await
        }
        reply => reply,
    }
}

async fn act(auth: &Arc<Auth>, arrival: Arrival, head: &Parts, call: &Call<'_>, body: &[u8]) -> Reply {
    let context = Context {
        auth,
        directory: auth.directory(),
        arrival,
        asked: Asked::of_identity(&head.method, head.uri.path()),
        headers: &head.headers,
        query: head.uri.query().unwrap_or(""),
        base: auth.endpoints.identity(&head.headers, arrival),
    };
    match call {
        Call::Versions => {
            let body = json!({ "versions": { "values": [version(&context.base)] } });
            Ok(Answer { status: StatusCode::MULTIPLE_CHOICES, body, subject: None })
        }
        Call::Version => Ok(Answer::ok(json!({ "version": version(&context.base) }))),
        Call::Authenticate => tokens::authenticate(&context, body),
        Call::Signed(what) => signed::authenticate(&context, *what, body),
        Call::ShowToken => tokens::show(&context),
        Call::RevokeToken => tokens::revoke(&context).await,
        Call::Catalog => {
            let session = context.caller()?;
            let scoped =
                session.claims.project.is_some() || session.claims.domain.is_some() || session.claims.system;
            let project = scoped.then(|| session.claims.project.as_deref().unwrap_or(""));
            let catalog = catalog::of_project(&context, project);
            Ok(Answer::ok(json!({ "catalog": catalog, "links": resources::links(&context, "auth/catalog") })))
        }
        Call::OwnProjects => {
            let session = context.caller()?;
            members::projects_of(&context, &session, &session.claims.user)
        }
        Call::OwnDomains => members::domains_of(&context, &context.caller()?.claims.user),
        Call::Roll(parts) => Box::pin(resources::answer(&context, &head.method, parts, body)).await,
    }
}

/// What a call is answered from.
struct Context<'a> {
    auth: &'a Arc<Auth>,
    /// As it was when the request came.
    directory: Arc<Directory>,
    arrival: Arrival,
    asked: Asked<'a>,
    headers: &'a HeaderMap,
    query: &'a str,
    /// Base URL of this API, without `/v3`.
    base: String,
}

impl Context<'_> {
    /// All that is known, as it was when the request came.
    fn roll(&self) -> &Roll {
        self.directory.roll()
    }

    /// The session of the caller's own token, a Keystone one that is good for this request. What a signed request gave is for the API that the
    /// request was for: with it nothing is asked here.
    fn caller(&self) -> Result<Arc<Session>, Refusal> {
        let session = self.anybody()?;
        if lent::is_by_signature(&session) { Err(Refusal::Forbidden) } else { Ok(session) }
    }

    /// As [`Self::caller`], whatever the token was got with: for what is said about tokens themselves.
    fn anybody(&self) -> Result<Arc<Session>, Refusal> {
        let token = self.headers.get("x-auth-token").and_then(|token| token.to_str().ok());
        let session = token.and_then(|token| self.auth.session(token));
        let session = session.filter(|session| self.auth.admits(session, self.headers, &self.asked));
        session.filter(|session| session.claims.kind == TokenKind::Keystone).ok_or(Refusal::Unauthorized)
    }

    /// Base URL of the object API.
    fn object_base(&self) -> String {
        self.auth.endpoints.object(self.headers, self.arrival)
    }
}

/// Which call a method and path are.
fn parse<'a>(method: &Method, path: &'a str) -> Result<Call<'a>, Refusal> {
    let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
    let call = match parts[..] {
        ["v3", "auth", "tokens"] => {
            return match *method {
                Method::POST => Ok(Call::Authenticate),
                Method::GET | Method::HEAD => Ok(Call::ShowToken),
                Method::DELETE => Ok(Call::RevokeToken),
                _ => Err(Refusal::MethodNotAllowed("GET, HEAD, POST, DELETE")),
            };
        }
        ["v3", kind @ ("ec2tokens" | "s3tokens")] => {
            let what = if kind == "ec2tokens" { Signed::Ec2 } else { Signed::S3 };
            return if method == Method::POST {
                Ok(Call::Signed(what))
            } else {
                Err(Refusal::MethodNotAllowed("POST"))
            };
        }
        [] => Call::Versions,
        ["v3"] => Call::Version,
        ["v3", "auth", "catalog"] => Call::Catalog,
        ["v3", "auth", "projects"] => Call::OwnProjects,
        ["v3", "auth", "domains"] => Call::OwnDomains,
        ["v3", ref rest @ ..] => return Ok(Call::Roll(rest.to_vec())),
        _ => return Err(Refusal::NotFound(path.to_owned())),
    };
    match *method {
        Method::GET | Method::HEAD => Ok(call),
        _ => Err(Refusal::MethodNotAllowed("GET, HEAD")),
    }
}

fn version(base: &str) -> Value {
    json!({
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{ "rel": "self", "href": format!("{base}/v3/") }],
        "media-types": [{ "base": "application/json", "type": "application/vnd.openstack.identity-v3+json" }],
    })
}

fn respond(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_and_paths_become_calls() {
        assert_eq!(parse(&Method::GET, "/"), Ok(Call::Versions));
        assert_eq!(parse(&Method::GET, "/v3/"), Ok(Call::Version));
        assert_eq!(parse(&Method::POST, "/v3/auth/tokens"), Ok(Call::Authenticate));
        assert_eq!(parse(&Method::HEAD, "/v3/auth/tokens"), Ok(Call::ShowToken));
        assert_eq!(parse(&Method::PATCH, "/v3/projects/p"), Ok(Call::Roll(vec!["projects", "p"])));
        assert_eq!(parse(&Method::POST, "/v3/ec2tokens"), Ok(Call::Signed(Signed::Ec2)));
        assert!(matches!(parse(&Method::GET, "/v3/s3tokens"), Err(Refusal::MethodNotAllowed("POST"))));
        assert!(matches!(parse(&Method::POST, "/v3/auth/catalog"), Err(Refusal::MethodNotAllowed(_))));
        assert!(matches!(parse(&Method::GET, "/v2.0"), Err(Refusal::NotFound(_))));
    }
}
