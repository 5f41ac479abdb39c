//! The rotation of the site KEK: a new one is made in the token, each block secret gets a second seal, under it; once each
//! has opened there, servers take it for theirs; once each has opened there again and no further one comes under the former
//! one, seals under that go. How far it is stands in a signed row, so whichever server of this token goes on where another one
//! was killed. The rules are `kms_core::site::keks`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::{sync::Notify, time::sleep};

use crate::{
    hsm::{Hsm, TokenError},
    keyring::{KeksError, SiteKekKeeper},
    store::{
        AuditedStore, SealedSecret, StoreError, WriteStore,
        keks::{KekStep, Pair, SealsThen, Twins},
    },
};
use kms_core::{
    BlockNo, BlockSecret, DomainRecord,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
    block::keys::SecretBinding,
    ports::Clock,
    site::keks::{
        Kek, KekId, KekStage, KekWish, KekWork, Looked, NoStep, SignedSiteKeks, SiteKeks,
    },
};

/// Seals that are looked at before others get their turn.
const AT_ONCE: u32 = 64;
/// Blocks that are named as waiting.
const NAMED_MAX: usize = 100;
/// Steps of one pass, at most: a rotation has six.
const STEPS_MAX: usize = 8;
/// How long a former KEK is kept at least once nothing is under it: servers that have not heard of the new one yet.
const KEPT_MS: u64 = 30_000;
/// The name under which the audit log has what the service does by itself.
const CALLER: &str = "kms-server";

/// Said of a block whose two seals do not fit.
const ANOTHER_SECRET: &str =
    "its seal under the new site KEK is of another secret: restore the database from a backup";

/// Its pace.
#[derive(Clone, Copy, Debug)]
pub struct KekPace {
    /// Between two lots of seals: the token and the database are there for others first.
    pub pause: Duration,
    /// Before what waits is tried again, or a new row looked for.
    pub look_again: Duration,
    /// A former KEK is not destroyed sooner.
    pub kept_ms: u64,
}

impl Default for KekPace {
    fn default() -> Self {
        let (pause, look_again) = (Duration::from_millis(20), Duration::from_secs(2));
        Self { pause, look_again, kept_ms: KEPT_MS }
    }
}

/// The parts that it stands on.
pub struct KekParts {
    /// The token.
    pub hsm: Hsm,
    /// Takes up which site KEKs are in use.
    pub keks: Arc<SiteKekKeeper>,
    /// Has the seals.
    pub store: Arc<dyn WriteStore>,
    /// Takes steps, with what the audit log says of them.
    pub commits: Arc<dyn AuditedStore>,
    /// The domain.
    pub domain: DomainRecord,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KekProgress {
    /// The number of the rotation; 0: there was none.
    pub generation: u32,
    /// When it was asked for; milliseconds since 1970.
    pub asked_ms: u64,
    /// Its stage; `None`: there was none.
    pub stage: Option<KekStage>,
    /// The KEK that seals are made under.
    pub in_use: KekId,
    /// Blocks, and seals, as they are in the database.
    pub looked: Looked,
    /// Former KEKs that nothing is sealed under, and that are not destroyed.
    pub former: Vec<KekId>,
    /// Blocks that wait, and for what.
    pub waiting: Vec<(BlockNo, String)>,
    /// What keeps all of it.
    pub fault: Option<String>,
}

impl KekProgress {
    /// Whether nothing is left that goes on by itself.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, None | Some(KekStage::Retired | KekStage::Destroyed))
    }
}

/// Why a rotation, or a step of it, is not begun.
#[derive(Debug, thiserror::Error)]
pub enum KekError {
    /// What is asked for is not its turn, or names another key.
    #[error("{0}")]
    Refused(String),
    /// What the database says of site KEKs is not believed.
    #[error(transparent)]
    Keks(#[from] KeksError),
    /// The token does not do it.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The database does not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<NoStep> for KekError {
    fn from(why: NoStep) -> Self {
        Self::Refused(why.to_string())
    }
}

#[derive(Default)]
struct Now {
    /// The stage that the rest is of.
    stage: Option<(u32, KekStage)>,
    /// Pairs that opened as the same secret: by block and version, over both seals.
    proved: HashMap<(BlockNo, u32), [u8; 32]>,
    waiting: BTreeMap<BlockNo, String>,
    fault: Option<String>,
}

/// Rotates the site KEK of this server's token.
pub struct SiteKekRotation {
    parts: KekParts,
    pace: KekPace,
    /// This process, as a maker of keys.
    me: [u8; 16],
    now: Mutex<Now>,
    wake: Notify,
}

impl SiteKekRotation {
    /// Nothing is looked at yet. `me`: random, of this process.
    pub fn new(parts: KekParts, pace: KekPace, me: [u8; 16]) -> Self {
        Self { parts, pace, me, now: Mutex::default(), wake: Notify::new() }
    }

