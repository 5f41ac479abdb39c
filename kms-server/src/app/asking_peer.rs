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
#[derive(Debug)]
pub(super) enum PeersMemory {
    /// There is no other site, by configuration.
    NoPeer,
    /// It did not answer, for this reason.
    Silent(String),
    /// What it says. Not verified: it can only keep counters back.
    Answer {
        /// The highest epoch that it knows of.
        epoch: Epoch,
        /// Its marks of this site's counters.
        marks: Vec<(BlockNo, Witnessed)>,
    },
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
        Ok(PeersMemory::Answer { epoch: said.card.epoch, marks: said.marks })
    }
}

impl PeersMemory {
    /// Refuses to begin the counters of these blocks in `epoch`, if one of them had begun, or if nobody can say: with these
    /// marks the database, and perhaps `data_dir`, has lost what the other site alone remembers.
    pub(super) fn check(&self, blocks: &[BlockNo], epoch: Epoch) -> Result<(), Fault> {
        let had_begun = |(block, mark): &(BlockNo, Witnessed)| {
            mark.epoch >= epoch && mark.end > 0 && blocks.contains(block)
        };
        let sentence = match self {
            Self::NoPeer => return Ok(()),
            Self::Answer { marks, .. } if marks.iter().any(had_begun) => REMEMBERED.to_owned(),
            Self::Answer { epoch: known, .. } if *known >= epoch => return Ok(()),
            Self::Answer { epoch: known, .. } => unsure(&format!(
                "it knows of epoch {} at most, and this site writes in epoch {}",
                known.0, epoch.0
            )),
            Self::Silent(why) => unsure(why),
        };
        Err(Fault::Store(sentence.into()))
    }

    /// As a line of the report.
    pub(super) fn said(&self) -> String {
        match self {
            Self::NoPeer => "none".to_owned(),
            Self::Silent(why) => format!("did not answer: {why}"),
            Self::Answer { .. } => "remembers none of these counters".to_owned(),
        }
    }
}

fn unsure(why: &str) -> String {
    format!(
        "the other site can't say whether counters of blocks without a mark had begun ({why}): start its server and migrate again; \
         where it is lost, or has missed this epoch, take a higher one (`ami-tool site promote --above-epoch N`); where there \
         never was one, leave [peer] out until this is done"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_the_other_site_remembers_in_this_epoch_do_not_begin_again() {
        let mark = |epoch, end| vec![(BlockNo(3), Witnessed { epoch: Epoch(epoch), end })];
        let refuses = |marks, block| {
            let answer = PeersMemory::Answer { epoch: Epoch(4), marks };
            answer.check(&[BlockNo(1), BlockNo(block)], Epoch(4)).is_err()
        };
        assert!(refuses(mark(4, 1_024), 3) && refuses(mark(6, 1), 3));
        assert!(!refuses(mark(2, 1_024), 3), "of an epoch before");
        assert!(!refuses(mark(4, 0), 3), "nothing was reserved");
        assert!(!refuses(mark(4, 1_024), 2), "this block has its mark");
    }
    #[test]
    fn where_the_other_site_cannot_say_no_counter_begins() {
        let behind = PeersMemory::Answer { epoch: Epoch(2), marks: Vec::new() };
        for memory in [behind, PeersMemory::Silent("no way there".to_owned())] {
            let Err(Fault::Store(sentence)) = memory.check(&[BlockNo(1)], Epoch(4)) else {
                panic!("{memory:?}");
            };
            assert!(sentence.to_string().contains("--above-epoch"), "{sentence}");
        }
        assert!(PeersMemory::NoPeer.check(&[BlockNo(1)], Epoch(4)).is_ok());
    }
}
