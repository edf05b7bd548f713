//! Whether the configured peers are reached: tried now and then, said when it changes.
//!
//! Invariant: a peer that is not reached is tried less and less often, at least once in [`LONGEST`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::OptionFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
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

/// How long a node that is wanted first may take longer than another one that has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as it may take to be there at all: something would be taken from it.
    Whole,
    /// A moment: if it is there after all, whoever acts finds out.
    Short,
}

const MOMENT: Duration = Duration::from_millis(500);

/// Of some nodes, named in the order in which they are wanted, the first that answers. All are asked at once.
pub(crate) async fn first(net: &dyn Transport, nodes: &[NodeId], patience: Patience) -> Option<NodeId> {
    match patience {
        Patience::Whole => first_until(net, nodes, std::future::pending).await,
        Patience::Short => first_until(net, nodes, || tokio::time::sleep(MOMENT)).await,
    }
}

/// The same; `moment` begins with the first answer, and then those that have not answered are not waited for.
async fn first_until<F: Future<Output = ()>>(
    net: &dyn Transport,
    nodes: &[NodeId],
    moment: impl Fn() -> F,
) -> Option<NodeId> {
    let ask = async |place: usize, node: NodeId| (place, node == net.local() || answers(net, node).await);
    let mut asked: FuturesUnordered<_> = nodes.iter().enumerate().map(|(at, node)| ask(at, *node)).collect();
    let (mut open, mut best) = (BTreeSet::from_iter(0..nodes.len()), None);
    let mut over = std::pin::pin!(OptionFuture::from(None));
    while open.first().is_some_and(|waited| best.is_none_or(|best| *waited < best)) {
        tokio::select! {
            biased;
            Some((place, there)) = asked.next() => {
                open.remove(&place);
                if there && best.is_none() {
                    over.set(Some(moment()).into());
                }
                best = best.into_iter().chain(there.then_some(place)).min();
            }
            Some(()) = &mut over => break,
        }
    }
    nodes.get(best?).copied()
}

/// Whether this node is the first of some that answers.
pub(crate) async fn is_first(net: &dyn Transport, nodes: &[NodeId], patience: Patience) -> bool {
    let Some(at) = nodes.iter().position(|node| *node == net.local()) else { return false };
    first(net, nodes.get(..=at).unwrap_or(nodes), patience).await == Some(net.local())
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
    use std::future::{pending, ready};

    use super::*;
    use futures_util::FutureExt;
    use quarry_engine::net::NetError;
    use quarry_engine::object::BoxFuture;

    const LOCAL: NodeId = NodeId([1; 16]);
    const THERE: NodeId = NodeId([2; 16]);
    /// Of whom nothing comes.
    const SILENT: NodeId = NodeId([3; 16]);
    const UNKNOWN: NodeId = NodeId([4; 16]);

    struct Net;

    impl Transport for Net {
        fn local(&self) -> NodeId {
            LOCAL
        }

        fn call(
            &self,
            to: NodeId,
            _: Request,
            _: Duration,
        ) -> BoxFuture<'static, Result<Response, NetError>> {
            match to {
                THERE => Box::pin(ready(Ok(Response::Pong { payload: Bytes::new() }))),
                SILENT => Box::pin(pending()),
                _ => Box::pin(ready(Err(NetError::Unknown(to)))),
            }
        }

        fn cast(&self, _to: NodeId, _request: Request) {}

        fn name(&self) -> &'static str {
            "test"
        }
    }

    /// After a volume's head was killed it took four seconds, and more with each node that was away, until a client was told where to go.
    #[test]
    fn a_node_that_is_away_is_not_waited_for_when_another_one_answers() {
        let short = |nodes: &[NodeId]| first_until(&Net, nodes, || ready(())).now_or_never();
        let whole = |nodes: &[NodeId]| first_until(&Net, nodes, pending).now_or_never();
        for nodes in [&[SILENT, THERE, LOCAL][..], &[SILENT, UNKNOWN, THERE]] {
            assert_eq!((short(nodes), whole(nodes)), (Some(Some(THERE)), None), "{nodes:?}");
        }
        assert_eq!(short(&[SILENT, UNKNOWN]), None, "nobody answered: it may be slow");
        for nodes in [&[LOCAL, SILENT][..], &[UNKNOWN, LOCAL, SILENT]] {
            assert_eq!((short(nodes), whole(nodes)), (Some(Some(LOCAL)), Some(Some(LOCAL))), "{nodes:?}");
        }
        assert_eq!((short(&[UNKNOWN]), short(&[])), (Some(None), Some(None)));
        let is_first = |nodes: &[NodeId]| is_first(&Net, nodes, Patience::Whole).now_or_never();
        assert_eq!(is_first(&[UNKNOWN, LOCAL, SILENT]), Some(true));
        assert_eq!((is_first(&[SILENT, LOCAL]), is_first(&[THERE, LOCAL])), (None, Some(false)));
        assert_eq!(is_first(&[THERE]), Some(false), "it is none of them");
    }

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
