//! What a promotion of this site would cost now. It reads, and asks; it changes nothing. It is needed when the other
//! site is gone, so all that is asked of that has its bound.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::{
    grounds::Grounds,
    messages::{HeadsAsked, HeadsSaid},
    proving::Proving,
    status::ReplicationStatus,
    witnessing::Witnessing,
};
use crate::keyring::{NotChanged, Prover, Roles};
use kms_core::{
    BlockNo, Epoch, MeterId, Position, Record, StoredRecord,
    block::BlockMark,
    site::role::{Role, Standing},
};

/// The longest wait for the other site: for its heads, and for each block of it.
const PEER_PATIENCE: Duration = Duration::from_secs(3);
/// Blocks that are named.
const BLOCKS_NAMED_MAX: usize = 256;
/// Blocks that the other site is asked for, to name their meters.
const BLOCKS_FETCHED_MAX: usize = 32;
/// Meters of a block that are named.
const METERS_NAMED_MAX: usize = 100;

/// What is known of the other site's blocks, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownFrom {
    /// It answers.
    Peer,
    /// Its last head table that was witnessed here.
    HeadTable,
    /// Neither.
    Nothing,
}

impl KnownFrom {
    /// As on the wire.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Peer => "PEER",
            Self::HeadTable => "HEAD_TABLE",
            Self::Nothing => "NOTHING",
        }
    }
}

/// A block that a promotion would cost something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CostlyBlock {
    /// The block.
    pub block: BlockNo,
    /// Why, as a sentence.
    pub reason: String,
    /// Changes that this site lacks.
    pub changes: u64,
    /// Meters that it costs, as far as they are known.
    pub meters: Vec<MeterId>,
}

/// What a promotion would cost.
#[derive(Debug)]
pub struct Plan {
    /// This site.
    pub site: String,
    /// Its standing.
    pub standing: Standing,
    /// The epoch that it would write in.
    pub next_epoch: Epoch,
    /// Why it would be refused; `None`: it would not, once `needs_loss` is said.
    pub refusal: Option<NotChanged>,
    /// The other site has not ended its epoch: somebody has to say that it is lost.
    pub needs_loss: bool,
    /// The other site answers.
    pub peer_answers: bool,
    /// And says that it writes.
    pub peer_writes: bool,
    /// What is known of its blocks.
    pub known_from: KnownFrom,
    /// The time of that, milliseconds since 1970.
    pub known_ms: u64,
    /// Blocks in which this site is behind: those that are named.
    pub behind: Vec<CostlyBlock>,
    /// All of them.
    pub behind_count: u32,
    /// Changes that it lacks in all of them.
    pub changes_missing: u64,
    /// Blocks that do not open here, or are refused: those that are named.
    pub unopened: Vec<CostlyBlock>,
    /// All of them.
    pub unopened_count: u32,
    /// Every block was opened for this answer.
    pub were_opened: bool,
    /// Records that this release can't read.
    pub unknown_records: u32,
    /// Its token does not do this, and is not refused for it.
    pub token_unmet: Vec<String>,
    /// The fault of the token.
    pub token_fault: Option<String>,
    /// How replication stands.
    pub replication: ReplicationStatus,
}

/// Plans promotions.
pub struct Planning {
    grounds: Grounds,
    prover: Arc<Prover>,
    roles: Arc<Roles>,
    proving: Arc<Proving>,
    witnessing: Arc<Witnessing>,
}

impl Planning {
    /// Over what is known here.
    pub fn new(
        grounds: Grounds,
        prover: Arc<Prover>,
        roles: Arc<Roles>,
        proving: Arc<Proving>,
        witnessing: Arc<Witnessing>,
    ) -> Self {
        Self { grounds, prover, roles, proving, witnessing }
    }

    /// Whether readiness lets this site be promoted: all of its blocks are proved within the stated age, and its token
    /// passes its check now. A site that wrote last needs no proof of what it wrote itself.
    pub async fn ready(&self) -> Result<(), NotChanged> {
        self.parity()?;
        let standing = self.roles.standing();
        if standing.role == Role::Primary {
            return Ok(());
        }
        if let Err(error) = self.prover.check_token().await {
            return Err(NotChanged::NotReady(format!("its token did not pass its check: {error}")));
        }
        let site = self.grounds.cards.now().await?.site;
        let ready = self.grounds.status.ready(&site, standing.epoch);
        ready.map_err(|why| NotChanged::NotReady(why.to_string()))
    }

