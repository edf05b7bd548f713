//! Temporary URLs: a signature in the query lets anyone do one thing until a time.
//!
//! The signature is an HMAC over method, expiry and path (or a prefix of it), made with a key that the owner stored with
//! the account or the container.
//! Invariant: signatures are compared in constant time; a signed request can reach nothing outside its key's scope.

use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use http::header::{CONTENT_DISPOSITION, EXPIRES, HeaderMap};
use http::{HeaderValue, Method, Response, Uri};
use quarry_engine::clock::Timestamp;
use quarry_engine::object::Headers;
use sha2::{Sha256, Sha512};

use super::body::ResponseBody;
use super::error::{Result, SwiftError};
use super::headers::insert;
use super::query::Query;
use super::{Api, timestamp};

/// Headers that would let a signature reach beyond its object.
const FORBIDDEN: [&str; 3] = ["x-object-manifest", "x-symlink-target", "x-copy-from"];
/// Headers of requests that are dropped.
const DROPPED: [&str; 2] = ["x-timestamp", "x-open-expired"];
/// Where owners store keys, after `x-account-meta-` or `x-container-meta-`.
const KEYS: [&str; 2] = ["temp-url-key", "temp-url-key-2"];

/// What a signature lets its bearer reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) account: String,
    /// Only this container: the key is its own.
    pub(crate) container: Option<String>,
    /// For the answer.
    expires: u64,
    filename: Option<String>,
    inline: bool,
}

impl Scope {
    /// Whether a subject lies within it.
    pub(crate) fn covers(&self, account: &str, container: Option<&str>) -> bool {
        self.account == account && (self.container.is_none() || self.container.as_deref() == container)
    }
}

/// A signed request, parsed but not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Signed {
    signature: Signature,
    expires: u64,
    prefix: Option<String>,
    ip_range: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Signature {
    Sha256(Vec<u8>),
    Sha512(Vec<u8>),
}

/// The scope of a request with a valid signature, `None` for one without, 401 for one with a bad one.
pub(crate) async fn verify(
    api: &Api,
    method: &Method,
    uri: &Uri,
    peer: Option<SocketAddr>,
    now: u64,
) -> Result<Option<Scope>> {
    if *method == Method::OPTIONS || !uri.query().is_some_and(|query| query.contains("temp_url_")) {
        return Ok(None);
    }
    let query = Query::parse(uri.query())?;
    if !query.has("temp_url_sig") && !query.has("temp_url_expires") {
        return Ok(None);
    }
    let signed = parse(&query, now).ok_or_else(invalid)?;
    let path = percent_encoding::percent_decode_str(uri.path()).decode_utf8().map_err(|_| invalid())?;
    let mut parts = path.strip_prefix("/v1/").ok_or_else(invalid)?.splitn(3, '/');
    let (Some(account), Some(container), Some(object)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(invalid());
    };
    let known = [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::DELETE].contains(method);
    if account.is_empty() || container.is_empty() || object.trim_matches('/').is_empty() || !known {
        return Err(invalid());
    }
    if let Some(range) = &signed.ip_range
        && !peer.is_some_and(|peer| is_in_range(peer.ip(), range))
    {
        return Err(invalid());
    }
    let subject = match &signed.prefix {
        None => format!("/v1/{account}/{container}/{object}"),
        Some(prefix) if object.starts_with(prefix.as_str()) => {
            format!("prefix:/v1/{account}/{container}/{prefix}")
        }
        Some(_) => return Err(invalid()),
    };
    // Who may send or change an object may also see its headers.
    let methods: &[&str] =
        if *method == Method::HEAD { &["HEAD", "GET", "POST", "PUT"] } else { &[method.as_str()] };
    let check = |headers: &Headers, kind: &str| {
        KEYS.iter()
            .filter_map(|name| headers.get(&format!("x-{kind}-meta-{name}")))
            .any(|key| methods.iter().any(|method| matches(&signed, method, &subject, key.as_bytes())))
    };
    let of_account = api.store.account(account).await?.is_some_and(|found| check(&found.headers, "account"));
    let of_container = !of_account
        && api
            .store
            .container(account, container)
            .await?
            .is_some_and(|found| check(&found.headers, "container"));
    if !of_account && !of_container {
        return Err(invalid());
    }
    Ok(Some(Scope {
        account: account.to_owned(),
        container: of_container.then(|| container.to_owned()),
        expires: signed.expires,
        filename: query.get("filename").filter(|name| !name.is_empty()).map(str::to_owned),
        inline: query.has("inline"),
    }))
}

