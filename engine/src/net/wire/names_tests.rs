//! Every question and answer about names comes back as it went, under the number that it has for ever.

use super::*;
use crate::object::Headers;

fn path() -> ObjectPath {
    ObjectPath { account: "a".into(), container: "c".into(), object: "o".into() }
}

pub(in crate::net::wire) fn begin() -> NamesRequest {
    let what = AskedFor::Begin { lease: 300, path: path(), given: Some(Timestamp(5)) };
    NamesRequest { group: 1, follows: None, what }
}

pub(in crate::net::wire) fn begun() -> NamesAnswer {
    let container = Some(Standing { id: 9, policy: 2, index: IndexPolicy::Eventual });
    NamesAnswer::Begun { line: Line { container, ..Line::default() }, at: Timestamp(300) }
}

fn headers() -> Headers {
    [("x".to_owned(), "y".to_owned())].into()
}

fn listing() -> Listing {
    let text = |n: u8| char::from(n).to_string();
    Listing {
        prefix: text(b'p'),
        delimiter: text(b'd'),
        marker: text(b'm'),
        end_marker: text(b'e'),
        limit: 300,
        reverse: true,
        path: Some(text(b'/')),
    }
}

/// The listing's bytes.
const LISTING: &str = "01700164016d0165fb2c010101012f";

fn asks() -> Vec<(Ask, String)> {
    let (account, container) = ("a".to_owned(), "c".to_owned());
    let (a, c, headers_are) = ("0161", "0163", "0101780179");
    let both = |tag: &str, rest: &str| format!("{tag}{a}{c}{rest}");
    vec![
        (Ask::Account { account: account.clone() }, format!("00{a}")),
        (Ask::Container { account: account.clone(), container: container.clone() }, both("01", "")),
        (Ask::Line { path: path() }, both("02", "016f")),
        (
            Ask::PutAccount { account: account.clone(), headers: headers(), expect: None },
            format!("03{a}{headers_are}00"),
        ),
        (Ask::MarkAccount { account: account.clone(), created: Timestamp(4) }, format!("04{a}04")),
        (Ask::RemoveMarked { account: account.clone() }, format!("05{a}")),
        (Ask::MarkedAccounts { marker: "m".to_owned(), limit: 7 }, "06016d07".to_owned()),
        (
            Ask::PutContainer {
                account: account.clone(),
                container: container.clone(),
                policy: 3,
                headers: headers(),
                expect: Some(Timestamp(4)),
                post: true,
                index: Some(IndexPolicy::Eventual),
            },
            both("07", &format!("03{headers_are}0104010101")),
        ),
        (
            Ask::DeleteContainer {
                account: account.clone(),
                container: container.clone(),
                created: Timestamp(4),
            },
            both("08", "04"),
        ),
        (Ask::Accounts { marker: "m".to_owned(), limit: 8 }, "09016d08".to_owned()),
        (
            Ask::Containers { account: account.clone(), listing: listing(), marked: true },
            format!("0a{a}{LISTING}01"),
        ),
        (
            Ask::Objects { account: account.clone(), container: container.clone(), listing: listing() },
            both("0b", LISTING),
        ),
        (Ask::Holding { account: account.clone(), container: container.clone() }, both("0c", "")),
        (Ask::Shut { account: account.clone(), container: container.clone(), at: None }, both("0d", "00")),
        (
            Ask::Open { account: account.clone(), container: container.clone(), at: Timestamp(4) },
            both("0e", "04"),
        ),
        (Ask::DeleteShut { account, container, at: Timestamp(4) }, both("0f", "04")),
    ]
}

fn child() -> Child {
    Child { container: "n".to_owned(), policy: 3, from: "f".to_owned(), group: 9 }
}

fn answers() -> Vec<(Answer, &'static str)> {
    let account = Account {
        created: Timestamp(1),
        changed: Timestamp(2),
        deleted: true,
        containers: 3,
        objects: 4,
        bytes: 5,
        policies: vec![(1, Share { containers: 6, objects: 7, bytes: 8 })],
        headers: headers(),
    };
    let container = Container {
        created: Timestamp(1),
        changed: Timestamp(2),
        policy: 3,
        objects: 4,
        bytes: 5,
        headers: headers(),
        index: IndexPolicy::Strict,
    };
    let name = || "n".to_owned();
    let of_container = ContainerRow { name: name(), objects: 1, bytes: 2, changed: Timestamp(3), policy: 4 };
    let of_object = ObjectRow {
        name: name(),
        size: 1,
        etag: "e".to_owned(),
        content_type: "t".to_owned(),
        timestamp: Timestamp(2),
    };
    let containers = Page { entries: vec![Entry::Row(of_container), Entry::Subdir(name())], cut: true };
    let objects = Page { entries: vec![Entry::Row(of_object)], cut: false };
    vec![
        (Answer::Account(Some(account)), "000101020103040501010607080101780179"),
        (Answer::Container(Some(container)), "01010102030405010178017900"),
        (Answer::Line(Line { at: Some(Timestamp(6)), ..Line::default() }), "0200010600"),
        (Answer::Put(Put::Done(Made::Updated)), "030001"),
        (Answer::Put(Put::Changed), "0301"),
        (Answer::Deleted(Deleted::NotEmpty), "0402"),
        (Answer::Accounts(vec![name()]), "0501016e"),
        (Answer::Containers(containers), "060200016e0102030401016e01"),
        (Answer::Objects(objects), "070100016e01016501740200"),
        (
            Answer::Holding(Holding {
                objects: 1,
                bytes: 2,
                at: None,
                above: Timestamp(7),
                children: vec![child()],
            }),
            "080102000701016e03016609",
        ),
        (
            Answer::Split { answer: Box::new(Answer::Deleted(Deleted::NotEmpty)), children: vec![child()] },
            "09040201016e03016609",
        ),
    ]
}

