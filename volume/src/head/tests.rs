use super::*;
use crate::member::{Fence, Refusal, Token};

const FENCE: Fence = Fence { epoch: 2, configuration: 1 };

pub(super) fn device(n: u8) -> DeviceId {
    DeviceId([n; 16])
}

pub(super) fn history(end: u64) -> History {
    History::new(vec![Turn { epoch: 1, base: 0 }], end).unwrap()
}

pub(super) fn promised(member: u8, end: u64) -> Event {
    let report = Report { history: history(end), whole: true, kept: true };
    let session = Session(u64::from(member));
    Event::Reply(device(member), Session::default(), Reply::Promised(session, report))
}

pub(super) fn reply(member: u8, reply: Reply) -> Event {
    Event::Reply(device(member), Session(u64::from(member)), reply)
}

pub(super) fn sent(actions: &[Action], member: u8) -> Vec<Message> {
    let to = |action: &Action| match action {
        Action::Send(to, _, message) if *to == device(member) => Some(message.clone()),
        _ => None,
    };
    actions.iter().filter_map(to).collect()
}

pub(super) fn answers(actions: &[Action]) -> Vec<(Token, Result<Done, Failure>)> {
    let answer = |action: &Action| match action {
        Action::Answer(token, result) => Some((*token, *result)),
        _ => None,
    };
    actions.iter().filter_map(answer).collect()
}

pub(super) fn attach(members: u8) -> Head {
    let settings = Settings { least: 2, keep: 0, near: Some(device(1)) };
    let members = Configuration::new((1..=members).map(device).collect());
    let (head, actions) = Head::attach(FENCE, members.clone(), settings);
    assert_eq!(actions.len(), members.members.len(), "all are asked");
    head
}

/// Three members that are alike and have begun, at the sequence 5.
pub(super) fn serving() -> Head {
    let mut head = attach(3);
    for member in 1..=3 {
        head.step(promised(member, 5));
    }
    for member in 1..=3 {
        head.step(reply(member, Reply::Begun));
    }
    assert!(head.is_serving());
    head
}

#[test]
fn the_longest_of_a_seal_is_the_base_and_a_quorum_begins_before_it_serves() {
    let mut head = attach(3);
    assert_eq!(sent(&head.step(promised(1, 4)), 1), [], "one alone is no seal");
    let actions = head.step(promised(2, 5));
    assert_eq!(sent(&actions, 2), [Message::Begin(history(5).begun(2))]);
    assert_eq!(sent(&actions, 1), [], "it waits for somebody to be filled from");
    let actions = head.step(reply(2, Reply::Begun));
    assert_eq!(sent(&actions, 1), [Message::Fill { common: 4, after: 5 }]);
    assert!(!head.is_serving());
    let actions = head.step(reply(1, Reply::Filling));
    let fill =
        Action::Fill { source: (device(2), Session(2)), target: device(1), session: Session(1), common: 4 };
    assert_eq!(actions, [fill]);
    let actions = head.step(Event::Filled(device(1), Session(1), 5));
    assert_eq!(sent(&actions, 1), [Message::Join(history(5).begun(2))]);
    assert_eq!(head.step(reply(1, Reply::Joined)), [Action::Serving]);
}

