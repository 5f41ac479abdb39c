//! Which meters a campaign is asked for, by a call or by a schedule.

use kms_core::{KeyState, MeterId, MeterRecord, campaign::policy::Policy, life::choosing::Place};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Meters that somebody wants. All that is said has to be so; with nothing said, it is all meters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// These; empty: whichever.
    pub meter_ids: Vec<MeterId>,
    /// Of this device profile.
    pub profile: String,
    /// Whose id begins so.
    pub id_prefix: String,
    /// Whose title begins so.
    pub title_prefix: Vec<u8>,
    /// The first of the kinds has been preferred for so many days.
    pub older_than_days: u32,
    /// A live version of one of the kinds is compromised.
    pub compromised: bool,
}

/// A rotation that begins by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Campaigns are called so, with the number of their day behind.
    pub name: String,
    /// How they go about it.
    pub policy: Policy,
    /// Which meters are due.
    pub selection: Selection,
}

impl Selection {
    /// Whether it is asked for. Lists are looked up, and not asked about here.
    pub(super) fn has(&self, meter: &MeterRecord, policy: &Policy, now_ms: u64) -> bool {
        let Self { meter_ids: _, profile, id_prefix, title_prefix, older_than_days, compromised } =
            self;
        let of_profile = || meter.policy.profile.as_ref().is_some_and(|it| it.as_str() == profile);
        (profile.is_empty() || of_profile())
            && meter.meter_id.as_str().starts_with(id_prefix.as_str())
            && meter.system_title.as_bytes().starts_with(title_prefix)
            && (*older_than_days == 0 || is_old(meter, policy, *older_than_days, now_ms))
            && (!compromised || policy.places().any(|place| is_compromised(meter, place)))
    }
}

/// Since when the key has been used: for imported ones, since they came in.
fn is_old(meter: &MeterRecord, policy: &Policy, days: u32, now_ms: u64) -> bool {
    let Some(place) = policy.places().next() else { return false };
    place.preferred(meter).is_some_and(|key| {
        let since = key.life.preferred_ms.max(key.created_ms);
        since.saturating_add(u64::from(days) * DAY_MS) <= now_ms
    })
}

fn is_compromised(meter: &MeterRecord, place: Place) -> bool {
    place.preferred(meter).is_none()
        && place.versions(meter).any(|key| key.state == KeyState::Compromised)
}
