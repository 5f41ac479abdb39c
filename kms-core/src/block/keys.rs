//! A block's subkeys, and what is done with them: MACs, wrapping, sealing, identities of values.

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use aes_kw::KwAes256;
use cmac::{Cmac, Mac};
use hkdf::Hkdf;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::{
    BlockNo, BlockSecret, ClearKey, DomainId, Epoch, Fingerprint, Head, Kcv, KeyId, Position,
    RecordMac, Sequence, StoredRecord, SystemTitle, block::Digest, record,
};

/// The purpose of a subkey of a block secret. Each has its own HKDF label (RFC 5869).
#[derive(Clone, Copy)]
enum Purpose {
    /// RFC 3394 wrapping of keys of protection `MEMORY`.
    Wrap,
    /// Records' and heads' MACs.
    Mac,
    /// AES-GCM sealing of secrets of free length.
    Seal,
    /// MACs that show a peer that the block opens here.
    Proof,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Wrap => b"ami.kms/block/1/wrap",
            Self::Mac => b"ami.kms/block/1/mac",
            Self::Seal => b"ami.kms/block/1/seal",
            Self::Proof => b"ami.kms/block/1/proof",
        }
    }
}

/// The place of a block secret: its subkeys and its seals are bound to it.
#[derive(Clone, Copy, Debug)]
pub struct SecretBinding<'a> {
    /// The key domain.
    pub domain: &'a DomainId,
    /// The block.
    pub block: BlockNo,
    /// Of the secret.
    pub secret_version: u32,
}

/// The `wrap` key, the first of the subkeys, in bytes.
pub const WRAP_KEY_LEN: usize = 32;

/// Bytes that the subkeys of one block take in the arena.
pub const SUBKEYS_LEN: usize = 3 * 32;

impl SecretBinding<'_> {
    /// Derives the subkeys into `out`, which lies in the arena: `wrap`, `mac`, `seal`, 32 bytes each.
    /// (`proof` and [`local`](super::local) are derived by whoever proves or counts.)
    pub fn derive_subkeys(&self, secret: &BlockSecret, out: &mut [u8]) {
        let purposes = [Purpose::Wrap, Purpose::Mac, Purpose::Seal];
        self.derive(secret, purposes.into_iter().zip(out.chunks_exact_mut(32)));
    }

    /// The subkey that proofs are made with.
    pub(super) fn derive_proof_key(&self, secret: &BlockSecret) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        self.derive(secret, [(Purpose::Proof, &mut key[..])].into_iter());
        key
    }

    fn derive<'k>(
        &self,
        secret: &BlockSecret,
        subkeys: impl Iterator<Item = (Purpose, &'k mut [u8])>,
    ) {
        let hkdf = Hkdf::<Sha256>::new(Some(&self.domain.0), secret.expose_block_secret_bytes());
        let (block, version) = (self.block.0.to_be_bytes(), self.secret_version.to_be_bytes());
        for (purpose, subkey) in subkeys {
            // Fails only for more than 255 hashes of output; a subkey is one.
            let expanded = hkdf.expand(&[purpose.label(), &block, &version].concat(), subkey);
            debug_assert!(expanded.is_ok());
        }
    }

    /// The additional authenticated data of a seal of the secret under this KEK.
    pub fn seal_aad(&self, kek_id: &[u8; 16]) -> Vec<u8> {
        [
            b"ami.kms/seal/1".as_slice(),
            &self.domain.0,
            &self.block.0.to_be_bytes(),
            &self.secret_version.to_be_bytes(),
            kek_id,
        ]
        .concat()
    }
}

/// The subkeys, expanded for use. Short-lived: made from the arena for one opening or one change,
/// wiped with it.
pub struct BlockKeys {
    domain: DomainId,
    wrap: KwAes256,
    mac: Cmac<aes::Aes256>,
    seal: Aes256Gcm,
}

/// A stored value that does not open under its block's keys, although its MAC verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoesNotOpen;

impl BlockKeys {
    /// From [`SUBKEYS_LEN`] bytes as [`SecretBinding::derive_subkeys`] wrote them.
    pub fn new(domain: DomainId, subkeys: &[u8]) -> Option<Self> {
        let (wrap, rest) = subkeys.split_at_checked(32)?;
        let (mac, rest) = rest.split_at_checked(32)?;
        Some(Self {
            domain,
            wrap: KwAes256::new_from_slice(wrap).ok()?,
            mac: Cmac::new_from_slice(mac).ok()?,
            seal: Aes256Gcm::new_from_slice(rest.get(..32)?).ok()?,
        })
    }

    /// A record's MAC. `scratch` is reused from record to record.
    pub fn record_mac(
        &self,
        block: BlockNo,
        record: &StoredRecord,
        scratch: &mut Vec<u8>,
    ) -> RecordMac {
        record::mac_input(&self.domain, block, record, scratch);
        self.cmac(scratch)
    }

