//! The section of the other site.

use std::path::PathBuf;

use serde::Deserialize;

use super::{
    error::ConfigError,
    settings::{Peer, Site},
    values::{absolute, millis, seconds, text, within},
};
use crate::{replication, rpc::PeerConfig};

/// The most endpoints: servers of one site.
const ENDPOINTS_MAX: u64 = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PeerSection {
    site: String,
    endpoints: Vec<String>,
    ca: PathBuf,
    server_name: Option<String>,
    #[serde(default = "connect_timeout_ms")]
    connect_timeout_ms: u64,
    #[serde(default = "heartbeat_ms")]
    heartbeat_ms: u64,
    #[serde(default = "write_wait_ms")]
    write_wait_ms: u64,
    #[serde(default = "compare_interval_s")]
    compare_interval_s: u64,
    #[serde(default = "prove_interval_s")]
    prove_interval_s: u64,
    #[serde(default = "proof_age_max_s")]
    proof_age_max_s: u64,
}

fn connect_timeout_ms() -> u64 {
    3_000
}

fn heartbeat_ms() -> u64 {
    1_000
}

fn write_wait_ms() -> u64 {
    500
}

fn compare_interval_s() -> u64 {
    600
}

fn prove_interval_s() -> u64 {
    60
}

fn proof_age_max_s() -> u64 {
    300
}

/// The other one of the two sites that may write, for a read-only site.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SecondPeerSection {
    site: String,
    endpoints: Vec<String>,
    ca: PathBuf,
    server_name: Option<String>,
    #[serde(default = "connect_timeout_ms")]
    connect_timeout_ms: u64,
}

impl PeerSection {
    /// The settings of the peer of `site`, which is what both say, or neither; with those of the second one that a
    /// read-only site may have.
    pub(super) fn of(
        (first, second): (Option<Self>, Option<SecondPeerSection>),
        site: &Site,
    ) -> Result<Option<Peer>, ConfigError> {
        if second.is_some() && !site.read_only {
            return Err(ConfigError::SecondPeer);
        }
        match first {
            _ if site.single_site && site.read_only => Err(ConfigError::ReadOnlyAlone),
            None if site.single_site => Ok(None),
            None => Err(ConfigError::NoPeer),
            Some(_) if site.single_site => Err(ConfigError::PeerOfSingleSite),
            Some(first) => {
                let first = first.checked(site)?;
                match second {
                    None => Ok(Some(first)),
                    Some(second) => second.beside(first, site).map(Some),
                }
            }
        }
    }

    fn checked(self, ours: &Site) -> Result<Peer, ConfigError> {
        let Self {
            site,
            endpoints,
            ca,
            server_name,
            connect_timeout_ms,
            heartbeat_ms,
            write_wait_ms,
            compare_interval_s,
            prove_interval_s,
            proof_age_max_s,
        } = self;
        let site = text("peer.site", site, 64)?;
        if site == ours.name {
            return Err(ConfigError::PeerIsOurselves(site));
        }
        let prove_interval = seconds("peer.prove_interval_s", prove_interval_s, 1..=86_400)?;
        let proof_age_max = seconds("peer.proof_age_max_s", proof_age_max_s, 1..=604_800)?;
        if proof_age_max < 2 * prove_interval {
            let (age, interval) = (proof_age_max_s, prove_interval_s);
            return Err(ConfigError::ProofAge { age, interval });
        }
        Ok(Peer {
            connection: Way { endpoints, ca, server_name, connect_timeout_ms }.checked()?,
            second: None,
            replication: replication::Config {
                peer: site,
                second: None,
                heartbeat: millis("peer.heartbeat_ms", heartbeat_ms, 100..=10_000)?,
                write_wait: millis("peer.write_wait_ms", write_wait_ms, 0..=10_000)?,
                compare_interval: seconds(
                    "peer.compare_interval_s",
                    compare_interval_s,
                    1..=86_400,
                )?,
                prove_interval,
                proof_age_max,
            },
        })
    }
}

impl SecondPeerSection {
    /// The settings with this site as the second one.
    fn beside(self, first: Peer, ours: &Site) -> Result<Peer, ConfigError> {
        let Self { site, endpoints, ca, server_name, connect_timeout_ms } = self;
        let site = text("second_peer.site", site, 64)?;
        if site == ours.name || site == first.replication.peer {
            return Err(ConfigError::SecondPeerIsFirst(site));
        }
        let way = Way { endpoints, ca, server_name, connect_timeout_ms }.checked()?;
        let replication = replication::Config { second: Some(site), ..first.replication };
        Ok(Peer { second: Some(way), replication, ..first })
    }
}

/// The way to a site, as both sections write it.
struct Way {
    endpoints: Vec<String>,
    ca: PathBuf,
    server_name: Option<String>,
    connect_timeout_ms: u64,
}

impl Way {
    fn checked(self) -> Result<PeerConfig, ConfigError> {
        let Self { endpoints, ca, server_name, connect_timeout_ms } = self;
        if endpoints.is_empty() {
            return Err(ConfigError::Endpoint(String::new()));
        }
        within::<usize>("peer.endpoints (number)", endpoints.len() as u64, 1..=ENDPOINTS_MAX)?;
        let connect_timeout = ("peer.connect_timeout_ms", connect_timeout_ms, 100..=60_000);
        Ok(PeerConfig {
            endpoints: endpoints
                .into_iter()
                .map(authority)
                .collect::<Result<_, _>>()
                .map_err(ConfigError::Endpoint)?,
            ca: absolute("peer.ca", ca)?,
            server_name: server_name.map(|name| text("peer.server_name", name, 253)).transpose()?,
            connect_timeout: millis(connect_timeout.0, connect_timeout.1, connect_timeout.2)?,
        })
    }
}

/// The `host:port` of an endpoint; the endpoint itself if it has none.
pub(super) fn authority(endpoint: String) -> Result<String, String> {
    let authority = endpoint.strip_prefix("https://").map(|rest| rest.trim_end_matches('/'));
    let is_host_and_port = |authority: &&str| {
        authority.rsplit_once(':').is_some_and(|(host, port)| {
            let bare = !host.is_empty() && !host.contains(['/', '@', ' ', '?', '#']);
            bare && port.parse::<u16>().is_ok_and(|port| port != 0)
        })
    };
    match authority.filter(is_host_and_port) {
        Some(authority) => Ok(authority.to_owned()),
        None => Err(endpoint),
    }
}
