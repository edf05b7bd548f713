//! Heads that nobody uses go to rest, and what they acknowledged stays.

use std::sync::atomic::{AtomicBool, Ordering};

use quarry_volume::head::Standing as How;

use super::super::rest::RESTS;
use super::rig::{NAME, VOLUME, World, all_count, counts_no_more, stands, until_same, value, write};
use super::*;
use crate::block::lineage::NewClone;
use crate::control::tests::{node, until};
use quarry_volume::pace::Limits;

impl Shared {
    /// As many looks for heads that nobody uses.
    async fn looks(&self, count: u32) {
        for _ in 0..count {
            self.let_go().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_before_a_head_rests_is_read_by_this_node_and_by_another() {
    let (world, one) = World::with_volume(3).await;
    let head = one.attach(NAME).await.unwrap();
    one.until_seen("all follow", all_count(3)).await;
    for block in 0..20 {
        write(&head, block, 1).await.unwrap();
    }
    let epoch = head.epoch();
    drop(head);
    one.looks(RESTS).await;
    assert_eq!(one.epoch_here().await, Some(epoch), "nobody has used it for less than five minutes");
    one.looks(1).await;
    assert_eq!(one.epoch_here().await, None);
    assert!(world.weather.flushed(20) >= 2, "nobody had asked for a flush");
    assert_eq!((one.now().head, one.now().epoch), (Some(node(1)), epoch));

    let head = one.attach(NAME).await.unwrap();
    assert!(head.epoch() > epoch, "another head");
    assert_eq!([value(&head, 0).await, value(&head, 19).await], [1, 1]);
    write(&head, 3, 2).await.unwrap();
    drop(head);
    one.until_seen("all follow", all_count(3)).await;
    one.looks(RESTS + 1).await;
    assert_eq!(one.epoch_here().await, None);

    let two = world.node(2);
    let head = two.attach(NAME).await.unwrap();
    assert_eq!([value(&head, 0).await, value(&head, 3).await], [1, 2]);
    write(&head, 4, 3).await.unwrap();
    drop(head);
    two.until_seen("all follow", all_count(3)).await;
    two.looks(RESTS + 1).await;
    assert_eq!(two.epoch_here().await, None);
    until_same(&two, 3).await;
    world.stop().await;
}

/// One that came for a moment between two looks was not seen: the head went five minutes after who stayed last, in the middle of visits, and two
/// seconds after the first visit once it had rested.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_for_a_moment_has_used_the_volume() {
    let (world, one) = World::with_volume(3).await;
    drop(one.attach(NAME).await.unwrap());
    one.until_seen("all follow", all_count(3)).await;
    one.looks(RESTS).await;
    drop(one.attach(NAME).await.unwrap());
    one.looks(RESTS).await;
    let epoch = one.epoch_here().await;
    assert!(epoch.is_some(), "somebody came in the middle");
    one.looks(1).await;
    assert_eq!(one.epoch_here().await, None);
    drop(one.attach(NAME).await.unwrap());
    one.until_seen("all follow", all_count(3)).await;
    one.looks(RESTS).await;
    assert!(one.epoch_here().await > epoch, "its rest begins anew");
    world.stop().await;
}

/// A head that had just been granted had nobody for a moment between being waited for and being found in its place: one that went to rest then
/// was refused to who had asked for it, as if another node had taken it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_comes_while_a_head_goes_to_rest_is_served_and_loses_nothing() {
    const BLOCKS: usize = 8;
    let (world, one) = World::with_volume(3).await;
    let two = world.node(2);
    let over = Arc::new(AtomicBool::new(false));
    // It has always rested long enough, whoever came meanwhile.
    let resting = [&one, &two].map(|shared| {
        let (shared, over) = (Arc::clone(shared), Arc::clone(&over));
        tokio::spawn(async move {
            let mut rested = 0;
            while !over.load(Ordering::Relaxed) {
                let place = shared.place(VOLUME);
                place.looks.store(RESTS + 1, Ordering::Relaxed);
                let before = place.head.try_lock().is_ok_and(|head| head.is_some());
                drop(place);
                shared.let_go().await;
                rested += u32::from(before && shared.epoch_here().await.is_none());
                tokio::task::yield_now().await;
            }
            rested
        })
    });
    let mut written = [0_u8; BLOCKS];
    for round in 0..90_u8 {
        let at = if round % 10 == 9 { &two } else { &one };
        let head = at.attach(NAME).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
        let block = usize::from(round) % BLOCKS;
        assert_eq!(value(&head, block as u64).await, written[block], "round {round}");
        write(&head, block as u64, round).await.unwrap();
        written[block] = round;
        drop(head);
        if round % 3 == 0 {
            // So that it finds all members there, and rests.
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
    over.store(true, Ordering::Relaxed);
    let mut rested = 0;
    for task in resting {
        rested += task.await.unwrap();
    }
    assert!(rested > 5, "it rested {rested} times");
    let head = two.attach(NAME).await.unwrap();
    for (block, wanted) in written.iter().enumerate() {
        assert_eq!(value(&head, block as u64).await, *wanted, "block {block}");
    }
    drop(head);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_is_needed_does_not_rest() {
    let (world, one) = World::with_volume(3).await;
    let head = one.attach(NAME).await.unwrap();
    let epoch = head.epoch();
    one.until_seen("all follow", all_count(3)).await;
    let stays = async |why: &str| {
        one.looks(2 * RESTS + 2).await;
        assert_eq!(one.epoch_here().await, Some(epoch), "{why}");
    };
    stays("it has a connection").await;
    // What it has missed is kept for it.
    world.weather.away(3);
    write(&head, 1, 1).await.unwrap();
    one.until_seen("it is missed", stands(3, How::Silent)).await;
    drop(head);
    stays("a member is away").await;
    one.until_seen("it counts no more", counts_no_more(3)).await;
    stays("a member is to be filled").await;
    let head = one.attach(NAME).await.unwrap();
    for block in 0..300 {
        write(&head, block, 2).await.unwrap();
    }
    drop(head);
    world.weather.holds_rows.store(true, Ordering::Relaxed);
    world.weather.back(3);
    one.until_seen("it is filled", stands(3, How::Filling)).await;
    stays("a member is filled").await;
    world.weather.holds_rows.store(false, Ordering::Relaxed);
    one.until_seen("all follow", all_count(3)).await;
    one.looks(RESTS + 1).await;
    assert_eq!(one.epoch_here().await, None, "nothing holds it any more");
    until_same(&one, 3).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_does_not_rest_while_a_volume_is_made_independent_or_goes_back() {
    let (world, one) = World::with_volume(3).await;
    let head = one.attach(NAME).await.unwrap();
    one.until_seen("all follow", all_count(3)).await;
    for block in 0..40 {
        write(&head, block * 3, 1).await.unwrap();
    }
    drop(head);
    one.snapshot(NAME, "then").await.unwrap();
    let clone = NewClone {
        name: "clone".to_owned(),
        bytes: 0,
        description: String::new(),
        limits: Limits::default(),
        volume: NAME.to_owned(),
        snapshot: "then".to_owned(),
    };
    one.clone_snapshot(clone).await.unwrap();
    let head = one.attach("clone").await.unwrap();
    let (id, epoch) = (one.find("clone").unwrap().id, head.epoch());
    until("all follow", async || all_count(3)(&head.members().await)).await;
    drop(head);
    let weather = &world.weather;
    weather.holds_take_over.store(true, Ordering::Relaxed);
    let (this, flattening) = (Arc::clone(&one), one.place(id));
    let flatten = tokio::spawn(async move { this.flatten("clone").await });
    until("it is under way", async || flattening.flattening.try_lock().is_err()).await;
    let here = async || one.place(id).head.lock().await.as_ref().map(Replicated::epoch);
    tokio::time::sleep(Duration::from_millis(50)).await;
    one.looks(RESTS + 1).await;
    assert_eq!(here().await, Some(epoch), "it is made independent");
    weather.holds_take_over.store(false, Ordering::Relaxed);
    flatten.await.unwrap().unwrap();
    assert!(one.find("clone").unwrap().parent.is_none());
    one.looks(RESTS + 1).await;
    assert_eq!(here().await, None);
    let head = one.attach("clone").await.unwrap();
    assert_eq!([value(&head, 0).await, value(&head, 117).await, value(&head, 118).await], [1, 1, 0]);
    drop(head);

    let head = one.attach(NAME).await.unwrap();
    for block in 0..40 {
        write(&head, block * 3, 2).await.unwrap();
    }
    let epoch = head.epoch();
    until("all follow", async || all_count(3)(&head.members().await)).await;
    drop(head);
    weather.slow_reads.store(100, Ordering::Relaxed);
    let this = Arc::clone(&one);
    let revert = tokio::spawn(async move { this.revert(NAME, "then", || false).await });
    until("it is on its way", async || one.now().returning.is_some()).await;
    one.looks(RESTS + 1).await;
    assert_eq!((one.epoch_here().await, one.now().returning.is_some()), (Some(epoch), true));
    weather.slow_reads.store(0, Ordering::Relaxed);
    revert.await.unwrap().unwrap();
    one.looks(RESTS + 1).await;
    assert_eq!(one.epoch_here().await, None);
    let head = one.attach(NAME).await.unwrap();
    assert_eq!([value(&head, 0).await, value(&head, 117).await], [1, 1]);
    drop(head);
    world.stop().await;
}
