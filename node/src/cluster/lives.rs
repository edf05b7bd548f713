//! One life of a node at a time: how a copied data directory is found out by nodes that are neither the original nor the copy.
//!
//! A process draws a number when it starts and names it in every handshake. While connections of one life of a node are open,
//! another life waits; those of a process that has ended end soon, by its farewell, a reset or their silence. If they do not,
//! there are two processes with one identity.
//!
//! Invariant: at no time are two lives of one node served.
//! Invariant: a restarted node waits no longer than the silence of its former life.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quarry_engine::net::limits::{KEEP_ALIVE, SILENCE};
use quarry_engine::net::{NodeId, Refusal};
use tokio::sync::watch;
use tokio::time::timeout;

/// What a life is called in a handshake, before this.
const DOMAIN: &str = ".node.quarry";

/// How long another life waits. Tests do not wait for silence: their former lives are reset.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 15 });

const _: () = assert!(cfg!(test) || PATIENCE.as_secs() > SILENCE.as_secs() + KEEP_ALIVE.as_secs());

/// Of a process: drawn when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life(pub(super) u64);

impl Life {
    /// As the name of a server in a handshake: what a client says there is its own life.
    pub(super) fn name(self) -> String {
        format!("{:016x}{DOMAIN}", self.0)
    }

    /// From such a name.
    pub(super) fn of_name(name: Option<&str>) -> Option<Self> {
        let name = name?;
        let digits = name.strip_suffix(DOMAIN)?;
        u64::from_str_radix(digits, 16).ok().map(Self).filter(|life| life.name() == name)
    }
}

/// The lives that are being served.
#[derive(Debug)]
pub(super) struct Lives {
    served: Mutex<HashMap<NodeId, Served>>,
    ended: watch::Sender<u64>,
}

#[derive(Debug)]
struct Served {
    life: Life,
    connections: usize,
    address: SocketAddr,
}

/// A connection of a life that is being served.
#[derive(Debug)]
pub(super) struct Alive {
    lives: Arc<Lives>,
    node: NodeId,
}

impl Default for Lives {
    fn default() -> Self {
        Self { served: Mutex::default(), ended: watch::Sender::new(0) }
    }
}

impl Lives {
    fn served(&self) -> MutexGuard<'_, HashMap<NodeId, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other life of the node has a connection. Who waits in vain is refused, and that is logged.
    pub(super) async fn enter(
        self: &Arc<Self>,
        node: NodeId,
        life: Life,
        address: SocketAddr,
    ) -> Result<Alive, Refusal> {
        let mut ended = self.ended.subscribe();
        let waiting = async {
            loop {
                if let Some(alive) = self.try_enter(node, life, address) {
                    return Some(alive);
                }
                ended.changed().await.ok()?;
            }
        };
        if let Ok(Some(alive)) = timeout(PATIENCE, waiting).await {
            return Ok(alive);
        }
        let why = Refusal::Twice;
        let other = self.served().get(&node).map(|served| served.address.to_string()).unwrap_or_default();
        tracing::warn!(peer = %address, %other, %node, "refuse node: {why}");
        Err(why)
    }

    fn try_enter(self: &Arc<Self>, node: NodeId, life: Life, address: SocketAddr) -> Option<Alive> {
        let mut served = self.served();
        let entry = served.entry(node).or_insert(Served { life, connections: 0, address });
        if entry.life != life && entry.connections > 0 {
            return None;
        }
        *entry = Served { life, connections: entry.connections + 1, address };
        Some(Alive { lives: Arc::clone(self), node })
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        let mut served = self.lives.served();
        if let Some(entry) = served.get_mut(&self.node) {
            entry.connections = entry.connections.saturating_sub(1);
            if entry.connections == 0 {
                served.remove(&self.node);
            }
        }
        drop(served);
        self.lives.ended.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId([1; 16]);

    #[test]
    fn a_life_has_one_name() {
        for life in [Life(0), Life(0xabc), Life(u64::MAX)] {
            assert_eq!(Life::of_name(Some(&life.name())), Some(life));
        }
        for bad in [
            "node.quarry",
            "1.node.quarry",
            "+000000000000001.node.quarry",
            "zzzzzzzzzzzzzzzz.node.quarry",
            "",
        ] {
            assert_eq!(Life::of_name(Some(bad)), None, "{bad}");
        }
        assert_eq!(Life::of_name(None), None);
    }

    #[tokio::test]
    async fn another_life_waits_for_the_last_connection_of_the_former() {
        let lives = Arc::new(Lives::default());
        let address = "192.0.2.1:7000".parse().unwrap();
        let one = lives.enter(NODE, Life(1), address).await.unwrap();
        let two = lives.enter(NODE, Life(1), address).await.unwrap();
        let waiting = tokio::spawn({
            let lives = lives.clone();
            async move { lives.enter(NODE, Life(2), address).await }
        });
        // Other nodes are not concerned.
        let _other = lives.enter(NodeId([2; 16]), Life(3), address).await.unwrap();
        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(two);
        let entered = waiting.await.unwrap().unwrap();
        // Now the first is the other one.
        assert_eq!(lives.enter(NODE, Life(1), address).await.map(drop), Err(Refusal::Twice));
        drop(entered);
        assert!(lives.enter(NODE, Life(1), address).await.is_ok());
        assert_eq!(lives.served().len(), 1, "who has gone is forgotten");
    }
}
