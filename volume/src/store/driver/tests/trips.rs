//! How often members are asked.

use super::*;

/// A write and its flush were two trips to the members, one after the other.
#[test]
fn a_lone_write_that_is_to_be_durable_is_one_message() {
    run(async {
        let world = World::new();
        let head = world.attach(1, 1);
        head.served().await.unwrap();
        until_seen(&head, "all begin", all_count).await;
        // A member that lags is asked in another way; one of the other two never does.
        let together = || world.flushed_writes.load(Ordering::Relaxed);
        for block in 0..4 {
            head.write(block * 4096, Bytes::from(vec![1; 4096]), Until::Durable).await.unwrap();
        }
        assert!(together() >= 4, "{} of 4", together());
        // Of one that flushes after each write it is known after a while.
        for pair in 0..16 {
            write(&head, pair, 2).await;
            head.flush().await.unwrap();
        }
        assert!(together() >= 4 + 12, "{} of 16", together());
        // What is written in between goes on by itself, and all of it is there.
        let many: Vec<_> = (20..30).map(|block| write(&head, block, 3)).collect();
        futures_util::future::join_all(many).await;
        head.flush().await.unwrap();
        for (block, wanted) in [(0, 2), (15, 2), (20, 3), (29, 3)] {
            assert_eq!(value(&head, block).await, wanted, "block {block}");
        }
    });
}
