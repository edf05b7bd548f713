//! Panics are our bugs: each is logged with its place and counted. One request ends with one at most; but a node whose listener, or whose
//! view of the cluster, has ended so only looks well: it is stopped, and its next start recovers. A round of background work is begun anew
//! instead: what makes it panic may lie in the store, where every node of the cluster and every start would meet it.

use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;
use std::time::Duration;

use futures_util::FutureExt;
use prometheus_client::metrics::counter::Counter;
use tokio::task::{JoinError, JoinSet};

/// Since the process began, of all threads.
static COUNT: LazyLock<Counter> = LazyLock::new(Counter::default);

/// How many there were, for `/metrics`.
pub(crate) fn counter() -> Counter {
    COUNT.clone()
}

/// Logs and counts them from now on.
pub(crate) fn watch() {
    let earlier = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        COUNT.inc();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        tracing::error!(place, "panic: {}", text.unwrap_or("(no message)"));
        earlier(panic);
    }));
}

/// Pause before a round that panicked is begun anew.
const AGAIN: Duration = Duration::from_secs(5);

/// Does a round of background work; `None`, after a pause, where it panicked. Nothing that it had in hand is used afterwards.
pub(crate) async fn caught<T>(what: &'static str, round: impl Future<Output = T>) -> Option<T> {
    let done = AssertUnwindSafe(round).catch_unwind().await;
    if done.is_err() {
        tracing::error!(what, "this is a bug: please report it with the line above; it is begun anew");
        tokio::time::sleep(AGAIN).await;
    }
    done.ok()
}

/// Waits until one of these tasks panics; those that end well are forgotten.
pub(crate) async fn first(tasks: &mut JoinSet<()>) -> JoinError {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            return error;
        }
    }
    pending().await
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_round_that_panics_ends_alone_and_is_not_begun_anew_at_once() {
        assert_eq!(caught("count", async { 7 }).await, Some(7));
        let planted = caught("fail", async { panic!("planted") });
        assert!(timeout(Duration::from_millis(100), planted).await.is_err());
    }

    #[tokio::test]
    async fn only_a_panic_is_reported() {
        let (short, long) = (Duration::from_millis(100), Duration::from_secs(30));
        let mut tasks = JoinSet::new();
        assert!(timeout(short, first(&mut tasks)).await.is_err(), "there is nobody");
        tasks.spawn(async {});
        tasks.spawn(pending()).abort();
        assert!(timeout(short, first(&mut tasks)).await.is_err(), "an end, and an abortion");
        tasks.spawn(pending());
        tasks.spawn(async { panic!("planted") });
        assert!(timeout(long, first(&mut tasks)).await.unwrap().is_panic());
    }
}
