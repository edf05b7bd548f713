//! Tests of the metadata rules.

use super::*;

fn map(pairs: &[(&str, &[u8])]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value).unwrap(),
        );
    }
    headers
}

#[test]
fn values_survive_storing_whatever_their_bytes() {
    for bytes in [&b"plain"[..], "ü€".as_bytes(), b"\xff\xfe broken \xc3", b""] {
        let value = HeaderValue::from_bytes(bytes).unwrap();
        let stored = store_value(&value);
        assert_eq!(header_value(&stored).unwrap().as_bytes(), bytes);
        assert_eq!(value_length(&stored), bytes.len());
    }
}

#[test]
fn an_empty_value_and_a_removal_header_both_remove() {
    let headers = map(&[
        ("x-container-meta-a", b""),
        ("x-remove-container-meta-b", b"x"),
        ("x-container-meta-c", b"3"),
        ("x-remove-container-meta-c", b"x"),
        ("x-container-read", b""),
    ]);
    let stored: Headers =
        ["x-container-meta-a", "x-container-meta-b", "x-container-read", "x-container-meta-z"]
            .iter()
            .map(|name| ((*name).to_owned(), "old".to_owned()))
            .collect();
    let merged = Changes::parse(&headers, Kind::Container, true).apply(stored);
    let names: Vec<(&str, &str)> = merged.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(names, [("x-container-meta-c", "3"), ("x-container-meta-z", "old")]);
}

#[test]
fn only_the_owner_changes_access_lists_and_keys() {
    let headers = map(&[
        ("x-container-read", b"bob"),
        ("x-container-meta-temp-url-key", b"k"),
        ("x-container-meta-a", b"1"),
    ]);
    let merged = Changes::parse(&headers, Kind::Container, false).apply(Headers::new());
    assert_eq!(merged.keys().collect::<Vec<_>>(), ["x-container-meta-a"]);
    let merged = Changes::parse(&headers, Kind::Container, true).apply(Headers::new());
    assert_eq!(merged.len(), 3);
}

#[test]
fn each_metadata_limit_refuses_one_more_and_lets_the_limit_pass() {
    let limits = Limits::default();
    let check = |name: &str, value: &[u8]| check_metadata(&map(&[(name, value)]), Kind::Object, &limits);
    let name = |length: usize| format!("x-object-meta-{}", "k".repeat(length));
    assert!(check(&name(128), &[b'v'; 256]).is_ok());
    assert_eq!(check(&name(129), b"v").unwrap_err().code(), 400);
    assert_eq!(check(&name(1), &[b'v'; 257]).unwrap_err().code(), 400);
    assert_eq!(check("x-object-meta-", b"v").unwrap_err().code(), 400);
    assert_eq!(check("x-whatever", &[b'v'; 8193]).unwrap_err().code(), 400);
    assert!(check("x-whatever", &[b'v'; 8192]).is_ok());

    let many = |count: usize| {
        let mut headers = HeaderMap::new();
        for i in 0..count {
            let name = HeaderName::from_bytes(format!("x-object-meta-{i}").as_bytes()).unwrap();
            headers.insert(name, HeaderValue::from_static("v"));
        }
        headers
    };
    assert!(check_metadata(&many(90), Kind::Object, &limits).is_ok());
    assert!(check_metadata(&many(91), Kind::Object, &limits).is_err());
}

#[test]
fn the_merged_size_counts_names_without_their_prefix() {
    let limits = Limits::default();
    let mut stored = Headers::new();
    for i in 0..15 {
        stored.insert(format!("x-account-meta-{i:04}"), "k".repeat(256));
    }
    stored.insert("x-account-meta-k".into(), "v".repeat(4096 - 15 * 260 - 1));
    assert!(check_merged(&stored, Kind::Account, &limits).is_ok());
    stored.insert("x-account-meta-k".into(), "v".repeat(4096 - 15 * 260));
    assert_eq!(check_merged(&stored, Kind::Account, &limits).unwrap_err().code(), 400);
}
