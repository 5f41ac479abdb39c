//! What people decide about one version of a key.

use super::{LIVE_MAX, NotDone, choosing::Place};
use crate::{KeyId, KeyLife, KeyRecord, KeyState, MeterRecord, StateReason};

/// Moves the preference to this version: to the predecessor, of a meter that fell back to it, or forward again. What is
/// staged stays staged. Whether anything changed.
pub fn prefer(
    meter: &mut MeterRecord,
    place: Place,
    version: u16,
    now_ms: u64,
) -> Result<bool, NotDone> {
    let key = place.version(meter, version)?;
    if key.state != KeyState::Active {
        let what = match key.state {
            KeyState::PreActive => {
                "the meter has not shown it yet, and the former one is preferred anyway"
            }
            KeyState::Deactivated => {
                "its grace is over; if the meter was set back to it, revive it (`ami-tool key revive`)"
            }
            _ => "it protects nothing any more",
        };
        return Err(NotDone::State { kind: place.kind, version, state: key.state, what });
    }
    let id = key.id;
    if place.preferred(meter).is_some_and(|preferred| preferred.id == id) {
        return Ok(false);
    }
    let preference = place.next_preference(meter, now_ms);
    if let Some(key) = meter.keys.iter_mut().find(|key| key.id == id) {
        key.life.preferred_ms = preference;
        key.life.usable_until_ms = None;
        key.life.destroy_at_ms = None;
    }
    Ok(true)
}

/// A meter was set back to a key that is given up: its value goes on as a new version, since a key never goes back. Its
/// counters go on where they were, for they are the value's.
pub fn revive(
    meter: &mut MeterRecord,
    place: Place,
    version: u16,
    id: KeyId,
    now_ms: u64,
) -> Result<u16, NotDone> {
    let key = place.version(meter, version)?;
    if key.state != KeyState::Deactivated {
        let what = match key.state {
            KeyState::Active => "it is usable as it is; `ami-tool key rollback` prefers it",
            KeyState::Compromised => "what is known to others does not come back",
            KeyState::Destroyed => "nothing is left of it",
            _ => "the meter has not shown it yet",
        };
        return Err(NotDone::State { kind: place.kind, version, state: key.state, what });
    }
    let newest = place.versions(meter).map(|key| key.version).max().unwrap_or_default();
    let number = newest.checked_add(1).ok_or(NotDone::RecordFull { kind: place.kind })?;
    let preferred_ms = place.next_preference(meter, now_ms);
    let life = KeyLife { reason: StateReason::Revived, preferred_ms, ..KeyLife::default() };
    let state = KeyState::Active;
    let revived = KeyRecord { id, version: number, state, changed_ms: now_ms, life, ..key.clone() };
    let before = key.id;
    if let Some(key) = meter.keys.iter_mut().find(|key| key.id == before) {
        key.go_on(KeyState::Destroyed, StateReason::GoesOnAsAnother, now_ms);
    }
    meter.keys.push(revived);
    // The former row of the value may go, for the value stands.
    if is_over_full(meter, place) {
        meter.keys.retain(|key| key.id != before);
    }
    meter.keys.sort_by_key(|key| (key.setup, key.kind, key.version));
    Ok(number)
}

fn is_over_full(meter: &MeterRecord, place: Place) -> bool {
    place.versions(meter).count() > MeterRecord::VERSIONS_A_KEY
        || meter.keys.len() > MeterRecord::VERSIONS_A_METER
}

/// The key is known to others. It carries the transfer of its successor and nothing else; where that one is proved
/// already, it is wiped at once. The state that it has then.
pub fn compromise(
    meter: &mut MeterRecord,
    place: Place,
    version: u16,
    now_ms: u64,
) -> Result<KeyState, NotDone> {
    let key = place.version(meter, version)?;
    let id = key.id;
    let held = meter.legal_hold_ms.is_some();
    let has_successor = place.has_sure_successor(meter, version);
    let Some(key) = meter.keys.iter_mut().find(|key| key.id == id) else {
        return Err(NotDone::NoSuchVersion { kind: place.kind, setup: place.setup, version });
    };
    key.go_on(KeyState::Compromised, StateReason::ReportedCompromised, now_ms);
    if has_successor && !held {
        key.go_on(KeyState::Destroyed, StateReason::WipedAfterSuccessor, now_ms);
    }
    Ok(key.state)
}

