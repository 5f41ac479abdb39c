//! What all parts of replication stand on.

use std::sync::Arc;

use super::{card::Cards, config::Config, peer::Peer, status::Status};
use crate::store::ReadStore;
use kms_core::{BlockCount, ports::Clock};

/// The two sites, as all parts of replication see them.
#[derive(Clone)]
pub struct Grounds {
    /// The settings.
    pub config: Config,
    /// The other site.
    pub peer: Arc<dyn Peer>,
    /// Our database, to be read.
    pub store: Arc<dyn ReadStore>,
    /// Our cards.
    pub cards: Cards,
    /// The number of the domain's blocks.
    pub blocks: BlockCount,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where it is told how all of it stands.
    pub status: Arc<Status>,
}
