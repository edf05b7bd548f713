//! Questions that go to the leader together: what comes while a message is on its way goes with the next one, and what several
//! ask goes once.
//!
//! Invariant: a question is in no message that was sent before it came, so its answer is as fresh as if it had gone alone.
//! Invariant: one that was not sent for [`LOOK`], because the message before is on its way that long, goes alone.
//! Invariant: whoever asks may go away at any moment: those whose message was dropped with it go alone.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Mutex as AsyncMutex, oneshot};

use super::{Answer, Ask};
use crate::net::{NodeId, Timer, once_more};

/// Most questions of one message.
pub(crate) const MAX_TOGETHER: usize = 128;
/// How long a question waits for its turn.
const LOOK: Duration = Duration::from_millis(100);

/// Questions of one message, at most [`MAX_TOGETHER`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asks(pub(crate) Vec<Ask>);

/// What a message that others may have sent said of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// Its answer.
    Answer(Answer),
    /// Nobody answers now: why, and when somebody is to be asked again.
    Later(String, Duration),
    /// The leader cannot answer: why.
    Unavailable(String),
    /// It is to be asked by itself.
    Alone,
}

struct Waiting {
    number: u64,
    to: NodeId,
    ask: Ask,
    said: oneshot::Sender<Said>,
}

/// Whoever waits for the answer to one question.
type Askers = Vec<oneshot::Sender<Said>>;

/// Whether a question may go with others: it is short, and so is its answer.
pub(super) fn goes_with_others(ask: &Ask) -> bool {
    matches!(ask, Ask::Line { .. } | Ask::Container { .. } | Ask::Account { .. })
}

#[derive(Default)]
struct Queue {
    next: u64,
    waiting: VecDeque<Waiting>,
}

/// Questions that wait for their turn.
#[derive(Default)]
pub(super) struct Together {
    queue: Mutex<Queue>,
    /// Held by whoever waits for the answer to a message.
    turn: AsyncMutex<()>,
}

/// What ended the wait for one's turn.
enum Came<T> {
    Turn(T),
    Said(Said),
    /// The message has been on its way for long.
    Late,
}

impl Together {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks a node with others, or for them: `send` gives what it says of each question, in order.
    pub(super) async fn ask<S>(
        &self,
        to: NodeId,
        ask: Ask,
        timer: &Timer,
        send: impl Fn(Vec<Ask>) -> S,
    ) -> Said
    where
        S: Future<Output = Vec<Said>>,
    {
        let (number, mut told) = self.put(to, ask);
        let came = {
            let (mut turn, mut late) = (pin!(self.turn.lock()), timer(LOOK));
            poll_fn(|context| {
                if let Poll::Ready(said) = Pin::new(&mut told).poll(context) {
                    return Poll::Ready(Came::Said(said.unwrap_or(Said::Alone)));
                }
                if let Poll::Ready(turn) = turn.as_mut().poll(context) {
                    return Poll::Ready(Came::Turn(turn));
                }
                late.as_mut().poll(context).map(|()| Came::Late)
            })
            .await
        };
        match came {
            Came::Said(said) => said,
            Came::Turn(_turn) => {
                // What the same caller asks beside this comes as soon as it is looked at again.
                once_more().await;
                self.send(to, &mut told, send).await
            }
            Came::Late if self.withdraw(number) => Said::Alone,
            Came::Late => told.await.unwrap_or(Said::Alone),
        }
    }

