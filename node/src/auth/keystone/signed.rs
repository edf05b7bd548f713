//! `/v3/ec2tokens` and `/v3/s3tokens`: tokens for requests of Amazon's APIs that were signed with a user's EC2 key (Keystone's
//! OS-EC2 extension; Signature Version 2 and 4 of "AWS General Reference", and version 4 of Amazon's S3).
//!
//! A service that speaks such an API (Heat's of CloudFormation, a gateway of S3) hands the request in, and learns whose it is.
//! Invariant: only a service or an admin may ask: a token is worth more than the one signed request that somebody saw (CVE-2025-65073).
//! Invariant: a key that was made with an application credential or a trust gives what those give, and not more.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use hmac::{Hmac, Mac};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Answer, Context, Refusal, Reply, lent, tokens};
use crate::auth::Session;
use crate::auth::calendar::seconds_of;
use crate::auth::roll::text;
use crate::auth::token::Kind;
use crate::hidden::Hidden;
use crate::papers::Paper;

/// How old a signed request may be, in seconds: Keystone's `auth_ttl`.
const PATIENCE: u64 = 15 * 60;
const V4: &str = "AWS4-HMAC-SHA256";

/// Whose requests are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signed {
    /// A whole request, to be signed again.
    Ec2,
    /// The text that was signed.
    S3,
}

/// `{"credentials": {...}}`, which clients have named in three ways.
#[derive(Debug, Deserialize)]
struct Envelope {
    #[serde(alias = "credential", alias = "ec2Credentials")]
    credentials: Shown,
}

/// A signed request, as the service that got it describes it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Shown {
    access: String,
    signature: String,
    host: String,
    verb: String,
    path: String,
    params: Map<String, Value>,
    headers: Map<String, Value>,
    body_hash: String,
    /// Of S3 alone: what was signed, in Base64.
    token: Hidden,
}

impl Shown {
    /// A member of the query, or "".
    fn param(&self, name: &str) -> &str {
        self.params.get(name).and_then(Value::as_str).unwrap_or("")
    }

    /// A header by its name in any case, or "".
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(key, _)| key.trim().eq_ignore_ascii_case(name));
        found.and_then(|(_, value)| value.as_str()).unwrap_or("").trim()
    }

    /// When it was signed, as it says, in one of two spellings. Version 4 signs one of them alone.
    fn time(&self) -> &str {
        let stamp = if self.is_v4() { "" } else { self.param("Timestamp") };
        let times = [stamp, self.header("X-Amz-Date"), self.param("X-Amz-Date")];
        times.into_iter().find(|time| !time.is_empty()).unwrap_or("")
    }

    /// A part of what version 4 puts into one header, or into members of the query.
    fn part(&self, name: &str) -> &str {
        let header = self.header("Authorization");
        if header.is_empty() {
            return self.param(&format!("X-Amz-{name}"));
        }
        let of = |part: &'_ str| part.trim().split_once('=').map(|(key, _)| key.to_owned());
        let parts = header.strip_prefix(V4).unwrap_or("").split(',');
        let mut found = parts.filter(|part| of(part).as_deref() == Some(name));
        found.next().and_then(|part| part.trim().split_once('=')).map_or("", |(_, value)| value)
    }

    fn is_v4(&self) -> bool {
        self.header("Authorization").starts_with(V4) || self.param("X-Amz-Algorithm") == V4
    }
}

/// Answers with a token of whoever signed.
pub(super) fn authenticate(context: &Context<'_>, what: Signed, body: &[u8]) -> Reply {
    let caller = context.caller()?;
    if !caller.is_admin() && !caller.roles.iter().any(|role| role == "service") {
        return Err(Refusal::Refused("this needs the role service or admin".to_owned()));
    }
    let envelope: Envelope = serde_json::from_slice(body).map_err(|_| {
        Refusal::BadRequest("not an object {\"credentials\": {\"access\": ..., \"signature\": ...}}")
    })?;
    let shown = envelope.credentials;
    let id = hex::encode(Sha256::digest(shown.access.as_bytes()));
    let kept = context.roll().get("credential", &id).filter(|kept| text(kept, "type") == "ec2");
    let unknown = || Refusal::NotFound("the EC2 access key".to_owned());
    let kept = kept.filter(|_| !shown.access.is_empty()).ok_or_else(unknown)?;
    let blob: Value = serde_json::from_str(text(kept, "blob")).unwrap_or(Value::Null);
    let secret = blob["secret"].as_str().filter(|secret| !secret.is_empty()).ok_or(Refusal::Unauthorized)?;
    let good = match what {
        Signed::Ec2 => is_signed(&shown, secret) && is_fresh(shown.time(), (context.auth.now)()),
        Signed::S3 => is_signed_text(&shown, secret),
    };
    if !good {
        return Err(Refusal::Unauthorized);
    }
    let answer = token_of(context, kept, &blob)?;
    // Keystone shows the token itself for EC2 alone.
    let subject = answer.subject.filter(|_| what == Signed::Ec2);
    Ok(Answer { status: StatusCode::OK, subject, ..answer })
}

