//! Where a server listens: one list, for the configuration, for what is bound, and for what is told.

use std::net::SocketAddr;

use crate::metrics::Port;

/// The ports of a server, in the order of [`Port`], with their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(Vec<(Port, SocketAddr)>);

impl Ports {
    /// One for each of `addresses` that is there.
    pub fn new(addresses: impl IntoIterator<Item = (Port, Option<SocketAddr>)>) -> Self {
        let mut ports: Vec<(Port, SocketAddr)> =
            addresses.into_iter().filter_map(|(port, address)| Some((port, address?))).collect();
        ports.sort();
        Self(ports)
    }

    /// Those that every server has, each with a free port on loopback.
    pub fn any() -> Self {
        let needed = Port::ALL.iter().filter(|port| port.default_address().is_some());
        Self::new(needed.map(|port| (*port, Some(([127, 0, 0, 1], 0).into()))))
    }

    /// Where `port` is, if it is open.
    pub fn get(&self, port: Port) -> Option<SocketAddr> {
        self.iter().find(|(of, _)| *of == port).map(|(_, address)| address)
    }

    /// All that are open.
    pub fn iter(&self) -> impl Iterator<Item = (Port, SocketAddr)> {
        self.0.iter().copied()
    }
}

impl Port {
    /// Its key in `[server]`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Reward => "listen",
            Self::Http => "http",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
            Self::Ui => "ui",
        }
    }

    /// Where it is unless configured; `None` for one that is closed unless configured.
    pub fn default_address(self) -> Option<SocketAddr> {
        match self {
            Self::Reward => Some(([0, 0, 0, 0], 50051).into()),
            Self::Http | Self::Ui => None,
            Self::Admin => Some(([127, 0, 0, 1], 50052).into()),
            Self::Metrics => Some(([127, 0, 0, 1], 9090).into()),
        }
    }

    pub(super) fn purpose(self) -> &'static str {
        match self {
            Self::Reward => "the reward service",
            Self::Http => "the reward service over HTTP",
            Self::Admin => "the admin service",
            Self::Metrics => "metrics and health",
            Self::Ui => "the page for people",
        }
    }
}
