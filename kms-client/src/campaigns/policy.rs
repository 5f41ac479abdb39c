//! How a campaign goes about it, and which meters it takes.

use kms_proto::v1;
use serde::Serialize;

use super::parts::small;
use crate::call::ProtocolError;
use crate::meter::{KeyKind, numbered};
use crate::names::MeterId;
use crate::rotation::KeyCarrier;

/// The policy of a campaign. 0 in a number and `None` are the service's defaults, which its answer names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CampaignPolicy {
    /// What is rotated, in this order: GUEK or GAK or both.
    pub kinds: Vec<KeyKind>,
    /// e in `0.0.43.0.e.255`.
    pub security_setup: u8,
    /// Of COSEM class 64 in the meters: 0 or 1.
    pub class_version: u8,
    /// `None`: general-glo-ciphering over the keys' own setup, as each meter's default client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carrier: Option<KeyCarrier>,
    /// Meters that are begun in an hour; 0: as many as are asked for.
    pub rate_per_hour: u32,
    /// Times of the day at which meters are begun; none: always.
    pub windows: Vec<CampaignWindow>,
    /// Meters of one label between sent and proved, at most.
    pub exposure_cap: u32,
    /// The first ones of each label, which all others of it wait for.
    pub canaries: Option<u32>,
    /// Failed ones among 1,000 that came to an end: more, and it pauses by itself.
    pub error_budget_permille: Option<u32>,
    /// Tries of one meter that ended in a failure.
    pub tries_max: u8,
    /// Before a meter is tried again; seconds.
    pub retry_s: u32,
    /// How long a lease lasts; seconds.
    pub lease_s: u32,
    /// Failed authentications in a row at which a meter locks.
    pub hls_failures_max: u8,
    /// How long it stays locked; seconds.
    pub hls_lock_s: u32,
}

/// A time of the day, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CampaignWindow {
    /// The first minute of the day.
    pub from_minute: u16,
    /// The first minute after it; lower than the first one: over midnight.
    pub to_minute: u16,
    /// Bit 0: Monday; 0: every day. The day that it begins on.
    pub weekdays: u8,
}

/// Which meters. All that is said has to be so of a meter; with nothing said, it is all meters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeterSelection {
    /// These, at most [`MeterSelection::IDS_MAX`] in one call; none: whichever.
    pub meter_ids: Vec<MeterId>,
    /// Device profile; empty: whichever.
    pub profile: String,
    /// Beginning of the meter id.
    pub id_prefix: String,
    /// Beginning of the system title, 0 to 8 bytes.
    pub title_prefix: Vec<u8>,
    /// The first of the kinds has been preferred for so many days; 0: however long.
    pub older_than_days: u32,
    /// A live version of one of the kinds is compromised.
    pub compromised: bool,
}

/// A campaign that is to begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CampaignStart {
    /// 1 to 64 letters, digits, dots, dashes and underscores.
    pub name: String,
    /// How it goes about it.
    pub policy: CampaignPolicy,
    /// Which meters.
    pub selection: MeterSelection,
    /// Says what would be begun, and begins nothing.
    pub dry_run: bool,
    /// More meters come with another call: the campaign stays `FILLING`.
    pub more: bool,
}

impl MeterSelection {
    /// Meters that one call may name.
    pub const IDS_MAX: usize = 10_000;

    fn to_wire(&self) -> v1::MeterSelection {
        v1::MeterSelection {
            meter_ids: self.meter_ids.iter().map(ToString::to_string).collect(),
            profile: self.profile.clone(),
            id_prefix: self.id_prefix.clone(),
            title_prefix: self.title_prefix.clone().into(),
            older_than_days: self.older_than_days,
            compromised: self.compromised,
        }
    }
}

impl CampaignStart {
    pub(super) fn to_wire(&self) -> v1::StartCampaignRequest {
        v1::StartCampaignRequest {
            name: self.name.clone(),
            policy: Some(self.policy.to_wire()),
            selection: Some(self.selection.to_wire()),
            dry_run: self.dry_run,
            more: self.more,
        }
    }
}

