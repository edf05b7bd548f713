//! Volumes with fewer members than they should have: what an operator decides, and members on disks that are nearly full.

use super::*;

fn away(n: u8) -> impl Fn(&[Seen]) -> bool {
    move |seen| seen.iter().any(|one| one.device == device(n) && !one.counts)
}

async fn until_undecided(head: &Replicated) {
    let began = std::time::Instant::now();
    while !matches!(head.condition(), Condition::Undecided(_)) {
        assert!(began.elapsed() < PATIENCE, "it is undecided: {:?}", head.condition());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn until_serving(head: &Replicated) {
    let began = std::time::Instant::now();
    while head.condition() != Condition::Serving {
        assert!(began.elapsed() < PATIENCE, "it serves: {:?}", head.condition());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Two of three died under a served volume: nothing was written any more, and nothing could be decided, for it was served.
#[test]
fn by_decision_a_volume_goes_on_whose_members_died_while_it_was_served() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        write(&head, 1, 1).await;
        assert!(!head.lacks_members().await.unwrap());
        world.set_away(2, true);
        world.set_away(3, true);
        let began = std::time::Instant::now();
        while !head.lacks_members().await.unwrap() {
            assert!(began.elapsed() < PATIENCE, "it lacks members");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(!head.decide(device(1)).await.unwrap(), "another head may find more");
        drop(head);
        let next = world.attach(2, 1);
        until_undecided(&next).await;
        assert!(!next.decide(device(2)).await.unwrap(), "nothing is known of it");
        assert!(next.decide(device(1)).await.unwrap());
        until_serving(&next).await;
        write(&next, 2, 2).await;
        world.set_away(2, false);
        world.set_away(3, false);
        until_seen(&next, "nobody is forgotten", all_count).await;
        assert_eq!([value(&next, 1).await, value(&next, 2).await], [1, 2]);
    });
}

/// One that was left while it was filled had writes beside the beginning that it had kept. When it was the volume by decision, who read those
/// waited for ever, and so did a member that was filled with them.
#[test]
fn by_decision_one_that_was_left_while_it_was_filled_is_read_and_copied() {
    run(async {
        let world = World::new();
        world.far.store(true, Ordering::Relaxed);
        let head = world.attach(1, 2);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        write(&head, 600, 1).await;
        head.flush().await.unwrap();
        world.set_away(3, true);
        for block in 0..400 {
            write(&head, block, 1).await;
        }
        until_seen(&head, "it is no member", away(3)).await;
        world.stuck.store(true, Ordering::Relaxed);
        world.set_away(3, false);
        let filling = |seen: &[Seen]| standing_of(seen, 3) == Some(Standing::Filling);
        until_seen(&head, "it is filled", filling).await;
        write(&head, 5, 9).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(head);
        world.set_away(1, true);
        world.set_away(2, true);
        let next = world.attach(2, 3);
        until_undecided(&next).await;
        assert!(next.decide(device(3)).await.unwrap());
        until_serving(&next).await;
        let read = tokio::time::timeout(PATIENCE, value(&next, 5)).await;
        assert_eq!(read.ok(), Some(9), "it was sent that beside");
        assert_eq!([value(&next, 600).await, value(&next, 7).await], [1, 0]);
        world.stuck.store(false, Ordering::Relaxed);
        world.set_away(2, false);
        let counts = |seen: &[Seen]| seen.iter().any(|one| one.device == device(2) && one.counts);
        until_seen(&next, "another is filled", counts).await;
        let last = world.attach(3, 2);
        last.served().await.unwrap();
        assert_eq!([value(&last, 600).await, value(&last, 5).await, value(&last, 7).await], [1, 9, 0]);
    });
}

/// A member was there when it promised, and dead when it was chosen: the volume had one member, which was gone.
#[test]
fn one_that_died_since_it_promised_is_not_chosen_and_another_may_be() {
    run(async {
        let world = World::new();
        world.far.store(true, Ordering::Relaxed);
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        write(&head, 1, 1).await;
        head.flush().await.unwrap();
        drop(head);
        world.set_away(2, true);
        world.set_away(3, true);
        let next = world.attach(2, 1);
        until_undecided(&next).await;
        world.set_away(1, true);
        assert!(!next.decide(device(1)).await.unwrap());
        assert_eq!(world.committed.lock().unwrap().members.len(), 3, "nothing is decided");
        world.set_away(1, false);
        world.set_away(2, false);
        until_serving(&next).await;
    });
}

/// A member that had counted while its disk was nearly full had every write refused for a while each time that it came back, though it did not
/// count any more.
#[test]
fn one_whose_disk_was_full_while_it_counted_refuses_nothing_when_it_comes_back() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        *world.tight.lock().unwrap() = Some(3);
        let began = std::time::Instant::now();
        while head.write(0, Bytes::from(vec![1; 4096]), Until::Written).await.is_ok() {
            assert!(began.elapsed() < PATIENCE, "no write is refused");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        world.set_away(3, true);
        until_seen(&head, "it is no member", away(3)).await;
        *world.slow_to_begin.lock().unwrap() = Duration::from_millis(300);
        world.set_away(3, false);
        let begins = |seen: &[Seen]| standing_of(seen, 3) == Some(Standing::Beginning);
        until_seen(&head, "it begins", begins).await;
        write(&head, 0, 2).await;
        let active = |seen: &[Seen]| standing_of(seen, 3) == Some(Standing::Active);
        until_seen(&head, "it has all", active).await;
        write(&head, 0, 3).await;
    });
}

