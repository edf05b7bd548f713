//! Volumes whose members have lost what was acknowledged, or are too few; and what an operator decides.

use super::tests::{answers, attach, device, history, promised, reply, sent, serving};
use super::*;
use crate::member::{Fence, Position, Token};

/// A promise in a session of its own number.
fn says(member: u8, session: u64, history: History, whole: bool, kept: bool) -> Event {
    let report = Report { history, whole, kept };
    Event::Reply(device(member), Session::default(), Reply::Promised(Session(session), report))
}

fn partial(member: u8) -> Event {
    says(member, member.into(), history(6), false, true)
}

fn standing_of(head: &Head, member: u8) -> Option<Standing> {
    head.members().find(|(id, _)| *id == device(member)).map(|(_, standing)| standing)
}

/// The third is away, the others were left while they were filled, and the second is chosen.
fn decided() -> Head {
    let mut head = attach(3);
    head.step(partial(1));
    head.step(partial(2));
    head.step(Event::Overdue(device(3)));
    head.step(Event::Decide(device(2)));
    head.step(Event::Changed(2));
    head
}

/// What follows the order of one that was chosen as it is, from its 6th write on: nothing before that is common to it and any other.
fn apart() -> History {
    History::unknown(Position { epoch: 2, sequence: 6 })
}

/// Who attached the volume was told that it needs a decision, for as long as its members were filled.
#[test]
fn what_is_found_when_a_member_comes_back_needs_no_decision_any_more() {
    let mut head = attach(3);
    head.step(partial(1));
    head.step(partial(2));
    assert!(matches!(head.step(Event::Overdue(device(3)))[..], [Action::Undecided(_)]));
    let actions = head.step(promised(3, 6));
    assert_eq!(actions[0], Action::Decided);
    assert!(sent(&actions, 3).iter().any(|message| matches!(message, Message::Begin(_))));
}

