//! Names of a container that comes back into one group: clients do not notice.

use std::time::Duration;

use super::split_tests::{World, filled};
use super::{Answer, Ask, Names, returnable};
use crate::io::SplitMix64;
use crate::object::{Deleted, Listing, Result};

fn take_back(world: &mut World, group: u32) -> Result<bool> {
    let voter = world.keeper.voters.lock().unwrap()[&group].clone();
    let names = world.names.clone();
    let given = returnable(voter.group().given()).remove(0);
    world.run(async move { names.take_back(&voter, &given).await })
}

/// Deletes what is not below a name.
fn empty(world: &mut World, from: &str) {
    let gone: Vec<String> = world.lines.keys().filter(|name| name.as_str() >= from).cloned().collect();
    gone.iter().for_each(|name| world.put(name, None));
}

fn from_of(world: &World, group: u32) -> String {
    world.keeper.groups.get(group).unwrap().given()[0].from.clone()
}

fn groups(world: &World) -> Vec<u32> {
    world.keeper.groups.all().iter().map(crate::consensus::Group::id).collect()
}

#[test]
fn lines_come_back_group_by_group_and_clients_do_not_notice() {
    let mut rng = SplitMix64::new(7);
    let mut world = filled(10);
    assert!(world.try_split(1, 20).unwrap());
    assert!(world.try_split(20, 21).unwrap());
    let (middle, last) = (from_of(&world, 1), from_of(&world, 20));
    assert!(!take_back(&mut world, 20).unwrap(), "there are lines");
    let begun = world.runtime.now();
    world.put("d7/x", Some(1));
    assert!(world.runtime.now() - begun < Duration::from_millis(500), "it is open");
    empty(&mut world, &last);
    // Remembered: who has what.
    let _nothing = world.line("d7/x");
    assert!(take_back(&mut world, 20).unwrap());
    assert_eq!(groups(&world), [1, 20]);
    assert!(!take_back(&mut world, 1).unwrap(), "there are lines before those that came back");
    for (name, size) in [("d7/x", Some(5)), ("d7/y", Some(6)), ("d7/y", None), ("d0/z", Some(7))] {
        world.put(name, size);
        assert_eq!(world.line(name).at.is_some(), size.is_some());
        world.check_counts();
    }
    world.check_listings(&mut rng);
    empty(&mut world, &middle);
    assert!(take_back(&mut world, 1).unwrap());
    assert_eq!(groups(&world), [1]);
    for (name, size) in [("d7/x", Some(5)), ("d5/1", Some(6)), ("d7/x", None)] {
        world.put(name, size);
        assert_eq!(world.line(name).at.is_some(), size.is_some());
    }
    world.check_counts();
    world.check_listings(&mut rng);
    // It grows, and is divided again.
    for n in 0..20 {
        world.put(&format!("d7/{n}"), Some(n));
    }
    assert!(world.try_split(1, 22).unwrap());
    world.check_counts();
    world.check_listings(&mut rng);
    assert_eq!(world.delete_container().unwrap(), Deleted::NotEmpty);
}

#[test]
fn groups_of_a_container_that_is_gone_are_over_and_one_of_its_name_is_another() {
    let mut world = filled(11);
    assert!(world.try_split(1, 20).unwrap());
    assert!(world.try_split(20, 21).unwrap());
    empty(&mut world, "");
    assert_eq!(world.delete_container().unwrap(), Deleted::Gone);
    world.make_container();
    world.put("d7/x", Some(7));
    assert!(!take_back(&mut world, 1).unwrap(), "its child has a child");
    assert!(take_back(&mut world, 20).unwrap());
    assert!(take_back(&mut world, 1).unwrap());
    assert_eq!(groups(&world), [1]);
    world.put("d7/y", Some(8));
    world.check_counts();
    assert_eq!(world.list(&Listing { limit: 10, ..Listing::default() }), ["d7/x", "d7/y"]);
}

#[test]
fn an_attempt_whose_node_was_lost_is_ended_by_the_next_writer_and_takes_nothing_back_any_more() {
    let mut world = filled(12);
    assert!(world.try_split(1, 20).unwrap());
    assert!(world.try_split(20, 21).unwrap());
    let last = from_of(&world, 20);
    empty(&mut world, &last);
    // As far as the child is shut, by both its parents.
    let (account, container) = ("a".to_owned(), "c".to_owned());
    let shut = Ask::Shut { account: account.clone(), container: container.clone(), at: None };
    let Ok(Answer::Holding(holding)) = world.ask(shut) else { panic!() };
    let at = holding.at.unwrap();
    let voter = world.keeper.voters.lock().unwrap()[&20].clone();
    let given = voter.group().given().remove(0);
    let decider = world.names.decider(20).unwrap();
    let remembered = world.run(async move { decider.attempt(given.id, "a", "c").await }).unwrap();
    let child = world.names.child("a", 21).unwrap();
    let shut = child.ask(Ask::Shut { account, container, at: Some(at) });
    let Ok(Answer::Holding(holding)) = world.run(shut) else { panic!() };
    assert_eq!((holding.objects, holding.at), (0, Some(at)));
    let begun = world.runtime.now();
    world.put("d7/x", Some(1));
    assert!(world.runtime.now() - begun >= Duration::from_secs(1));
    // It was only slow.
    let given = voter.group().given().remove(0);
    let floor = holding.above.0;
    let late = world.run(async move { voter.take_back(&given, Some(remembered.0), floor).await });
    assert!(!late.unwrap());
    world.check_counts();
    assert!(world.line("d7/x").at.is_some());
    empty(&mut world, &last);
    assert!(take_back(&mut world, 20).unwrap());
    world.check_counts();
}

#[test]
fn of_what_was_given_away_that_comes_back_first_which_lies_behind_what_is_left() {
    let mut world = filled(13);
    assert!(world.try_split(1, 20).unwrap());
    assert!(world.try_split(1, 21).unwrap());
    let first = from_of(&world, 1);
    let given = world.keeper.groups.get(1).unwrap().given();
    assert_eq!(given.len(), 2);
    let lowest = given.iter().map(|given| given.from.clone()).min().unwrap();
    let [one] = &returnable(given)[..] else { panic!() };
    assert_eq!((one.from.as_str(), one.group), (lowest.as_str(), 21));
    assert!(first >= lowest);
    empty(&mut world, &lowest);
    assert!(take_back(&mut world, 1).unwrap());
    world.put("d7/x", Some(3));
    world.check_counts();
    empty(&mut world, "d7/x");
    assert!(take_back(&mut world, 1).unwrap());
    world.put("d7/x", Some(4));
    world.check_counts();
    assert_eq!(groups(&world), [1]);
}
