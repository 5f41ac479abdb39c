//! Meters, their keys and their policies, in the words of the operators' files.

use dlms::SystemTitle;
use kms_core::Numbered;
use kms_core::block::spread;
use kms_proto::v1;
use serde::{Deserialize, Serialize};

use crate::call::ProtocolError;
use crate::names::{MeterId, optional_title_hex, title_hex};
use crate::secret::KeyBytes;

pub use kms_core::{
    AssociationForm, KeyKind, KeyState, MinimumProtection, ProfileName, Protection, StateReason,
    TransferResult,
};

/// The item that a number of the wire stands for.
pub(crate) fn numbered<T: Numbered>(number: i32) -> Result<T, ProtocolError> {
    let item = u8::try_from(number).ok().and_then(T::from_number);
    item.ok_or(ProtocolError::UnknownNumber { what: T::WHAT, number })
}

/// The policy of a meter: what the service accepts from it, and how it names the two sides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeterPolicy {
    /// Absent: authenticated at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_protection: Option<MinimumProtection>,
    /// Accept encryption-only APDUs; they come back as unauthenticated.
    pub allow_encryption_only: bool,
    /// Accept tagged APDUs although the GAK is withheld from us; they come back as unauthenticated.
    pub allow_withheld_authentication_key: bool,
    /// For the meter's own APDUs that carry no title. Absent: its system title.
    #[serde(with = "optional_title_hex", skip_serializing_if = "Option::is_none")]
    pub default_system_title: Option<SystemTitle>,
    /// The utility's title, for APDUs that the utility's side originated.
    #[serde(with = "optional_title_hex", skip_serializing_if = "Option::is_none")]
    pub client_title: Option<SystemTitle>,
    /// Leave general-ciphering's header out of the additional data.
    pub general_ciphering_omit_header: bool,
    /// The device profile of the meter's make. Absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<ProfileName>,
    /// The titles of single clients, where they differ from `client_title`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub client_titles: Vec<ClientTitle>,
    /// Give the plaintext of what opens under a compromised key, too.
    pub allow_compromised: bool,
}

/// The utility's title for the messages of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTitle {
    /// e in `0.0.43.0.e.255`.
    #[serde(default)]
    pub security_setup: u8,
    /// The client's address (SAP).
    pub client: u16,
    /// The title that its messages carry.
    #[serde(with = "title_hex")]
    pub system_title: SystemTitle,
}

/// A meter to be made known, as one import line says it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewMeter {
    /// The operator's name.
    pub meter_id: MeterId,
    /// The name on the wire.
    #[serde(with = "title_hex")]
    pub system_title: SystemTitle,
    /// COSEM logical device name; may be empty.
    #[serde(default)]
    pub logical_device_name: String,
    /// The keys it comes with.
    #[serde(default)]
    pub keys: Vec<NewKey>,
    /// Absent: the defaults.
    #[serde(default)]
    pub policy: Option<MeterPolicy>,
}

impl NewMeter {
    /// The place of the meter among all that a site stores: those of one key block are side by side
    /// in this order, whatever the number of blocks. An import in this order is several times
    /// faster.
    pub fn storage_order(&self) -> u64 {
        spread(u64::from_be_bytes(*self.system_title.as_bytes()))
    }
}

/// A key to be made known.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// Its kind.
    pub kind: KeyKind,
    /// Its bytes.
    pub value: KeyBytes,
    /// e in `0.0.43.0.e.255`.
    #[serde(default)]
    pub security_setup: u8,
    /// Absent: `HSM` for a KEK, `MEMORY` for all others.
    #[serde(default)]
    pub protection: Option<Protection>,
}

/// A meter as the service knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Meter {
    /// The operator's name.
    pub meter_id: String,
    /// The name on the wire.
    #[serde(with = "title_hex")]
    pub system_title: SystemTitle,
    /// COSEM logical device name; may be empty.
    pub logical_device_name: String,
    /// Its policy: what the service accepts from it.
    pub policy: MeterPolicy,
    /// All versions of all its keys.
    pub keys: Vec<KeyInfo>,
    /// The key block that holds it.
    pub block: u32,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: u64,
    /// Since when nothing of it may be destroyed; milliseconds since 1970. Absent: it is under no legal hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub legal_hold_ms: Option<u64>,
}

/// Everything about a key but the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// Its random name; 32 hex digits.
    pub key_id: String,
    /// Its kind.
    pub kind: KeyKind,
    /// e in `0.0.43.0.e.255`.
    pub security_setup: u32,
    /// Its display order within kind and setup, from 1.
    pub version: u32,
    /// Its state.
    pub state: KeyState,
    /// Its protection: where its clear bytes may be.
    pub protection: Protection,
    /// Key check value (CMAC); 10 hex digits, empty for secrets of free length.
    pub kcv: String,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: u64,
    /// Why it is in its state.
    pub reason: StateReason,
    /// Since when; milliseconds since 1970.
    pub changed_ms: u64,
    /// The states before, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<PastState>,
    /// It protects what is sent: the one of its kind and setup.
    pub preferred: bool,
    /// The end of its grace; milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usable_until_ms: Option<u64>,
    /// It is to be destroyed then; milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destroy_at_ms: Option<u64>,
    /// How it gets to the meter. Absent: it did not come from the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer: Option<KeyTransfer>,
}