/// A head crashed with a write in flight, and one of three had it. The next head filled the others both at once: neither was whole, and when the
/// disk of the first died the volume was undecided, though both had all that was ever acknowledged.
#[test]
fn until_a_quorum_follows_no_more_whole_members_are_filled_than_it_needs() {
    let filling = |head: &Head| -> Vec<u8> {
        let filling = head.members().filter(|(_, standing)| *standing == Standing::Filling);
        filling.map(|(id, _)| id.0[0]).collect()
    };
    let attached = |ends: &[u64]| {
        let mut head = attach(u8::try_from(ends.len()).unwrap());
        for (member, end) in (1..).zip(ends) {
            head.step(promised(member, *end));
        }
        head.step(reply(1, Reply::Begun));
        head
    };
    // Of those that wait, the one that has most.
    let mut head = attached(&[9, 7, 5]);
    assert_eq!(filling(&head), [3]);
    head.step(Event::Lost(device(3), Session(3)));
    assert_eq!(filling(&head), [2], "it waits for who was to be whole before it, not for who is gone");
    let mut head = attached(&[9, 7, 5]);
    head.step(reply(3, Reply::Filling));
    head.step(Event::Filled(device(3), Session(3), 9));
    assert_eq!(filling(&head), [] as [u8; 0], "it is whole when it says so");
    let actions = head.step(reply(3, Reply::Joined));
    assert!(actions.contains(&Action::Serving), "{actions:?}");
    assert_eq!(filling(&head), [2]);
    // As many as are needed are filled at once.
    assert_eq!(filling(&attached(&[9, 5])), [2]);
    assert_eq!(filling(&attached(&[9, 8, 7, 6, 5])), [4, 5]);
    // One that has gone another way is filled for hours, and is that again when it is cut off.
    let mut head = attach(3);
    head.step(promised(1, 9));
    head.step(promised(2, 7));
    let astray = History::new(vec![Turn { epoch: 0, base: 0 }], 6).unwrap();
    let report = Report { history: astray, whole: true, kept: true };
    head.step(Event::Reply(device(3), Session::default(), Reply::Promised(Session(3), report)));
    head.step(reply(1, Reply::Begun));
    assert_eq!(filling(&head), [2, 3]);
}

#[test]
fn what_a_member_acknowledged_before_it_was_filled_counts_in_a_seal() {
    let mut head = attach(3);
    let report = Report { history: history(6), whole: false, kept: true };
    head.step(Event::Reply(device(1), Session::default(), Reply::Promised(Session(1), report)));
    let actions = head.step(promised(2, 5));
    assert_eq!(actions, [], "the third may have what the first acknowledged");
    let actions = head.step(promised(3, 6));
    assert_eq!(sent(&actions, 3), [Message::Begin(history(6).begun(2))]);
}

/// A damaged member that promised again soon enough was the source again and again, though another had all.
#[test]
fn who_was_lost_while_it_filled_another_is_not_the_next_source() {
    let mut head = serving();
    head.step(Event::Write(Token(7), Until::Durable));
    for member in 1..=2 {
        head.step(reply(member, Reply::Written(6)));
        head.step(reply(member, Reply::Flushed(6)));
    }
    head.step(Event::Lost(device(3), Session(3)));
    let again = |member: u8, session: u64, end: u64| {
        let report = Report { history: history(5).begun(2).until(end), whole: true, kept: true };
        Event::Reply(device(member), Session::default(), Reply::Promised(Session(session), report))
    };
    head.step(again(3, 13, 5));
    let filled_from = |actions: &[Action]| {
        let source = actions.iter().find_map(|action| match action {
            Action::Fill { source: (source, _), .. } => Some(source.0[0]),
            _ => None,
        });
        source.unwrap_or_else(|| panic!("{actions:?}"))
    };
    let filling = |session: u64| Event::Reply(device(3), Session(session), Reply::Filling);
    let first = filled_from(&head.step(filling(13)));
    head.step(Event::Lost(device(first), Session(first.into())));
    head.step(again(first, 20, 6));
    head.step(Event::Reply(device(first), Session(20), Reply::Begun));
    head.step(again(3, 23, 5));
    assert_ne!(filled_from(&head.step(filling(23))), first);
}

