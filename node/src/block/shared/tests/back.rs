//! Volumes on their way back to a snapshot come there, whoever goes away meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::rig::{NAME, World, all_count, value, write};
use super::*;
use crate::control::tests::{node, until};

const BLOCKS: u64 = 200;

/// A volume that has other bytes than its snapshot.
async fn changed() -> (World, Arc<Shared>) {
    let (world, one) = World::with_volume(3).await;
    let head = one.attach(NAME).await.unwrap();
    one.until_seen("all follow", all_count(3)).await;
    for block in 0..BLOCKS {
        write(&head, block * 2, 1).await.unwrap();
    }
    one.snapshot(NAME, "then").await.unwrap();
    for block in 0..BLOCKS {
        write(&head, block * 2, 2).await.unwrap();
    }
    drop(head);
    (world, one)
}

/// Sends it back, and takes the head from its members in the middle.
async fn cut_off(world: &World, one: &Arc<Shared>) {
    world.weather.slow_reads.store(50, Ordering::Relaxed);
    let this = Arc::clone(one);
    let revert = tokio::spawn(async move { this.revert(NAME, "then", || false).await });
    until("it is on its way", async || one.now().returning.is_some()).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    world.weather.dead.store(1, Ordering::Relaxed);
    assert!(revert.await.unwrap().is_err());
    assert!(one.now().returning.is_some());
}

async fn has_come_back(world: &World, shared: &Arc<Shared>) {
    world.weather.slow_reads.store(0, Ordering::Relaxed);
    let head = shared.attach(NAME).await.unwrap();
    for block in 0..BLOCKS {
        assert_eq!(
            [value(&head, block * 2).await, value(&head, block * 2 + 1).await],
            [1, 0],
            "block {block}"
        );
    }
}

/// It stayed between the two until somebody attached it: whoever had sent it back was gone, and its clients did not know that it waited for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_comes_back_though_the_node_that_sent_it_died() {
    let (world, one) = changed().await;
    cut_off(&world, &one).await;
    let two = world.node(2);
    let mut begun = HashMap::new();
    until("it has come there", async || {
        two.complete(&mut begun);
        two.now().returning.is_none()
    })
    .await;
    assert_eq!(two.now().head, Some(node(2)), "the first with a member that answers");
    has_come_back(&world, &two).await;
    two.complete(&mut begun);
    until("nothing is under way", async || {
        two.complete(&mut begun);
        begun.is_empty()
    })
    .await;
    drop(one);
    world.stop().await;
}

/// A client that came while the head was attached was served, and what it wrote and flushed was written over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_while_a_volume_is_about_to_go_back_keeps_it() {
    let (world, one) = changed().await;
    // Nothing says so at any time: whoever reads that it is to go back has it done.
    let (this, said) = (Arc::clone(&one), Arc::new(AtomicBool::new(false)));
    let told = Arc::clone(&said);
    let is_used = move || {
        told.fetch_or(this.now().returning.is_some(), Ordering::Relaxed);
        true
    };
    let refused = one.revert(NAME, "then", is_used).await;
    assert!(!said.load(Ordering::Relaxed));
    assert!(matches!(refused, Err(VolumeError::InUse(_))), "{refused:?}");
    assert_eq!(one.now().returning, None);
    let head = one.attach(NAME).await.unwrap();
    assert_eq!(value(&head, 0).await, 2, "it is as it was");
    drop(head);
    one.revert(NAME, "then", || false).await.unwrap();
    has_come_back(&world, &one).await;
    world.stop().await;
}

/// Each client that opened it began the way anew, and broke it off when it gave up: of a volume that had changed much none ever saw the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_gives_up_breaks_nothing_off() {
    let (world, one) = changed().await;
    cut_off(&world, &one).await;
    let two = world.node(2);
    let patience = Duration::from_millis(150);
    until("a client has come and gone", async || {
        let gave_up = tokio::time::timeout(patience, two.attach(NAME)).await.is_err();
        gave_up && two.place(two.now().id).returning.try_lock().is_err()
    })
    .await;
    until("it has come there", async || two.now().returning.is_none()).await;
    has_come_back(&world, &two).await;
    world.stop().await;
}
