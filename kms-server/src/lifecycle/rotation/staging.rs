//! Staging: the token makes a key, and it is stored with its counter lines, before anybody sends it.

use std::collections::BTreeSet;

use super::changing::{About, has_counters, meter_in, refused};
use crate::{
    hsm::KeyLen,
    keyring::{Change, KeyToMake, MadeValue, TakeError},
    lifecycle::{
        error::LifecycleError,
        groups::{concerned, membership_of},
        refusal::refusal,
        verbs::{Lifecycle, TRIES},
    },
};
use kms_core::{
    Fingerprint, KeyId, KeyRecord, MeterId, MeterRecord, Protection, Record, RecordKey,
    RefusalCode, SealedKek, SystemTitle,
    audit::{AuditEntry, AuditOutcome, AuditedCall, Detail, Subject},
    counters::{Line, LineName},
    life::{
        choosing::Place,
        staging::{Made, Plan, Staging, Wish, plan, stage},
    },
    ports::Proved,
    profile::CountersOnNewKey,
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

/// A turn of staging.
enum Turn {
    /// It is staged.
    Staged { key: KeyId, already: bool },
    /// The block was changed meanwhile: the plan is another one.
    Again,
}

/// A key that the token made, and what it was made for.
struct Fresh {
    plan: Plan,
    made: Made,
    /// It is wrapped under this secret of the block.
    secret_version: u32,
    lines: Vec<Line>,
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
        if wish.allow_unreplicated && matches!(proved, Proved::No(_)) {
            tracing::warn!(
                meter = %meter.meter_id,
                kind = %key.kind,
                version = key.version,
                "a staged key may be handed out that the other site has not proved: if this site is lost, so is the meter"
            );
        }
        Ok(StagedKey { meter, key, already, proved })
    }

    /// Whether the other site has proved a key that is stored here. Asked once: what it proved it has.
    pub(super) async fn prove_key(&self, title: &SystemTitle, key: &KeyRecord) -> Proved {
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
        let secret_version = change.secret_version();
        let value = self.make(change, wish, &plan).await?;
        // Two blocks are taken in ascending order, and which one the lines go to is known only now.
        drop(changes);
        let MadeValue { stored, for_meter } = value;
        let made = Made {
            id: self.key_id()?,
            for_meter,
            wrapped: stored.wrapped,
            fingerprint: stored.fingerprint,
            kcv: stored.kcv.unwrap_or_default(),
        };
        let lines = self.lines_of(&meter, wish.place, made.fingerprint).await?;
        let fresh = Fresh { plan, made, secret_version, lines };
        self.store_fresh(call, (id, &title), wish, fresh).await
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

    async fn make(
        &self,
        change: &Change,
        wish: &Wish,
        plan: &Plan,
    ) -> Result<MadeValue, LifecycleError> {
        let in_token = plan.protection == Protection::Hsm;
        let wanted = KeyToMake {
            change,
            under: in_token.then(|| SealedKek::of_kind(wish.place.kind)),
            len: if plan.value_len == 32 { KeyLen::Aes256 } else { KeyLen::Aes128 },
            kek: &plan.kek_wrapped,
        };
        let made = self.taker().make_keys(&[wanted]).await.map_err(not_made)?;
        let one = made.into_iter().next().ok_or_else(|| not_taken("no key was made"))?;
        one.map_err(|why| not_taken(&why.to_string()))
    }

    /// Commits the key with its lines, if its meter is still as it was planned for.
    async fn store_fresh(
        &self,
        call: &AuditedCall,
        (id, title): (&MeterId, &SystemTitle),
        wish: &Wish,
        fresh: Fresh,
    ) -> Result<Turn, LifecycleError> {
        let of_lines = fresh
            .lines
            .iter()
            .map(|line| (self.counting.block_of(&line.name), RecordKey::line(&line.name)));
        let own = (self.records.block_of(title), RecordKey::meter(title));
        let member = (own.0, membership_of(title, wish.place.setup));
        let mut changes = self.writer.change_records(of_lines.chain([own, member])).await?;
        let now_ms = self.clock.unix_ms();
        let mut entry = None;
        for change in &mut changes {
            if change.block() == own.0 {
                let mut meter = meter_in(change, id, title)?;
                let same = plan(&meter, wish, &self.config.times, now_ms).map_err(refused)?;
                let as_planned = same == Staging::Make(fresh.plan.clone());
                let is_groups = concerned(change, title, wish.place).is_some();
                if !as_planned || is_groups || change.secret_version() != fresh.secret_version {
                    return Ok(Turn::Again);
                }
                stage(&mut meter, wish, &fresh.plan, fresh.made.clone(), now_ms);
                meter.changed_by = meter.changed_by.next(now_ms);
                change.put(Record::Meter(meter));
                let subject = Subject {
                    system_title: Some(*title),
                    block: Some(change.block()),
                    ..Subject::meter(id)
                };
                entry = Some(said(call.entry(now_ms, subject, AuditOutcome::Done), wish, &fresh));
            }
            for line in &fresh.lines {
                if self.counting.block_of(&line.name) == change.block() {
                    change.put(Record::Line(*line));
                }
            }
        }
        self.writer.commit(changes, entry.into_iter().collect()).await?;
        Ok(Turn::Staged { key: fresh.made.id, already: false })
    }

    /// Where the counters of a new key begin, for each title that the utility has towards the meter in its setup. As low
    /// as the parity allows where the meter's profile says that it begins anew; above the former key's line where it keeps its
    /// counters, or nobody knows. A former line that nobody declared says nothing, and neither does this one then.
    pub(in crate::lifecycle) async fn lines_of(
        &self,
        meter: &MeterRecord,
        place: Place,
        fingerprint: Fingerprint,
    ) -> Result<Vec<Line>, LifecycleError> {
        if !has_counters(place.kind) {
            return Ok(Vec::new());
        }
        let profile = meter.policy.profile.as_ref().and_then(|name| self.profiles.get(name));
        let resets = profile.is_some_and(|it| it.counters_on_new_key == CountersOnNewKey::Reset);
        let epoch = self.counting.standing().epoch;
        // Above the lines of all versions that the meter may hold: it may have used the newest, whatever is preferred.
        let mut former = Vec::new();
        for key in place.versions(meter).filter(|key| key.is_live() && !resets) {
            let any = LineName { fingerprint: key.fingerprint, originator: meter.system_title };
            let lines = self.counting.lines(self.counting.block_of(&any)).await?.lines;
            former.push((key.fingerprint, lines));
        }
        let mut lines = Vec::new();
        for originator in titles(meter, place) {
            let name = LineName { fingerprint, originator };
            let before = former.iter().filter_map(|(fingerprint, known)| {
                let name = LineName { fingerprint: *fingerprint, originator };
                known.get(&name).and_then(|(line, _)| line.offset)
            });
            let line = match before.max() {
                Some(offset) => Line::after(name, offset, epoch),
                None if former.is_empty() => Line::of_new_key(name, epoch),
                None => Ok(Line::undeclared(name)),
            };
            // Without room above the former one it waits to be declared, as an imported key does.
            lines.push(line.unwrap_or(Line::undeclared(name)));
        }
        Ok(lines)
    }

    pub(in crate::lifecycle) fn key_id(&self) -> Result<KeyId, LifecycleError> {
        let mut id = [0; 16];
        let filled = self.randomness.fill(&mut id);
        let filled = filled.map_err(|error| refusal(RefusalCode::NoRandomness, error.to_string()));
        filled.map_err(LifecycleError::Refused)?;
        Ok(KeyId(id))
    }
}

/// The utility's titles towards a meter within a setup.
fn titles(meter: &MeterRecord, place: Place) -> BTreeSet<SystemTitle> {
    let clients = meter.policy.client_titles.as_slice().iter();
    let of_setup = clients.filter(|it| it.setup == place.setup).map(|it| it.title);
    of_setup.chain(meter.policy.client_title).collect()
}

fn said(entry: AuditEntry, wish: &Wish, fresh: &Fresh) -> AuditEntry {
    let about =
        About { place: Some(wish.place), version: fresh.plan.version, without_proof: false };
    let entry = entry.with(Detail::KeysAdded, 1);
    let entry = about.details().fold(entry, |entry, (detail, number)| entry.with(detail, number));
    match wish.allow_unreplicated {
        true => entry.with(Detail::WithoutProof, 1),
        false => entry,
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
