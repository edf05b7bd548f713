//! Changes that are seen through although whoever asked for them has gone.

use std::future::Future;

use super::store::Spawn;
use super::{Error, Result};

/// Runs changes by [`Spawn`], or, without one, in the caller.
#[derive(Clone, Default)]
pub(crate) struct Finisher(pub(crate) Option<Spawn>);

impl Finisher {
    /// Runs `work` to its end, also when the caller stops waiting (given a spawn).
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let Some(spawn) = &self.0 else { return work.await };
        let (reply, answer) = tokio::sync::oneshot::channel();
        spawn(Box::pin(async move {
            // The caller may have gone; the change stands all the same.
            let _gone = reply.send(work.await);
        }));
        let gone = |_| Err(Error::Unavailable { reason: "node is shutting down".to_owned() });
        answer.await.unwrap_or_else(gone)
    }
}
