use quarry_engine::io::SplitMix64;
use quarry_ring::Class;

use super::super::state::{Device, Member, Settings};
use super::*;

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn device(n: u8, disk: u8) -> DeviceId {
    let mut id = [n; 16];
    id[15] = disk;
    DeviceId(id)
}

fn cluster(groups: u32, replicas: u16) -> State {
    let settings = Settings { replicas, part_power: 6, min_part_hours: 0, index_groups: groups };
    let mut state = State { settings: Some(settings), ..State::default() };
    grow(&mut state, 1, 0, 1);
    let seat = Seat { node: node(1), device: device(1, 0) };
    state.groups = (1..=groups).map(|group| (group, vec![seat])).collect();
    state
}

fn grow(state: &mut State, n: u8, zone: u16, disks: u8) {
    let address = format!("10.0.0.{n}:6100").parse().unwrap();
    let member = Member { number: n.into(), address, since: n.into(), leaving: false };
    state.members.insert(node(n), member);
    for disk in 0..disks {
        let (region, class, wanted) = (0, Class::Hdd, Wanted::Share);
        let new = Device { node: node(n), bytes: 1 << 30, region, zone, class, wanted, away: false };
        state.devices.insert(device(n, disk), new);
    }
}

/// One step, held to what every step promises; how many voters joined. `None`: nothing is to be done.
fn step(state: &mut State) -> Option<usize> {
    let changed = next(state);
    assert_eq!(changed, next(state), "equal states give equal steps");
    let mut joined = 0;
    for (group, step) in &changed {
        let before = &state.groups[group];
        let (old, new) = (nodes(before), nodes(step));
        assert_eq!(new.len(), step.len(), "a node votes once");
        let kept = old.intersection(&new).count();
        assert!(kept > old.len() / 2 || new.is_subset(&old), "{before:?} {step:?}");
        assert!(!new.is_empty() && step.len() <= old.len().max(MORE_VOTERS));
        let moved = |seat: &&Seat| before.iter().any(|s| s.node == seat.node && s.device != seat.device);
        assert!(step.iter().find(moved).is_none(), "a disk changed under a voter: {before:?} {step:?}");
        joined += new.difference(&old).count();
    }
    (!changed.is_empty()).then(|| {
        state.groups.extend(changed);
        joined
    })
}

/// Steps until there is none; how many voters joined.
fn settle(state: &mut State) -> usize {
    let mut joined = 0;
    for _ in 0..500 {
        match step(state) {
            Some(more) => joined += more,
            None => return joined,
        }
    }
    panic!("it never settles: {:?}", state.groups);
}

fn loads(state: &State) -> BTreeMap<NodeId, usize> {
    let mut loads: BTreeMap<_, _> = state.members.keys().map(|node| (*node, 0)).collect();
    for seat in state.groups.values().flatten() {
        *loads.get_mut(&seat.node).unwrap() += 1;
    }
    loads
}

