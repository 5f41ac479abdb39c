//! Staging: the token makes a key, and it is stored with its counter lines, before anybody sends it.

use super::{
    changing::{About, meter_in, refused},
    storing::{Fresh, Lines, NotStored},
};
use crate::{
    hsm::KeyLen,
    keyring::{KeyToMake, KeysOfBlock, MadeValue, TakeError},
    lifecycle::{
        error::LifecycleError,
        groups::{concerned, membership_of},
        refusal::refusal,
        verbs::{Lifecycle, TRIES},
    },
};
use kms_core::{
    KeyId, KeyRecord, MeterId, MeterRecord, Protection, RecordKey, RefusalCode, SealedKek,
    SystemTitle,
    audit::AuditedCall,
    life::staging::{Made, Plan, Staging, Wish, plan},
    ports::Proved,
};

/// A key that is staged.
#[derive(Clone, Debug)]
pub struct StagedKey {
    /// Its meter.
    pub meter: MeterRecord,
    /// Its place in there.
    pub key: KeyRecord,
    /// It was staged before.
    pub already: bool,
    /// Whether the other site has proved it.
    pub proved: Proved,
}

impl StagedKey {
    /// That it may be handed out without a proof is in the server's log.
    pub(super) fn told(self, wish: &Wish) -> Self {
        if wish.allow_unreplicated && matches!(self.proved, Proved::No(_)) {
            tracing::warn!(
                meter = %self.meter.meter_id,
                kind = %self.key.kind,
                version = self.key.version,
                "a staged key may be handed out that the other site has not proved: if this site is lost, so is the meter"
            );
        }
        self
    }
}

/// A turn of staging.
enum Turn {
    /// It is staged.
    Staged { key: KeyId, already: bool },
    /// The block was changed meanwhile: the plan is another one.
    Again,
}

impl Lifecycle {
    /// Has a key made for a meter, and waits until the other site has proved that it has it. Asked again, whoever asks, the
    /// answer is the same key. What was done is in the audit log as `call` when this returns; a failure is for the
    /// caller to record.
    pub async fn stage_key(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        wish: &Wish,
    ) -> Result<StagedKey, LifecycleError> {
        let mut tried = 0;
        let (key, already) = loop {
            match self.stage_once(call, id, wish).await {
                Ok(Turn::Staged { key, already }) => break (key, already),
                Ok(Turn::Again) | Err(LifecycleError::Busy) if tried + 1 < TRIES => {
                    self.step_back(tried).await;
                    tried += 1;
                }
                Ok(Turn::Again) => return Err(LifecycleError::Busy),
                Err(error) => return Err(error),
            }
        };
        let meter = self.get(id).await?.record;
        let found = meter.keys.iter().find(|it| it.id == key).cloned();
        let key = found.ok_or(LifecycleError::Busy)?;
        let proved = self.prove_key(&meter.system_title, &key).await;
        Ok(StagedKey { meter, key, already, proved }.told(wish))
    }

    /// Whether the other site has proved a key that is stored here. Asked once: what it proved it has.
    pub(in crate::lifecycle) async fn prove_key(
        &self,
        title: &SystemTitle,
        key: &KeyRecord,
    ) -> Proved {
        let now = self.clock.now();
        if self.proved.knows(&key.id, now) {
            return Proved::Yes;
        }
        let proved = self.proofs.prove(&[self.records.block_of(title)]).await;
        if proved == Proved::Yes {
            self.proved.note(key.id, now);
        }
        proved
    }