/// A whole member on a disk that was nearly full was left alone for good once it had been away for a moment. With the next one that died the
/// volume was gone.
#[test]
fn one_that_has_all_and_little_room_counts_when_it_is_needed() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        write(&head, 1, 1).await;
        world.set_away(3, true);
        until_seen(&head, "it is no member", away(3)).await;
        *world.tight.lock().unwrap() = Some(3);
        world.set_away(3, false);
        let follows = |seen: &[Seen]| standing_of(seen, 3) == Some(Standing::Active) && away(3)(seen);
        until_seen(&head, "it has all", follows).await;
        world.set_away(2, true);
        let counts = |seen: &[Seen]| seen.iter().any(|one| one.device == device(3) && one.counts);
        until_seen(&head, "it counts", counts).await;
        assert_eq!(value(&head, 1).await, 1);
        head.flush().await.unwrap();
    });
}

/// What a member was went for the room that it took, and it was not filled for want of room all the same.
#[test]
fn one_that_has_no_room_to_be_filled_is_left_alone() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        world.set_away(3, true);
        for block in 0..400 {
            write(&head, block, 1).await;
        }
        until_seen(&head, "it is no member", away(3)).await;
        *world.full.lock().unwrap() = Some(3);
        world.set_away(3, false);
        for block in 0..200 {
            write(&head, block, 2).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            let seen = head.members().await;
            assert_ne!(standing_of(&seen, 3), Some(Standing::Active));
        }
        assert_eq!(standing_of(&head.members().await, 3), Some(Standing::Silent));
    });
}

impl World {
    /// Whether the third node's member is whole; `None`: there is none.
    async fn third_is_whole(&self) -> Option<bool> {
        let replica = self.sites[2].member(device(3), VOLUME)?;
        let whole = replica.look().await.label.whole;
        Some(whole)
    }
}

/// The third has a write that was never acknowledged, and the next head has gone another way.
async fn astray(world: &Arc<World>) -> Replicated {
    world.far.store(true, Ordering::Relaxed);
    let head = world.attach(1, 1);
    head.served().await.unwrap();
    until_seen(&head, "all begin", all_count).await;
    write(&head, 1, 1).await;
    head.flush().await.unwrap();
    world.set_away(1, true);
    world.set_away(2, true);
    let _late = tokio::time::timeout(Duration::from_millis(100), write(&head, 2, 2)).await;
    drop(head);
    world.set_away(1, false);
    world.set_away(2, false);
    world.set_away(3, true);
    let next = world.attach(2, 1);
    next.served().await.unwrap();
    write(&next, 3, 3).await;
    until_seen(&next, "it is no member", away(3)).await;
    next
}

/// A member that began anew stopped half-way for want of room, and kept for minutes what it had been sent: all volumes on that disk refused
/// writes meanwhile.
#[test]
fn one_that_has_no_room_for_the_rest_gives_back_at_once_what_it_was_sent() {
    run(async {
        let world = World::new();
        let head = astray(&world).await;
        *world.filled_up.lock().unwrap() = Some(3);
        let began = std::time::Instant::now();
        world.set_away(3, false);
        while world.rows_sent.load(Ordering::Relaxed) == 0 {
            assert!(began.elapsed() < PATIENCE, "it is filled");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        until_seen(&head, "it is left", |seen| standing_of(seen, 3) == Some(Standing::Silent)).await;
        let began = std::time::Instant::now();
        while world.third_is_whole().await != Some(true) {
            assert!(began.elapsed() < Duration::from_secs(10), "it is what it was");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        write(&head, 4, 4).await;
        assert_eq!(standing_of(&head.members().await, 3), Some(Standing::Silent), "and is left alone");
    });
}

/// Each time all that there is room for was written once more, to be given back.
#[test]
fn one_that_cannot_be_filled_is_left_alone_for_longer_each_time() {
    let pauses: Vec<u64> = (0..6).chain([u32::MAX]).map(crate::store::driver::alone).collect();
    assert_eq!(pauses, [1200, 2400, 4800, 9600, 18_000, 18_000, 18_000]);
}

/// All heads that had a member on a disk that hung asked for its promise three times a second.
#[test]
fn one_that_is_overdue_is_asked_ever_more_rarely() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        world.set_away(3, true);
        let before = world.promises.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let asked = world.promises.load(Ordering::Relaxed) - before;
        assert!(asked <= 20, "{asked} times in twelve seconds");
        world.set_away(3, false);
        until_seen(&head, "it counts again", all_count).await;
    });
}

/// A disk was slow for a moment, and hours of filling were void.
#[test]
fn one_missed_sign_of_life_ends_no_filling() {
    run(async {
        let world = World::new();
        world.far.store(true, Ordering::Relaxed);
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        world.set_away(3, true);
        for block in 0..400 {
            write(&head, block, 1).await;
        }
        until_seen(&head, "it is no member", away(3)).await;
        world.stuck.store(true, Ordering::Relaxed);
        world.set_away(3, false);
        let filling = |seen: &[Seen]| standing_of(seen, 3) == Some(Standing::Filling);
        until_seen(&head, "it is filled", filling).await;
        let began = std::time::Instant::now();
        let before = world.promises.load(Ordering::Relaxed);
        for misses in [2, 2, 3] {
            world.deaf.store(misses, Ordering::Relaxed);
            while world.deaf.load(Ordering::Relaxed) > 0 {
                assert!(began.elapsed() < PATIENCE, "it is asked whether it is there");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            // Until it has answered again.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let ended = world.promises.load(Ordering::Relaxed) > before;
            assert_eq!(ended, misses == 3, "{misses} in a row");
        }
        world.stuck.store(false, Ordering::Relaxed);
        until_seen(&head, "it counts again", all_count).await;
    });
}