/// A state that a key was in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PastState {
    /// The state.
    pub state: KeyState,
    /// Milliseconds since 1970.
    pub since_ms: u64,
    /// Why it was in it.
    pub reason: StateReason,
}

/// How a key that the service made gets to its meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyTransfer {
    /// The name of the request that had it made.
    pub request_id: String,
    /// The KEK that it travels under; 32 hex digits.
    pub kek_id: String,
    /// Of COSEM class 64.
    pub class_version: u32,
    /// e in `0.0.43.0.e.255` of the association that carries it.
    pub carrier_setup: u32,
    /// The client's address (SAP) there.
    pub carrier_client: u32,
    /// The form in which it is carried.
    pub form: AssociationForm,
    /// It may be handed out although the other site has not proved that it has it.
    pub unreplicated: bool,
    /// When it was handed out first; milliseconds since 1970.
    pub sent_ms: Option<u64>,
    /// The meter's last answer.
    pub result: Option<TransferResult>,
    /// When it came; milliseconds since 1970.
    pub result_ms: Option<u64>,
}

impl NewMeter {
    /// For the wire. The key bytes move and stay wiped.
    pub(crate) fn into_wire(self) -> v1::NewMeter {
        let Ok(meter) =
            self.into_wire_with(|key| Ok::<_, std::convert::Infallible>(key.into_wire()));
        meter
    }

    /// For the wire, its keys as `convert` makes them.
    pub(crate) fn into_wire_with<E>(
        self,
        convert: impl FnMut(NewKey) -> Result<v1::NewKey, E>,
    ) -> Result<v1::NewMeter, E> {
        let Self { meter_id, system_title, logical_device_name, keys, policy } = self;
        Ok(v1::NewMeter {
            meter_id: meter_id.as_str().into(),
            system_title: system_title.as_bytes().to_vec().into(),
            logical_device_name,
            keys: keys.into_iter().map(convert).collect::<Result<_, E>>()?,
            policy: policy.map(|policy| policy.to_wire()),
        })
    }
}

impl NewKey {
    fn into_wire(self) -> v1::NewKey {
        let Self { kind, value, security_setup, protection } = self;
        v1::NewKey {
            kind: kind as i32,
            security_setup: security_setup.into(),
            protection: protection.map_or(0, |protection| protection as i32),
            clear_value: value.into_wiped_bytes(),
            wrapped_value: Default::default(),
        }
    }
}

impl MeterPolicy {
    pub(crate) fn to_wire(&self) -> v1::MeterPolicy {
        let title = |title: &Option<SystemTitle>| {
            title.map(|title| title.as_bytes().to_vec()).unwrap_or_default().into()
        };
        v1::MeterPolicy {
            minimum_protection: self.minimum_protection.map_or(0, |minimum| minimum as i32),
            allow_encryption_only: self.allow_encryption_only,
            allow_withheld_authentication_key: self.allow_withheld_authentication_key,
            default_system_title: title(&self.default_system_title),
            client_title: title(&self.client_title),
            general_ciphering_omit_header: self.general_ciphering_omit_header,
            profile: self.profile.as_ref().map_or_else(String::new, ProfileName::to_string),
            client_titles: self.client_titles.iter().map(ClientTitle::to_wire).collect(),
            allow_compromised: self.allow_compromised,
        }
    }

    fn from_wire(wire: v1::MeterPolicy) -> Result<Self, ProtocolError> {
        let minimum = wire.minimum_protection;
        Ok(Self {
            minimum_protection: (minimum != 0).then(|| numbered(minimum)).transpose()?,
            allow_encryption_only: wire.allow_encryption_only,
            allow_withheld_authentication_key: wire.allow_withheld_authentication_key,
            default_system_title: optional_title(&wire.default_system_title)?,
            client_title: optional_title(&wire.client_title)?,
            general_ciphering_omit_header: wire.general_ciphering_omit_header,
            profile: profile(&wire.profile)?,
            client_titles: wire
                .client_titles
                .iter()
                .map(ClientTitle::from_wire)
                .collect::<Result<_, _>>()?,
            allow_compromised: wire.allow_compromised,
        })
    }
}

impl ClientTitle {
    fn to_wire(&self) -> v1::ClientTitle {
        let Self { security_setup, client, system_title } = self;
        v1::ClientTitle {
            security_setup: (*security_setup).into(),
            client: (*client).into(),
            system_title: system_title.as_bytes().to_vec().into(),
        }
    }

    fn from_wire(wire: &v1::ClientTitle) -> Result<Self, ProtocolError> {
        let v1::ClientTitle { security_setup, client, system_title } = wire;
        let out_of_range = |what| move |_| ProtocolError::OutOfRange { what };
        Ok(Self {
            security_setup: u8::try_from(*security_setup)
                .map_err(out_of_range("security_setup"))?,
            client: u16::try_from(*client).map_err(out_of_range("client"))?,
            system_title: title(system_title)?,
        })
    }
}

