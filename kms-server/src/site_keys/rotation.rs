//! The rotation of all block secrets: block by block a new secret is staged, proved by both sites, put to use, proved
//! once more; then the former one may go. How far it is stands in the blocks, so whichever server of whichever site
//! writes goes on where another one was killed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};

use crate::{
    keyring::{KeyringError, Prover, SecretRotator, SecretsOfBlock},
    store::StoreError,
};
use kms_core::{
    BlockNo,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
    block::proof::Challenge,
    fact::{SecretStage, SecretsWish},
    ports::{Clock, PeersProofs, Randomness},
};

/// Blocks that are taken through their steps together: the other site proves them in one call.
const AT_ONCE: usize = 16;
/// Blocks that are named as waiting.
const NAMED_MAX: usize = 100;
/// The name under which the audit log has what the service does by itself.
const CALLER: &str = "kms-server";

/// Its pace.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Between two lots of blocks: the token and the database are there for others first.
    pub pause: Duration,
    /// Before what waits is tried again, or a new wish looked for.
    pub look_again: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { pause: Duration::from_millis(20), look_again: Duration::from_secs(2) }
    }
}

/// The parts that it stands on.
pub struct Parts {
    /// Takes the steps.
    pub rotator: Arc<SecretRotator>,
    /// Proves blocks by this server's token.
    pub prover: Arc<Prover>,
    /// Has the other site prove them; `None`: there is none.
    pub peer: Option<Arc<dyn PeersProofs>>,
    /// This site's name.
    pub site: String,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Challenges.
    pub randomness: Arc<dyn Randomness>,
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The number of the rotation; 0: there was none.
    pub generation: u32,
    /// When it was asked for; milliseconds since 1970.
    pub asked_ms: u64,
    /// All blocks.
    pub blocks: u32,
    /// Of them, those that have a new secret and are not under it.
    pub staged: u32,
    /// Those that are under it, and keep the former one.
    pub rewritten: u32,
    /// Those whose former secret may go.
    pub retired: u32,
    /// Blocks that wait, and for what.
    pub waiting: Vec<(BlockNo, String)>,
}

impl Progress {
    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.retired == self.blocks
    }
}

/// Why no rotation begins.
#[derive(Debug, thiserror::Error)]
pub enum NotRotated {
    /// Somebody would be left out.
    #[error("{0}")]
    LeftOut(String),
    /// A block or the database, or this site does not write.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

#[derive(Default)]
struct Now {
    wish: Option<SecretsWish>,
    /// Of this wish; what is not there has not begun, or was not looked at.
    stages: BTreeMap<BlockNo, SecretStage>,
    waiting: BTreeMap<BlockNo, String>,
}

/// Rotates the secrets of all blocks.
pub struct BlockSecretRotation {
    parts: Parts,
    config: Config,
    now: Mutex<Now>,
    wake: Notify,
}

impl BlockSecretRotation {
    /// Nothing is looked at yet.
    pub fn new(parts: Parts, config: Config) -> Self {
        Self { parts, config, now: Mutex::default(), wake: Notify::new() }
    }

    /// How far it is, as this server knows.
    pub fn progress(&self) -> Progress {
        let now = self.now();
        let count = |stage| now.stages.values().filter(|it| **it == stage).count() as u32;
        let waiting = now.waiting.iter().take(NAMED_MAX).map(|(block, why)| (*block, why.clone()));
        Progress {
            generation: now.wish.map_or(0, |wish| wish.generation),
            asked_ms: now.wish.map_or(0, |wish| wish.asked_ms),
            blocks: self.parts.rotator.blocks(),
            staged: count(SecretStage::Staged),
            rewritten: count(SecretStage::Rewritten),
            retired: count(SecretStage::Retired),
            waiting: waiting.collect(),
        }
    }

    /// The same at a server that may not have looked yet, or does not write.
    pub async fn look(&self) -> Result<Progress, KeyringError> {
        if let Some(wish) = self.parts.rotator.wish().await? {
            self.stand(wish);
            for block in self.open_blocks() {
                let looked = self.parts.rotator.look(block).await?;
                self.note(block, stage_of(&looked, wish));
            }
        }
        Ok(self.progress())
    }

    /// Begins a rotation, unless one is under way: then that goes on, and the answer tells of it.
    pub async fn begin(&self, call: &AuditedCall) -> Result<Progress, NotRotated> {
        let rotator = &self.parts.rotator;
        rotator.check_writes()?;
        if let Some(why) = rotator.not_possible().await? {
            return Err(NotRotated::LeftOut(why));
        }
        let known = rotator.wish().await?;
        let progress = self.look().await?;
        if known.is_none() || progress.is_over() {
            let now_ms = self.parts.clock.unix_ms();
            let entry = call.entry(now_ms, Subject::NONE, AuditOutcome::Done);
            if let Some(wish) = rotator.ask(known, now_ms, entry).await? {
                self.stand(wish);
            }
        }
        self.wake.notify_one();
        Ok(self.progress())
    }

