//! Readiness: the site that writes has the other one prove, again and again, that its token opens the blocks as they
//! are stored there; the other one answers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    card::{Cards, SiteCard},
    config::Config,
    failure::PeerError,
    grounds::Grounds,
    messages::BlockProof,
    not_served::{NotServed, place},
    peer::Peer,
    reporting::{Proved, Reporting},
    status::{NAMED_MAX, Readiness, Status},
};
use crate::{
    keyring::{Confirmed, Prover},
    store::{ReadStore, StoreError},
};
use kms_core::{
    BlockCount, BlockNo, Head,
    block::{BlockMark, proof::Challenge},
    ports::{Clock, Randomness},
    site::readiness::SignedReadiness,
};

/// Blocks that are asked for in one call.
const ASKED_AT_ONCE: usize = 256;
/// The longest time for such a call.
const PATIENCE: Duration = Duration::from_secs(60);
/// Blocks that are opened at the same time for proofs: the token is there for APDUs first.
const OPENED_AT_ONCE: usize = 2;
/// Calls for proofs at one time, of this server: each holds its challenges.
const ASKING_MAX: usize = 4;
/// Proofs in one message.
const PROOFS_A_MESSAGE: usize = 64;
/// Messages that wait for whoever asked.
const MESSAGES_AHEAD: usize = 2;

/// Answers challenges.
pub struct Answering {
    prover: Arc<Prover>,
    cards: Cards,
    reporting: Arc<Reporting>,
    /// One who is answered at a time.
    one: Arc<Semaphore>,
    /// Places for those who wait.
    asking: Arc<Semaphore>,
}

impl Answering {
    /// By the proofs of `prover`. What the peer reports of them goes to `reporting`.
    pub fn new(prover: Arc<Prover>, cards: Cards, reporting: Arc<Reporting>) -> Self {
        let asking = Arc::new(Semaphore::new(ASKING_MAX));
        Self { prover, cards, reporting, one: Arc::new(Semaphore::new(1)), asking }
    }

    /// Takes the report that comes with a question. One that is not genuine is of no use to anybody, and is told to
    /// the log.
    pub async fn take(&self, report: Option<SignedReadiness>) {
        let Some(report) = report else { return };
        if let Err(why) = self.reporting.receive(&report).await {
            tracing::warn!(why, "a report of readiness is not taken");
        }
    }

    /// Proves these blocks to the site that asks, or says why not. A later asker waits for the former one; more than a
    /// few are sent away.
    pub fn prove(
        self: &Arc<Self>,
        asker: SiteCard,
        challenges: Vec<(BlockNo, [u8; 32])>,
    ) -> Result<mpsc::Receiver<Vec<BlockProof>>, NotServed> {
        let place = place(&self.asking)?;
        let (out, sent) = mpsc::channel(MESSAGES_AHEAD);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let _place = place;
            let Ok(_one) = Arc::clone(&this.one).acquire_owned().await else { return };
            let ours = this.cards.now().await;
            let refusal = match &ours {
                Err(error) => Some(error.to_string()),
                Ok(ours) => this.refusal(ours, &asker).await,
            };
            let prover = ours.map_or_else(|_| String::new(), |ours| ours.site);
            let answer = |(block, nonce)| {
                let (this, refusal) = (&this, refusal.clone());
                let (prover, asker) = (&prover, &asker);
                async move {
                    let outcome = match refusal {
                        Some(refusal) => Err(refusal),
                        None => this.prove_one(block, nonce, prover, asker).await,
                    };
                    BlockProof { block, outcome }
                }
            };
            let proofs = stream::iter(challenges).map(answer).buffered(OPENED_AT_ONCE);
            let mut proofs = std::pin::pin!(proofs.ready_chunks(PROOFS_A_MESSAGE));
            while let Some(some) = proofs.next().await {
                if out.send(some).await.is_err() {
                    return;
                }
            }
        });
        Ok(sent)
    }

    /// Why nothing is proved to this asker now.
    async fn refusal(&self, ours: &SiteCard, asker: &SiteCard) -> Option<String> {
        if !asker.writes || asker.epoch != ours.epoch {
            return Some(format!("proofs are for the site that writes, in epoch {}", ours.epoch.0));
        }
        let checked = self.prover.check_token().await;
        checked.err().map(|error| format!("the token did not pass its check: {error}"))
    }

    async fn prove_one(
        &self,
        block: BlockNo,
        nonce: [u8; 32],
        prover: &str,
        asker: &SiteCard,
    ) -> Result<(kms_core::Head, kms_core::block::proof::Proof), String> {
        let challenge = Challenge { prover, verifier: &asker.site, nonce, epoch: asker.epoch };
        match self.prover.prove(block, &challenge).await {
            Ok(proved) => proved,
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The state of one block's proof.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    /// At this time, milliseconds since 1970, in this state.
    Proved(u64, BlockMark),
    /// For this reason.
    Failed(String),
}

/// What became of one challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Proven {
    /// It is proved.
    Yes,
    /// It is not, for this reason.
    No(String),
    /// It has moved meanwhile.
    Moved,
}

