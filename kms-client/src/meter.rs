//! Meters, their keys and their policies, in the words of the operators' files.

use dlms::SystemTitle;
use kms_proto::v1;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::call::ProtocolError;
use crate::names::{MeterId, optional_title_hex, title_hex};
use crate::secret::KeyBytes;

/// Defines an enum whose names are the words of the wire, in files and in output alike.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident as $wire:path, $what:literal: $($(#[$item_doc:meta])* $item:ident $word:literal,)+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$item_doc])* #[serde(rename = $word)] $item,)+
        }

        impl $name {
            pub(crate) const ALL: &[Self] = &[$(Self::$item),+];

            /// The word of the wire and of the files.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$item => $word,)+ }
            }

            pub(crate) fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|item| item.word() == word)
            }

            pub(crate) fn from_wire(number: i32) -> Result<Self, ProtocolError> {
                let word = <$wire>::try_from(number).ok().map(|item| item.as_str_name());
                word.and_then(Self::from_word).ok_or(ProtocolError::UnknownNumber { what: $what, number })
            }

            #[allow(dead_code, reason = "some words only ever come in")]
            pub(crate) fn to_wire(self) -> i32 {
                <$wire>::from_str_name(self.word()).map_or(0, |item| item as i32)
            }

            /// What stands in error messages: the words that are accepted, never the one that was read.
            pub(crate) const EXPECTED: &'static str = concat!($what, " is one of", $(" ", $word),+);
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.word())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = String::deserialize(deserializer)?;
                Self::from_word(&word).ok_or_else(|| de::Error::custom(Self::EXPECTED))
            }
        }
    };
}

words! {
    /// What a key is for.
    KeyKind as v1::KeyKind, "kind":
    /// Global unicast encryption key.
    Guek "GUEK",
    /// Global broadcast encryption key.
    Gbek "GBEK",
    /// Global authentication key.
    Gak "GAK",
    /// Key encryption key (master key).
    Kek "KEK",
    /// Encryption key of one association.
    Dedicated "DEDICATED",
    /// Secret of an HLS mechanism; of free length.
    HlsSecret "HLS_SECRET",
    /// Password of LLS; of free length.
    LlsPassword "LLS_PASSWORD",
}

words! {
    /// Where a key is in its life (NIST SP 800-57 part 1).
    KeyState as v1::KeyState, "state":
    /// Stored; not yet confirmed by the meter.
    PreActive "PRE_ACTIVE",
    /// Protects and opens.
    Active "ACTIVE",
    /// Opens what was protected before.
    Deactivated "DEACTIVATED",
    /// Known to others; opens nothing.
    Compromised "COMPROMISED",
    /// The live copies are gone.
    Destroyed "DESTROYED",
}

words! {
    /// Where a key's clear bytes may be.
    Protection as v1::ProtectionLevel, "protection":
    /// Used only inside the token.
    Hsm "HSM",
    /// Released into locked memory of the server, for throughput.
    Memory "MEMORY",
}

words! {
    /// The least protection that an APDU of a meter must carry.
    MinimumProtection as v1::MinimumProtection, "minimum_protection":
    /// Authenticated and encrypted.
    AuthenticatedEncrypted "AUTHENTICATED_ENCRYPTED",
    /// Authenticated at least. What holds when nothing is said.
    Authenticated "AUTHENTICATED",
}

/// What the service accepts from a meter, and how it names the two sides.
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
    /// Where the meter stands among all that a site stores: those of one key block are side by side in
    /// this order, whatever the number of blocks. An import in this order is several times faster.
    ///
    /// The finaliser of SplitMix64 over the title; the service's own is
    /// `kms_core::block::spread`, and a test holds one against the other.
    pub fn storage_order(&self) -> u64 {
        let title = u64::from_be_bytes(*self.system_title.as_bytes());
        let mut x = title.wrapping_add(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }
}

/// A key to be made known.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// What it is for.
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
    /// What the service accepts from it.
    pub policy: MeterPolicy,
    /// All versions of all its keys.
    pub keys: Vec<KeyInfo>,
    /// The key block that holds it.
    pub block: u32,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: u64,
}

/// Everything about a key but the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// Its random name; 32 hex digits.
    pub key_id: String,
    /// What it is for.
    pub kind: KeyKind,
    /// e in `0.0.43.0.e.255`.
    pub security_setup: u32,
    /// Its display order within kind and setup, from 1.
    pub version: u32,
    /// Where it is in its life.
    pub state: KeyState,
    /// Where its clear bytes may be.
    pub protection: Protection,
    /// Key check value (CMAC); 10 hex digits, empty for secrets of free length.
    pub kcv: String,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub created_ms: u64,
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
            kind: kind.to_wire(),
            security_setup: security_setup.into(),
            protection: protection.map_or(0, Protection::to_wire),
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
            minimum_protection: self.minimum_protection.map_or(0, MinimumProtection::to_wire),
            allow_encryption_only: self.allow_encryption_only,
            allow_withheld_authentication_key: self.allow_withheld_authentication_key,
            default_system_title: title(&self.default_system_title),
            client_title: title(&self.client_title),
            general_ciphering_omit_header: self.general_ciphering_omit_header,
        }
    }

    fn from_wire(wire: v1::MeterPolicy) -> Result<Self, ProtocolError> {
        let minimum = wire.minimum_protection;
        Ok(Self {
            minimum_protection: (minimum != 0)
                .then(|| MinimumProtection::from_wire(minimum))
                .transpose()?,
            allow_encryption_only: wire.allow_encryption_only,
            allow_withheld_authentication_key: wire.allow_withheld_authentication_key,
            default_system_title: optional_title(&wire.default_system_title)?,
            client_title: optional_title(&wire.client_title)?,
            general_ciphering_omit_header: wire.general_ciphering_omit_header,
        })
    }
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
        })
    }
}

impl KeyInfo {
    fn from_wire(wire: v1::Key) -> Result<Self, ProtocolError> {
        Ok(Self {
            key_id: hex::encode(&wire.key_id),
            kind: KeyKind::from_wire(wire.kind)?,
            security_setup: wire.security_setup,
            version: wire.version,
            state: KeyState::from_wire(wire.state)?,
            protection: Protection::from_wire(wire.protection)?,
            kcv: hex::encode_upper(&wire.kcv),
            created_ms: wire.created_ms,
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
    fn every_word_has_its_number_on_the_wire() {
        for kind in KeyKind::ALL {
            assert_ne!(kind.to_wire(), 0, "{kind}");
            assert_eq!(KeyKind::from_wire(kind.to_wire()), Ok(*kind));
        }
        for state in KeyState::ALL {
            assert_eq!(KeyState::from_wire(state.to_wire()), Ok(*state));
        }
        for protection in Protection::ALL {
            assert_eq!(Protection::from_wire(protection.to_wire()), Ok(*protection));
        }
        for minimum in MinimumProtection::ALL {
            assert_eq!(MinimumProtection::from_wire(minimum.to_wire()), Ok(*minimum));
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
        };
        assert_eq!(MeterPolicy::from_wire(policy.to_wire()), Ok(policy));
        assert_eq!(MeterPolicy::from_wire(v1::MeterPolicy::default()), Ok(MeterPolicy::default()));
    }
}