/// A token for what a key may do.
fn token_of(context: &Context<'_>, kept: &Arc<Paper>, blob: &Value) -> Reply {
    let roll = context.roll();
    let (user, project) = (text(kept, "user_id"), text(kept, "project_id"));
    let user = context.directory.user(user).ok_or(Refusal::Unauthorized)?;
    let mut claims = context.auth.claims(Kind::Keystone, &user.id, user.fingerprint(), &[lent::BY_SIGNATURE]);
    claims.project = Some(project.to_owned());
    for (kind, member, limit) in
        [("trust", "trust_id", &mut claims.trust), ("app_credential", "app_cred_id", &mut claims.credential)]
    {
        let Some(id) = blob[member].as_str().filter(|id| !id.is_empty()) else { continue };
        let limited = roll.get(kind, id).filter(|paper| text(paper, "project_id") == project);
        *limit = Some(limited.map(|_| id.to_owned()).ok_or(Refusal::Unauthorized)?);
    }
    tokens::seal(context, claims, StatusCode::OK)
}

/// Whether a request was signed with a secret. Where the port is not part of what a client signed, it counts without.
fn is_signed(shown: &Shown, secret: &str) -> bool {
    if shown.is_v4() {
        return is_signed_v4(shown, secret);
    }
    let method = shown.param("SignatureMethod");
    if shown.param("SignatureVersion") != "2" || !["", "HmacSHA256"].contains(&method) {
        return false;
    }
    let Ok(signature) = STANDARD.decode(&shown.signature) else { return false };
    let bare = shown.host.rsplit_once(':').map_or("", |(host, _)| host);
    [shown.host.as_str(), bare].into_iter().filter(|host| !host.is_empty()).any(|host| {
        let text = format!("{}\n{host}\n{}\n{}", shown.verb, shown.path, query(&shown.params));
        keyed(secret.as_bytes(), text.as_bytes()).verify_slice(&signature).is_ok()
    })
}

fn is_signed_v4(shown: &Shown, secret: &str) -> bool {
    let names = shown.part("SignedHeaders");
    let headers = shown.headers.iter().map(|(key, value)| (key.trim().to_lowercase(), value));
    let headers: Map<String, Value> = headers.map(|(key, value)| (key, value.clone())).collect();
    let signed = names.split(';').filter_map(|name| Some((name, headers.get(name)?.as_str()?)));
    let signed: String = signed.map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let verb = shown.verb.to_uppercase();
    // What a POST asks for is in its body, of which the hash is signed.
    let query = if verb == "POST" { String::new() } else { query(&shown.params) };
    let request = format!("{verb}\n{}\n{query}\n{signed}\n{names}\n{}", shown.path, shown.body_hash);
    let Some((_, scope)) = shown.part("Credential").split_once('/') else { return false };
    let hash = hex::encode(Sha256::digest(request.as_bytes()));
    is_v4_of(&format!("{V4}\n{}\n{scope}\n{hash}", shown.time()), &shown.signature, secret)
}

/// Whether a text that a gateway of S3 got signed was signed with a secret. Of its forms only version 4 is taken; what went before it
/// is an HMAC with SHA-1.
fn is_signed_text(shown: &Shown, secret: &str) -> bool {
    let bytes = URL_SAFE.decode(&*shown.token).or_else(|_| STANDARD.decode(&*shown.token));
    let Some(text) = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()) else { return false };
    let scope = text.split('\n').nth(2).unwrap_or("");
    // What gateways of S3 serve.
    scope.split('/').nth(2).is_some_and(|service| ["s3", "iam", "sts"].contains(&service))
        && is_v4_of(&text, &shown.signature, secret)
}