impl CampaignPolicy {
    fn to_wire(&self) -> v1::CampaignPolicy {
        v1::CampaignPolicy {
            kinds: self.kinds.iter().map(|kind| *kind as i32).collect(),
            security_setup: self.security_setup.into(),
            class_version: self.class_version.into(),
            carrier: self.carrier.map(KeyCarrier::to_wire),
            rate_per_hour: self.rate_per_hour,
            windows: self.windows.iter().map(|window| window.to_wire()).collect(),
            exposure_cap: self.exposure_cap,
            canaries: self.canaries,
            error_budget_permille: self.error_budget_permille,
            tries_max: self.tries_max.into(),
            retry_s: self.retry_s,
            lease_s: self.lease_s,
            hls_failures_max: self.hls_failures_max.into(),
            hls_lock_s: self.hls_lock_s,
        }
    }

    pub(super) fn from_wire(wire: v1::CampaignPolicy) -> Result<Self, ProtocolError> {
        Ok(Self {
            kinds: wire.kinds.into_iter().map(numbered).collect::<Result<_, _>>()?,
            security_setup: small("security_setup", wire.security_setup)?,
            class_version: small("class_version", wire.class_version)?,
            carrier: wire.carrier.map(KeyCarrier::from_wire).transpose()?,
            rate_per_hour: wire.rate_per_hour,
            windows: wire
                .windows
                .iter()
                .map(CampaignWindow::from_wire)
                .collect::<Result<_, _>>()?,
            exposure_cap: wire.exposure_cap,
            canaries: wire.canaries,
            error_budget_permille: wire.error_budget_permille,
            tries_max: small("tries_max", wire.tries_max)?,
            retry_s: wire.retry_s,
            lease_s: wire.lease_s,
            hls_failures_max: small("hls_failures_max", wire.hls_failures_max)?,
            hls_lock_s: wire.hls_lock_s,
        })
    }
}

impl CampaignWindow {
    fn to_wire(self) -> v1::CampaignWindow {
        let Self { from_minute, to_minute, weekdays } = self;
        let (from_minute, to_minute) = (from_minute.into(), to_minute.into());
        v1::CampaignWindow { from_minute, to_minute, weekdays: weekdays.into() }
    }

    fn from_wire(wire: &v1::CampaignWindow) -> Result<Self, ProtocolError> {
        let v1::CampaignWindow { from_minute, to_minute, weekdays } = *wire;
        let from_minute = small("from_minute", from_minute)?;
        let to_minute = small("to_minute", to_minute)?;
        Ok(Self { from_minute, to_minute, weekdays: small("weekdays", weekdays)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::AssociationForm;

    fn policy() -> CampaignPolicy {
        let form = AssociationForm::GeneralGlo;
        CampaignPolicy {
            kinds: vec![KeyKind::Gak, KeyKind::Guek],
            security_setup: 3,
            class_version: 1,
            carrier: Some(KeyCarrier { security_setup: 2, client: 16, form }),
            rate_per_hour: 100,
            windows: vec![CampaignWindow { from_minute: 1_320, to_minute: 300, weekdays: 3 }],
            exposure_cap: 5,
            canaries: Some(0),
            error_budget_permille: Some(0),
            tries_max: 2,
            retry_s: 60,
            lease_s: 30,
            hls_failures_max: 4,
            hls_lock_s: 7,
        }
    }

    #[test]
    fn a_policy_goes_to_the_wire_and_comes_back() {
        assert_eq!(CampaignPolicy::from_wire(policy().to_wire()), Ok(policy()));
        let default = CampaignPolicy::default();
        assert_eq!(CampaignPolicy::from_wire(default.to_wire()), Ok(default));
    }

    #[test]
    fn a_policy_with_a_number_that_is_none_is_refused() {
        let unknown = v1::CampaignPolicy { kinds: vec![99], ..policy().to_wire() };
        let refused = ProtocolError::UnknownNumber { what: "kind", number: 99 };
        assert_eq!(CampaignPolicy::from_wire(unknown), Err(refused));
        let large = v1::CampaignPolicy { tries_max: 256, ..policy().to_wire() };
        let refused = ProtocolError::OutOfRange { what: "tries_max" };
        assert_eq!(CampaignPolicy::from_wire(large), Err(refused));
    }
}
