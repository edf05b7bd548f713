//! The ten ways in which replicated block stores have lost or bent data, each with the rule that answers it.
//!
//! The oracle judges every answer in them; what a test says beside that is what must happen.

use quarry_volume::head::{Done, Event, Failure, Settings, Standing};

use super::driver::Ask;
use super::plant::Plant;
use super::world::{World, device};

/// Longer than a member may be away, and a change of the members takes.
const LONG: u64 = 8_000;

struct Case {
    world: World,
}

impl Case {
    /// Three members, and a head that serves.
    fn new() -> (Self, usize) {
        let settings = Settings { least: 2, keep: 0, near: None };
        let mut case = Self { world: World::new(7, 3, settings, Plant::Nothing, 40) };
        let head = case.attach();
        assert!(case.serves(head));
        (case, head)
    }

    fn attach(&mut self) -> usize {
        let head = self.world.attach().unwrap();
        self.pass(1_000);
        head
    }

    fn pass(&mut self, time: u64) {
        self.world.pass(time).unwrap();
    }

    fn serves(&self, head: usize) -> bool {
        self.world.heads.get(&head).is_some_and(|running| running.served)
    }

    fn standing(&self, head: usize, member: usize) -> Option<Standing> {
        let mut members = self.world.heads[&head].driver.head.members();
        members.find(|(known, _)| *known == device(member)).map(|(_, standing)| standing)
    }

    /// Asks, and waits; `None`: no answer came.
    fn ask(&mut self, head: usize, ask: Ask) -> Option<Result<Done, Failure>> {
        self.world.last_answer = None;
        self.world.ask(head, ask).unwrap();
        self.pass(700);
        self.world.last_answer
    }

    fn write(&mut self, head: usize, block: u8, value: u64) -> Option<Result<Done, Failure>> {
        self.ask(head, Ask::Write { first: block, blocks: 1, value, durable: true })
    }

    fn read(&mut self, head: usize, block: u8) -> Option<Result<Done, Failure>> {
        self.ask(head, Ask::Read { first: block, blocks: 1 })
    }

    fn lose_power(&mut self, members: &[usize]) {
        members.iter().for_each(|member| self.world.crash(*member, 0));
    }

    fn start(&mut self, members: &[usize]) {
        members.iter().for_each(|member| self.world.start(*member));
    }

    fn members(&self) -> usize {
        self.world.control.configuration.members.len()
    }
}

const WRITTEN: Option<Result<Done, Failure>> = Some(Ok(Done::Written));

fn is_read(answer: Option<Result<Done, Failure>>) -> bool {
    matches!(answer, Some(Ok(Done::Read(_))))
}

/// Rule: too few of the committed members to seal is undecided, until an operator decides.
#[test]
fn loss_01_two_that_acknowledged_are_gone_and_the_third_lags() {
    let (mut case, head) = Case::new();
    case.world.cut(head, 2, 0);
    assert_eq!(case.write(head, 3, 1), WRITTEN);
    case.lose_power(&[0, 1]);
    case.world.kill(head);
    let next = case.attach();
    case.pass(LONG);
    assert!(case.world.undecided, "it is reported");
    assert!(!case.serves(next), "and not papered over");
    case.world.control.forgiven = true;
    case.world.tell(next, Event::Decide(device(2))).unwrap();
    case.pass(LONG);
    assert!(case.serves(next));
    assert_eq!(case.members(), 1);
}

/// Rule: only members of the committed configuration are asked what the volume is.
#[test]
fn loss_02_after_an_outage_the_stale_one_is_not_the_source() {
    let (mut case, head) = Case::new();
    case.world.cut(head, 2, 0);
    assert_eq!(case.write(head, 3, 1), WRITTEN);
    case.pass(LONG);
    assert_eq!(case.members(), 2, "it is removed");
    assert_eq!(case.write(head, 3, 2), WRITTEN);
    case.world.kill(head);
    case.lose_power(&[0, 1, 2]);
    case.start(&[2]);
    let next = case.attach();
    case.pass(LONG);
    assert!(!case.serves(next), "whatever it has, and however new it looks");
    case.start(&[0, 1]);
    case.pass(LONG);
    assert!(case.serves(next));
    assert!(is_read(case.read(next, 3)));
    case.pass(LONG);
    assert_eq!((case.standing(next, 2), case.members()), (Some(Standing::Active), 3), "it is filled again");
}

/// Rule: a promise is durable before it is answered.
#[test]
fn loss_03_members_that_start_again_know_what_they_promised() {
    let (mut case, old) = Case::new();
    (0..3).for_each(|member| case.world.cut(old, member, 0));
    let new = case.attach();
    assert!(case.serves(new));
    case.lose_power(&[0, 1, 2]);
    case.start(&[0, 1, 2]);
    case.world.kill(new);
    case.world.mend_all();
    assert!(matches!(case.write(old, 3, 1), Some(Err(Failure::Fenced(_)))));
    assert!(matches!(case.world.heads[&old].stopped, Some(Failure::Fenced(_))));
}

/// Rule: a flush counts the members that said so; a member whose flush failed is out.
#[test]
fn loss_04_a_flush_that_failed_is_not_counted() {
    let (mut case, head) = Case::new();
    case.world.cut(head, 1, 0);
    case.world.sites[0].failing = true;
    assert_eq!(case.write(head, 3, 1), None, "one of three is no quorum");
    assert_ne!(case.standing(head, 0), Some(Standing::Active));
    case.world.mend_all();
    case.pass(LONG);
    assert_eq!(case.world.last_answer, WRITTEN, "by the two others");
    assert_ne!(case.standing(head, 0), Some(Standing::Active), "until it is started anew");
}