    /// The plan; with `open_blocks`, this site's token opens each block for it.
    pub async fn plan(&self, open_blocks: bool) -> Result<Plan, NotChanged> {
        let even = self.parity()?;
        let Grounds { cards, store, .. } = &self.grounds;
        let card = cards.now().await?;
        let standing = self.roles.standing();
        let ours: Marks = marks(store.heads().await?.iter().map(mark));
        let said = self.ask().await;
        let (known_from, known_ms, theirs) = self.known(said.as_ref()).await;
        let mut lacking = behind(&ours, &theirs);
        let behind_count = lacking.len() as u32;
        let changes_missing = lacking.iter().map(|block| block.changes).sum();
        lacking.truncate(BLOCKS_NAMED_MAX);
        if known_from == KnownFrom::Peer {
            self.name_meters(&ours, &mut lacking).await;
        }
        let mut unopened = self.unopened(&card.site, open_blocks).await;
        let unopened_count = unopened.len() as u32;
        unopened.truncate(BLOCKS_NAMED_MAX);
        for costly in &mut unopened {
            self.name_stored(costly).await;
        }
        let unknown = self.prover.unknown_records().await?;
        let replication = self.grounds.status.all();
        Ok(Plan {
            site: card.site,
            standing,
            next_epoch: standing.epoch.next_of(even),
            refusal: self.refusal(&standing, &unknown).await,
            needs_loss: standing.role == Role::Secondary && standing.open,
            peer_answers: said.is_some(),
            peer_writes: said.is_some_and(|said| said.card.writes),
            known_from,
            known_ms,
            behind: lacking,
            behind_count,
            changes_missing,
            unopened,
            unopened_count,
            were_opened: open_blocks,
            token_unmet: card.makeup.map_or_else(Vec::new, |makeup| makeup.unmet),
            unknown_records: u32::try_from(unknown.len()).unwrap_or(u32::MAX),
            token_fault: self.prover.check_token().await.err().map(|error| error.to_string()),
            replication,
        })
    }

    /// Whether this site's epochs are the even ones. A read-only replica has none: it is never promoted.
    fn parity(&self) -> Result<bool, NotChanged> {
        self.roles.parity().ok_or_else(|| kms_core::site::changing::NotChanged::Replica.into())
    }

    async fn refusal<K>(
        &self,
        standing: &Standing,
        unknown: &[(BlockNo, K)],
    ) -> Option<NotChanged> {
        if standing.writes() {
            let writes = kms_core::site::changing::NotChanged::Writes(standing.epoch);
            return Some(writes.into());
        }
        if let Some((first, _)) = unknown.first() {
            return Some(NotChanged::UnknownRecords { count: unknown.len(), first: *first });
        }
        if let Err(error) = self.ready().await {
            return Some(error);
        }
        // Last: all else is so once somebody names an epoch.
        let mark = self.roles.restore_mark().await.ok()??;
        Some(NotChanged::RolledBack { from: mark.from, epoch: mark.epoch })
    }

    /// The other site's heads, if it answers.
    async fn ask(&self) -> Option<HeadsSaid> {
        let Grounds { peer, cards, config, status, .. } = &self.grounds;
        let asked = peer.list_heads(cards.now().await.ok()?, HeadsAsked::default());
        let said = timeout(PEER_PATIENCE, asked).await.ok()?.ok()?;
        if said.card.site != config.peer || !cards.is_of_domain(&said.card) {
            return None;
        }
        status.heard(&said.card);
        Some(said)
    }

    async fn known(&self, said: Option<&HeadsSaid>) -> (KnownFrom, u64, Marks) {
        if let Some(said) = said {
            let now_ms = self.grounds.clock.unix_ms();
            return (KnownFrom::Peer, now_ms, marks(said.heads.iter().map(mark)));
        }
        match self.witnessing.witnessed().await {
            Ok(Some(table)) => (KnownFrom::HeadTable, table.at_ms, marks(table.marks())),
            Ok(None) => (KnownFrom::Nothing, 0, Marks::new()),
            Err(error) => {
                tracing::warn!(error, "the witnessed head table can't be read");
                (KnownFrom::Nothing, 0, Marks::new())
            }
        }
    }

    /// Blocks that are refused from the peer; with `all`, also those that do not open here now.
    async fn unopened(&self, site: &str, all: bool) -> Vec<CostlyBlock> {
        let refused = self.grounds.status.refusals();
        let refused = refused.into_iter().map(|(block, why)| {
            (block, format!("the other site's state of it is not taken over: {why}"))
        });
        let mut costly: BTreeMap<BlockNo, String> = refused.collect();
        if all {
            costly.extend(self.proving.unopened(site).await);
        }
        let costly = costly.into_iter();
        costly
            .map(|(block, reason)| CostlyBlock { block, reason, changes: 0, meters: Vec::new() })
            .collect()
    }

    /// Names the meters of a block as they are stored here. Not verified: it is for people, who look.
    async fn name_stored(&self, costly: &mut CostlyBlock) {
        let Ok(Some(stored)) = self.grounds.store.block(costly.block).await else { return };
        costly.meters = meters(&stored.records);
    }

