//! Before a reservation over a mark that this node did not write just now, somebody outside the database says whether more
//! was reserved: a mark is authentic for ever, and who writes to the database can put an older one back.

use super::{
    blocks::{BlockCounters, Shared},
    counters::{Counters, Parts},
    refused::NotSent,
};
use kms_core::{
    BlockNo, Epoch,
    counters::allocator::{Mark, NotReserved, Witnessed},
    moment::Moment,
    ports::WitnessSaid,
};

/// After the other site did not answer, nobody asks it of a mark for so long.
const PAUSE: std::time::Duration = std::time::Duration::from_secs(5);

impl Counters {
    /// Whether the other site is to be asked of a mark: where other servers may have raised it since, or this one does not
    /// remember that it wrote it. A single site has nobody to ask.
    pub(super) fn is_doubtful(&self, counters: &BlockCounters, found: &Mark) -> bool {
        let Parts { single_site, has_peer, has_others, .. } = self.parts;
        has_peer && !single_site && (has_others || !counters.allocator.is_own(found))
    }

    /// Asks the other site whether it knows of more than this mark says. No lock is held while it is asked.
    pub(super) async fn confirm(
        &self,
        shared: &Shared,
        mark: Mark,
        epoch: Epoch,
    ) -> Result<(), NotSent> {
        let said = self.ask_of(mark.block, Witnessed::from(&mark)).await;
        let mut counters = shared.lock().await;
        match said {
            Some(said) => {
                let of_block = said.marks.iter().filter(|(block, _)| *block == mark.block);
                counters.allocator.witness(of_block.map(|(_, mark)| *mark).max());
            }
            None if self.may_go_on(&counters, &mark, epoch) => {}
            None => return Err(NotReserved::NotWitnessed.into()),
        }
        counters.confirmed = Some(mark);
        Ok(())
    }

    /// Whether this server's own memory suffices while the other site is away: it is the only one of its site; or the mark is
    /// the last that it wrote; or the epoch began while it ran, since the other site is lost.
    fn may_go_on(&self, counters: &BlockCounters, mark: &Mark, epoch: Epoch) -> bool {
        let Parts { has_others, ref counting, .. } = self.parts;
        !has_others || counters.allocator.is_own(mark) || counting.began_here(epoch)
    }

    /// Tells the other site of a mark before it is used. One that is away is told later: a partition stops nothing.
    pub(super) async fn tell(&self, shared: &Shared, block: BlockNo, mark: Witnessed) {
        let _ = self.ask_of(block, mark).await;
        let mut counters = shared.lock().await;
        counters.untold = counters.untold.filter(|untold| *untold != mark);
    }

    async fn ask_of(&self, block: BlockNo, mark: Witnessed) -> Option<WitnessSaid> {
        let Parts { witness, clock, .. } = &self.parts;
        if clock.now() < self.witnessing.not_before() {
            return None;
        }
        let said = witness.ask(vec![(block, mark)], None).await;
        let until: Moment = clock.now() + PAUSE;
        self.witnessing.is_away_until(said.is_none().then_some(until));
        said
    }
}