    /// How far it is.
    pub async fn look(&self) -> Result<KekProgress, KekError> {
        let row = self.parts.keks.learn().await?;
        self.progress(row.as_ref().map(|row| &row.keks)).await
    }

    async fn progress(&self, keks: Option<&SiteKeks>) -> Result<KekProgress, KekError> {
        let in_use = self.parts.hsm.kek_in_use().id;
        let Some(keks) = keks else {
            return Ok(KekProgress { in_use, ..KekProgress::default() });
        };
        // Once it is over the former one has no seal left.
        let twins =
            keks.twins()
                .map_or(Twins { new: keks.current.id, former: keks.other.id }, |(new, former)| {
                    Twins { new: new.id, former: former.id }
                });
        let mut looked = self.parts.store.count_pairs(twins).await?;
        let now = self.now();
        let is_now = now.stage == Some((keks.generation, keks.stage));
        looked.proved = if is_now { now.proved.len() as u64 } else { 0 };
        let waiting = now.waiting.iter().take(NAMED_MAX);
        let is_kept = matches!(keks.stage, KekStage::Retired | KekStage::Destroying);
        Ok(KekProgress {
            generation: keks.generation,
            asked_ms: keks.asked_ms,
            stage: Some(keks.stage),
            in_use,
            looked,
            former: if is_kept { keks.to_destroy() } else { keks.left.clone() },
            waiting: waiting.map(|(block, why)| (*block, why.clone())).collect(),
            fault: now.fault.clone(),
        })
    }

    /// Begins a rotation, unless one is under way: then that goes on, and the answer tells of it.
    pub async fn begin(&self, call: &AuditedCall) -> Result<KekProgress, KekError> {
        let row = self.parts.keks.learn().await?;
        let known = row.as_ref().map(|row| &row.keks);
        if known.is_none_or(SiteKeks::is_over) {
            let wish = KekWish {
                domain: self.parts.domain.domain,
                site: self.parts.domain.site.clone(),
                signing: self.parts.hsm.public_key().await?,
                in_use: self.parts.hsm.kek_in_use(),
                new: self.new_name().await?,
                maker: self.me,
            };
            let now_ms = self.parts.clock.unix_ms();
            let next = SiteKeks::ask(known, wish, now_ms)?;
            let entry = call.entry(now_ms, Subject::NONE, AuditOutcome::Done);
            self.put(row.as_ref(), next, SealsThen::Stay, entry).await?;
        }
        self.wake.notify_one();
        self.look().await
    }

    /// Has the former KEKs destroyed. `named` is the one that the caller means: the last that was in use.
    pub async fn destroy(&self, call: &AuditedCall, named: &[u8]) -> Result<KekProgress, KekError> {
        let Some(row) = self.parts.keks.learn().await? else {
            return Err(KekError::Refused(
                "it was never rotated: there is no former one".to_owned(),
            ));
        };
        let now_ms = self.parts.clock.unix_ms();
        if let Some(why) = self.not_destroyed(&row.keks, named, now_ms) {
            return Err(KekError::Refused(why.to_owned()));
        }
        if row.keks.stage != KekStage::Retired {
            return self.progress(Some(&row.keks)).await;
        }
        let entry = call.entry(now_ms, Subject::NONE, AuditOutcome::Done);
        self.put(Some(&row), row.keks.destroying(now_ms)?, SealsThen::Stay, entry).await?;
        self.wake.notify_one();
        self.look().await
    }

    /// Why the KEK of this name is not destroyed; `None`: it is to be, or people have said so before.
    fn not_destroyed(&self, keks: &SiteKeks, named: &[u8], now_ms: u64) -> Option<&'static str> {
        match keks.stage {
            _ if keks.other.id != *named => Some("the former site KEK has another id"),
            KekStage::Retired if now_ms < keks.since_ms.saturating_add(self.pace.kept_ms) => {
                Some("it was in use half a minute ago: try again in a minute")
            }
            KekStage::Retired | KekStage::Destroying | KekStage::Destroyed => None,
            _ => Some("block secrets are sealed under that site KEK still"),
        }
    }