    /// Names the meters of what this site lacks, by asking the other one for these blocks.
    async fn name_meters(&self, ours: &Marks, lacking: &mut [CostlyBlock]) {
        for costly in lacking.iter_mut().take(BLOCKS_FETCHED_MAX) {
            let after = ours.get(&costly.block).map_or(Position::default(), |(at, _)| *at);
            let Ok(Some(mut records)) = timeout(PEER_PATIENCE, self.fetch(costly.block)).await
            else {
                return;
            };
            records.retain(|record| record.position > after);
            costly.meters = meters(&records);
        }
    }

    async fn fetch(&self, block: BlockNo) -> Option<Vec<StoredRecord>> {
        let Grounds { peer, cards, .. } = &self.grounds;
        let card = cards.now().await.ok()?;
        let mut pieces = peer.fetch_blocks(card, vec![block]).await.ok()?;
        let mut records = Vec::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.ok()?;
            records.extend(piece.records);
            if !piece.more || records.len() > RECORDS_MAX {
                break;
            }
        }
        Some(records)
    }
}

/// Records of a fetched block that are looked at.
const RECORDS_MAX: usize = 65_536;

/// Where blocks stand.
type Marks = BTreeMap<BlockNo, (Position, [u8; 32])>;

fn marks(marks: impl Iterator<Item = BlockMark>) -> Marks {
    marks.map(|mark| (mark.block, (mark.position, mark.digest))).collect()
}

fn mark(head: &kms_core::Head) -> BlockMark {
    BlockMark { block: head.block, position: head.position, digest: head.digest }
}

/// The living meters of these records, in order.
fn meters(records: &[StoredRecord]) -> Vec<MeterId> {
    let id = |record: &StoredRecord| match Record::decode(&record.body) {
        Ok(Record::Meter(meter)) => Some(meter.meter_id),
        _ => None,
    };
    let mut ids: Vec<MeterId> = records.iter().filter_map(id).collect();
    ids.sort();
    ids.truncate(METERS_NAMED_MAX);
    ids
}

/// The blocks in which `ours` lacks something of `theirs`, the worst first.
fn behind(ours: &Marks, theirs: &Marks) -> Vec<CostlyBlock> {
    let cost = |(block, (theirs, digest)): (&BlockNo, &(Position, [u8; 32]))| {
        let (reason, changes) = match ours.get(block) {
            None => ("this site does not have it".to_owned(), theirs.sequence.0),
            Some((at, ours)) if at == theirs => {
                if ours == digest {
                    return None;
                }
                ("both sites stand at one position, with other records".to_owned(), 0)
            }
            Some((at, _)) if at > theirs => return None,
            Some((at, _)) if at.epoch != theirs.epoch => (
                format!("it is of epoch {}, and {} at the other site", at.epoch.0, theirs.epoch.0),
                // Of how many changes the two epochs differ, positions do not say.
                theirs.sequence.0.saturating_sub(at.sequence.0),
            ),
            Some((at, _)) => {
                let changes = theirs.sequence.0 - at.sequence.0;
                (format!("it is {changes} changes behind"), changes)
            }
        };
        Some(CostlyBlock { block: *block, reason, changes, meters: Vec::new() })
    };
    let mut costly: Vec<CostlyBlock> = theirs.iter().filter_map(cost).collect();
    costly.sort_by_key(|block| (std::cmp::Reverse(block.changes), block.block));
    costly
}

#[cfg(test)]
mod tests {
    use super::*;
    use kms_core::Sequence;

    #[test]
    fn a_plan_counts_what_this_site_lacks_and_nothing_that_it_has() {
        let at = |block, epoch, sequence, digest| {
            let position = Position { epoch: Epoch(epoch), sequence: Sequence(sequence) };
            BlockMark { block: BlockNo(block), position, digest: [digest; 32] }
        };
        let of = |all: &[BlockMark]| marks(all.iter().copied());
        let ours =
            of(&[at(0, 2, 5, 1), at(1, 2, 9, 1), at(2, 2, 3, 1), at(3, 2, 4, 1), at(4, 3, 4, 1)]);
        let theirs =
            of(&[at(0, 2, 5, 1), at(1, 2, 7, 2), at(2, 2, 6, 2), at(3, 2, 4, 2), at(4, 2, 4, 1)]);
        let costly = behind(&ours, &theirs);
        let told: Vec<_> = costly.iter().map(|it| (it.block.0, it.changes)).collect();
        assert_eq!(told, [(2, 3), (3, 0)]);
        assert!(costly[0].reason.contains("3 changes behind"), "{costly:?}");
        assert!(costly[1].reason.contains("other records"), "{costly:?}");
        assert_eq!(behind(&Marks::new(), &theirs).len(), 5);
        assert_eq!(behind(&ours, &Marks::new()), []);
    }
}