/// How a version is to be destroyed.
#[derive(Clone, Copy, Debug)]
pub struct Destruction {
    /// Somebody knows that the meter may not be reached without it.
    pub last_way: bool,
    /// After so long.
    pub delay_ms: u64,
    /// Now.
    pub now_ms: u64,
}

/// Has a version destroyed when the delay is over: the time of that.
pub fn destroy(
    meter: &mut MeterRecord,
    place: Place,
    version: u16,
    asked: Destruction,
) -> Result<u64, NotDone> {
    let Destruction { last_way, delay_ms, now_ms } = asked;
    let Place { kind, .. } = place;
    let key = place.version(meter, version)?;
    if key.state == KeyState::Destroyed {
        let what = "nothing is left of it";
        return Err(NotDone::State { kind, version, state: key.state, what });
    }
    if meter.legal_hold_ms.is_some() {
        return Err(NotDone::LegalHold);
    }
    if !last_way && is_last_way(meter, place, key) {
        return Err(NotDone::LastWay { kind, version });
    }
    let id = key.id;
    let at = now_ms.saturating_add(delay_ms);
    let key = meter.keys.iter_mut().find(|key| key.id == id);
    let Some(key) = key else {
        return Err(NotDone::NoSuchVersion { kind, setup: place.setup, version });
    };
    // Asked twice, it is not put off.
    let at = key.life.destroy_at_ms.map_or(at, |before| before.min(at));
    // Nobody has it but us: another one may be staged at once.
    if key.state == KeyState::PreActive && !was_sent(key) {
        key.go_on(KeyState::Deactivated, StateReason::Withdrawn, now_ms);
    }
    key.life.destroy_at_ms = Some(at);
    Ok(at)
}

/// Whether nothing else of its place reaches the meter, or the meter may hold it already and nothing else tells.
fn is_last_way(meter: &MeterRecord, place: Place, key: &KeyRecord) -> bool {
    // One whose grace ends goes by itself.
    let stays = |other: &&KeyRecord| {
        let KeyLife { destroy_at_ms, usable_until_ms, reason, .. } = &other.life;
        let is_sure = *reason != StateReason::ConfirmedByResult;
        other.id != key.id && destroy_at_ms.is_none() && usable_until_ms.is_none() && is_sure
    };
    let mut others = place.versions(meter).filter(stays);
    let never_left = key.state == KeyState::PreActive && !was_sent(key);
    if never_left {
        return false;
    }
    let is_preferred = place.preferred(meter).is_some_and(|preferred| preferred.id == key.id);
    key.state == KeyState::PreActive
        || is_preferred
        || key.state.may_carry() && !others.any(|other| other.state.may_protect())
}

fn was_sent(key: &KeyRecord) -> bool {
    key.life.transfer.as_ref().is_some_and(|it| it.sent_ms.is_some())
}

/// Takes back the word that a version is to be destroyed. Whether there was one.
pub fn restore(meter: &mut MeterRecord, place: Place, version: u16) -> Result<bool, NotDone> {
    let key = place.version(meter, version)?;
    let Place { kind, .. } = place;
    if key.state == KeyState::Destroyed {
        let what = "the delay is over, and nothing is left of it";
        return Err(NotDone::State { kind, version, state: key.state, what });
    }
    let id = key.id;
    let key = meter.keys.iter_mut().find(|key| key.id == id);
    Ok(key.is_some_and(|key| key.life.destroy_at_ms.take().is_some()))
}

/// Whether another version may come in beside those that are live.
pub fn has_room(meter: &MeterRecord, place: Place) -> bool {
    place.versions(meter).filter(|key| key.is_live()).count() < LIVE_MAX
}