    /// Runs until the process ends: takes up what other servers have done, and goes on with what was asked for.
    pub async fn run(self: Arc<Self>) {
        loop {
            let fault = self.pass().await.err().map(|error| error.to_string());
            if let Some(fault) = &fault {
                tracing::debug!(fault, "the rotation of the site KEK waits");
            }
            self.now().fault = fault;
            tokio::select! {
                () = sleep(self.pace.look_again) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Takes the steps that are due.
    pub async fn pass(&self) -> Result<(), KekError> {
        for _ in 0..STEPS_MAX {
            if !self.step().await? {
                break;
            }
        }
        Ok(())
    }

    /// Takes one; false: none is due, or it waits.
    pub async fn step(&self) -> Result<bool, KekError> {
        let Some(row) = self.parts.keks.learn().await? else { return Ok(false) };
        let (keks, now_ms) = (&row.keks, self.parts.clock.unix_ms());
        self.stand(keks);
        let (next, seals, verb) = match keks.work(&self.me, now_ms) {
            KekWork::Nothing => return Ok(false),
            KekWork::Make => {
                let made = self.parts.hsm.make_kek(keks.other.id).await?;
                (keks.made(made.proof, now_ms)?, SealsThen::Stay, "SiteKeys/MakeKek")
            }
            KekWork::TakeOver => {
                let next = keks.taken_over(self.me, self.new_name().await?, now_ms)?;
                (next, SealsThen::Stay, "SiteKeys/NameKek")
            }
            KekWork::SealAndProve | KekWork::ProveAndRetire => {
                let Some(twins) = keks.twins() else { return Ok(false) };
                return self.step_of_seals(&row, twins).await;
            }
            KekWork::Destroy => {
                for former in keks.to_destroy() {
                    self.parts.hsm.destroy_kek(former).await?;
                }
                (keks.destroyed(now_ms)?, SealsThen::Stay, "SiteKeys/DestroyKek")
            }
        };
        let entry = self.entry(verb, keks);
        self.put(Some(&row), next, seals, entry).await.map(|()| true)
    }

    /// Seals and proves; and takes the step that this allows.
    async fn step_of_seals(
        &self,
        row: &SignedSiteKeks,
        (new, former): (&Kek, &Kek),
    ) -> Result<bool, KekError> {
        let twins = Twins { new: new.id, former: former.id };
        let mut looked = self.seal_and_prove(twins).await?;
        if !looked.is_whole() && self.now().waiting.is_empty() {
            // What got its twin is proved as it is stored.
            looked = self.seal_and_prove(twins).await?;
        }
        if !looked.is_whole() {
            return Ok(false);
        }
        let (keks, now_ms) = (&row.keks, self.parts.clock.unix_ms());
        let (next, seals, verb) = match keks.stage {
            KekStage::Made => {
                let next = keks.sealed(&looked, now_ms)?;
                (next, SealsThen::HaveTwins(twins), "SiteKeys/MoveToKek")
            }
            KekStage::Moved => {
                (keks.sealed(&looked, now_ms)?, SealsThen::Closed(twins), "SiteKeys/CloseKek")
            }
            _ => (keks.retired(&looked, now_ms)?, SealsThen::Gone(twins), "SiteKeys/RetireKek"),
        };
        let entry = self.entry(verb, keks);
        match self.put(Some(row), next, seals, entry).await {
            Ok(()) => Ok(true),
            // A seal came meanwhile: the next pass finds it.
            Err(KekError::Store(StoreError::Conflict(_))) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Goes through all seals under the former KEK: each gets its twin, and is proved by it.
    async fn seal_and_prove(&self, twins: Twins) -> Result<Looked, KekError> {
        let (mut after, mut proved) = (None, 0);
        loop {
            let pairs = self.parts.store.pairs(twins, after, AT_ONCE).await?;
            let Some(last) = pairs.last() else { break };
            after = Some((last.block, last.former.secret_version));
            for pair in pairs {
                let block = pair.block;
                match self.attend(pair, twins).await {
                    Ok(is_proved) => {
                        proved += u64::from(is_proved);
                        self.now().waiting.remove(&block);
                    }
                    Err(error) => {
                        self.now().waiting.insert(block, error.to_string());
                    }
                }
            }
            sleep(self.pace.pause).await;
        }
        let counted = self.parts.store.count_pairs(twins).await?;
        Ok(Looked { proved, ..counted })
    }

    /// Whether a secret has a twin, and that opened as the same one.
    async fn attend(&self, pair: Pair, twins: Twins) -> Result<bool, KekError> {
        let Pair { block, former, twin } = pair;
        let Some(twin) = twin else {
            let secret = self.open(block, &former).await?;
            let place = self.place(block, former.secret_version, &twins.new);
            let sealed = self.parts.hsm.seal_under(twins.new, place, secret).await?.1;
            let twin = SealedSecret { kek_id: twins.new, sealed, ..former };
            self.parts.store.add_twin(block, &twins.former, &twin).await?;
            return Ok(false);
        };
        self.prove(block, &former, &twin).await.map(|()| true)
    }

    /// Opens both, unless it has before.
    async fn prove(
        &self,
        block: BlockNo,
        former: &SealedSecret,
        twin: &SealedSecret,
    ) -> Result<(), KekError> {
        let both = Sha256::new().chain_update(&former.sealed).chain_update(&twin.sealed);
        let (name, both) = ((block, former.secret_version), both.finalize().into());
        if self.now().proved.get(&name) == Some(&both) {
            return Ok(());
        }
        let (one, other) = (self.open(block, former).await?, self.open(block, twin).await?);
        let (one, other) = (one.expose_block_secret_bytes(), other.expose_block_secret_bytes());
        if !bool::from(one.ct_eq(other)) {
            return Err(KekError::Refused(ANOTHER_SECRET.to_owned()));
        }
        self.now().proved.insert(name, both);
        Ok(())
    }

    async fn open(&self, block: BlockNo, seal: &SealedSecret) -> Result<BlockSecret, KekError> {
        let place = self.place(block, seal.secret_version, &seal.kek_id);
        Ok(self.parts.hsm.open_under(seal.kek_id, place, seal.sealed.clone()).await?)
    }

    fn place(&self, block: BlockNo, secret_version: u32, kek: &KekId) -> Vec<u8> {
        let domain = &self.parts.domain.domain;
        SecretBinding { domain, block, secret_version }.seal_aad(kek)
    }

    async fn new_name(&self) -> Result<KekId, KekError> {
        let random = self.parts.hsm.random(16).await?;
        let short = || KekError::Refused("the token's generator gave too few bytes".to_owned());
        random.as_slice().try_into().map_err(|_| short())
    }

    /// Signs a row and puts it in the place of the one that it was made from. That somebody else was first is no error:
    /// what he wrote is gone on with.
    async fn put(
        &self,
        from: Option<&SignedSiteKeks>,
        keks: SiteKeks,
        seals: SealsThen,
        entry: AuditEntry,
    ) -> Result<(), KekError> {
        let stage = keks.stage;
        let expected = from.map(|row| row.signature);
        let step = KekStep { expected, now: self.signed(keks).await?, seals };
        match self.parts.commits.put_site_keks(step, vec![entry]).await {
            Ok(()) => {
                tracing::info!(stage = stage.word(), "the rotation of the site KEK took a step");
                Ok(())
            }
            Err(StoreError::Taken { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn signed(&self, keks: SiteKeks) -> Result<SignedSiteKeks, KekError> {
        let signature = self.parts.hsm.sign(keks.message()).await?;
        let signed = SignedSiteKeks { keks, signature };
        if signed.is_signed_by(&signed.keks.signing) {
            return Ok(signed);
        }
        let other = "the token signs with another key than the one it shows";
        Err(KekError::Refused(other.to_owned()))
    }

    fn entry(&self, verb: &str, keks: &SiteKeks) -> AuditEntry {
        let call = AuditedCall::new(CALLER, verb);
        let entry = call.entry(self.parts.clock.unix_ms(), Subject::NONE, AuditOutcome::Done);
        entry.with(Detail::Items, u64::from(keks.generation))
    }

    /// What was proved for a stage counts for that alone: secrets are proved once more before the former seals go.
    fn stand(&self, keks: &SiteKeks) {
        let mut now = self.now();
        let stage = Some((keks.generation, keks.stage));
        if now.stage != stage {
            *now = Now { stage, ..Now::default() };
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