    /// The head of a block that has no records yet.
    pub fn first_head(&self, block: BlockNo, secret_version: u32, epoch: Epoch) -> Head {
        let position = Position { epoch, sequence: Sequence(0) };
        let digest = digest(std::iter::empty());
        let mut head = Head { block, secret_version, position, count: 0, digest, mac: [0; 16] };
        head.mac = self.head_mac(&head);
        head
    }

    /// A head's MAC.
    pub fn head_mac(&self, head: &Head) -> RecordMac {
        self.cmac(&record::head_mac_input(&self.domain, head))
    }

    /// Whether a record is what this block's writer wrote, at this position.
    pub fn record_is_authentic(
        &self,
        block: BlockNo,
        record: &StoredRecord,
        scratch: &mut Vec<u8>,
    ) -> bool {
        // Else bytes could move from a key into its body and back under one MAC.
        record.key.is_well_formed()
            && bool::from(self.record_mac(block, record, scratch).ct_eq(&record.mac))
    }

    /// Whether a head is what this block's writer wrote.
    pub fn head_is_authentic(&self, head: &Head) -> bool {
        self.head_mac(head).ct_eq(&head.mac).into()
    }

    /// Unwraps a key of protection `MEMORY` into its final place, which has exactly its length.
    pub fn unwrap_into(&self, wrapped: &[u8], out: &mut [u8]) -> Result<(), DoesNotOpen> {
        let unwrapped = self.wrap.unwrap_key(wrapped, out).map_err(|_| DoesNotOpen)?;
        debug_assert_eq!(unwrapped.len() + 8, wrapped.len());
        Ok(())
    }

    /// Wraps an AES key of 16 or 32 bytes (RFC 3394).
    pub fn wrap_key(&self, key: &ClearKey) -> Result<Vec<u8>, DoesNotOpen> {
        let mut wrapped = vec![0; key.len() + 8];
        self.wrap.wrap_key(key.expose_clear_key_bytes(), &mut wrapped).map_err(|_| DoesNotOpen)?;
        Ok(wrapped)
    }

    /// Seals a secret of free length for one meter and one key id: nonce ‖ ciphertext ‖ tag.
    pub fn seal_secret(
        &self,
        title: &SystemTitle,
        id: &KeyId,
        secret: &ClearKey,
        nonce: [u8; 12],
    ) -> Result<Vec<u8>, DoesNotOpen> {
        let place = secret_place(title, id);
        let payload = Payload { msg: secret.expose_clear_key_bytes(), aad: &place };
        let sealed = self.seal.encrypt(&nonce.into(), payload).map_err(|_| DoesNotOpen)?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Wraps a key that is wrapped under these keys under others. In clear it is on the stack, and wiped.
    pub fn rewrap_key(&self, wrapped: &[u8], under: &Self) -> Result<Vec<u8>, DoesNotOpen> {
        let mut key = Zeroizing::new([0; 32]);
        let len = wrapped.len().checked_sub(8).ok_or(DoesNotOpen)?;
        let key = key.get_mut(..len).ok_or(DoesNotOpen)?;
        self.unwrap_into(wrapped, key)?;
        let mut rewrapped = vec![0; wrapped.len()];
        under.wrap.wrap_key(key, &mut rewrapped).map_err(|_| DoesNotOpen)?;
        Ok(rewrapped)
    }

    /// The nonce under which a secret is sealed anew: of what it was sealed as, and nobody's guess. The same secret gets
    /// the same one, and the same bytes.
    pub(super) fn nonce_for(&self, id: &KeyId, sealed: &[u8]) -> [u8; 12] {
        let message = [b"ami.kms/sealed-anew/1".as_slice(), &id.0, sealed].concat();
        let mac = self.cmac(&message);
        std::array::from_fn(|at| mac[at])
    }

    /// Opens what [`BlockKeys::seal_secret`] made.
    pub fn open_secret(
        &self,
        title: &SystemTitle,
        id: &KeyId,
        sealed: &[u8],
    ) -> Result<ClearKey, DoesNotOpen> {
        let (nonce, sealed) = sealed.split_first_chunk::<12>().ok_or(DoesNotOpen)?;
        let place = secret_place(title, id);
        let payload = Payload { msg: sealed, aad: &place };
        self.seal.decrypt(&(*nonce).into(), payload).map(ClearKey::new).map_err(|_| DoesNotOpen)
    }

    /// Identity of a secret of free length. Such a secret may be guessed, so it is compared under
    /// the block's `mac` key: within its meter, not across the domain.
    pub fn secret_fingerprint(&self, title: &SystemTitle, secret: &ClearKey) -> Fingerprint {
        let secret = Zeroizing::new(
            [
                b"ami.kms/fingerprint/secret/1".as_slice(),
                title.as_bytes(),
                secret.expose_clear_key_bytes(),
            ]
            .concat(),
        );
        Fingerprint(self.cmac(&secret))
    }

    /// The key domain.
    pub(super) fn domain(&self) -> &DomainId {
        &self.domain
    }

    pub(super) fn cmac(&self, message: &[u8]) -> RecordMac {
        let mut mac = self.mac.clone();
        mac.update(message);
        mac.finalize().into_bytes().into()
    }
}

fn secret_place(title: &SystemTitle, id: &KeyId) -> Vec<u8> {
    [b"ami.kms/secret/1".as_slice(), title.as_bytes(), &id.0].concat()
}

/// SHA-256 over MACs in key order.
pub fn digest<'a>(macs: impl Iterator<Item = &'a RecordMac>) -> Digest {
    let mut hash = Sha256::new();
    for mac in macs {
        hash.update(mac);
    }
    hash.finalize().into()
}

