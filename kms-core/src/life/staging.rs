//! Staging: the plan for a key that is to be made in the token, and what becomes of it there.

use super::{LIVE_MAX, NotDone, Times, choosing::Place};
use crate::{
    Carrier, Fingerprint, FormerKey, FormerUse, Kcv, KeyId, KeyKind, KeyLife, KeyRecord, KeyState,
    MeterRecord, Protection, StateReason, Transfer,
};

/// A key that somebody wants for a meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Where it belongs.
    pub place: Place,
    /// Of COSEM class 64 in the meter.
    pub class_version: u8,
    /// The association that is to carry it.
    pub carrier: Carrier,
    /// The version of the KEK that it travels under; `None`: the preferred one of its setup.
    pub kek: Option<u16>,
    /// Where its clear bytes may be; `None`: as its predecessor's, or the default.
    pub protection: Option<Protection>,
    /// The name of the request.
    pub request: String,
    /// It may be handed out although the other site has not proved it.
    pub allow_unreplicated: bool,
    /// Two people know that the KEK is compromised.
    pub under_compromised_kek: bool,
}

/// What staging comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Staging {
    /// A value is staged already, and it stays that one, whoever asks.
    Already(KeyId),
    /// A key is to be made.
    Make(Plan),
}

/// A key that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The number that it gets.
    pub version: u16,
    /// In bytes.
    pub value_len: u8,
    /// Where its clear bytes may be.
    pub protection: Protection,
    /// The KEK that it travels under.
    pub kek: KeyId,
    /// That KEK as its record has it.
    pub kek_wrapped: Vec<u8>,
    /// A deactivated version that makes room.
    pub makes_room: Option<KeyId>,
}

/// A key that the token made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its name.
    pub id: KeyId,
    /// Under the meter's KEK.
    pub for_meter: Vec<u8>,
    /// As it is stored.
    pub wrapped: Vec<u8>,
    /// Identity of its value.
    pub fingerprint: Fingerprint,
    /// Its check value.
    pub kcv: Kcv,
}

/// Looks what is to be done for a wish.
pub fn plan(
    meter: &MeterRecord,
    wish: &Wish,
    times: &Times,
    now_ms: u64,
) -> Result<Staging, NotDone> {
    let place = wish.place;
    if let Some(staged) = place.staged(meter) {
        return Ok(Staging::Already(staged.id));
    }
    check_kind(wish)?;
    let kek = kek_of(meter, wish)?;
    let before = place.carries(meter);
    let value_len = before.map_or(kek.value_len, |key| key.value_len);
    if value_len != kek.value_len {
        return Err(NotDone::SuitesMixed { kek: kek.value_len, key: value_len });
    }
    let default = before.map_or_else(|| place.kind.default_protection(), |key| key.protection);
    let newest = place.versions(meter).map(|key| key.version).max().unwrap_or_default();
    let full = NotDone::RecordFull { kind: place.kind };
    let version = newest.checked_add(1).ok_or_else(|| full.clone())?;
    let makes_room = room(meter, place, times, now_ms)?;
    if is_full(meter, place) && makes_room.is_none() && buried_next(meter, place).is_none() {
        return Err(full);
    }
    Ok(Staging::Make(Plan {
        version,
        value_len,
        protection: wish.protection.unwrap_or(default),
        kek: kek.id,
        kek_wrapped: kek.wrapped.clone(),
        makes_room,
    }))
}

fn check_kind(wish: &Wish) -> Result<(), NotDone> {
    match (wish.place.kind, wish.class_version) {
        (_, 2..) => Err(NotDone::ClassVersion(wish.class_version)),
        (KeyKind::Kek, 0) => Err(NotDone::NoKekChange),
        (KeyKind::Guek | KeyKind::Gbek | KeyKind::Gak | KeyKind::Kek, _) => Ok(()),
        (kind @ (KeyKind::Dedicated | KeyKind::HlsSecret | KeyKind::LlsPassword), _) => {
            Err(NotDone::NotTransferable(kind))
        }
    }
}

fn kek_of<'m>(meter: &'m MeterRecord, wish: &Wish) -> Result<&'m KeyRecord, NotDone> {
    let setup = wish.place.setup;
    let place = Place { setup, kind: KeyKind::Kek };
    let kek = match wish.kek {
        Some(version) => place.version(meter, version)?,
        None => place.carries(meter).ok_or(NotDone::NoKek(setup))?,
    };
    match kek.state {
        KeyState::Compromised if !wish.under_compromised_kek => Err(NotDone::KekCompromised(setup)),
        state if !state.may_carry() => {
            let what = "no key travels under it any more";
            Err(NotDone::State { kind: KeyKind::Kek, version: kek.version, state, what })
        }
        _ => Ok(kek),
    }
}

