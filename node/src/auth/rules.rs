//! Access rules of application credentials: which requests a token is good for that was given out for one.
//!
//! As keystonemiddleware reads them (`validate_allowed_request`): a request must be one that a rule names, by the type of the service, the
//! method, and the path. In a rule's path `*` and `{name}` stand for one part of a path, `**` for any number of bytes; all else is literal.
//! Invariant: a credential with rules is good for nothing that no rule names; where a token says that its list is empty, for nothing.
//! Invariant: what a path is compared with is its one canonical spelling: what is let in is what is done.

use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde_json::Value;

/// What is written as it is in a path, as WebOb has it.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'_')
    .remove(b'.')
    .remove(b'-')
    .remove(b'~')
    .remove(b'/')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// Most rules of one credential: each request is compared with all of them.
pub(super) const MAX_RULES: usize = 100;
/// Longest path of a rule.
pub(super) const MAX_PATH: usize = 225;
/// The methods that a rule may name.
pub(super) const METHODS: [&str; 6] = ["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"];

/// Which API a request came to, and what it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    service: &'static [&'static str],
    method: &'a Method,
    path: &'a str,
}

impl<'a> Asked<'a> {
    /// Of the object API.
    pub(crate) fn of_objects(method: &'a Method, path: &'a str) -> Self {
        Self { service: &["object-store"], method, path }
    }

    /// Of the volume API, which the catalog has by two names.
    pub(crate) fn of_volumes(method: &'a Method, path: &'a str) -> Self {
        Self { service: &["block-storage", "volumev3"], method, path }
    }

    /// Of the identity API.
    pub(super) fn of_identity(method: &'a Method, path: &'a str) -> Self {
        Self { service: &["identity"], method, path }
    }

    /// Whether it asks what a token says, which any token may.
    fn validates(&self) -> bool {
        self.service == ["identity"] && *self.method == Method::GET && self.path == "/v3/auth/tokens"
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Rule {
    service: String,
    method: String,
    path: String,
}

/// The rules of a credential that has any.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rules(Vec<Rule>);

impl Rules {
    /// Of a list as credentials keep it and tokens show it; `None`: there is none, and everything is allowed.
    pub(super) fn of(list: Option<&Value>) -> Option<Self> {
        let list = list.filter(|list| !list.is_null())?;
        // What cannot be read allows nothing.
        let all = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let said = |rule: &Value, key: &str| rule[key].as_str().unwrap_or("").to_owned();
        let rule = |rule| Rule {
            service: said(rule, "service"),
            method: said(rule, "method"),
            path: said(rule, "path"),
        };
        Some(Self(all.iter().map(rule).collect()))
    }

    /// Whether a request is one that a rule names, or one that needs none.
    pub(super) fn allow(&self, asked: &Asked<'_>) -> bool {
        if asked.validates() {
            return true;
        }
        let decoded: Vec<u8> = percent_decode_str(asked.path).collect();
        let path = percent_encode(&decoded, PLAIN).to_string();
        self.0.iter().any(|rule| {
            asked.service.contains(&rule.service.as_str())
                && rule.method == asked.method.as_str()
                && matches(&rule.path, &path)
        })
    }
}

/// A step of a pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Byte(u8),
    /// A byte of a part.
    Part,
    /// Any number of bytes of a part.
    Parts,
    /// Any number of bytes.
    Any,
}

impl Step {
    /// It may stand for nothing, and for several bytes.
    fn repeats(self) -> bool {
        matches!(self, Self::Parts | Self::Any)
    }