#[test]
fn questions_have_these_bytes_for_ever() {
    for (ask, golden) in asks() {
        let request = NamesRequest { group: 2, follows: None, what: AskedFor::Ask(ask) };
        let bytes = encode(&request).unwrap();
        assert_eq!(hex::encode(&bytes), format!("0200{golden}"), "{request:?}");
        assert_eq!(decode::<NamesRequest>(&bytes), Ok(request));
    }
}

#[test]
fn answers_have_these_bytes_for_ever() {
    for (answer, golden) in answers() {
        let answer = NamesAnswer::Answer(answer);
        let bytes = encode(&answer).unwrap();
        assert_eq!(hex::encode(&bytes), format!("00{golden}"), "{answer:?}");
        assert_eq!(decode::<NamesAnswer>(&bytes), Ok(answer));
    }
}

#[test]
fn steps_of_a_change_have_these_bytes_for_ever() {
    let line = NewLine { container: 9, at: Timestamp(8), value: Some(vec![1]), conditional: true };
    let (lease, before, class) = (7, Some(Timestamp(6)), Class::Delete);
    let settle = AskedFor::Settle { lease, path: path(), before, line, class };
    for (what, golden) in [
        (settle, "020701610163016f0106090801010101".to_owned() + "02"),
        (AskedFor::Release { lease: 7 }, "0307".to_owned()),
    ] {
        let request = NamesRequest { group: 1, follows: None, what };
        let bytes = encode(&request).unwrap();
        assert_eq!(hex::encode(&bytes), format!("01{golden}"), "{request:?}");
        assert_eq!(decode::<NamesRequest>(&bytes), Ok(request));
    }
    for (answer, golden) in [
        (NamesAnswer::Done, "02"),
        (
            NamesAnswer::Elsewhere(Elsewhere::Moved { group: 9, from: "f".to_owned(), to: None }),
            "050009016600",
        ),
        (NamesAnswer::Elsewhere(Elsewhere::Shut { at: Timestamp(4) }), "050104"),
        (NamesAnswer::Elsewhere(Elsewhere::Unknown), "0502"),
        (NamesAnswer::NotLeader(Some(NodeId([1; 16]))), "030101010101010101010101010101010101"),
        (NamesAnswer::Moved(None), "0400"),
    ] {
        let bytes = encode(&answer).unwrap();
        assert_eq!(hex::encode(&bytes), golden, "{answer:?}");
        assert_eq!(decode::<NamesAnswer>(&bytes), Ok(answer));
    }
}

#[test]
fn several_questions_have_these_bytes_for_ever() {
    let several = |number| AskedFor::Several(Asks(vec![Ask::Line { path: path() }; number]));
    let request = NamesRequest { group: 1, follows: None, what: several(2) };
    let bytes = encode(&request).unwrap();
    assert_eq!(hex::encode(&bytes), "0104020201610163016f0201610163016f");
    assert_eq!(decode::<NamesRequest>(&bytes), Ok(request));
    let line = Answer::Line(Line { at: Some(Timestamp(6)), ..Line::default() });
    let answer = NamesAnswer::Several(vec![Some(line), None]);
    let bytes = encode(&answer).unwrap();
    assert_eq!(hex::encode(&bytes), "060201020001060000");
    assert_eq!(decode::<NamesAnswer>(&bytes), Ok(answer));
    let most = encode(&NamesRequest { group: 1, follows: None, what: several(MAX_TOGETHER) }).unwrap();
    assert!(decode::<NamesRequest>(&most).is_ok());
    let more = encode(&NamesRequest { group: 1, follows: None, what: several(MAX_TOGETHER + 1) }).unwrap();
    assert_eq!(decode::<NamesRequest>(&more), Err(WireError::Field("names")));
}

#[test]
fn a_question_of_a_follower_has_these_bytes_for_ever() {
    let request = NamesRequest { follows: Some(300), ..begin() };
    let (bytes, alone) = (encode(&request).unwrap(), encode(&begin()).unwrap());
    assert_eq!(hex::encode(&bytes), format!("0105fb2c01{}", hex::encode(&alone[1..])));
    assert_eq!(decode::<NamesRequest>(&bytes), Ok(request));
}

#[test]
fn numbers_that_nobody_writes_are_errors() {
    for bytes in [&[1, 9][..], &[1, 0, 99], &[1, 3], &[1, 5, 7], &[1, 5, 7, 5, 7, 3, 1]] {
        assert!(decode::<NamesRequest>(&Bytes::from_static(b"")).is_err());
        assert!(decode::<NamesRequest>(&Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
    }
    let long = [encode(&begin()).unwrap().to_vec(), vec![0]].concat();
    assert_eq!(decode::<NamesRequest>(&long.into()), Err(WireError::Trailing));
}

#[test]
fn a_split_answer_within_another_is_refused_however_deep_it_goes() {
    let mut bytes = vec![9; 1 << 20];
    bytes[0] = 0;
    assert_eq!(decode::<NamesAnswer>(&bytes.into()), Err(WireError::Field("names")));
}
