//! What all parts of replication stand on.

use std::sync::Arc;

use super::{card::Cards, config::Config, either::EitherSite, peer::Peer, status::Status};
use crate::store::ReadStore;
use kms_core::{BlockCount, ports::Clock};

/// The two sites, as all parts of replication see them.
#[derive(Clone)]
pub struct Grounds {
    /// The settings.
    pub config: Config,
    /// The other site.
    pub peer: Arc<dyn Peer>,
    /// `peer`, where it is either of two: for a site that follows for ever.
    pub either: Option<Arc<EitherSite>>,
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
