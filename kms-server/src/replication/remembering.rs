//! What one site remembers of the other one's counters: marks, so that a database that was rolled back shows, and lines that
//! were set aside when a block was taken over.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::timeout;

use super::{
    card::Cards,
    fencing::Fencing,
    grounds::Grounds,
    messages::{MarksAsked, MarksSaid, Remembered},
    not_served::NotServed,
    peer::Peer,
    status::Status,
};
use crate::{
    keyring::Roles,
    store::{
        ReadStore,
        counters::CounterStore,
        sites::{DivergenceAsked, Divergent},
    },
};
use kms_core::{
    BlockCount, BlockNo, Epoch, StoredRecord,
    counters::{allocator::Witnessed, line::SEQUENCES},
    ports::{CounterWitness, WitnessSaid},
    site::restored::RolledBackBy,
};

/// The longest wait for the other site's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Rows that are looked at at once.
const PAGE: u32 = 500;
/// Records of lines in one answer: one for each key of a block, and more than once.
const SET_ASIDE_MAX: usize = 10_000;

/// Remembers the other site's marks, and tells it what was set aside of its lines.
pub struct Remembering {
    store: Arc<dyn ReadStore>,
    marks: Arc<dyn CounterStore>,
    roles: Arc<Roles>,
    cards: Cards,
    blocks: BlockCount,
    set_aside_max: usize,
}

impl Remembering {
    /// In `marks`, with what `grounds` reads; `roles` says since when.
    pub fn new(grounds: &Grounds, marks: Arc<dyn CounterStore>, roles: Arc<Roles>) -> Self {
        let Grounds { store, cards, blocks, .. } = grounds.clone();
        Self { store, marks, roles, cards, blocks, set_aside_max: SET_ASIDE_MAX }
    }

    /// The same, with a lower bound, for a test.
    #[cfg(test)]
    pub(crate) fn with_set_aside_max(self, set_aside_max: usize) -> Self {
        Self { set_aside_max, ..self }
    }

    /// Keeps the marks of `site`, and says which are known of these blocks; of all, if it tells none and asks nothing else.
    pub async fn exchange(&self, site: &str, asked: MarksAsked) -> Result<Remembered, NotServed> {
        let MarksAsked { marks, lines_of } = asked;
        self.check(marks.iter().map(|(block, _)| block).chain(&lines_of))?;
        // What signed records say of epochs bounds it: a mark that nobody could reserve would stop its site for ever.
        let proved = self.roles.standing().epoch;
        let is_theirs = |mark: &Witnessed| {
            !self.roles.owns(mark.epoch) && mark.epoch <= proved && mark.end <= SEQUENCES
        };
        if let Some((block, _)) = marks.iter().find(|(_, mark)| !is_theirs(mark)) {
            return Err(NotServed::Mark(*block));
        }
        self.marks.witness_marks(site, &marks).await?;
        if let Some(block) = lines_of {
            // Whoever was put back himself can't say that nothing was set aside; one that was rebuilt says since when he
            // can.
            let mark = self.store.restore_state().await?.mark();
            if mark.is_some_and(|signed| signed.mark.by != RolledBackBy::Rebuilt) {
                return Err(NotServed::PutBack);
            }
            let set_aside = self.set_aside(block).await?;
            let since = self.roles.remembers_since(site, block).await;
            let since = since.map_err(|error| NotServed::Past(error.to_string()))?;
            let not_met = || NotServed::Past(format!("it has not met site {site} yet"));
            let since = since.ok_or_else(not_met)?;
            return Ok(Remembered { set_aside, since: Some(since), ..Remembered::default() });
        }
        let mut known = self.marks.witnessed_marks(site).await?;
        let told: BTreeSet<BlockNo> = marks.iter().map(|(block, _)| *block).collect();
        known.retain(|(block, _)| told.is_empty() || told.contains(block));
        Ok(Remembered { marks: known, ..Remembered::default() })
    }

