use bytes::Buf;

use super::super::limits::{MAX_OPTION_DATA, MAX_STRING};
use super::*;

/// A volume with everything on.
fn volume() -> Export {
    Export {
        name: "vol".into(),
        description: Some("a volume".into()),
        bytes: 1 << 30,
        minimum_block: 1,
        preferred_block: 4096,
        read_only: false,
        rotational: false,
        multi_connection: true,
        tls_only: false,
        snapshots: vec!["monday".into(), "tuesday".into()],
    }
}

/// Flags of [`volume`] with simple replies: all but READ_ONLY, ROTATIONAL, DF, RESIZE and the payload of block status.
const FEATURES: u16 = 0b1101_0110_1101;

fn sent(handshake: &mut Handshake) -> Vec<u8> {
    let outbox = handshake.outbox();
    outbox.copy_to_bytes(outbox.remaining()).to_vec()
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    [b"IHAVEOPT".as_slice(), &number.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

fn wish(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u16::try_from(infos.len()).unwrap().to_be_bytes());
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(u32::try_from(query.len()).unwrap().to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// An answer to an option, as it is on the wire.
fn answer(number: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
    [&magic, number.to_be_bytes().as_slice(), &kind.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

fn error(number: u32, code: u32) -> Vec<u8> {
    answer(number, (1 << 31) + code, &[])
}

/// A client of the fixed form whose greeting is over.
fn greeted(tls: Tls) -> Handshake {
    let mut handshake = Handshake::new(tls);
    assert_eq!(sent(&mut handshake), b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!(handshake.feed(&3_u32.to_be_bytes()), (4, None));
    handshake
}

/// Feeds one option, which must be taken whole.
fn feed(handshake: &mut Handshake, number: u32, data: &[u8]) -> Option<Demand> {
    let bytes = option(number, data);
    let (taken, demand) = handshake.feed(&bytes);
    assert_eq!(taken, bytes.len(), "option {number}");
    demand
}

/// What an option that needs nobody is answered.
fn told(handshake: &mut Handshake, number: u32, data: &[u8]) -> Vec<u8> {
    assert_eq!(feed(handshake, number, data), None, "option {number}");
    sent(handshake)
}

/// What an option about an export is answered when `found` is found, and what comes of it.
fn found(
    handshake: &mut Handshake,
    number: u32,
    data: &[u8],
    found: Result<Export, OptionError>,
) -> (Vec<u8>, Option<Demand>) {
    assert!(matches!(feed(handshake, number, data), Some(Demand::Find { .. })), "option {number}");
    let demand = handshake.export(found);
    (sent(handshake), demand)
}

#[test]
fn golden_bytes_of_go() {
    let mut handshake = greeted(Tls::Off);
    let data = wish("vol", &[3, 1, 2, 0x1234]);
    let find = Demand::Find { name: "vol".into(), purpose: Purpose::Enter };
    assert_eq!(feed(&mut handshake, 7, &data), Some(find));
    let terms = Terms { export: volume(), style: Style::Simple, contexts: Vec::new() };
    assert_eq!(handshake.export(Ok(volume())), Some(Demand::Enter(Box::new(terms))));
    let expected = concat!(
        "0003e889045565a9000000070000000300000", /* INFO */
        "00c00000000000040000000",
        "0d6d",
        "0003e889045565a90000000700000003000000050001766f6c",
        "0003e889045565a900000007000000030000000a00026120766f6c756d65",
        "0003e889045565a900000007000000030000000e0003000000010000100002000000",
        "0003e889045565a9000000070000000100000000",
    );
    let hex: String = sent(&mut handshake).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected);
    assert_eq!(handshake.feed(b"a request"), (0, None), "which is the session's");
}

#[test]
fn info_tells_the_same_and_stays() {
    let mut handshake = greeted(Tls::Off);
    let data = wish("vol", &[]);
    let (said, demand) = found(&mut handshake, 6, &data, Ok(volume()));
    let mut export = vec![0, 0];
    export.extend((1_u64 << 30).to_be_bytes());
    export.extend(FEATURES.to_be_bytes());
    assert_eq!(said, [answer(6, 3, &export), answer(6, 1, &[])].concat());
    assert_eq!(demand, None);
    let (said, demand) = found(&mut handshake, 7, &data, Ok(volume()));
    assert_eq!(said, [answer(7, 3, &export), answer(7, 1, &[])].concat());
    assert!(matches!(demand, Some(Demand::Enter(_))));
}

#[test]
fn export_name_answers_without_a_head() {
    for (flags, zeroes) in [(3_u32, 0), (1, 124), (0, 124)] {
        let mut handshake = Handshake::new(Tls::Off);
        sent(&mut handshake);
        handshake.feed(&flags.to_be_bytes());
        let (said, demand) = found(&mut handshake, 1, b"vol", Ok(volume()));
        let expected =
            [(1_u64 << 30).to_be_bytes().as_slice(), &FEATURES.to_be_bytes(), &vec![0; zeroes]].concat();
        assert_eq!(said, expected, "client flags {flags}");
        assert!(matches!(demand, Some(Demand::Enter(_))));
    }
    let mut handshake = greeted(Tls::Off);
    let (said, demand) = found(&mut handshake, 1, b"nope", Err(OptionError::Unknown));
    assert_eq!((said, demand), (Vec::new(), Some(Demand::Close(Ending::Export))));
}

#[test]
fn flaws_get_their_error_and_the_haggling_goes_on() {
    let mut handshake = greeted(Tls::Off);
    let ours = &mut handshake;
    // Unknown, known and long ago withdrawn, and with more data than is kept.
    for number in [99, 4, 0, u32::MAX] {
        assert_eq!(told(ours, number, &[0xee; 37]), error(number, 1));
        assert_eq!(told(ours, number, &vec![0xee; MAX_OPTION_DATA + 9]), error(number, 1));
    }
    for number in [3, 5, 8, 11] {
        assert_eq!(told(ours, number, b"data"), error(number, 3), "option {number} has no data");
    }
    assert_eq!(told(ours, 5, b""), error(5, 2), "TLS is off");
    for data in
        [b"\0\0".as_slice(), b"\0\0\x10\0short\0\0", b"\0\0\0\x01v\0\x05\0\x01", b"\0\0\0\x01\xff\0\0"]
    {
        assert_eq!(told(ours, 6, data), error(6, 3), "{data:?}");
        assert_eq!(told(ours, 7, data), error(7, 3), "{data:?}");
    }
    let behind = [wish("vol", &[1]), vec![0]].concat();
    assert_eq!(told(ours, 7, &behind), error(7, 3), "bytes behind the last field");
    assert_eq!(told(ours, 7, &wish(&"n".repeat(MAX_STRING + 1), &[])), error(7, 9));
    assert_eq!(told(ours, 7, &vec![0; MAX_OPTION_DATA + 1]), error(7, 9));
    let (said, _) = found(ours, 7, &wish(&"n".repeat(MAX_STRING), &[]), Err(OptionError::Unknown));
    assert_eq!(said, error(7, 6), "a name of the full length is only unknown");
    let (said, demand) = found(ours, 7, &wish("vol", &[]), Ok(volume()));
    assert!(said.ends_with(&answer(7, 1, &[])) && matches!(demand, Some(Demand::Enter(_))));
}

#[test]
fn what_cannot_go_on_ends() {
    let ends = |bytes: &[u8]| greeted(Tls::Off).feed(bytes).1;
    assert_eq!(ends(&[0x11; 16]), Some(Demand::Close(Ending::Magic)));
    let head = [b"IHAVEOPT".as_slice(), &77_u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
    assert_eq!(ends(&head), Some(Demand::Close(Ending::Long(77, u32::MAX))));
    assert_eq!(ends(&option(1, &[b'n'; MAX_STRING + 1])), Some(Demand::Close(Ending::Export)));
    let mut handshake = Handshake::new(Tls::Off);
    let flags = 0x8000_0003_u32;
    assert_eq!(handshake.feed(&flags.to_be_bytes()), (4, Some(Demand::Close(Ending::Flags(flags)))));
    assert_eq!(handshake.feed(&option(3, b"")), (0, None), "and takes no more");
    let mut old = Handshake::new(Tls::Off);
    old.feed(&0_u32.to_be_bytes());
    assert_eq!(old.feed(&option(3, b"")).1, Some(Demand::Close(Ending::OldClient(3))));
    let mut handshake = greeted(Tls::Off);
    for _ in 0..MAX_OPTIONS {
        assert_eq!(feed(&mut handshake, 99, b""), None);
    }
    assert_eq!(handshake.feed(&option(99, b"")).1, Some(Demand::Close(Ending::Options)));
}

#[test]
fn abort_is_acknowledged_with_data_too() {
    for tls in [Tls::Off, Tls::Offered, Tls::Required] {
        let mut handshake = greeted(tls);
        assert_eq!(feed(&mut handshake, 2, b"bye"), Some(Demand::Close(Ending::Aborted)));
        assert_eq!(sent(&mut handshake), answer(2, 1, &[]));
    }
}

#[test]
fn the_list_has_names_and_descriptions() {
    let mut handshake = greeted(Tls::Off);
    assert_eq!(feed(&mut handshake, 3, b""), Some(Demand::List));
    assert_eq!(handshake.feed(&option(3, b"")), (0, None), "one thing after the other");
    let listed = Listed { name: "vol".into(), description: "hi".into() };
    assert_eq!(handshake.list(&[listed]), None);
    assert_eq!(sent(&mut handshake), [answer(3, 2, b"\0\0\0\x03volhi"), answer(3, 1, &[])].concat());
    feed(&mut handshake, 3, b"");
    let many = vec![Listed { name: "v".into(), description: String::new() }; MAX_LISTED + 1];
    assert_eq!(handshake.list(&many), None);
    assert_eq!(sent(&mut handshake), error(3, 9));
}

#[test]
fn tls_that_is_required_comes_first() {
    let mut handshake = greeted(Tls::Required);
    let data = wish("vol", &[]);
    let asked = [
        (3, vec![]),
        (6, data.clone()),
        (7, data),
        (8, vec![]),
        (11, vec![]),
        (10, vec![1]),
        (99, vec![9; 70_000]),
    ];
    for (number, data) in asked {
        assert_eq!(told(&mut handshake, number, &data), error(number, 5), "option {number}");
    }
    assert_eq!(told(&mut handshake, 5, b"x"), error(5, 3));
    assert_eq!(feed(&mut handshake, 5, b""), Some(Demand::StartTls));
    assert_eq!(sent(&mut handshake), answer(5, 1, &[]));
    assert_eq!(handshake.secured(0), None);
    assert!(handshake.is_secure());
    assert_eq!(told(&mut handshake, 5, b""), error(5, 3), "once only");
    assert_eq!(feed(&mut handshake, 3, b""), Some(Demand::List));
    let mut rude = greeted(Tls::Required);
    assert_eq!(feed(&mut rude, 1, b"vol"), Some(Demand::Close(Ending::Export)));
}

/// A man in the middle puts options behind STARTTLS, to be taken as if they had come over TLS.
#[test]
fn bytes_in_clear_behind_starttls_end_the_connection() {
    let mut handshake = greeted(Tls::Offered);
    let both = [option(5, b""), option(8, b"")].concat();
    assert_eq!(handshake.feed(&both), (16, Some(Demand::StartTls)));
    assert_eq!(handshake.feed(&both[16..]), (0, None));
    assert_eq!(handshake.secured(16), Some(Demand::Close(Ending::Clear)));
}

#[test]
fn nothing_agreed_before_tls_counts_after_it() {
    let mut handshake = greeted(Tls::Offered);
    assert_eq!(told(&mut handshake, 11, b""), answer(11, 1, &[]));
    found(&mut handshake, 10, &queries("vol", &["base:allocation"]), Ok(volume()));
    feed(&mut handshake, 5, b"");
    handshake.secured(0);
    sent(&mut handshake);
    assert_eq!(told(&mut handshake, 10, &queries("vol", &[])), error(10, 3), "structured replies first");
    let (_, demand) = found(&mut handshake, 7, &wish("vol", &[]), Ok(volume()));
    let terms = Terms { export: volume(), style: Style::Simple, contexts: Vec::new() };
    assert_eq!(demand, Some(Demand::Enter(Box::new(terms))));
}

#[test]
fn an_export_may_insist_on_tls() {
    let hidden = || Export { tls_only: true, ..volume() };
    let mut handshake = greeted(Tls::Offered);
    for number in [6, 7] {
        let (said, demand) = found(&mut handshake, number, &wish("vol", &[]), Ok(hidden()));
        assert_eq!((said, demand), (error(number, 5), None));
    }
    feed(&mut handshake, 5, b"");
    handshake.secured(0);
    sent(&mut handshake);
    let (_, demand) = found(&mut handshake, 7, &wish("vol", &[]), Ok(hidden()));
    assert!(matches!(demand, Some(Demand::Enter(_))));
    let mut without = greeted(Tls::Off);
    let (said, _) = found(&mut without, 7, &wish("vol", &[]), Ok(hidden()));
    assert_eq!(said, error(7, 2), "a server without TLS does not ask for it");
}

#[test]
fn larger_blocks_must_be_asked_for() {
    let sectors = || Export { minimum_block: 512, ..volume() };
    let mut handshake = greeted(Tls::Off);
    let (said, demand) = found(&mut handshake, 7, &wish("vol", &[]), Ok(sectors()));
    assert!(said.ends_with(&error(7, 8)) && demand.is_none());
    let sizes = [0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0];
    assert!(said.windows(14).any(|bytes| bytes == sizes), "told beforehand: {said:x?}");
    let (_, demand) = found(&mut handshake, 7, &wish("vol", &[3]), Ok(sectors()));
    assert!(matches!(demand, Some(Demand::Enter(_))));
}

#[test]
fn extended_headers_take_the_place_of_structured_replies() {
    let mut handshake = greeted(Tls::Off);
    assert_eq!(told(&mut handshake, 8, b""), answer(8, 1, &[]));
    assert_eq!(told(&mut handshake, 11, b""), answer(11, 1, &[]));
    assert_eq!(told(&mut handshake, 8, b""), error(8, 10));
    let (_, demand) = found(&mut handshake, 7, &wish("vol", &[]), Ok(volume()));
    let Some(Demand::Enter(terms)) = demand else { panic!("{demand:?}") };
    assert_eq!(terms.style, Style::Extended);
    assert_eq!(terms.export.features(terms.style, true), FEATURES | 1 << 7 | 1 << 12);
    let mut handshake = greeted(Tls::Off);
    told(&mut handshake, 11, b"");
    assert_eq!(feed(&mut handshake, 1, b"vol"), Some(Demand::Close(Ending::Export)));
}

#[test]
fn parts_of_a_block_status_are_offered_where_contexts_were_selected() {
    // The flags of the first piece of information: behind its head of 20 bytes, its kind and the size.
    let told_flags = |handshake: &mut Handshake, number: u32, name: &str| {
        let export = Export { name: name.into(), ..volume() };
        let (said, _) = found(handshake, number, &wish(name, &[]), Ok(export));
        u16::from_be_bytes(said[30..32].try_into().unwrap())
    };
    let (plain, parts) = (FEATURES | 1 << 7, 1 << 12);
    let entered = |contexts: &[&str], name: &str| {
        let mut handshake = greeted(Tls::Off);
        told(&mut handshake, 11, b"");
        found(&mut handshake, 10, &queries("vol", contexts), Ok(volume()));
        assert_eq!(told_flags(&mut handshake, 6, name), plain | parts, "who only looks may still select");
        told_flags(&mut handshake, 7, name)
    };
    assert_eq!(entered(&["base:allocation"], "vol"), plain | parts);
    assert_eq!(entered(&["base:allocation"], "other"), plain, "selected for another export");
    assert_eq!(entered(&[], "vol"), plain);
}

/// The contexts that LIST or SET answers: (id, name).
fn contexts(said: &[u8], number: u32) -> Vec<(u32, String)> {
    let mut rest = said;
    let mut contexts = Vec::new();
    loop {
        rest.advance(8);
        assert_eq!(rest.get_u32(), number);
        let (kind, length) = (rest.get_u32(), rest.get_u32() as usize);
        if kind == 1 {
            assert!(rest.is_empty(), "the acknowledgement is the last");
            return contexts;
        }
        assert_eq!(kind, 4);
        let id = rest.get_u32();
        contexts.push((id, String::from_utf8(rest[..length - 4].to_vec()).unwrap()));
        rest.advance(length - 4);
    }
}

#[test]
fn contexts_are_listed_and_selected_by_name() {
    let mut handshake = greeted(Tls::Off);
    told(&mut handshake, 8, b"");
    let mut ask = |number, wanted: &[&str]| {
        let (said, demand) = found(&mut handshake, number, &queries("vol", wanted), Ok(volume()));
        assert_eq!(demand, None);
        contexts(&said, number).into_iter().map(|(id, name)| format!("{id} {name}")).collect::<Vec<_>>()
    };
    let (base, monday) = ("0 base:allocation", "0 quarry:snapshot-diff:monday");
    let tuesday = "0 quarry:snapshot-diff:tuesday";
    assert_eq!(ask(9, &[]), [base, monday, tuesday]);
    assert_eq!(ask(9, &["base:"]), [base]);
    assert_eq!(ask(9, &["quarry:"]), [monday, tuesday]);
    assert_eq!(ask(9, &["quarry:snapshot-diff:", "x-nope:thing"]), [monday, tuesday]);
    for nothing in ["base:", "base:nope", "x-nope:a", "quarry:snapshot-diff:", "quarry:snapshot-diff:sunday"]
    {
        assert!(ask(10, &[nothing]).is_empty(), "{nothing} selects nothing");
    }
    assert!(ask(10, &[]).is_empty());
    let both = ["quarry:snapshot-diff:tuesday", "base:allocation", "base:allocation"];
    assert_eq!(ask(10, &both), ["1 base:allocation", "2 quarry:snapshot-diff:tuesday"]);
    let (_, demand) = found(&mut handshake, 7, &wish("vol", &[]), Ok(volume()));
    let Some(Demand::Enter(terms)) = demand else { panic!("{demand:?}") };
    assert_eq!(terms.contexts, [Context::Allocation, Context::Difference("tuesday".into())]);
}

#[test]
fn only_the_last_selection_counts_and_only_for_its_export() {
    let select = queries("vol", &["base:allocation"]);
    let selected = |after: &[(u32, Vec<u8>)], name: &str| {
        let mut handshake = greeted(Tls::Off);
        told(&mut handshake, 8, b"");
        found(&mut handshake, 10, &select, Ok(volume()));
        for (number, data) in after {
            if let Some(Demand::Find { .. }) = feed(&mut handshake, *number, data) {
                handshake.export(Err(OptionError::Unknown));
            }
        }
        let export = Export { name: name.into(), ..volume() };
        match found(&mut handshake, 7, &wish(name, &[]), Ok(export)).1 {
            Some(Demand::Enter(terms)) => terms.contexts.len(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(selected(&[], "vol"), 1);
    assert_eq!(selected(&[], "other"), 0);
    assert_eq!(selected(&[(9, queries("vol", &[]))], "vol"), 1, "a list changes nothing");
    assert_eq!(selected(&[(10, select.clone())], "vol"), 0, "a failed selection clears");
    assert_eq!(selected(&[(10, vec![0; 3])], "vol"), 0, "a misspelt one too");
    assert_eq!(selected(&[(10, queries("vol", &["no colon"]))], "vol"), 0);
}

#[test]
fn too_many_contexts_are_too_big() {
    let snapshots = (0..=MAX_CONTEXTS).map(|n| format!("s{n}").into()).collect();
    let export = Export { snapshots, ..volume() };
    let names: Vec<String> = (0..=MAX_CONTEXTS).map(|n| format!("quarry:snapshot-diff:s{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut handshake = greeted(Tls::Off);
    told(&mut handshake, 8, b"");
    let (said, _) = found(&mut handshake, 10, &queries("vol", &names), Ok(export.clone()));
    assert_eq!(said, error(10, 9));
    let (said, _) = found(&mut handshake, 10, &queries("vol", &names[1..]), Ok(export));
    assert_eq!(contexts(&said, 10).len(), MAX_CONTEXTS);
}
