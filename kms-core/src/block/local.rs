//! The key of rows that belong to one site and change often: marks of counters, receive floors. They are in no record, so
//! that they cost no sequence number, and a peer's rows are not ours: the site's name goes into the key.

use cmac::{Cmac, Mac as _};
use subtle::ConstantTimeEq as _;

use super::keys::BlockKeys;
use crate::RecordMac;

/// The `local` key of one block at one site. Short-lived: derived for a few rows, wiped with its owner.
pub struct LocalKey(Cmac<aes::Aes256>);

impl LocalKey {
    /// Of a block's keys, for the site of this name. Derived from `mac` in the counter mode of SP 800-108: what a key is
    /// derived from begins with its counter, what is MACed otherwise with `ami.kms/`.
    pub fn of(keys: &BlockKeys, site: &str) -> Self {
        let context = [
            b"ami.kms/block/1/local".as_slice(),
            &[0],
            &keys.domain().0,
            &(site.len() as u64).to_be_bytes(),
            site.as_bytes(),
            &256u32.to_be_bytes(),
        ]
        .concat();
        let mut key = zeroize::Zeroizing::new([0; 32]);
        for (counter, half) in (1u8..).zip(key.chunks_exact_mut(16)) {
            half.copy_from_slice(&keys.cmac(&[&[counter][..], &context].concat()));
        }
        Self(<Cmac<aes::Aes256> as cmac::KeyInit>::new((&*key).into()))
    }

    /// The MAC of a row. Its bytes begin with what kind of row it is, and are injective.
    pub fn mac(&self, row: &[u8]) -> RecordMac {
        let mut mac = self.0.clone();
        mac.update(row);
        mac.finalize().into_bytes().into()
    }

    /// Whether this site wrote the row.
    pub fn is_authentic(&self, row: &[u8], mac: &RecordMac) -> bool {
        self.mac(row).ct_eq(mac).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockNo, BlockSecret, DomainId, block::keys};

    fn keys(block: u32, domain: u8) -> BlockKeys {
        let domain = DomainId([domain; 16]);
        let place =
            keys::SecretBinding { domain: &domain, block: BlockNo(block), secret_version: 1 };
        let secret = BlockSecret::fill_with(|bytes| {
            bytes.fill(3);
            Ok::<(), ()>(())
        })
        .unwrap();
        let mut subkeys = [0; keys::SUBKEYS_LEN];
        place.derive_subkeys(&secret, &mut subkeys);
        BlockKeys::new(domain, &subkeys).unwrap()
    }

    #[test]
    fn a_row_is_authentic_at_its_site_and_in_its_block_and_domain_only() {
        let ours = LocalKey::of(&keys(1, 1), "north");
        let mac = ours.mac(b"row");
        assert!(ours.is_authentic(b"row", &mac) && !ours.is_authentic(b"rows", &mac));
        for other in [
            LocalKey::of(&keys(1, 1), "south"),
            LocalKey::of(&keys(2, 1), "north"),
            LocalKey::of(&keys(1, 2), "north"),
        ] {
            assert!(!other.is_authentic(b"row", &mac));
        }
    }
}