    /// A replica remembers nothing, and nobody what is of no block.
    fn check<'a>(&self, mut named: impl Iterator<Item = &'a BlockNo>) -> Result<(), NotServed> {
        if self.cards.is_replica() {
            return Err(NotServed::ReadOnlyReplica);
        }
        match named.find(|block| block.0 >= self.blocks.get()) {
            Some(block) => Err(NotServed::NoBlock(*block)),
            None => Ok(()),
        }
    }

    /// What was set aside of a block and is no meter's: whatever was decided of it, offsets merge by maximum.
    async fn set_aside(&self, block: BlockNo) -> Result<Vec<StoredRecord>, NotServed> {
        let (mut after, mut found) = (None, Vec::new());
        loop {
            let asked =
                DivergenceAsked { after, block: Some(block), undecided: false, limit: PAGE };
            let page = self.store.divergence(asked).await?;
            after = page.last().map(Divergent::name);
            let is_last = page.len() < PAGE as usize;
            found.extend(page.into_iter().map(|one| one.record).filter(|it| !it.key.is_meter()));
            // What is left out would be taken for nothing.
            if found.len() > self.set_aside_max {
                return Err(NotServed::TooMuchAside { block, most: self.set_aside_max });
            }
            if is_last {
                return Ok(found);
            }
        }
    }
}

/// The other site's memory of our marks.
pub struct PeersMemory {
    peer: Arc<dyn Peer>,
    cards: Cards,
    status: Arc<Status>,
    roles: Arc<Roles>,
    fencing: Fencing,
    blocks: BlockCount,
    site: String,
}

impl PeersMemory {
    /// Asked over the way that `grounds` have; `roles` says which epochs are proved.
    pub fn new(grounds: &Grounds, roles: Arc<Roles>) -> Self {
        let Grounds { peer, cards, status, config, blocks, .. } = grounds.clone();
        let fencing = Fencing::new(grounds, Arc::clone(&roles));
        Self { peer, cards, status, roles, fencing, blocks, site: config.peer }
    }

    /// Whether this site can have reserved these counters.
    fn may_be_ours(&self, (block, mark): &(BlockNo, Witnessed), proved: Epoch) -> bool {
        let is_ours = self.roles.owns(mark.epoch) && mark.epoch <= proved;
        block.0 < self.blocks.get() && is_ours && mark.end <= SEQUENCES
    }

    /// Why an answer does not count: it speaks of counters that this site can't have reserved, by signed role records. Who
    /// was put back has forgotten some of them: whoever names a higher epoch shows them first. An answer that is not proved is
    /// none, and not half of one: what it hides may be what was reserved.
    async fn unbelieved(&self, said: &MarksSaid) -> Option<String> {
        if let Err(why) = self.fencing.meet(&said.card).await {
            return Some(why.to_string());
        }
        let (proved, site) = (self.roles.standing().epoch, &self.site);
        let wrong = said.marks.iter().find(|mark| !self.may_be_ours(mark, proved));
        if let Some((block, Witnessed { epoch, end })) = wrong {
            return Some(format!(
                "site {site} says that counters of block {block} up to {end} of epoch {} were reserved here, and no signed \
                 record of this site says so: nothing that it says of counters counts; see who holds its certificate's key",
                epoch.0
            ));
        }
        let since = said.remembers_since.filter(|since| *since > proved)?;
        Some(format!(
            "site {site} says that it remembers counters since epoch {}, which no signed record proves: nothing that it \
             says of counters counts; see who holds its certificate's key",
            since.0
        ))
    }
}

#[async_trait]
impl CounterWitness for PeersMemory {
    async fn ask(
        &self,
        ours: Vec<(BlockNo, Witnessed)>,
        lines_of: Option<BlockNo>,
    ) -> Option<WitnessSaid> {
        let card = self.cards.now().await.ok()?;
        let asked = MarksAsked { marks: ours, lines_of };
        let said = timeout(PATIENCE, self.peer.exchange_marks(card, asked)).await.ok()?;
        let said =
            said.inspect_err(|error| tracing::debug!(%error, "marks are not witnessed")).ok()?;
        // A replica remembers no marks: nobody but the other site is a witness.
        if !self.cards.is_of_domain(&said.card) || said.card.site != self.site {
            return None;
        }
        let unbelieved = self.unbelieved(&said).await;
        self.status.not_a_witness(unbelieved.clone());
        if let Some(why) = unbelieved {
            tracing::warn!("{why}");
            return None;
        }
        let MarksSaid { card, marks, set_aside, remembers_since } = said;
        self.status.heard(&card);
        Some(WitnessSaid { marks, set_aside, remembers_since })
    }
}