/// Whether this is the signature of a "string to sign" of version 4: algorithm, time, scope, hash of the request.
fn is_v4_of(text: &str, signature: &str, secret: &str) -> bool {
    let lines: Vec<&str> = text.split('\n').collect();
    let [V4, time, scope, _] = lines[..] else { return false };
    let parts: Vec<&str> = scope.split('/').collect();
    let [day, region, service, "aws4_request"] = parts[..] else { return false };
    if day.is_empty() || !time.starts_with(day) {
        return false;
    }
    let first = format!("AWS4{secret}").into_bytes();
    let key = [day, region, service, "aws4_request"].into_iter().fold(first, |key, part| {
        let next = keyed(&key, part.as_bytes()).finalize();
        next.into_bytes().to_vec()
    });
    hex::decode(signature)
        .is_ok_and(|signature| keyed(&key, text.as_bytes()).verify_slice(&signature).is_ok())
}

fn keyed(key: &[u8], text: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac
}

/// A query in the order and spelling in which it is signed (RFC 3986), without the signature.
fn query(params: &Map<String, Value>) -> String {
    let mut pairs: Vec<(&String, String)> = Vec::new();
    for (key, value) in params {
        if key != "X-Amz-Signature" {
            pairs.push((key, value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        }
    }
    pairs.sort();
    let pairs = pairs.iter().map(|(key, value)| format!("{}={}", quoted(key), quoted(value)));
    pairs.collect::<Vec<_>>().join("&")
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Whether a request is not too old, nor of a time to come. One without a time was meant to last.
fn is_fresh(time: &str, now: u64) -> bool {
    if time.is_empty() {
        return true;
    }
    // `20150830T123600Z`, or with dashes and colons.
    let plain = time.len() == 16 && time.is_ascii() && time.as_bytes()[8] == b'T';
    let spelled = plain.then(|| {
        let (date, clock) = time.split_at(8);
        let clock = &clock[1..7];
        format!(
            "{}-{}-{}T{}:{}:{}Z",
            &date[..4],
            &date[4..6],
            &date[6..],
            &clock[..2],
            &clock[2..4],
            &clock[4..]
        )
    });
    seconds_of(spelled.as_deref().unwrap_or(time)).is_some_and(|then| now.abs_diff(then) <= PATIENCE)
}

/// Makes sure that a new credential of type `ec2` is bound as its maker's token is, and by nothing else.
pub(super) fn bind_new(made: &mut Paper, caller: &Session) -> Result<(), Refusal> {
    if text(made, "type") != "ec2" {
        return Ok(());
    }
    let blob: Option<Value> = serde_json::from_str(text(made, "blob")).ok().filter(Value::is_object);
    let mut blob = blob.ok_or(Refusal::BadRequest("blob is no object in JSON with access and secret"))?;
    let claims = &caller.claims;
    let limits = [("trust_id", &claims.trust), ("app_cred_id", &claims.credential)];
    if limits.iter().any(|(_, limit)| limit.is_some())
        && claims.project.as_deref() != Some(text(made, "project_id"))
    {
        return Err(Refusal::Forbidden);
    }
    for (member, limit) in limits {
        match (limit, blob.as_object_mut()) {
            (Some(limit), _) => blob[member] = limit.clone().into(),
            (None, Some(blob)) => drop(blob.remove(member)),
            (None, None) => {}
        }
    }
    made.insert("blob".to_owned(), blob.to_string().into());
    Ok(())
}

/// Refuses a change of a credential that would make it somebody else's, or free it of what binds it.
pub(super) fn may_become(before: &Paper, after: &Paper, caller: &Session) -> Result<(), Refusal> {
    if !caller.is_admin() && text(after, "user_id") != caller.claims.user {
        return Err(Refusal::Forbidden);
    }
    let told = |paper: &Paper| serde_json::from_str::<Value>(text(paper, "blob")).unwrap_or(Value::Null);
    let (was, is) = (told(before), told(after));
    let limited = caller.claims.trust.is_some() || caller.claims.credential.is_some();
    if limited && text(after, "project_id") != text(before, "project_id") {
        return Err(Refusal::Forbidden);
    }
    match ["trust_id", "app_cred_id"].into_iter().find(|member| was[*member] != is[*member]) {
        Some(member) if text(before, "type") == "ec2" || text(after, "type") == "ec2" => {
            Err(Refusal::Bad(format!("{member} of an EC2 key does not change")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(value: Value) -> Shown {
        serde_json::from_value(value).unwrap()
    }

    /// The example of "Signature Version 2 signing process" in AWS General Reference.
    #[test]
    fn version_2_is_that_of_amazons_example() {
        let mut request = json!({
            "access": "AKIAIOSFODNN7EXAMPLE", "signature": "i91nKc4PWAt0JJIdXwz9HxZCJDdiy6cf/Mj6vPxyYIs=",
            "host": "elasticmapreduce.amazonaws.com", "verb": "GET", "path": "/", "params": {
                "AWSAccessKeyId": "AKIAIOSFODNN7EXAMPLE", "Action": "DescribeJobFlows", "SignatureMethod": "HmacSHA256",
                "SignatureVersion": "2", "Timestamp": "2011-10-03T15:19:30", "Version": "2009-03-31",
            },
        });
        let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        assert!(is_signed(&shown(request.clone()), secret));
        assert!(!is_signed(&shown(request.clone()), "another"));
        request["host"] = json!("elasticmapreduce.amazonaws.com:8773");
        assert!(is_signed(&shown(request.clone()), secret), "a port that was not signed");
        request["params"]["Action"] = json!("TerminateJobFlows");
        assert!(!is_signed(&shown(request), secret));
    }

    /// `get-vanilla` of Amazon's test suite of Signature Version 4.
    #[test]
    fn version_4_is_that_of_amazons_suite() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let mut request = json!({
            "access": "AKIDEXAMPLE", "signature": "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            "host": "example.amazonaws.com", "verb": "GET", "path": "/", "params": {}, "body_hash": empty, "headers": {
                "Host": "example.amazonaws.com", "X-Amz-Date": "20150830T123600Z",
                "Authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                    SignedHeaders=host;x-amz-date, \
                    Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            },
        });
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        assert!(is_signed(&shown(request.clone()), secret));
        request["headers"]["X-Amz-Date"] = json!("20150831T123600Z");
        assert!(!is_signed(&shown(request.clone()), secret), "of another day than its scope");
        request["headers"]["X-Amz-Date"] = json!("20150830T123600Z");
        request["path"] = json!("/other");
        assert!(!is_signed(&shown(request), secret));
    }

    /// As python-keystoneclient signs, the library of OpenStack's clients.
    #[test]
    fn what_a_post_asks_for_is_in_its_body() {
        let mut request = json!({
            "access": "a", "signature": "d733f094578e38fe56d0fca362db659442e0436707f9c0bd45434997c8446271",
            "host": "cloud.example", "verb": "POST", "path": "/v1/", "params": { "Action": "ListStacks" },
            "body_hash": "90fc99735ae5ce16ad146bf0b22cec9a46eb5ebf979f2ef810ff7bc7e6e55644", "headers": {
                "Host": "cloud.example", "X-Amz-Date": "20150830T123600Z",
                "Authorization": "AWS4-HMAC-SHA256 Credential=a/20150830/us-east-1/cloudformation/aws4_request, \
                    SignedHeaders=host;x-amz-date, Signature=x",
            },
        });
        assert!(is_signed(&shown(request.clone()), "s"));
        request["body_hash"] = json!("90");
        assert!(!is_signed(&shown(request), "s"));
    }

    /// The example of "Authenticating Requests: Using the Authorization Header" in Amazon's S3 API Reference.
    #[test]
    fn what_s3_signs_is_that_of_amazons_example() {
        let text = "AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/s3/aws4_request\n\
            7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972";
        let request = |text: &str| {
            let signature = "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
            shown(json!({ "access": "a", "token": URL_SAFE.encode(text), "signature": signature }))
        };
        let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        assert!(is_signed_text(&request(text), secret));
        assert!(!is_signed_text(&request(text), "another"));
        for other in [
            text.replace("/s3/", "/ec2/"),
            text.replace("T000000Z", "T000001Z"),
            text.replace("AWS4", "AWS5"),
            String::new(),
        ] {
            assert!(!is_signed_text(&request(&other), secret), "{other}");
        }
    }

    #[test]
    fn what_is_signed_is_good_for_a_quarter_of_an_hour() {
        let now = seconds_of("2015-08-30T12:40:00Z").unwrap();
        for (time, good) in [
            ("", true),
            ("20150830T123600Z", true),
            ("2015-08-30T12:36:00Z", true),
            ("20150830T122400Z", false),
            ("20150830T130000Z", false),
            ("20150830X123600Z", false),
            ("not a time at a", false),
            ("öööööööö", false),
        ] {
            assert_eq!(is_fresh(time, now), good, "{time}");
        }
    }
}