/// Members with one bad block were lost again and again, and who was filled from them with them.
#[test]
fn who_cannot_read_all_stays_a_member_and_is_not_the_next_source() {
    let mut head = serving();
    head.step(Event::Write(Token(7), Until::Durable));
    for member in 1..=2 {
        head.step(reply(member, Reply::Written(6)));
        head.step(reply(member, Reply::Flushed(6)));
    }
    head.step(Event::Lost(device(3), Session(3)));
    let mut sources = Vec::new();
    for session in 10..14 {
        let report = Report { history: history(5).begun(2), whole: true, kept: true };
        let promised = Reply::Promised(Session(session), report);
        head.step(Event::Reply(device(3), Session::default(), promised));
        let actions = head.step(Event::Reply(device(3), Session(session), Reply::Filling));
        let [Action::Fill { source, .. }] = &actions[..] else { panic!("{actions:?}") };
        sources.push(source.0.0[0]);
        let actions = head.step(Event::NoRows(device(3), Session(session)));
        assert_eq!(actions, [Action::StopFill(device(3), Session(session))]);
        let active = head.members().filter(|(_, standing)| *standing == Standing::Active).count();
        assert_eq!(active, 2);
    }
    assert!(sources == [1, 2, 1, 2] || sources == [2, 1, 2, 1], "{sources:?}");
}

#[test]
fn a_write_is_acknowledged_by_a_quorum_and_flushed_by_those_who_say_so() {
    let mut head = serving();
    let actions = head.step(Event::Write(Token(7), Until::Durable));
    assert_eq!(actions[0], Action::Place(Token(7), 6));
    for member in 1..=3 {
        assert_eq!(sent(&actions, member), [Message::Write(6), Message::Flush(6)]);
    }
    assert_eq!(head.step(reply(3, Reply::Written(6))), []);
    assert_eq!(head.step(reply(1, Reply::Written(6))), [Action::Release(6)]);
    assert_eq!(head.step(reply(1, Reply::Flushed(6))), []);
    let actions = head.step(reply(3, Reply::Refused(Refusal::Out)));
    assert_eq!(answers(&actions), [], "a flush that failed is no flush");
    head.step(reply(2, Reply::Written(6)));
    let actions = head.step(reply(2, Reply::Flushed(6)));
    assert_eq!(answers(&actions), [(Token(7), Ok(Done::Written))]);
}

/// A flush waited at a member for all that was still queued for it, with one of the few places that flushes have on a device: busy volumes kept
/// those of all others waiting.
#[test]
fn a_member_that_is_far_behind_flushes_what_it_has() {
    let mut head = serving();
    for token in 6..=45 {
        head.step(Event::Write(Token(token), Until::Written));
    }
    for member in 1..=2 {
        head.step(reply(member, Reply::Written(45)));
    }
    let actions = head.step(Event::Flush(Token(1)));
    let flushes = |actions: &[Action]| (1..=3).map(|n| sent(actions, n)).collect::<Vec<_>>();
    assert_eq!(flushes(&actions), [vec![Message::Flush(45)], vec![Message::Flush(45)], vec![]]);
    head.step(reply(1, Reply::Flushed(45)));
    let actions = head.step(reply(2, Reply::Flushed(45)));
    assert_eq!(answers(&actions), [(Token(1), Ok(Done::Flushed))]);
    // What it has durably nobody has to keep for it.
    assert_eq!(sent(&head.step(reply(3, Reply::Written(20))), 3), [Message::Flush(20)]);
    assert_eq!(sent(&head.step(reply(3, Reply::Written(28))), 3), [], "one at a time");
    assert_eq!(sent(&head.step(reply(3, Reply::Flushed(20))), 3), [Message::Flush(28)]);
    head.step(reply(3, Reply::Written(29)));
    assert_eq!(sent(&head.step(reply(3, Reply::Flushed(28))), 3), [Message::Flush(45)], "little is to come");
    assert_eq!(head.step(reply(3, Reply::Flushed(45))), [], "and no more");
}

