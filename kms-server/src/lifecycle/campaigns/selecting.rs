//! Which meters a campaign takes: what is asked for, and what can be done.

use kms_core::{
    KeyState, MeterId, MeterRecord, RefusalCode,
    campaign::{LABELS_MAX, NAME_MAX, policy::Policy},
    life::{
        NotDone, Times,
        choosing::Place,
        staging::{Wish, plan},
    },
};

use crate::lifecycle::{refusal::Refusal, rotation::check_title};

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

/// A meter that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The meter.
    pub meter_id: MeterId,
    /// For machines.
    pub code: RefusalCode,
    /// For people.
    pub reason: String,
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

/// The wish that a campaign has for a key of a meter.
pub(super) fn wish(policy: &Policy, place: Place, campaign: &str) -> Wish {
    Wish {
        place,
        class_version: policy.class_version,
        carrier: policy.carrier,
        kek: None,
        protection: None,
        request: format!("campaign {campaign}"),
        allow_unreplicated: false,
        under_compromised_kek: false,
    }
}

/// Whether anything can be done with a meter.
pub(super) fn check(
    meter: &MeterRecord,
    policy: &Policy,
    times: &Times,
    now_ms: u64,
) -> Result<(), Refusal> {
    let refused = |why: NotDone| Refusal { code: why.code(), reason: why.to_string() };
    check_title(meter, &policy.carrier)?;
    for place in policy.places() {
        if place.carries(meter).is_none() {
            return Err(refused(NotDone::NoCarrier { kind: place.kind, setup: place.setup }));
        }
        plan(meter, &wish(policy, place, ""), times, now_ms).map_err(refused)?;
    }
    Ok(())
}

/// The model that exposure is capped by: the device profile, or the manufacturer's three letters where there is none.
pub(super) fn label(meter: &MeterRecord) -> String {
    let label = match &meter.policy.profile {
        Some(profile) => profile.as_str().to_owned(),
        None => {
            let letters = meter.system_title.as_bytes().iter().take(3);
            letters
                .map(|byte| if byte.is_ascii_alphanumeric() { char::from(*byte) } else { '?' })
                .collect()
        }
    };
    label.chars().take(NAME_MAX).collect()
}

/// The place of a label among those of a campaign, where it gets one if it is new. The last one is shared by all that have
/// no place.
pub(super) fn place_of(labels: &mut Vec<String>, label: String) -> u8 {
    let at =
        labels.iter().position(|known| *known == label).unwrap_or_else(|| match labels.len() {
            full if full + 1 >= LABELS_MAX => {
                if full < LABELS_MAX {
                    labels.push("others".to_owned());
                }
                LABELS_MAX - 1
            }
            at => {
                labels.push(label);
                at
            }
        });
    at as u8 // Less than 64.
}
