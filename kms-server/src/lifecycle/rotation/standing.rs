//! What the meter answered, and what people decide of one version.

use super::changing::{About, Stepped};
use crate::lifecycle::{error::LifecycleError, refusal::refusal, verbs::Lifecycle};
use kms_core::{
    KeyId, KeyState, MeterId, RefusalCode, TransferResult,
    audit::AuditedCall,
    life::{
        choosing::Place,
        evidence::{Proved, answered},
        standing::{Destruction, compromise, destroy, prefer, restore, revive},
    },
};

impl Lifecycle {
    /// Takes in the meter's answer to a transfer: a hint, except of keys that nothing else shows.
    pub async fn confirm_key(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        place: Place,
        result: TransferResult,
    ) -> Result<Stepped<Option<Proved>>, LifecycleError> {
        let about = About { place: Some(place), version: 0, without_proof: false };
        let times = self.config.times;
        self.step(call, id, about, |meter, now_ms| {
            Ok((true, answered(meter, place, result, (&times, now_ms))?))
        })
        .await
    }

    /// Moves the preference to this version.
    pub async fn roll_back_key(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        (place, version): (Place, u16),
    ) -> Result<Stepped<bool>, LifecycleError> {
        let about = About { place: Some(place), version, without_proof: false };
        self.step(call, id, about, |meter, now_ms| {
            let changed = prefer(meter, place, version, now_ms)?;
            Ok((changed, changed))
        })
        .await
    }

    /// Has a key that was given up go on as a new version: the number of that.
    pub async fn revive_key(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        (place, version): (Place, u16),
    ) -> Result<Stepped<u16>, LifecycleError> {
        let mut fresh = [0; 16];
        let filled = self.randomness.fill(&mut fresh);
        filled.map_err(|error| {
            LifecycleError::Refused(refusal(RefusalCode::NoRandomness, error.to_string()))
        })?;
        let about = About { place: Some(place), version, without_proof: false };
        self.step(call, id, about, |meter, now_ms| {
            Ok((true, revive(meter, place, version, KeyId(fresh), now_ms)?))
        })
        .await
    }

    /// A key is known to others.
    pub async fn compromise_key(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        (place, version): (Place, u16),
    ) -> Result<Stepped<KeyState>, LifecycleError> {
        let about = About { place: Some(place), version, without_proof: false };
        self.step(call, id, about, |meter, now_ms| {
            let before = place.version(meter, version)?.state;
            let state = compromise(meter, place, version, now_ms)?;
            Ok((state != before, state))
        })
        .await
    }

    /// Has a version destroyed when the delay is over: the time of that.
    pub async fn destroy_key(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        (place, version): (Place, u16),
        last_way: bool,
    ) -> Result<Stepped<u64>, LifecycleError> {
        let about = About { place: Some(place), version, without_proof: false };
        let delay_ms = self.config.times.destroy_delay_ms;
        self.step(call, id, about, |meter, now_ms| {
            let before = place.version(meter, version)?.life.destroy_at_ms;
            let asked = Destruction { last_way, delay_ms, now_ms };
            let at = destroy(meter, place, version, asked)?;
            Ok((before != Some(at), at))
        })
        .await
    }

    /// Takes back that a version is to be destroyed.
    pub async fn restore_key(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        (place, version): (Place, u16),
    ) -> Result<Stepped<bool>, LifecycleError> {
        let about = About { place: Some(place), version, without_proof: false };
        self.step(call, id, about, |meter, _| {
            let changed = restore(meter, place, version)?;
            Ok((changed, changed))
        })
        .await
    }

    /// Puts a meter under a legal hold, or lifts it.
    pub async fn set_legal_hold(
        &self,
        call: &AuditedCall,
        id: &MeterId,
        hold: bool,
    ) -> Result<Stepped<bool>, LifecycleError> {
        let about = About { place: None, version: 0, without_proof: false };
        self.step(call, id, about, |meter, now_ms| {
            let changed = meter.legal_hold_ms.is_some() != hold;
            if changed {
                meter.legal_hold_ms = hold.then_some(now_ms);
            }
            Ok((changed, changed))
        })
        .await
    }
}