    async fn stage_once(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        wish: &Wish,
    ) -> Result<Turn, LifecycleError> {
        let title = self.title_of(id).await?;
        let block = self.records.block_of(&title);
        let member = membership_of(&title, wish.place.setup);
        let keys = [RecordKey::meter(&title), member].map(|key| (block, key));
        let changes = self.writer.change_records(keys).await?;
        let not_found = || LifecycleError::NotFound(id.to_string());
        let change = changes.first().ok_or_else(not_found)?;
        let meter = meter_in(change, id, &title)?;
        if let Some(group) = concerned(change, &title, wish.place) {
            drop(changes);
            return Err(self.not_alone(&group, wish.place.kind).await);
        }
        let now_ms = self.clock.unix_ms();
        let plan = match plan(&meter, wish, &self.config.times, now_ms).map_err(refused)? {
            Staging::Make(plan) => plan,
            Staging::Already(key) => {
                drop(changes);
                self.confirm_staged(call, id, wish).await?;
                return Ok(Turn::Staged { key, already: true });
            }
        };
        // Two blocks are taken in ascending order, and which one the lines go to is known only when the key is made.
        let keys = changes.into_iter().next().ok_or_else(not_found)?.into_keys();
        let made =
            self.taker().make_keys(&[to_make(&keys, wish, &plan)]).await.map_err(not_made)?;
        let made = made.into_iter().next().ok_or_else(|| not_taken("no key was made"))?;
        let made = made.map_err(|why| not_taken(&why.to_string()))?;
        let fresh = Fresh {
            id,
            title,
            wish,
            lines: Lines::of(&meter, wish.place),
            plan,
            made: self.named(made)?,
            secret_version: keys.secret_version(),
        };
        let stored = self.store_fresh(call, std::slice::from_ref(&fresh)).await?;
        match stored.into_iter().next() {
            Some(Ok(_)) => Ok(Turn::Staged { key: fresh.made.id, already: false }),
            Some(Err(NotStored::Changed)) | None => Ok(Turn::Again),
            Some(Err(NotStored::Failed(error))) => Err(error),
        }
    }

    /// What is staged already, and now may be handed out without a proof.
    async fn confirm_staged(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        wish: &Wish,
    ) -> Result<(), LifecycleError> {
        let without_proof = wish.allow_unreplicated;
        let about = About { place: Some(wish.place), version: 0, without_proof };
        let step = |meter: &mut MeterRecord, _| {
            let staged = wish.place.staged(meter).map(|key| key.id);
            let key = meter.keys.iter_mut().find(|key| Some(key.id) == staged);
            let transfer = key.and_then(|key| key.life.transfer.as_mut());
            let changed = wish.allow_unreplicated
                && transfer.is_some_and(|it| !std::mem::replace(&mut it.unreplicated, true));
            Ok((changed, ()))
        };
        self.step(call, id, about, step).await.map(drop)
    }

    /// A key that the token made, with a name of its own.
    pub(super) fn named(&self, value: MadeValue) -> Result<Made, LifecycleError> {
        let MadeValue { stored, for_meter } = value;
        Ok(Made {
            id: self.key_id()?,
            for_meter,
            wrapped: stored.wrapped,
            fingerprint: stored.fingerprint,
            kcv: stored.kcv.unwrap_or_default(),
        })
    }

    pub(in crate::lifecycle) fn key_id(&self) -> Result<KeyId, LifecycleError> {
        let mut id = [0; 16];
        let filled = self.randomness.fill(&mut id);
        let filled = filled.map_err(|error| refusal(RefusalCode::NoRandomness, error.to_string()));
        filled.map_err(LifecycleError::Refused)?;
        Ok(KeyId(id))
    }
}

/// What the token is asked for.
pub(super) fn to_make<'a>(block: &'a KeysOfBlock, wish: &Wish, plan: &'a Plan) -> KeyToMake<'a> {
    let in_token = plan.protection == Protection::Hsm;
    KeyToMake {
        block: block.into(),
        under: in_token.then(|| SealedKek::of_kind(wish.place.kind)),
        len: if plan.value_len == 32 { KeyLen::Aes256 } else { KeyLen::Aes128 },
        kek: &plan.kek_wrapped,
    }
}

pub(in crate::lifecycle) fn not_taken(reason: &str) -> LifecycleError {
    LifecycleError::Refused(refusal(RefusalCode::NotTaken, reason))
}

pub(in crate::lifecycle) fn not_made(error: TakeError) -> LifecycleError {
    match error {
        TakeError::Token(error) => LifecycleError::Unavailable { reason: error.to_string() },
        TakeError::Keyring(error) => error.into(),
    }
}
