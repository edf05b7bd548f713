//! Whether the configured peers are reached: tried now and then, said when it changes.
//!
//! Invariant: a peer that is not reached is tried less and less often, at least once in [`LONGEST`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quarry_engine::net::{NodeId, Request, Response, Transport};

/// Pause between two tries while all is well, and after the first failure.
const PAUSE: Duration = Duration::from_secs(5);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(4);

const _: () = assert!(WITHIN.as_secs() < PAUSE.as_secs() && PAUSE.as_secs() < LONGEST.as_secs());

/// How long a node has to say that it is there, and how often it is asked, where somebody waits to act in its place.
const SOON: Duration = Duration::from_secs(2);
const TRIES: usize = 2;

/// Whether a node answers now.
pub(crate) async fn answers(net: &dyn Transport, node: NodeId) -> bool {
    for _ in 0..TRIES {
        let asked = net.call(node, Request::Ping { payload: Bytes::new() }, SOON).await;
        if matches!(asked, Ok(Response::Pong { .. })) {
            return true;
        }
    }
    false
}

/// The first of some nodes that answers, if that is this one.
pub(crate) async fn is_first(net: &dyn Transport, nodes: &[NodeId]) -> bool {
    for node in nodes {
        if *node == net.local() {
            return true;
        }
        if answers(net, *node).await {
            return false;
        }
    }
    false
}

/// What is known of a peer.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    /// Why it was not reached last time; inner `None`: it was.
    last: Option<Option<String>>,
    failures: u32,
}

impl Known {
    /// Takes note of a try: whether there is something to say, and the pause to the next.
    fn note(&mut self, failure: Option<String>) -> (bool, Duration) {
        self.failures = if failure.is_some() { self.failures.saturating_add(1) } else { 0 };
        let news = self.last.as_ref() != Some(&failure);
        self.last = Some(failure);
        let pause = PAUSE * (1 << self.failures.saturating_sub(1).min(5));
        (news, pause.min(LONGEST))
    }
}

/// Watches a peer for ever.
pub(crate) async fn watch(net: Arc<dyn Transport>, peer: NodeId) {
    let mut known = Known::default();
    loop {
        let tried = net.call(peer, Request::Ping { payload: Bytes::new() }, WITHIN).await;
        let (news, pause) = known.note(tried.err().map(|error| error.to_string()));
        match (&known.last, news) {
            (Some(None), true) => tracing::info!(node = %peer, "node is reached"),
            (Some(Some(why)), true) => tracing::warn!(node = %peer, "node is not reached: {why}"),
            _ => {}
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_said_once_and_failures_slow_down() {
        let mut known = Known::default();
        let why = || Some("lost".to_owned());
        assert_eq!(known.note(why()), (true, PAUSE));
        assert_eq!(known.note(why()), (false, PAUSE * 2));
        assert_eq!(known.note(Some("refused".to_owned())), (true, PAUSE * 4));
        for _ in 0..100 {
            assert!(known.note(why()).1 <= LONGEST);
        }
        assert_eq!(known.note(why()), (false, LONGEST));
        assert_eq!(known.note(None), (true, PAUSE));
        assert_eq!(known.note(None), (false, PAUSE));
    }
}