/// Take out of a signed request what signatures do not cover; the query is not looked at any more.
pub(crate) fn restrict(method: &Method, uri: &Uri, headers: &mut HeaderMap) -> Result<Uri> {
    if *method != Method::GET && *method != Method::HEAD {
        for name in FORBIDDEN {
            if headers.contains_key(name) {
                return Err(SwiftError::message(
                    400,
                    format!("The header '{name}' is not allowed in this tempurl"),
                ));
            }
        }
    }
    for name in DROPPED {
        headers.remove(name);
    }
    uri.path().parse().map_err(|_| SwiftError::status(400))
}

/// Make the answer to a signed request: no private metadata, and a file name to save it under.
pub(crate) fn dress(scope: &Scope, method: &Method, path: &str, response: &mut Response<ResponseBody>) {
    let success = response.status().is_success();
    let headers = response.headers_mut();
    let private: Vec<_> = headers
        .keys()
        .filter(|name| {
            name.as_str().starts_with("x-object-meta-") && !name.as_str().starts_with("x-object-meta-public-")
        })
        .cloned()
        .collect();
    for name in private {
        headers.remove(name);
    }
    if !success || (*method != Method::GET && *method != Method::HEAD) {
        return;
    }
    let disposition = match (&scope.filename, scope.inline) {
        (Some(name), true) => disposition("inline", name),
        (None, true) => "inline".to_owned(),
        (Some(name), false) => disposition("attachment", name),
        (None, false) if headers.contains_key(CONTENT_DISPOSITION) => String::new(),
        (None, false) => {
            let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
            let name = decoded.trim_end_matches('/').rsplit('/').next().unwrap_or("").to_owned();
            disposition("attachment", &name)
        }
    };
    if !disposition.is_empty() {
        insert(headers, CONTENT_DISPOSITION, &disposition);
    }
    headers.insert(EXPIRES, timestamp::http_date(Timestamp(scope.expires.saturating_mul(1_000_000))));
}

fn disposition(kind: &str, name: &str) -> String {
    const SAFE: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'_').remove(b'.').remove(b'-').remove(b'~').remove(b'/');
    const SAFE_OR_SPACE: &percent_encoding::AsciiSet = &SAFE.remove(b' ');
    let quoted = percent_encoding::utf8_percent_encode(name, SAFE_OR_SPACE);
    let extended = percent_encoding::utf8_percent_encode(name, SAFE);
    format!("{kind}; filename=\"{quoted}\"; filename*=UTF-8''{extended}")
}

fn invalid() -> SwiftError {
    SwiftError::message(401, "401 Unauthorized: Temp URL invalid\n")
        .with(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Swift realm=\"unknown\""))
}

fn parse(query: &Query, now: u64) -> Option<Signed> {
    let expires = query.get("temp_url_expires")?;
    let expires: u64 = match expires.trim().parse() {
        Ok(seconds) => seconds,
        Err(_) => parse_iso(expires)?,
    };
    if expires < now {
        return None;
    }
    let signature = parse_signature(query.get("temp_url_sig")?)?;
    let given = |name: &str| query.get(name).map(str::to_owned);
    Some(Signed {
        signature,
        expires,
        prefix: given("temp_url_prefix"),
        ip_range: given("temp_url_ip_range"),
    })
}

/// Hex digits, whose number tells the algorithm, or `algorithm:BASE64`.
fn parse_signature(text: &str) -> Option<Signature> {
    let (algorithm, bytes) = match text.split_once(':') {
        None => {
            let bytes = hex::decode(text).ok()?;
            (if bytes.len() == 32 { "sha256" } else { "sha512" }, bytes)
        }
        Some((algorithm, encoded)) => {
            let encoded = encoded.trim_end_matches('=');
            let bytes = URL_SAFE_NO_PAD.decode(encoded).or_else(|_| STANDARD_NO_PAD.decode(encoded)).ok()?;
            (algorithm, bytes)
        }
    };
    match (algorithm, bytes.len()) {
        ("sha256", 32) => Some(Signature::Sha256(bytes)),
        ("sha512", 64) => Some(Signature::Sha512(bytes)),
        _ => None,
    }
}

