//! What can be done with a meter that a campaign is asked for.

use kms_core::{
    MeterId, MeterRecord, RefusalCode,
    campaign::{LABELS_MAX, NAME_MAX, policy::Policy},
    life::{
        NotDone, Times,
        choosing::Place,
        staging::{Wish, plan},
    },
};

use crate::lifecycle::{refusal::Refusal, rotation::check_title};

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