/// A lone client that flushes after each write waited for its members twice.
#[test]
fn who_flushes_after_each_write_has_the_next_one_flushed_at_once() {
    let mut head = serving();
    let mut token = 10;
    let mut next = || {
        token += 1;
        Token(token)
    };
    let mut pair = |head: &mut Head, sequence: u64| {
        let actions = head.step(Event::Write(next(), Until::Written));
        let together = sent(&actions, 1) == [Message::Write(sequence), Message::Flush(sequence)];
        assert!(together || sent(&actions, 1) == [Message::Write(sequence)], "{actions:?}");
        for member in 1..=2 {
            head.step(reply(member, Reply::Written(sequence)));
        }
        if together {
            (1..=2).for_each(|member| drop(head.step(reply(member, Reply::Flushed(sequence)))));
        }
        let flush = next();
        let actions = head.step(Event::Flush(flush));
        if together {
            assert_eq!(actions, [Action::Answer(flush, Ok(Done::Flushed))], "it is durable by then");
        } else {
            assert_eq!(sent(&actions, 1), [Message::Flush(sequence)]);
            (1..=2).for_each(|member| drop(head.step(reply(member, Reply::Flushed(sequence)))));
        }
        together
    };
    let together: Vec<bool> = (6..=11).map(|sequence| pair(&mut head, sequence)).collect();
    assert_eq!(together, [false, false, false, false, true, true]);
    // Who writes more before it flushes does so for a while.
    for sequence in 12..=13 {
        head.step(Event::Write(Token(1000 + sequence), Until::Written));
        for member in 1..=2 {
            head.step(reply(member, Reply::Written(sequence)));
            head.step(reply(member, Reply::Flushed(12)));
        }
    }
    head.step(Event::Flush(Token(2000)));
    (1..=2).for_each(|member| drop(head.step(reply(member, Reply::Flushed(13)))));
    let together: Vec<bool> = (14..=18).map(|sequence| pair(&mut head, sequence)).collect();
    assert_eq!(together, [false, false, false, false, true]);
}

/// A member was away for hours, and the last 256 writes of each volume were kept for it, of up to a mebibyte each.
#[test]
fn what_is_too_much_is_kept_no_longer_once_it_was_answered() {
    let mut head = serving();
    head.settings.keep = 100;
    head.step(Event::Lost(device(3), Session(3)));
    for token in 6..=8 {
        head.step(Event::Write(Token(token), Until::Written));
    }
    for member in 1..=2 {
        head.step(reply(member, Reply::Written(7)));
    }
    assert_eq!(head.step(Event::Spare(6)), [Action::Release(6)]);
    assert_eq!(head.step(Event::Spare(6)), []);
    assert_eq!(head.step(Event::Spare(8)), [Action::Release(7)], "the last one was not answered");
    // It lacks what is kept no more.
    let report = Report { history: history(5), whole: true, kept: true };
    head.step(Event::Reply(device(3), Session::default(), Reply::Promised(Session(30), report)));
    let standing = head.members().find(|(id, _)| *id == device(3)).map(|(_, standing)| standing);
    assert_eq!(standing, Some(Standing::Filling));
}

#[test]
fn what_all_members_have_durably_is_kept_no_longer() {
    let mut head = serving();
    head.settings.keep = 100;
    head.step(Event::Write(Token(7), Until::Durable));
    for member in 1..=3 {
        assert_eq!(head.step(reply(member, Reply::Written(6))), []);
    }
    head.step(reply(1, Reply::Flushed(6)));
    let actions = head.step(reply(2, Reply::Flushed(6)));
    assert!(!actions.contains(&Action::Release(6)), "one may need it again");
    assert_eq!(head.step(reply(3, Reply::Flushed(6))), [Action::Release(6)]);
}

