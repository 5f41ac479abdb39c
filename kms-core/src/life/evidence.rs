//! What proves that a meter has taken a key.
//!
//! | kind | proved by | |
//! |---|---|---|
//! | GUEK | a whole tag of an APDU that the meter originated under it, unicast; its answer of HLS mechanism 5 to a challenge of ours | `EVIDENCE` |
//! | GAK | the same: it is in what the tag covers | `EVIDENCE` |
//! | KEK | a key that travelled under it and shows itself | `TRANSFER_PROVED` |
//! | GBEK; GAK of a meter that sends without tags; a key of a setup that others use | no more than the meter's answer | `CONFIRMED_BY_RESULT` |
//!
//! An answer is a hint, both ways: meters answer OK and have not changed, answer otherwise and have. So it proves nothing
//! of the first three, and of the last ones both versions are kept. What was sent under an old key never takes a new one
//! back.

use super::{
    NotDone, Times,
    choosing::{Place, awaits_evidence},
};
use crate::{
    KeyId, KeyKind, KeyRecord, KeyState, MeterRecord, SecuritySetup, StateReason, TransferResult,
};

/// The keys that a whole tag of the meter's own vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shown {
    /// The security setup.
    pub setup: SecuritySetup,
    /// The GUEK that opened it, if that waits for evidence: by its name, since a number may come to be another key's.
    pub encryption: Option<KeyId>,
    /// The GAK in what its tag covers, if that waits.
    pub authentication: Option<KeyId>,
}

/// A key that was proved, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proved {
    /// The key.
    pub key: KeyId,
    /// Where it is.
    pub place: Place,
    /// Its version.
    pub version: u16,
    /// By what.
    pub reason: StateReason,
}

/// Takes what a meter has shown into its record. What comes back are the keys that this proves; none: nothing changed.
pub fn show(meter: &mut MeterRecord, shown: &Shown, times: &Times, now_ms: u64) -> Vec<Proved> {
    let Shown { setup, encryption, authentication } = *shown;
    let waits = |(kind, id): (KeyKind, Option<KeyId>)| {
        let key = Place { setup, kind }.versions(meter).find(|key| Some(key.id) == id)?;
        awaits_evidence(key).then_some((key.id, key.life.transfer.as_ref().map(|it| it.kek)))
    };
    let both = [(KeyKind::Guek, encryption), (KeyKind::Gak, authentication)];
    let found: Vec<(KeyId, Option<KeyId>)> = both.into_iter().filter_map(waits).collect();
    let mut proved = Vec::new();
    for (key, kek) in found {
        proved.extend(prove(meter, key, StateReason::Evidence, times, now_ms));
        let kek_waits =
            |kek: &KeyId| meter.keys.iter().any(|key| key.id == *kek && awaits_evidence(key));
        if let Some(kek) = kek.filter(kek_waits) {
            proved.extend(prove(meter, kek, StateReason::TransferProved, times, now_ms));
        }
    }
    proved
}

/// Whether a key of this meter is confirmed by no more than the meter's answer.
pub fn is_weak(meter: &MeterRecord, key: &KeyRecord) -> bool {
    let foreign = key.life.transfer.as_ref().is_some_and(|it| it.carrier.setup != key.setup);
    match key.kind {
        KeyKind::Gbek => true,
        KeyKind::Gak => foreign || meter.policy.allow_encryption_only,
        KeyKind::Guek => foreign,
        KeyKind::Kek | KeyKind::Dedicated | KeyKind::HlsSecret | KeyKind::LlsPassword => false,
    }
}

/// Takes the meter's answer to the transfer of what is staged in `place`.
pub fn answered(
    meter: &mut MeterRecord,
    place: Place,
    result: TransferResult,
    (times, now_ms): (&Times, u64),
) -> Result<Option<Proved>, NotDone> {
    let Place { setup, kind } = place;
    // To a transfer that was never handed out nobody has answered: it is the answer to an earlier one, told again.
    let was_sent = |key: &&KeyRecord| {
        awaits_evidence(key) && key.life.transfer.as_ref().is_some_and(|it| it.sent_ms.is_some())
    };
    let newest = place.versions(meter).filter(was_sent).map(|key| key.id).last();
    let id = newest.ok_or(NotDone::NothingStaged { kind, setup })?;
    let mut is_proved = false;
    for at in 0..meter.keys.len() {
        let Some(key) = meter.keys.get(at).filter(|key| key.id == id) else { continue };
        let pre_active = key.state == KeyState::PreActive;
        is_proved = pre_active && result == TransferResult::Success && is_weak(meter, key);
        if let Some(transfer) = meter.keys.get_mut(at).and_then(|key| key.life.transfer.as_mut()) {
            transfer.result = Some((result, now_ms));
        }
    }
    Ok(match is_proved {
        true => prove(meter, id, StateReason::ConfirmedByResult, times, now_ms),
        false => None,
    })
}

/// The key is active and preferred from now on. Where that is sure, its predecessors go: those that were compromised at
/// once, the others when their grace is over. Of one that an answer had confirmed it is now sure, and nothing else: what
/// was preferred since stays so, for late traffic takes no newer key back.
fn prove(
    meter: &mut MeterRecord,
    id: KeyId,
    reason: StateReason,
    times: &Times,
    now_ms: u64,
) -> Option<Proved> {
    let key = meter.keys.iter().find(|key| key.id == id)?;
    let (place, version) = (Place::of(key), key.version);
    let preference = place.next_preference(meter, now_ms);
    let was_active = key.state == KeyState::Active;
    let stays = place.preferred(meter).is_some_and(|it| it.id == id) || !was_active;
    let is_sure = stays && reason != StateReason::ConfirmedByResult;
    let held = meter.legal_hold_ms.is_some();
    for key in meter.keys.iter_mut().filter(|key| Place::of(key) == place) {
        if key.id == id {
            match key.state {
                KeyState::Active => key.life.reason = reason,
                _ => key.go_on(KeyState::Active, reason, now_ms),
            }
            if !was_active {
                key.life.preferred_ms = preference;
                key.life.usable_until_ms = None;
            }
            // What the meter holds is not destroyed by a word from before anybody knew that.
            key.life.destroy_at_ms = None;
        } else if is_sure && key.version < version && key.state == KeyState::Active {
            let until = now_ms.saturating_add(times.grace_ms);
            key.life.usable_until_ms = key.life.usable_until_ms.or(Some(until));
        } else if is_sure && !held && key.version < version && key.state == KeyState::Compromised {
            key.go_on(KeyState::Destroyed, StateReason::WipedAfterSuccessor, now_ms);
        }
    }
    Some(Proved { key: id, place, version, reason })
}
