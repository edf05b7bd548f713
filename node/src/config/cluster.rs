//! The section of other nodes.

use std::collections::HashSet;
use std::net::SocketAddr;

use serde::Deserialize;
use toml::Spanned;

use super::Listen;
use super::located::{ConfigError, Source};
use super::value::{Address, Count, NodeName, Span};

/// `[cluster]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Where other nodes reach this one: UDP for calls over QUIC, TCP for calls over TCP and for machines that join.
    pub listen: Address,
    /// How others reach it when that is not `listen` (a wildcard, address translation).
    pub advertise: Option<Spanned<Address>>,
    /// What calls go over.
    #[serde(default)]
    pub transport: Carrier,
    /// The node's failure domain: a room, a rack, a power feed. Copies of an object are spread over zones.
    #[serde(default)]
    pub zone: u16,
    /// A container with more lines than this in one index group is split: the last of them go to a group of their own. The same on
    /// all nodes.
    #[serde(default)]
    pub split_lines: Count<100, 1_000_000_000, 4_000_000>,
    /// What was split off is given back when no line has been in it for so long.
    #[serde(default)]
    pub join_after: Span<1000, 31_536_000_000, 3_600_000>,
    /// `[[cluster.peer]]`: other nodes, while nothing is known of the cluster. A node that joined knows the one that let it in.
    #[serde(default, rename = "peer")]
    pub peers: Vec<Peer>,
}

impl Cluster {
    /// How others reach the node that has bound `bound`, if that is known.
    #[must_use]
    pub fn reached_at(&self, bound: SocketAddr) -> Option<SocketAddr> {
        match &self.advertise {
            Some(advertised) => Some(advertised.get_ref().0),
            None => Some(bound).filter(|bound| !bound.ip().is_unspecified()),
        }
    }

    /// Checks what the types do not.
    pub(super) fn validate(&self, source: &Source<'_>, listen: &Listen) -> Result<(), ConfigError> {
        let others = [listen.object, listen.identity, listen.volume, listen.admin];
        if self.listen.0.port() != 0 && others.contains(&self.listen) {
            let at = source.text.find("[cluster]").unwrap_or(0);
            let problem =
                format!("found {} for the cluster and for clients; allowed: a port for each", self.listen.0);
            return Err(source.error(at..at, problem));
        }
        let reachable = |address: &Spanned<Address>| {
            let found = address.get_ref().0;
            if found.ip().is_unspecified() || found.port() == 0 {
                let problem =
                    format!("found {found}; allowed: an address and port that other machines reach");
                return Err(source.error(address.span(), problem));
            }
            Ok(())
        };
        self.advertise.as_ref().map_or(Ok(()), reachable)?;
        let (mut nodes, mut addresses) = (HashSet::new(), HashSet::new());
        for peer in &self.peers {
            reachable(&peer.address)?;
            if !nodes.insert(peer.node.get_ref().0) {
                let problem = format!("found {} twice; allowed: once", peer.node.get_ref().0);
                return Err(source.error(peer.node.span(), problem));
            }
            if !addresses.insert(peer.address.get_ref().0) {
                let problem =
                    format!("found {} twice; allowed: an address for each node", peer.address.get_ref().0);
                return Err(source.error(peer.address.span(), problem));
            }
        }
        Ok(())
    }
}

/// What calls between nodes go over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carrier {
    /// QUIC over UDP.
    #[default]
    Quic,
    /// TLS over TCP, for networks that do not carry UDP well.
    Tcp,
}

impl std::fmt::Display for Carrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        })
    }
}

/// `[[cluster.peer]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its identity.
    pub node: Spanned<NodeName>,
    /// Where it is reached.
    pub address: Spanned<Address>,
}
