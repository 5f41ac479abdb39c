//! All device profiles of a site.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::{
    device::{DeviceProfile, FloorRule},
    name::ProfileName,
};

/// The device profiles that a site's configuration has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profiles(BTreeMap<ProfileName, DeviceProfile>);

/// Profiles that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadProfiles {
    /// There are too many.
    #[error("a site has at most {} device profiles", Profiles::MAX)]
    TooMany,
    /// Two have one name.
    #[error("the device profile {0} is there twice")]
    Twice(ProfileName),
}

impl Profiles {
    /// Makes of meters in one fleet, with room.
    pub const MAX: usize = 256;

    /// Each under its name.
    pub fn new(profiles: impl IntoIterator<Item = DeviceProfile>) -> Result<Self, BadProfiles> {
        let mut all = BTreeMap::new();
        for profile in profiles {
            let name = profile.name.clone();
            if all.insert(name.clone(), profile).is_some() {
                return Err(BadProfiles::Twice(name));
            }
            if all.len() > Self::MAX {
                return Err(BadProfiles::TooMany);
            }
        }
        Ok(Self(all))
    }

    /// The profile of this name; `None`: the site does not have it.
    pub fn get(&self, name: &ProfileName) -> Option<&DeviceProfile> {
        self.0.get(name)
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &DeviceProfile> {
        self.0.values()
    }

    /// The receive floors of a meter with this profile. Of one that names none: none. Of one whose profile is not
    /// known here, the strictest.
    pub fn floors_of(&self, name: Option<&ProfileName>) -> FloorRule {
        match name {
            None => FloorRule::OFF,
            Some(name) => self.get(name).map_or(FloorRule::STRICT, |profile| profile.floors),
        }
    }

    /// What two sites compare, to say whether they treat meters alike: over names and rules, not descriptions.
    pub fn digest(&self) -> [u8; 32] {
        let mut bytes = b"ami.kms/profiles/1".to_vec();
        self.0.values().for_each(|profile| profile.put_digested(&mut bytes));
        Sha256::digest(bytes).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::device::{CountersOnNewKey, HlsMechanism2};

    fn name(name: &str) -> ProfileName {
        ProfileName::new(name).unwrap()
    }

    fn profile(named: &str) -> DeviceProfile {
        DeviceProfile {
            name: name(named),
            description: String::new(),
            counters_on_new_key: CountersOnNewKey::Reset,
            largest_gap: None,
            floors: FloorRule::OFF,
            hls_mechanism_2: HlsMechanism2::Ecb,
        }
    }

    #[test]
    fn a_profile_that_is_not_known_is_the_strictest_and_none_is_none() {
        let profiles = Profiles::new([profile("a")]).unwrap();
        assert_eq!(profiles.floors_of(None), FloorRule::OFF);
        assert_eq!(profiles.floors_of(Some(&name("a"))), FloorRule::OFF);
        assert_eq!(profiles.floors_of(Some(&name("b"))), FloorRule::STRICT);
        assert!(DeviceProfile::strictest(name("b")).waits_for_peer());
        let twice = Profiles::new([profile("a"), profile("a")]);
        assert_eq!(twice, Err(BadProfiles::Twice(name("a"))));
    }

    #[test]
    fn every_rule_changes_the_digest_and_a_description_does_not() {
        let digest = |change: fn(&mut DeviceProfile)| {
            let mut one = profile("a");
            change(&mut one);
            Profiles::new([one, profile("b")]).unwrap().digest()
        };
        let changes: [fn(&mut DeviceProfile); 9] = [
            |_| {},
            |one| one.hls_mechanism_2 = HlsMechanism2::Cbc,
            |one| one.name = name("c"),
            |one| one.counters_on_new_key = CountersOnNewKey::Kept,
            |one| one.largest_gap = Some(0),
            |one| one.largest_gap = Some(1),
            |one| one.floors.guek = true,
            |one| one.floors.gbek = true,
            |one| one.floors.window = 1,
        ];
        let mut digests: Vec<_> = changes.map(digest).to_vec();
        assert_eq!(digest(|one| one.description = "x".into()), digests[0]);
        digests.push(Profiles::default().digest());
        digests.push(digest(|one| one.floors.dedicated = true));
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), 11);
    }
}
