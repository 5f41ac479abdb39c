//! What a history does not change: the key domain, its blocks' keys, the sites' tokens.

use kms_core::{
    BlockCount, BlockNo, BlockSecret, DomainId, DomainRecord, Epoch, Fingerprint, SystemTitle,
    audit::{PublicKey, SiteKeys},
    block::{
        keys::{BlockKeys, SUBKEYS_LEN, SecretBinding},
        proof::ProofKey,
    },
    counters::LineName,
    site::{
        admission::Writers,
        peer::PeerKind,
        readiness::{ReadinessReport, SignedReadiness},
        role::{RoleRecord, SignedRoleRecord},
    },
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};

/// The number of blocks of the simulated domain.
pub(crate) const BLOCKS: u32 = 2;

/// The number of its meters.
pub(crate) const METERS: u8 = 6;

/// The key values that they share: meters of different blocks have the same one.
pub(crate) const VALUES: u8 = 3;

/// The epoch in which the domain was founded, by the even site.
pub(crate) const FOUNDING: Epoch = Epoch(2);

/// A realm can't be made: its keys could not be.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the realm's keys can't be made")]
pub struct NoRealm;

/// The key domain of all histories. What is random in it, the tokens' keys, decides nothing.
pub struct Realm {
    keys: Vec<BlockKeys>,
    proof_keys: Vec<ProofKey>,
    tokens: [EcdsaKeyPair; 2],
    random: SystemRandom,
    /// Whose signatures count, for each site.
    pub(crate) writers: [Writers; 3],
}

impl Realm {
    /// A new one.
    pub fn new() -> Result<Self, NoRealm> {
        let keys = (0..BLOCKS).map(keys_of).collect::<Option<_>>().ok_or(NoRealm)?;
        let proof_keys = (0..BLOCKS).map(proof_key_of).collect::<Option<_>>().ok_or(NoRealm)?;
        let random = SystemRandom::new();
        let (even, odd) = (token(&random)?, token(&random)?);
        let public = |token: &EcdsaKeyPair| {
            let key: Option<PublicKey> = token.public_key().as_ref().try_into().ok();
            key.map(SiteKeys::from)
        };
        let of = |own| Writers { even: public(&even), odd: public(&odd), own };
        let writers = [of(Some(true)), of(Some(false)), of(None)];
        Ok(Self { keys, proof_keys, tokens: [even, odd], random, writers })
    }

    /// The keys of a block.
    pub(crate) fn keys(&self, block: usize) -> &BlockKeys {
        &self.keys[block % self.keys.len()]
    }

    /// The key of a block's proofs.
    pub(crate) fn proof_key(&self, block: usize) -> &ProofKey {
        &self.proof_keys[block % self.proof_keys.len()]
    }

    /// Has a site's token sign a report.
    pub(crate) fn sign_readiness(
        &self,
        site: usize,
        report: ReadinessReport,
    ) -> Option<SignedReadiness> {
        let signature = self.tokens[site % 2].sign(&self.random, &report.message()).ok()?;
        Some(SignedReadiness { report, signature: signature.as_ref().try_into().ok()? })
    }

    /// Has a site's token sign.
    pub(crate) fn sign(&self, site: usize, record: RoleRecord) -> Option<SignedRoleRecord> {
        let signature = self.tokens[site % 2].sign(&self.random, &record.message()).ok()?;
        Some(SignedRoleRecord { record, signature: signature.as_ref().try_into().ok()? })
    }

    /// A site's domain record.
    pub(crate) fn domain(&self, site: usize) -> DomainRecord {
        DomainRecord {
            domain: DOMAIN,
            blocks: block_count(),
            site: format!("site {site}"),
            epoch: FOUNDING,
            kind: match site {
                0 => PeerKind::Even,
                1 => PeerKind::Odd,
                _ => PeerKind::Replica,
            },
            canaries: Vec::new(),
            created_ms: 0,
            signature: None,
        }
    }
}

/// The key domain.
pub(crate) const DOMAIN: DomainId = DomainId([1; 16]);

/// The domain's blocks.
pub(crate) fn block_count() -> BlockCount {
    BlockCount::new(BLOCKS).unwrap_or(BlockCount::DEFAULT)
}

fn token(random: &SystemRandom) -> Result<EcdsaKeyPair, NoRealm> {
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = EcdsaKeyPair::generate_pkcs8(algorithm, random).map_err(|_| NoRealm)?;
    EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), random).map_err(|_| NoRealm)
}

fn secret_of(block: u32) -> Option<BlockSecret> {
    let secret = BlockSecret::fill_with(|bytes| {
        bytes.fill(block as u8 + 1);
        Ok::<(), NoRealm>(())
    });
    secret.ok()
}

const fn place_of(block: u32) -> SecretBinding<'static> {
    SecretBinding { domain: &DOMAIN, block: BlockNo(block), secret_version: 1 }
}

fn keys_of(block: u32) -> Option<BlockKeys> {
    let mut subkeys = [0; SUBKEYS_LEN];
    place_of(block).derive_subkeys(&secret_of(block)?, &mut subkeys);
    BlockKeys::new(DOMAIN, &subkeys)
}

fn proof_key_of(block: u32) -> Option<ProofKey> {
    Some(ProofKey::of(&place_of(block), &secret_of(block)?))
}

/// The title of a meter.
pub(crate) fn title(meter: u8) -> SystemTitle {
    SystemTitle::new([b'S', b'I', b'M', 0, 0, 0, 0, meter])
}

/// The block of a meter.
pub(crate) fn block_of(meter: u8) -> usize {
    block_count().block_of(&title(meter)).0 as usize
}

/// The counter line that a meter is sent to on: of its key's value.
pub(crate) fn line_of(meter: u8) -> LineName {
    let value = meter % VALUES;
    LineName {
        fingerprint: Fingerprint([0x55 ^ value.wrapping_mul(0x4D); 16]),
        originator: SystemTitle::new([0xC0; 8]),
    }
}

/// The block of a line's record.
pub(crate) fn block_of_line(name: &LineName) -> usize {
    name.block(block_count()).0 as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meters_of_different_blocks_share_a_value_and_lines_are_in_several_blocks() {
        let shared = (0..METERS)
            .any(|a| (0..METERS).any(|b| line_of(a) == line_of(b) && block_of(a) != block_of(b)));
        assert!(shared);
        let blocks: std::collections::BTreeSet<_> =
            (0..METERS).map(|meter| block_of_line(&line_of(meter))).collect();
        assert_eq!(blocks.len(), BLOCKS as usize);
    }
}
