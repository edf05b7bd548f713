//! How many replicas make a change, and whom to ask next: Swift's rule. Pure.
//!
//! Invariant: once reached a quorum stays reached, whatever answers come later.
//! Invariant: no more answers are hoped for than copies are wanted: a device is asked when another one failed or stalls.
//! Invariant: a tally is lost as soon as the good answers, and those that are still hoped for, are fewer than needed and nobody is
//! left to be asked.

/// Replicas that must have a change before the client hears of it: `(n + 1) / 2`.
#[must_use]
pub const fn quorum(replicas: usize) -> usize {
    replicas.div_ceil(2)
}

/// What the answers so far mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not decided.
    Open,
    /// Enough have it.
    Reached,
    /// Too many failed, and nobody else is there to be asked.
    Lost,
}

/// How a device that was asked and has not answered stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// It has its time.
    Running,
    /// It is late, and another one was asked in its place.
    Stalled,
    /// It is not hoped for any more.
    GivenUp,
}

/// Answers of devices that are asked the same.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Good answers that are wanted in the end.
    wanted: usize,
    /// Good answers that suffice.
    needed: usize,
    good: usize,
    running: usize,
    stalled: usize,
    /// Nobody is left to be asked.
    exhausted: bool,
}

impl Tally {
    /// `wanted` answers in the end, of which `needed` suffice to go on.
    #[must_use]
    pub const fn new(wanted: usize, needed: usize) -> Self {
        Self { wanted, needed, good: 0, running: 0, stalled: 0, exhausted: false }
    }

    /// Whether one more should be asked now.
    #[must_use]
    pub const fn asks(&self) -> bool {
        !self.exhausted && self.good + self.running < self.wanted
    }

    /// One more was asked.
    pub const fn asked(&mut self) {
        self.running += 1;
    }

    /// There is nobody else to ask.
    pub const fn exhaust(&mut self) {
        self.exhausted = true;
    }

    /// One is late.
    pub const fn stalls(&mut self) {
        self.running -= 1;
        self.stalled += 1;
    }

    /// One that was late is not hoped for any more.
    pub const fn gives_up(&mut self) {
        self.stalled -= 1;
    }

    /// One answered.
    pub const fn answered(&mut self, good: bool, stood: Asked) {
        match stood {
            Asked::Running => self.running -= 1,
            Asked::Stalled => self.stalled -= 1,
            Asked::GivenUp => {}
        }
        if good {
            self.good += 1;
        }
    }