/// Asks for proofs.
pub struct Proving {
    config: Config,
    peer: Arc<dyn Peer>,
    prover: Arc<Prover>,
    store: Arc<dyn ReadStore>,
    cards: Cards,
    blocks: BlockCount,
    clock: Arc<dyn Clock>,
    randomness: Arc<dyn Randomness>,
    status: Arc<Status>,
    reporting: Arc<Reporting>,
}

impl Proving {
    /// Proofs of the peer's are checked by `prover`; nonces come from `randomness`; what came of them is signed and
    /// kept by `reporting`.
    pub fn new(
        grounds: Grounds,
        prover: Arc<Prover>,
        randomness: Arc<dyn Randomness>,
        reporting: Arc<Reporting>,
    ) -> Self {
        let Grounds { config, peer, store, cards, blocks, clock, status, .. } = grounds;
        Self { config, peer, prover, store, cards, blocks, clock, randomness, status, reporting }
    }

    /// Runs until the process ends.
    pub async fn run(&self) {
        let mut known = BTreeMap::new();
        let mut ticks = interval(self.config.prove_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = true;
        loop {
            ticks.tick().await;
            self.reporting.look_at_records().await;
            match self.store.role().await {
                Ok(role) if role.writes => self.have_all_proved(&mut known).await,
                Ok(_) => {
                    known.clear();
                    self.status.readiness(None);
                    self.follow_on(first).await;
                }
                Err(error) => tracing::warn!(%error, "no proofs are asked for"),
            }
            first = false;
        }
    }

    /// At the site that writes: a round, its report, and the report to the site that it is about.
    async fn have_all_proved(&self, known: &mut BTreeMap<BlockNo, Known>) {
        self.status.follows(&self.config.peer);
        let began_ms = self.clock.unix_ms();
        let outcome = self.round(known).await;
        let readiness = self.sum_up(known, outcome.err());
        let proved = proved(self.config.peer.clone(), &readiness, known, began_ms);
        match self.reporting.report(proved).await {
            Ok(report) => self.hand_over(report).await,
            Err(error) => tracing::warn!(error, "the report of readiness is not signed"),
        }
        self.status.readiness(Some(readiness));
    }

    /// What could not be handed over is handed over with the next one.
    async fn hand_over(&self, report: SignedReadiness) {
        let Ok(card) = self.cards.now().await else { return };
        let handed = timeout(PATIENCE, self.peer.prove(card, Vec::new(), Some(report))).await;
        if let Ok(Err(error)) = handed {
            tracing::debug!(%error, "the report of readiness is not handed over");
        }
    }

    /// At a site that follows, of which its peer has not reported lately: it opens all blocks for itself. Less than a
    /// proof, since nobody holds it against what the other site has; more than nothing when that one is gone.
    async fn follow_on(&self, first: bool) {
        let Ok(card) = self.cards.now().await else { return };
        self.status.follows(&card.site);
        if let Err(error) = self.reporting.load().await {
            tracing::warn!(error, "reports of readiness were not read");
        }
        // At the start the peer has an interval to ask.
        if first {
            return;
        }
        let interval_ms = u64::try_from(self.config.prove_interval.as_millis()).unwrap_or(u64::MAX);
        let since = self.clock.unix_ms().saturating_sub(interval_ms.saturating_mul(2));
        if self.status.report(&card.site).is_some_and(|report| report.at_ms >= since) {
            return;
        }
        let began_ms = self.clock.unix_ms();
        let (known, fault) = self.open_all(&card.site).await;
        let readiness = self.sum_up(&known, fault);
        let proved = proved(card.site, &readiness, &known, began_ms);
        if let Err(error) = self.reporting.report(proved).await {
            tracing::warn!(error, "the report of readiness is not signed");
        }
    }

    /// Opens every block as it is stored here.
    async fn open_all(&self, site: &str) -> (BTreeMap<BlockNo, Known>, Option<String>) {
        let mut known = BTreeMap::new();
        if let Err(error) = self.prover.check_token().await {
            let failed = |block| (block, Known::Failed(error.to_string()));
            let all = (0..self.blocks.get()).map(BlockNo).map(failed);
            return (all.collect(), Some(format!("the token did not pass its check: {error}")));
        }
        for block in (0..self.blocks.get()).map(BlockNo) {
            let outcome = match self.opened_here(block, site).await {
                Ok(head) => Known::Proved(self.clock.unix_ms(), mark(&head)),
                Err(why) => Known::Failed(format!("block {block}: {why}")),
            };
            known.insert(block, outcome);
        }
        (known, None)
    }

    /// The blocks that do not open here now, each with the reason.
    pub(super) async fn unopened(&self, site: &str) -> Vec<(BlockNo, String)> {
        let (known, _) = self.open_all(site).await;
        let failed = known.into_iter().filter_map(|(block, known)| match known {
            Known::Failed(why) => Some((block, why)),
            Known::Proved(..) => None,
        });
        failed.collect()
    }

    /// Has the peer prove these blocks now.
    pub(super) async fn prove_now(
        &self,
        blocks: &[BlockNo],
    ) -> Result<Vec<(BlockNo, Proven)>, String> {
        let mut known = BTreeMap::new();
        self.ask(blocks, &mut known).await?;
        let outcome = |block: &BlockNo| match known.remove(block) {
            Some(Known::Proved(..)) => (*block, Proven::Yes),
            Some(Known::Failed(why)) => (*block, Proven::No(why)),
            None => (*block, Proven::Moved),
        };
        Ok(blocks.iter().map(outcome).collect())
    }

    /// Whether a block opens here as it is stored, with all of its records; else the sentence that says why not.
    pub(super) async fn opens_here(&self, block: BlockNo, site: &str) -> Result<(), String> {
        self.opened_here(block, site).await.map(drop)
    }

    async fn opened_here(&self, block: BlockNo, site: &str) -> Result<Head, String> {
        let mut nonce = [0; 32];
        self.randomness.fill(&mut nonce).map_err(|error| error.to_string())?;
        let epoch = self.cards.now().await.map_err(|error| error.to_string())?.epoch;
        let challenge = Challenge { prover: site, verifier: site, nonce, epoch };
        let proved = self.prover.prove(block, &challenge).await;
        proved.map_err(|error| error.to_string())?.map(|(head, _)| head)
    }

    async fn round(&self, known: &mut BTreeMap<BlockNo, Known>) -> Result<(), String> {
        let blocks: Vec<BlockNo> = (0..self.blocks.get()).map(BlockNo).collect();
        let rounds = blocks.len().div_ceil(ASKED_AT_ONCE);
        for (done, some) in (1..).zip(blocks.chunks(ASKED_AT_ONCE)) {
            self.ask(some, known).await?;
            // The end of a round is told once its report is signed.
            if done < rounds {
                self.status.readiness(Some(self.sum_up(known, None)));
            }
        }
        Ok(())
    }

    async fn ask(
        &self,
        blocks: &[BlockNo],
        known: &mut BTreeMap<BlockNo, Known>,
    ) -> Result<(), String> {
        let card = self.cards.now().await.map_err(|error: StoreError| error.to_string())?;
        let mut challenges = Vec::with_capacity(blocks.len());
        for block in blocks {
            let mut nonce = [0; 32];
            self.randomness.fill(&mut nonce).map_err(|error| error.to_string())?;
            challenges.push((*block, nonce));
        }
        let asked =
            timeout(PATIENCE, self.peer.prove(card.clone(), challenges.clone(), None)).await;
        let asked =
            asked.unwrap_or_else(|_| Err(PeerError::Broken(format!("no proofs in {PATIENCE:?}"))));
        let (theirs, proofs) = asked.map_err(|error| error.to_string())?;
        self.status.heard(&theirs);
        if theirs.site != self.config.peer || theirs.writes || theirs.epoch != card.epoch {
            return Err(format!(
                "site {} answers, in epoch {}: it is not the one that follows this site",
                theirs.site, theirs.epoch.0
            ));
        }
        for ((block, nonce), proof) in challenges.into_iter().zip(proofs) {
            if proof.block != block {
                return Err("the peer's proofs are not in the order of the challenges".to_owned());
            }
            let (prover, verifier) = (theirs.site.as_str(), card.site.as_str());
            let challenge = Challenge { prover, verifier, nonce, epoch: card.epoch };
            if let Some(outcome) = self.judge(&challenge, proof).await? {
                known.insert(block, outcome);
            }
        }
        Ok(())
    }

    /// What a proof says; `None`: nothing yet, the block has moved meanwhile.
    async fn judge(
        &self,
        challenge: &Challenge<'_>,
        proof: BlockProof,
    ) -> Result<Option<Known>, String> {
        let block = proof.block;
        let (head, proof) = match proof.outcome {
            Ok(proved) => proved,
            Err(why) => return Ok(Some(Known::Failed(format!("block {block}: {why}")))),
        };
        if head.block != block {
            return Ok(Some(Known::Failed(format!("block {block}: another one was proved"))));
        }
        match self.prover.confirms(challenge, &head, &proof).await {
            Ok(Confirmed::Yes) => Ok(Some(Known::Proved(self.clock.unix_ms(), mark(&head)))),
            Ok(Confirmed::OtherState) => Ok(None),
            Ok(Confirmed::Wrong) => {
                Ok(Some(Known::Failed(format!("block {block}: the proof is wrong"))))
            }
            // Ours is at fault, which says nothing of the peer's.
            Err(error) if error.is_transient() => Err(error.to_string()),
            Err(error) => {
                tracing::warn!(%error, block = block.0, "a proof can't be checked");
                Ok(None)
            }
        }
    }

    fn sum_up(&self, known: &BTreeMap<BlockNo, Known>, fault: Option<String>) -> Readiness {
        let oldest_of_use = self
            .clock
            .unix_ms()
            .saturating_sub(u64::try_from(self.config.proof_age_max.as_millis()).unwrap_or(0));
        let mut readiness = Readiness::default();
        let mut oldest = u64::MAX;
        readiness.failures.extend(fault);
        for state in known.values() {
            match state {
                Known::Proved(at_ms, _) if *at_ms >= oldest_of_use => {
                    readiness.proved += 1;
                    oldest = oldest.min(*at_ms);
                }
                Known::Proved(..) => {}
                Known::Failed(why) => {
                    readiness.failed += 1;
                    if readiness.failures.len() < NAMED_MAX {
                        readiness.failures.push(why.clone());
                    }
                }
            }
        }
        readiness.unproved = self.blocks.get().saturating_sub(readiness.proved + readiness.failed);
        readiness.oldest_ms = (readiness.proved == self.blocks.get()).then_some(oldest);
        readiness
    }
}

/// What a report says of a round that began then.
fn proved<'a>(
    site: String,
    readiness: &'a Readiness,
    known: &BTreeMap<BlockNo, Known>,
    began_ms: u64,
) -> Proved<'a> {
    let is_of_round = |known: &Known| matches!(known, Known::Proved(at, _) if *at >= began_ms);
    let marks = known.values().filter_map(|known| match known {
        Known::Proved(_, mark) => Some(*mark),
        Known::Failed(_) => None,
    });
    Proved { site, readiness, keks: known.values().any(is_of_round), marks: marks.collect() }
}

fn mark(head: &Head) -> BlockMark {
    BlockMark { block: head.block, position: head.position, digest: head.digest }
}