/// A profile's name, or none.
fn profile(name: &str) -> Result<Option<ProfileName>, ProtocolError> {
    let bad = |_| ProtocolError::OutOfRange { what: "profile" };
    if name.is_empty() { Ok(None) } else { ProfileName::new(name).map(Some).map_err(bad) }
}

impl Meter {
    pub(crate) fn from_wire(wire: v1::Meter) -> Result<Self, ProtocolError> {
        Ok(Self {
            meter_id: wire.meter_id,
            system_title: title(&wire.system_title)?,
            logical_device_name: wire.logical_device_name,
            policy: MeterPolicy::from_wire(wire.policy.unwrap_or_default())?,
            keys: wire.keys.into_iter().map(KeyInfo::from_wire).collect::<Result<_, _>>()?,
            block: wire.block,
            created_ms: wire.created_ms,
            legal_hold_ms: wire.legal_hold_ms,
        })
    }
}

impl KeyInfo {
    pub(crate) fn from_wire(wire: v1::Key) -> Result<Self, ProtocolError> {
        Ok(Self {
            key_id: hex::encode(&wire.key_id),
            kind: numbered(wire.kind)?,
            security_setup: wire.security_setup,
            version: wire.version,
            state: numbered(wire.state)?,
            protection: numbered(wire.protection)?,
            kcv: hex::encode_upper(&wire.kcv),
            created_ms: wire.created_ms,
            reason: numbered(wire.reason)?,
            changed_ms: wire.changed_ms,
            past: wire.past.iter().map(PastState::from_wire).collect::<Result<_, _>>()?,
            preferred: wire.preferred,
            usable_until_ms: wire.usable_until_ms,
            destroy_at_ms: wire.destroy_at_ms,
            transfer: wire.transfer.map(KeyTransfer::from_wire).transpose()?,
        })
    }
}

impl PastState {
    fn from_wire(wire: &v1::PastKeyState) -> Result<Self, ProtocolError> {
        let v1::PastKeyState { state, since_ms, reason } = wire;
        Ok(Self { state: numbered(*state)?, since_ms: *since_ms, reason: numbered(*reason)? })
    }
}

impl KeyTransfer {
    fn from_wire(wire: v1::KeyTransfer) -> Result<Self, ProtocolError> {
        let carrier = wire.carrier.unwrap_or_default();
        Ok(Self {
            request_id: wire.request_id,
            kek_id: hex::encode(&wire.kek_id),
            class_version: wire.class_version,
            carrier_setup: carrier.security_setup,
            carrier_client: carrier.client,
            form: numbered(carrier.form)?,
            unreplicated: wire.unreplicated,
            sent_ms: wire.sent_ms,
            result: (wire.result != 0).then(|| numbered(wire.result)).transpose()?,
            result_ms: (wire.result != 0).then_some(wire.result_ms),
        })
    }
}

/// Eight bytes of the wire.
pub(crate) fn title(bytes: &[u8]) -> Result<SystemTitle, ProtocolError> {
    bytes.try_into().map(SystemTitle::new).map_err(|_| ProtocolError::TitleLength(bytes.len()))
}

/// Eight bytes of the wire, or none.
pub(crate) fn optional_title(bytes: &[u8]) -> Result<Option<SystemTitle>, ProtocolError> {
    if bytes.is_empty() { Ok(None) } else { title(bytes).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_has_no_name_is_refused_by_name() {
        assert_eq!(numbered(3), Ok(KeyKind::Gak));
        for number in [-1, 0, 8, 257] {
            let refused = ProtocolError::UnknownNumber { what: "kind", number };
            assert_eq!(numbered::<KeyKind>(number), Err(refused));
        }
    }

    #[test]
    fn debug_of_a_new_meter_does_not_show_its_keys() {
        let line = r#"{"meter_id":"m","system_title":"4D4D4D0000BC614E",
            "keys":[{"kind":"GUEK","value":"D491470F47126332B07D1923B3504188"}]}"#;
        let meter: NewMeter = serde_json::from_str(line).unwrap();
        assert!(!format!("{meter:?}").to_uppercase().contains("D491"));
        assert!(!format!("{meter:?}").contains("212, 145"));
    }

    #[test]
    fn a_policy_goes_to_the_wire_and_comes_back() {
        let policy = MeterPolicy {
            minimum_protection: Some(MinimumProtection::AuthenticatedEncrypted),
            allow_encryption_only: true,
            allow_withheld_authentication_key: true,
            default_system_title: Some(SystemTitle::new([1; 8])),
            client_title: Some(SystemTitle::new([2; 8])),
            general_ciphering_omit_header: true,
            profile: Some(ProfileName::new("gbcs").unwrap()),
            client_titles: vec![ClientTitle {
                security_setup: 255,
                client: 65_535,
                system_title: SystemTitle::new([3; 8]),
            }],
            allow_compromised: true,
        };
        assert_eq!(MeterPolicy::from_wire(policy.to_wire()), Ok(policy));
        assert_eq!(MeterPolicy::from_wire(v1::MeterPolicy::default()), Ok(MeterPolicy::default()));
    }
}