    /// What the answers so far mean.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        if self.good >= self.needed {
            Verdict::Reached
        } else if self.exhausted && self.good + self.running + self.stalled < self.needed {
            Verdict::Lost
        } else {
            Verdict::Open
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_half_rounded_up() {
        assert_eq!([1, 2, 3, 4, 5].map(quorum), [1, 1, 2, 2, 3]);
    }

    /// What happens to a write, one letter each: `+` a good answer, `-` an error, `s` a stall; of one that stalled `!` a good
    /// answer, `x` an error, `g` that it is given up, and `?` a good answer of one that was. Devices are asked whenever the tally
    /// asks, while there are any.
    fn play(wanted: usize, devices: usize, story: &str) -> (Verdict, usize) {
        let mut tally = Tally::new(wanted, quorum(wanted));
        let mut left = devices;
        let mut fill = |tally: &mut Tally| {
            while tally.asks() {
                match left.checked_sub(1) {
                    Some(fewer) => {
                        left = fewer;
                        tally.asked();
                    }
                    None => tally.exhaust(),
                }
            }
            devices - left
        };
        let mut asked = fill(&mut tally);
        for letter in story.chars() {
            match letter {
                '+' => tally.answered(true, Asked::Running),
                '-' => tally.answered(false, Asked::Running),
                's' => tally.stalls(),
                '!' => tally.answered(true, Asked::Stalled),
                'x' => tally.answered(false, Asked::Stalled),
                'g' => tally.gives_up(),
                '?' => tally.answered(true, Asked::GivenUp),
                other => panic!("{other}"),
            }
            asked = fill(&mut tally);
        }
        (tally.verdict(), asked)
    }

    #[test]
    fn stories_of_writes() {
        use Verdict::{Lost, Open, Reached};
        let table = [
            // All well: the primaries are asked, and two of three suffice.
            (3, 6, "", Open, 3),
            (3, 6, "+", Open, 3),
            (3, 6, "++", Reached, 3),
            (3, 6, "+++", Reached, 3),
            // One fails or stalls: a handoff is asked for it, before and after the quorum.
            (3, 6, "-", Open, 4),
            (3, 6, "s", Open, 4),
            (3, 6, "++-", Reached, 4),
            (3, 6, "++s+", Reached, 4),
            (3, 6, "+-+", Reached, 4),
            // A late answer counts.
            (3, 6, "ss+!", Reached, 5),
            (3, 3, "ss+!", Reached, 3),
            // Handoffs fail too: lost when no more can come without a wait.
            (3, 6, "-----", Lost, 6),
            (3, 6, "+----", Open, 6),
            (3, 6, "+-----", Lost, 6),
            (3, 6, "+sssss", Open, 6),
            (3, 6, "+sssssgggg", Open, 6),
            (3, 6, "+sssssggggg", Lost, 6),
            (3, 6, "+ssssgggg", Open, 6),
            (3, 6, "----s", Open, 6),
            (3, 6, "----sg", Lost, 6),
            // Nobody beyond the primaries.
            (3, 3, "--", Lost, 3),
            (3, 3, "+-", Open, 3),
            (3, 3, "+--", Lost, 3),
            (3, 3, "+ss", Open, 3),
            (3, 3, "+ssg", Open, 3),
            (3, 3, "+ssgg", Lost, 3),
            (3, 3, "+ssgg?", Reached, 3),
            (3, 3, "+sx", Open, 3),
            (3, 3, "+sx+", Reached, 3),
            (3, 1, "+", Lost, 1),
            // Other numbers of replicas.
            (1, 1, "+", Reached, 1),
            (1, 1, "-", Lost, 1),
            (1, 2, "-", Open, 2),
            (2, 4, "+", Reached, 2),
            (2, 4, "+-", Reached, 3),
            (4, 4, "++--", Reached, 4),
            (5, 10, "++-", Open, 6),
            (5, 10, "+++", Reached, 5),
            (5, 0, "", Lost, 0),
        ];
        for (wanted, devices, story, verdict, asked) in table {
            assert_eq!(play(wanted, devices, story), (verdict, asked), "{wanted} of {devices}: {story}");
        }
    }

    #[test]
    fn every_story_ends_decided_and_a_reached_one_stays_so() {
        let mut rng = crate::io::SplitMix64::new(3);
        for round in 0..20_000 {
            let wanted = 1 + rng.index(5);
            let mut left = rng.index(11);
            let mut tally = Tally::new(wanted, quorum(wanted));
            let (mut running, mut stalled, mut reached) = (0, 0, false);
            loop {
                while tally.asks() {
                    if left == 0 {
                        tally.exhaust();
                    } else {
                        (left, running) = (left - 1, running + 1);
                        tally.asked();
                    }
                }
                assert!(!reached || tally.verdict() == Verdict::Reached, "round {round}");
                reached = tally.verdict() == Verdict::Reached;
                match (running, stalled) {
                    (0, 0) => break,
                    (_, 1..) if running == 0 || rng.chance(300) => {
                        stalled -= 1;
                        match rng.below(3) {
                            0 => tally.answered(true, Asked::Stalled),
                            1 => tally.answered(false, Asked::Stalled),
                            _ => tally.gives_up(),
                        }
                    }
                    _ if rng.chance(300) => {
                        (running, stalled) = (running - 1, stalled + 1);
                        tally.stalls();
                    }
                    _ => {
                        running -= 1;
                        tally.answered(rng.chance(500), Asked::Running);
                    }
                }
            }
            assert_ne!(tally.verdict(), Verdict::Open, "round {round}");
        }
    }
}
