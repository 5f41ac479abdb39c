//! Which version protects what is sent, which one waits for evidence, and which pair carries a transfer.

use super::NotDone;
use crate::{KeyKind, KeyRecord, KeyState, MeterRecord, SecuritySetup, StateReason};

/// A key of a meter: its kind in a security setup, all versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The security setup.
    pub setup: SecuritySetup,
    /// The kind.
    pub kind: KeyKind,
}

impl Place {
    /// Where a key is.
    pub const fn of(key: &KeyRecord) -> Self {
        Self { setup: key.setup, kind: key.kind }
    }

    /// All versions there.
    pub fn versions(self, meter: &MeterRecord) -> impl Iterator<Item = &KeyRecord> {
        meter.keys.iter().filter(move |key| Self::of(key) == self)
    }

    /// The version that protects what is sent: of the active ones the one that was preferred last.
    pub fn preferred(self, meter: &MeterRecord) -> Option<&KeyRecord> {
        let active = self.versions(meter).filter(|key| key.state.may_protect());
        active.max_by_key(|key| (key.life.preferred_ms, key.version))
    }

    /// The version that was made here and that the meter has not shown yet.
    pub fn staged(self, meter: &MeterRecord) -> Option<&KeyRecord> {
        self.versions(meter)
            .find(|key| key.state == KeyState::PreActive && key.life.transfer.is_some())
    }

    /// The version that carries a transfer where nobody names one: the preferred one, or else the newest of those that
    /// were compromised and have no successor yet.
    pub fn carries(self, meter: &MeterRecord) -> Option<&KeyRecord> {
        let compromised = || {
            let all = self.versions(meter).filter(|key| key.state == KeyState::Compromised);
            all.max_by_key(|key| key.version)
        };
        self.preferred(meter).or_else(compromised)
    }

    /// Whether a later version is preferred of which it is sure that the meter has it.
    pub(super) fn has_sure_successor(self, meter: &MeterRecord, version: u16) -> bool {
        self.preferred(meter).is_some_and(|preferred| {
            preferred.version > version && preferred.life.reason != StateReason::ConfirmedByResult
        })
    }

    /// The version of this number.
    pub fn version(self, meter: &MeterRecord, version: u16) -> Result<&KeyRecord, NotDone> {
        let Self { setup, kind } = self;
        let found = self.versions(meter).find(|key| key.version == version);
        found.ok_or(NotDone::NoSuchVersion { kind, setup, version })
    }

    /// The latest time at which a version was preferred; a later one than all of them is preferred to all.
    pub(super) fn next_preference(self, meter: &MeterRecord, now_ms: u64) -> u64 {
        let latest = self.versions(meter).map(|key| key.life.preferred_ms).max();
        now_ms.max(latest.unwrap_or_default().saturating_add(1))
    }
}

/// The versions of GUEK and GAK that protect a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    /// Of the GUEK.
    pub encryption: u16,
    /// Of the GAK; `None`: the message gets no tag.
    pub authentication: Option<u16>,
}

/// The pair that carries a transfer of `staged` within its carrier's setup. `named`: the versions that the meter is
/// presumed to hold; `None`: those that are preferred.
pub fn pair(meter: &MeterRecord, staged: &KeyRecord, named: Option<Pair>) -> Result<Pair, NotDone> {
    let setup = staged.life.transfer.as_ref().map_or(staged.setup, |it| it.carrier.setup);
    let of = |kind, version: Option<u16>| {
        let place = Place { setup, kind };
        let key = match version {
            Some(version) => place.version(meter, version)?,
            None => place.carries(meter).ok_or(NotDone::NoCarrier { kind, setup })?,
        };
        if staged.life.destroy_at_ms.is_some() {
            let what = "it is to be destroyed: `ami-tool key restore` takes that back";
            let KeyRecord { kind, version, state, .. } = *staged;
            return Err(NotDone::State { kind, version, state, what });
        }
        if key.id == staged.id {
            return Err(NotDone::UnderItself(kind));
        }
        if !key.state.may_carry() {
            let what = "it carries nothing any more";
            let (version, state) = (key.version, key.state);
            return Err(NotDone::State { kind, version, state, what });
        }
        Ok(key.version)
    };
    let encryption = of(KeyKind::Guek, named.map(|pair| pair.encryption))?;
    let without_tag = named.is_some_and(|pair| pair.authentication.is_none());
    let authentication = match without_tag {
        true => None,
        false => Some(of(KeyKind::Gak, named.and_then(|pair| pair.authentication))?),
    };
    Ok(Pair { encryption, authentication })
}

/// Whether a meter has a version that evidence would change: one that was made here and waits for it, or was confirmed
/// by no more than an answer.
pub fn awaits_evidence(key: &KeyRecord) -> bool {
    let waits = key.state == KeyState::PreActive
        || key.state == KeyState::Active && key.life.reason == StateReason::ConfirmedByResult;
    waits && key.life.transfer.is_some()
}
