//! Any cut of the bytes gives the same; any bytes at all give no panic.

use bytes::Buf;
use quarry_engine::io::SplitMix64;

use super::*;

fn export() -> Export {
    Export {
        name: "vol".into(),
        description: Some("a volume".into()),
        bytes: 1 << 33,
        minimum_block: 1,
        preferred_block: 4096,
        read_only: false,
        rotational: true,
        multi_connection: true,
        tls_only: false,
        snapshots: vec!["monday".into()],
    }
}

/// Everything that was said and demanded, in order.
#[derive(Debug, PartialEq, Eq, Default)]
struct Told {
    said: Vec<u8>,
    demands: Vec<String>,
}

/// Plays bytes to one connection, cut by `cut`, which is given what is left. Commands are finished at once.
fn play(bytes: &[u8], mut cut: impl FnMut(usize) -> usize) -> Told {
    let mut told = Told::default();
    let mut handshake = Handshake::new(Tls::Offered);
    let mut session = None;
    let mut rest = bytes;
    let mut piece: &[u8] = &[];
    loop {
        if piece.is_empty() {
            if rest.is_empty() {
                return told;
            }
            (piece, rest) = rest.split_at(cut(rest.len()).clamp(1, rest.len()));
        }
        if let Some(session) = &mut session {
            let Some(taken) = serve(session, piece, &mut told) else { return told };
            piece = &piece[taken..];
            continue;
        }
        let (taken, demand) = handshake.feed(piece);
        piece = &piece[taken..];
        let mut next = demand;
        while let Some(demand) = next {
            told.demands.push(format!("{demand:?}"));
            next = match demand {
                Demand::List => handshake.list(&[Listed { name: "vol".into(), description: String::new() }]),
                Demand::Find { name, .. } if name == "vol" => handshake.export(Ok(export())),
                Demand::Find { .. } => handshake.export(Err(OptionError::Unknown)),
                Demand::StartTls => handshake.secured(0),
                Demand::Enter(terms) => {
                    session = Some(Session::new(*terms, std::mem::take(handshake.outbox())));
                    None
                }
                Demand::Close(_) => {
                    drain(handshake.outbox(), &mut told);
                    return told;
                }
            };
        }
        drain(handshake.outbox(), &mut told);
    }
}

fn drain(outbox: &mut Outbox, told: &mut Told) {
    let bytes = outbox.copy_to_bytes(outbox.remaining());
    told.said.extend_from_slice(&bytes);
}

/// Bytes taken; `None`: the connection is over.
fn serve(session: &mut Session, piece: &[u8], told: &mut Told) -> Option<usize> {
    let (taken, action) = session.feed(piece);
    if let Some(action) = &action {
        told.demands.push(format!("{action:?}"));
    }
    let over = match action {
        Some(Action::Run(ticket, command)) => {
            session.finish(ticket, outcome(&command));
            false
        }
        Some(Action::Disconnect | Action::Close(_)) => true,
        None => false,
    };
    drain(session.outbox(), told);
    (!over).then_some(taken)
}

fn outcome(command: &Command) -> Outcome {
    match command {
        Command::Read { length, .. } if *length > 1 << 20 => Outcome::Failed(Errno::Io),
        Command::Read { length, .. } => {
            Outcome::Data(vec![Part::Hole(length / 2), Part::Hole(length - length / 2)])
        }
        Command::BlockStatus { length, contexts, .. } => {
            Outcome::Status(vec![vec![Extent { length: *length, status: allocation::HOLE }]; contexts.len()])
        }
        _ => Outcome::Done,
    }
}

/// A connection as a client might make it, with flaws in it.
fn conversation(rng: &mut SplitMix64) -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    let option = |bytes: &mut Vec<u8>, number: u32, data: &[u8]| {
        bytes.extend(b"IHAVEOPT");
        bytes.extend(number.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
    };
    let style = rng.below(3);
    for _ in 0..rng.below(5) {
        let number = [3, 5, 6, 9, 99, 0][rng.index(6)];
        let length = [0, 0, 3, 40][rng.index(4)];
        option(&mut bytes, number, &vec![1; length]);
    }
    option(&mut bytes, [99, 8, 11][rng.index(1) + usize::try_from(style).unwrap()], b"");
    option(&mut bytes, 10, b"\0\0\0\x03vol\0\0\0\x01\0\0\0\x0fbase:allocation");
    option(&mut bytes, 7, b"\0\0\0\x03vol\0\x01\0\x03");
    for cookie in 0..1 + rng.below(12) {
        let kind = rng.below(10);
        let length = [0, 1, 512, 4096, 70_000][rng.index(5)];
        let payload = if style == 2 { kind == 1 } else { kind % 9 == 1 };
        let flags: u16 = [0, 0, 1, 4, 64][rng.index(5)] | if payload && style == 2 { 32 } else { 0 };
        let magic: u32 = if style == 2 { 0x21e4_1c71 } else { 0x2560_9513 };
        bytes.extend(magic.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend(u16::try_from(kind).unwrap().to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend([0, 512, 1 << 33, u64::MAX][rng.index(4)].to_be_bytes());
        if style == 2 {
            bytes.extend((length as u64).to_be_bytes());
        } else {
            bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        }
        if payload {
            bytes.extend(vec![7; length]);
        }
    }
    bytes
}

#[test]
fn any_cut_gives_the_same() {
    let mut sessions = 0;
    for seed in 0..300 {
        let mut rng = SplitMix64::new(seed);
        let bytes = conversation(&mut rng);
        let whole = play(&bytes, |left| left);
        sessions += usize::from(whole.demands.iter().any(|demand| demand.starts_with("Run")));
        assert_eq!(play(&bytes, |_| 1), whole, "seed {seed}, byte by byte");
        for _ in 0..3 {
            assert_eq!(play(&bytes, |left| rng.index(left.min(300)) + 1), whole, "seed {seed}, at random");
        }
    }
    assert!(sessions > 100, "most conversations reach a session: {sessions}");
}

#[test]
fn no_bytes_make_a_panic() {
    for seed in 0..3000 {
        let mut rng = SplitMix64::new(seed);
        let mut bytes = conversation(&mut rng);
        for _ in 0..=rng.below(6) {
            let at = rng.index(bytes.len());
            match rng.below(3) {
                0 => bytes[at] = rng.next_u64().to_le_bytes()[0],
                1 => bytes[at] ^= 1 << rng.below(8),
                _ => bytes.truncate(at.max(1)),
            }
        }
        play(&bytes, |left| rng.index(left) + 1);
    }
}
