//! Tests of manifests, sent and stored.

use super::*;

fn judge(json: &str) -> Result<Vec<Wanted>> {
    parse(json.as_bytes(), ("c", "manifest"))
}

fn words(json: &str) -> String {
    let error = judge(json).unwrap_err();
    assert_eq!(error.code(), 400);
    error.text().unwrap().to_owned()
}

#[test]
fn a_manifest_is_a_list_of_objects() {
    assert_eq!(words("nonsense"), "Manifest must be valid JSON.\n");
    assert_eq!(words("{}"), "Manifest must be a list.\n");
    assert_eq!(words("[1]"), "Index 0: not a JSON object\n");
    assert_eq!(judge("[]").unwrap(), []);
}

#[test]
fn each_bad_segment_is_named_with_its_index() {
    let object = |rest: &str| words(&format!("[{{\"path\": \"/c/a\"{rest}}}, {{\"path\": \"c/b\"}}]"));
    assert_eq!(object(", \"teag\": 1, \"x\": 2"), "Index 0: extraneous keys \"teag\", \"x\"\n");
    assert_eq!(object(", \"etag\": 1"), "Index 0: \"etag\" must be a string or null (if provided)\n");
    assert_eq!(object(", \"size_bytes\": \"x\""), "Index 0: invalid size_bytes\n");
    assert_eq!(object(", \"size_bytes\": 0"), "Index 0: too small; each segment must be at least 1 byte.\n");
    assert_eq!(object(", \"range\": \"x\""), "Index 0: invalid range\n");
    assert_eq!(object(", \"range\": \"0-1,2-3\""), "Index 0: multiple ranges (only one allowed)\n");
    assert_eq!(object(", \"range\": \"9-\", \"size_bytes\": 9"), "Index 0: unsatisfiable range\n");
    assert_eq!(
        words(r#"[{"path": "/c/manifest"}, {"path": "nowhere"}, {}]"#),
        "Index 0: manifest must not include itself as a segment\n\
         Index 1: path does not refer to an object. Path must be of the form /container/object.\n\
         Index 2: expected keys to include one of \"data\" or \"path\"\n"
    );
}

#[test]
fn data_needs_base64_and_an_object_beside_it() {
    assert_eq!(
        words(r#"[{"data": "!"}, {"data": ""}]"#),
        "Index 0: data must be valid base64\nIndex 1: too small; each segment must be at least 1 byte.\n\
         Inline data segments require at least one object-backed segment.\n"
    );
    let wanted =
        judge(r#"[{"data": "YWI="}, {"path": "c/x", "etag": null, "size_bytes": "3", "range": "-2"}]"#);
    assert_eq!(
        wanted.unwrap(),
        [
            Wanted::Data(Bytes::from_static(b"ab")),
            Wanted::Object { path: "c/x".into(), etag: None, size: Some(3), range: Some(Spec::Suffix(2)) },
        ]
    );
}

fn stored() -> Vec<Stored> {
    vec![
        Stored::data(b"ab"),
        Stored::Object(StoredObject {
            name: "/c/\"é".into(),
            bytes: 10,
            hash: "00ff".into(),
            content_type: "text/plain".into(),
            last_modified: "2024-02-29T12:34:56.000000".into(),
            range: Some("2-4".into()),
            sub_slo: true,
        }),
    ]
}

#[test]
fn what_is_stored_reads_back_and_its_raw_form_can_be_sent_again() {
    let segments = stored();
    let text = format(&segments);
    assert_eq!(read(text.as_bytes()).unwrap(), segments);
    assert_eq!(segments.iter().map(Stored::length).collect::<Vec<_>>(), [Some(2), Some(3)]);
    let raw = format_raw(&segments);
    assert_eq!(
        judge(&raw).unwrap()[1],
        Wanted::Object {
            path: "c/\"é".into(),
            etag: Some("00ff".into()),
            size: Some(10),
            range: Some(Spec::From(2, Some(4))),
        }
    );
    assert_eq!(read(b"{}").unwrap_err().code(), 500);
}

#[test]
fn the_etag_covers_data_hashes_and_ranges() {
    let expected = Md5::digest(format!("{}00ff:2-4;", hex::encode(Md5::digest(b"ab"))));
    assert_eq!(etag(&stored()), hex::encode(expected));
}

#[test]
fn a_damaged_range_is_noticed() {
    let Stored::Object(mut object) = stored().remove(1) else { panic!() };
    for (range, extent) in [("2-4", Some(2..5)), ("4-2", None), ("2-10", None), ("x", None)] {
        object.range = Some(range.into());
        assert_eq!(object.extent(), extent, "{range}");
    }
}
