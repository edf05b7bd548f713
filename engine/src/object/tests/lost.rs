//! Objects of which no device has anything any more: they can be replaced and removed.

use std::sync::Arc;

use super::cluster::{Cluster, Shape};
use super::rig::{START, all, any, bytes, path};
use super::shelf::Shelf;
use crate::clock::Clock;
use crate::object::names::Names;
use crate::object::{Condition, Deleted, Error, IndexPolicy};

const MIB: usize = 1 << 20;

fn cluster(shape: Shape, index: IndexPolicy) -> Cluster {
    let shelf = Shelf::new(Clock::new(Box::new(|| (START - 3600) * 1_000_000)));
    let mut cluster = Cluster::with_names(shape, 61, Some(Arc::clone(&shelf) as Arc<dyn Names>));
    assert!(shelf.timer.set(cluster.time().timer).is_ok());
    let store = cluster.store(0);
    let edit = store.post_container_with("AUTH_a", "c", Some(index), |found| Ok(found.headers.clone()));
    cluster.run(edit).unwrap();
    cluster
}

/// Puts an object, and takes it off every device.
fn lose(cluster: &mut Cluster, name: &str, body: usize) {
    cluster.put(0, name, &bytes(1, body));
    cluster.settle();
    let key = cluster.key(0, name).unwrap();
    for node in 0..cluster.len() {
        cluster.forget(node, key);
    }
    let read = cluster.try_open(1, name);
    assert!(matches!(read, Err(Error::Unavailable { .. })), "{read:?}");
}

/// All devices answered that they had nothing, and the line said that there was something: GET, DELETE and, where the devices decide, PUT
/// were 503 for ever, and the container could not be deleted. One disk that is lost does that to a policy of one replica.
#[test]
fn an_object_whose_copies_are_all_lost_can_be_removed_and_replaced() {
    let coded = Shape::coded(5, 3, 2);
    for (shape, index, size) in [
        (Shape::new(3, 3), IndexPolicy::Strict, 1000),
        (Shape::new(3, 1), IndexPolicy::Strict, 2 * MIB),
        (Shape::new(3, 3), IndexPolicy::Eventual, 1000),
        (Shape::new(3, 1), IndexPolicy::Eventual, 2 * MIB),
        (coded, IndexPolicy::Strict, 1000),
        (coded, IndexPolicy::Strict, 2 * MIB),
    ] {
        let mut cluster = cluster(shape, index);
        lose(&mut cluster, "replaced", size);
        cluster.put(2, "replaced", &bytes(2, size));
        assert!(cluster.try_open(1, "replaced").unwrap() == Some(bytes(2, size)), "{shape:?} {index:?}");
        assert_eq!(cluster.try_delete(0, "replaced").unwrap(), Deleted::Gone);
        lose(&mut cluster, "removed", size);
        // What is there cannot be compared with a condition.
        let store = cluster.store(1);
        let condition = Condition { if_match: any(), if_none_match: None };
        let judged = cluster.run(async move { store.delete_object(&path("removed"), &condition).await });
        assert!(!matches!(judged, Ok(Deleted::Absent)), "{shape:?} {index:?}: {judged:?}");
        if judged.is_err() {
            assert_eq!(cluster.try_delete(1, "removed").unwrap(), Deleted::Gone, "{shape:?} {index:?}");
        }
        assert_eq!(cluster.try_delete(2, "removed").unwrap(), Deleted::Absent);
        assert_eq!(cluster.try_open(0, "removed").unwrap(), None);
        let store = cluster.store(0);
        assert!(cluster.run(store.list_objects("AUTH_a", "c", &all())).unwrap().is_empty());
        assert_eq!(cluster.run(store.delete_container("AUTH_a", "c")).unwrap(), Deleted::Gone);
    }
}