/// `YYYY-MM-DDTHH:MM:SSZ` in Unix seconds.
fn parse_iso(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if !(1970..=9999).contains(&year) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = timestamp::days_since_epoch(year, month, day)?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

fn matches(signed: &Signed, method: &str, subject: &str, key: &[u8]) -> bool {
    let mut message = String::new();
    if let Some(range) = &signed.ip_range {
        message = format!("ip={range}\n");
    }
    message.push_str(&format!("{method}\n{}\n{subject}", signed.expires));
    match &signed.signature {
        Signature::Sha256(bytes) => verify_mac::<Hmac<Sha256>>(key, message.as_bytes(), bytes),
        Signature::Sha512(bytes) => verify_mac::<Hmac<Sha512>>(key, message.as_bytes(), bytes),
    }
}

fn verify_mac<M: Mac + hmac::digest::KeyInit>(key: &[u8], message: &[u8], expected: &[u8]) -> bool {
    <M as Mac>::new_from_slice(key).is_ok_and(|mut mac| {
        mac.update(message);
        mac.verify_slice(expected).is_ok()
    })
}

/// Whether an address lies in a range: an address, or an address with the number of bits that count.
fn is_in_range(address: IpAddr, range: &str) -> bool {
    let (base, bits) = match range.split_once('/') {
        None => (range, None),
        Some((base, bits)) => match bits.parse::<u32>() {
            Ok(bits) => (base, Some(bits)),
            Err(_) => return false,
        },
    };
    let bits_equal = |a: u128, b: u128, width: u32| {
        let bits = bits.unwrap_or(width);
        bits <= width && (bits == 0 || (a ^ b) >> (width - bits) == 0)
    };
    match (address.to_canonical(), base.parse::<IpAddr>()) {
        (IpAddr::V4(a), Ok(IpAddr::V4(b))) => {
            bits_equal(u128::from(a.to_bits()), u128::from(b.to_bits()), 32)
        }
        (IpAddr::V6(a), Ok(IpAddr::V6(b))) => bits_equal(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(signature: &str, prefix: Option<&str>) -> Option<Signed> {
        let mut raw = format!("temp_url_expires=2000&temp_url_sig={signature}");
        if let Some(prefix) = prefix {
            raw.push_str(&format!("&temp_url_prefix={prefix}"));
        }
        parse(&Query::parse(Some(&raw)).unwrap(), 1000)
    }

    fn sign(message: &str) -> Vec<u8> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(b"key").unwrap();
        mac.update(message.as_bytes());
        mac.finalize().into_bytes().to_vec()
    }

    #[test]
    fn a_signature_fits_its_method_path_and_key_only() {
        let signature = hex::encode(sign("GET\n2000\n/v1/a/c/o"));
        let signed = signed(&signature, None).unwrap();
        assert!(matches(&signed, "GET", "/v1/a/c/o", b"key"));
        assert!(!matches(&signed, "PUT", "/v1/a/c/o", b"key"));
        assert!(!matches(&signed, "GET", "/v1/a/c/p", b"key"));
        assert!(!matches(&signed, "GET", "/v1/a/c/o", b"other"));
    }

    #[test]
    fn signatures_come_in_hex_and_base64() {
        let bytes = sign("x");
        for text in [
            hex::encode(&bytes),
            format!("sha256:{}", STANDARD_NO_PAD.encode(&bytes)),
            format!("sha256:{}=", URL_SAFE_NO_PAD.encode(&bytes)),
        ] {
            assert_eq!(parse_signature(&text), Some(Signature::Sha256(bytes.clone())), "{text}");
        }
        assert_eq!(parse_signature("sha1:AAAA"), None);
        assert_eq!(parse_signature("abcd"), None);
        assert_eq!(parse_signature("zz"), None);
    }

    #[test]
    fn expiry_is_a_number_or_a_date() {
        assert_eq!(parse_iso("2024-02-29T12:34:56Z"), Some(1_709_210_096));
        assert_eq!(parse_iso("2023-02-29T12:34:56Z"), None);
        assert_eq!(parse_iso("2024-02-29 12:34:56"), None);
        let signature = "0".repeat(64);
        for expires in ["&temp_url_expires=999", "&temp_url_expires=x", ""] {
            let raw = format!("temp_url_sig={signature}{expires}");
            assert!(parse(&Query::parse(Some(&raw)).unwrap(), 1000).is_none(), "{raw}");
        }
    }

    #[test]
    fn ranges_of_addresses_count_their_bits() {
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(is_in_range(at("10.1.2.3"), "10.1.2.3"));
        assert!(is_in_range(at("10.1.2.3"), "10.1.0.0/16"));
        assert!(is_in_range(at("::ffff:10.1.2.3"), "10.0.0.0/8"));
        assert!(!is_in_range(at("10.2.2.3"), "10.1.0.0/16"));
        assert!(!is_in_range(at("10.2.2.3"), "10.1.0.0/99"));
        assert!(!is_in_range(at("10.2.2.3"), "nonsense"));
        assert!(is_in_range(at("2001:db8::1"), "2001:db8::/32"));
    }

    #[test]
    fn file_names_cannot_break_the_header() {
        assert_eq!(
            disposition("attachment", "a \"b\"\n/é"),
            "attachment; filename=\"a %22b%22%0A/%C3%A9\"; filename*=UTF-8''a%20%22b%22%0A/%C3%A9"
        );
    }
}
