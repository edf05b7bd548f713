//! Refusals: one table from status to words, one type that becomes an answer.
//!
//! Invariant: every refusal is an answer; nothing here panics or tells more than the client may know.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Response, StatusCode};

use quarry_engine::object;

use super::body::ResponseBody;

pub(crate) const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=UTF-8");
pub(crate) const PLAIN: HeaderValue = HeaderValue::from_static("text/plain");

/// Why a request is refused, as the client is told.
#[derive(Debug)]
pub struct SwiftError {
    status: u16,
    text: Option<String>,
    content_type: HeaderValue,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// Result of the Swift API.
pub(crate) type Result<T, E = SwiftError> = std::result::Result<T, E>;

impl SwiftError {
    /// A bare status with its standard page.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self { status, text: None, content_type: HTML, headers: Vec::new() }
    }

    /// A status with a message, labelled as HTML (as Swift does for most).
    #[must_use]
    pub fn message(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: Some(text.into()), content_type: HTML, headers: Vec::new() }
    }

    /// A status with a message in plain text.
    #[must_use]
    pub fn plain(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: Some(text.into()), content_type: PLAIN, headers: Vec::new() }
    }

    /// With one header more.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The status code.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.status
    }

    /// Status code and reason: `404 Not Found`.
    #[must_use]
    pub fn status_line(&self) -> String {
        status_line(self.status)
    }

    /// The message, if it has its own.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// The answer.
    #[must_use]
    pub fn into_response(self) -> Response<ResponseBody> {
        let body = match self.text {
            Some(text) => Bytes::from(text),
            None => page(self.status),
        };
        let mut response = Response::new(ResponseBody::empty());
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, self.content_type);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        *response.body_mut() = ResponseBody::Full(body);
        response
    }
}

impl From<object::Error> for SwiftError {
    fn from(error: object::Error) -> Self {
        use object::Error as E;
        match error {
            E::NoAccount | E::NoContainer | E::NoObject => Self::status(404),
            E::ConditionFailed => Self::status(412),
            E::EtagMismatch { .. } => Self::status(422),
            E::Superseded => Self::status(409),
            E::NoSpace => Self::status(507),
            E::Unavailable { reason } => {
                tracing::warn!(%reason, "object layer unavailable");
                Self::status(503)
            }
            E::GrantLost { .. } => {
                tracing::warn!(
                    "another node came to decide about a name, and nobody can tell what became of a change"
                );
                Self::status(503)
            }
            E::Elsewhere(elsewhere) => {
                tracing::warn!(%elsewhere, "object layer unavailable");
                Self::status(503)
            }
            E::Corrupt { what } => {
                tracing::error!(%what, "stored bytes are corrupt");
                Self::status(500)
            }
            E::Refused(text) => Self::plain(400, text),
        }
    }
}

/// Status code and reason: `404 Not Found`.
pub(crate) fn status_line(status: u16) -> String {
    format!("{status} {}", reason(status).0)
}

/// The standard page of a status; empty where the status has none.
pub(crate) fn page(status: u16) -> Bytes {
    let (title, words) = reason(status);
    if words.is_empty() {
        return Bytes::new();
    }
    Bytes::from(format!("<html><h1>{title}</h1><p>{words}</p></html>"))
}

/// Title and standard words of a status; clients of Swift compare with them.
pub(crate) fn reason(status: u16) -> (&'static str, &'static str) {
    match status {
        200 => ("OK", ""),
        201 => ("Created", ""),
        202 => ("Accepted", "The request is accepted for processing."),
        204 => ("No Content", ""),
        206 => ("Partial Content", ""),
        304 => ("Not Modified", ""),
        400 => (
            "Bad Request",
            "The server could not comply with the request since it is either malformed or otherwise incorrect.",
        ),
        401 => (
            "Unauthorized",
            "This server could not verify that you are authorized to access the document you requested.",
        ),
        403 => ("Forbidden", "Access was denied to this resource."),
        404 => ("Not Found", "The resource could not be found."),
        405 => ("Method Not Allowed", "The method is not allowed for this resource."),
        406 => ("Not Acceptable", "The resource is not available in a format acceptable to your browser."),
        408 => {
            ("Request Timeout", "The server has waited too long for the request to be sent by the client.")
        }
        409 => ("Conflict", "There was a conflict when trying to complete your request."),
        410 => ("Gone", "This resource is no longer available."),
        411 => ("Length Required", "Content-Length header required."),
        412 => ("Precondition Failed", "A precondition for this request was not met."),
        413 => ("Request Entity Too Large", "The body of your request was too large for this server."),
        416 => ("Requested Range Not Satisfiable", "The Range requested is not available."),
        422 => ("Unprocessable Entity", "Unable to process the contained instructions"),
        499 => ("Client Disconnect", "The client was disconnected during request."),
        501 => ("Not Implemented", "The requested method is not implemented by this server."),
        503 => {
            ("Service Unavailable", "The server is currently unavailable. Please try again at a later time.")
        }
        507 => ("Insufficient Storage", "There was not enough space to save the resource."),
        _ => (
            "Internal Error",
            "The server has either erred or is incapable of performing the requested operation.",
        ),
    }
}
