use super::super::groups::{Opening, Own, change, put};
use super::super::tests::{Nobody, node, until};
use super::*;
use crate::storage::wall_clock;
use crate::swift::testing::Rig;

const GROUP: u32 = 5;

/// A network of one.
struct Alone(Arc<dyn quarry_engine::net::Service>);

impl Transport for Alone {
    fn local(&self) -> NodeId {
        node(1)
    }

    fn call(
        &self,
        _: NodeId,
        request: Request,
        _: Duration,
    ) -> quarry_engine::object::BoxFuture<'static, Result<Response, quarry_engine::net::NetError>> {
        let answer = self.0.handle(node(1), request);
        Box::pin(async move { Ok(answer.await) })
    }

    fn cast(&self, _: NodeId, _: Request) {}

    fn name(&self) -> &'static str {
        "alone"
    }
}

async fn held(disk: &DiskHandle) -> bool {
    consensus::held(disk).await.unwrap().contains(&GROUP)
}

/// Disks on which a group was made; the first has the control group. `seat`: on which the row says that it is, if it has a row.
async fn opened(disks: &[Rig], has: &[usize], seat: Option<usize>) -> Own {
    let all: Vec<DiskHandle> = disks.iter().map(Rig::disk).collect();
    for disk in has {
        Group::found(&all[*disk], GROUP, BTreeSet::from([node(1)]), 0).await.unwrap();
    }
    let own = open(all.clone(), false, Some(0)).await;
    if let Some(seat) = seat {
        let row = [Seat { node: node(1), device: all[seat].device() }];
        let row = (seating::group_key(GROUP), seating::encode(&row));
        let clock = Clock::new(Box::new(wall_clock));
        until("the row is written", async || {
            let table = Table::read(&own.control).unwrap();
            change(&own.control, &clock, &table, put([row.clone()])).await.is_ok()
        })
        .await;
    }
    own
}

async fn open(disks: Vec<DiskHandle>, misses: bool, founds: Option<u32>) -> Own {
    let opening = Opening {
        disks,
        misses,
        net: Arc::new(Alone(Arc::new(Nobody))),
        clock: Arc::new(Clock::new(Box::new(wall_clock))),
        options: Options::default(),
        founds,
    };
    Own::open(opening).await.unwrap()
}

async fn stop(own: Own, disks: [Rig; 3]) {
    own.close().await;
    for disk in disks {
        disk.stop().await;
    }
}

/// A disk was taken out and came back, configured before the one on which its node had joined the group again meanwhile: the group was
/// opened from the old disk, whose votes and log were of before.
#[tokio::test]
async fn of_two_disks_that_have_a_group_the_one_of_its_row_is_opened() {
    let disks = [1, 2, 3].map(Rig::start_as);
    let own = opened(&disks, &[1, 2], Some(2)).await;
    assert!(own.group(GROUP).is_none(), "not before the row is known");
    let state = Table::read(&own.control).unwrap().state().unwrap();
    let (told, seen) = watch::channel(Arc::new(state));
    let following = tokio::spawn(own.index.clone().run(seen));
    until("it is opened", async || own.group(GROUP).is_some()).await;
    assert_eq!(own.group(GROUP).unwrap().disk().device(), disks[2].disk().device());
    until("the other disk gives it up", async || !held(&disks[1].disk()).await).await;
    assert!(held(&disks[2].disk()).await);
    following.abort();
    drop(told);
    stop(own, disks).await;
}

/// Nothing is guessed, and nothing given up, where the row names neither.
#[tokio::test]
async fn of_two_disks_that_have_a_group_none_is_opened_when_its_row_names_another() {
    let disks = [1, 2, 3].map(Rig::start_as);
    let own = opened(&disks, &[1, 2], Some(0)).await;
    let shared = &own.index.shared;
    let state = Table::read(&own.control).unwrap().state().unwrap();
    until("it is refused", async || {
        let joined = shared.join(&state, GROUP, &state.groups[&GROUP][0]).await;
        assert!(own.group(GROUP).is_none());
        joined.is_err_and(|e| e.to_string().contains("none of the disks"))
    })
    .await;
    assert!(held(&disks[1].disk()).await && held(&disks[2].disk()).await);
    stop(own, disks).await;
}

/// As ever: one disk that has it counts for more than the row, and is opened at once.
#[tokio::test]
async fn the_only_disk_that_has_a_group_is_opened_at_once() {
    let disks = [1, 2, 3].map(Rig::start_as);
    let own = opened(&disks, &[1], None).await;
    assert_eq!(own.group(GROUP).unwrap().disk().device(), disks[1].disk().device());
    stop(own, disks).await;
}

/// A node that starts without the disk of its votes in a group had an older copy of it on another disk, and the row to tell: it would
/// have voted by that copy, or by none.
#[tokio::test]
async fn a_group_of_a_missing_disk_is_opened_on_no_other() {
    for has in [&[1, 2][..], &[2]] {
        let disks = [1, 2, 3].map(Rig::start_as);
        let own = opened(&disks, has, Some(2)).await;
        own.close().await;
        // The last one is missing.
        let here = vec![disks[0].disk(), disks[1].disk()];
        let own = open(here, true, None).await;
        assert!(own.group(GROUP).is_none(), "{has:?}: not before the row is known");
        until("the cluster's state is known", async || {
            Table::read(&own.control).unwrap().state().unwrap().groups.contains_key(&GROUP)
        })
        .await;
        let state = Table::read(&own.control).unwrap().state().unwrap();
        let shared = &own.index.shared;
        let mut said = BTreeSet::new();
        until("it is refused", async || {
            own.index.step(&state, &mut said).await;
            assert!(own.group(GROUP).is_none(), "{has:?}: opened on another disk");
            let joined = shared.join(&state, GROUP, &state.groups[&GROUP][0]).await;
            joined.is_err_and(|e| e.to_string().contains(&disks[2].disk().device().to_string()))
        })
        .await;
        assert_eq!(held(&disks[1].disk()).await, has.contains(&1), "nothing is made, and nothing given up");
        own.close().await;
        // It is back.
        let own = open(disks.iter().map(Rig::disk).collect(), false, None).await;
        until("it is opened", async || {
            own.index.step(&state, &mut said).await;
            own.group(GROUP).is_some()
        })
        .await;
        assert_eq!(own.group(GROUP).unwrap().disk().device(), disks[2].disk().device());
        stop(own, disks).await;
    }
}

/// The others go on: what an open disk has is opened when its row is known to name it.
#[tokio::test]
async fn a_group_of_a_disk_that_is_here_is_opened_though_another_disk_is_missing() {
    let disks = [1, 2, 3].map(Rig::start_as);
    let own = opened(&disks, &[1], Some(1)).await;
    own.close().await;
    let own = open(vec![disks[0].disk(), disks[1].disk()], true, None).await;
    let mut said = BTreeSet::new();
    until("it is opened", async || {
        let state = Table::read(&own.control).unwrap().state().unwrap();
        own.index.step(&state, &mut said).await;
        own.group(GROUP).is_some()
    })
    .await;
    assert_eq!(own.group(GROUP).unwrap().disk().device(), disks[1].disk().device());
    stop(own, disks).await;
}
