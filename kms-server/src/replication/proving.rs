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
    status::{NAMED_MAX, Readiness, Status},
};
use crate::{
    keyring::{Confirmed, Prover},
    store::{ReadStore, StoreError},
};
use kms_core::{
    BlockCount, BlockNo,
    block::proof::Challenge,
    ports::{Clock, Randomness},
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
    /// One who is answered at a time.
    one: Arc<Semaphore>,
    /// Places for those who wait.
    asking: Arc<Semaphore>,
}

impl Answering {
    /// By the proofs of `prover`.
    pub fn new(prover: Arc<Prover>, cards: Cards) -> Self {
        let asking = Arc::new(Semaphore::new(ASKING_MAX));
        Self { prover, cards, one: Arc::new(Semaphore::new(1)), asking }
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
    /// At this time, milliseconds since 1970.
    Proved(u64),
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
}

impl Proving {
    /// Proofs of the peer's are checked by `prover`; nonces come from `randomness`.
    pub fn new(grounds: Grounds, prover: Arc<Prover>, randomness: Arc<dyn Randomness>) -> Self {
        let Grounds { config, peer, store, cards, blocks, clock, status } = grounds;
        Self { config, peer, prover, store, cards, blocks, clock, randomness, status }
    }

    /// Runs until the process ends.
    pub async fn run(&self) {
        let mut known = BTreeMap::new();
        let mut ticks = interval(self.config.prove_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.store.role().await {
                Ok(role) if role.writes => {
                    let outcome = self.round(&mut known).await;
                    self.status.readiness(Some(self.sum_up(&known, outcome.err())));
                }
                Ok(_) => {
                    known.clear();
                    self.status.readiness(None);
                }
                Err(error) => tracing::warn!(%error, "no proofs are asked for"),
            }
        }
    }

    /// Has the peer prove these blocks now.
    pub(super) async fn prove_now(
        &self,
        blocks: &[BlockNo],
    ) -> Result<Vec<(BlockNo, Proven)>, String> {
        let mut known = BTreeMap::new();
        self.ask(blocks, &mut known).await?;
        let outcome = |block: &BlockNo| match known.remove(block) {
            Some(Known::Proved(_)) => (*block, Proven::Yes),
            Some(Known::Failed(why)) => (*block, Proven::No(why)),
            None => (*block, Proven::Moved),
        };
        Ok(blocks.iter().map(outcome).collect())
    }

    /// Whether a block opens here as it is stored, with all of its records; else the sentence that says why not.
    pub(super) async fn opens_here(&self, block: BlockNo, site: &str) -> Result<(), String> {
        let mut nonce = [0; 32];
        self.randomness.fill(&mut nonce).map_err(|error| error.to_string())?;
        let epoch = self.cards.now().await.map_err(|error| error.to_string())?.epoch;
        let challenge = Challenge { prover: site, verifier: site, nonce, epoch };
        let proved = self.prover.prove(block, &challenge).await;
        proved.map_err(|error| error.to_string())?.map(drop)
    }

    async fn round(&self, known: &mut BTreeMap<BlockNo, Known>) -> Result<(), String> {
        let blocks: Vec<BlockNo> = (0..self.blocks.get()).map(BlockNo).collect();
        for some in blocks.chunks(ASKED_AT_ONCE) {
            self.ask(some, known).await?;
            self.status.readiness(Some(self.sum_up(known, None)));
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
        let asked = timeout(PATIENCE, self.peer.prove(card.clone(), challenges.clone())).await;
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
            Ok(Confirmed::Yes) => Ok(Some(Known::Proved(self.clock.unix_ms()))),
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
                Known::Proved(at_ms) if *at_ms >= oldest_of_use => {
                    readiness.proved += 1;
                    oldest = oldest.min(*at_ms);
                }
                Known::Proved(_) => {}
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