/// The version that has to go for another one to come: the one that was deactivated first, if that is long ago.
fn room(
    meter: &MeterRecord,
    place: Place,
    times: &Times,
    now_ms: u64,
) -> Result<Option<KeyId>, NotDone> {
    let live = place.versions(meter).filter(|key| key.is_live()).count();
    if live < LIVE_MAX {
        return Ok(None);
    }
    let Place { setup, kind } = place;
    // More than are tried came in by a release that did not know the bound: one that goes makes no room.
    if live > LIVE_MAX {
        return Err(NotDone::TooManyLive { kind, setup });
    }
    let long_ago = |key: &&KeyRecord| key.changed_ms.saturating_add(times.retention_ms) <= now_ms;
    let deactivated = place.versions(meter).filter(|key| key.state == KeyState::Deactivated);
    let oldest = deactivated.filter(long_ago).min_by_key(|key| (key.changed_ms, key.version));
    match oldest {
        Some(_) if meter.legal_hold_ms.is_some() => Err(NotDone::LegalHold),
        Some(key) => Ok(Some(key.id)),
        None => Err(NotDone::TooManyLive { kind, setup }),
    }
}

/// Whether no further version fits into the record.
pub(super) fn is_full(meter: &MeterRecord, place: Place) -> bool {
    place.versions(meter).count() >= MeterRecord::VERSIONS_A_KEY
        || meter.keys.len() >= MeterRecord::VERSIONS_A_METER
}

/// The destroyed version whose row may go: the oldest of the place, or of the meter where that is full.
fn buried_next(meter: &MeterRecord, place: Place) -> Option<usize> {
    let of_place = place.versions(meter).count() >= MeterRecord::VERSIONS_A_KEY;
    let rows = meter.keys.iter().enumerate();
    let gone = rows.filter(|(_, key)| {
        key.state == KeyState::Destroyed && (!of_place || Place::of(key) == place)
    });
    let oldest = gone.min_by_key(|(_, key)| key.changed_ms).map(|(at, _)| at);
    oldest.filter(|_| meter.former.len() < FormerKey::MAX)
}

/// Makes room in a full record: a destroyed version is known by its value from then on, as those of a deleted meter are,
/// and never comes back.
pub(super) fn bury(meter: &mut MeterRecord, place: Place) {
    if !is_full(meter, place) {
        return;
    }
    if let Some(at) = buried_next(meter, place) {
        let KeyRecord { fingerprint, setup, kind, state, .. } = meter.keys.remove(at);
        let was = Some(FormerUse { setup, kind, state });
        // A value that goes on as another version is still there.
        if !meter.keys.iter().any(|key| key.fingerprint == fingerprint) {
            meter.former.push(FormerKey { fingerprint, was });
        }
    }
}

/// Puts a key that was made by `plan` into its meter's record.
pub fn stage(meter: &mut MeterRecord, wish: &Wish, plan: &Plan, made: Made, now_ms: u64) {
    let makes_room = plan.makes_room;
    if let Some(key) = meter.keys.iter_mut().find(|key| Some(key.id) == makes_room) {
        key.go_on(KeyState::Destroyed, StateReason::MadeRoom, now_ms);
    }
    bury(meter, wish.place);
    let Made { id, for_meter, wrapped, fingerprint, kcv } = made;
    let transfer = Transfer {
        request: wish.request.clone(),
        kek: plan.kek,
        class_version: wish.class_version,
        carrier: wish.carrier,
        wrapped: for_meter,
        unreplicated: wish.allow_unreplicated,
        sent_ms: None,
        result: None,
    };
    let life =
        KeyLife { reason: StateReason::Staged, transfer: Some(transfer), ..KeyLife::default() };
    meter.keys.push(KeyRecord {
        id,
        setup: wish.place.setup,
        kind: wish.place.kind,
        version: plan.version,
        state: KeyState::PreActive,
        protection: plan.protection,
        wrapped,
        value_len: plan.value_len,
        created_ms: now_ms,
        changed_ms: now_ms,
        kcv: Some(kcv),
        fingerprint,
        life,
    });
    meter.keys.sort_by_key(|key| (key.setup, key.kind, key.version));
}
