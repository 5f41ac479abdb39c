//! The sections of the other nodes of this site.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use super::{
    error::ConfigError,
    peer_section::authority,
    values::{absolute, millis, text},
};
use crate::rpc::PeerConfig;
use kms_core::audit::NodeId;

/// The most nodes of one site.
const NODES_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeSection {
    node: String,
    endpoint: String,
    ca: PathBuf,
    server_name: Option<String>,
    #[serde(default = "connect_timeout_ms")]
    connect_timeout_ms: u64,
}

fn connect_timeout_ms() -> u64 {
    1_000
}

impl NodeSection {
    /// The ways to all of them.
    pub(super) fn all(sections: Vec<Self>) -> Result<BTreeMap<NodeId, PeerConfig>, ConfigError> {
        if sections.len() > NODES_MAX {
            return Err(ConfigError::Nodes { found: sections.len(), most: NODES_MAX });
        }
        let mut nodes = BTreeMap::new();
        for section in sections {
            let (node, way) = section.checked()?;
            if nodes.insert(node, way).is_some() {
                return Err(ConfigError::NodeTwice(node));
            }
        }
        Ok(nodes)
    }

    fn checked(self) -> Result<(NodeId, PeerConfig), ConfigError> {
        let Self { node, endpoint, ca, server_name, connect_timeout_ms } = self;
        let bytes = hex::decode(&node).ok().and_then(|bytes| bytes.try_into().ok());
        let node = bytes.map(NodeId).ok_or(ConfigError::NodeName(node))?;
        let authority = authority(endpoint).map_err(ConfigError::NodeEndpoint)?;
        let timeout = ("nodes.connect_timeout_ms", connect_timeout_ms, 100..=60_000);
        let way = PeerConfig {
            endpoints: vec![authority],
            ca: absolute("nodes.ca", ca)?,
            server_name: server_name
                .map(|name| text("nodes.server_name", name, 253))
                .transpose()?,
            connect_timeout: millis(timeout.0, timeout.1, timeout.2)?,
        };
        Ok((node, way))
    }
}
