//! Meters and what the service accepts from them.

use std::fmt;

use dlms::SystemTitle;

use super::{ClientTitles, Fingerprint, KeyKind, KeyRecord, KeyState, ProfileName, SecuritySetup};

/// The operator's name for a meter: 1 to 64 visible ASCII characters. Unique in its domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeterId(Box<str>);

/// Not a meter id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a meter id is 1 to {} visible ASCII characters without spaces", MeterId::LEN_MAX)]
pub struct BadMeterId;

impl MeterId {
    /// In bytes.
    pub const LEN_MAX: usize = 64;

    /// Checks length and characters.
    pub fn new(id: &str) -> Result<Self, BadMeterId> {
        let fits = (1..=Self::LEN_MAX).contains(&id.len());
        let is_visible = || id.bytes().all(|byte| byte.is_ascii_graphic());
        if fits && is_visible() { Ok(Self(id.into())) } else { Err(BadMeterId) }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for MeterId {
    type Err = BadMeterId;

    fn from_str(id: &str) -> Result<Self, BadMeterId> {
        Self::new(id)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for MeterId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for MeterId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = <String as serde::Deserialize>::deserialize(deserializer)?;
        Self::new(&id).map_err(serde::de::Error::custom)
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

crate::numbered! {
    /// The least protection that an APDU of a meter must carry.
    #[derive(Default)]
    pub enum MinimumProtection "minimum_protection" {
        /// SC bits 4 and 5.
        AuthenticatedEncrypted = 1 "AUTHENTICATED_ENCRYPTED",
        /// SC bit 4 at least. What holds when nothing is said.
        #[default]
        Authenticated = 2 "AUTHENTICATED",
    }
}

/// The policy of a meter: what the service accepts from it, and how it names the two sides.
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
    /// For APDUs that the utility's side originated, where `client_titles` has no other one.
    pub client_title: Option<SystemTitle>,
    /// Leave general-ciphering's header out of the additional data.
    pub general_ciphering_omit_header: bool,
    /// The device profile that says how meters of its make behave. `None`: what holds for all.
    pub profile: Option<ProfileName>,
    /// The titles of single clients of a security setup.
    pub client_titles: ClientTitles,
    /// Give the plaintext of what opens under a compromised key, marked.
    pub allow_compromised: bool,
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
    /// Its policy.
    pub policy: MeterPolicy,
    /// All versions of all its keys, ordered by (setup, kind, version).
    pub keys: Vec<KeyRecord>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// The keys that it had before it was deleted and readmitted; at most [`FormerKey::MAX`].
    pub former: Vec<FormerKey>,
    /// Its last change: an older one changes it no more.
    pub changed_by: ChangeMark,
    /// Since when nothing of it may be destroyed; milliseconds since 1970.
    pub legal_hold_ms: Option<u64>,
}

impl MeterRecord {
    /// Versions that one key (a kind in a security setup) may have: four live ones, as many as are tried on
    /// an APDU, and twelve that were before them. Each is a part of its meter's record, which every change
    /// of its block reads.
    pub const VERSIONS_A_KEY: usize = 16;
    /// Key versions that a meter may have: four setups with four keys of four versions. So a record has
    /// less than 8 KiB, and a line's comparison with it less than 4,096 steps.
    pub const VERSIONS_A_METER: usize = 64;
}

/// A key value that a meter had before it was deleted: enough to know it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerKey {
    /// Identity of the value.
    pub fingerprint: Fingerprint,
    /// Its use, and its state when the meter was deleted. `None`: deleted by a release that did not
    /// keep it.
    pub was: Option<FormerUse>,
}

/// The use of a former key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormerUse {
    /// The security setup that it belonged to.
    pub setup: SecuritySetup,
    /// Its kind.
    pub kind: KeyKind,
    /// Its state when the meter was deleted.
    pub state: KeyState,
}

impl FormerKey {
    /// Of one meter, over all of its lives.
    pub const MAX: usize = 1024;

    /// The keys of a meter that stay known when it is deleted: those that it has, and those that it
    /// had before. Of one value in one place the state that is further on counts.
    pub fn of(meter: &MeterRecord) -> Vec<Self> {
        let was =
            |key: &KeyRecord| FormerUse { setup: key.setup, kind: key.kind, state: key.state };
        let mut all: Vec<Self> = meter
            .keys
            .iter()
            .map(|key| Self { fingerprint: key.fingerprint, was: Some(was(key)) })
            .collect();
        for old in &meter.former {
            match all.iter_mut().find(|key| key.is_same(old)) {
                Some(key) => key.was = furthest(key.was, old.was),
                None => all.push(old.clone()),
            }
        }
        all
    }

    /// Whether the value may come back: it was the active one when the meter was deleted.
    pub fn may_come_back(&self) -> bool {
        self.was.is_some_and(|was| was.state == KeyState::Active)
    }

    fn is_same(&self, other: &Self) -> bool {
        let place = |key: &Self| key.was.map(|was| (was.setup, was.kind));
        self.fingerprint == other.fingerprint && place(self) == place(other)
    }
}

fn furthest(a: Option<FormerUse>, b: Option<FormerUse>) -> Option<FormerUse> {
    a.into_iter().chain(b).max_by_key(|was| was.state)
}

/// A change of a meter, in the order in which changes count: by time, then by file, then by the place in
/// the file. The least one is that of meters that were there before changes were marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeMark {
    /// The time at which the file was sealed; of a change that came in no sealed file, the time at
    /// which it was made. Milliseconds since 1970.
    pub at_ms: u64,
    /// `None`: it came in no sealed file.
    pub file: Option<FilePlace>,
}

/// A line of a sealed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePlace {
    /// The file's id.
    pub file: [u8; 16],
    /// Grows from line to line.
    pub line: u64,
}

impl ChangeMark {
    /// A change that is made now, in no sealed file: later than all before it.
    #[must_use]
    pub fn next(&self, now_ms: u64) -> Self {
        Self { at_ms: now_ms.max(self.at_ms.saturating_add(1)), file: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_is_made_now_is_later_than_all_before_it() {
        let file = |line| Some(FilePlace { file: [9; 16], line });
        let first = ChangeMark { at_ms: 7, file: file(1) };
        assert!(first < ChangeMark { at_ms: 7, file: file(2) });
        for now_ms in [0, 6, 7, 8] {
            assert!(first.next(now_ms) > ChangeMark { at_ms: 7, file: file(u64::MAX) });
        }
        assert_eq!(first.next(100), ChangeMark { at_ms: 100, file: None });
    }

    #[test]
    fn a_meter_id_is_not_empty_long_or_spaced() {
        assert!(MeterId::new("").is_err());
        assert!(MeterId::new(&"x".repeat(65)).is_err());
        assert!(MeterId::new("a b").is_err());
        assert!(MeterId::new("ä").is_err());
        assert_eq!(MeterId::new("KFM-1000/7").unwrap().as_str(), "KFM-1000/7");
    }
}
