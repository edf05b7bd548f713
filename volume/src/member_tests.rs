use std::collections::VecDeque;

use super::*;

const fn fence(epoch: u64) -> Fence {
    Fence { epoch, configuration: 1 }
}

const T: Token = Token(1);

fn refused(refusal: Refusal) -> Vec<Action> {
    vec![Action::Answer(T, Answer::Refused(refusal))]
}

/// Promised, begun, and with `writes` durable writes, all of epoch `epoch`.
fn serving(epoch: u64, writes: u64) -> Member {
    let mut member = Member::recovered(Fence::default(), Position::default());
    assert_eq!(member.step(Event::Promise(T, fence(epoch))), [Action::Persist(fence(epoch))]);
    let promised = Action::Answer(T, Answer::Promised(Position::default()));
    assert_eq!(member.step(Event::Persisted(fence(epoch))), [promised]);
    member.step(Event::Begin(T, fence(epoch), Position::default()));
    for sequence in 1..=writes {
        let position = Position { epoch, sequence };
        assert_eq!(member.step(Event::Write(T, fence(epoch), sequence)), [Action::Append(T, position)]);
        assert_eq!(member.step(Event::Appended(sequence)), [Action::Answer(T, Answer::Written)]);
    }
    if writes > 0 {
        assert_eq!(member.step(Event::Flush(T, fence(epoch))), [Action::Flush(writes)]);
        assert_eq!(member.step(Event::Flushed(writes)), [Action::Answer(T, Answer::Flushed)]);
    }
    member
}

/// Loss case 3: a member answers before its promise of the epoch is durable, restarts, and accepts the old head again.
#[test]
fn case_3_a_promise_is_answered_only_when_it_is_durable() {
    let mut member = serving(1, 3);
    assert_eq!(member.step(Event::Promise(T, fence(2))), [Action::Persist(fence(2))], "no answer yet");
    let history = Position { epoch: 1, sequence: 3 };
    assert_eq!(member.step(Event::Persisted(fence(2))), [Action::Answer(T, Answer::Promised(history))]);
    let mut restarted = Member::recovered(fence(2), history);
    assert_eq!(restarted.step(Event::Write(T, fence(1), 4)), refused(Refusal::Fenced(fence(2))));
    assert_eq!(restarted.step(Event::Promise(T, fence(1))), refused(Refusal::Fenced(fence(2))));
}

/// Loss case 9: a fenced head goes on serving reads.
#[test]
fn case_9_a_fenced_head_reads_nothing() {
    let mut member = serving(1, 1);
    assert_eq!(member.step(Event::Read(T, fence(1))), [Action::Serve(T)]);
    member.step(Event::Promise(Token(2), fence(2)));
    assert_eq!(member.step(Event::Read(T, fence(1))), refused(Refusal::Fenced(fence(2))), "fenced at once");
    assert_eq!(
        member.step(Event::Read(T, fence(2))),
        refused(Refusal::NotPromised),
        "and not yet the new one's"
    );
    member.step(Event::Persisted(fence(2)));
    assert_eq!(member.step(Event::Read(T, fence(1))), refused(Refusal::Fenced(fence(2))));
    assert_eq!(member.step(Event::Read(T, fence(2))), [Action::Serve(T)]);
}

#[test]
fn a_removed_configuration_is_fenced_within_one_epoch() {
    let mut member = serving(1, 1);
    let newer = Fence { epoch: 1, configuration: 2 };
    member.step(Event::Promise(T, newer));
    member.step(Event::Persisted(newer));
    assert_eq!(member.step(Event::Write(T, fence(1), 2)), refused(Refusal::Fenced(newer)));
    let position = Position { epoch: 1, sequence: 2 };
    assert_eq!(
        member.step(Event::Write(T, newer, 2)),
        [Action::Append(T, position)],
        "no need to begin again"
    );
    let mixed = Fence { epoch: 9, configuration: 1 };
    assert_eq!(member.step(Event::Promise(T, mixed)), refused(Refusal::Fenced(newer)));
}

#[test]
fn only_the_next_sequence_is_taken() {
    let mut member = serving(1, 3);
    for sequence in [0, 1, 3, 5, u64::MAX] {
        assert_eq!(member.step(Event::Write(T, fence(1), sequence)), refused(Refusal::OutOfOrder(4)));
    }
    assert_eq!(member.step(Event::Write(T, fence(1), 4)).len(), 1);
}

