//! Settings as they are meant: types that can't hold nonsense.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use crate::{audit, ciphering, hsm, keyring, lifecycle, replication, rpc, store, telemetry};
use kms_core::{BlockCount, audit::NodeId, profile::Profiles, site::peer::PeerKind};

/// All settings, checked. What only the outside can tell (is the module there, does the certificate
/// match its key) is for [`super::check`] and for the parts themselves.
#[derive(Debug)]
pub struct Config {
    /// This site.
    pub site: Site,
    /// The token.
    pub hsm: hsm::Config,
    /// The database.
    pub store: Store,
    /// Keys in memory.
    pub keyring: keyring::Config,
    /// Rules of imports.
    pub import: lifecycle::Config,
    /// Campaigns that begin by themselves.
    pub schedules: Vec<lifecycle::Schedule>,
    /// The signers whose sealed import files are taken.
    pub import_signers: lifecycle::Signers,
    /// The other site; `None`: these keys exist at this site only.
    pub peer: Option<Peer>,
    /// The other nodes of this site, where they are to be asked for what they hold; this one may be among them.
    pub nodes: BTreeMap<NodeId, rpc::PeerConfig>,
    /// How the makes of meters differ.
    pub profiles: Arc<Profiles>,
    /// Receive floors.
    pub floors: ciphering::FloorsConfig,
    /// The record of what is done.
    pub audit: audit::Config,
    /// The wire.
    pub rpc: rpc::Config,
    /// The log.
    pub log: telemetry::Config,
}

/// This site and its place in the key domain.
#[derive(Clone, Debug)]
pub struct Site {
    /// The operator's name for it.
    pub name: String,
    /// Where this service keeps what is its own.
    pub data_dir: PathBuf,
    /// Said in so many words: no second site holds these keys.
    pub single_site: bool,
    /// For `init` only: it can't change afterwards.
    pub blocks: BlockCount,
    /// For `init` only: whether this is the site of even epochs.
    pub even: bool,
    /// It follows for ever, and is never promoted.
    pub read_only: bool,
}

impl Site {
    /// The kind of site that it is to be.
    pub const fn kind(&self) -> PeerKind {
        PeerKind::of_site(self.even, self.read_only)
    }
}

/// The other site.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The way to it.
    pub connection: rpc::PeerConfig,
    /// The way to the other one of the two sites that may write, for a site that is read-only.
    pub second: Option<rpc::PeerConfig>,
    /// What goes on between the two.
    pub replication: replication::Config,
}

/// The database, SQLite or PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// One file, in this process.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
    /// A server, which several of these processes may share.
    Postgresql(store::postgres::Config),
}
