//! What time brings: the end of a grace, and of the delay before a destruction.

use super::choosing::Place;
use crate::{KeyRecord, KeyState, MeterRecord, StateReason};

/// The time at which something of this meter is due first; milliseconds since 1970.
pub fn next(meter: &MeterRecord) -> Option<u64> {
    let held = meter.legal_hold_ms.is_some();
    let wiped = |key: &KeyRecord| (!held && is_to_be_wiped(meter, key)).then_some(0);
    let due = |it: &KeyRecord| {
        [it.life.usable_until_ms, it.life.destroy_at_ms.filter(|_| !held), wiped(it)]
    };
    meter.keys.iter().flat_map(due).flatten().min()
}

/// Does what is due. Whether anything was.
pub fn pass(meter: &mut MeterRecord, now_ms: u64) -> bool {
    let held = meter.legal_hold_ms.is_some();
    let over = |time: Option<u64>| time.is_some_and(|time| time <= now_ms);
    let mut changed = false;
    for at in 0..meter.keys.len() {
        let Some(key) = meter.keys.get(at) else { continue };
        let is_preferred =
            Place::of(key).preferred(meter).is_some_and(|preferred| preferred.id == key.id);
        let wiped = !held && is_to_be_wiped(meter, key);
        let Some(key) = meter.keys.get_mut(at) else { continue };
        if wiped {
            key.go_on(KeyState::Destroyed, StateReason::WipedAfterSuccessor, now_ms);
            changed = true;
        }
        if over(key.life.usable_until_ms) {
            // What is preferred again stays: somebody moved the preference back.
            key.life.usable_until_ms = None;
            if !is_preferred {
                key.go_on(KeyState::Deactivated, StateReason::Superseded, now_ms);
            }
            changed = true;
        }
        if !held && over(key.life.destroy_at_ms) {
            destroy(key, now_ms);
            changed = true;
        }
    }
    changed
}

/// Of a compromised one nothing is kept once its successor is proved: one that was compromised at the other site, or was
/// held meanwhile.
fn is_to_be_wiped(meter: &MeterRecord, key: &KeyRecord) -> bool {
    key.state == KeyState::Compromised && Place::of(key).has_sure_successor(meter, key.version)
}

/// Through the states that come before.
fn destroy(key: &mut KeyRecord, now_ms: u64) {
    if key.state == KeyState::Active {
        key.go_on(KeyState::Deactivated, StateReason::Withdrawn, now_ms);
    }
    key.go_on(KeyState::Destroyed, StateReason::DestroyedOnDemand, now_ms);
}
