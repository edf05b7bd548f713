//! Heads that clients join: what a node knows of a volume may be old.

use super::rig::{NAME, World, value, write};
use crate::control::tests::until;

/// Clients that are served by one node, and at once by the other one.
const TURNS: u8 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_attaches_where_a_head_was_is_not_given_one_that_another_node_took_over() {
    let (world, one) = World::with_volume(3).await;
    let two = world.node(2);
    until("the other node has heard of it", async || two.find(NAME).is_some()).await;
    // Their heads stay where they were for minutes, used or not.
    for turn in 1..=TURNS {
        let at = if turn % 2 == 0 { &two } else { &one };
        let head = at.attach(NAME).await.unwrap();
        let last = head.read_whole(0, 4096).await.unwrap_or_else(|error| panic!("turn {turn}: {error}"))[0];
        assert_eq!(last, turn - 1);
        write(&head, 0, turn).await.unwrap_or_else(|error| panic!("turn {turn}: {error}"));
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_stands_is_joined_under_its_epoch() {
    let (world, one) = World::with_volume(3).await;
    let head = one.attach(NAME).await.unwrap();
    write(&head, 0, 1).await.unwrap();
    let other = one.attach(NAME).await.unwrap();
    assert_eq!(other.epoch(), head.epoch());
    assert_eq!(value(&other, 0).await, 1);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_is_joined_where_the_control_group_does_not_answer() {
    let (world, one) = World::with_volume(3).await;
    let head = one.attach(NAME).await.unwrap();
    write(&head, 0, 1).await.unwrap();
    world.lose_control();
    let other = one.attach(NAME).await.unwrap();
    assert_eq!((other.epoch(), value(&other, 0).await), (head.epoch(), 1));
    world.stop().await;
}
