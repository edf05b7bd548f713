use super::*;
use crate::control::state::{Member, State};

const A: KeyName = KeyName([0xa; 8]);
const B: KeyName = KeyName([0xb; 8]);

fn node(byte: u8) -> NodeId {
    NodeId([byte; 16])
}

fn held(keys: &[KeyName], volumes: &[(KeyName, u64)]) -> (Held, u64) {
    (Held { keys: keys.to_vec(), volumes: volumes.iter().copied().collect() }, 7)
}

/// Two nodes: both had A, and B comes.
fn known(choice: Option<Choice>, one: (Held, u64), two: (Held, u64), rows: &[(KeyName, u64)]) -> Known {
    let holders = Holders::from([(node(1), one), (node(2), two)]);
    Known { choice, nodes: vec![node(1), node(2)], holders, rows: rows.iter().copied().collect() }
}

fn wraps(name: KeyName, dropped: &[KeyName]) -> Option<Choice> {
    Some(Choice { wraps: name, dropped: dropped.to_vec() })
}

#[test]
fn a_key_wraps_when_each_node_has_said_that_it_has_it() {
    let (both, old) = (|| held(&[A, B], &[(A, 2)]), || held(&[A], &[]));
    for choice in [None, wraps(A, &[])] {
        let lacks = known(choice.clone(), both(), old(), &[]);
        let error = lacks.using(B).unwrap_err();
        assert!(matches!(&error, RotationError::Lacking(B, nodes) if *nodes == [node(2)]), "{error}");
        assert!(error.to_string().ends_with(&node(2).to_string()), "{error}");
        let mut silent = lacks.clone();
        silent.holders.remove(&node(2));
        assert!(matches!(silent.using(B), Err(RotationError::Lacking(B, nodes)) if nodes == [node(2)]));
        // What a node said that is no member any more counts for nothing.
        silent.nodes.pop();
        assert_eq!(silent.using(B).unwrap(), wraps(B, &[]));
        assert_eq!(known(choice.clone(), both(), both(), &[]).using(B).unwrap(), wraps(B, &[]));
        let mut unknown = known(choice, old(), old(), &[]);
        assert!(matches!(unknown.using(B), Err(RotationError::Unknown(B))));
        // A node that has just started knows of nobody.
        unknown.nodes.clear();
        assert!(matches!(unknown.using(A), Ok(None) | Err(RotationError::Unknown(A))));
        assert!(matches!(unknown.using(B), Err(RotationError::Unknown(B))));
    }
    assert_eq!(known(wraps(B, &[]), both(), both(), &[]).using(B).unwrap(), None, "it comes twice");
    assert_eq!(known(wraps(B, &[]), both(), both(), &[]).using(A).unwrap(), wraps(A, &[]), "and back");
    let dropped = known(wraps(B, &[A]), both(), both(), &[]).using(A);
    assert!(matches!(dropped, Err(RotationError::Dropped(A))));
}

#[test]
fn a_key_is_dropped_when_nothing_names_it_anywhere() {
    let (bare, used) = (|| held(&[B, A], &[(B, 1)]), || held(&[B, A], &[(A, 3)]));
    let none = known(None, bare(), bare(), &[]).dropping(A);
    assert!(matches!(none, Err(RotationError::NotChosen)));
    let wrapping = known(wraps(A, &[]), bare(), bare(), &[]).dropping(A);
    assert!(matches!(wrapping, Err(RotationError::Wraps(A))));
    let label = known(wraps(B, &[]), bare(), used(), &[(A, 2), (B, 1)]).dropping(A);
    assert!(matches!(label, Err(RotationError::Needed(A, 5))));
    let row = known(wraps(B, &[]), bare(), bare(), &[(A, 2)]).dropping(A);
    assert!(matches!(row, Err(RotationError::Needed(A, 2))));
    let mut silent = known(wraps(B, &[]), bare(), bare(), &[]);
    silent.holders.remove(&node(1));
    assert!(matches!(silent.dropping(A), Err(RotationError::Unheard(nodes)) if nodes == [node(1)]));
    let gone = KeyName([0xc; 8]);
    let free = known(wraps(B, &[gone]), bare(), held(&[B], &[]), &[(B, 4)]);
    assert_eq!(free.dropping(A).unwrap(), wraps(B, &[A]), "what nobody has any more is not named for ever");
    assert!(matches!(free.dropping(KeyName([0xd; 8])), Err(RotationError::Unknown(_))));
    assert_eq!(known(wraps(B, &[A]), bare(), used(), &[]).dropping(A).unwrap(), None, "it comes twice");
}

#[test]
fn what_is_shown_names_who_lacks_a_key_and_what_it_wraps() {
    let both = known(wraps(B, &[A]), held(&[B, A], &[(A, 1)]), held(&[B], &[]), &[(B, 2)]);
    let [a, b] = both.shown().try_into().unwrap();
    assert_eq!((a.name.as_str(), a.wraps, a.dropped, a.volumes), ("0a0a0a0a0a0a0a0a", false, true, 1));
    assert_eq!((a.nodes, a.lacking), (vec![node(1).to_string()], vec![node(2).to_string()]));
    assert_eq!((b.wraps, b.dropped, b.volumes, b.lacking), (true, false, 2, Vec::new()));
    // A volume whose key nobody has is not hidden.
    let lost = known(None, held(&[], &[(A, 1)]), held(&[], &[]), &[]).shown();
    assert_eq!((lost.len(), lost[0].volumes, lost[0].lacking.len()), (1, 1, 2));
}

/// What nodes had said that left stayed for ever.
#[test]
fn what_was_said_by_a_node_that_has_left_is_taken_back_and_no_other_word() {
    let mut state = State::default();
    for byte in [1, 2, 3] {
        let address = "127.0.0.1:1".parse().unwrap();
        let leaving = byte == 2;
        state.members.insert(node(byte), Member { number: byte.into(), address, since: 1, leaving });
    }
    let said = |bytes: &[u8]| bytes.iter().map(|byte| (node(*byte), held(&[A], &[]))).collect::<Holders>();
    let gone = |bytes: &[u8], state: &State| gone(&said(bytes), |node| state.has_left(node));
    assert_eq!(gone(&[1, 2, 3], &state), [(node(2), 7)]);
    assert_eq!(gone(&[1, 3], &state), [], "it was taken back");
    assert_eq!(gone(&[4], &state), [], "a member of which this node has not heard yet");
    assert_eq!(gone(&[1, 2, 3], &State::default()), [], "a node that has just started knows of nobody");
    if let Some(member) = state.members.get_mut(&node(2)) {
        member.leaving = false;
    }
    assert_eq!(gone(&[1, 2, 3], &state), [], "it is back");
}
