use super::*;
use crate::table::scatter;

#[test]
fn replicas_fill_domains_evenly_up_to_their_devices() {
    assert_eq!(even(&[9, 9, 9], 3), [(1, 1); 3]);
    assert_eq!(even(&[9, 9, 9], 4), [(1, 2); 3]);
    assert_eq!(even(&[9, 9, 9, 9], 3), [(0, 1); 4]);
    assert_eq!(even(&[1, 9, 9], 6), [(1, 1), (2, 3), (2, 3)], "one device takes one");
    assert_eq!(even(&[0, 2], 2), [(0, 0), (2, 2)]);
    assert_eq!(even(&[1, 1], 5), [(1, 1); 2], "more than there are devices go nowhere");
}

/// By number: exact sums, bounds kept, and proportion among those that no bound holds.
#[test]
fn claims_get_their_proportion_within_their_bounds() {
    for number in 0..2000_u32 {
        let random = |what: u32, bound: u64| scatter(number, what) % bound;
        let count = 1 + u32::try_from(random(0, 12)).unwrap();
        let claims: Vec<_> = (1..=count)
            .map(|n| {
                let low = random(2 * n, 1 << 30);
                Claim { weight: 1 + random(n, 1 << 40), low, high: low + random(2 * n + 1, 1 << 34) }
            })
            .collect();
        let (low, high): (u64, u64) =
            claims.iter().fold((0, 0), |(low, high), claim| (low + claim.low, high + claim.high));
        let total = low + random(99, high - low + 1);
        let amounts = fill(total, &claims);
        assert_eq!(amounts.iter().sum::<u64>(), total, "number {number}");
        let within = |(amount, claim): (&u64, &Claim)| (claim.low..=claim.high).contains(amount);
        assert!(amounts.iter().zip(&claims).all(within), "number {number}");
        check_proportion(&claims, &amounts, number);
    }
}

/// What none of two bounds holds has the same amount for its weight, to a millionth.
fn check_proportion(claims: &[Claim], amounts: &[u64], number: u32) {
    let free = claims
        .iter()
        .zip(amounts)
        .filter(|(claim, amount)| claim.low + 9 < **amount && **amount + 9 < claim.high);
    let free: Vec<_> = free.collect();
    for pair in free.windows(2) {
        let [(one, first), (other, second)] = pair else { unreachable!("windows of two") };
        let (left, right) =
            (u128::from(**first) * u128::from(other.weight), u128::from(**second) * u128::from(one.weight));
        let slack = left.max(right) / 1_000_000 + 64 * u128::from(one.weight.max(other.weight));
        assert!(left.abs_diff(right) <= slack, "number {number}: {left} {right}");
    }
}

#[test]
fn nothing_moves_for_the_sake_of_rounding() {
    let device = |id| Device { id, region: 0, zone: 0, node: 0, weight: 1, class: crate::Class::Hdd };
    let devices: Vec<_> = (0..4).map(device).collect();
    let tree = Tree::new(&devices);
    let sizes = Sizes { partitions: 10, entries: 10, overload: Overload::UNLIMITED };
    let target = shares(&tree, &devices, sizes).target;
    let counts = tree.sums(|position| [2, 3, 2, 3][position]);
    let quotas = quotas(&tree, &target, &counts);
    let of = |position: usize| quotas[tree.leaf(position) as usize];
    assert_eq!([of(0), of(1), of(2), of(3)], [2, 3, 2, 3]);
}
