//! Meters and what the service accepts from them.

use std::fmt;

use dlms::SystemTitle;

use super::KeyRecord;

/// The operator's name for a meter: 1 to 64 visible ASCII characters. Unique in its domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterId(Box<str>);

/// Not a meter id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a meter id is 1 to 64 visible ASCII characters without spaces")]
pub struct BadMeterId;

impl MeterId {
    /// In bytes.
    pub const MAX_LEN: usize = 64;

    /// Checks length and characters.
    pub fn new(id: &str) -> Result<Self, BadMeterId> {
        let fits = (1..=Self::MAX_LEN).contains(&id.len());
        if fits && id.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(id.into()))
        } else {
            Err(BadMeterId)
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MeterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MeterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeterId({})", self.0)
    }
}

/// The least protection that an APDU of a meter must carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum MinimumProtection {
    /// SC bits 4 and 5.
    AuthenticatedEncrypted = 1,
    /// SC bit 4 at least.
    #[default]
    Authenticated = 2,
}

/// What the service accepts from a meter, and how it names the two sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeterPolicy {
    /// Applies to every APDU but those that the next two fields let through.
    pub minimum_protection: MinimumProtection,
    /// Accept encryption-only APDUs, and mark them as unauthenticated.
    pub allow_encryption_only: bool,
    /// Accept tagged APDUs although the GAK is withheld from us, and mark them as unauthenticated.
    pub allow_withheld_authentication_key: bool,
    /// For the meter's own APDUs that carry no title. `None`: its system title.
    pub default_system_title: Option<SystemTitle>,
    /// For APDUs that the utility's side originated.
    pub client_title: Option<SystemTitle>,
    /// Leave general-ciphering's header out of the additional data.
    pub general_ciphering_omit_header: bool,
}

/// Everything the database knows of a meter. One record, so that mapping, policy and keys can only
/// change together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeterRecord {
    /// The operator's name.
    pub meter_id: MeterId,
    /// Its name on the wire; decides its block.
    pub system_title: SystemTitle,
    /// COSEM logical device name; may be empty.
    pub logical_device_name: String,
    /// What we accept.
    pub policy: MeterPolicy,
    /// All versions of all its keys, ordered by (setup, kind, version).
    pub keys: Vec<KeyRecord>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_id_is_not_empty_long_or_spaced() {
        assert!(MeterId::new("").is_err());
        assert!(MeterId::new(&"x".repeat(65)).is_err());
        assert!(MeterId::new("a b").is_err());
        assert!(MeterId::new("ä").is_err());
        assert_eq!(MeterId::new("KFM-1000/7").unwrap().as_str(), "KFM-1000/7");
    }
}
