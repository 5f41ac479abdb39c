//! Readiness: the site that writes has the other one prove, again and again, that its token opens the blocks as they
//! are stored there; the other one answers.

use std::{sync::Arc, time::Duration};

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
    reporting::{Reporting, old_copy},
    status::Status,
};
use crate::{
    keyring::{Confirmed, Prover},
    store::{ReadStore, StoreError},
};
use kms_core::{
    BlockCount, BlockNo, Epoch, Head,
    block::{BlockMark, proof::Challenge},
    ports::{Clock, PeersProofs, Randomness},
    site::{
        proving::{Outcome, Proofs, follows, may_ask},
        readiness::{ReadinessReport, SignedReadiness},
        tokens::TokenId,
    },
};

/// Blocks that are asked for in one call.
pub(super) const ASKED_AT_ONCE: usize = 256;
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
            this.reporting.look_at_token().await;
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
        if let Err(refusal) = may_ask(ours.of_who_writes(), asker.of_who_writes()) {
            return Some(refusal.to_string());
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
        let mut proofs = self.proofs();
        let mut ticks = interval(self.config.prove_interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = true;
        loop {
            ticks.tick().await;
            self.reporting.look_at_token().await;
            self.reporting.look_at_records().await;
            match self.store.role().await {
                Ok(role) if role.writes => self.have_all_proved(role.epoch, &mut proofs).await,
                Ok(_) => {
                    proofs.forget();
                    self.status.readiness(None);
                    self.follow_on(first).await;
                }
                Err(error) => tracing::warn!(%error, "no proofs are asked for"),
            }
            first = false;
        }
    }

    fn proofs(&self) -> Proofs {
        Proofs::new(self.blocks, self.config.proof_age_max)
    }

    /// At the site that writes: a round, its report, and the report to the site that it is about.
    async fn have_all_proved(&self, epoch: Epoch, proofs: &mut Proofs) {
        self.status.follows(&self.config.peer, epoch);
        proofs.begin_round();
        let outcome = self.round(proofs).await;
        let readiness = proofs.sum(self.clock.stamp(), outcome.err());
        match self.reporting.report(&self.config.peer, &readiness).await {
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

    /// At a site that follows, of whose token in use here its peer has not reported lately: it opens all blocks for itself. Less than a
    /// proof, since nobody holds it against what the other site has; more than nothing when that one is gone.
    async fn follow_on(&self, first: bool) {
        let Ok(card) = self.cards.now().await else { return };
        self.status.follows(&card.site, card.epoch);
        if let Err(error) = self.reporting.load().await {
            tracing::warn!(error, "reports of readiness were not read");
        }
        // At the start the peer has an interval to ask.
        if first {
            return;
        }
        let interval_ms = u64::try_from(self.config.prove_interval.as_millis()).unwrap_or(u64::MAX);
        let since = self.clock.unix_ms().saturating_sub(interval_ms.saturating_mul(2));
        // What the peer had another token of this site prove says nothing of this one.
        let is_lately = |it: &ReadinessReport| {
            let is_ours = it.token.is_none() || it.token == card.token;
            is_ours && it.epoch == card.epoch && it.at_ms >= since
        };
        if self.status.report(&card.site).is_some_and(|it| is_lately(&it)) {
            return;
        }
        let (proofs, fault) = self.open_all(&card.site, card.epoch).await;
        let readiness = proofs.sum(self.clock.stamp(), fault);
        if let Err(error) = self.reporting.report(&card.site, &readiness).await {
            tracing::warn!(error, "the report of readiness is not signed");
        }
    }

    /// Opens every block as it is stored here.
    async fn open_all(&self, site: &str, epoch: Epoch) -> (Proofs, Option<String>) {
        let mut proofs = self.proofs();
        proofs.stand(epoch);
        proofs.answered_by(self.cards.makeup().token());
        proofs.begin_round();
        let question = proofs.question(self.clock.stamp());
        if let Err(error) = self.prover.check_token().await {
            for block in (0..self.blocks.get()).map(BlockNo) {
                proofs.take(&question, block, Outcome::Failed(error.to_string()));
            }
            return (proofs, Some(format!("the token did not pass its check: {error}")));
        }
        for block in (0..self.blocks.get()).map(BlockNo) {
            let question = proofs.question(self.clock.stamp());
            let outcome = match self.opened_here(block, site).await {
                Ok(head) => Outcome::Proved(mark(&head)),
                Err(why) => Outcome::Failed(why),
            };
            proofs.take(&question, block, outcome);
        }
        (proofs, None)
    }

    /// The blocks that do not open here now, each with the reason.
    pub(super) async fn unopened(&self, site: &str) -> Vec<(BlockNo, String)> {
        let (proofs, _) = self.open_all(site, Epoch::default()).await;
        let failed = |block| match proofs.of(block) {
            Outcome::Failed(why) => Some((block, why)),
            _ => None,
        };
        (0..self.blocks.get()).map(BlockNo).filter_map(failed).collect()
    }

    /// Has the peer prove these blocks now.
    pub(super) async fn prove_now(
        &self,
        blocks: &[BlockNo],
    ) -> Result<Vec<(BlockNo, Proven)>, String> {
        let mut proofs = self.proofs();
        self.ask(blocks, &mut proofs).await?;
        let outcome = |block: &BlockNo| match proofs.of(*block) {
            Outcome::Proved(_) => (*block, Proven::Yes),
            Outcome::Failed(why) => (*block, Proven::No(why)),
            Outcome::Nothing => (*block, Proven::Moved),
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

    async fn round(&self, proofs: &mut Proofs) -> Result<(), String> {
        let blocks: Vec<BlockNo> = (0..self.blocks.get()).map(BlockNo).collect();
        let rounds = blocks.len().div_ceil(ASKED_AT_ONCE);
        for (done, some) in (1..).zip(blocks.chunks(ASKED_AT_ONCE)) {
            self.ask(some, proofs).await?;
            // The end of a round is told once its report is signed.
            if done < rounds {
                self.status.readiness(Some(proofs.sum(self.clock.stamp(), None)));
            }
        }
        Ok(())
    }

    async fn ask(&self, blocks: &[BlockNo], proofs: &mut Proofs) -> Result<(), String> {
        let card = self.cards.now().await.map_err(|error: StoreError| error.to_string())?;
        proofs.stand(card.epoch);
        let mut challenges = Vec::with_capacity(blocks.len());
        for block in blocks {
            let mut nonce = [0; 32];
            self.randomness.fill(&mut nonce).map_err(|error| error.to_string())?;
            challenges.push((*block, nonce));
        }
        let question = proofs.question(self.clock.stamp());
        let asked =
            timeout(PATIENCE, self.peer.prove(card.clone(), challenges.clone(), None)).await;
        let asked =
            asked.unwrap_or_else(|_| Err(PeerError::Broken(format!("no proofs in {PATIENCE:?}"))));
        let (theirs, answers) = asked.map_err(|error| error.to_string())?;
        self.status.heard(&theirs);
        if theirs.site != self.config.peer || !follows(card.of_who_writes(), theirs.of_who_writes())
        {
            return Err(format!(
                "site {} answers, in epoch {}: it is not the one that follows this site",
                theirs.site, theirs.epoch.0
            ));
        }
        self.check_token_of(&theirs).await?;
        proofs.answered_by(theirs.token);
        for ((block, nonce), answer) in challenges.into_iter().zip(answers) {
            if answer.block != block {
                return Err("the peer's proofs are not in the order of the challenges".to_owned());
            }
            let (prover, verifier) = (theirs.site.as_str(), card.site.as_str());
            let challenge = Challenge { prover, verifier, nonce, epoch: card.epoch };
            let outcome = self.judge(&challenge, answer).await?;
            proofs.take(&question, block, outcome);
        }
        Ok(())
    }

    /// A proof of a token whose signatures count for nothing here is none: that token could not take over.
    async fn check_token_of(&self, theirs: &SiteCard) -> Result<(), String> {
        let Some(token) = theirs.token else { return Ok(()) };
        let peer = self.reporting.enrolled(&theirs.site).await?;
        if peer.as_ref().is_some_and(|peer| peer.keys().iter().any(|key| TokenId::of(key) == token))
        {
            return Ok(());
        }
        Err(peer.and_then(|peer| old_copy(&peer, token)).unwrap_or_else(|| {
            format!(
                "site {} answers with its token {token}, which is not known here: what it signs does not count; `site status` \
                 at both sites names the tokens",
                theirs.site
            )
        }))
    }

    async fn judge(
        &self,
        challenge: &Challenge<'_>,
        answer: BlockProof,
    ) -> Result<Outcome, String> {
        let block = answer.block;
        let (head, proof) = match answer.outcome {
            Ok(proved) if proved.0.block == block => proved,
            // Not looked at: a proof of another block says nothing of this one.
            Ok((head, _)) => return Ok(Outcome::Proved(mark(&head))),
            Err(why) => return Ok(Outcome::Failed(why)),
        };
        match self.prover.confirms(challenge, &head, &proof).await {
            Ok(Confirmed::Yes) => Ok(Outcome::Proved(mark(&head))),
            Ok(Confirmed::OtherState) => Ok(Outcome::Nothing),
            Ok(Confirmed::Wrong) => Ok(Outcome::Failed("the proof is wrong".to_owned())),
            // Ours is at fault, which says nothing of the peer's.
            Err(error) if error.is_transient() => Err(error.to_string()),
            Err(error) => {
                tracing::warn!(%error, block = block.0, "a proof can't be checked");
                Ok(Outcome::Nothing)
            }
        }
    }
}

fn mark(head: &Head) -> BlockMark {
    BlockMark { block: head.block, position: head.position, digest: head.digest }
}
#[async_trait::async_trait]
impl PeersProofs for Proving {
    async fn prove(
        &self,
        blocks: &[BlockNo],
    ) -> Result<Vec<(BlockNo, Result<(), String>)>, String> {
        let outcome = |proven| match proven {
            Proven::Yes => Ok(()),
            Proven::No(why) => Err(why),
            Proven::Moved => Err("it has another state of the block, yet".to_owned()),
        };
        let proven = self.prove_now(blocks).await?;
        Ok(proven.into_iter().map(|(block, proven)| (block, outcome(proven))).collect())
    }
}
