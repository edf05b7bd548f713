use super::super::export::{Context, Export, Style};
use super::super::limits::{MAX_PAYLOAD, MAX_SKIPPED_PAYLOAD};
use super::super::replies::{Extent, Part};
use super::*;
use bytes::Bytes;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST: u16 = 16;
const PAYLOAD: u16 = 32;

const SIZE: u64 = 1 << 40;
const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

fn terms(style: Style) -> Terms {
    let export = Export {
        name: "vol".into(),
        description: None,
        bytes: SIZE,
        minimum_block: 1,
        preferred_block: 4096,
        read_only: false,
        rotational: false,
        multi_connection: true,
        tls_only: false,
        snapshots: vec!["monday".into()],
    };
    let contexts = match style {
        Style::Simple => Vec::new(),
        _ => vec![Context::Allocation, Context::Difference("monday".into())],
    };
    Terms { export, style, contexts }
}

fn session(style: Style) -> Session {
    Session::new(terms(style), Outbox::default())
}

fn request(style: Style, flags: u16, kind: u16, offset: u64, length: u64) -> Vec<u8> {
    let extended = style == Style::Extended;
    let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
    let mut bytes = [magic.to_be_bytes().as_slice(), &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    bytes.extend(b"a cookie");
    bytes.extend(offset.to_be_bytes());
    if extended {
        bytes.extend(length.to_be_bytes());
    } else {
        bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
    }
    bytes
}

fn sent(session: &mut Session) -> Vec<u8> {
    let outbox = session.outbox();
    outbox.copy_to_bytes(outbox.remaining()).to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Feeds bytes that must all be taken.
fn feed(session: &mut Session, bytes: &[u8]) -> Option<Action> {
    let (taken, action) = session.feed(bytes);
    assert_eq!(taken, bytes.len(), "{action:?}");
    action
}

fn command(action: Option<Action>) -> (Ticket, Command) {
    match action {
        Some(Action::Run(ticket, command)) => (ticket, command),
        other => panic!("{other:?}"),
    }
}

/// The error number of the one reply that was sent.
fn refused(session: &mut Session, style: Style, bytes: &[u8]) -> u32 {
    assert_eq!(feed(session, bytes), None);
    let said = sent(session);
    let at = match style {
        Style::Simple => 4,
        Style::Structured => 20,
        Style::Extended => 32,
    };
    let length = if style == Style::Simple { 16 } else { at + 6 };
    assert_eq!(said.len(), length, "one reply of no more than an error: {said:x?}");
    u32::from_be_bytes(said[at..at + 4].try_into().unwrap())
}

#[test]
fn golden_bytes_of_replies() {
    let cookie = "6120636f6f6b6965";
    let read = |style, outcome| {
        let mut session = session(style);
        let (ticket, _) = command(feed(&mut session, &request(style, 0, READ, 0x1000, 6)));
        session.finish(ticket, outcome);
        hex(&sent(&mut session))
    };
    let parts = || {
        Outcome::Data(vec![
            Part::Data(Bytes::from_static(b"abc")),
            Part::Hole(2),
            Part::Data(Bytes::from_static(b"f")),
        ])
    };
    let failed = || Outcome::Failed(Errno::Io);
    assert_eq!(read(Style::Simple, parts()), format!("6744669800000000{cookie}616263000066"));
    assert_eq!(read(Style::Simple, failed()), format!("6744669800000005{cookie}"));
    assert_eq!(
        read(Style::Structured, parts()),
        format!(
            "668e33ef00000001{cookie}0000000b0000000000001000616263\
             668e33ef00000002{cookie}0000000c000000000000100300000002\
             668e33ef00010001{cookie}00000009000000000000100566"
        )
    );
    assert_eq!(read(Style::Structured, failed()), format!("668e33ef00018001{cookie}00000006000000050000"));
    assert_eq!(
        read(Style::Extended, parts()),
        format!(
            "6e8a278c00000001{cookie}0000000000001000000000000000000b0000000000001000616263\
             6e8a278c00000002{cookie}0000000000001000000000000000000c000000000000100300000002\
             6e8a278c00010001{cookie}00000000000010000000000000000009000000000000100566"
        )
    );
    let done = |style| {
        let mut session = session(style);
        let (ticket, flush) = command(feed(&mut session, &request(style, 0, FLUSH, 0, 0)));
        assert_eq!(flush, Command::Flush);
        session.finish(ticket, Outcome::Done);
        hex(&sent(&mut session))
    };
    assert_eq!(done(Style::Simple), format!("6744669800000000{cookie}"));
    assert_eq!(done(Style::Structured), format!("668e33ef00010000{cookie}00000000"));
    assert_eq!(done(Style::Extended), format!("6e8a278c00010000{cookie}{:032x}", 0));
}

#[test]
fn golden_bytes_of_block_status() {
    let cookie = "6120636f6f6b6965";
    let status = |style, flags| {
        let mut session = session(style);
        let (ticket, _) = command(feed(&mut session, &request(style, flags, STATUS, 0, 0x3000)));
        let allocation = vec![
            Extent { length: 0x800, status: 0 },
            Extent { length: 0x800, status: 0 },
            Extent { length: 0x9000, status: 3 },
        ];
        let difference = vec![Extent { length: 0x2000, status: 1 }];
        session.finish(ticket, Outcome::Status(vec![allocation, difference]));
        hex(&sent(&mut session))
    };
    assert_eq!(
        status(Style::Structured, 0),
        format!(
            "668e33ef00000005{cookie}0000001400000001000010000000000000002000\
             00000003668e33ef00010005{cookie}0000000c000000020000200000000001"
        ),
        "joined, and cut at the request's end"
    );
    assert_eq!(
        status(Style::Structured, REQ_ONE),
        format!(
            "668e33ef00000005{cookie}0000000c000000010000100000000000\
             668e33ef00010005{cookie}0000000c000000020000200000000001"
        )
    );
    assert_eq!(
        status(Style::Extended, REQ_ONE),
        format!(
            "6e8a278c00000006{cookie}000000000000000000000000000000180000000100000001\
             00000000000010000000000000000000\
             6e8a278c00010006{cookie}000000000000000000000000000000180000000200000001\
             00000000000020000000000000000001"
        )
    );
}

#[test]
fn every_command_is_read() {
    for style in STYLES {
        let mut session = session(style);
        let mut run = |flags, kind, offset, length| {
            let (ticket, command) = command(feed(&mut session, &request(style, flags, kind, offset, length)));
            let outcome = match &command {
                Command::Read { length, .. } => Outcome::Data(vec![Part::Hole(*length)]),
                Command::BlockStatus { length, contexts, .. } => {
                    Outcome::Status(vec![vec![Extent { length: *length, status: 0 }]; contexts.len()])
                }
                _ => Outcome::Done,
            };
            session.finish(ticket, outcome);
            command
        };
        assert_eq!(run(FUA, READ, 5, 7), Command::Read { offset: 5, length: 7 }, "FUA is borne everywhere");
        assert_eq!(run(FUA, FLUSH, 0, 0), Command::Flush);
        assert_eq!(run(0, TRIM, 5, 7), Command::Trim { offset: 5, length: 7, durable: false });
        assert_eq!(run(0, CACHE, 5, 7), Command::Cache { offset: 5, length: 7 });
        let zeroes =
            |durable, allocate, fast| Command::WriteZeroes { offset: 5, length: 7, durable, allocate, fast };
        assert_eq!(run(FUA, ZEROES, 5, 7), zeroes(true, false, false));
        assert_eq!(run(NO_HOLE | FAST, ZEROES, 5, 7), zeroes(false, true, true));
        if style != Style::Simple {
            let contexts = terms(style).contexts;
            assert_eq!(
                run(REQ_ONE, STATUS, 5, 7),
                Command::BlockStatus { offset: 5, length: 7, contexts, one: true }
            );
            assert_eq!(run(DF, READ, 5, 7), Command::Read { offset: 5, length: 7 });
        }
        let payload = if style == Style::Extended { PAYLOAD } else { 0 };
        let bytes = [request(style, FUA | payload, WRITE, 5, 3), b"abc".to_vec()].concat();
        let (ticket, write) = command_of(&mut session, &bytes);
        assert_eq!(write, Command::Write { offset: 5, data: Bytes::from_static(b"abc"), durable: true });
        assert_eq!(session.open(), 1);
        session.finish(ticket, Outcome::Done);
        assert_eq!((session.open(), session.owed), (0, 0));
    }
}

fn command_of(session: &mut Session, bytes: &[u8]) -> (Ticket, Command) {
    command(feed(session, bytes))
}

#[test]
fn flaws_get_their_error_and_the_session_goes_on() {
    const EINVAL: u32 = 22;
    const ENOSPC: u32 = 28;
    for style in STYLES {
        let mut ours = session(style);
        let payload = if style == Style::Extended { PAYLOAD } else { 0 };
        let mut check = |flags, kind, offset, length: u64, errno| {
            let mut bytes = request(style, flags, kind, offset, length);
            let carries = kind == WRITE || (style == Style::Extended && flags & PAYLOAD != 0);
            if carries {
                bytes.extend(vec![0xaa; usize::try_from(length).unwrap()]);
            }
            assert_eq!(
                refused(&mut ours, style, &bytes),
                errno,
                "{style:?} {flags:x} {kind} {offset}+{length}"
            );
        };
        check(0, 200, 0, 512, EINVAL);
        check(0, 8, 0, 512, EINVAL);
        for (kind, flags) in [(READ, 0), (WRITE, payload), (FLUSH, 0), (TRIM, 0), (ZEROES, 0), (CACHE, 0)] {
            check(flags | 0x4000, kind, 0, 0, EINVAL);
        }
        check(NO_HOLE, READ, 0, 512, EINVAL);
        check(REQ_ONE, FLUSH, 0, 0, EINVAL);
        check(FAST, TRIM, 0, 512, EINVAL);
        check(DF | payload, WRITE, 0, 512, EINVAL);
        check(0, FLUSH, 0, 512, EINVAL);
        for (offset, length) in
            [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 2), (u64::MAX - 511, 512), (1 << 63, 512)]
        {
            check(0, READ, offset, length, EINVAL);
            check(0, TRIM, offset, length, EINVAL);
            check(0, CACHE, offset, length, EINVAL);
            check(0, ZEROES, offset, length, ENOSPC);
            check(payload, WRITE, offset, length, ENOSPC);
        }
        let long = if style == Style::Simple { EINVAL } else { 75 };
        check(0, READ, 0, u64::from(MAX_PAYLOAD) + 1, long);
        match style {
            Style::Simple => {
                check(DF, READ, 0, 512, EINVAL);
                check(0, STATUS, 0, 512, EINVAL);
                check(PAYLOAD, WRITE, 0, 512, EINVAL);
                check(0, WRITE, 0, u64::from(MAX_PAYLOAD) + 1, EINVAL);
            }
            Style::Structured => check(0, STATUS, SIZE, 512, EINVAL),
            Style::Extended => {
                check(PAYLOAD, READ, 0, 64, EINVAL);
                check(PAYLOAD, FLUSH, 0, 64, EINVAL);
                check(PAYLOAD, 77, 0, 64, EINVAL);
                check(0, TRIM, 0, u64::MAX, EINVAL);
                check(0, ZEROES, 0, u64::MAX, ENOSPC);
            }
        }
        check(0, STATUS, 0, 0, EINVAL);
        let (_, read) = command_of(&mut ours, &request(style, 0, READ, SIZE - 1, 1));
        assert_eq!(read, Command::Read { offset: SIZE - 1, length: 1 });
    }
}

/// qemu 10.0.2 sends writes without the flag that says that data follows. They were refused, and their data taken for
/// the next request, which ended the connection.
#[test]
fn a_write_of_qemu_has_its_data_behind_it() {
    let mut session = session(Style::Extended);
    let bytes = [request(Style::Extended, 0, WRITE, 5, 3), b"abc".to_vec()].concat();
    let (_, write) = command_of(&mut session, &bytes);
    assert_eq!(write, Command::Write { offset: 5, data: Bytes::from_static(b"abc"), durable: false });
    let refused_one = [request(Style::Extended, 0, WRITE, SIZE, 3), b"abc".to_vec()].concat();
    assert_eq!(refused(&mut session, Style::Extended, &refused_one), 28);
}

#[test]
fn a_read_only_export_is_not_written() {
    for style in STYLES {
        let mut terms = terms(style);
        terms.export.read_only = true;
        let mut session = Session::new(terms, Outbox::default());
        let payload = if style == Style::Extended { PAYLOAD } else { 0 };
        let write = [request(style, payload, WRITE, 0, 4), vec![1; 4]].concat();
        assert_eq!(refused(&mut session, style, &write), 1);
        assert_eq!(refused(&mut session, style, &request(style, 0, TRIM, 0, 4)), 1);
        assert_eq!(refused(&mut session, style, &request(style, 0, ZEROES, 0, 4)), 1);
        command(feed(&mut session, &request(style, 0, FLUSH, 0, 0)));
    }
}

#[test]
fn blocks_are_kept_to() {
    let mut terms = terms(Style::Simple);
    terms.export.minimum_block = 512;
    let mut session = Session::new(terms, Outbox::default());
    for (offset, length) in [(1, 512), (0, 511), (512, 513)] {
        for kind in [READ, TRIM, ZEROES] {
            assert_eq!(
                refused(&mut session, Style::Simple, &request(Style::Simple, 0, kind, offset, length)),
                22
            );
        }
    }
    command(feed(&mut session, &request(Style::Simple, 0, READ, 512, 1024)));
}

#[test]
fn empty_requests_are_done_at_once() {
    for style in STYLES {
        let mut session = session(style);
        for (kind, flags) in [
            (READ, 0),
            (WRITE, if style == Style::Extended { PAYLOAD } else { 0 }),
            (TRIM, 0),
            (ZEROES, 0),
            (CACHE, 0),
        ] {
            assert_eq!(feed(&mut session, &request(style, flags, kind, 4096, 0)), None);
            let length = match style {
                Style::Simple => 16,
                Style::Structured => 20,
                Style::Extended => 32,
            };
            assert_eq!(sent(&mut session).len(), length, "{kind}");
        }
    }
}

#[test]
fn effects_may_be_longer_than_payloads() {
    let mut ours = session(Style::Simple);
    let most = u64::from(u32::MAX);
    let (_, zeroes) = command_of(&mut ours, &request(Style::Simple, 0, ZEROES, 0, most));
    assert!(matches!(zeroes, Command::WriteZeroes { length, .. } if length == most));
    let mut ours = session(Style::Extended);
    let (_, trim) = command_of(&mut ours, &request(Style::Extended, 0, TRIM, 0, SIZE));
    assert_eq!(trim, Command::Trim { offset: 0, length: SIZE, durable: false });
}

#[test]
fn block_status_may_name_its_contexts() {
    let mut session = session(Style::Extended);
    let ask = |length: u64, ids: &[u32]| {
        let mut payload = length.to_be_bytes().to_vec();
        ids.iter().for_each(|id| payload.extend(id.to_be_bytes()));
        [request(Style::Extended, PAYLOAD, STATUS, 64, payload.len() as u64), payload].concat()
    };
    let (ticket, status) = command_of(&mut session, &ask(4096, &[2]));
    let contexts = vec![Context::Difference("monday".into())];
    assert_eq!(status, Command::BlockStatus { offset: 64, length: 4096, contexts, one: false });
    session.finish(ticket, Outcome::Status(vec![vec![Extent { length: 9999, status: 1 }]]));
    let said = sent(&mut session);
    assert_eq!(said[32..40], [0, 0, 0, 2, 0, 0, 0, 1]);
    assert_eq!(said[40..48], 4096_u64.to_be_bytes(), "cut at the effect's length");
    for (length, ids) in [
        (4096, vec![3]),
        (4096, vec![0]),
        (4096, vec![1, 1]),
        (4096, vec![1, 2, 1]),
        (SIZE, vec![1]),
        (0, vec![1]),
    ] {
        assert_eq!(refused(&mut session, Style::Extended, &ask(length, &ids)), 22, "{length} {ids:?}");
    }
    let short = [request(Style::Extended, PAYLOAD, STATUS, 0, 7), vec![0; 7]].concat();
    assert_eq!(refused(&mut session, Style::Extended, &short), 22);
}

#[test]
fn what_cannot_go_on_ends() {
    let mut ours = session(Style::Simple);
    assert_eq!(ours.feed(&[0xde; 28]), (28, Some(Action::Close(Violation::Magic))));
    assert_eq!(ours.feed(&[0; 28]), (0, None));
    assert!(ours.is_over());
    let long = MAX_SKIPPED_PAYLOAD + 1;
    let flood = Some(Action::Close(Violation::Flood(long)));
    assert_eq!(feed(&mut session(Style::Structured), &request(Style::Structured, 0, WRITE, 0, long)), flood);
    let long = u64::from(MAX_PAYLOAD) + 1;
    let flood = Some(Action::Close(Violation::Flood(long)));
    assert_eq!(feed(&mut session(Style::Extended), &request(Style::Extended, PAYLOAD, READ, 0, long)), flood);
    // The other form's magic number.
    let wrong = [request(Style::Simple, 0, READ, 0, 1), vec![0; 4]].concat();
    assert_eq!(feed(&mut session(Style::Extended), &wrong), Some(Action::Close(Violation::Magic)));
}

#[test]
fn after_a_disconnect_what_is_open_is_finished() {
    let mut session = session(Style::Simple);
    let (ticket, _) = command(feed(&mut session, &request(Style::Simple, 0, FLUSH, 0, 0)));
    assert_eq!(feed(&mut session, &request(Style::Simple, 0, DISC, 0, 0)), Some(Action::Disconnect));
    assert_eq!(session.feed(&request(Style::Simple, 0, FLUSH, 0, 0)), (0, None));
    assert!(!session.takes_input() && !session.is_over());
    session.finish(ticket, Outcome::Done);
    assert!(!session.is_over(), "the reply is not sent yet");
    assert_eq!(sent(&mut session).len(), 16);
    assert!(session.is_over());
}

#[test]
fn no_more_is_taken_than_can_be_owed() {
    let mut ours = session(Style::Simple);
    let read = request(Style::Simple, 0, READ, 0, MAX_PAYLOAD.into());
    let (first, _) = command(feed(&mut ours, &read));
    let (_second, _) = command(feed(&mut ours, &read));
    assert!(!ours.takes_input());
    assert_eq!(ours.feed(&read), (0, None));
    ours.finish(first, Outcome::Data(vec![Part::Hole(MAX_PAYLOAD)]));
    assert!(!ours.takes_input(), "what is not sent is owed as well");
    ours.outbox().advance(1 << 20);
    assert!(ours.takes_input());
    // Answers to block statuses may be long, however short what asks for them.
    let mut ours = session(Style::Extended);
    let status = request(Style::Extended, 0, STATUS, 0, 1 << 28);
    let mut asked = 0;
    while let (_, Some(Action::Run(..))) = ours.feed(&status) {
        asked += 1;
        assert!(asked < MAX_IN_FLIGHT, "all are taken");
    }
    assert!(ours.owed >= MAX_OWED && asked > 1);
    // And so many commands, however small.
    let mut ours = session(Style::Simple);
    let flush = request(Style::Simple, 0, FLUSH, 0, 0);
    let tickets: Vec<Ticket> = (0..MAX_IN_FLIGHT).map(|_| command(feed(&mut ours, &flush)).0).collect();
    assert_eq!(ours.feed(&flush), (0, None));
    for ticket in tickets {
        ours.finish(ticket, Outcome::Done);
    }
    assert_eq!((ours.open(), ours.owed), (0, 0));
    // A client that sends nonsense and reads no answer.
    let mut ours = session(Style::Extended);
    let nonsense = request(Style::Extended, 0x4000, READ, 0, 0).repeat(1000);
    let mut sent = 0_usize;
    while ours.takes_input() {
        sent += ours.feed(&nonsense).0;
    }
    assert!(ours.outbox().remaining() < MAX_OWED + 100 && sent > 1 << 20);
}

#[test]
fn payloads_are_read_where_they_stay() {
    let mut session = session(Style::Simple);
    assert!(session.payload_room().is_none());
    let head = [request(Style::Simple, 0, WRITE, 0, 10), b"012".to_vec()].concat();
    assert_eq!(feed(&mut session, &head), None);
    let mut room = session.payload_room().unwrap();
    assert_eq!(room.remaining_mut(), 7);
    room.put_slice(b"3456789");
    let (_, write) = command(session.feed(b"").1);
    assert_eq!(write, Command::Write { offset: 0, data: Bytes::from_static(b"0123456789"), durable: false });
    assert!(session.payload_room().is_none());
}

#[test]
fn large_parts_are_sent_as_they_lie() {
    let mut session = session(Style::Structured);
    let request = request(Style::Structured, DF, READ, 0, 200_000);
    let (ticket, _) = command(feed(&mut session, &request));
    let part = Bytes::from(vec![7; 100_000]);
    session.finish(ticket, Outcome::Data(vec![Part::Data(part.clone()), Part::Hole(100_000)]));
    let mut slices = [std::io::IoSlice::new(&[]); 8];
    let outbox = session.outbox();
    let count = outbox.chunks_vectored(&mut slices);
    assert!(count >= 4 && slices[1].as_ptr() == part.as_ptr());
    let said = sent(&mut session);
    assert_eq!(said.len(), 28 + 200_000);
    assert_eq!(said[16..20], 200_008_u32.to_be_bytes());
    assert_eq!(said[28..100_028], part);
    assert!(said[100_028..].iter().all(|byte| *byte == 0));
}

#[test]
#[should_panic(expected = "a read covers the request")]
fn a_short_read_is_our_bug() {
    let mut session = session(Style::Simple);
    let (ticket, _) = command(feed(&mut session, &request(Style::Simple, 0, READ, 0, 2)));
    session.finish(ticket, Outcome::Data(vec![Part::Hole(1)]));
}