    /// Sends what waits, to be called by who has the turn, until `told` is among it.
    async fn send<S>(
        &self,
        to: NodeId,
        told: &mut oneshot::Receiver<Said>,
        send: impl Fn(Vec<Ask>) -> S,
    ) -> Said
    where
        S: Future<Output = Vec<Said>>,
    {
        loop {
            let (asks, waiting) = self.take(to);
            if asks.is_empty() {
                return Said::Alone;
            }
            for (said, mut askers) in send(asks).await.into_iter().zip(waiting) {
                let last = askers.pop();
                for asker in askers {
                    // Whoever asked may have gone.
                    let _gone = asker.send(said.clone());
                }
                let _gone = last.map(|asker| asker.send(said));
            }
            match told.try_recv() {
                Ok(said) => return said,
                // So many came before it that it goes with the next.
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Closed) => return Said::Alone,
            }
        }
    }

    fn put(&self, to: NodeId, ask: Ask) -> (u64, oneshot::Receiver<Said>) {
        let (said, told) = oneshot::channel();
        let mut queue = self.lock();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.push_back(Waiting { number, to, ask, said });
        (number, told)
    }

    /// The questions to a node that are in the next message, and who waits for their answers.
    fn take(&self, to: NodeId) -> (Vec<Ask>, Vec<Askers>) {
        let (mut asks, mut waiting, mut rest) = (Vec::new(), Vec::<Askers>::new(), VecDeque::new());
        let mut queue = self.lock();
        for next in queue.waiting.drain(..).filter(|next| !next.said.is_closed()) {
            if next.to != to {
                rest.push_back(next);
                continue;
            }
            let same = asks.iter().position(|ask| *ask == next.ask).and_then(|at| waiting.get_mut(at));
            if let Some(askers) = same {
                askers.push(next.said);
            } else if asks.len() < MAX_TOGETHER {
                asks.push(next.ask);
                waiting.push(vec![next.said]);
            } else {
                rest.push_back(next);
            }
        }
        queue.waiting = rest;
        (asks, waiting)
    }

    /// Takes a question back; false when it was sent.
    fn withdraw(&self, number: u64) -> bool {
        let mut queue = self.lock();
        let before = queue.waiting.len();
        queue.waiting.retain(|waiting| waiting.number != number);
        queue.waiting.len() < before
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use super::*;
    use crate::object::ObjectPath;
    use crate::object::names::Line;

    type Asking = Pin<Box<dyn Future<Output = Said>>>;

    /// Messages that were sent, and whether they are answered.
    #[derive(Default)]
    struct Net {
        sent: Mutex<Vec<Vec<String>>>,
        answers: Mutex<usize>,
        late: Mutex<bool>,
    }

    const LEADER: NodeId = NodeId([1; 16]);

    fn ask_of(name: &str) -> Ask {
        Ask::Line { path: ObjectPath { account: "a".into(), container: "c".into(), object: name.into() } }
    }

    fn name_of(ask: &Ask) -> String {
        let Ask::Line { path } = ask else { panic!("{ask:?}") };
        path.object.to_string()
    }

    /// A question that is answered when its message is the next of those that may be.
    fn ask(together: &Arc<Together>, net: &Arc<Net>, name: &str) -> Asking {
        let (together, net, ask) = (together.clone(), net.clone(), ask_of(name));
        Box::pin(async move {
            let clock = net.clone();
            let timer: Timer = Arc::new(move |_| {
                let clock = clock.clone();
                Box::pin(poll_fn(
                    move |_| if *clock.late.lock().unwrap() { Poll::Ready(()) } else { Poll::Pending },
                ))
            });
            let send = |asks: Vec<Ask>| {
                net.sent.lock().unwrap().push(asks.iter().map(name_of).collect());
                let (net, number) = (net.clone(), asks.len());
                poll_fn(move |_| {
                    let mut answers = net.answers.lock().unwrap();
                    if *answers == 0 {
                        return Poll::Pending;
                    }
                    *answers -= 1;
                    Poll::Ready(vec![Said::Answer(Answer::Line(Line::default())); number])
                })
            };
            together.ask(LEADER, ask, &timer, send).await
        })
    }

    fn look(asking: &mut Asking) -> Poll<Said> {
        asking.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Looks once more at who let others go first.
    fn poll(asking: &mut Asking) -> Poll<Said> {
        match look(asking) {
            Poll::Pending => look(asking),
            said => said,
        }
    }

    fn answer() -> Poll<Said> {
        Poll::Ready(Said::Answer(Answer::Line(Line::default())))
    }

    fn sent(net: &Net) -> Vec<Vec<String>> {
        net.sent.lock().unwrap().clone()
    }

    #[test]
    fn what_comes_while_a_message_is_on_its_way_goes_with_the_next() {
        let (together, net) = (Arc::default(), Arc::default());
        let mut first = ask(&together, &net, "1");
        assert!(poll(&mut first).is_pending());
        let mut others: Vec<Asking> = ["2", "3", "4"].iter().map(|name| ask(&together, &net, name)).collect();
        assert!(others.iter_mut().all(|asking| poll(asking).is_pending()));
        assert_eq!(sent(&net), [vec!["1"]], "nothing is sent beside a message");
        *net.answers.lock().unwrap() = 1;
        assert_eq!(poll(&mut first), answer());
        assert!(others.iter_mut().all(|asking| poll(asking).is_pending()));
        assert_eq!(sent(&net), [vec!["1"], vec!["2", "3", "4"]]);
        *net.answers.lock().unwrap() = 1;
        assert!(others.iter_mut().all(|asking| poll(asking) == answer()));
    }

    #[test]
    fn what_is_asked_at_once_goes_at_once_and_the_same_once() {
        let (together, net) = (Arc::default(), Arc::default());
        let mut all: Vec<Asking> =
            ["1", "2", "1", "3", "2"].iter().map(|name| ask(&together, &net, name)).collect();
        assert!(all.iter_mut().all(|asking| look(asking).is_pending()));
        assert!(sent(&net).is_empty());
        *net.answers.lock().unwrap() = 1;
        assert!(all.iter_mut().all(|asking| look(asking) == answer()));
        assert_eq!(sent(&net), [vec!["1", "2", "3"]]);
    }

    #[test]
    fn questions_beyond_one_message_go_with_the_next() {
        let (together, net) = (Arc::default(), Arc::default());
        let mut first = ask(&together, &net, "first");
        assert!(poll(&mut first).is_pending());
        let mut many: Vec<Asking> =
            (0..=MAX_TOGETHER).map(|n| ask(&together, &net, &n.to_string())).collect();
        // The last to come has its turn first.
        assert!(many.iter_mut().all(|asking| poll(asking).is_pending()));
        *net.answers.lock().unwrap() = 3;
        assert_eq!(poll(&mut first), answer());
        assert!(many.iter_mut().all(|asking| poll(asking) == answer()));
        let lengths: Vec<usize> = sent(&net).iter().map(Vec::len).collect();
        assert_eq!(lengths, [1, MAX_TOGETHER, 1]);
    }

    #[test]
    fn who_was_in_a_message_that_was_dropped_goes_alone() {
        let (together, net) = (Arc::default(), Arc::default());
        let mut first = ask(&together, &net, "1");
        assert!(poll(&mut first).is_pending());
        let (mut second, mut third) = (ask(&together, &net, "2"), ask(&together, &net, "3"));
        assert!(poll(&mut second).is_pending() && poll(&mut third).is_pending());
        drop(first);
        assert!(poll(&mut second).is_pending(), "it sends its own, and the third's");
        assert_eq!(sent(&net), [vec!["1"], vec!["2", "3"]]);
        drop(second);
        assert_eq!(poll(&mut third), Poll::Ready(Said::Alone));
        let mut fourth = ask(&together, &net, "4");
        *net.answers.lock().unwrap() = 1;
        assert_eq!(poll(&mut fourth), answer());
    }

    #[test]
    fn who_waits_for_long_goes_alone_unless_it_was_sent() {
        let (together, net) = (Arc::default(), Arc::default());
        let mut first = ask(&together, &net, "1");
        assert!(poll(&mut first).is_pending());
        let mut second = ask(&together, &net, "2");
        assert!(poll(&mut second).is_pending());
        *net.late.lock().unwrap() = true;
        assert_eq!(poll(&mut second), Poll::Ready(Said::Alone));
        assert!(poll(&mut first).is_pending());
        *net.answers.lock().unwrap() = 1;
        assert_eq!(poll(&mut first), answer());
        assert_eq!(sent(&net), [vec!["1"]]);
    }
}
