//! An operator decides which member is the volume, of a volume that was served, or was to be, before its members died.

use std::sync::atomic::Ordering;

use quarry_volume::head::{Failure, Standing as How, Until};
use quarry_volume::store::Condition;

use super::rig::{NAME, VOLUME, World, all_count, counts_no_more, device, stands, until_same, value, write};
use super::*;
use crate::control::tests::until;

impl Shared {
    async fn until_undecided(self: &Arc<Self>) {
        until("it is undecided", async || matches!(self.attach(NAME).await, Err(VolumeError::Undecided)))
            .await;
    }
}

fn refused(decided: Result<(), VolumeError>) -> String {
    match decided {
        Err(VolumeError::NotDecided(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_decision_the_one_that_is_left_is_the_volume_and_fills_those_that_come_back() {
    let (world, one) = World::with_volume(3).await;
    let head = one.attach(NAME).await.unwrap();
    one.until_seen("all follow", all_count(3)).await;
    write(&head, 1, 1).await.unwrap();
    head.flush().await.unwrap();
    drop(head);
    one.detach(NAME).await.unwrap();
    world.weather.away(1);
    world.weather.away(3);
    one.until_undecided().await;
    let known = one.undecided(&one.now()).await;
    assert!(known[&device(2)].is_some() && known[&device(1)].is_none(), "{known:?}");
    assert!(refused(one.decide(NAME, device(1)).await).contains("does not answer"));
    assert!(refused(one.decide(NAME, device(9)).await).contains("no member"));
    assert_eq!(one.now().configuration.members.len(), 3, "nothing is decided");
    one.decide(NAME, device(2)).await.unwrap();
    assert_eq!(one.now().configuration.members, [device(2)]);
    let head = one.attach(NAME).await.unwrap();
    assert_eq!(value(&head, 1).await, 1);
    write(&head, 2, 2).await.unwrap();
    world.weather.back(1);
    world.weather.back(3);
    one.until_seen("it has three members again", all_count(3)).await;
    drop(head);
    // Whoever is asked: the one that was chosen is away.
    world.weather.away(2);
    let two = world.node(3);
    let head = two.attach(NAME).await.unwrap();
    assert_eq!([value(&head, 1).await, value(&head, 2).await], [1, 2]);
    drop(head);
    world.stop().await;
}

/// Clients that connect again and again have the head's place for a moment each: of that the operator was told that another node had taken the
/// volume, and nothing was decided.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_is_decided_while_clients_come_all_the_time() {
    let (world, one) = World::with_volume(3).await;
    let head = one.attach(NAME).await.unwrap();
    one.until_seen("all follow", all_count(3)).await;
    write(&head, 1, 1).await.unwrap();
    drop(head);
    one.detach(NAME).await.unwrap();
    world.weather.away(2);
    world.weather.away(3);
    one.until_undecided().await;
    // Each waits for its turn: the place is never free.
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let place = one.place(VOLUME);
            tokio::spawn(async move {
                loop {
                    let held = place.head.lock().await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    drop(held);
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    one.decide(NAME, device(1)).await.unwrap();
    clients.iter().for_each(tokio::task::JoinHandle::abort);
    let head = one.attach(NAME).await.unwrap();
    assert_eq!(value(&head, 1).await, 1);
    drop((head, clients));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_twice_is_decided_once() {
    let (world, one) = World::with_volume(3).await;
    let head = one.attach(NAME).await.unwrap();
    one.until_seen("all follow", all_count(3)).await;
    write(&head, 1, 1).await.unwrap();
    drop(head);
    one.detach(NAME).await.unwrap();
    world.weather.away(3);
    one.until_seen("nobody asks", |seen| seen.is_empty()).await;
    // Two are needed, and one of them dies.
    world.weather.away(2);
    one.until_undecided().await;
    let (first, second) = tokio::join!(one.decide(NAME, device(1)), one.decide(NAME, device(1)));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    let decided = one.now();
    let head = one.attach(NAME).await.unwrap();
    write(&head, 2, 2).await.unwrap();
    for again in [1, 2, 3] {
        assert!(refused(one.decide(NAME, device(again)).await).contains("enough of its members"));
    }
    let now = one.now();
    assert_eq!((now.epoch, now.configuration), (decided.epoch, decided.configuration), "its head serves on");
    write(&head, 3, 3).await.unwrap();
    assert_eq!([value(&head, 1).await, value(&head, 2).await, value(&head, 3).await], [1, 2, 3]);
    drop(head);
    world.stop().await;
}

/// One that had come in the place of another, and was left alone for want of room, said that it had all: by decision the volume was zeroes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_never_filled_is_not_the_volume() {
    let (world, one) = World::with_volume(2).await;
    let head = one.attach(NAME).await.unwrap();
    one.until_seen("both follow", all_count(2)).await;
    write(&head, 1, 1).await.unwrap();
    head.flush().await.unwrap();
    world.weather.full.store(3, Ordering::Relaxed);
    head.add_member(device(3)).unwrap();
    one.until_seen("it is one of them", stands(3, How::Silent)).await;
    // It was asked, and there was no room.
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(head);
    world.weather.away(1);
    world.weather.away(2);
    one.until_seen("they are missed", stands(1, How::Silent)).await;
    one.until_seen("they are missed", stands(2, How::Silent)).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let why = refused(one.decide(NAME, device(3)).await);
    assert!(why.contains("has nothing"), "{why}");
    assert_eq!(one.now().configuration.members, [device(1), device(2)]);
    // One that is being filled for the first time has nothing that is whole, either.
    world.weather.full.store(0, Ordering::Relaxed);
    world.weather.back(1);
    world.weather.back(2);
    let found = async || one.attach(NAME).await.ok();
    until("nothing needs to be decided any more", async || found().await.is_some()).await;
    let head = found().await.unwrap();
    assert_eq!(value(&head, 1).await, 1);
    world.weather.holds_rows.store(true, Ordering::Relaxed);
    one.until_seen("it counts at last, or is filled", |seen| {
        stands(3, How::Filling)(seen) || all_count(3)(seen)
    })
    .await;
    world.weather.holds_rows.store(false, Ordering::Relaxed);
    one.until_seen("it counts at last", all_count(3)).await;
    drop(head);
    world.stop().await;
}

/// What two had and was acknowledged is void with the decision. It was not to be read again when they came back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_after_a_decision_is_filled_anew_and_never_counted_before() {
    let (world, one) = World::with_volume(3).await;
    let head = one.attach(NAME).await.unwrap();
    one.until_seen("all follow", all_count(3)).await;
    write(&head, 1, 1).await.unwrap();
    head.flush().await.unwrap();
    // A quorum has it; the third one a moment later, too.
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.weather.away(3);
    for block in [1, 2] {
        write(&head, block, 7).await.unwrap();
    }
    head.flush().await.unwrap();
    // These two have it, and die; and so does the node of the head.
    world.weather.away(1);
    world.weather.away(2);
    world.weather.dead.store(1, Ordering::Relaxed);
    drop(head);
    let two = world.node(2);
    world.weather.back(3);
    two.until_undecided().await;
    two.decide(NAME, device(3)).await.unwrap();
    let head = two.attach(NAME).await.unwrap();
    assert_eq!([value(&head, 1).await, value(&head, 2).await], [1, 0], "what it has is the volume");
    write(&head, 3, 3).await.unwrap();
    drop(head);
    // One comes back to another head, while the one that was chosen is away: what it has counts for nothing.
    two.detach(NAME).await.unwrap();
    world.weather.away(3);
    world.weather.back(1);
    assert_eq!(two.now().configuration.members, [device(3)]);
    two.until_undecided().await;
    world.weather.back(3);
    let found = async || two.attach(NAME).await.ok();
    until("it is served by the one that was chosen", async || found().await.is_some()).await;
    world.weather.back(2);
    two.until_seen("all are filled", all_count(3)).await;
    let head = two.attach(NAME).await.unwrap();
    assert_eq!([value(&head, 1).await, value(&head, 2).await, value(&head, 3).await], [1, 0, 3]);
    drop(head);
    until_same(&two, 3).await;
    world.weather.away(3);
    world.weather.dead.store(0, Ordering::Relaxed);
    let head = one.attach(NAME).await.unwrap();
    assert_eq!([value(&head, 1).await, value(&head, 2).await, value(&head, 3).await], [1, 0, 3]);
    drop(head);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_is_served_is_decided_only_when_it_lacks_members() {
    let (world, one) = World::with_volume(3).await;
    let head = one.attach(NAME).await.unwrap();
    one.until_seen("all follow", all_count(3)).await;
    write(&head, 1, 1).await.unwrap();
    assert!(refused(one.decide(NAME, device(1)).await).contains("enough of its members"));
    world.weather.away(3);
    one.until_seen("it counts no more", counts_no_more(3)).await;
    assert!(refused(one.decide(NAME, device(1)).await).contains("enough of its members"));
    assert_eq!((one.now().epoch, one.now().configuration.members.len()), (head.epoch(), 2));
    write(&head, 1, 2).await.unwrap();
    world.weather.away(2);
    one.until_seen("it is missed", stands(2, How::Silent)).await;
    let late = tokio::spawn({
        let head = head.clone();
        async move { head.write(5 * 4096, vec![9; 4096].into(), Until::Written).await }
    });
    let mut last = String::new();
    until("it lacks members", async || match one.decide(NAME, device(1)).await {
        Ok(()) => true,
        Err(VolumeError::NotDecided(why)) => {
            last = why;
            false
        }
        Err(other) => panic!("{other}"),
    })
    .await;
    assert!(last.is_empty() || last.contains("enough of its members"), "{last}");
    // Whoever still has the old head is told so: it is no head any more.
    let late = late.await.unwrap();
    assert!(matches!(late, Err(VolumeError::Head(Failure::Fenced(_) | Failure::TooFew))), "{late:?}");
    until("the old head knows", async || matches!(head.condition(), Condition::Stopped(Failure::Fenced(_))))
        .await;
    let fresh = one.attach(NAME).await.unwrap();
    assert!(fresh.epoch() > head.epoch());
    assert_eq!(value(&fresh, 1).await, 2, "what was acknowledged");
    let fifth = value(&fresh, 5).await;
    assert!(fifth == 0 || fifth == 9, "what was not may be there or not: {fifth}");
    write(&fresh, 6, 6).await.unwrap();
    world.weather.back(2);
    world.weather.back(3);
    one.until_seen("all are filled", all_count(3)).await;
    drop((head, fresh));
    until_same(&one, 3).await;
    world.stop().await;
}

/// Of two members one was taken out, and then the other died: the one that is left lacks what was written in between, which the operator knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_members_the_one_that_was_taken_out_may_be_chosen() {
    let (world, one) = World::with_volume(2).await;
    let head = one.attach(NAME).await.unwrap();
    one.until_seen("both follow", all_count(2)).await;
    write(&head, 1, 1).await.unwrap();
    world.weather.away(2);
    one.until_seen("it counts no more", counts_no_more(2)).await;
    write(&head, 1, 7).await.unwrap();
    head.flush().await.unwrap();
    drop(head);
    // With the node of the head.
    world.weather.away(1);
    world.weather.dead.store(1, Ordering::Relaxed);
    world.weather.back(2);
    let two = world.node(2);
    two.until_undecided().await;
    assert_eq!(two.now().configuration.members, [device(1)], "who is there counts for nothing");
    two.decide(NAME, device(2)).await.unwrap();
    let head = two.attach(NAME).await.unwrap();
    assert_eq!(value(&head, 1).await, 1);
    write(&head, 2, 2).await.unwrap();
    world.weather.back(1);
    two.until_seen("the other is filled", all_count(2)).await;
    drop(head);
    // It has all of it.
    until_same(&two, 2).await;
    world.weather.away(2);
    world.weather.dead.store(0, Ordering::Relaxed);
    let head = one.attach(NAME).await.unwrap();
    assert_eq!([value(&head, 1).await, value(&head, 2).await], [1, 2]);
    drop(head);
    world.stop().await;
}