#[test]
fn acknowledgements_need_the_old_and_the_new_members_while_they_change() {
    let mut head = serving();
    let actions = head.step(Event::Overdue(device(3)));
    let Some(Action::Change(next)) = actions.first() else { panic!("{actions:?}") };
    assert_eq!((next.version, &next.members[..]), (2, &[device(1), device(2)][..]));
    // Back before the change is committed: it has the write, and counts for the old members only.
    let again = Report { history: history(5).begun(2), whole: true, kept: true };
    let again = Reply::Promised(Session(9), again);
    head.step(Event::Reply(device(3), Session::default(), again));
    head.step(Event::Reply(device(3), Session(9), Reply::Begun));
    head.step(Event::Write(Token(7), Until::Written));
    head.step(Event::Reply(device(3), Session(9), Reply::Written(6)));
    assert_eq!(head.step(reply(1, Reply::Written(6))), [], "of the new members only one has it");
    let actions = head.step(reply(2, Reply::Written(6)));
    assert_eq!(answers(&actions), [(Token(7), Ok(Done::Written))]);
    let actions = head.step(Event::Changed(2));
    assert!(matches!(&actions[..], [Action::Change(next)] if next.members.len() == 3), "{actions:?}");
}

/// A member was to go when two others died: for as long as that was wished nobody was demoted, and nothing was written any more.
#[test]
fn what_is_wished_and_cannot_be_keeps_nobody_from_demoting_who_died() {
    let mut head = attach(4);
    for member in 1..=4 {
        head.step(promised(member, 5));
    }
    for member in 1..=4 {
        head.step(reply(member, Reply::Begun));
    }
    for member in [2, 4] {
        head.step(Event::Lost(device(member), Session(member.into())));
    }
    for _ in 0..9 {
        assert_eq!(head.step(Event::Remove(device(3))), [], "of three one alone would be there");
    }
    assert_eq!(head.wishes.len(), 1);
    let members = |actions: &[Action]| match actions {
        [Action::Change(next)] => next.members.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(members(&head.step(Event::Overdue(device(2)))), [1, 3, 4].map(device));
    head.step(Event::Changed(2));
    assert_eq!(members(&head.step(Event::Overdue(device(4)))), [1, 3].map(device));
    head.step(Event::Changed(3));
    head.step(Event::Write(Token(7), Until::Written));
    head.step(reply(1, Reply::Written(6)));
    let actions = head.step(reply(3, Reply::Written(6)));
    assert_eq!(answers(&actions), [(Token(7), Ok(Done::Written))]);
    // That one goes now would leave the other alone.
    assert_eq!(head.step(Event::Remove(device(3))), []);
    assert_eq!((head.wishes.len(), head.configuration().members.len()), (0, 2));
}

#[test]
fn fewer_than_the_least_never_are_the_members() {
    let mut head = serving();
    head.step(Event::Overdue(device(3)));
    head.step(Event::Changed(2));
    assert_eq!(head.configuration().members.len(), 2);
    let actions = head.step(Event::Overdue(device(2)));
    assert_eq!(actions, []);
    head.step(Event::Write(Token(7), Until::Written));
    assert_eq!(answers(&head.step(reply(1, Reply::Written(6)))), []);
    let expired = [(Token(7), Err(Failure::TooFew))];
    assert_eq!(answers(&head.step(Event::Expired(Token(7)))), expired);
}

#[test]
fn reads_that_wait_share_a_round_of_confirmations() {
    let mut head = serving();
    let actions = head.step(Event::Read(Token(1)));
    assert_eq!(sent(&actions, 1), [Message::Read(Token(1), 5)], "the near one");
    assert_eq!(sent(&actions, 2), [Message::Confirm(1)]);
    let actions = head.step(Event::Read(Token(2)));
    assert_eq!(sent(&actions, 2), [], "one round at a time");
    assert_eq!(head.step(reply(1, Reply::Read(Token(1), 0))), []);
    assert_eq!(head.step(reply(1, Reply::Read(Token(2), 0))), []);
    let actions = head.step(reply(2, Reply::Confirmed(1)));
    assert_eq!(answers(&actions), [(Token(1), Ok(Done::Read(device(1))))]);
    assert_eq!(sent(&actions, 2), [Message::Confirm(2)]);
    let actions = head.step(reply(3, Reply::Confirmed(1)));
    assert_eq!(sent(&actions, 3), [Message::Confirm(2)]);
    let actions = head.step(reply(3, Reply::Confirmed(2)));
    assert_eq!(answers(&actions), [(Token(2), Ok(Done::Read(device(1))))]);
}

#[test]
fn a_write_in_flight_confirms_and_what_is_read_is_flushed_first() {
    let mut head = serving();
    head.step(Event::Read(Token(1)));
    head.step(Event::Write(Token(2), Until::Written));
    assert_eq!(answers(&head.step(reply(1, Reply::Read(Token(1), 6)))), []);
    head.step(reply(1, Reply::Written(6)));
    let actions = head.step(reply(2, Reply::Written(6)));
    assert_eq!(answers(&actions), [(Token(2), Ok(Done::Written))], "the read would vanish with the power");
    head.step(reply(1, Reply::Flushed(6)));
    let actions = head.step(reply(2, Reply::Flushed(6)));
    assert_eq!(answers(&actions), [(Token(1), Ok(Done::Read(device(1))))]);
}

#[test]
fn a_block_that_one_member_cannot_read_is_read_from_another() {
    let mut head = serving();
    head.step(Event::Read(Token(1)));
    let actions = head.step(reply(1, Reply::Unreadable(Token(1))));
    assert_eq!(sent(&actions, 2), [Message::Read(Token(1), 5)]);
    let actions = head.step(reply(2, Reply::Unreadable(Token(1))));
    assert_eq!(sent(&actions, 3), [Message::Read(Token(1), 5)]);
    let actions = head.step(reply(3, Reply::Unreadable(Token(1))));
    assert_eq!(answers(&actions), [(Token(1), Err(Failure::Unreadable))]);
}

#[test]
fn a_fenced_head_ends_all_that_waits() {
    let mut head = serving();
    head.step(Event::Read(Token(1)));
    head.step(Event::Write(Token(2), Until::Written));
    let newer = Fence { epoch: 3, configuration: 1 };
    let actions = head.step(reply(2, Reply::Refused(Refusal::Fenced(newer))));
    let fenced = Err(Failure::Fenced(newer));
    assert_eq!(answers(&actions), [(Token(2), fenced), (Token(1), fenced)]);
    assert_eq!(actions.last(), Some(&Action::Stopped(Failure::Fenced(newer))));
    assert_eq!(answers(&head.step(Event::Flush(Token(3)))), [(Token(3), fenced)]);
}

#[test]
fn a_head_that_hands_over_has_flushed_everything() {
    let mut head = serving();
    head.step(Event::Write(Token(1), Until::Written));
    head.step(Event::HandOver(Token(2)));
    let handed = [(Token(3), Err(Failure::HandedOver))];
    assert_eq!(answers(&head.step(Event::Write(Token(3), Until::Written))), handed);
    for member in 1..=2 {
        head.step(reply(member, Reply::Written(6)));
    }
    head.step(reply(1, Reply::Flushed(6)));
    let actions = head.step(reply(2, Reply::Flushed(6)));
    assert_eq!(answers(&actions), [(Token(2), Ok(Done::HandedOver(6)))]);
}

#[test]
fn writes_that_all_members_lost_before_a_flush_end_the_head() {
    let mut head = serving();
    head.step(Event::Write(Token(1), Until::Written));
    head.step(reply(1, Reply::Written(6)));
    head.step(reply(2, Reply::Written(6)));
    for member in 1..=3 {
        head.step(Event::Lost(device(member), Session(u64::from(member))));
    }
    let again = |member: u8| {
        let report = Report { history: history(5).begun(2), whole: true, kept: true };
        Event::Reply(device(member), Session::default(), Reply::Promised(Session(20), report))
    };
    head.step(again(1));
    head.step(again(2));
    let actions = head.step(again(3));
    assert_eq!(actions.last(), Some(&Action::Stopped(Failure::Lost(5))));
}
