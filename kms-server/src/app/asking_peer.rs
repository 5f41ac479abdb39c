//! What the other site remembers of this site's counters, asked while no server of this site runs.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::fault::Fault;
use crate::{
    config::Peer as PeerSettings,
    replication::{Cards, MarksAsked, Peer as _},
    rpc::{PeerClient, TlsConfig},
    store::ReadStore,
};
use kms_core::{BlockNo, DomainRecord, Epoch, counters::allocator::Witnessed};

/// The longest wait for the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Said where the other site remembers counters of blocks that have no mark.
const REMEMBERED: &str = "the other site remembers counters of blocks without a mark: somebody took the marks away; take a higher \
                          epoch (`ami-tool site promote --above-epoch N`)";

/// The memory of the other site.
pub(super) enum PeersMemory {
    /// There is no other site, by configuration.
    NoPeer,
    /// It did not answer, for this reason.
    Silent(String),
    /// Its marks of this site's counters. Not verified: they can only keep counters back.
    Marks(Vec<(BlockNo, Witnessed)>),
}

/// The way to the other site, and what is shown there.
pub(super) struct Asking {
    pub(super) peer: Option<PeerSettings>,
    pub(super) tls: TlsConfig,
}

impl Asking {
    /// Asks the other site, where one is configured.
    pub(super) async fn ask(
        self,
        store: Arc<dyn ReadStore>,
        domain: &DomainRecord,
    ) -> Result<PeersMemory, Fault> {
        let Self { peer, tls } = self;
        let Some(peer) = peer else { return Ok(PeersMemory::NoPeer) };
        let cards = Cards::new(store, domain, Arc::default());
        let (card, client) = (cards.now().await?, PeerClient::new(peer.connection, tls));
        let asked = MarksAsked { marks: Vec::new(), lines_of: None };
        let said = match timeout(PATIENCE, client.exchange_marks(card, asked)).await {
            Ok(Ok(said)) => said,
            Ok(Err(error)) => return Ok(PeersMemory::Silent(error.to_string())),
            Err(late) => return Ok(PeersMemory::Silent(late.to_string())),
        };
        if !cards.is_of_domain(&said.card) || said.card.site != peer.replication.peer {
            let another = format!("site {:?} answers, which is not the peer", said.card.site);
            return Ok(PeersMemory::Silent(another));
        }
        Ok(PeersMemory::Marks(said.marks))
    }
}

impl PeersMemory {
    /// Refuses to begin the counters of one of these blocks in `epoch`, if they had begun.
    pub(super) fn check(&self, blocks: &[BlockNo], epoch: Epoch) -> Result<(), Fault> {
        let Self::Marks(marks) = self else { return Ok(()) };
        let had_begun = |(block, mark): &(BlockNo, Witnessed)| {
            mark.epoch >= epoch && mark.end > 0 && blocks.contains(block)
        };
        match marks.iter().any(had_begun) {
            true => Err(Fault::Store(REMEMBERED.into())),
            false => Ok(()),
        }
    }

    /// As a line of the report.
    pub(super) fn said(&self) -> String {
        match self {
            Self::NoPeer => "none".to_owned(),
            Self::Silent(why) => format!("not asked, it did not answer: {why}"),
            Self::Marks(_) => "remembers none of these counters".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_the_other_site_remembers_in_this_epoch_do_not_begin_again() {
        let mark = |epoch, end| vec![(BlockNo(3), Witnessed { epoch: Epoch(epoch), end })];
        let refuses = |marks, block| {
            PeersMemory::Marks(marks).check(&[BlockNo(1), BlockNo(block)], Epoch(4)).is_err()
        };
        assert!(refuses(mark(4, 1_024), 3) && refuses(mark(6, 1), 3));
        assert!(!refuses(mark(2, 1_024), 3), "of an epoch before");
        assert!(!refuses(mark(4, 0), 3), "nothing was reserved");
        assert!(!refuses(mark(4, 1_024), 2), "this block has its mark");
    }
}
