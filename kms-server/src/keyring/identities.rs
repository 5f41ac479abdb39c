//! The identities of keys in this domain: fingerprints, check values, and the published test keys by theirs.

use std::{collections::HashSet, sync::OnceLock};

use kms_core::{ClearKey, DomainId, Fingerprint, Kcv, block::keys, test_keys};

/// Tells keys of one domain apart.
pub struct Identities {
    domain: DomainId,
    /// Made when the first key comes in.
    test_keys: OnceLock<HashSet<Fingerprint>>,
}

impl Identities {
    /// Of this domain.
    pub(super) fn new(domain: DomainId) -> Self {
        Self { domain, test_keys: OnceLock::new() }
    }

    /// Identity and check value of an AES key; `None`: not 16 or 32 bytes.
    pub fn identify(&self, key: &ClearKey) -> Option<(Fingerprint, Kcv)> {
        keys::identify(&self.domain, key)
    }

    /// Identity of an AES key where it lies.
    pub fn identify_bytes(&self, key: &[u8]) -> Option<Fingerprint> {
        keys::identify_bytes(&self.domain, key).map(|(fingerprint, _)| fingerprint)
    }

    /// Whether a value is a published test key, told by its fingerprint in this domain.
    pub fn is_test_key(&self, fingerprint: &Fingerprint) -> bool {
        let known = self.test_keys.get_or_init(|| {
            let identify = |key| self.identify(&ClearKey::new(key));
            test_keys::all().filter_map(identify).map(|(fingerprint, _)| fingerprint).collect()
        });
        known.contains(fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_keys_are_known_by_their_fingerprints_in_the_domain() {
        let (ours, others) =
            (Identities::new(DomainId([1; 16])), Identities::new(DomainId([2; 16])));
        let key = ClearKey::new(test_keys::all().next().unwrap());
        let (fingerprint, _) = ours.identify(&key).unwrap();
        assert!(ours.is_test_key(&fingerprint));
        assert!(!others.is_test_key(&fingerprint), "a fingerprint is one of its domain");
        let (own, _) = ours.identify(&ClearKey::new((1..=16).map(|n| n * 7).collect())).unwrap();
        assert!(!ours.is_test_key(&own));
        assert!(ours.identify(&ClearKey::new(vec![0x5C; 24])).is_none());
    }
}