/// The message whose CMAC under a key is the key's fingerprint.
pub fn fingerprint_label(domain: &DomainId) -> Vec<u8> {
    [b"ami.kms/fingerprint/1".as_slice(), &domain.0].concat()
}

/// Identity of an AES key's value within its domain, and its check value. `None`: not 16 or 32 bytes.
pub fn identify(domain: &DomainId, key: &ClearKey) -> Option<(Fingerprint, Kcv)> {
    identify_bytes(domain, key.expose_clear_key_bytes())
}

/// The same, of a key where it lies.
pub fn identify_bytes(domain: &DomainId, key: &[u8]) -> Option<(Fingerprint, Kcv)> {
    let fingerprint = cmac_under(key, &fingerprint_label(domain))?;
    let [a, b, c, d, e, ..] = cmac_under(key, &[0; 16])?;
    Some((Fingerprint(fingerprint), [a, b, c, d, e]))
}

fn cmac_under(key: &[u8], message: &[u8]) -> Option<[u8; 16]> {
    Some(match key.len() {
        16 => {
            let mut mac = Cmac::<aes::Aes128>::new_from_slice(key).ok()?;
            mac.update(message);
            mac.finalize().into_bytes().into()
        }
        32 => {
            let mut mac = Cmac::<aes::Aes256>::new_from_slice(key).ok()?;
            mac.update(message);
            mac.finalize().into_bytes().into()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(block: u32, version: u32) -> BlockKeys {
        let secret = BlockSecret::fill_with(|bytes| {
            bytes.fill(7);
            Ok::<(), ()>(())
        })
        .unwrap();
        let mut subkeys = [0; SUBKEYS_LEN];
        let domain = DomainId([1; 16]);
        let place =
            SecretBinding { domain: &domain, block: BlockNo(block), secret_version: version };
        place.derive_subkeys(&secret, &mut subkeys);
        BlockKeys::new(domain, &subkeys).unwrap()
    }

    #[test]
    fn a_key_wrapped_in_one_block_or_version_does_not_open_in_another() {
        let wrapped = keys(1, 1).wrap_key(&ClearKey::new(vec![9; 16])).unwrap();
        let mut out = [0; 16];
        assert_eq!(keys(1, 1).unwrap_into(&wrapped, &mut out), Ok(()));
        assert_eq!(out, [9; 16]);
        assert_eq!(keys(2, 1).unwrap_into(&wrapped, &mut out), Err(DoesNotOpen));
        assert_eq!(keys(1, 2).unwrap_into(&wrapped, &mut out), Err(DoesNotOpen));
    }

    #[test]
    fn a_sealed_secret_opens_only_for_its_meter_and_key() {
        let (title, id) = (SystemTitle::new([1; 8]), KeyId([2; 16]));
        let sealed =
            keys(1, 1).seal_secret(&title, &id, &ClearKey::new(b"pass".to_vec()), [3; 12]).unwrap();
        let opened = keys(1, 1).open_secret(&title, &id, &sealed).unwrap();
        assert_eq!(opened.expose_clear_key_bytes(), b"pass");
        let other = SystemTitle::new([9; 8]);
        assert!(keys(1, 1).open_secret(&other, &id, &sealed).is_err());
        assert!(keys(1, 1).open_secret(&title, &KeyId([9; 16]), &sealed).is_err());
    }

    #[test]
    fn the_kcv_of_the_green_book_key_is_the_cmac_one() {
        // EK 000102…0F has the CMAC KCV BE7ED6AE78 (X9.24-1:2017), not the ECB one, C6A13B.
        let key = ClearKey::new((0..16).collect());
        let (_, kcv) = identify(&DomainId([1; 16]), &key).unwrap();
        assert_eq!(hex::encode_upper(kcv), "BE7ED6AE78");
    }

    #[test]
    fn fingerprints_are_of_one_domain() {
        let key = ClearKey::new(vec![5; 16]);
        let (here, _) = identify(&DomainId([1; 16]), &key).unwrap();
        let (there, _) = identify(&DomainId([2; 16]), &key).unwrap();
        assert_ne!(here, there);
        assert!(identify(&DomainId([1; 16]), &ClearKey::new(vec![5; 24])).is_none());
    }
}
