//! What clients of the Swift API send.
//!
//! A request input is text: `METHOD target`, then a line `Name: value` for each header.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use quarry_engine::io::SplitMix64;
use quarry_node::swift::fuzzing;

use super::super::Target;
use super::as_is;

/// A request's head.
pub(super) const REQUEST: Target =
    Target { name: "swift-request", run: request, seeds: requests, mend: as_is, words: REQUEST_WORDS };
/// A `Range` header; the first eight bytes are the length of the body.
pub(super) const RANGE: Target = Target {
    name: "swift-range",
    run: range,
    seeds: ranges,
    mend: as_is,
    words: &["bytes=", "-", ",", "0-0", "18446744073709551615", "18446744073709551616"],
};
/// Access lists of containers and of accounts.
pub(super) const ACL: Target = Target {
    name: "swift-acl",
    run: acl,
    seeds: acls,
    mend: as_is,
    words: &[".r:", ".ref", ".rlistings", "*", "-", "%3A", "admin", "read-only", "[", "]", "\"", "://", "@"],
};
/// A manifest of a static large object.
pub(super) const MANIFEST: Target = Target {
    name: "swift-manifest",
    run: manifest,
    seeds: manifests,
    mend: as_is,
    words: &[
        "\"path\"",
        "\"range\"",
        "\"etag\"",
        "\"data\"",
        "\"size_bytes\"",
        "-",
        "null",
        "\\u0000",
        "1e999",
    ],
};
/// An HTTP date.
pub(super) const DATE: Target = Target {
    name: "http-date",
    run: date,
    seeds: dates,
    mend: as_is,
    words: &["GMT", "Sun, ", "9999", "Feb"],
};

const REQUEST_WORDS: &[&str] = &[
    "PUT",
    "POST",
    "COPY",
    "DELETE",
    "/v1/",
    "%2F",
    "%00",
    "%ff",
    "%",
    "//",
    "?",
    "&",
    "=",
    "+",
    "limit=",
    "format=json",
    "multipart-manifest=put",
    "bulk-delete",
    "path=",
    "reverse=on",
    "part-number=",
    "\nX-Object-Meta-",
    "\nRange: ",
    "\nIf-None-Match: ",
    "\nX-Delete-At: ",
    "\nX-Container-Read: ",
    "\nDestination: ",
    "\nX-Copy-From: ",
    "\nAccept: ",
    "\nX-Remove-Container-Meta-",
    "text/xml;q=0.5",
    "\u{e9}",
];

fn strings(all: &[&str]) -> Vec<Vec<u8>> {
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn requests(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    strings(&[
        "GET /info",
        "GET /v1/AUTH_test?format=json&limit=10&marker=a%2Fb&reverse=true\nAccept: text/xml;q=0.3, */*;q=0.1",
        "PUT /v1/AUTH_test/c%C3%A9\nX-Container-Meta-A: b\nX-Container-Read: .r:*,.rlistings\nX-Versions-Enabled: true",
        "GET /v1/AUTH_test/c?prefix=x&delimiter=/&path=y&end_marker=z&format=xml",
        "PUT /v1/AUTH_test/c/o/o?multipart-manifest=put\nX-Object-Manifest: c/pre\nX-Delete-After: 10\nIf-None-Match: *",
        "GET /v1/AUTH_test/c/o?multipart-manifest=get&format=raw&part-number=3\nRange: bytes=0-4,9-\nIf-Match: \"a\", W/\"b\"",
        "COPY /v1/AUTH_test/c/o\nDestination: d/p%20q\nX-Fresh-Metadata: true",
        "POST /v1/AUTH_test/c/o\nX-Object-Meta-\u{e9}: 1\nContent-Type: a/b; charset=x; swift_bytes=9",
        "POST /v1/AUTH_test?bulk-delete",
        "OPTIONS /v1/AUTH_test/c/o\nOrigin: http://x\nAccess-Control-Request-Method: PUT",
        "GET /v1/AUTH_test/c/o\nIf-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\nX-Newest: t",
    ])
}

fn request(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let Some((method, target)) = lines.next().and_then(|line| line.split_once(' ')) else { return };
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method.as_bytes()), target.parse::<Uri>()) else {
        return;
    };
    let mut map = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = HeaderValue::from_bytes(value.trim().as_bytes());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), value)
            && map.len() < 200
        {
            map.append(name, value);
        }
    }
    fuzzing::request(&method, &uri, &map);
}

fn ranges(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let seed = |length: u64, text: &str| [&length.to_le_bytes(), text.as_bytes()].concat();
    vec![
        seed(100, "bytes=0-9"),
        seed(100, "bytes=-5,0-0, 90-"),
        seed(0, "bytes=-1"),
        seed(u64::MAX, "bytes=0-18446744073709551615,5-,-7"),
    ]
}

fn range(data: &[u8]) {
    let Some((length, text)) = data.split_first_chunk::<8>() else { return };
    fuzzing::range(&String::from_utf8_lossy(text), u64::from_le_bytes(*length));
}

fn acls(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    strings(&[
        ".r:*,.rlistings,.r:-bad.example, .referrer : *.good.example",
        "AUTH_a:user,project:*,http://user@[::1]:80/path",
        r#"{"admin":["a","b"],"read-write":[],"read-only":["\u00e9"]}"#,
    ])
}

fn acl(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    fuzzing::container_acl(&text);
    fuzzing::account_acl(&text);
}

fn manifests(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    strings(&[
        r#"[{"path":"/c/a","etag":"d41d8cd98f00b204e9800998ecf8427e","size_bytes":10,"range":"0-4"},{"data":"eHg="}]"#,
        r#"[{"path":"c/b","etag":null,"size_bytes":null},{"path":"c/d","range":"-5"},{"path":"c/e","range":"7-"}]"#,
        r#"[{"name":"/c/a","bytes":10,"hash":"d41d8cd98f00b204e9800998ecf8427e","content_type":"a/b","last_modified":"2024-02-29T12:34:56.000007","range":"0-4","sub_slo":true},{"data":"eHg="}]"#,
    ])
}

fn manifest(data: &[u8]) {
    fuzzing::slo_manifest(data);
}

fn dates(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    strings(&[
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Thu, 01 Jan 1970 00:00:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ])
}

fn date(data: &[u8]) {
    fuzzing::date(&String::from_utf8_lossy(data));
}