/// Two of three were being filled from the third when that was lost for good: both had all that was acknowledged, and could not be chosen.
#[test]
fn by_decision_who_was_being_filled_is_the_volume() {
    let mut head = attach(3);
    head.step(partial(1));
    head.step(partial(2));
    assert_eq!(head.step(Event::Decide(device(1))), [], "the third may be there still");
    assert!(matches!(head.step(Event::Overdue(device(3)))[..], [Action::Undecided(_)]));
    assert_eq!(head.step(Event::Decide(device(3))), [], "nothing is known of it");
    let actions = head.step(Event::Decide(device(2)));
    let [Action::Change(next)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((next.version, &next.members[..]), (2, &[device(2)][..]));
    let actions = head.step(Event::Changed(2));
    assert_eq!(sent(&actions, 2), [Message::Begin(apart())]);
    let actions = head.step(reply(2, Reply::Begun));
    assert!(actions.contains(&Action::Serving), "{actions:?}");
}

/// A program that was older emptied a member before it was filled: it said that it had the first 12 writes, and was the volume, as zeroes.
#[test]
fn who_was_emptied_is_not_chosen() {
    let mut head = attach(3);
    head.step(says(1, 1, history(12), false, false));
    head.step(Event::Overdue(device(2)));
    let actions = head.step(Event::Overdue(device(3)));
    assert!(matches!(actions[..], [Action::Undecided(_)]), "what it acknowledged counts: {actions:?}");
    assert_eq!(head.step(Event::Decide(device(1))), []);
}

/// The one that was chosen had rows beside the beginning that it had kept. A member that had the same beginning, and none of the rows, followed
/// the order as it was: what was read changed with who was asked.
#[test]
fn who_has_the_same_beginning_as_one_that_was_chosen_is_filled_with_all() {
    let mut head = decided();
    let actions = head.step(reply(2, Reply::Begun));
    assert_eq!(sent(&actions, 1), [Message::Fill { common: 0, after: 6 }]);
    let actions = head.step(says(3, 3, history(6), true, true));
    assert_eq!(sent(&actions, 3), [Message::Fill { common: 0, after: 6 }]);
    assert_eq!(apart().common(&history(6)), 0);
}

/// One that had been added in the place of another, and for which its disk had no room, said that it was whole, as every member does that no head
/// has begun on. When the others died it could be chosen, and the volume was zeroes.
#[test]
fn one_that_was_added_and_never_filled_is_not_chosen() {
    let (members, joining) = (vec![device(1), device(2)], vec![device(3)]);
    let configuration = Configuration { version: 4, members, joining };
    let fence = Fence { epoch: 3, configuration: 4 };
    let (mut head, _) = Head::attach(fence, configuration, Settings { least: 2, keep: 4, near: None });
    head.step(says(3, 3, History::default(), true, true));
    head.step(Event::Overdue(device(1)));
    assert!(matches!(head.step(Event::Overdue(device(2)))[..], [Action::Undecided(_)]));
    assert_eq!(head.step(Event::Decide(device(3))), []);
    // Of a volume that nobody has ever attached it is as good as any.
    let mut head = attach(3);
    head.step(says(1, 1, History::default(), true, true));
    head.step(Event::Overdue(device(2)));
    head.step(Event::Overdue(device(3)));
    assert!(matches!(head.step(Event::Decide(device(1)))[..], [Action::Change(_)]));
}

/// Of three members one died and counted no more, then a second: the third had all, and nobody could say that it was the volume.
#[test]
fn the_last_of_two_that_counted_is_the_volume_by_decision() {
    let (members, joining) = (vec![device(1), device(2)], vec![device(3)]);
    let configuration = Configuration { version: 4, members, joining };
    let fence = Fence { epoch: 2, configuration: 4 };
    let (mut head, _) = Head::attach(fence, configuration, Settings { least: 2, keep: 4, near: None });
    head.step(says(1, 1, history(5), true, true));
    head.step(Event::Reply(device(1), Session(1), Reply::Begun));
    head.step(Event::Overdue(device(2)));
    head.step(Event::Overdue(device(3)));
    assert!(!head.is_serving() && head.lacks_members());
    assert_eq!(head.step(Event::Decide(device(2))), [], "nothing is known of it");
    let actions = head.step(Event::Decide(device(1)));
    let [Action::Change(next)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((&next.members[..], &next.joining[..]), (&[device(1)][..], &[device(2), device(3)][..]));
    assert_eq!(head.step(Event::Decide(device(1))), [], "it is being committed");
    assert!(head.step(Event::Changed(next.version)).contains(&Action::Serving));
    // Who comes back has the same beginning, and goes on from there.
    head.step(Event::Write(Token(1), Until::Durable));
    head.step(Event::Reply(device(1), Session(1), Reply::Written(6)));
    assert_eq!(answers(&head.step(Event::Reply(device(1), Session(1), Reply::Flushed(6)))).len(), 1);
    let back = head.step(says(2, 2, history(5), true, true));
    assert!(matches!(sent(&back, 2)[..], [Message::Begin(_), Message::Write(6)]), "{back:?}");
}

#[test]
fn who_was_chosen_begins_also_if_it_starts_anew_before_or_after_it_has_noted_that() {
    let mut head = decided();
    assert_eq!(standing_of(&head, 2), Some(Standing::Beginning));
    head.step(Event::Lost(device(2), Session(2)));
    let actions = head.step(says(2, 20, history(6), false, true));
    assert_eq!(sent(&actions, 2), [Message::Begin(apart())]);
    head.step(Event::Lost(device(2), Session(20)));
    let actions = head.step(says(2, 21, apart(), true, true));
    assert_eq!(sent(&actions, 2), [Message::Begin(apart())]);
    head.step(Event::Reply(device(2), Session(21), Reply::Begun));
    assert!(head.is_serving());
}

/// What it has beside has sequences that are still to come: reads of it waited for a flush that nobody could carry out, and a member that was
/// filled with it waited for as many writes.
#[test]
fn what_was_left_of_another_order_is_waited_for_by_nobody() {
    let mut head = decided();
    head.step(reply(2, Reply::Begun));
    let actions = head.step(reply(1, Reply::Filling));
    assert!(matches!(actions[..], [Action::Fill { common: 0, .. }]), "{actions:?}");
    let actions = head.step(Event::Filled(device(1), Session(1), 500));
    assert_eq!(sent(&actions, 1), [Message::Join(apart())]);
    head.step(Event::Read(Token(1)));
    let actions = head.step(reply(2, Reply::Read(Token(1), 500)));
    assert_eq!(answers(&actions), [(Token(1), Ok(Done::Read(device(2))))]);
}

/// The disk of the one that was chosen died before it had begun: the volume had one member, which was gone, and the others none.
#[test]
fn another_may_be_chosen_while_the_first_has_not_begun() {
    let mut head = attach(3);
    head.step(partial(1));
    head.step(partial(2));
    head.step(Event::Overdue(device(3)));
    head.step(Event::Decide(device(2)));
    head.step(Event::Lost(device(2), Session(2)));
    assert_eq!(head.step(Event::Changed(2)), []);
    assert!(matches!(head.step(Event::Overdue(device(2)))[..], [Action::Undecided(_)]));
    let actions = head.step(Event::Decide(device(1)));
    let [Action::Change(next)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(next.members, [device(1)]);
    assert_eq!(next.joining.len(), 2, "all may come back");
    assert_eq!(sent(&head.step(Event::Changed(3)), 1), [Message::Begin(apart())]);
}

/// The one with the base died before it had filled another: no head was stopped, and nobody was asked again.
#[test]
fn a_head_whose_base_is_gone_before_it_serves_is_none() {
    let mut head = attach(3);
    head.step(Event::Overdue(device(1)));
    head.step(promised(2, 12));
    head.step(promised(3, 10));
    head.step(Event::Lost(device(2), Session(2)));
    assert_eq!(standing_of(&head, 3), Some(Standing::Promised), "nobody fills it");
    let actions = head.step(Event::Overdue(device(2)));
    assert_eq!(actions.last(), Some(&Action::Stopped(Failure::TooFew)));
}

/// Two of three died under a served volume: its head knew nothing of it, and nothing could be decided.
#[test]
fn a_head_knows_that_it_lacks_members() {
    let mut head = serving();
    assert!(!head.lacks_members());
    head.step(Event::Lost(device(1), Session(1)));
    head.step(Event::Lost(device(2), Session(2)));
    assert!(!head.lacks_members(), "they may be back in a moment");
    head.step(Event::Overdue(device(1)));
    head.step(Event::Overdue(device(2)));
    assert!(head.lacks_members());
    let again = says(2, 20, history(5).begun(2), true, true);
    head.step(again);
    assert!(!head.lacks_members(), "one is on the way");
}

/// A member on a disk that was nearly full, and that had all, was left alone: with the next one the volume was gone, though two had all of it.
#[test]
fn one_with_little_room_counts_where_another_is_away() {
    let mut head = serving();
    head.step(Event::Overdue(device(3)));
    head.step(Event::Changed(2));
    head.step(says(3, 30, history(5).begun(2), true, true));
    head.step(Event::Tight(device(3), true));
    assert_eq!(head.step(Event::Reply(device(3), Session(30), Reply::Begun)), [], "clients write on");
    assert_eq!(standing_of(&head, 3), Some(Standing::Active));
    let actions = head.step(Event::Overdue(device(1)));
    let Some(Action::Change(next)) = actions.last() else { panic!("{actions:?}") };
    assert!(next.counts(device(3)), "two of three have all");
}

#[test]
fn one_with_little_room_counts_where_another_has_as_little() {
    let mut head = serving();
    head.step(Event::Overdue(device(3)));
    head.step(Event::Changed(2));
    head.step(says(3, 30, history(5).begun(2), true, true));
    head.step(Event::Tight(device(3), true));
    head.step(Event::Reply(device(3), Session(30), Reply::Begun));
    let actions = head.step(Event::Tight(device(1), true));
    assert!(matches!(&actions[..], [Action::Change(next)] if next.counts(device(3))), "{actions:?}");
}
