//! Bytes of NBD clients, from the greeting on.

use bytes::Buf;
use quarry_engine::io::SplitMix64;
use quarry_volume::nbd::limits::{MAX_IN_FLIGHT, MAX_OWED, MAX_PAYLOAD};
use quarry_volume::nbd::{
    Action, Command, Demand, Export, Extent, Handshake, Listed, OptionError, Outbox, Outcome, Part, Session,
    Tls,
};

use super::super::Target;
use super::as_is;

/// A whole connection: its first byte says how TLS is offered, the rest is what the client sends.
pub(super) const CLIENT: Target = Target {
    name: "nbd-client",
    run: client,
    seeds,
    mend: as_is,
    words: &["IHAVEOPT", "vol", "base:", "base:allocation", "quarry:snapshot-diff:monday"],
};

fn option(out: &mut Vec<u8>, number: u32, data: &[u8]) {
    out.extend(b"IHAVEOPT");
    out.extend(number.to_be_bytes());
    out.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    out.extend(data);
}

fn request(out: &mut Vec<u8>, extended: bool, flags: u16, kind: u16, length: u32, payload: &[u8]) {
    let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
    out.extend(magic.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend([kind.to_be_bytes()[1]; 8]);
    out.extend(4096_u64.to_be_bytes());
    if extended {
        out.extend(u64::from(length).to_be_bytes());
    } else {
        out.extend(length.to_be_bytes());
    }
    out.extend(payload);
}

fn seeds(_: &mut SplitMix64) -> Vec<Vec<u8>> {
    let context = b"\0\0\0\x03vol\0\0\0\x01\0\0\0\x0fbase:allocation";
    let seed = |style: Option<u32>| {
        let mut out = vec![0, 0, 0, 0, 3];
        option(&mut out, 3, b"");
        option(&mut out, 6, b"\0\0\0\x03vol\0\x02\0\x01\0\x02");
        if let Some(style) = style {
            option(&mut out, style, b"");
            option(&mut out, 9, b"\0\0\0\x03vol\0\0\0\0");
            option(&mut out, 10, context);
        }
        option(&mut out, 7, b"\0\0\0\x03vol\0\x01\0\x03");
        let extended = style == Some(11);
        let payload_flag = if extended { 32 } else { 0 };
        request(&mut out, extended, 0, 0, 8192, b"");
        request(&mut out, extended, 1 | payload_flag, 1, 5, b"hello");
        request(&mut out, extended, 0, 4, 8192, b"");
        request(&mut out, extended, 2, 6, 8192, b"");
        request(&mut out, extended, 8, 7, 8192, b"");
        if extended {
            request(&mut out, true, 32, 7, 12, b"\0\0\0\0\0\0\x10\0\0\0\0\x01");
        }
        request(&mut out, extended, 0, 3, 0, b"");
        request(&mut out, extended, 0, 2, 0, b"");
        out
    };
    let mut starttls = vec![1, 0, 0, 0, 3];
    option(&mut starttls, 5, b"");
    option(&mut starttls, 2, b"");
    let mut old = vec![0, 0, 0, 0, 0];
    option(&mut old, 1, b"vol");
    request(&mut old, false, 0, 0, 512, b"");
    vec![seed(None), seed(Some(8)), seed(Some(11)), starttls, old]
}

fn export() -> Export {
    Export {
        name: "vol".into(),
        description: Some("a volume".into()),
        bytes: 1 << 33,
        minimum_block: 1,
        preferred_block: 4096,
        read_only: false,
        rotational: false,
        multi_connection: true,
        tls_only: false,
        snapshots: vec!["monday".into()],
    }
}

fn client(data: &[u8]) {
    let Some((first, mut rest)) = data.split_first() else { return };
    let tls = [Tls::Off, Tls::Offered, Tls::Required][usize::from(*first) % 3];
    let mut handshake = Handshake::new(tls);
    loop {
        let (taken, demand) = handshake.feed(rest);
        rest = &rest[taken..];
        let Some(mut demand) = demand else {
            assert!(rest.is_empty(), "all is taken while nothing is demanded");
            return;
        };
        loop {
            let next = match demand {
                Demand::List => handshake.list(&[Listed { name: "vol".into(), description: String::new() }]),
                Demand::Find { name, .. } if name == "vol" => handshake.export(Ok(export())),
                Demand::Find { .. } => handshake.export(Err(OptionError::Unknown)),
                // What the client sent in clear is not looked at.
                Demand::StartTls => handshake.secured(0),
                Demand::Close(_) => return,
                Demand::Enter(terms) => {
                    return serve(Session::new(*terms, std::mem::take(handshake.outbox())), rest);
                }
            };
            match next {
                Some(next) => demand = next,
                None => break,
            }
        }
    }
}

/// Finishes each command late, so that several are open.
fn serve(mut session: Session, mut rest: &[u8]) {
    let mut open = Vec::new();
    loop {
        let (taken, action) = session.feed(rest);
        rest = &rest[taken..];
        assert!(session.open() <= MAX_IN_FLIGHT);
        match action {
            Some(Action::Run(ticket, command)) => open.push((ticket, command)),
            Some(Action::Disconnect | Action::Close(_)) => break,
            None if rest.is_empty() => break,
            None => assert!(!session.takes_input(), "all is taken while there is room"),
        }
        if !session.takes_input() || open.len() > 3 {
            for (ticket, command) in open.drain(..) {
                session.finish(ticket, outcome(&command));
            }
            drain(session.outbox());
        }
    }
    for (ticket, command) in open {
        session.finish(ticket, outcome(&command));
    }
    drain(session.outbox());
    assert_eq!(session.open(), 0);
}

fn drain(outbox: &mut Outbox) {
    assert!(outbox.remaining() <= MAX_OWED + 5 * MAX_PAYLOAD as usize);
    while outbox.has_remaining() {
        let step = outbox.chunk().len();
        outbox.advance(step);
    }
}

/// What is asked for lies in the export, and is not empty.
fn outcome(command: &Command) -> Outcome {
    let range = match command {
        Command::Read { offset, length } => Some((*offset, u64::from(*length))),
        Command::Write { offset, data, .. } => Some((*offset, data.len() as u64)),
        Command::Flush => None,
        Command::Trim { offset, length, .. }
        | Command::WriteZeroes { offset, length, .. }
        | Command::Cache { offset, length }
        | Command::BlockStatus { offset, length, .. } => Some((*offset, *length)),
    };
    if let Some((offset, length)) = range {
        assert!(length > 0 && offset.checked_add(length).is_some_and(|end| end <= 1 << 33));
    }
    match command {
        Command::Read { length, .. } => Outcome::Data(vec![Part::Hole(*length)]),
        Command::BlockStatus { length, contexts, .. } => {
            Outcome::Status(vec![vec![Extent { length: *length, status: 1 }]; contexts.len()])
        }
        _ => Outcome::Done,
    }
}
