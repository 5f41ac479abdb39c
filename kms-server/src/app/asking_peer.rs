//! What the other site remembers of this site's counters, asked while no server of this site runs.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::fault::Fault;
use crate::{
    config::Peer as PeerSettings,
    replication::{Cards, MarksAsked, Peer as _, PeerError},
    rpc::{PeerClient, TlsConfig},
    store::ReadStore,
};
use kms_core::{
    BlockNo, DomainRecord, Epoch, counters::allocator::Witnessed, site::kind::PeerKind,
};

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
        known: Epoch,
        /// The epoch since which its database has lost nothing.
        since: Epoch,
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
        let Some(peer) = peer else { return nobody(store.as_ref()).await };
        let cards = Cards::new(store, domain, Arc::default());
        let (card, client) = (cards.now().await?, PeerClient::new(peer.connection, tls));
        // Its marks; then whether it can say anything at all: its own database may have been put back, or be a new one.
        let asked = [None, Some(BlockNo(0))].map(|lines_of| {
            client.exchange_marks(card.clone(), MarksAsked { marks: Vec::new(), lines_of })
        });
        let [marks, since] = asked;
        let both = timeout(PATIENCE, async { Ok::<_, PeerError>((marks.await?, since.await?)) });
        let (said, able) = match both.await {
            Ok(Ok(said)) => said,
            Ok(Err(error)) => return Ok(PeersMemory::Silent(error.to_string())),
            Err(_) => {
                let late = format!("it did not answer within {} s", PATIENCE.as_secs());
                return Ok(PeersMemory::Silent(late));
            }
        };
        if !cards.is_of_domain(&said.card) || said.card.site != peer.replication.peer {
            let another = format!("site {:?} answers, which is not the peer", said.card.site);
            return Ok(PeersMemory::Silent(another));
        }
        let Some(since) = able.remembers_since else {
            return Ok(PeersMemory::Silent("it does not say since when it remembers".to_owned()));
        };
        Ok(PeersMemory::Answer { known: said.card.epoch, since, marks: said.marks })
    }
}

/// No other site is named: nor was there one, or it is asked.
async fn nobody(store: &dyn ReadStore) -> Result<PeersMemory, Fault> {
    let peers = store.peers().await?;
    let other = peers.iter().find(|it| it.peer.kind != PeerKind::Replica);
    Ok(other.map_or(PeersMemory::NoPeer, |it| {
        let site = &it.peer.site;
        PeersMemory::Silent(format!(
            "this site is enrolled with site {site}, and [peer] names none"
        ))
    }))
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
            // Nothing begins.
            _ if blocks.is_empty() => return Ok(()),
            Self::Answer { marks, .. } if marks.iter().any(had_begun) => REMEMBERED.to_owned(),
            Self::Answer { known, since, .. } if *since <= epoch && epoch <= *known => {
                return Ok(());
            }
            Self::Answer { known, since, .. } => unsure(&format!(
                "it knows of epochs {} to {}, and this site writes in epoch {}",
                since.0, known.0, epoch.0
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
            let answer = PeersMemory::Answer { known: Epoch(4), since: Epoch(2), marks };
            answer.check(&[BlockNo(1), BlockNo(block)], Epoch(4)).is_err()
        };
        assert!(refuses(mark(4, 1_024), 3) && refuses(mark(6, 1), 3));
        assert!(!refuses(mark(2, 1_024), 3), "of an epoch before");
        assert!(!refuses(mark(4, 0), 3), "nothing was reserved");
        assert!(!refuses(mark(4, 1_024), 2), "this block has its mark");
    }
    #[test]
    fn where_the_other_site_cannot_say_no_counter_begins() {
        let of = |since, known| PeersMemory::Answer {
            known: Epoch(known),
            since: Epoch(since),
            marks: Vec::new(),
        };
        let (behind, rebuilt) = (of(2, 2), of(5, 6));
        for memory in [behind, rebuilt, PeersMemory::Silent("no way there".to_owned())] {
            let Err(Fault::Store(sentence)) = memory.check(&[BlockNo(1)], Epoch(4)) else {
                panic!("{memory:?}");
            };
            assert!(sentence.to_string().contains("--above-epoch"), "{sentence}");
            assert!(memory.check(&[], Epoch(4)).is_ok(), "nothing begins");
        }
        assert!(of(2, 4).check(&[BlockNo(1)], Epoch(4)).is_ok());
        assert!(PeersMemory::NoPeer.check(&[BlockNo(1)], Epoch(4)).is_ok());
    }
}
