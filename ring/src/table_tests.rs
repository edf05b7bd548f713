use super::*;
use crate::Class;

fn device(id: u32, region: u16, zone: u16, node: u32) -> Device {
    Device { id, region, zone, node, weight: 100, class: Class::Nvme }
}

fn ring(replicas: Replicas, rows: Vec<Vec<u16>>) -> Result<Ring, InvalidRing> {
    Ring::new(1, 1, replicas, (0..4).map(|id| device(id * 10, 0, 0, id)).collect(), rows)
}

#[test]
fn lookup_gives_the_devices_of_each_row() {
    let ring = ring(Replicas::from_hundredths(250), vec![vec![3, 0], vec![1, 2], vec![2]]).unwrap();
    let ids = |partition| ring.lookup(partition).map(|device| device.id).collect::<Vec<_>>();
    assert_eq!(ids(0), [30, 10, 20]);
    assert_eq!(ids(1), [0, 20]);
    assert_eq!(ids(2), [], "a partition that does not exist has no devices");
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let two = Replicas::whole(2);
    let refused = |rows| ring(two, rows).unwrap_err();
    assert_eq!(refused(vec![vec![0, 1]]), InvalidRing::RowLength { row: 1 });
    assert_eq!(refused(vec![vec![0, 1], vec![1]]), InvalidRing::RowLength { row: 1 });
    assert_eq!(refused(vec![vec![0, 1], vec![1, 4]]), InvalidRing::NoSuchDevice { partition: 1 });
    assert_eq!(refused(vec![vec![0, 1], vec![0, 2]]), InvalidRing::SameDevice { partition: 0 });
    assert_eq!(ring(Replicas::from_hundredths(0), vec![]).unwrap_err(), InvalidRing::Replicas(0));
    assert_eq!(ring(Replicas::whole(33), vec![]).unwrap_err(), InvalidRing::Replicas(3300));
    let unordered = vec![device(2, 0, 0, 0), device(2, 0, 0, 1)];
    let refused = Ring::new(1, 0, Replicas::whole(1), unordered, vec![vec![0]]).unwrap_err();
    assert_eq!(refused, InvalidRing::DeviceOrder(2));
    assert_eq!(Ring::new(1, 25, two, vec![], vec![]).unwrap_err(), InvalidRing::PartPower(25));
}
