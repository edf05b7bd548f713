//! How often members are asked.

use super::*;

/// Ends when both other members have what was asked of them last.
async fn until_told(world: &World, flushes: usize, flushed_writes: usize) {
    let told = || (world.flushes.load(Ordering::Relaxed), world.flushed_writes.load(Ordering::Relaxed));
    let began = std::time::Instant::now();
    while told() != (flushes, flushed_writes) {
        assert!(began.elapsed() < PATIENCE, "{:?} instead of {:?}", told(), (flushes, flushed_writes));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Until it was answered, too.
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// A write and its flush were two trips to the members, one after the other.
#[test]
fn a_lone_write_that_is_to_be_durable_is_one_message() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        for block in 0..4 {
            head.write(block * 4096, Bytes::from(vec![1; 4096]), Until::Durable).await.unwrap();
            until_told(&world, 0, 2 * (usize::try_from(block).unwrap() + 1)).await;
        }
        // Of one that flushes after each write it is known after a while.
        for pair in 0..8 {
            write(&head, pair, 2).await;
            head.flush().await.unwrap();
            let pair = usize::try_from(pair).unwrap() + 1;
            until_told(&world, 2 * pair.min(4), 8 + 2 * pair.saturating_sub(4)).await;
        }
        // What is written in between goes on by itself, and all of it is there.
        let many: Vec<_> = (10..20).map(|block| write(&head, block, 3)).collect();
        futures_util::future::join_all(many).await;
        head.flush().await.unwrap();
        for (block, wanted) in [(0, 2), (7, 2), (10, 3), (19, 3)] {
            assert_eq!(value(&head, block).await, wanted, "block {block}");
        }
    });
}
