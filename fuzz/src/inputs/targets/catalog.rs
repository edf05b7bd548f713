//! The catalog's values: metas of objects, rows, index entries.

use quarry_engine::catalog::{
    AccountValue, Chunked, ContainerValue, Head, ListedEtag, ListingValue, ObjectMeta, ObjectState,
    decode_path, encode_grave, encode_tombstone,
};
use quarry_engine::clock::Timestamp;
use quarry_engine::disk::Location;
use quarry_engine::io::SplitMix64;
use quarry_engine::object::{Headers, IndexPolicy, ListedAs, ObjectInfo, ObjectPath};

use super::super::Target;
use super::as_is;

/// The meta of an object's record.
pub(super) const OBJECT_META: Target =
    Target { name: "object-meta", run: object_meta, seeds: object_metas, mend: as_is, words: &[] };
/// Rows and index entries: the first byte chooses which.
pub(super) const VALUES: Target =
    Target { name: "values", run: values, seeds: value_seeds, mend: as_is, words: &["\0\u{1}", "AUTH_a"] };

fn headers() -> Headers {
    [("x-object-meta-a", "b"), ("x-object-meta-\u{e9}", "")].map(|(n, v)| (n.to_owned(), v.to_owned())).into()
}

fn object_metas(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let path = ObjectPath { account: "AUTH_a".into(), container: "c".into(), object: "o/\u{10ffff}".into() };
    let meta = |full: bool| ObjectMeta {
        path: path.clone(),
        info: ObjectInfo {
            timestamp: Timestamp(77),
            data_timestamp: Timestamp(5),
            size: 5 << 30,
            md5: [1; 16],
            blake3: [2; 32],
            content_type: "a/b".to_owned(),
            delete_at: full.then_some(1 << 40),
            listed: ListedAs {
                size: full.then_some(9),
                etag: full.then(|| "e; slo_etag=x".to_owned()),
                content_type: full.then(|| "t/t".to_owned()),
            },
            headers: if full { headers() } else { Headers::new() },
        },
        chunked: full.then_some(Chunked { data_id: [9; 16], count: 5120 }),
        chunk_size: if full { 1 << 20 } else { 0 },
        fragment: None,
        intent: full.then_some(1 << 50),
    };
    let graves = [encode_tombstone(&path), encode_grave(&path, Some(1 << 50))];
    [meta(true).encode(), meta(false).encode()].into_iter().chain(graves).collect()
}

fn object_meta(data: &[u8]) {
    let path = decode_path(data);
    if let Ok(meta) = ObjectMeta::decode(data, 77) {
        assert_eq!(path.as_ref(), Ok(&meta.path));
        assert_eq!(ObjectMeta::decode(&meta.encode(), 77).as_ref(), Ok(&meta));
        let state = meta.state();
        assert_eq!(ObjectState::decode(&state.encode()), Ok(state));
    }
    if let Ok(path) = path {
        assert_eq!(decode_path(&encode_tombstone(&path)), Ok(path));
    }
}

fn value_seeds(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let at = Location { segment: 7, offset: 4096, len: 512 };
    let state = ObjectState {
        chunked: Some(Chunked { data_id: [3; 16], count: 9 }),
        delete_at: Some(1 << 33),
        turn: 3,
        intent: true,
    };
    let listing = |etag| {
        ListingValue {
            size: 1 << 33,
            etag,
            content_type: "text/plain".to_owned(),
            version: None,
            key: None,
            shown: None,
        }
        .encode()
    };
    let values = [
        (0, AccountValue { created: 1 << 50, marked: true, headers: headers() }.encode()),
        (
            1,
            ContainerValue {
                id: 1 << 50,
                put: 9,
                policy: 1,
                index: IndexPolicy::Eventual,
                headers: headers(),
            }
            .encode(),
        ),
        (2, listing(ListedEtag::Md5([4; 16]))),
        (2, listing(ListedEtag::Text("x".to_owned()))),
        (3, Head { sequence: 1 << 50, at, ghosts: 300 }.encode(&state.encode())),
        (4, state.encode()),
    ];
    values.into_iter().map(|(kind, value)| [&[kind], value.as_slice()].concat()).collect()
}

fn values(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 5 {
        0 => AccountValue::decode(data)
            .map_or((), |value| assert_eq!(AccountValue::decode(&value.encode()), Ok(value))),
        1 => ContainerValue::decode(data)
            .map_or((), |value| assert_eq!(ContainerValue::decode(&value.encode()), Ok(value))),
        2 => ListingValue::decode(data)
            .map_or((), |value| assert_eq!(ListingValue::decode(&value.encode()), Ok(value))),
        3 => {
            if let Ok((head, payload)) = Head::decode(data) {
                assert_eq!(Head::decode(&head.encode(payload)), Ok((head, payload)));
            }
        }
        _ => ObjectState::decode(data)
            .map_or((), |value| assert_eq!(ObjectState::decode(&value.encode()), Ok(value))),
    }
}
