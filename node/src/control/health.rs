//! Which of its disks do not serve, a node tells the cluster: those that were missing when it started, and those that failed since.
//!
//! It is told so that nothing new is given to them: no seat of an index group, no member of a volume. They keep what they have, for most
//! come back; an operator takes a lost one out.
//!
//! Invariant: a node says that of its own disks alone, and says it only when it is news; nothing else of a disk's row changes by it.

use std::sync::Arc;
use std::time::Duration;

use quarry_engine::disk::DiskHandle;
use quarry_engine::disk::format::record::DeviceId;
use quarry_engine::net::{NodeId, Request, Response, Transport, Wish};
use tokio::sync::watch;

use super::state::{Device, State, Wanted, device_key, prefix};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// How long it may take to write it down.
const WITHIN: Duration = Duration::from_secs(5);

/// Tells for as long as it is polled. `disks`: those that opened.
pub(super) async fn tell(
    net: Arc<dyn Transport>,
    state: watch::Receiver<Arc<State>>,
    disks: Vec<DiskHandle>,
) {
    let serves =
        |device: DeviceId| disks.iter().any(|disk| disk.device() == device && disk.failure().is_none());
    let mut pause = tokio::time::interval(PAUSE);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pause.tick().await;
        let seen = Arc::clone(&state.borrow());
        for (device, row) in news(&seen, net.local(), serves) {
            let away = row.away;
            let wish = Wish::Row { key: device_key(device), value: Some(row.encode()), fresh: false };
            match net.call(net.local(), Request::Wish(wish), WITHIN).await {
                Ok(Response::Done) => tracing::info!(%device, away, "told the cluster how a disk is"),
                other => tracing::debug!(?other, %device, "tell the cluster how a disk is"),
            }
        }
    }
}

/// Rows of a node's disks that are to be others.
fn news(state: &State, local: NodeId, serves: impl Fn(DeviceId) -> bool) -> Vec<(DeviceId, Device)> {
    let own = state.devices.iter().filter(|(_, row)| row.node == local && row.wanted != Wanted::Out);
    let other = own.filter(|(device, row)| row.away == serves(**device));
    other.map(|(device, row)| (*device, Device { away: !row.away, ..row.clone() })).collect()
}

/// Whether a row with this key may be written as a node wishes; `None`: it is about something else.
pub(super) fn may_write(state: &State, key: &[u8], value: Option<&[u8]>) -> Option<Result<(), String>> {
    let id = key.strip_prefix(prefix().as_slice())?.strip_prefix(b"d")?;
    let known = id.try_into().ok().and_then(|id| state.devices.get(&DeviceId(id)));
    let judge = || {
        let known = known.ok_or("the cluster knows no such disk")?;
        let row = value.ok_or("a disk is not forgotten")?;
        let row = Device::decode(row).map_err(|bad| bad.to_string())?;
        if (Device { away: known.away, ..row }) == *known {
            Ok(())
        } else {
            Err("the disk's row changed meanwhile".to_owned())
        }
    };
    Some(judge())
}

#[cfg(test)]
mod tests {
    use quarry_ring::Class;

    use super::*;

    fn state() -> State {
        let mut state = State::default();
        for (id, node, wanted) in
            [(1, 1, Wanted::Share), (2, 1, Wanted::Empty), (3, 1, Wanted::Out), (4, 2, Wanted::Share)]
        {
            let (node, bytes, region, zone, class) = (NodeId([node; 16]), 9, 0, 0, Class::Hdd);
            let device = Device { node, bytes, region, zone, class, wanted, away: false };
            state.devices.insert(DeviceId([id; 16]), device);
        }
        state
    }

    fn told(state: &State, serve: &[u8]) -> Vec<(u8, bool)> {
        let serves = |device: DeviceId| serve.contains(&device.0[0]);
        let news = news(state, NodeId([1; 16]), serves);
        news.into_iter().map(|(device, row)| (device.0[0], row.away)).collect()
    }

    #[test]
    fn a_node_says_of_its_own_disks_what_is_news() {
        let mut state = state();
        assert!(told(&state, &[1, 2]).is_empty(), "neither one that is out nor another node's is told of");
        assert_eq!(told(&state, &[2]), [(1, true)]);
        state.devices.get_mut(&DeviceId([1; 16])).unwrap().away = true;
        assert!(told(&state, &[2]).is_empty());
        assert_eq!(told(&state, &[1]), [(1, false), (2, true)]);
    }

    #[test]
    fn only_whether_it_is_away_changes_by_the_word_of_a_node() {
        let state = state();
        let (id, known) = (DeviceId([1; 16]), state.devices[&DeviceId([1; 16])].clone());
        let judged = |row: &Device| may_write(&state, &device_key(id), Some(&row.encode())).unwrap();
        assert_eq!(judged(&known), Ok(()));
        assert_eq!(judged(&Device { away: true, ..known }), Ok(()));
        for other in [
            Device { wanted: Wanted::Out, ..known },
            Device { node: NodeId([2; 16]), ..known },
            Device { bytes: 1, ..known },
        ] {
            assert!(judged(&other).is_err(), "{other:?}");
        }
        assert!(may_write(&state, &device_key(id), None).unwrap().is_err());
        let none = may_write(&state, &device_key(DeviceId([9; 16])), Some(&known.encode()));
        assert!(none.unwrap().is_err(), "a disk is entered by its announcement");
        assert!(may_write(&state, b"ks", Some(&[1])).is_none());
    }
}