/// Rule: until the change is committed, and also after it, a quorum of the old members and of the new ones has what was acknowledged.
#[test]
fn loss_05_the_head_dies_before_the_change_is_committed() {
    for commits in [false, true] {
        let (mut case, head) = Case::new();
        case.world.cut(head, 2, 0);
        assert_eq!(case.write(head, 3, 1), WRITTEN);
        while case.world.heads[&head].driver.change.is_none() {
            case.pass(1);
        }
        assert_eq!(case.members(), 3, "asked for, and not committed");
        case.world.kill(head);
        if commits {
            case.pass(1_000);
            assert_eq!(case.world.control.configuration.members, [device(0), device(1)]);
        }
        case.lose_power(&[0]);
        let next = case.attach();
        // Of two each has everything; alone it brings the third up to date before it serves.
        case.pass(3 * LONG);
        assert!(case.serves(next));
        assert_eq!(case.world.control.configuration.members, [device(1), device(2)]);
        assert!(is_read(case.read(next, 3)));
    }
}

/// Rule: what is read to fill a member, or for a client, is verified; another member has it.
#[test]
fn loss_06_the_source_of_a_repair_is_damaged() {
    let (mut case, head) = Case::new();
    case.world.cut(head, 2, 0);
    case.pass(LONG);
    for block in 0..6 {
        assert_eq!(case.write(head, block, u64::from(block) + 1), WRITTEN);
    }
    for damaged in 0..2 {
        case.lose_power(&[2]);
        case.start(&[2]);
        (0..2).for_each(|member| case.world.sites[member].damaged = (member == damaged).then_some(4));
        case.world.mend_all();
        case.pass(3 * LONG);
        assert_eq!(case.standing(head, 2), Some(Standing::Active), "filled, and what it has is looked at");
        assert_eq!(case.world.sites[2].see(4, u32::MAX).value, 5);
        assert!(is_read(case.read(head, 4)));
        case.world.cut(head, 2, 0);
        case.pass(LONG);
    }
}

/// Rule: trims take their places in the one order of writes, whatever overtakes what on its way.
#[test]
fn loss_07_a_trim_does_not_overtake_a_write() {
    let (mut case, head) = Case::new();
    case.world.net.delay = 200;
    for value in 1..20 {
        for value in [value, 0] {
            case.world.ask(head, Ask::Write { first: 3, blocks: 2, value, durable: false }).unwrap();
        }
        case.pass(700);
        for member in 0..3 {
            assert_eq!(case.world.sites[member].see(4, u32::MAX).value, 0, "trimmed last");
        }
    }
}

/// Rule: a quorum's disks have what was flushed; one that lied is behind after a power cut, and is filled by the others.
#[test]
fn loss_08_a_disk_lies_about_its_flushes() {
    for seed in 0..20 {
        let (mut case, head) = Case::new();
        case.world.sites[0].lying = true;
        for value in 1..4 {
            assert_eq!(case.write(head, 3, value), WRITTEN);
        }
        case.world.kill(head);
        case.pass(seed);
        case.lose_power(&[0, 1, 2]);
        case.world.sites[0].lying = false;
        case.start(&[0, 1, 2]);
        let next = case.attach();
        case.pass(LONG);
        assert!(case.serves(next));
        assert!(is_read(case.read(next, 3)));
        assert_eq!(case.standing(next, 0), Some(Standing::Active));
        assert_eq!(case.world.sites[0].see(3, u32::MAX).value, 3);
    }
}

/// Rule: a read is given away when a quorum has confirmed the fence after it came.
#[test]
fn loss_09_a_fenced_head_reads_nothing() {
    let (mut case, old) = Case::new();
    assert_eq!(case.write(old, 3, 1), WRITTEN);
    (1..3).for_each(|member| case.world.cut(old, member, 0));
    let new = case.world.attach().unwrap();
    case.world.cut(new, 0, 0);
    case.pass(LONG);
    assert!(case.serves(new));
    assert_eq!(case.write(new, 3, 2), WRITTEN);
    assert_eq!(case.read(old, 3), None, "its own member would answer with what is old");
    case.world.mend_all();
    case.pass(LONG);
    assert!(matches!(case.world.last_answer, Some(Err(Failure::Fenced(_)))));
}

/// Rule: what a head hears counts for the session that it knows, which no other life of the identity has.
#[test]
fn loss_10_a_clone_with_the_same_identity_is_another_session() {
    let (mut case, head) = Case::new();
    assert_eq!(case.write(head, 3, 1), WRITTEN);
    let mut clone = case.world.sites[0].clone();
    assert_eq!(case.write(head, 3, 2), WRITTEN);
    // From here on the copy answers where the original did, and knows nothing of the second write.
    let life = case.world.sites[0].life;
    case.lose_power(&[0]);
    clone.life = life + 2;
    case.world.sites[0] = clone;
    case.lose_power(&[0]);
    case.start(&[0]);
    assert_eq!(case.write(head, 3, 3), WRITTEN, "by the two others");
    assert!(is_read(case.read(head, 3)));
    case.pass(3 * LONG);
    assert_eq!(case.standing(head, 0), Some(Standing::Active), "it was filled");
    assert_eq!(case.world.sites[0].see(3, u32::MAX).value, 3);
}