    /// Runs until the process ends: goes on with what was asked for, while this site writes.
    pub async fn run(self: Arc<Self>) {
        loop {
            if let Err(error) = self.pass().await {
                tracing::debug!(%error, "the rotation of block secrets waits");
            }
            tokio::select! {
                () = sleep(self.config.look_again) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Once through all blocks that are not done.
    pub async fn pass(&self) -> Result<(), KeyringError> {
        let rotator = &self.parts.rotator;
        if rotator.check_writes().is_err() {
            return Ok(());
        }
        let Some(wish) = rotator.wish().await? else { return Ok(()) };
        self.stand(wish);
        for lot in self.open_blocks().chunks(AT_ONCE) {
            self.advance(lot, wish).await;
            rotator.check_writes()?;
            sleep(self.config.pause).await;
        }
        Ok(())
    }

    async fn advance(&self, lot: &[BlockNo], wish: SecretsWish) {
        let (mut staged, mut rewritten) = (Vec::new(), Vec::new());
        for block in lot {
            match self.stage(*block, wish).await {
                Ok(Some(SecretStage::Staged)) => staged.push(*block),
                Ok(Some(SecretStage::Rewritten)) => rewritten.push(*block),
                Ok(_) => {}
                Err(error) => self.wait(*block, &error),
            }
        }
        let rotator = &self.parts.rotator;
        for block in self.proved(&staged).await {
            let entry = self.entry("SiteKeys/RewriteBlock", block, wish);
            match rotator.rewrite(block, entry).await {
                Ok(()) => {
                    self.note(block, Some(SecretStage::Rewritten));
                    rewritten.push(block);
                }
                Err(error) => self.wait(block, &error),
            }
        }
        for block in self.proved(&rewritten).await {
            let entry = self.entry("SiteKeys/RetireSecret", block, wish);
            match rotator.retire(block, entry).await {
                Ok(()) => self.note(block, Some(SecretStage::Retired)),
                Err(error) => self.wait(block, &error),
            }
        }
    }

    /// The stage of a block, after a new secret was staged where it had none of this rotation.
    async fn stage(
        &self,
        block: BlockNo,
        wish: SecretsWish,
    ) -> Result<Option<SecretStage>, KeyringError> {
        let rotator = &self.parts.rotator;
        let mut stage = stage_of(&rotator.look(block).await?, wish);
        if stage.is_none() {
            let entry = self.entry("SiteKeys/StageSecret", block, wish);
            rotator.stage(block, wish, entry).await?;
            stage = stage_of(&rotator.look(block).await?, wish);
        }
        self.note(block, stage);
        Ok(stage)
    }

    /// Those of these blocks that this token, and the other site's, open as they are stored now.
    async fn proved(&self, blocks: &[BlockNo]) -> Vec<BlockNo> {
        let mut here = Vec::with_capacity(blocks.len());
        for block in blocks {
            match self.proved_here(*block).await {
                Ok(()) => here.push(*block),
                Err(why) => self.wait(*block, &why),
            }
        }
        let Some(peer) = self.parts.peer.as_ref().filter(|_| !here.is_empty()) else {
            return here;
        };
        match peer.prove(&here).await {
            Ok(proofs) => {
                let mut proved = Vec::with_capacity(here.len());
                for (block, outcome) in proofs {
                    match outcome {
                        Ok(()) => proved.push(block),
                        Err(why) => self.wait(block, &format!("the other site: {why}")),
                    }
                }
                proved
            }
            Err(why) => {
                here.iter().for_each(|block| self.wait(*block, &format!("the other site: {why}")));
                Vec::new()
            }
        }
    }

    async fn proved_here(&self, block: BlockNo) -> Result<(), String> {
        let Parts { prover, randomness, site, .. } = &self.parts;
        let mut nonce = [0; 32];
        randomness.fill(&mut nonce).map_err(|error| error.to_string())?;
        let challenge =
            Challenge { prover: site, verifier: site, nonce, epoch: kms_core::Epoch(0) };
        match prover.prove(block, &challenge).await {
            Ok(proved) => proved.map(drop),
            Err(error) => Err(error.to_string()),
        }
    }

    fn entry(&self, verb: &str, block: BlockNo, wish: SecretsWish) -> AuditEntry {
        let subject = Subject { block: Some(block), ..Subject::NONE };
        let call = AuditedCall::new(CALLER, verb);
        let entry = call.entry(self.parts.clock.unix_ms(), subject, AuditOutcome::Done);
        entry.with(Detail::Items, u64::from(wish.generation))
    }

    fn open_blocks(&self) -> Vec<BlockNo> {
        let now = self.now();
        let is_open = |block: &BlockNo| now.stages.get(block) != Some(&SecretStage::Retired);
        (0..self.parts.rotator.blocks()).map(BlockNo).filter(is_open).collect()
    }

    fn stand(&self, wish: SecretsWish) {
        let mut now = self.now();
        if now.wish.map(|wish| wish.generation) != Some(wish.generation) {
            *now = Now { wish: Some(wish), ..Now::default() };
        }
    }

    fn note(&self, block: BlockNo, stage: Option<SecretStage>) {
        let mut now = self.now();
        now.waiting.remove(&block);
        match stage {
            Some(stage) => now.stages.insert(block, stage),
            None => now.stages.remove(&block),
        };
    }

    fn wait(&self, block: BlockNo, why: &dyn std::fmt::Display) {
        self.now().waiting.insert(block, why.to_string());
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None`: it has no secret of this rotation.
fn stage_of(looked: &SecretsOfBlock, wish: SecretsWish) -> Option<SecretStage> {
    let secrets = looked.secrets.as_ref()?;
    (secrets.generation >= wish.generation).then_some(secrets.stage)
}

impl From<StoreError> for NotRotated {
    fn from(error: StoreError) -> Self {
        KeyringError::from(error).into()
    }
}
