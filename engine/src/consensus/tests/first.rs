//! The first election of a group that was just made.

use std::time::Duration;

use super::rig::{Cluster, node};
use super::split::{CHILD, PARENT, filled, still, wanted};
use crate::consensus::Outcome;
use crate::net::SimFaults;

/// A group that was just made, opened where its parent is led: that node.
fn made(seed: u64) -> (Cluster, u8) {
    let (mut cluster, _) = filled(seed, PARENT);
    let (n, leader) = cluster.leader(PARENT);
    let wanted = wanted("n050", CHILD);
    assert_eq!(cluster.run(async move { leader.split(wanted, still()).await }).unwrap().0, Outcome::Applied);
    cluster.settle(PARENT, &[1, 2, 3]);
    cluster.open(n, CHILD);
    let (group, runtime) = (cluster.group(n, CHILD).unwrap(), cluster.runtime.node(node(n)));
    runtime.spawn(Box::pin(async move { group.elect_first().await.unwrap() }));
    (cluster, n)
}

#[test]
fn a_new_group_is_led_soon_after_the_second_of_three_voters_has_opened_it() {
    for seed in 900..910 {
        let (mut cluster, n) = made(seed);
        // Later than any that is ready would wait, and sooner than voters miss a leader.
        cluster.pass(cluster.settings.silence / 2);
        let first = cluster.group(n, CHILD).unwrap();
        assert_eq!(first.status().term, 0, "nothing is called before anybody could answer");
        let second = (1..=3).find(|other| *other != n).unwrap();
        cluster.open(second, CHILD);
        cluster.pass(Duration::from_millis(100));
        assert!(first.status().leads, "{:?}", first.status());
        assert_eq!(first.status().term, 1);
    }
}

#[test]
fn an_election_whose_messages_were_lost_is_called_again() {
    let mut again = 0;
    for seed in 910..930 {
        let (mut cluster, n) = made(seed);
        let others = (1..=3).filter(|other| *other != n);
        others.for_each(|other| drop(cluster.open(other, CHILD)));
        let first = cluster.group(n, CHILD).unwrap();
        let delay = (Duration::from_millis(1), Duration::from_millis(2));
        while first.status().term == 0 {
            cluster.pass(Duration::from_millis(1));
        }
        cluster.net.set_faults(SimFaults { delay, loss: 1000, duplication: 0 });
        cluster.pass(Duration::from_millis(20));
        cluster.net.set_faults(SimFaults::NONE);
        cluster.pass(Duration::from_millis(400));
        assert!(first.status().leads, "{:?}", first.status());
        again += usize::from(first.status().term > 1);
    }
    assert!(again > 2, "{again} of 20 were lost");
}
