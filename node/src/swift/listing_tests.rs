//! Tests of listing requests and formats.

use super::*;
use quarry_engine::clock::Timestamp;

fn negotiate(accept: &'static str) -> Result<Format> {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(accept));
    Format::negotiate(&Query::default(), &headers)
}

#[test]
fn accept_chooses_by_quality_and_exactness() {
    assert_eq!(negotiate("*/*").unwrap(), Format::Plain);
    assert_eq!(negotiate("").unwrap(), Format::Plain);
    assert_eq!(negotiate("application/*").unwrap(), Format::Json);
    assert_eq!(negotiate("text/xml").unwrap(), Format::TextXml);
    assert_eq!(negotiate("*/*, application/xml").unwrap(), Format::Xml);
    assert_eq!(negotiate("text/plain;q=0.5,application/json").unwrap(), Format::Json);
    assert_eq!(negotiate("image/png").unwrap_err().code(), 406);
    assert_eq!(negotiate("application/json;q=0").unwrap_err().code(), 406);
    assert_eq!(negotiate("foo").unwrap_err().code(), 400);
}

#[test]
fn format_wins_over_accept() {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let query = Query::parse(Some("format=XML")).unwrap();
    assert_eq!(Format::negotiate(&query, &headers).unwrap(), Format::Xml);
    let query = Query::parse(Some("format=other")).unwrap();
    assert_eq!(Format::negotiate(&query, &headers).unwrap(), Format::Plain);
}

#[test]
fn limits_above_the_most_are_refused_and_odd_ones_ignored() {
    let parse = |raw| ListingQuery::parse(&Query::parse(Some(raw)).unwrap(), &HeaderMap::new(), 100);
    assert_eq!(parse("limit=100").unwrap().listing.limit, 100);
    assert_eq!(parse("limit=101").unwrap_err().code(), 412);
    assert_eq!(parse("limit=99999999999999999999999").unwrap_err().code(), 412);
    assert_eq!(parse("limit=5000.0").unwrap().listing.limit, 100);
    assert_eq!(parse("limit=-1").unwrap().listing.limit, 100);
    assert_eq!(parse("limit=0").unwrap().listing.limit, 0);
    assert!(parse("reverse=on").unwrap().listing.reverse);
    assert_eq!(parse("path=").unwrap().listing.path.as_deref(), Some(""));
}

fn object(name: &str, etag: &str) -> Entry<ObjectRow> {
    Entry::Row(ObjectRow {
        name: name.into(),
        size: 5,
        etag: etag.into(),
        content_type: "text/<x>".into(),
        timestamp: Timestamp(1_709_210_096_000_070),
    })
}

#[test]
fn object_listings_escape_and_show_the_large_objects_etag() {
    let rows = [object("a\"\\\u{1}é", "00ff; slo_etag=11ee"), Entry::Subdir("d&/".into())];
    assert_eq!(render_objects("c", &rows, Format::Plain), "a\"\\\u{1}é\nd&/\n");
    assert_eq!(
        render_objects("c", &rows, Format::Json),
        "[{\"bytes\": 5, \"hash\": \"00ff\", \"name\": \"a\\\"\\\\\\u0001é\", \"content_type\": \"text/<x>\", \
         \"last_modified\": \"2024-02-29T12:34:56.000070\", \"slo_etag\": \"\\\"11ee\\\"\"}, {\"subdir\": \"d&/\"}]"
    );
    assert_eq!(
        render_objects("c<", &rows, Format::Xml),
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<container name=\"c&lt;\"><object><name>a&quot;\\?é</name>\
         <hash>00ff</hash><bytes>5</bytes><content_type>text/&lt;x&gt;</content_type>\
         <last_modified>2024-02-29T12:34:56.000070</last_modified></object>\
         <subdir name=\"d&amp;/\"><name>d&amp;/</name></subdir></container>"
    );
}

#[test]
fn container_listings_name_the_policy() {
    let row = ContainerRow { name: "c".into(), objects: 2, bytes: 9, changed: Timestamp(0), policy: 0 };
    let rows = [Entry::Row(row)];
    let options = quarry_engine::object::Policies::default();
    let json: serde_json::Value =
        serde_json::from_str(&render_containers("a", &rows, Format::Json, &options)).unwrap();
    assert_eq!(json[0]["count"], 2);
    assert_eq!(json[0]["storage_policy"], "Policy-0");
    let xml = render_containers("a", &rows, Format::Xml, &options);
    assert!(xml.contains("<container><name>c</name><count>2</count><bytes>9</bytes>"), "{xml}");
    assert_eq!(render_containers("a", &[], Format::Json, &options), "[]");
}