fn spread(counts: impl IntoIterator<Item = usize>) -> usize {
    let counts: Vec<_> = counts.into_iter().collect();
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

#[test]
fn a_row_has_these_bytes_for_ever() {
    let seats = [Seat { node: node(1), device: device(2, 3) }];
    let golden = format!("0101{}{}03", "01".repeat(16), "02".repeat(15));
    assert_eq!(hex::encode(encode(&seats)), golden);
    assert_eq!(decode(&encode(&seats)), Ok(seats.to_vec()));
    assert_eq!(hex::encode(group_key(258)), "6b6700000102");
    assert!(decode(&[1, 0]).is_err() && decode(&[1, 1, 3]).is_err() && decode(&[2, 0]).is_err());
}

#[test]
fn groups_spread_over_nodes_as_a_cluster_grows_and_back() {
    let mut state = cluster(8, 3);
    assert_eq!(settle(&mut state), 0);
    for n in 2..=5 {
        grow(&mut state, n, 0, 1);
        settle(&mut state);
        let voters = if n < 3 { 1 } else { 3 };
        assert!(state.groups.values().all(|seats| seats.len() == voters), "{n}: {:?}", state.groups);
        assert!(spread(loads(&state).into_values()) <= 1, "{n}: {:?}", loads(&state));
        let mut first: BTreeMap<NodeId, usize> = state.members.keys().map(|node| (*node, 0)).collect();
        state.groups.values().for_each(|seats| *first.get_mut(&seats[0].node).unwrap() += 1);
        assert!(spread(first.into_values()) <= 1);
    }
    // A node that goes is replaced where it was, and nowhere else.
    let had = loads(&state)[&node(2)];
    state.members.get_mut(&node(2)).unwrap().leaving = true;
    let joined = settle(&mut state);
    assert_eq!(loads(&state)[&node(2)], 0);
    assert!(joined <= had + 2, "{joined} joined for {had}");
    for n in [3, 4, 5] {
        state.members.get_mut(&node(n)).unwrap().leaving = true;
        settle(&mut state);
    }
    assert!(state.groups.values().all(|seats| nodes(seats) == [node(1)].into()));
}

#[test]
fn zones_come_before_load_and_five_vote_where_there_are_five_copies() {
    let mut state = cluster(16, 3);
    for n in 2..=6 {
        grow(&mut state, n, u16::from(n / 3), 1);
    }
    settle(&mut state);
    // Zone 0: nodes 1 and 2; zone 1: 3 to 5; zone 2: node 6.
    for seats in state.groups.values() {
        let zones: BTreeSet<u16> = seats.iter().map(|seat| state.devices[&seat.device].zone).collect();
        assert_eq!(zones.len(), 3, "{seats:?}");
    }
    assert_eq!(loads(&state)[&node(6)], 16);
    state.settings.as_mut().unwrap().replicas = 5;
    settle(&mut state);
    assert!(state.groups.values().all(|seats| seats.len() == 5));
}

#[test]
fn a_disk_that_is_taken_out_is_left_before_another_one_is_used() {
    let mut state = cluster(8, 3);
    for n in 2..=3 {
        grow(&mut state, n, 0, 2);
    }
    settle(&mut state);
    let of = |state: &State, id: DeviceId| state.groups.values().flatten().filter(|s| s.device == id).count();
    assert_eq!((of(&state, device(2, 0)), of(&state, device(2, 1))), (4, 4));
    state.devices.get_mut(&device(2, 0)).unwrap().wanted = Wanted::Out;
    settle(&mut state);
    assert_eq!((of(&state, device(2, 0)), of(&state, device(2, 1))), (0, 8));
    assert!(state.groups.values().all(|seats| seats.len() == 3));
}

#[test]
fn whatever_happens_to_nodes_each_step_is_safe_and_ends_well() {
    for seed in 0..300 {
        let mut rng = SplitMix64::new(seed);
        let mut below = |n: u64| u8::try_from(rng.next_u64() % n).unwrap();
        let mut state = cluster(1 << below(6), 1 + u16::from(below(5)));
        let zones = 1 + u64::from(below(4));
        for _ in 0..24 {
            let n = 1 + below(9);
            match below(4) {
                0 | 1 => grow(&mut state, n, u16::from(below(zones)), 1 + below(3)),
                2 => {
                    state.members.entry(node(n)).and_modify(|member| member.leaving ^= true);
                }
                _ => {
                    let wanted = [Wanted::Share, Wanted::Empty, Wanted::Out][usize::from(below(3))];
                    state.devices.entry(device(n, below(3))).and_modify(|device| device.wanted = wanted);
                }
            }
            // Often the next change comes before the last one has been followed.
            for _ in 0..below(6) {
                step(&mut state);
            }
        }
        settle(&mut state);
        let plan = Plan::of(&state);
        for seats in state.groups.values().filter(|_| plan.wanted > 0) {
            assert_eq!(seats.len(), plan.wanted, "seed {seed}");
            assert!(seats.iter().all(|seat| plan.good(seat)), "seed {seed}: {seats:?}");
            let all: BTreeSet<u16> = plan.desks.values().map(|desk| desk.zone).collect();
            assert_eq!(plan.zones(seats).len(), all.len().min(plan.wanted), "seed {seed}: {seats:?}");
        }
        let one_zone = plan.desks.values().map(|desk| desk.zone).collect::<BTreeSet<_>>().len() == 1;
        if one_zone && plan.wanted > 0 {
            assert!(spread(plan.desks.values().map(|desk| desk.load)) <= 1, "seed {seed}");
        }
    }
}

/// The roomiest disk of the node was a dead one, and the seat stayed empty for good.
#[test]
fn no_new_seat_is_on_a_disk_that_is_away_and_none_is_taken_from_one() {
    let mut state = cluster(8, 3);
    grow(&mut state, 1, 0, 2);
    grow(&mut state, 2, 0, 2);
    grow(&mut state, 3, 0, 1);
    let away = |state: &mut State, id: DeviceId| state.devices.get_mut(&id).unwrap().away = true;
    // One disk of two of node 2, and the only one of node 3.
    away(&mut state, device(2, 0));
    away(&mut state, device(3, 0));
    // Two of three nodes can have a voter.
    settle(&mut state);
    let seats: Vec<Seat> = state.groups.values().flatten().copied().collect();
    assert!(seats.iter().any(|seat| seat.device == device(2, 1)), "{seats:?}");
    assert!(seats.iter().all(|seat| seat.device != device(2, 0) && seat.node != node(3)), "{seats:?}");
    for (_, known) in state.devices.iter_mut() {
        known.away = false;
    }
    settle(&mut state);
    assert!(state.groups.values().all(|seats| seats.len() == 3));
    let before = state.groups.clone();
    away(&mut state, device(2, 1));
    assert_eq!(next(&state), Seating::new(), "who is away for a while keeps its seats");
    assert_eq!(state.groups, before);
}
