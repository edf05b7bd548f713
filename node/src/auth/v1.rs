//! Swift's v1 auth: `GET /auth/v1.0` with a user and a key gives a token and the URL of the account.
//!
//! Forms, as tempauth takes them: `/auth/v1.0` and `/auth/auth` with `account:user` in X-Auth-User or X-Storage-User,
//! `/auth/v1/ACCOUNT/auth` with the user alone in X-Storage-User; the key in X-Auth-Key or X-Storage-Pass.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::token::Kind;
use super::{ACCOUNT_PREFIX, Arrival, Auth};
use crate::hidden::Hidden;

/// What stays as it is in the account part of a storage URL.
const IN_URL: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A login, as far as it can be read.
#[derive(Debug, PartialEq, Eq)]
enum Login {
    /// Who and with which key.
    Try { account: String, name: String, key: Hidden },
    /// Something is missing; the realm to name.
    Incomplete { realm: String },
    /// Not a path of v1 auth.
    NoSuchPath,
}

/// Answers a request under `/auth/`.
pub(crate) fn answer(auth: &Auth, method: &Method, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
    if method != Method::GET {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "Only GET is allowed here.\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    match parse(path, headers) {
        Login::NoSuchPath => plain(StatusCode::BAD_REQUEST, "Not a path of v1 auth; try /auth/v1.0.\n"),
        Login::Incomplete { realm } => unauthorized(&realm),
        Login::Try { account, name, key } => match auth.directory().v1_login(&name, &key) {
            Some(user) => granted(auth, headers, user),
            None => unauthorized(&account),
        },
    }
}

fn parse(path: &str, headers: &HeaderMap) -> Login {
    let text = |name: &str| headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let filled = |name: &str| text(name).filter(|value| !value.is_empty());
    let either = |first: &str, second: &str| filled(first).or_else(|| filled(second)).map(str::to_owned);
    let rest = path.strip_prefix("/auth/").unwrap_or("").trim_end_matches('/');
    let named = match rest.split('/').collect::<Vec<_>>()[..] {
        ["v1.0" | "auth"] => match either("x-auth-user", "x-storage-user") {
            Some(name) => name,
            None => return Login::Incomplete { realm: "unknown".to_owned() },
        },
        ["v1", account, "auth"] => {
            let Ok(account) = percent_decode_str(account).decode_utf8() else {
                return Login::NoSuchPath;
            };
            let of_account = filled("x-auth-user").filter(|name| name.split(':').next() == Some(&account));
            match filled("x-storage-user")
                .map(|user| format!("{account}:{user}"))
                .or(of_account.map(str::to_owned))
            {
                Some(name) => name,
                None => return Login::Incomplete { realm: account.into_owned() },
            }
        }
        _ => return Login::NoSuchPath,
    };
    match (named.split_once(':'), either("x-auth-key", "x-storage-pass")) {
        (Some((account, _)), Some(key)) => {
            Login::Try { account: account.to_owned(), name: named, key: key.into() }
        }
        (Some((account, _)), None) => Login::Incomplete { realm: account.to_owned() },
        (None, _) => Login::Incomplete { realm: "unknown".to_owned() },
    }
}

fn granted(auth: &Auth, headers: &HeaderMap, user: &super::directory::V1User) -> Response<Full<Bytes>> {
    let claims = auth.claims(Kind::V1, &user.name, user.fingerprint(), &["password"]);
    let Some(token) = auth.tokens.seal(&claims) else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "The cluster's keys are not known here yet.\n");
    };
    let account = utf8_percent_encode(&user.account, &IN_URL);
    let url = format!("{}/v1/{ACCOUNT_PREFIX}{account}", auth.endpoints.object(headers, Arrival::Object));
    let mut response = plain(StatusCode::OK, "");
    let fields = [
        ("x-auth-token", token.clone()),
        ("x-storage-token", token),
        ("x-auth-token-expires", (claims.expires - claims.issued).to_string()),
        ("x-storage-url", url),
    ];
    for (name, value) in fields {
        let value = HeaderValue::from_str(&value).expect("tokens, numbers and our URLs are plain ASCII");
        response.headers_mut().insert(name, value);
    }
    response
}

/// 401 with the realm (the account) that Swift's clients look at.
pub(crate) fn unauthorized(realm: &str) -> Response<Full<Bytes>> {
    let mut response =
        plain(StatusCode::UNAUTHORIZED, "The token, or the user and key, are not known here.\n");
    let realm = utf8_percent_encode(realm, &IN_URL);
    if let Ok(value) = HeaderValue::from_str(&format!("Swift realm=\"{realm}\"")) {
        response.headers_mut().insert(WWW_AUTHENTICATE, value);
    }
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str, headers: &[(&'static str, &str)]) -> Login {
        parse(
            path,
            &headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect(),
        )
    }

    #[test]
    fn every_form_of_login_is_read() {
        let good = Login::Try {
            account: "test".to_owned(),
            name: "test:tester".to_owned(),
            key: "k".to_owned().into(),
        };
        for (path, headers) in [
            ("/auth/v1.0", [("x-auth-user", "test:tester"), ("x-auth-key", "k")]),
            ("/auth/v1.0/", [("x-storage-user", "test:tester"), ("x-storage-pass", "k")]),
            ("/auth/auth", [("x-auth-user", "test:tester"), ("x-storage-pass", "k")]),
            ("/auth/v1/test/auth", [("x-storage-user", "tester"), ("x-storage-pass", "k")]),
            ("/auth/v1/test/auth", [("x-auth-user", "test:tester"), ("x-auth-key", "k")]),
        ] {
            assert_eq!(parsed(path, &headers), good, "{path} {headers:?}");
        }
    }

    #[test]
    fn incomplete_logins_name_a_realm() {
        let incomplete = |realm: &str| Login::Incomplete { realm: realm.to_owned() };
        assert_eq!(parsed("/auth/v1.0", &[]), incomplete("unknown"));
        assert_eq!(
            parsed("/auth/v1.0", &[("x-auth-user", "tester"), ("x-auth-key", "k")]),
            incomplete("unknown")
        );
        assert_eq!(parsed("/auth/v1.0", &[("x-auth-user", "test:tester")]), incomplete("test"));
        let secret = parsed("/auth/v1.0", &[("x-auth-user", "test:tester"), ("x-auth-key", "hunter2")]);
        assert!(!format!("{secret:?}").contains("hunter2"));
        let other = [("x-auth-user", "other:tester"), ("x-auth-key", "k")];
        assert_eq!(parsed("/auth/v1/test/auth", &other), incomplete("test"));
        assert_eq!(parsed("/auth/v2", &[]), Login::NoSuchPath);
    }
}