/// A write that only this member got, from a head that died, must not become the middle of another head's history.
#[test]
fn a_member_with_another_history_must_be_resynced() {
    let mut member = serving(1, 5);
    member.step(Event::Promise(T, fence(2)));
    member.step(Event::Persisted(fence(2)));
    let own = Position { epoch: 1, sequence: 5 };
    assert_eq!(member.step(Event::Write(T, fence(2), 6)), refused(Refusal::NotBegun));
    for base in [Position { epoch: 1, sequence: 4 }, Position { epoch: 2, sequence: 5 }] {
        assert_eq!(member.step(Event::Begin(T, fence(2), base)), refused(Refusal::Elsewhere(own)));
        assert_eq!(member.step(Event::Write(T, fence(2), 6)), refused(Refusal::NotBegun));
    }
    assert_eq!(member.step(Event::Begin(T, fence(2), own)), [Action::Answer(T, Answer::Begun)]);
    assert_eq!(member.step(Event::Write(T, fence(2), 6)).len(), 1);
}

/// Loss case 4 as a member sees it: a flush that failed is no flush, and none is tried again.
#[test]
fn case_4_after_a_failure_everything_is_refused_for_good() {
    let mut member = serving(1, 1);
    member.step(Event::Write(Token(2), fence(1), 2));
    member.step(Event::Flush(Token(3), fence(1)));
    let out = |token| Action::Answer(Token(token), Answer::Refused(Refusal::Out));
    assert_eq!(member.step(Event::Failed), [out(2), out(3)]);
    assert_eq!(member.step(Event::Flushed(2)), [], "too late");
    for event in [
        Event::Promise(T, fence(2)),
        Event::Begin(T, fence(1), Position { epoch: 1, sequence: 2 }),
        Event::Write(T, fence(1), 3),
        Event::Read(T, fence(1)),
        Event::Flush(T, fence(1)),
    ] {
        assert_eq!(member.step(event), refused(Refusal::Out));
    }
}

#[test]
fn what_waits_for_the_disk_is_bounded() {
    let mut member = serving(1, 0);
    for sequence in 1..=MAX_WAITING as u64 {
        assert!(matches!(member.step(Event::Write(T, fence(1), sequence))[..], [Action::Append(..)]));
    }
    assert_eq!(member.step(Event::Write(T, fence(1), MAX_WAITING as u64 + 1)), refused(Refusal::Busy));
    for _ in 0..MAX_WAITING {
        assert!(matches!(member.step(Event::Flush(T, fence(1)))[..], [Action::Flush(_)]));
    }
    assert_eq!(member.step(Event::Flush(T, fence(1))), refused(Refusal::Busy));
    for epoch in 2..MAX_WAITING as u64 + 2 {
        assert!(matches!(member.step(Event::Promise(T, fence(epoch)))[..], [Action::Persist(_)]));
    }
    assert_eq!(member.step(Event::Promise(T, fence(9999))), refused(Refusal::Busy));
    member.step(Event::Appended(1));
    assert_eq!(
        member.step(Event::Read(T, fence(9999))),
        refused(Refusal::NotPromised),
        "the refused one left no mark"
    );
}

/// Bugs that the simulation must find.
#[derive(Clone, Copy, PartialEq)]
enum Bug {
    None,
    /// The promise is answered when it is asked for.
    EarlyPromise,
    /// A flush is answered when it is asked for.
    EarlyFlush,
    /// Reads are served whatever the fence says.
    UnfencedReads,
}

/// A member with its log and its crashes, and what heads were told.
struct World {
    member: Member,
    bug: Bug,
    state: u64,
    /// Logged and not yet reported, oldest first: a crash may lose any end of it.
    log: VecDeque<Action>,
    durable_fence: Fence,
    durable_position: Position,
    /// Appended or flushed by the caller, but not durable.
    volatile: Vec<Action>,
    told_promise: u64,
    told_durable: u64,
    next_epoch: u64,
    token: u64,
}