    fn takes(self, byte: u8) -> bool {
        match self {
            Self::Byte(own) => own == byte,
            Self::Part | Self::Parts => byte != b'/',
            Self::Any => true,
        }
    }
}

fn steps(pattern: &str) -> Vec<Step> {
    let mut steps = Vec::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(first) = rest.bytes().next() {
        let name = rest.strip_prefix('{').and_then(|name| name.split_once('}'));
        if let Some(behind) = rest.strip_prefix("**") {
            steps.push(Step::Any);
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix('*').or(name.map(|(_, behind)| behind)) {
            steps.extend([Step::Part, Step::Parts]);
            rest = behind;
        } else {
            let length = rest.chars().next().map_or(1, char::len_utf8);
            steps.push(Step::Byte(first));
            steps.extend(rest.bytes().take(length).skip(1).map(Step::Byte));
            rest = &rest[length..];
        }
    }
    steps
}

/// Whether a path is one that a pattern means: in time of the product of their lengths, whatever both are.
fn matches(pattern: &str, path: &str) -> bool {
    let steps = steps(pattern);
    // Where in the pattern one may be: before the step of that number.
    let mut at = vec![false; steps.len() + 1];
    at[0] = true;
    let skip = |at: &mut [bool]| {
        for (i, step) in steps.iter().enumerate() {
            at[i + 1] |= at[i] && step.repeats();
        }
    };
    skip(&mut at);
    for byte in path.bytes() {
        let mut next = vec![false; at.len()];
        for (i, step) in steps.iter().enumerate() {
            if at[i] && step.takes(byte) {
                next[if step.repeats() { i } else { i + 1 }] = true;
            }
        }
        skip(&mut next);
        at = next;
        if !at.contains(&true) {
            return false;
        }
    }
    at.last().is_some_and(|end| *end)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_is_one_that_its_pattern_means() {
        for (pattern, path, wanted) in [
            ("/v1/AUTH_p/c/o", "/v1/AUTH_p/c/o", true),
            ("/v1/AUTH_p/c/o", "/v1/AUTH_p/c/o2", false),
            ("/v1/AUTH_p/c/o", "/v1/AUTH_p/c/", false),
            ("/v1/AUTH_p/c/*", "/v1/AUTH_p/c/o", true),
            ("/v1/AUTH_p/c/*", "/v1/AUTH_p/c/", false),
            ("/v1/AUTH_p/c/*", "/v1/AUTH_p/c/d/o", false),
            ("/v1/AUTH_p/c/**", "/v1/AUTH_p/c/d/o", true),
            ("/v1/AUTH_p/c/**", "/v1/AUTH_p/c/", true),
            ("/v1/AUTH_p/c/**", "/v1/AUTH_p/c", false),
            ("/v1/**/o", "/v1/a/b/o", true),
            ("/v1/**/o", "/v1/a/b/oo", false),
            ("/v3/{project_id}/volumes", "/v3/p/volumes", true),
            ("/v3/{project_id}/volumes", "/v3/p/q/volumes", false),
            ("/v3/{project_id}/volumes", "/v3//volumes", false),
            ("/v3/*/volumes/*x", "/v3/p/volumes/aax", true),
            ("/v3/*/volumes/*x", "/v3/p/volumes/x", false),
            ("/a***b", "/acb", true),
            ("/a***b", "/ab", false),
            ("/a.c", "/abc", false),
            ("/{open", "/x", false),
            ("**", "", true),
            ("", "/", false),
        ] {
            assert_eq!(matches(pattern, path), wanted, "{pattern} {path}");
        }
        assert!(!matches(&"**a".repeat(70), &"a".repeat(60)), "and it does not take for ever");
    }

    #[test]
    fn a_request_needs_a_rule_of_its_service_its_method_and_its_path() {
        let rules = json!([
            { "id": "1", "service": "object-store", "method": "GET", "path": "/v1/AUTH_p/c/*" },
            { "id": "2", "service": "volumev3", "method": "POST", "path": "/v3/*/volumes" },
        ]);
        let rules = Rules::of(Some(&rules)).unwrap();
        let (get, head, post) = (&Method::GET, &Method::HEAD, &Method::POST);
        for (asked, wanted) in [
            (Asked::of_objects(get, "/v1/AUTH_p/c/o"), true),
            (Asked::of_objects(get, "/v1/AUTH_p/c/%6f%20x"), true),
            (Asked::of_objects(get, "/v1/AUTH_p/%63/o"), true),
            (Asked::of_objects(get, "/v1/AUTH_p/c/d%2fo"), false),
            (Asked::of_objects(head, "/v1/AUTH_p/c/o"), false),
            (Asked::of_volumes(get, "/v1/AUTH_p/c/o"), false),
            (Asked::of_volumes(post, "/v3/p/volumes"), true),
            (Asked::of_identity(post, "/v3/p/volumes"), false),
            (Asked::of_identity(get, "/v3/auth/tokens"), true),
            (Asked::of_identity(head, "/v3/auth/tokens"), false),
            (Asked::of_objects(get, "/v3/auth/tokens"), false),
        ] {
            assert_eq!(rules.allow(&asked), wanted, "{asked:?}");
        }
        assert_eq!(Rules::of(None), None);
        assert_eq!(Rules::of(Some(&Value::Null)), None);
        for nothing in [json!([]), json!("*"), json!([{}])] {
            let rules = Rules::of(Some(&nothing)).unwrap();
            assert!(!rules.allow(&Asked::of_objects(get, "/v1/AUTH_p")), "{nothing}");
        }
    }
}
