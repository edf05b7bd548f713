//! Asks the control group whether rows stand as this node knows them, for many at once.
//!
//! Invariant: one question is on its way at a time, however many ask; who asks meanwhile is asked for with the next ones.
//! Invariant: an answer is that to a question that was put after its asker came.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use quarry_engine::net::limits::MAX_VOLUME_ROWS as MOST;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::{Guards, RegisterError};

type Answer = Result<(), RegisterError>;

/// Somebody who waits for an answer.
#[derive(Debug)]
struct Doubt {
    guards: Guards,
    tell: oneshot::Sender<Answer>,
}

/// Who waits, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    waiting: Mutex<Vec<Doubt>>,
    asking: tokio::sync::Mutex<()>,
}

impl Doubts {
    /// Whether these rows all stand so; [`RegisterError::Changed`]: one of them does not, or one that was asked for in the same
    /// question.
    pub(super) async fn settle<F: Future<Output = Answer>>(
        &self,
        guards: Guards,
        ask: impl Fn(Guards) -> F,
    ) -> Answer {
        let mut told = self.enter(guards.clone());
        let _turn = self.asking.lock().await;
        loop {
            match told.try_recv() {
                Ok(answer) => return answer,
                Err(TryRecvError::Empty) => {}
                // Who asked for it went away before the answer came.
                Err(TryRecvError::Closed) => told = self.enter(guards.clone()),
            }
            let (guards, asked_for) = self.next();
            let answer = ask(guards).await;
            for doubt in asked_for {
                // It may have gone away.
                let _gone = doubt.tell.send(answer.clone());
            }
        }
    }

    fn enter(&self, guards: Guards) -> oneshot::Receiver<Answer> {
        let (tell, told) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(Doubt { guards, tell });
        told
    }

    /// The next question, and whom it is for.
    fn next(&self) -> (Guards, Vec<Doubt>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|doubt| !doubt.tell.is_closed());
        let mut all = BTreeSet::new();
        let fits = |doubt: &Doubt| {
            let more: BTreeSet<_> = all.iter().chain(&doubt.guards).cloned().collect();
            let fits = all.is_empty() || more.len() <= MOST;
            if fits {
                all = more;
            }
            fits
        };
        let count = waiting.iter().map(fits).take_while(|fits| *fits).count();
        let asked_for = waiting.drain(..count).collect();
        (all.into_iter().collect(), asked_for)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn absent(name: &str) -> Guards {
        vec![(name.as_bytes().to_vec(), None)]
    }

    /// The control group of a test: it has no rows but `there`, and answers when it is let.
    struct Group {
        doubts: Doubts,
        questions: AtomicUsize,
        /// Each open question has it, too.
        open: Arc<()>,
        answers: tokio::sync::Semaphore,
    }

    impl Group {
        fn new() -> Arc<Self> {
            let (doubts, questions, open) = Default::default();
            Arc::new(Self { doubts, questions, open, answers: tokio::sync::Semaphore::new(0) })
        }

        async fn ask(&self, guards: Guards) -> Answer {
            assert!((1..=MOST).contains(&guards.len()), "{guards:?}");
            self.questions.fetch_add(1, Ordering::SeqCst);
            let open = Arc::clone(&self.open);
            assert_eq!(Arc::strong_count(&open), 2, "one question at a time");
            self.answers.acquire().await.unwrap().forget();
            if guards.contains(&absent("there")[0]) { Err(RegisterError::Changed) } else { Ok(()) }
        }

        fn begin(self: &Arc<Self>, name: &'static str) -> tokio::task::JoinHandle<Answer> {
            let group = Arc::clone(self);
            tokio::spawn(async move { group.doubts.settle(absent(name), |guards| group.ask(guards)).await })
        }
    }

    /// Clients that ask an NBD server for exports that are none, a hundred at a time, are two questions: the first one's, and that of all
    /// others.
    #[tokio::test]
    async fn many_who_doubt_the_same_are_one_question() {
        let group = Group::new();
        let first = group.begin("none");
        tokio::task::yield_now().await;
        let others: Vec<_> = (0..100).map(|_| group.begin("none")).collect();
        tokio::task::yield_now().await;
        group.answers.add_permits(2);
        assert_eq!(first.await.unwrap(), Ok(()));
        for other in others {
            assert_eq!(other.await.unwrap(), Ok(()));
        }
        assert_eq!(group.questions.load(Ordering::SeqCst), 2);
    }

    /// An answer to a question that was put before somebody came may be old when it comes.
    #[tokio::test]
    async fn who_comes_while_a_question_is_open_is_told_the_answer_to_the_next_one() {
        let group = Group::new();
        let first = group.begin("a");
        tokio::task::yield_now().await;
        let second = group.begin("there");
        let third = group.begin("b");
        tokio::task::yield_now().await;
        group.answers.add_permits(1);
        assert_eq!(first.await.unwrap(), Ok(()));
        assert!(!second.is_finished() && !third.is_finished());
        group.answers.add_permits(1);
        assert_eq!(second.await.unwrap(), Err(RegisterError::Changed));
        assert_eq!(third.await.unwrap(), Err(RegisterError::Changed), "it looks again, and asks alone then");
    }

    #[tokio::test]
    async fn a_question_is_about_few_rows_and_nobody_waits_for_who_goes_away() {
        let group = Group::new();
        let first = group.begin("first");
        tokio::task::yield_now().await;
        let names = ["a", "b", "c", "d", "e", "f"];
        let mut others: Vec<_> = names.map(|name| group.begin(name)).into();
        tokio::task::yield_now().await;
        // It goes in the middle of its question, and the next one, that asks for all, in the middle of that.
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        tokio::task::yield_now().await;
        let second = others.remove(0);
        second.abort();
        assert!(second.await.unwrap_err().is_cancelled());
        group.answers.add_permits(10);
        for other in others {
            assert_eq!(other.await.unwrap(), Ok(()));
        }
        // Two that nobody waited for; one with what was not asked for yet; and those that the second one was for.
        assert_eq!(group.questions.load(Ordering::SeqCst), 5);
    }
}
