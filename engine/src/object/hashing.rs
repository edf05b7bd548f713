//! Bodies of several uploads hashed at once ([`super::md5`]), by whichever of them comes to it.
//!
//! Each upload queues the part that has come, lets the others that have one queue theirs, and then hashes for all: there is no
//! thread, no timer, and an upload that is alone hashes at once.
//!
//! Invariant: whoever waits for a part is either hashing, or finds its part in the queue, or somebody hashes it.
//! Invariant: a part that nobody waits for any more leaves the queue with its upload.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::md5::{BLOCK, LANES, Md5, take_blocks};

/// Shorter parts are hashed where they are: queueing would cost more than is won.
const LEAST: usize = 8 << 10;
/// Parts that one upload hashes for all before it looks at its own again.
const MOST: usize = 16;

/// The queue of a store.
#[derive(Debug, Default)]
pub(crate) struct Hashing {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    parts: VecDeque<Part>,
}

/// A part of a body, and who waits for it.
#[derive(Debug)]
struct Part {
    number: u64,
    md5: Md5,
    data: Bytes,
    /// Bytes of it that were taken.
    taken: usize,
    reply: oneshot::Sender<Md5>,
}

impl Part {
    fn left(&self) -> &[u8] {
        &self.data[self.taken..]
    }

    /// Makes a lane of it: from here on it stands between two blocks.
    fn align(mut self) -> Self {
        let mut left = &self.data[self.taken..];
        self.md5.top_up(&mut left);
        self.taken = self.data.len() - left.len();
        self
    }

    fn blocks(&self) -> usize {
        self.left().len() / BLOCK
    }

    /// Takes what is left, less than a block, and tells.
    fn end(mut self) {
        if !self.left().is_empty() {
            let left = self.data.slice(self.taken..);
            self.md5.keep(&left);
        }
        // Who waited may have gone.
        let _gone = self.reply.send(self.md5);
    }
}

/// Takes a part out of the queue when nobody waits for it any more.
struct Queued<'a> {
    hashing: &'a Hashing,
    number: u64,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.hashing.queue().parts.retain(|part| part.number != self.number);
    }
}

impl Hashing {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `md5` after it has taken `data` as well. `None`: whoever hashed it was stopped in the middle.
    pub(crate) async fn update(&self, mut md5: Md5, data: Bytes) -> Option<Md5> {
        if data.len() < LEAST {
            md5.update(&data);
            return Some(md5);
        }
        let (reply, mut answer) = oneshot::channel();
        let number = {
            let mut queue = self.queue();
            queue.next += 1;
            let number = queue.next;
            queue.parts.push_back(Part { number, md5, data, taken: 0, reply });
            number
        };
        let _queued = Queued { hashing: self, number };
        yield_once().await;
        loop {
            match answer.try_recv() {
                Ok(md5) => return Some(md5),
                Err(oneshot::error::TryRecvError::Closed) => return None,
                Err(oneshot::error::TryRecvError::Empty) => {}
            }
            if !self.hash_some() {
                return answer.await.ok();
            }
        }
    }

    /// Hashes what is first in the queue, several at once; false: there is nothing.
    fn hash_some(&self) -> bool {
        let mut lanes: Vec<Part> = Vec::with_capacity(LANES);
        let mut begun = 0;
        loop {
            if lanes.len() < LANES && begun < MOST {
                let mut queue = self.queue();
                let more = (LANES - lanes.len()).min(MOST - begun).min(queue.parts.len());
                begun += more;
                lanes.extend(queue.parts.drain(..more));
            }
            lanes = lanes.into_iter().map(Part::align).collect();
            let Some(count) = lanes.iter().map(Part::blocks).min() else { return begun > 0 };
            run(&mut lanes, count);
            for done in lanes.extract_if(.., |part| part.blocks() == 0) {
                done.end();
            }
        }
    }
}

/// Takes `count` blocks of each.
fn run(lanes: &mut [Part], count: usize) {
    let len = count * BLOCK;
    match lanes {
        [] => {}
        [one, two, three, four] => together([one, two, three, four], len),
        [one, two, rest @ ..] => {
            together([one, two], len);
            run(rest, count);
        }
        [one] => together([one], len),
    }
}

fn together<const L: usize>(parts: [&mut Part; L], len: usize) {
    take_blocks(parts.map(|part| {
        let from = part.taken;
        part.taken += len;
        (&mut part.md5, &part.data[from..part.taken])
    }));
}

/// Lets everything else that can run now run first.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
#[path = "hashing_tests.rs"]
mod tests;