impl World {
    fn new(seed: u64, bug: Bug) -> Self {
        Self {
            member: Member::recovered(Fence::default(), Position::default()),
            bug,
            state: seed,
            log: VecDeque::new(),
            durable_fence: Fence::default(),
            durable_position: Position::default(),
            volatile: Vec::new(),
            told_promise: 0,
            told_durable: 0,
            next_epoch: 1,
            token: 0,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// One random happening. `Err` tells the broken promise.
    fn happen(&mut self) -> Result<(), String> {
        self.token += 1;
        let token = Token(self.token);
        // A head of now, or one that does not know that it is none.
        let epoch = self.next_epoch.saturating_sub(self.below(3)).max(1);
        let position = self.member.accepted;
        let event = match self.below(20) {
            0 => {
                self.next_epoch += 1;
                Event::Promise(token, fence(self.next_epoch))
            }
            1 => Event::Promise(token, fence(epoch)),
            2..5 => Event::Begin(token, fence(epoch), position),
            5..9 => Event::Write(token, fence(epoch), position.sequence + 1),
            9..11 => Event::Read(token, fence(epoch)),
            11..13 => Event::Flush(token, fence(epoch)),
            13 => return self.crash(),
            _ => return self.complete(),
        };
        if self.bug == Bug::UnfencedReads && matches!(event, Event::Read(..)) {
            return self.serve(epoch);
        }
        let actions = self.member.step(event);
        self.act(epoch, actions)
    }

    fn act(&mut self, epoch: u64, actions: Vec<Action>) -> Result<(), String> {
        for action in actions {
            match action {
                Action::Serve(_) => self.serve(epoch)?,
                Action::Append(_, position) => {
                    if position.epoch < self.told_promise {
                        return Err(format!("wrote for epoch {} after a promise", position.epoch));
                    }
                    self.log.push_back(action);
                }
                Action::Persist(fence) => {
                    if self.bug == Bug::EarlyPromise {
                        self.told_promise = self.told_promise.max(fence.epoch);
                    }
                    self.log.push_back(action);
                }
                Action::Flush(sequence) => {
                    if self.bug == Bug::EarlyFlush {
                        self.told_durable = self.told_durable.max(sequence);
                    }
                    self.log.push_back(action);
                }
                Action::Answer(_, Answer::Promised(history)) => {
                    self.told_promise = self.told_promise.max(self.member.promised.epoch);
                    self.told_durable = self.told_durable.max(history.sequence);
                }
                Action::Answer(_, Answer::Flushed) => {
                    self.told_durable = self.told_durable.max(self.member.durable);
                }
                Action::Answer(..) => {}
            }
        }
        Ok(())
    }

    fn serve(&self, epoch: u64) -> Result<(), String> {
        if epoch < self.told_promise {
            Err(format!("read for epoch {epoch} after a promise"))
        } else {
            Ok(())
        }
    }

    /// The oldest thing in the log completes.
    fn complete(&mut self) -> Result<(), String> {
        let Some(action) = self.log.pop_front() else { return Ok(()) };
        self.volatile.push(action);
        let event = match action {
            Action::Append(_, position) => Event::Appended(position.sequence),
            Action::Persist(fence) => {
                self.settle(self.volatile.len());
                Event::Persisted(fence)
            }
            Action::Flush(sequence) => {
                self.settle(self.volatile.len());
                Event::Flushed(sequence)
            }
            Action::Serve(_) | Action::Answer(..) => unreachable!("not logged"),
        };
        let actions = self.member.step(event);
        self.act(u64::MAX, actions)
    }

    /// The oldest `count` things that were volatile are durable.
    fn settle(&mut self, count: usize) {
        for action in self.volatile.drain(..count) {
            match action {
                Action::Append(_, position) => self.durable_position = position,
                Action::Persist(fence) => self.durable_fence = fence,
                _ => {}
            }
        }
    }

    /// Power is cut: a random prefix of what was not durable is.
    fn crash(&mut self) -> Result<(), String> {
        self.volatile.extend(self.log.drain(..));
        let kept = self.below(self.volatile.len() as u64 + 1);
        self.settle(usize::try_from(kept).unwrap());
        self.volatile.clear();
        self.member = Member::recovered(self.durable_fence, self.durable_position);
        if self.durable_position.sequence < self.told_durable {
            return Err(format!("lost {:?} of {} durable writes", self.durable_position, self.told_durable));
        }
        Ok(())
    }
}

/// Happenings until a promise is broken.
fn broken(seed: u64, bug: Bug) -> Option<String> {
    let mut world = World::new(seed, bug);
    (0..400).find_map(|step| world.happen().err().map(|what| format!("seed {seed} step {step}: {what}")))
}

/// Cases 3 and 9 under every interleaving that seeds reach: once an epoch is promised no lower one writes or reads, and
/// once a write is called durable it stays, whatever crashes.
#[test]
fn promises_hold_through_crashes() {
    for seed in 0..2000 {
        assert_eq!(broken(seed, Bug::None), None);
    }
}

#[test]
fn the_simulation_finds_planted_bugs() {
    for (bug, what) in
        [(Bug::EarlyPromise, "after a promise"), (Bug::EarlyFlush, "lost"), (Bug::UnfencedReads, "read")]
    {
        let found = (0..2000).find_map(|seed| broken(seed, bug)).expect("a planted bug was not found");
        assert!(found.contains(what), "{found}");
    }
}
